//! The helper threads: one queue of jobs, one list of results, one wake for each batch of results.
//!
//! ```text
//! submit -> jobs --(a thread takes one, runs it)--> results -> take_results
//!             \--(cancel)--> back to the caller                  ^ wake when the list was empty
//! ```
//!
//! A job that gets no descriptor waits until one is free, and is run again: files are worked on as many at a time as there
//! are descriptors. Only when the whole process gets none for long does it end with that error. One that finds locked what it
//! needs waits as well, and everything else passes it: no thread ever sleeps for a lock of another process.
//!
//! A job that panics ends with [`Errno::INTERNAL`] and its thread lives on. Nothing here knows what a job does.

use super::Held;
use super::jobs::{self, Made};
use crate::backend::{Cancel, Errno, FsOp, Id, Op, OpKind, Token, Waker};
use crate::limits::{DESCRIPTOR_PATIENCE, DESCRIPTOR_PAUSE, PARTIAL_LOCK, PARTIAL_LOOK};
use crate::panics::caught;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Since when no job of this process has got a descriptor that it needed.
static STARVED: Mutex<Option<Instant>> = Mutex::new(None);
/// True while that is so, for whoever only wants to know that it is not.
static IS_STARVED: AtomicBool = AtomicBool::new(false);

pub(super) enum TicketTag {}
/// Names a job from its submission to its completion.
pub(super) type Ticket = Id<TicketTag>;

/// An op with everything its ids stood for when it was submitted.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) op: Op,
    pub(super) held: Held,
    /// When it first found locked what it needs.
    pub(super) locked_since: Option<Instant>,
}

impl Job {
    pub(super) fn new(ticket: Ticket, op: Op, held: Held) -> Job {
        Job { ticket, op, held, locked_since: None }
    }

    /// It goes on without what is locked, rather than wait.
    fn is_urgent(&self) -> bool {
        self.locked_since.is_some_and(|since| since.elapsed() >= PARTIAL_LOCK)
    }
}

pub(super) struct Finished {
    pub(super) ticket: Ticket,
    pub(super) op: Op,
    pub(super) result: Result<Made, Errno>,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// Jobs that wait for a descriptor, and when they are to be tried again.
    held_back: VecDeque<(Instant, Job)>,
    /// Jobs that wait for what others have locked, and when they are to be tried again.
    locked: VecDeque<(Instant, Job)>,
    /// One of those that wait for a descriptor is being tried again.
    retrying: bool,
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
        let queue = Queue {
            jobs: VecDeque::new(),
            held_back: VecDeque::new(),
            locked: VecDeque::new(),
            retrying: false,
            releases: Vec::new(),
            running,
            idle: 0,
            stopping: false,
        };
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
        let Queue { held_back, locked, .. } = &mut *queue;
        for waiting in [held_back, locked] {
            for _ in 0..waiting.len() {
                match waiting.pop_front() {
                    Some((_, job)) if cancel.covers(job.op.token) => taken(job),
                    other => waiting.extend(other),
                }
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
            let Queue { jobs, held_back, locked, .. } = &mut *queue;
            (std::mem::take(jobs), std::mem::take(held_back), std::mem::take(locked))
        };
        self.shared.work.notify_all();
        drop(waiting);
        for handle in self.handles.drain(..) {
            // A helper cannot panic outside of a job, and its work is over either way.
            let _ = handle.join();
        }
    }
}

impl Queue {
    /// What is to be done next. While something waits for a descriptor nothing that came later gets one: what a session
    /// asks for first it needs first, and what it has open behind that it cannot close before. With it, whether it was
    /// tried before.
    fn next(&mut self) -> Option<(Job, bool)> {
        let is_due = |(due, _): &mut (Instant, Job)| *due <= Instant::now();
        if self.held_back.is_empty()
            && let Some((_, job)) = self.locked.pop_front_if(is_due)
        {
            return Some((job, false));
        }
        if !self.retrying && self.held_back.is_empty() {
            return self.jobs.pop_front().map(|job| (job, false));
        }
        if let Some((_, job)) = if self.retrying { None } else { self.held_back.pop_front_if(is_due) } {
            self.retrying = true;
            return Some((job, true));
        }
        let other = self.jobs.iter().position(|job| !takes_descriptors(&job.op.kind))?;
        self.jobs.remove(other).map(|job| (job, false))
    }

    /// A job is done, or waits: first of all where it did so before.
    fn on_run(&mut self, retried: bool, held_back: Option<(Instant, Job)>) {
        match held_back {
            Some(first) if retried => self.held_back.push_front(first),
            held_back => self.held_back.extend(held_back),
        }
        self.retrying &= !retried;
    }
}

