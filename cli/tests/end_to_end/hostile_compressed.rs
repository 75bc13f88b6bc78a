//! Compressed frames that are not what they say, to the real server and from a server to the real client: refused once,
//! never published, and never at the cost of what they claim to hold.

use crate::support::frames::{
    BASES, FULL, FarEnd, RESUMING, Received, Serving, attributes, blake3_of, compressed, data, field, play,
};
use crate::support::pressure::{MEMORY, peak_memory, settle, write_beside};
use crate::support::processes::{Ended, LIMIT, names};
use crate::support::{BACKENDS, Remote};
use haul_engine::wire::compress::{Codec, compress};
use haul_engine::wire::frame::{Caps, Dialect, Frame, Hash, Kind, Preserve};
use std::ffi::OsString;
use std::fs;

const LZ4: u8 = 1;
const ZSTD: u8 = 2;
const BOTH_CODECS: Caps = Caps(Caps::LZ4.0 | Caps::ZSTD.0);
const BLOCK: usize = 4 << 20;
/// What the files here are made of, and how large most of them are: received into memory first.
const SIZE: usize = 1000;
const SPOKEN: [Dialect; 3] = [BASES[0], BASES[1], RESUMING];

/// How content gets into a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Put,
    Range,
    Continue,
}

impl Way {
    fn known_to(dialect: Dialect) -> &'static [Way] {
        if dialect == RESUMING { &[Way::Put, Way::Range, Way::Continue] } else { &[Way::Put, Way::Range] }
    }

    /// Everything up to the first byte of content.
    #[track_caller]
    fn begin(self, serving: &mut Serving, size: usize) {
        let (path, size) = (field("f"), size as u64);
        serving.send(&match self {
            Way::Put => Frame::Put { path, size, offset: 0, overwrite: true },
            Way::Range => Frame::PutChunked { path, offset: 0, length: size },
            Way::Continue => Frame::Continue { path, size },
        });
        if self == Way::Continue {
            let kept = serving.reply();
            assert!(matches!(kept, Frame::Kept { .. }), "{kept:?}");
            serving.send(&Frame::Skip { offset: 0 });
        }
    }

    fn end(self, serving: &mut Serving, hash: Hash) {
        if self == Way::Range { serving.send(&Frame::Done) } else { serving.end_put(hash) }
    }
}

fn a_block(len: usize) -> Vec<u8> {
    vec![b'a'; len]
}

/// `len` bytes `a` as the codecs make them.
fn packed(codec: u8, len: usize) -> Vec<u8> {
    let mut payload = vec![0; len + 1000];
    let len = compress(Codec::from_algo(codec).unwrap(), &a_block(len), &mut payload, false).unwrap();
    payload.truncate(len);
    payload
}

/// A frame of Zstandard that does not say how much it holds: so many runs of 128 KiB, 4 bytes each.
fn zstd_runs(runs: usize) -> Vec<u8> {
    let block = |last: bool| {
        let header = u32::from(last) | 1 << 1 | (128 * 1024) << 3;
        let [low, middle, high, _] = header.to_le_bytes();
        [low, middle, high, b'a']
    };
    // No content size, no checksum, no dictionary; a window of 1 MiB.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 10 << 3];
    frame.extend((0..runs).flat_map(|run| block(run + 1 == runs)));
    frame
}

/// A block of LZ4 with one match that repeats its first byte, as often as `len` bytes can say.
fn lz4_run(len: usize) -> Vec<u8> {
    let mut block = vec![0x1f, b'a', 1, 0];
    block.resize(len - 7, 0xff);
    block.extend([0, 0x50, b'a', b'a', b'a', b'a', b'a']);
    block
}

