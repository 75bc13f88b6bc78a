//! The helper threads: one queue of jobs, one list of results, one wake for each batch of results.
//!
//! ```text
//! submit -> jobs --(a thread takes one, runs it)--> results -> take_results
//!             \--(cancel)--> back to the caller                  ^ wake when the list was empty
//! ```
//!
//! A job that panics ends with EIO and its thread lives on. Nothing here knows what a job does.

use super::Held;
use super::jobs::{self, Made};
use crate::backend::{Cancel, Errno, FsOp, Id, Op, OpKind, Token, Waker};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub(super) enum TicketTag {}
/// Names a job from its submission to its completion.
pub(super) type Ticket = Id<TicketTag>;

/// An op with everything its ids stood for when it was submitted.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) op: Op,
    pub(super) held: Held,
}

pub(super) struct Finished {
    pub(super) ticket: Ticket,
    pub(super) op: Op,
    pub(super) result: Result<Made, Errno>,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// Files and directories nobody wants any more: dropping one may free gigabytes on disk, so helpers do it.
    releases: Vec<Held>,
    /// Whose job each thread is on.
    running: Vec<Option<Token>>,
    /// Threads that wait for work. A thread that has some looks for more by itself, so only these need a system call.
    idle: usize,
    stopping: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    results: Mutex<Vec<Finished>>,
    wake: Waker,
    /// For each thread: its job is cancelled, so a long one may give up.
    give_up: Vec<AtomicBool>,
}

pub(super) struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start(count: usize, wake: Waker) -> std::io::Result<Threads> {
        let count = count.max(1);
        let running = vec![None; count];
        let queue = Queue { jobs: VecDeque::new(), releases: Vec::new(), running, idle: 0, stopping: false };
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            work: Condvar::new(),
            results: Mutex::new(Vec::new()),
            wake,
            give_up: (0..count).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut threads = Threads { shared, handles: Vec::with_capacity(count) };
        for number in 0..count {
            let shared = threads.shared.clone();
            let name = format!("haul-files-{number}");
            threads.handles.push(std::thread::Builder::new().name(name).spawn(move || shared.work_off(number))?);
        }
        Ok(threads)
    }

    pub(super) fn submit(&self, job: Job) {
        self.shared.give(|queue| queue.jobs.push_back(job));
    }

    /// Drops `held` on a helper.
    pub(super) fn release(&self, held: Held) {
        self.shared.give(|queue| queue.releases.push(held));
    }

    /// Moves all results to the end of `into`.
    pub(super) fn take_results(&self, into: &mut Vec<Finished>) {
        into.append(&mut lock(&self.shared.results));
    }

    /// True while there are results nobody has taken.
    pub(super) fn has_results(&self) -> bool {
        !lock(&self.shared.results).is_empty()
    }

    /// Takes back the covered jobs that no thread has begun, and tells the threads on covered ones to give up early.
    /// Close and CloseDir are not taken back: their id is gone already, and they only release.
    pub(super) fn cancel(&self, cancel: Cancel, mut taken: impl FnMut(Job)) {
        let mut queue = self.shared.queue();
        for (token, give_up) in queue.running.iter().zip(&self.shared.give_up) {
            if token.is_some_and(|token| cancel.covers(token)) {
                give_up.store(true, Ordering::Relaxed);
            }
        }
        for _ in 0..queue.jobs.len() {
            let Some(job) = queue.jobs.pop_front() else { break };
            if cancel.covers(job.op.token) && !only_releases(&job.op.kind) {
                taken(job);
            } else {
                queue.jobs.push_back(job);
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.shared.queue();
            queue.stopping = true;
            self.shared.give_up.iter().for_each(|give_up| give_up.store(true, Ordering::Relaxed));
            std::mem::take(&mut queue.jobs)
        };
        self.shared.work.notify_all();
        drop(waiting);
        for handle in self.handles.drain(..) {
            // A helper cannot panic outside of a job, and its work is over either way.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Lets `add` put something into the queue, and sees to it that somebody takes it.
    fn give(&self, add: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue();
        add(&mut queue);
        let waits = queue.idle > 0;
        drop(queue);
        if waits {
            self.work.notify_one();
        }
    }

    fn work_off(&self, number: usize) {
        let give_up = &self.give_up[number];
        let mut queue = self.queue();
        loop {
            if let Some(held) = queue.releases.pop() {
                drop(queue);
                drop(held);
                queue = self.queue();
            } else if let Some(job) = queue.jobs.pop_front() {
                queue.running[number] = Some(job.op.token);
                give_up.store(false, Ordering::Relaxed);
                drop(queue);
                self.finish(run(job, give_up));
                queue = self.queue();
                queue.running[number] = None;
            } else if queue.stopping {
                return;
            } else {
                queue.idle += 1;
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    fn finish(&self, finished: Finished) {
        let mut results = lock(&self.results);
        let first = results.is_empty();
        results.push(finished);
        drop(results);
        if first {
            self.wake.wake();
        }
    }
}

fn run(job: Job, give_up: &AtomicBool) -> Finished {
    let Job { ticket, mut op, held } = job;
    let result = catch_unwind(AssertUnwindSafe(|| jobs::run(&mut op.kind, &held, give_up)));
    // What the job held is let go before its completion can be seen: after a Close nothing of the file is left.
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(held)));
    let result = result.and_then(|result| dropped.map(|()| result)).unwrap_or(Err(Errno::IO));
    Finished { ticket, op, result }
}

fn only_releases(kind: &OpKind) -> bool {
    match kind {
        OpKind::Close { .. } => true,
        OpKind::Fs(fs) => matches!(**fs, FsOp::CloseDir { .. }),
        _ => false,
    }
}

/// Nothing guarded here is left half changed by a panic, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
