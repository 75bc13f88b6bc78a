//! Frames of the base protocol by hand. They are written out here a second time, independent of haul's encoder and
//! decoder, so that an error in those does not hide in the test.

use std::borrow::Cow;

/// The type bytes that are looked for.
pub mod kind {
    pub const HELLO: u8 = 0x01;
    pub const LIST: u8 = 0x02;
    pub const STAT: u8 = 0x03;
    pub const HASH: u8 = 0x04;
    pub const GET: u8 = 0x05;
    pub const PUT: u8 = 0x06;
    pub const MKDIR: u8 = 0x07;
    pub const RESUME: u8 = 0x08;
    pub const DONE: u8 = 0x09;
    pub const HAVE_BLOCKS: u8 = 0x0a;
    pub const OPEN_DIRECT_CHANNEL: u8 = 0x0b;
    pub const AUTH_HELLO: u8 = 0x0c;
    pub const PUT_CHUNKED: u8 = 0x0d;
    pub const GET_CHUNKED: u8 = 0x0e;
    pub const TRUNCATE: u8 = 0x0f;
    /// Between two haul peers, as are the next two, and what has KEYED in its name.
    pub const SKIP: u8 = 0x48;
    pub const KEYED_HELLO: u8 = 0x49;
    pub const RANGE_PUT: u8 = 0x4c;
    pub const WELCOME: u8 = 0x81;
    pub const OK: u8 = 0x82;
    pub const ERROR: u8 = 0x83;
    pub const DATA: u8 = 0x84;
    pub const STAT_RESPONSE: u8 = 0x85;
    pub const HASH_RESPONSE: u8 = 0x86;
    pub const LIST_RESPONSE: u8 = 0x87;
    pub const DATA_COMPRESSED: u8 = 0x89;
    pub const MISSING_BLOCKS: u8 = 0x8a;
    pub const DIRECT_CHANNEL_READY: u8 = 0x8b;
    pub const AUTH_CHALLENGE: u8 = 0x8c;
    pub const KEYED_WELCOME: u8 = 0xc4;
}

/// The codecs of DataCompressed.
pub const LZ4: u8 = 1;
/// See [`LZ4`].
pub const ZSTD: u8 = 2;
/// What dedup cuts files into, and the most that newer peers take in one data frame.
pub const BLOCK: usize = 4 << 20;
/// What the length field of a frame may say.
pub const MAX_FRAME: usize = 16 << 20;

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Raw<'a> {
    pub kind: u8,
    /// What follows the type byte.
    pub body: Cow<'a, [u8]>,
}

/// A frame of these fields.
pub fn frame(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
    let body = fields.concat();
    [&(body.len() as u32 + 1).to_le_bytes()[..], &[kind], &body].concat()
}

/// A field of bytes with their length in front.
pub fn bytes(content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [&(content.len() as u32).to_le_bytes()[..], content].concat()
}

/// A frame that consists of a path.
pub fn about(kind: u8, path: impl AsRef<[u8]>) -> Vec<u8> {
    frame(kind, &[&bytes(path)])
}

pub fn hello(version: u8, caps: u8) -> Vec<u8> {
    frame(kind::HELLO, &[&[version, caps]])
}

pub fn get(path: impl AsRef<[u8]>, offset: u64) -> Vec<u8> {
    frame(kind::GET, &[&bytes(path), &offset.to_le_bytes()])
}

pub fn hash(path: impl AsRef<[u8]>, offset: u64, limit: Option<u64>) -> Vec<u8> {
    let limit = limit.map_or(vec![0], |limit| [&[1][..], &limit.to_le_bytes()].concat());
    frame(kind::HASH, &[&bytes(path), &offset.to_le_bytes(), &limit])
}

/// A Put that may replace, as `version` has it.
pub fn put(version: u8, path: impl AsRef<[u8]>, size: usize, offset: u64) -> Vec<u8> {
    put_over(version, path, size, offset, true)
}

/// Version 1 has no `overwrite`.
pub fn put_over(version: u8, path: impl AsRef<[u8]>, size: usize, offset: u64, overwrite: bool) -> Vec<u8> {
    let policy: &[u8] = if version == 2 { &[u8::from(overwrite)] } else { &[] };
    frame(kind::PUT, &[&bytes(path), &(size as u64).to_le_bytes(), &offset.to_le_bytes(), policy])
}

