//! What [`OpKind`] and [`FsOp`] promise about files and names.

use super::turns::{CREATE, PLAIN};
use super::{Driver, Rig, assert_same, pattern};
use crate::backend::{DirEntry, DirId, Errno, FileId, Finish, FsOp, OpKind, OpenMode, Output, Place, Store};
use crate::block::{Class, Slices};
use crate::wire::frame::{Attributes, Kind, Preserve, Timestamp};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Attributes that no file has by chance.
fn attributes(kind: Kind, mode: u32) -> Attributes {
    let mtime = Timestamp { seconds: 1_000_000_000, nanoseconds: 123_456_789 };
    Attributes { kind, size: 0, mode, mtime, uid: 0, gid: 0 }
}

fn exactly(mode: u32) -> Finish {
    Finish { attributes: Some(attributes(Kind::Regular, mode)), preserve: Preserve::MODE, sync: true, verify: None }
}

fn fs<R: Rig>(driver: &mut Driver<R>, op: FsOp) -> Result<Output, Errno> {
    driver.run(OpKind::Fs(Box::new(op)))
}

fn stat<R: Rig>(driver: &mut Driver<R>, place: Place, follow: bool) -> Result<(Attributes, Vec<u8>), Errno> {
    match fs(driver, FsOp::Stat { place, follow })? {
        Output::Attributes { attributes, link } => Ok((attributes, link)),
        other => panic!("Stat brought {other:?}"),
    }
}

fn write<R: Rig>(driver: &mut Driver<R>, file: FileId, offset: u64, bytes: &[u8]) {
    let from = driver.slices(bytes).remove(0);
    assert!(matches!(driver.run(OpKind::Write { file, offset, from }), Ok(Output::Done)));
}

fn read<R: Rig>(driver: &mut Driver<R>, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let into = driver.pool.take_reserved(Class::Large).expect("tests stay within their pool");
    let part = driver.submit(OpKind::Read { file, offset, into, len });
    driver.received(part)
}

fn publish<R: Rig>(driver: &mut Driver<R>, file: FileId, finish: Finish) -> Result<Output, Errno> {
    driver.run(OpKind::Publish { file, finish: Box::new(finish) })
}

fn store<R: Rig>(driver: &mut Driver<R>, place: Place, bytes: &[u8], overwrite: bool) -> Result<Output, Errno> {
    let from: Slices = driver.slices(bytes);
    driver.run(OpKind::Store(Box::new(Store { place, from, finish: exactly(0o640), overwrite })))
}

/// Open with [`OpenMode::Create`], Write, Publish.
pub fn a_new_file_appears_only_when_published<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let place = driver.place("made/for/it/new");
    let file = driver.open(place, OpenMode::Create { size: 10, keep: 0, overwrite: false }).unwrap();
    write(&mut driver, file, 0, b"0123456789");
    assert_eq!(driver.rig.read_file("made/for/it/new"), None);
    assert!(publish(&mut driver, file, PLAIN).is_ok());
    assert_eq!(driver.rig.read_file("made/for/it/new").unwrap(), b"0123456789");
    assert_eq!(driver.rig.names(), ["made", "made/for", "made/for/it", "made/for/it/new"]);
    assert_eq!(driver.run(OpKind::Close { file }).err(), Some(Errno::STALE_ID), "published files are closed");
    driver.finish();
}

/// Close of a file being made.
pub fn a_closed_unpublished_file_leaves_nothing<R: Rig>() {
    let mut driver = Driver::<R>::new();
    driver.rig.write_file("old", b"old");
    for name in ["new", "old"] {
        let place = driver.place(name);
        let file = driver.open(place, CREATE).unwrap();
        write(&mut driver, file, 0, b"new");
        assert!(driver.run(OpKind::Close { file }).is_ok());
    }
    assert_eq!(driver.rig.names(), ["old"]);
    assert_eq!(driver.rig.read_file("old").unwrap(), b"old");
    driver.finish();
}

