//! TCP sockets as both real backends want them: how one comes to listen, and what is set on a connection.
//!
//! Owns no socket. The simulator has no part in this; it has nothing to set.

#![forbid(unsafe_code)]

use crate::backend::Errno;
use crate::limits;
use rustix::net::sockopt;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

/// A socket that listens at `address`, and where that is once the system has chosen a port. A port of which only old
/// connections are left can be had (SO_REUSEADDR), one at which somebody listens cannot.
pub fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Errno> {
    let listener = TcpListener::bind(address)?;
    // The standard library listens with a backlog of its own; asked again, the kernel takes the new one (listen(2)).
    rustix::net::listen(&listener, limits::LISTEN_BACKLOG)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Who is at the other end of a connection, if he still is.
pub fn peer(connection: impl AsFd) -> Option<SocketAddr> {
    rustix::net::getpeername(connection).ok().flatten().and_then(|address| SocketAddr::try_from(address).ok())
}

/// Sets on a new connection what the system does not by itself: frames are gathered before they are sent, so they never
/// wait for an acknowledgement, and a peer that is gone is noticed. A system that refuses keeps its own ways.
pub fn tune(connection: impl AsFd) {
    let connection = connection.as_fd();
    let _ = sockopt::set_tcp_nodelay(connection, true);
    let _ = sockopt::set_socket_keepalive(connection, true);
    #[cfg(not(target_os = "openbsd"))]
    {
        let _ = sockopt::set_tcp_keepidle(connection, limits::TCP_KEEPALIVE_IDLE);
        let _ = sockopt::set_tcp_keepintvl(connection, limits::TCP_KEEPALIVE_INTERVAL);
        let _ = sockopt::set_tcp_keepcnt(connection, limits::TCP_KEEPALIVE_PROBES);
    }
    #[cfg(target_os = "linux")]
    let _ = sockopt::set_tcp_user_timeout(connection, limits::TCP_USER_TIMEOUT_MILLIS);
}
