//! A file to frames: the sending half of Get (server) and Put (client).
//!
//! ```text
//!                  +-> Loaded: whole content in one block -------------------+
//! start -> Opening-+                                                         +-> Done
//!                  +-> Open: [hash blocks, wait to be told what to send] ->  |
//!                      window of reads -> codec -> sent in order, or runs of |
//!                      the file sent by the kernel -> Checking (fstat) ------+
//!                                                     -> Checking [-> Proving] -> Checked: the last block, where that
//!                                                        waits for it
//! ```
//! `Opening` has no predecessor; every state may end in `Done` with a failure. The size is what the file had when it was
//! opened: a file that shrinks fails at the short read, one that is written to fails in `Checking`, because what was sent
//! may be half old and half new. One that has grown may only have grown, as a log does: in `Proving` what was sent of it is
//! read and hashed again. If it has the same hash, all of it was there at one moment, that between the two, and is sent as
//! what the file began with. Where nobody hashes (FAST) nothing can be proved, and growing is taken for all that happened.

use super::dedup::block_bytes;
use super::digest::Digest;
use super::hashing::Hashing;
use super::{Failure, Io, Outcome};
use crate::backend::{Compute, Errno, FileId, FsOp, OpKind, OpenMode, Output, Place};
use crate::block::{Block, Class, Slice};
use crate::limits::{BLOCK_BYTES, PACK_WORTH_BYTES, READ_WINDOW_BLOCKS, READ_WINDOW_FRAMES};
use crate::session::codec::Plan;
use crate::tree_hash::{BlockHash, ContentHash, HASH_BLOCK_BYTES, RangeHash, TreeHash};
use crate::wire::MAX_BLOCK;
use crate::wire::compress::Codec;
use crate::wire::frame::{Attributes, Ext, Hash};
use std::collections::VecDeque;

const OPEN: u32 = 20;
const READ: u32 = 21;
const CHECK: u32 = 22;
const CLOSE: u32 = 23;
const PACK: u32 = 24;
const RUN: u32 = 25;
const PROVE: u32 = 27;

/// What is to be done with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Purpose {
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes at most.
    pub(crate) limit: Option<u64>,
    /// What is read is sent, and may be compressed; else it is only hashed.
    pub(crate) sent: bool,
    /// Somebody wants the hash.
    pub(crate) hashed: bool,
    /// The last of it goes out only when it is known that the file has not changed.
    pub(crate) whole_or_nothing: bool,
    /// Once open it waits for [`Source::send_from`] or [`Source::send_blocks`].
    pub(crate) held: bool,
}

impl Purpose {
    /// All of the file goes out and is hashed.
    pub(crate) const SEND: Purpose =
        Purpose { offset: 0, limit: None, sent: true, hashed: true, whole_or_nothing: false, held: false };
    /// All of the file is hashed.
    pub(crate) const HASH: Purpose = Purpose { sent: false, ..Purpose::SEND };
}

/// Content on its way out, in file order.
pub(crate) enum Chunk {
    Raw(Slice),
    Packed { codec: Codec, original: usize, content: Slice },
}

enum State {
    Opening,
    Loaded,
    Open(FileId),
    Checking(FileId),
    /// It has grown; what was sent of it is hashed again.
    Proving(FileId),
    /// It has not changed; what was held back until that was known goes out.
    Checked(FileId),
    Done,
}

enum Content {
    Reading,
    Raw(Slice),
    /// The codec has it.
    Packing(Slice),
    Packed(Slice, Codec, Slice),
}

/// One read of the window, in file order.
struct Slot {
    offset: u64,
    /// Where the codec shall put what it makes of it.
    room: Option<Block>,
    content: Content,
}

/// What dedup sends: single blocks, each the one that was announced.
struct Blocks {
    hashes: Vec<BlockHash>,
    left: VecDeque<u64>,
}

/// A file being sent.
pub(crate) struct Source {
    path: Vec<u8>,
    purpose: Purpose,
    state: State,
    attributes: Option<Attributes>,
    end: u64,
    next_read: u64,
    window: VecDeque<Slot>,
    /// Runs of the file that the kernel is sending.
    runs: usize,
    digest: Digest,
    /// Content that goes out once it is hashed, on a stream that seals it where it stands.
    hashed: VecDeque<Chunk>,
    hashing: Option<Hashing>,
    blocks: Option<Blocks>,
    failure: Option<Failure>,
    /// It has grown while it was read, and what was sent is what it began with.
    grew: bool,
}

