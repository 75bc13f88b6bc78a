//! Streams between hosts: two pipes each, one for each direction, with bounded buffers.
//!
//! Pipe `e` is written by end `e` and read by end `e ^ 1`. Bytes go from the queue of Sends into the pipe, arrive at
//! its far side some time later, and leave it for a Recv, every step in pieces of random size:
//!
//! ```text
//! Sends of end e --pour--> buffer --travel--> arrived --drain--> Recvs of end e ^ 1
//! ```
//!
//! Each pipe keeps a ledger of whose bytes entered it, apart from the rules by which they do: a byte behind a Send that
//! was not whole is a violation, whatever let it through.

use super::MAX_STREAM_BYTES;
use super::cable::Cable;
use super::disk::FileRef;
use super::faults::{Fault, Mutation};
use super::files::shorten;
use super::state::{State, What};
use crate::backend::{Cancel, Errno, Op, OpKind, Output, Time};
use std::collections::VecDeque;

/// One pass in so many stops before it has done all it could.
const PAUSE_ONCE_IN: u64 = 4;
/// One stream in so many holds at most [`TINY_STREAM_BYTES`]; such a world takes many events for few bytes.
const TINY_ONCE_IN: u64 = 16;
const TINY_STREAM_BYTES: u64 = 64;
/// Behind so many bytes of a stream most steps are as large as they can be: by then every kind of frame has come in pieces,
/// and the rest of a large file took half the time of all runs (22 s of 1,000, now 12; 2026-11-27).
const COARSE_FROM: u64 = 100_000;
/// One step in so many is of any size there too.
const FINE_ONCE_IN: u64 = 4;

/// One direction of a connection.
pub(super) struct Pipe {
    pub(super) pump_due: bool,
    pub(super) breaks_after: Option<u64>,
    buffer: VecDeque<u8>,
    /// So many bytes from the front have reached the far side; so many behind them stand in the queue of a cable, and who
    /// has met that queue full waits until then.
    arrived: usize,
    queued: usize,
    waits_until: Time,
    capacity: usize,
    /// On a cable, as a socket: it was full, and takes more only when a third of it is free.
    full: bool,
    /// Nothing more will be written.
    ended: bool,
    /// Nothing more will be read.
    reader_gone: bool,
    /// What a reader finds in place of an orderly end.
    end_error: Option<Errno>,
    pub(super) written: u64,
    ledger: Ledger,
}

/// Whose bytes entered a pipe last, and how many of how many.
#[derive(Default)]
struct Ledger {
    op: u64,
    written: u64,
    total: u64,
}

impl Ledger {
    /// Takes note of bytes; says what is wrong with them.
    fn enter(&mut self, sending: &Sending, count: u64) -> Option<String> {
        let wrong = if self.op == sending.id {
            (self.written != sending.written).then(|| format!("bytes of operation {} out of order", self.op))
        } else if self.written < self.total {
            Some(format!("operation {} behind {}, which is not whole", sending.id, self.op))
        } else {
            (sending.id < self.op).then(|| format!("operation {} overtaken by {}", sending.id, self.op))
        };
        *self = Ledger { op: sending.id, written: sending.written + count, total: sending.total };
        wrong
    }
}

impl Pipe {
    fn new(capacity: usize, breaks_after: Option<u64>) -> Pipe {
        Pipe {
            pump_due: false,
            breaks_after,
            buffer: VecDeque::new(),
            arrived: 0,
            queued: 0,
            waits_until: Time(0),
            capacity,
            full: false,
            ended: false,
            reader_gone: false,
            end_error: None,
            written: 0,
            ledger: Ledger::default(),
        }
    }

    fn room(&self) -> usize {
        if self.full { 0 } else { self.capacity.saturating_sub(self.buffer.len()) }
    }

    /// Bytes that have not set out for the far side.
    fn waiting(&self) -> usize {
        self.buffer.len() - self.arrived - self.queued
    }

    fn drained(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }
}

/// One side of a connection.
pub(super) struct End {
    /// `None` for a test that plays the far side.
    pub(super) host: Option<usize>,
    sends: VecDeque<Sending>,
    recvs: VecDeque<Receiving>,
    /// Rule 4: how everything that is sent from now on ends.
    send_error: Option<Errno>,
    recv_error: Option<Errno>,
    /// Completions of one stream are delivered in order.
    last_due: Time,
}

/// A Send, SendFile or Shutdown.
struct Sending {
    id: u64,
    op: Op,
    written: u64,
    total: u64,
    file: Option<FileRef>,
    /// Rule 9: why the rest is zeros.
    source_error: Option<Errno>,
    /// Where a planned fault strikes.
    fails_at: Option<(u64, Fault)>,
}

