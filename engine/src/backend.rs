//! The seam between sessions and the machine: operations go out owning their buffers, completions bring them back.
//!
//! A [`Backend`] is built on and used by one worker thread. It promises the ten rules below, each a test in
//! [`crate::contract`] that every backend passes; sessions rely on nothing else.
//!
//! 1. Every op completes exactly once, cancelled or not, and returns its buffers, also on error.
//! 2. Bytes given to one stream leave in submission order (Send, SendFile and Shutdown share one queue); ops on different
//!    objects complete in any order.
//! 3. No short results: Send, Write and SendFile are whole; Read is short only at end of file; Recv gives `at_least`
//!    bytes or end of stream.
//! 4. A stream half that failed stays failed: no later byte leaves, later ops on it end with the same errno. The read
//!    half of a stream whose write half failed still gives what the peer had sent.
//! 5. A buffer that came back is not touched by the kernel again.
//! 6. `submit_and_wait` never blocks while a completion is ready or the deadline is past, and allocates nothing per
//!    stream or block operation once warm.
//! 7. After a cancel all its ops complete within bounded turns. A Send with any byte out breaks its stream; with none
//!    out it is [`Errno::CANCELLED`] and the stream lives. Closed ids are refused (slot + generation, never raw fds).
//! 8. Nothing is dropped with work in flight: Drop drains.
//! 9. SendFile whose source ends early or fails pads the promised bytes with zeros and completes with that file error;
//!    the stream lives, the session reports the error, framing holds.
//! 10. At most one system call's worth of bytes is in flight per stream and direction, and a stalled stream never delays
//!     another.

use crate::block::{Block, Head, Slice, Slices};
pub use crate::compute::Compute;
pub use crate::errno::Errno;
use crate::tree_hash::BlockHash;
use crate::wire::frame::{Attributes, Hash, Kind, Preserve, Unkept};
use crate::wire::path::Target;
use smallvec::SmallVec;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;

/// Nanoseconds on the backend's own monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);

impl Time {
    /// This time and `nanoseconds` more.
    pub fn after(self, nanoseconds: u64) -> Time {
        Time(self.0.saturating_add(nanoseconds))
    }
}

/// Slot and generation of something a backend keeps; stale ids are refused.
pub struct Id<T> {
    /// Index in the backend's table.
    pub slot: u32,
    /// How often the slot had been given out before.
    pub generation: u32,
    kind: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// The id of a slot in its present generation.
    pub const fn new(slot: u32, generation: u32) -> Id<T> {
        Id { slot, generation, kind: PhantomData }
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Id<T> {
        *self
    }
}
impl<T> Copy for Id<T> {}
impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Id<T>) -> bool {
        self.slot == other.slot && self.generation == other.generation
    }
}
impl<T> Eq for Id<T> {}
impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// Tag of [`StreamId`].
pub enum StreamTag {}
/// Tag of [`FileId`].
pub enum FileTag {}
/// Tag of [`DirId`].
pub enum DirTag {}

/// A read half and a write half: socket, socketpair, pipe pair, or regular file; also a listening socket.
pub type StreamId = Id<StreamTag>;
/// An open file: one being read, or one being made that has no name yet.
pub type FileId = Id<FileTag>;
/// An open directory: a root that paths are resolved from, one being read, or a block store.
pub type DirId = Id<DirTag>;

/// A session's number on its worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct SessionId(pub u32);

/// Says whose an operation is. Backends carry it and look only at `session` and `transfer`, to cancel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    /// Owner.
    pub session: SessionId,
    /// The owner's number for the transfer or request; 0 for the stream itself.
    pub transfer: u32,
    /// The owner's own mark.
    pub part: u32,
}

/// A path to act on: a directory held by the backend and a target below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A root.
    pub dir: DirId,
    /// Operand, resolved as a request path, and what lies below it, resolved without following links.
    pub target: Target,
}

/// An operation on its way out or back.
#[derive(Debug)]
pub struct Op {
    /// Whose.
    pub token: Token,
    /// What.
    pub kind: OpKind,
}

