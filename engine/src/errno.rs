//! Error numbers: the operating system's, and a few conditions that systems have no number for.

use crate::limits::MAX_WALK_DEPTH;
use crate::wire::frame::ErrorCode;
use std::fmt;

/// An error number of the operating system, or one of a few conditions systems have no number for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Not a regular file.
    pub const NOT_REGULAR: Errno = Errno(100_000);
    /// The path leads out of the served root.
    pub const OUTSIDE_ROOT: Errno = Errno(100_001);
    /// A file ended before the bytes that were promised.
    pub const SHORT_SOURCE: Errno = Errno(100_002);
    /// This backend or this pair of file systems cannot do it.
    pub const UNSUPPORTED: Errno = Errno(100_003);
    /// A file was written to while it was read.
    pub const CHANGED: Errno = Errno(100_005);
    /// Compressed content is damaged, or is not what was announced.
    pub const BAD_BLOCK: Errno = Errno(100_006);
    /// A record was not sealed by the peer, or is not the next one.
    pub const BAD_RECORD: Errno = Errno(100_007);
    /// Somebody else has put something else in its place.
    pub const REPLACED: Errno = Errno(100_008);
    /// This program is wrong: the panic of a helper thread.
    pub const INTERNAL: Errno = Errno(100_009);
    /// The path that is served names another directory than when that began.
    pub const ROOT_REPLACED: Errno = Errno(100_011);
    /// Something else is mounted there, and is not served.
    pub const OTHER_MOUNT: Errno = Errno(100_012);
    /// Directories within directories, more than are walked.
    pub const TOO_DEEP: Errno = Errno(100_013);
    /// Another file of the same copy has this name, apart from case, and the file system takes both for one.
    pub const SAME_NAME: Errno = Errno(100_014);
    /// Another process, or another copy of this one, is at work on it. For a moment, and only inside the engine.
    pub const LOCKED: Errno = Errno(100_016);
    /// What stands there is a symbolic link, and what it leads to is no regular file.
    pub const LINK_TO_OTHER: Errno = Errno(100_015);
    /// The content is not what it should be.
    pub const HASH_MISMATCH: Errno = Errno(100_004);
    /// A file whose size did not change has less, or more, in it than that says.
    pub const SIZE_LIES: Errno = Errno(100_010);
    /// The operation was cancelled before it had any effect.
    pub const CANCELLED: Errno = Errno(rustix::io::Errno::CANCELED.raw_os_error());
    /// The id is closed or was never given out.
    pub const STALE_ID: Errno = Errno(rustix::io::Errno::BADF.raw_os_error());
    /// The peer is gone.
    pub const BROKEN_PIPE: Errno = Errno(rustix::io::Errno::PIPE.raw_os_error());
    /// Permission denied.
    pub const ACCESS: Errno = Errno(rustix::io::Errno::ACCESS.raw_os_error());
    /// No such file or directory.
    pub const NOT_FOUND: Errno = Errno(rustix::io::Errno::NOENT.raw_os_error());
    /// Nobody listens there.
    pub const REFUSED: Errno = Errno(rustix::io::Errno::CONNREFUSED.raw_os_error());
    /// Out of space.
    pub const NO_SPACE: Errno = Errno(rustix::io::Errno::NOSPC.raw_os_error());
    /// Out of memory.
    pub const NO_MEMORY: Errno = Errno(rustix::io::Errno::NOMEM.raw_os_error());
    /// This process has too many open files.
    pub const TOO_MANY_FILES: Errno = Errno(rustix::io::Errno::MFILE.raw_os_error());
    /// This system has too many open files.
    pub const TOO_MANY_FILES_ALL: Errno = Errno(rustix::io::Errno::NFILE.raw_os_error());
    /// A connection was gone before it was accepted.
    pub const ABORTED: Errno = Errno(rustix::io::Errno::CONNABORTED.raw_os_error());
    /// Somebody else listens there.
    pub const ADDRESS_IN_USE: Errno = Errno(rustix::io::Errno::ADDRINUSE.raw_os_error());
    /// Input or output error.
    pub const IO: Errno = Errno(rustix::io::Errno::IO.raw_os_error());
    /// File exists.
    pub const EXISTS: Errno = Errno(rustix::io::Errno::EXIST.raw_os_error());
    /// Is a directory.
    pub const IS_DIRECTORY: Errno = Errno(rustix::io::Errno::ISDIR.raw_os_error());
    /// Not a directory.
    pub const NOT_DIRECTORY: Errno = Errno(rustix::io::Errno::NOTDIR.raw_os_error());
    /// Too many links on the way.
    pub const LOOP: Errno = Errno(rustix::io::Errno::LOOP.raw_os_error());
    /// Invalid argument.
    pub const INVALID: Errno = Errno(rustix::io::Errno::INVAL.raw_os_error());

    /// The number under which this error travels; Linux numbering.
    pub fn code(self) -> ErrorCode {
        match self {
            Errno::OUTSIDE_ROOT => ErrorCode::OUTSIDE_ROOT,
            Errno::HASH_MISMATCH => ErrorCode::HASH_MISMATCH,
            Errno::CHANGED | Errno::SHORT_SOURCE => ErrorCode::CHANGED,
            // ESTALE and EXDEV.
            Errno::ROOT_REPLACED => ErrorCode(ErrorCode::ERRNO_BASE + 116),
            Errno::OTHER_MOUNT => ErrorCode(ErrorCode::ERRNO_BASE + 18),
            Errno::TOO_DEEP => ErrorCode::TOO_DEEP,
            Errno(n) => u16::try_from(n).ok().and_then(portable).map_or(ErrorCode::OTHER, ErrorCode),
        }
    }
}

