//! The block store of dedup: 64 MiB, one operation's worth, into it and out of it.

use crate::machine::{self, Near};
use crate::measure::{Case, Sample, Work, timed};
use anyhow::{Context as _, Result, ensure};
use haul_engine::backend::{DirId, FileId, FsOp, OpKind, OpenMode, Output};
use haul_engine::block::Class;
use haul_engine::cas::RootIdentity;
use haul_engine::limits::{BLOCK_BYTES, BLOCKS_PER_OPERATION, CAS_CAP_MIB};
use haul_engine::offload::BlockStore;
use haul_engine::tree_hash::HASH_BLOCK_BYTES;
use haul_engine::wire::frame::Hash;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

const SIZE: u64 = (BLOCKS_PER_OPERATION * HASH_BLOCK_BYTES) as u64;

/// What the cases of one directory share.
struct Bench {
    near: Near,
    store: DirId,
    file: FileId,
    /// Of the blocks that are in `file` now.
    hashes: Vec<Hash>,
    runs: u64,
}

/// Both ways, in this directory. The store is full after some rounds, as it is in use.
pub(crate) fn blocks(dir: &Path, what: &str) -> Result<Vec<Case>> {
    let (_, mut near) = machine::all(dir)?.into_iter().next().context("there is no backend")?;
    let identity = RootIdentity { path: Vec::new(), device: 0, inode: 0 };
    let store = near.add_store(BlockStore::open(&dir.join("blocks"), &identity, Some(CAS_CAP_MIB << 20)));
    let file = near.open("of-blocks", OpenMode::Create { size: SIZE, keep: 0, overwrite: true })?;
    let bench = Rc::new(RefCell::new(Bench { near, store, file, hashes: Vec::new(), runs: 0 }));
    let case = |name: &str, run: fn(&mut Bench) -> Result<Sample>| {
        let bench = bench.clone();
        Case::new(format!("blocks: {name} 64 MiB, {what}"), Work::Bytes(SIZE), move || run(&mut bench.borrow_mut()))
    };
    Ok(vec![
        case("keep new", |bench| {
            bench.renew()?;
            timed(|| bench.keep())
        }),
        case("keep known", |bench| {
            bench.have_some()?;
            timed(|| bench.keep())
        }),
        case("fill", |bench| {
            bench.have_some()?;
            let into = bench.near.open("filled", OpenMode::Create { size: SIZE, keep: 0, overwrite: true })?;
            let sample = timed(|| bench.fill(into))?;
            bench.near.call(OpKind::Close { file: into })?;
            Ok(sample)
        }),
    ])
}

impl Bench {
    /// Other content than ever before.
    fn renew(&mut self) -> Result<()> {
        self.runs += 1;
        self.hashes.clear();
        let mut block = vec![0; HASH_BLOCK_BYTES];
        for index in 0..BLOCKS_PER_OPERATION as u64 {
            blake3::Hasher::new()
                .update(&[self.runs, index].map(u64::to_le_bytes).concat())
                .finalize_xof()
                .fill(&mut block);
            self.hashes.push(*blake3::hash(&block).as_bytes());
            for (number, piece) in block.chunks(BLOCK_BYTES).enumerate() {
                let mut from = self.near.pool.take_reserved(Class::Large).context("a pool nobody else uses")?;
                from.bytes_mut().copy_from_slice(piece);
                let offset = index * HASH_BLOCK_BYTES as u64 + (number * BLOCK_BYTES) as u64;
                let (file, from) = (self.file, from.share().slice(0..BLOCK_BYTES));
                self.near.call(OpKind::Write { file, offset, from })?;
            }
        }
        Ok(())
    }

    /// Puts blocks into the store if that was not measured.
    fn have_some(&mut self) -> Result<()> {
        if self.runs > 0 {
            return Ok(());
        }
        self.renew()?;
        self.keep()
    }

    fn keep(&mut self) -> Result<()> {
        let (file, store, hashes) = (self.file, self.store, self.hashes.clone());
        let op = FsOp::KeepBlocks { file, store, size: SIZE, first: 0, hashes };
        self.near.call(OpKind::Fs(Box::new(op))).map(drop)
    }

    fn fill(&mut self, file: FileId) -> Result<()> {
        let (store, hashes) = (self.store, self.hashes.clone());
        let op = FsOp::FillBlocks { file, store, size: SIZE, first: 0, hashes };
        let output = self.near.call(OpKind::Fs(Box::new(op)))?;
        ensure!(matches!(&output, Output::Blocks(blocks) if blocks.iter().all(Option::is_some)), "{output:?}");
        Ok(())
    }
}
