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
//! A token names a file to the connections that may write to it: those of the same scope, which are the ones that proved
//! to know the same secret. It is random, so that nobody else who is let in there can name a file that he was not told of.
//! The chaining values are kept here as well, and a file of which blocks are missing, or whose blocks make another hash
//! than the committed one, gets no name.
//!
//! ```text
//! RangePut: written -> done: its blocks count
//!                  \-> revoked, by a range that overlaps it or by RangeCommit: what is on its way is waited for
//! RangeCommit: revokes what is open -> waits until none is -> compares -> names
//! ```
//! So nothing is written any more to a file that was compared. Where two ranges were written to the same place at the same
//! time nobody knows whose bytes stayed, and the whole is read again for its hash.

use super::chunked;
use super::client::{Answer, Ask, Reply, Sent, Simple};
use super::hashing::Hashing;
use super::link::Incoming;
use super::verb::{Verb, reply, reply_done, reply_failure, unkept};
use super::{Failure, Io, Outcome};
use crate::backend::{Errno, FileId, Finish, FsOp, OpKind, OpenMode, Output, Place, Waker};
use crate::limits::{MAX_RANGED_FILES, MAX_RANGES, RANGE_BYTES};
use crate::session::dedup::block_count;
use crate::tree_hash::{HASH_BLOCK_BYTES, TreeHash};
use crate::wire::MAX_HASHES;
use crate::wire::frame::{Attributes, Caps, Ext, Frame, Hash, Preserve};
use crate::wire::path::Target;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const OPEN: u32 = 100;
const PUBLISH: u32 = 101;
const CLOSE: u32 = 102;

/// Names the sessions that may write to each other's files in ranges: those that proved to know the same secret.
pub(super) type Scope = Hash;

