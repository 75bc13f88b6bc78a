//! One connection's share of the files of a run: pulled from the queue, looked at, moved.
//!
//! ```text
//! pull -> [LookThere | LookHere -same size-> Comparing -equal-> [Mending] unchanged] -> Moving [-> Checking] -> finish
//!      -> Cloning (within one machine) -the kernel cannot-> Moving
//!      -> Beginning (a file here, or one there) -> [Matching] -> Ranges (all connections) -> Proving -> [Naming] -> finish
//! ```
//! A large file is moved in ranges if the run has several connections, or direct ones, which may break and come again. Down,
//! they are written to a file without a name, or one that is kept. Up, a haul server has the same (range.rs), for all direct
//! connections of one login, and for logins that have gathered in one process, which each asks for first; base servers have
//! ranges written where the file stands (chunked.rs): done only towards those that do the same with every Put (version 1).
//! The steps in brackets are those of a run that resumes. `Checking` has the peer read the whole file again, where nothing
//! else has proved it.

use super::client::{Answer, Desk, Reply};
use super::gather::Gathered;
use super::plan::Options;
use super::put::Offered;
use super::range::{self};
use super::report::Direction;
use super::same::Same;
use super::{Cause, Failure, Outcome, get, mkdir, put, stat, verb};
use crate::backend::{DirId, Errno, FileId, Finish, FsOp, OpKind, OpenMode, Output, Place};
use crate::limits::{CLONES, PULL_AHEAD_BYTES, RESUME_BYTES};
use crate::queue::{Finished, Job, Queue, Way};
use crate::wire::frame::{Attributes, Caps, ErrorCode, Ext, Hash, Kind, Preserve, Unkept};
use crate::wire::path::Target;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

mod ranges;

pub(super) const LOOK: u32 = 92;
const CLONE: u32 = 81;
const BEGIN: u32 = 93;
const NAME: u32 = 94;
const MEND: u32 = 95;
/// Tags of requests made here; the drivers' own are below.
const TAG: u64 = 1 << 63;
/// Of the question whether anybody is there.
const PING: u64 = u64::MAX;
/// Of the question which process it is.
const WHICH: u64 = u64::MAX - 1;

pub(super) enum Stage {
    LookThere,
    LookHere,
    /// What the source is by now, which has changed.
    LookAgain,
    /// Whole files, or the first bytes of ours and all of theirs. What the target is.
    Comparing(Option<u64>, Attributes),
    /// The content is there; its attributes are set.
    Mending(Hash),
    Cloning,
    Moving,
    /// The file that ranges will be written to is made: here, or, once the source is known to open, there.
    Beginning(u64),
    /// What is there of it is compared; the file here is open.
    Matching(u64, FileId),
    /// Others move its ranges, too. Here, the file they are written to; there, its token.
    Ranges(u64, Option<FileId>, u64),
    /// It failed, and the server is told.
    Abandoning(Failure),
    /// All ranges are there; their hash and the peer's of the whole file.
    Proving(Hash, Option<FileId>),
    /// The file made of ranges gets its name.
    Naming(Hash, FileId),
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
    pub(super) queue: Queue,
    /// Root of this machine's paths.
    local: DirId,
    /// The peer is this machine: its paths, below this root, are ours too.
    same_machine: Option<DirId>,
    running: HashMap<u64, Running>,
    last_tag: u64,
    pub(super) bytes: u64,
    /// A file was begun that is to go in ranges: until then, none needs to be looked for among those under way.
    ranged: bool,
    /// What the queue said then.
    joined: Option<u64>,
    gathered: Gathered,
    /// This is the first connection, whose process has listed what is copied.
    leads: bool,
}

