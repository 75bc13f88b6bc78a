//! The serving half: requests in, replies out in the order of the requests.
//!
//! ```text
//! AwaitHello -Hello, perhaps another-> Serving -end of stream-> Draining -all replied, all sent-> finished
//!     |                  |
//!     +------------------+--malformed frame, broken or stalled stream--> finished with a failure
//! ```
//! Requests of one class run at the same time (reads with reads, writes with writes) and reply in order; a request of the
//! other class waits until those before it are done, so a client that writes and then reads sees what it wrote. Two
//! writes to one path never run together. A request that waits stops the parsing, the stream fills, and the client
//! waits: a client that reads while it writes is never blocked for ever.

use super::codec::Policy;
use super::link::{Incoming, Link};
use super::opening::Patience;
use super::range::{self, Files, Scope};
use super::rendezvous::{self, Direct, SharedMeeting};
use super::report::Progress;
use super::request::{Class, begin, class_of, has_body, name_of, read_only, request_path, unexpected};
use super::share::Part;
use super::silence::Awake;
use super::tree;
use super::verb::{Body, Verb, reply_failure};
use super::{Context, Failure, Flow, Io, Outcome, Quotas, Reason, Session, Terms};
use crate::backend::{Completion, DirId, OpKind, StreamId, Time, Token};
use crate::block::Quota;
use crate::limits::{MAX_ACTIVE_REQUESTS, MAX_MEETINGS, MAX_REQUEST_PATH_BYTES, OFFLOAD_THREADS, PULSE_INTERVAL};
use crate::wire::decode::Role;
use crate::wire::frame::{Caps, Dialect, Ext, Frame, Hash, PathField};
use crate::wire::path::Target;
use crate::wire::seal::Secret;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

mod ending;
mod greeting;

/// What this server offers, on every kind of session.
const CAPS: u8 = Caps::LZ4.0 | Caps::ZSTD.0 | Caps::DEDUP.0 | Caps::FAST.0 | Caps::SYNC.0 | Caps::PUT_OFFSET.0;
/// The same over a direct connection that is sealed.
pub(super) const DIRECT_CAPS: Caps = Caps(CAPS | Caps::AEAD.0);
/// The same over one that is not.
pub(super) const PLAIN_CAPS: Caps = Caps(CAPS);
/// Extensions of every kind of session between two hauls.
pub(super) const SESSION_EXT: Ext = Ext(Ext::ALL.0 | Ext::PULSE.0);

struct Exchange {
    transfer: u32,
    class: Class,
    /// The written path.
    target: Option<Target>,
    verb: Box<dyn Verb>,
}

enum Phase {
    AwaitHello { deadline: Option<Time> },
    Serving,
    Draining,
}

/// What the client sent, before it is begun.
enum Pending {
    Request(Frame),
    /// Something that is no request: it is answered with an Error in its turn.
    Refusal(Failure),
}

/// Where the pieces of a body go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BodyOf {
    Nobody,
    Put(u32),
    /// A Put that was answered or refused: up to its end, or to the next request.
    Discarded,
}

/// How a server session ends: whoever started it is told once.
pub type OnEnd = Box<dyn FnOnce(Result<(), Failure>)>;

/// Bytes that came and that left over a session, once it has ended.
pub(super) type Traffic = Rc<Cell<(u64, u64)>>;

/// A place that others may want.
struct Place {
    /// Whether somebody waits for it.
    wanted: Rc<dyn Fn() -> Wanted>,
    /// Those who lose theirs and have not gone yet.
    dismissed: Rc<Cell<usize>>,
    /// When it was last seen to be of use, and the bytes that had been moved by then: little, and as much as a share is worth.
    used: Option<(Time, u64)>,
    well_used: Option<(Time, u64)>,
}

/// Who is to give way where somebody waits for a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// Nobody.
    No,
    /// Who hardly uses his.
    FromIdle,
    /// Who makes little of his, because he has so many.
    FromSlow,
    /// Whoever it is: what he does, his other connections can do.
    FromAny,
}

