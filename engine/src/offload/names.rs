//! Names and attributes: stat, directories and their entries, symbolic links.

use super::attributes::{self, from_stat, kind};
use super::create::{check_replaceable, with_temp_name};
use super::open::{self, OpenFile, open_source};
use super::resolve::{self, DIR_READ, Missing, Root, Spot, open_at};
use crate::backend::{DirEntry, Errno, Output};
use crate::limits::{PAGE_ENTRIES, PAGE_NAME_BYTES};
use crate::wire::frame::{Attributes, Kind, Preserve, Unkept};
use crate::wire::path::Target;
#[cfg(target_os = "linux")]
use rustix::fs::OFlags;
use rustix::fs::{AtFlags, Dir, Gid, Timestamps, Uid};
use rustix::io::Errno as E;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

/// Bytes that one more entry may add to a page: NAME_MAX and PATH_MAX of every system we know.
const ENTRY_NAME_BYTES: usize = 255 + 4096;

const _: () = assert!(PAGE_NAME_BYTES > 2 * ENTRY_NAME_BYTES);

/// Attributes of what a target names, with the text of a link that was not followed.
pub(super) fn stat(root: &Root, target: &Target, follow: bool) -> Result<Output, Errno> {
    let spot = resolve::existing(root, target, follow)?;
    let attributes = from_stat(&spot.stat()?);
    if attributes.kind != Kind::Symlink {
        return Ok(Output::Attributes { attributes, link: Vec::new() });
    }
    if follow {
        return Err(Errno::LOOP); // A link below an operand, or one that was put there just now.
    }
    let link = read_link(spot.dir.as_fd(), &spot.name)?;
    Ok(Output::Attributes { attributes, link })
}

/// Attributes of an open file.
pub(super) fn stat_open(file: &OpenFile, past: Option<u64>) -> Result<Output, Errno> {
    let mut attributes = from_stat(&file.stat()?);
    if past == Some(attributes.size) && open::read(file, attributes.size, &mut [0])? > 0 {
        let now = from_stat(&file.stat()?);
        if now.size == attributes.size {
            return Err(Errno::SIZE_LIES);
        }
        attributes = now;
    }
    Ok(Output::Attributes { attributes, link: Vec::new() })
}

fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// A directory whose entries are being read. Its place in the directory lives in the stream, so a page continues where
/// the one before ended.
pub(super) struct OpenDir {
    stream: Mutex<Dir>,
}

/// Opens a directory for reading its entries.
pub(super) fn open_dir(root: &Root, target: &Target) -> Result<(OpenDir, Attributes), Errno> {
    let handle = resolve::directory(root, target, Missing::Fail)?;
    let dir = open_at(handle.as_fd(), b".", DIR_READ)?;
    let attributes = from_stat(&rustix::fs::fstat(&dir)?);
    Ok((OpenDir { stream: Mutex::new(Dir::new(dir)?) }, attributes))
}

impl OpenDir {
    /// The next entries: at most `PAGE_ENTRIES` of them with `PAGE_NAME_BYTES` of names and link texts.
    pub(super) fn read_page(&self) -> Result<Output, Errno> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::new();
        let mut bytes = 0;
        while entries.len() < PAGE_ENTRIES && bytes + ENTRY_NAME_BYTES <= PAGE_NAME_BYTES {
            let Some(entry) = stream.read() else {
                return Ok(Output::Entries { entries, end: true });
            };
            let name = entry?.file_name().to_bytes().to_vec();
            if matches!(&name[..], b"." | b"..") {
                continue;
            }
            if let Some(entry) = describe(stream.fd()?, name) {
                bytes += entry.name.len() + entry.link.len();
                entries.push(entry);
            }
        }
        Ok(Output::Entries { entries, end: false })
    }
}

/// One entry with its attributes; `None` when it is gone.
fn describe(dir: BorrowedFd<'_>, name: Vec<u8>) -> Option<DirEntry> {
    let attributes = match rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(E::NOENT) => return None,
        Err(error) => Err(error.into()),
        Ok(stat) => Ok(from_stat(&stat)),
    };
    if !attributes.is_ok_and(|attributes| attributes.kind == Kind::Symlink) {
        return Some(DirEntry { name, attributes, link: Vec::new() });
    }
    match read_link(dir, &name) {
        Err(Errno::NOT_FOUND) => None,
        Err(errno) => Some(DirEntry { name, attributes: Err(errno), link: Vec::new() }),
        Ok(link) => Some(DirEntry { name, attributes, link }),
    }
}

/// As `mkdir -p`.
pub(super) fn make_dir(root: &Root, target: &Target) -> Result<(), Errno> {
    resolve::make_directory(root, target)
}

/// Attributes of an existing directory or regular file: of the kind that the attributes say.
pub(super) fn set_meta(
    root: &Root,
    target: &Target,
    attributes: &Attributes,
    preserve: Preserve,
) -> Result<Unkept, Errno> {
    if attributes.kind == Kind::Regular {
        let (file, _) = open_source(&resolve::file_to_change(root, target)?)?;
        return attributes::apply_to_file(file.as_fd(), Some(attributes), preserve, None);
    }
    let handle = resolve::directory_to_change(root, target)?;
    let dir = open_at(handle.as_fd(), b".", DIR_READ)?;
    let of_root = attributes::is_guarded() && root.is(dir.as_fd());
    let asked = if of_root { Preserve(preserve.0 & !(Preserve::MODE.0 | Preserve::OWNER.0)) } else { preserve };
    let mut unkept = attributes::apply_to_dir(dir.as_fd(), attributes, asked)?;
    if of_root && preserve.has(Preserve::MODE) {
        unkept = unkept.or(Unkept::MODE);
    }
    if preserve.has(Preserve::MODE) {
        root.has_mode(handle.as_fd());
    }
    Ok(unkept)
}

