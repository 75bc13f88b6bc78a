//! What must hold for every frame, every split and every hostile byte.

use haul_engine::wire::decode::{DecodeError, Decoder, Event, Role};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{
    Attributes, Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, ListEntry, PathField, Preserve, Timestamp, TreeEntry,
    Unkept,
};
use haul_engine::wire::path::{RelPath, RequestPath, Target};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Every extension, those of direct connections included.
const EVERY: Ext = Ext(Ext::ALL.0 | Ext::KEYED.0 | Ext::PULSE.0);

fn dialect() -> impl Strategy<Value = Dialect> {
    (1u8..=2, prop_oneof![Just(Ext::NONE), (0u32..16).prop_map(Ext)])
        .prop_map(|(version, ext)| Dialect { version, ext: if version == 2 { Ext::NONE } else { ext } })
}

/// Base and every combination of extensions see only such texts as all of them can carry; raw bytes are tried apart.
fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just('/'), Just('.'), Just('\0'), Just('ü'), any::<char>()], 0..12)
        .prop_map(|characters| characters.into_iter().collect::<String>().into_bytes())
}

fn path() -> impl Strategy<Value = PathField> {
    text().prop_map(PathField)
}

fn hash() -> impl Strategy<Value = Hash> {
    any::<Hash>()
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let kind = prop_oneof![
        Just(Kind::Regular),
        Just(Kind::Directory),
        Just(Kind::Symlink),
        Just(Kind::Fifo),
        Just(Kind::Socket),
        Just(Kind::CharDevice),
        Just(Kind::BlockDevice),
    ];
    (kind, any::<u64>(), any::<u32>(), any::<i64>(), 0u32..1_000_000_000, any::<u32>(), any::<u32>()).prop_map(
        |(kind, size, mode, seconds, nanoseconds, uid, gid)| Attributes {
            kind,
            size,
            mode,
            mtime: Timestamp { seconds, nanoseconds },
            uid,
            gid,
        },
    )
}

fn preserve() -> impl Strategy<Value = Preserve> {
    any::<u8>().prop_map(Preserve)
}

fn code() -> impl Strategy<Value = ErrorCode> {
    any::<u16>().prop_map(ErrorCode)
}

