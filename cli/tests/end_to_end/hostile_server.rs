//! The real client against servers that lie, babble, stop or go silent: a clear line, the right exit code, nothing under
//! a final name that was not proved, and nothing at all outside the target.

use crate::support::frames::{FULL, FarEnd, attributes, blake3_of, bytes_of, data, field, play_hurried};
use crate::support::processes::{Ended, LIMIT, names};
use crate::support::{BACKENDS, Remote, random_file};
use haul_engine::wire::frame::{Attributes, Caps, Dialect, ErrorCode, Frame, Hash, Kind, Preserve};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BASE: Dialect = Dialect::BASE;
const BOTH: [Dialect; 2] = [BASE, FULL];
/// A size that is received into memory first, and one that is written as it comes.
const SIZES: [usize; 2] = [1000, 300_000];

/// What one run saw and left.
struct Scene {
    dir: tempfile::TempDir,
    ended: Ended,
}

impl Scene {
    /// The directory copied into.
    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    /// Fails unless there is nothing but these names, and what stood there before is as it was.
    #[track_caller]
    fn assert_left(&self, expected: &[&str]) {
        assert_eq!(names(&self.to()), expected, "{:?}", self.ended);
        assert_eq!(names(self.dir.path()), ["elsewhere", "from", "to"]);
        assert!(names(&self.dir.path().join("elsewhere")).is_empty());
        let old = self.to().join("old");
        assert!(!old.exists() || fs::read(old).unwrap() == b"old");
    }

    /// Fails unless this exit code was explained by one line of its own, without anything that acts on a terminal.
    #[track_caller]
    fn assert_said(&self, code: i32, line: &str) {
        self.ended.assert_exit(code);
        let lines: Vec<&str> = self.ended.lines().into_iter().filter(|line| !line.starts_with("hint: ")).collect();
        assert!(
            matches!(&lines[..], [said] if said.starts_with("haul: ") && said.contains(line)),
            "{lines:?}, not {line}"
        );
        assert!(!self.ended.stderr.chars().any(|c| c.is_control() && c != '\n'), "{:?}", self.ended.stderr);
    }
}

/// Runs `haul copy FLAGS far:SOURCE DIR/to/TARGET`, with `old` in DIR/to, DIR/elsewhere and `act` as the far end.
fn download(backend: &str, flags: &[&str], source: &str, target: &str, act: impl FnOnce(&mut FarEnd) + Send) -> Scene {
    run(backend, LIMIT, act, |dir| {
        let mut words: Vec<_> = flags.iter().map(Into::into).collect();
        words.push(format!("far:{source}").into());
        words.push(dir.join("to").join(target).into());
        words
    })
}

/// Runs `haul copy DIR/from/f far:target` with a file of `size` bytes.
fn upload(backend: &str, size: usize, limit: Duration, act: impl FnOnce(&mut FarEnd) + Send) -> Scene {
    run(backend, limit, act, |dir| {
        random_file(&dir.join("from/f"), size, 3);
        vec![dir.join("from/f").into(), "far:target".into()]
    })
}

fn run(
    backend: &str,
    limit: Duration,
    act: impl FnOnce(&mut FarEnd) + Send,
    operands: impl FnOnce(&Path) -> Vec<std::ffi::OsString>,
) -> Scene {
    run_hurried(backend, "", limit, act, operands)
}

fn run_hurried(
    backend: &str,
    timeouts: &str,
    limit: Duration,
    act: impl FnOnce(&mut FarEnd) + Send,
    operands: impl FnOnce(&Path) -> Vec<std::ffi::OsString>,
) -> Scene {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    for name in ["elsewhere", "from", "to"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("to/old"), "old").unwrap();
    let words = operands(dir.path());
    let args = |pipes: &crate::support::Pipes| ["copy".into()].into_iter().chain(pipes.args()).chain(words).collect();
    let ended = play_hurried(backend, timeouts, limit, args, act);
    Scene { dir, ended }
}

fn file(size: usize) -> Attributes {
    attributes(Kind::Regular, size as u64)
}

fn error(text: &[u8], errno: u16) -> Frame {
    Frame::Error { message: text.to_vec(), code: ErrorCode(4096 + errno) }
}

/// Answers Get: Meta (where it exists) with `announced` bytes, then this content, then Ok with this hash.
fn serve(far: &mut FarEnd, announced: usize, content: &[u8], hash: Hash) {
    let request = far.request();
    assert!(matches!(request, Frame::Get { offset: 0, .. }), "{request:?}");
    if far.dialect == FULL {
        far.send(&Frame::Meta { attributes: file(announced), preserve: Preserve::default() });
    }
    content.chunks(100_000).for_each(|block| far.send_bytes(&data(block)));
    far.send(&Frame::Ok { hash: Some(hash) });
}

