//! Files that come in ranges between two hauls: begun and named over one connection, filled over all of them.
//!
//! ```text
//! server: RangeBegin -> Opening -> [Hashing what is there] -> RangeBegun{token}
//!         RangePut{token} Data.. Done, over any connection of the process -> Kept{chaining values of the range}
//!         RangeCommit{token, hash} -> Ok{hash}, or RangeAbandon{token} -> Ok
//!         Blocks -> Opening -> Hashing -> Kept
//! client: Match: RangeBegin or Blocks, and our own blocks hashed at the same time -> which of them are equal
//! ```
//! What arrives is proved range by range: both ends make the chaining values of its blocks, at their places in the file,
//! and the client compares them. Their merger is the hash of the whole, which the client commits. What an interrupted
//! transfer left is compared block by block, so that whatever is there counts, wherever it stands.
//!
//! A token names a file to every connection of the process that opened it. It protects nothing: who may ask for a range
//! may ask for the file.

use super::chunked;
use super::client::{Answer, Ask, Reply, Sent, Simple};
use super::hashing::Hashing;
use super::link::Incoming;
use super::server::{Verb, reply, reply_failure};
use super::{Cause, Failure, Io, Outcome};
use crate::backend::{FileId, Finish, FsOp, OpKind, OpenMode, Output, Place};
use crate::limits::MAX_RANGED_FILES;
use crate::session::dedup::block_count;
use crate::tree_hash::HASH_BLOCK_BYTES;
use crate::wire::frame::{Attributes, Caps, Frame, Hash, Preserve};
use crate::wire::path::Target;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const OPEN: u32 = 100;
const PUBLISH: u32 = 101;
const CLOSE: u32 = 102;

/// A file that was begun.
struct Begun {
    file: FileId,
    path: Vec<u8>,
    finish: Finish,
}

/// Those of one session.
#[derive(Clone, Default)]
pub(super) struct Files(Rc<RefCell<BTreeMap<u64, Begun>>>);

impl Files {
    fn take(&self, token: u64, what: &'static str) -> Result<Begun, Failure> {
        let begun = self.0.borrow_mut().remove(&token);
        begun.ok_or_else(|| Failure::rule(b"", what, "no such file was begun in this session"))
    }

    /// Answers RangeBegin.
    pub(super) fn begin(
        &self,
        place: Place,
        (size, attributes, preserve): (u64, Attributes, Preserve),
        keep: bool,
        io: &mut Io<'_, '_>,
    ) -> Result<Box<dyn Verb>, Failure> {
        let path = chunked::path_of(&place);
        if self.0.borrow().len() >= MAX_RANGED_FILES {
            return Err(Failure::rule(&path, "cannot put", "too many files in ranges at the same time"));
        }
        let token = chunked::next_token();
        let mode = match keep {
            true => OpenMode::Continue { size, token: Some(token) },
            false => OpenMode::Shared { size, token },
        };
        io.submit(OPEN, OpKind::Open { place, mode });
        let sync = io.terms.caps.has(Caps::SYNC);
        let finish = Finish { attributes: Some(attributes), preserve, sync, verify: None };
        let kept = if keep { size } else { 0 };
        let looking = Looking { path, kept, what: "cannot create", state: State::Opening };
        Ok(Box::new(Begin { files: self.clone(), token, finish, looking }))
    }

    /// Answers RangeCommit.
    pub(super) fn commit(&self, token: u64, hash: Hash, io: &mut Io<'_, '_>) -> Result<Box<dyn Verb>, Failure> {
        let Begun { file, path, finish } = self.take(token, "cannot commit")?;
        let verify = finish.preserve.has(Preserve::VERIFY).then_some(hash);
        io.submit(PUBLISH, OpKind::Publish { file, finish: Box::new(Finish { verify, ..finish }) });
        Ok(Box::new(End { path, hash: Some(hash), outcome: None }))
    }

    /// Answers RangeAbandon.
    pub(super) fn abandon(&self, token: u64, io: &mut Io<'_, '_>) -> Result<Box<dyn Verb>, Failure> {
        let Begun { file, path, .. } = self.take(token, "cannot abandon")?;
        io.submit(CLOSE, OpKind::Close { file });
        Ok(Box::new(End { path, hash: None, outcome: None }))
    }
}

enum State {
    Opening,
    Hashing(FileId, Hashing),
    Failed(Failure),
}

/// The leading blocks of a file, opened and hashed.
struct Looking {
    path: Vec<u8>,
    /// Bytes that count, at most.
    kept: u64,
    what: &'static str,
    state: State,
}

