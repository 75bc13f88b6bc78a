//! Streams coming and going: Listen, Accept, Connect, CloseStream.

use super::Uring;
use super::files::is_again;
use super::inflight::{Connecting, Flight, Work};
use super::slots::{Kind, Stream};
use super::sys::Call;
use crate::backend::{Completion, Errno, Op, OpKind, Output, SessionId, StreamId, Token};
use crate::tcp;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

impl Uring {
    /// Ends at once: binding a socket waits for nothing.
    pub(super) fn start_listen(&mut self, token: Token, address: SocketAddr, out: &mut Vec<Completion>) {
        let result = tcp::listen(address).and_then(|(listener, address)| {
            let stream = self.streams.add(Stream::listener(listener.into(), Some(token.session))?);
            Ok(Output::Listening { stream, address })
        });
        out.push(Completion { op: Op { token, kind: OpKind::Listen { address } }, result });
    }

    pub(super) fn start_accept(&mut self, token: Token, listener: StreamId, out: &mut Vec<Completion>) {
        let op = Op { token, kind: OpKind::Accept { listener } };
        match self.streams.open(listener) {
            Ok(stream) if stream.source == Kind::Listener => self.launch_accept(listener, op),
            Ok(_) => out.push(Completion { op, result: Err(Errno::INVALID) }),
            Err(errno) => out.push(Completion { op, result: Err(errno) }),
        }
    }

    fn launch_accept(&mut self, listener: StreamId, op: Op) {
        let Some(stream) = self.streams.slot(listener) else { return };
        stream.busy += 1;
        self.ring.start(Flight::new(Some(listener), Work::Accept(op)), &Call::Accept(stream.read_fd()));
    }

    pub(super) fn on_accept(
        &mut self,
        op: Op,
        cancelled: bool,
        result: Result<usize, Errno>,
        accepted: Option<OwnedFd>,
        out: &mut Vec<Completion>,
    ) {
        let OpKind::Accept { listener } = op.kind else { return };
        let closing = self.streams.slot(listener).is_none_or(|stream| stream.closing);
        let result = match (accepted, result) {
            (Some(socket), _) => {
                let peer = tcp::peer(&socket);
                self.adopt(socket, peer)
            }
            (None, _) if cancelled || closing => Err(Errno::CANCELLED),
            (None, Err(errno)) if is_again(errno) => return self.launch_accept(listener, op),
            (None, result) => Err(result.err().unwrap_or(Errno::IO)),
        };
        out.push(Completion { op, result });
    }

    pub(super) fn start_connect(&mut self, token: Token, address: SocketAddr, out: &mut Vec<Completion>) {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        match socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None) {
            Ok(socket) => {
                let connecting = Connecting { token, address, raw: Box::new(address.as_any()), socket };
                self.ring.start(Flight::new(None, Work::Connect(connecting)), &Call::Connect);
            }
            Err(errno) => {
                let op = Op { token, kind: OpKind::Connect { address } };
                out.push(Completion { op, result: Err(errno.into()) });
            }
        }
    }

    pub(super) fn on_connect(
        &mut self,
        connecting: Connecting,
        cancelled: bool,
        result: Result<usize, Errno>,
        out: &mut Vec<Completion>,
    ) {
        let op = connecting.op();
        let result = match result {
            Ok(_) => self.adopt(connecting.socket, None),
            Err(_) if cancelled => Err(Errno::CANCELLED),
            // An interrupted connect goes on by itself and cannot be asked again; a fresh attempt is the caller's choice.
            Err(errno) => Err(errno),
        };
        out.push(Completion { op, result });
    }

    fn adopt(&mut self, socket: OwnedFd, peer: Option<SocketAddr>) -> Result<Output, Errno> {
        tcp::tune(&socket);
        let stream = self.streams.add(Stream::new(socket, None, true)?);
        Ok(Output::Accepted { stream, peer })
    }

    pub(super) fn start_close(&mut self, token: Token, id: StreamId, out: &mut Vec<Completion>) {
        let op = Op { token, kind: OpKind::CloseStream { stream: id } };
        match self.streams.open(id) {
            Ok(stream) => stream.closer = Some(op),
            Err(errno) => return out.push(Completion { op, result: Err(errno) }),
        }
        self.begin_close(id, out);
    }

    /// The session has ended, and nobody else knows what it listened on.
    pub(super) fn close_listeners(&mut self, session: SessionId, out: &mut Vec<Completion>) {
        let owned = self.streams.iter_mut().filter(|(_, stream)| stream.owner == Some(session));
        let owned: Vec<StreamId> = owned.map(|(id, _)| id).collect();
        for id in owned {
            self.begin_close(id, out);
        }
    }

    /// Nothing where the stream is being closed already.
    fn begin_close(&mut self, id: StreamId, out: &mut Vec<Completion>) {
        let Ok(stream) = self.streams.open(id) else { return };
        stream.closing = true;
        stream.queue.fail(Errno::CANCELLED);
        stream.queue.end_all(Errno::CANCELLED, out);
        stream.read_failed.get_or_insert(Errno::CANCELLED);
        out.extend(stream.receives.drain(..).map(|waiting| waiting.end(Err(Errno::CANCELLED))));
        if stream.busy > 0 {
            self.ring.cancel_stream(id);
        }
        self.close_if_idle(id, out);
    }
}
