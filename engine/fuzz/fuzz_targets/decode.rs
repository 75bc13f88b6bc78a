//! Hostile bytes through the decoder.
//!
//! The first byte picks role and dialect, the second and third seed the split of the rest. Whatever comes: no panic, no
//! event without progress, memory in proportion to what arrived, and every control frame survives encode and decode.

#![no_main]

use haul_engine::wire::decode::{Decoder, Event, Role};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{Dialect, Ext, Frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [choice, seed @ ..] = *data.first_chunk::<3>().unwrap_or(&[0; 3]);
    let role = if choice & 1 == 0 { Role::Client } else { Role::Server };
    let version = 1 + ((choice >> 1) & 1);
    let dialect = Dialect { version, ext: Ext(if version == 1 { u32::from(choice >> 2) } else { 0 }) };
    let mut split = u32::from(u16::from_le_bytes(seed)) | 1;

    let mut decoder = Decoder::new(role, dialect);
    let mut rest = data.get(3..).unwrap_or(&[]);
    while !rest.is_empty() {
        split = split.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let len = 1 + (split >> 16) as usize % if split & 0x100 == 0 { 8 } else { 4096 };
        let (mut input, later) = rest.split_at(len.min(rest.len()));
        rest = later;
        loop {
            let Ok((used, event)) = decoder.next(input) else {
                assert!(decoder.next(input).is_err(), "an error is final");
                return;
            };
            assert!(decoder.buffered_capacity() <= 64 * 1024 + 2 * data.len());
            match event {
                None => {
                    assert_eq!(used, input.len(), "no event although input is left");
                    break;
                }
                Some(Event::Frame(frame)) => comes_back(role, dialect, &frame),
                Some(Event::Piece { start, len }) => assert!(len > 0 && start + len <= used),
                Some(Event::End) => assert_eq!(decoder.payload_left(), 0),
                Some(Event::Data { len } | Event::Compressed { len, .. }) => assert_eq!(decoder.payload_left(), len),
            }
            input = &input[used..];
        }
    }
});

fn comes_back(role: Role, dialect: Dialect, frame: &Frame) {
    let mut bytes = Vec::new();
    encode::frame(frame, dialect, &mut bytes).expect("what was decoded can be encoded");
    let again = Decoder::new(role, dialect).next(&bytes).expect("what was encoded can be decoded");
    assert_eq!(again, (bytes.len(), Some(Event::Frame(frame.clone()))));
}
