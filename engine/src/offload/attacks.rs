//! Paths made to lead somewhere else, each tried with openat2 and O_TMPFILE and, on the same kernel, without them.

use super::create::{Wanted, create};
use super::open::{Loaded, load};
use super::resolve::Root;
use super::{clone, names, publish};
use crate::backend::{Errno, Finish, NO_ATTRIBUTES, Output};
use crate::block::{Class, Pool, Slice};
use crate::wire::frame::{Attributes, Kind, Preserve};
use crate::wire::path::{RelPath, RequestPath, Target};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Attributes unknown, nothing exact, no flush.
const PLAIN: Finish = Finish { attributes: None, preserve: Preserve(0), sync: false, verify: None };

/// A served root with every kind of link in it, and things beside the root that nobody may reach.
struct Trap {
    _dir: tempfile::TempDir,
    root: PathBuf,
    outside: PathBuf,
}

impl Trap {
    fn new() -> Trap {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        for made in [&root.join("inside"), &root.join("deep"), &outside, &base.join("rootx")] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(root.join("inside/file"), "good").unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::write(base.join("rootx/secret"), "secret").unwrap();
        let text = |path: &str| format!("{}{path}", root.display());
        for (name, text) in [
            ("up", "..".to_owned()),
            ("etc", "/etc".to_owned()),
            ("dangling", "nowhere".to_owned()),
            ("loop", "loop".to_owned()),
            ("abs", text("/inside")),
            ("absfile", text("//./inside/file")),
            ("absup", text("/../outside")),
            ("sibling", text("x")),
            ("rel", "inside/../deep/./../inside/file".to_owned()),
            ("chain", "deep/back".to_owned()),
            ("deep/back", "../inside".to_owned()),
            ("deep/out", "../../outside/secret".to_owned()),
            ("deep/tour", "../../root/inside/file".to_owned()),
        ] {
            symlink(text, root.join(name)).unwrap();
        }
        Trap { _dir: dir, root, outside }
    }

    fn confined(&self) -> Root {
        Root::confined(fs::File::open(&self.root).unwrap().into(), self.root.clone())
    }

    fn in_root(&self, path: &str) -> String {
        format!("{}{path}", self.root.display())
    }

    /// Nothing may be added to, changed or taken from what lies beside the root.
    fn assert_outside_untouched(&self) {
        assert_eq!(listing(&self.outside), ["secret"]);
        assert_eq!(fs::read(self.outside.join("secret")).unwrap(), b"secret");
        assert_eq!(listing(self.root.parent().unwrap()), ["outside", "root", "rootx"]);
    }
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// `operand` or `operand | below`.
fn target(path: &str) -> Target {
    let (operand, below) = path.split_once('|').map_or((path, None), |(operand, below)| (operand, Some(below)));
    let below = below.map(|below| RelPath::parse(below.as_bytes()).unwrap());
    Target { operand: RequestPath::parse(operand.as_bytes()).unwrap(), below }
}

fn content(root: &Root, path: &str) -> Result<Vec<u8>, Errno> {
    let mut block = vec![0; 4096];
    match load(root, &target(path), &mut block)? {
        Loaded::Whole { len, .. } => Ok(block[..len].to_vec()),
        Loaded::TooLarge(..) => panic!("nothing here is large"),
    }
}

fn slice(bytes: &[u8]) -> Slice {
    let mut block = Pool::new(1, 0).take_reserved(Class::Small).unwrap();
    block.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    block.share().slice(0..bytes.len())
}

fn store(root: &Root, path: &str, bytes: &[u8]) -> Result<(), Errno> {
    publish::store(root, &target(path), &[slice(bytes)], &PLAIN, true).map(|_| ())
}

fn on_new_and_old_kernels(test: impl Fn()) {
    for old in [false, true] {
        super::OLD_KERNEL.set(old);
        test();
    }
}

#[test]
fn reading_follows_links_in_operands_only_while_they_stay_below_the_root() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        for path in
            ["inside/file", "abs/file", "absfile", "rel", "chain/file", "deep/back/file", "inside|file", "abs|file"]
        {
            assert_eq!(content(&root, path).as_deref(), Ok(&b"good"[..]), "{path}");
        }
        for path in [trap.in_root("/inside/file"), trap.in_root("/abs/file"), trap.in_root("/abs|file")] {
            assert_eq!(content(&root, &path).as_deref(), Ok(&b"good"[..]), "{path}");
        }
        for path in ["up/outside/secret", "etc/passwd", "absup/secret", "sibling/secret", "deep/out", "deep/tour"] {
            assert_eq!(content(&root, path), Err(Errno::OUTSIDE_ROOT), "{path}");
            assert_eq!(names::stat(&root, &target(path), true).map(|_| ()), Err(Errno::OUTSIDE_ROOT), "{path}");
        }
        for path in ["/etc/passwd".to_owned(), "/".to_owned(), trap.in_root("x/secret"), "up|outside/secret".to_owned()]
        {
            assert_eq!(content(&root, &path), Err(Errno::OUTSIDE_ROOT), "{path}");
        }
        for (path, errno) in [
            ("dangling", Errno::NOT_FOUND),
            ("dangling/x", Errno::NOT_FOUND),
            ("loop", Errno::LOOP),
            ("loop/x", Errno::LOOP),
            ("inside/file/x", Errno::NOT_DIRECTORY),
            ("inside", Errno::IS_DIRECTORY),
            ("", Errno::IS_DIRECTORY),
        ] {
            assert_eq!(content(&root, path), Err(errno), "{path}");
        }
        assert_eq!(content(&root, &trap.in_root("")), Err(Errno::IS_DIRECTORY));
    });
}

