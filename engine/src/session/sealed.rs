//! Records in place of bare frames: the part of a link that seals what leaves and opens what comes.
//!
//! ```text
//! frames -> record in place, next nonce -> [helper thread] -> sent in order
//! Recv -> whole records, opened in place -> [helper thread] -> parts with frames in them, in order
//! ```
//! A large record is received alone into a block of its own, so that nothing of it is ever copied: once its length is
//! known, what is missing is received behind what is there. Small ones are received together; what is cut off by the end
//! of a block is carried over to the next. Nonces are counted when a record is begun, so several may be with helpers.
//! Between two hauls no record holds more than a large block does: a frame that is longer takes several. Hauls from before
//! that rule (2026-11-30) send up to 4 MiB in one, and are still understood.

use super::link::{Inbox, OPEN, SEAL, send_pieces};
use super::{Context, Quotas};
use crate::backend::{Completion, Compute, OpKind, StreamId};
use crate::block::{Block, Class, Head, Quota, Slice, Slices};
use crate::limits::{ARRIVED_BLOCKS, BLOCK_BYTES, ROOM_BYTES, SEAL_BYTES, SPARED_BLOCKS, SPARED_FRAMES};
use crate::wire::decode::DecodeError;
use crate::wire::encode::DATA_HEADER_BYTES;
use crate::wire::seal::{BadLength, Exhausted, LENGTH_BYTES, Seals, TAG_BYTES, record_len, seal_all};
use smallvec::{SmallVec, smallvec};
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes of a record around its plaintext.
const AROUND: usize = LENGTH_BYTES + TAG_BYTES;
/// Bytes of frames that share the record of the data behind them.
const SHARED_BYTES: usize = ROOM_BYTES / 2;
/// Where a record begins in its block: a data frame's content then begins with a page.
const START: usize = ROOM_BYTES - LENGTH_BYTES - DATA_HEADER_BYTES;

/// How frames are put into records, and how the stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Records {
    /// One frame in each, as base peers have it; the stream just ends.
    Base,
    /// As many as there are, and an empty record as the end.
    Keyed,
}

/// A record, or several, on the way out.
enum Outgoing {
    Ready(Head, Slices),
    /// A helper seals the block of this number.
    Sealing(u64),
}

/// Records on the way in.
enum Arrived {
    Ready(Inbox),
    /// A helper opens the block of this number.
    Opening(u64),
}

/// The beginning of a record, where it was received.
struct Partial {
    block: Block,
    start: usize,
    end: usize,
}

/// Both directions of a sealed stream.
pub(super) struct Sealed {
    seals: Seals,
    records: Records,
    /// A record is taken if a block of this class holds it. A base record may be longer still.
    longest: Class,
    outgoing: VecDeque<Outgoing>,
    partial: Option<Partial>,
    /// The beginning of a record that has no block.
    carried: Vec<u8>,
    /// A record larger than any block, of so many bytes, is gathered in `carried`.
    gathering: Option<usize>,
    /// Bytes of the record before.
    last: usize,
    /// Where the record begins in the block that is being received into.
    receiving: Option<usize>,
    arrived: VecDeque<Arrived>,
    /// The peer's end of the stream is proved.
    end_seen: bool,
    /// Ours is on its way.
    end_sent: bool,
    broken: Option<DecodeError>,
}

impl Sealed {
    /// From here on. `carried` was received behind the last bare frame.
    pub(super) fn new(seals: Seals, records: Records, carried: Vec<u8>) -> Sealed {
        Sealed {
            seals,
            records,
            longest: Class::Frame,
            outgoing: VecDeque::new(),
            partial: None,
            carried,
            gathering: None,
            last: 0,
            receiving: None,
            arrived: VecDeque::new(),
            end_seen: false,
            end_sent: false,
            broken: None,
        }
    }

