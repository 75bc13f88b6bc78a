//! `haul hash` and `haul ls`, and what is said where: on stdout, on stderr, on a terminal.

use crate::support::routes::{Route, assert_limit_bites, assert_same_tree, finish, json_lines, json_name, of_type};
use crate::support::{BACKENDS, Pipes, Remote, assert_exit, at, binary, hash_of, haul, trees};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where a question is asked: here, or on another machine.
struct Asked {
    near: &'static str,
    remote: Option<Pipes>,
}

impl Asked {
    fn everywhere() -> Vec<Asked> {
        let pair = |near| {
            let remote = BACKENDS.map(|far| Asked { near, remote: Some(Pipes::new(far)) });
            remote.into_iter().chain([Asked { near, remote: None }])
        };
        BACKENDS.into_iter().flat_map(pair).collect()
    }

    fn operand(&self, path: &Path) -> OsString {
        self.remote.as_ref().map_or_else(|| path.into(), |remote| at(remote, path))
    }

    fn ask(&self, command: &str, flags: &[&str], paths: &[&Path]) -> Output {
        let mut haul = haul(self.near, [command]);
        haul.args(flags).args(self.remote.iter().flat_map(Remote::args));
        haul.arg("--").args(paths.iter().map(|path| self.operand(path)));
        finish(haul)
    }
}

/// What b3sum would print for a name.
fn like_b3sum(hash: &str, name: &[u8]) -> Vec<u8> {
    let escaped: Vec<u8> = name
        .iter()
        .flat_map(|byte| match byte {
            b'\n' => b"\\n".to_vec(),
            b'\r' => b"\\r".to_vec(),
            b'\\' => b"\\\\".to_vec(),
            byte => vec![*byte],
        })
        .collect();
    let mark: &[u8] = if escaped == name { b"" } else { b"\\" };
    [mark, hash.as_bytes(), b"  ", &escaped, b"\n"].concat()
}

#[test]
fn hashes_are_those_of_blake3_here_and_there() {
    let dir = tempfile::tempdir().unwrap();
    let files = trees::files_of_sizes(dir.path(), &trees::SIZES);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for asked in Asked::everywhere() {
        let output = asked.ask("hash", &[], &files);
        assert_exit(&output, 0);
        let line = |file: &&Path| like_b3sum(&hash_of(file), asked.operand(file).as_bytes());
        // In the order in which they were asked for.
        let expected: Vec<u8> = files.iter().flat_map(line).collect();
        assert_eq!(String::from_utf8(output.stdout), String::from_utf8(expected));
        assert!(output.stderr.is_empty());

        let output = asked.ask("hash", &["--json"], &files);
        assert_exit(&output, 0);
        let lines = json_lines(&output);
        for (line, file) in of_type(&lines, "hash").into_iter().zip(&files) {
            assert_eq!(json_name(line, "path"), asked.operand(file).as_bytes());
            assert_eq!(line["blake3"], *hash_of(file));
        }
        assert_eq!(of_type(&lines, "hash").len(), files.len());
    }
}

/// A directory with a file of every odd name.
fn odd_files(dir: &Path) -> Vec<PathBuf> {
    let file = |name: OsString| {
        let path = dir.join(&name);
        fs::write(&path, name.as_bytes()).unwrap();
        path
    };
    trees::odd_names().into_iter().map(file).collect()
}

#[test]
fn odd_names_are_written_as_b3sum_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let files = odd_files(dir.path());
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for asked in Asked::everywhere() {
        let output = asked.ask("hash", &[], &files);
        assert_exit(&output, 0);
        let line = |file: &&Path| like_b3sum(&hash_of(file), asked.operand(file).as_bytes());
        let expected: Vec<u8> = files.iter().flat_map(line).collect();
        assert_eq!(output.stdout.escape_ascii().to_string(), expected.escape_ascii().to_string());

        let output = asked.ask("hash", &["--json"], &files);
        let lines = json_lines(&output);
        let names: Vec<_> = of_type(&lines, "hash").into_iter().map(|line| json_name(line, "path")).collect();
        let expected: Vec<_> = files.iter().map(|file| asked.operand(file).into_vec()).collect();
        assert_eq!(names, expected);
    }
}

