//! The server's side of a direct connection: from OpenDirectChannel to a session on a TCP socket of its own.
//!
//! ```text
//! control session: OpenDirectChannel -> Serve waits for -+
//!                                                        v
//! Rendezvous: Listening -bound-> Open -Accept..-> a Guest each        -first base client, end of control, time-> closed
//!                                                   |
//! Guest: Challenged -proof-> a Server over records  +-wrong, late or silent-> closed without a word
//! ```
//! The secret goes to the client through the control session, which ssh protects. Whoever proves to know it is the client;
//! with [`Ext::KEYED`] it may come again, as often as it has connections, and every connection has keys of its own.
//!
//! Strangers cannot keep a client out: everybody who comes is let in to prove himself, and where no place is left for that,
//! another one gives way. Whoever has the most guests loses his oldest one, so that many connections from one address only
//! push out each other; where all come from the same address, as on loopback, whoever proves himself soon stays. Who must
//! give way is told so, which says nothing of the secret, and a haul client comes again. With [`Ext::PLAIN`], which takes the user's word at
//! both ends, only the proofs stand: what follows them is neither sealed nor proved to be whole.

use super::acceptor::{Accepting, Fate, Visit};
use super::doorman::{self, Door};
use super::link::{Incoming, Link};
use super::opening::Patience;
use super::range::Scope;
use super::sealed::Records;
use super::server::{self, Server, Traffic};
use super::share::Part;
use super::verb::{Verb, reply, reply_failure};
use super::{Context, Failure, Flow, Io, Outcome, Quotas, Session};
use crate::backend::{Completion, DirId, Errno, OpKind, Output, StreamId, Time, Token};
use crate::block::{Class, Pool};
use crate::limits::{
    DOOR_SESSION_BLOCKS, GUEST_BYTES, GUEST_TIMEOUT, LAST_WORDS_TIMEOUT, MAX_GUESTS, MAX_LEAVING, MAX_SERVED,
    MAX_SESSIONS, MAX_WAITING, MEETING_TIMEOUT, PARTING_TIMEOUT,
};
use crate::wire::decode::Role;
use crate::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame, Hash};
use crate::wire::seal::{self, Seals, Secret};
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::rc::Rc;

mod guests;

use guests::{Origin, Waiting};

/// Where a server may be met, and what that takes.
#[derive(Clone)]
pub struct Direct {
    /// The address of this machine that its client knows.
    pub ip: IpAddr,
    /// The zone of this machine in which that means something; 0 where it means the same everywhere.
    pub zone: u32,
    /// Random bytes nobody can guess.
    pub entropy: Rc<RefCell<dyn FnMut() -> Hash>>,
    /// Nanoseconds in which the first connection must come.
    pub patience: u64,
    /// Whoever asks for that gets a connection that is not sealed.
    pub plain: bool,
    /// Ports it may be, the first that is free; one of the system's choice without.
    pub ports: Option<(u16, u16)>,
}

impl Direct {
    /// At this address, with this source of random bytes.
    pub fn new(ip: IpAddr, entropy: impl FnMut() -> Hash + 'static) -> Direct {
        let entropy = Rc::new(RefCell::new(entropy));
        Direct { ip, zone: 0, entropy, patience: MEETING_TIMEOUT, plain: false, ports: None }
    }

    /// The address of this port in its zone.
    fn at(&self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(_) => SocketAddr::new(self.ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.zone).into(),
        }
    }

    /// Whether whoever asks for that gets a connection that is not sealed.
    #[must_use]
    pub fn with_plain(mut self, plain: bool) -> Direct {
        self.plain = plain;
        self
    }

    fn random(&self) -> Hash {
        (self.entropy.borrow_mut())()
    }
}

/// What is served to whoever is met.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) root: DirId,
    pub(super) store: Option<DirId>,
    pub(super) patience: Patience,
    pub(super) read_only: bool,
    /// Whose files in ranges they may write to.
    pub(super) scope: Scope,
}

/// What whoever comes has to prove, and how.
#[derive(Clone)]
pub(super) enum Proof {
    /// The secret of one control session, by AuthHello.
    Base,
    /// The same, by KeyedHello.
    Keyed,
    /// The key of a daemon, by DaemonHello.
    Key(Door),
}