impl Source {
    /// Begins to read `place`.
    pub(crate) fn start(place: Place, path: Vec<u8>, purpose: Purpose, io: &mut Io<'_, '_>) -> Source {
        let whole = purpose.offset == 0 && purpose.limit.is_none() && !purpose.held;
        let op = match io.take(Class::Small).filter(|_| whole) {
            Some(into) => OpKind::Load { place, into },
            None => OpKind::Open { place, mode: OpenMode::Read },
        };
        io.submit(OPEN, op);
        Source {
            path,
            purpose,
            state: State::Opening,
            attributes: None,
            end: 0,
            next_read: purpose.offset,
            window: VecDeque::new(),
            runs: 0,
            digest: Digest::new(ContentHash { whole: Some(TreeHash::new()), range: None, tail: None }),
            hashed: VecDeque::new(),
            hashing: None,
            blocks: None,
            failure: None,
            grew: false,
        }
    }

    /// Takes note of a completion of its own operations. `kind` gives back a block that was filled.
    pub(crate) fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        match (kind, outcome) {
            // From here on nothing is being opened, whatever becomes of the file.
            (OpKind::Load { into, .. }, Ok(Output::Loaded { attributes, len, grew })) => {
                self.state = State::Done;
                self.grew = grew;
                self.on_loaded(into, attributes, len, io);
            }
            (OpKind::Load { .. } | OpKind::Open { .. }, Ok(Output::Opened { file, attributes })) => {
                self.state = State::Done;
                if self.failure.is_some() {
                    return io.submit(CLOSE, OpKind::Close { file });
                }
                let Purpose { offset, limit, .. } = self.purpose;
                self.end = limit.map_or(attributes.size, |limit| offset.saturating_add(limit).min(attributes.size));
                self.attributes = Some(attributes);
                self.state = State::Open(file);
                if self.is_empty_handed() {
                    self.check(file, io);
                }
            }
            (OpKind::Load { .. } | OpKind::Open { .. }, Err(errno)) => {
                self.state = State::Done;
                self.failure.get_or_insert(Failure::here(&self.path, "cannot open", errno).of_source());
            }
            (OpKind::Read { offset, into, len, .. }, outcome) => match outcome {
                Ok(Output::Bytes(got)) if got == len => self.on_read(offset, into.share().slice(0..len), io),
                Ok(_) => self.on_short(io),
                Err(errno) => self.fail(Failure::here(&self.path, "cannot read", errno), io),
            },
            (OpKind::SendFile { len, .. }, outcome) => {
                self.runs -= 1;
                io.link.run_sent(len, io.cx.now);
                match outcome {
                    Ok(_) => io.progress.moved(usize::try_from(len).unwrap_or(usize::MAX)),
                    Err(Errno::SHORT_SOURCE) => self.on_short(io),
                    Err(errno) => self.fail(Failure::here(&self.path, "cannot read", errno), io),
                }
            }
            (OpKind::Compute(compute), outcome) => match *compute {
                digest @ Compute::Digest { .. } => {
                    if let Err(errno) = self.digest.on_hashed(digest, outcome, io) {
                        self.fail(Failure::here(&self.path, "cannot hash", errno), io);
                    }
                }
                pack => self.on_packed(pack, outcome, io),
            },
            (OpKind::Fs(op), outcome) => match *op {
                FsOp::HashBlocks { first, .. } => {
                    let hashed = self.hashing.as_mut().map_or(Ok(()), |hashing| hashing.on_hashed(first, outcome));
                    if let Err(errno) = hashed {
                        self.fail(Failure::here(&self.path, "cannot read", errno), io);
                    }
                }
                FsOp::HashPart { .. } => self.on_proved(outcome, io),
                _ => self.on_checked(outcome, io),
            },
            _ => {}
        }
    }

    fn on_loaded(&mut self, into: Block, attributes: Attributes, len: usize, io: &mut Io<'_, '_>) {
        if self.failure.is_some() {
            return;
        }
        // A file whose size says something else, as in /proc and /sys, is what could be read of it.
        self.end = len as u64;
        self.next_read = self.end;
        self.attributes = Some(Attributes { size: len as u64, ..attributes });
        self.state = State::Loaded;
        if len > 0 {
            let room = if self.may_pack(io) { io.take(Class::Small) } else { None };
            self.window.push_back(Slot { offset: 0, room, content: Content::Reading });
            self.on_read(0, into.share().slice(0..len), io);
        }
    }

    /// A base server publishes what is empty as soon as it is announced: nothing can be held back until it is checked.
    fn is_empty_handed(&self) -> bool {
        let Purpose { whole_or_nothing, sent, held, offset, .. } = self.purpose;
        whole_or_nothing && sent && !held && self.end <= offset && !matches!(self.state, State::Loaded | State::Done)
    }

    /// What is only hashed waits for no stream.
    fn has_room(&self, io: &Io<'_, '_>) -> bool {
        (!self.purpose.sent || io.link.has_room()) && self.digest.pending() < READ_WINDOW_BLOCKS
    }

    fn may_pack(&self, io: &Io<'_, '_>) -> bool {
        self.purpose.sent && io.codec.agreed().is_some()
    }

    /// A block of the window is filled; it may go through the codec.
    fn on_read(&mut self, offset: u64, raw: Slice, io: &mut Io<'_, '_>) {
        let Some(slot) = self.window.iter_mut().find(|slot| slot.offset == offset) else { return };
        slot.content = Content::Raw(raw.clone());
        let Some(into) = slot.room.take().filter(|_| raw.len() >= PACK_WORTH_BYTES) else { return };
        if let Plan::Compress { codec, probe } = io.codec.plan() {
            slot.content = Content::Packing(raw.clone());
            io.submit(PACK, OpKind::Compute(Box::new(Compute::Pack { codec, from: raw, into, probe })));
        }
    }

    fn on_packed(&mut self, compute: Compute, outcome: Outcome, io: &mut Io<'_, '_>) {
        let Compute::Pack { codec, from, into, .. } = compute else { return };
        let (len, nanos) = match outcome {
            Ok(Output::Packed { len, nanos }) => (len, nanos),
            // Cancelled: it goes out as it is, if anything goes out.
            _ => (None, 0),
        };
        io.codec.on_packed(from.len(), len, nanos);
        io.progress.packed_one();
        let this = |slot: &&mut Slot| matches!(&slot.content, Content::Packing(raw) if raw.block_number() == from.block_number());
        if let Some(slot) = self.window.iter_mut().find(this) {
            slot.content = match len {
                Some(len) => Content::Packed(from, codec, into.share().slice(0..len)),
                None => Content::Raw(from),
            };
        }
    }

    /// There is less of it than its size said. Whether somebody has cut it or the size says nothing its size tells now.
    fn on_short(&mut self, io: &mut Io<'_, '_>) {
        let State::Open(file) = self.state else { return };
        self.failure.get_or_insert(Failure::here(&self.path, "cannot read", Errno::SHORT_SOURCE));
        self.forget();
        self.check(file, io);
    }

    fn check(&mut self, file: FileId, io: &mut Io<'_, '_>) {
        let past = self.attributes.map(|attributes| attributes.size).filter(|&size| size == self.end);
        let past = past.filter(|_| self.failure.is_none());
        io.submit(CHECK, OpKind::Fs(Box::new(FsOp::StatOpen { file, past })));
        self.state = State::Checking(file);
    }

    fn on_checked(&mut self, outcome: Outcome, io: &mut Io<'_, '_>) {
        let State::Checking(file) = self.state else { return };
        let attributes = match outcome {
            Ok(Output::Attributes { attributes, .. }) => attributes,
            outcome => return self.end_checked(file, outcome.err(), io),
        };
        let before = self.attributes.map_or((0, attributes.mtime), |before| (before.size, before.mtime));
        let same = (attributes.size, attributes.mtime) == before;
        if self.failure.is_some() {
            let lies = Failure::here(&self.path, "cannot read", Errno::SIZE_LIES);
            self.failure = self.failure.take().map(|failure| if same { lies } else { failure });
            return self.end_checked(file, None, io);
        }
        if same {
            return self.end_checked(file, None, io);
        }
        let Purpose { offset, limit, sent, hashed, .. } = self.purpose;
        if attributes.size <= before.0 {
            return self.end_checked(file, Some(Errno::CHANGED), io);
        }
        match (sent, limit) {
            // Whoever asks for the hash of so many bytes holds it against another one.
            (false, Some(_)) => self.end_checked(file, None, io),
            (true, None) if !hashed && self.blocks.is_none() => {
                self.grew = true;
                self.end_checked(file, None, io);
            }
            (true, None) => {
                io.submit(PROVE, OpKind::Fs(Box::new(FsOp::HashPart { file, offset, end: self.end })));
                self.state = State::Proving(file);
            }
            // A range says nothing of the others, and what nobody moves need not be the beginning of anything.
            (false, None) | (true, Some(_)) => self.end_checked(file, Some(Errno::CHANGED), io),
        }
    }

    /// What was sent is hashed again, as it is there now.
    fn on_proved(&mut self, outcome: Outcome, io: &mut Io<'_, '_>) {
        let State::Proving(file) = self.state else { return };
        let mut sent = self.digest.get().and_then(|hash| hash.whole.clone());
        // What is held back until this is known.
        if let (Some(sent), Some(Slot { content: Content::Raw(raw) | Content::Packed(raw, ..), .. })) =
            (&mut sent, self.window.front())
        {
            sent.update(raw.bytes());
        }
        let errno = match outcome {
            Ok(Output::Hashed(now)) if sent.is_some_and(|sent| sent.finalize() == now) => None,
            Ok(_) => Some(Errno::CHANGED),
            Err(errno) => Some(errno),
        };
        self.grew = errno.is_none();
        self.end_checked(file, errno, io);
    }

    fn end_checked(&mut self, file: FileId, errno: Option<Errno>, io: &mut Io<'_, '_>) {
        if let Some(errno) = errno {
            self.failure.get_or_insert(Failure::here(&self.path, "cannot read", errno));
        }
        if self.failure.is_none() && !self.window.is_empty() {
            self.state = State::Checked(file);
            return;
        }
        self.state = State::Done;
        self.forget();
        io.submit(CLOSE, OpKind::Close { file });
    }

    /// Gives the file up.
    pub(crate) fn fail(&mut self, failure: Failure, io: &mut Io<'_, '_>) {
        self.failure.get_or_insert(failure);
        match std::mem::replace(&mut self.state, State::Done) {
            State::Opening => self.state = State::Opening,
            State::Open(file) | State::Checking(file) | State::Proving(file) | State::Checked(file) => {
                io.submit(CLOSE, OpKind::Close { file });
            }
            State::Loaded | State::Done => {}
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.window.clear();
        if self.failure.is_some() {
            self.hashed.clear();
            self.digest.clear();
        }
    }

    /// It has grown while it was read: what was handed on is what it began with.
    pub(crate) fn grew(&self) -> bool {
        self.grew
    }

    /// Reads ahead and hands content on in order. Content is hashed and given to `take` only while `its_turn`, and
    /// while `take` has room.
    pub(crate) fn pump(&mut self, its_turn: bool, io: &mut Io<'_, '_>, mut take: impl FnMut(Chunk, &mut Io<'_, '_>)) {
        self.hash_ahead(io);
        if self.purpose.held {
            return;
        }
        let untouched = io.codec.agreed().is_none() && !io.link.is_sealed();
        if !self.purpose.hashed && self.purpose.sent && untouched && self.window.is_empty() {
            if its_turn {
                self.send_runs(io);
            }
        } else {
            self.read_ahead(its_turn, io);
        }
        if !its_turn {
            return;
        }
        while self.has_room(io) && self.window.front().is_some_and(Slot::is_ready) {
            if self.holds_back(io) {
                break;
            }
            let Some(slot) = self.window.pop_front() else { break };
            match self.hand_on(slot, io) {
                Some(chunk) if io.link.is_sealed() => self.hashed.push_back(chunk),
                Some(chunk) => take(chunk, io),
                None => {}
            }
            self.read_ahead(true, io);
        }
        // Nobody else may have a part of it when it is sealed.
        while self.hashed.len() > self.digest.pending()
            && let Some(chunk) = self.hashed.pop_front()
        {
            take(chunk, io);
        }
        let handed_on =
            self.window.is_empty() && self.hashed.is_empty() && self.runs == 0 && self.next_read >= self.end;
        let drained = handed_on && self.digest.is_idle() && self.has_room(io);
        match self.state {
            State::Open(file) if drained && self.blocks.as_ref().is_none_or(|blocks| blocks.left.is_empty()) => {
                self.check(file, io);
            }
            State::Checked(file) if drained => {
                io.submit(CLOSE, OpKind::Close { file });
                self.state = State::Done;
            }
            State::Loaded if drained => self.state = State::Done,
            _ => {}
        }
    }

    /// A base server publishes what is complete: the last of an upload goes out only when it is known that the file has not
    /// changed meanwhile. Between haul peers Abandon tells.
    fn holds_back(&mut self, io: &mut Io<'_, '_>) -> bool {
        let last = self.window.len() == 1 && self.next_read >= self.end && self.blocks.is_none();
        if !self.purpose.whole_or_nothing || !last {
            return false;
        }
        // All that is sent before the last is hashed by then, in case that must be proved.
        if let State::Open(file) = self.state
            && self.digest.is_idle()
        {
            self.check(file, io);
        }
        matches!(self.state, State::Open(_) | State::Checking(_) | State::Proving(_))
    }

    /// Hashes what is next in the file; `None` when it is not what was announced.
    fn hand_on(&mut self, slot: Slot, io: &mut Io<'_, '_>) -> Option<Chunk> {
        let (raw, chunk) = match slot.content {
            Content::Packed(raw, codec, content) => {
                let original = raw.len();
                (raw, Chunk::Packed { codec, original, content })
            }
            Content::Raw(raw) => (raw.clone(), Chunk::Raw(raw)),
            Content::Reading | Content::Packing(_) => return None,
        };
        match &self.blocks {
            Some(blocks) => {
                let index = slot.offset / HASH_BLOCK_BYTES as u64;
                let announced = blocks.hashes.get(usize::try_from(index).ok()?)?;
                if blake3::hash(raw.bytes()) != announced.plain {
                    self.fail(Failure::here(&self.path, "cannot read", Errno::CHANGED), io);
                    return None;
                }
            }
            None if self.purpose.hashed => self.digest.update(&raw, io),
            None => {}
        }
        if self.purpose.sent {
            io.progress.moved(raw.len());
        }
        Some(chunk)
    }

    /// Lets the kernel send the file, a run at a time.
    fn send_runs(&mut self, io: &mut Io<'_, '_>) {
        let State::Open(file) = self.state else { return };
        while io.link.has_room() && self.next_read < self.end {
            let (offset, len) = (self.next_read, (self.end - self.next_read).min(io.link.run_bytes()));
            let head = io.link.run_head(len, io.cx.now);
            let stream = io.link.stream;
            io.submit(RUN, OpKind::SendFile { stream, head, file, offset, len });
            self.runs += 1;
            self.next_read += len;
        }
    }

    fn read_ahead(&mut self, its_turn: bool, io: &mut Io<'_, '_>) {
        let State::Open(file) = self.state else { return };
        // Who waits for its turn keeps no block that the one whose turn it is may need: else both would wait for ever.
        // What dedup sends is 4 MiB at once, which not every haul takes compressed.
        let whole = self.blocks.is_none() || io.terms.dialect.ext == Ext::NONE || io.terms.ext(Ext::LARGE);
        let pair = self.may_pack(io) && whole;
        let reserve = if its_turn { 0 } else { READ_WINDOW_BLOCKS * (1 + usize::from(pair)) };
        loop {
            let class = self.unit_class(its_turn, io);
            let ahead = match class {
                _ if !its_turn => usize::from(self.blocks.is_none()),
                Class::Frame => READ_WINDOW_FRAMES,
                _ => READ_WINDOW_BLOCKS,
            };
            if self.window.len() >= ahead || io.left(class) <= reserve {
                return;
            }
            let Some((offset, len)) = self.next_unit(class) else { return };
            // Each block that may go through the codec comes with the one for what the codec makes of it. With a single
            // block left, and nothing on its way that would bring another, content goes out as it is.
            if pair && io.left(class) < 2 && !(self.window.is_empty() && io.link.is_drained()) {
                return;
            }
            let Some(into) = io.take(class) else { return };
            let room = if pair { io.take(class) } else { None };
            match &mut self.blocks {
                Some(blocks) => _ = blocks.left.pop_front(),
                None => self.next_read += len as u64,
            }
            io.submit(READ, OpKind::Read { file, offset, into, len });
            self.window.push_back(Slot { offset, room, content: Content::Reading });
        }
    }

    /// What the next read is made into. Zstandard makes less of 4 MiB at once than of eight times 512 KiB: 0.115 of source
    /// text against about 0.165 (2026-11-25). A base server that has refused a Put answers each further frame with a dump of
    /// it, five times as long, and one of more than 16 MiB would cost the connection: it gets small ones.
    fn unit_class(&self, its_turn: bool, io: &Io<'_, '_>) -> Class {
        let left = self.end.saturating_sub(self.next_read);
        let agreed = io.terms.ext(Ext::LARGE) && io.cx.pool.reads_frames();
        let large = agreed && its_turn && self.may_pack(io) && io.codec.gains_from_size() && left > BLOCK_BYTES as u64;
        match self.blocks {
            Some(_) => Class::Frame,
            None if large && io.left(Class::Frame) >= 2 => Class::Frame,
            None => Class::Large,
        }
    }

    /// Where the next read begins, and its length.
    fn next_unit(&self, class: Class) -> Option<(u64, usize)> {
        match &self.blocks {
            Some(blocks) => {
                let &index = blocks.left.front()?;
                Some((index * HASH_BLOCK_BYTES as u64, block_bytes(index, self.end)))
            }
            None => {
                let left = self.end.checked_sub(self.next_read).filter(|&left| left > 0)?;
                let most = class.bytes().min(MAX_BLOCK as usize);
                Some((self.next_read, usize::try_from(left).unwrap_or(most).min(most)))
            }
        }
    }

    /// What is hashed is a range that begins with a block: its blocks are, for a hash of the whole file.
    pub(crate) fn hash_range(&mut self) {
        let range = Some(RangeHash::new(self.purpose.offset / HASH_BLOCK_BYTES as u64));
        self.digest = Digest::new(ContentHash { whole: None, range, tail: None });
    }

    /// Chaining values of the blocks of the range handed on.
    pub(crate) fn take_range(&mut self) -> Vec<Hash> {
        self.digest.get_mut().and_then(|hash| hash.range.take()).map(RangeHash::finish).unwrap_or_default()
    }

    /// Begins to hash the first `until` blocks, ahead of sending and several at a time; may be called again with fewer. With
    /// `plain` the blocks' own hashes as well.
    pub(crate) fn hash_blocks(&mut self, until: u64, plain: bool) {
        match &mut self.hashing {
            Some(hashing) => hashing.limit(until),
            none => *none = Some(Hashing::new(until, if plain { 0 } else { u64::MAX })),
        }
    }

    fn hash_ahead(&mut self, io: &mut Io<'_, '_>) {
        if let (State::Open(file), Some(hashing)) = (&self.state, &mut self.hashing) {
            hashing.advance(*file, io);
        }
    }

    /// The hashes of the blocks wanted, once they are all there.
    pub(crate) fn hashed_blocks(&self) -> Option<Vec<BlockHash>> {
        self.hashing.as_ref().and_then(Hashing::done)
    }

    /// What is before `offset`, a block's beginning, need not be sent: it is `known`.
    pub(crate) fn send_from(&mut self, offset: u64, known: &[BlockHash]) {
        known.iter().for_each(|&block| self.digest.push(block));
        self.next_read = offset;
        self.purpose.held = false;
    }

    /// Only the blocks with these indices are sent, each as one chunk; `hashes` are those of all blocks.
    pub(crate) fn send_blocks(&mut self, hashes: Vec<BlockHash>, indices: VecDeque<u64>) {
        hashes.iter().for_each(|&block| self.digest.push(block));
        self.blocks = Some(Blocks { hashes, left: indices });
        self.next_read = self.end;
        self.purpose.held = false;
    }

    /// Attributes and size to be announced, once the file is open; or why it cannot be.
    pub(crate) fn opened(&self) -> Option<Result<Attributes, &Failure>> {
        match (&self.failure, &self.attributes) {
            (Some(failure), _) if !matches!(self.state, State::Opening) => Some(Err(failure)),
            (None, Some(attributes)) if !self.is_empty_handed() => Some(Ok(*attributes)),
            _ => None,
        }
    }

    /// Where what is sent ends, in bytes of the file.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// How it ended: the hash of what was handed on, or why that is not all. `None` while it goes on.
    pub(crate) fn result(&self) -> Option<Result<Hash, &Failure>> {
        let whole = self.digest.get().and_then(|hash| hash.whole.as_ref());
        match (&self.state, &self.failure) {
            _ if self.runs > 0 => None,
            (State::Done, Some(failure)) => Some(Err(failure)),
            (State::Done, None) => Some(Ok(whole.map(TreeHash::finalize).unwrap_or_default())),
            _ => None,
        }
    }

    pub(crate) fn state(&self) -> &'static str {
        match self.state {
            State::Opening => "source opening",
            State::Loaded => "source loaded",
            State::Open(_) if self.hashing.as_ref().is_some_and(Hashing::is_busy) => "source hashing",
            State::Open(_) if self.purpose.held => "source held",
            State::Open(_) if self.runs > 0 => "source sent by the kernel",
            State::Open(_) => "source open",
            State::Checking(_) => "source checking",
            State::Proving(_) => "source proving what it began with",
            State::Checked(_) => "source checked",
            State::Done => "source done",
        }
    }
}

impl Slot {
    fn is_ready(&self) -> bool {
        matches!(self.content, Content::Raw(_) | Content::Packed(..))
    }
}