#[test]
fn b3sum_agrees_and_accepts_the_output_as_its_own() {
    if Command::new("b3sum").arg("--version").output().is_err() {
        crate::support::skips::skip("b3sum", "there is no b3sum here", "b3sum on the PATH");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // What is not text b3sum shows as something else, and old versions do not escape a carriage return.
    let same = |file: &PathBuf| file.to_str().is_some_and(|name| !name.contains('\r'));
    let files: Vec<PathBuf> = odd_files(dir.path()).into_iter().filter(same).collect();
    let theirs = finish({
        let mut b3sum = Command::new("b3sum");
        b3sum.arg("--").args(&files);
        b3sum
    });
    assert_exit(&theirs, 0);
    for backend in BACKENDS {
        let mut ours = haul(backend, ["hash", "--"]);
        ours.args(&files);
        let ours = finish(ours);
        assert_eq!(String::from_utf8(ours.stdout.clone()), String::from_utf8(theirs.stdout.clone()));
        let list = dir.path().join("list");
        fs::write(&list, &ours.stdout).unwrap();
        let mut check = Command::new("b3sum");
        check.arg("--check").arg(&list);
        assert_exit(&finish(check), 0);
    }
}

#[test]
fn what_cannot_be_hashed_or_listed_is_named_and_stops_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (file, sub, missing) = (dir.path().join("file"), dir.path().join("sub"), dir.path().join("missing"));
    fs::write(&file, "x").unwrap();
    fs::create_dir(&sub).unwrap();
    for asked in Asked::everywhere() {
        for (command, bad) in
            [("hash", &missing), ("hash", &sub), ("hash", &PathBuf::from("/dev/null")), ("ls", &missing)]
        {
            let output = asked.ask(command, &[], &[bad, &file]);
            assert_exit(&output, 23);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.starts_with("haul: ") && stderr.contains(bad.to_str().unwrap()), "{stderr}");
            assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 1);
        }
    }
}

#[test]
fn a_directory_that_cannot_be_read_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (program, tree) = (dir.path().join("haul"), dir.path().join("tree"));
    fs::copy(binary(), &program).unwrap();
    fs::create_dir_all(tree.join("closed")).unwrap();
    fs::write(tree.join("open"), "x").unwrap();
    fs::write(tree.join("closed/hidden"), "x").unwrap();
    trees::set_mode(&tree.join("closed"), 0o000);
    crate::support::routes::open_to_all(dir.path());
    assert_limit_bites(&tree.join("closed/hidden"));
    for backend in BACKENDS {
        for (flags, path, exit) in [("-R", "tree", 23), ("-l", "tree/closed", 23), ("-l", "tree", 0)] {
            let mut ls = Command::new(&program);
            ls.args(["--backend", backend, "ls", flags, path]).current_dir(dir.path());
            crate::support::routes::without_rights(&mut ls);
            let output = finish(ls);
            assert_exit(&output, exit);
            let stderr = String::from_utf8(output.stderr).unwrap();
            let lines: Vec<&str> = stderr.lines().collect();
            assert_eq!(lines.len(), usize::from(exit != 0), "{stderr}");
            for line in lines {
                assert!(line.starts_with("haul: tree/closed: ") && line.ends_with(": Permission denied"), "{line}");
            }
            // Its own name can be read all the same, and all that stands beside it.
            let names = std::str::from_utf8(&output.stdout).unwrap();
            let both = names.contains("closed/") && names.contains("open");
            assert_eq!(both, path == "tree", "{names}");
        }
    }
    trees::let_go(&tree);
}

