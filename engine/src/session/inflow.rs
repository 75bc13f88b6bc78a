//! Data frames to content, in order: the way into a [`super::receiver::Receiver`].
//!
//! Raw pieces pass as they are. A compressed frame is gathered in a block, decompressed off the loop into another, and
//! what comes behind it waits; several may be with the codec at the same time.
//!
//! ```text
//! Data:       begin -> piece.. -> end                                  -> Begin, Bytes.., End
//! Compressed: begin -(blocks for both sides)-> piece.. -> end -> codec -> Begin, Bytes, End
//! ```
//! A frame for which there are no blocks stops the parsing ([`Inflow::is_ready`]): the stream fills, and the peer waits.

use super::Io;
use crate::backend::{Compute, Errno, OpKind, Output};
use crate::block::{Block, Class, Slice};
use crate::wire::compress::Codec;
use std::collections::VecDeque;

const UNPACK: u32 = 15;
/// Steps that may wait for the codec.
const UNITS: usize = 1024;

/// Content, step by step.
#[derive(Debug)]
pub(super) enum Step {
    /// A frame of so many bytes begins.
    Begin(usize),
    Bytes(Slice),
    /// It is complete.
    End,
    /// What came cannot be decompressed.
    Bad(Errno),
}

enum Unit {
    Ready(Step),
    /// The codec has it; the number is that of the block it fills.
    Unpacking(u64),
}

struct Gathering {
    codec: Codec,
    original: usize,
    len: usize,
    filled: usize,
    from: Block,
    into: Block,
}

/// Frames on their way in.
#[derive(Default)]
pub(super) struct Inflow {
    units: VecDeque<Unit>,
    /// A compressed frame that waits for its blocks.
    wanted: Option<(Codec, usize, usize)>,
    gathering: Option<Gathering>,
}

impl Inflow {
    /// A raw frame begins.
    pub(super) fn begin_raw(&mut self, len: usize) {
        self.units.push_back(Unit::Ready(Step::Begin(len)));
    }

    /// A compressed frame begins. Its size is no more than a block's: the decoder has seen to that.
    pub(super) fn begin_packed(&mut self, codec: Codec, original: usize, len: usize) {
        self.units.push_back(Unit::Ready(Step::Begin(original)));
        if Class::for_bytes(len).is_none() {
            // Larger than any codec makes of a block.
            self.units.push_back(Unit::Ready(Step::Bad(Errno::BAD_BLOCK)));
            return;
        }
        self.wanted = Some((codec, original, len));
    }

    /// True when pieces can be taken. Both blocks are taken at once: two frames with one each would wait for ever.
    pub(super) fn is_ready(&mut self, io: &mut Io<'_, '_>) -> bool {
        // Frames of no bytes hold no blocks, and would pile up behind one that is with the codec.
        if self.units.len() > UNITS {
            return false;
        }
        let Some((codec, original, len)) = self.wanted else { return true };
        // One without the other is given back.
        let (Some(from), Some(into)) = (io.take_for(len), io.take_for(original)) else { return false };
        self.wanted = None;
        self.gathering = Some(Gathering { codec, original, len, filled: 0, from, into });
        true
    }

    /// Bytes of the frame that began last.
    pub(super) fn piece(&mut self, piece: Slice) {
        match &mut self.gathering {
            Some(gathering) => {
                let end = gathering.filled + piece.len();
                if let Some(room) = gathering.from.bytes_mut().get_mut(gathering.filled..end) {
                    room.copy_from_slice(piece.bytes());
                }
                gathering.filled = end;
            }
            None => self.units.push_back(Unit::Ready(Step::Bytes(piece))),
        }
    }

    /// The frame is complete.
    pub(super) fn end(&mut self, io: &mut Io<'_, '_>) {
        if let Some(Gathering { codec, original, len, from, into, .. }) = self.gathering.take() {
            self.units.push_back(Unit::Unpacking(into.number()));
            let compute = Compute::Unpack { codec, from, len, into, original };
            io.submit(UNPACK, OpKind::Compute(Box::new(compute)));
        }
        self.units.push_back(Unit::Ready(Step::End));
    }

    /// Takes note of what the codec made.
    pub(super) fn on_unpacked(&mut self, compute: Compute, outcome: Result<Output, Errno>) {
        let Compute::Unpack { into, original, .. } = compute else { return };
        let number = into.number();
        let this = |unit: &&mut Unit| matches!(unit, Unit::Unpacking(waiting) if *waiting == number);
        if let Some(unit) = self.units.iter_mut().find(this) {
            *unit = Unit::Ready(match outcome {
                Ok(_) => Step::Bytes(into.share().slice(0..original)),
                Err(errno) => Step::Bad(errno),
            });
        }
    }

    /// What is next, if it is there.
    pub(super) fn next(&mut self) -> Option<Step> {
        match self.units.pop_front()? {
            Unit::Ready(step) => Some(step),
            waiting => {
                self.units.push_front(waiting);
                None
            }
        }
    }

    /// True when everything that came has been handed on.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty() && self.gathering.is_none() && self.wanted.is_none()
    }

    /// Nothing of it is of use any more.
    pub(super) fn clear(&mut self) {
        *self = Inflow::default();
    }
}
