//! What is measured: haul and its peers as commands, and the turns they take.

use crate::daemon::Daemon;
use crate::keyed::Keyed;
use crate::process::{self, Far, Sample};
use crate::sshd::Sshd;
use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

/// What is copied.
pub(crate) struct Shape {
    pub(crate) title: String,
    /// Name below the source directory.
    pub(crate) name: &'static str,
    pub(crate) recursive: bool,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// From where to where.
pub(crate) struct Place<'a> {
    pub(crate) source: &'a Path,
    pub(crate) target: &'a Path,
    pub(crate) on_tmpfs: bool,
}

/// Which way over ssh.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
    /// Within this machine, no ssh.
    Local,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Up => "up",
            Way::Down => "down",
            Way::Local => "local",
        }
    }
}

/// One tool, one way.
pub(crate) struct Row {
    /// Tool and way; `haul uring up`.
    pub(crate) name: String,
    /// Tool alone, to find the peers of a haul row.
    pub(crate) tool: String,
    pub(crate) way: Way,
    pub(crate) program: PathBuf,
    /// Before source and target.
    arguments: Vec<OsString>,
    /// HAUL_BACKEND for the near end; the far end's is its sshd's.
    backend: &'static str,
    /// What stands before a path over there, and who serves it.
    far: Option<(String, Far)>,
}

impl Row {
    pub(crate) fn is_installed(&self) -> bool {
        self.program.is_absolute() || in_path(&self.program).is_some()
    }

    fn command(&self, shape: &Shape, place: &Place<'_>, target: &Path) -> Command {
        let source = place.source.join(shape.name);
        let operand = |host: &str, path: &Path| {
            let mut operand = OsString::from(host);
            operand.push(path);
            operand
        };
        let far = self.far.as_ref().map_or("", |(prefix, _)| prefix);
        let (from_host, to_host) = match self.way {
            Way::Up => ("", far),
            Way::Down => (far, ""),
            Way::Local => ("", ""),
        };
        let (from, to) = (operand(from_host, &source), operand(to_host, target));
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(from).arg(to).env("HAUL_BACKEND", self.backend);
        command
    }
}

/// Where the shell would find this program.
fn in_path(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(&program)).find(|file| file.is_file())
}

/// A row and its samples, or why there are none.
pub(crate) struct Measured {
    pub(crate) row: Row,
    pub(crate) samples: Result<Vec<Sample>, String>,
}

