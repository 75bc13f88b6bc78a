//! Uploads without a hash between two hauls (FAST and FASTPUT): what is on the wire, what is said about it, and what gets a
//! name however a client ends them.

use crate::support::frames::{FULL, RESUMING, Serving, blake3_of, data, field, play};
use crate::support::interop::raw::{self, Raw, kind};
use crate::support::kept::summary;
use crate::support::processes::{LIMIT, assert_nobody_at_home, names};
use crate::support::record::{Record, Wire};
use crate::support::routes::{finish, json_lines, of_type};
use crate::support::{BACKENDS, Remote, assert_exit, at, hash_of, haul, random_file, trees};
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Frame};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Output;

const MIB: usize = 1 << 20;
/// Commit, between two haul peers.
const COMMIT: u8 = 0x43;

fn pairs() -> impl Iterator<Item = (&'static str, &'static str)> {
    BACKENDS.into_iter().flat_map(|near| BACKENDS.map(|far| (near, far)))
}

fn up(near: &str, record: &Record, flags: &[&str], source: &Path, target: &Path) -> Output {
    let mut args: Vec<OsString> = ["copy", "--fast", "--json"].iter().chain(flags).map(OsString::from).collect();
    args.extend(record.pipes.args());
    args.extend([source.into(), at(&record.pipes, target)]);
    let output = finish(haul(near, args));
    assert_nobody_at_home(&record.pipes.home(), LIMIT);
    output
}

/// How the one Put of the one connection ended, and the hash in the answer to it.
fn end_of_put(wire: &Wire) -> (u8, Option<String>) {
    let sessions = wire.sessions();
    let [session] = &sessions[..] else { panic!("{} connections", sessions.len()) };
    let (up, down) = (session.up(), session.down());
    let ends: Vec<u8> = raw::split(&up).unwrap().iter().map(|frame| frame.kind).collect();
    let ends: Vec<u8> = ends.into_iter().filter(|kind| [kind::DONE, COMMIT].contains(kind)).collect();
    let oks: Vec<_> = raw::split(&down).unwrap().iter().filter_map(Raw::ok).collect();
    let ([end], [ok]) = (&ends[..], &oks[..]) else { panic!("{ends:?}, {oks:?}") };
    (*end, ok.clone())
}

/// The one line about a file, and the summary.
fn told(output: &Output) -> (Value, Value) {
    let lines = json_lines(output);
    let [file] = of_type(&lines, "file")[..] else { panic!("{lines:?}") };
    (file.clone(), summary(output))
}

#[test]
fn a_fast_upload_of_any_size_has_no_hash_and_says_so() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    for size in [0, 1, 64 * 1024, 64 * 1024 + 1, 3 * MIB + 1, 20 * MIB] {
        random_file(&source, size, 3);
        for (near, far) in pairs() {
            for flags in [&[][..], &["-C"], &["--compress=zstd"], &["--dedup"]] {
                eprintln!("{near}, {far}, {size}, {flags:?}");
                let record = Record::new(far, "");
                let output = up(near, &record, flags, &source, &target);
                assert_exit(&output, 0);
                assert_eq!(hash_of(&target), hash_of(&source));
                let (file, summary) = told(&output);
                // What is offered in blocks, or might be continued, is hashed.
                let hashed = flags == ["--dedup"] && size >= 16 * MIB || flags == ["-C"] && size >= MIB;
                let hash = hashed.then(|| hash_of(&source));
                assert_eq!((&file["verified"], &file["blake3"]), (&hashed.into(), &hash.clone().into()));
                assert_eq!(summary["verified"], hashed);
                assert_eq!(end_of_put(&record.wire), (if hashed { COMMIT } else { kind::DONE }, hash));
                fs::remove_file(&target).unwrap();
            }
        }
    }
}

#[test]
fn with_v_both_ends_read_again_what_went_up_without_a_hash() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    for size in [0, 1, 100_000, 5 * MIB] {
        random_file(&source, size, 4);
        for (near, far) in pairs() {
            let record = Record::new(far, "");
            let output = up(near, &record, &["-V"], &source, &target);
            assert_exit(&output, 0);
            let (file, _) = told(&output);
            assert_eq!((&file["verified"], &file["blake3"]), (&true.into(), &hash_of(&source).into()));
            assert_eq!(end_of_put(&record.wire), (kind::DONE, None));
        }
    }
}

#[test]
fn with_v_a_copy_that_is_not_what_was_sent_is_a_failure() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    random_file(&source, 100_000, 5);
    for backend in BACKENDS {
        for (flags, code) in [(&["--fast"][..], 0), (&["--fast", "-V"], 23)] {
            let args = |pipes: &crate::support::Pipes| {
                let words = ["copy", "--compress=none"].iter().chain(flags).map(OsString::from);
                words.chain(pipes.args()).chain([source.clone().into(), "far:f".into()]).collect()
            };
            let ended = play(backend, LIMIT, args, |far| {
                far.greet_with(RESUMING, Caps::FAST);
                far.looked_up(None);
                assert!(matches!(far.request(), Frame::Put { size: 100_000, offset: 0, .. }));
                assert!(matches!(far.request(), Frame::Meta { .. }));
                assert_eq!(far.request(), Frame::Done);
                far.send(&Frame::Ok { hash: None });
                if code != 0 {
                    assert!(matches!(far.request(), Frame::Hash { offset: 0, limit: None, .. }));
                    far.send(&Frame::HashResponse { hash: blake3_of(b"something else") });
                }
                far.drain();
            });
            ended.assert_exit(code);
            assert_eq!(ended.stderr.contains("the server's copy has another hash; it is bad"), code != 0, "{ended:?}");
        }
    }
}

