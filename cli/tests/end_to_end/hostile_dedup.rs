//! Offers of known blocks that break the rules, to the real server, and answers to them that lie, to the real client.

use crate::support::frames::{
    BASES, FarEnd, RESUMING, Received, Serving, blake3_of, bytes_of, compressed, data, field, play,
};
use crate::support::pressure::{MEMORY, peak_memory, pipe_size, settle, write_beside};
use crate::support::processes::{Ended, LIMIT, names, signal};
use crate::support::{BACKENDS, Remote, random_file};
use haul_engine::limits::SEND_QUEUE_BYTES;
use haul_engine::wire::compress::{Codec, compress};
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Frame, Hash};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const BLOCK: usize = 4 << 20;
const CAPS: Caps = Caps(Caps::DEDUP.0 | Caps::LZ4.0);
const SPOKEN: [Dialect; 3] = [BASES[0], BASES[1], RESUMING];

/// Runs a session on both backends; afterwards it must still be usable and end well.
fn on_both(test: impl Fn(&mut Serving)) {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| SPOKEN.map(|dialect| (backend, dialect))) {
        eprintln!("{backend}, {dialect:?}");
        let mut serving = Serving::agreed(backend, dialect, CAPS);
        test(&mut serving);
        serving.assert_usable();
        let served = serving.end();
        assert_eq!((served.code, served.rest), (Some(0), Vec::new()), "{}", served.stderr);
    }
}

/// A whole block and a short one.
fn two_blocks() -> Vec<u8> {
    (0..BLOCK + 1000).map(|at| (at / 7 % 251) as u8).collect()
}

fn hashes_of(content: &[u8]) -> Vec<Hash> {
    content.chunks(BLOCK).map(blake3_of).collect()
}

fn put(name: &str, size: usize) -> Frame {
    Frame::Put { path: field(name), size: size as u64, offset: 0, overwrite: true }
}

fn have(hashes: Vec<Hash>) -> Frame {
    Frame::HaveBlocks { block_size: BLOCK as u32, hashes }
}

/// Sends Put and the offer of its blocks; returns the bitmap of those that are missing.
#[track_caller]
fn offered(serving: &mut Serving, name: &str, content: &[u8]) -> Vec<u8> {
    serving.send(&put(name, content.len()));
    match serving.ask(&have(hashes_of(content))) {
        Frame::MissingBlocks { bitmap } => bitmap,
        reply => panic!("{reply:?}"),
    }
}

/// Has the server know all blocks of this.
#[track_caller]
fn known(serving: &mut Serving, content: &[u8]) {
    offered(serving, "known", content);
    content.chunks(BLOCK).for_each(|block| serving.send_bytes(&data(block)));
    serving.end_put(blake3_of(content));
    assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(content)) });
    fs::remove_file(serving.root().join("known")).unwrap();
}

/// The only reply is an Error, the session goes on, and only the old file is there.
#[track_caller]
fn assert_refused(serving: &mut Serving, words: &str) {
    serving.refusal(words);
    serving.assert_usable();
    assert_eq!(names(&serving.root()), ["f"]);
    assert_eq!(fs::read(serving.root().join("f")).unwrap(), b"old");
}

