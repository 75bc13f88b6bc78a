//! A process that gets no memory or no thread: an error, never a success, a panic or a hang.

use crate::support::daemon::Listening;
use crate::support::limits::{limit, limited};
use crate::support::processes::{Ended, Somebody, complete};
use crate::support::routes::Route;
use crate::support::{BACKENDS, Remote, hash_of, haul, random_file};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

/// It succeeded and has done it, or failed and says why in haul's own words.
#[track_caller]
fn is_honest(ended: &Ended, target: &Path, hash: &str) -> bool {
    let text = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!text.contains("panicked"), "{text}");
    assert_ne!(ended.status.code(), Some(101), "{text}");
    let succeeded = ended.status.success();
    if succeeded {
        assert_eq!(hash_of(target), hash, "{text}");
    } else {
        // Where a few bytes are missing the library of Rust ends the process: no success either.
        assert!(!text.contains("verified"), "{text}");
        assert!(!text.is_empty(), "{:?}", ended.status);
        assert!(!target.exists(), "it failed: {text}");
    }
    let _ = fs::remove_file(target);
    succeeded
}

#[test]
fn without_memory_a_copy_fails_and_does_not_say_that_it_succeeded() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 24 << 20, 1);
    let hash = hash_of(&source);
    let mut refused = 0;
    for route in Route::all() {
        // Below what starts, between what starts and what copies, and enough.
        for mebibytes in [30_u64, 40, 50, 60, 4096] {
            let limits = format!("--as={}", mebibytes << 20);
            let mut command = limited(&[&limits], &route.command(&[], &[&source], &target));
            let ended = complete(&mut command);
            let succeeded = is_honest(&ended, &target, &hash);
            assert!(succeeded || mebibytes < 4096, "{route:?}: {}", ended.stderr);
            refused += usize::from(ended.stderr.contains("cannot go on: Cannot allocate memory"));
        }
    }
    assert!(refused > 0, "the limits do not bite: {refused}");
}

#[test]
fn a_daemon_without_memory_fails_sessions_and_lives() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        random_file(&source, 24 << 20, 1);
        fs::write(dir.path().join("small"), "small").unwrap();
        let hash = hash_of(&source);
        // What it has, and a little more: blocks are made as they are needed.
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let size = size.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024;
        limit(daemon.pid(), &[&format!("--as={}:", size + (1 << 20))]);
        let mut failed = 0;
        for number in 0..4 {
            let name = format!("file{number}");
            let ended = daemon.copy(backend, &["--compress=none", "--connections=1"], source.clone(), daemon.at(&name));
            failed += usize::from(!is_honest(&ended, &daemon.root().join(name), &hash));
        }
        assert!(failed > 0, "{backend}: the limit does not bite");
        limit(daemon.pid(), &["--as=unlimited:"]);
        daemon.copy(backend, &[], dir.path().join("small"), daemon.at("small")).assert_exit(0);
        assert!(daemon.end_with_all().contains("cannot go on: Cannot allocate memory"), "{backend}");
    }
}

/// Whatever can be asked, as somebody who may have so many processes and threads.
fn asked(somebody: &Somebody, backend: &str, daemon: &Listening, threads: u32) -> Vec<(Command, &'static str)> {
    let pipes = somebody.pipes(backend);
    let far = |name: &str| OsString::from(format!("{}:{}/{name}", pipes.host(), somebody.work().display()));
    let args = |words: &[&str], rest: &[OsString]| {
        let command = somebody.haul(backend, words.iter().map(OsString::from).chain(rest.iter().cloned()));
        limited(&[&format!("--nproc={threads}:{threads}")], &command)
    };
    let ssh = pipes.args();
    let with_ssh = |rest: &[OsString]| [&ssh[..], rest].concat();
    let key = somebody.work().join("key").into_os_string();
    let to_daemon = [OsString::from("--key-file"), key, "source".into(), daemon.at("target").into()];
    let commands = vec![
        (args(&["copy"], &["source".into(), "target".into()]), "target"),
        (args(&["copy"], &with_ssh(&["source".into(), far("target")])), "target"),
        (args(&["copy", "--connections=4"], &with_ssh(&[far("source"), "target".into()])), "target"),
        (args(&["copy", "--direct=auto"], &with_ssh(&["source".into(), far("target")])), "target"),
        (args(&["copy", "--direct=direct"], &with_ssh(&[far("source"), "target".into()])), "target"),
        (args(&["copy"], &to_daemon), ""),
        (args(&["hash", "source"], &[]), ""),
        (args(&["ls", "."], &[]), ""),
        (args(&["doctor"], &[]), ""),
        (args(&["serve", "--listen", "127.0.0.1:0", "--root", "/nowhere"], &[]), ""),
    ];
    // The far end stays as long as they are run.
    std::mem::forget(pipes);
    commands
}

#[test]
fn without_threads_every_command_ends_with_an_error() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the limit on threads is for another user than this one");
        return;
    }
    for backend in BACKENDS {
        let somebody = Somebody::new();
        let daemon = Listening::start(backend);
        let key = somebody.work().join("key");
        fs::copy(daemon.key_file(), &key).unwrap();
        rustix::fs::chown(&key, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
        let source = somebody.work().join("source");
        random_file(&source, 1 << 20, 1);
        let hash = hash_of(&source);
        let mut failed = 0;
        // Other tests may have threads of his at the same time, so nobody knows which of them are refused.
        for threads in [1, 3, 5, 8] {
            for (mut command, target) in asked(&somebody, backend, &daemon, threads) {
                let ended = complete(&mut command);
                let text = format!("{command:?}: {}{}", ended.stdout, ended.stderr);
                assert!(!text.contains("panicked") && ended.status.code() != Some(101), "{text}");
                assert!(ended.status.success() || !ended.stderr.is_empty(), "{text}");
                failed += usize::from(!ended.status.success());
                if !target.is_empty() {
                    is_honest(&ended, &somebody.work().join(target), &hash);
                }
            }
        }
        assert!(failed >= 10, "{backend}: the limit does not bite");
        complete(&mut haul(backend, ["hash", source.to_str().unwrap()])).assert_exit(0);
    }
}

#[test]
fn without_memory_no_other_command_panics_or_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 24 << 20, 1);
    let (here, hash) = (dir.path().to_str().unwrap(), hash_of(&source));
    for backend in BACKENDS {
        for mebibytes in [22_u64, 30, 40, 4096] {
            let commands = [
                vec!["demo", "--size=4", "--files=10", "--file-size=4", "--dir", here],
                vec!["doctor"],
                vec!["hash", source.to_str().unwrap()],
                vec!["ls", here],
            ];
            for args in commands {
                let limits = format!("--as={}", mebibytes << 20);
                let ended = complete(&mut limited(&[&limits], &haul(backend, &args)));
                let text = format!("{mebibytes}, {args:?}: {}{}", ended.stdout, ended.stderr);
                assert!(!text.contains("panicked") && ended.status.code() != Some(101), "{text}");
                let said = ended.stdout.contains(&hash) || ended.stdout.contains("source");
                let prints = matches!(args[0], "hash" | "ls");
                assert!(!prints || said == ended.status.success(), "{text}");
                // What doctor finds depends on the machine.
                assert!(ended.status.success() || mebibytes < 4096 || args[0] == "doctor", "{text}");
            }
        }
    }
}
