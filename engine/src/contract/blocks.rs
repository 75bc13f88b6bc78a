//! What [`FsOp::FillBlocks`] and [`FsOp::KeepBlocks`] promise. A store may forget at any time, so whatever must be found
//! is kept and looked for more than once.

use super::turns::{CREATE, PLAIN};
use super::{Driver, Rig, assert_same, pattern};
use crate::backend::{DirId, Errno, FileId, FsOp, Id, OpKind, OpenMode, Output};
use crate::block::Class;
use crate::limits::BLOCKS_PER_OPERATION;
use crate::tree_hash::{BlockHash, HASH_BLOCK_BYTES};
use crate::wire::frame::Hash;

/// Bytes of a file of a whole block and a very short one.
const SIZE: usize = HASH_BLOCK_BYTES + 5;
/// Times something is tried that a store may fail to do, for no reason, once in a few times.
const TRIES: usize = 50;

fn create<R: Rig>(driver: &mut Driver<R>, name: &str) -> FileId {
    let place = driver.place(name);
    driver.open(place, CREATE).expect("a new file")
}

fn create_with<R: Rig>(driver: &mut Driver<R>, name: &str, content: &[u8]) -> FileId {
    let file = create(driver, name);
    for (number, piece) in content.chunks(Class::Large.bytes()).enumerate() {
        let from = driver.slices(piece).remove(0);
        let offset = (number * Class::Large.bytes()) as u64;
        assert!(matches!(driver.run(OpKind::Write { file, offset, from }), Ok(Output::Done)));
    }
    file
}

fn block_hashes(content: &[u8]) -> Vec<BlockHash> {
    content.chunks(HASH_BLOCK_BYTES).zip(0..).map(|(block, index)| BlockHash::of(index, block)).collect()
}

fn plain(blocks: &[BlockHash]) -> Vec<Hash> {
    blocks.iter().map(|block| block.plain).collect()
}

fn keep<R: Rig>(driver: &mut Driver<R>, file: FileId, store: DirId, hashes: Vec<Hash>) -> Result<Output, Errno> {
    driver.run(OpKind::Fs(Box::new(FsOp::KeepBlocks { file, store, size: SIZE as u64, first: 0, hashes })))
}

fn fill<R: Rig>(
    driver: &mut Driver<R>,
    file: FileId,
    store: DirId,
    hashes: Vec<Hash>,
) -> Result<Vec<Option<BlockHash>>, Errno> {
    let op = FsOp::FillBlocks { file, store, size: SIZE as u64, first: 0, hashes };
    match driver.run(OpKind::Fs(Box::new(op)))? {
        Output::Blocks(blocks) => Ok(blocks),
        other => panic!("FillBlocks brought {other:?}"),
    }
}

/// FillBlocks from a store in which nothing was ever kept.
pub fn an_empty_store_fills_nothing<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let store = driver.rig.store();
    let file = create(&mut driver, "new");
    assert_eq!(fill(&mut driver, file, store, vec![[1; 32], [2; 32]]), Ok(vec![None, None]));
    assert_eq!(fill(&mut driver, file, store, Vec::new()), Ok(Vec::new()));
    assert!(driver.run(OpKind::Close { file }).is_ok());
    assert!(driver.rig.names().is_empty(), "a store is not in the root");
    driver.finish();
}

