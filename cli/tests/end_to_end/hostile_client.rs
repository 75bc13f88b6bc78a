//! Raw frames against the real `haul serve`: what clients of every dialect may ask, and what none of them may do.

use crate::support::BACKENDS;
use crate::support::frames::{
    BASES, DIALECTS, FULL, Received, Serving, attributes, blake3_of, bytes_of, data, field, hello, path,
};
use crate::support::processes::names;
use haul_engine::wire::encode::compressed_header;
use haul_engine::wire::frame::{Dialect, ErrorCode, Frame, Kind, PathField, Preserve};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

/// A size that is received into memory first, and one that is written as it comes.
const SIZES: [usize; 2] = [1000, 300_000];

/// Runs a session on both backends; afterwards it must still be usable and end well.
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

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index % 251) as u8).collect()
}

fn get(name: &str, offset: u64) -> Frame {
    Frame::Get { path: field(name), offset }
}

fn stat(name: &str) -> Frame {
    Frame::Stat { path: field(name) }
}

fn put(name: &str, size: usize) -> Frame {
    Frame::Put { path: field(name), size: size as u64, offset: 0, overwrite: true }
}

#[test]
fn stat_and_list_answer_as_the_reference_says() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        fs::create_dir_all(root.join("d/e")).unwrap();
        fs::write(root.join("d/e/f"), "12345").unwrap();
        symlink("d/e/f", root.join("link")).unwrap();
        let file = fs::File::options().write(true).open(root.join("d/e/f")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_millis(1_500_900)).unwrap();
        for name in ["d/e/f", "link", "./d//e/f"] {
            assert_eq!(serving.ask(&stat(name)), Frame::StatResponse { size: 5, mtime: 1500, is_dir: false }, "{name}");
        }
        file.set_modified(std::time::UNIX_EPOCH - Duration::from_secs(7)).unwrap();
        assert_eq!(serving.ask(&stat("link")), Frame::StatResponse { size: 5, mtime: 0, is_dir: false });
        for name in ["", ".", "d"] {
            assert!(matches!(serving.ask(&stat(name)), Frame::StatResponse { is_dir: true, .. }), "{name}");
        }
        for (name, why) in [("missing", "No such file"), ("d/e/f/g", "Not a directory"), ("fifo", "Not a regular file")]
        {
            let _ = Command::new("mkfifo").arg(root.join("fifo")).stderr(std::process::Stdio::null()).status();
            serving.send(&stat(name));
            serving.refusal(why);
        }
        let listing = |reply: Frame| -> Vec<(String, u64, bool)> {
            let Frame::ListResponse { entries } = reply else { panic!("{reply:?}") };
            let text = |path: PathField| String::from_utf8(path.0).unwrap();
            entries.into_iter().map(|entry| (text(entry.path), entry.size, entry.is_dir)).collect()
        };
        let inner = listing(serving.ask(&Frame::List { path: field("d") }));
        assert!(matches!(&inner[..], [(e, _, true), (f, 5, false)] if e == "e" && f == "e/f"), "{inner:?}");
        assert!(listing(serving.ask(&Frame::List { path: field("d/e/f") })).is_empty());
        let all = listing(serving.ask(&Frame::List { path: field("") }));
        assert!(
            all.contains(&("link".to_string(), 5, false)) && !all.iter().any(|(name, ..)| name == "fifo"),
            "{all:?}"
        );
        let place = |wanted: &str| all.iter().position(|(name, ..)| name == wanted);
        assert!(place("d") < place("d/e") && place("d/e") < place("d/e/f"), "{all:?}");
        serving.send(&Frame::List { path: field("missing") });
        serving.refusal("No such file");
    });
}

