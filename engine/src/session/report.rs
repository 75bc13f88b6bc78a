//! What a session tells whoever started it.
//!
//! Counters that move with every block are shared atomics; everything that happens once a file goes through a
//! [`Reporter`] as a value.

use super::Failure;
use crate::wire::frame::{Hash, Unkept};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a run, written by the session and read by whoever draws the progress line.
#[derive(Default, Debug)]
pub struct Progress {
    /// File bytes sent or received.
    pub bytes: AtomicU64,
    /// Files finished.
    pub files: AtomicU64,
    /// File bytes known to be part of the job; grows while directories are read.
    pub total_bytes: AtomicU64,
    /// Files known to be part of the job.
    pub total_files: AtomicU64,
    /// File bytes that need not be moved, because they are there.
    pub skipped_bytes: AtomicU64,
    /// Bytes of compressed content received, and bytes they became.
    pub packed: AtomicU64,
    /// See `packed`.
    pub unpacked: AtomicU64,
    /// Blocks that were offered to a codec.
    pub packs: AtomicU64,
    /// 1 once the totals will grow no more.
    pub totals_final: AtomicU64,
    /// 1 once both ends have greeted each other: from here on the terminal is ours.
    pub connected: AtomicU64,
}

impl Progress {
    pub(crate) fn moved(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn packed_one(&self) {
        self.packs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn skipped(&self, bytes: u64) {
        self.skipped_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn unpacked(&self, from: usize, to: usize) {
        self.packed.fetch_add(from as u64, Ordering::Relaxed);
        self.unpacked.fetch_add(to as u64, Ordering::Relaxed);
    }

    pub(crate) fn expect(&self, files: u64, bytes: u64) {
        self.total_files.fetch_add(files, Ordering::Relaxed);
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Which way a file went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From here to the peer.
    Up,
    /// From the peer to here.
    Down,
    /// Within this machine, without a peer.
    Local,
}

/// Who answers at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// In its own words: `haul 0.1.0`.
    pub words: String,
    /// It speaks the base protocol only.
    pub base: bool,
}

/// Something worth telling.
#[derive(Clone, Debug)]
pub enum Report {
    /// A file is complete and proved under its final name.
    Copied {
        /// Source path as the user knows it.
        source: Vec<u8>,
        /// Target path as the user knows it.
        target: Vec<u8>,
        /// Bytes.
        size: u64,
        /// BLAKE3, equal at both ends; `None` when the user wanted none.
        hash: Option<Hash>,
        /// Which way.
        direction: Direction,
    },
    /// The file that is reported next has grown while it was read: what it began with was copied, and proved as ever.
    Grew {
        /// Source path as the user knows it.
        source: Vec<u8>,
        /// Bytes copied.
        size: u64,
    },
    /// A file was there already: its content was proved and not moved.
    Unchanged {
        /// Source path as the user knows it.
        source: Vec<u8>,
        /// Target path as the user knows it.
        target: Vec<u8>,
        /// Bytes.
        size: u64,
        /// BLAKE3 of both.
        hash: Option<Hash>,
    },
    /// A directory was made or found.
    Directory {
        /// Target path as the user knows it.
        target: Vec<u8>,
    },
    /// A symbolic link was made.
    Link {
        /// Target path as the user knows it.
        target: Vec<u8>,
        /// Link text.
        text: Vec<u8>,
    },
    /// Something was left out on purpose.
    Skipped {
        /// Source path as the user knows it.
        source: Vec<u8>,
        /// Why: `symbolic link`, `FIFO`, ..
        why: &'static str,
    },
    /// It is there, but the target's file system, or our rights there, did not let these attributes of it be kept.
    Unkept {
        /// Target path as the user knows it.
        target: Vec<u8>,
        /// Which attributes.
        what: Unkept,
    },
    /// Something was not copied, or not completely.
    Failed(Failure),
    /// The connection as a whole failed; nothing follows.
    Fatal(Failure),
    /// A finding for whoever asks how the job was done.
    Stats(String),
    /// Who answers at the other end.
    Peer(Program),
    /// Whoever answers speaks the base protocol, which keeps no times, modes and links.
    Bare,
    /// Content goes over a direct connection.
    Direct {
        /// Where to.
        address: std::net::SocketAddr,
        /// As it is; else it is sealed with AES-256-GCM.
        plain: bool,
    },
    /// There is no direct connection to be had, for this reason; nothing is lost, and nothing follows.
    NotDirect(Failure),
    /// There is nobody at the other end who speaks the protocol, for this reason; nothing was asked for, and nothing follows.
    Absent(Failure),
    /// The other end may answer to a Hello of this version on a new connection; nothing was asked for, and nothing follows.
    Redial {
        /// The version.
        version: u8,
    },
    /// Something that changes how the job is done, for the user to know once.
    Notice(String),
    /// One name of a listing.
    Listed {
        /// Path below the operand; empty for the operand itself.
        path: Vec<u8>,
        /// Its attributes.
        attributes: crate::wire::frame::Attributes,
        /// Link text of a symbolic link, else empty.
        link: Vec<u8>,
    },
    /// How much of a file is there.
    Resumable {
        /// Path as the user knows it.
        path: Vec<u8>,
        /// Bytes, 0 when it is missing.
        size: u64,
        /// BLAKE3 of the last complete 4 MiB block.
        hash: Option<Hash>,
    },
    /// The hash of a file.
    Hashed {
        /// Path as the user knows it.
        path: Vec<u8>,
        /// BLAKE3 of its content.
        hash: Hash,
    },
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Report {
        Report::Fatal(failure)
    }
}

/// Takes reports.
pub type Reporter = Box<dyn FnMut(Report)>;

/// A shared set of counters.
pub type SharedProgress = Arc<Progress>;
