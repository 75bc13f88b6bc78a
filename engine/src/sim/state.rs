//! The inside of a world: the clock, what happens when, and the hosts.
//!
//! Everything that takes time is an event in one queue. An operation on the disk meets two: it takes effect, and later
//! its completion is delivered. Streams have one kind, a pump that moves bytes and is scheduled again while it can.
//! Events of operations that are gone meanwhile find nothing and do nothing.

use super::CONNECT_TIMEOUT;
use super::cable::Cable;
use super::faults::{Fault, FaultPlan, Hit, Mutation, OpName};
use super::files::{Around, Disk};
use super::listen::Listener;
use super::network::{End, Pipe};
use super::random::Random;
use super::slots::Slots;
use crate::backend::{Cancel, Completion, Errno, Op, OpKind, Output, Time};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Nanoseconds an operation on the disk takes at most, mostly.
const DISK_DELAY: u64 = 300_000;
/// Nanoseconds it takes at most on a bad day, which is one in [`SLOW_ONCE_IN`].
const SLOW_DISK_DELAY: u64 = 50_000_000;
const SLOW_ONCE_IN: u64 = 50;
/// Nanoseconds between two movements of bytes on a stream at most.
const NETWORK_DELAY: u64 = 200_000;
/// Nanoseconds one turn of a host takes at most.
const TURN_DELAY: u64 = 2_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum What {
    Execute { host: usize, op: u64 },
    Deliver { host: usize, op: u64 },
    Pump { pipe: usize },
    Arrive { pipe: usize, count: usize },
}

/// What happens at a time; events of one time happen in an order the seed decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Event {
    time: Time,
    order: u64,
    what: What,
}

/// An operation on the disk that has not taken effect, or a Connect that nobody answers.
struct Running {
    op: Op,
    fault: Option<Fault>,
}

/// What a stream id leads to.
#[derive(Clone, Copy)]
pub(super) enum Channel {
    /// An end of a connection.
    End(usize),
    /// A listening socket.
    Listener(usize),
}

/// One machine.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) streams: Slots<Channel>,
    pub(super) ready: Vec<Completion>,
    pub(super) deadline: Option<Time>,
    /// Counts the backends this host has had; one of an earlier number is dead.
    pub(super) incarnation: u32,
    pub(super) live: bool,
    pub(super) turns: u64,
    /// Its last turn submitted or brought something, or did not want to wait.
    pub(super) busy: bool,
    /// It gets no turns: what completes there waits, and nobody waits for that.
    pub(super) paused: bool,
    /// Its waker was used since its last turn: it does not wait in the next.
    pub(super) woken: Arc<AtomicBool>,
    running: BTreeMap<u64, Running>,
    finished: BTreeMap<u64, Completion>,
    counts: [u64; OpName::COUNT],
    /// Operations submitted and not completed.
    pub(super) out: usize,
}

impl Host {
    /// Something has completed that it takes in its next turn.
    fn has_news(&self) -> bool {
        !self.paused && !self.ready.is_empty()
    }

    pub(super) fn new(name: &str) -> Host {
        Host {
            name: name.to_owned(),
            disk: Disk::new(),
            streams: Slots::default(),
            ready: Vec::new(),
            deadline: None,
            incarnation: 0,
            live: false,
            turns: 0,
            busy: false,
            paused: false,
            woken: Arc::default(),
            running: BTreeMap::new(),
            finished: BTreeMap::new(),
            counts: [0; OpName::COUNT],
            out: 0,
        }
    }
}

/// See the module head.
pub(super) struct State {
    pub(super) random: Random,
    pub(super) clock: Time,
    pub(super) hosts: Vec<Host>,
    pub(super) pipes: Vec<Pipe>,
    pub(super) ends: Vec<End>,
    pub(super) listeners: Vec<Listener>,
    pub(super) plan: FaultPlan,
    pub(super) hits: Vec<Hit>,
    /// So many of them have been told to the test.
    pub(super) hits_told: usize,
    pub(super) violations: Vec<String>,
    pub(super) mutation: Option<Mutation>,
    /// Bytes that streams between hosts hold at least.
    pub(super) least_stream: usize,
    /// What lies between hosts, where that is slow.
    pub(super) cable: Option<Cable>,
    events: BinaryHeap<Reverse<Event>>,
    next_op: u64,
}

impl State {
    pub(super) fn new(seed: u64, plan: FaultPlan) -> State {
        let mut random = Random::new(seed);
        let plan = plan.draw(&mut random.fork());
        State {
            random,
            clock: Time(0),
            hosts: Vec::new(),
            pipes: Vec::new(),
            ends: Vec::new(),
            listeners: Vec::new(),
            plan,
            hits: Vec::new(),
            hits_told: 0,
            violations: Vec::new(),
            mutation: None,
            least_stream: 0,
            cable: None,
            events: BinaryHeap::new(),
            next_op: 1,
        }
    }

