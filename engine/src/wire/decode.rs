//! Bytes to frames.
//!
//! Owns the rules of what is malformed. The peer is hostile: nothing is allocated from a declared length or count, an
//! incomplete control frame costs what has really arrived, and payload bytes are never kept. A [`DecodeError`] ends the
//! session without a reply, as in the base protocol; the decoder then repeats it.
//!
//! ```text
//!            header of Data/DataCompressed: Event::Data | Event::Compressed
//!  +---------+ -----------------------------------------------------------> +---------+
//!  | control |                                                              | payload | -- Event::Piece -+
//!  +---------+ <----------------------------------------------------------- +---------+ <----------------+
//!    |     ^                  nothing left: Event::End
//!    +-----+ whole control frame: Event::Frame
//! ```

use super::fields::Fields;
use super::frame::{Dialect, Frame};
use super::{MAX_BLOCK, MAX_FRAME, type_byte};

/// Capacity the gathering buffer may keep between frames, in bytes.
const KEPT_CAPACITY: usize = 64 * 1024;

/// Which end is reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Reads what a server sends.
    Client,
    /// Reads what a client sends.
    Server,
}

/// One step of decoding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A whole control frame.
    Frame(Frame),
    /// A `Data` frame begins; `Piece`s of `len` bytes in all and `End` follow.
    Data {
        /// Payload in bytes.
        len: u32,
    },
    /// A `DataCompressed` frame begins; `Piece`s of `len` bytes in all and `End` follow.
    Compressed {
        /// 1 LZ4 block, 2 Zstandard frame.
        algo: u8,
        /// Decompressed size in bytes, 1 to [`MAX_BLOCK`].
        original: u32,
        /// Payload in bytes.
        len: u32,
    },
    /// Payload bytes: `input[start..start + len]` of the input given to this call.
    Piece {
        /// Index of the first byte.
        start: usize,
        /// Number of bytes, never 0.
        len: usize,
    },
    /// The payload is complete.
    End,
}

/// Why the peer's bytes are not the protocol. The session is over; nothing is sent to the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// A frame without a type byte.
    #[error("the peer sent a frame of length 0")]
    ZeroLength,
    /// A length field above [`MAX_FRAME`]; often text printed by a login script.
    #[error("the peer announced a frame of {0} bytes, more than the protocol's 16 MiB")]
    TooLarge(u32),
    /// No such frame here.
    #[error("the peer sent a frame of unknown type {0:#04x}")]
    UnknownType(u8),
    /// A field, or a declared number of elements, runs past the end of the frame.
    #[error("the peer sent a frame of type {0:#04x} that ends too early")]
    Truncated(u8),
    /// Bytes behind the last field.
    #[error("the peer sent a frame of type {0:#04x} with bytes behind its end")]
    TrailingBytes(u8),
    /// A declared number of elements above [`super::MAX_COUNT`].
    #[error("the peer announced a list of {0} elements, more than the protocol allows")]
    TooMany(u32),
    /// A name or message that must be UTF-8 is not.
    #[error("the peer sent text that is not UTF-8")]
    NotUtf8,
    /// A hash that is not 64 hex digits.
    #[error("the peer sent a malformed hash")]
    BadHash,
    /// Frame length and payload length disagree.
    #[error("the peer sent a data frame whose two lengths disagree")]
    LengthMismatch,
    /// A codec that does not exist.
    #[error("the peer sent data compressed with unknown codec {0}")]
    UnknownCodec(u8),
    /// A decompressed size of 0 or above [`MAX_BLOCK`].
    #[error("the peer announced a block of {0} bytes, outside of 1 byte to 4 MiB")]
    BadBlockSize(u32),
    /// A kind of file that does not exist.
    #[error("the peer sent unknown file kind {0}")]
    UnknownKind(u8),
    /// A nanosecond field of 1,000,000,000 or more.
    #[error("the peer sent a malformed time")]
    BadTime,
    /// A record with a length no record has, or bytes behind the record that ends the stream.
    #[error("the peer sent a malformed record")]
    BadRecord,
    /// A record that the peer has not sealed, or not as the next one.
    #[error("what arrived is not what the peer sealed: it was changed on the way")]
    Forged,
    /// The stream ended without the peer having said so.
    #[error("the connection was cut off")]
    CutOff,
    /// There is no memory for the rest of a control frame: it is short, or others have begun as large ones.
    #[error("there is no memory for a message of this size: too many large ones have begun")]
    NoRoom,
    /// More records than one key may seal.
    #[error("the connection has sealed all it may")]
    Exhausted,
}