/// Publish over a regular file, and [`Finish`].
pub fn a_published_file_replaces_the_old_one_and_carries_its_attributes<R: Rig>() {
    let mut driver = Driver::<R>::new();
    driver.rig.write_file("name", b"a longer old content");
    let reader = driver.open_to_read("name");
    let place = driver.place("name");
    let opened = driver.run(OpKind::Open { place: place.clone(), mode: CREATE });
    let Ok(Output::Opened { file, attributes }) = opened else { panic!("{opened:?}") };
    assert_eq!(attributes.size, 20, "Create tells what it will replace");
    write(&mut driver, file, 0, b"new");
    assert!(publish(&mut driver, file, exactly(0o604)).is_ok());
    assert_eq!(driver.rig.read_file("name").unwrap(), b"new");
    assert_eq!(driver.rig.names(), ["name"]);
    let (found, _) = stat(&mut driver, place, true).unwrap();
    let expected = self::attributes(Kind::Regular, 0o604);
    assert_eq!((found.kind, found.size, found.mode, found.mtime), (Kind::Regular, 3, 0o604, expected.mtime));
    // Who had the old file open still reads it.
    assert_eq!(read(&mut driver, reader, 0, 100).unwrap(), b"a longer old content");
    driver.finish();
}

/// Create and Store without `overwrite`: refused by Open or by Publish, the latter for a name that came up meanwhile.
pub fn a_file_that_must_not_be_replaced_is_not<R: Rig>() {
    let mut driver = Driver::<R>::new();
    driver.rig.write_file("old", b"old");
    for name in ["old", "raced"] {
        let place = driver.place(name);
        let end = match driver.open(place, OpenMode::Create { size: 3, keep: 0, overwrite: false }) {
            Ok(file) => {
                driver.rig.write_file(name, b"old");
                write(&mut driver, file, 0, b"new");
                let end = publish(&mut driver, file, PLAIN);
                assert_eq!(driver.run(OpKind::Close { file }).err(), Some(Errno::STALE_ID), "stale also on error");
                end.err()
            }
            Err(errno) => Some(errno),
        };
        assert_eq!(end, Some(Errno::EXISTS), "{name}");
        let place = driver.place(name);
        assert_eq!(store(&mut driver, place, b"new", false).err(), Some(Errno::EXISTS), "{name}");
        assert_eq!(driver.rig.read_file(name).unwrap(), b"old", "{name}");
    }
    assert_eq!(driver.rig.names(), ["old", "raced"]);
    driver.finish();
}

/// [`OpenMode::Create`] with `keep`.
pub fn a_new_file_can_begin_with_bytes_of_the_old_one<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let old = pattern(1, 300_000);
    driver.rig.write_file("name", &old);
    let place = driver.place("name");
    let file = driver.open(place, OpenMode::Create { size: 250_004, keep: 250_000, overwrite: true }).unwrap();
    write(&mut driver, file, 250_000, b"tail");
    assert_same(&driver.rig.read_file("name").unwrap(), &old, "before Publish");
    assert!(publish(&mut driver, file, PLAIN).is_ok());
    assert_same(&driver.rig.read_file("name").unwrap(), &[&old[..250_000], b"tail"].concat(), "after Publish");
    driver.finish();
}

/// [`OpenMode::Shared`] and [`OpenMode::Join`].
pub fn a_shared_file_takes_writes_from_those_who_join_it<R: Rig>() {
    static TOKEN: AtomicU64 = AtomicU64::new(1 << 32);
    let mut driver = Driver::<R>::new();
    driver.rig.write_file("name", b"old");
    let token = TOKEN.fetch_add(1, Ordering::Relaxed);
    let (place, elsewhere) = (driver.place("name"), driver.place(""));
    let join = |driver: &mut Driver<R>| driver.open(elsewhere.clone(), OpenMode::Join { token });
    assert_eq!(join(&mut driver).err(), Some(Errno::NOT_FOUND), "before it is there");
    let file = driver.open(place.clone(), OpenMode::Shared { size: 300_010, token }).unwrap();
    let other = join(&mut driver).unwrap();
    let content = pattern(1, 300_000);
    write(&mut driver, other, 0, &content);
    assert!(driver.run(OpKind::Close { file: other }).is_ok());
    assert_eq!(driver.rig.read_file("name").unwrap(), b"old");
    let late = join(&mut driver).unwrap();
    assert!(publish(&mut driver, file, PLAIN).is_ok());
    assert!(driver.run(OpKind::Close { file: late }).is_ok());
    let expected = [&content[..], &[0; 10]].concat();
    assert_same(&driver.rig.read_file("name").unwrap(), &expected, "as long as was said");
    assert_eq!(join(&mut driver).err(), Some(Errno::NOT_FOUND), "after it has its name");
    // Given up by who made it, it is gone, whoever still has it.
    let token = TOKEN.fetch_add(1, Ordering::Relaxed);
    let file = driver.open(place, OpenMode::Shared { size: 3, token }).unwrap();
    let other = driver.open(elsewhere.clone(), OpenMode::Join { token }).unwrap();
    assert!(driver.run(OpKind::Close { file }).is_ok());
    write(&mut driver, other, 0, b"new");
    assert!(driver.run(OpKind::Close { file: other }).is_ok());
    assert_same(&driver.rig.read_file("name").unwrap(), &expected, "as it was");
    assert_eq!(driver.rig.names(), ["name"]);
    driver.finish();
}

