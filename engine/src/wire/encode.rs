//! Frames to bytes.
//!
//! Owns the layout on the way out. Refuses what the peer could not read (too large, a type or a name outside the
//! dialect) because such a frame would cost the connection at the other end. Bulk data is not copied here: a `Data`
//! frame is a header from [`data_header`] and the payload sent behind it.

use super::frame::{Attributes, Dialect, Ext, Frame, Hash, PathField};
use super::{MAX_BLOCK, MAX_COUNT, MAX_FRAME, type_byte};

/// Why a frame cannot be sent in this dialect. The output is left as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    /// The frame would be longer than 16 MiB.
    #[error("the message is larger than the protocol's 16 MiB")]
    TooLarge,
    /// The base protocol carries UTF-8 names only.
    #[error("the name is not valid UTF-8, which the protocol spoken with this peer cannot carry")]
    NotUtf8,
    /// The frame belongs to an extension that was not agreed on.
    #[error("the peer does not offer this operation")]
    NotAgreed,
    /// A nanosecond field of 1,000,000,000 or more.
    #[error("the file's time is not a valid time")]
    BadTime,
}

/// Appends `frame`, length prefix included, to `out`. On an error `out` is what it was before.
pub fn frame(frame: &Frame, dialect: Dialect, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    let result = Body { dialect, out }.frame(frame);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// Bytes of [`data_header`].
pub const DATA_HEADER_BYTES: usize = 9;

/// The bytes before the payload of a `Data` frame of `len` bytes; at most [`MAX_BLOCK`] towards base peers.
pub fn data_header(len: u32) -> [u8; DATA_HEADER_BYTES] {
    debug_assert!(len as usize <= MAX_FRAME - 5, "a Data payload of {len} bytes does not fit a frame");
    let mut header = [0; DATA_HEADER_BYTES];
    header[..4].copy_from_slice(&(len + 5).to_le_bytes());
    header[4] = type_byte::DATA;
    header[5..].copy_from_slice(&len.to_le_bytes());
    header
}

/// The bytes before the payload of a `DataCompressed` frame: codec (1 LZ4, 2 Zstandard), decompressed and compressed
/// size in bytes.
pub fn compressed_header(algo: u8, original: u32, len: u32) -> [u8; 14] {
    debug_assert!(matches!(algo, 1 | 2), "codec {algo} does not exist");
    debug_assert!((1..=MAX_BLOCK).contains(&original), "a block of {original} bytes is out of bounds");
    debug_assert!(len as usize <= MAX_FRAME - 10, "a payload of {len} bytes does not fit a frame");
    let mut header = [0; 14];
    header[..4].copy_from_slice(&(len + 10).to_le_bytes());
    header[4] = type_byte::DATA_COMPRESSED;
    header[5] = algo;
    header[6..10].copy_from_slice(&original.to_le_bytes());
    header[10..].copy_from_slice(&len.to_le_bytes());
    header
}

/// The body of one frame while it is written. The primitives are those of the base protocol, little endian.
struct Body<'a> {
    dialect: Dialect,
    out: &'a mut Vec<u8>,
}

