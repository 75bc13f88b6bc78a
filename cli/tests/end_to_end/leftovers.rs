//! What an interrupted copy has kept of a file is of no use once another copy has completed that file: it goes. What is not
//! ours, or is in use, stays.

use crate::support::daemon::Listening;
use crate::support::kept::{Kept, Victim};
use crate::support::processes::{LIMIT, Running, complete, names, wait_for};
use crate::support::routes::{Route, contents_of};
use crate::support::transfer::Way;
use crate::support::trees::set_mode;
use crate::support::{BACKENDS, hash_of, haul};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Enough for several blocks.
const SIZE: usize = 68 << 20;

/// A copy of which a part was kept once, and that part.
fn interrupted(backend: &'static str) -> (Kept, PathBuf, Vec<u8>) {
    let copy = Kept::new((backend, backend), Way::Up, SIZE);
    copy.killed_at(copy.size / 4, Victim::Client);
    let partial = copy.partial().unwrap();
    let kept = fs::read(&partial).unwrap();
    fs::remove_file(&partial).unwrap();
    (copy, partial, kept)
}

/// Puts the part back, and nothing else.
fn put_back(copy: &Kept, partial: &Path, kept: &[u8]) {
    let _ = fs::remove_file(copy.target());
    fs::write(partial, kept).unwrap();
    set_mode(partial, 0o600);
}

#[track_caller]
fn assert_alone(copy: &Kept, source: &Path, how: &str) {
    assert_eq!(names(&copy.to()), ["file"], "{how}");
    assert_eq!(hash_of(&copy.target()), hash_of(source), "{how}");
}

/// Of many files in one directory nobody asks for each.
#[test]
fn a_copy_of_many_files_removes_what_another_one_kept_of_one_of_them() {
    for backend in BACKENDS {
        let (copy, partial, kept) = interrupted(backend);
        let tree = copy.dir().join("tree");
        fs::create_dir(&tree).unwrap();
        for name in (0..40).map(|number| number.to_string()).chain(["file".to_string()]) {
            fs::write(tree.join(&name), &name).unwrap();
        }
        for route in Route::all().into_iter().filter(|route| route.near == backend) {
            put_back(&copy, &partial, &kept);
            route.copied(&["-r"], &[&contents_of(&tree)], &copy.to());
            assert_eq!(names(&copy.to()), names(&tree), "{route:?}");
            (0..40).for_each(|number| fs::remove_file(copy.to().join(number.to_string())).unwrap());
        }
    }
}

#[test]
fn a_copy_that_completes_the_file_removes_what_another_one_kept_of_it() {
    for backend in BACKENDS {
        let (copy, partial, kept) = interrupted(backend);
        let small = copy.dir().join("small");
        fs::write(&small, "a later version").unwrap();
        let mut routes = Route::all();
        routes.retain(|route| route.near == backend);
        routes.extend(Route::over_sftp().into_iter().filter(|route| route.way != crate::support::routes::Way::Up));
        for route in routes {
            let flags: &[&[&str]] = match (route.far, route.way) {
                ("SFTP", _) | (_, crate::support::routes::Way::Here) => &[&[]],
                _ => &[&[], &["--direct=direct"], &["--connections=2"], &["--fast"]],
            };
            for (flags, source) in flags.iter().flat_map(|flags| [copy.source(), small.clone()].map(|s| (flags, s))) {
                for old in [false, true] {
                    put_back(&copy, &partial, &kept);
                    if old {
                        fs::write(copy.target(), "an older version").unwrap();
                    }
                    route.copied(flags, &[&source], &copy.target());
                    assert_alone(&copy, &source, &format!("{route:?} {flags:?}"));
                }
            }
        }
    }
}

#[test]
fn a_copy_to_a_daemon_removes_what_another_one_kept() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        crate::support::random_file(&source, SIZE, 1);
        let copy = |flags: &[&str]| {
            let mut copy = haul(backend, ["copy"]);
            copy.args(flags).arg("--key-file").arg(daemon.key_file()).arg(&source).arg(daemon.at("file"));
            copy
        };
        // The name that the part has while it is copied.
        let seen = (0..20).find_map(|_| {
            let mut running = Running::start(&mut copy(&["-C"]));
            let part = || names(&daemon.root()).into_iter().find(|name| name != "file");
            wait_for(LIMIT, || part().is_some() || running.is_over());
            let part = part();
            running.finish().assert_exit(0);
            fs::remove_file(daemon.root().join("file")).unwrap();
            part
        });
        let partial = daemon.root().join(seen.expect("one of twenty copies is seen midway"));
        for flags in [&[][..], &["--connections=2"], &["--fast"]] {
            fs::write(&partial, "the beginning").unwrap();
            set_mode(&partial, 0o600);
            complete(&mut copy(flags)).assert_exit(0);
            assert_eq!(names(&daemon.root()), ["file"], "{flags:?}");
        }
    }
}

#[test]
fn what_is_not_ours_or_in_use_stays() {
    for backend in BACKENDS {
        let (copy, partial, kept) = interrupted(backend);
        let all: Vec<OsString> = [partial.file_name().unwrap(), "file".as_ref()].map(OsString::from).into();
        let mut routes = Route::all();
        routes.retain(|route| route.near == backend);
        for route in routes {
            // Another copy is at it.
            put_back(&copy, &partial, &kept);
            let held = fs::File::open(&partial).unwrap();
            rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
            route.copied(&[], &[&copy.source()], &copy.target());
            assert_eq!(names(&copy.to()), all, "{route:?}");
            drop(held);
            // Others could have written to it.
            set_mode(&partial, 0o666);
            route.copied(&[], &[&copy.source()], &copy.target());
            assert_eq!(names(&copy.to()), all, "{route:?}");
            // It leads elsewhere.
            let elsewhere = copy.dir().join("elsewhere");
            fs::rename(&partial, &elsewhere).unwrap();
            set_mode(&elsewhere, 0o600);
            std::os::unix::fs::symlink(&elsewhere, &partial).unwrap();
            route.copied(&[], &[&copy.source()], &copy.target());
            assert_eq!(names(&copy.to()), all, "{route:?}");
            assert_eq!(fs::read(&elsewhere).unwrap(), kept);
            fs::remove_file(&partial).unwrap();
            // What is kept of another file.
            let other = copy.to().join(".haul-0123456789abcdef.part");
            fs::write(&other, &kept).unwrap();
            set_mode(&other, 0o600);
            route.copied(&[], &[&copy.source()], &copy.target());
            assert!(other.exists(), "{route:?}");
            fs::remove_file(&other).unwrap();
        }
    }
}
