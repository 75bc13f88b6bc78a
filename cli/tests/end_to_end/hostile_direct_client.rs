//! The real client against servers, and whoever stands between it and them, on direct connections: it says no more than
//! its greeting to whoever cannot prove who he is, goes on over ssh only while there is no connection, and only where it
//! may, and gives no file its name that was changed on the way.

use crate::support::direct::{CHALLENGE_BYTES, Granted, KEYED, KEYED_HELLO_BYTES, SealedEnd, keyed_welcome};
use crate::support::frames::{FULL, FarEnd, attributes, blake3_of, bytes_of, data, hello, play_hurried};
use crate::support::processes::{Ended, LIMIT, complete, names};
use crate::support::{BACKENDS, Remote, SFTP, Sshd, at, haul};
use haul_engine::wire::decode::Role;
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, Preserve};
use haul_engine::wire::seal::{LENGTH_BYTES, Seals, Secret};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SECRET: [u8; 32] = [0x5e; 32];
const NONCE: Hash = [0xcc; 32];
const WAYS: [&str; 2] = ["direct", "auto"];
const NOTICE: &str = "haul: no direct connection: ";
/// No more than two seconds of silence, login and handshake, four of a stall, three without an answer; what broke is not
/// opened again.
const HURRY: &str = "2000,2000,2000,4000,3000,0";

fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    BACKENDS.into_iter().flat_map(|backend| WAYS.map(|way| (backend, way)))
}

fn secret() -> Secret {
    Secret::from_bytes(SECRET)
}

/// One that seals nothing else in this process: under the base protocol it is the key.
fn fresh() -> Secret {
    static LAST: AtomicU64 = AtomicU64::new(0);
    Secret::from_bytes(blake3_of(&LAST.fetch_add(1, Ordering::Relaxed).to_le_bytes()))
}

/// What one run saw and left.
struct Scene {
    dir: tempfile::TempDir,
    ended: Ended,
}

impl Scene {
    fn target(&self) -> PathBuf {
        self.dir.path().join("to").join("f")
    }

    /// Fails unless the run failed with one line that says this, the old file is what it was, and nothing else is there.
    #[track_caller]
    fn assert_refused(&self, codes: &[i32], words: &str) {
        assert!(self.ended.status.code().is_some_and(|code| codes.contains(&code)), "{:?}", self.ended);
        let lines: Vec<&str> = self.ended.lines().into_iter().filter(|line| !line.starts_with("hint: ")).collect();
        assert!(matches!(&lines[..], [said] if said.starts_with("haul: ") && said.contains(words)), "{lines:?}");
        assert!(!self.ended.stderr.chars().any(|c| c.is_control() && c != '\n'), "{:?}", self.ended.stderr);
        self.assert_untouched();
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(fs::read(self.target()).unwrap(), b"old", "{:?}", self.ended);
        assert_eq!(names(self.target().parent().unwrap()), ["f"]);
    }

    /// Fails unless the file came over ssh, with one line of why.
    #[track_caller]
    fn assert_over_ssh(&self, words: &str) {
        self.ended.assert_exit(0);
        let notices: Vec<&str> = self.ended.lines().into_iter().filter(|line| line.starts_with(NOTICE)).collect();
        assert!(matches!(&notices[..], [notice] if notice.contains(words)), "{:?}", self.ended);
        assert!(!self.ended.stderr.chars().any(|c| c.is_control() && c != '\n'), "{:?}", self.ended.stderr);
        assert_eq!(fs::read(self.target()).unwrap(), b"new");
        assert_eq!(names(self.target().parent().unwrap()), ["f"]);
    }
}

/// Runs `haul copy --direct=WAY far:f DIR/to/f` with an old file there and `act` as the far end.
fn download(backend: &str, way: &str, act: impl FnOnce(&mut FarEnd) + Send) -> Scene {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let target = dir.path().join("to").join("f");
    fs::create_dir(target.parent().unwrap()).unwrap();
    fs::write(&target, "old").unwrap();
    let ended = run(backend, way, "far:f".into(), target.into(), act);
    Scene { dir, ended }
}

pub(crate) fn run(
    backend: &str,
    way: &str,
    source: OsString,
    target: OsString,
    act: impl FnOnce(&mut FarEnd) + Send,
) -> Ended {
    let words: Vec<OsString> = vec!["copy".into(), "--compress=none".into(), format!("--direct={way}").into()];
    let args = |pipes: &crate::support::Pipes| words.into_iter().chain(pipes.args()).chain([source, target]).collect();
    play_hurried(backend, HURRY, LIMIT, args, act)
}

