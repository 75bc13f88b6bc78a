//! One direction of a stream: a descriptor, the calls that suit it, and whether it is ready.
//!
//! Which calls, by what the descriptor is and whether its description is ours:
//!
//! | | ours | not ours, Linux | not ours, elsewhere |
//! |---|---|---|---|
//! | socket | O_NONBLOCK, recv/sendmsg, sendfile | recv/sendmsg with MSG_DONTWAIT | [`Helper`] |
//! | pipe | O_NONBLOCK, read/writev, sendfile | preadv2/pwritev2 with RWF_NOWAIT | [`Helper`] |
//! | file, device, terminal | [`Helper`] | [`Helper`] | [`Helper`] |
//!
//! O_NONBLOCK is never set on a description that is not ours: it belongs to the description, and whoever else has it
//! open (the shell, sshd) would see its own calls fail.
//!
//! Readiness is edge-triggered: it is assumed at first, forgotten only when a call says EAGAIN, and comes back with an
//! event.

use crate::helper::{Direction, Helper};
use crate::signal::Signal;
use crate::sys;
use haul_engine::backend::Errno;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::fs::FileType;
use rustix::io::retry_on_intr;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// What halves need of the backend around them.
pub(crate) struct Surroundings {
    pub(crate) registry: Registry,
    pub(crate) signal: Arc<Signal>,
    /// Whether calls are told not to wait where the description is not ours; otherwise helper threads wait.
    pub(crate) declining: bool,
}

/// A descriptor in the poller. Whoever has one drops it before the descriptor: closing alone does not take a
/// descriptor out when another process has the same description open.
pub(crate) struct Registration {
    surroundings: Rc<Surroundings>,
    fd: RawFd,
}

impl Registration {
    pub(crate) fn new(
        surroundings: &Rc<Surroundings>,
        fd: BorrowedFd<'_>,
        slot: u32,
        interest: Interest,
    ) -> Result<Registration, Errno> {
        let fd = fd.as_raw_fd();
        surroundings.registry.register(&mut SourceFd(&fd), Token(slot as usize), interest)?;
        Ok(Registration { surroundings: Rc::clone(surroundings), fd })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // It was registered and is still open, so there is nothing that could be done about an error.
        let _ = self.surroundings.registry.deregister(&mut SourceFd(&self.fd));
    }
}

/// Calls a descriptor is used with.
enum Calls {
    /// recv and sendmsg; the description is non-blocking if `ours`.
    Socket { ours: bool },
    /// read and writev; the description is non-blocking.
    Pipe,
    /// preadv2 and pwritev2 with RWF_NOWAIT.
    Declining,
    /// A thread that blocks.
    Helper(Helper),
}

/// One direction of a stream.
pub(crate) struct Half {
    // Before `fd`: a descriptor is taken out of the poller before it can be closed.
    registration: Option<Registration>,
    calls: Calls,
    fd: Arc<OwnedFd>,
    way: Direction,
    slot: u32,
    surroundings: Rc<Surroundings>,
    ready: bool,
}

impl Half {
    /// Both directions of one descriptor.
    pub(crate) fn pair(
        surroundings: &Rc<Surroundings>,
        fd: OwnedFd,
        slot: u32,
        ours: bool,
    ) -> Result<(Half, Half), Errno> {
        let fd = Arc::new(fd);
        let both = Some(Interest::READABLE | Interest::WRITABLE);
        let read = Half::new(surroundings, Arc::clone(&fd), slot, ours, Direction::Read, both)?;
        let write = Half::new(surroundings, fd, slot, ours, Direction::Write, None)?;
        Ok((read, write))
    }

    /// One direction, with a descriptor of its own.
    pub(crate) fn single(
        surroundings: &Rc<Surroundings>,
        fd: OwnedFd,
        slot: u32,
        ours: bool,
        way: Direction,
    ) -> Result<Half, Errno> {
        let interest = match way {
            Direction::Read => Interest::READABLE,
            Direction::Write => Interest::WRITABLE,
        };
        Half::new(surroundings, Arc::new(fd), slot, ours, way, Some(interest))
    }

    /// Both directions of a socket that is non-blocking and in the poller already.
    pub(crate) fn connected(
        surroundings: &Rc<Surroundings>,
        fd: OwnedFd,
        registration: Registration,
        slot: u32,
    ) -> (Half, Half) {
        let fd = Arc::new(fd);
        let half = |registration, way| Half {
            registration,
            calls: Calls::Socket { ours: true },
            fd: Arc::clone(&fd),
            way,
            slot,
            surroundings: Rc::clone(surroundings),
            ready: true,
        };
        (half(Some(registration), Direction::Read), half(None, Direction::Write))
    }

