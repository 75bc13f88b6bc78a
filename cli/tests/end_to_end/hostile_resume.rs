//! Continue, Skip and Kept against the rules: clients that skip what is not there, and partial files that others had
//! their hands on.

use crate::support::BACKENDS;
use crate::support::frames::{RESUMING, Received, Serving, attributes, blake3_of, bytes_of, data, field};
use crate::support::pressure::{open_files, settle, write_beside};
use crate::support::processes::{LIMIT, names, signal, wait_for};
use haul_engine::limits::MAX_ACTIVE_REQUESTS;
use haul_engine::tree_hash::BlockHash;
use haul_engine::wire::frame::{Attributes, Caps, ErrorCode, Frame, Hash, Kind, Preserve};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK: usize = 4 << 20;

fn resuming(backend: &str) -> Serving {
    Serving::agreed(backend, RESUMING, Caps::NONE)
}

fn content_of(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 5 % 251) as u8).collect()
}

fn put_on(name: &str, size: usize) -> Frame {
    Frame::Continue { path: field(name), size: size as u64 }
}

/// What Kept says of this, block by block.
fn chain(content: &[u8]) -> Vec<Hash> {
    (0..).zip(content.chunks(BLOCK)).map(|(index, block)| BlockHash::of(index, block).chaining).collect()
}

/// Asks to go on with a file; returns the blocks that are there.
#[track_caller]
fn kept(serving: &mut Serving, name: &str, size: usize) -> Vec<Hash> {
    match serving.ask(&put_on(name, size)) {
        Frame::Kept { blocks } => blocks,
        reply => panic!("{reply:?}"),
    }
}

/// The partial file in this directory, if there is one.
fn partial_in(dir: &Path) -> Option<PathBuf> {
    let partial = |name: &OsString| name.as_bytes().starts_with(b".haul-") && name.as_bytes().ends_with(b".part");
    names(dir).into_iter().find(partial).map(|name| dir.join(name))
}

/// A server on a root where the first `arrived` bytes of `content` are kept for the name `f`.
#[track_caller]
fn interrupted(backend: &str, content: &[u8], arrived: usize) -> Serving {
    let mut first = resuming(backend);
    let next = first.another(backend);
    assert!(kept(&mut first, "f", content.len()).is_empty());
    first.send(&Frame::Skip { offset: 0 });
    first.send_bytes(&data(&content[..arrived]));
    // What the server has not written when the stream ends is not kept.
    let is_there = || partial_in(&next.root()).is_some_and(|partial| fs::read(partial).unwrap() == content[..arrived]);
    assert!(wait_for(LIMIT, is_there));
    let served = first.end();
    assert_eq!((served.code, served.rest), (Some(1), Vec::new()));
    assert!(is_there());
    let mut next = next;
    next.agree(RESUMING, Caps::NONE);
    next
}

/// Everything in the root is what an earlier transfer kept, and it is what arrived.
#[track_caller]
fn assert_kept(serving: &mut Serving, content: &[u8], arrived: usize) {
    let partial = partial_in(&serving.root()).expect("it is still there");
    assert_eq!(names(&serving.root()).len(), 1);
    assert!(fs::read(partial).unwrap()[..arrived] == content[..arrived]);
}

