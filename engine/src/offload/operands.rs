//! The directories that operands named, and those made below them, held open for as long as a session works there.
//!
//! An operand is resolved once. Whoever renames it afterwards, or puts a link or a mount in its place, changes nothing: what
//! follows goes to the directory that was meant. All sessions of a process find the same one, because the connections of a
//! run begin one after the other. A directory that was made is held until it gets its attributes, which so cannot be given
//! to anything else.
//!
//! ```text
//! session --Holder--> Operand (directory, made directories) <--Weak-- KEPT, of the whole process
//! ```

use super::attributes::from_stat;
use super::case::Case;
use super::partial::Leftovers;
use super::resolve::Handle;
use crate::backend::Errno;
use crate::limits::{DIRS_HELD, DIRS_KNOWN, DIRS_OPENED_UP, OPERANDS_HELD};
use rustix::fs::{Mode, RawMode, Stat};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Where an operand is resolved from, and its path from there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) root: Identity,
    /// Links on the way may not lead out of the root.
    pub(super) confined: bool,
    pub(super) path: Box<[u8]>,
}

/// Device and inode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(super) struct Identity(u64, u64);

impl Identity {
    #[allow(clippy::unnecessary_cast)] // The widths of these fields differ between systems.
    pub(super) fn of(stat: &Stat) -> Identity {
        Identity(stat.st_dev as u64, stat.st_ino as u64)
    }

    pub(super) fn of_open(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
        Ok(Identity::of(&rustix::fs::fstat(fd)?))
    }
}

/// Read, write and search for the owner.
const OWNER_ALL: u32 = 0o700;

/// All that are held by anybody in this process.
static KEPT: Mutex<BTreeMap<Name, Weak<Operand>>> = Mutex::new(BTreeMap::new());

/// A directory that an operand names, once it is open.
pub(super) struct Operand {
    dir: OnceLock<OwnedFd>,
    /// Held by whoever opens it: of two who find nothing there only one makes it.
    opening: Mutex<()>,
    /// It could not be made, for this reason.
    not_made: OnceLock<Errno>,
    made: Mutex<Made>,
    pub(super) case: Case,
    pub(super) leftovers: Leftovers,
}

/// A directory below an operand, held.
pub(super) struct Held {
    dir: OwnedFd,
    pub(super) leftovers: Leftovers,
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Directories below an operand that were made or found there, and have not got their attributes.
#[derive(Default)]
struct Made {
    by_path: HashMap<Box<[u8]>, Known>,
    /// In the order in which they were made; some are not there any more.
    held: VecDeque<Box<[u8]>>,
    known: VecDeque<Box<[u8]>>,
}

enum Known {
    Held(Arc<Held>),
    /// Too many of them: what it was is still known.
    Was(Identity),
}

impl Operand {
    fn new() -> Arc<Operand> {
        Arc::new(Operand {
            dir: OnceLock::new(),
            opening: Mutex::new(()),
            not_made: OnceLock::new(),
            made: Mutex::new(Made::default()),
            case: Case::default(),
            leftovers: Leftovers::default(),
        })
    }

    /// One that is this directory.
    #[cfg(test)]
    pub(super) fn of(dir: OwnedFd) -> Arc<Operand> {
        let operand = Operand::new();
        let _ = operand.dir.set(dir);
        operand
    }

