//! Tree and TreeNext: a directory tree in pages.
//!
//! A walk lives as long as its client asks for pages of it, at most [`MAX_WALKS`] at a time; a page is one request and
//! one reply, so other requests can pass between two pages and neither end ever holds more than a page.
//!
//! ```text
//! Tree{walk} -> TreePage{last: false} .. TreeNext{walk} -> TreePage{last: true}, the number is free again
//! ```

use super::client::{Reply, Simple};
use super::verb::{Verb, reply};
use super::walk::{Found, Step, Walker};
use super::{Failure, Io, Outcome};
use crate::backend::{Errno, OpKind, Place};
use crate::limits::{MAX_WALKS, PAGE_ENTRIES, PAGE_NAME_BYTES};
use crate::wire::frame::{ErrorCode, Frame, PathField, TreeEntry};
use crate::wire::path::Target;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

struct Walk {
    walker: Walker,
    /// A request is filling a page from it.
    busy: bool,
    ended: bool,
}

/// The walks of one session.
#[derive(Default)]
pub(super) struct Walks(HashMap<u32, Rc<RefCell<Walk>>>);

impl Walks {
    pub(super) fn open(&mut self, number: u32, place: Place, recursive: bool) -> Result<Serve, Failure> {
        self.0.retain(|_, walk| !walk.borrow().ended);
        if self.0.len() >= MAX_WALKS || self.0.contains_key(&number) {
            return Err(Failure::rule(b"", "cannot list", "too many listings at the same time"));
        }
        let walk = Rc::new(RefCell::new(Walk { walker: Walker::new(place, recursive), busy: false, ended: false }));
        self.0.insert(number, walk.clone());
        Ok(Serve::of(walk))
    }

    pub(super) fn next(&mut self, number: u32) -> Result<Serve, Failure> {
        let walk = self.0.get(&number).filter(|walk| !walk.borrow().ended);
        let walk = walk.ok_or_else(|| Failure::rule(b"", "cannot list", "no such listing"))?;
        Ok(Serve::of(walk.clone()))
    }
}

/// The server's half: fills one page.
pub(super) struct Serve {
    walk: Rc<RefCell<Walk>>,
    mine: bool,
    entries: Vec<TreeEntry>,
    bytes: usize,
    full: bool,
}

impl Serve {
    fn of(walk: Rc<RefCell<Walk>>) -> Serve {
        Serve { walk, mine: false, entries: Vec::new(), bytes: 0, full: false }
    }

    fn add(&mut self, found: Found) {
        let path = found.path.map(|path| PathField(path.as_bytes().to_vec())).unwrap_or_default();
        self.bytes += path.0.len() + found.link.len();
        let error = found.error.map_or(ErrorCode::NONE, Errno::code);
        self.entries.push(TreeEntry { path, attributes: found.attributes, link: found.link, error });
        self.full |= self.entries.len() >= PAGE_ENTRIES || self.bytes >= PAGE_NAME_BYTES;
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, _: &mut Io<'_, '_>) {
        self.walk.borrow_mut().walker.on_completion(&kind, outcome);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        let walk = self.walk.clone();
        let mut walk = walk.borrow_mut();
        if !self.mine && !std::mem::replace(&mut walk.busy, true) {
            self.mine = true;
        }
        while self.mine && !self.full {
            match walk.walker.next(io) {
                Step::Entry(found) => self.add(found),
                Step::Leave(..) => {}
                Step::Wait => return false,
                Step::End => {
                    walk.ended = true;
                    self.full = true;
                }
            }
        }
        if !head || !self.full {
            return false;
        }
        walk.busy = false;
        reply(&Frame::TreePage { last: walk.ended, entries: std::mem::take(&mut self.entries) }, io);
        true
    }

    fn state(&self) -> &'static str {
        match (self.full, self.mine) {
            (true, _) => "tree page full",
            (false, true) => self.walk.borrow().walker.state(),
            (false, false) => "tree waiting",
        }
    }
}

/// The client's half: asks for the first page.
pub(super) fn ask(walk: u32, target: Target, recursive: bool, path: Vec<u8>) -> Simple {
    let request = move |ext| Frame::Tree { walk, path: target.encode(ext), recursive };
    Simple::new(path, "cannot list", request, page)
}

/// Asks for the next page.
pub(super) fn ask_next(walk: u32, path: Vec<u8>) -> Simple {
    Simple::new(path, "cannot list", move |_| Frame::TreeNext { walk }, page)
}

fn page(frame: Frame) -> Option<Reply> {
    match frame {
        Frame::TreePage { last, entries } => Some(Reply::Page { last, entries }),
        _ => None,
    }
}
