//! Further connections of a copy, that pull files from the queue of the run: logins of their own, or the direct
//! connections to which the first one was invited (direct.rs).
//!
//! ```text
//! the first one is connected -> log in, a few at a time -> move files until none will come -> end
//!                         \                \-> cannot, or breaks: one notice; the others carry on
//!                          \-> invited: direct.rs
//! ```

use crate::args::{Choice, Connections};
use crate::direct::Direct;
use crate::remote::Dial;
use crate::run::{self, Link, MakeClient, News, Share, Start};
use crate::signals;
use crate::threads;
use haul_engine::limits::LOGINS_AT_A_TIME;
use haul_engine::queue::Queue;
use haul_engine::session::client::Invitation;
use haul_engine::session::helper;
use haul_engine::session::report::{Report, SharedProgress};
use haul_engine::session::{CANNOT_GO_ON, Failure};
use haul_engine::wire::frame::Caps;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked whether the next one may log in.
const TICK: Duration = Duration::from_millis(5);
/// How long a login that says nothing counts as one.
const LOGIN: Duration = Duration::from_secs(2);
/// How long a remote shell has to end once its streams are closed.
const SHELL_END: Duration = Duration::from_secs(3);

/// What all further connections have in common.
#[derive(Clone)]
pub(crate) struct More {
    pub(crate) dial: Box<Dial>,
    pub(crate) caps: Caps,
    pub(crate) choice: Choice,
    pub(crate) progress: SharedProgress,
    pub(crate) queue: Queue,
    /// How to come directly, once the first one knows.
    pub(crate) invitation: Invitation,
    /// Directly or not at all.
    pub(crate) required: bool,
}

impl More {
    /// Opens so many on threads of their own that `number` carry content. They end with the run.
    pub(crate) fn spawn(self, number: Connections, news: SyncSender<News>) -> Option<JoinHandle<()>> {
        let (queue, told) = (self.queue.clone(), news.clone());
        // Who was to open direct connections may have had all the files waiting for him.
        let failed = move |why: String| {
            queue.fail(Failure::connection(CANNOT_GO_ON, &why));
            let _ = told.send(News::Broken(why));
        };
        let work = move || {
            let wanted = |more: &More| !signals::stopped() && !more.queue.is_over();
            // Who answers there, and whether anybody does, is found out once.
            while self.progress.connected.load(Ordering::Acquire) == 0 && wanted(&self) {
                std::thread::sleep(TICK);
            }
            if self.invitation.get().is_some() {
                let More { choice, progress, queue, invitation, required, .. } = self;
                let patience = self.dial.direct_patience();
                return Direct { choice, progress, queue, invitation, required, patience }.carry(number, &news);
            }
            let logging_in = Arc::new(AtomicUsize::new(0));
            let mut links = Vec::new();
            for _ in 1..number.over_ssh() {
                let begun = Instant::now();
                while logging_in.load(Ordering::Relaxed) >= LOGINS_AT_A_TIME && begun.elapsed() < LOGIN && wanted(&self)
                {
                    std::thread::sleep(TICK);
                }
                if !wanted(&self) {
                    break;
                }
                logging_in.fetch_add(1, Ordering::Relaxed);
                let (more, news, logging_in) = (self.clone(), news.clone(), logging_in.clone());
                let (queue, told) = (self.queue.clone(), news.clone());
                links.extend(threads::spawn(
                    "login",
                    move || more.link(&news, &logging_in),
                    move |why| {
                        unused(&queue, &told, &why);
                    },
                ));
            }
            drop(news);
            for link in links {
                let _ = link.join();
            }
        };
        threads::spawn("links", work, failed)
    }

    /// One connection, to its end.
    fn link(&self, news: &SyncSender<News>, logging_in: &AtomicUsize) {
        let mut logged_in = false;
        let mut redialled = None;
        let lost = loop {
            match self.attempt(redialled, news, &mut || {
                if !std::mem::replace(&mut logged_in, true) {
                    logging_in.fetch_sub(1, Ordering::Relaxed);
                }
            }) {
                Some(Report::Redial { version }) if redialled.is_none() => redialled = Some(version),
                Some(Report::Fatal(failure)) => break Some(failure.reason()),
                Some(_) => break Some("nobody answered".to_string()),
                None => break None,
            }
        };
        if !logged_in {
            logging_in.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(why) = lost {
            unused(&self.queue, news, &why);
        }
    }

    /// Runs a client on a new connection. What it ended with, if not well.
    fn attempt(&self, redialled: Option<u8>, news: &SyncSender<News>, logged_in: &mut dyn FnMut()) -> Option<Report> {
        let (mut child, opening) = match self.dial.start(redialled) {
            Ok(started) => started,
            Err(failure) => return Some(Report::Fatal(failure)),
        };
        let (Some(stdout), Some(stdin)) = (child.stdout.take(), child.stdin.take()) else {
            return Some(Report::Fatal(Failure::connection("cannot start", "the remote shell has no pipes")));
        };
        run::widen(&stdout);
        run::widen(&stdin);
        let (sender, own) = sync_channel(64);
        let (progress, queue) = (self.progress.clone(), self.queue.clone());
        let link = Link { choice: self.choice, progress, share: Share::equal(queue.connections()), queue, sender };
        let make: MakeClient = Arc::new(|around| {
            let share = (around.queue, around.local);
            helper::client(around.stream, around.opening, share, around.progress, around.reporter)
        });
        let start = Start::On(Some((stdout.into(), Some(stdin.into()))), Box::new(opening.with_caps(self.caps)), make);
        let Some(thread) = link.spawn(start) else {
            let _ = child.kill();
            let why = own.try_iter().find_map(|news| if let News::Broken(why) = news { Some(why) } else { None });
            run::end_shell(&mut child, Duration::ZERO);
            return Some(Report::Fatal(Failure::connection(CANNOT_GO_ON, why.unwrap_or_default())));
        };
        let mut last = None;
        let mut greeted = false;
        loop {
            let told = match own.recv_timeout(TICK * 10) {
                Ok(told) => told,
                // Nobody waits for a login that is not needed any more.
                Err(RecvTimeoutError::Timeout) => {
                    if !greeted && self.queue.is_over() {
                        let _ = child.kill();
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            match told {
                News::Report(report) => match *report {
                    report @ (Report::Fatal(_) | Report::Absent(_) | Report::Redial { .. }) => last = Some(report),
                    Report::Peer(_) => {
                        greeted = true;
                        logged_in();
                    }
                    report => _ = news.send(News::Report(Box::new(report))),
                },
                News::Broken(why) => last = Some(Report::Fatal(Failure::connection(CANNOT_GO_ON, why))),
                News::Backend(..) | News::Tuned(_) | News::Ended => {}
            }
        }
        let _ = thread.join();
        run::end_shell(&mut child, SHELL_END);
        last
    }
}

/// Says that a connection is not used, unless nobody needs it any more.
pub(crate) fn unused(queue: &Queue, news: &SyncSender<News>, why: &str) {
    if !signals::stopped() && !queue.is_over() {
        let text = format!("a further connection is not used: {why}; the others carry its files");
        let _ = news.send(News::Report(Box::new(Report::Notice(text))));
    }
}
