//! The sending half of a stream: one queue of Send, SendFile and Shutdown, whose bytes leave in that order.
//!
//! ```text
//! push -> queue -> step: gather heads and bodies | sendfile -> advance -> completions
//!                        first error, or a cancel of what began -> fail -> completions, and every later push fails
//! ```
//!
//! Many queued heads and bodies go into one call; a call that takes only part of them is continued from there when the
//! stream is ready again.

use crate::half::Half;
use crate::limits::{GATHER_PIECES, STEP_BYTES, STEP_CALLS, ZERO_BYTES};
use crate::source::{Source, Stage};
use haul_engine::backend::{Cancel, Completion, Errno, FileId, Op, OpKind, Output, StreamId, Token};
use haul_engine::block::{Head, Slice, Slices};
use std::collections::VecDeque;
use std::io::IoSlice;

static ZEROS: [u8; ZERO_BYTES] = [0; ZERO_BYTES];

/// What an entry of the queue does when it reaches the front.
pub(crate) enum What {
    /// A Send.
    Bytes { head: Head, body: Slices },
    /// A SendFile.
    File { head: Head, file: FileId, offset: u64, len: u64, source: Source },
    /// A Shutdown.
    Shutdown,
}

impl What {
    fn total(&self) -> u64 {
        match self {
            What::Bytes { head, body } => (head.len() + body.iter().map(Slice::len).sum::<usize>()) as u64,
            What::File { head, len, .. } => (head.len() as u64).saturating_add(*len),
            What::Shutdown => 0,
        }
    }

    fn result(&self) -> Result<Output, Errno> {
        match self {
            What::File { source: Source { error: Some(errno), .. }, .. } => Err(*errno),
            What::Bytes { .. } | What::File { .. } | What::Shutdown => Ok(Output::Done),
        }
    }
}

struct Entry {
    token: Token,
    /// Bytes that have left.
    sent: u64,
    total: u64,
    what: What,
}

impl Entry {
    fn left(&self) -> u64 {
        self.total - self.sent
    }

    fn completed(self, stream: StreamId, result: Result<Output, Errno>) -> Completion {
        let kind = match self.what {
            What::Bytes { head, body } => OpKind::Send { stream, head, body },
            What::File { head, file, offset, len, .. } => OpKind::SendFile { stream, head, file, offset, len },
            What::Shutdown => OpKind::Shutdown { stream },
        };
        Completion { op: Op { token: self.token, kind }, result }
    }

    /// Moves file bytes directly, or stages some; says how many left. `None`: what is to leave next can be gathered.
    fn step_file(&mut self, half: &mut Half, stage: &mut Stage) -> Option<u64> {
        let Entry { sent, total, what: What::File { head, offset, source, .. }, .. } = self else { return None };
        let head = head.len() as u64;
        let file_sent = sent.saturating_sub(head);
        let left = *total - head - file_sent;
        if left == 0 || source.error.is_some() || !stage.is_empty() {
            return None;
        }
        // An offset beyond what files can have fails in the kernel, which is where it should.
        let offset = offset.saturating_add(file_sent);
        if !source.goes_directly(half) {
            source.fill(stage, offset, left);
            return None;
        }
        (*sent >= head).then(|| source.send(half, offset, left))
    }

    /// Adds what can leave of this entry; false when nothing behind it may be added.
    fn gather<'a>(&'a self, stage: &'a [u8], gathered: &mut Gathered<'a>) -> bool {
        let mut skip = self.sent;
        match &self.what {
            What::Bytes { head, body } => {
                gathered.add(head, &mut skip) && body.iter().all(|slice| gathered.add(slice.bytes(), &mut skip))
            }
            What::File { head, source, .. } => {
                if !gathered.add(head, &mut skip) {
                    return false;
                }
                let mut left = self.total - self.sent.max(head.len() as u64);
                if source.error.is_none() {
                    gathered.more = (stage.len() as u64) < left;
                    return gathered.add(stage, &mut 0) && !gathered.more;
                }
                let mut room = true;
                while room && left > 0 {
                    let count = left.min(ZERO_BYTES as u64);
                    room = gathered.add(&ZEROS[..count as usize], &mut 0);
                    left -= count;
                }
                room
            }
            What::Shutdown => false,
        }
    }
}

/// Pieces for one call.
struct Gathered<'a> {
    pieces: [IoSlice<'a>; GATHER_PIECES],
    count: usize,
    bytes: usize,
    /// File bytes that could not be gathered follow at once.
    more: bool,
}

impl<'a> Gathered<'a> {
    fn new() -> Gathered<'a> {
        Gathered { pieces: [IoSlice::new(&[]); GATHER_PIECES], count: 0, bytes: 0, more: false }
    }

    /// Adds `bytes` without the first `skip`, which shrinks by what was skipped; false when there is room for no more.
    fn add(&mut self, bytes: &'a [u8], skip: &mut u64) -> bool {
        let skipped = usize::try_from(*skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
        *skip -= skipped as u64;
        let bytes = &bytes[skipped..];
        let fits = bytes.len().min(STEP_BYTES - self.bytes);
        if fits > 0 {
            self.pieces[self.count] = IoSlice::new(&bytes[..fits]);
            self.count += 1;
            self.bytes += fits;
        }
        fits == bytes.len() && self.count < GATHER_PIECES && self.bytes < STEP_BYTES
    }
}

