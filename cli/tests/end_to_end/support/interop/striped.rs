//! One large file over several connections, as in `uploads` and `downloads`: in ranges, one beside the other.

use super::cell::{Codec, POOL};
use super::content::Sources;
use super::peer::Peer;
use super::raw::{Raw, kind};
use super::stage::{Stage, remote};
use super::traffic::{Payload, Traffic, of_kind};
use crate::support::hash_of;
use crate::support::processes::names;
use anyhow::{Context as _, Result, ensure};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

/// On a busy machine one connection may have carried everything before another one came.
const TRIES: usize = 10;

/// Which way the file goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Towards {
    Server,
    Client,
}

/// Whether the file is to go in ranges. A Put of version 2 is a transaction, for which neither the newer of the real ones
/// nor haul takes ranges that are written where the file stands.
pub fn is_striped(stage: &Stage, towards: Towards) -> bool {
    match (stage.client, stage.server) {
        _ if towards == Towards::Client => true,
        (Peer::New, _) | (Peer::Haul, Peer::New) => false,
        _ => true,
    }
}

pub fn args(stage: &Stage, sources: &Sources, codec: Codec, towards: Towards) -> Vec<String> {
    let (far, near) = (remote(&format!("up/{NAME}")), stage.near().join(NAME));
    match towards {
        Towards::Server => stage.copy(codec.option(), &[], &sources.striped(), &far),
        Towards::Client => {
            let there = stage.far().join("up").join(NAME);
            if !there.exists() {
                fs::hard_link(sources.striped(), there).unwrap();
            }
            stage.copy(codec.option(), &[], &far, &near)
        }
    }
}

const NAME: &str = "striped";

/// True when it went in ranges.
pub fn copy(stage: &Stage, sources: &Sources, codec: Codec, towards: Towards) -> Result<bool> {
    let expected = is_striped(stage, towards);
    for left in (0..TRIES).rev() {
        let to = if towards == Towards::Server { stage.far().join("up") } else { stage.near() };
        let played = stage.play(&args(stage, sources, codec, towards))?;
        played.went_well()?;
        let there: Vec<_> = names(&to).into_iter().filter(|name| !is_of_a_home(name)).collect();
        ensure!(there == [NAME], "there is {there:?}");
        ensure!(hash_of(&to.join(NAME)) == hash_of(&sources.striped()), "it arrived with another content");
        if went(&played.traffic, &sources.striped(), codec, towards, expected)? {
            return Ok(expected);
        }
        ensure!(left > 0, "one of {POOL} connections carried everything {TRIES} times");
        fs::remove_file(to.join(NAME))?;
    }
    unreachable!("the last try decides")
}

/// True of what programs keep in a home directory, which is where downloads go here.
fn is_of_a_home(name: &OsStr) -> bool {
    [".data", ".cache", ".config", ".local", ".ssh"].iter().any(|other| name == *other)
}

/// Fails unless every byte went once, in ranges or not as `expected`. False when one connection carried all ranges.
fn went(traffic: &Traffic, source: &Path, codec: Codec, towards: Towards, expected: bool) -> Result<bool> {
    let size = fs::metadata(source)?.len();
    let up = traffic.up()?;
    let (content, carriers) = match towards {
        Towards::Server => (Payload::of(&up)?, traffic.carriers()?.0),
        Towards::Client => (Payload::of(&traffic.down()?)?, traffic.carriers()?.1),
    };
    content.is_packed_with(codec.number())?;
    ensure!(content.total() == size, "{content:?}");
    let kinds: &[u8] =
        if towards == Towards::Server { &[kind::PUT_CHUNKED, kind::RANGE_PUT] } else { &[kind::GET_CHUNKED] };
    let ranges: Vec<_> = kinds.iter().flat_map(|&kind| of_kind(&up, kind)).collect();
    let whole = of_kind(&up, if towards == Towards::Server { kind::PUT } else { kind::GET }).len();
    if !expected {
        ensure!((ranges.len(), whole) == (0, 1), "{} ranges and {whole} whole files", ranges.len());
        return Ok(true);
    }
    ensure!(whole == 0, "it was moved as a whole");
    let mut places = ranges.into_iter().map(place).collect::<Option<Vec<_>>>().context("a request is cut")?;
    places.sort_unstable();
    let end = places.iter().try_fold(0, |at, &(offset, length)| (offset == at).then_some(at + length));
    ensure!(end == Some(size) && places.len() >= POOL, "the ranges are {places:?}");
    Ok(carriers > 1)
}

/// Offset and length of what a request for a range asks for, behind a path or a token.
fn place(request: &Raw<'_>) -> Option<(u64, u64)> {
    let mut fields = request.fields();
    match request.kind {
        kind::RANGE_PUT => _ = fields.u64()?,
        _ => _ = fields.bytes()?,
    }
    Some((fields.u64()?, fields.u64()?))
}