/// A directory of everything that has a letter of its own in `ls -l`.
fn listed_tree(dir: &Path) {
    fs::create_dir_all(dir.join("sub/inner")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("file"), "12345").unwrap();
    fs::write(dir.join("sub/inner/deep"), "x").unwrap();
    fs::write(dir.join("line\nbreak"), "").unwrap();
    fs::write(dir.join(OsStr::from_bytes(b"\xff")), "").unwrap();
    symlink("fi\nle", dir.join("link")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    for (path, mode) in [("file", 0o640), ("sub", 0o750), ("fifo", 0o600)] {
        trees::set_mode(&dir.join(path), mode);
    }
    trees::set_mtime(&dir.join("file"), 951_782_400);
}

const TOP: [&str; 7] = ["\\xff", "empty/", "fifo", "file", "line\\nbreak", "link -> fi\\nle", "sub/"];
const BELOW: [&str; 2] = ["sub/inner/", "sub/inner/deep"];

fn sorted_lines(output: &Output) -> Vec<String> {
    let mut lines: Vec<String> = std::str::from_utf8(&output.stdout).unwrap().lines().map(str::to_string).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn listings_show_every_name_once_and_whole_trees_with_r() {
    let dir = tempfile::tempdir().unwrap();
    listed_tree(dir.path());
    for asked in Asked::everywhere() {
        let output = asked.ask("ls", &[], &[dir.path()]);
        assert_exit(&output, 0);
        assert!(output.stderr.is_empty());
        assert_eq!(sorted_lines(&output), TOP);
        for flag in ["-R", "-r", "--recursive"] {
            let output = asked.ask("ls", &[flag], &[dir.path()]);
            assert_exit(&output, 0);
            assert_eq!(sorted_lines(&output), [&TOP[..], &BELOW].concat());
        }
        let output = asked.ask("ls", &[], &[&dir.path().join("file")]);
        assert_eq!(sorted_lines(&output), ["file"]);
        let output = asked.ask("ls", &[], &[&dir.path().join("empty")]);
        assert_exit(&output, 0);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn long_listings_show_mode_size_and_time() {
    let dir = tempfile::tempdir().unwrap();
    listed_tree(dir.path());
    for asked in Asked::everywhere() {
        let output = asked.ask("ls", &["-l"], &[dir.path()]);
        assert_exit(&output, 0);
        let lines = sorted_lines(&output);
        assert_eq!(lines.len(), TOP.len());
        let line = |name: &str| lines.iter().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        let file = fs::symlink_metadata(dir.path().join("file")).unwrap();
        assert_eq!(*line("file"), format!("-rw-r----- {:>14} 2000-02-29T00:00:00Z file", file.len()));
        for (name, begin) in [("sub/", "drwxr-x--- "), ("fifo", "prw------- "), ("link -> fi\\nle", "lrwxrwxrwx ")] {
            assert!(line(name).starts_with(begin), "{}", line(name));
        }
    }
}

#[test]
fn listings_in_json_say_all_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    listed_tree(dir.path());
    for asked in Asked::everywhere() {
        let output = asked.ask("ls", &["-R", "--json"], &[dir.path()]);
        assert_exit(&output, 0);
        assert!(output.stderr.is_empty());
        let lines = json_lines(&output);
        let entries: BTreeMap<Vec<u8>, &Value> =
            of_type(&lines, "entry").into_iter().map(|line| (json_name(line, "path"), line)).collect();
        assert_eq!(entries.len(), TOP.len() + BELOW.len());
        for (path, entry) in entries {
            let meta = fs::symlink_metadata(dir.path().join(OsStr::from_bytes(&path))).unwrap();
            assert_eq!(entry["mode"], meta.mode() & 0o7777, "{entry}");
            assert_eq!((&entry["mtime"], &entry["mtime_ns"]), (&meta.mtime().into(), &meta.mtime_nsec().into()));
            let kind = match () {
                () if meta.is_dir() => "directory",
                () if meta.is_symlink() => "symlink",
                () if meta.is_file() => "regular",
                () => "fifo",
            };
            assert_eq!(entry["kind"], kind);
            if meta.is_file() {
                assert_eq!(entry["size"], meta.len());
            }
            assert_eq!(entry["link"].as_str(), meta.is_symlink().then_some("fi\nle"));
        }
    }
}

#[test]
fn a_listing_of_thousands_of_names_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..3000 {
        fs::write(dir.path().join(format!("{number:0>200}")), "").unwrap();
    }
    for asked in Asked::everywhere() {
        let lines = sorted_lines(&asked.ask("ls", &[], &[dir.path()]));
        assert_eq!(lines.len(), 3000);
        assert!(lines.iter().enumerate().all(|(number, line)| *line == format!("{number:0>200}")));
    }
}

#[test]
fn relative_questions_begin_in_the_login_directory() {
    let pipes = Pipes::new("uring");
    fs::write(pipes.home().join("file"), "x").unwrap();
    let ask = |args: &[&str]| {
        let mut command = haul("poll", &args[..1]);
        command.args(pipes.args()).args(&args[1..]);
        let output = finish(command);
        assert_exit(&output, 0);
        String::from_utf8(output.stdout).unwrap()
    };
    for listed in [ask(&["ls", "far:"]), ask(&["ls", "far:~/"]), ask(&["ls", "far:file"])] {
        assert_eq!(listed, "file\n");
    }
    let hash = hash_of(&pipes.home().join("file"));
    assert_eq!(ask(&["hash", "far:file"]), format!("{hash}  far:file\n"));
}

#[test]
fn quiet_json_leaves_stderr_empty() {
    let dir = tempfile::tempdir().unwrap();
    trees::small_files(&dir.path().join("source"), 300);
    for route in Route::all() {
        for (flags, lines) in [(["-r", "-q", "--json"], true), (["-r", "-q", "-p"], false)] {
            let output = route.copied(&flags, &[&dir.path().join("source")], &dir.path().join("target"));
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{route:?}");
            assert_eq!(!output.stdout.is_empty(), lines, "{route:?}");
        }
    }
}

#[test]
fn without_a_terminal_there_is_nothing_but_the_last_line() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    trees::small_files(&source, 300);
    fs::write(source.join("big"), vec![7; 20_000_000]).unwrap();
    for route in Route::all() {
        let target = tempfile::tempdir().unwrap();
        let output = route.copied(&["-r"], &[&source], target.path());
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("copied 301 files, 4 directories, "), "{stderr}");
        assert!(stderr.ends_with(", every file verified\n"), "{stderr}");
    }
}

