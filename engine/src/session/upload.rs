//! The driver of copies from here to the peer.
//!
//! ```text
//! LookAtTarget -answer-> NextSource -Stat-> LookAtSource -file-> (ask Put) -> NextSource ..
//!                                                        -directory-> Walking -End-> NextSource .. -> Done
//! ```
//! Directories are asked for as they are found, files as there is room, and a directory's attributes when the walk leaves
//! it; the server holds those back until everything before is done. Between two places of one machine a file is first
//! tried as a copy inside the kernel.

use super::client::{Answer, Client, Desk, Driver, Opening, Reply};
use super::plan::{Landing, Operand, Options, skip_reason};
use super::report::{Direction, Report, Reporter, SharedProgress};
use super::walk::{Found, Step, Walker};
use super::{Failure, Outcome, mkdir, put, stat};
use crate::backend::{DirId, Errno, Finish, FsOp, OpKind, Output, Place, StreamId};
use crate::wire::frame::{Attributes, ErrorCode, Ext, Kind};
use crate::wire::path::Target;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

const LOOK: u32 = 80;
const CLONE: u32 = 81;
/// Copies inside the kernel that run at the same time.
const CLONES: usize = 4;

/// What to copy from here, and where to.
pub struct Plan {
    /// Root of the local operands.
    pub local: DirId,
    /// What to copy.
    pub sources: Vec<Operand>,
    /// Where to, on the peer.
    pub target: Operand,
    /// How.
    pub options: Options,
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

/// What a request was about.
struct Pending {
    what: What,
    source: Vec<u8>,
    target: Vec<u8>,
}

enum What {
    Target,
    File,
    Directory,
    Link(Vec<u8>),
    Attributes,
}

/// A copy that the kernel is trying.
struct Cloning {
    number: u64,
    from: Place,
    to: Place,
    source: Vec<u8>,
}

/// A directory that the walk has left; its attributes wait for the copies numbered below `after`. Requests need no such
/// care: the server answers them in order.
struct Leaving {
    after: u64,
    target: Target,
    attributes: Attributes,
}

pub(crate) struct Upload {
    local: DirId,
    sources: VecDeque<Operand>,
    landing: Landing,
    same_machine: Option<DirId>,
    state: State,
    pending: HashMap<u64, Pending>,
    next_tag: u64,
    cloning: Vec<Cloning>,
    /// Files the kernel could not copy by itself.
    uncloned: VecDeque<Cloning>,
    next_clone: u64,
    leaving: VecDeque<Leaving>,
    noticed: bool,
}

/// A client that carries `plan` out over `stream`.
pub fn client(stream: StreamId, opening: Opening, plan: Plan, progress: SharedProgress, reporter: Reporter) -> Client {
    let many = plan.sources.len() > 1;
    let landing = Landing { target: plan.target, options: plan.options, many, present: None };
    let driver = Upload {
        local: plan.local,
        sources: plan.sources.into(),
        landing,
        same_machine: plan.same_machine,
        state: State::LookAtTarget,
        pending: HashMap::new(),
        next_tag: 0,
        cloning: Vec::new(),
        uncloned: VecDeque::new(),
        next_clone: 0,
        leaving: VecDeque::new(),
        noticed: false,
    };
    Client::new(stream, opening, Box::new(driver), progress, reporter)
}

impl Upload {
    fn tag(&mut self, what: What, source: Vec<u8>, target: Vec<u8>) -> u64 {
        self.next_tag += 1;
        self.pending.insert(self.next_tag, Pending { what, source, target });
        self.next_tag
    }

    fn look_at_target(&mut self, desk: &mut Desk<'_, '_>) {
        let target = Target { operand: self.landing.target.path.clone(), below: None };
        let shown = self.landing.target.shown.clone();
        let tag = self.tag(What::Target, Vec::new(), shown.clone());
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
            Err(failure) => {
                // Base peers give no number: whatever is wrong will show when the first file is put.
                let missing = ErrorCode(ErrorCode::ERRNO_BASE + 2);
                if ![missing, ErrorCode::NONE, ErrorCode::OTHER].contains(&failure.code()) {
                    desk.report(Report::Failed(failure));
                    self.sources.clear();
                }
            }
        }
    }

