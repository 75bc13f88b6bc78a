//! The meeting over TCP by hand, with every server: who is let in, and what becomes of the others. Runs where HAUL_BCMR_060
//! and HAUL_BCMR_072 name the real binaries.

use crate::support::interop::peer::Peer;
use crate::support::interop::raw::{self, Raw, about, frame, hello, kind};
use crate::support::interop::speaker::{Dialect, Place, Speaker, frames_of, next_of, with_each};
use crate::support::processes::{LIMIT, wait_for};
use haul_engine::wire::decode::Role;
use haul_engine::wire::seal::{LENGTH_BYTES, Seals, Secret, TAG_BYTES};
use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::Receiver;

const DIRECT: u8 = 0x20;
const SEALED: u8 = 0x40;
const CAPS: u8 = 0x07;
/// The file that is asked about.
const NAME: &str = "some file";
const SIZE: usize = 4321;

/// Every server offers to be met.
#[track_caller]
fn greeted_at(dialect: Dialect, place: Place) -> Speaker {
    let speaker = Speaker::greeted_at(dialect, CAPS | DIRECT, place, "root");
    assert_eq!(speaker.caps & (DIRECT | SEALED), DIRECT, "{dialect:?}");
    fs::write(speaker.root().join(NAME), vec![7; SIZE]).unwrap();
    speaker
}

#[track_caller]
fn greeted(dialect: Dialect) -> Speaker {
    greeted_at(dialect, Place::new())
}

fn open() -> Vec<u8> {
    frame(kind::OPEN_DIRECT_CHANNEL, &[])
}

/// Where to connect to, and the key.
fn address_and_key(ready: &Raw<'_>) -> (String, [u8; 32]) {
    assert_eq!(ready.kind, kind::DIRECT_CHANNEL_READY, "{:?}", ready.error());
    let mut fields = ready.fields();
    (fields.text().unwrap(), fields.raw().unwrap())
}

/// A connection on which the server has asked its question.
struct Met {
    stream: TcpStream,
    replies: Receiver<Raw<'static>>,
    nonce: [u8; 32],
}

fn meet(address: &str) -> Met {
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let stream = TcpStream::connect(address).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    let replies = frames_of(stream.try_clone().unwrap());
    let challenge = next_of(&replies).expect("the server closed the connection");
    assert_eq!(challenge.kind, kind::AUTH_CHALLENGE);
    Met { stream, replies, nonce: challenge.fields().raw().unwrap() }
}

impl Met {
    fn send(&mut self, bytes: &[u8]) {
        // A server that has closed the connection shows in what it said before.
        let _ = self.stream.write_all(bytes);
    }

    fn answer(&mut self, key: &[u8; 32]) {
        let message = [b"bcmr-direct-v1".as_slice(), &self.nonce].concat();
        self.send(&frame(kind::AUTH_HELLO, &[blake3::keyed_hash(key, &message).as_bytes()]));
    }

    /// Proves to be the client, and greets.
    #[track_caller]
    fn enter(mut self, key: [u8; 32], version: u8) -> Inside {
        self.answer(&key);
        self.send(&hello(version, CAPS | SEALED));
        let welcome = next_of(&self.replies).expect("the server closed the connection");
        assert_eq!((welcome.kind, welcome.body.first()), (kind::WELCOME, Some(&version)), "{:?}", welcome.error());
        assert_eq!(welcome.body[1] & (SEALED | DIRECT), SEALED);
        Inside { met: self, seals: Seals::base(&Secret::from_bytes(key), Role::Client) }
    }

    /// Fails unless the server has nothing more to say.
    #[track_caller]
    fn assert_over(&self) {
        assert_eq!(next_of(&self.replies), None);
    }
}

/// A connection on which everything is sealed from here on.
struct Inside {
    met: Met,
    seals: Seals,
}

