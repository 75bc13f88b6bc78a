//! Over Unix domain sockets with abstract addresses.

use super::{Met, Taken};
use crate::exit::Exit;
use crate::signals;
use crate::threads;
use haul_engine::backend::Waker;
use haul_engine::limits::MAX_SESSIONS;
use rustix::event::{PollFd, PollFlags};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// How long the other end may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a session may take to end once its client has gone.
const GRACE: Duration = Duration::from_secs(5);
/// Says that somebody is there. What was sent to a process that is stopped would be kept open by that.
const READY: u8 = b'r';
/// Says that a stream has been taken.
const TAKEN: u8 = b't';

/// Where the logins of one client come together.
pub(crate) struct Gathering {
    listener: Option<UnixListener>,
    sender: SyncSender<Handed>,
    handed: Receiver<Handed>,
}

/// A stream that another process was given by its sshd.
struct Handed {
    /// To that process, which stays as long as its session does.
    socket: UnixStream,
    stdin: OwnedFd,
    stdout: OwnedFd,
}

/// Comes to where others of this name are, or lets them come here.
pub(crate) fn meet(name: &str, stdin: &OwnedFd, stdout: &OwnedFd) -> Met {
    let name = format!("haul-{name}");
    let Ok(address) = SocketAddr::from_abstract_name(&name) else { return Met::Nobody };
    match UnixListener::bind_addr(&address) {
        Ok(listener) => {
            let (sender, handed) = sync_channel(MAX_SESSIONS);
            Met::Here(Gathering { listener: Some(listener), sender, handed })
        }
        Err(_) => hand_over(name.as_bytes(), stdin, stdout).map_or(Met::Nobody, Met::Elsewhere),
    }
}

/// How the session ended; `None` when the streams are still ours.
fn hand_over(name: &[u8], stdin: &OwnedFd, stdout: &OwnedFd) -> Option<Exit> {
    let socket = connect(name).filter(is_same)?;
    let same = socket.try_clone().ok()?;
    let waker = Waker(Arc::new(move || _ = same.shutdown(Shutdown::Both)));
    signals::wake_on_stop(&waker);
    let ready = hear(&socket, PATIENCE) == Some(READY);
    if signals::stopped() {
        return Some(Exit::Interrupted);
    }
    let fds = [stdin.as_fd(), stdout.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    if !ready || rustix::net::sendmsg(&socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).is_err() {
        return None;
    }
    if hear(&socket, PATIENCE) != Some(TAKEN) {
        // It must not be taken any more. If it just was, two would read it: better none.
        let _ = socket.shutdown(Shutdown::Both);
        let taken = hear(&socket, PATIENCE).is_some();
        return (taken || signals::stopped()).then_some(if taken { Exit::Stream } else { Exit::Interrupted });
    }
    Some(wait(&socket, stdin, stdout))
}

/// Without waiting for whoever lets nobody in.
fn connect(name: &[u8]) -> Option<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name).ok()?).ok()?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false).ok()?;
    Some(socket)
}

/// The next byte, if one comes in that time.
fn hear(mut socket: &UnixStream, patience: Duration) -> Option<u8> {
    socket.set_read_timeout(Some(patience)).ok()?;
    let mut told = [0];
    socket.read_exact(&mut told).ok().map(|()| told[0])
}

/// Until the session has ended, or this process is told to, or nobody is left whose session it could be: the process that
/// has it may be stopped.
fn wait(socket: &UnixStream, stdin: &OwnedFd, stdout: &OwnedFd) -> Exit {
    let gone = |fd| PollFd::new(fd, PollFlags::empty());
    let mut fds = [PollFd::new(socket, PollFlags::IN), gone(stdin), gone(stdout)];
    let _ = retry_on_intr(|| rustix::event::poll(&mut fds, None));
    match hear(socket, GRACE) {
        _ if signals::stopped() => Exit::Interrupted,
        Some(code) if code == Exit::Success as u8 => Exit::Success,
        // As a server says whose session ended badly.
        Some(_) => Exit::Usage,
        None => Exit::Stream,
    }
}

/// True when the process at the other end is the same user's and sees the same files by the same names.
fn is_same(socket: &UnixStream) -> bool {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(socket) else { return false };
    let seen = |process: String, what: &str| {
        let dir = std::fs::metadata(format!("/proc/{process}/{what}/")).ok();
        dir.map(|dir| (dir.st_dev(), dir.st_ino()))
    };
    let same = |what| {
        let theirs = seen(peer.pid.as_raw_nonzero().to_string(), what);
        theirs.is_some() && theirs == seen("self".to_string(), what)
    };
    peer.uid == rustix::process::geteuid() && same("root") && same("cwd")
}

impl Gathering {
    /// Lets them come; `waker` is told when one has.
    pub(crate) fn open(&mut self, waker: &Waker) {
        let Some(listener) = self.listener.take() else { return };
        let (sender, waker) = (self.sender.clone(), waker.clone());
        let gather = move || {
            // What cannot be accepted serves alone, and so does whoever comes after that.
            for socket in listener.incoming().map_while(Result::ok).filter(is_same) {
                if let Some(handed) = receive(socket) {
                    // With no room it is dropped, which its process sees.
                    let _ = sender.try_send(handed);
                    waker.wake();
                }
            }
        };
        // With it goes the listener, and whoever comes serves alone.
        threads::spawn("gather", gather, |_| {});
    }

    /// One that has come. While there is no `room` it serves alone, which it sees at once.
    pub(crate) fn take(&self, room: bool) -> Option<Taken> {
        loop {
            let taken = Some(self.handed.try_recv().ok()?).filter(|_| room).and_then(Handed::take);
            if taken.is_some() {
                return taken;
            }
        }
    }
}

fn receive(mut socket: UnixStream) -> Option<Handed> {
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    socket.set_write_timeout(Some(PATIENCE)).ok()?;
    socket.write_all(&[READY]).ok()?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let [stdin, stdout] = fds.try_into().ok()?;
    Some(Handed { socket, stdin, stdout })
}

impl Handed {
    /// `None` when its process has gone, or serves by itself.
    fn take(self) -> Option<Taken> {
        let Handed { mut socket, stdin, stdout } = self;
        socket.write_all(&[TAKEN]).ok()?;
        let tell = move |exit| _ = socket.write_all(&[exit as u8]);
        Some(Taken { stdin, stdout, tell: Box::new(tell) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::BorrowedFd;

    /// What `receive` makes of these descriptors.
    fn received(fds: &[BorrowedFd<'_>]) -> Option<Handed> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        rustix::net::sendmsg(&theirs, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        receive(ours)
    }

    #[test]
    fn only_two_descriptors_are_a_stream() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_fd();
        assert!(received(&[fd, fd]).is_some());
        for fds in [&[][..], &[fd], &[fd, fd, fd]] {
            assert!(received(fds).is_none(), "{}", fds.len());
        }
    }

    #[test]
    fn who_has_gone_is_not_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(receive(ours).is_none());
    }

    #[test]
    fn a_stream_whose_process_serves_by_itself_is_not_taken() {
        let (socket, theirs) = UnixStream::pair().unwrap();
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        theirs.shutdown(Shutdown::Both).unwrap();
        assert!(Handed { socket, stdin: null(), stdout: null() }.take().is_none());
    }
}
