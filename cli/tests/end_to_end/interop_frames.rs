//! The same frames to the real servers and to `haul serve`: what each of them does, and where haul differs on purpose.
//! Runs where HAUL_BCMR_060 and HAUL_BCMR_072 name the real binaries. What a server does not offer is not asked of it.

use crate::support::interop::peer::Peer;
use crate::support::interop::raw::{
    self, BLOCK, about, data, done, frame, get, hash, hello, hex, kind, put, range, whole_put,
};
use crate::support::interop::speaker::{Speaker, with_each};
use crate::support::processes::{LIMIT, names, wait_for};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

#[test]
fn a_client_of_another_version_is_told_so_and_left() {
    with_each(|dialect| {
        let served = if dialect.peer == Peer::Old { 1 } else { 2 };
        let others: &[u8] = match dialect.peer {
            Peer::Old => &[0, 2, 9],
            Peer::New => &[0, 1, 9],
            Peer::Haul => &[0, 3, 9],
        };
        for &version in others {
            let mut speaker = Speaker::start(dialect);
            speaker.send(&hello(version, 7));
            let said = speaker.refusal();
            assert!(said.contains(&format!("protocol version mismatch: client={version} server={served}")), "{said}");
            let ended = speaker.ended();
            assert_eq!((ended.code, ended.rest), (Some(0), vec![]), "{dialect:?}");
        }
    });
}

#[test]
fn a_client_that_does_not_greet_gets_an_error_and_the_end() {
    with_each(|dialect| {
        let mut speaker = Speaker::start(dialect);
        speaker.send(&about(kind::STAT, "x"));
        speaker.refusal();
        let ended = speaker.ended();
        assert_eq!((ended.code, ended.rest), (Some(0), vec![]), "{dialect:?}");
    });
}

#[test]
fn what_is_in_force_is_what_both_have() {
    with_each(|dialect| {
        // The byte may be missing in all versions.
        let mut speaker = Speaker::start(dialect);
        let welcome = speaker.ask(&frame(kind::HELLO, &[&[dialect.version]]));
        assert_eq!((welcome.kind, &*welcome.body), (kind::WELCOME, &[dialect.version, 0][..]), "{dialect:?}");
        for asked in [0, 0x07, 0x87, 0xff] {
            let caps = Speaker::greeted(dialect, asked).caps;
            match dialect.peer {
                Peer::Old => assert_eq!(caps, asked & 0x3f),
                Peer::New => assert_eq!(caps, asked & 0xbf),
                // Sealed frames exist on sockets only; Put at an offset in every session.
                Peer::Haul => assert_eq!((caps & !asked, caps & 0x40, caps & 0x80), (0, 0, asked & 0x80)),
            }
        }
    });
}

#[test]
fn a_second_greeting_and_what_only_servers_send_are_errors_and_no_end() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        // haul takes one more greeting as the first request, and none later.
        assert_eq!(speaker.ask(&about(kind::STAT, "")).kind, kind::STAT_RESPONSE, "{dialect:?}");
        for stray in [hello(dialect.version, 7), frame(kind::OK, &[&[0]]), done(), data(b"x")] {
            speaker.send(&stray);
            speaker.refusal();
            assert_eq!(speaker.errors_left(), 0, "{dialect:?}");
        }
        speaker.leave();
    });
}

#[test]
fn paths_that_lead_nowhere_allowed_are_errors_and_no_end() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        let above = speaker.place().beside("home").to_str().unwrap().to_string();
        for path in ["a\0b", "\0", "..", "../x", "a/../../x", "/etc/passwd", &above] {
            let requests =
                [kind::STAT, kind::LIST, kind::MKDIR, kind::RESUME].map(|request| about(request, path)).into_iter();
            for request in requests.chain([hash(path, 0, None), get(path, 0)]) {
                speaker.send(&request);
                speaker.refusal();
            }
            assert_eq!(speaker.errors_left(), 0, "{dialect:?}");
        }
        assert!(names(&speaker.root()).is_empty());
        speaker.leave();
    });
}

