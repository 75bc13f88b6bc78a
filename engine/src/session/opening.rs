//! How a client session begins: who answers there, and what both will speak.
//!
//! ```text
//! Listening -start line of haul--> Greeting(1, ext) -Welcome-> agreed
//!     |     -start line of bcmr--> Greeting(1 or 2) -Welcome-> agreed
//!     |     -"none", or the end-> Report::Absent
//!     |     -a login, and silence, or what was sent-> Report::Fatal
//!     | silence: a strict Hello, version 1 without ext, goes out
//!     v
//! Listening -a frame-------------> Greeting(1) -Welcome-> agreed
//!           -start line of haul--> Greeting(1) -Welcome-> Greeting(1, ext) -Welcome-> agreed
//! ```
//! Silence means that the account runs a program of its own in place of the start script, and that this program, as every
//! base server, waits for the client's Hello; or that the login takes long, and then the line still comes. A server of the
//! other version, or one that says nothing to a strict Hello, ends in [`Report::Redial`]: a second connection begins with
//! the other version at once. Nothing has been asked for by then.

use super::link::{Incoming, Link};
pub use super::meeting::{Entropy, Invitation, Invited, Reached, Seat, Wish};
use super::preamble::{Found, Preamble};
use super::report::{Program, Report};
use super::{Failure, Reason, Terms};
use crate::backend::{Errno, Time};
use crate::limits::{
    ALIVE_TIMEOUT, ANSWER_TIMEOUT, HANDSHAKE_TIMEOUT, PREAMBLE_SILENCE, REDIAL_TIMEOUT, SHELL_SILENCE, STALL_TIMEOUT,
};
use crate::wire::display::Printable;
use crate::wire::frame::{Caps, Ext, Frame};
use crate::wire::hello::{self, Greeting};
use std::fmt;

/// What failed when nobody could be started.
const NO_START: &str = "cannot start haul on the remote side";
/// What failed when nobody answered, and nobody said why.
const NO_ANSWER: &str = "the remote side did not answer in time";

/// How long an end waits for the other, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Without a word before a strict Hello is sent.
    pub silence: u64,
    /// From the start of the remote shell to the start line, or to the first frame.
    pub login: u64,
    /// Without a word from a remote shell once the login is known to be there.
    pub shell: u64,
    /// From a Hello to its answer.
    pub handshake: u64,
    /// Without any progress of a send that has begun.
    pub stall: u64,
    /// Without a word from a server that owes an answer, on a further connection.
    pub answer: u64,
    /// For which a direct connection that broke is tried again.
    pub redial: u64,
    /// Without a word, or any progress of a send, where the server says now and then that it lives.
    pub alive: u64,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            silence: PREAMBLE_SILENCE,
            login: HANDSHAKE_TIMEOUT,
            shell: SHELL_SILENCE,
            handshake: HANDSHAKE_TIMEOUT,
            stall: STALL_TIMEOUT,
            answer: ANSWER_TIMEOUT,
            redial: REDIAL_TIMEOUT,
            alive: ALIVE_TIMEOUT,
        }
    }
}

/// How a client begins.
#[derive(Clone, Debug)]
pub struct Opening {
    /// How the line begins after which the protocol does; none on streams that carry nothing else.
    pub start_line: Option<Vec<u8>>,
    /// The login is there from the beginning; else a line of ssh's may say when it is.
    pub logged_in: bool,
    /// What is asked for in Hello. Without extensions towards everybody who has not said to be haul.
    pub greeting: Greeting,
    /// Sends a Hello of this version at once, start line or not: a second try, after [`Report::Redial`].
    pub redialled: Option<u8>,
    /// Why the job cannot be done by a peer of the base protocol, if so.
    pub refuse_base: Option<&'static str>,
    /// Whether content shall go over a connection of its own.
    pub direct: Option<Wish>,
    /// Where the client goes by itself, in place of the stream that it is given.
    pub invited: Option<Box<(Invitation, Seat)>>,
    /// How long to wait.
    pub patience: Patience,
}

