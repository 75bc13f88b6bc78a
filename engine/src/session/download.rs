//! The driver of copies from the peer to here.
//!
//! ```text
//! LookAtTarget -Stat-> NextSource -> LookAtSource -file-> (a job) -> NextSource ..
//!                                                 -directory-> Listing (pages, jobs) -> NextSource .. -> Done
//! ```
//! The server's names are checked one by one and only ever used below the target, with links never followed; a file it was
//! not asked for cannot arrive. A directory's attributes are set when everything that was asked for before the listing left
//! it has been answered.

use super::client::{Answer, Client, Desk, Driver, Opening, Reply};
use super::jobs::Jobs;
use super::landed::Landed;
use super::lead::Lead;
use super::plan::{Landing, Operand, skip_reason, unreadable};
use super::report::{Report, Reporter, SharedProgress};
use super::{Failure, Outcome, Reason, list, stat, tree, verb};
use crate::backend::{DirId, Errno, FsOp, NO_ATTRIBUTES, OpKind, Output, Place, StreamId};
use crate::limits::{MAX_PATH_BYTES, PAGE_ENTRIES, SHOWN_NAME_BYTES};
use crate::queue::Queue;
use crate::wire::frame::{Attributes, ErrorCode, Ext, Kind, ListEntry, Timestamp, TreeEntry};
use crate::wire::path::{RelPath, RequestPath, Target};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

const LOOK: u32 = 90;
const NAME: u32 = 91;
/// Local operations on names that run at the same time.
const NAMES: usize = 32;

/// What to copy from the peer, and where to.
pub struct Plan {
    /// What to copy.
    pub sources: Vec<Operand>,
    /// Root of the local target.
    pub local: DirId,
    /// Where to.
    pub target: Operand,
    /// The files, for this connection and others; it knows how they are copied.
    pub queue: Queue,
}

/// A directory being copied.
struct Listing {
    source: Operand,
    base: Target,
    number: u32,
    entries: VecDeque<TreeEntry>,
    asked: bool,
    last: bool,
    /// Directories the listing is inside of, outermost first; the base itself has no path.
    open: Vec<(Option<RelPath>, Attributes)>,
}

enum State {
    LookAtTarget,
    AwaitTarget,
    /// Of a target that is not there: its directory.
    AwaitParent,
    NextSource,
    AwaitSource,
    Listing(Box<Listing>),
    Done,
}

enum What {
    Source(Operand),
    Page,
}

/// A directory whose attributes wait for everything numbered below `after`.
struct Leaving {
    after: u64,
    place: Place,
    attributes: Attributes,
    shown: Vec<u8>,
}

pub(crate) struct Download {
    local: DirId,
    sources: VecDeque<Operand>,
    landing: Landing,
    landed: Landed,
    lead: Lead,
    state: State,
    pending: HashMap<u64, What>,
    names: Vec<(u64, Place, Vec<u8>)>,
    leaving: VecDeque<Leaving>,
    next_tag: u64,
    next_walk: u32,
}

/// A client that carries `plan` out over `stream`.
pub fn client(stream: StreamId, opening: Opening, plan: Plan, progress: SharedProgress, reporter: Reporter) -> Client {
    let many = plan.sources.len() > 1;
    let driver = Download {
        local: plan.local,
        sources: plan.sources.into(),
        landing: Landing { target: plan.target, options: plan.queue.options(), many, present: None },
        landed: Landed::default(),
        lead: Lead::new(Jobs::new(plan.queue, plan.local, None)),
        state: State::LookAtTarget,
        pending: HashMap::new(),
        names: Vec::new(),
        leaving: VecDeque::new(),
        next_tag: 0,
        next_walk: 0,
    };
    Client::new(stream, opening, Box::new(driver), progress, reporter)
}

impl Download {
    fn tag(&mut self, what: What) -> u64 {
        self.next_tag += 1;
        self.pending.insert(self.next_tag, what);
        self.next_tag
    }