/// The scope of a session that has nothing in common with any other.
pub(super) fn new_scope() -> Scope {
    static SCOPES: AtomicU64 = AtomicU64::new(1);
    let mut scope = [0; 32];
    scope[..8].copy_from_slice(&SCOPES.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    scope
}

/// A range that is being written.
struct Open {
    writer: u64,
    /// The numbers of its blocks.
    blocks: std::ops::Range<u64>,
    revoked: bool,
}

/// What is there of a file that was begun.
struct There {
    scope: Scope,
    /// Chaining values by the number of the block.
    blocks: BTreeMap<u64, Hash>,
    open: Vec<Open>,
    /// Two ranges were written to the same place at the same time.
    overlapped: bool,
    /// It is being committed: nobody writes to it any more.
    sealed: bool,
}

/// The files that were begun, by their tokens. Connections of one process may be on several threads.
static THERE: Mutex<BTreeMap<u64, There>> = Mutex::new(BTreeMap::new());

fn there() -> MutexGuard<'static, BTreeMap<u64, There>> {
    THERE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to write a range of a file that was begun, until it is dropped or revoked.
pub(super) struct Writer {
    token: u64,
    number: u64,
    /// Of the worker whose session waits until nobody writes.
    waker: Waker,
}

impl Writer {
    /// For the file with this token, if sessions of this scope may write to it. What was known of the blocks of this range
    /// says nothing any more.
    pub(super) fn new(
        token: u64,
        (offset, length): (u64, u64),
        scope: &Scope,
        waker: &Waker,
    ) -> Result<Writer, Failure> {
        static WRITERS: AtomicU64 = AtomicU64::new(1);
        let mut all = there();
        let file = all.get_mut(&token).filter(|file| file.scope == *scope && !file.sealed);
        let Some(file) = file else {
            return Err(Failure::rule(b"", "cannot put", "no such file was begun here"));
        };
        let block = HASH_BLOCK_BYTES as u64;
        let blocks = offset / block..offset.saturating_add(length).div_ceil(block);
        file.blocks.retain(|number, _| !blocks.contains(number));
        let overlaps = |open: &&mut Open| open.blocks.start < blocks.end && blocks.start < open.blocks.end;
        for open in file.open.iter_mut().filter(overlaps) {
            open.revoked = true;
            file.overlapped = true;
        }
        let number = WRITERS.fetch_add(1, Ordering::Relaxed);
        file.open.push(Open { writer: number, blocks, revoked: false });
        Ok(Writer { token, number, waker: waker.clone() })
    }

    /// True once nothing of it counts any more.
    pub(super) fn is_revoked(&self) -> bool {
        let all = there();
        let open = all.get(&self.token).and_then(|file| file.open.iter().find(|open| open.writer == self.number));
        open.is_none_or(|open| open.revoked)
    }

    /// The range is there: the chaining values of its blocks count from here on. False if it was revoked.
    pub(super) fn done(self, blocks: &[Hash]) -> bool {
        let mut all = there();
        let Some(file) = all.get_mut(&self.token) else { return false };
        let Some(open) = file.open.iter().find(|open| open.writer == self.number && !open.revoked) else {
            return false;
        };
        file.blocks.extend((open.blocks.start..).zip(blocks.iter().copied()));
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut all = there();
        if let Some(file) = all.get_mut(&self.token) {
            file.open.retain(|open| open.writer != self.number);
            if file.sealed && file.open.is_empty() {
                self.waker.wake();
            }
        }
    }
}

/// The blocks of one file, for as long as somebody may name it.
struct Blocks {
    token: u64,
    size: u64,
}

impl Blocks {
    fn new(token: u64, size: u64, known: &[Hash], scope: Scope) -> Blocks {
        let blocks = (0..).zip(known.iter().copied()).collect();
        there().insert(token, There { scope, blocks, open: Vec::new(), overlapped: false, sealed: false });
        Blocks { token, size }
    }

    /// Lets nobody write to it any more. True once nobody does.
    fn seal(&self, waker: &Waker) -> bool {
        let mut all = there();
        let Some(file) = all.get_mut(&self.token) else { return true };
        if !std::mem::replace(&mut file.sealed, true) && !file.open.is_empty() {
            file.open.iter_mut().for_each(|open| open.revoked = true);
            // Who is revoked is told by nothing else.
            waker.wake();
        }
        file.open.is_empty()
    }

    /// What the blocks say of the hash of the whole: nothing of a file that is only one. True where it must be read again.
    fn check(&self, hash: Hash) -> Result<bool, Failure> {
        let (there, count) = (there(), block_count(self.size));
        let file = there.get(&self.token);
        let of_ours = file.into_iter().flat_map(|file| file.blocks.range(..count));
        let mut tree = TreeHash::new();
        let mut number = 0;
        for (_, &chaining) in of_ours {
            tree.push_chaining(chaining);
            number += 1;
        }
        if number < count {
            let rule = format!("{} of its {count} blocks have not come", count - number);
            return Err(Failure::rule(b"", "incomplete", rule));
        }
        if count != 1 && tree.finalize() != hash {
            return Err(Failure::here(b"", "not published", Errno::HASH_MISMATCH));
        }
        Ok(count == 1 || file.is_none_or(|file| file.overlapped))
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        there().remove(&self.token);
    }
}

/// A file that was begun.
struct Begun {
    file: FileId,
    path: Vec<u8>,
    finish: Finish,
    blocks: Blocks,
}

/// Those of one session, and the process it is in.
#[derive(Clone)]
pub(super) struct Files {
    begun: Rc<RefCell<BTreeMap<u64, Begun>>>,
    /// Names the process in which their tokens mean something.
    process: Option<Hash>,
    /// Whose sessions may write to them, and to whose files this one may.
    scope: Scope,
}

impl Files {
    pub(super) fn new(scope: Scope) -> Files {
        Files { begun: Rc::default(), process: None, scope }
    }

    pub(super) fn of_process(process: Hash) -> Files {
        Files { process: Some(process), ..Files::new(process) }
    }

    pub(super) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// True where clients can be told which process this is.
    pub(super) fn names_process(&self) -> bool {
        self.process.is_some()
    }

    /// Answers Ping.
    pub(super) fn pong(&self) -> Pong {
        Pong { process: self.process }
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
        if size > MAX_RANGES * RANGE_BYTES {
            return Err(Failure::rule(&path, "cannot put", "it is too large to come in ranges"));
        }
        self.check_room(&path)?;
        let token = chunked::next_token().map_err(|errno| Failure::here(&path, "cannot put", errno))?;
        let mode = match keep {
            true => OpenMode::Continue { size, token: Some(token) },
            false => OpenMode::Shared { size, token },
        };
        io.submit(OPEN, OpKind::Open { place, mode });
        let sync = io.terms.caps.has(Caps::SYNC);
        let finish = Finish { attributes: Some(attributes), preserve, sync, verify: None };
        let kept = if keep { size } else { 0 };
        let looking = Looking { path, kept, what: "cannot create", state: State::Opening };
        Ok(Box::new(Begin { files: self.clone(), token, size, finish, looking }))
    }

    /// Requests may be sent ahead, so this counts before a file is opened and again when it is begun.
    fn check_room(&self, path: &[u8]) -> Result<(), Failure> {
        match self.begun.borrow().len() {
            ..MAX_RANGED_FILES => Ok(()),
            _ => Err(Failure::rule(path, "cannot put", "too many files in ranges at the same time")),
        }
    }

    /// Answers RangeCommit.
    pub(super) fn commit(&self, token: u64, hash: Hash) -> Box<dyn Verb> {
        Box::new(End { files: self.clone(), token, hash: Some(hash), path: Vec::new(), step: Step::Waiting })
    }

    /// Answers RangeAbandon.
    pub(super) fn abandon(&self, token: u64) -> Box<dyn Verb> {
        Box::new(End { files: self.clone(), token, hash: None, path: Vec::new(), step: Step::Waiting })
    }
}

enum State {
    Opening,
    Hashing(FileId, Hashing),
    Failed(Failure),
}

enum Turn {
    Later,
    Refused,
    There(FileId, Vec<Hash>),
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
                // What does not fit an answer is not looked at.
                let mut hashing = Hashing::new(whole.min(MAX_HASHES as u64 - 1), u64::MAX);
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

    /// The file and its blocks, once they are hashed, at the `head` of the queue. An Error is its reply where there are none.
    fn turn(&self, head: bool, io: &mut Io<'_, '_>) -> Turn {
        match &self.state {
            State::Failed(failure) if head => {
                reply_failure(failure, io);
                Turn::Refused
            }
            State::Hashing(file, hashing) if head => hashing.done().map_or(Turn::Later, |blocks| {
                Turn::There(*file, blocks.into_iter().map(|block| block.chaining).collect())
            }),
            _ => Turn::Later,
        }
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
    size: u64,
    finish: Finish,
    looking: Looking,
}

impl Verb for Begin {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.looking.on_completion(kind, outcome, io);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        let (file, blocks) = match self.looking.turn(head, io) {
            Turn::Later => return false,
            Turn::Refused => return true,
            Turn::There(file, blocks) => (file, blocks),
        };
        if let Err(failure) = self.files.check_room(&self.looking.path) {
            io.submit(CLOSE, OpKind::Close { file });
            reply_failure(&failure, io);
            return true;
        }
        let path = std::mem::take(&mut self.looking.path);
        let begun = Begun {
            file,
            path,
            finish: self.finish,
            blocks: Blocks::new(self.token, self.size, &blocks, self.files.scope),
        };
        self.files.begun.borrow_mut().insert(self.token, begun);
        reply(&Frame::RangeBegun { token: self.token, blocks }, io);
        true
    }

    fn state(&self) -> &'static str {
        self.looking.state()
    }
}

