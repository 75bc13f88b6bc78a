//! The loop: one `submit_and_wait` a turn, completions to their sessions, operations to the backend.
//!
//! Owns the backend, the pool and the sessions of one thread. Knows nothing of frames or files.
//!
//! ```text
//! turn: submit_and_wait -> completions -> session.on_completion.. -> session.on_turn -> operations -> next turn
//! ```
//! A session that panics, or for whose blocks there is no memory, ends with that as its reason; the others go on.

use crate::backend::{
    Backend, Broken, Cancel, Completion, Errno, OpKind, Output, SessionId, Submissions, Time, Token, Waker,
};
use crate::block::{Class, Pool};
use crate::panics::caught;
use crate::session::{CANNOT_GO_ON, Context, Failure, Flow, Session};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One session and what the worker must know of it.
struct Slot {
    session: Option<Box<dyn Session>>,
    /// Operations out; the slot is free again only when all are back.
    in_flight: usize,
    /// Something happened to it in this turn.
    due: bool,
}

/// Drives sessions over one backend.
pub struct Worker<B: Backend> {
    backend: B,
    pool: Pool,
    slots: Vec<Slot>,
    submissions: Submissions,
    completions: Vec<Completion>,
    spawned: Vec<Box<dyn Session>>,
    waker: Waker,
    /// Somebody has used the waker.
    woken: Arc<AtomicBool>,
    lets_panics_through: bool,
}

impl<B: Backend> Worker<B> {
    /// A worker without sessions.
    pub fn new(backend: B, pool: Pool) -> Worker<B> {
        let woken = Arc::new(AtomicBool::new(false));
        let (flag, inner) = (woken.clone(), backend.waker());
        let waker = Waker(Arc::new(move || {
            flag.store(true, Ordering::Release);
            inner.wake();
        }));
        Worker {
            waker,
            woken,
            backend,
            pool,
            slots: Vec::new(),
            submissions: Submissions::default(),
            completions: Vec::new(),
            spawned: Vec::new(),
            lets_panics_through: false,
        }
    }

    /// Has panics of sessions end this thread, for tests that are to fail by them.
    #[must_use]
    pub fn letting_panics_through(mut self) -> Worker<B> {
        self.lets_panics_through = true;
        self
    }

    /// The backend, to give it streams and roots.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Ends the wait of this worker from another thread, and lets every session look again.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Blocks that could be taken now, for tests that look for leaks.
    pub fn blocks_available(&self, class: Class) -> usize {
        self.pool.available(class)
    }