/// Greets, is asked for a direct connection, and answers with this.
#[track_caller]
pub(crate) fn offer(far: &mut FarEnd, dialect: Dialect, answer: &Frame) {
    far.greet_with(dialect, Caps::DIRECT_TCP);
    assert_eq!(far.request(), Frame::OpenDirectChannel);
    far.send(answer);
}

fn ready(address: &str) -> Frame {
    Frame::DirectChannelReady { address: address.as_bytes().to_vec(), key: SECRET }
}

/// Sees that nothing is asked for over the control session but what stands at a path, until it ends. Nobody answers.
#[track_caller]
pub(crate) fn says_no_more(far: &mut FarEnd) {
    while let Some(request) = far.next_request() {
        assert!(matches!(request, Frame::Lookup { .. }), "asked over ssh: {request:?}");
    }
}

/// Serves the file over the control session to a client that may ask there, else sees that it does not.
#[track_caller]
fn go_on(far: &mut FarEnd, way: &str) {
    if way == "direct" {
        return says_no_more(far);
    }
    far.looked_up(Some(attributes(Kind::Regular, 3)));
    assert!(matches!(far.request(), Frame::Get { .. }));
    if far.dialect.ext.has(Ext::META) {
        far.send(&Frame::Meta { attributes: attributes(Kind::Regular, 3), preserve: Preserve::default() });
    }
    far.send_bytes(&data(b"new"));
    far.send(&Frame::Ok { hash: Some(blake3_of(b"new")) });
    far.drain();
}

/// A port at which nobody listens, for as long as this lives.
pub(crate) fn refusing() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    (socket, address)
}

#[test]
fn an_address_at_which_nobody_is_met_is_said_and_ssh_taken_only_where_it_may_be() {
    let (_kept, refusing) = refusing();
    let refusing = refusing.to_string();
    let table = [
        ("", "no address"),
        ("nonsense", "no address"),
        ("localhost:22", "no address"),
        ("127.0.0.1", "no address"),
        ("127.0.0.1:65536", "no address"),
        ("127.0.0.1:22\n", "no address"),
        ("\u{1b}[31m127.0.0.1:22", "no address"),
        ("[::1", "no address"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("255.255.255.255:1", "255.255.255.255:1"),
        (&refusing, "refused"),
    ];
    for ((backend, way), (address, words)) in cases().flat_map(|case| table.map(|row| (case, row))) {
        for dialect in [KEYED, FULL, Dialect::BASE] {
            eprintln!("{backend}, {way}, {address:?}, {dialect:?}");
            let scene = download(backend, way, |far| {
                offer(far, dialect, &ready(address));
                go_on(far, way);
            });
            match way {
                "direct" => scene.assert_refused(&[10], words),
                _ => scene.assert_over_ssh(words),
            }
        }
    }
}

#[test]
fn a_server_that_does_not_want_to_be_met_is_used_over_ssh_only_where_it_may_be() {
    let refusals = ["not today", "\u{1b}]0;title\u{7}no"];
    for (backend, way) in cases() {
        for message in refusals {
            let error = Frame::Error { message: message.into(), code: ErrorCode(0) };
            let scene = download(backend, way, |far| {
                offer(far, KEYED, &error);
                go_on(far, way);
            });
            let words = if message.contains("today") { message } else { "no" };
            match way {
                "direct" => scene.assert_refused(&[10], words),
                _ => scene.assert_over_ssh(words),
            }
        }
        for dialect in [KEYED, FULL, Dialect::BASE] {
            let scene = download(backend, way, |far| {
                far.greet_with(dialect, Caps::NONE);
                go_on(far, way);
            });
            match way {
                "direct" => scene.assert_refused(&[10], "does not offer any"),
                _ => scene.assert_over_ssh("does not offer any"),
            }
        }
    }
}

#[test]
fn where_there_is_no_haul_nothing_goes_through_sftp_that_shall_be_direct() {
    for backend in BACKENDS {
        let Some(sshd) = Sshd::bare(backend, SFTP) else { return };
        let (source, target) = (sshd.dir().join("source"), sshd.dir().join("target"));
        fs::write(&source, "new").unwrap();
        for (way, code) in [("direct", 5), ("auto", 0)] {
            let mut args: Vec<OsString> = vec!["copy".into(), format!("--direct={way}").into()];
            args.extend(sshd.args());
            args.extend([source.clone().into(), at(&sshd, &target)]);
            let ended = complete(&mut haul(backend, args));
            ended.assert_exit(code);
            assert_eq!(target.exists(), way == "auto", "{ended:?}");
        }
    }
}

#[test]
fn a_server_that_answers_something_else_or_nothing_is_given_up() {
    for (backend, way) in cases() {
        for other in [Frame::Ok { hash: None }, Frame::AuthChallenge { nonce: NONCE }] {
            let scene = download(backend, way, |far| {
                offer(far, KEYED, &other);
                assert_eq!(far.next_request(), None);
            });
            scene.assert_refused(&[2], "protocol error");
        }
        let scene = download(backend, way, |far| {
            far.greet_with(KEYED, Caps::DIRECT_TCP);
            assert_eq!(far.request(), Frame::OpenDirectChannel);
            assert_eq!(far.next_request(), None);
        });
        scene.assert_refused(&[35], "no direct connection: the server did not answer in time");
    }
}

/// A port that takes no connection and refuses none, as behind a filter, for as long as this lives.
pub(crate) fn filtered() -> (OwnedFd, Vec<OwnedFd>, SocketAddr) {
    let (listener, address) = refusing();
    rustix::net::listen(&listener, 0).unwrap();
    let begin = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
        let _ = rustix::net::connect(&socket, &address);
        socket
    };
    let filling = (0..8).map(|_| begin()).collect();
    (listener, filling, address)
}