#[test]
fn a_server_that_behaves_is_believed() {
    for (backend, dialect, size) in cases() {
        let content = vec![7; size];
        let scene = download(backend, &[], "f", "old", |far| {
            far.greet(dialect);
            far.looked_up(Some(file(size)));
            serve(far, size, &content, blake3_of(&content));
            far.drain();
        });
        scene.ended.assert_exit(0);
        assert_eq!(fs::read(scene.to().join("old")).unwrap(), content);
    }
}

#[test]
fn a_server_that_never_leaves_does_not_keep_the_client() {
    for backend in BACKENDS {
        let scene = download(backend, &[], "f", "old", |far| {
            far.greet(FULL);
            far.looked_up(Some(file(3)));
            serve(far, 3, b"new", blake3_of(b"new"));
            far.hold();
        });
        scene.ended.assert_exit(0);
        assert_eq!(fs::read(scene.to().join("old")).unwrap(), b"new");
    }
}

#[test]
fn numbers_that_come_with_errors_decide_the_exit_code_and_the_hint() {
    let table = [
        (13, 23, None),
        (5, 11, None),
        (28, 11, Some("hint: the target's file system is full; the old file, if any, is untouched")),
        (122, 11, Some("hint: the target's disk quota is used up; the old file, if any, is untouched")),
        (30, 23, Some("hint: the target's file system is mounted read-only")),
        (36, 23, Some("hint: most file systems allow 255 bytes for one name")),
    ];
    for (backend, (errno, code, hint)) in BACKENDS.into_iter().flat_map(|backend| table.map(|row| (backend, row))) {
        let scene = upload(backend, SIZES[1], LIMIT, |far| {
            far.greet(FULL);
            far.looked_up(None);
            far.request();
            far.send(&error(b"cannot create: some reason", errno));
            far.drain();
        });
        scene.assert_said(code, "far:target: cannot create: some reason");
        assert_eq!(scene.ended.lines().get(1).copied(), hint);
    }
}

fn cases() -> impl Iterator<Item = (&'static str, Dialect, usize)> {
    let of = |backend| BOTH.into_iter().flat_map(move |dialect| SIZES.map(|size| (backend, dialect, size)));
    BACKENDS.into_iter().flat_map(of)
}

#[test]
fn content_that_is_not_what_was_announced_or_hashed_never_gets_its_name() {
    for (backend, dialect, size) in cases() {
        let content = vec![7; size];
        let right = blake3_of(&content);
        let longer = vec![7; size + 1];
        let table: [(&[u8], Hash, &str); 5] = [
            (&content, blake3_of(b"other"), "old: not published: Content does not match its hash"),
            (&content[1..], blake3_of(&content[1..]), "received"),
            (&[], blake3_of(b""), "received 0"),
            (&content[1..], right, "received"),
            (&longer, blake3_of(&longer), "content goes past the declared size"),
        ];
        for (sent, hash, why) in table {
            for target in ["old", "new"] {
                let scene = download(backend, &[], "f", target, |far| {
                    far.greet(dialect);
                    far.looked_up(Some(file(size)));
                    serve(far, size, sent, hash);
                    far.drain();
                });
                scene.assert_said(23, &why.replace("old", target));
                scene.assert_left(&["old"]);
            }
        }
        // An Error after some content means that it is not the file.
        let scene = download(backend, &[], "f", "old", |far| {
            far.greet(dialect);
            far.looked_up(Some(file(size)));
            far.request();
            far.send_bytes(&data(&content));
            far.send(&error(b"cannot read: Input/output error", 5));
            far.drain();
        });
        scene.assert_said(if dialect == FULL { 11 } else { 23 }, "far:f: cannot read: Input/output error");
        scene.assert_left(&["old"]);
    }
}

#[test]
fn an_upload_that_the_server_hashes_differently_is_called_bad() {
    for (backend, dialect, size) in cases() {
        for hash in [Some(blake3_of(b"other")), None] {
            let scene = upload(backend, size, LIMIT, |far| {
                far.greet(dialect);
                far.looked_up(None);
                while !matches!(far.request(), Frame::Done | Frame::Commit { .. }) {}
                far.send(&Frame::Ok { hash });
                far.drain();
            });
            scene.assert_said(23, "far:target: cannot verify: the server's copy has another hash; it is bad");
        }
    }
}

type Act = fn(&mut FarEnd);

