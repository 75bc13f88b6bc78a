//! A server session against a hostile client: frames in any order, any content, cut anywhere, on a simulated host.
//!
//! The input is a program: the first bytes choose version, extensions and capabilities, all combinations of them, and the
//! simulator's seed; then each byte chooses a frame to send, content, or raw bytes. Whatever is said, the server must not
//! panic, must end when the stream does, must give every block back and must leave nothing open.
#![no_main]

use haul_engine::block::{Class, Pool};
use haul_engine::contract::Peer;
use haul_engine::limits::POOL_FRAME_BLOCKS;
use haul_engine::session::server::Server;
use haul_engine::sim::{FaultPlan, World};
use haul_engine::tree_hash::TreeHash;
use haul_engine::wire::compress::{Codec, compress};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{
    Attributes, Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, PathField, Preserve, Timestamp,
};
use haul_engine::worker::Worker;
use libfuzzer_sys::fuzz_target;

/// Bytes of the largest content that a program sends at once: more than a small block.
const CONTENT: usize = 70_000;

/// Bytes of a program.
struct Program<'a>(&'a [u8]);

impl Program<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().map_or((0, self.0), |(first, rest)| (*first, rest));
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u64 {
        const EDGES: [u64; 10] = [0, 1, 5, 65_536, 65_537, 524_288, CONTENT as u64, 4 << 20, 1 << 40, u64::MAX];
        match self.byte() {
            byte if byte < 64 => u64::from(byte),
            byte => EDGES[usize::from(byte) % EDGES.len()],
        }
    }

    fn hash(&mut self) -> Hash {
        match self.byte() {
            0 => hash_of(&[9; CONTENT]),
            1 => hash_of(b""),
            byte => [byte; 32],
        }
    }

    fn attributes(&mut self) -> Attributes {
        const KINDS: [Kind; 4] = [Kind::Regular, Kind::Directory, Kind::Symlink, Kind::Fifo];
        let mtime = Timestamp { seconds: self.number() as i64, nanoseconds: 5 };
        let kind = KINDS[usize::from(self.byte() % 4)];
        Attributes { kind, size: self.number(), mode: u32::from(self.byte()), mtime, uid: 0, gid: 0 }
    }

    /// A block as a codec makes it, or something else in its place.
    fn compressed(&mut self) -> Vec<u8> {
        let codec = if self.byte() % 2 == 0 { Codec::Lz4 } else { Codec::Zstd };
        let content = match self.byte() {
            byte if byte < 128 => vec![9; CONTENT],
            _ => self.bytes(),
        };
        let mut packed = vec![0; content.len() + 1024];
        let len = compress(codec, &content, &mut packed, false).unwrap_or(7).min(packed.len());
        packed.truncate(len);
        let mut original = content.len() as u32;
        match self.byte() {
            0 => original = original.wrapping_add(1),
            1 => original = self.number() as u32,
            2 => packed = self.bytes(),
            3 => packed.truncate(packed.len() / 2),
            _ => {}
        }
        // Not by the encoder, which makes no frame that breaks the rules.
        let len = packed.len() as u32;
        let head = [(10 + len).to_le_bytes(), original.to_le_bytes(), len.to_le_bytes()];
        [&head[0][..], &[0x89, codec.algo()], &head[1], &head[2], &packed].concat()
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

    fn frame(&mut self) -> Frame {
        let preserve = |byte: u8| Preserve(byte % 8);
        match self.byte() % 45 {
            0 => Frame::List { path: self.path() },
            1 => Frame::Stat { path: self.path() },
            2 => Frame::Hash {
                path: self.path(),
                offset: self.number(),
                limit: (self.byte() % 2 == 0).then(|| self.number()),
            },
            3..=5 => Frame::Get { path: self.path(), offset: self.number() },
            6..=9 => {
                let (path, size, offset) = (self.path(), self.number(), self.byte());
                let offset = if offset < 200 { 0 } else { self.number() };
                Frame::Put { path, size, offset, overwrite: self.byte() % 4 != 0 }
            }
            10 => Frame::Mkdir { path: self.path() },
            11 => Frame::Resume { path: self.path() },
            12..=14 => Frame::Done,
            15 => Frame::Tree { walk: u32::from(self.byte() % 20), path: self.path(), recursive: self.byte() % 2 == 0 },
            16 => Frame::TreeNext { walk: u32::from(self.byte() % 20) },
            17 => Frame::Lookup { path: self.path(), follow: self.byte() % 2 == 0 },
            18 | 19 => Frame::Commit { hash: self.hash() },
            20 => Frame::Abandon { code: ErrorCode(u16::from(self.byte())) },
            21 => {
                let (path, attributes) = (self.path(), self.attributes());
                Frame::SetMeta { path, attributes, preserve: preserve(self.byte()) }
            }
            22 => {
                let (path, target, attributes) = (self.path(), self.bytes(), self.attributes());
                Frame::Symlink { path, target, attributes, preserve: preserve(self.byte()) }
            }
            23 | 24 => Frame::Meta { attributes: self.attributes(), preserve: preserve(self.byte()) },
            25 | 26 => {
                let block_size = if self.byte() < 200 { 4 << 20 } else { self.number() as u32 };
                let hashes = (0..self.byte() % 4).map(|_| self.hash()).collect();
                Frame::HaveBlocks { block_size, hashes }
            }
            27 => Frame::OpenDirectChannel,
            28 => Frame::AuthHello { mac: self.hash() },
            29 | 30 => Frame::PutChunked { path: self.path(), offset: self.number(), length: self.number() },
            31 => Frame::GetChunked { path: self.path(), offset: self.number(), length: self.number() },
            32 => Frame::Truncate { path: self.path(), size: self.number() },
            33 | 34 => Frame::Continue { path: self.path(), size: self.number() },
            35 | 36 => Frame::Skip { offset: self.number() },
            37 => self.hello(),
            38 => Frame::Kept { blocks: vec![self.hash()] },
            39 => {
                let (path, size, attributes) = (self.path(), self.number(), self.attributes());
                let (preserve, keep) = (preserve(self.byte()), self.byte() % 2 == 0);
                Frame::RangeBegin { path, size, attributes, preserve, keep }
            }
            // Tokens are counted from 1 in a process, by whoever is fuzzed before as well.
            40 | 41 => Frame::RangePut { token: self.number(), offset: self.number(), length: self.number() },
            42 => Frame::RangeCommit { token: self.number(), hash: self.hash() },
            43 => Frame::Blocks { path: self.path(), length: self.number() },
            _ => Frame::Ok { hash: None },
        }
    }

    fn hello(&mut self) -> Frame {
        let version = match self.byte() {
            byte @ 0..8 => byte,
            byte => 1 + byte % 2,
        };
        let caps = Caps(self.byte());
        let ext = match self.byte() {
            byte if byte < 64 => None,
            byte if byte < 128 => Some(Ext::ALL),
            byte => Some(Ext(u32::from(byte) & Ext::ALL.0)),
        };
        Frame::Hello { version, caps, ext }
    }
}

