//! Open files, and reading and writing them.
//!
//! A file to read is a regular file or it is not opened: what stands under the name is looked at first, because opening
//! a device or FIFO can itself do something, and looked at again once open, because it may have been swapped.

use super::attributes::{from_stat, kind};
use super::create::Making;
use super::resolve::{self, Root, Spot};
use crate::backend::Errno;
use crate::limits::BLOCK_BYTES;
use crate::tree_hash::{BlockHash, HASH_BLOCK_BYTES};
use crate::wire::frame::{Attributes, Kind};
use crate::wire::path::Target;
use rustix::fs::{OFlags, Stat};
use rustix::io::Errno as E;
use rustix::io::retry_on_intr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A file opened for reading, a file being made, or a sink.
///
/// One being made has no name, or a temporary one that goes with the last reference unless it was published.
pub struct OpenFile {
    /// Before `fd`, so that a temporary name goes first.
    pub(super) role: Role,
    fd: OwnedFd,
}

/// What an open file is for.
pub(super) enum Role {
    Source,
    Sink,
    Making(Making),
    InPlace,
}

impl OpenFile {
    pub(super) fn new(fd: OwnedFd, role: Role) -> OpenFile {
        OpenFile { role, fd }
    }

    /// The descriptor; pread and pwrite only, its position belongs to nobody.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// True for a target that is `/dev/null`: the descriptor is the device, and publishing does nothing.
    pub fn is_sink(&self) -> bool {
        matches!(self.role, Role::Sink)
    }

    /// What is being made, if anything is.
    pub(super) fn making(&self) -> Option<&Making> {
        match &self.role {
            Role::Making(making) => Some(making),
            _ => None,
        }
    }

    pub(super) fn stat(&self) -> Result<Stat, Errno> {
        Ok(rustix::fs::fstat(&self.fd)?)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Role::Making(making) = &self.role {
            making.discard(self.fd.as_fd());
        }
    }
}

/// How a load ended.
pub(super) enum Loaded {
    Whole { attributes: Attributes, len: usize },
    TooLarge(OpenFile, Attributes),
}

/// Opens a regular file for reading.
pub(super) fn open(root: &Root, target: &Target) -> Result<(OpenFile, Attributes), Errno> {
    let (file, stat) = open_source(&resolve::existing(root, target, true)?)?;
    let attributes = from_stat(&stat);
    if attributes.size > BLOCK_BYTES as u64 {
        advise_sequential(&file);
    }
    Ok((OpenFile::new(file, Role::Source), attributes))
}

/// Reads a whole regular file into `into` if it fits, else leaves it open.
pub(super) fn load(root: &Root, target: &Target, into: &mut [u8]) -> Result<Loaded, Errno> {
    let (file, stat) = open_source(&resolve::existing(root, target, true)?)?;
    let expected = from_stat(&stat).size;
    let mut len = 0;
    let mut fits = expected <= into.len() as u64;
    while fits && len < into.len() {
        let count = retry_on_intr(|| rustix::io::pread(&file, &mut into[len..], len as u64))?;
        len += count;
        // As many bytes as the size says are taken for the whole: the size after reading tells if it grew. Files in
        // /proc say 0 and are read until they end.
        if count == 0 || len as u64 == expected {
            break;
        }
    }
    if fits && len == into.len() && len as u64 != expected {
        fits = retry_on_intr(|| rustix::io::pread(&file, &mut [0u8; 1][..], len as u64))? == 0;
    }
    let attributes = from_stat(&rustix::fs::fstat(&file)?);
    if fits {
        return Ok(Loaded::Whole { attributes, len });
    }
    if attributes.size > BLOCK_BYTES as u64 {
        advise_sequential(&file);
    }
    Ok(Loaded::TooLarge(OpenFile::new(file, Role::Source), attributes))
}

/// Opens what stands at `spot` for reading, a regular file or nothing.
pub(super) fn open_source(spot: &Spot<'_>) -> Result<(OwnedFd, Stat), Errno> {
    check_source(&spot.stat()?)?;
    let file = spot.open(OFlags::RDONLY)?;
    let stat = rustix::fs::fstat(&file)?;
    check_source(&stat)?;
    Ok((file, stat))
}

fn check_source(stat: &Stat) -> Result<(), Errno> {
    match kind(stat) {
        Kind::Regular => Ok(()),
        Kind::Directory => Err(Errno::IS_DIRECTORY),
        // Only where links are not to be followed is one seen here.
        Kind::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NOT_REGULAR),
    }
}

fn advise_sequential(file: &OwnedFd) {
    #[cfg(target_os = "linux")]
    {
        // Advice: where it is not taken, reading works all the same.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Reads until `into` is full or the file ends.
pub(super) fn read(file: &OpenFile, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
    read_full(file.fd(), offset, into)
}

pub(super) fn read_full(fd: BorrowedFd<'_>, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
    offset.checked_add(into.len() as u64).ok_or(Errno::INVALID)?;
    let mut len = 0;
    while len < into.len() {
        match retry_on_intr(|| rustix::io::pread(fd, &mut into[len..], offset + len as u64))? {
            0 => break,
            count => len += count,
        }
    }
    Ok(len)
}

/// Hashes up to `count` blocks from block `first` on, until the file ends.
pub(super) fn hash_blocks(
    file: &OpenFile,
    first: u64,
    count: usize,
    plain: bool,
    give_up: &AtomicBool,
) -> Result<Vec<BlockHash>, Errno> {
    let of = if plain { BlockHash::of } else { BlockHash::placed };
    let mut buffer = vec![0; HASH_BLOCK_BYTES];
    let mut hashes = Vec::new();
    for index in (first..).take(count) {
        if give_up.load(Ordering::Relaxed) {
            return Err(Errno::CANCELLED);
        }
        let offset = index.checked_mul(HASH_BLOCK_BYTES as u64).ok_or(Errno::INVALID)?;
        let len = read_full(file.fd(), offset, &mut buffer)?;
        if len > 0 {
            hashes.push(of(index, &buffer[..len]));
        }
        if len < buffer.len() {
            break;
        }
    }
    Ok(hashes)
}

/// BLAKE3 of a whole file, and its length.
pub(super) fn hash_all(fd: BorrowedFd<'_>, give_up: &AtomicBool) -> Result<([u8; 32], u64), Errno> {
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut hasher = blake3::Hasher::new();
    let mut offset = 0;
    loop {
        if give_up.load(Ordering::Relaxed) {
            return Err(Errno::CANCELLED);
        }
        let count = read_full(fd, offset, &mut buffer)?;
        hasher.update(&buffer[..count]);
        offset += count as u64;
        if count < buffer.len() {
            return Ok((*hasher.finalize().as_bytes(), offset));
        }
    }
}

/// Writes all of `from` at `offset`.
pub(super) fn write_all(file: &OpenFile, offset: u64, from: &[u8]) -> Result<(), Errno> {
    if file.is_sink() {
        return Ok(());
    }
    write_full(file.fd(), offset, from)
}

pub(super) fn write_full(fd: BorrowedFd<'_>, offset: u64, from: &[u8]) -> Result<(), Errno> {
    offset.checked_add(from.len() as u64).ok_or(E::FBIG)?;
    let mut done = 0;
    while done < from.len() {
        match retry_on_intr(|| rustix::io::pwrite(fd, &from[done..], offset + done as u64))? {
            0 => return Err(Errno::IO),
            count => done += count,
        }
    }
    Ok(())
}
