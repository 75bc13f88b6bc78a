//! Resume: how much of a target is there, and the hash of its last complete 4 MiB block.
//!
//! ```text
//! Looking (Stat) -big enough-> Hashing -> Ready -head-> ResumeResponse | Error
//! ```
//! A missing target is size 0 without a hash, not an error.

use super::client::{Reply, Simple};
use super::source::{Purpose, Source};
use super::verb::{Verb, reply, reply_failure};
use super::{Failure, Io, Outcome};
use crate::backend::{Errno, FsOp, OpKind, Output, Place};
use crate::limits::RESUME_BLOCK_BYTES;
use crate::wire::frame::{Frame, Kind};
use crate::wire::path::Target;

const LOOK: u32 = 60;

enum State {
    Looking,
    Hashing { size: u64, source: Box<Source> },
    Ready(Result<Frame, Failure>),
}

/// The server's half.
pub(super) struct Serve {
    place: Place,
    state: State,
}

impl Serve {
    pub(super) fn start(place: Place, io: &mut Io<'_, '_>) -> Serve {
        io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place: place.clone(), follow: true })));
        Serve { place, state: State::Looking }
    }

    fn on_looked(&mut self, outcome: Outcome, io: &mut Io<'_, '_>) {
        let path = self.place.target.joined().as_bytes().to_vec();
        let size = match outcome {
            Ok(Output::Attributes { attributes, .. }) if attributes.kind == Kind::Regular => attributes.size,
            Ok(_) => {
                self.state = State::Ready(Err(Failure::here(&path, "cannot resume", Errno::NOT_REGULAR)));
                return;
            }
            Err(Errno::NOT_FOUND) => 0,
            Err(errno) => {
                self.state = State::Ready(Err(Failure::here(&path, "cannot resume", errno)));
                return;
            }
        };
        self.state = match size / RESUME_BLOCK_BYTES {
            0 => State::Ready(Ok(Frame::ResumeResponse { size, hash: None })),
            blocks => {
                let offset = (blocks - 1) * RESUME_BLOCK_BYTES;
                let purpose = Purpose { offset, limit: Some(RESUME_BLOCK_BYTES), ..Purpose::HASH };
                let source = Source::start(self.place.clone(), path, purpose, io);
                let source = Box::new(source);
                State::Hashing { size, source }
            }
        };
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        match &mut self.state {
            State::Looking => self.on_looked(outcome, io),
            State::Hashing { source, .. } => source.on_completion(kind, outcome, io),
            State::Ready(_) => {}
        }
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if let State::Hashing { size, source } = &mut self.state {
            source.pump(head, io, |_, _| {});
            match source.result() {
                None => return false,
                Some(Ok(hash)) => {
                    self.state = State::Ready(Ok(Frame::ResumeResponse { size: *size, hash: Some(hash) }));
                }
                Some(Err(failure)) => self.state = State::Ready(Err(failure.clone())),
            }
        }
        match &self.state {
            State::Ready(answer) if head => {
                match answer {
                    Ok(frame) => reply(frame, io),
                    Err(failure) => reply_failure(failure, io),
                }
                true
            }
            _ => false,
        }
    }

    fn state(&self) -> &'static str {
        match &self.state {
            State::Looking => "resume looking",
            State::Hashing { .. } => "resume hashing",
            State::Ready(_) => "resume ready",
        }
    }
}

/// The client's half.
pub(super) fn ask(target: Target, path: Vec<u8>) -> Simple {
    Simple::new(
        path,
        "cannot resume",
        move |ext| Frame::Resume { path: target.encode(ext) },
        |frame| match frame {
            Frame::ResumeResponse { size, hash } => Some(Reply::Resume { size, hash }),
            _ => None,
        },
    )
}
