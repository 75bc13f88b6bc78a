//! The real client that goes on with a file, against servers that lie about what is there and what they have.

use crate::support::frames::{FarEnd, RESUMING, Received, attributes, blake3_of, bytes_of, data, field, play, refusal};
use crate::support::processes::{Ended, LIMIT, names};
use crate::support::{BACKENDS, Remote};
use haul_engine::tree_hash::BlockHash;
use haul_engine::wire::frame::{Attributes, Caps, Dialect, Frame, Hash, Kind, Preserve, Timestamp};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

const BLOCK: usize = 4 << 20;
const BOTH: [Dialect; 2] = [Dialect::BASE, RESUMING];

fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..3 * BLOCK + 5).map(|at| (at / 5 % 251) as u8).collect());
    &CONTENT
}

fn chain(content: &[u8]) -> Vec<Hash> {
    (0..).zip(content.chunks(BLOCK)).map(|(index, block)| BlockHash::of(index, block).chaining).collect()
}

/// A directory that outlives the runs in it.
struct Place {
    dir: tempfile::TempDir,
    /// What a broken connection left.
    partial: Option<PathBuf>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        fs::create_dir(dir.path().join("to")).unwrap();
        fs::write(dir.path().join("from"), content()).unwrap();
        Place { dir, partial: None }
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    /// `haul copy -C far:f DIR/to/f`
    fn download(&self, backend: &str, act: impl FnOnce(&mut FarEnd) + Send) -> Ended {
        let words = ["far:f".into(), self.to().join("f").into_os_string()];
        play(backend, LIMIT, |pipes| args(pipes, words), act)
    }

    /// `haul copy -C DIR/from far:target`
    fn upload(&self, backend: &str, act: impl FnOnce(&mut FarEnd) + Send) -> Ended {
        let words = [self.dir.path().join("from").into_os_string(), "far:target".into()];
        play(backend, LIMIT, |pipes| args(pipes, words), act)
    }

    /// Two blocks and some bytes of the file are here, from a connection that broke.
    fn with_two_blocks(backend: &str) -> Place {
        let place = Place::new();
        let ended = place.download(backend, |far| {
            look(far, RESUMING, file());
            take_get(far, 0);
            far.send(&meta(file()));
            content()[..2 * BLOCK + 9].chunks(BLOCK).for_each(|block| far.send_bytes(&data(block)));
            // What it has written is what the next run finds.
            let partial = || {
                partial_in(&place.to()).is_some_and(|partial| fs::metadata(partial).unwrap().len() > 2 * BLOCK as u64)
            };
            assert!(crate::support::processes::wait_for(LIMIT, partial));
            std::thread::sleep(Duration::from_millis(50));
        });
        ended.assert_exit(12);
        place.assert_kept();
        Place { partial: partial_in(&place.to()), ..place }
    }

