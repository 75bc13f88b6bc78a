//! The table of streams: ids, what each slot holds, and which of them can do something without waiting.
//!
//! ```text
//! free -> listener ------------------------------------------------------> free
//! free -> connecting -> stream (Connect completes with its id) -> closed -> free, next generation
//! free -> stream (attached or accepted) --------------------------^
//! ```
//!
//! A slot is *active* when something happened that may let it progress: an operation was queued on it, an event came,
//! or its last step left more to do. A round steps each active slot once; stalled slots cost nothing.

use crate::connection::{Connecting, Listener, Progress};
use crate::half::{Half, Surroundings};
use crate::helper::Direction;
use crate::receiver::Receiver;
use crate::sender::{Sender, What};
use crate::source::Source;
use haul_engine::backend::{Cancel, Completion, Errno, Op, OpKind, Output, SessionId, StreamId, Token};
use haul_engine::offload::Offload;
use haul_engine::tcp;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;

struct Stream {
    receiver: Receiver,
    sender: Sender,
}

enum Kind {
    Free,
    Stream(Box<Stream>),
    Listener(Listener),
    Connecting(Connecting),
}

struct Slot {
    generation: u32,
    active: bool,
    kind: Kind,
}

/// Every stream of one backend.
pub(crate) struct Streams {
    surroundings: Rc<Surroundings>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    active: Vec<u32>,
    /// The active slots of the round that is under way; empty between rounds, kept for its memory.
    round: Vec<u32>,
}

impl Streams {
    pub(crate) fn new(surroundings: Surroundings) -> Streams {
        let surroundings = Rc::new(surroundings);
        Streams { surroundings, slots: Vec::new(), free: Vec::new(), active: Vec::new(), round: Vec::new() }
    }

    /// See [`haul_engine::backend::Attach::add_stream`]. Also says whether a helper thread serves one of the halves.
    pub(crate) fn add_stream(
        &mut self,
        read: OwnedFd,
        write: Option<OwnedFd>,
        ours: bool,
    ) -> Result<(StreamId, bool), Errno> {
        let number = self.vacant();
        let (read, write) = match write {
            None => Half::pair(&self.surroundings, read, number, ours)?,
            Some(write) => (
                Half::single(&self.surroundings, read, number, ours, Direction::Read)?,
                Half::single(&self.surroundings, write, number, ours, Direction::Write)?,
            ),
        };
        let has_helper = read.has_helper() || write.has_helper();
        Ok((self.occupy(number, |id| stream(id, read, write)), has_helper))
    }

    /// See [`haul_engine::backend::Attach::add_listener`].
    ///
    /// With its owner, if it has one, it is closed.
    pub(crate) fn add_listener(&mut self, listener: TcpListener, owner: Option<SessionId>) -> Result<StreamId, Errno> {
        let number = self.vacant();
        let listener = Listener::new(&self.surroundings, listener, owner, number)?;
        Ok(self.occupy(number, |_| Kind::Listener(listener)))
    }

    /// True for the operations [`Streams::start`] knows.
    pub(crate) fn concerns(kind: &OpKind) -> bool {
        match kind {
            OpKind::Accept { .. }
            | OpKind::Listen { .. }
            | OpKind::Connect { .. }
            | OpKind::Shutdown { .. }
            | OpKind::CloseStream { .. }
            | OpKind::Recv { .. }
            | OpKind::Send { .. }
            | OpKind::SendFile { .. } => true,
            OpKind::Open { .. }
            | OpKind::Close { .. }
            | OpKind::Read { .. }
            | OpKind::Write { .. }
            | OpKind::Load { .. }
            | OpKind::Store(_)
            | OpKind::Publish { .. }
            | OpKind::Fs(_)
            | OpKind::Compute(_) => false,
        }
    }

