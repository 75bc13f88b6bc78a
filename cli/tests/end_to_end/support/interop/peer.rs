//! Who takes part, and where the programs are.

use crate::support::binary;
use std::fmt;
use std::path::PathBuf;

/// A program that is client and server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    /// bcmr 0.6.0, which speaks version 1.
    Old,
    /// bcmr 0.7.2, which speaks version 2.
    New,
    /// haul, which speaks both.
    Haul,
}

impl Peer {
    pub const ALL: [Peer; 3] = [Peer::Old, Peer::New, Peer::Haul];

    /// The binary, or what to set so that it is found.
    pub fn program(self) -> Result<PathBuf, String> {
        let variable = match self {
            Peer::Old => "HAUL_BCMR_060",
            Peer::New => "HAUL_BCMR_072",
            Peer::Haul => return Ok(binary().to_path_buf()),
        };
        let path = std::env::var_os(variable).map(PathBuf::from);
        let path = path.ok_or_else(|| format!("{variable} does not name a bcmr {self}"))?;
        path.canonicalize().map_err(|error| format!("{variable}: {}: {error}", path.display()))
    }

    /// What it is called where it serves.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Old | Peer::New => "bcmr",
            Peer::Haul => "haul",
        }
    }

    /// Two real programs of different versions refuse each other; haul is understood by all.
    pub fn understands(self, other: Peer) -> bool {
        self == other || self == Peer::Haul || other == Peer::Haul
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Peer::Old => "0.6.0",
            Peer::New => "0.7.2",
            Peer::Haul => "haul",
        })
    }
}

/// True where both real programs are. Else the test is skipped, or fails where they are required.
pub fn real_programs_are_here() -> bool {
    let missing: Vec<String> = Peer::ALL.into_iter().filter_map(|peer| peer.program().err()).collect();
    if missing.is_empty() {
        return true;
    }
    crate::support::skips::skip("bcmr", &missing.join(", "), "the real programs");
    false
}