    /// As after the broken connection, whatever has become of it.
    fn restore(&self) {
        let _ = fs::remove_file(self.to().join("f"));
        let partial = self.partial.as_ref().unwrap();
        fs::write(partial, &content()[..2 * BLOCK + 9]).unwrap();
        fs::set_permissions(partial, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Nothing is there but what was kept.
    #[track_caller]
    fn assert_kept(&self) {
        let partial = partial_in(&self.to()).expect("it is still there");
        assert_eq!(names(&self.to()).len(), 1, "{:?}", names(&self.to()));
        assert!(fs::read(partial).unwrap()[..2 * BLOCK] == content()[..2 * BLOCK]);
    }
}

fn args(pipes: &crate::support::Pipes, words: [OsString; 2]) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["copy".into(), "-C".into(), "--compress=none".into()];
    args.extend(pipes.args());
    args.extend(words);
    args
}

fn partial_in(dir: &Path) -> Option<PathBuf> {
    let partial = |name: &OsString| name.as_bytes().starts_with(b".haul-") && name.as_bytes().ends_with(b".part");
    names(dir).into_iter().find(partial).map(|name| dir.join(name))
}

fn file() -> Attributes {
    attributes(Kind::Regular, content().len() as u64)
}

fn meta(attributes: Attributes) -> Frame {
    Frame::Meta { attributes, preserve: Preserve::default() }
}

#[track_caller]
fn look(far: &mut FarEnd, dialect: Dialect, found: Attributes) {
    far.greet(dialect);
    far.looked_up(Some(found));
}

#[track_caller]
fn take_get(far: &mut FarEnd, offset: usize) {
    assert_eq!(far.request(), Frame::Get { path: field("f"), offset: offset as u64 });
}

/// Takes the questions about the two blocks, and answers them with these.
#[track_caller]
fn prove(far: &mut FarEnd, answers: [Frame; 2]) {
    for (index, answer) in answers.into_iter().enumerate() {
        let (offset, limit) = ((index * BLOCK) as u64, Some(BLOCK as u64));
        assert_eq!(far.request(), Frame::Hash { path: field("f"), offset, limit });
        far.send(&answer);
    }
}

fn right(index: usize) -> Frame {
    Frame::HashResponse { hash: blake3_of(&content()[index * BLOCK..][..BLOCK]) }
}

/// Sends what is behind `offset` with this hash, and is asked once more for what is before it where nothing else tells
/// that the file has not changed.
fn send_rest(far: &mut FarEnd, offset: usize, hash: Option<Hash>) {
    take_get(far, offset);
    if far.dialect == RESUMING {
        far.send(&meta(file()));
    }
    content()[offset..].chunks(BLOCK).for_each(|block| far.send_bytes(&data(block)));
    far.send(&Frame::Ok { hash });
    if far.dialect != RESUMING && offset > 0 {
        let limit = Some(offset as u64);
        assert_eq!(far.request(), Frame::Hash { path: field("f"), offset: 0, limit });
        far.send(&Frame::HashResponse { hash: blake3_of(&content()[..offset]) });
    }
}

fn hash_behind(offset: usize) -> Option<Hash> {
    Some(blake3_of(&content()[offset..]))
}

#[test]
fn a_download_goes_on_behind_the_last_block_that_was_proved() {
    type Answers = [fn() -> Frame; 2];
    let table: [(Answers, usize); 6] = [
        ([|| right(0), || right(1)], 2 * BLOCK),
        ([|| right(0), || Frame::HashResponse { hash: [7; 32] }], BLOCK),
        ([|| right(0), refusal], BLOCK),
        ([|| right(1), || right(1)], 0),
        ([refusal, || right(1)], 0),
        ([refusal, refusal], 0),
    ];
    for backend in BACKENDS {
        let place = Place::with_two_blocks(backend);
        for (dialect, (answers, offset)) in BOTH.into_iter().flat_map(|dialect| table.map(|row| (dialect, row))) {
            place.restore();
            let ended = place.download(backend, |far| {
                look(far, dialect, file());
                // Slowly, too.
                std::thread::sleep(Duration::from_millis(20));
                prove(far, answers.map(|answer| answer()));
                send_rest(far, offset, hash_behind(offset));
                far.drain();
            });
            ended.assert_exit(0);
            assert_eq!(names(&place.to()), ["f"]);
            assert!(fs::read(place.to().join("f")).unwrap() == content());
        }
    }
}

type Act = fn(&mut FarEnd);

#[test]
fn a_download_whose_proofs_are_none_ends_and_keeps_what_it_has() {
    let table: [(&str, i32, Act); 13] = [
        ("an answer before the question", 2, |far| {
            far.greet(RESUMING);
            far.request();
            let found = Frame::AttributesResponse { attributes: file(), link: Vec::new() };
            far.send_bytes(&[bytes_of(&found, RESUMING), bytes_of(&right(0), RESUMING)].concat());
        }),
        ("data before anything was asked for", 2, |far| {
            far.greet(RESUMING);
            far.request();
            let found = Frame::AttributesResponse { attributes: file(), link: Vec::new() };
            far.send_bytes(&[bytes_of(&found, RESUMING), data(b"surprise")].concat());
        }),
        ("one answer too many", 2, |far| {
            look(far, RESUMING, file());
            far.request();
            far.request();
            far.send_bytes(&[right(0), right(1), right(1)].map(|frame| bytes_of(&frame, RESUMING)).concat());
        }),
        ("Ok in place of a hash", 2, |far| {
            look(far, RESUMING, file());
            prove(far, [right(0), Frame::Ok { hash: None }]);
        }),
        ("Meta in place of a hash", 2, |far| {
            look(far, RESUMING, file());
            prove(far, [meta(file()), right(1)]);
        }),
        ("data in place of a hash", 2, |far| {
            look(far, RESUMING, file());
            far.request();
            far.send_bytes(&data(b"x"));
        }),
        ("the end in place of a hash", 12, |far| {
            look(far, RESUMING, file());
            far.request();
        }),
        ("the hash of other content", 23, |far| {
            look(far, RESUMING, file());
            prove(far, [right(0), right(1)]);
            send_rest(far, 2 * BLOCK, Some([7; 32]));
        }),
        ("the hash of the whole", 23, |far| {
            look(far, RESUMING, file());
            prove(far, [right(0), right(1)]);
            send_rest(far, 2 * BLOCK, Some(blake3_of(content())));
        }),
        ("no hash", 2, |far| {
            look(far, RESUMING, file());
            prove(far, [right(0), right(1)]);
            send_rest(far, 2 * BLOCK, None);
        }),
        ("more than there is", 23, |far| {
            look(far, RESUMING, file());
            prove(far, [right(0), right(1)]);
            take_get(far, 2 * BLOCK);
            far.send(&meta(file()));
            far.send_bytes(&data(&content()[2 * BLOCK - 1..]));
            far.send(&Frame::Ok { hash: hash_behind(2 * BLOCK - 1) });
        }),
        ("less than there is", 23, |far| {
            look(far, RESUMING, file());
            prove(far, [right(0), right(1)]);
            take_get(far, 2 * BLOCK);
            far.send(&meta(file()));
            far.send_bytes(&data(&content()[2 * BLOCK + 1..]));
            far.send(&Frame::Ok { hash: hash_behind(2 * BLOCK + 1) });
        }),
        ("an error in place of the rest", 23, |far| {
            look(far, RESUMING, file());
            prove(far, [right(0), right(1)]);
            take_get(far, 2 * BLOCK);
            far.send(&refusal());
        }),
    ];
    let places = BACKENDS.map(|backend| (backend, Place::with_two_blocks(backend)));
    for ((backend, place), (what, code, act)) in places.iter().flat_map(|place| table.map(|row| (place, row))) {
        eprintln!("{backend}: {what}");
        place.restore();
        let ended = place.download(backend, |far| {
            act(far);
            if code != 12 {
                far.drain();
            }
        });
        ended.assert_exit(code);
        place.assert_kept();
    }
}

#[test]
fn a_file_that_changes_between_proof_and_transfer_is_not_made_of_two() {
    let mtime = Timestamp { seconds: file().mtime.seconds, nanoseconds: 6 };
    let changes = [Attributes { mtime, ..file() }, Attributes { size: file().size + 1, ..file() }];
    for backend in BACKENDS {
        let place = Place::with_two_blocks(backend);
        for changed in changes {
            place.restore();
            let ended = place.download(backend, |far| {
                look(far, RESUMING, file());
                prove(far, [right(0), right(1)]);
                take_get(far, 2 * BLOCK);
                far.send(&meta(changed));
                far.send_bytes(&data(&[7; BLOCK + 5]));
                far.send(&Frame::Ok { hash: Some(blake3_of(&[7; BLOCK + 5])) });
                far.refuse_again();
            });
            ended.assert_exit(23);
            place.assert_kept();
        }
        // A base server says nothing of a time: it is asked again for the hash of what was not sent.
        for answer in [Frame::HashResponse { hash: [7; 32] }, refusal()] {
            place.restore();
            let ended = place.download(backend, |far| {
                look(far, Dialect::BASE, file());
                prove(far, [right(0), right(1)]);
                take_get(far, 2 * BLOCK);
                far.send_bytes(&data(&[7; BLOCK + 5][..BLOCK]));
                far.send_bytes(&data(&[7; 5]));
                far.send(&Frame::Ok { hash: Some(blake3_of(&[7; BLOCK + 5])) });
                let request = far.request();
                assert!(matches!(request, Frame::Hash { offset: 0, .. }), "{request:?}");
                far.send(&answer);
                far.refuse_again();
            });
            ended.assert_exit(23);
            place.assert_kept();
        }
    }
}

/// Takes Continue.
#[track_caller]
fn take_continue(far: &mut FarEnd) {
    far.greet_with(RESUMING, Caps::DEDUP);
    // What is copied into, and what stands there.
    far.looked_up(None);
    far.looked_up(None);
    let request = far.request();
    assert!(matches!(request, Frame::Continue { size, .. } if size == content().len() as u64), "{request:?}");
    let request = far.request();
    assert!(matches!(request, Frame::Meta { .. }), "{request:?}");
}

/// Takes Skip and what follows: from where on, what was sent, and how it was ended.
#[track_caller]
fn take_rest(far: &mut FarEnd) -> (u64, Vec<u8>, Frame) {
    let Frame::Skip { offset } = far.request() else { panic!("no Skip") };
    let mut content = Vec::new();
    loop {
        match far.input.next() {
            Some(Received::Data(block)) => content.extend(block),
            Some(Received::Frame(end @ (Frame::Commit { .. } | Frame::Abandon { .. }))) => {
                return (offset, content, end);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_upload_goes_on_behind_the_blocks_that_are_equal_whatever_else_is_said_to_be_there() {
    let ours = chain(content());
    let not_ours = vec![[7; 32]; 1000];
    let table: [(&str, Vec<Hash>, usize); 8] = [
        ("nothing", Vec::new(), 0),
        ("one block", ours[..1].to_vec(), BLOCK),
        ("all of it", ours.clone(), content().len()),
        ("all of it and more", [&ours[..], &not_ours].concat(), content().len()),
        ("more blocks than the file has", not_ours.clone(), 0),
        ("as many as fit a frame", vec![[7; 32]; 524_287], 0),
        ("a block in the wrong place", vec![ours[1], ours[1], ours[2]], 0),
        ("two blocks, the first of them changed", vec![[7; 32], ours[1]], 0),
    ];
    let place = Place::new();
    for (backend, (what, theirs, offset)) in BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row))) {
        eprintln!("{backend}: {what}");
        let ended = place.upload(backend, |far| {
            take_continue(far);
            far.send(&Frame::Kept { blocks: theirs.clone() });
            let (skipped, sent, end) = take_rest(far);
            assert_eq!(skipped, *offset as u64, "{what}");
            assert!(sent == content()[*offset..], "{what}");
            assert_eq!(end, Frame::Commit { hash: blake3_of(content()) });
            far.send(&Frame::Ok { hash: Some(blake3_of(content())) });
            far.drain();
        });
        ended.assert_exit(0);
    }
}

#[test]
fn an_upload_ends_where_the_answer_to_continue_is_none() {
    let kept = |blocks: Vec<Hash>| bytes_of(&Frame::Kept { blocks }, RESUMING);
    let none = kept(Vec::new());
    let table: [(&str, i32, Vec<u8>); 8] = [
        ("twice", 2, none.repeat(2)),
        ("and then Ok", 2, [none.clone(), bytes_of(&Frame::Ok { hash: None }, RESUMING)].concat()),
        ("MissingBlocks", 2, bytes_of(&Frame::MissingBlocks { bitmap: vec![0xff] }, RESUMING)),
        ("Ok", 2, bytes_of(&Frame::Ok { hash: Some(blake3_of(content())) }, RESUMING)),
        ("data", 2, data(b"x")),
        ("fewer hashes than announced", 2, [&38_u32.to_le_bytes()[..], &[0xc3, 2, 0, 0, 0], &[7; 33]].concat()),
        ("2^32 hashes", 2, [&37_u32.to_le_bytes()[..], &[0xc3, 0xff, 0xff, 0xff, 0xff], &[7; 32]].concat()),
        ("an error", 23, bytes_of(&refusal(), RESUMING)),
    ];
    let place = Place::new();
    for (backend, (what, code, bytes)) in BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row))) {
        eprintln!("{backend}: {what}");
        let ended = place.upload(backend, |far| {
            take_continue(far);
            far.send_bytes(bytes);
            far.drain();
        });
        ended.assert_exit(*code);
        assert!(ended.lines().len() <= 2, "{}", ended.stderr);
    }
    for backend in BACKENDS {
        let ended = place.upload(backend, take_continue);
        ended.assert_exit(12);
        let ended = place.upload(backend, |far| {
            take_continue(far);
            far.send_bytes(&none);
            take_rest(far);
            far.send(&Frame::Ok { hash: Some([7; 32]) });
            far.drain();
        });
        ended.assert_exit(23);
        assert!(ended.stderr.contains("it is bad"), "{}", ended.stderr);
    }
}

#[test]
fn what_is_kept_without_being_asked_for_is_no_answer() {
    for backend in BACKENDS {
        let place = Place::new();
        let words = [place.dir.path().join("from").into_os_string(), "far:target".into()];
        let args = |pipes: &crate::support::Pipes| {
            let mut args: Vec<OsString> = vec!["copy".into()];
            args.extend(pipes.args());
            args.extend(words);
            args
        };
        let ended = play(backend, LIMIT, args, |far| {
            far.greet(RESUMING);
            far.looked_up(None);
            far.request();
            far.send(&Frame::Kept { blocks: chain(content()) });
            far.drain();
        });
        ended.assert_exit(2);
    }
}
