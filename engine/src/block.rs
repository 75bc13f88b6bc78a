//! Owned, counted buffers.
//!
//! A [`Block`] is a page-aligned buffer with one owner: a session, an operation, or the kernel while an operation is in
//! flight. [`Block::share`] turns it into a [`Shared`], from which any number of [`Slice`]s can be cut; when the last
//! of them is gone the memory returns to its [`Pool`]. Nothing is ever copied here, and no buffer is reachable for
//! writing from two places.
//!
//! ```text
//! Pool --take--> Block --(Recv, Read fill it)--> Block --share--> Shared --slice--> Slice, Slice, ..
//!  ^                |                                                                  |
//!  +----- drop -----+------------------------------- last drop ------------------------+
//! ```
//!
//! In front of and behind its bytes a block has room: a frame's header and a record's tag are put there in place, by whoever
//! owns the block alone ([`Block::set_window`], [`Slice::into_block`]).
//!
//! Back-pressure is ownership: a [`Quota`] bounds what one session holds, the pool bounds what a worker holds, and whoever finds
//! neither waits for a completion to bring a block back. Where sessions of different peers share a pool, each has a share of it
//! that nobody else can take ([`Quota::with_share`]): a peer that takes nothing off, or sends half of what it announced, may hold
//! blocks for a minute.

use crate::limits::{
    BLOCK_BYTES, DAEMON_SMALL_BLOCKS, FRAME_BYTES, LEAST_FRAME_BLOCKS, LEAST_SMALL_BLOCKS, MAX_SERVED, MAX_SESSIONS,
    PAGE_BYTES, POOL_FRAME_BLOCKS, POOL_LARGE_BLOCKS, POOL_SMALL_BLOCKS, READ_WINDOW_BLOCKS, RECEIVE_BLOCKS,
    ROOM_BYTES, SERVED_LARGE_BLOCKS, SERVED_SHARES, SERVED_SMALL_BLOCKS, SHARE_LARGE_BLOCKS, SHARE_SMALL_BLOCKS,
    SMALL_BYTES,
};
use smallvec::SmallVec;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

#[repr(C, align(4096))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Page([u8; PAGE_BYTES]);

/// Size class of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// [`SMALL_BYTES`]
    Small,
    /// [`BLOCK_BYTES`]
    Large,
    /// [`FRAME_BYTES`]
    Frame,
}

impl Class {
    /// The smallest class that holds so many bytes; `None` when none does.
    pub fn for_bytes(bytes: usize) -> Option<Class> {
        [Class::Small, Class::Large, Class::Frame].into_iter().find(|class| class.bytes() >= bytes)
    }

    /// Bytes a block of this class holds.
    pub const fn bytes(self) -> usize {
        match self {
            Class::Small => SMALL_BYTES,
            Class::Large => BLOCK_BYTES,
            Class::Frame => FRAME_BYTES,
        }
    }
}

/// Memory of one block, with a number no other memory of this process ever had: an address may come to mean other
/// memory, a number does not.
#[derive(Default)]
struct Pages {
    number: u64,
    pages: Box<[Page]>,
}

impl Pages {
    /// `None` when the system gives no memory.
    fn new(class: Class) -> Option<Pages> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let pages = bytemuck::try_zeroed_slice_box((ROOM_BYTES + class.bytes() + ROOM_BYTES) / PAGE_BYTES).ok()?;
        Some(Pages { number: NEXT.fetch_add(1, Ordering::Relaxed), pages })
    }
}

/// Blocks of one class that are not in use, and how many are.
struct Shelf {
    free: Mutex<Vec<Pages>>,
    out: AtomicUsize,
    limit: usize,
    /// Blocks that are out beyond the shares of those who hold them, and how many may be.
    beyond: AtomicUsize,
    beyond_limit: usize,
}

/// What one session may hold of one class.
#[derive(Clone)]
pub struct Quota(Arc<QuotaState>);

struct QuotaState {
    /// What was taken first: shares are counted by class.
    class: OnceLock<Class>,
    held: AtomicUsize,
    limit: usize,
    share: usize,
}

impl Quota {
    /// A quota of `limit` blocks.
    pub fn new(limit: usize) -> Quota {
        Quota::with_share(limit, 0)
    }

