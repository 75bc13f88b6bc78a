//! Open files, and reading and writing them.
//!
//! A file to read is a regular file or it is not opened: what stands under the name is looked at first, because opening
//! a device or FIFO can itself do something, and looked at again once open, because it may have been swapped.

use super::attributes::{from_stat, kind};
use super::create::Making;
use super::resolve::{self, Root, Spot};
use crate::backend::Errno;
use crate::limits::{BLOCK_BYTES, LOAD_TRIES};
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
    Whole { attributes: Attributes, len: usize, grew: bool },
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
///
/// What the size says decides nothing: files in /proc say 0, those in /sys a page, and are what can be read of them, as for
/// `cp`. A size or time that is another one afterwards tells of a writer: then it is read once more.
pub(super) fn load(root: &Root, target: &Target, into: &mut [u8]) -> Result<Loaded, Errno> {
    let (file, stat) = open_source(&resolve::existing(root, target, true)?)?;
    load_open(file, from_stat(&stat), into)
}

pub(super) fn load_open(file: OwnedFd, mut before: Attributes, into: &mut [u8]) -> Result<Loaded, Errno> {
    let mut tries = 1;
    while before.size <= into.len() as u64 {
        let len = read_full(file.as_fd(), 0, into)?;
        let whole = len < into.len() || read_full(file.as_fd(), len as u64, &mut [0])? == 0;
        let after = from_stat(&rustix::fs::fstat(&file)?);
        let same = (before.size, before.mtime) == (after.size, after.mtime);
        if same && whole {
            return Ok(Loaded::Whole { attributes: after, len, grew: false });
        }
        // The size need not say that it is too large.
        if same || after.size > into.len() as u64 {
            return Ok(too_large(file, after));
        }
        let was = usize::try_from(before.size).unwrap_or(usize::MAX);
        if tries >= LOAD_TRIES {
            return match after.size > before.size && len >= was && begins_with(&file, &into[..was])? {
                true => Ok(Loaded::Whole { attributes: before, len: was, grew: true }),
                false => Err(Errno::CHANGED),
            };
        }
        before = after;
        tries += 1;
    }
    Ok(too_large(file, before))
}

fn too_large(file: OwnedFd, attributes: Attributes) -> Loaded {
    if attributes.size > BLOCK_BYTES as u64 {
        advise_sequential(&file);
    }
    Loaded::TooLarge(OpenFile::new(file, Role::Source), attributes)
}

/// Memory for content; an error of its operation where there is none.
pub(super) fn buffer(len: usize) -> Result<Box<[u8]>, Errno> {
    bytemuck::allocation::try_zeroed_slice_box(len).map_err(|()| Errno::NO_MEMORY)
}

/// Reads the beginning of a file again. Where nothing of it is another byte than before, all of it was there at the moment
/// between the two.
fn begins_with(file: &OwnedFd, bytes: &[u8]) -> Result<bool, Errno> {
    let mut again = buffer(bytes.len())?;
    Ok(read_full(file.as_fd(), 0, &mut again)? == bytes.len() && *again == *bytes)
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
    let mut buffer = buffer(HASH_BLOCK_BYTES)?;
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
    hash_until(fd, 0, u64::MAX, give_up)
}

/// BLAKE3 of a part of a file, as of a file of its own.
pub(super) fn hash_part(fd: BorrowedFd<'_>, offset: u64, end: u64, give_up: &AtomicBool) -> Result<[u8; 32], Errno> {
    let (hash, reached) = hash_until(fd, offset, end, give_up)?;
    if reached == end { Ok(hash) } else { Err(Errno::SHORT_SOURCE) }
}

/// BLAKE3 from `offset` to `end`, or to where the file ends, and where that is.
fn hash_until(fd: BorrowedFd<'_>, mut offset: u64, end: u64, give_up: &AtomicBool) -> Result<([u8; 32], u64), Errno> {
    let mut buffer = buffer(BLOCK_BYTES)?;
    let mut hasher = blake3::Hasher::new();
    loop {
        if give_up.load(Ordering::Relaxed) {
            return Err(Errno::CANCELLED);
        }
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let count = read_full(fd, offset, &mut buffer[..wanted])?;
        hasher.update(&buffer[..count]);
        offset += count as u64;
        if count < wanted || wanted == 0 {
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
