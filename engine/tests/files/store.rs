//! The block store on real directories: what is found in it, what is believed, and how much stays.

use crate::rig::*;
use haul_engine::backend::*;
use haul_engine::cas::{BlockName, RootIdentity, hex};
use haul_engine::limits::BLOCKS_PER_OPERATION;
use haul_engine::offload::BlockStore;
use haul_engine::tree_hash::{BlockHash, HASH_BLOCK_BYTES};
use haul_engine::wire::frame::Hash;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub(crate) const MIB: u64 = 1024 * 1024;
/// What the file beside the blocks takes.
const CHANGES: u64 = 4096;

/// Bytes that differ from seed to seed and nowhere repeat.
pub(crate) fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

pub(crate) fn block_hashes(content: &[u8]) -> Vec<BlockHash> {
    content.chunks(HASH_BLOCK_BYTES).zip(0..).map(|(block, index)| BlockHash::of(index, block)).collect()
}

pub(crate) fn root_identity(inode: u64) -> RootIdentity {
    RootIdentity { path: b"/srv".to_vec(), device: 1, inode }
}

/// One process that works on a store.
pub(crate) struct Process {
    pub(crate) rig: Rig,
    pub(crate) store: DirId,
}

impl Process {
    pub(crate) fn new(directory: &Path, inode: u64, cap: Option<u64>) -> Process {
        let mut rig = Rig::new();
        let store = rig.offload.add_store(BlockStore::open(directory, &root_identity(inode), cap));
        Process { rig, store }
    }

    /// A file being made that has this content already.
    pub(crate) fn made(&mut self, content: &[u8]) -> FileId {
        fs::write(self.rig.path("made"), content).unwrap();
        self.rig.create("made", content.len() as u64, content.len() as u64).unwrap().0
    }

    pub(crate) fn keep(&mut self, content: &[u8]) {
        let file = self.made(content);
        let hashes: Vec<Hash> = block_hashes(content).iter().map(|block| block.plain).collect();
        for (number, hashes) in hashes.chunks(BLOCKS_PER_OPERATION).enumerate() {
            let (size, first) = (content.len() as u64, (number * BLOCKS_PER_OPERATION) as u64);
            let op = FsOp::KeepBlocks { file, store: self.store, size, first, hashes: hashes.to_vec() };
            assert!(matches!(self.rig.fs(op), Ok(Output::Done)), "trouble with the store is no error");
        }
        self.rig.close(file);
    }

    /// Which blocks of a file like `content` the store has. Those it has are looked at in the file made of them.
    pub(crate) fn fill(&mut self, content: &[u8]) -> Vec<bool> {
        let (size, expected) = (content.len() as u64, block_hashes(content));
        let (file, _) = self.rig.create("filled", size, 0).unwrap();
        let mut filled = Vec::new();
        for (number, blocks) in expected.chunks(BLOCKS_PER_OPERATION).enumerate() {
            let hashes = blocks.iter().map(|block| block.plain).collect();
            let op = FsOp::FillBlocks {
                file,
                store: self.store,
                size,
                first: (number * BLOCKS_PER_OPERATION) as u64,
                hashes,
            };
            let Ok(Output::Blocks(found)) = self.rig.fs(op) else { panic!("trouble with the store is no error") };
            assert_eq!(found.len(), blocks.len());
            assert!(found.iter().zip(blocks).all(|(found, block)| found.is_none_or(|found| found == *block)));
            filled.extend(found.iter().map(Option::is_some));
        }
        self.rig.publish(file, PLAIN).unwrap();
        let made = fs::read(self.rig.path("filled")).unwrap();
        for ((made, expected), _) in made
            .chunks(HASH_BLOCK_BYTES)
            .zip(content.chunks(HASH_BLOCK_BYTES))
            .zip(&filled)
            .filter(|(_, filled)| **filled)
        {
            assert!(made == expected, "a block is not what it was said to be");
        }
        filled
    }

    pub(crate) fn has(&mut self, content: &[u8]) -> bool {
        self.fill(content).iter().all(|filled| *filled)
    }
}

/// Every file below a directory with its length.
pub(crate) fn files(directory: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut ahead = vec![directory.to_path_buf()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                ahead.push(entry.path());
            } else {
                files.push((entry.path(), entry.metadata().unwrap().len()));
            }
        }
    }
    files
}

