//! Links, pipes, counts and moving files that a client may use against the real `haul serve`, and words without end that
//! a server may use against the real client.

use crate::support::frames::{BASES, DIALECTS, FULL, Received, Serving, attributes, blake3_of, data, field, play};
use crate::support::processes::{LIMIT, names};
use crate::support::{BACKENDS, Remote, snapshot, trees};
use haul_engine::wire::frame::{Attributes, Dialect, ErrorCode, Frame, Hash, Kind, PathField, Preserve};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

fn on_both(dialects: &[Dialect], test: impl Fn(&mut Serving)) {
    for backend in BACKENDS {
        for &dialect in dialects {
            eprintln!("{backend}, {dialect:?}");
            let mut serving = Serving::greeted(backend, dialect);
            test(&mut serving);
            serving.assert_usable();
            let served = serving.end();
            assert_eq!((served.code, served.rest), (Some(0), Vec::new()), "{}", served.stderr);
        }
    }
}

/// Every request for one path that is about what is there already; the last four belong to haul's own dialect.
fn requests(path: &PathField) -> Vec<Frame> {
    let meta = Attributes { mode: 0o777, ..attributes(Kind::Regular, 0) };
    let path = || path.clone();
    vec![
        Frame::Stat { path: path() },
        Frame::List { path: path() },
        Frame::Hash { path: path(), offset: 0, limit: None },
        Frame::Get { path: path(), offset: 0 },
        Frame::Resume { path: path() },
        Frame::Mkdir { path: path() },
        Frame::Put { path: path(), size: 6, offset: 3, overwrite: true },
        Frame::Lookup { path: path(), follow: true },
        Frame::Tree { walk: 1, path: path(), recursive: true },
        Frame::SetMeta { path: path(), attributes: meta, preserve: Preserve::MODE },
    ]
}

/// Sends each request for this path, without those of these names. Returns what came back.
fn answers(serving: &mut Serving, path: &str, without: &[&str]) -> Vec<(Frame, Frame)> {
    let count = if serving.dialect == FULL { 10 } else { 7 };
    let named = |request: &Frame| without.iter().any(|name| format!("{request:?}").starts_with(name));
    let known = requests(&field(path)).into_iter().take(count).filter(|request| !named(request));
    let answer = |request: Frame| {
        if matches!(request, Frame::Put { .. }) {
            put_at_an_offset(serving, path);
        } else {
            serving.send(&request);
        }
        let reply = serving.reply();
        (request, reply)
    };
    known.map(answer).collect()
}

fn put_at_an_offset(serving: &mut Serving, path: &str) {
    serving.send(&Frame::Put { path: field(path), size: 6, offset: 3, overwrite: true });
    serving.send_bytes(&data(b"abc"));
    serving.end_put(blake3_of(b"abc"));
}

fn is_refusal(reply: &Frame) -> bool {
    match reply {
        Frame::Error { .. } => true,
        // A walk says in its only entry why it could not begin.
        Frame::TreePage { last: true, entries } => entries.len() == 1 && entries[0].error != ErrorCode::NONE,
        _ => false,
    }
}

#[test]
fn nothing_behind_a_link_that_leads_out_is_told_or_changed() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        let outside = root.parent().unwrap().join("outside");
        fs::create_dir_all(outside.join("dir")).unwrap();
        fs::write(outside.join("file"), "secret").unwrap();
        trees::set_mtime(&outside.join("file"), 1_000_000_000);
        trees::set_mode(&outside.join("file"), 0o600);
        let before = snapshot(&outside);
        for (link, text) in [("file", "file"), ("dir", "dir"), ("dangling", "new"), ("below", "dir/../new")] {
            symlink(outside.join(text), root.join(link)).unwrap();
            symlink(link, root.join(format!("to-{link}"))).unwrap();
        }
        let links = ["file", "dir", "dangling", "below", "to-file", "to-dir", "to-dangling", "to-below"];
        for link in links {
            for (request, reply) in answers(serving, link, &["Put"]) {
                assert!(is_refusal(&reply), "{request:?} is answered with {reply:?}");
            }
            assert!(fs::symlink_metadata(root.join(link)).unwrap().is_symlink(), "{link}");
        }
        for link in links {
            // Refused, or put in the place of the link.
            put_at_an_offset(serving, link);
            serving.reply();
            let found = fs::read(root.join(link)).unwrap_or_default();
            assert!(
                fs::symlink_metadata(root.join(link)).unwrap().is_symlink() || !found.starts_with(b"sec"),
                "{link}"
            );
        }
        assert_eq!(snapshot(&outside), before);
        fs::remove_dir_all(&outside).unwrap();
    });
}

