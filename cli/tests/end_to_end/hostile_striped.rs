//! Files in ranges against a client and a server that do what no haul would: a plain Error or the end of the connection,
//! nothing under a name that is not whole, and a server that lives on.

use crate::support::BACKENDS;
use crate::support::direct::{Guest, KEYED, Place, SealedEnd};
use crate::support::frames::{RESUMING, Received, Serving, attributes, blake3_of, bytes_of, data, field};
use crate::support::pressure::{MEMORY, open_files, peak_memory};
use crate::support::processes::{LIMIT, names, wait_for};
use haul_engine::tree_hash::BlockHash;
use haul_engine::wire::frame::{Caps, Frame, Hash, Kind, Preserve};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

const BLOCK: u64 = 4 << 20;
/// Two blocks, and a bit of a third.
const SIZE: u64 = 2 * BLOCK + 13;

/// What such a file holds: each block is another one.
static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..SIZE).map(|at| (at / BLOCK) as u8 + 1).collect());

fn whole() -> Hash {
    blake3_of(&CONTENT)
}

fn begin(name: &str, size: u64, keep: bool) -> Frame {
    let attributes = attributes(Kind::Regular, size);
    Frame::RangeBegin { path: field(name), size, attributes, preserve: Preserve::default(), keep }
}

/// A range with its content in frames of 1 MiB, up to Done.
fn put(token: u64, offset: u64, content: &[u8]) -> Vec<u8> {
    let length = content.len() as u64;
    let mut bytes = bytes_of(&Frame::RangePut { token, offset, length }, RESUMING);
    content.chunks(1 << 20).for_each(|piece| bytes.extend(data(piece)));
    bytes.extend(bytes_of(&Frame::Done, RESUMING));
    bytes
}

fn block(number: u64) -> &'static [u8] {
    let from = (number * BLOCK) as usize;
    &CONTENT[from..CONTENT.len().min(from + BLOCK as usize)]
}

fn chaining(number: u64, content: &[u8]) -> Hash {
    BlockHash::placed(number, content).chaining
}

struct Scene {
    serving: Serving,
}

impl Scene {
    fn new(backend: &str) -> Scene {
        let serving = Serving::greeted(backend, RESUMING);
        fs::write(serving.root().join("f"), "old").unwrap();
        Scene { serving }
    }

    #[track_caller]
    fn begun(&mut self, size: u64, keep: bool) -> (u64, Vec<Hash>) {
        let reply = self.serving.ask(&begin("f", size, keep));
        let Frame::RangeBegun { token, blocks } = reply else { panic!("{reply:?}") };
        (token, blocks)
    }

    /// Puts blocks of the content.
    #[track_caller]
    fn put(&mut self, token: u64, numbers: &[u64]) {
        for &number in numbers {
            self.serving.send_bytes(&put(token, number * BLOCK, block(number)));
            assert_eq!(self.serving.reply(), Frame::Kept { blocks: vec![chaining(number, block(number))] });
        }
    }

    /// Fails unless the old file is what it was, alone, and the session does what it is for.
    #[track_caller]
    fn assert_untouched(&mut self) {
        assert_eq!(fs::read(self.serving.root().join("f")).unwrap(), b"old");
        assert_eq!(names(&self.serving.root()), ["f"]);
        self.serving.assert_usable();
    }

    #[track_caller]
    fn end(self) {
        let served = self.serving.end();
        assert_eq!((served.code, served.stderr.as_str()), (Some(0), ""));
        assert_eq!(served.rest, []);
    }
}

#[test]
fn a_file_whose_ranges_come_in_any_order_gets_its_name_with_the_last() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let (token, blocks) = scene.begun(SIZE, false);
        assert!(blocks.is_empty());
        // One of them twice, as after a connection that broke before it was told.
        scene.put(token, &[2, 0, 1, 0]);
        assert_eq!(fs::read(scene.serving.root().join("f")).unwrap(), b"old");
        let hash = whole();
        assert_eq!(scene.serving.ask(&Frame::RangeCommit { token, hash }), Frame::Ok { hash: Some(hash) });
        assert!(fs::read(scene.serving.root().join("f")).unwrap() == *CONTENT);
        // Of one block and of none, whose hashes are their own.
        for content in [&b"few"[..], b""] {
            let (token, _) = scene.begun(content.len() as u64, false);
            let chaining = if content.is_empty() { vec![] } else { vec![chaining(0, content)] };
            scene.serving.send_bytes(&put(token, 0, content));
            assert_eq!(scene.serving.reply(), Frame::Kept { blocks: chaining });
            let hash = blake3_of(content);
            assert_eq!(scene.serving.ask(&Frame::RangeCommit { token, hash }), Frame::Ok { hash: Some(hash) });
            assert_eq!(fs::read(scene.serving.root().join("f")).unwrap(), content);
        }
        assert_eq!(names(&scene.serving.root()), ["f"]);
        scene.end();
    }
}

