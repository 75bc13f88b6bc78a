//! How many connections a copy has, found out while it goes: more are opened while that makes it faster.
//!
//! ```text
//! Waiting -something moved-> Settling -buffers are full-> Measuring -no trial-> open as many again: Opening -they came-> Settling
//!                                                            |                                         \-did not-> back
//!                                                            +--faster--> keep them, open as many again
//!                                                            +-not faster-> the new ones leave: Settled
//! Settling, Measuring -one of the new or old ones broke-> Opening
//! Settled -the new ones were faster after all, or far slower for a while, and a pause is over-> Measuring
//! ```
//! Times, bytes and all else it knows are given to it, so what it does follows from them alone. Whoever drives it opens and
//! ends connections (direct.rs). Rates are taken from one arrival to another, since content is counted in blocks, and a file
//! counts as [`FILE_WORTH`] beside its bytes, since small ones cost what they cost whatever is in them.

use std::fmt;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;
const MIB: u64 = 1024 * 1024;

/// What a file costs beside its bytes, in bytes: 50,000 of 4 KiB take about as long as 1.5 GiB in one.
const FILE_WORTH: u64 = 32 * 1024;
/// After a connection has begun it fills buffers, and its window opens: so long nothing is measured,
const SETTLE_NANOS: u64 = 100 * MILLISECOND;
/// and not before so much has gone through each new one,
const SETTLE_BYTES: u64 = 8 * MIB;
/// but for no longer than this; the first one is decided on within a second.
const MAX_SETTLE_NANOS: [u64; 2] = [300 * MILLISECOND, SECOND];
/// The shortest time that is measured: several round trips of a continent, and turns of the scheduler.
const WINDOW_NANOS: u64 = 150 * MILLISECOND;
/// What must have moved in it, so that a block more or less does not matter,
const WINDOW_BYTES: u64 = 32 * MIB;
/// unless it takes longer than this; the first one is decided on within a second.
const MAX_WINDOW_NANOS: [u64; 2] = [500 * MILLISECOND, 3 * SECOND];
/// How long it is waited for connections to come about: three round trips, at a busy server.
const OPENING_NANOS: u64 = 3 * SECOND;
/// What is left must last for longer than this at the present rate, or nothing is tried any more: where two were no faster,
/// trying cost 0.1 s of 1.3 (2026-11-26).
const WORTH_NANOS: u64 = SECOND * 5 / 4;

/// Percent of the rate with fewer below which more are given up after one window.
const HOPELESS_PERCENT: u64 = 103;
/// Percent from which they are kept after one window.
const CLEAR_PERCENT: u64 = 150;
/// In between it is measured for so many windows,
const WINDOWS: u32 = 3;
/// and then more are kept from this on. Noise of two windows in a row is about 5 % on a quiet machine, and what is equal
/// shall go over fewer.
const GAIN_PERCENT: u64 = 108;

/// The rate with fewer is measured again when the others have gone. Those were faster after all if they had so many percent
/// of it: what they were held against was wrong, by a burst that buffers had saved up, or a neighbour's load.
const REGRET_PERCENT: u64 = 115;
/// So often that is made good by another trial before the next pause.
const REGRETS: u32 = 2;
/// Seconds until they have gone, with what they had in hand, and a second was measured without them.
const SECONDS_OF_REGRET: u32 = 2;

/// Percent of the rate it settled at below which a second counts as slow.
const SLOW_PERCENT: u64 = 70;
/// So many slow seconds in a row mean that the link is another one.
const SLOW_SECONDS: u32 = 3;
/// After that it is tried again, not sooner than so long after the last time; each time that was no use doubles it.
const PAUSE_NANOS: u64 = 10 * SECOND;

/// What is known at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Since the run began.
    pub(crate) nanos: u64,
    /// Moved so far.
    pub(crate) bytes: u64,
    /// Done so far.
    pub(crate) files: u64,
    /// Connections that have come about and not ended.
    pub(crate) open: u16,
    /// Bytes not moved yet, as far as that is known.
    pub(crate) left: Option<u64>,
    /// There is work that nobody has taken.
    pub(crate) waiting: bool,
}

/// Bytes and files a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Rate {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

impl Rate {
    /// As one number.
    fn worth(self) -> u64 {
        self.bytes + self.files * FILE_WORTH
    }

