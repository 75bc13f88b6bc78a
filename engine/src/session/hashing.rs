//! The blocks of an open file hashed off the loop, several at a time: what dedup offers and resume proves.
//!
//! ```text
//! wanted: the first n blocks -> operations of up to 16 blocks, two in flight -> hashes in file order
//! ```

use super::{Io, Outcome};
use crate::backend::{Errno, FileId, FsOp, OpKind, Output};
use crate::limits::{BLOCKS_PER_OPERATION, HASHING_OPERATIONS};
use crate::tree_hash::BlockHash;

const BLOCKS: u32 = 26;

/// Hashing of the leading blocks of one file.
pub(super) struct Hashing {
    until: u64,
    /// From this block on with the blocks' own hashes.
    plain_from: u64,
    next: u64,
    in_flight: usize,
    hashes: Vec<Option<BlockHash>>,
}

impl Hashing {
    /// The first `until` blocks; from block `plain_from` on their own hashes as well.
    pub(super) fn new(until: u64, plain_from: u64) -> Hashing {
        Hashing { until, plain_from, next: 0, in_flight: 0, hashes: Vec::new() }
    }

    /// Fewer of them.
    pub(super) fn limit(&mut self, until: u64) {
        self.until = self.until.min(until);
    }

    /// How many are wanted.
    pub(super) fn wanted(&self) -> u64 {
        self.until
    }

    /// Keeps operations in flight.
    pub(super) fn advance(&mut self, file: FileId, io: &mut Io<'_, '_>) {
        while self.in_flight < HASHING_OPERATIONS && self.next < self.until {
            let (first, plain) = (self.next, self.next >= self.plain_from);
            let end = if plain { self.until } else { self.until.min(self.plain_from) };
            let count = usize::try_from(end - first).unwrap_or(usize::MAX).min(BLOCKS_PER_OPERATION);
            io.submit(BLOCKS, OpKind::Fs(Box::new(FsOp::HashBlocks { file, first, count, plain })));
            self.in_flight += 1;
            self.next += count as u64;
        }
    }

    /// Takes note of what an operation brought.
    pub(super) fn on_hashed(&mut self, first: u64, outcome: Outcome) -> Result<(), Errno> {
        self.in_flight -= 1;
        let Output::BlockHashes(hashes) = outcome? else { return Ok(()) };
        let first = usize::try_from(first).map_err(|_| Errno::INVALID)?;
        let len = self.hashes.len().max(first + hashes.len());
        self.hashes.resize(len, None);
        for (place, hash) in self.hashes[first..].iter_mut().zip(hashes) {
            *place = Some(hash);
        }
        Ok(())
    }

    /// True while an operation is out.
    pub(super) fn is_busy(&self) -> bool {
        self.in_flight > 0
    }

    /// The hashes, once all are there: fewer than wanted where the file turned out to be shorter.
    pub(super) fn done(&self) -> Option<Vec<BlockHash>> {
        if self.in_flight > 0 || self.next < self.until {
            return None;
        }
        let until = usize::try_from(self.until).unwrap_or(usize::MAX);
        Some(self.hashes.iter().take(until).map_while(|hash| *hash).collect())
    }
}