impl Inside {
    fn record(&mut self, request: &[u8]) -> Vec<u8> {
        let mut record = [&[0; LENGTH_BYTES][..], request, &[0; TAG_BYTES]].concat();
        self.seals.sealer.next().unwrap().seal(&mut record);
        record
    }

    #[track_caller]
    fn ask(&mut self, request: &[u8]) -> Raw<'static> {
        let record = self.record(request);
        self.met.send(&record);
        // From outside, a record looks as a frame does.
        let came = next_of(&self.met.replies).expect("the server closed the connection");
        let mut record = frame(came.kind, &[&came.body]);
        let plain = self.seals.opener.next().unwrap().open(&mut record).expect("the server has not sealed this");
        let frames = raw::split(&record[plain]).unwrap();
        assert_eq!(frames.len(), 1);
        Raw { kind: frames[0].kind, body: frames[0].body.to_vec().into() }
    }

    /// Ends the stream; the server must do so too.
    #[track_caller]
    fn leave(self) {
        self.met.stream.shutdown(Shutdown::Write).unwrap();
        self.met.assert_over();
    }

    /// Fails unless requests are answered, one record each.
    #[track_caller]
    fn assert_is_served(&mut self) {
        for _ in 0..3 {
            let reply = self.ask(&about(kind::STAT, NAME));
            assert_eq!((reply.kind, reply.fields().u64()), (kind::STAT_RESPONSE, Some(SIZE as u64)));
            let reply = self.ask(&about(kind::STAT, "no such file"));
            assert!(reply.error().is_some(), "{reply:?}");
        }
    }
}

#[test]
fn nobody_is_met_who_has_not_said_that_he_would_come() {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, CAPS);
        speaker.send(&open());
        speaker.refusal();
        assert!(speaker.left_over().is_empty());
        speaker.leave();
    });
}

#[test]
fn every_meeting_has_a_place_and_a_key_of_its_own_and_there_are_16_at_most() {
    with_each(|dialect| {
        let mut speaker = greeted(dialect);
        let mut seen = Vec::new();
        for _ in 0..16 {
            let ready = speaker.ask(&open());
            let found = address_and_key(&ready);
            assert!(seen.iter().all(|(address, key)| *address != found.0 && *key != found.1));
            seen.push(found);
        }
        speaker.send(&open());
        speaker.refusal();
        assert!(speaker.left_over().is_empty());
        // Each is good for its own key.
        for (address, key) in seen.into_iter().rev().take(3) {
            meet(&address).enter(key, dialect.version).assert_is_served();
        }
    });
}

#[test]
fn whoever_has_not_the_key_is_left_and_who_has_it_is_met_all_the_same() {
    with_each(|dialect| {
        let mut speaker = greeted(dialect);
        let (address, key) = address_and_key(&speaker.ask(&open()));
        let silent: Vec<Met> = (0..4).map(|_| meet(&address)).collect();
        let mut wrong = meet(&address);
        wrong.answer(&[7; 32]);
        wrong.send(&hello(dialect.version, CAPS | SEALED));
        wrong.assert_over();
        let mut no_answer = meet(&address);
        no_answer.send(&about(kind::STAT, NAME));
        no_answer.assert_over();
        let mut babble = meet(&address);
        babble.send(&[0xff; 100_000]);
        babble.assert_over();
        let mut greeting = meet(&address);
        greeting.send(&hello(dialect.version, CAPS | SEALED));
        greeting.assert_over();
        let right = meet(&address);
        assert!(silent.iter().all(|met| met.nonce != right.nonce));
        right.enter(key, dialect.version).assert_is_served();
    });
}

#[test]
fn whoever_answers_late_is_left_and_the_meeting_stays_open() {
    with_each(|dialect| {
        let mut speaker = greeted(dialect);
        let (address, key) = address_and_key(&speaker.ask(&open()));
        let mut late = meet(&address);
        let silent = meet(&address);
        late.assert_over();
        silent.assert_over();
        late.answer(&key);
        late.send(&hello(dialect.version, CAPS | SEALED));
        late.assert_over();
        meet(&address).enter(key, dialect.version).assert_is_served();
    });
}

