//! `-C` over files whose content is there: it is not moved again, and permissions, owners and times become what a fresh copy
//! would have given them.

use crate::support::random_file;
use crate::support::routes::{Route, assert_same_tree, contents_of, is_root, json_lines, of_type};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, SystemTime};

const FILES: [(&str, usize); 3] = [("small", 5_000), ("large", 3_000_000), ("sub/other", 70_000)];

fn at_mtime(path: &Path, seconds: u64) {
    File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

fn spoil(target: &Path) -> Vec<u64> {
    let spoil = |(name, _): &(&str, usize)| {
        let path = target.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            chown(&path, Some(7), Some(7)).unwrap();
        }
        at_mtime(&path, 1_000_000_000);
        fs::metadata(&path).unwrap().ino()
    };
    FILES.iter().map(spoil).collect()
}

#[test]
fn what_is_there_gets_the_attributes_that_a_fresh_copy_would_give_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for (name, size) in FILES {
        random_file(&source.join(name), size, 1);
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(0o640)).unwrap();
        if is_root() {
            chown(source.join(name), Some(12), Some(34)).unwrap();
        }
        at_mtime(&source.join(name), 1_600_000_000);
    }
    let meta = |dir: &Path, name: &str| fs::metadata(dir.join(name)).unwrap();
    let total: usize = FILES.iter().map(|(_, size)| size).sum();
    for (number, route) in Route::all().into_iter().enumerate() {
        let target = dir.path().join(number.to_string());
        route.copied(&["-a"], &[&contents_of(&source)], &target);
        for flags in [["-a", "-C", "--json"], ["-r", "-C", "--json"]] {
            let inodes = spoil(&target);
            let lines = json_lines(&route.copied(&flags, &[&contents_of(&source)], &target));
            let [summary] = of_type(&lines, "summary")[..] else { panic!("{lines:?}") };
            assert_eq!(summary["resumed_bytes"], total, "{route:?} {flags:?} {summary}");
            for ((name, _), inode) in FILES.iter().zip(inodes) {
                let (was, is) = (meta(&source, name), meta(&target, name));
                assert_eq!(is.ino(), inode, "{route:?} {flags:?} {name} was copied again");
                assert_eq!(
                    (is.mtime(), is.mtime_nsec()),
                    (was.mtime(), was.mtime_nsec()),
                    "{route:?} {flags:?} {name}"
                );
                // Without -a a file that is there keeps its mode and its owner.
                let mode = if flags[0] == "-a" { 0o640 } else { 0o600 };
                assert_eq!(is.mode() & 0o7777, mode, "{route:?} {flags:?} {name}");
                let owner = if flags[0] == "-a" { (was.uid(), was.gid()) } else { (7, 7) };
                assert!(!is_root() || (is.uid(), is.gid()) == owner, "{route:?} {flags:?} {name}");
            }
        }
        route.copied(&["-a", "-C"], &[&contents_of(&source)], &target);
        assert_same_tree(&target, &source);
    }
}