#[test]
fn what_has_arrived_is_kept_and_only_the_rest_is_sent() {
    let content = content_of(2 * BLOCK + 5);
    for backend in BACKENDS {
        let mut serving = interrupted(backend, &content, BLOCK + 77);
        assert_eq!(kept(&mut serving, "f", content.len()), chain(&content[..BLOCK]));
        serving.send(&Frame::Skip { offset: BLOCK as u64 });
        serving.send_bytes(&data(&content[BLOCK..]));
        serving.end_put(blake3_of(&content));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
        assert_eq!(names(&serving.root()), ["f"]);
        assert!(fs::read(serving.root().join("f")).unwrap() == content);
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn skips_that_break_the_rules_are_refused_once_and_what_is_kept_stays() {
    let content = content_of(2 * BLOCK + 5);
    let arrived = BLOCK + 77;
    for backend in BACKENDS {
        let mut serving = interrupted(backend, &content, arrived);
        let size = content.len() as u64;
        let offsets = [1, BLOCK - 1, BLOCK + 1, arrived, 2 * BLOCK, content.len()].map(|offset| offset as u64);
        for offset in offsets.into_iter().chain([size + 1, 1 << 63, u64::MAX, u64::MAX - 3]) {
            assert_eq!(kept(&mut serving, "f", content.len()).len(), 1);
            serving.send(&Frame::Skip { offset });
            serving.send_bytes(&data(b"more"));
            serving.end_put(blake3_of(&content));
            serving.refusal(&format!("it cannot go on at byte {offset}"));
            serving.assert_usable();
            assert_kept(&mut serving, &content, arrived);
        }
        // Before it is known what is there; twice; behind content.
        let [go_on, skip] = [put_on("f", content.len()), Frame::Skip { offset: BLOCK as u64 }];
        serving.send_bytes(&[bytes_of(&go_on, RESUMING), bytes_of(&skip, RESUMING)].concat());
        serving.end_put(blake3_of(&content));
        serving.refusal_then_usable("nothing was said to be there");
        for skips in [[BLOCK, BLOCK], [0, BLOCK], [BLOCK, 0], [0, 0]] {
            kept(&mut serving, "f", content.len());
            skips.iter().for_each(|&offset| serving.send(&Frame::Skip { offset: offset as u64 }));
            serving.end_put(blake3_of(&content));
            serving.refusal_then_usable("nothing was said to be there");
        }
        kept(&mut serving, "f", content.len());
        serving.send_bytes(&data(&content[..1]));
        serving.send(&Frame::Skip { offset: BLOCK as u64 });
        serving.end_put(blake3_of(&content));
        serving.refusal_then_usable("it cannot go on at byte");
        assert_kept(&mut serving, &content, arrived);
        // Nothing is sent, and the hash is right: it is not all there.
        kept(&mut serving, "f", content.len());
        serving.end_put(blake3_of(&content));
        serving.refusal_then_usable("received 0");
        kept(&mut serving, "f", content.len());
        serving.send(&Frame::Skip { offset: BLOCK as u64 });
        serving.end_put(blake3_of(&content));
        serving.refusal_then_usable("received 4194304");
        assert_kept(&mut serving, &content, arrived);
        // Who does not skip sends all of it.
        kept(&mut serving, "f", content.len());
        content.chunks(BLOCK).for_each(|block| serving.send_bytes(&data(block)));
        serving.end_put(blake3_of(&content));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
        assert_eq!(names(&serving.root()), ["f"]);
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn a_skip_that_belongs_to_nothing_is_refused_once() {
    for backend in BACKENDS {
        let mut serving = resuming(backend);
        fs::write(serving.root().join("f"), "old").unwrap();
        let skip = Frame::Skip { offset: 0 };
        serving.send(&skip);
        serving.refusal_then_usable("Skip");
        serving.send(&Frame::Put { path: field("f"), size: 3, offset: 0, overwrite: true });
        serving.send(&skip);
        serving.send_bytes(&data(b"new"));
        serving.end_put(blake3_of(b"new"));
        serving.refusal_then_usable("nothing was said to be there");
        serving.send(&Frame::PutChunked { path: field("f"), offset: 0, length: 3 });
        serving.send(&skip);
        serving.send_bytes(&data(b"new"));
        serving.send(&Frame::Done);
        serving.refusal_then_usable("does not belong to a range");
        serving.send(&Frame::Put { path: field("../f"), size: 3, offset: 0, overwrite: true });
        serving.send(&skip);
        serving.end_put(blake3_of(b"new"));
        serving.refusal_then_usable("'..'");
        assert_eq!(names(&serving.root()), ["f"]);
        assert_eq!(fs::read(serving.root().join("f")).unwrap(), b"old");
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn what_cannot_be_a_file_is_not_continued_and_leaves_nothing() {
    for backend in BACKENDS {
        let mut serving = resuming(backend);
        let root = serving.root();
        let outside = root.parent().unwrap().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        assert!(Command::new("mkfifo").arg(root.join("fifo")).status().unwrap().success());
        fs::write(root.join("file"), "old").unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink("../outside/new", root.join("leading-out")).unwrap();
        let before = names(&root);
        let large = [1 << 50, 1 << 62, u64::MAX].map(|size| ("large", size, "No space"));
        let table = [
            ("dir", 5, "Is a directory"),
            ("", 5, "Is a directory"),
            ("fifo", 5, "Not a regular file"),
            ("file/x", 5, "Not a directory"),
            ("../x", 5, "'..'"),
            ("out/x", 5, "escapes server root"),
            ("leading-out", 5, "escapes server root"),
            ("/etc/x", 5, "escapes server root"),
        ];
        for (name, size, why) in table.into_iter().chain(large) {
            eprintln!("{name}, {size}");
            serving.send(&Frame::Continue { path: field(name), size });
            serving.refusal(why);
            serving.send(&Frame::Skip { offset: 0 });
            serving.send_bytes(&data(b"hello"));
            serving.end_put(blake3_of(b"hello"));
            serving.assert_usable();
            assert_eq!(names(&root), before);
        }
        assert!(names(&outside).is_empty());
        // A link to a file or to nothing is replaced.
        for (link, text) in [("dangling", "new"), ("inside", "file")] {
            symlink(text, root.join(link)).unwrap();
            assert!(kept(&mut serving, link, 5).is_empty());
            serving.send(&Frame::Skip { offset: 0 });
            serving.send_bytes(&data(b"hello"));
            serving.end_put(blake3_of(b"hello"));
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(b"hello")) });
            assert!(root.join(link).symlink_metadata().unwrap().is_file());
        }
        assert!(names(&outside).is_empty());
        assert_eq!(fs::read(root.join("file")).unwrap(), b"old");
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn the_null_device_takes_what_is_continued_and_stays_what_it_is() {
    for backend in BACKENDS {
        let mut serving = resuming(backend);
        let null = serving.root().join("null");
        if !Command::new("mknod").arg(&null).args(["c", "1", "3"]).status().unwrap().success() {
            crate::support::skips::skip("devices", "devices cannot be made here", "root");
            continue;
        }
        assert!(kept(&mut serving, "null", 5).is_empty());
        serving.send(&Frame::Skip { offset: 0 });
        serving.send_bytes(&data(b"hello"));
        serving.end_put(blake3_of(b"hello"));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(b"hello")) });
        assert_eq!(names(&serving.root()), ["null"]);
        assert!(!null.symlink_metadata().unwrap().is_file());
        fs::remove_file(null).unwrap();
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn two_sessions_that_continue_one_file_do_not_mix_it() {
    let [one, other] = [content_of(BLOCK + 5), content_of(2 * BLOCK + 9).split_off(BLOCK)];
    for backend in BACKENDS {
        let mut first = interrupted(backend, &one, BLOCK + 2);
        let mut second = first.another(backend);
        second.agree(RESUMING, Caps::NONE);
        assert_eq!(kept(&mut first, "f", one.len()), chain(&one[..BLOCK]));
        // Who comes second begins at the beginning.
        assert!(kept(&mut second, "f", other.len()).is_empty());
        first.send(&Frame::Skip { offset: BLOCK as u64 });
        second.send(&Frame::Skip { offset: 0 });
        second.send_bytes(&data(&other[..BLOCK]));
        first.send_bytes(&data(&one[BLOCK..]));
        first.end_put(blake3_of(&one));
        assert_eq!(first.reply(), Frame::Ok { hash: Some(blake3_of(&one)) });
        assert!(fs::read(first.root().join("f")).unwrap() == one);
        second.send_bytes(&data(&other[BLOCK..]));
        second.end_put(blake3_of(&other));
        assert_eq!(second.reply(), Frame::Ok { hash: Some(blake3_of(&other)) });
        assert!(fs::read(first.root().join("f")).unwrap() == other);
        assert_eq!(names(&first.root()), ["f"]);
        assert_eq!((first.end().code, second.end().code), (Some(0), Some(0)));
    }
}

#[test]
fn a_client_that_goes_at_any_moment_leaves_what_was_kept_before() {
    let content = content_of(2 * BLOCK + 5);
    let arrived = BLOCK + 77;
    for backend in BACKENDS {
        let mut serving = interrupted(backend, &content, arrived);
        let moments: [&dyn Fn(&mut Serving); 5] = [
            &|serving| serving.send(&put_on("f", content.len())),
            &|serving| _ = kept(serving, "f", content.len()),
            &|serving| {
                kept(serving, "f", content.len());
                serving.send(&Frame::Skip { offset: BLOCK as u64 });
            },
            &|serving| {
                kept(serving, "f", content.len());
                serving.send(&Frame::Skip { offset: BLOCK as u64 });
                serving.send_bytes(&data(&content[BLOCK..2 * BLOCK])[..BLOCK / 2]);
            },
            &|serving| {
                kept(serving, "f", content.len());
                signal(serving.pid(), rustix::process::Signal::KILL);
            },
        ];
        for moment in moments {
            moment(&mut serving);
            let mut next = serving.another(backend);
            let served = serving.end();
            assert_ne!(served.code, Some(0));
            next.agree(RESUMING, Caps::NONE);
            serving = next;
            assert_kept(&mut serving, &content, arrived);
        }
        assert_eq!(kept(&mut serving, "f", content.len()), chain(&content[..BLOCK]));
        serving.send(&Frame::Abandon { code: ErrorCode::OTHER });
        serving.refusal("given up");
        assert_kept(&mut serving, &content, arrived);
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn requests_to_continue_that_nobody_finishes_hold_few_files_open() {
    const REQUESTS: usize = 3000;
    for backend in BACKENDS {
        let commit = bytes_of(&Frame::Commit { hash: [0; 32] }, RESUMING);
        for end in [Vec::new(), commit.clone()] {
            let is_open = end.is_empty();
            let mut serving = resuming(backend);
            let before = open_files(serving.pid());
            let mut number = 0;
            let (taken, writer) = write_beside(&mut serving, move || {
                number += 1;
                let request = bytes_of(&put_on(&format!("{number}"), 100_000), RESUMING);
                (number <= REQUESTS).then(|| [request, data(b"x"), end.clone()].concat())
            });
            let mut most = 0;
            let pid = serving.pid();
            while !writer.is_finished() {
                most = most.max(open_files(pid));
            }
            settle(pid, &taken);
            most = most.max(open_files(pid));
            // A directory and a file for each request that is worked on.
            assert!(most <= before + 2 * MAX_ACTIVE_REQUESTS + 8, "{most} open files, {before} before");
            serving.input = Some(writer.join().unwrap());
            serving.send_bytes(if is_open { &commit } else { b"" });
            let served = serving.end();
            let errors = served.rest.iter().filter(|said| matches!(said, Received::Frame(Frame::Error { .. })));
            assert_eq!(errors.count(), REQUESTS);
            assert_eq!(served.code, Some(0));
        }
    }
}

#[test]
fn a_partial_file_that_is_not_ours_alone_is_left_alone() {
    let content = content_of(BLOCK + 5);
    for backend in BACKENDS {
        let mut serving = interrupted(backend, &content, BLOCK + 1);
        let root = serving.root();
        let outside = root.parent().unwrap().join("outside");
        let partial = partial_in(&root).unwrap();
        let swaps: [(&str, &dyn Fn()); 5] = [
            ("a link that leads out", &|| {
                fs::write(&outside, "secret").unwrap();
                fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
                symlink(&outside, &partial).unwrap();
            }),
            ("a pipe", &|| assert!(Command::new("mkfifo").arg(&partial).status().unwrap().success())),
            ("a directory", &|| fs::create_dir(&partial).unwrap()),
            ("a file that others may read", &|| fs::write(&partial, &content[..BLOCK]).unwrap()),
            ("a file with another name", &|| {
                fs::write(&outside, &content[..BLOCK]).unwrap();
                fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
                fs::hard_link(&outside, &partial).unwrap();
            }),
        ];
        for (what, swap) in swaps {
            eprintln!("{what}");
            let _ = fs::remove_dir_all(&partial).or_else(|_| fs::remove_file(&partial));
            let _ = fs::remove_file(&outside);
            swap();
            let before = fs::read(&outside).ok();
            assert!(kept(&mut serving, "f", content.len()).is_empty(), "{what}");
            serving.send(&Frame::Skip { offset: 0 });
            serving.send_bytes(&data(&content[..BLOCK]));
            serving.send_bytes(&data(&content[BLOCK..]));
            serving.end_put(blake3_of(&content));
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
            assert!(fs::read(root.join("f")).unwrap() == content);
            assert!(fs::read(&outside).ok() == before, "{what}");
            fs::remove_file(root.join("f")).unwrap();
        }
        fs::remove_file(&outside).unwrap();
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn a_partial_file_of_other_content_or_length_is_found_out() {
    let content = content_of(2 * BLOCK + 5);
    for backend in BACKENDS {
        // Longer than what it shall become: its last block is not the file's.
        let mut serving = interrupted(backend, &content, 2 * BLOCK + 3);
        let short = &content[..BLOCK + 9];
        assert_eq!(kept(&mut serving, "f", short.len()), chain(&short[..BLOCK]));
        serving.send(&Frame::Skip { offset: BLOCK as u64 });
        serving.send_bytes(&data(&short[BLOCK..]));
        serving.end_put(blake3_of(short));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(short)) });
        assert!(fs::read(serving.root().join("f")).unwrap() == short);
        drop(serving);
        // All of it, with one byte changed: what it was is not what it is.
        let mut serving = interrupted(backend, &content, content.len());
        let partial = partial_in(&serving.root()).unwrap();
        fs::File::options().write(true).open(&partial).unwrap().write_all_at(b"!", BLOCK as u64).unwrap();
        let blocks = kept(&mut serving, "f", content.len());
        assert_eq!(blocks.len(), 3);
        assert!(blocks[0] == chain(&content)[0] && blocks[1] != chain(&content)[1]);
        serving.send(&Frame::Skip { offset: content.len() as u64 });
        serving.end_put(blake3_of(&content));
        assert_eq!(serving.refusal(""), ErrorCode::HASH_MISMATCH);
        assert!(!serving.root().join("f").exists());
        assert_eq!(kept(&mut serving, "f", content.len()).len(), 3);
        serving.send(&Frame::Skip { offset: BLOCK as u64 });
        serving.send_bytes(&data(&content[BLOCK..2 * BLOCK]));
        serving.send_bytes(&data(&content[2 * BLOCK..]));
        serving.end_put(blake3_of(&content));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
        assert!(fs::read(serving.root().join("f")).unwrap() == content);
        assert_eq!(names(&serving.root()), ["f"]);
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn attributes_of_what_is_continued_are_applied_as_those_of_any_file() {
    for backend in BACKENDS {
        let mut serving = resuming(backend);
        for kind in [Kind::Regular, Kind::Directory, Kind::Symlink] {
            serving.send(&put_on("f", 5));
            let attributes = Attributes { mode: 0o7777, ..attributes(kind, 99) };
            serving.send(&Frame::Meta { attributes, preserve: Preserve::default() });
            assert!(matches!(serving.reply(), Frame::Kept { .. }));
            serving.send(&Frame::Skip { offset: 0 });
            serving.send_bytes(&data(b"hello"));
            serving.end_put(blake3_of(b"hello"));
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(b"hello")) });
            let found = serving.root().join("f").symlink_metadata().unwrap();
            assert!(found.is_file() && found.len() == 5);
            assert_eq!(found.permissions().mode() & 0o7000, 0);
        }
        assert_eq!(serving.end().code, Some(0));
    }
}
