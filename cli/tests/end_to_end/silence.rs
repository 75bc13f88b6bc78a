//! A far end that falls silent: in time the copy goes on another way or ends with one line that says what is kept and what
//! to do. One that only has much to do is waited for.

use crate::support::kept::Kept;
use crate::support::processes::{LIMIT, Running, signal, wait_for};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Pipes, Remote, at, haul};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const SIZE: usize = 96 << 20;
/// Seconds.
const TIMEOUT: u64 = 3;

/// Stops the server in the middle of a copy. What the client says, and how long after that.
fn stopped(backend: &'static str, way: Way, flags: &[&str]) -> (Kept, crate::support::processes::Ended, Duration) {
    let copy = Kept::new((backend, backend), way, SIZE);
    let seconds = TIMEOUT.to_string();
    let flags = [&["-C", "--compress=none", "--timeout", &seconds], flags].concat();
    for _ in 0..20 {
        let (mut client, server) = copy.start(&flags);
        wait_for(LIMIT, || copy.partial_size() > 0 || client.is_over());
        signal(server, Signal::STOP);
        let begun = Instant::now();
        let ended = client.finish();
        let took = begun.elapsed();
        signal(server, Signal::KILL);
        if !copy.target().exists() {
            return (copy, ended, took);
        }
        std::fs::remove_file(copy.target()).unwrap();
    }
    panic!("each of 20 copies was over before its server could be stopped");
}

#[test]
fn a_server_that_stops_in_the_middle_ends_the_copy_in_time_and_the_same_command_continues_it() {
    for backend in BACKENDS {
        for way in [Way::Up, Way::Down] {
            for flags in [&[][..], &["--direct=direct"], &["--direct=auto", "--connections=3"]] {
                eprintln!("{backend}, {way:?}, {flags:?}");
                let (copy, ended, took) = stopped(backend, way, flags);
                ended.assert_exit(30);
                assert!(took < Duration::from_secs(TIMEOUT + 2), "{took:?}: {ended:?}");
                let last = ended.lines().last().copied().unwrap_or_default().to_string();
                assert!(
                    last.contains(" s: stopped at ") && last.contains("run the same command to continue"),
                    "{ended:?}"
                );
                let seconds = TIMEOUT.to_string();
                copy.completed(&[&["-C", "--compress=none", "--timeout", &seconds], flags].concat());
            }
        }
    }
}

#[test]
fn a_server_that_is_stopped_before_it_says_a_word_ends_the_copy_in_time() {
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let source = pipes.dir().join("source");
        std::fs::write(&source, "x").unwrap();
        let program = pipes.dir().join("silent");
        crate::support::processes::script(
            &program,
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo haul 0; exit; fi\nexec sleep 60\n",
        );
        let mut copy = haul(backend, ["copy", "--timeout=3"]);
        copy.args(pipes.args())
            .arg("--remote-path")
            .arg(&program)
            .arg(&source)
            .arg(at(&pipes, &pipes.dir().join("target")));
        let begun = Instant::now();
        let ended = Running::start(&mut copy).finish();
        ended.assert_exit(35);
        assert!(begun.elapsed() < Duration::from_secs(TIMEOUT + 3), "{ended:?}");
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
    }
}

#[test]
fn a_server_that_works_for_longer_than_the_time_limit_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large");
    // Takes a server several seconds to hash, in which it has nothing else to say.
    std::fs::File::create(&large).unwrap().set_len(16 << 30).unwrap();
    let pipes = Pipes::new(BACKENDS[0]);
    let mut hash = haul(BACKENDS[0], ["hash", "--timeout=3"]);
    hash.args(pipes.args()).arg(at(&pipes, &large));
    let begun = Instant::now();
    Running::start(&mut hash).finish().assert_exit(0);
    assert!(begun.elapsed() > Duration::from_secs(2), "too fast to show anything: {:?}", begun.elapsed());
}
