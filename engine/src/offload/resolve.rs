//! From a [`Target`] to a held directory and a name in it.
//!
//! ```text
//! operand          plain root: the kernel follows every link. Confined root: links are followed while the result stays
//!                  below the root, else Errno::OUTSIDE_ROOT.
//! below            no link is followed, at any level, ever: ELOOP.
//! last component   of what is made or replaced: never followed.
//! ```
//!
//! The result is a [`Spot`]: a directory handle and a path that is either one component in it, not to be followed, or
//! (the operand under a plain root) a whole path left to the kernel. Handles are O_PATH where that exists. With a handle
//! held, whoever swaps a directory for a link meanwhile changes nothing for us.
//!
//! Fast path: openat2(2) with RESOLVE_BENEATH. Where it is missing or will not follow a link that a careful walk may
//! follow, [`super::walk`] goes component by component.

use super::case::Claim;
use super::operands::{Held, Holder, Identity, Name, Operand};
use super::partial::Leftovers;
use super::walk;
use crate::backend::Errno;
use crate::cas::RootIdentity;
use crate::wire::path::{RelPath, Target};
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno as E;
use rustix::io::retry_on_intr;
use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// How a directory is opened only to reach what is in it.
#[cfg(target_os = "linux")]
pub(super) const DIR_HANDLE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How a directory is opened only to reach what is in it.
#[cfg(not(target_os = "linux"))]
pub(super) const DIR_HANDLE: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// How a directory is opened to be read, synced or changed.
pub(super) const DIR_READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Where paths begin, and whether they may lead elsewhere.
#[derive(Clone)]
pub struct Root {
    inner: Arc<Inner>,
    /// What the session that works here holds open.
    holder: Option<Arc<Holder>>,
}

#[derive(Clone)]
struct Inner {
    dir: Arc<OwnedFd>,
    /// The root's own absolute path, when nothing may lead out of it.
    confined_to: Option<PathBuf>,
    read_only: bool,
    /// Its sessions have nothing to do with each other.
    strangers: bool,
    /// Nothing that is mounted below the root belongs to it.
    one_mount: bool,
    /// What `dir` is; `None` where nobody can tell, and nothing is held then.
    identity: Option<Identity>,
    /// Why relative operands begin nowhere, if so.
    no_base: Option<Errno>,
}

impl Root {
    /// Absolute operands begin at `/`, relative ones at `base`. Links are followed by the kernel.
    pub fn plain(base: OwnedFd) -> Root {
        Root::at(base, None)
    }

