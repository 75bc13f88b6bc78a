//! Hello and Welcome from those who say them twice, too late, with numbers that nobody knows and with bytes too many or too
//! few: what was agreed on last is in force, no more than both have, and everything else is an error and no end.

use crate::support::frames::{
    BASES, DIALECTS, FULL, FarEnd, RESUMING, Received, Serving, attributes, blake3_of, bytes_of, data, field, hello,
    hello_with, play,
};
use crate::support::processes::{Ended, LIMIT, names};
use crate::support::{BACKENDS, Remote};
use haul_engine::wire::frame::{Caps, Dialect, Ext, Frame, Kind, Preserve};
use std::fs;
use std::path::PathBuf;

/// What haul serves in every session.
const SERVED: u8 = 0xbf;

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 1).to_le_bytes()[..], &[kind], body].concat()
}

fn welcome(version: u8, caps: u8, ext: Option<u32>) -> Frame {
    Frame::Welcome { version, caps: Caps(caps), ext: ext.map(Ext) }
}

#[test]
fn a_hello_is_read_as_far_as_it_goes_and_no_further() {
    let table: [(&[u8], Frame); 14] = [
        (&[1], welcome(1, 0, None)),
        (&[2], welcome(2, 0, None)),
        (&[1, 0xff], welcome(1, SERVED, None)),
        (&[2, 0xff], welcome(2, SERVED, None)),
        (&[1, 7, 0x0f], welcome(1, 7, None)),
        (&[1, 7, 0x0f, 0, 0], welcome(1, 7, None)),
        (&[1, 7, 0x0f, 0, 0, 0], welcome(1, 7, Some(0x0f))),
        (&[1, 7, 0x0f, 0, 0, 0, 1, 2, 3], welcome(1, 7, Some(0x0f))),
        (&[1, 7, 0xff, 0xff, 0xff, 0xff], welcome(1, 7, Some(Ext::ALL.or(Ext::KEYED).or(Ext::PULSE).0))),
        (&[1, 7, 0, 0, 0, 0], welcome(1, 7, Some(0))),
        (&[2, 7, 0x0f], welcome(2, 7, None)),
        (&[2, 7, 0x0f, 0, 0, 0], welcome(2, 7, None)),
        (&[2, 7, 0x0f, 0, 0, 0, 1], welcome(2, 7, None)),
        (&[1, 0x60], welcome(1, 0x20, None)),
    ];
    for (backend, (body, answer)) in BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row))) {
        let mut serving = Serving::start(backend);
        serving.send_bytes(&framed(1, body));
        assert_eq!(serving.reply(), *answer, "{body:?}");
        let Frame::Welcome { version, ext, .. } = *answer else { unreachable!() };
        serving.speak(Dialect { version, ext: ext.unwrap_or(Ext::NONE) });
        serving.assert_usable();
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn a_hello_without_a_version_ends_the_session_without_a_word() {
    for backend in BACKENDS {
        let mut serving = Serving::start(backend);
        serving.send_bytes(&framed(1, &[]));
        assert_eq!(serving.output.next(), None);
        assert_eq!(serving.end().code, Some(1));
    }
}

/// All that a Get of a file of three bytes brings.
fn get(serving: &mut Serving) -> Frame {
    fs::write(serving.root().join("f"), "abc").unwrap();
    serving.send(&Frame::Get { path: field("f"), offset: 0 });
    loop {
        match serving.next() {
            Received::Frame(Frame::Meta { .. }) => assert!(serving.dialect.ext.has(Ext::META)),
            Received::Data(content) => assert_eq!(content, b"abc"),
            Received::Frame(end) => return end,
            Received::Compressed(_) => panic!("three bytes are not worth it"),
        }
    }
}

#[test]
fn a_second_hello_takes_the_place_of_the_first_in_everything() {
    let hashed = Frame::Ok { hash: Some(blake3_of(b"abc")) };
    let unhashed = Frame::Ok { hash: None };
    for (backend, first) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|first| (backend, first))) {
        for second in [BASES[0], BASES[1], FULL, RESUMING] {
            for (before, after, end) in [(Caps::FAST, Caps::NONE, &hashed), (Caps::NONE, Caps::FAST, &unhashed)] {
                let mut serving = Serving::agreed(backend, first, before);
                serving.agree(second, after);
                assert_eq!(get(&mut serving), *end, "{first:?}, {second:?}");
                serving.assert_usable();
                // Once.
                serving.send(&hello_with(second, before));
                serving.refusal("Hello");
                assert_eq!(get(&mut serving), *end);
                assert_eq!(serving.end().code, Some(0));
            }
        }
    }
}

