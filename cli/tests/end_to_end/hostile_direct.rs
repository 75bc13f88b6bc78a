//! The server's side of direct connections against everybody who can reach its port: whoever proves nothing is left
//! without a word and keeps nobody else out, and of whoever was let in nothing counts that was changed on the way.

use crate::support::BACKENDS;
use crate::support::direct::{Asked, Ending, Guest, KEYED, KEYED_HELLO_BYTES, Place, SealedEnd, base_greeting};
use crate::support::frames::{Received, Serving, blake3_of, bytes_of, data, field};
use crate::support::pressure::{MEMORY, open_files, peak_memory};
use crate::support::processes::{LIMIT, names, wait_for};
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame, Hash};
use haul_engine::wire::seal::{LENGTH_BYTES, Secret, TAG_BYTES, auth_mac};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Connections that wait to be proved, see `limits::MAX_GUESTS`.
const GUESTS: usize = 64;
/// What each of them has while there is room, see `limits::GUEST_TIMEOUT`.
const GUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Of a file that is sent in three parts: each a record that is opened in place, or by a helper.
const PARTS: [usize; 2] = [1000, 100_000];

/// A server, with a file in what it serves, that may be met.
struct Scene {
    serving: Serving,
    place: Place,
    keyed: bool,
}

impl Scene {
    fn new(backend: &str, keyed: bool) -> Scene {
        Scene::of(Serving::start(backend), keyed)
    }

    /// Of a server that has not been greeted.
    fn of(mut serving: Serving, keyed: bool) -> Scene {
        serving.agree(if keyed { KEYED } else { Dialect::BASE }, Caps::DIRECT_TCP);
        fs::write(serving.root().join("f"), "old").unwrap();
        let place = Place::open(&mut serving);
        Scene { serving, place, keyed }
    }

    fn client(&self) -> SealedEnd {
        self.place.client(self.keyed)
    }

    /// Who has no connection left under the base protocol asks for another one.
    fn again(&mut self) {
        if !self.keyed {
            self.place = Place::open(&mut self.serving);
        }
    }

    /// Fails unless the control session and a further connection do what they are for, and nothing else has a name.
    #[track_caller]
    fn assert_alive(&mut self) {
        self.serving.assert_usable();
        let mut client = self.client();
        let (name, content) = (field("new"), vec![3; 200_000]);
        let put = Frame::Put { path: name.clone(), size: content.len() as u64, offset: 0, overwrite: true };
        client.send(&put);
        client.send_bytes(&data(&content));
        let hash = Some(blake3_of(&content));
        let done = self.done(&content);
        assert_eq!(client.ask(&done), Frame::Ok { hash });
        client.end(self.keyed);
        let root = self.serving.root();
        assert_eq!(fs::read(root.join("new")).unwrap(), content);
        fs::remove_file(root.join("new")).unwrap();
        assert_eq!(fs::read(root.join("f")).unwrap(), b"old");
        assert_eq!(names(&root), ["f"]);
    }

    /// The end of an upload.
    fn done(&self, content: &[u8]) -> Frame {
        if self.keyed { Frame::Commit { hash: blake3_of(content) } } else { Frame::Done }
    }

    #[track_caller]
    fn end(self) {
        let served = self.serving.end();
        assert_eq!((served.code, served.stderr.as_str()), (Some(0), ""));
        assert_eq!(served.rest, []);
    }
}

fn both() -> impl Iterator<Item = (&'static str, bool)> {
    BACKENDS.into_iter().flat_map(|backend| [true, false].map(|keyed| (backend, keyed)))
}

fn with_mac(frame: Frame, change: impl FnOnce(&mut Hash)) -> Frame {
    let Frame::KeyedHello { random, index, caps, ext, mut mac } = frame else { panic!("{frame:?}") };
    change(&mut mac);
    Frame::KeyedHello { random, index, caps, ext, mac }
}

