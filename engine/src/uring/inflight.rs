//! Operations the kernel has, and the memory and descriptors it uses for them.
//!
//! The slab here belongs to [`super::sys::Ring`]: a [`Flight`] goes in when its submission is queued and comes out when
//! its completion has been read, so *being in the slab* and *being in the kernel* are the same thing. Nothing outside
//! the ring can take a flight out early, which is what makes the memory in it safe to lend. A flight moves when the slab
//! grows; therefore everything the kernel gets an address of lives on the heap behind it, never inside the value.
//!
//! One flight has one kernel operation at a time. Work of many steps (a receive that must be continued, a file that is
//! poured through a pipe) comes out, is looked at, and goes in again under a new key.
//!
//! ```text
//! user_data:  step (8 bits) | generation (24 bits) | slot (32 bits)
//! ```

use super::send_queue::Outgoing;
use crate::backend::{Cancel, Completion, Errno, FileId, Op, OpKind, Output, StreamId, Token};
use crate::block::{Block, Slice};
use crate::offload::OpenFile;
use rustix::net::SocketAddrAny;
use smallvec::SmallVec;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

const GENERATION_MASK: u32 = 0x00ff_ffff;

/// What a completion is the end of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Step {
    /// The waker's counter was read.
    Wake,
    /// A connection was taken from a listener.
    Accept,
    /// A connection was made.
    Connect,
    /// Bytes of a stream came into a block.
    Recv,
    /// A stream may have bytes.
    Arrival,
    /// Bytes of a file came into a block.
    Read,
    /// Bytes of a slice went into a file.
    Write,
    /// Queued heads and bodies went into a stream.
    Gather,
    /// A stream may have room.
    Room,
    /// File bytes went into a leased pipe.
    Fill,
    /// Bytes of a leased pipe went into a socket.
    Drain,
    /// File bytes went into the stream, which is a pipe.
    Across,
    /// File bytes came into a bounce buffer.
    Copy,
    /// Bytes of the bounce buffer went into the stream.
    Push,
    /// Zeros in place of missing file bytes went into the stream.
    Pad,
}

impl Step {
    const ALL: [Step; 15] = [
        Step::Wake,
        Step::Accept,
        Step::Connect,
        Step::Recv,
        Step::Arrival,
        Step::Read,
        Step::Write,
        Step::Gather,
        Step::Room,
        Step::Fill,
        Step::Drain,
        Step::Across,
        Step::Copy,
        Step::Push,
        Step::Pad,
    ];
}

/// Names a flight for as long as it is in the slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    slot: u32,
    generation: u32,
}

/// `user_data` of the cancels themselves: nobody waits for their completions.
pub(super) const CANCEL_USER_DATA: u64 = u64::MAX;

impl Key {
    /// The number the kernel carries.
    pub(super) fn user_data(self, step: Step) -> u64 {
        (step as u64) << 56 | u64::from(self.generation & GENERATION_MASK) << 32 | u64::from(self.slot)
    }

    /// What a number stands for; `None` for a cancel.
    pub(super) fn of(user_data: u64) -> Option<(Key, Step)> {
        let step = *Step::ALL.get(usize::try_from(user_data >> 56).ok()?)?;
        let generation = (user_data >> 32) as u32 & GENERATION_MASK;
        Some((Key { slot: user_data as u32, generation }, step))
    }
}

/// A receive and how far it is.
pub(super) struct Receiving {
    pub(super) token: Token,
    pub(super) stream: StreamId,
    pub(super) into: Block,
    pub(super) at_least: usize,
    pub(super) filled: usize,
}

impl Receiving {
    /// The op, on its way back.
    pub(super) fn end(self, result: Result<Output, Errno>) -> Completion {
        let Receiving { token, stream, into, at_least, .. } = self;
        Completion { op: Op { token, kind: OpKind::Recv { stream, into, at_least } }, result }
    }
}

/// A file read and how far it is.
pub(super) struct Reading {
    pub(super) token: Token,
    pub(super) file: FileId,
    pub(super) offset: u64,
    pub(super) into: Block,
    pub(super) len: usize,
    pub(super) done: usize,
    pub(super) open: Arc<OpenFile>,
}

impl Reading {
    /// The op, on its way back.
    pub(super) fn end(self, result: Result<Output, Errno>) -> Completion {
        let Reading { token, file, offset, into, len, .. } = self;
        Completion { op: Op { token, kind: OpKind::Read { file, offset, into, len } }, result }
    }
}

/// A file write and how far it is.
pub(super) struct Writing {
    pub(super) token: Token,
    pub(super) file: FileId,
    pub(super) offset: u64,
    pub(super) from: Slice,
    pub(super) done: usize,
    pub(super) open: Arc<OpenFile>,
}

impl Writing {
    /// The op, on its way back.
    pub(super) fn end(self, result: Result<Output, Errno>) -> Completion {
        let Writing { token, file, offset, from, .. } = self;
        Completion { op: Op { token, kind: OpKind::Write { file, offset, from } }, result }
    }
}

