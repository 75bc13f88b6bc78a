//! What comes from the server, as in `uploads`.

use super::cell::Codec;
use super::content::{Sources, link_tree};
use super::peer::Peer;
use super::raw::{BLOCK, Raw, kind};
use super::stage::{Played, Stage, remote};
use super::traffic::{Payload, of_kind, only};
use super::uploads::is_the_same_tree;
use crate::support::processes::names;
use crate::support::{Entry, hash_of, snapshot};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Whether the server hashes what it sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hashed {
    Yes,
    No,
}

/// A name, its size unless it is a directory, and whether it is one.
type Listed = BTreeSet<(String, Option<u64>, bool)>;

pub fn get_args(stage: &Stage, sources: &Sources, codec: Codec, hashed: Hashed) -> Result<Vec<String>> {
    fs::hard_link(sources.mixed(), stage.far().join("mixed"))?;
    let flags: &[&str] = if hashed == Hashed::No { &["--fast"] } else { &[] };
    Ok(stage.copy(codec.option(), flags, &remote("mixed"), &stage.near().join("mixed")))
}

pub fn get(stage: &Stage, sources: &Sources, codec: Codec, hashed: Hashed) -> Result<()> {
    let played = stage.play(&get_args(stage, sources, codec, hashed)?)?;
    played.went_well()?;
    let arrived = stage.near().join("mixed");
    ensure!(hash_of(&arrived) == hash_of(&sources.mixed()), "it arrived with another content");
    let (up, down) = (played.traffic.up()?, played.traffic.down()?);
    only(&up, kind::GET)?;
    let payload = Payload::of(&down)?;
    payload.is_packed_with(codec.number())?;
    ensure!(payload.total() == 2 * BLOCK as u64, "{payload:?}");
    let said = only(&down, kind::OK)?.ok().context("Ok is cut")?;
    let expected = (hashed == Hashed::Yes).then(|| hash_of(&sources.mixed()));
    ensure!(said == expected, "the server's hash is {said:?}");
    Ok(())
}

pub fn batch_args(stage: &Stage, tree: &Path, codec: Codec) -> Result<Vec<String>> {
    link_tree(tree, &stage.far().join("tree"));
    fs::create_dir(stage.near().join("to"))?;
    Ok(stage.copy(codec.option(), &["-r"], &remote("tree"), &stage.near().join("to")))
}

pub fn batch(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    batch_of(stage, &sources.tree(), codec).map(|_| ())
}

pub fn pool(stage: &Stage, sources: &Sources, codec: Codec) -> Result<()> {
    let played = batch_of(stage, &sources.pool(), codec)?;
    let (_, carriers) = played.traffic.carriers()?;
    ensure!(carriers > 1, "{carriers} of {} connections carried content", played.traffic.sessions.len());
    Ok(())
}

fn batch_of(stage: &Stage, tree: &Path, codec: Codec) -> Result<Played> {
    let played = stage.play(&batch_args(stage, tree, codec)?)?;
    played.went_well()?;
    let to = stage.near().join("to");
    ensure!(names(&to) == ["tree"], "there is {:?}", names(&to));
    is_the_same_tree(&to.join("tree"), tree)?;
    Payload::of(&played.traffic.down()?)?.is_packed_with(codec.number())?;
    Ok(played)
}

/// The real ones list a tree over the protocol only to compare it.
pub fn list_args(stage: &Stage, sources: &Sources) -> Result<Vec<String>> {
    link_tree(&sources.tree(), &stage.far().join("up/tree"));
    let mut args: Vec<String> = Vec::new();
    match stage.client {
        Peer::Old | Peer::New => {
            args.extend(["check", "-r", sources.tree().to_str().unwrap(), "host:up"].map(String::from));
        }
        Peer::Haul => {
            args.push("ls".to_string());
            args.extend(stage.reached_by());
            args.extend(["-R", "host:up/tree"].map(String::from));
        }
    }
    Ok(args)
}

pub fn list(stage: &Stage, sources: &Sources) -> Result<()> {
    let played = stage.play(&list_args(stage, sources)?)?;
    played.went_well()?;
    let expected = listing(sources);
    if stage.client == Peer::Haul {
        let shown: BTreeSet<String> = played.ended.stdout.lines().map(str::to_string).collect();
        let names = expected.iter().map(|(name, _, is_dir)| if *is_dir { format!("{name}/") } else { name.clone() });
        ensure!(shown == names.collect(), "haul shows {shown:?}");
    }
    if (stage.client, stage.server) == (Peer::Haul, Peer::Haul) {
        // Another frame, which has tests of its own.
        return Ok(());
    }
    let (up, down) = (played.traffic.up()?, played.traffic.down()?);
    only(&up, kind::LIST)?;
    let found = entries(only(&down, kind::LIST_RESPONSE)?).context("ListResponse is cut")?;
    ensure!(found == expected, "the server lists {found:?}");
    Ok(())
}

fn listing(sources: &Sources) -> Listed {
    let entry = |(name, entry): (std::ffi::OsString, Entry)| {
        let size = if let Entry::File { size, .. } = entry { Some(size) } else { None };
        (name.into_string().unwrap(), size, size.is_none())
    };
    snapshot(&sources.tree()).into_iter().map(entry).collect()
}

fn entries(response: &Raw<'_>) -> Option<Listed> {
    let mut fields = response.fields();
    let count = fields.u32()?;
    let mut found = Listed::new();
    for _ in 0..count {
        let (name, size, _mtime) = (fields.text()?, fields.u64()?, fields.u64()?);
        let is_dir = fields.u8()? != 0;
        found.insert((name, (!is_dir).then_some(size), is_dir));
    }
    Some(found)
}

/// The real ones ask for a hash to find out that there is nothing left to resume.
pub fn hash_args(stage: &Stage, sources: &Sources) -> Result<Vec<String>> {
    // A copy: the newer one recognizes its own file.
    fs::copy(sources.mixed(), stage.far().join("up/mixed"))?;
    Ok(match stage.client {
        Peer::Old | Peer::New => stage.copy("none", &["-C"], &sources.mixed(), &remote("up/mixed")),
        Peer::Haul => {
            let mut args = vec!["hash".to_string()];
            args.extend(stage.reached_by());
            args.push("host:up/mixed".to_string());
            args
        }
    })
}

pub fn hash(stage: &Stage, sources: &Sources) -> Result<()> {
    let played = stage.play(&hash_args(stage, sources)?)?;
    played.went_well()?;
    let expected = hash_of(&sources.mixed());
    let (up, down) = (played.traffic.up()?, played.traffic.down()?);
    only(&up, kind::HASH)?;
    let said = only(&down, kind::HASH_RESPONSE)?.fields().text();
    ensure!(said.as_ref() == Some(&expected), "the server's hash is {said:?}");
    ensure!(of_kind(&up, kind::PUT).is_empty(), "what was there already was sent");
    if stage.client == Peer::Haul {
        ensure!(played.ended.stdout == format!("{expected}  host:up/mixed\n"), "haul prints {:?}", played.ended.stdout);
    }
    Ok(())
}
