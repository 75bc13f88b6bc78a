//! What needs no kernel: the hash and the frames.

use crate::measure::{Case, Work, timed};
use anyhow::{Result, ensure};
use haul_engine::limits::BLOCK_BYTES;
use haul_engine::wire::decode::{Decoder, Event, Role};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{Dialect, Ext, Frame, PathField};
use std::hint::black_box;

/// Bytes hashed in one run.
const HASH_BYTES: usize = 256 << 20;
/// Files whose control frames make one run.
const FILES: usize = 50_000;
/// Data frames of one block each that make one run.
const DATA_FRAMES: usize = 1_000_000;
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
