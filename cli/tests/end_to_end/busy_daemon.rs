//! A daemon all of whose places are taken: whoever waits is served once one is free, or told why not; those who hold a place
//! and do not use it lose it, and nobody else learns anything.

use crate::support::BACKENDS;
use crate::support::daemon::{Bare, Knock, Listening, enter};
use crate::support::direct::{Guest, KEYED, SealedEnd};
use crate::support::frames::{Received, bytes_of, data, field};
use crate::support::processes::{LIMIT, Running, complete, wait_for};
use crate::support::trees::small_files;
use crate::support::{random_file, snapshot};
use haul_engine::wire::frame::{ErrorCode, Frame};
use haul_engine::wire::seal::Secret;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PAIRS: [(&str, &str); 2] = [("uring", "poll"), ("poll", "uring")];
/// As many as are served at a time, see `limits::MAX_SESSIONS`.
const PLACES: usize = 16;
/// Of silence, login, handshake and stall, in ms: a place that is not used is lost after two seconds.
const HURRIED: &str = "30000,30000,30000,2000";
const FULL: &str = "all 16 connections there are in use";

fn full(daemon: &Listening) -> Vec<SealedEnd> {
    (0..PLACES).map(|_| daemon.enter()).collect()
}

/// How many of them are still served.
fn served(clients: Vec<SealedEnd>) -> usize {
    let mut served = 0;
    for mut client in clients {
        client.send(&Frame::Stat { path: field("") });
        match client.input.next() {
            Some(Received::Frame(Frame::StatResponse { .. })) => served += 1,
            Some(Received::Frame(Frame::Error { message, code: ErrorCode::BUSY })) => {
                let text = String::from_utf8(message).unwrap();
                assert!(text.starts_with("cut off: "), "{text}");
            }
            other => assert!(other.is_none(), "{other:?}"),
        }
    }
    served
}

#[test]
fn idle_connections_give_way_to_those_who_wait_and_to_no_more() {
    for read_only in [false, true] {
        for (near, far) in PAIRS {
            let flags: &[&str] = if read_only { &["--read-only"] } else { &[] };
            let daemon = Listening::hurried(far, flags, HURRIED);
            fs::write(daemon.root().join("f"), "x").unwrap();
            let idle = full(&daemon);
            let ended = complete(daemon.command(near, "ls", &[]).arg(daemon.at("")));
            ended.assert_exit(0);
            assert_eq!(ended.stdout, "f\n");
            let served = served(idle);
            assert!((PLACES - 3..PLACES).contains(&served), "{served} of {PLACES} are left");
        }
    }
}

#[test]
fn uploads_that_their_clients_have_paused_do_not_hold_a_daemon() {
    for (near, far) in PAIRS {
        let daemon = Listening::hurried(far, &[], HURRIED);
        let mut paused = full(&daemon);
        for (number, client) in paused.iter_mut().enumerate() {
            let path = field(format!("paused-{number}"));
            client.send(&Frame::Put { path, size: 1 << 30, offset: 0, overwrite: true });
            client.send_bytes(&data(&[7; 100_000]));
        }
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        fs::write(dir.path().join("f"), "content").unwrap();
        daemon.copy(near, &[], dir.path().join("f"), daemon.at("f")).assert_exit(0);
        assert_eq!(fs::read(daemon.root().join("f")).unwrap(), b"content");
        // All of them, whether or not anybody waits.
        for mut client in paused {
            let (rest, _) = client.rest();
            let cut = |received: &Received| matches!(received, Received::Frame(Frame::Error { code, .. }) if *code == ErrorCode::BUSY);
            assert!(rest.iter().any(cut), "{rest:?}");
        }
        assert_eq!(crate::support::processes::names(&daemon.root()), ["f"]);
    }
}

#[test]
fn a_client_waits_as_long_as_it_was_told_and_then_says_what_it_waited_for() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let clients = full(&daemon);
        let ended = complete(daemon.command(near, "ls", &["--timeout", "6"]).arg(daemon.at("")));
        ended.assert_exit(35);
        assert!(ended.stderr.contains(FULL) && ended.stderr.contains("6 s"), "{ended:?}");
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
        // Longer than the daemon lets anybody wait at a time.
        let mut waits = Running::start(daemon.command(near, "ls", &[]).arg(daemon.at("")));
        std::thread::sleep(Duration::from_secs(6));
        assert!(!waits.is_over());
        assert_eq!(served(clients), PLACES);
        waits.finish().assert_exit(0);
    }
}

#[test]
fn whoever_cannot_prove_himself_does_not_learn_that_a_daemon_is_full() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let clients = full(&daemon);
        let mut guest = Guest::come(daemon.address);
        let hello = Knock::ALL.hello(&Secret::from_bytes([1; 32]), &guest.nonce);
        guest.send(&bytes_of(&hello, KEYED));
        assert_eq!(guest.left(), b"");
        // He who can is told, once he has waited.
        let mut guest = Guest::come(daemon.address);
        let hello = Knock::ALL.hello(&daemon.key(), &guest.nonce);
        guest.send(&bytes_of(&hello, KEYED));
        let full = Frame::Error { message: FULL.into(), code: ErrorCode::BUSY };
        assert_eq!(guest.left(), bytes_of(&full, KEYED));
        assert_eq!(served(clients), PLACES);
        enter(Guest::come(daemon.address), &daemon.key(), Knock::ALL).end(true);
    }
}