/// What nobody who knows the secret would answer to the challenge, with a name.
fn wrong_answers(place: &Place, nonce: &Hash, keyed: bool) -> Vec<(&'static str, Vec<u8>)> {
    let (right, wrong) = (place.secret(), Secret::from_bytes([7; 32]));
    let hello = |secret: &Secret, asked: Asked| bytes_of(&asked.hello(secret, nonce), KEYED);
    let auth = |mac: Hash| bytes_of(&Frame::AuthHello { mac }, Dialect::BASE);
    let mut flipped = auth_mac(&right, nonce);
    flipped[31] ^= 0x80;
    let all = Asked::ALL;
    let changed = |at: usize| {
        let mut bytes = hello(&right, all);
        bytes[at] ^= 1;
        bytes
    };
    let mut answers = vec![
        ("the proof of another secret", hello(&wrong, all)),
        ("the proof of another nonce", bytes_of(&all.hello(&right, &[0; 32]), KEYED)),
        ("a proof with a wrong first bit", bytes_of(&with_mac(all.hello(&right, nonce), |mac| mac[0] ^= 1), KEYED)),
        ("a proof with a wrong last bit", bytes_of(&with_mac(all.hello(&right, nonce), |mac| mac[31] ^= 128), KEYED)),
        ("no proof", bytes_of(&with_mac(all.hello(&right, nonce), |mac| *mac = [0; 32]), KEYED)),
        ("the base protocol's as KEYED's", {
            bytes_of(&with_mac(all.hello(&right, nonce), |mac| *mac = auth_mac(&right, nonce)), KEYED)
        }),
        ("no seal asked for", hello(&right, Asked { caps: Caps::NONE, ..all })),
        ("random bytes changed", changed(5)),
        ("index changed", changed(5 + 32)),
        ("capabilities changed", changed(5 + 34)),
        ("seal stripped", {
            let mut bytes = hello(&right, all);
            bytes[5 + 34] = 0;
            bytes
        }),
        ("extensions changed", changed(5 + 35)),
        ("bytes behind the greeting", {
            let mut bytes = hello(&right, all);
            bytes[0] += 1;
            bytes.push(0);
            bytes
        }),
        ("the base proof of another secret", auth(auth_mac(&wrong, nonce))),
        ("the base proof with a wrong bit", auth(flipped)),
        ("no base proof", auth([0; 32])),
        ("a greeting without any", bytes_of(&Frame::Hello { version: 1, caps: Caps::AEAD, ext: None }, Dialect::BASE)),
        ("a request", bytes_of(&Frame::Get { path: field("f"), offset: 0 }, Dialect::BASE)),
        ("another meeting", bytes_of(&Frame::OpenDirectChannel, Dialect::BASE)),
        ("content", data(&[1; 1000])),
        ("the challenge itself", bytes_of(&Frame::AuthChallenge { nonce: *nonce }, Dialect::BASE)),
        ("an error", bytes_of(&Frame::Error { message: b"no".to_vec(), code: ErrorCode(0) }, Dialect::BASE)),
        ("zeros", vec![0; 100]),
        ("ones", vec![0xff; 100]),
        ("text", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100)),
        ("more than any frame", vec![1, 0, 0, 1, 1]),
    ];
    // Each is right where the other was agreed on.
    if keyed {
        answers.push(("the base protocol's greeting", base_greeting(&right, nonce)));
    } else {
        answers.push(("KEYED's greeting", hello(&right, all)));
    }
    answers
}