#[test]
fn offers_that_break_the_rules_are_refused_once() {
    let content = two_blocks();
    let hashes = hashes_of(&content);
    on_both(|serving| {
        fs::write(serving.root().join("f"), "old").unwrap();
        let dialect = serving.dialect;
        let bytes = |frame: &Frame| bytes_of(frame, dialect);
        let of_size = |block_size: u32| bytes(&Frame::HaveBlocks { block_size, hashes: hashes.clone() });
        let good = bytes(&have(hashes.clone()));
        let mut table: Vec<(&str, usize, Vec<u8>)> = [0, 1, 1 << 20, 8 << 20, u32::MAX]
            .map(|size| ("blocks must be of 4194304 bytes", content.len(), of_size(size)))
            .into();
        for count in [0, 1, 3, 1000, 524_287] {
            table.push(("has 2 blocks, not", content.len(), bytes(&have(vec![hashes[0]; count]))));
        }
        table.push(("has 0 blocks, not 1", 0, bytes(&have(vec![hashes[0]]))));
        table.push(("before any content, once", content.len(), [data(&content[..1]), good.clone()].concat()));
        for (words, size, offer) in table {
            eprintln!("{words}");
            serving.send(&put("f", size));
            serving.send_bytes(&offer);
            serving.send_bytes(&data(&content[..BLOCK]));
            serving.end_put(blake3_of(&content));
            assert_refused(serving, words);
        }
        // The first offer may have been answered by then.
        serving.send(&put("f", content.len()));
        serving.send_bytes(&good.repeat(2));
        serving.end_put(blake3_of(&content));
        match serving.reply() {
            Frame::Error { .. } => serving.assert_usable(),
            Frame::MissingBlocks { .. } => assert_refused(serving, "before any content, once"),
            reply => panic!("{reply:?}"),
        }
        assert_eq!(offered(serving, "f", &content), [0b11]);
        serving.send_bytes(&good);
        serving.end_put(blake3_of(&content));
        assert_refused(serving, "before any content, once");
        // A file of no bytes has no blocks, and an offer of none is fine.
        assert_eq!(offered(serving, "f", b""), b"");
        serving.end_put(blake3_of(b""));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(b"")) });
        assert_eq!(fs::read(serving.root().join("f")).unwrap(), b"");
    });
}

#[test]
fn an_offer_behind_content_that_is_still_with_the_codec_is_refused() {
    let content = two_blocks();
    let mut packed = vec![0; 2000];
    let len = compress(Codec::Lz4, &[7; 100], &mut packed, false).unwrap();
    on_both(|serving| {
        known(serving, &content);
        fs::write(serving.root().join("f"), "old").unwrap();
        let dialect = serving.dialect;
        for _ in 0..20 {
            let begun = [
                bytes_of(&put("f", content.len()), dialect),
                compressed(1, 100, &packed[..len]),
                bytes_of(&have(hashes_of(&content)), dialect),
            ];
            serving.send_bytes(&begun.concat());
            // The end comes when everything before it is done.
            serving.refusal("before any content, once");
            serving.end_put(blake3_of(&content));
            serving.assert_usable();
            assert_eq!(fs::read(serving.root().join("f")).unwrap(), b"old");
        }
    });
}

#[test]
fn an_offer_where_no_file_comes_as_a_whole_is_refused_once() {
    let content = two_blocks();
    on_both(|serving| {
        fs::write(serving.root().join("f"), "old").unwrap();
        let offer = have(hashes_of(&content));
        serving.send(&Frame::PutChunked { path: field("f"), offset: 0, length: 3 });
        serving.send(&offer);
        serving.send_bytes(&data(b"new"));
        serving.send(&Frame::Done);
        assert_refused(serving, "does not belong to a range");
        serving.send(&Frame::Put { path: field("f"), size: content.len() as u64, offset: 2, overwrite: true });
        serving.send(&offer);
        serving.end_put(blake3_of(&content));
        assert_refused(serving, "before any content, once");
        serving.send(&offer);
        assert_refused(serving, "HaveBlocks");
        // Dropped with the body that it was sent in.
        serving.send(&put("../f", content.len()));
        serving.send(&offer);
        serving.end_put(blake3_of(&content));
        assert_refused(serving, "'..'");
        if serving.dialect != RESUMING {
            return;
        }
        known(serving, &content);
        for skipped in [false, true] {
            serving.send(&Frame::Continue { path: field("f"), size: content.len() as u64 });
            let kept = serving.reply();
            assert!(matches!(kept, Frame::Kept { .. }), "{kept:?}");
            if skipped {
                serving.send(&Frame::Skip { offset: 0 });
            }
            serving.send(&offer);
            serving.send_bytes(&data(&content[..BLOCK]));
            serving.end_put(blake3_of(&content));
            serving.refusal("cannot");
            serving.assert_usable();
            assert_eq!(fs::read(serving.root().join("f")).unwrap(), b"old");
        }
    });
}

