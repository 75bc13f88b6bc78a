//! haul over a link of 10 Gbit/s, and what the link itself can do: T9 and T10.
//!
//! ```text
//! near namespace                             far namespace
//! iperf3 -c   ----- veth, tbf at both ends -----  iperf3 -s
//! haul copy  -------------- TCP ----------------  haul serve, which ssh starts | haul serve --listen --key-file
//! ```
//! Source and target are on tmpfs. Wall time is from start to exit of the command; over ssh that holds a login, which is
//! measured as well, by a file of 6 bytes. A daemon needs none.

use crate::keyed::Keyed;
use crate::netns::{self, Pair};
use crate::process::{Far, Running};
use crate::report::{self, median};
use crate::rows::Way;
use crate::sshd::{self, BACKENDS, Sshd};
use crate::turns::{self, Taken, Turn};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

/// Hashes and encryption over a link of 10 Gbit/s, against iperf3: T9 and T10. Root; needs iproute2, iperf3, openssh.
#[derive(Args)]
pub(crate) struct TenGigabit {
    /// Size of the file in MiB. It is there twice, in memory.
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    size: u64,
    /// Rounds; the first is dropped.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..))]
    rounds: u32,
    /// What tc makes of the link.
    #[arg(long, value_name = "RATE", default_value = "10gbit")]
    rate: String,
}

/// At most so many times the wall time without a hash, and that of iperf3.
const T9: f64 = 1.05;
const T10: f64 = 1.05;
/// Memory beside the two files.
const SPARE_BYTES: u64 = 2 << 30;
/// What is copied to see what a login takes.
const TINY: (&str, &str) = ("tiny", "6 byte");

/// What a turn is, in the table and for the ratios.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    what: What,
    way: Way,
    backend: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Iperf3,
    Direct {
        hash: bool,
    },
    Daemon {
        hash: bool,
    },
    /// What ssh and the handshake take.
    Login,
}

impl Kind {
    fn name(self) -> String {
        let way = self.way.name();
        let hashes = |hash| if hash { "hash" } else { "no hash" };
        match self.what {
            What::Iperf3 => format!("iperf3 {way}"),
            What::Direct { hash } => format!("{} direct, {} {way}", self.backend, hashes(hash)),
            What::Daemon { hash } => format!("{} daemon, {} {way}", self.backend, hashes(hash)),
            What::Login => format!("{} direct, 6 bytes {way}", self.backend),
        }
    }
}

/// Both ends and everything that listens there.
struct Scene<'a> {
    haul: &'a Path,
    source: &'a Path,
    bytes: u64,
    iperf3: Running,
    daemons: Vec<Keyed>,
    sshds: Vec<Sshd>,
    /// Last, so that it is there until the others have ended.
    pair: &'a Pair,
}

/// Measures, and prints a table and what is met.
pub(crate) fn measure(haul: &Path, args: &TenGigabit) -> Result<()> {
    netns::find("iperf3").context("apt-get install iperf3")?;
    let bytes = args.size << 20;
    let available = netns::available_memory().unwrap_or(u64::MAX);
    ensure!(available > 2 * bytes + SPARE_BYTES, "there is no memory for two files of {} MiB: give --size", args.size);
    let shm = Path::new("/dev/shm");
    let dir = tempfile::Builder::new().prefix("haul-perf-").tempdir_in(shm).context("a directory in memory")?;
    let random = fs::File::open("/dev/urandom").context("no random bytes")?;
    std::io::copy(&mut random.take(bytes), &mut fs::File::create(dir.path().join("big"))?)?;
    fs::write(dir.path().join(TINY.0), TINY.1)?;
    let pair = Pair::joined(&format!("tbf rate {} burst 4mb latency 20ms", args.rate))?;
    let scene = Scene::set(haul, dir.path(), bytes, &pair)?;
    let kinds = kinds();
    let turns: Vec<Turn<'_>> = kinds.iter().map(|&kind| scene.turn(kind)).collect::<Result<_>>()?;
    let load = report::load();
    report::machine_notes().iter().for_each(|note| println!("note: {note}"));
    println!("measuring {} over veth, {}; load before: {load}", haul.display(), args.rate);
    let taken = turns::take(&turns, args.rounds, dir.path())?;
    print(&kinds, &taken, args);
    Ok(())
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for way in [Way::Up, Way::Down] {
        kinds.push(Kind { what: What::Iperf3, way, backend: "" });
        for backend in BACKENDS {
            for what in [
                What::Direct { hash: true },
                What::Direct { hash: false },
                What::Daemon { hash: true },
                What::Daemon { hash: false },
                What::Login,
            ] {
                kinds.push(Kind { what, way, backend });
            }
        }
    }
    kinds
}

