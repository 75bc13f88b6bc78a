//! Compressed blocks: the payload of a `DataCompressed` frame.
//!
//! Owns how one block is packed and unpacked, and the rule which packed blocks are worth sending. Which blocks are tried
//! at all is the sending session's policy. Every block stands alone: one raw LZ4 block without a size in front of it, or
//! one standard Zstandard frame with its content size and no checksum.
//!
//! ```text
//! block -> probe: eight samples --all dense--> None, sent as Data
//!            | one is not
//!            v
//!          LZ4 | Zstandard --above 95 %--> None, sent as Data
//!            | at most 95 %
//!            v
//!          payload -> decompress into exactly the declared size, or BadBlock
//! ```
//!
//! ```
//! use haul_engine::wire::compress::{Codec, compress, decompress};
//!
//! let (block, mut payload, mut back) = (vec![b'a'; 1000], vec![0; 1000], vec![0; 1000]);
//! let len = compress(Codec::Zstd, &block, &mut payload, true).unwrap();
//! decompress(Codec::Zstd, &payload[..len], &mut back).unwrap();
//! assert_eq!(back, block);
//! ```
//!
//! What a codec needs is made once a thread and kept: 1.3 MiB for packing with Zstandard, 96 KiB for unpacking (measured,
//! zstd 1.5.7), and for packing with LZ4 1.1 times the largest block, at most [`MAX_BLOCK`], unless the caller's room is as
//! large. Nothing a peer sends changes that.

use super::MAX_BLOCK;
use super::frame::Caps;
use crate::limits::{
    PACKED_PERCENT, PROBE_ENTROPY_BITS, PROBE_FROM_BYTES, PROBE_LZ4_PERCENT, PROBE_SAMPLE_BYTES, PROBE_SAMPLES,
    ZSTD_LEVEL,
};
use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{find_frame_compressed_size, get_frame_content_size};

/// How a block is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codec {
    /// A raw LZ4 block (lz4_Block_format.md), 1 on the wire.
    Lz4,
    /// A Zstandard frame (RFC 8878), 2 on the wire.
    Zstd,
}

impl Codec {
    /// The codec with this number on the wire.
    pub fn from_algo(algo: u8) -> Option<Codec> {
        match algo {
            1 => Some(Codec::Lz4),
            2 => Some(Codec::Zstd),
            _ => None,
        }
    }

