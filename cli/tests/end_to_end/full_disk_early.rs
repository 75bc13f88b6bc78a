//! What need not travel to a full disk: a large download for which there is no room is not asked for, one that no longer fits is
//! cut short. And a server that has only words for a full disk says them of many files: they are shown a few times.

use crate::support::frames::{BASES, FULL, FarEnd, Received, attributes, data, play};
use crate::support::processes::{Ended, LIMIT, in_private_mounts, mount_tmpfs};
use crate::support::{BACKENDS, Pipes, Remote, random_file, trees};
use haul_engine::wire::frame::{Dialect, ErrorCode, Frame, Kind, Preserve};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;

const MIB: usize = 1 << 20;
const HINT: &str = "hint: the target's file system is full; the old file, if any, is untouched";

/// `haul copy far:f DISK/f` with an old file there.
fn get(backend: &str, disk: &Path, act: impl FnOnce(&mut FarEnd) + Send) -> Ended {
    fs::write(disk.join("f"), "old").unwrap();
    let args = |pipes: &Pipes| {
        let words = [OsString::from("copy")].into_iter().chain(pipes.args());
        words.chain(["far:f".into(), disk.join("f").into()]).collect()
    };
    let ended = play(backend, LIMIT, args, act);
    assert_eq!(fs::read(disk.join("f")).unwrap(), b"old");
    ended
}

#[track_caller]
fn assert_full(ended: &Ended) {
    ended.assert_exit(11);
    let [line, hint] = ended.lines()[..] else { panic!("{ended:?}") };
    assert!(line.ends_with(": No space left on device") && hint == HINT, "{ended:?}");
}

fn ways() -> impl Iterator<Item = (&'static str, Dialect)> {
    BACKENDS.into_iter().flat_map(|backend| [(backend, FULL), (backend, BASES[0])])
}

#[test]
fn a_large_download_for_which_there_is_no_room_is_not_asked_for() {
    if !in_private_mounts("a_large_download_for_which_there_is_no_room_is_not_asked_for") {
        return;
    }
    for (backend, dialect) in ways() {
        let dir = trees::scratch();
        let disk = dir.path().join("disk");
        let _mounted = mount_tmpfs(&disk, "size=8m");
        let ended = get(backend, &disk, |far| {
            far.greet(dialect);
            far.looked_up(Some(attributes(Kind::Regular, 625 * MIB as u64)));
            let next = far.next_request();
            assert_eq!(next, None, "{backend}, {dialect:?}");
        });
        assert_full(&ended);
    }
}

#[test]
fn a_large_download_that_no_longer_fits_is_cut_short() {
    if !in_private_mounts("a_large_download_that_no_longer_fits_is_cut_short") {
        return;
    }
    const SIZE: usize = 60 * MIB;
    for (backend, dialect) in ways() {
        let dir = trees::scratch();
        let disk = dir.path().join("disk");
        let _mounted = mount_tmpfs(&disk, "size=64m");
        let filler = disk.join("filler");
        let ended = get(backend, &disk, |far| {
            far.greet(dialect);
            let found = attributes(Kind::Regular, SIZE as u64);
            far.looked_up(Some(found));
            assert!(matches!(far.request(), Frame::Get { offset: 0, .. }));
            if dialect == FULL {
                far.send(&Frame::Meta { attributes: found, preserve: Preserve::default() });
            }
            // Somebody else fills the disk in the meantime.
            let mut filler = fs::File::create(&filler).unwrap();
            for block in [MIB, 4096] {
                while filler.write_all(&vec![1; block]).is_ok() {}
            }
            let mut sent = 0;
            while sent < SIZE && far.offer(&data(&vec![7; MIB / 4])) {
                sent += MIB / 4;
            }
            assert!(sent < SIZE, "{backend}, {dialect:?}: all of it was taken");
        });
        assert_full(&ended);
    }
}

#[test]
fn a_server_with_the_same_words_for_many_files_is_quoted_a_few_times() {
    const FILES: usize = 300;
    let dir = trees::scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    (0..FILES).for_each(|number| random_file(&tree.join(number.to_string()), 100, number as u64));
    for (backend, verbose) in BACKENDS.into_iter().flat_map(|backend| [(backend, false), (backend, true)]) {
        let args = |pipes: &Pipes| {
            let words = ["copy", "-r"].map(OsString::from).into_iter().chain(pipes.args());
            let verbose = verbose.then(|| "-v".into());
            words.chain(verbose).chain([tree.clone().into(), "far:d".into()]).collect()
        };
        let ended = play(backend, LIMIT, args, |far| {
            far.greet(BASES[0]);
            let said = |message: String| Frame::Error { message: message.into_bytes(), code: ErrorCode::NONE };
            let mut path = String::new();
            while let Some(received) = far.input.next() {
                let Received::Frame(frame) = received else { continue };
                let reply = match frame {
                    Frame::Put { path: put, .. } => {
                        path = String::from_utf8(put.0).unwrap();
                        continue;
                    }
                    Frame::Done => said(format!("cannot write /srv/{path}: No space left on device (os error 28)")),
                    Frame::Mkdir { .. } => Frame::Ok { hash: None },
                    Frame::Stat { .. } => said("no such file".to_string()),
                    other => panic!("{other:?}"),
                };
                far.send(&reply);
            }
        });
        // The words of a server decide no exit code.
        ended.assert_exit(23);
        let lines = ended.lines();
        let quoted = lines.iter().filter(|line| line.contains("No space left on device")).count();
        if verbose {
            assert_eq!(quoted, FILES, "{backend}: {ended:?}");
            continue;
        }
        assert_eq!(quoted, 8, "{backend}: {ended:?}");
        let counted = lines.iter().filter(|line| line.contains(": the same of 292 more files, at last ")).count();
        assert_eq!(counted, 1, "{backend}: {ended:?}");
        assert!(lines.len() <= 11, "{backend}: {ended:?}");
    }
}
