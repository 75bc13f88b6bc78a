//! Which verb serves which request.

use super::range::{self, Files};
use super::verb::Verb;
use super::{Failure, Io, Reason};
use super::{chunked, get, hash, list, mkdir, put, resume, stat, tree};
use crate::backend::{DirId, Place};
use crate::wire::frame::{ErrorCode, Frame, PathField};
use crate::wire::path::Target;

/// True of a request that a body follows.
pub(super) fn has_body(request: &Frame) -> bool {
    matches!(request, Frame::Put { .. } | Frame::Continue { .. } | Frame::PutChunked { .. } | Frame::RangePut { .. })
}

/// The path a request is about.
pub(super) fn request_path(request: &Frame) -> Option<&PathField> {
    match request {
        Frame::List { path }
        | Frame::Stat { path }
        | Frame::Hash { path, .. }
        | Frame::Get { path, .. }
        | Frame::Put { path, .. }
        | Frame::Mkdir { path }
        | Frame::Resume { path }
        | Frame::Continue { path, .. }
        | Frame::PutChunked { path, .. }
        | Frame::GetChunked { path, .. }
        | Frame::Truncate { path, .. }
        | Frame::Tree { path, .. }
        | Frame::Lookup { path, .. }
        | Frame::SetMeta { path, .. }
        | Frame::RangeBegin { path, .. }
        | Frame::Blocks { path, .. }
        | Frame::Symlink { path, .. } => Some(path),
        _ => None,
    }
}

/// Why a server that only reads refuses a request.
pub(super) fn read_only() -> Failure {
    Failure::there(b"", "cannot write", ErrorCode::READ_ONLY, b"this server is read-only".to_vec())
}

/// What a request does there, which decides what it may be worked on beside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Read,
    Write,
}

/// `None`: it is no request. Everything is named, so that whatever comes new is in no class until somebody has decided.
pub(super) fn class_of(frame: &Frame) -> Option<Class> {
    match frame {
        Frame::List { .. }
        | Frame::Stat { .. }
        | Frame::Lookup { .. }
        | Frame::Hash { .. }
        | Frame::Get { .. }
        | Frame::GetChunked { .. }
        | Frame::Resume { .. }
        | Frame::Tree { .. }
        | Frame::TreeNext { .. }
        | Frame::Blocks { .. }
        | Frame::Ping
        | Frame::OpenDirectChannel => Some(Class::Read),
        Frame::Put { .. }
        | Frame::Continue { .. }
        | Frame::PutChunked { .. }
        | Frame::Truncate { .. }
        | Frame::Mkdir { .. }
        | Frame::SetMeta { .. }
        | Frame::Symlink { .. }
        | Frame::RangeBegin { .. }
        | Frame::RangePut { .. }
        | Frame::RangeCommit { .. }
        | Frame::RangeAbandon { .. } => Some(Class::Write),
        _ => None,
    }
}

/// A frame that came where it makes no sense.
pub(super) fn unexpected(name: &'static str) -> Failure {
    Failure::rule(b"", "unexpected message", name).because(Reason::Unexpected)
}

