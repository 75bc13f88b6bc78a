//! Small files under their final names, on every backend.

use crate::machine::{self, Near};
use crate::measure::{Case, Work, timed};
use anyhow::{Result, ensure};
use haul_engine::backend::{Finish, OpKind, Store};
use haul_engine::block::{Class, Quota, Slices};
use haul_engine::limits::SESSION_SMALL_BLOCKS;
use haul_engine::wire::frame::Preserve;
use std::fs;
use std::path::Path;

/// Files stored in one run, and bytes of each.
const FILES: usize = 2000;
const FILE_BYTES: usize = 4096;

/// Every run stores into a fresh directory; nothing is removed before all runs are over.
pub(crate) fn stores(dir: &Path) -> Result<Vec<Case>> {
    let case = |(name, mut near): (&'static str, Near)| {
        let (dir, mut folders) = (dir.to_path_buf(), (0..).map(move |run| format!("store-{name}-{run}")));
        Case::new(format!("store: {name} {FILES} x 4 KiB"), Work::Items(FILES as u64, "files"), move || {
            let folder = folders.next().unwrap_or_default();
            fs::create_dir(dir.join(&folder))?;
            let sample = timed(|| store(&mut near, &folder))?;
            let made = fs::read_dir(dir.join(&folder))?.count();
            ensure!(made == FILES, "{made} files were made");
            Ok(sample)
        })
    };
    Ok(machine::all(dir)?.into_iter().map(case).collect())
}

fn store(near: &mut Near, folder: &str) -> Result<()> {
    let quota = Quota::new(SESSION_SMALL_BLOCKS);
    let finish = Finish { attributes: None, preserve: Preserve::default(), sync: false, verify: None };
    let (mut next, mut stored) = (0, 0);
    while stored < FILES {
        while next < FILES
            && let Some(block) = near.pool.take(Class::Small, &quota)
        {
            let from = Slices::from_iter([block.share().slice(0..FILE_BYTES)]);
            let place = near.place(&format!("{folder}/{next:06}"))?;
            near.start(OpKind::Store(Box::new(Store { place, from, finish, overwrite: true })));
            next += 1;
        }
        stored += near.turn(|_, _| Ok(()))?;
    }
    Ok(())
}
