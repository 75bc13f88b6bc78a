//! `haul-bench`: each piece of haul, timed in process.
//!
//! Owns the measuring of parts: hash, cipher, frames, codecs, the paths between files and streams, stores, the block store of
//! dedup. What a user sees of the whole is `haul-perf`'s to measure. Nothing is asserted here: a run prints a table, and
//! numbers of one table may be compared with each other, because its cases take turns.
//!
//! ```text
//! cargo run --release -p haul-bench                       every group
//! cargo run --release -p haul-bench -- send --rounds 10   the cases whose name contains "send"
//! ```

#![forbid(unsafe_code)]

mod blocks;
mod machine;
mod measure;
mod paths;
mod pieces;
mod store;
#[cfg(target_os = "linux")]
mod yardstick;

use anyhow::{Context as _, Result};
use clap::Parser;
use std::path::Path;

/// Times the pieces of haul in this process.
#[derive(Parser)]
#[command(name = "haul-bench", version)]
struct Args {
    /// Only cases whose name contains this.
    filter: Option<String>,
    /// Rounds; the first is dropped.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..))]
    rounds: u32,
}

/// Bytes of the file that is moved.
const FILE_BYTES: u64 = 256 << 20;

fn main() -> Result<()> {
    let args = Args::parse();
    let mut builder = tempfile::Builder::new();
    builder.prefix("haul-bench-");
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { builder.tempdir_in(shm) } else { builder.tempdir() };
    let dir = dir.context("cannot make a directory to work in")?;
    // Where temporary files are, which mostly is a file system on a disk.
    let disk = builder.tempdir().context("cannot make a directory to work in")?;
    println!("working in {}, {} rounds, the first dropped", dir.path().display(), args.rounds);
    machine::describe();
    let filter = args.filter.as_deref().unwrap_or("");
    let groups = [
        pieces::hashes(),
        pieces::records(),
        pieces::frames()?,
        pieces::codecs()?,
        paths::sends(dir.path(), FILE_BYTES)?,
        paths::receives(dir.path(), FILE_BYTES)?,
        store::stores(dir.path())?,
        blocks::blocks(dir.path(), "in memory")?,
        blocks::blocks(disk.path(), "on disk")?,
    ];
    for group in groups {
        measure::group(group.into_iter().filter(|case| case.name.contains(filter)).collect(), args.rounds)?;
    }
    Ok(())
}
