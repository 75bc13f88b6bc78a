//! Reading, making, publishing, storing and cloning files.

use crate::rig::*;
use haul_engine::backend::*;
use haul_engine::block::Slices;
use haul_engine::wire::frame::{Attributes, Kind, Preserve};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

#[test]
fn a_file_has_its_old_content_until_it_is_published_and_then_all_of_the_new() {
    let mut rig = Rig::new();
    fs::write(rig.path("f"), "the old content").unwrap();
    set_mode(&rig.path("f"), 0o640);
    let (file, before) = rig.create("f", 3, 0).unwrap();
    assert_eq!((before.kind, before.size, before.mode), (Kind::Regular, 15, 0o640));
    rig.write(file, 2, b"w");
    rig.write(file, 0, b"ne");
    assert_eq!(fs::read(rig.path("f")).unwrap(), b"the old content");
    let old = fs::File::open(rig.path("f")).unwrap();
    rig.publish(file, finish(attributes(0o777, (1_700_000_000, 123_456_789)), Preserve(0))).unwrap();
    assert_eq!(fs::read(rig.path("f")).unwrap(), b"new");
    assert_eq!(std::io::read_to_string(old).unwrap(), "the old content");
    assert_eq!(mode(&rig.path("f")), 0o640, "a replaced file keeps its mode");
    let stat = fs::metadata(rig.path("f")).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(rig.publish(file, PLAIN), Err(Errno::STALE_ID));
    rig.assert_names(&["f"]);
}

#[test]
fn a_file_that_is_not_published_leaves_nothing() {
    let mut rig = Rig::new();
    fs::write(rig.path("kept"), "old").unwrap();
    for name in ["kept", "fresh"] {
        let (file, _) = rig.create(name, 100, 0).unwrap();
        rig.write(file, 0, b"half");
        rig.close(file);
        rig.assert_names(&["kept"]);
        assert_eq!(rig.run(OpKind::Close { file }).map(|_| ()), Err(Errno::STALE_ID));
    }
    rig.create("fresh", 100, 0).unwrap();
    let Rig { offload, dir, .. } = rig;
    drop(offload);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(fs::read(dir.path().join("kept")).unwrap(), b"old");
}

#[test]
fn a_stored_file_has_the_mode_the_umask_or_preserve_ask_for() {
    let mut rig = Rig::new();
    // The umask can only be seen in what it does.
    fs::write(rig.path("plain"), "").unwrap();
    let usual = mode(&rig.path("plain"));
    rig.store("a", b"x", PLAIN).unwrap();
    assert_eq!(mode(&rig.path("a")), usual);
    rig.store("b", b"x", finish(attributes(0o6666, (5, 6)), Preserve(0))).unwrap();
    assert_eq!(mode(&rig.path("b")), usual, "set-ID bits do not travel uninvited");
    rig.store("c", b"x", finish(attributes(0o6751, (5, 6)), Preserve::MODE)).unwrap();
    assert_eq!(mode(&rig.path("c")), 0o6751);
    let foreign = Attributes { uid: attributes(0, (0, 0)).uid + 1, ..attributes(0o6751, (5, 6)) };
    rig.store("d", b"x", finish(foreign, Preserve::MODE)).unwrap();
    assert_eq!(mode(&rig.path("d")), 0o751);
    set_mode(&rig.path("c"), 0o4711);
    rig.store("c", b"x", finish(attributes(0o644, (5, 6)), Preserve(0))).unwrap();
    assert_eq!(mode(&rig.path("c")), 0o711, "a replaced file keeps its mode without set-ID bits");
    let owned = finish(foreign, Preserve::MODE.or(Preserve::OWNER));
    rig.store("e", b"x", owned).unwrap();
    let (stat, root) = (fs::metadata(rig.path("e")).unwrap(), attributes(0, (0, 0)).uid == 0);
    assert_eq!((stat.uid() == foreign.uid, mode(&rig.path("e"))), (root, if root { 0o6751 } else { 0o751 }));
    let synced = Finish { sync: true, ..PLAIN };
    rig.store("f", b"x", synced).unwrap();
    rig.store("f", b"y", synced).unwrap();
    assert_eq!(rig.load("f").unwrap().0, b"y");
    rig.assert_names(&["a", "b", "c", "d", "e", "f", "plain"]);
}

