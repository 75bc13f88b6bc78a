//! What things are called and where they land: odd names, rsync's rule of the trailing slash, and what stood there before.

use crate::support::routes::{Route, Way, assert_same_tree, contents_of, finish, json_lines, json_name, of_type};
use crate::support::{Remote, assert_exit, litter, snapshot, trees};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// Files and directories of every odd name, each directory with a file of that name in it.
fn odd_tree(dir: &Path) {
    for name in trees::odd_names() {
        let odd = dir.join("dirs").join(&name);
        fs::create_dir_all(&odd).unwrap();
        fs::write(odd.join(&name), name.as_bytes()).unwrap();
    }
    fs::create_dir_all(dir.join("files")).unwrap();
    for name in trees::odd_names() {
        fs::write(dir.join("files").join(&name), name.as_bytes()).unwrap();
    }
}

#[test]
fn odd_names_in_a_tree_arrive_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    odd_tree(dir.path());
    Route::all().iter().for_each(|route| route.copies_tree(&["-r"], dir.path()));
}

#[test]
fn odd_names_can_be_given_as_operands() {
    let dir = tempfile::tempdir().unwrap();
    odd_tree(dir.path());
    let names = trees::odd_names();
    let files: Vec<PathBuf> = names.iter().map(|name| dir.path().join("files").join(name)).collect();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for route in Route::all() {
        // All of them as sources, into a directory that has such a name too.
        let target = tempfile::tempdir().unwrap();
        let odd = target.path().join("it's \"\n\\ \u{fe}");
        let output = route.copied(&["--json"], &files, &odd);
        assert_same_tree(&odd, &dir.path().join("files"));
        let lines = json_lines(&output);
        let reported = of_type(&lines, "file").into_iter().map(|line| {
            let name = |key| json_name(line, key).rsplit(|&byte| byte == b'/').next().unwrap().to_vec();
            assert_eq!(name("source"), name("target"), "{line}");
            name("source")
        });
        let expected: BTreeSet<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        assert_eq!(reported.collect::<BTreeSet<_>>(), expected, "{route:?}");
        // Each as the exact name of a target.
        if route.near == route.far {
            for name in &names {
                route.copied(&[], &[files[0]], &target.path().join(name));
                assert_eq!(fs::read(target.path().join(name)).unwrap(), names[0].as_bytes(), "{name:?}");
            }
        }
    }
}

#[test]
fn relative_operands_may_begin_with_a_dash_or_hold_a_colon() {
    let pipes = crate::support::Pipes::new("poll");
    let dir = tempfile::tempdir().unwrap();
    for name in ["-v", "--help", "a:b", "~", "c:/d"] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, name).unwrap();
        // `./` makes a name of what would be a machine; after `--` nothing is an option.
        let written = if name.contains(':') { format!("./{name}") } else { name.to_string() };
        for target in ["far:", "here/"] {
            let mut command = crate::support::haul("poll", ["copy"]);
            command.args(pipes.args()).args(["--", &written, target]).current_dir(dir.path());
            assert_exit(&finish(command), 0);
        }
        let arrived = Path::new(name).file_name().unwrap();
        for place in [pipes.home().join(arrived), dir.path().join("here").join(arrived)] {
            assert_eq!(fs::read_to_string(place).unwrap(), name);
        }
    }
}

#[test]
fn a_name_of_more_than_255_bytes_is_an_error_that_says_so_and_stops_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, "x").unwrap();
    for route in Route::all() {
        let target = dir.path().join("n".repeat(256));
        let output = route.copy(&[], &[&source], &target);
        assert_exit(&output, 23);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert!(lines[0].starts_with("haul: ") && lines[0].contains("File name too long"), "{stderr}");
        assert_eq!(lines[1], "hint: most file systems allow 255 bytes for one name");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Opens the directory `levels` further down, making it if `make`; its path is longer than any system call takes.
fn far_down(dir: &Path, levels: usize, make: bool) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let name = "x".repeat(255);
    let mut at = openat(CWD, dir, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        if make {
            mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
        }
        at = openat(&at, &name, flags, Mode::empty()).unwrap();
    }
    at
}