#[test]
fn whoever_proves_nothing_is_left_without_a_word() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        let count = wrong_answers(&scene.place, &[0; 32], keyed).len();
        for number in 0..count {
            let mut guest = Guest::come(scene.place.address);
            let (name, answer) = wrong_answers(&scene.place, &guest.nonce, keyed).swap_remove(number);
            guest.send(&answer);
            // What would be a request, if that had been enough.
            guest.send(&bytes_of(&Frame::Truncate { path: field("f"), size: 0 }, Dialect::BASE));
            assert_eq!(guest.left(), b"", "{backend}, keyed {keyed}: {name}");
        }
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn a_proof_from_one_connection_opens_no_other() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend, true);
        let guests: Vec<Guest> = (0..8).map(|_| Guest::come(scene.place.address)).collect();
        let nonces: Vec<Hash> = guests.iter().map(|guest| guest.nonce).collect();
        for (index, mut guest) in guests.into_iter().enumerate() {
            assert!(!nonces[index + 1..].contains(&guest.nonce));
            guest.send(&bytes_of(&Asked::ALL.hello(&scene.place.secret(), &nonces[(index + 1) % 8]), KEYED));
            assert_eq!(guest.left(), b"");
        }
        // A secret is for one meeting only.
        let other = Place::open(&mut scene.serving);
        assert_ne!(other.secret, scene.place.secret);
        let mut guest = Guest::come(other.address);
        guest.send(&bytes_of(&Asked::ALL.hello(&scene.place.secret(), &guest.nonce), KEYED));
        assert_eq!(guest.left(), b"");
        scene.assert_alive();
        scene.place = other;
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn the_silent_and_the_slow_are_cut_off_and_keep_nobody_waiting() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        let secret = scene.place.secret();
        let come = || Guest::come(scene.place.address);
        let silent: Vec<Guest> = (0..4).map(|_| come()).collect();
        let drips: Vec<_> = [0, 1, 2]
            .map(|what| {
                let mut guest = come();
                let bytes = match what {
                    0 if keyed => bytes_of(&Asked::ALL.hello(&secret, &guest.nonce), KEYED),
                    0 => base_greeting(&secret, &guest.nonce),
                    1 => vec![0xff, 0xff, 0xff, 0x00, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
                    _ => vec![40; 100],
                };
                std::thread::spawn(move || {
                    let mut taken = 0;
                    guest.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                    for byte in bytes {
                        std::thread::sleep(Duration::from_millis(500));
                        let _ = guest.stream.write_all(&[byte]);
                        match guest.stream.read(&mut [0]) {
                            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => taken += 1,
                            Ok(0) | Err(_) => return taken,
                            Ok(_) => panic!("a word to whoever has proved nothing"),
                        }
                    }
                    panic!("{taken} bytes, one a second, and still there");
                })
            })
            .into();
        if keyed {
            scene.assert_alive();
        }
        for guest in silent {
            assert_eq!(guest.left(), b"");
        }
        for drip in drips {
            assert!(drip.join().unwrap() <= 10);
        }
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn whoever_goes_at_any_byte_of_the_handshake_is_forgotten() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        // The base protocol's client is let in with AuthHello, and that once.
        let whole = if keyed { KEYED_HELLO_BYTES } else { 5 + 32 };
        for (len, abruptly) in (0..whole).flat_map(|len| [(len, true), (len, false)]) {
            let mut guest = Guest::come(scene.place.address);
            let secret = scene.place.secret();
            let greeting = match keyed {
                true => bytes_of(&Asked::ALL.hello(&secret, &guest.nonce), KEYED),
                false => base_greeting(&secret, &guest.nonce),
            };
            guest.send(&greeting[..len]);
            if abruptly {
                drop(guest);
            } else {
                guest.stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(guest.left(), b"");
            }
        }
        scene.assert_alive();
        // Behind the proof: at any byte of what follows, none of which is a record.
        for len in 0..if keyed { LENGTH_BYTES + TAG_BYTES } else { 7 } {
            scene.again();
            let mut guest = Guest::come(scene.place.address);
            let secret = scene.place.secret();
            if keyed {
                let mut client = guest.client(&scene.place, true);
                client.send_raw(&[20; 20][..len]);
                client.cut();
                assert_eq!(client.rest(), (Vec::new(), Ending::Cut), "{len}");
            } else {
                guest.send(&base_greeting(&secret, &guest.nonce)[..whole + len]);
                guest.stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!(guest.left(), b"", "{len}");
            }
        }
        scene.again();
        scene.assert_alive();
        scene.end();
    }
}

