//! How streams come into being over TCP: a listener's accepts, and a connection that is being made.

use crate::half::{Registration, Surroundings};
use haul_engine::backend::{Cancel, Completion, Errno, Op, OpKind, Output, SessionId, StreamId, Token};
use haul_engine::tcp;
use mio::Interest;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// A listening socket and the Accepts that wait for it.
pub(crate) struct Listener {
    /// With this session it is closed.
    owner: Option<SessionId>,
    // Before the socket: it is taken out of the poller before it is closed.
    _registration: Registration,
    listener: TcpListener,
    waiting: VecDeque<Token>,
    ready: bool,
}

impl Listener {
    pub(crate) fn new(
        surroundings: &Rc<Surroundings>,
        listener: TcpListener,
        owner: Option<SessionId>,
        slot: u32,
    ) -> Result<Listener, Errno> {
        listener.set_nonblocking(true)?;
        let registration = Registration::new(surroundings, listener.as_fd(), slot, Interest::READABLE)?;
        Ok(Listener { owner, _registration: registration, listener, waiting: VecDeque::new(), ready: true })
    }

    /// True when this cancel ends the listener itself.
    pub(crate) fn ends_with(&self, cancel: Cancel) -> bool {
        self.owner.is_some_and(|owner| cancel == Cancel::Session(owner))
    }

    pub(crate) fn push(&mut self, token: Token) {
        self.waiting.push_back(token);
    }

    pub(crate) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// True when a step would do something.
    pub(crate) fn can_step(&self) -> bool {
        self.ready && !self.waiting.is_empty()
    }

    /// One connection for the first Accept, if there is one now. An error (too many open files, say) is that Accept's.
    pub(crate) fn accept(&mut self) -> Option<(Token, Result<TcpStream, Errno>)> {
        while self.can_step() {
            match self.listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready = false,
                // The peer was gone before we came; the next in the queue may be there.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => return self.waiting.pop_front().map(|token| (token, Err(error.into()))),
                Ok((socket, _)) => {
                    tcp::tune(&socket);
                    return self.waiting.pop_front().map(|token| (token, Ok(socket)));
                }
            }
        }
        None
    }

    pub(crate) fn cancel(&mut self, id: StreamId, cancel: Cancel, completions: &mut Vec<Completion>) {
        self.waiting.retain(|&token| {
            let covered = cancel.covers(token);
            if covered {
                completions.push(cancelled(id, token));
            }
            !covered
        });
    }

    pub(crate) fn end_all(&mut self, id: StreamId, completions: &mut Vec<Completion>) {
        completions.extend(self.waiting.drain(..).map(|token| cancelled(id, token)));
    }
}

fn cancelled(listener: StreamId, token: Token) -> Completion {
    Completion { op: Op { token, kind: OpKind::Accept { listener } }, result: Err(Errno::CANCELLED) }
}

/// What became of a connection.
pub(crate) enum Progress {
    /// Nothing yet.
    Waiting,
    /// It is there; the socket is non-blocking.
    Connected(OwnedFd, Registration),
    /// It will not be.
    Failed(Errno),
}

/// A Connect under way.
pub(crate) struct Connecting {
    token: Token,
    address: SocketAddr,
    // Before the socket: it is taken out of the poller before it is closed. `None` once connected.
    registration: Option<Registration>,
    socket: Option<TcpStream>,
    ready: bool,
}

impl Connecting {
    pub(crate) fn new(
        surroundings: &Rc<Surroundings>,
        token: Token,
        address: SocketAddr,
        slot: u32,
    ) -> Result<Connecting, Errno> {
        let socket = TcpStream::from(mio::net::TcpStream::connect(address)?);
        let both = Interest::READABLE | Interest::WRITABLE;
        let registration = Some(Registration::new(surroundings, socket.as_fd(), slot, both)?);
        Ok(Connecting { token, address, registration, socket: Some(socket), ready: false })
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    pub(crate) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// Looks whether the connection is there, if an event came.
    pub(crate) fn step(&mut self) -> Progress {
        if !std::mem::take(&mut self.ready) {
            return Progress::Waiting;
        }
        let Some(socket) = self.socket.take() else { return Progress::Waiting };
        match socket.take_error() {
            Err(error) | Ok(Some(error)) => return Progress::Failed(error.into()),
            Ok(None) => {}
        }
        // An event without an error may still be one that came before the connection did.
        if socket.peer_addr().is_err() {
            self.socket = Some(socket);
            return Progress::Waiting;
        }
        match self.registration.take() {
            Some(registration) => {
                tcp::tune(&socket);
                Progress::Connected(socket.into(), registration)
            }
            None => Progress::Waiting,
        }
    }

    pub(crate) fn ended(&self, result: Result<Output, Errno>) -> Completion {
        Completion { op: Op { token: self.token, kind: OpKind::Connect { address: self.address } }, result }
    }
}
