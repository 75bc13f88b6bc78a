//! Hash: BLAKE3 of a range of a file.
//!
//! ```text
//! Reading (a source whose content goes nowhere) -> Ready -head-> HashResponse | Error
//! ```

use super::client::{Reply, Simple};
use super::source::{Purpose, Source};
use super::verb::{Verb, reply, reply_failure};
use super::{Io, Outcome};
use crate::backend::{OpKind, Place};
use crate::wire::frame::Frame;
use crate::wire::path::Target;

/// The server's half.
pub(super) struct Serve {
    source: Source,
}

impl Serve {
    pub(super) fn start(place: Place, offset: u64, limit: Option<u64>, io: &mut Io<'_, '_>) -> Serve {
        let path = place.target.joined().as_bytes().to_vec();
        Serve { source: Source::start(place, path, Purpose { offset, limit, ..Purpose::HASH }, io) }
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.source.on_completion(kind, outcome, io);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        // Only the one at the head reads: blocks are for those whose turn it is.
        self.source.pump(head, io, |_, _| {});
        if !head {
            return false;
        }
        match self.source.result() {
            None => return false,
            Some(Ok(hash)) => reply(&Frame::HashResponse { hash }, io),
            Some(Err(failure)) => reply_failure(failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        self.source.state()
    }
}

/// The client's half: of all of a file, of so many bytes as far as is known.
pub(super) fn ask(target: Target, size: Option<u64>, path: Vec<u8>) -> Simple {
    ask_limited(target, None, path).with_work(size)
}

/// The same of its first `limit` bytes.
pub(super) fn ask_limited(target: Target, limit: Option<u64>, path: Vec<u8>) -> Simple {
    let request = move |ext| Frame::Hash { path: target.encode(ext), offset: 0, limit };
    Simple::new(path, "cannot hash", request, |frame| match frame {
        Frame::HashResponse { hash } => Some(Reply::Hash(hash)),
        _ => None,
    })
    .with_work(limit)
}
