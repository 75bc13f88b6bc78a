//! `haul-perf`: the haul binary against what a user would pick instead.
//!
//! Owns the measuring of whole programs; pieces are `haul-bench`'s. Nothing is asserted: a run prints tables and which
//! targets its ratios meet. Ratios are of medians of one run whose rows take turns.
//!
//! ```text
//! cargo build --release -p haul && cargo run --release -p haul-perf                  everything
//! cargo run --release -p haul-perf -- --size 64 --files 500 --rounds 2               does it work at all
//! cargo run --release -p haul-perf -- --resume                                       killed copies, run again
//! cargo run --release -p haul-perf -- ten-gigabit | blocked-port | connections        over links between namespaces
//! ```

#![forbid(unsafe_code)]

mod blocked_port;
mod connections;
mod daemon;
mod delay;
mod keyed;
mod netns;
mod process;
mod report;
mod resume;
mod rows;
mod sshd;
mod ten_gigabit;
mod turns;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use daemon::Daemon;
use keyed::Keyed;
use rows::{Place, Row, Shape};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Measures the haul binary against its peers.
#[derive(Parser)]
#[command(name = "haul-perf", version)]
struct Args {
    /// The haul to measure, on both ends. [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    haul: Option<PathBuf>,
    /// Size of the big file in MiB; 0 leaves it out.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    size: u64,
    /// Number of files of 64 KiB in the tree; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    files: u64,
    /// Rounds; the first is dropped.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..))]
    rounds: u32,
    /// Only rows whose name contains this; may be given again.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Measures reruns with -C of killed copies of the big file, and nothing else.
    #[arg(long)]
    resume: bool,
    /// Where the result is also written, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    mode: Option<Mode>,
}

/// What is measured in place of all that.
#[derive(clap::Subcommand)]
enum Mode {
    TenGigabit(ten_gigabit::TenGigabit),
    BlockedPort(blocked_port::BlockedPort),
    Connections(connections::Connections),
}

/// Bytes of each file of the tree.
const FILE_BYTES: u64 = 64 << 10;
/// Files in one directory of the tree.
const FILES_PER_DIRECTORY: u64 = 100;

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.resume {
        args.files = 0;
    }
    let haul = find_haul(args.haul.as_deref())?;
    match &args.mode {
        Some(Mode::TenGigabit(mode)) => return ten_gigabit::measure(&haul, mode),
        Some(Mode::BlockedPort(mode)) => return blocked_port::measure(&haul, mode),
        Some(Mode::Connections(mode)) => return connections::measure(&haul, mode),
        None => {}
    }
    let mut notes = report::machine_notes();
    let source = temporary(None)?;
    let shm = Some(Path::new("/dev/shm")).filter(|shm| shm.is_dir());
    let (target, on_tmpfs) = (temporary(shm)?, shm.is_some());
    notes.extend((!on_tmpfs).then(|| "no /dev/shm: targets are on disk, whose speed is part of every number".into()));
    let shapes = make_sources(source.path(), &args)?;
    let sshds = sshd::start_both(&haul, sshd::Place::Here, &mut notes)?;
    let place = Place { source: source.path(), target: target.path(), on_tmpfs };
    let load_before = report::load();
    for note in &notes {
        println!("note: {note}");
    }
    println!("measuring {}; load before: {load_before}", haul.display());
    if args.resume {
        let file = shapes.first().context("there is nothing to copy with --size 0")?;
        return resume::measure(&haul, file.name, &place, &sshds);
    }
    println!("{}", report::COUNTED);
    let rsync = Daemon::start()?;
    let listening =
        |backend| Ok((backend, Keyed::start(&haul, backend, "127.0.0.1", |program| Command::new(program))?));
    let daemons: Vec<(&'static str, Keyed)> = sshd::BACKENDS.into_iter().map(listening).collect::<Result<_>>()?;
    let mut results = Vec::new();
    for shape in &shapes {
        let rows = rows::all(&haul, &sshds, (rsync.as_ref(), &daemons), shape.recursive);
        let (rows, missing): (Vec<Row>, Vec<Row>) = rows
            .into_iter()
            .filter(|row| args.only.is_empty() || args.only.iter().any(|text| row.name.contains(text)))
            .partition(Row::is_installed);
        for row in missing {
            println!("note: {} is left out: there is no {}", row.name, row.program.display());
        }
        let measured = rows::measure(rows, shape, &place, args.rounds)?;
        report::table(shape, &measured);
        results.push((shape, measured));
    }
    let targets = report::targets(&results);
    if let Some(path) = &args.json {
        let json = report::json(&haul, args.rounds, &load_before, &notes, &results, &targets);
        fs::write(path, format!("{json:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn temporary(below: Option<&Path>) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("haul-perf-");
    below.map_or_else(|| builder.tempdir(), |dir| builder.tempdir_in(dir)).context("cannot make a directory to work in")
}

/// `cargo run` puts this program where it puts haul.
fn find_haul(given: Option<&Path>) -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("haul");
    let path = given.unwrap_or(&beside);
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(why) => {
            bail!("{}: {why}; build it with `cargo build --release -p haul`, or name one with --haul", path.display())
        }
    }
}

/// Content no codec or cache can make easier, on disk and in the page cache.
fn make_sources(dir: &Path, args: &Args) -> Result<Vec<Shape>> {
    let random = fs::File::open("/dev/urandom").context("no random bytes")?;
    let mut shapes = Vec::new();
    if args.size > 0 {
        let bytes = args.size << 20;
        std::io::copy(&mut (&random).take(bytes), &mut fs::File::create(dir.join("big"))?)?;
        shapes.push(Shape { title: format!("{} MiB file", args.size), name: "big", recursive: false, files: 1, bytes });
    }
    if args.files > 0 {
        let mut content = vec![0; FILE_BYTES as usize];
        for number in 0..args.files {
            let folder = dir.join("tree").join(format!("{:03}", number / FILES_PER_DIRECTORY));
            if number % FILES_PER_DIRECTORY == 0 {
                fs::create_dir_all(&folder)?;
            }
            (&random).read_exact(&mut content)?;
            fs::write(folder.join(format!("{number:06}")), &content)?;
        }
        let (files, bytes) = (args.files, args.files * FILE_BYTES);
        shapes.push(Shape { title: format!("{files} x 64 KiB"), name: "tree", recursive: true, files, bytes });
    }
    // What is still to be written to disk would be written during the first rounds.
    rustix::fs::sync();
    Ok(shapes)
}