struct Receiving {
    id: u64,
    op: Op,
    filled: usize,
}

enum Poured {
    Whole,
    Part,
    Failed(Errno),
}

/// The `count` bytes from `at` on of pieces laid end to end.
fn copy_range<'a>(pieces: impl Iterator<Item = &'a [u8]>, at: u64, count: usize, to: &mut VecDeque<u8>) -> usize {
    let (mut skip, mut left) = (at as usize, count);
    for piece in pieces {
        let from = skip.min(piece.len());
        let some = &piece[from..piece.len().min(from + left)];
        to.extend(some);
        skip -= from;
        left -= some.len();
    }
    count - left
}

impl Sending {
    fn copy(&mut self, count: usize, to: &mut VecDeque<u8>) {
        match &self.op.kind {
            OpKind::Send { head, body, .. } => {
                let pieces = std::iter::once(&head[..]).chain(body.iter().map(crate::block::Slice::bytes));
                copy_range(pieces, self.written, count, to);
            }
            OpKind::SendFile { head, offset, .. } => {
                let mut copied = copy_range(std::iter::once(&head[..]), self.written, count, to);
                let behind_head = (self.written + copied as u64).saturating_sub(head.len() as u64);
                if let (Some(file), None) = (&self.file, self.source_error) {
                    let file = file.borrow();
                    let there = file.range(offset + behind_head, count - copied);
                    to.extend(there);
                    copied += there.len();
                }
                if copied < count {
                    self.source_error.get_or_insert(Errno::SHORT_SOURCE);
                    to.extend(std::iter::repeat_n(0, count - copied));
                }
            }
            _ => {}
        }
        self.written += count as u64;
    }
}

impl State {
    /// Bytes a new stream holds in each direction: sometimes a handful, mostly some more.
    pub(super) fn draw_capacity(&mut self) -> usize {
        let most = MAX_STREAM_BYTES as u64;
        let capacity = if self.random.once_in(TINY_ONCE_IN) {
            self.random.magnitude(TINY_STREAM_BYTES)
        } else {
            (self.random.magnitude(most) + TINY_STREAM_BYTES).min(most)
        };
        capacity as usize
    }

    /// A new connection, as its two ends.
    pub(super) fn connect(&mut self, hosts: [Option<usize>; 2], capacity: usize) -> [usize; 2] {
        let first = self.ends.len();
        for (side, host) in hosts.into_iter().enumerate() {
            let breaks_after = self.plan.breaks_after(first / 2, side == 0);
            self.pipes.push(Pipe::new(capacity, breaks_after));
            let (sends, recvs) = (VecDeque::new(), VecDeque::new());
            self.ends.push(End { host, sends, recvs, send_error: None, recv_error: None, last_due: Time(0) });
        }
        [first, first + 1]
    }

    pub(super) fn start_on_stream(&mut self, end: usize, id: u64, op: Op, fault: Option<Fault>) {
        match op.kind {
            OpKind::CloseStream { stream } => {
                let host = self.ends[end].host.expect("an operation comes from a host");
                for (id, op) in self.close_end(end, true) {
                    self.finish_on_stream(end, id, op, Err(Errno::CANCELLED));
                }
                let closed = self.hosts[host].streams.remove(stream).map(|_| Output::Done);
                self.finish_on_stream(end, id, op, closed);
            }
            OpKind::Recv { .. } => {
                if let (Some(fault), Some(host)) = (fault, self.ends[end].host) {
                    self.hit(host, Some(&op), fault);
                    self.reset(end);
                }
                self.ends[end].recvs.push_back(Receiving { id, op, filled: 0 });
                self.poke(end ^ 1);
            }
            OpKind::Accept { .. } => self.finish_on_stream(end, id, op, Err(Errno::INVALID)),
            _ => {
                let sending = self.sending(end, id, op, fault);
                self.ends[end].sends.push_back(sending);
                self.poke(end);
            }
        }
    }

    fn sending(&mut self, end: usize, id: u64, op: Op, fault: Option<Fault>) -> Sending {
        let (mut total, mut file, mut source_error) = (0, None, None);
        match &op.kind {
            OpKind::Send { head, body, .. } => {
                total = head.len() as u64 + body.iter().map(|slice| slice.len() as u64).sum::<u64>();
            }
            OpKind::SendFile { head, file: source, len, .. } => {
                total = head.len() as u64 + len;
                let host = self.ends[end].host.expect("an operation comes from a host");
                match self.hosts[host].disk.source(*source) {
                    Ok(found) => file = Some(found),
                    Err(stale) => source_error = Some(stale),
                }
            }
            _ => {}
        }
        let fails_at = fault.map(|fault| (self.random.below(total + 1), fault));
        Sending { id, op, written: 0, total, file, source_error, fails_at }
    }

