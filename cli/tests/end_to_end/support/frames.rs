//! Frames by hand: a client that talks to the real `haul serve`, and a server that the real client talks to, each of
//! which may do what no implementation would.

use super::processes::{self, Ended, LIMIT, Running, collect, signal, wait_for};
use super::{Pipes, binary, haul};
use haul_engine::wire::decode::{Decoder, Event, Role};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{Attributes, Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, PathField, Timestamp};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What two haul peers agree on for a plain copy.
pub const FULL: Dialect = Dialect { version: 1, ext: Ext(0x0f) };
/// Everything that two haul peers can agree on.
pub const RESUMING: Dialect = Dialect { version: 1, ext: Ext::ALL };
/// What other clients of the base protocol speak.
pub const BASES: [Dialect; 2] = [Dialect::BASE, Dialect { version: 2, ext: Ext::NONE }];
/// All of them.
pub const DIALECTS: [Dialect; 3] = [BASES[0], BASES[1], FULL];

/// One frame, data included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received {
    Frame(Frame),
    Data(Vec<u8>),
    Compressed(Vec<u8>),
}

/// The bytes of a frame.
pub fn bytes_of(frame: &Frame, dialect: Dialect) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::frame(frame, dialect, &mut bytes).unwrap();
    bytes
}

pub fn refusal() -> Frame {
    Frame::Error { message: b"no".to_vec(), code: ErrorCode::OTHER }
}

/// The bytes of a Data frame.
pub fn data(content: &[u8]) -> Vec<u8> {
    [&encode::data_header(u32::try_from(content.len()).unwrap()), content].concat()
}

/// The bytes of a DataCompressed frame, whatever it declares.
pub fn compressed(codec: u8, original: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [&(10 + len).to_le_bytes()[..], &[0x89, codec], &original.to_le_bytes(), &len.to_le_bytes(), payload].concat()
}

pub fn hello(dialect: Dialect) -> Frame {
    hello_with(dialect, Caps::NONE)
}

pub fn hello_with(dialect: Dialect, caps: Caps) -> Frame {
    let ext = (dialect.ext != Ext::NONE).then_some(dialect.ext);
    Frame::Hello { version: dialect.version, caps, ext }
}

pub fn field(path: impl AsRef<[u8]>) -> PathField {
    PathField(path.as_ref().to_vec())
}

pub fn path(path: &Path) -> PathField {
    field(path.as_os_str().as_bytes())
}

pub fn blake3_of(content: &[u8]) -> Hash {
    *blake3::hash(content).as_bytes()
}

/// Attributes as a server may claim them.
pub fn attributes(kind: Kind, size: u64) -> Attributes {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
    Attributes { kind, size, mode, mtime, uid: 0, gid: 0 }
}

/// Splits what arrives into frames.
pub struct Frames<R> {
    from: R,
    decoder: Decoder,
    buffer: Vec<u8>,
    at: usize,
}

impl<R: Read> Frames<R> {
    pub fn new(from: R, role: Role) -> Frames<R> {
        Frames { from, decoder: Decoder::new(role, Dialect::BASE), buffer: Vec::new(), at: 0 }
    }

    /// The next frame, `None` at the end of the stream, which must not cut one.
    pub fn next(&mut self) -> Option<Received> {
        let mut content = Vec::new();
        let mut compressed = false;
        loop {
            let (used, event) = self.decoder.next(&self.buffer[self.at..]).expect("well-formed frames");
            let base = self.at;
            self.at += used;
            match event {
                Some(Event::Frame(frame)) => return Some(Received::Frame(frame)),
                Some(Event::Data { .. }) => compressed = false,
                Some(Event::Compressed { .. }) => compressed = true,
                Some(Event::Piece { start, len }) => {
                    content.extend_from_slice(&self.buffer[base + start..base + start + len]);
                }
                Some(Event::End) if compressed => return Some(Received::Compressed(content)),
                Some(Event::End) => return Some(Received::Data(content)),
                None => {
                    self.buffer.resize(64 * 1024, 0);
                    let count = self.from.read(&mut self.buffer).unwrap_or(0);
                    self.buffer.truncate(count);
                    self.at = 0;
                    if count == 0 {
                        assert!(!self.decoder.mid_frame(), "the stream ended inside a frame");
                        return None;
                    }
                }
            }
        }
    }

