//! What needs no kernel: the hash, the cipher, the frames, the codecs and what decides about them.

use crate::measure::{Case, Work, timed};
use anyhow::{Context as _, Result, ensure};
use haul_engine::limits::{BLOCK_BYTES, SECOND};
use haul_engine::session::codec::{Plan, Policy};
use haul_engine::wire::compress::{Codec, compress, decompress};
use haul_engine::wire::decode::{Decoder, Event, Role};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{Dialect, Ext, Frame, PathField};
use haul_engine::wire::seal::{LENGTH_BYTES, Seals, Secret, TAG_BYTES};
use std::hint::black_box;

/// Bytes hashed in one run.
const HASH_BYTES: usize = 256 << 20;
/// Files whose control frames make one run.
const FILES: usize = 50_000;
/// Data frames of one block each that make one run.
const DATA_FRAMES: usize = 1_000_000;
/// Blocks that a codec takes in one run.
const CODEC_BLOCKS: usize = 64;
/// Blocks about which is decided in one run.
const POLICY_BLOCKS: u64 = 10_000_000;
/// As between two haul peers.
const DIALECT: Dialect = Dialect { version: 1, ext: Ext(Ext::BYTES.0 | Ext::TREE.0 | Ext::META.0 | Ext::COMMIT.0) };

/// BLAKE3 on one thread, over the same bytes again and again: they stay as near as a block just received is.
pub(crate) fn hashes() -> Vec<Case> {
    let case = |(size, shown): (usize, &str)| {
        let block = vec![0x5a_u8; size];
        let hash = move || {
            (0..HASH_BYTES / size).for_each(|_| _ = black_box(blake3::hash(black_box(&block))));
            Ok(())
        };
        Case::new(format!("hash: BLAKE3 of {shown}"), Work::Bytes(HASH_BYTES as u64), move || timed(&hash))
    };
    [(64 << 10, "64 KiB"), (BLOCK_BYTES, "512 KiB"), (4 << 20, "4 MiB")].map(case).into()
}

/// AES-256-GCM of records of several sizes, sealed and opened where they stand, on one thread.
pub(crate) fn records() -> Vec<Case> {
    let case = |(size, shown): (usize, &str)| {
        let mut record = vec![0x5a_u8; LENGTH_BYTES + size + TAG_BYTES];
        let secret = Secret::from_bytes([7; 32]);
        let mut ends = [Role::Client, Role::Server].map(|role| Seals::keyed(&secret, b"bench", role));
        let mut seal_and_open = move || -> Result<()> {
            for _ in 0..HASH_BYTES / size {
                let [near, far] = &mut ends;
                near.sealer.next()?.seal(black_box(&mut record));
                let plain = far.opener.next()?.open(black_box(&mut record))?;
                ensure!(plain.len() == size, "{} bytes were opened", plain.len());
            }
            Ok(())
        };
        let name = format!("records: seal and open {shown} each");
        Case::new(name, Work::Bytes(HASH_BYTES as u64), move || timed(&mut seal_and_open))
    };
    let sizes = [64, 128, 256, 512, 1024, 4096].map(|kib| kib << 10);
    sizes.into_iter().zip(["64 KiB", "128 KiB", "256 KiB", "512 KiB", "1 MiB", "4 MiB"]).map(case).collect()
}

/// Control frames as the upload of a small file needs them, and Data heads with their payload passing by.
pub(crate) fn frames() -> Result<Vec<Case>> {
    let path = PathField(b"home/user/project/src/session/download.rs".to_vec());
    let put = Frame::Put { path, size: 65_536, offset: 0, overwrite: true };
    let file = [put, Frame::Commit { hash: [7; 32] }, Frame::Ok { hash: Some([7; 32]) }];
    let count = FILES * file.len();
    let encode_all = move |out: &mut Vec<u8>| -> Result<()> {
        out.clear();
        (0..FILES).flat_map(|_| &file).try_for_each(|frame| Ok(encode::frame(black_box(frame), DIALECT, out)?))
    };
    let (mut encoded, mut out) = (Vec::new(), Vec::new());
    encode_all(&mut encoded)?;
    let mut data = encode::data_header(BLOCK_BYTES as u32).to_vec();
    data.resize(data.len() + BLOCK_BYTES, 0);
    let decode_control = move || {
        // Input comes in blocks, so that some frames are cut as they are in life.
        let (frames, _) = decode(encoded.chunks(BLOCK_BYTES))?;
        ensure!(frames == count, "{frames} frames were decoded");
        Ok(())
    };
    let decode_data = move || {
        let (_, bytes) = decode(std::iter::repeat_n(&*data, DATA_FRAMES))?;
        ensure!(bytes == DATA_FRAMES * BLOCK_BYTES, "{bytes} bytes were decoded");
        Ok(())
    };
    let (control, bytes) = (|| Work::Items(count as u64, "frames"), (DATA_FRAMES * BLOCK_BYTES) as u64);
    Ok(vec![
        Case::new("frames: encode control", control(), move || timed(|| encode_all(&mut out))),
        Case::new("frames: decode control", control(), move || timed(&decode_control)),
        Case::new("frames: decode Data, 512 KiB each, not touched", Work::Bytes(bytes), move || timed(&decode_data)),
    ])
}

