//! Compressed blocks: vectors, both ways at every size, and what a hostile peer sends.

use haul_engine::limits::{BLOCK_BYTES, PROBE_FROM_BYTES, ZSTD_LEVEL};
use haul_engine::wire::MAX_BLOCK;
use haul_engine::wire::compress::{BadBlock, Codec, compress, decompress};
use haul_engine::wire::frame::Caps;
use proptest::collection::vec;
use proptest::prelude::*;

const CODECS: [Codec; 2] = [Codec::Lz4, Codec::Zstd];
const LZ4_64_A: [u8; 11] = [0x1f, 0x61, 0x01, 0x00, 0x27, 0x50, 0x61, 0x61, 0x61, 0x61, 0x61];
/// A Zstandard frame without content size and checksum, window 1 MiB: magic, descriptor, window.
const ZSTD_HEAD: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50];

/// Bytes without any pattern, the same for the same seed (xorshift64*).
fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    (0..len).map(|_| next() as u8).collect()
}

/// Words of a small language, drawn at random, the common ones more often.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let words: Vec<Vec<u8>> = random(1024 * 8, 42)
        .chunks(8)
        .map(|letters| letters[..2 + usize::from(letters[7] % 6)].iter().map(|letter| b'a' + letter % 26).collect())
        .collect();
    let mut out = Vec::with_capacity(len + 8);
    for pair in random(len, seed).chunks_exact(2) {
        let rank = (usize::from(pair[0]) * usize::from(pair[1])) >> 6;
        out.extend_from_slice(&words[rank]);
        out.push(b' ');
        if out.len() >= len {
            break;
        }
    }
    out.truncate(len);
    out
}

fn base64(len: usize, seed: u64) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    random(len, seed).into_iter().map(|byte| DIGITS[usize::from(byte % 64)]).collect()
}

fn packed(codec: Codec, from: &[u8]) -> Option<Vec<u8>> {
    let mut into = vec![0; from.len() + 64];
    let len = compress(codec, from, &mut into, false)?;
    into.truncate(len);
    Some(into)
}

fn unpacked(codec: Codec, from: &[u8], len: usize) -> Result<Vec<u8>, BadBlock> {
    let mut into = vec![0; len];
    decompress(codec, from, &mut into)?;
    Ok(into)
}

/// A block of a Zstandard frame that repeats one byte.
fn zstd_run(len: u32, last: bool) -> [u8; 4] {
    let [low, middle, high, _] = (len << 3 | 1 << 1 | u32::from(last)).to_le_bytes();
    [low, middle, high, b'a']
}

#[test]
fn numbers_and_names_are_those_of_the_protocol_and_zstd_wins_where_both_are_agreed() {
    assert_eq!([0, 1, 2, 3].map(Codec::from_algo), [None, Some(Codec::Lz4), Some(Codec::Zstd), None]);
    for codec in CODECS {
        assert_eq!(Codec::from_algo(codec.algo()), Some(codec));
    }
    assert_eq!(CODECS.map(Codec::name), ["lz4", "zstd"]);
    let agreed = |caps| Codec::agreed(Caps(caps));
    assert_eq!(
        [0x00, 0x01, 0x02, 0x03, 0xfc].map(agreed),
        [None, Some(Codec::Lz4), Some(Codec::Zstd), Some(Codec::Zstd), None]
    );
}

#[test]
fn the_reference_vector_of_lz4_decodes() {
    assert_eq!(unpacked(Codec::Lz4, &LZ4_64_A, 64), Ok(vec![b'a'; 64]));
}

#[test]
fn an_lz4_block_has_no_size_in_front_and_a_zstd_frame_has_its_content_size_and_no_checksum() {
    let block = text(100_000, 1);
    let lz4 = packed(Codec::Lz4, &block).unwrap();
    assert_ne!(lz4[..4], 100_000_u32.to_le_bytes());
    assert!(lz4[..8].windows(4).any(|four| four == &block[..4]), "a token, then the first literals");
    let zstd = packed(Codec::Zstd, &block).unwrap();
    // RFC 8878, 3.1.1.1: 4 bytes of content size, single segment, no checksum, no dictionary.
    assert_eq!(zstd[..5], [0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000]);
    assert_eq!(zstd[5..9], 100_000_u32.to_le_bytes());
}

