//! -C: what an interrupted copy leaves beside the target is proved, and only the rest is sent. kill -9 at either end, both
//! ways, both backends. What is under the name of such a rest and is none is left alone.

use crate::support::kept::{BLOCK, Kept, Victim};
use crate::support::processes::{
    LIMIT, arrived, assert_nobody_at_home, in_private_mounts, mount_tmpfs, names, signal, wait_for,
};
use crate::support::record::{Record, Session};
use crate::support::routes::{Route, assert_same_tree, contents_of};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Entry, Remote, kept, random_file};
use rustix::process::Signal;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const MIB: u64 = 1 << 20;
/// Large enough that a kill finds the copy still going on.
const SIZE: usize = 128 << 20;
/// Of a copy that is interrupted in the middle only.
const SMALLER: usize = 32 << 20;
/// What may have been written behind a gap: each end has so much under way at most.
const UNDER_WAY: u64 = 8 * MIB;

/// Both backends on either side, both ways.
fn routes() -> impl Iterator<Item = ((&'static str, &'static str), Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| ((backend, backend), way)))
}

fn resumed(summary: &Value) -> u64 {
    summary["resumed_bytes"].as_u64().unwrap()
}

/// Fails unless whole blocks of what was kept, and nothing else, were not sent again.
#[track_caller]
fn assert_continued(summary: &Value, kept: u64) {
    let resumed = resumed(summary);
    assert!(resumed <= kept && resumed + BLOCK > kept, "{kept} bytes were kept, {resumed} were not sent again");
}

fn continues_after_kills(backend: &'static str, way: Way, victim: Victim) {
    let copy = Kept::new((backend, backend), way, SIZE);
    for percent in [10, 50, 90] {
        let goal = copy.size * percent / 100;
        copy.killed_at(goal, victim);
        let kept = copy.kept();
        assert!(kept + UNDER_WAY >= goal, "of {goal} bytes {kept} were kept");
        assert_continued(&copy.completed(&["-C"]), kept);
        fs::remove_file(copy.target()).unwrap();
    }
}

macro_rules! continues {
    ($($name:ident: $backend:literal, $way:ident, $victim:ident;)*) => {
        $(#[test]
        fn $name() {
            continues_after_kills($backend, Way::$way, Victim::$victim);
        })*
    };
}

continues! {
    an_upload_whose_client_was_killed_is_continued_with_uring: "uring", Up, Client;
    an_upload_whose_client_was_killed_is_continued_with_poll: "poll", Up, Client;
    an_upload_whose_server_was_killed_is_continued_with_uring: "uring", Up, Server;
    an_upload_whose_server_was_killed_is_continued_with_poll: "poll", Up, Server;
    a_download_whose_client_was_killed_is_continued_with_uring: "uring", Down, Client;
    a_download_whose_client_was_killed_is_continued_with_poll: "poll", Down, Client;
    a_download_whose_server_was_killed_is_continued_with_uring: "uring", Down, Server;
    a_download_whose_server_was_killed_is_continued_with_poll: "poll", Down, Server;
}

#[test]
fn a_copy_killed_again_and_again_loses_nothing_of_what_was_kept() {
    for ends in [("uring", "poll"), ("poll", "uring")] {
        for way in [Way::Up, Way::Down] {
            let copy = Kept::new(ends, way, SIZE);
            let mut kept = 0;
            for (percent, victim) in [(10, Victim::Client), (50, Victim::Server), (90, Victim::Client)] {
                copy.killed_at(copy.size * percent / 100, victim);
                assert!(copy.kept() >= kept / BLOCK * BLOCK, "{ends:?}, {way:?}: {} of {kept}", copy.kept());
                kept = copy.kept();
                assert!(kept + UNDER_WAY >= copy.size * percent / 100, "{kept}");
            }
            // As soon as there is a far end: while what is there is being looked at.
            copy.killed_at(0, Victim::Client);
            assert!(copy.kept() >= kept / BLOCK * BLOCK, "{} of {kept}", copy.kept());
            kept = copy.kept();
            assert_continued(&copy.completed(&["-C"]), kept);
        }
    }
}