    /// As percent of another one.
    fn percent_of(self, other: Rate) -> u64 {
        self.worth() * 100 / other.worth().max(1)
    }
}

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// To see whether more are faster.
    Try,
    /// They are; and if that is not the end of it, to see whether still more are faster.
    Faster,
    /// They are not.
    NotFaster,
    /// They did not come about.
    NotToBeHad,
    /// To see again, since it has become slower than it was when that was found out, or they could not be had then.
    Again,
    /// Nothing is there for more to do, or not for long.
    NothingLeft,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Try => "to see whether more are faster",
            Why::Faster => "faster",
            Why::NotFaster => "not faster",
            Why::NotToBeHad => "no more came about",
            Why::Again => "tried again",
            Why::NothingLeft => "nothing for more to do",
        })
    }
}

/// From here on there are so many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Decision {
    /// Since the run began.
    pub(crate) nanos: u64,
    /// Moved until then.
    pub(crate) bytes: u64,
    pub(crate) from: u16,
    pub(crate) to: u16,
    /// The rate with fewer, where more were tried.
    pub(crate) before: Option<Rate>,
    /// The rate that led to it.
    pub(crate) rate: Rate,
    pub(crate) why: Why,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    nanos: u64,
    bytes: u64,
    files: u64,
}

impl Mark {
    fn of(seen: &Seen) -> Mark {
        Mark { nanos: seen.nanos, bytes: seen.bytes, files: seen.files }
    }

    fn has_moved(&self, seen: &Seen) -> bool {
        (self.bytes, self.files) != (seen.bytes, seen.files)
    }

