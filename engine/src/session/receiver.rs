//! Frames to a file: the receiving half of Put (server) and Get (client).
//!
//! ```text
//!              +-> Small: copied into one small block ----------------------------> Storing --+
//! new --start--+                                                                              +-> Done(hash | failure)
//!              +-> Opening -> Open: each piece written from the block it came in -> Publishing
//!                             [fill from a store | hash what is there] .. [keep in the store]
//! ```
//! `Opening` and `Open` keep pieces in order by offset, so writes may complete in any order. Whatever goes wrong, the
//! file under the final name is the old one: a failure closes the file being made, which leaves no trace.
//! Predecessor of every state: the one to its left; successor of every state also `Done` with a failure.

use super::dedup::{Filling, block_count};
use super::digest::Digest;
use super::hashing::Hashing;
use super::inflow::{Inflow, Step};
use super::{Failure, Io, Outcome, verb};
use crate::backend::{Compute, DirId, Errno, FileId, Finish, FsOp, OpKind, OpenMode, Output, Place, Store};
use crate::block::{Block, Class, Slice, Slices};
use crate::limits::SMALL_BYTES;
use crate::tree_hash::{BlockHash, ContentHash, HASH_BLOCK_BYTES, RangeHash, TreeHash};
use crate::wire::MAX_HASHES;
use crate::wire::compress::Codec;
use crate::wire::frame::{Attributes, Caps, Hash, Preserve, Unkept};

const OPEN: u32 = 10;
const WRITE: u32 = 11;
const PUBLISH: u32 = 12;
const STORE: u32 = 13;
const CLOSE: u32 = 14;

/// What to receive and where to.
pub(crate) struct Order {
    pub(crate) place: Place,
    /// For messages.
    pub(crate) path: Vec<u8>,
    /// Final size in bytes; of a range of a file, where it ends.
    pub(crate) size: u64,
    /// First byte that will come.
    pub(crate) offset: u64,
    pub(crate) overwrite: bool,
    pub(crate) way: Way,
    /// Nobody wants the hash.
    pub(crate) unhashed: bool,
    /// Of a [`Way::Continued`]: so many of the last blocks that are there are hashed for themselves, too.
    pub(crate) alone: usize,
    pub(crate) finish: Finish,
}

/// How a file comes into being.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// Without a name until it is complete.
    New,
    /// The same, but what has arrived stays when the transfer is interrupted, and what stayed is there to begin with.
    Continued,
    /// The same, but what stayed counts for nothing: all of it comes again.
    Afresh,
    /// Written to where it stands: a range of a file that others write to as well.
    InPlace,
    /// A range of a file that is being made by somebody in this process, who knows it by this token.
    Joined(u64),
}

enum State {
    /// Whole content in one small block.
    Small(Block),
    /// The file is being opened; pieces wait.
    Opening(Vec<(u64, Slice)>),
    Open(FileId),
    /// Publish or Store is out.
    Naming,
    Done,
}

/// A file being received.
pub(crate) struct Receiver {
    order: Order,
    state: State,
    inflow: Inflow,
    /// End of what has arrived, in bytes of the file.
    received: u64,
    digest: Digest,
    writes: usize,
    filling: Option<Filling>,
    /// What was there to begin with.
    hashing: Option<Hashing>,
    /// The sender's hash is of what is received behind what was there, not of the whole.
    apart: bool,
    /// Nothing more will come; what the sender says the hash is.
    finished: Option<Option<Hash>>,
    /// What came was looked at as a whole.
    settled: bool,
    failure: Option<Failure>,
    unkept: Unkept,
}

impl Receiver {
    /// Begins to receive.
    pub(crate) fn start(order: Order, io: &mut Io<'_, '_>) -> Receiver {
        let small = order.offset == 0 && order.size <= SMALL_BYTES as u64 && order.way == Way::New;
        let block = if small { io.take(Class::Small) } else { None };
        let state = block.map_or_else(|| Receiver::open(&order, io), State::Small);
        let received = order.offset;
        let joined = matches!(order.way, Way::Joined(_));
        let range = (joined && !order.unhashed).then(|| RangeHash::new(received / HASH_BLOCK_BYTES as u64));
        let whole = (!joined && !order.unhashed).then(TreeHash::new);
        Receiver {
            order,
            state,
            inflow: Inflow::default(),
            received,
            digest: Digest::new(ContentHash { whole, range, tail: None }),
            writes: 0,
            filling: None,
            hashing: None,
            apart: false,
            finished: None,
            settled: false,
            failure: None,
            unkept: Unkept::default(),
        }
    }