/// The sending half of a stream.
pub(crate) struct Sender {
    /// Gone after a Shutdown.
    half: Option<Half>,
    stream: StreamId,
    queue: VecDeque<Entry>,
    /// Bytes of the file in the front entry.
    stage: Stage,
    failed: Option<Errno>,
}

impl Sender {
    pub(crate) fn new(half: Half, stream: StreamId) -> Sender {
        Sender { half: Some(half), stream, queue: VecDeque::new(), stage: Stage::default(), failed: None }
    }

    pub(crate) fn push(&mut self, token: Token, what: What, completions: &mut Vec<Completion>) {
        let entry = Entry { token, sent: 0, total: what.total(), what };
        match self.failed {
            Some(errno) => completions.push(entry.completed(self.stream, Err(errno))),
            None => self.queue.push_back(entry),
        }
    }

    pub(crate) fn set_ready(&mut self) {
        if let Some(half) = &mut self.half {
            half.set_ready();
        }
    }

    /// Sends what goes out now, up to a bound that lets other streams have their turn. True when there is more to do
    /// right away.
    pub(crate) fn step(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut budget = STEP_BYTES as u64;
        for _ in 0..STEP_CALLS {
            self.advance(0, completions);
            match self.send_some() {
                Ok(count) => {
                    self.advance(count, completions);
                    budget = budget.saturating_sub(count);
                }
                Err(errno) => self.fail(errno, completions),
            }
            self.shut_down_when_due(completions);
            if budget == 0 || !self.can_step() {
                break;
            }
        }
        self.can_step()
    }

    /// True when a step would do something.
    pub(crate) fn can_step(&self) -> bool {
        let ready = self.half.as_ref().is_some_and(Half::is_ready);
        self.queue.front().is_some_and(|front| ready || front.left() == 0)
    }

    fn send_some(&mut self) -> Result<u64, Errno> {
        let Sender { half: Some(half), queue, stage, .. } = self else { return Ok(0) };
        let Some(front) = queue.front_mut().filter(|_| half.is_ready()) else { return Ok(0) };
        if let Some(count) = front.step_file(half, stage) {
            return Ok(count);
        }
        let mut gathered = Gathered::new();
        let mut staged = stage.bytes();
        for entry in queue.iter() {
            if !entry.gather(std::mem::take(&mut staged), &mut gathered) {
                break;
            }
        }
        if gathered.count == 0 {
            return Ok(0);
        }
        let written = half.write(&gathered.pieces[..gathered.count], gathered.more)?;
        Ok(written.unwrap_or(0) as u64)
    }

    /// Takes note that `count` bytes have left, and completes what is whole.
    fn advance(&mut self, mut count: u64, completions: &mut Vec<Completion>) {
        while let Some(front) = self.queue.front_mut() {
            let left = front.left();
            if count < left {
                if let What::File { head, .. } = &front.what {
                    let head_left = (head.len() as u64).saturating_sub(front.sent);
                    self.stage.consume(count.saturating_sub(head_left));
                }
                front.sent += count;
                return;
            }
            if matches!(front.what, What::Shutdown) {
                return;
            }
            count -= left;
            self.stage.clear();
            let done = self.queue.pop_front();
            completions.extend(done.map(|done| {
                let result = done.what.result();
                done.completed(self.stream, result)
            }));
        }
    }

    fn shut_down_when_due(&mut self, completions: &mut Vec<Completion>) {
        if !self.queue.front().is_some_and(|front| matches!(front.what, What::Shutdown)) {
            return;
        }
        let Some(half) = self.half.take() else { return };
        let result = half.shut_down();
        // A pipe is closed by this.
        drop(half);
        let done = self.queue.pop_front();
        completions.extend(done.map(|done| done.completed(self.stream, result.map(|()| Output::Done))));
        self.fail(Errno::BROKEN_PIPE, completions);
    }

    /// From here on no byte leaves, and all that is or will be queued ends with `errno`.
    fn fail(&mut self, errno: Errno, completions: &mut Vec<Completion>) {
        self.failed = Some(errno);
        self.end_all(errno, completions);
    }

    /// Takes covered entries out of the queue. One that has begun leaves a torn frame behind, so nothing may follow it.
    pub(crate) fn cancel(&mut self, cancel: Cancel, completions: &mut Vec<Completion>) {
        let handed = self.half.as_ref().map_or(0, Half::handed) as u64;
        let mut before = 0u64;
        let began = self.queue.iter().any(|entry| {
            let began = entry.sent > 0 || (before < handed && entry.total > 0);
            before = before.saturating_add(entry.left());
            began && cancel.covers(entry.token)
        });
        if began {
            self.fail(Errno::CANCELLED, completions);
            return;
        }
        if self.queue.front().is_some_and(|front| cancel.covers(front.token)) {
            self.stage.clear();
        }
        for _ in 0..self.queue.len() {
            let Some(entry) = self.queue.pop_front() else { return };
            if cancel.covers(entry.token) {
                completions.push(entry.completed(self.stream, Err(Errno::CANCELLED)));
            } else {
                self.queue.push_back(entry);
            }
        }
    }

    pub(crate) fn end_all(&mut self, errno: Errno, completions: &mut Vec<Completion>) {
        self.stage.clear();
        let stream = self.stream;
        completions.extend(self.queue.drain(..).map(|entry| entry.completed(stream, Err(errno))));
    }
}