    /// Its number on the wire.
    pub fn algo(self) -> u8 {
        match self {
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    /// Its name as the user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// The codec to send with under the capabilities in force; both ends come to the same.
    pub fn agreed(caps: Caps) -> Option<Codec> {
        if caps.has(Caps::ZSTD) {
            Some(Codec::Zstd)
        } else if caps.has(Caps::LZ4) {
            Some(Codec::Lz4)
        } else {
            None
        }
    }
}

/// A compressed block that is not what its frame declares. The peer is at fault, or what carried the bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadBlock {
    /// Not a block of this codec.
    #[error("a block compressed with {} is malformed: {why}", .codec.name())]
    Malformed {
        /// What it was declared to be.
        codec: Codec,
        /// In the words of the codec.
        why: String,
    },
    /// It holds fewer bytes than declared.
    #[error("a compressed block holds {actual} bytes where {declared} are declared")]
    Shorter {
        /// Bytes the frame declares.
        declared: usize,
        /// Bytes it holds.
        actual: usize,
    },
    /// It holds more bytes than declared.
    #[error("a compressed block holds more than the {declared} bytes that are declared")]
    Longer {
        /// Bytes the frame declares.
        declared: usize,
    },
    /// The compressed block ends before its payload does.
    #[error("{extra} bytes follow a compressed block in its frame")]
    Trailing {
        /// Bytes behind it.
        extra: usize,
    },
}

thread_local! {
    static ZSTD_PACKER: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static ZSTD_UNPACKER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    static LZ4_PACKER: RefCell<Lz4Packer> = RefCell::new(Lz4Packer { table: CompressTable::large(), room: Vec::new() });
    static SAMPLE_TABLE: RefCell<CompressTable> = RefCell::new(CompressTable::small());
}

/// `room`: where the packed block goes if the caller has less room than the worst case takes.
struct Lz4Packer {
    table: CompressTable,
    room: Vec<u8>,
}

/// Compresses `from` into `into` and tells the bytes written. `None` means that the block is to be sent as it is: the
/// result would be more than 95 % of it, or does not fit `into`, or `from` is empty or above [`MAX_BLOCK`].
///
/// With `probe`, samples are looked at first, and where they show that it will not pay nothing else is done. `into` holds
/// nothing of use after `None`.
pub fn compress(codec: Codec, from: &[u8], into: &mut [u8], probe: bool) -> Option<usize> {
    if from.is_empty() || from.len() > MAX_BLOCK as usize || (probe && looks_dense(from)) {
        return None;
    }
    let len = match codec {
        Codec::Lz4 => compress_lz4(from, into),
        Codec::Zstd => compress_zstd(from, into),
    }?;
    at_most(len, PACKED_PERCENT, from.len()).then_some(len)
}

/// Decompresses `from`, which must be one block of exactly `into.len()` bytes and nothing else. `into` holds nothing of
/// use after an error. Nothing is allocated for what `from` declares.
pub fn decompress(codec: Codec, from: &[u8], into: &mut [u8]) -> Result<(), BadBlock> {
    let actual = match codec {
        Codec::Lz4 => decompress_lz4(from, into),
        Codec::Zstd => decompress_zstd(from, into),
    }?;
    if actual < into.len() {
        return Err(BadBlock::Shorter { declared: into.len(), actual });
    }
    Ok(())
}

fn at_most(len: usize, percent: u64, of: usize) -> bool {
    len as u64 * 100 <= of as u64 * percent
}

fn compress_lz4(from: &[u8], into: &mut [u8]) -> Option<usize> {
    LZ4_PACKER.with_borrow_mut(|Lz4Packer { table, room }| {
        let worst = get_maximum_output_size(from.len());
        if into.len() >= worst {
            return compress_into_with_table(from, into, table).ok();
        }
        // The codec wants room for the worst case, which a block of the same size as `from` does not have.
        if room.len() < worst {
            room.resize(worst, 0);
        }
        let len = compress_into_with_table(from, room, table).ok()?;
        into.get_mut(..len)?.copy_from_slice(&room[..len]);
        Some(len)
    })
}

fn compress_zstd(from: &[u8], into: &mut [u8]) -> Option<usize> {
    ZSTD_PACKER.with_borrow_mut(|packer| {
        if packer.is_none() {
            *packer = Compressor::new(ZSTD_LEVEL).ok();
        }
        // An error is a result that does not fit; the next call starts anew.
        packer.as_mut()?.compress_to_buffer(from, into).ok()
    })
}

fn decompress_lz4(from: &[u8], into: &mut [u8]) -> Result<usize, BadBlock> {
    decompress_into(from, into).map_err(|error| match error {
        DecompressError::OutputTooSmall { .. } => BadBlock::Longer { declared: into.len() },
        other => malformed(Codec::Lz4, other),
    })
}

fn decompress_zstd(from: &[u8], into: &mut [u8]) -> Result<usize, BadBlock> {
    // The codec itself takes any number of frames one behind the other, skippable ones as well, and no frame at all.
    if !from.starts_with(&zstd::zstd_safe::MAGICNUMBER.to_le_bytes()) {
        return Err(malformed(Codec::Zstd, "it does not begin as a frame"));
    }
    let content = get_frame_content_size(from).map_err(|error| malformed(Codec::Zstd, error))?;
    if content.is_some_and(|size| size > into.len() as u64) {
        return Err(BadBlock::Longer { declared: into.len() });
    }
    let frame = find_frame_compressed_size(from)
        .map_err(|code| malformed(Codec::Zstd, zstd::zstd_safe::get_error_name(code)))?;
    if frame < from.len() {
        return Err(BadBlock::Trailing { extra: from.len() - frame });
    }
    ZSTD_UNPACKER.with_borrow_mut(|slot| {
        let unpacker = match slot {
            Some(unpacker) => unpacker,
            None => slot.insert(Decompressor::new().map_err(|error| malformed(Codec::Zstd, error))?),
        };
        unpacker.decompress_to_buffer(from, into).map_err(|error| malformed(Codec::Zstd, error))
    })
}

fn malformed(codec: Codec, why: impl ToString) -> BadBlock {
    BadBlock::Malformed { codec, why: why.to_string() }
}

/// True when every sample of a block looks as if nothing could be gained: a guess that costs a tenth of the try it saves.
fn looks_dense(block: &[u8]) -> bool {
    if block.len() < PROBE_FROM_BYTES {
        return false;
    }
    let part = block.len() / PROBE_SAMPLES;
    // From the middle of each part: the very first bytes of a file are the least like the rest of it.
    let samples = block.chunks_exact(part).map(|part| &part[(part.len() - PROBE_SAMPLE_BYTES) / 2..]);
    samples
        .map(|rest| &rest[..PROBE_SAMPLE_BYTES])
        .all(|sample| entropy(sample) >= PROBE_ENTROPY_BITS && !repeats(sample))
}

/// Bits per byte, estimated from how often two bytes of the sample are equal (Renyi's entropy of order 2). It is never
/// above Shannon's, so the estimate errs towards trying, and takes one logarithm in place of 256.
fn entropy(sample: &[u8]) -> f32 {
    // Four tables, so that equal neighbours do not wait for each other's increment.
    let mut counts = [[0_u16; 256]; 4];
    for four in sample.chunks_exact(4) {
        for (table, &byte) in counts.iter_mut().zip(four) {
            table[usize::from(byte)] += 1;
        }
    }
    let pairs: u32 = (0..256).map(|byte| counts.iter().map(|table| u32::from(table[byte])).sum::<u32>().pow(2)).sum();
    let total = sample.len() as f32;
    -(pairs as f32 / (total * total)).log2()
}

/// True when LZ4 finds something in the sample.
fn repeats(sample: &[u8]) -> bool {
    const ROOM: usize = get_maximum_output_size(PROBE_SAMPLE_BYTES);
    let mut room = [0; ROOM];
    let packed = SAMPLE_TABLE.with_borrow_mut(|table| compress_into_with_table(sample, &mut room, table));
    packed.is_ok_and(|len| at_most(len, PROBE_LZ4_PERCENT, sample.len()))
}