#[test]
fn hash_mkdir_and_resume_answer_as_the_reference_says() {
    const BLOCK: usize = 4 * 1024 * 1024;
    let content = pattern(2 * BLOCK + 5);
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        fs::write(root.join("f"), &content).unwrap();
        for (offset, limit) in
            [(0, None), (7, None), (7, Some(100)), (8_388_600, Some(1000)), (1 << 40, None), (0, Some(0))]
        {
            let start = content.len().min(offset as usize);
            let end = limit.map_or(content.len(), |limit: u64| content.len().min(start + limit as usize));
            let hash = blake3_of(&content[start..end]);
            let reply = serving.ask(&Frame::Hash { path: field("f"), offset, limit });
            assert_eq!(reply, Frame::HashResponse { hash }, "{offset} {limit:?}");
        }
        for _ in 0..2 {
            assert_eq!(serving.ask(&Frame::Mkdir { path: field("x/y/z") }), Frame::Ok { hash: None });
        }
        assert!(root.join("x/y/z").is_dir());
        for name in ["f", "f/g"] {
            serving.send(&Frame::Mkdir { path: field(name) });
            serving.refusal("Not a directory");
        }
        serving.send(&Frame::Hash { path: field("x"), offset: 0, limit: None });
        serving.refusal("Is a directory");
        fs::write(root.join("small"), "small").unwrap();
        let last_block = blake3_of(&content[BLOCK..2 * BLOCK]);
        for (name, size, hash) in
            [("missing", 0, None), ("small", 5, None), ("f", content.len() as u64, Some(last_block))]
        {
            let reply = serving.ask(&Frame::Resume { path: field(name) });
            assert_eq!(reply, Frame::ResumeResponse { size, hash }, "{name}");
        }
        serving.send(&Frame::Resume { path: field("x") });
        serving.refusal("Not a regular file");
    });
}

#[test]
fn get_and_put_answer_as_the_reference_says() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        for size in [0, 1, SIZES[0], SIZES[1]] {
            let content = pattern(size);
            serving.put("new/dir/f", &content);
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
            for offset in [0, 1, size as u64 / 2, size as u64, size as u64 + 9] {
                serving.send(&get("new/dir/f", offset));
                assert_eq!(serving.got(), content[size.min(offset as usize)..], "{size} {offset}");
            }
        }
        serving.send(&get("missing", 0));
        serving.refusal("No such file");
        // From an offset: what was there before it stays, and there is no hash of the whole.
        fs::write(root.join("f"), "0123456789").unwrap();
        serving.send(&Frame::Put { path: field("f"), size: 7, offset: 4, overwrite: true });
        serving.send_bytes(&data(b"abc"));
        serving.end_put(blake3_of(b"abc"));
        assert_eq!(serving.reply(), Frame::Ok { hash: None });
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "0123abc");
        serving.send(&Frame::Put { path: field("f"), size: 7, offset: 8, overwrite: true });
        serving.end_put(blake3_of(b""));
        serving.refusal("the offset is past the declared size");
        if serving.dialect.version == 2 {
            serving.send(&Frame::Put { path: field("f"), size: 1, offset: 0, overwrite: false });
            serving.send_bytes(&data(b"x"));
            serving.end_put(blake3_of(b"x"));
            serving.refusal("File exists");
        }
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "0123abc");
        assert_eq!(names(&root), ["f", "new"]);
    });
}

#[test]
fn a_session_that_does_not_begin_with_a_hello_of_a_known_version_is_ended_with_one_error() {
    for backend in BACKENDS {
        for first in [stat("f"), Frame::Done, Frame::Welcome { version: 1, caps: Default::default(), ext: None }] {
            let mut serving = Serving::start(backend);
            serving.send(&first);
            serving.refusal("Hello");
            let served = serving.end();
            assert!(served.rest.is_empty() && matches!(served.code, Some(0 | 1)), "{:?}", served.code);
        }
        for version in [0, 3, 9, 255] {
            let mut serving = Serving::start(backend);
            serving.send(&hello(Dialect { version, ..Dialect::BASE }));
            serving.refusal(&format!("protocol version mismatch: client={version} server=2"));
            let served = serving.end();
            assert!(served.rest.is_empty());
            assert_eq!(served.code, Some(0));
        }
    }
}

#[test]
fn a_body_of_the_wrong_length_is_refused_once_and_the_old_file_stays() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        fs::write(root.join("f"), "old").unwrap();
        for size in SIZES {
            for (sent, why) in
                [(0, "declared"), (size - 1, "declared"), (size + 1, "past the declared size"), (3 * size, "past")]
            {
                serving.send(&put("f", size));
                pattern(sent).chunks(size / 2).for_each(|block| serving.send_bytes(&data(block)));
                serving.end_put(blake3_of(&pattern(sent)));
                serving.refusal(why);
            }
        }
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "old");
        assert_eq!(names(&root), ["f"]);
    });
}

