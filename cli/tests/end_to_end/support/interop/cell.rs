//! One client, one server, one codec: which operations work.

use super::content::Sources;
use super::downloads::Hashed;
use super::peer::Peer;
use super::raw::{LZ4, ZSTD};
use super::stage::{Stage, Way};
use super::striped::Towards;
use super::{downloads, striped, uploads};
use anyhow::{Context as _, Result};
use std::fmt;

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Operation {
    /// One file to the server.
    Put,
    /// A large file that the server has no block of.
    DedupCold,
    /// The same again with one block changed.
    DedupWarm,
    /// A file of which the server has the beginning.
    Resume,
    /// A tree to the server.
    BatchPut,
    /// One file from the server.
    Get,
    /// The same without a hash.
    FastGet,
    /// A tree from the server.
    BatchGet,
    /// The server's list of a tree.
    List,
    /// The server's hash of a file.
    Hash,
    /// One file to the server over TCP.
    DirectPut,
    /// One file from the server over TCP.
    DirectGet,
    /// A tree to the server over several TCP connections.
    PoolPut,
    /// A tree from the server over several TCP connections.
    PoolGet,
    /// One large file to the server over several connections.
    StripedPut,
    /// One large file from the server over several connections.
    StripedGet,
}

/// Connections where several are asked for.
pub const POOL: usize = 3;

impl Operation {
    pub const ALL: [Operation; 16] = [
        Operation::Put,
        Operation::DedupCold,
        Operation::DedupWarm,
        Operation::Resume,
        Operation::BatchPut,
        Operation::Get,
        Operation::FastGet,
        Operation::BatchGet,
        Operation::List,
        Operation::Hash,
        Operation::DirectPut,
        Operation::DirectGet,
        Operation::PoolPut,
        Operation::PoolGet,
        Operation::StripedPut,
        Operation::StripedGet,
    ];

    /// The ways that `client` has for it, each of which is tried.
    pub fn ways(self, client: Peer) -> &'static [Way] {
        match (self, client) {
            (Operation::DirectPut | Operation::DirectGet, _) => &[Way::Direct(1)],
            (Operation::PoolPut | Operation::PoolGet, _) => &[Way::Direct(POOL)],
            (Operation::StripedPut | Operation::StripedGet, Peer::Haul) => &[Way::Direct(POOL), Way::Ssh(POOL)],
            // The real ones do it over TCP only.
            (Operation::StripedPut | Operation::StripedGet, _) => &[Way::Direct(POOL)],
            _ => &[Way::Ssh(1)],
        }
    }

    /// Whether content goes over the wire, so that a codec matters.
    pub fn moves_content(self) -> bool {
        !matches!(self, Operation::List | Operation::Hash)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operation::Put => "put",
            Operation::DedupCold => "dedup, cold",
            Operation::DedupWarm => "dedup, warm",
            Operation::Resume => "resume",
            Operation::BatchPut => "batch put",
            Operation::Get => "get",
            Operation::FastGet => "FAST get",
            Operation::BatchGet => "batch get",
            Operation::List => "list",
            Operation::Hash => "hash",
            Operation::DirectPut => "direct put",
            Operation::DirectGet => "direct get",
            Operation::PoolPut => "direct pool put",
            Operation::PoolGet => "direct pool get",
            Operation::StripedPut => "striped put",
            Operation::StripedGet => "striped get",
        })
    }
}

/// How content is compressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Codec {
    None,
    Lz4,
    Zstd,
}

impl Codec {
    pub const ALL: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    /// As all three clients spell it behind `--compress`.
    pub fn option(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// As DataCompressed has it; 0 for none.
    pub fn number(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Lz4 => LZ4,
            Codec::Zstd => ZSTD,
        }
    }
}

/// One place in the matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cell {
    pub client: Peer,
    pub server: Peer,
    pub operation: Operation,
    pub codec: Codec,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}: {}", self.client, self.server, self.operation)?;
        if self.operation.moves_content() { write!(f, ", {}", self.codec.option()) } else { Ok(()) }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Everything that was to be proved is.
    Works,
    /// The same, but the file went as a whole where others take ranges.
    Whole,
    /// The server refused the client's version, as it must.
    Refused,
    Failed(String),
}