#[test]
fn links_that_lead_to_themselves_are_errors() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        for (link, text) in [("loop", "loop"), ("a", "b"), ("b", "a"), ("deep", "deep/x")] {
            symlink(text, root.join(link)).unwrap();
        }
        for path in ["loop", "a", "deep", "a/x", "loop/loop"] {
            for (request, reply) in answers(serving, path, &["Put"]) {
                assert!(is_refusal(&reply), "{request:?} is answered with {reply:?}");
            }
        }
    });
}

/// A pipe, a socket, and links to them.
fn specials(dir: &Path) -> UnixListener {
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    symlink("fifo", dir.join("to-fifo")).unwrap();
    symlink("socket", dir.join("to-socket")).unwrap();
    UnixListener::bind(dir.join("socket")).unwrap()
}

#[test]
fn pipes_and_sockets_block_no_request_whichever_way_they_are_reached() {
    on_both(&DIALECTS, |serving| {
        let _listener = specials(&serving.root());
        // haul may be asked what they are, and list nothing below them.
        let known = ["List", "Lookup", "Tree", "SetMeta"];
        for path in ["fifo", "socket"] {
            for (request, reply) in answers(serving, path, &known) {
                assert!(is_refusal(&reply), "{request:?} is answered with {reply:?}");
            }
        }
        for path in ["to-fifo", "to-socket"] {
            for (request, reply) in answers(serving, path, &[&known[..], &["Put"]].concat()) {
                assert!(is_refusal(&reply), "{request:?} is answered with {reply:?}");
            }
        }
        for path in ["fifo/x", "to-fifo/x", "socket/x/y"] {
            for (request, reply) in answers(serving, path, &["List"]) {
                let nothing = matches!(reply, Frame::ResumeResponse { size: 0, hash: None });
                assert!(is_refusal(&reply) || nothing, "{request:?} is answered with {reply:?}");
            }
        }
    });
}

#[test]
fn a_tree_with_pipes_and_sockets_is_listed_to_its_end() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        fs::create_dir(root.join("d")).unwrap();
        let _listener = specials(&root.join("d"));
        fs::write(root.join("d/file"), "x").unwrap();
        let Frame::ListResponse { entries } = serving.ask(&Frame::List { path: field("d") }) else { panic!() };
        let listed: Vec<_> = entries.into_iter().map(|entry| entry.path.0).collect();
        assert_eq!(listed, [b"file".to_vec()]);
        if serving.dialect != FULL {
            return;
        }
        let tree = Frame::Tree { walk: 1, path: field("d"), recursive: true };
        let Frame::TreePage { last: true, entries } = serving.ask(&tree) else { panic!() };
        let mut kinds: Vec<_> = entries.iter().map(|entry| (entry.path.0.clone(), entry.attributes.kind)).collect();
        kinds.sort_by(|a, b| a.0.cmp(&b.0));
        let kind = |name: &str, kind| (name.as_bytes().to_vec(), kind);
        let expected = [
            kind("fifo", Kind::Fifo),
            kind("file", Kind::Regular),
            kind("socket", Kind::Socket),
            kind("to-fifo", Kind::Symlink),
            kind("to-socket", Kind::Symlink),
        ];
        assert_eq!(kinds, expected);
    });
}

