//! The asking half: requests out in order, answers back in the same order, and a driver that decides what to ask.
//!
//! ```text
//! Opening -greeted (opening.rs)-> Working -driver done, all answered-> Leaving -stream ended-> finished
//! ```
//! A client always reads while it writes. `Ask`s are prepared ahead (files are opened and loaded), sent one after the
//! other, and answered one after the other; what an answer needs afterwards (naming a downloaded file) goes on beside.

mod watch;

use super::codec::Policy;
use super::lead::Lead;
use super::link::{Incoming, Link};
use super::meeting::{BASE_IS_SEALED, Meeting, Step, no_direct};
use super::opening::Opener;
use super::report::{Report, Reporter, SharedProgress};
use super::silence::{Awake, Silence};
use super::{Context, Failure, Flow, Io, Outcome, Quotas, Session, Terms};
use crate::backend::{Completion, OpKind, Output, StreamId, Time, Token};
use crate::limits::{CLIENT_LOAD_AHEAD, CLIENT_WINDOW_REQUESTS, LEAVE_TIMEOUT, LOOK_AGAIN, OFFLOAD_THREADS, SECOND};
use crate::wire::compress::Codec;
use crate::wire::decode::Role;
use crate::wire::display::Printable;
use crate::wire::frame::{Caps, Dialect, Ext, Frame, Unkept};
use crate::wire::hello::Greeting;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;

pub(crate) use super::ask::{Answer, Ask, Reply, Sent, Simple};
pub use super::link::NOWHERE;
pub use super::opening::{Entropy, Invitation, Invited, Opening, Patience, Reached, Seat, Wish};

mod asks;

use asks::{Asked, Asks};

/// `Token::transfer` of a driver's own operations.
const DRIVER: u32 = 1;

/// How base servers begin to answer what they did not wait for.
const STRAY: &[u8] = b"unexpected message";

/// Decides what is asked, and makes sense of the answers.
pub(crate) trait Driver {
    /// Asks for more while the desk has room. Called often.
    fn pump(&mut self, desk: &mut Desk<'_, '_>);
    /// Takes an answer to the request it called `tag`.
    fn on_answer(&mut self, tag: u64, answer: Answer, desk: &mut Desk<'_, '_>);
    /// Takes note of a completion of an operation of its own.
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, desk: &mut Desk<'_, '_>);
    /// What it has as the first connection of a run, if it is that.
    fn lead(&self) -> Option<&Lead> {
        None
    }
    /// True when nothing is left to do for a connection that is not there yet.
    fn is_unwanted(&self) -> bool {
        false
    }
    /// True when it will ask nothing more, of however much it waits for answers.
    fn has_asked_all(&self) -> bool {
        false
    }
    /// True when it will ask nothing more and waits for nothing of its own.
    fn is_finished(&self) -> bool;
    /// For the simulator's coverage table.
    fn state(&self) -> &'static str;
}

/// What a driver may use during a call.
pub(crate) struct Desk<'a, 'c> {
    pub(crate) io: Io<'a, 'c>,
    pub(crate) reporter: &'a mut Reporter,
    asks: &'a mut Asks,
}

impl Desk<'_, '_> {
    /// True while more requests may be made.
    pub(crate) fn has_room(&self) -> bool {
        self.asks.all.len() < CLIENT_WINDOW_REQUESTS && self.asks.unsent.len() < CLIENT_LOAD_AHEAD
    }

    /// Queues a request.
    pub(crate) fn ask(&mut self, tag: u64, mut ask: Box<dyn Ask>) {
        let transfer = self.asks.next_transfer();
        let own = std::mem::replace(&mut self.io.transfer, transfer);
        ask.prepare(&mut self.io);
        self.io.transfer = own;
        self.asks.unsent.push_back(transfer);
        self.asks.all.insert(transfer, Asked { tag, ask, sent: false, replied: false, unkept: Unkept::default() });
    }

    /// Tells whoever started the client.
    pub(crate) fn report(&mut self, report: Report) {
        (self.reporter)(report);
    }

    /// Tells of attributes that an operation of the driver's own could not keep, if there are any.
    pub(crate) fn unkept(&mut self, target: &[u8], what: Unkept) {
        if !what.is_empty() {
            self.report(Report::Unkept { target: target.to_vec(), what });
        }
    }