/// What can be asked of a backend. Results are named in each line.
#[derive(Debug)]
pub enum OpKind {
    /// One connection from a listening stream -> [`Output::Accepted`].
    Accept {
        /// Listening stream.
        listener: StreamId,
    },
    /// A TCP socket that takes connections -> [`Output::Listening`]. It is closed by CloseStream, or with the session.
    Listen {
        /// Where; port 0 takes a free one.
        address: SocketAddr,
    },
    /// A TCP connection -> [`Output::Accepted`].
    Connect {
        /// Where to.
        address: SocketAddr,
    },
    /// Ends the write half once everything queued before has left -> [`Output::Done`].
    Shutdown {
        /// Stream.
        stream: StreamId,
    },
    /// Closes both halves; what is queued or waiting on the stream ends cancelled -> [`Output::Done`].
    CloseStream {
        /// Stream.
        stream: StreamId,
    },
    /// Bytes from a stream, at least `at_least` unless the stream ends -> [`Output::Bytes`].
    Recv {
        /// Stream.
        stream: StreamId,
        /// Filled from its beginning.
        into: Block,
        /// 1 up to the capacity of `into`.
        at_least: usize,
    },
    /// All these bytes, or the stream is broken -> [`Output::Done`].
    Send {
        /// Stream.
        stream: StreamId,
        /// First bytes.
        head: Head,
        /// The bytes behind them.
        body: Slices,
    },
    /// `head`, then `len` bytes of a file that user space need not see -> [`Output::Done`].
    SendFile {
        /// Stream.
        stream: StreamId,
        /// First bytes.
        head: Head,
        /// File opened for reading.
        file: FileId,
        /// First byte of the file.
        offset: u64,
        /// Bytes promised.
        len: u64,
    },
    /// A file to read, or the making of a new one -> [`Output::Opened`]. Never blocks on a FIFO or device.
    Open {
        /// Which.
        place: Place,
        /// How.
        mode: OpenMode,
    },
    /// Gives a file up; one that was being made and is not published leaves no trace -> [`Output::Done`].
    Close {
        /// File.
        file: FileId,
    },
    /// `len` bytes from `offset`, fewer only at end of file -> [`Output::Bytes`].
    Read {
        /// File.
        file: FileId,
        /// First byte.
        offset: u64,
        /// Filled from its beginning.
        into: Block,
        /// At most the capacity of `into`.
        len: usize,
    },
    /// All of `from` at `offset` -> [`Output::Done`].
    Write {
        /// File being made.
        file: FileId,
        /// First byte.
        offset: u64,
        /// Content.
        from: Slice,
    },
    /// A regular file that fits `into`, whole, whatever its size says -> [`Output::Loaded`]; a larger one is left open
    /// -> [`Output::Opened`].
    Load {
        /// Which.
        place: Place,
        /// Filled from its beginning.
        into: Block,
    },
    /// A small file, whole, under its final name -> [`Output::Done`] or [`Output::Unkept`].
    Store(Box<Store>),
    /// Finishes a file being made and gives it its name; the id is stale afterwards, also on error -> [`Output::Done`] or
    /// [`Output::Unkept`].
    Publish {
        /// File being made.
        file: FileId,
        /// How.
        finish: Box<Finish>,
    },
    /// Names and attributes.
    Fs(Box<FsOp>),
    /// Processor time off the loop.
    Compute(Box<Compute>),
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Regular files only.
    Read,
    /// A nameless file beside the target, which Publish will put in the target's place. Missing parents are made.
    /// A target that exists as directory, FIFO or device is refused, `/dev/null` excepted: that is written to.
    Create {
        /// Final size in bytes; known to be too much for the file system, it fails with ENOSPC at once.
        size: u64,
        /// Bytes of the present target that the new file begins with.
        keep: u64,
        /// May replace an existing file.
        overwrite: bool,
    },
    /// As Create, but under a name that outlives the process: what an interrupted run leaves is there for the next one,
    /// and how much that is says the size in [`Output::Opened`]. Where that cannot be had, as when another process is at
    /// it, it is Create.
    Continue {
        /// Final size in bytes.
        size: u64,
        /// While it is open, others of this process that know this can write to it too.
        token: Option<u64>,
    },
    /// As Create of a file that may be replaced, made this long (sparse) at once. While it is open, others of this process
    /// can write to it too: those that know `token`.
    Shared {
        /// Final size in bytes.
        size: u64,
        /// Given once in a process.
        token: u64,
    },
    /// A file that somebody in this process has open under this token, to be written to; the size in [`Output::Opened`] is
    /// its final one. Whoever made it publishes it, the others close it. Without such a file it is not found.
    Join {
        /// As given to Shared or Continue.
        token: u64,
    },
    /// The target itself, to be written to where it stands; made if it is missing, as are its parents. A link is not
    /// followed. Publish gives it no other name.
    InPlace {
        /// Emptied, then made this long (sparse).
        truncate: Option<u64>,
    },
}