    fn local_place(&self, target: Target) -> Place {
        Place { dir: self.local, target }
    }

    fn look_at_target(&mut self, desk: &mut Desk<'_, '_>) {
        self.look_at(self.landing.target.path.clone(), desk);
        self.state = State::AwaitTarget;
    }

    fn look_at(&mut self, operand: RequestPath, desk: &mut Desk<'_, '_>) {
        let place = self.local_place(Target { operand, below: None });
        desk.io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place, follow: true })));
    }

    /// What stands at the target, or at the directory that it needs, is known.
    fn on_target(&mut self, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let parent = matches!(self.state, State::AwaitParent);
        self.state = State::NextSource;
        match outcome {
            Ok(Output::Attributes { .. }) if parent => {}
            Ok(Output::Attributes { attributes, .. }) => self.landing.present = Some(attributes.kind),
            Err(Errno::NOT_FOUND) if parent => {
                desk.report(Report::Failed(self.landing.without_parent()));
                self.sources.clear();
            }
            Ok(_) | Err(Errno::NOT_FOUND) => {
                if let Some(operand) = self.landing.parent_needed() {
                    self.look_at(operand, desk);
                    self.state = State::AwaitParent;
                }
            }
            Err(errno) => {
                desk.report(Report::Failed(Failure::here(&self.landing.target.shown, "cannot stat", errno)));
                self.sources.clear();
            }
        }
        self.landed = Landed::new(&self.landing, self.sources.iter());
    }

    fn next_source(&mut self, desk: &mut Desk<'_, '_>) {
        let Some(source) = self.sources.pop_front() else {
            desk.io.progress.totals_final.store(1, Ordering::Relaxed);
            self.state = State::Done;
            return;
        };
        self.landed.next();
        let target = Target { operand: source.path.clone(), below: None };
        let shown = source.shown.clone();
        let follow = source.follows(&self.landing.options);
        let tag = self.tag(What::Source(source));
        if desk.io.terms.ext(Ext::TREE) {
            desk.ask(tag, Box::new(stat::ask_lookup(target, follow, shown)));
        } else {
            desk.ask(tag, Box::new(stat::ask(target, shown)));
        }
        self.state = State::AwaitSource;
    }

    fn on_source(&mut self, source: Operand, attributes: Attributes, link: Vec<u8>, desk: &mut Desk<'_, '_>) {
        self.state = State::NextSource;
        let target = match self.landing.of(&source, attributes.kind) {
            Ok(target) => target,
            Err(failure) => {
                // What is wrong with the target is wrong for every source.
                self.sources.clear();
                return desk.report(Report::Failed(failure));
            }
        };
        self.landed.land(&target);
        match attributes.kind {
            Kind::Directory if self.landing.options.recursive => self.begin_listing(source, target, attributes, desk),
            Kind::Directory => {
                let rule = "it is a directory, and -r was not given";
                desk.report(Report::Failed(
                    Failure::rule(&source.shown, "left out", rule).because(Reason::NeedsRecursive),
                ));
            }
            Kind::Regular => {
                let remote = Target { operand: source.path, below: None };
                self.get(remote, source.shown, target, attributes, desk);
            }
            Kind::Symlink => self.make_link(&source.shown, target, (link, attributes), desk),
            _ => desk.report(Report::Failed(Failure::here(&source.shown, "cannot open", Errno::NOT_REGULAR))),
        }
    }

    fn begin_listing(&mut self, source: Operand, base: Target, attributes: Attributes, desk: &mut Desk<'_, '_>) {
        self.make_dir(base.clone(), desk);
        self.next_walk = self.next_walk.wrapping_add(1);
        let number = self.next_walk;
        let remote = Target { operand: source.path.clone(), below: None };
        let tag = self.tag(What::Page);
        if desk.io.terms.ext(Ext::TREE) {
            desk.ask(tag, Box::new(tree::ask(number, remote, true, source.shown.clone())));
        } else {
            desk.ask(tag, Box::new(list::ask(remote, source.shown.clone())));
        }
        let open = vec![(None, attributes)];
        let entries = VecDeque::new();
        let listing = Listing { source, base, number, entries, asked: true, last: false, open };
        self.state = State::Listing(Box::new(listing));
    }

    fn on_page(&mut self, answer: Answer, desk: &mut Desk<'_, '_>) {
        let State::Listing(listing) = &mut self.state else { return };
        listing.asked = false;
        match answer {
            Ok(Reply::Page { last, entries }) => {
                listing.last = last;
                listing.entries.extend(entries);
            }
            Ok(Reply::Listing(entries)) => {
                listing.last = true;
                listing.entries.extend(entries.into_iter().map(from_base));
            }
            Ok(_) => listing.last = true,
            Err(failure) => {
                listing.last = true;
                desk.report(Report::Failed(failure));
            }
        }
    }

    fn go_through(&mut self, desk: &mut Desk<'_, '_>) {
        while desk.has_room() && self.names.len() < NAMES && self.lead.has_room() {
            let State::Listing(listing) = &mut self.state else { return };
            if !listing.asked && !listing.last && listing.entries.len() < PAGE_ENTRIES / 2 {
                listing.asked = true;
                let (number, shown) = (listing.number, listing.source.shown.clone());
                let tag = self.tag(What::Page);
                desk.ask(tag, Box::new(tree::ask_next(number, shown)));
                continue;
            }
            match listing.entries.pop_front() {
                Some(entry) => self.on_entry(entry, desk),
                None if listing.last => {
                    self.leave_until(None, desk);
                    self.state = State::NextSource;
                    return;
                }
                None => return,
            }
        }
    }

    fn on_entry(&mut self, entry: TreeEntry, desk: &mut Desk<'_, '_>) {
        let State::Listing(listing) = &mut self.state else { return };
        let path = match RelPath::listed(&entry.path.0) {
            Ok(path) => Some(path),
            Err(_) if entry.path.0.is_empty() && entry.error != ErrorCode::NONE => None,
            Err(error) => {
                let name = entry.path.0.get(..SHOWN_NAME_BYTES).unwrap_or(&entry.path.0);
                let shown = [&listing.source.shown, b"/".as_slice(), name].concat();
                let rule = format!("the server sent an unsafe name: {error}");
                return desk.report(Report::Failed(Failure::rule(&shown, "left out", rule)));
            }
        };
        let shown = listing.source.shown_below(path.as_ref());
        if entry.error != ErrorCode::NONE {
            let failure = unreadable(shown, path.is_none(), &entry).of_source();
            return desk.report(Report::Failed(failure));
        }
        let remote = Target { operand: listing.source.path.clone(), below: path.clone() };
        let target = listing.base.child(path.as_ref());
        self.leave_until(path.as_ref(), desk);
        match entry.attributes.kind {
            Kind::Directory => {
                if let State::Listing(listing) = &mut self.state {
                    listing.open.push((path, entry.attributes));
                }
                // Where nothing more can be written the walk goes on, to count what that concerns.
                if !self.lead.jobs.queue().is_full() {
                    self.make_dir(target, desk);
                }
            }
            Kind::Regular => self.get(remote, shown, target, entry.attributes, desk),
            Kind::Symlink if self.landing.options.links && entry.link.len() > MAX_PATH_BYTES => {
                let rule = "the server sent a link text longer than 4096 bytes";
                desk.report(Report::Failed(Failure::rule(&shown, "left out", rule)));
            }
            Kind::Symlink if self.landing.options.links => {
                self.make_link(&shown, target, (entry.link, entry.attributes), desk);
            }
            kind => desk.report(Report::Skipped { source: shown, why: skip_reason(kind) }),
        }
    }

    /// Leaves the directories that `path` is not in; all of them for `None`.
    fn leave_until(&mut self, path: Option<&RelPath>, desk: &Desk<'_, '_>) {
        let after = self.lead.next();
        let State::Listing(listing) = &mut self.state else { return };
        while let Some((open, _)) = listing.open.last() {
            let inside = path.is_some_and(|path| open.as_ref().is_none_or(|open| is_below(path, open)));
            if inside {
                return;
            }
            let Some((open, attributes)) = listing.open.pop() else { return };
            if !desk.io.terms.ext(Ext::META) || self.lead.jobs.queue().is_full() {
                continue;
            }
            let target = listing.base.child(open.as_ref());
            let shown = self.landing.shown(&target);
            let place = Place { dir: self.local, target };
            self.leaving.push_back(Leaving { after, place, attributes, shown });
        }
    }

    /// Sets the attributes of directories that nothing more will be put into, and of a directory only after those in it:
    /// its new mode may bar the way.
    fn set_left(&mut self, desk: &mut Desk<'_, '_>) {
        while self.names.len() < NAMES
            && let Some(next) = self.leaving.front()
            && self.lead.is_done_before(next.after)
            && !self.names.iter().any(|(_, place, _)| is_inside(&place.target, &next.place.target))
            && let Some(leaving) = self.leaving.pop_front()
        {
            let preserve = self.landing.options.of_directories();
            let (place, attributes) = (leaving.place.clone(), leaving.attributes);
            let op = FsOp::SetMeta { place, attributes, preserve };
            let number = self.lead.begin();
            self.submit_name(number, leaving.place, leaving.shown, op, desk);
        }
    }

    fn submit_name(&mut self, number: u64, place: Place, shown: Vec<u8>, op: FsOp, desk: &mut Desk<'_, '_>) {
        self.names.push((number, place, shown));
        desk.io.submit(NAME, OpKind::Fs(Box::new(op)));
    }

    fn make_dir(&mut self, target: Target, desk: &mut Desk<'_, '_>) {
        let shown = self.landing.shown(&target);
        let place = self.local_place(target);
        let number = self.lead.begin();
        self.submit_name(number, place.clone(), shown, FsOp::MakeDir { place }, desk);
    }

    fn make_link(
        &mut self,
        source: &[u8],
        target: Target,
        (text, attributes): (Vec<u8>, Attributes),
        desk: &mut Desk<'_, '_>,
    ) {
        let shown = self.landing.shown(&target);
        if let Err(failure) = self.landed.claim(&target, source, &shown) {
            return desk.report(Report::Failed(failure));
        }
        let place = self.local_place(target);
        let preserve = self.landing.options.preserve;
        let number = self.lead.begin();
        let op = FsOp::MakeLink { place: place.clone(), text, attributes, preserve };
        self.submit_name(number, place, shown, op, desk);
    }

    fn on_named(&mut self, op: FsOp, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let (place, what) = match &op {
            FsOp::MakeDir { place } => (place, "cannot make directory"),
            FsOp::MakeLink { place, .. } => (place, "cannot make link"),
            FsOp::SetMeta { place, .. } => (place, "cannot set attributes"),
            _ => return,
        };
        let Some(index) = self.names.iter().position(|(_, named, _)| named == place) else { return };
        let (number, Place { target, .. }, shown) = self.names.swap_remove(index);
        self.lead.end(number);
        if let Ok(output) = &outcome {
            desk.unkept(&shown, verb::unkept(output));
        }
        match (outcome, op) {
            (Err(errno), op) => {
                let failure = Failure::here(&shown, what, errno);
                if failure.kind.is_no_room() {
                    self.lead.jobs.queue().fill_up(&failure);
                }
                self.lead.failed(failure, (target, shown), matches!(op, FsOp::MakeDir { .. }), desk);
            }
            (Ok(_), FsOp::MakeDir { .. }) => desk.report(Report::Directory { target: shown }),
            (Ok(_), FsOp::MakeLink { text, .. }) => desk.report(Report::Link { target: shown, text }),
            (Ok(_), _) => {}
        }
    }

    fn get(
        &mut self,
        remote: Target,
        remote_path: Vec<u8>,
        target: Target,
        attributes: Attributes,
        desk: &mut Desk<'_, '_>,
    ) {
        if self.lead.is_behind_link(&target) {
            return;
        }
        let local_path = self.landing.shown(&target);
        if let Err(failure) = self.landed.claim(&target, &remote_path, &local_path) {
            return desk.report(Report::Failed(failure));
        }
        self.lead.file((remote, remote_path), (target, local_path), attributes, desk);
    }
}