#[test]
fn overwriting_is_refused_when_it_was_not_allowed() {
    let mut rig = Rig::new();
    fs::write(rig.path("f"), "old").unwrap();
    symlink("nowhere", rig.path("link")).unwrap();
    for name in ["f", "link"] {
        let careful = OpenMode::Create { size: 1, keep: 0, overwrite: false };
        assert_eq!(rig.open(name, careful).unwrap_err(), Errno::EXISTS);
        let (place, from) = (rig.place(name), Slices::from_iter([rig.slice(b"new")]));
        let store = Store { place, from, finish: PLAIN, overwrite: false };
        assert_eq!(rig.run(OpKind::Store(Box::new(store))).map(|_| ()), Err(Errno::EXISTS));
    }
    assert_eq!(fs::read(rig.path("f")).unwrap(), b"old");
    rig.assert_names(&["f", "link"]);
}

#[test]
fn a_kept_prefix_is_the_old_files_and_the_rest_is_new() {
    let mut rig = Rig::new();
    let old: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(rig.path("f"), &old).unwrap();
    let (file, before) = rig.create("f", 200_010, 200_000).unwrap();
    assert_eq!(before.size, 300_000);
    rig.write(file, 200_000, b"0123456789");
    rig.publish(file, PLAIN).unwrap();
    assert_eq!(fs::read(rig.path("f")).unwrap(), [&old[..200_000], b"0123456789"].concat());
    // More kept than the file shall have: cut.
    let (file, _) = rig.create("f", 5, 200_010).unwrap();
    rig.publish(file, PLAIN).unwrap();
    assert_eq!(fs::read(rig.path("f")).unwrap(), &old[..5]);
    // What is not there cannot be kept: zeros in its place would be nobody's file.
    assert_eq!(rig.create("f", 10, 6).unwrap_err(), Errno::SHORT_SOURCE);
    assert_eq!(rig.create("none", 2, 1).unwrap_err(), Errno::NOT_FOUND);
    symlink("f", rig.path("link")).unwrap();
    assert_eq!(rig.create("link", 10, 1).unwrap_err(), Errno::NOT_REGULAR);
    rig.assert_names(&["f", "link"]);
}

#[test]
fn a_file_that_cannot_fit_is_refused_before_a_byte_is_sent() {
    let mut rig = Rig::new();
    assert_eq!(rig.create("f", u64::MAX / 2, 0).unwrap_err(), Errno::NO_SPACE);
    fs::write(rig.path("f"), "0123456789").unwrap();
    assert!(rig.create("f", 20, 10).is_ok(), "what is kept takes no new space");
    rig.assert_names(&["f"]);
}

#[test]
fn reading_gives_the_bytes_of_the_range_and_is_short_only_at_the_end() {
    let mut rig = Rig::new();
    let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 249) as u8).collect();
    fs::write(rig.path("f"), &bytes).unwrap();
    let (file, attributes) = rig.open("f", OpenMode::Read).unwrap();
    assert_eq!(attributes.size, 100_000);
    for (offset, len, expected) in
        [(0, 65_536, 65_536), (65_536, 65_536, 34_464), (100_000, 10, 0), (u64::MAX / 4, 1, 0)]
    {
        let into = rig.block();
        let (kind, result) = rig.complete(OpKind::Read { file, offset, into, len });
        let OpKind::Read { into, .. } = kind else { panic!("another op came back") };
        let Ok(Output::Bytes(count)) = result else { panic!("{result:?}") };
        assert_eq!(count, expected);
        assert!(count == 0 || into.bytes()[..count] == bytes[offset as usize..][..count]);
    }
    let into = rig.block();
    let too_much = into.capacity() + 1;
    assert_eq!(rig.run(OpKind::Read { file, offset: 0, into, len: too_much }).map(|_| ()), Err(Errno::INVALID));
    let Ok(Output::Attributes { attributes, .. }) = rig.fs(FsOp::StatOpen { file, past: None }) else {
        panic!("no attributes")
    };
    assert_eq!(attributes.size, 100_000);
    let from = rig.slice(b"x");
    assert!(rig.run(OpKind::Write { file, offset: 0, from }).is_err(), "a file opened to read is not written");
    assert_eq!(rig.publish(file, PLAIN), Err(Errno::INVALID));
    assert_eq!(fs::read(rig.path("f")).unwrap(), bytes);
}