#[test]
fn counts_and_sizes_of_what_is_not_there_end_the_session() {
    let framed = |type_byte: u8, body: &[&[u8]]| {
        let body = body.concat();
        [&(body.len() as u32 + 1).to_le_bytes()[..], &[type_byte], &body].concat()
    };
    let (all, four_mib) = ([0xff; 4].as_slice(), 4_194_304_u32.to_le_bytes());
    let more_than_a_block = 4_194_305_u32.to_le_bytes();
    let table: [(&str, Vec<u8>); 11] = [
        ("hashes, 2^32", framed(0x0a, &[&four_mib, all])),
        ("hashes, 2^32, and one", framed(0x0a, &[&four_mib, all, &[0; 32]])),
        ("hashes, one more than there are", framed(0x0a, &[&four_mib, &[3, 0, 0, 0], &[0; 64]])),
        ("entries of a list, 2^32", framed(0x87, &[all])),
        ("entries of a list, 2^32, and one", framed(0x87, &[all, &[1, 0, 0, 0, b'x'], &[0; 17]])),
        ("bytes of a bitmap, 2^32", framed(0x8a, &[all])),
        ("bytes of data, 2^32", framed(0x84, &[all])),
        ("decompressed bytes, 2^32", framed(0x89, &[&[2], all, &[1, 0, 0, 0], b"x"])),
        ("decompressed bytes, 4 MiB and one", framed(0x89, &[&[2], &more_than_a_block, &[1, 0, 0, 0], b"x"])),
        ("decompressed bytes, none", framed(0x89, &[&[1], &[0; 4], &[1, 0, 0, 0], b"x"])),
        ("a codec that does not exist", framed(0x89, &[&[3], &four_mib, &[1, 0, 0, 0], b"x"])),
    ];
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        for (what, bytes) in &table {
            for inside_a_body in [false, true] {
                let mut serving = Serving::greeted(backend, dialect);
                fs::write(serving.root().join("f"), "old").unwrap();
                if inside_a_body {
                    serving.send(&Frame::Put { path: field("f"), size: 1 << 40, offset: 0, overwrite: true });
                }
                serving.send_bytes(bytes);
                // The client does not end its side: the server must. A Put may have been refused before.
                while let Some(said) = serving.output.next() {
                    let refused = matches!(said, Received::Frame(Frame::Error { .. }));
                    assert!(inside_a_body && refused, "{what}, {dialect:?}: {said:?}");
                }
                let served = serving.end();
                assert_eq!(served.code, Some(1), "{what}, {dialect:?}");
                assert_eq!(served.stderr.lines().count(), 1, "{what}: {}", served.stderr);
                assert_eq!(fs::read(served.root.path().join("root/f")).unwrap(), b"old");
                assert_eq!(names(&served.root.path().join("root")), ["f"]);
            }
        }
    }
}

#[test]
fn a_stream_that_ends_inside_the_length_of_a_frame_is_a_failure_and_one_that_ends_between_two_is_none() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        for length in 0..=5 {
            let mut serving = Serving::greeted(backend, dialect);
            serving.send_bytes(&[9, 0, 0, 0, 3][..length]);
            let served = serving.end();
            assert_eq!(served.code, Some(i32::from(length > 0)), "{length} bytes, {dialect:?}: {}", served.stderr);
        }
    }
}

#[test]
fn a_body_that_is_refused_is_not_sent_back() {
    on_both(&DIALECTS, |serving| {
        let block = data(&vec![200; 4 << 20]);
        for _ in 0..3 {
            serving.send(&Frame::Put { path: field("../f"), size: 12 << 20, offset: 0, overwrite: true });
            (0..3).for_each(|_| serving.send_bytes(&block));
            serving.end_put([0; 32]);
        }
        for _ in 0..3 {
            let Frame::Error { message, .. } = serving.reply() else { panic!() };
            assert!(message.len() < 200, "{} bytes", message.len());
        }
    });
}