/// [`OpenMode::Continue`] with a token: as Shared, and what arrived is there for the next one.
pub fn a_kept_file_takes_writes_from_those_who_join_it<R: Rig>() {
    static TOKEN: AtomicU64 = AtomicU64::new(2 << 32);
    let mut driver = Driver::<R>::new();
    let (place, elsewhere) = (driver.place("name"), driver.place(""));
    let content = pattern(1, 300_000);
    for (round, there) in [(0, 0), (1, 300_000)] {
        let token = TOKEN.fetch_add(1, Ordering::Relaxed);
        let mode = OpenMode::Continue { size: 300_010, token: Some(token) };
        let opened = driver.run(OpKind::Open { place: place.clone(), mode });
        let Ok(Output::Opened { file, attributes }) = opened else { panic!("{opened:?}") };
        assert_eq!(attributes.size, there, "what is there");
        let opened = driver.run(OpKind::Open { place: elsewhere.clone(), mode: OpenMode::Join { token } });
        let Ok(Output::Opened { file: other, attributes }) = opened else { panic!("{opened:?}") };
        assert_eq!(attributes.size, 300_010, "what it shall be");
        if round == 0 {
            write(&mut driver, other, 200_000, &content[200_000..]);
            write(&mut driver, file, 0, &content[..200_000]);
            assert!(driver.run(OpKind::Close { file }).is_ok());
            assert!(driver.run(OpKind::Close { file: other }).is_ok());
        } else {
            write(&mut driver, other, 300_000, &[9; 10]);
            assert!(driver.run(OpKind::Close { file: other }).is_ok());
            assert!(publish(&mut driver, file, PLAIN).is_ok());
        }
    }
    assert_same(&driver.rig.read_file("name").unwrap(), &[&content[..], &[9; 10]].concat(), "both rounds");
    assert_eq!(driver.rig.names(), ["name"]);
    driver.finish();
}

/// Create, Store and MakeLink onto a directory; Open and Load of one.
pub fn a_directory_is_never_replaced_by_a_file<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let place = driver.place("directory");
    assert!(fs(&mut driver, FsOp::MakeDir { place: place.clone() }).is_ok());
    if let Ok(file) = driver.open(place.clone(), CREATE) {
        assert!(publish(&mut driver, file, PLAIN).is_err());
    }
    assert!(store(&mut driver, place.clone(), b"new", true).is_err());
    let attributes = attributes(Kind::Symlink, 0o777);
    let preserve = Preserve::default();
    let link = FsOp::MakeLink { place: place.clone(), text: b"elsewhere".to_vec(), attributes, preserve };
    assert!(fs(&mut driver, link).is_err());
    assert_eq!(stat(&mut driver, place.clone(), false).unwrap().0.kind, Kind::Directory);
    assert!(driver.open(place.clone(), OpenMode::Read).is_err());
    let into = driver.pool.take_reserved(Class::Small).unwrap();
    assert!(driver.run(OpKind::Load { place, into }).is_err());
    assert_eq!(driver.rig.names(), ["directory"]);
    driver.finish();
}

/// Rule 3 for Read, and [`FsOp::StatOpen`].
pub fn reads_are_short_only_at_the_end_of_the_file<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let content = pattern(1, 1_000_003);
    let file = driver.source("source", &content);
    let found = fs(&mut driver, FsOp::StatOpen { file, past: Some(content.len() as u64) });
    let Ok(Output::Attributes { attributes, .. }) = found else { panic!("{found:?}") };
    assert_eq!((attributes.kind, attributes.size), (Kind::Regular, 1_000_003));
    for (offset, len, expected) in [
        (0, 524_288, 524_288),
        (1, 1, 1),
        (999_000, 4096, 1003),
        (4097, 500_000, 500_000),
        (1_000_003, 10, 0),
        (1 << 40, 10, 0),
    ] {
        let got = read(&mut driver, file, offset as u64, len).unwrap();
        assert_eq!(got.len(), expected, "{len} bytes at {offset}");
        assert_same(&got, content.get(offset..offset + expected).unwrap_or_default(), "Read");
    }
    assert!(driver.run(OpKind::Close { file }).is_ok());
    driver.finish();
}