/// KeepBlocks of one file, FillBlocks of others.
pub fn kept_blocks_are_filled_into_another_file<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let store = driver.rig.store();
    let content = pattern(7, SIZE);
    let expected = block_hashes(&content);
    let mut found = vec![false; expected.len()];
    for number in 0..TRIES {
        let first = create_with(&mut driver, "first", &content);
        assert!(matches!(keep(&mut driver, first, store, plain(&expected)), Ok(Output::Done)));
        assert!(driver.run(OpKind::Close { file: first }).is_ok());
        let second = create(&mut driver, "second");
        let filled = fill(&mut driver, second, store, plain(&expected)).unwrap();
        for ((found, filled), expected) in found.iter_mut().zip(&filled).zip(&expected) {
            assert!(filled.is_none_or(|filled| filled == *expected), "try {number}");
            *found |= filled.is_some();
        }
        if filled.iter().all(Option::is_some) {
            assert!(driver.run(OpKind::Publish { file: second, finish: Box::new(PLAIN) }).is_ok());
            assert_same(&driver.rig.read_file("second").unwrap(), &content, "a file made of kept blocks");
            break;
        }
        assert!(driver.run(OpKind::Close { file: second }).is_ok());
    }
    assert!(found.iter().all(|found| *found), "never kept in {TRIES} tries: {found:?}");
    driver.finish();
}

/// FillBlocks from a store whose content was changed.
pub fn a_damaged_block_is_dropped_and_counts_as_missing<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let store = driver.rig.store();
    let content = pattern(8, SIZE);
    let hashes = plain(&block_hashes(&content));
    let first = create_with(&mut driver, "first", &content);
    for _ in 0..8 {
        assert!(keep(&mut driver, first, store, hashes.clone()).is_ok());
    }
    driver.rig.damage_store();
    let second = create(&mut driver, "second");
    assert_eq!(fill(&mut driver, second, store, hashes.clone()), Ok(vec![None, None]));
    // The same damage once more would make good again whatever is still there.
    driver.rig.damage_store();
    assert_eq!(fill(&mut driver, second, store, hashes), Ok(vec![None, None]), "a bad block stays in the store");
    driver.finish();
}

/// KeepBlocks with hashes that are not those of the blocks.
pub fn a_block_is_not_kept_under_another_hash<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let store = driver.rig.store();
    let content = pattern(9, SIZE);
    let mut hashes = plain(&block_hashes(&content));
    hashes.reverse();
    let file = create_with(&mut driver, "first", &content);
    for _ in 0..8 {
        assert!(matches!(keep(&mut driver, file, store, hashes.clone()), Ok(Output::Done)));
        assert_eq!(fill(&mut driver, file, store, hashes.clone()), Ok(vec![None, None]));
    }
    driver.finish();
}

/// Ids and numbers that FillBlocks and KeepBlocks refuse.
pub fn stores_are_no_roots_and_blocks_have_their_bounds<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let store = driver.rig.store();
    let root = driver.rig.root();
    let source = driver.source("source", b"content");
    let closed = create(&mut driver, "closed");
    assert!(driver.run(OpKind::Close { file: closed }).is_ok());
    let file = create(&mut driver, "new");
    let (never, one): (DirId, _) = (Id::new(1000, 0), vec![[1; 32]]);
    for (file, store, hashes, errno) in [
        (closed, store, one.clone(), Errno::STALE_ID),
        (file, never, one.clone(), Errno::STALE_ID),
        (file, root, one.clone(), Errno::INVALID),
        (source, store, one, Errno::INVALID),
        (file, store, vec![[1; 32]; 3], Errno::INVALID),
        (file, store, vec![[1; 32]; BLOCKS_PER_OPERATION + 1], Errno::INVALID),
    ] {
        assert_eq!(fill(&mut driver, file, store, hashes.clone()), Err(errno));
        assert_eq!(keep(&mut driver, file, store, hashes).err(), Some(errno));
    }
    let mut place = driver.place("source");
    place.dir = store;
    assert_eq!(driver.open(place.clone(), OpenMode::Read).err(), Some(Errno::INVALID));
    assert_eq!(driver.run(OpKind::Fs(Box::new(FsOp::MakeDir { place }))).err(), Some(Errno::INVALID));
    for op in [FsOp::ReadDir { dir: store }, FsOp::CloseDir { dir: store }] {
        assert_eq!(driver.run(OpKind::Fs(Box::new(op))).err(), Some(Errno::INVALID));
    }
    driver.finish();
}
