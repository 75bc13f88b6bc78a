//! Path resolution one component at a time, for links that openat2 will not follow and for systems without it.
//!
//! Every directory on the way is held open, so `..` in a link text is a step back on a stack of handles and not a
//! question to the file system: renaming directories meanwhile cannot lead the walk out of the root.

use super::resolve::{DIR_HANDLE, Handle, Missing, open_at, open_in_mount};
use crate::backend::Errno;
use crate::limits::MAX_LINKS_FOLLOWED;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno as E;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the last component of a walk may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Directory,
    /// Anything but a link, also nothing.
    Any,
}

/// Where a walk ended: `name` in `dir`; `.` for the directory itself.
pub(super) struct End<'r> {
    pub(super) dir: Handle<'r>,
    pub(super) name: Vec<u8>,
}

/// Goes along `path` below `root`, following links while they stay below it. `canonical` is the absolute path of `root`:
/// absolute links that begin with it continue at the root, all others are [`Errno::OUTSIDE_ROOT`].
/// With `one_mount` nothing that is mounted below the root is entered.
pub(super) fn walk<'r>(
    root: BorrowedFd<'r>,
    canonical: &[u8],
    path: &[u8],
    last: Last,
    one_mount: bool,
) -> Result<End<'r>, Errno> {
    let mut stack: Vec<OwnedFd> = Vec::new();
    let mut ahead: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    push(&mut ahead, path)?;
    while let Some(name) = ahead.pop() {
        if name == b".." {
            stack.pop().ok_or(Errno::OUTSIDE_ROOT)?;
            continue;
        }
        let here = stack.last().map_or(root, AsFd::as_fd);
        match step(here, &name, last == Last::Any && ahead.is_empty(), one_mount)? {
            Step::Directory(dir) => stack.push(dir),
            Step::End => return Ok(End { dir: top(root, stack), name }),
            Step::Link(text) => {
                links += 1;
                if links > MAX_LINKS_FOLLOWED {
                    return Err(Errno::LOOP);
                }
                let text = if text.first() == Some(&b'/') {
                    stack.clear();
                    below_prefix(&text, canonical).ok_or(Errno::OUTSIDE_ROOT)?
                } else {
                    &text
                };
                push(&mut ahead, text)?;
            }
        }
    }
    Ok(End { dir: top(root, stack), name: b".".to_vec() })
}

fn top(root: BorrowedFd<'_>, mut stack: Vec<OwnedFd>) -> Handle<'_> {
    stack.pop().map_or(Handle::Borrowed(root), Handle::Owned)
}

/// Puts the components of `path` ahead of what is ahead already.
fn push(ahead: &mut Vec<Vec<u8>>, path: &[u8]) -> Result<(), Errno> {
    let waiting: usize = ahead.iter().map(|component| component.len() + 1).sum();
    if waiting + path.len() > crate::limits::MAX_PATH_BYTES {
        return Err(E::NAMETOOLONG.into());
    }
    ahead.extend(components(path).rev().map(<[u8]>::to_vec));
    Ok(())
}

enum Step {
    Directory(OwnedFd),
    Link(Vec<u8>),
    /// Not a directory and not a link, or nothing: only where the walk may end on such.
    End,
}

fn step(dir: BorrowedFd<'_>, name: &[u8], may_end: bool, one_mount: bool) -> Result<Step, Errno> {
    let open = if one_mount { open_in_mount } else { open_at };
    match open(dir, name, DIR_HANDLE | OFlags::NOFOLLOW) {
        Ok(opened) => Ok(Step::Directory(opened)),
        Err(Errno::NOT_FOUND) if may_end => Ok(Step::End),
        // ENOTDIR for everything else on Linux; ELOOP for links elsewhere.
        Err(Errno::NOT_DIRECTORY | Errno::LOOP) => match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Ok(text) => Ok(Step::Link(text.into_bytes())),
            Err(E::INVAL) if may_end => Ok(Step::End),
            Err(E::INVAL) => Err(Errno::NOT_DIRECTORY),
            Err(error) => Err(error.into()),
        },
        Err(errno) => Err(errno),
    }
}

/// Goes along `path` below `dir` without following any link (ELOOP), making what is missing if asked.
pub(super) fn steps<'r>(dir: Handle<'r>, path: &[u8], missing: Missing, one_mount: bool) -> Result<Handle<'r>, Errno> {
    let mut here = dir;
    for name in components(path) {
        if name == b".." {
            return Err(Errno::OUTSIDE_ROOT); // No caller passes one; it must never reach the kernel.
        }
        let next = match step(here.as_fd(), name, false, one_mount) {
            Err(Errno::NOT_FOUND) if missing == Missing::Make => made(here.as_fd(), name)?,
            result => result?,
        };
        here = match next {
            Step::Directory(opened) => Handle::Owned(opened),
            Step::Link(_) | Step::End => return Err(Errno::LOOP),
        };
    }
    Ok(here)
}

/// A new directory, or the one somebody else made just now.
fn made(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Step, Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o777)) {
        // Who may write there has put something else in its place.
        Ok(()) => match step(dir, name, false, false) {
            Ok(Step::Directory(opened)) => Ok(Step::Directory(opened)),
            Ok(_) | Err(Errno::NOT_FOUND | Errno::NOT_DIRECTORY) => Err(Errno::REPLACED),
            Err(errno) => Err(errno),
        },
        Err(E::EXIST) => step(dir, name, false, false),
        Err(error) => Err(error.into()),
    }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|component| !component.is_empty() && *component != b".")
}

/// What is left of the absolute `path` behind the components of `prefix`; `None` when it does not begin with them.
pub(super) fn below_prefix<'p>(path: &'p [u8], prefix: &[u8]) -> Option<&'p [u8]> {
    let mut rest = path.strip_prefix(b"/")?;
    for wanted in components(prefix) {
        let (found, behind) = loop {
            let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
            let (component, behind) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
            if (component.is_empty() || component == b".") && end < rest.len() {
                rest = behind;
                continue;
            }
            break (component, behind);
        };
        if found != wanted {
            return None;
        }
        rest = behind;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_compared_by_components() {
        let below = |path: &str, prefix: &str| {
            below_prefix(path.as_bytes(), prefix.as_bytes()).map(|rest| String::from_utf8(rest.to_vec()).unwrap())
        };
        assert_eq!(below("/srv/data/x/y", "/srv/data").as_deref(), Some("x/y"));
        assert_eq!(below("/srv/data", "/srv/data").as_deref(), Some(""));
        assert_eq!(below("//srv/./data/x", "/srv/data").as_deref(), Some("x"));
        assert_eq!(below("/srv/data2", "/srv/data"), None);
        assert_eq!(below("/srv", "/srv/data"), None);
        assert_eq!(below("/srv/../data", "/srv/data"), None);
        assert_eq!(below("/etc/passwd", "/").as_deref(), Some("etc/passwd"));
        assert_eq!(below("srv/data", "/srv/data"), None);
    }
}
