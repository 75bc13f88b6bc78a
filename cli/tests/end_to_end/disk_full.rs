//! A target whose disk is full before the first byte, or becomes full in the middle: exit code 11, the reason, a hint, the
//! old file as it was, and nothing beside it. On small file systems in memory, which takes the right to mount.

use crate::support::processes::{
    Ended, LIMIT, Mounted, Running, arrived, complete, in_private_mounts, mount_tmpfs, names, signal, wait_for,
};
use crate::support::{BACKENDS, Pipes, Remote, at, haul, random_file};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

const MIB: usize = 1024 * 1024;
const HINT: &str = "hint: the target's file system is full; the old file, if any, is untouched";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
    Local,
}

fn ways() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down, Way::Local].map(|way| (backend, way)))
}

/// A small file system with an old file on it, and a source elsewhere.
struct Small {
    _mounted: Mounted,
    dir: tempfile::TempDir,
    pipes: Pipes,
}

impl Small {
    fn new(backend: &str, options: &str, source: usize) -> Small {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let mounted = mount_tmpfs(&dir.path().join("disk"), options);
        fs::write(dir.path().join("disk/file"), "old").unwrap();
        random_file(&dir.path().join("source"), source, 1);
        Small { _mounted: mounted, dir, pipes: Pipes::new(backend) }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Leaves only so many bytes free.
    fn fill(&self, free: usize) {
        let space = rustix::fs::statvfs(self.disk()).unwrap();
        let filler = vec![1; usize::try_from(space.f_bfree * space.f_frsize).unwrap() - free];
        fs::write(self.disk().join("filler"), filler).unwrap();
    }

    fn args(&self, way: Way, target: &str) -> Vec<OsString> {
        let (source, target) = (self.dir.path().join("source"), self.disk().join(target));
        let mut args = vec!["copy".into()];
        args.extend(self.pipes.args());
        args.extend(match way {
            Way::Up => [source.into_os_string(), at(&self.pipes, &target)],
            Way::Down => [at(&self.pipes, &source), target.into_os_string()],
            Way::Local => [source.into_os_string(), target.into_os_string()],
        });
        args
    }

    /// Fails unless the full disk was named and nothing has changed on it.
    #[track_caller]
    fn assert_full(&self, ended: &Ended, target: &str, what: &str) {
        ended.assert_exit(11);
        let [line, hint] = ended.lines()[..] else { panic!("{ended:?}") };
        let says = format!("/disk/{target}: cannot {what}: No space left on device");
        assert!(line.starts_with("haul: ") && line.ends_with(&says), "{line}");
        assert_eq!(hint, HINT);
        self.assert_untouched();
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(fs::read(self.disk().join("file")).unwrap(), b"old");
        let mut left = names(&self.disk());
        left.retain(|name| name != "filler");
        assert_eq!(left, ["file"]);
    }
}

#[test]
fn a_file_that_cannot_fit_is_refused_before_the_first_byte() {
    if !in_private_mounts("a_file_that_cannot_fit_is_refused_before_the_first_byte") {
        return;
    }
    for (backend, way) in ways() {
        for target in ["file", "new"] {
            eprintln!("{backend}, {way:?}, {target}");
            let small = Small::new(backend, "size=8m", 16 * MIB);
            let ended = complete(&mut haul(backend, small.args(way, target)));
            small.assert_full(&ended, target, "create");
        }
    }
}

#[test]
fn a_file_that_no_longer_fits_in_the_middle_leaves_the_old_one() {
    if !in_private_mounts("a_file_that_no_longer_fits_in_the_middle_leaves_the_old_one") {
        return;
    }
    // Received into memory first, written as it comes, and too small for its size to be looked at before.
    for (backend, way) in ways() {
        for (size, free) in [(60_000, 20_000), (900_000, 300_000), (900_000, 0), (1, 0)] {
            for target in ["file", "new"] {
                eprintln!("{backend}, {way:?}, {target}, {size} of which {free} fit");
                let small = Small::new(backend, "size=8m", size);
                small.fill(free);
                let ended = complete(&mut haul(backend, small.args(way, target)));
                let what = if ended.stderr.contains("cannot write") { "write" } else { "create" };
                small.assert_full(&ended, target, what);
            }
        }
    }
}

#[test]
fn a_disk_that_somebody_else_fills_meanwhile_leaves_the_old_file() {
    if !in_private_mounts("a_disk_that_somebody_else_fills_meanwhile_leaves_the_old_file") {
        return;
    }
    const SIZE: usize = 128 * MIB;
    for (backend, way) in ways() {
        eprintln!("{backend}, {way:?}");
        let small = Small::new(backend, "size=160m", SIZE);
        let mut client = Running::start(&mut haul(backend, small.args(way, "file")));
        assert!(way == Way::Local || wait_for(LIMIT, || small.pipes.pid().is_some()));
        let server = small.pipes.pid().unwrap_or_default();
        let (sender, receiver) = match way {
            Way::Up => (client.pid(), server),
            Way::Down => (server, client.pid()),
            Way::Local => (client.pid(), client.pid()),
        };
        let begun = wait_for(LIMIT, || client.is_over() || arrived(receiver) > 0);
        assert!(begun && !client.is_over());
        assert!(signal(sender, Signal::STOP));
        // Until what is under way has been written.
        let mut seen = 0;
        wait_for(LIMIT, || std::mem::replace(&mut seen, arrived(receiver)) == arrived(receiver));
        fill_up(&small.disk());
        assert!(signal(sender, Signal::CONT));
        let ended = client.finish();
        assert!(seen > 0 && seen < SIZE as u64, "{seen} bytes had arrived");
        small.assert_full(&ended, "file", "write");
    }
}

/// Writes until nothing fits any more.
fn fill_up(disk: &Path) {
    let mut filler = fs::File::create(disk.join("filler")).unwrap();
    for block in [MIB, 4096] {
        while filler.write_all(&vec![1; block]).is_ok() {}
    }
}

#[test]
fn of_many_files_those_that_fit_are_copied_and_the_full_disk_is_told() {
    if !in_private_mounts("of_many_files_those_that_fit_are_copied_and_the_full_disk_is_told") {
        return;
    }
    for (backend, way) in ways() {
        eprintln!("{backend}, {way:?}");
        let small = Small::new(backend, "size=8m", 1);
        let tree = small.dir.path().join("source");
        fs::remove_file(&tree).unwrap();
        fs::create_dir(&tree).unwrap();
        for (name, size) in [("big", 9 * MIB), ("a", 1000), ("b", 100_000), ("c", 2 * MIB)] {
            random_file(&tree.join(name), size, 2);
        }
        let mut args = small.args(way, "");
        args.insert(1, "-r".into());
        let ended = complete(&mut haul(backend, args));
        ended.assert_exit(11);
        let big = ended
            .lines()
            .into_iter()
            .filter(|line| line.contains("/source/big: ") && line.ends_with(": No space left on device"));
        assert_eq!(big.count(), 1, "{ended:?}");
        let copied = small.disk().join("source");
        assert_eq!(names(&copied), ["a", "b", "c"]);
        for name in ["a", "b", "c"] {
            assert_eq!(fs::read(copied.join(name)).unwrap(), fs::read(tree.join(name)).unwrap(), "{name}");
        }
        assert_eq!(names(&small.disk()), ["file", "source"]);
    }
}

#[test]
fn a_copy_within_one_full_file_system_leaves_the_old_file() {
    if !in_private_mounts("a_copy_within_one_full_file_system_leaves_the_old_file") {
        return;
    }
    for backend in BACKENDS {
        for (target, size) in [("file", 5 * MIB), ("new", 5 * MIB), ("file", 900_000), ("new", 900_000)] {
            eprintln!("{backend}, {target}, {size}");
            let small = Small::new(backend, "size=8m", 1);
            random_file(&small.disk().join("source"), size, 1);
            small.fill(300_000);
            let args = ["copy".into(), small.disk().join("source"), small.disk().join(target)];
            let ended = complete(&mut haul(backend, args));
            ended.assert_exit(11);
            assert!(
                matches!(ended.lines()[..], [line, HINT] if line.ends_with(": No space left on device")),
                "{ended:?}"
            );
            fs::remove_file(small.disk().join("source")).unwrap();
            small.assert_untouched();
        }
    }
}
