//! Sessions: frames in, operations out.
//!
//! A session is a value. It is told of completions and of time passing, and answers with operations; it owns no
//! descriptor and makes no call, so the simulator can run it as well as a kernel can. One verb of the protocol is one
//! file with the server's half and the client's half side by side.
//!
//! ```text
//!              link.rs (one stream: frames in and out)
//!             /                                       \
//!   server.rs: requests, replies in order       client.rs: requests, answers in order; begins in opening.rs
//!      | get put chunked list stat hash mkdir tree resume |      | driven by upload.rs, download.rs, inspect.rs
//!      +---- source.rs (file -> frames)  -----+----------+
//!      +---- receiver.rs (frames -> file) ----+
//!      +---- walk.rs (directory -> entries) --+
//! ```
//!
//! A run over several connections: each has a client of its own, driven by `upload.rs` or `download.rs` on the first and
//! by `helper.rs` on the others; all pull files from [`crate::queue`].
//!
//! A turn: the worker calls [`Session::on_completion`] for each completion, which only takes note, then
//! [`Session::on_turn`] once, which does everything that has become possible and returns.

#![forbid(unsafe_code)]

pub mod acceptor;
pub mod client;
pub mod download;
pub mod inspect;
pub mod landed;
pub mod plan;
pub mod report;
pub mod server;
pub mod upload;

mod again;
mod ask;
mod chunked;
pub mod codec;
mod dedup;
mod digest;
pub mod doorman;
mod gather;
mod get;
mod hash;
mod hashing;
pub mod helper;
mod inflow;
mod jobs;
mod lead;
mod link;
mod list;
mod meeting;
mod mkdir;
mod opening;
mod preamble;
mod proof;
mod put;
mod range;
mod reason;
mod receiver;
pub mod rendezvous;
mod request;
mod resume;
mod same;
mod sealed;
mod share;
mod silence;
mod source;
mod stat;
mod tree;
mod unfinished;
mod verb;
mod walk;

use crate::backend::{Completion, Errno, OpKind, Output, SessionId, Submissions, Time, Token, Waker};
use crate::block::{Class, Pool, Quota};
use crate::limits::{PEER_WORDS_BYTES, SESSION_FRAME_BLOCKS, SESSION_LARGE_BLOCKS, SESSION_SMALL_BLOCKS};
use crate::wire::decode::DecodeError;
use crate::wire::frame::{Caps, Dialect, ErrorCode, Ext};
use std::borrow::Cow;
use std::fmt;

pub use reason::Reason;

/// What a session may use during a call.
pub struct Context<'a> {
    /// The session's own number, for its tokens.
    pub id: SessionId,
    /// Now.
    pub now: Time,
    /// The worker's buffers.
    pub pool: &'a mut Pool,
    /// Where operations go.
    pub submissions: &'a mut Submissions,
    /// Ends this worker's wait, from another thread.
    pub waker: &'a Waker,
    /// Sessions to start on the same worker: accepted connections.
    pub spawned: &'a mut Vec<Box<dyn Session>>,
}

impl Context<'_> {
    /// Sends an operation out.
    pub fn submit(&mut self, transfer: u32, part: u32, kind: OpKind) {
        let token = Token { session: self.id, transfer, part };
        self.submissions.push(token, kind);
    }
}

/// Whether a session goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// It does.
    Continue,
    /// It is over; what it has in flight is cancelled and what it left open is closed.
    Finished,
}

/// Something a worker drives.
pub trait Session {
    /// Takes note of a completion.
    fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>);

    /// Does whatever has become possible. Called once after start, after completions, when blocks came back and when
    /// the deadline has passed.
    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow;

    /// Ends it for a reason that is none of its own: tells whoever waits for that, and closes its stream. It is not called
    /// again.
    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>);

    /// When `on_turn` shall be called even if nothing completes.
    fn next_deadline(&self) -> Option<Time>;

    /// A name for the state of the transfer that `token` belongs to, for the simulator's coverage table.
    fn state_of(&self, token: Token) -> &'static str;
}

/// The two quotas every session has.
pub(crate) struct Quotas {
    pub(crate) small: Quota,
    pub(crate) large: Quota,
    pub(crate) frame: Quota,
}

