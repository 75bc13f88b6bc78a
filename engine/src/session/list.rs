//! List: the whole tree below a directory in one reply, for base peers.
//!
//! ```text
//! Walking -link-> Looking (is it a file inside the root?) -> Walking .. -end-> Ready -head-> ListResponse | Error
//! ```
//! The base protocol knows files and directories only: a link that leads to a file inside the root stands as that file,
//! everything else that is neither file nor directory is left out. What cannot be read fails the whole listing, because the
//! reply has no place to say so. A reply of more than 16 MiB is an Error.

use super::client::{Reply, Simple};
use super::verb::{Verb, reply, reply_failure};
use super::walk::{Found, Step, Walker};
use super::{Failure, Io, Outcome};
use crate::backend::{Errno, FsOp, OpKind, Output, Place};
use crate::wire::frame::{Frame, Kind, ListEntry, PathField};
use crate::wire::path::{RelPath, Target};
use crate::wire::{MAX_COUNT, MAX_FRAME};

const LOOK: u32 = 70;

/// The server's half.
pub(super) struct Serve {
    walker: Walker,
    entries: Vec<ListEntry>,
    bytes: usize,
    /// A link being looked at.
    looking: Option<RelPath>,
    /// What was to be listed is being looked at, because it is no directory.
    base: bool,
    ended: Option<Result<(), Failure>>,
}

impl Serve {
    pub(super) fn start(place: Place) -> Serve {
        Serve {
            walker: Walker::new(place, true),
            entries: Vec::new(),
            bytes: 0,
            looking: None,
            base: false,
            ended: None,
        }
    }

    fn path(&self) -> Vec<u8> {
        self.walker.base().target.joined().as_bytes().to_vec()
    }

    fn found(&mut self, found: Found, io: &mut Io<'_, '_>) {
        let Some(path) = found.path else {
            let errno = found.error.unwrap_or(Errno::IO);
            if errno == Errno::NOT_DIRECTORY {
                // A file lists as nothing, as the base protocol has it; what lies behind one is not there.
                let place = self.walker.base().clone();
                self.base = true;
                io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place, follow: true })));
            } else {
                self.ended = Some(Err(Failure::here(&self.path(), "cannot list", errno)));
            }
            return;
        };
        if let Some(errno) = found.error {
            let place = self.walker.place(Some(&path));
            let failure = Failure::here(place.target.joined().as_bytes(), "cannot list", errno);
            self.ended = Some(Err(failure));
            return;
        }
        match found.attributes.kind {
            Kind::Regular | Kind::Directory => self.add(&path, &found.attributes),
            Kind::Symlink => {
                // Followed like an operand: as far as the root allows.
                let joined = self.walker.place(Some(&path)).target.joined();
                let place = Place { dir: self.walker.base().dir, target: Target { operand: joined, below: None } };
                self.looking = Some(path);
                io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place, follow: true })));
            }
            _ => {}
        }
    }

    fn add(&mut self, path: &RelPath, attributes: &crate::wire::frame::Attributes) {
        self.bytes += path.as_bytes().len() + 21;
        if self.bytes > MAX_FRAME - 64 || self.entries.len() >= MAX_COUNT {
            let failure = Failure::rule(&self.path(), "cannot list", "the listing does not fit the protocol's 16 MiB");
            self.ended = Some(Err(failure));
            return;
        }
        self.entries.push(ListEntry {
            path: PathField(path.as_bytes().to_vec()),
            size: attributes.size,
            mtime: attributes.mtime.seconds.max(0),
            is_dir: attributes.kind == Kind::Directory,
        });
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, _: &mut Io<'_, '_>) {
        let looked = matches!(&kind, OpKind::Fs(op) if matches!(**op, FsOp::Stat { .. }));
        if !looked {
            return self.walker.on_completion(&kind, outcome);
        }
        if std::mem::take(&mut self.base) {
            self.ended = Some(match outcome {
                Ok(Output::Attributes { attributes, .. }) if attributes.kind == Kind::Regular => Ok(()),
                Ok(_) => Err(Failure::here(&self.path(), "cannot list", Errno::NOT_DIRECTORY)),
                Err(errno) => Err(Failure::here(&self.path(), "cannot list", errno)),
            });
            return;
        }
        if let (Some(path), Ok(Output::Attributes { attributes, .. })) = (self.looking.take(), outcome)
            && attributes.kind == Kind::Regular
        {
            self.add(&path, &attributes);
        }
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        // A listing may be as large as a frame: only the one whose turn it is is gathered.
        while head && self.ended.is_none() && self.looking.is_none() && !self.base {
            match self.walker.next(io) {
                Step::Entry(found) => self.found(found, io),
                Step::Leave(..) => {}
                Step::Wait => return false,
                Step::End => self.ended = Some(Ok(())),
            }
        }
        match &self.ended {
            Some(Ok(())) if head => {
                reply(&Frame::ListResponse { entries: std::mem::take(&mut self.entries) }, io);
                true
            }
            Some(Err(failure)) if head => {
                reply_failure(failure, io);
                true
            }
            _ => false,
        }
    }

    fn state(&self) -> &'static str {
        if self.looking.is_some() { "list looking at a link" } else { self.walker.state() }
    }
}

/// The client's half.
pub(super) fn ask(target: Target, path: Vec<u8>) -> Simple {
    Simple::new(
        path,
        "cannot list",
        move |ext| Frame::List { path: target.encode(ext) },
        |frame| match frame {
            Frame::ListResponse { entries } => Some(Reply::Listing(entries)),
            _ => None,
        },
    )
    .with_work(None)
}