#[test]
fn ranges_end_where_the_file_does() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        fs::write(speaker.root().join("f"), "0123456789").unwrap();
        for (offset, limit, content) in [
            (0, None, "0123456789"),
            (0, Some(1 << 40), "0123456789"),
            (4, Some(3), "456"),
            (10, None, ""),
            (99, Some(9), ""),
        ] {
            let reply = speaker.ask(&hash("f", offset, limit));
            assert_eq!((reply.kind, reply.fields().text()), (kind::HASH_RESPONSE, Some(hex(content.as_bytes()))));
        }
        for offset in [10, 99] {
            speaker.send(&get("f", offset));
            assert_eq!(speaker.accepted(), Some(hex(b"")), "{dialect:?}");
        }
        speaker.leave();
    });
}

#[test]
fn a_file_goes_up_whole_and_from_an_offset() {
    with_each(|dialect| {
        // The bit for offsets is newer than offsets.
        let mut speaker = Speaker::greeted(dialect, 7);
        speaker.send(&whole_put(dialect.version, "new/dir/f", b"0123456789"));
        assert_eq!(speaker.accepted(), Some(hex(b"0123456789")), "{dialect:?}");
        speaker.send(&[put(dialect.version, "new/dir/f", 12, 6), data(b"abcdef"), done()].concat());
        assert_eq!(speaker.accepted(), None, "{dialect:?}");
        assert_eq!(fs::read(speaker.root().join("new/dir/f")).unwrap(), b"012345abcdef");
        speaker.send(&[put(dialect.version, "f", 3, 4), done()].concat());
        speaker.refusal();
        speaker.left_over();
        assert_eq!(names(&speaker.root()), ["new"]);
        speaker.leave();
    });
}

#[test]
fn haul_answers_a_bad_body_once_where_others_answer_every_frame_of_it() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        let once = dialect.peer == Peer::Haul;
        let errors = |speaker: &mut Speaker, frames: &[Vec<u8>]| {
            speaker.send(&frames.concat());
            speaker.errors_left()
        };
        let put = || put(dialect.version, "f", 3, 0);
        assert_eq!(errors(&mut speaker, &[put(), data(b"12"), done()]), 1, "{dialect:?}");
        assert_eq!(errors(&mut speaker, &[put(), done()]), 1, "{dialect:?}");
        // The frame that goes past the end is the last that belongs to the Put.
        let flood = errors(&mut speaker, &[put(), data(b"1234"), data(b"5"), data(b"6"), done()]);
        assert_eq!(flood, if once { 1 } else { 4 }, "{dialect:?}");
        assert!(!speaker.root().join("f").exists() || dialect.peer == Peer::Old, "{dialect:?}");
        speaker.leave();
    });
}

#[test]
fn haul_does_not_send_a_refused_body_back() {
    const BODY: usize = 100_000;
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        speaker.send(&[put(dialect.version, "../f", BODY, 0), data(&[200; BODY]), done()].concat());
        let said: usize = speaker.left_over().iter().map(|reply| reply.body.len()).sum();
        match dialect.peer {
            // As decimal numbers, in a message.
            Peer::Old | Peer::New => assert!(said > 4 * BODY, "{said}"),
            Peer::Haul => assert!(said < 200, "{said}"),
        }
        speaker.leave();
    });
}

#[test]
fn a_put_that_fails_leaves_the_old_file_except_in_0_6_0() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        fs::write(speaker.root().join("f"), "old").unwrap();
        speaker.send(&[put(dialect.version, "f", 9, 0), data(b"new"), done()].concat());
        speaker.refusal();
        // What is there instead may still be on its way.
        let found = fs::read(speaker.root().join("f")).unwrap();
        assert_eq!(found == b"old", dialect.peer != Peer::Old, "{dialect:?}: {found:?}");
        speaker.leave();
    });
}

#[test]
fn only_0_6_0_takes_the_end_of_the_stream_for_the_end_of_a_body() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        let root = speaker.root();
        fs::write(root.join("f"), "old").unwrap();
        speaker.send(&[put(dialect.version, "f", 3, 0), data(b"new")].concat());
        speaker.close();
        speaker.ended();
        let found = fs::read_to_string(root.join("f")).unwrap();
        assert_eq!(found, if dialect.peer == Peer::Old { "new" } else { "old" }, "{dialect:?}");
    });
}

