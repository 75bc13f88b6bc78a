//! The one true BLAKE3 of a file from blocks hashed in any order, anywhere.
//!
//! BLAKE3 is a binary tree over chunks of 1 KiB. A block of [`HASH_BLOCK_BYTES`], a power of two, at a multiple of its
//! size is a whole subtree of it: its *chaining value* can be computed by whoever has the block, and chaining values are
//! merged into the hash `b3sum` prints. A block's chaining value is not its hash: it depends on where the block stands, and
//! the last merge is done differently ("root"). So a file of one block is hashed as root from the start.
//!
//! ```
//! use haul_engine::tree_hash::{BlockHash, HASH_BLOCK_BYTES, TreeHash};
//!
//! let content = vec![7; HASH_BLOCK_BYTES + 1];
//! let mut tree = TreeHash::new();
//! tree.push(BlockHash::of(0, &content[..HASH_BLOCK_BYTES])); // hashed elsewhere
//! tree.update(&content[HASH_BLOCK_BYTES..]);
//! assert_eq!(tree.finalize(), *blake3::hash(&content).as_bytes());
//! ```

#![forbid(unsafe_code)]

use crate::block::Slice;
use crate::wire::frame::Hash;
use blake3::Hasher;
use blake3::hazmat::{self, HasherExt as _, Mode};
use std::fmt;

/// Bytes of one block: a subtree of every file. Also the block of dedup and of resume, which the protocol fixes.
pub const HASH_BLOCK_BYTES: usize = 4 * 1024 * 1024;

/// What is known of one complete block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHash {
    /// BLAKE3 of the block alone: its name in a block store and in HaveBlocks. Zeros where nobody asked for it.
    pub plain: Hash,
    /// Its chaining value at its place in the file.
    pub chaining: Hash,
}

impl BlockHash {
    /// Of the block with this index. Only the last block of a file may be shorter than [`HASH_BLOCK_BYTES`].
    pub fn of(index: u64, block: &[u8]) -> BlockHash {
        let mut hasher = BlockHasher::new(index);
        hasher.update(block);
        hasher.finalize()
    }
}

impl BlockHash {
    /// The same without the block's own hash, which costs as much again; the first block has it all the same.
    pub fn placed(index: u64, block: &[u8]) -> BlockHash {
        if index == 0 {
            return BlockHash::of(0, block);
        }
        let mut hasher = at(index);
        hasher.update(block);
        BlockHash { plain: [0; 32], chaining: hasher.finalize_non_root() }
    }
}

/// Makes a [`BlockHash`] from the pieces of a block.
pub struct BlockHasher {
    placed: Hasher,
    /// The first block's place is the one that its own hash is made for.
    plain: Option<Hasher>,
    bytes: usize,
}

impl BlockHasher {
    /// Of the block with this index.
    pub fn new(index: u64) -> BlockHasher {
        BlockHasher { placed: at(index), plain: (index > 0).then(Hasher::new), bytes: 0 }
    }

    /// Adds bytes.
    pub fn update(&mut self, piece: &[u8]) {
        self.bytes += piece.len();
        self.placed.update(piece);
        if let Some(plain) = &mut self.plain {
            plain.update(piece);
        }
    }

    /// Of everything added so far: at least a byte, at most a block.
    pub fn finalize(&self) -> BlockHash {
        debug_assert!(self.bytes > 0 && self.bytes <= HASH_BLOCK_BYTES);
        let plain = self.plain.as_ref().unwrap_or(&self.placed).finalize();
        BlockHash { plain: *plain.as_bytes(), chaining: self.placed.finalize_non_root() }
    }
}

/// A hasher for the block with this index.
fn at(index: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(index * HASH_BLOCK_BYTES as u64);
    hasher
}

/// Hashes consecutive blocks somewhere in a file, for a [`TreeHash`] elsewhere.
pub struct RangeHash {
    chaining: Vec<Hash>,
    /// The block that bytes go into, and how many it has.
    current: Hasher,
    filled: usize,
    /// Its index.
    index: u64,
}