/// Rule 3 for Write; several of them at the same time.
pub fn writes_land_at_their_offsets_in_any_order<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let content = pattern(1, 5 * 100_001);
    let place = driver.place("new");
    let file = driver.open(place, OpenMode::Create { size: content.len() as u64, keep: 0, overwrite: true }).unwrap();
    let mut parts = Vec::new();
    for n in [3, 0, 4, 2, 1] {
        let from = driver.slices(&content[n * 100_001..][..100_001]).remove(0);
        parts.push(driver.submit(OpKind::Write { file, offset: n as u64 * 100_001, from }));
    }
    for part in parts {
        assert!(matches!(driver.wait(part).result, Ok(Output::Done)));
    }
    assert!(publish(&mut driver, file, PLAIN).is_ok());
    assert_same(&driver.rig.read_file("new").unwrap(), &content, "written");
    // A file that is longer than what was written ends where it was written.
    let place = driver.place("sparse");
    let file = driver.open(place, CREATE).unwrap();
    write(&mut driver, file, 100_000, b"end");
    assert!(publish(&mut driver, file, PLAIN).is_ok());
    assert_same(&driver.rig.read_file("sparse").unwrap(), &[vec![0; 100_000], b"end".to_vec()].concat(), "sparse");
    driver.finish();
}

/// Load on both sides of the capacity.
pub fn small_files_are_loaded_whole_and_large_ones_opened<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let capacity = Class::Small.bytes();
    for len in [0, 1, 5000, capacity - 1, capacity, capacity + 1, 3 * capacity] {
        let content = pattern(len as u64, len);
        driver.rig.write_file("source", &content);
        let (place, into) = (driver.place("source"), driver.pool.take_reserved(Class::Small).unwrap());
        let part = driver.submit(OpKind::Load { place, into });
        let completion = driver.wait(part);
        let OpKind::Load { into, .. } = completion.op.kind else { panic!("another op") };
        match completion.result {
            Ok(Output::Loaded { attributes, len: loaded, .. }) => {
                assert!(len <= capacity);
                assert_eq!((attributes.size, loaded), (len as u64, len));
                assert_same(&into.bytes()[..loaded], &content, "loaded");
            }
            Ok(Output::Opened { file, attributes }) => {
                assert!(len > capacity, "{len} bytes fit");
                assert_eq!(attributes.size, len as u64);
                assert_same(&read(&mut driver, file, 0, len).unwrap(), &content, "opened");
                assert!(driver.run(OpKind::Close { file }).is_ok());
            }
            other => panic!("{len} bytes: {other:?}"),
        }
    }
    driver.finish();
}

/// Store: many at once, in new places and over old ones.
pub fn small_files_are_stored_under_their_names<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let mut parts = Vec::new();
    for n in 0..12 {
        let name = format!("directory {}/file {n}", n % 3);
        let (place, from) = (driver.place(&name), driver.slices(&pattern(n, 1000 * n as usize)));
        parts.push(driver.submit(OpKind::Store(Box::new(Store {
            place,
            from,
            finish: exactly(0o640),
            overwrite: true,
        }))));
    }
    for part in parts {
        assert!(matches!(driver.wait(part).result, Ok(Output::Done)), "part {part}");
    }
    for n in 0..12 {
        let name = format!("directory {}/file {n}", n % 3);
        assert_same(&driver.rig.read_file(&name).unwrap(), &pattern(n, 1000 * n as usize), &name);
    }
    let place = driver.place("directory 0/file 0");
    assert!(store(&mut driver, place.clone(), b"newer", true).is_ok());
    assert_eq!(driver.rig.read_file("directory 0/file 0").unwrap(), b"newer");
    let (found, _) = stat(&mut driver, place, false).unwrap();
    let expected = attributes(Kind::Regular, 0o640);
    assert_eq!((found.mode, found.mtime), (expected.mode, expected.mtime));
    assert_eq!(driver.rig.names().len(), 15);
    driver.finish();
}