impl Jobs {
    pub(super) fn new(queue: Queue, local: DirId, same_machine: Option<DirId>) -> Jobs {
        let running = HashMap::new();
        let gathered = Gathered::default();
        Jobs {
            queue,
            local,
            same_machine,
            running,
            last_tag: TAG,
            bytes: 0,
            ranged: false,
            joined: None,
            gathered,
            leads: false,
        }
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Which one serves this connection, where that was asked for.
    pub(super) fn process(&self) -> Option<Hash> {
        self.gathered.process()
    }

    /// Takes what this connection can do now. The first call joins the queue.
    pub(super) fn pump(&mut self, lead: bool, desk: &mut Desk<'_, '_>) {
        self.leads = lead;
        if self.joined.is_none() {
            self.joined = Some(self.queue.join(lead.then(|| desk.io.cx.waker.clone())));
            self.gathered = Gathered::ask(lead, &self.queue, WHICH, desk);
        }
        self.look_at_ranges(desk);
        if lead && desk.io.terms.ext(Ext::PULSE) && desk.outstanding() == 0 && self.queue.take_alarm() {
            // What befell the other one may have befallen this one too, which nobody would notice.
            desk.ask(PING, Box::new(range::ask_ping()));
        }
        while desk.has_room() && self.cloning() < CLONES && !self.is_beginning() && !self.gathered.is_asking() {
            // A connection that is busy leaves the rest to the others.
            let fits = |job: &Job| {
                // One range is asked for ahead. What a peer says of sizes need not make sense.
                let early = self.bytes == 0
                    || (job.range.is_some() && self.bytes <= self.queue.ranging().bytes)
                    || self.bytes.saturating_add(job.bytes()) <= PULL_AHEAD_BYTES;
                early && job.may_go_to(self.gathered.process())
            };
            let Some(job) = self.queue.pull(lead, fits) else { break };
            self.start(job, desk);
        }
    }

    /// True when nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && !self.gathered.is_asking()
    }

    /// One file for ranges is made at a time: what comes next are its ranges.
    fn is_beginning(&self) -> bool {
        let begins = |running: &Running| matches!(running.stage, Stage::Beginning(_) | Stage::Matching(..));
        self.ranged && self.running.values().any(begins)
    }

    fn cloning(&self) -> usize {
        if self.same_machine.is_none() {
            return 0;
        }
        self.running.values().filter(|running| matches!(running.stage, Stage::Cloning)).count()
    }

    /// True when whatever is under way is in the hands of others.
    pub(super) fn only_waits(&self) -> bool {
        !self.gathered.is_asking() && self.running.values().all(|running| matches!(running.stage, Stage::Ranges(..)))
    }

    pub(super) fn tag(&mut self, job: Job, stage: Stage) -> u64 {
        self.last_tag += 1;
        self.ranged |= matches!(stage, Stage::Beginning(_));
        self.running.insert(self.last_tag, Running { job, stage });
        self.last_tag
    }

    pub(super) fn here(&self, target: &Target) -> Place {
        Place { dir: self.local, target: target.clone() }
    }