enum Step {
    /// For its turn: ranges that were sent before over the same connection are written by then. Then until nobody writes.
    Waiting,
    Out,
    Done(Outcome),
}

/// The server's half of RangeCommit and RangeAbandon.
struct End {
    files: Files,
    token: u64,
    hash: Option<Hash>,
    path: Vec<u8>,
    step: Step,
}

impl End {
    fn start(&mut self, io: &mut Io<'_, '_>) -> Result<(), Failure> {
        let begun = self.files.begun.borrow_mut().remove(&self.token);
        let what = if self.hash.is_some() { "cannot commit" } else { "cannot abandon" };
        let unknown = || Failure::rule(b"", what, "no such file was begun in this session");
        let Begun { file, path, finish, blocks } = begun.ok_or_else(unknown)?;
        self.path = path;
        let Some(hash) = self.hash else {
            io.submit(CLOSE, OpKind::Close { file });
            return Ok(());
        };
        let again = match blocks.check(hash) {
            Ok(again) => again,
            Err(failure) => {
                io.submit(CLOSE, OpKind::Close { file });
                return Err(failure);
            }
        };
        let verify = finish.preserve.has(Preserve::VERIFY) || again;
        let finish = Box::new(Finish { verify: verify.then_some(hash), ..finish });
        io.submit(PUBLISH, OpKind::Publish { file, finish });
        Ok(())
    }
}

