//! Copies over pipes in place of ssh, and within this machine: every pair of backends, both ways.

use crate::support::routes::{Route, assert_same_tree, contents_of, finish, is_root, json_lines, of_type};
use crate::support::trees;
use crate::support::{Entry, assert_exit, hash_of, litter, snapshot};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn files_of_every_critical_size_arrive_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let files = trees::files_of_sizes(&source, &trees::SIZES);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for route in Route::all() {
        let target = tempfile::tempdir().unwrap();
        route.copied(&[], &files, target.path());
        assert_same_tree(target.path(), &source);
    }
}

#[test]
fn a_gibibyte_of_mostly_nothing_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    trees::sparse_gibibyte(&source);
    let hash = hash_of(&source);
    // Each backend meets itself once each way; that it also meets the other is shown with smaller files.
    for route in Route::all().into_iter().filter(|route| route.near == route.far) {
        let target = dir.path().join("target");
        route.copied(&[], &[&source], &target);
        assert_eq!(fs::metadata(&target).unwrap().len(), 1 << 30, "{route:?}");
        assert_eq!(hash_of(&target), hash, "{route:?}");
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn ten_thousand_small_files_arrive_whole() {
    let dir = trees::scratch();
    trees::small_files(dir.path(), 10_000);
    Route::all().iter().for_each(|route| route.copies_tree(&["-r"], dir.path()));
}

#[test]
fn a_deep_tree_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    trees::deep_tree(dir.path(), 150);
    Route::all().iter().for_each(|route| route.copies_tree(&["-r"], dir.path()));
}

#[test]
fn empty_directories_arrive() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    for route in Route::all() {
        route.copies_tree(&["-r"], dir.path());
        route.copies_tree(&["-r"], &dir.path().join("d"));
    }
}

#[test]
fn modes_and_nanoseconds_are_kept_with_p() {
    let dir = tempfile::tempdir().unwrap();
    trees::modes_and_times(dir.path());
    Route::all().iter().for_each(|route| route.copies_tree(&["-rp"], dir.path()));
    trees::let_go(dir.path());
}

#[test]
fn directories_without_write_permission_can_be_copied_by_those_whom_it_binds() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    let routes = Route::all_without_rights(&work);
    // Made as their owner sees it: copied there once by himself.
    let (made, source) = (dir.path().join("made"), work.join("source"));
    trees::modes_and_times(&made);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if is_root() {
        assert!(Command::new("chown").args(["-R", "65534:65534"]).arg(&made).status().unwrap().success());
    }
    fs::rename(&made, &source).unwrap();
    let mut write = Command::new("touch");
    write.arg(source.join("dir-555/new"));
    crate::support::routes::without_rights(&mut write);
    assert!(!finish(write).status.success(), "a directory of mode 0555 can be written to");
    for (number, route) in routes.iter().enumerate() {
        let target = work.join(format!("target-{number}"));
        route.copied(&["-rp"], &[&contents_of(&source)], &target);
        assert_same_tree(&target, &source);
        trees::let_go(&target);
    }
    trees::let_go(&source);
}

#[test]
fn without_p_modes_follow_the_umask_and_times_are_kept_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    for (name, mode) in [("plain", 0o666), ("tool", 0o777), ("private", 0o600), ("set-id", 0o6755)] {
        fs::write(source.join(name), name).unwrap();
        trees::set_mtime(&source.join(name), 1_234_567_890);
        trees::set_mode(&source.join(name), mode);
    }
    trees::set_mode(&source.join("dir"), 0o777);
    trees::set_mtime(&source.join("dir"), 987_654_321);
    let before = snapshot(&source);
    for (number, route) in Route::all().into_iter().enumerate() {
        let target = dir.path().join(format!("target-{number}"));
        let copy = route.command(&["-r"], &[&contents_of(&source)], &target);
        let mut command = Command::new("sh");
        command.args(["-c", "umask 027; exec \"$0\" \"$@\""]).arg(copy.get_program()).args(copy.get_args());
        assert_exit(&finish(command), 0);
        let after = snapshot(&target);
        for (name, mode) in [("plain", 0o640), ("tool", 0o750), ("private", 0o600), ("set-id", 0o750), ("dir", 0o750)] {
            let expected = match before[OsStr::new(name)].clone() {
                Entry::File { hash, size, mtime, .. } => Entry::File { hash, size, mode, mtime },
                Entry::Directory { mtime, .. } => Entry::Directory { mode, mtime },
                other => other,
            };
            assert_eq!(after[OsStr::new(name)], expected, "{name}, {route:?}");
        }
    }
}