    fn rate_until(&self, later: &Mark) -> Rate {
        let nanos = later.nanos.saturating_sub(self.nanos).max(1);
        let per_second = |amount: u64| {
            u64::try_from(u128::from(amount) * u128::from(SECOND) / u128::from(nanos)).unwrap_or(u64::MAX)
        };
        Rate {
            bytes: per_second(later.bytes.saturating_sub(self.bytes)),
            files: per_second(later.files.saturating_sub(self.files)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Waiting,
    Opening { since: u64 },
    Settling { since: Mark },
    Measuring { begun: u64, seen: Mark, first: Option<Mark>, windows: u32 },
    Settled { since: Mark, slow: u32, seconds: u32 },
}

/// Decides how many.
#[derive(Debug)]
pub(crate) struct Tuner {
    most: u16,
    /// Kept.
    kept: u16,
    /// Open to be tried, those that are kept included.
    trial: Option<u16>,
    /// The rate with those that are kept.
    base: Rate,
    phase: Phase,
    /// When it may be tried again, and how long it is until the time after that.
    again: u64,
    pause: u64,
    /// What those that left again had, until that is compared.
    tried: Option<Rate>,
    regrets: u32,
    /// Those that were tried last did not come about: they may later.
    missed: bool,
    /// Nothing was left to do for more: said once.
    said: bool,
    decided: bool,
}

impl Tuner {
    /// Of a run that has `first` connections and may have `most`.
    pub(crate) fn new(first: u16, most: u16) -> Tuner {
        Tuner {
            most: most.max(first),
            kept: first.max(1),
            trial: None,
            base: Rate::default(),
            phase: Phase::Waiting,
            again: 0,
            pause: PAUSE_NANOS,
            tried: None,
            regrets: 0,
            missed: false,
            said: false,
            decided: false,
        }
    }

    /// True once it is known how many it shall be, until that changes.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Settled { .. })
    }

    /// Takes note of what is known now, at least some twenty times a second.
    pub(crate) fn look(&mut self, seen: &Seen) -> Option<Decision> {
        match self.phase {
            Phase::Waiting if seen.bytes > 0 || seen.files > 0 => {
                self.phase = Phase::Settling { since: Mark::of(seen) }
            }
            Phase::Waiting => {}
            Phase::Opening { .. } if self.trial.is_some_and(|trial| seen.open >= trial) => {
                self.phase = Phase::Settling { since: Mark::of(seen) };
            }
            Phase::Opening { since } if seen.nanos - since >= OPENING_NANOS => {
                return Some(self.back(seen, self.base, Why::NotToBeHad));
            }
            Phase::Opening { .. } => {}
            // One of them broke: what moves meanwhile says nothing of that many.
            Phase::Settling { .. } | Phase::Measuring { .. } if self.trial.is_some_and(|trial| seen.open < trial) => {
                self.phase = Phase::Opening { since: seen.nanos };
            }
            Phase::Settling { since } => {
                let (nanos, bytes) = (seen.nanos - since.nanos, seen.bytes.saturating_sub(since.bytes));
                let new = u64::from(self.trial.map_or(self.kept, |trial| trial - self.kept));
                let full = nanos >= SETTLE_NANOS && bytes >= new * SETTLE_BYTES;
                if full || nanos >= MAX_SETTLE_NANOS[usize::from(self.decided)] {
                    self.phase = measuring(seen);
                }
            }
            Phase::Measuring { begun, seen: last, first, windows } => {
                return self.measure(seen, begun, last, first, windows);
            }
            Phase::Settled { since, slow, seconds } => self.watch(seen, since, slow, seconds + 1),
        }
        None
    }

    fn measure(&mut self, seen: &Seen, begun: u64, last: Mark, first: Option<Mark>, windows: u32) -> Option<Decision> {
        let moved = last.has_moved(seen);
        let now = if moved { Mark::of(seen) } else { last };
        let first = first.or(moved.then_some(now));
        self.phase = Phase::Measuring { begun, seen: now, first, windows };
        let first = first?;
        let (nanos, bytes) = (now.nanos - first.nanos, now.bytes.saturating_sub(first.bytes));
        let windows = u64::from(windows) + 1;
        let long = nanos >= windows * WINDOW_NANOS && bytes >= windows * WINDOW_BYTES;
        let longest = MAX_WINDOW_NANOS[usize::from(self.decided)];
        if !long && seen.nanos - begun < windows * longest {
            return None;
        }
        if nanos < WINDOW_NANOS {
            // Two arrivals are not there yet; or nothing moved for long, which says nothing of the link.
            if seen.nanos - begun >= 10 * longest {
                self.phase = measuring(seen);
            }
            return None;
        }
        let rate = first.rate_until(&now);
        if self.trial.is_none() {
            self.base = rate;
            return self.up(seen, None, Why::Try);
        }
        let percent = rate.percent_of(self.base);
        let windows = u32::try_from(windows).unwrap_or(WINDOWS);
        match percent {
            ..HOPELESS_PERCENT => Some(self.back(seen, rate, Why::NotFaster)),
            HOPELESS_PERCENT..CLEAR_PERCENT if windows < WINDOWS => {
                self.phase = Phase::Measuring { begun, seen: now, first: Some(first), windows };
                None
            }
            _ if percent < GAIN_PERCENT => Some(self.back(seen, rate, Why::NotFaster)),
            _ => {
                let before = std::mem::replace(&mut self.base, rate);
                self.kept = self.trial.take().unwrap_or(self.kept);
                self.up(seen, Some(before), Why::Faster)
            }
        }
    }

    /// Opens as many again, if that can be of use.
    fn up(&mut self, seen: &Seen, before: Option<Rate>, why: Why) -> Option<Decision> {
        let (from, rate) = (self.kept, self.base);
        let to = from.saturating_mul(2).min(self.most);
        let enough = u128::from(rate.bytes) * u128::from(WORTH_NANOS) / u128::from(SECOND);
        let worth = seen.waiting && seen.left.is_none_or(|left| u128::from(left) > enough);
        let decision = |to, why| Decision { nanos: seen.nanos, bytes: seen.bytes, from, to, before, rate, why };
        if to > from && worth {
            self.trial = Some(to);
            self.decided = true;
            self.phase = Phase::Opening { since: seen.nanos };
            return Some(decision(to, if why == Why::Try && self.again > 0 { Why::Again } else { why }));
        }
        if to == from {
            self.settle(seen);
            return Some(decision(from, why));
        }
        // There may be more to do later.
        self.phase = measuring(seen);
        let told = std::mem::replace(&mut self.said, true);
        let why = if before.is_some() { why } else { Why::NothingLeft };
        self.decided = true;
        (!told || before.is_some()).then(|| decision(from, why))
    }

    /// Those that were tried are not needed.
    fn back(&mut self, seen: &Seen, rate: Rate, why: Why) -> Decision {
        let from = self.trial.take().unwrap_or(self.kept);
        self.settle(seen);
        self.tried = (why == Why::NotFaster).then_some(rate);
        self.missed = why == Why::NotToBeHad;
        Decision { nanos: seen.nanos, bytes: seen.bytes, from, to: self.kept, before: Some(self.base), rate, why }
    }

    fn settle(&mut self, seen: &Seen) {
        self.again = seen.nanos + self.pause;
        self.pause = self.pause.saturating_mul(2);
        self.phase = Phase::Settled { since: Mark::of(seen), slow: 0, seconds: 0 };
    }

    /// `seconds` with the one that is over, if it is.
    fn watch(&mut self, seen: &Seen, since: Mark, slow: u32, seconds: u32) {
        if seen.nanos - since.nanos < SECOND {
            return;
        }
        let now = Mark::of(seen);
        let rate = since.rate_until(&now);
        let tried = self.tried.take_if(|_| seconds >= SECONDS_OF_REGRET && seen.waiting && rate.worth() > 0);
        let regretted = tried.is_some_and(|tried| tried.percent_of(rate) >= REGRET_PERCENT) && self.regrets < REGRETS;
        if tried.is_some() {
            self.base = rate;
        }
        let is_slow = rate.percent_of(self.base) < SLOW_PERCENT && seen.waiting;
        let slow = if is_slow { slow + 1 } else { 0 };
        let wanted = slow >= SLOW_SECONDS || self.missed && seen.waiting;
        let again = wanted && seen.nanos >= self.again && self.kept < self.most;
        if again {
            self.regrets = 0;
        }
        self.regrets += u32::from(regretted);
        self.phase = match again || regretted {
            true => measuring(seen),
            false => Phase::Settled { since: now, slow, seconds },
        };
    }
}

fn measuring(seen: &Seen) -> Phase {
    Phase::Measuring { begun: seen.nanos, seen: Mark::of(seen), first: None, windows: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 10 * MILLISECOND;
    const BLOCK: u64 = 512 * 1024;
    const ENDLESS: u64 = u64::MAX / 2;

    /// A link by its rate with so many connections at such a time, in MiB/s, and how it is counted.
    struct Link<'a> {
        rate: &'a dyn Fn(u16, u64) -> u64,
        total: u64,
        /// What each connection takes at once when it has begun.
        buffers: u64,
        /// Connections that ever come about.
        there: u16,
        waiting: bool,
        seconds: u64,
    }

    impl Default for Link<'_> {
        fn default() -> Self {
            Link { rate: &|_, _| 100, total: ENDLESS, buffers: 4 * MIB, there: 64, waiting: true, seconds: 60 }
        }
    }

    impl Link<'_> {
        fn run(&self, mut tuner: Tuner) -> (Vec<Decision>, Tuner) {
            let (mut open, mut moved, mut decisions) = (tuner.kept, 0, Vec::new());
            let mut filled = 0;
            let handshake = 3 * TICK;
            let mut until = 0;
            for tick in 0..self.seconds * SECOND / TICK {
                let nanos = tick * TICK;
                let up = if nanos >= until { open.min(self.there) } else { open.min(self.there).min(tuner.kept) };
                if nanos >= 2 * TICK && moved < self.total {
                    moved += (self.rate)(up, nanos) * MIB * TICK / SECOND;
                    moved += u64::from(up.saturating_sub(filled)) * self.buffers;
                    filled = filled.max(up);
                }
                let moved = moved.min(self.total);
                let bytes = moved - moved % BLOCK;
                let left = (self.total != ENDLESS).then_some(self.total - moved);
                let waiting = self.waiting && moved < self.total;
                let seen = Seen { nanos, bytes, files: 0, open: up, left, waiting };
                if let Some(decision) = tuner.look(&seen) {
                    assert_eq!(decision.nanos, nanos);
                    (open, until) = (decision.to, nanos + handshake);
                    filled = filled.min(open);
                    decisions.push(decision);
                }
            }
            (decisions, tuner)
        }

        fn settles_at(&self) -> u16 {
            let (decisions, tuner) = self.run(Tuner::new(1, 16));
            assert!(tuner.is_settled(), "{decisions:?}");
            assert_eq!(decisions.last().unwrap().to, tuner.kept);
            tuner.kept
        }
    }