#[test]
fn a_commit_that_comes_with_the_ranges_waits_for_them() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        for _ in 0..5 {
            let (token, _) = scene.begun(SIZE, false);
            let mut all: Vec<u8> = (0..3).flat_map(|number| put(token, number * BLOCK, block(number))).collect();
            let hash = whole();
            all.extend(bytes_of(&Frame::RangeCommit { token, hash }, RESUMING));
            all.extend(bytes_of(&Frame::RangeCommit { token, hash }, RESUMING));
            scene.serving.send_bytes(&all);
            for number in 0..3 {
                assert_eq!(scene.serving.reply(), Frame::Kept { blocks: vec![chaining(number, block(number))] });
            }
            assert_eq!(scene.serving.reply(), Frame::Ok { hash: Some(hash) });
            scene.serving.refusal("no such file was begun");
            assert!(fs::read(scene.serving.root().join("f")).unwrap() == *CONTENT);
        }
        scene.end();
    }
}

#[test]
fn a_commit_with_ranges_missing_or_of_another_hash_publishes_nothing() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let cases: [(&[u64], Hash, &str); 6] = [
            (&[], whole(), "3 of its 3 blocks have not come"),
            (&[0, 2], whole(), "1 of its 3 blocks have not come"),
            (&[0, 1], whole(), "1 of its 3 blocks have not come"),
            (&[0, 1, 2], [0; 32], "not published"),
            (&[0, 1, 2], blake3_of(b"old"), "not published"),
            (&[2, 2, 2], whole(), "2 of its 3 blocks have not come"),
        ];
        for (numbers, hash, words) in cases {
            let (token, _) = scene.begun(SIZE, false);
            scene.put(token, numbers);
            scene.serving.send(&Frame::RangeCommit { token, hash });
            scene.serving.refusal(words);
            scene.assert_untouched();
            // And is nobody's any more.
            scene.serving.send_bytes(&put(token, 0, block(0)));
            scene.serving.refusal("");
        }
        // A file of one block has to be read for that.
        let (token, _) = scene.begun(3, false);
        scene.serving.send_bytes(&put(token, 0, b"new"));
        assert!(matches!(scene.serving.reply(), Frame::Kept { .. }));
        scene.serving.send(&Frame::RangeCommit { token, hash: blake3_of(b"old") });
        scene.serving.refusal("");
        scene.assert_untouched();
        // What is there of another content, and is not replaced.
        let (token, _) = scene.begun(SIZE, false);
        scene.put(token, &[0, 1, 2]);
        scene.serving.send_bytes(&put(token, BLOCK, &[9; BLOCK as usize]));
        assert!(matches!(scene.serving.reply(), Frame::Kept { .. }));
        scene.serving.send(&Frame::RangeCommit { token, hash: whole() });
        scene.serving.refusal("not published");
        scene.assert_untouched();
        scene.end();
    }
}

#[test]
fn what_is_written_again_counts_only_when_it_is_whole_again() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let (token, _) = scene.begun(SIZE, false);
        scene.put(token, &[0, 1, 2]);
        let mut half = bytes_of(&Frame::RangePut { token, offset: 0, length: BLOCK }, RESUMING);
        half.extend(data(&vec![0xee; 1 << 20]));
        half.extend(bytes_of(&Frame::Done, RESUMING));
        scene.serving.send_bytes(&half);
        assert!(matches!(scene.serving.reply(), Frame::Error { .. }));
        let reply = scene.serving.ask(&Frame::RangeCommit { token, hash: whole() });
        assert!(matches!(reply, Frame::Error { .. }), "{reply:?}");
        scene.assert_untouched();
        scene.end();
    }
}