impl RangeHash {
    /// From the block with this index on.
    pub fn new(index: u64) -> RangeHash {
        RangeHash { chaining: Vec::new(), current: at(index), filled: 0, index }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(HASH_BLOCK_BYTES - self.filled));
            self.current.update(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == HASH_BLOCK_BYTES {
                self.complete();
            }
        }
    }

    fn complete(&mut self) {
        self.chaining.push(self.current.finalize_non_root());
        self.index += 1;
        self.current = at(self.index);
        self.filled = 0;
    }

    /// Chaining values of the blocks, the last of which may be shorter than the others.
    pub fn finish(mut self) -> Vec<Hash> {
        if self.filled > 0 {
            self.complete();
        }
        self.chaining
    }
}

/// Hashes a file from its beginning: bytes as they pass, or whole blocks that were hashed elsewhere.
#[derive(Clone)]
pub struct TreeHash {
    /// Roots of complete subtrees, larger ones first. Merged only when more comes, since the last merge is the root's.
    stack: Vec<Hash>,
    /// Complete blocks on the stack.
    blocks: u64,
    /// The first block's own hash, in case it stays the only one.
    alone: Option<Hash>,
    current: Hasher,
    filled: usize,
}

impl Default for TreeHash {
    fn default() -> TreeHash {
        TreeHash::new()
    }
}

impl TreeHash {
    /// Of nothing yet.
    pub fn new() -> TreeHash {
        TreeHash { stack: Vec::new(), blocks: 0, alone: None, current: Hasher::new(), filled: 0 }
    }

    /// Bytes hashed so far.
    pub fn position(&self) -> u64 {
        self.blocks * HASH_BLOCK_BYTES as u64 + self.filled as u64
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == HASH_BLOCK_BYTES {
                self.complete();
            }
            let (now, later) = bytes.split_at(bytes.len().min(HASH_BLOCK_BYTES - self.filled));
            self.current.update(now);
            self.filled += now.len();
            bytes = later;
        }
    }

    /// Adds a complete block, or the shorter last one, hashed elsewhere. Panics inside a block: whoever mixes both knows where it stands.
    pub fn push(&mut self, block: BlockHash) {
        if self.filled == HASH_BLOCK_BYTES {
            self.complete();
        }
        assert_eq!(self.filled, 0, "blocks are added between blocks");
        if self.blocks == 0 {
            self.alone = Some(block.plain);
        }
        self.append(block.chaining);
    }

    /// As `push`, of a file of more than one block: of those the chaining values say it all.
    pub fn push_chaining(&mut self, chaining: Hash) {
        assert_eq!(self.filled, 0, "blocks are added between blocks");
        self.append(chaining);
    }

    fn complete(&mut self) {
        let chaining = self.current.finalize_non_root();
        self.filled = 0;
        self.append(chaining);
    }

    fn append(&mut self, chaining: Hash) {
        self.merge();
        self.stack.push(chaining);
        self.blocks += 1;
        self.current = at(self.blocks);
    }

    /// Merges what is known to have a right-hand neighbour: as many subtrees stay as the number of blocks has ones.
    fn merge(&mut self) {
        while self.stack.len() > self.blocks.count_ones() as usize {
            let (right, left) = (self.stack.pop(), self.stack.pop());
            let (Some(right), Some(left)) = (right, left) else { return };
            self.stack.push(hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
    }

    /// BLAKE3 of everything added so far.
    pub fn finalize(&self) -> Hash {
        let mut tree = self.clone();
        let mut right = match (tree.filled, tree.blocks) {
            (_, 0) => return *tree.current.finalize().as_bytes(),
            (0, 1) => return tree.alone.unwrap_or_else(|| unreachable!("a first block that is complete was pushed")),
            (0, _) => tree.stack.pop().unwrap_or_default(),
            (_, _) => {
                tree.merge();
                tree.current.finalize_non_root()
            }
        };
        while let Some(left) = tree.stack.pop() {
            right = match tree.stack.is_empty() {
                true => *hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
                false => hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash),
            };
        }
        right
    }
}

/// Something to hash, in the order of the file.
#[derive(Debug)]
pub enum Input {
    /// Content.
    Bytes(Slice),
    /// A complete block that was hashed elsewhere.
    Block(BlockHash),
}