impl Opening {
    /// Everything haul can do, in version 1.
    pub fn full(start_line: Option<Vec<u8>>) -> Opening {
        Opening { start_line, ..Opening::with(1, Some(Ext::ALL)) }
    }

    /// The same, asking for these capabilities as well.
    #[must_use]
    pub fn with_caps(mut self, caps: Caps) -> Opening {
        self.greeting.caps = self.greeting.caps.or(caps);
        self
    }

    /// The same, over a direct connection where there is one.
    #[must_use]
    pub fn with_direct(mut self, wish: Option<Wish>) -> Opening {
        if wish.is_some() {
            self.greeting.caps = self.greeting.caps.or(Caps::DIRECT_TCP);
            self.greeting.ext = self.greeting.ext.map(|ext| ext.or(Ext::KEYED));
        }
        self.direct = wish;
        self
    }

    /// The same, where the server says now and then that it lives.
    #[must_use]
    pub fn with_pulse(mut self) -> Opening {
        self.greeting.ext = self.greeting.ext.map(|ext| ext.or(Ext::PULSE));
        self
    }

    /// The same, where the server says which process it is, so that logins that gathered in one know of each other.
    #[must_use]
    pub fn with_gathering(mut self) -> Opening {
        self.greeting.ext = self.greeting.ext.map(|ext| ext.or(Ext::GATHER));
        self
    }

    /// The base protocol alone, in this version.
    pub fn base(version: u8) -> Opening {
        Opening::with(version, None)
    }

    fn with(version: u8, ext: Option<Ext>) -> Opening {
        let greeting = Greeting { version, caps: Caps::PUT_OFFSET, ext };
        Opening {
            start_line: None,
            logged_in: false,
            greeting,
            redialled: None,
            refuse_base: None,
            direct: None,
            invited: None,
            patience: Patience::default(),
        }
    }
}

enum State {
    /// The remote shell prints what it likes. From here to `Greeting`.
    Listening(Preamble),
    /// Hello is out, or goes out now (without a deadline); from `Listening`, and the first state of a bare stream. Ends
    /// with Welcome, unless there is more to ask for.
    Greeting { sent: Greeting, then: Option<Greeting>, deadline: Option<Time> },
}

/// The beginning of a client session.
pub(super) struct Opener {
    opening: Opening,
    state: State,
    /// When it began, and when the remote shell last printed something.
    times: Option<(Time, Time)>,
    /// Since when the login is known to be there.
    login: Option<Time>,
    /// The Hello that went out before it was known who answers.
    strict: Option<Greeting>,
    peer: Option<Program>,
}

impl Opener {
    pub(super) fn new(opening: Opening) -> Opener {
        let state = match &opening.start_line {
            Some(line) => State::Listening(Preamble::new(line.clone())),
            None => State::Greeting { sent: opening.greeting, then: None, deadline: None },
        };
        Opener { opening, state, times: None, login: None, strict: None, peer: None }
    }

    /// Goes on as far as possible. What is agreed, once it is.
    pub(super) fn turn(&mut self, link: &mut Link, now: Time) -> Result<Option<Terms>, Report> {
        if let State::Listening(_) = self.state {
            self.listen(link, now)?;
        }
        if let State::Greeting { .. } = self.state {
            return self.greet(link, now);
        }
        Ok(None)
    }

    /// What the start line said about the program that answers.
    pub(super) fn peer(&mut self) -> Option<Program> {
        self.peer.take()
    }