impl Cell {
    /// All places, those of one pair together.
    pub fn all() -> Vec<Cell> {
        let mut cells = Vec::new();
        for client in Peer::ALL {
            for server in Peer::ALL {
                for operation in Operation::ALL {
                    let codecs = if operation.moves_content() { &Codec::ALL[..] } else { &[Codec::None] };
                    cells.extend(codecs.iter().map(|&codec| Cell { client, server, operation, codec }));
                }
            }
        }
        cells
    }

    /// Runs it. A panic is a failure too: the other cells shall be seen all the same.
    pub fn outcome(self, sources: &Sources) -> Outcome {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run(sources))) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map_or("it panicked", String::as_str);
                Outcome::Failed(text.to_string())
            }
        }
    }

    fn run(self, sources: &Sources) -> Result<Outcome> {
        let mut found = Outcome::Whole;
        for &way in self.operation.ways(self.client) {
            let outcome = self.run_by(way, sources).with_context(|| format!("{way:?}"))?;
            if outcome != Outcome::Whole {
                found = outcome;
            }
        }
        Ok(found)
    }

    fn run_by(self, way: Way, sources: &Sources) -> Result<Outcome> {
        let stage = Stage::new(self.client, self.server, way, sources)?;
        if !self.client.understands(self.server) {
            return self.is_refused(&stage, sources);
        }
        match self.operation {
            Operation::Put | Operation::DirectPut => uploads::put(&stage, sources, self.codec)?,
            Operation::DedupCold => uploads::dedup_cold(&stage, sources, self.codec)?,
            Operation::DedupWarm => uploads::dedup_warm(&stage, sources, self.codec)?,
            Operation::Resume => uploads::resume(&stage, sources, self.codec)?,
            Operation::BatchPut => uploads::batch(&stage, sources, self.codec)?,
            Operation::Get | Operation::DirectGet => downloads::get(&stage, sources, self.codec, Hashed::Yes)?,
            Operation::FastGet => downloads::get(&stage, sources, self.codec, Hashed::No)?,
            Operation::BatchGet => downloads::batch(&stage, sources, self.codec)?,
            Operation::List => downloads::list(&stage, sources)?,
            Operation::Hash => downloads::hash(&stage, sources)?,
            Operation::PoolPut => uploads::pool(&stage, sources, self.codec)?,
            Operation::PoolGet => downloads::pool(&stage, sources, self.codec)?,
            Operation::StripedPut | Operation::StripedGet => {
                let ranges = striped::copy(&stage, sources, self.codec, self.towards())?;
                return Ok(if ranges { Outcome::Works } else { Outcome::Whole });
            }
        }
        Ok(Outcome::Works)
    }

    fn towards(self) -> Towards {
        if self.operation == Operation::StripedPut { Towards::Server } else { Towards::Client }
    }

    /// The client may then take another way, which is not looked at, and takes long with many files.
    fn is_refused(self, stage: &Stage, sources: &Sources) -> Result<Outcome> {
        let args = match self.operation {
            Operation::Put | Operation::DirectPut => uploads::put_args(stage, sources, self.codec),
            Operation::DedupCold | Operation::DedupWarm => uploads::dedup_args(stage, sources, self.codec, false),
            Operation::Resume => uploads::resume_args(stage, sources, self.codec)?,
            Operation::BatchPut | Operation::PoolPut => uploads::batch_args(stage, &sources.tree(), self.codec),
            Operation::Get | Operation::DirectGet => downloads::get_args(stage, sources, self.codec, Hashed::Yes)?,
            Operation::FastGet => downloads::get_args(stage, sources, self.codec, Hashed::No)?,
            Operation::BatchGet | Operation::PoolGet => downloads::batch_args(stage, &sources.tree(), self.codec)?,
            Operation::List => downloads::list_args(stage, sources)?,
            Operation::Hash => downloads::hash_args(stage, sources)?,
            Operation::StripedPut | Operation::StripedGet => striped::args(stage, sources, self.codec, self.towards()),
        };
        stage.play(&args)?.was_refused()?;
        Ok(Outcome::Refused)
    }
}
