//! Direct connections that are not encrypted: only where both ends are told so, with the proofs that others have, the user
//! warned, and the file sent by the kernel.

use crate::options::{calls, can_trace, threads, traced, traced_far_end};
use crate::support::daemon::Listening;
use crate::support::direct::{
    Asked, CHALLENGE_BYTES, Granted, Guest, KEYED, KEYED_HELLO_BYTES, KEYED_WELCOME_BYTES, Place, keyed_welcome,
};
use crate::support::frames::{FarEnd, Serving, attributes, bytes_of, play_hurried};
use crate::support::kept::Kept;
use crate::support::processes::{self, Ended, LIMIT, assert_nobody_at_home, complete, names};
use crate::support::routes::{Route, assert_same_tree, json_lines, of_type};
use crate::support::transfer;
use crate::support::{BACKENDS, Pipes, Remote, Sshd, assert_exit, at, binary, hash_of, haul, random_file, trees};
use haul_engine::wire::decode::Role;
use haul_engine::wire::frame::{Caps, Dialect, Ext, Frame, Hash, Kind};
use haul_engine::wire::seal::Secret;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const PLAINTEXT: [&str; 2] = ["--direct=direct", "--plaintext"];
const WARNING: &str = "haul: warning: content goes UNENCRYPTED to 127.0.0.1:";
/// What two hauls may agree on, and that it is not sealed.
const PLAIN: Ext = Ext(Ext::ALL.0 | Ext::PLAIN.0);
const SECRET: [u8; 32] = [0x5e; 32];
const NONCE: Hash = [0xcc; 32];
/// What broke is not opened again.
const HURRY: &str = "2000,2000,2000,4000,3000,0";
const SIZE: usize = 300_000;
const MIB: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Up,
    Down,
}

fn ways() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

#[test]
fn content_arrives_whole_and_the_user_is_warned_once() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let files = trees::files_of_sizes(&source, &trees::SIZES);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for route in Route::over_pipes() {
        for flags in [&["--compress=none"][..], &["--compress=zstd"], &["--fast"], &["-C"], &["--connections=3"]] {
            for quiet in [false, true] {
                let target = tempfile::tempdir().unwrap();
                let quiet = if quiet { &["-q", "--json"][..] } else { &["--json"] };
                let output = route.copied(&[&PLAINTEXT[..], quiet, flags].concat(), &files, target.path());
                assert_same_tree(target.path(), &source);
                let lines = json_lines(&output);
                let direct = of_type(&lines, "direct");
                assert!(!direct.is_empty() && direct.iter().all(|line| line["cipher"] == "none"), "{direct:?}");
                for line in of_type(&lines, "file") {
                    let hash = hash_of(&source.join(line["bytes"].to_string()));
                    assert!(line["blake3"] == *hash || (flags == ["--fast"] && line["blake3"].is_null()), "{line}");
                }
                let said = String::from_utf8(output.stderr).unwrap();
                let warnings = if quiet.contains(&"-q") { 0 } else { 1 };
                assert_eq!((said.matches(WARNING).count(), said.lines().count()), (warnings, warnings), "{said}");
            }
        }
    }
}

#[test]
fn a_sealed_connection_says_so_and_warns_of_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::write(&source, "x").unwrap();
    for route in Route::over_pipes() {
        let output = route.copied(&["--direct=direct", "--json"], &[&source], &target);
        assert_eq!(of_type(&json_lines(&output), "direct")[0]["cipher"], "AES-256-GCM");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let output = route.copied(&[&PLAINTEXT[..], &["-v"]].concat(), &[&source], &target);
        assert!(String::from_utf8_lossy(&output.stderr).contains(", not encrypted\n"));
    }
}

#[test]
fn questions_can_be_asked_in_plaintext() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        for (command, path) in [("ls", dir.path().to_path_buf()), ("hash", dir.path().join("file"))] {
            for quiet in [&[][..], &["-q"]] {
                let mut haul = haul(backend, [command].iter().chain(&PLAINTEXT).chain(quiet));
                let ended = complete(haul.args(pipes.args()).arg(at(&pipes, &path)));
                ended.assert_exit(0);
                assert!(ended.stdout.contains("file"), "{ended:?}");
                assert_eq!(ended.stderr.contains(WARNING), quiet.is_empty(), "{ended:?}");
                assert_eq!(ended.lines().len(), usize::from(quiet.is_empty()), "{ended:?}");
            }
        }
    }
}

