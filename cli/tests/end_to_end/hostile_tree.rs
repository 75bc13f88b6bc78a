//! The real client against servers whose listings lie: whatever they name, nothing is made outside of the target, and
//! what is named well is copied all the same.

use crate::support::frames::{FULL, FarEnd, attributes, blake3_of, data, field, play};
use crate::support::processes::{Ended, LIMIT, names};
use crate::support::{BACKENDS, Remote};
use haul_engine::wire::frame::{Attributes, Dialect, ErrorCode, Frame, Kind, ListEntry, Preserve, TreeEntry};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

const BOTH: [Dialect; 2] = [Dialect::BASE, FULL];

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

    /// Fails unless nothing has happened beside the target.
    #[track_caller]
    fn assert_inside(&self) {
        assert_eq!(names(self.dir.path()), ["elsewhere", "to"], "{:?}", self.ended);
        assert_eq!(names(&self.dir.path().join("elsewhere")), ["passwd"], "{:?}", self.ended);
        assert_eq!(fs::read(self.dir.path().join("elsewhere/passwd")).unwrap(), b"old");
    }

    fn lines_with(&self, words: &str) -> usize {
        self.ended.lines().iter().filter(|line| line.contains(words)).count()
    }
}

/// Runs `haul copy FLAGS far:d/ DIR/to` against a server that lists these entries and answers every Get with the name
/// that was asked for as content.
fn copy_of(backend: &str, dialect: Dialect, flags: &[&str], entries: &[TreeEntry]) -> Scene {
    play_listing(backend, flags, |far| {
        list(far, dialect, entries.to_vec());
        serve_names(far, |_| None);
    })
}

fn play_listing(backend: &str, flags: &[&str], act: impl FnOnce(&mut FarEnd) + Send) -> Scene {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    for name in ["elsewhere", "to"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("elsewhere/passwd"), "old").unwrap();
    let args = |pipes: &crate::support::Pipes| {
        let mut args = vec!["copy".into()];
        args.extend(flags.iter().map(Into::into));
        args.extend(pipes.args());
        args.extend(["far:d/".into(), dir.path().join("to").into_os_string()]);
        args
    };
    let ended = play(backend, LIMIT, args, act);
    Scene { dir, ended }
}

/// Agrees, says that the source is a directory, and lists these entries.
fn list(far: &mut FarEnd, dialect: Dialect, entries: Vec<TreeEntry>) {
    far.greet(dialect);
    far.looked_up(Some(attributes(Kind::Directory, 0)));
    let request = far.request();
    assert!(matches!(request, Frame::Tree { .. } | Frame::List { .. }), "{request:?}");
    let plain = |entry: TreeEntry| ListEntry {
        path: entry.path,
        size: entry.attributes.size,
        mtime: 0,
        is_dir: entry.attributes.kind == Kind::Directory,
    };
    far.send(&match dialect {
        FULL => Frame::TreePage { last: true, entries },
        _ => Frame::ListResponse { entries: entries.into_iter().map(plain).collect() },
    });
}

/// Answers Gets with the last component of the name as content until the client leaves; `refuse` may say no.
fn serve_names(far: &mut FarEnd, refuse: impl Fn(&[u8]) -> Option<Frame>) {
    while let Some(request) = far.next_request() {
        let Frame::Get { path, .. } = request else { panic!("{request:?}") };
        let name = path.0.rsplit(|&byte| byte == b'/' || byte == 0).next().unwrap().to_vec();
        if let Some(refusal) = refuse(&name) {
            far.send(&refusal);
            continue;
        }
        if far.dialect == FULL {
            let attributes = attributes(Kind::Regular, name.len() as u64);
            far.send(&Frame::Meta { attributes, preserve: Preserve::default() });
        }
        far.send_bytes(&data(&name));
        far.send(&Frame::Ok { hash: Some(blake3_of(&name)) });
    }
}

fn entry(path: impl AsRef<[u8]>, kind: Kind) -> TreeEntry {
    let name = path.as_ref().rsplit(|&byte| byte == b'/').next().unwrap().to_vec();
    let link = if kind == Kind::Symlink { b"../elsewhere".to_vec() } else { Vec::new() };
    let attributes = attributes(kind, if kind == Kind::Regular { name.len() as u64 } else { 0 });
    TreeEntry { path: field(path), attributes, link, error: ErrorCode::NONE }
}

#[test]
fn names_that_could_lead_out_of_the_target_are_left_out_and_the_others_copied() {
    let bad = [
        "../passwd",
        "/passwd",
        "a//b",
        ".",
        "./a",
        "a/./b",
        "",
        "..",
        "a/..",
        "a/",
        "x\0y",
        "a/../../elsewhere/passwd",
    ];
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| BOTH.map(|dialect| (backend, dialect))) {
        for kind in [Kind::Regular, Kind::Directory, Kind::Symlink] {
            if kind == Kind::Symlink && dialect != FULL {
                continue;
            }
            let mut entries = vec![entry("first", Kind::Regular)];
            entries.extend(bad.iter().map(|path| entry(path, kind)));
            entries.push(entry("last", Kind::Regular));
            let scene = copy_of(backend, dialect, &["-rl"], &entries);
            scene.ended.assert_exit(23);
            assert_eq!(scene.lines_with("left out: the server sent an unsafe name: "), bad.len(), "{:?}", scene.ended);
            assert_eq!(names(&scene.to()), ["first", "last"]);
            assert_eq!(fs::read(scene.to().join("last")).unwrap(), b"last");
            scene.assert_inside();
        }
    }
}

