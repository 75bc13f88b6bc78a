//! The memory of a copy is bounded at both ends, whatever the content, the way, and the number of connections, and a daemon
//! that has served many keeps no more than that.

use crate::support::daemon::Listening;
use crate::support::interop::content::text;
use crate::support::processes::Running;
use crate::support::{BACKENDS, hash_of, random_file};
use std::fs;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// More than all blocks of a run take.
const SIZE: u64 = 128 * MIB;

/// The most that a process has had in memory so far, in bytes.
fn most(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Copies `name` of the daemon's root from or to `other`. What the client had in memory.
fn copied(daemon: &Listening, backend: &str, flags: &[&str], (source, target): (&Path, &Path), up: bool) -> u64 {
    let there = |path: &Path| daemon.at(path.file_name().unwrap().to_str().unwrap());
    let mut command = daemon.command(backend, "copy", flags);
    match up {
        true => command.arg(source).arg(there(target)),
        false => command.arg(there(source)).arg(target),
    };
    let mut client = Running::start(&mut command);
    let mut largest = 0;
    while !client.is_over() {
        largest = largest.max(most(client.pid()));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    client.finish().assert_exit(0);
    largest
}

#[test]
fn neither_end_has_more_than_96_mib_and_by_default_less() {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let here = tempfile::tempdir_in(&place).unwrap();
        let random = here.path().join("random");
        random_file(&random, SIZE as usize, 1);
        let words = here.path().join("words");
        fs::write(&words, text(SIZE as usize, 2)).unwrap();
        // In MiB, of the client and of the daemon so far. Content that does not compress takes no large blocks, and what is
        // being written is not all that the daemon has.
        let by_default = [(&random, 32, 40), (&words, 64, 96)];
        for (source, limit, daemon_limit) in by_default {
            for (flags, limit, daemon_limit) in [
                (&["-q"][..], limit, daemon_limit),
                (&["-q", "--connections", "4"], 96, 96),
                (&["-q", "--connections", "16"], 96, 96),
            ] {
                let there = daemon.root().join("copy");
                let back = here.path().join("back");
                let sent = copied(&daemon, backend, flags, (source, &there), true);
                let received = copied(&daemon, backend, flags, (&there, &back), false);
                let daemons = most(daemon.pid());
                eprintln!(
                    "{backend}, {source:?}, {flags:?}: {} up, {} down, daemon {} MiB",
                    sent / MIB,
                    received / MIB,
                    daemons / MIB
                );
                assert!(
                    sent.max(received) <= limit * MIB,
                    "{backend}, {source:?}, {flags:?}: {sent} up, {received} down"
                );
                assert!(daemons <= daemon_limit * MIB, "{backend}, {source:?}, {flags:?}: {daemons}");
                assert_eq!(hash_of(&back), hash_of(source));
            }
        }
    }
}
