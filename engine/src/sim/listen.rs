//! Listening sockets and connections made to them.
//!
//! Every host has loopback addresses that only it sees, and one IPv4 and one IPv6 address that all see. Hosts run without
//! privileges: ports below 1024 are not theirs.

use super::faults::Fault;
use super::state::{Channel, State};
use crate::backend::{Errno, Op, OpKind, Output, SessionId, StreamId};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The first port anybody may listen on.
const FIRST_PORT: u16 = 1024;

/// A listening socket.
pub(super) struct Listener {
    host: usize,
    /// With this session it is closed.
    owner: Option<SessionId>,
    /// `None` once it is closed.
    address: Option<SocketAddr>,
    /// Accepts that wait for a connection.
    accepts: VecDeque<(u64, Op)>,
    /// Ends of connections that wait for an Accept.
    backlog: VecDeque<usize>,
}

impl Listener {
    /// True when a connection to `to` on `host` comes here.
    fn hears(&self, host: usize, to: SocketAddr) -> bool {
        let ours = |at: SocketAddr| at.port() == to.port() && includes(at.ip(), to.ip());
        self.host == host && self.address.is_some_and(ours)
    }

    /// True when this one would leave connections for a second one at `address` in doubt.
    fn clashes(&self, host: usize, address: SocketAddr) -> bool {
        let meets = |at: SocketAddr| at.port() == address.port() && includes(address.ip(), at.ip());
        self.hears(host, address) || (self.host == host && self.address.is_some_and(meets))
    }
}

/// Whoever listens at `at` hears what is for `ip`. `[::]` means IPv4 too, as on Linux.
fn includes(at: IpAddr, ip: IpAddr) -> bool {
    at == ip || (at.is_unspecified() && (at.is_ipv6() || ip.is_ipv4()))
}

/// See [`super::World::addresses`].
pub(super) fn addresses(host: usize) -> [IpAddr; 2] {
    let number = u32::try_from(host + 1).expect("few hosts");
    let v6 = Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(number));
    [Ipv4Addr::from_bits(0x0a00_0000 | number).into(), v6.into()]
}

impl State {
    pub(super) fn listen(&mut self, host: usize) -> (StreamId, SocketAddr) {
        let address = SocketAddr::new(addresses(host)[0], 0);
        self.bind(host, None, address).expect("any free port")
    }

    fn bind(
        &mut self,
        host: usize,
        owner: Option<SessionId>,
        wanted: SocketAddr,
    ) -> Result<(StreamId, SocketAddr), Errno> {
        let ip = wanted.ip();
        if !(ip.is_loopback() || ip.is_unspecified() || addresses(host).contains(&ip)) {
            return Err(rustix::io::Errno::ADDRNOTAVAIL.into());
        }
        let number = self.listeners.len();
        let is_free = |&port: &u16| {
            let address = SocketAddr::new(ip, port);
            !self.listeners.iter().any(|listener| listener.clashes(host, address))
        };
        // A port is not given to the next who wants any: late connections must find nobody.
        let first = FIRST_PORT + u16::try_from(number).expect("few listeners");
        let port = match wanted.port() {
            0 => (first..=u16::MAX).find(is_free),
            port if port < FIRST_PORT => return Err(rustix::io::Errno::ACCESS.into()),
            port => Some(port).filter(is_free),
        };
        let address = SocketAddr::new(ip, port.ok_or(rustix::io::Errno::ADDRINUSE)?);
        let (accepts, backlog) = (VecDeque::new(), VecDeque::new());
        self.listeners.push(Listener { host, owner, address: Some(address), accepts, backlog });
        Ok((self.hosts[host].streams.insert(Channel::Listener(number)), address))
    }

    /// Listens at once; only the news of it takes time.
    pub(super) fn start_listen(&mut self, host: usize, id: u64, op: Op, address: SocketAddr, fault: Option<Fault>) {
        if let Some(fault) = fault {
            self.hit(host, Some(&op), fault);
            return self.finish_soon(host, id, op, Err(fault.errno()));
        }
        let bound = self.bind(host, Some(op.token.session), address);
        let result = bound.map(|(stream, address)| Output::Listening { stream, address });
        self.finish_soon(host, id, op, result);
    }

    /// Connects at once; only the news of it takes time. So a connection may come that nobody waits for any more.
    pub(super) fn start_connect(&mut self, host: usize, id: u64, op: Op, address: SocketAddr, fault: Option<Fault>) {
        if let Some(fault) = fault {
            self.hit(host, Some(&op), fault);
            return match fault {
                Fault::Unanswered => self.leave_unanswered(host, id, op),
                fault => self.finish_soon(host, id, op, Err(fault.errno())),
            };
        }
        let ip = address.ip();
        let alone = ip.is_loopback() || ip.is_unspecified();
        let to = if alone { Some(host) } else { (0..self.hosts.len()).find(|&to| addresses(to).contains(&ip)) };
        let found = to.and_then(|to| self.listeners.iter().position(|listener| listener.hears(to, address)));
        let Some(number) = found else {
            return self.finish_soon(host, id, op, Err(Fault::Refused.errno()));
        };
        let capacity = self.draw_capacity().max(self.least_stream);
        let [near, far] = self.connect([Some(host), Some(self.listeners[number].host)], capacity);
        let stream = self.hosts[host].streams.insert(Channel::End(near));
        self.listeners[number].backlog.push_back(far);
        self.finish_soon(host, id, op, Ok(Output::Accepted { stream, peer: None }));
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
            self.finish_soon(host, id, op, Ok(Output::Accepted { stream, peer: None }));
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

    /// Closes what a session listens on.
    pub(super) fn close_listeners_of(&mut self, host: usize, session: SessionId) {
        for number in 0..self.listeners.len() {
            let Listener { host: at, owner, address, .. } = self.listeners[number];
            if at == host && owner == Some(session) && address.is_some() {
                self.cancel_on_listener(number, |_| true);
                self.close_listener(number);
                let keep = |channel: &Channel| !matches!(channel, Channel::Listener(other) if *other == number);
                self.hosts[host].streams.retain(keep);
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