#[test]
fn version_2_does_not_replace_unless_it_is_told_to() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        fs::write(speaker.root().join("f"), "old").unwrap();
        let put = raw::put_over(dialect.version, "f", 3, 0, false);
        speaker.send(&[put, data(b"new"), done()].concat());
        let replaced = dialect.version == 1;
        let first = speaker.reply();
        assert_eq!(first.kind, if replaced { kind::OK } else { kind::ERROR }, "{dialect:?}");
        speaker.left_over();
        assert_eq!(fs::read(speaker.root().join("f")).unwrap(), if replaced { b"new" } else { b"old" }, "{dialect:?}");
        speaker.leave();
    });
}

#[test]
fn only_0_6_0_writes_through_a_link_that_leads_out() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        let outside = speaker.place().beside("home/new");
        symlink(&outside, speaker.root().join("link")).unwrap();
        speaker.send(&whole_put(dialect.version, "link", b"content"));
        speaker.left_over();
        assert_eq!(outside.exists(), dialect.peer == Peer::Old, "{dialect:?}");
        speaker.leave();
    });
}

#[test]
fn a_listing_tells_of_a_link_itself_in_0_6_0_and_of_what_it_leads_to_elsewhere() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        fs::write(speaker.root().join("file"), [b'x'; 100]).unwrap();
        symlink("file", speaker.root().join("link")).unwrap();
        let reply = speaker.ask(&about(kind::LIST, ""));
        assert_eq!(reply.kind, kind::LIST_RESPONSE, "{dialect:?}");
        let mut fields = reply.fields();
        assert_eq!(fields.u32(), Some(2));
        while let Some(name) = fields.text() {
            let (size, _mtime, is_dir) = (fields.u64().unwrap(), fields.u64().unwrap(), fields.u8().unwrap());
            let of_link = name == "link" && dialect.peer == Peer::Old;
            assert_eq!((size, is_dir), (if of_link { 4 } else { 100 }, 0), "{dialect:?}: {name}");
        }
        speaker.leave();
    });
}

#[test]
fn named_pipes_are_errors_except_in_0_6_0_which_waits_for_ever() {
    with_each(|dialect| {
        if dialect.peer == Peer::Old {
            return;
        }
        let mut speaker = Speaker::greeted(dialect, 7);
        assert!(Command::new("mkfifo").arg(speaker.root().join("fifo")).status().unwrap().success());
        for request in [about(kind::STAT, "fifo"), hash("fifo", 0, None), get("fifo", 0)] {
            speaker.send(&request);
            speaker.refusal();
        }
        assert_eq!(speaker.errors_left(), 0);
        speaker.leave();
    });
}

#[test]
fn bytes_behind_the_end_are_malformed_in_version_2_only() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        fs::write(speaker.root().join("f"), "x").unwrap();
        speaker.send(&frame(kind::STAT, &[&raw::bytes("f"), &[0]]));
        if dialect.version == 1 {
            assert_eq!(speaker.reply().kind, kind::STAT_RESPONSE);
            speaker.leave();
        } else {
            speaker.assert_ends_silently("a byte behind the end");
        }
    });
}

#[test]
fn malformed_frames_are_the_end_without_a_word() {
    with_each(|dialect| {
        let bomb = frame(kind::HAVE_BLOCKS, &[&(BLOCK as u32).to_le_bytes(), &[0xff; 4]]);
        let table = [
            ("length 0", vec![0; 4]),
            ("length above 16 MiB", vec![1, 0, 0, 1, kind::STAT]),
            ("unknown type", frame(0x7f, &[])),
            ("a field past the end", frame(kind::STAT, &[&[9, 0, 0, 0], b"x"])),
            ("a name that is not UTF-8", about(kind::STAT, b"\xff")),
            // 0.6.0 asks for 137 GB, which some systems would give.
            ("hashes that are not there", if dialect.peer == Peer::Old { vec![0; 4] } else { bomb }),
        ];
        for (why, bytes) in table {
            let mut speaker = Speaker::greeted(dialect, 7);
            speaker.send(&bytes);
            speaker.assert_ends_silently(why);
        }
    });
}

