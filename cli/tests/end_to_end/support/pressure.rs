//! Clients that send without reading, and what that costs the server.

use super::frames::Serving;
use super::processes::{LIMIT, wait_for};
use std::fs;
use std::io::Write;
use std::process::ChildStdin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What one process of haul may use, in bytes.
pub const MEMORY: u64 = 96 << 20;

/// Writes in a thread of its own, as a client that reads late must, and counts what the server has taken. The thread
/// gives the stream back, open, so that only who joins it ends the session.
pub fn write_beside(
    serving: &mut Serving,
    mut next: impl FnMut() -> Option<Vec<u8>> + Send + 'static,
) -> (Arc<AtomicU64>, JoinHandle<ChildStdin>) {
    let taken = Arc::new(AtomicU64::new(0));
    let (mut input, count) = (serving.input.take().unwrap(), taken.clone());
    let thread = std::thread::spawn(move || {
        while let Some(bytes) = next()
            && input.write_all(&bytes).is_ok()
        {
            count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        input
    });
    (taken, thread)
}

/// Waits until the server neither takes anything nor works any more: all that was sent is through, or the client is made
/// to wait. Returns the bytes it took.
pub fn settle(pid: i32, taken: &AtomicU64) -> u64 {
    let now = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Processor time, in user and kernel mode.
        let times: Vec<String> =
            stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2).map(str::to_string).collect();
        (taken.load(Ordering::Relaxed), times)
    };
    let (mut before, mut since) = (now(), Instant::now());
    wait_for(LIMIT, || {
        let now = now();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(500)
    });
    before.0
}

/// The most memory a process has had, in bytes.
pub fn peak_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Bytes of the pipe that the server's replies wait in.
pub fn pipe_size(serving: &Serving) -> usize {
    rustix::pipe::fcntl_getpipe_size(serving.output.source()).unwrap()
}

/// Descriptors that a process holds now.
pub fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
