//! A daemon: connections that come without ssh, and prove that they know its key.
//!
//! ```text
//! Doorman: Accept -connection-> a Guest (rendezvous.rs) -> Accept ..
//! Guest:   AuthChallenge -> DaemonHello -proof-> DaemonWelcome, then a Server over records
//!                                      +-wrong, late or silent-> closed without a word
//! ```
//! Owns the handshake of both ends, and who is let in how often. What is proved, and what the keys of a connection are made
//! of, is in [`wire::seal::daemon`](crate::wire::seal::daemon). Guests and sessions are bounded apart: strangers cannot take
//! the places of those who know the key. The doorman never ends by itself.

use super::acceptor::{Accepting, Fate, OnVisit, Visit};
use super::meeting::Entropy;
use super::opening::Patience;
use super::rendezvous::{self, Guest, Meeting, Proof, Served, SharedMeeting};
use super::share::Part;
use super::{Context, Failure, Flow, Session, Terms, meeting, range};
use crate::backend::{Completion, DirId, OpKind, StreamId, Time, Token};
use crate::block::Pool;
use crate::wire::decode::Role;
use crate::wire::frame::{Caps, Dialect, Ext, Frame, Hash};
use crate::wire::seal::daemon::Transcript;
use crate::wire::seal::{self, Exchange, Seals, Secret};
use std::net::SocketAddr;

/// What a daemon serves, and to whom.
pub struct Daemon {
    /// What is served.
    pub root: DirId,
    /// Blocks seen before, for dedup.
    pub store: Option<DirId>,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Whoever asks for it is not encrypted.
    pub plain: bool,
    /// How long it waits for a client.
    pub patience: Patience,
    /// Whoever knows it is a client.
    pub key: Secret,
    /// Random bytes nobody can guess.
    pub entropy: Entropy,
    /// Is told of everybody who has come, once he has gone.
    pub on_visit: OnVisit,
}

/// What is the same for all who come to one daemon.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) entropy: Entropy,
    pub(super) on_visit: OnVisit,
}

/// Lets those in who know the key.
pub struct Doorman {
    listener: StreamId,
    meeting: SharedMeeting,
    entropy: Entropy,
    served: Served,
    accepting: Accepting,
    accepted: Vec<(StreamId, Option<SocketAddr>)>,
}

impl Doorman {
    /// Serves what `daemon` says to whoever connects to `listener` and knows the key.
    pub fn new(listener: StreamId, daemon: Daemon) -> Doorman {
        let Daemon { root, store, read_only, plain, patience, key, entropy, on_visit } = daemon;
        let meeting = Meeting::new(key, Proof::Key(Door { entropy, on_visit }), plain);
        let served = Served { root, store, patience, read_only, scope: range::new_scope() };
        Doorman { listener, meeting, entropy, served, accepting: Accepting::default(), accepted: Vec::new() }
    }
}

impl Session for Doorman {
    fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
        self.accepted.extend(self.accepting.end(completion.result, cx.now));
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        // Accept was on its way when there was too much to do: whoever came waits here, and his time has not begun.
        while self.meeting.borrow().has_room()
            && let Some(came) = self.accepted.pop()
        {
            let guest = Guest::new(came, self.meeting.clone(), (self.entropy)(), self.served.clone());
            cx.spawned.push(Box::new(guest));
        }
        if self.accepted.is_empty() && self.meeting.borrow().has_room() && self.accepting.begin(cx.now) {
            cx.submit(0, 0, OpKind::Accept { listener: self.listener });
        }
        Flow::Continue
    }

    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
        // Nobody shall wait at a door that nobody opens.
        cx.submit(0, 0, OpKind::CloseStream { stream: self.listener });
        if let Proof::Key(door) = &self.meeting.borrow().proof {
            (door.on_visit)(Visit { peer: None, traffic: (0, 0), fate: Fate::Served(Err(failure)) });
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        self.accepting.deadline().filter(|_| self.accepted.is_empty() && self.meeting.borrow().has_room())
    }

    fn state_of(&self, _: Token) -> &'static str {
        "doorman"
    }
}

/// What a client has said of itself, until the daemon has answered.
pub(super) struct Knock {
    key: Secret,
    exchange: Exchange,
    transcript: Transcript,
    asked: (Caps, Ext),
}

impl Knock {
    /// The answer to the challenge `nonce`.
    pub(super) fn new(
        key: &Secret,
        nonce: &Hash,
        (random, index): (Hash, u16),
        (caps, ext): (Caps, Ext),
        entropy: Entropy,
    ) -> (Frame, Knock) {
        let exchange = Exchange::new(&Secret::from_bytes(entropy()));
        let public = exchange.public();
        let transcript = Transcript::hello(nonce, &random, &public, index, (caps, ext));
        let mac = transcript.client_proof(key);
        let hello = Frame::DaemonHello { random, public, index, caps, ext, mac };
        (hello, Knock { key: key.clone(), exchange, transcript, asked: (caps, ext) })
    }