impl Looking {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        match (kind, outcome, &mut self.state) {
            (OpKind::Open { .. }, Ok(Output::Opened { file, attributes }), _) => {
                // Whole blocks, and the last one only if exactly the file may be there.
                let there = attributes.size.min(self.kept);
                let whole = if there == self.kept { block_count(there) } else { there / HASH_BLOCK_BYTES as u64 };
                let mut hashing = Hashing::new(whole, u64::MAX);
                hashing.advance(file, io);
                self.state = State::Hashing(file, hashing);
            }
            (OpKind::Open { .. }, Err(errno), _) => {
                self.state = State::Failed(Failure::here(&self.path, self.what, errno));
            }
            (OpKind::Fs(op), outcome, State::Hashing(file, hashing)) => {
                let FsOp::HashBlocks { first, .. } = *op else { return };
                let file = *file;
                match hashing.on_hashed(first, outcome) {
                    Ok(()) => hashing.advance(file, io),
                    Err(errno) => {
                        io.submit(CLOSE, OpKind::Close { file });
                        self.state = State::Failed(Failure::here(&self.path, "cannot read what is there", errno));
                    }
                }
            }
            _ => {}
        }
    }

    fn blocks(&self) -> Option<(FileId, Vec<Hash>)> {
        let State::Hashing(file, hashing) = &self.state else { return None };
        Some((*file, hashing.done()?.into_iter().map(|block| block.chaining).collect()))
    }

    fn state(&self) -> &'static str {
        match self.state {
            State::Opening => "range opening",
            State::Hashing(..) => "range hashing what is there",
            State::Failed(_) => "range failed",
        }
    }
}

/// The server's half of RangeBegin.
struct Begin {
    files: Files,
    token: u64,
    finish: Finish,
    looking: Looking,
}

impl Verb for Begin {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.looking.on_completion(kind, outcome, io);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if !head {
            return false;
        }
        if let State::Failed(failure) = &self.looking.state {
            reply_failure(failure, io);
            return true;
        }
        let Some((file, blocks)) = self.looking.blocks() else { return false };
        let begun = Begun { file, path: std::mem::take(&mut self.looking.path), finish: self.finish };
        self.files.0.borrow_mut().insert(self.token, begun);
        reply(&Frame::RangeBegun { token: self.token, blocks }, io);
        true
    }

    fn state(&self) -> &'static str {
        self.looking.state()
    }
}

/// The server's half of RangeCommit and RangeAbandon.
struct End {
    path: Vec<u8>,
    hash: Option<Hash>,
    outcome: Option<Outcome>,
}

impl Verb for End {
    fn on_completion(&mut self, _: OpKind, outcome: Outcome, _: &mut Io<'_, '_>) {
        self.outcome = Some(outcome);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        match &self.outcome {
            Some(Ok(_)) if head => reply(&Frame::Ok { hash: self.hash }, io),
            Some(Err(errno)) if head => reply_failure(&Failure::here(&self.path, "cannot create", *errno), io),
            _ => return false,
        }
        true
    }

    fn state(&self) -> &'static str {
        if self.hash.is_some() { "range naming" } else { "range abandoning" }
    }
}

/// The server's half of Blocks.
pub(super) struct Blocks {
    looking: Looking,
}

impl Blocks {
    pub(super) fn start(place: Place, length: u64, io: &mut Io<'_, '_>) -> Blocks {
        let path = chunked::path_of(&place);
        io.submit(OPEN, OpKind::Open { place, mode: OpenMode::Read });
        Blocks { looking: Looking { path, kept: length, what: "cannot open", state: State::Opening } }
    }
}

impl Verb for Blocks {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.looking.on_completion(kind, outcome, io);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if !head {
            return false;
        }
        if let State::Failed(failure) = &self.looking.state {
            reply_failure(failure, io);
            return true;
        }
        let Some((file, blocks)) = self.looking.blocks() else { return false };
        io.submit(CLOSE, OpKind::Close { file });
        reply(&Frame::Kept { blocks }, io);
        true
    }

    fn state(&self) -> &'static str {
        self.looking.state()
    }
}

/// The server's half of Ping.
pub(super) struct Pong;

impl Verb for Pong {
    fn on_completion(&mut self, _: OpKind, _: Outcome, _: &mut Io<'_, '_>) {}

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if head {
            reply(&Frame::Ok { hash: None }, io);
        }
        head
    }

    fn state(&self) -> &'static str {
        "pong"
    }
}

/// The client's half of Ping.
pub(super) fn ask_ping() -> Simple {
    let answered = |frame| matches!(frame, Frame::Ok { .. }).then_some(Reply::Done);
    Simple::new(Vec::new(), "cannot ask", |_| Frame::Ping, answered)
}

