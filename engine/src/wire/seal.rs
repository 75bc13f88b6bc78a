//! Sealed records: how the frames of a direct TCP connection travel between two ends that share a secret.
//!
//! Owns the layout of a record, the keys and the nonces. Does not own the handshake that proves the secret, what the
//! plaintext means, or the threads that seal. A record is
//!
//! ```text
//! u32 LE n        ciphertext and tag in bytes, 16 to 16 MiB + 16
//! n - 16 bytes    AES-256-GCM of the plaintext
//! 16 bytes        tag
//! ```
//!
//! and its nonce, which is never sent, is a byte for the direction, the number of the record under its key as u64 LE,
//! and three zeros. There are two schemes:
//!
//! | | base | KEYED |
//! |---|---|---|
//! | keys | the secret itself, both ways | one per direction, from secret and transcript |
//! | additional data | none | the four bytes of the length |
//! | next key | never | after [`REKEY_RECORDS`] records of a direction, numbers from 0 again |
//! | end of the stream | none: whoever cuts the connection between records is not noticed | an empty plaintext |
//!
//! Under the base scheme a secret serves one connection: a second one would seal with the nonces of the first.
//!
//! [`Sealer::next`] fixes the place of a record in the stream, [`Seal::seal`] does the work. In between a [`Seal`] may go
//! to another thread, so that the records of one connection are sealed on several; the same holds for [`Opener`] and
//! [`Open`].
//!
//! ```text
//! Sealer::next -> Seal -> Seal::seal(record)  ~~~ bytes ~~~>  record_len(head)
//!                                                             Opener::next -> Open -> Open::open(record) -> plaintext
//! ```
//!
//! ```
//! use haul_engine::wire::decode::Role;
//! use haul_engine::wire::seal::{LENGTH_BYTES, Seals, Secret, TAG_BYTES, record_len};
//!
//! let secret = Secret::from_bytes([7; 32]);
//! let mut client = Seals::keyed(&secret, b"both randoms", Role::Client);
//! let mut server = Seals::keyed(&secret, b"both randoms", Role::Server);
//!
//! let mut record = vec![0; LENGTH_BYTES + 5 + TAG_BYTES];
//! record[LENGTH_BYTES..][..5].copy_from_slice(b"hello");
//! client.sealer.next()?.seal(&mut record);
//!
//! assert_eq!(record_len([record[0], record[1], record[2], record[3]])?, record.len());
//! let plain = server.opener.next()?.open(&mut record)?;
//! assert_eq!(&record[plain], b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod aead;
pub mod daemon;
mod exchange;
#[cfg(feature = "test-rig")]
mod recorder;
#[cfg(test)]
mod tests;

use super::decode::Role;
use aead::{Backend, Cipher};
use blake3::Hasher;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use zeroize::{Zeroize as _, Zeroizing};

pub use exchange::Exchange;
#[cfg(feature = "test-rig")]
pub use recorder::sealed_records;

/// Bytes of the length before a record.
pub const LENGTH_BYTES: usize = 4;

/// Bytes of the tag behind the ciphertext.
pub const TAG_BYTES: usize = 16;

/// Largest plaintext of a record in bytes. A frame with a length field of [`super::MAX_FRAME`] is four bytes too long.
pub const MAX_PLAIN_BYTES: usize = 16 * 1024 * 1024;

/// Records of one direction under one key of KEYED. Even of the largest these are 2^36 blocks of AES, which gives an
/// attacker a chance of at most 2^72 / 2^129 = 2^-57: the margin that RFC 8446, section 5.5, asks for.
pub const REKEY_RECORDS: u64 = 1 << 16;

/// Sets the keys of a connection apart from everything else that is derived from its secret.
const KEYS_CONTEXT: &str = "haul 2026-11-26 direct connection keys v1";

/// The same for the key that follows a key.
const NEXT_KEY_CONTEXT: &str = "haul 2026-11-26 direct connection next key v1";

/// Before the nonce in what AuthHello proves.
const AUTH_LABEL: &[u8] = b"bcmr-direct-v1";

/// 32 bytes that both ends know and nobody else. Wiped when dropped; on the heap, so that moves leave no copies behind.
#[derive(Clone)]
pub struct Secret(Box<Zeroizing<[u8; 32]>>);