/// Starts the verb of a request.
pub(super) fn begin(
    request: Frame,
    (root, store): (DirId, Option<DirId>),
    (walks, files): (&mut tree::Walks, &Files),
    io: &mut Io<'_, '_>,
) -> Result<Box<dyn Verb>, Failure> {
    let place = match request_path(&request) {
        Some(path) => {
            let target = Target::decode(path, io.terms.dialect.ext)
                .map_err(|error| Failure::rule(&path.0, "cannot use this path", error.to_string()))?;
            Some(Place { dir: root, target })
        }
        None => None,
    };
    Ok(match (request, place) {
        (Frame::Stat { .. }, Some(place)) => Box::new(stat::Serve::stat(place, io)),
        (Frame::Lookup { follow, .. }, Some(place)) => Box::new(stat::Serve::lookup(place, follow, io)),
        (Frame::List { .. }, Some(place)) => Box::new(list::Serve::start(place)),
        (Frame::Hash { offset, limit, .. }, Some(place)) => Box::new(hash::Serve::start(place, offset, limit, io)),
        (Frame::Get { offset, .. }, Some(place)) => Box::new(get::Serve::start(place, offset, io)),
        (Frame::Put { size, offset, overwrite, .. }, Some(place)) => {
            let overwrite = overwrite || io.terms.dialect.version == 1;
            put::Serve::start(put::Request { place, size, offset, overwrite, store, continued: false }, io)?
        }
        (Frame::Continue { size, .. }, Some(place)) => {
            let (offset, overwrite, continued) = (0, true, true);
            put::Serve::start(put::Request { place, size, offset, overwrite, store, continued }, io)?
        }
        (Frame::PutChunked { offset, length, .. }, Some(place)) => chunked::Put::start(place, offset, length, io)?,
        (Frame::GetChunked { offset, length, .. }, Some(place)) => {
            Box::new(chunked::Get::start(place, offset, length, io))
        }
        (Frame::Truncate { size, .. }, Some(place)) => Box::new(chunked::Truncate::start(place, size, io)),
        (Frame::Mkdir { .. }, Some(place)) => Box::new(mkdir::Serve::mkdir(place, io)),
        (Frame::SetMeta { attributes, preserve, .. }, Some(place)) => {
            Box::new(mkdir::Serve::set_meta(place, attributes, preserve))
        }
        (Frame::Symlink { target, attributes, preserve, .. }, Some(place)) => {
            Box::new(mkdir::Serve::symlink(place, target, attributes, preserve, io))
        }
        (Frame::Resume { .. }, Some(place)) => Box::new(resume::Serve::start(place, io)),
        (Frame::Tree { walk, recursive, .. }, Some(place)) => Box::new(walks.open(walk, place, recursive)?),
        (Frame::Ping, _) => Box::new(files.pong()),
        (Frame::RangeBegin { size, attributes, preserve, keep, .. }, Some(place)) => {
            files.begin(place, (size, attributes, preserve), keep, io)?
        }
        (Frame::RangePut { token, offset, length }, _) => {
            chunked::Put::join((root, files.scope()), token, (offset, length), io)?
        }
        (Frame::RangeCommit { token, hash }, _) => files.commit(token, hash),
        (Frame::RangeAbandon { token }, _) => files.abandon(token),
        (Frame::Blocks { length, .. }, Some(place)) => Box::new(range::Serve::start(place, length, io)),
        (Frame::TreeNext { walk }, _) => Box::new(walks.next(walk)?),
        (other, _) => return Err(unexpected(name_of(&other))),
    })
}

pub(super) fn name_of(frame: &Frame) -> &'static str {
    match frame {
        Frame::Hello { .. } => "Hello",
        Frame::HaveBlocks { .. } => "HaveBlocks",
        Frame::OpenDirectChannel => "OpenDirectChannel is not offered",
        Frame::AuthHello { .. } => "AuthHello",
        Frame::Skip { .. } => "Skip",
        _ => "a frame that only servers send",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Attributes, ErrorCode, Kind, Timestamp};

    #[test]
    fn what_is_no_request_is_in_no_class() {
        let mtime = Timestamp { seconds: 0, nanoseconds: 0 };
        let attributes = Attributes { kind: Kind::Regular, size: 0, mode: 0, mtime, uid: 0, gid: 0 };
        let path = || PathField(b"f".to_vec());
        for frame in [
            Frame::Ok { hash: None },
            Frame::Error { message: Vec::new(), code: ErrorCode::NONE },
            Frame::AttributesResponse { attributes, link: Vec::new() },
            Frame::Pulse,
            Frame::AuthHello { mac: [0; 32] },
            Frame::Skip { offset: 0 },
        ] {
            assert_eq!(class_of(&frame), None, "{frame:?}");
        }
        assert_eq!(class_of(&Frame::Stat { path: path() }), Some(Class::Read));
        assert_eq!(class_of(&Frame::Mkdir { path: path() }), Some(Class::Write));
    }
}
