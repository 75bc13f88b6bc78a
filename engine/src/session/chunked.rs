//! PutChunked, GetChunked and Truncate: ranges of a file that several connections carry, as base peers do it.
//!
//! ```text
//! client: Truncate{size} -> Ok, then on each connection PutChunked{offset, length} Data.. Done -> Ok
//!         on each connection GetChunked{offset, length} -> Data.. of exactly that length, Ok
//! ```
//! Nothing is transactional on the server here: the ranges are written where the file stands, and no hash covers the whole.
//! That is how these three are defined. The client hashes the blocks of its ranges, and whoever has the whole file (jobs.rs)
//! compares their hash with the server's of the whole. Between two hauls (RANGE) a range goes up by RangePut to a file that
//! was begun before (range.rs), and each range, either way, is proved by the chaining values of its blocks.

use super::client::{Answer, Ask, Reply, Sent, Simple};
use super::link::Incoming;
use super::range::{Scope, Writer};
use super::receiver::{Order, Receiver, Way};
use super::source::{Purpose, Source};
use super::verb::{Body, Verb, reply, reply_failure};
use super::{Failure, Io, Outcome, get};
use crate::backend::{DirId, Errno, FileId, Finish, OpKind, OpenMode, Output, Place};
use crate::queue::Range;
use crate::tree_hash::HASH_BLOCK_BYTES;
use crate::wire::frame::{Attributes, Caps, Ext, Frame, Hash, Preserve};
use crate::wire::path::{RequestPath, Target};

const OPEN: u32 = 75;
const FLUSH: u32 = 76;

/// Names the next attempt at a file in ranges. Random: whoever is let in could name the files of others if he could guess.
pub(super) fn next_token() -> Result<u64, Errno> {
    getrandom::u64().map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno))
}

pub(super) fn path_of(place: &Place) -> Vec<u8> {
    place.target.joined().as_bytes().to_vec()
}

/// True where each range is proved by the chaining values of its blocks, which both ends make.
fn is_proved(io: &Io<'_, '_>) -> bool {
    io.terms.ext(Ext::RANGE) && !io.terms.caps.has(Caps::FAST)
}

fn finish(io: &Io<'_, '_>) -> Finish {
    Finish { attributes: None, preserve: Preserve::default(), sync: io.terms.caps.has(Caps::SYNC), verify: None }
}

/// The server's half of PutChunked.
pub(super) struct Put {
    receiver: Receiver,
    /// Of a range of a file that others write to as well, while this one does.
    writer: Option<Writer>,
    /// The chaining values of such a range, once they count.
    kept: Vec<Hash>,
}

/// Why a range does not count that came as it should.
const REVOKED: &str = "the same range was begun again, or the file was ended";

impl Put {
    pub(super) fn start(place: Place, offset: u64, length: u64, io: &mut Io<'_, '_>) -> Result<Box<dyn Verb>, Failure> {
        let path = path_of(&place);
        let Some(size) = offset.checked_add(length) else {
            return Err(Failure::rule(&path, "cannot put", "the range ends past what a file can hold"));
        };
        let finish = finish(io);
        let order =
            Order { place, path, size, offset, overwrite: true, way: Way::InPlace, unhashed: true, alone: 0, finish };
        Ok(Box::new(Put { receiver: Receiver::start(order, io), writer: None, kept: Vec::new() }))
    }

    /// Of RangePut: a range of a file that was begun by a session of this scope.
    pub(super) fn join(
        (root, scope): (DirId, &Scope),
        token: u64,
        (offset, length): (u64, u64),
        io: &mut Io<'_, '_>,
    ) -> Result<Box<dyn Verb>, Failure> {
        let end = offset.checked_add(length).filter(|_| offset.is_multiple_of(HASH_BLOCK_BYTES as u64));
        let Some(size) = end else {
            return Err(Failure::rule(b"", "cannot put", "the range does not begin where a block does"));
        };
        let writer = Writer::new(token, (offset, length), scope, io.cx.waker)?;
        // The token says which file; the root, only whose backend.
        let target = Target { operand: RequestPath::default(), below: None };
        let order = Order {
            place: Place { dir: root, target },
            path: Vec::new(),
            size,
            offset,
            overwrite: true,
            way: Way::Joined(token),
            unhashed: false,
            alone: 0,
            finish: finish(io),
        };
        Ok(Box::new(Put { receiver: Receiver::start(order, io), writer: Some(writer), kept: Vec::new() }))
    }