/// Sends a file of 64 MiB, and has `change` done to it once the first of it has arrived: more is on its way then, but far
/// from all. Returns what came, and the hash that came behind it; none where that was an Error.
#[track_caller]
fn changed_while_it_is_sent(serving: &mut Serving, change: impl Fn(&fs::File)) -> (Vec<u8>, Option<Hash>) {
    let path = serving.root().join("f");
    crate::support::random_file(&path, 64 << 20, 1);
    serving.send(&Frame::Get { path: field("f"), offset: 0 });
    let (mut arrived, mut changed) = (Vec::new(), false);
    loop {
        match serving.next() {
            Received::Data(content) => arrived.extend_from_slice(&content),
            Received::Frame(Frame::Meta { .. }) => {}
            Received::Frame(Frame::Error { .. }) => return (arrived, None),
            Received::Frame(Frame::Ok { hash }) => return (arrived, hash),
            other => panic!("{other:?} after {} bytes", arrived.len()),
        }
        if !changed && !arrived.is_empty() {
            change(&fs::File::options().write(true).open(&path).unwrap());
            changed = true;
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_sent_ends_in_an_error_between_two_frames() {
    on_both(&DIALECTS, |serving| {
        let (arrived, hash) = changed_while_it_is_sent(serving, |file| file.set_len(40 << 20).unwrap());
        assert!(arrived.len() <= 40 << 20 && hash.is_none(), "{}", arrived.len());
        serving.assert_usable();
        let (_, hash) = changed_while_it_is_sent(serving, |file| {
            file.write_all_at(b"another", 60 << 20).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        });
        assert!(hash.is_none());
    });
}

#[test]
fn a_file_that_only_grows_while_it_is_sent_comes_as_what_it_began_with() {
    on_both(&DIALECTS, |serving| {
        let (arrived, hash) = changed_while_it_is_sent(serving, |file| file.set_len(65 << 20).unwrap());
        assert_eq!(arrived.len(), 64 << 20);
        assert_eq!(hash, Some(blake3_of(&arrived)));
        serving.assert_usable();
    });
}

#[test]
fn a_listing_that_fits_no_frame_is_an_error() {
    // 61,000 names of 250 bytes, each with 21 bytes besides: more than 16 MiB.
    const NAMES: usize = 62_000;
    for backend in BACKENDS {
        let mut serving = Serving::greeted(backend, BASES[0]);
        let dir = serving.root().join("d");
        fs::create_dir(&dir).unwrap();
        let first = dir.join(format!("{:0250}", 0));
        fs::write(&first, "").unwrap();
        for number in 1..NAMES {
            fs::hard_link(&first, dir.join(format!("{number:0250}"))).unwrap();
        }
        serving.send(&Frame::List { path: field("d") });
        serving.refusal("");
        serving.assert_usable();
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn a_server_that_says_error_for_ever_is_left() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        if dialect.version == 2 {
            // haul begins with version 1.
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let args = |pipes: &crate::support::Pipes| {
            let mut args: Vec<OsString> = vec!["copy".into()];
            args.extend(pipes.args());
            args.extend(["far:f".into(), dir.path().join("f").into()]);
            args
        };
        let ended = play(backend, LIMIT, args, |far| {
            far.greet(dialect);
            far.request();
            let error = Frame::Error { message: vec![b'x'; 10_000], code: ErrorCode::OTHER };
            let bytes = crate::support::frames::bytes_of(&error, dialect).repeat(10);
            for _ in 0..10_000 {
                if far.is_alone() {
                    return;
                }
                far.send_bytes(&bytes);
            }
        });
        assert!(!ended.status.success());
        assert!(ended.lines().len() <= 2, "{} lines", ended.lines().len());
        assert!(names(dir.path()).is_empty());
    }
}

#[test]
fn words_of_the_server_are_shown_up_to_a_length() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let args = |pipes: &crate::support::Pipes| {
            let mut args: Vec<OsString> = vec!["copy".into()];
            args.extend(pipes.args());
            args.extend(["far:f".into(), dir.path().join("f").into()]);
            args
        };
        let ended = play(backend, LIMIT, args, |far| {
            far.greet(FULL);
            far.request();
            far.send(&Frame::Error { message: vec![b'x'; 15 << 20], code: ErrorCode::OTHER });
            far.drain();
        });
        ended.assert_exit(23);
        assert!(ended.stderr.len() < 10_000, "{} bytes on stderr", ended.stderr.len());
    }
}

#[test]
fn what_lies_below_a_file_cannot_be_listed() {
    on_both(&DIALECTS, |serving| {
        fs::write(serving.root().join("f"), "x").unwrap();
        serving.send(&Frame::List { path: field("f/x") });
        serving.refusal("Not a directory");
    });
}

#[test]
fn a_put_from_an_offset_keeps_what_a_link_leads_to_or_is_refused() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        fs::write(root.join("real"), "012").unwrap();
        symlink("real", root.join("link")).unwrap();
        put_at_an_offset(serving, "link");
        let reply = serving.reply();
        let found = fs::read_to_string(root.join("link")).unwrap();
        match reply {
            Frame::Ok { .. } => assert_eq!(found, "012abc"),
            Frame::Error { .. } => assert_eq!(found, "012"),
            reply => panic!("{reply:?}"),
        }
        for (link, text) in [("out", "../outside"), ("dangling", "nowhere"), ("loop", "loop")] {
            symlink(text, root.join(link)).unwrap();
            put_at_an_offset(serving, link);
            serving.refusal("");
            assert!(fs::symlink_metadata(root.join(link)).unwrap().is_symlink());
        }
    });
}

#[test]
fn an_offer_of_blocks_that_nobody_agreed_on_gets_one_answer() {
    on_both(&BASES, |serving| {
        serving.send(&Frame::Put { path: field("f"), size: 5, offset: 0, overwrite: true });
        serving.send(&Frame::HaveBlocks { block_size: 4 << 20, hashes: vec![[7; 32]] });
        serving.send_bytes(&data(b"hello"));
        serving.send(&Frame::Done);
        serving.reply();
    });
}

#[test]
fn a_range_that_is_not_offered_gets_one_answer() {
    on_both(&BASES, |serving| {
        serving.send(&Frame::PutChunked { path: field("f"), offset: 0, length: 5 });
        serving.send_bytes(&data(b"hello"));
        serving.send(&Frame::Done);
        serving.reply();
    });
}
