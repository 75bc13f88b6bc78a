//! Ten thousand connections that say nothing, at the listener of a meeting and at a daemon: what they cost is bounded, who
//! is in does not notice, and a client that tries again comes in.

use crate::support::BACKENDS;
use crate::support::daemon::{Knock, Listening, enter};
use crate::support::direct::{Guest, KEYED, Place, SealedEnd};
use crate::support::frames::{Serving, field};
use crate::support::pressure::{MEMORY, open_files, peak_memory};
use crate::support::processes::{LIMIT, wait_for};
use haul_engine::wire::frame::{Caps, Frame};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const CROWD: u64 = 10_000;
/// Descriptors that the other tests of this process may want meanwhile.
const OTHERS: u64 = 1_000;
/// Connections that wait to be proved, see `limits::MAX_GUESTS`, those that were told to give way, see `MAX_LEAVING`, one
/// that is accepted while another is closed, and one that was let in.
const GUESTS: usize = 64 + 2 + 2;
/// How long who is in is asked again and again.
const WATCHED: Duration = Duration::from_secs(3);

/// Connections that are begun, from several addresses, whether or not anybody takes them; fewer where this process may not
/// hold so many.
fn crowd(address: SocketAddr) -> Vec<OwnedFd> {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let number = CROWD.min(most.saturating_sub(OTHERS) / 2);
    if number < CROWD {
        eprintln!("a crowd of {number}: no more descriptors are to be had");
    }
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    (0..number)
        .map(|index| {
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            let from = Ipv4Addr::new(127, 0, 1, 1 + u8::try_from(index % 16).unwrap());
            rustix::net::bind(&socket, &SocketAddr::from((from, 0))).unwrap();
            let begun = rustix::net::connect(&socket, &address);
            assert!(matches!(begun, Ok(()) | Err(rustix::io::Errno::INPROGRESS)), "{begun:?}");
            socket
        })
        .collect()
}

/// A connection that somebody takes, by somebody who tries again.
#[track_caller]
fn persistent(address: SocketAddr) -> Guest {
    let until = Instant::now() + LIMIT;
    loop {
        match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            Ok(stream) => return Guest::over(stream),
            Err(error) => assert!(Instant::now() < until, "nobody comes in: {error}"),
        }
    }
}

/// Holds a crowd against the process `pid` that listens at `address` and has let `client` in.
#[track_caller]
fn withstand(pid: i32, address: SocketAddr, client: &mut SealedEnd, come: impl Fn(Guest) -> SealedEnd) {
    let before = open_files(pid);
    let crowd = crowd(address);
    let (begun, mut most) = (Instant::now(), 0);
    while begun.elapsed() < WATCHED {
        let reply = client.ask(&Frame::Stat { path: field("f") });
        assert!(matches!(reply, Frame::StatResponse { size: 3, .. }), "{reply:?}");
        most = most.max(open_files(pid).saturating_sub(before));
    }
    assert!((8..=GUESTS).contains(&most), "{most} connections at once");
    come(persistent(address)).end(true);
    let peak = peak_memory(pid);
    assert!(peak < MEMORY, "{} MiB", peak >> 20);
    drop(crowd);
    assert!(wait_for(LIMIT, || open_files(pid) <= before), "{} more than before", open_files(pid) - before);
    come(persistent(address)).end(true);
}

#[test]
fn ten_thousand_who_say_nothing_at_the_listener_of_a_meeting_cost_little() {
    for backend in BACKENDS {
        let mut serving = Serving::agreed(backend, KEYED, Caps::DIRECT_TCP);
        fs::write(serving.root().join("f"), "old").unwrap();
        let place = Place::open(&mut serving);
        let mut client = place.client(true);
        withstand(serving.pid(), place.address, &mut client, |guest| guest.client(&place, true));
        serving.assert_usable();
        client.end(true);
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn ten_thousand_who_say_nothing_at_a_daemon_cost_little() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        fs::write(daemon.root().join("f"), "old").unwrap();
        let mut client = daemon.enter();
        withstand(daemon.pid(), daemon.address, &mut client, |guest| enter(guest, &daemon.key(), Knock::ALL));
        client.end(true);
        assert_eq!(daemon.end(), "");
    }
}
