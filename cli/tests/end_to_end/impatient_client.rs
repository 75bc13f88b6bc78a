//! Clients that ask much, read late, write in drops or do nothing at all: the server answers everything in order, waits
//! when it must, never grows, and does not wait for ever.

use crate::support::frames::{BASES, DIALECTS, FULL, Received, Serving, blake3_of, bytes_of, data, field, hello};
use crate::support::pressure::{MEMORY, peak_memory, settle, write_beside};
use crate::support::processes::{names, signal, wait_for};
use crate::support::{BACKENDS, random_file};
use haul_engine::wire::frame::{Dialect, Frame};
use rustix::process::Signal;
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn thousands_of_requests_sent_ahead_are_answered_in_order_to_a_client_that_reads_late() {
    const REQUESTS: usize = 2000;
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        let mut serving = Serving::greeted(backend, dialect);
        let contents: Vec<Vec<u8>> = (0..7).map(|number| vec![number as u8; 3000 * number]).collect();
        for (number, content) in contents.iter().enumerate() {
            fs::write(serving.root().join(number.to_string()), content).unwrap();
        }
        let mut number = 0;
        let (taken, writer) = write_beside(&mut serving, move || {
            let path = field((number % 7).to_string());
            let request = if number % 2 == 0 { Frame::Stat { path } } else { Frame::Get { path, offset: 0 } };
            number += 1;
            (number <= REQUESTS).then(|| bytes_of(&request, dialect))
        });
        settle(serving.pid(), &taken);
        for number in 0..REQUESTS {
            let content = &contents[number % 7];
            if number % 2 == 0 {
                let reply = serving.reply();
                assert!(matches!(reply, Frame::StatResponse { size, .. } if size == content.len() as u64), "{reply:?}");
                continue;
            }
            if dialect == FULL {
                assert!(matches!(serving.reply(), Frame::Meta { .. }));
            }
            if !content.is_empty() {
                assert_eq!(serving.next(), Received::Data(content.clone()));
            }
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(content)) });
        }
        drop(writer.join());
        let served = serving.end();
        assert_eq!((served.code, served.rest), (Some(0), Vec::new()), "{}", served.stderr);
    }
}

#[test]
fn many_files_sent_ahead_are_all_published_and_answered_in_order() {
    const FILES: usize = 1000;
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        let mut serving = Serving::greeted(backend, dialect);
        let content = |number: usize| vec![number as u8; 97 * number];
        let mut number = 0;
        let (taken, writer) = write_beside(&mut serving, move || {
            let (size, path) = (content(number).len() as u64, field(format!("d{}/{number}", number % 3)));
            let hash = blake3_of(&content(number));
            let end = if dialect == FULL { Frame::Commit { hash } } else { Frame::Done };
            let put = Frame::Put { path, size, offset: 0, overwrite: true };
            let whole = [bytes_of(&put, dialect), data(&content(number)), bytes_of(&end, dialect)].concat();
            number += 1;
            (number <= FILES).then_some(whole)
        });
        settle(serving.pid(), &taken);
        for number in 0..FILES {
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content(number))) }, "{number}");
        }
        drop(writer.join());
        let root = serving.end().root;
        for number in 0..FILES {
            let file = root.path().join(format!("root/d{}/{number}", number % 3));
            assert_eq!(fs::read(file).unwrap(), content(number));
        }
        assert_eq!(names(&root.path().join("root")), ["d0", "d1", "d2"]);
    }
}

#[test]
fn frames_that_arrive_byte_by_byte_are_answered_as_those_that_arrive_at_once() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| DIALECTS.map(|dialect| (backend, dialect))) {
        let content = b"some content".to_vec();
        let put = Frame::Put { path: field("f"), size: 12, offset: 0, overwrite: true };
        let hash = blake3_of(&content);
        let end = if dialect == FULL { Frame::Commit { hash } } else { Frame::Done };
        let path = || field("f");
        let requests = [
            bytes_of(&Frame::Stat { path: path() }, dialect),
            bytes_of(&put, dialect),
            data(&content[..5]),
            data(&content[5..]),
            bytes_of(&end, dialect),
            bytes_of(&Frame::Get { path: path(), offset: 3 }, dialect),
            bytes_of(&Frame::Hash { path: path(), offset: 1, limit: Some(4) }, dialect),
            bytes_of(&Frame::List { path: field("") }, dialect),
            bytes_of(&Frame::Done, dialect),
            bytes_of(&Frame::Resume { path: field("../x") }, dialect),
        ]
        .concat();
        let conversation = |step: usize| {
            let mut serving = Serving::greeted(backend, dialect);
            for bytes in requests.chunks(step) {
                serving.send_bytes(bytes);
            }
            let served = serving.end();
            let listed = |mut said: Vec<Received>| {
                // Times differ between the two files.
                for said in &mut said {
                    match said {
                        Received::Frame(Frame::Meta { attributes, .. }) => attributes.mtime = Default::default(),
                        Received::Frame(Frame::ListResponse { entries }) => entries[0].mtime = 0,
                        _ => {}
                    }
                }
                said
            };
            (served.code, listed(served.rest))
        };
        let at_once = conversation(requests.len());
        assert!(at_once.1.len() >= 8 && at_once.0 == Some(0), "{at_once:?}");
        assert_eq!(conversation(1), at_once);
        assert_eq!(conversation(3), at_once);
    }
}

