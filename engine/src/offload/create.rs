//! The making of a new file: no name or a temporary one, readable by nobody else, in the directory it will stand in.
//!
//! ```text
//! create -> Making --(writes through the descriptor)--> publish -> under its name
//!              \--(dropped)--> nothing is left
//! ```

use super::attributes::{from_stat, kind};
use super::case::Claim;
use super::open::{OpenFile, Role, buffer, read_full, write_full};
use super::resolve::{self, Handle, Root, Spot};
use crate::backend::{Errno, NO_ATTRIBUTES};
use crate::limits::BLOCK_BYTES;
use crate::wire::frame::{Attributes, Kind};
use crate::wire::path::Target;
use rustix::fs::{AtFlags, Mode, OFlags, RawMode, Stat};
use rustix::io::Errno as E;
use rustix::io::retry_on_intr;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a create asks for; see [`crate::backend::OpenMode::Create`].
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) size: u64,
    pub(super) keep: u64,
    pub(super) overwrite: bool,
    /// The content is at hand and published at once: a temporary name may be used where that is cheaper.
    pub(super) brief: bool,
    /// The mode that the kernel shall give a file under a new name, less what the umask or the directory's default ACL
    /// takes away; where it is known when the file is made.
    pub(super) mode: Option<u32>,
}

/// Where a file being made will stand, and what is known of what stands there now.
pub(super) struct Making {
    pub(super) dir: Handle<'static>,
    pub(super) name: Box<[u8]>,
    pub(super) temp: Option<TempName>,
    /// Mode of the regular file it replaces.
    pub(super) replaced: Option<u32>,
    /// The permission bits that it was asked for when it was made.
    pub(super) asked: u32,
    pub(super) wanted: Wanted,
    /// Below which it is made.
    pub(super) root: Root,
    /// Its name must not be another file's of the same copy, apart from case.
    pub(super) claim: Option<Claim>,
}

/// A temporary name in `dir` of a [`Making`].
pub(super) struct TempName {
    pub(super) name: Box<[u8]>,
    /// It stays when the file is given up, unless there is nothing in it.
    pub(super) stays: bool,
    /// The name is gone from the directory, or is somebody else's now.
    pub(super) gone: AtomicBool,
}

impl Making {
    /// Takes the temporary name away, unless it shall stay or is gone already. Called by the file, which is still open.
    pub(super) fn discard(&self, fd: BorrowedFd<'_>) {
        let Some(temp) = &self.temp else { return };
        if temp.stays && rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_size > 0) {
            temp.gone.store(true, Ordering::Release);
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.as_ref().filter(|temp| !temp.gone.load(Ordering::Acquire)) {
            // Nobody is left to tell.
            let _ = rustix::fs::unlinkat(&self.dir, &temp.name[..], AtFlags::empty());
        }
    }
}

/// Begins a new file.
pub(super) fn create(
    root: &Root,
    target: &Target,
    wanted: Wanted,
    give_up: &AtomicBool,
) -> Result<(OpenFile, Attributes), Errno> {
    let spot = resolve::new(root, target)?;
    let present = match examine(root, &spot, wanted.overwrite)? {
        Present::Nothing => None,
        Present::Replaceable(stat) => Some(stat),
        Present::Sink(fd, stat) => return Ok((OpenFile::new(fd, Role::Sink), from_stat(&stat))),
    };
    // What is kept must be there: bytes behind a hole of zeros are no file anybody sent.
    match &present {
        _ if wanted.keep == 0 => {}
        None => return Err(Errno::NOT_FOUND),
        Some(stat) if kind(stat) != Kind::Regular => return Err(Errno::NOT_REGULAR),
        Some(stat) if from_stat(stat).size < wanted.keep => return Err(Errno::SHORT_SOURCE),
        Some(_) => {}
    }
    check_space(spot.dir.as_fd(), wanted)?;
    let replaced = present.filter(|stat| kind(stat) == Kind::Regular).map(|stat| from_stat(&stat).mode);
    let (named, mode) = (wanted.brief && present.is_some(), wanted.mode.filter(|_| replaced.is_none()));
    let NewFile { fd, temp, asked } = root.writing(spot.dir.as_fd(), || open_temp(spot.dir.as_fd(), named, mode))?;
    let Spot { dir, name, .. } = spot;
    let claim = resolve::claim(root, target);
    let (dir, name, root) = (dir.into_owned()?, name.into(), root.clone());
    let making = Making { dir, name, temp, replaced, asked, wanted, root, claim };
    let mut attributes = present.map_or(NO_ATTRIBUTES, |stat| from_stat(&stat));
    let file = OpenFile::new(fd, Role::Making(making));
    if let (Role::Making(making), true) = (&file.role, wanted.keep > 0 && replaced.is_some()) {
        attributes = keep(file.fd(), making, wanted.keep, give_up)?;
    }
    Ok((file, attributes))
}

