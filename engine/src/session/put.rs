//! Put: a file from the client to the server.
//!
//! ```text
//! client: loading -its turn-> Put [Meta] Data.. Commit{hash} | Done -> waits for Ok{hash}: compare
//! server: receiver -Commit: compare, then name the file | Done: name the file-> head -> Ok{hash} | Error
//! ```
//! Towards haul the server compares before the file gets its name. Towards base peers the client compares the hash in Ok,
//! after their rename, and says that the copy over there is bad. A source that cannot be read to its end is abandoned: with
//! COMMIT by a frame of its own, else by a Done that comes too early, which every server refuses.

use super::client::{Answer, Ask, Reply, Sent};
use super::link::Incoming;
use super::receiver::{Order, Receiver};
use super::server::{Body, Verb, reply, reply_failure};
use super::source::Source;
use super::{Cause, Failure, Io, Outcome};
use crate::backend::{Errno, Finish, OpKind, Place};
use crate::wire::frame::{Caps, ErrorCode, Ext, Frame, Hash, Preserve};
use crate::wire::path::Target;

/// The server's half.
pub(super) struct Serve {
    receiver: Receiver,
    replied: bool,
}

impl Serve {
    pub(super) fn start(
        place: Place,
        size: u64,
        offset: u64,
        overwrite: bool,
        io: &mut Io<'_, '_>,
    ) -> Result<Box<dyn Verb>, Failure> {
        let path = place.target.joined().as_bytes().to_vec();
        if offset > size {
            return Err(Failure::rule(&path, "cannot put", "the offset is past the declared size"));
        }
        let sync = io.terms.caps.has(Caps::SYNC);
        let finish = Finish { attributes: None, preserve: Preserve::default(), sync };
        let receiver = Receiver::start(Order { place, path, size, offset, overwrite, finish }, io);
        Ok(Box::new(Serve { receiver, replied: false }))
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.receiver.on_completion(&kind, outcome, io);
    }

    fn on_body(&mut self, body: Body, io: &mut Io<'_, '_>) {
        match body {
            Body::Meta(attributes, preserve) => self.receiver.set_attributes(attributes, preserve),
            Body::Piece(piece) => self.receiver.piece(piece, io),
            Body::Done => {
                if io.terms.ext(Ext::COMMIT) {
                    let rule = "it ended without the sender's hash";
                    let failure = Failure::rule(&self.receiver.order().path, "incomplete", rule);
                    self.receiver.fail(failure, io);
                }
                self.receiver.finish(None, io);
            }
            Body::Commit(hash) => self.receiver.finish(Some(hash), io),
            Body::Compressed => {
                let rule = "compressed content was not agreed on";
                let failure = Failure::rule(&self.receiver.order().path, "cannot put", rule);
                self.receiver.fail(failure, io);
            }
            Body::Abandon(code) => {
                let cause = Cause::There {
                    code: ErrorCode::ABANDONED,
                    message: format!("given up by the sender, code {}", code.0).into(),
                };
                let path = self.receiver.order().path.clone();
                self.receiver.fail(Failure { path, what: "given up by the sender", cause }, io);
                self.receiver.finish(None, io);
            }
        }
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if !head || self.replied {
            return false;
        }
        match self.receiver.result() {
            None => return false,
            Some(Ok((hash, _))) => {
                // The hash of a whole file; what was kept of an old one was not hashed.
                let hash = (self.receiver.order().offset == 0).then_some(hash);
                reply(&Frame::Ok { hash }, io);
            }
            Some(Err(failure)) => reply_failure(&failure, io),
        }
        self.replied = true;
        true
    }

    fn state(&self) -> &'static str {
        self.receiver.state()
    }
}

/// What the client sends and where to.
pub(super) struct Offered {
    pub(super) local: Place,
    /// For messages.
    pub(super) local_path: Vec<u8>,
    pub(super) remote: Target,
    /// For messages.
    pub(super) remote_path: Vec<u8>,
    pub(super) preserve: Preserve,
}

/// The client's half.
pub(super) struct Upload {
    offered: Offered,
    source: Option<Source>,
    announced: bool,
    sent: Option<Hash>,
    size: u64,
    failure: Option<Failure>,
    /// The server has answered with an Error; nothing more needs to be sent.
    refused: bool,
}

