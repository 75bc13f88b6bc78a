//! Which blocks are registered with the ring, by number.
//!
//! Registering pins a block's pages, so that file reads and writes need not look them up each time. The pages stay pinned
//! when a pool gives its memory back, and the address may then come to mean other pages; a block's number never does, so a
//! new block at an old address is registered anew.

use crate::backend::Errno;
use std::collections::HashMap;

/// Where buffers are registered.
pub(super) trait Table {
    /// Registers `bytes` under `index`.
    fn register(&self, index: u16, bytes: &[u8]) -> Result<(), Errno>;
}

/// The registered blocks of one ring.
pub(super) struct Buffers {
    on: bool,
    /// Number of a block to its index.
    known: HashMap<u64, u16>,
    refusal: Option<Errno>,
}

impl Buffers {
    /// Blocks registered at most: all that one worker's pool ever has.
    pub(super) const LIMIT: u32 = (crate::limits::POOL_LARGE_BLOCKS + crate::limits::POOL_SMALL_BLOCKS) as u32;

    /// Registers nothing.
    pub(super) fn off() -> Buffers {
        Buffers { on: false, known: HashMap::new(), refusal: None }
    }

    /// Registers blocks when they are first read into.
    pub(super) fn on() -> Buffers {
        Buffers { on: true, ..Buffers::off() }
    }

    /// The index of a block, registering its memory, `bytes`, if it is new. A refusal ends registering for good.
    pub(super) fn index(&mut self, block: u64, bytes: &[u8], table: &impl Table) -> Option<u16> {
        if let found @ Some(_) = self.known(block) {
            return found;
        }
        if !self.on || self.known.len() >= Self::LIMIT as usize {
            return None;
        }
        let index = self.known.len() as u16;
        match table.register(index, bytes) {
            Ok(()) => {
                self.known.insert(block, index);
                Some(index)
            }
            Err(errno) => {
                self.on = false;
                self.refusal = Some(errno);
                None
            }
        }
    }

    /// The index of a block that is registered.
    pub(super) fn known(&self, block: u64) -> Option<u16> {
        self.known.get(&block).copied()
    }

    /// Why registering stopped; said once.
    pub(super) fn take_refusal(&mut self) -> Option<Errno> {
        self.refusal.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Counting(Cell<usize>, Option<Errno>);

    impl Table for Counting {
        fn register(&self, _: u16, _: &[u8]) -> Result<(), Errno> {
            self.0.set(self.0.get() + 1);
            self.1.map_or(Ok(()), Err)
        }
    }

    #[test]
    fn a_block_is_registered_once_and_found_again() {
        let (table, bytes) = (Counting(Cell::new(0), None), vec![0; 8192]);
        let mut buffers = Buffers::on();
        assert_eq!(buffers.index(7, &bytes, &table), Some(0));
        assert_eq!(buffers.index(7, &bytes, &table), Some(0));
        assert_eq!((buffers.known(7), buffers.known(8)), (Some(0), None));
        assert_eq!(table.0.get(), 1);
        // Other memory at the same address.
        assert_eq!(buffers.index(8, &bytes, &table), Some(1));
        assert_eq!(table.0.get(), 2);
    }

    #[test]
    fn a_refusal_ends_registering_and_is_told_once() {
        let (table, bytes) = (Counting(Cell::new(0), Some(Errno::NO_SPACE)), vec![0; 8192]);
        let mut buffers = Buffers::on();
        assert_eq!(buffers.index(7, &bytes, &table), None);
        assert_eq!(buffers.index(7, &bytes, &table), None);
        assert_eq!(table.0.get(), 1);
        assert_eq!(buffers.take_refusal(), Some(Errno::NO_SPACE));
        assert_eq!(buffers.take_refusal(), None);
    }
}
