//! The direct connections of a copy: each on a thread of its own, opened again when it breaks.
//!
//! ```text
//! invited -> connect -> move files until none will come -> end
//!               \          \-> breaks: connect again, for a while; what it had in hand goes back to the queue
//!               |          \-> carries nothing, twice: none is opened any more, as if it had never come about
//!                \-> never came about: the run goes on through ssh, or ends
//! ```
//! Their number is fixed, or a tuner says while the copy goes that more shall come, or that those that came last shall leave.
//!
//! The first connection of the run stays where ssh made it. It walks, names and asks what is small, and carries the files
//! only where no direct connection does.

use crate::args::{Choice, Connections};
use crate::remote;
use crate::run::{Link, News, Share, Start};
use crate::signals;
use crate::threads;
use crate::tuner::{Seen, Tuner};
use haul_engine::limits::{AUTO_CONNECTIONS, AUTO_DAEMON_CONNECTIONS, MAX_STUCK, PACKING_CONNECTIONS};
use haul_engine::queue::{Carried, Queue, Retirement};
use haul_engine::session::client::{Invitation, Patience, Seat};
use haul_engine::session::report::{Report, SharedProgress};
use haul_engine::session::{CANNOT_GO_ON, Failure, helper};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// After so long without a direct connection small files go through ssh meanwhile.
const LATE: Duration = Duration::from_millis(200);
/// Between two tries, at first; twice as long after each.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two tries, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often it is looked whether the run is over.
const TICK: Duration = Duration::from_millis(10);

/// What all direct connections of a run have in common.
#[derive(Clone)]
pub(crate) struct Direct {
    pub(crate) choice: Choice,
    pub(crate) progress: SharedProgress,
    pub(crate) queue: Queue,
    pub(crate) invitation: Invitation,
    /// Directly or not at all.
    pub(crate) required: bool,
    pub(crate) patience: Patience,
}

/// How one of them ended before the run did.
enum Lost {
    /// It never came about; nothing is lost.
    Refused(Failure),
    /// Somebody answered who is not to be believed.
    Untrusted(Failure),
    /// It broke, and could not be had again.
    Broken(Failure),
}

impl Lost {
    fn weight(&self) -> u8 {
        match self {
            Lost::Refused(_) => 0,
            Lost::Broken(_) => 1,
            Lost::Untrusted(_) => 2,
        }
    }

    fn failure(self) -> Failure {
        let (Lost::Refused(failure) | Lost::Untrusted(failure) | Lost::Broken(failure)) = self;
        failure
    }
}

/// What is known of all of them.
#[derive(Default)]
struct Fate {
    /// One has come about, once.
    met: bool,
    /// Those that have not ended.
    left: u16,
    /// The gravest reason for which one of them ended.
    worst: Option<Lost>,
    /// The user knows that there is none.
    told: bool,
    /// What all of them have carried.
    carried: Carried,
    /// Those in a row that came about and carried nothing.
    stuck: Stuck,
}

/// Connections that came about and carried nothing, one after the other: those that end together may have been ended by one
/// outage, before any of them had carried a whole range.
#[derive(Default)]
struct Stuck {
    count: u8,
    /// What had been carried when the last of them ended, and when that was.
    last: Option<(u64, Instant)>,
}

impl Fate {
    /// One that was begun then came about and carried nothing.
    fn on_stuck(&mut self, begun: Instant) {
        let (carried, now) = (self.carried.count(), Instant::now());
        let count = match self.stuck.last {
            Some((before, ended)) if before == carried && begun >= ended => self.stuck.count.saturating_add(1),
            Some((before, _)) if before == carried => return,
            _ => 1,
        };
        self.stuck = Stuck { count, last: Some((carried, now)) };
    }

    /// True once no more are to be opened: what is small comes through, and content does not.
    fn is_given_up(&self) -> bool {
        self.stuck.count >= MAX_STUCK
    }
}

type SharedFate = Arc<Mutex<Fate>>;

fn lock(fate: &SharedFate) -> MutexGuard<'_, Fate> {
    fate.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's place in a run, whatever becomes of the connection.
struct Place {
    index: u16,
    share: Share,
    /// May compress, and take what is compressed.
    packs: bool,
    standing: Standing,
}

/// How it stands with one place, for those who decide on all of them.
#[derive(Clone, Default)]
struct Standing {
    retirement: Retirement,
    /// A client works over its connection.
    open: Arc<AtomicBool>,
}

impl Standing {
    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Carries files, and is to go on with that.
    fn is_of_use(&self) -> bool {
        self.is_open() && !self.retirement.is_told()
    }
}

