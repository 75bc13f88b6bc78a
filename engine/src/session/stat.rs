//! Stat (base) and Lookup (TREE): what is known of one path.
//!
//! ```text
//! Waiting -Attributes-> Ready -head-> StatResponse | AttributesResponse | Error
//! ```

use super::client::{Reply, Simple};
use super::verb::{Verb, reply, reply_failure};
use super::{Failure, Io, Outcome};
use crate::backend::{Errno, FsOp, OpKind, Output, Place};
use crate::wire::frame::{Attributes, Frame, Kind};
use crate::wire::path::Target;

const STAT: u32 = 40;

/// The server's half.
pub(super) struct Serve {
    path: Vec<u8>,
    full: bool,
    outcome: Option<Outcome>,
}

impl Serve {
    pub(super) fn stat(place: Place, io: &mut Io<'_, '_>) -> Serve {
        Serve::start(place, true, false, io)
    }

    pub(super) fn lookup(place: Place, follow: bool, io: &mut Io<'_, '_>) -> Serve {
        Serve::start(place, follow, true, io)
    }

    fn start(place: Place, follow: bool, full: bool, io: &mut Io<'_, '_>) -> Serve {
        let path = place.target.joined().as_bytes().to_vec();
        io.submit(STAT, OpKind::Fs(Box::new(FsOp::Stat { place, follow })));
        Serve { path, full, outcome: None }
    }

    fn answer(&self, outcome: Outcome) -> Result<Frame, Failure> {
        let failure = |errno| Failure::here(&self.path, "cannot stat", errno);
        let Output::Attributes { attributes, link } = outcome.map_err(failure)? else {
            return Err(failure(Errno::IO));
        };
        if self.full {
            return Ok(Frame::AttributesResponse { attributes, link });
        }
        if !matches!(attributes.kind, Kind::Regular | Kind::Directory) {
            return Err(failure(Errno::NOT_REGULAR));
        }
        Ok(Frame::StatResponse {
            size: attributes.size,
            mtime: attributes.mtime.seconds.max(0),
            is_dir: attributes.kind == Kind::Directory,
        })
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, _: OpKind, outcome: Outcome, _: &mut Io<'_, '_>) {
        self.outcome = Some(outcome);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if !head {
            return false;
        }
        let Some(outcome) = self.outcome.take() else { return false };
        match self.answer(outcome) {
            Ok(frame) => reply(&frame, io),
            Err(failure) => reply_failure(&failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        "stat"
    }
}

/// The client's half, towards any peer: kind, size and whole seconds.
pub(super) fn ask(target: Target, path: Vec<u8>) -> Simple {
    Simple::new(
        path,
        "cannot stat",
        move |ext| Frame::Stat { path: target.encode(ext) },
        |frame| match frame {
            Frame::StatResponse { size, mtime, is_dir } => {
                let kind = if is_dir { Kind::Directory } else { Kind::Regular };
                let mtime = crate::wire::frame::Timestamp { seconds: mtime, nanoseconds: 0 };
                let attributes = Attributes { kind, size, mtime, ..crate::backend::NO_ATTRIBUTES };
                Some(Reply::Attributes(attributes))
            }
            _ => None,
        },
    )
}

/// The client's half, towards haul: everything.
pub(super) fn ask_lookup(target: Target, follow: bool, path: Vec<u8>) -> Simple {
    let request = move |ext| Frame::Lookup { path: target.encode(ext), follow };
    Simple::new(path, "cannot stat", request, |frame| match frame {
        Frame::AttributesResponse { attributes, link } if attributes.kind == Kind::Symlink => {
            Some(Reply::Link(attributes, link))
        }
        Frame::AttributesResponse { attributes, .. } => Some(Reply::Attributes(attributes)),
        _ => None,
    })
}