    /// Seals whole frames, and those in front of `body` whose header the last `header` bytes of `frames` are. Returns the
    /// bytes that will leave.
    pub(super) fn seal(&mut self, frames: &[u8], header: usize, body: Option<Slice>, cx: &mut Context<'_>) -> usize {
        let (before, head) = frames.split_at(frames.len() - header);
        let (apart, head) = match (self.records, &body) {
            // What is long on its way does not keep back the request that it belongs to: who has that says that he lives.
            (Records::Keyed, Some(body)) if frames.len() <= SHARED_BYTES && body.len() <= BLOCK_BYTES => {
                (&[][..], frames)
            }
            _ => (before, head),
        };
        self.seal_frames(apart) + body.map_or(0, |body| self.seal_body(head, body, cx))
    }

    fn seal_frames(&mut self, frames: &[u8]) -> usize {
        let mut records = Vec::with_capacity(frames.len() + AROUND);
        let mut rest = frames;
        while !rest.is_empty() {
            let len = match self.records {
                Records::Keyed => rest.len().min(SEAL_BYTES),
                Records::Base => frame_len(rest).min(rest.len()),
            };
            let (plain, behind) = rest.split_at(len);
            self.seal_bytes(&[plain], &mut records);
            rest = behind;
        }
        self.queue(records)
    }

    fn queue(&mut self, records: Vec<u8>) -> usize {
        let len = records.len();
        if len > 0 {
            self.outgoing.push_back(Outgoing::Ready(Head::from_vec(records), Slices::new()));
        }
        len
    }

    /// Appends a record with these bytes.
    fn seal_bytes(&mut self, plain: &[&[u8]], records: &mut Vec<u8>) {
        let at = records.len();
        records.extend_from_slice(&[0; LENGTH_BYTES]);
        plain.iter().for_each(|part| records.extend_from_slice(part));
        records.extend_from_slice(&[0; TAG_BYTES]);
        match self.seals.sealer.next() {
            Ok(seal) => seal.seal(&mut records[at..]),
            // Nothing unsealed ever leaves.
            Err(_) => {
                records.truncate(at);
                self.broken.get_or_insert(DecodeError::Exhausted);
            }
        }
    }

    fn seal_body(&mut self, head: &[u8], body: Slice, cx: &mut Context<'_>) -> usize {
        let mut block = match body.into_block() {
            Ok(block) => block,
            // Somebody else reads it too, so it cannot be sealed where it stands.
            Err(body) => {
                let mut records = Vec::with_capacity(head.len() + body.len() + AROUND);
                let mut parts = body.bytes().chunks(self.most_content());
                self.seal_bytes(&[head, parts.next().unwrap_or_default()], &mut records);
                parts.for_each(|part| self.seal_bytes(&[part], &mut records));
                return self.queue(records);
            }
        };
        let content = block.window();
        let mut lens: SmallVec<[usize; 1]> = block.bytes().chunks(self.most_content()).map(<[u8]>::len).collect();
        match lens.first_mut() {
            Some(first) => *first += head.len(),
            None => lens.push(head.len()),
        }
        let begin = content.start - head.len() - LENGTH_BYTES;
        let window = begin..begin + head.len() + content.len() + lens.len() * AROUND;
        block.memory_mut()[content.start - head.len()..content.start].copy_from_slice(head);
        block.set_window(window.clone());
        let seals: Result<Vec<_>, _> = lens.iter().map(|&len| Ok((self.seals.sealer.next()?, len))).collect();
        let Ok::<_, Exhausted>(seals) = seals else {
            self.broken.get_or_insert(DecodeError::Exhausted);
            return 0;
        };
        if window.len() < SEAL_BYTES {
            seal_all(seals, block.bytes_mut());
            let record = block.share().slice(0..window.len());
            self.outgoing.push_back(Outgoing::Ready(Head::new(), Slices::from_iter([record])));
        } else {
            self.outgoing.push_back(Outgoing::Sealing(block.number()));
            cx.submit(0, SEAL, OpKind::Compute(Box::new(Compute::Seal { seals, block })));
        }
        window.len()
    }

