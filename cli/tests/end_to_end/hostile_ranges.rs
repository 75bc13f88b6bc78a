//! PutChunked, GetChunked and Truncate from clients that do not keep to the rules: ranges that are nowhere, bodies of
//! another length, sizes no file can have, and paths that lead out. Each is refused once, and costs nothing.

use crate::support::frames::{DIALECTS, Received, Serving, bytes_of, data, field};
use crate::support::processes::{in_private_mounts, mount_tmpfs, names};
use crate::support::{BACKENDS, snapshot};
use haul_engine::wire::frame::{Caps, Dialect, Frame};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

const CONTENT: &[u8] = b"0123456789";
const FAR: [u64; 4] = [1 << 62, 1 << 63, u64::MAX - 1, u64::MAX];

/// Runs a session on both backends, on a root with the file `f`; afterwards it must still be usable and end well.
fn on_both(dialects: &[Dialect], test: impl Fn(&mut Serving)) {
    for (backend, &dialect) in BACKENDS.into_iter().flat_map(|b| dialects.iter().map(move |dialect| (b, dialect))) {
        eprintln!("{backend}, {dialect:?}");
        let mut serving = Serving::agreed(backend, dialect, Caps::SYNC);
        fs::write(serving.root().join("f"), CONTENT).unwrap();
        test(&mut serving);
        serving.assert_usable();
        let served = serving.end();
        assert_eq!((served.code, served.rest), (Some(0), Vec::new()), "{}", served.stderr);
    }
}

fn put(name: &str, offset: u64, length: u64) -> Frame {
    Frame::PutChunked { path: field(name), offset, length }
}

fn get(name: &str, offset: u64, length: u64) -> Frame {
    Frame::GetChunked { path: field(name), offset, length }
}

fn truncate(name: &str, size: u64) -> Frame {
    Frame::Truncate { path: field(name), size }
}

/// Sends a range with these frames of content.
fn send(serving: &mut Serving, request: &Frame, body: &[&[u8]]) {
    serving.send(request);
    body.iter().for_each(|content| serving.send_bytes(&data(content)));
    serving.send(&Frame::Done);
}

const OK: Frame = Frame::Ok { hash: None };

fn content(serving: &Serving) -> Vec<u8> {
    fs::read(serving.root().join("f")).unwrap()
}

/// All of a range that must be there.
#[track_caller]
fn got(serving: &mut Serving) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        match serving.next() {
            Received::Data(bytes) => content.extend(bytes),
            Received::Frame(OK) => return content,
            other => panic!("{other:?} in the reply to GetChunked"),
        }
    }
}

#[test]
fn ranges_of_a_file_are_written_and_read_and_answered_once() {
    on_both(&DIALECTS, |serving| {
        assert_eq!(serving.ask(&truncate("f", 6)), OK);
        assert_eq!(content(serving), [0; 6]);
        for (offset, body) in [(3, "def"), (0, "abc")] {
            send(serving, &put("f", offset, 3), &[body.as_bytes()]);
            assert_eq!(serving.reply(), OK);
        }
        assert_eq!(content(serving), b"abcdef");
        // Nothing, at any place, changes nothing.
        for offset in [0, 6, 99] {
            send(serving, &put("f", offset, 0), &[]);
            send(serving, &put("f", offset, 0), &[b"", b""]);
            assert_eq!([serving.reply(), serving.reply()], [OK, OK]);
        }
        assert_eq!(content(serving), b"abcdef");
        for (offset, length) in [(0, 6), (2, 3), (5, 1)] {
            serving.send(&get("f", offset, length));
            assert_eq!(got(serving), b"abcdef"[offset as usize..][..length as usize]);
        }
        assert_eq!(serving.ask(&truncate("f", 0)), OK);
        serving.send(&get("f", 0, 0));
        assert!(got(serving).is_empty());
    });
}

#[test]
fn ranges_that_are_not_in_the_file_are_refused() {
    on_both(&DIALECTS, |serving| {
        let size = CONTENT.len() as u64;
        let near = [(0, size + 1), (size, 1), (size - 1, 2), (3, 0), (size, 0), (size + 1, 0)];
        let far = FAR.into_iter().flat_map(|far| [(far, 1), (1, far), (far, far), (far, 0), (far, u64::MAX - far)]);
        for (offset, length) in near.into_iter().chain(far) {
            serving.send(&get("f", offset, length));
            serving.refusal("the range is not part of its 10 bytes");
        }
        serving.send(&get("missing", 0, 0));
        serving.refusal("No such file");
        assert_eq!(names(&serving.root()), ["f"]);
    });
}

