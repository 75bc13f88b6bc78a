//! The driver of copies from here to the peer.
//!
//! ```text
//! LookAtTarget -answer-> NextSource -Stat-> LookAtSource -file-> (a job) -> NextSource ..
//!                                                        -directory-> Walking -End-> NextSource .. -> Done
//! ```
//! Directories are asked for as they are found, files become jobs, and a directory's attributes are set when everything
//! found before the walk left it is done.

use super::client::{Answer, Client, Desk, Driver, Opening, Reply};
use super::jobs::Jobs;
use super::landed::Landed;
use super::lead::Lead;
use super::plan::{Landing, Operand, skip_reason};
use super::report::{Report, Reporter, SharedProgress};
use super::walk::{Found, Step, Walker};
use super::{Failure, Outcome, Reason, mkdir, stat};
use crate::backend::{DirId, Errno, FsOp, OpKind, Output, Place, StreamId};
use crate::queue::Queue;
use crate::wire::frame::{Attributes, ErrorCode, Ext, Kind};
use crate::wire::path::{RequestPath, Target};
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

const LOOK: u32 = 80;

const MISSING: ErrorCode = ErrorCode(ErrorCode::ERRNO_BASE + 2);

/// What to copy from here, and where to.
pub struct Plan {
    /// Root of the local operands.
    pub local: DirId,
    /// What to copy.
    pub sources: Vec<Operand>,
    /// Where to, on the peer.
    pub target: Operand,
    /// The files, for this connection and others; it knows how they are copied.
    pub queue: Queue,
    /// The peer is this machine: its paths, below this root, are ours too.
    pub same_machine: Option<DirId>,
}

enum State {
    LookAtTarget,
    AwaitTarget,
    NextSource,
    LookAtSource(Operand),
    Walking { walker: Box<Walker>, source: Operand, base: Target },
    Done,
}

/// What a request was about, and its number where a directory waits for it.
struct Pending {
    what: What,
    target: Target,
    number: Option<u64>,
}

enum What {
    Target,
    /// Of a target that is not there: its directory.
    Parent,
    Directory,
    Link(Vec<u8>),
    Attributes,
}

/// A directory that the walk has left; its attributes wait for everything begun before `after`.
struct Leaving {
    after: u64,
    target: Target,
    attributes: Attributes,
}

pub(crate) struct Upload {
    local: DirId,
    sources: VecDeque<Operand>,
    landing: Landing,
    landed: Landed,
    lead: Lead,
    state: State,
    pending: HashMap<u64, Pending>,
    next_tag: u64,
    leaving: VecDeque<Leaving>,
    noticed: bool,
}

/// A client that carries `plan` out over `stream`.
pub fn client(stream: StreamId, opening: Opening, plan: Plan, progress: SharedProgress, reporter: Reporter) -> Client {
    let many = plan.sources.len() > 1;
    let landing = Landing { target: plan.target, options: plan.queue.options(), many, present: None };
    let driver = Upload {
        local: plan.local,
        sources: plan.sources.into(),
        landing,
        landed: Landed::default(),
        lead: Lead::new(Jobs::new(plan.queue, plan.local, plan.same_machine)),
        state: State::LookAtTarget,
        pending: HashMap::new(),
        next_tag: 0,
        leaving: VecDeque::new(),
        noticed: false,
    };
    Client::new(stream, opening, Box::new(driver), progress, reporter)
}

impl Upload {
    fn tag(&mut self, what: What, target: Target) -> u64 {
        let number = matches!(what, What::Link(_)).then(|| self.lead.begin());
        self.next_tag += 1;
        self.pending.insert(self.next_tag, Pending { what, target, number });
        self.next_tag
    }

    fn look_at(&mut self, operand: RequestPath, what: What, desk: &mut Desk<'_, '_>) {
        let target = Target { operand, below: None };
        let shown = self.landing.target.shown.clone();
        let tag = self.tag(what, target.clone());
        if desk.io.terms.ext(Ext::TREE) {
            desk.ask(tag, Box::new(stat::ask_lookup(target, true, shown)));
        } else {
            desk.ask(tag, Box::new(stat::ask(target, shown)));
        }
        self.state = State::AwaitTarget;
    }

    fn on_target(&mut self, answer: Answer, desk: &mut Desk<'_, '_>) {
        self.state = State::NextSource;
        match answer {
            Ok(Reply::Attributes(attributes)) => self.landing.present = Some(attributes.kind),
            Ok(_) => {}
            Err(failure) if is_missing(&failure) => {
                if let Some(operand) = self.landing.parent_needed() {
                    self.look_at(operand, What::Parent, desk);
                }
            }
            Err(failure) => {
                desk.report(Report::Failed(failure));
                self.sources.clear();
            }
        }
        self.landed = Landed::new(&self.landing, self.sources.iter());
    }

