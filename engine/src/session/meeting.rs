//! The client's side of a direct connection: from OpenDirectChannel to greetings on a TCP socket.
//!
//! ```text
//! Asking -DirectChannelReady-> Connecting -connected-> Challenged -AuthChallenge-> Greeting -Welcome-> met
//!    |        |                     |                       \_____________________________/
//!    |        +-> handed on      <--+--Invited                 \--anything else--> failed
//!    +--Error---> not to be had <---+
//! ```
//! Up to the connection nothing is lost: the client may go on over the control session. Behind it a server that cannot
//! prove itself is an attack or a fault, and never a reason to go on with less. Nor is one that seals where the user wants
//! plaintext, or the other way round: both ends have said the same, by what both prove, or there is no connection.
//!
//! A client for which there was no room, because others have every place or strangers push each other out, comes again for as
//! long as it may: `Pausing`, then `Connecting` once more.
//!
//! Between two hauls one session asks and stays what it is; how to come is handed on to the connections that carry the
//! content of the run, which begin with `Invited`. A base server ends the session that asked once somebody came, so the
//! client moves to the new connection itself.

mod reached;

pub use self::reached::Reached;

use self::reached::{parse_address, unanswered, unreached};
use super::doorman::Knock;
use super::link::{Incoming, Link};
use super::rendezvous::keyed;
use super::sealed::Records;
use super::{Failure, Quotas, Reason, Terms};
use crate::backend::{Errno, OpKind, Output, StreamId, Time};
use crate::limits::SECOND;
use crate::session::Context;
use crate::session::Outcome;
use crate::wire::decode::Role;
use crate::wire::display::Printable;
use crate::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame, Hash};
use crate::wire::hello::{self, Greeting};
use crate::wire::seal::{self, Seals, Secret};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// Nanoseconds after which a request to connect is made once more: where the queue of a listener is full the kernel drops it,
/// and asks again after ever longer pauses.
const CONNECT_TIMEOUT: u64 = 5 * SECOND;
/// Nanoseconds in which a connection must come about where there is another way.
const TRY_TIMEOUT: u64 = SECOND;
/// Nanoseconds before a client comes again for which there was no room, at first; twice as long after each time.
const PAUSE: u64 = SECOND / 10;
/// The same at most.
const LONGEST_PAUSE: u64 = SECOND;

/// Whether a client wants a direct connection.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Without one nothing is done.
    pub required: bool,
    /// Not sealed, or not at all.
    pub plain: bool,
    /// Fresh random bytes.
    pub random: Hash,
    /// Where further connections look for how to come, if they are to carry the content and this one is not.
    pub invitation: Option<Invitation>,
    /// Ports that the server was told to take one of, to name them where none can be reached.
    pub ports: Option<(u16, u16)>,
    /// Where content may go; anywhere without.
    pub reached: Option<Reached>,
}

/// How the connections of a run come to its server, from when one of them has asked.
#[derive(Clone, Default, Debug)]
pub struct Invitation(Arc<OnceLock<Invited>>);

impl Invitation {
    /// How to come, if that is known.
    pub fn get(&self) -> Option<&Invited> {
        self.0.get()
    }

    /// To a daemon, with the key that it shares with its clients. `greeting` is what is asked for there.
    /// [`Ext::PLAIN`] in it asks for connections that are not sealed.
    pub fn by_daemon(address: SocketAddr, secret: Secret, greeting: Greeting, entropy: Entropy) -> Invitation {
        let greeting = Greeting { caps: greeting.caps.without(Caps::DIRECT_TCP).or(Caps::AEAD), ..greeting };
        let ports = Some((address.port(), address.port()));
        let invited = Invited { address, secret, greeting, daemon: Some(entropy), ports, alternative: false };
        Invitation(Arc::new(invited.into()))
    }

    /// The same, where another address may be tried as well: a connection must come about sooner.
    #[must_use]
    pub fn with_alternative(self) -> Invitation {
        let Some(invited) = self.get() else { return self };
        let invited = Invited { alternative: true, ..invited.clone() };
        Invitation(Arc::new(invited.into()))
    }
}