#[test]
fn a_tree_whose_paths_are_longer_than_the_system_allows_arrives_whole() {
    const LEVELS: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let bottom = far_down(&source, LEVELS, true);
    let file = openat(&bottom, "file", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644)).unwrap();
    fs::File::from(file).write_all(b"down here").unwrap();
    for (number, route) in Route::all().into_iter().enumerate() {
        let target = dir.path().join(format!("target-{number}"));
        route.copied(&["-rp"], &[&contents_of(&source)], &target);
        let file = openat(far_down(&target, LEVELS, false), "file", OFlags::RDONLY, Mode::empty()).unwrap();
        let mut content = String::new();
        fs::File::from(file).read_to_string(&mut content).unwrap();
        assert_eq!(content, "down here", "{route:?}");
        fs::remove_dir_all(&target).unwrap();
    }
}

/// Everything below `dir`: directories end in a slash and have no content.
fn listing(dir: &Path) -> BTreeMap<String, String> {
    let name = |(name, entry): (OsString, _)| match entry {
        crate::support::Entry::Directory { .. } => (format!("{}/", name.to_str().unwrap()), String::new()),
        _ => (name.to_str().unwrap().to_string(), fs::read_to_string(dir.join(&name)).unwrap()),
    };
    snapshot(dir).into_iter().map(name).collect()
}

fn listed<'a>(names: impl IntoIterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    names.into_iter().map(|(name, content)| (name.to_string(), content.to_string())).collect()
}

/// f, g, d/x, d/e/y and the empty directory n.
fn small_source(dir: &Path) {
    fs::create_dir_all(dir.join("d/e")).unwrap();
    fs::create_dir(dir.join("n")).unwrap();
    for name in ["f", "g", "d/x", "d/e/y"] {
        fs::write(dir.join(name), name).unwrap();
    }
}

/// Makes what names ending in a slash, and files called `old`, stand for.
fn stand_there(dir: &Path, names: &[&str]) {
    for name in names {
        match name.strip_suffix('/') {
            Some(name) => fs::create_dir_all(dir.join(name)).unwrap(),
            None => fs::write(dir.join(name), "old").unwrap(),
        }
    }
}

/// A table's row: flags, sources, target, what stands there before, exit code, what stands there afterwards.
type Row = (
    &'static str,
    &'static [&'static str],
    &'static str,
    &'static [&'static str],
    i32,
    &'static [(&'static str, &'static str)],
);

/// Copies by each row on each route. `same` where the table has nothing for "afterwards": nothing changed.
fn check(rows: &[Row]) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    small_source(&source);
    for route in Route::all() {
        for (flags, sources, target, before, exit, after) in rows {
            let place = dir.path().join("target");
            fs::create_dir(&place).unwrap();
            stand_there(&place, before);
            let expected = if after.is_empty() { listing(&place) } else { listed(after.iter().copied()) };
            let sources: Vec<PathBuf> = sources.iter().map(|name| source.join(name)).collect();
            let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
            let flags: Vec<&str> = flags.split_whitespace().collect();
            let output = route.copy(&flags, &sources, &place.join(target));
            assert_exit(&output, *exit);
            assert_eq!(listing(&place), expected, "{flags:?} {sources:?} to {target}, {route:?}");
            fs::remove_dir_all(&place).unwrap();
        }
    }
}

const D: [(&str, &str); 3] = [("x/e/", ""), ("x/e/y", "d/e/y"), ("x/x", "d/x")];

