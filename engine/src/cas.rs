//! The content-addressed block store as far as it is thought and not done: what things are called, which blocks go
//! first, what the environment asks for. `offload::BlockStore` does it.
//!
//! Participants: servers of one user, any number at the same time, that share one directory without locks. Goals: a
//! block that was received once is not received again; what is found is never trusted, only its hash is; what was
//! uploaded below one root is not to be had below another. Non-goals: surviving a power cut (nothing is flushed), and
//! being found by other programs.
//!
//! ```text
//! DIRECTORY/changes                            grows with every change, so that others notice it
//! DIRECTORY/<scope>/                           64 hex digits: which root, see RootIdentity
//! DIRECTORY/<scope>/aa/bb/<60 hex>.blk         the block whose BLAKE3 is aabb<60 hex>: its bytes and nothing else
//! ```

#![forbid(unsafe_code)]

use crate::limits::{CAS_CAP_MIB, CAS_VICTIMS, PAGE_BYTES};
use crate::tree_hash::HASH_BLOCK_BYTES;
use crate::wire::frame::Hash;
use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Which served root blocks belong to. Whoever can name a hash gets the block into a file that he may read, so blocks
/// kept below one root are nobody's below another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootIdentity {
    /// Absolute path without links.
    pub path: Vec<u8>,
    /// `st_dev` of the directory.
    pub device: u64,
    /// `st_ino` of the directory: another directory under the same name is another root.
    pub inode: u64,
}

impl RootIdentity {
    /// What the name of this root's part of the store says.
    pub fn scope(&self) -> Hash {
        let mut hasher = blake3::Hasher::new_derive_key("haul block store, scope of a served root, version 1");
        hasher.update(&(self.path.len() as u64).to_le_bytes()).update(&self.path);
        hasher.update(&self.device.to_le_bytes()).update(&self.inode.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Lower-case hex digits of a hash: the name of a scope.
pub fn hex(hash: &Hash) -> [u8; 64] {
    let mut digits = [0; 64];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(hash) {
        pair.copy_from_slice(&[
            b"0123456789abcdef"[usize::from(byte >> 4)],
            b"0123456789abcdef"[usize::from(byte & 15)],
        ]);
    }
    digits
}

/// The hash of which [`hex`] makes these digits, if there is one.
pub fn from_hex(digits: &[u8]) -> Option<Hash> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut hash = Hash::default();
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(hash)
}

/// Where a block stands in its scope: two levels of directories and a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockName {
    digits: [u8; 64],
    file: [u8; 64],
}

const SUFFIX: &[u8; 4] = b".blk";

impl BlockName {
    /// Of the block with this hash.
    pub fn of(hash: &Hash) -> BlockName {
        let digits = hex(hash);
        let mut file = [0; 64];
        file[..60].copy_from_slice(&digits[4..]);
        file[60..].copy_from_slice(SUFFIX);
        BlockName { digits, file }
    }

    /// The hash of the block that stands there, if these are the names of one.
    pub fn parse(outer: &[u8], inner: &[u8], file: &[u8]) -> Option<Hash> {
        let rest = file.strip_suffix(SUFFIX)?;
        if (outer.len(), inner.len()) != (2, 2) {
            return None;
        }
        from_hex(&[outer, inner, rest].concat())
    }

    /// Name of the outer directory.
    pub fn outer(&self) -> &[u8] {
        &self.digits[..2]
    }

    /// Name of the directory in it.
    pub fn inner(&self) -> &[u8] {
        &self.digits[2..4]
    }