#[test]
fn ranges_that_are_none_are_refused_and_the_session_goes_on() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let (token, _) = scene.begun(SIZE, false);
        let mut other = scene.serving.another(backend);
        other.greet(RESUMING);
        let range = |token, offset, length| bytes_of(&Frame::RangePut { token, offset, length }, RESUMING);
        let done = bytes_of(&Frame::Done, RESUMING);
        let five = data(b"12345");
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("of nobody", put(u64::MAX, 0, block(0)), ""),
            ("of nobody, nothing", put(0, 0, b""), ""),
            ("not at a block", [range(token, 1, 5), five.clone(), done.clone()].concat(), "where a block does"),
            (
                "not at a block either",
                [range(token, BLOCK - 1, 5), five.clone(), done.clone()].concat(),
                "where a block",
            ),
            ("past the end", put(token, 2 * BLOCK, &[1; 14]), "not part of its"),
            ("far past the end", put(token, 1 << 40, b"12345"), "not part of its"),
            ("past all ends", [range(token, 0u64.wrapping_sub(BLOCK), BLOCK), done.clone()].concat(), ""),
            ("longer than any file", [range(token, BLOCK, u64::MAX), done.clone()].concat(), ""),
            ("too little", [range(token, 0, 6), five.clone(), done.clone()].concat(), "declared 6 bytes, received 5"),
            ("too much", [range(token, 0, 4), five.clone(), done.clone()].concat(), "past the declared size"),
            ("nothing of it", [range(token, 0, 5), done.clone()].concat(), "incomplete"),
            (
                "committed",
                [range(token, 0, 5), five.clone(), bytes_of(&Frame::Commit { hash: [0; 32] }, RESUMING)].concat(),
                "does not belong",
            ),
            (
                "skipped",
                [range(token, 0, 5), bytes_of(&Frame::Skip { offset: 0 }, RESUMING), five, done].concat(),
                "does not belong",
            ),
        ];
        for (name, bytes, words) in cases {
            eprintln!("{backend}: {name}");
            scene.serving.send_bytes(&bytes);
            scene.serving.refusal_then_usable(words);
        }
        // Without Done: the next request ends it.
        scene.serving.send_bytes(&range(token, 0, 10));
        scene.serving.send_bytes(&data(b"12345"));
        scene.serving.refusal_then_usable("declared 10 bytes, received 5");
        // A token is a number of one process, and only who began it names it.
        for request in [Frame::RangeCommit { token, hash: whole() }, Frame::RangeAbandon { token }] {
            other.send(&request);
            other.refusal("no such file was begun");
        }
        other.send_bytes(&put(token, 0, block(0)));
        other.refusal("");
        assert_eq!(other.end().code, Some(0));
        scene.assert_untouched();
        // None of that has cost the file anything.
        scene.put(token, &[0, 1, 2]);
        let hash = whole();
        assert_eq!(scene.serving.ask(&Frame::RangeCommit { token, hash }), Frame::Ok { hash: Some(hash) });
        for request in [Frame::RangeCommit { token, hash }, Frame::RangeAbandon { token }] {
            scene.serving.send(&request);
            scene.serving.refusal("no such file was begun");
        }
        scene.serving.send_bytes(&put(token, 0, &[0; BLOCK as usize]));
        scene.serving.refusal("");
        assert!(fs::read(scene.serving.root().join("f")).unwrap() == *CONTENT);
        scene.end();
    }
}

#[test]
fn a_session_has_sixty_four_files_in_ranges_and_no_more() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let before = open_files(scene.serving.pid());
        // All asked for at once: of the last ones none has been begun when they come.
        let all: Vec<u8> =
            (0..200).flat_map(|number| bytes_of(&begin(&format!("n{number}"), SIZE, false), RESUMING)).collect();
        scene.serving.send_bytes(&all);
        let mut tokens = Vec::new();
        let mut refused = 0;
        for _ in 0..200 {
            match scene.serving.reply() {
                Frame::RangeBegun { token, .. } => tokens.push(token),
                Frame::Error { message, .. } => {
                    assert!(String::from_utf8(message).unwrap().contains("too many files in ranges"));
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((tokens.len(), refused), (64, 136));
        assert!(wait_for(LIMIT, || open_files(scene.serving.pid()) <= before + 2 * 64 + 4));
        scene.assert_untouched();
        // Those that are given up make room.
        for token in tokens.drain(..32) {
            assert!(matches!(scene.serving.ask(&Frame::RangeAbandon { token }), Frame::Ok { .. }));
        }
        for _ in 0..32 {
            scene.begun(SIZE, false);
        }
        scene.serving.send(&begin("f", SIZE, false));
        scene.serving.refusal("too many files in ranges");
        assert!(peak_memory(scene.serving.pid()) < MEMORY);
        scene.assert_untouched();
        // Nothing is left of any of them.
        let served = scene.serving.end();
        assert_eq!((served.code, served.rest.len()), (Some(0), 0));
        assert_eq!(names(&served.root.path().join("root")), ["f"]);
    }
}

#[test]
fn files_that_cannot_be_begun_are_refused() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let root = scene.serving.root();
        fs::create_dir(root.join("d")).unwrap();
        for size in [1 << 41, 1 << 63, u64::MAX] {
            for keep in [false, true] {
                scene.serving.send(&begin("f", size, keep));
                scene.serving.refusal("");
            }
        }
        for name in ["d", "f/f", "", "../f"] {
            for keep in [false, true] {
                eprintln!("{backend}: {name}, {keep}");
                scene.serving.send(&begin(name, SIZE, keep));
                scene.serving.refusal("");
            }
        }
        fs::remove_dir(root.join("d")).unwrap();
        scene.assert_untouched();
        scene.end();
    }
}