#[test]
fn a_block_is_packed_as_if_it_were_the_first_of_its_thread() {
    for codec in CODECS {
        let fresh = |block: Vec<u8>| std::thread::spawn(move || packed(codec, &block)).join().unwrap();
        for (len, seed) in [(1000, 1), (MAX_BLOCK as usize, 2), (70_000, 3), (20, 4), (BLOCK_BYTES, 5)] {
            let block = text(len, seed);
            assert!(packed(codec, &block) == fresh(block), "{codec:?}, {len} bytes");
        }
    }
}

#[test]
fn a_result_above_95_percent_is_not_sent_and_one_at_the_limit_is() {
    let mut at_the_limit = 0;
    for codec in CODECS {
        let (mut table, mut room) = (lz4_flex::block::CompressTable::large(), [0; 20_000]);
        for number in 0..2000 {
            // Random bytes before text: the more text, the more it pays. Only sizes of which 95 % is a whole number.
            let size = 9_600 + 20 * (number % 20);
            let mut block = random(size, 7);
            let rest = size - 8_200 - number / 2;
            block[size - rest..].copy_from_slice(&text(rest / 4 + 1, 8).repeat(4)[..rest]);
            let len = match codec {
                Codec::Lz4 => lz4_flex::block::compress_into_with_table(&block, &mut room, &mut table).unwrap(),
                Codec::Zstd => zstd::bulk::compress(&block, ZSTD_LEVEL).unwrap().len(),
            };
            let sent = packed(codec, &block).map(|packed| packed.len());
            assert_eq!(sent, (len <= size / 20 * 19).then_some(len), "{codec:?}, {len} of {size} bytes");
            at_the_limit += usize::from(len == size / 20 * 19);
        }
    }
    assert!(at_the_limit > 0, "no block came to exactly 95 %");
}

#[test]
fn room_for_the_result_is_enough_and_less_is_no_error() {
    for codec in CODECS {
        for block in [text(BLOCK_BYTES, 3), text(50, 4).repeat(20), vec![7; 100]] {
            let full = packed(codec, &block).unwrap();
            let mut into = vec![0; block.len()];
            assert_eq!(compress(codec, &block, &mut into, false), Some(full.len()), "a block of the same size");
            assert!(into[..full.len()] == full);
            for room in [0, 1, full.len() / 2, full.len() - 1] {
                assert_eq!(compress(codec, &block, &mut into[..room], false), None, "{codec:?} in {room}");
            }
            assert_eq!(packed(codec, &block), Some(full), "after a failure everything is as before");
        }
    }
}

#[test]
fn nothing_and_too_much_are_not_compressed() {
    let large = vec![0; MAX_BLOCK as usize + 1];
    let mut into = vec![0; large.len()];
    for codec in CODECS {
        assert_eq!(compress(codec, &[], &mut into, false), None);
        assert_eq!(compress(codec, &large, &mut into, false), None);
        assert!(compress(codec, &large[1..], &mut into, false).is_some());
    }
}

#[test]
fn samples_give_up_on_random_bytes_only() {
    let mut into = vec![0; MAX_BLOCK as usize];
    let mut tried = |block: &[u8]| compress(Codec::Zstd, block, &mut into, true);
    for len in [PROBE_FROM_BYTES, 100_001, BLOCK_BYTES, MAX_BLOCK as usize] {
        assert!(tried(&text(len, 1)).is_some());
        assert!(tried(&base64(len, 2)).is_some(), "6 bits of 8");
        assert!(tried(&vec![0; len]).is_some());
        let mut mostly = random(len, 4);
        mostly[len * 5 / 8..len * 7 / 8].fill(0);
        assert!(tried(&mostly).is_some(), "one compressible quarter is enough");
        assert_eq!(tried(&random(len, 5)), None);
    }
    // What shows that it was the samples: the whole would have paid.
    let repeated = random(BLOCK_BYTES / 8, 3).repeat(8);
    assert_eq!(compress(Codec::Zstd, &repeated, &mut into, true), None);
    assert!(compress(Codec::Zstd, &repeated, &mut into, false).unwrap() < BLOCK_BYTES / 4);
    let short = random(PROBE_FROM_BYTES / 2, 6).repeat(2);
    assert!(compress(Codec::Zstd, &short[1..], &mut into, true).is_some(), "a short block is tried at once");
}