#[test]
fn replies_that_were_not_asked_for_end_the_run_as_a_broken_protocol() {
    let downloads: [(&str, Act); 10] = [
        ("the server sent", |far| far.send_bytes(&data(b"surprise"))),
        ("another reply than asked for", |far| answered(far, &Frame::Ok { hash: None })),
        ("another reply than asked for", |far| answered(far, &Frame::HashResponse { hash: [0; 32] })),
        ("another reply than asked for", |far| {
            answered(far, &Frame::Welcome { version: 1, caps: Caps::NONE, ext: None });
        }),
        ("another reply than asked for", |far| answered(far, &Frame::Stat { path: field("/etc/passwd") })),
        ("data that was not asked for", |far| {
            far.request();
            far.send_bytes(&data(b"surprise"));
        }),
        ("reply", |far| {
            far.request();
            let found = bytes_of(&Frame::AttributesResponse { attributes: file(5), link: vec![] }, FULL);
            far.send_bytes(&found.repeat(2));
        }),
        ("answered Get with another reply", |far| get_answered(far, &Frame::Ok { hash: None })),
        ("answered Get with another reply", |far| {
            get_answered(far, &Frame::Meta { attributes: file(9), preserve: Preserve::default() });
        }),
        ("answered Get with another reply", |far| get_answered(far, &Frame::TreePage { last: true, entries: vec![] })),
    ];
    for (backend, (words, act)) in BACKENDS.into_iter().flat_map(|backend| downloads.map(|row| (backend, row))) {
        let scene = download(backend, &[], "f", "old", |far| {
            far.greet(FULL);
            act(far);
            far.drain();
        });
        scene.assert_said(2, "protocol error: the server ");
        assert!(scene.ended.stderr.contains(words), "{}", scene.ended.stderr);
        scene.assert_left(&["old"]);
    }
    for backend in BACKENDS {
        for reply in [
            Frame::Ok { hash: None },
            Frame::Ok { hash: Some([0; 32]) },
            Frame::StatResponse { size: 1, mtime: 1, is_dir: false },
        ] {
            let scene = upload(backend, 64 << 20, LIMIT, |far| {
                far.greet(FULL);
                far.looked_up(None);
                // Before all of it has been sent.
                far.request();
                far.send(&reply);
                far.drain();
            });
            scene.assert_said(2, "protocol error: the server answered Put with another reply");
        }
    }
}

/// Takes the question about the path and answers it with `reply`.
fn answered(far: &mut FarEnd, reply: &Frame) {
    far.request();
    far.send(reply);
}

/// Takes the question about the path and the Get, and answers the latter with Meta and `reply`.
fn get_answered(far: &mut FarEnd, reply: &Frame) {
    far.looked_up(Some(file(5)));
    far.request();
    far.send(&Frame::Meta { attributes: file(5), preserve: Preserve::default() });
    far.send(reply);
}

#[test]
fn malformed_frames_end_the_run_as_a_broken_protocol() {
    let framed = |type_byte: u8, body: &[u8]| [&(body.len() as u32 + 1).to_le_bytes()[..], &[type_byte], body].concat();
    let table: [(&str, Dialect, Vec<u8>); 12] = [
        ("of length 0", FULL, vec![0; 4]),
        ("16 MiB", FULL, vec![1, 0, 0, 1, 0x82]),
        ("16 MiB", FULL, b"bash: warning\n".to_vec()),
        ("unknown type 0x7f", FULL, framed(0x7f, b"")),
        ("unknown type 0x40", FULL, framed(0x40, &[0; 10])),
        ("unknown type 0xc0", BASE, framed(0xc0, &[0; 10])),
        ("ends too early", FULL, framed(0xc0, &[1, 0xff, 0xff, 0xff, 0xff, 1, 2, 3])),
        ("elements", BASE, framed(0x87, &[0, 0, 0x20, 0, 1, 2, 3])),
        ("ends too early", BASE, framed(0x85, &[1, 2, 3])),
        ("unknown file kind 9", FULL, framed(0xc2, &[9; 37])),
        ("not UTF-8", BASE, framed(0x83, &[1, 0, 0, 0, 0xff])),
        ("malformed hash", BASE, framed(0x86, &[2, 0, 0, 0, b'x', b'y'])),
    ];
    for (backend, (words, dialect, bytes)) in BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row))) {
        let scene = download(backend, &[], "f", "old", |far| {
            far.greet(*dialect);
            far.request();
            far.send_bytes(bytes);
            far.drain();
        });
        scene.assert_said(2, "protocol error: the peer ");
        assert!(scene.ended.stderr.contains(words), "{words}: {}", scene.ended.stderr);
        scene.assert_left(&["old"]);
    }
}