impl Upload {
    pub(super) fn new(offered: Offered) -> Upload {
        Upload { offered, source: None, announced: false, sent: None, size: 0, failure: None, refused: false }
    }

    fn announce(&mut self, io: &mut Io<'_, '_>) -> Sent {
        let Some(source) = &self.source else { return Sent::Later };
        let attributes = match source.opened() {
            None => return Sent::Later,
            Some(Err(failure)) => {
                self.failure = Some(failure.clone());
                return Sent::Not;
            }
            Some(Ok(attributes)) => attributes,
        };
        self.size = attributes.size;
        let path = self.offered.remote.encode(io.terms.dialect.ext);
        let put = Frame::Put { path, size: attributes.size, offset: 0, overwrite: true };
        if let Err(error) = io.link.frame(&put) {
            let failure = Failure::rule(&self.offered.local_path, "cannot send", error.to_string());
            self.give_up(failure, io);
            return Sent::Not;
        }
        if io.terms.ext(Ext::META) {
            // A time no clock can have does not stop a file: its attributes are left out.
            let _ = io.link.frame(&Frame::Meta { attributes, preserve: self.offered.preserve });
        }
        self.announced = true;
        Sent::Later
    }

    fn give_up(&mut self, failure: Failure, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.fail(failure.clone(), io);
        }
        self.failure.get_or_insert(failure);
    }

    /// Ends the body.
    fn end(&mut self, result: Result<Hash, ErrorCode>, io: &mut Io<'_, '_>) -> Sent {
        let frame = match (result, io.terms.ext(Ext::COMMIT)) {
            (Ok(hash), true) => Frame::Commit { hash },
            (Err(code), true) => Frame::Abandon { code },
            (_, false) => Frame::Done,
        };
        self.sent = result.ok();
        // Frames of fixed size always fit.
        let _ = io.link.frame(&frame);
        Sent::Whole
    }
}

impl Ask for Upload {
    fn prepare(&mut self, io: &mut Io<'_, '_>) {
        let (place, path) = (self.offered.local.clone(), self.offered.local_path.clone());
        self.source = Some(Source::start(place, path, 0, None, io));
    }

    fn read_ahead(&mut self, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.pump(false, io, |_, _| {});
        }
    }

    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        if !self.announced {
            let sent = self.announce(io);
            if !self.announced {
                return sent;
            }
        }
        if self.refused {
            return self.end(Err(ErrorCode::OTHER), io);
        }
        let Some(source) = &mut self.source else { return Sent::Later };
        source.pump(true, io, |content, io| io.link.data(content, io.cx));
        match source.result() {
            None => Sent::Later,
            Some(Ok(hash)) => self.end(Ok(hash), io),
            Some(Err(failure)) => {
                let failure = failure.clone();
                let code = failure.code();
                self.failure.get_or_insert(failure);
                self.end(Err(code), io)
            }
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, io: &mut Io<'_, '_>) -> Result<bool, Failure> {
        let path = || self.offered.remote_path.clone();
        match incoming {
            Incoming::Frame(Frame::Ok { hash }) if self.sent.is_some() => {
                if hash != self.sent {
                    let rule = "the server's copy has another hash; it is bad";
                    self.failure.get_or_insert(Failure::rule(&path(), "cannot verify", rule));
                }
                Ok(true)
            }
            // A body that ended too early has been accepted all the same: an empty rest of a file that changed.
            Incoming::Frame(Frame::Ok { .. }) if self.failure.is_some() => Ok(true),
            Incoming::Frame(Frame::Error { message, code }) => {
                let failure = Failure { path: path(), what: "cannot put", cause: Cause::There { code, message } };
                self.refused = true;
                self.give_up(failure, io);
                Ok(true)
            }
            _ => Err(Failure::connection("protocol error", "the server answered Put with another reply")),
        }
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.on_completion(kind, outcome, io);
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        Some(match (&self.failure, self.sent) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Some(hash)) => Ok(Reply::Moved { hash, size: self.size }),
            (None, None) => Err(Failure::here(&self.offered.local_path, "cannot send", Errno::IO)),
        })
    }

    fn state(&self) -> &'static str {
        match (&self.source, self.sent) {
            (_, Some(_)) => "put sent",
            (Some(source), None) => source.state(),
            (None, None) => "put waiting",
        }
    }
}
