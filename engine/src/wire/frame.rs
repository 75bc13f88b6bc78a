//! Every frame of the protocol as a value.
//!
//! A frame on the wire is `u32 LE length`, `u8 type`, payload; the length counts the type byte. This module owns the
//! values and their type bytes; [`super::encode`] and [`super::decode`] turn them into bytes and back, and nothing here
//! does I/O. `Data` and `DataCompressed` carry bulk bytes that never live in a [`Frame`]: they are announced and handed
//! on in pieces. Byte layouts with vectors: `engine/WIRE.md`.

use std::fmt;

/// Capability bits of Hello and Welcome: one byte, all eight taken by the base protocol.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Caps(pub u8);

impl Caps {
    /// No capability.
    pub const NONE: Caps = Caps(0);
    /// LZ4 blocks are understood.
    pub const LZ4: Caps = Caps(0x01);
    /// Zstandard blocks are understood.
    pub const ZSTD: Caps = Caps(0x02);
    /// HaveBlocks/MissingBlocks are understood.
    pub const DEDUP: Caps = Caps(0x04);
    /// The server does not hash what Get sends.
    pub const FAST: Caps = Caps(0x08);
    /// The server flushes each received file to stable storage.
    pub const SYNC: Caps = Caps(0x10);
    /// A direct TCP data plane can be opened.
    pub const DIRECT_TCP: Caps = Caps(0x20);
    /// Frames of this session are sealed.
    pub const AEAD: Caps = Caps(0x40);
    /// A Put may begin at an offset above zero.
    pub const PUT_OFFSET: Caps = Caps(0x80);

    /// True when every bit of `other` is set here.
    pub fn has(self, other: Caps) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits set in both.
    pub fn and(self, other: Caps) -> Caps {
        Caps(self.0 & other.0)
    }

    /// The bits set here and not there.
    pub fn without(self, other: Caps) -> Caps {
        Caps(self.0 & !other.0)
    }

    /// The bits set in either.
    pub fn or(self, other: Caps) -> Caps {
        Caps(self.0 | other.0)
    }
}

impl fmt::Debug for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Caps({:#04x})", self.0)
    }
}

/// Extension bits, exchanged as `u32 LE` behind the caps byte of Hello and Welcome. Only between two haul peers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Ext(pub u32);

impl Ext {
    /// The base protocol and nothing else.
    pub const NONE: Ext = Ext(0);
    /// Every path field is raw bytes, optionally an operand and a path below it.
    pub const BYTES: Ext = Ext(0x01);
    /// Paged listings and full attributes.
    pub const TREE: Ext = Ext(0x02);
    /// Modes, times and symbolic links travel.
    pub const META: Ext = Ext(0x04);
    /// A Put ends with the sender's hash and is published only when it matches.
    pub const COMMIT: Ext = Ext(0x08);
    /// What an interrupted transfer left is kept, proved and continued.
    pub const RESUME: Ext = Ext(0x10);
    /// The receiver reads a file again before it gets its name, where [`Preserve::VERIFY`] asks for it.
    pub const VERIFY: Ext = Ext(0x20);
    /// A direct connection has keys of its own, and its end is proved.
    pub const KEYED: Ext = Ext(0x40);
    /// Files that come in ranges, proved range by range.
    pub const RANGE: Ext = Ext(0x80);
    /// A server at work on an answer says now and then that it lives.
    pub const PULSE: Ext = Ext(0x400);
    /// A direct connection is not sealed. Only in KeyedHello of a client, and KeyedWelcome of a server, whose users say so.
    pub const PLAIN: Ext = Ext(0x100);
    /// The answer to Ping names the process that serves, in which a client's logins may have gathered.
    pub const GATHER: Ext = Ext(0x800);
    /// A second Meta in the reply to Get: the file has grown.
    pub const GREW: Ext = Ext(0x2000);
    /// Under [`Caps::FAST`] a Put may end without a hash.
    pub const FASTPUT: Ext = Ext(0x200);
    /// Before its Ok a server says which attributes it could not keep.
    pub const UNKEPT: Ext = Ext(0x1000);
    /// Compressed frames may hold up to [`super::MAX_BLOCK`] bytes of a file, not only an eighth of that.
    pub const LARGE: Ext = Ext(0x4000);
    /// Everything this program can do, whatever it runs over.
    pub const ALL: Ext = Ext(0xbf | Ext::FASTPUT.0 | Ext::UNKEPT.0 | Ext::GREW.0 | Ext::LARGE.0);

