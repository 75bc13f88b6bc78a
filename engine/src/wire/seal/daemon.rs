//! What a daemon and its clients, who share a key for good, prove to each other, and make the keys of a connection of.
//!
//! Owns the transcript and the labels. Does not own the frames that carry it, or when they are sent
//! (`session/doorman.rs`). It is what KEYED does, with labels of its own and one difference: the key is there for longer than
//! any connection, so the keys of a connection are made of it *and* of an [`Exchange`](super::Exchange) whose halves nobody
//! keeps. Whoever comes to know the key later cannot open what was recorded before.
//!
//! ```text
//! transcript:  nonce, random, client's public, index, caps, ext | server's public, caps, ext
//!              \____________ client proves this ______________/                            |
//!              \_______________________________ server proves this ________________________/
//! keys:        derive_key(key, shared secret, length of the transcript, transcript)
//! ```

use super::aead::Backend;
use super::{REKEY_RECORDS, Seals, Secret, keyed_mac, keys_of};
use crate::wire::decode::Role;
use crate::wire::frame::{Caps, Ext, Hash};

const KEYS_CONTEXT: &str = "haul 2026-11-26 daemon keys v1";
const NEXT_KEY_CONTEXT: &str = "haul 2026-11-26 daemon next key v1";
const CLIENT_PROOF_CONTEXT: &str = "haul 2026-11-26 daemon client proof v1";
const SERVER_PROOF_CONTEXT: &str = "haul 2026-11-26 daemon server proof v1";

/// What both ends have seen of the handshake.
#[derive(Clone, Debug)]
pub struct Transcript(Vec<u8>);

/// Capabilities and extensions of one greeting.
type Asked = (Caps, Ext);

impl Transcript {
    /// Up to and with the client's greeting: the server's nonce, then the fields of DaemonHello.
    pub fn hello(nonce: &Hash, random: &Hash, public: &Hash, index: u16, asked: Asked) -> Transcript {
        let mut transcript = Transcript([&nonce[..], random, public, &index.to_le_bytes()].concat());
        transcript.numbers(asked);
        transcript
    }

    /// And the fields of DaemonWelcome.
    pub fn welcome(&mut self, public: &Hash, granted: Asked) {
        self.0.extend_from_slice(public);
        self.numbers(granted);
    }

    fn numbers(&mut self, (caps, ext): Asked) {
        self.0.push(caps.0);
        self.0.extend_from_slice(&ext.0.to_le_bytes());
    }

    /// The client's proof that it knows the key.
    pub fn client_proof(&self, key: &Secret) -> Hash {
        keyed_mac(key, CLIENT_PROOF_CONTEXT, &self.0)
    }

    /// The server's.
    pub fn server_proof(&self, key: &Secret) -> Hash {
        keyed_mac(key, SERVER_PROOF_CONTEXT, &self.0)
    }

    /// Both directions of the connection, once both proofs have been seen.
    pub fn seals(&self, key: &Secret, shared: &Secret, role: Role) -> Seals {
        let keys = keys_of(KEYS_CONTEXT, &[key, shared], &self.0);
        Seals::chained(Backend::DEFAULT, REKEY_RECORDS, NEXT_KEY_CONTEXT, &keys, role)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Exchange, Key, LENGTH_BYTES, TAG_BYTES};
    use super::*;
    use crate::wire::seal::sealed_records;
    use std::collections::HashSet;

    const KEY: [u8; 32] = [0x5e; 32];
    const ASKED: (Caps, Ext) = (Caps(0x40), Ext(0x3f));

