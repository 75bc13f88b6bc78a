//! A test as the client of any server, over pipes, frame by frame.

use super::peer::{Peer, real_programs_are_here};
use super::raw::{self, MAX_FRAME, Raw, kind};
use crate::support::processes::{LIMIT, collect, wait_for};
use std::borrow::Cow;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

/// A server in one of the versions that it speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dialect {
    pub peer: Peer,
    pub version: u8,
}

impl Dialect {
    /// Every server in every version.
    pub const ALL: [Dialect; 4] = [
        Dialect { peer: Peer::Old, version: 1 },
        Dialect { peer: Peer::New, version: 2 },
        Dialect { peer: Peer::Haul, version: 1 },
        Dialect { peer: Peer::Haul, version: 2 },
    ];
}

/// Runs a script with every server, where the real programs are.
pub fn with_each(script: impl Fn(Dialect)) {
    if real_programs_are_here() {
        for dialect in Dialect::ALL {
            // Shown only where the test fails.
            eprintln!("{dialect:?}");
            script(dialect);
        }
    }
}

/// A server with a test as its client. The server is ended when this goes.
pub struct Speaker {
    child: Child,
    input: Option<ChildStdin>,
    replies: Receiver<Raw<'static>>,
    stderr: Receiver<Vec<u8>>,
    place: Place,
    pub dialect: Dialect,
    /// What was agreed on.
    pub caps: u8,
}

/// Where a server works; outlives it, so that another may work there after it.
pub struct Place {
    dir: tempfile::TempDir,
    variable: Option<(&'static str, &'static str)>,
}

/// How a server ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    /// What it still said.
    pub rest: Vec<Raw<'static>>,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Place {
        let dir = crate::support::trees::scratch();
        for name in ["root", "other root", "home", "store"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Place { dir, variable: None }
    }

    /// Servers there have this in their environment.
    pub fn with(self, name: &'static str, value: &'static str) -> Place {
        Place { variable: Some((name, value)), ..self }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, peer: Peer, root: &str) -> Command {
        let mut command = Command::new(peer.program().unwrap());
        command.args(["serve", "--root"]).arg(self.beside(root)).current_dir(self.beside(root)).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("HOME", self.beside("home")).env("TMPDIR", self.beside("home"));
        command.env("BCMR_CAS_DIR", self.beside("store")).env("SSH_CONNECTION", "127.0.0.1 50000 127.0.0.1 22");
        command.envs(self.variable);
        if let Some(backend) = std::env::var_os("HAUL_BACKEND") {
            command.env("HAUL_BACKEND", backend);
        }
        command
    }
}

impl Speaker {
    /// A server on an empty root, not yet greeted.
    pub fn start(dialect: Dialect) -> Speaker {
        Speaker::start_at(dialect, Place::new(), "root")
    }

    /// As `start`, with this place's directory as root.
    pub fn start_at(dialect: Dialect, place: Place, root: &str) -> Speaker {
        let mut command = place.command(dialect.peer, root);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Speaker {
            input: child.stdin.take(),
            replies: frames_of(child.stdout.take().unwrap()),
            stderr: collect(child.stderr.take().unwrap()),
            child,
            place,
            dialect,
            caps: 0,
        }
    }

    /// As `start`, with greetings exchanged.
    #[track_caller]
    pub fn greeted(dialect: Dialect, caps: u8) -> Speaker {
        Speaker::greeted_at(dialect, caps, Place::new(), "root")
    }

    /// As `start_at`, with greetings exchanged.
    #[track_caller]
    pub fn greeted_at(dialect: Dialect, caps: u8, place: Place, root: &str) -> Speaker {
        let mut speaker = Speaker::start_at(dialect, place, root);
        let welcome = speaker.ask(&raw::hello(dialect.version, caps));
        assert_eq!((welcome.kind, welcome.body.first()), (kind::WELCOME, Some(&dialect.version)), "{dialect:?}");
        speaker.caps = welcome.body[1];
        speaker
    }

    pub fn root(&self) -> PathBuf {
        self.place.root()
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // A server that has gone shows in what it said before.
        let _ = self.input.as_mut().unwrap().write_all(bytes);
    }

