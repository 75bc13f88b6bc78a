//! Where there are no abstract socket addresses.

use super::{Met, Taken};
use haul_engine::backend::Waker;
use std::convert::Infallible;
use std::os::fd::OwnedFd;

/// Never made here.
pub(crate) struct Gathering(Infallible);

/// Every login serves alone.
pub(crate) fn meet(_: &str, _: &OwnedFd, _: &OwnedFd) -> Met {
    Met::Nobody
}

impl Gathering {
    pub(crate) fn open(&mut self, _: &Waker) {
        match self.0 {}
    }

    pub(crate) fn take(&self, _: bool) -> Option<Taken> {
        match self.0 {}
    }
}