/// Opens the target itself for writing, whatever it holds; see [`crate::backend::OpenMode::InPlace`].
pub(super) fn in_place(root: &Root, target: &Target, truncate: Option<u64>) -> Result<(OpenFile, Attributes), Errno> {
    let spot = resolve::new(root, target)?;
    // Looked at first: opening a device or FIFO can itself do something.
    match examine(root, &spot, true)? {
        Present::Sink(fd, stat) => return Ok((OpenFile::new(fd, Role::Sink), from_stat(&stat))),
        Present::Nothing | Present::Replaceable(_) => {}
    }
    let dir = spot.dir.as_fd();
    if let Some(size) = truncate {
        // Before anything is made or lost.
        check_space(dir, Wanted { size, keep: 0, overwrite: true, brief: false, mode: None })?;
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = retry_on_intr(|| rustix::fs::openat(dir, &*spot.name, flags, Mode::from_raw_mode(0o666)))?;
    let stat = rustix::fs::fstat(&fd)?;
    if kind(&stat) != Kind::Regular {
        return Err(Errno::NOT_REGULAR);
    }
    if let Some(size) = truncate {
        // A size that the file system refuses must be refused while everything is still there.
        for size in [size, 0, size] {
            retry_on_intr(|| rustix::fs::ftruncate(&fd, size))?;
        }
    }
    Ok((OpenFile::new(fd, Role::InPlace), from_stat(&stat)))
}

/// What stands where a new file shall stand.
pub(super) enum Present {
    Nothing,
    /// A regular file or a link.
    Replaceable(Stat),
    /// `/dev/null`, open for writing.
    Sink(OwnedFd, Stat),
}

/// Looks at what stands at `spot`. What may not be replaced is an error; so is a name the file system cannot hold.
pub(super) fn examine(root: &Root, spot: &Spot<'_>, overwrite: bool) -> Result<Present, Errno> {
    let stat = match spot.stat() {
        Err(Errno::NOT_FOUND) => return Ok(Present::Nothing),
        result => result?,
    };
    if is_null_device(&stat) {
        let fd = spot.open(OFlags::RDWR)?;
        let stat = rustix::fs::fstat(&fd)?;
        return if is_null_device(&stat) { Ok(Present::Sink(fd, stat)) } else { Err(Errno::NOT_REGULAR) };
    }
    check_replaceable(&stat)?;
    if kind(&stat) == Kind::Symlink && root.behind_link(spot)?.is_some_and(|stat| kind(&stat) != Kind::Regular) {
        // `/dev/stdout` is one, and the link is the system's.
        return Err(Errno::LINK_TO_OTHER);
    }
    if overwrite { Ok(Present::Replaceable(stat)) } else { Err(Errno::EXISTS) }
}

/// Only regular files and links may be replaced.
pub(super) fn check_replaceable(stat: &Stat) -> Result<(), Errno> {
    match kind(stat) {
        Kind::Regular | Kind::Symlink => Ok(()),
        Kind::Directory => Err(Errno::IS_DIRECTORY),
        _ => Err(Errno::NOT_REGULAR),
    }
}

#[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // The width of st_rdev differs between systems.
fn is_null_device(stat: &Stat) -> bool {
    static NULL: OnceLock<Option<u64>> = OnceLock::new();
    let device = |stat: &Stat| (kind(stat) == Kind::CharDevice).then_some(stat.st_rdev as u64);
    let null = NULL.get_or_init(|| rustix::fs::stat("/dev/null").ok().as_ref().and_then(device));
    null.is_some() && device(stat) == *null
}

/// Fails at once where the file cannot fit. What is free may change, so this only spares useless work.
pub(super) fn check_space(dir: BorrowedFd<'_>, wanted: Wanted) -> Result<(), Errno> {
    let needed = wanted.size.saturating_sub(wanted.keep);
    if needed < crate::limits::SPACE_CHECK_BYTES {
        return Ok(());
    }
    // A file system that cannot say is not asked again.
    let Ok(space) = rustix::fs::fstatvfs(dir) else { return Ok(()) };
    // Blocks reserved for root are free to root.
    let free = if rustix::process::geteuid().is_root() { space.f_bfree } else { space.f_bavail };
    if space.f_blocks > 0 && needed > free.saturating_mul(space.f_frsize) {
        return Err(Errno::NO_SPACE);
    }
    Ok(())
}

/// A new empty file.
pub(super) struct NewFile {
    pub(super) fd: OwnedFd,
    pub(super) temp: Option<TempName>,
    /// The permission bits that it was asked for; what it has of them was decided by the kernel.
    pub(super) asked: u32,
}

/// Permission bits of a file that nobody else may open before it is finished.
pub(super) const PRIVATE: u32 = 0o600;

/// A new empty file in `dir`: nameless where that is possible and not unwanted, else under a name nobody had before. With
/// `mode` it has that mode, less what the umask or a default ACL takes away. Else a nameless one, which nobody else can
/// open, is asked for all of them, so that its mode tells what may stay; and one with a name is private.
pub(super) fn open_temp(dir: BorrowedFd<'_>, named: bool, mode: Option<u32>) -> Result<NewFile, Errno> {
    let asked = mode.unwrap_or(0o777);
    if let Some(result) = (!named).then(|| open_nameless(dir, asked)).flatten() {
        return result.map(|fd| NewFile { fd, temp: None, asked });
    }
    let asked = mode.unwrap_or(PRIVATE);
    let (fd, name) = open_named(dir, asked)?;
    Ok(NewFile { fd, temp: Some(TempName { name: name.into(), stays: false, gone: AtomicBool::new(false) }), asked })
}

fn open_named(dir: BorrowedFd<'_>, mode: u32) -> Result<(OwnedFd, [u8; TEMP_NAME_BYTES]), Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    with_temp_name(|name| retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode as RawMode))))
}

/// The permission bits, of all of them, that a new file in `dir` may have: what the umask, or in its place the default ACL
/// of the directory, leaves. A file that is made and goes again tells, because only the kernel knows both.
#[cfg(target_os = "linux")]
pub(super) fn permitted_in(dir: BorrowedFd<'_>) -> Result<u32, Errno> {
    match open_nameless(dir, 0o777) {
        // What the umask says takes none.
        None | Some(Err(Errno::TOO_MANY_FILES | Errno::TOO_MANY_FILES_ALL)) => {}
        Some(result) => return Ok(from_stat(&rustix::fs::fstat(&result?)?).mode & 0o777),
    }
    if !has_default_acl(dir) {
        return Ok(0o777 & !super::attributes::umask());
    }
    let (fd, name) = open_named(dir, 0o777)?;
    let mode = rustix::fs::fstat(&fd).map(|stat| from_stat(&stat).mode & 0o777);
    rustix::fs::unlinkat(dir, &name[..], AtFlags::empty())?;
    Ok(mode?)
}

/// The permission bits, of all of them, that a new file in `dir` may have.
#[cfg(not(target_os = "linux"))]
pub(super) fn permitted_in(_: BorrowedFd<'_>) -> Result<u32, Errno> {
    Ok(0o777 & !super::attributes::umask())
}

/// True unless it is certain that the directory has none.
#[cfg(target_os = "linux")]
fn has_default_acl(dir: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd;
    // The handle only names the directory, so it takes a path to it.
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let found = rustix::fs::getxattr(path, "system.posix_acl_default", &mut [0u8; 0][..]);
    !matches!(found, Err(E::NODATA | E::OPNOTSUPP))
}

/// `None` where the file system, or a missing /proc, does not allow it.
#[cfg(target_os = "linux")]
fn open_nameless(dir: BorrowedFd<'_>, mode: u32) -> Option<Result<OwnedFd, Errno>> {
    // Giving the file its name later takes /proc.
    static LINKABLE: OnceLock<bool> = OnceLock::new();
    if !*LINKABLE.get_or_init(|| rustix::fs::stat("/proc/self/fd").is_ok()) || super::old_kernel() {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match retry_on_intr(|| rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(mode as RawMode))) {
        Err(E::OPNOTSUPP | E::ISDIR | E::NOENT | E::INVAL) => None,
        result => Some(result.map_err(Errno::from)),
    }
}

#[cfg(not(target_os = "linux"))]
fn open_nameless(_: BorrowedFd<'_>, _: u32) -> Option<Result<OwnedFd, Errno>> {
    None
}

/// Length of `.haul-<16 hex>.tmp`.
pub(super) const TEMP_NAME_BYTES: usize = 26;

/// True for names that [`with_temp_name`] makes.
pub(super) fn is_temp_name(name: &[u8]) -> bool {
    let digits = name.strip_prefix(b".haul-").and_then(|rest| rest.strip_suffix(b".tmp"));
    digits.is_some_and(|digits| digits.len() == 16 && digits.iter().all(|digit| b"0123456789abcdef".contains(digit)))
}

/// Calls `make` with random names until one was free.
pub(super) fn with_temp_name<T>(
    mut make: impl FnMut(&[u8]) -> rustix::io::Result<T>,
) -> Result<(T, [u8; TEMP_NAME_BYTES]), Errno> {
    for _ in 0..crate::limits::NAME_TRIES {
        let name = random_name();
        match make(&name) {
            Err(E::EXIST) => {}
            result => return Ok((result?, name)),
        }
    }
    Err(Errno::EXISTS)
}

/// Names are unguessable (a keyed hash of a counter, the key from the system's random source) only so that nobody can
/// get in our way; safety rests on O_EXCL.
fn random_name() -> [u8; TEMP_NAME_BYTES] {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let number = KEY.get_or_init(RandomState::new).hash_one((std::process::id(), count));
    let mut name = *b".haul-0000000000000000.tmp";
    for (position, digit) in name[6..22].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * position)) as usize & 15];
    }
    name
}