/// Links of all sorts, and one file.
fn links(dir: &Path) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    for (text, name) in [
        ("file", "to-file"),
        ("sub", "to-directory"),
        ("nowhere/at/all", "dangling"),
        ("/etc/hostname", "absolute"),
        ("../file", "sub/up"),
        ("..", "sub/loop"),
        ("a b\n\"c\"", "sub/odd"),
    ] {
        symlink(text, dir.join(name)).unwrap();
    }
    symlink(OsStr::from_bytes(b"\xff\xfe"), dir.join("bytes")).unwrap();
    let long = "long/".repeat(800);
    symlink(&long, dir.join("long")).unwrap();
}

const LINKS: usize = 9;

#[test]
fn symbolic_links_are_kept_as_links_with_l() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    links(&source);
    let before = fs::symlink_metadata(source.join("dangling")).unwrap();
    for (number, route) in Route::all().into_iter().enumerate() {
        let target = dir.path().join(format!("target-{number}"));
        let output = route.copied(&["-rl", "--json"], &[&contents_of(&source)], &target);
        assert_same_tree(&target, &source);
        let lines = json_lines(&output);
        let summary = lines.last().unwrap();
        assert_eq!((&summary["links"], &summary["skipped"]), (&LINKS.into(), &0.into()));
        let after = fs::symlink_metadata(target.join("dangling")).unwrap();
        assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()), "{route:?}");
    }
}

#[test]
fn symbolic_links_are_left_out_and_counted_without_l() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    links(&source);
    for (number, route) in Route::all().into_iter().enumerate() {
        let target = dir.path().join(format!("target-{number}"));
        let output = route.copied(&["-r"], &[&contents_of(&source)], &target);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.trim_end().ends_with(&format!("; left out {LINKS} symbolic links")), "{stderr}");
        let names: Vec<_> = snapshot(&target).into_keys().collect();
        assert_eq!(names, ["file", "sub"], "{route:?}");
        let output = route.copied(&["-r", "--json"], &[&contents_of(&source)], &target);
        let lines = json_lines(&output);
        assert_eq!(of_type(&lines, "skipped").len(), LINKS);
        assert_eq!(lines.last().unwrap()["skipped"], LINKS);
    }
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn fifos_sockets_and_devices_in_a_tree_are_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    make_fifo(&source.join("fifo"));
    let _listener = UnixListener::bind(source.join("socket")).unwrap();
    let mut special = vec![("fifo", "FIFO"), ("socket", "socket")];
    let device = Command::new("mknod").arg(source.join("device")).args(["c", "1", "3"]).output();
    if is_root() && device.is_ok_and(|output| output.status.success()) {
        assert!(fs::metadata(source.join("device")).unwrap().file_type().is_char_device());
        special.push(("device", "device"));
    }
    for (number, route) in Route::all().into_iter().enumerate() {
        let target = dir.path().join(format!("target-{number}"));
        let output = route.copied(&["-a", "-v"], &[&contents_of(&source)], &target);
        let stderr = String::from_utf8(output.stderr).unwrap();
        for (name, why) in &special {
            let line = |line: &str| line.starts_with("haul: ") && line.ends_with(&format!("{name}: left out: {why}"));
            assert!(stderr.lines().any(line), "{name}: {stderr}");
        }
        let names: Vec<_> = snapshot(&target).into_keys().collect();
        assert_eq!(names, ["file"], "{route:?}");
    }
}

