//! The directory that things are copied to: which of those above it are made, read-only ones, and those of somebody else.

use crate::support::routes::{Route, assert_same_tree, contents_of, is_root, open_to_all};
use crate::support::{assert_exit, litter};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_wrong_letter_above_the_target_makes_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (file, tree) = (dir.path().join("file"), dir.path().join("tree"));
    fs::create_dir(&tree).unwrap();
    fs::write(&file, "content").unwrap();
    fs::write(tree.join("inner"), "content").unwrap();
    for route in Route::all() {
        let missing = dir.path().join("no/such");
        for (flags, source, target) in [
            (&[][..], &file, missing.join("file")),
            (&[], &file, missing.join("")),
            (&["-r"], &tree, missing.join("tree")),
            (&["-r", "-C"], &tree, missing.join("a/tree")),
        ] {
            let output = route.copy(flags, &[source], &target);
            assert_exit(&output, 23);
            assert!(stderr(&output).contains("its directory is not there; --mkpath makes it"), "{output:?}");
            assert!(!dir.path().join("no").exists(), "{route:?} {flags:?}");
            route.copied(&[flags, &["--mkpath"]].concat(), &[source], &target);
            assert!(missing.is_dir());
            fs::remove_dir_all(dir.path().join("no")).unwrap();
        }
        // One level is made, as by cp -r and rsync.
        for (flags, sources, target) in
            [(&["-r"][..], vec![&*tree], "new"), (&[], vec![&*file], "new/"), (&["-r"], vec![&*file, &*tree], "new")]
        {
            route.copied(flags, &sources, &dir.path().join(target));
            assert!(dir.path().join("new").is_dir());
            fs::remove_dir_all(dir.path().join("new")).unwrap();
        }
    }
}

#[test]
fn a_tree_of_read_only_directories_is_copied_and_copied_again() {
    let dir = tempfile::tempdir().unwrap();
    let routes = Route::all_without_rights(dir.path());
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sealed/inner")).unwrap();
    for name in ["file", "sealed/file", "sealed/inner/file"] {
        fs::write(source.join(name), name).unwrap();
    }
    // So many that several are made at the same time.
    for number in 0..40 {
        std::os::unix::fs::symlink("file", source.join(format!("sealed/link-{number}"))).unwrap();
    }
    for name in ["sealed/inner", "sealed", ""] {
        set_mode(&source.join(name), 0o555);
    }
    let all_writable = |root: &Path| {
        for name in ["", "sealed", "sealed/inner"] {
            set_mode(&root.join(name), 0o755);
        }
    };
    for (number, route) in routes.iter().enumerate() {
        let parent = dir.path().join(number.to_string());
        fs::create_dir(&parent).unwrap();
        open_to_all(&parent);
        let target = parent.join("copy");
        for flags in [&["-a"][..], &["-a"], &["-a", "-C"], &["-rl"]] {
            route.copied(flags, &[&contents_of(&source)], &target);
            assert_same_tree(&target, &source);
            assert_eq!(litter(&target.join("sealed")), Vec::<OsString>::new(), "{route:?} {flags:?}");
        }
        all_writable(&target);
    }
    all_writable(&source);
}

#[test]
fn what_nobody_asked_for_of_somebody_elses_directory_is_no_failure() {
    if !is_root() {
        eprintln!("SKIPPED: only root makes directories of somebody else");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let routes = Route::all_without_rights(dir.path());
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    set_mode(&source, 0o755);
    for (number, route) in routes.iter().enumerate() {
        for (index, (flags, exit, told)) in
            [(&["-r"][..], 0, false), (&["-rO"], 0, false), (&["-a"], 0, true), (&["-rp"], 23, true)]
                .into_iter()
                .enumerate()
        {
            let target = dir.path().join(format!("{number}-{index}"));
            fs::create_dir(&target).unwrap();
            set_mode(&target, 0o1777);
            let before = fs::metadata(&target).unwrap().mtime();
            let output = route.copy(flags, &[&contents_of(&source)], &target);
            assert_exit(&output, exit);
            assert_eq!(stderr(&output).contains("does not let"), told, "{output:?}");
            assert_eq!(fs::read(target.join("file")).unwrap(), b"content");
            assert_eq!(mode(&target), 0o1777);
            assert!(fs::metadata(&target).unwrap().mtime() >= before);
        }
    }
}

#[test]
fn times_of_directories_are_left_alone_where_the_user_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), "content").unwrap();
    crate::support::trees::set_mtime(&source.join("sub"), 700_000_000);
    set_mode(&source.join("sub"), 0o750);
    for (number, route) in Route::all().iter().enumerate() {
        for (flags, kept) in [(&["-a", "-O"][..], false), (&["-a"], true)] {
            let target = dir.path().join(format!("{number}{kept}"));
            route.copied(flags, &[&contents_of(&source)], &target);
            let sub = fs::metadata(target.join("sub")).unwrap();
            assert_eq!(sub.mtime() == 700_000_000, kept, "{route:?} {flags:?}");
            assert_eq!(sub.mode() & 0o777, 0o750);
        }
    }
}
