//! What one machine says of itself: system, io_uring, and how fast it seals, hashes and writes.
//!
//! A [`Machine`] of the other end comes through ssh as JSON, so its numbers and texts are claims: they are bounded in size
//! where they are read, and escaped where they are shown.

use crate::args::Choice;
use crate::backend;
use crate::output;
use crate::remote;
use crate::signals;
use crate::threads;
use haul_engine::limits::BLOCK_BYTES;
use haul_engine::wire::decode::Role;
use haul_engine::wire::seal::{LENGTH_BYTES, Seals, Secret, TAG_BYTES};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// For each of the speeds of a CPU, and before, while its clock and caches come up.
const MEASURED: Duration = Duration::from_millis(60);
const WARM_UP: Duration = Duration::from_millis(20);
/// Bytes written to a disk, at most, and for how long, at most. Twice: with and without a sync.
const WRITTEN_BYTES: u64 = 64 << 20;
const WRITING: Duration = Duration::from_secs(1);
/// How long a disk may take for all of that, and how often it is looked whether the user has stopped it.
const ANSWERING: Duration = Duration::from_secs(6);
const TICK: Duration = Duration::from_millis(20);
/// Bytes between two syncs.
const SYNCED_BYTES: usize = 4 << 20;
/// Bytes that must be free for that.
const ROOM_BYTES: u64 = 4 * WRITTEN_BYTES;

/// One of the two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// Version of haul.
    pub(super) version: String,
    /// Its kind, its kernel's release where that is known, and the architecture.
    pub(super) system: String,
    pub(super) cpus: u64,
    /// Bytes, where they are known.
    pub(super) memory: Option<u64>,
    /// The backend that is used.
    pub(super) backend: String,
    /// Why that is not io_uring, if somebody has to know.
    pub(super) no_uring: Option<String>,
    /// What the backend found, one sentence each.
    #[serde(default)]
    pub(super) notes: Vec<String>,
    /// Bytes a second that one CPU seals with AES-256-GCM.
    pub(super) seals: u64,
    /// Bytes a second that one CPU hashes with BLAKE3.
    pub(super) hashes: u64,
    pub(super) disk: Disk,
}

/// Where files go, or come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Disk {
    pub(super) path: String,
    /// Bytes that this user may still use.
    pub(super) free: Option<u64>,
    /// Bytes a second, with a sync now and then, and without any; only where a path was asked for.
    pub(super) synced: Option<u64>,
    pub(super) unsynced: Option<u64>,
    /// Why it was not written to, although it was asked for.
    pub(super) failed: Option<String>,
}

impl Machine {
    /// This machine, with the disk at `path`: of the working directory, which is not written to, without.
    pub(super) fn here(choice: Choice, path: Option<&Path>) -> Result<Machine, String> {
        let (backend, refused) = match backend::make(choice) {
            Ok((backend, why)) => (backend, why),
            // Asked for and not to be had: what would be used otherwise is of interest all the same.
            Err(why) => (backend::make(Choice::Poll)?.0, Some(why)),
        };
        Ok(Machine {
            version: env!("CARGO_PKG_VERSION").to_string(),
            system: system(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            memory: memory(),
            backend: backend.features().backend.to_string(),
            no_uring: refused.filter(|_| cfg!(target_os = "linux")),
            notes: backend.features().notes.clone(),
            seals: seals(),
            hashes: hashes(),
            disk: Disk::in_time(path),
        })
    }
}

/// `linux 6.18.0 x86_64`
fn system() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let words = [std::env::consts::OS, release.trim(), std::env::consts::ARCH];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Bytes of memory.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes a second of something that takes `bytes` each time.
fn rate(bytes: usize, mut work: impl FnMut()) -> u64 {
    let mut run = |time: Duration| {
        let (begun, mut count) = (Instant::now(), 0_u64);
        while begun.elapsed() < time {
            work();
            count += 1;
        }
        (count * bytes as u64) as f64 / begun.elapsed().as_secs_f64()
    };
    run(WARM_UP);
    run(MEASURED) as u64
}

fn seals() -> u64 {
    let secret = Secret::from_bytes(remote::random());
    let mut seals = Seals::keyed(&secret, b"haul doctor", Role::Client);
    let mut record = vec![0; LENGTH_BYTES + BLOCK_BYTES + TAG_BYTES];
    rate(BLOCK_BYTES, || {
        if let Ok(seal) = seals.sealer.next() {
            seal.seal(black_box(&mut record));
        }
    })
}

fn hashes() -> u64 {
    let block = vec![0; BLOCK_BYTES];
    rate(BLOCK_BYTES, || _ = black_box(blake3::hash(black_box(&block))))
}

impl Disk {
    /// The same within some seconds, and no later than the user stops it: a disk, or a server that has it, may hang.
    fn in_time(path: Option<&Path>) -> Disk {
        let (sender, found) = sync_channel(1);
        let own = path.map(Path::to_path_buf);
        let broken = sender.clone();
        let look = move || _ = sender.send(Ok(Disk::at(own.as_deref())));
        threads::spawn("disk", look, move |why| _ = broken.send(Err(why)));
        let until = Instant::now() + ANSWERING;
        let mut failed = None;
        while failed.is_none() && Instant::now() < until && !signals::stopped() {
            match found.recv_timeout(TICK) {
                Ok(Ok(disk)) => return disk,
                Ok(Err(why)) => failed = Some(why),
                Err(_) => {}
            }
        }
        let path = path.unwrap_or(Path::new(".")).display().to_string();
        let failed = failed.or_else(|| Some(format!("no answer within {} s", ANSWERING.as_secs())));
        Disk { path, free: None, synced: None, unsynced: None, failed }
    }

