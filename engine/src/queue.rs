//! The one queue of files that all connections of a run pull from: a fast one takes more.
//!
//! The first connection's driver walks the tree and pushes jobs; every connection, the first included, pulls some, moves
//! the files, and says how it went. What a connection that breaks had not finished is the first one's: without that one the
//! run is over anyway, and further ones may break as often as they like. Results are told in the order of the jobs.
//!
//! ```text
//! lead: walk -> push -> [jobs] -> pull -> any connection: move the file -> finish -> [results] -> take_finished -> lead
//!       ^---- pull ---- [returned] <------ leave -------------+
//! ```
//! A large file may be moved in ranges, by all connections: whichever has the file's job puts a job for each range before the
//! others, and goes on with the file when these are done. Where only connections to one process can write them, others
//! leave them.
//!
//! Where direct connections are to carry the content, the first connection, which goes through ssh, leaves the files to
//! them: it is held back. When they do not come, or break and do not come again, it may take everything, or the run ends
//! with what became of them, as the user wants it.
//!
//! Connections run on threads of their own; the lock is taken once for a batch, and a thread that waits is woken through
//! its worker's waker.

mod ranges;
mod room;

pub use ranges::Ranging;

use crate::backend::Waker;
use crate::limits::{BULK_BYTES, MAX_BROKE, MAX_RANGES, PULL_AHEAD_BYTES, QUEUED_JOBS};
use crate::session::Failure;
use crate::session::plan::Options;
use crate::session::report::Direction;
use crate::tree_hash::HASH_BLOCK_BYTES;
use crate::wire::frame::{Attributes, Hash};
use crate::wire::path::Target;
pub(crate) use ranges::Range;
use ranges::{Ranged, missing};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One file to move, or a part of one.
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
    /// Only this much of it.
    pub(crate) range: Option<Range>,
    /// Connections that broke with it, each opened after the last of those before: an outage breaks many at once.
    pub(crate) broke: u8,
    /// When the last of them did, as the queue counts.
    broke_at: u64,
    /// It has failed once because the source changed while it was read.
    pub(crate) again: bool,
    /// The source has grown while it was read, and what it began with was moved.
    pub(crate) grew: bool,
}

impl Job {
    pub(crate) fn new(
        number: u64,
        (source, source_shown): (Target, Vec<u8>),
        (target, target_shown): (Target, Vec<u8>),
        attributes: Attributes,
    ) -> Job {
        let (range, broke, broke_at, again, grew) = (None, 0, 0, false, false);
        Job { number, source, source_shown, target, target_shown, attributes, range, broke, broke_at, again, grew }
    }

    /// True over connections that this process serves.
    pub(crate) fn may_go_to(&self, process: Option<Hash>) -> bool {
        self.range.is_none_or(|range| range.process.is_none() || range.process == process)
    }