#[test]
fn a_stream_that_ends_inside_a_body_publishes_nothing_and_is_a_failure() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        for size in SIZES {
            let content = pattern(size);
            let inside_a_frame = data(&content)[..size / 2].to_vec();
            for body in [Vec::new(), data(&content[1..]), data(&content), inside_a_frame] {
                let mut serving = Serving::greeted(backend, dialect);
                fs::write(serving.root().join("f"), "old").unwrap();
                serving.send(&put("f", size));
                serving.send_bytes(&body);
                let served = serving.end();
                assert!(!served.rest.iter().any(|said| matches!(said, Received::Frame(Frame::Ok { .. }))));
                assert_eq!(served.code, Some(1), "{}", served.stderr);
                let root = served.root.path().join("root");
                assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "old");
                assert_eq!(names(&root), ["f"]);
            }
        }
    }
}

#[test]
fn what_belongs_to_no_request_gets_one_error() {
    let commit = Frame::Commit { hash: [0; 32] };
    let meta = Frame::Meta { attributes: attributes(Kind::Regular, 1), preserve: Preserve::default() };
    let compressed = [&compressed_header(1, 3, 3), b"abc".as_slice()].concat();
    on_both(&DIALECTS, |serving| {
        let dialect = serving.dialect;
        let done = bytes_of(&Frame::Done, dialect);
        let mut strays = vec![
            ("Done", done.clone()),
            ("Data", [data(b"x"), data(b"y"), data(b""), done.clone()].concat()),
            ("DataCompressed", [&compressed[..], &data(b"x"), &done].concat()),
            ("Hello", bytes_of(&hello(dialect), dialect)),
            ("HaveBlocks", bytes_of(&Frame::HaveBlocks { block_size: 4 << 20, hashes: vec![[0; 32]; 3] }, dialect)),
            ("only servers send", bytes_of(&Frame::Ok { hash: None }, dialect)),
            ("not offered", bytes_of(&Frame::OpenDirectChannel, dialect)),
        ];
        if dialect == FULL {
            strays.push(("Commit", bytes_of(&commit, dialect)));
            strays.push(("Abandon", bytes_of(&Frame::Abandon { code: ErrorCode::OTHER }, dialect)));
            strays.push(("Meta", [bytes_of(&meta, dialect), data(b"x"), bytes_of(&commit, dialect)].concat()));
        }
        for (name, bytes) in strays {
            serving.send_bytes(&bytes);
            serving.refusal(name);
            serving.assert_usable();
        }
    });
}

#[test]
fn the_body_of_a_put_that_failed_early_is_dropped_after_one_error() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("file"), "old").unwrap();
        for size in SIZES {
            for (name, why) in
                [("dir", "Is a directory"), ("", "Is a directory"), ("file/x", "Not a directory"), ("../x", "'..'")]
            {
                serving.put(name, &pattern(size));
                serving.refusal(why);
                serving.assert_usable();
            }
            // The next request ends a body that has no end of its own.
            serving.send(&put("dir", size));
            serving.send_bytes(&data(b"x"));
            serving.refusal_then_usable("");
        }
        assert_eq!(names(&root), ["dir", "file"]);
    });
}

#[test]
fn compressed_content_that_was_not_agreed_on_is_refused_and_not_published() {
    on_both(&DIALECTS, |serving| {
        for codec in [1, 2] {
            serving.send(&put("f", 3));
            serving.send_bytes(&[&compressed_header(codec, 3, 3), b"abc".as_slice()].concat());
            serving.end_put(blake3_of(b"abc"));
            serving.refusal("compressed");
        }
        assert!(names(&serving.root()).is_empty());
    });
}

#[test]
fn a_put_that_is_not_committed_with_its_own_hash_leaves_the_old_file() {
    on_both(&[FULL], |serving| {
        let root = serving.root();
        fs::write(root.join("f"), "old").unwrap();
        for size in SIZES {
            let ends = [
                (Frame::Commit { hash: blake3_of(b"other") }, ErrorCode::HASH_MISMATCH),
                (Frame::Abandon { code: ErrorCode::OTHER }, ErrorCode::ABANDONED),
                (Frame::Done, ErrorCode::OTHER),
            ];
            for (end, code) in ends {
                serving.send(&put("f", size));
                serving.send_bytes(&data(&pattern(size)));
                serving.send(&end);
                assert_eq!(serving.refusal(""), code, "{end:?}");
                serving.assert_usable();
            }
        }
        assert_eq!(fs::read_to_string(root.join("f")).unwrap(), "old");
        assert_eq!(names(&root), ["f"]);
    });
}