#[test]
fn through_a_real_sshd_the_flag_reaches_the_server() {
    for backend in BACKENDS {
        let Some(sshd) = Sshd::start(backend) else { return };
        let (source, target) = (sshd.dir().join("source"), sshd.dir().join("target"));
        random_file(&source, SIZE, 2);
        for (way, flags) in [Way::Up, Way::Down].into_iter().flat_map(|way| [&[][..], &["--fast"]].map(|f| (way, f))) {
            let mut haul = haul(backend, ["copy", "--json"].iter().chain(&PLAINTEXT).chain(flags));
            haul.args(sshd.args()).args(match way {
                Way::Up => [source.clone().into(), at(&sshd, &target)],
                Way::Down => [at(&sshd, &source), target.clone().into()],
            });
            let ended = complete(&mut haul);
            ended.assert_exit(0);
            assert!(ended.stdout.contains("\"cipher\":\"none\"") && ended.stderr.contains(WARNING), "{ended:?}");
            assert_eq!(hash_of(&target), hash_of(&source));
            fs::remove_file(&target).unwrap();
        }
    }
}

/// `haul copy FLAGS` of a new file onto an old one at this far end.
fn copy(backend: &str, pipes: &Pipes, way: Way, flags: &[&str], forbidden: bool) -> (Ended, bool) {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::write(&source, "new").unwrap();
    fs::write(&target, "old").unwrap();
    let mut args: Vec<OsString> = ["copy"].iter().chain(flags).map(OsString::from).collect();
    args.extend(pipes.args());
    args.extend(match way {
        Way::Up => [source.into(), at(pipes, &target)],
        Way::Down => [at(pipes, &source), target.clone().into()],
    });
    let mut command = haul(backend, args);
    if forbidden {
        command.env("HAUL_PLAINTEXT", "never");
    }
    let ended = complete(&mut command);
    let content = fs::read(&target).unwrap();
    assert!(content == b"new" || content == b"old");
    (ended, content == b"new")
}

/// A far end whose `haul serve` is started by this line.
fn far_end(backend: &str, line: &str) -> (tempfile::TempDir, Pipes) {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let program = dir.path().join("program");
    let text =
        format!("#!/bin/sh\nhaul='{}'\n[ \"$1\" = serve ] || exec \"$haul\" \"$@\"\n{line}\n", binary().display());
    processes::script(&program, &text);
    let pipes = Pipes::with_program(backend, &program);
    (dir, pipes)
}

#[test]
fn it_takes_the_word_of_both_ends() {
    let refused =
        "haul: no direct connection: the server does not allow plaintext: it must be `haul serve --allow-plaintext`";
    for (backend, way) in ways() {
        let (_kept, allowed) = far_end(backend, "exec \"$haul\" \"$@\"");
        let (_kept, unaware) = far_end(backend, "exec \"$haul\" serve --root /");
        let (_kept, forbidden) = far_end(backend, "HAUL_PLAINTEXT=never exec \"$haul\" \"$@\"");
        let base = Pipes::with_programs(backend, &[("bcmr", binary())]);
        for direct in ["--direct=direct", "--direct=auto"] {
            let flags = [direct, "--plaintext"];
            let (ended, copied) = copy(backend, &allowed, way, &flags, false);
            assert!(ended.status.success() && copied, "{ended:?}");
            for (pipes, words) in
                [(&unaware, refused), (&forbidden, refused), (&base, "plaintext is only for a haul at the other end")]
            {
                let (ended, copied) = copy(backend, pipes, way, &flags, false);
                ended.assert_exit(10);
                assert!(ended.lines().len() == 1 && ended.stderr.contains(words), "{ended:?}");
                assert!(!copied);
            }
            // Whoever keeps this machine has said no.
            let (ended, copied) = copy(backend, &allowed, way, &flags, true);
            ended.assert_exit(1);
            assert!(ended.lines().len() == 1 && ended.stderr.contains("HAUL_PLAINTEXT=never"), "{ended:?}");
            assert!(!copied);
            // Where nobody asks for it nothing is forbidden.
            for pipes in [&allowed, &unaware, &forbidden, &base] {
                let (ended, copied) = copy(backend, pipes, way, &[direct], pipes.dir() == forbidden.dir());
                assert!(ended.status.success() && copied && !ended.stderr.contains("UNENCRYPTED"), "{ended:?}");
            }
        }
        for flags in [&["--plaintext"][..], &["--plaintext", "--direct=ssh"]] {
            let (ended, copied) = copy(backend, &allowed, way, flags, false);
            ended.assert_exit(1);
            assert!(ended.stderr.contains("\nhint: say --direct=direct, or --direct=auto"), "{ended:?}");
            assert!(!copied);
        }
    }
}

