//! Several logins of one client gather in one server process, so that each can write ranges of a file that another one has
//! begun.
//!
//! ```text
//! haul serve --gather NAME, as often as there are logins
//!   first: binds the name -> serves its own stream, and those that are handed over
//!   others: connect to it -> stdin and stdout handed over -taken-> wait for the end of that session -> exit
//!                    \-> nobody there, somebody else's, full: serve alone
//! ```
//! The name is an abstract socket address, which leaves nothing behind: Linux has those, elsewhere every login serves alone.
//! Both ends make sure that the other one is the same user with the same root and working directories: a name can be read
//! from the list of processes. The client learns by the name that a server has for itself whether two logins came together.

#[cfg(not(target_os = "linux"))]
mod alone;
#[cfg(target_os = "linux")]
mod sockets;

#[cfg(not(target_os = "linux"))]
pub(crate) use alone::{Gathering, meet};
#[cfg(target_os = "linux")]
pub(crate) use sockets::{Gathering, meet};

use crate::exit::Exit;
use std::os::fd::OwnedFd;

/// How a login begins that is to gather with others.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(crate) enum Met {
    /// It was handed over, and its session has ended so.
    Elsewhere(Exit),
    /// Others come here.
    Here(Gathering),
    /// It serves alone.
    Nobody,
}

/// A stream that another process was given by its sshd, and that is ours now.
pub(crate) struct Taken {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    /// Tells that process how the session ended.
    pub(crate) tell: Box<dyn FnOnce(Exit)>,
}

/// A name that nobody chooses by chance, as hex digits.
pub(crate) fn is_name(text: &str) -> Result<String, &'static str> {
    let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hex { Ok(text.to_string()) } else { Err("32 hex digits are needed") }
}
