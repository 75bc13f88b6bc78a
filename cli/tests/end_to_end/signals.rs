//! Signals other than those by which a user stops a run.

use crate::support::BACKENDS;
use crate::support::daemon::Listening;
use crate::support::limits::{limit, limited};
use crate::support::processes::{LIMIT, complete, signal, wait_for};
use crate::support::routes::Route;
use crate::support::transfer::{Content, Transfer, Way};
use crate::support::{hash_of, random_file};
use rustix::process::Signal;
use std::fs;

#[test]
fn a_file_beyond_the_limit_of_the_process_is_an_error_and_the_others_come() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tree");
    fs::create_dir(&source).unwrap();
    random_file(&source.join("large"), 4 << 20, 1);
    random_file(&source.join("small"), 1000, 2);
    for route in Route::all() {
        let target = dir.path().join("copy");
        let command = route.command(&["-r"], &[&source.join("")], &target);
        let ended = complete(&mut limited(&["--fsize=1048576"], &command));
        ended.assert_exit(11);
        assert!(ended.stderr.contains("File too large"), "{route:?}: {}", ended.stderr);
        assert_eq!(hash_of(&target.join("small")), hash_of(&source.join("small")), "{route:?}");
        assert!(!target.join("large").exists(), "{route:?}");
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn a_daemon_outlives_a_file_beyond_its_limit() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let dir = tempfile::tempdir().unwrap();
        let (large, small) = (dir.path().join("large"), dir.path().join("small"));
        random_file(&large, 4 << 20, 1);
        random_file(&small, 1000, 2);
        limit(daemon.pid(), &["--fsize=1048576"]);
        let ended = daemon.copy(backend, &[], large, daemon.at("large"));
        ended.assert_exit(11);
        assert!(ended.stderr.contains("File too large"), "{}", ended.stderr);
        daemon.copy(backend, &[], small, daemon.at("small")).assert_exit(0);
        daemon.end();
    }
}

#[test]
fn whose_terminal_is_gone_stops_as_if_told_to() {
    for backend in BACKENDS {
        for way in [Way::Up, Way::Down] {
            let transfer = Transfer::new(backend, way, 600 << 20);
            let mut client = transfer.start();
            transfer.wait_for_bytes(1 << 20, &mut client);
            signal(client.pid(), Signal::HUP);
            let ended = client.finish_within(LIMIT);
            if ended.status.code() != Some(0) {
                ended.assert_exit(20);
                assert_eq!(transfer.content(), Content::Old);
            }
            transfer.assert_tidy();
        }
    }
}

#[test]
fn who_was_told_to_stay_without_its_terminal_stays() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        random_file(&source, 200 << 20, 1);
        for route in Route::local().into_iter().filter(|route| route.near == backend) {
            let copy = route.command(&[], &[&source], &target);
            let mut ignoring = std::process::Command::new("sh");
            ignoring.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(copy.get_program()).args(copy.get_args());
            let client = crate::support::processes::Running::start(&mut ignoring);
            let name = || fs::read_to_string(format!("/proc/{}/comm", client.pid())).unwrap_or_default();
            assert!(wait_for(LIMIT, || name().starts_with("haul")));
            for _ in 0..20 {
                signal(client.pid(), Signal::HUP);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            client.finish().assert_exit(0);
            assert_eq!(hash_of(&target), hash_of(&source));
        }
    }
}

#[test]
fn a_daemon_outlives_its_terminal() {
    let daemon = Listening::start("poll");
    signal(daemon.pid(), Signal::HUP);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("small"), "small").unwrap();
    daemon.copy("poll", &[], dir.path().join("small"), daemon.at("small")).assert_exit(0);
    daemon.end();
}