#[test]
fn a_declared_size_one_off_is_an_error() {
    for codec in CODECS {
        for len in [64, 1000, 70_000, BLOCK_BYTES] {
            let block = text(len / 4, 9).repeat(4);
            let packed = packed(codec, &block).unwrap();
            assert!(unpacked(codec, &packed, len).unwrap() == block);
            let shorter = BadBlock::Shorter { declared: len + 1, actual: len };
            assert_eq!(unpacked(codec, &packed, len + 1).err(), Some(shorter));
            assert_eq!(unpacked(codec, &packed, len - 1).err(), Some(BadBlock::Longer { declared: len - 1 }));
            assert_eq!(unpacked(codec, &packed, 0).err(), Some(BadBlock::Longer { declared: 0 }));
        }
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let says = |codec, from: &[u8], len| unpacked(codec, from, len).unwrap_err().to_string();
    assert_eq!(says(Codec::Lz4, &LZ4_64_A, 65), "a compressed block holds 64 bytes where 65 are declared");
    assert_eq!(says(Codec::Lz4, &LZ4_64_A, 63), "a compressed block holds more than the 63 bytes that are declared");
    let cut = says(Codec::Lz4, &LZ4_64_A[..10], 64);
    assert!(cut.starts_with("a block compressed with lz4 is malformed: "), "{cut}");
    let garbage = says(Codec::Zstd, b"garbage", 64);
    assert_eq!(garbage, "a block compressed with zstd is malformed: it does not begin as a frame");
}

#[test]
fn bytes_behind_a_block_are_an_error() {
    let block = text(5000, 11);
    for codec in CODECS {
        let packed = packed(codec, &block).unwrap();
        for tail in [vec![0], vec![0; 2], vec![0x10, b'a'], vec![0xff; 7], packed.clone(), ZSTD_HEAD.to_vec()] {
            let long = [&packed[..], &tail].concat();
            let error = unpacked(codec, &long, block.len()).unwrap_err();
            if codec == Codec::Zstd {
                assert_eq!(error, BadBlock::Trailing { extra: tail.len() });
            }
        }
    }
}

#[test]
fn a_zstd_payload_is_one_frame_with_nothing_before_or_behind_it() {
    let (half, whole) = (text(500, 12), text(1000, 12));
    let frame = packed(Codec::Zstd, &half).unwrap();
    // A skippable frame of 4 bytes, and a frame that holds nothing.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let empty = [&ZSTD_HEAD[..], &[1, 0, 0]].concat();
    let cases = [
        [&frame[..], &frame].concat(),
        [&frame[..], &skippable].concat(),
        [&skippable[..], &frame].concat(),
        [&frame[..], &empty].concat(),
        [&empty[..], &frame].concat(),
        skippable.to_vec(),
    ];
    for (number, bytes) in cases.iter().enumerate() {
        for len in [0, half.len(), whole.len()] {
            assert!(unpacked(Codec::Zstd, bytes, len).is_err(), "case {number} into {len}");
        }
    }
    assert_eq!(unpacked(Codec::Zstd, &empty, 0), Ok(vec![]));
}

#[test]
fn what_another_encoder_may_write_is_understood() {
    let expected = vec![b'a'; 300];
    // No content size, several blocks; with content size and checksum it may be as well.
    let frame = [&ZSTD_HEAD[..], &zstd_run(100, false), &zstd_run(200, true)].concat();
    assert_eq!(unpacked(Codec::Zstd, &frame, 300), Ok(expected));
    let block = text(100_000, 13);
    let mut packer = zstd::bulk::Compressor::new(19).unwrap();
    packer.include_checksum(true).unwrap();
    let mut frame = packer.compress(&block).unwrap();
    assert!(unpacked(Codec::Zstd, &frame, block.len()).unwrap() == block);
    *frame.last_mut().unwrap() ^= 1;
    assert!(unpacked(Codec::Zstd, &frame, block.len()).is_err(), "a checksum that is there is checked");
}

#[test]
fn bombs_end_at_the_declared_size() {
    // Content size of 4 GiB in 8 bytes, single segment.
    let claim = [&[0x28, 0xb5, 0x2f, 0xfd, 0b1110_0000][..], &(1_u64 << 32).to_le_bytes(), &zstd_run(1 << 17, true)];
    assert_eq!(unpacked(Codec::Zstd, &claim.concat(), 100).err(), Some(BadBlock::Longer { declared: 100 }));
    // 4 bytes for every 128 KiB, and no size to see it by.
    let runs = (0..1000).flat_map(|number| zstd_run(1 << 17, number == 999));
    let bomb: Vec<u8> = ZSTD_HEAD.into_iter().chain(runs).collect();
    for len in [0, 1, 100, 1 << 17, MAX_BLOCK as usize] {
        assert!(unpacked(Codec::Zstd, &bomb, len).is_err(), "into {len}");
    }
    // Windows of 2 GiB and of more than there may be: memory for them is never asked for.
    let mut window = [&ZSTD_HEAD[..], &zstd_run(1000, true)].concat();
    window[5] = 21 << 3;
    assert_eq!(unpacked(Codec::Zstd, &window, 1000), Ok(vec![b'a'; 1000]));
    window[5] = 0xff;
    assert!(unpacked(Codec::Zstd, &window, 1000).is_err());
    // A match of 255 bytes for each byte.
    let bomb = [&[0x1f, b'a', 1, 0][..], &[0xff; 100_000], &[0, 0x50], b"aaaaa"].concat();
    for len in [0, 1, 64, MAX_BLOCK as usize] {
        assert_eq!(unpacked(Codec::Lz4, &bomb, len).err(), Some(BadBlock::Longer { declared: len }));
    }
}

#[test]
fn an_empty_payload_is_no_block() {
    for codec in CODECS {
        for len in [0, 1, 1000] {
            assert!(matches!(unpacked(codec, &[], len), Err(BadBlock::Malformed { .. })), "{codec:?} into {len}");
        }
    }
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Lz4), Just(Codec::Zstd)]
}

