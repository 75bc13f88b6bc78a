//! Mkdir (base), SetMeta and Symlink (META): names without content.
//!
//! ```text
//! Waiting -Done-> Ready -head-> Ok | Error
//! ```
//! SetMeta begins only at the head of the queue, when everything asked for before it is done: a directory's time and mode
//! are set after its last file.

use super::client::{Reply, Simple};
use super::verb::{Verb, reply_done, reply_failure, unkept};
use super::{Failure, Io, Outcome};
use crate::backend::{FsOp, OpKind, Place};
use crate::wire::frame::{Attributes, Frame, Preserve};
use crate::wire::path::Target;

const NAME: u32 = 50;

/// The server's half.
pub(super) struct Serve {
    path: Vec<u8>,
    what: &'static str,
    /// Held back until it is at the head.
    held: Option<FsOp>,
    outcome: Option<Outcome>,
}

impl Serve {
    pub(super) fn mkdir(place: Place, io: &mut Io<'_, '_>) -> Serve {
        Serve::now("cannot make directory", path_of(&place), FsOp::MakeDir { place }, io)
    }

    pub(super) fn symlink(
        place: Place,
        text: Vec<u8>,
        attributes: Attributes,
        preserve: Preserve,
        io: &mut Io<'_, '_>,
    ) -> Serve {
        let path = path_of(&place);
        Serve::now("cannot make link", path, FsOp::MakeLink { place, text, attributes, preserve }, io)
    }

    pub(super) fn set_meta(place: Place, attributes: Attributes, preserve: Preserve) -> Serve {
        let path = path_of(&place);
        let held = Some(FsOp::SetMeta { place, attributes, preserve });
        Serve { path, what: "cannot set attributes", held, outcome: None }
    }

    fn now(what: &'static str, path: Vec<u8>, op: FsOp, io: &mut Io<'_, '_>) -> Serve {
        io.submit(NAME, OpKind::Fs(Box::new(op)));
        Serve { path, what, held: None, outcome: None }
    }
}

fn path_of(place: &Place) -> Vec<u8> {
    place.target.joined().as_bytes().to_vec()
}

impl Verb for Serve {
    fn on_completion(&mut self, _: OpKind, outcome: Outcome, _: &mut Io<'_, '_>) {
        self.outcome = Some(outcome);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if !head {
            return false;
        }
        if let Some(op) = self.held.take() {
            io.submit(NAME, OpKind::Fs(Box::new(op)));
        }
        match self.outcome.take() {
            None => return false,
            Some(Ok(output)) => reply_done(None, unkept(&output), io),
            Some(Err(errno)) => reply_failure(&Failure::here(&self.path, self.what, errno), io),
        }
        true
    }

    fn state(&self) -> &'static str {
        if self.held.is_some() { "name held" } else { "name" }
    }
}

/// The client's half of Mkdir.
pub(super) fn ask(target: Target, path: Vec<u8>) -> Simple {
    Simple::new(path, "cannot make directory", move |ext| Frame::Mkdir { path: target.encode(ext) }, done)
}

/// The client's half of SetMeta.
pub(super) fn ask_set_meta(target: Target, attributes: Attributes, preserve: Preserve, path: Vec<u8>) -> Simple {
    let request = move |ext| Frame::SetMeta { path: target.encode(ext), attributes, preserve };
    Simple::new(path, "cannot set attributes", request, done)
}

/// The client's half of Symlink.
pub(super) fn ask_symlink(
    target: Target,
    text: Vec<u8>,
    attributes: Attributes,
    preserve: Preserve,
    path: Vec<u8>,
) -> Simple {
    let request = move |ext| Frame::Symlink { path: target.encode(ext), target: text.clone(), attributes, preserve };
    Simple::new(path, "cannot make link", request, done)
}

fn done(frame: Frame) -> Option<Reply> {
    matches!(frame, Frame::Ok { .. }).then_some(Reply::Done)
}
