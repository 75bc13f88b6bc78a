//! The real client against servers that say of ranges what is not so: nothing gets a name, here or there, that was not
//! proved range by range.

use crate::support::direct::{CHALLENGE_BYTES, Granted, KEYED, SealedEnd, keyed_welcome};
use crate::support::frames::{FarEnd, RESUMING, Received, attributes, blake3_of, bytes_of, data, play_hurried};
use crate::support::processes::{Ended, LIMIT, names};
use crate::support::{BACKENDS, Pipes, Remote};
use haul_engine::tree_hash::BlockHash;
use haul_engine::wire::decode::Role;
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, Preserve};
use haul_engine::wire::seal::Secret;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::LazyLock;

const BLOCK: u64 = 4 << 20;
const RANGE: u64 = 4 * BLOCK;
/// As `hostile_direct_client` has it: what broke is not opened again.
const HURRY: &str = "2000,2000,2000,4000,3000,0";
/// Of a download: four ranges.
const LARGE: u64 = 4 * RANGE;
const SECRET: [u8; 32] = [0x5f; 32];

/// Chaining values of its blocks, all of which are zeros.
static ZEROS: LazyLock<Vec<Hash>> = LazyLock::new(|| {
    let block = vec![0; BLOCK as usize];
    (0..LARGE / BLOCK).map(|number| BlockHash::placed(number, &block).chaining).collect()
});

/// What a server says for a range, frame by frame.
type Said = Vec<Vec<u8>>;

/// How a hostile server changes it: for the first range only.
type Change = fn(&mut Said);

fn frame(frame: &Frame) -> Vec<u8> {
    bytes_of(frame, RESUMING)
}

fn range_said(offset: u64, length: u64) -> Said {
    let meta = Frame::Meta { attributes: attributes(Kind::Regular, LARGE), preserve: Preserve::default() };
    let mut said = vec![frame(&meta)];
    said.extend((0..length / (1 << 20)).map(|_| data(&[0; 1 << 20])));
    let blocks = ZEROS[(offset / BLOCK) as usize..((offset + length) / BLOCK) as usize].to_vec();
    said.extend([frame(&Frame::Kept { blocks }), frame(&Frame::Ok { hash: None })]);
    said
}

fn kept(count: usize, hash: Hash) -> Vec<u8> {
    frame(&Frame::Kept { blocks: vec![hash; count] })
}

/// Behind Meta, 16 of Data; then Kept and Ok.
const CHANGES: [(&str, Change, &str); 17] = [
    ("Kept of other blocks", |said| said[17] = kept(4, [1; 32]), "not published"),
    ("Kept of too few", |said| said[17] = frame(&Frame::Kept { blocks: ZEROS[..3].to_vec() }), "not published"),
    ("Kept of too many", |said| said[17] = frame(&Frame::Kept { blocks: ZEROS[..5].to_vec() }), "not published"),
    ("Kept of none", |said| said[17] = kept(0, [0; 32]), "not published"),
    ("Kept of very many", |said| said[17] = kept(500_000, [1; 32]), "not published"),
    ("no Kept", |said| _ = said.remove(17), "protocol error"),
    ("Kept twice", |said| said.insert(17, kept(4, [1; 32])), "protocol error"),
    ("too little", |said| _ = said.remove(5), "incomplete"),
    ("too much", |said| said.insert(5, data(&[0; 1 << 20])), "past the declared size"),
    ("other content", |said| said[5] = data(&[1; 1 << 20]), "not published"),
    ("Ok early", |said| said[5] = frame(&Frame::Ok { hash: None }), "protocol error"),
    ("Ok and Kept early", |said| _ = said.splice(5..17, [kept(4, [1; 32]), frame(&Frame::Ok { hash: None })]), ""),
    (
        "another file",
        |said| {
            let attributes = attributes(Kind::Regular, LARGE + 1);
            said[0] = frame(&Frame::Meta { attributes, preserve: Preserve::default() });
        },
        "changed while it was read",
    ),
    ("Meta in the middle", |said| said.insert(5, said[0].clone()), "protocol error"),
    (
        "an answer to something else",
        |said| said[1] = frame(&Frame::RangeBegun { token: 1, blocks: vec![] }),
        "protocol error",
    ),
    (
        "an error in the middle",
        |said| {
            said.truncate(6);
            said.push(frame(&Frame::Error { message: b"\x1b[31mno".to_vec(), code: Default::default() }));
        },
        "no",
    ),
    ("the end in the middle", |said| said.truncate(6), "connection lost"),
];

