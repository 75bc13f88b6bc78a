//! Directories, links, special files, and names of every kind.

use crate::rig::*;
use haul_engine::backend::*;
use haul_engine::limits::{PAGE_ENTRIES, PAGE_NAME_BYTES};
use haul_engine::wire::frame::{Attributes, Kind, Preserve};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};

#[test]
fn names_of_any_bytes_up_to_255_are_stored_and_longer_ones_refused_at_once() {
    let mut rig = Rig::new();
    let (longest, longer) = ("x".repeat(255), "x".repeat(256));
    let too_long = Errno::from(rustix::io::Errno::NAMETOOLONG);
    for name in
        [longest.as_bytes(), b"line\nfeed \x1b[2J", b"\xff\xfe\x80 not utf-8", " \u{202e}".as_bytes(), b"-rf", b"a:b"]
    {
        if cfg!(not(target_os = "linux")) && std::str::from_utf8(name).is_err() {
            continue; // APFS holds only UTF-8.
        }
        rig.store(name, b"first", PLAIN).unwrap();
        rig.store(name, name, PLAIN).unwrap();
        assert_eq!(rig.load(name).unwrap().0, name);
        assert_eq!(fs::read(rig.path(OsStr::from_bytes(name))).unwrap(), name);
        fs::remove_file(rig.path(OsStr::from_bytes(name))).unwrap();
    }
    assert_eq!(rig.create(&longer, 1, 0).unwrap_err(), too_long);
    assert_eq!(rig.create(format!("|{longer}"), 1, 0).unwrap_err(), too_long);
    assert_eq!(rig.store(&longer, b"", PLAIN), Err(too_long));
    assert_eq!(rig.store(format!("{longer}/f"), b"", PLAIN), Err(too_long));
    let (file, _) = rig.create(&longest, 1, 0).unwrap();
    rig.publish(file, PLAIN).unwrap();
    rig.assert_names(&[&longest]);
}