    /// True when every bit of `other` is set here.
    pub fn has(self, other: Ext) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits set in both.
    pub fn and(self, other: Ext) -> Ext {
        Ext(self.0 & other.0)
    }

    /// The bits set in either.
    pub fn or(self, other: Ext) -> Ext {
        Ext(self.0 | other.0)
    }
}

impl fmt::Debug for Ext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ext({:#x})", self.0)
    }
}

/// What both ends agreed on: decides the layout of paths, Put and Error, and how strictly frames are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    /// Protocol version, 1 or 2. Version 2 adds the overwrite byte of Put and refuses trailing bytes.
    pub version: u8,
    /// Extensions in force.
    pub ext: Ext,
}

impl Dialect {
    /// The oldest layout, in force until Hello and Welcome have passed.
    pub const BASE: Dialect = Dialect { version: 1, ext: Ext::NONE };
}

/// A path field as it stood in a frame: untrusted bytes. [`super::path`] turns it into paths that may be used.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct PathField(pub Vec<u8>);

/// A BLAKE3 hash, 32 raw bytes.
pub type Hash = [u8; 32];

/// What kind of object a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    Regular = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A socket.
    Socket = 4,
    /// A character device.
    CharDevice = 5,
    /// A block device.
    BlockDevice = 6,
}

/// A point in time as file systems keep it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the Unix epoch, negative before it.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// What is known of a file besides its name and content.
///
/// On the wire: `u8 kind, u64 size, u32 mode, i64 seconds, u32 nanoseconds, u32 uid, u32 gid`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Kind of object.
    pub kind: Kind,
    /// Size in bytes (of the link text for a symbolic link).
    pub size: u64,
    /// Permission bits, 0o7777.
    pub mode: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

/// Which attributes the receiver shall apply exactly; bits of one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Preserve(pub u8);

impl Preserve {
    /// Exact permission bits, set-ID bits included. Without it: mode & ~umask, set-ID stripped, a replaced file keeps its own.
    pub const MODE: Preserve = Preserve(1);
    /// Owner and group, where the receiver may change them.
    pub const OWNER: Preserve = Preserve(2);
    /// The content is read again from where it was written, and compared, before the file gets its name.
    pub const VERIFY: Preserve = Preserve(4);

    /// The time of a directory is left alone.
    pub const NO_TIMES: Preserve = Preserve(8);

    /// True when every bit of `other` is set here.
    pub fn has(self, other: Preserve) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits set in either.
    pub fn or(self, other: Preserve) -> Preserve {
        Preserve(self.0 | other.0)
    }
}

/// Attributes that the receiver's file system, or the receiver's rights there, did not let it keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Unkept(pub u8);

impl Unkept {
    /// Permission bits.
    pub const MODE: Unkept = Unkept(1);
    /// Owner and group.
    pub const OWNER: Unkept = Unkept(2);
    /// Time of the last modification.
    pub const TIMES: Unkept = Unkept(4);

    /// True when every bit of `other` is set here.
    pub fn has(self, other: Unkept) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits set in either.
    pub fn or(self, other: Unkept) -> Unkept {
        Unkept(self.0 | other.0)
    }

    /// True when everything was kept.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// One entry of a base listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListEntry {
    /// Path below the listed directory; untrusted.
    pub path: PathField,
    /// Size in bytes.
    pub size: u64,
    /// Whole seconds since the Unix epoch.
    pub mtime: i64,
    /// True for a directory.
    pub is_dir: bool,
}

/// One entry of a TREE page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeEntry {
    /// Path below the walked directory; untrusted. Empty only for a failure of the walked directory itself.
    pub path: PathField,
    /// Attributes of the entry itself (links are not followed).
    pub attributes: Attributes,
    /// Link text of a symbolic link, else empty.
    pub link: Vec<u8>,
    /// `ErrorCode::NONE`, or why this entry or the inside of this directory could not be read.
    pub error: ErrorCode,
}

