//! The one queue of files that all connections of a run pull from: a fast one takes more.
//!
//! The first connection's driver walks the tree and pushes jobs; every connection, the first included, pulls some, moves
//! the files, and says how it went. A connection that breaks gives back what it had not finished. Results are told in the
//! order of the jobs.
//!
//! ```text
//! lead: walk -> push -> [jobs] -> pull -> any connection: move the file -> finish -> [results] -> take_finished -> lead
//!                          ^------------- give_back ----------+
//! ```
//! Connections run on threads of their own; the lock is taken once for a batch, and a thread that waits is woken through
//! its worker's waker.

use crate::backend::Waker;
use crate::limits::{JOB_ATTEMPTS, QUEUED_JOBS};
use crate::session::Failure;
use crate::session::plan::Options;
use crate::session::report::Direction;
use crate::wire::frame::{Attributes, Hash};
use crate::wire::path::Target;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One file to move.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Counted from 1 in the order of the walk.
    pub(crate) number: u64,
    pub(crate) source: Target,
    /// As the user knows it.
    pub(crate) source_shown: Vec<u8>,
    pub(crate) target: Target,
    /// As the user knows it.
    pub(crate) target_shown: Vec<u8>,
    /// Of the source, as the walk saw it.
    pub(crate) attributes: Attributes,
    attempts: u32,
}

impl Job {
    pub(crate) fn new(
        number: u64,
        (source, source_shown): (Target, Vec<u8>),
        (target, target_shown): (Target, Vec<u8>),
        attributes: Attributes,
    ) -> Job {
        Job { number, source, source_shown, target, target_shown, attributes, attempts: 0 }
    }
}

/// How a file got there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    Moved(Direction),
    /// It was there already, and is the same.
    Unchanged,
}

/// What became of a job.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) job: Job,
    pub(crate) result: Result<(Option<Hash>, u64, Way), Failure>,
}

/// Shared by all connections of a run.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

struct Shared {
    direction: Direction,
    options: Options,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    finished: Vec<Finished>,
    /// Connections that found nothing to do.
    idle: Vec<Waker>,
    lead: Option<Waker>,
    /// Connections that pull.
    links: usize,
    /// No job will come any more.
    over: bool,
}

impl Queue {
    /// A queue for a run of this kind.
    pub fn new(direction: Direction, options: Options) -> Queue {
        Queue(Arc::new(Shared { direction, options, state: Mutex::default() }))
    }

    pub(crate) fn direction(&self) -> Direction {
        self.0.direction
    }

    pub(crate) fn options(&self) -> Options {
        self.0.options
    }

    /// Nothing guarded here is left half changed by a panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection joins; the lead gives its waker, to learn of results.
    pub(crate) fn join(&self, lead: Option<Waker>) {
        let mut state = self.state();
        state.links += 1;
        if lead.is_some() {
            state.lead = lead;
        }
    }

    /// A connection leaves; what it has not finished goes to others. One that has been tried too often is given up.
    pub(crate) fn leave(&self, unfinished: Vec<Job>) {
        let mut state = self.state();
        state.links -= 1;
        for mut job in unfinished.into_iter().rev() {
            job.attempts += 1;
            if job.attempts < JOB_ATTEMPTS {
                state.jobs.push_front(job);
            } else {
                let why = "the connection broke each time it was tried";
                let failure = Failure::rule(&job.source_shown, "not copied", why);
                state.finished.push(Finished { job, result: Err(failure) });
            }
        }
        wake(state, true);
    }

    /// True while the lead may push more: the queue is not meant to hold a tree.
    pub(crate) fn has_room(&self) -> bool {
        self.state().jobs.len() < QUEUED_JOBS
    }

    pub(crate) fn push(&self, job: Job) {
        let mut state = self.state();
        state.jobs.push_back(job);
        wake(state, false);
    }

    /// Takes the next job, if `fits` says that this connection can have it: alone, it can have all.
    pub(crate) fn pull(&self, fits: impl Fn(&Job) -> bool) -> Option<Job> {
        let mut state = self.state();
        let alone = state.links <= 1;
        state.jobs.pop_front_if(|job| alone || fits(job))
    }

    /// Says that this connection waits for jobs. True when there are some already, or none will come.
    pub(crate) fn wait(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        if state.over || !state.jobs.is_empty() {
            return true;
        }
        if !state.idle.iter().any(|idle| Arc::ptr_eq(&idle.0, &waker.0)) {
            state.idle.push(waker.clone());
        }
        false
    }

    pub(crate) fn finish(&self, finished: Finished) {
        let mut state = self.state();
        state.finished.push(finished);
        wake(state, true);
    }

    pub(crate) fn take_finished(&self) -> Vec<Finished> {
        std::mem::take(&mut self.state().finished)
    }

    /// No job will come any more.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.over = true;
        state.jobs.clear();
        wake(state, false);
    }

    /// True once no job will come any more.
    pub fn is_over(&self) -> bool {
        self.state().over
    }
}

/// Wakes who waits, after the lock is gone.
fn wake(mut state: MutexGuard<'_, State>, lead: bool) {
    let idle = std::mem::take(&mut state.idle);
    let lead = state.lead.clone().filter(|_| lead);
    drop(state);
    idle.iter().chain(&lead).for_each(Waker::wake);
}
