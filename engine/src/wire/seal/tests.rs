//! Tests of sealed records. The recorder watches all of them: whatever seals here takes a secret of its own.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashSet;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const BACKENDS: [Backend; 2] = [Backend::AwsLc, Backend::PureRust];
const DONE: &str = "01 00 00 00 09";

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|character| !character.is_whitespace()).collect();
    digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The secret of the reference vectors: 00 01 02 .. 1f.
fn reference() -> Secret {
    Secret::from_bytes(std::array::from_fn(|index| index as u8))
}

fn fresh() -> Secret {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    Secret::from_bytes(*blake3::hash(&serial.to_le_bytes()).as_bytes())
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Scheme {
    Base,
    /// With so many records under one key.
    Keyed(u64),
}

const SCHEMES: [Scheme; 2] = [Scheme::Base, Scheme::Keyed(REKEY_RECORDS)];

fn seals(backend: Backend, scheme: Scheme, secret: &Secret, role: Role) -> Seals {
    match scheme {
        Scheme::Base => Seals::base_by(backend, secret, role),
        Scheme::Keyed(interval) => Seals::keyed_by(backend, interval, secret, b"transcript", role),
    }
}

/// Every scheme on every backend, each with client and server.
fn pairs() -> impl Iterator<Item = (Scheme, Seals, Seals)> {
    SCHEMES.into_iter().flat_map(|scheme| {
        BACKENDS.into_iter().map(move |backend| {
            let secret = fresh();
            let [client, server] = [Role::Client, Role::Server].map(|role| seals(backend, scheme, &secret, role));
            (scheme, client, server)
        })
    })
}

fn unsealed(plain: &[u8]) -> Vec<u8> {
    [&[0; LENGTH_BYTES], plain, &[0; TAG_BYTES]].concat()
}

fn sealed(sealer: &mut Sealer, plain: &[u8]) -> Vec<u8> {
    let mut record = unsealed(plain);
    sealer.next().unwrap().seal(&mut record);
    record
}

fn opened(opener: &mut Opener, record: &[u8]) -> Result<Vec<u8>, Forged> {
    let mut record = record.to_vec();
    let plain = opener.next().unwrap().open(&mut record)?;
    Ok(record[plain].to_vec())
}

#[test]
fn base_records_match_the_reference_vectors() {
    let c2s = [
        (DONE, "15 00 00 00 e3 2c 82 3f ad c4 52 5c 72 98 2e e1 8f e6 fa 84 d0 aa 18 77 0c"),
        (
            "07 00 00 00 03 02 00 00 00 2f 78",
            "1b 00 00 00 1c 48 63 cb 8f 6e 4c 45 67 6b f4 5e 3c 8a 23 32 25 81 91 a8 20 aa 91 e5 94 5a 61",
        ),
    ];
    let s2c = [("02 00 00 00 82 00", "16 00 00 00 e4 6e eb 60 78 a5 8b 07 fb d6 69 29 b2 ef 16 bd e6 6b c0 23 75 3f")];
    let mut client = Seals::base(&reference(), Role::Client);
    let mut server = Seals::base(&reference(), Role::Server);
    for (sealer, vectors) in [(&mut client.sealer, &c2s[..]), (&mut server.sealer, &s2c[..])] {
        for (plain, vector) in vectors {
            assert_eq!(hex(&sealed(sealer, &unhex(plain))), hex(&unhex(vector)));
        }
    }
    for backend in BACKENDS {
        let mut client = Seals::base_by(backend, &reference(), Role::Client);
        let mut server = Seals::base_by(backend, &reference(), Role::Server);
        for (opener, vectors) in [(&mut server.opener, &c2s[..]), (&mut client.opener, &s2c[..])] {
            for (plain, vector) in vectors {
                assert_eq!(opened(opener, &unhex(vector)), Ok(unhex(plain)), "{backend:?}");
            }
        }
        // Below the recorder, to which the same record sealed by the other is the same nonce used twice.
        let cipher = Cipher::new(backend, reference().expose());
        for (direction, vectors) in [(1, &c2s[..]), (2, &s2c[..])] {
            for (number, (plain, vector)) in vectors.iter().enumerate() {
                let mut text = unhex(plain);
                let nonce = [direction, number as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let tag = cipher.seal(nonce, &[], &mut text);
                assert_eq!([text, tag.to_vec()].concat(), unhex(vector)[LENGTH_BYTES..], "{backend:?}");
            }
        }
    }
}

/// The expected bytes were computed by programs that share no code with this one.
#[test]
fn keyed_records_match_their_vectors() {
    let [to_server, to_client] = connection_keys(&reference(), b"transcript");
    assert_eq!(hex(to_server.expose()), "3c393be37fb8c21ad5c9e52b2d41c3d4dd0c17a333fb6a2e06dc5c7282dd00bb");
    assert_eq!(hex(to_client.expose()), "6be1bfda2bd6446eeeef9d14c4c244a0275f97eb510f1c4f07c081b26e60c624");
    let next = derived(NEXT_KEY_CONTEXT, &to_server);
    assert_eq!(hex(next.expose()), "b84ca32c2c155b718cdeb712f4eaecf96208350544914353830360f3bec6d54d");

    let c2s = [
        (DONE, "15 00 00 00 ad 03 86 fb 50 17 fe a6 03 b5 be 42 30 81 5a 25 12 28 9c 10 b4"),
        ("", "10 00 00 00 7f f1 ff b3 71 e7 2b 47 7f 57 6b 11 b9 87 27 e5"),
        // The first record under the next key.
        (DONE, "15 00 00 00 d1 77 b7 3e e7 d2 ae 1e af 0b 6f b9 33 23 14 1a 3c c6 b8 e1 d9"),
    ];
    let s2c = [("02 00 00 00 82 00", "16 00 00 00 28 34 fd e6 bd 89 e2 c3 d3 f7 d4 d8 36 20 57 f0 a0 06 ff 71 06 86")];
    let of = |backend, role| Seals::keyed_by(backend, 2, &reference(), b"transcript", role);
    let (mut client, mut server) = (of(Backend::AwsLc, Role::Client), of(Backend::PureRust, Role::Server));
    for (sealer, vectors) in [(&mut client.sealer, &c2s[..]), (&mut server.sealer, &s2c[..])] {
        for (plain, vector) in vectors {
            assert_eq!(hex(&sealed(sealer, &unhex(plain))), hex(&unhex(vector)));
        }
    }
    for backend in BACKENDS {
        let (mut client, mut server) = (of(backend, Role::Client), of(backend, Role::Server));
        for (opener, vectors) in [(&mut server.opener, &c2s[..]), (&mut client.opener, &s2c[..])] {
            for (plain, vector) in vectors {
                assert_eq!(opened(opener, &unhex(vector)), Ok(unhex(plain)), "{backend:?}");
            }
        }
    }
}

#[test]
fn proofs_match_their_vectors() {
    let nonce = std::array::from_fn(|index| 0x20 + index as u8);
    let mac = auth_mac(&reference(), &nonce);
    assert_eq!(hex(&mac), "9269e3972c6bb20c77051a9c253360d86add1e26999416257e7e792cebf799be");
    let mac = keyed_mac(&reference(), "haul 2026-11-26 test proof v1", b"transcript");
    assert_eq!(hex(&mac), "587aab32bcb545102b38ebed08e20b009d5f7634ca96909309a313b70bb35585");
}

#[test]
fn a_proof_differs_where_secret_label_or_transcript_do() {
    let secret = fresh();
    let proof = keyed_mac(&secret, "haul test client", b"transcript");
    assert!(is_same(&proof, &keyed_mac(&secret.clone(), "haul test client", b"transcript")));
    assert!(!is_same(&proof, &keyed_mac(&secret, "haul test server", b"transcript")));
    assert!(!is_same(&proof, &keyed_mac(&secret, "haul test client", b"transcripT")));
    assert!(!is_same(&proof, &keyed_mac(&fresh(), "haul test client", b"transcript")));
    for bit in 0..256 {
        let mut other = proof;
        other[bit / 8] ^= 1 << (bit % 8);
        assert!(!is_same(&proof, &other));
    }
}

#[test]
fn secrets_are_not_printed() {
    let secret = Secret::from_bytes([0xa5; 32]);
    let seals = Seals::keyed(&secret, b"transcript", Role::Client);
    let text = format!("{secret:?} {seals:?}");
    assert!(!text.contains("165") && !text.contains("a5"), "{text}");
    assert!(text.contains("Secret(..)") && text.contains("ToServer"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_one_backend_seals_the_other_opens(
        plains in vec(vec(any::<u8>(), 0..2000), 1..8),
        interval in 1u64..5,
        is_keyed: bool,
        is_swapped: bool,
    ) {
        let secret = fresh();
        let scheme = if is_keyed { Scheme::Keyed(interval) } else { Scheme::Base };
        let [near, far] = if is_swapped { [BACKENDS[1], BACKENDS[0]] } else { BACKENDS };
        let mut client = seals(near, scheme, &secret, Role::Client);
        let mut server = seals(far, scheme, &secret, Role::Server);
        for plain in &plains {
            for (sealer, opener) in
                [(&mut client.sealer, &mut server.opener), (&mut server.sealer, &mut client.opener)]
            {
                let record = sealed(sealer, plain);
                prop_assert_eq!(record_len(*record.first_chunk().unwrap()), Ok(record.len()));
                prop_assert_eq!(&opened(opener, &record), &Ok(plain.clone()));
            }
        }
    }

    #[test]
    fn transcripts_that_differ_in_a_bit_make_other_keys(transcript in vec(any::<u8>(), 1..300), at: usize) {
        let secret = fresh();
        let mut other = transcript.clone();
        let bit = at % (8 * transcript.len());
        other[bit / 8] ^= 1 << (bit % 8);
        let shorter = &transcript[..transcript.len() - 1];
        let longer = [&transcript[..], &[0]].concat();
        let all = [&transcript[..], &other, shorter, &longer].map(|transcript| connection_keys(&secret, transcript));
        let different: HashSet<_> = all.iter().flatten().map(|key| *key.expose()).collect();
        prop_assert_eq!(different.len(), 8, "two directions each");
    }
}

#[test]
fn the_largest_record_comes_through_on_both_backends() {
    let plain = vec![0x5a; MAX_PLAIN_BYTES];
    for (_, mut client, mut server) in pairs() {
        let record = sealed(&mut client.sealer, &plain);
        assert_eq!(record_len(*record.first_chunk().unwrap()), Ok(record.len()));
        assert!(opened(&mut server.opener, &record).unwrap() == plain);
    }
}

#[test]
fn a_record_with_any_bit_changed_is_refused() {
    for scheme in SCHEMES {
        for backend in BACKENDS {
            let secret = fresh();
            let record = sealed(&mut seals(backend, scheme, &secret, Role::Client).sealer, b"hello");
            let opener = || seals(backend, scheme, &secret, Role::Server).opener;
            assert_eq!(opened(&mut opener(), &record), Ok(b"hello".to_vec()));
            for bit in 0..8 * record.len() {
                let mut changed = record.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(opened(&mut opener(), &changed), Err(Forged), "{scheme:?}, {backend:?}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_record_cut_short_or_made_longer_is_refused() {
    for scheme in SCHEMES {
        for backend in BACKENDS {
            let secret = fresh();
            let record = sealed(&mut seals(backend, scheme, &secret, Role::Client).sealer, b"hello");
            let refuses = |bytes: &[u8]| {
                let mut opener = seals(backend, scheme, &secret, Role::Server).opener;
                assert_eq!(opened(&mut opener, bytes), Err(Forged), "{scheme:?}, {backend:?}, {}", bytes.len());
            };
            for len in 0..record.len() {
                refuses(&record[..len]);
                // With a length that fits what is left of it.
                let rest = &record[LENGTH_BYTES..len.max(LENGTH_BYTES)];
                refuses(&[&(rest.len() as u32).to_le_bytes(), rest].concat());
            }
            refuses(&[&record[..], &[0]].concat());
            refuses(&[&(record.len() as u32 - 3).to_le_bytes(), &record[LENGTH_BYTES..], &[0]].concat());
        }
    }
}

#[test]
fn a_record_at_another_place_is_refused() {
    for (scheme, mut client, mut server) in pairs() {
        let records: Vec<_> = (0..4).map(|number| sealed(&mut client.sealer, &[number])).collect();
        assert_eq!(opened(&mut server.opener, &records[1]), Err(Forged), "{scheme:?}: early");
        assert_eq!(opened(&mut server.opener, &records[0]), Err(Forged), "{scheme:?}: late");
        assert_eq!(opened(&mut server.opener, &records[2]), Ok(vec![2]));
        assert_eq!(opened(&mut server.opener, &records[2]), Err(Forged), "{scheme:?}: replayed");
    }
}

#[test]
fn a_record_sent_back_to_its_sender_is_refused() {
    for (scheme, mut client, mut server) in pairs() {
        let record = sealed(&mut client.sealer, b"hello");
        assert_eq!(opened(&mut client.opener, &record), Err(Forged), "{scheme:?}");
        let record = sealed(&mut server.sealer, b"hello");
        assert_eq!(opened(&mut server.opener, &record), Err(Forged), "{scheme:?}");
    }
}

#[test]
fn only_keyed_records_authenticate_their_length() {
    let secret = fresh();
    for (scheme, is_bound) in SCHEMES.into_iter().zip([false, true]) {
        for backend in BACKENDS {
            let seals = seals(backend, scheme, &fresh(), Role::Client);
            assert_eq!(seals.sealer.0.key.binds_length, is_bound);
            let key = |binds_length| Arc::new(Key::new(backend, &secret, binds_length));
            let nonce = [scheme_byte(scheme), backend as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let mut record = unsealed(b"hello");
            Seal { key: key(is_bound), nonce }.seal(&mut record);
            assert!(Open { key: key(!is_bound), nonce }.open(&mut record.clone()).is_err());
            assert!(Open { key: key(is_bound), nonce }.open(&mut record).is_ok());
        }
    }
}

fn scheme_byte(scheme: Scheme) -> u8 {
    if scheme == Scheme::Base { 1 } else { 2 }
}

#[test]
fn lengths_that_no_record_has_are_refused() {
    let max = (MAX_PLAIN_BYTES + TAG_BYTES) as u32;
    for len in [0, 1, 15, max + 1, u32::MAX] {
        assert_eq!(record_len(len.to_le_bytes()), Err(BadLength(len)));
    }
    for len in [16, 17, max] {
        assert_eq!(record_len(len.to_le_bytes()), Ok(LENGTH_BYTES + len as usize));
    }
}

#[test]
fn what_has_no_room_for_a_record_is_not_sealed() {
    for len in [0, 3, 4, 19, LENGTH_BYTES + MAX_PLAIN_BYTES + TAG_BYTES + 1] {
        let seal = Seals::keyed(&fresh(), b"", Role::Client).sealer.next().unwrap();
        let mut record = vec![0; len];
        assert!(catch_unwind(move || seal.seal(&mut record)).is_err(), "{len} bytes");
    }
}

#[test]
fn an_empty_record_is_the_authenticated_end() {
    for (_, mut client, mut server) in pairs() {
        let end = sealed(&mut client.sealer, b"");
        assert_eq!(end.len(), LENGTH_BYTES + TAG_BYTES);
        assert_eq!(opened(&mut server.opener, &end), Ok(Vec::new()));
    }
}

#[test]
fn both_ends_take_the_next_key_at_the_same_record() {
    for interval in 1..=4 {
        for backend in BACKENDS {
            let secret = fresh();
            let [mut client, mut server] =
                [Role::Client, Role::Server].map(|role| seals(backend, Scheme::Keyed(interval), &secret, role));
            // One direction is ahead of the other, and many keys are used up.
            for number in 0..40u8 {
                let record = sealed(&mut client.sealer, &[number]);
                assert_eq!(opened(&mut server.opener, &record), Ok(vec![number]));
                if number % 3 == 0 {
                    let record = sealed(&mut server.sealer, &[number]);
                    assert_eq!(opened(&mut client.opener, &record), Ok(vec![number]));
                }
            }
            let keys = 39 / interval;
            let mut key = connection_keys(&secret, b"transcript")[0].clone();
            (0..keys).for_each(|_| key = derived(NEXT_KEY_CONTEXT, &key));
            assert_eq!(client.sealer.0.key.fingerprint, *blake3::hash(key.expose()).as_bytes());
            assert_eq!(client.sealer.0.number, 40 - keys * interval);
        }
    }
}

#[test]
fn records_on_both_sides_of_a_real_rekey_open() {
    let secret = fresh();
    let mut client = Seals::keyed(&secret, b"transcript", Role::Client);
    let mut server = Seals::keyed(&secret, b"transcript", Role::Server);
    let first = client.sealer.0.key.fingerprint;
    for number in 0..REKEY_RECORDS + 2 {
        let record = sealed(&mut client.sealer, &number.to_le_bytes());
        assert_eq!(opened(&mut server.opener, &record), Ok(number.to_le_bytes().to_vec()));
        assert_eq!(client.sealer.0.key.fingerprint == first, number < REKEY_RECORDS, "record {number}");
    }
}

#[test]
fn records_of_one_connection_are_sealed_and_opened_on_many_threads() {
    fn is_send<T: Send + 'static>() {}
    is_send::<Seal>();
    is_send::<Open>();

    let secret = fresh();
    let [mut client, mut server] =
        [Role::Client, Role::Server].map(|role| seals(Backend::DEFAULT, Scheme::Keyed(3), &secret, role));
    let places: Vec<_> = (0..32u8).map(|number| (number, client.sealer.next().unwrap())).collect();
    let records: Vec<_> = thread::scope(|scope| {
        let seal = |(number, seal): (u8, Seal)| {
            scope.spawn(move || {
                let mut record = unsealed(&[number; 1000]);
                seal.seal(&mut record);
                record
            })
        };
        // The last places are sealed first.
        let threads: Vec<_> = places.into_iter().rev().map(seal).collect();
        threads.into_iter().rev().map(|thread| thread.join().unwrap()).collect()
    });
    let places: Vec<_> = records.into_iter().map(|record| (server.opener.next().unwrap(), record)).collect();
    for (number, (open, mut record)) in places.into_iter().enumerate().rev() {
        let plain = thread::spawn(move || open.open(&mut record).map(|range| record[range].to_vec())).join().unwrap();
        assert_eq!(plain, Ok(vec![number as u8; 1000]));
    }
}

#[test]
fn numbers_that_are_used_up_do_not_begin_again() {
    let mut client = Seals::base(&fresh(), Role::Client);
    client.sealer.0.number = u64::MAX - 1;
    assert!(client.sealer.next().is_ok());
    for _ in 0..3 {
        assert_eq!(client.sealer.next().err(), Some(Exhausted));
    }
}

#[test]
fn no_nonce_repeats_under_a_key_over_many_connections_of_a_secret() {
    let secret = fresh();
    let before = sealed_records();
    let mut seen = HashSet::new();
    for connection in 0..200u32 {
        for role in [Role::Client, Role::Server] {
            let transcript = connection.to_le_bytes();
            let mut sealer = Seals::keyed_by(Backend::DEFAULT, 7, &secret, &transcript, role).sealer;
            for _ in 0..30 {
                let seal = sealer.next().unwrap();
                assert!(seen.insert((seal.key.fingerprint, seal.nonce)));
                seal.seal(&mut unsealed(b"x"));
            }
        }
    }
    assert!(sealed_records() >= before + seen.len(), "the recorder saw them as well");
    let keys: HashSet<_> = seen.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 200 * 2 * 30usize.div_ceil(7));
}

#[test]
fn the_recorder_notices_a_secret_that_serves_two_connections() {
    for scheme in SCHEMES {
        let secret = fresh();
        let again = || seals(Backend::DEFAULT, scheme, &secret, Role::Client);
        sealed(&mut again().sealer, b"first");
        let second = catch_unwind(|| sealed(&mut again().sealer, b"second"));
        let message = *second.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("a nonce was used twice"), "{message}");
    }
}

/// What stands in one comes out in parts, in order, each under a nonce of its own.
#[test]
fn several_records_are_made_of_one_plaintext_where_it_stands() {
    let secret = fresh();
    let (mut client, mut server) =
        (Seals::keyed(&secret, b"both", Role::Client), Seals::keyed(&secret, b"both", Role::Server));
    for lens in [vec![5], vec![5, 4, 1], vec![1, 1, 1, 1], vec![30, 30, 7]] {
        let plain: Vec<u8> = (0..lens.iter().sum::<usize>()).map(|n| n as u8).collect();
        let mut records = vec![0xee; plain.len() + lens.len() * (LENGTH_BYTES + TAG_BYTES)];
        records[LENGTH_BYTES..][..plain.len()].copy_from_slice(&plain);
        let seals = lens.iter().map(|&len| (client.sealer.next().unwrap(), len)).collect();
        seal_all(seals, &mut records);
        let (mut opened, mut rest) = (Vec::new(), &mut records[..]);
        while let Some(head) = rest.first_chunk() {
            let (record, behind) = rest.split_at_mut(record_len(*head).unwrap());
            let plain = server.opener.next().unwrap().open(record).unwrap();
            opened.extend_from_slice(&record[plain]);
            rest = behind;
        }
        assert_eq!(opened, plain, "{lens:?}");
    }
}