impl Secret {
    /// From the bytes as they came through ssh, or from the random source.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Secret {
        let secret = Secret::filled(|place| place.copy_from_slice(&bytes));
        bytes.zeroize();
        secret
    }

    /// The bytes. Whoever copies them wipes the copy.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn filled(fill: impl FnOnce(&mut [u8])) -> Secret {
        let mut secret = Secret(Box::default());
        fill(secret.0.as_mut_slice());
        secret
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The proof of the base protocol's AuthHello: BLAKE3 keyed with the secret, of a label and the server's `nonce`.
pub fn auth_mac(secret: &Secret, nonce: &[u8; 32]) -> [u8; 32] {
    let mut hasher = Zeroizing::new(Hasher::new_keyed(secret.expose()));
    *hasher.update(AUTH_LABEL).update(nonce).finalize().as_bytes()
}

/// The proof of KEYED's handshake: BLAKE3 of the transcript, keyed with a key derived from the secret for
/// `context_label` alone (BLAKE3 derive_key). Each end has a label of its own, or its proof could be sent back to it.
pub fn keyed_mac(secret: &Secret, context_label: &'static str, transcript: &[u8]) -> [u8; 32] {
    let key = derived(context_label, secret);
    *Zeroizing::new(Hasher::new_keyed(key.expose())).update(transcript).finalize().as_bytes()
}

/// Whether two proofs are the same, in a time that does not depend on where they differ.
pub fn is_same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    // This comparison, unlike that of arrays, takes constant time.
    blake3::Hash::from_bytes(*a) == blake3::Hash::from_bytes(*b)
}

fn derived(context: &str, from: &Secret) -> Secret {
    let mut hasher = Zeroizing::new(Hasher::new_derive_key(context));
    let mut output = Zeroizing::new(hasher.update(from.expose()).finalize_xof());
    Secret::filled(|bytes| output.fill(bytes))
}

/// The first keys of KEYED: to the server, to the client.
fn connection_keys(secret: &Secret, transcript: &[u8]) -> [Secret; 2] {
    keys_of(KEYS_CONTEXT, &[secret], transcript)
}

/// Keys for both directions, of these secrets and what both ends have seen: to the server, to the client.
fn keys_of(context: &str, secrets: &[&Secret], transcript: &[u8]) -> [Secret; 2] {
    let mut hasher = Zeroizing::new(Hasher::new_derive_key(context));
    for secret in secrets {
        hasher.update(secret.expose());
    }
    hasher.update(&(transcript.len() as u64).to_le_bytes()).update(transcript);
    let mut output = Zeroizing::new(hasher.finalize_xof());
    let to_server = Secret::filled(|bytes| output.fill(bytes));
    let to_client = Secret::filled(|bytes| output.fill(bytes));
    [to_server, to_client]
}

/// Which way a record travels. The number is the first byte of its nonce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the client.
    ToServer = 1,
    /// From the server.
    ToClient = 2,
}

/// The connection has used up its numbers. A new connection has new ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the direct connection has sent as many records as one key may seal; a new connection can go on")]
pub struct Exhausted;

/// A record that the peer did not seal, or not at this place. The connection is over; nothing is sent to the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a record of the direct connection is not what the peer sealed: it was changed on the way, or is out of order")]
pub struct Forged;

/// A length that no record has: below 16 bytes or above 16 MiB + 16. The connection is over; nothing is sent to the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the peer announced a sealed record of {0} bytes, outside of 16 bytes to 16 MiB + 16")]
pub struct BadLength(pub u32);

/// Length of a whole record in bytes, these four included, to wait for before [`Open::open`].
pub fn record_len(head: [u8; LENGTH_BYTES]) -> Result<usize, BadLength> {
    let len = u32::from_le_bytes(head);
    match len as usize {
        sealed @ TAG_BYTES.. if sealed <= MAX_PLAIN_BYTES + TAG_BYTES => Ok(LENGTH_BYTES + sealed),
        _ => Err(BadLength(len)),
    }
}

/// Both directions of one connection, as one end sees them.
#[derive(Debug)]
pub struct Seals {
    /// Of what this end sends.
    pub sealer: Sealer,
    /// Of what the peer sends.
    pub opener: Opener,
}