#[test]
fn without_c_nothing_is_kept_of_a_killed_copy() {
    for (ends, way) in routes() {
        let copy = Kept::new(ends, way, SIZE);
        for victim in [Victim::Client, Victim::Server] {
            let hit = (0..20).any(|_| {
                let (mut client, server) = copy.start(&[]);
                let receiver = copy.receiver((client.pid(), server));
                wait_for(LIMIT, || arrived(receiver) >= copy.size / 4 || client.is_over());
                let pid = if victim == Victim::Client { client.pid() } else { server };
                let alive = !client.is_over() && signal(pid, Signal::KILL);
                client.finish();
                assert_nobody_at_home(&copy.pipes.home(), LIMIT);
                let whole = copy.target().exists();
                assert_eq!(names(&copy.to()).len(), usize::from(whole), "{:?}", names(&copy.to()));
                let _ = fs::remove_file(copy.target());
                alive && !whole
            });
            assert!(hit, "no copy was hit midway");
        }
        assert_eq!(resumed(&copy.completed(&["-C"])), 0);
    }
}

#[test]
fn p_works_as_c_does() {
    for (ends, way) in routes() {
        let copy = Kept::new(ends, way, SIZE);
        for goal in [copy.size / 4, copy.size / 2] {
            copy.killed(&["-P"], goal, Victim::Server);
            assert!(copy.kept() + UNDER_WAY >= goal);
        }
        let kept = copy.kept();
        assert_continued(&copy.completed(&["-P"]), kept);
    }
}

#[test]
fn an_interrupted_copy_says_what_was_kept_and_the_same_command_continues() {
    for (ends, way) in routes() {
        let copy = Kept::new(ends, way, SIZE);
        for stop in [Signal::INT, Signal::TERM] {
            // On a machine that is busy a copy may be over before it is looked at.
            let stopped = (0..20).find_map(|_| {
                let (mut client, _) = copy.start(&["-C"]);
                wait_for(LIMIT, || copy.partial_size() >= copy.size / 4 || client.is_over());
                signal(client.pid(), stop);
                let ended = client.finish();
                assert_nobody_at_home(&copy.pipes.home(), LIMIT);
                if ended.status.success() {
                    fs::remove_file(copy.target()).unwrap();
                }
                (!ended.status.success()).then_some(ended)
            });
            let ended = stopped.expect("one of twenty copies is stopped midway");
            ended.assert_exit(20);
            let kept = copy.kept();
            let (percent, told) = interrupted(&ended.stderr);
            assert!((20..=99).contains(&percent), "{ended:?}");
            // To a tenth of a MiB, as it is told.
            assert!(told <= kept + MIB / 10 && kept - told.min(kept) <= 2 * UNDER_WAY, "{told} told, {kept} kept");
            assert_continued(&copy.completed(&["-C"]), kept);
            fs::remove_file(copy.target()).unwrap();
        }
    }
}

/// Percent and bytes in the one line of an interrupted run that keeps what has arrived.
#[track_caller]
fn interrupted(stderr: &str) -> (u8, u64) {
    let parsed = || {
        let rest = stderr.strip_prefix("haul: interrupted at ")?;
        let (percent, rest) = rest.split_once(" %; ")?;
        let told = rest.strip_suffix(" MiB kept; run the same command to continue\n")?;
        Some((percent.parse().ok()?, (told.parse::<f64>().ok()? * MIB as f64) as u64))
    };
    parsed().unwrap_or_else(|| panic!("{stderr:?}"))
}

#[test]
fn names_of_255_bytes_are_continued() {
    for (ends, way) in routes() {
        for byte in [b'n', 0xfe] {
            let copy = Kept::called(OsStr::from_bytes(&[byte; 255]), ends, way, SMALLER);
            copy.killed_at(copy.size / 2, Victim::Server);
            let kept = copy.kept();
            assert!(kept > BLOCK);
            assert_continued(&copy.completed(&["-C"]), kept);
        }
    }
}

