//! Hashes content as it passes, off the loop: the loop moves on while a helper thread hashes what has come.
//!
//! ```text
//! at hand --update--> with a helper, what comes meanwhile waits --done--> the same with what waits, or at hand
//! ```
//! One piece of work for each transfer at a time, since each byte's place depends on those before it; a helper hashes
//! several times as fast as the fastest link of one stream delivers.

use super::{Io, Outcome};
use crate::backend::{Compute, Errno, OpKind};
use crate::block::Slice;
use crate::limits::DIGEST_BYTES;
use crate::tree_hash::{BlockHash, ContentHash, Input};

const DIGEST: u32 = 40;

/// The hash of a transfer's content.
pub(super) struct Digest {
    /// `None` while a helper has it.
    at_hand: Option<Box<ContentHash>>,
    /// What came meanwhile.
    waiting: Vec<Input>,
    /// Pieces a helper is at.
    out: usize,
}

impl Digest {
    pub(super) fn new(hash: ContentHash) -> Digest {
        Digest { at_hand: Some(Box::new(hash)), waiting: Vec::new(), out: 0 }
    }

    /// Hashes `piece` behind everything before it.
    pub(super) fn update(&mut self, piece: &Slice, io: &mut Io<'_, '_>) {
        match &mut self.at_hand {
            // Handing it over would cost as much as hashing it.
            Some(hash) if piece.len() < DIGEST_BYTES => hash.update(piece.bytes()),
            _ => {
                self.waiting.push(Input::Bytes(piece.clone()));
                self.hand_over(Vec::new(), io);
            }
        }
    }

    /// Adds a complete block that was hashed elsewhere.
    pub(super) fn push(&mut self, block: BlockHash) {
        let input = Input::Block(block);
        match &mut self.at_hand {
            Some(hash) => hash.apply(&input),
            None => self.waiting.push(input),
        }
    }

    /// Gives what waits to a helper, with a list to collect the next in.
    fn hand_over(&mut self, next: Vec<Input>, io: &mut Io<'_, '_>) {
        if self.waiting.is_empty() {
            return;
        }
        if let Some(hash) = self.at_hand.take() {
            let inputs = std::mem::replace(&mut self.waiting, next);
            self.out = inputs.len();
            io.submit(DIGEST, OpKind::Compute(Box::new(Compute::Digest { hash, inputs })));
        }
    }

    /// Takes note that a helper is through.
    pub(super) fn on_hashed(&mut self, compute: Compute, outcome: Outcome, io: &mut Io<'_, '_>) -> Result<(), Errno> {
        let Compute::Digest { hash, mut inputs } = compute else { return Ok(()) };
        outcome?;
        inputs.clear();
        self.out = 0;
        self.at_hand = Some(hash);
        self.hand_over(inputs, io);
        Ok(())
    }

    /// The hash, once everything that came is in it.
    pub(super) fn get(&self) -> Option<&ContentHash> {
        self.at_hand.as_deref()
    }

    pub(super) fn get_mut(&mut self) -> Option<&mut ContentHash> {
        self.at_hand.as_deref_mut()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.at_hand.is_some()
    }

    /// Nobody wants the hash any more.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Pieces that are not hashed yet.
    pub(super) fn pending(&self) -> usize {
        self.out + self.waiting.len()
    }
}