/// Runs `haul copy FLAGS.. PATHS..` over one direct connection, which is played by `serve`; what is asked over ssh is
/// answered by `control`.
fn meet(
    backend: &str,
    dir: &Path,
    paths: [OsString; 2],
    control: impl Fn(&Frame) -> Frame + Send,
    serve: impl FnOnce(&mut SealedEnd) + Send,
) -> (Ended, Vec<Frame>) {
    let words = ["copy", "--compress=none", "--direct=direct", "--connections=1"].map(OsString::from);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let args = |pipes: &Pipes| words.into_iter().chain(pipes.args()).chain(paths).collect();
    let mut asked = Vec::new();
    let said = &mut asked;
    let ended = play_hurried(backend, HURRY, LIMIT, args, move |far: &mut FarEnd| {
        far.greet_with(KEYED, Caps::DIRECT_TCP);
        assert_eq!(far.request(), Frame::OpenDirectChannel);
        let address = listener.local_addr().unwrap().to_string().into_bytes();
        far.send(&Frame::DirectChannelReady { address, key: SECRET });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                // Another one for each connection, or the keys would be the same.
                let nonce = blake3_of(dir.as_os_str().as_encoded_bytes());
                let challenge = frame(&Frame::AuthChallenge { nonce });
                assert_eq!(challenge.len(), CHALLENGE_BYTES);
                stream.write_all(&challenge).unwrap();
                let granted = Granted { caps: Caps::AEAD, ext: Ext::ALL };
                let (welcome, seals) = keyed_welcome(&mut stream, &Secret::from_bytes(SECRET), &nonce, granted);
                stream.write_all(&welcome).unwrap();
                let dialect = Dialect { version: 1, ext: Ext::ALL };
                serve(&mut SealedEnd::new(stream, seals, Role::Server, dialect));
            });
            while let Some(request) = far.next_request() {
                far.send(&control(&request));
                said.push(request);
            }
        });
    });
    (ended, asked)
}

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap()
}

fn looked_up(size: u64) -> Frame {
    Frame::AttributesResponse { attributes: attributes(Kind::Regular, size), link: Vec::new() }
}

fn download(backend: &str, serve: impl FnOnce(&mut SealedEnd) + Send) -> (tempfile::TempDir, Ended) {
    let dir = scratch();
    fs::write(dir.path().join("f"), "old").unwrap();
    let paths = ["far:f".into(), dir.path().join("f").into()];
    let (ended, _) = meet(backend, dir.path(), paths, |_| looked_up(LARGE), serve);
    (dir, ended)
}

/// Answers ranges as they are asked for, the first one changed.
fn serve(server: &mut SealedEnd, change: Option<Change>) {
    let mut change = change;
    while let Some(Received::Frame(asked)) = server.input.next() {
        let again = match asked {
            // Of a file that changed, which is tried once more, as a whole.
            Frame::Lookup { .. } => Some(looked_up(LARGE)),
            Frame::Get { .. } => {
                let message = b"it changed while it was read".to_vec();
                Some(Frame::Error { message, code: ErrorCode::CHANGED })
            }
            _ => None,
        };
        if let Some(answer) = again {
            server.send_bytes(&frame(&answer));
            continue;
        }
        let Frame::GetChunked { offset, length, .. } = asked else { panic!("{asked:?}") };
        let mut said = range_said(offset, length);
        let cut = change.take().is_some_and(|change| {
            change(&mut said);
            said.len() < 7
        });
        said.iter().flat_map(|bytes| bytes.chunks(2 << 20)).for_each(|bytes| server.send_bytes(bytes));
        if cut && said.len() == 6 {
            break;
        }
    }
    server.send_bytes(&[]);
    server.cut();
    let _ = std::io::copy(&mut server.stream, &mut std::io::sink());
}

