//! What goes to the server: each operation makes what it needs, runs the client, and proves what it claims.

use super::cell::Codec;
use super::content::{CHANGED_BLOCK, DEDUP_BLOCKS, Sources};
use super::peer::Peer;
use super::raw::{BLOCK, Fields, Raw, kind};
use super::stage::{Played, Stage, remote};
use super::traffic::{Payload, of_kind, only};
use crate::support::processes::names;
use crate::support::{Entry, hash_of, snapshot};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// What the server has of the file that is resumed: not a whole number of blocks.
const PREFIX: usize = 2_500_000;
/// The same between two haul peers, which continue at whole blocks.
const LONG_PREFIX: usize = BLOCK + 2_500_000;

pub fn put_args(stage: &Stage, sources: &Sources, codec: Codec) -> Vec<String> {
    stage.copy(codec.option(), &[], &sources.mixed(), &remote("up/mixed"))
}

pub fn put(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    let played = stage.play(&put_args(stage, sources, codec))?;
    played.went_well()?;
    is_the_only_file(stage, "mixed", &sources.mixed())?;
    let up = played.traffic.up()?;
    asked_for(&up, 2 * BLOCK as u64, 0)?;
    let payload = Payload::of(&up)?;
    payload.is_packed_with(codec.number())?;
    ensure!(payload.total() == 2 * BLOCK as u64, "{payload:?}");
    Ok(())
}

pub fn dedup_args(stage: &Stage, sources: &Sources, codec: Codec, changed: bool) -> Vec<String> {
    // The real ones always do it with files of this size.
    let flags: &[&str] = if stage.client == Peer::Haul { &["--dedup"] } else { &[] };
    let (source, target) =
        if changed { (sources.changed(), remote("up/changed")) } else { (sources.blocks(), remote("up/blocks")) };
    stage.copy(codec.option(), flags, &source, &target)
}

pub fn dedup_cold(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    let played = stage.play(&dedup_args(stage, sources, codec, false))?;
    played.went_well()?;
    is_the_only_file(stage, "blocks", &sources.blocks())?;
    let payload = sent_for(&played, |_| true)?;
    payload.is_packed_with(codec.number())
}

pub fn dedup_warm(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    stage.play(&dedup_args(stage, sources, codec, false))?.went_well().context("the first time")?;
    fs::remove_file(stage.far().join("up/blocks"))?;
    let played = stage.play(&dedup_args(stage, sources, codec, true))?;
    played.went_well()?;
    is_the_only_file(stage, "changed", &sources.changed())?;
    let payload = sent_for(&played, |block| block == CHANGED_BLOCK)?;
    ensure!((payload.plain > 0) == (codec == Codec::None), "{payload:?}");
    Ok(())
}

/// Fails unless exactly these blocks were found missing, and then sent, one frame for each.
fn sent_for(played: &Played, missing: impl Fn(usize) -> bool) -> Result<Payload> {
    let (up, down) = (played.traffic.up()?, played.traffic.down()?);
    let mut offer = only(&up, kind::HAVE_BLOCKS)?.fields();
    ensure!(offer.u32() == Some(BLOCK as u32) && offer.u32() == Some(DEDUP_BLOCKS as u32), "not the expected blocks");
    let bitmap = only(&down, kind::MISSING_BLOCKS)?.fields().bytes().context("MissingBlocks is cut")?;
    let found: Vec<usize> = (0..DEDUP_BLOCKS)
        .filter(|block| bitmap.get(block / 8).is_some_and(|byte| byte >> (block % 8) & 1 == 1))
        .collect();
    let expected: Vec<usize> = (0..DEDUP_BLOCKS).filter(|&block| missing(block)).collect();
    ensure!(found == expected, "the server misses the blocks {found:?}");
    let payload = Payload::of(&up)?;
    let blocks = expected.len();
    ensure!(payload.frames == blocks && payload.total() == (blocks * BLOCK) as u64, "{payload:?}");
    Ok(payload)
}