/// Number of blocks and their bytes. Asserts that there is nothing else, above all no temporary file.
pub(crate) fn holds(directory: &Path) -> (usize, u64) {
    let mut blocks = files(directory);
    blocks.retain(|(path, _)| *path != directory.join("changes"));
    assert!(blocks.iter().all(|(path, _)| path.extension().is_some_and(|extension| extension == "blk")), "{blocks:?}");
    (blocks.len(), blocks.iter().map(|(_, bytes)| bytes).sum())
}

/// Where the first block of this content stands.
pub(crate) fn block_path(directory: &Path, inode: u64, content: &[u8]) -> PathBuf {
    let text = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
    let name = BlockName::of(&block_hashes(content)[0].plain);
    let scope = text(&hex(&root_identity(inode).scope()));
    directory.join(scope).join(text(name.outer())).join(text(name.inner())).join(text(name.file()))
}

#[test]
fn a_kept_file_is_filled_again_with_a_short_last_block_and_from_any_index_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path(), 1, Some(1024 * MIB));
    let long = content(1, 18 * HASH_BLOCK_BYTES + 123_457);
    assert!(process.fill(&long).iter().all(|filled| !filled));
    process.keep(&long);
    assert_eq!(holds(dir.path()), (19, long.len() as u64));
    assert!(process.has(&long), "19 blocks in two operations");
    // The same blocks in another file at other places: there they have other chaining values.
    let shifted = [&content(2, HASH_BLOCK_BYTES)[..], &long[..2 * HASH_BLOCK_BYTES]].concat();
    assert_eq!(process.fill(&shifted), [false, true, true]);
    let file = process.made(&long);
    let hashes = vec![block_hashes(&long)[18].plain; 2];
    for size in [long.len() as u64, u64::MAX] {
        for first in [18, u64::MAX - 1, u64::MAX] {
            let op = FsOp::FillBlocks { file, store: process.store, size, first, hashes: hashes.clone() };
            let behind = size < u64::MAX || first > 18;
            assert_eq!(process.rig.fs(op).err(), behind.then_some(Errno::INVALID), "block {first} of {size} bytes");
        }
    }
    let too_many = vec![hashes[0]; BLOCKS_PER_OPERATION + 1];
    let op = FsOp::FillBlocks { file, store: process.store, size: u64::MAX, first: 0, hashes: too_many };
    assert_eq!(process.rig.fs(op).err(), Some(Errno::INVALID));
}

#[test]
fn modes_are_private_and_a_second_keep_changes_nothing_but_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("not/there/yet");
    let mut process = Process::new(&store, 1, None);
    let bytes = content(1, 1000);
    assert!(!process.has(&bytes));
    assert!(!dir.path().join("not").exists(), "looking for a block makes nothing");
    process.keep(&bytes);
    let path = block_path(&store, 1, &bytes);
    assert_eq!((mode(&path), mode(&store.join("changes"))), (0o600, 0o600));
    for made in path.ancestors().skip(1).take_while(|parent| *parent != dir.path()) {
        assert_eq!(mode(made), 0o700, "{}", made.display());
    }
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    for use_it in [Process::keep, |process: &mut Process, bytes: &[u8]| assert!(process.has(bytes))] {
        fs::File::open(&path).unwrap().set_modified(old).unwrap();
        use_it(&mut process, &bytes);
        assert!(fs::metadata(&path).unwrap().modified().unwrap() > old, "every use makes a block warm");
    }
    assert_eq!(holds(&store), (1, 1000));
}

#[test]
fn three_files_of_24_mib_leave_at_most_the_32_mib_used_last_all_files_of_the_store_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path(), 1, Some(32 * MIB));
    let files: Vec<_> = (0..3).map(|seed| content(seed, 24 << 20)).collect();
    for (file, blocks) in files.iter().zip([6, 7, 7]) {
        process.keep(file);
        assert_eq!(holds(dir.path()), (blocks, blocks as u64 * 4 * MIB));
        let all: u64 = self::files(dir.path()).iter().map(|(_, bytes)| bytes).sum();
        assert!(all <= 32 * MIB, "an eighth block and what is beside it do not fit");
    }
    assert_eq!(process.fill(&files[2]), [true; 6]);
    assert_eq!(process.fill(&files[1]), [false, false, false, false, false, true], "the oldest went first");
    assert_eq!(process.fill(&files[0]), [false; 6]);
}