/// A copy of which the middle has been reached once: what was kept, and under which name.
fn half_kept(ends: (&'static str, &'static str), way: Way) -> (Kept, OsString) {
    let copy = Kept::new(ends, way, SMALLER);
    copy.killed_at(copy.size / 2, Victim::Server);
    let name = copy.partial().unwrap().file_name().unwrap().to_owned();
    (copy, name)
}

/// Makes what is kept from the beginning of the source.
fn keep(copy: &Kept, name: &OsStr, len: u64) {
    let partial = copy.to().join(name);
    let _ = fs::remove_file(copy.target());
    let _ = fs::remove_file(&partial);
    let bytes = fs::read(copy.source()).unwrap();
    fs::write(&partial, &bytes[..len as usize]).unwrap();
    crate::support::trees::set_mode(&partial, 0o600);
}

#[test]
fn flipped_bytes_in_what_was_kept_are_healed() {
    for (ends, way) in routes() {
        let (copy, name) = half_kept(ends, way);
        let half = copy.size / 2;
        // What is equal before each of them, in whole blocks.
        for (offset, equal) in [(0, 0), (half / 2 + 1, half / 2), (half - 1, half - BLOCK), (half + 1, half)] {
            keep(&copy, &name, half + 2);
            let file = fs::File::options().read(true).write(true).open(copy.to().join(&name)).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[!byte[0]], offset).unwrap();
            assert_eq!(resumed(&copy.completed(&["-C"])), equal, "{ends:?}, {way:?}, byte {offset}");
        }
    }
}

#[test]
fn what_was_kept_of_another_or_a_longer_file_is_no_obstacle() {
    for (ends, way) in routes() {
        let (mut copy, name) = half_kept(ends, way);
        // All of it, and more than all of it.
        keep(&copy, &name, copy.size);
        assert_eq!(resumed(&copy.completed(&["-C"])), copy.size);
        keep(&copy, &name, copy.size);
        let longer = fs::File::options().append(true).open(copy.to().join(&name)).unwrap();
        std::io::Write::write_all(&mut &longer, &[7; 5_000_000]).unwrap();
        assert_eq!(resumed(&copy.completed(&["-C"])), copy.size);
        // Nothing at all.
        keep(&copy, &name, 0);
        assert_eq!(resumed(&copy.completed(&["-C"])), 0);
        // The source has become another one meanwhile.
        keep(&copy, &name, copy.size / 2);
        random_file(&copy.source(), SMALLER - 4321, 9);
        copy.hash = crate::support::hash_of(&copy.source());
        assert_eq!(resumed(&copy.completed(&["-C"])), 0);
    }
}

#[test]
fn a_file_that_has_grown_is_sent_from_where_it_differs() {
    for (ends, way) in routes() {
        let copy = Kept::new(ends, way, SMALLER);
        let bytes = fs::read(copy.source()).unwrap();
        for old in [copy.size - 1, copy.size / 2 + 12345, BLOCK - 1] {
            fs::write(copy.target(), &bytes[..old as usize]).unwrap();
            assert_eq!(resumed(&copy.completed(&["-C"])), old / BLOCK * BLOCK, "{ends:?}, {way:?}, {old}");
        }
        // It ended otherwise before.
        fs::write(copy.target(), [&bytes[..bytes.len() / 2], b"another end"].concat()).unwrap();
        assert_eq!(resumed(&copy.completed(&["-C"])), copy.size / 2);
    }
}

/// Something that bears the name of what would be kept, and that nobody may use.
#[derive(Clone, Copy, Debug)]
enum Foreign {
    Symlink,
    HardLink,
    Fifo,
    Directory,
    Readable,
    Locked,
    Owned,
}