#[test]
fn a_data_frame_of_more_than_4_mib_is_malformed_for_0_7_2_only() {
    with_each(|dialect| {
        let content = vec![7; BLOCK + 1];
        let mut speaker = Speaker::greeted(dialect, 7);
        speaker.send(&whole_put(dialect.version, "f", &content));
        if dialect.peer == Peer::New {
            // Inside a body it has a word to say before it ends.
            assert!(speaker.refusal().contains("maximum"));
            return speaker.assert_ends_silently("more than 4 MiB");
        }
        // haul takes what a frame can hold, because older clients may send it.
        assert_eq!(speaker.accepted(), Some(hex(&content)));
        speaker.leave();
    });
}

/// Fails unless each of these gets an Error that says that the server has no such thing.
#[track_caller]
fn assert_not_offered(speaker: &mut Speaker, requests: &[Vec<u8>]) {
    assert_eq!(speaker.dialect.peer, Peer::Haul, "real servers have it");
    for request in requests {
        speaker.send(request);
        let said = speaker.refusal();
        assert!(said.contains("not offered"), "{said}");
        // A body that nobody has asked for is refused as well, once.
        assert!(speaker.errors_left() <= 1);
    }
}

#[test]
fn ranges_are_written_and_0_6_0_has_one_more_word_to_each() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 7);
        let size = 10_u64.to_le_bytes();
        let truncate = frame(kind::TRUNCATE, &[&raw::bytes("d/f"), &size]);
        let parts = [("hello", 0), ("world", 5)].map(|(content, offset)| {
            [range(kind::PUT_CHUNKED, "d/f", offset, 5), data(content.as_bytes()), done()].concat()
        });
        speaker.send(&truncate);
        let reply = speaker.reply();
        if reply.error().is_some_and(|said| said.contains("not offered")) {
            return assert_not_offered(&mut speaker, &parts);
        }
        assert_eq!(reply.ok(), Some(None), "{dialect:?}");
        for part in &parts {
            speaker.send(part);
            assert_eq!(speaker.accepted(), None, "{dialect:?}");
            // Done is answered as if it were a request.
            assert_eq!(speaker.errors_left(), usize::from(dialect.peer == Peer::Old), "{dialect:?}");
        }
        // 0.6.0 does not wait for its last write.
        let written = || fs::read(speaker.root().join("d/f")).unwrap() == b"helloworld";
        assert!(written() || dialect.peer == Peer::Old && wait_for(LIMIT, written), "{dialect:?}");
        for bad in ["hell", "hello!"] {
            speaker.send(&[range(kind::PUT_CHUNKED, "d/f", 0, 5), data(bad.as_bytes()), done()].concat());
            let errors = speaker.errors_left();
            assert!(errors == 1 || dialect.peer != Peer::Haul && errors == 2, "{dialect:?}: {errors}");
        }
        speaker.leave();
    });
}

#[test]
fn ranges_are_read_without_a_hash_and_must_be_there() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, 0);
        fs::write(speaker.root().join("f"), "0123456789").unwrap();
        let part = range(kind::GET_CHUNKED, "f", 3, 4);
        speaker.send(&part);
        let reply = speaker.reply();
        if reply.error().is_some_and(|said| said.contains("not offered")) {
            return assert_not_offered(&mut speaker, &[part]);
        }
        assert_eq!((reply.kind, reply.fields().bytes()), (kind::DATA, Some(&b"3456"[..])), "{dialect:?}");
        assert_eq!(speaker.accepted(), None, "{dialect:?}");
        speaker.send(&range(kind::GET_CHUNKED, "f", 8, 4));
        // 0.6.0 notices only when it gets there.
        let replies: Vec<u8> = speaker.left_over().iter().map(|reply| reply.kind).collect();
        assert!(matches!(replies[..], [kind::ERROR] | [kind::DATA, kind::ERROR]), "{dialect:?}: {replies:?}");
        speaker.leave();
    });
}
