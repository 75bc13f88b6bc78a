//! Copies within this machine: across file systems, and onto or into their own source.

use crate::support::routes::{Route, Way, assert_same_tree, contents_of, finish, json_lines, of_type};
use crate::support::{BACKENDS, assert_exit, hash_of, litter, snapshot, trees};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// Something of everything.
fn mixed_tree(dir: &Path) {
    trees::files_of_sizes(&dir.join("sizes"), &trees::SIZES);
    trees::modes_and_times(&dir.join("modes"));
    trees::small_files(&dir.join("small"), 500);
    trees::deep_tree(&dir.join("deep"), 100);
    for name in trees::odd_names() {
        fs::write(dir.join("small").join(name), "odd").unwrap();
    }
    symlink("sizes/0", dir.join("link")).unwrap();
    trees::set_mtime(&dir.join("modes"), 700_000_000);
}

#[test]
fn a_tree_copied_within_the_machine_is_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    mixed_tree(dir.path());
    Route::local().iter().for_each(|route| route.copies_tree(&["-a"], dir.path()));
    trees::let_go(dir.path());
}

#[test]
fn copies_cross_file_systems() {
    let here = tempfile::tempdir().unwrap();
    let Ok(there) = tempfile::tempdir_in("/dev/shm") else {
        crate::support::skips::skip("shm", "there is no /dev/shm", "a file system there");
        return;
    };
    let device = |dir: &tempfile::TempDir| fs::metadata(dir.path()).unwrap().dev();
    if device(&here) == device(&there) {
        crate::support::skips::skip("shm", "temporary directories and /dev/shm are one file system", "another TMPDIR");
        return;
    }
    mixed_tree(&here.path().join("tree"));
    let places = [(here.path(), there.path()), (there.path(), here.path())];
    for route in Route::local() {
        for (from, to) in places {
            let (source, target) = (from.join("tree"), to.join("copy"));
            if !source.exists() {
                route.copied(&["-a"], &[&here.path().join("tree")], from);
            }
            route.copied(&["-a"], &[&contents_of(&source)], &target);
            assert_same_tree(&target, &source);
            trees::let_go(&target);
            fs::remove_dir_all(&target).unwrap();
            // One file, over another.
            let (file, over) = (source.join("sizes/524289"), to.join("over"));
            fs::write(&over, "old").unwrap();
            route.copied(&[], &[&file], &over);
            assert_eq!(hash_of(&over), hash_of(&file), "{route:?}");
            assert_eq!(litter(to), Vec::<OsString>::new());
        }
    }
    trees::let_go(here.path());
    trees::let_go(there.path());
}

/// The inode and the content of what must not be touched.
fn identity(path: &Path) -> (u64, u64, i64, i64, String) {
    let meta = fs::metadata(path).unwrap();
    (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), hash_of(path))
}