#[test]
fn loading_takes_what_fits_a_block_and_leaves_the_rest_open() {
    let mut rig = Rig::new();
    for size in [0, 1, 65_535, 65_536] {
        fs::write(rig.path("f"), vec![7; size]).unwrap();
        let (bytes, attributes) = rig.load("f").unwrap();
        assert_eq!((bytes.len(), attributes.size), (size, size as u64));
        assert!(bytes.iter().all(|&byte| byte == 7));
    }
    fs::write(rig.path("f"), vec![7; 65_537]).unwrap();
    let (place, into) = (rig.place("f"), rig.block());
    let Ok(Output::Opened { file, attributes }) = rig.run(OpKind::Load { place, into }) else { panic!("it fits?") };
    assert_eq!(attributes.size, 65_537);
    rig.close(file);
}

#[cfg(target_os = "linux")]
#[test]
fn files_that_say_they_are_empty_are_read_to_their_end() {
    let mut rig = Rig::new();
    let (bytes, attributes) = rig.load("/proc/self/status").unwrap();
    assert!(bytes.starts_with(b"Name:") && bytes.ends_with(b"\n") && attributes.size == 0);
    let (place, into) = (rig.place("/proc/kallsyms"), rig.block());
    let result = rig.run(OpKind::Load { place, into });
    assert!(matches!(result, Ok(Output::Opened { .. })), "larger than its block: {result:?}");
    let (from, to) = (rig.place("/proc/self/status"), rig.place("copy"));
    assert_eq!(rig.fs(FsOp::Clone { from, to, finish: PLAIN }).map(|_| ()), Err(Errno::UNSUPPORTED));
    rig.assert_names(&[]);
}

#[test]
fn a_clone_is_proved_equal_or_refused_and_never_destroys_its_source() {
    let mut rig = Rig::new();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n * 31 % 241) as u8).collect();
    fs::write(rig.path("f"), &bytes).unwrap();
    fs::hard_link(rig.path("f"), rig.path("same")).unwrap();
    fs::write(rig.path("old"), "old").unwrap();
    set_mode(&rig.path("old"), 0o600);
    let mut clone = |from: &str, to: &str| {
        let (from, to) = (rig.place(from), rig.place(to));
        rig.fs(FsOp::Clone { from, to, finish: finish(attributes(0o644, (9, 8)), Preserve(0)) })
    };
    for name in ["f", "same"] {
        assert_eq!(clone("f", name).map(|_| ()), Err(Errno::INVALID));
    }
    assert_eq!(clone("f", "/dev/null").map(|_| ()), Err(Errno::UNSUPPORTED));
    assert_eq!(clone("none", "new").map(|_| ()), Err(Errno::NOT_FOUND));
    match clone("f", "old") {
        Ok(Output::Cloned { hash, size, .. }) => {
            assert_eq!((hash, size), (*blake3::hash(&bytes).as_bytes(), bytes.len() as u64));
            assert_eq!(fs::read(rig.path("old")).unwrap(), bytes);
            assert_eq!((mode(&rig.path("old")), fs::metadata(rig.path("old")).unwrap().mtime()), (0o600, 9));
        }
        result => assert_eq!(result.map(|_| ()), Err(Errno::UNSUPPORTED)),
    }
    assert_eq!(fs::read(rig.path("f")).unwrap(), bytes);
    rig.assert_names(&["f", "old", "same"]);
}
