//! One request of a client, from the first thought to the answer.

use super::link::Incoming;
use super::{Failure, Io, Outcome};
use crate::backend::OpKind;
use crate::wire::frame::{Attributes, Ext, Frame, Hash, ListEntry, TreeEntry, Unkept};

/// What an answer brings.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    Attributes(Attributes),
    /// Of a symbolic link, with its text.
    Link(Attributes, Vec<u8>),
    Listing(Vec<ListEntry>),
    Page {
        last: bool,
        entries: Vec<TreeEntry>,
    },
    Hash(Hash),
    Resume {
        size: u64,
        hash: Option<Hash>,
    },
    Moved {
        hash: Option<Hash>,
        size: u64,
        /// The source has grown meanwhile: this is what it began with.
        grew: bool,
    },
    /// The hash of both files, if they are equal.
    Same(Option<Hash>),
    /// Chaining values of the blocks of a range that was moved.
    Range(Vec<Hash>),
    /// A file in ranges has begun over there, under this token; the chaining values of its leading blocks, of those that
    /// are the same at both ends.
    Begun {
        token: u64,
        blocks: Vec<Option<Hash>>,
    },
    /// The same of a file that cannot be sent, for this reason.
    Unmatched {
        token: u64,
        failure: Failure,
    },
}

/// How a request ended.
pub(crate) type Answer = Result<Reply, Failure>;

/// How far the sending of a request has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    /// It waits for an operation or for room on the stream.
    Later,
    /// All of it is on the stream; a reply will come.
    Whole,
    /// It cannot be sent and nothing of it was; no reply will come.
    Not,
}

/// One request of a client, from the first thought to the answer.
pub(crate) trait Ask {
    /// Starts what must be there before it can be sent.
    fn prepare(&mut self, _io: &mut Io<'_, '_>) {}
    /// Goes on preparing while others are sent.
    fn read_ahead(&mut self, _io: &mut Io<'_, '_>) {}
    /// True when it has something to do beside once all of it is sent, for which it is called again and again.
    fn works_beside(&self) -> bool {
        false
    }
    /// Goes on with what it does beside, once all of it is sent.
    fn advance(&mut self, _io: &mut Io<'_, '_>) {}
    /// Sends more of it; called only when it is its turn.
    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent;
    /// Takes part of the reply; called only when the reply is its. True when the reply is complete.
    fn on_incoming(&mut self, incoming: Incoming, io: &mut Io<'_, '_>) -> Result<bool, Failure>;
    /// Takes note of a completion of its own operations.
    fn on_completion(&mut self, _kind: OpKind, _outcome: Outcome, _io: &mut Io<'_, '_>) {}
    /// True when more of the reply can be taken; while it is not, nothing more is parsed.
    fn is_ready(&mut self, _io: &mut Io<'_, '_>) -> bool {
        true
    }
    /// How it ended, once nothing is left to do. Called when all of it is sent and its reply is complete.
    fn answer(&mut self) -> Option<Answer>;
    /// True once it has failed here, whatever of its reply still comes.
    fn is_settled(&self) -> bool {
        false
    }
    /// Bytes that a server may have to read, hash or flush before it says the next word; `None` where nobody knows. Asked
    /// while this is the request that it owes a reply to.
    fn work(&self) -> Option<u64> {
        Some(0)
    }
    /// What it makes or changes, as the user knows it, and which attributes of that could not be kept on this side.
    fn unkept(&self) -> (&[u8], Unkept) {
        (&[], Unkept::default())
    }
    /// For the simulator's coverage table.
    fn state(&self) -> &'static str;
}

/// Makes the frame of a simple request in the dialect agreed on.
type Request = Box<dyn Fn(Ext) -> Frame>;

/// A request of one frame with a reply of one frame.
pub(crate) struct Simple {
    path: Vec<u8>,
    what: &'static str,
    request: Request,
    reply: fn(Frame) -> Option<Reply>,
    answer: Option<Answer>,
    work: Option<u64>,
}

impl Simple {
    pub(super) fn new(
        path: Vec<u8>,
        what: &'static str,
        request: impl Fn(Ext) -> Frame + 'static,
        reply: fn(Frame) -> Option<Reply>,
    ) -> Simple {
        Simple { path, what, request: Box::new(request), reply, answer: None, work: Some(0) }
    }

    /// The same where the server has to work for it.
    pub(super) fn with_work(mut self, bytes: Option<u64>) -> Simple {
        self.work = bytes;
        self
    }
}

impl Ask for Simple {
    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        match io.link.frame(&(self.request)(io.terms.dialect.ext)) {
            Ok(()) => Sent::Whole,
            Err(error) => {
                self.answer = Some(Err(Failure::rule(&self.path, self.what, error.to_string())));
                Sent::Not
            }
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, _: &mut Io<'_, '_>) -> Result<bool, Failure> {
        let Incoming::Frame(frame) = incoming else {
            return Err(Failure::protocol("the server sent data that was not asked for"));
        };
        self.answer =
            Some(match frame {
                Frame::Error { message, code } => Err(Failure::there(&self.path, self.what, code, message)),
                frame => Ok((self.reply)(frame)
                    .ok_or_else(|| Failure::protocol("the server sent another reply than asked for"))?),
            });
        Ok(true)
    }

    fn answer(&mut self) -> Option<Answer> {
        self.answer.take()
    }

    fn work(&self) -> Option<u64> {
        self.work
    }

    fn unkept(&self) -> (&[u8], Unkept) {
        (&self.path, Unkept::default())
    }

    fn state(&self) -> &'static str {
        "asked"
    }
}