/// How to come to a server.
#[derive(Clone, Debug)]
pub struct Invited {
    address: SocketAddr,
    secret: Secret,
    greeting: Greeting,
    daemon: Option<Entropy>,
    ports: Option<(u16, u16)>,
    /// There is another address.
    alternative: bool,
}

/// Random bytes nobody can guess.
pub type Entropy = fn() -> Hash;

impl Invited {
    /// The same for a connection that shall not compress.
    #[must_use]
    pub fn without_codecs(&self) -> Invited {
        let caps = self.greeting.caps.without(Caps::LZ4.or(Caps::ZSTD));
        Invited { greeting: Greeting { caps, ..self.greeting }, ..self.clone() }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why there is no connection where nothing has come from there.
    pub fn unanswered(&self) -> String {
        unanswered(self.address, self.ports, self.daemon.is_some())
    }
}

/// One connection of those that were invited.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// Its number in the run.
    pub index: u16,
    /// Fresh random bytes: a connection that takes the place of a lost one has others.
    pub random: Hash,
    /// There is no other way: more patience.
    pub required: bool,
}

/// What became of it.
pub(super) enum Step {
    /// It goes on.
    Waiting,
    /// There is none to be had, for this reason; the control session is as it was.
    Refused(Failure),
    /// Content goes over this link from here on.
    Met(Box<Link>, Terms, SocketAddr),
    /// Others come, and this session stays as it was.
    HandedOn { required: bool },
}

enum State {
    Asking,
    Asked,
    Invited,
    Connecting {
        deadline: Time,
    },
    /// There was no room; it comes again then.
    Pausing {
        until: Time,
    },
    Challenged(Link),
    Greeting {
        link: Link,
        sent: Greeting,
        transcript: Vec<u8>,
    },
    /// As Greeting, at a daemon.
    Knocking {
        link: Link,
        knock: Knock,
    },
}

/// A client on its way to a direct connection.
pub(super) struct Meeting {
    seat: Seat,
    invitation: Option<Invitation>,
    greeting: Greeting,
    keyed: bool,
    daemon: Option<Entropy>,
    ports: Option<(u16, u16)>,
    reached: Option<Reached>,
    /// Whoever did decides what becomes of the run.
    was_invited: bool,
    patience: u64,
    /// There is another address to try.
    alternative: bool,
    /// Until when it may come again, and how long it waits before that.
    again_until: Option<Time>,
    pause: u64,
    /// Why there was none before.
    no_room: Option<String>,
    state: State,
    deadline: Option<Time>,
    ready: Option<(SocketAddr, Secret)>,
    refused: Option<Failure>,
    connected: Option<StreamId>,
    /// The new connection, until content goes over it.
    stream: Option<StreamId>,
}

const WHAT: &str = "no direct connection";
/// The same where there was never to be another one.
const WHAT_OF_DAEMON: &str = "no connection";
/// What failed where nothing came.
const IN_TIME: &str = "the server did not answer in time";
const NOT_PLAIN: &str = "the server does not allow plaintext: it must be `haul serve --allow-plaintext`, and not be told \
    HAUL_PLAINTEXT=never";
/// True of a connection that is not sealed, where `asked` was asked for and this agreed on; or why it is not to be.
pub(super) fn is_plain(asked: Ext, (caps, ext): (Caps, Ext)) -> Result<bool, &'static str> {
    match (ext.has(Ext::PLAIN), caps.has(Caps::AEAD)) {
        (false, true) if asked.has(Ext::PLAIN) => Err(NOT_PLAIN),
        (true, true) => Err("the server wants plaintext and encrypts"),
        (false, false) => Err("the server does not encrypt"),
        (plain, _) => Ok(plain),
    }
}

/// Why a server of the base protocol is left where the user wants plaintext.
pub(super) const BASE_IS_SEALED: &str = "plaintext is only for a haul at the other end";