    fn transcript() -> Transcript {
        let mut transcript = Transcript::hello(&[1; 32], &[2; 32], &[3; 32], 4, ASKED);
        transcript.welcome(&[5; 32], (Caps(0x47), Ext(0x3f)));
        transcript
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The expected bytes were computed by a program that shares no code with this one.
    #[test]
    fn proofs_and_keys_match_their_vectors() {
        let (key, shared) = (Secret::from_bytes(KEY), Secret::from_bytes([6; 32]));
        let hello = Transcript::hello(&[1; 32], &[2; 32], &[3; 32], 4, ASKED);
        assert_eq!(hello.0.len(), 32 + 32 + 32 + 2 + 1 + 4);
        assert_eq!(hex(&hello.client_proof(&key)), "5b1e2c2cd6ed5a0e19fa848af52ec51bff26fe21a2cb019d2f4483445f9ca79e");
        assert_eq!(transcript().0.len(), hello.0.len() + 32 + 1 + 4);
        assert_eq!(
            hex(&transcript().server_proof(&key)),
            "d2d888d5f3e17a1ebb28f042eba9c69828dc5dac1941a3992fa06bfabff79e8a"
        );
        let [to_server, to_client] = keys_of(KEYS_CONTEXT, &[&key, &shared], &transcript().0);
        assert_eq!(hex(to_server.expose()), "ff0cfbc77ab4d5a07ab0c79632824d53196b3e5dca59df28d13e7ea30966bb2f");
        assert_eq!(hex(to_client.expose()), "52ca70cb7b26fc7eef22196a21685540b1c43669784ae712a58ccc7a36b9dfc2");
    }

    #[test]
    fn the_four_labels_and_those_of_direct_connections_are_all_different() {
        let ours = [KEYS_CONTEXT, NEXT_KEY_CONTEXT, CLIENT_PROOF_CONTEXT, SERVER_PROOF_CONTEXT];
        let theirs = [super::super::KEYS_CONTEXT, super::super::NEXT_KEY_CONTEXT];
        assert_eq!(ours.iter().chain(&theirs).collect::<HashSet<_>>().len(), 6);
        let (key, transcript) = (Secret::from_bytes(KEY), transcript());
        assert_ne!(transcript.client_proof(&key), transcript.server_proof(&key));
    }

    #[test]
    fn every_field_changes_the_proofs_and_the_keys() {
        let (key, shared) = (Secret::from_bytes(KEY), Secret::from_bytes([6; 32]));
        let seen = |change: usize| {
            let at = |index: usize| u8::from(index == change);
            let asked = (Caps(0x40 | at(4)), Ext(0x3e | u32::from(at(5))));
            let index = 4 + u16::from(at(3));
            let mut transcript = Transcript::hello(&[1 ^ at(0); 32], &[2 ^ at(1); 32], &[3 ^ at(2); 32], index, asked);
            let client = transcript.client_proof(&key);
            transcript.welcome(&[5 ^ at(6); 32], (Caps(0x46 | at(7)), Ext(0x3e | u32::from(at(8)))));
            let keys = keys_of(KEYS_CONTEXT, &[&key, &shared], &transcript.0).map(|key| *key.expose());
            (client, transcript.server_proof(&key), keys)
        };
        let all: Vec<_> = (0..10).map(seen).collect();
        // The client's proof covers its own six fields, and that nothing has changed is the tenth.
        assert_eq!(all.iter().map(|(client, ..)| client).collect::<HashSet<_>>().len(), 7);
        assert_eq!(all.iter().map(|(_, server, _)| server).collect::<HashSet<_>>().len(), 10);
        assert_eq!(all.iter().map(|(.., keys)| keys).collect::<HashSet<_>>().len(), 10);
    }

    /// Everything else equal: the same key, the same transcript. What is left are the halves that nobody keeps.
    #[test]
    fn another_shared_secret_makes_other_record_keys() {
        let key = Secret::from_bytes(KEY);
        let halves = |client, server| [client, server].map(|byte| Exchange::new(&Secret::from_bytes([byte; 32])));
        let mut seen = HashSet::new();
        for (client, server) in [(11, 12), (11, 13), (14, 12)] {
            let [client, server] = halves(client, server);
            let theirs = server.public();
            let shared = client.agree(&theirs).unwrap();
            for secret in keys_of(KEYS_CONTEXT, &[&key, &shared], &transcript().0) {
                assert!(seen.insert(*secret.expose()), "a key serves twice");
            }
        }
    }

    #[test]
    fn both_ends_open_what_the_other_seals_and_no_seal_is_used_twice() {
        let key = Secret::from_bytes(KEY);
        let before = sealed_records();
        // Key and greetings are the same each time; nonce, random and exchange are not.
        for number in 0..3_u8 {
            let [client, server] =
                [100 + number, 200 + number].map(|byte| Exchange::new(&Secret::from_bytes([byte; 32])));
            let publics = [client.public(), server.public()];
            let mut transcript = Transcript::hello(&[number; 32], &[7; 32], &publics[0], 0, ASKED);
            transcript.welcome(&publics[1], ASKED);
            let shared = [client.agree(&publics[1]).unwrap(), server.agree(&publics[0]).unwrap()];
            let mut client = transcript.seals(&key, &shared[0], Role::Client);
            let mut server = transcript.seals(&key, &shared[1], Role::Server);
            for (from, to) in [(&mut client.sealer, &mut server.opener), (&mut server.sealer, &mut client.opener)] {
                let mut record = [&[0; LENGTH_BYTES][..], b"hello", &[0; TAG_BYTES]].concat();
                from.next().unwrap().seal(&mut record);
                let plain = to.next().unwrap().open(&mut record).unwrap();
                assert_eq!(&record[plain], b"hello");
            }
        }
        assert!(sealed_records() >= before + 6);
    }

    #[test]
    fn the_key_that_follows_a_key_is_the_daemons_own() {
        let keys = [Secret::from_bytes([8; 32]), Secret::from_bytes([9; 32])];
        let mut client = Seals::chained(Backend::DEFAULT, 1, NEXT_KEY_CONTEXT, &keys, Role::Client);
        let _ = client.sealer.next().unwrap();
        let second = client.sealer.next().unwrap();
        let next = super::super::derived(NEXT_KEY_CONTEXT, &keys[0]);
        assert_eq!(second.key.fingerprint, Key::new(Backend::DEFAULT, &next, true).fingerprint);
    }
}