#[test]
fn auto_goes_on_over_ssh_where_no_connection_comes_about() {
    for (backend, way) in ways() {
        // An address of nobody's (RFC 5737), so nothing can listen there.
        let (_kept, far) = far_end(backend, "SSH_CONNECTION='192.0.2.1 1 192.0.2.7 22' exec \"$haul\" \"$@\"");
        let (ended, copied) = copy(backend, &far, way, &["--direct=auto", "--plaintext"], false);
        assert!(ended.status.success() && copied, "{ended:?}");
        assert!(ended.stderr.contains("going on over ssh") && !ended.stderr.contains("UNENCRYPTED"), "{ended:?}");
    }
}

/// What somebody in between does to the bytes of one direction.
#[derive(Clone, Copy, Debug)]
enum Meddle {
    Nothing,
    /// These bits of the byte there are changed.
    Flip(Way, usize, u8),
    /// Nothing goes on behind so many bytes.
    Cut(Way, usize),
}

/// What went through: up, and down.
type Captured = Arc<Mutex<[Vec<u8>; 2]>>;

fn hand_on(mut from: TcpStream, mut to: TcpStream, way: Way, meddle: Meddle, captured: &Captured) {
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let mut left = count;
        match meddle {
            Meddle::Flip(which, at, bits) if which == way && (passed..passed + count).contains(&at) => {
                buffer[at - passed] ^= bits;
            }
            Meddle::Cut(which, at) if which == way => left = count.min(at.saturating_sub(passed)),
            _ => {}
        }
        captured.lock().unwrap()[way as usize].extend_from_slice(&buffer[..left]);
        passed += count;
        if to.write_all(&buffer[..left]).is_err() || left < count {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    let _ = to.shutdown(if matches!(meddle, Meddle::Cut(..)) { Shutdown::Both } else { Shutdown::Write });
}

/// What one run through somebody in between saw and left.
struct Scene {
    ended: Ended,
    /// Under the final name, beside which there is nothing.
    left: Vec<u8>,
    captured: [Vec<u8>; 2],
}

impl Scene {
    /// Fails unless the run failed with one line that says this, and the old file is what it was.
    #[track_caller]
    fn assert_refused(&self, codes: &[i32], words: &str) {
        assert!(self.ended.status.code().is_some_and(|code| codes.contains(&code)), "{:?}", self.ended);
        let lines: Vec<&str> = self.ended.lines().into_iter().filter(|line| !line.starts_with(WARNING)).collect();
        assert!(matches!(&lines[..], [said] if said.starts_with("haul: ") && said.contains(words)), "{lines:?}");
        assert_eq!(self.left, b"old", "{:?}", self.ended);
    }
}

/// Copies this over an old file, to or from a real server that allows plaintext, through somebody in between.
fn in_between(backend: &str, flags: &[&str], way: Way, content: &[u8], meddle: Meddle) -> Scene {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    fs::create_dir(dir.path().join("near")).unwrap();
    let mut serving = Serving::allowing_plaintext(backend);
    serving.agree(KEYED, Caps::DIRECT_TCP);
    let (near, far) = (dir.path().join("near/f"), serving.root().join("f"));
    let (from, to) = if way == Way::Up { (&near, &far) } else { (&far, &near) };
    fs::write(from, content).unwrap();
    fs::write(to, "old").unwrap();
    let captured = Captured::default();
    let act = |end: &mut FarEnd| {
        let place = Place::open(&mut serving);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        offer(end, &listener, place.secret);
        end.looked_up(Some(attributes(Kind::Regular, fs::metadata(&far).unwrap().len())));
        let client = taken(end, &listener);
        let server = TcpStream::connect(place.address).unwrap();
        std::thread::scope(|scope| {
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            scope.spawn(|| hand_on(from, to, Way::Up, meddle, &captured));
            scope.spawn(|| hand_on(server, client, Way::Down, meddle, &captured));
        });
        end.drain();
    };
    let words = ["copy", "--compress=none"].iter().chain(flags).map(OsString::from);
    let paths: [OsString; 2] =
        if way == Way::Up { [near.clone().into(), "far:f".into()] } else { ["far:f".into(), near.clone().into()] };
    let args = |pipes: &Pipes| words.chain(pipes.args()).chain(paths).collect();
    let ended = play_hurried(backend, HURRY, LIMIT, args, act);
    serving.assert_usable();
    let served = serving.end();
    assert_eq!(served.code, Some(0));
    assert_eq!(names(to.parent().unwrap()), ["f"]);
    let captured = std::mem::take(&mut *captured.lock().unwrap());
    Scene { ended, left: fs::read(to).unwrap(), captured }
}

/// Agrees on a direct connection to this listener.
#[track_caller]
fn offer(far: &mut FarEnd, listener: &TcpListener, key: [u8; 32]) {
    far.greet_with(KEYED, Caps::DIRECT_TCP);
    assert_eq!(far.request(), Frame::OpenDirectChannel);
    let address = listener.local_addr().unwrap().to_string().into_bytes();
    far.send(&Frame::DirectChannelReady { address, key });
}

#[track_caller]
fn taken(far: &FarEnd, listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let mut stream = None;
    processes::wait_for(LIMIT, || {
        stream = listener.accept().ok();
        stream.is_some() || far.is_alone()
    });
    let (stream, _) = stream.expect("the client connects");
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Whether these bytes went past whoever listens.
fn is_seen(scene: &Scene, piece: &[u8]) -> bool {
    scene.captured.iter().any(|way| way.windows(piece.len()).any(|bytes| bytes == piece))
}

#[test]
fn only_in_plaintext_is_the_content_to_be_seen_on_the_way() {
    let line = "the same line again and again, which whoever listens may read or not\n";
    let text = line.repeat(SIZE / line.len());
    for (backend, way) in ways() {
        for fast in [&[][..], &["--fast"]] {
            let plain = in_between(backend, &[&PLAINTEXT[..], fast].concat(), way, text.as_bytes(), Meddle::Nothing);
            plain.ended.assert_exit(0);
            assert!(plain.left == text.as_bytes());
            assert!(is_seen(&plain, text.as_bytes().get(..60_000).unwrap()));
            let sealed = in_between(backend, &[&PLAINTEXT[..1], fast].concat(), way, text.as_bytes(), Meddle::Nothing);
            sealed.ended.assert_exit(0);
            assert!(sealed.left == text.as_bytes());
            assert!(line.as_bytes().chunks_exact(8).all(|piece| !is_seen(&sealed, piece)));
        }
    }
}

/// The same to or from a daemon that allows plaintext, over one connection.
fn past_a_daemon(backend: &str, flags: &[&str], way: Way, content: &[u8]) -> Scene {
    let daemon = Listening::with(backend, &["--allow-plaintext"], "127.0.0.1:0", true);
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (dir.path().join("f"), daemon.root().join("f"));
    let (from, to) = if way == Way::Up { (&near, &far) } else { (&far, &near) };
    fs::write(from, content).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let there = format!("haul://{}/f", listener.local_addr().unwrap());
    let (here, there) = (near.clone().into_os_string(), OsString::from(there));
    let (source, target) = if way == Way::Up { (here, there) } else { (there, here) };
    let captured = Captured::default();
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = listener.accept().unwrap().0;
            let server = TcpStream::connect(daemon.address).unwrap();
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            scope.spawn(|| hand_on(from, to, Way::Up, Meddle::Nothing, &captured));
            hand_on(server, client, Way::Down, Meddle::Nothing, &captured);
        });
        let flags = [&["--compress=none", "--connections=1"], flags].concat();
        let ended = daemon.copy(backend, &flags, source, target);
        // Whoever waits for a client that has refused to come waits no longer.
        drop(TcpStream::connect(listener.local_addr().unwrap()));
        ended
    });
    let captured = std::mem::take(&mut *captured.lock().unwrap());
    Scene { ended, left: fs::read(to).unwrap_or_default(), captured }
}