/// Frames that may stand in a stream and must not become content, with the size of the file they are sent for.
fn bad_frames() -> Vec<(String, usize, Vec<u8>)> {
    let mut table = Vec::new();
    for codec in [LZ4, ZSTD] {
        let payload = packed(codec, SIZE);
        let mut row = |what: &str, size: usize, original: usize, payload: &[u8]| {
            table.push((format!("codec {codec}: {what}"), size, compressed(codec, original as u32, payload)));
        };
        row("more than declared", SIZE, SIZE - 1, &payload);
        row("less than declared", SIZE, SIZE + 1, &payload);
        row("much less than declared", BLOCK, BLOCK, &payload);
        row("one byte declared", 1, 1, &payload);
        row("garbage behind it", SIZE, SIZE, &[&payload[..], b"x"].concat());
        row("twice", 2 * SIZE, 2 * SIZE, &payload.repeat(2));
        row("cut short", SIZE, SIZE, &payload[..payload.len() - 1]);
        row("nothing", SIZE, SIZE, b"");
        row("zeros", SIZE, SIZE, &[0; 10]);
        row("15 MiB for one byte", 1, 1, &vec![0xff; 15 << 20]);
        row("more than the file has", SIZE, BLOCK, &packed(codec, BLOCK));
    }
    let mut row = |what: &str, size: usize, codec: u8, payload: &[u8]| {
        table.push((what.to_string(), size, compressed(codec, size as u32, payload)));
    };
    row("LZ4 for 1 GiB", BLOCK, LZ4, &lz4_run(BLOCK));
    row("Zstandard for 4 GiB, size not said", BLOCK, ZSTD, &zstd_runs(32 * 1024));
    row("Zstandard for less, size not said", BLOCK, ZSTD, &zstd_runs(31));
    row(
        "a skippable frame first",
        SIZE,
        ZSTD,
        &[&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0][..], &packed(ZSTD, SIZE)].concat(),
    );
    row(
        "a skippable frame last",
        SIZE,
        ZSTD,
        &[&packed(ZSTD, SIZE)[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]].concat(),
    );
    // Content size of 2^64 - 1, a window of more than memory has, a dictionary nobody has.
    let all = [&[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..], &[0xff; 8], &[0x03, 0, 0, b'a']].concat();
    row("Zstandard that says 2^64", SIZE, ZSTD, &all);
    row("a window of 2^41", BLOCK, ZSTD, &[&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff][..], &zstd_runs(32)[6..]].concat());
    row("a dictionary", SIZE, ZSTD, &[0x28, 0xb5, 0x2f, 0xfd, 0x01, 10 << 3, 7, 0x43, 0x1f, 0, b'a']);
    table
}

/// Frames that are malformed whatever follows.
fn malformed_frames() -> Vec<(String, Vec<u8>)> {
    let payload = packed(ZSTD, SIZE);
    let sizes = [0, BLOCK as u32 + 1, 1 << 30, u32::MAX];
    let codecs = [0, 3, 255];
    let of_size = |size: &u32| (format!("{size} bytes"), compressed(ZSTD, *size, &payload));
    let of_codec = |codec: &u8| (format!("codec {codec}"), compressed(*codec, SIZE as u32, &payload));
    sizes.iter().map(of_size).chain(codecs.iter().map(of_codec)).collect()
}

#[test]
fn compressed_content_arrives_by_every_way() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| SPOKEN.map(|dialect| (backend, dialect))) {
        let mut serving = Serving::agreed(backend, dialect, BOTH_CODECS);
        for &way in Way::known_to(dialect) {
            for (codec, len) in
                [LZ4, ZSTD].into_iter().flat_map(|codec| [100, SIZE, 300_000, BLOCK].map(|len| (codec, len)))
            {
                way.begin(&mut serving, len + 1);
                serving.send_bytes(&[compressed(codec, len as u32, &packed(codec, len)), data(b"b")].concat());
                let content = [a_block(len), b"b".to_vec()].concat();
                way.end(&mut serving, blake3_of(&content));
                let hash = (way != Way::Range).then(|| blake3_of(&content));
                assert_eq!(serving.reply(), Frame::Ok { hash }, "{way:?}, codec {codec}, {len}");
                assert_eq!(fs::read(serving.root().join("f")).unwrap(), content);
                fs::remove_file(serving.root().join("f")).unwrap();
            }
        }
        // A frame need not say how much it holds, as long as that is what was declared.
        serving.send(&Frame::Put { path: field("f"), size: BLOCK as u64, offset: 0, overwrite: true });
        serving.send_bytes(&compressed(ZSTD, BLOCK as u32, &zstd_runs(32)));
        serving.end_put(blake3_of(&a_block(BLOCK)));
        assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&a_block(BLOCK))) });
        let served = serving.end();
        assert_eq!((served.code, served.rest), (Some(0), Vec::new()), "{}", served.stderr);
    }
}