    /// A plain root at the working directory, which need not be readable. Where it cannot even be reached, absolute
    /// operands are as good as ever, and relative ones say why they are not.
    pub fn working_directory() -> Result<Root, Errno> {
        let open = |path: &str| retry_on_intr(|| rustix::fs::open(path, DIR_HANDLE, Mode::empty()));
        match open(".") {
            Ok(dir) => Ok(Root::plain(dir)),
            Err(errno @ (E::ACCESS | E::NOENT | E::STALE)) => {
                let root = Inner::clone(&Root::plain(open("/")?).inner);
                Ok(Root::of(Inner { no_base: Some(errno.into()), ..root }))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Everything stays below `dir`, whose absolute path without links is `canonical`. Absolute operands must begin with
    /// `canonical`; relative ones begin at `dir`.
    pub fn confined(dir: OwnedFd, canonical: PathBuf) -> Root {
        Root::at(dir, Some(canonical))
    }

    fn at(dir: OwnedFd, confined_to: Option<PathBuf>) -> Root {
        let identity = Identity::of_open(dir.as_fd()).ok();
        Root::of(Inner {
            dir: Arc::new(dir),
            confined_to,
            read_only: false,
            strangers: false,
            one_mount: false,
            identity,
            no_base: None,
        })
    }

    fn of(inner: Inner) -> Root {
        Root { inner: Arc::new(inner), holder: None }
    }

    /// The same root, under which every change is refused with EROFS.
    pub fn read_only(self) -> Root {
        Root::of(Inner { read_only: true, ..Inner::clone(&self.inner) })
    }

    /// The same root for sessions of different clients: what one of them holds open under a name is not what another means
    /// by it, if it has become something else.
    pub fn among_strangers(self) -> Root {
        Root::of(Inner { strangers: true, ..Inner::clone(&self.inner) })
    }

    /// The same root without what is mounted below it: in some file systems, as that of processes, to write is to run code.
    pub fn within_its_mount(self) -> Root {
        Root::of(Inner { one_mount: true, ..Inner::clone(&self.inner) })
    }

    /// True of the root's own directory.
    pub(super) fn is(&self, dir: BorrowedFd<'_>) -> bool {
        self.inner.identity.is_some_and(|identity| Identity::of_open(dir) == Ok(identity))
    }

    /// The path that was to be served must still name what is held. Else something was mounted over it, or it was made anew:
    /// whoever looks there does not see what is written here.
    pub(super) fn check_place(&self) -> Result<(), Errno> {
        let (Some(canonical), Some(held)) = (&self.inner.confined_to, self.inner.identity) else { return Ok(()) };
        let now = retry_on_intr(|| rustix::fs::lstat(canonical));
        if now.is_ok_and(|now| Identity::of(&now) == held) { Ok(()) } else { Err(Errno::ROOT_REPLACED) }
    }

    /// Does what needs to write to `dir`, once more where its mode was in the way and is ours to change.
    pub(super) fn writing<T>(&self, dir: BorrowedFd<'_>, act: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match (act(), &self.holder) {
            (Err(Errno::ACCESS), Some(holder)) if holder.open_up(dir)? => act(),
            (result, _) => result,
        }
    }

    /// A directory has the mode that it is to have.
    pub(super) fn has_mode(&self, dir: BorrowedFd<'_>) {
        if let Some(holder) = &self.holder {
            holder.has_mode(dir);
        }
    }

    /// The same root for one session.
    pub(super) fn held_by(&self, holder: &Arc<Holder>) -> Root {
        Root { inner: self.inner.clone(), holder: Some(holder.clone()) }
    }

    /// Whose blocks in a block store are this root's. From a plain root everything can be reached: it is `/`.
    #[allow(clippy::unnecessary_cast)] // The widths of these fields differ between systems.
    pub fn identity(&self) -> Result<RootIdentity, Errno> {
        let (path, stat) = match &self.inner.confined_to {
            Some(canonical) => (canonical.as_os_str().as_bytes(), rustix::fs::fstat(&*self.inner.dir)?),
            None => (&b"/"[..], rustix::fs::stat("/")?),
        };
        Ok(RootIdentity { path: path.to_vec(), device: stat.st_dev as u64, inode: stat.st_ino as u64 })
    }

    fn handle(&self) -> Handle<'_> {
        Handle::Borrowed(self.inner.dir.as_fd())
    }

    /// What a link at `spot` leads to; `None` where it leads nowhere, or nobody may look. Where it leads out of a confined
    /// root, or to something mounted there that is not part of it, that is an error, whatever there is.
    pub(super) fn behind_link(&self, spot: &Spot<'_>) -> Result<Option<Stat>, Errno> {
        let Some(canonical) = &self.inner.confined_to else {
            return Ok(rustix::fs::statat(&spot.dir, &*spot.name, AtFlags::empty()).ok());
        };
        // The way there is gone once more: if it leads elsewhere by now, the link is only replaced, or not.
        let (operand, below) = spot.path;
        let path = if below.is_empty() { operand.to_vec() } else { [operand, below].join(&b'/') };
        let canonical = canonical.as_os_str().as_bytes();
        match walk::walk(self.inner.dir.as_fd(), canonical, &path, walk::Last::Any, self.inner.one_mount) {
            Ok(end) => Ok(rustix::fs::statat(&end.dir, &end.name[..], AtFlags::SYMLINK_NOFOLLOW).ok()),
            Err(errno @ (Errno::OUTSIDE_ROOT | Errno::OTHER_MOUNT)) => Err(errno),
            Err(_) => Ok(None),
        }
    }

    fn check_writable(&self) -> Result<(), Errno> {
        if self.inner.read_only { Err(E::ROFS.into()) } else { Ok(()) }
    }

    /// The part of an operand below the directory handle, for a confined root always relative to it.
    fn rest<'t>(&self, target: &'t Target) -> Result<&'t [u8], Errno> {
        self.check_place()?;
        let operand = target.operand.as_bytes();
        match &self.inner.confined_to {
            Some(canonical) if target.operand.is_absolute() => {
                walk::below_prefix(operand, canonical.as_os_str().as_bytes()).ok_or(Errno::OUTSIDE_ROOT)
            }
            _ if !target.operand.is_absolute() => self.inner.no_base.map_or(Ok(operand), Err),
            _ => Ok(operand),
        }
    }

    /// Opens the directory `path` (a result of [`Root::rest`] or the front of one), following links as the root allows.
    fn open_operand(&self, path: &[u8]) -> Result<Handle<'_>, Errno> {
        if path.is_empty() {
            return Ok(self.handle());
        }
        let Some(canonical) = &self.inner.confined_to else {
            return Ok(Handle::Owned(open_at(self.inner.dir.as_fd(), path, DIR_HANDLE)?));
        };
        match open_beneath(self.inner.dir.as_fd(), path, self.inner.one_mount) {
            Some(result) => Ok(Handle::Owned(result?)),
            None => {
                let canonical = canonical.as_os_str().as_bytes();
                let last = walk::Last::Directory;
                Ok(walk::walk(self.inner.dir.as_fd(), canonical, path, last, self.inner.one_mount)?.dir)
            }
        }
    }
}

