//! A listening socket: one server session for each connection, on the same worker.
//!
//! ```text
//! Accept -connection-> a Server is spawned -> Accept ..
//! ```
//! While [`limits::MAX_SESSIONS`](crate::limits::MAX_SESSIONS) are open no further connection is accepted: it waits in
//! the kernel's queue, and memory stays bounded.

use super::server::Server;
use super::{Context, Failure, Flow, Session};
use crate::backend::{Completion, DirId, OpKind, Output, StreamId, Time, Token};
use crate::limits::{DAEMON_SESSION_BLOCKS, MAX_SESSIONS};
use std::cell::Cell;
use std::rc::Rc;

/// Is told how each connection ended.
pub type OnSessionEnd = Rc<dyn Fn(Result<(), Failure>)>;

/// Accepts connections and serves them.
pub struct Acceptor {
    listener: StreamId,
    root: DirId,
    store: Option<DirId>,
    read_only: bool,
    open: Rc<Cell<usize>>,
    accepting: bool,
    accepted: Vec<StreamId>,
    on_session_end: OnSessionEnd,
}

impl Acceptor {
    /// Serves what is below `root` to whoever connects to `listener`.
    pub fn new(listener: StreamId, root: DirId, store: Option<DirId>, on_session_end: OnSessionEnd) -> Acceptor {
        let open = Rc::new(Cell::new(0));
        Acceptor {
            listener,
            root,
            store,
            read_only: false,
            open,
            accepting: false,
            accepted: Vec::new(),
            on_session_end,
        }
    }

    /// Refuses whatever would change anything.
    #[must_use]
    pub fn with_read_only(mut self, read_only: bool) -> Acceptor {
        self.read_only = read_only;
        self
    }
}

impl Session for Acceptor {
    fn on_completion(&mut self, completion: Completion, _: &mut Context<'_>) {
        self.accepting = false;
        // A connection that was gone before it could be accepted is no reason to stop.
        if let Ok(Output::Accepted { stream }) = completion.result {
            self.accepted.push(stream);
        }
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        for stream in self.accepted.drain(..) {
            self.open.set(self.open.get() + 1);
            let (open, on_session_end) = (self.open.clone(), self.on_session_end.clone());
            let on_end = Box::new(move |result| {
                open.set(open.get() - 1);
                on_session_end(result);
            });
            let server = Server::new(stream, self.root, on_end);
            let server = server.with_store(self.store).with_large_blocks(DAEMON_SESSION_BLOCKS);
            cx.spawned.push(Box::new(server.with_read_only(self.read_only)));
        }
        if !self.accepting && self.open.get() < MAX_SESSIONS {
            self.accepting = true;
            cx.submit(0, 0, OpKind::Accept { listener: self.listener });
        }
        Flow::Continue
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }

    fn state_of(&self, _: Token) -> &'static str {
        "accepting"
    }
}
