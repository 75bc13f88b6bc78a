//! The driver of questions that move no file: listings and hashes.
//!
//! ```text
//! for each operand: Lookup -directory-> pages -> .. ; [Stat ->] Hash -> answer; then Done
//! ```

use super::client::{Answer, Client, Desk, Driver, Opening, Reply};
use super::plan::{Operand, unreadable};
use super::report::{Report, Reporter, SharedProgress};
use super::{Outcome, hash, list, resume, stat, tree};
use crate::backend::{NO_ATTRIBUTES, OpKind, StreamId};
use crate::wire::frame::{Attributes, ErrorCode, Ext, Kind, Timestamp};
use crate::wire::path::Target;
use std::collections::{HashMap, VecDeque};

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// What is in a directory, and below if `recursive`.
    List {
        /// Whole trees.
        recursive: bool,
    },
    /// BLAKE3 of files.
    Hash,
    /// How much of files is there.
    Resume,
}

enum What {
    Lookup(Operand),
    Page(Operand),
    /// Of what is hashed then.
    Size(Operand),
    Hash(Operand),
    Resume(Operand),
}

pub(crate) struct Inspect {
    question: Question,
    operands: VecDeque<Operand>,
    pending: HashMap<u64, What>,
    next_tag: u64,
    walk: u32,
}

/// A client that asks `question` of every operand over `stream`.
pub fn client(
    stream: StreamId,
    opening: Opening,
    question: Question,
    operands: Vec<Operand>,
    progress: SharedProgress,
    reporter: Reporter,
) -> Client {
    let driver = Inspect { question, operands: operands.into(), pending: HashMap::new(), next_tag: 0, walk: 0 };
    Client::new(stream, opening, Box::new(driver), progress, reporter)
}

impl Inspect {
    fn tag(&mut self, what: What) -> u64 {
        self.next_tag += 1;
        self.pending.insert(self.next_tag, what);
        self.next_tag
    }

    fn ask(&mut self, operand: Operand, desk: &mut Desk<'_, '_>) {
        let target = Target { operand: operand.path.clone(), below: None };
        let shown = operand.shown.clone();
        match self.question {
            // Who never says meanwhile that he lives has as much time as that many bytes take.
            Question::Hash if desk.io.terms.dialect.ext == Ext::NONE => {
                let tag = self.tag(What::Size(operand));
                desk.ask(tag, Box::new(stat::ask(target, shown)));
            }
            Question::Hash => self.ask_hash(operand, None, desk),
            Question::Resume => {
                let tag = self.tag(What::Resume(operand));
                desk.ask(tag, Box::new(resume::ask(target, shown)));
            }
            Question::List { .. } => {
                let full = desk.io.terms.ext(Ext::TREE);
                let tag = self.tag(What::Lookup(operand));
                if full {
                    desk.ask(tag, Box::new(stat::ask_lookup(target, true, shown)));
                } else {
                    desk.ask(tag, Box::new(stat::ask(target, shown)));
                }
            }
        }
    }

    fn ask_hash(&mut self, operand: Operand, size: Option<u64>, desk: &mut Desk<'_, '_>) {
        let target = Target { operand: operand.path.clone(), below: None };
        let shown = operand.shown.clone();
        let tag = self.tag(What::Hash(operand));
        desk.ask(tag, Box::new(hash::ask(target, size, shown)));
    }

    fn on_looked_up(&mut self, operand: Operand, attributes: Attributes, desk: &mut Desk<'_, '_>) {
        if attributes.kind != Kind::Directory {
            let path = operand.path.file_name().unwrap_or_default().to_vec();
            return desk.report(Report::Listed { path, attributes, link: Vec::new() });
        }
        let target = Target { operand: operand.path.clone(), below: None };
        let shown = operand.shown.clone();
        let recursive = self.question == Question::List { recursive: true };
        let tag = self.tag(What::Page(operand));
        if desk.io.terms.ext(Ext::TREE) {
            self.walk += 1;
            desk.ask(tag, Box::new(tree::ask(self.walk, target, recursive, shown)));
        } else {
            desk.ask(tag, Box::new(list::ask(target, shown)));
        }
    }

    fn on_page(&mut self, operand: Operand, reply: Reply, desk: &mut Desk<'_, '_>) {
        match reply {
            Reply::Page { last, entries } => {
                for entry in entries {
                    if entry.error == ErrorCode::NONE {
                        let (path, attributes) = (entry.path.0, entry.attributes);
                        desk.report(Report::Listed { path, attributes, link: entry.link });
                    } else {
                        let base = entry.path.0.is_empty();
                        let below: &[u8] = if base || operand.shown.ends_with(b"/") { b"" } else { b"/" };
                        let path = [&operand.shown, below, &entry.path.0].concat();
                        desk.report(Report::Failed(unreadable(path, base, &entry)));
                    }
                }
                if !last {
                    let (walk, shown) = (self.walk, operand.shown.clone());
                    let tag = self.tag(What::Page(operand));
                    desk.ask(tag, Box::new(tree::ask_next(walk, shown)));
                }
            }
            Reply::Listing(entries) => {
                for entry in entries {
                    // Base peers list whole trees only.
                    if self.question == (Question::List { recursive: false }) && entry.path.0.contains(&b'/') {
                        continue;
                    }
                    let kind = if entry.is_dir { Kind::Directory } else { Kind::Regular };
                    let mtime = Timestamp { seconds: entry.mtime, nanoseconds: 0 };
                    let attributes = Attributes { kind, size: entry.size, mtime, ..NO_ATTRIBUTES };
                    desk.report(Report::Listed { path: entry.path.0, attributes, link: Vec::new() });
                }
            }
            _ => {}
        }
    }
}

impl Driver for Inspect {
    fn pump(&mut self, desk: &mut Desk<'_, '_>) {
        // One listing after the other keeps the output in order; hashes come in order by themselves.
        while desk.has_room() && (!matches!(self.question, Question::List { .. }) || desk.outstanding() == 0) {
            let Some(operand) = self.operands.pop_front() else { return };
            self.ask(operand, desk);
        }
    }

    fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>) {
        let Some(what) = self.pending.remove(&tag) else { return };
        match (what, answer) {
            (What::Lookup(operand), Ok(Reply::Attributes(attributes))) => {
                self.on_looked_up(operand, attributes, desk);
            }
            (What::Size(operand), Ok(Reply::Attributes(found))) => self.ask_hash(operand, Some(found.size), desk),
            // What cannot be looked at cannot be hashed: that is told.
            (What::Size(operand), Err(_)) => self.ask_hash(operand, None, desk),
            (What::Page(operand), Ok(reply)) => self.on_page(operand, reply, desk),
            (What::Hash(operand), Ok(Reply::Hash(hash))) => desk.report(Report::Hashed { path: operand.shown, hash }),
            (What::Resume(operand), Ok(Reply::Resume { size, hash })) => {
                desk.report(Report::Resumable { path: operand.shown, size, hash });
            }
            (_, Ok(_)) => {}
            (_, Err(failure)) => desk.report(Report::Failed(failure)),
        }
    }

    fn on_completion(&mut self, _: OpKind, _: Outcome, _: &mut Desk<'_, '_>) {}

    fn is_finished(&self) -> bool {
        self.operands.is_empty() && self.pending.is_empty()
    }

    fn state(&self) -> &'static str {
        "inspect"
    }
}