#[test]
fn no_link_is_followed_below_an_operand_under_any_root() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let plain = Root::plain(fs::File::open(&trap.root).unwrap().into());
        for root in [trap.confined(), plain] {
            for path in
                ["|absfile", "|abs/file", "|rel", "|up/outside/secret", "|etc/passwd", "deep|back/file", "|loop/x"]
            {
                assert_eq!(content(&root, path), Err(Errno::LOOP), "{path}");
                assert_eq!(names::stat(&root, &target(path), true).map(|_| ()), Err(Errno::LOOP), "{path}");
            }
            for path in ["|abs", "|etc", "|dangling", "deep|back"] {
                assert_eq!(names::open_dir(&root, &target(path)).map(|_| ()), Err(Errno::LOOP), "{path}");
                assert_eq!(names::make_dir(&root, &target(path)), Err(Errno::LOOP), "{path}");
                let set = names::set_meta(&root, &target(path), &NO_ATTRIBUTES, Preserve::MODE);
                assert_eq!(set, Err(Errno::LOOP), "{path}");
            }
            for path in ["|abs/new", "|etc/new", "|up/new", "|dangling/new", "deep|back/new", "|up/a/b/c"] {
                assert_eq!(store(&root, path, b"bad"), Err(Errno::LOOP), "{path}");
            }
            assert_eq!(listing(&trap.root.join("inside")), ["file"]);
        }
        trap.assert_outside_untouched();
    });
}

#[test]
fn nothing_is_made_outside_of_the_root() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        let absolute = trap.outside.join("new");
        let absolute = absolute.to_str().unwrap();
        for path in ["up/new", "etc/new", "absup/new", "sibling/new", "up/a/b", absolute, "etc|new", "absup|a/b"] {
            assert_eq!(store(&root, path, b"bad"), Err(Errno::OUTSIDE_ROOT), "{path}");
            assert_eq!(names::make_dir(&root, &target(path)), Err(Errno::OUTSIDE_ROOT), "{path}");
            let link = names::make_link(&root, &target(path), b"x", &NO_ATTRIBUTES, Preserve(0));
            assert_eq!(link, Err(Errno::OUTSIDE_ROOT), "{path}");
            let from = target("inside/file");
            let clone = clone::clone((&root, &from), (&root, &target(path)), &PLAIN, &AtomicBool::new(false));
            assert_eq!(clone.map(|_| ()), Err(Errno::OUTSIDE_ROOT), "{path}");
        }
        assert_eq!(store(&root, "dangling/new", b"bad"), Err(Errno::NOT_FOUND));
        assert!(!trap.root.join("nowhere").exists());
        trap.assert_outside_untouched();
    });
}

#[test]
fn a_link_under_the_final_name_is_replaced_and_never_written_through() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        for path in ["rel", "absfile", "|dangling", "loop"] {
            store(&root, path, b"new").unwrap();
            assert_eq!(content(&root, path).as_deref(), Ok(&b"new"[..]), "{path}");
        }
        // What leads out says nothing of what is there, and what leads to a directory is not replaced.
        for path in ["deep/out", "|deep/out", "|etc", "up", "absup", "sibling", "deep/tour"] {
            assert_eq!(store(&root, path, b"new"), Err(Errno::OUTSIDE_ROOT), "{path}");
        }
        for path in ["abs", "|abs", "chain", "|deep/back"] {
            assert_eq!(store(&root, path, b"new"), Err(Errno::LINK_TO_OTHER), "{path}");
        }
        assert_eq!(fs::read(trap.root.join("inside/file")).unwrap(), b"good");
        assert!(!trap.root.join("nowhere").exists());
        assert!(listing(&trap.root).iter().all(|name| !name.starts_with(".haul-")));
        trap.assert_outside_untouched();
    });
}