    /// Delivers a completion behind those the same end had before.
    fn finish_on_stream(&mut self, end: usize, id: u64, op: Op, result: Result<Output, Errno>) {
        if let Some(host) = self.ends[end].host {
            let due = self.soon().max(self.ends[end].last_due);
            self.ends[end].last_due = due;
            self.finish(host, id, op, result, due);
        }
    }

    /// Moves what can be moved through a pipe.
    pub(super) fn pump(&mut self, pipe: usize) {
        self.pipes[pipe].pump_due = false;
        self.pour(pipe);
        match (self.pipes[pipe].waiting(), self.cable_of(pipe)) {
            (0, _) => {}
            (waiting, None) => self.pipes[pipe].arrived += self.step(pipe, waiting as u64) as usize,
            (waiting, Some(host)) if self.pipes[pipe].waits_until <= self.clock => self.queue_up(pipe, host, waiting),
            _ => {}
        }
        self.drain(pipe);
        if self.can_move(pipe) {
            self.poke(pipe);
        }
    }

    /// The host that sends through this pipe, where a cable leads from it to another host.
    fn cable_of(&self, pipe: usize) -> Option<usize> {
        self.cable.as_ref()?;
        let [from, to] = [self.ends[pipe].host?, self.ends[pipe ^ 1].host?];
        (from != to).then_some(from)
    }

    /// From a pipe into the queue of the cable, for which all pipes of a host stand in line. Who meets it full has lost
    /// what he sent, and finds that out some time later.
    fn queue_up(&mut self, pipe: usize, host: usize, waiting: usize) {
        let Some(cable) = &mut self.cable else { return };
        let most = self.random.magnitude(Cable::BURST).min(waiting as u64);
        let state = &mut self.pipes[pipe];
        match cable.enter(host, most, self.clock) {
            Some((count, leaves)) => {
                state.queued += count as usize;
                self.schedule(leaves, What::Arrive { pipe, count: count as usize });
            }
            None => {
                state.waits_until = self.clock.after(self.random.magnitude(Cable::LONGEST_WAIT));
                let until = state.waits_until;
                self.schedule(until, What::Pump { pipe });
            }
        }
    }

    /// Bytes have left the queue of the cable, at its far end.
    pub(super) fn arrive(&mut self, at: usize, count: usize) {
        let pipe = &mut self.pipes[at];
        // Fewer, where the connection broke meanwhile.
        let count = count.min(pipe.queued);
        pipe.queued -= count;
        pipe.arrived += count;
        self.poke(at);
    }

    /// How many of `most` bytes move at once.
    fn step(&mut self, pipe: usize, most: u64) -> u64 {
        let coarse = self.pipes[pipe].written >= COARSE_FROM && !self.random.once_in(FINE_ONCE_IN);
        if coarse { most } else { self.random.magnitude(most) }
    }

    fn can_move(&self, at: usize) -> bool {
        let (pipe, writer, reader) = (&self.pipes[at], &self.ends[at], &self.ends[at ^ 1]);
        let pours = !writer.sends.is_empty() && (pipe.room() > 0 || pipe.reader_gone || writer.send_error.is_some());
        let drains = !reader.recvs.is_empty() && (pipe.arrived > 0 || pipe.drained());
        let travels = pipe.waiting() > 0 && (pipe.waits_until <= self.clock || self.cable_of(at).is_none());
        pours || drains || travels
    }

    /// From the queue of Sends into the pipe, in order.
    fn pour(&mut self, end: usize) {
        // Nobody else looks at the queue meanwhile; so a Send that stays, as most do, is not moved out of it and back.
        let mut sends = std::mem::take(&mut self.ends[end].sends);
        while let Some(front) = sends.front_mut() {
            let poured = self.ends[end].send_error.map_or_else(|| self.pour_one(end, front), Poured::Failed);
            let result = match poured {
                Poured::Part => break,
                Poured::Whole => front.source_error.map_or(Ok(Output::Done), Err),
                Poured::Failed(errno) => {
                    if self.mutation != Some(Mutation::ForgetFailedStream) {
                        self.ends[end].send_error = Some(errno);
                    }
                    Err(errno)
                }
            };
            let over = sends.pop_front().expect("it has just been looked at");
            self.finish_on_stream(end, over.id, over.op, result);
        }
        self.ends[end].sends = sends;
    }

