//! Two network namespaces joined by a veth pair, which tc shapes: two machines with a cable, for measuring on one.
//!
//! The namespaces have no names. Each is held by a process whose input ends with this one at the latest, so nothing of
//! them stays, however this program ends.

use crate::process::Running;
use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Address of the near end.
pub(crate) const NEAR: &str = "10.255.0.1";
/// Address of the far end.
pub(crate) const FAR: &str = "10.255.0.2";

/// A network namespace, for as long as this lives.
pub(crate) struct Namespace(Running);

impl Namespace {
    fn new() -> Result<Namespace> {
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", "echo; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().context("unshare")?;
        let mut there = [0];
        let read = holder.stdout.as_mut().map(|out| out.read_exact(&mut there));
        let namespace = Namespace(Running(holder));
        ensure!(matches!(read, Some(Ok(()))), "cannot make a network namespace: that takes root");
        namespace.run("ip link set lo up")?;
        Ok(namespace)
    }

    /// A program in it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.id(), "--"]).arg(program).stdin(Stdio::null());
        command
    }

    /// What names it to `ip`.
    pub(crate) fn id(&self) -> String {
        self.0.id().to_string()
    }

    /// Runs a command of such words in it, which must succeed.
    pub(crate) fn run(&self, words: &str) -> Result<()> {
        let mut split = words.split(' ');
        let mut command = self.command(split.next().unwrap_or_default());
        let output = command.args(split).output().with_context(|| words.to_string())?;
        ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

/// Two of them, without anything in between yet.
pub(crate) struct Pair {
    pub(crate) near: Namespace,
    pub(crate) far: Namespace,
}

impl Pair {
    /// Says what is missing where there can be none.
    pub(crate) fn new() -> Result<Pair> {
        for program in ["ip", "tc", "unshare", "nsenter"] {
            find(program)?;
        }
        Ok(Pair { near: Namespace::new()?, far: Namespace::new()? })
    }

    /// With a veth pair between them; `shape` is what tc is told of either end, behind `root`.
    pub(crate) fn joined(shape: &str) -> Result<Pair> {
        let pair = Pair::new()?;
        pair.near.run(&format!("ip link add cable type veth peer name cable netns {}", pair.far.id()))?;
        pair.addressed("cable")?;
        for end in [&pair.near, &pair.far] {
            end.run(&format!("tc qdisc add dev cable root {shape}"))?;
        }
        Ok(pair)
    }

    /// Gives the devices of this name their addresses.
    pub(crate) fn addressed(&self, device: &str) -> Result<()> {
        for (end, address) in [(&self.near, NEAR), (&self.far, FAR)] {
            end.run(&format!("ip address add {address}/30 dev {device}"))?;
            end.run(&format!("ip link set {device} up"))?;
        }
        Ok(())
    }
}

/// Where a program is, also where only root finds it.
pub(crate) fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(system).map(|dir: PathBuf| dir.join(program)).find(|path| path.is_file());
    match found {
        Some(found) => Ok(found),
        None => bail!("there is no {program}"),
    }
}

/// Bytes of memory that programs may still take.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}