#[test]
fn a_server_that_plays_by_the_rules_is_believed() {
    for backend in BACKENDS {
        let (dir, ended) = download(backend, |server| serve(server, None));
        ended.assert_exit(0);
        assert!(fs::read(dir.path().join("f")).unwrap() == vec![0; LARGE as usize]);
        assert_eq!(names(dir.path()), ["f"]);
    }
}

#[test]
fn a_server_that_says_something_else_of_a_range_brings_nothing_under_the_name() {
    for (backend, (name, change, words)) in BACKENDS.into_iter().flat_map(|backend| CHANGES.map(|row| (backend, row))) {
        eprintln!("{backend}: {name}");
        let (dir, ended) = download(backend, |server| serve(server, Some(change)));
        assert!(matches!(ended.status.code(), Some(2 | 12 | 23)), "{ended:?}");
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
        assert!(ended.stderr.contains(words), "{ended:?}");
        assert!(!ended.stderr.chars().any(|c| c.is_control() && c != '\n'), "{ended:?}");
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["f"]);
    }
}

/// The answer to each range, as the hash of the blocks that came and how often the first of them was changed.
fn keep(server: &mut SealedEnd, change: impl Fn(&mut Vec<Hash>)) {
    let mut first = true;
    while let Some(Received::Frame(asked)) = server.input.next() {
        let Frame::RangePut { offset, length, .. } = asked else { panic!("{asked:?}") };
        while !matches!(server.input.next(), Some(Received::Frame(Frame::Done)) | None) {}
        let blocks = (offset / BLOCK) as usize..(offset + length).div_ceil(BLOCK) as usize;
        let mut blocks = ZEROS[blocks].to_vec();
        if std::mem::take(&mut first) {
            change(&mut blocks);
        }
        server.send_bytes(&frame(&Frame::Kept { blocks }));
    }
    server.send_bytes(&[]);
    server.cut();
    let _ = std::io::copy(&mut server.stream, &mut std::io::sink());
}

/// Uploads zeros to a server that begins the file and says this of the first range.
fn upload(backend: &str, change: impl Fn(&mut Vec<Hash>) + Send) -> (Ended, Vec<Frame>) {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::File::create(&source).unwrap().set_len(LARGE).unwrap();
    let control = |request: &Frame| match request {
        Frame::RangeBegin { .. } => Frame::RangeBegun { token: 7, blocks: Vec::new() },
        Frame::RangeCommit { hash, .. } => Frame::Ok { hash: Some(*hash) },
        Frame::RangeAbandon { .. } => Frame::Ok { hash: None },
        _ => looked_up(3),
    };
    meet(backend, dir.path(), [source.into(), "far:f".into()], control, |server| keep(server, change))
}

#[test]
fn an_upload_is_named_only_when_the_server_has_what_was_sent() {
    for backend in BACKENDS {
        let (ended, asked) = upload(backend, |_| {});
        ended.assert_exit(0);
        let hash = blake3_of(&vec![0; LARGE as usize]);
        assert!(asked.contains(&Frame::RangeCommit { token: 7, hash }), "{asked:?}");
        let changes: [fn(&mut Vec<Hash>); 3] =
            [|blocks| blocks[1] = [1; 32], |blocks| _ = blocks.pop(), |blocks| blocks.push([1; 32])];
        for change in changes {
            let (ended, asked) = upload(backend, change);
            ended.assert_exit(23);
            assert!(ended.stderr.contains("not published"), "{ended:?}");
            assert!(!asked.iter().any(|frame| matches!(frame, Frame::RangeCommit { .. })), "{asked:?}");
            assert!(asked.contains(&Frame::RangeAbandon { token: 7 }), "{asked:?}");
        }
    }
}
