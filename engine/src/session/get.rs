//! Get: a file from the server to the client.
//!
//! ```text
//! server: Opening -head-> [Meta] -> Data.. -> Ok{hash} | Error
//! client: [opened here, if it is large ->] asked -> [Meta] -> Data.. (receiver) -> Ok{hash}: compare, then name it -> done
//!         [open what is there -its turn-> Hash of its beginning and of its last blocks, ours at the same time
//!          -both are there and the beginning differs-> Hash of half of it, and so on -> ] asked for the rest, as above
//!         [-> Hash of all that was not sent]
//! ```
//! Nothing may be made of two files: where what is there is continued, the file must be the one that was looked at, by its
//! size and time. A base server says no time with what it sends, so what it proved is proved once more, as a whole, when
//! the rest is there.
//!
//! A file that has only grown while it was read is complete with what it began with; a second Meta before Ok says so (GREW).
//!
//! The server's hash covers what it read, the client's what it wrote; the file gets its name only when they are equal.
//! Under FAST neither end hashes: the kernel sends the file where no codec was agreed on, and Ok carries no hash.

use super::client::{Answer, Ask, Reply, Sent};
use super::link::Incoming;
use super::proof::{Part, Proof, hash_of};
use super::receiver::{Order, Receiver, Way};
use super::source::{Chunk, Purpose, Source};
use super::verb::{Verb, reply, reply_failure};
use super::{Failure, Io, Outcome, Reason};
use crate::backend::{Errno, Finish, OpKind, Place};
use crate::limits::{SPACE_CHECK_BYTES, UNORDERED_BLOCKS};
use crate::tree_hash::HASH_BLOCK_BYTES;
use crate::wire::frame::{Attributes, Caps, Ext, Frame, Hash, Preserve, Unkept};
use crate::wire::path::Target;

/// The server's half.
pub(super) struct Serve {
    source: Source,
    announced: bool,
}

impl Serve {
    pub(super) fn start(place: Place, offset: u64, io: &mut Io<'_, '_>) -> Serve {
        let path = place.target.joined().as_bytes().to_vec();
        let purpose = Purpose { offset, hashed: !io.terms.caps.has(Caps::FAST), ..Purpose::SEND };
        Serve { source: Source::start(place, path, purpose, io), announced: false }
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
        self.source.pump(turn, io, send);
        if !head {
            return false;
        }
        match self.source.result() {
            None => return false,
            Some(Ok(hash)) => {
                let grown = self.source.opened().and_then(Result::ok).filter(|_| self.source.grew());
                if let Some(attributes) = grown.filter(|_| io.terms.ext(Ext::GREW)) {
                    reply(&Frame::Meta { attributes, preserve: Preserve::default() }, io);
                }
                reply(&Frame::Ok { hash: (!io.terms.caps.has(Caps::FAST)).then_some(hash) }, io);
            }
            Some(Err(failure)) => reply_failure(failure, io),
        }
        true
    }

    fn state(&self) -> &'static str {
        self.source.state()
    }
}

