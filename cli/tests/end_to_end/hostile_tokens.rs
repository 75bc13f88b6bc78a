//! Clients of one daemon against each other: whoever is let in can neither guess the token of a file that another one
//! sends in ranges, nor write to it once it was compared. What is committed is what was hashed.

use crate::support::BACKENDS;
use crate::support::daemon::{Bare, Listening};
use crate::support::direct::{KEYED, Place, SealedEnd};
use crate::support::frames::{Received, Serving, attributes, blake3_of, data, field};
use crate::support::processes::names;
use haul_engine::wire::frame::{Caps, Frame, Kind, Preserve};
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

const BLOCK: u64 = 4 << 20;
const SIZE: u64 = 2 * BLOCK + 13;
/// What the attacker writes, in each of its frames.
static EVIL: [u8; 1 << 20] = [0xee; 1 << 20];

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..SIZE).map(|at| (at / BLOCK) as u8 + 1).collect());

#[track_caller]
fn begun(client: &mut SealedEnd, name: &str) -> u64 {
    let (attributes, preserve) = (attributes(Kind::Regular, SIZE), Preserve::default());
    let reply = client.ask(&Frame::RangeBegin { path: field(name), size: SIZE, attributes, preserve, keep: false });
    let Frame::RangeBegun { token, .. } = reply else { panic!("{reply:?}") };
    token
}

fn range(token: u64, offset: u64, length: u64) -> Frame {
    Frame::RangePut { token, offset, length }
}

/// Puts the blocks of these numbers as they should be.
#[track_caller]
fn put(client: &mut SealedEnd, token: u64, numbers: &[u64]) {
    for &number in numbers {
        let from = (number * BLOCK) as usize;
        let content = &CONTENT[from..CONTENT.len().min(from + BLOCK as usize)];
        client.send(&range(token, number * BLOCK, content.len() as u64));
        content.chunks(1 << 20).for_each(|piece| client.send_bytes(&data(piece)));
        let reply = client.ask(&Frame::Done);
        assert!(matches!(reply, Frame::Kept { .. }), "{reply:?}");
    }
}

fn commit(token: u64) -> Frame {
    Frame::RangeCommit { token, hash: blake3_of(&CONTENT) }
}

/// The other one is alive, and what it was sent before has been taken.
#[track_caller]
fn settle(client: &mut SealedEnd) {
    client.send(&Frame::Done);
    match client.input.next() {
        Some(Received::Frame(Frame::Error { .. } | Frame::Kept { .. })) => {}
        other => panic!("{other:?}"),
    }
    let reply = client.ask(&Frame::Stat { path: field("") });
    assert!(matches!(reply, Frame::StatResponse { is_dir: true, .. }), "{reply:?}");
}

#[track_caller]
fn assert_whole(root: &Path) {
    assert!(fs::read(root.join("f")).unwrap() == *CONTENT, "what has the name is not what was hashed");
    assert_eq!(names(root), ["f"]);
}

/// The attacker knows the token and has the first range open when the file is committed; it writes before and after.
#[track_caller]
fn attack_the_commit(victim: &mut SealedEnd, attacker: &mut SealedEnd, root: &Path) {
    let token = begun(victim, "f");
    attacker.send(&range(token, 0, BLOCK));
    attacker.send_bytes(&data(&EVIL));
    // So that it is open before the victim comes to it.
    linger(victim);
    put(victim, token, &[1, 0, 2]);
    let reply = victim.ask(&commit(token));
    assert_eq!(reply, Frame::Ok { hash: Some(blake3_of(&CONTENT)) });
    assert_whole(root);
    for _ in 0..3 {
        attacker.send_bytes(&data(&EVIL));
    }
    settle(attacker);
    assert_whole(root);
}

/// Goes to and fro, so that what others have sent before is taken by then.
#[track_caller]
fn linger(client: &mut SealedEnd) {
    for _ in 0..20 {
        assert!(matches!(client.ask(&Frame::Stat { path: field("") }), Frame::StatResponse { .. }));
    }
}

#[test]
fn what_another_client_of_the_daemon_writes_after_a_commit_is_in_no_file() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let (mut victim, mut attacker) = (daemon.enter(), daemon.enter());
        for _ in 0..5 {
            attack_the_commit(&mut victim, &mut attacker, &daemon.root());
        }
        victim.end(true);
        attacker.end(true);
    }
}