/// A server session on one stream.
pub struct Server {
    pub(super) link: Link,
    root: DirId,
    /// Blocks seen before, for dedup.
    store: Option<DirId>,
    codec: Policy,
    patience: Patience,
    /// Requests that would change anything are refused.
    read_only: bool,
    /// Requests that write to a file where it stands are served.
    in_place: bool,
    phase: Phase,
    /// Nothing was asked for since the first Welcome: one more Hello may take its place.
    may_greet_again: bool,
    terms: Terms,
    quotas: Quotas,
    part: Part,
    progress: Progress,
    active: VecDeque<Exchange>,
    /// What has to wait for those before it.
    pending: Option<Pending>,
    body: BodyOf,
    walks: tree::Walks,
    files: Files,
    next_transfer: u32,
    /// When it last had something to send, or nothing to do.
    said_at: Time,
    /// How it ends, once what it writes where others write has come back, and its last words are said or this time is over.
    ending: Option<(Result<(), Failure>, Option<Time>)>,
    /// Bytes that came and that left, once it has ended.
    traffic: Traffic,
    /// Its place is one of few.
    place: Option<Place>,
    was_dismissed: bool,
    awake: Awake,
    on_end: Option<OnEnd>,
    /// Where clients of this session may connect directly.
    direct: Option<Direct>,
    meetings: Vec<SharedMeeting>,
    /// A client of the base protocol that has proved itself: from its Welcome on everything is sealed.
    secret: Option<Secret>,
}

impl Server {
    /// A session that serves what is below `root` on `stream`.
    pub fn new(stream: StreamId, root: DirId, on_end: OnEnd) -> Server {
        Server::over(Link::new(stream, Role::Server), root, on_end)
    }

    /// For a client that proved itself and now greets as usual.
    pub(super) fn behind_proof(link: Link, root: DirId, on_end: OnEnd, secret: Secret) -> Server {
        Server { secret: Some(secret), ..Server::over(link, root, on_end) }
    }

    /// For a client that proved itself and has agreed on these, over a link that is sealed unless that is part of it.
    pub(super) fn keyed(mut link: Link, root: DirId, on_end: OnEnd, (caps, ext): (Caps, Ext), part: Part) -> Server {
        let quotas = Quotas { frame: part.frames(), ..Quotas::new() };
        if quotas.frame.limit() == 0 {
            link.keep_records_short();
        }
        let mut server = Server { part, quotas, ..Server::over(link, root, on_end) };
        server.agree(Terms { dialect: Dialect { version: 1, ext }, caps });
        server
    }

    fn over(link: Link, root: DirId, on_end: OnEnd) -> Server {
        Server {
            link,
            root,
            store: None,
            codec: Policy::new(None, false, OFFLOAD_THREADS),
            patience: Patience::default(),
            read_only: false,
            in_place: true,
            phase: Phase::AwaitHello { deadline: None },
            may_greet_again: false,
            terms: Terms { dialect: Dialect::BASE, caps: Caps::NONE },
            quotas: Quotas { frame: Part::new().frames(), ..Quotas::new() },
            part: Part::new(),
            progress: Progress::default(),
            active: VecDeque::new(),
            pending: None,
            body: BodyOf::Nobody,
            walks: tree::Walks::default(),
            files: Files::new(range::new_scope()),
            next_transfer: 1,
            said_at: Time(0),
            ending: None,
            traffic: Traffic::default(),
            place: None,
            was_dismissed: false,
            awake: Awake::default(),
            on_end: Some(on_end),
            direct: None,
            meetings: Vec::new(),
            secret: None,
        }
    }

    /// Lets its client come again by a direct connection.
    #[must_use]
    pub fn with_direct(mut self, direct: Option<Direct>) -> Server {
        self.direct = direct;
        self
    }

    /// Looks for blocks that were seen before in this store, and puts new ones there.
    #[must_use]
    pub fn with_store(mut self, store: Option<DirId>) -> Server {
        self.store = store;
        self
    }

    /// Says by this name which process it is in: sessions of several logins may be, and each can write ranges of a file that
    /// another one has begun.
    #[must_use]
    pub fn with_process(mut self, process: Hash) -> Server {
        self.files = Files::of_process(process);
        self
    }