/// A directory handle: our own, the root's, or one that a session holds.
pub(super) enum Handle<'r> {
    Borrowed(BorrowedFd<'r>),
    Owned(OwnedFd),
    /// Our own, of a directory that was not there a moment ago.
    New(OwnedFd),
    Operand(Arc<Operand>),
    Held(Arc<Held>),
}

impl Handle<'_> {
    /// A descriptor of its own.
    pub(super) fn into_fd(self) -> Result<OwnedFd, Errno> {
        match self {
            Handle::Owned(fd) | Handle::New(fd) => Ok(fd),
            other => Ok(rustix::io::fcntl_dupfd_cloexec(other, 0)?),
        }
    }

    /// The same for longer than the root is borrowed.
    pub(super) fn into_owned(self) -> Result<Handle<'static>, Errno> {
        Ok(match self {
            Handle::Owned(fd) => Handle::Owned(fd),
            Handle::New(fd) => Handle::New(fd),
            Handle::Borrowed(fd) => Handle::Owned(rustix::io::fcntl_dupfd_cloexec(fd, 0)?),
            Handle::Operand(operand) => Handle::Operand(operand),
            Handle::Held(dir) => Handle::Held(dir),
        })
    }
}

impl Handle<'_> {
    /// What is known of partials in a directory that is held.
    pub(super) fn leftovers(&self) -> Option<&Leftovers> {
        match self {
            Handle::Operand(operand) => Some(&operand.leftovers),
            Handle::Held(held) => Some(&held.leftovers),
            _ => None,
        }
    }
}

impl AsFd for Handle<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Handle::Borrowed(fd) => fd.as_fd(),
            Handle::Owned(fd) | Handle::New(fd) => fd.as_fd(),
            Handle::Operand(operand) => operand.as_fd(),
            Handle::Held(dir) => dir.as_fd(),
        }
    }
}

/// Something that may exist: what stands under `name` in `dir`.
pub(super) struct Spot<'r> {
    pub(super) dir: Handle<'r>,
    /// One component, or a whole path that the kernel shall resolve.
    pub(super) name: Cow<'r, [u8]>,
    /// A link here is not followed.
    pub(super) no_follow: bool,
    /// Nothing is opened that is mounted here.
    pub(super) one_mount: bool,
    /// How it is reached from the root's directory: by an operand, and by what is below that.
    pub(super) path: (&'r [u8], &'r [u8]),
}

