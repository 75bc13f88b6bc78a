//! Files in ranges: begun at either end, handed out to all connections of the run, proved as a whole, and named or given up.
//! The states are in the parent's drawing, from `Beginning` to `Naming`.

use super::{BEGIN, Jobs, NAME, Running, Stage};
use crate::backend::{Errno, FileId, Finish, OpKind, OpenMode, Output};
use crate::limits::{MAX_RANGES, RESUME_BYTES};
use crate::queue::{Job, Range, Ranging, Way};
use crate::session::chunked::{self, Part};
use crate::session::client::{Answer, Ask, Desk, Reply};
use crate::session::dedup::block_bytes;
use crate::session::plan::Options;
use crate::session::range::{self, Match, Wanted};
use crate::session::report::{Direction, Report};
use crate::session::{Failure, Outcome, Terms};
use crate::tree_hash::{HASH_BLOCK_BYTES, TreeHash};
use crate::wire::frame::{Attributes, Caps, Ext, Hash, Preserve};

impl Jobs {
    pub(super) fn goes_in_ranges(&self, job: &Job, desk: &Desk<'_, '_>) -> bool {
        let (options, terms, size) = (self.queue.options(), &desk.io.terms, job.attributes.size);
        let down = self.queue.direction() == Direction::Down;
        let Ranging { from, bytes } = self.queue.ranging();
        let fits = (from..=MAX_RANGES * bytes).contains(&size);
        if terms.ext(Ext::RANGE) {
            let anywhere = down || self.queue.meets_one_server() || self.queue.is_process(self.gathered.process());
            let several = self.queue.is_held() || (anywhere && self.queue.is_shared());
            return several && fits && Jobs::may_range(terms);
        }
        let another_way = options.resume || terms.caps.has(Caps::DEDUP) || terms.dialect.ext != Ext::NONE;
        options.connections > 1 && fits && !another_way && (down || terms.dialect.version == 1)
    }

    /// True where nothing that was agreed on with a haul goes before ranges.
    pub(in crate::session) fn may_range(terms: &Terms) -> bool {
        terms.ext(Ext::RANGE) && !terms.caps.has(Caps::DEDUP) && !terms.caps.has(Caps::FAST)
    }

    /// True where what arrives is kept when the transfer is interrupted.
    pub(super) fn keeps(&self, job: &Job) -> bool {
        self.queue.options().resume && job.attributes.size >= RESUME_BYTES
    }

    pub(super) fn begin_ranges(&mut self, job: Job, desk: &mut Desk<'_, '_>) {
        let token = match chunked::next_token() {
            Ok(token) => token,
            Err(errno) => {
                let failure = Failure::here(&job.target_shown, "cannot create", errno);
                return self.finish(job, Err(failure));
            }
        };
        let size = job.attributes.size;
        let (target, mode) = match self.queue.direction() {
            Direction::Down if self.keeps(&job) => (&job.target, OpenMode::Continue { size, token: Some(token) }),
            Direction::Down => (&job.target, OpenMode::Shared { size, token }),
            // Nothing there is lost for a source that cannot be read.
            _ => (&job.source, OpenMode::Read),
        };
        desk.io.submit(BEGIN, OpKind::Open { place: self.here(target), mode });
        self.tag(job, Stage::Beginning(token));
    }

    /// The file here is open.
    pub(super) fn on_begun(&mut self, job: Job, token: u64, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let down = self.queue.direction() == Direction::Down;
        let (file, found) = match outcome {
            Ok(Output::Opened { file, attributes }) => (file, attributes),
            outcome => {
                let errno = outcome.err().unwrap_or(Errno::IO);
                let (path, what) =
                    if down { (&job.target_shown, "cannot create") } else { (&job.source_shown, "cannot open") };
                let failure = Failure::here(path, what, errno);
                return self.finish(job, Err(if down { failure } else { failure.of_source() }));
            }
        };
        if down && !(self.keeps(&job) && found.size >= HASH_BLOCK_BYTES as u64) {
            return self.hand_out(job, token, Some(file), (0, &[]), desk);
        }
        if desk.io.terms.ext(Ext::RANGE) {
            return self.compare_ranges(job, token, (file, found), desk);
        }
        desk.io.submit(BEGIN, OpKind::Close { file });
        let ask = chunked::ask_truncate(job.target.clone(), job.attributes.size, job.target_shown.clone());
        let tag = self.tag(job, Stage::Beginning(token));
        desk.ask(tag, Box::new(ask));
    }

