//! Hauls that do not know of LARGE: what they compress is 4 MiB at a time, in one record of a keyed connection.

use crate::support::BACKENDS;
use crate::support::daemon::{Knock, Listening, enter, welcome};
use crate::support::direct::{Ending, Guest, SealedEnd};
use crate::support::frames::{Received, attributes, blake3_of, bytes_of, compressed, data, field};
use haul_engine::wire::MAX_BLOCK;
use haul_engine::wire::compress::{Codec, compress};
use haul_engine::wire::decode::Role;
use haul_engine::wire::frame::{Caps, Dialect, Ext, Frame, Hash, Kind, Preserve};
use std::fs;
use std::io::Write;

const ZSTD: u8 = 2;
const CAPS: Caps = Caps(Caps::AEAD.0 | Caps::ZSTD.0);
const EXT: Ext = Ext(Ext::ALL.0 & !Ext::LARGE.0);
const NONCE: Hash = [0xcc; 32];

/// Digits, which Zstandard makes half as much of.
fn content() -> Vec<u8> {
    let mut random = vec![0; MAX_BLOCK as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    random.iter().flat_map(|byte| [b'0' + byte % 16, b'0' + byte / 16]).collect()
}

/// The frames of this content, of which each takes a record of about 2 MiB.
fn packed(content: &[u8]) -> Vec<Vec<u8>> {
    let pack = |block: &[u8]| {
        let mut payload = vec![0; block.len() + 1000];
        let len = compress(Codec::from_algo(ZSTD).unwrap(), block, &mut payload, false).unwrap();
        assert!(len > 1 << 20, "{len}");
        compressed(ZSTD, block.len() as u32, &payload[..len])
    };
    content.chunks(MAX_BLOCK as usize).map(pack).collect()
}

/// All of it in one record.
fn send_at_once(end: &mut SealedEnd, plain: &[u8]) {
    let record = end.record(plain);
    end.send_raw(&record);
}

fn client(daemon: &Listening) -> SealedEnd {
    enter(Guest::come(daemon.address), &daemon.key(), Knock { caps: CAPS, ext: EXT, ..Knock::ALL })
}

fn begin(client: &mut SealedEnd, content: &[u8]) {
    client.send(&Frame::Put { path: field("f"), size: content.len() as u64, offset: 0, overwrite: true });
}

#[test]
fn an_older_client_that_was_granted_a_codec_may_use_it_and_the_next_is_granted_none() {
    let content = content();
    let packed = packed(&content);
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let mut first = client(&daemon);
        begin(&mut first, &content);
        packed.iter().for_each(|frame| send_at_once(&mut first, frame));
        let hash = blake3_of(&content);
        assert_eq!(first.ask(&Frame::Commit { hash }), Frame::Ok { hash: Some(hash) });
        assert!(fs::read(daemon.root().join("f")).unwrap() == content);
        // Beside it there is no memory for such a record of another one, which would keep it from all others.
        let mut next = client(&daemon);
        begin(&mut next, &content);
        send_at_once(&mut next, &packed[0]);
        assert_eq!(next.rest(), (vec![], Ending::Cut));
        let mut next = client(&daemon);
        begin(&mut next, &content);
        content.chunks(512 << 10).for_each(|part| send_at_once(&mut next, &data(part)));
        assert_eq!(next.ask(&Frame::Commit { hash }), Frame::Ok { hash: Some(hash) });
        first.end(true);
        next.end(true);
        daemon.end();
    }
}

#[test]
fn an_older_daemon_is_understood() {
    let content = content();
    let packed = packed(&content);
    let found = attributes(Kind::Regular, content.len() as u64);
    let looked_up = Frame::AttributesResponse { attributes: found, link: Vec::new() };
    for backend in BACKENDS {
        let (ended, left) = super::hostile_daemon::download(backend, "zstd", |stream, key| {
            stream.write_all(&bytes_of(&Frame::AuthChallenge { nonce: NONCE }, Dialect::BASE)).unwrap();
            let (_, answer, seals) = welcome(stream, key, &NONCE, (CAPS, EXT), None);
            stream.write_all(&answer).unwrap();
            let dialect = Dialect { version: 1, ext: EXT };
            let mut end = SealedEnd::new(stream.try_clone().unwrap(), seals.expect("sealed"), Role::Server, dialect);
            while let Some(Received::Frame(request)) = end.input.next() {
                if let Frame::Lookup { .. } = request {
                    end.send(&looked_up);
                    continue;
                }
                assert!(matches!(request, Frame::Get { .. }), "{request:?}");
                end.send(&Frame::Meta { attributes: found, preserve: Preserve::default() });
                packed.iter().for_each(|frame| send_at_once(&mut end, frame));
                end.send(&Frame::Ok { hash: Some(blake3_of(&content)) });
            }
            end.send_bytes(&[]);
            end.cut();
        });
        ended.assert_exit(0);
        assert!(left == content);
    }
}