    /// Up to five percent more or less, another share each 50 ms.
    fn noise(nanos: u64, seed: u64) -> u64 {
        let mut x = (nanos / (5 * TICK)).wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        95 + (x >> 32) % 11
    }

    #[test]
    fn equal_rates_choose_one_connection() {
        for rate in [2, 12, 110, 600, 1000, 5000] {
            assert_eq!(Link { rate: &|_, _| rate, ..Link::default() }.settles_at(), 1, "{rate} MiB/s");
        }
    }

    #[test]
    fn equal_rates_with_noise_choose_two_at_most() {
        let settled: Vec<u16> = (0..200)
            .map(|seed| Link { rate: &|_, nanos| 8 * noise(nanos, seed), seconds: 10, ..Link::default() }.settles_at())
            .collect();
        assert!(settled.iter().all(|&kept| kept <= 2), "{settled:?}");
        assert!(settled.iter().filter(|&&kept| kept == 1).count() > 180, "{settled:?}");
    }

    #[test]
    fn what_each_connection_is_held_to_is_made_up_for_by_as_many_as_help() {
        for (each, all, expected) in
            [(10, 10_000, 16), (40, 160, 4), (40, 80, 2), (40, 300, 8), (300, 1000, 4), (1, 100, 16)]
        {
            let link = Link { rate: &|open, _| (each * u64::from(open)).min(all), ..Link::default() };
            assert_eq!(link.settles_at(), expected, "{each} of {all}");
        }
    }