#[test]
fn missing_parents_are_made_in_the_operand_and_below_it_also_through_links() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        for (path, found) in [
            ("a/b/c", "a/b/c"),
            ("d/e|f/g", "d/e/f/g"),
            ("abs/h/i", "inside/h/i"),
            ("abs/j|k/l", "inside/j/k/l"),
            ("|m/n", "m/n"),
        ] {
            store(&root, path, path.as_bytes()).unwrap();
            assert_eq!(fs::read(trap.root.join(found)).unwrap(), path.as_bytes());
        }
        store(&root, &trap.in_root("/p/q"), b"absolute").unwrap();
        assert_eq!(fs::read(trap.root.join("p/q")).unwrap(), b"absolute");
        let plain = Root::plain(fs::File::open(&trap.root).unwrap().into());
        store(&plain, "abs/r/s|t/u", b"plain").unwrap();
        store(&plain, &trap.in_root("/inside/v/w"), b"plain").unwrap();
        assert_eq!(fs::read(trap.root.join("inside/r/s/t/u")).unwrap(), b"plain");
        assert_eq!(fs::read(trap.root.join("inside/v/w")).unwrap(), b"plain");
    });
}

#[test]
fn directories_swapped_for_links_during_stores_never_let_a_byte_out() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        fs::create_dir(trap.root.join("dir")).unwrap();
        symlink(&trap.outside, trap.root.join("door")).unwrap();
        let (stop, swaps) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut refused = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let at = fs::File::open(&trap.root).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(&at, "dir", &at, "door", rustix::fs::RenameFlags::EXCHANGE).unwrap();
                    swaps.store(true, Ordering::Relaxed);
                }
            });
            while !swaps.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            for number in 0..2000 {
                let path = format!("dir{}sub{}/f{}", ["/", "|"][number % 2], number % 7, number % 13);
                match store(&root, &path, b"content") {
                    Ok(()) => {}
                    Err(Errno::OUTSIDE_ROOT | Errno::LOOP | Errno::NOT_DIRECTORY | Errno::NOT_FOUND) => refused += 1,
                    Err(errno) => panic!("{path}: {errno:?}"),
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        trap.assert_outside_untouched();
        assert!(refused > 0, "the attacker never got in the way");
    });
}

#[test]
#[cfg(target_os = "linux")]
fn who_swaps_a_link_that_was_made_just_now_is_given_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root gives files to others");
        return;
    }
    let trap = Trap::new();
    let root = trap.confined();
    let (victim, link) = (trap.outside.join("secret"), trap.root.join("link"));
    let before = fs::metadata(&victim).unwrap();
    let over = AtomicBool::new(false);
    let mut replaced = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bait = trap.root.join("bait");
            while !over.load(Ordering::Relaxed) {
                let _ = fs::hard_link(&victim, &bait);
                let _ = fs::rename(&bait, &link);
            }
        });
        let attributes = Attributes { uid: 65534, gid: 65534, ..NO_ATTRIBUTES };
        for _ in 0..20_000 {
            let _ = fs::remove_file(&link);
            let made = names::make_link(&root, &target("link"), b"text", &attributes, Preserve::OWNER);
            replaced += u32::from(made == Err(Errno::REPLACED));
            if replaced > 20 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let after = fs::metadata(&victim).unwrap();
    assert_eq!((after.uid(), after.gid(), after.mtime()), (before.uid(), before.gid(), before.mtime()));
    assert!(replaced > 0, "the attacker never got in the way");
}

