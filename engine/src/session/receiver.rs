//! Frames to a file: the receiving half of Put (server) and Get (client).
//!
//! ```text
//!              +-> Small: copied into one small block --------------------------> Storing --+
//! new --start--+                                                                            +-> Done(hash | failure)
//!              +-> Opening -> Open: each piece written from the block it came in -> Publishing
//! ```
//! `Opening` and `Open` keep pieces in order by offset, so writes may complete in any order. Whatever goes wrong, the
//! file under the final name is the old one: a failure closes the file being made, which leaves no trace.
//! Predecessor of every state: the one to its left; successor of every state also `Done` with a failure.

use super::{Failure, Io, Outcome};
use crate::backend::{Errno, FileId, Finish, OpKind, OpenMode, Output, Place, Store};
use crate::block::{Block, Class, Slice, Slices};
use crate::limits::SMALL_BYTES;
use crate::wire::frame::{Attributes, Hash, Preserve};

const OPEN: u32 = 10;
const WRITE: u32 = 11;
const PUBLISH: u32 = 12;
const STORE: u32 = 13;
const CLOSE: u32 = 14;

/// What to receive and where to.
pub(crate) struct Order {
    pub(crate) place: Place,
    /// For messages.
    pub(crate) path: Vec<u8>,
    /// Final size in bytes.
    pub(crate) size: u64,
    /// First byte that will come.
    pub(crate) offset: u64,
    pub(crate) overwrite: bool,
    pub(crate) finish: Finish,
}

enum State {
    /// Whole content in one small block.
    Small(Block),
    /// The file is being opened; pieces wait.
    Opening(Vec<(u64, Slice)>),
    Open(FileId),
    /// Publish or Store is out.
    Naming,
    Done,
}

/// A file being received.
pub(crate) struct Receiver {
    order: Order,
    state: State,
    /// End of what has arrived, in bytes of the file.
    received: u64,
    hasher: blake3::Hasher,
    writes: usize,
    /// Nothing more will come; what the sender says the hash is.
    finished: Option<Option<Hash>>,
    failure: Option<Failure>,
}

impl Receiver {
    /// Begins to receive.
    pub(crate) fn start(order: Order, io: &mut Io<'_, '_>) -> Receiver {
        let small = order.offset == 0 && order.size <= SMALL_BYTES as u64;
        let block = if small { io.take(Class::Small) } else { None };
        let state = block.map_or_else(|| Receiver::open(&order, io), State::Small);
        let (received, hasher) = (order.offset, blake3::Hasher::new());
        Receiver { order, state, received, hasher, writes: 0, finished: None, failure: None }
    }

    fn open(order: &Order, io: &mut Io<'_, '_>) -> State {
        let mode = OpenMode::Create { size: order.size, keep: order.offset, overwrite: order.overwrite };
        io.submit(OPEN, OpKind::Open { place: order.place.clone(), mode });
        State::Opening(Vec::new())
    }

    /// Attributes the sender gave for the file.
    pub(crate) fn set_attributes(&mut self, attributes: Attributes, preserve: Preserve) {
        self.order.finish.attributes = Some(attributes);
        self.order.finish.preserve = preserve;
    }

