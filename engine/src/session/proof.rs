//! How much of what is there of a file the other end has as well: which hashes to ask for, and what the answers mean. Asking
//! is left to get.rs.
//!
//! ```text
//! the beginning as one, and the last blocks one by one -> its hash is equal: up to the first last block that differs
//!                                                      -> it differs: half of it, half of what is left, .. -> found
//! ```
//! A killed transfer leaves holes in its last blocks at most ([`UNORDERED_BLOCKS`]), so one exchange is enough, in which
//! each end hashes everything once. The hash of a beginning comes out of the chaining values of its blocks: when it is
//! halved nothing is hashed again here. The other end hashes each beginning it is asked for, which is dear only where a file
//! was changed late, but before its last blocks.

use super::dedup::block_bytes;
use crate::limits::UNORDERED_BLOCKS;
use crate::tree_hash::{BlockHash, HASH_BLOCK_BYTES, TreeHash};
use crate::wire::frame::Hash;

/// What is hashed as one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// So many blocks from the beginning on, at least one.
    First(usize),
    /// The block with this index.
    Block(usize),
}

impl Part {
    /// Offset and length in bytes, in a file of `size` bytes.
    pub(super) fn range(self, size: u64) -> (u64, u64) {
        match self {
            Part::First(count) => (0, (count as u64 * HASH_BLOCK_BYTES as u64).min(size)),
            Part::Block(index) => (index as u64 * HASH_BLOCK_BYTES as u64, block_bytes(index as u64, size) as u64),
        }
    }

    /// Its hash, if all of it is there. Of a single block it is the block's own: the first block and the last ones have it.
    pub(super) fn hash(self, blocks: &[BlockHash]) -> Option<Hash> {
        match self {
            Part::First(count) => blocks.get(..count).map(hash_of),
            Part::Block(index) => blocks.get(index).map(|block| block.plain),
        }
    }
}

/// Hash of a beginning that consists of these blocks.
pub(super) fn hash_of(blocks: &[BlockHash]) -> Hash {
    let mut tree = TreeHash::new();
    blocks.iter().for_each(|&block| tree.push(block));
    tree.finalize()
}

/// The search for the first block that differs.
pub(super) struct Proof {
    /// So many blocks are equal,
    equal: usize,
    /// and no more than so many.
    most: usize,
    begun: bool,
}

impl Proof {
    /// Of so many blocks.
    pub(super) fn new(count: usize) -> Proof {
        Proof { equal: 0, most: count, begun: false }
    }

    /// What to ask for next, once everything before is answered. Nothing is left to ask after at most
    /// 1 + [`UNORDERED_BLOCKS`] + log2(blocks) parts, whatever the answers are.
    pub(super) fn ask(&mut self) -> Vec<Part> {
        if self.equal == self.most {
            return Vec::new();
        }
        if self.begun {
            return vec![Part::First(self.equal + (self.most - self.equal).div_ceil(2))];
        }
        self.begun = true;
        let first = self.most.saturating_sub(UNORDERED_BLOCKS);
        let beginning = (first > 0).then_some(Part::First(first));
        beginning.into_iter().chain((first..self.most).map(Part::Block)).collect()
    }

    /// What was asked for is equal at both ends, or is not known to be. In the order of the questions.
    pub(super) fn on_answer(&mut self, part: Part, same: bool) {
        match (part, same) {
            (Part::First(count), true) => self.equal = count,
            (Part::First(count), false) => self.most = self.most.min(count - 1),
            (Part::Block(index), true) if index == self.equal => self.equal += 1,
            // Behind something that differs.
            (Part::Block(_), true) => {}
            (Part::Block(index), false) => self.most = self.most.min(index),
        }
    }