/// One meeting, as the control session, the rendezvous and its guests see it.
pub(super) struct Meeting {
    secret: Secret,
    pub(super) proof: Proof,
    /// A connection need not be sealed.
    plain: bool,
    /// Bound, or why not.
    address: Option<Result<SocketAddr, Failure>>,
    /// What guests receive into. None of it is the worker's, whose sessions would wait for blocks that guests hold.
    blocks: Pool,
    /// Connections that wait to be proved, or proved themselves and wait for a place; the oldest first.
    guests: Vec<Waiting>,
    /// The number of the next one.
    next: u64,
    /// Those that proved themselves and wait for a place.
    waiting: usize,
    /// Those that were told to give way and have not gone yet.
    leaving: usize,
    /// Those that are served and lose their place.
    dismissed: Rc<Cell<usize>>,
    /// One was proved, once.
    met: bool,
    /// Connections that were proved and have not ended, and from where each of a daemon's came.
    serving: usize,
    origins: Vec<Option<Origin>>,
    /// Nobody new is let in.
    over: bool,
}

pub(super) type SharedMeeting = Rc<RefCell<Meeting>>;

impl Meeting {
    pub(super) fn new(secret: Secret, proof: Proof, plain: bool) -> SharedMeeting {
        Rc::new(RefCell::new(Meeting {
            secret,
            proof,
            plain,
            address: None,
            blocks: Pool::new(MAX_GUESTS, 0),
            guests: Vec::new(),
            next: 0,
            waiting: 0,
            leaving: 0,
            dismissed: Rc::default(),
            met: false,
            serving: 0,
            origins: Vec::new(),
            over: false,
        }))
    }

    /// True while one more may be asked to prove itself.
    pub(super) fn has_room(&self) -> bool {
        self.leaving < MAX_LEAVING
    }

    /// True while more wait for a place than there are.
    fn is_wanted(&self) -> bool {
        self.waiting > (MAX_SESSIONS + self.dismissed.get()).saturating_sub(self.serving)
    }

    /// True while nobody more can be served.
    fn is_full(&self) -> bool {
        matches!(self.proof, Proof::Key(_)) && self.serving >= MAX_SESSIONS
    }

    /// True once nothing of it is left.
    pub(super) fn is_done(&self) -> bool {
        self.over && self.guests.is_empty() && self.serving == 0
    }

    /// Whoever it was opened for is gone.
    pub(super) fn abandon(&mut self) {
        self.over = true;
    }

    /// True once the client has nothing more to ask anywhere.
    fn is_left(&self) -> bool {
        self.over && matches!(self.proof, Proof::Keyed)
    }

    /// The client says nothing more where it was opened.
    pub(super) fn end(&mut self) {
        // Base clients close their control session at once, and come then.
        self.over |= !matches!(self.proof, Proof::Base);
    }
}

/// Answers OpenDirectChannel.
pub(super) struct Serve {
    meeting: SharedMeeting,
}

impl Serve {
    pub(super) fn start(direct: &Direct, served: Served, io: &mut Io<'_, '_>) -> (Serve, SharedMeeting) {
        let proof = if io.terms.ext(Ext::KEYED) { Proof::Keyed } else { Proof::Base };
        let meeting = Meeting::new(Secret::from_bytes(direct.random()), proof, direct.plain);
        io.cx.spawned.push(Box::new(Rendezvous {
            meeting: meeting.clone(),
            direct: direct.clone(),
            served,
            state: State::New { port: direct.ports.map_or(0, |(first, _)| first) },
            accepting: Accepting::default(),
            accepted: Vec::new(),
            deadline: Time(0),
        }));
        (Serve { meeting: meeting.clone() }, meeting)
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, _: OpKind, _: Outcome, _: &mut Io<'_, '_>) {}

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        let meeting = self.meeting.borrow();
        match &meeting.address {
            Some(Ok(address)) if head => {
                let key = *meeting.secret.expose();
                // The client has another zone for it.
                let address = SocketAddr::new(address.ip(), address.port()).to_string().into_bytes();
                reply(&Frame::DirectChannelReady { address, key }, io);
            }
            Some(Err(failure)) if head => reply_failure(failure, io),
            _ => return false,
        }
        true
    }

    fn state(&self) -> &'static str {
        "meeting"
    }
}

enum State {
    New { port: u16 },
    Listening,
    Open(StreamId),
}

/// Listens for the client of one control session.
struct Rendezvous {
    meeting: SharedMeeting,
    direct: Direct,
    served: Served,
    state: State,
    accepting: Accepting,
    accepted: Vec<(StreamId, Option<SocketAddr>)>,
    deadline: Time,
}

