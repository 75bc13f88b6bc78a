//! Direct connections by hand: either end of the handshake, and of the records behind it.
//!
//! ```text
//! Serving --open--> Place --Guest::come--> Guest --client--> SealedEnd
//! FarEnd ---------> challenge -----------> taken --server--> SealedEnd
//! ```
//! Transcript and proofs are put together here once more, so that what haul does is held against what is written down.

use super::frames::{Frames, Received, Serving, bytes_of};
use super::processes::LIMIT;
use haul_engine::wire::decode::Role;
use haul_engine::wire::frame::{Caps, Dialect, Ext, Frame, Hash};
use haul_engine::wire::seal::{
    LENGTH_BYTES, Opener, Sealer, Seals, Secret, TAG_BYTES, auth_mac, keyed_mac, record_len,
};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// What two hauls agree on that will meet.
pub const KEYED: Dialect = Dialect { version: 1, ext: Ext(Ext::ALL.0 | Ext::KEYED.0) };

/// Bytes of AuthChallenge, of KeyedHello, and of KeyedWelcome.
pub const CHALLENGE_BYTES: usize = 5 + 32;
pub const KEYED_HELLO_BYTES: usize = 5 + 32 + 2 + 1 + 4 + 32;
pub const KEYED_WELCOME_BYTES: usize = 5 + 1 + 4 + 32;

/// What a record between two hauls holds at most.
const RECORD_BYTES: usize = 512 << 10;
/// What no answer takes on a busy machine; well below the time after which the processes themselves are killed.
const PATIENCE: Duration = Duration::from_secs(60);

const CLIENT_PROOF: &str = "haul 2026-11-26 direct connection client proof v1";
const SERVER_PROOF: &str = "haul 2026-11-26 direct connection server proof v1";

/// Where a server may be met, and what proves who comes.
#[derive(Clone, Copy)]
pub struct Place {
    pub address: SocketAddr,
    pub secret: [u8; 32],
}

impl Place {
    /// Asks for it on a control session that has agreed on direct connections.
    #[track_caller]
    pub fn open(serving: &mut Serving) -> Place {
        let reply = serving.ask(&Frame::OpenDirectChannel);
        let Frame::DirectChannelReady { address, key } = reply else { panic!("no place but {reply:?}") };
        let address: SocketAddr = String::from_utf8(address).unwrap().parse().unwrap();
        assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
        Place { address, secret: key }
    }

    pub fn secret(&self) -> Secret {
        Secret::from_bytes(self.secret)
    }

    /// A client that is let in; between two hauls if `keyed`.
    #[track_caller]
    pub fn client(&self, keyed: bool) -> SealedEnd {
        Guest::come(self.address).client(self, keyed)
    }
}

/// What a client of KEYED asks for.
#[derive(Clone, Copy)]
pub struct Asked {
    pub random: Hash,
    pub index: u16,
    pub caps: Caps,
    pub ext: Ext,
}

impl Asked {
    pub const ALL: Asked = Asked { random: [9; 32], index: 0, caps: Caps::AEAD, ext: Ext::ALL };

    fn transcript(&self, nonce: &Hash) -> Vec<u8> {
        let index = self.index.to_le_bytes();
        [&nonce[..], &self.random, &index, &[self.caps.0], &self.ext.0.to_le_bytes()].concat()
    }

    /// With the proof that goes with it.
    pub fn hello(&self, secret: &Secret, nonce: &Hash) -> Frame {
        let mac = keyed_mac(secret, CLIENT_PROOF, &self.transcript(nonce));
        let Asked { random, index, caps, ext } = *self;
        Frame::KeyedHello { random, index, caps, ext, mac }
    }
}

/// What follows the client's greeting in the transcript, and the server's proof.
fn welcomed(secret: &Secret, transcript: &mut Vec<u8>, caps: Caps, ext: Ext) -> Hash {
    transcript.push(caps.0);
    transcript.extend_from_slice(&ext.0.to_le_bytes());
    keyed_mac(secret, SERVER_PROOF, transcript)
}

/// A connection that has been asked to prove itself.
pub struct Guest {
    pub stream: TcpStream,
    pub nonce: Hash,
}

impl Guest {
    #[track_caller]
    pub fn come(address: SocketAddr) -> Guest {
        Guest::over(TcpStream::connect_timeout(&address, LIMIT).unwrap())
    }