/// Which of these are to leave so that `number` stay: those that came last, but before one that works one that does not.
fn leaving(living: &[&Standing], number: u16) -> Vec<usize> {
    let mut order: Vec<usize> = (0..living.len()).collect();
    order.sort_by_key(|&at| !living[at].is_open());
    order.split_off(usize::from(number).min(order.len()))
}

/// The direct connections of a run: those that have come and gone, too.
struct Crew {
    direct: Direct,
    news: SyncSender<News>,
    fate: SharedFate,
    /// The first connection of the run is direct itself, and carries files beside these.
    beside: bool,
    places: Vec<(Standing, Option<JoinHandle<()>>)>,
}

impl Crew {
    fn new(direct: &Direct, beside: bool, news: &SyncSender<News>) -> Crew {
        let fate = SharedFate::new(Mutex::new(Fate { met: beside, ..Fate::default() }));
        Crew { direct: direct.clone(), news: news.clone(), fate, beside, places: Vec::new() }
    }

    /// Opens `number` more, each with this share of the memory, and a codec or none.
    fn open(&mut self, number: u16, (share, packs): (Share, bool)) {
        lock(&self.fate).left += number;
        for _ in 0..number {
            let index = u16::try_from(self.places.len()).unwrap_or(u16::MAX).saturating_add(self.beside.into());
            let standing = Standing::default();
            let place = Place { index, share, packs, standing: standing.clone() };
            let (direct, news, fate, beside) = (self.direct.clone(), self.news.clone(), self.fate.clone(), self.beside);
            let end = move |direct: &Direct, news: &SyncSender<News>, fate: &SharedFate, lost| match beside {
                true => direct.on_lost_beside(lost, fate, news),
                false => direct.on_lost(lost, fate, news),
            };
            let (same, told, known) = (direct.clone(), news.clone(), fate.clone());
            let work = move || {
                let lost = direct.seat(&place, &news, &fate);
                end(&direct, &news, &fate, lost);
            };
            // Whoever decides what becomes of the run without it hears of it, too.
            let thread = threads::spawn("direct", work, move |why| {
                let lost = Lost::Broken(Failure::connection(CANNOT_GO_ON, why));
                end(&same, &told, &known, Some(lost));
            });
            self.places.push((standing, thread));
        }
    }

    /// Tells some to leave, so that `number` stay.
    fn keep(&self, number: u16) {
        let living = self.places.iter().filter(|(standing, thread)| {
            !standing.retirement.is_told() && thread.as_ref().is_some_and(|thread| !thread.is_finished())
        });
        let living: Vec<&Standing> = living.map(|(standing, _)| standing).collect();
        for at in leaving(&living, number) {
            self.direct.queue.retire(&living[at].retirement);
        }
    }

    /// How many carry files, and are to go on with that.
    fn open_now(&self) -> u16 {
        let open = self.places.iter().filter(|(standing, _)| standing.is_of_use()).count();
        u16::from(self.beside) + u16::try_from(open).unwrap_or(u16::MAX)
    }

    /// Finds out how many are of use, until the run is over or all are lost. One is there, or on its way.
    fn tune(&mut self, most: u16) {
        let Direct { queue, progress, .. } = self.direct.clone();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let first = u16::from(self.beside);
        let begun = Instant::now();
        let mut tuner = Tuner::new(1, most);
        while self.direct.is_wanted() {
            std::thread::sleep(TICK);
            {
                let fate = lock(&self.fate);
                if first + fate.left == 0 || fate.is_given_up() {
                    break;
                }
            }
            let bytes = load(&progress.bytes);
            let known = load(&progress.totals_final) == 1;
            let there = bytes + load(&progress.skipped_bytes);
            let seen = Seen {
                nanos: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
                bytes,
                files: load(&progress.files),
                open: self.open_now(),
                left: known.then(|| load(&progress.total_bytes).saturating_sub(there)),
                waiting: queue.has_waiting(),
            };
            let Some(decision) = tuner.look(&seen) else { continue };
            match decision.to.checked_sub(decision.from) {
                Some(more) => self.open(more, share_of(decision.to)),
                None => self.keep(decision.to - first),
            }
            queue.expect(Some(if tuner.is_settled() { decision.to } else { decision.to.max(2) }));
            let _ = self.news.send(News::Tuned(Box::new((begun, decision))));
        }
    }

    fn join(self) -> SharedFate {
        for thread in self.places.into_iter().filter_map(|(_, thread)| thread) {
            let _ = thread.join();
        }
        self.direct.queue.expect(None);
        self.fate
    }
}

