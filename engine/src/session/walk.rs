//! A directory to entries, depth first, in bounded memory: the source of uploads and of TREE and List replies.
//!
//! ```text
//! next(): Entry(dir) -> [opens it] -> Entry.. -> Leave(dir) -> .. -> Leave(base) -> End
//!         Wait while an operation is out
//! ```
//! One page of entries is held for each level, never a whole directory, and one open directory where that was not all: so
//! depth takes few descriptors. A directory stands before its content; `Leave` follows its content. Links are reported, never followed.

use super::{Io, Outcome};
use crate::backend::{DirEntry, DirId, Errno, FsOp, NO_ATTRIBUTES, OpKind, Output, Place};
use crate::limits::MAX_WALK_DEPTH;
use crate::wire::frame::{Attributes, Kind};
use crate::wire::path::RelPath;
use std::collections::VecDeque;

const WALK: u32 = 30;

/// An entry of the tree.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Below the base; `None` for the base itself, which is reported only when it cannot be read.
    pub(crate) path: Option<RelPath>,
    pub(crate) attributes: Attributes,
    pub(crate) link: Vec<u8>,
    /// Why this entry, or the inside of this directory, could not be read.
    pub(crate) error: Option<Errno>,
}

/// What the walk came to.
pub(crate) enum Step {
    Entry(Found),
    /// With the attributes the directory had when it was opened.
    Leave(Option<RelPath>, Attributes),
    Wait,
    End,
}

struct Level {
    path: Option<RelPath>,
    attributes: Attributes,
    /// Open until its last entry is known.
    dir: Option<DirId>,
    entries: VecDeque<DirEntry>,
    /// All its entries have come.
    end: bool,
}

/// A walk in progress.
pub(crate) struct Walker {
    base: Place,
    recursive: bool,
    stack: Vec<Level>,
    /// The directory to go into next.
    descend: Option<(Option<RelPath>, Attributes)>,
    waiting: bool,
    error: Option<Found>,
}

impl Walker {
    /// A walk over what is in `base`, and in the directories below it if `recursive`.
    pub(crate) fn new(base: Place, recursive: bool) -> Walker {
        Walker { base, recursive, stack: Vec::new(), descend: Some((None, NO_ATTRIBUTES)), waiting: false, error: None }
    }

    /// The walked directory.
    pub(crate) fn base(&self) -> &Place {
        &self.base
    }

    /// The place of something found.
    pub(crate) fn place(&self, path: Option<&RelPath>) -> Place {
        Place { dir: self.base.dir, target: self.base.target.child(path) }
    }

    /// The next step.
    pub(crate) fn next(&mut self, io: &mut Io<'_, '_>) -> Step {
        if let Some(found) = self.error.take() {
            return Step::Entry(found);
        }
        if self.waiting {
            return Step::Wait;
        }
        if let Some((path, attributes)) = self.descend.take() {
            if self.stack.len() >= MAX_WALK_DEPTH {
                return Step::Entry(Found { path, attributes, link: Vec::new(), error: Some(Errno::TOO_DEEP) });
            }
            let place = self.place(path.as_ref());
            self.descend = Some((path, attributes));
            return self.wait_for(FsOp::OpenDir { place }, io);
        }
        let Some(level) = self.stack.last_mut() else { return Step::End };
        if let Some(dir) = level.dir.take_if(|_| level.end) {
            io.submit(WALK + 1, OpKind::Fs(Box::new(FsOp::CloseDir { dir })));
        }
        if let Some(entry) = level.entries.pop_front() {
            return self.entry(entry);
        }
        if let Some(dir) = level.dir {
            return self.wait_for(FsOp::ReadDir { dir }, io);
        }
        let Some(Level { path, attributes, .. }) = self.stack.pop() else { return Step::End };
        Step::Leave(path, attributes)
    }

    fn wait_for(&mut self, op: FsOp, io: &mut Io<'_, '_>) -> Step {
        self.waiting = true;
        io.submit(WALK, OpKind::Fs(Box::new(op)));
        Step::Wait
    }

    fn entry(&mut self, entry: DirEntry) -> Step {
        let parent = self.stack.last().and_then(|level| level.path.as_ref());
        let path = match parent {
            Some(parent) => parent.join(&entry.name),
            None => RelPath::parse(&entry.name),
        };
        // Names come from the file system, which has none that a component may not have.
        let path = path.expect("a directory entry is one component");
        let (attributes, error) = match entry.attributes {
            Ok(attributes) => (attributes, None),
            Err(errno) => (NO_ATTRIBUTES, Some(errno)),
        };
        if error.is_none() && self.recursive && attributes.kind == Kind::Directory {
            self.descend = Some((Some(path.clone()), attributes));
        }
        Step::Entry(Found { path: Some(path), attributes, link: entry.link, error })
    }

    /// Takes note of a completion of its own operations.
    pub(crate) fn on_completion(&mut self, kind: &OpKind, outcome: Outcome) {
        if matches!(kind, OpKind::Fs(op) if matches!(**op, FsOp::CloseDir { .. })) {
            return;
        }
        self.waiting = false;
        match outcome {
            Ok(Output::OpenedDir { dir, attributes }) => {
                let path = self.descend.take().and_then(|(path, _)| path);
                self.stack.push(Level { path, attributes, dir: Some(dir), entries: VecDeque::new(), end: false });
            }
            Ok(Output::Entries { entries, end }) => {
                if let Some(level) = self.stack.last_mut() {
                    level.entries = entries.into();
                    level.end = end;
                }
            }
            Ok(_) => {}
            Err(errno) => self.on_error(errno),
        }
    }

    fn on_error(&mut self, errno: Errno) {
        let (path, attributes) = match (self.descend.take(), self.stack.last_mut()) {
            (Some(unopened), _) => unopened,
            (None, Some(level)) => {
                level.end = true;
                (level.path.clone(), level.attributes)
            }
            (None, None) => (None, NO_ATTRIBUTES),
        };
        self.error = Some(Found { path, attributes, link: Vec::new(), error: Some(errno) });
    }

    pub(crate) fn state(&self) -> &'static str {
        match (self.waiting, self.descend.is_some()) {
            (true, true) => "walk opening",
            (true, false) => "walk reading",
            _ => "walk idle",
        }
    }
}