/// Machine-readable reason of a failure, `u16 LE` behind the text of Error when extensions are in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct ErrorCode(pub u16);

impl ErrorCode {
    /// No failure.
    pub const NONE: ErrorCode = ErrorCode(0);
    /// A failure without a number of its own.
    pub const OTHER: ErrorCode = ErrorCode(1);
    /// The request made no sense here: wrong order, malformed field, not offered.
    pub const PROTOCOL: ErrorCode = ErrorCode(2);
    /// The sender gave the transfer up.
    pub const ABANDONED: ErrorCode = ErrorCode(3);
    /// The content that arrived is not the content that was sent.
    pub const HASH_MISMATCH: ErrorCode = ErrorCode(4);
    /// The path leads out of the served root.
    pub const OUTSIDE_ROOT: ErrorCode = ErrorCode(5);
    /// The server was told to change nothing.
    pub const READ_ONLY: ErrorCode = ErrorCode(6);
    /// Every place is taken, for now: EBUSY.
    pub const BUSY: ErrorCode = ErrorCode(ErrorCode::ERRNO_BASE + 16);
    /// The source was written to while it was read.
    pub const CHANGED: ErrorCode = ErrorCode(7);
    /// Directories within directories, more than are walked.
    pub const TOO_DEEP: ErrorCode = ErrorCode(8);
    /// Codes from here on are `4096 + errno`, with Linux numbering whatever the system.
    pub const ERRNO_BASE: u16 = 4096;
}

