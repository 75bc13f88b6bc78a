//! How long a server that owes an answer may be silent before nobody is there.
//!
//! ```text
//! it says every second that it lives (PULSE):  alive
//! it does not (base peers):                    alive + what it may be at work on + what may still be on its way to it
//! ```
//! Who only says that he lives, and neither answers nor takes anything, is given up as well: after `unknown` and the time that
//! his work takes on a slow disk. And an end that was itself suspended knows nothing of the other one's silence.
//!
//! A base server says nothing while it hashes or flushes, so all that can be told is how long that takes at most: its
//! bytes at the rate of a slow disk. Where nobody knows how much work an answer is (a listing comes in one piece), it has
//! ten minutes. What has left here may stand in buffers for as long as a slow link needs: its rate is known once more has
//! left than buffers hold.

use super::opening::Patience;
use crate::backend::Time;
use crate::limits::{
    BUFFERED_BYTES, LATE_LOOK, LOOK_AT_CLOCK, PULSE_INTERVAL, SECOND, SLOW_DISK_BYTES_PER_SECOND,
    SLOW_LINK_BYTES_PER_SECOND,
};

/// What a client knows of its server's silence.
pub(super) struct Silence {
    /// The server says that it lives.
    pulsed: bool,
    alive: u64,
    /// For work that nobody knows the size of.
    unknown: u64,
    /// A connection that is not the first one is given up after so long, whatever the work is.
    most: Option<u64>,
    /// Bytes that have left in all, and the nanoseconds for which some were waiting to.
    left: u64,
    busy: u64,
    /// Bytes that have left since the server last said anything.
    unheard: u64,
}

impl Silence {
    pub(super) fn new(patience: Patience) -> Silence {
        let Patience { alive, answer: unknown, .. } = patience;
        Silence { pulsed: false, alive, unknown, most: None, left: 0, busy: 0, unheard: 0 }
    }

    /// Of a connection that is not the first one.
    pub(super) fn bound(&mut self, nanoseconds: u64) {
        self.most = Some(nanoseconds);
    }

    /// What both ends speak is known.
    pub(super) fn agreed(&mut self, pulsed: bool) {
        self.pulsed = pulsed;
    }

    /// So many bytes have left, and for so many nanoseconds some were waiting to.
    pub(super) fn on_sent(&mut self, bytes: u64, busy: u64) {
        self.left += bytes;
        self.busy += busy;
        self.unheard += bytes;
    }

    /// The server said something.
    pub(super) fn on_heard(&mut self) {
        self.unheard = 0;
    }

    /// Nanoseconds in which it must have taken something of what is being sent. `work` as for [`Silence::answer`].
    pub(super) fn stall(&self, stall: u64, work: Option<u64>) -> u64 {
        stall.min(self.alive).saturating_add(self.at_work(work))
    }

    /// Nanoseconds in which it must have said something, once everything has left. `work` is how many bytes it may be at,
    /// `None` where nobody knows.
    pub(super) fn answer(&self, work: Option<u64>) -> u64 {
        let limit = self.alive.saturating_add(self.at_work(work)).saturating_add(self.on_its_way());
        self.most.map_or(limit, |most| most.min(limit))
    }

    /// Nanoseconds in which a server that says that it lives must have done something else. `work` as for [`Silence::answer`].
    pub(super) fn idle(&self, work: Option<u64>) -> u64 {
        if !self.pulsed {
            return u64::MAX;
        }
        let work = work.map_or(0, |bytes| nanoseconds(bytes, SLOW_DISK_BYTES_PER_SECOND));
        self.unknown.saturating_add(work).max(self.alive)
    }

    /// True when so many nanoseconds of silence are nothing that a server at work would explain.
    pub(super) fn is_suspicious(&self, nanoseconds: u64) -> bool {
        nanoseconds >= if self.pulsed { PULSE_INTERVAL / 2 * 3 } else { self.alive / 4 * 3 }
    }

    fn at_work(&self, work: Option<u64>) -> u64 {
        match work {
            _ if self.pulsed => 0,
            None => self.unknown,
            Some(bytes) => nanoseconds(bytes, SLOW_DISK_BYTES_PER_SECOND),
        }
    }

    fn on_its_way(&self) -> u64 {
        if self.pulsed {
            return 0;
        }
        let rate = match self.left.checked_sub(2 * BUFFERED_BYTES) {
            // A quarter of what it was: links get slower, too.
            Some(beyond) if self.busy > 0 => nanoseconds(beyond, self.busy) / 4,
            Some(_) => u64::MAX,
            None => SLOW_LINK_BYTES_PER_SECOND,
        };
        nanoseconds(self.unheard.min(BUFFERED_BYTES), rate.max(SLOW_LINK_BYTES_PER_SECOND))
    }
}