#[test]
fn the_null_device_as_target_swallows_everything_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let files = trees::files_of_sizes(dir.path(), &trees::SIZES);
    let before = fs::metadata("/dev/null").unwrap();
    for route in Route::all() {
        for file in &files {
            let output = route.copied(&["-p", "--json"], &[file], Path::new("/dev/null"));
            let lines = json_lines(&output);
            assert_eq!(of_type(&lines, "file")[0]["blake3"], *hash_of(file), "{route:?}");
        }
        let after = fs::metadata("/dev/null").unwrap();
        assert!(after.file_type().is_char_device());
        assert_eq!((after.ino(), after.mode(), after.rdev()), (before.ino(), before.mode(), before.rdev()));
        assert!(litter(Path::new("/dev")).is_empty());
    }
}

#[test]
fn devices_and_fifos_are_refused_as_sources() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    make_fifo(&fifo);
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for route in Route::all() {
        for source in [Path::new("/dev/null"), Path::new("/dev/zero"), &fifo, &socket] {
            let target = dir.path().join("target");
            let output = route.copy(&[], &[source], &target);
            assert_exit(&output, 23);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.contains(source.to_str().unwrap()), "{stderr}");
            assert!(!target.exists());
        }
    }
}

#[test]
fn files_that_claim_no_size_are_copied_as_what_they_contain() {
    let source = Path::new("/proc/version");
    if !source.exists() {
        crate::support::skips::skip("proc", "there is no /proc here", "Linux");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for route in Route::all() {
        let target = dir.path().join("target");
        route.copied(&[], &[source], &target);
        assert_eq!(fs::read(&target).unwrap(), fs::read(source).unwrap(), "{route:?}");
    }
}

#[test]
fn archives_keep_owner_and_group_where_that_is_allowed() {
    if !is_root() {
        crate::support::skips::skip("root", "only root gives files away", "root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/file"), "x").unwrap();
    symlink("file", source.join("sub/link")).unwrap();
    trees::set_mode(&source.join("sub/file"), 0o640);
    for (name, owner) in [("sub/file", 1234), ("sub", 1235), ("sub/link", 1236)] {
        std::os::unix::fs::lchown(source.join(name), Some(owner), Some(owner + 1000)).unwrap();
    }
    for (number, route) in Route::all().into_iter().enumerate() {
        for (flags, kept) in [("-a", true), ("-rlp", false)] {
            let target = dir.path().join(format!("target-{number}{flags}"));
            route.copied(&[flags], &[&contents_of(&source)], &target);
            assert_same_tree(&target, &source);
            for (name, owner) in [("sub/file", 1234), ("sub", 1235), ("sub/link", 1236)] {
                let found = fs::symlink_metadata(target.join(name)).unwrap();
                let expected = if kept { (owner, owner + 1000) } else { (0, rustix::process::getegid().as_raw()) };
                assert_eq!((found.uid(), found.gid()), expected, "{name} with {flags}, {route:?}");
            }
        }
    }
}

#[test]
fn relative_paths_begin_in_the_login_directory_there_and_in_the_working_directory_here() {
    for near in crate::support::BACKENDS {
        let pipes = crate::support::Pipes::new(near);
        let (here, home) = (tempfile::tempdir().unwrap(), crate::support::Remote::home(&pipes));
        fs::create_dir(home.join("sub")).unwrap();
        fs::write(here.path().join("up"), "up").unwrap();
        fs::write(home.join("sub/down"), "down").unwrap();
        let table: [(&[&str], PathBuf, &str); 8] = [
            (&["up", "far:"], home.join("up"), "up"),
            (&["up", "far:new"], home.join("new"), "up"),
            (&["up", "far:sub"], home.join("sub/up"), "up"),
            (&["up", "far:~/sub/renamed"], home.join("sub/renamed"), "up"),
            (&["far:sub/down", "."], here.path().join("down"), "down"),
            (&["far:~/sub/down", "./renamed"], here.path().join("renamed"), "down"),
            (&["-r", "far:sub", "tree"], here.path().join("tree/sub/down"), "down"),
            (&["-r", "far:", "home"], here.path().join("home/sub/down"), "down"),
        ];
        for (args, lands, content) in table {
            let mut command = crate::support::haul(near, ["copy"]);
            command.args(crate::support::Remote::args(&pipes)).args(args).current_dir(here.path());
            assert_exit(&finish(command), 0);
            assert_eq!(fs::read_to_string(&lands).unwrap(), content, "{args:?}");
            fs::remove_file(&lands).unwrap();
        }
    }
}