impl<'a> Scene<'a> {
    fn set(haul: &'a Path, source: &'a Path, bytes: u64, pair: &'a Pair) -> Result<Scene<'a>> {
        let mut notes = Vec::new();
        let sshds = sshd::start_both(haul, sshd::Place::Far(&pair.far), &mut notes)?;
        ensure!(!sshds.is_empty(), "{}", notes.join("; "));
        let listening = |backend| Keyed::start(haul, backend, netns::FAR, |program| pair.far.command(program));
        let daemons = BACKENDS.into_iter().map(listening).collect::<Result<_>>()?;
        let mut server = pair.far.command("iperf3");
        server.args(["-s", "-B", netns::FAR]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut iperf3 = Running(server.spawn().context("iperf3")?);
        let mut probe = pair.near.command("iperf3");
        probe.args(["-c", netns::FAR, "-n", "1M"]).stdout(Stdio::null()).stderr(Stdio::null());
        let up = sshd::wait_until(&mut iperf3.0, || probe.status().is_ok_and(|status| status.success()))?;
        ensure!(up, "iperf3 does not answer");
        Ok(Scene { haul, source, bytes, iperf3, daemons, sshds, pair })
    }

    fn turn(&self, kind: Kind) -> Result<Turn<'_>> {
        let name = kind.name();
        let index = BACKENDS.iter().position(|&backend| backend == kind.backend).unwrap_or(0);
        if kind.what == What::Iperf3 {
            let command = move |_: &Path| {
                let mut command = self.pair.near.command("iperf3");
                command.args(["-c", netns::FAR, "-n", &self.bytes.to_string()]);
                command.args((kind.way == Way::Down).then_some("-R"));
                command
            };
            let far = Some(Far::Itself(self.iperf3.id()));
            return Ok(Turn { name, command: Box::new(command), before: None, far, makes: None });
        }
        let (file, bytes) = if kind.what == What::Login { (TINY.0, TINY.1.len() as u64) } else { ("big", self.bytes) };
        let (Some(sshd), Some(daemon)) = (self.sshds.get(index), self.daemons.get(index)) else {
            bail!("there is nobody at the far end");
        };
        let over_ssh = !matches!(kind.what, What::Daemon { .. });
        let hash = !matches!(kind.what, What::Direct { hash: false } | What::Daemon { hash: false });
        let far = if over_ssh { Far::Children(sshd.child.id()) } else { daemon.far() };
        let command = move |place: &Path| {
            let remote = |path: &Path| if over_ssh { over_sshd(path) } else { daemon.operand(path) };
            let (from, to) = (self.source.join(file), place.join(file));
            let (from, to) = match kind.way {
                Way::Up => (from.into_os_string(), remote(&to)),
                _ => (remote(&from), to.into_os_string()),
            };
            let mut command = self.pair.near.command(self.haul);
            command.args(["copy", "-q"]).args((!hash).then_some("--no-hash"));
            if over_ssh {
                command.arg("-F").arg(sshd.ssh_config()).arg("--direct=direct");
            } else {
                command.arg("--key-file").arg(daemon.key());
            }
            command.arg(from).arg(to).env("HAUL_BACKEND", kind.backend);
            command
        };
        Ok(Turn { name, command: Box::new(command), before: None, far: Some(far), makes: Some((file, bytes)) })
    }
}

fn over_sshd(path: &Path) -> OsString {
    let mut operand = OsString::from("far:");
    operand.push(path);
    operand
}

fn print(kinds: &[Kind], taken: &[Taken], args: &TenGigabit) {
    let bytes = (args.size << 20) as f64;
    let wall = |kind: Kind| {
        let at = kinds.iter().position(|&other| other == kind)?;
        median(taken[at].as_ref().ok()?.iter().map(|sample| sample.wall).collect())
    };
    println!(
        "{:<32} {:>8} {:>8} {:>9} {:>9} {:>10}",
        format!("{} MiB", args.size),
        "wall s",
        "Gbit/s",
        "CPU s/GB",
        "x iperf3",
        "x no hash"
    );
    let mut verdicts = Vec::new();
    for (&kind, taken) in kinds.iter().zip(taken) {
        let samples = match taken {
            Ok(samples) => samples,
            Err(why) => {
                println!("{:<32} failed: {why}", kind.name());
                continue;
            }
        };
        let Some(own) = wall(kind) else { continue };
        let cpu = samples
            .iter()
            .map(|sample| Some(sample.cpu_near? + sample.cpu_far?))
            .collect::<Option<_>>()
            .and_then(median);
        let iperf3 = wall(Kind { what: What::Iperf3, backend: "", ..kind });
        let bare = match kind.what {
            What::Direct { hash: true } => wall(Kind { what: What::Direct { hash: false }, ..kind }),
            What::Daemon { hash: true } => wall(Kind { what: What::Daemon { hash: false }, ..kind }),
            _ => None,
        };
        let content = kind.what != What::Login;
        let shown = |value: Option<f64>| {
            value.filter(|_| content).map_or_else(|| "-".to_string(), |value| format!("{value:.2}"))
        };
        println!(
            "{:<32} {own:>8.3} {:>8} {:>9} {:>9} {:>10}",
            kind.name(),
            shown(Some(bytes * 8.0 / own / 1e9)),
            shown(cpu.map(|seconds| seconds / (bytes / 1e9))),
            shown(iperf3.map(|iperf3| own / iperf3)),
            shown(bare.map(|bare| own / bare)),
        );
        let (Some(bare), Some(iperf3)) = (bare, iperf3) else { continue };
        let over_ssh = matches!(kind.what, What::Direct { .. });
        let Some(login) = (if over_ssh { wall(Kind { what: What::Login, ..kind }) } else { Some(0.0) }) else {
            continue;
        };
        let name = kind.name() + if over_ssh { ", less login" } else { "" };
        verdicts.push(verdict("T9", &name, (own - login) / (bare - login), "the same without a hash", T9));
        verdicts.push(verdict("T10", &name, (own - login) / iperf3, "iperf3", T10));
    }
    println!(
        "\nWall time is from start to exit. `direct` holds the ssh login, which the rows of 6 bytes show and the verdicts leave out; \
         `daemon` has none.\nCPU is of both ends, which share this machine's processors. Medians of {} rounds.",
        args.rounds - 1
    );
    verdicts.iter().for_each(|verdict| println!("{verdict}"));
}

fn verdict(id: &str, name: &str, ratio: f64, of: &str, at_most: f64) -> String {
    let met = match ratio {
        // Of a file so small that a login takes longer.
        ratio if !(ratio.is_finite() && ratio > 0.0) => "NO VERDICT, give a larger --size",
        ratio if ratio <= at_most => "met",
        _ => "MISSED",
    };
    format!("{id:<4} {name:<38} {ratio:.2} x {of}, at most {at_most:.2}: {met}")
}
