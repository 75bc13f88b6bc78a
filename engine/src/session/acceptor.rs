//! A listening socket: one server session for each connection, on the same worker.
//!
//! ```text
//! Accept -connection-> a Server is spawned -> Accept ..
//! ```
//! While [`limits::MAX_SESSIONS`](crate::limits::MAX_SESSIONS) are open no further connection is accepted: it waits in
//! the kernel's queue, and memory stays bounded.

use super::opening::Patience;
use super::server::{Server, Traffic, Wanted};
use super::{Context, Failure, Flow, Session};
use crate::backend::{Completion, DirId, Errno, OpKind, Output, StreamId, Time, Token};
use crate::limits::{ACCEPT_PAUSE, DAEMON_SESSION_BLOCKS, MAX_SESSIONS};
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

/// One connection that came to a listening server and is over.
#[derive(Debug)]
pub struct Visit {
    /// From where, if that is known.
    pub peer: Option<SocketAddr>,
    /// Bytes that came and that left.
    pub traffic: (u64, u64),
    /// How it ended.
    pub fate: Fate,
}

/// How a connection to a listening server ended.
#[derive(Debug)]
pub enum Fate {
    /// It was served, and ended well or not.
    Served(Result<(), Failure>),
    /// It did not prove that it may come in.
    Unproved(&'static str),
    /// It did, and no place came free.
    Full,
}

/// Is told of each connection when it is over.
pub type OnVisit = Rc<dyn Fn(Visit)>;

/// One Accept at a time, and a pause after one that failed for want of something.
#[derive(Default)]
pub(super) struct Accepting {
    out: bool,
    paused_until: Option<Time>,
}

impl Accepting {
    /// True when one may be submitted, which is then counted as out.
    pub(super) fn begin(&mut self, now: Time) -> bool {
        let may = !self.out && self.paused_until.is_none_or(|until| until <= now);
        if may {
            *self = Accepting { out: true, paused_until: None };
        }
        may
    }

    /// It is back; the connection, if that is what it brought.
    pub(super) fn end(&mut self, result: Result<Output, Errno>, now: Time) -> Option<(StreamId, Option<SocketAddr>)> {
        self.out = false;
        match result {
            Ok(Output::Accepted { stream, peer }) => return Some((stream, peer)),
            // A connection that was gone before it could be accepted is no reason to stop.
            Ok(_) | Err(Errno::ABORTED | Errno::CANCELLED) => {}
            Err(_) => self.paused_until = Some(now.after(ACCEPT_PAUSE)),
        }
        None
    }

    /// When the pause is over.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.paused_until
    }
}

/// Accepts connections and serves them.
pub struct Acceptor {
    listener: StreamId,
    root: DirId,
    store: Option<DirId>,
    read_only: bool,
    patience: Patience,
    open: Rc<Cell<usize>>,
    /// Those of them that lose their place.
    dismissed: Rc<Cell<usize>>,
    accepting: Accepting,
    accepted: Vec<(StreamId, Option<SocketAddr>)>,
    on_visit: OnVisit,
}

impl Acceptor {
    /// Serves what is below `root` to whoever connects to `listener`.
    pub fn new(listener: StreamId, root: DirId, store: Option<DirId>, on_visit: OnVisit) -> Acceptor {
        let open = Rc::new(Cell::new(0));
        Acceptor {
            listener,
            root,
            store,
            read_only: false,
            patience: Patience::default(),
            open,
            dismissed: Rc::default(),
            accepting: Accepting::default(),
            accepted: Vec::new(),
            on_visit,
        }
    }

    /// Waits for its clients for so long.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Acceptor {
        self.patience = patience;
        self
    }

    /// Refuses whatever would change anything.
    #[must_use]
    pub fn with_read_only(mut self, read_only: bool) -> Acceptor {
        self.read_only = read_only;
        self
    }
}

impl Session for Acceptor {
    fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
        self.accepted.extend(self.accepting.end(completion.result, cx.now));
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        for (stream, peer) in self.accepted.drain(..) {
            self.open.set(self.open.get() + 1);
            let (open, on_visit) = (self.open.clone(), self.on_visit.clone());
            let traffic = Traffic::default();
            let moved = traffic.clone();
            let on_end = Box::new(move |result| {
                open.set(open.get() - 1);
                on_visit(Visit { peer, traffic: moved.get(), fate: Fate::Served(result) });
            });
            let server = Server::new(stream, self.root, on_end).with_patience(self.patience).with_traffic(traffic);
            let open = self.open.clone();
            // Whoever comes then waits in the kernel's queue, where nobody sees him.
            let dismissed = self.dismissed.clone();
            let wanted = move || match open.get() - dismissed.get() >= MAX_SESSIONS {
                true => Wanted::FromIdle,
                false => Wanted::No,
            };
            let server = server.with_place(self.dismissed.clone(), Rc::new(wanted));
            let server = server.with_store(self.store).with_large_blocks(DAEMON_SESSION_BLOCKS);
            cx.spawned.push(Box::new(server.with_read_only(self.read_only)));
        }
        if self.open.get() < MAX_SESSIONS && self.accepting.begin(cx.now) {
            cx.submit(0, 0, OpKind::Accept { listener: self.listener });
        }
        Flow::Continue
    }

    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
        // Nobody shall wait at a door that nobody opens.
        cx.submit(0, 0, OpKind::CloseStream { stream: self.listener });
        (self.on_visit)(Visit { peer: None, traffic: (0, 0), fate: Fate::Served(Err(failure)) });
    }

    fn next_deadline(&self) -> Option<Time> {
        self.accepting.deadline().filter(|_| self.open.get() < MAX_SESSIONS)
    }

    fn state_of(&self, _: Token) -> &'static str {
        "accepting"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_want_of_descriptors_nothing_is_accepted_for_a_while() {
        let mut accepting = Accepting::default();
        assert!(accepting.begin(Time(0)) && !accepting.begin(Time(0)));
        assert_eq!(accepting.end(Err(Errno::TOO_MANY_FILES), Time(5)), None);
        let until = Time(5 + ACCEPT_PAUSE);
        assert_eq!(accepting.deadline(), Some(until));
        assert!(!accepting.begin(Time(until.0 - 1)) && accepting.begin(until));
        // Whoever has gone in between does not make others wait.
        assert_eq!(accepting.end(Err(Errno::ABORTED), until), None);
        assert!(accepting.deadline().is_none() && accepting.begin(until));
        let stream = StreamId::new(1, 0);
        assert_eq!(accepting.end(Ok(Output::Accepted { stream, peer: None }), until), Some((stream, None)));
    }
}