    fn listen(&mut self, link: &mut Link, now: Time) -> Result<(), Report> {
        let (started, heard) = self.times.get_or_insert((now, now));
        if self.opening.logged_in {
            self.login.get_or_insert(now);
        }
        while let State::Listening(preamble) = &mut self.state
            && let Some(input) = link.preamble()
        {
            let before = std::mem::replace(heard, now);
            let (used, found) = preamble.feed(input, self.strict.is_some());
            link.consume_preamble(used);
            match found {
                // Not a word of the other end.
                Some(Found::Login) => {
                    *heard = before;
                    self.login.get_or_insert(now);
                }
                Some(found) => return self.on_found(found, link, now),
                None => {}
            }
            if preamble.is_too_long() {
                let why = self.printed().unwrap_or_default();
                return Err(Failure::connection(NO_START, why).because(Reason::NoStart).into());
            }
        }
        if started.after(self.opening.patience.login) <= now {
            let why = self.printed().unwrap_or_default();
            return Err(Failure::connection(NO_ANSWER, why).because(Reason::Late).into());
        }
        if self.login.is_some_and(|login| login.max(*heard).after(self.opening.patience.shell) <= now) {
            return Err(self.no_shell("the login is there, and nothing comes of it"));
        }
        let silent = heard.after(self.opening.patience.silence) <= now;
        if self.strict.is_none() && (silent || self.opening.redialled.is_some()) {
            let hello = self.base_greeting(self.opening.redialled.unwrap_or(1));
            send(hello, link);
            self.strict = Some(hello);
        }
        Ok(())
    }

    fn on_found(&mut self, found: Found, link: &mut Link, now: Time) -> Result<(), Report> {
        let wanted = match found {
            Found::Haul(words) => {
                self.peer = Some(Program { words, base: false });
                self.opening.greeting
            }
            Found::Base(words, version) => {
                if let Some(rule) = self.opening.refuse_base {
                    return Err(Failure::rule(b"", "cannot do this with a bcmr peer", rule).into());
                }
                self.peer = Some(Program { words, base: true });
                self.base_greeting(version)
            }
            Found::Nobody => return Err(absent("it is not installed there".to_string(), Reason::NotInstalled)),
            Found::Unusable => {
                let why = "the program there cannot be run, or is not haul";
                return Err(Failure::connection(NO_START, why).because(Reason::Unusable).into());
            }
            Found::Login => return Ok(()),
            Found::Echo => return Err(self.no_shell("the remote shell sends back what it is sent")),
            Found::Frame(head) => {
                link.begin_frame(&head).map_err(not_greeted)?;
                self.strict.unwrap_or(self.opening.greeting)
            }
        };
        self.state = match self.strict {
            None => State::Greeting { sent: wanted, then: None, deadline: None },
            Some(sent) => {
                let deadline = Some(now.after(self.opening.patience.handshake));
                State::Greeting { sent, then: wanted.ext.is_some().then_some(wanted), deadline }
            }
        };
        Ok(())
    }

    fn greet(&mut self, link: &mut Link, now: Time) -> Result<Option<Terms>, Report> {
        let patience = self.opening.patience.handshake;
        let State::Greeting { sent, then, deadline } = &mut self.state else { return Ok(None) };
        loop {
            let late = match deadline {
                Some(deadline) => *deadline <= now,
                None => {
                    send(*sent, link);
                    *deadline = Some(now.after(patience));
                    false
                }
            };
            match link.next().map_err(not_greeted)? {
                None if late => {
                    let why = "the server did not answer in time";
                    return Err(Failure::connection("handshake", why).because(Reason::Late).into());
                }
                None => return Ok(None),
                Some(Incoming::Frame(Frame::Welcome { version, caps, ext })) => match then.take() {
                    Some(more) => (*sent, *deadline) = (more, None),
                    None => {
                        let agreed = hello::accept(*sent, Greeting { version, caps, ext });
                        link.set_dialect(agreed.dialect);
                        return Ok(Some(Terms { dialect: agreed.dialect, caps: agreed.caps }));
                    }
                },
                Some(Incoming::Frame(Frame::Error { message, .. })) => {
                    let sent = *sent;
                    return Err(self.refused(sent, &message));
                }
                Some(_) => {
                    return Err(not_greeted("the server's first frame was not Welcome").into());
                }
            }
        }
    }