#[test]
fn a_daemon_leaves_unencrypted_who_asks_for_that_where_it_is_allowed() {
    let line = "the same line again and again, which whoever listens may read or not\n";
    let text = line.repeat(SIZE / line.len());
    for (backend, way) in ways() {
        for fast in [&[][..], &["--fast"]] {
            let plain = past_a_daemon(backend, &[&PLAINTEXT[1..], fast].concat(), way, text.as_bytes());
            plain.ended.assert_exit(0);
            assert!(plain.left == text.as_bytes());
            assert!(is_seen(&plain, text.as_bytes().get(..60_000).unwrap()));
            assert_eq!(plain.ended.stderr.matches(WARNING).count(), 1, "{:?}", plain.ended);
            let sealed = past_a_daemon(backend, fast, way, text.as_bytes());
            sealed.ended.assert_exit(0);
            assert!(sealed.left == text.as_bytes());
            assert!(line.as_bytes().chunks_exact(8).all(|piece| !is_seen(&sealed, piece)));
            assert!(!sealed.ended.stderr.contains("UNENCRYPTED"), "{:?}", sealed.ended);
        }
        let daemon = Listening::start(backend);
        let dir = tempfile::tempdir().unwrap();
        let near = dir.path().join("f");
        fs::write(&near, text.as_bytes()).unwrap();
        let ended = daemon.copy(backend, &["--plaintext"], near, daemon.at("f"));
        ended.assert_exit(10);
        assert!(ended.stderr.contains("the server does not allow plaintext"), "{ended:?}");
        assert!(!daemon.root().join("f").exists());
        daemon.end();
    }
}

