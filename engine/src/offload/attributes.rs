//! Attributes, both ways: what `stat` says becomes [`Attributes`], and a peer's [`Attributes`] are applied to an open
//! file or directory. Everything is applied through the descriptor, never through a path.

use crate::backend::Errno;
use crate::wire::frame::{Attributes, Kind, Preserve, Timestamp, Unkept};
use rustix::fs::{FileType, Gid, Mode, RawMode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno as E;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set-user-ID and set-group-ID.
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;

/// The process's file mode creation mask, read once. The mask can only be read by setting it, so this is done when
/// the first [`super::Offload`] is made, hopefully before other threads create files.
#[allow(clippy::useless_conversion)] // The width of modes differs between systems.
pub(super) fn umask() -> u32 {
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let mask = rustix::process::umask(Mode::from_raw_mode(0o077));
        rustix::process::umask(mask);
        u32::from(mask.as_raw_mode())
    })
}

/// Peers are not trusted with owners and set-ID bits, see [`guard_metadata`].
static GUARDED: AtomicBool = AtomicBool::new(false);

/// From here on no file of this process gets an owner or a set-ID bit that a peer named, nor a root another mode: for a server
/// that runs as root and whose clients are not to become that.
pub fn guard_metadata() {
    GUARDED.store(true, Ordering::Relaxed);
}

pub(super) fn is_guarded() -> bool {
    GUARDED.load(Ordering::Relaxed)
}

/// Takes out of what is asked for what peers are not trusted with.
fn trusted(preserve: Preserve, unkept: &mut Unkept) -> Preserve {
    if !is_guarded() || !preserve.has(Preserve::OWNER) {
        return preserve;
    }
    *unkept = unkept.or(Unkept::OWNER);
    Preserve(preserve.0 & !Preserve::OWNER.0)
}

/// What `stat` found, as it travels.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // The widths of these fields differ between systems.
pub(super) fn from_stat(stat: &Stat) -> Attributes {
    Attributes {
        kind: kind(stat),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: u32::from(stat.st_mode) & 0o7777,
        mtime: Timestamp { seconds: stat.st_mtime as i64, nanoseconds: stat.st_mtime_nsec as u32 },
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

pub(super) fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::Regular,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::BlockDevice,
        // What else there may be (whiteouts, unknown types) is refused just as devices are.
        _ => Kind::CharDevice,
    }
}

/// The mtime to set; access times are left alone. A nanosecond field out of range means "now" or "omit" to the kernel,
/// so it is refused.
pub(super) fn timestamps(attributes: &Attributes) -> Result<Timestamps, Errno> {
    let Timestamp { seconds, nanoseconds } = attributes.mtime;
    if nanoseconds >= 1_000_000_000 {
        return Err(Errno::INVALID);
    }
    Ok(Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    })
}

/// The mode that a file under a new name is to have when nobody wants the source's kept exactly, less what the umask or a
/// default ACL takes away.
pub(super) fn new_mode(attributes: Option<&Attributes>) -> u32 {
    attributes.map_or(0o666, |attributes| attributes.mode & 0o777)
}

/// Gives a new file its owner (if asked), mode and times, in this order: chown clears set-ID bits, so it comes before
/// chmod. `mode` is what it gets where the source's mode is not to be kept exactly; `None`: what it has. What the file
/// system refuses is returned, and the rest is done: the content does not depend on it.
pub(super) fn apply_to_file(
    fd: BorrowedFd<'_>,
    attributes: Option<&Attributes>,
    preserve: Preserve,
    mode: Option<u32>,
) -> Result<Unkept, Errno> {
    let times = attributes.map(timestamps).transpose()?;
    let mut unkept = Unkept::default();
    let preserve = trusted(preserve, &mut unkept);
    if let Some(attributes) = attributes.filter(|_| preserve.has(Preserve::OWNER)) {
        unkept.note(Unkept::OWNER, set_owner(fd, attributes))?;
    }
    let mode = match attributes {
        Some(attributes) if preserve.has(Preserve::MODE) => Some(exact_mode(fd, attributes)?),
        _ => mode,
    };
    let set_id = mode.filter(|mode| is_guarded() && mode & (SET_UID | SET_GID) != 0);
    let mode = mode.map(|mode| if set_id.is_some() { mode & !(SET_UID | SET_GID) } else { mode });
    if set_id.is_some() {
        unkept = unkept.or(Unkept::MODE);
    }
    if let Some(mode) = mode {
        unkept.note(Unkept::MODE, rustix::fs::fchmod(fd, raw_mode(mode)))?;
    }
    if let Some(times) = times {
        unkept.note(Unkept::TIMES, rustix::fs::futimens(fd, &times))?;
    }
    Ok(unkept)
}