/// A server that takes files without a hash, with an old one.
fn serving(backend: &str, dialect: Dialect, caps: Caps) -> Serving {
    let serving = Serving::agreed(backend, dialect, caps);
    fs::write(serving.root().join("f"), "old").unwrap();
    serving
}

fn put(size: usize) -> Frame {
    Frame::Put { path: field("f"), size: size as u64, offset: 0, overwrite: true }
}

/// What was agreed on, what is sent, and why it is refused, if so.
type Case = (&'static str, Dialect, Caps, Vec<u8>, Option<&'static str>);

#[test]
fn done_ends_a_put_only_where_all_of_it_was_agreed_on_and_came() {
    // Received into memory, and written as it comes.
    for (backend, size) in BACKENDS.into_iter().flat_map(|backend| [1000, 300_000].map(|size| (backend, size))) {
        let content = vec![7; size];
        let body = |len: usize| data(&vec![7; len]);
        let table: [Case; 9] = [
            ("whole", RESUMING, Caps::FAST, body(size), None),
            ("short", RESUMING, Caps::FAST, body(size - 1), Some("incomplete")),
            ("long", RESUMING, Caps::FAST, body(size + 1), Some("past the declared size")),
            ("nothing", RESUMING, Caps::FAST, Vec::new(), Some("incomplete")),
            ("without FAST", RESUMING, Caps::NONE, body(size), Some("without the sender's hash")),
            ("without FASTPUT", FULL, Caps::FAST, body(size), Some("without the sender's hash")),
            ("given up", RESUMING, Caps::FAST, body(size), Some("given up")),
            ("cut off by a request", RESUMING, Caps::FAST, body(size), Some("without the sender's hash")),
            ("blocks", RESUMING, Caps::FAST.or(Caps::DEDUP), Vec::new(), Some("without the sender's hash")),
        ];
        for (name, dialect, caps, body, refused) in table {
            eprintln!("{backend}, {size}: {name}");
            let mut serving = serving(backend, dialect, caps);
            serving.send(&put(size));
            if name == "blocks" {
                let have = Frame::HaveBlocks { block_size: 4 << 20, hashes: vec![blake3_of(&content)] };
                assert!(matches!(serving.ask(&have), Frame::MissingBlocks { .. }));
                serving.send_bytes(&data(&content));
            }
            serving.send_bytes(&body);
            match name {
                "given up" => serving.send(&Frame::Abandon { code: ErrorCode::OTHER }),
                "cut off by a request" => {}
                _ => serving.send(&Frame::Done),
            }
            match refused {
                Some(words) => serving.refusal_then_usable(words),
                None => {
                    assert_eq!(serving.reply(), Frame::Ok { hash: None });
                    serving.assert_usable();
                }
            };
            let found = fs::read(serving.root().join("f")).unwrap();
            assert!(if refused.is_some() { found == b"old" } else { found == content }, "{name}");
            assert_eq!(names(&serving.root()), ["f"]);
            assert_eq!(serving.end().code, Some(0));
        }
    }
}

#[test]
fn a_hash_that_is_committed_all_the_same_is_compared_before_the_file_gets_its_name() {
    for (backend, size) in BACKENDS.into_iter().flat_map(|backend| [0, 1000, 300_000].map(|size| (backend, size))) {
        let content = vec![7; size];
        let mut serving = serving(backend, RESUMING, Caps::FAST);
        for (hash, right) in [(blake3_of(b"other"), false), (blake3_of(&content), true)] {
            serving.send(&put(size));
            serving.send_bytes(&data(&content));
            serving.send(&Frame::Commit { hash });
            if right {
                assert_eq!(serving.reply(), Frame::Ok { hash: Some(hash) });
                assert!(fs::read(serving.root().join("f")).unwrap() == content);
            } else {
                assert_eq!(serving.refusal(""), ErrorCode::HASH_MISMATCH);
                assert_eq!(fs::read(serving.root().join("f")).unwrap(), b"old");
            }
        }
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn a_source_that_changes_while_it_is_sent_without_a_hash_is_abandoned_and_sent_once_more() {
    for backend in BACKENDS {
        let dir = trees::scratch();
        let source = dir.path().join("source");
        // More than pipes and queues hold.
        random_file(&source, 64 * MIB, 6);
        let args = |pipes: &crate::support::Pipes| {
            let words = ["copy", "--fast"].iter().map(OsString::from);
            words.chain(pipes.args()).chain([source.clone().into(), "far:f".into()]).collect()
        };
        let ended = play(backend, LIMIT, args, |far| {
            far.greet_with(RESUMING, Caps::FAST);
            far.looked_up(None);
            assert!(matches!(far.request(), Frame::Put { .. }));
            assert!(matches!(far.request(), Frame::Meta { .. }));
            fs::File::options().write(true).open(&source).unwrap().set_len(100).unwrap();
            let end = far.request();
            assert!(matches!(end, Frame::Abandon { .. }), "{end:?}");
            far.send(&Frame::Error { message: b"given up".to_vec(), code: ErrorCode::ABANDONED });
            assert!(matches!(far.request(), Frame::Put { size: 100, .. }));
            assert!(matches!(far.request(), Frame::Meta { .. }));
            assert_eq!(far.request(), Frame::Done);
            far.send(&Frame::Ok { hash: None });
            far.drain();
        });
        ended.assert_exit(0);
    }
}