impl Spot<'_> {
    /// Attributes of what stands here.
    pub(super) fn stat(&self) -> Result<Stat, Errno> {
        let flags = if self.no_follow { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        Ok(retry_on_intr(|| rustix::fs::statat(&self.dir, &*self.name, flags))?)
    }

    /// Opens what stands here. It must exist; opening never blocks, and never makes a terminal ours.
    pub(super) fn open(&self, access: OFlags) -> Result<OwnedFd, Errno> {
        let follow = if self.no_follow { OFlags::NOFOLLOW } else { OFlags::empty() };
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | follow;
        match self.one_mount {
            true => open_in_mount(self.dir.as_fd(), &self.name, flags),
            false => open_at(self.dir.as_fd(), &self.name, flags),
        }
    }
}

/// Where something shall be read. `follow` is about the last component of an operand; below one nothing is followed.
pub(super) fn existing<'r>(root: &'r Root, target: &'r Target, follow: bool) -> Result<Spot<'r>, Errno> {
    let path = root.rest(target)?;
    if let Some(below) = &target.below {
        let operand = operand(root, path, Missing::Fail)?;
        let dir = below_parent(root, operand, below, Missing::Fail)?;
        return Ok(Spot {
            dir,
            name: Cow::Borrowed(below.file_name()),
            no_follow: true,
            one_mount: root.inner.one_mount,
            path: (path, below.as_bytes()),
        });
    }
    let Some(canonical) = root.inner.confined_to.as_deref().filter(|_| !path.is_empty()) else {
        let name = if path.is_empty() { b"." } else { path };
        return Ok(Spot {
            dir: root.handle(),
            name: Cow::Borrowed(name),
            no_follow: !follow,
            one_mount: root.inner.one_mount,
            path: (path, b""),
        });
    };
    let (parent, name) = split(path);
    let spot = Spot {
        dir: root.open_operand(parent)?,
        name: Cow::Borrowed(name),
        no_follow: true,
        one_mount: root.inner.one_mount,
        path: (path, b""),
    };
    if !follow || !is_link(&spot)? {
        return Ok(spot);
    }
    let (canonical, one_mount) = (canonical.as_os_str().as_bytes(), root.inner.one_mount);
    let end = walk::walk(root.inner.dir.as_fd(), canonical, path, walk::Last::Any, one_mount)?;
    Ok(Spot { dir: end.dir, name: Cow::Owned(end.name), no_follow: true, one_mount, path: (path, b"") })
}

/// Where something shall be made: its directory, made if it is missing, and a name that is not followed. The root itself
/// has no name and cannot be made.
pub(super) fn new<'r>(root: &'r Root, target: &'r Target) -> Result<Spot<'r>, Errno> {
    root.check_writable()?;
    let path = root.rest(target)?;
    if let Some(below) = &target.below {
        let operand = operand(root, path, Missing::Make)?;
        let dir = below_parent(root, operand, below, Missing::Make)?;
        return Ok(Spot {
            dir,
            name: Cow::Borrowed(below.file_name()),
            no_follow: true,
            one_mount: root.inner.one_mount,
            path: (path, below.as_bytes()),
        });
    }
    let (parent, name) = split(path);
    if name.is_empty() {
        return Err(Errno::IS_DIRECTORY);
    }
    Ok(Spot {
        dir: operand_dir(root, parent, Missing::Make)?,
        name: Cow::Borrowed(name),
        no_follow: true,
        one_mount: root.inner.one_mount,
        path: (path, b""),
    })
}

/// The name that something new will get below an operand, after [`new`]; `None` where nobody need watch over it.
pub(super) fn claim(root: &Root, target: &Target) -> Option<Claim> {
    root.holder.as_ref()?;
    let below = target.below.as_ref()?;
    match operand(root, root.rest(target).ok()?, Missing::Fail) {
        Ok(Handle::Operand(operand)) => Claim::new(operand, below.as_bytes()),
        _ => None,
    }
}

/// What to do about directories that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Fail,
    Make,
}

/// A directory: in an operand perhaps through links, below one never.
pub(super) fn directory<'r>(root: &'r Root, target: &'r Target, missing: Missing) -> Result<Handle<'r>, Errno> {
    let operand = operand(root, root.rest(target)?, missing)?;
    match &target.below {
        None => Ok(operand),
        Some(below) => dirs_below(root, operand, below.as_bytes(), missing),
    }
}

