//! Files whose source changed while it was read: tried once more.
//!
//! ```text
//! start -again-> LookAgain -> begin, as if it were the first time, but as a whole and from the beginning
//! ```
//! Ranges are read at different moments, by several, and what is kept need not be the beginning of what is there now. Of a file
//! that only grows, what was there can be proved this way (source.rs).

use super::client::Desk;
use super::jobs::{Jobs, LOOK, Stage};
use super::report::Direction;
use super::{Failure, Outcome, stat};
use crate::backend::{Errno, FsOp, OpKind, Output};
use crate::queue::Job;
use crate::wire::frame::{Attributes, Ext, Kind};

impl Jobs {
    pub(super) fn start(&mut self, job: Job, desk: &mut Desk<'_, '_>) {
        self.bytes = self.bytes.saturating_add(job.bytes());
        if job.again {
            return self.look_again(job, desk);
        }
        self.begin(job, desk);
    }

    fn look_again(&mut self, job: Job, desk: &mut Desk<'_, '_>) {
        if self.queue.direction() == Direction::Down {
            let (source, shown) = (job.source.clone(), job.source_shown.clone());
            let tag = self.tag(job, Stage::LookAgain);
            return match desk.io.terms.ext(Ext::TREE) {
                true => desk.ask(tag, Box::new(stat::ask_lookup(source, true, shown))),
                false => desk.ask(tag, Box::new(stat::ask(source, shown))),
            };
        }
        let place = self.here(&job.source);
        desk.io.submit(LOOK, OpKind::Fs(Box::new(FsOp::Stat { place, follow: true })));
        self.tag(job, Stage::LookAgain);
    }

    /// The same of a source here.
    pub(super) fn on_stat_again(&mut self, job: Job, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        match outcome {
            Ok(Output::Attributes { attributes, .. }) => self.on_looked_again(job, attributes, desk),
            outcome => {
                let failure = Failure::here(&job.source_shown, "cannot open", outcome.err().unwrap_or(Errno::IO));
                self.finish(job, Err(failure));
            }
        }
    }

    /// The source was looked at again.
    pub(super) fn on_looked_again(&mut self, mut job: Job, now: Attributes, desk: &mut Desk<'_, '_>) {
        if now.kind != Kind::Regular {
            let failure = Failure::here(&job.source_shown, "cannot open", Errno::NOT_REGULAR);
            return self.finish(job, Err(failure));
        }
        self.bytes = self.bytes.saturating_sub(job.attributes.size).saturating_add(now.size);
        job.attributes = now;
        self.begin(job, desk);
    }
}