#[test]
fn greetings_sent_ahead_are_answered_in_order_each_in_its_own_dialect() {
    for (backend, first) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|first| (backend, first))) {
        for second in DIALECTS {
            let mut serving = Serving::start(backend);
            let stat = Frame::Stat { path: field("") };
            let all = [
                bytes_of(&hello(first), Dialect::BASE),
                bytes_of(&hello(second), first),
                bytes_of(&stat, second),
                bytes_of(&hello(first), second),
            ];
            serving.send_bytes(&all.concat());
            for dialect in [first, second] {
                let ext = (dialect.ext != Ext::NONE).then_some(dialect.ext.0);
                assert_eq!(serving.reply(), welcome(dialect.version, 0, ext));
                serving.speak(dialect);
            }
            assert!(matches!(serving.reply(), Frame::StatResponse { is_dir: true, .. }));
            serving.refusal("Hello");
            serving.assert_usable();
        }
    }
}

#[test]
fn nothing_is_done_behind_a_greeting_that_is_refused() {
    let mkdir = bytes_of(&Frame::Mkdir { path: field("d") }, Dialect::BASE);
    let strange = |version| bytes_of(&hello(Dialect { version, ..Dialect::BASE }), Dialect::BASE);
    let mut table: Vec<(Option<Dialect>, Vec<u8>, String)> = vec![
        (None, mkdir.clone(), "the first frame must be Hello".to_string()),
        (None, data(b"content"), "must be Hello".to_string()),
    ];
    for first in [None, Some(BASES[0]), Some(BASES[1]), Some(FULL)] {
        for version in [0, 3, 99, 255] {
            let words = format!("protocol version mismatch: client={version} server=2");
            table.push((first, strange(version), words));
        }
    }
    for (backend, (first, refused, words)) in BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row))) {
        let mut serving = Serving::start(backend);
        first.iter().for_each(|&first| serving.greet(first));
        let root = serving.root();
        serving.send_bytes(&[&refused[..], &strange(1), &mkdir, &mkdir].concat());
        serving.refusal(words);
        let served = serving.end();
        assert_eq!(served.rest, Vec::new(), "{first:?}: {words}");
        assert_eq!(served.code, Some(0), "{}", served.stderr);
        assert!(names(&root).is_empty(), "{first:?}: {words}");
    }
}

#[test]
fn a_hello_inside_a_body_ends_it_and_changes_nothing() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        let put = Frame::Put { path: field("new"), size: 5, offset: 0, overwrite: true };
        let mut serving = Serving::agreed(backend, dialect, Caps::FAST);
        serving.send(&put);
        serving.send_bytes(&data(b"hel"));
        serving.send(&hello(BASES[1]));
        serving.refusal("incomplete");
        serving.refusal("Hello");
        assert_eq!(get(&mut serving), Frame::Ok { hash: None });
        assert_eq!(names(&serving.root()), ["f"]);
        assert_eq!(serving.end().code, Some(0));
    }
}

/// What one run saw and left.
struct Scene {
    dir: tempfile::TempDir,
    ended: Ended,
}

impl Scene {
    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }
}

/// Runs `haul copy --compress zstd --dedup far:f target` against a server that is played by `act`.
fn download(backend: &str, act: impl FnOnce(&mut FarEnd) + Send) -> Scene {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let target = dir.path().join("target").into_os_string();
    let args = |pipes: &crate::support::Pipes| {
        let words = ["copy", "--compress", "zstd", "--dedup"].map(Into::into);
        words.into_iter().chain(pipes.args()).chain(["far:f".into(), target]).collect()
    };
    let ended = play(backend, LIMIT, args, act);
    Scene { dir, ended }
}

