//! How much is in the store, and the end of the blocks used longest ago.
//!
//! Reading a large store takes long (of 256 blocks, 1 GiB, 6 ms; of 2,048 28 ms; of 16,384 250 ms; ext4, cached, release
//! build, 2026-11-25, 2 vCPU, busy): it is counted when this process first keeps a block, and from then on the count is
//! carried on, as long as nobody else puts anything. That is known without a lock, by the size of one file:
//!
//! ```text
//! keep:  append a byte to `changes` -> give blocks their names -> append a byte
//! then:  its size is what it was at the last count and our own bytes   the count is carried on
//!        else                                                          counted anew, after looking at the size again
//! ```
//!
//! Whoever puts a block looks at the size after that block has its name, and before that adds a byte that makes every
//! count that may have missed it void. So whichever process looks last sees all blocks, and when it is done the store is
//! within the cap; each before it saw to the same for what had been put until then. A count may be too high, when others
//! have evicted or dropped blocks: then some go early, and each that turns out to be gone already is taken off.

use super::shelf::{self, open_leaf, open_private};
use crate::backend::Errno;
use crate::cas::{BlockName, Census, Ledger, Stored, cost, from_hex, hex};
use crate::offload::attributes::from_stat;
use crate::offload::create::is_temp_name;
use crate::offload::resolve::{DIR_READ, Missing, open_at};
use crate::wire::frame::{Hash, Kind};
use rustix::fs::{AtFlags, Dir, Stat};
use rustix::io::Errno as E;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// The count this process carries on.
#[derive(Default)]
pub(super) struct Budget(Mutex<Option<Counted>>);

struct Counted {
    ledger: Ledger,
    /// Size of `changes` up to which it is right.
    changes: u64,
}

/// The file that grows with every change, and what one operation has changed.
pub(super) struct Changes {
    file: OwnedFd,
    /// Bytes appended.
    marks: u64,
    /// Blocks that got a name, and what they count.
    named: Vec<BlockName>,
    added: u64,
}

impl Changes {
    pub(super) fn open(top: BorrowedFd<'_>) -> Result<Changes, Errno> {
        Ok(Changes { file: shelf::open_appending(top, b"changes")?, marks: 0, named: Vec::new(), added: 0 })
    }

    /// A block is about to get its name. No block gets one that the others are not told of.
    pub(super) fn begin(&mut self) -> Result<(), Errno> {
        if self.marks == 0 { self.mark() } else { Ok(()) }
    }

    /// A block of so many bytes got this name.
    pub(super) fn added(&mut self, name: BlockName, bytes: u64) {
        self.named.push(name);
        self.added += cost(bytes);
    }

    fn mark(&mut self) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::io::write(&self.file, b"+"))?;
        self.marks += 1;
        Ok(())
    }

    fn size(&self) -> Result<u64, Errno> {
        Ok(from_stat(&rustix::fs::fstat(&self.file)?).size)
    }
}

impl Budget {
    /// The end of an operation that may have put blocks into `scope`: the store is brought within `cap`, or these blocks
    /// go again.
    pub(super) fn settle(
        &self,
        (top, scope): (BorrowedFd<'_>, BorrowedFd<'_>),
        mut changes: Changes,
        cap: Option<u64>,
    ) {
        let told = if changes.marks > 0 { changes.mark() } else { Ok(()) };
        let settled = told.and_then(|()| self.settle_to(top, &changes, cap));
        if settled.is_err() {
            changes.named.iter().for_each(|name| shelf::remove(scope, name));
        }
    }

    fn settle_to(&self, top: BorrowedFd<'_>, changes: &Changes, cap: Option<u64>) -> Result<(), Errno> {
        let Some(cap) = cap else { return Ok(()) };
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let present = counted.take();
        *counted = Some(evict_to(top, changes, present, cap)?);
        Ok(())
    }
}

