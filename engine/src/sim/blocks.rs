//! A host's block store: a map that forgets and damages blocks as the seed has it, as a store does that others evict
//! from and that lies on a bad disk.

use super::files::{Dir, Disk};
use super::random::Random;
use crate::backend::{DirId, Errno, FileId, Output};
use crate::cas::block_bytes;
use crate::limits::BLOCKS_PER_OPERATION;
use crate::tree_hash::{BlockHash, HASH_BLOCK_BYTES};
use crate::wire::frame::Hash;
use std::ops::Range;

/// One block in so many is forgotten before it can be used, one is damaged, and one is not kept.
const ODD_ONCE_IN: u64 = 8;

impl Disk {
    /// [`crate::backend::FsOp::FillBlocks`].
    pub(super) fn fill_blocks(
        &mut self,
        file: FileId,
        store: DirId,
        wanted: (u64, u64, &[Hash]),
        random: &mut Random,
    ) -> Result<Output, Errno> {
        let node = self.making(file)?;
        self.check_store(store)?;
        let mut filled = Vec::new();
        for (index, range, hash) in places(wanted)? {
            match random.below(ODD_ONCE_IN) {
                0 => drop(self.store.remove(&hash)),
                1 => self.store.get_mut(&hash).into_iter().for_each(|block| damage(block, 2)),
                _ => {}
            }
            let Some(block) = self.store.get(&hash).filter(|block| block.len() == range.len()) else {
                self.store.remove(&hash);
                filled.push(None);
                continue;
            };
            let grown = range.end.saturating_sub(node.borrow().content.len());
            self.require_space(grown as u64)?;
            let content = &mut node.borrow_mut().content;
            content.resize(content.len().max(range.end), 0);
            // A block that turns out to be wrong has been written.
            content[range.clone()].copy_from_slice(block);
            let found = Some(BlockHash::of(index, &content[range])).filter(|found| found.plain == hash);
            if found.is_none() {
                self.store.remove(&hash);
            }
            filled.push(found);
        }
        Ok(Output::Blocks(filled))
    }

    /// [`crate::backend::FsOp::KeepBlocks`].
    pub(super) fn keep_blocks(
        &mut self,
        file: FileId,
        store: DirId,
        wanted: (u64, u64, &[Hash]),
        random: &mut Random,
    ) -> Result<Output, Errno> {
        let node = self.making(file)?;
        self.check_store(store)?;
        for (_, range, hash) in places(wanted)? {
            let content = &node.borrow().content;
            let block = content.get(range).filter(|block| *blake3::hash(block).as_bytes() == hash);
            if let Some(block) = block.filter(|_| !random.once_in(ODD_ONCE_IN)) {
                self.store.insert(hash, block.to_vec());
            }
        }
        Ok(Output::Done)
    }

    fn check_store(&self, store: DirId) -> Result<(), Errno> {
        match self.directories.get(store)? {
            Dir::Store => Ok(()),
            Dir::Root(_) | Dir::Open { .. } => Err(Errno::INVALID),
        }
    }
}

/// Index, place and hash of each block.
fn places((size, first, hashes): (u64, u64, &[Hash])) -> Result<Vec<(u64, Range<usize>, Hash)>, Errno> {
    if hashes.len() > BLOCKS_PER_OPERATION {
        return Err(Errno::INVALID);
    }
    let place = |(index, hash): (u64, &Hash)| {
        let bytes = block_bytes(size, index)?;
        let start = usize::try_from(index).ok()?.checked_mul(HASH_BLOCK_BYTES)?;
        Some((index, start..start.checked_add(bytes)?, *hash))
    };
    (first..=u64::MAX).zip(hashes).map(place).collect::<Option<_>>().ok_or(Errno::INVALID)
}

/// Changes a byte; the other way of it does not make it good again.
pub(super) fn damage(block: &mut [u8], way: u8) {
    if let Some(byte) = block.first_mut() {
        *byte ^= way;
    }
}