    /// Bytes of a frame's content in one record.
    fn most_content(&self) -> usize {
        match self.records {
            Records::Base => usize::MAX,
            Records::Keyed => BLOCK_BYTES,
        }
    }

    /// Sends what is sealed. True when nothing waits for a helper.
    pub(super) fn pump_send(&mut self, stream: StreamId, cx: &mut Context<'_>) -> bool {
        while let Some(Outgoing::Ready(..)) = self.outgoing.front() {
            if let Some(Outgoing::Ready(head, body)) = self.outgoing.pop_front() {
                send_pieces(stream, head, body, cx);
            }
        }
        self.outgoing.is_empty()
    }

    /// Seals the end of the stream, once, where it is sealed. Returns the bytes that will leave.
    pub(super) fn seal_end(&mut self) -> usize {
        if self.records == Records::Base || std::mem::replace(&mut self.end_sent, true) {
            return 0;
        }
        let mut record = Vec::with_capacity(AROUND);
        self.seal_bytes(&[], &mut record);
        self.queue(record)
    }

    /// Takes note that a helper is through with a record.
    pub(super) fn on_computed(&mut self, completion: Completion) {
        let OpKind::Compute(compute) = completion.op.kind else { return };
        match *compute {
            Compute::Seal { block, .. } if completion.result.is_ok() => {
                let this = |out: &&mut Outgoing| matches!(out, Outgoing::Sealing(number) if *number == block.number());
                if let Some(out) = self.outgoing.iter_mut().find(this) {
                    let len = block.capacity();
                    *out = Outgoing::Ready(Head::new(), Slices::from_iter([block.share().slice(0..len)]));
                }
            }
            Compute::Open { block, plain, .. } if completion.result.is_ok() => {
                let this = |some: &&mut Arrived| matches!(some, Arrived::Opening(number) if *number == block.number());
                if let Some(some) = self.arrived.iter_mut().find(this) {
                    *some = Arrived::Ready(Inbox::new(block.share(), smallvec![plain]));
                }
            }
            Compute::Open { block, .. } => {
                let this = |some: &Arrived| matches!(some, Arrived::Opening(number) if *number == block.number());
                // Nothing behind it is ever looked at, whatever becomes of that.
                if let Some(at) = self.arrived.iter().position(this) {
                    self.arrived.truncate(at);
                }
                self.fail(DecodeError::Forged);
            }
            _ => self.fail(DecodeError::Forged),
        }
    }

    /// A block to receive into, and how many bytes at least; `None` while there is none, or enough is there. While what
    /// came is being parsed, only what nobody else may need is received into.
    pub(super) fn next_receive(
        &mut self,
        parsing: bool,
        spare: &mut Option<Block>,
        (quotas, reserve): (&Quotas, &Quota),
        cx: &mut Context<'_>,
    ) -> Option<(Block, usize)> {
        let left = cx.pool.left(Class::Large, &quotas.large);
        if (parsing || !self.arrived.is_empty()) && left <= SPARED_BLOCKS {
            return None;
        }
        while self.partial.is_none() {
            if self.arrived.len() >= ARRIVED_BLOCKS || self.is_over() {
                return None;
            }
            if let Some(whole) = self.gathering {
                let mut block = take(Class::Large, spare, (quotas, reserve), cx)?;
                let missing = (whole - self.carried.len()).min(block.capacity());
                block.set_window(ROOM_BYTES..ROOM_BYTES + missing);
                return Some((block, missing));
            }
            let class = match self.carried_len() {
                Some(len) if len > room_in(Class::Large) => Class::Frame,
                _ => Class::Large,
            };
            // What came before, or another session, may need two of these to decompress what it has.
            if class == Class::Frame && cx.pool.left(Class::Frame, &quotas.frame) <= SPARED_FRAMES {
                return None;
            }
            let mut block = take(class, spare, (quotas, reserve), cx)?;
            let end = START + self.carried.len();
            block.memory_mut()[START..end].copy_from_slice(&self.carried);
            self.carried.clear();
            self.take_in(Partial { block, start: START, end }, cx);
        }
        let Partial { mut block, start, end } = self.partial.take()?;
        let have = end - start;
        let memory = block.memory().len();
        let (until, at_least) = match length_of(&block.memory()[start..end]) {
            // Only up to its end, so that the one behind it has a block of its own.
            Some(Ok(len)) if len >= SEAL_BYTES => (start + len, len - have),
            Some(Ok(len)) => (memory, len - have),
            _ if self.last >= SEAL_BYTES => ((start + self.last).min(memory), LENGTH_BYTES - have),
            _ => (memory, LENGTH_BYTES - have),
        };
        block.set_window(end..until);
        self.receiving = Some(start);
        Some((block, at_least))
    }