    /// Name of the file in that.
    pub fn file(&self) -> &[u8] {
        &self.file
    }
}

/// Bytes of the block with this index of a file of `size` bytes; `None` behind the end of the file.
pub fn block_bytes(size: u64, index: u64) -> Option<usize> {
    let left = size.checked_sub(index.checked_mul(HASH_BLOCK_BYTES as u64)?)?;
    (left > 0).then(|| left.min(HASH_BLOCK_BYTES as u64) as usize)
}

/// A block of the store, as a look at its name and attributes shows it. Ordered by when it was used, oldest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stored {
    /// Time of the last use: seconds and nanoseconds since the epoch.
    pub used: (i64, u32),
    /// Whose it is.
    pub scope: Hash,
    /// Its name.
    pub hash: Hash,
    /// Its length.
    pub bytes: u64,
}

impl Stored {
    /// See [`cost`].
    pub fn cost(&self) -> u64 {
        cost(self.bytes)
    }
}

/// What a block counts towards the cap: whole pages, or a flood of tiny blocks would be counted as nothing.
pub fn cost(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_BYTES as u64)
}

/// Counts a store, block by block.
#[derive(Default)]
pub struct Census {
    total: u64,
    /// The youngest is at the top, to be forgotten first.
    oldest: BinaryHeap<Stored>,
}

impl Census {
    /// Takes note of a block.
    pub fn add(&mut self, block: Stored) {
        self.total = self.total.saturating_add(block.cost());
        self.oldest.push(block);
        if self.oldest.len() > CAS_VICTIMS {
            self.oldest.pop();
        }
    }

    /// What was counted.
    pub fn finish(self) -> Ledger {
        let mut oldest = self.oldest.into_sorted_vec();
        oldest.reverse();
        Ledger { total: self.total, oldest }
    }
}

/// How much the store holds, and which blocks go first. Of a store of any size it remembers the [`CAS_VICTIMS`] blocks
/// used longest ago; when those are gone it must be counted again.
#[derive(Debug)]
pub struct Ledger {
    total: u64,
    /// The oldest is last.
    oldest: Vec<Stored>,
}

impl Ledger {
    /// Bytes in the store.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes note of a new block, which is younger than all others.
    pub fn added(&mut self, cost: u64) {
        self.total = self.total.saturating_add(cost);
    }

    /// The block to go next while there is more than `cap`; `None` as well when none is remembered any more. It is still
    /// counted: see [`Ledger::removed`].
    pub fn victim(&mut self, cap: u64) -> Option<Stored> {
        if self.total > cap { self.oldest.pop() } else { None }
    }

    /// Takes note that a block is gone.
    pub fn removed(&mut self, block: &Stored) {
        self.total = self.total.saturating_sub(block.cost());
    }
}

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The directory.
    pub directory: PathBuf,
    /// The user named this directory, it is not the default.
    pub chosen: bool,
}

/// Where the environment puts the store: `HAUL_CAS_DIR`, `BCMR_CAS_DIR`, `$XDG_DATA_HOME/haul/cas`,
/// `$HOME/.local/share/haul/cas`. `None` without any of them: there is no default that others can write to.
pub fn location(variable: impl Fn(&str) -> Option<OsString>) -> Option<Location> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = set("HAUL_CAS_DIR").or_else(|| set("BCMR_CAS_DIR")) {
        return Some(Location { directory, chosen: true });
    }
    // A relative XDG_DATA_HOME is to be ignored (XDG Base Directory Specification); a relative HOME is no home.
    let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(Location { directory: data.join("haul/cas"), chosen: false })
}

