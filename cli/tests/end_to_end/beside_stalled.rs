//! Clients of a daemon that stop in the middle of something, with their connections open, and come again and again: they take
//! nothing from others.

use crate::support::daemon::{Knock, Listening, enter};
use crate::support::direct::{Guest, Place, SealedEnd};
use crate::support::frames::{Received, Serving, blake3_of, bytes_of, compressed, data, field};
use crate::support::pressure::peak_memory;
use crate::support::processes::{complete, names, wait_for};
use crate::support::{BACKENDS, random_file};
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame};
use haul_engine::wire::seal::Secret;
use haul_engine::wire::{MAX_BLOCK, MAX_FRAME};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

const PAIRS: [(&str, &str); 2] = [("uring", "poll"), ("poll", "uring")];
/// All places of a daemon but one for a copy, and one for the next of them.
const OTHERS: usize = 14;
const ZSTD: Knock = Knock { caps: Caps(Caps::AEAD.0 | Caps::ZSTD.0), ..Knock::ALL };
/// Below what a daemon gives a client that does nothing before it is cut off.
const SOON: Duration = Duration::from_secs(40);

/// Digits, which Zstandard makes half as much of.
fn text(dir: &Path, len: usize) -> Vec<u8> {
    random_file(&dir.join("random"), len.div_ceil(2), 5);
    let random = fs::read(dir.join("random")).unwrap();
    random.iter().flat_map(|byte| [b'0' + byte % 16, b'0' + byte / 16]).take(len).collect()
}

/// Where a daemon lets those in who know its key.
struct Door(SocketAddr, Secret);

fn door(daemon: &Listening) -> Door {
    Door(daemon.address, daemon.key())
}

fn client(Door(address, key): &Door) -> SealedEnd {
    enter(Guest::come(*address), key, ZSTD)
}

/// Has announced 4 MiB that are compressed, whatever was agreed on, and sends a KiB of them.
fn sends_no_more(door: &Door, number: usize) -> SealedEnd {
    let mut client = client(door);
    client.send(&Frame::Put { path: field(format!("stalled-{number}")), size: 1 << 30, offset: 0, overwrite: true });
    let frame = compressed(2, MAX_BLOCK, &vec![7; 3 << 20]);
    // Past the 128 KiB from which a record has a block of its own.
    client.send_bytes(&frame[..200_000]);
    client
}

/// Asks for a large file, and takes nothing of it.
fn reads_nothing(door: &Door) -> SealedEnd {
    let mut client = client(door);
    client.send(&Frame::Get { path: field("large"), offset: 0 });
    client
}

/// Asks for many small ones, and takes none of them.
fn reads_nothing_small(door: &Door) -> SealedEnd {
    let mut client = client(door);
    (0..32).for_each(|number| client.send(&Frame::Get { path: field(format!("small/{number}")), offset: 0 }));
    client
}

#[test]
fn copies_go_on_beside_clients_that_stop_anywhere() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let text = text(dir.path(), 24 << 20);
        fs::write(dir.path().join("up"), &text).unwrap();
        fs::write(daemon.root().join("large"), &text).unwrap();
        fs::create_dir(daemon.root().join("small")).unwrap();
        (0..32).for_each(|number| fs::write(daemon.root().join(format!("small/{number}")), &text[..60_000]).unwrap());
        let (are_there, came) = std::sync::mpsc::channel();
        let done = AtomicBool::new(false);
        let door = door(&daemon);
        std::thread::scope(|scope| {
            scope.spawn(|| come_again_and_again(&door, are_there, &done));
            came.recv().unwrap();
            copy_all(&daemon, near, dir.path(), &text);
            done.store(true, Ordering::Relaxed);
        });
    }
}

/// Clients that have stopped, until it is over; each comes back.
fn come_again_and_again(door: &Door, are_there: Sender<()>, done: &AtomicBool) {
    let stop = |number| match number % 3 {
        0 => sends_no_more(door, number),
        1 => reads_nothing(door),
        _ => reads_nothing_small(door),
    };
    let mut stalled: VecDeque<SealedEnd> = (0..OTHERS).map(stop).collect();
    are_there.send(()).unwrap();
    for number in 0.. {
        if wait_for(Duration::from_millis(500), || done.load(Ordering::Relaxed)) {
            return;
        }
        stalled.push_back(stop(number));
        drop(stalled.pop_front());
    }
}

