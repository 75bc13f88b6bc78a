//! Daemons under test, and either end of their handshake by hand.
//!
//! ```text
//! Listening --Guest::come--> Guest --enter--> SealedEnd
//! a listener of the test's: challenge, welcome(stream) -> bytes of DaemonWelcome, Seals
//! ```
//! Transcript and proofs are put together here once more, so that what haul does is held against what is written down.

use super::direct::{Guest, KEYED, SealedEnd};
use super::frames::{Frames, RESUMING, Received, bytes_of, hello};
use super::processes::{Ended, LIMIT, collect, complete, signal, wait_for};
use super::{binary, haul};
use haul_engine::wire::decode::Role;
use haul_engine::wire::frame::{Caps, Dialect, Ext, Frame, Hash};
use haul_engine::wire::seal::daemon::Transcript;
use haul_engine::wire::seal::{Exchange, Seals, Secret, keyed_mac};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;

const CLIENT_PROOF: &str = "haul 2026-11-26 daemon client proof v1";
const SERVER_PROOF: &str = "haul 2026-11-26 daemon server proof v1";

/// Bytes of DaemonHello and of DaemonWelcome.
pub const DAEMON_HELLO_BYTES: usize = 5 + 32 + 32 + 2 + 1 + 4 + 32;
pub const DAEMON_WELCOME_BYTES: usize = 5 + 32 + 1 + 4 + 32;

/// `haul serve --listen`, with a key and a root of its own.
pub struct Listening {
    child: Child,
    pub address: SocketAddr,
    stderr: Receiver<Vec<u8>>,
    dir: tempfile::TempDir,
}

impl Listening {
    #[track_caller]
    pub fn start(backend: &str) -> Listening {
        Listening::with(backend, &[], "127.0.0.1:0", true)
    }

    /// With more flags, and these timeouts in ms; see `limits::LOGIN_TIMEOUT`.
    #[track_caller]
    pub fn hurried(backend: &str, flags: &[&str], timeouts: &str) -> Listening {
        Listening::launched(backend, flags, "127.0.0.1:0", true, timeouts)
    }

    /// With more flags, at this address, and with a key or without.
    #[track_caller]
    pub fn with(backend: &str, flags: &[&str], address: &str, keyed: bool) -> Listening {
        Listening::launched(backend, flags, address, keyed, "")
    }

    #[track_caller]
    pub fn launched(backend: &str, flags: &[&str], address: &str, keyed: bool, timeouts: &str) -> Listening {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let key_file = dir.path().join("key");
        complete(&mut haul(backend, [OsString::from("keygen"), key_file.clone().into()])).assert_exit(0);
        let mut command = Command::new(binary());
        command.args(["--backend", backend, "serve", "--listen", address]).args(flags);
        command.arg("--root").arg(dir.path().join("root")).env("HAUL_CAS_DIR", dir.path().join("cas"));
        command.env("HAUL_TIMEOUTS_MS", timeouts);
        match keyed {
            true => _ = command.arg("--key-file").arg(&key_file),
            false => _ = command.arg("--allow-every-local-user"),
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let stderr = collect(child.stderr.take().unwrap());
        let address = line.trim().strip_prefix("LISTENING ").and_then(|address| address.parse().ok());
        Listening { child, address: address.expect(&line), stderr, dir }
    }

    /// What it serves.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn key_file(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub fn key(&self) -> Secret {
        key_in(&self.key_file())
    }

    /// An operand.
    pub fn at(&self, path: &str) -> String {
        format!("haul://{}/{path}", self.address)
    }

    /// `haul COMMAND --key-file FILE ..`, ready to run.
    pub fn command(&self, near: &str, command: &str, flags: &[&str]) -> Command {
        let mut haul = haul(near, [command]);
        haul.args(flags).arg("--key-file").arg(self.key_file());
        haul
    }