    /// Requests that have no answer yet, those not yet sent included.
    pub(crate) fn outstanding(&self) -> usize {
        self.asks.all.len()
    }
}

enum Phase {
    /// Until both ends know what they speak.
    Opening(Box<Opener>),
    /// On the way to a direct connection.
    Meeting(Box<Meeting>),
    Working,
    /// Everything is done; the server is given until then to end the stream.
    Leaving {
        deadline: Time,
    },
}

/// A client session on one stream.
pub struct Client {
    link: Link,
    /// The session that a direct connection was agreed on in; nothing more is said there.
    control: Option<Link>,
    /// How the direct connection is to begin, until that is known.
    wish: Option<(Wish, Greeting, u64)>,
    phase: Phase,
    terms: Terms,
    quotas: Quotas,
    progress: SharedProgress,
    codec: Policy,
    reporter: Reporter,
    asks: Asks,
    driver: Box<dyn Driver>,
    /// How long a server that owes an answer may say nothing.
    silence: Silence,
    /// What still comes is content that nobody can write any more: it is left to whoever sends it.
    cut: bool,
    /// The oldest request that has left and has no answer, and since when it is the server's turn.
    waiting: Option<(u32, Time)>,
    /// When anything but a sign of life last came, or left.
    moved_at: Time,
    awake: Awake,
    /// While it opens a connection of its own: when to see whether anybody still wants it.
    look: Option<Time>,
}

impl Client {
    pub(crate) fn new(
        stream: StreamId,
        opening: Opening,
        driver: Box<dyn Driver>,
        progress: SharedProgress,
        reporter: Reporter,
    ) -> Client {
        if let Some((invitation, seat)) = opening.invited.as_deref()
            && let Some(invited) = invitation.get()
        {
            return Client::invited(invited, *seat, opening.patience, driver, progress, reporter);
        }
        let (link, patience) = (Link::new(stream, Role::Client), opening.patience);
        let wish = opening.direct.clone().map(|wish| (wish, opening.greeting, opening.patience.handshake));
        let phase = Phase::Opening(Box::new(Opener::new(opening)));
        Client { wish, ..Client::with((link, patience), phase, driver, progress, reporter) }
    }

    /// On a direct connection that it opens itself, because another session of the run has asked for it.
    pub(crate) fn invited(
        invited: &Invited,
        seat: Seat,
        patience: Patience,
        driver: Box<dyn Driver>,
        progress: SharedProgress,
        reporter: Reporter,
    ) -> Client {
        let link = Link::nowhere(Role::Client);
        let meeting = Meeting::invited(invited, seat, patience.handshake);
        Client::with((link, patience), Phase::Meeting(Box::new(meeting)), driver, progress, reporter)
    }

    fn with(
        (mut link, patience): (Link, Patience),
        phase: Phase,
        driver: Box<dyn Driver>,
        progress: SharedProgress,
        reporter: Reporter,
    ) -> Client {
        link.set_stall(patience.stall);
        Client {
            link,
            control: None,
            wish: None,
            phase,
            terms: Terms { dialect: Dialect::BASE, caps: Caps::NONE },
            quotas: Quotas::new(),
            progress,
            codec: Policy::new(None, false, OFFLOAD_THREADS),
            reporter,
            asks: Asks {
                all: BTreeMap::new(),
                unsent: VecDeque::new(),
                unanswered: VecDeque::new(),
                touched: Vec::new(),
                beside: Vec::new(),
                last_transfer: DRIVER,
            },
            driver,
            silence: Silence::new(patience),
            cut: false,
            waiting: None,
            moved_at: Time(0),
            awake: Awake::default(),
            look: None,
        }
    }

    /// Gives up a server that owes an answer and says nothing for so many nanoseconds, whatever it may be at.
    pub(crate) fn with_answer(mut self, nanoseconds: u64) -> Client {
        self.silence.bound(nanoseconds);
        self
    }

    fn with_driver(&mut self, cx: &mut Context<'_>, act: impl FnOnce(&mut dyn Driver, &mut Desk<'_, '_>)) {
        let io = Io {
            cx,
            link: &mut self.link,
            quotas: &self.quotas,
            terms: self.terms,
            progress: &self.progress,
            codec: &mut self.codec,
            transfer: DRIVER,
        };
        let mut desk = Desk { io, reporter: &mut self.reporter, asks: &mut self.asks };
        act(self.driver.as_mut(), &mut desk);
    }

