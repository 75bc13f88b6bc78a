//! Put: a file from the client to the server.
//!
//! ```text
//! client: loading -its turn-> Put [Meta] Data.. Commit{hash} | Done -> waits for Ok{hash}: compare
//!         opening -> hashing blocks -its turn-> Put [Meta] HaveBlocks -MissingBlocks-> Data.. (as above, see dedup.rs)
//! server: receiver -Commit: compare, then name the file | Done: name the file-> head -> Ok{hash} | Error
//! ```
//! Under FAST and FASTPUT nobody hashes a file that is sent as a whole: it ends with Done, and Ok carries no hash. What is
//! continued or offered in blocks is hashed all the same, and committed.
//!
//! Towards haul the server compares before the file gets its name. Towards base peers the client compares the hash in Ok,
//! after their rename, and says that the copy over there is bad. A source that cannot be read to its end is abandoned: with
//! COMMIT by a frame of its own, else by a Done that comes too early, which every server refuses.

use super::client::{Answer, Ask, Reply, Sent};
use super::dedup::{block_count, indices};
use super::link::Incoming;
use super::receiver::{Order, Receiver, Way};
use super::source::{Purpose, Source};
use super::verb::{Body, Verb, reply, reply_done, reply_failure};
use super::{Failure, Io, Outcome};
use crate::backend::{DirId, Errno, Finish, OpKind, Place};
use crate::limits::DEDUP_BYTES;
use crate::tree_hash::{BlockHash, HASH_BLOCK_BYTES};
use crate::wire::frame::{Caps, ErrorCode, Ext, Frame, Hash, Preserve, Unkept};
use crate::wire::path::Target;

/// The server's half.
pub(super) struct Serve {
    receiver: Receiver,
    store: Option<DirId>,
    /// It may end without a hash.
    unhashed: bool,
    /// The sender's hash, which the file has if it is published.
    committed: Option<Hash>,
    /// Blocks were offered, and what is missing of them was not answered yet.
    offered: bool,
    /// What is there was asked for, and not answered yet; the blocks, once it was.
    kept: Kept,
    replied: bool,
}

/// What a Put asks for.
pub(super) struct Request {
    pub(super) place: Place,
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) overwrite: bool,
    /// Where blocks that were seen before are.
    pub(super) store: Option<DirId>,
    /// What an earlier transfer left is continued.
    pub(super) continued: bool,
}

enum Kept {
    NotAsked,
    Asked,
    Answered(Vec<BlockHash>),
}

impl Serve {
    pub(super) fn start(request: Request, io: &mut Io<'_, '_>) -> Result<Box<dyn Verb>, Failure> {
        let Request { place, size, offset, overwrite, store, continued } = request;
        let path = place.target.joined().as_bytes().to_vec();
        if offset > size {
            return Err(Failure::rule(&path, "cannot put", "the offset is past the declared size"));
        }
        let sync = io.terms.caps.has(Caps::SYNC);
        let finish = Finish { attributes: None, preserve: Preserve::default(), sync, verify: None };
        let way = if continued { Way::Continued } else { Way::New };
        let unhashed = io.terms.puts_unhashed() && !continued && offset == 0;
        let order = Order { place, path, size, offset, overwrite, way, unhashed, alone: 0, finish };
        let receiver = Receiver::start(order, io);
        let kept = if continued { Kept::Asked } else { Kept::NotAsked };
        let (committed, offered, replied) = (None, false, false);
        Ok(Box::new(Serve { receiver, store, unhashed, committed, offered, kept, replied }))
    }

    fn skip(&mut self, offset: u64, io: &mut Io<'_, '_>) {
        match std::mem::replace(&mut self.kept, Kept::NotAsked) {
            Kept::Answered(blocks) => self.receiver.skip(offset, &blocks, false, io),
            kept => {
                self.kept = kept;
                let rule = "nothing was said to be there";
                self.receiver.fail(Failure::rule(&self.receiver.order().path, "cannot skip", rule), io);
            }
        }
    }

    fn offer(&mut self, block_size: u32, hashes: Vec<Hash>, io: &mut Io<'_, '_>) {
        if io.terms.caps.has(Caps::DEDUP) {
            self.offered = true;
            self.unhashed = false;
            self.receiver.offer_blocks(block_size, hashes, self.store, io);
        } else {
            let rule = "dedup was not agreed on";
            self.receiver.fail(Failure::rule(&self.receiver.order().path, "cannot put", rule), io);
        }
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.receiver.on_completion(kind, outcome, io);
    }

