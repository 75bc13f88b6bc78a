//! A thread that reads or writes one descriptor which can only be waited for by blocking in the call: a regular file or
//! a device as standard input or output, and on systems other than Linux every stream that is not ours.
//!
//! To its caller it looks like a descriptor that is not ready yet: the first call hands work to the thread and answers
//! "not now"; when the thread is back it calls [`Signal::finished`], and the next call has the result. The thread owns
//! the descriptor and a buffer of its own while it is in the kernel, so nobody has to wait for it: a caller who no
//! longer cares drops its [`Helper`], and the thread ends when its call returns.
//!
//! ```text
//! Idle --asked--> Asked --thread--> Running --thread--> Done --caller takes the result--> Idle
//! any  --Helper dropped--> Ended
//! ```

use crate::limits::{HELPER_BYTES, HELPER_STACK_BYTES};
use crate::signal::Signal;
use crate::sys::would_wait;
use haul_engine::backend::Errno;
use haul_engine::panics::caught;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From the descriptor.
    Read,
    /// To the descriptor.
    Write,
}

enum Phase {
    /// Before Asked, after Done.
    Idle,
    /// That many bytes of the buffer are to be read or written. After Idle, before Running.
    Asked(usize),
    /// That many bytes are with the thread, and the buffer too. After Asked, before Done.
    Running(usize),
    /// Back with a result. Of what was read, `taken` bytes are with the caller. After Running, before Idle.
    Done { result: Result<usize, Errno>, taken: usize },
    /// The helper was dropped.
    Ended,
}

struct State {
    phase: Phase,
    buffer: Vec<u8>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held, and a state is whole at every point in between.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The caller's side.
pub(crate) struct Helper(Arc<Shared>);

impl Helper {
    /// Starts the thread, which reports to `signal` for the stream in `slot`.
    pub(crate) fn start(way: Direction, fd: Arc<OwnedFd>, slot: u32, signal: Arc<Signal>) -> io::Result<Helper> {
        let state = State { phase: Phase::Idle, buffer: vec![0; HELPER_BYTES] };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        // Not joined: it may be in a read that never returns.
        thread::Builder::new()
            .name(format!("haul-{way:?}").to_lowercase())
            .stack_size(HELPER_STACK_BYTES)
            .spawn(move || serve(&theirs, way, &fd, || signal.finished(slot)))?;
        Ok(Helper(shared))
    }

    /// As a read that does not wait: `None` while the thread is at it. Never reads more than was asked for, since what
    /// is read from standard input cannot be given back.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<Option<usize>, Errno> {
        let mut state = self.0.lock();
        let State { phase, buffer } = &mut *state;
        match phase {
            Phase::Idle => {
                *phase = Phase::Asked(into.len().min(buffer.len()));
                self.0.changed.notify_one();
                Ok(None)
            }
            Phase::Done { result: Err(errno), .. } => Err(*errno),
            Phase::Done { result: Ok(0), .. } => Ok(Some(0)),
            Phase::Done { result: Ok(count), taken } => {
                let given = into.len().min(*count - *taken);
                into[..given].copy_from_slice(&buffer[*taken..*taken + given]);
                *taken += given;
                if taken == count {
                    *phase = Phase::Idle;
                }
                Ok(Some(given))
            }
            Phase::Asked(_) | Phase::Running(_) | Phase::Ended => Ok(None),
        }
    }

    /// As a write that does not wait, but the count is of the bytes handed over before: a first call hands the
    /// beginning of `from` over, and a later call, with the same bytes still in front, says how many of them were
    /// written. So bytes count as sent only when they have left.
    pub(crate) fn write(&self, from: &[IoSlice<'_>]) -> Result<Option<usize>, Errno> {
        let mut state = self.0.lock();
        let State { phase, buffer } = &mut *state;
        match phase {
            Phase::Idle => {
                let mut filled = 0;
                for piece in from {
                    let count = piece.len().min(buffer.len() - filled);
                    buffer[filled..filled + count].copy_from_slice(&piece[..count]);
                    filled += count;
                }
                *phase = Phase::Asked(filled);
                self.0.changed.notify_one();
                Ok(None)
            }
            Phase::Done { result, .. } => {
                let result = *result;
                *phase = Phase::Idle;
                result.map(Some)
            }
            Phase::Asked(_) | Phase::Running(_) | Phase::Ended => Ok(None),
        }
    }

    /// True while the thread is in a call, or about to be.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.0.lock().phase, Phase::Asked(_) | Phase::Running(_))
    }

    /// Bytes handed over by [`Helper::write`] of which no result was taken yet: some of them may have left.
    pub(crate) fn handed(&self) -> usize {
        match self.0.lock().phase {
            Phase::Asked(count) | Phase::Running(count) | Phase::Done { result: Ok(count), .. } => count,
            Phase::Idle | Phase::Done { .. } | Phase::Ended => 0,
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.lock().phase = Phase::Ended;
        self.0.changed.notify_one();
    }
}

/// The thread.
fn serve(shared: &Shared, way: Direction, fd: &OwnedFd, finished: impl Fn()) {
    let mut state = shared.lock();
    loop {
        match state.phase {
            Phase::Asked(count) => {
                state.phase = Phase::Running(count);
                let mut buffer = std::mem::take(&mut state.buffer);
                drop(state);
                let result = caught(|| call(way, fd, &mut buffer[..count])).unwrap_or(Err(Errno::INTERNAL));
                state = shared.lock();
                if matches!(state.phase, Phase::Ended) {
                    return;
                }
                *state = State { phase: Phase::Done { result, taken: 0 }, buffer };
                drop(state);
                finished();
                state = shared.lock();
            }
            Phase::Ended => return,
            Phase::Idle | Phase::Running(_) | Phase::Done { .. } => {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// One read or write that waits, also where another process has made the description non-blocking (ssh does that to
/// the terminal it shares with us).
fn call(way: Direction, fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        let (result, readiness) = match way {
            Direction::Read => (rustix::io::read(fd, &mut *buffer), PollFlags::IN),
            Direction::Write => (rustix::io::write(fd, buffer), PollFlags::OUT),
        };
        match result {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) if would_wait(errno) => match poll(&mut [PollFd::new(fd, readiness)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            result => return result.map_err(Errno::from),
        }
    }
}
