//! The program called as `bcmr`: what clients of the base protocol start, and what our own client does with such peers.

use crate::support::frames::{BASES, FULL, Serving, bytes_of, field, hello};
use crate::support::processes::{self, complete};
use crate::support::{BACKENDS, Pipes, Remote, binary, hash_of, haul, random_file};
use haul_engine::wire::frame::{Caps, Dialect, Ext, Frame};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory with the program under its other name.
fn called() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let program = dir.path().join("bcmr");
    symlink(binary(), &program).unwrap();
    (dir, program)
}

#[test]
fn it_says_which_release_it_stands_for() {
    let (_dir, program) = called();
    for flag in ["--version", "-V"] {
        let ended = complete(Command::new(&program).arg(flag));
        ended.assert_exit(0);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("bcmr 0.7.2\n", ""));
    }
}

#[test]
fn anything_but_serving_is_a_usage_error_that_names_haul() {
    let (_dir, program) = called();
    for args in [&["copy", "a", "b"][..], &[], &["serve", "--no-such-flag"], &["--json", "serve"], &["serve", "more"]] {
        let ended = complete(Command::new(&program).args(args));
        ended.assert_exit(2);
        assert!(ended.stdout.is_empty(), "{ended:?}");
        let hint =
            "hint: this is haul under another name, which only serves; to copy use `haul copy`, see `haul --help`";
        assert_eq!(ended.lines().last(), Some(&hint), "{args:?}");
    }
}

/// Everything that is sent back to `said`, when the client then ends its stream.
fn served(program: &Path, args: &[&str], home: &Path, said: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(args).env("HOME", home).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(said).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn it_serves_the_home_directory_or_the_root_it_is_given_to_both_versions() {
    let (dir, program) = called();
    for (name, content) in [("home", "four"), ("root", "seven..")] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("f"), content).unwrap();
    }
    let root = dir.path().join("root");
    for dialect in BASES {
        for (args, size) in [(&["serve"][..], 4u64), (&["serve", "--root", root.to_str().unwrap()], 7)] {
            let said =
                [bytes_of(&hello(dialect), dialect), bytes_of(&Frame::Stat { path: field("f") }, dialect)].concat();
            let heard = served(&program, args, &dir.path().join("home"), &said);
            let welcome = Frame::Welcome { version: dialect.version, caps: Caps::NONE, ext: None };
            let welcome = bytes_of(&welcome, dialect);
            // A StatResponse: its length, its type, the size.
            let expected = [&welcome[..], &[18, 0, 0, 0, 0x85], &size.to_le_bytes()].concat();
            assert_eq!(heard[..expected.len()], expected);
        }
    }
}

#[test]
fn it_listens_where_it_is_told_to() {
    let (dir, program) = called();
    let mut command = Command::new(&program);
    command
        .args(["serve", "--allow-every-local-user", "--listen", "127.0.0.1:0", "--root"])
        .arg(dir.path())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut stream = TcpStream::connect(line.trim().strip_prefix("LISTENING ").unwrap()).unwrap();
    stream.write_all(&bytes_of(&hello(Dialect::BASE), Dialect::BASE)).unwrap();
    let mut welcome = [0; 7];
    stream.read_exact(&mut welcome).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(welcome, [3, 0, 0, 0, 0x81, 1, 0]);
}

/// Copies there and back, lists and hashes, with whatever answers to `bcmr` there.
#[track_caller]
fn assert_usable(pipes: &Pipes, backend: &str) {
    let (source, back) = (pipes.dir().join("source"), pipes.dir().join("back"));
    random_file(&source, 300_000, 1);
    let run = |words: &[&str]| {
        let mut command = haul(backend, words);
        let ended = complete(command.args(pipes.args()));
        ended.assert_exit(0);
        ended
    };
    let (source_word, back_word) = (source.to_str().unwrap(), back.to_str().unwrap());
    run(&["copy", "-q", source_word, "far:there"]);
    assert_eq!(hash_of(&pipes.home().join("there")), hash_of(&source));
    run(&["copy", "-q", "far:there", back_word]);
    assert_eq!(hash_of(&back), hash_of(&source));
    assert_eq!(run(&["hash", "far:there"]).stdout, format!("{}  far:there\n", hash_of(&source)));
    let absolute = format!("far:{}", pipes.home().display());
    assert!(run(&["ls", &absolute]).stdout.lines().any(|line| line == "there"));
}