    #[test]
    fn a_connection_that_breaks_while_it_is_tried_is_waited_for_and_not_held_against_the_others() {
        let mut tuner = Tuner::new(1, 2);
        let (mut moved, mut tried, mut why) = (0, None, Vec::new());
        for tick in 1..500 {
            let nanos = tick * TICK;
            // It comes, breaks a tenth of a second later, and is there again after a second.
            let since = tried.map(|tried: u64| (nanos - tried) / TICK);
            let open = if since.is_some_and(|since| (3..13).contains(&since) || since > 113) { 2 } else { 1 };
            moved += 100 * open * MIB * TICK / SECOND;
            let seen = Seen { nanos, bytes: moved, files: 0, open: open as u16, left: None, waiting: true };
            if let Some(decision) = tuner.look(&seen) {
                tried.get_or_insert(nanos);
                why.push((decision.to, decision.why));
            }
        }
        assert_eq!(why, [(2, Why::Try), (2, Why::Faster)]);
    }

    #[test]
    fn a_gain_of_ten_percent_is_taken_in_spite_of_noise() {
        let taken = (0..100)
            .filter(|&seed| {
                let rate = |open, nanos| if open == 1 { 7 * noise(nanos, seed) } else { 8 * noise(nanos, seed) };
                Link { rate: &rate, seconds: 10, ..Link::default() }.settles_at() == 2
            })
            .count();
        assert!(taken > 80, "{taken} of 100");
    }

    #[test]
    fn more_that_make_it_slower_leave_again() {
        let link = Link { rate: &|open, _| 800 / u64::from(open), ..Link::default() };
        let (decisions, _) = link.run(Tuner::new(1, 16));
        let steps: Vec<_> = decisions.iter().map(|decision| (decision.from, decision.to, decision.why)).collect();
        assert_eq!(steps, [(1, 2, Why::Try), (2, 1, Why::NotFaster)]);
        assert!(decisions[1].before.unwrap().bytes > decisions[1].rate.bytes);
    }

    #[test]
    fn the_first_decision_is_there_within_a_second_with_the_rate_that_led_to_it() {
        for rate in [3, 10, 50, 110, 400, 1000, 8000] {
            let link = Link { rate: &|_, _| rate, buffers: 0, ..Link::default() };
            let (decisions, _) = link.run(Tuner::new(1, 16));
            let first = decisions[0];
            assert!(first.nanos <= SECOND, "{rate} MiB/s: {first:?}");
            assert!(first.nanos <= SECOND / 3 || first.bytes <= 256 * MIB, "{rate} MiB/s: {first:?}");
            let off = first.rate.bytes.abs_diff(rate * MIB);
            assert!(off * 10 < rate * MIB, "{rate} MiB/s: {first:?}");
            assert_eq!((first.from, first.to), (1, 2));
        }
    }