    pub(super) fn begin(&mut self, job: Job, desk: &mut Desk<'_, '_>) {
        let options = self.queue.options();
        if let Some(range) = job.range {
            self.move_range(job, range, desk);
        } else if !options.resume {
            self.copy_file(job, desk);
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

    /// All of it, within this machine by the kernel if that can.
    fn copy_file(&mut self, job: Job, desk: &mut Desk<'_, '_>) {
        let Some(root) = self.same_machine else { return self.move_file(job, None, desk) };
        let Options { preserve, sync, .. } = self.queue.options();
        let (from, to) = (self.here(&job.source), Place { dir: root, target: job.target.clone() });
        let finish = Finish { attributes: Some(job.attributes), preserve, sync, verify: None };
        desk.io.submit(CLONE, OpKind::Fs(Box::new(FsOp::Clone { from, to, finish })));
        self.tag(job, Stage::Cloning);
    }

    /// The content is there. What a copy would set beside it is set where it is another.
    fn mend(&mut self, job: Job, hash: Hash, present: Attributes, desk: &mut Desk<'_, '_>) {
        desk.io.progress.skipped(job.attributes.size);
        let (wanted, size, preserve) = (job.attributes, job.attributes.size, self.queue.options().preserve);
        let down = self.queue.direction() == Direction::Down;
        if !desk.io.terms.ext(Ext::META) {
            if !down && present.mtime.seconds != wanted.mtime.seconds {
                desk.unkept(&job.target_shown, Unkept::TIMES);
            }
            return self.done(job, (Some(hash), size, Way::Unchanged), desk);
        }
        let is_so = present.mtime == wanted.mtime
            && (!preserve.has(Preserve::MODE) || present.mode == wanted.mode)
            && (!preserve.has(Preserve::OWNER) || (present.uid, present.gid) == (wanted.uid, wanted.gid));
        if is_so {
            return self.done(job, (Some(hash), size, Way::Unchanged), desk);
        }
        if down {
            let op = FsOp::SetMeta { place: self.here(&job.target), attributes: wanted, preserve };
            desk.io.submit(MEND, OpKind::Fs(Box::new(op)));
            self.tag(job, Stage::Mending(hash));
        } else {
            let ask = mkdir::ask_set_meta(job.target.clone(), wanted, preserve, job.target_shown.clone());
            let tag = self.tag(job, Stage::Mending(hash));
            desk.ask(tag, Box::new(ask));
        }
    }

    /// What comes down here is sent by another process than the one that listed it. Each resolves the operand for itself, and
    /// who may rename it can show them two. Direct connections come to one process.
    fn is_elsewhere(&self, desk: &Desk<'_, '_>) -> bool {
        let one = self.leads || self.queue.is_held() || self.queue.meets_one_server();
        !one && self.queue.direction() == Direction::Down && desk.io.terms.ext(Ext::META)
    }

    /// `append`: so many bytes are over there already, and are right.
    fn move_file(&mut self, job: Job, append: Option<u64>, desk: &mut Desk<'_, '_>) {
        if append.is_none() && !job.again && self.goes_in_ranges(&job, desk) {
            return self.begin_ranges(job, desk);
        }
        let options = self.queue.options();
        let (attributes, size) = (job.attributes, job.attributes.size);
        let continued = options.resume && size >= RESUME_BYTES;
        let (source, target) = (job.source.clone(), job.target.clone());
        let (source_shown, target_shown) = (job.source_shown.clone(), job.target_shown.clone());
        let afresh = job.again;
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
                afresh,
                elsewhere: self.is_elsewhere(desk),
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
        let ask = Same::new(self.here(here), shown, there, (limit, job.attributes.size));
        let tag = self.tag(job, stage);
        desk.ask(tag, Box::new(ask));
    }

    /// What stands at the target is known, if anything does.
    fn on_looked(&mut self, job: Job, present: Option<Attributes>, desk: &mut Desk<'_, '_>) {
        let size = job.attributes.size;
        let present = present.filter(|present| present.kind == Kind::Regular && present.size > 0);
        let up = self.queue.direction() == Direction::Up;
        // Base peers keep what is incomplete under the final name. The first of them take an offset without saying so, and
        // a wrong one would be found by the hash of the whole.
        let takes_offsets = desk.io.terms.caps.has(Caps::PUT_OFFSET) || desk.io.terms.dialect.version == 1;
        let appends = up && !desk.io.terms.ext(Ext::RESUME) && takes_offsets;
        match present {
            Some(there) if there.size == size => self.compare(job, None, Stage::Comparing(None, there), desk),
            Some(there) if there.size < size && appends => {
                self.compare(job, Some(there.size), Stage::Comparing(Some(there.size), there), desk);
            }
            _ => self.copy_file(job, desk),
        }
    }

    /// Takes an answer, if it is to a request made here.
    pub(super) fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>) -> Option<Answer> {
        match tag {
            PING => return None,
            WHICH => {
                self.gathered.on_answer(answer, &self.queue);
                return None;
            }
            _ => {}
        }
        let Some(Running { mut job, stage }) = self.running.remove(&tag) else { return Some(answer) };
        match (stage, answer) {
            (Stage::LookThere, Ok(Reply::Attributes(attributes))) => self.on_looked(job, Some(attributes), desk),
            (Stage::LookThere, _) => self.on_looked(job, None, desk),
            (Stage::LookAgain, Ok(Reply::Attributes(attributes))) => self.on_looked_again(job, attributes, desk),
            (Stage::Comparing(None, present), Ok(Reply::Same(Some(hash)))) => self.mend(job, hash, present, desk),
            (Stage::Comparing(Some(there), _), Ok(Reply::Same(Some(_)))) => self.move_file(job, Some(there), desk),
            (Stage::Comparing(..), _) => self.copy_file(job, desk),
            (Stage::Mending(hash), Ok(_)) => {
                let size = job.attributes.size;
                self.done(job, (Some(hash), size, Way::Unchanged), desk);
            }
            (Stage::Moving, Ok(Reply::Moved { hash, size, grew })) => {
                job.grew = grew;
                self.on_moved(job, hash, size, desk);
            }
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
            (Stage::Moving, Ok(Reply::Range(chaining))) => self.end_range(job, Ok(chaining)),
            (Stage::Beginning(token), Ok(_)) => self.hand_out(job, token, None, (0, &[]), desk),
            (Stage::Matching(token, file), answer) => self.on_matched(job, token, file, answer, desk),
            (Stage::Abandoning(failure), _) => self.finish(job, Err(failure)),
            (Stage::Proving(hash, file), answer) => self.on_proved(job, hash, file, answer, desk),
            (_, Err(failure)) => match job.range {
                // The file is tried once more, as a whole.
                Some(_) if self.is_elsewhere(desk) && is_about_source(&failure) => {
                    let failure = Failure::here(&job.source_shown, "cannot read", Errno::CHANGED);
                    self.end_range(job, Err(failure));
                }
                Some(_) => self.end_range(job, Err(failure)),
                // Whoever has listed it has it still.
                None if self.is_elsewhere(desk) && is_about_source(&failure) => {
                    self.bytes = self.bytes.saturating_sub(job.attributes.size);
                    self.queue.leave_to_lead(job);
                }
                None => self.finish(job, Err(failure)),
            },
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
        // Of a source that has grown the other end has the beginning.
        let limit = job.grew.then_some(size);
        let unread = options.preserve.has(Preserve::VERIFY) && !desk.io.terms.ext(Ext::VERIFY);
        // A server that hashes nothing has to be asked what it read.
        let unhashed = options.preserve.has(Preserve::VERIFY) && !up && desk.io.terms.caps.has(Caps::FAST);
        let sent_unhashed = up && hash.is_none() && desk.io.terms.puts_unhashed();
        if sent_unhashed && !options.preserve.has(Preserve::VERIFY) {
            return self.done(job, (None, size, Way::Moved(Direction::Up)), desk);
        }
        if unhashed || (up && (unread || hash.is_none())) {
            let appended = up && hash.is_none() && !sent_unhashed;
            return self.compare(job, limit, Stage::Checking { size, appended }, desk);
        }
        self.done(job, (hash, size, Way::Moved(self.queue.direction())), desk);
    }

    fn on_cloned(&mut self, mut job: Job, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        match outcome {
            Ok(Output::Cloned { hash, size, unkept, grew }) => {
                desk.unkept(&job.target_shown, unkept);
                desk.io.progress.moved(usize::try_from(size).unwrap_or(usize::MAX));
                job.grew = grew;
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

    fn end_range(&mut self, job: Job, result: Result<Vec<Hash>, Failure>) {
        self.bytes = self.bytes.saturating_sub(job.bytes());
        if let Some(range) = job.range {
            self.queue.finish_range(range, result);
        }
    }

    pub(super) fn finish(&mut self, job: Job, result: Result<(Option<Hash>, u64, Way), Failure>) {
        self.bytes = self.bytes.saturating_sub(job.attributes.size);
        match &result {
            Err(failure) if !job.again && failure.code() == ErrorCode::CHANGED => self.queue.try_again(job),
            _ => self.queue.finish(Finished { job, result }),
        }
    }

    /// Takes note of a completion, if it is of an operation started here.
    pub(super) fn on_completion(
        &mut self,
        kind: OpKind,
        outcome: Outcome,
        desk: &mut Desk<'_, '_>,
    ) -> Option<(OpKind, Outcome)> {
        let op = match &kind {
            OpKind::Fs(op) => op,
            OpKind::Open { .. } | OpKind::Publish { .. } | OpKind::Close { .. } => {
                self.on_file(&kind, outcome, desk);
                return None;
            }
            _ => return Some((kind, outcome)),
        };
        let tag = match &**op {
            FsOp::Clone { from, to, .. } => self.find(|running| {
                matches!(running.stage, Stage::Cloning)
                    && running.job.source == from.target
                    && running.job.target == to.target
            }),
            FsOp::Stat { place, .. } => self.find(|running| match running.stage {
                Stage::LookHere => running.job.target == place.target,
                Stage::LookAgain => running.job.source == place.target,
                _ => false,
            }),
            FsOp::SetMeta { place, .. } => {
                self.find(|running| matches!(running.stage, Stage::Mending(_)) && running.job.target == place.target)
            }
            _ => None,
        };
        let Some(Running { job, stage }) = tag.and_then(|tag| self.running.remove(&tag)) else {
            return Some((kind, outcome));
        };
        match (stage, outcome) {
            (Stage::Cloning, outcome) => self.on_cloned(job, outcome, desk),
            (Stage::LookAgain, outcome) => self.on_stat_again(job, outcome, desk),
            (Stage::Mending(hash), Ok(output)) => {
                desk.unkept(&job.target_shown, verb::unkept(&output));
                let size = job.attributes.size;
                self.done(job, (Some(hash), size, Way::Unchanged), desk);
            }
            (Stage::Mending(_), Err(errno)) => {
                let failure = Failure::here(&job.target_shown, "cannot set attributes", errno);
                self.finish(job, Err(failure));
            }
            (_, Ok(Output::Attributes { attributes, .. })) => self.on_looked(job, Some(attributes), desk),
            (_, _) => self.on_looked(job, None, desk),
        }
        None
    }

    /// A file that ranges are written to was opened, named or closed. Nobody else here opens files.
    fn on_file(&mut self, kind: &OpKind, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let tag = match kind {
            OpKind::Open {
                mode: OpenMode::Shared { token, .. } | OpenMode::Continue { token: Some(token), .. },
                ..
            } => self.find(|running| matches!(running.stage, Stage::Beginning(begun) if begun == *token)),
            OpKind::Open { place, .. } => {
                self.find(|running| matches!(running.stage, Stage::Beginning(_)) && running.job.source == place.target)
            }
            OpKind::Publish { file, .. } => {
                self.find(|running| matches!(running.stage, Stage::Naming(_, named) if named == *file))
            }
            _ => None,
        };
        let Some(Running { job, stage }) = tag.and_then(|tag| self.running.remove(&tag)) else { return };
        match (stage, outcome) {
            (Stage::Beginning(token), outcome) => self.on_begun(job, token, outcome, desk),
            (Stage::Naming(hash, _), Ok(output)) => {
                desk.unkept(&job.target_shown, verb::unkept(&output));
                let size = job.attributes.size;
                self.done(job, (Some(hash), size, Way::Moved(Direction::Down)), desk);
            }
            (_, outcome) => {
                let errno = outcome.err().unwrap_or(Errno::IO);
                let failure = Failure::here(&job.target_shown, "cannot create", errno);
                self.finish(job, Err(failure));
            }
        }
    }

    fn find(&self, is: impl Fn(&Running) -> bool) -> Option<u64> {
        self.running.iter().find(|(_, running)| is(running)).map(|(&tag, _)| tag)
    }
}

/// True of what the server says, or shows, of the file that is read there.
fn is_about_source(failure: &Failure) -> bool {
    matches!(failure.cause, Cause::There { .. }) || failure.code() == ErrorCode::CHANGED
}

impl Drop for Jobs {
    fn drop(&mut self) {
        for running in self.running.values() {
            if let Stage::Ranges(token, ..) = running.stage {
                self.queue.forget_ranges(token);
            }
        }
        if let Some(joined) = self.joined {
            let mut unfinished: Vec<Job> = self.running.drain().map(|(_, running)| running.job).collect();
            unfinished.sort_by_key(|job| job.number);
            self.queue.leave(joined, unfinished);
        }
    }
}