/// All rows of a shape, in the order of their turns. `daemons` are rsync's, if there is one, and haul's with their backends.
pub(crate) fn all(
    haul: &Path,
    sshds: &[Sshd],
    (rsync, hauls): (Option<&Daemon>, &[(&'static str, Keyed)]),
    recursive: bool,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for way in [Way::Up, Way::Down] {
        sshds.iter().for_each(|sshd| over_ssh(haul, sshd, way, &mut rows));
        sshds.first().into_iter().for_each(|sshd| peers_over_ssh(sshd, way, &mut rows));
        hauls.iter().for_each(|(backend, daemon)| to_daemon(haul, backend, daemon, way, &mut rows));
        let far = rsync.map(|daemon| (daemon.prefix(), daemon.far()));
        rows.extend(far.map(|far| row("rsync daemon".to_string(), way, Path::new("rsync"), &["-aW"], far)));
    }
    let arguments = Vec::new();
    let (name, tool, program) = ("cp local".to_string(), "cp".to_string(), PathBuf::from("cp"));
    rows.push(Row { name, tool, way: Way::Local, program, arguments, backend: "auto", far: None });
    // rsync's -a says so already.
    for row in rows.iter_mut().filter(|row| recursive && row.program != Path::new("rsync")) {
        row.arguments.push("-r".into());
    }
    rows
}

fn row(tool: String, way: Way, program: &Path, arguments: &[&str], far: (String, Far)) -> Row {
    let arguments = arguments.iter().map(OsString::from).collect();
    let (name, program) = (format!("{tool} {}", way.name()), program.to_path_buf());
    Row { name, tool, way, program, arguments, backend: "auto", far: Some(far) }
}

fn over_ssh(haul: &Path, sshd: &Sshd, way: Way, rows: &mut Vec<Row>) {
    let config = sshd.ssh_config();
    let config = config.to_string_lossy();
    let mut add = |more: &str, options: &[&str]| {
        let far = ("far:".to_string(), Far::Children(sshd.child.id()));
        let arguments = [&["copy", "-q", "-F", &*config], options].concat();
        let row = row(format!("haul {}{more}", sshd.backend), way, haul, &arguments, far);
        rows.push(Row { backend: sshd.backend, ..row });
    };
    add("", &[]);
    add(" aes128-gcm", &["-o", &format!("Ciphers={FAST_CIPHER}")]);
    add(" direct", &["--direct=direct"]);
    // What the hash costs: the same without it.
    if way == Way::Down {
        add(" no hash", &["--no-hash"]);
    }
}

fn peers_over_ssh(sshd: &Sshd, way: Way, rows: &mut Vec<Row>) {
    let config = sshd.ssh_config();
    let config = config.to_string_lossy();
    let mut add = |tool: &str, program: &str, arguments: &[&str]| {
        let far = ("far:".to_string(), Far::Children(sshd.child.id()));
        rows.push(row(tool.to_string(), way, Path::new(program), arguments, far));
    };
    add("scp", "scp", &["-q", "-F", &config]);
    add("scp aes128-gcm", "scp", &["-q", "-F", &config, "-c", FAST_CIPHER]);
    add("rsync", "rsync", &["-aW", "-e", &format!("ssh -F {config}")]);
    // Without a hash, as it is by default; the far end starts this very program.
    let syq = in_path("syq").unwrap_or_else(|| PathBuf::from("syq"));
    let shell = format!("ssh -F {config}");
    add("syq", "syq", &["rsync", "-a", "-q", "-e", &shell, "--rsync-path", &syq.to_string_lossy()]);
}

fn to_daemon(haul: &Path, backend: &'static str, daemon: &Keyed, way: Way, rows: &mut Vec<Row>) {
    let key = daemon.key();
    let copy = ["copy", "-q", "--key-file", &*key.to_string_lossy()];
    let mut add = |more: &str, options: &[&str]| {
        let far = (daemon.prefix(), daemon.far());
        let row = row(format!("haul {backend} {more}"), way, haul, &[&copy[..], options].concat(), far);
        rows.push(Row { backend, ..row });
    };
    add("daemon", &[]);
    add("plain", &["--plaintext"]);
    add("plain fast", &["--plaintext", "--fast"]);
}

/// The fastest cipher of ssh on machines with AES instructions; not its default.
const FAST_CIPHER: &str = "aes128-gcm@openssh.com";

/// Rows take turns; the first round is dropped. Every run copies into a fresh directory.
pub(crate) fn measure(rows: Vec<Row>, shape: &Shape, place: &Place<'_>, rounds: u32) -> Result<Vec<Measured>> {
    let stopped = process::stop_flag()?;
    let mut measured: Vec<Measured> = rows.into_iter().map(|row| Measured { row, samples: Ok(Vec::new()) }).collect();
    for round in 0..rounds {
        warm(&place.source.join(shape.name))?;
        for (number, Measured { row, samples }) in measured.iter_mut().enumerate() {
            let Ok(so_far) = samples else { continue };
            if std::io::stderr().is_terminal() {
                eprint!("\r{}: round {} of {rounds}: {:<28}\r", shape.title, round + 1, row.name);
            }
            let target = place.target.join(format!("{}-{round}-{number}", shape.name));
            fs::create_dir(&target)?;
            let far = row.far.as_ref().map(|(_, far)| *far);
            let sample = process::run(row.command(shape, place, &target), far);
            if stopped.load(Ordering::Relaxed) {
                bail!("stopped in round {} of {rounds}, {}", round + 1, row.name);
            }
            match sample.and_then(|sample| check(shape, &target).map(|()| sample)) {
                Ok(sample) if round > 0 => so_far.push(sample),
                Ok(_) => {}
                Err(why) => *samples = Err(format!("{why:#}")),
            }
            // Memory runs out if nothing is removed, and tmpfs forgets at once. On disk, removing a tree makes the
            // creates that follow slower (ext4 looks for inodes not freed just now), so trees stay to the end there.
            if place.on_tmpfs || !shape.recursive {
                fs::remove_dir_all(&target)?;
            }
        }
    }
    Ok(measured)
}

/// A peer that exits with 0 and has not copied everything is not measured.
fn check(shape: &Shape, target: &Path) -> Result<()> {
    let (files, bytes) = walk(&target.join(shape.name), &mut |path| Ok(fs::symlink_metadata(path)?.len()))?;
    ensure!((files, bytes) == (shape.files, shape.bytes), "{files} files of {bytes} bytes in all arrived");
    Ok(())
}

/// Reads everything once, so that no row finds the page cache colder than the others do.
fn warm(source: &Path) -> Result<()> {
    let read = |path: &Path| Ok(std::io::copy(&mut fs::File::open(path)?, &mut std::io::sink())?);
    walk(source, &mut { read }).map(drop)
}

/// Number of files at or below `path`, and the sum of what `each` says of them.
fn walk(path: &Path, each: &mut impl FnMut(&Path) -> Result<u64>) -> Result<(u64, u64)> {
    if !path.is_dir() {
        return Ok((1, each(path).with_context(|| path.display().to_string())?));
    }
    let mut sum = (0, 0);
    for entry in fs::read_dir(path)? {
        let (files, bytes) = walk(&entry?.path(), each)?;
        sum = (sum.0 + files, sum.1 + bytes);
    }
    Ok(sum)
}