/// Bytes the environment lets the store hold: `HAUL_CAS_CAP_MB`, `BCMR_CAS_CAP_MB`, [`CAS_CAP_MIB`]. What is no number
/// counts as the default; 0 is `None`, no limit.
pub fn cap(variable: impl Fn(&str) -> Option<OsString>) -> Option<u64> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let value = set("HAUL_CAS_CAP_MB").or_else(|| set("BCMR_CAS_CAP_MB"));
    let mebibytes = value.as_deref().and_then(OsStr::to_str).and_then(|text| text.trim().parse().ok());
    match mebibytes.unwrap_or(CAS_CAP_MIB) {
        0 => None,
        mebibytes => Some(mebibytes.saturating_mul(1024 * 1024)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::random::Random;

    fn hash(random: &mut Random) -> Hash {
        let mut hash = Hash::default();
        hash.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&random.next().to_le_bytes()));
        hash
    }

    #[test]
    fn a_block_is_found_under_its_hash_and_nothing_else_is_a_block() {
        let mut random = Random::new(1);
        for _ in 0..100 {
            let hash = hash(&mut random);
            let name = BlockName::of(&hash);
            let path =
                [name.outer(), name.inner(), name.file()].map(|part| std::str::from_utf8(part).unwrap()).join("/");
            let digits = blake3::Hash::from(hash).to_hex();
            assert_eq!(path, format!("{}/{}/{}.blk", &digits[..2], &digits[2..4], &digits[4..]));
            assert_eq!(BlockName::parse(name.outer(), name.inner(), name.file()), Some(hash));
            assert_eq!((from_hex(&hex(&hash)), &hex(&hash)[..]), (Some(hash), digits.as_bytes()));
        }
        let name = BlockName::of(&[0xab; 32]);
        let upper = name.file().to_ascii_uppercase();
        let shifted: [(&[u8], &[u8], &[u8]); 6] = [
            (b"a", b"bab", name.file()),
            (b"ab", b"AB", name.file()),
            (b"ab", b"ab", &upper),
            (b"ab", b"ab", &name.file()[..60]),
            (b"ab", b"ab", &name.file()[1..]),
            (b"ab", b"ab", b".blk"),
        ];
        for (outer, inner, file) in shifted {
            assert_eq!(BlockName::parse(outer, inner, file), None, "{outer:?} {inner:?} {file:?}");
        }
    }

    #[test]
    fn every_part_of_a_roots_identity_makes_another_scope() {
        let root = RootIdentity { path: b"/srv/a".to_vec(), device: 1, inode: 2 };
        let others = [
            RootIdentity { path: b"/srv/b".to_vec(), ..root.clone() },
            RootIdentity { path: b"/srv/a\x01".to_vec(), ..root.clone() },
            RootIdentity { device: 2, ..root.clone() },
            RootIdentity { inode: 1, ..root.clone() },
            RootIdentity { device: 2, inode: 1, ..root.clone() },
        ];
        assert_eq!(root.scope(), root.clone().scope());
        let mut scopes: Vec<Hash> = others.iter().chain([&root]).map(RootIdentity::scope).collect();
        scopes.sort_unstable();
        scopes.dedup();
        assert_eq!(scopes.len(), others.len() + 1);
    }

    #[test]
    fn blocks_are_whole_up_to_the_last_one_of_the_file() {
        const B: u64 = HASH_BLOCK_BYTES as u64;
        for (size, index, bytes) in [
            (0, 0, None),
            (1, 0, Some(1)),
            (1, 1, None),
            (B, 0, Some(B)),
            (B, 1, None),
            (B + 1, 0, Some(B)),
            (B + 1, 1, Some(1)),
            (3 * B - 1, 2, Some(B - 1)),
            (u64::MAX, u64::MAX / B, Some(B - 1)),
            (u64::MAX, u64::MAX, None),
        ] {
            assert_eq!(block_bytes(size, index).map(|bytes| bytes as u64), bytes, "block {index} of {size} bytes");
        }
    }

    fn blocks(random: &mut Random, count: usize) -> Vec<Stored> {
        let mut block = || Stored {
            used: (random.below(20) as i64 - 10, random.below(3) as u32),
            scope: [random.below(3) as u8; 32],
            hash: hash(random),
            bytes: 1 + random.below(HASH_BLOCK_BYTES as u64),
        };
        (0..count).map(|_| block()).collect()
    }

    fn counted(blocks: &[Stored]) -> Ledger {
        let mut census = Census::default();
        blocks.iter().for_each(|block| census.add(*block));
        census.finish()
    }

    #[test]
    fn the_blocks_used_longest_ago_go_until_the_rest_is_within_the_cap() {
        let mut random = Random::new(2);
        for count in [0, 1, 2, 50, CAS_VICTIMS + 10] {
            let blocks = blocks(&mut random, count);
            let total: u64 = blocks.iter().map(Stored::cost).sum();
            for cap in [0, 1, total / 3, total.saturating_sub(1), total, u64::MAX] {
                let mut ledger = counted(&blocks);
                assert_eq!(ledger.total(), total);
                let mut gone = Vec::new();
                while let Some(victim) = ledger.victim(cap) {
                    assert!(ledger.total() > cap, "a block goes that could have stayed");
                    ledger.removed(&victim);
                    gone.push(victim);
                }
                assert!(ledger.total() <= cap || gone.len() == CAS_VICTIMS);
                let mut sorted = blocks.clone();
                sorted.sort_by_key(|block| (block.used, block.scope, block.hash));
                assert_eq!(gone, sorted[..gone.len()], "{count} blocks, cap {cap} of {total}");
            }
        }
    }

    #[test]
    fn a_new_block_counts_and_a_block_of_one_byte_counts_a_page() {
        let one = Stored { used: (0, 0), scope: [0; 32], hash: [1; 32], bytes: 1 };
        let mut ledger = counted(&[one]);
        ledger.added(10_000);
        assert_eq!(ledger.total(), 14_096);
        assert_eq!(ledger.victim(14_096), None);
        assert_eq!(ledger.victim(14_095), Some(one));
        assert_eq!(ledger.victim(14_095), None, "only what was counted is remembered");
    }

    fn of(variables: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
    }

    #[test]
    fn the_first_name_that_is_set_says_where_the_store_is() {
        let at = |variables| location(of(variables)).map(|at| (at.directory.to_str().unwrap().to_owned(), at.chosen));
        let found = |path: &str, chosen| Some((path.to_owned(), chosen));
        assert_eq!(at(&[("HAUL_CAS_DIR", "/h"), ("BCMR_CAS_DIR", "/b"), ("HOME", "/me")]), found("/h", true));
        assert_eq!(at(&[("HAUL_CAS_DIR", ""), ("BCMR_CAS_DIR", "/b"), ("HOME", "/me")]), found("/b", true));
        assert_eq!(at(&[("XDG_DATA_HOME", "/data"), ("HOME", "/me")]), found("/data/haul/cas", false));
        assert_eq!(at(&[("XDG_DATA_HOME", "data"), ("HOME", "/me")]), found("/me/.local/share/haul/cas", false));
        assert_eq!(at(&[("HOME", "home")]), None);
        assert_eq!(at(&[]), None, "and never in a directory that all can write to");
    }

    #[test]
    fn the_cap_is_a_number_of_mebibytes_or_the_default() {
        const DEFAULT: Option<u64> = Some(1024 << 20);
        assert_eq!(cap(of(&[])), DEFAULT);
        assert_eq!(cap(of(&[("HAUL_CAS_CAP_MB", "32"), ("BCMR_CAS_CAP_MB", "64")])), Some(32 << 20));
        assert_eq!(cap(of(&[("BCMR_CAS_CAP_MB", " 64\n")])), Some(64 << 20));
        assert_eq!(cap(of(&[("HAUL_CAS_CAP_MB", "0"), ("BCMR_CAS_CAP_MB", "64")])), None);
        for garbage in ["", "many", "-1", "1.5", "0x10", "99999999999999999999999"] {
            assert_eq!(cap(|name| (name == "HAUL_CAS_CAP_MB").then(|| garbage.into())), DEFAULT, "{garbage:?}");
        }
        assert_eq!(cap(of(&[("HAUL_CAS_CAP_MB", "18446744073709551615")])), Some(u64::MAX), "and never 0 by overflow");
    }
}
