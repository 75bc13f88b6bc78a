//! The wire: frames as values, their bytes, and the paths they carry.
//!
//! Owns the layout of every frame of the base protocol (versions 1 and 2) and of haul's extensions. Does no I/O, knows
//! no clock, and never keeps bulk data: payloads of `Data` frames pass through as ranges of the caller's buffer.
//!
//! ```text
//! bytes in  -> decode::Decoder::next -> Event::Frame(Frame)          -> session
//!                                    -> Event::Data, Piece.., End    -> session (ranges, no copies)
//! bytes out <- encode::frame / encode::data_header                   <- session
//! block    -> compress::compress -> payload of DataCompressed -> compress::decompress -> block
//! PathField -> path::Target::decode -> RequestPath [+ RelPath]       -> backend
//! frame    -> seal::Sealer -> record -> seal::Opener -> frame     (direct TCP connections)
//! ```
//!
//! ```
//! use haul_engine::wire::decode::{Decoder, Event, Role};
//! use haul_engine::wire::encode;
//! use haul_engine::wire::frame::{Dialect, Frame};
//!
//! let mut bytes = Vec::new();
//! encode::frame(&Frame::Done, Dialect::BASE, &mut bytes).unwrap();
//! assert_eq!(bytes, [1, 0, 0, 0, 9]);
//!
//! let mut decoder = Decoder::new(Role::Server, Dialect::BASE);
//! assert_eq!(decoder.next(&bytes).unwrap(), (5, Some(Event::Frame(Frame::Done))));
//! ```
//!
//! Byte layouts with vectors: `engine/WIRE.md`.

#![forbid(unsafe_code)]

pub mod compress;
pub mod decode;
pub mod display;
pub mod encode;
mod fields;
pub mod frame;
pub mod hello;
pub mod path;
pub mod seal;

/// Largest value of a frame's length field in bytes: type byte and payload. Exactly this much is allowed.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Largest decompressed size of one `DataCompressed` payload in bytes. Newer base peers hold `Data` to it as well, so
/// it is also the largest payload to send.
pub const MAX_BLOCK: u32 = 4 * 1024 * 1024;

/// Most elements a HaveBlocks or ListResponse may declare.
pub const MAX_COUNT: usize = 1_048_576;

/// Most hashes that fit one frame behind their number, and behind a block size: 524,287 blocks, just below 2 TiB.
pub const MAX_HASHES: usize = (MAX_FRAME - 9) / 32;

/// The type byte of every frame, and which extension owns it.
pub(crate) mod type_byte {
    use super::frame::Ext;

    pub(crate) const HELLO: u8 = 0x01;
    pub(crate) const LIST: u8 = 0x02;
    pub(crate) const STAT: u8 = 0x03;
    pub(crate) const HASH: u8 = 0x04;
    pub(crate) const GET: u8 = 0x05;
    pub(crate) const PUT: u8 = 0x06;
    pub(crate) const MKDIR: u8 = 0x07;
    pub(crate) const RESUME: u8 = 0x08;
    pub(crate) const DONE: u8 = 0x09;
    pub(crate) const HAVE_BLOCKS: u8 = 0x0a;
    pub(crate) const OPEN_DIRECT_CHANNEL: u8 = 0x0b;
    pub(crate) const AUTH_HELLO: u8 = 0x0c;
    pub(crate) const PUT_CHUNKED: u8 = 0x0d;
    pub(crate) const GET_CHUNKED: u8 = 0x0e;
    pub(crate) const TRUNCATE: u8 = 0x0f;

    pub(crate) const TREE: u8 = 0x40;
    pub(crate) const TREE_NEXT: u8 = 0x41;
    pub(crate) const LOOKUP: u8 = 0x42;
    pub(crate) const COMMIT: u8 = 0x43;
    pub(crate) const ABANDON: u8 = 0x44;
    pub(crate) const SET_META: u8 = 0x45;
    pub(crate) const SYMLINK: u8 = 0x46;
    pub(crate) const CONTINUE: u8 = 0x47;
    pub(crate) const SKIP: u8 = 0x48;
    pub(crate) const KEYED_HELLO: u8 = 0x49;
    pub(crate) const DAEMON_HELLO: u8 = 0x4a;
    pub(crate) const RANGE_BEGIN: u8 = 0x4b;
    pub(crate) const RANGE_PUT: u8 = 0x4c;
    pub(crate) const RANGE_COMMIT: u8 = 0x4d;
    pub(crate) const RANGE_ABANDON: u8 = 0x4e;
    pub(crate) const BLOCKS: u8 = 0x4f;
    pub(crate) const PING: u8 = 0x50;

    pub(crate) const WELCOME: u8 = 0x81;
    pub(crate) const OK: u8 = 0x82;
    pub(crate) const ERROR: u8 = 0x83;
    pub(crate) const DATA: u8 = 0x84;
    pub(crate) const STAT_RESPONSE: u8 = 0x85;
    pub(crate) const HASH_RESPONSE: u8 = 0x86;
    pub(crate) const LIST_RESPONSE: u8 = 0x87;
    pub(crate) const RESUME_RESPONSE: u8 = 0x88;
    pub(crate) const DATA_COMPRESSED: u8 = 0x89;
    pub(crate) const MISSING_BLOCKS: u8 = 0x8a;
    pub(crate) const DIRECT_CHANNEL_READY: u8 = 0x8b;
    pub(crate) const AUTH_CHALLENGE: u8 = 0x8c;

    pub(crate) const TREE_PAGE: u8 = 0xc0;
    pub(crate) const META: u8 = 0xc1;
    pub(crate) const ATTRIBUTES_RESPONSE: u8 = 0xc2;
    pub(crate) const KEPT: u8 = 0xc3;
    pub(crate) const KEYED_WELCOME: u8 = 0xc4;
    pub(crate) const DAEMON_WELCOME: u8 = 0xc5;
    pub(crate) const RANGE_BEGUN: u8 = 0xc6;
    pub(crate) const UNKEPT: u8 = 0xc7;
    pub(crate) const PULSE: u8 = 0xc8;

    /// The extension without which this type does not exist: `Ext::NONE` for the base set, `None` for no type at all.
    pub(crate) fn extension(type_byte: u8) -> Option<Ext> {
        match type_byte {
            HELLO..=TRUNCATE | WELCOME..=AUTH_CHALLENGE => Some(Ext::NONE),
            TREE | TREE_NEXT | LOOKUP | TREE_PAGE | ATTRIBUTES_RESPONSE => Some(Ext::TREE),
            COMMIT | ABANDON => Some(Ext::COMMIT),
            SET_META | SYMLINK | META => Some(Ext::META),
            CONTINUE | SKIP | KEPT => Some(Ext::RESUME),
            KEYED_HELLO | KEYED_WELCOME | DAEMON_HELLO | DAEMON_WELCOME => Some(Ext::KEYED),
            RANGE_BEGIN | RANGE_PUT | RANGE_COMMIT | RANGE_ABANDON | BLOCKS | RANGE_BEGUN => Some(Ext::RANGE),
            PING | PULSE => Some(Ext::PULSE),
            UNKEPT => Some(Ext::UNKEPT),
            _ => None,
        }
    }
}
