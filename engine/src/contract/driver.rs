//! What the tests of the contract share: submitting, taking turns, and watching that each operation completes once.

use super::{Arrived, Flavor, LIMIT, Peer, Rig};
use crate::backend::{
    Backend, Cancel, Completion, Errno, FileId, Op, OpKind, OpenMode, Output, Place, SessionId, StreamId, Submissions,
    Time, Token,
};
use crate::block::{Class, Pool, Slices};
use crate::wire::path::{RelPath, RequestPath, Target};
use std::collections::BTreeMap;
use std::mem::Discriminant;
use std::time::Instant;

/// Blocks of each class in a driver's pool.
pub(super) const POOL_BLOCKS: usize = 16;
/// Nanoseconds one turn of a [`Driver`] waits at most, because a peer in the same thread wants its turn.
const TURN: u64 = 1_000_000;
/// The session under which a [`Driver`] submits unless told otherwise.
pub(super) const SESSION: SessionId = SessionId(1);

/// Submits operations, takes turns, and sees to it that each operation completes exactly once.
///
/// An operation is known by its part, which is also its transfer: `Cancel::Transfer(SESSION, part)` means it alone.
pub(super) struct Driver<R: Rig> {
    pub(super) rig: R,
    pub(super) pool: Pool,
    submissions: Submissions,
    fresh: Vec<Completion>,
    done: BTreeMap<u32, Completion>,
    out: BTreeMap<u32, (Discriminant<OpKind>, String)>,
    next: u32,
    started: Instant,
    pub(super) meter: Option<Meter>,
}

/// Counts what [`Backend::submit_and_wait`] allocates.
pub(super) struct Meter {
    pub(super) allocations: Box<dyn Fn() -> u64>,
    pub(super) counted: u64,
}

impl<R: Rig> Driver<R> {
    pub(super) fn new() -> Driver<R> {
        Driver {
            rig: R::new(),
            pool: Pool::new(POOL_BLOCKS, POOL_BLOCKS),
            submissions: Submissions::default(),
            fresh: Vec::with_capacity(64),
            done: BTreeMap::new(),
            out: BTreeMap::new(),
            next: 1,
            started: Instant::now(),
            meter: None,
        }
    }

    /// A driver and a stream of this flavor; `None` where the rig has none.
    pub(super) fn with_stream(flavor: Flavor) -> Option<(Driver<R>, StreamId, R::Peer)> {
        let mut driver = Driver::<R>::new();
        let (stream, peer) = driver.rig.stream(flavor)?;
        Some((driver, stream, peer))
    }

    pub(super) fn submit(&mut self, kind: OpKind) -> u32 {
        self.submit_for(SESSION, kind)
    }

    pub(super) fn submit_for(&mut self, session: SessionId, kind: OpKind) -> u32 {
        let part = self.next;
        self.next += 1;
        self.out.insert(part, (std::mem::discriminant(&kind), format!("{kind:?}")));
        self.submissions.push(Token { session, transfer: part, part }, kind);
        part
    }

    pub(super) fn cancel(&mut self, cancel: Cancel) {
        self.submissions.cancel(cancel);
    }

    pub(super) fn cancel_one(&mut self, part: u32) {
        self.cancel(Cancel::Transfer(SESSION, part));
    }

    pub(super) fn outstanding(&self) -> usize {
        self.out.len()
    }

    /// One turn of at most [`TURN`].
    pub(super) fn turn(&mut self) {
        let deadline = self.rig.backend().now().after(TURN);
        self.turn_until(Some(deadline));
    }

    /// One turn with this deadline; true when something completed.
    pub(super) fn turn_until(&mut self, deadline: Option<Time>) -> bool {
        assert!(self.started.elapsed() < LIMIT, "hangs; still out: {:#?}", self.out);
        let before = self.meter.as_ref().map_or(0, |meter| (meter.allocations)());
        let turn = self.rig.backend().submit_and_wait(&mut self.submissions, &mut self.fresh, deadline);
        if let Some(meter) = &mut self.meter {
            meter.counted += (meter.allocations)() - before;
        }
        turn.expect("the backend works");
        assert!(self.submissions.is_empty(), "a backend takes everything it is given");
        let any = !self.fresh.is_empty();
        for completion in self.fresh.drain(..) {
            let Op { token, kind } = &completion.op;
            let known = self.out.remove(&token.part);
            let (submitted, _) = known.unwrap_or_else(|| panic!("completed twice or never submitted: {completion:?}"));
            assert_eq!(submitted, std::mem::discriminant(kind), "another op under the token of part {}", token.part);
            assert_eq!(token.transfer, token.part, "tokens come back unchanged");
            self.done.insert(token.part, completion);
        }
        if !any {
            self.rig.idle();
        }
        any
    }

    /// Turns until `reached` says so.
    pub(super) fn until(&mut self, mut reached: impl FnMut(&mut Driver<R>) -> bool) {
        while !reached(self) {
            self.turn();
        }
    }

    /// A number of turns, for "nothing happens".
    pub(super) fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    /// The completion of a part, once.
    pub(super) fn taken(&mut self, part: u32) -> Option<Completion> {
        self.done.remove(&part)
    }

    pub(super) fn is_out(&self, part: u32) -> bool {
        self.out.contains_key(&part)
    }

    pub(super) fn is_done(&self, part: u32) -> bool {
        self.done.contains_key(&part)
    }

    /// Turns until this part has completed.
    pub(super) fn wait(&mut self, part: u32) -> Completion {
        loop {
            if let Some(completion) = self.taken(part) {
                return completion;
            }
            self.turn();
        }
    }