    #[test]
    fn a_copy_shorter_than_the_first_window_opens_nothing() {
        for total in [0, 1, MIB, 40 * MIB, 500 * MIB] {
            let link = Link { rate: &|_, _| 2000, total, ..Link::default() };
            let (decisions, _) = link.run(Tuner::new(1, 16));
            assert!(decisions.iter().all(|decision| decision.to == 1), "{total}: {decisions:?}");
        }
    }

    #[test]
    fn where_nothing_waits_nobody_is_called_and_that_is_said_once() {
        let (decisions, _) = Link { waiting: false, ..Link::default() }.run(Tuner::new(1, 16));
        let [only] = &decisions[..] else { panic!("{decisions:?}") };
        assert_eq!((only.from, only.to, only.why), (1, 1, Why::NothingLeft));
    }

    #[test]
    fn connections_that_do_not_come_about_are_given_up_and_tried_again_later() {
        let link = Link { rate: &|open, _| 40 * u64::from(open), there: 3, ..Link::default() };
        let (decisions, tuner) = link.run(Tuner::new(1, 16));
        assert_eq!(tuner.kept, 2);
        let last = decisions.last().unwrap();
        assert_eq!((last.from, last.to, last.why), (4, 2, Why::NotToBeHad));
        assert!(last.nanos - decisions[decisions.len() - 2].nanos < 2 * OPENING_NANOS);
        let tried: Vec<u64> = decisions.iter().filter(|one| one.to == 4).map(|one| one.nanos / SECOND).collect();
        assert!((2..=4).contains(&tried.len()), "{tried:?}");
        assert!(tried.windows(2).all(|pair| pair[1] - pair[0] >= PAUSE_NANOS / SECOND), "{tried:?}");
    }

    #[test]
    fn a_first_measurement_that_was_too_good_is_found_out() {
        // What buffers had saved up comes at once.
        let rate = |open: u16, nanos| if nanos < SECOND { 80 } else { 25 * u64::from(open) };
        let (decisions, tuner) = Link { rate: &rate, ..Link::default() }.run(Tuner::new(1, 4));
        let steps: Vec<_> = decisions.iter().map(|decision| (decision.to, decision.why)).collect();
        assert_eq!(
            steps[..4],
            [(2, Why::Try), (1, Why::NotFaster), (2, Why::Again), (4, Why::Faster)],
            "{decisions:?}"
        );
        assert_eq!(tuner.kept, 4);
        assert!(decisions[2].nanos < 5 * SECOND);
        // A link that is like that for ever does not make it restless.
        let rate = |open: u16, nanos: u64| if open == 1 && nanos % (5 * SECOND) < SECOND { 100 } else { 80 };
        let (decisions, _) = Link { rate: &rate, ..Link::default() }.run(Tuner::new(1, 16));
        assert!(decisions.len() <= 8, "{decisions:?}");
    }

    #[test]
    fn a_link_that_becomes_far_slower_is_tried_again_but_not_all_the_time() {
        // Held to a fifth for each connection after 20 s.
        let rate = |open: u16, nanos| if nanos < 20 * SECOND { 500 } else { (100 * u64::from(open)).min(400) };
        let link = Link { rate: &rate, ..Link::default() };
        assert_eq!(link.settles_at(), 4);
        // Nothing helps.
        let rate = |_, nanos: u64| 500 >> (nanos / (15 * SECOND)).min(5);
        let (decisions, _) = Link { rate: &rate, seconds: 120, ..Link::default() }.run(Tuner::new(1, 16));
        let tried: Vec<u64> = decisions.iter().filter(|one| one.to == 2).map(|one| one.nanos / SECOND).collect();
        assert!((2..=4).contains(&tried.len()), "{tried:?}");
        assert!(tried.windows(2).all(|pair| pair[1] - pair[0] >= PAUSE_NANOS / SECOND), "{tried:?}");
        assert!(decisions.iter().any(|one| one.why == Why::Again), "{decisions:?}");
    }

    #[test]
    fn small_files_count_for_more_than_their_bytes() {
        let slow = Rate { bytes: MIB, files: 1000 };
        let fast = Rate { bytes: MIB, files: 2000 };
        assert!(fast.percent_of(slow) > 180);
    }
}