impl Session for Rendezvous {
    fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
        let mut meeting = self.meeting.borrow_mut();
        match (completion.op.kind, completion.result) {
            (OpKind::Listen { .. }, Ok(Output::Listening { stream, address })) => {
                self.state = State::Open(stream);
                meeting.address = Some(Ok(address));
            }
            (OpKind::Listen { address }, Err(errno)) => {
                let next = address.port().checked_add(1);
                let next = next.filter(|&next| self.direct.ports.is_some_and(|(_, last)| next <= last));
                if let Some(next) = next.filter(|_| errno == Errno::ADDRESS_IN_USE) {
                    self.state = State::New { port: next };
                    return;
                }
                meeting.over = true;
                meeting.address = Some(Err(Failure::here(b"", "cannot listen for a direct connection", errno)));
            }
            (OpKind::Accept { .. }, result) => self.accepted.extend(self.accepting.end(result, cx.now)),
            _ => {}
        }
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        if let State::New { port } = self.state {
            self.deadline = cx.now.after(self.direct.patience);
            self.state = State::Listening;
            cx.submit(0, 0, OpKind::Listen { address: self.direct.at(port) });
        }
        for (stream, peer) in self.accepted.drain(..) {
            if self.meeting.borrow().over {
                cx.submit(0, 0, OpKind::CloseStream { stream });
                continue;
            }
            let guest = Guest::new((stream, peer), self.meeting.clone(), self.direct.random(), self.served.clone());
            cx.spawned.push(Box::new(guest));
        }
        let mut meeting = self.meeting.borrow_mut();
        meeting.over |= !meeting.met && self.deadline <= cx.now;
        match self.state {
            State::Open(stream) if meeting.over => {
                cx.submit(0, 0, OpKind::CloseStream { stream });
                return Flow::Finished;
            }
            State::Open(listener) if meeting.has_room() && self.accepting.begin(cx.now) => {
                cx.submit(0, 0, OpKind::Accept { listener });
            }
            _ if meeting.over => {
                // Whoever asked has gone; the answer still has its turn.
                let gone = || Err(Failure::rule(b"", "no direct connection", "the client has ended its stream"));
                meeting.address.get_or_insert_with(gone);
                return Flow::Finished;
            }
            _ => {}
        }
        Flow::Continue
    }

    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
        let mut meeting = self.meeting.borrow_mut();
        meeting.over = true;
        meeting.address.get_or_insert(Err(failure));
        if let State::Open(stream) = self.state {
            cx.submit(0, 0, OpKind::CloseStream { stream });
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let meeting = self.meeting.borrow();
        let unmet = (!meeting.met).then_some(self.deadline);
        unmet.into_iter().chain(self.accepting.deadline().filter(|_| meeting.has_room())).min()
    }

    fn state_of(&self, _: Token) -> &'static str {
        "rendezvous"
    }
}

/// What is said to a guest that must make room for another one, and to a client for which a daemon has no place. Clients
/// know either by its code.
const CROWDED: &str = "too many connections wait there to prove themselves";
const FULL: &str = "all 16 connections there are in use";
const _: () = assert!(MAX_SESSIONS == 16, "as the words have it");

/// A connection that must prove to be the client's; the client's, once it has.
pub(super) struct Guest {
    link: Option<Link>,
    meeting: SharedMeeting,
    nonce: Hash,
    served: Served,
    number: u64,
    peer: Option<SocketAddr>,
    /// When it was asked to prove itself, or did so and began to wait for a place.
    asked_at: Option<Time>,
    /// What it said, if that is proved and there is no place for it yet.
    proved: Option<Frame>,
    /// It was told why it must go, which may take until then.
    told_until: Option<Time>,
    server: Option<Server>,
    /// When it was seen that the client is done where it has asked to come here.
    left_at: Option<Time>,
}

/// What a client that asks for this has of it on a direct connection.
pub(super) fn direct_terms((caps, ext): (Caps, Ext), plain: bool) -> (Caps, Ext) {
    match plain {
        true => (caps.and(server::PLAIN_CAPS), ext.and(server::SESSION_EXT.or(Ext::PLAIN))),
        false => (caps.and(server::DIRECT_CAPS), ext.and(server::SESSION_EXT)),
    }
}

