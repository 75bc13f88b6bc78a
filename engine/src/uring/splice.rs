//! The body of a SendFile: which move comes next, and what each result means.
//!
//! ```text
//! to a socket, pipe leased:  Fill (file -> pipe) -> Room -> Drain (pipe -> socket) -> .. until the pipe is empty -> Fill
//! to a pipe:                 Room -> Across (file -> stream) -> Room
//! otherwise, or EINVAL:      Copy (file -> bounce buffer) -> Push (bounce buffer -> stream)
//! source short or failed:    Pad (zeros -> stream), after what was taken from the file has left
//! ```
//!
//! A splice always runs on an io-wq thread. One that waits for a stalled peer would hold that thread, so a poll for
//! room goes first, pipes are told not to wait, and sockets give up after `slots::WORKER_HOLD`. SIGPIPE, which a splice
//! into a closed socket or pipe raises, must be ignored by the process; Rust programs start that way.
//!
//! Nothing here makes a call: [`Pour::next`] and [`Pour::moved`] are a state machine over numbers.

use super::inflight::Step;
use super::pipes::Pipe;
use super::slots::Kind;
use crate::backend::Errno;
use crate::limits::{PAGE_BYTES, SPLICE_BYTES};
use std::ops::Range;

/// How file bytes get into the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Through a leased pipe.
    TwoHops,
    /// The stream is a pipe itself.
    OneHop,
    /// Through user space.
    Copy,
}

/// One kernel operation of a pour.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Move {
    /// File to leased pipe.
    Fill { at: u64, len: usize },
    /// Leased pipe to socket.
    Drain { len: usize, more: bool },
    /// File to the stream's own pipe.
    Across { at: u64, len: usize },
    /// File to bounce buffer.
    Copy { at: u64, len: usize },
    /// This part of the bounce buffer to the stream.
    Push { part: Range<usize>, more: bool },
    /// Zeros to the stream.
    Pad { len: usize },
    /// Waits until the stream takes bytes.
    Room,
}

/// A file body under way.
pub(super) struct Pour {
    /// First byte of the file.
    offset: u64,
    /// Bytes promised.
    len: u64,
    /// Bytes that have left.
    out: u64,
    way: Way,
    /// A poll said that the stream takes bytes.
    room: bool,
    /// The source's error, if it had one; the rest is padding.
    pub(super) trouble: Option<Errno>,
    /// The leased pipe.
    pub(super) pipe: Option<Pipe>,
    in_pipe: usize,
    /// The bounce buffer.
    pub(super) bounce: Option<Box<[u8]>>,
    bounced: Range<usize>,
}

impl Pour {
    /// A pour of `len` bytes from `offset` into a stream of this kind, through `pipe` if that helps.
    pub(super) fn new(offset: u64, len: u64, sink: Kind, pipe: Option<Pipe>, splice: bool) -> Pour {
        let way = match sink {
            Kind::Pipe if splice => Way::OneHop,
            Kind::Socket if splice && pipe.is_some() => Way::TwoHops,
            _ => Way::Copy,
        };
        Pour { offset, len, out: 0, way, room: false, trouble: None, pipe, in_pipe: 0, bounce: None, bounced: 0..0 }
    }

    /// True when nothing is left in the leased pipe.
    pub(super) fn pipe_is_empty(&self) -> bool {
        self.in_pipe == 0
    }

    /// True when it needs a bounce buffer for its next move.
    pub(super) fn wants_bounce(&self) -> bool {
        self.way == Way::Copy && self.bounce.is_none() && self.trouble.is_none() && self.out < self.len
    }

    /// The bytes of the bounce buffer that have not left.
    pub(super) fn bounced(&self) -> &[u8] {
        self.bounce.as_deref().map_or(&[], |bounce| &bounce[self.bounced.clone()])
    }