#[test]
fn a_frame_that_is_not_the_missing_block_is_refused_once() {
    let content = two_blocks();
    let (whole, short) = content.split_at(BLOCK);
    let bodies: [(&str, Vec<Vec<u8>>); 9] = [
        ("a frame of 4194303 came", vec![data(&whole[1..]), data(short)]),
        ("a frame of 4195304 came", vec![data(&content)]),
        ("a frame of 2097152 came", vec![data(&whole[..BLOCK / 2]), data(&whole[BLOCK / 2..]), data(short)]),
        ("a frame of 0 came", vec![data(b""), data(whole), data(short)]),
        ("a frame of 1000 came", vec![data(short), data(whole)]),
        ("a frame of 1001 came", vec![data(whole), data(&[short, b"x"].concat())]),
        ("more blocks came than were missing", vec![data(whole), data(short), data(short)]),
        ("more blocks came than were missing", vec![data(whole), data(short), data(b"")]),
        ("declared 4195304 bytes, received 4194304", vec![data(whole)]),
    ];
    on_both(|serving| {
        fs::write(serving.root().join("f"), "old").unwrap();
        for (words, body) in &bodies {
            eprintln!("{words}");
            assert_eq!(offered(serving, "f", &content), [0b11]);
            body.iter().for_each(|frame| serving.send_bytes(frame));
            serving.end_put(blake3_of(&content));
            assert_refused(serving, words);
        }
        assert_eq!(offered(serving, "f", &content), [0b11], "nothing of what failed is kept");
        serving.end_put(blake3_of(&content));
        assert_refused(serving, "received 0");
        if serving.dialect == RESUMING {
            for (end, code) in [
                (Frame::Commit { hash: [7; 32] }, ErrorCode::HASH_MISMATCH),
                (Frame::Abandon { code: ErrorCode::OTHER }, ErrorCode::ABANDONED),
                (Frame::Done, ErrorCode::OTHER),
            ] {
                offered(serving, "f", &content);
                [whole, short].iter().for_each(|block| serving.send_bytes(&data(block)));
                serving.send(&end);
                assert_eq!(serving.refusal(""), code);
            }
        }
        // With all of it known nothing may come, and nothing need.
        known(serving, &content);
        assert_eq!(offered(serving, "f", &content), [0]);
        serving.send_bytes(&data(whole));
        serving.end_put(blake3_of(&content));
        assert_refused(serving, "more blocks came than were missing");
        assert_eq!(offered(serving, "f", &content), [0]);
        serving.end_put(blake3_of(&content));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
        assert_eq!(fs::read(serving.root().join("f")).unwrap(), content);
    });
}

#[test]
fn content_before_the_answer_to_an_offer_is_refused_or_arrives_whole() {
    let content = two_blocks();
    on_both(|serving| {
        for name in ["f", "g"] {
            // The second time the server knows it all.
            serving.send(&put(name, content.len()));
            serving.send(&have(hashes_of(&content)));
            content.chunks(BLOCK).for_each(|block| serving.send_bytes(&data(block)));
            serving.end_put(blake3_of(&content));
            let mut reply = serving.reply();
            if let Frame::MissingBlocks { .. } = reply {
                reply = serving.reply();
            }
            match reply {
                Frame::Ok { hash } => assert_eq!(hash, Some(blake3_of(&content))),
                Frame::Error { .. } => assert!(!serving.root().join(name).exists()),
                reply => panic!("{reply:?}"),
            }
            if let Ok(found) = fs::read(serving.root().join(name)) {
                assert!(found == content);
            }
            serving.assert_usable();
        }
    });
}

/// Everything that the store holds.
fn stored(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "blk") {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_block_is_what_its_hash_says_whatever_a_client_calls_it_and_whatever_became_of_it_in_the_store() {
    let content = two_blocks();
    let other: Vec<u8> = content.iter().map(|byte| byte ^ 1).collect();
    on_both(|serving| {
        // Other content under the names of known blocks.
        assert_eq!(offered(serving, "f", &content), [0b11]);
        other.chunks(BLOCK).for_each(|block| serving.send_bytes(&data(block)));
        serving.end_put(blake3_of(&other));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&other)) });
        assert_eq!(offered(serving, "f", &content), [0b11]);
        serving.send_bytes(&data(&content[..BLOCK]));
        serving.send_bytes(&data(&content[BLOCK..]));
        serving.end_put(blake3_of(&content));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
        // One byte of every block turned round.
        let blocks = stored(serving.store());
        assert!(blocks.len() >= 2, "{blocks:?}");
        for block in &blocks {
            let mut bytes = fs::read(block).unwrap();
            bytes[500] ^= 0x80;
            fs::write(block, bytes).unwrap();
        }
        assert_eq!(offered(serving, "g", &content), [0b11]);
        serving.end_put(blake3_of(&content));
        serving.refusal("received 0");
        assert!(!serving.root().join("g").exists());
    });
}

