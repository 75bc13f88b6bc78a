//! Two sources with one target: the second never replaces the first in silence, whether they have one name, or two that the
//! file system of the target takes for one.

use crate::support::fuse::{self, Behaviour};
use crate::support::processes::{in_private_mounts, names};
use crate::support::routes::{Route, Way, contents_of};
use crate::support::{assert_exit, litter};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn fill(dir: &Path, names: &[&str]) {
    for name in names {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{} {name}", dir.file_name().unwrap().display())).unwrap();
    }
}

#[test]
fn of_two_sources_with_one_target_the_second_is_refused_and_both_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("A"), dir.path().join("B"));
    fill(&a, &["n", "tree/both", "tree/sub/both", "tree/only A"]);
    fill(&b, &["n", "m", "tree/both", "tree/sub/both", "tree/only B"]);
    symlink("A's", a.join("tree/link")).unwrap();
    symlink("B's", b.join("tree/link")).unwrap();
    for (number, route) in Route::all().into_iter().chain(Route::over_sftp()).enumerate() {
        let target = dir.path().join(number.to_string());
        let read = |name: &str| fs::read_to_string(target.join(name)).unwrap();
        fs::create_dir(&target).unwrap();
        // It was there before: that is replaced.
        fs::write(target.join("n"), "old").unwrap();
        let output = route.copy(&[], &[&a.join("n"), &b.join("n"), &b.join("m")], &target);
        assert_exit(&output, 23);
        let line = format!("B/n: left out: {} is copied to ", route.from(&a.join("n")).display());
        assert_eq!(stderr(&output).matches(&line).count(), 1, "{route:?} {output:?}");
        assert_eq!((read("n").as_str(), read("m").as_str()), ("A n", "B m"), "{route:?}");

        let merged = target.join("tree");
        let whole = [a.join("tree"), b.join("tree")];
        let contents = whole.each_ref().map(|dir| contents_of(dir));
        for (sources, to) in [(contents, &merged), (whole, &target)] {
            let output = route.copy(&["-a"], &[&sources[0], &sources[1]], to);
            assert_exit(&output, 23);
            assert_eq!(stderr(&output).matches(" left out: ").count(), 3, "{route:?} {output:?}");
            for name in ["both", "sub/both", "only A"] {
                assert_eq!(read(&format!("tree/{name}")), format!("A tree/{name}"), "{route:?}");
            }
            assert_eq!(read("tree/only B"), "B tree/only B", "{route:?}");
            assert_eq!(fs::read_link(merged.join("link")).unwrap(), Path::new("A's"), "{route:?}");
            fs::remove_dir_all(&merged).unwrap();
        }
        assert_eq!(litter(&target), Vec::<OsString>::new());
    }
}

#[test]
fn names_that_the_target_takes_for_one_are_not_written_one_over_the_other() {
    if !in_private_mounts("names_that_the_target_takes_for_one_are_not_written_one_over_the_other") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fill(&source, &["Readme", "readme", "1", "2", "Sub/x", "sub/X", "sub/y"]);
    let disk = dir.path().join("disk");
    let Some(_fuse) = fuse::mount(&disk, Behaviour { folds: true, ..Behaviour::default() }) else { return };
    // Nobody there would tell whether the other end of SFTP does so.
    let down = Route::over_sftp().into_iter().filter(|route| route.way == Way::Down);
    for (number, route) in Route::all().into_iter().chain(down).enumerate() {
        // Twice: what an earlier copy has written is replaced as ever.
        for _ in 0..2 {
            let target = disk.join(number.to_string());
            let output = route.copy(&["-r"], &[&contents_of(&source)], &target);
            assert_exit(&output, 23);
            let told = stderr(&output);
            assert_eq!(told.matches("name differs only in case").count(), 2, "{route:?} {told}");
            let same = |name: &str, content: &[u8]| name.to_lowercase().into_bytes() == content.to_ascii_lowercase();
            for name in ["source readme", "source 1", "source 2", "source sub/x", "source sub/y"] {
                let content = fs::read(target.join(&name[7..])).unwrap();
                assert!(same(name, &content), "{route:?} {name}");
            }
            assert_eq!((names(&target).len(), names(&target.join("sub")).len()), (4, 2), "{route:?}");
            assert_eq!(litter(&target), Vec::<OsString>::new());
        }
    }
}