    /// Begins the file over there, or asks what is there of what is here.
    pub(super) fn compare_ranges(
        &mut self,
        job: Job,
        token: u64,
        (file, found): (FileId, Attributes),
        desk: &mut Desk<'_, '_>,
    ) {
        let (size, keep, preserve) = (job.attributes.size, self.keeps(&job), self.queue.options().preserve);
        let down = self.queue.direction() == Direction::Down;
        if !down && (found.size, found.mtime) != (size, job.attributes.mtime) {
            desk.io.submit(BEGIN, OpKind::Close { file });
            let failure = Failure::here(&job.source_shown, "cannot read", Errno::CHANGED);
            return self.finish(job, Err(failure));
        }
        let (wanted, paths) = if down {
            let there = if found.size >= size { size } else { found.size - found.size % HASH_BLOCK_BYTES as u64 };
            (Wanted::Down { source: job.source.clone(), there }, (&job.source_shown, &job.target_shown))
        } else {
            let target = job.target.clone();
            (Wanted::Up { target, size, attributes: found, preserve, keep }, (&job.target_shown, &job.source_shown))
        };
        let ask = Match::new(wanted, (paths.0.clone(), paths.1.clone()), file);
        let tag = self.tag(job, Stage::Matching(token, file));
        desk.ask(tag, Box::new(ask));
    }

    /// It is known which blocks need not be moved.
    pub(super) fn on_matched(&mut self, job: Job, token: u64, file: FileId, answer: Answer, desk: &mut Desk<'_, '_>) {
        let down = self.queue.direction() == Direction::Down;
        if !down || answer.is_err() {
            desk.io.submit(BEGIN, OpKind::Close { file });
        }
        match answer {
            Ok(Reply::Begun { token: there, blocks }) => {
                let known = blocks.iter().zip(0..).filter(|(block, _)| block.is_some());
                let bytes = known.map(|(_, index)| block_bytes(index, job.attributes.size) as u64);
                desk.io.progress.skipped(bytes.sum());
                self.hand_out(job, token, down.then_some(file), (there, &blocks), desk);
            }
            Ok(Reply::Unmatched { token: there, failure }) => self.give_up_ranges(job, failure, (None, there), desk),
            Ok(_) => self.finish(job, Err(Failure::protocol("another answer"))),
            Err(failure) => self.finish(job, Err(failure)),
        }
    }

    pub(super) fn hand_out(
        &mut self,
        job: Job,
        token: u64,
        file: Option<FileId>,
        (there, known): (u64, &[Option<Hash>]),
        desk: &mut Desk<'_, '_>,
    ) {
        let process = self.gathered.process().filter(|_| there != 0);
        self.queue.begin_ranges(&job, (token, there, process), known, desk.io.cx.waker.clone());
        // Of its bytes this connection has as many as it takes ranges.
        self.bytes = self.bytes.saturating_sub(job.bytes());
        self.tag(job, Stage::Ranges(token, file, there));
    }

    pub(super) fn move_range(&mut self, job: Job, range: Range, desk: &mut Desk<'_, '_>) {
        let down = self.queue.direction() == Direction::Down;
        let (here, there) = if down { (&job.target, &job.source) } else { (&job.source, &job.target) };
        let (local_path, remote_path) = match down {
            true => (job.target_shown.clone(), job.source_shown.clone()),
            false => (job.source_shown.clone(), job.target_shown.clone()),
        };
        let part = Part { local: self.here(here), local_path, remote: there.clone(), remote_path, range };
        let ask: Box<dyn Ask> = match down {
            true => Box::new(chunked::Fetch::new(part, job.attributes)),
            false => Box::new(chunked::Send::new(part, job.attributes)),
        };
        let tag = self.tag(job, Stage::Moving);
        desk.ask(tag, ask);
    }

