//! What in a block store is never believed, and what of its troubles a transfer never notices.

use crate::rig::*;
use crate::store::{MIB, Process, block_path, content, files, holds, root_identity};
use haul_engine::backend::*;
use haul_engine::offload::BlockStore;
use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
#[cfg(target_os = "linux")]
use std::process::Command;

type Spoil = fn(&Path);

/// What may be wrong with a block's file.
const BAD_FILES: [(&str, Spoil); 11] = [
    ("corrupted", |path| overwrite(path, |bytes| bytes[4321] ^= 0x10)),
    ("truncated", |path| overwrite(path, |bytes| bytes.truncate(4999))),
    ("emptied", |path| overwrite(path, Vec::clear)),
    ("too long by a byte", |path| overwrite(path, |bytes| bytes.push(0))),
    ("oversized", |path| overwrite(path, |bytes| bytes.resize((4 << 20) + 1, 0))),
    ("readable by others", |path| set_mode(path, 0o644)),
    ("set-user-ID", |path| set_mode(path, 0o4600)),
    ("unreadable", |path| set_mode(path, 0o000)),
    ("under a second name", |path| fs::hard_link(path, path.with_extension("other")).unwrap()),
    ("a link to the right content", |path| {
        fs::rename(path, path.with_extension("other")).unwrap();
        symlink(path.with_extension("other"), path).unwrap();
    }),
    ("a FIFO", |path| {
        fs::remove_file(path).unwrap();
        mkfifo(path);
    }),
];

fn overwrite(path: &Path, change: fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_block_file_that_is_not_as_it_was_made_is_never_used_and_goes() {
    for (what, spoil) in BAD_FILES {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::new(dir.path(), 1, None);
        let bytes = content(1, 5000);
        process.keep(&bytes);
        let path = block_path(dir.path(), 1, &bytes);
        spoil(&path);
        assert!(!process.has(&bytes), "{what}");
        assert!(fs::symlink_metadata(&path).is_err(), "{what}: it is still there");
        process.keep(&bytes);
        assert!(process.has(&bytes), "{what}: a good one takes its place");
    }
}

#[test]
fn keeping_a_block_replaces_what_stands_wrongly_in_its_place() {
    for (what, spoil) in BAD_FILES.into_iter().filter(|(what, _)| *what != "corrupted") {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::new(dir.path(), 1, None);
        let bytes = content(1, 5000);
        process.keep(&bytes);
        spoil(&block_path(dir.path(), 1, &bytes));
        process.keep(&bytes);
        assert!(process.has(&bytes), "{what}");
    }
}

#[test]
fn what_cannot_be_removed_from_a_blocks_place_is_missing_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path(), 1, Some(MIB));
    let (bytes, other) = (content(1, 5000), content(2, 5000));
    let path = block_path(dir.path(), 1, &bytes);
    fs::create_dir_all(&path).unwrap();
    for parent in path.ancestors().skip(1).take(3) {
        set_mode(parent, 0o700);
    }
    process.keep(&bytes);
    assert!(!process.has(&bytes) && path.is_dir());
    process.keep(&other);
    assert!(process.has(&other), "the others are none the worse");
    if !rustix::process::geteuid().is_root() {
        crate::skips::skip("root", "only root gives files away", "root");
        return;
    }
    fs::remove_dir(&path).unwrap();
    process.keep(&bytes);
    chown(&path, Some(65534), None).unwrap();
    assert!(!process.has(&bytes) && path.is_file(), "a file of somebody else is neither used nor removed");
}

#[test]
fn a_directory_that_is_a_link_or_open_to_others_holds_no_blocks() {
    let bytes = content(1, 5000);
    for (level, name) in [(1, "bb"), (2, "aa"), (3, "the scope")] {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::new(dir.path(), 1, Some(MIB));
        process.keep(&bytes);
        let path = block_path(dir.path(), 1, &bytes);
        let parent = path.ancestors().nth(level).unwrap();
        for mode in [0o750, 0o701, 0o1777] {
            set_mode(parent, mode);
            process.keep(&bytes);
            assert!(!process.has(&bytes), "{name} with mode {mode:o}");
        }
        set_mode(parent, 0o700);
        assert!(process.has(&bytes), "{name}");
        let elsewhere = tempfile::tempdir().unwrap();
        let moved = elsewhere.path().join("moved");
        fs::rename(parent, &moved).unwrap();
        symlink(&moved, parent).unwrap();
        let before = files(&moved);
        process.keep(&bytes);
        process.keep(&content(2, 5000));
        assert!(!process.has(&bytes), "{name} is a link");
        assert_eq!(files(&moved), before, "{name}: something was written where a link leads");
    }
}