    fn open(order: &Order, io: &mut Io<'_, '_>) -> State {
        let mode = match order.way {
            Way::InPlace => OpenMode::InPlace { truncate: None },
            Way::Joined(token) => OpenMode::Join { token },
            Way::Continued | Way::Afresh => OpenMode::Continue { size: order.size, token: None },
            Way::New => OpenMode::Create { size: order.size, keep: order.offset, overwrite: order.overwrite },
        };
        io.submit(OPEN, OpKind::Open { place: order.place.clone(), mode });
        State::Opening(Vec::new())
    }

    /// True once the file is open.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// It has another size than was known when it was opened. Only of a [`Way::New`] of which nothing has come.
    pub(crate) fn set_size(&mut self, size: u64) {
        self.order.size = size;
    }

    /// Attributes the sender gave for the file.
    pub(crate) fn set_attributes(&mut self, attributes: Attributes, preserve: Preserve) {
        self.order.finish.attributes = Some(attributes);
        self.order.finish.preserve = preserve;
    }

    /// Blocks the sender has; those that `store` has as well need not come.
    pub(crate) fn offer_blocks(
        &mut self,
        block_size: u32,
        hashes: Vec<Hash>,
        store: Option<DirId>,
        io: &mut Io<'_, '_>,
    ) {
        if !self.takes_content() {
            return;
        }
        if self.has_begun() || self.filling.is_some() || self.order.way != Way::New {
            let rule = "blocks are offered before any content, once";
            return self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io);
        }
        if std::mem::take(&mut self.order.unhashed) {
            // Whoever hashes its blocks has the hash of the whole.
            self.digest = Digest::new(ContentHash { whole: Some(TreeHash::new()), range: None, tail: None });
        }
        // A small file is not in a file yet, and not worth looking for.
        let store = store.filter(|_| !matches!(self.state, State::Small(_)));
        match Filling::new(self.order.size, block_size, hashes, store) {
            Ok(filling) => self.filling = Some(filling),
            Err(rule) => self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io),
        }
    }

    /// True once content has come; it may still be with the codec.
    fn has_begun(&self) -> bool {
        self.received != 0 || !self.inflow.is_empty()
    }

    /// Which of the offered blocks must be sent, once that is known.
    pub(crate) fn missing_blocks(&mut self, io: &mut Io<'_, '_>) -> Option<Vec<u8>> {
        if self.failure.is_some() {
            return None;
        }
        let filling = self.filling.as_mut()?;
        let known = match self.state {
            State::Small(_) => true,
            State::Open(file) => filling.fill(file, io),
            _ => false,
        };
        known.then(|| filling.missing())
    }

    /// How many blocks were there to begin with, once that is known. Of a [`Way::Continued`] only.
    pub(crate) fn kept_count(&self) -> Option<usize> {
        self.hashing.as_ref().map(|hashing| usize::try_from(hashing.wanted()).unwrap_or(usize::MAX))
    }

    /// The blocks that were there to begin with, once they are hashed. Of a [`Way::Continued`] only.
    pub(crate) fn kept_blocks(&self) -> Option<Vec<BlockHash>> {
        self.hashing.as_ref().filter(|_| self.failure.is_none()).and_then(Hashing::done)
    }

    /// What was there counts up to `offset`: the end of one of these blocks. With `apart`, the hash at the end will be of
    /// what comes now, not of the whole.
    pub(crate) fn skip(&mut self, offset: u64, blocks: &[BlockHash], apart: bool, io: &mut Io<'_, '_>) {
        let count = block_count(offset);
        let ends_there = offset == self.order.size || offset.is_multiple_of(HASH_BLOCK_BYTES as u64);
        if count > blocks.len() as u64 || !ends_there || self.has_begun() {
            let rule = format!("it cannot go on at byte {offset}");
            return self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io);
        }
        // Bounded by their number, which is that of things in memory.
        blocks[..count as usize].iter().for_each(|&block| self.digest.push(block));
        self.received = offset;
        self.apart = apart && offset > 0;
        // Nothing has come, so nothing is being hashed.
        if let Some(hash) = self.digest.get_mut().filter(|_| self.apart) {
            hash.tail = Some(blake3::Hasher::new());
        }
        io.progress.skipped(offset);
    }

    /// True when pieces can be taken; while it is not, nothing more may be parsed.
    pub(crate) fn is_ready(&mut self, io: &mut Io<'_, '_>) -> bool {
        self.failure.is_some() || self.inflow.is_ready(io)
    }

    /// A data frame of `len` bytes begins.
    pub(crate) fn begin(&mut self, len: usize, io: &mut Io<'_, '_>) {
        if self.takes_content() {
            self.inflow.begin_raw(len);
            self.pump(io);
        }
    }

    /// A compressed data frame begins.
    pub(crate) fn begin_packed(&mut self, codec: Codec, original: usize, len: usize, io: &mut Io<'_, '_>) {
        if !self.takes_content() {
            return;
        }
        if !(io.terms.caps.has(Caps::LZ4) || io.terms.caps.has(Caps::ZSTD)) {
            let rule = "compressed content was not agreed on";
            return self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io);
        }
        if Class::for_bytes(len.max(original)) == Some(Class::Frame) && io.quotas.frame.limit() == 0 {
            let rule = format!("{original} bytes compressed as one were not agreed on");
            return self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io);
        }
        io.progress.unpacked(len, original);
        self.inflow.begin_packed(codec, original, len);
        self.pump(io);
    }

    /// Takes the next bytes of the frame that began last.
    pub(crate) fn piece(&mut self, piece: Slice, io: &mut Io<'_, '_>) {
        if self.takes_content() {
            self.inflow.piece(piece);
            self.pump(io);
        }
    }

    /// The frame is complete.
    pub(crate) fn end(&mut self, io: &mut Io<'_, '_>) {
        if self.takes_content() {
            self.inflow.end(io);
            self.pump(io);
        }
    }

    fn takes_content(&self) -> bool {
        self.failure.is_none() && self.finished.is_none()
    }

    fn pump(&mut self, io: &mut Io<'_, '_>) {
        while self.failure.is_none()
            && let Some(step) = self.inflow.next()
        {
            match step {
                Step::Begin(len) => self.on_begin(len, io),
                Step::Bytes(bytes) => self.content(bytes, io),
                Step::End => {}
                Step::Bad(errno) => self.fail(Failure::here(&self.order.path, "cannot receive", errno), io),
            }
        }
    }

    fn on_begin(&mut self, len: usize, io: &mut Io<'_, '_>) {
        let Some(filling) = &mut self.filling else { return };
        match filling.begin(len, |known| self.digest.push(known)) {
            Ok(offset) => self.received = offset,
            Err(rule) => self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io),
        }
    }

    fn content(&mut self, piece: Slice, io: &mut Io<'_, '_>) {
        let at = self.received;
        let end = at.checked_add(piece.len() as u64).filter(|&end| end <= self.order.size);
        let Some(end) = end else {
            let rule = format!("content goes past the declared size of {} bytes", self.order.size);
            return self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io);
        };
        self.received = end;
        if !self.order.unhashed || self.apart {
            self.digest.update(&piece, io);
        }
        io.progress.moved(piece.len());
        match &mut self.state {
            State::Small(block) => {
                let at = usize::try_from(at).expect("small");
                block.bytes_mut()[at..at + piece.len()].copy_from_slice(piece.bytes());
            }
            State::Opening(waiting) => waiting.push((at, piece)),
            &mut State::Open(file) => self.write(file, at, piece, io),
            State::Naming | State::Done => {}
        }
    }

    fn write(&mut self, file: FileId, offset: u64, from: Slice, io: &mut Io<'_, '_>) {
        self.writes += 1;
        io.submit(WRITE, OpKind::Write { file, offset, from });
    }

    /// All content has come. `expected` is compared before the file gets its name.
    pub(crate) fn finish(&mut self, expected: Option<Hash>, io: &mut Io<'_, '_>) {
        self.finished.get_or_insert(expected);
        self.advance(io);
    }

    /// Looks at what came as a whole, once it is hashed.
    fn settle(&mut self, expected: Option<Hash>, io: &mut Io<'_, '_>) {
        self.settled = true;
        if let Some(filling) = &mut self.filling {
            self.received = self.received.max(filling.pass_known(|known| self.digest.push(known)));
        }
        if self.failure.is_none() && self.received != self.order.size {
            let rule = format!("declared {} bytes, received {}", self.order.size, self.received);
            self.fail(Failure::rule(&self.order.path, "incomplete", rule), io);
        }
        let Some(expected) = expected.filter(|_| self.failure.is_none()) else { return };
        if self.order.unhashed && !self.apart {
            // A hash that was not agreed on, and counts nevertheless: what was written is read again for it.
            self.order.finish.verify = Some(expected);
            return;
        }
        let tail = self.digest.get().and_then(|hash| hash.tail.as_ref());
        let of_what_came = tail.map(|tail| *tail.finalize().as_bytes()).or_else(|| self.hash());
        if Some(expected) != of_what_came {
            self.fail(Failure::here(&self.order.path, "not published", Errno::HASH_MISMATCH), io);
        }
    }

    /// Chaining values of the blocks of the range that has arrived.
    pub(crate) fn take_range(&mut self) -> Vec<Hash> {
        self.digest.get_mut().and_then(|hash| hash.range.take()).map(RangeHash::finish).unwrap_or_default()
    }

    /// BLAKE3 of what has arrived, unless nobody wants it or a helper is still at it.
    fn hash(&self) -> Option<Hash> {
        self.digest.get()?.whole.as_ref().map(TreeHash::finalize)
    }

    /// Gives the file up for this reason, unless it failed already.
    pub(crate) fn fail(&mut self, failure: Failure, io: &mut Io<'_, '_>) {
        if matches!(self.state, State::Done) {
            return;
        }
        self.failure.get_or_insert(failure);
        self.forget();
        match std::mem::replace(&mut self.state, State::Done) {
            State::Open(file) => io.submit(CLOSE, OpKind::Close { file }),
            // Once opened, or named, the completion decides.
            State::Opening(_) => self.state = State::Opening(Vec::new()),
            State::Naming => self.state = State::Naming,
            State::Small(_) | State::Done => {}
        }
    }

    /// What has come counts for nothing after all, for this reason.
    pub(crate) fn refuse(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Lets go of what nobody needs any more: its reply may have to wait for long.
    fn forget(&mut self) {
        self.inflow.clear();
        self.digest.clear();
        self.filling = None;
        self.hashing = None;
    }

    /// Takes note of a completion of its own operations.
    pub(crate) fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        match (kind, outcome) {
            (OpKind::Open { .. }, Ok(Output::Opened { file, attributes })) => self.on_opened(file, attributes.size, io),
            (OpKind::Open { .. }, Err(errno)) => {
                self.forget();
                self.state = State::Done;
                self.failure.get_or_insert(Failure::here(&self.order.path, "cannot create", errno));
            }
            (OpKind::Write { .. }, outcome) => {
                self.writes -= 1;
                if let Err(errno) = outcome {
                    self.fail(Failure::here(&self.order.path, "cannot write", errno), io);
                }
            }
            (OpKind::Publish { .. } | OpKind::Store(_), outcome) => {
                self.filling = None;
                self.state = State::Done;
                match outcome {
                    Ok(output) => self.unkept = verb::unkept(&output),
                    Err(errno) => {
                        self.failure.get_or_insert(Failure::here(&self.order.path, "cannot create", errno));
                    }
                }
            }
            (OpKind::Compute(compute), outcome) => match *compute {
                digest @ Compute::Digest { .. } => {
                    if let Err(errno) = self.digest.on_hashed(digest, outcome, io) {
                        self.fail(Failure::here(&self.order.path, "cannot hash", errno), io);
                    }
                }
                unpack => {
                    self.inflow.on_unpacked(unpack, outcome);
                    self.pump(io);
                }
            },
            (OpKind::Fs(op), outcome) => match (*op, &mut self.filling) {
                (FsOp::HashBlocks { first, .. }, _) => self.on_hashed(first, outcome, io),
                (FsOp::FillBlocks { hashes, .. }, Some(filling)) => filling.on_filled(hashes.len(), outcome),
                (FsOp::KeepBlocks { .. }, Some(filling)) => filling.on_kept(),
                _ => {}
            },
            _ => {}
        }
        self.advance(io);
    }

    fn on_hashed(&mut self, first: u64, outcome: Outcome, io: &mut Io<'_, '_>) {
        let Some(hashing) = &mut self.hashing else { return };
        if let Err(errno) = hashing.on_hashed(first, outcome) {
            return self.fail(Failure::here(&self.order.path, "cannot read what is there", errno), io);
        }
        if let State::Open(file) = self.state {
            hashing.advance(file, io);
        }
    }

    fn on_opened(&mut self, file: FileId, there: u64, io: &mut Io<'_, '_>) {
        let State::Opening(waiting) = std::mem::replace(&mut self.state, State::Open(file)) else { return };
        if self.failure.is_some() {
            self.state = State::Done;
            return io.submit(CLOSE, OpKind::Close { file });
        }
        if matches!(self.order.way, Way::Joined(_)) && self.order.size > there {
            let rule = format!("the range is not part of its {there} bytes");
            return self.fail(Failure::rule(&self.order.path, "cannot receive", rule), io);
        }
        if self.order.way == Way::Continued {
            // Whole blocks, and the last one only if exactly the file may be there.
            let size = self.order.size;
            let whole = if there == size { block_count(size) } else { there.min(size) / HASH_BLOCK_BYTES as u64 };
            let whole = whole.min(MAX_HASHES as u64);
            let mut hashing = Hashing::new(whole, whole.saturating_sub(self.order.alone as u64));
            hashing.advance(file, io);
            self.hashing = Some(hashing);
        }
        for (offset, piece) in waiting {
            self.write(file, offset, piece, io);
        }
    }

    /// Names the file once it is complete and written.
    fn advance(&mut self, io: &mut Io<'_, '_>) {
        let Some(expected) = self.finished else { return };
        if self.failure.is_none() && !(self.inflow.is_empty() && self.digest.is_idle()) {
            return;
        }
        if !self.settled {
            self.settle(expected, io);
        }
        if self.failure.is_some() || self.writes > 0 {
            return;
        }
        if let (State::Open(file), Some(filling)) = (&self.state, &mut self.filling)
            && !filling.keep(*file, io)
        {
            return;
        }
        if let (Way::Joined(_), &State::Open(file)) = (self.order.way, &self.state) {
            // Whoever made it gives it its name.
            self.state = State::Done;
            return io.submit(CLOSE, OpKind::Close { file });
        }
        if self.order.finish.preserve.has(Preserve::VERIFY) {
            self.order.finish.verify = self.hash();
        }
        match std::mem::replace(&mut self.state, State::Naming) {
            State::Open(file) => {
                io.submit(PUBLISH, OpKind::Publish { file, finish: Box::new(self.order.finish) });
            }
            State::Small(block) => {
                let len = usize::try_from(self.received).expect("small");
                let from = if len == 0 { Slices::new() } else { Slices::from_iter([block.share().slice(0..len)]) };
                let (place, overwrite) = (self.order.place.clone(), self.order.overwrite);
                let store = Store { place, from, finish: self.order.finish, overwrite };
                io.submit(STORE, OpKind::Store(Box::new(store)));
            }
            other => self.state = other,
        }
    }

    /// How it ended: the hash and size of what now bears the name, or why nothing does. `None` while it goes on.
    pub(crate) fn result(&self) -> Option<Result<(Option<Hash>, u64), Failure>> {
        match (&self.state, &self.failure) {
            (State::Done, Some(failure)) if self.writes == 0 => Some(Err(failure.clone())),
            (State::Done, None) => Some(Ok((self.hash(), self.order.size))),
            _ => None,
        }
    }

    /// The attributes that what now bears the name could not be given.
    pub(crate) fn unkept(&self) -> Unkept {
        self.unkept
    }

    pub(crate) fn order(&self) -> &Order {
        &self.order
    }

    pub(crate) fn state(&self) -> &'static str {
        match (&self.state, self.finished.is_some()) {
            (State::Small(_), _) => "receiver small",
            (State::Opening(_), false) => "receiver opening",
            (State::Opening(_), true) => "receiver opening, all arrived",
            (State::Open(_), false) if self.hashing.as_ref().is_some_and(Hashing::is_busy) => {
                "receiver hashing what is there"
            }
            (State::Open(_), false) if self.filling.is_some() => "receiver open, blocks offered",
            (State::Open(_), false) => "receiver open",
            (State::Open(_), true) => "receiver open, all arrived",
            (State::Naming, _) => "receiver naming",
            (State::Done, _) => "receiver done",
        }
    }
}