impl Guest {
    /// From here on it counts in its meeting.
    pub(super) fn new(
        (stream, peer): (StreamId, Option<SocketAddr>),
        meeting: SharedMeeting,
        nonce: Hash,
        served: Served,
    ) -> Guest {
        let number = meeting.borrow_mut().enter(peer);
        let mut link = Link::new(stream, Role::Server);
        if !matches!(meeting.borrow().proof, Proof::Base) {
            link.set_dialect(Dialect { version: 1, ext: Ext::KEYED });
        }
        let link = Some(link);
        Guest {
            link,
            meeting,
            nonce,
            served,
            number,
            peer,
            asked_at: None,
            proved: None,
            told_until: None,
            server: None,
            left_at: None,
        }
    }

    /// Goes on until it is known who that is. `None`: nobody who is to be served.
    fn prove(&mut self, cx: &mut Context<'_>) -> Option<Flow> {
        let link = self.link.as_mut()?;
        if self.asked_at.is_none() {
            link.frame(&Frame::AuthChallenge { nonce: self.nonce }).ok()?;
            self.asked_at = Some(cx.now);
        }
        // Whoever is ready while others have every place waits for one of them to end.
        let full = self.meeting.borrow().is_full();
        if !full && let Some(hello) = self.proved.take() {
            self.meeting.borrow_mut().waiting -= 1;
            return self.admit(&hello, cx).map(|()| Flow::Continue);
        }
        let late = self.asked_at.is_some_and(|asked| asked.after(GUEST_TIMEOUT) <= cx.now);
        if self.proved.is_some() && late {
            return Some(self.turn_away(FULL, cx));
        }
        let incoming = if self.proved.is_some() { None } else { link.next().ok()? };
        if let Some(incoming) = incoming {
            let Incoming::Frame(frame) = incoming else { return None };
            return if full { self.wait(frame, cx) } else { self.admit(&frame, cx).map(|()| Flow::Continue) };
        }
        link.flush(cx);
        if link.needs_block()
            && let Some(block) = self.meeting.borrow_mut().blocks.take_reserved(Class::Small)
        {
            link.lend(block);
        }
        link.pump_recv(&Quotas::none(), cx);
        let over = self.meeting.borrow().over || link.at_end() || link.gathered() > GUEST_BYTES;
        (!over && self.deadline().is_none_or(|deadline| cx.now < deadline)).then_some(Flow::Continue)
    }

    /// When a connection that has not been proved, or for which there is no place, is given up.
    fn deadline(&self) -> Option<Time> {
        self.told_until.or(self.asked_at.map(|asked| asked.after(GUEST_TIMEOUT)))
    }

    /// Every place of the daemon is taken. Whoever has proved that he may have one waits, and if that was for nothing is
    /// told so.
    fn wait(&mut self, hello: Frame, cx: &mut Context<'_>) -> Option<Flow> {
        let shared = self.meeting.clone();
        let mut meeting = shared.borrow_mut();
        if !doorman::is_proved(&meeting.secret, &self.nonce, &hello, meeting.plain) {
            return None;
        }
        if meeting.waiting >= MAX_WAITING {
            drop(meeting);
            return Some(self.turn_away(FULL, cx));
        }
        meeting.waiting += 1;
        meeting.guests.iter_mut().filter(|guest| guest.number == self.number).for_each(|guest| guest.proved = true);
        self.asked_at = Some(cx.now);
        self.proved = Some(hello);
        Some(Flow::Continue)
    }

    /// Tells why there is no place.
    fn turn_away(&mut self, why: &str, cx: &mut Context<'_>) -> Flow {
        {
            let mut meeting = self.meeting.borrow_mut();
            meeting.waiting -= usize::from(self.proved.take().is_some());
            if meeting.has_guest(self.number) {
                meeting.leave(self.number);
                meeting.leaving += 1;
            }
        }
        self.told_until = Some(cx.now.after(LAST_WORDS_TIMEOUT));
        if let Some(link) = &mut self.link {
            let _ = link.frame(&Frame::Error { message: why.as_bytes().to_vec(), code: ErrorCode::BUSY });
            link.flush(cx);
        }
        if why == FULL {
            self.tell(Fate::Full);
        }
        Flow::Continue
    }