/// Puts it there, all of it with the beginning of the source in it. What must live as long as the copy.
fn put_foreign(copy: &Kept, name: &OsStr, foreign: Foreign) -> Option<fs::File> {
    keep(copy, name, copy.size / 2);
    let (partial, other) = (copy.to().join(name), copy.dir().join("other"));
    let _ = fs::remove_file(&other);
    match foreign {
        Foreign::Symlink => {
            fs::rename(&partial, &other).unwrap();
            std::os::unix::fs::symlink(&other, &partial).unwrap();
        }
        Foreign::HardLink => fs::hard_link(&partial, &other).unwrap(),
        Foreign::Fifo => {
            fs::remove_file(&partial).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mkfifoat(rustix::fs::CWD, &partial, mode).unwrap();
        }
        Foreign::Directory => {
            fs::remove_file(&partial).unwrap();
            fs::create_dir(&partial).unwrap();
        }
        Foreign::Readable => crate::support::trees::set_mode(&partial, 0o644),
        Foreign::Locked => {
            let file = fs::File::open(&partial).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
            return Some(file);
        }
        Foreign::Owned => std::os::unix::fs::chown(&partial, Some(65534), None).unwrap(),
    }
    None
}

/// Everything about a name that a copy could have changed.
fn looks(path: &Path) -> (u64, u32, u32, u64, (i64, i64), Option<String>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let hash = meta.is_file().then(|| crate::support::hash_of(path));
    (meta.ino(), meta.mode(), meta.uid(), meta.nlink(), (meta.mtime(), meta.mtime_nsec()), hash)
}

#[test]
fn what_others_can_have_made_or_can_change_is_not_used_and_not_touched() {
    use Foreign::{Directory, Fifo, HardLink, Locked, Owned, Readable, Symlink};
    for (ends, way) in routes() {
        let (copy, name) = half_kept(ends, way);
        let (partial, other) = (copy.to().join(&name), copy.dir().join("other"));
        for foreign in [Symlink, HardLink, Fifo, Directory, Readable, Locked, Owned] {
            if matches!(foreign, Owned) && !crate::support::routes::is_root() {
                continue;
            }
            eprintln!("{ends:?}, {way:?}, {foreign:?}");
            let held = put_foreign(&copy, &name, foreign);
            let before = (looks(&partial), other.exists().then(|| looks(&other)));
            let output = copy.command(&["-C"]).output().unwrap();
            let summary = copy.is_complete(&output, &[&name]);
            assert_eq!(resumed(&summary), 0);
            assert_eq!((looks(&partial), other.exists().then(|| looks(&other))), before);
            drop(held);
            if matches!(foreign, Directory) {
                fs::remove_dir(&partial).unwrap();
            }
        }
    }
}

#[test]
fn two_copies_to_one_target_at_the_same_time_do_not_mix() {
    for (ends, way) in routes() {
        let copy = Kept::new(ends, way, SMALLER);
        let (first, _) = copy.start(&["-C"]);
        let (second, _) = copy.start(&["-C"]);
        for client in [first, second] {
            client.finish().assert_exit(0);
        }
        assert_eq!(crate::support::hash_of(&copy.target()), copy.hash);
        assert_nobody_at_home(&copy.pipes.home(), LIMIT);
        assert_eq!(names(&copy.to()), ["file"]);
    }
}

/// Bytes that files take in a directory, and those without a name that a process has open.
fn space(dir: &Path, receiver: i32) -> u64 {
    let blocks = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.metadata().ok().map(|meta| meta.blocks() * 512);
    let named: u64 = fs::read_dir(dir).unwrap().filter_map(blocks).sum();
    named + arrived(receiver)
}