/// Every request with a path, and how its body ends if it has one.
fn requests(path: &PathField) -> Vec<Frame> {
    let (meta, preserve) = (attributes(Kind::Directory, 0), Preserve::default());
    let path = || path.clone();
    vec![
        Frame::Stat { path: path() },
        Frame::List { path: path() },
        Frame::Hash { path: path(), offset: 0, limit: None },
        Frame::Get { path: path(), offset: 0 },
        Frame::Resume { path: path() },
        Frame::Mkdir { path: path() },
        Frame::Put { path: path(), size: 0, offset: 0, overwrite: true },
        Frame::Lookup { path: path(), follow: true },
        Frame::Tree { walk: 1, path: path(), recursive: true },
        Frame::SetMeta { path: path(), attributes: meta, preserve },
        Frame::Symlink { path: path(), target: b"text".to_vec(), attributes: meta, preserve },
    ]
}

/// Fails unless every request for this path is refused, with these words in all that look at it.
#[track_caller]
fn assert_all_refused(serving: &mut Serving, path: &PathField, words: &str) {
    let of_dialect = if serving.dialect == FULL { 11 } else { 7 };
    for request in requests(path).into_iter().take(of_dialect) {
        eprintln!("{request:?}");
        serving.send(&request);
        if matches!(request, Frame::Put { .. }) {
            serving.end_put(blake3_of(b""));
        }
        match (&request, serving.next()) {
            (_, Received::Frame(Frame::Error { message, .. })) => {
                let text = String::from_utf8_lossy(&message).into_owned();
                assert!(text.contains(words), "{text}");
            }
            // A walk says in its only entry why it could not begin.
            (Frame::Tree { .. }, Received::Frame(Frame::TreePage { last: true, entries })) => {
                assert!(matches!(&entries[..], [entry] if entry.error == ErrorCode::OUTSIDE_ROOT), "{entries:?}");
            }
            (_, reply) => panic!("{request:?} is answered with {reply:?}"),
        }
    }
}

#[test]
fn paths_that_nobody_may_send_are_refused_by_every_request() {
    on_both(&DIALECTS, |serving| {
        for bad in ["..", "../x", "a/../../x", "/..", "a/.."] {
            assert_all_refused(serving, &field(bad), "'..' is not allowed");
        }
        let nul = if serving.dialect == FULL { "a\0b\0c" } else { "a\0b" };
        assert_all_refused(serving, &field(nul), "NUL");
        if serving.dialect == FULL {
            for bad in ["d\0", "d\0..", "d\0../x", "d\0/x", "d\0a//b", "d\0a/", "d\0.", "d\0a/./b", "..\0x"] {
                assert_all_refused(serving, &field(bad), "cannot use this path");
            }
        }
        assert!(names(&serving.root()).is_empty());
        assert_eq!(names(serving.root().parent().unwrap()), ["root"]);
    });
}

#[test]
fn no_path_and_no_link_leads_out_of_the_served_root() {
    on_both(&DIALECTS, |serving| {
        let root = serving.root();
        let above = root.parent().unwrap().to_path_buf();
        fs::create_dir(root.join("real")).unwrap();
        fs::create_dir(above.join("rootless")).unwrap();
        symlink(root.join("real"), root.join("inside")).unwrap();
        symlink(&above, root.join("out")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("real/../../rootless", root.join("round")).unwrap();
        symlink(above.join("new"), root.join("dangling")).unwrap();
        let outside =
            ["/", "/etc/passwd", above.to_str().unwrap(), above.join("rootless").to_str().unwrap()].map(String::from);
        let below = ["up/new", "out/new", "out/root/real", "up/rootless/new", "round/new"].map(String::from);
        for bad in outside.into_iter().chain(below) {
            assert_all_refused(serving, &field(bad), "escapes server root");
        }
        for bad in ["up", "out", "round", "dangling"] {
            for request in [stat(bad), get(bad, 0), Frame::List { path: field(bad) }, Frame::Mkdir { path: field(bad) }]
            {
                serving.send(&request);
                serving.refusal("");
            }
            // A link that leads out is neither replaced nor written through, whatever is there.
            serving.put(bad, b"x");
            serving.refusal("escapes server root");
            assert!(fs::symlink_metadata(root.join(bad)).unwrap().is_symlink());
        }
        // One that leads nowhere is replaced.
        symlink("nothing", root.join("nowhere")).unwrap();
        serving.put("nowhere", b"x");
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(b"x")) });
        assert!(fs::symlink_metadata(root.join("nowhere")).unwrap().is_file());
        // What stays inside is served, however it is written.
        for good in [path(&root.join("real/f")), field("inside/f"), path(&root.join("inside/f")), field("real/f")] {
            serving.send(&Frame::Put { path: good, size: 1, offset: 0, overwrite: true });
            serving.send_bytes(&data(b"y"));
            serving.end_put(blake3_of(b"y"));
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(b"y")) });
        }
        assert_eq!(fs::read_to_string(root.join("real/f")).unwrap(), "y");
        assert_eq!(names(&above), ["root", "rootless"]);
        assert!(names(&above.join("rootless")).is_empty());
    });
}

