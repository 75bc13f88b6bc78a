//! What a copy costs that was killed and is run again with `-C`, and what it leaves behind.
//!
//! For each backend, way and victim: SIGKILL when so many percent have arrived, then the same command again, which is
//! measured between two fresh copies. The bound on it is what R2 of the acceptance list says: the missing share of a
//! fresh copy, 25 % of one, and 0.3 s. Whoever is not killed has ended before the next run begins, as after a person has
//! seen the error.

use crate::process::{self, Far};
use crate::rows::{Place, Way};
use crate::sshd::Sshd;
use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Percent at which a copy is killed, one kill after the other, before the run that is measured.
const CASES: [&[u64]; 4] = [&[10], &[50], &[90], &[10, 50, 90]];
/// Share of a fresh copy, and seconds, that a rerun may cost beside what was missing.
const EXTRA_SHARE: f64 = 0.25;
const EXTRA_SECONDS: f64 = 0.3;
/// Bytes that the destination may take above the size of the file.
const EXTRA_BYTES: u64 = 8 << 20;
/// Copies that may end before they are killed.
const ATTEMPTS: u32 = 5;
/// Time a copy has to get to where it is killed.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Near,
    Far,
}

/// One file, one way, over one sshd.
struct Copy<'a> {
    haul: &'a Path,
    sshd: &'a Sshd,
    way: Way,
    source: PathBuf,
    /// The directory it goes to.
    to: PathBuf,
    size: u64,
}

/// What the run after the kills did.
struct Rerun {
    /// Share of the file that was not there before.
    missing: f64,
    wall: f64,
    peak_bytes: u64,
    leftovers: Vec<OsString>,
    equal: bool,
}

/// Prints one line for each case; `name` is the file below the source directory.
pub(crate) fn measure(haul: &Path, name: &str, place: &Place<'_>, sshds: &[Sshd]) -> Result<()> {
    ensure!(!sshds.is_empty(), "interrupted copies are measured over ssh, and there is no sshd here");
    let stopped = process::stop_flag()?;
    let source = place.source.join(name);
    let size = fs::metadata(&source)?.len();
    println!(
        "{:<26} {:>9} {:>8} {:>8} {:>8} {:>6} {:>10}  content, names left",
        "killed at", "missing", "fresh s", "rerun s", "bound s", "x", "space MiB"
    );
    for sshd in sshds {
        for way in [Way::Up, Way::Down] {
            let copy = Copy { haul, sshd, way, source: source.clone(), to: place.target.join("resumed"), size };
            // The first is not measured.
            copy.fresh()?;
            for victim in [Victim::Near, Victim::Far] {
                for percents in CASES {
                    ensure!(!stopped.load(Ordering::Relaxed), "stopped");
                    // Around each rerun, so that both find the machine in the same state.
                    let before = copy.fresh()?;
                    let rerun = copy.killed_and_run_again(percents, victim);
                    let fresh = f64::midpoint(before, copy.fresh()?);
                    print(&copy, (percents, victim), fresh, &rerun.map_err(|why| format!("{why:#}")));
                }
            }
        }
    }
    Ok(())
}

fn print(copy: &Copy<'_>, (percents, victim): (&[u64], Victim), fresh: f64, rerun: &Result<Rerun, String>) {
    let at: Vec<String> = percents.iter().map(u64::to_string).collect();
    let end = if victim == Victim::Near { "near" } else { "far" };
    let case = format!("{} {} {end} {} %", copy.sshd.backend, copy.way.name(), at.join(", "));
    let rerun = match rerun {
        Ok(rerun) => rerun,
        Err(why) => return println!("{case:<26} failed: {why}"),
    };
    let bound = rerun.missing * fresh + EXTRA_SHARE * fresh + EXTRA_SECONDS;
    let space = rerun.peak_bytes >> 20;
    let verdicts = [
        (rerun.wall > bound, "too slow"),
        (rerun.peak_bytes > copy.size + EXTRA_BYTES, "too much space"),
        (!rerun.equal, "DIFFERENT"),
        (!rerun.leftovers.is_empty(), "litter"),
    ];
    let wrong: Vec<&str> = verdicts.into_iter().filter_map(|(wrong, what)| wrong.then_some(what)).collect();
    println!(
        "{case:<26} {:>8.1}% {fresh:>8.2} {:>8.2} {bound:>8.2} {:>6.2} {space:>10}  {}, {:?} {}",
        rerun.missing * 100.0,
        rerun.wall,
        rerun.wall / bound,
        if rerun.equal { "equal" } else { "different" },
        rerun.leftovers,
        wrong.join(", ")
    );
}