/// The share of the memory that one has which comes as one of `number`, and whether it has a codec: all together have no
/// more than a client may have. 16 of them: 55 MiB with random content (2026-11-26).
pub(crate) fn share_of(number: u16) -> (Share, bool) {
    let share = match number {
        ..=PACKING_CONNECTIONS => Share { of: 4, packing: PACKING_CONNECTIONS.into() },
        3..=4 => Share::equal(8),
        _ => Share::equal(AUTO_CONNECTIONS.into()),
    };
    (share, number <= PACKING_CONNECTIONS)
}

impl Direct {
    /// Opens `number` of them, and stays with them to the end of the run.
    pub(crate) fn carry(self, number: Connections, news: &SyncSender<News>) {
        let mut crew = Crew::new(&self, false, news);
        match number {
            Connections::Auto => {
                // While more may come nobody takes all there is.
                self.queue.expect(Some(2));
                crew.open(1, share_of(1));
            }
            Connections::Exactly(number) => crew.open(number, (Share::equal(self.queue.connections()), true)),
        }
        let fate = crew.fate.clone();
        let begun = Instant::now();
        while !lock(&fate).met && begun.elapsed() < LATE && self.is_wanted() {
            std::thread::sleep(TICK);
        }
        let late = !lock(&fate).met && self.is_wanted();
        if late {
            self.queue.hold_large();
        }
        if number == Connections::Auto {
            crew.tune(AUTO_CONNECTIONS);
        }
        let fate = crew.join();
        let Fate { met, told, worst, .. } = &*lock(&fate);
        // A run that was over before it mattered says nothing.
        if let Some(invited) = self.invitation.get().filter(|_| late && !met && !told && !signals::stopped()) {
            let why = match worst {
                Some(Lost::Refused(failure)) => failure.reason(),
                _ => format!("no direct connection: {}", invited.unanswered()),
            };
            notice(format!("{why}; all went over ssh"), news);
        }
    }

    /// Opens further ones beside one that is there, walks, and carries files itself, so that there are `number`: to a daemon.
    pub(crate) fn assist(self, number: Connections, news: &SyncSender<News>) {
        let mut crew = Crew::new(&self, true, news);
        match number {
            Connections::Auto => crew.tune(AUTO_DAEMON_CONNECTIONS),
            Connections::Exactly(number) => crew.open(number - 1, (Share::equal(self.queue.connections()), true)),
        }
        crew.join();
    }

    pub(crate) fn is_wanted(&self) -> bool {
        !signals::stopped() && !self.queue.is_over()
    }

    /// One of them has ended, and others carry its files.
    fn on_lost_beside(&self, lost: Option<Lost>, fate: &SharedFate, news: &SyncSender<News>) {
        lock(fate).left -= 1;
        if let Some(lost) = lost.filter(|_| self.is_wanted()) {
            let why = lost.failure().reason();
            notice(format!("a further connection is not used: {why}; the others carry its files"), news);
        }
    }

    /// One of them has ended. With the last one it is decided what becomes of the run.
    fn on_lost(&self, lost: Option<Lost>, fate: &SharedFate, news: &SyncSender<News>) {
        let mut fate = lock(fate);
        fate.left -= 1;
        if let Some(lost) = lost
            && fate.worst.as_ref().is_none_or(|worst| lost.weight() > worst.weight())
        {
            fate.worst = Some(lost);
        }
        if fate.left > 0 || !self.is_wanted() {
            return;
        }
        match fate.worst.take() {
            None => return,
            // Nobody goes on with less because somebody else answers there.
            Some(Lost::Untrusted(failure)) => self.queue.fail(failure),
            Some(Lost::Refused(failure) | Lost::Broken(failure)) => {
                let why = failure.reason();
                if self.queue.release(failure) {
                    notice(format!("{why}; going on over ssh"), news);
                }
            }
        }
        fate.told = true;
    }