#[test]
fn blocks_are_told_of_regular_files_only_and_never_more_than_there_are() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let root = scene.serving.root();
        fs::write(root.join("c"), &*CONTENT).unwrap();
        let all: Vec<Hash> = (0..3).map(|number| chaining(number, block(number))).collect();
        // The last block counts where exactly the file may be there.
        let cases = [(0, 0), (1, 0), (BLOCK, 1), (2 * BLOCK + 1, 2), (SIZE, 3), (SIZE + 1, 2), (u64::MAX, 2)];
        for (length, count) in cases {
            let reply = scene.serving.ask(&Frame::Blocks { path: field("c"), length });
            let Frame::Kept { blocks } = reply else { panic!("{length}: {reply:?}") };
            assert!(
                blocks.len() == count || (length < SIZE && blocks.len() == length.div_ceil(BLOCK) as usize),
                "{length}"
            );
            assert!(blocks.iter().zip(&all).take(count).all(|(found, expected)| found == expected), "{length}");
        }
        fs::create_dir(root.join("d")).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(root.join("p")).status().unwrap();
        assert!(fifo.success());
        for name in ["d", "p", "missing", "", "../f", "c/c"] {
            scene.serving.send(&Frame::Blocks { path: field(name), length: u64::MAX });
            scene.serving.refusal("");
        }
        for name in ["c", "p"] {
            fs::remove_file(root.join(name)).unwrap();
        }
        fs::remove_dir(root.join("d")).unwrap();
        scene.assert_untouched();
        scene.end();
    }
}

#[test]
fn what_is_kept_of_a_file_in_ranges_is_told_block_by_block_and_counts_for_the_commit() {
    for backend in BACKENDS {
        let mut scene = Scene::new(backend);
        let (token, _) = scene.begun(SIZE, true);
        scene.put(token, &[2, 0]);
        let root = scene.serving.root();
        let mut again = scene.serving.another(backend);
        again.greet(RESUMING);
        scene.end();
        assert_eq!(names(&root).len(), 2, "what has come stays");
        let reply = again.ask(&begin("f", SIZE, true));
        let Frame::RangeBegun { token, blocks } = reply else { panic!("{reply:?}") };
        let known: Vec<bool> = (0..3).zip(&blocks).map(|(n, found)| *found == chaining(n, block(n))).collect();
        assert_eq!(known, [true, false, true]);
        // The hole between them counts as a block that is there, but not as that of the content.
        again.send_bytes(&put(token, BLOCK, block(1)));
        assert!(matches!(again.reply(), Frame::Kept { .. }));
        let hash = whole();
        assert_eq!(again.ask(&Frame::RangeCommit { token, hash }), Frame::Ok { hash: Some(hash) });
        assert!(fs::read(root.join("f")).unwrap() == *CONTENT);
        assert_eq!(names(&root), ["f"]);
        assert_eq!(again.end().code, Some(0));
    }
}