impl Copy<'_> {
    fn command(&self, flags: &[&str]) -> Command {
        let target = self.to.join("file");
        let far = |path: &Path| [OsString::from("far:"), path.into()].into_iter().collect::<OsString>();
        let (from, to) = match self.way {
            Way::Up => (self.source.clone().into(), far(&target)),
            Way::Down => (far(&self.source), target.into()),
            Way::Local => (self.source.clone().into(), target.into()),
        };
        let mut command = Command::new(self.haul);
        command.args(["copy", "-q", "-F"]).arg(self.sshd.ssh_config()).args(flags).arg(from).arg(to);
        command.env("HAUL_BACKEND", self.sshd.backend).stdin(Stdio::null());
        command
    }

    /// Seconds of a copy to where nothing is.
    fn fresh(&self) -> Result<f64> {
        self.clear()?;
        Ok(process::run(self.command(&[]), Some(Far::Children(self.sshd.child.id())))?.wall)
    }

    fn killed_and_run_again(&self, percents: &[u64], victim: Victim) -> Result<Rerun> {
        self.clear()?;
        for percent in percents {
            let goal = self.size * percent / 100;
            let hit = (0..ATTEMPTS).find_map(|_| self.killed_at(goal, victim).transpose());
            hit.context("every copy was over before it could be killed")??;
        }
        let missing = 1.0 - self.arrived() as f64 / self.size as f64;
        let (peak_bytes, sample) =
            self.watched(|| process::run(self.command(&["-C"]), Some(Far::Children(self.sshd.child.id()))));
        let wall = sample?.wall;
        let names = fs::read_dir(&self.to)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
        let leftovers = names.into_iter().filter(|name| name != "file").collect();
        let equal = same_content(&self.source, &self.to.join("file"))?;
        Ok(Rerun { missing, wall, peak_bytes, leftovers, equal })
    }

    /// Kills one end when so many bytes are there; `None` when the copy was over before.
    fn killed_at(&self, goal: u64, victim: Victim) -> Result<Option<()>> {
        let mut client = self.command(&["-C"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let until = Instant::now() + LIMIT;
        let mut over = false;
        while self.arrived() < goal && !over && Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
            over = client.try_wait()?.is_some();
        }
        match (victim, process::haul_below(self.sshd.child.id())) {
            (Victim::Far, Some(far)) if !over => {
                let pid = Pid::from_raw(i32::try_from(far)?).context("no process has the id 0")?;
                // Gone already is no error: then the name is there.
                let _ = kill_process(pid, Signal::KILL);
            }
            _ => client.kill()?,
        }
        client.wait()?;
        process::wait_for_far_end(self.sshd.child.id());
        if self.to.join("file").exists() {
            self.clear()?;
            return Ok(None);
        }
        ensure!(self.arrived() >= goal, "it did not get to {goal} bytes");
        Ok(Some(()))
    }

    /// Bytes under any name.
    fn arrived(&self) -> u64 {
        let lengths = fs::read_dir(&self.to).into_iter().flatten().flatten();
        lengths.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
    }

    /// Most bytes that were allocated at the destination meanwhile, with or without a name.
    fn watched<T>(&self, work: impl FnOnce() -> T) -> (u64, T) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(allocated(&self.to));
                    std::thread::sleep(LOOK_EVERY);
                }
                most.max(allocated(&self.to))
            });
            let result = work();
            done.store(true, Ordering::Relaxed);
            (watcher.join().unwrap_or(u64::MAX), result)
        })
    }

    fn clear(&self) -> Result<()> {
        if self.to.exists() {
            fs::remove_dir_all(&self.to)?;
        }
        Ok(fs::create_dir(&self.to)?)
    }
}

/// Bytes on disk of all files in a directory, and of those that some haul of ours has open there without a name.
fn allocated(dir: &Path) -> u64 {
    let named = fs::read_dir(dir).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
    let open = process::hauls_below(std::process::id()).into_iter().flat_map(|pid| {
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path())
    });
    let nameless = open.filter(|fd| {
        fs::read_link(fd).is_ok_and(|path| path.starts_with(dir) && path.to_string_lossy().ends_with(" (deleted)"))
    });
    let mut files: Vec<_> = named.chain(nameless.filter_map(|fd| fs::metadata(fd).ok())).collect();
    // A file that is open twice is there once.
    files.sort_by_key(MetadataExt::ino);
    files.dedup_by_key(|meta| meta.ino());
    files.iter().map(|meta| meta.blocks() * 512).sum()
}

fn same_content(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        (&mut one).take(1 << 20).read_to_end(&mut left)?;
        (&mut other).take(1 << 20).read_to_end(&mut right)?;
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}
