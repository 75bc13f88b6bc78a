//! FAST, where no hash goes with what a Get brings: files that change while they are sent, servers that send more or less
//! than there is, and hashes where none were asked for or none came.

use crate::support::frames::{
    BASES, FULL, FarEnd, Received, Serving, attributes, blake3_of, bytes_of, data, field, play,
};
use crate::support::pressure::{pipe_size, settle, write_beside};
use crate::support::processes::{Ended, LIMIT, names};
use crate::support::{BACKENDS, Remote, random_file};
use haul_engine::wire::frame::{Attributes, Caps, Dialect, Frame, Hash, Kind, Preserve};
use std::fs;
use std::path::PathBuf;

/// More than pipes and queues hold: most of it is not sent before somebody reads.
const BIG: u64 = 64 << 20;
/// A size that is received into memory first, and one that is written as it comes.
const SIZES: [usize; 2] = [1000, 300_000];

/// What a Get brought: bytes, and the frame at its end.
fn outcome(serving: &mut Serving) -> (u64, Frame) {
    let mut bytes = 0;
    loop {
        match serving.next() {
            Received::Data(content) => bytes += content.len() as u64,
            Received::Frame(Frame::Meta { .. }) => {}
            Received::Frame(end) => return (bytes, end),
            Received::Compressed(_) => panic!("no codec was agreed on"),
        }
    }
}

#[test]
fn a_file_that_changes_while_the_kernel_sends_it_ends_in_an_error_and_whole_frames() {
    for (backend, dialect) in
        BACKENDS.into_iter().flat_map(|backend| [BASES[0], FULL].map(|dialect| (backend, dialect)))
    {
        for size in [100_000, BIG + 1] {
            for request in [
                Frame::Get { path: field("f"), offset: 0 },
                Frame::GetChunked { path: field("f"), offset: 0, length: BIG },
            ] {
                eprintln!("{backend}, {dialect:?}, {size}");
                let mut serving = Serving::agreed(backend, dialect, Caps::FAST);
                let file = serving.root().join("f");
                random_file(&file, BIG as usize, 1);
                let bytes = bytes_of(&request, dialect);
                let mut once = Some(bytes);
                let (taken, writer) = write_beside(&mut serving, move || once.take());
                settle(serving.pid(), &taken);
                assert!((pipe_size(&serving) as u64) < BIG / 8);
                fs::File::options().write(true).open(&file).unwrap().set_len(size).unwrap();
                let (came, end) = outcome(&mut serving);
                // Promised bytes come whatever happens, so that the next frame is where it is looked for.
                assert!(came <= BIG, "{came}");
                match request {
                    // It has only grown: what it began with has come.
                    Frame::Get { .. } if size > BIG => assert_eq!((came, end), (BIG, Frame::Ok { hash: None })),
                    _ => assert!(matches!(end, Frame::Error { .. }), "{end:?}"),
                }
                serving.input = Some(writer.join().unwrap());
                serving.assert_usable();
                fs::write(&file, "new").unwrap();
                serving.send(&Frame::Get { path: field("f"), offset: 1 });
                assert_eq!(outcome(&mut serving), (2, Frame::Ok { hash: None }));
                assert_eq!(serving.end().code, Some(0));
            }
        }
    }
}

/// What one run saw and left.
struct Scene {
    dir: tempfile::TempDir,
    ended: Ended,
}

impl Scene {
    /// The directory copied into, where `old` was.
    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    /// Fails unless nothing was published, and this was said.
    #[track_caller]
    fn assert_refused(&self, code: i32, words: &str) {
        self.ended.assert_exit(code);
        assert!(self.ended.stderr.contains(words), "{words}: {}", self.ended.stderr);
        assert_eq!(names(&self.to()), ["old"]);
        assert_eq!(fs::read(self.to().join("old")).unwrap(), b"old");
    }
}