/// No child of another test keeps it open.
const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// A connection that is begun, whether or not anybody takes it.
fn begin(place: &Place) -> OwnedFd {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, None).unwrap();
    let begun = rustix::net::connect(&socket, &place.address);
    assert!(matches!(begun, Ok(()) | Err(rustix::io::Errno::INPROGRESS)), "{begun:?}");
    socket
}

#[test]
fn two_hundred_who_say_nothing_do_not_keep_the_client_out() {
    for (backend, keyed) in both() {
        let mut scene = Scene::of(Serving::listening_long(backend), keyed);
        let before = open_files(scene.serving.pid());
        let crowd: Vec<OwnedFd> = (0..200).map(|_| begin(&scene.place)).collect();
        let (pid, place) = (scene.serving.pid(), scene.place);
        let client = std::thread::spawn(move || Guest::come(place.address).client(&place, keyed));
        let mut most = 0;
        assert!(wait_for(LIMIT, || {
            most = most.max(open_files(pid).saturating_sub(before));
            client.is_finished()
        }));
        // Four more: two that were told to give way, one that is accepted while another is closed, and one that was let in.
        assert!(most <= GUESTS + 4, "{most} connections at once");
        scene.serving.assert_usable();
        client.join().unwrap().end(keyed);
        drop(crowd);
        scene.again();
        scene.assert_alive();
        scene.end();
    }
}

/// True where a client that finds every place taken gets one before the first of those who have them must go.
fn is_let_in_soon(backend: &str, keyed: bool) -> bool {
    let mut scene = Scene::new(backend, keyed);
    let begun = Instant::now();
    let crowd: Vec<Guest> = (0..GUESTS).map(|_| Guest::come(scene.place.address)).collect();
    let client = Guest::come(scene.place.address);
    let soon = begun.elapsed() < GUEST_TIMEOUT;
    client.client(&scene.place, keyed).end(keyed);
    drop(crowd);
    scene.again();
    scene.assert_alive();
    scene.end();
    soon
}

#[test]
fn a_client_that_finds_every_place_taken_does_not_wait_as_long_as_a_stranger_may() {
    for (backend, keyed) in both() {
        // A busy machine may be late, but not each time.
        assert!((0..5).any(|_| is_let_in_soon(backend, keyed)), "{backend}, {keyed}");
    }
}

#[test]
fn sixty_who_are_silent_leave_blocks_for_the_client_and_the_control_session() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        let crowd: Vec<Guest> = (0..60).map(|_| Guest::come(scene.place.address)).collect();
        let mut client = scene.client();
        scene.serving.assert_usable();
        // The crowd was there all the time, or this was no test.
        let there = |guest: &Guest| {
            guest.stream.set_nonblocking(true).unwrap();
            guest.stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        // A client of the base protocol that was met is the last.
        assert!(!keyed || crowd.iter().all(there), "the client waited until the others were gone");
        let reply = client.ask(&Frame::Stat { path: field("f") });
        assert!(matches!(reply, Frame::StatResponse { size: 3, .. }));
        client.end(keyed);
        drop(crowd);
        scene.again();
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn what_is_announced_without_proof_costs_no_memory() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        let kinds = [1, 3, 4, 9, 10, 0x0b, 0x49];
        let crowd: Vec<_> = (0..28)
            .map(|number| {
                let mut guest = Guest::come(scene.place.address);
                std::thread::spawn(move || {
                    guest.send(&[&0xff_fff0_u32.to_le_bytes()[..], &[kinds[number % kinds.len()]]].concat());
                    // 12 MiB of a frame of almost 16.
                    (0..12).for_each(|_| guest.send(&vec![1; 1 << 20]));
                    guest.left()
                })
            })
            .collect();
        for guest in crowd {
            assert_eq!(guest.join().unwrap(), b"");
        }
        let peak = peak_memory(scene.serving.pid());
        assert!(peak < MEMORY, "{backend}, keyed {keyed}: {} MiB", peak >> 20);
        scene.assert_alive();
        scene.end();
    }
}