    fn with_ask<R>(
        &mut self,
        transfer: u32,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut dyn Ask, &mut Io<'_, '_>) -> R,
    ) -> Option<R> {
        let asked = self.asks.all.get_mut(&transfer)?;
        let mut io = Io {
            cx,
            link: &mut self.link,
            quotas: &self.quotas,
            terms: self.terms,
            progress: &self.progress,
            codec: &mut self.codec,
            transfer,
        };
        Some(act(asked.ask.as_mut(), &mut io))
    }

    /// Finds out who answers, and agrees with them.
    fn open(&mut self, cx: &mut Context<'_>) -> Result<(), Report> {
        let Phase::Opening(opener) = &mut self.phase else { return Ok(()) };
        let Some(terms) = opener.turn(&mut self.link, cx.now)? else { return Ok(()) };
        if let Some(peer) = opener.peer() {
            (self.reporter)(Report::Peer(peer));
        }
        match self.wish.take() {
            Some((Wish { plain: true, .. }, ..)) if !terms.ext(Ext::KEYED) => {
                return Err(no_direct(BASE_IS_SEALED).into());
            }
            Some((wish, greeting, patience)) if terms.caps.has(Caps::DIRECT_TCP) => {
                self.phase = Phase::Meeting(Box::new(Meeting::new(wish, greeting, terms, patience)));
                self.terms = terms;
            }
            Some((Wish { required: true, .. }, ..)) => {
                return Err(no_direct("the server does not offer any").into());
            }
            Some(_) => {
                (self.reporter)(Report::Notice("no direct connection: the server does not offer any".to_string()));
                self.begin(terms);
            }
            None => self.begin(terms),
        }
        Ok(())
    }

    fn begin(&mut self, terms: Terms) {
        self.terms = terms;
        self.codec = Policy::new(Codec::agreed(terms.caps), terms.is_adaptive(), OFFLOAD_THREADS);
        self.silence.agreed(terms.ext(Ext::PULSE));
        if !terms.ext(Ext::META) {
            (self.reporter)(Report::Bare);
        }
        self.phase = Phase::Working;
        self.progress.connected.store(1, Ordering::Release);
    }

    /// Goes on towards a direct connection.
    fn meet(&mut self, cx: &mut Context<'_>) -> Result<(), Report> {
        let Phase::Meeting(meeting) = &mut self.phase else { return Ok(()) };
        match meeting.turn(&mut self.link, &self.quotas, cx)? {
            Step::Waiting => {}
            Step::Refused(failure) if self.link.is_nowhere() => return Err(Report::NotDirect(failure)),
            Step::Refused(failure) => {
                (self.reporter)(Report::Notice(format!("{}; going on over ssh", failure.reason())));
                let terms = self.terms;
                self.begin(terms);
            }
            Step::Met(mut link, terms, address) => {
                link.set_stall(self.link.stall());
                (self.reporter)(Report::Direct { address, plain: terms.ext(Ext::PLAIN) });
                let control = std::mem::replace(&mut self.link, *link);
                self.control = (!control.is_nowhere()).then_some(control);
                self.begin(terms);
            }
            Step::HandedOn { required } => {
                let terms = self.terms;
                if let Some(lead) = self.driver.lead() {
                    lead.invited(required, &terms, cx.waker);
                }
                self.begin(terms);
            }
        }
        Ok(())
    }

    fn close(&mut self, cx: &mut Context<'_>) {
        self.link.close(cx);
        if let Phase::Meeting(meeting) = &mut self.phase {
            meeting.close(cx);
        }
        if let Some(control) = &mut self.control {
            control.close(cx);
        }
    }

    /// Whose operation that was.
    fn link_of(&mut self, kind: &OpKind) -> Option<&mut Link> {
        let stream = match kind {
            OpKind::Recv { stream, .. }
            | OpKind::Send { stream, .. }
            | OpKind::Shutdown { stream }
            | OpKind::CloseStream { stream } => *stream,
            _ => return Some(&mut self.link),
        };
        if self.link.stream == stream {
            return Some(&mut self.link);
        }
        let new = match &mut self.phase {
            Phase::Meeting(meeting) => meeting.link(),
            _ => None,
        };
        new.into_iter().chain(&mut self.control).find(|link| link.stream == stream)
    }

    /// Whatever is still said on the control session is heard and of no interest; that it ends, neither.
    fn drain_control(&mut self, cx: &mut Context<'_>) {
        if let Some(control) = &mut self.control {
            while let Ok(Some(_)) = control.next() {}
            control.flush(cx);
            control.pump_recv(&self.quotas, cx);
        }
    }

    /// True when the request whose reply is coming can take more of it.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(&transfer) = self.asks.unanswered.front() else { return true };
        self.with_ask(transfer, cx, |ask, io| ask.is_ready(io)).unwrap_or(true)
    }

    /// Base servers answer what is left of the body of a Put they have refused, frame by frame, and some of them the Done
    /// behind a PutChunked. No request of ours is unexpected.
    fn is_stray(&self, incoming: &Incoming) -> bool {
        self.terms.dialect.ext == Ext::NONE
            && matches!(incoming, Incoming::Frame(Frame::Error { message, .. }) if message.starts_with(STRAY))
    }

    /// Takes no answers any more where all that are missing are about files that have failed here: a full disk need not wait
    /// for the rest of a large file.
    fn cut_short(&mut self) {
        let Asks { all, unsent, unanswered, .. } = &self.asks;
        let settled = |transfer| all.get(transfer).is_some_and(|asked| asked.sent && asked.ask.is_settled());
        if unanswered.is_empty()
            || !unsent.is_empty()
            || !self.driver.has_asked_all()
            || !unanswered.iter().all(settled)
        {
            return;
        }
        self.cut = true;
        for transfer in std::mem::take(&mut self.asks.unanswered) {
            self.asks.touch(transfer);
            if let Some(asked) = self.asks.all.get_mut(&transfer) {
                asked.replied = true;
            }
        }
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        while !self.cut && self.is_ready(cx) {
            let next = self.link.next().map_err(Failure::stream)?;
            let Some(incoming) = next else { break };
            self.silence.on_heard();
            if matches!(incoming, Incoming::Frame(Frame::Pulse)) {
                continue;
            }
            self.moved_at = cx.now;
            if self.is_stray(&incoming) {
                continue;
            }
            let Some(&transfer) = self.asks.unanswered.front() else {
                // Why it is about to close the connection.
                if let Incoming::Frame(Frame::Error { message, .. }) = &incoming {
                    return Err(Failure::connection("connection lost", Printable(message)));
                }
                return Err(Failure::protocol("the server sent a reply to nothing"));
            };
            if let Incoming::Frame(Frame::Unkept(what)) = incoming {
                if let Some(asked) = self.asks.all.get_mut(&transfer) {
                    asked.unkept = asked.unkept.or(what);
                }
                continue;
            }
            let complete = self.with_ask(transfer, cx, |ask, io| ask.on_incoming(incoming, io));
            if complete.unwrap_or(Ok(true))? {
                self.asks.touch(transfer);
                self.asks.unanswered.pop_front();
                if let Some(asked) = self.asks.all.get_mut(&transfer) {
                    asked.replied = true;
                }
            }
        }
        Ok(())
    }

    /// Sends what is next in line.
    fn send(&mut self, cx: &mut Context<'_>) {
        while self.link.has_room() {
            let Some(&transfer) = self.asks.unsent.front() else { break };
            // A reply may come while a body is still being sent: from the first frame on it is waited for.
            let waited_for = self.asks.unanswered.back() == Some(&transfer);
            let replied = self.asks.all.get(&transfer).is_some_and(|asked| asked.replied);
            if !waited_for && !replied {
                self.asks.unanswered.push_back(transfer);
            }
            let sent = self.with_ask(transfer, cx, |ask, io| ask.send(io)).unwrap_or(Sent::Not);
            if sent == Sent::Later {
                break;
            }
            self.asks.unsent.pop_front();
            let silent = sent == Sent::Not;
            if silent && self.asks.unanswered.back() == Some(&transfer) {
                self.asks.unanswered.pop_back();
            }
            self.asks.touch(transfer);
            if let Some(asked) = self.asks.all.get_mut(&transfer) {
                asked.sent = true;
                asked.replied |= silent;
                self.asks.beside.extend(asked.ask.works_beside().then_some(transfer));
            }
        }
        for index in 1..self.asks.unsent.len() {
            let transfer = self.asks.unsent[index];
            self.with_ask(transfer, cx, |ask, io| ask.read_ahead(io));
        }
        self.advance(cx);
    }

    /// Lets what is sent go on with what it does beside.
    fn advance(&mut self, cx: &mut Context<'_>) {
        for index in 0..self.asks.beside.len() {
            let transfer = self.asks.beside[index];
            self.with_ask(transfer, cx, |ask, io| ask.advance(io));
            self.asks.touch(transfer);
        }
    }

    /// Gives answers to the driver. True when there were any.
    fn answer(&mut self, cx: &mut Context<'_>) -> bool {
        let mut touched = std::mem::take(&mut self.asks.touched);
        touched.sort_unstable();
        touched.dedup();
        let mut answered = Vec::new();
        for transfer in touched.drain(..) {
            if let Some(asked) = self.asks.all.get_mut(&transfer)
                && asked.sent
                && asked.replied
                && let Some(answer) = asked.ask.answer()
            {
                let (path, here) = asked.ask.unkept();
                let what = asked.unkept.or(here);
                if answer.is_ok() && !what.is_empty() {
                    (self.reporter)(Report::Unkept { target: path.to_vec(), what });
                }
                answered.push((transfer, asked.tag, answer));
            }
        }
        self.asks.touched = touched;
        let any = !answered.is_empty();
        for (transfer, tag, answer) in answered {
            self.asks.all.remove(&transfer);
            self.asks.beside.retain(|&beside| beside != transfer);
            self.with_driver(cx, |driver, desk| driver.on_answer(tag, answer, desk));
        }
        any
    }

    fn work(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        let (bytes, busy) = self.link.take_sent();
        self.codec.on_sent(bytes, busy);
        self.silence.on_sent(bytes, busy);
        if bytes > 0 {
            self.moved_at = cx.now;
        }
        self.receive(cx)?;
        self.cut_short();
        loop {
            self.with_driver(cx, |driver, desk| driver.pump(desk));
            if let Some(failure) = self.driver.lead().and_then(Lead::broken) {
                return Err(failure);
            }
            self.send(cx);
            if !self.answer(cx) {
                break;
            }
        }
        if self.driver.is_finished() && self.asks.all.is_empty() {
            self.tell_stats();
            if let Some(lead) = self.driver.lead() {
                lead.leave();
            }
            self.phase = Phase::Leaving { deadline: cx.now.after(LEAVE_TIMEOUT) };
        }
        Ok(())
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Flow, Report> {
        if let Some(slept) = self.awake.turn(cx.now) {
            self.on_suspended(slept, cx.now);
        }
        if self.stall_deadline().is_some_and(|deadline| deadline <= cx.now) {
            let seconds = self.stall() / SECOND;
            return Err(Failure::silent(format!("the server has read nothing for {seconds} s")).into());
        }
        if self.answer_deadline().is_some_and(|deadline| deadline <= cx.now) {
            let seconds = self.silence.answer(self.owed_work()) / SECOND;
            return Err(Failure::silent(format!("the server has said nothing for {seconds} s")).into());
        }
        if self.idle_deadline().is_some_and(|deadline| deadline <= cx.now) {
            let seconds = self.silence.idle(self.owed_work()) / SECOND;
            let why = format!("the server has said nothing for {seconds} s but that it is at work");
            return Err(Failure::silent(why).into());
        }
        if matches!(self.phase, Phase::Meeting(_)) && self.link.is_nowhere() {
            if self.driver.is_unwanted() {
                self.close(cx);
                return Ok(Flow::Finished);
            }
            self.look = Some(cx.now.after(LOOK_AGAIN));
        }
        self.open(cx)?;
        self.meet(cx)?;
        self.drain_control(cx);
        if let Phase::Working = self.phase {
            self.work(cx)?;
        }
        self.link.flush(cx);
        if let Phase::Leaving { deadline } = self.phase {
            if self.link.is_drained() {
                self.link.shutdown(cx);
            }
            // Nothing is expected any more: the end of the stream, a failure of it, or a babbling peer are all the end.
            let babble = !matches!(self.link.next(), Ok(None));
            if babble || self.link.at_end() || deadline <= cx.now {
                self.close(cx);
                return Ok(Flow::Finished);
            }
        } else if self.link.at_end() {
            return Err(self.lost(cx.now));
        }
        self.link.pump_recv(&self.quotas, cx);
        // The block that was kept for receiving may have been the last: whoever was told to wait for it looks again.
        if matches!(self.phase, Phase::Working) {
            self.advance(cx);
            // What is finished by that must not wait for something else to happen.
            if self.answer(cx) {
                self.work(cx)?;
                self.link.flush(cx);
            }
        }
        self.watch();
        Ok(Flow::Continue)
    }

    /// What the codec did on this connection.
    fn tell_stats(&mut self) {
        if self.codec.agreed().is_none() {
            return;
        }
        let is_lead = self.driver.lead().is_some();
        let others_did = self.progress.packs.load(Ordering::Relaxed) > 0;
        if self.codec.is_idle() && (!is_lead || others_did) {
            return;
        }
        let (packed, unpacked) =
            (self.progress.packed.load(Ordering::Relaxed), self.progress.unpacked.load(Ordering::Relaxed));
        let text = match unpacked {
            0 => format!("compression: {}", self.codec.summary()),
            _ => format!("compression: {unpacked} bytes of content came as {packed}"),
        };
        (self.reporter)(Report::Stats(text));
    }

    fn lost(&self, now: Time) -> Report {
        let silent = self.owed_since().map_or(0, |since| now.0.saturating_sub(since.0));
        match (&self.phase, self.link.failure()) {
            (Phase::Opening(opener), errno) => opener.lost(errno),
            // Who carries the stream, ssh or the kernel, found out first that nobody is there.
            (Phase::Working, _) if self.silence.is_suspicious(silent) => {
                Failure::silent(format!("the server has said nothing for {} s", silent / SECOND)).into()
            }
            (_, Some(errno)) => Failure::connection("connection lost", errno).into(),
            (_, None) => Failure::connection("connection lost", "the server closed it").into(),
        }
    }
}

