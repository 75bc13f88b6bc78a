//! A file being made that outlives its process: what an interrupted transfer leaves beside the target.
//!
//! ```text
//! open -> .haul-<16 hex>.part, ours and nobody else's -> written to -> publish: renamed into place
//!   \                                                       \-> given up, killed: it stays, if anything is in it
//!    \-> not ours, or another process is at it: an ordinary new file
//! ```
//! The name is a hash of the target's name and of the directory's number, so the next run finds it. Nobody is kept from
//! guessing it; what is under the name is taken only if nobody else can have made or can change it: a regular file, ours,
//! mode 0600, with this one name; or, where the file system has no modes or owners, one that looks as every file made there.
//! What it holds is proved by its sender before it counts. A copy that was begun otherwise and completes the file removes it.

use super::attributes::{from_stat, kind};
use super::create::{self, Making, NewFile, PRIVATE, Present, TempName, Wanted, check_space, examine, open_temp};
use super::open::{OpenFile, Role};
use super::resolve::{self, Handle, Root, Spot};
use crate::backend::{Errno, NO_ATTRIBUTES};
use crate::limits::ENTRIES_LOOKED_THROUGH;
use crate::wire::frame::{Attributes, Kind};
use crate::wire::path::Target;
use rustix::fs::{FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno as E;
use rustix::io::retry_on_intr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

const PREFIX: &[u8] = b".haul-";
const SUFFIX: &[u8] = b".part";

/// Opens what is there of `target`, or begins it. The size returned is what is there; after an ordinary beginning, 0.
/// [`Errno::LOCKED`], as long as it is not `urgent`, where another process has what is there.
pub(super) fn open(
    root: &Root,
    target: &Target,
    size: u64,
    urgent: bool,
    give_up: &AtomicBool,
) -> Result<(OpenFile, Attributes), Errno> {
    let spot = resolve::new(root, target)?;
    let present = match examine(root, &spot, true)? {
        Present::Nothing => None,
        Present::Replaceable(stat) => Some(stat),
        Present::Sink(fd, stat) => {
            return Ok((OpenFile::new(fd, Role::Sink), Attributes { size: 0, ..from_stat(&stat) }));
        }
    };
    let replaced = present.filter(|stat| kind(stat) == Kind::Regular).map(|stat| from_stat(&stat).mode);
    let Spot { dir, name, .. } = spot;
    let dir = dir.into_owned()?;
    let partial = name_of(dir.as_fd(), &name)?;
    if let Some(leftovers) = dir.leftovers() {
        leftovers.note();
    }
    let NewFile { fd, temp, asked } = match root.writing(dir.as_fd(), || take(dir.as_fd(), &partial, urgent))? {
        Some(fd) => {
            let temp = TempName { name: partial.into(), stays: true, gone: AtomicBool::new(false) };
            NewFile { fd, temp: Some(temp), asked: PRIVATE }
        }
        None => open_temp(dir.as_fd(), false, None)?,
    };
    let wanted = Wanted { size, keep: 0, overwrite: true, brief: false, mode: None };
    // From here on whatever fails takes the name away again, if there is nothing behind it.
    let (name, root, claim) = (name.into(), root.clone(), resolve::claim(root, target));
    let file = OpenFile::new(fd, Role::Making(Making { dir, name, temp, replaced, asked, wanted, root, claim }));
    let there = from_stat(&file.stat()?).size;
    if let Some(making) = file.making() {
        check_space(making.dir.as_fd(), Wanted { size: size.saturating_sub(there), ..wanted })?;
    }
    let there = match there {
        0 => begin_with_target(&file, present.as_ref(), size, give_up)?,
        there => there,
    };
    Ok((file, Attributes { size: there, ..NO_ATTRIBUTES }))
}

/// An older copy that is shorter than what it shall become may be its beginning, as another program leaves it.
fn begin_with_target(file: &OpenFile, present: Option<&Stat>, size: u64, give_up: &AtomicBool) -> Result<u64, Errno> {
    let (Some(stat), Some(making)) = (present, file.making()) else { return Ok(0) };
    let old = from_stat(stat);
    if old.kind != Kind::Regular || old.size == 0 || old.size >= size {
        return Ok(0);
    }
    match create::keep(file.fd(), making, old.size, give_up) {
        Ok(_) => Ok(old.size),
        Err(errno @ (Errno::CANCELLED | Errno::NO_SPACE)) => Err(errno),
        // It cannot be read, or is not what it was: nothing is there, then.
        Err(_) => {
            retry_on_intr(|| rustix::fs::ftruncate(file.fd(), 0))?;
            Ok(0)
        }
    }
}

/// What an earlier run has kept of the file that now stands, complete, under this name: nobody will continue it. What is not
/// ours stays, and so does what another copy is at.
pub(super) fn forget(held: &Handle<'_>, target: &[u8]) {
    let dir = held.as_fd();
    if held.leftovers().is_some_and(|leftovers| !leftovers.may_be_in(dir)) {
        return;
    }
    let Ok(name) = name_of(dir, target) else { return };
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // As a rule there is none. What cannot be removed does no harm either.
    let Ok(fd) = retry_on_intr(|| rustix::fs::openat(dir, &name[..], flags, Mode::empty())) else { return };
    let is_ours = rustix::fs::fstat(&fd).is_ok_and(|stat| is_trusted(&stat, false, dir).unwrap_or(false));
    let is_free = || rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok();
    if is_ours && is_free() && is_named(&fd, dir, &name) {
        let _ = rustix::fs::unlinkat(dir, &name[..], rustix::fs::AtFlags::empty());
    }
}

/// Whether partials stand in a directory, as far as that is known. It is looked through once several files were completed there:
/// to ask for the partial of each by its name made a copy of small files 12 % slower (2026-12-01).
#[derive(Default)]
pub(super) struct Leftovers(AtomicU8);

impl Leftovers {
    /// How many were asked for by name, below this; then what was found.
    const ASKED_BY_NAME: u8 = 8;
    const NONE: u8 = 254;
    const SOME: u8 = 255;

    /// Of a directory that is new.
    pub(super) fn none() -> Leftovers {
        Leftovers(AtomicU8::new(Leftovers::NONE))
    }

    fn may_be_in(&self, dir: BorrowedFd<'_>) -> bool {
        let known = self.0.load(Ordering::Relaxed);
        if known < Leftovers::ASKED_BY_NAME {
            // Whoever overtakes us has found out more, or has asked as well.
            let _ = self.0.compare_exchange(known, known + 1, Ordering::Relaxed, Ordering::Relaxed);
        } else if known == Leftovers::ASKED_BY_NAME {
            let found = if stand_in(dir) { Leftovers::SOME } else { Leftovers::NONE };
            let found = self
                .0
                .compare_exchange(known, found, Ordering::Relaxed, Ordering::Relaxed)
                .map_or_else(|now| now, |_| found);
            return found != Leftovers::NONE;
        }
        known != Leftovers::NONE
    }

    /// One begins to.
    fn note(&self) {
        self.0.store(Leftovers::SOME, Ordering::Relaxed);
    }
}

/// True unless it is sure that none does: a large directory is not looked through.
fn stand_in(dir: BorrowedFd<'_>) -> bool {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else { return true };
    let is_partial = |name: &[u8]| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    entries.into_iter().enumerate().any(|(seen, entry)| {
        seen > ENTRIES_LOOKED_THROUGH || entry.is_ok_and(|entry| is_partial(entry.file_name().to_bytes()))
    })
}

/// True while this open file is what stands under the name.
fn is_named(fd: &OwnedFd, dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let same = |stat: Stat, other: Stat| (stat.st_dev, stat.st_ino) == (other.st_dev, other.st_ino);
    let named = rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    named.is_ok_and(|named| rustix::fs::fstat(fd).is_ok_and(|stat| same(stat, named)))
}

fn name_of(dir: BorrowedFd<'_>, target: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut hasher = blake3::Hasher::new_derive_key("haul partial file name v1");
    #[allow(clippy::useless_conversion)] // The width of st_ino differs between systems.
    hasher.update(&u64::from(rustix::fs::fstat(dir)?.st_ino).to_le_bytes());
    hasher.update(target);
    let hex = hasher.finalize().to_hex();
    Ok([PREFIX, &hex.as_bytes()[..16], SUFFIX].concat())
}

/// The file under this name, locked; made if there is none. `None` when it is not to be trusted or is in use.
fn take(dir: BorrowedFd<'_>, name: &[u8], urgent: bool) -> Result<Option<OwnedFd>, Errno> {
    for _ in 0..crate::limits::NAME_TRIES {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut made = false;
        let fd = match retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty())) {
            Ok(fd) => fd,
            Err(E::NOENT) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                match retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))) {
                    Ok(fd) => {
                        made = true;
                        fd
                    }
                    Err(E::EXIST) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            }
            // A link, a FIFO nobody reads, somebody else's file.
            Err(_) => return Ok(None),
        };
        let locked = match is_trusted(&rustix::fs::fstat(&fd)?, made, dir)? {
            true => retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)),
            false => Err(E::PERM),
        };
        if let Err(why) = locked {
            let in_use = why == E::WOULDBLOCK;
            if in_use && !urgent {
                return Err(Errno::LOCKED);
            }
            if made && !in_use {
                // Nobody can continue what nobody can lock: nothing of that name may seem to be kept.
                let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty());
            }
            return Ok(None);
        }
        // Whoever held the lock may have given it its final name meanwhile.
        if is_named(&fd, dir, name) {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

/// True for a file that nobody else can have made or can change, or that looks exactly as any file that we make here: where a
/// file system has no modes or owners of its own, it says nothing about a file that it does not say about all.
fn is_trusted(stat: &Stat, made: bool, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    if made || is_ours(stat) {
        return Ok(true);
    }
    if kind(stat) != Kind::Regular {
        return Ok(false);
    }
    let NewFile { fd, temp, .. } = open_temp(dir, true, Some(PRIVATE))?;
    let probe = rustix::fs::fstat(&fd)?;
    if let Some(temp) = temp {
        rustix::fs::unlinkat(dir, &*temp.name, rustix::fs::AtFlags::empty())?;
    }
    let looks = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink);
    Ok(!is_ours(&probe) && looks(&probe) == looks(stat))
}

#[allow(clippy::unnecessary_cast)] // The widths differ between systems.
fn is_ours(stat: &Stat) -> bool {
    kind(stat) == Kind::Regular
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && stat.st_nlink as u64 == 1
        && from_stat(stat).mode == 0o600
}
