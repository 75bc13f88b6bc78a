//! A client of the SFTP server that every sshd has: as much of version 3 as a copy needs
//! (draft-ietf-secsh-filexfer-02, and posix-rename@openssh.com).
//!
//! ```text
//! start -INIT, VERSION-> request: id, kind, fields ..  -> reply with the same id: STATUS | HANDLE | DATA | NAME | ATTRS
//! ```
//! Requests may be sent ahead; replies are awaited by their id. Both pipes are non-blocking, so that a server which says
//! nothing is given up, and a user who wants to stop is heard.

pub(crate) mod copy;
mod disk;
mod file;
mod packet;

use crate::{remote, run, signals};
use haul_engine::limits::{PEER_WORDS_BYTES, STALL_TIMEOUT};
use haul_engine::session::Failure;
use haul_engine::wire::display::Printable;
use haul_engine::wire::frame::{ErrorCode, Unkept};
use packet::{Attrs, Fields, Reader, malformed};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const READLINK: u8 = 19;
const SYMLINK: u8 = 20;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED: u8 = 200;
const EXTENDED_REPLY: u8 = 201;

const OK: u32 = 0;
const END_OF_FILE: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;

const STATVFS: &[u8] = b"statvfs@openssh.com";
const POSIX_RENAME: &[u8] = b"posix-rename@openssh.com";

/// Bytes of the longest packet that is taken, as OpenSSH has it.
const MAX_PACKET: usize = 256 * 1024;
/// Bytes of one read or write: what every server must take.
pub(crate) const CHUNK: usize = 32 * 1024;
/// How often a wait looks whether the user wants to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long ssh has to end once its streams are closed.
const SSH_END: Duration = Duration::from_secs(2);
/// How long the server has to remove what a stopped copy leaves.
const GRACE: Duration = Duration::from_millis(250);

/// Why something was not done.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The server refused this one request.
    Refused { code: u32, message: Vec<u8> },
    /// The connection is of no use any more.
    Lost(String),
    /// Nor is this one: the server says and takes nothing.
    Silent(&'static str),
    /// The user wants to stop.
    Stopped,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Refused { message, .. } => Printable(message).fmt(f),
            Trouble::Lost(why) => f.write_str(why),
            Trouble::Silent(why) => f.write_str(why),
            Trouble::Stopped => f.write_str("stopped"),
        }
    }
}

impl Trouble {
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Trouble::Refused { code: NO_SUCH_FILE, .. })
    }

    /// As a failure that concerns one path, or the trouble itself where it concerns everything.
    pub(crate) fn of_path(self, path: &[u8], what: &'static str) -> Result<Failure, Trouble> {
        let Trouble::Refused { code, message } = self else { return Err(self) };
        let errno = |number| ErrorCode(ErrorCode::ERRNO_BASE + number);
        let (code, words) = match code {
            NO_SUCH_FILE => (errno(2), b"No such file or directory".to_vec()),
            PERMISSION_DENIED => (errno(13), b"Permission denied".to_vec()),
            // There is no number for a full disk, a quota or a disk that fails. Nothing else fails once a file is open.
            _ if what == file::WRITE => {
                (errno(5), [&message, b" (its disk is full, over quota, or broken)".as_slice()].concat())
            }
            _ => (ErrorCode::OTHER, message),
        };
        let message = [what.as_bytes(), b": ", &words].concat();
        Ok(Failure::there(path, what, code, message))
    }
}

type Result<T, E = Trouble> = std::result::Result<T, E>;

/// Names and what is known of them, as a server lists them.
pub(crate) type Page = Vec<(Vec<u8>, Attrs)>;

struct Reply {
    kind: u8,
    fields: Vec<u8>,
}

/// A session with an SFTP server.
pub(crate) struct Sftp {
    child: Child,
    /// Until nothing more will be asked.
    input: Option<ChildStdin>,
    output: ChildStdout,
    received: Vec<u8>,
    /// Requests without a reply yet, and replies that nobody has asked for yet.
    open: BTreeMap<u32, Option<Reply>>,
    last_id: u32,
    posix_rename: bool,
    statvfs: bool,
    /// Both have greeted.
    greeted: bool,
    /// Once the user wants to stop: until when.
    stop_at: Option<Instant>,
}

