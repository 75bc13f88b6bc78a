//! A way that lets direct connections come about and loses their content: it is given up, and that is said.

use crate::support::between::{Between, Fate};
use crate::support::processes::complete;
use crate::support::{BACKENDS, Pipes, Remote, at, hash_of, haul, random_file};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// The last one: how long a silent peer is waited for, in ms; a direct one half of that.
const SOON: &str = "3000,30000,30000,60000,60000,3000,2000";
/// What greets, and no more.
const HANDSHAKE: u64 = 1500;

fn copy(backend: &str, pipes: &Pipes, flags: &[&str], (source, target): (&Path, &Path), down: bool) -> Command {
    let mut args: Vec<OsString> = ["copy", "--compress=none"].iter().chain(flags).map(OsString::from).collect();
    args.extend(pipes.args());
    args.extend(match down {
        false => [source.into(), at(pipes, target)],
        true => [at(pipes, source), target.into()],
    });
    let mut command = haul(backend, args);
    command.env("HAUL_TIMEOUTS_MS", SOON);
    command
}

#[test]
fn a_way_that_loses_content_is_given_up_after_two_connections_and_ssh_carries_it() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 150 << 20, 1);
    for backend in BACKENDS {
        for down in [false, true] {
            for connections in ["--connections=1", "--connections=auto"] {
                let (between, pipes) = Between::new(backend, |_| Fate::Swallowed(HANDSHAKE));
                let flags = ["--direct=auto", connections];
                let ended = complete(&mut copy(backend, &pipes, &flags, (&source, &target), down));
                ended.assert_exit(0);
                assert_eq!(hash_of(&target), hash_of(&source), "{backend}, {down}");
                // Others that were begun beside the first are lost with it.
                let most = if connections == "--connections=1" { 2 } else { 4 };
                assert!((2..=most).contains(&between.came()), "{backend}, {down}, {connections}: {}", between.came());
                let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("carry nothing")).collect();
                assert!(matches!(&said[..], [line] if line.ends_with("; going on over ssh")), "{}", ended.stderr);
                std::fs::remove_file(&target).unwrap();
            }
        }
    }
}

#[test]
fn where_nothing_else_is_wanted_the_run_ends_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 20 << 20, 1);
    for backend in BACKENDS {
        let (between, pipes) = Between::new(backend, |_| Fate::Swallowed(HANDSHAKE));
        let flags = ["--direct=direct", "--connections=1"];
        let ended = complete(&mut copy(backend, &pipes, &flags, (&source, &target), false));
        assert!(!ended.status.success() && !target.exists(), "{ended:?}");
        assert!(ended.stderr.contains("come about and carry nothing"), "{}", ended.stderr);
        assert_eq!(between.came(), 2);
    }
}

#[test]
fn one_connection_that_loses_content_among_those_that_carry_it_does_not_end_them() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 150 << 20, 1);
    for backend in BACKENDS {
        // The others are slow enough to be at it when that one breaks.
        let fate = |number| if number == 0 { Fate::Swallowed(HANDSHAKE) } else { Fate::Together(30 << 20) };
        let (_between, pipes) = Between::new(backend, fate);
        let flags = ["--direct=direct", "--connections=3"];
        let ended = complete(&mut copy(backend, &pipes, &flags, (&source, &target), true));
        ended.assert_exit(0);
        assert_eq!(hash_of(&target), hash_of(&source), "{backend}");
        assert!(!ended.stderr.contains("carry nothing"), "{}", ended.stderr);
    }
}