    /// See [`Holder::operand`].
    fn open_once(
        &self,
        (strangers, making): (bool, bool),
        open: impl Fn() -> Result<OwnedFd, Errno>,
    ) -> Result<(), Errno> {
        let _opening = lock(&self.opening);
        if let Some(errno) = self.not_made.get() {
            return Err(*errno);
        }
        match self.dir.get() {
            None => {
                let opened = open().inspect_err(|errno| {
                    // For want of a descriptor it is tried again.
                    let again = matches!(*errno, Errno::TOO_MANY_FILES | Errno::TOO_MANY_FILES_ALL);
                    if making && !again {
                        self.not_made.get_or_init(|| *errno);
                    }
                })?;
                self.dir.get_or_init(|| opened);
            }
            Some(dir) if strangers => {
                if Identity::of_open(open()?.as_fd())? != Identity::of_open(dir.as_fd())? {
                    return Err(Errno::REPLACED);
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// The directory below it that was made as `path` and is still held.
    pub(super) fn held(&self, path: &[u8]) -> Option<Arc<Held>> {
        match lock(&self.made).by_path.get(path) {
            Some(Known::Held(dir)) => Some(dir.clone()),
            _ => None,
        }
    }

    /// Takes note of a directory that was made, or found where one was to be made.
    pub(super) fn note_made(&self, path: &[u8], dir: Handle<'_>) -> Result<(), Errno> {
        let held = match dir {
            Handle::Held(held) => held,
            Handle::New(dir) => Arc::new(Held { dir, leftovers: Leftovers::none() }),
            found => Arc::new(Held { dir: found.into_fd()?, leftovers: Leftovers::default() }),
        };
        let made = &mut *lock(&self.made);
        if made.by_path.insert(path.into(), Known::Held(held)).is_some() {
            return Ok(());
        }
        made.held.push_back(path.into());
        while made.held.len() > may_hold()
            && let Some(oldest) = made.held.pop_front()
        {
            let Some(known) = made.by_path.get_mut(&oldest) else { continue };
            if let Known::Held(dir) = known {
                *known = Known::Was(Identity::of_open(dir.as_fd())?);
                made.known.push_back(oldest);
            }
        }
        while made.known.len() > DIRS_KNOWN
            && let Some(oldest) = made.known.pop_front()
        {
            if matches!(made.by_path.get(&oldest), Some(Known::Was(_))) {
                made.by_path.remove(&oldest);
            }
        }
        Ok(())
    }

    /// The directory that was made as `path`, which gets its attributes now; `find` looks for one that is not held.
    pub(super) fn take_made<'r>(
        &self,
        path: &[u8],
        find: impl FnOnce() -> Result<Handle<'r>, Errno>,
    ) -> Result<Handle<'r>, Errno> {
        let known = lock(&self.made).by_path.remove(path);
        match known {
            Some(Known::Held(dir)) => Ok(Handle::Held(dir)),
            Some(Known::Was(identity)) => {
                let found = find()?;
                if Identity::of_open(found.as_fd())? == identity { Ok(found) } else { Err(Errno::REPLACED) }
            }
            None => find(),
        }
    }
}

impl AsFd for Operand {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.get().expect("a holder gives out only what it has opened").as_fd()
    }
}

/// What one session holds. Shared by the helper threads that work for it.
#[derive(Default)]
pub(super) struct Holder {
    /// The one used last at the end.
    operands: Mutex<Vec<(Name, Arc<Operand>)>>,
    opened_up: Mutex<HashMap<Identity, OpenedUp>>,
}

/// A directory of ours that did not let us write to it, and does now.
struct OpenedUp {
    dir: OwnedFd,
    /// Its mode before.
    mode: u32,
}

impl Holder {
    /// The directory that `name` is held as; `open` opens it if nobody in this process holds it. What another session
    /// holds is taken as it is, unless `strangers` work here for whom the name may mean something else by now: then it
    /// must still be the same.
    ///
    /// One that could not be made, which is tried if `making`, stays so until nobody holds it: what follows would else go
    /// to whatever somebody has put there meanwhile.
    pub(super) fn operand(
        &self,
        name: Name,
        (strangers, making): (bool, bool),
        open: impl Fn() -> Result<OwnedFd, Errno>,
    ) -> Result<Arc<Operand>, Errno> {
        {
            let mut held = lock(&self.operands);
            if let Some(index) = held.iter().rposition(|(held, _)| *held == name) {
                let last = held.len() - 1;
                held.swap(index, last);
                let operand = held[last].1.clone();
                return operand.not_made.get().map_or_else(|| Ok(operand.clone()), |errno| Err(*errno));
            }
        }
        let operand = kept(&name);
        let opened = operand.open_once((strangers, making), open);
        if opened.is_ok() || operand.not_made.get().is_some() {
            let mut held = lock(&self.operands);
            if held.len() >= OPERANDS_HELD {
                held.remove(0);
            }
            held.push((name, operand.clone()));
        }
        opened.map(|()| operand)
    }
}

impl Holder {
    /// Lets us write to a directory of our own that its mode keeps us from, until it gets its mode, or else until the session
    /// ends: a copy of a read-only directory is made, and made again over itself. False where that is not what is in the way.
    pub(super) fn open_up(&self, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
        let mut opened_up = lock(&self.opened_up);
        let stat = rustix::fs::fstat(dir)?;
        let mode = from_stat(&stat).mode;
        let user = rustix::process::geteuid();
        if user.is_root() || stat.st_uid != user.as_raw() {
            return Ok(false);
        }
        if mode & OWNER_ALL == OWNER_ALL {
            // Somebody else did so since we were refused.
            return Ok(opened_up.contains_key(&Identity::of(&stat)));
        }
        if opened_up.len() >= DIRS_OPENED_UP {
            return Ok(false);
        }
        let dir = rustix::io::fcntl_dupfd_cloexec(dir, 0)?;
        set_mode(dir.as_fd(), mode | OWNER_ALL)?;
        opened_up.insert(Identity::of(&stat), OpenedUp { dir, mode });
        Ok(true)
    }

    /// It has the mode that it is to have.
    pub(super) fn has_mode(&self, dir: BorrowedFd<'_>) {
        let mut opened_up = lock(&self.opened_up);
        if !opened_up.is_empty()
            && let Ok(identity) = Identity::of_open(dir)
        {
            opened_up.remove(&identity);
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let opened_up = self.opened_up.get_mut().unwrap_or_else(PoisonError::into_inner);
        for OpenedUp { dir, mode } in opened_up.values() {
            // Nobody is left to tell.
            let _ = set_mode(dir.as_fd(), *mode);
        }
    }
}

/// The mode of a directory that may be open only to reach what is in it.
fn set_mode(dir: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(mode as RawMode);
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
        Ok(rustix::fs::chmodat(rustix::fs::CWD, path, mode, rustix::fs::AtFlags::empty())?)
    }
    #[cfg(not(target_os = "linux"))]
    Ok(rustix::fs::fchmod(dir, mode)?)
}

/// What somebody in this process has under this name, or a new one.
fn kept(name: &Name) -> Arc<Operand> {
    let mut kept = lock(&KEPT);
    if let Some(operand) = kept.get(name).and_then(Weak::upgrade) {
        return operand;
    }
    kept.retain(|_, operand| operand.strong_count() > 0);
    let operand = Operand::new();
    kept.insert(name.clone(), Arc::downgrade(&operand));
    operand
}

/// Directories of one operand that are held at most: an eighth of the descriptors that the process may have, because files
/// need them as well.
fn may_hold() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        descriptors.map_or(DIRS_HELD, |limit| usize::try_from(limit / 8).unwrap_or(DIRS_HELD)).min(DIRS_HELD)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