    /// The directory of a target that is not there.
    fn on_parent(&mut self, answer: Answer, desk: &mut Desk<'_, '_>) {
        self.state = State::NextSource;
        let Err(failure) = answer else { return };
        let missing = failure.code() == MISSING;
        let failure = if missing { self.landing.without_parent() } else { failure };
        desk.report(Report::Failed(failure));
        self.sources.clear();
    }

    fn next_source(&mut self, desk: &mut Desk<'_, '_>) {
        let Some(source) = self.sources.pop_front() else {
            desk.io.progress.totals_final.store(1, Ordering::Relaxed);
            self.state = State::Done;
            return;
        };
        self.landed.next();
        let (place, follow) = (self.local_place(&source), source.follows(&self.landing.options));
        desk.io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place, follow })));
        self.state = State::LookAtSource(source);
    }

    fn local_place(&self, source: &Operand) -> Place {
        Place { dir: self.local, target: Target { operand: source.path.clone(), below: None } }
    }

    fn on_source(&mut self, source: Operand, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        self.state = State::NextSource;
        let (attributes, link) = match outcome {
            Ok(Output::Attributes { attributes, link }) => (attributes, link),
            Ok(_) => return,
            Err(errno) => {
                desk.report(Report::Failed(Failure::here(&source.shown, "cannot stat", errno)));
                return;
            }
        };
        let target = match self.landing.of(&source, attributes.kind) {
            Ok(target) => target,
            Err(failure) => {
                // What is wrong with the target is wrong for every source.
                self.sources.clear();
                desk.report(Report::Failed(failure));
                return;
            }
        };
        self.landed.land(&target);
        match attributes.kind {
            Kind::Directory if self.landing.options.recursive => {
                self.make_dir(target.clone(), desk);
                let walker = Box::new(Walker::new(self.local_place(&source), true));
                self.state = State::Walking { walker, source, base: target };
            }
            Kind::Directory => {
                let rule = "it is a directory, and -r was not given";
                desk.report(Report::Failed(
                    Failure::rule(&source.shown, "left out", rule).because(Reason::NeedsRecursive),
                ));
            }
            Kind::Regular => {
                let from = Target { operand: source.path, below: None };
                self.file((from, source.shown), target, attributes, desk);
            }
            Kind::Symlink => self.link(source.shown, target, (link, attributes), desk),
            _ => desk.report(Report::Failed(Failure::here(&source.shown, "cannot open", Errno::NOT_REGULAR))),
        }
    }

    fn link(
        &mut self,
        source: Vec<u8>,
        target: Target,
        (text, attributes): (Vec<u8>, Attributes),
        desk: &mut Desk<'_, '_>,
    ) {
        if !desk.io.terms.ext(Ext::META) {
            return desk.report(Report::Skipped { source, why: skip_reason(Kind::Symlink) });
        }
        let shown = self.landing.shown(&target);
        if let Err(failure) = self.landed.claim(&target, &source, &shown) {
            return desk.report(Report::Failed(failure));
        }
        let tag = self.tag(What::Link(text.clone()), target.clone());
        let preserve = self.landing.options.preserve;
        desk.ask(tag, Box::new(mkdir::ask_symlink(target, text, attributes, preserve, shown)));
    }

    fn file(&mut self, from: (Target, Vec<u8>), target: Target, attributes: Attributes, desk: &mut Desk<'_, '_>) {
        if self.lead.is_behind_link(&target) {
            return;
        }
        let shown = self.landing.shown(&target);
        match self.landed.claim(&target, &from.1, &shown) {
            Ok(()) => self.lead.file(from, (target, shown), attributes, desk),
            Err(failure) => desk.report(Report::Failed(failure)),
        }
    }

    fn make_dir(&mut self, target: Target, desk: &mut Desk<'_, '_>) {
        let shown = self.landing.shown(&target);
        let tag = self.tag(What::Directory, target.clone());
        desk.ask(tag, Box::new(mkdir::ask(target, shown)));
    }

    fn walk(&mut self, desk: &mut Desk<'_, '_>) {
        while desk.has_room() && self.lead.has_room() {
            let State::Walking { walker, source, base } = &mut self.state else { return };
            match walker.next(&mut desk.io) {
                Step::Wait => return,
                Step::End => {
                    self.state = State::NextSource;
                    return;
                }
                Step::Entry(found) => {
                    let shown = source.shown_below(found.path.as_ref());
                    let (place, target) = (walker.place(found.path.as_ref()), base.child(found.path.as_ref()));
                    self.found(found, place, shown, target, desk);
                }
                Step::Leave(..) if self.lead.jobs.queue().is_full() => {}
                Step::Leave(path, attributes) => {
                    let target = base.child(path.as_ref());
                    self.leaving.push_back(Leaving { after: self.lead.next(), target, attributes });
                    self.leave(desk);
                }
            }
        }
    }

    fn found(&mut self, found: Found, place: Place, shown: Vec<u8>, target: Target, desk: &mut Desk<'_, '_>) {
        if let Some(errno) = found.error {
            let what = if found.attributes.kind == Kind::Directory || found.path.is_none() {
                "cannot list"
            } else {
                "cannot stat"
            };
            desk.report(Report::Failed(Failure::here(&shown, what, errno).of_source()));
            return;
        }
        match found.attributes.kind {
            // Where nothing more can be written the walk goes on, to count what that concerns.
            Kind::Directory if self.lead.jobs.queue().is_full() => {}
            Kind::Directory => self.make_dir(target, desk),
            Kind::Regular => self.file((place.target, shown), target, found.attributes, desk),
            Kind::Symlink if self.landing.options.links => {
                self.link(shown, target, (found.link, found.attributes), desk);
            }
            kind => desk.report(Report::Skipped { source: shown, why: skip_reason(kind) }),
        }
    }

    /// Asks for the attributes of directories that nothing more will be put into.
    fn leave(&mut self, desk: &mut Desk<'_, '_>) {
        while desk.has_room()
            && let Some(leaving) = self.leaving.pop_front_if(|next| self.lead.is_done_before(next.after))
        {
            if !desk.io.terms.ext(Ext::META) {
                self.notice(desk);
                continue;
            }
            let shown = self.landing.shown(&leaving.target);
            let tag = self.tag(What::Attributes, leaving.target.clone());
            let preserve = self.landing.options.of_directories();
            desk.ask(tag, Box::new(mkdir::ask_set_meta(leaving.target, leaving.attributes, preserve, shown)));
        }
    }

    fn notice(&mut self, desk: &mut Desk<'_, '_>) {
        if !std::mem::replace(&mut self.noticed, true) {
            let text = "this peer cannot keep modes, times and links";
            desk.report(Report::Notice(text.to_string()));
        }
    }
}

