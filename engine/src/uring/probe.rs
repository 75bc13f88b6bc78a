//! Can a ring be made here, and does it know what is needed? If not, why not, in words for a user.

use super::sys::{self, Ring, Wait};
use io_uring::opcode;
use rustix::io::Errno;
use std::io;

/// Every operation the backend builds.
const NEEDED: [(u8, &str); 12] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::Splice::CODE, "SPLICE"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];

/// io_uring cannot be used; the poll backend can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("io_uring is not available: {reason}")]
pub struct Unavailable {
    /// Why, in one sentence.
    pub reason: String,
}

/// Tries a small ring and throws it away. For `doctor` and for choosing a backend without building one.
pub fn probe() -> Result<(), Unavailable> {
    check(&mut Ring::new(4).map_err(|error| refused(&error))?)
}

/// Why a ring was refused.
pub(super) fn refused(error: &io::Error) -> Unavailable {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    Unavailable { reason: explain(errno, setting.as_deref().map(str::trim)) }
}

/// That the ring knows every opcode the backend builds, and can be entered: a seccomp filter may allow one call of io_uring
/// and not another.
pub(super) fn check(ring: &mut Ring) -> Result<(), Unavailable> {
    ring.enter(Wait::No).map_err(|errno| refused(&io::Error::from_raw_os_error(errno.0)))?;
    let known = ring.probe().map_err(|error| refused(&error))?;
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(code, _)| !known.is_supported(*code)).map(|&(_, name)| name).collect();
    if !ring.has_features() {
        return Err(Unavailable { reason: "the kernel is too old (before 5.11)".to_owned() });
    }
    match missing.as_slice() {
        [] => Ok(()),
        missing => Err(Unavailable { reason: format!("the kernel lacks the operation {}", missing.join(", ")) }),
    }
}

/// Entries asked for, brought into the range the kernel takes.
pub(super) fn entries(wanted: u32) -> u32 {
    wanted.clamp(sys::LEAST_ENTRIES, 32_768)
}

fn explain(errno: Errno, setting: Option<&str>) -> String {
    match (errno, setting) {
        (Errno::NOSYS, _) => "the kernel has no io_uring, or a seccomp filter hides it".to_owned(),
        (Errno::PERM | Errno::ACCESS, Some("2")) => "it is switched off (sysctl kernel.io_uring_disabled=2)".to_owned(),
        (Errno::PERM | Errno::ACCESS, Some("1")) => {
            "it is reserved for a group (sysctl kernel.io_uring_disabled=1, kernel.io_uring_group)".to_owned()
        }
        (Errno::PERM | Errno::ACCESS, _) => {
            "it is forbidden here, most likely by a container's seccomp filter".to_owned()
        }
        (Errno::NOMEM, _) => "the limit on locked memory is too low (ulimit -l)".to_owned(),
        (Errno::MFILE | Errno::NFILE, _) => "too many open files (ulimit -n)".to_owned(),
        (errno, _) => format!("making a ring failed: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_refused() {
        assert!(explain(Errno::NOSYS, None).contains("no io_uring"));
        assert!(explain(Errno::PERM, Some("2")).contains("switched off"));
        assert!(explain(Errno::PERM, Some("0")).contains("seccomp"));
        assert!(explain(Errno::PERM, None).contains("seccomp"));
        assert!(explain(Errno::NOMEM, Some("0")).contains("locked memory"));
    }
}