#[test]
fn sources_land_where_rsync_would_put_them() {
    let d_itself: &[_] = &[("x/", ""), ("x/d/", ""), ("x/d/e/", ""), ("x/d/e/y", "d/e/y"), ("x/d/x", "d/x")];
    let d_content: &[_] = &[("x/", ""), D[0], D[1], D[2]];
    let d_and_f: &[_] = &[("x/", ""), D[0], D[1], D[2], ("x/f", "f")];
    check(&[
        ("", &["f"], "x", &[], 0, &[("x", "f")]),
        ("", &["f"], "x", &["x"], 0, &[("x", "f")]),
        ("", &["f"], "x", &["x/"], 0, &[("x/", ""), ("x/f", "f")]),
        ("", &["f"], "x/", &[], 0, &[("x/", ""), ("x/f", "f")]),
        ("--mkpath", &["f"], "p/q/x", &[], 0, &[("p/", ""), ("p/q/", ""), ("p/q/x", "f")]),
        ("", &["f", "g"], "x", &[], 0, &[("x/", ""), ("x/f", "f"), ("x/g", "g")]),
        ("", &["f", "g"], "x", &["x/"], 0, &[("x/", ""), ("x/f", "f"), ("x/g", "g")]),
        ("", &["f", "d/x", "d/e/y"], "x/", &[], 0, &[("x/", ""), ("x/f", "f"), ("x/x", "d/x"), ("x/y", "d/e/y")]),
        ("-r", &["d"], "x", &[], 0, d_itself),
        ("-r", &["d"], "x", &["x/"], 0, d_itself),
        ("-r", &["d"], "x/", &[], 0, d_itself),
        ("-r", &["d/"], "x", &[], 0, d_content),
        ("-r", &["d/"], "x", &["x/"], 0, d_content),
        ("-r", &["d/"], "x/", &["x/"], 0, d_content),
        ("-r", &["d/."], "x", &[], 0, d_content),
        ("-r", &["d/", "f"], "x", &[], 0, d_and_f),
        ("-r", &["n"], "x", &[], 0, &[("x/", ""), ("x/n/", "")]),
        ("-r", &["n/"], "x", &[], 0, &[("x/", "")]),
        ("-rT", &["d"], "x", &[], 0, d_content),
        ("-rT", &["d"], "x", &["x/"], 0, d_content),
        ("-T", &["f"], "x", &[], 0, &[("x", "f")]),
        ("-T", &["f"], "x", &["x"], 0, &[("x", "f")]),
        // What was in a directory and is not in the source stays.
        ("-r", &["d/"], "x", &["x/", "x/own", "x/e/"], 0, &[("x/", ""), D[0], D[1], D[2], ("x/own", "old")]),
        ("-r", &["d/"], "x", &["x/", "x/x"], 0, d_content),
    ]);
}

#[test]
fn what_cannot_land_is_an_error_and_leaves_the_rest_alone() {
    check(&[
        ("-T", &["f"], "x", &["x/", "x/own"], 23, &[]),
        ("-r", &["d"], "x", &["x"], 23, &[]),
        ("-r", &["d/"], "x", &["x"], 23, &[]),
        ("", &["f", "g"], "x", &["x"], 23, &[]),
        ("", &["f"], "x/", &["x"], 23, &[]),
        ("", &["f"], "x/y", &["x"], 23, &[]),
        ("", &["d"], "x", &[], 23, &[]),
        ("", &["d", "f"], "x", &["x/"], 23, &[("x/", ""), ("x/f", "f")]),
        ("", &["missing", "f"], "x", &["x/"], 23, &[("x/", ""), ("x/f", "f")]),
        ("", &["f", "missing"], "x", &["x/"], 23, &[("x/", ""), ("x/f", "f")]),
        ("-T", &["f", "g"], "x", &[], 1, &[]),
        // A directory stands where a file should go, and the other way round; all else arrives.
        ("-r", &["d/"], "x", &["x/", "x/x/"], 23, &[("x/", ""), D[0], D[1], ("x/x/", "")]),
        ("-r", &["d/"], "x", &["x/", "x/e"], 23, &[("x/", ""), ("x/e", "old"), D[2]]),
    ]);
}

#[test]
fn a_directory_without_r_is_left_out_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    small_source(dir.path());
    for route in Route::all() {
        let output = route.copy(&[], &[&dir.path().join("d")], &dir.path().join("x"));
        assert_exit(&output, 23);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{stderr}");
        assert!(lines[0].contains("/d: ") && lines[1] == "hint: use -r to copy directories", "{stderr}");
    }
}

#[test]
fn a_replaced_file_is_a_new_file_with_the_old_mode_unless_p_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    // Below and above the size that is written in one go.
    for size in [10, 100_000] {
        crate::support::random_file(&source, size, 1);
        trees::set_mode(&source, 0o755);
        for route in Route::all() {
            for (flags, mode) in [(&[][..], 0o620), (&["-p"], 0o755)] {
                let (target, alias) = (dir.path().join("target"), dir.path().join("alias"));
                fs::write(&target, "old").unwrap();
                trees::set_mode(&target, 0o620);
                fs::hard_link(&target, &alias).unwrap();
                let before = fs::metadata(&target).unwrap();
                route.copied(flags, &[&source], &target);
                let after = fs::metadata(&target).unwrap();
                assert_eq!(fs::read(&target).unwrap(), fs::read(&source).unwrap());
                assert_eq!(after.mode() & 0o7777, mode, "{flags:?}");
                assert_ne!(after.ino(), before.ino(), "written in place");
                assert_eq!((after.nlink(), fs::read_to_string(&alias).unwrap()), (1, "old".to_string()));
                assert_eq!(fs::metadata(&alias).unwrap().mode() & 0o7777, 0o620);
                assert_eq!(litter(dir.path()), Vec::<OsString>::new());
                fs::remove_file(&alias).unwrap();
            }
            fs::remove_file(dir.path().join("target")).unwrap();
        }
    }
}

