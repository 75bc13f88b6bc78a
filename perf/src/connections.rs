//! `--connections auto` against fixed numbers, over links of different kinds: R5 of the acceptance list.
//!
//! | link | what it is |
//! |---|---|
//! | lo | loopback |
//! | gigabit | two namespaces, veth, tbf 1 Gbit/s |
//! | delay | two namespaces, 5 ms each way, 1 Gbit/s (delay.rs) |
//! | disk | loopback, to a file system on a disk, flushed: `--sync` |
//!
//! To a daemon with a key, so that no login is in any number. On each link auto must reach 0.95 of the best rate.

use crate::delay::Delayed;
use crate::keyed::Keyed;
use crate::netns::{self, Pair};
use crate::report::{self, median};
use crate::turns::{self, Turn};
use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// --connections auto against fixed numbers: R5. Root; needs iproute2, socat for `delay`, mkfs.ext4 and mount for `disk`.
#[derive(Args)]
pub(crate) struct Connections {
    /// Size of the file in MiB. It is there twice, in memory.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    size: u64,
    /// Rounds; the first is dropped.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..))]
    rounds: u32,
    /// Only over this link; may be given again.
    #[arg(long, value_enum)]
    link: Vec<Link>,
    /// Backend of both ends.
    #[arg(long, default_value = "auto")]
    io: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Link {
    Lo,
    Gigabit,
    Delay,
    Disk,
}

/// What is given to `--connections`; auto comes first.
const NUMBERS: [&str; 6] = ["auto", "1", "2", "4", "8", "16"];
/// Share of the best rate that auto must reach.
const SHARE: f64 = 0.95;
const EACH_WAY: Duration = Duration::from_millis(5);
const RATE: &str = "1gbit";
/// Bytes of the file system beside the file.
const SPARE_BYTES: u64 = 256 << 20;

/// Measures, and prints what is met.
pub(crate) fn measure(haul: &Path, args: &Connections) -> Result<()> {
    let bytes = args.size << 20;
    let shm = Path::new("/dev/shm");
    let dir = tempfile::Builder::new().prefix("haul-perf-").tempdir_in(shm).context("a directory in memory")?;
    let random = fs::File::open("/dev/urandom").context("no random bytes")?;
    std::io::copy(&mut random.take(bytes), &mut fs::File::create(dir.path().join("big"))?)?;
    report::machine_notes().iter().for_each(|note| println!("note: {note}"));
    println!("measuring {}, {} MiB; load before: {}", haul.display(), args.size, report::load());
    for link in Link::value_variants() {
        if args.link.is_empty() || args.link.contains(link) {
            over(*link, haul, dir.path(), args)?;
        }
    }
    Ok(())
}

/// All numbers over one link, up and down.
fn over(link: Link, haul: &Path, source: &Path, args: &Connections) -> Result<()> {
    let pair = match link {
        Link::Lo | Link::Disk => None,
        Link::Gigabit => Some(Pair::joined(&format!("tbf rate {RATE} burst 256kb latency 20ms"))?),
        Link::Delay => Some(Pair::new()?),
    };
    let _delayed = match &pair {
        Some(pair) if link == Link::Delay => Some(Delayed::join(pair, EACH_WAY, RATE)?),
        _ => None,
    };
    let disk = if link == Link::Disk { Some(Disk::mount((args.size << 20) + SPARE_BYTES)?) } else { None };
    let below = disk.as_ref().map_or(source, |disk| disk.place.as_path());
    let daemon = match &pair {
        Some(pair) => Keyed::start(haul, &args.io, netns::FAR, |program| pair.far.command(program))?,
        None => Keyed::start(haul, &args.io, "127.0.0.1", |program| Command::new(program))?,
    };
    let mut turns = Vec::new();
    for up in [true, false] {
        for number in NUMBERS {
            let (pair, daemon) = (&pair, &daemon);
            let command = move |place: &Path| {
                let mut command = match pair {
                    Some(pair) => pair.near.command(haul),
                    None => Command::new(haul),
                };
                let (from, to) = (source.join("big"), place.join("big"));
                let (from, to): (OsString, OsString) =
                    if up { (from.into(), daemon.operand(&to)) } else { (daemon.operand(&from), to.into()) };
                command.args(["copy", "-q", "--connections", number, "--key-file"]).arg(daemon.key());
                command.args((link == Link::Disk).then_some("--sync"));
                command.arg(from).arg(to).env("HAUL_BACKEND", &args.io);
                command
            };
            turns.push(Turn {
                name: format!("{} {}, {number}", name(link), if up { "up" } else { "down" }),
                command: Box::new(command),
                before: None,
                far: Some(daemon.far()),
                makes: Some(("big", args.size << 20)),
            });
        }
    }
    let taken = turns::take(&turns, args.rounds, below)?;
    for (turns, taken) in turns.chunks(NUMBERS.len()).zip(taken.chunks(NUMBERS.len())) {
        let mut walls = Vec::new();
        for (turn, taken) in turns.iter().zip(taken) {
            match taken {
                Ok(samples) => {
                    let wall = median(samples.iter().map(|sample| sample.wall).collect()).unwrap_or(f64::NAN);
                    println!("{:<20} {wall:>8.3} s {:>9.0} MB/s", turn.name, (args.size << 20) as f64 / wall / 1e6);
                    walls.push(wall);
                }
                Err(why) => println!("{:<20} failed: {why}", turn.name),
            }
        }
        if let [auto, fixed @ ..] = &walls[..]
            && walls.len() == NUMBERS.len()
        {
            let share = fixed.iter().copied().fold(f64::INFINITY, f64::min) / auto;
            let met = if share >= SHARE { "met" } else { "MISSED" };
            println!("R5 {}: {share:.2} of the best fixed number's rate, at least {SHARE}: {met}", turns[0].name);
        }
    }
    Ok(())
}

fn name(link: Link) -> &'static str {
    match link {
        Link::Lo => "lo",
        Link::Gigabit => "gigabit",
        Link::Delay => "delay",
        Link::Disk => "disk",
    }
}

/// A file system of its own on the disk that temporary files are on; unmounted and removed when dropped.
struct Disk {
    place: PathBuf,
    _dir: tempfile::TempDir,
}

impl Disk {
    fn mount(bytes: u64) -> Result<Disk> {
        let dir = tempfile::Builder::new().prefix("haul-perf-disk-").tempdir()?;
        let (image, place) = (dir.path().join("image"), dir.path().join("place"));
        fs::create_dir(&place)?;
        fs::File::create(&image)?.set_len(bytes)?;
        let make = netns::find("mkfs.ext4")?;
        for (program, words) in [(make.as_path(), &["-q", "-F"][..]), (Path::new("mount"), &["-o", "loop"])] {
            let mut command = Command::new(program);
            command.args(words).arg(&image).stdout(Stdio::null());
            command.args((program == Path::new("mount")).then_some(&place));
            ensure!(command.status()?.success(), "{} failed", program.display());
        }
        Ok(Disk { place, _dir: dir })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what still has a file open there is ending.
        let _ = Command::new("umount").arg("-l").arg(&self.place).status();
    }
}
