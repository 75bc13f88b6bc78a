//! The write half: starts what the front of a queue asks for and carries it on, one write in the kernel per stream.
//!
//! ```text
//! idle --bytes in memory--> Gather --+--> account --> idle, and again from the front
//!   \----body of a file---> pour ----+
//!        (Fill, Room, Drain, Across, Copy, Push, Pad: see `splice`)
//! ```

use super::inflight::{Flight, Step, Work};
use super::send_queue::{Content, Front, Outgoing, Queued};
use super::slots::Kind;
use super::splice::Pour;
use super::sys::Call;
use super::{Uring, files};
use crate::backend::{Cancel, Completion, Errno, StreamId};
use crate::limits::BLOCK_BYTES;
use bytemuck::allocation::try_zeroed_slice_box;

impl Uring {
    /// Puts an op that writes behind the others of its stream.
    pub(super) fn enqueue(&mut self, item: Queued, out: &mut Vec<Completion>) {
        let id = item.stream;
        match self.streams.open(id) {
            Ok(stream) if stream.sink == Kind::Listener => out.push(item.end(Err(Errno::INVALID))),
            Ok(stream) => match stream.queue.failed {
                Some(errno) => out.push(item.end(Err(errno))),
                None => {
                    stream.queue.push(item);
                    self.dirty.push(id);
                }
            },
            Err(errno) => out.push(item.end(Err(errno))),
        }
    }

    /// Starts the next write of every stream that may have one.
    pub(super) fn pump(&mut self, out: &mut Vec<Completion>) {
        while let Some(id) = self.dirty.pop() {
            self.advance(id, out);
        }
    }

    fn advance(&mut self, id: StreamId, out: &mut Vec<Completion>) {
        loop {
            let Some(stream) = self.streams.slot(id) else { return };
            if let Some(errno) = stream.queue.failed {
                return stream.queue.end_all(errno, out);
            }
            // Away with a write: its return brings the stream here again.
            let Some(mut outgoing) = stream.outgoing.take() else { return };
            match stream.queue.front() {
                Front::Bytes => {
                    stream.queue.gather(&mut outgoing.items);
                    return self.carry_on(id, outgoing, out);
                }
                Front::File => {
                    outgoing.items.extend(stream.queue.pop());
                    outgoing.pour = self.begin_pour(id, &outgoing);
                    return self.carry_on(id, outgoing, out);
                }
                Front::Nothing => {
                    stream.outgoing = Some(outgoing);
                    return;
                }
                Front::Empty => out.extend(stream.queue.pop().map(|item| item.end(Ok(())))),
                Front::End => {
                    let result = stream.shut_write();
                    // Nothing can follow an end that worked.
                    stream.queue.fail(result.err().unwrap_or(Errno::BROKEN_PIPE));
                    out.extend(stream.queue.pop().map(|item| item.end(result)));
                }
            }
            stream.outgoing = Some(outgoing);
        }
    }

    fn begin_pour(&mut self, id: StreamId, outgoing: &Outgoing) -> Option<Pour> {
        let Some(Queued { content: Content::File(range), .. }) = outgoing.items.first() else { return None };
        let sink = self.streams.slot(id)?.sink;
        let splice = self.splice && range.source.is_some();
        let pipe = if sink == Kind::Socket && splice && range.len > 0 { self.pipes.lease() } else { None };
        let mut pour = Pour::new(range.offset, range.len, sink, pipe, splice);
        if range.source.is_none() {
            pour.trouble = Some(Errno::STALE_ID);
        }
        Some(pour)
    }