#[test]
fn hard_links_in_a_replaced_tree_keep_their_other_names_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target, aliases) = (dir.path().join("source"), dir.path().join("target"), dir.path().join("aliases"));
    small_source(&source);
    for route in Route::all() {
        small_source(&target);
        fs::create_dir(&aliases).unwrap();
        for name in ["f", "g"] {
            fs::write(target.join(name), format!("old {name}")).unwrap();
            fs::hard_link(target.join(name), aliases.join(name)).unwrap();
        }
        route.copied(&["-a"], &[&contents_of(&source)], &target);
        assert_eq!(listing(&target), listing(&source), "{route:?}");
        assert_eq!(listing(&aliases), listed([("f", "old f"), ("g", "old g")]), "{route:?}");
        fs::remove_dir_all(&target).unwrap();
        fs::remove_dir_all(&aliases).unwrap();
    }
}

#[test]
fn a_link_to_a_directory_is_that_directory_as_operand_and_is_no_way_in_below_one() {
    let dir = tempfile::tempdir().unwrap();
    let (source, outside) = (dir.path().join("source"), dir.path().join("outside"));
    small_source(&source);
    symlink("source", dir.path().join("to-source")).unwrap();
    for route in Route::all() {
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink("target", dir.path().join("to-target")).unwrap();
        route.copied(&["-r"], &[&dir.path().join("to-source/")], &dir.path().join("to-target"));
        assert_eq!(listing(&target), listing(&source), "{route:?}");
        // Where the source has a directory stands a link now: nothing may go through it.
        fs::remove_dir_all(target.join("d")).unwrap();
        symlink(&outside, target.join("d")).unwrap();
        let output = route.copy(&["-r"], &[&contents_of(&source)], &target);
        assert_exit(&output, 23);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{route:?}");
        // A link in place of a file is replaced, and what it leads to stays.
        fs::remove_file(target.join("f")).unwrap();
        fs::write(outside.join("precious"), "precious").unwrap();
        symlink(outside.join("precious"), target.join("f")).unwrap();
        route.copied(&[], &[&source.join("f")], &target);
        assert!(fs::symlink_metadata(target.join("f")).unwrap().is_file());
        assert_eq!(listing(&outside), listed([("precious", "precious")]), "{route:?}");
        fs::remove_dir_all(&target).unwrap();
        fs::remove_dir_all(&outside).unwrap();
        fs::remove_file(dir.path().join("to-target")).unwrap();
    }
}

#[test]
fn links_among_sources_are_followed_without_l_and_their_own_name_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    small_source(&source);
    symlink("f", source.join("to-f")).unwrap();
    symlink("missing", source.join("dangling")).unwrap();
    for route in Route::all().into_iter().filter(|route| route.way != Way::Here || route.near == "uring") {
        let target = tempfile::tempdir().unwrap();
        let output = route.copy(&[], &[&source.join("dangling"), &source.join("to-f")], target.path());
        assert_exit(&output, 23);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("dangling: "), "{stderr}");
        assert_eq!(listing(target.path()), listed([("to-f", "f")]), "{route:?}");
        assert!(fs::symlink_metadata(target.path().join("to-f")).unwrap().is_file());
    }
}

#[test]
fn paths_that_mean_nothing_are_usage_errors() {
    let table: [&[&str]; 9] = [
        &["copy", "f"],
        &["copy", "", "x"],
        &["copy", "a:f", "b:x"],
        &["copy", "a:f", "b:g", "x"],
        &["copy", "far:../f", "x"],
        &["copy", "--no-such-option", "f", "x"],
        &["hash"],
        &["hash", "a:f", "b:f"],
        &["ls", "f", "a:f"],
    ];
    for args in table {
        let output = finish(crate::support::haul("poll", args.iter().map(OsStr::new)));
        assert_exit(&output, 1);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}