#[test]
fn a_cloned_kept_or_replaced_file_is_the_same_on_kernels_without_the_shortcuts() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        fs::write(trap.root.join("f"), "0123456789").unwrap();
        let wanted = Wanted { size: 6, keep: 4, overwrite: true, brief: false, mode: None };
        let (file, attributes) = create(&root, &target("f"), wanted, &AtomicBool::new(false)).unwrap();
        assert_eq!(attributes.size, 10);
        super::open::write_all(&file, 4, b"XY").unwrap();
        assert_eq!(fs::read(trap.root.join("f")).unwrap(), b"0123456789");
        publish::publish(&file, &PLAIN, &AtomicBool::new(false)).unwrap();
        drop(file);
        assert_eq!(content(&root, "f").unwrap(), b"0123XY");

        // What shall be kept must be there.
        let missing = create(&root, &target("g"), wanted, &AtomicBool::new(false));
        assert_eq!(missing.err(), Some(Errno::NOT_FOUND));
        let wanted = Wanted { keep: 0, ..wanted };
        let (file, _) = create(&root, &target("g"), wanted, &AtomicBool::new(false)).unwrap();
        assert_eq!(
            listing(&trap.root).iter().any(|name| name.starts_with(".haul-")),
            cfg!(not(target_os = "linux")) || super::OLD_KERNEL.get()
        );
        drop(file);
        assert!(listing(&trap.root).iter().all(|name| !name.starts_with(".haul-")));

        let from = target("f");
        match clone::clone((&root, &from), (&root, &target("h")), &PLAIN, &AtomicBool::new(false)) {
            Ok(Output::Cloned { hash, size, .. }) => {
                assert_eq!((hash, size), (*blake3::hash(b"0123XY").as_bytes(), 6));
                assert_eq!(content(&root, "h").unwrap(), b"0123XY");
            }
            result => {
                assert_eq!(result.map(|_| ()), Err(Errno::UNSUPPORTED));
                assert!(!trap.root.join("h").exists());
            }
        }
    });
}

/// The mode of a file made by each way there is: small, large, and kept of an interrupted run.
#[cfg(target_os = "linux")]
fn modes_made(root: &Root, source: u32) -> Vec<u32> {
    let give_up = AtomicBool::new(false);
    let finish = Finish { attributes: Some(Attributes { mode: source, ..NO_ATTRIBUTES }), ..PLAIN };
    let mut made = Vec::new();
    for name in ["small", "large", "kept"] {
        match name {
            "small" => _ = publish::store(root, &target(name), &[slice(b"x")], &finish, true).unwrap(),
            "large" => {
                let wanted = Wanted { size: 0, keep: 0, overwrite: true, brief: false, mode: None };
                let (file, _) = create(root, &target(name), wanted, &give_up).unwrap();
                publish::publish(&file, &finish, &give_up).unwrap();
            }
            _ => {
                let (file, _) = super::partial::open(root, &target(name), 0, true, &give_up).unwrap();
                publish::publish(&file, &finish, &give_up).unwrap();
            }
        }
        let spot = super::resolve::existing(root, &target(name), false).unwrap().stat().unwrap();
        made.push(super::attributes::from_stat(&spot).mode);
        rustix::fs::unlinkat(
            super::resolve::directory(root, &target("."), super::resolve::Missing::Fail).unwrap(),
            name,
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
    }
    made
}

#[test]
#[cfg(target_os = "linux")]
fn a_new_file_may_be_read_by_those_whom_the_umask_or_the_default_acl_lets() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        let umask = super::attributes::umask();
        assert_eq!(modes_made(&root, 0o4777), [0o777 & !umask; 3]);
        assert_eq!(modes_made(&root, 0o640), [0o640 & !umask; 3]);
        // user::rwx, group::r-x, mask::r-x, other::---
        let entry =
            |tag: u16, mode: u16| [&tag.to_le_bytes()[..], &mode.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
        let acl = [&2u32.to_le_bytes()[..], &entry(1, 7), &entry(4, 5), &entry(0x10, 5), &entry(0x20, 0)].concat();
        let set = rustix::fs::setxattr(&trap.root, "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty());
        if let Err(error) = set {
            eprintln!("SKIPPED: no default ACL can be set here: {error}");
            return;
        }
        assert_eq!(modes_made(&root, 0o644), [0o640; 3]);
        assert_eq!(modes_made(&root, 0o777), [0o750; 3]);
        assert!(listing(&trap.root).iter().all(|name| !name.starts_with(".haul-")));
    });
}

