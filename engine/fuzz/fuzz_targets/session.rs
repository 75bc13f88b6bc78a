//! A server session against a hostile client: frames in any order, any content, cut anywhere, on a simulated host.
//!
//! The input is a program: the first bytes choose the dialect and the simulator's seed, then each byte chooses a frame to
//! send, or raw bytes, or to read. Whatever is said, the server must not panic, must end when the stream does, must give
//! every block back and must leave nothing open.
#![no_main]

use haul_engine::block::{Class, Pool};
use haul_engine::contract::Peer;
use haul_engine::session::server::Server;
use haul_engine::sim::{FaultPlan, World};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{
    Attributes, Caps, Dialect, ErrorCode, Ext, Frame, Kind, PathField, Preserve, Timestamp,
};
use haul_engine::worker::Worker;
use libfuzzer_sys::fuzz_target;

/// Bytes of a program.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u64 {
        const EDGES: [u64; 8] = [0, 1, 5, 65_536, 65_537, 524_288, 1 << 40, u64::MAX];
        match self.byte() {
            byte if byte < 128 => u64::from(byte),
            byte => EDGES[usize::from(byte % 8)],
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }

    fn path(&mut self) -> PathField {
        const KNOWN: [&[u8]; 8] = [b"", b"f", b"d", b"d/g", b"d\0g", b"link", b"../x", b"new/a/b"];
        match self.byte() {
            byte if byte < 200 => PathField(KNOWN[usize::from(byte % 8)].to_vec()),
            _ => PathField(self.bytes()),
        }
    }

    fn attributes(&mut self) -> Attributes {
        let mtime = Timestamp { seconds: self.number() as i64, nanoseconds: 5 };
        Attributes { kind: Kind::Regular, size: self.number(), mode: 0o644, mtime, uid: 0, gid: 0 }
    }

    fn frame(&mut self) -> Frame {
        match self.byte() % 24 {
            0 => Frame::List { path: self.path() },
            1 => Frame::Stat { path: self.path() },
            2 => Frame::Hash { path: self.path(), offset: self.number(), limit: Some(self.number()) },
            3 => Frame::Get { path: self.path(), offset: self.number() },
            4..=7 => Frame::Put { path: self.path(), size: self.number(), offset: self.number() % 2, overwrite: true },
            8 => Frame::Mkdir { path: self.path() },
            9 => Frame::Resume { path: self.path() },
            10 | 11 => Frame::Done,
            12 => Frame::Tree { walk: 1, path: self.path(), recursive: true },
            13 => Frame::TreeNext { walk: 1 },
            14 => Frame::Lookup { path: self.path(), follow: self.byte() % 2 == 0 },
            15 => Frame::Commit { hash: [self.byte(); 32] },
            16 => Frame::Abandon { code: ErrorCode::OTHER },
            17 => Frame::SetMeta { path: self.path(), attributes: self.attributes(), preserve: Preserve::MODE },
            18 => {
                let (path, target) = (self.path(), self.bytes());
                Frame::Symlink { path, target, attributes: self.attributes(), preserve: Preserve::default() }
            }
            19 => Frame::Meta { attributes: self.attributes(), preserve: Preserve::default() },
            20 => Frame::HaveBlocks { block_size: 4 << 20, hashes: vec![[1; 32]; usize::from(self.byte())] },
            21 => Frame::OpenDirectChannel,
            22 => Frame::PutChunked { path: self.path(), offset: self.number(), length: self.number() },
            _ => Frame::Ok { hash: None },
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut program = Program(data);
    let ext = Ext::BYTES.or(Ext::TREE).or(Ext::META).or(Ext::COMMIT);
    let (version, ext) = [(1, Some(ext)), (1, None), (2, None), (1, Some(Ext::META))][usize::from(program.byte() % 4)];
    let world = World::new(u64::from(program.byte()), FaultPlan::none());
    world.put_file("server", "f", &[7; 70_000]);
    world.put_file("server", "d/g", b"small");
    world.put_link("server", "link", b"d/g");
    let mut host = world.host("server");
    let (stream, mut peer) = world.connect_peer(&mut host, 16 * 1024);
    let root = host.root();
    let mut worker = Worker::new(host, Pool::new(4, 3));
    worker.add(Box::new(Server::new(stream, root, Box::new(|_| {}))));

    let mut dialect = Dialect::BASE;
    let mut out = Vec::new();
    let hello = Frame::Hello { version, caps: Caps(0xff), ext };
    encode::frame(&hello, dialect, &mut out).expect("Hello fits");
    dialect = Dialect { version, ext: ext.unwrap_or(Ext::NONE) };
    while !program.0.is_empty() {
        match program.byte() % 8 {
            0 => out.extend(program.bytes()),
            1 | 2 => {
                let bytes = program.bytes();
                out.extend(encode::data_header(bytes.len() as u32));
                out.extend(bytes);
            }
            3 => out.extend(encode::data_header(70_000).into_iter().chain([9; 70_000])),
            _ => {
                let frame = program.frame();
                let _ = encode::frame(&frame, dialect, &mut out);
            }
        }
    }

    let mut rest = out.as_slice();
    for round in 0.. {
        assert!(round < 5_000_000, "the server never ends");
        if rest.is_empty() {
            peer.close_write();
        } else {
            let written = peer.write(rest);
            rest = &rest[written..];
        }
        let _ = peer.read(64 * 1024);
        worker.turn().expect("nothing breaks the host");
        if !worker.is_busy() {
            break;
        }
        world.advance();
    }
    world.check();
    assert_eq!(
        (worker.blocks_available(Class::Large), worker.blocks_available(Class::Small)),
        (3, 4),
        "blocks came back"
    );
    assert_eq!((world.open_count("server"), world.unpublished("server")), (0, 0), "nothing is left open");
});
