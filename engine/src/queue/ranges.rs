//! Files that are moved in parts: which, in which, and how far they are.

use crate::backend::Waker;
use crate::limits::{RANGE_BYTES, RANGED_BYTES};
use crate::session::Failure;
use crate::tree_hash::HASH_BLOCK_BYTES;
use crate::wire::frame::Hash;
use std::collections::BTreeMap;

/// A part of a file that is moved by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    /// Names the attempt at the whole file, and the file being made here.
    pub(crate) token: u64,
    /// Names the file being made over there, where that is not done where it stands.
    pub(crate) there: u64,
    /// Only over connections to this process, where that makes a difference.
    pub(crate) process: Option<Hash>,
    /// First byte: that of a hash block.
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// When files are moved in ranges.
#[derive(Clone, Copy, Debug)]
pub struct Ranging {
    /// Bytes of the smallest file.
    pub from: u64,
    /// Bytes of a range, a multiple of the hash block.
    pub bytes: u64,
}

impl Default for Ranging {
    fn default() -> Ranging {
        Ranging { from: RANGED_BYTES, bytes: RANGE_BYTES }
    }
}

/// A file that is moved in ranges.
pub(super) struct Ranged {
    /// The connection that began it waits for its end.
    pub(super) owner: Waker,
    pub(super) left: usize,
    /// Chaining values of the blocks of each range that is done, by its first byte.
    pub(super) done: BTreeMap<u64, Vec<Hash>>,
    pub(super) failure: Option<Failure>,
}

impl Ranged {
    pub(super) fn finish(&mut self, range: Range, result: Result<Vec<Hash>, Failure>) {
        self.left -= 1;
        match result {
            Ok(chaining) => _ = self.done.insert(range.offset, chaining),
            Err(failure) => _ = self.failure.get_or_insert(failure),
        }
    }
}

/// What is to be moved of a file of `size` bytes, in ranges of at most `bytes`: all but the blocks that are known.
pub(super) fn missing(size: u64, bytes: u64, known: &[Option<Hash>]) -> impl Iterator<Item = (u64, u64)> {
    const BLOCK: u64 = HASH_BLOCK_BYTES as u64;
    let is_known = |offset: u64| {
        let block = usize::try_from(offset / BLOCK).ok().and_then(|index| known.get(index));
        block.is_some_and(Option::is_some)
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < size && is_known(at) {
            at += BLOCK;
        }
        let first = at;
        let limit = size.min((first / bytes + 1) * bytes);
        while at < limit && !is_known(at) {
            at += BLOCK;
        }
        at = at.min(size);
        (first < size).then(|| (first, at - first))
    })
}