#[test]
fn compressed_frames_that_are_not_what_they_say_are_refused_once_and_not_published() {
    let table = bad_frames();
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| SPOKEN.map(|dialect| (backend, dialect))) {
        let mut serving = Serving::agreed(backend, dialect, BOTH_CODECS);
        let root = serving.root();
        for (what, size, frame) in &table {
            for &way in Way::known_to(dialect) {
                eprintln!("{backend}, {dialect:?}, {way:?}: {what}");
                way.begin(&mut serving, *size);
                serving.send_bytes(frame);
                way.end(&mut serving, blake3_of(&a_block(*size)));
                serving.refusal("cannot receive");
                serving.assert_usable();
                match way {
                    Way::Put => assert!(names(&root).is_empty()),
                    // What stands there stays as it is; no byte of the frame is in it.
                    Way::Range => {
                        assert_eq!(fs::read(root.join("f")).unwrap_or_default(), b"");
                        let _ = fs::remove_file(root.join("f"));
                    }
                    Way::Continue => assert!(names(&root).is_empty(), "nothing had arrived"),
                }
            }
        }
        let peak = peak_memory(serving.pid());
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
        let served = serving.end();
        assert_eq!((served.code, served.rest), (Some(0), Vec::new()), "{}", served.stderr);
    }
}

#[test]
fn impossible_sizes_and_codecs_end_the_session_without_a_word() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| SPOKEN.map(|dialect| (backend, dialect))) {
        for ((what, frame), &way) in malformed_frames().iter().zip(Way::known_to(dialect).iter().cycle()) {
            let mut serving = Serving::agreed(backend, dialect, BOTH_CODECS);
            way.begin(&mut serving, 1 << 20);
            serving.send_bytes(frame);
            // The client does not end its side: the server must.
            assert_eq!(serving.output.next(), None, "{what}, {way:?}, {dialect:?}");
            let served = serving.end();
            assert_eq!(served.code, Some(1), "{what}, {way:?}, {dialect:?}");
            let left = names(&served.root.path().join("root"));
            assert!(left.is_empty() || (way == Way::Range && left == ["f"]), "{left:?}");
        }
    }
}

#[test]
fn a_compressed_frame_cut_by_the_end_of_the_stream_publishes_nothing() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|backend| SPOKEN.map(|dialect| (backend, dialect))) {
        for (size, cut) in [(SIZE, 1), (SIZE, 14), (BLOCK, 14), (BLOCK, 100), (BLOCK, 0)] {
            let mut serving = Serving::agreed(backend, dialect, BOTH_CODECS);
            fs::write(serving.root().join("f"), "old").unwrap();
            Way::Put.begin(&mut serving, size);
            let frame = compressed(LZ4, size as u32, &packed(LZ4, size));
            serving.send_bytes(&frame[..if cut == 0 { frame.len() } else { cut }]);
            let served = serving.end();
            assert!(!served.rest.iter().any(|said| matches!(said, Received::Frame(Frame::Ok { .. }))));
            assert_eq!(served.code, Some(1), "{}", served.stderr);
            assert_eq!(fs::read(served.root.path().join("root/f")).unwrap(), b"old");
            assert_eq!(names(&served.root.path().join("root")), ["f"]);
        }
    }
}

#[test]
fn tiny_compressed_frames_by_the_thousand_cost_bounded_memory() {
    // Each takes a turn of the codec for 20 bytes.
    const FRAMES: usize = 30_000;
    for backend in BACKENDS {
        for (way, codec) in [(Way::Put, LZ4), (Way::Range, ZSTD), (Way::Continue, ZSTD)] {
            let mut serving = Serving::agreed(backend, RESUMING, BOTH_CODECS);
            way.begin(&mut serving, FRAMES * 20);
            let frames = compressed(codec, 20, &packed(codec, 20)).repeat(100);
            let mut left = FRAMES / 100;
            let (taken, writer) = write_beside(&mut serving, move || {
                left = left.checked_sub(1)?;
                Some(frames.clone())
            });
            settle(serving.pid(), &taken);
            serving.input = Some(writer.join().unwrap());
            let content = a_block(FRAMES * 20);
            way.end(&mut serving, blake3_of(&content));
            let hash = (way != Way::Range).then(|| blake3_of(&content));
            assert_eq!(serving.reply(), Frame::Ok { hash });
            assert_eq!(fs::read(serving.root().join("f")).unwrap(), content);
            let peak = peak_memory(serving.pid());
            assert!(peak < MEMORY, "{} MiB", peak >> 20);
            assert_eq!(serving.end().code, Some(0));
        }
    }
}