#[test]
fn a_continued_copy_takes_no_more_space_than_the_file() {
    for (ends, way) in routes() {
        let copy = Kept::new(ends, way, SIZE);
        for percent in [10, 90] {
            copy.killed_at(copy.size * percent / 100, Victim::Server);
            let (mut client, server) = copy.start(&["-C"]);
            let receiver = copy.receiver((client.pid(), server));
            let (mut peak, mut looks) = (0, 0);
            while !client.is_over() {
                peak = peak.max(space(&copy.to(), receiver));
                looks += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            client.finish().assert_exit(0);
            assert_eq!(crate::support::hash_of(&copy.target()), copy.hash);
            assert!(looks > 10 && peak > copy.size / 20, "nothing was seen: {looks} looks, {peak} bytes");
            assert!(peak <= copy.size + 8 * MIB, "{peak} bytes for a file of {}", copy.size);
            fs::remove_file(copy.target()).unwrap();
        }
    }
}

#[test]
fn a_file_that_nearly_fills_the_disk_is_continued() {
    if !in_private_mounts("a_file_that_nearly_fills_the_disk_is_continued") {
        return;
    }
    for (ends, way) in routes() {
        let copy = Kept::new(ends, way, 50 << 20);
        let _mounted = mount_tmpfs(&copy.to(), "size=64m");
        for (percent, victim) in [(25, Victim::Server), (50, Victim::Client), (75, Victim::Server)] {
            copy.killed_at(copy.size * percent / 100, victim);
        }
        let kept = copy.kept();
        assert_continued(&copy.completed(&["-C"]), kept);
    }
}

#[test]
fn what_is_said_to_be_spared_does_not_travel() {
    for (ends, way) in routes() {
        let mut copy = Kept::new(ends, way, SIZE / 2);
        copy.killed_at(copy.size * 3 / 4, Victim::Server);
        let kept = copy.kept();
        let record = Record::new(ends.1, "");
        copy.pipes = record.pipes;
        let summary = copy.completed(&["-C"]);
        assert_continued(&summary, kept);
        let travelled = record.wire.sessions().iter().map(Session::bytes).sum::<u64>();
        let rest = copy.size - resumed(&summary);
        assert!(travelled >= rest && travelled < rest + MIB, "{travelled} bytes travelled for {rest}");
    }
}

/// Files of all sizes below a directory, a few of them of several blocks.
fn tree(dir: &Path) {
    crate::support::trees::small_files(dir, 200);
    crate::support::trees::files_of_sizes(&dir.join("sizes"), &crate::support::trees::SIZES);
    random_file(&dir.join("sizes/big"), 9 << 20, 77);
}

/// How many files there are below a directory, how many of them are empty, and the bytes of all.
fn total(dir: &Path) -> (u64, u64, u64) {
    let entries = crate::support::snapshot(dir);
    let sizes = entries.values().filter_map(|entry| match entry {
        Entry::File { size, .. } => Some(*size),
        _ => None,
    });
    sizes.fold((0, 0, 0), |(files, empty, bytes), size| (files + 1, empty + u64::from(size == 0), bytes + size))
}

#[test]
fn of_a_tree_only_what_is_missing_or_has_changed_is_sent_again() {
    for route in Route::over_pipes() {
        let dir = crate::support::trees::scratch();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        tree(&source);
        let (files, empty, bytes) = total(&source);
        let run = || {
            let summary = kept::summary(&route.copied(&["-rC", "--json"], &[&contents_of(&source)], &target));
            assert_same_tree(&target, &source);
            ["files", "unchanged", "bytes", "resumed_bytes"].map(|key| summary[key].as_u64().unwrap())
        };
        assert_eq!(run(), [files, 0, bytes, 0], "{route:?}");
        // Of what is empty there is nothing to prove: it is simply made again.
        assert_eq!(run(), [empty, files - empty, 0, bytes], "{route:?}");
        // The same size and time, but another content: at the source, and at the target.
        let other = [source.join("000/file-99"), source.join("sizes/524288"), target.join("sizes/4194303")];
        for path in &other {
            let before = fs::metadata(path).unwrap();
            random_file(path, before.len() as usize, 5);
            fs::File::options().write(true).open(path).unwrap().set_modified(before.modified().unwrap()).unwrap();
        }
        // Longer, shorter, and gone.
        let sizes = [("000/file-1", 50), ("000/file-30", 1), ("sizes/4194305", 9)];
        sizes.iter().for_each(|(name, size)| random_file(&source.join(name), *size, 6));
        let gone = ["000/file-7", "001/file-107", "sizes/65536"];
        gone.iter().for_each(|name| fs::remove_file(target.join(name)).unwrap());
        let sent = empty + (other.len() + sizes.len() + gone.len()) as u64;
        let bytes = total(&source).2;
        let [again, unchanged, sent_bytes, resumed] = run();
        assert_eq!((again, unchanged), (sent, files - sent), "{route:?}");
        assert_eq!(sent_bytes + resumed, bytes, "{route:?}");
    }
}
