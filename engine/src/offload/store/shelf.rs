//! Directories and files of a block store. Everything is looked at through the descriptor that is then used, reached
//! from a held directory without following a link, and must be ours alone: what others could have written to is no
//! better than missing.
//!
//! ```text
//! store     ours, nobody else writes to it (others could swap the scopes of two roots)
//! scope,
//! aa, bb    ours, mode 0700
//! block     a regular file, ours, mode 0600, one name, of exactly the length asked for
//! ```

use crate::backend::Errno;
use crate::cas::BlockName;
use crate::limits::{CAS_SPARE_BYTES, CAS_STALE_SECONDS};
use crate::offload::attributes::{from_stat, kind};
use crate::offload::create::{NewFile, PRIVATE, TempName, open_temp};
use crate::offload::open::open_source;
use crate::offload::publish::link_nameless;
use crate::offload::resolve::{DIR_HANDLE, Handle, Missing, Spot, open_at};
use crate::wire::frame::Kind;
use rustix::fs::{AtFlags, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{Errno as E, retry_on_intr};
use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Mode of the store's files.
const FILE_MODE: RawMode = 0o600;
/// Mode of its directories.
const DIR_MODE: RawMode = 0o700;

/// Opens the store's own directory. The path is the user's: links in it are followed.
pub(super) fn open_top(path: &Path, missing: Missing) -> Result<OwnedFd, Errno> {
    let open = || Ok(rustix::fs::open(path, DIR_HANDLE, Mode::empty())?);
    let top = match open() {
        Err(Errno::NOT_FOUND) if missing == Missing::Make => {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            open()?
        }
        result => result?,
    };
    check_dir(top, 0o022)
}

/// Opens a directory in the store.
pub(super) fn open_private(parent: BorrowedFd<'_>, name: &[u8], missing: Missing) -> Result<OwnedFd, Errno> {
    let open = || open_at(parent, name, DIR_HANDLE | OFlags::NOFOLLOW);
    let dir = match open() {
        Err(Errno::NOT_FOUND) if missing == Missing::Make => {
            match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(DIR_MODE)) {
                Ok(()) | Err(E::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            open()?
        }
        result => result?,
    };
    check_dir(dir, 0o077)
}

/// Fails unless the directory is ours and gives nobody else the rights in `others`.
fn check_dir(dir: OwnedFd, others: RawMode) -> Result<OwnedFd, Errno> {
    let stat = rustix::fs::fstat(&dir)?;
    let good = kind(&stat) == Kind::Directory && is_ours(&stat) && stat.st_mode & others == 0;
    if good { Ok(dir) } else { Err(Errno::INVALID) }
}

fn is_ours(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw()
}

/// The directory in which a block has its name.
pub(super) fn open_leaf(scope: BorrowedFd<'_>, name: &BlockName, missing: Missing) -> Result<OwnedFd, Errno> {
    let outer = open_private(scope, name.outer(), missing)?;
    open_private(outer.as_fd(), name.inner(), missing)
}

/// A block that looks right. Only its hash can tell if it is.
pub(super) struct Found {
    fd: OwnedFd,
    leaf: OwnedFd,
    name: BlockName,
}

/// No permission.
const ACCESS: Errno = Errno(E::ACCESS.raw_os_error());

/// Looks for a block of `bytes` bytes. Something else in its place is removed.
pub(super) fn find(scope: BorrowedFd<'_>, name: &BlockName, bytes: u64) -> Option<Found> {
    let leaf = open_leaf(scope, name, Missing::Fail).ok()?;
    let spot = Spot {
        dir: Handle::Borrowed(leaf.as_fd()),
        name: Cow::Borrowed(name.file()),
        no_follow: true,
        one_mount: false,
        path: (b"", b""),
    };
    match open_source(&spot) {
        Ok((fd, stat)) if is_alone(&stat) && from_stat(&stat).size == bytes => Some(Found { fd, leaf, name: *name }),
        Ok(_) | Err(Errno::NOT_REGULAR | Errno::LOOP | ACCESS) => {
            discard(leaf.as_fd(), name);
            None
        }
        // Not there, or not to be had just now.
        Err(_) => None,
    }
}

/// A regular file under one name that nobody else can read or write.
#[allow(clippy::unnecessary_cast)] // The width of st_nlink differs between systems.
fn is_alone(stat: &Stat) -> bool {
    let private = is_ours(stat) && stat.st_mode & 0o7777 == FILE_MODE;
    private && kind(stat) == Kind::Regular && stat.st_nlink as u64 == 1
}

/// Removes what stands in a block's place, if it is ours.
fn discard(leaf: BorrowedFd<'_>, name: &BlockName) {
    if rustix::fs::statat(leaf, name.file(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_ours(&stat)) {
        // What cannot be removed is looked at again next time, and is no block then either.
        let _ = rustix::fs::unlinkat(leaf, name.file(), AtFlags::empty());
    }
}

/// Removes a block.
pub(super) fn remove(scope: BorrowedFd<'_>, name: &BlockName) {
    if let Ok(leaf) = open_leaf(scope, name, Missing::Fail) {
        discard(leaf.as_fd(), name);
    }
}

impl Found {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The block was used just now.
    pub(super) fn touch(&self) {
        touch(self.fd());
    }

    /// The block is not what its name says.
    pub(super) fn discard(&self) {
        discard(self.leaf.as_fd(), &self.name);
    }
}

/// Marks a block as used now. Not with UTIME_NOW: that is the time of the last timer tick, the same for many blocks.
/// Blocks whose time cannot be set only go earlier than they should.
fn touch(fd: BorrowedFd<'_>) {
    let now = now();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: now.as_secs() as i64, tv_nsec: now.subsec_nanos().into() },
    };
    let _ = rustix::fs::futimens(fd, &times);
}

/// Since the epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Fails with ENOSPC where a block of `bytes` bytes would leave too little free.
pub(super) fn check_space(scope: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
    let space = rustix::fs::fstatvfs(scope)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    // A file system that does not say how large it is cannot be asked.
    if space.f_blocks > 0 && free < bytes + CAS_SPARE_BYTES { Err(Errno::NO_SPACE) } else { Ok(()) }
}

/// A block being written: nameless or under a temporary name, which goes with it.
pub(super) struct NewBlock<'s> {
    fd: OwnedFd,
    scope: BorrowedFd<'s>,
    temp: Option<TempName>,
}