impl Verb for End {
    fn on_completion(&mut self, _: OpKind, outcome: Outcome, _: &mut Io<'_, '_>) {
        self.step = Step::Done(outcome);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if !head {
            return false;
        }
        match &self.step {
            Step::Waiting => {
                if self.files.begun.borrow().get(&self.token).is_some_and(|begun| !begun.blocks.seal(io.cx.waker)) {
                    return false;
                }
                self.step = Step::Out;
                let Err(failure) = self.start(io) else { return false };
                reply_failure(&failure, io);
            }
            Step::Out => return false,
            Step::Done(Ok(output)) => reply_done(self.hash, unkept(output), io),
            Step::Done(Err(errno)) => reply_failure(&Failure::here(&self.path, "cannot create", *errno), io),
        }
        true
    }

    fn state(&self) -> &'static str {
        match (&self.step, self.hash) {
            (Step::Waiting, _) => "range to be ended",
            (_, Some(_)) => "range naming",
            (_, None) => "range abandoning",
        }
    }
}

/// The server's half of Blocks.
pub(super) struct Serve {
    looking: Looking,
}

impl Serve {
    pub(super) fn start(place: Place, length: u64, io: &mut Io<'_, '_>) -> Serve {
        let path = chunked::path_of(&place);
        io.submit(OPEN, OpKind::Open { place, mode: OpenMode::Read });
        Serve { looking: Looking { path, kept: length, what: "cannot open", state: State::Opening } }
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.looking.on_completion(kind, outcome, io);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        match self.looking.turn(head, io) {
            Turn::Later => return false,
            Turn::Refused => {}
            Turn::There(file, blocks) => {
                io.submit(CLOSE, OpKind::Close { file });
                reply(&Frame::Kept { blocks }, io);
            }
        }
        true
    }

    fn state(&self) -> &'static str {
        self.looking.state()
    }
}

/// The server's half of Ping.
pub(super) struct Pong {
    process: Option<Hash>,
}

impl Verb for Pong {
    fn on_completion(&mut self, _: OpKind, _: Outcome, _: &mut Io<'_, '_>) {}

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if head {
            reply(&Frame::Ok { hash: self.process.filter(|_| io.terms.ext(Ext::GATHER)) }, io);
        }
        head
    }

    fn state(&self) -> &'static str {
        "pong"
    }
}

/// The client's half of Ping. The answer may name the process that gave it.
pub(super) fn ask_ping() -> Simple {
    let answered = |frame| match frame {
        Frame::Ok { hash } => Some(hash.map_or(Reply::Done, Reply::Hash)),
        _ => None,
    };
    Simple::new(Vec::new(), "cannot ask", |_| Frame::Ping, answered)
}

/// The client's half of RangeCommit.
pub(super) fn ask_commit(token: u64, (hash, size): (Hash, u64), path: Vec<u8>) -> Simple {
    let request = move |_| Frame::RangeCommit { token, hash };
    Simple::new(path, "cannot put", request, |frame| match frame {
        Frame::Ok { hash: Some(hash) } => Some(Reply::Hash(hash)),
        _ => None,
    })
    .with_work(Some(size))
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
                let failure = Failure::there(&self.paths.0, what, code, message);
                self.failure = Some(if up { failure } else { failure.of_source() });
            }
            _ => {
                let why = "the server answered the beginning of a file in ranges with another reply";
                return Err(Failure::protocol(why));
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
            // The server holds a file for it, perhaps.
            let begun = self.theirs.take().filter(|_| matches!(self.wanted, Wanted::Up { .. }));
            return Some(begun.map_or(Err(failure.clone()), |(token, _)| Ok(Reply::Unmatched { token, failure })));
        }
        let ours = self.ours.done()?;
        let (token, theirs) = self.theirs.take()?;
        let equal = ours.iter().zip(theirs).map(|(ours, theirs)| (ours.chaining == theirs).then_some(theirs));
        Some(Ok(Reply::Begun { token, blocks: equal.collect() }))
    }

    fn work(&self) -> Option<u64> {
        Some(match self.wanted {
            Wanted::Up { size, .. } => size,
            Wanted::Down { there, .. } => there,
        })
    }

    fn state(&self) -> &'static str {
        "range comparing what is there"
    }
}
