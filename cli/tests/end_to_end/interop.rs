//! haul beside the real programs: every client, every server, every operation, every codec. Runs where HAUL_BCMR_060 and
//! HAUL_BCMR_072 name the real binaries; `perf/interop` prints the table.
//!
//! HAUL_INTEROP_ONLY=TEXT takes the cells whose name has the text in it, as `haul -> 0.6.0: put, lz4`.

use crate::support::interop::cell::{Cell, Outcome};
use crate::support::interop::content::Sources;
use crate::support::interop::{peer, table};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// Cells that run at the same time.
const SIDE_BY_SIDE: usize = 2;

#[test]
fn every_client_works_with_every_server_that_speaks_its_version() {
    if !peer::real_programs_are_here() {
        return;
    }
    let only = std::env::var("HAUL_INTEROP_ONLY").unwrap_or_default();
    let cells: Vec<Cell> = Cell::all().into_iter().filter(|cell| cell.to_string().contains(&only)).collect();
    assert!(!cells.is_empty(), "there is no cell called {only:?}");
    let sources = Sources::new();
    let (queue, outcomes) = (Mutex::new(cells.into_iter()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some(cell) = queue.lock().unwrap().next() else { return };
                    let started = Instant::now();
                    let outcome = cell.outcome(&sources);
                    eprintln!("{cell}: {outcome:?} ({:.1?})", started.elapsed());
                    outcomes.lock().unwrap().insert(cell, outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap();
    println!("\n{}", table::markdown(&outcomes));
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(
            |(cell, outcome)| if let Outcome::Failed(why) = outcome { Some(format!("{cell}: {why}")) } else { None },
        )
        .collect();
    assert!(failed.is_empty(), "{} of {} cells failed:\n{}", failed.len(), outcomes.len(), failed.join("\n"));
}
