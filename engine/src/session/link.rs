//! One stream with frames on it: the half of a session that server and client share.
//!
//! Owns the receive block, the decoder, and the count of bytes that were given to the stream and have not left. Frames
//! are gathered in an outbox and leave with the next data or at the end of the turn; data leaves as it is, never copied.
//!
//! ```text
//! Recv -> inbox -> next() -> Frame | Data, Piece(Slice).., End
//! frame() -> outbox --+--> Send { head: outbox + data header, body: the block }
//! data(slice) --------+
//! ```

use super::sealed::{Records, Sealed};
use super::unfinished::Unfinished;
use super::{Context, Quotas};
use crate::backend::{Completion, Errno, OpKind, Output, StreamId, Time};
use crate::block::{Block, Class, Head, Quota, Shared, Slice, Slices};
use crate::limits::{
    BLOCK_BYTES, FILE_RUN_BYTES, QUICK_BYTES_PER_SECOND, RECEIVE_BLOCKS, SECOND, SEND_PIECE_BYTES, SEND_QUEUE_BYTES,
    SLOW_RECV_BYTES, SLOW_RUN_BYTES, STALL_TIMEOUT,
};
use crate::wire::compress::Codec;
use crate::wire::decode::{DecodeError, Decoder, Event, Role};
use crate::wire::encode::{self, EncodeError};
use crate::wire::frame::{Dialect, Frame};
use crate::wire::seal::Seals;
use smallvec::{SmallVec, smallvec};
use std::collections::VecDeque;
use std::ops::Range;

/// `Token::part` of the receive operation; `Token::transfer` is 0 for everything a link does.
const RECV: u32 = 1;
pub(super) const SEND: u32 = 2;
const END: u32 = 3;
pub(super) const SEAL: u32 = 4;
pub(super) const OPEN: u32 = 5;
/// No backend has so many streams.
pub const NOWHERE: StreamId = StreamId::new(u32::MAX, u32::MAX);

/// One step of what arrived.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Frame),
    /// A data frame begins.
    Data {
        len: usize,
    },
    /// A compressed data frame begins: codec and decompressed size.
    Compressed {
        codec: Codec,
        original: usize,
        len: usize,
    },
    /// Bytes of it, still in the block they were received into.
    Piece(Slice),
    /// It is complete.
    DataEnd,
}

/// Received bytes with frames in them.
pub(super) struct Inbox {
    bytes: Received,
    /// Where, the first ones first.
    parts: SmallVec<[Range<usize>; 1]>,
    /// The part that is being parsed.
    current: usize,
}

enum Received {
    Block(Shared),
    /// A record that no block holds.
    Gathered(Vec<u8>),
}

impl Inbox {
    pub(super) fn new(block: Shared, parts: SmallVec<[Range<usize>; 1]>) -> Inbox {
        Inbox { bytes: Received::Block(block), parts, current: 0 }
    }

    pub(super) fn gathered(bytes: Vec<u8>, part: Range<usize>) -> Inbox {
        Inbox { bytes: Received::Gathered(bytes), parts: smallvec![part], current: 0 }
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Received::Block(block) => block.bytes(),
            Received::Gathered(bytes) => bytes,
        }
    }

    /// What is left of the present part.
    fn rest(&self) -> Option<&[u8]> {
        self.parts.get(self.current).map(|part| &self.bytes()[part.clone()])
    }

    /// Takes `used` bytes off the present part; where they stood.
    fn take(&mut self, used: usize) -> usize {
        let part = &mut self.parts[self.current];
        let at = part.start;
        part.start += used;
        at
    }
}

/// Sends bytes in pieces, each of which counts when it has left.
pub(super) fn send_pieces(stream: StreamId, mut head: Head, mut body: Slices, cx: &mut Context<'_>) {
    while let [only] = &body[..]
        && only.len() > SEND_PIECE_BYTES
    {
        let (piece, rest) = only.split(SEND_PIECE_BYTES);
        let (head, piece) = (std::mem::take(&mut head), Slices::from_iter([piece]));
        cx.submit(0, SEND, OpKind::Send { stream, head, body: piece });
        body = Slices::from_iter([rest]);
    }
    cx.submit(0, SEND, OpKind::Send { stream, head, body });
}

/// So many bytes in so many nanoseconds are what a quick link carries.
fn is_quick(bytes: u64, nanoseconds: u64) -> bool {
    u128::from(bytes) * u128::from(SECOND) >= u128::from(nanoseconds) * u128::from(QUICK_BYTES_PER_SECOND)
}