/// The client's half of RangeCommit.
pub(super) fn ask_commit(token: u64, hash: Hash, path: Vec<u8>) -> Simple {
    let request = move |_| Frame::RangeCommit { token, hash };
    Simple::new(path, "cannot put", request, |frame| match frame {
        Frame::Ok { hash: Some(hash) } => Some(Reply::Hash(hash)),
        _ => None,
    })
}

/// The client's half of RangeAbandon.
pub(super) fn ask_abandon(token: u64, path: Vec<u8>) -> Simple {
    let request = move |_| Frame::RangeAbandon { token };
    Simple::new(path, "cannot put", request, |frame| matches!(frame, Frame::Ok { .. }).then_some(Reply::Done))
}

/// Which way the file goes.
pub(super) enum Wanted {
    /// To the server: the file here, so many blocks of which may be there.
    Up { target: Target, size: u64, attributes: Attributes, preserve: Preserve, keep: bool },
    /// From the server: so many bytes of it may be here.
    Down { source: Target, there: u64 },
}

/// Begins a file in ranges, and finds out which of its blocks need not be moved.
pub(super) struct Match {
    wanted: Wanted,
    /// For messages: what is there, and what is here.
    paths: (Vec<u8>, Vec<u8>),
    /// Of ours: what is sent, or what an earlier transfer left.
    file: FileId,
    ours: Hashing,
    theirs: Option<(u64, Vec<Hash>)>,
    failure: Option<Failure>,
}

impl Match {
    /// The file here is open.
    pub(super) fn new(wanted: Wanted, paths: (Vec<u8>, Vec<u8>), file: FileId) -> Match {
        let blocks = match &wanted {
            Wanted::Up { size, keep: true, .. } => block_count(*size),
            Wanted::Up { .. } => 0,
            Wanted::Down { there, .. } => block_count(*there),
        };
        Match { wanted, paths, file, ours: Hashing::new(blocks, u64::MAX), theirs: None, failure: None }
    }

    fn request(&self, io: &Io<'_, '_>) -> Frame {
        let ext = io.terms.dialect.ext;
        match &self.wanted {
            &Wanted::Up { ref target, size, attributes, preserve, keep } => {
                Frame::RangeBegin { path: target.encode(ext), size, attributes, preserve, keep }
            }
            Wanted::Down { source, there } => Frame::Blocks { path: source.encode(ext), length: *there },
        }
    }
}

impl Ask for Match {
    fn prepare(&mut self, io: &mut Io<'_, '_>) {
        // Both ends hash at the same time; ours is limited once it is known what is there.
        self.ours.advance(self.file, io);
    }

    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        match io.link.frame(&self.request(io)) {
            Ok(()) => Sent::Whole,
            Err(error) => {
                self.failure = Some(Failure::rule(&self.paths.0, "cannot ask for", error.to_string()));
                Sent::Not
            }
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, _: &mut Io<'_, '_>) -> Result<bool, Failure> {
        let up = matches!(self.wanted, Wanted::Up { .. });
        match incoming {
            Incoming::Frame(Frame::RangeBegun { token, blocks }) if up => {
                self.ours.limit(blocks.len() as u64);
                self.theirs = Some((token, blocks));
            }
            Incoming::Frame(Frame::Kept { blocks }) if !up => {
                self.ours.limit(blocks.len() as u64);
                self.theirs = Some((0, blocks));
            }
            Incoming::Frame(Frame::Error { message, code }) => {
                let what = if up { "cannot put" } else { "cannot get" };
                self.ours.limit(0);
                self.failure =
                    Some(Failure { path: self.paths.0.clone(), what, cause: Cause::There { code, message } });
            }
            _ => {
                let why = "the server answered the beginning of a file in ranges with another reply";
                return Err(Failure::connection("protocol error", why));
            }
        }
        Ok(true)
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        let OpKind::Fs(op) = kind else { return };
        let FsOp::HashBlocks { first, .. } = *op else { return };
        match self.ours.on_hashed(first, outcome) {
            Ok(()) if self.failure.is_none() => self.ours.advance(self.file, io),
            Ok(()) => {}
            Err(errno) => {
                self.ours.limit(0);
                self.failure.get_or_insert(Failure::here(&self.paths.1, "cannot read", errno));
            }
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        if self.ours.is_busy() {
            return None;
        }
        if let Some(failure) = self.failure.take() {
            return Some(Err(failure));
        }
        let ours = self.ours.done()?;
        let (token, theirs) = self.theirs.take()?;
        let equal = ours.iter().zip(theirs).map(|(ours, theirs)| (ours.chaining == theirs).then_some(theirs));
        Some(Ok(Reply::Begun { token, blocks: equal.collect() }))
    }

    fn state(&self) -> &'static str {
        "range comparing what is there"
    }
}