    fn is_ready(&mut self, io: &mut Io<'_, '_>) -> bool {
        self.receiver.is_ready(io)
    }

    fn on_body(&mut self, body: Body, io: &mut Io<'_, '_>) {
        match body {
            Body::Meta(attributes, preserve) => self.receiver.set_attributes(attributes, preserve),
            Body::Have(block_size, hashes) => self.offer(block_size, hashes, io),
            Body::Skip(offset) => self.skip(offset, io),
            Body::Data(len) => self.receiver.begin(len, io),
            Body::Packed(codec, original, len) => self.receiver.begin_packed(codec, original, len, io),
            Body::Piece(piece) => self.receiver.piece(piece, io),
            Body::DataEnd => self.receiver.end(io),
            Body::Done | Body::Cut => {
                let ended = matches!(body, Body::Done) && self.unhashed;
                if io.terms.ext(Ext::COMMIT) && !ended {
                    let rule = "it ended without the sender's hash";
                    let failure = Failure::rule(&self.receiver.order().path, "incomplete", rule);
                    self.receiver.fail(failure, io);
                }
                self.receiver.finish(None, io);
            }
            Body::Commit(hash) => {
                self.committed = Some(hash);
                self.receiver.finish(Some(hash), io);
            }
            Body::Abandon(code) => {
                let message = format!("given up by the sender, code {}", code.0).into_bytes();
                let path = &self.receiver.order().path;
                let failure = Failure::there(path, "given up by the sender", ErrorCode::ABANDONED, message);
                self.receiver.fail(failure, io);
                self.receiver.finish(None, io);
            }
        }
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if !head || self.replied {
            return false;
        }
        if self.offered
            && let Some(bitmap) = self.receiver.missing_blocks(io)
        {
            self.offered = false;
            reply(&Frame::MissingBlocks { bitmap }, io);
        }
        if matches!(self.kept, Kept::Asked)
            && let Some(blocks) = self.receiver.kept_blocks()
        {
            reply(&Frame::Kept { blocks: blocks.iter().map(|block| block.chaining).collect() }, io);
            self.kept = Kept::Answered(blocks);
        }
        match self.receiver.result() {
            None => return false,
            Some(Ok((hash, _))) => {
                // The hash of a whole file; what was kept of an old one was not hashed.
                let hash = hash.or(self.committed).filter(|_| self.receiver.order().offset == 0);
                reply_done(hash, self.receiver.unkept(), io);
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
    /// Its size as far as it is known.
    pub(super) size: u64,
    /// What an earlier transfer left over there is continued.
    pub(super) continued: bool,
    /// So many bytes are over there under the final name, and are right: only the rest is sent.
    pub(super) append: Option<u64>,
}

enum Phase {
    /// The source is being opened, and hashed where blocks are to be offered.
    Preparing,
    /// Blocks were offered; the hashes of all of them.
    AwaitMissing(Vec<BlockHash>),
    /// What is there was asked for; meanwhile our blocks are hashed.
    AwaitKept,
    /// What is there; our hashes of as many blocks are still being made.
    Comparing(Vec<Hash>),
    Sending,
}

/// The client's half.
pub(super) struct Upload {
    offered: Offered,
    source: Option<Source>,
    phase: Phase,
    announced: bool,
    /// All of it was sent, and has this hash, if anybody knows.
    sent: Option<Option<Hash>>,
    size: u64,
    failure: Option<Failure>,
    /// Blocks were offered: the server fills in those that it has between those that come.
    offers: bool,
    /// The server has answered with an Error; nothing more needs to be sent.
    refused: bool,
}

impl Upload {
    pub(super) fn new(offered: Offered) -> Upload {
        let (phase, source) = (Phase::Preparing, None);
        Upload {
            offered,
            source,
            phase,
            announced: false,
            sent: None,
            size: 0,
            failure: None,
            offers: false,
            refused: false,
        }
    }

    fn offers_blocks(&self, io: &Io<'_, '_>) -> bool {
        io.terms.caps.has(Caps::DEDUP)
            && self.offered.size >= DEDUP_BYTES
            && !self.continues(io)
            && self.offered.append.is_none()
    }

    fn offset(&self) -> u64 {
        self.offered.append.unwrap_or(0)
    }

    fn continues(&self, io: &Io<'_, '_>) -> bool {
        self.offered.continued && io.terms.ext(Ext::RESUME)
    }

    /// Nobody wants the hash.
    fn is_unhashed(&self, io: &Io<'_, '_>) -> bool {
        io.terms.puts_unhashed() && !self.continues(io) && !self.offers_blocks(io) && self.offered.append.is_none()
    }

    fn announce(&mut self, io: &mut Io<'_, '_>) -> Sent {
        let offers = self.offers_blocks(io);
        let Some(source) = &mut self.source else { return Sent::Later };
        let attributes = match source.opened() {
            None => return Sent::Later,
            Some(Err(failure)) => {
                self.failure = Some(failure.clone());
                return Sent::Not;
            }
            Some(Ok(attributes)) => attributes,
        };
        let blocks = if offers {
            source.hash_blocks(block_count(attributes.size), true);
            source.pump(true, io, |_, _| {});
            match source.hashed_blocks() {
                Some(blocks) => Some(blocks),
                None => return Sent::Later,
            }
        } else {
            None
        };
        self.size = attributes.size;
        let path = self.offered.remote.encode(io.terms.dialect.ext);
        let continues = self.continues(io);
        let put = match continues {
            true => Frame::Continue { path, size: attributes.size },
            false => Frame::Put { path, size: attributes.size, offset: self.offset(), overwrite: true },
        };
        if let Err(error) = io.link.frame(&put) {
            let failure = Failure::rule(&self.offered.local_path, "cannot send", error.to_string());
            self.give_up(failure, io);
            return Sent::Not;
        }
        if io.terms.ext(Ext::META) {
            // A time no clock can have does not stop a file: its attributes are left out.
            // What has no hash cannot be held against it; whoever wants that asks for one afterwards.
            let without = if self.is_unhashed(io) { Preserve::VERIFY } else { Preserve::default() };
            let preserve = Preserve(self.offered.preserve.0 & !without.0);
            let _ = io.link.frame(&Frame::Meta { attributes, preserve });
        }
        self.announced = true;
        self.phase = if continues { Phase::AwaitKept } else { Phase::Sending };
        if let Some(blocks) = blocks {
            self.offer(blocks, io);
        }
        Sent::Later
    }

    /// Asks which blocks are missing over there. More of them than fit a frame are all sent.
    fn offer(&mut self, blocks: Vec<BlockHash>, io: &mut Io<'_, '_>) {
        let hashes = blocks.iter().map(|block| block.plain).collect();
        let have = Frame::HaveBlocks { block_size: HASH_BLOCK_BYTES as u32, hashes };
        match io.link.frame(&have) {
            Ok(()) => (self.phase, self.offers) = (Phase::AwaitMissing(blocks), true),
            Err(_) => {
                if let Some(source) = &mut self.source {
                    source.send_from(0, &[]);
                }
            }
        }
    }

    fn on_missing(&mut self, bitmap: &[u8], io: &mut Io<'_, '_>) {
        let Phase::AwaitMissing(blocks) = std::mem::replace(&mut self.phase, Phase::Sending) else { return };
        let missing = indices(bitmap, blocks.len() as u64);
        if let Some(source) = &mut self.source {
            let sent: u64 = missing.iter().map(|&index| super::dedup::block_bytes(index, source.end()) as u64).sum();
            io.progress.skipped(self.size.saturating_sub(sent));
            source.send_blocks(blocks, missing);
        }
    }

    /// What is there is proved: the blocks that are equal from the beginning on need not be sent.
    fn compare(&mut self, io: &mut Io<'_, '_>) {
        let (Phase::Comparing(theirs), Some(source)) = (&self.phase, &mut self.source) else { return };
        source.hash_blocks(theirs.len() as u64, false);
        source.pump(true, io, |_, _| {});
        let Some(ours) = source.hashed_blocks() else { return };
        let equal = ours.iter().zip(theirs).take_while(|(ours, theirs)| ours.chaining == **theirs).count();
        let offset = (equal as u64 * HASH_BLOCK_BYTES as u64).min(self.size);
        source.send_from(offset, &ours[..equal]);
        io.progress.skipped(offset);
        // Frames of fixed size always fit.
        let _ = io.link.frame(&Frame::Skip { offset });
        self.phase = Phase::Sending;
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
            (Ok(_), true) if self.is_unhashed(io) => Frame::Done,
            (Ok(hash), true) => Frame::Commit { hash },
            (Err(code), true) => Frame::Abandon { code },
            (_, false) => Frame::Done,
        };
        self.sent = result.ok().map(|hash| Some(hash).filter(|_| !self.is_unhashed(io)));
        // Frames of fixed size always fit.
        let _ = io.link.frame(&frame);
        Sent::Whole
    }
}

impl Ask for Upload {
    fn prepare(&mut self, io: &mut Io<'_, '_>) {
        let (place, path) = (self.offered.local.clone(), self.offered.local_path.clone());
        io.progress.skipped(self.offset());
        let held = self.offers_blocks(io) || self.continues(io);
        let whole_or_nothing = !io.terms.ext(Ext::COMMIT);
        let hashed = !self.is_unhashed(io);
        let purpose = Purpose { offset: self.offset(), hashed, held, whole_or_nothing, ..Purpose::SEND };
        self.source = Some(Source::start(place, path, purpose, io));
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
        self.compare(io);
        let Some(source) = &mut self.source else { return Sent::Later };
        if let Phase::AwaitKept = self.phase {
            // Both ends hash at the same time; ours is limited once it is known what is there.
            source.hash_blocks(block_count(self.size), false);
            source.pump(true, io, |_, _| {});
        }
        if !matches!(self.phase, Phase::Sending) && !matches!(source.result(), Some(Err(_))) {
            return Sent::Later;
        }
        source.pump(true, io, super::get::send);
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
            Incoming::Frame(Frame::MissingBlocks { bitmap }) if matches!(self.phase, Phase::AwaitMissing(_)) => {
                self.on_missing(&bitmap, io);
                Ok(false)
            }
            Incoming::Frame(Frame::Kept { blocks }) if matches!(self.phase, Phase::AwaitKept) => {
                self.phase = Phase::Comparing(blocks);
                Ok(false)
            }
            Incoming::Frame(Frame::Ok { hash }) if self.sent.is_some_and(|sent| sent.is_some() || hash.is_none()) => {
                // Of what was appended to no server says a hash: the whole is asked for afterwards.
                let appended = self.offset() > 0 && hash.is_none();
                if Some(hash) != self.sent && !appended {
                    let rule = "the server's copy has another hash; it is bad";
                    self.failure.get_or_insert(Failure::rule(&path(), "cannot verify", rule));
                }
                Ok(true)
            }
            // A body that ended too early has been accepted all the same: an empty rest of a file that changed.
            Incoming::Frame(Frame::Ok { .. }) if self.failure.is_some() => Ok(true),
            Incoming::Frame(Frame::Error { message, code }) => {
                let failure = Failure::there(&path(), "cannot put", code, message);
                self.refused = true;
                self.phase = Phase::Sending;
                self.give_up(failure, io);
                Ok(true)
            }
            _ => Err(Failure::protocol("the server answered Put with another reply")),
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
            (None, Some(hash)) => {
                let hash = hash.filter(|_| self.offset() == 0);
                let grew = self.source.as_ref().is_some_and(Source::grew);
                Ok(Reply::Moved { hash, size: self.size, grew })
            }
            (None, None) => Err(Failure::here(&self.offered.local_path, "cannot send", Errno::IO)),
        })
    }

    fn work(&self) -> Option<u64> {
        // It hashes what is there, flushes, or reads all of it again at the end.
        let at_work = self.offers || matches!(self.phase, Phase::AwaitKept) || self.sent.is_some();
        Some(if at_work { self.size } else { 0 })
    }

    fn unkept(&self) -> (&[u8], Unkept) {
        (&self.offered.remote_path, Unkept::default())
    }

    fn state(&self) -> &'static str {
        match (&self.phase, &self.source, self.sent) {
            (_, _, Some(_)) => "put sent",
            (Phase::AwaitMissing(_), ..) => "put offering blocks",
            (Phase::AwaitKept | Phase::Comparing(_), ..) => "put comparing what is there",
            (_, Some(source), None) => source.state(),
            (_, None, None) => "put waiting",
        }
    }
}