/// A connection being made.
pub(super) struct Connecting {
    pub(super) token: Token,
    pub(super) address: SocketAddr,
    pub(super) raw: Box<SocketAddrAny>,
    pub(super) socket: OwnedFd,
}

impl Connecting {
    /// The op, on its way back, and the socket.
    pub(super) fn op(&self) -> Op {
        Op { token: self.token, kind: OpKind::Connect { address: self.address } }
    }
}

/// Whom an operation serves and what it must keep alive.
pub(super) enum Work {
    /// The waker.
    Wake(Box<[u8; 8]>),
    /// One connection wanted.
    Accept(Op),
    /// One connection being made.
    Connect(Connecting),
    /// Read half of a stream.
    Recv(Receiving),
    /// Write half of a stream.
    Send(Box<Outgoing>),
    /// File read.
    Read(Reading),
    /// File write.
    Write(Writing),
}

/// Something the kernel has.
pub(super) struct Flight {
    /// The stream it counts for.
    pub(super) stream: Option<StreamId>,
    /// Cancels that came while it was in the kernel and cover at least one op in it.
    pub(super) cancels: SmallVec<[Cancel; 2]>,
    /// What it is for.
    pub(super) work: Work,
}

impl Flight {
    /// A flight that nobody has cancelled.
    pub(super) fn new(stream: Option<StreamId>, work: Work) -> Flight {
        Flight { stream, cancels: SmallVec::new(), work }
    }

    fn covered_by(&self, cancel: Cancel) -> bool {
        match &self.work {
            Work::Wake(_) => false,
            Work::Accept(op) => cancel.covers(op.token),
            Work::Connect(connecting) => cancel.covers(connecting.token),
            Work::Recv(receiving) => cancel.covers(receiving.token),
            Work::Send(outgoing) => outgoing.items.iter().any(|item| cancel.covers(item.token)),
            Work::Read(reading) => cancel.covers(reading.token),
            Work::Write(writing) => cancel.covers(writing.token),
        }
    }
}

struct Slot {
    generation: u32,
    step: Step,
    flight: Option<Flight>,
}

/// The slab of flights. Slots are reused, so it stops growing when the program is warm.
#[derive(Default)]
pub(super) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl InFlight {
    /// Flights in the slab.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a flight in and shows where it now is.
    pub(super) fn insert(&mut self, step: Step, flight: Flight) -> (Key, &mut Flight) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, step, flight: None });
            // The ring's completion queue bounds the number of flights far below 2^32.
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.step = step;
        (Key { slot, generation: entry.generation }, entry.flight.insert(flight))
    }

    /// Takes a flight out; `None` when the key is not, or no longer, the key of one.
    pub(super) fn remove(&mut self, key: Key) -> Option<Flight> {
        let entry = self.slots.get_mut(key.slot as usize).filter(|entry| entry.generation == key.generation)?;
        let flight = entry.flight.take()?;
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        self.free.push(key.slot);
        Some(flight)
    }

    /// Marks the flights that hold an op covered by `cancel` and appends what the kernel calls them.
    pub(super) fn mark(&mut self, cancel: Cancel, marked: &mut Vec<u64>) {
        self.for_each(|flight, user_data| {
            if flight.covered_by(cancel) {
                flight.cancels.push(cancel);
                marked.push(user_data);
            }
        });
    }

    /// Appends what the kernel calls the flights of one stream, or all flights.
    pub(super) fn of_stream(&mut self, stream: Option<StreamId>, found: &mut Vec<u64>) {
        self.for_each(|flight, user_data| {
            if stream.is_none() || flight.stream == stream {
                found.push(user_data);
            }
        });
    }

    fn for_each(&mut self, mut visit: impl FnMut(&mut Flight, u64)) {
        for (slot, entry) in self.slots.iter_mut().enumerate() {
            let key = Key { slot: slot as u32, generation: entry.generation };
            if let Some(flight) = &mut entry.flight {
                visit(flight, key.user_data(entry.step));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight() -> Flight {
        Flight::new(None, Work::Wake(Box::new([0; 8])))
    }

    #[test]
    fn user_data_carries_slot_generation_and_step() {
        for step in Step::ALL {
            let key = Key { slot: 0xdead_beef, generation: 0x00ab_cdef };
            assert_eq!(Key::of(key.user_data(step)), Some((key, step)));
        }
        assert_eq!(Key::of(CANCEL_USER_DATA), None);
    }

    #[test]
    fn a_key_is_good_for_one_removal() {
        let mut slab = InFlight::default();
        let (key, _) = slab.insert(Step::Wake, flight());
        assert!(slab.remove(key).is_some());
        assert!(slab.remove(key).is_none());
        let (again, _) = slab.insert(Step::Wake, flight());
        assert_eq!(again.slot, key.slot);
        assert!(slab.remove(key).is_none(), "the old generation must not take the new flight");
        assert_eq!(slab.len(), 1);
    }
}