#[test]
fn a_block_that_was_used_outlives_one_that_was_kept_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path(), 1, Some(3 * MIB + CHANGES));
    let blocks: Vec<_> = (0..5).map(|seed| content(seed, 1 << 20)).collect();
    blocks[..3].iter().for_each(|block| process.keep(block));
    let kept = || blocks.iter().map(|block| block_path(dir.path(), 1, block).exists()).collect::<Vec<_>>();
    assert!(process.has(&blocks[0]));
    process.keep(&blocks[3]);
    assert_eq!(kept(), [true, false, true, true, false], "0 was used after 1");
    process.keep(&blocks[2]);
    process.keep(&blocks[4]);
    assert_eq!(kept(), [false, false, true, true, true], "0 was used before 3 came");
    // What another process sees is no different.
    assert!(Process::new(dir.path(), 1, Some(3 * MIB + CHANGES)).has(&blocks[2]));
}

#[test]
fn the_store_is_within_its_cap_after_every_put_of_any_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut processes: Vec<_> = (0..3).map(|inode| Process::new(dir.path(), inode, Some(MIB))).collect();
    for turn in 0..60u64 {
        // Each has a count of its own, which the others make void in no order.
        let process = &mut processes[(turn * turn % 7 % 3) as usize];
        process.keep(&content(turn, 150_000 + 1000 * turn as usize));
        let (blocks, bytes) = holds(dir.path());
        assert!(bytes <= MIB && blocks as u64 >= 4.min(turn + 1), "{blocks} blocks with {bytes} bytes after {turn}");
    }
    // A process with a lower cap applies it to what is there.
    Process::new(dir.path(), 9, Some(MIB / 2)).keep(&content(1000, 1));
    assert!(holds(dir.path()).1 <= MIB / 2);
    Process::new(dir.path(), 9, Some(1)).keep(&content(1000, 1));
    assert_eq!(holds(dir.path()), (0, 0), "a cap below any block");
    let left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().flat_map(|scope| fs::read_dir(scope.unwrap().path())).collect();
    assert!(left.into_iter().all(|mut names| names.next().is_none()), "directories without blocks go with them");
}

#[test]
fn tiny_blocks_count_as_the_pages_they_take() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path(), 1, Some(10 * 4096 + CHANGES));
    (0..20).for_each(|seed| process.keep(&content(seed, 10)));
    assert_eq!(holds(dir.path()), (10, 100));
}

#[test]
fn without_a_cap_nothing_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::new(dir.path(), 1, None);
    (0..40).for_each(|seed| process.keep(&content(seed, 100_000)));
    assert_eq!(holds(dir.path()), (40, 4_000_000));
    assert!((0..40).all(|seed| process.has(&content(seed, 100_000))));
}

#[test]
fn a_block_kept_below_one_root_is_not_found_below_another() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut other) = (Process::new(dir.path(), 1, None), Process::new(dir.path(), 2, None));
    let bytes = content(1, 5000);
    one.keep(&bytes);
    assert!(one.has(&bytes) && !other.has(&bytes));
    other.keep(&bytes);
    assert_eq!(holds(dir.path()), (2, 10_000));
}

#[test]
fn many_processes_that_keep_fill_and_evict_at_once_never_fail_and_never_lie() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<_> = (0..24).map(|seed| content(seed, 60_000 + 5000 * seed as usize)).collect();
    let found: usize = std::thread::scope(|scope| {
        let work = |number: u64| {
            let mut process = Process::new(dir.path(), number % 2, Some(MIB));
            let mut found = 0;
            for turn in 0..60 {
                let block = &blocks[((number * 7 + turn * 5) % 24) as usize];
                match process.has(block) {
                    true => found += 1,
                    false => process.keep(block),
                }
            }
            found
        };
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let (blocks, bytes) = holds(dir.path());
    assert!(bytes <= MIB && blocks >= 4, "{blocks} blocks with {bytes} bytes at the end");
    assert!(found > 0, "nobody ever found what somebody kept");
}
