//! A file to frames: the sending half of Get (server) and Put (client).
//!
//! ```text
//!                  +-> Small: whole content in one block ------------------------+
//! start -> Opening-+                                                             +-> Done
//!                  +-> Open: window of reads, sent in order -> Checking (fstat) -+
//! ```
//! `Opening` has no predecessor; every state may end in `Done` with a failure. The size is what the file had when it was
//! opened: a file that shrinks fails at the short read, one that grows or is written to fails in `Checking`, because what
//! was sent may be half old and half new.

use super::{Failure, Io, Outcome};
use crate::backend::{Errno, FileId, FsOp, OpKind, OpenMode, Output, Place};
use crate::block::{Class, Slice};
use crate::limits::{BLOCK_BYTES, READ_WINDOW_BLOCKS};
use crate::wire::frame::{Attributes, Hash};
use std::collections::VecDeque;

const OPEN: u32 = 20;
const READ: u32 = 21;
const CHECK: u32 = 22;
const CLOSE: u32 = 23;

const CHANGED: &str = "the file changed while it was read";

enum State {
    Opening,
    Small(Option<Slice>),
    Open(FileId),
    Checking(FileId),
    Done,
}

/// One read of the window, in file order.
struct Slot {
    offset: u64,
    content: Option<Slice>,
}

/// A file being sent.
pub(crate) struct Source {
    path: Vec<u8>,
    state: State,
    attributes: Option<Attributes>,
    /// First byte to send and, once opened, the end.
    offset: u64,
    limit: Option<u64>,
    end: u64,
    next_read: u64,
    window: VecDeque<Slot>,
    hasher: blake3::Hasher,
    failure: Option<Failure>,
}

impl Source {
    /// Begins to read `place` from `offset`, `limit` bytes at most.
    pub(crate) fn start(place: Place, path: Vec<u8>, offset: u64, limit: Option<u64>, io: &mut Io<'_, '_>) -> Source {
        let block = if offset == 0 && limit.is_none() { io.take(Class::Small) } else { None };
        let op = match block {
            Some(into) => OpKind::Load { place, into },
            None => OpKind::Open { place, mode: OpenMode::Read },
        };
        io.submit(OPEN, op);
        Source {
            path,
            state: State::Opening,
            attributes: None,
            offset,
            limit,
            end: 0,
            next_read: offset,
            window: VecDeque::new(),
            hasher: blake3::Hasher::new(),
            failure: None,
        }
    }