/// Notices that this end did not run for a while: it was stopped, or the machine had no time for it.
#[derive(Default)]
pub(super) struct Awake {
    looked: Option<Time>,
}

impl Awake {
    /// A turn of its session. Nanoseconds of sleep, if it was that.
    pub(super) fn turn(&mut self, now: Time) -> Option<u64> {
        let before = self.looked.replace(now)?;
        let gap = now.0.saturating_sub(before.0);
        (gap > LOOK_AT_CLOCK + LATE_LOOK).then_some(gap)
    }

    /// The turn is over. A session that does not wait for its peer may sleep for as long as it likes.
    pub(super) fn rest(&mut self, waits: bool) {
        self.looked = self.looked.filter(|_| waits);
    }

    /// When to look again.
    pub(super) fn next(&self) -> Option<Time> {
        self.looked.map(|looked| looked.after(LOOK_AT_CLOCK))
    }
}

/// Of so many bytes at so many bytes per second; also bytes per second, of so many bytes in so many nanoseconds.
fn nanoseconds(bytes: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(SECOND) / u128::from(rate.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn silence() -> Silence {
        Silence::new(Patience { alive: 20 * SECOND, answer: 600 * SECOND, ..Patience::default() })
    }

    #[test]
    fn who_says_that_he_lives_has_the_same_time_whatever_he_does() {
        let mut pulsed = silence();
        pulsed.agreed(true);
        pulsed.on_sent(100 * MIB, SECOND);
        for work in [None, Some(0), Some(u64::MAX)] {
            assert_eq!((pulsed.answer(work), pulsed.stall(60 * SECOND, work)), (20 * SECOND, 20 * SECOND));
        }
    }

    #[test]
    fn who_does_not_has_as_much_more_as_his_work_takes_and_never_no_end() {
        let mut base = silence();
        assert_eq!(base.answer(Some(0)), 20 * SECOND);
        assert_eq!(base.answer(Some(100 * SLOW_DISK_BYTES_PER_SECOND)), 120 * SECOND);
        assert_eq!(base.stall(4 * SECOND, Some(SLOW_DISK_BYTES_PER_SECOND)), 5 * SECOND);
        assert_eq!(base.answer(None), 620 * SECOND);
        base.bound(600 * SECOND);
        assert_eq!(base.answer(Some(u64::MAX)), 600 * SECOND);
    }

    #[test]
    fn who_only_says_that_he_lives_is_given_up_once_his_work_must_be_done() {
        let mut pulsed = silence();
        pulsed.agreed(true);
        assert_eq!(pulsed.idle(Some(0)), 600 * SECOND);
        assert_eq!(pulsed.idle(Some(1000 * SLOW_DISK_BYTES_PER_SECOND)), 1600 * SECOND);
        assert_eq!(pulsed.idle(None), 600 * SECOND);
    }

    #[test]
    fn an_end_that_did_not_look_at_the_clock_in_time_was_suspended_unless_it_had_nothing_to_wait_for() {
        let mut awake = Awake::default();
        let mut turn = |seconds, waits| {
            let slept = awake.turn(Time(seconds * SECOND));
            awake.rest(waits);
            (slept, awake.next())
        };
        assert_eq!(turn(0, true), (None, Some(Time(SECOND))));
        assert_eq!(turn(1, true), (None, Some(Time(2 * SECOND))));
        assert_eq!(turn(46, false), (Some(45 * SECOND), None));
        assert_eq!(turn(100, true), (None, Some(Time(101 * SECOND))));
    }

    #[test]
    fn what_stands_in_buffers_has_the_time_that_the_link_takes_for_it() {
        let mut base = silence();
        base.on_sent(SLOW_LINK_BYTES_PER_SECOND, 0);
        assert_eq!(base.answer(Some(0)), 21 * SECOND);
        base.on_heard();
        assert_eq!(base.answer(Some(0)), 20 * SECOND);
        // More than buffers hold, at 8 MiB/s: a quarter of that.
        let mut base = silence();
        base.on_sent(2 * BUFFERED_BYTES + 80 * MIB, 10 * SECOND);
        assert_eq!(base.answer(Some(0)), 20 * SECOND + BUFFERED_BYTES * SECOND / (2 * MIB));
    }
}