    /// Goes on with files all of whose ranges are done.
    pub(super) fn look_at_ranges(&mut self, desk: &mut Desk<'_, '_>) {
        let waiting: Vec<(u64, u64)> = self
            .running
            .iter()
            .filter_map(|(&tag, running)| match running.stage {
                Stage::Ranges(token, ..) => Some((tag, token)),
                _ => None,
            })
            .collect();
        for (tag, token) in waiting {
            let Some(result) = self.queue.take_ranges(token) else { continue };
            let Some(Running { job, stage: Stage::Ranges(_, file, there) }) = self.running.remove(&tag) else {
                continue;
            };
            // Counted again, to be taken off when the file is finished.
            self.bytes = self.bytes.saturating_add(job.bytes());
            match result {
                Err(failure) => self.give_up_ranges(job, failure, (file, there), desk),
                Ok(chaining) => {
                    let mut tree = TreeHash::new();
                    chaining.into_iter().for_each(|chaining| tree.push_chaining(chaining));
                    self.prove(job, tree.finalize(), (file, there), desk);
                }
            }
        }
    }

    pub(super) fn prove(
        &mut self,
        job: Job,
        hash: Hash,
        (file, there): (Option<FileId>, u64),
        desk: &mut Desk<'_, '_>,
    ) {
        if desk.io.terms.ext(Ext::RANGE) {
            // Each range was proved already.
            return match file {
                Some(file) => self.name(job, hash, file, desk),
                None => {
                    let whole = (hash, job.attributes.size);
                    let ask = range::ask_commit(there, whole, job.target_shown.clone());
                    let tag = self.tag(job, Stage::Proving(hash, None));
                    desk.ask(tag, Box::new(ask));
                }
            };
        }
        let (there, shown) = match self.queue.direction() {
            Direction::Down => (job.source.clone(), job.source_shown.clone()),
            _ => (job.target.clone(), job.target_shown.clone()),
        };
        // What it has grown by meanwhile is not asked for.
        let size = Some(job.attributes.size);
        let tag = self.tag(job, Stage::Proving(hash, file));
        desk.ask(tag, Box::new(crate::session::hash::ask_limited(there, size, shown)));
    }

    /// The peer's hash of the whole file came, or did not.
    pub(super) fn on_proved(
        &mut self,
        job: Job,
        ours: Hash,
        file: Option<FileId>,
        answer: Answer,
        desk: &mut Desk<'_, '_>,
    ) {
        let failure = match (answer, file) {
            (Ok(Reply::Hash(theirs)), _) if theirs != ours => match file {
                Some(_) => Failure::here(&job.target_shown, "not published", Errno::HASH_MISMATCH),
                None => {
                    Failure::rule(&job.target_shown, "cannot verify", "the server's copy has another hash; it is bad")
                }
            },
            (Ok(_), None) => {
                let size = job.attributes.size;
                return self.done(job, (Some(ours), size, Way::Moved(Direction::Up)), desk);
            }
            (Ok(_), Some(file)) => return self.name(job, ours, file, desk),
            (Err(failure), _) => failure,
        };
        self.give_up_ranges(job, failure, (file, 0), desk);
    }

    /// Everything is there, and proved.
    pub(super) fn name(&mut self, job: Job, hash: Hash, file: FileId, desk: &mut Desk<'_, '_>) {
        let Options { preserve, sync, .. } = self.queue.options();
        let verify = preserve.has(Preserve::VERIFY).then_some(hash);
        let attributes = desk.io.terms.ext(Ext::META).then_some(job.attributes);
        let finish = Box::new(Finish { attributes, preserve, sync, verify });
        desk.io.submit(NAME, OpKind::Publish { file, finish });
        self.tag(job, Stage::Naming(hash, file));
    }

    pub(super) fn give_up_ranges(
        &mut self,
        job: Job,
        failure: Failure,
        (file, there): (Option<FileId>, u64),
        desk: &mut Desk<'_, '_>,
    ) {
        if let Some(file) = file {
            desk.io.submit(BEGIN, OpKind::Close { file });
        } else if there != 0 {
            let ask = range::ask_abandon(there, job.target_shown.clone());
            let tag = self.tag(job, Stage::Abandoning(failure));
            return desk.ask(tag, Box::new(ask));
        } else if desk.io.terms.dialect.ext == Ext::NONE {
            let text = "what failed is incomplete over there: this peer writes the ranges of a file where it stands";
            desk.report(Report::Notice(text.to_string()));
        }
        self.finish(job, Err(failure));
    }
}