/// Everything [`OpKind::Store`] needs.
#[derive(Debug)]
pub struct Store {
    /// Under this name.
    pub place: Place,
    /// Content.
    pub from: Slices,
    /// How it is finished.
    pub finish: Finish,
    /// May replace an existing file.
    pub overwrite: bool,
}

/// How a file gets its final form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Mode, times and owner of the source, if known.
    pub attributes: Option<Attributes>,
    /// Which of them exactly.
    pub preserve: Preserve,
    /// Flush file and directory to stable storage before success is reported.
    pub sync: bool,
    /// Read the file again before it gets its name: it must have this hash, or it does not get one.
    pub verify: Option<Hash>,
}

/// Operations on names.
#[derive(Debug)]
pub enum FsOp {
    /// Attributes -> [`Output::Attributes`], with the link text of a link not followed.
    Stat {
        /// Which.
        place: Place,
        /// Follow a link in the last component.
        follow: bool,
    },
    /// Attributes of an open file -> [`Output::Attributes`].
    StatOpen {
        /// Which.
        file: FileId,
        /// Where a reader took it to end. [`Errno::SIZE_LIES`] if its size says so too, and yet more can be read there.
        past: Option<u64>,
    },
    /// Hashes a part of an open file, as a file of its own -> [`Output::Hashed`]; [`Errno::SHORT_SOURCE`] if it ends before.
    HashPart {
        /// Which.
        file: FileId,
        /// First byte.
        offset: u64,
        /// Behind the last byte.
        end: u64,
    },
    /// Hashes blocks of [`HASH_BLOCK_BYTES`](crate::tree_hash::HASH_BLOCK_BYTES), fewer where the file ends, the last
    /// one perhaps shorter -> [`Output::BlockHashes`].
    HashBlocks {
        /// Which.
        file: FileId,
        /// Index of the first block.
        first: u64,
        /// Blocks at most.
        count: usize,
        /// Their own hashes are wanted too, not only those at their places in the file.
        plain: bool,
    },
    /// Opens a directory for reading its entries -> [`Output::OpenedDir`].
    OpenDir {
        /// Which.
        place: Place,
    },
    /// The next entries of an open directory, `.` and `..` left out -> [`Output::Entries`].
    ReadDir {
        /// Which.
        dir: DirId,
    },
    /// Gives an open directory up -> [`Output::Done`].
    CloseDir {
        /// Which.
        dir: DirId,
    },
    /// As `mkdir -p` -> [`Output::Done`].
    MakeDir {
        /// Which.
        place: Place,
    },
    /// Attributes of an existing directory, or of a regular file if they say so; a link is not followed -> [`Output::Done`]
    /// or [`Output::Unkept`].
    SetMeta {
        /// Which.
        place: Place,
        /// New attributes.
        attributes: Attributes,
        /// Which of them exactly.
        preserve: Preserve,
    },
    /// A symbolic link, in place of a file or link of that name -> [`Output::Done`] or [`Output::Unkept`].
    MakeLink {
        /// Where.
        place: Place,
        /// Link text.
        text: Vec<u8>,
        /// Attributes of the link.
        attributes: Attributes,
        /// Which of them exactly.
        preserve: Preserve,
    },
    /// Fills blocks of a file being made from a block store, each proved by its hash -> [`Output::Blocks`]. Block `i`
    /// begins at `i` times [`crate::tree_hash::HASH_BLOCK_BYTES`] and is as long, or ends with the file. The place of a
    /// block that was not there may hold anything afterwards. Trouble with the store is no error.
    FillBlocks {
        /// File being made.
        file: FileId,
        /// Where from.
        store: DirId,
        /// Bytes of the whole file.
        size: u64,
        /// Index of the first block.
        first: u64,
        /// Hashes of consecutive blocks, at most [`crate::limits::BLOCKS_PER_OPERATION`], none behind the end of the file.
        hashes: Vec<Hash>,
    },
    /// Puts blocks of a file being made into a block store, then brings the store below its cap -> [`Output::Done`].
    /// Trouble with the store is no error.
    KeepBlocks {
        /// File being made.
        file: FileId,
        /// Where to.
        store: DirId,
        /// Bytes of the whole file.
        size: u64,
        /// Index of the first block.
        first: u64,
        /// What consecutive blocks should hash to; one that does not is not kept.
        hashes: Vec<Hash>,
    },
    /// A copy inside one machine, sharing extents or inside the kernel, proved by hashing both sides
    /// -> [`Output::Cloned`]; [`Errno::UNSUPPORTED`] where these two places cannot do it.
    Clone {
        /// Source, a regular file.
        from: Place,
        /// Target.
        to: Place,
        /// How it is finished.
        finish: Finish,
    },
}