/// What became of a job.
enum Run {
    Finished(Finished),
    /// It is to be run again, once there are descriptors.
    HeldBack(Job),
    /// It is to be run again, when what it needs may no longer be locked.
    Locked(Job),
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
                let _ = caught(|| drop(held));
                queue = self.queue();
            } else if let Some((job, retried)) = queue.next() {
                queue.running[number] = Some(job.op.token);
                give_up.store(false, Ordering::Relaxed);
                drop(queue);
                let frees = frees_descriptor(&job.op.kind);
                let (held_back, locked) = match run(job, give_up) {
                    Run::Finished(finished) => {
                        self.finish(finished);
                        (None, None)
                    }
                    Run::HeldBack(job) => (Some((Instant::now() + DESCRIPTOR_PAUSE, job)), None),
                    Run::Locked(job) => (None, Some((Instant::now() + PARTIAL_LOOK, job))),
                };
                queue = self.queue();
                if locked.is_some() && queue.idle > 0 {
                    // This thread may have something long to do when it is time to look again.
                    self.work.notify_one();
                }
                queue.locked.extend(locked);
                queue.running[number] = None;
                queue.on_run(retried, held_back);
                // Whoever waits for that need not wait longer.
                if let Some((due, _)) = queue.held_back.front_mut().filter(|_| frees) {
                    *due = Instant::now();
                }
                if retried && queue.idle > 0 && !queue.jobs.is_empty() {
                    self.work.notify_one();
                }
            } else if queue.stopping {
                return;
            } else {
                queue.idle += 1;
                queue = match queue.held_back.front().or(queue.locked.front()) {
                    None => self.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
                    Some((due, _)) => {
                        let pause = due.saturating_duration_since(Instant::now());
                        self.work.wait_timeout(queue, pause).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
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

fn run(job: Job, give_up: &AtomicBool) -> Run {
    let urgent = job.is_urgent();
    let Job { ticket, mut op, held, locked_since } = job;
    let result = caught(|| jobs::run(&mut op.kind, &held, urgent, give_up));
    if matches!(result, Ok(Err(Errno::LOCKED))) && !give_up.load(Ordering::Relaxed) {
        let locked_since = locked_since.or_else(|| Some(Instant::now()));
        return Run::Locked(Job { ticket, op, held, locked_since });
    }
    if may_run_again(&op.kind) {
        match result {
            Ok(Err(Errno::TOO_MANY_FILES | Errno::TOO_MANY_FILES_ALL))
                if !give_up.load(Ordering::Relaxed) && may_wait() =>
            {
                return Run::HeldBack(Job { ticket, op, held, locked_since });
            }
            Ok(Err(Errno::TOO_MANY_FILES | Errno::TOO_MANY_FILES_ALL)) => {}
            _ if IS_STARVED.load(Ordering::Relaxed) => {
                *lock(&STARVED) = None;
                IS_STARVED.store(false, Ordering::Relaxed);
            }
            _ => {}
        }
    }
    // What the job held is let go before its completion can be seen: after a Close nothing of the file is left.
    let dropped = caught(|| drop(held));
    let result = result.and_then(|result| dropped.map(|()| result)).unwrap_or(Err(Errno::INTERNAL));
    Run::Finished(Finished { ticket, op, result })
}

/// True as long as it can be hoped that somebody in this process lets go of a descriptor.
fn may_wait() -> bool {
    let since = *lock(&STARVED).get_or_insert_with(Instant::now);
    IS_STARVED.store(true, Ordering::Relaxed);
    since.elapsed() < DESCRIPTOR_PATIENCE
}

/// True for what ends with a descriptor less.
fn frees_descriptor(kind: &OpKind) -> bool {
    only_releases(kind) || matches!(kind, OpKind::Publish { .. })
}

/// True for what can be done again from its beginning where it got no descriptor. Nothing that gives a file its name fails so
/// behind that: a directory that cannot be opened to be flushed is flushed with all of its file system.
fn may_run_again(kind: &OpKind) -> bool {
    takes_descriptors(kind) || matches!(kind, OpKind::Publish { .. })
}

/// True for what opens something. Publish may need one more for a moment and leaves one less: it never waits for others.
fn takes_descriptors(kind: &OpKind) -> bool {
    match kind {
        OpKind::Open { .. } | OpKind::Load { .. } | OpKind::Store(_) => true,
        OpKind::Fs(op) => matches!(
            **op,
            FsOp::Stat { .. }
                | FsOp::OpenDir { .. }
                | FsOp::MakeDir { .. }
                | FsOp::SetMeta { .. }
                | FsOp::MakeLink { .. }
                | FsOp::Clone { .. }
        ),
        _ => false,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Compute, SessionId};
    use crate::block::{Class, Pool};
    use crate::wire::decode::Role;
    use crate::wire::seal::{LENGTH_BYTES, Seals, Secret, TAG_BYTES};

    #[test]
    fn a_job_that_panics_ends_its_op_with_an_error_and_its_thread_takes_the_next() {
        let (sender, woken) = std::sync::mpsc::channel();
        let threads = Threads::start(1, Waker(Arc::new(move || _ = sender.send(())))).unwrap();
        let mut seals = Seals::keyed(&Secret::from_bytes([1; 32]), b"test", Role::Client);
        let mut pool = Pool::new(2, 0);
        for (number, room) in [0, 64].into_iter().enumerate() {
            let mut block = pool.take_reserved(Class::Small).unwrap();
            // Without room for its length and its tag there is no record.
            block.set_window(0..room);
            let seal = (seals.sealer.next().unwrap(), 64 - LENGTH_BYTES - TAG_BYTES);
            let compute = Compute::Seal { seals: vec![seal], block };
            let token = Token { session: SessionId(0), transfer: 0, part: number as u32 };
            let op = Op { token, kind: OpKind::Compute(Box::new(compute)) };
            threads.submit(Job::new(Ticket::new(number as u32, 0), op, Held::Nothing));
            woken.recv().unwrap();
            let mut results = Vec::new();
            threads.take_results(&mut results);
            let result = results.pop().unwrap().result;
            assert_eq!(result.err(), (room == 0).then_some(Errno::INTERNAL));
        }
    }
}
