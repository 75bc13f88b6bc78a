//! Where a server listens for direct connections and for how long, and what it costs a copy that nobody answers there.

use crate::hostile_direct_client::{filtered, refusing};
use crate::support::between::{Between, Fate};
use crate::support::direct::{Ending, Guest, KEYED, Place};
use crate::support::frames::{Received, Serving, field};
use crate::support::processes::{LIMIT, complete, wait_for};
use crate::support::{BACKENDS, Pipes, at, haul};
use haul_engine::wire::frame::{Caps, Dialect, Frame};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What ssh reached, which is not the first address of loopback.
const ADDRESS: &str = "127.0.0.5";

/// Where a process listens for TCP, as `ss` shows it; `None` where there is no ss. With HAUL_REQUIRE=ss that is a failure.
fn listening(pid: i32) -> Option<Vec<String>> {
    let Ok(output) = Command::new("ss").arg("-Hltnp").output() else {
        crate::support::skips::skip("ss", "there is no ss here", "iproute2");
        return None;
    };
    let (text, own) = (String::from_utf8(output.stdout).unwrap(), format!("pid={pid},"));
    let local = |line: &str| line.split_whitespace().nth(3).unwrap().to_string();
    Some(text.lines().filter(|line| line.contains(&own)).map(local).collect())
}

#[track_caller]
fn opened(backend: &str, dialect: Dialect) -> (Serving, Place) {
    let mut serving = Serving::reached_at(backend, ADDRESS);
    serving.agree(dialect, Caps::DIRECT_TCP);
    let place = Place::open(&mut serving);
    (serving, place)
}

/// Nobody who proves himself comes.
fn is_closed_unused(backend: &str, dialect: Dialect) -> Option<()> {
    let (mut serving, place) = opened(backend, dialect);
    let opened = Instant::now();
    assert_eq!(listening(serving.pid())?, [place.address.to_string()], "{backend}, {dialect:?}");
    let _stranger = Guest::come(place.address);
    assert!(wait_for(LIMIT, || listening(serving.pid()) == Some(Vec::new())), "{backend}, {dialect:?}");
    // Ten seconds, of which one may be lost on the way here, and a busy machine may make more of them.
    let took = opened.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&took), "{backend}, {dialect:?}: {took:?}");
    serving.assert_usable();
    // That was no reason to refuse another one.
    let again = Place::open(&mut serving);
    assert_eq!(listening(serving.pid())?, [again.address.to_string()]);
    serving.end();
    Some(())
}

/// Connections of a client may come again as long as its first session lasts.
fn is_kept_in_use(backend: &str) -> Option<()> {
    let (mut serving, place) = opened(backend, KEYED);
    place.client(true).end(true);
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(listening(serving.pid())?, [place.address.to_string()]);
    let client = place.client(true);
    serving.assert_usable();
    client.end(true);
    // The end of the session is the end of it.
    drop(serving.input.take());
    assert!(wait_for(LIMIT, || listening(serving.pid()) == Some(Vec::new())), "{backend}");
    Some(())
}

#[test]
fn a_server_listens_where_ssh_reached_it_ten_seconds_or_as_long_as_that_is_used() {
    std::thread::scope(|scope| {
        for backend in BACKENDS {
            for dialect in [KEYED, Dialect::BASE] {
                scope.spawn(move || is_closed_unused(backend, dialect));
            }
            scope.spawn(move || is_kept_in_use(backend));
        }
    });
}

/// A copy of 6 bytes to the far end, and how long the fastest of three took.
#[track_caller]
fn fastest(backend: &str, pipes: &Pipes, dir: &Path, check: impl Fn(&str)) -> Duration {
    let (source, target) = (dir.join("source"), dir.join("target"));
    let once = || {
        let mut copy = haul(backend, ["copy", "--direct=auto", "--port-range=40000-65000"]);
        copy.args(crate::support::Remote::args(pipes)).arg(&source).arg(at(pipes, &target));
        let ended = complete(&mut copy);
        ended.assert_exit(0);
        assert_eq!(fs::read(&target).unwrap(), b"6bytes");
        fs::remove_file(&target).unwrap();
        check(&ended.stderr);
        ended.took
    };
    (0..3).map(|_| once()).min().unwrap()
}

/// For how long a connection is kept whose client has gone, see `limits::PARTING_TIMEOUT`.
const PARTING_TIMEOUT: Duration = Duration::from_millis(500);

#[test]
fn an_answer_is_worked_out_when_the_first_session_has_ended_and_a_body_is_not_waited_for() {
    for backend in BACKENDS {
        // Of a machine that hashes faster, more is asked.
        let shown = [1, 2, 4, 8, 16].into_iter().any(|gibibytes| {
            let (mut serving, place) = opened(backend, KEYED);
            fs::File::create(serving.root().join("long")).unwrap().set_len(gibibytes << 30).unwrap();
            let (mut asks, mut puts) = (place.client(true), place.client(true));
            puts.send(&Frame::Put { path: field("new"), size: 1, offset: 0, overwrite: true });
            asks.send(&Frame::Hash { path: field("long"), offset: 0, limit: None });
            drop(serving.input.take());
            let ended = Instant::now();
            // Nothing more comes on either, and one of them is waited for.
            assert_eq!(puts.rest(), (Vec::new(), Ending::Cut), "{backend}");
            let reply = asks.input.next();
            assert!(matches!(reply, Some(Received::Frame(Frame::HashResponse { .. }))), "{backend}: {reply:?}");
            assert!(!serving.root().join("new").exists());
            ended.elapsed() > PARTING_TIMEOUT
        });
        assert!(shown, "{backend}: all were too short to show anything");
    }
}

#[test]
fn a_port_that_is_closed_to_us_costs_little_and_one_line_names_it_and_what_to_open() {
    let (_kept, refusing) = refusing();
    let (_listener, _filling, filtered) = filtered();
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    fs::write(dir.path().join("source"), "6bytes").unwrap();
    for backend in BACKENDS {
        let (_between, pipes) = Between::new(backend, |_| Fate::Through);
        let open =
            fastest(backend, &pipes, dir.path(), |said| assert!(!said.contains("no direct connection"), "{said}"));
        let blocked = |address: SocketAddr, why: &str| {
            let (_between, pipes) = Between::elsewhere(backend, address);
            fastest(backend, &pipes, dir.path(), |said| {
                let said: Vec<&str> = said.lines().filter(|line| line.contains("no direct connection")).collect();
                let [line] = said[..] else { panic!("{said:?}") };
                for words in [&address.to_string(), "Open TCP ports 40000-65000 there"] {
                    assert!(line.contains(words), "{words}: {line}");
                }
                // On a busy machine even a refusal may take too long.
                assert!(line.contains(why) || line.contains("does not answer"), "{why}: {line}");
            })
        };
        // A fifth of a second is waited for who does not answer; without the race it would be a whole one.
        for (address, why) in [(refusing, "Connection refused"), (filtered, "does not answer")] {
            let took = blocked(address, why);
            assert!(took < open + Duration::from_millis(700), "{backend}, {why}: {took:?}, open {open:?}");
        }
    }
}