impl Meeting {
    /// Where the control session agreed on `terms`. `greeting` is what is asked for over the new connection; `patience` in
    /// nanoseconds is for each answer.
    pub(super) fn new(wish: Wish, greeting: Greeting, terms: Terms, patience: u64) -> Meeting {
        let keyed = terms.ext(Ext::KEYED);
        let version = terms.dialect.version;
        let greeting = Greeting {
            version,
            caps: Caps(greeting.caps.0 & !Caps::DIRECT_TCP.0).or(Caps::AEAD),
            ext: greeting.ext.filter(|_| keyed).map(|ext| if wish.plain { ext.or(Ext::PLAIN) } else { ext }),
        };
        let seat = Seat { index: 0, random: wish.random, required: wish.required };
        let Wish { ports, reached, .. } = wish;
        let invitation = wish.invitation.filter(|_| keyed);
        Meeting { invitation, keyed, ports, reached, ..Meeting::with(State::Asking, seat, greeting, patience) }
    }

    /// Where another session has asked already.
    pub(super) fn invited(invited: &Invited, seat: Seat, patience: u64) -> Meeting {
        let ready = Some((invited.address, invited.secret.clone()));
        let begun = Meeting::with(State::Invited, seat, invited.greeting, patience);
        let Invited { daemon, ports, alternative, .. } = *invited;
        Meeting { keyed: true, daemon, ports, alternative, was_invited: true, ready, ..begun }
    }

    fn with(state: State, seat: Seat, greeting: Greeting, patience: u64) -> Meeting {
        Meeting {
            seat,
            invitation: None,
            greeting,
            keyed: false,
            daemon: None,
            ports: None,
            reached: None,
            was_invited: false,
            patience,
            alternative: false,
            again_until: None,
            pause: PAUSE,
            no_room: None,
            state,
            deadline: None,
            ready: None,
            refused: None,
            connected: None,
            stream: None,
        }
    }

    /// Takes note of a completion of its own operations.
    pub(super) fn on_completion(&mut self, kind: &OpKind, outcome: Outcome, cx: &mut Context<'_>) {
        match (kind, outcome) {
            (OpKind::Connect { .. }, Ok(Output::Accepted { stream, .. })) => match self.state {
                State::Connecting { .. } if self.refused.is_none() && self.connected.is_none() => {
                    self.connected = Some(stream);
                }
                // It came too late.
                _ => cx.submit(0, 0, OpKind::CloseStream { stream }),
            },
            (OpKind::Connect { address }, Err(errno)) => {
                self.refused = Some(no_direct(unreached(*address, errno, self.ports, self.daemon.is_some())));
            }
            _ => {}
        }
    }

    /// The link whose operation completed, if it is the new one.
    pub(super) fn link(&mut self) -> Option<&mut Link> {
        match &mut self.state {
            State::Challenged(link) | State::Greeting { link, .. } | State::Knocking { link, .. } => Some(link),
            _ => None,
        }
    }

    /// Gives the new connection up.
    pub(super) fn close(&mut self, cx: &mut Context<'_>) {
        for stream in self.stream.take().into_iter().chain(self.connected.take()) {
            cx.submit(0, 0, OpKind::CloseStream { stream });
        }
    }

    /// Goes on as far as possible.
    pub(super) fn turn(&mut self, control: &mut Link, quotas: &Quotas, cx: &mut Context<'_>) -> Result<Step, Failure> {
        let of_daemon = |failure| Failure { what: WHAT_OF_DAEMON, ..failure };
        match self.go_on(control, quotas, cx) {
            Err(failure) if self.daemon.is_some() => Err(of_daemon(failure)),
            Ok(Step::Refused(failure)) if self.daemon.is_some() => Ok(Step::Refused(of_daemon(failure))),
            step => step,
        }
    }