#[test]
fn nothing_is_written_through_a_link_that_the_server_has_planted() {
    let tree = [
        entry("a", Kind::Symlink),
        entry("a/passwd", Kind::Regular),
        entry("a/sub", Kind::Directory),
        entry("a/sub/x", Kind::Regular),
        entry("a/link", Kind::Symlink),
        entry("z", Kind::Regular),
    ];
    for backend in BACKENDS {
        let scene = copy_of(backend, FULL, &["-rl"], &tree);
        scene.ended.assert_exit(23);
        scene.assert_inside();
        assert_eq!(names(&scene.to()), ["a", "z"]);
        // Without -l the link is left out, and what is below it lands in a directory of that name.
        let scene = copy_of(backend, FULL, &["-r"], &tree);
        scene.ended.assert_exit(0);
        scene.assert_inside();
        assert!(scene.to().join("a").symlink_metadata().unwrap().is_dir());
        assert_eq!(fs::read(scene.to().join("a/passwd")).unwrap(), b"passwd");
    }
}

#[test]
fn a_link_listed_after_the_files_below_it_does_not_replace_their_directory() {
    let tree = [entry("a/passwd", Kind::Regular), entry("a", Kind::Symlink), entry("a/more", Kind::Regular)];
    for backend in BACKENDS {
        let scene = copy_of(backend, FULL, &["-rl"], &tree);
        scene.ended.assert_exit(23);
        scene.assert_inside();
    }
}

#[test]
fn a_name_listed_twice_ends_as_one_whole_thing() {
    use Kind::{Directory, Fifo, Regular, Symlink};
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| BOTH.map(|dialect| (backend, dialect))) {
        let twice = [entry("f", Regular), entry("f", Regular), entry("f", Regular)];
        let scene = copy_of(backend, dialect, &["-r"], &twice);
        assert!(matches!(scene.ended.status.code(), Some(0 | 23)), "{:?}", scene.ended);
        assert_eq!(names(&scene.to()), ["f"]);
        assert_eq!(fs::read(scene.to().join("f")).unwrap(), b"f");
        for (one, other) in [(Regular, Directory), (Directory, Regular)] {
            let scene = copy_of(backend, dialect, &["-r"], &[entry("f", one), entry("f", other), entry("g", Regular)]);
            scene.ended.assert_exit(23);
            assert_eq!(names(&scene.to()), ["f", "g"]);
        }
        if dialect == FULL {
            let kinds = [entry("f", Symlink), entry("f", Fifo), entry("f", Regular), entry("f", Symlink)];
            let scene = copy_of(backend, dialect, &["-rl"], &kinds);
            assert!(matches!(scene.ended.status.code(), Some(0 | 23)), "{:?}", scene.ended);
            assert_eq!(names(&scene.to()), ["f"]);
            scene.assert_inside();
        }
    }
}

#[test]
fn devices_pipes_and_sockets_of_a_listing_are_left_out() {
    for backend in BACKENDS {
        let kinds = [Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];
        let mut entries: Vec<TreeEntry> = kinds.iter().map(|&kind| entry(format!("{kind:?}"), kind)).collect();
        entries.push(entry("file", Kind::Regular));
        let scene = copy_of(backend, FULL, &["-a"], &entries);
        scene.ended.assert_exit(0);
        assert_eq!(names(&scene.to()), ["file"]);
        assert!(scene.ended.stderr.contains("left out 1 FIFO"), "{:?}", scene.ended);
    }
}

#[test]
fn a_directory_where_a_file_was_asked_for_makes_nothing() {
    for backend in BACKENDS {
        let scene = play_listing(backend, &[], |far| {
            far.greet(FULL);
            far.looked_up(Some(attributes(Kind::Directory, 0)));
            far.drain();
        });
        scene.ended.assert_exit(23);
        let lines =
            ["haul: far:d: left out: it is a directory, and -r was not given", "hint: use -r to copy directories"];
        assert_eq!(scene.ended.lines(), lines);
        assert!(names(&scene.to()).is_empty());
        for kind in [Kind::Fifo, Kind::Symlink, Kind::CharDevice] {
            let scene = play_listing(backend, &[], |far| {
                far.greet(FULL);
                far.looked_up(Some(attributes(kind, 0)));
                far.drain();
            });
            scene.ended.assert_exit(23);
            assert!(names(&scene.to()).is_empty());
        }
    }
}

