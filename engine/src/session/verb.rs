//! What a server does with one request: the counterpart of [`super::ask`].

use super::{Failure, Io, Outcome};
use crate::backend::{OpKind, Output};
use crate::block::Slice;
use crate::wire::compress::Codec;
use crate::wire::frame::{Attributes, ErrorCode, Ext, Frame, Hash, Preserve, Unkept};

/// What follows a Put.
pub(super) enum Body {
    Meta(Attributes, Preserve),
    /// What is there counts up to this offset.
    Skip(u64),
    /// Size and hashes of the blocks the client has.
    Have(u32, Vec<Hash>),
    /// A raw frame of so many bytes begins.
    Data(usize),
    /// A compressed frame begins: codec, decompressed size, size.
    Packed(Codec, usize, usize),
    Piece(Slice),
    DataEnd,
    Done,
    Commit(Hash),
    Abandon(ErrorCode),
    /// It was not ended, and a request came.
    Cut,
}

/// One request being worked on.
pub(super) trait Verb {
    /// Takes note of a completion of its own operations.
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>);
    /// Takes part of a body; only Put and PutChunked have one.
    fn on_body(&mut self, _body: Body, _io: &mut Io<'_, '_>) {}
    /// True when more of the body can be taken; while it is not, nothing more is parsed.
    fn is_ready(&mut self, _io: &mut Io<'_, '_>) -> bool {
        true
    }
    /// Goes on as far as possible; replies only at the `head` of the queue. True once the reply is complete.
    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool;
    /// The session is about to end. True once nothing is on its way to a file that others write to and may name.
    fn let_go(&mut self, _io: &mut Io<'_, '_>) -> bool {
        true
    }
    /// For the simulator's coverage table.
    fn state(&self) -> &'static str;
}

/// Replies; what does not fit a frame is answered with an Error.
pub(super) fn reply(frame: &Frame, io: &mut Io<'_, '_>) {
    if let Err(error) = io.link.frame(frame) {
        let message = error.to_string().into_bytes();
        let _ = io.link.frame(&Frame::Error { message, code: ErrorCode::OTHER });
    }
}

/// Replies that it is done, and before that which attributes could not be kept, to peers that are told.
pub(super) fn reply_done(hash: Option<Hash>, unkept: Unkept, io: &mut Io<'_, '_>) {
    if !unkept.is_empty() && io.terms.ext(Ext::UNKEPT) {
        reply(&Frame::Unkept(unkept), io);
    }
    reply(&Frame::Ok { hash }, io);
}

/// The attributes that an operation which succeeded did not keep.
pub(super) fn unkept(output: &Output) -> Unkept {
    if let Output::Unkept(what) = output { *what } else { Unkept::default() }
}

/// Replies with an Error. Towards haul the client knows the path and gets a number; others get all in the text.
pub(super) fn reply_failure(failure: &Failure, io: &mut Io<'_, '_>) {
    let mut message = failure.reason().into_bytes();
    if io.terms.dialect.ext == Ext::NONE && !failure.path.is_empty() {
        message = [&failure.path[..failure.path.len().min(4096)], b": ", &message].concat();
    }
    let _ = io.link.frame(&Frame::Error { message, code: failure.code() });
}