fn raw() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn base_request() -> impl Strategy<Value = Frame> {
    let ext = || option::of(any::<u32>().prop_map(Ext));
    prop_oneof![
        (any::<u8>(), any::<u8>(), ext()).prop_map(|(version, caps, ext)| Frame::Hello {
            version,
            caps: Caps(caps),
            ext
        }),
        path().prop_map(|path| Frame::List { path }),
        path().prop_map(|path| Frame::Stat { path }),
        (path(), any::<u64>(), option::of(any::<u64>())).prop_map(|(path, offset, limit)| Frame::Hash {
            path,
            offset,
            limit
        }),
        (path(), any::<u64>()).prop_map(|(path, offset)| Frame::Get { path, offset }),
        (path(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(path, size, offset, overwrite)| Frame::Put {
            path,
            size,
            offset,
            overwrite
        }),
        path().prop_map(|path| Frame::Mkdir { path }),
        path().prop_map(|path| Frame::Resume { path }),
        Just(Frame::Done),
        (any::<u32>(), vec(hash(), 0..5)).prop_map(|(block_size, hashes)| Frame::HaveBlocks { block_size, hashes }),
        Just(Frame::OpenDirectChannel),
        hash().prop_map(|mac| Frame::AuthHello { mac }),
        (path(), any::<u64>(), any::<u64>()).prop_map(|(path, offset, length)| Frame::PutChunked {
            path,
            offset,
            length
        }),
        (path(), any::<u64>(), any::<u64>()).prop_map(|(path, offset, length)| Frame::GetChunked {
            path,
            offset,
            length
        }),
        (path(), any::<u64>()).prop_map(|(path, size)| Frame::Truncate { path, size }),
    ]
}

fn base_reply() -> impl Strategy<Value = Frame> {
    let entry = (path(), any::<u64>(), any::<i64>(), any::<bool>()).prop_map(|(path, size, mtime, is_dir)| ListEntry {
        path,
        size,
        mtime,
        is_dir,
    });
    let ext = option::of(any::<u32>().prop_map(Ext));
    prop_oneof![
        (any::<u8>(), any::<u8>(), ext).prop_map(|(version, caps, ext)| Frame::Welcome {
            version,
            caps: Caps(caps),
            ext
        }),
        option::of(hash()).prop_map(|hash| Frame::Ok { hash }),
        (text(), code()).prop_map(|(message, code)| Frame::Error { message, code }),
        (any::<u64>(), any::<i64>(), any::<bool>()).prop_map(|(size, mtime, is_dir)| Frame::StatResponse {
            size,
            mtime,
            is_dir
        }),
        hash().prop_map(|hash| Frame::HashResponse { hash }),
        vec(entry, 0..5).prop_map(|entries| Frame::ListResponse { entries }),
        (any::<u64>(), option::of(hash())).prop_map(|(size, hash)| Frame::ResumeResponse { size, hash }),
        raw().prop_map(|bitmap| Frame::MissingBlocks { bitmap }),
        (text(), hash()).prop_map(|(address, key)| Frame::DirectChannelReady { address, key }),
        hash().prop_map(|nonce| Frame::AuthChallenge { nonce }),
    ]
}

fn extension() -> impl Strategy<Value = Frame> {
    let entry = (path(), attributes(), raw(), code()).prop_map(|(path, attributes, link, error)| TreeEntry {
        path,
        attributes,
        link,
        error,
    });
    prop_oneof![
        (any::<u32>(), path(), any::<bool>()).prop_map(|(walk, path, recursive)| Frame::Tree { walk, path, recursive }),
        any::<u32>().prop_map(|walk| Frame::TreeNext { walk }),
        (path(), any::<bool>()).prop_map(|(path, follow)| Frame::Lookup { path, follow }),
        hash().prop_map(|hash| Frame::Commit { hash }),
        code().prop_map(|code| Frame::Abandon { code }),
        (path(), any::<u64>()).prop_map(|(path, size)| Frame::Continue { path, size }),
        any::<u64>().prop_map(|offset| Frame::Skip { offset }),
        (any::<[u8; 32]>(), any::<u16>(), any::<u8>(), any::<u32>(), any::<[u8; 32]>()).prop_map(
            |(random, index, caps, ext, mac)| {
                Frame::KeyedHello { random, index, caps: Caps(caps), ext: Ext(ext), mac }
            }
        ),
        (any::<u8>(), any::<u32>(), any::<[u8; 32]>()).prop_map(|(caps, ext, mac)| Frame::KeyedWelcome {
            caps: Caps(caps),
            ext: Ext(ext),
            mac
        }),
        ((hash(), hash()), any::<u16>(), any::<u8>(), any::<u32>(), hash()).prop_map(
            |((random, public), index, caps, ext, mac)| {
                Frame::DaemonHello { random, public, index, caps: Caps(caps), ext: Ext(ext), mac }
            }
        ),
        (hash(), any::<u8>(), any::<u32>(), hash()).prop_map(|(public, caps, ext, mac)| Frame::DaemonWelcome {
            public,
            caps: Caps(caps),
            ext: Ext(ext),
            mac
        }),
        vec(hash(), 0..5).prop_map(|blocks| Frame::Kept { blocks }),
        (path(), any::<u64>(), attributes(), preserve(), any::<bool>()).prop_map(
            |(path, size, attributes, preserve, keep)| Frame::RangeBegin { path, size, attributes, preserve, keep }
        ),
        any::<[u64; 3]>().prop_map(|[token, offset, length]| Frame::RangePut { token, offset, length }),
        Just(Frame::Ping),
        Just(Frame::Pulse),
        any::<u8>().prop_map(|what| Frame::Unkept(Unkept(what))),
        (any::<u64>(), hash()).prop_map(|(token, hash)| Frame::RangeCommit { token, hash }),
        any::<u64>().prop_map(|token| Frame::RangeAbandon { token }),
        (path(), any::<u64>()).prop_map(|(path, length)| Frame::Blocks { path, length }),
        (any::<u64>(), vec(hash(), 0..5)).prop_map(|(token, blocks)| Frame::RangeBegun { token, blocks }),
        (path(), attributes(), preserve()).prop_map(|(path, attributes, preserve)| Frame::SetMeta {
            path,
            attributes,
            preserve
        }),
        (path(), raw(), attributes(), preserve()).prop_map(|(path, target, attributes, preserve)| Frame::Symlink {
            path,
            target,
            attributes,
            preserve
        }),
        (any::<bool>(), vec(entry, 0..5)).prop_map(|(last, entries)| Frame::TreePage { last, entries }),
        (attributes(), preserve()).prop_map(|(attributes, preserve)| Frame::Meta { attributes, preserve }),
        (attributes(), raw()).prop_map(|(attributes, link)| Frame::AttributesResponse { attributes, link }),
    ]
}

/// A frame together with a dialect that has it.
fn spoken() -> impl Strategy<Value = (Dialect, Frame)> {
    let all = Dialect { version: 1, ext: EVERY };
    prop_oneof![(dialect(), base_request()), (dialect(), base_reply()), (Just(all), extension())]
}

/// The frame as the dialect can carry it.
fn carried(frame: &Frame, dialect: Dialect) -> Frame {
    match frame.clone() {
        Frame::Put { path, size, offset, .. } if dialect.version == 1 => {
            Frame::Put { path, size, offset, overwrite: true }
        }
        Frame::Error { message, .. } if dialect.ext == Ext::NONE => Frame::Error { message, code: ErrorCode::OTHER },
        other => other,
    }
}

fn encoded(frame: &Frame, dialect: Dialect) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::frame(frame, dialect, &mut bytes).unwrap();
    bytes
}

