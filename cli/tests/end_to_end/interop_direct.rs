//! The meeting over TCP by hand: what the real servers do, and haul as far as it offers it. No record is ever opened here;
//! what is proved is who gets as far as to send one. Runs where HAUL_BCMR_060 and HAUL_BCMR_072 name the real binaries.

use crate::support::interop::peer::Peer;
use crate::support::interop::raw::{Raw, about, frame, hello, kind};
use crate::support::interop::speaker::{Speaker, frames_of, next_of, with_each};
use crate::support::processes::LIMIT;
use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc::Receiver;

const DIRECT: u8 = 0x20;
const SEALED: u8 = 0x40;
const CAPS: u8 = 0x07;

/// Runs a script with every server that offers to be met; the real ones do. The others say that they do not.
fn with_each_that_meets(script: impl Fn(&mut Speaker)) {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, CAPS | DIRECT);
        if speaker.caps & DIRECT != 0 {
            return script(&mut speaker);
        }
        assert_eq!(dialect.peer, Peer::Haul);
        speaker.send(&open());
        speaker.refusal();
        assert!(speaker.left_over().is_empty());
    });
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

    /// Fails unless the server has nothing more to say.
    #[track_caller]
    fn assert_over(&self) {
        assert_eq!(next_of(&self.replies), None);
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
    with_each_that_meets(|speaker| {
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
    });
}

#[test]
fn whoever_has_not_the_key_is_left_and_who_has_it_is_met_all_the_same() {
    with_each_that_meets(|speaker| {
        let (address, key) = address_and_key(&speaker.ask(&open()));
        let version = speaker.dialect.version;
        let silent: Vec<Met> = (0..4).map(|_| meet(&address)).collect();
        let mut wrong = meet(&address);
        wrong.answer(&[7; 32]);
        wrong.assert_over();
        let mut no_answer = meet(&address);
        no_answer.send(&about(kind::STAT, "x"));
        no_answer.assert_over();
        let mut right = meet(&address);
        assert!(silent.iter().all(|met| met.nonce != right.nonce));
        right.answer(&key);
        right.send(&hello(version, CAPS | SEALED));
        let welcome = next_of(&right.replies).expect("the server closed the connection");
        assert_eq!((welcome.kind, welcome.body[0]), (kind::WELCOME, version));
        assert_eq!(welcome.body[1] & (SEALED | DIRECT), SEALED);
        // From here on everything is sealed, and this is not.
        right.send(&about(kind::STAT, "some name that is as long as a seal at least"));
        right.assert_over();
    });
}

#[test]
fn whoever_would_not_seal_is_refused_in_plain_words() {
    with_each_that_meets(|speaker| {
        let (address, key) = address_and_key(&speaker.ask(&open()));
        let mut met = meet(&address);
        met.answer(&key);
        met.send(&hello(speaker.dialect.version, CAPS));
        let said = next_of(&met.replies).expect("the server closed the connection");
        assert!(said.error().is_some(), "{said:?}");
        met.assert_over();
    });
}