    /// It is over before it was served.
    fn end_unserved(&mut self, cx: &mut Context<'_>) -> Flow {
        {
            let mut meeting = self.meeting.borrow_mut();
            match self.told_until {
                Some(_) => meeting.leaving -= 1,
                None => meeting.leave(self.number),
            }
            meeting.waiting -= usize::from(self.proved.take().is_some());
        }
        // Whoever that was learns nothing from being refused.
        if let Some(link) = &mut self.link {
            link.close(cx);
        }
        Flow::Finished
    }

    fn tell(&self, fate: Fate) {
        let meeting = self.meeting.borrow();
        if let Proof::Key(door) = &meeting.proof {
            let traffic = self.link.as_ref().map_or((0, 0), Link::traffic);
            (door.on_visit)(Visit { peer: self.peer, traffic, fate });
        }
    }

    /// Goes on until it is over, or served.
    fn greet(&mut self, cx: &mut Context<'_>) -> Flow {
        if let Some(until) = self.told_until {
            let Some(link) = &mut self.link else { return self.end_unserved(cx) };
            link.flush(cx);
            let said = link.is_drained() || link.failure().is_some() || until <= cx.now;
            return if said { self.end_unserved(cx) } else { Flow::Continue };
        }
        if !self.meeting.borrow().has_guest(self.number) {
            return self.turn_away(CROWDED, cx);
        }
        match self.prove(cx) {
            Some(flow) => flow,
            None => {
                let said = self.link.as_ref().is_some_and(|link| link.traffic().0 > 0);
                let late = self.deadline().is_some_and(|deadline| deadline <= cx.now);
                self.tell(Fate::Unproved(match (said, late) {
                    (_, true) => "it did not prove that it knows the key in time",
                    (true, false) => "it does not know the key, or speaks something else",
                    (false, false) => "it went without a word",
                }));
                self.end_unserved(cx)
            }
        }
    }

    /// When a connection whose client is done is given up, unless more is heard. Records that are on their way are: the
    /// end of a connection among them. An answer is worked out to its end: a client that came here with all that it asks
    /// may have lost the other session, and waits.
    fn parting(&self) -> Option<Time> {
        let server = self.server.as_ref().filter(|server| !server.is_at_work())?;
        self.left_at.map(|left| left.max(server.link.heard_at()).after(PARTING_TIMEOUT))
    }

    fn admit(&mut self, frame: &Frame, cx: &mut Context<'_>) -> Option<()> {
        let meeting = self.meeting.clone();
        let mut meeting = meeting.borrow_mut();
        let door = match &meeting.proof {
            Proof::Key(door) => Some(door.clone()),
            Proof::Base | Proof::Keyed => None,
        };
        let may_come = !meeting.over && (door.is_some() || meeting.serving < MAX_SERVED);
        let mut link = self.link.take_if(|_| may_come)?;
        let (shared, told, peer) = (self.meeting.clone(), door.clone(), self.peer);
        let traffic = Traffic::default();
        let moved = traffic.clone();
        let from = peer.map(guests::origin);
        let on_end = Box::new(move |result| {
            shared.borrow_mut().leave_place(from);
            if let Some(door) = told {
                (door.on_visit)(Visit { peer, traffic: moved.get(), fate: Fate::Served(result) });
            }
        });
        let (root, secret) = (self.served.root, &meeting.secret);
        let server = match *frame {
            Frame::AuthHello { mac } if matches!(meeting.proof, Proof::Base) => {
                if !seal::is_same(&mac, &seal::auth_mac(secret, &self.nonce)) {
                    self.link = Some(link);
                    return None;
                }
                Server::behind_proof(link, root, on_end, secret.clone())
            }
            Frame::KeyedHello { random, index, caps, ext, mac } if matches!(meeting.proof, Proof::Keyed) => {
                let mut transcript = keyed::hello(&self.nonce, &random, index, (caps, ext));
                let plain = meeting.plain && ext.has(Ext::PLAIN);
                let is_client = seal::is_same(&mac, &keyed::client_proof(secret, &transcript));
                if !is_client || !(plain || caps.has(Caps::AEAD)) {
                    self.link = Some(link);
                    return None;
                }
                let mut part = Part::new();
                let (caps, ext) = part.agree(direct_terms((caps, ext), plain), cx.pool);
                keyed::welcome(&mut transcript, (caps, ext));
                let mac = keyed::server_proof(secret, &transcript);
                link.frame(&Frame::KeyedWelcome { caps, ext, mac }).ok()?;
                match plain {
                    true => link.leave_bare(),
                    false => link.seal(Seals::keyed(secret, &transcript, Role::Server), Records::Keyed, cx),
                }
                Server::keyed(link, root, on_end, (caps, ext), part)
            }
            Frame::DaemonHello { index, .. } if let Some(door) = &door => {
                let admitted = doorman::admit(secret, &self.nonce, frame, door, meeting.plain, cx.pool);
                let Some(let_in) = admitted else {
                    self.link = Some(link);
                    return None;
                };
                link.frame(&let_in.welcome).ok()?;
                match let_in.seals {
                    None => link.leave_bare(),
                    Some(seals) => link.seal(seals, Records::Keyed, cx),
                }
                let wanted = self.meeting.clone();
                Server::keyed(link, root, on_end, let_in.agreed, let_in.part)
                    .with_large_blocks(DOOR_SESSION_BLOCKS)
                    .without_in_place()
                    .with_place(meeting.dismissed.clone(), Rc::new(move || wanted.borrow().wanted(from, index > 0)))
            }
            _ => {
                self.link = Some(link);
                return None;
            }
        };
        meeting.met = true;
        meeting.serving += 1;
        meeting.origins.push(from);
        meeting.leave(self.number);
        // A base client comes once.
        meeting.over |= matches!(meeting.proof, Proof::Base);
        let Served { store, patience, read_only, scope, .. } = self.served;
        let server = server.with_store(store).with_patience(patience).with_read_only(read_only);
        self.server = Some(server.with_scope(scope).with_traffic(traffic));
        Some(())
    }
}