    /// The next frame, `None` at the end of the stream.
    #[track_caller]
    pub fn next(&mut self) -> Option<Raw<'static>> {
        next_of(&self.replies)
    }

    /// The next frame; there must be one.
    #[track_caller]
    pub fn reply(&mut self) -> Raw<'static> {
        self.next().expect("the server ended the stream")
    }

    #[track_caller]
    pub fn ask(&mut self, request: &[u8]) -> Raw<'static> {
        self.send(request);
        self.reply()
    }

    /// The next frame, which must be an Error. Returns what it says.
    #[track_caller]
    pub fn refusal(&mut self) -> String {
        let reply = self.reply();
        reply.error().unwrap_or_else(|| panic!("{:?}: no Error but {:#04x}", self.dialect, reply.kind))
    }

    /// The next frame, which must be an Ok. Returns its hash.
    #[track_caller]
    pub fn accepted(&mut self) -> Option<String> {
        let reply = self.reply();
        reply.ok().unwrap_or_else(|| panic!("{:?}: no Ok but {:#04x} {:?}", self.dialect, reply.kind, reply.error()))
    }

    /// What comes before the reply to one more request: nothing, if all was answered. Fails if the session is over.
    #[track_caller]
    pub fn left_over(&mut self) -> Vec<Raw<'static>> {
        fs::write(self.root().join("alive"), "0123456789").unwrap();
        self.send(&raw::hash("alive", 3, Some(4)));
        let expected = blake3::hash(b"3456").to_hex();
        let mut left = Vec::new();
        loop {
            let reply = self.reply();
            if reply.kind == kind::HASH_RESPONSE && reply.fields().text().as_deref() == Some(&*expected) {
                fs::remove_file(self.root().join("alive")).unwrap();
                return left;
            }
            left.push(reply);
        }
    }

    /// How many Errors are waiting, and nothing else.
    #[track_caller]
    pub fn errors_left(&mut self) -> usize {
        let left = self.left_over();
        assert!(left.iter().all(|reply| reply.kind == kind::ERROR), "{:?}: {left:?}", self.dialect);
        left.len()
    }

    /// Ends the stream.
    pub fn close(&mut self) {
        drop(self.input.take());
    }

    /// Waits for the server, which must end without the stream being ended. Its place is left.
    #[track_caller]
    pub fn ended(&mut self) -> Ended {
        let rest = std::iter::from_fn(|| self.next()).collect();
        assert!(wait_for(LIMIT, || self.child.try_wait().unwrap().is_some()), "{:?} does not end", self.dialect);
        let code = self.child.wait().unwrap().code();
        let stderr = self.stderr.recv_timeout(LIMIT).unwrap_or_default();
        Ended { code, rest, stderr: String::from_utf8_lossy(&stderr).into_owned() }
    }

    /// Ends the stream, waits for the server, which must end well, and gives its place back.
    #[track_caller]
    pub fn leave(mut self) -> Place {
        self.close();
        let ended = self.ended();
        assert_eq!((ended.code, ended.rest), (Some(0), Vec::new()), "{:?}: {}", self.dialect, ended.stderr);
        std::mem::replace(&mut self.place, Place::new())
    }

    /// Fails unless the server ends at once, without a word to the client, as at a malformed frame.
    #[track_caller]
    pub fn assert_ends_silently(mut self, why: &str) {
        assert_eq!(self.next(), None, "{:?}: {why}", self.dialect);
        let ended = self.ended();
        assert_eq!(ended.code, Some(1), "{:?}: {why}: {}", self.dialect, ended.stderr);
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads frames until the stream ends or is none of frames.
pub fn frames_of(mut from: impl Read + Send + 'static) -> Receiver<Raw<'static>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut next = || {
            let (mut length, mut kind) = ([0; 4], [0]);
            from.read_exact(&mut length).ok()?;
            from.read_exact(&mut kind).ok()?;
            let length = u32::from_le_bytes(length) as usize;
            let mut body = vec![0; length.checked_sub(1).filter(|_| length <= MAX_FRAME)?];
            from.read_exact(&mut body).ok()?;
            Some(Raw { kind: kind[0], body: Cow::Owned(body) })
        };
        while let Some(frame) = next()
            && sender.send(frame).is_ok()
        {}
    });
    receiver
}

/// The next frame, `None` at the end of the stream.
#[track_caller]
pub fn next_of(replies: &Receiver<Raw<'static>>) -> Option<Raw<'static>> {
    match replies.recv_timeout(LIMIT) {
        Ok(frame) => Some(frame),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("the server says nothing for {LIMIT:?}"),
    }
}
