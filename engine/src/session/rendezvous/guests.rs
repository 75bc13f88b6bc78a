//! Who waits to prove himself, and who gives way where there are too many.

use super::Meeting;
use crate::limits::{MAX_GUESTS, MAX_SESSIONS, ORIGIN_BYTES};
use crate::session::server::Wanted;
use std::net::{IpAddr, SocketAddr};

/// A guest, as its meeting sees it.
pub(super) struct Waiting {
    pub(super) number: u64,
    from: Option<Origin>,
    /// He waits for a place.
    pub(super) proved: bool,
}

/// Where strangers come from who count as one: an address of IPv4, a network of IPv6.
pub(super) type Origin = [u8; ORIGIN_BYTES];

pub(super) fn origin(peer: SocketAddr) -> Origin {
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

    /// Whether somebody who is served and came from there is to give way to one who waits; `further` where he is not the first
    /// connection of his run, so that others can do what he does.
    ///
    /// Places are shared by addresses as far as that costs no copy: a further connection gives way to whoever has two places
    /// fewer where he comes from. The only connection of a copy gives way to somebody who has none where more than half are
    /// in use from its address and it makes little of it.
    pub(super) fn wanted(&self, from: Option<Origin>, further: bool) -> Wanted {
        if !self.is_wanted() {
            return Wanted::No;
        }
        let places = |of: Option<Origin>| self.origins.iter().filter(|&&origin| origin == of).count();
        let ours = places(from);
        let least = self.guests.iter().filter(|guest| guest.proved).map(|guest| places(guest.from)).min();
        match least {
            Some(theirs) if further && ours >= theirs + 2 => Wanted::FromAny,
            Some(0) if ours > MAX_SESSIONS / 2 => Wanted::FromSlow,
            _ => Wanted::FromIdle,
        }
    }

    /// One who was served has gone.
    pub(super) fn leave_place(&mut self, from: Option<Origin>) {
        self.serving -= 1;
        if let Some(at) = self.origins.iter().position(|&origin| origin == from) {
            self.origins.swap_remove(at);
        }
    }

    pub(super) fn leave(&mut self, number: u64) {
        self.guests.retain(|guest| guest.number != number);
    }
}