#[test]
fn walks_beyond_the_limit_are_refused_and_those_within_it_go_on() {
    for backend in BACKENDS {
        let mut serving = Serving::greeted(backend, FULL);
        for number in 0..1500 {
            fs::write(serving.root().join(format!("{number}")), "").unwrap();
        }
        let tree = |walk| Frame::Tree { walk, path: field(""), recursive: true };
        (1..=17).for_each(|walk| serving.send(&tree(walk)));
        let mut open = Vec::new();
        for walk in 1..=17 {
            match serving.reply() {
                Frame::TreePage { last: false, entries } => open.push((walk, entries.len())),
                Frame::Error { message, .. } => {
                    assert!(String::from_utf8_lossy(&message).contains("too many listings"));
                }
                reply => panic!("{reply:?}"),
            }
        }
        assert!(!open.is_empty() && open.len() < 17, "{open:?}");
        serving.send(&tree(open[0].0));
        serving.refusal("cannot list");
        serving.send(&Frame::TreeNext { walk: 99 });
        serving.refusal("no such listing");
        // In turns, as far as they go.
        for (walk, seen) in &mut open {
            loop {
                let reply = serving.ask(&Frame::TreeNext { walk: *walk });
                let Frame::TreePage { last, entries } = reply else { panic!("{reply:?}") };
                *seen += entries.len();
                if last {
                    break;
                }
            }
            assert_eq!(*seen, 1500);
            serving.send(&Frame::TreeNext { walk: *walk });
            serving.refusal("no such listing");
        }
        let reply = serving.ask(&tree(1));
        assert!(matches!(reply, Frame::TreePage { .. }), "{reply:?}");
        serving.assert_usable();
        assert_eq!(serving.end().code, Some(0));
    }
}

/// Sends the same request again and again, reads nothing, and says how much memory that has cost the server at most.
fn memory_for(backend: &str, dialect: Dialect, prepare: impl Fn(&Serving), requests: Vec<u8>, up_to: u64) -> u64 {
    let mut serving = Serving::greeted(backend, dialect);
    prepare(&serving);
    let mut left = up_to;
    let (taken, writer) = write_beside(&mut serving, move || {
        left = left.saturating_sub(requests.len() as u64);
        (left > 0).then(|| requests.clone())
    });
    let sent = settle(serving.pid(), &taken);
    let peak = peak_memory(serving.pid());
    signal(serving.pid(), Signal::KILL);
    drop(writer.join());
    eprintln!("{backend}, {dialect:?}: {} KiB taken, {} MiB used", sent / 1024, peak >> 20);
    peak
}

fn many(frame: &Frame, dialect: Dialect) -> Vec<u8> {
    bytes_of(frame, dialect).repeat(1000)
}

#[test]
fn requests_for_content_that_nobody_reads_cost_bounded_memory() {
    for (backend, dialect) in
        BACKENDS.into_iter().flat_map(|backend| [BASES[1], FULL].map(|dialect| (backend, dialect)))
    {
        let get = many(&Frame::Get { path: field("big"), offset: 0 }, dialect);
        let prepare = |serving: &Serving| random_file(&serving.root().join("big"), 64 << 20, 1);
        let peak = memory_for(backend, dialect, prepare, get, 100 << 20);
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
    }
}

#[test]
fn small_requests_whose_replies_nobody_reads_cost_bounded_memory() {
    for (backend, dialect) in
        BACKENDS.into_iter().flat_map(|backend| [BASES[1], FULL].map(|dialect| (backend, dialect)))
    {
        for request in [Frame::Stat { path: field("") }, Frame::Done, Frame::Get { path: field("missing"), offset: 0 }]
        {
            let peak = memory_for(backend, dialect, |_| {}, many(&request, dialect), 50 << 20);
            assert!(peak < MEMORY, "{request:?}: {} MiB", peak >> 20);
        }
    }
}

