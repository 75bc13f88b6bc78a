//! The requests of a client that are under way, and in which order they are sent and answered.

use super::DRIVER;
use crate::session::ask::Ask;
use crate::wire::frame::Unkept;
use std::collections::{BTreeMap, VecDeque};

pub(super) struct Asked {
    pub(super) tag: u64,
    pub(super) ask: Box<dyn Ask>,
    /// Nothing of it is left to send.
    pub(super) sent: bool,
    /// Its reply is complete, or none will come.
    pub(super) replied: bool,
    /// Attributes that the server could not keep.
    pub(super) unkept: Unkept,
}

/// All requests under way.
pub(super) struct Asks {
    pub(super) all: BTreeMap<u32, Asked>,
    pub(super) unsent: VecDeque<u32>,
    pub(super) unanswered: VecDeque<u32>,
    /// Those that something has happened to: only they can have come to an end. With 128 small files under way a look at
    /// all of them in every turn was a tenth of the client's processor time (2026-11-26).
    pub(super) touched: Vec<u32>,
    /// Those that are sent and go on with something beside.
    pub(super) beside: Vec<u32>,
    pub(super) last_transfer: u32,
}

impl Asks {
    pub(super) fn touch(&mut self, transfer: u32) {
        if self.touched.last() != Some(&transfer) {
            self.touched.push(transfer);
        }
    }

    pub(super) fn next_transfer(&mut self) -> u32 {
        loop {
            self.last_transfer = self.last_transfer.wrapping_add(1).max(DRIVER + 1);
            if !self.all.contains_key(&self.last_transfer) {
                return self.last_transfer;
            }
        }
    }
}