    fn go_on(&mut self, control: &mut Link, quotas: &Quotas, cx: &mut Context<'_>) -> Result<Step, Failure> {
        if let State::Asking = self.state {
            control.frame(&Frame::OpenDirectChannel).map_err(no_direct)?;
            self.deadline = Some(cx.now.after(self.patience));
            self.state = State::Asked;
        }
        if let State::Asked = self.state {
            self.ask(control, cx)?;
        }
        if let State::Invited = self.state
            && let Some((address, secret)) = &self.ready
        {
            if let Some(Invitation(place)) = &self.invitation {
                let (address, secret, greeting) = (*address, secret.clone(), self.greeting);
                // Nobody else has asked.
                let ports = self.ports;
                let _ = place.set(Invited { address, secret, greeting, daemon: None, ports, alternative: false });
                return Ok(Step::HandedOn { required: self.seat.required });
            }
            let address = *address;
            self.connect(address, cx);
        }
        if let (State::Pausing { until }, Some((address, _))) = (&self.state, &self.ready)
            && *until <= cx.now
        {
            let address = *address;
            // No two connections say the same.
            self.seat.random = match self.daemon {
                Some(entropy) => entropy(),
                None => *blake3::hash(&self.seat.random).as_bytes(),
            };
            self.connect(address, cx);
        }
        if let State::Connecting { deadline } = self.state {
            if let Some((address, _)) = &self.ready
                && deadline <= cx.now
                && self.connected.is_none()
                && self.refused.is_none()
            {
                let address = *address;
                if self.may_come_again(cx.now) {
                    self.connect(address, cx);
                } else {
                    let late = no_direct(unanswered(address, self.ports, self.daemon.is_some()));
                    self.refused = Some(late.because(Reason::Late));
                }
            }
            if let Some(failure) = self.refused.take() {
                return self.give_up(failure);
            }
            if let Some(stream) = self.connected.take() {
                self.begin(stream, control, cx);
            }
        }
        if let Some(failure) = self.refused.take() {
            return self.give_up(failure);
        }
        self.greet(quotas, cx)
    }

    fn connect(&mut self, address: SocketAddr, cx: &mut Context<'_>) {
        let until = *self.again_until.get_or_insert(cx.now.after(self.patience));
        let once = cx.now.after(if self.seat.required { CONNECT_TIMEOUT } else { TRY_TIMEOUT });
        cx.submit(0, 0, OpKind::Connect { address });
        self.state = State::Connecting { deadline: until.min(once) };
    }

    /// There is no other way, and time left.
    fn may_come_again(&self, now: Time) -> bool {
        self.seat.required && !self.alternative && self.again_until.is_some_and(|until| now < until)
    }

    /// Nobody there has said that he does not know us: there was no room.
    fn come_again(&mut self, why: String, cx: &mut Context<'_>) -> Result<(), Failure> {
        let until = cx.now.after(self.pause);
        if !self.seat.required || !self.keyed || self.again_until.is_none_or(|last| last <= until) {
            return Err(self.waited_for(&why));
        }
        self.no_room = Some(why);
        if let Some(stream) = self.stream.take() {
            cx.submit(0, 0, OpKind::CloseStream { stream });
        }
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        (self.state, self.deadline) = (State::Pausing { until }, None);
        Ok(())
    }

    /// There was no room for this reason, and the time is over.
    fn waited_for(&self, why: &str) -> Failure {
        let waited = match self.seat.required {
            true => format!("; it was waited for {} s", self.patience / SECOND),
            false => String::new(),
        };
        no_direct(format!("{why}{waited}")).because(Reason::Late)
    }

    fn give_up(&self, failure: Failure) -> Result<Step, Failure> {
        if self.seat.required && !self.was_invited { Err(failure) } else { Ok(Step::Refused(failure)) }
    }

    fn ask(&mut self, control: &mut Link, cx: &mut Context<'_>) -> Result<(), Failure> {
        let next = control.next().map_err(Failure::protocol)?;
        match next {
            None if self.deadline.is_some_and(|deadline| deadline <= cx.now) => {
                return Err(no_direct(IN_TIME).because(Reason::Late));
            }
            None | Some(Incoming::Frame(Frame::Pulse)) => {}
            Some(Incoming::Frame(Frame::DirectChannelReady { address, key })) => {
                let Some(named) = parse_address(&address) else {
                    self.refused = Some(no_direct(format!("`{}` is no address", Printable(&address))));
                    return Ok(());
                };
                let address = match self.reached.as_ref().map_or(Ok(named), |reached| reached.admit(named)) {
                    Ok(address) => address,
                    Err(why) => {
                        self.refused = Some(no_direct(why));
                        return Ok(());
                    }
                };
                self.ready = Some((address, Secret::from_bytes(key)));
                self.state = State::Invited;
            }
            Some(Incoming::Frame(Frame::Error { message, .. })) => {
                self.refused = Some(no_direct(Printable(&message)));
            }
            Some(_) => {
                let why = "the server sent another reply than asked for";
                return Err(Failure::protocol(why));
            }
        }
        Ok(())
    }