#[test]
fn nobody_in_between_adds_or_takes_away_what_both_ends_have_said() {
    // The second byte of ext and the capabilities, in KeyedHello and KeyedWelcome.
    let places = [
        (Way::Up, KEYED_HELLO_BYTES - 32 - 3, Ext::PLAIN.0 >> 8),
        (Way::Up, KEYED_HELLO_BYTES - 32 - 5, u32::from(Caps::AEAD.0)),
        (Way::Down, CHALLENGE_BYTES + KEYED_WELCOME_BYTES - 32 - 3, Ext::PLAIN.0 >> 8),
        (Way::Down, CHALLENGE_BYTES + KEYED_WELCOME_BYTES - 32 - 5, u32::from(Caps::AEAD.0)),
    ];
    for (backend, way) in ways() {
        for flags in [&PLAINTEXT[..], &PLAINTEXT[..1]] {
            for (which, at, bits) in places {
                eprintln!("{backend}, {way:?}, {flags:?}, {which:?} {at}");
                let meddle = Meddle::Flip(which, at, u8::try_from(bits).unwrap());
                let scene = in_between(backend, flags, way, b"new", meddle);
                scene.assert_refused(&[10], "haul: no direct connection: ");
                assert!(!is_seen(&scene, b"new"));
            }
        }
    }
}

#[test]
fn a_stream_that_is_cut_off_publishes_nothing() {
    for (backend, way) in ways() {
        for fast in [&[][..], &["--fast"]] {
            let flags = [&PLAINTEXT[..], fast].concat();
            let content = vec![7; SIZE];
            let whole = in_between(backend, &flags, way, &content, Meddle::Nothing);
            whole.ended.assert_exit(0);
            let total = whole.captured[way as usize].len();
            let handshake = if way == Way::Up { KEYED_HELLO_BYTES } else { CHALLENGE_BYTES + KEYED_WELCOME_BYTES };
            for cut in [handshake, handshake + 3, 100_000, total - 80, total - 6, total - 5, total - 1] {
                eprintln!("{backend}, {way:?}, {fast:?}, {cut} of {total}");
                let scene = in_between(backend, &flags, way, &content, Meddle::Cut(way, cut));
                scene.assert_refused(&[10, 12], "");
            }
        }
    }
}

#[test]
fn what_is_changed_on_the_way_is_found_by_the_hash_and_without_one_only_where_it_is_read_again() {
    for (backend, way) in ways() {
        let content = vec![7; SIZE];
        let meddle = Meddle::Flip(way, SIZE / 2, 1);
        for (flags, codes, noticed) in
            [(&[][..], &[23][..], true), (&["--fast"], &[0], false), (&["--fast", "-V"], &[23], true)]
        {
            eprintln!("{backend}, {way:?}, {flags:?}");
            let scene = in_between(backend, &[&PLAINTEXT[..], flags].concat(), way, &content, meddle);
            assert!(scene.ended.status.code().is_some_and(|code| codes.contains(&code)), "{:?}", scene.ended);
            assert_eq!(scene.ended.stderr.contains("hash"), noticed, "{:?}", scene.ended);
            // With a hash it never gets its name; what is read again afterwards has it.
            assert_eq!(scene.left == b"old", flags.is_empty());
        }
    }
}