    /// Lets it write ranges of the files that other sessions of this scope have begun, and them of its own.
    #[must_use]
    pub(super) fn with_scope(mut self, scope: Scope) -> Server {
        self.files = Files::new(scope);
        self
    }

    /// Waits for its client for so long.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Server {
        self.link.set_stall(patience.stall);
        self.patience = patience;
        self
    }

    /// Refuses every request that would change anything.
    #[must_use]
    pub fn with_read_only(mut self, read_only: bool) -> Server {
        self.read_only = read_only;
        self
    }

    /// Has it keep its place only while it uses it: a body that has begun must come, and while somebody waits for the place,
    /// as `wanted` says, something must be moved now and then. `dismissed` counts those who go for that.
    #[must_use]
    pub(super) fn with_place(mut self, dismissed: Rc<Cell<usize>>, wanted: Rc<dyn Fn() -> Wanted>) -> Server {
        self.place = Some(Place { wanted, dismissed, used: None, well_used: None });
        self
    }

    /// Tells here what it has moved, when it ends.
    #[must_use]
    pub(super) fn with_traffic(mut self, traffic: Traffic) -> Server {
        self.traffic = traffic;
        self
    }

    /// Refuses to write to files where they stand: a file is replaced as a whole, or stays what it is.
    #[must_use]
    pub(super) fn without_in_place(mut self) -> Server {
        self.in_place = false;
        self
    }

    /// Bounds the large blocks this session may hold, where many share one pool.
    #[must_use]
    pub fn with_large_blocks(mut self, blocks: usize) -> Server {
        self.quotas.large = Quota::new(blocks);
        self
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Result<(), Failure> {
        loop {
            if let Some(request) = self.pending.take()
                && !self.admit(request, cx)
            {
                return Ok(());
            }
            // Nothing counts any more behind a greeting that was refused.
            if matches!(self.phase, Phase::Draining) || !self.is_ready(cx) {
                return Ok(());
            }
            let incoming = self.link.next().map_err(Server::broken)?;
            match incoming {
                None => return Ok(()),
                Some(Incoming::Frame(frame)) => self.on_frame(frame, cx),
                Some(_) if matches!(self.phase, Phase::AwaitHello { .. }) => self.no_hello(),
                Some(Incoming::Data { .. }) if self.body == BodyOf::Nobody => self.unexpected("Data"),
                Some(Incoming::Compressed { .. }) if self.body == BodyOf::Nobody => self.unexpected("DataCompressed"),
                Some(Incoming::Data { len }) => self.on_body(Body::Data(len), cx),
                Some(Incoming::DataEnd) => self.on_body(Body::DataEnd, cx),
                Some(Incoming::Compressed { codec, original, len }) => {
                    self.on_body(Body::Packed(codec, original, len), cx);
                }
                Some(Incoming::Piece(piece)) => self.on_body(Body::Piece(piece), cx),
            }
        }
    }

    /// True when whoever the present body is for can take more of it.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        let BodyOf::Put(transfer) = self.body else { return true };
        let mut ready = true;
        self.with_exchange(transfer, cx, |verb, io| ready = verb.is_ready(io));
        ready
    }

    fn on_frame(&mut self, frame: Frame, cx: &mut Context<'_>) {
        if let Phase::AwaitHello { .. } = self.phase {
            // What is sealed is agreed on once.
            self.may_greet_again = self.secret.is_none();
            return self.on_hello(&frame, cx);
        }
        if std::mem::take(&mut self.may_greet_again) && matches!(frame, Frame::Hello { .. }) {
            return self.on_hello(&frame, cx);
        }
        match frame {
            Frame::Meta { attributes, preserve } => self.on_body(Body::Meta(attributes, preserve), cx),
            Frame::Skip { offset } if self.body != BodyOf::Nobody => self.on_body(Body::Skip(offset), cx),
            Frame::Done => self.end_body(Body::Done, "Done", cx),
            Frame::Commit { hash } => self.end_body(Body::Commit(hash), "Commit", cx),
            Frame::Abandon { code } => self.end_body(Body::Abandon(code), "Abandon", cx),
            // Part of a body that is being discarded.
            Frame::HaveBlocks { .. } if self.body == BodyOf::Discarded => {}
            Frame::HaveBlocks { block_size, hashes } if self.body != BodyOf::Nobody => {
                self.on_body(Body::Have(block_size, hashes), cx);
            }
            request => {
                // A request inside a body ends it; the Put finds itself incomplete.
                self.end_body(Body::Cut, "", cx);
                self.pending = Some(self.bounded(request));
            }
        }
    }

    /// Answers with an Error that belongs to no request.
    fn refuse(&mut self, name: &'static str) {
        self.pending = Some(Pending::Refusal(unexpected(name)));
    }

    fn unexpected(&mut self, name: &'static str) {
        self.may_greet_again = false;
        // One Error, then whatever belongs to the same body is dropped.
        self.body = BodyOf::Discarded;
        self.refuse(name);
    }

    /// Paths longer than any system's are not kept: a request may wait for long, and a frame can be large.
    fn bounded(&self, request: Frame) -> Pending {
        match request_path(&request) {
            Some(path) if path.0.len() > MAX_REQUEST_PATH_BYTES => {
                if has_body(&request) {
                    return Pending::Request(Frame::Put {
                        path: PathField(vec![0]),
                        size: 0,
                        offset: 0,
                        overwrite: true,
                    });
                }
                Pending::Refusal(Failure::rule(b"", "cannot use this path", "it is too long"))
            }
            _ => Pending::Request(request),
        }
    }

    fn send(&mut self, frame: &Frame) {
        // Welcome and Error always fit.
        let _ = self.link.frame(frame);
    }

    fn on_body(&mut self, body: Body, cx: &mut Context<'_>) {
        match self.body {
            BodyOf::Put(transfer) => self.with_exchange(transfer, cx, |verb, io| verb.on_body(body, io)),
            BodyOf::Discarded => {}
            BodyOf::Nobody => {
                if let Body::Meta(..) = body {
                    self.unexpected("Meta");
                }
            }
        }
    }

    fn end_body(&mut self, body: Body, name: &'static str, cx: &mut Context<'_>) {
        if self.body == BodyOf::Nobody && !name.is_empty() {
            self.refuse(name);
        }
        self.on_body(body, cx);
        self.body = BodyOf::Nobody;
    }

    /// Starts a request, or keeps it back. True when it was started.
    fn admit(&mut self, pending: Pending, cx: &mut Context<'_>) -> bool {
        let request = match pending {
            Pending::Request(request) => request,
            Pending::Refusal(_) if self.active.len() >= MAX_ACTIVE_REQUESTS => {
                self.pending = Some(pending);
                return false;
            }
            Pending::Refusal(failure) => {
                self.push(Class::Read, None, Box::new(Refused { failure }));
                return true;
            }
        };
        let Some(class) = class_of(&request) else {
            return self.admit(Pending::Refusal(unexpected(name_of(&request))), cx);
        };
        let target = request_path(&request)
            .and_then(|path| Target::decode(path, self.terms.dialect.ext).ok())
            .filter(|_| class == Class::Write);
        let conflict = self.active.len() >= MAX_ACTIVE_REQUESTS
            || self.active.iter().any(|other| other.class != class || (target.is_some() && other.target == target));
        if conflict {
            self.pending = Some(Pending::Request(request));
            return false;
        }
        let transfer = self.next_transfer;
        if has_body(&request) {
            self.body = BodyOf::Put(transfer);
        }
        let (root, store) = (self.root, self.store);
        let mut io = Io {
            cx,
            link: &mut self.link,
            quotas: &self.quotas,
            terms: self.terms,
            progress: &self.progress,
            codec: &mut self.codec,
            transfer,
        };
        let verb: Box<dyn Verb> = match (&request, &self.direct) {
            _ if self.read_only && class == Class::Write => Box::new(Refused { failure: read_only() }),
            (Frame::PutChunked { .. } | Frame::Truncate { .. }, _) if !self.in_place => {
                let rule = "this server changes no file where it stands";
                Box::new(Refused { failure: Failure::rule(b"", "cannot write", rule) })
            }
            (Frame::OpenDirectChannel, Some(direct)) if io.terms.caps.has(Caps::DIRECT_TCP) => {
                self.meetings.retain(|meeting| !meeting.borrow().is_done());
                if self.meetings.len() < MAX_MEETINGS {
                    let served = rendezvous::Served {
                        root,
                        store,
                        patience: self.patience,
                        read_only: self.read_only,
                        scope: *self.files.scope(),
                    };
                    let (verb, meeting) = rendezvous::Serve::start(direct, served, &mut io);
                    self.meetings.push(meeting);
                    Box::new(verb)
                } else {
                    let failure = Failure::rule(b"", "no direct connection", "this session has opened too many");
                    Box::new(Refused { failure })
                }
            }
            _ => begin(request, (root, store), (&mut self.walks, &self.files), &mut io)
                .unwrap_or_else(|failure| Box::new(Refused { failure })),
        };
        self.push(class, target, verb);
        true
    }

    /// Puts an exchange, which has the next number, at the end of the queue.
    fn push(&mut self, class: Class, target: Option<Target>, verb: Box<dyn Verb>) {
        let transfer = self.next_transfer;
        self.next_transfer = self.next_transfer.wrapping_add(1).max(1);
        self.active.push_back(Exchange { transfer, class, target, verb });
    }

    fn with_exchange(&mut self, transfer: u32, cx: &mut Context<'_>, act: impl FnOnce(&mut dyn Verb, &mut Io<'_, '_>)) {
        let Some(exchange) = self.active.iter_mut().find(|exchange| exchange.transfer == transfer) else { return };
        let mut io = Io {
            cx,
            link: &mut self.link,
            quotas: &self.quotas,
            terms: self.terms,
            progress: &self.progress,
            codec: &mut self.codec,
            transfer,
        };
        act(exchange.verb.as_mut(), &mut io);
    }

    /// Lets every request go on; the one at the head may reply.
    fn advance(&mut self, cx: &mut Context<'_>) {
        let mut index = 0;
        while index < self.active.len() {
            let exchange = &mut self.active[index];
            let mut io = Io {
                cx,
                link: &mut self.link,
                quotas: &self.quotas,
                terms: self.terms,
                progress: &self.progress,
                codec: &mut self.codec,
                transfer: exchange.transfer,
            };
            // A client that reads no replies gets no more of them, and its requests wait.
            let head = index == 0 && io.link.has_room();
            if exchange.verb.advance(head, &mut io) && head {
                let done = self.active.pop_front().expect("there is a head");
                // A Put that failed early: the rest of its body is dropped.
                if self.body == BodyOf::Put(done.transfer) {
                    self.body = BodyOf::Discarded;
                }
            } else {
                index += 1;
            }
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Flow, Failure> {
        if let Phase::AwaitHello { deadline: deadline @ None } = &mut self.phase {
            *deadline = Some(cx.now.after(self.patience.handshake));
        }
        self.part.claim(&mut self.quotas, cx.pool);
        if self.awake.turn(cx.now).is_some() {
            // Who was suspended has not seen what the client took meanwhile.
            self.link.forgive(cx.now);
        }
        self.check_time(cx.now)?;
        let (bytes, busy) = self.link.take_sent();
        self.codec.on_sent(bytes, busy);
        loop {
            if !matches!(self.phase, Phase::Draining) {
                self.receive(cx)?;
            }
            let before = self.active.len();
            self.advance(cx);
            // A reply may have made room for a request that waited.
            if self.pending.is_none() || self.active.len() == before {
                break;
            }
        }
        self.pulse(cx.now);
        self.link.flush(cx);
        if let Some(errno) = self.link.failure() {
            return Err(Failure::connection("connection", errno));
        }
        if self.pending.is_none() {
            self.link.pump_recv(&self.quotas, cx);
            // The block that was kept for receiving may have been the last: whoever was told to wait for it looks again.
            self.advance(cx);
            self.link.flush(cx);
            if self.link.at_end() {
                return self.at_end(cx);
            }
        }
        let drained = matches!(self.phase, Phase::Draining) && self.wind_down(cx);
        Ok(if drained { self.finish(Ok(()), cx) } else { Flow::Continue })
    }

    /// Says that it lives, where an answer takes long.
    fn pulse(&mut self, now: Time) {
        if self.active.is_empty() || !self.link.is_drained() {
            self.said_at = now;
        } else if self.pulse_deadline().is_some_and(|deadline| deadline <= now) {
            self.said_at = now;
            self.send(&Frame::Pulse);
        }
    }

    /// It is at work on an answer, for which it needs nothing more of the client.
    pub(super) fn is_at_work(&self) -> bool {
        !self.active.is_empty() && self.link.is_drained() && !matches!(self.body, BodyOf::Put(_))
    }

    fn pulse_deadline(&self) -> Option<Time> {
        let owes = self.terms.ext(Ext::PULSE) && !self.active.is_empty() && self.link.is_drained();
        owes.then(|| self.said_at.after(PULSE_INTERVAL))
    }
}

impl Session for Server {
    fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
        let token = completion.op.token;
        if token.transfer == 0 {
            return self.link.on_completion(completion, cx);
        }
        let Completion { op, result } = completion;
        self.with_exchange(token.transfer, cx, |verb, io| verb.on_completion(op.kind, result, io));
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        if self.ending.is_some() {
            self.link.flush(cx);
            return self.finish(Ok(()), cx);
        }
        let turned = self.turn(cx);
        self.note_use(cx.now);
        self.awake.rest(self.link.stalled_since().is_some());
        match turned {
            // Looked at behind the turn, which has heard what came meanwhile, and knows whether this end was suspended.
            Ok(Flow::Continue) if self.body_deadline().is_some_and(|deadline| deadline <= cx.now) => {
                self.dismiss("the client has not gone on with what it sends for a minute", cx)
            }
            Ok(Flow::Continue) if self.place_deadline().is_some_and(|deadline| deadline <= cx.now) => {
                self.dismiss(self.why_dismissed(), cx)
            }
            Ok(flow) => flow,
            Err(failure) if failure.kind == Reason::NoMemory => {
                self.dismiss("there is no memory for a request of this size: too many large ones have begun", cx)
            }
            Err(failure) => {
                // What was queued before, such as the Error that says why, is on its way already.
                self.link.flush(cx);
                self.finish(Err(failure), cx)
            }
        }
    }

    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
        // It gets no turn any more in which to wait for what it writes: that is cancelled.
        self.let_go(cx);
        self.end_now(Err(failure), cx);
    }

    fn next_deadline(&self) -> Option<Time> {
        if let Some((_, until)) = self.ending {
            return until;
        }
        let greeting = match self.phase {
            Phase::AwaitHello { deadline } => deadline,
            _ => None,
        };
        let of_place = [self.body_deadline(), self.place_deadline()];
        let of_peer = [self.link.stall_deadline(), self.pulse_deadline(), self.awake.next()];
        of_place.into_iter().chain(of_peer).chain([greeting]).flatten().min()
    }

    fn state_of(&self, token: Token) -> &'static str {
        let exchange = self.active.iter().find(|exchange| exchange.transfer == token.transfer);
        // What befalls the stream befalls whoever's turn it is.
        let exchange = exchange.or_else(|| self.active.iter().next().filter(|_| token.transfer == 0));
        match (&self.phase, exchange) {
            (_, Some(exchange)) => exchange.verb.state(),
            (Phase::AwaitHello { .. }, None) => "server awaiting hello",
            (Phase::Serving, None) => "server serving",
            (Phase::Draining, None) => "server draining",
        }
    }
}

/// A request that was refused before it began.
struct Refused {
    failure: Failure,
}

impl Verb for Refused {
    fn on_completion(&mut self, _: OpKind, _: Outcome, _: &mut Io<'_, '_>) {}

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        if head {
            reply_failure(&self.failure, io);
        }
        head
    }

    fn state(&self) -> &'static str {
        "refused"
    }
}