impl Driver for Download {
    fn pump(&mut self, desk: &mut Desk<'_, '_>) {
        self.lead.pump(desk);
        self.set_left(desk);
        while desk.has_room() && self.names.len() < NAMES && self.lead.has_room() {
            match &self.state {
                State::LookAtTarget => self.look_at_target(desk),
                State::NextSource => self.next_source(desk),
                State::Listing(_) => {
                    self.go_through(desk);
                    if matches!(self.state, State::Listing(_)) {
                        break;
                    }
                }
                State::AwaitTarget | State::AwaitParent | State::AwaitSource | State::Done => break,
            }
        }
        self.lead.pump(desk);
        self.set_left(desk);
    }

    fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>) {
        let Some(answer) = self.lead.jobs.on_answer(tag, answer, desk) else { return };
        let Some(what) = self.pending.remove(&tag) else { return };
        match (what, answer) {
            (What::Source(source), Ok(Reply::Attributes(attributes))) => {
                self.on_source(source, attributes, Vec::new(), desk);
            }
            (What::Source(source), Ok(Reply::Link(attributes, link))) => self.on_source(source, attributes, link, desk),
            (What::Source(_), answer) => {
                self.state = State::NextSource;
                if let Err(failure) = answer {
                    desk.report(Report::Failed(failure));
                }
            }
            (What::Page, answer) => self.on_page(answer, desk),
        }
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let Some((OpKind::Fs(op), outcome)) = self.lead.jobs.on_completion(kind, outcome, desk) else { return };
        match *op {
            FsOp::Stat { .. } => self.on_target(outcome, desk),
            op => self.on_named(op, outcome, desk),
        }
    }

    fn lead(&self) -> Option<&Lead> {
        Some(&self.lead)
    }

    fn has_asked_all(&self) -> bool {
        matches!(self.state, State::Done) && self.lead.jobs.queue().is_alone()
    }

    fn is_finished(&self) -> bool {
        matches!(self.state, State::Done) && self.lead.is_idle() && self.names.is_empty() && self.leaving.is_empty()
    }

    fn state(&self) -> &'static str {
        match self.state {
            State::LookAtTarget | State::AwaitTarget | State::AwaitParent => "download looking at target",
            State::NextSource | State::AwaitSource => "download looking at source",
            State::Listing(_) => "download listing",
            State::Done => "download done",
        }
    }
}

fn is_below(path: &RelPath, directory: &RelPath) -> bool {
    let (path, directory) = (path.as_bytes(), directory.as_bytes());
    path.len() > directory.len() && path.starts_with(directory) && path[directory.len()] == b'/'
}

fn is_inside(target: &Target, directory: &Target) -> bool {
    let inside = |path: &RelPath| directory.below.as_ref().is_none_or(|directory| is_below(path, directory));
    target.operand == directory.operand && target.below.as_ref().is_some_and(inside)
}

fn from_base(entry: ListEntry) -> TreeEntry {
    let kind = if entry.is_dir { Kind::Directory } else { Kind::Regular };
    let mtime = Timestamp { seconds: entry.mtime, nanoseconds: 0 };
    let attributes = Attributes { kind, size: entry.size, mtime, ..NO_ATTRIBUTES };
    TreeEntry { path: entry.path, attributes, link: Vec::new(), error: ErrorCode::NONE }
}