/// Base peers give no number: what is wrong with a target will show when the first file is put, if it is not that.
fn is_missing(failure: &Failure) -> bool {
    [MISSING, ErrorCode::NONE, ErrorCode::OTHER].contains(&failure.code())
}

impl Driver for Upload {
    fn pump(&mut self, desk: &mut Desk<'_, '_>) {
        self.lead.pump(desk);
        self.leave(desk);
        while desk.has_room() && self.lead.has_room() {
            match &self.state {
                State::LookAtTarget => self.look_at(self.landing.target.path.clone(), What::Target, desk),
                State::NextSource => self.next_source(desk),
                State::Walking { .. } => {
                    self.walk(desk);
                    if matches!(self.state, State::Walking { .. }) {
                        break;
                    }
                }
                State::AwaitTarget | State::LookAtSource(_) | State::Done => break,
            }
        }
        self.lead.pump(desk);
        self.leave(desk);
    }

    fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>) {
        let Some(answer) = self.lead.jobs.on_answer(tag, answer, desk) else { return };
        let Some(Pending { what, target, number }) = self.pending.remove(&tag) else { return };
        if let Some(number) = number {
            self.lead.end(number);
        }
        let shown = self.landing.shown(&target);
        match (what, answer) {
            (What::Target, answer) => self.on_target(answer, desk),
            (What::Parent, answer) => self.on_parent(answer, desk),
            (What::Directory, Ok(_)) => desk.report(Report::Directory { target: shown }),
            (What::Link(text), Ok(_)) => desk.report(Report::Link { target: shown, text }),
            (_, Ok(_)) => {}
            (what, Err(failure)) => {
                let directory = matches!(what, What::Directory);
                if failure.kind.is_no_room() {
                    self.lead.jobs.queue().fill_up(&failure);
                }
                self.lead.failed(failure, (target, shown), directory, desk);
            }
        }
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let Some((kind, outcome)) = self.lead.jobs.on_completion(kind, outcome, desk) else { return };
        if matches!(&kind, OpKind::Fs(op) if matches!(**op, FsOp::Stat { .. })) {
            if let State::LookAtSource(source) = std::mem::replace(&mut self.state, State::NextSource) {
                self.on_source(source, outcome, desk);
            }
            return;
        }
        if let State::Walking { walker, .. } = &mut self.state {
            walker.on_completion(&kind, outcome);
        }
    }

    fn lead(&self) -> Option<&Lead> {
        Some(&self.lead)
    }

    fn is_finished(&self) -> bool {
        matches!(self.state, State::Done) && self.lead.is_idle() && self.leaving.is_empty()
    }

    fn state(&self) -> &'static str {
        match &self.state {
            State::LookAtTarget | State::AwaitTarget => "upload looking at target",
            State::NextSource | State::LookAtSource(_) => "upload looking at source",
            State::Walking { walker, .. } => walker.state(),
            State::Done => "upload done",
        }
    }
}
