//! Who waits to prove himself, and who gives way where there are too many.

use super::Meeting;
use crate::limits::{MAX_GUESTS, ORIGIN_BYTES};
use std::net::{IpAddr, SocketAddr};

/// A guest, as its meeting sees it.
pub(super) struct Waiting {
    pub(super) number: u64,
    from: Option<Origin>,
    pub(super) proved: bool,
}

/// Where strangers come from who count as one: an address of IPv4, a network of IPv6.
type Origin = [u8; ORIGIN_BYTES];

fn origin(peer: SocketAddr) -> Origin {
    let mut origin = [0; ORIGIN_BYTES];
    match peer.ip().to_canonical() {
        // No network of IPv6 begins so that is in use.
        IpAddr::V4(ip) => origin[ORIGIN_BYTES - 4..].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => origin.copy_from_slice(&ip.octets()[..ORIGIN_BYTES]),
    }
    origin
}

impl Meeting {
    /// Counts one more guest, and lets another one give way where there are too many. Returns his number.
    pub(super) fn enter(&mut self, peer: Option<SocketAddr>) -> u64 {
        let from = peer.map(origin);
        if self.guests.len() >= MAX_GUESTS {
            let number_from = |from: Option<Origin>| self.guests.iter().filter(|other| other.from == from).count();
            let unproved = self.guests.iter().enumerate().filter(|(_, guest)| !guest.proved);
            // The first of those who share the largest number; the newcomer counts with those from where he comes.
            let oldest = unproved.max_by_key(|(at, guest)| {
                (number_from(guest.from) + usize::from(guest.from == from), std::cmp::Reverse(*at))
            });
            if let Some((at, _)) = oldest {
                self.guests.remove(at);
                self.leaving += 1;
            }
        }
        let number = self.next;
        self.next += 1;
        self.guests.push(Waiting { number, from, proved: false });
        number
    }

    /// True while this guest need not give way.
    pub(super) fn has_guest(&self, number: u64) -> bool {
        self.guests.iter().any(|guest| guest.number == number)
    }

    pub(super) fn leave(&mut self, number: u64) {
        self.guests.retain(|guest| guest.number != number);
    }
}