impl<'s> NewBlock<'s> {
    pub(super) fn create(scope: BorrowedFd<'s>) -> Result<NewBlock<'s>, Errno> {
        let NewFile { fd, temp, .. } = open_temp(scope, false, Some(PRIVATE))?;
        Ok(NewBlock { fd, scope, temp })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the block its name. If there is one of that name by now, one of the two stays.
    pub(super) fn publish(&self, name: &BlockName) -> Result<(), Errno> {
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(FILE_MODE))?;
        touch(self.fd());
        // If an eviction elsewhere removes the directory again before the block is in it, the block is not kept.
        let leaf = open_leaf(self.scope, name, Missing::Make)?;
        self.link(leaf.as_fd(), name)
    }

    fn link(&self, leaf: BorrowedFd<'_>, name: &BlockName) -> Result<(), Errno> {
        let Some(temp) = &self.temp else {
            return match link_nameless(self.fd(), leaf, name.file()) {
                Err(E::EXIST) => Ok(()),
                result => Ok(result?),
            };
        };
        rustix::fs::renameat(self.scope, &temp.name[..], leaf, name.file())?;
        temp.gone.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for NewBlock<'_> {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.as_ref().filter(|temp| !temp.gone.load(Ordering::Acquire)) {
            // If this fails, a count of the store removes it later.
            let _ = rustix::fs::unlinkat(self.scope, &temp.name[..], AtFlags::empty());
        }
    }
}

/// Removes a temporary file that a killed process left.
pub(super) fn sweep(scope: BorrowedFd<'_>, name: &[u8]) {
    let Ok(stat) = rustix::fs::statat(scope, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
    let age = i64::try_from(now().as_secs()).unwrap_or(i64::MAX).saturating_sub(from_stat(&stat).mtime.seconds);
    if is_ours(&stat) && age > CAS_STALE_SECONDS {
        let _ = rustix::fs::unlinkat(scope, name, AtFlags::empty());
    }
}

/// Removes the directories of a block that is gone, if they are empty now.
pub(super) fn tidy(scope: BorrowedFd<'_>, name: &BlockName) {
    let Ok(outer) = open_private(scope, name.outer(), Missing::Fail) else { return };
    if rustix::fs::unlinkat(&outer, name.inner(), AtFlags::REMOVEDIR).is_ok() {
        let _ = rustix::fs::unlinkat(scope, name.outer(), AtFlags::REMOVEDIR);
    }
}

/// Opens a file in the store's own directory that is only ever appended to, made if it is missing.
pub(super) fn open_appending(top: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let kind_of = OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let flags = OFlags::WRONLY | OFlags::CREATE | kind_of;
    let file = retry_on_intr(|| rustix::fs::openat(top, name, flags, Mode::from_raw_mode(FILE_MODE)))?;
    let stat = rustix::fs::fstat(&file)?;
    if is_alone(&stat) { Ok(file) } else { Err(Errno::INVALID) }
}