#[test]
fn a_file_copied_onto_itself_is_refused_and_stays_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let (hard, soft) = (dir.path().join("hard"), dir.path().join("soft"));
    fs::create_dir(dir.path().join("sub")).unwrap();
    for size in [0, 5, 600_000] {
        crate::support::random_file(&file, size, 3);
        fs::hard_link(&file, &hard).unwrap();
        symlink("file", &soft).unwrap();
        let before = identity(&file);
        let around = dir.path().join("sub/../file");
        let pairs: [(&Path, &Path); 6] =
            [(&file, &file), (&file, dir.path()), (&file, &around), (&file, &hard), (&hard, &file), (&soft, &file)];
        for route in Route::local() {
            for (source, target) in pairs {
                let output = route.copy(&[], &[source], target);
                assert_exit(&output, 23);
                let stderr = String::from_utf8(output.stderr).unwrap();
                assert_eq!(stderr.lines().count(), 1, "{stderr}");
                assert!(stderr.contains("source and target are the same file"), "{stderr}");
                assert_eq!(identity(&file), before, "{source:?} to {target:?}, {route:?}");
                assert_eq!(litter(dir.path()), Vec::<OsString>::new());
            }
        }
        for path in [&file, &hard, &soft] {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_file_copied_onto_itself_through_another_machine_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    for size in [0, 5, 600_000, 5_000_000] {
        crate::support::random_file(&file, size, 4);
        let hash = hash_of(&file);
        for route in Route::over_pipes() {
            route.copied(&[], &[&file], &file);
            assert_eq!(hash_of(&file), hash, "{route:?}");
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_tree_copied_onto_itself_stays_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    trees::small_files(&tree, 250);
    fs::create_dir(tree.join("empty")).unwrap();
    let before = snapshot(&tree);
    let inode = |path: &str| fs::metadata(tree.join(path)).unwrap().ino();
    let inodes = [inode("000/file-0"), inode("002/file-249")];
    for route in Route::local() {
        for (source, target) in [(&contents_of(&tree), tree.as_path()), (&tree, dir.path())] {
            let output = route.copy(&["-a"], &[source], target);
            assert_exit(&output, 23);
            assert_eq!(snapshot(&tree), before, "{route:?}");
            assert_eq!([inode("000/file-0"), inode("002/file-249")], inodes, "{route:?}");
        }
    }
}

#[test]
fn a_tree_is_not_copied_into_itself() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for route in Route::local() {
        // With and without a name of its own there, into a directory that exists and into one that does not.
        for (source, target) in [(tree.clone(), "sub"), (contents_of(&tree), "sub"), (tree.clone(), "new/er")] {
            trees::small_files(&tree, 250);
            fs::create_dir_all(tree.join("sub")).unwrap();
            let before = snapshot(&tree).len();
            let output = route.copy(&["-r"], &[&source], &tree.join(target));
            assert_exit(&output, 23);
            let after = snapshot(&tree).len();
            assert!(after <= before + 2, "{before} names became {after}, {route:?}");
            fs::remove_dir_all(&tree).unwrap();
        }
    }
}

#[test]
fn relative_paths_and_parent_directories_work_as_typed() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("work");
    fs::create_dir_all(work.join("d/e")).unwrap();
    fs::write(work.join("d/e/y"), "y").unwrap();
    fs::write(work.join("f"), "f").unwrap();
    let table: [(&[&str], &str, &str); 7] = [
        (&["f", "g"], "work/g", "f"),
        (&["f", "../up"], "up", "f"),
        (&["../work/f", "./d/"], "work/d/f", "f"),
        (&["d/../f", "d/e/../z"], "work/d/z", "f"),
        (&["-r", "d/.", "copy"], "work/copy/e/y", "y"),
        (&["-r", "./d", ".."], "d/e/y", "y"),
        (&["-r", "d/e/..", "parent"], "work/parent/d/e/y", "y"),
    ];
    for backend in BACKENDS {
        for (args, lands, content) in table {
            let mut command = crate::support::haul(backend, ["copy"]);
            command.args(args).current_dir(&work);
            assert_exit(&finish(command), 0);
            let lands: PathBuf = dir.path().join(lands);
            assert_eq!(fs::read_to_string(&lands).ok().as_deref(), Some(content), "{args:?}");
            fs::remove_file(&lands).unwrap();
        }
    }
}

#[test]
fn local_copies_are_reported_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let files = trees::files_of_sizes(&dir.path().join("source"), &[0, 5, 600_000]);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for route in Route::local() {
        assert_eq!(route.way, Way::Here);
        let output = route.copied(&["--json"], &files, &dir.path().join("target"));
        let lines = json_lines(&output);
        let copied = of_type(&lines, "file");
        assert_eq!(copied.len(), files.len());
        for line in copied {
            let source = line["source"].as_str().unwrap();
            assert_eq!(line["blake3"], *hash_of(Path::new(source)));
        }
        assert_eq!(lines.last().unwrap()["bytes"], 600_005);
    }
}
