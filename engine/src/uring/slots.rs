//! The stream table: descriptors, what they are, and what waits on each half.
//!
//! ```text
//! free slot --add--> open --CloseStream--> closing --last flight back--> free slot, generation + 1
//! ```
//!
//! A descriptor is closed only when no flight refers to its stream ([`Stream::busy`] is 0), so that its number cannot
//! come to mean something else while the kernel still has to look it up.

use super::inflight::Receiving;
use super::send_queue::{Outgoing, SendQueue};
use crate::backend::{Errno, Op, SessionId, StreamId};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::net::sockopt::{Timeout, set_socket_timeout, set_tcp_nodelay};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a descriptor is, as far as the choice of operations depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Connected socket.
    Socket,
    /// Listening socket.
    Listener,
    /// Pipe or FIFO.
    Pipe,
    /// Terminal, regular file, device.
    Other,
}

/// Where the bytes of a stream go to.
pub(super) enum WriteHalf {
    /// Into the descriptor that is also read.
    Same,
    /// Into a descriptor of its own.
    Own(OwnedFd),
    /// Nowhere any more.
    Closed,
}

/// A read half and a write half.
pub(super) struct Stream {
    read: OwnedFd,
    write: WriteHalf,
    /// What is read from.
    pub(super) source: Kind,
    /// What is written to.
    pub(super) sink: Kind,
    /// No other process shares the descriptions.
    pub(super) ours: bool,
    /// Ops that write, in order.
    pub(super) queue: SendQueue,
    /// Memory for the next write; away while one is in the kernel.
    pub(super) outgoing: Option<Box<Outgoing>>,
    /// Receives waiting for the one in the kernel.
    pub(super) receives: VecDeque<Receiving>,
    /// A receive is in the kernel.
    pub(super) receiving: bool,
    /// With what every further receive ends.
    pub(super) read_failed: Option<Errno>,
    /// Flights that refer to this stream.
    pub(super) busy: u32,
    /// It takes no further ops and goes when they are back.
    pub(super) closing: bool,
    /// The CloseStream that waits for that; there is none when its session has ended.
    pub(super) closer: Option<Op>,
    /// With this session it is closed. Only a listener has an owner.
    pub(super) owner: Option<SessionId>,
}

impl Stream {
    /// Looks at the descriptors. Descriptions that are ours are made blocking, which is what the ring works best with:
    /// it waits by itself, and a splice into a non-blocking socket returns literal EAGAIN.
    pub(super) fn new(read: OwnedFd, write: Option<OwnedFd>, ours: bool) -> Result<Stream, Errno> {
        let source = kind_of(&read)?;
        let write = write.map_or(WriteHalf::Same, WriteHalf::Own);
        let sink = match &write {
            WriteHalf::Own(write) => kind_of(write)?,
            WriteHalf::Same | WriteHalf::Closed => source,
        };
        let stream = Stream {
            read,
            write,
            source,
            sink,
            ours,
            queue: SendQueue::default(),
            outgoing: Some(Box::default()),
            receives: VecDeque::new(),
            receiving: false,
            read_failed: None,
            busy: 0,
            closing: false,
            closer: None,
            owner: None,
        };
        if ours {
            make_blocking(stream.read.as_fd())?;
            if let Some(write) = stream.write_fd() {
                make_blocking(write)?;
                tune(write, sink);
            }
        }
        Ok(stream)
    }

    /// A listening socket, and the session that listens.
    pub(super) fn listener(socket: OwnedFd, owner: Option<SessionId>) -> Result<Stream, Errno> {
        let mut stream = Stream::new(socket, None, true)?;
        (stream.source, stream.sink) = (Kind::Listener, Kind::Listener);
        stream.owner = owner;
        Ok(stream)
    }

    /// The descriptor to read from.
    pub(super) fn read_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// The descriptor to write to, while there is one.
    pub(super) fn write_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.write {
            WriteHalf::Same => Some(self.read.as_fd()),
            WriteHalf::Own(write) => Some(write.as_fd()),
            WriteHalf::Closed => None,
        }
    }

    /// Tells the peer that nothing more will come.
    pub(super) fn shut_write(&mut self) -> Result<(), Errno> {
        match &self.write {
            WriteHalf::Same | WriteHalf::Own(_) if self.sink == Kind::Socket => {
                let fd = self.write_fd().ok_or(Errno::BROKEN_PIPE)?;
                rustix::net::shutdown(fd, rustix::net::Shutdown::Write).map_err(Errno::from)
            }
            WriteHalf::Own(_) => {
                self.write = WriteHalf::Closed;
                Ok(())
            }
            // One descriptor for both directions that is no socket (a terminal): its write end cannot be ended alone.
            WriteHalf::Same => Ok(()),
            WriteHalf::Closed => Err(Errno::BROKEN_PIPE),
        }
    }
}