#[test]
fn ranges_that_no_file_can_hold_are_refused_and_cost_nothing() {
    on_both(&DIALECTS, |serving| {
        for (offset, length) in [(u64::MAX, 1), (1, u64::MAX), (1 << 63, 1 << 63), (u64::MAX, u64::MAX)] {
            send(serving, &put("f", offset, length), &[b"x"]);
            serving.refusal("the range ends past what a file can hold");
        }
        for (offset, length) in [((1 << 63) - 1, 1), (1 << 63, 1), (u64::MAX - 2, 1), (u64::MAX - 1, 1)] {
            send(serving, &put("f", offset, length), &[b"x"]);
            serving.refusal("cannot write");
        }
        for size in FAR {
            serving.send(&truncate("f", size));
            serving.refusal("cannot truncate");
            serving.send(&truncate("new", size));
            serving.refusal("cannot truncate");
        }
        assert_eq!(content(serving), CONTENT);
        assert_eq!(names(&serving.root()), ["f"]);
    });
}

#[test]
fn bodies_of_another_length_are_refused_once() {
    on_both(&DIALECTS, |serving| {
        let table: [(&[&[u8]], &str); 7] = [
            (&[], "declared"),
            (&[b"ab"], "declared"),
            (&[b"a", b"b", b""], "declared"),
            (&[b"abcd"], "past the declared size"),
            (&[b"abc", b"d"], "past the declared size"),
            (&[b"abc", b"d", b"e", b"f"], "past the declared size"),
            (&[&[b'x'; 1_000_000], &[b'y'; 1_000_000]], "past the declared size"),
        ];
        for (body, why) in table {
            send(serving, &put("f", 2, 3), body);
            serving.refusal(why);
            // Two in a row have one answer each.
            send(serving, &put("f", 0, 3), &[b"012"]);
            send(serving, &put("f", 2, 3), body);
            send(serving, &put("f", 0, 3), &[b"012"]);
            assert_eq!(serving.reply(), OK);
            serving.refusal(why);
            assert_eq!(serving.reply(), OK);
            serving.assert_usable();
        }
        send(serving, &put("f", 2, 0), &[b"x"]);
        serving.refusal("past the declared size");
        // What is beside the range is as it was.
        let found = content(serving);
        assert_eq!((&found[..2], &found[5..]), (&CONTENT[..2], &CONTENT[5..]));
    });
}

#[test]
fn a_range_that_another_request_cuts_short_is_refused_and_that_request_is_answered() {
    on_both(&DIALECTS, |serving| {
        serving.send(&put("f", 0, 3));
        serving.send_bytes(&data(b"01"));
        serving.refusal_then_usable("declared 3 bytes, received 2");
        serving.send(&put("f", 0, 3));
        serving.refusal_then_usable("declared 3 bytes, received 0");
        assert_eq!(content(serving), CONTENT);
    });
}

#[test]
fn what_ends_other_bodies_does_not_belong_to_a_range() {
    on_both(&DIALECTS[2..], |serving| {
        for end in [Frame::Commit { hash: [7; 32] }, Frame::Abandon { code: Default::default() }] {
            serving.send(&put("f", 0, 3));
            serving.send_bytes(&data(b"012"));
            serving.send(&end);
            serving.refusal("this does not belong to a range");
            serving.assert_usable();
        }
    });
}

#[test]
fn the_end_of_the_stream_in_a_range_is_a_failure_without_an_answer() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        for sent in [&b""[..], b"01", b"012"] {
            let mut serving = Serving::greeted(backend, dialect);
            fs::write(serving.root().join("f"), CONTENT).unwrap();
            serving.send(&put("f", 0, 3));
            if !sent.is_empty() {
                serving.send_bytes(&data(sent));
            }
            let served = serving.end();
            assert_eq!((served.code, served.rest), (Some(1), Vec::new()), "{dialect:?}: {}", served.stderr);
            assert_eq!(fs::read(served.root.path().join("root/f")).unwrap(), CONTENT);
        }
    }
}