/// Brings the first `wanted` bytes of the present file into the new one. Returns the present file's attributes.
pub(super) fn keep(
    new: BorrowedFd<'_>,
    making: &Making,
    wanted: u64,
    give_up: &AtomicBool,
) -> Result<Attributes, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let present = resolve::open_at(making.dir.as_fd(), &making.name, flags)?;
    let stat = rustix::fs::fstat(&present)?;
    if kind(&stat) != Kind::Regular {
        return Err(Errno::NOT_REGULAR);
    }
    let attributes = from_stat(&stat);
    let len = wanted.min(attributes.size);
    if share_extents(present.as_fd(), new).is_ok() {
        rustix::fs::ftruncate(new, len)?;
    } else {
        let copied = copy_in_kernel((present.as_fd(), 0), (new, 0), len, give_up)?.unwrap_or(0);
        copy_through(present.as_fd(), new, copied, len, give_up)?;
    }
    if rustix::fs::fstat(new)?.st_size as u64 != len { Err(Errno::SHORT_SOURCE) } else { Ok(attributes) }
}

/// Makes `to` (empty) the same extents as `from`, where the file system can share them.
#[cfg(target_os = "linux")]
pub(super) fn share_extents(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    if super::old_kernel() {
        return Err(Errno::UNSUPPORTED);
    }
    Ok(retry_on_intr(|| rustix::fs::ioctl_ficlone(to, from))?)
}