    fn new(
        surroundings: &Rc<Surroundings>,
        fd: Arc<OwnedFd>,
        slot: u32,
        ours: bool,
        way: Direction,
        interest: Option<Interest>,
    ) -> Result<Half, Errno> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        let calls = match kind {
            FileType::Socket if ours || surroundings.declining => Some(Calls::Socket { ours }),
            FileType::Fifo if ours => Some(Calls::Pipe),
            FileType::Fifo if surroundings.declining => Some(Calls::Declining),
            _ => None,
        };
        if ours && calls.is_some() {
            rustix::io::ioctl_fionbio(&fd, true)?;
        }
        let (calls, registration) = match (calls, interest) {
            (Some(calls), Some(interest)) => {
                (calls, Some(Registration::new(surroundings, fd.as_fd(), slot, interest)?))
            }
            (Some(calls), None) => (calls, None),
            (None, _) => (Calls::Helper(Helper::start(way, Arc::clone(&fd), slot, surroundings.signal.clone())?), None),
        };
        Ok(Half { registration, calls, fd, way, slot, surroundings: Rc::clone(surroundings), ready: true })
    }

    /// True while no call has said that it would have to wait.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// An event came.
    pub(crate) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// True when a helper thread does the work.
    pub(crate) fn has_helper(&self) -> bool {
        matches!(self.calls, Calls::Helper(_))
    }

    /// True when [`Half::send_file`] can be tried. On a description that may block it would hold up every stream.
    pub(crate) fn can_send_file(&self) -> bool {
        sys::HAS_SENDFILE && matches!(self.calls, Calls::Pipe | Calls::Socket { ours: true })
    }

    /// What is there now, at most `into`; 0 at the end, `None` when nothing is there.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, Errno> {
        let fd = self.fd.as_fd();
        let result = retry_on_intr(|| match &self.calls {
            Calls::Socket { .. } => sys::recv(fd, &mut *into),
            Calls::Pipe => rustix::io::read(fd, &mut *into),
            Calls::Declining => sys::read_without_waiting(fd, &mut *into),
            Calls::Helper(_) => Err(rustix::io::Errno::OPNOTSUPP),
        });
        match result {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let read = self.helper()?.read(into);
                self.noted(read)
            }
            result => self.judged(result),
        }
    }

    /// As much of `from` as there is room for now; `None` when there is none. `from` is not empty. After `None` the
    /// next call must begin with the same bytes. `more`: further bytes follow at once.
    pub(crate) fn write(&mut self, from: &[IoSlice<'_>], more: bool) -> Result<Option<usize>, Errno> {
        let fd = self.fd.as_fd();
        let result = retry_on_intr(|| match &self.calls {
            Calls::Socket { .. } => sys::send(fd, from, more),
            Calls::Pipe => rustix::io::writev(fd, from),
            Calls::Declining => sys::write_without_waiting(fd, from),
            Calls::Helper(_) => Err(rustix::io::Errno::OPNOTSUPP),
        });
        let written = match result {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let written = self.helper()?.write(from);
                self.noted(written)
            }
            result => self.judged(result),
        };
        match written {
            // A device that takes nothing and gives no reason would be asked forever.
            Ok(Some(0)) => Err(Errno::IO),
            written => written,
        }
    }

    /// File to stream inside the kernel; 0 at the end of the file.
    pub(crate) fn send_file(&mut self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Option<usize>, Errno> {
        let result = retry_on_intr(|| sys::send_file(self.fd.as_fd(), file, offset, len));
        self.judged(result)
    }

    /// Bytes handed to a helper thread that may or may not have left.
    pub(crate) fn handed(&self) -> usize {
        match &self.calls {
            Calls::Helper(helper) => helper.handed(),
            Calls::Socket { .. } | Calls::Pipe | Calls::Declining => 0,
        }
    }

    /// Tells the peer that no more bytes come, where the descriptor is a socket. Elsewhere dropping the half does.
    pub(crate) fn shut_down(&self) -> Result<(), Errno> {
        match rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write) {
            Ok(()) | Err(rustix::io::Errno::NOTSOCK) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn judged(&mut self, result: rustix::io::Result<usize>) -> Result<Option<usize>, Errno> {
        match result {
            Err(errno) if sys::would_wait(errno) => self.noted(Ok(None)),
            result => result.map(Some).map_err(Errno::from),
        }
    }

    fn noted(&mut self, result: Result<Option<usize>, Errno>) -> Result<Option<usize>, Errno> {
        if matches!(result, Ok(None)) {
            self.ready = false;
        }
        result
    }

    /// The helper thread, started now where the kernel turned out to have no call that declines to wait.
    fn helper(&mut self) -> Result<&Helper, Errno> {
        if !self.has_helper() {
            let signal = self.surroundings.signal.clone();
            self.calls = Calls::Helper(Helper::start(self.way, Arc::clone(&self.fd), self.slot, signal)?);
            // A second direction on the same descriptor would lose its events too, but such a pipe (opened for
            // reading and writing) gets a helper for either direction at its first call.
            self.registration = None;
        }
        let Calls::Helper(helper) = &self.calls else { return Err(Errno::UNSUPPORTED) };
        Ok(helper)
    }
}

impl Drop for Half {
    /// Ends a call that a helper thread still sits in, where that is possible: a socket would stay open, and go on
    /// taking bytes, until the call returned.
    fn drop(&mut self) {
        let Calls::Helper(helper) = &self.calls else { return };
        if helper.is_busy() {
            let how = match self.way {
                Direction::Read => rustix::net::Shutdown::Read,
                Direction::Write => rustix::net::Shutdown::Write,
            };
            // Not a socket, or not connected any more: then there is nothing to end, or no way to.
            let _ = rustix::net::shutdown(&self.fd, how);
        }
    }
}