    /// A quota of `limit` blocks, `share` of which its pool has set aside ([`Pool::setting_aside`]).
    pub fn with_share(limit: usize, share: usize) -> Quota {
        Quota(Arc::new(QuotaState { class: OnceLock::new(), held: AtomicUsize::new(0), limit, share }))
    }

    /// Blocks that may be held.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Blocks held now.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Acquire)
    }

    /// Blocks that may still be taken.
    pub fn left(&self) -> usize {
        self.0.limit.saturating_sub(self.held())
    }
}

struct Storage {
    pages: Pages,
    shelf: Arc<Shelf>,
    quota: Option<Quota>,
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.pages.pages)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.pages.pages)
    }
}

impl Shelf {
    fn new(limit: usize, aside: usize) -> Arc<Shelf> {
        let (free, beyond_limit) = (Mutex::new(Vec::with_capacity(limit)), limit.saturating_sub(aside));
        Arc::new(Shelf { free, out: AtomicUsize::new(0), limit, beyond: AtomicUsize::new(0), beyond_limit })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        // A poisoned list of free buffers is still a list of free buffers.
        self.shelf.free.lock().unwrap_or_else(PoisonError::into_inner).push(pages);
        self.shelf.out.fetch_sub(1, Ordering::AcqRel);
        if let Some(quota) = &self.quota
            && quota.0.held.fetch_sub(1, Ordering::AcqRel) > quota.0.share
        {
            self.shelf.beyond.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// One worker's supply of blocks. Memory is allocated on first use and kept.
pub struct Pool {
    small: Arc<Shelf>,
    large: Arc<Shelf>,
    frame: Arc<Shelf>,
    starved: bool,
    /// Shares that nobody has claimed, and the small and large blocks of each.
    shares: Option<(Arc<AtomicUsize>, [usize; 2])>,
    /// Claims to frame blocks that nobody has.
    framed: Option<Arc<AtomicUsize>>,
}

/// What a pool sets aside.
/// The blocks of a share are no others than any: they are counted.
#[derive(Clone, Copy, Debug)]
pub struct Aside {
    /// Sessions that have a share.
    pub sessions: usize,
    /// Small blocks of each share.
    pub small: usize,
    /// Large blocks of each share.
    pub large: usize,
    /// Sessions that have [`RECEIVE_BLOCKS`] to receive into beside that.
    pub receiving: usize,
    /// Sessions that may use frame blocks at the same time, if not all may.
    pub framed: Option<usize>,
}

/// One of a number of things, back when it is dropped.
#[derive(Debug)]
pub struct Claim(Arc<AtomicUsize>);

impl Claim {
    fn of(left: &Arc<AtomicUsize>) -> Option<Claim> {
        let taken = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        taken.is_ok().then(|| Claim(left.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// Blocks that nobody else gets.
#[derive(Debug)]
pub struct Share {
    /// Small ones.
    pub small: usize,
    /// Large ones.
    pub large: usize,
    _claim: Claim,
}

impl Pool {
    /// A pool that never has more than these numbers of blocks out, and [`POOL_FRAME_BLOCKS`] of class `Frame`.
    pub fn new(small: usize, large: usize) -> Pool {
        Pool::with_frames(small, large, POOL_FRAME_BLOCKS)
    }

    /// The same with another number of those.
    pub fn with_frames(small: usize, large: usize, frame: usize) -> Pool {
        let [small, large, frame] = [small, large, frame].map(|limit| Shelf::new(limit, 0));
        Pool { small, large, frame, starved: false, shares: None, framed: None }
    }

    /// The pool of a server whose one client came by ssh, and may come again by direct connections.
    pub fn of_meetings() -> Pool {
        Pool::new(SERVED_SMALL_BLOCKS, SERVED_LARGE_BLOCKS).setting_aside(Aside {
            sessions: SERVED_SHARES,
            small: SHARE_SMALL_BLOCKS,
            large: SHARE_LARGE_BLOCKS,
            receiving: 1 + MAX_SERVED,
            framed: None,
        })
    }

    /// The pool of a server of [`MAX_SESSIONS`] at the same time, each of which has `large` blocks. So many frame blocks are
    /// for the sessions that may use them, or for all.
    pub fn of_sessions(large: usize, frame: usize, framed: Option<usize>) -> Pool {
        let blocks = MAX_SESSIONS * (large + RECEIVE_BLOCKS);
        Pool::with_frames(DAEMON_SMALL_BLOCKS, blocks, frame).setting_aside(Aside {
            sessions: MAX_SESSIONS,
            small: SHARE_SMALL_BLOCKS,
            large,
            receiving: MAX_SESSIONS,
            framed,
        })
    }

    /// The same for sessions of peers that may stall: so much of it is set aside for them.
    #[must_use]
    pub fn setting_aside(self, aside: Aside) -> Pool {
        let Aside { sessions, small, large, receiving, framed } = aside;
        let counter = |count| Arc::new(AtomicUsize::new(count));
        Pool {
            small: Shelf::new(self.small.limit, sessions * small),
            large: Shelf::new(self.large.limit, sessions * large + receiving * RECEIVE_BLOCKS),
            shares: Some((counter(sessions), [small, large])),
            framed: framed.map(counter),
            ..self
        }
    }

    /// A share of what is set aside, for one session; `None` when nothing is, or all shares are taken.
    pub fn claim(&self) -> Option<Share> {
        let (left, [small, large]) = self.shares.as_ref()?;
        Some(Share { small: *small, large: *large, _claim: Claim::of(left)? })
    }

    /// True where only few sessions may use frame blocks, those who have a claim.
    pub fn shares_frames(&self) -> bool {
        self.framed.is_some()
    }

    /// The right to use frame blocks, where few sessions have it; `None` when they are at it.
    pub fn claim_frames(&self) -> Option<Claim> {
        Claim::of(self.framed.as_ref()?)
    }

    /// The pool of one of so many connections of a process, of which so many may compress. Two have the blocks that one has,
    /// each; more of them share those of two, and all those that compress the frame blocks of one, down to what a connection
    /// cannot do without. With 4 frame blocks each, four that sent text had 116 MiB (2026-11-27).
    pub fn one_of(connections: usize, packing: usize) -> Pool {
        let share = |blocks: usize, of: usize, least: usize| (blocks / of.max(1)).clamp(least, blocks);
        Pool::with_frames(
            share(2 * POOL_SMALL_BLOCKS, connections, LEAST_SMALL_BLOCKS).min(POOL_SMALL_BLOCKS),
            share(2 * POOL_LARGE_BLOCKS, connections, READ_WINDOW_BLOCKS).min(POOL_LARGE_BLOCKS),
            share(POOL_FRAME_BLOCKS, packing, LEAST_FRAME_BLOCKS),
        )
    }

    /// True where there are frame blocks for more than what comes, so that content may be read into them.
    pub fn reads_frames(&self) -> bool {
        self.frame.limit > LEAST_FRAME_BLOCKS
    }

    /// A block, or `None` while the pool or the quota is used up.
    pub fn take(&mut self, class: Class, quota: &Quota) -> Option<Block> {
        if self.left(class, quota) == 0 {
            return None;
        }
        let mut block = self.take_reserved(class)?;
        debug_assert_eq!(*quota.0.class.get_or_init(|| class), class, "a quota is of one class");
        // Only this worker takes, so meanwhile there can only be more.
        if quota.0.held.fetch_add(1, Ordering::AcqRel) >= quota.0.share {
            block.storage.shelf.beyond.fetch_add(1, Ordering::AcqRel);
        }
        block.storage.quota = Some(quota.clone());
        Some(block)
    }

    /// Blocks of a class that could be taken now under `quota`.
    pub fn left(&self, class: Class, quota: &Quota) -> usize {
        let shelf = self.shelf(class);
        let beyond = shelf.beyond_limit.saturating_sub(shelf.beyond.load(Ordering::Acquire));
        let share = quota.0.share.saturating_sub(quota.held());
        quota.left().min(share + beyond).min(self.available(class))
    }

    /// True once after the system gave no memory for a block: nothing that this process waits for will bring it.
    pub fn take_starved(&mut self) -> bool {
        std::mem::take(&mut self.starved)
    }

    /// A block that no quota counts: a session's receive block.
    pub fn take_reserved(&mut self, class: Class) -> Option<Block> {
        let shelf = self.shelf(class).clone();
        if shelf.out.load(Ordering::Acquire) >= shelf.limit {
            return None;
        }
        let free = shelf.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(pages) = free.or_else(|| Pages::new(class)) else {
            self.starved = true;
            return None;
        };
        shelf.out.fetch_add(1, Ordering::AcqRel);
        let window = ROOM_BYTES..ROOM_BYTES + class.bytes();
        Some(Block { storage: Box::new(Storage { pages, shelf, quota: None }), window })
    }

    /// Blocks of a class that could be taken now.
    pub fn available(&self, class: Class) -> usize {
        let shelf = self.shelf(class);
        shelf.limit.saturating_sub(shelf.out.load(Ordering::Acquire))
    }

    fn shelf(&self, class: Class) -> &Arc<Shelf> {
        match class {
            Class::Small => &self.small,
            Class::Large => &self.large,
            Class::Frame => &self.frame,
        }
    }
}

/// A page-aligned buffer with one owner. Its address does not change while it lives.
pub struct Block {
    storage: Box<Storage>,
    /// What counts as its bytes, in its memory.
    window: Range<usize>,
}

impl Block {
    /// Bytes it holds.
    pub fn capacity(&self) -> usize {
        self.window.len()
    }

    /// All its memory, the room around its bytes included.
    pub fn memory(&self) -> &[u8] {
        self.storage.bytes()
    }

    /// The same, for writing.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        self.storage.bytes_mut()
    }

    /// Where its bytes stand in its memory: at first from [`crate::limits::ROOM_BYTES`] on.
    pub fn window(&self) -> Range<usize> {
        self.window.clone()
    }

    /// From here on its bytes are these of its memory. Panics when that has not as many.
    pub fn set_window(&mut self, window: Range<usize>) {
        assert!(window.start <= window.end && window.end <= self.memory().len(), "window inside its memory");
        self.window = window;
    }

    /// The number of its memory: the same each time this memory comes out of its pool, and never that of other memory.
    pub fn number(&self) -> u64 {
        self.storage.pages.number
    }

    /// All of it, for reading.
    pub fn bytes(&self) -> &[u8] {
        &self.storage.bytes()[self.window.clone()]
    }

    /// All of it, for writing.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage.bytes_mut()[self.window.clone()]
    }

    /// Gives up the right to write: from here on it can be cut into slices.
    pub fn share(self) -> Shared {
        Shared(Arc::new(self))
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.capacity())
    }
}

/// A block that is only read from now on.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Block>);

impl Shared {
    /// A counted view of `range`. Panics when the range leaves the block.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.0.capacity(), "slice inside its block");
        Slice { block: self.0.clone(), range }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Slice {
    /// The first `bytes` of it, which it must have, and the rest.
    pub fn split(&self, bytes: usize) -> (Slice, Slice) {
        assert!(bytes <= self.len(), "split inside the slice");
        let middle = self.range.start + bytes;
        let part = |range| Slice { block: self.block.clone(), range };
        (part(self.range.start..middle), part(middle..self.range.end))
    }
}

/// A counted view of part of a block; keeps the block out of its pool.
#[derive(Clone)]
pub struct Slice {
    block: Arc<Block>,
    range: Range<usize>,
}

impl Slice {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.block.bytes()[self.range.clone()]
    }

    /// Its block, with these bytes as its window, when nobody else has a part of it; else itself again.
    pub fn into_block(self) -> Result<Block, Slice> {
        let Slice { block, range } = self;
        let mut block = Arc::try_unwrap(block).map_err(|block| Slice { block, range: range.clone() })?;
        let start = block.window.start;
        block.window = start + range.start..start + range.end;
        Ok(block)
    }

    /// The [`Block::number`] of its block.
    pub fn block_number(&self) -> u64 {
        self.block.number()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True when it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({:?})", self.range)
    }
}

/// Consecutive pieces of one body.
pub type Slices = SmallVec<[Slice; 2]>;

/// Bytes in front of a body: frame headers and control frames. Short ones need no allocation.
pub type Head = SmallVec<[u8; 64]>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_returns_to_its_pool_when_the_last_slice_is_dropped() {
        let mut pool = Pool::new(0, 1);
        let block = pool.take_reserved(Class::Large).unwrap();
        assert!(pool.take_reserved(Class::Large).is_none());
        let shared = block.share();
        let slice = shared.slice(0..10);
        drop(shared);
        assert!(pool.take_reserved(Class::Large).is_none());
        drop(slice);
        assert!(pool.take_reserved(Class::Large).is_some());
    }

    #[test]
    fn a_quota_bounds_one_holder_and_not_the_others() {
        let mut pool = Pool::new(4, 0);
        let (one, two) = (Quota::new(1), Quota::new(2));
        let first = pool.take(Class::Small, &one).unwrap();
        assert!(pool.take(Class::Small, &one).is_none());
        assert!(pool.take(Class::Small, &two).is_some());
        drop(first);
        assert_eq!(one.held(), 0);
        assert!(pool.take(Class::Small, &one).is_some());
    }

    #[test]
    fn what_one_holds_leaves_the_others_their_shares_and_comes_back_whoever_gives_up_what_first() {
        let aside = Aside { sessions: 2, small: 2, large: 0, receiving: 0, framed: Some(1) };
        let mut pool = Pool::new(5, 0).setting_aside(aside);
        let shares = [pool.claim().unwrap(), pool.claim().unwrap()];
        assert!(pool.claim().is_none(), "there are no more");
        let [one, two] = shares.each_ref().map(|share| Quota::with_share(5, share.small));
        let mut held: Vec<Block> = std::iter::from_fn(|| pool.take(Class::Small, &one)).collect();
        assert_eq!((held.len(), pool.left(Class::Small, &two)), (3, 2));
        let others: Vec<Block> = std::iter::from_fn(|| pool.take(Class::Small, &two)).collect();
        assert_eq!(others.len(), 2);
        // The first one that was taken, from within the share: what is left to it is a share.
        held.remove(0);
        assert_eq!((pool.left(Class::Small, &one), pool.left(Class::Small, &two)), (1, 1));
        let third = pool.take(Class::Small, &two).unwrap();
        assert_eq!(pool.left(Class::Small, &one), 0);
        drop((held, others, third));
        assert_eq!((pool.left(Class::Small, &one), pool.left(Class::Small, &two)), (3, 3));
        drop(shares);
        assert!(pool.claim().is_some());
        let framed = pool.claim_frames().unwrap();
        assert!(pool.claim_frames().is_none());
        drop(framed);
        assert!(pool.claim_frames().is_some());
    }

    #[test]
    fn the_only_slice_of_a_block_gives_it_back_with_room_around_its_bytes() {
        let mut pool = Pool::new(1, 0);
        let mut block = pool.take_reserved(Class::Small).unwrap();
        block.bytes_mut()[10..13].copy_from_slice(b"abc");
        let shared = block.share();
        let (one, two) = (shared.slice(10..13), shared.slice(0..1));
        drop(shared);
        let one = one.into_block().unwrap_err();
        drop(two);
        let mut block = one.into_block().unwrap();
        assert_eq!((block.bytes(), block.window()), (&b"abc"[..], ROOM_BYTES + 10..ROOM_BYTES + 13));
        block.set_window(ROOM_BYTES - 5..ROOM_BYTES + 13);
        block.bytes_mut()[..5].copy_from_slice(b"heade");
        assert_eq!(block.memory()[ROOM_BYTES - 5..ROOM_BYTES], *b"heade");
        drop(block);
        assert_eq!(pool.take_reserved(Class::Small).unwrap().capacity(), SMALL_BYTES);
    }

    #[test]
    fn blocks_are_page_aligned_and_keep_their_address() {
        let mut pool = Pool::new(1, 1);
        let block = pool.take_reserved(Class::Large).unwrap();
        let address = block.bytes().as_ptr() as usize;
        assert_eq!(address % PAGE_BYTES, 0);
        assert_eq!(block.capacity(), BLOCK_BYTES);
        let moved = Box::new(block);
        assert_eq!(moved.bytes().as_ptr() as usize, address);
    }
}