    /// Bytes to be moved.
    pub(crate) fn bytes(&self) -> u64 {
        self.range.map_or(self.attributes.size, |range| range.length)
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

/// What the first connection may take.
#[derive(Clone, Debug, Default)]
enum Hold {
    /// Its share, as every other.
    #[default]
    Nothing,
    /// Files up to PULL_AHEAD_BYTES, while direct connections are late.
    Large,
    /// No file: direct connections carry them.
    All,
    /// There will be no direct connection, and nothing else is wanted.
    Broken(Failure),
}

/// Told to whoever runs a further connection that is not needed any more: it takes nothing more, finishes what it has in
/// hand, and ends.
#[derive(Clone, Default, Debug)]
pub struct Retirement(Arc<AtomicBool>);

impl Retirement {
    /// True once it was told.
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Counts what some connections of a run have carried, if it was more than a few packets.
#[derive(Clone, Default, Debug)]
pub struct Carried(Arc<AtomicU64>);

impl Carried {
    /// Files and ranges, so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(u64::from(bytes >= BULK_BYTES), Ordering::AcqRel);
    }
}

/// Shared by all connections of a run.
#[derive(Clone)]
pub struct Queue(Arc<Shared>, Option<Retirement>, Carried);

struct Shared {
    direction: Direction,
    options: Options,
    ranging: Ranging,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// What broken connections had not finished.
    returned: VecDeque<Job>,
    finished: Vec<Finished>,
    /// What is being written to, whole files only: a second file for the same name waits until the first is done.
    targets: HashSet<Target>,
    /// By token.
    ranged: BTreeMap<u64, Ranged>,
    /// Connections that found nothing to do.
    idle: Vec<Waker>,
    lead: Option<Waker>,
    lead_joined: bool,
    /// Connections that pull.
    links: usize,
    /// Connections that have left, ever.
    left: u64,
    hold: Hold,
    /// The first connection shall carry no content, come what may.
    only_direct: bool,
    /// See [`Queue::meet_one_server`].
    one_server: bool,
    /// The process that serves the first connection, if it has said so.
    process: Option<Hash>,
    /// It begins and names the files that go in ranges, even so.
    begins: bool,
    /// A connection broke: whether the first one still lives is worth a question.
    alarm: bool,
    /// Connections to reckon with now, where their number changes during the run.
    expected: Option<usize>,
    /// There was no room for a file of so many bytes, as this failure says: none that is as large is begun.
    no_room: Option<(u64, Failure)>,
    /// No job will come any more.
    over: bool,
}

impl Queue {
    /// A queue for a run of this kind.
    pub fn new(direction: Direction, options: Options) -> Queue {
        Queue::with_ranging(direction, options, Ranging::default())
    }

    /// The same with ranges of another size.
    pub fn with_ranging(direction: Direction, options: Options, ranging: Ranging) -> Queue {
        Queue(Arc::new(Shared { direction, options, ranging, state: Mutex::default() }), None, Carried::default())
    }

    /// The same queue, for a connection that may be told to leave before the run is over.
    #[must_use]
    pub fn retiring(&self, retirement: &Retirement) -> Queue {
        Queue(self.0.clone(), Some(retirement.clone()), self.2.clone())
    }

    /// The same queue, for connections whose work is counted there.
    #[must_use]
    pub fn counting(&self, carried: &Carried) -> Queue {
        Queue(self.0.clone(), self.1.clone(), carried.clone())
    }

    /// Tells a connection to leave.
    pub fn retire(&self, retirement: &Retirement) {
        let state = self.state();
        retirement.0.store(true, Ordering::Release);
        wake(state, false);
    }

    fn is_retired(&self) -> bool {
        self.1.as_ref().is_some_and(Retirement::is_told)
    }

    /// True when nothing more will come from here for the connection that asks.
    pub(crate) fn is_left(&self) -> bool {
        self.is_retired() || self.is_over()
    }

    /// From here on so many connections are to be reckoned with, in place of what the options say: their number changes
    /// during the run. `None`: what the options say.
    pub fn expect(&self, connections: Option<u16>) {
        let mut state = self.state();
        state.expected = connections.map(usize::from);
        wake(state, true);
    }

    /// True where nothing waits, and nobody else is at anything that might come back.
    pub(crate) fn is_alone(&self) -> bool {
        let state = self.state();
        state.links == 1 && state.jobs.is_empty() && state.returned.is_empty() && state.ranged.is_empty()
    }

    /// True while jobs wait for somebody to take them.
    pub fn has_waiting(&self) -> bool {
        !self.state().jobs.is_empty()
    }

    pub(crate) fn ranging(&self) -> Ranging {
        self.0.ranging
    }

    /// Connections the run is meant to have, as the options say.
    pub fn connections(&self) -> usize {
        usize::from(self.0.options.connections)
    }

    /// All connections come to one process over there, so that each can write ranges of a file that another one began.
    pub fn meet_one_server(&self) {
        self.state().one_server = true;
    }

    /// True where a file may go up in ranges over any of them.
    pub(crate) fn meets_one_server(&self) -> bool {
        self.state().one_server
    }

    /// The first connection is served by this process.
    pub(crate) fn set_process(&self, process: Hash) {
        self.state().process = Some(process);
    }

    /// True where the first connection is served by the same process, so that it can go on with whatever another one there
    /// has begun.
    pub(crate) fn is_process(&self, process: Option<Hash>) -> bool {
        process.is_some() && self.state().process == process
    }

    /// True where the run has, or may come to have, several connections.
    pub(crate) fn is_shared(&self) -> bool {
        self.connections() > 1 || self.state().expected.is_some()
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

    /// A connection joins; the lead gives its waker, to learn of results. Returns how many have left before.
    pub(crate) fn join(&self, lead: Option<Waker>) -> u64 {
        let mut state = self.state();
        state.links += 1;
        match (lead, &state.hold) {
            (None, Hold::Large) => state.hold = Hold::All,
            (None, _) => {}
            (lead, _) => (state.lead, state.lead_joined) = (lead, true),
        }
        state.left
    }

    /// Keeps the first connection from the files: direct connections are to come, and nothing else is wanted if these are
    /// `required`. It `begins` what goes in ranges. Its waker, to learn what becomes of them.
    pub(crate) fn hold(&self, (required, begins): (bool, bool), lead: &Waker) {
        let mut state = self.state();
        (state.only_direct, state.begins) = (required, begins);
        // What has broken the run before stays what broke it.
        if !matches!(state.hold, Hold::Broken(_)) {
            state.hold = Hold::All;
        }
        state.lead = Some(lead.clone());
    }

    /// True once after a connection broke.
    pub(crate) fn take_alarm(&self) -> bool {
        std::mem::take(&mut self.state().alarm)
    }

    /// True while direct connections are to carry the content.
    pub(crate) fn is_held(&self) -> bool {
        !matches!(self.state().hold, Hold::Nothing)
    }

    /// True of a file that the first connection begins, so that the others move its ranges.
    fn is_leads(&self, job: &Job, begins: bool) -> bool {
        let Ranging { from, bytes } = self.0.ranging;
        begins && job.range.is_none() && !job.again && (from..=MAX_RANGES * bytes).contains(&job.attributes.size)
    }

    /// Direct connections are late: the first one need not wait with what is small.
    pub fn hold_large(&self) {
        let mut state = self.state();
        // One has come already.
        if state.links <= 1 && matches!(state.hold, Hold::All) && !state.only_direct {
            state.hold = Hold::Large;
            wake(state, true);
        }
    }

    /// There will be no direct connection any more, for this reason: the first one carries the files, or the run ends.
    /// True when it goes on.
    pub fn release(&self, failure: Failure) -> bool {
        let mut state = self.state();
        let goes_on = !state.only_direct;
        state.hold = if goes_on { Hold::Nothing } else { Hold::Broken(failure) };
        wake(state, true);
        goes_on
    }

    /// The run ends, for this reason.
    pub fn fail(&self, failure: Failure) {
        let mut state = self.state();
        state.hold = Hold::Broken(failure);
        wake(state, true);
    }

    /// Why the run cannot go on.
    pub(crate) fn broken(&self) -> Option<Failure> {
        match &self.state().hold {
            Hold::Broken(failure) => Some(failure.clone()),
            _ => None,
        }
    }

    /// A connection leaves that joined when so many had left; what it has not finished goes to the lead.
    pub(crate) fn leave(&self, joined: u64, unfinished: Vec<Job>) {
        // One that was told to leave, and has done all it had, has not broken.
        let broke = !self.is_retired() || !unfinished.is_empty();
        let mut state = self.state();
        state.links -= 1;
        state.left += u64::from(broke);
        state.alarm |= broke;
        state.alarm &= !state.over;
        let owners = unfinished.into_iter().filter_map(|job| state.give_back(joined, job)).collect::<Vec<_>>();
        wake(state, true);
        owners.iter().for_each(Waker::wake);
    }

    /// True while the lead may push more: the queue is not meant to hold a tree.
    pub(crate) fn has_room(&self) -> bool {
        self.state().jobs.len() < QUEUED_JOBS
    }

    pub(crate) fn push(&self, job: Job) {
        let mut state = self.state();
        let Some(job) = state.admit(job) else { return wake(state, true) };
        state.jobs.push_back(job);
        wake(state, false);
    }

    /// Takes the next job, if `fits` says that this connection can have it. The only connection of a run can have all; the
    /// first of several leaves theirs to those that still log in. What others gave back is the `lead`'s, unless it is held
    /// back and the job has not broken many.
    pub(crate) fn pull(&self, lead: bool, fits: impl Fn(&Job) -> bool) -> Option<Job> {
        if self.is_retired() {
            return None;
        }
        let mut state = self.state();
        let held = !matches!(state.hold, Hold::Nothing);
        let begins = held && state.begins;
        let small = lead && matches!(state.hold, Hold::Large);
        let carrying = state.links - usize::from(held && state.lead_joined);
        let alone = carrying <= 1 && state.expected.unwrap_or(self.connections()) <= 1 && !small;
        let State { jobs, returned, targets, .. } = &mut *state;
        let fits = |job: &mut Job| {
            is_free(job, targets)
                && !(small && job.bytes() > PULL_AHEAD_BYTES)
                && ((alone && job.range.is_none()) || fits(job))
        };
        // What broke many is tried once more through ssh.
        let again = |job: &mut Job| match lead && held {
            true => job.broke >= MAX_BROKE,
            false => (lead || job.broke < MAX_BROKE) && fits(job),
        };
        let job = if lead || held { returned.pop_front_if(again) } else { None };
        let own = |job: &mut Job| match (held, lead) {
            (true, true) => self.is_leads(job, begins) && is_free(job, targets) || small && fits(job),
            _ => !self.is_leads(job, begins) && fits(job),
        };
        let job = job.or_else(|| jobs.pop_front_if(own))?;
        if job.range.is_none() {
            targets.insert(job.target.clone());
        }
        let next_is_leads = jobs.front().is_some_and(|next| self.is_leads(next, begins));
        if held && (lead || next_is_leads) {
            // What stands behind it may be for others, or for the lead.
            wake(state, !lead);
        }
        Some(job)
    }

    /// Says that this connection, which `process` serves, waits for jobs. True when there are some already, or none will come.
    pub(crate) fn wait(&self, waker: &Waker, process: Option<Hash>) -> bool {
        let mut state = self.state();
        let held = !matches!(state.hold, Hold::Nothing);
        let again = state.returned.front().filter(|job| held && job.broke < MAX_BROKE);
        let first = state.jobs.front().filter(|job| !self.is_leads(job, held && state.begins));
        let is_free = |job: &Job| job.may_go_to(process) && is_free(job, &state.targets);
        if state.over || self.is_retired() || first.into_iter().chain(again).any(is_free) {
            return true;
        }
        if !state.idle.iter().any(|idle| Arc::ptr_eq(&idle.0, &waker.0)) {
            state.idle.push(waker.clone());
        }
        false
    }

    pub(crate) fn finish(&self, finished: Finished) {
        if let Ok((_, bytes, Way::Moved(_))) = finished.result {
            self.2.add(bytes);
        }
        let mut state = self.state();
        state.targets.remove(&finished.job.target);
        state.look_for_room(&finished);
        state.finished.push(finished);
        wake(state, true);
    }

    /// The source of `job`, a whole file, is not what was listed where another process reads it: it goes to the first connection.
    pub(crate) fn leave_to_lead(&self, job: Job) {
        let mut state = self.state();
        state.targets.remove(&job.target);
        state.returned.push_back(job);
        wake(state, true);
    }

    /// The source of `job`, a whole file, has changed while it was read: whoever is free tries once more.
    pub(crate) fn try_again(&self, job: Job) {
        let mut state = self.state();
        state.targets.remove(&job.target);
        state.jobs.push_front(Job { again: true, ..job });
        wake(state, false);
    }

    /// Has `job`, a whole file, moved in ranges, which go before all else, apart from the blocks whose chaining values are
    /// `known`. Tokens here, and there with the `process` for which it means something if others do not. `owner` is woken
    /// when they are done.
    pub(crate) fn begin_ranges(
        &self,
        job: &Job,
        (token, there, process): (u64, u64, Option<Hash>),
        known: &[Option<Hash>],
        owner: Waker,
    ) {
        let mut state = self.state();
        let ranges = missing(job.attributes.size, self.0.ranging.bytes, known);
        let ranges = ranges.map(|(offset, length)| Range { token, there, process, offset, length });
        let jobs: Vec<Job> = ranges.map(|range| Job { range: Some(range), ..job.clone() }).collect();
        let known = known.iter().enumerate().filter_map(|(index, hash)| hash.map(|hash| (index, hash)));
        let done = known.map(|(index, hash)| (index as u64 * HASH_BLOCK_BYTES as u64, vec![hash])).collect();
        state.ranged.insert(token, Ranged { owner, left: jobs.len(), done, failure: None });
        jobs.into_iter().rev().for_each(|job| state.jobs.push_front(job));
        wake(state, false);
    }

    /// A range is done, or cannot be.
    pub(crate) fn finish_range(&self, range: Range, result: Result<Vec<Hash>, Failure>) {
        self.2.add(if result.is_ok() { range.length } else { 0 });
        let owner = self.state().finish_range(range, result);
        owner.iter().for_each(Waker::wake);
    }

    /// The chaining values of all blocks of the file, once all its ranges are done, or why they cannot be.
    pub(crate) fn take_ranges(&self, token: u64) -> Option<Result<Vec<Hash>, Failure>> {
        let mut state = self.state();
        state.ranged.get(&token).filter(|ranged| ranged.left == 0)?;
        let Ranged { done, failure, .. } = state.ranged.remove(&token)?;
        Some(failure.map_or_else(|| Ok(done.into_values().flatten().collect()), Err))
    }

    /// Nobody waits for these ranges any more.
    pub(crate) fn forget_ranges(&self, token: u64) {
        let mut state = self.state();
        state.ranged.remove(&token);
        state.drop_ranges(token);
    }

    pub(crate) fn take_finished(&self) -> Vec<Finished> {
        std::mem::take(&mut self.state().finished)
    }

    /// No job will come any more.
    pub fn end(&self) {
        let mut state = self.state();
        state.over = true;
        state.jobs.clear();
        state.returned.clear();
        wake(state, false);
    }

    /// True once no job will come any more.
    pub fn is_over(&self) -> bool {
        self.state().over
    }
}

impl State {
    /// Whoever was to finish this job cannot. Who is to be woken for that, beside the lead.
    fn give_back(&mut self, joined: u64, job: Job) -> Option<Waker> {
        // Without the lead a file that went on would be of no run.
        if self.over {
            return None;
        }
        if job.range.is_none() {
            self.targets.remove(&job.target);
        }
        if let Some(range) = job.range {
            // Ranges of a file that was given up are nobody's, and those of one that failed need not be tried again.
            let failure = self.ranged.get(&range.token)?.failure.clone();
            if let Some(failure) = failure {
                return self.finish_range(range, Err(failure));
            }
        }
        let counts = job.broke == 0 || joined >= job.broke_at;
        let job = if counts { Job { broke: job.broke.saturating_add(1), broke_at: self.left, ..job } } else { job };
        if job.broke < MAX_BROKE || !self.only_direct {
            self.returned.push_back(job);
            return None;
        }
        let failure = Failure::rule(&job.source_shown, "not copied", "every connection broke that carried it");
        match job.range {
            Some(range) => return self.finish_range(range, Err(failure)),
            None => self.finished.push(Finished { job, result: Err(failure) }),
        }
        None
    }

    /// Who is to be woken for that.
    fn finish_range(&mut self, range: Range, result: Result<Vec<Hash>, Failure>) -> Option<Waker> {
        // Of an attempt that was given up.
        let ranged = self.ranged.get_mut(&range.token)?;
        ranged.finish(range, result);
        if ranged.failure.is_some() {
            // The others need not be tried.
            let dropped = self.drop_ranges(range.token);
            self.ranged.get_mut(&range.token)?.left -= dropped;
        }
        let ranged = self.ranged.get(&range.token)?;
        (ranged.left == 0).then(|| ranged.owner.clone())
    }

    /// Forgets ranges that nobody has begun. How many there were.
    fn drop_ranges(&mut self, token: u64) -> usize {
        let before = self.jobs.len() + self.returned.len();
        let other = |job: &Job| job.range.is_none_or(|range| range.token != token);
        self.jobs.retain(other);
        self.returned.retain(other);
        before - self.jobs.len() - self.returned.len()
    }
}

/// True when nobody writes to where this job would.
fn is_free(job: &Job, targets: &HashSet<Target>) -> bool {
    job.range.is_some() || !targets.contains(&job.target)
}

/// Wakes who waits, after the lock is gone.
fn wake(mut state: MutexGuard<'_, State>, lead: bool) {
    let idle = std::mem::take(&mut state.idle);
    let lead = state.lead.clone().filter(|_| lead);
    drop(state);
    idle.iter().chain(&lead).for_each(Waker::wake);
}

#[cfg(test)]
mod processes;
#[cfg(test)]
mod retirement;
#[cfg(test)]
mod tests;
