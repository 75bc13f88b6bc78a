//! The real client that goes on with a download of which so much is there that its beginning is proved as one, against
//! servers that have another file, or lie, or fall silent.

use crate::support::frames::{FarEnd, RESUMING, attributes, blake3_of, bytes_of, data, field, play, refusal};
use crate::support::processes::{Ended, LIMIT, names, wait_for};
use crate::support::{BACKENDS, Remote};
use haul_engine::limits::UNORDERED_BLOCKS;
use haul_engine::wire::frame::{Attributes, Dialect, Frame, Kind, Preserve, Timestamp};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::LazyLock;

const BLOCK: usize = 4 << 20;
const BOTH: [Dialect; 2] = [Dialect::BASE, RESUMING];
/// Whole blocks that are here, and those of them that are proved as one.
const KEPT: usize = UNORDERED_BLOCKS + 6;
const FIRST: usize = KEPT - UNORDERED_BLOCKS;

fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..(KEPT + 1) * BLOCK + 5).map(|at| (at / 5 % 251) as u8).collect());
    &CONTENT
}

fn file() -> Attributes {
    attributes(Kind::Regular, content().len() as u64)
}

/// A directory with what a broken connection left of the file.
struct Rest {
    dir: tempfile::TempDir,
    partial: PathBuf,
}

impl Rest {
    fn new(backend: &str) -> Rest {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let mut rest = Rest { partial: PathBuf::new(), dir };
        let ended = rest.download(backend, |far| {
            look(far, RESUMING);
            assert_eq!(far.request(), Frame::Get { path: field("f"), offset: 0 });
            far.send(&Frame::Meta { attributes: file(), preserve: Preserve::default() });
            far.send_bytes(&data(&content()[..9]));
            // A file without any content does not stay.
            let written = |name: &OsString| fs::metadata(rest.dir.path().join(name)).unwrap().len() > 0;
            assert!(wait_for(LIMIT, || names(rest.dir.path()).iter().any(written)));
        });
        ended.assert_exit(12);
        rest.partial = rest.dir.path().join(&names(rest.dir.path())[0]);
        rest
    }