#[test]
fn offers_whose_answers_nobody_reads_cost_bounded_memory() {
    // 4 MiB of hashes.
    const BLOCKS: usize = 131_072;
    let size = BLOCKS as u64 * BLOCK as u64;
    for backend in BACKENDS {
        let dialect = BASES[1];
        let mut serving = Serving::agreed(backend, dialect, CAPS);
        // The path stands in the reply, which is long therefore; no file can have this name.
        let request = |number: usize, size: u64| Frame::Put {
            path: field(format!("{number}-{}", "n".repeat(4000))),
            size,
            offset: 0,
            overwrite: true,
        };
        let done = bytes_of(&Frame::Done, dialect);
        // Replies that nobody reads, nearly until no more are made: what is asked for behind them stays in memory.
        let room = SEND_QUEUE_BYTES + pipe_size(&serving);
        let mut short = room / 4060 - 380;
        let mut offers = 420;
        let (taken, writer) = write_beside(&mut serving, move || {
            if short > 0 {
                short -= 1;
                return Some([bytes_of(&request(short, 1), dialect), done.clone()].concat());
            }
            offers -= 1;
            let parts = [
                bytes_of(&request(offers, size), dialect),
                bytes_of(&have(vec![[7; 32]; BLOCKS]), dialect),
                done.clone(),
            ];
            (offers > 0).then(|| parts.concat())
        });
        let sent = settle(serving.pid(), &taken);
        let peak = peak_memory(serving.pid());
        eprintln!("{backend}: {sent} taken, {} MiB used, room {room}", peak >> 20);
        signal(serving.pid(), Signal::KILL);
        drop(writer.join());
        assert!(sent > 300 << 20, "{sent}");
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
    }
}

#[test]
fn a_client_that_goes_while_blocks_are_missing_leaves_nothing() {
    let content = two_blocks();
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| SPOKEN.map(|dialect| (backend, dialect))) {
        for sent in [0, 1, 2] {
            let mut serving = Serving::agreed(backend, dialect, CAPS);
            fs::write(serving.root().join("f"), "old").unwrap();
            offered(&mut serving, "f", &content);
            content.chunks(BLOCK).take(sent).for_each(|block| serving.send_bytes(&data(block)));
            let served = serving.end();
            assert_eq!((served.code, served.rest), (Some(1), Vec::new()));
            assert_eq!(names(&served.root.path().join("root")), ["f"]);
            assert_eq!(fs::read(served.root.path().join("root/f")).unwrap(), b"old");
        }
    }
}

/// A file of four blocks and a short one, offered by the real client to `act`, which is given its content.
fn upload(backend: &str, flags: &[&str], act: impl FnOnce(&mut FarEnd, &[u8]) + Send) -> Ended {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let source = dir.path().join("f");
    random_file(&source, 4 * BLOCK + 5, 1);
    let content = fs::read(&source).unwrap();
    let args = |pipes: &crate::support::Pipes| {
        let mut args: Vec<OsString> = vec!["copy".into(), "--compress=none".into()];
        args.extend(flags.iter().map(Into::into));
        args.extend(pipes.args());
        args.extend([source.clone().into(), "far:target".into()]);
        args
    };
    play(backend, LIMIT, args, |far| act(far, &content))
}

/// Greets, takes Put and the offer.
#[track_caller]
fn take_offer(far: &mut FarEnd, dialect: Dialect, content: &[u8]) {
    far.greet_with(dialect, Caps::DEDUP);
    far.looked_up(None);
    let put = far.request();
    assert!(matches!(put, Frame::Put { size, offset: 0, .. } if size == content.len() as u64), "{put:?}");
    let mut offer = far.request();
    if let Frame::Meta { .. } = offer {
        offer = far.request();
    }
    assert_eq!(offer, have(hashes_of(content)));
}

