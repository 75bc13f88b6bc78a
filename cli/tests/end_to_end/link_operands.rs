//! Symbolic links where a user names them, and where a copy finds them at the target.

use crate::support::processes::names;
use crate::support::routes::{Route, contents_of};
use crate::support::{assert_exit, litter};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn routes() -> impl Iterator<Item = Route> {
    Route::all().into_iter().chain(Route::over_sftp())
}

#[test]
fn a_source_that_is_a_link_is_copied_as_a_link_with_l_and_with_a() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::write(source.join("dir/inner"), "inner").unwrap();
    for (name, text) in [("to-file", "file"), ("to-dir", "dir"), ("dangling", "nowhere"), ("to-itself", "../source")] {
        symlink(text, source.join(name)).unwrap();
    }
    let all: Vec<PathBuf> = names(&source).iter().map(|name| source.join(name)).collect();
    let all: Vec<&Path> = all.iter().map(PathBuf::as_path).collect();
    for route in routes() {
        for flags in [&["-a"][..], &["-r", "-l"]] {
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            route.copied(flags, &all, target.path());
            assert_eq!(names(target.path()), names(&source), "{route:?}");
            for link in ["to-file", "to-dir", "dangling", "to-itself"] {
                let (was, is) = (fs::read_link(source.join(link)), fs::read_link(target.path().join(link)));
                assert_eq!(is.ok(), was.ok(), "{route:?} {link}");
            }
            // A slash asks for what it leads to.
            let contents = target.path().join("contents");
            route.copied(flags, &[&contents_of(&source.join("to-dir"))], &contents);
            assert_eq!(fs::read_to_string(contents.join("inner")).unwrap(), "inner", "{route:?}");
        }
    }
}

#[test]
fn a_target_that_is_a_link_to_something_special_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (source, fifo) = (dir.path().join("source"), dir.path().join("fifo"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("link"), "content").unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for route in routes() {
        let to = tempfile::tempdir_in(dir.path()).unwrap();
        let link = to.path().join("link");
        for leads_to in [&fifo, Path::new("/dev/zero"), &dir.path().join("dir")] {
            symlink(leads_to, &link).unwrap();
            for flags in [&["-r"][..], &["-r", "-C"]] {
                let output = route.copy(flags, &[&contents_of(&source)], to.path());
                assert_exit(&output, 23);
                assert!(stderr(&output).contains("a symbolic link to something that is no regular file"), "{output:?}");
                assert_eq!(fs::read_link(&link).unwrap(), leads_to, "{route:?} {flags:?}");
            }
            fs::remove_file(&link).unwrap();
        }
        // Named itself, too.
        symlink(&fifo, &link).unwrap();
        assert_exit(&route.copy(&[], &[&source.join("link")], &link), 23);
        assert!(fs::metadata(&link).unwrap().file_type().is_fifo(), "{route:?}");
        assert_eq!(litter(to.path()), Vec::<OsString>::new());
    }
}

#[test]
fn a_linked_directory_at_the_target_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub/inner")).unwrap();
    for number in 0..50 {
        fs::write(source.join(format!("sub/{number}")), "x").unwrap();
        fs::write(source.join(format!("sub/inner/{number}")), "x").unwrap();
    }
    symlink("0", source.join("sub/link")).unwrap();
    fs::write(source.join("beside"), "x").unwrap();
    for route in routes() {
        let to = tempfile::tempdir_in(dir.path()).unwrap();
        let elsewhere = to.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink("elsewhere", to.path().join("sub")).unwrap();
        let output = route.copy(&["-a"], &[&contents_of(&source)], to.path());
        assert_exit(&output, 23);
        let told = stderr(&output);
        assert_eq!(told.matches("sub: left out: it is a symbolic link").count(), 1, "{route:?} {told}");
        assert!(!told.contains("Too many levels") && !told.contains("sub/"), "{route:?} {told}");
        assert_eq!(fs::read_to_string(to.path().join("beside")).unwrap(), "x");
        assert!(names(&elsewhere).is_empty(), "{route:?}");
    }
}