/// A stream with frames on it.
pub(crate) struct Link {
    pub(crate) stream: StreamId,
    decoder: Decoder,
    unfinished: Unfinished,
    dialect: Dialect,
    /// The receive block while nothing is using it.
    spare: Option<Block>,
    /// What it may receive into when the session has all the blocks that it may have: more would be all of the worker's.
    reserve: Quota,
    receiving: bool,
    inbox: Option<Inbox>,
    outbox: Vec<u8>,
    unsent: usize,
    progress_at: Time,
    heard_at: Time,
    /// What has left, and for how long something was waiting to: since they were last asked for.
    left_bytes: u64,
    busy: u64,
    busy_since: Time,
    /// Bytes that have come and that have left, in all.
    traffic: (u64, u64),
    ended: bool,
    failed: Option<Errno>,
    shut: bool,
    /// The end of what is sent waits for records that are being sealed.
    shut_later: bool,
    /// Frames travel in records.
    sealed: Option<Box<Sealed>>,
    /// Bytes in front of each run of a file that is on its way.
    run_heads: VecDeque<usize>,
    /// Nanoseconds without progress after which the peer is cut off.
    stall: u64,
    /// When the receive in flight was asked for, and whether the last large one came as fast as a quick link brings it.
    asked_at: Time,
    quick_in: bool,
    /// What left last left as fast.
    quick_out: bool,
}

impl Link {
    pub(crate) fn new(stream: StreamId, role: Role) -> Link {
        Link {
            stream,
            decoder: Decoder::new(role, Dialect::BASE),
            unfinished: Unfinished::default(),
            dialect: Dialect::BASE,
            spare: None,
            reserve: Quota::with_share(RECEIVE_BLOCKS, RECEIVE_BLOCKS),
            receiving: false,
            inbox: None,
            outbox: Vec::new(),
            unsent: 0,
            progress_at: Time(0),
            heard_at: Time(0),
            left_bytes: 0,
            busy: 0,
            busy_since: Time(0),
            traffic: (0, 0),
            ended: false,
            failed: None,
            shut: false,
            shut_later: false,
            sealed: None,
            run_heads: VecDeque::new(),
            stall: STALL_TIMEOUT,
            asked_at: Time(0),
            quick_in: false,
            quick_out: false,
        }
    }

    /// In place of one that is still to be opened.
    pub(crate) fn nowhere(role: Role) -> Link {
        Link::new(NOWHERE, role)
    }

    pub(crate) fn is_nowhere(&self) -> bool {
        self.stream == NOWHERE
    }

    /// Nanoseconds a peer may take nothing.
    pub(crate) fn stall(&self) -> u64 {
        self.stall
    }

    /// Bounds how long a peer may take nothing.
    pub(crate) fn set_stall(&mut self, nanoseconds: u64) {
        self.stall = nanoseconds;
    }