#[test]
fn whatever_kind_and_mode_come_with_content_make_a_plain_file() {
    for backend in BACKENDS {
        for kind in [Kind::Regular, Kind::Directory, Kind::Symlink, Kind::Fifo, Kind::BlockDevice] {
            let scene = play_listing(backend, &["-r"], |far| {
                list(far, FULL, vec![entry("f", Kind::Regular)]);
                far.request();
                let attributes = Attributes { mode: 0o7777, uid: 12345, gid: 12345, ..attributes(kind, 1) };
                far.send(&Frame::Meta { attributes, preserve: Preserve(0xff) });
                far.send_bytes(&data(b"x"));
                far.send(&Frame::Ok { hash: Some(blake3_of(b"x")) });
                far.drain();
            });
            if scene.ended.status.code() == Some(0) {
                let meta = scene.to().join("f").symlink_metadata().unwrap();
                assert!(meta.is_file());
                assert_eq!(meta.permissions().mode() & 0o7000, 0, "set-ID bits were not asked for");
                assert_ne!(meta.uid(), 12345, "owners were not asked for");
            } else {
                scene.ended.assert_exit(23);
                assert!(names(&scene.to()).is_empty());
            }
            assert!(kind != Kind::Regular || scene.ended.status.code() == Some(0));
        }
    }
}

#[test]
fn a_file_that_vanished_after_it_was_listed_is_told_from_one_that_failed() {
    let error = |errno: u16, text: &str| Frame::Error { message: text.into(), code: ErrorCode(4096 + errno) };
    let tree = ["f1", "f2", "f3"].map(|name| entry(name, Kind::Regular)).to_vec();
    for backend in BACKENDS {
        for (first, second, code) in [(Some(2), None, 24), (Some(2), Some(13), 23), (Some(2), Some(28), 11)] {
            let scene = play_listing(backend, &["-r"], |far| {
                list(far, FULL, tree.clone());
                serve_names(far, |name| match name {
                    b"f1" => first.map(|errno| error(errno, "cannot open: No such file or directory")),
                    b"f2" => second.map(|errno| error(errno, "cannot read: some reason")),
                    _ => None,
                });
            });
            scene.ended.assert_exit(code);
            assert_eq!(scene.lines_with("haul: far:d/f1: cannot open: No such file or directory"), 1);
            // One bad file does not stop the others.
            assert_eq!(fs::read(scene.to().join("f3")).unwrap(), b"f3");
            let left = names(&scene.to());
            assert_eq!(left.len(), 1 + usize::from(second.is_none()), "{left:?}");
        }
    }
}

#[test]
fn names_of_any_bytes_arrive_and_are_shown_harmlessly() {
    let name = b"\x1b[31m\xff\n\xe2\x80\xae";
    for backend in BACKENDS {
        let scene = copy_of(backend, FULL, &["-rv"], &[entry(name, Kind::Regular), entry("b", Kind::Fifo)]);
        scene.ended.assert_exit(0);
        assert_eq!(names(&scene.to())[0].as_bytes(), name);
        let shown = scene.ended.stderr.replace('\n', "");
        assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
        assert!(shown.contains("\\x1b[31m\\xff\\n\\u{202e}"), "{shown}");
        let scene = play_listing(backend, &["-r"], |far| {
            list(far, FULL, vec![entry("a\x1b[2J\nhaul: all is well", Kind::Regular)]);
            serve_names(far, |_| Some(Frame::Error { message: b"cannot open: no".to_vec(), code: ErrorCode::OTHER }));
        });
        scene.ended.assert_exit(23);
        assert_eq!(scene.ended.lines(), ["haul: far:d/a\\x1b[2J\\nhaul: all is well: cannot open: no"]);
    }
}

#[test]
fn names_longer_than_a_file_system_can_have_are_left_out_and_not_printed() {
    let long = |bytes: usize| "n".repeat(bytes);
    let deep = format!("{}name", "d/".repeat(8_200));
    for backend in BACKENDS {
        for dialect in BOTH {
            let entries = [
                entry(long(256), Kind::Regular),
                entry(&deep, Kind::Regular),
                entry(long(15_000_000), Kind::Regular),
                entry("good", Kind::Regular),
            ];
            let scene = copy_of(backend, dialect, &["-r"], &entries);
            scene.ended.assert_exit(23);
            assert_eq!(scene.lines_with("a part of the name is longer than 255 bytes"), 1, "{:?}", scene.ended.lines());
            assert_eq!(scene.lines_with("the name is longer than 16384 bytes"), 2);
            assert!(scene.ended.stderr.len() < 4_000, "{} bytes were printed", scene.ended.stderr.len());
            assert_eq!(names(&scene.to()), ["good"]);
            scene.assert_inside();
        }
        let link = TreeEntry { link: vec![b'l'; 5_000], ..entry("link", Kind::Symlink) };
        let scene = copy_of(backend, FULL, &["-rl"], &[link, entry("good", Kind::Regular)]);
        scene.ended.assert_exit(23);
        assert_eq!(scene.lines_with("a link text longer than 4096 bytes"), 1, "{:?}", scene.ended.lines());
        assert_eq!(names(&scene.to()), ["good"]);
    }
}
