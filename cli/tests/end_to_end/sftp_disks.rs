//! Copies through an SFTP server to disks that say late that there is no room, that have no permissions, or whose default
//! ACL decides who may read: the same holds as for every other copy.

use crate::support::fuse::{self, Behaviour};
use crate::support::processes::in_private_mounts;
use crate::support::routes::{Route, Way, contents_of, json_lines, of_type};
use crate::support::{assert_exit, hash_of, litter, random_file};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const EDQUOT: i32 = 122;

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_only_closing_says_keeps_the_old_file_at_either_end_of_sftp() {
    if !in_private_mounts("what_only_closing_says_keeps_the_old_file_at_either_end_of_sftp") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let behaviour = Behaviour { close: Some((1_000, EDQUOT)), ..Behaviour::default() };
    let Some(_fuse) = fuse::mount(&disk, behaviour) else { return };
    for route in Route::over_sftp() {
        // The protocol has no number for it.
        let words = if route.way == Way::Down { "Disk quota exceeded" } else { "disk is full, over quota, or broken" };
        for size in [5_000, 3_000_000] {
            let (source, target) = (dir.path().join("source"), disk.join("target"));
            random_file(&source, size, 1);
            fs::write(&target, "old").unwrap();
            let output = route.copy(&[], &[&source], &target);
            assert_exit(&output, 11);
            assert!(stderr(&output).contains(words), "{output:?}");
            assert_eq!(fs::read(&target).unwrap(), b"old", "{route:?}");
            assert_eq!(litter(&disk), Vec::<OsString>::new(), "{route:?}");
        }
    }
}

#[test]
fn a_target_without_permissions_gets_the_content_through_sftp_and_one_warning() {
    if !in_private_mounts("a_target_without_permissions_gets_the_content_through_sftp_and_one_warning") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for (name, size) in [("small", 5_000), ("large", 3_000_000), ("sub/other", 70_000)] {
        random_file(&source.join(name), size, 1);
    }
    let disk = dir.path().join("disk");
    let Some(_fuse) = fuse::mount(&disk, Behaviour { fixed_mode: Some(0o755), ..Behaviour::default() }) else { return };
    for (number, route) in Route::over_sftp().into_iter().enumerate() {
        for (flags, exit) in [("-r", 0), ("-a", 0), ("-rp", 23)] {
            let target = disk.join(format!("{number}{flags}"));
            let output = route.copy(&[flags, "--json"], &[&contents_of(&source)], &target);
            assert_exit(&output, exit);
            for name in ["small", "large", "sub/other"] {
                assert_eq!(hash_of(&target.join(name)), hash_of(&source.join(name)), "{route:?} {flags} {name}");
            }
            assert_eq!(litter(&target), Vec::<OsString>::new(), "{route:?} {flags}");
            let lines = json_lines(&output);
            let [summary] = of_type(&lines, "summary")[..] else { panic!("{lines:?}") };
            assert_eq!(summary["files"], 3);
            assert!(summary["unkept"].as_u64().is_some_and(|names| names >= 3), "{summary}");
            let told = stderr(&output).matches("does not let").count();
            assert!((1..=2).contains(&told), "{output:?}");
        }
    }
}

#[test]
fn a_file_that_comes_through_sftp_may_be_read_by_those_whom_the_default_acl_lets() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::set_permissions(source.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
    // user::rwx, group::r-x, mask::r-x, other::---
    let entry = |tag: u16, mode: u16| [&tag.to_le_bytes()[..], &mode.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    let acl = [&2u32.to_le_bytes()[..], &entry(1, 7), &entry(4, 5), &entry(0x10, 5), &entry(0x20, 0)].concat();
    for route in Route::over_sftp() {
        let to = tempfile::tempdir_in(dir.path()).unwrap();
        let set = rustix::fs::setxattr(to.path(), "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty());
        if let Err(error) = set {
            eprintln!("SKIPPED: no default ACL can be set here: {error}");
            return;
        }
        route.copied(&["-r"], &[&source], to.path());
        let mode = |name: &str| fs::metadata(to.path().join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("source/file"), mode("source")), (0o640, 0o750), "{route:?}");
    }
}