/// What an operation that succeeded brought.
#[derive(Debug)]
pub enum Output {
    /// Nothing but success.
    Done,
    /// Success, but for attributes that could not be kept.
    Unkept(Unkept),
    /// Number of bytes.
    Bytes(usize),
    /// A new stream.
    Accepted {
        /// Its id.
        stream: StreamId,
        /// Who came, where that is known; nothing for a connection of our own.
        peer: Option<SocketAddr>,
    },
    /// A new listening stream.
    Listening {
        /// Its id.
        stream: StreamId,
        /// Where it listens, with the port that was taken.
        address: SocketAddr,
    },
    /// An open file.
    Opened {
        /// Its id.
        file: FileId,
        /// Its attributes; for a file being made, those of the target it will replace, or of an empty file.
        attributes: Attributes,
    },
    /// A file's content, as it was at one moment, is in the block.
    Loaded {
        /// Attributes then.
        attributes: Attributes,
        /// Bytes in the block; differs from the size in `attributes` where that says nothing of the content, as in /proc and
        /// /sys.
        len: usize,
        /// The file has grown again and again while it was read: this is its beginning.
        grew: bool,
    },
    /// Attributes, and the text of a link.
    Attributes {
        /// Attributes.
        attributes: Attributes,
        /// Link text of a symbolic link, else empty.
        link: Vec<u8>,
    },
    /// An open directory.
    OpenedDir {
        /// Its id.
        dir: DirId,
        /// Its attributes.
        attributes: Attributes,
    },
    /// Directory entries in the file system's order.
    Entries {
        /// The entries.
        entries: Vec<DirEntry>,
        /// True when there are no more.
        end: bool,
    },
    /// A block went through a codec.
    Packed {
        /// Bytes it makes; `None` when that does not pay.
        len: Option<usize>,
        /// Time it took, in nanoseconds.
        nanos: u64,
    },
    /// For each hash asked for: the block was there, is at its place, and has these hashes.
    Blocks(Vec<Option<BlockHash>>),
    /// Hashes of consecutive blocks.
    BlockHashes(Vec<BlockHash>),
    /// BLAKE3 of what was asked for.
    Hashed(Hash),
    /// A copy was made.
    Cloned {
        /// BLAKE3 of both sides.
        hash: [u8; 32],
        /// Bytes.
        size: u64,
        /// Attributes that could not be kept.
        unkept: Unkept,
        /// The source has grown meanwhile: the copy is its beginning.
        grew: bool,
    },
}

/// One name in a directory.
#[derive(Debug, Clone)]
pub struct DirEntry {
    /// A single component, never `.` or `..`.
    pub name: Vec<u8>,
    /// Attributes of the entry itself, or why they could not be had.
    pub attributes: Result<Attributes, Errno>,
    /// Link text of a symbolic link, else empty.
    pub link: Vec<u8>,
}

/// An operation that came back.
#[derive(Debug)]
pub struct Completion {
    /// The same op, with its buffers.
    pub op: Op,
    /// How it went.
    pub result: Result<Output, Errno>,
}

/// Ends operations early. The only kinds of cancel there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// All ops of one transfer.
    Transfer(SessionId, u32),
    /// All ops of one session; files and directories opened under its token are closed, unpublished files discarded, and
    /// what it listens on is closed as by CloseStream. Connections are not: they may have been handed to another session.
    Session(SessionId),
}