/// Makes `to` (empty) the same extents as `from`, where the file system can share them.
#[cfg(not(target_os = "linux"))]
pub(super) fn share_extents(_: BorrowedFd<'_>, _: BorrowedFd<'_>) -> Result<(), Errno> {
    Err(Errno::UNSUPPORTED)
}

/// Copies up to `len` bytes inside the kernel, from a place in one file to a place in another, fewer where the former
/// ends. Returns how many, or `None` where the kernel cannot do it between these two files and nothing was copied.
#[cfg(target_os = "linux")]
pub(super) fn copy_in_kernel(
    (from, mut read): (BorrowedFd<'_>, u64),
    (to, mut written): (BorrowedFd<'_>, u64),
    len: u64,
    give_up: &AtomicBool,
) -> Result<Option<u64>, Errno> {
    if super::old_kernel() {
        return Ok(None);
    }
    let mut left = len;
    while left > 0 {
        if give_up.load(Ordering::Relaxed) {
            return Err(Errno::CANCELLED);
        }
        let step = left.min(crate::limits::COPY_STEP_BYTES) as usize;
        match retry_on_intr(|| rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), step)) {
            Ok(0) => break,
            Ok(count) => left -= count as u64,
            Err(E::XDEV | E::OPNOTSUPP | E::INVAL | E::NOSYS | E::NOTTY | E::PERM) if left == len => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(len - left))
}

/// Copies up to `len` bytes inside the kernel, from a place in one file to a place in another, fewer where the former
/// ends. Returns how many, or `None` where the kernel cannot do it between these two files and nothing was copied.
#[cfg(not(target_os = "linux"))]
pub(super) fn copy_in_kernel(
    _: (BorrowedFd<'_>, u64),
    _: (BorrowedFd<'_>, u64),
    _: u64,
    _: &AtomicBool,
) -> Result<Option<u64>, Errno> {
    Ok(None)
}

/// Copies bytes `start..end` through memory, fewer where `from` ends.
fn copy_through(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
    give_up: &AtomicBool,
) -> Result<(), Errno> {
    if start >= end {
        return Ok(());
    }
    let mut buffer = buffer(BLOCK_BYTES.min((end - start) as usize))?;
    let mut offset = start;
    while offset < end {
        if give_up.load(Ordering::Relaxed) {
            return Err(Errno::CANCELLED);
        }
        let step = ((end - offset) as usize).min(buffer.len());
        let count = read_full(from, offset, &mut buffer[..step])?;
        write_full(to, offset, &buffer[..count])?;
        offset += count as u64;
        if count < step {
            break;
        }
    }
    Ok(())
}