/// Splits a byte stream into frames and payload ranges.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    dialect: Dialect,
    /// The first bytes of a frame head or control frame that did not arrive in one input.
    gathered: Vec<u8>,
    /// Inside a payload: how many of its bytes are still to come.
    payload: Option<u32>,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new(role: Role, dialect: Dialect) -> Decoder {
        Decoder { role, dialect, gathered: Vec::new(), payload: None, failed: None }
    }

    /// Changes the dialect from the next frame on. Right after the event of Hello or Welcome is the time for it: frames
    /// that follow in the same input have not been looked at.
    pub fn set_dialect(&mut self, dialect: Dialect) {
        debug_assert!(!self.mid_frame(), "the dialect changes between frames");
        self.dialect = dialect;
    }

    /// Consumes a prefix of `input`: returns its length and at most one event.
    ///
    /// To be called again with the rest, even an empty rest, until there is no event: then all of `input` is consumed
    /// and more is needed. After an error every further call fails with the same error.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = match self.payload {
            Some(left) => Ok(self.piece(left, input)),
            None => self.control(input),
        };
        self.failed = result.as_ref().err().copied();
        result
    }

    /// Payload bytes of the current data frame that are still to come; 0 outside of one.
    pub fn payload_left(&self) -> u32 {
        self.payload.unwrap_or(0)
    }

    /// True when the end of the stream would now cut a frame: inside its head, its body, or before its `End`.
    pub fn mid_frame(&self) -> bool {
        self.payload.is_some() || !self.gathered.is_empty()
    }

    /// Bytes of memory held for incomplete control frames.
    pub fn buffered_capacity(&self) -> usize {
        self.gathered.capacity()
    }

    fn piece(&mut self, left: u32, input: &[u8]) -> (usize, Option<Event>) {
        if left == 0 {
            self.payload = None;
            return (0, Some(Event::End));
        }
        let len = input.len().min(left as usize);
        if len == 0 {
            return (0, None);
        }
        self.payload = Some(left - len as u32);
        (len, Some(Event::Piece { start: 0, len }))
    }

    fn control(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), DecodeError> {
        if self.gathered.is_empty() {
            let needed = self.needed(input)?;
            if let Some(whole) = input.get(..needed) {
                return Ok((needed, Some(self.complete(whole)?)));
            }
        }
        let mut consumed = 0;
        loop {
            let missing = self.needed(&self.gathered)? - self.gathered.len();
            if missing == 0 {
                break;
            }
            let rest = &input[consumed..];
            let arrived = &rest[..missing.min(rest.len())];
            if arrived.is_empty() {
                return Ok((consumed, None));
            }
            // Never more than it will need, nor more than twice what has come.
            if self.gathered.capacity() - self.gathered.len() < arrived.len() {
                let more = missing.min(self.gathered.len().max(arrived.len()));
                self.gathered.try_reserve_exact(more).map_err(|_| DecodeError::NoRoom)?;
            }
            self.gathered.extend_from_slice(arrived);
            consumed += arrived.len();
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        let event = self.complete(&gathered)?;
        gathered.clear();
        gathered.shrink_to(KEPT_CAPACITY);
        self.gathered = gathered;
        Ok((consumed, Some(event)))
    }

    /// How long the next unit is that begins with `bytes`, as far as they tell: a whole control frame, or the head of a
    /// data frame. Checks each head field as soon as it is there, so that errors do not depend on how input is split.
    fn needed(&self, bytes: &[u8]) -> Result<usize, DecodeError> {
        let Some((length, body)) = bytes.split_first_chunk() else {
            return Ok(4);
        };
        let length = u32::from_le_bytes(*length);
        if length == 0 {
            return Err(DecodeError::ZeroLength);
        }
        if length as usize > MAX_FRAME {
            return Err(DecodeError::TooLarge(length));
        }
        let Some(&type_byte) = body.first() else {
            return Ok(5);
        };
        if !self.knows(type_byte) {
            return Err(DecodeError::UnknownType(type_byte));
        }
        let head: u32 = match type_byte {
            type_byte::DATA => 5,
            type_byte::DATA_COMPRESSED => 10,
            _ => return Ok(4 + length as usize),
        };
        if length < head {
            return Err(DecodeError::Truncated(type_byte));
        }
        Ok(4 + head as usize)
    }

    /// Base types are known in both roles, so that a session can answer one that comes from the wrong end. Extension
    /// types come only from the end that may send them.
    fn knows(&self, type_byte: u8) -> bool {
        let from_this_end = match type_byte {
            type_byte::META => true,
            0x40..=0x5f => self.role == Role::Server,
            0xc0..=0xdf => self.role == Role::Client,
            _ => true,
        };
        from_this_end && type_byte::extension(type_byte).is_some_and(|ext| self.dialect.ext.has(ext))
    }

    /// `unit` is as long as [`Self::needed`] asked for.
    fn complete(&mut self, unit: &[u8]) -> Result<Event, DecodeError> {
        let type_byte = unit[4];
        let mut fields = Fields::new(type_byte, self.dialect, &unit[5..]);
        let (event, head, len) = match type_byte {
            type_byte::DATA => {
                let len = fields.u32()?;
                (Event::Data { len }, 5, len)
            }
            type_byte::DATA_COMPRESSED => {
                let (algo, original, len) = (fields.u8()?, fields.u32()?, fields.u32()?);
                if !matches!(algo, 1 | 2) {
                    return Err(DecodeError::UnknownCodec(algo));
                }
                if !(1..=MAX_BLOCK).contains(&original) {
                    return Err(DecodeError::BadBlockSize(original));
                }
                (Event::Compressed { algo, original, len }, 10, len)
            }
            _ => return Ok(Event::Frame(fields.frame()?)),
        };
        let declared = u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]);
        if declared - head != len {
            return Err(DecodeError::LengthMismatch);
        }
        self.payload = Some(len);
        Ok(event)
    }
}