impl Body<'_> {
    /// Writes the whole frame: four bytes kept free, the body, then its length into them.
    fn frame(mut self, frame: &Frame) -> Result<(), EncodeError> {
        let type_byte = type_of(frame);
        if !type_byte::extension(type_byte).is_some_and(|ext| self.dialect.ext.has(ext)) {
            return Err(EncodeError::NotAgreed);
        }
        let start = self.out.len();
        self.out.extend_from_slice(&[0, 0, 0, 0, type_byte]);
        self.request(frame)?;
        let length = self.out.len() - start - 4;
        if length > MAX_FRAME {
            return Err(EncodeError::TooLarge);
        }
        self.out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(())
    }

    /// Fields of the client's base frames; hands all others on.
    fn request(&mut self, frame: &Frame) -> Result<(), EncodeError> {
        match frame {
            Frame::Hello { version, caps, ext } => {
                self.out.extend_from_slice(&[*version, caps.0]);
                self.ext(*ext);
            }
            Frame::List { path } | Frame::Stat { path } | Frame::Mkdir { path } | Frame::Resume { path } => {
                self.path(path)?;
            }
            Frame::Hash { path, offset, limit } => {
                self.path(path)?;
                self.u64(*offset);
                self.out.push(u8::from(limit.is_some()));
                if let Some(limit) = limit {
                    self.u64(*limit);
                }
            }
            Frame::Get { path, offset } => {
                self.path(path)?;
                self.u64(*offset);
            }
            Frame::Put { path, size, offset, overwrite } => {
                self.path(path)?;
                self.u64(*size);
                self.u64(*offset);
                if self.dialect.version >= 2 {
                    self.out.push(u8::from(*overwrite));
                }
            }
            Frame::HaveBlocks { block_size, hashes } => {
                self.u32(*block_size);
                self.count(hashes.len())?;
                self.out.extend_from_slice(hashes.as_flattened());
            }
            Frame::AuthHello { mac } => self.out.extend_from_slice(mac),
            Frame::PutChunked { path, offset, length } | Frame::GetChunked { path, offset, length } => {
                self.path(path)?;
                self.u64(*offset);
                self.u64(*length);
            }
            Frame::Truncate { path, size } => {
                self.path(path)?;
                self.u64(*size);
            }
            _ => self.reply(frame)?,
        }
        Ok(())
    }

    /// Fields of the server's base frames; hands all others on.
    fn reply(&mut self, frame: &Frame) -> Result<(), EncodeError> {
        match frame {
            Frame::Welcome { version, caps, ext } => {
                self.out.extend_from_slice(&[*version, caps.0]);
                self.ext(*ext);
            }
            Frame::Ok { hash } => self.opt_hex_hash(hash.as_ref()),
            Frame::Error { message, .. } if self.dialect.ext == Ext::NONE => {
                self.bytes(String::from_utf8_lossy(message).as_bytes())?;
            }
            Frame::Error { message, code } => {
                self.bytes(message)?;
                self.u16(code.0);
            }
            Frame::StatResponse { size, mtime, is_dir } => {
                self.u64(*size);
                self.i64(*mtime);
                self.out.push(u8::from(*is_dir));
            }
            Frame::HashResponse { hash } => self.hex_hash(hash),
            Frame::ListResponse { entries } => {
                self.count(entries.len())?;
                for entry in entries {
                    self.path(&entry.path)?;
                    self.u64(entry.size);
                    self.i64(entry.mtime);
                    self.out.push(u8::from(entry.is_dir));
                }
            }
            Frame::ResumeResponse { size, hash } => {
                self.u64(*size);
                self.opt_hex_hash(hash.as_ref());
            }
            Frame::MissingBlocks { bitmap } => self.bytes(bitmap)?,
            Frame::DirectChannelReady { address, key } => {
                self.text(address)?;
                self.out.extend_from_slice(key);
            }
            Frame::AuthChallenge { nonce } => self.out.extend_from_slice(nonce),
            _ => self.extension(frame)?,
        }
        Ok(())
    }

    /// Fields of the extension frames; all others have none.
    fn extension(&mut self, frame: &Frame) -> Result<(), EncodeError> {
        match frame {
            Frame::Tree { walk, path, recursive } => {
                self.u32(*walk);
                self.path(path)?;
                self.out.push(u8::from(*recursive));
            }
            Frame::TreeNext { walk } => self.u32(*walk),
            Frame::Lookup { path, follow } => {
                self.path(path)?;
                self.out.push(u8::from(*follow));
            }
            Frame::Commit { hash } => self.out.extend_from_slice(hash),
            Frame::Abandon { code } => self.u16(code.0),
            Frame::SetMeta { path, attributes, preserve } => {
                self.path(path)?;
                self.attributes(attributes)?;
                self.out.push(preserve.0);
            }
            Frame::Symlink { path, target, attributes, preserve } => {
                self.path(path)?;
                self.bytes(target)?;
                self.attributes(attributes)?;
                self.out.push(preserve.0);
            }
            Frame::TreePage { last, entries } => {
                self.out.push(u8::from(*last));
                self.count(entries.len())?;
                for entry in entries {
                    self.path(&entry.path)?;
                    self.attributes(&entry.attributes)?;
                    self.bytes(&entry.link)?;
                    self.u16(entry.error.0);
                }
            }
            Frame::Meta { attributes, preserve } => {
                self.attributes(attributes)?;
                self.out.push(preserve.0);
            }
            Frame::AttributesResponse { attributes, link } => {
                self.attributes(attributes)?;
                self.bytes(link)?;
            }
            Frame::Continue { path, size } => {
                self.path(path)?;
                self.u64(*size);
            }
            Frame::Skip { offset } => self.u64(*offset),
            Frame::KeyedHello { random, index, caps, ext, mac } => {
                self.out.extend_from_slice(random);
                self.u16(*index);
                self.out.push(caps.0);
                self.u32(ext.0);
                self.out.extend_from_slice(mac);
            }
            Frame::KeyedWelcome { caps, ext, mac } => {
                self.out.push(caps.0);
                self.u32(ext.0);
                self.out.extend_from_slice(mac);
            }
            Frame::DaemonHello { random, public, index, caps, ext, mac } => {
                self.out.extend_from_slice(random);
                self.out.extend_from_slice(public);
                self.u16(*index);
                self.out.push(caps.0);
                self.u32(ext.0);
                self.out.extend_from_slice(mac);
            }
            Frame::DaemonWelcome { public, caps, ext, mac } => {
                self.out.extend_from_slice(public);
                self.out.push(caps.0);
                self.u32(ext.0);
                self.out.extend_from_slice(mac);
            }
            Frame::Kept { blocks } => {
                self.count(blocks.len())?;
                self.out.extend_from_slice(blocks.as_flattened());
            }
            Frame::RangeBegin { path, size, attributes, preserve, keep } => {
                self.path(path)?;
                self.u64(*size);
                self.attributes(attributes)?;
                self.out.extend_from_slice(&[preserve.0, u8::from(*keep)]);
            }
            Frame::RangePut { token, offset, length } => {
                [token, offset, length].into_iter().for_each(|number| self.u64(*number));
            }
            Frame::RangeCommit { token, hash } => {
                self.u64(*token);
                self.out.extend_from_slice(hash);
            }
            Frame::RangeAbandon { token } => self.u64(*token),
            Frame::Unkept(what) => self.out.push(what.0),
            Frame::Blocks { path, length } => {
                self.path(path)?;
                self.u64(*length);
            }
            Frame::RangeBegun { token, blocks } => {
                self.u64(*token);
                self.count(blocks.len())?;
                self.out.extend_from_slice(blocks.as_flattened());
            }
            _ => {}
        }
        Ok(())
    }

    fn u16(&mut self, value: u16) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn i64(&mut self, value: i64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn ext(&mut self, ext: Option<Ext>) {
        if let Some(ext) = ext {
            self.u32(ext.0);
        }
    }

    fn count(&mut self, count: usize) -> Result<(), EncodeError> {
        if count > MAX_COUNT {
            return Err(EncodeError::TooLarge);
        }
        self.u32(count as u32);
        Ok(())
    }

    /// Length and raw bytes. Checked here so that an oversized field is never copied.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        if bytes.len() > MAX_FRAME {
            return Err(EncodeError::TooLarge);
        }
        self.u32(bytes.len() as u32);
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn text(&mut self, text: &[u8]) -> Result<(), EncodeError> {
        if std::str::from_utf8(text).is_err() {
            return Err(EncodeError::NotUtf8);
        }
        self.bytes(text)
    }

    fn path(&mut self, path: &PathField) -> Result<(), EncodeError> {
        if self.dialect.ext.has(Ext::BYTES) { self.bytes(&path.0) } else { self.text(&path.0) }
    }

    /// The base protocol writes hashes as text of 64 lower-case hex digits.
    fn hex_hash(&mut self, hash: &Hash) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.u32(64);
        for byte in hash {
            self.out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
    }

    fn opt_hex_hash(&mut self, hash: Option<&Hash>) {
        self.out.push(u8::from(hash.is_some()));
        if let Some(hash) = hash {
            self.hex_hash(hash);
        }
    }

    fn attributes(&mut self, attributes: &Attributes) -> Result<(), EncodeError> {
        if attributes.mtime.nanoseconds >= 1_000_000_000 {
            return Err(EncodeError::BadTime);
        }
        self.out.push(attributes.kind as u8);
        self.u64(attributes.size);
        self.u32(attributes.mode);
        self.i64(attributes.mtime.seconds);
        self.u32(attributes.mtime.nanoseconds);
        self.u32(attributes.uid);
        self.u32(attributes.gid);
        Ok(())
    }
}