    /// Takes note of bytes received into a block from [`Sealed::next_receive`], or from before the stream was sealed.
    pub(super) fn on_received(&mut self, block: Block, filled: usize, spare: &mut Option<Block>, cx: &mut Context<'_>) {
        let window = block.window();
        let end = window.start + filled;
        match self.receiving.take() {
            Some(start) => self.take_in(Partial { block, start, end }, cx),
            None => {
                self.carried.extend_from_slice(&block.memory()[window.start..end]);
                *spare = Some(block);
                if self.gathering.is_some_and(|whole| self.carried.len() >= whole) {
                    self.open_gathered();
                }
            }
        }
    }

    /// Opens the whole records of what was received. What is left stays where it is, or is carried over.
    fn take_in(&mut self, Partial { mut block, mut start, end }: Partial, cx: &mut Context<'_>) {
        let mut parts: SmallVec<[Range<usize>; 1]> = SmallVec::new();
        while let Some(len) = length_of(&block.memory()[start..end]) {
            let Ok(len) = len else { return self.fail(DecodeError::BadRecord) };
            if len > end - start {
                break;
            }
            self.last = len;
            let Ok(open) = self.seals.opener.next() else { return self.fail(DecodeError::Exhausted) };
            if len >= SEAL_BYTES && parts.is_empty() && start + len == end {
                block.set_window(start..end);
                self.arrived.push_back(Arrived::Opening(block.number()));
                let compute = Compute::Open { open: Some(open), block, plain: 0..0 };
                return cx.submit(0, OPEN, OpKind::Compute(Box::new(compute)));
            }
            let Ok(plain) = open.open(&mut block.memory_mut()[start..start + len]) else {
                return self.fail(DecodeError::Forged);
            };
            let plain = start + plain.start..start + plain.end;
            start += len;
            if plain.is_empty() {
                // Nothing may stand behind the end.
                let proper = self.records == Records::Keyed && start == end;
                match proper {
                    true => self.end_seen = true,
                    false => self.fail(DecodeError::BadRecord),
                }
                break;
            }
            parts.push(plain);
        }
        let rest = start..end;
        let fits = length_of(&block.memory()[rest.clone()])
            .is_none_or(|len| len.is_ok_and(|len| start + len <= block.memory().len()));
        if parts.is_empty() && fits && !self.is_over() {
            self.partial = Some(Partial { block, start, end });
            return;
        }
        self.carried.extend_from_slice(&block.memory()[rest]);
        if !parts.is_empty() {
            block.set_window(0..block.memory().len());
            self.arrived.push_back(Arrived::Ready(Inbox::new(block.share(), parts)));
        }
        match (self.records, self.carried_len()) {
            (Records::Base, Some(len)) if len > room_in(Class::Frame) => self.gathering = Some(len),
            // No haul makes one.
            (Records::Keyed, Some(len)) if len > room_in(self.longest) => self.fail(DecodeError::BadRecord),
            _ => {}
        }
    }

