//! Why something did not work, as a value: what exit codes and hints rest on.
//!
//! A [`Reason`] is set where the failure happens and travels beside its text to where both are shown. No text is read to
//! find one out: the words of a peer are shown and decide nothing, and neither do ours. What a peer may decide it says by
//! the number of an Error frame ([`ErrorCode`]), which only says what befell one path.

use crate::wire::frame::ErrorCode;

/// Why something did not work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Reason {
    /// None of these.
    Other,

    // By the number of a system, here or there: what befell one path.
    /// The file system is full.
    Full,
    /// The quota is used up.
    Quota,
    /// Nothing can be written, and the peer does not say why.
    TakesNothing,
    /// A disk failed.
    Disk,
    /// A file is larger than its file system or a limit takes.
    TooLarge,
    /// There is no memory left, or not for us.
    NoMemory,
    /// There are no descriptors left, or not for us.
    NoDescriptors,
    /// The file system is mounted read-only.
    ReadOnlyMount,
    /// The server was told to change nothing.
    ReadOnlyServer,
    /// A name is too long.
    NameTooLong,
    /// There is nothing of that name.
    Missing,
    /// A source that was there a moment ago.
    Vanished,

    // By a rule of haul's own.
    /// A rule of haul's own.
    Rule,
    /// A directory is copied only by those who ask for that.
    NeedsRecursive,
    /// A frame came where it makes no sense.
    Unexpected,

    // What ends a connection, or keeps it from coming about.
    /// It broke.
    Lost,
    /// The peer said or took nothing for too long.
    Silent,
    /// The peer broke the protocol.
    Protocol,
    /// The remote shell ran, and there is no program that could answer.
    NotInstalled,
    /// There is one that cannot be run, or is something else.
    Unusable,
    /// The login is there, and in the place of its shell runs something else.
    StartFiles,
    /// The remote side did not start, in some other way.
    NoStart,
    /// It did not greet, or not as it should.
    Greeting,
    /// It refused our greeting.
    Refused,
    /// It did not start, greet, or answer a request to connect, within the time allowed.
    Late,
    /// There is no connection to it.
    NoConnection,
    /// ssh itself failed; it said why.
    Ssh,
}

impl Reason {
    /// True where nothing more can be written: what comes behind would fail as well.
    pub fn is_no_room(self) -> bool {
        matches!(self, Reason::Full | Reason::Quota | Reason::TakesNothing)
    }

    /// Of a number as it travels: Linux numbering whatever the system.
    pub fn of(code: ErrorCode) -> Reason {
        match (code, code.0.checked_sub(ErrorCode::ERRNO_BASE)) {
            (ErrorCode::READ_ONLY, _) => Reason::ReadOnlyServer,
            (_, Some(2)) => Reason::Missing,
            (_, Some(5)) => Reason::Disk,
            (_, Some(12)) => Reason::NoMemory,
            (_, Some(23 | 24)) => Reason::NoDescriptors,
            (_, Some(27)) => Reason::TooLarge,
            (_, Some(28)) => Reason::Full,
            (_, Some(30)) => Reason::ReadOnlyMount,
            (_, Some(36)) => Reason::NameTooLong,
            (_, Some(122)) => Reason::Quota,
            _ => Reason::Other,
        }
    }
}