/// An upload over `client`, as the records of its frames: Put, three parts, and the end of the body, then the stream's.
fn upload(scene: &Scene, client: &mut SealedEnd, part: usize) -> Vec<Vec<u8>> {
    let content = vec![5; 3 * part];
    let put = Frame::Put { path: field("f"), size: content.len() as u64, offset: 0, overwrite: true };
    let mut frames = vec![bytes_of(&put, client.dialect)];
    frames.extend(content.chunks(part).map(data));
    frames.push(bytes_of(&scene.done(&content), client.dialect));
    if scene.keyed {
        frames.push(Vec::new());
    }
    frames.iter().map(|frame| client.record(frame)).collect()
}

/// What may be done to the records of an upload without the key.
type Attack = fn(&mut Vec<Vec<u8>>, &Strange);

/// Records from elsewhere.
struct Strange {
    /// What this server sealed on this connection.
    reflected: Vec<u8>,
    /// What its client sealed on another one.
    other: Vec<u8>,
}

const ATTACKS: [(&str, Attack); 24] = [
    ("replayed", |records, _| records.insert(2, records[1].clone())),
    ("replayed much later", |records, _| records.insert(4, records[1].clone())),
    ("the first again", |records, _| records.insert(2, records[0].clone())),
    ("reordered", |records, _| records.swap(1, 2)),
    ("content and its end swapped", |records, _| records.swap(3, 4)),
    ("dropped", |records, _| _ = records.remove(2)),
    ("the first dropped", |records, _| _ = records.remove(0)),
    ("the end of the body dropped", |records, _| _ = records.remove(4)),
    ("reflected", |records, strange| records.insert(2, strange.reflected.clone())),
    ("reflected in place", |records, strange| records[2].clone_from(&strange.reflected)),
    ("of another connection", |records, strange| records.insert(2, strange.other.clone())),
    ("a bit of the content", |records, _| records[2][LENGTH_BYTES + 100] ^= 1),
    ("a bit of the header", |records, _| records[2][LENGTH_BYTES] ^= 1),
    ("a bit of the tag", |records, _| *records[2].last_mut().unwrap() ^= 0x80),
    ("a bit of the length", |records, _| records[2][0] ^= 1),
    ("cut short", |records, _| records[2].truncate(500)),
    ("a byte more", |records, _| records[2].push(0)),
    ("a byte of the length's more", |records, _| {
        records[2].push(0);
        let len = (records[2].len() - LENGTH_BYTES) as u32;
        records[2][..LENGTH_BYTES].copy_from_slice(&len.to_le_bytes());
    }),
    ("two in one", |records, _| {
        let second = records.remove(3);
        records[2].extend_from_slice(&second[LENGTH_BYTES..]);
        let len = (records[2].len() - LENGTH_BYTES) as u32;
        records[2][..LENGTH_BYTES].copy_from_slice(&len.to_le_bytes());
    }),
    ("an end that is none", |records, _| records.insert(2, [&[16, 0, 0, 0][..], &[0; 16]].concat())),
    ("the real end too soon", |records, _| {
        let last = records.len() - 1;
        records.swap(2, last);
    }),
    ("a frame without a record", |records, _| records[2] = data(&[5; 1000])),
    ("zeros", |records, _| records[2] = vec![0; 100]),
    ("nothing but a tag's worth of the next", |records, _| _ = records[2].drain(..16)),
];