/// Runs `haul copy FLAGS far:f to/old` against a server that is played by `act`.
fn download(backend: &str, flags: &[&str], act: impl FnOnce(&mut FarEnd) + Send) -> Scene {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    fs::create_dir(dir.path().join("to")).unwrap();
    fs::write(dir.path().join("to/old"), "old").unwrap();
    let target = dir.path().join("to/old").into_os_string();
    let words = ["copy"].iter().chain(flags).map(Into::into);
    let args = |pipes: &crate::support::Pipes| {
        words.chain(pipes.args()).chain(["far:f".into(), target]).collect::<Vec<std::ffi::OsString>>()
    };
    let ended = play(backend, LIMIT, args, act);
    Scene { dir, ended }
}

fn file(size: usize) -> Attributes {
    attributes(Kind::Regular, size as u64)
}

/// Answers a Get of a file of `size` bytes with this content and this hash.
fn serve(far: &mut FarEnd, size: usize, content: &[u8], hash: Option<Hash>) {
    far.looked_up(Some(file(size)));
    let request = far.request();
    assert!(matches!(request, Frame::Get { offset: 0, .. }), "{request:?}");
    if far.dialect == FULL {
        far.send(&Frame::Meta { attributes: file(size), preserve: Preserve::default() });
    }
    content.chunks(100_000).for_each(|block| far.send_bytes(&data(block)));
    far.send(&Frame::Ok { hash });
}

fn cases() -> impl Iterator<Item = (&'static str, Dialect, usize)> {
    let of = |backend| [BASES[0], FULL].into_iter().flat_map(move |dialect| SIZES.map(|size| (backend, dialect, size)));
    BACKENDS.into_iter().flat_map(of)
}

#[test]
fn content_without_a_hash_is_taken_only_where_fast_was_agreed_on() {
    for (backend, dialect, size) in cases() {
        let content = vec![7; size];
        for (flags, granted, taken) in [
            (&["--fast"][..], Caps::FAST, true),
            (&["--fast"], Caps::NONE, false),
            // Nobody asked for it, whatever the server says.
            (&[], Caps::FAST, false),
            (&[], Caps::NONE, false),
        ] {
            let scene = download(backend, flags, |far| {
                far.greet_with(dialect, granted);
                serve(far, size, &content, None);
                far.drain();
            });
            if taken {
                scene.ended.assert_exit(0);
                assert_eq!(fs::read(scene.to().join("old")).unwrap(), content);
            } else {
                scene.assert_refused(2, "protocol error: the server answered Get with another reply");
            }
        }
    }
}

#[test]
fn a_hash_that_nobody_asked_for_is_compared_all_the_same() {
    for (backend, dialect, size) in cases() {
        let content = vec![7; size];
        for flags in [&["--fast"][..], &["--fast", "-P"]] {
            let scene = download(backend, flags, |far| {
                far.greet_with(dialect, Caps::FAST);
                serve(far, size, &content, Some(blake3_of(b"other")));
                far.drain();
            });
            scene.assert_refused(23, "Content does not match its hash");
            let scene = download(backend, flags, |far| {
                far.greet_with(dialect, Caps::FAST);
                serve(far, size, &content, Some(blake3_of(&content)));
                far.drain();
            });
            scene.ended.assert_exit(0);
            assert_eq!(fs::read(scene.to().join("old")).unwrap(), content);
        }
    }
}

#[test]
fn more_or_less_than_there_is_never_gets_the_name_without_a_hash_either() {
    for (backend, dialect, size) in cases() {
        let longer = vec![7; size + 1];
        let table: [(&[u8], &str); 4] = [
            (&longer, "past the declared size"),
            (&longer[2..], "received"),
            (&[], "received 0"),
            (&longer[..1], "received 1"),
        ];
        for (content, why) in table {
            let scene = download(backend, &["--fast"], |far| {
                far.greet_with(dialect, Caps::FAST);
                serve(far, size, content, None);
                far.drain();
            });
            scene.assert_refused(23, why);
        }
    }
}
