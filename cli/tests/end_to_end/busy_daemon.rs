//! A daemon all of whose places are taken: whoever waits is served once one is free, or told why not; those who hold a place
//! and do not use it lose it, and nobody else learns anything.

use crate::support::BACKENDS;
use crate::support::daemon::{Bare, Knock, Listening, enter};
use crate::support::direct::{Guest, KEYED, SealedEnd};
use crate::support::frames::{Received, bytes_of, data, field};
use crate::support::processes::{Running, complete};
use haul_engine::wire::frame::{ErrorCode, Frame};
use haul_engine::wire::seal::Secret;
use std::fs;
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