    /// One of them, as often as it must be opened.
    fn seat(&self, place: &Place, news: &SyncSender<News>, fate: &SharedFate) -> Option<Lost> {
        let given_up = || lock(fate).is_given_up();
        let is_wanted = || self.is_wanted() && !place.standing.retirement.is_told();
        let patience = Duration::from_nanos(self.patience.redial);
        let (mut until, mut pause) = (None, PAUSE);
        let mut broken = None;
        while is_wanted() {
            let (lost, was_there) = self.attempt(place, news, fate);
            // What one that was to leave had in hand is taken up by others.
            let lost = lost.filter(|_| is_wanted())?;
            if given_up() {
                return Some(Lost::Refused(self.stuck()));
            }
            // As long as none has come about this is how it is with all of them.
            if !matches!(lost, Lost::Broken(_)) && !lock(fate).met {
                return Some(lost);
            }
            if was_there {
                (until, pause) = (None, PAUSE);
            }
            // That it broke is told, not that it could not be had again.
            if was_there || broken.is_none() {
                broken = Some(if was_there { lost } else { Lost::Refused(lost.failure()) });
            }
            if Instant::now() + pause > *until.get_or_insert_with(|| Instant::now() + patience) {
                return broken;
            }
            let begun = Instant::now();
            while begun.elapsed() < pause && is_wanted() {
                std::thread::sleep(TICK);
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        None
    }

    /// Why direct connections are given up that do come about.
    fn stuck(&self) -> Failure {
        let whose = self.invitation.get().map_or_else(String::new, |invited| format!(" to {}", invited.address()));
        let why = format!("connections{whose} come about and carry nothing: are large packets lost on the way (MTU)?");
        Failure::connection("no direct connection", why)
    }

    /// Runs a client on a new connection. What it ended with, if not well, and whether it came about.
    fn attempt(&self, place: &Place, news: &SyncSender<News>, fate: &SharedFate) -> (Option<Lost>, bool) {
        let (sender, own) = sync_channel(64);
        let carried = lock(fate).carried.clone();
        let (begun, before) = (Instant::now(), carried.count());
        let queue = self.queue.retiring(&place.standing.retirement).counting(&carried);
        let (choice, progress) = (self.choice, self.progress.clone());
        let link = Link { choice, progress, queue, share: place.share, sender };
        let (invitation, patience, packs) = (self.invitation.clone(), self.patience, place.packs);
        let seat = Seat { index: place.index, random: remote::random(), required: self.required };
        let thread = link.spawn(Start::Alone(Box::new(move |share, progress, reporter| {
            let invited = invitation.get().expect("it was looked at before");
            let bare = (!packs).then(|| invited.without_codecs());
            helper::invited((bare.as_ref().unwrap_or(invited), seat), patience, share, progress, reporter)
        })));
        let mut lost = None;
        let mut was_met = false;
        while let Ok(told) = own.recv() {
            match told {
                News::Report(report) => match *report {
                    Report::NotDirect(failure) => lost = Some(Lost::Refused(failure)),
                    Report::Fatal(failure) if was_met => lost = Some(Lost::Broken(failure)),
                    Report::Fatal(failure) => lost = Some(Lost::Untrusted(failure)),
                    report @ Report::Direct { .. } => {
                        was_met = true;
                        place.standing.open.store(true, Ordering::Release);
                        lock(fate).met = true;
                        let _ = news.send(News::Report(Box::new(report)));
                    }
                    report => _ = news.send(News::Report(Box::new(report))),
                },
                News::Broken(why) => lost = Some(Lost::Broken(Failure::connection(CANNOT_GO_ON, why))),
                News::Backend(..) | News::Tuned(_) | News::Ended => {}
            }
        }
        let _ = thread.map(JoinHandle::join);
        place.standing.open.store(false, Ordering::Release);
        if lost.is_none() && self.is_wanted() && !place.standing.retirement.is_told() {
            lost = Some(Lost::Broken(Failure::connection("connection lost", "it ended too early")));
        }
        // A peer that is gone is noticed at once, or is not there when it is tried again.
        let waited = begun.elapsed() >= Duration::from_nanos(self.patience.alive);
        if matches!(lost, Some(Lost::Broken(_))) && was_met && waited && carried.count() == before {
            lock(fate).on_stuck(begun);
        }
        (lost, was_met)
    }
}

fn notice(text: String, news: &SyncSender<News>) {
    let _ = news.send(News::Report(Box::new(Report::Notice(text))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_one_outage_has_ended_count_once_among_those_that_carry_nothing() {
        let mut fate = Fate::default();
        let begun = Instant::now();
        (0..3).for_each(|_| fate.on_stuck(begun));
        assert!(!fate.is_given_up());
        fate.on_stuck(Instant::now());
        assert!(fate.is_given_up());
        assert_eq!(MAX_STUCK, 2);
    }

    #[test]
    fn who_came_last_leaves_first_but_never_in_place_of_one_that_is_not_there() {
        let standings: Vec<Standing> = (0..4).map(|_| Standing::default()).collect();
        let all: Vec<&Standing> = standings.iter().collect();
        standings.iter().for_each(|standing| standing.open.store(true, Ordering::Release));
        assert_eq!(leaving(&all, 2), [2, 3]);
        assert_eq!(leaving(&all, 9), [0; 0]);
        // The first one has broken, and is being opened again.
        standings[0].open.store(false, Ordering::Release);
        assert_eq!(leaving(&all, 1), [2, 3, 0]);
        assert_eq!(leaving(&all, 3), [0]);
        assert_eq!(leaving(&[], 1), [0; 0]);
    }
}