    /// From this address of loopback.
    #[track_caller]
    pub fn from(from: &str, address: SocketAddr) -> Guest {
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        Guest::over(socket.into())
    }

    #[track_caller]
    pub fn over(mut stream: TcpStream) -> Guest {
        patient(&stream);
        let mut challenge = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut challenge).expect("a challenge");
        assert_eq!(challenge[..5], [33, 0, 0, 0, 0x8c], "{challenge:?}");
        Guest { stream, nonce: challenge[5..].try_into().unwrap() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // A server that has gone shows in what it said before.
        let _ = self.stream.write_all(bytes);
    }

    /// Proves itself and greets.
    #[track_caller]
    pub fn client(self, place: &Place, keyed: bool) -> SealedEnd {
        if keyed { self.keyed(place, Asked::ALL) } else { self.base(place) }
    }

    fn keyed(mut self, place: &Place, asked: Asked) -> SealedEnd {
        let secret = place.secret();
        self.send(&bytes_of(&asked.hello(&secret, &self.nonce), KEYED));
        let mut bytes = [0; KEYED_WELCOME_BYTES];
        self.stream.read_exact(&mut bytes).expect("KeyedWelcome");
        assert_eq!(bytes[..5], [38, 0, 0, 0, 0xc4], "{bytes:?}");
        let (caps, ext) = (Caps(bytes[5]), Ext(u32::from_le_bytes(bytes[6..10].try_into().unwrap())));
        assert_eq!((caps, ext), (asked.caps, asked.ext));
        let mut transcript = asked.transcript(&self.nonce);
        assert_eq!(welcomed(&secret, &mut transcript, caps, ext)[..], bytes[10..]);
        let seals = Seals::keyed(&secret, &transcript, Role::Client);
        SealedEnd::new(self.stream, seals, Role::Client, Dialect { version: 1, ext })
    }

    fn base(mut self, place: &Place) -> SealedEnd {
        let secret = place.secret();
        self.send(&base_greeting(&secret, &self.nonce));
        let mut bytes = [0; 7];
        self.stream.read_exact(&mut bytes).expect("Welcome");
        assert_eq!(bytes, [3, 0, 0, 0, 0x81, 1, Caps::AEAD.0]);
        SealedEnd::new(self.stream, Seals::base(&secret, Role::Client), Role::Client, Dialect::BASE)
    }

    /// Everything that is said until the server closes the connection.
    #[track_caller]
    pub fn left(mut self) -> Vec<u8> {
        let mut said = Vec::new();
        // A connection that is reset is over too; one that stays open is not.
        if let Err(error) = self.stream.read_to_end(&mut said) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the server keeps the connection");
        }
        said
    }
}

/// AuthHello and Hello of a client of the base protocol.
pub fn base_greeting(secret: &Secret, nonce: &Hash) -> Vec<u8> {
    let proof = Frame::AuthHello { mac: auth_mac(secret, nonce) };
    let hello = Frame::Hello { version: 1, caps: Caps::AEAD, ext: None };
    [bytes_of(&proof, Dialect::BASE), bytes_of(&hello, Dialect::BASE)].concat()
}

/// What a hand-made server answers to the client's greeting.
#[derive(Clone, Copy)]
pub struct Granted {
    pub caps: Caps,
    pub ext: Ext,
}

/// Takes KeyedHello, which must be proved, and gives the bytes of KeyedWelcome and what the connection is sealed with.
#[track_caller]
pub fn keyed_welcome(stream: &mut TcpStream, secret: &Secret, nonce: &Hash, granted: Granted) -> (Vec<u8>, Seals) {
    let mut bytes = [0; KEYED_HELLO_BYTES];
    stream.read_exact(&mut bytes).expect("KeyedHello");
    assert_eq!(bytes[..5], [72, 0, 0, 0, 0x49], "{bytes:?}");
    let mut transcript = [&nonce[..], &bytes[5..44]].concat();
    assert_eq!(keyed_mac(secret, CLIENT_PROOF, &transcript)[..], bytes[44..]);
    let Granted { caps, ext } = granted;
    let mac = welcomed(secret, &mut transcript, caps, ext);
    let seals = Seals::keyed(secret, &transcript, Role::Server);
    (bytes_of(&Frame::KeyedWelcome { caps, ext, mac }, KEYED), seals)
}