    /// Queues an operation, or ends it at once when it cannot be. `files` knows the file a SendFile names.
    pub(crate) fn start(&mut self, op: Op, files: &Offload, completions: &mut Vec<Completion>) {
        let Op { token, kind } = op;
        let id = match &kind {
            OpKind::Listen { address } => {
                let result = self.listen(token, *address);
                return completions.push(Completion { op: Op { token, kind }, result });
            }
            OpKind::Connect { address } => return self.connect(token, *address, completions),
            OpKind::CloseStream { stream } => {
                let result = self.close(*stream, completions).map(|()| Output::Done);
                completions.push(Completion { op: Op { token, kind }, result });
                return;
            }
            OpKind::Accept { listener: id }
            | OpKind::Shutdown { stream: id }
            | OpKind::Recv { stream: id, .. }
            | OpKind::Send { stream: id, .. }
            | OpKind::SendFile { stream: id, .. } => *id,
            _ => return completions.push(Completion { op: Op { token, kind }, result: Err(Errno::INVALID) }),
        };
        let found = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation);
        match (found.map(|slot| &mut slot.kind), kind) {
            (Some(Kind::Listener(listener)), OpKind::Accept { .. }) => listener.push(token),
            (Some(Kind::Stream(stream)), OpKind::Recv { into, at_least, .. }) => {
                stream.receiver.push(token, into, at_least, completions);
            }
            (Some(Kind::Stream(stream)), OpKind::Send { head, body, .. }) => {
                stream.sender.push(token, What::Bytes { head, body }, completions);
            }
            (Some(Kind::Stream(stream)), OpKind::SendFile { head, file, offset, len, .. }) => {
                let source = Source::new(files.file(file).cloned());
                stream.sender.push(token, What::File { head, file, offset, len, source }, completions);
            }
            (Some(Kind::Stream(stream)), OpKind::Shutdown { .. }) => {
                stream.sender.push(token, What::Shutdown, completions);
            }
            (found, kind) => {
                let stale = matches!(found, None | Some(Kind::Free));
                let errno = if stale { Errno::STALE_ID } else { Errno::INVALID };
                return completions.push(Completion { op: Op { token, kind }, result: Err(errno) });
            }
        }
        self.activate(id.slot);
    }

    /// Ends covered operations.
    pub(crate) fn cancel(&mut self, cancel: Cancel, completions: &mut Vec<Completion>) {
        for number in 0..self.slots.len() {
            let slot = &mut self.slots[number];
            let id = StreamId::new(number as u32, slot.generation);
            match &mut slot.kind {
                Kind::Free => {}
                Kind::Listener(listener) if listener.ends_with(cancel) => {
                    listener.end_all(id, completions);
                    self.vacate(number as u32);
                }
                Kind::Listener(listener) => listener.cancel(id, cancel, completions),
                Kind::Stream(stream) => {
                    stream.receiver.cancel(cancel, completions);
                    stream.sender.cancel(cancel, completions);
                }
                Kind::Connecting(connecting) => {
                    if cancel.covers(connecting.token()) {
                        completions.push(connecting.ended(Err(Errno::CANCELLED)));
                        self.vacate(number as u32);
                    }
                }
            }
        }
    }

    /// True when no slot can do anything without an event.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// An event came for this slot. A late one, for a stream that is gone, only costs a look.
    pub(crate) fn event(&mut self, number: u32, readable: bool, writable: bool) {
        let Some(slot) = self.slots.get_mut(number as usize) else { return };
        match &mut slot.kind {
            Kind::Free => return,
            Kind::Listener(listener) => listener.set_ready(),
            Kind::Connecting(connecting) => connecting.set_ready(),
            Kind::Stream(stream) => {
                if readable {
                    stream.receiver.half.set_ready();
                }
                if writable {
                    stream.sender.set_ready();
                }
            }
        }
        self.activate(number);
    }

    /// Steps each active slot once.
    pub(crate) fn round(&mut self, completions: &mut Vec<Completion>) {
        let mut round = std::mem::replace(&mut self.active, std::mem::take(&mut self.round));
        for number in round.drain(..) {
            self.slots[number as usize].active = false;
            if self.step(number, completions) {
                self.activate(number);
            }
        }
        self.round = round;
    }

    /// True when there is more to do right away.
    fn step(&mut self, number: u32, completions: &mut Vec<Completion>) -> bool {
        let slot = &mut self.slots[number as usize];
        let id = StreamId::new(number, slot.generation);
        match &mut slot.kind {
            Kind::Free => false,
            Kind::Stream(stream) => stream.receiver.step(completions) | stream.sender.step(completions),
            Kind::Listener(listener) => {
                let Some((token, accepted)) = listener.accept() else { return false };
                let more = listener.can_step();
                let result = accepted.and_then(|socket| {
                    let peer = socket.peer_addr().ok();
                    self.add_stream(socket.into(), None, true).map(|(stream, _)| Output::Accepted { stream, peer })
                });
                completions.push(Completion { op: Op { token, kind: OpKind::Accept { listener: id } }, result });
                more
            }
            Kind::Connecting(connecting) => {
                let (kind, completion) = match connecting.step() {
                    Progress::Waiting => return false,
                    Progress::Failed(errno) => (None, connecting.ended(Err(errno))),
                    Progress::Connected(fd, registration) => {
                        let (read, write) = Half::connected(&self.surroundings, fd, registration, number);
                        (
                            Some(stream(id, read, write)),
                            connecting.ended(Ok(Output::Accepted { stream: id, peer: None })),
                        )
                    }
                };
                completions.push(completion);
                match kind {
                    Some(kind) => slot.kind = kind,
                    None => self.vacate(number),
                }
                false
            }
        }
    }

    fn listen(&mut self, token: Token, address: SocketAddr) -> Result<Output, Errno> {
        let (listener, address) = tcp::listen(address)?;
        let stream = self.add_listener(listener, Some(token.session))?;
        Ok(Output::Listening { stream, address })
    }

    fn connect(&mut self, token: Token, address: SocketAddr, completions: &mut Vec<Completion>) {
        let number = self.vacant();
        match Connecting::new(&self.surroundings, token, address, number) {
            Ok(connecting) => {
                self.occupy(number, |_| Kind::Connecting(connecting));
            }
            Err(errno) => {
                let op = Op { token, kind: OpKind::Connect { address } };
                completions.push(Completion { op, result: Err(errno) });
            }
        }
    }

    fn close(&mut self, id: StreamId, completions: &mut Vec<Completion>) -> Result<(), Errno> {
        let found = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation);
        match found.map(|slot| &mut slot.kind) {
            None | Some(Kind::Free | Kind::Connecting(_)) => return Err(Errno::STALE_ID),
            Some(Kind::Listener(listener)) => listener.end_all(id, completions),
            Some(Kind::Stream(stream)) => {
                stream.receiver.end_all(Errno::CANCELLED, completions);
                stream.sender.end_all(Errno::CANCELLED, completions);
            }
        }
        self.vacate(id.slot);
        Ok(())
    }

    /// A slot that [`Streams::occupy`] may take; it stays free if nobody does.
    fn vacant(&mut self) -> u32 {
        if let Some(&number) = self.free.last() {
            return number;
        }
        let number = u32::try_from(self.slots.len()).expect("fewer than 2^32 slots, since each had a descriptor");
        self.slots.push(Slot { generation: 0, active: false, kind: Kind::Free });
        self.free.push(number);
        number
    }

    fn occupy(&mut self, number: u32, kind: impl FnOnce(StreamId) -> Kind) -> StreamId {
        let taken = self.free.pop();
        debug_assert_eq!(taken, Some(number), "nothing was added since the slot was found vacant");
        let slot = &mut self.slots[number as usize];
        let id = StreamId::new(number, slot.generation);
        slot.kind = kind(id);
        id
    }

    fn vacate(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        slot.kind = Kind::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(number);
    }

    fn activate(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        if !slot.active {
            slot.active = true;
            self.active.push(number);
        }
    }
}

fn stream(id: StreamId, read: Half, write: Half) -> Kind {
    Kind::Stream(Box::new(Stream { receiver: Receiver::new(read, id), sender: Sender::new(write, id) }))
}