#[test]
fn a_server_that_grants_something_else_than_was_asked_for_is_left() {
    let (sealed, bare) = (Caps::AEAD, Caps::NONE);
    let table = [
        (true, sealed, Ext::ALL, "the server does not allow plaintext"),
        (true, sealed, PLAIN, "the server wants plaintext and encrypts"),
        (true, bare, Ext::ALL, "the server does not encrypt"),
        (false, bare, PLAIN, "the server does not encrypt"),
        (false, bare, Ext::ALL, "the server does not encrypt"),
    ];
    for (backend, direct) in BACKENDS.into_iter().flat_map(|backend| ["direct", "auto"].map(|way| (backend, way))) {
        for (plain, caps, ext, words) in table {
            let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
            let target = dir.path().join("f");
            let mut words_of: Vec<OsString> = vec!["copy".into(), format!("--direct={direct}").into()];
            words_of.extend(plain.then(|| "--plaintext".into()));
            let args = |pipes: &Pipes| {
                words_of.into_iter().chain(pipes.args()).chain(["far:f".into(), target.clone().into()]).collect()
            };
            let ended = play_hurried(backend, HURRY, LIMIT, args, |far| {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                offer(far, &listener, SECRET);
                let mut stream = taken(far, &listener);
                stream.write_all(&bytes_of(&Frame::AuthChallenge { nonce: NONCE }, Dialect::BASE)).unwrap();
                let secret = Secret::from_bytes(SECRET);
                let (welcome, _) = keyed_welcome(&mut stream, &secret, &NONCE, Granted { caps, ext });
                stream.write_all(&welcome).unwrap();
                let mut said = Vec::new();
                let _ = stream.read_to_end(&mut said);
                assert_eq!(said, b"", "nothing is said to such a server");
                far.drain();
            });
            ended.assert_exit(10);
            assert!(ended.lines().len() == 1 && ended.stderr.contains(words), "{ended:?}");
            assert!(!target.exists());
        }
    }
}

#[test]
fn a_server_seals_unless_it_was_started_with_the_flag_and_the_client_asks() {
    let (sealed, bare) = (Caps::AEAD, Caps::NONE);
    // Asked for, and what is granted by a server that seals, and by one that need not; nothing: the door is closed.
    let table = [
        ((sealed, Ext::ALL), Some((sealed, Ext::ALL)), Some((sealed, Ext::ALL))),
        ((sealed, PLAIN), Some((sealed, Ext::ALL)), Some((bare, PLAIN))),
        ((bare, PLAIN), None, Some((bare, PLAIN))),
        ((bare, Ext::ALL), None, None),
    ];
    for backend in BACKENDS {
        for allowed in [false, true] {
            let mut serving = if allowed { Serving::allowing_plaintext(backend) } else { Serving::start(backend) };
            serving.agree(KEYED, Caps::DIRECT_TCP);
            let place = Place::open(&mut serving);
            for ((caps, ext), without, with) in table {
                let mut guest = Guest::come(place.address);
                let hello = Asked { caps, ext, ..Asked::ALL }.hello(&place.secret(), &guest.nonce);
                guest.send(&bytes_of(&hello, KEYED));
                match if allowed { with } else { without } {
                    None => assert_eq!(guest.left(), b""),
                    Some((caps, ext)) => {
                        let mut bytes = [0; KEYED_WELCOME_BYTES];
                        guest.stream.read_exact(&mut bytes).unwrap();
                        let granted = (Caps(bytes[5]), Ext(u32::from_le_bytes(bytes[6..10].try_into().unwrap())));
                        assert_eq!(granted, (caps, ext));
                    }
                }
            }
            serving.assert_usable();
            assert_eq!(serving.end().code, Some(0));
        }
    }
}