/// `4096 + errno` in Linux numbering, for the errors whose number differs between systems translated.
fn portable(n: u16) -> Option<u16> {
    use rustix::io::Errno as E;
    const NAMED: [(E, u16); 10] = [
        (E::NAMETOOLONG, 36),
        (E::NOTEMPTY, 39),
        (E::LOOP, 40),
        (E::CONNRESET, 104),
        (E::TIMEDOUT, 110),
        (E::CONNREFUSED, 111),
        (E::DQUOT, 122),
        (E::CANCELED, 125),
        (E::OPNOTSUPP, 95),
        (E::STALE, 116),
    ];
    let named = NAMED.iter().find(|(e, _)| e.raw_os_error() == i32::from(n)).map(|&(_, linux)| linux);
    // Numbers up to 34 (ERANGE) are the same on Linux, macOS and the BSDs, EAGAIN and EDEADLK excepted.
    let same = (n <= 34 || cfg!(target_os = "linux")).then_some(n);
    named.or(same).and_then(|linux| linux.checked_add(ErrorCode::ERRNO_BASE))
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Errno::NOT_REGULAR => f.write_str("Not a regular file"),
            Errno::OUTSIDE_ROOT => f.write_str("Path escapes server root"),
            Errno::SHORT_SOURCE => f.write_str("File became shorter while it was read"),
            Errno::CHANGED => f.write_str("File changed while it was read"),
            Errno::REPLACED => f.write_str("Somebody else has put something else in its place"),
            Errno::SIZE_LIES => f.write_str("What can be read of it is not as much as its size says"),
            Errno::SAME_NAME => f.write_str(
                "This copy has written a file there whose name differs only in case, which counts as the same",
            ),
            Errno::LINK_TO_OTHER => {
                f.write_str("It is a symbolic link to something that is no regular file; name that, or remove the link")
            }
            Errno::LOCKED => f.write_str("Another copy is at work on it"),
            Errno::UNSUPPORTED => f.write_str("Not supported here"),
            Errno::ROOT_REPLACED => f.write_str(
                "The served directory was mounted over, moved or made anew; start the server again to serve what is there now",
            ),
            Errno::OTHER_MOUNT => f.write_str(
                "Something else is mounted there, which the server does not serve without --across-mounts",
            ),
            Errno::HASH_MISMATCH => f.write_str("Content does not match its hash"),
            Errno::INTERNAL => f.write_str("Internal error of haul; please report it"),
            Errno::TOO_DEEP => write!(f, "Nested deeper than the {MAX_WALK_DEPTH} directories that are walked"),
            Errno::BAD_BLOCK => f.write_str("Compressed content is damaged"),
            Errno::BAD_RECORD => f.write_str("What arrived is not what the peer sealed"),
            Errno(n) => {
                let text = std::io::Error::from_raw_os_error(n).to_string();
                f.write_str(text.split(" (os error").next().unwrap_or(&text))
            }
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Errno {
        Errno(errno.raw_os_error())
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(Errno::IO.0))
    }
}