/// 1 byte to 4 MiB, small ones and those beside powers of two more often.
fn size() -> impl Strategy<Value = usize> {
    let most = MAX_BLOCK as usize;
    prop_oneof![
        4 => 1usize..2000,
        2 => (6u32..22, -1isize..=1).prop_map(|(power, off)| (1usize << power).saturating_add_signed(off)),
        1 => 1..=most,
        1 => Just(most),
    ]
}

/// From all alike to nothing alike.
fn content() -> impl Strategy<Value = Vec<u8>> {
    (size(), any::<u64>(), 0u8..4).prop_map(|(len, seed, kind)| match kind {
        0 => text(len, seed),
        1 => base64(len, seed),
        2 => random(len, seed).into_iter().enumerate().map(|(at, byte)| if at & 512 == 0 { byte } else { 0 }).collect(),
        _ => random(len, seed),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn what_is_packed_comes_back(codec in codec(), block in content(), probe in any::<bool>(), spare in 0usize..2) {
        let mut into = vec![0; block.len() * (1 + spare) + 64];
        if let Some(len) = compress(codec, &block, &mut into, probe) {
            prop_assert!(len * 100 <= block.len() * 95);
            let back = unpacked(codec, &into[..len], block.len());
            prop_assert!(back.as_ref() == Ok(&block));
            prop_assert!(unpacked(codec, &into[..len], block.len() + 1).is_err());
            prop_assert!(unpacked(codec, &into[..len], block.len() - 1).is_err());
            prop_assert!(unpacked(codec, &into[..len - 1], block.len()).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn garbage_is_an_error_or_fills_exactly(codec in codec(), bytes in vec(any::<u8>(), 0..300), len in 0usize..5000) {
        _ = unpacked(codec, &bytes, len);
        let framed = [&ZSTD_HEAD[..], &bytes].concat();
        _ = unpacked(Codec::Zstd, &framed, len);
    }

    #[test]
    fn damage_never_panics(
        codec in codec(),
        seed in any::<u64>(),
        size in 100usize..20_000,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let block = text(size, seed);
        if let Some(mut packed) = packed(codec, &block) {
            for (at, byte) in damage {
                *at.get_mut(&mut packed) = byte;
            }
            _ = unpacked(codec, &packed, size);
            _ = unpacked(codec, &packed[..cut.index(packed.len())], size);
        }
    }
}
