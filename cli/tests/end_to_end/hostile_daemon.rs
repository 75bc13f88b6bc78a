//! Daemons against everybody who can reach them, and clients against everybody who answers in a daemon's place: whoever does
//! not know the key learns nothing, changes nothing, and keeps nobody else out.

use crate::support::BACKENDS;
use crate::support::daemon::{DAEMON_HELLO_BYTES, DAEMON_WELCOME_BYTES, Knock, Listening, enter, key_in, welcome};
use crate::support::direct::{Asked, CHALLENGE_BYTES, Ending, Guest, KEYED, SealedEnd, base_greeting};
use crate::support::frames::{Received, attributes, blake3_of, bytes_of, data, field, hello};
use crate::support::haul;
use crate::support::processes::{Ended, LIMIT, complete, names};
use haul_engine::wire::decode::Role;
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, Preserve};
use haul_engine::wire::seal::{LENGTH_BYTES, Secret, TAG_BYTES, auth_mac};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// Clients that are served at a time, see `limits::MAX_SESSIONS`.
const SESSIONS: usize = 16;
/// Of the frame that tells a guest to give way.
const GIVE_WAY_BYTES: usize = 5 + 4 + 51 + 2;

/// A daemon with a file in what it serves.
fn daemon(backend: &str) -> Listening {
    let daemon = Listening::start(backend);
    fs::write(daemon.root().join("f"), "old").unwrap();
    daemon
}

/// Fails unless a client that knows the key can do what it is for, and nothing else has a name.
#[track_caller]
fn assert_alive(daemon: &Listening) {
    let mut client = daemon.enter();
    let content = vec![3; 200_000];
    client.send(&Frame::Put { path: field("new"), size: 200_000, offset: 0, overwrite: true });
    client.send_bytes(&data(&content));
    let hash = blake3_of(&content);
    assert_eq!(client.ask(&Frame::Commit { hash }), Frame::Ok { hash: Some(hash) });
    client.end(true);
    assert_eq!(fs::read(daemon.root().join("new")).unwrap(), content);
    fs::remove_file(daemon.root().join("new")).unwrap();
    assert_eq!(fs::read(daemon.root().join("f")).unwrap(), b"old");
    assert_eq!(names(&daemon.root()), ["f"]);
}