#[test]
fn who_listens_without_a_key_serves_no_idle_connection_for_ever_either() {
    for backend in BACKENDS {
        let daemon = Listening::launched(backend, &[], "127.0.0.1:0", false, HURRIED);
        let idle: Vec<Bare> = (0..PLACES).map(|_| Bare::greeted(daemon.address)).collect();
        for _ in 0..2 {
            let mut next = Bare::greeted(daemon.address);
            assert!(matches!(next.ask(&Frame::Stat { path: field("") }), Frame::StatResponse { .. }));
        }
        drop(idle);
    }
}

/// All places, taken from this address by clients of one run each, or by connections of one run.
fn full_from(daemon: &Listening, from: &str, one_run: bool) -> Vec<SealedEnd> {
    let knock = |index| Knock { index: if one_run { index } else { 0 }, ..Knock::ALL };
    let enter_as = |index| enter(Guest::from(from, daemon.address), &daemon.key(), knock(index));
    (0..PLACES as u16).map(enter_as).collect()
}

#[test]
fn many_connections_of_one_run_give_way_to_other_addresses_and_its_first_one_stays() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        fs::write(daemon.root().join("f"), "x").unwrap();
        let mut run = full_from(&daemon, "127.0.0.2", true);
        // From where they come nobody is owed anything.
        let mut guest = Guest::from("127.0.0.2", daemon.address);
        guest.send(&bytes_of(&Knock::ALL.hello(&daemon.key(), &guest.nonce), KEYED));
        assert_eq!(guest.left(), bytes_of(&Frame::Error { message: FULL.into(), code: ErrorCode::BUSY }, KEYED));
        let ended = complete(daemon.command(near, "ls", &[]).arg(daemon.at("")));
        ended.assert_exit(0);
        assert_eq!(ended.stdout, "f\n");
        let first = run.remove(0);
        assert_eq!((served(vec![first]), served(run)), (1, PLACES - 2));
    }
}

#[test]
fn who_has_most_places_and_makes_little_of_them_keeps_no_other_address_out() {
    for (near, far) in PAIRS {
        let daemon = Listening::hurried(far, &[], HURRIED);
        fs::write(daemon.root().join("f"), "x").unwrap();
        let mut slow = full_from(&daemon, "127.0.0.2", false);
        for (number, client) in slow.iter_mut().enumerate() {
            let path = field(format!("slow-{number}"));
            client.send(&Frame::Put { path, size: 1 << 30, offset: 0, overwrite: true });
        }
        // Enough not to be idle, for longer than a place is kept idle.
        let over = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    slow.iter_mut().for_each(|client| client.send_bytes(&data(&[7; 40_000])));
                    std::thread::sleep(Duration::from_millis(400));
                }
            });
            std::thread::sleep(Duration::from_secs(3));
            let ended = complete(daemon.command(near, "ls", &["--timeout", "10"]).arg(daemon.at("")));
            over.store(true, Ordering::Release);
            ended
        });
        ended.assert_exit(0);
        let cut = |client: SealedEnd| {
            let (rest, _) = { client }.rest();
            rest.iter().any(|received| matches!(received, Received::Frame(Frame::Error { code: ErrorCode::BUSY, .. })))
        };
        // The others are cut off for what they do not send any more.
        assert!(slow.into_iter().all(cut));
    }
}

#[test]
fn a_copy_whose_connections_give_way_loses_nothing() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("tree");
        fs::create_dir_all(source.join("small")).unwrap();
        random_file(&source.join("large"), 512 << 20, 5);
        small_files(&source.join("small"), 4_000);
        let back = dir.path().join("back");
        let there = daemon.root().join("tree");
        let up = [source.clone().into_os_string(), daemon.at("").into()];
        let down = [daemon.at("tree/").into(), back.clone().into_os_string()];
        for (operands, target) in [(up, &there), (down, &back)] {
            let flags = ["-rp", "--stats", "--connections", "16"];
            let mut copy = Running::start(daemon.command(near, "copy", &flags).args(operands));
            assert!(wait_for(LIMIT, || target.exists() || copy.is_over()));
            let others: Vec<SealedEnd> =
                (0..3).map(|_| enter(Guest::from("127.0.0.2", daemon.address), &daemon.key(), Knock::ALL)).collect();
            assert!(!copy.is_over(), "they came too late");
            let ended = copy.finish();
            ended.assert_exit(0);
            assert_eq!(snapshot(target), snapshot(&source));
            assert_eq!(served(others), 3);
        }
    }
}