    /// What to do next; `None` when every promised byte has left.
    pub(super) fn next(&self) -> Option<Move> {
        let taken = self.out + self.in_pipe as u64 + self.bounced.len() as u64;
        let left = self.len - taken;
        let more = left > 0;
        if self.in_pipe > 0 {
            return Some(if self.room { Move::Drain { len: self.in_pipe, more } } else { Move::Room });
        }
        if !self.bounced.is_empty() {
            return Some(Move::Push { part: self.bounced.clone(), more });
        }
        if left == 0 {
            return None;
        }
        // A run that begins inside a page comes short by that much; after it, all begin at a page boundary.
        let at = self.offset + taken;
        let run =
            |most: usize| usize::try_from(left).unwrap_or(usize::MAX).min(most - (at % PAGE_BYTES as u64) as usize);
        Some(match self.way {
            _ if self.trouble.is_some() => Move::Pad { len: run(SPLICE_BYTES) },
            Way::TwoHops => Move::Fill { at, len: run(self.pipe.as_ref().map_or(PAGE_BYTES, |pipe| pipe.bytes)) },
            Way::OneHop if !self.room => Move::Room,
            Way::OneHop => Move::Across { at, len: run(SPLICE_BYTES) },
            Way::Copy => Move::Copy { at, len: run(self.bounce.as_ref().map_or(PAGE_BYTES, |bounce| bounce.len())) },
        })
    }

    /// Takes note of how a move ended, and says how many bytes left with it. An error is the stream's: it is broken.
    pub(super) fn moved(&mut self, step: Step, result: Result<usize, Errno>) -> Result<usize, Errno> {
        let room = std::mem::take(&mut self.room);
        let result = match result {
            Err(errno) if is_retry(errno) => return Ok(0),
            result => result,
        };
        match (step, result) {
            (Step::Room, _) => self.room = true,
            (Step::Copy, Ok(0)) => self.trouble = Some(Errno::SHORT_SOURCE),
            // The end of the file, or a disk that failed: reading will tell.
            (Step::Fill | Step::Across, Ok(0)) => self.way = Way::Copy,
            (Step::Fill, Ok(n)) => self.in_pipe = n,
            (Step::Copy, Ok(n)) => self.bounced = 0..n,
            (Step::Fill | Step::Across, Err(Errno::INVALID)) => self.way = Way::Copy,
            (Step::Across, Err(Errno::BROKEN_PIPE)) => return Err(Errno::BROKEN_PIPE),
            (Step::Fill | Step::Copy | Step::Across, Err(errno)) => self.trouble = Some(errno),
            (_, Err(errno)) => return Err(errno),
            // The kernel never takes nothing of something; taken for progress, it would be a loop without end.
            (_, Ok(0)) => return Err(Errno::IO),
            (step, Ok(n)) => {
                match step {
                    Step::Drain => self.in_pipe -= n.min(self.in_pipe),
                    Step::Push => self.bounced.start = (self.bounced.start + n).min(self.bounced.end),
                    // A pipe that took something may take more at once; the next try will tell.
                    _ => {}
                }
                debug_assert!(room || matches!(step, Step::Push | Step::Pad), "splices wait for room");
                self.out += n as u64;
                return Ok(n);
            }
        }
        Ok(0)
    }
}

/// Errors that mean "again": the first two after waiting for room, the last at once.
fn is_retry(errno: Errno) -> bool {
    use rustix::io::Errno as E;
    [E::AGAIN, E::INTR].into_iter().any(|retry| Errno::from(retry) == errno)
}

#[cfg(test)]
mod tests {
    use super::super::pipes::Pipes;
    use super::*;

    const AGAIN: Errno = Errno(rustix::io::Errno::AGAIN.raw_os_error());

    fn two_hops(offset: u64, len: u64) -> Pour {
        let pipe = Pipes::new(1).lease().expect("a test machine has pipe budget");
        Pour::new(offset, len, Kind::Socket, Some(pipe), true)
    }