#[test]
fn links_below_an_operand_are_not_followed() {
    on_both(&[FULL], |serving| {
        let root = serving.root();
        fs::create_dir_all(root.join("d/real")).unwrap();
        fs::write(root.join("d/real/f"), "f").unwrap();
        symlink("real", root.join("d/link")).unwrap();
        for request in requests(&field("d\0link/f")) {
            serving.send(&request);
            if matches!(request, Frame::Put { .. }) {
                serving.end_put(blake3_of(b""));
            }
            match serving.reply() {
                Frame::Error { .. } => {}
                Frame::TreePage { entries, last: true } if entries[0].error != ErrorCode::NONE => {}
                reply => panic!("{request:?} is answered with {reply:?}"),
            }
        }
        assert_eq!(fs::read_to_string(root.join("d/real/f")).unwrap(), "f");
    });
}

#[test]
fn a_named_pipe_blocks_nobody() {
    on_both(&DIALECTS, |serving| {
        let fifo = serving.root().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        serving.send(&get("fifo", 0));
        serving.refusal("Not a regular file");
        serving.send(&Frame::Hash { path: field("fifo"), offset: 0, limit: None });
        serving.refusal("Not a regular file");
        serving.put("fifo", b"x");
        serving.refusal("Not a regular file");
    });
}

#[test]
fn a_malformed_frame_ends_the_session_without_a_word() {
    let path_field = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
    let framed = |type_byte: u8, body: &[u8]| [&(body.len() as u32 + 1).to_le_bytes()[..], &[type_byte], body].concat();
    let everywhere = &DIALECTS[..];
    let table: [(&str, Vec<u8>, &[Dialect]); 12] = [
        ("unknown type", framed(0x7f, b""), everywhere),
        ("a type of servers' extensions", framed(0xc0, b""), everywhere),
        ("extension not agreed on", framed(0x42, &[path_field(b"x"), vec![1]].concat()), &BASES),
        ("length 0", vec![0, 0, 0, 0], everywhere),
        ("length above 16 MiB", vec![1, 0, 0, 1, 3], everywhere),
        ("length of 4 GiB", vec![0xff; 4], everywhere),
        ("name that is not UTF-8", framed(3, &path_field(b"\xff")), &BASES),
        ("field past the end", framed(3, &[9, 0, 0, 0, b'x']), everywhere),
        ("bytes behind the end", framed(3, &[path_field(b"x"), vec![0]].concat()), &[BASES[1], FULL]),
        ("data of another length", framed(0x84, &[9, 0, 0, 0, b'x']), everywhere),
        ("hashes that are not there", framed(0x0a, &[0, 0, 0x40, 0, 0, 0, 0x0f, 0]), everywhere),
        ("unknown kind of file", framed(0xc1, &[9; 34]), &[FULL]),
    ];
    for (what, bytes, dialects) in &table {
        for (backend, &dialect) in BACKENDS.into_iter().flat_map(|backend| dialects.iter().map(move |d| (backend, d))) {
            let mut serving = Serving::greeted(backend, dialect);
            serving.send_bytes(bytes);
            // The client does not end its side: the server must.
            assert_eq!(serving.output.next(), None, "{what}, {dialect:?}");
            let served = serving.end();
            assert_eq!(served.code, Some(1), "{what}, {dialect:?}");
            assert_eq!(served.stderr.lines().count(), 1, "{what}: {}", served.stderr);
        }
    }
}