    /// One turn of a host; `false` when it has crashed.
    pub(super) fn turn(&mut self, host: usize, ops: Vec<Op>, cancels: &[Cancel], deadline: Option<Time>) -> bool {
        self.hosts[host].turns += 1;
        self.hosts[host].deadline = deadline;
        if self.plan.crashes(host, self.hosts[host].turns - 1) {
            self.hit(host, None, Fault::Crash);
            self.stop(host, false);
            return false;
        }
        let submitted = !(ops.is_empty() && cancels.is_empty());
        for op in ops {
            self.start(host, op);
        }
        // Last, because they cover operations of the same turn.
        for &cancel in cancels {
            self.cancel(host, cancel);
        }
        self.clock = self.clock.after(self.random.below(TURN_DELAY));
        self.run_due();
        let polls = deadline.is_some_and(|deadline| deadline <= self.clock);
        let host = &mut self.hosts[host];
        host.busy = host.woken.swap(false, Ordering::Relaxed) || submitted || polls || !host.ready.is_empty();
        true
    }

    /// Carries out everything whose time has come.
    fn run_due(&mut self) {
        while let Some(&Reverse(event)) = self.events.peek() {
            if event.time > self.clock {
                return;
            }
            self.events.pop();
            match event.what {
                What::Execute { host, op } => self.execute(host, op),
                What::Deliver { host, op } => self.deliver(host, op),
                What::Pump { pipe } => self.pump(pipe),
                What::Arrive { pipe, count } => self.arrive(pipe, count),
            }
        }
    }

    /// Moves the clock to whatever comes next; `false` when nothing ever will.
    ///
    /// A host that was busy in its last turn may submit more in its next: time does not jump to a deadline over that.
    pub(super) fn advance(&mut self) -> bool {
        let busy = self.hosts.iter_mut().fold(false, |any, host| std::mem::take(&mut host.busy) | any);
        if self.hosts.iter().any(Host::has_news) {
            return true;
        }
        let event = self.events.peek().map(|Reverse(event)| event.time);
        let deadlines = self.hosts.iter().filter(|host| host.live && !host.paused).filter_map(|host| host.deadline);
        let deadline = deadlines.filter(|&deadline| deadline > self.clock).min();
        let next = match (event, deadline) {
            (Some(event), Some(deadline)) if deadline < event && !busy => deadline,
            (Some(event), None) => event,
            (Some(event), Some(deadline)) if event <= deadline => event,
            (None, Some(deadline)) if !busy => deadline,
            _ => return busy,
        };
        self.clock = self.clock.max(next);
        self.run_due();
        true
    }

    /// As `advance`, but goes on over everything of which no host takes note: of a hundred steps one is left (2025-11).
    pub(super) fn advance_to_turn(&mut self) -> bool {
        let busy = self.hosts.iter().any(|host| host.busy);
        let moved = self.advance();
        while moved && !busy && !self.somebody_wakes() && self.advance() {}
        moved
    }

    /// Some host has a completion waiting, or a deadline that has passed.
    fn somebody_wakes(&self) -> bool {
        let is_past = |deadline: Option<Time>| deadline.is_some_and(|deadline| deadline <= self.clock);
        self.hosts.iter().any(|host| host.has_news() || (host.live && !host.paused && is_past(host.deadline)))
    }

    pub(super) fn quiescent(&self) -> bool {
        self.events.is_empty() && !self.hosts.iter().any(Host::has_news)
    }

    pub(super) fn schedule(&mut self, time: Time, what: What) {
        let order = self.random.next();
        self.events.push(Reverse(Event { time, order, what }));
    }

    /// Sees to it that a pipe is looked at soon.
    pub(super) fn poke(&mut self, pipe: usize) {
        if !self.pipes[pipe].pump_due {
            self.pipes[pipe].pump_due = true;
            let time = self.clock.after(self.random.magnitude(NETWORK_DELAY));
            self.schedule(time, What::Pump { pipe });
        }
    }

    fn disk_delay(&mut self) -> u64 {
        let most = if self.random.once_in(SLOW_ONCE_IN) { SLOW_DISK_DELAY } else { DISK_DELAY };
        self.random.magnitude(most)
    }

    /// A time soon, at which a completion can be delivered.
    pub(super) fn soon(&mut self) -> Time {
        self.clock.after(self.random.magnitude(NETWORK_DELAY))
    }

    pub(super) fn hit(&mut self, host: usize, op: Option<&Op>, fault: Fault) {
        let op = op.map(|op| (op.token, OpName::of(&op.kind)));
        self.hits.push(Hit { at: self.clock, host, op, fault });
    }

    fn start(&mut self, host: usize, op: Op) {
        let name = OpName::of(&op.kind);
        let id = self.next_op;
        self.next_op += 1;
        self.hosts[host].out += 1;
        let nth = &mut self.hosts[host].counts[name as usize];
        let fault = self.plan.for_op(host, name, *nth);
        *nth += 1;
        match op.kind {
            OpKind::Listen { address } => self.start_listen(host, id, op, address, fault),
            OpKind::Connect { address } => self.start_connect(host, id, op, address, fault),
            OpKind::Accept { listener: stream }
            | OpKind::Shutdown { stream }
            | OpKind::CloseStream { stream }
            | OpKind::Recv { stream, .. }
            | OpKind::Send { stream, .. }
            | OpKind::SendFile { stream, .. } => match self.hosts[host].streams.get(stream).copied() {
                Ok(Channel::End(end)) => self.start_on_stream(end, id, op, fault),
                Ok(Channel::Listener(listener)) => self.start_on_listener(listener, id, op),
                Err(stale) => self.finish_soon(host, id, op, Err(stale)),
            },
            _ => {
                self.hosts[host].running.insert(id, Running { op, fault });
                let time = self.clock.after(self.disk_delay());
                self.schedule(time, What::Execute { host, op: id });
            }
        }
    }

