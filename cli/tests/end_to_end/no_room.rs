//! A tree that is larger than the disk it goes to: once there is no room, nothing more is sent, and one line says for how many
//! files there was none.

use crate::support::processes::{Ended, complete, in_private_mounts, mount_tmpfs};
use crate::support::{BACKENDS, Pipes, Remote, SFTP, Sshd, at, haul, random_file};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const FILES: u64 = 600;
const SIZE: u64 = 64 * 1024;
const DISK: &str = "size=4m";
/// What fits, and 8 MiB that each of two connections may have taken on by the time that one finds out.
const MOST: u64 = 22 << 20;
const HINT: &str = "hint: the target's file system is full; the old file, if any, is untouched";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
    Local,
}

const WAYS: [Way; 3] = [Way::Up, Way::Down, Way::Local];

/// `haul copy FLAGS -r SOURCE DISK`, on this way.
fn copy(backend: &str, remote: &dyn Remote, way: Way, flags: &[&str], dir: &Path) -> Ended {
    let (source, disk) = (dir.join("source"), dir.join("disk"));
    let operands: [OsString; 2] = match way {
        Way::Up => [source.into(), at(remote, &disk)],
        Way::Down => [at(remote, &source), disk.into()],
        Way::Local => [source.into(), disk.into()],
    };
    complete(haul(backend, ["copy", "-r"]).args(remote.args()).args(flags).args(operands))
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
}

/// Fails unless it was said once, for as many as have not come; what has come is whole.
#[track_caller]
fn assert_told(ended: &Ended, disk: &Path) {
    ended.assert_exit(11);
    let there = files_in(disk);
    assert!(there.iter().all(|file| fs::metadata(file).unwrap().len() == SIZE), "{there:?}");
    let lines: Vec<&str> = ended.lines().into_iter().filter(|line| !line.contains("SFTP server carries")).collect();
    let [line, hint, last] = lines[..] else { panic!("{} lines: {lines:?}", lines.len()) };
    let missing = FILES - there.len() as u64;
    let says = format!(": No space left on device; {missing} files have no room, and nothing more was sent");
    assert!(line.starts_with("haul: ") && line.ends_with(&says), "{line}, not {says}");
    assert_eq!(hint, HINT);
    assert!(last.starts_with("copied ") && last.contains(&format!("; {missing} errors")), "{last}");
}

/// Bytes of content that travelled.
fn moved(ended: &Ended) -> u64 {
    let summary: serde_json::Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    let [rate, seconds] = ["bytes_per_second", "seconds"].map(|field| summary[field].as_f64().unwrap());
    (rate * seconds) as u64
}

/// A directory with `source`, which holds as many files as there is no room for.
fn source() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    for number in 0..FILES {
        let folder = dir.path().join(format!("source/{}", number / 100));
        fs::create_dir_all(&folder).unwrap();
        random_file(&folder.join(format!("{number:03}")), SIZE as usize, number);
    }
    dir
}

fn check(backend: &str, remote: &dyn Remote, way: Way, flags: &[&str]) {
    eprintln!("{backend}, {way:?}, {flags:?}");
    let dir = source();
    for json in [false, true] {
        let disk = dir.path().join("disk");
        let _mounted = mount_tmpfs(&disk, DISK);
        let ended = copy(backend, remote, way, &[flags, if json { &["--json"] } else { &[] }].concat(), dir.path());
        if json {
            ended.assert_exit(11);
            assert!(moved(&ended) < MOST, "{} bytes: {}", moved(&ended), ended.stderr);
            assert_eq!(ended.lines().len(), 2, "{}", ended.stderr);
        } else {
            assert_told(&ended, &disk);
        }
    }
}

#[test]
fn a_full_disk_ends_the_sending_and_is_told_in_one_line() {
    if !in_private_mounts("a_full_disk_ends_the_sending_and_is_told_in_one_line") {
        return;
    }
    for (backend, way) in BACKENDS.into_iter().flat_map(|backend| WAYS.map(|way| (backend, way))) {
        let all: [&[&str]; 3] = [&[], &["--direct=direct"], &["--connections=2"]];
        for flags in all.into_iter().filter(|flags| way != Way::Local || flags.is_empty()) {
            check(backend, &Pipes::new(backend), way, flags);
        }
    }
}

#[test]
fn a_full_disk_ends_what_the_sftp_server_carries() {
    if !in_private_mounts("a_full_disk_ends_what_the_sftp_server_carries") {
        return;
    }
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    for way in [Way::Up, Way::Down] {
        check("poll", &sshd, way, &[]);
    }
}

/// It refuses to write without a number for why; what befalls one file may be a bad sector, what befalls two is not.
#[test]
fn a_full_disk_ends_what_an_sftp_server_carries_that_does_not_say_how_full_it_is() {
    if !in_private_mounts("a_full_disk_ends_what_an_sftp_server_carries_that_does_not_say_how_full_it_is") {
        return;
    }
    let Some(sshd) = Sshd::bare("poll", &format!("{SFTP} -P statvfs")) else { return };
    let dir = source();
    let disk = dir.path().join("disk");
    let _mounted = mount_tmpfs(&disk, DISK);
    let ended = copy("poll", &sshd, Way::Up, &["--json"], dir.path());
    ended.assert_exit(11);
    assert!(moved(&ended) < MOST, "{} bytes: {}", moved(&ended), ended.stderr);
    let there = files_in(&disk);
    assert!(there.iter().all(|file| fs::metadata(file).unwrap().len() == SIZE), "{there:?}");
    let lines = ended.lines();
    let [first, rest, hint] = lines[..] else { panic!("{} lines: {lines:?}", lines.len()) };
    let refused = "cannot write: Failure (its disk is full, over quota, or broken)";
    let missing = FILES - there.len() as u64;
    assert!(first.ends_with(refused), "{first}");
    assert!(
        rest.ends_with(&format!("{refused}; {} files have no room, and nothing more was sent", missing - 1)),
        "{rest}"
    );
    assert!(hint.starts_with("hint: the old files"), "{hint}");
}