#[test]
fn ranges_stay_inside_the_served_root() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        let above = root.parent().unwrap().to_path_buf();
        let outside = above.join("outside");
        fs::write(&outside, "precious").unwrap();
        fs::create_dir_all(root.join("d/e")).unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink("../outside", root.join("up")).unwrap();
        symlink(above.join("new"), root.join("dangling")).unwrap();
        symlink("nowhere", root.join("nothing")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("..", root.join("above")).unwrap();
        assert!(Command::new("mkfifo").arg(root.join("fifo")).status().unwrap().success());
        let before = (snapshot(&root), fs::read(&outside).unwrap());
        let absolute = outside.to_str().unwrap().to_string();
        let bad = ["../outside", "a/../../outside", "..", "/etc/passwd", &absolute, "above/outside", "above/new"];
        let bad = bad.into_iter().chain(["out", "up", "dangling", "nothing", "loop", "out/x", "fifo", "d", "", "f/x"]);
        for name in bad {
            eprintln!("{name}");
            for (offset, length, body) in [(0, 3, &b"abc"[..]), (0, 0, b""), (0, 300_000, &[b'x'; 300_000])] {
                send(serving, &put(name, offset, length), &[body]);
                serving.refusal("");
            }
            for size in [0, 3, u64::MAX] {
                serving.send(&truncate(name, size));
                serving.refusal("");
            }
            for length in [0, 3] {
                serving.send(&get(name, 0, length));
                serving.refusal("");
            }
            serving.assert_usable();
        }
        // The directory's own time changes with every question whether the session is usable.
        assert_eq!((snapshot(&root), fs::read(&outside).unwrap()), before);
        assert_eq!(names(&above), ["outside", "root"]);
    });
}

#[test]
fn paths_with_nul_and_long_paths_are_refused_with_their_body() {
    on_both(&DIALECTS, |serving| {
        for name in ["a\0b\0c".to_string(), "\0\0".to_string(), "x".repeat(300), "x/".repeat(3000), "x".repeat(1 << 20)]
        {
            send(serving, &put(&name, 0, 3), &[b"abc"]);
            serving.refusal("");
            serving.send(&truncate(&name, 3));
            serving.refusal("");
            serving.send(&get(&name, 0, 3));
            serving.refusal("");
        }
        assert_eq!(names(&serving.root()), ["f"]);
    });
}

#[test]
fn ranges_that_overlap_on_one_connection_are_written_in_the_order_they_came() {
    const COUNT: usize = 200;
    on_both(&DIALECTS, |serving| {
        let dialect = serving.dialect;
        let mut requests = Vec::new();
        for number in 0..COUNT {
            requests.extend(bytes_of(&put("f", (number % 3) as u64, 5), dialect));
            requests.extend(data(&[number as u8; 5]));
            requests.extend(bytes_of(&Frame::Done, dialect));
        }
        serving.send_bytes(&requests);
        for number in 0..COUNT {
            assert_eq!(serving.reply(), OK, "{number}");
        }
        let [before, last] = [COUNT - 2, COUNT - 1].map(|number| number as u8);
        let first = (COUNT - 1) % 3;
        assert_eq!(first, 1);
        assert_eq!(content(serving), [before, last, last, last, last, last, before - 1, b'7', b'8', b'9']);
    });
}

#[test]
fn a_size_that_is_refused_loses_nothing_where_the_file_system_does_not_say_what_is_free() {
    let name = "a_size_that_is_refused_loses_nothing_where_the_file_system_does_not_say_what_is_free";
    if !in_private_mounts(name) {
        return;
    }
    on_both(&DIALECTS, |serving| {
        let mounted = mount_tmpfs(&serving.root().join("endless"), "size=0");
        fs::write(serving.root().join("endless/f"), CONTENT).unwrap();
        for size in [1 << 63, u64::MAX] {
            serving.send(&truncate("endless/f", size));
            serving.refusal("cannot truncate");
        }
        assert_eq!(fs::read(serving.root().join("endless/f")).unwrap(), CONTENT);
        drop(mounted);
    });
}