/// Brings the store within `cap`. Fails with ENOSPC when nothing more can be removed.
fn evict_to(top: BorrowedFd<'_>, changes: &Changes, present: Option<Counted>, cap: u64) -> Result<Counted, Errno> {
    let size = changes.size()?;
    // What the store holds is blocks and this one file.
    let cap = cap.saturating_sub(cost(size));
    let carried_on = present.filter(|counted| counted.changes + changes.marks == size).map(|counted| {
        let mut ledger = counted.ledger;
        ledger.added(changes.added);
        Counted { ledger, changes: size }
    });
    let mut fresh = carried_on.is_none();
    let mut counted = match carried_on {
        Some(counted) => counted,
        None => count(top, changes)?,
    };
    loop {
        let before = counted.ledger.total();
        while let Some(victim) = counted.ledger.victim(cap) {
            if evict(top, &victim)? {
                counted.ledger.removed(&victim);
            }
        }
        let after = counted.ledger.total();
        if after <= cap {
            return Ok(counted);
        }
        if fresh && after == before {
            return Err(Errno::NO_SPACE);
        }
        counted = count(top, changes)?;
        fresh = true;
    }
}

/// Removes a block unless it was used since. True when it is gone.
fn evict(top: BorrowedFd<'_>, victim: &Stored) -> Result<bool, Errno> {
    let name = BlockName::of(&victim.hash);
    let opened = open_private(top, &hex(&victim.scope), Missing::Fail)
        .and_then(|scope| Ok((open_leaf(scope.as_fd(), &name, Missing::Fail)?, scope)));
    let (leaf, scope) = match opened {
        Ok(opened) => opened,
        Err(errno) => return Ok(errno == Errno::NOT_FOUND),
    };
    match rustix::fs::statat(&leaf, name.file(), AtFlags::SYMLINK_NOFOLLOW) {
        Err(E::NOENT) => return Ok(true),
        result => {
            if used(&result?) != victim.used {
                return Ok(false);
            }
        }
    }
    match rustix::fs::unlinkat(&leaf, name.file(), AtFlags::empty()) {
        Ok(()) => shelf::tidy(scope.as_fd(), &name),
        Err(E::NOENT) => {}
        Err(_) => return Ok(false),
    }
    Ok(true)
}

fn used(stat: &Stat) -> (i64, u32) {
    let mtime = from_stat(stat).mtime;
    (mtime.seconds, mtime.nanoseconds)
}

/// Reads the whole store, all scopes.
fn count(top: BorrowedFd<'_>, changes: &Changes) -> Result<Counted, Errno> {
    // First: what changes from here on makes this count void.
    let changes = changes.size()?;
    let mut census = Census::default();
    for_each(top, |name| match from_hex(name) {
        Some(scope) => count_scope(top, name, scope, &mut census),
        None => Ok(()),
    })?;
    Ok(Counted { ledger: census.finish(), changes })
}

fn count_scope(top: BorrowedFd<'_>, name: &[u8], scope: Hash, census: &mut Census) -> Result<(), Errno> {
    let Some(dir) = enter(top, name)? else { return Ok(()) };
    for_each(dir.as_fd(), |outer| {
        if is_temp_name(outer) {
            shelf::sweep(dir.as_fd(), outer);
        }
        if outer.len() != 2 {
            return Ok(());
        }
        let Some(outer_dir) = enter(dir.as_fd(), outer)? else { return Ok(()) };
        for_each(outer_dir.as_fd(), |inner| {
            let Some(leaf) = enter(outer_dir.as_fd(), inner)? else { return Ok(()) };
            for_each(leaf.as_fd(), |file| {
                let Some(hash) = BlockName::parse(outer, inner, file) else { return Ok(()) };
                let stat = match rustix::fs::statat(&leaf, file, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(E::NOENT) => return Ok(()),
                    result => result?,
                };
                let attributes = from_stat(&stat);
                if attributes.kind == Kind::Regular {
                    census.add(Stored { used: used(&stat), scope, hash, bytes: attributes.size });
                }
                Ok(())
            })
        })
    })
}

/// Opens a directory to count what is in it; `None` for what is none of the store's directories.
fn enter(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    const ACCESS: Errno = Errno(E::ACCESS.raw_os_error());
    match open_private(parent, name, Missing::Fail) {
        Err(Errno::NOT_FOUND | Errno::NOT_DIRECTORY | Errno::LOOP | Errno::INVALID | ACCESS) => Ok(None),
        result => result.map(Some),
    }
}

/// Every name in a directory.
fn for_each(dir: BorrowedFd<'_>, mut each: impl FnMut(&[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
    let mut stream = Dir::new(open_at(dir, b".", DIR_READ)?)?;
    while let Some(entry) = stream.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            each(name)?;
        }
    }
    Ok(())
}
