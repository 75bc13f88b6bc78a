//! One connection's share of the files of a run: pulled from the queue, looked at, moved.
//!
//! ```text
//! pull -> [LookThere | LookHere -same size-> Comparing -equal-> unchanged] -> Moving [-> Checking] -> finish
//!      -> Cloning (within one machine) -the kernel cannot-> Moving
//! ```
//! The steps in brackets are those of a run that resumes. `Checking` has the peer read the whole file again, where nothing
//! else has proved it.

use super::client::{Answer, Desk, Reply};
use super::put::Offered;
use super::report::Direction;
use super::same::Same;
use super::{Failure, Outcome, get, put, stat};
use crate::backend::{DirId, Errno, Finish, FsOp, OpKind, Output, Place};
use crate::limits::{CLONES, PULL_AHEAD_BYTES, RESUME_BYTES};
use crate::queue::{Finished, Job, Queue, Way};
use crate::wire::frame::{Attributes, Caps, Ext, Hash, Kind, Preserve};
use crate::wire::path::Target;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

const LOOK: u32 = 92;
const CLONE: u32 = 81;
/// Tags of requests made here; the drivers' own are below.
const TAG: u64 = 1 << 63;

enum Stage {
    LookThere,
    LookHere,
    /// Whole files, or the first bytes of ours and all of theirs.
    Comparing(Option<u64>),
    Cloning,
    Moving,
    /// What was moved, or only appended to, is read again over there.
    Checking {
        size: u64,
        appended: bool,
    },
}

struct Running {
    job: Job,
    stage: Stage,
}

/// The files one connection is at.
pub(super) struct Jobs {
    queue: Queue,
    /// Root of this machine's paths.
    local: DirId,
    /// The peer is this machine: its paths, below this root, are ours too.
    same_machine: Option<DirId>,
    running: HashMap<u64, Running>,
    last_tag: u64,
    bytes: u64,
    joined: bool,
}

impl Jobs {
    pub(super) fn new(queue: Queue, local: DirId, same_machine: Option<DirId>) -> Jobs {
        Jobs { queue, local, same_machine, running: HashMap::new(), last_tag: TAG, bytes: 0, joined: false }
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Takes what this connection can do now. The first call joins the queue.
    pub(super) fn pump(&mut self, lead: bool, desk: &mut Desk<'_, '_>) {
        if !std::mem::replace(&mut self.joined, true) {
            self.queue.join(lead.then(|| desk.io.cx.waker.clone()));
        }
        while desk.has_room() && self.cloning() < CLONES {
            // A connection that is busy leaves the rest to the others.
            let fits = |job: &Job| {
                // What a peer says of sizes need not make sense.
                self.running.is_empty() || self.bytes.saturating_add(job.attributes.size) <= PULL_AHEAD_BYTES
            };
            let Some(job) = self.queue.pull(fits) else { break };
            self.start(job, desk);
        }
    }

    /// True when nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    fn cloning(&self) -> usize {
        self.running.values().filter(|running| matches!(running.stage, Stage::Cloning)).count()
    }

    fn tag(&mut self, job: Job, stage: Stage) -> u64 {
        self.last_tag += 1;
        self.running.insert(self.last_tag, Running { job, stage });
        self.last_tag
    }

    fn here(&self, target: &Target) -> Place {
        Place { dir: self.local, target: target.clone() }
    }