#[test]
fn requests_for_long_listings_that_nobody_reads_cost_bounded_memory() {
    for backend in BACKENDS {
        for (dialect, request) in [
            (BASES[0], Frame::List { path: field("") }),
            (FULL, Frame::Tree { walk: 1, path: field(""), recursive: true }),
        ] {
            let prepare = |serving: &Serving| {
                for number in 0..20_000 {
                    fs::write(serving.root().join(format!("{number:0200}")), "").unwrap();
                }
            };
            let peak = memory_for(backend, dialect, prepare, many(&request, dialect), 1 << 20);
            assert!(peak < MEMORY, "{request:?}: {} MiB", peak >> 20);
        }
    }
}

#[test]
fn requests_as_long_as_a_frame_may_be_cost_bounded_memory() {
    for (backend, dialect) in
        BACKENDS.into_iter().flat_map(|backend| [BASES[1], FULL].map(|dialect| (backend, dialect)))
    {
        let long = bytes_of(&Frame::Stat { path: field("x".repeat(15 << 20)) }, dialect);
        let peak = memory_for(backend, dialect, |_| {}, long, 300 << 20);
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
    }
}

#[test]
fn offers_of_as_many_blocks_as_a_frame_holds_cost_bounded_memory() {
    for (backend, dialect) in
        BACKENDS.into_iter().flat_map(|backend| [BASES[1], FULL].map(|dialect| (backend, dialect)))
    {
        // The most that fits; a file of 2 TiB.
        let hashes = vec![[7; 32]; 524_287];
        let size = hashes.len() as u64 * (4 << 20);
        let offer = bytes_of(&Frame::HaveBlocks { block_size: 4 << 20, hashes }, dialect);
        let put = bytes_of(&Frame::Put { path: field("f"), size, offset: 0, overwrite: true }, dialect);
        let done = bytes_of(&Frame::Done, dialect);
        for request in [offer.clone(), [put, offer, done].concat()] {
            let peak = memory_for(backend, dialect, |_| {}, request, 300 << 20);
            assert!(peak < MEMORY, "{} MiB", peak >> 20);
        }
    }
}

#[test]
fn a_frame_that_is_announced_and_does_not_come_costs_what_came_of_it() {
    for backend in BACKENDS {
        let mut serving = Serving::greeted(backend, FULL);
        serving.send_bytes(&[0, 0, 0, 1, 0x03, 0xff, 0xff, 0xff, 0x00, b'x']);
        std::thread::sleep(Duration::from_millis(300));
        let peak = peak_memory(serving.pid());
        assert!(peak < 32 << 20, "{} MiB", peak >> 20);
        assert_eq!(serving.end().code, Some(1));
    }
}

#[test]
fn clients_that_do_not_greet_or_do_not_read_are_given_up_after_a_while() {
    // The two limits as they are set here, and some time for a busy machine.
    let (greeting, reading) = (Duration::from_secs(1), Duration::from_secs(2));
    let busy = Duration::from_secs(15);
    std::thread::scope(|scope| {
        for backend in BACKENDS {
            for begun in [Vec::new(), bytes_of(&hello(FULL), Dialect::BASE)[..7].to_vec()] {
                scope.spawn(move || {
                    let started = Instant::now();
                    let mut serving = Serving::hurried(backend, "0,0,1000,60000");
                    serving.send_bytes(&begun);
                    assert_eq!(serving.output.next(), None);
                    let waited = started.elapsed();
                    assert!(waited >= greeting && waited < greeting + busy, "{waited:?}");
                    let served = serving.end();
                    assert_eq!(served.code, Some(1));
                    assert_eq!(served.stderr, "haul: handshake: the client did not greet in time\n");
                });
            }
            scope.spawn(move || {
                let mut serving = Serving::hurried(backend, "0,0,30000,2000");
                random_file(&serving.root().join("big"), 64 << 20, 1);
                serving.greet(FULL);
                serving.send(&Frame::Get { path: field("big"), offset: 0 });
                let started = Instant::now();
                let pid = serving.pid();
                let gone = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
                assert!(wait_for(reading + busy, gone), "still there after {reading:?} and {busy:?}");
                assert!(started.elapsed() >= reading, "{:?}", started.elapsed());
                signal(pid, Signal::KILL);
            });
        }
    });
}
