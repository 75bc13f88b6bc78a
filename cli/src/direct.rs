//! The direct connections of a copy: each on a thread of its own, opened again when it breaks.
//!
//! ```text
//! invited -> connect -> move files until none will come -> end
//!               \          \-> breaks: connect again, for a while; what it had in hand goes back to the queue
//!                \-> never came about: the run goes on through ssh, or ends
//! ```
//! The first connection of the run stays where ssh made it. It walks, names and asks what is small, and carries the files
//! only where no direct connection does.

use crate::args::Choice;
use crate::remote;
use crate::run::{Link, News, Start};
use crate::signals;
use haul_engine::queue::Queue;
use haul_engine::session::client::{Invitation, Patience, Seat};
use haul_engine::session::report::{Report, SharedProgress};
use haul_engine::session::{Failure, helper};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
}

type SharedFate = Arc<Mutex<Fate>>;

fn lock(fate: &SharedFate) -> MutexGuard<'_, Fate> {
    fate.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Direct {
    /// Opens `number` of them, and stays with them to the end of the run.
    pub(crate) fn carry(self, number: u16, news: &SyncSender<News>) {
        let fate = SharedFate::new(Mutex::new(Fate { left: number, ..Fate::default() }));
        let seats: Vec<_> = (0..number)
            .map(|index| {
                let (direct, news, fate) = (self.clone(), news.clone(), fate.clone());
                std::thread::spawn(move || {
                    let lost = direct.seat(index, &news, &fate);
                    direct.on_lost(lost, &fate, &news);
                })
            })
            .collect();
        let begun = Instant::now();
        while !lock(&fate).met && begun.elapsed() < LATE && self.is_wanted() {
            std::thread::sleep(TICK);
        }
        let late = !lock(&fate).met && self.is_wanted();
        if late {
            self.queue.hold_large();
        }
        for seat in seats {
            let _ = seat.join();
        }
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

    /// Opens `number` of them beside one that is there, walks, and carries files itself: to a daemon.
    pub(crate) fn assist(self, number: u16, news: &SyncSender<News>) {
        let seats: Vec<_> = (1..=number)
            .map(|index| {
                let (direct, news) = (self.clone(), news.clone());
                std::thread::spawn(move || {
                    let fate = SharedFate::new(Mutex::new(Fate { met: true, ..Fate::default() }));
                    if let Some(lost) = direct.seat(index, &news, &fate).filter(|_| direct.is_wanted()) {
                        let why = lost.failure().reason();
                        notice(format!("a further connection is not used: {why}; the others carry its files"), &news);
                    }
                })
            })
            .collect();
        for seat in seats {
            let _ = seat.join();
        }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        !signals::stopped() && !self.queue.is_over()
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
    fn seat(&self, index: u16, news: &SyncSender<News>, fate: &SharedFate) -> Option<Lost> {
        let patience = Duration::from_nanos(self.patience.redial);
        let (mut until, mut pause) = (None, PAUSE);
        let mut broken = None;
        while self.is_wanted() {
            let (lost, was_there) = self.attempt(index, news, fate);
            let lost = lost?;
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
            while begun.elapsed() < pause && self.is_wanted() {
                std::thread::sleep(TICK);
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        None
    }

    /// Runs a client on a new connection. What it ended with, if not well, and whether it came about.
    fn attempt(&self, index: u16, news: &SyncSender<News>, fate: &SharedFate) -> (Option<Lost>, bool) {
        let (sender, own) = sync_channel(64);
        let (choice, progress, queue) = (self.choice, self.progress.clone(), self.queue.clone());
        let link = Link { choice, progress, queue, sender };
        let (invitation, patience) = (self.invitation.clone(), self.patience);
        let seat = Seat { index, random: remote::random(), required: self.required };
        let thread = link.spawn(Start::Alone(Box::new(move |share, progress, reporter| {
            let invited = invitation.get().expect("it was looked at before");
            helper::invited((invited, seat), patience, share, progress, reporter)
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
                        lock(fate).met = true;
                        let _ = news.send(News::Report(Box::new(report)));
                    }
                    report => _ = news.send(News::Report(Box::new(report))),
                },
                News::Broken(why) => lost = Some(Lost::Broken(Failure::connection("cannot go on", why))),
                News::Backend(..) | News::Ended => {}
            }
        }
        let _ = thread.join();
        if lost.is_none() && self.is_wanted() {
            lost = Some(Lost::Broken(Failure::connection("connection lost", "it ended too early")));
        }
        (lost, was_met)
    }
}

fn notice(text: String, news: &SyncSender<News>) {
    let _ = news.send(News::Report(Box::new(Report::Notice(text))));
}