    /// What the connection is sealed with, if it is, and what was agreed on, or why whoever answers is not believed.
    pub(super) fn answered(
        mut self,
        public: &Hash,
        (caps, ext): (Caps, Ext),
        mac: &Hash,
    ) -> Result<(Option<Seals>, Terms), &'static str> {
        self.transcript.welcome(public, (caps, ext));
        if !seal::is_same(mac, &self.transcript.server_proof(&self.key)) {
            return Err("the server cannot prove that it knows the key");
        }
        let asked = self.asked.1;
        let (caps, ext) = (self.asked.0.and(caps), asked.and(ext));
        let plain = meeting::is_plain(asked, (caps, ext))?;
        let shared = self.exchange.agree(public).ok_or("the server wants no secret of this connection's own")?;
        let seals = self.transcript.seals(&self.key, &shared, Role::Client);
        Ok(((!plain).then_some(seals), Terms { dialect: Dialect { version: 1, ext }, caps }))
    }
}

/// A client that has proved itself.
pub(super) struct LetIn {
    pub(super) welcome: Frame,
    /// `None` for a connection that is not sealed.
    pub(super) seals: Option<Seals>,
    pub(super) agreed: (Caps, Ext),
    /// What it has of the worker's blocks.
    pub(super) part: Part,
}

/// True when `hello` proves that whoever says it to the challenge `nonce` knows the key, and asks for what he may have.
pub(super) fn is_proved(key: &Secret, nonce: &Hash, hello: &Frame, plain: bool) -> bool {
    let &Frame::DaemonHello { random, public, index, caps, ext, mac } = hello else { return false };
    let transcript = Transcript::hello(nonce, &random, &public, index, (caps, ext));
    let plain = plain && ext.has(Ext::PLAIN);
    seal::is_same(&mac, &transcript.client_proof(key)) && (plain || caps.has(Caps::AEAD))
}