    /// From the next frame on.
    pub fn set_dialect(&mut self, dialect: Dialect) {
        self.decoder.set_dialect(dialect);
    }

    /// Where it arrives.
    pub fn source(&self) -> &R {
        &self.from
    }

    fn rest(&mut self) -> Vec<Received> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// Kills a process that outlives the limit.
struct Watchdog {
    disarm: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// The process must not be waited for before this is dropped.
    fn of(pid: i32) -> Watchdog {
        let (disarm, disarmed) = channel();
        let thread = std::thread::spawn(move || {
            if disarmed.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("process {pid} is killed after {LIMIT:?}");
                signal(pid, Signal::KILL);
            }
        });
        Watchdog { disarm: Some(disarm), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.disarm.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The real server with a test as its client.
pub struct Serving {
    child: Child,
    watchdog: Option<Watchdog>,
    pub input: Option<ChildStdin>,
    pub output: Frames<ChildStdout>,
    stderr: Receiver<Vec<u8>>,
    pub dialect: Dialect,
    root: Arc<tempfile::TempDir>,
    store: Arc<tempfile::TempDir>,
}

/// How a server ended.
pub struct Served {
    pub code: Option<i32>,
    /// What it still said.
    pub rest: Vec<Received>,
    pub stderr: String,
    /// What it served.
    pub root: Arc<tempfile::TempDir>,
}

impl Serving {
    /// `haul serve` on an empty root, not yet greeted.
    pub fn start(backend: &str) -> Serving {
        Serving::hurried(backend, "")
    }

    /// As `start`, with these timeouts in ms; see `limits::LOGIN_TIMEOUT`.
    pub fn hurried(backend: &str, timeouts: &str) -> Serving {
        Serving::on_empty_root(backend, &[("HAUL_TIMEOUTS_MS", timeouts)], &[])
    }

    /// As `start`, where direct connections need not be sealed.
    pub fn allowing_plaintext(backend: &str) -> Serving {
        Serving::on_empty_root(backend, &[], &["--allow-plaintext"])
    }

    /// As `start`, and what it listens on stays open for a minute.
    pub fn listening_long(backend: &str) -> Serving {
        Serving::on_empty_root(backend, &[("BCMR_RENDEZVOUS_TIMEOUT_SECS", "60")], &[])
    }

    /// As `start`, as sshd starts it that was reached at this address.
    pub fn reached_at(backend: &str, address: &str) -> Serving {
        let connection = format!("127.0.0.1 40000 {address} 22");
        Serving::on_empty_root(backend, &[("SSH_CONNECTION", &connection)], &[])
    }

    fn on_empty_root(backend: &str, environment: &[(&str, &str)], flags: &[&str]) -> Serving {
        let [root, store] = [(), ()].map(|()| tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap());
        fs::create_dir(root.path().join("root")).unwrap();
        Serving::start_at(backend, (environment, flags), Arc::new(root), Arc::new(store))
    }

    fn start_at(
        backend: &str,
        (environment, flags): (&[(&str, &str)], &[&str]),
        root: Arc<tempfile::TempDir>,
        store: Arc<tempfile::TempDir>,
    ) -> Serving {
        let mut command = Command::new(binary());
        command
            .args(["--backend", backend, "serve", "--across-mounts", "--root"])
            .arg(root.path().join("root"))
            .args(flags);
        command.env("HAUL_CAS_DIR", store.path()).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Serving {
            watchdog: Some(Watchdog::of(i32::try_from(child.id()).unwrap())),
            input: child.stdin.take(),
            output: Frames::new(child.stdout.take().unwrap(), Role::Client),
            stderr: collect(child.stderr.take().unwrap()),
            child,
            dialect: Dialect::BASE,
            root,
            store,
        }
    }

    /// As `start`, with greetings exchanged.
    pub fn greeted(backend: &str, dialect: Dialect) -> Serving {
        let mut serving = Serving::start(backend);
        serving.greet(dialect);
        serving
    }

    /// As `greeted`, with capabilities, all of which the server must have.
    pub fn agreed(backend: &str, dialect: Dialect, caps: Caps) -> Serving {
        let mut serving = Serving::start(backend);
        serving.agree(dialect, caps);
        serving
    }

    /// One more server on the same root and with the same block store, not yet greeted.
    pub fn another(&self, backend: &str) -> Serving {
        Serving::start_at(backend, (&[], &[]), self.root.clone(), self.store.clone())
    }

    #[track_caller]
    pub fn greet(&mut self, dialect: Dialect) {
        self.agree(dialect, Caps::NONE);
    }

    #[track_caller]
    pub fn agree(&mut self, dialect: Dialect, caps: Caps) {
        self.send(&hello_with(dialect, caps));
        let welcome = self.reply();
        let Frame::Welcome { version, ext, caps: granted } = welcome else { panic!("no Welcome but {welcome:?}") };
        assert_eq!((version, ext.unwrap_or(Ext::NONE), granted), (dialect.version, dialect.ext, caps));
        self.speak(dialect);
    }

    /// From here on this dialect is in force.
    pub fn speak(&mut self, dialect: Dialect) {
        self.dialect = dialect;
        self.output.decoder.set_dialect(dialect);
    }

    /// The served directory.
    pub fn root(&self) -> std::path::PathBuf {
        self.root.path().join("root")
    }

    /// Where the server keeps blocks for dedup.
    pub fn store(&self) -> &Path {
        self.store.path()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn send(&mut self, frame: &Frame) {
        self.send_bytes(&bytes_of(frame, self.dialect));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // A server that has gone shows in what it said before.
        let _ = self.input.as_mut().unwrap().write_all(bytes);
    }

    /// The next frame; there must be one.
    #[track_caller]
    pub fn next(&mut self) -> Received {
        self.output.next().expect("the server ended the stream")
    }

    /// The next frame, which must not be data.
    #[track_caller]
    pub fn reply(&mut self) -> Frame {
        match self.next() {
            Received::Frame(frame) => frame,
            other => panic!("no data was asked for: {other:?}"),
        }
    }

    /// Sends a request and takes its reply.
    #[track_caller]
    pub fn ask(&mut self, request: &Frame) -> Frame {
        self.send(request);
        self.reply()
    }

    /// The next frame, which must be an Error with these words in it. Returns its code.
    #[track_caller]
    pub fn refusal(&mut self, words: &str) -> ErrorCode {
        let reply = self.reply();
        let Frame::Error { message, code } = &reply else { panic!("no Error but {reply:?}") };
        let text = String::from_utf8_lossy(message).into_owned();
        assert!(text.contains(words), "{text:?} does not say {words:?}");
        *code
    }

    /// Fails unless the session still answers, and with nothing left over from before.
    #[track_caller]
    pub fn assert_usable(&mut self) {
        fs::write(self.root().join("alive"), "yes").unwrap();
        let reply = self.ask(&Frame::Stat { path: field("alive") });
        assert!(matches!(reply, Frame::StatResponse { size: 3, is_dir: false, .. }), "{reply:?}");
        fs::remove_file(self.root().join("alive")).unwrap();
    }

    /// Both: the refusal of what came before, and a session that goes on.
    #[track_caller]
    pub fn refusal_then_usable(&mut self, words: &str) {
        fs::write(self.root().join("alive"), "yes").unwrap();
        self.send(&Frame::Stat { path: field("alive") });
        self.refusal(words);
        let reply = self.reply();
        assert!(matches!(reply, Frame::StatResponse { size: 3, .. }), "{reply:?}");
        fs::remove_file(self.root().join("alive")).unwrap();
    }

    /// Everything a Get brings, up to the hash at its end, which must be right.
    #[track_caller]
    pub fn got(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        let mut metas = 0;
        loop {
            match self.next() {
                Received::Data(bytes) => content.extend(bytes),
                Received::Frame(Frame::Meta { .. }) => metas += 1,
                Received::Frame(Frame::Ok { hash }) => {
                    assert_eq!(hash, Some(blake3_of(&content)));
                    assert_eq!(metas, u32::from(self.dialect.ext.has(Ext::META)));
                    return content;
                }
                other => panic!("{other:?} in the reply to Get"),
            }
        }
    }

    /// A whole Put, ended as the dialect has it.
    pub fn put(&mut self, name: &str, content: &[u8]) {
        let size = content.len() as u64;
        self.send(&Frame::Put { path: field(name), size, offset: 0, overwrite: true });
        for block in content.chunks(100_000) {
            self.send_bytes(&data(block));
        }
        self.end_put(blake3_of(content));
    }

    /// Done, or Commit where it was agreed on.
    pub fn end_put(&mut self, hash: Hash) {
        let commit = self.dialect.ext.has(Ext::COMMIT);
        self.send(&if commit { Frame::Commit { hash } } else { Frame::Done });
    }

    /// Ends the stream and waits for the server.
    pub fn end(mut self) -> Served {
        drop(self.input.take());
        let rest = self.output.rest();
        drop(self.watchdog.take());
        let code = self.child.wait().unwrap().code();
        let stderr = self.stderr.recv_timeout(LIMIT).unwrap_or_default();
        Served { code, rest, stderr: String::from_utf8_lossy(&stderr).into_owned(), root: self.root }
    }
}

/// A test as the server of the real client.
pub struct FarEnd {
    pub input: Frames<File>,
    output: File,
    pub dialect: Dialect,
    client_gone: Arc<AtomicBool>,
}

impl FarEnd {
    /// Takes Hello and agrees to as much of it as `dialect` has.
    #[track_caller]
    pub fn greet(&mut self, dialect: Dialect) {
        self.greet_with(dialect, Caps::NONE);
    }

    /// The same with capabilities; those that the client asked for count.
    #[track_caller]
    pub fn greet_with(&mut self, dialect: Dialect, caps: Caps) {
        let hello = self.request();
        let Frame::Hello { version: 1, ext: Some(_), .. } = hello else { panic!("no Hello but {hello:?}") };
        let ext = (dialect.ext != Ext::NONE).then_some(dialect.ext);
        self.send(&Frame::Welcome { version: 1, caps, ext });
        self.agree(dialect);
    }

    /// Speaks this from here on.
    pub fn agree(&mut self, dialect: Dialect) {
        self.dialect = dialect;
        self.input.decoder.set_dialect(dialect);
    }

    /// The next frame that is not data.
    #[track_caller]
    pub fn request(&mut self) -> Frame {
        self.next_request().expect("the client ended the stream")
    }

    /// The same, `None` at the end of the stream.
    pub fn next_request(&mut self) -> Option<Frame> {
        loop {
            match self.input.next()? {
                Received::Frame(frame) => return Some(frame),
                Received::Data(_) | Received::Compressed(_) => {}
            }
        }
    }

    pub fn send(&mut self, frame: &Frame) {
        self.send_bytes(&bytes_of(frame, self.dialect));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        // A client that has gone has its reasons on stderr.
        let _ = self.output.write_all(bytes);
    }

    /// The same; false once the client takes nothing any more.
    pub fn offer(&mut self, bytes: &[u8]) -> bool {
        self.output.write_all(bytes).is_ok()
    }

    /// Answers the question about a path as if it had these attributes; `None` for missing.
    #[track_caller]
    pub fn looked_up(&mut self, found: Option<Attributes>) {
        let request = self.request();
        assert!(matches!(request, Frame::Lookup { .. } | Frame::Stat { .. }), "{request:?}");
        let missing = || Frame::Error { message: b"no such file".to_vec(), code: ErrorCode(4096 + 2) };
        let reply = match (found, &request) {
            (None, _) => missing(),
            (Some(attributes), Frame::Lookup { .. }) => Frame::AttributesResponse { attributes, link: Vec::new() },
            (Some(found), _) => {
                Frame::StatResponse { size: found.size, mtime: 0, is_dir: found.kind == Kind::Directory }
            }
        };
        self.send(&reply);
    }

    /// What has changed meanwhile is tried once more: it is not there any more, then.
    #[track_caller]
    pub fn refuse_again(&mut self) {
        let request = self.request();
        assert!(matches!(request, Frame::Lookup { .. } | Frame::Stat { .. }), "{request:?}");
        self.send(&refusal());
        self.drain();
    }

    /// Waits until the client has ended the stream, inside a frame or not.
    pub fn drain(&mut self) {
        let _ = std::io::copy(&mut self.input.from, &mut std::io::sink());
    }

    /// True once the client has gone.
    pub fn is_alone(&self) -> bool {
        self.client_gone.load(Ordering::Acquire)
    }

    /// Does nothing until the client has gone.
    pub fn hold(&self) {
        while !self.is_alone() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Runs `haul` with a far end that is played by `act`; its arguments come from the remote.
pub fn play(
    backend: &str,
    limit: Duration,
    args: impl FnOnce(&Pipes) -> Vec<OsString>,
    act: impl FnOnce(&mut FarEnd) + Send,
) -> Ended {
    play_hurried(backend, "", limit, args, act)
}

/// The same with a client that waits for so many milliseconds: silence, login, handshake, stall.
pub fn play_hurried(
    backend: &str,
    timeouts: &str,
    limit: Duration,
    args: impl FnOnce(&Pipes) -> Vec<OsString>,
    act: impl FnOnce(&mut FarEnd) + Send,
) -> Ended {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let fifo = ["in", "out"].map(|name| dir.path().join(name));
    assert!(Command::new("mkfifo").args(&fifo).status().unwrap().success());
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo haul 0; exit; fi\n\
         exec 3<&0\ncat <&3 >'{0}/in' 3<&- &\nexec cat '{0}/out' 3<&-\n",
        dir.path().display()
    );
    let program = dir.path().join("haul");
    processes::script(&program, &script);
    let pipes = Pipes::with_program(backend, &program);
    let client_gone = Arc::new(AtomicBool::new(false));
    let gone = client_gone.clone();
    let mut running = Running::start(haul(backend, args(&pipes)).env("HAUL_TIMEOUTS_MS", timeouts));
    std::thread::scope(|scope| {
        let far = scope.spawn(|| {
            let (Ok(input), Ok(output)) = (File::open(&fifo[0]), File::create(&fifo[1])) else { return };
            let input = Frames::new(input, Role::Server);
            act(&mut FarEnd { input, output, dialect: Dialect::BASE, client_gone });
        });
        let started = Instant::now();
        wait_for(limit, || running.is_over());
        gone.store(true, Ordering::Release);
        let ended = running.finish_within(limit.saturating_sub(started.elapsed()));
        // Where nobody has opened the other side of the FIFOs, the far end still waits for that.
        while !far.is_finished() {
            let both = fifo.each_ref().map(|fifo| File::options().read(true).write(true).open(fifo).unwrap());
            std::thread::sleep(Duration::from_millis(10));
            drop(both);
        }
        if let Err(panic) = far.join() {
            eprintln!("{ended:?}");
            std::panic::resume_unwind(panic);
        }
        ended
    })
}
