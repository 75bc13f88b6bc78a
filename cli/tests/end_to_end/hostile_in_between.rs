//! Somebody between a real client and a real server, on a direct connection: he learns nothing of the content, and what he
//! changes is noticed before anything has a name.

use super::hostile_direct_client::{listener, offer, run, says_no_more, taken};
use crate::support::BACKENDS;
use crate::support::direct::{CHALLENGE_BYTES, KEYED, KEYED_HELLO_BYTES, KEYED_WELCOME_BYTES, Place};
use crate::support::frames::{Serving, attributes};
use crate::support::processes::{Ended, names};
use haul_engine::wire::frame::{Caps, Frame, Kind};
use haul_engine::wire::seal::LENGTH_BYTES;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Up,
    Down,
}

/// What went through the one in between: up, and down.
type Captured = Arc<Mutex<[Vec<u8>; 2]>>;

/// Hands on what comes, with a bit of the byte at `flip` changed.
fn hand_on(mut from: TcpStream, mut to: TcpStream, flip: Option<usize>, captured: &Captured, index: usize) {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if let Some(flip) = flip.filter(|flip| (at..at + count).contains(flip)) {
            buffer[flip - at] ^= 1;
        }
        captured.lock().unwrap()[index].extend_from_slice(&buffer[..count]);
        at += count;
        if to.write_all(&buffer[..count]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies a file to a real server through somebody in between. What the server has then, and what went through.
fn in_between(backend: &str, source: &Path, flip: Option<(Way, usize)>) -> (Ended, Vec<(OsString, Vec<u8>)>, Captured) {
    let captured = Captured::default();
    let mut serving = Serving::agreed(backend, KEYED, Caps::DIRECT_TCP);
    let root = serving.root();
    fs::write(root.join("f"), "old").unwrap();
    let ended = run(backend, "direct", source.into(), "far:f".into(), |far| {
        let place = Place::open(&mut serving);
        let (listener, address) = listener();
        let answer = Frame::DirectChannelReady { address: address.into_bytes(), key: place.secret };
        offer(far, KEYED, &answer);
        // The old file, asked about there.
        far.looked_up(Some(attributes(Kind::Regular, 3)));
        let client = taken(far, &listener).expect("the client connects");
        let server = TcpStream::connect(place.address).unwrap();
        let of = |way| flip.and_then(|(which, at)| (which == way).then_some(at));
        std::thread::scope(|scope| {
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            scope.spawn(|| hand_on(from, to, of(Way::Up), &captured, 0));
            scope.spawn(|| hand_on(server, client, of(Way::Down), &captured, 1));
        });
        says_no_more(far);
    });
    let left = names(&root).into_iter().map(|name| (name.clone(), fs::read(root.join(&name)).unwrap())).collect();
    serving.assert_usable();
    assert_eq!(serving.end().code, Some(0));
    (ended, left, captured)
}

#[test]
fn whoever_listens_learns_nothing_of_the_content() {
    for backend in BACKENDS {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let line = "the same line again and again, which nobody but the two ends may read\n";
        let text = line.repeat((1 << 20) / line.len());
        fs::write(dir.path().join("text"), &text).unwrap();
        let (ended, left, captured) = in_between(backend, &dir.path().join("text"), None);
        ended.assert_exit(0);
        assert!(left == [("f".into(), text.clone().into_bytes())], "{backend}");
        let captured = captured.lock().unwrap();
        assert!(captured[0].len() > text.len(), "{}", captured[0].len());
        for way in &*captured {
            for piece in line.as_bytes().chunks(8).filter(|piece| piece.len() == 8) {
                assert!(!way.windows(8).any(|bytes| bytes == piece), "{}", piece.escape_ascii());
            }
            // Nor that its lines are the same: no 16 bytes come twice in a row of 64 KiB.
            let mut seen = std::collections::HashSet::new();
            assert!(way.chunks_exact(16).all(|bytes| seen.insert(bytes)));
        }
    }
}

#[test]
fn a_bit_changed_anywhere_on_the_way_is_noticed_and_nothing_is_published() {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let source = dir.path().join("source");
    fs::write(&source, vec![6; 300_000]).unwrap();
    for (first, backend) in BACKENDS.into_iter().enumerate() {
        // The handshake, a little behind it, and some of the content. Not the first record's length: where that grows, one
        // waits for what never comes, which whoever stands in between can always bring about.
        let of = |way, handshake: usize| {
            let behind = handshake + LENGTH_BYTES..handshake + LENGTH_BYTES + 40;
            (first..handshake).chain(behind).step_by(4).map(move |at| (way, at))
        };
        let up = of(Way::Up, KEYED_HELLO_BYTES).chain([1_000, 100_000, 250_000].map(|at| (Way::Up, at)));
        let down = of(Way::Down, CHALLENGE_BYTES + KEYED_WELCOME_BYTES).filter(|(_, at)| *at < 100);
        let flips: Vec<(Way, usize)> = up.chain(down).collect();
        let share = flips.len().div_ceil(4);
        std::thread::scope(|scope| {
            for flips in flips.chunks(share) {
                let source = &source;
                scope.spawn(move || {
                    for &flip in flips {
                        eprintln!("{backend}, {flip:?}");
                        let (ended, left, _) = in_between(backend, source, Some(flip));
                        assert!(
                            matches!(ended.status.code(), Some(2 | 10 | 12 | 23 | 35)),
                            "{backend}, {flip:?}: {ended:?}"
                        );
                        // The answer to a file that is there already changes nothing about it.
                        let answered = flip.0 == Way::Down && flip.1 > CHALLENGE_BYTES + KEYED_WELCOME_BYTES;
                        let published = answered && left == [("f".into(), vec![6; 300_000])];
                        assert!(published || left == [("f".into(), b"old".to_vec())], "{backend}, {flip:?}");
                    }
                });
            }
        });
    }
}