impl Session for Guest {
    fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
        match (&mut self.server, &mut self.link) {
            (Some(server), _) => server.on_completion(completion, cx),
            (None, Some(link)) => link.on_completion(completion, cx),
            (None, None) => {}
        }
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        if self.server.is_none() {
            let flow = self.greet(cx);
            if self.server.is_none() {
                return flow;
            }
        }
        if self.meeting.borrow().is_left() {
            self.left_at.get_or_insert(cx.now);
        }
        let given_up = self.parting().is_some_and(|deadline| deadline <= cx.now);
        self.server.as_mut().map_or(Flow::Continue, |server| match given_up {
            true => server.finish(Err(Failure::connection("connection", "the client has gone")), cx),
            false => server.on_turn(cx),
        })
    }

    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
        match (&mut self.server, &mut self.link) {
            (Some(server), _) => server.abandon(failure, cx),
            (None, link) => {
                self.meeting.borrow_mut().leave(self.number);
                link.iter_mut().for_each(|link| link.close(cx));
            }
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        let Some(server) = &self.server else { return self.deadline() };
        if server.is_ending() {
            return None;
        }
        // It is to be noted when that was.
        let left = (self.meeting.borrow().is_left() && self.left_at.is_none()).then_some(Time(0));
        [server.next_deadline(), self.parting(), left].into_iter().flatten().min()
    }

    fn state_of(&self, token: Token) -> &'static str {
        self.server.as_ref().map_or("guest", |server| server.state_of(token))
    }
}

/// What both ends of a KEYED connection prove to each other, and make its keys of.
pub(super) mod keyed {
    use crate::wire::frame::{Caps, Ext, Hash};
    use crate::wire::seal::{Secret, keyed_mac};

    /// Everything up to and with the client's greeting.
    pub(in crate::session) fn hello(nonce: &Hash, random: &Hash, index: u16, asked: (Caps, Ext)) -> Vec<u8> {
        let mut transcript = [&nonce[..], random, &index.to_le_bytes()].concat();
        welcome(&mut transcript, asked);
        transcript
    }

    /// Adds a greeting's numbers.
    pub(in crate::session) fn welcome(transcript: &mut Vec<u8>, (caps, ext): (Caps, Ext)) {
        transcript.push(caps.0);
        transcript.extend_from_slice(&ext.0.to_le_bytes());
    }

    /// The client's proof that it knows the secret.
    pub(in crate::session) fn client_proof(secret: &Secret, transcript: &[u8]) -> Hash {
        keyed_mac(secret, "haul 2026-11-26 direct connection client proof v1", transcript)
    }

    /// The server's.
    pub(in crate::session) fn server_proof(secret: &Secret, transcript: &[u8]) -> Hash {
        keyed_mac(secret, "haul 2026-11-26 direct connection server proof v1", transcript)
    }
}
