//! Is a file already there? Its hash at the peer beside the hash of what is here: only the proof counts, never a time.
//!
//! ```text
//! client: hashes its own file, and meanwhile Hash -> HashResponse | Error -> equal or not
//! ```

use super::client::{Answer, Ask, Reply, Sent};
use super::link::Incoming;
use super::source::{Purpose, Source};
use super::{Failure, Io, Outcome};
use crate::backend::{OpKind, Place};
use crate::wire::frame::{Frame, Hash};
use crate::wire::path::Target;

/// The client's half; the server's is [`super::hash`].
pub(super) struct Same {
    local: Place,
    local_path: Vec<u8>,
    remote: Target,
    /// Bytes of both that are compared; all of them for `None`.
    limit: Option<u64>,
    /// Bytes of the file there, as far as is known.
    size: u64,
    source: Option<Source>,
    theirs: Option<Hash>,
}

impl Same {
    pub(super) fn new(local: Place, local_path: Vec<u8>, remote: Target, (limit, size): (Option<u64>, u64)) -> Same {
        Same { local, local_path, remote, limit, size, source: None, theirs: None }
    }
}

impl Ask for Same {
    fn prepare(&mut self, io: &mut Io<'_, '_>) {
        let purpose = Purpose { limit: self.limit, ..Purpose::HASH };
        self.source = Some(Source::start(self.local.clone(), self.local_path.clone(), purpose, io));
    }

    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        let path = self.remote.encode(io.terms.dialect.ext);
        match io.link.frame(&Frame::Hash { path, offset: 0, limit: self.limit }) {
            Ok(()) => Sent::Whole,
            // What cannot be asked for is not there.
            Err(_) => Sent::Not,
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, _: &mut Io<'_, '_>) -> Result<bool, Failure> {
        match incoming {
            Incoming::Frame(Frame::HashResponse { hash }) => self.theirs = Some(hash),
            // It is not there, or cannot be read: not the same.
            Incoming::Frame(Frame::Error { .. }) => {}
            _ => return Err(Failure::protocol("the server answered Hash with another reply")),
        }
        Ok(true)
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.on_completion(kind, outcome, io);
        }
    }

    fn works_beside(&self) -> bool {
        true
    }

    fn advance(&mut self, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.pump(true, io, |_, _| {});
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        // Whoever copies it next will say what is wrong with it.
        let ours = self.source.as_ref()?.result()?.ok();
        Some(Ok(Reply::Same(ours.filter(|_| ours == self.theirs))))
    }

    fn work(&self) -> Option<u64> {
        Some(self.limit.unwrap_or(self.size))
    }

    fn state(&self) -> &'static str {
        "comparing"
    }
}