    /// All those blocks are here, and no file.
    fn restore(&self) {
        let _ = fs::remove_file(self.dir.path().join("f"));
        fs::write(&self.partial, &content()[..KEPT * BLOCK + 9]).unwrap();
        fs::set_permissions(&self.partial, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[track_caller]
    fn assert_kept(&self) {
        assert_eq!(names(self.dir.path()).len(), 1, "{:?}", names(self.dir.path()));
        assert!(fs::read(&self.partial).unwrap()[..KEPT * BLOCK] == content()[..KEPT * BLOCK]);
    }

    /// `haul copy -C far:f DIR/f`
    fn download(&self, backend: &str, act: impl FnOnce(&mut FarEnd) + Send) -> Ended {
        let target = self.dir.path().join("f").into_os_string();
        let args = |pipes: &crate::support::Pipes| {
            let mut args: Vec<OsString> = vec!["copy".into(), "-C".into(), "--compress=none".into()];
            args.extend(pipes.args());
            args.extend(["far:f".into(), target]);
            args
        };
        play(backend, LIMIT, args, act)
    }
}

#[track_caller]
fn look(far: &mut FarEnd, dialect: Dialect) {
    far.greet(dialect);
    far.looked_up(Some(file()));
}

/// Answers as it pleases until the rest is asked for: the blocks that were asked about, and the block to go on with.
#[track_caller]
fn prove(far: &mut FarEnd, mut answer: impl FnMut(usize, usize) -> Frame) -> (Vec<(usize, usize)>, usize) {
    let mut asked = Vec::new();
    loop {
        match far.request() {
            Frame::Hash { offset, limit: Some(limit), .. } => {
                let (at, len) = (offset as usize, limit as usize);
                assert!(at.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) && len > 0, "{len} bytes at {at}");
                asked.push((at / BLOCK, (at + len) / BLOCK));
                assert!(asked.len() <= 1 + UNORDERED_BLOCKS + 3, "{asked:?}");
                far.send(&answer(at / BLOCK, (at + len) / BLOCK));
            }
            Frame::Get { offset, .. } => return (asked, offset as usize / BLOCK),
            other => panic!("{other:?}"),
        }
    }
}

fn hash(theirs: &[u8], from: usize, to: usize) -> Frame {
    Frame::HashResponse { hash: blake3_of(&theirs[from * BLOCK..to * BLOCK]) }
}

fn right(from: usize, to: usize) -> Frame {
    hash(content(), from, to)
}

fn wrong() -> Frame {
    Frame::HashResponse { hash: [7; 32] }
}

/// Sends the rest of this from block `from` on, asked for already.
fn send_rest(far: &mut FarEnd, theirs: &[u8], attributes: Attributes, from: usize) {
    let rest = &theirs[from * BLOCK..];
    if far.dialect == RESUMING {
        far.send(&Frame::Meta { attributes, preserve: Preserve::default() });
    }
    rest.chunks(BLOCK).for_each(|block| far.send_bytes(&data(block)));
    far.send(&Frame::Ok { hash: Some(blake3_of(rest)) });
    if far.dialect != RESUMING && from > 0 {
        let limit = Some((from * BLOCK) as u64);
        assert_eq!(far.request(), Frame::Hash { path: field("f"), offset: 0, limit });
        far.send(&Frame::HashResponse { hash: blake3_of(&theirs[..from * BLOCK]) });
    }
}

/// What is asked for first: the beginning as one, and the other blocks.
fn first_questions() -> Vec<(usize, usize)> {
    std::iter::once((0, FIRST)).chain((FIRST..KEPT).map(|block| (block, block + 1))).collect()
}

#[test]
fn a_download_goes_on_with_the_first_block_that_differs_and_asks_once_where_that_is_one_of_the_last() {
    for backend in BACKENDS {
        let rest = Rest::new(backend);
        for (dialect, wrong) in BOTH.into_iter().flat_map(|dialect| (0..=KEPT).map(move |wrong| (dialect, wrong))) {
            rest.restore();
            let mut theirs = content().to_vec();
            theirs[wrong * BLOCK + 7] ^= 1;
            let ended = rest.download(backend, |far| {
                look(far, dialect);
                let (asked, from) = prove(far, |from, to| hash(&theirs, from, to));
                assert_eq!(from, wrong);
                assert_eq!(asked[..=UNORDERED_BLOCKS], first_questions());
                assert!(wrong < FIRST || asked == first_questions(), "{asked:?}");
                assert!(asked[1 + UNORDERED_BLOCKS..].iter().all(|&(from, to)| from == 0 && to < FIRST), "{asked:?}");
                send_rest(far, &theirs, file(), from);
                far.drain();
            });
            ended.assert_exit(0);
            assert_eq!(names(rest.dir.path()), ["f"]);
            assert!(fs::read(rest.dir.path().join("f")).unwrap() == theirs);
        }
    }
}

#[test]
fn whatever_is_said_of_the_blocks_the_questions_end_and_nothing_that_was_not_proved_counts() {
    type Answer = fn(usize, usize) -> Frame;
    let table: [(&str, usize, Answer); 6] = [
        ("errors", 0, |_, _| refusal()),
        ("wrong hashes", 0, |_, _| wrong()),
        ("only the last blocks", 0, |from, to| if from > 0 { right(from, to) } else { refusal() }),
        ("only the beginning", FIRST, |from, to| if from == 0 { right(from, to) } else { refusal() }),
        ("all but the whole beginning", FIRST - 1, |from, to| match (from, to) {
            (0, FIRST) => wrong(),
            _ => right(from, to),
        }),
        ("each last block for the next one", FIRST, |from, to| right(from.saturating_sub(1), to - from.min(1))),
    ];
    for backend in BACKENDS {
        let rest = Rest::new(backend);
        for (dialect, (what, from, answer)) in BOTH.into_iter().flat_map(|dialect| table.map(|row| (dialect, row))) {
            eprintln!("{backend}: {what}");
            rest.restore();
            let ended = rest.download(backend, |far| {
                look(far, dialect);
                let (_, got) = prove(far, answer);
                assert_eq!(got, from, "{what}");
                send_rest(far, content(), file(), from);
                far.drain();
            });
            ended.assert_exit(0);
            assert!(fs::read(rest.dir.path().join("f")).unwrap() == content());
        }
    }
}

#[test]
fn a_file_that_changes_once_its_beginning_is_proved_is_not_made_of_two() {
    let mtime = Timestamp { seconds: file().mtime.seconds, nanoseconds: 6 };
    let theirs = vec![7; content().len()];
    for backend in BACKENDS {
        let rest = Rest::new(backend);
        for dialect in BOTH {
            rest.restore();
            let ended = rest.download(backend, |far| {
                look(far, dialect);
                let (_, from) = prove(far, right);
                assert_eq!(from, KEPT);
                send_rest(far, &theirs, Attributes { mtime, ..file() }, from);
                far.refuse_again();
            });
            ended.assert_exit(23);
            rest.assert_kept();
        }
    }
}

#[test]
fn an_answer_about_a_beginning_that_is_none_or_one_too_many_ends_the_run_and_keeps_what_is_there() {
    /// Takes the first questions and has another beginning.
    fn halve(far: &mut FarEnd) {
        look(far, RESUMING);
        for (from, to) in first_questions() {
            far.request();
            far.send(&if from == 0 { refusal() } else { right(from, to) });
        }
        assert!(matches!(far.request(), Frame::Hash { offset: 0, .. }));
    }
    type Act = fn(&mut FarEnd);
    let table: [(&str, i32, Act); 6] = [
        ("one answer too many", 2, |far| {
            look(far, RESUMING);
            first_questions().iter().for_each(|_| _ = far.request());
            let answers = first_questions().into_iter().map(|(from, to)| right(from, to));
            let answers: Vec<_> = answers.chain([refusal()]).map(|frame| bytes_of(&frame, RESUMING)).collect();
            far.send_bytes(&answers.concat());
        }),
        ("one answer too few", 12, |far| {
            look(far, RESUMING);
            for (from, to) in first_questions().into_iter().skip(1) {
                far.request();
                far.send(&right(from, to));
            }
        }),
        ("two answers to one half", 2, |far| {
            halve(far);
            far.send_bytes(&bytes_of(&refusal(), RESUMING).repeat(2));
        }),
        ("Ok in place of the hash of a half", 2, |far| {
            halve(far);
            far.send(&Frame::Ok { hash: None });
        }),
        ("data in place of the hash of a half", 2, |far| {
            halve(far);
            far.send_bytes(&data(b"x"));
        }),
        ("the end in place of the hash of a half", 12, halve),
    ];
    for backend in BACKENDS {
        let rest = Rest::new(backend);
        for (what, code, act) in table {
            eprintln!("{backend}: {what}");
            rest.restore();
            let ended = rest.download(backend, |far| {
                act(far);
                if code != 12 {
                    far.drain();
                }
            });
            ended.assert_exit(code);
            rest.assert_kept();
        }
    }
}