    /// The socket is there: from here on there is no way back.
    fn begin(&mut self, stream: StreamId, control: &mut Link, cx: &mut Context<'_>) {
        self.stream = Some(stream);
        let mut link = Link::new(stream, Role::Client);
        if self.keyed {
            link.set_dialect(Dialect { version: 1, ext: Ext::KEYED });
        } else {
            // How a base server knows that nothing more will be asked for there.
            control.shutdown(cx);
        }
        // All of it together must not take longer than the first time may.
        let until = self.again_until.filter(|_| self.no_room.is_some());
        let late = cx.now.after(self.patience);
        self.deadline = Some(until.map_or(late, |until| until.min(late)));
        self.state = State::Challenged(link);
    }

    fn greet(&mut self, quotas: &Quotas, cx: &mut Context<'_>) -> Result<Step, Failure> {
        loop {
            let first = matches!(self.state, State::Challenged(_));
            let Some(link) = self.link() else { break };
            let next = link.next();
            let next = next.map_err(|error| if first { no_direct(self.somebody_else()) } else { no_direct(error) })?;
            let Some(incoming) = next else {
                let Some(link) = self.link() else { break };
                link.flush(cx);
                link.pump_recv(quotas, cx);
                if link.at_end() {
                    // Whoever is turned away while he speaks may not hear that any more; whoever is not believed is.
                    let reset = link.failure().is_some_and(|errno| errno != Errno::BROKEN_PIPE);
                    if reset && self.daemon.is_some() {
                        self.come_again("the server closed it at once: too many may wait there".to_string(), cx)?;
                        break;
                    }
                    return Err(no_direct(self.closed()));
                }
                if self.deadline.is_some_and(|deadline| deadline <= cx.now) {
                    return Err(match &self.no_room {
                        Some(why) => self.waited_for(why),
                        None => no_direct(IN_TIME).because(Reason::Late),
                    });
                }
                break;
            };
            if let Some(met) = self.on_incoming(incoming, cx)? {
                return Ok(met);
            }
        }
        Ok(Step::Waiting)
    }

    /// What came first is not what a haul says.
    fn somebody_else(&self) -> String {
        match (&self.ready, self.daemon) {
            (Some((address, _)), Some(_)) => format!("{address}: no haul daemon answers there, but something else"),
            _ => "what answers at that port is not the server".to_string(),
        }
    }