    /// Lets the range count once it is there, and gives it up when it no longer may be written.
    fn watch(&mut self, io: &mut Io<'_, '_>) {
        let Some(writer) = &self.writer else { return };
        if self.receiver.result().is_none() && writer.is_revoked() {
            self.receiver.fail(Failure::rule(b"", "cannot put", REVOKED), io);
        }
        // Nothing of it is on its way any more.
        if let Some(result) = self.receiver.result()
            && let Some(writer) = self.writer.take()
            && result.is_ok()
        {
            self.kept = self.receiver.take_range();
            if !writer.done(&self.kept) {
                self.receiver.refuse(Failure::rule(b"", "cannot put", REVOKED));
            }
        }
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
            Body::Done | Body::Cut => self.receiver.finish(None, io),
            Body::Meta(..) | Body::Skip(_) | Body::Have(..) | Body::Commit(_) | Body::Abandon(_) => {
                let path = self.receiver.order().path.clone();
                self.receiver.fail(Failure::rule(&path, "cannot put", "this does not belong to a range"), io);
                self.receiver.finish(None, io);
            }
        }
    }

    fn let_go(&mut self, io: &mut Io<'_, '_>) -> bool {
        if self.writer.is_some() {
            self.receiver.fail(Failure::rule(b"", "cannot put", "the session has ended"), io);
            self.watch(io);
        }
        self.writer.is_none()
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        self.watch(io);
        match self.receiver.result().filter(|_| head) {
            None => return false,
            Some(Ok(_)) => match self.receiver.order().way {
                Way::Joined(_) => reply(&Frame::Kept { blocks: std::mem::take(&mut self.kept) }, io),
                _ => reply(&Frame::Ok { hash: None }, io),
            },
            Some(Err(failure)) => reply_failure(&failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        if self.receiver.result().is_some() { "range put" } else { "range being put" }
    }
}

/// The server's half of GetChunked.
pub(super) struct Get {
    source: Source,
    path: Vec<u8>,
    end: Option<u64>,
    length: u64,
    announced: bool,
    /// Its reply ends with the chaining values of what was sent.
    hashed: bool,
}

impl Get {
    pub(super) fn start(place: Place, offset: u64, length: u64, io: &mut Io<'_, '_>) -> Get {
        let path = path_of(&place);
        // Between two hauls each range is proved by itself.
        let hashed = is_proved(io) && offset.is_multiple_of(HASH_BLOCK_BYTES as u64);
        let purpose = Purpose { offset, limit: Some(length), hashed, ..Purpose::SEND };
        let mut source = Source::start(place, path.clone(), purpose, io);
        if hashed {
            source.hash_range();
        }
        Get { source, path, end: offset.checked_add(length), length, announced: false, hashed }
    }

    /// Says what is coming, once it is known. False until then.
    fn announce(&mut self, io: &mut Io<'_, '_>) -> bool {
        if !self.announced
            && let Some(Ok(attributes)) = self.source.opened()
        {
            self.announced = true;
            if io.terms.ext(Ext::RANGE) {
                reply(&Frame::Meta { attributes, preserve: Preserve::default() }, io);
            }
        }
        self.announced
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
        let turn = head && self.announce(io);
        self.source.pump(turn, io, get::send);
        match self.source.result().filter(|_| head) {
            None => return false,
            Some(Ok(_)) => {
                if self.hashed {
                    reply(&Frame::Kept { blocks: self.source.take_range() }, io);
                }
                reply(&Frame::Ok { hash: None }, io);
            }
            Some(Err(failure)) => reply_failure(failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        if self.source.result().is_some() { "range got" } else { "range being got" }
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

/// The client's half of Truncate.
pub(super) fn ask_truncate(target: Target, size: u64, path: Vec<u8>) -> Simple {
    let request = move |ext| Frame::Truncate { path: target.encode(ext), size };
    Simple::new(path, "cannot put", request, |frame| matches!(frame, Frame::Ok { .. }).then_some(Reply::Done))
        .with_work(Some(size))
}

/// One range of a file, here and there.
pub(super) struct Part {
    pub(super) local: Place,
    /// For messages.
    pub(super) local_path: Vec<u8>,
    pub(super) remote: Target,
    /// For messages.
    pub(super) remote_path: Vec<u8>,
    pub(super) range: Range,
}

/// The client's half of GetChunked.
pub(super) struct Fetch {
    part: Part,
    /// Of the file, as it must be.
    expected: Attributes,
    receiver: Option<Receiver>,
    /// What the server says of the blocks, where each range is proved.
    theirs: Option<Vec<Hash>>,
    proved: bool,
    refused: Option<Failure>,
}

impl Fetch {
    pub(super) fn new(part: Part, expected: Attributes) -> Fetch {
        Fetch { part, expected, receiver: None, theirs: None, proved: false, refused: None }
    }

    fn give_up(&mut self, failure: Failure, io: &mut Io<'_, '_>) {
        match &mut self.receiver {
            Some(receiver) => {
                receiver.fail(failure, io);
                receiver.finish(None, io);
            }
            None => _ = self.refused.get_or_insert(failure),
        }
    }

    fn receiver(&mut self, io: &mut Io<'_, '_>) -> &mut Receiver {
        let Part { local, local_path, range, .. } = &self.part;
        self.receiver.get_or_insert_with(|| {
            let order = Order {
                place: local.clone(),
                path: local_path.clone(),
                size: range.offset + range.length,
                offset: range.offset,
                overwrite: true,
                way: Way::Joined(range.token),
                unhashed: false,
                alone: 0,
                finish: Finish { attributes: None, preserve: Preserve::default(), sync: false, verify: None },
            };
            Receiver::start(order, io)
        })
    }
}

impl Ask for Fetch {
    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        let path = self.part.remote.encode(io.terms.dialect.ext);
        let Range { offset, length, .. } = self.part.range;
        match io.link.frame(&Frame::GetChunked { path, offset, length }) {
            Ok(()) => Sent::Whole,
            Err(error) => {
                self.refused = Some(Failure::rule(&self.part.remote_path, "cannot ask for", error.to_string()));
                Sent::Not
            }
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, io: &mut Io<'_, '_>) -> Result<bool, Failure> {
        match incoming {
            Incoming::Frame(Frame::Ok { .. }) if self.theirs.is_some() || !is_proved(io) => {
                self.proved = is_proved(io);
                self.receiver(io).finish(None, io);
                return Ok(true);
            }
            Incoming::Frame(Frame::Error { message, code }) => {
                let failure = Failure::there(&self.part.remote_path, "cannot get", code, message).of_source();
                self.give_up(failure, io);
                return Ok(true);
            }
            Incoming::Frame(Frame::Meta { attributes, .. }) if self.receiver.is_none() => {
                // All ranges must be of one file.
                // Another login may be shown another file by its path.
                let owned = |of: Attributes| (of.mode, of.uid, of.gid);
                let same_owner = owned(attributes) == owned(self.expected);
                let found = (attributes.size, attributes.mtime);
                self.receiver(io);
                if !same_owner || found != (self.expected.size, self.expected.mtime) {
                    let failure = Failure::here(&self.part.remote_path, "cannot get", Errno::CHANGED);
                    self.receiver(io).fail(failure, io);
                }
            }
            Incoming::Frame(Frame::Kept { blocks }) if self.theirs.is_none() && is_proved(io) => {
                self.theirs = Some(blocks);
            }
            Incoming::Frame(_) => {
                return Err(Failure::protocol("the server answered GetChunked with another reply"));
            }
            Incoming::Data { len } => self.receiver(io).begin(len, io),
            Incoming::Compressed { codec, original, len } => self.receiver(io).begin_packed(codec, original, len, io),
            Incoming::Piece(piece) => self.receiver(io).piece(piece, io),
            Incoming::DataEnd => self.receiver(io).end(io),
        }
        Ok(false)
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        if let Some(receiver) = &mut self.receiver {
            receiver.on_completion(kind, outcome, io);
        }
    }

    fn is_ready(&mut self, io: &mut Io<'_, '_>) -> bool {
        self.receiver.as_mut().is_none_or(|receiver| receiver.is_ready(io))
    }

    fn answer(&mut self) -> Option<Answer> {
        if let Some(failure) = &self.refused {
            return Some(Err(failure.clone()));
        }
        let receiver = self.receiver.as_mut()?;
        if let Err(failure) = receiver.result()? {
            return Some(Err(failure));
        }
        let ours = receiver.take_range();
        if self.proved && self.theirs.as_ref() != Some(&ours) {
            return Some(Err(Failure::here(&self.part.local_path, "not published", Errno::HASH_MISMATCH)));
        }
        Some(Ok(Reply::Range(ours)))
    }

    fn state(&self) -> &'static str {
        self.receiver.as_ref().map_or("range asked for", |_| "range received")
    }
}

/// The client's half of PutChunked.
pub(super) struct Send {
    part: Part,
    /// Of the file, as it must be.
    expected: Attributes,
    source: Option<Source>,
    announced: bool,
    /// All of the range and Done are out.
    sent: Option<Vec<Hash>>,
    failure: Option<Failure>,
}

impl Send {
    pub(super) fn new(part: Part, expected: Attributes) -> Send {
        Send { part, expected, source: None, announced: false, sent: None, failure: None }
    }

    fn give_up(&mut self, failure: Failure, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.fail(failure.clone(), io);
        }
        self.failure.get_or_insert(failure);
    }

    /// Announces the range once the file is open. `None` when it is announced.
    fn announce(&mut self, io: &mut Io<'_, '_>) -> Option<Sent> {
        let opened = self.source.as_ref().and_then(Source::opened);
        let refused = match opened {
            None => return Some(Sent::Later),
            Some(Err(failure)) => Some(failure.clone()),
            // All ranges must be of one file, and the connections open it each for itself.
            Some(Ok(found)) if (found.size, found.mtime) != (self.expected.size, self.expected.mtime) => {
                Some(Failure::here(&self.part.local_path, "cannot read", Errno::CHANGED))
            }
            Some(Ok(_)) => {
                let Range { offset, length, there: token, .. } = self.part.range;
                let asked = io.link.frame(&if io.terms.ext(Ext::RANGE) {
                    Frame::RangePut { token, offset, length }
                } else {
                    Frame::PutChunked { path: self.part.remote.encode(io.terms.dialect.ext), offset, length }
                });
                asked.err().map(|error| Failure::rule(&self.part.local_path, "cannot send", error.to_string()))
            }
        };
        if let Some(failure) = refused {
            self.give_up(failure, io);
            return Some(Sent::Not);
        }
        self.announced = true;
        None
    }
}

impl Ask for Send {
    fn prepare(&mut self, io: &mut Io<'_, '_>) {
        let (place, path, range) = (self.part.local.clone(), self.part.local_path.clone(), self.part.range);
        let purpose = Purpose { offset: range.offset, limit: Some(range.length), ..Purpose::SEND };
        let mut source = Source::start(place, path, purpose, io);
        source.hash_range();
        self.source = Some(source);
    }

    fn read_ahead(&mut self, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.pump(false, io, |_, _| {});
        }
    }

    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        if !self.announced
            && let Some(sent) = self.announce(io)
        {
            return sent;
        }
        let Some(source) = &mut self.source else { return Sent::Later };
        source.pump(true, io, get::send);
        match source.result() {
            None => return Sent::Later,
            Some(Ok(_)) => self.sent = Some(source.take_range()),
            Some(Err(failure)) => _ = self.failure.get_or_insert(failure.clone()),
        }
        // A Done that comes too early is refused by every server. Frames of fixed size always fit.
        let _ = io.link.frame(&Frame::Done);
        Sent::Whole
    }

    fn on_incoming(&mut self, incoming: Incoming, io: &mut Io<'_, '_>) -> Result<bool, Failure> {
        match incoming {
            // Some servers do not wait for Done, but all of them for the last byte.
            Incoming::Frame(Frame::Ok { .. }) if self.announced && !io.terms.ext(Ext::RANGE) => Ok(true),
            Incoming::Frame(Frame::Kept { blocks }) if self.announced && io.terms.ext(Ext::RANGE) => {
                if self.sent.as_ref() != Some(&blocks) {
                    let failure = Failure::here(&self.part.remote_path, "not published", Errno::HASH_MISMATCH);
                    self.give_up(failure, io);
                }
                Ok(true)
            }
            Incoming::Frame(Frame::Error { message, code }) if self.announced => {
                self.give_up(Failure::there(&self.part.remote_path, "cannot put", code, message), io);
                Ok(true)
            }
            _ => Err(Failure::protocol("the server answered PutChunked with another reply")),
        }
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        if let Some(source) = &mut self.source {
            source.on_completion(kind, outcome, io);
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        Some(match (&self.failure, self.sent.take()) {
            (Some(failure), _) => Err(failure.clone()),
            (None, Some(chaining)) => Ok(Reply::Range(chaining)),
            (None, None) => Err(Failure::here(&self.part.local_path, "cannot send", Errno::IO)),
        })
    }

    fn work(&self) -> Option<u64> {
        Some(if self.sent.is_some() { self.part.range.length } else { 0 })
    }

    fn state(&self) -> &'static str {
        if self.announced { "range sent" } else { "range waiting" }
    }
}