/// One frame, bulk data excepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// 0x01: the client's first frame. `ext` is sent by haul in version 1 only.
    Hello {
        /// Protocol version.
        version: u8,
        /// Capabilities asked for.
        caps: Caps,
        /// Extensions asked for, if the field was there.
        ext: Option<Ext>,
    },
    /// 0x02: the whole tree below a directory in one reply.
    List {
        /// Directory.
        path: PathField,
    },
    /// 0x03
    Stat {
        /// File or directory.
        path: PathField,
    },
    /// 0x04: BLAKE3 of a range.
    Hash {
        /// Regular file.
        path: PathField,
        /// First byte.
        offset: u64,
        /// At most this many bytes; to the end when absent.
        limit: Option<u64>,
    },
    /// 0x05: content from `offset` to the end.
    Get {
        /// Regular file.
        path: PathField,
        /// First byte.
        offset: u64,
    },
    /// 0x06: content follows as Data frames, then Done (or Commit).
    Put {
        /// Target.
        path: PathField,
        /// Final size of the file in bytes.
        size: u64,
        /// First byte that will be sent.
        offset: u64,
        /// Version 2 only: may replace an existing file. Version 1 always may.
        overwrite: bool,
    },
    /// 0x07: as `mkdir -p`.
    Mkdir {
        /// Directory.
        path: PathField,
    },
    /// 0x08
    Resume {
        /// File.
        path: PathField,
    },
    /// 0x09: ends a body.
    Done,
    /// 0x0a: hashes of all blocks of the file whose Put came just before.
    HaveBlocks {
        /// Block size in bytes.
        block_size: u32,
        /// One hash per block.
        hashes: Vec<Hash>,
    },
    /// 0x0b
    OpenDirectChannel,
    /// 0x0c
    AuthHello {
        /// Keyed BLAKE3 over the challenge.
        mac: Hash,
    },
    /// 0x0d
    PutChunked {
        /// Target.
        path: PathField,
        /// First byte.
        offset: u64,
        /// Bytes that will be sent.
        length: u64,
    },
    /// 0x0e
    GetChunked {
        /// Regular file.
        path: PathField,
        /// First byte.
        offset: u64,
        /// Bytes wanted.
        length: u64,
    },
    /// 0x0f
    Truncate {
        /// Target.
        path: PathField,
        /// New size in bytes.
        size: u64,
    },
    /// 0x81: the server's answer to Hello. `ext` only towards a client that sent the field.
    Welcome {
        /// Protocol version.
        version: u8,
        /// Capabilities in force.
        caps: Caps,
        /// Extensions in force, if the field was there.
        ext: Option<Ext>,
    },
    /// 0x82
    Ok {
        /// Hash of the content, where the request has one.
        hash: Option<Hash>,
    },
    /// 0x83
    Error {
        /// Free text; untrusted.
        message: Vec<u8>,
        /// Reason; on the wire only when extensions are in force.
        code: ErrorCode,
    },
    /// 0x85
    StatResponse {
        /// Size in bytes.
        size: u64,
        /// Whole seconds since the Unix epoch.
        mtime: i64,
        /// True for a directory.
        is_dir: bool,
    },
    /// 0x86
    HashResponse {
        /// BLAKE3 of the range.
        hash: Hash,
    },
    /// 0x87
    ListResponse {
        /// Pre-order entries.
        entries: Vec<ListEntry>,
    },
    /// 0x88
    ResumeResponse {
        /// Present size in bytes.
        size: u64,
        /// BLAKE3 of the last complete 4 MiB block.
        hash: Option<Hash>,
    },
    /// 0x8a
    MissingBlocks {
        /// Bit i, least significant first: block i is missing.
        bitmap: Vec<u8>,
    },
    /// 0x8b
    DirectChannelReady {
        /// `ip:port`.
        address: Vec<u8>,
        /// Session key.
        key: Hash,
    },
    /// 0x8c
    AuthChallenge {
        /// Fresh nonce.
        nonce: Hash,
    },

    /// 0x40 (TREE): begin a paged walk; answered by TreePage.
    Tree {
        /// The client's number for this walk.
        walk: u32,
        /// Directory.
        path: PathField,
        /// Go into directories below it.
        recursive: bool,
    },
    /// 0x41 (TREE): the next page of a walk.
    TreeNext {
        /// Walk.
        walk: u32,
    },
    /// 0x42 (TREE): attributes of one path; answered by AttributesResponse.
    Lookup {
        /// File or directory.
        path: PathField,
        /// Follow a symbolic link in the last component.
        follow: bool,
    },
    /// 0x43 (COMMIT): ends the body of a Put, in place of Done. Publish only if the content has this hash.
    Commit {
        /// BLAKE3 of the bytes the sender read.
        hash: Hash,
    },
    /// 0x44 (COMMIT): ends the body of a Put that shall not be published.
    Abandon {
        /// Why; untrusted.
        code: ErrorCode,
    },
    /// 0x45 (META): set a directory's attributes once everything asked for before it is done.
    SetMeta {
        /// Directory.
        path: PathField,
        /// Attributes.
        attributes: Attributes,
        /// Which exactly.
        preserve: Preserve,
    },
    /// 0x46 (META): create a symbolic link, replacing a file or link of that name.
    Symlink {
        /// Where the link shall stand.
        path: PathField,
        /// Link text.
        target: Vec<u8>,
        /// Attributes of the link (time, owner).
        attributes: Attributes,
        /// Which exactly.
        preserve: Preserve,
    },
    /// 0x47 (RESUME): as Put, but what arrives is kept when the transfer is interrupted, and what an earlier one left is
    /// there to begin with; answered by Kept, then by Ok.
    Continue {
        /// Target.
        path: PathField,
        /// Size of the finished file in bytes.
        size: u64,
    },
    /// 0x48 (RESUME): after Kept, before the first Data: so many bytes are there already, a multiple of 4 MiB or all.
    Skip {
        /// Offset of the first byte that will come.
        offset: u64,
    },
    /// 0x49 (KEYED): the answer to AuthChallenge on a direct connection; the client's whole greeting there.
    KeyedHello {
        /// Fresh random bytes.
        random: Hash,
        /// Which of the client's connections this is, from 0.
        index: u16,
        /// Capabilities asked for.
        caps: Caps,
        /// Extensions asked for.
        ext: Ext,
        /// Proves that the client knows the secret, and covers everything before.
        mac: Hash,
    },
    /// 0x4a (KEYED): the answer to AuthChallenge of a daemon; the client's whole greeting there.
    DaemonHello {
        /// Fresh random bytes.
        random: Hash,
        /// The client's part of an X25519 exchange, for this connection alone.
        public: Hash,
        /// Which of the client's connections this is, from 0.
        index: u16,
        /// Capabilities asked for.
        caps: Caps,
        /// Extensions asked for.
        ext: Ext,
        /// Proves that the client knows the daemon's key, and covers everything before.
        mac: Hash,
    },
    /// 0x4b (RANGE): a file begins that comes in ranges, in any order and over any connection of this server's process;
    /// answered by RangeBegun.
    RangeBegin {
        /// Target.
        path: PathField,
        /// Size of the finished file in bytes.
        size: u64,
        /// Attributes of the source.
        attributes: Attributes,
        /// Which exactly.
        preserve: Preserve,
        /// What arrives is kept when the transfer is interrupted, and what an earlier one left is there to begin with.
        keep: bool,
    },
    /// 0x4c (RANGE): a body follows, of exactly that length, up to Done; answered by Kept, of the blocks of the range.
    RangePut {
        /// Which file, as RangeBegun has it.
        token: u64,
        /// First byte, that of a block of 4 MiB.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// 0x4d (RANGE): every range is there, and this is the hash of the whole; answered by Ok.
    RangeCommit {
        /// Which file.
        token: u64,
        /// Hash of the whole.
        hash: Hash,
    },
    /// 0x4e (RANGE): the file is given up; answered by Ok.
    RangeAbandon {
        /// Which file.
        token: u64,
    },
    /// 0x4f (RANGE): the chaining values of the leading blocks of a file; answered by Kept.
    Blocks {
        /// File.
        path: PathField,
        /// So many bytes.
        length: u64,
    },
    /// 0x50 (PULSE): whether anybody is there; answered by Ok.
    Ping,
    /// 0xc0 (TREE)
    TreePage {
        /// True when the walk has ended; its number is free again.
        last: bool,
        /// Pre-order entries: a directory stands before its content.
        entries: Vec<TreeEntry>,
    },
    /// 0xc1 (META), both ways: after Put and before its first Data; and in the reply to Get before its first Data.
    Meta {
        /// Attributes of the source.
        attributes: Attributes,
        /// Which exactly (Put).
        preserve: Preserve,
    },
    /// 0xc2 (TREE)
    AttributesResponse {
        /// Attributes.
        attributes: Attributes,
        /// Link text of a symbolic link that was not followed, else empty.
        link: Vec<u8>,
    },
    /// 0xc3 (RESUME): what is there of the file that Continue named; under RANGE, of a range or of the file that Blocks named.
    Kept {
        /// BLAKE3 chaining values, at their places in the file, of its leading blocks of 4 MiB.
        blocks: Vec<Hash>,
    },
    /// 0xc4 (KEYED): the server's greeting on a direct connection; from here on everything is sealed, both ways.
    KeyedWelcome {
        /// Capabilities in force.
        caps: Caps,
        /// Extensions in force.
        ext: Ext,
        /// Proves that the server knows the secret, and covers everything before.
        mac: Hash,
    },
    /// 0xc5 (KEYED): the daemon's greeting; from here on everything is sealed, both ways.
    DaemonWelcome {
        /// The daemon's part of the X25519 exchange.
        public: Hash,
        /// Capabilities in force.
        caps: Caps,
        /// Extensions in force.
        ext: Ext,
        /// Proves that the daemon knows its key, and covers everything before.
        mac: Hash,
    },
    /// 0xc7 (UNKEPT): what the Ok that follows is about is there, without these attributes.
    Unkept(Unkept),
    /// 0xc8 (PULSE): the server lives and is at work on the next answer. Between any two frames, at most once a second.
    Pulse,
    /// 0xc6 (RANGE): a file in ranges has begun.
    RangeBegun {
        /// Names it to every connection of this process.
        token: u64,
        /// BLAKE3 chaining values of its leading blocks of 4 MiB, as far as there is anything.
        blocks: Vec<Hash>,
    },
}
