//! Get: a file from the server to the client.
//!
//! ```text
//! server: Opening -head-> [Meta] -> Data.. -> Ok{hash} | Error
//! client: asked -> [Meta] -> Data.. (receiver) -> Ok{hash}: compare, then name the file -> done
//! ```
//! The server's hash covers what it read, the client's what it wrote; the file gets its name only when they are equal.

use super::client::{Answer, Ask, Reply, Sent};
use super::link::Incoming;
use super::receiver::{Order, Receiver};
use super::server::{Verb, reply, reply_failure};
use super::source::Source;
use super::{Cause, Failure, Io, Outcome};
use crate::backend::{Finish, OpKind, Place};
use crate::wire::frame::{Attributes, Ext, Frame, Preserve};
use crate::wire::path::Target;

/// The server's half.
pub(super) struct Serve {
    source: Source,
    announced: bool,
}

impl Serve {
    pub(super) fn start(place: Place, offset: u64, io: &mut Io<'_, '_>) -> Serve {
        let path = place.target.joined().as_bytes().to_vec();
        Serve { source: Source::start(place, path, offset, None, io), announced: false }
    }

    /// Says what is coming, once it is known. False until then.
    fn announce(&mut self, io: &mut Io<'_, '_>) -> bool {
        if !self.announced
            && let Some(Ok(attributes)) = self.source.opened()
        {
            self.announced = true;
            if io.terms.ext(Ext::META) {
                reply(&Frame::Meta { attributes, preserve: Preserve::default() }, io);
            }
        }
        self.announced
    }
}

impl Verb for Serve {
    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        self.source.on_completion(kind, outcome, io);
    }

    fn advance(&mut self, head: bool, io: &mut Io<'_, '_>) -> bool {
        let turn = head && self.announce(io);
        self.source.pump(turn, io, |content, io| io.link.data(content, io.cx));
        if !head {
            return false;
        }
        match self.source.result() {
            None => return false,
            Some(Ok(hash)) => reply(&Frame::Ok { hash: Some(hash) }, io),
            Some(Err(failure)) => reply_failure(failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        self.source.state()
    }
}

/// What the client wants and where to.
pub(super) struct Wanted {
    pub(super) remote: Target,
    /// For messages.
    pub(super) remote_path: Vec<u8>,
    pub(super) local: Place,
    /// For messages.
    pub(super) local_path: Vec<u8>,
    /// What is known of it; its size is binding towards peers that announce none.
    pub(super) attributes: Attributes,
    pub(super) preserve: Preserve,
}

/// The client's half.
pub(super) struct Fetch {
    wanted: Wanted,
    receiver: Option<Receiver>,
    refused: Option<Failure>,
}

impl Fetch {
    pub(super) fn new(wanted: Wanted) -> Fetch {
        Fetch { wanted, receiver: None, refused: None }
    }

    fn receiver(&mut self, announced: Option<Attributes>, io: &mut Io<'_, '_>) -> &mut Receiver {
        let wanted = &self.wanted;
        self.receiver.get_or_insert_with(|| {
            let finish = Finish { attributes: announced, preserve: wanted.preserve, sync: false };
            let order = Order {
                place: wanted.local.clone(),
                path: wanted.local_path.clone(),
                size: announced.unwrap_or(wanted.attributes).size,
                offset: 0,
                overwrite: true,
                finish,
            };
            Receiver::start(order, io)
        })
    }
}

impl Ask for Fetch {
    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        let path = self.wanted.remote.encode(io.terms.dialect.ext);
        match io.link.frame(&Frame::Get { path, offset: 0 }) {
            Ok(()) => Sent::Whole,
            Err(error) => {
                self.refused = Some(Failure::rule(&self.wanted.remote_path, "cannot ask for", error.to_string()));
                Sent::Not
            }
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, io: &mut Io<'_, '_>) -> Result<bool, Failure> {
        match incoming {
            Incoming::Frame(Frame::Meta { attributes, .. }) if self.receiver.is_none() => {
                self.receiver(Some(attributes), io);
                Ok(false)
            }
            Incoming::Data | Incoming::DataEnd => Ok(false),
            Incoming::Piece(piece) => {
                self.receiver(None, io).piece(piece, io);
                Ok(false)
            }
            Incoming::Frame(Frame::Ok { hash: Some(hash) }) => {
                self.receiver(None, io).finish(Some(hash), io);
                Ok(true)
            }
            Incoming::Frame(Frame::Error { message, code }) => {
                let cause = Cause::There { code, message };
                let failure = Failure { path: self.wanted.remote_path.clone(), what: "cannot get", cause };
                match &mut self.receiver {
                    Some(receiver) => {
                        receiver.fail(failure, io);
                        receiver.finish(None, io);
                    }
                    None => self.refused = Some(failure),
                }
                Ok(true)
            }
            _ => Err(Failure::connection("protocol error", "the server answered Get with another reply")),
        }
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        if let Some(receiver) = &mut self.receiver {
            receiver.on_completion(&kind, outcome, io);
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        if let Some(failure) = &self.refused {
            return Some(Err(failure.clone()));
        }
        let result = self.receiver.as_ref()?.result()?;
        Some(result.map(|(hash, size)| Reply::Moved { hash, size }))
    }

    fn state(&self) -> &'static str {
        self.receiver.as_ref().map_or("get asked", Receiver::state)
    }
}