#[test]
fn a_target_that_became_special_before_publishing_is_left_alone() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        let wanted = Wanted { size: 0, keep: 0, overwrite: true, brief: false, mode: None };
        let begin = |name: &str| create(&root, &target(name), wanted, &AtomicBool::new(false)).unwrap().0;
        let (dir, fifo) = (begin("d"), begin("p"));
        fs::create_dir(trap.root.join("d")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(trap.root.join("p")).status().unwrap().success());
        assert_eq!(publish::publish(&dir, &PLAIN, &AtomicBool::new(false)), Err(Errno::IS_DIRECTORY));
        assert_eq!(publish::publish(&fifo, &PLAIN, &AtomicBool::new(false)), Err(Errno::NOT_REGULAR));
        drop((dir, fifo));
        assert!(fs::metadata(trap.root.join("d")).unwrap().is_dir());
        assert!(fs::metadata(trap.root.join("p")).unwrap().file_type().is_fifo());
        assert!(listing(&trap.root).iter().all(|name| !name.starts_with(".haul-")));

        let careful = Wanted { overwrite: false, ..wanted };
        let (file, _) = create(&root, &target("late"), careful, &AtomicBool::new(false)).unwrap();
        fs::write(trap.root.join("late"), "mine").unwrap();
        assert_eq!(publish::publish(&file, &PLAIN, &AtomicBool::new(false)), Err(Errno::EXISTS));
        drop(file);
        assert_eq!(fs::read(trap.root.join("late")).unwrap(), b"mine");
        let (file, _) = create(&root, &target("free"), careful, &AtomicBool::new(false)).unwrap();
        publish::publish(&file, &PLAIN, &AtomicBool::new(false)).unwrap();
        assert_eq!(fs::metadata(trap.root.join("free")).unwrap().nlink(), 1);
    });
}

#[test]
fn a_read_only_root_refuses_every_change() {
    let trap = Trap::new();
    let root = trap.confined().read_only();
    let refused = Err(rustix::io::Errno::ROFS.into());
    assert_eq!(content(&root, "inside/file").unwrap(), b"good");
    assert_eq!(store(&root, "inside/new", b"x"), refused);
    assert_eq!(names::make_dir(&root, &target("new")), refused);
    assert_eq!(names::make_link(&root, &target("new"), b"x", &NO_ATTRIBUTES, Preserve(0)).map(|_| ()), refused);
    assert_eq!(names::set_meta(&root, &target("inside"), &NO_ATTRIBUTES, Preserve(0)).map(|_| ()), refused);
}

#[test]
fn attributes_of_a_file_are_set_through_no_link() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        symlink("file", trap.root.join("inside/link")).unwrap();
        let attributes = Attributes { mode: 0o604, ..NO_ATTRIBUTES };
        for root in [trap.confined(), Root::plain(fs::File::open(&trap.root).unwrap().into())] {
            let set = |name: &str| names::set_meta(&root, &target(name), &attributes, Preserve::MODE).map(|_| ());
            let mode = || fs::metadata(trap.root.join("inside/file")).unwrap().mode() & 0o777;
            fs::set_permissions(trap.root.join("inside/file"), fs::Permissions::from_mode(0o640)).unwrap();
            assert_eq!((set("inside|link"), set("inside/link")), (Err(Errno::LOOP), Err(Errno::LOOP)));
            assert_ne!(mode(), 0o604);
            assert_eq!((set("inside|file"), mode()), (Ok(()), 0o604));
        }
    });
}

#[test]
fn an_operand_that_could_not_be_made_is_not_looked_for_again() {
    let trap = Trap::new();
    let holder = std::sync::Arc::default();
    let root = trap.confined().held_by(&holder);
    symlink("nowhere", trap.root.join("new")).unwrap();
    assert!(names::make_dir(&root, &target("new|sub")).is_err());
    // By then somebody has put there what leads elsewhere.
    fs::remove_file(trap.root.join("new")).unwrap();
    symlink("inside", trap.root.join("new")).unwrap();
    let another = trap.confined().held_by(&std::sync::Arc::default());
    for root in [&root, &another] {
        assert!(store(root, "new|one", b"1").is_err());
        assert!(names::make_dir(root, &target("new|sub")).is_err());
    }
    assert_eq!(listing(&trap.root.join("inside")), ["file"]);
    // Once nobody is left of those, it is what it is.
    drop((root, another, holder));
    store(&trap.confined().held_by(&std::sync::Arc::default()), "new|one", b"1").unwrap();
    assert_eq!(listing(&trap.root.join("inside")), ["file", "one"]);
}