/// Number of control frames and of payload bytes.
fn decode<'a>(inputs: impl Iterator<Item = &'a [u8]>) -> Result<(usize, usize)> {
    let mut decoder = Decoder::new(Role::Server, DIALECT);
    let (mut frames, mut bytes) = (0, 0);
    for mut input in inputs {
        while let (used, Some(event)) = decoder.next(black_box(input))? {
            match black_box(event) {
                Event::Frame(_) => frames += 1,
                Event::Piece { len, .. } => bytes += len,
                _ => {}
            }
            input = &input[used..];
        }
    }
    Ok((frames, bytes))
}

/// Both codecs both ways, over text and over random bytes; random bytes behind the samples that keep them from the codec;
/// and the decision about a block, as blocks a second: against a codec's rate it is its share of the time.
pub(crate) fn codecs() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for codec in [Codec::Zstd, Codec::Lz4] {
        for (shown, blocks) in [("text", blocks(text)), ("random", blocks(random))] {
            let name = format!("codec: {} compress, {shown}", codec.name());
            cases.push(compressing(name, codec, blocks.clone(), false));
            if shown == "text" {
                cases.push(decompressing(codec, &blocks)?);
            }
        }
    }
    cases.push(compressing("codec: samples only, random".to_string(), Codec::Zstd, blocks(random), true));
    cases.push(Case::new("codec: policy", Work::Items(POLICY_BLOCKS, "blocks"), || timed(decide)));
    Ok(cases)
}

fn compressing(name: String, codec: Codec, blocks: Vec<Vec<u8>>, probe: bool) -> Case {
    let mut into = vec![0; BLOCK_BYTES];
    Case::new(name, Work::Bytes((blocks.len() * BLOCK_BYTES) as u64), move || {
        timed(|| {
            blocks.iter().for_each(|block| _ = black_box(compress(codec, black_box(block), &mut into, probe)));
            Ok(())
        })
    })
}

fn decompressing(codec: Codec, blocks: &[Vec<u8>]) -> Result<Case> {
    let mut packed = Vec::new();
    for block in blocks {
        let mut into = vec![0; BLOCK_BYTES];
        let len = compress(codec, block, &mut into, false);
        into.truncate(len.with_context(|| format!("{} does not compress the text", codec.name()))?);
        packed.push(into);
    }
    let mut into = vec![0; BLOCK_BYTES];
    let ratio = packed.iter().map(Vec::len).sum::<usize>() as f64 / (blocks.len() * BLOCK_BYTES) as f64;
    let name = format!("codec: {} decompress, text, ratio {ratio:.2}", codec.name());
    Ok(Case::new(name, Work::Bytes((blocks.len() * BLOCK_BYTES) as u64), move || {
        timed(|| Ok(packed.iter().try_for_each(|block| decompress(codec, black_box(block), &mut into))?))
    }))
}

/// As a session asks and tells, once a block, on a link of 100 MB/s.
fn decide() -> Result<()> {
    let mut policy = Policy::new(Some(Codec::Zstd), true, 1);
    let mut compressed = 0;
    for _ in 0..POLICY_BLOCKS {
        let plan = black_box(policy.plan());
        compressed += u64::from(plan != Plan::Raw);
        policy.on_packed(BLOCK_BYTES, Some(black_box(BLOCK_BYTES / 5)), SECOND / 1000);
        policy.on_sent(BLOCK_BYTES as u64 / 5, SECOND / 1000);
    }
    ensure!(compressed == POLICY_BLOCKS, "{compressed} blocks were to be compressed");
    Ok(())
}

fn blocks(content: fn(&mut dyn FnMut() -> u64) -> Vec<u8>) -> Vec<Vec<u8>> {
    // xorshift64*: the same bytes in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    (0..CODEC_BLOCKS).map(|_| content(&mut next)).collect()
}

fn random(next: &mut dyn FnMut() -> u64) -> Vec<u8> {
    (0..BLOCK_BYTES).map(|_| next() as u8).collect()
}

/// Phrases of a few hundred words, most of them from a few: compresses about as well as a source tree.
fn text(next: &mut dyn FnMut() -> u64) -> Vec<u8> {
    let mut letters = |len: u64| (0..len).map(|_| b'a' + (next() % 26) as u8).collect::<Vec<u8>>();
    let words: Vec<Vec<u8>> = (0..512).map(|number| letters(2 + number % 7)).collect();
    let mut rank = || (next() % 512 * (next() % 512) / 512) as usize;
    let phrases: Vec<Vec<u8>> = (0..1024)
        .map(|number| (0..1 + number % 6).flat_map(|_| [&words[rank()][..], b" "].concat()).collect())
        .collect();
    let mut block = Vec::with_capacity(BLOCK_BYTES + 100);
    while block.len() < BLOCK_BYTES {
        block.extend_from_slice(&phrases[rank() * 2]);
    }
    block.truncate(BLOCK_BYTES);
    block
}
