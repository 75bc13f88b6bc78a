//! Processor time off the loop: what helper threads do with the content of blocks.

#![forbid(unsafe_code)]

use crate::backend::{Errno, Output};
use crate::block::{Block, Slice};
use crate::tree_hash::{ContentHash, Input};
use crate::wire::compress::{self, Codec};
use crate::wire::seal::{self, Open, Seal};
use std::ops::Range;

/// Work on the content of blocks.
#[derive(Debug)]
pub enum Compute {
    /// Compresses `from` into `into` -> [`Output::Packed`].
    Pack {
        /// How.
        codec: Codec,
        /// Content.
        from: Slice,
        /// Filled from its beginning.
        into: Block,
        /// Looks at samples first.
        probe: bool,
    },
    /// Decompresses exactly `original` bytes -> [`Output::Done`], or [`Errno::BAD_BLOCK`].
    Unpack {
        /// How it was compressed.
        codec: Codec,
        /// What came.
        from: Block,
        /// Bytes of it.
        len: usize,
        /// Filled from its beginning.
        into: Block,
        /// Bytes it must make.
        original: usize,
    },
    /// Hashes `inputs` into `hash` -> [`Output::Done`].
    Digest {
        /// What was made of everything before.
        hash: Box<ContentHash>,
        /// In the order of the file.
        inputs: Vec<Input>,
    },
    /// Seals what the block's bytes begin with as records that fill it -> [`Output::Done`].
    Seal {
        /// With these nonces, and so many bytes of plaintext each; used up.
        seals: Vec<(Seal, usize)>,
        /// Room for a length, all the plaintext in one, and the rest of the room.
        block: Block,
    },
    /// Opens the record that is the block's bytes -> [`Output::Done`], or [`Errno::BAD_RECORD`].
    Open {
        /// With this nonce; used up.
        open: Option<Open>,
        /// Length, ciphertext and tag.
        block: Block,
        /// Where the plaintext then is.
        plain: Range<usize>,
    },
}

impl Compute {
    /// Does the work on this thread.
    pub fn run(&mut self) -> Result<Output, Errno> {
        match self {
            Compute::Pack { codec, from, into, probe } => {
                let started = std::time::Instant::now();
                let len = compress::compress(*codec, from.bytes(), into.bytes_mut(), *probe);
                // 584 years fit.
                Ok(Output::Packed { len, nanos: started.elapsed().as_nanos() as u64 })
            }
            Compute::Unpack { codec, from, len, into, original } => {
                let from = from.bytes().get(..*len).ok_or(Errno::INVALID)?;
                let into = into.bytes_mut().get_mut(..*original).ok_or(Errno::INVALID)?;
                compress::decompress(*codec, from, into).map_err(|_| Errno::BAD_BLOCK)?;
                Ok(Output::Done)
            }
            Compute::Digest { hash, inputs } => {
                inputs.iter().for_each(|input| hash.apply(input));
                Ok(Output::Done)
            }
            Compute::Seal { seals, block } => {
                seal::seal_all(std::mem::take(seals), block.bytes_mut());
                Ok(Output::Done)
            }
            Compute::Open { open, block, plain } => {
                let open = open.take().ok_or(Errno::INVALID)?;
                *plain = open.open(block.bytes_mut()).map_err(|_| Errno::BAD_RECORD)?;
                Ok(Output::Done)
            }
        }
    }
}
