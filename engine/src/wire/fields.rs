//! The body of one control frame, field by field.
//!
//! Owns what is malformed inside a body. Every length and count is held against the bytes that are really there before
//! anything is allocated from it. The way out is [`super::encode`].

use super::decode::DecodeError;
use super::frame::{Attributes, Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, ListEntry, PathField, Preserve};
use super::frame::{Timestamp, TreeEntry, Unkept};
use super::{MAX_COUNT, type_byte};

/// Wire size of [`Attributes`] in bytes.
const ATTRIBUTES_LEN: usize = 33;
/// Smallest wire size of a [`ListEntry`] in bytes: empty path, size, mtime, is_dir.
const LIST_ENTRY_MIN: usize = 4 + 8 + 8 + 1;
/// Smallest wire size of a [`TreeEntry`] in bytes: empty path, attributes, empty link, error.
const TREE_ENTRY_MIN: usize = 4 + ATTRIBUTES_LEN + 4 + 2;

/// The body of one control frame while it is read.
pub(super) struct Fields<'a> {
    type_byte: u8,
    dialect: Dialect,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// `rest` is what stands behind the type byte.
    pub(super) fn new(type_byte: u8, dialect: Dialect, rest: &'a [u8]) -> Fields<'a> {
        Fields { type_byte, dialect, rest }
    }

    /// The whole body as a frame. Data frames are not for here.
    pub(super) fn frame(mut self) -> Result<Frame, DecodeError> {
        let frame = match self.type_byte {
            0x00..=0x3f => self.request()?,
            0x40..=0x7f | 0xc0..=0xff => self.extension()?,
            0x80..=0xbf => self.reply()?,
        };
        // Room to grow: the greetings are the one place where a newer peer may say more.
        let open_ended = matches!(self.type_byte, type_byte::HELLO | type_byte::WELCOME);
        let strict = self.dialect.version >= 2 || self.dialect.ext != Ext::NONE;
        if strict && !open_ended && !self.rest.is_empty() {
            return Err(DecodeError::TrailingBytes(self.type_byte));
        }
        Ok(frame)
    }

    fn request(&mut self) -> Result<Frame, DecodeError> {
        Ok(match self.type_byte {
            type_byte::HELLO => {
                let (version, caps, ext) = self.greeting()?;
                Frame::Hello { version, caps, ext }
            }
            type_byte::LIST => Frame::List { path: self.path()? },
            type_byte::STAT => Frame::Stat { path: self.path()? },
            type_byte::HASH => Frame::Hash { path: self.path()?, offset: self.u64()?, limit: self.opt_u64()? },
            type_byte::GET => Frame::Get { path: self.path()?, offset: self.u64()? },
            type_byte::PUT => Frame::Put {
                path: self.path()?,
                size: self.u64()?,
                offset: self.u64()?,
                overwrite: if self.dialect.version >= 2 { self.flag()? } else { true },
            },
            type_byte::MKDIR => Frame::Mkdir { path: self.path()? },
            type_byte::RESUME => Frame::Resume { path: self.path()? },
            type_byte::DONE => Frame::Done,
            type_byte::HAVE_BLOCKS => Frame::HaveBlocks { block_size: self.u32()?, hashes: self.hashes()? },
            type_byte::OPEN_DIRECT_CHANNEL => Frame::OpenDirectChannel,
            type_byte::AUTH_HELLO => Frame::AuthHello { mac: self.array()? },
            type_byte::PUT_CHUNKED => {
                Frame::PutChunked { path: self.path()?, offset: self.u64()?, length: self.u64()? }
            }
            type_byte::GET_CHUNKED => {
                Frame::GetChunked { path: self.path()?, offset: self.u64()?, length: self.u64()? }
            }
            type_byte::TRUNCATE => Frame::Truncate { path: self.path()?, size: self.u64()? },
            other => return Err(DecodeError::UnknownType(other)),
        })
    }

    fn reply(&mut self) -> Result<Frame, DecodeError> {
        Ok(match self.type_byte {
            type_byte::WELCOME => {
                let (version, caps, ext) = self.greeting()?;
                Frame::Welcome { version, caps, ext }
            }
            type_byte::OK => Frame::Ok { hash: self.opt_hex_hash()? },
            type_byte::ERROR if self.dialect.ext == Ext::NONE => {
                Frame::Error { message: self.text()?, code: ErrorCode::OTHER }
            }
            type_byte::ERROR => Frame::Error { message: self.bytes()?.to_vec(), code: ErrorCode(self.u16()?) },
            type_byte::STAT_RESPONSE => {
                Frame::StatResponse { size: self.u64()?, mtime: self.i64()?, is_dir: self.flag()? }
            }
            type_byte::HASH_RESPONSE => Frame::HashResponse { hash: self.hex_hash()? },
            type_byte::LIST_RESPONSE => {
                let count = self.capped_count(LIST_ENTRY_MIN)?;
                let mut entries = room_for(count)?;
                for _ in 0..count {
                    entries.push(ListEntry {
                        path: self.path()?,
                        size: self.u64()?,
                        mtime: self.i64()?,
                        is_dir: self.flag()?,
                    });
                }
                Frame::ListResponse { entries }
            }
            type_byte::RESUME_RESPONSE => Frame::ResumeResponse { size: self.u64()?, hash: self.opt_hex_hash()? },
            type_byte::MISSING_BLOCKS => Frame::MissingBlocks { bitmap: self.bytes()?.to_vec() },
            type_byte::DIRECT_CHANNEL_READY => Frame::DirectChannelReady { address: self.text()?, key: self.array()? },
            type_byte::AUTH_CHALLENGE => Frame::AuthChallenge { nonce: self.array()? },
            other => return Err(DecodeError::UnknownType(other)),
        })
    }

    fn extension(&mut self) -> Result<Frame, DecodeError> {
        Ok(match self.type_byte {
            type_byte::TREE => Frame::Tree { walk: self.u32()?, path: self.path()?, recursive: self.flag()? },
            type_byte::TREE_NEXT => Frame::TreeNext { walk: self.u32()? },
            type_byte::LOOKUP => Frame::Lookup { path: self.path()?, follow: self.flag()? },
            type_byte::COMMIT => Frame::Commit { hash: self.array()? },
            type_byte::ABANDON => Frame::Abandon { code: ErrorCode(self.u16()?) },
            type_byte::SET_META => {
                Frame::SetMeta { path: self.path()?, attributes: self.attributes()?, preserve: Preserve(self.u8()?) }
            }
            type_byte::SYMLINK => Frame::Symlink {
                path: self.path()?,
                target: self.bytes()?.to_vec(),
                attributes: self.attributes()?,
                preserve: Preserve(self.u8()?),
            },
            type_byte::TREE_PAGE => {
                let last = self.flag()?;
                let count = self.u32()?;
                let count = self.fitting(count, TREE_ENTRY_MIN)?;
                let mut entries = room_for(count)?;
                for _ in 0..count {
                    entries.push(TreeEntry {
                        path: self.path()?,
                        attributes: self.attributes()?,
                        link: self.bytes()?.to_vec(),
                        error: ErrorCode(self.u16()?),
                    });
                }
                Frame::TreePage { last, entries }
            }
            type_byte::META => Frame::Meta { attributes: self.attributes()?, preserve: Preserve(self.u8()?) },
            type_byte::ATTRIBUTES_RESPONSE => {
                Frame::AttributesResponse { attributes: self.attributes()?, link: self.bytes()?.to_vec() }
            }
            type_byte::CONTINUE => Frame::Continue { path: self.path()?, size: self.u64()? },
            type_byte::SKIP => Frame::Skip { offset: self.u64()? },
            type_byte::KEYED_HELLO => Frame::KeyedHello {
                random: self.array()?,
                index: self.u16()?,
                caps: Caps(self.u8()?),
                ext: Ext(self.u32()?),
                mac: self.array()?,
            },
            type_byte::KEYED_WELCOME => {
                Frame::KeyedWelcome { caps: Caps(self.u8()?), ext: Ext(self.u32()?), mac: self.array()? }
            }
            type_byte::DAEMON_HELLO => Frame::DaemonHello {
                random: self.array()?,
                public: self.array()?,
                index: self.u16()?,
                caps: Caps(self.u8()?),
                ext: Ext(self.u32()?),
                mac: self.array()?,
            },
            type_byte::DAEMON_WELCOME => Frame::DaemonWelcome {
                public: self.array()?,
                caps: Caps(self.u8()?),
                ext: Ext(self.u32()?),
                mac: self.array()?,
            },
            type_byte::KEPT => Frame::Kept { blocks: self.hashes()? },
            type_byte::RANGE_BEGIN => Frame::RangeBegin {
                path: self.path()?,
                size: self.u64()?,
                attributes: self.attributes()?,
                preserve: Preserve(self.u8()?),
                keep: self.flag()?,
            },
            type_byte::RANGE_PUT => Frame::RangePut { token: self.u64()?, offset: self.u64()?, length: self.u64()? },
            type_byte::RANGE_COMMIT => Frame::RangeCommit { token: self.u64()?, hash: self.array()? },
            type_byte::RANGE_ABANDON => Frame::RangeAbandon { token: self.u64()? },
            type_byte::BLOCKS => Frame::Blocks { path: self.path()?, length: self.u64()? },
            type_byte::PING => Frame::Ping,
            type_byte::UNKEPT => Frame::Unkept(Unkept(self.u8()?)),
            type_byte::PULSE => Frame::Pulse,
            type_byte::RANGE_BEGUN => Frame::RangeBegun { token: self.u64()?, blocks: self.hashes()? },
            other => return Err(DecodeError::UnknownType(other)),
        })
    }

    /// Version, caps if there, ext if there. What comes behind is for peers newer than this one.
    fn greeting(&mut self) -> Result<(u8, Caps, Option<Ext>), DecodeError> {
        let version = self.u8()?;
        let caps = self.u8().map_or(Caps::NONE, Caps);
        let ext = self.u32().ok().map(Ext);
        Ok((version, caps, ext))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated(self.type_byte))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated(self.type_byte))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        Ok(self.u8()? != 0)
    }

    fn opt_u64(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.u8()? == 1 { self.u64().map(Some) } else { Ok(None) }
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    fn text(&mut self) -> Result<Vec<u8>, DecodeError> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::NotUtf8)?;
        Ok(text.as_bytes().to_vec())
    }

    fn path(&mut self) -> Result<PathField, DecodeError> {
        let raw = self.dialect.ext.has(Ext::BYTES);
        Ok(PathField(if raw { self.bytes()?.to_vec() } else { self.text()? }))
    }

    /// A number of elements of at least `min` bytes each that the rest of the frame can really hold.
    fn fitting(&self, count: u32, min: usize) -> Result<usize, DecodeError> {
        let count = count as usize;
        if count > self.rest.len() / min { Err(DecodeError::Truncated(self.type_byte)) } else { Ok(count) }
    }

    fn capped_count(&mut self, min: usize) -> Result<usize, DecodeError> {
        let count = self.u32()?;
        if count as usize > MAX_COUNT {
            return Err(DecodeError::TooMany(count));
        }
        self.fitting(count, min)
    }

    fn hashes(&mut self) -> Result<Vec<Hash>, DecodeError> {
        let count = self.capped_count(size_of::<Hash>())?;
        let mut hashes = room_for(count)?;
        for _ in 0..count {
            hashes.push(self.array()?);
        }
        Ok(hashes)
    }

    fn hex_hash(&mut self) -> Result<Hash, DecodeError> {
        let text: &[u8; 64] = self.bytes()?.try_into().map_err(|_| DecodeError::BadHash)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(DecodeError::BadHash);
        let mut hash = Hash::default();
        for (byte, pair) in hash.iter_mut().zip(text.as_chunks::<2>().0) {
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(hash)
    }

    fn opt_hex_hash(&mut self) -> Result<Option<Hash>, DecodeError> {
        if self.u8()? == 1 { self.hex_hash().map(Some) } else { Ok(None) }
    }

    fn attributes(&mut self) -> Result<Attributes, DecodeError> {
        let kind = match self.u8()? {
            0 => Kind::Regular,
            1 => Kind::Directory,
            2 => Kind::Symlink,
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => Kind::CharDevice,
            6 => Kind::BlockDevice,
            other => return Err(DecodeError::UnknownKind(other)),
        };
        let (size, mode) = (self.u64()?, self.u32()?);
        let mtime = Timestamp { seconds: self.i64()?, nanoseconds: self.u32()? };
        if mtime.nanoseconds >= 1_000_000_000 {
            return Err(DecodeError::BadTime);
        }
        Ok(Attributes { kind, size, mode, mtime, uid: self.u32()?, gid: self.u32()? })
    }
}

/// Memory for as many entries as a peer has announced.
fn room_for<T>(count: usize) -> Result<Vec<T>, DecodeError> {
    let mut entries = Vec::new();
    entries.try_reserve_exact(count).map_err(|_| DecodeError::NoRoom)?;
    Ok(entries)
}