#[test]
fn large_compressed_frames_between_single_bytes_cost_bounded_memory() {
    const ROUNDS: usize = 12;
    for backend in BACKENDS {
        for codec in [LZ4, ZSTD] {
            let mut serving = Serving::agreed(backend, RESUMING, BOTH_CODECS);
            let size = ROUNDS * (BLOCK + 3);
            Way::Put.begin(&mut serving, size);
            let [one, whole] = [data(b"b"), compressed(codec, BLOCK as u32, &packed(codec, BLOCK))];
            let round = [&one[..], &one, &whole, &one].concat();
            let mut left = ROUNDS;
            let (taken, writer) = write_beside(&mut serving, move || {
                left = left.checked_sub(1)?;
                Some(round.clone())
            });
            settle(serving.pid(), &taken);
            serving.input = Some(writer.join().unwrap());
            let round = [&b"bb"[..], &a_block(BLOCK), b"b"].concat();
            let content = round.repeat(ROUNDS);
            Way::Put.end(&mut serving, blake3_of(&content));
            assert_eq!(serving.reply(), Frame::Ok { hash: Some(blake3_of(&content)) });
            let peak = peak_memory(serving.pid());
            assert!(peak < MEMORY, "{} MiB", peak >> 20);
            assert_eq!(serving.end().code, Some(0));
        }
    }
}

/// Runs `haul copy FLAGS far:f DIR/f` with an old file there; gives how it ended and what stands there then.
fn download(backend: &str, flags: &[&str], act: impl FnOnce(&mut FarEnd) + Send) -> (Ended, Vec<u8>) {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    fs::write(dir.path().join("f"), "old").unwrap();
    let args = |pipes: &crate::support::Pipes| {
        let mut args: Vec<OsString> = vec!["copy".into()];
        args.extend(flags.iter().map(Into::into));
        args.extend(pipes.args());
        args.extend(["far:f".into(), dir.path().join("f").into()]);
        args
    };
    let ended = play(backend, LIMIT, args, act);
    assert_eq!(names(dir.path()), ["f"]);
    (ended, fs::read(dir.path().join("f")).unwrap())
}

/// Greets, says that the file has `size` bytes, and sends this in answer to Get.
fn sent_for(far: &mut FarEnd, dialect: Dialect, caps: Caps, size: usize, bytes: &[u8]) {
    far.greet_with(dialect, caps);
    let found = attributes(Kind::Regular, size as u64);
    far.looked_up(Some(found));
    let request = far.request();
    assert!(matches!(request, Frame::Get { offset: 0, .. }), "{request:?}");
    if dialect == FULL {
        far.send(&Frame::Meta { attributes: found, preserve: Preserve::default() });
    }
    far.send_bytes(bytes);
}

#[test]
fn a_client_takes_no_frame_that_is_not_what_it_says() {
    for (backend, dialect) in BACKENDS.into_iter().flat_map(|b| [Dialect::BASE, FULL].map(|dialect| (b, dialect))) {
        for (what, size, frame) in &bad_frames() {
            let (ended, found) = download(backend, &[], |far| {
                sent_for(far, dialect, BOTH_CODECS, *size, frame);
                far.send(&Frame::Ok { hash: Some(blake3_of(&a_block(*size))) });
                far.drain();
            });
            assert_eq!(ended.status.code(), Some(23), "{what}: {ended:?}");
            assert!(ended.stderr.contains("cannot receive"), "{what}: {}", ended.stderr);
            assert_eq!(found, b"old", "{what}");
        }
    }
}

#[test]
fn a_client_is_not_sent_what_it_did_not_agree_to() {
    for backend in BACKENDS {
        for (codec, flags) in [(LZ4, ["--compress", "none"]), (ZSTD, ["--compress", "none"])] {
            let (ended, found) = download(backend, &flags, |far| {
                sent_for(far, FULL, BOTH_CODECS, SIZE, &compressed(codec, SIZE as u32, &packed(codec, SIZE)));
                far.send(&Frame::Ok { hash: Some(blake3_of(&a_block(SIZE))) });
                far.drain();
            });
            assert_eq!(ended.status.code(), Some(23), "{ended:?}");
            assert!(ended.stderr.contains("compressed content was not agreed on"), "{}", ended.stderr);
            assert_eq!(found, b"old");
        }
    }
}

#[test]
fn a_client_ends_where_a_server_sends_what_cannot_be() {
    for backend in BACKENDS {
        for (what, frame) in malformed_frames() {
            let (ended, found) = download(backend, &[], |far| {
                sent_for(far, FULL, BOTH_CODECS, SIZE, &frame);
                far.drain();
            });
            assert_eq!(ended.status.code(), Some(2), "{what}: {ended:?}");
            assert_eq!(found, b"old");
        }
        for cut in [3, 14, 20] {
            let (ended, found) = download(backend, &[], |far| {
                sent_for(far, FULL, BOTH_CODECS, SIZE, &compressed(ZSTD, SIZE as u32, &packed(ZSTD, SIZE))[..cut]);
            });
            assert_eq!(ended.status.code(), Some(12), "{ended:?}");
            assert_eq!(found, b"old");
        }
    }
}
