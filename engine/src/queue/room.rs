//! Files for which there is no room: once one has found that out, none that is as large is begun.

use super::{Finished, Job, Queue, State, wake};
use crate::limits::NO_ROOM_BYTES;
use crate::session::Failure;
use std::collections::VecDeque;

impl Queue {
    /// There is no room for a name even, as this failure says: whatever is not begun fails as well, and nothing of it is sent.
    pub(crate) fn fill_up(&self, failure: &Failure) {
        let mut state = self.state();
        state.fill_up(0, failure);
        wake(state, true);
    }

    /// True once nothing more can be written.
    pub(crate) fn is_full(&self) -> bool {
        self.state().no_room.as_ref().is_some_and(|(size, _)| *size == 0)
    }
}

impl State {
    /// The job, unless there is known to be no room for it: then it is finished.
    pub(super) fn admit(&mut self, job: Job) -> Option<Job> {
        match &self.no_room {
            Some((size, failure)) if job.attributes.size >= *size => {
                let finished = without_room(job, failure);
                self.finished.push(finished);
                None
            }
            _ => Some(job),
        }
    }

    /// Takes note of how a file ended.
    pub(super) fn look_for_room(&mut self, finished: &Finished) {
        if let Err(failure) = &finished.result
            && failure.kind.is_no_room()
        {
            self.fill_up(finished.job.attributes.size, failure);
        }
    }

    /// Ends the files that nobody has begun and that are as large as one for which there was no room. Smaller ones may fit.
    /// Ranges belong to files that were begun: these end by themselves.
    fn fill_up(&mut self, size: u64, failure: &Failure) {
        let size = if size <= NO_ROOM_BYTES { 0 } else { size };
        let least = self.no_room.as_ref().map_or(size, |(least, _)| size.min(*least));
        self.no_room = Some((least, failure.clone()));
        for jobs in [&mut self.jobs, &mut self.returned] {
            let (fit, fail): (VecDeque<Job>, VecDeque<Job>) =
                std::mem::take(jobs).into_iter().partition(|job| job.range.is_some() || job.attributes.size < least);
            *jobs = fit;
            self.finished.extend(fail.into_iter().map(|job| without_room(job, failure)));
        }
    }
}

/// A file for which there is no room, as one before it has found.
fn without_room(job: Job, failure: &Failure) -> Finished {
    let failure = Failure { path: job.target_shown.clone(), ..failure.clone() };
    Finished { job, result: Err(failure) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::job;
    use super::*;
    use crate::backend::Errno;
    use crate::session::plan::Options;
    use crate::session::report::Direction;

    #[test]
    fn what_is_as_large_as_a_file_without_room_is_not_begun_and_what_is_smaller_may_fit() {
        let queue = Queue::new(Direction::Up, Options::default());
        queue.join(None);
        for (number, size) in [(1, 100_000), (2, 200_000), (3, 50_000)] {
            queue.push(job(number, size));
        }
        let first = queue.pull(false, |_| true).unwrap();
        let full = Failure::here(b"first", "cannot write", Errno::NO_SPACE);
        queue.finish(Finished { job: first, result: Err(full) });
        queue.push(job(4, 100_000));
        queue.push(job(5, 99_999));
        let numbers = |jobs: Vec<Finished>| jobs.iter().map(|finished| finished.job.number).collect::<Vec<_>>();
        assert_eq!(numbers(queue.take_finished()), [2, 1, 4]);
        assert!(!queue.is_full());
        assert_eq!(queue.pull(false, |_| true).unwrap().number, 3);
        queue.fill_up(&Failure::here(b"dir", "cannot make directory", Errno::NO_SPACE));
        queue.push(job(6, 0));
        assert_eq!(numbers(queue.take_finished()), [5, 6]);
        assert!(queue.is_full() && queue.pull(false, |_| true).is_none());
    }
}