#[test]
fn an_upload_that_is_tampered_with_leaves_the_old_file() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        let cases = ATTACKS.iter().flat_map(|attack| PARTS.map(|part| (attack, part)));
        for (number, ((name, attack), part)) in cases.enumerate() {
            let name = format!("{backend}, keyed {keyed}, parts of {part}: {name}");
            eprintln!("{name}");
            if keyed && number % 16 == 15 {
                // 64 connections are let in at one place.
                scene.place = Place::open(&mut scene.serving);
            }
            let other = if keyed {
                let mut other = scene.client();
                let records = upload(&scene, &mut other, part);
                records[1].clone()
            } else {
                vec![20; part]
            };
            let mut client = scene.client();
            let reply = client.ask(&Frame::Stat { path: field("f") });
            assert!(matches!(reply, Frame::StatResponse { size: 3, .. }), "{name}: {reply:?}");
            let reflected = client.input.source().sealed[0].clone();
            let mut records = upload(&scene, &mut client, part);
            attack(&mut records, &Strange { reflected, other });
            records.iter().for_each(|record| client.send_raw(record));
            client.cut();
            let (rest, ending) = client.rest();
            assert!(!rest.iter().any(|reply| matches!(reply, Received::Frame(Frame::Ok { .. }))), "{name}: {rest:?}");
            // Errors that were due before are no crime, but whoever was tampered with gets no proof of an end.
            assert!(!keyed || ending == Ending::Cut, "{name}");
            assert_eq!(fs::read(scene.serving.root().join("f")).unwrap(), b"old", "{name}");
            assert!(wait_for(LIMIT, || names(&scene.serving.root()) == ["f"]), "{name}");
            scene.again();
        }
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn records_of_impossible_lengths_end_the_connection() {
    const LARGEST: u32 = 16 * 1024 * 1024 + 16;
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        for length in [0, 1, 15, 16, 17, 1 << 20, LARGEST, LARGEST + 1, 1 << 31, u32::MAX] {
            eprintln!("{backend}, keyed {keyed}: {length}");
            let mut client = scene.client();
            client.send_raw(&length.to_le_bytes());
            // None of it is what the client sealed; lengths that no record has are not waited for.
            if (16..=LARGEST).contains(&length) {
                let mut left = length as usize;
                while left > 0 {
                    let some = left.min(1 << 20);
                    client.send_raw(&vec![1; some]);
                    left -= some;
                }
            }
            assert_eq!(client.rest(), (Vec::new(), Ending::Cut), "{backend}, keyed {keyed}: {length}");
            scene.again();
        }
        let peak = peak_memory(scene.serving.pid());
        assert!(peak < MEMORY, "{backend}, keyed {keyed}: {} MiB", peak >> 20);
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn a_stream_without_its_end_publishes_nothing_that_is_not_complete() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        for (records, within) in (0..5).flat_map(|records| [(records, 0), (records, 1), (records, 10)]) {
            let mut client = scene.client();
            let all = upload(&scene, &mut client, PARTS[1]);
            all[..records].iter().for_each(|record| client.send_raw(record));
            client.send_raw(&all[records][..within]);
            client.cut();
            let (rest, ending) = client.rest();
            assert!(!rest.iter().any(|reply| matches!(reply, Received::Frame(Frame::Ok { .. }))), "{rest:?}");
            // Between records and requests the base protocol notices nothing.
            assert!(!keyed || ending == Ending::Cut, "{records} records, {within} bytes");
            assert_eq!(fs::read(scene.serving.root().join("f")).unwrap(), b"old", "{records}");
            scene.again();
        }
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn between_requests_the_end_must_be_proved_and_nothing_may_follow_it() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend, true);
        let mkdir = |name: &str| Frame::Mkdir { path: field(name) };
        // Without the record that proves it.
        let mut client = scene.client();
        assert!(matches!(client.ask(&Frame::Stat { path: field("f") }), Frame::StatResponse { .. }));
        client.cut();
        assert_eq!(client.rest(), (Vec::new(), Ending::Cut));
        // With bytes, and with a good record, right behind it.
        for behind in [1, 4, 100, 0] {
            let mut client = scene.client();
            let end = client.record(&[]);
            let next = client.record(&bytes_of(&mkdir("d"), client.dialect));
            let behind = if behind == 0 { next } else { vec![1; behind] };
            client.send_raw(&[end, behind].concat());
            client.cut();
            let (rest, _) = client.rest();
            assert_eq!(rest, [], "{backend}");
        }
        assert_eq!(names(&scene.serving.root()), ["f"]);
        // Its frames may be in pieces in any number of records, though.
        let mut client = scene.client();
        let dialect = client.dialect;
        bytes_of(&mkdir("d"), dialect).iter().for_each(|&byte| client.send_bytes(&[byte]));
        assert!(matches!(client.input.next(), Some(Received::Frame(Frame::Ok { .. }))));
        // But not end within one.
        let frame = bytes_of(&mkdir("e"), dialect);
        client.send_bytes(&frame[..frame.len() - 1]);
        client.send_bytes(&[]);
        client.cut();
        assert_eq!(client.rest().0, []);
        assert_eq!(names(&scene.serving.root()), ["d", "f"]);
        fs::remove_dir(scene.serving.root().join("d")).unwrap();
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn a_recorded_session_does_nothing_the_second_time() {
    for (backend, keyed) in both() {
        let mut scene = Scene::new(backend, keyed);
        let guest = Guest::come(scene.place.address);
        let secret = scene.place.secret();
        let greeting = match keyed {
            true => bytes_of(&Asked::ALL.hello(&secret, &guest.nonce), KEYED),
            false => base_greeting(&secret, &guest.nonce),
        };
        let mut client = guest.client(&scene.place, keyed);
        let records = upload(&scene, &mut client, PARTS[1]).concat();
        client.send_raw(&records);
        client.cut();
        let (rest, ending) = client.rest();
        assert_eq!(rest, [Received::Frame(Frame::Ok { hash: Some(blake3_of(&[5; 300_000])) })]);
        assert_eq!(ending == Ending::Proved, keyed);
        fs::write(scene.serving.root().join("f"), "old").unwrap();

        if !keyed {
            // Nobody is met there any more.
            assert!(wait_for(LIMIT, || TcpStream::connect(scene.place.address).is_err()));
            scene.again();
        }
        let mut again = Guest::come(scene.place.address);
        again.send(&greeting);
        again.send(&records);
        assert_eq!(again.left(), b"");
        // Behind a handshake of its own, too.
        let mut client = scene.client();
        client.send_raw(&records);
        client.cut();
        assert_eq!(client.rest(), (Vec::new(), Ending::Cut));
        scene.again();
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn a_client_that_would_not_seal_is_refused_in_plain_words_and_gets_nothing() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend, false);
        let mut guest = Guest::come(scene.place.address);
        let mac = auth_mac(&scene.place.secret(), &guest.nonce);
        let hello = Frame::Hello { version: 1, caps: Caps(!Caps::AEAD.0), ext: Some(Ext::ALL) };
        for frame in [Frame::AuthHello { mac }, hello, Frame::Get { path: field("f"), offset: 0 }] {
            guest.send(&bytes_of(&frame, Dialect::BASE));
        }
        let said = guest.left();
        assert!(said.windows(8).any(|text| text == b"CAP_AEAD"), "{:?}", said.escape_ascii().to_string());
        assert!(!said.windows(3).any(|text| text == b"old"));
        scene.again();
        scene.assert_alive();
        scene.end();
    }
}

#[test]
fn a_control_session_that_ends_takes_its_guests_along() {
    for backend in BACKENDS {
        let scene = Scene::new(backend, true);
        let address = scene.place.address;
        let guests: Vec<Guest> = (0..5).map(|_| Guest::come(address)).collect();
        let mut met = scene.client();
        let Scene { mut serving, .. } = scene;
        drop(serving.input.take());
        for guest in guests {
            assert_eq!(guest.left(), b"");
        }
        assert!(wait_for(LIMIT, || TcpStream::connect(address).is_err()));
        // Whoever was met stays.
        assert!(matches!(met.ask(&Frame::Stat { path: field("f") }), Frame::StatResponse { size: 3, .. }));
        met.end(true);
        assert_eq!(serving.end().code, Some(0));
        // And one that nobody came to does not stay for the 30 seconds of a meeting.
        let scene = Scene::new(backend, true);
        scene.end();
    }
}
