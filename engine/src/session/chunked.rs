//! PutChunked, GetChunked and Truncate: ranges of a file that several connections carry, as base peers do it.
//!
//! ```text
//! client: Truncate{size} -> Ok, then on each connection PutChunked{offset, length} Data.. Done -> Ok
//!         on each connection GetChunked{offset, length} -> Data.. of exactly that length, Ok
//! ```
//! Nothing is transactional here: the ranges are written where the file stands, and no hash covers the whole. That is how
//! these three are defined; between haul peers files travel by Put and Get.

use super::receiver::{Order, Receiver, Way};
use super::server::{Body, Verb, reply, reply_failure};
use super::source::{Purpose, Source};
use super::{Failure, Io, Outcome, get};
use crate::backend::{FileId, Finish, OpKind, OpenMode, Output, Place};
use crate::wire::frame::{Caps, Frame, Preserve};

const OPEN: u32 = 75;
const FLUSH: u32 = 76;

fn path_of(place: &Place) -> Vec<u8> {
    place.target.joined().as_bytes().to_vec()
}

fn finish(io: &Io<'_, '_>) -> Finish {
    Finish { attributes: None, preserve: Preserve::default(), sync: io.terms.caps.has(Caps::SYNC), verify: None }
}

/// The server's half of PutChunked.
pub(super) struct Put {
    receiver: Receiver,
}

impl Put {
    pub(super) fn start(place: Place, offset: u64, length: u64, io: &mut Io<'_, '_>) -> Result<Box<dyn Verb>, Failure> {
        let path = path_of(&place);
        let Some(size) = offset.checked_add(length) else {
            return Err(Failure::rule(&path, "cannot put", "the range ends past what a file can hold"));
        };
        let finish = finish(io);
        let order = Order { place, path, size, offset, overwrite: true, way: Way::InPlace, unhashed: true, finish };
        Ok(Box::new(Put { receiver: Receiver::start(order, io) }))
    }
}

impl Verb for Put {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.receiver.on_completion(kind, outcome, io);
    }

    fn is_ready(&mut self, io: &mut Io<'_, '_>) -> bool {
        self.receiver.is_ready(io)
    }

    fn on_body(&mut self, body: Body, io: &mut Io<'_, '_>) {
        match body {
            Body::Data(len) => self.receiver.begin(len, io),
            Body::Packed(codec, original, len) => self.receiver.begin_packed(codec, original, len, io),
            Body::Piece(piece) => self.receiver.piece(piece, io),
            Body::DataEnd => self.receiver.end(io),
            // Done is always part of the body: replying before it would leave it to be taken for a request.
            Body::Done => self.receiver.finish(None, io),
            Body::Meta(..) | Body::Skip(_) | Body::Have(..) | Body::Commit(_) | Body::Abandon(_) => {
                let path = self.receiver.order().path.clone();
                self.receiver.fail(Failure::rule(&path, "cannot put", "this does not belong to a range"), io);
                self.receiver.finish(None, io);
            }
        }
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        match self.receiver.result().filter(|_| head) {
            None => return false,
            Some(Ok(_)) => reply(&Frame::Ok { hash: None }, io),
            Some(Err(failure)) => reply_failure(&failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        self.receiver.state()
    }
}

/// The server's half of GetChunked.
pub(super) struct Get {
    source: Source,
    path: Vec<u8>,
    end: Option<u64>,
    length: u64,
}

impl Get {
    pub(super) fn start(place: Place, offset: u64, length: u64, io: &mut Io<'_, '_>) -> Get {
        let path = path_of(&place);
        let purpose = Purpose { offset, limit: Some(length), hashed: false, ..Purpose::SEND };
        let source = Source::start(place, path.clone(), purpose, io);
        Get { source, path, end: offset.checked_add(length), length }
    }

    /// Refuses a range that is not all in the file, and an empty one of a file that is not empty.
    fn check(&mut self, io: &mut Io<'_, '_>) {
        let Some(Ok(attributes)) = self.source.opened() else { return };
        let inside = self.end.is_some_and(|end| end <= attributes.size);
        if !inside || (self.length == 0 && attributes.size > 0) {
            let rule = format!("the range is not part of its {} bytes", attributes.size);
            self.source.fail(Failure::rule(&self.path, "cannot get", rule), io);
        }
    }
}

impl Verb for Get {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        let opened = matches!(kind, OpKind::Open { .. });
        self.source.on_completion(kind, outcome, io);
        if opened {
            self.check(io);
        }
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        self.source.pump(head, io, get::send);
        match self.source.result().filter(|_| head) {
            None => return false,
            Some(Ok(_)) => reply(&Frame::Ok { hash: None }, io),
            Some(Err(failure)) => reply_failure(failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        self.source.state()
    }
}

enum Step {
    Opening,
    Flushing,
    Ready(Result<(), Failure>),
}

/// The server's half of Truncate.
pub(super) struct Truncate {
    path: Vec<u8>,
    step: Step,
}

impl Truncate {
    pub(super) fn start(place: Place, size: u64, io: &mut Io<'_, '_>) -> Truncate {
        let path = path_of(&place);
        io.submit(OPEN, OpKind::Open { place, mode: OpenMode::InPlace { truncate: Some(size) } });
        Truncate { path, step: Step::Opening }
    }

    fn flush(&mut self, file: FileId, io: &mut Io<'_, '_>) {
        self.step = Step::Flushing;
        io.submit(FLUSH, OpKind::Publish { file, finish: Box::new(finish(io)) });
    }
}

impl Verb for Truncate {
    fn on_completion(&mut self, _: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        match outcome {
            Ok(Output::Opened { file, .. }) => self.flush(file, io),
            Ok(_) => self.step = Step::Ready(Ok(())),
            Err(errno) => self.step = Step::Ready(Err(Failure::here(&self.path, "cannot truncate", errno))),
        }
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        match &self.step {
            Step::Ready(Ok(())) if head => reply(&Frame::Ok { hash: None }, io),
            Step::Ready(Err(failure)) if head => reply_failure(failure, io),
            _ => return false,
        }
        true
    }

    fn state(&self) -> &'static str {
        match self.step {
            Step::Opening => "truncate opening",
            Step::Flushing => "truncate flushing",
            Step::Ready(_) => "truncate ready",
        }
    }
}
