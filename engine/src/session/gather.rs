//! Which process serves a login: those of one run may have gathered in one, and each there can write ranges of a file that
//! another one has begun.
//!
//! ```text
//! joined -Ping, under GATHER-> Asking -Ok{the process's name}-> known: files are begun from here on
//! ```
//! The first connection's process is told to the queue. Only where it serves does a file go up in ranges: what another
//! connection had in hand when it broke is the first one's.

use super::client::{Answer, Desk, Reply};
use super::range;
use crate::queue::Queue;
use crate::session::report::Direction;
use crate::wire::frame::{Ext, Hash};

/// What one connection knows of that.
#[derive(Default)]
pub(super) struct Gathered {
    process: Option<Hash>,
    asking: bool,
    /// This is the first connection.
    leads: bool,
}

impl Gathered {
    /// A connection that has joined the queue, and calls its question `tag`.
    pub(super) fn ask(leads: bool, queue: &Queue, tag: u64, desk: &mut Desk<'_, '_>) -> Gathered {
        let asking = desk.io.terms.ext(Ext::GATHER) && queue.direction() == Direction::Up && !queue.is_held();
        if asking {
            desk.ask(tag, Box::new(range::ask_ping()));
        }
        Gathered { process: None, asking, leads }
    }

    pub(super) fn on_answer(&mut self, answer: Answer, queue: &Queue) {
        self.asking = false;
        let Ok(Reply::Hash(process)) = answer else { return };
        self.process = Some(process);
        if self.leads {
            queue.set_process(process);
        }
    }

    /// Nothing is begun while that is not known.
    pub(super) fn is_asking(&self) -> bool {
        self.asking
    }

    pub(super) fn process(&self) -> Option<Hash> {
        self.process
    }
}