#[test]
fn a_port_behind_a_filter_is_given_up_in_time() {
    for (backend, way) in cases() {
        let (_listener, _filling, address) = filtered();
        let scene = download(backend, way, |far| {
            offer(far, KEYED, &ready(&address.to_string()));
            go_on(far, way);
        });
        match way {
            "direct" => scene.assert_refused(&[35], "does not answer: is its port filtered?"),
            _ => scene.assert_over_ssh("does not answer: is its port filtered?"),
        }
    }
}

/// What a server does on the connection, and how the client takes it.
struct Act {
    name: String,
    dialect: Dialect,
    play: Box<dyn Fn(&mut TcpStream) + Send + Sync>,
    codes: &'static [i32],
    words: &'static str,
}

/// Takes the client's connection, if it comes.
pub(crate) fn taken(far: &FarEnd, listener: &TcpListener) -> Option<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    while !far.is_alone() {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

pub(crate) fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Plays this for the client, which must say nothing but its greeting, and nothing more over ssh.
#[track_caller]
fn perform(backend: &str, way: &str, act: &Act) {
    eprintln!("{backend}, {way}: {}", act.name);
    let (listener, address) = listener();
    let scene = download(backend, way, |far| {
        offer(far, act.dialect, &ready(&address));
        let mut stream = taken(far, &listener).expect("the client connects");
        (act.play)(&mut stream);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        // At most what was not taken of its greeting: AuthHello and Hello, or KeyedHello.
        assert!(said.len() <= KEYED_HELLO_BYTES, "{}: {said:?}", act.name);
        says_no_more(far);
        drop(stream);
    });
    scene.assert_refused(act.codes, act.words);
}

fn challenge() -> Vec<u8> {
    bytes_of(&Frame::AuthChallenge { nonce: NONCE }, Dialect::BASE)
}

const PROOF: &str = "the server cannot prove that it is the one that ssh reached";
const NO: &str = "no direct connection: ";

/// Answers KeyedHello with KeyedWelcome, changed; `by` is the secret that it is proved with.
fn keyed(name: &str, by: [u8; 32], granted: Granted, words: &'static str, change: fn(&mut [u8])) -> Act {
    let play = move |stream: &mut TcpStream| {
        stream.write_all(&challenge()).unwrap();
        let (mut welcome, _) = if by == SECRET {
            keyed_welcome(stream, &secret(), &NONCE, granted)
        } else {
            let _ = stream.read_exact(&mut [0; KEYED_HELLO_BYTES]);
            let mac = [1; 32];
            let Granted { caps, ext } = granted;
            let seals = Seals::keyed(&secret(), b"", Role::Server);
            (bytes_of(&Frame::KeyedWelcome { caps, ext, mac }, KEYED), seals)
        };
        change(&mut welcome);
        stream.write_all(&welcome).unwrap();
    };
    Act { name: name.to_string(), dialect: KEYED, play: Box::new(play), codes: &[10], words }
}

/// Says this in place of everything that is due after the challenge.
fn answered(name: &str, dialect: Dialect, answer: Vec<u8>, words: &'static str) -> Act {
    let play = move |stream: &mut TcpStream| {
        stream.write_all(&challenge()).unwrap();
        let _ = stream.read_exact(&mut [0; 37]);
        let _ = stream.write_all(&answer);
        let _ = stream.shutdown(Shutdown::Write);
    };
    Act { name: name.to_string(), dialect, play: Box::new(play), codes: &[10], words }
}

fn first(name: &str, answer: Vec<u8>, words: &'static str) -> Act {
    let play = move |stream: &mut TcpStream| {
        let _ = stream.write_all(&answer);
        let _ = stream.shutdown(Shutdown::Write);
    };
    Act { name: name.to_string(), dialect: KEYED, play: Box::new(play), codes: &[10], words }
}

const ALL: Granted = Granted { caps: Caps::AEAD, ext: Ext::ALL };

fn keyed_acts() -> Vec<Act> {
    let welcome = |caps: u8, ext| bytes_of(&Frame::Welcome { version: 1, caps: Caps(caps), ext }, Dialect::BASE);
    let error = bytes_of(&Frame::Error { message: b"\x1b[31mgo away".to_vec(), code: ErrorCode(0) }, KEYED);
    let fake = Frame::KeyedWelcome { caps: Caps::AEAD, ext: Ext::ALL, mac: [0; 32] };
    vec![
        keyed("another secret", [1; 32], ALL, PROOF, |_| {}),
        keyed("a proof with a wrong bit", SECRET, ALL, PROOF, |welcome| *welcome.last_mut().unwrap() ^= 0x80),
        keyed("seal stripped on the way", SECRET, ALL, PROOF, |welcome| welcome[5] = 0),
        keyed("capabilities added on the way", SECRET, ALL, PROOF, |welcome| welcome[5] |= 1),
        keyed("extensions stripped on the way", SECRET, ALL, PROOF, |welcome| welcome[6] &= !8),
        keyed("all extensions stripped on the way", SECRET, ALL, PROOF, |welcome| welcome[6..10].fill(0)),
        keyed("extensions added on the way", SECRET, ALL, PROOF, |welcome| welcome[9] = 1),
        keyed("not sealed, and proved", SECRET, Granted { caps: Caps::NONE, ..ALL }, "does not encrypt", |_| {}),
        answered("Welcome of the base protocol", KEYED, welcome(0x40, None), NO),
        answered("Welcome without seal", KEYED, welcome(0, Some(Ext::ALL)), NO),
        answered("an error", KEYED, error.clone(), "go away"),
        answered("another challenge", KEYED, challenge(), NO),
        answered("content", KEYED, data(b"new"), NO),
        answered("a greeting", KEYED, bytes_of(&hello(FULL), Dialect::BASE), NO),
        answered("zeros", KEYED, vec![0; 100], NO),
        answered("ones", KEYED, vec![0xff; 100], NO),
        answered("the end", KEYED, Vec::new(), NO),
        first("an error at once", error, "go away"),
        first("KeyedWelcome at once", bytes_of(&fake, KEYED), NO),
        first("Welcome at once", welcome(0x40, None), NO),
        first("the end at once", Vec::new(), NO),
        first("text", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), NO),
    ]
}