    fn start(&mut self, job: Job, desk: &mut Desk<'_, '_>) {
        self.bytes = self.bytes.saturating_add(job.attributes.size);
        let options = self.queue.options();
        if let Some(root) = self.same_machine {
            let (from, to) = (self.here(&job.source), Place { dir: root, target: job.target.clone() });
            let (preserve, sync) = (options.preserve, options.sync);
            let finish = Finish { attributes: Some(job.attributes), preserve, sync, verify: None };
            desk.io.submit(CLONE, OpKind::Fs(Box::new(FsOp::Clone { from, to, finish })));
            self.tag(job, Stage::Cloning);
        } else if !options.resume {
            self.move_file(job, None, desk);
        } else if self.queue.direction() == Direction::Down {
            let place = self.here(&job.target);
            desk.io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place, follow: false })));
            self.tag(job, Stage::LookHere);
        } else {
            let (target, shown) = (job.target.clone(), job.target_shown.clone());
            let tag = self.tag(job, Stage::LookThere);
            match desk.io.terms.ext(Ext::TREE) {
                true => desk.ask(tag, Box::new(stat::ask_lookup(target, false, shown))),
                false => desk.ask(tag, Box::new(stat::ask(target, shown))),
            }
        }
    }

    /// `append`: so many bytes are over there already, and are right.
    fn move_file(&mut self, job: Job, append: Option<u64>, desk: &mut Desk<'_, '_>) {
        let options = self.queue.options();
        let (attributes, size) = (job.attributes, job.attributes.size);
        let continued = options.resume && size >= RESUME_BYTES;
        let (source, target) = (job.source.clone(), job.target.clone());
        let (source_shown, target_shown) = (job.source_shown.clone(), job.target_shown.clone());
        let tag = self.tag(job, Stage::Moving);
        if self.queue.direction() == Direction::Down {
            let local = self.here(&target);
            let wanted = get::Wanted {
                remote: source,
                remote_path: source_shown,
                local,
                local_path: target_shown,
                attributes,
                preserve: options.preserve,
                sync: options.sync,
                continued,
            };
            desk.ask(tag, Box::new(get::Fetch::new(wanted)));
        } else {
            let local = self.here(&source);
            let (local_path, remote_path, preserve) = (source_shown, target_shown, options.preserve);
            let offered = Offered { local, local_path, remote: target, remote_path, preserve, size, continued, append };
            desk.ask(tag, Box::new(put::Upload::new(offered)));
        }
    }

    fn compare(&mut self, job: Job, limit: Option<u64>, stage: Stage, desk: &mut Desk<'_, '_>) {
        let (here, there, shown) = match self.queue.direction() {
            Direction::Down => (&job.target, job.source.clone(), job.target_shown.clone()),
            _ => (&job.source, job.target.clone(), job.source_shown.clone()),
        };
        let ask = Same::new(self.here(here), shown, there, limit);
        let tag = self.tag(job, stage);
        desk.ask(tag, Box::new(ask));
    }

    /// What stands at the target is known, if anything does.
    fn on_looked(&mut self, job: Job, present: Option<Attributes>, desk: &mut Desk<'_, '_>) {
        let size = job.attributes.size;
        let there = present.filter(|present| present.kind == Kind::Regular && present.size > 0).map(|p| p.size);
        let up = self.queue.direction() == Direction::Up;
        // Base peers keep what is incomplete under the final name. The first of them take an offset without saying so, and
        // a wrong one would be found by the hash of the whole.
        let takes_offsets = desk.io.terms.caps.has(Caps::PUT_OFFSET) || desk.io.terms.dialect.version == 1;
        let appends = up && !desk.io.terms.ext(Ext::RESUME) && takes_offsets;
        match there {
            Some(there) if there == size => self.compare(job, None, Stage::Comparing(None), desk),
            Some(there) if there < size && appends => {
                self.compare(job, Some(there), Stage::Comparing(Some(there)), desk);
            }
            _ => self.move_file(job, None, desk),
        }
    }

    /// Takes an answer, if it is to a request made here.
    pub(super) fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>) -> Option<Answer> {
        let Some(Running { job, stage }) = self.running.remove(&tag) else { return Some(answer) };
        match (stage, answer) {
            (Stage::LookThere, Ok(Reply::Attributes(attributes))) => self.on_looked(job, Some(attributes), desk),
            (Stage::LookThere, _) => self.on_looked(job, None, desk),
            (Stage::Comparing(None), Ok(Reply::Same(Some(hash)))) => {
                desk.io.progress.skipped(job.attributes.size);
                let size = job.attributes.size;
                self.done(job, (Some(hash), size, Way::Unchanged), desk);
            }
            (Stage::Comparing(Some(there)), Ok(Reply::Same(Some(_)))) => self.move_file(job, Some(there), desk),
            (Stage::Comparing(_), _) => self.move_file(job, None, desk),
            (Stage::Moving, Ok(Reply::Moved { hash, size })) => self.on_moved(job, hash, size, desk),
            (Stage::Checking { size, .. }, Ok(Reply::Same(Some(hash)))) => {
                self.done(job, (Some(hash), size, Way::Moved(self.queue.direction())), desk);
            }
            // What was there has become something else meanwhile, or the offset was not taken: all of it, then.
            (Stage::Checking { appended: true, .. }, Ok(_)) => self.move_file(job, None, desk),
            (Stage::Checking { .. }, Ok(_)) => {
                let rule = "the server's copy has another hash; it is bad";
                let failure = Failure::rule(&job.target_shown, "cannot verify", rule);
                self.finish(job, Err(failure));
            }
            (_, Err(failure)) => self.finish(job, Err(failure)),
            (_, Ok(_)) => {
                let failure = Failure::here(&job.source_shown, "not copied", Errno::IO);
                self.finish(job, Err(failure));
            }
        }
        None
    }

    fn on_moved(&mut self, job: Job, hash: Option<Hash>, size: u64, desk: &mut Desk<'_, '_>) {
        let options = self.queue.options();
        let up = self.queue.direction() == Direction::Up;
        // A haul server has read it again before it got its name.
        let unread = options.preserve.has(Preserve::VERIFY) && !desk.io.terms.ext(Ext::VERIFY);
        // A server that hashes nothing has to be asked what it read.
        let unhashed = options.preserve.has(Preserve::VERIFY) && !up && desk.io.terms.caps.has(Caps::FAST);
        if unhashed || (up && (unread || hash.is_none())) {
            let appended = up && hash.is_none();
            return self.compare(job, None, Stage::Checking { size, appended }, desk);
        }
        self.done(job, (hash, size, Way::Moved(self.queue.direction())), desk);
    }

    fn on_cloned(&mut self, job: Job, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        match outcome {
            Ok(Output::Cloned { hash, size }) => {
                desk.io.progress.moved(usize::try_from(size).unwrap_or(usize::MAX));
                self.done(job, (Some(hash), size, Way::Moved(Direction::Local)), desk);
            }
            Err(Errno::INVALID) => {
                let rule = "source and target are the same file";
                let failure = Failure::rule(&job.source_shown, "not copied", rule);
                self.finish(job, Err(failure));
            }
            outcome => {
                if matches!(outcome, Err(Errno::UNSUPPORTED)) {
                    self.same_machine = None;
                }
                // Tried as an ordinary put, which works or says which side is to blame.
                self.move_file(job, None, desk);
            }
        }
    }

    fn done(&mut self, job: Job, how: (Option<Hash>, u64, Way), desk: &Desk<'_, '_>) {
        desk.io.progress.files.fetch_add(1, Ordering::Relaxed);
        self.finish(job, Ok(how));
    }

    fn finish(&mut self, job: Job, result: Result<(Option<Hash>, u64, Way), Failure>) {
        self.bytes = self.bytes.saturating_sub(job.attributes.size);
        self.queue.finish(Finished { job, result });
    }

    /// Takes note of a completion, if it is of an operation started here.
    pub(super) fn on_completion(
        &mut self,
        kind: OpKind,
        outcome: Outcome,
        desk: &mut Desk<'_, '_>,
    ) -> Option<(OpKind, Outcome)> {
        let OpKind::Fs(op) = &kind else { return Some((kind, outcome)) };
        let tag = match &**op {
            FsOp::Clone { from, to, .. } => self.find(|running| {
                matches!(running.stage, Stage::Cloning)
                    && running.job.source == from.target
                    && running.job.target == to.target
            }),
            FsOp::Stat { place, .. } => {
                self.find(|running| matches!(running.stage, Stage::LookHere) && running.job.target == place.target)
            }
            _ => None,
        };
        let Some(Running { job, stage }) = tag.and_then(|tag| self.running.remove(&tag)) else {
            return Some((kind, outcome));
        };
        match (stage, outcome) {
            (Stage::Cloning, outcome) => self.on_cloned(job, outcome, desk),
            (_, Ok(Output::Attributes { attributes, .. })) => self.on_looked(job, Some(attributes), desk),
            (_, _) => self.on_looked(job, None, desk),
        }
        None
    }

    fn find(&self, is: impl Fn(&Running) -> bool) -> Option<u64> {
        self.running.iter().find(|(_, running)| is(running)).map(|(&tag, _)| tag)
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        if self.joined {
            let mut unfinished: Vec<Job> = self.running.drain().map(|(_, running)| running.job).collect();
            unfinished.sort_by_key(|job| job.number);
            self.queue.leave(unfinished);
        }
    }
}