impl Seals {
    /// As the base protocol does it. `secret` must never have served another connection.
    pub fn base(secret: &Secret, role: Role) -> Seals {
        Seals::base_by(Backend::DEFAULT, secret, role)
    }

    /// As two haul peers do it. `transcript` is what both have seen of the handshake, which has something random from
    /// each of them: no two connections of a secret may have the same.
    pub fn keyed(secret: &Secret, transcript: &[u8], role: Role) -> Seals {
        Seals::keyed_by(Backend::DEFAULT, REKEY_RECORDS, secret, transcript, role)
    }

    fn base_by(backend: Backend, secret: &Secret, role: Role) -> Seals {
        let key = Arc::new(Key::new(backend, secret, false));
        Seals::new(role, |direction| Chain { direction, key: key.clone(), number: 0, rekey: None })
    }

    fn keyed_by(backend: Backend, interval: u64, secret: &Secret, transcript: &[u8], role: Role) -> Seals {
        let keys = connection_keys(secret, transcript);
        Seals::chained(backend, interval, NEXT_KEY_CONTEXT, &keys, role)
    }

    /// With a key for each direction, to the server and to the client, and others that follow them.
    fn chained(backend: Backend, interval: u64, next: &'static str, keys: &[Secret; 2], role: Role) -> Seals {
        let [to_server, to_client] = keys;
        Seals::new(role, |direction| {
            let current = match direction {
                Direction::ToServer => to_server.clone(),
                Direction::ToClient => to_client.clone(),
            };
            let key = Arc::new(Key::new(backend, &current, true));
            Chain { direction, key, number: 0, rekey: Some(Rekey { backend, current, interval, next }) }
        })
    }

    fn new(role: Role, chain: impl Fn(Direction) -> Chain) -> Seals {
        let (out, back) = match role {
            Role::Client => (Direction::ToServer, Direction::ToClient),
            Role::Server => (Direction::ToClient, Direction::ToServer),
        };
        Seals { sealer: Sealer(chain(out)), opener: Opener(chain(back)) }
    }
}

/// A key ready for use, and what is done with it.
struct Key {
    cipher: Cipher,
    /// The length of a record is additional data.
    binds_length: bool,
    #[cfg(feature = "test-rig")]
    fingerprint: [u8; 32],
}

impl Key {
    fn new(backend: Backend, secret: &Secret, binds_length: bool) -> Key {
        Key {
            cipher: Cipher::new(backend, secret.expose()),
            binds_length,
            #[cfg(feature = "test-rig")]
            fingerprint: *blake3::hash(secret.expose()).as_bytes(),
        }
    }

    fn additional<'head>(&self, head: &'head [u8; LENGTH_BYTES]) -> &'head [u8] {
        if self.binds_length { head } else { &[] }
    }
}

/// Keys and numbers of one direction.
struct Chain {
    direction: Direction,
    key: Arc<Key>,
    /// Of the next record under this key.
    number: u64,
    /// None in the base scheme.
    rekey: Option<Rekey>,
}

/// What the next key is made from, and when.
struct Rekey {
    backend: Backend,
    current: Secret,
    /// Records under one key.
    interval: u64,
    /// Sets the key that follows a key apart.
    next: &'static str,
}

impl Chain {
    fn next(&mut self) -> Result<(Arc<Key>, [u8; 12]), Exhausted> {
        if let Some(rekey) = &mut self.rekey
            && self.number == rekey.interval
        {
            rekey.current = derived(rekey.next, &rekey.current);
            self.key = Arc::new(Key::new(rekey.backend, &rekey.current, self.key.binds_length));
            self.number = 0;
        }
        let mut nonce = [0; 12];
        nonce[0] = self.direction as u8;
        nonce[1..9].copy_from_slice(&self.number.to_le_bytes());
        self.number = self.number.checked_add(1).ok_or(Exhausted)?;
        Ok((self.key.clone(), nonce))
    }

    fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name).field("direction", &self.direction).field("number", &self.number).finish_non_exhaustive()
    }
}

/// Gives the records of one direction their places.
pub struct Sealer(Chain);

