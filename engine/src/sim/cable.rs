//! A slow cable between hosts: all that one host sends shares its rate, and a queue in front of it that drops what finds it full.

use crate::backend::Time;
use crate::limits::SECOND;
use std::collections::BTreeMap;

/// See the module head. Each direction has its own.
pub(super) struct Cable {
    bytes_per_second: u64,
    /// Nanoseconds that the queue lasts for.
    queue: u64,
    /// When all that a host has put into its queue will have left it.
    empty_at: BTreeMap<usize, Time>,
}

impl Cable {
    /// Bytes that one connection sends at once at most.
    pub(super) const BURST: u64 = 16 * 1024;
    /// Nanoseconds after which a connection that has lost something sends again at most.
    pub(super) const LONGEST_WAIT: u64 = SECOND / 2;
    /// Bytes below which the queue has no room.
    const PACKET: u64 = 1500;

    pub(super) fn new(bytes_per_second: u64, queue: u64) -> Cable {
        Cable { bytes_per_second, queue, empty_at: BTreeMap::new() }
    }

    /// Takes up to so many bytes of a host into the queue: how many, and when the last of them is at the far end. `None`
    /// where it is full.
    pub(super) fn enter(&mut self, host: usize, most: u64, now: Time) -> Option<(u64, Time)> {
        let empty_at = self.empty_at.entry(host).or_insert(now);
        let begins = (*empty_at).max(now);
        let room = self.queue.saturating_sub(begins.0 - now.0) * self.bytes_per_second / SECOND;
        if room < Cable::PACKET {
            return None;
        }
        let count = most.min(room);
        *empty_at = begins.after(count * SECOND / self.bytes_per_second);
        Some((count, *empty_at))
    }
}