impl Sftp {
    /// Greets the server that `child` has started.
    pub(crate) fn greet(mut child: Child) -> Result<Sftp> {
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Err(malformed()) };
        for end in [rustix::io::ioctl_fionbio(&input, true), rustix::io::ioctl_fionbio(&output, true)] {
            end.map_err(|errno| Trouble::Lost(errno.to_string()))?;
        }
        let mut sftp = Sftp {
            child,
            input: Some(input),
            output,
            received: Vec::new(),
            open: BTreeMap::new(),
            last_id: 0,
            posix_rename: false,
            statvfs: false,
            greeted: false,
            stop_at: None,
        };
        sftp.send(INIT, &Fields::default().u32(3).0)?;
        let reply = sftp.packet()?;
        if reply.kind != VERSION {
            return Err(malformed());
        }
        let mut fields = Reader(&reply.fields);
        fields.u32()?;
        while !fields.0.is_empty() {
            let name = fields.bytes()?;
            sftp.posix_rename |= name == POSIX_RENAME;
            sftp.statvfs |= name == STATVFS;
            fields.bytes()?;
        }
        sftp.greeted = true;
        Ok(sftp)
    }

    /// Ends the session, and ssh with it.
    pub(crate) fn leave(mut self) {
        self.input = None;
        run::end_shell(&mut self.child, SSH_END);
    }

    /// From here on a stop no longer ends everything at once: there is something to clean up, for which there is little time.
    pub(crate) fn last_words(&mut self) {
        self.stop_at.get_or_insert_with(|| Instant::now() + GRACE);
    }

    fn send(&mut self, kind: u8, fields: &[u8]) -> Result<()> {
        let length = u32::try_from(fields.len() + 1).map_err(|_| malformed())?;
        let packet = [&length.to_be_bytes(), [kind].as_slice(), fields].concat();
        let mut rest = packet.as_slice();
        let mut since = Instant::now();
        while !rest.is_empty() {
            let Some(input) = &mut self.input else { return Err(malformed()) };
            match input.write(rest) {
                Ok(0) => return Err(lost(&io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    rest = &rest[count..];
                    since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A packet that has begun must be finished, or nothing more can be said.
                    self.wait(PollFlags::OUT, since, rest.len() == packet.len())?;
                }
                Err(error) => return Err(lost(&error)),
            }
        }
        Ok(())
    }

    /// Waits a moment for a pipe.
    fn wait(&self, flags: PollFlags, since: Instant, may_stop: bool) -> Result<()> {
        let (nanoseconds, why) = match self.greeted {
            true => (STALL_TIMEOUT, "the server has done nothing for a minute"),
            false => (remote::patience(None).login, "the server did not answer in time"),
        };
        let late = match self.stop_at {
            Some(until) => until <= Instant::now(),
            None if signals::stopped() && may_stop => return Err(Trouble::Stopped),
            None => since.elapsed() > Duration::from_nanos(nanoseconds),
        };
        if late {
            return Err(Trouble::Silent(why));
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as _ };
        let end = match &self.input {
            Some(input) if flags == PollFlags::OUT => PollFd::new(input, flags),
            _ => PollFd::new(&self.output, PollFlags::IN),
        };
        // Interrupted or not, what to do next is found out by trying again.
        let _ = poll(&mut [end], Some(&timeout));
        Ok(())
    }

    /// The next packet.
    fn packet(&mut self) -> Result<Reply> {
        let mut since = Instant::now();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some((head, _)) = self.received.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
                if length == 0 || length > MAX_PACKET {
                    let begin = &self.received[..self.received.len().min(40)];
                    return Err(Trouble::Lost(format!("the server does not speak SFTP: `{}`", Printable(begin))));
                }
                if self.received.len() >= 4 + length {
                    let reply = Reply { kind: head[4], fields: self.received[5..4 + length].to_vec() };
                    self.received.drain(..4 + length);
                    return Ok(reply);
                }
            }
            match self.output.read(&mut chunk) {
                Ok(0) => return Err(Trouble::Lost("the server closed it".to_string())),
                Ok(count) => {
                    self.received.extend_from_slice(&chunk[..count]);
                    since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN, since, true)?,
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// Sends a request ahead.
    fn submit(&mut self, kind: u8, fields: Fields) -> Result<u32> {
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        self.send(kind, &[&id.to_be_bytes(), fields.0.as_slice()].concat())?;
        self.open.insert(id, None);
        Ok(id)
    }

    /// The reply to a request: of the kind wanted, or `None` for a STATUS of OK or end of file.
    fn reply(&mut self, id: u32, wanted: u8) -> Result<Option<Vec<u8>>> {
        while matches!(self.open.get(&id), Some(None)) {
            let Reply { kind, mut fields } = self.packet()?;
            let id = Reader(&fields).u32()?;
            fields.drain(..4);
            *self.open.get_mut(&id).ok_or_else(malformed)? = Some(Reply { kind, fields });
        }
        let reply = self.open.remove(&id).flatten().ok_or_else(malformed)?;
        let mut fields = Reader(&reply.fields);
        match reply.kind {
            STATUS => match fields.u32()? {
                OK | END_OF_FILE => Ok(None),
                code => {
                    let message = fields.bytes().unwrap_or(b"Failure");
                    Err(Trouble::Refused { code, message: message[..message.len().min(PEER_WORDS_BYTES)].to_vec() })
                }
            },
            kind if kind == wanted => Ok(Some(reply.fields)),
            _ => Err(malformed()),
        }
    }

    /// A request whose answer is of this kind.
    fn ask(&mut self, kind: u8, fields: Fields, wanted: u8) -> Result<Vec<u8>> {
        let id = self.submit(kind, fields)?;
        self.reply(id, wanted)?.ok_or_else(malformed)
    }

    /// A request that is done or refused.
    fn tell(&mut self, kind: u8, fields: Fields) -> Result<()> {
        let id = self.submit(kind, fields)?;
        self.reply(id, STATUS).map(|_| ())
    }

    /// What stands at a path, itself or what a link there leads to.
    pub(crate) fn stat(&mut self, path: &[u8], follow: bool) -> Result<Attrs> {
        let reply = self.ask(if follow { STAT } else { LSTAT }, Fields::default().bytes(path), ATTRS)?;
        Reader(&reply).attrs()
    }

    /// What an open file is.
    pub(crate) fn stat_handle(&mut self, handle: &[u8]) -> Result<Attrs> {
        let reply = self.ask(FSTAT, Fields::default().bytes(handle), ATTRS)?;
        Reader(&reply).attrs()
    }

    pub(crate) fn set_attrs(&mut self, path: &[u8], attrs: &Attrs) -> Result<()> {
        self.tell(SETSTAT, Fields::default().bytes(path).attrs(attrs))
    }

    pub(crate) fn set_handle_attrs(&mut self, handle: &[u8], attrs: &Attrs) -> Result<()> {
        self.tell(FSETSTAT, Fields::default().bytes(handle).attrs(attrs))
    }

    /// Makes a new file, which must not exist, and opens it for writing.
    pub(crate) fn create(&mut self, path: &[u8], mode: u32) -> Result<Vec<u8>> {
        const WRITE_CREATE_EXCLUSIVE: u32 = 0x02 | 0x08 | 0x20;
        let attrs = Attrs { mode: Some(mode), ..Attrs::default() };
        self.handle(OPEN, Fields::default().bytes(path).u32(WRITE_CREATE_EXCLUSIVE).attrs(&attrs))
    }

    /// Opens a file for reading.
    pub(crate) fn open(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.handle(OPEN, Fields::default().bytes(path).u32(0x01).attrs(&Attrs::default()))
    }

    /// Sets attributes, and says which of them are refused there: the content does not depend on them.
    pub(crate) fn set_kept(
        &mut self,
        attrs: &Attrs,
        mut set: impl FnMut(&mut Sftp, &Attrs) -> Result<()>,
    ) -> Result<Unkept> {
        let mut refused = |sftp: &mut Sftp, attrs: &Attrs| match set(sftp, attrs) {
            Ok(()) => Ok(false),
            Err(Trouble::Refused { code, .. }) if code != NO_SUCH_FILE => Ok(true),
            Err(trouble) => Err(trouble),
        };
        let mut unkept = Unkept::default();
        if !refused(self, attrs)? {
            return Ok(unkept);
        }
        // Which of them, the server does not say.
        let (mode, mtime) = (Attrs { mtime: None, ..*attrs }, Attrs { mode: None, ..*attrs });
        for (what, attrs) in [(Unkept::MODE, mode), (Unkept::TIMES, mtime)] {
            if (attrs.mode.is_some() || attrs.mtime.is_some()) && refused(self, &attrs)? {
                unkept = unkept.or(what);
            }
        }
        Ok(unkept)
    }

    /// Nobody asks any more for the replies to what has been sent ahead.
    pub(crate) fn forget(&mut self) {
        let ids: Vec<u32> = self.open.keys().copied().collect();
        for id in ids {
            // One that says that the connection is lost says so again to whoever asks next.
            let _ = self.reply(id, DATA);
        }
    }

    fn handle(&mut self, kind: u8, fields: Fields) -> Result<Vec<u8>> {
        let reply = self.ask(kind, fields, HANDLE)?;
        Reader(&reply).bytes().map(<[u8]>::to_vec)
    }

    pub(crate) fn close(&mut self, handle: &[u8]) -> Result<()> {
        self.tell(CLOSE, Fields::default().bytes(handle))
    }

    /// Asks for a chunk; [`Sftp::chunk`] has it.
    pub(crate) fn read(&mut self, handle: &[u8], offset: u64, count: usize) -> Result<u32> {
        self.submit(READ, Fields::default().bytes(handle).u64(offset).u32(count as u32))
    }

    /// The chunk that was asked for, or less of it; empty at the end of the file.
    pub(crate) fn chunk(&mut self, id: u32) -> Result<Vec<u8>> {
        match self.reply(id, DATA)? {
            Some(reply) => Reader(&reply).bytes().map(<[u8]>::to_vec),
            None => Ok(Vec::new()),
        }
    }

    /// Sends a chunk; [`Sftp::written`] tells how that went.
    pub(crate) fn write(&mut self, handle: &[u8], offset: u64, chunk: &[u8]) -> Result<u32> {
        self.submit(WRITE, Fields::default().bytes(handle).u64(offset).bytes(chunk))
    }

    pub(crate) fn written(&mut self, id: u32) -> Result<()> {
        self.reply(id, STATUS).map(|_| ())
    }

    /// Opens a directory for [`Sftp::read_dir`].
    pub(crate) fn open_dir(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.handle(OPENDIR, Fields::default().bytes(path))
    }

    /// Some more of what is in a directory, `.` and `..` apart; `None` at its end. The names are the server's and may be
    /// anything.
    pub(crate) fn read_dir(&mut self, handle: &[u8]) -> Result<Option<Page>> {
        let id = self.submit(READDIR, Fields::default().bytes(handle))?;
        let Some(reply) = self.reply(id, NAME)? else { return Ok(None) };
        let mut fields = Reader(&reply);
        let mut entries = Vec::new();
        for _ in 0..fields.u32()? {
            let (name, _, attrs) = (fields.bytes()?, fields.bytes()?, fields.attrs()?);
            if name != b"." && name != b".." {
                entries.push((name.to_vec(), attrs));
            }
        }
        Ok(Some(entries))
    }

    pub(crate) fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.tell(REMOVE, Fields::default().bytes(path))
    }

    pub(crate) fn make_dir(&mut self, path: &[u8], mode: u32) -> Result<()> {
        let attrs = Attrs { mode: Some(mode), ..Attrs::default() };
        self.tell(MKDIR, Fields::default().bytes(path).attrs(&attrs))
    }

    /// Gives a file its name; one that stands there is replaced, where the server can do that.
    pub(crate) fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        if self.posix_rename {
            return self.tell(EXTENDED, Fields::default().bytes(POSIX_RENAME).bytes(from).bytes(to));
        }
        self.tell(RENAME, Fields::default().bytes(from).bytes(to))
    }

    /// True where the server says that the file system at `path` has no room for a chunk more, or for a name: its refusals
    /// have no number for that.
    pub(crate) fn is_full(&mut self, path: &[u8]) -> Result<bool> {
        if !self.statvfs {
            return Ok(false);
        }
        let reply = self.ask(EXTENDED, Fields::default().bytes(STATVFS).bytes(path), EXTENDED_REPLY)?;
        let mut fields = Reader(&reply);
        let mut next = || fields.u64();
        let [_, unit, _, _, left, names, _, names_left] =
            [next()?, next()?, next()?, next()?, next()?, next()?, next()?, next()?];
        Ok(left.saturating_mul(unit) < CHUNK as u64 || (names > 0 && names_left == 0))
    }

    pub(crate) fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        let reply = self.ask(READLINK, Fields::default().bytes(path), NAME)?;
        let mut fields = Reader(&reply);
        fields.u32()?;
        fields.bytes().map(<[u8]>::to_vec)
    }

    /// Makes a symbolic link. OpenSSH, and who wants to work with it, has the two the other way round than the draft.
    pub(crate) fn make_link(&mut self, text: &[u8], path: &[u8]) -> Result<()> {
        self.tell(SYMLINK, Fields::default().bytes(text).bytes(path))
    }
}

impl Drop for Sftp {
    fn drop(&mut self) {
        run::end_shell(&mut self.child, Duration::ZERO);
    }
}

fn lost(error: &io::Error) -> Trouble {
    Trouble::Lost(crate::output::reason(error))
}