    pub(crate) fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
        self.decoder.set_dialect(dialect);
    }

    /// From the next byte on, either way, frames travel in records. What was queued before leaves as it is.
    pub(crate) fn seal(&mut self, seals: Seals, records: Records, cx: &mut Context<'_>) {
        self.flush(cx);
        let mut carried = Vec::new();
        if let Some(mut inbox) = self.inbox.take() {
            while let Some(rest) = inbox.rest() {
                carried.extend_from_slice(rest);
                inbox.current += 1;
            }
        }
        // It may be one that was lent.
        self.spare = None;
        self.sealed = Some(Box::new(Sealed::new(seals, records, carried)));
    }

    /// Takes no record that only a frame block holds.
    pub(crate) fn keep_records_short(&mut self) {
        if let Some(sealed) = &mut self.sealed {
            sealed.keep_records_short();
        }
    }

    /// What follows the proofs is not sealed. The block they were received into may be one that was lent.
    pub(crate) fn leave_bare(&mut self) {
        self.spare = None;
    }

    /// True when content must pass through user space on its way out.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// Keeps a receive in flight while there is nothing left to parse.
    pub(crate) fn pump_recv(&mut self, quotas: &Quotas, cx: &mut Context<'_>) {
        if self.receiving || self.ended || self.failed.is_some() || self.is_nowhere() {
            return;
        }
        // Nobody sees how much of what was asked for has come before all of it has.
        let most = if self.quick_in { BLOCK_BYTES } else { SLOW_RECV_BYTES };
        self.asked_at = cx.now;
        if let Some(sealed) = &mut self.sealed {
            // A block that was received before is parsed while the next one comes.
            if let Some((into, at_least)) =
                sealed.next_receive(self.inbox.is_some(), &mut self.spare, (quotas, &self.reserve), cx)
            {
                let at_least = at_least.min(most);
                cx.submit(0, RECV, OpKind::Recv { stream: self.stream, into, at_least });
                self.receiving = true;
            }
            return;
        }
        if self.inbox.is_some() {
            return;
        }
        let spare = self.spare.take().or_else(|| cx.pool.take(Class::Large, &quotas.large));
        let Some(into) = spare.or_else(|| cx.pool.take(Class::Large, &self.reserve)) else {
            return;
        };
        // Inside a data frame more is certain to come, so a whole block is asked for at once.
        let at_least = (self.decoder.payload_left() as usize).clamp(1, into.capacity().min(most));
        cx.submit(0, RECV, OpKind::Recv { stream: self.stream, into, at_least });
        self.receiving = true;
    }

    /// Gives it a block to receive into, in place of one from the worker's pool.
    pub(crate) fn lend(&mut self, block: Block) {
        self.spare = Some(block);
    }

    /// Bytes of memory held for a frame that is not complete.
    pub(crate) fn gathered(&self) -> usize {
        self.decoder.buffered_capacity()
    }

    /// Takes note of a completion of the link's own operations.
    pub(crate) fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
        match completion.op.kind {
            OpKind::Recv { into, at_least, .. } => {
                self.on_received(into, at_least, completion.result, cx);
            }
            OpKind::Compute(_) => {
                if let Some(sealed) = &mut self.sealed {
                    sealed.on_computed(completion);
                }
            }
            OpKind::Send { head, body, .. } => {
                self.sent(head.len() + body.iter().map(Slice::len).sum::<usize>(), cx.now);
                self.note_failure(completion.result);
            }
            _ => self.note_failure(completion.result),
        }
    }

    fn on_received(&mut self, into: Block, at_least: usize, result: Result<Output, Errno>, cx: &mut Context<'_>) {
        self.receiving = false;
        let filled = match result {
            Ok(Output::Bytes(filled)) => filled,
            Ok(_) => 0,
            Err(errno) => {
                self.failed.get_or_insert(errno);
                0
            }
        };
        self.ended |= filled < at_least;
        if filled > 0 {
            self.heard_at = cx.now;
            self.traffic.0 += filled as u64;
        }
        if filled >= SLOW_RECV_BYTES {
            self.quick_in = is_quick(filled as u64, cx.now.0.saturating_sub(self.asked_at.0));
        }
        if let Some(sealed) = &mut self.sealed {
            sealed.on_received(into, filled, &mut self.spare, cx);
            self.ended |= sealed.is_over();
        } else if filled > 0 {
            self.inbox = Some(Inbox::new(into.share(), smallvec![0..filled]));
        } else {
            self.spare = Some(into);
        }
    }

    fn note_failure(&mut self, result: Result<Output, Errno>) {
        if let Err(errno) = result {
            self.failed.get_or_insert(errno);
        }
    }

    /// The next thing that arrived, if anything has.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, DecodeError> {
        loop {
            if self.inbox.is_none() {
                self.inbox = self.sealed.as_mut().and_then(|sealed| sealed.next_inbox());
            }
            let Some(inbox) = &mut self.inbox else {
                self.account()?;
                return self.verdict();
            };
            let Some(input) = inbox.rest() else {
                self.inbox = None;
                continue;
            };
            let (used, event) = self.decoder.next(input)?;
            let base = inbox.take(used);
            let Some(event) = event else {
                inbox.current += 1;
                continue;
            };
            return Ok(Some(match event {
                Event::Frame(frame) => Incoming::Frame(frame),
                Event::Data { len } => Incoming::Data { len: len as usize },
                Event::Compressed { algo, original, len } => match Codec::from_algo(algo) {
                    Some(codec) => Incoming::Compressed { codec, original: original as usize, len: len as usize },
                    // The decoder knows no other codec.
                    None => Incoming::DataEnd,
                },
                Event::Piece { start, len } => match &inbox.bytes {
                    Received::Block(block) => Incoming::Piece(block.slice(base + start..base + start + len)),
                    // The largest frame of content fits a block, so this is no such frame.
                    Received::Gathered(_) => return Err(DecodeError::BadRecord),
                },
                Event::End => Incoming::DataEnd,
            }));
        }
    }

    /// Counts what it holds of frames that are not complete.
    fn account(&mut self) -> Result<(), DecodeError> {
        let gathered = self.sealed.as_ref().map_or(0, |sealed| sealed.gathered());
        let fits = self.unfinished.hold(self.decoder.buffered_capacity() + gathered);
        if fits { Ok(()) } else { Err(DecodeError::NoRoom) }
    }

    /// All that came was handed on: whether that is all there was.
    fn verdict(&self) -> Result<Option<Incoming>, DecodeError> {
        let ended = self.ended && self.failed.is_none();
        match self.sealed.as_ref().and_then(|sealed| sealed.verdict(ended)) {
            Some(error) => Err(error),
            None => Ok(None),
        }
    }

    /// Bytes that arrived before the protocol began: what a login shell printed. Consumes `keep_from` of them.
    pub(crate) fn preamble(&mut self) -> Option<&[u8]> {
        self.inbox.as_ref().and_then(Inbox::rest)
    }

    /// Drops the first `used` bytes of the preamble.
    pub(crate) fn consume_preamble(&mut self, used: usize) {
        if let Some(inbox) = &mut self.inbox {
            inbox.take(used);
            if inbox.rest().is_none_or(<[u8]>::is_empty) {
                self.inbox = None;
            }
        }
    }

    /// Takes the first bytes of a frame that were read as part of the preamble.
    pub(crate) fn begin_frame(&mut self, head: &[u8; 5]) -> Result<(), DecodeError> {
        self.decoder.next(head).map(|_| ())
    }

    /// Puts a frame into the outbox.
    pub(crate) fn frame(&mut self, frame: &Frame) -> Result<(), EncodeError> {
        encode::frame(frame, self.dialect, &mut self.outbox)
    }

    /// Sends the outbox and a data frame with these bytes.
    pub(crate) fn data(&mut self, body: Slice, cx: &mut Context<'_>) {
        let header = encode::data_header(u32::try_from(body.len()).expect("blocks fit a frame"));
        self.content(&header, body, cx);
    }

    /// Sends the outbox and a compressed data frame.
    pub(crate) fn packed(&mut self, codec: Codec, original: usize, body: Slice, cx: &mut Context<'_>) {
        let size = |bytes: usize| u32::try_from(bytes).expect("blocks fit a frame");
        let header = encode::compressed_header(codec.algo(), size(original), size(body.len()));
        self.content(&header, body, cx);
    }

    /// Sends the outbox and a frame whose header and payload these are.
    fn content(&mut self, header: &[u8], body: Slice, cx: &mut Context<'_>) {
        self.outbox.extend_from_slice(header);
        match self.sealed {
            Some(_) => self.send_sealed(header.len(), Some(body), cx),
            None => self.send(Slices::from_iter([body]), cx),
        }
    }

    fn send_sealed(&mut self, header: usize, body: Option<Slice>, cx: &mut Context<'_>) {
        let Some(sealed) = &mut self.sealed else { return };
        let bytes = sealed.seal(&self.outbox, header, body, cx);
        self.outbox.clear();
        sealed.pump_send(self.stream, cx);
        self.queued(bytes, cx.now);
    }

    /// The outbox and the header of a data frame whose payload the kernel sends from a file.
    pub(crate) fn run_head(&mut self, len: u64, now: Time) -> Head {
        self.outbox.extend_from_slice(&encode::data_header(u32::try_from(len).expect("a run is bounded")));
        let head = self.take_outbox();
        self.queued(len as usize, now);
        self.run_heads.push_back(head.len());
        self.queued(head.len(), now);
        head
    }

    /// A run of a file has left, or never will.
    pub(crate) fn run_sent(&mut self, len: u64, now: Time) {
        let head = self.run_heads.pop_front().unwrap_or(0);
        self.sent(len as usize + head, now);
    }

    /// Bytes of a file that the kernel may send at once: they count as sent only when all have left.
    pub(crate) fn run_bytes(&self) -> u64 {
        if self.quick_out { FILE_RUN_BYTES } else { SLOW_RUN_BYTES }
    }

    /// This end did not run until now: what the peer did meanwhile is not known, and its time begins anew.
    pub(crate) fn forgive(&mut self, now: Time) {
        (self.heard_at, self.progress_at) = (now, now);
    }

    fn queued(&mut self, bytes: usize, now: Time) {
        if self.unsent == 0 {
            self.progress_at = now;
            self.busy_since = now;
        }
        self.unsent += bytes;
    }

    fn sent(&mut self, bytes: usize, now: Time) {
        if bytes as u64 >= SLOW_RUN_BYTES {
            self.quick_out = is_quick(bytes as u64, now.0.saturating_sub(self.progress_at.0));
        }
        self.unsent -= bytes;
        self.progress_at = now;
        self.left_bytes += bytes as u64;
        self.traffic.1 += bytes as u64;
        self.busy += now.0.saturating_sub(self.busy_since.0);
        self.busy_since = now;
    }

    /// Bytes that have left since the last call, and the nanoseconds for which some were waiting to.
    pub(crate) fn take_sent(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.left_bytes), std::mem::take(&mut self.busy))
    }

    /// Sends what is in the outbox.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) {
        if let Some(sealed) = &mut self.sealed {
            if !self.outbox.is_empty() {
                return self.send_sealed(0, None, cx);
            }
            if sealed.pump_send(self.stream, cx) && std::mem::take(&mut self.shut_later) {
                cx.submit(0, END, OpKind::Shutdown { stream: self.stream });
            }
        } else if !self.outbox.is_empty() {
            self.send(Slices::new(), cx);
        }
    }

    fn take_outbox(&mut self) -> Head {
        if self.outbox.len() > 64 {
            return Head::from_vec(std::mem::take(&mut self.outbox));
        }
        let head = Head::from_slice(&self.outbox);
        self.outbox.clear();
        head
    }

    fn send(&mut self, body: Slices, cx: &mut Context<'_>) {
        let head = self.take_outbox();
        self.queued(head.len() + body.iter().map(Slice::len).sum::<usize>(), cx.now);
        send_pieces(self.stream, head, body, cx);
    }

    /// True while more data may be queued.
    pub(crate) fn has_room(&self) -> bool {
        self.unsent + self.outbox.len() < SEND_QUEUE_BYTES && self.failed.is_none()
    }

    /// True when it will want a block for its next receive.
    pub(crate) fn needs_block(&self) -> bool {
        let holds_one = self.inbox.is_some() || self.sealed.as_ref().is_some_and(|sealed| sealed.holds_block());
        !self.receiving && !holds_one && self.spare.is_none() && !self.ended && self.failed.is_none()
    }

    /// True when everything queued has left.
    pub(crate) fn is_drained(&self) -> bool {
        self.unsent == 0 && self.outbox.is_empty()
    }

    /// The peer will send nothing more and everything it sent was handed on.
    pub(crate) fn at_end(&self) -> bool {
        (self.ended || self.failed.is_some()) && self.is_parsed()
    }

    /// Everything whole that the peer sent was handed on.
    pub(crate) fn is_parsed(&self) -> bool {
        self.inbox.is_none() && self.sealed.as_ref().is_none_or(|sealed| sealed.is_empty())
    }

    /// True when the stream ended inside a frame.
    pub(crate) fn ended_inside_frame(&self) -> bool {
        self.decoder.mid_frame()
    }

    /// Why the stream cannot be used any more.
    pub(crate) fn failure(&self) -> Option<Errno> {
        self.failed
    }

    /// Says to the peer that nothing more will come.
    pub(crate) fn shutdown(&mut self, cx: &mut Context<'_>) {
        if std::mem::replace(&mut self.shut, true) {
            return;
        }
        if let Some(sealed) = &mut self.sealed {
            let bytes = sealed.seal_end();
            self.queued(bytes, cx.now);
            self.shut_later = true;
            self.flush(cx);
        } else {
            cx.submit(0, END, OpKind::Shutdown { stream: self.stream });
        }
    }

    /// Gives the stream up.
    pub(crate) fn close(&mut self, cx: &mut Context<'_>) {
        if self.is_nowhere() {
            return;
        }
        cx.submit(0, END, OpKind::CloseStream { stream: self.stream });
    }

    /// True while whatever the peer says would be heard.
    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving
    }

    /// When something came last.
    pub(crate) fn heard_at(&self) -> Time {
        self.heard_at
    }

    /// Bytes that have come and that have left, in all.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        self.traffic
    }

    /// Since when it is the peer's turn to say something, if it is.
    pub(crate) fn silent_since(&self) -> Option<Time> {
        (self.receiving && self.is_drained()).then(|| self.heard_at.max(self.progress_at))
    }

    /// When a peer that takes nothing is to be cut off.
    pub(crate) fn stall_deadline(&self) -> Option<Time> {
        self.stalled_since().map(|since| since.after(self.stall))
    }

    /// Since when a peer has taken nothing of what waits for it.
    pub(crate) fn stalled_since(&self) -> Option<Time> {
        (self.unsent > 0).then_some(self.progress_at)
    }
}
