//! Compressed and known blocks by hand: what the real servers make of them, and haul as far as it offers them. Runs where
//! HAUL_BCMR_060 and HAUL_BCMR_072 name the real binaries.

use crate::support::interop::content::{noise, text};
use crate::support::interop::peer::Peer;
use crate::support::interop::raw::{
    BLOCK, LZ4, Raw, ZSTD, compressed, data, done, have_blocks, hex, kind, lz4_run, put, zstd_run,
};
use crate::support::interop::speaker::{Place, Speaker, with_each};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Everything that concerns blocks: both codecs and dedup, and offsets because all newer clients have them.
const CAPS: u8 = 0x87;
const DEDUP: u8 = 0x04;

/// `len` bytes `a` with a codec, written out by hand.
fn packed(codec: u8, len: usize) -> Vec<u8> {
    if codec == LZ4 { lz4_run(b'a', len) } else { zstd_run(b'a', len) }
}

/// The codec's bit in the greeting.
fn offers(speaker: &Speaker, codec: u8) -> bool {
    speaker.caps & (if codec == LZ4 { 0x01 } else { 0x02 }) != 0
}

#[test]
fn blocks_of_both_codecs_are_understood() {
    with_each(|dialect| {
        for (codec, len) in [LZ4, ZSTD].into_iter().flat_map(|codec| [25, 64, 100_000, BLOCK].map(|len| (codec, len))) {
            let mut speaker = Speaker::greeted(dialect, CAPS);
            let block = compressed(codec, len, &packed(codec, len));
            speaker.send(&[put(dialect.version, "f", len + 1, 0), block, data(b"b"), done()].concat());
            let content = [vec![b'a'; len], b"b".to_vec()].concat();
            if offers(&speaker, codec) {
                assert_eq!(speaker.accepted(), Some(hex(&content)), "{dialect:?}: codec {codec}, {len} bytes");
                assert_eq!(fs::read(speaker.root().join("f")).unwrap(), content);
            } else {
                assert_eq!(dialect.peer, Peer::Haul);
                assert_eq!(speaker.errors_left(), 1);
            }
            speaker.leave();
        }
    });
}

#[test]
fn only_haul_wants_a_codec_to_be_agreed_on() {
    with_each(|dialect| {
        for codec in [LZ4, ZSTD] {
            let mut speaker = Speaker::greeted(dialect, 0);
            let block = compressed(codec, 64, &packed(codec, 64));
            speaker.send(&[put(dialect.version, "f", 64, 0), block, done()].concat());
            if dialect.peer == Peer::Haul {
                assert_eq!(speaker.errors_left(), 1);
                assert!(!speaker.root().join("f").exists());
            } else {
                assert_eq!(speaker.accepted(), Some(hex(&[b'a'; 64])));
            }
            speaker.leave();
        }
    });
}

#[test]
fn blocks_of_another_length_than_they_claim_are_errors() {
    with_each(|dialect| {
        for (codec, claimed) in [(LZ4, 63), (LZ4, 65), (ZSTD, 63), (ZSTD, 65)] {
            let mut speaker = Speaker::greeted(dialect, CAPS);
            let block = compressed(codec, claimed, &packed(codec, 64));
            speaker.send(&[put(dialect.version, "f", 64, 0), block, done()].concat());
            if dialect.peer == Peer::Old && claimed > 64 {
                // Its claim is a limit only.
                assert_eq!(speaker.accepted(), Some(hex(&[b'a'; 64])));
            } else {
                assert_eq!(speaker.errors_left(), if dialect.peer == Peer::Haul { 1 } else { 2 }, "{dialect:?}");
            }
            speaker.leave();
        }
    });
}

#[test]
fn blocks_that_are_none_are_errors() {
    with_each(|dialect| {
        for codec in [LZ4, ZSTD] {
            let mut speaker = Speaker::greeted(dialect, CAPS);
            let block = compressed(codec, 64, &[0; 10]);
            speaker.send(&[put(dialect.version, "f", 64, 0), block, done()].concat());
            assert_eq!(speaker.errors_left(), if dialect.peer == Peer::Haul { 1 } else { 2 }, "{dialect:?}");
            speaker.leave();
        }
    });
}

