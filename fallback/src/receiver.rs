//! The receiving half of a stream: Recv operations in the order they were asked, filled from what is there.

use crate::half::Half;
use haul_engine::backend::{Cancel, Completion, Errno, Op, OpKind, Output, StreamId, Token};
use haul_engine::block::Block;
use std::collections::VecDeque;

/// A Recv that has not got its `at_least` bytes yet.
struct Waiting {
    token: Token,
    into: Block,
    at_least: usize,
    got: usize,
}

impl Waiting {
    fn completed(self, stream: StreamId, result: Result<Output, Errno>) -> Completion {
        let Waiting { token, into, at_least, .. } = self;
        Completion { op: Op { token, kind: OpKind::Recv { stream, into, at_least } }, result }
    }
}

/// The receiving half of a stream.
pub(crate) struct Receiver {
    pub(crate) half: Half,
    stream: StreamId,
    waiting: VecDeque<Waiting>,
    failed: Option<Errno>,
    /// Bytes a cancelled Recv had taken from the stream; the next one gets them.
    kept: Vec<u8>,
}

impl Receiver {
    pub(crate) fn new(half: Half, stream: StreamId) -> Receiver {
        Receiver { half, stream, waiting: VecDeque::new(), failed: None, kept: Vec::new() }
    }

    pub(crate) fn push(&mut self, token: Token, into: Block, at_least: usize, completions: &mut Vec<Completion>) {
        let at_least = at_least.clamp(1, into.capacity());
        let waiting = Waiting { token, into, at_least, got: 0 };
        match self.failed {
            Some(errno) => completions.push(waiting.completed(self.stream, Err(errno))),
            None => self.waiting.push_back(waiting),
        }
    }

    /// Fills the first Recv as far as that goes without waiting. True when there is more to do right away.
    pub(crate) fn step(&mut self, completions: &mut Vec<Completion>) -> bool {
        let filled = self.fill();
        if filled != Ok(false)
            && let Some(done) = self.waiting.pop_front()
        {
            let got = done.got;
            // What came before an error is worth having.
            let result = match filled {
                Err(errno) if got < done.at_least => Err(errno),
                Ok(_) | Err(_) => Ok(Output::Bytes(got)),
            };
            completions.push(done.completed(self.stream, result));
        }
        if let Err(errno) = filled {
            // Remembered, because a socket tells its error once and then looks like one that has ended.
            self.failed = Some(errno);
            self.end_all(errno, completions);
        }
        self.can_step()
    }

    /// True when a step would do something.
    pub(crate) fn can_step(&self) -> bool {
        !self.waiting.is_empty() && (self.half.is_ready() || !self.kept.is_empty())
    }

    /// True when the first Recv is complete.
    fn fill(&mut self) -> Result<bool, Errno> {
        let Some(Waiting { into, at_least, got, .. }) = self.waiting.front_mut() else { return Ok(false) };
        let room = into.bytes_mut();
        let at_least = *at_least;
        if !self.kept.is_empty() {
            let count = self.kept.len().min(room.len() - *got);
            room[*got..*got + count].copy_from_slice(&self.kept[..count]);
            self.kept.drain(..count);
            *got += count;
        }
        while *got < room.len() && self.half.is_ready() {
            let asked = room.len() - *got;
            match self.half.read(&mut room[*got..]) {
                Ok(None) => break,
                Ok(Some(0)) => return Ok(true),
                Ok(Some(count)) => {
                    *got += count;
                    // Less than asked for is all there was.
                    if count < asked && *got >= at_least {
                        return Ok(true);
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(*got >= at_least)
    }

    /// Bytes that a cancelled Recv had received already stay with the stream.
    pub(crate) fn cancel(&mut self, cancel: Cancel, completions: &mut Vec<Completion>) {
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else { return };
            if cancel.covers(waiting.token) {
                self.kept.extend_from_slice(&waiting.into.bytes()[..waiting.got]);
                completions.push(waiting.completed(self.stream, Err(Errno::CANCELLED)));
            } else {
                self.waiting.push_back(waiting);
            }
        }
    }

    pub(crate) fn end_all(&mut self, errno: Errno, completions: &mut Vec<Completion>) {
        let stream = self.stream;
        completions.extend(self.waiting.drain(..).map(|waiting| waiting.completed(stream, Err(errno))));
    }
}
