//! Strangers who hold hundreds of connections and come back whenever one is closed, at a daemon and at the listener of
//! direct connections: whoever can prove himself comes in all the same.

use crate::support::BACKENDS;
use crate::support::daemon::{Listening, enter};
use crate::support::direct::{Guest, KEYED, Place};
use crate::support::frames::{Serving, blake3_of, bytes_of, field};
use crate::support::processes::{LIMIT, complete};
use crate::support::{Pipes, at, haul};
use haul_engine::wire::frame::{Caps, Frame};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that the attackers hold, or try to, at any time.
const HELD: usize = 300;

/// Holds connections to one address, and opens each again as soon as it is closed, until dropped.
struct Attack {
    over: Arc<AtomicBool>,
    come: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

fn begin(address: SocketAddr) -> Option<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).ok()?;
    let begun = rustix::net::connect(&socket, &address);
    matches!(begun, Ok(()) | Err(rustix::io::Errno::INPROGRESS)).then_some(socket)
}

impl Attack {
    fn on(address: SocketAddr) -> Attack {
        let (over, come) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ended, count) = (over.clone(), come.clone());
        let thread = std::thread::spawn(move || {
            let mut held: Vec<Option<OwnedFd>> = (0..HELD).map(|_| None).collect();
            while !ended.load(Ordering::Relaxed) {
                for slot in &mut held {
                    // What is said is read, so that only the end of it is the end.
                    let closed = slot.as_ref().is_none_or(|socket| {
                        let read = rustix::io::read(socket, &mut [0; 256][..]);
                        !matches!(read, Ok(1..) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOTCONN))
                    });
                    if closed {
                        *slot = begin(address);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Attack { over, come, thread: Some(thread) }
    }

    /// Until it has all that it wants.
    #[track_caller]
    fn is_under_way(&self) {
        let until = Instant::now() + LIMIT;
        while self.come.load(Ordering::Relaxed) < 2 * HELD {
            assert!(Instant::now() < until, "nobody attacks");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn strangers_who_come_back_at_a_daemon_keep_no_client_out() {
    for (near, far) in [("uring", "poll"), ("poll", "uring")] {
        let daemon = Listening::start(far);
        fs::write(daemon.root().join("f"), "content").unwrap();
        let attack = Attack::on(daemon.address);
        attack.is_under_way();
        for _ in 0..5 {
            let ended = complete(daemon.command(near, "ls", &[]).arg(daemon.at("")));
            ended.assert_exit(0);
            assert_eq!(ended.stdout, "f\n");
        }
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        for connections in ["1", "4"] {
            let flags = ["--connections", connections];
            daemon.copy(near, &flags, daemon.at("f"), dir.path().join("f")).assert_exit(0);
            assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"content");
        }
        drop(attack);
        daemon.enter().end(true);
    }
}

#[test]
fn strangers_who_come_back_at_the_port_of_a_direct_connection_keep_no_client_out() {
    for (near, far) in [("uring", "poll"), ("poll", "uring")] {
        let pipes = Pipes::new(far);
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::write(&source, "content").unwrap();
        for _ in 0..3 {
            // They know the port before anybody listens there.
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let attack = Attack::on(address);
            attack.is_under_way();
            let ports = format!("--port-range={0}-{0}", address.port());
            let mut copy = haul(near, ["copy", "--direct=direct", &ports]);
            let ended = complete(copy.args(crate::support::Remote::args(&pipes)).arg(&source).arg(at(&pipes, &target)));
            ended.assert_exit(0);
            drop(attack);
            assert_eq!(fs::read(&target).unwrap(), b"content");
            fs::remove_file(&target).unwrap();
        }
    }
}

#[test]
fn guests_from_one_address_push_out_each_other_and_nobody_from_another() {
    for backend in BACKENDS {
        let mut serving = Serving::agreed(backend, KEYED, Caps::DIRECT_TCP);
        let place = Place::open(&mut serving);
        // Slow to prove himself, and from another address than all who come after him.
        let slow = Guest::from("127.0.0.77", place.address);
        let crowd: Vec<Guest> = (0..200).map(|_| Guest::from("127.0.0.78", place.address)).collect();
        slow.client(&place, true).end(true);
        // Of those, the last ones are still there.
        crowd.into_iter().next_back().unwrap().client(&place, true).end(true);
        serving.assert_usable();
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn whoever_must_give_way_is_told_so_and_nothing_else() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let mut crowd: Vec<Guest> = (0..100).map(|_| Guest::come(daemon.address)).collect();
        let first = crowd.remove(0);
        let said = first.left();
        let words = Frame::Error {
            message: b"too many connections wait there to prove themselves".to_vec(),
            code: haul_engine::wire::frame::ErrorCode::BUSY,
        };
        assert_eq!(said, bytes_of(&words, KEYED));
        let last = crowd.pop().unwrap();
        let mut client = enter(last, &daemon.key(), crate::support::daemon::Knock::ALL);
        fs::write(daemon.root().join("f"), "old").unwrap();
        let reply = client.ask(&Frame::Hash { path: field("f"), offset: 0, limit: None });
        assert_eq!(reply, Frame::HashResponse { hash: blake3_of(b"old") });
        client.end(true);
    }
}