fn hash_of(content: &[u8]) -> Hash {
    let mut tree = TreeHash::new();
    tree.update(content);
    tree.finalize()
}

/// The dialect that a server speaks after this Hello.
fn dialect_of(hello: &Frame) -> Dialect {
    match *hello {
        Frame::Hello { version: 1, ext, .. } => Dialect { version: 1, ext: ext.unwrap_or(Ext::NONE).and(Ext::ALL) },
        Frame::Hello { version, .. } => Dialect { version, ext: Ext::NONE },
        _ => Dialect::BASE,
    }
}

fuzz_target!(|data: &[u8]| {
    let mut program = Program(data);
    let hello = program.hello();
    let world = World::new(u64::from(program.byte()), FaultPlan::none());
    world.put_file("server", "f", &[7; CONTENT]);
    world.put_file("server", "d/g", b"small");
    world.put_link("server", "link", b"d/g");
    // Its disk is memory.
    world.set_capacity("server", 64 << 20);
    let mut host = world.host("server");
    let (stream, mut peer) = world.connect_peer(&mut host, 16 * 1024);
    let (root, store) = (host.root(), host.add_store());
    let mut worker = Worker::new(host, Pool::new(4, 3)).letting_panics_through();
    worker.add(Box::new(Server::new(stream, root, Box::new(|_| {})).with_store(Some(store))));

    let mut dialect = Dialect::BASE;
    let mut out = Vec::new();
    encode::frame(&hello, dialect, &mut out).expect("Hello fits");
    dialect = dialect_of(&hello);
    let mut first = true;
    while !program.0.is_empty() {
        match program.byte() % 10 {
            0 => out.extend(program.bytes()),
            1 | 2 => {
                let bytes = program.bytes();
                out.extend(encode::data_header(bytes.len() as u32));
                out.extend(bytes);
            }
            3 => out.extend(encode::data_header(CONTENT as u32).into_iter().chain([9; CONTENT])),
            4 => out.extend(program.compressed()),
            _ => {
                let frame = program.frame();
                let _ = encode::frame(&frame, dialect, &mut out);
                // The first request after Welcome may be one more greeting.
                if first && matches!(frame, Frame::Hello { .. }) {
                    dialect = dialect_of(&frame);
                }
            }
        }
        first = false;
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
    let available = [Class::Large, Class::Small, Class::Frame].map(|class| worker.blocks_available(class));
    assert_eq!(available, [3, 4, POOL_FRAME_BLOCKS], "blocks came back");
    assert_eq!((world.open_count("server"), world.unpublished("server")), (0, 0), "nothing is left open");
});