    /// A copy, to its end.
    pub fn copy(&self, near: &str, flags: &[&str], source: impl Into<OsString>, target: impl Into<OsString>) -> Ended {
        complete(self.command(near, "copy", flags).args([source.into(), target.into()]))
    }

    /// A client that is let in.
    #[track_caller]
    pub fn enter(&self) -> SealedEnd {
        enter(Guest::come(self.address), &self.key(), Knock::ALL)
    }

    /// Told to stop, it does, and has said this beside who came and what it serves.
    #[track_caller]
    pub fn end(self) -> String {
        let said = self.end_with_all();
        let is_usual = |line: &&str| !line.starts_with("haul: serving at ") && !line.starts_with("20");
        said.lines().filter(is_usual).map(|line| format!("{line}\n")).collect()
    }

    /// Told to stop, it does, and has said all this.
    #[track_caller]
    pub fn end_with_all(mut self) -> String {
        assert!(self.child.try_wait().unwrap().is_none(), "the daemon lives");
        signal(self.pid(), Signal::TERM);
        assert!(wait_for(LIMIT, || self.child.try_wait().unwrap().is_some()), "it does not stop");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        String::from_utf8(self.stderr.recv_timeout(LIMIT).unwrap()).unwrap()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a key file holds.
pub fn key_in(path: &Path) -> Secret {
    let text = fs::read_to_string(path).unwrap();
    let digits = text.strip_prefix("haul-key-1 ").and_then(|rest| rest.strip_suffix('\n')).expect(&text);
    assert_eq!(digits.len(), 64, "{text}");
    Secret::from_bytes(std::array::from_fn(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()))
}

/// What a client asks for, and its half of the exchange.
#[derive(Clone, Copy)]
pub struct Knock {
    pub random: Hash,
    pub half: [u8; 32],
    pub index: u16,
    pub caps: Caps,
    pub ext: Ext,
}

impl Knock {
    pub const ALL: Knock = Knock { random: [9; 32], half: [8; 32], index: 0, caps: Caps::AEAD, ext: Ext::ALL };

    fn exchange(&self) -> Exchange {
        Exchange::new(&Secret::from_bytes(self.half))
    }

    fn transcript(&self, nonce: &Hash, public: &Hash) -> Vec<u8> {
        let index = self.index.to_le_bytes();
        [&nonce[..], &self.random, public, &index, &[self.caps.0], &self.ext.0.to_le_bytes()].concat()
    }

    /// With the proof that goes with it.
    pub fn hello(&self, key: &Secret, nonce: &Hash) -> Frame {
        self.hello_with(key, nonce, self.exchange().public())
    }

    /// The same with another public key, proved.
    pub fn hello_with(&self, key: &Secret, nonce: &Hash, public: Hash) -> Frame {
        let mac = keyed_mac(key, CLIENT_PROOF, &self.transcript(nonce, &public));
        let Knock { random, index, caps, ext, .. } = *self;
        Frame::DaemonHello { random, public, index, caps, ext, mac }
    }
}

/// Goes in with `key`, and sees the daemon prove that it knows it too.
#[track_caller]
pub fn enter(mut guest: Guest, key: &Secret, knock: Knock) -> SealedEnd {
    guest.send(&bytes_of(&knock.hello(key, &guest.nonce), KEYED));
    let mut bytes = [0; DAEMON_WELCOME_BYTES];
    guest.stream.read_exact(&mut bytes).expect("DaemonWelcome");
    assert_eq!(bytes[..5], [70, 0, 0, 0, 0xc5], "{bytes:?}");
    let public: Hash = bytes[5..37].try_into().unwrap();
    let (caps, ext) = (Caps(bytes[37]), Ext(u32::from_le_bytes(bytes[38..42].try_into().unwrap())));
    // LARGE is for those who come first and want to compress, and so is a codec for those who do not know of LARGE.
    let codecs = if knock.ext.has(Ext::LARGE) { Caps::NONE } else { Caps::LZ4.or(Caps::ZSTD) };
    assert_eq!((caps.or(codecs), ext.or(Ext::LARGE)), (knock.caps.or(codecs), knock.ext.or(Ext::LARGE)));
    let ours = knock.exchange().public();
    let transcript = [&knock.transcript(&guest.nonce, &ours)[..], &bytes[5..42]].concat();
    assert_eq!(keyed_mac(key, SERVER_PROOF, &transcript)[..], bytes[42..]);
    let mut transcript = Transcript::hello(&guest.nonce, &knock.random, &ours, knock.index, (knock.caps, knock.ext));
    transcript.welcome(&public, (caps, ext));
    let shared = knock.exchange().agree(&public).expect("a secret");
    let seals = transcript.seals(key, &shared, Role::Client);
    SealedEnd::new(guest.stream, seals, Role::Client, Dialect { version: 1, ext })
}

/// Takes DaemonHello, which must be proved, and gives its bytes, those of DaemonWelcome, and what the connection is sealed
/// with where `public`, if it is not our own, makes that impossible.
#[track_caller]
pub fn welcome(
    stream: &mut TcpStream,
    key: &Secret,
    nonce: &Hash,
    (caps, ext): (Caps, Ext),
    public: Option<Hash>,
) -> (Vec<u8>, Vec<u8>, Option<Seals>) {
    let mut hello = [0; DAEMON_HELLO_BYTES];
    stream.read_exact(&mut hello).expect("DaemonHello");
    assert_eq!(hello[..5], [104, 0, 0, 0, 0x4a], "{hello:?}");
    let fields = &hello[5..DAEMON_HELLO_BYTES - 32];
    let mut seen = [&nonce[..], fields].concat();
    assert_eq!(keyed_mac(key, CLIENT_PROOF, &seen)[..], hello[DAEMON_HELLO_BYTES - 32..]);
    let exchange = Exchange::new(&Secret::from_bytes([0x33; 32]));
    let ours = public.unwrap_or(exchange.public());
    seen.extend_from_slice(&ours);
    seen.push(caps.0);
    seen.extend_from_slice(&ext.0.to_le_bytes());
    let mac = keyed_mac(key, SERVER_PROOF, &seen);
    let theirs: Hash = fields[32..64].try_into().unwrap();
    let index = u16::from_le_bytes(fields[64..66].try_into().unwrap());
    let asked = (Caps(fields[66]), Ext(u32::from_le_bytes(fields[67..71].try_into().unwrap())));
    let mut transcript = Transcript::hello(nonce, fields[..32].try_into().unwrap(), &theirs, index, asked);
    transcript.welcome(&ours, (caps, ext));
    let shared = exchange.agree(&theirs).expect("a secret");
    let seals = public.is_none().then(|| transcript.seals(key, &shared, Role::Server));
    (hello.to_vec(), bytes_of(&Frame::DaemonWelcome { public: ours, caps, ext, mac }, KEYED), seals)
}

/// A connection on which nothing is sealed.
pub struct Bare {
    stream: TcpStream,
    input: Frames<TcpStream>,
}

impl Bare {
    #[track_caller]
    pub fn greeted(address: SocketAddr) -> Bare {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut input = Frames::new(stream.try_clone().unwrap(), Role::Client);
        stream.write_all(&bytes_of(&hello(RESUMING), Dialect::BASE)).unwrap();
        assert!(matches!(input.next(), Some(Received::Frame(Frame::Welcome { .. }))));
        input.set_dialect(RESUMING);
        Bare { stream, input }
    }

    pub fn send(&mut self, frame: &Frame) {
        self.stream.write_all(&bytes_of(frame, RESUMING)).unwrap();
    }

    #[track_caller]
    pub fn ask(&mut self, frame: &Frame) -> Frame {
        self.send(frame);
        match self.input.next() {
            Some(Received::Frame(frame)) => frame,
            other => panic!("no reply but {other:?}"),
        }
    }
}
