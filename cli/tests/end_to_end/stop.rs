//! INT and TERM at either end, at random moments: one line, the right exit code, soon, and nothing is left behind.

use crate::support::processes::{self, Running, assert_nobody_at_home, names, signal, signal_group, wait_for};
use crate::support::transfer::{Content, Transfer, Way};
use crate::support::{BACKENDS, Pipes, Remote, at, binary, haul, random_file};
use rustix::process::Signal;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a user notices is half a second; a machine that runs other tests as well gets more.
const SOON: Duration = Duration::from_secs(2);
/// Moments for each way, end and backend.
const MOMENTS: usize = 20;
/// Of these so many at least must hit a copy that is not over; on a busy machine not all do.
const MIDWAY: usize = 10;
/// Large enough that most signals find the copy still going on.
const SIZE: usize = 48 * 1024 * 1024;

/// A number below `end`, another one each time.
fn random(end: u64) -> u64 {
    RandomState::new().hash_one(0) % end
}

/// Fails unless this is the one line of an interrupted run.
#[track_caller]
fn assert_interrupted(stderr: &str) {
    let percent = stderr.strip_prefix("haul: interrupted at ").and_then(|rest| rest.split_once(" %; "));
    let Some((percent, rest)) = percent else { panic!("{stderr:?}") };
    assert!(percent.parse::<u8>().is_ok_and(|percent| percent <= 100), "{stderr:?}");
    assert!(rest.ends_with(" kept, nothing else; run the same command to do it again\n"), "{stderr:?}");
    assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
}

/// Says how long it took from signals to ends.
fn say(what: &str, mut latencies: Vec<Duration>) {
    latencies.sort();
    let (median, last) = (latencies[latencies.len() / 2], latencies[latencies.len() - 1]);
    eprintln!("{what}: {} stops, median {median:.0?}, longest {last:.0?}", latencies.len());
}

/// The client alone is told, as by `kill`.
fn stops_of_the_client(backend: &'static str, way: Way) {
    stops("client", backend, way, signal);
}

/// Both ends are told at the same time, as by Ctrl-C: the remote shell is of the same process group.
fn stops_of_both(backend: &'static str, way: Way) {
    stops("both", backend, way, signal_group);
}

fn stops(who: &str, backend: &'static str, way: Way, tell: fn(i32, Signal) -> bool) {
    let transfer = Transfer::new(backend, way, SIZE);
    let (mut latencies, mut midway) = (Vec::new(), 0);
    for moment in 0..MOMENTS {
        let mut client = transfer.start();
        transfer.server();
        // The first one as soon as there is another end.
        let goal = if moment == 0 && way != Way::Local { 0 } else { 1 + random(transfer.size * 9 / 10) };
        transfer.wait_for_bytes(goal, &mut client);
        let sent = Instant::now();
        let alive = !client.is_over() && tell(client.pid(), [Signal::INT, Signal::TERM][moment % 2]);
        let ended = client.finish();
        latencies.push(sent.elapsed());
        assert!(latencies[latencies.len() - 1] < SOON, "{latencies:?}");
        assert_nobody_at_home(&transfer.pipes.home(), Duration::from_secs(5));
        transfer.assert_tidy();
        match transfer.content() {
            Content::Old => {
                assert!(alive, "the copy ended by itself: {ended:?}");
                ended.assert_exit(20);
                assert_interrupted(&ended.stderr);
                midway += 1;
            }
            Content::New => transfer.restore(),
        }
    }
    assert!(midway >= MIDWAY, "only {midway} of {MOMENTS} copies were stopped");
    say(&format!("{who}, {backend}, {way:?}"), latencies);
}

fn stops_of_the_server(backend: &'static str, way: Way) {
    let transfer = Transfer::new(backend, way, SIZE);
    let (mut latencies, mut midway) = (Vec::new(), 0);
    for moment in 0..MOMENTS {
        let mut client = transfer.start();
        let server = transfer.server();
        let seen = transfer.wait_for_bytes(1 + random(transfer.size * 9 / 10), &mut client);
        let sent = Instant::now();
        signal(server, [Signal::INT, Signal::TERM][moment % 2]);
        assert_nobody_at_home(&transfer.pipes.home(), SOON);
        let ended = client.finish();
        latencies.push(sent.elapsed());
        assert!(latencies[latencies.len() - 1] < SOON, "{latencies:?}");
        transfer.assert_tidy();
        match transfer.content() {
            Content::Old => {
                assert!(seen > 0, "the copy did not begin: {ended:?}");
                ended.assert_exit(12);
                assert!(ended.stderr.starts_with("haul: connection lost: "), "{ended:?}");
                assert_eq!(ended.lines().len(), 1, "{ended:?}");
                midway += 1;
            }
            Content::New => transfer.restore(),
        }
    }
    assert!(midway >= MIDWAY, "only {midway} of {MOMENTS} copies were stopped");
    say(&format!("server, {backend}, {way:?}"), latencies);
}

macro_rules! stops {
    ($($name:ident: $stop:ident, $backend:literal, $way:ident;)*) => {
        $(#[test]
        fn $name() {
            $stop($backend, Way::$way);
        })*
    };
}

