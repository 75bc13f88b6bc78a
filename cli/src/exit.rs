//! Exit codes, rsync's where they fit.

use haul_engine::session::{Cause, Failure, Reason};
use std::process::ExitCode;

/// How the program ends. The numbers are part of the interface; README and `--help` list them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything was done.
    Success = 0,
    /// The command line makes no sense.
    Usage = 1,
    /// The two ends speak different protocols.
    Protocol = 2,
    /// The remote side could not be started or did not greet.
    Start = 5,
    /// A socket failed.
    Socket = 10,
    /// A disk is full or failed.
    FileIo = 11,
    /// The connection broke in the middle.
    Stream = 12,
    /// INT, TERM or HUP.
    Interrupted = 20,
    /// Something was not copied.
    Partial = 23,
    /// Something vanished before it could be copied; all else was copied.
    Vanished = 24,
    /// The peer did nothing for too long.
    Timeout = 30,
    /// No connection within the time allowed.
    ConnectTimeout = 35,
    /// ssh itself failed; it said why.
    Ssh = 255,
}

impl Exit {
    /// `haul doctor` has found a problem.
    pub(crate) const PROBLEM: Exit = Exit::Usage;
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The words behind `Exit codes:` in the help.
pub(crate) const TABLE: &str = "\
Exit codes:
  0  everything was done              20  interrupted
  1  usage                            23  something was not copied
  2  the two ends cannot talk         24  a source vanished meanwhile
  5  the remote side did not start    30  the peer did nothing for too long
 10  a socket failed                  35  no connection in time
 11  a disk is full or failed        255  ssh failed
 12  the connection broke";

/// The code of a failure that concerns one path.
pub(crate) fn of_failure(failure: &Failure) -> Exit {
    match failure.kind {
        Reason::Full | Reason::Quota | Reason::TakesNothing | Reason::Disk | Reason::TooLarge => Exit::FileIo,
        Reason::Vanished => Exit::Vanished,
        _ => Exit::Partial,
    }
}

/// The code of a failure of the whole connection.
pub(crate) fn of_fatal(failure: &Failure) -> Exit {
    match failure.kind {
        Reason::Rule | Reason::NeedsRecursive | Reason::Unexpected => Exit::Usage,
        Reason::Late => Exit::ConnectTimeout,
        Reason::NotInstalled | Reason::Unusable | Reason::StartFiles | Reason::NoStart | Reason::Greeting => {
            Exit::Start
        }
        Reason::Refused | Reason::Protocol => Exit::Protocol,
        Reason::NoConnection => Exit::Socket,
        Reason::Silent => Exit::Timeout,
        Reason::Ssh => Exit::Ssh,
        _ if matches!(failure.cause, Cause::Here(_)) => Exit::Socket,
        _ => Exit::Stream,
    }
}
