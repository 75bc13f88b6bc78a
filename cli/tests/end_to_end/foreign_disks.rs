//! Targets on file systems that say late that there is no room, or that have no permissions, owners and times. Each test
//! mounts one of its own, which takes the right to mount.

use crate::support::fuse::{self, Behaviour};
use crate::support::kept::{BLOCK, Kept, Victim};
use crate::support::processes::in_private_mounts;
use crate::support::routes::{Route, contents_of, json_lines, of_type};
use crate::support::transfer::Way;
use crate::support::{assert_exit, hash_of, litter, random_file};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

const EDQUOT: i32 = 122;
const ENOSPC: i32 = 28;

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_only_closing_says_keeps_the_old_file_and_ends_with_exit_11() {
    if !in_private_mounts("what_only_closing_says_keeps_the_old_file_and_ends_with_exit_11") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, size) in [("small", 5_000), ("large", 3_000_000)] {
        random_file(&dir.path().join(name), size, 1);
    }
    for (errno, words) in [(EDQUOT, "Disk quota exceeded"), (ENOSPC, "No space left on device")] {
        let disk = dir.path().join(errno.to_string());
        let Some(_fuse) = fuse::mount(&disk, Behaviour { close: Some((1_000, errno)), ..Behaviour::default() }) else {
            return;
        };
        for route in Route::all() {
            for flags in [&[][..], &["-C"], &["--sync"], &["--fast"]] {
                for name in ["small", "large"] {
                    let target = disk.join(name);
                    fs::write(&target, "old").unwrap();
                    let output = route.copy(flags, &[&dir.path().join(name)], &target);
                    assert_exit(&output, 11);
                    assert!(stderr(&output).contains(words), "{output:?}");
                    assert_eq!(fs::read(&target).unwrap(), b"old", "{route:?} {flags:?}");
                    fs::remove_file(&target).unwrap();
                }
            }
            if route.near == route.far {
                assert_eq!(without_partials(&disk), Vec::<OsString>::new());
            }
        }
    }
}

/// What an incomplete file has left with -C is there on purpose.
fn without_partials(disk: &Path) -> Vec<OsString> {
    litter(disk).into_iter().filter(|name| !name.to_string_lossy().ends_with(".part")).collect()
}

#[test]
fn a_target_without_permissions_and_times_gets_the_content_and_one_warning() {
    if !in_private_mounts("a_target_without_permissions_and_times_gets_the_content_and_one_warning") {
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
    for (number, route) in Route::all().into_iter().enumerate() {
        for (flags, exit) in [(&["-r"][..], 0), (&["-a"], 0), (&["-rp"], 23), (&["-r", "-C"], 0)] {
            let target = disk.join(format!("{number}{}", flags.concat()));
            let output = route.copy(&[flags, &["--json"]].concat(), &[&contents_of(&source)], &target);
            assert_exit(&output, exit);
            for name in ["small", "large", "sub/other"] {
                assert_eq!(hash_of(&target.join(name)), hash_of(&source.join(name)), "{route:?} {flags:?} {name}");
            }
            assert_eq!(litter(&target), Vec::<OsString>::new(), "{route:?} {flags:?}");
            let lines = json_lines(&output);
            let [summary] = of_type(&lines, "summary")[..] else { panic!("{lines:?}") };
            assert_eq!(summary["files"], 3);
            assert!(summary["unkept"].as_u64().is_some_and(|names| names >= 3), "{summary}");
            let unkept = of_type(&lines, "unkept");
            assert_eq!(unkept.len() as u64, summary["unkept"], "{lines:?}");
            assert!(unkept.iter().any(|line| line["target"].as_str().unwrap().ends_with("large")), "{unkept:?}");
            // Kind by kind, not file by file.
            let told = stderr(&output).matches("does not let").count();
            assert!((1..=2).contains(&told), "{output:?}");
        }
    }
}

#[test]
fn an_interrupted_copy_goes_on_where_the_target_has_no_permissions() {
    if !in_private_mounts("an_interrupted_copy_goes_on_where_the_target_has_no_permissions") {
        return;
    }
    for pair in [("uring", "poll"), ("poll", "uring")] {
        for way in [Way::Up, Way::Down] {
            let kept = Kept::new(pair, way, 64 << 20);
            let behaviour = Behaviour { fixed_mode: Some(0o755), ..Behaviour::default() };
            let Some(_fuse) = fuse::mount(&kept.to(), behaviour) else { return };
            kept.killed_at(8 << 20, Victim::Client);
            let summary = kept.completed(&["-C"]);
            assert!(
                summary["resumed_bytes"].as_u64().is_some_and(|bytes| bytes >= BLOCK),
                "{pair:?} {way:?} {summary}"
            );
        }
    }
}
