//! A copy inside one machine whose bytes user space moves only to hash them.
//!
//! ```text
//! open source -> new file -> share extents, else copy in the kernel, else UNSUPPORTED
//!             -> hash both by reading -> equal, and the source unchanged or only grown -> publish
//! ```
//!
//! The kernel's copy is not taken on trust: file systems have had bugs there, and the proof is what haul promises.

use super::attributes::from_stat;
use super::create::{Wanted, copy_in_kernel, create, share_extents};
use super::open::{OpenFile, hash_all, hash_part, open_source};
use super::publish::publish;
use super::resolve::{self, Root};
use crate::backend::{Errno, Finish, Output};
use crate::wire::path::Target;
use rustix::fs::{AtFlags, Stat, fstat};
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;

/// Copies `from` to `to`. A file is never copied onto itself: [`Errno::INVALID`].
pub(super) fn clone(
    from: (&Root, &Target),
    to: (&Root, &Target),
    finish: &Finish,
    give_up: &AtomicBool,
) -> Result<Output, Errno> {
    let (source, before) = open_source(&resolve::existing(from.0, from.1, true)?)?;
    // Shared extents take no space, so the file system is not asked for it.
    let wanted = Wanted { size: 0, keep: 0, overwrite: true, brief: false, mode: None };
    let (new, _) = create(to.0, to.1, wanted, give_up)?;
    if new.is_sink() {
        return Err(Errno::UNSUPPORTED);
    }
    refuse_same(&before, &new)?;
    if share_extents(source.as_fd(), new.fd()).is_err() {
        copy_in_kernel((source.as_fd(), 0), (new.fd(), 0), u64::MAX, give_up)?.ok_or(Errno::UNSUPPORTED)?;
    }
    let (hash, size) = hash_all(source.as_fd(), give_up)?;
    let copied = hash_all(new.fd(), give_up)?;
    let after = fstat(&source)?;
    if after.st_size < before.st_size {
        return Err(Errno::SHORT_SOURCE);
    }
    if !changed(&before, &after) {
        if size != copied.1 {
            // Files in /proc and /sys: their size is not what can be read, which the kernel need not copy.
            return Err(Errno::UNSUPPORTED);
        }
        if hash != copied.0 {
            return Err(Errno::HASH_MISMATCH);
        }
        let unkept = publish(&new, finish, give_up)?;
        return Ok(Output::Cloned { hash, size, unkept, grew: false });
    }
    // What was copied is the beginning of a file that has only grown if it is still there, unchanged, behind the copy.
    let (hash, size) = copied;
    let grew = after.st_size > before.st_size && size >= from_stat(&before).size;
    if !grew || hash_part(source.as_fd(), 0, size, give_up)? != hash {
        return Err(Errno::CHANGED);
    }
    let unkept = publish(&new, finish, give_up)?;
    Ok(Output::Cloned { hash, size, unkept, grew: true })
}

/// Fails when what stands at the target is the source itself.
fn refuse_same(source: &Stat, new: &OpenFile) -> Result<(), Errno> {
    let Some(making) = new.making() else { return Ok(()) };
    match rustix::fs::statat(&making.dir, &*making.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(present) if (present.st_dev, present.st_ino) == (source.st_dev, source.st_ino) => Err(Errno::INVALID),
        _ => Ok(()),
    }
}

fn changed(before: &Stat, after: &Stat) -> bool {
    let (before, after) = (from_stat(before), from_stat(after));
    (before.size, before.mtime) != (after.size, after.mtime)
}