/// Whoever says `hello` to the challenge `nonce`, if he knows the key and wants to be sealed, or not to be where `plain`
/// allows it.
pub(super) fn admit(key: &Secret, nonce: &Hash, hello: &Frame, door: &Door, plain: bool, pool: &Pool) -> Option<LetIn> {
    let &Frame::DaemonHello { random, public, index, caps, ext, .. } = hello else { return None };
    if !is_proved(key, nonce, hello, plain) {
        return None;
    }
    let mut transcript = Transcript::hello(nonce, &random, &public, index, (caps, ext));
    let plain = plain && ext.has(Ext::PLAIN);
    let exchange = Exchange::new(&Secret::from_bytes((door.entropy)()));
    let ours = exchange.public();
    let shared = exchange.agree(&public)?;
    let mut part = Part::new();
    let (caps, ext) = part.agree(rendezvous::direct_terms((caps, ext), plain), pool);
    transcript.welcome(&ours, (caps, ext));
    let welcome = Frame::DaemonWelcome { public: ours, caps, ext, mac: transcript.server_proof(key) };
    let seals = transcript.seals(key, &shared, Role::Server);
    Some(LetIn { welcome, seals: (!plain).then_some(seals), agreed: (caps, ext), part })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::seal::{LENGTH_BYTES, TAG_BYTES};
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const ASKED: (Caps, Ext) = (Caps::AEAD, Ext::ALL);
    const NONCE: Hash = [3; 32];

    fn key() -> Secret {
        Secret::from_bytes([0x5e; 32])
    }

    /// Never the same twice.
    fn entropy() -> Hash {
        static LAST: AtomicU64 = AtomicU64::new(0);
        *blake3::hash(&LAST.fetch_add(1, Ordering::Relaxed).to_le_bytes()).as_bytes()
    }

    fn door() -> Door {
        Door { entropy, on_visit: Rc::new(|_| {}) }
    }

    fn knock() -> (Frame, Knock) {
        Knock::new(&key(), &NONCE, ([4; 32], 0), ASKED, entropy)
    }

    fn answered(knock: Knock, welcome: &Frame) -> Result<(Option<Seals>, Terms), &'static str> {
        let Frame::DaemonWelcome { public, caps, ext, mac } = welcome else { panic!("{welcome:?}") };
        knock.answered(public, (*caps, *ext), mac)
    }

    fn sealed(seals: &mut Seals) -> Vec<u8> {
        let mut record = [&[0; LENGTH_BYTES][..], b"hello", &[0; TAG_BYTES]].concat();
        seals.sealer.next().unwrap().seal(&mut record);
        record
    }

    #[test]
    fn both_ends_agree_and_the_same_key_and_greeting_make_other_records_each_time() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..4 {
            let (hello, knock) = knock();
            let mut let_in = admit(&key(), &NONCE, &hello, &door(), false, &Pool::new(1, 1)).unwrap();
            let (client, terms) = answered(knock, &let_in.welcome).unwrap();
            let mut client = client.expect("nobody asked for anything else");
            assert_eq!((terms.caps, terms.dialect.ext), ASKED);
            let server = let_in.seals.as_mut().unwrap();
            let records = [sealed(&mut client), sealed(server)];
            for (mut record, opener) in records.into_iter().zip([&mut server.opener, &mut client.opener]) {
                assert!(seen.insert(record.clone()), "the same record twice");
                assert!(opener.next().unwrap().open(&mut record).is_ok());
            }
        }
    }

    #[test]
    fn whoever_knows_another_key_or_answers_another_challenge_is_not_let_in() {
        let (hello, _) = knock();
        assert!(admit(&Secret::from_bytes([1; 32]), &NONCE, &hello, &door(), false, &Pool::new(1, 1)).is_none());
        assert!(admit(&key(), &[9; 32], &hello, &door(), false, &Pool::new(1, 1)).is_none());
        let (unsealed, _) = Knock::new(&key(), &NONCE, ([4; 32], 0), (Caps::NONE, Ext::ALL), entropy);
        assert!(admit(&key(), &NONCE, &unsealed, &door(), false, &Pool::new(1, 1)).is_none());
        assert!(
            admit(
                &key(),
                &NONCE,
                &Frame::AuthHello { mac: seal::auth_mac(&key(), &NONCE) },
                &door(),
                false,
                &Pool::new(1, 1)
            )
            .is_none()
        );
    }

    #[test]
    fn a_connection_is_left_unsealed_only_where_both_ends_want_that() {
        let wish = (Caps::AEAD, Ext::ALL.or(Ext::PLAIN));
        let knock = || Knock::new(&key(), &NONCE, ([4; 32], 0), wish, entropy);
        let (hello, plain) = knock();
        let let_in = admit(&key(), &NONCE, &hello, &door(), true, &Pool::new(1, 1)).unwrap();
        let (seals, terms) = answered(plain, &let_in.welcome).unwrap();
        assert!(let_in.seals.is_none() && seals.is_none() && terms.ext(Ext::PLAIN));
        // A daemon that does not allow it seals, which the client does not take.
        let (hello, plain) = knock();
        let let_in = admit(&key(), &NONCE, &hello, &door(), false, &Pool::new(1, 1)).unwrap();
        assert!(let_in.seals.is_some());
        assert!(answered(plain, &let_in.welcome).err().unwrap().contains("does not allow plaintext"));
        // Nobody is made to do without by a daemon that would.
        let (hello, sealed) = Knock::new(&key(), &NONCE, ([4; 32], 0), ASKED, entropy);
        let let_in = admit(&key(), &NONCE, &hello, &door(), true, &Pool::new(1, 1)).unwrap();
        assert!(let_in.seals.is_some() && answered(sealed, &let_in.welcome).unwrap().0.is_some());
    }

    /// Proved, so that only the exchange itself is left to refuse.
    #[test]
    fn neither_end_takes_a_public_key_that_makes_no_secret() {
        let zero = [0; 32];
        let mac = Transcript::hello(&NONCE, &[4; 32], &zero, 0, ASKED).client_proof(&key());
        let (caps, ext) = ASKED;
        let hello = Frame::DaemonHello { random: [4; 32], public: zero, index: 0, caps, ext, mac };
        assert!(admit(&key(), &NONCE, &hello, &door(), false, &Pool::new(1, 1)).is_none());

        let (_, mut knock) = knock();
        let mut transcript = knock.transcript.clone();
        transcript.welcome(&zero, ASKED);
        let mac = transcript.server_proof(&key());
        knock.key = key();
        let refused = knock.answered(&zero, ASKED, &mac);
        assert_eq!(refused.err(), Some("the server wants no secret of this connection's own"));
    }

    #[test]
    fn a_welcome_that_was_changed_or_is_for_another_is_refused() {
        let (hello, _) = knock();
        let let_in = admit(&key(), &NONCE, &hello, &door(), false, &Pool::new(1, 1)).unwrap();
        // Of another connection, with the same key.
        let refused = answered(knock().1, &let_in.welcome);
        assert_eq!(refused.err(), Some("the server cannot prove that it knows the key"));
        let Frame::DaemonWelcome { public, caps, ext, mac } = let_in.welcome else { panic!() };
        let (other, _) = knock();
        let Frame::DaemonHello { mac: reflected, .. } = other else { panic!() };
        let changes = [
            Frame::DaemonWelcome { public: [7; 32], caps, ext, mac },
            Frame::DaemonWelcome { public, caps: Caps(caps.0 | 1), ext, mac },
            Frame::DaemonWelcome { public, caps, ext: Ext(0), mac },
            Frame::DaemonWelcome { public, caps, ext, mac: [0; 32] },
            Frame::DaemonWelcome { public, caps, ext, mac: reflected },
        ];
        for change in changes {
            assert!(answered(knock().1, &change).is_err(), "{change:?}");
        }
    }
}