/// All that is made of the content of one transfer as it passes. It travels to where there is time to hash and back.
pub struct ContentHash {
    /// Of the file from its beginning.
    pub whole: Option<TreeHash>,
    /// Of a range somewhere in it.
    pub range: Option<RangeHash>,
    /// Of what is moved alone, where it begins behind something that was there.
    pub tail: Option<Hasher>,
}

impl ContentHash {
    /// Adds what comes next.
    pub fn apply(&mut self, input: &Input) {
        match input {
            Input::Bytes(slice) => self.update(slice.bytes()),
            Input::Block(block) => {
                if let Some(whole) = &mut self.whole {
                    whole.push(*block);
                }
            }
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(whole) = &mut self.whole {
            whole.update(bytes);
        }
        if let Some(range) = &mut self.range {
            range.update(bytes);
        }
        if let Some(tail) = &mut self.tail {
            tail.update(bytes);
        }
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentHash").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        Hasher::new().update(b"tree").finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn without_its_own_hash_a_block_has_the_same_place() {
        let block = content(5000);
        assert_eq!(BlockHash::placed(0, &block), BlockHash::of(0, &block));
        assert_eq!(BlockHash::placed(3, &block).chaining, BlockHash::of(3, &block).chaining);
    }

    #[test]
    fn blocks_hashed_anywhere_make_the_hash_of_the_file() {
        const B: usize = HASH_BLOCK_BYTES;
        let all = content(9 * B + 1);
        for len in
            [0, 1, 1023, 1024, 1025, B - 1, B, B + 1, 2 * B - 1, 2 * B, 2 * B + 1, 3 * B, 4 * B, 7 * B + 5, 9 * B]
        {
            let bytes = &all[..len];
            let expected = *blake3::hash(bytes).as_bytes();
            // The first `elsewhere` blocks come as hashes, the rest as bytes in pieces that fit nothing.
            for elsewhere in 0..=len / B {
                let mut tree = TreeHash::new();
                let (before, after) = bytes.split_at(elsewhere * B);
                for (index, block) in before.chunks(B).enumerate() {
                    tree.push(BlockHash::of(index as u64, block));
                }
                after.chunks(700_001).for_each(|piece| tree.update(piece));
                assert_eq!(tree.position(), len as u64);
                assert_eq!(tree.finalize(), expected, "{len} bytes, {elsewhere} blocks hashed elsewhere");
            }
        }
    }

    #[test]
    fn bytes_and_blocks_may_alternate() {
        const B: usize = HASH_BLOCK_BYTES;
        let all = content(5 * B + 77);
        let mut tree = TreeHash::new();
        tree.update(&all[..B]);
        tree.push(BlockHash::of(1, &all[B..2 * B]));
        tree.update(&all[2 * B..4 * B]);
        tree.push(BlockHash::of(4, &all[4 * B..5 * B]));
        assert_eq!(tree.finalize(), *blake3::hash(&all[..5 * B]).as_bytes());
        tree.update(&all[5 * B..]);
        assert_eq!(tree.finalize(), *blake3::hash(&all).as_bytes());
    }

    #[test]
    fn ranges_hashed_anywhere_make_the_hash_of_the_file() {
        const B: usize = HASH_BLOCK_BYTES;
        let all = content(6 * B);
        for len in [B + 1, 2 * B - 1, 2 * B, 5 * B + 77, 6 * B] {
            for blocks in 1..=3 {
                let mut tree = TreeHash::new();
                for (number, range) in all[..len].chunks(blocks * B).enumerate() {
                    let mut hash = RangeHash::new((number * blocks) as u64);
                    range.chunks(700_001).for_each(|piece| hash.update(piece));
                    hash.finish().into_iter().for_each(|chaining| tree.push_chaining(chaining));
                }
                assert_eq!(tree.finalize(), *blake3::hash(&all[..len]).as_bytes(), "{len} in ranges of {blocks}");
            }
        }
        assert!(RangeHash::new(3).finish().is_empty());
    }

    #[test]
    fn the_plain_hash_of_a_block_is_that_of_its_bytes() {
        let block = content(HASH_BLOCK_BYTES);
        for index in [0, 1, 5] {
            let whole = BlockHash::of(index, &block);
            assert_eq!(whole.plain, *blake3::hash(&block).as_bytes());
            let mut hasher = BlockHasher::new(index);
            block.chunks(700_001).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finalize(), whole);
        }
    }
}