fn base_acts() -> Vec<Act> {
    let welcome = |caps: u8, ext| bytes_of(&Frame::Welcome { version: 1, caps: Caps(caps), ext }, Dialect::BASE);
    let error = bytes_of(&Frame::Error { message: b"go away".to_vec(), code: ErrorCode(0) }, Dialect::BASE);
    let fake = Frame::KeyedWelcome { caps: Caps::AEAD, ext: Ext::ALL, mac: [0; 32] };
    let mut acts = Vec::new();
    for dialect in [FULL, Dialect::BASE] {
        acts.extend([
            answered("Welcome without seal", dialect, welcome(0, None), "does not encrypt"),
            answered("Welcome with all but the seal", dialect, welcome(0xbf, Some(Ext::ALL)), "does not encrypt"),
            answered("KEYED's answer", dialect, bytes_of(&fake, KEYED), NO),
            answered("an error", dialect, error.clone(), "go away"),
            answered("content", dialect, data(b"new"), NO),
            answered("the end", dialect, Vec::new(), NO),
        ]);
    }
    acts
}

#[test]
fn whoever_cannot_prove_that_ssh_reached_him_is_told_nothing() {
    for (backend, way) in cases() {
        keyed_acts().iter().chain(&base_acts()).for_each(|act| perform(backend, way, act));
    }
}