    #[test]
    fn a_socket_is_filled_through_the_pipe_after_a_poll() {
        let mut pour = two_hops(0, 10);
        assert_eq!(pour.next(), Some(Move::Fill { at: 0, len: 10 }));
        assert_eq!(pour.moved(Step::Fill, Ok(6)), Ok(0));
        assert_eq!(pour.next(), Some(Move::Room));
        pour.moved(Step::Room, Ok(4)).unwrap();
        assert_eq!(pour.next(), Some(Move::Drain { len: 6, more: true }));
        assert_eq!(pour.moved(Step::Drain, Ok(5)), Ok(5));
        assert_eq!(pour.next(), Some(Move::Room));
        pour.moved(Step::Room, Ok(4)).unwrap();
        assert_eq!(pour.moved(Step::Drain, Ok(1)), Ok(1));
        assert_eq!(pour.next(), Some(Move::Fill { at: 6, len: 4 }));
        pour.moved(Step::Fill, Ok(4)).unwrap();
        pour.moved(Step::Room, Ok(4)).unwrap();
        assert_eq!(pour.next(), Some(Move::Drain { len: 4, more: false }));
        pour.moved(Step::Drain, Ok(4)).unwrap();
        assert_eq!(pour.next(), None);
    }

    #[test]
    fn a_short_source_is_padded_after_what_it_gave_has_left() {
        // What reading says of a splice that brought nothing.
        for (read, trouble) in [(Ok(0), Errno::SHORT_SOURCE), (Err(Errno::IO), Errno::IO)] {
            let mut pour = two_hops(0, 10);
            pour.moved(Step::Fill, Ok(3)).unwrap();
            pour.moved(Step::Room, Ok(4)).unwrap();
            pour.moved(Step::Drain, Ok(3)).unwrap();
            pour.moved(Step::Fill, Ok(0)).unwrap();
            assert!(matches!(pour.next(), Some(Move::Copy { at: 3, .. })));
            pour.moved(Step::Copy, read).unwrap();
            assert_eq!(pour.next(), Some(Move::Pad { len: 7 }));
            pour.moved(Step::Pad, Ok(7)).unwrap();
            assert_eq!((pour.next(), pour.trouble), (None, Some(trouble)));
        }
    }

    #[test]
    fn a_full_stream_is_polled_again_and_a_broken_one_ends_the_pour() {
        let mut pour = Pour::new(0, 10, Kind::Pipe, None, true);
        assert_eq!(pour.next(), Some(Move::Room));
        pour.moved(Step::Room, Ok(4)).unwrap();
        assert_eq!(pour.moved(Step::Across, Err(AGAIN)), Ok(0));
        assert_eq!(pour.next(), Some(Move::Room));
        pour.moved(Step::Room, Ok(4)).unwrap();
        assert_eq!(pour.moved(Step::Across, Err(Errno::BROKEN_PIPE)), Err(Errno::BROKEN_PIPE));
    }

    #[test]
    fn what_cannot_be_spliced_is_copied() {
        let mut pour = two_hops(5, 10);
        pour.moved(Step::Fill, Err(Errno::INVALID)).unwrap();
        assert!(pour.wants_bounce());
        pour.bounce = Some(vec![0; 8192].into());
        assert_eq!(pour.next(), Some(Move::Copy { at: 5, len: 10 }));
        pour.moved(Step::Copy, Ok(10)).unwrap();
        assert_eq!(pour.next(), Some(Move::Push { part: 0..10, more: false }));
        pour.moved(Step::Push, Ok(4)).unwrap();
        assert_eq!(pour.bounced().len(), 6);
        pour.moved(Step::Push, Ok(6)).unwrap();
        assert_eq!(pour.next(), None);
    }

    #[test]
    fn the_first_run_ends_at_a_page_boundary() {
        let pour = two_hops(100, 1 << 30);
        let Some(Move::Fill { at: 100, len }) = pour.next() else { panic!("{:?}", pour.next()) };
        assert_eq!((100 + len) % PAGE_BYTES, 0);
    }
}