#[test]
fn whoever_comes_after_the_time_meets_nobody() {
    with_each(|dialect| {
        let mut speaker = greeted_at(dialect, Place::new().with("BCMR_RENDEZVOUS_TIMEOUT_SECS", "1"));
        let (address, _) = address_and_key(&speaker.ask(&open()));
        assert!(wait_for(LIMIT, || TcpStream::connect(&address).is_err()), "{dialect:?} listens for ever");
        assert!(speaker.left_over().is_empty());
        speaker.leave();
    });
}

#[test]
fn a_server_whose_client_never_comes_ends_after_the_time() {
    with_each(|dialect| {
        let mut speaker = greeted_at(dialect, Place::new().with("BCMR_RENDEZVOUS_TIMEOUT_SECS", "1"));
        address_and_key(&speaker.ask(&open()));
        speaker.leave();
    });
}

#[test]
fn one_is_met_and_nobody_after_him() {
    with_each(|dialect| {
        let mut speaker = greeted(dialect);
        let (address, key) = address_and_key(&speaker.ask(&open()));
        let mut second = meet(&address);
        let mut first = meet(&address).enter(key, dialect.version);
        second.answer(&key);
        second.send(&hello(dialect.version, CAPS | SEALED));
        // The oldest of them forgets this connection and leaves it open.
        if dialect.peer != Peer::Old {
            second.assert_over();
        }
        assert!(wait_for(LIMIT, || TcpStream::connect(&address).is_err()), "{dialect:?} goes on listening");
        first.assert_is_served();
        first.leave();
        speaker.leave();
        second.assert_over();
    });
}

#[test]
fn who_was_met_is_served_though_the_control_session_has_ended() {
    with_each(|dialect| {
        let mut speaker = greeted(dialect);
        let (address, key) = address_and_key(&speaker.ask(&open()));
        speaker.close();
        let mut inside = meet(&address).enter(key, dialect.version);
        inside.assert_is_served();
        inside.leave();
        let ended = speaker.ended();
        assert_eq!((ended.code, ended.rest), (Some(0), Vec::new()), "{dialect:?}: {}", ended.stderr);
    });
}

#[test]
fn whoever_would_not_seal_is_refused_in_plain_words() {
    with_each(|dialect| {
        let mut speaker = greeted(dialect);
        let (address, key) = address_and_key(&speaker.ask(&open()));
        let mut met = meet(&address);
        met.answer(&key);
        met.send(&hello(dialect.version, CAPS));
        let said = next_of(&met.replies).expect("the server closed the connection");
        assert!(said.error().is_some(), "{said:?}");
        met.assert_over();
    });
}

#[test]
fn what_is_not_sealed_or_not_as_it_was_ends_the_connection_without_a_word() {
    let bad: [fn(&mut Inside) -> Vec<u8>; 4] = [
        |_| about(kind::STAT, "some name that is as long as a seal at least"),
        |inside| {
            let mut record = inside.record(&about(kind::STAT, NAME));
            record[LENGTH_BYTES + 7] ^= 1;
            record
        },
        |inside| {
            // A place is left out.
            let _ = inside.record(&about(kind::STAT, NAME));
            inside.record(&about(kind::STAT, NAME))
        },
        |_| [&15_u32.to_le_bytes()[..], &[0; 15]].concat(),
    ];
    for bad in bad {
        with_each(|dialect| {
            let mut speaker = greeted(dialect);
            let (address, key) = address_and_key(&speaker.ask(&open()));
            let mut inside = meet(&address).enter(key, dialect.version);
            inside.assert_is_served();
            let bytes = bad(&mut inside);
            inside.met.send(&bytes);
            inside.met.assert_over();
        });
    }
}