fn reader(bytes: &[u8]) -> Role {
    if bytes[4] < 0x80 { Role::Server } else { Role::Client }
}

#[derive(PartialEq, Debug)]
enum Item {
    Frame(Frame),
    Data(u32),
    Compressed(u8, u32, u32),
    Payload(Vec<u8>),
    Malformed(DecodeError),
}

/// Feeds `bytes` in pieces of the given lengths (the last one repeated) and joins the pieces of payloads, so that
/// results can be compared whatever the split.
fn decode_all(decoder: &mut Decoder, mut bytes: &[u8], splits: &[usize]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut payload = Vec::new();
    let mut splits = splits.iter().copied().chain(std::iter::repeat(*splits.last().unwrap()));
    while !bytes.is_empty() {
        let (mut input, rest) = bytes.split_at(splits.next().unwrap().clamp(1, bytes.len()));
        bytes = rest;
        loop {
            let (used, event) = match decoder.next(input) {
                Ok(step) => step,
                Err(error) => {
                    items.push(Item::Malformed(error));
                    return items;
                }
            };
            match event {
                None => {
                    assert_eq!(used, input.len(), "no event although input is left");
                    break;
                }
                Some(Event::Frame(frame)) => items.push(Item::Frame(frame)),
                Some(Event::Data { len }) => items.push(Item::Data(len)),
                Some(Event::Compressed { algo, original, len }) => items.push(Item::Compressed(algo, original, len)),
                Some(Event::Piece { start, len }) => {
                    assert!(len > 0 && start + len <= used);
                    payload.extend_from_slice(&input[start..start + len]);
                }
                Some(Event::End) => items.push(Item::Payload(std::mem::take(&mut payload))),
            }
            input = &input[used..];
        }
    }
    items
}