    fn next_source(&mut self, desk: &mut Desk<'_, '_>) {
        let Some(source) = self.sources.pop_front() else {
            desk.io.progress.totals_final.store(1, Ordering::Relaxed);
            self.state = State::Done;
            return;
        };
        let place = self.local_place(&source);
        desk.io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place, follow: true })));
        self.state = State::LookAtSource(source);
    }

    fn local_place(&self, source: &Operand) -> Place {
        Place { dir: self.local, target: Target { operand: source.path.clone(), below: None } }
    }

    fn on_source(&mut self, source: Operand, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        self.state = State::NextSource;
        let attributes = match outcome {
            Ok(Output::Attributes { attributes, .. }) => attributes,
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
        match attributes.kind {
            Kind::Directory if self.landing.options.recursive => {
                self.make_dir(target.clone(), desk);
                let walker = Box::new(Walker::new(self.local_place(&source), true));
                self.state = State::Walking { walker, source, base: target };
            }
            Kind::Directory => {
                let rule = "it is a directory, and -r was not given";
                desk.report(Report::Failed(Failure::rule(&source.shown, "left out", rule)));
            }
            Kind::Regular => self.file(self.local_place(&source), source.shown, target, attributes, desk),
            _ => desk.report(Report::Failed(Failure::here(&source.shown, "cannot open", Errno::NOT_REGULAR))),
        }
    }

    fn make_dir(&mut self, target: Target, desk: &mut Desk<'_, '_>) {
        let shown = self.landing.shown(&target);
        let tag = self.tag(What::Directory, Vec::new(), shown.clone());
        desk.ask(tag, Box::new(mkdir::ask(target, shown)));
    }

    fn file(&mut self, from: Place, source: Vec<u8>, target: Target, attributes: Attributes, desk: &mut Desk<'_, '_>) {
        desk.io.progress.expect(1, attributes.size);
        let Some(root) = self.same_machine else { return self.put(from, source, target, desk) };
        let to = Place { dir: root, target };
        let finish = Finish { attributes: Some(attributes), preserve: self.landing.options.preserve, sync: false };
        let op = FsOp::Clone { from: from.clone(), to: to.clone(), finish };
        desk.io.submit(CLONE, OpKind::Fs(Box::new(op)));
        self.next_clone += 1;
        self.cloning.push(Cloning { number: self.next_clone, from, to, source });
    }

    fn put(&mut self, local: Place, source: Vec<u8>, remote: Target, desk: &mut Desk<'_, '_>) {
        let shown = self.landing.shown(&remote);
        let tag = self.tag(What::File, source.clone(), shown.clone());
        let preserve = self.landing.options.preserve;
        let offered = put::Offered { local, local_path: source, remote, remote_path: shown, preserve };
        desk.ask(tag, Box::new(put::Upload::new(offered)));
    }

    fn on_cloned(&mut self, from: &Place, to: &Place, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let this = |cloning: &Cloning| cloning.from == *from && cloning.to == *to;
        let Some(index) = self.cloning.iter().position(this) else { return };
        let cloning = self.cloning.swap_remove(index);
        match outcome {
            Ok(Output::Cloned { hash, size }) => {
                desk.io.progress.moved(usize::try_from(size).unwrap_or(usize::MAX));
                desk.io.progress.files.fetch_add(1, Ordering::Relaxed);
                let target = self.landing.shown(&to.target);
                let (source, direction) = (cloning.source, Direction::Local);
                desk.report(Report::Copied { source, target, size, hash, direction });
            }
            Err(Errno::UNSUPPORTED) => {
                self.same_machine = None;
                self.uncloned.push_back(cloning);
            }
            Err(Errno::INVALID) => {
                let rule = "source and target are the same file";
                desk.report(Report::Failed(Failure::rule(&cloning.source, "not copied", rule)));
            }
            // Tried as an ordinary put, which works or says which side is to blame.
            Err(_) => self.uncloned.push_back(cloning),
            Ok(_) => {}
        }
    }

    fn walk(&mut self, desk: &mut Desk<'_, '_>) {
        while desk.has_room() && self.cloning.len() < CLONES {
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
                Step::Leave(path, attributes) => {
                    let target = base.child(path.as_ref());
                    self.leaving.push_back(Leaving { after: self.next_clone + 1, target, attributes });
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
            desk.report(Report::Failed(Failure::here(&shown, what, errno)));
            return;
        }
        match found.attributes.kind {
            Kind::Directory => self.make_dir(target, desk),
            Kind::Regular => self.file(place, shown, target, found.attributes, desk),
            Kind::Symlink if self.landing.options.links && desk.io.terms.ext(Ext::META) => {
                let target_shown = self.landing.shown(&target);
                let tag = self.tag(What::Link(found.link.clone()), shown, target_shown.clone());
                let preserve = self.landing.options.preserve;
                let ask = mkdir::ask_symlink(target, found.link, found.attributes, preserve, target_shown);
                desk.ask(tag, Box::new(ask));
            }
            kind => desk.report(Report::Skipped { source: shown, why: skip_reason(kind) }),
        }
    }

    /// Asks for the attributes of directories that nothing more will be put into.
    fn leave(&mut self, desk: &mut Desk<'_, '_>) {
        let oldest = self.cloning.iter().chain(&self.uncloned).map(|cloning| cloning.number).min();
        while desk.has_room()
            && let Some(leaving) = self.leaving.pop_front_if(|next| oldest.is_none_or(|oldest| oldest >= next.after))
        {
            if !desk.io.terms.ext(Ext::META) {
                self.notice(desk);
                continue;
            }
            let shown = self.landing.shown(&leaving.target);
            let tag = self.tag(What::Attributes, Vec::new(), shown.clone());
            let preserve = self.landing.options.preserve;
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

impl Driver for Upload {
    fn pump(&mut self, desk: &mut Desk<'_, '_>) {
        while desk.has_room()
            && let Some(cloning) = self.uncloned.pop_front()
        {
            self.put(cloning.from, cloning.source, cloning.to.target, desk);
        }
        self.leave(desk);
        while desk.has_room() {
            match &self.state {
                State::LookAtTarget => self.look_at_target(desk),
                State::NextSource => self.next_source(desk),
                State::Walking { .. } => {
                    self.walk(desk);
                    if matches!(self.state, State::Walking { .. }) {
                        return;
                    }
                }
                State::AwaitTarget | State::LookAtSource(_) | State::Done => return,
            }
        }
    }

    fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>) {
        let Some(Pending { what, source, target }) = self.pending.remove(&tag) else { return };
        match (what, answer) {
            (What::Target, answer) => self.on_target(answer, desk),
            (What::File, Ok(Reply::Moved { hash, size })) => {
                desk.io.progress.files.fetch_add(1, Ordering::Relaxed);
                desk.report(Report::Copied { source, target, size, hash, direction: Direction::Up });
            }
            (What::Directory, Ok(_)) => desk.report(Report::Directory { target }),
            (What::Link(text), Ok(_)) => desk.report(Report::Link { target, text }),
            (_, Ok(_)) => {}
            (_, Err(failure)) => desk.report(Report::Failed(failure)),
        }
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        if let OpKind::Fs(op) = &kind {
            match &**op {
                FsOp::Clone { from, to, .. } => return self.on_cloned(from, to, outcome, desk),
                FsOp::Stat { .. } => {
                    if let State::LookAtSource(source) = std::mem::replace(&mut self.state, State::NextSource) {
                        self.on_source(source, outcome, desk);
                    }
                    return;
                }
                _ => {}
            }
        }
        if let State::Walking { walker, .. } = &mut self.state {
            walker.on_completion(&kind, outcome);
        }
    }

    fn is_finished(&self) -> bool {
        let copied = self.cloning.is_empty() && self.uncloned.is_empty();
        matches!(self.state, State::Done) && copied && self.leaving.is_empty()
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