fn copy_all(daemon: &Listening, near: &str, dir: &Path, text: &[u8]) {
    let began = Instant::now();
    for codec in ["zstd", "lz4", "none"] {
        let flags = ["--compress", codec, "--connections", "1"];
        daemon.copy(near, &flags, dir.join("up"), daemon.at("up")).assert_exit(0);
        daemon.copy(near, &flags, daemon.at("large"), dir.join("down")).assert_exit(0);
        assert!(fs::read(daemon.root().join("up")).unwrap() == text);
        assert!(fs::read(dir.join("down")).unwrap() == text);
    }
    daemon.copy(near, &["-r"], daemon.at("small/"), dir.join("tree")).assert_exit(0);
    assert_eq!(fs::read_dir(dir.join("tree")).unwrap().count(), 32);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// With sixteen blocks for each of those that take nothing, six had all.
#[test]
fn direct_connections_of_one_client_that_stop_leave_the_others_what_they_need() {
    for backend in BACKENDS {
        let mut serving =
            Serving::agreed(backend, Dialect { version: 1, ext: Ext::ALL.or(Ext::KEYED) }, Caps::DIRECT_TCP);
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let text = text(dir.path(), 24 << 20);
        fs::write(serving.root().join("large"), &text).unwrap();
        let place = Place::open(&mut serving);
        let stalled: Vec<SealedEnd> = (0..12)
            .map(|_| {
                let mut client = place.client(true);
                client.send(&Frame::Get { path: field("large"), offset: 0 });
                client
            })
            .collect();
        let began = Instant::now();
        let mut other = place.client(true);
        other.send(&Frame::Get { path: field("large"), offset: 0 });
        let mut got = Vec::new();
        while got.len() < text.len() {
            match other.input.next() {
                Some(Received::Data(content)) => got.extend(content),
                Some(Received::Frame(Frame::Meta { .. })) => {}
                reply => panic!("{reply:?}"),
            }
        }
        assert!(got == text);
        assert!(matches!(other.input.next(), Some(Received::Frame(Frame::Ok { .. }))));
        other.send(&Frame::Put { path: field("up"), size: text.len() as u64, offset: 0, overwrite: true });
        text.chunks(500_000).for_each(|part| other.send_bytes(&data(part)));
        other.send(&Frame::Commit { hash: blake3_of(&text) });
        assert!(matches!(other.input.next(), Some(Received::Frame(Frame::Ok { .. }))));
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        drop(stalled);
    }
}

#[test]
fn what_was_not_agreed_on_is_refused_and_only_that() {
    for (_, far) in PAIRS {
        let daemon = Listening::start(far);
        // The only one to which it is granted.
        let _granted = client(&door(&daemon));
        let mut other = client(&door(&daemon));
        other.send(&Frame::Put { path: field("f"), size: 4 << 20, offset: 0, overwrite: true });
        for part in compressed(2, MAX_BLOCK, &vec![7; 600_000]).chunks(500_000) {
            other.send_bytes(part);
        }
        other.send(&Frame::Done);
        match other.input.next() {
            Some(Received::Frame(Frame::Error { message, .. })) => {
                let text = String::from_utf8(message).unwrap();
                assert!(text.contains("4194304 bytes compressed as one were not agreed on"), "{text}");
            }
            reply => panic!("{reply:?}"),
        }
        assert!(matches!(other.ask(&Frame::Stat { path: field("") }), Frame::StatResponse { .. }));
        assert_eq!(names(&daemon.root()), Vec::<OsString>::new());
        // A record is no longer than what a block holds, whatever is in it.
        let record = other.record(&vec![0; 600_000]);
        other.send_raw(&record);
        assert_eq!(other.rest().0, []);
    }
}

#[test]
fn requests_that_never_become_whole_cost_the_daemon_no_more_than_it_has_set_aside() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let before = peak_memory(daemon.pid());
        let mut clients: Vec<SealedEnd> = (0..OTHERS).map(|_| daemon.enter()).collect();
        let begin = Frame::Stat { path: field("x".repeat(MAX_FRAME - 100)) };
        for client in &mut clients {
            let bytes = bytes_of(&begin, client.dialect);
            // As many as there is room for here: one that is refused takes no more.
            for part in bytes[..bytes.len() - 10].chunks(400_000) {
                client.send_bytes(part);
            }
        }
        let refused = clients.iter_mut().filter_map(|client| {
            client.stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client.input.next())).ok()??;
            match told {
                Received::Frame(Frame::Error { message, code: ErrorCode::BUSY }) => Some(message),
                other => panic!("{other:?}"),
            }
        });
        let refused: Vec<Vec<u8>> = refused.collect();
        assert!(refused.len() >= OTHERS - 2, "{} were refused", refused.len());
        assert!(String::from_utf8_lossy(&refused[0]).contains("no memory for a request of this size"));
        let mib = (peak_memory(daemon.pid()) - before) >> 20;
        assert!(mib < 64, "{mib} MiB for requests that are not whole");
        fs::write(daemon.root().join("f"), "x").unwrap();
        let ended = complete(daemon.command(near, "ls", &[]).arg(daemon.at("")));
        ended.assert_exit(0);
        assert_eq!(ended.stdout, "f\n");
    }
}