#[test]
fn a_server_that_goes_or_stops_at_any_byte_of_the_handshake_is_given_up() {
    for (backend, way) in cases() {
        let whole = bytes_of(&Frame::KeyedWelcome { caps: Caps::AEAD, ext: Ext::ALL, mac: [0; 32] }, KEYED).len();
        for len in 0..CHALLENGE_BYTES {
            perform(backend, way, &first(&format!("{len} bytes"), challenge()[..len].to_vec(), NO));
        }
        for len in (0..whole).step_by(3).chain([whole - 1]) {
            let play = move |stream: &mut TcpStream| {
                stream.write_all(&challenge()).unwrap();
                let (welcome, _) = keyed_welcome(stream, &secret(), &NONCE, ALL);
                stream.write_all(&welcome[..len]).unwrap();
                let _ = stream.shutdown(Shutdown::Write);
            };
            let name = format!("{len} bytes of Welcome");
            perform(backend, way, &Act { name, dialect: KEYED, play: Box::new(play), codes: &[10], words: NO });
        }
        // And says nothing more.
        for (dialect, len) in [(KEYED, 0), (KEYED, 20), (KEYED, CHALLENGE_BYTES), (FULL, CHALLENGE_BYTES)] {
            let play = move |stream: &mut TcpStream| stream.write_all(&challenge()[..len]).unwrap();
            let words = "no direct connection: the server did not answer in time";
            let name = format!("silent behind {len} bytes");
            perform(backend, way, &Act { name, dialect, play: Box::new(play), codes: &[35], words });
        }
    }
}

#[test]
fn a_port_that_is_never_accepted_from_counts_as_a_connection() {
    for (backend, way) in cases() {
        let (listener, address) = listener();
        let scene = download(backend, way, |far| {
            offer(far, KEYED, &ready(&address));
            says_no_more(far);
        });
        scene.assert_refused(&[35], "no direct connection: the server did not answer in time");
        drop(listener);
    }
}

/// What may be done to the records of a download without the key.
type Attack = fn(&mut Vec<Vec<u8>>);

/// Of the records: Meta, where there is one, and Data; Data; Data; Ok; the end of the stream.
const ATTACKS: [(&str, Attack); 13] = [
    ("a bit of the first", |records| records[0][LENGTH_BYTES + 10] ^= 1),
    ("a bit of the content", |records| records[1][LENGTH_BYTES + 500] ^= 4),
    ("a bit of the tag", |records| *records[1].last_mut().unwrap() ^= 1),
    ("a bit of the length", |records| records[1][0] ^= 1),
    ("a bit of the hash", |records| records[3][LENGTH_BYTES + 10] ^= 1),
    ("reordered", |records| records.swap(1, 2)),
    ("replayed", |records| records.insert(2, records[1].clone())),
    ("dropped", |records| _ = records.remove(1)),
    ("the last one too soon", |records| records.swap(1, 3)),
    ("cut between records", |records| records.truncate(2)),
    ("cut before the hash", |records| records.truncate(3)),
    ("cut within a record", |records| {
        records.truncate(3);
        records[2].truncate(600);
    }),
    ("bare frames", |records| records[1] = data(&[7; 1000])),
];

#[test]
fn a_download_that_is_tampered_with_never_gets_its_name() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|b| [KEYED, Dialect::BASE].map(|dialect| (b, dialect))) {
        let attacks = ATTACKS.into_iter().flat_map(|attack| [1000, 100_000].map(|part| (attack, part)));
        for ((name, attack), part) in attacks {
            eprintln!("{backend}, {dialect:?}, parts of {part}: {name}");
            let scene = tampered(backend, "direct", dialect, (attack, part));
            scene.assert_untouched();
            assert!(matches!(scene.ended.status.code(), Some(2 | 12 | 23)), "{:?}", scene.ended);
            assert_eq!(scene.ended.lines().len(), 1, "{:?}", scene.ended);
        }
    }
}

#[test]
fn what_is_tampered_with_between_two_hauls_comes_over_ssh_where_it_may() {
    for backend in BACKENDS {
        let (name, attack) = ATTACKS[1];
        eprintln!("{backend}: {name}");
        let scene = tampered(backend, "auto", KEYED, (attack, 100_000));
        scene.ended.assert_exit(0);
        assert!(scene.ended.stderr.contains("; going on over ssh\n"), "{:?}", scene.ended);
        assert!(fs::read(scene.target()).unwrap() == content(100_000));
        assert_eq!(names(scene.target().parent().unwrap()), ["f"]);
    }
}