#[test]
fn impossible_blocks_are_the_end_for_haul_and_errors_for_others() {
    with_each(|dialect| {
        let run = BLOCK + 1;
        let table = [
            ("of no bytes", 64, compressed(LZ4, 0, &lz4_run(b'a', 64))),
            ("of more than 4 MiB", run, compressed(ZSTD, run, &zstd_run(b'a', run))),
            ("with a codec that does not exist", 64, compressed(3, 64, &[0; 10])),
        ];
        for (why, size, block) in table {
            let mut speaker = Speaker::greeted(dialect, CAPS);
            speaker.send(&[put(dialect.version, "f", size, 0), block, done()].concat());
            match dialect.peer {
                Peer::Haul => speaker.assert_ends_silently(why),
                Peer::Old if size == run => assert_eq!(speaker.accepted(), Some(hex(&vec![b'a'; run]))),
                Peer::Old | Peer::New => assert_eq!(speaker.errors_left(), 2, "{dialect:?}: {why}"),
            }
        }
    });
}

/// Offers blocks, and says which of them the server has not.
#[track_caller]
fn missing(speaker: &mut Speaker, name: &str, blocks: &[&[u8]]) -> Vec<usize> {
    let size = blocks.iter().map(|block| block.len()).sum();
    let hashes: Vec<[u8; 32]> = blocks.iter().map(|block| *blake3::hash(block).as_bytes()).collect();
    speaker.send(&[put(speaker.dialect.version, name, size, 0), have_blocks(BLOCK, &hashes)].concat());
    let reply = speaker.reply();
    assert_eq!(reply.kind, kind::MISSING_BLOCKS, "{:?}: {:?}", speaker.dialect, reply.error());
    let bitmap = reply.fields().bytes().unwrap().to_vec();
    (0..blocks.len()).filter(|block| bitmap.get(block / 8).is_some_and(|byte| byte >> (block % 8) & 1 == 1)).collect()
}

/// Sends a file as dedup has it; says which blocks were missing, and the reply.
#[track_caller]
fn put_blocks(speaker: &mut Speaker, name: &str, blocks: &[&[u8]]) -> (Vec<usize>, Raw<'static>) {
    let missing = missing(speaker, name, blocks);
    for &block in &missing {
        speaker.send(&data(blocks[block]));
    }
    (missing, speaker.ask(&done()))
}

/// Runs a script with every server that offers dedup; the real ones do.
fn with_each_that_knows_blocks(script: impl Fn(&mut Speaker)) {
    with_each(|dialect| {
        let mut speaker = Speaker::greeted(dialect, CAPS);
        assert!(speaker.caps & DEDUP != 0 || dialect.peer == Peer::Haul);
        if speaker.caps & DEDUP != 0 {
            script(&mut speaker);
            assert_eq!(speaker.errors_left(), 0);
            speaker.leave();
        }
    });
}

#[test]
fn known_blocks_are_not_asked_for_again() {
    let (one, two, end) = (noise(BLOCK, 1), text(BLOCK, 2), noise(5, 3));
    with_each_that_knows_blocks(|speaker| {
        let root = speaker.root();
        let blocks: [&[u8]; 3] = [&one, &two, &one];
        let (missing, reply) = put_blocks(speaker, "f", &blocks);
        assert_eq!(missing, [0, 1, 2], "{:?}", speaker.dialect);
        assert_eq!(reply.ok(), Some(Some(hex(&blocks.concat()))));
        let blocks: [&[u8]; 4] = [&two, &one, &two, &end];
        let (missing, reply) = put_blocks(speaker, "g", &blocks);
        assert_eq!(missing, [3], "{:?}", speaker.dialect);
        assert_eq!(reply.ok(), Some(Some(hex(&blocks.concat()))));
        assert_eq!(fs::read(root.join("g")).unwrap(), blocks.concat());
        let (missing, reply) = put_blocks(speaker, "h", &blocks);
        assert_eq!((missing, reply.ok()), (vec![], Some(Some(hex(&blocks.concat())))));
    });
}

#[test]
fn a_block_is_known_by_what_it_is_and_not_by_what_a_client_calls_it() {
    let (named, sent) = (noise(BLOCK, 1), noise(BLOCK, 2));
    with_each_that_knows_blocks(|speaker| {
        assert_eq!(missing(speaker, "f", &[&named]), [0]);
        speaker.send(&[data(&sent), done()].concat());
        let reply = speaker.reply();
        // The hash is of what came; a client that compares it finds out.
        assert!(reply.ok() == Some(Some(hex(&sent))) || reply.error().is_some(), "{:?}: {reply:?}", speaker.dialect);
        let (still_missing, reply) = put_blocks(speaker, "g", &[&named]);
        assert_eq!((still_missing, reply.ok()), (vec![0], Some(Some(hex(&named)))), "{:?}", speaker.dialect);
    });
}