    fn at(path: Option<&Path>) -> Disk {
        let dir = path.unwrap_or(Path::new("."));
        let shown = dir.canonicalize().unwrap_or(dir.to_path_buf()).display().to_string();
        let free = rustix::fs::statvfs(dir).ok().map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let mut disk = Disk { path: shown, free, synced: None, unsynced: None, failed: None };
        if path.is_none() {
            return disk;
        }
        if free.is_some_and(|free| free < ROOM_BYTES) {
            disk.failed = Some(format!("not written to: that takes {} of room", output::size(ROOM_BYTES)));
            return disk;
        }
        match (written(dir, false), written(dir, true)) {
            (Ok(unsynced), Ok(synced)) => (disk.unsynced, disk.synced) = (Some(unsynced), Some(synced)),
            (Err(error), _) | (_, Err(error)) => {
                disk.failed = Some(format!("cannot write: {}", output::reason(&error)));
            }
        }
        disk
    }
}

/// Bytes a second that go into a file without a name, which is gone with this process however that ends.
fn written(dir: &Path, sync: bool) -> io::Result<u64> {
    let mut file: File = tempfile::tempfile_in(dir)?;
    let mut content = vec![0; SYNCED_BYTES];
    // Zeros, and what repeats, cost some file systems nothing.
    let mut random = blake3::Hasher::new().update(&remote::random()).finalize_xof();
    random.fill(&mut content);
    let (begun, mut bytes) = (Instant::now(), 0);
    while bytes < WRITTEN_BYTES && begun.elapsed() < WRITING {
        content[..8].copy_from_slice(&bytes.to_le_bytes());
        file.write_all(&content)?;
        if sync {
            file.sync_data()?;
        }
        bytes += content.len() as u64;
    }
    Ok((bytes as f64 / begun.elapsed().as_secs_f64()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_written_to_only_where_that_was_asked_for_and_nothing_stays() {
        let disk = Disk::at(None);
        assert!(disk.free.is_some() && disk.synced.is_none() && disk.unsynced.is_none() && disk.failed.is_none());
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::at(Some(dir.path()));
        assert!(disk.synced > Some(0) && disk.unsynced > Some(0), "{disk:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = Disk::at(Some(&dir.path().join("missing")));
        assert_eq!(missing.failed.as_deref(), Some("cannot write: No such file or directory"), "{missing:?}");
    }

    #[test]
    fn what_a_machine_says_of_itself_can_be_read_again() {
        let machine = Machine::here(Choice::Poll, None).unwrap();
        assert!(machine.seals > 0 && machine.hashes > 0 && machine.cpus > 0, "{machine:?}");
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
    }
}