#[test]
fn a_store_that_others_can_change_or_that_is_no_directory_only_misses() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(1, 5000);
    for mode in [0o777, 0o770, 0o1777] {
        let directory = dir.path().join(format!("{mode:o}"));
        fs::create_dir(&directory).unwrap();
        set_mode(&directory, mode);
        let mut process = Process::new(&directory, 1, Some(MIB));
        process.keep(&bytes);
        assert!(!process.has(&bytes));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        assert_eq!(BlockStore::open(&directory, &root_identity(1), None).check(), Err(Errno::INVALID));
    }
    fs::write(dir.path().join("file"), "x").unwrap();
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    for name in ["file", "file/below", "dangling"] {
        let mut process = Process::new(&dir.path().join(name), 1, Some(MIB));
        process.keep(&bytes);
        assert!(!process.has(&bytes), "{name}");
    }
    assert_eq!(BlockStore::open(&dir.path().join("file"), &root_identity(1), None).check(), Err(Errno::NOT_DIRECTORY));
    assert_eq!(BlockStore::open(&dir.path().join("new/one"), &root_identity(1), None).check(), Ok(()));
    assert!(!dir.path().join("new").exists(), "a look makes nothing");
    // A directory that others can read but not change is the user's own choice.
    let directory = dir.path().join("readable");
    fs::create_dir(&directory).unwrap();
    set_mode(&directory, 0o755);
    let mut process = Process::new(&directory, 1, Some(MIB));
    process.keep(&bytes);
    assert!(process.has(&bytes));
}

#[test]
fn without_the_file_that_tells_others_of_changes_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::write(&elsewhere, "old").unwrap();
    set_mode(&elsewhere, 0o600);
    let store = dir.path().join("store");
    fs::create_dir(&store).unwrap();
    set_mode(&store, 0o700);
    symlink(&elsewhere, store.join("changes")).unwrap();
    let mut process = Process::new(&store, 1, Some(MIB));
    process.keep(&content(1, 5000));
    assert!(!process.has(&content(1, 5000)));
    assert_eq!(fs::read(&elsewhere).unwrap(), b"old");
}

#[test]
fn a_store_that_is_removed_meanwhile_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut process = Process::new(&store, 1, Some(MIB));
    for seed in 0..3 {
        process.keep(&content(seed, 400_000));
        assert!(process.has(&content(seed, 400_000)));
        fs::remove_dir_all(&store).unwrap();
        assert!(!process.has(&content(seed, 400_000)));
    }
    (0..3).for_each(|seed| process.keep(&content(seed, 400_000)));
    assert_eq!(holds(&store).0, 2, "what was counted before the removal does not count");
}

#[test]
fn a_sink_takes_nothing_from_a_store_and_gives_it_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path(), 1, None);
    let bytes = content(1, 5000);
    process.keep(&bytes);
    let (file, _) = process.rig.create("/dev/null", 5000, 0).unwrap();
    let (store, hashes) = (process.store, vec![*blake3::hash(&bytes).as_bytes()]);
    let fill = FsOp::FillBlocks { file, store, size: 5000, first: 0, hashes: hashes.clone() };
    assert!(matches!(process.rig.fs(fill), Ok(Output::Blocks(blocks)) if blocks == [None]));
    let keep = FsOp::KeepBlocks { file, store, size: 5000, first: 0, hashes };
    assert!(matches!(process.rig.fs(keep), Ok(Output::Done)));
}

/// True in a process of its own mount namespace. Else runs `test` again in one and returns false; where that is not
/// allowed it is skipped.
#[cfg(target_os = "linux")]
fn in_private_mounts(test: &str) -> bool {
    const INNER: &str = "HAUL_TEST_PRIVATE_MOUNTS";
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let mut probe = Command::new("unshare");
    probe.args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]);
    if !probe.output().is_ok_and(|ended| ended.status.success()) {
        crate::skips::skip("mounts", "file systems cannot be mounted here", "root, and leave to mount");
        return false;
    }
    let mut again = Command::new("unshare");
    again.arg("-m").arg(std::env::current_exe().unwrap()).args(["--exact", test, "--test-threads=1"]);
    let ended = again.env(INNER, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{said}\n{}", String::from_utf8_lossy(&ended.stderr));
    assert!(said.contains("1 passed"), "{test} is no test: {said}");
    false
}

/// A file system in memory, unmounted before the directory goes that it stands on.
#[cfg(target_os = "linux")]
struct Mounted(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Mounted {
    fn mount(&self, options: &str) {
        let mut mount = Command::new("mount");
        assert!(mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0).status().unwrap().success());
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn on_a_full_or_read_only_disk_blocks_are_not_kept_and_room_is_left() {
    if !in_private_mounts("store_trust::on_a_full_or_read_only_disk_blocks_are_not_kept_and_room_is_left") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Mounted(disk.clone());
    mounted.mount("size=70m");
    let store = disk.join("store");
    let mut process = Process::new(&store, 1, None);
    (0..10).for_each(|seed| process.keep(&content(seed, 1 << 20)));
    let (blocks, bytes) = holds(&store);
    assert!((4..6).contains(&blocks), "{blocks} blocks: 64 MiB of 70 stay free");
    assert!(process.has(&content(0, 1 << 20)));
    // Not one page.
    let space = rustix::fs::statvfs(&disk).unwrap();
    let room = usize::try_from(space.f_bavail * space.f_frsize).unwrap();
    fs::write(disk.join("filler"), vec![1; room]).unwrap();
    process.keep(&content(20, 1 << 20));
    assert!(!process.has(&content(20, 1 << 20)) && process.has(&content(0, 1 << 20)));
    assert_eq!(holds(&store), (blocks, bytes));
    mounted.mount("remount,ro");
    process.keep(&content(20, 1 << 20));
    assert!(process.has(&content(0, 1 << 20)), "a block whose time cannot be set is as good");
}