#[test]
fn blocks_that_do_not_come_and_blocks_too_many_are_errors() {
    let [one, two, three] = [1, 2, 3].map(|seed| noise(BLOCK, seed));
    with_each_that_knows_blocks(|speaker| {
        let haul = speaker.dialect.peer == Peer::Haul;
        missing(speaker, "f", &[&one, &two]);
        speaker.send(&[data(&one), done()].concat());
        assert_eq!(speaker.errors_left(), 1, "{:?}", speaker.dialect);
        assert_eq!(missing(speaker, "f", &[&three]), [0]);
        speaker.send(&[data(&three), data(b"more"), done()].concat());
        let errors = speaker.errors_left();
        assert!(errors == 1 || errors == 2 && !haul, "{:?}: {errors}", speaker.dialect);
        assert!(!speaker.root().join("f").exists() || speaker.dialect.peer == Peer::Old, "{:?}", speaker.dialect);
    });
}

#[test]
fn blocks_of_another_size_are_errors_except_in_0_6_0() {
    let block = noise(BLOCK, 1);
    with_each_that_knows_blocks(|speaker| {
        let hashes = [*blake3::hash(&block).as_bytes()];
        let version = speaker.dialect.version;
        let reply = speaker.ask(&[put(version, "f", BLOCK, 0), have_blocks(BLOCK / 4, &hashes)].concat());
        if speaker.dialect.peer == Peer::Old {
            assert_eq!(reply.kind, kind::MISSING_BLOCKS);
            speaker.send(&[data(&block), done()].concat());
            assert_eq!(speaker.accepted(), Some(hex(&block)));
        } else {
            assert!(reply.error().is_some());
            speaker.send(&[data(b"not a block"), done()].concat());
            assert_eq!(speaker.errors_left(), if speaker.dialect.peer == Peer::Haul { 0 } else { 2 });
        }
    });
}

#[test]
fn only_0_6_0_gives_blocks_of_one_root_to_clients_of_another() {
    let block = noise(BLOCK, 1);
    with_each_that_knows_blocks(|speaker| {
        let dialect = speaker.dialect;
        assert_eq!(put_blocks(speaker, "f", &[&block]).0, [0]);
        let place = std::mem::replace(speaker, Speaker::greeted(dialect, CAPS)).leave();
        let mut other = Speaker::greeted_at(dialect, CAPS, place, "other root");
        let found = missing(&mut other, "stolen", &[&block]);
        assert_eq!(found.is_empty(), dialect.peer == Peer::Old, "{dialect:?}");
    });
}

/// Changes a byte in every large file that the server keeps for itself. Returns how many there are.
fn damage(place: &Place) -> usize {
    let mut todo: Vec<PathBuf> = ["home", "store"].map(|name| place.beside(name)).into();
    let mut damaged = 0;
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if fs::metadata(&path).unwrap().len() >= BLOCK as u64 {
            flip(&path, BLOCK as u64 / 2);
            damaged += 1;
        }
    }
    damaged
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn only_0_6_0_makes_files_of_damaged_blocks() {
    let block = noise(BLOCK, 1);
    with_each_that_knows_blocks(|speaker| {
        assert_eq!(put_blocks(speaker, "f", &[&block]).0, [0]);
        assert_eq!(damage(speaker.place()), 1, "{:?}", speaker.dialect);
        let (_, reply) = put_blocks(speaker, "g", &[&block]);
        let made = fs::read(speaker.root().join("g")).ok();
        match (speaker.dialect.peer, reply.ok()) {
            (Peer::Old, Some(Some(hash))) => {
                assert!(made.is_some_and(|made| made != block) && hash != hex(&block));
            }
            (Peer::New | Peer::Haul, Some(Some(hash))) => assert_eq!((made, hash), (Some(block.clone()), hex(&block))),
            (Peer::New | Peer::Haul, None) => assert_eq!(made, None),
            (_, other) => panic!("{:?}: {other:?}", speaker.dialect),
        }
    });
}