    fn pour_one(&mut self, end: usize, front: &mut Sending) -> Poured {
        loop {
            let pipe = &self.pipes[end];
            if pipe.reader_gone || (pipe.ended && front.total > 0) {
                return Poured::Failed(Errno::BROKEN_PIPE);
            }
            if let OpKind::Shutdown { .. } = front.op.kind {
                self.pipes[end].ended = true;
                return Poured::Whole;
            }
            if let Some((_, fault)) = front.fails_at.filter(|(at, _)| *at == front.written)
                && let Some(failed) = self.strike(end, front, fault)
            {
                return failed;
            }
            let pipe = &self.pipes[end];
            let left = front.total - front.written;
            if left == 0 {
                return Poured::Whole;
            }
            let to_fault = front.fails_at.map_or(u64::MAX, |(at, _)| at - front.written);
            let to_break = pipe.breaks_after.map_or(u64::MAX, |after| after.saturating_sub(pipe.written));
            if to_break == 0 {
                return self.strike(end, front, Fault::Epipe).unwrap_or(Poured::Part);
            }
            let most = (pipe.room() as u64).min(left).min(to_fault).min(to_break);
            if most == 0 {
                return Poured::Part;
            }
            let count = self.step(end, most);
            let pipe = &mut self.pipes[end];
            let wrong = pipe.ledger.enter(front, count);
            front.copy(count as usize, &mut pipe.buffer);
            pipe.written += count;
            let full = pipe.room() == 0;
            self.pipes[end].full = full && self.cable_of(end).is_some();
            let end_host = self.ends[end].host;
            self.violations.extend(wrong.map(|wrong| format!("host {end_host:?}, stream end {end}: {wrong}")));
            if self.random.once_in(PAUSE_ONCE_IN) {
                return Poured::Part;
            }
        }
    }

    /// A planned fault reaches a Send; what becomes of it, unless it goes on.
    fn strike(&mut self, end: usize, front: &mut Sending, fault: Fault) -> Option<Poured> {
        front.fails_at = None;
        if let Some(host) = self.ends[end].host {
            self.hit(host, Some(&front.op), fault);
        }
        match (fault, &front.file) {
            (Fault::ShortSource, Some(file)) => shorten(file, &mut self.random),
            (Fault::Eio, Some(_)) => front.source_error = front.source_error.or(Some(Errno::IO)),
            (Fault::Epipe, _) => {
                self.reset(end);
                return Some(Poured::Failed(Errno::BROKEN_PIPE));
            }
            (fault, _) => return Some(Poured::Failed(fault.errno())),
        }
        None
    }

    /// From the pipe into the Recvs.
    fn drain(&mut self, pipe: usize) {
        let end = pipe ^ 1;
        // As in `pour`.
        let mut recvs = std::mem::take(&mut self.ends[end].recvs);
        while let Some(front) = recvs.front_mut() {
            let drained = match self.ends[end].recv_error {
                Some(errno) => Some(Err(errno)),
                None => self.drain_one(pipe, front),
            };
            let Some(result) = drained else { break };
            let over = recvs.pop_front().expect("it has just been looked at");
            self.finish_on_stream(end, over.id, over.op, result);
        }
        self.ends[end].recvs = recvs;
    }

    fn drain_one(&mut self, at: usize, front: &mut Receiving) -> Option<Result<Output, Errno>> {
        let pipe = &mut self.pipes[at];
        let OpKind::Recv { into, at_least, .. } = &mut front.op.kind else { return Some(Err(Errno::INVALID)) };
        let most = pipe.arrived.min(into.capacity() - front.filled);
        let needed = at_least.saturating_sub(front.filled);
        // When there is enough, as much as needed or more.
        let take = if most > needed { needed + self.random.below((most - needed) as u64 + 1) as usize } else { most };
        let (one, two) = pipe.buffer.as_slices();
        let (one, two) = (&one[..take.min(one.len())], &two[..take.saturating_sub(one.len())]);
        let room = &mut into.bytes_mut()[front.filled..];
        room[..one.len()].copy_from_slice(one);
        room[one.len()..take].copy_from_slice(two);
        pipe.buffer.drain(..take);
        pipe.arrived -= take;
        pipe.full &= pipe.buffer.len() > pipe.capacity / 3 * 2;
        front.filled += take;
        let short = self.mutation == Some(Mutation::ShortRecv) && front.filled > 0 && self.random.once_in(3);
        if front.filled >= *at_least && front.filled > 0 || short {
            return Some(Ok(Output::Bytes(front.filled)));
        }
        pipe.drained().then(|| pipe.end_error.map_or(Ok(Output::Bytes(front.filled)), Err))
    }