impl Quotas {
    pub(crate) fn new() -> Quotas {
        Quotas {
            small: Quota::new(SESSION_SMALL_BLOCKS),
            large: Quota::new(SESSION_LARGE_BLOCKS),
            frame: Quota::new(SESSION_FRAME_BLOCKS),
        }
    }

    /// For a session that is not served yet.
    pub(crate) fn none() -> Quotas {
        Quotas { small: Quota::new(0), large: Quota::new(0), frame: Quota::new(0) }
    }

    pub(crate) fn of(&self, class: Class) -> &Quota {
        match class {
            Class::Small => &self.small,
            Class::Large => &self.large,
            Class::Frame => &self.frame,
        }
    }
}

/// What both ends agreed on, and what transfers need to know of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) dialect: Dialect,
    pub(crate) caps: Caps,
}

impl Terms {
    pub(crate) fn ext(&self, ext: Ext) -> bool {
        self.dialect.ext.has(ext)
    }

    /// Files go up without a hash, those apart that need one on the way.
    pub(crate) fn puts_unhashed(&self) -> bool {
        self.caps.has(Caps::FAST) && self.ext(Ext::COMMIT.or(Ext::FASTPUT))
    }

    /// Both ends are haul and the user left the codec to us: the measured link decides too.
    pub(crate) fn is_adaptive(&self) -> bool {
        self.dialect.ext != Ext::NONE && self.caps.has(Caps::LZ4.or(Caps::ZSTD))
    }
}

/// What a verb may use during a call: the context, its stream, and its own number.
pub(crate) struct Io<'a, 'c> {
    pub(crate) cx: &'a mut Context<'c>,
    pub(crate) link: &'a mut link::Link,
    pub(crate) quotas: &'a Quotas,
    pub(crate) terms: Terms,
    pub(crate) progress: &'a report::Progress,
    /// Decides what is compressed.
    pub(crate) codec: &'a mut codec::Policy,
    pub(crate) transfer: u32,
}

impl Io<'_, '_> {
    pub(crate) fn submit(&mut self, part: u32, kind: OpKind) {
        self.cx.submit(self.transfer, part, kind);
    }

    /// A block of this session's share, or `None` until one comes back.
    pub(crate) fn take(&mut self, class: Class) -> Option<crate::block::Block> {
        if self.left(class) == 0 {
            return None;
        }
        self.cx.pool.take(class, self.quotas.of(class))
    }

    /// The smallest block there is now that holds so many bytes, or `None` until one comes back.
    pub(crate) fn take_for(&mut self, bytes: usize) -> Option<crate::block::Block> {
        let classes = [Class::Small, Class::Large, Class::Frame];
        classes.into_iter().filter(|class| class.bytes() >= bytes).find_map(|class| self.take(class))
    }

    /// Blocks that `take` would give now.
    /// The last large block is for receiving: a session that only sends would never hear that it may go on.
    pub(crate) fn left(&self, class: Class) -> usize {
        let reserved = usize::from(class == Class::Large && self.link.needs_block());
        let spare = self.cx.pool.available(class).saturating_sub(reserved);
        self.cx.pool.left(class, self.quotas.of(class)).min(spare)
    }
}

/// How an operation of a transfer came back, its buffers apart.
pub(crate) type Outcome = Result<Output, Errno>;

/// What a session says that ends because of what is wrong with this program or this machine.
pub const CANNOT_GO_ON: &str = "cannot go on";

/// Something that did not work: what, on which path, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Path as the user knows it; raw bytes, to be escaped before they reach a terminal. Empty when it is about no path.
    pub path: Vec<u8>,
    /// What failed, as a phrase: `cannot read`.
    pub what: &'static str,
    /// Why, for those who read it.
    pub cause: Cause,
    /// Why, for what is decided: exit codes and hints.
    pub kind: Reason,
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The operating system said so on this side.
    Here(Errno),
    /// The peer said so.
    There {
        /// Its reason as a number, `ErrorCode::NONE` from base peers.
        code: ErrorCode,
        /// Its words; untrusted.
        message: Vec<u8>,
    },
    /// A rule of haul's own.
    Rule(Cow<'static, str>),
    /// The peer broke the protocol, or the connection broke.
    Connection(String),
}

impl Failure {
    /// A failure of this system.
    pub fn here(path: &[u8], what: &'static str, errno: Errno) -> Failure {
        Failure { path: path.to_vec(), what, cause: Cause::Here(errno), kind: Reason::of(errno.code()) }
    }