impl Sealer {
    /// The next record's place. The peer opens records in the order of these calls, so each is sealed and sent in that
    /// order, none left out.
    #[allow(clippy::should_implement_trait, reason = "it can fail, and never ends")]
    pub fn next(&mut self) -> Result<Seal, Exhausted> {
        let (key, nonce) = self.0.next()?;
        Ok(Seal { key, nonce })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe("Sealer", f)
    }
}

/// The right to seal one record, once.
///
/// ```compile_fail,E0382
/// # use haul_engine::wire::{decode::Role, seal::{Seals, Secret}};
/// let seal = Seals::base(&Secret::from_bytes([7; 32]), Role::Client).sealer.next().unwrap();
/// seal.seal(&mut [0; 20]);
/// seal.seal(&mut [0; 20]);
/// ```
#[must_use = "the peer cannot open what follows a record that is left out"]
pub struct Seal {
    key: Arc<Key>,
    nonce: [u8; 12],
}

impl Seal {
    /// Seals in place. `record` is [`LENGTH_BYTES`], the plaintext, and [`TAG_BYTES`]; length and tag are written.
    ///
    /// Panics where `record` has no room for both, or the plaintext is longer than [`MAX_PLAIN_BYTES`].
    pub fn seal(self, record: &mut [u8]) {
        let Some((head, sealed)) = record.split_first_chunk_mut::<LENGTH_BYTES>() else {
            panic!("a record has a length")
        };
        *head = u32::try_from(sealed.len()).unwrap_or(u32::MAX).to_le_bytes();
        assert!(record_len(*head).is_ok(), "a plaintext of at most 16 MiB, and a tag");
        let Some((plain, tag)) = sealed.split_last_chunk_mut::<TAG_BYTES>() else {
            unreachable!("record_len refuses what has no tag")
        };
        #[cfg(feature = "test-rig")]
        recorder::record(self.key.fingerprint, self.nonce);
        *tag = self.key.cipher.seal(self.nonce, self.key.additional(head), plain);
    }
}

/// Makes several records of a plaintext that stands in one, behind room for a length: each of its parts, of these lengths,
/// moves back behind the tag of the one before it. `records` is as long as they become.
///
/// Panics where it has no room for them.
pub fn seal_all(seals: Vec<(Seal, usize)>, mut records: &mut [u8]) {
    const AROUND: usize = LENGTH_BYTES + TAG_BYTES;
    let mut end = LENGTH_BYTES + seals.iter().map(|(_, len)| len).sum::<usize>();
    for (before, (_, len)) in seals.iter().enumerate().rev() {
        records.copy_within(end - len..end, end - len + before * AROUND);
        end -= len;
    }
    for (seal, len) in seals {
        let (record, rest) = std::mem::take(&mut records).split_at_mut(len + AROUND);
        seal.seal(record);
        records = rest;
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").finish_non_exhaustive()
    }
}

/// Knows the places of the records that come.
pub struct Opener(Chain);

impl Opener {
    /// The place of the next record that came. After a [`Forged`] none is taken any more.
    #[allow(clippy::should_implement_trait, reason = "it can fail, and never ends")]
    pub fn next(&mut self) -> Result<Open, Exhausted> {
        let (key, nonce) = self.0.next()?;
        Ok(Open { key, nonce })
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe("Opener", f)
    }
}

/// What it takes to open one record.
#[must_use = "what follows a record that is left out cannot be opened"]
pub struct Open {
    key: Arc<Key>,
    nonce: [u8; 12],
}

impl Open {
    /// Opens in place: `record` is what came, [`record_len`] bytes. Returns where in it the plaintext stands; an empty
    /// one is the end of a KEYED stream.
    ///
    /// After [`Forged`] the content of `record` means nothing, and neither does what other threads make of later records.
    pub fn open(self, record: &mut [u8]) -> Result<Range<usize>, Forged> {
        let len = record.len();
        let (head, sealed) = record.split_first_chunk_mut::<LENGTH_BYTES>().ok_or(Forged)?;
        if record_len(*head) != Ok(len) {
            return Err(Forged);
        }
        self.key.cipher.open(self.nonce, self.key.additional(head), sealed)?;
        Ok(LENGTH_BYTES..len - TAG_BYTES)
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").finish_non_exhaustive()
    }
}
