//! Hostile bytes as sealed records.
//!
//! The first byte picks a stream that was sealed once, for this process: no key seals twice. The rest is taken as a
//! stream of its own, then as up to 16 changes to the sealed one, four bytes each. Whatever comes: no panic, everything before
//! the first change is accepted, and nothing from there on.

#![no_main]

use haul_engine::wire::decode::Role;
use haul_engine::wire::seal::{LENGTH_BYTES, Seals, Secret, TAG_BYTES, record_len};
use libfuzzer_sys::fuzz_target;
use std::ops::Range;
use std::sync::LazyLock;

struct Stream {
    seals: fn(Role) -> Seals,
    receiver: Role,
    bytes: Vec<u8>,
    /// Of each record, where its plaintext stood in `bytes` before it was sealed, and what it was.
    plains: Vec<(Range<usize>, Vec<u8>)>,
}

const PLAIN_BYTES: [usize; 8] = [5, 0, 1, 16, 300, 15, 64, 0];

static STREAMS: LazyLock<Vec<Stream>> = LazyLock::new(|| {
    let base: fn(Role) -> Seals = |role| Seals::base(&Secret::from_bytes([1; 32]), role);
    let keyed: fn(Role) -> Seals = |role| Seals::keyed(&Secret::from_bytes([2; 32]), b"transcript", role);
    [(base, Role::Client), (base, Role::Server), (keyed, Role::Client), (keyed, Role::Server)]
        .map(|(seals, sender)| stream(seals, sender))
        .into()
});

fn stream(seals: fn(Role) -> Seals, sender: Role) -> Stream {
    let receiver = if sender == Role::Client { Role::Server } else { Role::Client };
    let mut stream = Stream { seals, receiver, bytes: Vec::new(), plains: Vec::new() };
    let mut sealer = seals(sender).sealer;
    for (number, len) in PLAIN_BYTES.into_iter().enumerate() {
        let plain = vec![number as u8; len];
        let mut record = [&[0; LENGTH_BYTES], &plain[..], &[0; TAG_BYTES]].concat();
        sealer.next().expect("there are numbers left").seal(&mut record);
        let start = stream.bytes.len() + LENGTH_BYTES;
        stream.bytes.extend_from_slice(&record);
        stream.plains.push((start..start + len, plain));
    }
    stream
}

fuzz_target!(|data: &[u8]| {
    let [choice, rest @ ..] = data else { return };
    let stream = &STREAMS[usize::from(*choice) % STREAMS.len()];
    check(stream, rest);
    check(stream, &changed(stream, rest));
});

/// The sealed stream after changes: operation, place as u16 LE, value.
fn changed(stream: &Stream, changes: &[u8]) -> Vec<u8> {
    let mut bytes = stream.bytes.clone();
    for change in changes.chunks_exact(4).take(16) {
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % (bytes.len() + 1);
        let value = change[3];
        match change[0] % 6 {
            0 if at < bytes.len() => bytes[at] ^= value,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, value),
            3 => drop(bytes.drain(at..bytes.len().min(at + usize::from(value)))),
            // A record of the stream, or of one with another key or direction, once more at the border of a record.
            operation @ (4 | 5) => {
                let source = if operation == 4 { stream } else { &STREAMS[at % STREAMS.len()] };
                let (plain, _) = &source.plains[usize::from(value) % source.plains.len()];
                let record = &source.bytes[plain.start - LENGTH_BYTES..plain.end + TAG_BYTES];
                let border = stream.plains[at % stream.plains.len()].0.start - LENGTH_BYTES;
                let border = border.min(bytes.len());
                bytes.splice(border..border, record.iter().copied());
            }
            _ => {}
        }
    }
    bytes
}

/// Opens until something is refused or missing.
fn check(stream: &Stream, bytes: &[u8]) {
    let same = bytes.iter().zip(&stream.bytes).take_while(|(one, other)| one == other).count();
    let mut opener = (stream.seals)(stream.receiver).opener;
    let (mut at, mut accepted) = (0, 0);
    while let Some(head) = bytes[at..].first_chunk() {
        let Ok(len) = record_len(*head) else { break };
        let Some(record) = bytes.get(at..at + len) else { break };
        let mut record = record.to_vec();
        let Ok(plain) = opener.next().expect("there are numbers left").open(&mut record) else { break };
        at += len;
        assert!(at <= same, "a record with a change in or before it was accepted");
        assert_eq!(record[plain], stream.plains[accepted].1);
        accepted += 1;
    }
    let whole = stream.plains.iter().filter(|(plain, _)| plain.end + TAG_BYTES <= same).count();
    assert_eq!(accepted, whole, "a record before the first change was refused");
}