    /// A failure of the peer's, in its words.
    pub fn there(path: &[u8], what: &'static str, code: ErrorCode, message: Vec<u8>) -> Failure {
        Failure { path: path.to_vec(), what, cause: Cause::There { code, message }, kind: Reason::of(code) }
    }

    /// A failure of a rule.
    pub fn rule(path: &[u8], what: &'static str, rule: impl Into<Cow<'static, str>>) -> Failure {
        Failure { path: path.to_vec(), what, cause: Cause::Rule(rule.into()), kind: Reason::Rule }
    }

    /// A failure of the connection as a whole.
    pub fn connection(what: &'static str, why: impl fmt::Display) -> Failure {
        Failure { path: Vec::new(), what, cause: Cause::Connection(why.to_string()), kind: Reason::Lost }
    }

    /// The peer broke the protocol.
    pub fn protocol(why: impl fmt::Display) -> Failure {
        Failure::connection("protocol error", why).because(Reason::Protocol)
    }

    /// The server said or took nothing for too long.
    fn silent(why: String) -> Failure {
        Failure::connection("connection", why).because(Reason::Silent)
    }

    /// The same, for this reason.
    #[must_use]
    pub fn because(self, kind: Reason) -> Failure {
        Failure { kind, ..self }
    }

    /// The same, of a source that was found a moment ago.
    #[must_use]
    pub fn of_source(self) -> Failure {
        let kind = if self.kind == Reason::Missing { Reason::Vanished } else { self.kind };
        self.because(kind)
    }

    /// What arrived cannot be understood, or not be trusted.
    fn stream(error: DecodeError) -> Failure {
        match error {
            // As where a stream that is not sealed just ends.
            DecodeError::CutOff => Failure::connection("connection lost", "the server closed it"),
            DecodeError::Forged | DecodeError::Exhausted | DecodeError::NoRoom => {
                Failure::connection("connection lost", error)
            }
            error => Failure::protocol(error),
        }
    }

    /// The number of the reason, Linux numbering behind `ErrorCode::ERRNO_BASE`.
    pub fn code(&self) -> ErrorCode {
        match &self.cause {
            Cause::Here(errno) => errno.code(),
            Cause::There { code, .. } => *code,
            Cause::Rule(_) if self.kind == Reason::Unexpected => ErrorCode::PROTOCOL,
            Cause::Rule(_) => ErrorCode::OTHER,
            Cause::Connection(_) => ErrorCode::PROTOCOL,
        }
    }

    /// Why, without what failed: `Permission denied`.
    pub fn why(&self) -> String {
        match &self.cause {
            Cause::Here(errno) => errno.to_string(),
            Cause::There { .. } => self.reason(),
            Cause::Rule(rule) => rule.to_string(),
            Cause::Connection(why) => why.clone(),
        }
    }

    /// The text without the path: `cannot read: Permission denied`.
    pub fn reason(&self) -> String {
        match &self.cause {
            Cause::Here(errno) => format!("{}: {errno}", self.what),
            // The peer's words say what failed.
            Cause::There { message, .. } => match message.get(..PEER_WORDS_BYTES) {
                Some(beginning) => format!("{}...", crate::wire::display::Printable(beginning)),
                None => crate::wire::display::Printable(message).to_string(),
            },
            Cause::Rule(rule) => format!("{}: {rule}", self.what),
            Cause::Connection(why) if why.is_empty() => self.what.to_string(),
            Cause::Connection(why) => format!("{}: {why}", self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_decide_nothing_and_numbers_do() {
        let of = |code: ErrorCode, message: &[u8]| Failure::there(b"f", "cannot put", code, message.to_vec());
        for words in ["No space left on device (os error 28)", "version mismatch", "it has said nothing for 60 s"] {
            let failure = of(ErrorCode::NONE, words.as_bytes());
            assert_eq!((failure.kind, failure.code()), (Reason::Other, ErrorCode::NONE), "{words}");
            assert_eq!(failure.reason(), words);
        }
        let full = Errno::NO_SPACE.code();
        assert_eq!(
            (of(full, b"fine").kind, Failure::here(b"f", "cannot write", Errno::NO_SPACE).kind),
            (Reason::Full, Reason::Full)
        );
        assert_eq!(of(ErrorCode::READ_ONLY, b"").kind, Reason::ReadOnlyServer);
    }
}