pub fn resume_args(stage: &Stage, sources: &Sources, codec: Codec) -> Result<Vec<String>> {
    let content = fs::read(sources.mixed())?;
    let prefix = if both_haul(stage) { LONG_PREFIX } else { PREFIX };
    fs::write(stage.far().join("up/mixed"), &content[..prefix])?;
    Ok(stage.copy(codec.option(), &["-C"], &sources.mixed(), &remote("up/mixed")))
}

pub fn resume(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    let played = stage.play(&resume_args(stage, sources, codec)?)?;
    played.went_well()?;
    is_the_only_file(stage, "mixed", &sources.mixed())?;
    let up = played.traffic.up()?;
    let payload = Payload::of(&up)?;
    let rest = (2 * BLOCK - if both_haul(stage) { BLOCK } else { PREFIX }) as u64;
    ensure!(payload.total() == rest, "{} bytes were sent, {rest} are missing there", payload.total());
    if both_haul(stage) {
        // What is left of it does not compress.
        let skipped = only(&up, kind::SKIP)?.fields().u64();
        ensure!(skipped == Some(BLOCK as u64), "Skip said {skipped:?}");
        return Ok(());
    }
    payload.is_packed_with(codec.number())?;
    asked_for(&up, 2 * BLOCK as u64, PREFIX as u64)
}

fn both_haul(stage: &Stage) -> bool {
    (stage.client, stage.server) == (Peer::Haul, Peer::Haul)
}

pub fn batch_args(stage: &Stage, tree: &Path, codec: Codec) -> Vec<String> {
    stage.copy(codec.option(), &["-r"], tree, &remote("up"))
}

pub fn batch(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    batch_of(stage, "tree", &sources.tree(), codec).map(|_| ())
}

pub fn pool(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    let played = batch_of(stage, "pool", &sources.pool(), codec)?;
    let (carriers, _) = played.traffic.carriers()?;
    ensure!(carriers > 1, "{carriers} of {} connections carried content", played.traffic.sessions.len());
    Ok(())
}

fn batch_of(stage: &Stage, name: &str, tree: &Path, codec: Codec) -> Result<Played> {
    let played = stage.play(&batch_args(stage, tree, codec))?;
    played.went_well()?;
    ensure!(names(&stage.far().join("up")) == [name], "there is {:?}", names(&stage.far().join("up")));
    is_the_same_tree(&stage.far().join("up").join(name), tree)?;
    Payload::of(&played.traffic.up()?)?.is_packed_with(codec.number())?;
    Ok(played)
}

/// Fails unless there was one Put, of this size and from this offset.
fn asked_for(up: &[Raw<'_>], size: u64, offset: u64) -> Result<()> {
    let mut fields: Fields<'_> = only(up, kind::PUT)?.fields();
    fields.bytes().context("Put is cut")?;
    let found = (fields.u64(), fields.u64());
    ensure!(found == (Some(size), Some(offset)), "Put was asked for with {found:?}");
    ensure!(of_kind(up, kind::ERROR).is_empty(), "a client sent Error");
    Ok(())
}

/// Fails unless nothing else has come to the other end, and this with the right content.
fn is_the_only_file(stage: &Stage, name: &str, source: &Path) -> Result<()> {
    let up = stage.far().join("up");
    ensure!(names(&up) == [name], "there is {:?}", names(&up));
    ensure!(hash_of(&up.join(name)) == hash_of(source), "{name} arrived with another content");
    Ok(())
}

/// Names and contents below a directory; `None` for a directory.
fn contents(dir: &Path) -> BTreeMap<OsString, Option<String>> {
    let content = |entry| match entry {
        Entry::File { hash, .. } => Some(hash),
        Entry::Directory { .. } => None,
        other => Some(format!("{other:?}")),
    };
    snapshot(dir).into_iter().map(|(name, entry)| (name, content(entry))).collect()
}

pub fn is_the_same_tree(found: &Path, expected: &Path) -> Result<()> {
    let (found, expected) = (contents(found), contents(expected));
    for (name, content) in &expected {
        ensure!(found.get(name) == Some(content), "{name:?} is {:?}", found.get(name));
    }
    let more: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    ensure!(more.is_empty(), "there are also {more:?}");
    Ok(())
}
