//! Where a direct connection may lead, and what is said of an address that is not reached.

use crate::backend::Errno;
use std::net::SocketAddr;

/// Where content may go, whatever the server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reached {
    /// Addresses of the machine that ssh reached, as far as this end knows them; those of one link with their zone. Ports
    /// mean nothing.
    pub addresses: Vec<SocketAddr>,
    /// What stands behind the address where another one is refused.
    pub otherwise: String,
}

impl Reached {
    /// Where to connect if the server names this address. Its zone, if any, is the other end's.
    pub(super) fn admit(&self, named: SocketAddr) -> Result<SocketAddr, String> {
        let same = |known: &&SocketAddr| known.ip().to_canonical() == named.ip().to_canonical();
        let Some(known) = self.addresses.iter().find(same) else {
            return Err(format!("the server names {named}, {}", self.otherwise));
        };
        let mut address = *known;
        address.set_port(named.port());
        match address {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
                Err(format!("the server names {named}, which is of one link, and ssh does not say of which"))
            }
            address => Ok(address),
        }
    }
}

/// The address and port that a server names: a zone in it is of that machine and means nothing here.
pub(super) fn parse_address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    match text.split_once('%').and_then(|(address, rest)| Some((address, rest.split_once(']')?.1))) {
        Some((address, port)) => format!("{address}]{port}").parse().ok(),
        None => text.parse().ok(),
    }
}

/// What is said where nothing has come from there.
pub(super) fn unanswered(address: SocketAddr, ports: Option<(u16, u16)>, is_daemon: bool) -> String {
    if is_daemon {
        let open = to_open(ports);
        return format!("{address} does not answer: its port may be filtered, or too many wait there. {open}");
    }
    format!("{address} does not answer: is its port filtered? {}", to_open(ports))
}

/// Why no connection came about. Nothing on the way, and nobody at its other end, can do anything for want of something here.
pub(super) fn unreached(address: SocketAddr, errno: Errno, ports: Option<(u16, u16)>, daemon: bool) -> String {
    const HERE: [Errno; 5] = [
        Errno::TOO_MANY_FILES,
        Errno::TOO_MANY_FILES_ALL,
        Errno::NO_MEMORY,
        Errno(rustix::io::Errno::NOBUFS.raw_os_error()),
        Errno(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error()),
    ];
    if HERE.contains(&errno) {
        return format!("{address}: {errno} (at this end)");
    }
    // The machine is there, and says that nobody listens.
    let advice = match daemon && errno == Errno::REFUSED {
        true => "Is `haul serve` running there?".to_string(),
        false => to_open(ports),
    };
    format!("{address}: {errno}. {advice}")
}

/// What can be done about a port that cannot be reached.
fn to_open(ports: Option<(u16, u16)>) -> String {
    match ports {
        None => {
            "That port is another one each time: open some TCP ports there and name them with --port-range".to_string()
        }
        Some((first, last)) if first == last => format!("Open TCP port {first} there"),
        Some((first, last)) => format!("Open TCP ports {first}-{last} there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_names_a_port_and_this_end_knows_the_rest_of_the_address() {
        let reached = |known: &[&str]| Reached {
            addresses: known.iter().map(|text| text.parse().unwrap()).collect(),
            otherwise: "which is another one".to_string(),
        };
        let table: [(&[&str], &str, Result<&str, &str>); 8] = [
            (&["192.0.2.1:0"], "192.0.2.1:5000", Ok("192.0.2.1:5000")),
            (&["192.0.2.1:0"], "[::ffff:192.0.2.1]:5000", Ok("192.0.2.1:5000")),
            (&["192.0.2.1:0"], "192.0.2.2:5000", Err("192.0.2.2:5000, which is another one")),
            (&[], "192.0.2.1:5000", Err("192.0.2.1:5000, which is another one")),
            (&["192.0.2.1:0", "[fe80::1%7]:0"], "[fe80::1]:5000", Ok("[fe80::1%7]:5000")),
            // The zone of that machine is none of this one.
            (&["[fe80::1%7]:0"], "[fe80::1%2]:5000", Ok("[fe80::1%7]:5000")),
            (&["[fe80::1%7]:0"], "[fe80::1%eth0]:5000", Ok("[fe80::1%7]:5000")),
            (&["[fe80::1]:0"], "[fe80::1]:5000", Err("of one link, and ssh does not say of which")),
        ];
        for (known, named, expected) in table {
            let admitted = reached(known).admit(parse_address(named.as_bytes()).unwrap());
            match (admitted, expected) {
                (Ok(address), Ok(expected)) => assert_eq!(address, expected.parse().unwrap(), "{named}"),
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                (admitted, _) => panic!("{named}: {admitted:?}"),
            }
        }
        for text in ["[fe80::1%eth0:5000", "[fe80::1%eth0]", "%", "", "[%x]:1"] {
            assert_eq!(parse_address(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_missing_here_is_not_blamed_on_a_port_there() {
        let address = "192.0.2.1:7420".parse().unwrap();
        for errno in [rustix::io::Errno::ADDRNOTAVAIL, rustix::io::Errno::MFILE, rustix::io::Errno::NOBUFS] {
            for ports in [None, Some((5000, 5100))] {
                let why = unreached(address, errno.into(), ports, false);
                assert!(why.contains("at this end") && !why.contains("port") && !why.contains("Open"), "{why}");
            }
        }
        let why = unreached(address, rustix::io::Errno::CONNREFUSED.into(), Some((5000, 5100)), false);
        assert!(why.ends_with("Open TCP ports 5000-5100 there"), "{why}");
    }
}