/// A symbolic link, in place of a file or link of that name.
pub(super) fn make_link(
    root: &Root,
    target: &Target,
    text: &[u8],
    attributes: &Attributes,
    preserve: Preserve,
) -> Result<Unkept, Errno> {
    let times = attributes::timestamps(attributes)?;
    let spot = resolve::new(root, target)?;
    let make = || replace_link(root, &spot, text, attributes, preserve, &times);
    resolve::claim(root, target).as_ref().map_or_else(make, |claim| claim.give(make))
}

fn replace_link(
    root: &Root,
    spot: &Spot<'_>,
    text: &[u8],
    attributes: &Attributes,
    preserve: Preserve,
    times: &Timestamps,
) -> Result<Unkept, Errno> {
    let dir = spot.dir.as_fd();
    let given = preserve.has(Preserve::OWNER) && !attributes::is_guarded();
    let owner = given.then(|| attributes::owner(attributes));
    match root.writing(dir, || Ok(rustix::fs::symlinkat(text, dir, &*spot.name)?)) {
        Err(Errno::EXISTS) => {}
        result => {
            result?;
            return finish_link(dir, &spot.name, text, owner, times);
        }
    }
    // That something has the name was said before whether this directory may be written to.
    let ((), temp) = root.writing(dir, || with_temp_name(|name| rustix::fs::symlinkat(text, dir, name)))?;
    let replaced = finish_link(dir, &temp, text, owner, times).and_then(|unkept| {
        check_spot(spot)?;
        rustix::fs::renameat(dir, &temp[..], dir, &*spot.name)?;
        Ok(unkept)
    });
    replaced.inspect_err(|_| {
        let _ = rustix::fs::unlinkat(dir, &temp[..], AtFlags::empty());
    })
}

/// Owner and times of a link that was made just now. They go through a descriptor of the link itself: who may write to the
/// directory can have put something else in its place, and would be given it.
#[cfg(target_os = "linux")]
fn finish_link(
    dir: BorrowedFd<'_>,
    name: &[u8],
    text: &[u8],
    owner: Option<(Option<Uid>, Option<Gid>)>,
    times: &Timestamps,
) -> Result<Unkept, Errno> {
    use std::os::fd::AsRawFd;
    let link = open_at(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
    let stat = rustix::fs::fstat(&link)?;
    let made = kind(&stat) == Kind::Symlink && rustix::fs::readlinkat(&link, c"", Vec::new())?.as_bytes() == text;
    if !made || stat.st_nlink > 1 {
        return Err(Errno::REPLACED);
    }
    let mut unkept = Unkept::default();
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        // A server that lets nobody be root made it another user's, or that user did.
        return Ok(Unkept::TIMES.or(owner.map_or(unkept, |_| Unkept::OWNER)));
    }
    if let Some((owner, group)) = owner {
        match rustix::fs::chownat(&link, c"", owner, group, AtFlags::EMPTY_PATH) {
            Err(error) if attributes::not_ours_to_give(error) && !rustix::process::geteuid().is_root() => {}
            result => unkept.note(Unkept::OWNER, result)?,
        }
    }
    let set = match rustix::fs::utimensat(&link, c"", times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8.
        Err(E::INVAL) => {
            let path = format!("/proc/self/fd/{}", link.as_raw_fd());
            rustix::fs::utimensat(rustix::fs::CWD, path, times, AtFlags::empty())
        }
        result => result,
    };
    match set {
        // Not every file system keeps times of links, and nobody asks for them.
        Err(E::OPNOTSUPP | E::NOSYS) => {}
        result => unkept.note(Unkept::TIMES, result)?,
    }
    Ok(unkept)
}

/// Owner and times of a link that was made just now. There are no descriptors of links here.
#[cfg(not(target_os = "linux"))]
fn finish_link(
    dir: BorrowedFd<'_>,
    name: &[u8],
    _: &[u8],
    owner: Option<(Option<Uid>, Option<Gid>)>,
    times: &Timestamps,
) -> Result<Unkept, Errno> {
    let mut unkept = Unkept::default();
    if let Some((owner, group)) = owner {
        match rustix::fs::chownat(dir, name, owner, group, AtFlags::SYMLINK_NOFOLLOW) {
            Err(error) if attributes::not_ours_to_give(error) && !rustix::process::geteuid().is_root() => {}
            result => unkept.note(Unkept::OWNER, result)?,
        }
    }
    match rustix::fs::utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW) {
        Err(E::OPNOTSUPP | E::NOSYS) => {}
        result => unkept.note(Unkept::TIMES, result)?,
    }
    Ok(unkept)
}

fn check_spot(spot: &Spot<'_>) -> Result<(), Errno> {
    match spot.stat() {
        Err(Errno::NOT_FOUND) => Ok(()),
        Ok(stat) if kind(&stat) == Kind::Directory => Err(Errno::IS_DIRECTORY),
        Ok(stat) => check_replaceable(&stat),
        Err(errno) => Err(errno),
    }
}
