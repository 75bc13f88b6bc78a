//! What the drivers of the first connection share: files become jobs, results are told in the order of the files, and a
//! directory is left for good only when everything found before that is done.

use super::client::Desk;
use super::jobs::Jobs;
use super::landed::upwards;
use super::report::Report;
use super::{Failure, Terms};
use crate::backend::{Errno, Waker};
use crate::limits::{JOBS_UNREPORTED, UNREPORTED_NAME_BYTES};
use crate::queue::{Finished, Job, Way};
use crate::wire::frame::Attributes;
use crate::wire::path::Target;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The files of a run, from the walk to the report.
pub(crate) struct Lead {
    pub(super) jobs: Jobs,
    /// Numbers of everything begun and not done: files, and what the driver counts beside them.
    open: BTreeSet<u64>,
    last: u64,
    /// Files in the order of the walk that are not reported yet, and what is known of those.
    order: VecDeque<u64>,
    results: BTreeMap<u64, Finished>,
    /// Bytes of their paths.
    name_bytes: usize,
    /// Where a directory was to be made and a symbolic link stands. What is below is left out.
    linked: BTreeSet<Vec<u8>>,
    /// What failed because of a link that may turn out to be one of those, once all begun before that number is done.
    doubtful: VecDeque<(u64, Failure, Target)>,
}

impl Lead {
    pub(super) fn new(jobs: Jobs) -> Lead {
        Lead {
            jobs,
            open: BTreeSet::new(),
            last: 0,
            order: VecDeque::new(),
            results: BTreeMap::new(),
            name_bytes: 0,
            linked: BTreeSet::new(),
            doubtful: VecDeque::new(),
        }
    }

    /// Direct connections are to carry the content: where they are `required`, nothing else.
    pub(super) fn invited(&self, required: bool, terms: &Terms, waker: &Waker) {
        self.jobs.queue().hold((required, Jobs::may_range(terms)), waker);
    }

    /// Why the run cannot go on, if so.
    pub(super) fn broken(&self) -> Option<Failure> {
        self.jobs.queue().broken()
    }

    /// Everything is done: the server ends this stream when the direct connections have gone, so these need not wait.
    pub(super) fn leave(&self) {
        self.jobs.queue().end();
    }

    /// Counts something that is begun now.
    pub(super) fn begin(&mut self) -> u64 {
        self.last += 1;
        self.open.insert(self.last);
        self.last
    }

    /// It is done.
    pub(super) fn end(&mut self, number: u64) {
        self.open.remove(&number);
    }

    /// The number that what is begun next will have.
    pub(super) fn next(&self) -> u64 {
        self.last + 1
    }

    /// True when everything begun before `number` is done.
    pub(super) fn is_done_before(&self, number: u64) -> bool {
        self.open.first().is_none_or(|&first| first >= number)
    }

    /// True while more files may be found.
    pub(super) fn has_room(&self) -> bool {
        self.order.len() < JOBS_UNREPORTED && self.name_bytes < UNREPORTED_NAME_BYTES && self.jobs.queue().has_room()
    }

    /// A file was found.
    pub(super) fn file(
        &mut self,
        source: (Target, Vec<u8>),
        target: (Target, Vec<u8>),
        attributes: Attributes,
        desk: &Desk<'_, '_>,
    ) {
        desk.io.progress.expect(1, attributes.size);
        let number = self.begin();
        self.order.push_back(number);
        self.name_bytes += name_bytes((&source.1, &target.1));
        self.jobs.queue().push(Job::new(number, source, target, attributes));
    }

    /// Moves files, and tells what became of those before.
    pub(super) fn pump(&mut self, desk: &mut Desk<'_, '_>) {
        self.jobs.pump(true, desk);
        for finished in self.jobs.queue().take_finished() {
            self.open.remove(&finished.job.number);
            self.results.insert(finished.job.number, finished);
        }
        while let Some(finished) = self.order.front().and_then(|number| self.results.remove(number)) {
            self.order.pop_front();
            let names = (&*finished.job.source_shown, &*finished.job.target_shown);
            self.name_bytes = self.name_bytes.saturating_sub(name_bytes(names));
            if let (true, Ok((_, size, _))) = (finished.job.grew, &finished.result) {
                desk.report(Report::Grew { source: finished.job.source_shown.clone(), size: *size });
            }
            match report(finished) {
                (Report::Failed(failure), at) => self.failed(failure, at, false, desk),
                (report, _) => desk.report(report),
            }
        }
        let first = self.open.first().copied();
        while let Some((_, failure, target)) =
            self.doubtful.pop_front_if(|(after, ..)| first.is_none_or(|first| first >= *after))
        {
            if !self.is_behind_link(&target) {
                desk.report(Report::Failed(failure));
            }
        }
    }

    /// Tells what failed at the target. A link in the place of a directory is told once, and not of everything below.
    pub(super) fn failed(
        &mut self,
        failure: Failure,
        (target, shown): (Target, Vec<u8>),
        directory: bool,
        desk: &mut Desk<'_, '_>,
    ) {
        if failure.code() == Errno::LOOP.code() {
            if self.is_behind_link(&target) {
                return;
            }
            if directory {
                self.linked.insert(target.joined().as_bytes().to_vec());
                let rule = "it is a symbolic link over there; what is below it is left out, too";
                return desk.report(Report::Failed(Failure::rule(&shown, "left out", rule)));
            }
            return self.doubtful.push_back((self.next(), failure, target));
        }
        desk.report(Report::Failed(failure));
    }

    /// True of what cannot be made because a link stands in the place of a directory above it, or in its own.
    pub(super) fn is_behind_link(&self, target: &Target) -> bool {
        !self.linked.is_empty() && upwards(target.joined().as_bytes()).any(|path| self.linked.contains(path))
    }

    /// True when every file found is done and reported.
    pub(super) fn is_idle(&self) -> bool {
        self.order.is_empty() && self.jobs.is_idle() && self.doubtful.is_empty()
    }
}

impl Drop for Lead {
    /// The other connections have nothing to wait for any more.
    fn drop(&mut self) {
        self.jobs.queue().end();
    }
}

/// What a file's paths take: each is kept as it is shown and as it is used.
fn name_bytes((source, target): (&[u8], &[u8])) -> usize {
    2 * (source.len() + target.len())
}

/// With where it was to be.
fn report(finished: Finished) -> (Report, (Target, Vec<u8>)) {
    let Job { source_shown: source, target_shown: target, target: at, .. } = finished.job;
    let at = (at, target.clone());
    let report = match finished.result {
        Err(failure) => Report::Failed(failure),
        Ok((hash, size, Way::Moved(direction))) => Report::Copied { source, target, size, hash, direction },
        Ok((hash, size, Way::Unchanged)) => Report::Unchanged { source, target, size, hash },
    };
    (report, at)
}