#[test]
fn our_client_speaks_version_2_to_it() {
    for backend in BACKENDS {
        let pipes = Pipes::with_programs(backend, &[("bcmr", binary())]);
        assert_usable(&pipes, backend);
        let back = pipes.dir().join("back");
        let ended = complete(haul(backend, ["copy", "-v"]).args(pipes.args()).arg("far:there").arg(back));
        assert!(ended.lines().contains(&"haul: bcmr 0.7.2 answers"), "{ended:?}");
    }
}

#[test]
fn our_client_speaks_version_1_to_older_releases_and_asks_for_a_root_only_where_paths_are_absolute() {
    for backend in BACKENDS {
        let (dir, program) = called();
        let old = dir.path().join("old");
        // Says what it was asked for, and serves.
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo bcmr 0.6.3; exit; fi\necho \"$*\" >> '{0}/log'\nexec '{1}' \"$@\"\n",
            dir.path().display(),
            program.display()
        );
        processes::script(&old, &script);
        let pipes = Pipes::with_programs(backend, &[("bcmr", &old)]);
        assert_usable(&pipes, backend);
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "serve\nserve\nserve\nserve --root /\n");
    }
}

#[test]
fn a_release_that_speaks_another_version_than_it_should_is_dialled_again() {
    for backend in BACKENDS {
        let (dir, program) = called();
        let strange = dir.path().join("strange");
        // Says that it is of version 1 and refuses that; the second time it is asked for version 2.
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo bcmr 0.6.0; exit; fi\n\
             hello=$(head -c 7 | od -An -tx1 | tr -d ' \\n')\necho \"$hello\" >> '{0}/log'\n\
             case $hello in 030000000101*)\n\
             printf '\\061\\000\\000\\000\\203\\054\\000\\000\\000protocol version mismatch: client=1 server=2'; exit;; esac\n\
             (printf '\\003\\000\\000\\000\\001\\002\\200'; cat) | '{1}' \"$@\"\n",
            dir.path().display(),
            program.display()
        );
        processes::script(&strange, &script);
        let pipes = Pipes::with_programs(backend, &[("bcmr", &strange)]);
        assert_usable(&pipes, backend);
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        let versions: Vec<&str> = log.lines().map(|hello| &hello[10..12]).collect();
        assert_eq!(versions, ["01", "02"].repeat(4));
    }
}

#[test]
fn a_second_hello_is_taken_once_and_only_before_the_first_request() {
    for (backend, first) in BACKENDS.into_iter().flat_map(|backend| BASES.map(|first| (backend, first))) {
        for second in [FULL, BASES[0], BASES[1]] {
            let mut serving = Serving::greeted(backend, first);
            serving.greet(second);
            serving.assert_usable();
            serving.send(&hello(second));
            serving.refusal("Hello");
            serving.assert_usable();
            assert_eq!(serving.end().code, Some(0));
        }
        // Too late, whatever came before.
        let mut serving = Serving::greeted(backend, first);
        serving.assert_usable();
        serving.send(&hello(FULL));
        serving.refusal("Hello");
        let mut serving = Serving::greeted(backend, first);
        serving.send_bytes(&[10, 0, 0, 0, 0x84, 5, 0, 0, 0, 1, 2, 3, 4, 5]);
        serving.refusal("Data");
        serving.send(&Frame::Hello { version: 1, caps: Caps::NONE, ext: Some(Ext(0x0f)) });
        serving.refusal("Hello");
        // A version that nobody speaks ends the session, as it does the first time.
        let mut serving = Serving::greeted(backend, first);
        serving.send(&hello(Dialect { version: 9, ..Dialect::BASE }));
        serving.refusal("protocol version mismatch: client=9 server=2");
        assert_eq!(serving.end().code, Some(0));
    }
}