fn kind_of(fd: impl AsFd) -> Result<Kind, Errno> {
    let mode = fstat(fd)?.st_mode;
    Ok(match FileType::from_raw_mode(mode) {
        FileType::Socket => Kind::Socket,
        FileType::Fifo => Kind::Pipe,
        _ => Kind::Other,
    })
}

fn make_blocking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = fcntl_getfl(fd)?;
    if flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(fd, flags - OFlags::NONBLOCK)?;
    }
    Ok(())
}

/// Heads must not wait for acknowledgements, and a splice must not hold a thread for long. Both are refused by sockets
/// they mean nothing to, and nothing is lost then.
fn tune(fd: BorrowedFd<'_>, kind: Kind) {
    if kind == Kind::Socket {
        let _ = set_tcp_nodelay(fd, true);
        let _ = set_socket_timeout(fd, Timeout::Send, Some(crate::limits::WORKER_HOLD));
    }
}

struct Slot {
    generation: u32,
    stream: Option<Stream>,
}

/// All streams of one backend.
#[derive(Default)]
pub(super) struct Streams {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Streams {
    /// Gives a stream an id.
    pub(super) fn add(&mut self, stream: Stream) -> StreamId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, stream: None });
            // Descriptors run out long before 2^32.
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.stream = Some(stream);
        StreamId::new(slot, entry.generation)
    }

    /// The stream, closing or not; `None` for a stale id.
    pub(super) fn slot(&mut self, id: StreamId) -> Option<&mut Stream> {
        let entry = self.slots.get_mut(id.slot as usize).filter(|entry| entry.generation == id.generation)?;
        entry.stream.as_mut()
    }

    /// The stream, as long as new ops may be given to it.
    pub(super) fn open(&mut self, id: StreamId) -> Result<&mut Stream, Errno> {
        self.slot(id).filter(|stream| !stream.closing).ok_or(Errno::STALE_ID)
    }

    /// Takes a stream out; its id is stale from here on.
    pub(super) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let entry = self.slots.get_mut(id.slot as usize).filter(|entry| entry.generation == id.generation)?;
        let stream = entry.stream.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(stream)
    }

    /// Every stream with its id.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (StreamId, &mut Stream)> {
        self.slots.iter_mut().enumerate().filter_map(|(slot, entry)| {
            let id = StreamId::new(slot as u32, entry.generation);
            entry.stream.as_mut().map(|stream| (id, stream))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn socket() -> Stream {
        let (one, _other) = UnixStream::pair().unwrap();
        Stream::new(one.into(), None, true).unwrap()
    }

    #[test]
    fn a_removed_id_stays_stale_when_its_slot_is_used_again() {
        let mut streams = Streams::default();
        let first = streams.add(socket());
        assert!(streams.remove(first).is_some());
        let second = streams.add(socket());
        assert_eq!(first.slot, second.slot);
        assert!(streams.open(first).is_err());
        assert!(streams.open(second).is_ok());
    }

    #[test]
    fn only_descriptions_of_our_own_are_made_blocking() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for (socket, is_ours) in [(ours, true), (theirs, false)] {
            socket.set_nonblocking(true).unwrap();
            let stream = Stream::new(socket.into(), None, is_ours).unwrap();
            let nonblocking = fcntl_getfl(stream.read_fd()).unwrap().contains(OFlags::NONBLOCK);
            assert_eq!(nonblocking, !is_ours);
        }
    }

    #[test]
    fn halves_are_known_for_what_they_are() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut stream = Stream::new(read, Some(write), true).unwrap();
        assert_eq!((stream.source, stream.sink), (Kind::Pipe, Kind::Pipe));
        stream.shut_write().unwrap();
        assert!(stream.write_fd().is_none());
        assert_eq!(stream.shut_write(), Err(Errno::BROKEN_PIPE));
    }
}