fn patient(stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
}

/// One end of a connection on which everything is sealed.
pub struct SealedEnd {
    pub stream: TcpStream,
    pub input: Frames<Opened>,
    pub dialect: Dialect,
    sealer: Sealer,
}

/// How the peer's stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// With the record that says so.
    Proved,
    /// Without one.
    Cut,
}

/// The plaintext of the records that come.
pub struct Opened {
    stream: TcpStream,
    opener: Opener,
    plain: Vec<u8>,
    at: usize,
    /// Whole records, as they came.
    pub sealed: Vec<Vec<u8>>,
    pub ending: Option<Ending>,
}

impl Opened {
    fn record(&mut self) -> Option<Vec<u8>> {
        let mut head = [0; LENGTH_BYTES];
        self.fill(&mut head)?;
        let mut record = vec![0; record_len(head).expect("a record's length")];
        record[..LENGTH_BYTES].copy_from_slice(&head);
        self.fill(&mut record[LENGTH_BYTES..])?;
        Some(record)
    }

    /// `None` when the connection is over, which it must be in time.
    fn fill(&mut self, bytes: &mut [u8]) -> Option<()> {
        let filled = self.stream.read_exact(bytes);
        let late = filled.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!late, "the peer keeps the connection");
        filled.ok()
    }
}

impl Read for Opened {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.plain.len() && self.ending.is_none() {
            let Some(mut record) = self.record() else {
                self.ending = Some(Ending::Cut);
                return Ok(0);
            };
            self.sealed.push(record.clone());
            let plain = self.opener.next().unwrap().open(&mut record).expect("a record that the peer has sealed");
            (self.plain, self.at) = (record[plain].to_vec(), 0);
            if self.plain.is_empty() {
                self.ending = Some(Ending::Proved);
            }
        }
        let len = into.len().min(self.plain.len() - self.at);
        into[..len].copy_from_slice(&self.plain[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

impl SealedEnd {
    pub fn new(stream: TcpStream, seals: Seals, role: Role, dialect: Dialect) -> SealedEnd {
        patient(&stream);
        let Seals { sealer, opener } = seals;
        let from = stream.try_clone().unwrap();
        let opened = Opened { stream: from, opener, plain: Vec::new(), at: 0, sealed: Vec::new(), ending: None };
        let mut input = Frames::new(opened, role);
        input.set_dialect(dialect);
        SealedEnd { stream, input, dialect, sealer }
    }

    /// The next record, with these bytes.
    pub fn record(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut record = [&[0; LENGTH_BYTES], plain, &[0; TAG_BYTES]].concat();
        self.sealer.next().unwrap().seal(&mut record);
        record
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// In one record, and in more where one between two hauls would be longer than it may be.
    pub fn send_bytes(&mut self, plain: &[u8]) {
        let most = if self.dialect == Dialect::BASE { usize::MAX } else { RECORD_BYTES };
        let (first, rest) = plain.split_at(plain.len().min(most));
        let record = self.record(first);
        self.send_raw(&record);
        for part in rest.chunks(most) {
            let record = self.record(part);
            self.send_raw(&record);
        }
    }

    pub fn send(&mut self, frame: &Frame) {
        self.send_bytes(&bytes_of(frame, self.dialect));
    }

    #[track_caller]
    pub fn ask(&mut self, request: &Frame) -> Frame {
        self.send(request);
        match self.input.next() {
            Some(Received::Frame(frame)) => frame,
            other => panic!("no reply but {other:?}"),
        }
    }

    /// Says nothing more, without the record that proves it.
    pub fn cut(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// All that the peer still says, and how it ends.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<Received>, Ending) {
        let rest = std::iter::from_fn(|| self.input.next()).collect();
        (rest, self.input.source().ending.expect("the stream has ended"))
    }

    /// Ends the stream as it should be, and sees the peer do so.
    #[track_caller]
    pub fn end(mut self, keyed: bool) {
        if keyed {
            self.send_bytes(&[]);
        }
        self.cut();
        let ending = if keyed { Ending::Proved } else { Ending::Cut };
        assert_eq!(self.rest(), (Vec::new(), ending));
    }
}