    /// Takes the next bytes of the content.
    pub(crate) fn piece(&mut self, piece: Slice, io: &mut Io<'_, '_>) {
        if self.failure.is_some() || self.finished.is_some() {
            return;
        }
        let at = self.received;
        self.received += piece.len() as u64;
        if self.received > self.order.size {
            let rule = format!("content goes past the declared size of {} bytes", self.order.size);
            return self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io);
        }
        self.hasher.update(piece.bytes());
        io.progress.moved(piece.len());
        match &mut self.state {
            State::Small(block) => {
                let at = usize::try_from(at).expect("small");
                block.bytes_mut()[at..at + piece.len()].copy_from_slice(piece.bytes());
            }
            State::Opening(waiting) => waiting.push((at, piece)),
            &mut State::Open(file) => self.write(file, at, piece, io),
            State::Naming | State::Done => {}
        }
    }

    fn write(&mut self, file: FileId, offset: u64, from: Slice, io: &mut Io<'_, '_>) {
        self.writes += 1;
        io.submit(WRITE, OpKind::Write { file, offset, from });
    }

    /// All content has come. `expected` is compared before the file gets its name.
    pub(crate) fn finish(&mut self, expected: Option<Hash>, io: &mut Io<'_, '_>) {
        if self.failure.is_none() && self.received != self.order.size {
            let rule = format!("declared {} bytes, received {}", self.order.size, self.received);
            self.fail(Failure::rule(&self.order.path, "incomplete", rule), io);
        }
        if self.failure.is_none() && expected.is_some_and(|hash| hash != self.hash()) {
            self.fail(Failure::here(&self.order.path, "not published", Errno::HASH_MISMATCH), io);
        }
        self.finished.get_or_insert(expected);
        self.advance(io);
    }

    /// BLAKE3 of what has arrived.
    pub(crate) fn hash(&self) -> Hash {
        *self.hasher.finalize().as_bytes()
    }

    /// Gives the file up for this reason, unless it failed already.
    pub(crate) fn fail(&mut self, failure: Failure, io: &mut Io<'_, '_>) {
        if matches!(self.state, State::Done) {
            return;
        }
        self.failure.get_or_insert(failure);
        match std::mem::replace(&mut self.state, State::Done) {
            State::Open(file) => io.submit(CLOSE, OpKind::Close { file }),
            // Once opened, or named, the completion decides.
            State::Opening(_) => self.state = State::Opening(Vec::new()),
            State::Naming => self.state = State::Naming,
            State::Small(_) | State::Done => {}
        }
    }

    /// Takes note of a completion of its own operations.
    pub(crate) fn on_completion(&mut self, kind: &OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        match (kind, outcome) {
            (OpKind::Open { .. }, Ok(Output::Opened { file, .. })) => self.on_opened(file, io),
            (OpKind::Open { .. }, Err(errno)) => {
                self.state = State::Done;
                self.failure.get_or_insert(Failure::here(&self.order.path, "cannot create", errno));
            }
            (OpKind::Write { .. }, outcome) => {
                self.writes -= 1;
                if let Err(errno) = outcome {
                    self.fail(Failure::here(&self.order.path, "cannot write", errno), io);
                }
            }
            (OpKind::Publish { .. } | OpKind::Store(_), outcome) => {
                self.state = State::Done;
                if let Err(errno) = outcome {
                    self.failure.get_or_insert(Failure::here(&self.order.path, "cannot create", errno));
                }
            }
            _ => {}
        }
        self.advance(io);
    }

    fn on_opened(&mut self, file: FileId, io: &mut Io<'_, '_>) {
        let State::Opening(waiting) = std::mem::replace(&mut self.state, State::Open(file)) else { return };
        if self.failure.is_some() {
            self.state = State::Done;
            return io.submit(CLOSE, OpKind::Close { file });
        }
        for (offset, piece) in waiting {
            self.write(file, offset, piece, io);
        }
    }

    /// Names the file once it is complete and written.
    fn advance(&mut self, io: &mut Io<'_, '_>) {
        if self.finished.is_none() || self.failure.is_some() || self.writes > 0 {
            return;
        }
        match std::mem::replace(&mut self.state, State::Naming) {
            State::Open(file) => {
                io.submit(PUBLISH, OpKind::Publish { file, finish: Box::new(self.order.finish) });
            }
            State::Small(block) => {
                let len = usize::try_from(self.received).expect("small");
                let from = if len == 0 { Slices::new() } else { Slices::from_iter([block.share().slice(0..len)]) };
                let (place, overwrite) = (self.order.place.clone(), self.order.overwrite);
                let store = Store { place, from, finish: self.order.finish, overwrite };
                io.submit(STORE, OpKind::Store(Box::new(store)));
            }
            other => self.state = other,
        }
    }

    /// How it ended: the hash and size of what now bears the name, or why nothing does. `None` while it goes on.
    pub(crate) fn result(&self) -> Option<Result<(Hash, u64), Failure>> {
        match (&self.state, &self.failure) {
            (State::Done, Some(failure)) if self.writes == 0 => Some(Err(failure.clone())),
            (State::Done, None) => Some(Ok((self.hash(), self.order.size))),
            _ => None,
        }
    }

    pub(crate) fn order(&self) -> &Order {
        &self.order
    }

    pub(crate) fn state(&self) -> &'static str {
        match (&self.state, self.finished.is_some()) {
            (State::Small(_), _) => "receiver small",
            (State::Opening(_), false) => "receiver opening",
            (State::Opening(_), true) => "receiver opening, all arrived",
            (State::Open(_), false) => "receiver open",
            (State::Open(_), true) => "receiver open, all arrived",
            (State::Naming, _) => "receiver naming",
            (State::Done, _) => "receiver done",
        }
    }
}