stops! {
    a_client_told_to_stop_sending_is_gone_at_once_with_uring: stops_of_the_client, "uring", Up;
    a_client_told_to_stop_sending_is_gone_at_once_with_poll: stops_of_the_client, "poll", Up;
    a_client_told_to_stop_receiving_is_gone_at_once_with_uring: stops_of_the_client, "uring", Down;
    a_client_told_to_stop_receiving_is_gone_at_once_with_poll: stops_of_the_client, "poll", Down;
    a_copy_within_this_machine_told_to_stop_is_gone_at_once_with_uring: stops_of_the_client, "uring", Local;
    a_copy_within_this_machine_told_to_stop_is_gone_at_once_with_poll: stops_of_the_client, "poll", Local;
    both_ends_told_to_stop_an_upload_are_one_interruption_with_uring: stops_of_both, "uring", Up;
    both_ends_told_to_stop_an_upload_are_one_interruption_with_poll: stops_of_both, "poll", Up;
    both_ends_told_to_stop_a_download_are_one_interruption_with_uring: stops_of_both, "uring", Down;
    both_ends_told_to_stop_a_download_are_one_interruption_with_poll: stops_of_both, "poll", Down;
    a_server_told_to_stop_receiving_is_gone_at_once_with_uring: stops_of_the_server, "uring", Up;
    a_server_told_to_stop_receiving_is_gone_at_once_with_poll: stops_of_the_server, "poll", Up;
    a_server_told_to_stop_sending_is_gone_at_once_with_uring: stops_of_the_server, "uring", Down;
    a_server_told_to_stop_sending_is_gone_at_once_with_poll: stops_of_the_server, "poll", Down;
}

#[test]
fn of_many_files_those_that_are_there_after_a_stop_are_whole() {
    const FILES: usize = 3000;
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    for number in 0..FILES {
        random_file(&tree.join(number.to_string()), 4096 + number, number as u64);
    }
    for (round, (backend, up)) in
        BACKENDS.into_iter().flat_map(|backend| [(backend, true), (backend, false)]).enumerate()
    {
        let pipes = Pipes::new(backend);
        let target = dir.path().join(format!("copy{round}"));
        let mut args = vec!["copy".into(), "-r".into()];
        args.extend(pipes.args());
        args.extend(match up {
            true => [tree.clone().into_os_string(), at(&pipes, &target)],
            false => [at(&pipes, &tree), target.clone().into_os_string()],
        });
        let mut client = Running::start(&mut haul(backend, args));
        let copied = target.join("tree");
        let goal = 1 + random(FILES as u64 / 2) as usize;
        wait_for(SOON * 10, || client.is_over() || copied.is_dir() && names(&copied).len() >= goal);
        assert!(!client.is_over());
        signal(client.pid(), Signal::INT);
        let ended = client.finish();
        ended.assert_exit(20);
        assert_interrupted(&ended.stderr);
        assert_nobody_at_home(&pipes.home(), Duration::from_secs(5));
        let there = names(&copied);
        assert!(there.len() >= goal && there.len() < FILES, "{} of {FILES}", there.len());
        for name in there {
            assert_eq!(fs::read(copied.join(&name)).unwrap(), fs::read(tree.join(&name)).unwrap(), "{name:?}");
        }
    }
}

#[test]
fn a_client_that_waits_for_a_silent_remote_shell_can_be_stopped() {
    for backend in BACKENDS {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let shell = dir.path().join("ssh");
        let home = dir.path().join("home");
        let script = format!("#!/bin/sh\nexport HOME='{0}'\n: >'{0}'\nexec sleep 1000\n", home.display());
        processes::script(&shell, &script);
        for flags in [&[][..], &["-C"]] {
            let _ = fs::remove_file(&home);
            let mut copy = haul(backend, ["copy"]);
            let client = copy.args(flags).arg("-e").arg(&shell).arg("far:file").arg(dir.path());
            let client = Running::start(client);
            assert!(wait_for(SOON * 10, || home.exists()));
            let sent = Instant::now();
            signal(client.pid(), Signal::INT);
            let ended = client.finish();
            assert!(sent.elapsed() < SOON);
            ended.assert_exit(20);
            if flags.is_empty() {
                assert_interrupted(&ended.stderr);
            } else {
                let told = "haul: interrupted at 0 %; nothing new has come yet; run the same command to continue\n";
                assert_eq!(ended.stderr, told);
            }
            assert_nobody_at_home(&home, Duration::from_secs(5));
        }
    }
}

#[test]
fn a_listening_server_told_to_stop_has_done_what_it_was_to_do() {
    for backend in BACKENDS {
        for stop in [Signal::INT, Signal::TERM] {
            let root = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
            let mut command = Command::new(binary());
            command.args([
                "--backend",
                backend,
                "serve",
                "--allow-every-local-user",
                "--listen",
                "127.0.0.1:0",
                "--root",
            ]);
            command.arg(root.path()).stderr(Stdio::null());
            let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert!(line.starts_with("LISTENING 127.0.0.1:"), "{line}");
            let sent = Instant::now();
            signal(i32::try_from(child.id()).unwrap(), stop);
            let over = wait_for(SOON, || child.try_wait().unwrap().is_some());
            let _ = child.kill();
            assert!(over, "still there after {:?}", sent.elapsed());
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
    }
}
