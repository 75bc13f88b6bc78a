//! HaveBlocks and MissingBlocks: content the server has seen before is not sent again.
//!
//! ```text
//! client: hash all blocks -> Put [Meta] HaveBlocks ------> server: opens the new file, fills in what its store has,
//!                                                                  each block proved by its hash
//!         MissingBlocks <--------------------------------         at its turn
//!         one frame for each missing block, in order ----> written to its place, hashed
//!         Commit | Done ---------------------------------> the rest of the known blocks counts, compare,
//!                                                          keep what was received in the store, name the file
//! ```
//! What the store had is in the new file before the client hears of it, so nothing that happens to the store afterwards
//! can fail the transfer. A frame is exactly one missing block.

use super::{Io, Outcome};
use crate::backend::{DirId, FileId, FsOp, OpKind, Output};
use crate::limits::BLOCKS_PER_OPERATION;
use crate::tree_hash::{BlockHash, HASH_BLOCK_BYTES};
use crate::wire::frame::Hash;
use std::collections::VecDeque;

const FILL: u32 = 16;
const KEEP: u32 = 17;

/// Blocks of a file of this size.
pub(super) fn block_count(size: u64) -> u64 {
    size.div_ceil(HASH_BLOCK_BYTES as u64)
}

/// Bytes of the block with this index in a file of `size` bytes.
pub(super) fn block_bytes(index: u64, size: u64) -> usize {
    let left = size.saturating_sub(index * HASH_BLOCK_BYTES as u64);
    usize::try_from(left).unwrap_or(HASH_BLOCK_BYTES).min(HASH_BLOCK_BYTES)
}

/// The indices whose bit is set, least significant bit first; what the bitmap does not reach is not set.
pub(super) fn indices(bitmap: &[u8], count: u64) -> VecDeque<u64> {
    let is_set = |&index: &u64| {
        let byte = usize::try_from(index / 8).ok().and_then(|byte| bitmap.get(byte));
        byte.is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    };
    (0..count).filter(is_set).collect()
}

/// The server's half: what is known of each block of a file being received.
pub(super) struct Filling {
    size: u64,
    store: Option<DirId>,
    hashes: Vec<Hash>,
    known: Vec<Option<BlockHash>>,
    in_flight: bool,
    /// The block that comes next, and whether it has begun.
    cursor: usize,
    /// Blocks that came, as runs still to be put into the store.
    received: VecDeque<(u64, Vec<Hash>)>,
    keeping: usize,
}

impl Filling {
    /// Checks what the client announced.
    pub(super) fn new(size: u64, block_size: u32, hashes: Vec<Hash>, store: Option<DirId>) -> Result<Filling, String> {
        if block_size as usize != HASH_BLOCK_BYTES {
            return Err(format!("blocks must be of {HASH_BLOCK_BYTES} bytes, not {block_size}"));
        }
        if hashes.len() as u64 != block_count(size) {
            return Err(format!("a file of {size} bytes has {} blocks, not {}", block_count(size), hashes.len()));
        }
        let known = if store.is_none() { vec![None; hashes.len()] } else { Vec::with_capacity(hashes.len()) };
        let received = VecDeque::new();
        Ok(Filling { size, store, hashes, known, in_flight: false, cursor: 0, received, keeping: 0 })
    }

    /// Asks the store for what comes next. True once it has been asked for everything.
    pub(super) fn fill(&mut self, file: FileId, io: &mut Io<'_, '_>) -> bool {
        if self.known.len() == self.hashes.len() {
            return true;
        }
        let Some(store) = self.store.filter(|_| !self.in_flight) else { return false };
        let first = self.known.len();
        let hashes = self.hashes[first..].iter().take(BLOCKS_PER_OPERATION).copied().collect();
        let op = FsOp::FillBlocks { file, store, size: self.size, first: first as u64, hashes };
        io.submit(FILL, OpKind::Fs(Box::new(op)));
        self.in_flight = true;
        false
    }

    /// Takes note of what the store had. Trouble with the store is no error: the blocks are missing.
    pub(super) fn on_filled(&mut self, asked: usize, outcome: Outcome) {
        self.in_flight = false;
        let found = match outcome {
            Ok(Output::Blocks(found)) => found,
            _ => Vec::new(),
        };
        self.known.extend(found.into_iter().chain(std::iter::repeat(None)).take(asked));
    }

    /// Which blocks the client must send, least significant bit first; to be asked once everything is known.
    pub(super) fn missing(&self) -> Vec<u8> {
        let mut bitmap = vec![0; self.hashes.len().div_ceil(8)];
        for (index, _) in self.known.iter().enumerate().filter(|(_, known)| known.is_none()) {
            bitmap[index / 8] |= 1 << (index % 8);
        }
        bitmap
    }