    /// So many blocks are known to be equal.
    pub(super) fn equal(&self) -> usize {
        self.equal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const B: usize = HASH_BLOCK_BYTES;

    /// Asks until nothing is left to ask: the blocks found equal, and the parts asked for.
    fn search(count: usize, mut is_same: impl FnMut(Part) -> bool) -> (usize, Vec<Part>) {
        let (mut proof, mut all) = (Proof::new(count), Vec::new());
        loop {
            let parts = proof.ask();
            if parts.is_empty() {
                return (proof.equal(), all);
            }
            for part in parts {
                proof.on_answer(part, is_same(part));
                all.push(part);
            }
            assert!(all.len() <= most_parts(count), "{count} blocks: {all:?}");
        }
    }

    fn most_parts(count: usize) -> usize {
        1 + UNORDERED_BLOCKS + count.next_power_of_two().ilog2() as usize
    }

    #[test]
    fn the_first_block_that_differs_is_found_wherever_it_is() {
        for count in 0..=70 {
            for wrong in 0..=count {
                // Alone, or with everything behind it.
                for until in [wrong + 1, count] {
                    let (equal, _) = search(count, |part| match part {
                        Part::First(blocks) => blocks <= wrong,
                        Part::Block(index) => !(wrong..until).contains(&index),
                    });
                    assert_eq!(equal, wrong, "of {count}");
                }
            }
        }
    }

    #[test]
    fn what_differs_at_the_end_only_takes_one_exchange_that_asks_for_each_block_once() {
        for count in 1..=70_usize {
            for wrong in count.saturating_sub(UNORDERED_BLOCKS)..=count {
                let (_, parts) = search(count, |part| match part {
                    Part::First(blocks) => blocks <= wrong,
                    Part::Block(index) => index != wrong,
                });
                assert_eq!(parts, Proof::new(count).ask());
                let size = (count * B - 7) as u64;
                let end = parts.iter().fold(0, |at, part| {
                    let (offset, length) = part.range(size);
                    assert_eq!(offset, at);
                    offset + length
                });
                assert_eq!(end, size);
            }
        }
    }

    #[test]
    fn a_hash_is_that_of_the_bytes() {
        let content: Vec<u8> = (0..3 * B + 77).map(|at| (at / 3 % 253) as u8).collect();
        for size in [1, B - 1, B, B + 1, 2 * B, 3 * B + 77] {
            let content = &content[..size];
            let blocks: Vec<_> =
                (0..).zip(content.chunks(B)).map(|(index, block)| BlockHash::of(index, block)).collect();
            let placed: Vec<_> =
                (0..).zip(content.chunks(B)).map(|(index, block)| BlockHash::placed(index, block)).collect();
            for count in 1..=blocks.len() {
                let (first, block) = (Part::First(count), Part::Block(count - 1));
                let expected = |(offset, length)| {
                    let (offset, length) = (offset as usize, length as usize);
                    Some(*blake3::hash(&content[offset..offset + length]).as_bytes())
                };
                assert_eq!(first.hash(&blocks), expected(first.range(size as u64)));
                assert_eq!(
                    first.hash(&placed),
                    first.hash(&blocks),
                    "it takes no block's own hash but the first one's"
                );
                assert_eq!(block.hash(&blocks), expected(block.range(size as u64)));
            }
            // What was taken away meanwhile is equal to nothing.
            assert_eq!(Part::First(blocks.len() + 1).hash(&blocks), None);
            assert_eq!(Part::Block(blocks.len()).hash(&blocks), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_answered_the_search_ends_within_what_was_said_to_be_equal(
            count in 0_usize..600_000,
            answers in proptest::collection::vec(any::<bool>(), 64),
        ) {
            let mut answers = answers.into_iter();
            let mut said = 0;
            let (equal, _) = search(count, |part| {
                let same = answers.next().expect("the number of questions is bounded");
                said = match part {
                    Part::First(blocks) if same => said.max(blocks),
                    Part::Block(index) if same => said.max(index + 1),
                    _ => said,
                };
                same
            });
            prop_assert!(equal <= said && equal <= count);
        }
    }
}