#[test]
fn fifos_devices_and_directories_are_refused_in_every_role_and_nothing_blocks() {
    let mut rig = Rig::new();
    mkfifo(&rig.path("fifo"));
    symlink("fifo", rig.path("tofifo")).unwrap();
    fs::create_dir(rig.path("dir")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(rig.path("socket")).unwrap();
    for (path, errno) in [
        ("fifo", Errno::NOT_REGULAR),
        ("|fifo", Errno::NOT_REGULAR),
        ("tofifo", Errno::NOT_REGULAR),
        ("socket", Errno::NOT_REGULAR),
        ("/dev/tty", Errno::NOT_REGULAR),
        ("/dev/zero", Errno::NOT_REGULAR),
        ("/dev/null", Errno::NOT_REGULAR),
        ("dir", Errno::IS_DIRECTORY),
        ("", Errno::IS_DIRECTORY),
        ("/", Errno::IS_DIRECTORY),
    ] {
        assert_eq!(rig.open(path, OpenMode::Read).unwrap_err(), errno, "{path}");
        assert_eq!(rig.load(path).unwrap_err(), errno, "{path}");
        let (from, to) = (rig.place(path), rig.place("copy"));
        assert_eq!(rig.fs(FsOp::Clone { from, to, finish: PLAIN }).map(|_| ()), Err(errno), "{path}");
        if !matches!(path, "tofifo" | "/dev/null") {
            assert_eq!(rig.create(path, 1, 1).unwrap_err(), errno, "{path}");
            assert_eq!(rig.store(path, b"x", PLAIN), Err(errno), "{path}");
        }
    }
    for path in ["fifo", "dir"] {
        let (place, text) = (rig.place(path), b"text".to_vec());
        let link = FsOp::MakeLink { place, text, attributes: NO_ATTRIBUTES, preserve: Preserve(0) };
        let errno = if path == "dir" { Errno::IS_DIRECTORY } else { Errno::NOT_REGULAR };
        assert_eq!(rig.fs(link).map(|_| ()), Err(errno));
    }
    // The link is as little replaced as what it leads to; one that leads nowhere is.
    assert_eq!(rig.create("tofifo", 1, 0).unwrap_err(), Errno::LINK_TO_OTHER);
    assert_eq!(rig.store("tofifo", b"x", PLAIN), Err(Errno::LINK_TO_OTHER));
    assert!(fs::symlink_metadata(rig.path("tofifo")).unwrap().is_symlink());
    fs::remove_file(rig.path("tofifo")).unwrap();
    symlink("nowhere", rig.path("tofifo")).unwrap();
    rig.store("tofifo", b"x", PLAIN).unwrap();
    assert!(fs::symlink_metadata(rig.path("tofifo")).unwrap().is_file());
    rig.assert_names(&["dir", "fifo", "socket", "tofifo"]);
}

#[test]
fn dev_null_takes_everything_and_stays_a_device() {
    let mut rig = Rig::new();
    let before = fs::metadata("/dev/null").unwrap();
    let (file, attributes) = rig.create("/dev/null", u64::MAX, 0).unwrap();
    assert_eq!(attributes.kind, Kind::CharDevice);
    assert!(rig.offload.file(file).unwrap().is_sink());
    rig.write(file, 1 << 40, b"gone");
    rig.publish(file, Finish { sync: true, ..finish(attributes, Preserve::MODE.or(Preserve::OWNER)) }).unwrap();
    rig.store("/dev/null", b"gone too", PLAIN).unwrap();
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!((before.ino(), before.mode(), before.rdev()), (after.ino(), after.mode(), after.rdev()));
}

#[test]
fn a_large_directory_comes_in_pages_without_loss_or_repetition() {
    let mut rig = Rig::new();
    let dir = rig.path("d");
    fs::create_dir(&dir).unwrap();
    let mut expected: Vec<Vec<u8>> =
        (0..2000).map(|n| format!("{n:0>width$}", width = 1 + n * 13 % 200).into_bytes()).collect();
    for (number, name) in expected.iter().enumerate() {
        let path = dir.join(OsStr::from_bytes(name));
        if number % 10 == 3 { symlink("t".repeat(number), path).unwrap() } else { fs::write(path, "x").unwrap() }
    }
    let place = rig.place("d");
    let Ok(Output::OpenedDir { dir, attributes }) = rig.fs(FsOp::OpenDir { place }) else { panic!("not opened") };
    assert_eq!(attributes.kind, Kind::Directory);
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let Ok(Output::Entries { entries, end }) = rig.fs(FsOp::ReadDir { dir }) else { panic!("no entries") };
        pages += 1;
        assert!(entries.len() <= PAGE_ENTRIES);
        assert!(entries.iter().map(|entry| entry.name.len() + entry.link.len()).sum::<usize>() <= PAGE_NAME_BYTES);
        for entry in entries {
            let attributes = entry.attributes.unwrap();
            assert_eq!(attributes.size as usize, if entry.link.is_empty() { 1 } else { entry.link.len() });
            assert_eq!(attributes.kind == Kind::Symlink, !entry.link.is_empty());
            found.push(entry.name);
        }
        if end {
            break;
        }
    }
    assert!(pages > 2000 / PAGE_ENTRIES);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let Ok(Output::Entries { entries, end: true }) = rig.fs(FsOp::ReadDir { dir }) else { panic!("no end") };
    assert!(entries.is_empty());
    rig.fs(FsOp::CloseDir { dir }).unwrap();
    assert_eq!(rig.fs(FsOp::ReadDir { dir }).map(|_| ()), Err(Errno::STALE_ID));
    assert_eq!(rig.fs(FsOp::CloseDir { dir }).map(|_| ()), Err(Errno::STALE_ID));
}

#[test]
fn entries_that_vanish_between_pages_are_left_out() {
    let mut rig = Rig::new();
    let names: Vec<_> = (0..PAGE_ENTRIES * 2).map(|n| rig.path(n.to_string())).collect();
    names.iter().for_each(|name| fs::write(name, "").unwrap());
    let place = rig.place("");
    let Ok(Output::OpenedDir { dir, .. }) = rig.fs(FsOp::OpenDir { place }) else { panic!("not opened") };
    let Ok(Output::Entries { entries, end: false }) = rig.fs(FsOp::ReadDir { dir }) else { panic!("no entries") };
    assert_eq!(entries.len(), PAGE_ENTRIES);
    names.iter().for_each(|name| fs::remove_file(name).unwrap());
    let Ok(Output::Entries { entries, end: true }) = rig.fs(FsOp::ReadDir { dir }) else { panic!("no entries") };
    assert!(entries.is_empty(), "{entries:?}");
}

