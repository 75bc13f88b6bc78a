//! Peers that send without reading: whatever either end does first, nobody waits for the other for ever.

use crate::support::frames::{
    BASES, DIALECTS, FULL, FarEnd, Serving, attributes, blake3_of, bytes_of, data, field, play,
};
use crate::support::pressure::{MEMORY, peak_memory, settle, write_beside};
use crate::support::processes::LIMIT;
use crate::support::{BACKENDS, Pipes, Remote, random_file};
use haul_engine::wire::frame::{Dialect, Frame, Kind, ListEntry, Preserve, TreeEntry};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

const BLOCK: usize = 4 << 20;
/// Two blocks of the protocol.
const SIZE: usize = 2 * BLOCK;
const PAIRS: usize = 25;
/// Fewer than a client asks for at once.
const FILES: usize = 16;

fn content(seed: usize) -> Vec<u8> {
    let mut content = vec![0; SIZE];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

/// One Get and one Put after the other, `PAIRS` times, all written by somebody who does not read. With `late` reading
/// begins only when the server takes nothing any more.
fn gets_and_puts(backend: &str, dialect: Dialect, late: bool) {
    eprintln!("{backend}, {dialect:?}, late: {late}");
    let mut serving = Serving::greeted(backend, dialect);
    let (down, up) = (content(1), content(2));
    fs::write(serving.root().join("down"), &down).unwrap();
    let hash = blake3_of(&up);
    let end = if dialect == FULL { Frame::Commit { hash } } else { Frame::Done };
    let mut number = 0;
    let (taken, writer) = write_beside(&mut serving, move || {
        let put =
            Frame::Put { path: field(format!("up-{}", number % 3)), size: SIZE as u64, offset: 0, overwrite: true };
        let pair = [
            bytes_of(&Frame::Get { path: field("down"), offset: 0 }, dialect),
            bytes_of(&put, dialect),
            data(&up[..BLOCK]),
            data(&up[BLOCK..]),
            bytes_of(&end, dialect),
        ];
        number += 1;
        (number <= PAIRS).then(|| pair.concat())
    });
    if late {
        // It waits for somebody to read: it does not keep everything in memory.
        assert!(settle(serving.pid(), &taken) < (PAIRS * SIZE) as u64);
    }
    for number in 0..PAIRS {
        assert!(serving.got() == down, "{number}");
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(hash) }, "{number}");
    }
    serving.input = Some(writer.join().unwrap());
    let peak = peak_memory(serving.pid());
    assert!(peak < MEMORY, "{} MiB", peak >> 20);
    for number in 0..3 {
        assert_eq!(blake3_of(&fs::read(serving.root().join(format!("up-{number}"))).unwrap()), hash);
    }
    serving.assert_usable();
    assert_eq!(serving.end().code, Some(0));
}

#[test]
fn a_client_that_writes_everything_while_it_reads_gets_everything() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        gets_and_puts(backend, dialect, false);
    }
}

#[test]
fn a_client_that_reads_only_when_the_server_takes_nothing_any_more_gets_everything() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        gets_and_puts(backend, dialect, true);
    }
}

fn name(number: usize) -> String {
    format!("file-{number:02}")
}

/// Runs `haul copy ARGS..` against a server that is played by `act`.
fn copy(backend: &str, words: Vec<OsString>, act: impl FnOnce(&mut FarEnd) + Send) {
    let args = |pipes: &Pipes| ["copy".into()].into_iter().chain(pipes.args()).chain(words).collect();
    play(backend, LIMIT, args, act).assert_exit(0);
}

/// Answers what is asked about the source: a directory with the files.
fn list(far: &mut FarEnd) {
    far.looked_up(Some(attributes(Kind::Directory, 0)));
    let reply = match far.request() {
        Frame::Tree { .. } => {
            let entry = |number| TreeEntry {
                path: field(name(number)),
                attributes: attributes(Kind::Regular, SIZE as u64),
                link: Vec::new(),
                error: Default::default(),
            };
            Frame::TreePage { last: true, entries: (0..FILES).map(entry).collect() }
        }
        Frame::List { .. } => {
            let entry = |number| ListEntry { path: field(name(number)), size: SIZE as u64, mtime: 5, is_dir: false };
            Frame::ListResponse { entries: (0..FILES).map(entry).collect() }
        }
        other => panic!("{other:?}"),
    };
    far.send(&reply);
}

#[test]
fn a_server_that_sends_all_its_answers_before_it_reads_on_is_read() {
    let contents: Vec<Vec<u8>> = (0..FILES).map(content).collect();
    for (backend, dialect) in
        BACKENDS.into_iter().flat_map(|backend| [BASES[0], FULL].map(|dialect| (backend, dialect)))
    {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let target = dir.path().join("target");
        copy(backend, vec!["-rT".into(), "far:source".into(), target.clone().into()], |far| {
            far.greet(dialect);
            list(far);
            let first = far.request();
            assert!(matches!(first, Frame::Get { .. }), "{first:?}");
            for content in &contents {
                if dialect == FULL {
                    let attributes = attributes(Kind::Regular, SIZE as u64);
                    far.send(&Frame::Meta { attributes, preserve: Preserve::default() });
                }
                content.chunks(BLOCK).for_each(|block| far.send_bytes(&data(block)));
                far.send(&Frame::Ok { hash: Some(blake3_of(content)) });
            }
            for _ in 1..FILES {
                assert!(matches!(far.request(), Frame::Get { .. }));
            }
            far.drain();
        });
        for (number, content) in contents.iter().enumerate() {
            assert!(fs::read(target.join(name(number))).unwrap() == *content, "{number}");
        }
    }
}

fn sources(dir: &Path) -> Vec<OsString> {
    let source = |number| {
        let path = dir.join(name(number));
        random_file(&path, SIZE, number as u64);
        path.into_os_string()
    };
    (0..FILES).map(source).collect()
}

#[test]
fn a_server_that_reads_late_and_answers_last_gets_everything() {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let mut words = sources(dir.path());
    words.push("far:target/".into());
    for (backend, dialect) in
        BACKENDS.into_iter().flat_map(|backend| [BASES[0], FULL].map(|dialect| (backend, dialect)))
    {
        copy(backend, words.clone(), |far| {
            far.greet(dialect);
            far.looked_up(Some(attributes(Kind::Directory, 0)));
            // The client fills what there is between the two, and waits.
            std::thread::sleep(Duration::from_millis(500));
            let mut replies = Vec::new();
            while replies.len() < FILES {
                match far.request() {
                    Frame::Put { size, .. } => assert_eq!(size, SIZE as u64),
                    Frame::Meta { .. } => {}
                    Frame::Done | Frame::Commit { .. } => {
                        let content = fs::read(dir.path().join(name(replies.len()))).unwrap();
                        replies.push(Frame::Ok { hash: Some(blake3_of(&content)) });
                    }
                    other => panic!("{other:?}"),
                }
            }
            replies.iter().for_each(|reply| far.send(reply));
            far.drain();
        });
    }
}