/// Gives an existing directory its owner and exact mode (each if asked) and its times, as far as the file system lets us.
pub(super) fn apply_to_dir(fd: BorrowedFd<'_>, attributes: &Attributes, preserve: Preserve) -> Result<Unkept, Errno> {
    let times = timestamps(attributes)?;
    let mut unkept = Unkept::default();
    let preserve = trusted(preserve, &mut unkept);
    if preserve.has(Preserve::OWNER) {
        unkept.note(Unkept::OWNER, set_owner(fd, attributes))?;
    }
    if preserve.has(Preserve::MODE) {
        // On a directory set-group-ID gives no rights; it says whose group new files get, and is kept.
        unkept.note(Unkept::MODE, rustix::fs::fchmod(fd, raw_mode(attributes.mode & 0o7777 & !SET_UID)))?;
    }
    if preserve.has(Preserve::NO_TIMES) {
        return Ok(unkept);
    }
    match rustix::fs::futimens(fd, &times) {
        // Into a directory of somebody else's, as the one for temporary files, others copy as well, and nobody asked for its time.
        Err(E::PERM | E::ACCESS) if !preserve.has(Preserve::MODE) => {}
        set => unkept.note(Unkept::TIMES, set)?,
    }
    Ok(unkept)
}

impl Unkept {
    /// Takes note of what became of setting `what`: trouble with the disk is an error, a refusal is not.
    pub(super) fn note(&mut self, what: Unkept, result: rustix::io::Result<()>) -> Result<(), Errno> {
        match result {
            Ok(()) => Ok(()),
            // Not ours, or nothing that this file system has; a range of ids or times that it cannot hold.
            Err(E::PERM | E::ACCESS | E::OPNOTSUPP | E::NOSYS | E::INVAL | E::OVERFLOW | E::RANGE) => {
                *self = self.or(what);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Owner and group as far as we may: only root changes owners, others may give a file to a group of theirs.
fn set_owner(fd: BorrowedFd<'_>, attributes: &Attributes) -> rustix::io::Result<()> {
    let (owner, group) = owner(attributes);
    let refused = match rustix::fs::fchown(fd, owner, group) {
        Err(error) if not_ours_to_give(error) => error,
        result => return result,
    };
    match rustix::fs::fchown(fd, None, group) {
        Err(error) if !not_ours_to_give(error) => Err(error),
        // Nobody expects of another user that owners are kept.
        _ if !rustix::process::geteuid().is_root() => Ok(()),
        _ => Err(refused),
    }
}

/// Owner and group for chown. The id -1 means "leave" to the kernel and is no id.
pub(super) fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    let uid = (attributes.uid != u32::MAX).then(|| Uid::from_raw(attributes.uid));
    let gid = (attributes.gid != u32::MAX).then(|| Gid::from_raw(attributes.gid));
    (uid, gid)
}

/// EPERM for those who are not root, EINVAL for ids that a user namespace does not map.
pub(super) fn not_ours_to_give(error: E) -> bool {
    matches!(error, E::PERM | E::INVAL)
}

/// The source's mode, its set-ID bits only as far as the new file belongs to the same user and group: a set-ID bit on
/// somebody else's file would lend the wrong identity.
fn exact_mode(fd: BorrowedFd<'_>, attributes: &Attributes) -> Result<u32, Errno> {
    let mut mode = attributes.mode & 0o7777;
    if mode & (SET_UID | SET_GID) != 0 {
        let now = rustix::fs::fstat(fd)?;
        if now.st_uid != attributes.uid {
            mode &= !(SET_UID | SET_GID);
        } else if now.st_gid != attributes.gid {
            mode &= !SET_GID;
        }
    }
    Ok(mode)
}

fn raw_mode(mode: u32) -> Mode {
    Mode::from_raw_mode(mode as RawMode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NO_ATTRIBUTES;
    use std::os::fd::AsFd;

    fn applied(attributes: Option<Attributes>, preserve: Preserve, mode: Option<u32>) -> Attributes {
        let file = tempfile::tempfile().unwrap();
        let unkept = apply_to_file(file.as_fd(), attributes.as_ref(), preserve, mode).unwrap();
        assert!(unkept.is_empty());
        from_stat(&rustix::fs::fstat(&file).unwrap())
    }

    fn own(mode: u32) -> Attributes {
        let uid = rustix::process::geteuid().as_raw();
        Attributes { mode, uid, gid: rustix::process::getegid().as_raw(), ..NO_ATTRIBUTES }
    }

    #[test]
    fn set_id_bits_survive_only_for_the_same_owner_and_group() {
        assert_eq!(applied(Some(own(0o6755)), Preserve::MODE, Some(0o600)).mode, 0o6755);
        let other_user = Attributes { uid: own(0).uid + 1, ..own(0o6755) };
        assert_eq!(applied(Some(other_user), Preserve::MODE, None).mode, 0o755);
        let other_group = Attributes { gid: own(0).gid + 1, ..own(0o6755) };
        assert_eq!(applied(Some(other_group), Preserve::MODE, None).mode, 0o4755);
    }

    #[test]
    fn impossible_nanoseconds_are_refused_and_the_id_minus_one_changes_nothing() {
        let mut attributes = own(0o644);
        attributes.uid = u32::MAX;
        attributes.gid = u32::MAX;
        assert_eq!(applied(Some(attributes), Preserve::OWNER, None).uid, own(0).uid);
        attributes.mtime.nanoseconds = 0x3fff_ffff; // UTIME_NOW
        assert_eq!(timestamps(&attributes).map(|_| ()), Err(Errno::INVALID));
    }

    #[test]
    fn times_keep_their_nanoseconds_before_and_after_the_epoch() {
        for mtime in [
            Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 },
            Timestamp { seconds: -5, nanoseconds: 999_999_999 },
        ] {
            assert_eq!(applied(Some(Attributes { mtime, ..own(0o644) }), Preserve(0), None).mtime, mtime);
        }
    }
}