/// What is downloaded in these, in three parts of so many bytes.
fn content(part: usize) -> Vec<u8> {
    vec![7; 3 * part]
}

/// A download whose records are changed on the way. Over ssh the file is what it should be.
fn tampered(backend: &str, way: &str, dialect: Dialect, (attack, part): (Attack, usize)) -> Scene {
    let (listener, address) = listener();
    let secret = fresh();
    download(backend, way, |far| {
        let (address, key) = (address.into_bytes(), *secret.expose());
        offer(far, dialect, &Frame::DirectChannelReady { address, key });
        if dialect == KEYED {
            // Asked there, while the connection comes about.
            far.looked_up(Some(attributes(Kind::Regular, 3 * part as u64)));
        }
        let mut stream = taken(far, &listener).expect("the client connects");
        stream.write_all(&challenge()).unwrap();
        let mut server = welcomed(stream, dialect, &secret);
        serve(&mut server, &[7; 3].map(|byte| vec![byte; part]), attack);
        if way == "direct" {
            return says_no_more(far);
        }
        assert!(matches!(far.request(), Frame::Get { .. }));
        let attributes = attributes(Kind::Regular, 3 * part as u64);
        far.send(&Frame::Meta { attributes, preserve: Preserve::default() });
        far.send_bytes(&data(&content(part)));
        far.send(&Frame::Ok { hash: Some(blake3_of(&content(part))) });
        far.drain();
    })
}

/// Lets the client in.
fn welcomed(mut stream: TcpStream, dialect: Dialect, secret: &Secret) -> SealedEnd {
    if dialect == KEYED {
        let (welcome, seals) = keyed_welcome(&mut stream, secret, &NONCE, ALL);
        stream.write_all(&welcome).unwrap();
        return SealedEnd::new(stream, seals, Role::Server, Dialect { version: 1, ext: Ext::ALL });
    }
    // AuthHello, and a Hello that may have extensions.
    let mut head = [0; 37 + 4];
    stream.read_exact(&mut head).unwrap();
    let mut rest = vec![0; usize::from(head[37])];
    stream.read_exact(&mut rest).unwrap();
    assert!(rest[2] & Caps::AEAD.0 != 0, "a Hello that would be sealed");
    let welcome = Frame::Welcome { version: 1, caps: Caps::AEAD, ext: None };
    stream.write_all(&bytes_of(&welcome, Dialect::BASE)).unwrap();
    SealedEnd::new(stream, Seals::base(secret, Role::Server), Role::Server, Dialect::BASE)
}

/// Answers what the client asks about the file and for it, the records of the answer changed.
fn serve(server: &mut SealedEnd, parts: &[Vec<u8>; 3], attack: Attack) {
    use crate::support::frames::Received;
    let content = parts.concat();
    let attributes = attributes(Kind::Regular, content.len() as u64);
    if server.dialect.ext == Ext::NONE {
        let asked = server.input.next();
        assert!(matches!(asked, Some(Received::Frame(Frame::Stat { .. }))), "{asked:?}");
        server.send(&Frame::StatResponse { size: content.len() as u64, mtime: 0, is_dir: false });
    }
    let asked = server.input.next();
    assert!(matches!(asked, Some(Received::Frame(Frame::Get { .. }))), "{asked:?}");
    let dialect = server.dialect;
    let mut frames: Vec<Vec<u8>> = parts.iter().map(|part| data(part)).collect();
    if dialect.ext.has(Ext::META) {
        let meta = Frame::Meta { attributes, preserve: Preserve::default() };
        frames[0] = [bytes_of(&meta, dialect), frames[0].clone()].concat();
    }
    frames.push(bytes_of(&Frame::Ok { hash: Some(blake3_of(&content)) }, dialect));
    if dialect.ext != Ext::NONE {
        frames.push(Vec::new());
    }
    let mut records: Vec<Vec<u8>> = frames.iter().map(|frame| server.record(frame)).collect();
    attack(&mut records);
    records.iter().for_each(|record| server.send_raw(record));
    server.cut();
    // The client goes at once, whatever it still had to say.
    let mut rest = Vec::new();
    let _ = server.stream.read_to_end(&mut rest);
}