proptest! {
    #[test]
    fn every_frame_comes_back_as_it_went_out((dialect, frame) in spoken()) {
        let bytes = encoded(&frame, dialect);
        let mut decoder = Decoder::new(reader(&bytes), dialect);
        let expected = (bytes.len(), Some(Event::Frame(carried(&frame, dialect))));
        prop_assert_eq!(decoder.next(&bytes), Ok(expected));
        prop_assert!(!decoder.mid_frame());
        prop_assert_eq!(decoder.buffered_capacity(), 0, "a whole frame is read where it stands");
    }

    #[test]
    fn raw_names_and_messages_travel_under_bytes(name in raw(), message in raw()) {
        let dialect = Dialect { version: 1, ext: Ext::BYTES };
        let frames =
            [Frame::Stat { path: PathField(name) }, Frame::Error { message, code: ErrorCode::OTHER }];
        for frame in frames {
            let bytes = encoded(&frame, dialect);
            let items = decode_all(&mut Decoder::new(reader(&bytes), dialect), &bytes, &[bytes.len()]);
            prop_assert_eq!(items, vec![Item::Frame(frame)]);
        }
    }

    #[test]
    fn the_split_of_the_input_makes_no_difference(
        frames in vec(spoken().prop_map(|(_, frame)| frame), 1..6),
        payload in vec(any::<u8>(), 0..300),
        splits in vec(1usize..60, 1..40),
    ) {
        let dialect = Dialect { version: 1, ext: EVERY };
        for role in [Role::Client, Role::Server] {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for frame in &frames {
                let frame_bytes = encoded(frame, dialect);
                // Only what this end may read; the rest has tests of its own.
                if matches!(frame_bytes[4], 0x40..=0x5f) && role == Role::Client
                    || matches!(frame_bytes[4], 0xc0 | 0xc2..=0xdf) && role == Role::Server
                {
                    continue;
                }
                bytes.extend_from_slice(&frame_bytes);
                expected.push(Item::Frame(carried(frame, dialect)));
                let len = payload.len() as u32;
                bytes.extend_from_slice(&encode::data_header(len));
                bytes.extend_from_slice(&payload);
                bytes.extend_from_slice(&encode::compressed_header(2, 4096, len));
                bytes.extend_from_slice(&payload);
                expected.push(Item::Data(len));
                expected.push(Item::Payload(payload.clone()));
                expected.push(Item::Compressed(2, 4096, len));
                expected.push(Item::Payload(payload.clone()));
            }
            for splits in [&[usize::MAX][..], &[1], &splits] {
                let mut decoder = Decoder::new(role, dialect);
                prop_assert_eq!(&decode_all(&mut decoder, &bytes, splits), &expected);
                prop_assert!(!decoder.mid_frame());
            }
        }
    }

    #[test]
    fn a_frame_cut_short_is_never_seen((dialect, frame) in spoken(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&frame, dialect);
        let cut = cut.index(bytes.len());
        let mut decoder = Decoder::new(reader(&bytes), dialect);
        prop_assert_eq!(decoder.next(&bytes[..cut]), Ok((cut, None)));
        prop_assert_eq!(decoder.mid_frame(), cut > 0);
    }

    #[test]
    fn a_body_cut_short_behind_an_honest_length_is_malformed_or_another_frame(
        (dialect, frame) in spoken(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encoded(&frame, dialect);
        // Greetings are meant to be read when cut: missing caps are none.
        if bytes.len() == 5 || matches!(frame, Frame::Hello { .. } | Frame::Welcome { .. }) {
            return Ok(());
        }
        bytes.truncate(5 + cut.index(bytes.len() - 5));
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let items = decode_all(&mut Decoder::new(reader(&bytes), dialect), &bytes, &[bytes.len()]);
        prop_assert_ne!(items, vec![Item::Frame(carried(&frame, dialect))]);
    }

    #[test]
    fn a_payload_cut_short_never_ends(payload in vec(any::<u8>(), 1..300), cut in any::<prop::sample::Index>()) {
        let mut bytes = encode::data_header(payload.len() as u32).to_vec();
        bytes.extend_from_slice(&payload);
        bytes.truncate(9 + cut.index(payload.len()));
        let mut decoder = Decoder::new(Role::Client, Dialect::BASE);
        let items = decode_all(&mut decoder, &bytes, &[bytes.len()]);
        prop_assert_eq!(items, vec![Item::Data(payload.len() as u32)]);
        prop_assert_eq!(decoder.payload_left() as usize, 9 + payload.len() - bytes.len());
        prop_assert!(decoder.mid_frame());
    }

    #[test]
    fn noise_never_panics_and_reads_the_same_in_every_split(
        dialect in dialect(),
        server in any::<bool>(),
        type_byte in any::<u8>(),
        length in 1u32..80,
        noise in vec(prop_oneof![Just(0), Just(1), Just(4), any::<u8>()], 0..200),
        splits in vec(1usize..9, 1..20),
    ) {
        let role = if server { Role::Server } else { Role::Client };
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.push(type_byte);
        bytes.extend_from_slice(&noise);
        for bytes in [&bytes[..], &noise[..]] {
            let whole = decode_all(&mut Decoder::new(role, dialect), bytes, &[usize::MAX]);
            for splits in [&[1][..], &splits] {
                prop_assert_eq!(&decode_all(&mut Decoder::new(role, dialect), bytes, splits), &whole);
            }
        }
    }

    #[test]
    fn a_count_that_the_frame_cannot_hold_is_malformed(count in 4u32.., prefix in 0usize..3) {
        let all = Dialect { version: 1, ext: EVERY };
        let (type_byte, before): (u8, &[u8]) = [(0x0a, &[0, 0, 64, 0][..]), (0x87, &[]), (0xc0, &[0])][prefix];
        let mut bytes = vec![0; 4];
        bytes.push(type_byte);
        bytes.extend_from_slice(before);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.resize(20, 0);
        bytes[..4].copy_from_slice(&16u32.to_le_bytes());
        let result = Decoder::new(reader(&bytes), all).next(&bytes);
        prop_assert!(matches!(result, Err(DecodeError::Truncated(_) | DecodeError::TooMany(_))), "{:?}", result);
    }

    #[test]
    fn no_name_from_a_peer_leaves_the_directory_it_is_joined_to(
        bytes in vec(prop_oneof![Just(b'/'), Just(b'.'), Just(0), Just(b'a'), any::<u8>()], 0..16),
    ) {
        if let Ok(path) = RelPath::parse(&bytes) {
            prop_assert!(!path.as_bytes().starts_with(b"/") && !path.as_bytes().contains(&0));
            for component in path.components() {
                prop_assert!(!component.is_empty() && component != b"." && component != b"..");
            }
            let joined: Vec<_> = path.components().collect();
            prop_assert_eq!(joined.join(&b'/'), bytes);
        }
    }

    #[test]
    fn a_normal_form_is_stable_and_holds_no_way_up(
        bytes in vec(prop_oneof![Just(b'/'), Just(b'.'), Just(0), Just(b'a'), any::<u8>()], 0..16),
    ) {
        if let Ok(path) = RequestPath::parse(&bytes) {
            prop_assert_eq!(RequestPath::parse(path.as_bytes()), Ok(path.clone()));
            prop_assert_eq!(path.is_absolute(), bytes.starts_with(b"/"));
            prop_assert!(path.components().all(|component| component != b".." && component != b"."));
            if let Some(parent) = path.parent() {
                let name = RelPath::parse(path.file_name().unwrap()).unwrap();
                prop_assert_eq!(parent.join(&name), path);
            }
        }
    }

    #[test]
    fn a_target_comes_back_as_it_went_out_under_bytes(
        bytes in vec(prop_oneof![Just(b'/'), Just(0), Just(b'a'), any::<u8>()], 0..16),
    ) {
        if let Ok(target) = Target::decode(&PathField(bytes), Ext::BYTES) {
            prop_assert_eq!(Target::decode(&target.encode(Ext::BYTES), Ext::BYTES), Ok(target.clone()));
            let joined = Target::decode(&target.encode(Ext::NONE), Ext::NONE).unwrap();
            prop_assert_eq!(joined.operand, target.joined());
        }
    }
}

#[test]
fn a_declared_length_costs_nothing_until_its_bytes_arrive() {
    let mut decoder = Decoder::new(Role::Server, Dialect::BASE);
    let mut bytes = 0x0100_0000u32.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0x0a, 0, 0, 64, 0, 255]);
    assert_eq!(decoder.next(&bytes), Ok((10, None)));
    assert!(decoder.mid_frame());
    assert!(decoder.buffered_capacity() <= 64, "{} bytes held for 10 received", decoder.buffered_capacity());
}

#[test]
fn memory_of_a_large_frame_is_given_back_and_that_of_a_small_one_kept() {
    let mut decoder = Decoder::new(Role::Client, Dialect::BASE);
    for (size, least, most) in [(1000, 1000, 4096), (1 << 20, 1000, 64 * 1024), (1000, 1000, 64 * 1024)] {
        let bytes = encoded(&Frame::MissingBlocks { bitmap: vec![0; size] }, Dialect::BASE);
        let items = decode_all(&mut decoder, &bytes, &[300]);
        assert_eq!(items.len(), 1);
        let held = decoder.buffered_capacity();
        assert!((least..=most).contains(&held), "{held} bytes held after a frame of {size}");
    }
}