/// Sends what a source hands on.
pub(super) fn send(chunk: Chunk, io: &mut Io<'_, '_>) {
    match chunk {
        Chunk::Raw(content) => io.link.data(content, io.cx),
        Chunk::Packed { codec, original, content } => io.link.packed(codec, original, content, io.cx),
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
    /// Flushed before it counts as there.
    pub(super) sync: bool,
    /// What an earlier transfer left is continued.
    pub(super) continued: bool,
    /// It is, but the file changed when that was tried: now its beginning comes, too.
    pub(super) afresh: bool,
    /// Another process looked at it than the one that sends it, which may mean something else by its path.
    pub(super) elsewhere: bool,
}

/// The file is not the one that was looked at.
fn has_changed(path: &[u8]) -> Failure {
    Failure::here(path, "cannot go on", Errno::CHANGED)
}

enum Phase {
    /// What is there is being opened.
    Preparing,
    /// It is being hashed at both ends: what the server was asked for last, and what it has said of that.
    Proving {
        proof: Proof,
        asked: Vec<Part>,
        theirs: Vec<Option<Hash>>,
    },
    Asked,
    /// The rest is there, with this hash; asked whether the beginning still is what it was.
    Confirming(Result<Option<Hash>, Failure>),
}

/// The client's half.
pub(super) struct Fetch {
    wanted: Wanted,
    phase: Phase,
    /// Attributes came, or content: they come once, and first.
    announced: bool,
    /// The hash of what is not sent, where the server is asked for it again.
    beginning: Option<Hash>,
    receiver: Option<Receiver>,
    /// The server says that the file has grown.
    grew: bool,
    refused: Option<Failure>,
}

impl Fetch {
    pub(super) fn new(wanted: Wanted) -> Fetch {
        let phase = Phase::Preparing;
        Fetch { wanted, phase, announced: false, beginning: None, receiver: None, grew: false, refused: None }
    }

    fn continues(&self) -> bool {
        self.wanted.continued && !self.wanted.afresh
    }

    /// What is large is opened here before it is asked for: where there is no room for it, it need not come.
    fn opens_first(&self) -> bool {
        self.wanted.attributes.size >= SPACE_CHECK_BYTES
    }

    fn receiver(&mut self, announced: Option<Attributes>, io: &mut Io<'_, '_>) -> &mut Receiver {
        let wanted = &self.wanted;
        self.receiver.get_or_insert_with(|| {
            let (preserve, sync) = (wanted.preserve, wanted.sync);
            let finish = Finish { attributes: announced, preserve, sync, verify: None };
            let order = Order {
                place: wanted.local.clone(),
                path: wanted.local_path.clone(),
                size: announced.unwrap_or(wanted.attributes).size,
                offset: 0,
                overwrite: true,
                way: match wanted {
                    Wanted { continued: false, .. } => Way::New,
                    Wanted { afresh: true, .. } => Way::Afresh,
                    _ => Way::Continued,
                },
                unhashed: io.terms.caps.has(Caps::FAST) && !preserve.has(Preserve::VERIFY),
                alone: UNORDERED_BLOCKS,
                finish,
            };
            Receiver::start(order, io)
        })
    }

    fn on_meta(&mut self, attributes: Attributes, io: &mut Io<'_, '_>) {
        let (continued, preserve) = (self.continues(), self.wanted.preserve);
        let known = self.wanted.attributes;
        let changed = (attributes.size, attributes.mtime) != (known.size, known.mtime);
        let owned = |of: Attributes| (of.mode, of.uid, of.gid);
        let another = self.wanted.elsewhere && (changed || owned(attributes) != owned(known));
        let path = self.wanted.remote_path.clone();
        let receiver = self.receiver(Some(attributes), io);
        receiver.set_attributes(attributes, preserve);
        if !continued {
            receiver.set_size(attributes.size);
        }
        if another || (continued && changed) {
            receiver.fail(has_changed(&path), io);
        }
    }

    /// All of the reply to Get is there.
    fn on_rest(&mut self, result: Result<Option<Hash>, Failure>, io: &mut Io<'_, '_>) -> bool {
        if self.beginning.is_some() {
            self.phase = Phase::Confirming(result);
            return false;
        }
        self.conclude(result, io);
        true
    }

    fn conclude(&mut self, result: Result<Option<Hash>, Failure>, io: &mut Io<'_, '_>) {
        match (result, &mut self.receiver) {
            (Ok(hash), _) => self.receiver(None, io).finish(hash, io),
            (Err(failure), Some(receiver)) => {
                receiver.fail(failure, io);
                receiver.finish(None, io);
            }
            (Err(failure), None) => self.refused = Some(failure),
        }
    }

    /// Whether the beginning still is what it was.
    fn on_confirmed(&mut self, theirs: Option<Hash>, io: &mut Io<'_, '_>) {
        let Phase::Confirming(result) = std::mem::replace(&mut self.phase, Phase::Asked) else { return };
        let same = theirs.is_some() && theirs == self.beginning;
        let result = result.and_then(|hash| match same {
            true => Ok(hash),
            false => Err(has_changed(&self.wanted.remote_path)),
        });
        self.conclude(result, io);
    }

    fn get(&mut self, offset: u64, io: &mut Io<'_, '_>) -> Sent {
        let path = self.wanted.remote.encode(io.terms.dialect.ext);
        match io.link.frame(&Frame::Get { path, offset }) {
            Ok(()) => {
                self.phase = Phase::Asked;
                Sent::Whole
            }
            Err(error) => {
                let failure = Failure::rule(&self.wanted.remote_path, "cannot ask for", error.to_string());
                if let Some(receiver) = &mut self.receiver {
                    receiver.fail(failure.clone(), io);
                }
                self.refused = Some(failure);
                Sent::Not
            }
        }
    }

    /// Has the server hash what the proof needs next. False where nothing is asked for.
    fn ask(&mut self, io: &mut Io<'_, '_>) -> bool {
        let Phase::Proving { proof, asked, .. } = &mut self.phase else { return false };
        for part in proof.ask() {
            let path = self.wanted.remote.encode(io.terms.dialect.ext);
            let (offset, length) = part.range(self.wanted.attributes.size);
            // All are of the same length: a path that does not fit one does not fit any, and nothing is proved.
            if io.link.frame(&Frame::Hash { path, offset, limit: Some(length) }).is_err() {
                break;
            }
            asked.push(part);
        }
        !asked.is_empty()
    }

    /// Compares what both ends have hashed, and goes on behind what is equal.
    fn prove(&mut self, io: &mut Io<'_, '_>) -> Sent {
        let (Phase::Proving { proof, asked, theirs }, Some(receiver)) = (&mut self.phase, &self.receiver) else {
            return Sent::Later;
        };
        // Whatever became of ours: a reply that comes later would be taken for that to the next request.
        if theirs.len() < asked.len() {
            return Sent::Later;
        }
        let blocks = match (receiver.kept_blocks(), receiver.result()) {
            (_, Some(Err(failure))) => {
                self.refused = Some(failure);
                return Sent::Not;
            }
            (Some(blocks), _) => blocks,
            (None, _) => return Sent::Later,
        };
        for (part, theirs) in asked.drain(..).zip(theirs.drain(..)) {
            proof.on_answer(part, theirs.is_some() && theirs == part.hash(&blocks));
        }
        let equal = proof.equal();
        if self.ask(io) {
            return Sent::Later;
        }
        let offset = (equal as u64 * HASH_BLOCK_BYTES as u64).min(self.wanted.attributes.size);
        self.receiver(None, io).skip(offset, &blocks, true, io);
        if offset > 0 && !io.terms.ext(Ext::META) {
            self.beginning = Some(hash_of(&blocks[..equal]));
        }
        match self.get(offset, io) {
            Sent::Whole if self.beginning.is_some() => self.confirm(offset, io),
            sent => sent,
        }
    }

    /// Asks for the hash of what was not asked for.
    fn confirm(&mut self, offset: u64, io: &mut Io<'_, '_>) -> Sent {
        let path = self.wanted.remote.encode(io.terms.dialect.ext);
        // The same path has fitted a longer frame.
        let _ = io.link.frame(&Frame::Hash { path, offset: 0, limit: Some(offset) });
        Sent::Whole
    }
}

impl Fetch {
    /// Takes part of the reply to Get.
    fn on_content(&mut self, incoming: Incoming, io: &mut Io<'_, '_>) -> Result<bool, Failure> {
        match incoming {
            Incoming::Frame(Frame::Meta { attributes, .. }) if !self.announced => {
                self.announced = true;
                self.on_meta(attributes, io);
                return Ok(false);
            }
            Incoming::Frame(Frame::Meta { .. }) if io.terms.ext(Ext::GREW) && !self.grew => {
                self.grew = true;
                return Ok(false);
            }
            Incoming::Frame(Frame::Ok { hash }) if hash.is_some() || io.terms.caps.has(Caps::FAST) => {
                return Ok(self.on_rest(Ok(hash), io));
            }
            Incoming::Frame(Frame::Error { message, code }) => {
                let failure = Failure::there(&self.wanted.remote_path, "cannot get", code, message).of_source();
                return Ok(self.on_rest(Err(failure), io));
            }
            Incoming::Frame(_) => {
                return Err(Failure::protocol("the server answered Get with another reply"));
            }
            Incoming::Data { len } => self.receiver(None, io).begin(len, io),
            Incoming::Compressed { codec, original, len } => {
                self.receiver(None, io).begin_packed(codec, original, len, io);
            }
            Incoming::Piece(piece) => self.receiver(None, io).piece(piece, io),
            Incoming::DataEnd => self.receiver(None, io).end(io),
        }
        self.announced = true;
        Ok(false)
    }
}

impl Ask for Fetch {
    fn prepare(&mut self, io: &mut Io<'_, '_>) {
        if self.continues() || self.opens_first() {
            self.receiver(None, io);
        }
    }

    fn send(&mut self, io: &mut Io<'_, '_>) -> Sent {
        if let (Phase::Preparing, Some(receiver)) = (&self.phase, &self.receiver) {
            match (receiver.kept_count(), receiver.result()) {
                (_, Some(Err(failure))) => {
                    self.refused = Some(failure);
                    return Sent::Not;
                }
                (None, _) if !self.continues() && receiver.is_open() => return self.get(0, io),
                (Some(count), _) => {
                    let (asked, theirs) = (Vec::new(), Vec::new());
                    self.phase = Phase::Proving { proof: Proof::new(count), asked, theirs };
                    self.ask(io);
                }
                (None, _) => return Sent::Later,
            }
        }
        match self.phase {
            Phase::Proving { .. } => self.prove(io),
            _ => self.get(0, io),
        }
    }

    fn on_incoming(&mut self, incoming: Incoming, io: &mut Io<'_, '_>) -> Result<bool, Failure> {
        let broken = |what| Err(Failure::protocol(what));
        // What is wrong where there is no hash Get will say.
        let answer = match &incoming {
            Incoming::Frame(Frame::HashResponse { hash }) => Some(Some(*hash)),
            Incoming::Frame(Frame::Error { .. }) => Some(None),
            _ => None,
        };
        match (&mut self.phase, answer) {
            (Phase::Asked, _) => self.on_content(incoming, io),
            (Phase::Preparing, _) => broken("the server sent a reply to nothing"),
            (Phase::Proving { asked, theirs, .. }, _) if theirs.len() == asked.len() => {
                broken("the server sent a reply to nothing")
            }
            (_, None) => broken("the server answered Hash with another reply"),
            (Phase::Proving { theirs, .. }, Some(hash)) => {
                theirs.push(hash);
                Ok(false)
            }
            (Phase::Confirming(_), Some(hash)) => {
                self.on_confirmed(hash, io);
                Ok(true)
            }
        }
    }

    fn on_completion(&mut self, kind: OpKind, outcome: Outcome, io: &mut Io<'_, '_>) {
        if let Some(receiver) = &mut self.receiver {
            receiver.on_completion(kind, outcome, io);
        }
    }

    fn is_ready(&mut self, io: &mut Io<'_, '_>) -> bool {
        self.receiver.as_mut().is_none_or(|receiver| receiver.is_ready(io))
    }

    fn answer(&mut self) -> Option<Answer> {
        if let Some(failure) = &self.refused {
            return Some(Err(failure.clone()));
        }
        let result = self.receiver.as_ref()?.result()?;
        Some(result.map(|(hash, size)| Reply::Moved { hash, size, grew: self.grew }))
    }

    fn is_settled(&self) -> bool {
        let result = self.receiver.as_ref().filter(|_| matches!(self.phase, Phase::Asked)).and_then(Receiver::result);
        let ends = |kind| matches!(kind, Reason::Full | Reason::Quota | Reason::Disk | Reason::TooLarge);
        result.is_some_and(|result| result.is_err_and(|failure| ends(failure.kind)))
    }

    fn work(&self) -> Option<u64> {
        let size = self.wanted.attributes.size;
        Some(match &self.phase {
            // The one that is answered next.
            Phase::Proving { asked, theirs, .. } => asked.get(theirs.len()).map_or(0, |part| part.range(size).1),
            Phase::Confirming(_) => size,
            Phase::Preparing | Phase::Asked => 0,
        })
    }

    fn unkept(&self) -> (&[u8], Unkept) {
        (&self.wanted.local_path, self.receiver.as_ref().map_or(Unkept::default(), Receiver::unkept))
    }

    fn state(&self) -> &'static str {
        match self.phase {
            Phase::Proving { .. } => "get proving what is there",
            Phase::Confirming(_) => "get confirming what was there",
            _ => self.receiver.as_ref().map_or("get asked", Receiver::state),
        }
    }
}