    /// Takes note of a completion of its own operations. `kind` gives back a block that was filled.
    pub(crate) fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        match (kind, outcome) {
            (OpKind::Load { into, .. }, Ok(Output::Loaded { attributes, len })) => {
                if self.failure.is_some() {
                    self.state = State::Done;
                    return;
                }
                // Files that claim no size, as in /proc, are what they turn out to be.
                if attributes.size != len as u64 && attributes.size != 0 {
                    return self.fail(Failure::rule(&self.path, "cannot read", CHANGED), io);
                }
                self.end = len as u64;
                self.attributes = Some(Attributes { size: len as u64, ..attributes });
                self.state = State::Small((len > 0).then(|| into.share().slice(0..len)));
            }
            (OpKind::Load { .. } | OpKind::Open { .. }, Ok(Output::Opened { file, attributes })) => {
                if self.failure.is_some() {
                    self.state = State::Done;
                    return io.submit(CLOSE, OpKind::Close { file });
                }
                self.end =
                    self.limit.map_or(attributes.size, |limit| self.offset.saturating_add(limit).min(attributes.size));
                self.attributes = Some(attributes);
                self.state = State::Open(file);
            }
            (OpKind::Load { .. } | OpKind::Open { .. }, Err(errno)) => {
                self.state = State::Done;
                self.failure.get_or_insert(Failure::here(&self.path, "cannot open", errno));
            }
            (OpKind::Read { offset, into, len, .. }, outcome) => match outcome {
                Ok(Output::Bytes(got)) if got == len => {
                    if let Some(slot) = self.window.iter_mut().find(|slot| slot.offset == offset) {
                        slot.content = Some(into.share().slice(0..len));
                    }
                }
                Ok(_) => self.fail(Failure::here(&self.path, "cannot read", Errno::SHORT_SOURCE), io),
                Err(errno) => self.fail(Failure::here(&self.path, "cannot read", errno), io),
            },
            (OpKind::Fs(_), outcome) => self.on_checked(outcome, io),
            _ => {}
        }
    }

    fn on_checked(&mut self, outcome: Outcome, io: &mut Io<'_, '_>) {
        let State::Checking(file) = self.state else { return };
        let before = self.attributes.map(|a| (a.size, a.mtime));
        match outcome {
            Ok(Output::Attributes { attributes: a, .. }) if Some((a.size, a.mtime)) == before => {}
            Ok(_) => _ = self.failure.get_or_insert(Failure::rule(&self.path, "cannot read", CHANGED)),
            Err(errno) => _ = self.failure.get_or_insert(Failure::here(&self.path, "cannot read", errno)),
        }
        self.state = State::Done;
        io.submit(CLOSE, OpKind::Close { file });
    }

    /// Gives the file up.
    pub(crate) fn fail(&mut self, failure: Failure, io: &mut Io<'_, '_>) {
        self.failure.get_or_insert(failure);
        match std::mem::replace(&mut self.state, State::Done) {
            State::Opening => self.state = State::Opening,
            State::Open(file) | State::Checking(file) => io.submit(CLOSE, OpKind::Close { file }),
            State::Small(_) | State::Done => {}
        }
        self.window.clear();
    }

    /// Reads ahead and hands content on in order. Content is hashed and given to `take` only while `its_turn`, and
    /// while `take` has room.
    pub(crate) fn pump(&mut self, its_turn: bool, io: &mut Io<'_, '_>, mut take: impl FnMut(Slice, &mut Io<'_, '_>)) {
        let ahead = if its_turn { READ_WINDOW_BLOCKS } else { 1 };
        self.read_ahead(ahead, io);
        if !its_turn {
            return;
        }
        if let State::Small(content) = &mut self.state {
            if !io.link.has_room() {
                return;
            }
            if let Some(content) = content.take() {
                self.hasher.update(content.bytes());
                io.progress.moved(content.len());
                take(content, io);
            }
            self.state = State::Done;
            return;
        }
        while io.link.has_room() && self.window.front().is_some_and(|slot| slot.content.is_some()) {
            let content = self.window.pop_front().and_then(|slot| slot.content).expect("looked at just now");
            self.hasher.update(content.bytes());
            io.progress.moved(content.len());
            take(content, io);
            self.read_ahead(ahead, io);
        }
        if let State::Open(file) = self.state
            && self.window.is_empty()
            && self.next_read >= self.end
        {
            io.submit(CHECK, OpKind::Fs(Box::new(FsOp::StatOpen { file })));
            self.state = State::Checking(file);
        }
    }

    fn read_ahead(&mut self, ahead: usize, io: &mut Io<'_, '_>) {
        let State::Open(file) = self.state else { return };
        // Who waits for its turn keeps no block that the one whose turn it is may need: else both would wait for ever.
        let reserve = if ahead > 1 { 0 } else { READ_WINDOW_BLOCKS };
        while self.window.len() < ahead && self.next_read < self.end && io.left(Class::Large) > reserve {
            let Some(into) = io.take(Class::Large) else { return };
            let (offset, left) = (self.next_read, self.end - self.next_read);
            let len = usize::try_from(left).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
            io.submit(READ, OpKind::Read { file, offset, into, len });
            self.window.push_back(Slot { offset, content: None });
            self.next_read += len as u64;
        }
    }

    /// Attributes and size to be announced, once the file is open; or why it cannot be.
    pub(crate) fn opened(&self) -> Option<Result<Attributes, &Failure>> {
        match (&self.failure, &self.attributes) {
            (Some(failure), _) if !matches!(self.state, State::Opening) => Some(Err(failure)),
            (None, Some(attributes)) => Some(Ok(*attributes)),
            _ => None,
        }
    }

    /// How it ended: the hash of what was handed on, or why that is not all. `None` while it goes on.
    pub(crate) fn result(&self) -> Option<Result<Hash, &Failure>> {
        match (&self.state, &self.failure) {
            (State::Done, Some(failure)) => Some(Err(failure)),
            (State::Done, None) => Some(Ok(*self.hasher.finalize().as_bytes())),
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> &'static str {
        match self.state {
            State::Opening => "source opening",
            State::Small(_) => "source small",
            State::Open(_) => "source open",
            State::Checking(_) => "source checking",
            State::Done => "source done",
        }
    }
}