#[test]
fn a_proof_with_another_secret_is_none_in_plaintext_either() {
    for backend in BACKENDS {
        let mut serving = Serving::allowing_plaintext(backend);
        serving.agree(KEYED, Caps::DIRECT_TCP);
        let place = Place::open(&mut serving);
        let mut guest = Guest::come(place.address);
        let other = Secret::from_bytes([1; 32]);
        let hello = Asked { caps: Caps::NONE, ext: PLAIN, ..Asked::ALL }.hello(&other, &guest.nonce);
        guest.send(&bytes_of(&hello, KEYED));
        assert_eq!(guest.left(), b"");
        serving.assert_usable();
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn the_kernel_sends_the_file_both_ways_without_a_ring_where_nobody_hashes() {
    const CALLS: &str = "sendfile,splice,read,pread64,preadv2";
    const BYTES: usize = 24 * MIB;
    if !can_trace() {
        return;
    }
    for (way, fast) in [Way::Up, Way::Down].into_iter().flat_map(|way| [false, true].map(|fast| (way, fast))) {
        let dir = trees::scratch();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        random_file(&source, BYTES, 5);
        let (traced_far, far) = traced_far_end("poll", CALLS, dir.path());
        let pipes = if way == Way::Down { traced_far } else { Pipes::new("poll") };
        let mut args: Vec<OsString> = vec!["copy".into(), "--compress=none".into()];
        args.extend(PLAINTEXT.iter().map(OsString::from));
        args.extend(fast.then(|| "--fast".into()));
        args.extend(pipes.args());
        args.extend(match way {
            Way::Up => [source.clone().into(), at(&pipes, &target)],
            Way::Down => [at(&pipes, &source), target.clone().into()],
        });
        let (command, near) = (haul("poll", args), dir.path().join("near"));
        let command = if way == Way::Up { traced(&command, CALLS, &near) } else { command };
        assert_exit(&crate::support::routes::finish(command), 0);
        assert_nobody_at_home(&pipes.home(), LIMIT);
        assert_eq!(hash_of(&target), hash_of(&source));
        let calls = calls(if way == Way::Up { &near } else { &far });
        let bytes = |names: &[&str]| -> u64 {
            calls.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, bytes)| bytes).sum()
        };
        let (by_kernel, read) = (bytes(&["sendfile", "splice"]), bytes(&["read", "pread64", "preadv2"]));
        eprintln!("{way:?}, fast {fast}: {by_kernel} bytes sent by the kernel, {read} read");
        assert_eq!(by_kernel, if fast { BYTES as u64 } else { 0 });
        assert_eq!(read < MIB as u64, fast, "{read} bytes were read");
    }
}

#[test]
fn the_kernel_sends_the_file_both_ways_from_a_ring_where_nobody_hashes() {
    // Splices wait in threads that the kernel has for the ring; reads of what is in memory never do.
    for (fast, way) in
        [false, true].into_iter().flat_map(|fast| [transfer::Way::Up, transfer::Way::Down].map(|way| (fast, way)))
    {
        let pair = if way == transfer::Way::Up { ("uring", "poll") } else { ("poll", "uring") };
        let copy = Kept::new(pair, way, 128 * MIB);
        let flags: &[&str] = if fast { &["--fast"] } else { &[] };
        let (mut client, server) = copy.start(&[&["--compress=none"], &PLAINTEXT[..], flags].concat());
        let sender = copy.sender((client.pid(), server));
        let mut seen = false;
        while !client.is_over() {
            seen |= threads(sender).iter().any(|name| name.starts_with("iou-wrk-"));
        }
        client.finish().assert_exit(0);
        assert_eq!(hash_of(&copy.target()), copy.hash);
        assert_eq!(seen, fast, "{way:?}, {flags:?}");
    }
}

#[test]
fn the_bits_are_where_the_tests_change_them() {
    let hello = Frame::KeyedHello { random: [1; 32], index: 0, caps: Caps::AEAD, ext: Ext::PLAIN, mac: [0; 32] };
    let mut bytes = bytes_of(&hello, KEYED);
    bytes[KEYED_HELLO_BYTES - 32 - 3] ^= u8::try_from(Ext::PLAIN.0 >> 8).unwrap();
    bytes[KEYED_HELLO_BYTES - 32 - 5] ^= Caps::AEAD.0;
    let mut frames = crate::support::frames::Frames::new(&bytes[..], Role::Server);
    frames.set_dialect(KEYED);
    let none = Frame::KeyedHello { random: [1; 32], index: 0, caps: Caps::NONE, ext: Ext::NONE, mac: [0; 32] };
    assert_eq!(frames.next(), Some(crate::support::frames::Received::Frame(none)));
}