/// Answers what is asked about a file of three bytes, and for it.
fn serve(far: &mut FarEnd) {
    far.looked_up(Some(attributes(Kind::Regular, 3)));
    assert!(matches!(far.request(), Frame::Get { .. }));
    if far.dialect.ext.has(Ext::META) {
        far.send(&Frame::Meta { attributes: attributes(Kind::Regular, 3), preserve: Preserve::default() });
    }
    far.send_bytes(&data(b"abc"));
    far.send(&Frame::Ok { hash: Some(blake3_of(b"abc")) });
    far.drain();
}

#[test]
fn a_welcome_is_read_as_far_as_it_goes_and_grants_no_more_than_was_asked_for() {
    let table: [(&[u8], Dialect); 11] = [
        (&[1], Dialect::BASE),
        (&[1, 0], Dialect::BASE),
        // The number in Welcome is nobody's business.
        (&[0, 7], Dialect::BASE),
        (&[2, 7], Dialect::BASE),
        (&[99, 7], Dialect::BASE),
        (&[1, 0xff], Dialect::BASE),
        (&[1, 7, 0x0f, 0, 0], Dialect::BASE),
        (&[1, 7, 0x0f, 0, 0, 0], FULL),
        (&[99, 7, 0x0f, 0, 0, 0], FULL),
        (&[1, 7, 0x0f, 0, 0, 0, 9, 9], FULL),
        (&[1, 0xff, 0xff, 0xff, 0xff, 0xff], RESUMING),
    ];
    for (backend, (body, dialect)) in BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row))) {
        let scene = download(backend, |far| {
            assert!(matches!(far.request(), Frame::Hello { version: 1, .. }));
            far.send_bytes(&framed(0x81, body));
            far.agree(*dialect);
            serve(far);
        });
        scene.ended.assert_exit(0);
        assert_eq!(fs::read(scene.target()).unwrap(), b"abc");
    }
}

#[test]
fn what_was_granted_without_being_asked_for_is_not_in_force() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| [BASES[0], FULL].map(|d| (backend, d))) {
        let scene = download(backend, |far| {
            far.greet_with(dialect, Caps(0xff));
            far.looked_up(Some(attributes(Kind::Regular, 3)));
            far.request();
            far.send_bytes(&data(b"abc"));
            // As under FAST.
            far.send(&Frame::Ok { hash: None });
            far.drain();
        });
        scene.ended.assert_exit(2);
        assert!(scene.ended.stderr.contains("protocol error: the server answered Get"), "{:?}", scene.ended);
        assert!(!scene.target().exists());
    }
}

#[test]
fn a_second_welcome_is_a_broken_protocol_wherever_it_comes() {
    type Act = fn(&mut FarEnd, Frame);
    let acts: [Act; 4] = [
        // With the first.
        |far, again| {
            let first = bytes_of(&welcome(1, 0, Some(0x0f)), Dialect::BASE);
            far.request();
            far.send_bytes(&[first, bytes_of(&again, FULL)].concat());
            far.agree(FULL);
        },
        |far, again| {
            far.greet(FULL);
            far.request();
            far.send(&again);
        },
        |far, again| {
            far.greet(FULL);
            far.looked_up(Some(attributes(Kind::Regular, 3)));
            far.request();
            far.send(&again);
        },
        |far, again| {
            far.greet(FULL);
            far.looked_up(Some(attributes(Kind::Regular, 3)));
            far.request();
            far.send(&Frame::Meta { attributes: attributes(Kind::Regular, 3), preserve: Preserve::default() });
            far.send_bytes(&data(b"abc"));
            far.send(&again);
        },
    ];
    for (backend, act) in BACKENDS.into_iter().flat_map(|backend| acts.map(|act| (backend, act))) {
        for again in [welcome(1, 0, Some(0x0f)), welcome(2, 0xff, None)] {
            let scene = download(backend, |far| {
                act(far, again);
                far.drain();
            });
            scene.ended.assert_exit(2);
            assert!(scene.ended.stderr.contains("protocol error: the server "), "{:?}", scene.ended);
            assert!(!scene.target().exists());
        }
    }
}

#[test]
fn a_server_that_greets_first_is_told_that_this_is_no_welcome() {
    for backend in BACKENDS {
        for first in [hello(FULL), hello(BASES[1]), Frame::Done] {
            let scene = download(backend, |far| {
                far.request();
                far.send(&first);
                far.drain();
            });
            scene.ended.assert_exit(5);
            assert!(scene.ended.stderr.contains("handshake: "), "{:?}", scene.ended);
        }
    }
}
