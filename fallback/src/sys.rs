//! The calls that differ between systems. Each returns `EAGAIN` where it would have to wait.
//!
//! On Linux a call can be told not to wait. Elsewhere only the description's own O_NONBLOCK can do that, so streams that
//! are not ours go to helper threads there ([`crate::half`] chooses).

use rustix::io::{Errno, Result};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// True where a single call can decline to wait on a description whose O_NONBLOCK is off.
pub(crate) const CALLS_CAN_DECLINE_TO_WAIT: bool = cfg!(target_os = "linux");

/// True where sendfile(2) is used. macOS and the BSDs have calls of that name but no safe binding in rustix 1.1; there
/// files are read and written.
pub(crate) const HAS_SENDFILE: bool = cfg!(target_os = "linux");

pub(crate) fn recv(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    rustix::net::recv(socket, into, RecvFlags::DONTWAIT).map(|(count, _)| count)
}

/// `more`: further bytes follow at once, so a segment that is not full may wait for them.
pub(crate) fn send(socket: BorrowedFd<'_>, from: &[IoSlice<'_>], more: bool) -> Result<usize> {
    let flags = SendFlags::DONTWAIT | quiet() | if more { corked() } else { SendFlags::empty() };
    rustix::net::sendmsg(socket, from, &mut SendAncillaryBuffer::default(), flags)
}

/// MSG_NOSIGNAL. macOS has none; programs in Rust ignore SIGPIPE from their start.
fn quiet() -> SendFlags {
    #[cfg(not(target_vendor = "apple"))]
    return SendFlags::NOSIGNAL;
    #[cfg(target_vendor = "apple")]
    return SendFlags::empty();
}

/// MSG_MORE, an optimization of Linux.
fn corked() -> SendFlags {
    #[cfg(target_os = "linux")]
    return SendFlags::MORE;
    #[cfg(not(target_os = "linux"))]
    return SendFlags::empty();
}

/// A read of a pipe that is not ours. `EOPNOTSUPP`: this kind of file cannot decline.
pub(crate) fn read_without_waiting(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize> {
    #[cfg(target_os = "linux")]
    return rustix::io::preadv2(fd, &mut [IoSliceMut::new(into)], u64::MAX, rustix::io::ReadWriteFlags::NOWAIT);
    #[cfg(not(target_os = "linux"))]
    return unsupported((fd, IoSliceMut::new(into)));
}

/// A write to a pipe that is not ours. `EOPNOTSUPP`: this kind of file cannot decline.
pub(crate) fn write_without_waiting(fd: BorrowedFd<'_>, from: &[IoSlice<'_>]) -> Result<usize> {
    #[cfg(target_os = "linux")]
    return rustix::io::pwritev2(fd, from, u64::MAX, rustix::io::ReadWriteFlags::NOWAIT);
    #[cfg(not(target_os = "linux"))]
    return unsupported((fd, from));
}

/// File to stream inside the kernel; 0 at end of file. The stream's description must be non-blocking.
pub(crate) fn send_file(stream: BorrowedFd<'_>, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<usize> {
    #[cfg(target_os = "linux")]
    {
        let mut offset = offset;
        rustix::fs::sendfile(stream, file, Some(&mut offset), len)
    }
    #[cfg(not(target_os = "linux"))]
    unsupported((stream, file, offset, len))
}

#[cfg(not(target_os = "linux"))]
fn unsupported<T>(_: T) -> Result<usize> {
    Err(Errno::OPNOTSUPP)
}

/// True for the answers of a call that would have had to wait.
pub(crate) fn would_wait(errno: Errno) -> bool {
    errno == Errno::AGAIN || errno == Errno::WOULDBLOCK
}