    /// Keeps a Connect until it is cancelled, or the time for it is over.
    pub(super) fn leave_unanswered(&mut self, host: usize, id: u64, op: Op) {
        self.hosts[host].running.insert(id, Running { op, fault: None });
        self.schedule(self.clock.after(CONNECT_TIMEOUT), What::Execute { host, op: id });
    }

    /// An operation on the disk takes effect.
    fn execute(&mut self, host: usize, id: u64) {
        let Some(Running { mut op, fault }) = self.hosts[host].running.remove(&id) else { return };
        if let OpKind::Connect { .. } = op.kind {
            return self.finish_soon(host, id, op, Err(Fault::Unanswered.errno()));
        }
        let fault = fault.or_else(|| self.hosts[host].disk.at_close(&op.kind));
        if let Some(fault) = fault {
            self.hit(host, Some(&op), fault);
        }
        let State { random, hosts, clock, mutation, .. } = self;
        let mut around = Around { random, now: *clock, session: op.token.session, fault, mutation: *mutation };
        let result = hosts[host].disk.perform(&mut op.kind, &mut around);
        let due = self.clock.after(self.disk_delay());
        self.finish(host, id, op, result, due);
    }

    pub(super) fn finish_soon(&mut self, host: usize, id: u64, op: Op, result: Result<Output, Errno>) {
        let due = self.soon();
        self.finish(host, id, op, result, due);
    }

    /// An operation is over; its owner learns of it when it is `due`.
    pub(super) fn finish(&mut self, host: usize, id: u64, op: Op, result: Result<Output, Errno>, due: Time) {
        let before = self.hosts[host].finished.insert(id, Completion { op, result });
        if before.is_some() {
            self.violations.push(format!("operation {id} completed twice"));
        }
        self.schedule(due, What::Deliver { host, op: id });
    }

    fn deliver(&mut self, host: usize, id: u64) {
        let host = &mut self.hosts[host];
        if let Some(completion) = host.finished.remove(&id) {
            host.out -= 1;
            host.ready.push(completion);
        }
    }

    fn cancel(&mut self, host: usize, cancel: Cancel) {
        let whole_session = matches!(cancel, Cancel::Session(_));
        let running = &self.hosts[host].running;
        let covered: Vec<u64> =
            running.iter().filter(|(_, run)| cancel.covers(run.op.token)).map(|(&id, _)| id).collect();
        for id in covered {
            let name = OpName::of(&self.hosts[host].running[&id].op.kind);
            let opens = matches!(
                name,
                OpName::Open | OpName::Create | OpName::InPlace | OpName::Continue | OpName::Load | OpName::OpenDir
            );
            let closes = matches!(name, OpName::Close | OpName::CloseDir);
            let waits = name == OpName::Connect;
            // A cancel may come too late; but what a session that ends would open must not stay open.
            if closes || (!waits && self.random.once_in(2) && !(opens && whole_session)) {
                continue;
            }
            let Some(Running { op, .. }) = self.hosts[host].running.remove(&id) else { continue };
            if let OpKind::Publish { file, .. } = op.kind {
                self.hosts[host].disk.give_up(file);
            }
            self.finish_soon(host, id, op, Err(Errno::CANCELLED));
        }
        let channels: Vec<Channel> = self.hosts[host].streams.iter().copied().collect();
        for channel in channels {
            match channel {
                Channel::End(end) => self.cancel_on_stream(end, cancel),
                Channel::Listener(listener) => self.cancel_on_listener(listener, |op| cancel.covers(op.token)),
            }
        }
        if let Cancel::Session(session) = cancel {
            self.hosts[host].disk.close_session(session);
            self.close_listeners_of(host, session);
        }
    }

    /// The end of a host's backend, in order or by a crash: nothing of it goes on, and what has no name is gone.
    pub(super) fn stop(&mut self, host: usize, orderly: bool) {
        let channels: Vec<Channel> = self.hosts[host].streams.iter().copied().collect();
        for channel in channels {
            match channel {
                Channel::End(end) => drop(self.close_end(end, orderly)),
                Channel::Listener(listener) => self.close_listener(listener),
            }
        }
        let host = &mut self.hosts[host];
        host.streams = Slots::default();
        host.running.clear();
        host.finished.clear();
        host.ready.clear();
        host.deadline = None;
        host.out = 0;
        host.live = false;
        host.busy = false;
        host.paused = false;
        host.incarnation += 1;
        host.disk.close_everything();
    }
}