    /// Why the server has closed the new connection, as far as that can be known.
    fn closed(&self) -> &'static str {
        match (&self.state, self.daemon) {
            (State::Knocking { .. }, _) => "the server closed it without an answer: its key may be another one",
            (_, Some(_)) => "the server closed it without a word: it may be no haul that waits for a key",
            (_, None) => "the server closed it without an answer: somebody else may have taken the port",
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, cx: &mut Context<'_>) -> Result<Option<Step>, Failure> {
        let Some((address, secret)) = &self.ready else { return Ok(None) };
        let refused = |why: &str| Err(no_direct(why));
        match (std::mem::replace(&mut self.state, State::Asked), incoming) {
            (State::Challenged(mut link), Incoming::Frame(Frame::AuthChallenge { nonce })) => {
                let sent = self.greeting;
                if let Some(entropy) = self.daemon {
                    let Seat { random, index, .. } = self.seat;
                    let asked = (sent.caps, sent.ext.unwrap_or(Ext::NONE));
                    let (hello, knock) = Knock::new(secret, &nonce, (random, index), asked, entropy);
                    link.frame(&hello).map_err(no_direct)?;
                    self.state = State::Knocking { link, knock };
                    return Ok(None);
                }
                let mut transcript = Vec::new();
                let mut frames = Vec::new();
                if self.keyed {
                    let Seat { random, index, .. } = self.seat;
                    let (caps, ext) = (sent.caps, sent.ext.unwrap_or(Ext::NONE));
                    transcript = keyed::hello(&nonce, &random, index, (caps, ext));
                    let mac = keyed::client_proof(secret, &transcript);
                    frames.push(Frame::KeyedHello { random, index, caps, ext, mac });
                } else {
                    frames.push(Frame::AuthHello { mac: seal::auth_mac(secret, &nonce) });
                    frames.push(sent.hello());
                }
                for frame in frames {
                    link.frame(&frame).map_err(no_direct)?;
                }
                self.state = State::Greeting { link, sent, transcript };
                Ok(None)
            }
            (State::Greeting { mut link, sent, .. }, Incoming::Frame(Frame::Welcome { version, caps, ext }))
                if !self.keyed =>
            {
                let agreed = hello::accept(sent, Greeting { version, caps, ext });
                if !agreed.caps.has(Caps::AEAD) {
                    return refused("the server does not encrypt");
                }
                link.set_dialect(agreed.dialect);
                link.seal(Seals::base(secret, Role::Client), Records::Base, cx);
                let terms = Terms { dialect: agreed.dialect, caps: agreed.caps };
                Ok(Some(Step::Met(Box::new(link), terms, *address)))
            }
            (
                State::Greeting { mut link, sent, mut transcript },
                Incoming::Frame(Frame::KeyedWelcome { caps, ext, mac }),
            ) if self.keyed => {
                keyed::welcome(&mut transcript, (caps, ext));
                if !seal::is_same(&mac, &keyed::server_proof(secret, &transcript)) {
                    return refused("the server cannot prove that it is the one that ssh reached");
                }
                let asked = sent.ext.unwrap_or(Ext::NONE);
                let (caps, ext) = (sent.caps.and(caps), asked.and(ext));
                let dialect = Dialect { version: 1, ext };
                link.set_dialect(dialect);
                match is_plain(asked, (caps, ext)) {
                    Ok(false) => link.seal(Seals::keyed(secret, &transcript, Role::Client), Records::Keyed, cx),
                    Ok(true) => link.leave_bare(),
                    Err(why) => return refused(why),
                }
                Ok(Some(Step::Met(Box::new(link), Terms { dialect, caps }, *address)))
            }
            (State::Knocking { mut link, knock }, Incoming::Frame(Frame::DaemonWelcome { public, caps, ext, mac })) => {
                let (seals, terms) = knock.answered(&public, (caps, ext), &mac).map_err(no_direct)?;
                link.set_dialect(terms.dialect);
                match seals {
                    Some(seals) => link.seal(seals, Records::Keyed, cx),
                    None => link.leave_bare(),
                }
                Ok(Some(Step::Met(Box::new(link), terms, *address)))
            }
            (_, Incoming::Frame(Frame::Error { message, code: ErrorCode::BUSY })) => {
                self.come_again(Printable(&message).to_string(), cx).map(|()| None)
            }
            (_, Incoming::Frame(Frame::Error { message, .. })) => Err(no_direct(Printable(&message))),
            _ => refused("the server sent another frame than it should"),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        match self.state {
            State::Connecting { deadline } | State::Pausing { until: deadline } => Some(deadline),
            _ => self.deadline,
        }
    }

    /// For the simulator's coverage table.
    pub(super) fn state(&self) -> &'static str {
        match self.state {
            State::Asking | State::Asked => "client asking for a direct connection",
            State::Invited => "client invited",
            State::Connecting { .. } => "client connecting",
            State::Pausing { .. } => "client waiting for room",
            State::Challenged(_) => "client challenged",
            State::Greeting { .. } => "client greeting directly",
            State::Knocking { .. } => "client knocking",
        }
    }
}

/// There is no direct connection.
pub(super) fn no_direct(why: impl fmt::Display) -> Failure {
    Failure::connection(WHAT, why).because(Reason::NoConnection)
}