    pub(super) fn cancel_on_stream(&mut self, end: usize, cancel: Cancel) {
        let begun = |front: &mut Sending| front.written > 0 && cancel.covers(front.op.token);
        if let Some(front) = self.ends[end].sends.pop_front_if(begun) {
            if self.mutation != Some(Mutation::ForgetFailedStream) {
                self.ends[end].send_error = Some(Errno::BROKEN_PIPE);
            }
            self.finish_on_stream(end, front.id, front.op, Err(Errno::BROKEN_PIPE));
        }
        for sending in std::mem::take(&mut self.ends[end].sends) {
            if cancel.covers(sending.op.token) {
                self.finish_on_stream(end, sending.id, sending.op, Err(Errno::CANCELLED));
            } else {
                self.ends[end].sends.push_back(sending);
            }
        }
        for receiving in std::mem::take(&mut self.ends[end].recvs) {
            if !cancel.covers(receiving.op.token) {
                self.ends[end].recvs.push_back(receiving);
            } else if receiving.filled == 0 {
                self.finish_on_stream(end, receiving.id, receiving.op, Err(Errno::CANCELLED));
            } else {
                // The bytes are lost with the block: going on would leave a hole.
                self.ends[end].recv_error = Some(Errno::CANCELLED);
                self.finish_on_stream(end, receiving.id, receiving.op, Err(Errno::CANCELLED));
            }
        }
        self.poke(end);
        self.poke(end ^ 1);
    }

    /// Closes both directions at one end and gives back what was queued there. A crash also loses what is under way.
    pub(super) fn close_end(&mut self, end: usize, orderly: bool) -> Vec<(u64, Op)> {
        self.pipes[end].ended = true;
        if !orderly {
            self.lose_some_under_way(end);
        }
        let inward = &mut self.pipes[end ^ 1];
        inward.reader_gone = true;
        (inward.arrived, inward.queued) = (0, 0);
        inward.buffer.clear();
        let sends = std::mem::take(&mut self.ends[end].sends).into_iter().map(|sending| (sending.id, sending.op));
        let sends: Vec<_> = sends.collect();
        let recvs = std::mem::take(&mut self.ends[end].recvs).into_iter().map(|receiving| (receiving.id, receiving.op));
        let queued = sends.into_iter().chain(recvs).collect();
        self.poke(end);
        self.poke(end ^ 1);
        queued
    }

    /// The connection of this end is gone, and neither side did it.
    fn reset(&mut self, end: usize) {
        for pipe in [end, end ^ 1] {
            self.lose_some_under_way(pipe);
            let silent = self.random.once_in(2);
            let pipe_state = &mut self.pipes[pipe];
            pipe_state.ended = true;
            pipe_state.reader_gone = true;
            pipe_state.end_error = (!silent).then(|| Errno::from(rustix::io::Errno::CONNRESET));
            self.poke(pipe);
        }
    }

    fn lose_some_under_way(&mut self, pipe: usize) {
        let Pipe { buffer, arrived, queued, .. } = &mut self.pipes[pipe];
        let under_way = buffer.len() - *arrived;
        buffer.truncate(*arrived + self.random.index(under_way + 1));
        *queued = (*queued).min(buffer.len() - *arrived);
    }

    /// A test that plays the far side sends; says how much fitted.
    pub(super) fn peer_write(&mut self, end: usize, bytes: &[u8]) -> usize {
        let pipe = &mut self.pipes[end];
        let count = if pipe.ended || pipe.reader_gone { 0 } else { bytes.len().min(pipe.room()) };
        pipe.buffer.extend(&bytes[..count]);
        self.poke(end);
        count
    }

    /// A test that plays the far side reads; `None` at the end.
    pub(super) fn peer_read(&mut self, end: usize, max: usize) -> Option<Vec<u8>> {
        let pipe = &mut self.pipes[end ^ 1];
        if pipe.drained() || pipe.reader_gone {
            return None;
        }
        let count = pipe.arrived.min(max);
        pipe.arrived -= count;
        let bytes = pipe.buffer.drain(..count).collect();
        self.poke(end ^ 1);
        Some(bytes)
    }

    pub(super) fn peer_close_write(&mut self, end: usize) {
        self.pipes[end].ended = true;
        self.poke(end);
    }
}