    /// Bytes of memory held for a record that has no block.
    pub(super) fn gathered(&self) -> usize {
        if self.gathering.is_some() { self.carried.capacity() } else { 0 }
    }

    /// A record that no block holds is complete. It is a list: content always fits.
    fn open_gathered(&mut self) {
        self.gathering = None;
        let mut record = std::mem::take(&mut self.carried);
        let Ok(open) = self.seals.opener.next() else { return self.fail(DecodeError::Exhausted) };
        match open.open(&mut record) {
            Ok(plain) => self.arrived.push_back(Arrived::Ready(Inbox::gathered(record, plain))),
            Err(_) => self.fail(DecodeError::Forged),
        }
    }

    fn carried_len(&self) -> Option<usize> {
        // A wrong length is found where records are taken in.
        length_of(&self.carried)?.ok()
    }

    /// From a peer to which there is no frame block to give.
    pub(super) fn keep_records_short(&mut self) {
        self.longest = Class::Large;
        if self.carried_len().is_some_and(|len| len > room_in(Class::Large)) {
            self.fail(DecodeError::BadRecord);
        }
    }

    fn fail(&mut self, error: DecodeError) {
        self.broken.get_or_insert(error);
    }

    /// True once nothing more is to be received.
    pub(super) fn is_over(&self) -> bool {
        self.end_seen || self.broken.is_some()
    }

    /// What comes next, in order: its parts are frames.
    pub(super) fn next_inbox(&mut self) -> Option<Inbox> {
        match self.arrived.pop_front()? {
            Arrived::Ready(inbox) => Some(inbox),
            opening @ Arrived::Opening(_) => {
                self.arrived.push_front(opening);
                None
            }
        }
    }

    /// Why the stream cannot be trusted, once everything before that was handed on. `ended`: nothing more will be received.
    pub(super) fn verdict(&self, ended: bool) -> Option<DecodeError> {
        if !self.arrived.is_empty() {
            return None;
        }
        let cut = self.partial.as_ref().is_some_and(|partial| partial.end > partial.start) || !self.carried.is_empty();
        let unproved = self.records == Records::Keyed && !self.end_seen;
        self.broken.or((ended && (cut || unproved)).then_some(DecodeError::CutOff))
    }

    /// True while something that came, which will give its block back, or the beginning of it is there.
    pub(super) fn holds_block(&self) -> bool {
        !self.arrived.is_empty() || self.partial.is_some()
    }

    /// True when nothing that came waits.
    pub(super) fn is_empty(&self) -> bool {
        self.arrived.is_empty()
    }
}

/// Bytes of a record that a block of this class holds.
fn room_in(class: Class) -> usize {
    2 * ROOM_BYTES + class.bytes() - START
}

/// The length of the record that begins here, once its length field is there.
fn length_of(bytes: &[u8]) -> Option<Result<usize, BadLength>> {
    bytes.first_chunk().map(|head| record_len(*head))
}

/// The length of the frame that begins here.
fn frame_len(frames: &[u8]) -> usize {
    frames.first_chunk().map_or(frames.len(), |length| LENGTH_BYTES + u32::from_le_bytes(*length) as usize)
}

fn take(
    class: Class,
    spare: &mut Option<Block>,
    (quotas, reserve): (&Quotas, &Quota),
    cx: &mut Context<'_>,
) -> Option<Block> {
    let bytes = class.bytes();
    let kept = spare.take_if(|block| block.memory().len() == bytes + 2 * ROOM_BYTES);
    let block = kept.or_else(|| cx.pool.take(class, quotas.of(class)));
    let block = block.or_else(|| if class == Class::Large { cx.pool.take(class, reserve) } else { None });
    block.map(|mut block| {
        block.set_window(ROOM_BYTES..ROOM_BYTES + bytes);
        block
    })
}