    /// Which version the server would rather have stands in its words, which decide nothing: there are two.
    fn refused(&self, sent: Greeting, message: &[u8]) -> Report {
        match self.may_redial(sent) {
            true => another(sent),
            false => Failure::connection("handshake", Printable(message)).because(Reason::Refused).into(),
        }
    }

    /// The stream has ended, for this reason if any.
    pub(super) fn lost(&self, errno: Option<Errno>) -> Report {
        // Who has gone takes no Hello any more; what it said before tells why.
        let closed = errno.is_none_or(|errno| errno == Errno::BROKEN_PIPE);
        match (&self.state, self.strict) {
            (State::Listening(_), Some(sent)) if closed && self.may_redial(sent) => another(sent),
            (State::Listening(_), _) => self.no_start_line(),
            (State::Greeting { sent, .. }, Some(_)) if closed && self.may_redial(*sent) => another(*sent),
            (State::Greeting { .. }, _) if closed => {
                not_greeted("the server closed the connection without an answer").into()
            }
            (State::Greeting { .. }, _) => {
                Failure::connection("connection lost", errno.map_or(String::new(), |errno| errno.to_string())).into()
            }
        }
    }

    /// Once, and only where a remote shell can be started again. With extensions the peer is haul, which speaks both.
    fn may_redial(&self, sent: Greeting) -> bool {
        self.opening.start_line.is_some() && self.opening.redialled.is_none() && sent.ext.is_none()
    }

    fn base_greeting(&self, version: u8) -> Greeting {
        Greeting { version, ext: None, ..self.opening.greeting }
    }

    fn printed(&self) -> Option<String> {
        let State::Listening(preamble) = &self.state else { return None };
        preamble.printed().map(|printed| format!("the remote shell printed `{printed}`"))
    }

    /// Where the shell should be there is something else.
    fn no_shell(&self, what: &str) -> Report {
        let printed = self.printed().map_or(String::new(), |printed| format!(", and {printed}"));
        let why = format!("{what}{printed}; does a start file of that account run another program (`exec`)?");
        Failure::connection(NO_START, why).because(Reason::StartFiles).into()
    }

    fn no_start_line(&self) -> Report {
        let why = self.printed().unwrap_or_else(|| "the connection closed without a word".to_string());
        absent(why, Reason::NoStart)
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        let patience = self.opening.patience;
        match (&self.state, self.times) {
            (State::Greeting { deadline, .. }, _) => *deadline,
            (State::Listening(_), Some((started, heard))) => {
                let silence = self.strict.is_none().then(|| heard.after(patience.silence));
                let shell = self.login.map(|login| login.max(heard).after(patience.shell));
                [silence, shell, Some(started.after(patience.login))].into_iter().flatten().min()
            }
            (State::Listening(_), None) => None,
        }
    }

    /// For the simulator's coverage table.
    pub(super) fn state(&self) -> &'static str {
        match (&self.state, self.strict) {
            (State::Listening(_), None) => "client listening",
            (State::Listening(_), Some(_)) => "client listening, greeted",
            (State::Greeting { .. }, _) => "client greeting",
        }
    }
}

/// Nobody is there who could answer.
fn absent(why: String, kind: Reason) -> Report {
    Report::Absent(Failure::connection(NO_START, why).because(kind))
}

/// Something came that is no greeting.
fn not_greeted(why: impl fmt::Display) -> Failure {
    Failure::connection("handshake", why).because(Reason::Greeting)
}

/// Hello always fits.
fn send(greeting: Greeting, link: &mut Link) {
    let _ = link.frame(&greeting.hello());
}

/// A second connection, with the version that was not sent.
fn another(sent: Greeting) -> Report {
    Report::Redial { version: if sent.version == 1 { 2 } else { 1 } }
}
