//! Memory for control frames that have begun and are not complete: bounded for all connections of the process together.

use crate::limits::{UNFINISHED_BYTES, UNFINISHED_FREE_BYTES};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of every connection.
static ALL: AtomicUsize = AtomicUsize::new(0);

/// What one connection holds.
#[derive(Default)]
pub(super) struct Unfinished(usize);

impl Unfinished {
    /// It holds so many bytes now. False, and as before, when that is more than is left: then it is over.
    #[must_use]
    pub(super) fn hold(&mut self, bytes: usize) -> bool {
        self.hold_of(&ALL, bytes)
    }

    fn hold_of(&mut self, all: &AtomicUsize, bytes: usize) -> bool {
        let bytes = bytes.saturating_sub(UNFINISHED_FREE_BYTES);
        if bytes <= self.0 {
            all.fetch_sub(self.0 - bytes, Ordering::AcqRel);
            self.0 = bytes;
            return true;
        }
        let more = bytes - self.0;
        let bounded = |held: usize| held.checked_add(more).filter(|&sum| sum <= UNFINISHED_BYTES);
        let fits = all.fetch_update(Ordering::AcqRel, Ordering::Acquire, bounded).is_ok();
        self.0 += if fits { more } else { 0 };
        fits
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_frames_always_have_room_and_large_ones_as_much_as_there_is() {
        let all = AtomicUsize::new(0);
        let mut held: Vec<Unfinished> = Vec::new();
        let whole = crate::wire::MAX_FRAME;
        let mut begin = |bytes| {
            let mut one = Unfinished::default();
            let fits = one.hold_of(&all, bytes);
            held.push(one);
            fits
        };
        assert!(begin(whole + 4), "the largest there is");
        assert!(!begin(whole + 4));
        assert!((0..100).all(|_| begin(UNFINISHED_FREE_BYTES)));
        let first = &mut held[0];
        assert!(first.hold_of(&all, 5) && all.load(Ordering::Acquire) == 0);
        assert!(held[1].hold_of(&all, whole));
        // They are none of the process's.
        held.into_iter().for_each(std::mem::forget);
    }
}