pub fn data(content: &[u8]) -> Vec<u8> {
    frame(kind::DATA, &[&bytes(content)])
}

pub fn compressed(codec: u8, original: usize, content: &[u8]) -> Vec<u8> {
    frame(kind::DATA_COMPRESSED, &[&[codec], &(original as u32).to_le_bytes(), &bytes(content)])
}

pub fn done() -> Vec<u8> {
    frame(kind::DONE, &[])
}

/// A range of a file: PutChunked or GetChunked.
pub fn range(kind: u8, path: &str, offset: u64, length: usize) -> Vec<u8> {
    frame(kind, &[&bytes(path), &offset.to_le_bytes(), &(length as u64).to_le_bytes()])
}

/// A whole Put with its end.
pub fn whole_put(version: u8, path: impl AsRef<[u8]>, content: &[u8]) -> Vec<u8> {
    [put(version, path, content.len(), 0), data(content), done()].concat()
}

pub fn have_blocks(block_size: usize, hashes: &[[u8; 32]]) -> Vec<u8> {
    let (size, count) = ((block_size as u32).to_le_bytes(), (hashes.len() as u32).to_le_bytes());
    frame(kind::HAVE_BLOCKS, &[&size, &count, hashes.as_flattened()])
}

/// `len` times `byte`, 25 at least, as a raw LZ4 block: a literal, one match over it, and the five literals at the end
/// that the format asks for.
pub fn lz4_run(byte: u8, len: usize) -> Vec<u8> {
    let more = len - 1 - 5 - 4 - 15;
    let mut block = vec![0x1f, byte, 1, 0];
    block.extend(vec![255; more / 255]);
    block.push((more % 255) as u8);
    block.push(0x50);
    block.extend([byte; 5]);
    block
}

/// `len` times `byte` as a Zstandard frame of runs (RFC 8878, 3.1.1): single segment, content size in 4 bytes.
pub fn zstd_run(byte: u8, len: usize) -> Vec<u8> {
    const RUN: usize = 128 << 10;
    let mut frame = [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &(len as u32).to_le_bytes()].concat();
    for start in (0..len).step_by(RUN) {
        let run = RUN.min(len - start);
        let head = (run << 3 | 1 << 1 | usize::from(start + run == len)) as u32;
        frame.extend(&head.to_le_bytes()[..3]);
        frame.push(byte);
    }
    frame
}

/// BLAKE3 as Ok and HashResponse have it.
pub fn hex(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

/// Reads fields from the front of a body.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn raw<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.raw().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.raw().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.raw().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    pub fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }
}

impl Raw<'_> {
    pub fn fields(&self) -> Fields<'_> {
        Fields(&self.body)
    }

    /// The text of an Error.
    pub fn error(&self) -> Option<String> {
        if self.kind == kind::ERROR { self.fields().text() } else { None }
    }

    /// The hash of an Ok; `Some(None)` for an Ok without one.
    pub fn ok(&self) -> Option<Option<String>> {
        let mut fields = self.fields();
        match (self.kind, fields.u8()?) {
            (kind::OK, 1) => fields.text().map(Some),
            (kind::OK, _) => Some(None),
            _ => None,
        }
    }
}

/// Splits a whole stream; says where it is not made of frames.
pub fn split(mut stream: &[u8]) -> Result<Vec<Raw<'_>>, String> {
    let mut frames = Vec::new();
    let whole = stream.len();
    while !stream.is_empty() {
        let at = whole - stream.len();
        let (frame, rest) = first(stream).map_err(|why| format!("{why} at {at}"))?;
        frames.push(frame);
        stream = rest;
    }
    Ok(frames)
}

/// The first frame of a stream, and what is behind it.
pub fn first(stream: &[u8]) -> Result<(Raw<'_>, &[u8]), String> {
    let mut fields = Fields(stream);
    let body = fields.bytes().ok_or("the stream is cut inside the frame")?;
    let (&kind, body) = body.split_first().ok_or("there is an empty frame")?;
    Ok((Raw { kind, body: Cow::Borrowed(body) }, fields.0))
}