impl Session for Client {
    fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
        let token = completion.op.token;
        match token.transfer {
            0 => {
                if let (Phase::Meeting(meeting), OpKind::Connect { .. }) = (&mut self.phase, &completion.op.kind) {
                    meeting.on_completion(&completion.op.kind, completion.result, cx);
                } else if let OpKind::Connect { .. } = completion.op.kind {
                    // It came about after it had been given up.
                    if let Ok(Output::Accepted { stream, .. }) = completion.result {
                        cx.submit(0, 0, OpKind::CloseStream { stream });
                    }
                } else if let Some(link) = self.link_of(&completion.op.kind) {
                    link.on_completion(completion, cx);
                }
            }
            DRIVER => {
                let Completion { op, result } = completion;
                self.with_driver(cx, |driver, desk| driver.on_completion(op.kind, result, desk));
            }
            transfer => {
                let Completion { op, result } = completion;
                self.with_ask(transfer, cx, |ask, io| ask.on_completion(op.kind, result, io));
                self.asks.touch(transfer);
            }
        }
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        let turned = self.turn(cx);
        self.awake.rest(self.stall_deadline().is_some() || self.waiting.is_some());
        match turned {
            Ok(flow) => flow,
            Err(last) => {
                (self.reporter)(last);
                self.close(cx);
                Flow::Finished
            }
        }
    }

    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
        (self.reporter)(Report::Fatal(failure));
        self.close(cx);
    }

    fn next_deadline(&self) -> Option<Time> {
        let phase = match &self.phase {
            Phase::Opening(opener) => opener.next_deadline(),
            Phase::Meeting(meeting) => [meeting.next_deadline(), self.look].into_iter().flatten().min(),
            Phase::Leaving { deadline } => Some(*deadline),
            Phase::Working => None,
        };
        let server = [self.stall_deadline(), self.answer_deadline(), self.idle_deadline()];
        server.into_iter().chain([phase, self.awake.next()]).flatten().min()
    }

    fn state_of(&self, token: Token) -> &'static str {
        // What befalls the stream befalls whoever waits for the next reply.
        let first = self.asks.unanswered.front().filter(|_| token.transfer == 0);
        match (&self.phase, self.asks.all.get(first.unwrap_or(&token.transfer))) {
            (_, Some(asked)) => asked.ask.state(),
            (Phase::Opening(opener), None) => opener.state(),
            (Phase::Meeting(meeting), None) => meeting.state(),
            (Phase::Working, None) if token.transfer == DRIVER => self.driver.state(),
            (Phase::Working, None) => "client working",
            (Phase::Leaving { .. }, None) => "client leaving",
        }
    }
}