#[test]
fn what_another_direct_connection_writes_after_a_commit_is_in_no_file() {
    for backend in BACKENDS {
        let mut serving = Serving::agreed(backend, KEYED, Caps::DIRECT_TCP);
        let place = Place::open(&mut serving);
        let (mut victim, mut attacker) = (place.client(true), place.client(true));
        for _ in 0..5 {
            attack_the_commit(&mut victim, &mut attacker, &serving.root());
        }
        victim.end(true);
        attacker.end(true);
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn a_range_that_is_open_when_the_file_is_committed_counts_for_nothing() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        fs::write(daemon.root().join("f"), "old").unwrap();
        let (mut victim, mut other) = (daemon.enter(), daemon.enter());
        let token = begun(&mut victim, "f");
        put(&mut victim, token, &[0, 1, 2]);
        // What was there of it says nothing any more.
        other.send(&range(token, 0, BLOCK));
        other.send_bytes(&data(&EVIL));
        let mut refused = false;
        for _ in 0..2 {
            let reply = victim.ask(&commit(token));
            refused |= matches!(reply, Frame::Error { .. });
            if let Frame::Ok { hash } = reply {
                // It was not there yet.
                assert_eq!(hash, Some(blake3_of(&CONTENT)));
            }
        }
        for _ in 0..3 {
            other.send_bytes(&data(&EVIL));
        }
        settle(&mut other);
        let found = fs::read(daemon.root().join("f")).unwrap();
        assert!(refused && (found == b"old" || found == *CONTENT), "{refused}, {} bytes", found.len());
        victim.end(true);
        other.end(true);
    }
}

#[test]
fn a_commit_is_not_held_up_by_a_connection_that_sends_nothing_more() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let (mut victim, mut silent) = (daemon.enter(), daemon.enter());
        let token = begun(&mut victim, "f");
        silent.send(&range(token, BLOCK, BLOCK));
        silent.send_bytes(&data(&CONTENT[BLOCK as usize..][..1 << 20]));
        linger(&mut victim);
        // As a client does whose connection broke without the server having heard of it.
        put(&mut victim, token, &[0, 1, 2]);
        assert_eq!(victim.ask(&commit(token)), Frame::Ok { hash: Some(blake3_of(&CONTENT)) });
        assert_whole(&daemon.root());
        drop(silent);
        victim.end(true);
    }
}

#[test]
fn one_token_tells_nothing_of_another_and_a_guess_writes_to_no_file() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let (mut victim, mut attacker) = (daemon.enter(), daemon.enter());
        let own = begun(&mut attacker, "own");
        let theirs: Vec<u64> = (0..16).map(|number| begun(&mut victim, &format!("f{number}"))).collect();
        let far = theirs.iter().all(|&token| token.abs_diff(own) > 1 << 20 && token > 1 << 20);
        assert!(far, "{own} is near one of {theirs:?}");
        for guess in (0..200).chain(own + 1..own + 100).chain(own - 100..own) {
            attacker.send(&range(guess, 0, 5));
            attacker.send_bytes(&data(b"guess"));
            let reply = attacker.ask(&Frame::Done);
            assert!(matches!(reply, Frame::Error { .. }), "{guess}: {reply:?}");
        }
        victim.end(true);
        attacker.end(true);
    }
}

#[test]
fn who_listens_without_a_key_takes_every_connection_for_another_client() {
    for backend in BACKENDS {
        let daemon = Listening::with(backend, &[], "127.0.0.1:0", false);
        let (mut one, mut two) = (Bare::greeted(daemon.address), Bare::greeted(daemon.address));
        let (attributes, preserve) = (attributes(Kind::Regular, SIZE), Preserve::default());
        let reply = one.ask(&Frame::RangeBegin { path: field("f"), size: SIZE, attributes, preserve, keep: false });
        let Frame::RangeBegun { token, .. } = reply else { panic!("{reply:?}") };
        for (client, theirs) in [(&mut two, false), (&mut one, true)] {
            client.send(&range(token, 0, 0));
            let reply = client.ask(&Frame::Done);
            assert_eq!(matches!(reply, Frame::Kept { .. }), theirs, "{reply:?}");
        }
    }
}