    /// Submits and waits.
    pub(super) fn run(&mut self, kind: OpKind) -> Result<Output, Errno> {
        let part = self.submit(kind);
        self.wait(part).result
    }

    pub(super) fn open(&mut self, place: Place, mode: OpenMode) -> Result<FileId, Errno> {
        match self.run(OpKind::Open { place, mode })? {
            Output::Opened { file, .. } => Ok(file),
            other => panic!("Open brought {other:?}"),
        }
    }

    pub(super) fn open_to_read(&mut self, name: &str) -> FileId {
        let place = self.place(name);
        self.open(place, OpenMode::Read).expect("a file to read")
    }

    /// A file of the root directory that can be read through the backend.
    pub(super) fn source(&mut self, name: &str, bytes: &[u8]) -> FileId {
        self.rig.write_file(name, bytes);
        self.open_to_read(name)
    }

    /// A name in the root directory, as a user would type it.
    pub(super) fn place(&self, operand: &str) -> Place {
        let operand = RequestPath::parse(operand.as_bytes()).expect("a good path");
        Place { dir: self.rig.root(), target: Target { operand, below: None } }
    }

    /// A name below an operand, as a peer would send it.
    pub(super) fn place_below(&self, operand: &str, below: &str) -> Place {
        let below = RelPath::parse(below.as_bytes()).expect("a good name");
        let mut place = self.place(operand);
        place.target.below = Some(below);
        place
    }

    /// `bytes` in blocks of the pool.
    pub(super) fn slices(&mut self, bytes: &[u8]) -> Slices {
        let mut slices = Slices::new();
        for chunk in bytes.chunks(Class::Large.bytes()) {
            let class = if chunk.len() > Class::Small.bytes() { Class::Large } else { Class::Small };
            let mut block = self.pool.take_reserved(class).expect("tests stay within their pool");
            block.bytes_mut()[..chunk.len()].copy_from_slice(chunk);
            slices.push(block.share().slice(0..chunk.len()));
        }
        slices
    }

    /// Submits a Send of `head` and `body`.
    pub(super) fn send(&mut self, stream: StreamId, head: &[u8], body: &[u8]) -> u32 {
        let body = self.slices(body);
        self.submit(OpKind::Send { stream, head: head.iter().copied().collect(), body })
    }

    /// Submits a Send of `bytes` over and over, `times` times: more than any socket buffer takes, from little memory.
    pub(super) fn send_repeated(&mut self, stream: StreamId, bytes: &[u8], times: usize) -> u32 {
        let once = self.slices(bytes);
        let body = std::iter::repeat_n(once, times).flatten().collect();
        self.submit(OpKind::Send { stream, head: [0x5a].into_iter().collect(), body })
    }

    /// Submits a Recv into a fresh small block.
    pub(super) fn recv(&mut self, stream: StreamId, at_least: usize) -> u32 {
        let into = self.pool.take_reserved(Class::Small).expect("tests stay within their pool");
        self.submit(OpKind::Recv { stream, into, at_least })
    }

    /// Bytes that a Recv brought.
    pub(super) fn received(&mut self, part: u32) -> Result<Vec<u8>, Errno> {
        let Completion { op, result } = self.wait(part);
        match (op.kind, result?) {
            (OpKind::Recv { into, .. } | OpKind::Read { into, .. }, Output::Bytes(count)) => {
                Ok(into.bytes()[..count].to_vec())
            }
            other => panic!("not bytes: {other:?}"),
        }
    }

    /// Turns while reading `chunk` bytes a turn from the far end, until `got` is `len` bytes long.
    pub(super) fn collect(&mut self, peer: &mut R::Peer, got: &mut Vec<u8>, len: usize, chunk: usize) {
        self.until(|_| {
            match peer.read(chunk.min(len - got.len())) {
                Arrived::Bytes(bytes) => got.extend(bytes),
                Arrived::Nothing => {}
                Arrived::End => assert_eq!(got.len(), len, "the stream ended early"),
            }
            got.len() >= len
        });
    }

    /// Turns while reading everything from the far end, until the stream ends.
    pub(super) fn collect_to_end(&mut self, peer: &mut R::Peer) -> Vec<u8> {
        let mut got = Vec::new();
        self.until(|_| match peer.read(1 << 18) {
            Arrived::Bytes(bytes) => {
                got.extend(bytes);
                false
            }
            Arrived::Nothing => false,
            Arrived::End => true,
        });
        got
    }

    /// Turns until the far end has taken all of `bytes`.
    pub(super) fn feed(&mut self, peer: &mut R::Peer, mut bytes: &[u8]) {
        self.until(|_| {
            bytes = &bytes[peer.write(bytes)..];
            bytes.is_empty()
        });
    }

    /// The end of a test: everything has completed, every block is back in the pool.
    pub(super) fn finish(mut self) {
        self.until(|driver| driver.out.is_empty());
        self.done.clear();
        self.assert_pool_full();
    }

    pub(super) fn assert_pool_full(&self) {
        for class in [Class::Small, Class::Large] {
            assert_eq!(self.pool.available(class), POOL_BLOCKS, "blocks of class {class:?} did not come back");
        }
    }

    /// Forgets completions that nobody took, and their blocks.
    pub(super) fn forget_done(&mut self) {
        self.done.clear();
    }

    /// Drops the backend with everything in flight.
    pub(super) fn drop_backend(&mut self) {
        self.rig.drop_backend();
        self.out.clear();
        self.done.clear();
    }
}