    /// Gives the kernel the next step of what `outgoing` holds, or ends it when there is none.
    fn carry_on(&mut self, id: StreamId, mut outgoing: Box<Outgoing>, out: &mut Vec<Completion>) {
        let Some(stream) = self.streams.slot(id) else { return };
        let Some(fd) = stream.write_fd() else {
            stream.queue.fail(Errno::BROKEN_PIPE);
            return self.end_write(id, outgoing, &[], out);
        };
        let socket = stream.sink == Kind::Socket;
        let call = match &mut outgoing.pour {
            None => Call::Gather { fd, socket },
            Some(pour) => {
                if pour.wants_bounce() {
                    pour.bounce = self.bounces.pop().or_else(|| try_zeroed_slice_box(BLOCK_BYTES).ok());
                    if pour.bounce.is_none() {
                        pour.trouble = Some(Errno::NO_MEMORY);
                    }
                }
                match pour.next() {
                    Some(step) => Call::Pour { fd, socket, step },
                    None => return self.end_write(id, outgoing, &[], out),
                }
            }
        };
        self.ring.start(Flight::new(Some(id), Work::Send(outgoing)), &call);
        stream.busy += 1;
    }

    pub(super) fn on_send(
        &mut self,
        id: StreamId,
        mut outgoing: Box<Outgoing>,
        cancels: &[Cancel],
        step: Step,
        result: Result<usize, Errno>,
        out: &mut Vec<Completion>,
    ) {
        let Some(stream) = self.streams.slot(id) else { return };
        let unwanted = !cancels.is_empty() || stream.queue.failed.is_some();
        let result = match result {
            Err(Errno::CANCELLED) if unwanted => Err(files::INTERRUPTED),
            result => result,
        };
        let again = result.is_err_and(files::is_again);
        if let Some(pour) = &mut outgoing.pour {
            match pour.moved(step, result) {
                Ok(n) => outgoing.items.iter_mut().for_each(|item| item.sent += n as u64),
                Err(errno) => stream.queue.fail(errno),
            }
            if unwanted || stream.queue.failed.is_some() {
                return self.end_write(id, outgoing, cancels, out);
            }
            return self.carry_on(id, outgoing, out);
        }
        let sent = match result {
            Ok(_) if step == Step::Room => 0,
            Ok(0) => {
                stream.queue.fail(Errno::IO);
                0
            }
            Ok(n) => n as u64,
            Err(_) if again && !unwanted => return self.await_room(id, outgoing),
            Err(_) if again => 0,
            Err(errno) => {
                stream.queue.fail(errno);
                0
            }
        };
        outgoing.account(sent, cancels, &mut stream.queue, out);
        self.end_write(id, outgoing, cancels, out);
    }

    /// The write under way is over: ends what it held, or gives it back to the queue, and lets the next one begin.
    fn end_write(&mut self, id: StreamId, mut outgoing: Box<Outgoing>, cancels: &[Cancel], out: &mut Vec<Completion>) {
        let Some(stream) = self.streams.slot(id) else { return };
        if let Some(pour) = outgoing.pour.take() {
            let whole = pour.next().is_none();
            let empty = pour.pipe_is_empty();
            if let Some(item) = outgoing.items.pop() {
                let result = match (whole, stream.queue.failed) {
                    (true, _) => pour.trouble.map_or(Ok(()), Err),
                    (false, Some(errno)) => Err(errno),
                    (false, None) => {
                        if item.sent > 0 {
                            stream.queue.fail(Errno::CANCELLED);
                        }
                        Err(Errno::CANCELLED)
                    }
                };
                out.push(item.end(result));
            }
            self.bounces.extend(pour.bounce);
            if let Some(pipe) = pour.pipe {
                self.pipes.give_back(pipe, empty);
            }
        } else {
            outgoing.account(0, cancels, &mut stream.queue, out);
        }
        stream.outgoing = Some(outgoing);
        self.dirty.push(id);
    }

    /// A description that is not ours may be non-blocking: then the kernel does not wait by itself.
    fn await_room(&mut self, id: StreamId, outgoing: Box<Outgoing>) {
        let Some(stream) = self.streams.slot(id) else { return };
        let Some(fd) = stream.write_fd() else { return };
        self.ring.start(Flight::new(Some(id), Work::Send(outgoing)), &Call::Room(fd));
        stream.busy += 1;
    }
}
