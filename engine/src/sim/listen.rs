//! Listening sockets and connections made to them.

use super::state::{Channel, State};
use crate::backend::{Errno, Op, OpKind, Output, StreamId};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

/// A listening socket.
pub(super) struct Listener {
    host: usize,
    /// `None` once it is closed.
    address: Option<SocketAddr>,
    /// Accepts that wait for a connection.
    accepts: VecDeque<(u64, Op)>,
    /// Ends of connections that wait for an Accept.
    backlog: VecDeque<usize>,
}

impl State {
    pub(super) fn listen(&mut self, host: usize) -> (StreamId, SocketAddr) {
        let number = self.listeners.len();
        let port = 1024 + u16::try_from(number).expect("few listeners");
        let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, host as u8), port));
        let (accepts, backlog) = (VecDeque::new(), VecDeque::new());
        self.listeners.push(Listener { host, address: Some(address), accepts, backlog });
        (self.hosts[host].streams.insert(Channel::Listener(number)), address)
    }

    /// Connects at once; only the news of it takes time. So a connection may come that nobody waits for any more.
    pub(super) fn start_connect(&mut self, host: usize, id: u64, op: Op, address: SocketAddr) {
        let Some(number) = self.listeners.iter().position(|listener| listener.address == Some(address)) else {
            let refused = Errno::from(rustix::io::Errno::CONNREFUSED);
            return self.finish_soon(host, id, op, Err(refused));
        };
        let capacity = self.draw_capacity();
        let [near, far] = self.connect([Some(host), Some(self.listeners[number].host)], capacity);
        let stream = self.hosts[host].streams.insert(Channel::End(near));
        self.listeners[number].backlog.push_back(far);
        self.finish_soon(host, id, op, Ok(Output::Accepted { stream }));
        self.accept(number);
    }

    pub(super) fn start_on_listener(&mut self, number: usize, id: u64, op: Op) {
        let host = self.listeners[number].host;
        match op.kind {
            OpKind::Accept { .. } => {
                self.listeners[number].accepts.push_back((id, op));
                self.accept(number);
            }
            OpKind::CloseStream { stream } => {
                self.cancel_on_listener(number, |_| true);
                self.close_listener(number);
                let closed = self.hosts[host].streams.remove(stream).map(|_| Output::Done);
                self.finish_soon(host, id, op, closed);
            }
            _ => self.finish_soon(host, id, op, Err(Errno::INVALID)),
        }
    }

    fn accept(&mut self, number: usize) {
        let Listener { host, accepts, backlog, .. } = &mut self.listeners[number];
        let host = *host;
        if !accepts.is_empty()
            && let Some(end) = backlog.pop_front()
            && let Some((id, op)) = accepts.pop_front()
        {
            let stream = self.hosts[host].streams.insert(Channel::End(end));
            self.finish_soon(host, id, op, Ok(Output::Accepted { stream }));
        }
    }

    pub(super) fn cancel_on_listener(&mut self, number: usize, covers: impl Fn(&Op) -> bool) {
        let host = self.listeners[number].host;
        for (id, op) in std::mem::take(&mut self.listeners[number].accepts) {
            if covers(&op) {
                self.finish_soon(host, id, op, Err(Errno::CANCELLED));
            } else {
                self.listeners[number].accepts.push_back((id, op));
            }
        }
    }

    /// Nobody can connect any more, and who was waiting to be accepted is sent away.
    pub(super) fn close_listener(&mut self, number: usize) {
        self.listeners[number].address = None;
        self.listeners[number].accepts.clear();
        for end in std::mem::take(&mut self.listeners[number].backlog) {
            drop(self.close_end(end, true));
        }
    }
}