/// As [`directory`], for changing the directory's own attributes: if the session made it, exactly that one.
pub(super) fn directory_to_change<'r>(root: &'r Root, target: &'r Target) -> Result<Handle<'r>, Errno> {
    root.check_writable()?;
    let operand = operand(root, root.rest(target)?, Missing::Fail)?;
    match (&target.below, operand) {
        (None, operand) => Ok(operand),
        (Some(below), Handle::Operand(operand)) => {
            let base = operand.clone();
            operand.take_made(below.as_bytes(), || {
                dirs_below(root, Handle::Operand(base), below.as_bytes(), Missing::Fail)
            })
        }
        (Some(below), operand) => dirs_below(root, operand, below.as_bytes(), Missing::Fail),
    }
}

/// A file whose own attributes are to be changed. A link is not followed.
pub(super) fn file_to_change<'r>(root: &'r Root, target: &'r Target) -> Result<Spot<'r>, Errno> {
    root.check_writable()?;
    existing(root, target, false)
}

/// Makes a directory, and those above it that are missing. It is held until its attributes change, or the session ends.
pub(super) fn make_directory(root: &Root, target: &Target) -> Result<(), Errno> {
    root.check_writable()?;
    let operand = operand(root, root.rest(target)?, Missing::Make)?;
    let Some(below) = &target.below else { return Ok(()) };
    let Handle::Operand(operand) = operand else {
        return dirs_below(root, operand, below.as_bytes(), Missing::Make).map(|_| ());
    };
    let make = || dirs_below(root, Handle::Operand(operand.clone()), below.as_bytes(), Missing::Make);
    let made = match make() {
        Err(Errno::ACCESS) => {
            let parent = below_parent(root, Handle::Operand(operand.clone()), below, Missing::Fail)?;
            root.writing(parent.as_fd(), make)?
        }
        result => result?,
    };
    if let Some(holder) = &root.holder {
        // What it was made for is to be written to it.
        holder.open_up(made.as_fd())?;
    }
    operand.note_made(below.as_bytes(), made)
}

fn below_parent<'r>(root: &Root, operand: Handle<'r>, below: &RelPath, missing: Missing) -> Result<Handle<'r>, Errno> {
    let parent = split(below.as_bytes()).0;
    if parent.is_empty() { Ok(operand) } else { dirs_below(root, operand, parent, missing) }
}

/// The directory `path` below `dir`, no link followed.
fn dirs_below<'r>(root: &Root, dir: Handle<'r>, path: &[u8], missing: Missing) -> Result<Handle<'r>, Errno> {
    if let Handle::Operand(operand) = &dir
        && let Some(held) = operand.held(path)
    {
        return Ok(Handle::Held(held));
    }
    let one_mount = root.inner.one_mount;
    match open_no_links(dir.as_fd(), path, one_mount) {
        Some(Err(Errno::NOT_FOUND)) if missing == Missing::Make => {
            Ok(Handle::New(walk::steps(dir, path, missing, one_mount)?.into_fd()?))
        }
        Some(result) => Ok(Handle::Owned(result?)),
        None => walk::steps(dir, path, missing, one_mount),
    }
}

/// The directory an operand names: for a session, the one that it named first.
fn operand<'r>(root: &'r Root, path: &[u8], missing: Missing) -> Result<Handle<'r>, Errno> {
    let (Some(holder), Some(identity), false) = (&root.holder, root.inner.identity, path.is_empty()) else {
        return operand_dir(root, path, missing);
    };
    let name = Name { root: identity, confined: root.inner.confined_to.is_some(), path: path.into() };
    let open = || operand_dir(root, path, missing)?.into_fd();
    holder.operand(name, (root.inner.strangers, missing == Missing::Make), open).map(Handle::Operand)
}