/// Every entry of a directory, page by page.
fn entries<R: Rig>(driver: &mut Driver<R>, place: Place) -> Vec<DirEntry> {
    let opened = fs(driver, FsOp::OpenDir { place });
    let Ok(Output::OpenedDir { dir, attributes }) = opened else { panic!("{opened:?}") };
    assert_eq!(attributes.kind, Kind::Directory);
    let mut all = Vec::new();
    while !next_page(driver, dir, &mut all) {}
    assert!(matches!(fs(driver, FsOp::CloseDir { dir }), Ok(Output::Done)));
    all
}

fn next_page<R: Rig>(driver: &mut Driver<R>, dir: DirId, all: &mut Vec<DirEntry>) -> bool {
    match fs(driver, FsOp::ReadDir { dir }) {
        Ok(Output::Entries { entries, end }) => {
            assert!(end || !entries.is_empty(), "an empty page that is not the last would never end");
            all.extend(entries);
            end
        }
        other => panic!("{other:?}"),
    }
}

/// MakeDir, SetMeta, Stat, OpenDir, ReadDir, CloseDir.
pub fn directories_are_made_listed_and_described<R: Rig>() {
    let mut driver = Driver::<R>::new();
    for _ in 0..2 {
        let place = driver.place("a/b/c");
        assert!(matches!(fs(&mut driver, FsOp::MakeDir { place }), Ok(Output::Done)), "as mkdir -p");
    }
    driver.rig.write_file("a/b/file", b"12345");
    let place = driver.place("a/b/c");
    let new = attributes(Kind::Directory, 0o705);
    let set = FsOp::SetMeta { place: place.clone(), attributes: new, preserve: Preserve::MODE };
    assert!(matches!(fs(&mut driver, set), Ok(Output::Done)));
    let (found, link) = stat(&mut driver, place, true).unwrap();
    assert_eq!((found.kind, found.mode, found.mtime, link.len()), (Kind::Directory, 0o705, new.mtime, 0));

    let place = driver.place("a/b");
    let mut found = entries(&mut driver, place);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let [c, file] = found.try_into().expect("two entries");
    assert_eq!((&c.name[..], c.attributes.unwrap().kind), (&b"c"[..], Kind::Directory));
    let listed = file.attributes.unwrap();
    assert_eq!((&file.name[..], listed.kind, listed.size), (&b"file"[..], Kind::Regular, 5));

    let place = driver.place("a/b/file");
    let new = attributes(Kind::Regular, 0o604);
    let set = FsOp::SetMeta { place: place.clone(), attributes: new, preserve: Preserve::MODE };
    assert!(matches!(fs(&mut driver, set), Ok(Output::Done)));
    let (found, _) = stat(&mut driver, place, true).unwrap();
    assert_eq!((found.kind, found.mode, found.mtime, found.size), (Kind::Regular, 0o604, new.mtime, 5));
    let place = driver.place("a/b/c");
    let set = FsOp::SetMeta { place, attributes: new, preserve: Preserve::MODE };
    assert!(fs(&mut driver, set).is_err(), "it is no file");

    driver.rig.write_file("a/file", b"");
    for not in ["a/file", "a/file/below"] {
        let place = driver.place(not);
        assert!(fs(&mut driver, FsOp::OpenDir { place: place.clone() }).is_err(), "{not}");
        assert!(fs(&mut driver, FsOp::MakeDir { place }).is_err(), "{not}");
    }
    driver.finish();
}

/// ReadDir with more names than one page has.
pub fn directories_with_many_names_come_in_pages<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let names: BTreeSet<Vec<u8>> =
        (0..crate::limits::PAGE_ENTRIES + 100).map(|n| format!("{n:0100}").into_bytes()).collect();
    for name in &names {
        driver.rig.write_file(std::str::from_utf8(name).unwrap(), b"");
    }
    let place = driver.place("");
    let found = entries(&mut driver, place);
    assert_eq!(found.len(), names.len());
    assert_eq!(found.into_iter().map(|entry| entry.name).collect::<BTreeSet<_>>(), names);
    driver.finish();
}

