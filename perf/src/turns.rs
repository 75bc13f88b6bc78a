//! Commands that take turns: A B C A B C .., the first round dropped, so that whatever changes on the machine changes for
//! all of them.

use crate::process::{self, Far, Sample};
use anyhow::{Result, bail};
use std::fs;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;

/// One of them.
pub(crate) struct Turn<'a> {
    pub(crate) name: String,
    /// Made anew for each round; it may put what it makes into this directory, which is there and empty.
    pub(crate) command: Box<dyn Fn(&Path) -> Command + 'a>,
    /// What the machine is to be like, set up before the clock starts.
    pub(crate) before: Option<Box<dyn Fn() -> Result<()> + 'a>>,
    /// The server at the other end, or the sshd that starts it, whose processor time counts.
    pub(crate) far: Option<Far>,
    /// What must be in the directory afterwards: a file of this name and size.
    pub(crate) makes: Option<(&'static str, u64)>,
}

/// What came of one: a sample for each round but the first, or why there are none.
pub(crate) type Taken = Result<Vec<Sample>, String>;

/// Runs them all, `rounds` times; `below` is where they put what they make, which is removed at once.
pub(crate) fn take(turns: &[Turn<'_>], rounds: u32, below: &Path) -> Result<Vec<Taken>> {
    let stopped = process::stop_flag()?;
    let mut taken: Vec<Taken> = turns.iter().map(|_| Ok(Vec::new())).collect();
    for round in 0..rounds {
        for (turn, taken) in turns.iter().zip(&mut taken) {
            let Ok(so_far) = taken else { continue };
            if std::io::stderr().is_terminal() {
                eprint!("\rround {} of {rounds}: {:<40}\r", round + 1, turn.name);
            }
            let sample = one(turn, below);
            if stopped.load(Ordering::Relaxed) {
                bail!("stopped in round {} of {rounds}, {}", round + 1, turn.name);
            }
            match sample {
                Ok(sample) if round > 0 => so_far.push(sample),
                Ok(_) => {}
                Err(why) => *taken = Err(format!("{why:#}")),
            }
        }
    }
    Ok(taken)
}

fn one(turn: &Turn<'_>, below: &Path) -> Result<Sample> {
    let place = tempfile::Builder::new().prefix("turn-").tempdir_in(below)?;
    if let Some(before) = &turn.before {
        before()?;
    }
    let sample = process::run((turn.command)(place.path()), turn.far)?;
    if let Some((name, bytes)) = turn.makes {
        // Who exits with 0 and has not copied everything is not measured.
        let there = fs::metadata(place.path().join(name)).map_or(0, |meta| meta.len());
        if there != bytes {
            bail!("{there} of {bytes} bytes arrived");
        }
    }
    Ok(sample)
}