#[test]
fn a_session_works_with_what_its_operand_named_first() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let holder = std::sync::Arc::default();
        let root = trap.confined().held_by(&holder);
        store(&root, "inside|one", b"1").unwrap();
        names::make_dir(&root, &target("inside|sub")).unwrap();
        fs::rename(trap.root.join("inside"), trap.root.join("moved")).unwrap();
        symlink("deep", trap.root.join("inside")).unwrap();
        store(&root, "inside|two", b"2").unwrap();
        store(&root, "inside|sub/three", b"3").unwrap();
        assert_eq!(listing(&trap.root.join("moved")), ["file", "one", "sub", "two"]);
        assert_eq!(listing(&trap.root.join("deep")), ["back", "out", "tour"]);
        assert_eq!(content(&root, "inside|file").unwrap(), b"good");

        // Another session of the same run finds the same; one of another client is told that it has changed.
        let run = trap.confined().held_by(&std::sync::Arc::default());
        assert_eq!(content(&run, "inside|file").unwrap(), b"good");
        let stranger = trap.confined().among_strangers().held_by(&std::sync::Arc::default());
        assert_eq!(content(&stranger, "inside|file"), Err(Errno::REPLACED));

        // A directory that was made gets its attributes, not what stands in its place by then.
        fs::rename(trap.root.join("moved/sub"), trap.root.join("moved/made")).unwrap();
        fs::create_dir(trap.root.join("moved/sub")).unwrap();
        let attributes = Attributes { kind: Kind::Directory, mode: 0o700, ..NO_ATTRIBUTES };
        names::set_meta(&root, &target("inside|sub"), &attributes, Preserve::MODE).unwrap();
        let mode = |name: &str| fs::metadata(trap.root.join(name)).unwrap().mode() & 0o777;
        assert_eq!(mode("moved/made"), 0o700);
        assert_ne!(mode("moved/sub"), 0o700);

        // Once nobody holds it, a name means what it means.
        drop((root, run, stranger, holder));
        let root = trap.confined().held_by(&std::sync::Arc::default());
        assert_eq!(content(&root, "inside|file"), Err(Errno::NOT_FOUND));
    });
}

#[test]
fn a_directory_that_is_not_held_any_more_is_still_known() {
    let trap = Trap::new();
    let root = trap.confined().held_by(&std::sync::Arc::default());
    for number in 0..=crate::limits::DIRS_HELD {
        names::make_dir(&root, &target(&format!("inside|{number}"))).unwrap();
    }
    fs::rename(trap.root.join("inside/0"), trap.root.join("inside/moved")).unwrap();
    fs::create_dir(trap.root.join("inside/0")).unwrap();
    let attributes = Attributes { kind: Kind::Directory, ..NO_ATTRIBUTES };
    let set = |name: &str| names::set_meta(&root, &target(name), &attributes, Preserve(0)).map(|_| ());
    assert_eq!(set("inside|0"), Err(Errno::REPLACED));
    assert_eq!(set("inside|1"), Ok(()));
}

/// `/proc` is mounted on every Linux, and to write to some of what is in it is to run code.
#[cfg(target_os = "linux")]
#[test]
fn what_is_mounted_below_a_root_is_not_reached_from_it_where_that_is_not_wanted() {
    on_new_and_old_kernels(|| {
        let whole = Root::confined(fs::File::open("/").unwrap().into(), "/".into());
        let root = whole.clone().within_its_mount();
        for path in ["proc/version", "/proc/version", "proc|version", "proc|sys/kernel/ostype"] {
            assert!(content(&whole, path).is_ok(), "{path}");
            assert_eq!(content(&root, path), Err(Errno::OTHER_MOUNT), "{path}");
            assert_eq!(names::make_dir(&root, &target(path)), Err(Errno::OTHER_MOUNT), "{path}");
        }
        assert!(names::open_dir(&root, &target("proc")).is_err_and(|errno| errno == Errno::OTHER_MOUNT));
    });
}

#[test]
fn a_root_that_was_made_anew_is_not_served() {
    on_new_and_old_kernels(|| {
        let trap = Trap::new();
        let root = trap.confined();
        assert!(content(&root, "inside/file").is_ok());
        let away = trap.root.with_file_name("away");
        fs::rename(&trap.root, &away).unwrap();
        assert_eq!(content(&root, "inside/file"), Err(Errno::ROOT_REPLACED));
        fs::create_dir(&trap.root).unwrap();
        assert_eq!(content(&root, "inside/file"), Err(Errno::ROOT_REPLACED));
        assert_eq!(names::make_dir(&root, &target("new")), Err(Errno::ROOT_REPLACED));
        fs::remove_dir(&trap.root).unwrap();
        fs::rename(&away, &trap.root).unwrap();
        assert!(content(&root, "inside/file").is_ok());
    });
}