/// Everything up to the end of the body.
#[track_caller]
fn take_body(far: &mut FarEnd) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    loop {
        match far.input.next() {
            Some(Received::Data(block)) => blocks.push(block),
            Some(Received::Frame(Frame::Done | Frame::Commit { .. })) => return blocks,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_sends_the_blocks_whose_bits_are_set_whatever_the_length_of_the_answer() {
    let bitmaps: [(&str, Vec<u8>, &[usize]); 6] = [
        ("all", vec![0x1f], &[0, 1, 2, 3, 4]),
        ("some", vec![0b1_0010], &[1, 4]),
        ("bits that are no blocks", vec![0b1110_0100], &[2]),
        ("none", vec![0], &[]),
        ("too short", vec![], &[]),
        ("as long as a frame may be", vec![0xff; (16 << 20) - 5], &[0, 1, 2, 3, 4]),
    ];
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|b| [Dialect::BASE, RESUMING].map(|dialect| (b, dialect))) {
        for (what, bitmap, expected) in &bitmaps {
            let ended = upload(backend, &["--dedup"], |far, content| {
                take_offer(far, dialect, content);
                far.send(&Frame::MissingBlocks { bitmap: bitmap.clone() });
                let blocks: Vec<&[u8]> = content.chunks(BLOCK).collect();
                let expected: Vec<&[u8]> = expected.iter().map(|&index| blocks[index]).collect();
                assert!(take_body(far) == expected, "{what}");
                far.send(&Frame::Ok { hash: Some(blake3_of(content)) });
                far.drain();
            });
            ended.assert_exit(0);
        }
    }
}

type Act = fn(&mut FarEnd, &[u8]);

#[test]
fn a_client_ends_where_the_answer_to_an_offer_is_none() {
    let table: [(&str, i32, &[&str], Act); 9] = [
        ("twice", 2, &["--dedup"], |far, content| {
            take_offer(far, RESUMING, content);
            far.send_bytes(&bytes_of(&Frame::MissingBlocks { bitmap: vec![1] }, RESUMING).repeat(2));
        }),
        ("never asked for", 2, &[], |far, _| {
            far.greet_with(RESUMING, Caps::DEDUP);
            far.looked_up(None);
            far.request();
            far.send(&Frame::MissingBlocks { bitmap: vec![0x1f] });
        }),
        ("before the offer", 2, &["--dedup"], |far, _| {
            far.greet_with(RESUMING, Caps::DEDUP);
            far.send_bytes(&bytes_of(&Frame::MissingBlocks { bitmap: vec![0x1f] }, RESUMING));
        }),
        ("Ok", 2, &["--dedup"], |far, content| {
            take_offer(far, RESUMING, content);
            far.send(&Frame::Ok { hash: Some(blake3_of(content)) });
        }),
        ("Kept", 2, &["--dedup"], |far, content| {
            take_offer(far, RESUMING, content);
            far.send(&Frame::Kept { blocks: vec![[0; 32]; 3] });
        }),
        ("data", 2, &["--dedup"], |far, content| {
            take_offer(far, RESUMING, content);
            far.send_bytes(&data(b"x"));
        }),
        ("an error", 23, &["--dedup"], |far, content| {
            take_offer(far, RESUMING, content);
            far.send(&Frame::Error { message: b"no".to_vec(), code: ErrorCode::OTHER });
        }),
        ("an error among the blocks", 23, &["--dedup"], |far, content| {
            take_offer(far, Dialect::BASE, content);
            far.send(&Frame::MissingBlocks { bitmap: vec![0x1f] });
            let first = far.input.next();
            assert_eq!(first, Some(Received::Data(content[..BLOCK].to_vec())));
            far.send(&Frame::Error { message: b"no".to_vec(), code: ErrorCode::NONE });
        }),
        ("another hash", 23, &["--dedup"], |far, content| {
            take_offer(far, Dialect::BASE, content);
            far.send(&Frame::MissingBlocks { bitmap: vec![0] });
            take_body(far);
            far.send(&Frame::Ok { hash: Some([7; 32]) });
        }),
    ];
    for (backend, (what, code, flags, act)) in BACKENDS.into_iter().flat_map(|b| table.map(|row| (b, row))) {
        eprintln!("{backend}: {what}");
        let ended = upload(backend, flags, |far, content| {
            act(far, content);
            far.drain();
        });
        ended.assert_exit(code);
        assert!(ended.lines().len() <= 2, "{what}: {}", ended.stderr);
    }
    // The stream ends in place of an answer.
    for backend in BACKENDS {
        let ended = upload(backend, &["--dedup"], |far, content| take_offer(far, RESUMING, content));
        ended.assert_exit(12);
    }
}