/// What nobody who knows the key would answer to the challenge, with a name.
fn wrong_answers(key: &Secret, nonce: &Hash) -> Vec<(String, Vec<u8>)> {
    let (all, wrong) = (Knock::ALL, Secret::from_bytes([7; 32]));
    let right = bytes_of(&all.hello(key, nonce), KEYED);
    let with = |frame: Frame| bytes_of(&frame, KEYED);
    let mut answers: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| answers.push((name.to_string(), bytes));
    add("the proof of another key", with(all.hello(&wrong, nonce)));
    add("the proof of another nonce", with(all.hello(key, &[0; 32])));
    add("no seal asked for", with(Knock { caps: Caps::NONE, ..all }.hello(key, nonce)));
    // Proved: only the exchange itself is left to refuse.
    let mut one = [0; 32];
    one[0] = 1;
    add("a public key of zero", with(all.hello_with(key, nonce, [0; 32])));
    add("a public key of small order", with(all.hello_with(key, nonce, one)));
    add("a greeting and a byte", [&[right[0] + 1], &right[1..], &[0]].concat());
    add("KEYED's greeting, with the key", with(Asked::ALL.hello(key, nonce)));
    add("the base protocol's greeting, with the key", base_greeting(key, nonce));
    add("the base proof", bytes_of(&Frame::AuthHello { mac: auth_mac(key, nonce) }, Dialect::BASE));
    add("a greeting without a proof", bytes_of(&hello(KEYED), Dialect::BASE));
    add("a request", bytes_of(&Frame::Get { path: field("f"), offset: 0 }, Dialect::BASE));
    add("a meeting", bytes_of(&Frame::OpenDirectChannel, Dialect::BASE));
    add("the challenge itself", bytes_of(&Frame::AuthChallenge { nonce: *nonce }, Dialect::BASE));
    let (caps, ext) = (Caps::AEAD, Ext::ALL);
    add("the daemon's own greeting", with(Frame::DaemonWelcome { public: [5; 32], caps, ext, mac: [4; 32] }));
    add("an error", bytes_of(&Frame::Error { message: b"no".to_vec(), code: ErrorCode(0) }, Dialect::BASE));
    add("content", data(&[1; 1000]));
    add("zeros", vec![0; 200]);
    add("ones", vec![0xff; 200]);
    add("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100));
    add("more than any frame", vec![1, 0, 0, 1, 1]);
    // Every field, and both ends of the proof.
    for at in [5, 36, 37, 68, 69, 71, 72, 75, 76, DAEMON_HELLO_BYTES - 1] {
        let mut bytes = right.clone();
        bytes[at] ^= 0x80;
        add(&format!("byte {at} changed"), bytes);
    }
    answers
}

#[test]
fn whoever_does_not_prove_the_key_is_left_without_a_word() {
    for backend in BACKENDS {
        let daemon = daemon(backend);
        for number in 0..wrong_answers(&daemon.key(), &[0; 32]).len() {
            let mut guest = Guest::come(daemon.address);
            let (name, answer) = wrong_answers(&daemon.key(), &guest.nonce).swap_remove(number);
            guest.send(&answer);
            // What would be a request, if that had been enough.
            guest.send(&bytes_of(&Frame::Truncate { path: field("f"), size: 0 }, Dialect::BASE));
            assert_eq!(guest.left(), b"", "{backend}: {name}");
        }
        assert_alive(&daemon);
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn a_greeting_that_was_recorded_opens_no_other_connection() {
    for backend in BACKENDS {
        let daemon = daemon(backend);
        let first = Guest::come(daemon.address);
        let recorded = bytes_of(&Knock::ALL.hello(&daemon.key(), &first.nonce), KEYED);
        enter(first, &daemon.key(), Knock::ALL).end(true);
        for _ in 0..4 {
            let mut guest = Guest::come(daemon.address);
            guest.send(&recorded);
            assert_eq!(guest.left(), b"");
        }
        assert_alive(&daemon);
        daemon.end();
    }
}

#[test]
fn whoever_goes_at_any_byte_of_the_handshake_is_forgotten() {
    for backend in BACKENDS {
        let daemon = daemon(backend);
        for (len, abruptly) in (0..DAEMON_HELLO_BYTES).flat_map(|len| [(len, true), (len, false)]) {
            let mut guest = Guest::come(daemon.address);
            let greeting = bytes_of(&Knock::ALL.hello(&daemon.key(), &guest.nonce), KEYED);
            guest.send(&greeting[..len]);
            if !abruptly {
                guest.stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(guest.left(), b"", "{len}");
            }
        }
        // Behind the proof: at any byte of what is no record.
        for len in 0..LENGTH_BYTES + TAG_BYTES {
            let mut client = daemon.enter();
            client.send_raw(&[20; 20][..len]);
            client.cut();
            assert_eq!(client.rest(), (Vec::new(), Ending::Cut), "{len}");
        }
        assert_alive(&daemon);
        daemon.end();
    }
}

#[test]
fn the_silent_are_cut_off_and_a_crowd_of_them_keeps_no_client_out() {
    for backend in BACKENDS {
        let daemon = daemon(backend);
        let client = daemon.enter();
        // More than may wait at a time.
        let crowd: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(daemon.address).unwrap()).collect();
        assert_alive(&daemon);
        for mut stream in crowd {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            // Those who had to give way were told so.
            assert!([CHALLENGE_BYTES, CHALLENGE_BYTES + GIVE_WAY_BYTES].contains(&said.len()), "{said:?}");
        }
        client.end(true);
        daemon.end();
    }
}

#[test]
fn when_all_places_are_taken_the_next_client_waits_for_one() {
    for backend in BACKENDS {
        let daemon = daemon(backend);
        let mut clients: Vec<SealedEnd> = (0..SESSIONS).map(|_| daemon.enter()).collect();
        let waiting = Guest::come(daemon.address);
        std::thread::scope(|scope| {
            let key = daemon.key();
            let waits = scope.spawn(move || enter(waiting, &key, Knock::ALL).end(true));
            std::thread::sleep(Duration::from_millis(500));
            assert!(!waits.is_finished(), "there was no place");
            clients.pop().unwrap().end(true);
            waits.join().unwrap();
        });
        for mut client in clients {
            assert!(matches!(client.ask(&Frame::Stat { path: field("f") }), Frame::StatResponse { size: 3, .. }));
            client.end(true);
        }
        assert_alive(&daemon);
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn the_same_key_and_the_same_greeting_make_other_records_on_each_connection() {
    for backend in BACKENDS {
        let daemon = daemon(backend);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..4 {
            // Even the client's own half is the same each time.
            let mut client = daemon.enter();
            let record = client.record(b"hello");
            assert!(seen.insert(record), "the same record twice");
            let mut other = daemon.enter();
            let reply = other.ask(&Frame::Stat { path: field("f") });
            assert!(matches!(reply, Frame::StatResponse { size: 3, .. }), "{reply:?}");
            for record in &other.input.source().sealed {
                assert!(seen.insert(record.clone()), "the same record twice");
            }
        }
        daemon.end();
    }
}

#[test]
fn a_record_that_was_changed_repeated_or_is_of_another_connection_publishes_nothing() {
    let put = |client: &mut SealedEnd| {
        client.send(&Frame::Put { path: field("f"), size: 3, offset: 0, overwrite: true });
        client.send_bytes(&data(b"new"));
        client.record(&bytes_of(&Frame::Commit { hash: blake3_of(b"new") }, client.dialect))
    };
    for backend in BACKENDS {
        let daemon = daemon(backend);
        for change in 0..5 {
            let mut client = daemon.enter();
            let mut record = put(&mut client);
            match change {
                0 => record[LENGTH_BYTES] ^= 1,
                1 => *record.last_mut().unwrap() ^= 0x80,
                2 => record = daemon.enter().record(&bytes_of(&Frame::Commit { hash: blake3_of(b"new") }, KEYED)),
                // One is left out.
                3 => record = client.record(&bytes_of(&Frame::Commit { hash: blake3_of(b"new") }, client.dialect)),
                // What nobody sealed.
                _ => record = bytes_of(&Frame::Commit { hash: blake3_of(b"new") }, client.dialect),
            }
            client.send_raw(&record);
            client.cut();
            let (rest, ending) = client.rest();
            assert_eq!((rest, ending), (Vec::<Received>::new(), Ending::Cut), "{change}");
        }
        // Cut off before the end.
        let mut client = daemon.enter();
        let _ = put(&mut client);
        client.cut();
        let _ = client.rest();
        assert_alive(&daemon);
        daemon.end();
    }
}

#[test]
fn clients_that_come_with_another_key_or_another_way_fail_in_one_line() {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let other = dir.path().join("other");
    complete(haul("poll", ["keygen"]).arg(&other)).assert_exit(0);
    for (near, far) in [("uring", "poll"), ("poll", "uring")] {
        let daemon = daemon(far);
        let operand = daemon.at("f");
        for (command, more) in [("ls", None), ("hash", None), ("copy", Some(dir.path().join("f")))] {
            let ended = complete(haul(near, [command, "--key-file"]).arg(&other).arg(&operand).args(more));
            ended.assert_exit(10);
            assert!(ended.stderr.starts_with("haul: no connection: "), "{ended:?}");
            assert!(ended.stderr.contains("its key may be another one"), "{ended:?}");
            assert_eq!(ended.lines().len(), 1, "{ended:?}");
        }
        assert!(!dir.path().join("f").exists());
        assert_alive(&daemon);
        assert_eq!(daemon.end(), "");
    }
}

const NONCE: Hash = [0xcc; 32];
const ALL: (Caps, Ext) = (Caps::AEAD, Ext::ALL);

/// Runs `haul copy haul://ADDRESS/f DIR/f`, with an old file there and `act` as the daemon. Fails unless the client ends with
/// one line of these words and this code, and the old file is what it was.
#[track_caller]
fn answered(backend: &str, name: &str, code: i32, words: &str, act: impl FnOnce(&mut TcpStream, &Secret) + Send) {
    eprintln!("{backend}: {name}");
    let ended = download(backend, "none", act);
    ended.0.assert_exit(code);
    assert!(ended.0.stderr.starts_with("haul: ") && ended.0.stderr.contains(words), "{name}: {:?}", ended.0);
    assert_eq!(ended.0.lines().len(), 1, "{name}: {:?}", ended.0);
    assert_eq!(ended.1, b"old", "{name}");
}

/// What the client says, and what it then has under the name.
pub(crate) fn download(
    backend: &str,
    codec: &str,
    act: impl FnOnce(&mut TcpStream, &Secret) + Send,
) -> (Ended, Vec<u8>) {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let key_file = dir.path().join("key");
    complete(haul(backend, ["keygen"]).arg(&key_file)).assert_exit(0);
    fs::create_dir(dir.path().join("to")).unwrap();
    let target = dir.path().join("to/f");
    fs::write(&target, "old").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            act(&mut stream, &key_in(&key_file));
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut copy = haul(backend, ["copy", "--compress", codec, "--key-file"]);
        copy.arg(&key_file).arg(format!("haul://{address}/f")).arg(&target);
        complete(copy.env("HAUL_TIMEOUTS_MS", "2000,2000,2000,4000,3000,0"))
    });
    assert_eq!(names(target.parent().unwrap()), ["f"]);
    (ended, fs::read(target).unwrap())
}

fn challenge() -> Vec<u8> {
    bytes_of(&Frame::AuthChallenge { nonce: NONCE }, Dialect::BASE)
}

/// Sends the challenge, takes the greeting, and answers with what `change` makes of the right answer to it.
fn greet(stream: &mut TcpStream, key: &Secret, granted: (Caps, Ext), change: impl FnOnce(&[u8], &mut Vec<u8>)) {
    stream.write_all(&challenge()).unwrap();
    let (hello, mut answer, _) = welcome(stream, key, &NONCE, granted, None);
    change(&hello, &mut answer);
    let _ = stream.write_all(&answer);
    let _ = stream.shutdown(Shutdown::Write);
}

#[test]
fn whoever_answers_in_a_daemons_place_is_not_believed() {
    const PROOF: &str = "the server cannot prove that it knows the key";
    const NO: &str = "no connection: ";
    for backend in BACKENDS {
        for at in [5, 36, 37, 38, 41, 42, DAEMON_WELCOME_BYTES - 1] {
            answered(backend, &format!("byte {at} changed"), 10, PROOF, |stream, key| {
                greet(stream, key, ALL, |_, answer| answer[at] ^= 1);
            });
        }
        answered(backend, "the client's own proof", 10, PROOF, |stream, key| {
            let end = DAEMON_WELCOME_BYTES - 32;
            greet(stream, key, ALL, |hello, answer| {
                answer[end..].copy_from_slice(&hello[DAEMON_HELLO_BYTES - 32..]);
            });
        });
        answered(backend, "another key", 10, PROOF, |stream, _| {
            stream.write_all(&challenge()).unwrap();
            stream.read_exact(&mut [0; DAEMON_HELLO_BYTES]).unwrap();
            let (caps, ext) = ALL;
            stream
                .write_all(&bytes_of(&Frame::DaemonWelcome { public: [9; 32], caps, ext, mac: [1; 32] }, KEYED))
                .unwrap();
        });
        answered(backend, "not sealed, and proved", 10, "does not encrypt", |stream, key| {
            greet(stream, key, (Caps::NONE, Ext::ALL), |_, _| {});
        });
        answered(backend, "a public key of zero, and proved", 10, "wants no secret", |stream, key| {
            stream.write_all(&challenge()).unwrap();
            let (_, answer, _) = welcome(stream, key, &NONCE, ALL, Some([0; 32]));
            stream.write_all(&answer).unwrap();
        });
        let keyed = Frame::KeyedWelcome { caps: Caps::AEAD, ext: Ext::ALL, mac: [0; 32] };
        let base = Frame::Welcome { version: 1, caps: Caps::AEAD, ext: Some(Ext::ALL) };
        let error = Frame::Error { message: b"\x1b[31mgo away".to_vec(), code: ErrorCode(0) };
        for (name, answer, words) in [
            ("the greeting itself", None, NO),
            ("KEYED's answer", Some(bytes_of(&keyed, KEYED)), NO),
            ("the base protocol's", Some(bytes_of(&base, Dialect::BASE)), NO),
            ("another challenge", Some(challenge()), NO),
            ("content", Some(data(b"new")), NO),
            ("an error", Some(bytes_of(&error, KEYED)), "go away"),
            ("zeros", Some(vec![0; 100]), NO),
            ("the end", Some(Vec::new()), "its key may be another one"),
        ] {
            answered(backend, name, 10, words, |stream, key| {
                greet(stream, key, ALL, |hello, right| *right = answer.unwrap_or(hello.to_vec()));
            });
        }
        for (name, first) in [("text", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()), ("the end", Vec::new())] {
            answered(backend, &format!("{name} at once"), 10, NO, |stream, _| {
                stream.write_all(&first).unwrap();
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    }
}

#[test]
fn an_answer_that_ends_or_stops_at_any_byte_is_given_up() {
    for backend in BACKENDS {
        for len in (0..CHALLENGE_BYTES).step_by(6) {
            answered(backend, &format!("{len} bytes"), 10, "no connection: ", |stream, _| {
                stream.write_all(&challenge()[..len]).unwrap();
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
        for len in (0..DAEMON_WELCOME_BYTES).step_by(7).chain([DAEMON_WELCOME_BYTES - 1]) {
            answered(backend, &format!("{len} bytes of the answer"), 10, "no connection: ", |stream, key| {
                greet(stream, key, ALL, |_, answer| answer.truncate(len));
            });
        }
        // And says nothing more.
        for len in [0, CHALLENGE_BYTES] {
            answered(backend, &format!("silent behind {len}"), 35, "did not answer in time", |stream, _| {
                stream.write_all(&challenge()[..len]).unwrap();
            });
        }
    }
}

#[test]
fn content_that_was_changed_behind_the_handshake_gets_no_name() {
    for backend in BACKENDS {
        for flip in [false, true] {
            let (ended, left) = download(backend, "none", |stream, key| {
                stream.write_all(&challenge()).unwrap();
                let (_, answer, seals) = welcome(stream, key, &NONCE, ALL, None);
                stream.write_all(&answer).unwrap();
                let dialect = Dialect { version: 1, ext: Ext::ALL };
                let mut end =
                    SealedEnd::new(stream.try_clone().unwrap(), seals.expect("sealed"), Role::Server, dialect);
                let found = attributes(Kind::Regular, 3);
                assert!(matches!(end.input.next(), Some(Received::Frame(Frame::Lookup { .. }))));
                end.send(&Frame::AttributesResponse { attributes: found, link: Vec::new() });
                while let Some(Received::Frame(request)) = end.input.next() {
                    if let Frame::Lookup { .. } = request {
                        end.send(&Frame::AttributesResponse { attributes: found, link: Vec::new() });
                        continue;
                    }
                    assert!(matches!(request, Frame::Get { .. }), "{request:?}");
                    end.send(&Frame::Meta { attributes: found, preserve: Preserve::default() });
                    let mut record = end.record(&data(b"new"));
                    if flip {
                        record[LENGTH_BYTES + 9] ^= 1;
                    }
                    end.send_raw(&record);
                    end.send(&Frame::Ok { hash: Some(blake3_of(b"new")) });
                }
                if !flip {
                    end.send_bytes(&[]);
                    end.cut();
                }
            });
            if flip {
                ended.assert_exit(12);
                assert_eq!(left, b"old");
            } else {
                ended.assert_exit(0);
                assert_eq!(left, b"new");
            }
        }
    }
}