#[test]
fn a_connection_cut_inside_a_range_costs_the_others_nothing() {
    for backend in BACKENDS {
        let mut serving = Serving::agreed(backend, KEYED, Caps::DIRECT_TCP);
        fs::write(serving.root().join("f"), "old").unwrap();
        let place = Place::open(&mut serving);
        let reply = serving.ask(&begin("f", SIZE, false));
        let Frame::RangeBegun { token, .. } = reply else { panic!("{reply:?}") };
        for at in [1, 50, 1000, 1 << 20, 3 << 20] {
            let mut victim = place.client(true);
            let range = put(token, 0, block(0));
            victim.send_bytes(&range[..at]);
            victim.cut();
            drop(victim);
        }
        let mut ends: Vec<SealedEnd> = (0..3).map(|_| place.client(true)).collect();
        for (number, end) in (0..).zip(&mut ends) {
            put(token, number * BLOCK, block(number)).chunks(1 << 20).for_each(|bytes| end.send_bytes(bytes));
        }
        for (number, end) in (0..).zip(&mut ends) {
            let kept = Frame::Kept { blocks: vec![chaining(number, block(number))] };
            assert_eq!(end.input.next(), Some(Received::Frame(kept)));
            // Only who began a file names it.
            let reply = end.ask(&Frame::RangeCommit { token, hash: whole() });
            assert!(matches!(reply, Frame::Error { .. }), "{reply:?}");
        }
        assert_eq!(fs::read(serving.root().join("f")).unwrap(), b"old");
        let hash = whole();
        assert_eq!(serving.ask(&Frame::RangeCommit { token, hash }), Frame::Ok { hash: Some(hash) });
        assert!(fs::read(serving.root().join("f")).unwrap() == *CONTENT);
        ends.into_iter().for_each(|end| end.end(true));
        assert_eq!(serving.end().code, Some(0));
    }
}

#[test]
fn a_client_may_come_again_more_often_than_it_may_have_connections() {
    for backend in BACKENDS {
        let mut serving = Serving::agreed(backend, KEYED, Caps::DIRECT_TCP);
        let place = Place::open(&mut serving);
        let before = open_files(serving.pid());
        for number in 0..150 {
            let mut client = place.client(true);
            let reply = client.ask(&Frame::Stat { path: field("") });
            assert!(matches!(reply, Frame::StatResponse { is_dir: true, .. }), "{number}: {reply:?}");
            if number % 2 == 0 {
                client.end(true);
            }
        }
        assert!(wait_for(LIMIT, || open_files(serving.pid()) <= before + 1));
        // At the same time it has some number of them, and no more.
        let crowd: Vec<SealedEnd> = (0..haul_engine::limits::MAX_SERVED).map(|_| place.client(true)).collect();
        let mut guest = Guest::come(place.address);
        guest.send(&bytes_of(&crate::support::direct::Asked::ALL.hello(&place.secret(), &guest.nonce), KEYED));
        assert_eq!(guest.left(), b"");
        serving.assert_usable();
        assert!(peak_memory(serving.pid()) < MEMORY);
        drop(crowd);
        assert_eq!(serving.end().code, Some(0));
    }
}

/// A connection that is begun, whether or not anybody takes it.
fn half_open(place: &Place) -> OwnedFd {
    let flags = SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    let _ = rustix::net::connect(&socket, &place.address);
    socket
}

#[test]
fn a_crowd_at_the_port_keeps_nobody_from_moving_a_file_in_ranges() {
    for backend in BACKENDS {
        // On a busy machine nobody may get past the crowd in the ten seconds that he has.
        let mut serving = Serving::listening_long(backend);
        serving.agree(KEYED, Caps::DIRECT_TCP);
        let place = Place::open(&mut serving);
        let before = open_files(serving.pid());
        let crowd: Vec<OwnedFd> = (0..200).map(|_| half_open(&place)).collect();
        let reply = serving.ask(&begin("f", SIZE, false));
        let Frame::RangeBegun { token, .. } = reply else { panic!("{reply:?}") };
        let ends: Vec<_> = (0..3)
            .map(|number| {
                std::thread::spawn(move || {
                    let mut end = place.client(true);
                    put(token, number * BLOCK, block(number)).chunks(1 << 20).for_each(|bytes| end.send_bytes(bytes));
                    assert!(matches!(end.input.next(), Some(Received::Frame(Frame::Kept { .. }))));
                    end.end(true);
                })
            })
            .collect();
        let mut most = 0;
        assert!(wait_for(LIMIT, || {
            most = most.max(open_files(serving.pid()).saturating_sub(before));
            ends.iter().all(std::thread::JoinHandle::is_finished)
        }));
        ends.into_iter().for_each(|end| end.join().unwrap());
        // Three that were let in, the file, one that is accepted while another is closed.
        assert!(most <= 64 + 3 + 3, "{most} at once");
        let hash = whole();
        assert_eq!(serving.ask(&Frame::RangeCommit { token, hash }), Frame::Ok { hash: Some(hash) });
        assert!(peak_memory(serving.pid()) < MEMORY);
        drop(crowd);
        assert_eq!(serving.end().code, Some(0));
    }
}
