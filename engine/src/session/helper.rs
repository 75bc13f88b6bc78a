//! The driver of a further connection: it moves files that the first one found, until none will come any more, or until it
//! is told that it is not needed.

use super::Outcome;
use super::client::{Answer, Client, Desk, Driver, Invited, Opening, Patience, Seat};
use super::jobs::Jobs;
use super::report::{Reporter, SharedProgress};
use crate::backend::{DirId, OpKind, StreamId};
use crate::queue::Queue;

struct Helper {
    jobs: Jobs,
    over: bool,
}

/// A client that moves files from `queue` over `stream`; `local` is the root of this machine's paths.
pub fn client(
    stream: StreamId,
    opening: Opening,
    (queue, local): (Queue, DirId),
    progress: SharedProgress,
    reporter: Reporter,
) -> Client {
    let driver = Helper { jobs: Jobs::new(queue, local, None), over: false };
    let answer = opening.patience.answer;
    Client::new(stream, opening, Box::new(driver), progress, reporter).with_answer(answer)
}

/// The same on a direct connection that it opens itself.
pub fn invited(
    (invited, seat): (&Invited, Seat),
    patience: Patience,
    (queue, local): (Queue, DirId),
    progress: SharedProgress,
    reporter: Reporter,
) -> Client {
    let driver = Helper { jobs: Jobs::new(queue, local, None), over: false };
    Client::invited(invited, seat, patience, Box::new(driver), progress, reporter).with_answer(patience.answer)
}

impl Driver for Helper {
    fn pump(&mut self, desk: &mut Desk<'_, '_>) {
        self.jobs.pump(false, desk);
        if self.jobs.only_waits() {
            // Comes again when it is woken, or at once when something came meanwhile.
            while self.jobs.queue().wait(desk.io.cx.waker, self.jobs.process()) && !self.jobs.queue().is_left() {
                self.jobs.pump(false, desk);
                if !self.jobs.only_waits() {
                    break;
                }
            }
        }
        self.over = self.jobs.queue().is_left();
    }

    fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>) {
        let _ = self.jobs.on_answer(tag, answer, desk);
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, desk: &mut Desk<'_, '_>) {
        let _ = self.jobs.on_completion(kind, outcome, desk);
    }

    fn is_unwanted(&self) -> bool {
        self.jobs.queue().is_left()
    }

    fn is_finished(&self) -> bool {
        self.over && self.jobs.is_idle()
    }

    fn state(&self) -> &'static str {
        "helping"
    }
}