#[test]
fn making_a_directory_is_quiet_when_it_is_there_and_fails_on_a_file() {
    let mut rig = Rig::new();
    fs::write(rig.path("file"), "").unwrap();
    fs::create_dir(rig.path("dir")).unwrap();
    symlink("dir", rig.path("link")).unwrap();
    for path in ["a/b/c", "a/b/c", "dir", "link", "link/x", "dir|y/z", "", "/"] {
        let place = rig.place(path);
        rig.fs(FsOp::MakeDir { place }).unwrap();
    }
    assert!(rig.path("a/b/c").is_dir() && rig.path("dir/x").is_dir() && rig.path("dir/y/z").is_dir());
    for (path, errno) in [("file", Errno::NOT_DIRECTORY), ("file/x", Errno::NOT_DIRECTORY), ("|link", Errno::LOOP)] {
        let place = rig.place(path);
        assert_eq!(rig.fs(FsOp::MakeDir { place }).map(|_| ()), Err(errno), "{path}");
    }
}

#[test]
fn a_directorys_time_is_always_set_and_its_mode_only_when_asked() {
    let mut rig = Rig::new();
    let dir = rig.path("d");
    fs::create_dir(&dir).unwrap();
    set_mode(&dir, 0o751);
    for (preserve, expected) in [(Preserve(0), 0o751), (Preserve::MODE, 0o2700)] {
        let place = rig.place("d");
        let attributes = Attributes { kind: Kind::Directory, ..attributes(0o2700, (1_600_000_000, 5)) };
        rig.fs(FsOp::SetMeta { place, attributes, preserve }).unwrap();
        let stat = fs::metadata(&dir).unwrap();
        assert_eq!((stat.mtime(), stat.mtime_nsec(), mode(&dir)), (1_600_000_000, 5, expected));
    }
    fs::write(rig.path("f"), "").unwrap();
    let place = rig.place("f");
    let attributes = Attributes { kind: Kind::Directory, ..attributes(0o777, (0, 0)) };
    let set = FsOp::SetMeta { place, attributes, preserve: Preserve::MODE };
    assert_eq!(rig.fs(set).map(|_| ()), Err(Errno::NOT_DIRECTORY));
}

#[test]
fn a_link_takes_the_place_of_a_file_or_link_and_keeps_its_own_time() {
    let mut rig = Rig::new();
    fs::write(rig.path("file"), "content").unwrap();
    symlink("other", rig.path("link")).unwrap();
    for path in ["file", "link", "fresh", "a/b", "|c/d"] {
        let place = rig.place(path);
        let (text, attributes) = (b"../some \xffwhere".to_vec(), attributes(0o777, (1_500_000_000, 42)));
        rig.fs(FsOp::MakeLink { place, text: text.clone(), attributes, preserve: Preserve::OWNER }).unwrap();
        let (found, link) = rig.stat(path, false).unwrap();
        assert_eq!((found.kind, found.mtime, link), (Kind::Symlink, attributes.mtime, text), "{path}");
    }
    rig.assert_names(&["a", "c", "file", "fresh", "link"]);
    let place = rig.place("bad");
    let link = FsOp::MakeLink { place, text: b"a\0b".to_vec(), attributes: NO_ATTRIBUTES, preserve: Preserve(0) };
    assert_eq!(rig.fs(link).map(|_| ()), Err(Errno::INVALID));
}

#[test]
fn stat_tells_links_from_what_they_lead_to() {
    let mut rig = Rig::new();
    fs::write(rig.path("f"), "12345").unwrap();
    symlink("f", rig.path("l")).unwrap();
    let (attributes, link) = rig.stat("l", true).unwrap();
    assert_eq!((attributes.kind, attributes.size, &link[..]), (Kind::Regular, 5, &b""[..]));
    let (attributes, link) = rig.stat("l", false).unwrap();
    assert_eq!((attributes.kind, attributes.size, &link[..]), (Kind::Symlink, 1, &b"f"[..]));
    assert_eq!(rig.stat("|l", true).unwrap_err(), Errno::LOOP);
    assert_eq!(rig.stat("|l", false).unwrap().1, b"f");
    assert_eq!(rig.stat("", true).unwrap().0.kind, Kind::Directory);
    assert_eq!(rig.stat("none", false).unwrap_err(), Errno::NOT_FOUND);
}