/// MakeLink, and Stat of links.
pub fn links_are_made_described_and_replaced<R: Rig>() {
    let mut driver = Driver::<R>::new();
    driver.rig.write_file("target", b"12345");
    driver.rig.write_file("link", b"a file in the way");
    let attributes = attributes(Kind::Symlink, 0o777);
    for text in ["nowhere", "target"] {
        let (place, text) = (driver.place("link"), text.as_bytes().to_vec());
        let link =
            FsOp::MakeLink { place: place.clone(), text: text.clone(), attributes, preserve: Preserve::default() };
        assert!(matches!(fs(&mut driver, link), Ok(Output::Done)));
        let (found, read) = stat(&mut driver, place, false).unwrap();
        assert_eq!((found.kind, &read, found.mtime), (Kind::Symlink, &text, attributes.mtime));
    }
    let place = driver.place("link");
    let (found, link) = stat(&mut driver, place, true).unwrap();
    assert_eq!((found.kind, found.size, link.len()), (Kind::Regular, 5, 0));
    let place = driver.place("");
    let entry = entries(&mut driver, place).into_iter().find(|entry| entry.name == b"link").expect("listed");
    assert_eq!((entry.attributes.unwrap().kind, &entry.link[..]), (Kind::Symlink, &b"target"[..]));
    // A file replaces a link itself and not what the link leads to.
    let place = driver.place("link");
    assert!(store(&mut driver, place, b"now a file", true).is_ok());
    assert_eq!(driver.rig.read_file("link").unwrap(), b"now a file");
    assert_eq!(driver.rig.read_file("target").unwrap(), b"12345");
    driver.finish();
}

/// [`Place`]: links in an operand are followed, links below it are not.
pub fn paths_below_an_operand_do_not_follow_links<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let place = driver.place("directory");
    assert!(fs(&mut driver, FsOp::MakeDir { place }).is_ok());
    driver.rig.write_file("directory/file", b"12345");
    let attributes = attributes(Kind::Symlink, 0o777);
    for (name, text) in [("way", "directory"), ("out", "../../etc"), ("loop", "loop")] {
        let (place, text) = (driver.place(name), text.as_bytes().to_vec());
        assert!(fs(&mut driver, FsOp::MakeLink { place, text, attributes, preserve: Preserve::default() }).is_ok());
    }
    let place = driver.place("way/file");
    assert_eq!(stat(&mut driver, place, true).unwrap().0.size, 5, "links in an operand are followed");
    let place = driver.place_below("way", "file");
    assert_eq!(stat(&mut driver, place, true).unwrap().0.size, 5, "the operand may be a link");
    let place = driver.place_below("directory", "file");
    assert_eq!(stat(&mut driver, place, false).unwrap().0.size, 5);
    for (operand, below) in [("", "way/file"), ("", "out/passwd"), ("", "loop/x")] {
        let place = driver.place_below(operand, below);
        assert!(stat(&mut driver, place.clone(), true).is_err(), "{below} followed a link");
        assert!(driver.open(place.clone(), OpenMode::Read).is_err(), "{below} followed a link");
        assert!(store(&mut driver, place, b"", true).is_err(), "{below} followed a link");
    }
    for outside in ["out/passwd", "loop", "loop/x"] {
        let place = driver.place(outside);
        assert!(driver.open(place, OpenMode::Read).is_err(), "{outside}");
    }
    driver.finish();
}

/// Everything that needs an existing name, without one.
pub fn missing_names_are_not_found<R: Rig>() {
    let mut driver = Driver::<R>::new();
    for missing in ["missing", "missing/below"] {
        let place = driver.place(missing);
        let into = driver.pool.take_reserved(Class::Small).unwrap();
        let attributes = attributes(Kind::Directory, 0o755);
        let ops = [
            OpKind::Open { place: place.clone(), mode: OpenMode::Read },
            OpKind::Load { place: place.clone(), into },
            OpKind::Fs(Box::new(FsOp::Stat { place: place.clone(), follow: true })),
            OpKind::Fs(Box::new(FsOp::Stat { place: place.clone(), follow: false })),
            OpKind::Fs(Box::new(FsOp::OpenDir { place: place.clone() })),
            OpKind::Fs(Box::new(FsOp::SetMeta { place, attributes, preserve: Preserve::default() })),
        ];
        for kind in ops {
            let what = format!("{kind:?}");
            assert_eq!(driver.run(kind).err(), Some(Errno::NOT_FOUND), "{what}");
        }
    }
    driver.finish();
}