    /// Adds a session; it is started in the next turn.
    pub fn add(&mut self, session: Box<dyn Session>) -> SessionId {
        let slot = Slot { session: Some(session), in_flight: 0, due: true };
        let free = self.slots.iter().position(|slot| slot.session.is_none() && slot.in_flight == 0);
        let index = free.unwrap_or(self.slots.len());
        if index == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.slots[index] = slot;
        }
        SessionId(u32::try_from(index).expect("sessions are bounded by descriptors"))
    }

    /// True while a session lives or an operation is out.
    pub fn is_busy(&self) -> bool {
        self.slots.iter().any(|slot| slot.session.is_some() || slot.in_flight > 0)
    }

    /// The state of the transfer an operation belongs to, for the simulator's coverage table.
    pub fn state_of(&self, token: Token) -> &'static str {
        let slot = self.slots.get(token.session.0 as usize);
        slot.and_then(|slot| slot.session.as_ref()).map_or("ended", |session| session.state_of(token))
    }

    /// What every session is at, for whoever finds that nothing moves any more.
    pub fn states(&self) -> Vec<&'static str> {
        let whose = |index| Token { session: session_id(index), transfer: 0, part: 0 };
        let living = (0..self.slots.len()).filter(|&index| self.slots[index].session.is_some());
        living.map(|index| self.state_of(whose(index))).collect()
    }

    /// Runs until no session is left or `stop` says so.
    pub fn run(&mut self, stop: impl Fn() -> bool) -> Result<(), Broken> {
        while self.is_busy() && !stop() {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn: sessions that are due, then the backend.
    pub fn turn(&mut self) -> Result<(), Broken> {
        self.call_sessions();
        let deadline = self.slots.iter().filter_map(|slot| slot.session.as_ref()?.next_deadline()).min();
        // Where the last session has ended and left nothing to wait for, there would be no end to that.
        let at_once = self.slots.iter().any(|slot| slot.due) || !self.is_busy();
        let deadline = if at_once { Some(Time(0)) } else { deadline };
        self.backend.submit_and_wait(&mut self.submissions, &mut self.completions, deadline)?;
        self.deliver();
        Ok(())
    }

    /// Ends every session, as when the process is told to stop; what is in flight drains in the turns that follow.
    pub fn end_all(&mut self) {
        for index in 0..self.slots.len() {
            if self.slots[index].session.take().is_some() {
                self.submissions.cancel(Cancel::Session(session_id(index)));
            }
        }
    }

    fn call_sessions(&mut self) {
        let now = self.backend.now();
        let mut index = 0;
        while index < self.slots.len() {
            let slot = &mut self.slots[index];
            let late = slot.session.as_ref().and_then(|session| session.next_deadline()).is_some_and(|at| at <= now);
            let called = std::mem::take(&mut slot.due) || late;
            if called && self.call(index, now) {
                // One that was called before may wait for the end of this one.
                self.slots.iter_mut().for_each(|slot| slot.due |= slot.session.is_some());
                index = 0;
            } else {
                index += 1;
            }
        }
    }

    /// True when it has ended.
    fn call(&mut self, index: usize, now: Time) -> bool {
        let Some(mut session) = self.slots[index].session.take() else { return false };
        let before = self.submissions.ops.len();
        let mut cx = Context {
            id: session_id(index),
            now,
            pool: &mut self.pool,
            submissions: &mut self.submissions,
            waker: &self.waker,
            spawned: &mut self.spawned,
        };
        let flow = act(self.lets_panics_through, session.as_mut(), &mut cx, |session, cx| session.on_turn(cx));
        self.slots[index].in_flight += self.submissions.ops.len() - before;
        match flow {
            Flow::Continue => self.slots[index].session = Some(session),
            Flow::Finished => {
                drop_quietly(session);
                self.submissions.cancel(Cancel::Session(session_id(index)));
            }
        }
        for session in std::mem::take(&mut self.spawned) {
            self.add(session);
        }
        self.slots[index].session.is_none()
    }

    fn deliver(&mut self) {
        let now = self.backend.now();
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            let id = completion.op.token.session;
            let slot = &mut self.slots[id.0 as usize];
            slot.in_flight -= 1;
            let Some(session) = &mut slot.session else {
                self.discard(completion);
                continue;
            };
            slot.due = true;
            let mut cx = Context {
                id,
                now,
                pool: &mut self.pool,
                submissions: &mut self.submissions,
                waker: &self.waker,
                spawned: &mut self.spawned,
            };
            let before = cx.submissions.ops.len();
            let flow = act(self.lets_panics_through, session.as_mut(), &mut cx, |session, cx| {
                session.on_completion(completion, cx);
                Flow::Continue
            });
            slot.in_flight += self.submissions.ops.len() - before;
            if flow == Flow::Finished {
                slot.session.take().into_iter().for_each(drop_quietly);
                self.submissions.cancel(Cancel::Session(id));
                // Others may wait for the end of this one.
                self.slots.iter_mut().for_each(|slot| slot.due |= slot.session.is_some());
            }
        }
        self.completions = completions;
        // Blocks may have come back that a session of this worker waits for.
        if self.slots.len() > 1 || self.woken.swap(false, Ordering::AcqRel) {
            self.slots.iter_mut().for_each(|slot| slot.due |= slot.session.is_some());
        }
    }

    /// A connection that was accepted for a session that is gone is closed; files, and what it listened on, are the
    /// backend's to close.
    fn discard(&mut self, completion: Completion) {
        if let Ok(Output::Accepted { stream, .. }) = completion.result {
            let token = completion.op.token;
            self.slots[token.session.0 as usize].in_flight += 1;
            self.submissions.push(token, OpKind::CloseStream { stream });
        }
    }
}

/// Lets a session act. Where it panics, or there is no memory for its blocks, it is over, and tells whoever waits for it.
fn act(
    lets_panics_through: bool,
    session: &mut dyn Session,
    cx: &mut Context<'_>,
    act: impl FnOnce(&mut dyn Session, &mut Context<'_>) -> Flow,
) -> Flow {
    let acted = if lets_panics_through { Ok(act(session, cx)) } else { caught(|| act(session, cx)) };
    let starved = cx.pool.take_starved();
    let failure = match acted {
        Ok(Flow::Continue) if starved => Failure::here(b"", CANNOT_GO_ON, Errno::NO_MEMORY),
        Ok(flow) => return flow,
        Err(panicked) => Failure::connection(CANNOT_GO_ON, panicked),
    };
    // What is left of it after a panic may not be able to say so.
    let _ = caught(|| session.abandon(failure, cx));
    Flow::Finished
}

/// What a session leaves undone after a panic may make another one.
fn drop_quietly(session: Box<dyn Session>) {
    let _ = caught(|| drop(session));
}

fn session_id(index: usize) -> SessionId {
    SessionId(u32::try_from(index).expect("sessions are bounded by descriptors"))
}
