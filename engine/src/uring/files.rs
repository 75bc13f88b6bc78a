//! Reads and writes of open files, continued until they are whole.

use super::Uring;
use super::inflight::{Flight, Reading, Work, Writing};
use super::sys::Call;
use crate::backend::{Completion, Errno, FileId, Output, Token};
use crate::block::{Block, Slice};

/// Not now.
pub(super) const AGAIN: Errno = Errno(rustix::io::Errno::AGAIN.raw_os_error());
/// A signal, or a cancel that reached an io-wq thread.
pub(super) const INTERRUPTED: Errno = Errno(rustix::io::Errno::INTR.raw_os_error());

/// True for the errors after which the same call is made again.
pub(super) fn is_again(errno: Errno) -> bool {
    errno == AGAIN || errno == INTERRUPTED
}

impl Uring {
    pub(super) fn start_read(
        &mut self,
        token: Token,
        file: FileId,
        offset: u64,
        into: Block,
        len: usize,
        out: &mut Vec<Completion>,
    ) {
        let result = match self.offload.file(file) {
            Some(_) if len > into.capacity() => Err(Errno::INVALID),
            Some(_) if len == 0 => Ok(Output::Bytes(0)),
            Some(open) => {
                let reading = Reading { token, file, offset, into, len, done: 0, open: open.clone() };
                return self.ring.start(Flight::new(None, Work::Read(reading)), &Call::Read);
            }
            None => Err(Errno::STALE_ID),
        };
        let op = crate::backend::Op { token, kind: crate::backend::OpKind::Read { file, offset, into, len } };
        out.push(Completion { op, result });
    }

    pub(super) fn on_read(
        &mut self,
        mut reading: Reading,
        cancelled: bool,
        result: Result<usize, Errno>,
        out: &mut Vec<Completion>,
    ) {
        reading.done += *result.as_ref().unwrap_or(&0);
        let ended = result == Ok(0) || reading.done == reading.len;
        let outcome = match result {
            _ if ended => Ok(Output::Bytes(reading.done)),
            _ if cancelled => Err(Errno::CANCELLED),
            Err(errno) if !is_again(errno) => Err(errno),
            _ => return self.ring.start(Flight::new(None, Work::Read(reading)), &Call::Read),
        };
        out.push(reading.end(outcome));
    }

    pub(super) fn start_write(
        &mut self,
        token: Token,
        file: FileId,
        offset: u64,
        from: Slice,
        out: &mut Vec<Completion>,
    ) {
        let result = match self.offload.file(file) {
            Some(open) if open.is_sink() || from.is_empty() => Ok(Output::Done),
            Some(open) => {
                let writing = Writing { token, file, offset, from, done: 0, open: open.clone() };
                return self.ring.start(Flight::new(None, Work::Write(writing)), &Call::Write);
            }
            None => Err(Errno::STALE_ID),
        };
        let op = crate::backend::Op { token, kind: crate::backend::OpKind::Write { file, offset, from } };
        out.push(Completion { op, result });
    }

    pub(super) fn on_write(
        &mut self,
        mut writing: Writing,
        cancelled: bool,
        result: Result<usize, Errno>,
        out: &mut Vec<Completion>,
    ) {
        writing.done += *result.as_ref().unwrap_or(&0);
        let outcome = match result {
            _ if writing.done == writing.from.len() => Ok(Output::Done),
            _ if cancelled => Err(Errno::CANCELLED),
            // The kernel took nothing and gave no reason.
            Ok(0) => Err(Errno::IO),
            Err(errno) if !is_again(errno) => Err(errno),
            _ => return self.ring.start(Flight::new(None, Work::Write(writing)), &Call::Write),
        };
        out.push(writing.end(outcome));
    }
}