fn type_of(frame: &Frame) -> u8 {
    match frame {
        Frame::Hello { .. } => type_byte::HELLO,
        Frame::List { .. } => type_byte::LIST,
        Frame::Stat { .. } => type_byte::STAT,
        Frame::Hash { .. } => type_byte::HASH,
        Frame::Get { .. } => type_byte::GET,
        Frame::Put { .. } => type_byte::PUT,
        Frame::Mkdir { .. } => type_byte::MKDIR,
        Frame::Resume { .. } => type_byte::RESUME,
        Frame::Done => type_byte::DONE,
        Frame::HaveBlocks { .. } => type_byte::HAVE_BLOCKS,
        Frame::OpenDirectChannel => type_byte::OPEN_DIRECT_CHANNEL,
        Frame::AuthHello { .. } => type_byte::AUTH_HELLO,
        Frame::PutChunked { .. } => type_byte::PUT_CHUNKED,
        Frame::GetChunked { .. } => type_byte::GET_CHUNKED,
        Frame::Truncate { .. } => type_byte::TRUNCATE,
        Frame::Welcome { .. } => type_byte::WELCOME,
        Frame::Ok { .. } => type_byte::OK,
        Frame::Error { .. } => type_byte::ERROR,
        Frame::StatResponse { .. } => type_byte::STAT_RESPONSE,
        Frame::HashResponse { .. } => type_byte::HASH_RESPONSE,
        Frame::ListResponse { .. } => type_byte::LIST_RESPONSE,
        Frame::ResumeResponse { .. } => type_byte::RESUME_RESPONSE,
        Frame::MissingBlocks { .. } => type_byte::MISSING_BLOCKS,
        Frame::DirectChannelReady { .. } => type_byte::DIRECT_CHANNEL_READY,
        Frame::AuthChallenge { .. } => type_byte::AUTH_CHALLENGE,
        Frame::Tree { .. } => type_byte::TREE,
        Frame::TreeNext { .. } => type_byte::TREE_NEXT,
        Frame::Lookup { .. } => type_byte::LOOKUP,
        Frame::Commit { .. } => type_byte::COMMIT,
        Frame::Abandon { .. } => type_byte::ABANDON,
        Frame::SetMeta { .. } => type_byte::SET_META,
        Frame::Symlink { .. } => type_byte::SYMLINK,
        Frame::TreePage { .. } => type_byte::TREE_PAGE,
        Frame::Meta { .. } => type_byte::META,
        Frame::AttributesResponse { .. } => type_byte::ATTRIBUTES_RESPONSE,
        Frame::Continue { .. } => type_byte::CONTINUE,
        Frame::Skip { .. } => type_byte::SKIP,
        Frame::KeyedHello { .. } => type_byte::KEYED_HELLO,
        Frame::KeyedWelcome { .. } => type_byte::KEYED_WELCOME,
        Frame::DaemonHello { .. } => type_byte::DAEMON_HELLO,
        Frame::DaemonWelcome { .. } => type_byte::DAEMON_WELCOME,
        Frame::Kept { .. } => type_byte::KEPT,
        Frame::RangeBegin { .. } => type_byte::RANGE_BEGIN,
        Frame::RangePut { .. } => type_byte::RANGE_PUT,
        Frame::RangeCommit { .. } => type_byte::RANGE_COMMIT,
        Frame::RangeAbandon { .. } => type_byte::RANGE_ABANDON,
        Frame::Blocks { .. } => type_byte::BLOCKS,
        Frame::RangeBegun { .. } => type_byte::RANGE_BEGUN,
        Frame::Ping => type_byte::PING,
        Frame::Unkept(_) => type_byte::UNKEPT,
        Frame::Pulse => type_byte::PULSE,
    }
}
