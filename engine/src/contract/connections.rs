//! Listen, Accept and Connect, as [`crate::backend::OpKind`] has them, and rule 7 for streams that listen.

use super::cancels::OTHER;
use super::{Driver, Rig, SESSION, assert_same, pattern};
use crate::backend::{Cancel, Errno, OpKind, Output, SessionId, StreamId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Any port of this machine alone.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const LOOPBACK_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0);
/// Kept for documents (RFC 5737): no machine has it.
const NOT_OURS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 0);

const IN_USE: Errno = Errno(rustix::io::Errno::ADDRINUSE.raw_os_error());
const NOT_AVAILABLE: Errno = Errno(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error());
const NO_SUCH_FAMILY: Errno = Errno(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
const REFUSED: Errno = Errno(rustix::io::Errno::CONNREFUSED.raw_os_error());

impl<R: Rig> Driver<R> {
    fn listen_for(&mut self, session: SessionId, address: SocketAddr) -> Result<(StreamId, SocketAddr), Errno> {
        let part = self.submit_for(session, OpKind::Listen { address });
        match self.wait(part).result? {
            Output::Listening { stream, address } => Ok((stream, address)),
            other => panic!("Listen brought {other:?}"),
        }
    }

    fn listen(&mut self, address: SocketAddr) -> Result<(StreamId, SocketAddr), Errno> {
        self.listen_for(SESSION, address)
    }

    /// A connection to `address`, where `listener` listens, carries bytes both ways.
    fn assert_connects(&mut self, listener: StreamId, address: SocketAddr) {
        let parts = [self.submit(OpKind::Accept { listener }), self.submit(OpKind::Connect { address })];
        let [near, far] = parts.map(|part| match self.wait(part).result {
            Ok(Output::Accepted { stream, .. }) => stream,
            other => panic!("{other:?}"),
        });
        let expected = [b"head".to_vec(), pattern(1, 40_000)].concat();
        for (from, to) in [(near, far), (far, near)] {
            let sent = self.send(from, b"head", &pattern(1, 40_000));
            let recv = self.recv(to, expected.len());
            assert_same(&self.received(recv).unwrap(), &expected, "connection");
            assert!(self.wait(sent).result.is_ok());
        }
        for stream in [near, far] {
            assert!(self.run(OpKind::CloseStream { stream }).is_ok());
        }
    }

    /// Nothing can be done with a listener that is closed, nor with a new one in its slot by the old id.
    fn assert_stale(&mut self, listener: StreamId) {
        assert_eq!(self.run(OpKind::Accept { listener }).err(), Some(Errno::STALE_ID));
        assert_eq!(self.run(OpKind::CloseStream { stream: listener }).err(), Some(Errno::STALE_ID));
    }
}

/// Accept and Connect: bytes pass, a closed port refuses, a cancelled Accept leaves the listener alive.
pub fn connections_are_made_accepted_and_refused<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let Some((listener, address)) = driver.rig.listener() else { return };
    let cancelled = driver.submit(OpKind::Accept { listener });
    driver.turns(2);
    driver.cancel_one(cancelled);
    assert_eq!(driver.wait(cancelled).result.err(), Some(Errno::CANCELLED));
    for _ in 0..2 {
        driver.assert_connects(listener, address);
    }
    assert!(driver.run(OpKind::CloseStream { stream: listener }).is_ok());
    driver.assert_stale(listener);
    assert!(driver.run(OpKind::Connect { address }).is_err(), "nobody listens");
    driver.finish();
}

/// Listen tells the port it took, by IPv4 and, where the machine has it, by IPv6.
pub fn an_address_listened_on_takes_connections<R: Rig>() {
    let mut driver = Driver::<R>::new();
    for wanted in [LOOPBACK, LOOPBACK_V6] {
        let (listener, address) = match driver.listen(wanted) {
            Err(NOT_AVAILABLE | NO_SUCH_FAMILY) if wanted.is_ipv6() => continue,
            listening => listening.expect("a free port"),
        };
        assert_eq!(address.ip(), wanted.ip());
        assert_ne!(address.port(), 0);
        for _ in 0..2 {
            driver.assert_connects(listener, address);
        }
        let send = driver.send(listener, b"to nobody", b"");
        assert_eq!(driver.wait(send).result.err(), Some(Errno::INVALID));
        assert!(driver.run(OpKind::CloseStream { stream: listener }).is_ok());
    }
    driver.finish();
}

/// Listen ends with the errno of what is in the way.
pub fn an_address_that_cannot_be_had_is_refused<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let (listener, address) = driver.listen(LOOPBACK).expect("a free port");
    assert_eq!(driver.listen(address).err(), Some(IN_USE));
    assert_eq!(driver.listen(NOT_OURS).err(), Some(NOT_AVAILABLE));
    driver.assert_connects(listener, address);
    driver.finish();
}

/// Rule 7 for CloseStream of a listener.
pub fn a_closed_listener_frees_its_port<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let (mut listener, address) = driver.listen(LOOPBACK).expect("a free port");
    for _ in 0..3 {
        // Connections that were accepted here must not keep the port.
        driver.assert_connects(listener, address);
        let waiting = [driver.submit(OpKind::Accept { listener }), driver.submit(OpKind::Accept { listener })];
        driver.turns(2);
        assert!(driver.run(OpKind::CloseStream { stream: listener }).is_ok());
        for part in waiting {
            assert_eq!(driver.wait(part).result.err(), Some(Errno::CANCELLED));
        }
        assert_eq!(driver.run(OpKind::Connect { address }).err(), Some(REFUSED));
        let (again, same) = driver.listen(address).expect("the port that was freed");
        assert_eq!(same, address);
        driver.assert_stale(listener);
        listener = again;
    }
    driver.finish();
}

/// Rule 7 for [`Cancel::Session`]: its listeners are closed, also one that comes with the cancel; those of others are not,
/// nor are connections.
pub fn a_sessions_end_frees_the_ports_it_listens_on<R: Rig>() {
    let mut driver = Driver::<R>::new();
    let (kept, kept_address) = driver.listen(LOOPBACK).expect("a free port");
    let (listener, address) = driver.listen_for(OTHER, LOOPBACK).expect("a free port");
    let parts =
        [driver.submit_for(OTHER, OpKind::Accept { listener }), driver.submit_for(OTHER, OpKind::Connect { address })];
    let [near, far] = parts.map(|part| match driver.wait(part).result {
        Ok(Output::Accepted { stream, .. }) => stream,
        other => panic!("{other:?}"),
    });
    let waiting = [driver.submit_for(OTHER, OpKind::Accept { listener }), driver.submit(OpKind::Accept { listener })];
    driver.turns(2);
    let late = driver.submit_for(OTHER, OpKind::Listen { address: LOOPBACK });
    driver.cancel(Cancel::Session(OTHER));

    for part in waiting {
        assert_eq!(driver.wait(part).result.err(), Some(Errno::CANCELLED));
    }
    driver.assert_stale(listener);
    if let Ok(Output::Listening { stream, .. }) = driver.wait(late).result {
        driver.assert_stale(stream);
    }
    assert_eq!(driver.run(OpKind::Connect { address }).err(), Some(REFUSED));
    let (again, _) = driver.listen(address).expect("the port that was freed");
    driver.assert_stale(listener);
    driver.assert_connects(again, address);
    driver.assert_connects(kept, kept_address);
    driver.send(near, b"alive", b"");
    let part = driver.recv(far, 5);
    assert_eq!(driver.received(part).unwrap(), b"alive");
    driver.finish();
}