    /// A frame of `len` bytes begins: the offset at which the block stands that it must be. What is known of the blocks
    /// before it goes to `push`.
    pub(super) fn begin(&mut self, len: usize, push: impl FnMut(BlockHash)) -> Result<u64, String> {
        if self.known.len() != self.hashes.len() {
            return Err("content came before the answer to what is missing".to_string());
        }
        self.pass_known(push);
        let index = self.cursor as u64;
        if self.cursor == self.hashes.len() {
            return Err("more blocks came than were missing".to_string());
        }
        let expected = block_bytes(index, self.size);
        if len != expected {
            return Err(format!("block {index} has {expected} bytes, a frame of {len} came"));
        }
        let hash = self.hashes[self.cursor];
        match self.received.back_mut() {
            Some((first, run)) if *first + run.len() as u64 == index && run.len() < BLOCKS_PER_OPERATION => {
                run.push(hash);
            }
            _ => self.received.push_back((index, vec![hash])),
        }
        self.cursor += 1;
        Ok(index * HASH_BLOCK_BYTES as u64)
    }

    /// Passes over known blocks; returns the offset that has been reached.
    pub(super) fn pass_known(&mut self, mut push: impl FnMut(BlockHash)) -> u64 {
        while let Some(Some(known)) = self.known.get(self.cursor) {
            push(*known);
            self.cursor += 1;
        }
        (self.cursor as u64 * HASH_BLOCK_BYTES as u64).min(self.size)
    }

    /// Puts what was received into the store. True once that is done.
    pub(super) fn keep(&mut self, file: FileId, io: &mut Io<'_, '_>) -> bool {
        let Some(store) = self.store else { return true };
        if self.keeping == 0
            && let Some((first, hashes)) = self.received.pop_front()
        {
            let op = FsOp::KeepBlocks { file, store, size: self.size, first, hashes };
            io.submit(KEEP, OpKind::Fs(Box::new(op)));
            self.keeping = 1;
        }
        self.keeping == 0 && self.received.is_empty()
    }

    /// Takes note that a run is kept, or not: the store's trouble is not the transfer's.
    pub(super) fn on_kept(&mut self) {
        self.keeping = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u32 = HASH_BLOCK_BYTES as u32;

    fn known(number: u8) -> Option<BlockHash> {
        Some(BlockHash { plain: [number; 32], chaining: [number; 32] })
    }

    #[test]
    fn a_wrong_block_size_or_number_of_blocks_is_refused() {
        let size = 3 * u64::from(BLOCK) - 1;
        assert!(Filling::new(size, BLOCK, vec![[0; 32]; 3], None).is_ok());
        for (block, count) in [(BLOCK / 2, 3), (0, 3), (BLOCK, 2), (BLOCK, 4), (BLOCK, 0)] {
            assert!(Filling::new(size, block, vec![[0; 32]; count], None).is_err(), "{block}, {count}");
        }
        assert!(Filling::new(0, BLOCK, Vec::new(), None).is_ok());
    }

    #[test]
    fn only_what_the_store_has_not_is_missing_and_each_frame_must_be_that_block() {
        let size = 3 * u64::from(BLOCK) + 5;
        let mut filling = Filling::new(size, BLOCK, (0..4).map(|n| [n; 32]).collect(), None).unwrap();
        filling.known = vec![known(0), None, known(2), None];
        assert_eq!(filling.missing(), [0b1010]);
        assert_eq!(indices(&filling.missing(), 4), [1, 3]);
        let mut pushed = Vec::new();
        assert!(filling.begin(5, |known| pushed.push(known)).is_err(), "block 1 is whole");
        assert_eq!(filling.begin(HASH_BLOCK_BYTES, |known| pushed.push(known)), Ok(u64::from(BLOCK)));
        assert_eq!(filling.pass_known(|known| pushed.push(known)), 3 * u64::from(BLOCK));
        assert_eq!(filling.begin(5, |known| pushed.push(known)), Ok(3 * u64::from(BLOCK)));
        assert!(filling.begin(5, |known| pushed.push(known)).is_err(), "nothing is missing any more");
        assert_eq!(pushed.into_iter().map(Some).collect::<Vec<_>>(), [known(0), known(2)]);
        assert_eq!(filling.received, [(1, vec![[1; 32]]), (3, vec![[3; 32]])]);
    }

    #[test]
    fn a_bitmap_that_is_too_short_says_that_nothing_more_is_missing() {
        assert_eq!(indices(&[0xff], 20), (0..8).collect::<Vec<u64>>());
        assert!(indices(&[], 4).is_empty());
    }
}