#[test]
fn a_connection_that_ends_early_is_a_broken_stream() {
    let acts: [Act; 4] = [
        |_| {},
        |far| far.send_bytes(&[9, 0, 0]),
        |far| far.looked_up(Some(file(300_000))),
        |far| {
            far.looked_up(Some(file(300_000)));
            far.request();
            far.send(&Frame::Meta { attributes: file(300_000), preserve: Preserve::default() });
            far.send_bytes(&data(&[7; 300_000])[..200_000]);
        },
    ];
    for (backend, act) in BACKENDS.into_iter().flat_map(|backend| acts.map(|act| (backend, act))) {
        let scene = download(backend, &[], "f", "old", |far| {
            far.greet(FULL);
            act(far);
        });
        scene.assert_said(12, "connection lost: ");
        scene.assert_left(&["old"]);
    }
}

#[test]
fn a_server_that_does_not_greet_well_is_told_from_one_of_another_version() {
    let error = |text: &str| bytes_of(&Frame::Error { message: text.into(), code: ErrorCode(0) }, BASE);
    let table = [
        (2, "version mismatch: client=1 server=9", error("protocol version mismatch: client=1 server=9")),
        (2, "handshake: not today", error("not today")),
        (5, "handshake: the server's first frame was not Welcome", bytes_of(&Frame::Ok { hash: None }, BASE)),
        (5, "handshake: the peer announced a frame", b"Welcome to this machine\n".to_vec()),
        (5, "handshake: the server closed the connection without an answer", Vec::new()),
        (5, "handshake: ", vec![3, 0, 0]),
    ];
    for (backend, (code, line, bytes)) in BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row))) {
        let scene = download(backend, &[], "f", "old", |far| {
            far.request();
            far.send_bytes(bytes);
        });
        scene.assert_said(*code, line);
        scene.assert_left(&["old"]);
    }
}

#[test]
fn a_server_that_claims_more_than_was_asked_for_gets_only_that() {
    for backend in BACKENDS {
        let scene = download(backend, &[], "f", "new", |far| {
            far.request();
            let ext = Some(haul_engine::wire::frame::Ext(u32::MAX));
            far.send_bytes(&bytes_of(&Frame::Welcome { version: 200, caps: Caps(0xff), ext }, BASE));
            far.agree(FULL);
            far.looked_up(Some(file(3)));
            serve(far, 3, b"abc", blake3_of(b"abc"));
            far.drain();
        });
        scene.ended.assert_exit(0);
        assert_eq!(fs::read(scene.to().join("new")).unwrap(), b"abc");
    }
}

#[test]
fn silent_servers_are_given_up_after_a_while() {
    // What the two limits are made here; they are half a minute and a minute.
    let (handshake, stall) = (Duration::from_secs(2), Duration::from_secs(4));
    let table: [(i32, Duration, &str, Act); 3] = [
        (35, handshake, "handshake: the server did not answer in time", FarEnd::drain),
        (35, handshake, "handshake: the server did not answer in time", |far| {
            far.request();
            far.send_bytes(&[3, 0, 0, 0]);
            far.drain();
        }),
        (30, stall, "has read nothing for 4 s", |far| {
            far.greet(FULL);
            far.looked_up(None);
            far.hold();
        }),
    ];
    std::thread::scope(|scope| {
        for (backend, (code, limit, line, act)) in BACKENDS.into_iter().flat_map(|b| table.map(|row| (b, row))) {
            scope.spawn(move || {
                let patient = limit + Duration::from_secs(20);
                let scene = run_hurried(backend, "3000,30000,2000,4000", patient, act, |dir| {
                    random_file(&dir.join("from/f"), 64 << 20, 3);
                    vec![dir.join("from/f").into(), "far:target".into()]
                });
                scene.assert_said(code, line);
                assert!(scene.ended.took >= limit, "{:?}", scene.ended.took);
            });
        }
    });
}

#[test]
fn words_of_the_server_cannot_act_on_the_terminal() {
    let words = b"no\x1b[2J\x1b]0;owned\x07\r\n\xe2\x80\xaedaeh\xff\xc2\x9b31m";
    let shown = "no\\x1b[2J\\x1b]0;owned\\x07\\r\\n\\u{202e}daeh\\xff\\u{9b}31m";
    for backend in BACKENDS {
        let scene = download(backend, &[], "f", "old", |far| {
            far.greet(FULL);
            far.request();
            far.send(&error(words, 13));
            far.drain();
        });
        scene.assert_said(23, &format!("far:f: {shown}"));
        let scene = download(backend, &[], "f", "old", |far| {
            far.request();
            let words = String::from_utf8_lossy(words).into_owned().into_bytes();
            far.send(&Frame::Error { message: words, code: ErrorCode(0) });
        });
        scene.assert_said(2, "handshake: no\\x1b[2J");
    }
}