/// What a worker hands to its backend in one turn: first the operations are started, then the cancels carried out.
#[derive(Default, Debug)]
pub struct Submissions {
    /// Operations to start.
    pub ops: Vec<Op>,
    /// Cancels to carry out after.
    pub cancels: SmallVec<[Cancel; 4]>,
}

impl Submissions {
    /// Adds an operation.
    pub fn push(&mut self, token: Token, kind: OpKind) {
        self.ops.push(Op { token, kind });
    }

    /// Cancels ops, those pushed in this turn included. Close, CloseDir and CloseStream are carried out all the same.
    pub fn cancel(&mut self, cancel: Cancel) {
        self.cancels.push(cancel);
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.cancels.is_empty()
    }
}

impl Cancel {
    /// True when this cancel means ops with `token`.
    pub fn covers(self, token: Token) -> bool {
        match self {
            Cancel::Transfer(session, transfer) => token.session == session && token.transfer == transfer,
            Cancel::Session(session) => token.session == session,
        }
    }
}

/// Lets another thread end a wait early.
#[derive(Clone)]
pub struct Waker(pub Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// Makes the present or next wait return.
    pub fn wake(&self) {
        (self.0)();
    }
}

/// What was found on this machine and what was chosen, and why.
#[derive(Clone, Debug, Default)]
pub struct Features {
    /// Name of the backend: `io_uring`, `epoll`, `kqueue`, `simulated`.
    pub backend: &'static str,
    /// Findings, one sentence each.
    pub notes: Vec<String>,
}

/// The backend itself is unusable; nothing on it will complete any more.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {errno}")]
pub struct Broken {
    /// Which call failed.
    pub what: &'static str,
    /// How.
    pub errno: Errno,
}

/// Carries operations out and brings completions back. Built on and used by one worker thread.
pub trait Backend {
    /// Starts everything in `submissions` (emptying it), gives the thread to the kernel until something has completed
    /// or `deadline` passes, and appends what completed. `None` waits without limit; a deadline in the past polls.
    /// On io_uring this is one system call.
    fn submit_and_wait(
        &mut self,
        submissions: &mut Submissions,
        completions: &mut Vec<Completion>,
        deadline: Option<Time>,
    ) -> Result<(), Broken>;

    /// Lets another thread end a wait early.
    fn waker(&self) -> Waker;

    /// What was found here and what was chosen.
    fn features(&self) -> &Features;

    /// The time deadlines are measured in.
    fn now(&self) -> Time;
}

impl<B: Backend + ?Sized> Backend for Box<B> {
    fn submit_and_wait(
        &mut self,
        submissions: &mut Submissions,
        completions: &mut Vec<Completion>,
        deadline: Option<Time>,
    ) -> Result<(), Broken> {
        (**self).submit_and_wait(submissions, completions, deadline)
    }

    fn waker(&self) -> Waker {
        (**self).waker()
    }

    fn features(&self) -> &Features {
        (**self).features()
    }

    fn now(&self) -> Time {
        (**self).now()
    }
}

/// A plain set of attributes, for files of which nothing is known.
pub const NO_ATTRIBUTES: Attributes = Attributes {
    kind: Kind::Regular,
    size: 0,
    mode: 0,
    mtime: crate::wire::frame::Timestamp { seconds: 0, nanoseconds: 0 },
    uid: 0,
    gid: 0,
};

/// What backends made of real descriptors offer besides [`Backend`], so that sessions can be given something to work on.
#[cfg(unix)]
pub trait Attach: Backend {
    /// Takes over a read half and a write half; `None` when one descriptor (a socket) is both. The description's
    /// O_NONBLOCK flag is changed only when `ours` says that no other process shares it.
    fn add_stream(
        &mut self,
        read: std::os::fd::OwnedFd,
        write: Option<std::os::fd::OwnedFd>,
        ours: bool,
    ) -> Result<StreamId, Errno>;

    /// Takes over a bound, listening TCP socket.
    fn add_listener(&mut self, listener: std::net::TcpListener) -> Result<StreamId, Errno>;

    /// Adds a root that places can name.
    fn add_root(&mut self, root: crate::offload::Root) -> DirId;

    /// Adds a block store. It is no root, and no root is a block store: [`Errno::INVALID`].
    fn add_store(&mut self, store: crate::offload::BlockStore) -> DirId;
}