/// Runs `haul copy` on a terminal, with a gibibyte or two of zeros that go nowhere; what the terminal got.
fn on_a_terminal(flags: &str) -> Option<String> {
    if Command::new("script").arg("--version").output().is_err() {
        crate::support::skips::skip("script", "there is no script here", "util-linux");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, pipes) = (dir.path().join("source"), Pipes::new("poll"));
    fs::File::create(&source).unwrap().set_len(2 << 30).unwrap();
    let remote: Vec<String> = pipes.args().iter().map(|arg| arg.to_str().unwrap().to_string()).collect();
    let haul = binary().display();
    let line = format!("'{haul}' copy {flags} {} '{}' far:/dev/null", remote.join(" "), source.display());
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    let output = finish(script);
    assert_exit(&output, 0);
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_terminal_shows_progress_and_then_the_last_line() {
    let Some(shown) = on_a_terminal("") else { return };
    assert!(shown.contains(" of 2.0 GiB ") && shown.contains("ETA ") && shown.contains("/1 files"), "{shown:?}");
    let last = shown.rsplit(['\r', '\n']).find(|line| line.contains("copied ")).unwrap();
    assert!(last.contains("copied 1 file, 2.0 GiB in "), "{last:?}");
}

#[test]
fn a_terminal_shows_nothing_when_told_to_be_quiet() {
    let Some(shown) = on_a_terminal("-q") else { return };
    assert_eq!(shown, "");
}

#[test]
fn a_reader_of_stdout_that_goes_away_does_not_stop_the_copy() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    trees::small_files(&source, 2000);
    for route in Route::all() {
        let copy = route.command(&["-r", "--json"], &[&source], &target);
        let mut shell = Command::new("bash");
        shell.args(["-c", "set -o pipefail; \"$0\" \"$@\" | head -n 1"]).arg(copy.get_program()).args(copy.get_args());
        assert_exit(&finish(shell), 0);
        assert_same_tree(&target.join("source"), &source);
        fs::remove_dir_all(&target).unwrap();
    }
}