/// The directory an operand names. What is missing is made from the deepest part that exists; the new levels are
/// reached without following links.
fn operand_dir<'r>(root: &'r Root, path: &[u8], missing: Missing) -> Result<Handle<'r>, Errno> {
    let mut front = path;
    let base = loop {
        match root.open_operand(front) {
            Err(Errno::NOT_FOUND) if missing == Missing::Make && !matches!(front, b"" | b"/") => front = split(front).0,
            result => break result?,
        }
    };
    match walk::steps(base, &path[front.len()..], missing, root.inner.one_mount) {
        // The link in the way is one of those that could be followed but lead nowhere.
        Err(Errno::LOOP) => Err(Errno::NOT_FOUND),
        result => result,
    }
}

/// `a/b/c` -> `a/b` and `c`; `/c` -> `/` and `c`; `c` -> nothing and `c`; `/` -> `/` and nothing.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        None => (b"", path),
        Some(0) => (&path[..1], &path[1..]),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
    }
}

fn is_link(spot: &Spot<'_>) -> Result<bool, Errno> {
    match spot.stat() {
        Ok(stat) => Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink()),
        Err(Errno::NOT_FOUND) => Ok(false),
        Err(errno) => Err(errno),
    }
}

pub(super) fn open_at(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    Ok(retry_on_intr(|| rustix::fs::openat(dir, path, flags, Mode::empty()))?)
}

/// A directory below `dir`, links followed by the kernel as long as they stay below. `None` where it takes a walk to know.
fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], one_mount: bool) -> Option<Result<OwnedFd, Errno>> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::ResolveFlags;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | fast::mounts(one_mount);
        // EXDEV: an absolute link, or `..` on the way, or a mount. EAGAIN: somebody renames directories under a `..`.
        match fast::open(dir, path, DIR_HANDLE, resolve)? {
            Err(E::XDEV | E::AGAIN) => None,
            result => Some(result.map_err(Errno::from)),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (dir, path, one_mount);
        None
    }
}

/// A directory below `dir` without any link on the way. `None` where it takes a walk to know.
fn open_no_links(dir: BorrowedFd<'_>, path: &[u8], one_mount: bool) -> Option<Result<OwnedFd, Errno>> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::ResolveFlags;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match fast::open(dir, path, DIR_HANDLE, resolve | fast::mounts(one_mount))? {
            // A path longer than PATH_MAX is no obstacle to a walk.
            Err(E::AGAIN | E::NAMETOOLONG) => None,
            Err(E::XDEV) => Some(Err(Errno::OTHER_MOUNT)),
            result => Some(result.map_err(Errno::from)),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (dir, path, one_mount);
        None
    }
}

/// Opens one component, unless something is mounted there. Where the kernel cannot say so, another device is a mount.
pub(super) fn open_in_mount(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    #[cfg(target_os = "linux")]
    if let Some(result) = fast::open(dir, name, flags, fast::mounts(true) | rustix::fs::ResolveFlags::NO_MAGICLINKS) {
        return result.map_err(|errno| if errno == E::XDEV { Errno::OTHER_MOUNT } else { errno.into() });
    }
    let opened = open_at(dir, name, flags)?;
    let (here, there) = (rustix::fs::fstat(dir)?, rustix::fs::fstat(&opened)?);
    if here.st_dev == there.st_dev { Ok(opened) } else { Err(Errno::OTHER_MOUNT) }
}

#[cfg(target_os = "linux")]
mod fast {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    use rustix::io::{Errno as E, retry_on_intr};
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Set when this kernel (before 5.6) or a seccomp filter was found not to offer openat2.
    static MISSING: AtomicBool = AtomicBool::new(false);

    pub(super) fn mounts(one_mount: bool) -> ResolveFlags {
        if one_mount { ResolveFlags::NO_XDEV } else { ResolveFlags::empty() }
    }

    pub(super) fn open(
        dir: BorrowedFd<'_>,
        path: &[u8],
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> Option<rustix::io::Result<OwnedFd>> {
        if MISSING.load(Ordering::Relaxed) || super::super::old_kernel() {
            return None;
        }
        match retry_on_intr(|| rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve)) {
            Err(E::NOSYS | E::PERM) => {
                MISSING.store(true, Ordering::Relaxed);
                None
            }
            result => Some(result),
        }
    }
}
