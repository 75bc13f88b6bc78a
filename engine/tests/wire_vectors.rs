//! Byte vectors of the protocol: the base protocol's as its reference prints them, the extensions' as WIRE.md does.

use haul_engine::wire::decode::{DecodeError, Decoder, Event, Role};
use haul_engine::wire::encode::{self, EncodeError};
use haul_engine::wire::frame::{
    Attributes, Caps, Dialect, ErrorCode, Ext, Frame, Hash, Kind, ListEntry, PathField, Preserve, Timestamp, TreeEntry,
    Unkept,
};
use haul_engine::wire::path::{PathError, RelPath, RequestPath, Target};

const V1: Dialect = Dialect::BASE;
const V2: Dialect = Dialect { version: 2, ext: Ext::NONE };
const ALL: Dialect = Dialect { version: 1, ext: Ext(Ext::ALL.0 | Ext::KEYED.0 | Ext::PULSE.0) };
const ZERO8: &str = "00 00 00 00 00 00 00 00";

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|character| !character.is_whitespace()).collect();
    digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

fn field(text: &str) -> PathField {
    PathField(text.as_bytes().to_vec())
}

fn decode(role: Role, dialect: Dialect, bytes: &[u8]) -> Result<(usize, Option<Event>), DecodeError> {
    Decoder::new(role, dialect).next(bytes)
}

/// Encodes to exactly the vector, and the vector decodes to exactly the frame.
fn check(dialect: Dialect, frame: &Frame, vector: &str) {
    let bytes = unhex(vector);
    let mut out = Vec::new();
    encode::frame(frame, dialect, &mut out).unwrap();
    assert_eq!(hex(&out), hex(&bytes), "{frame:?}");
    let role = if bytes[4] < 0x80 { Role::Server } else { Role::Client };
    assert_eq!(decode(role, dialect, &bytes), Ok((bytes.len(), Some(Event::Frame(frame.clone())))));
}

fn hello_hash() -> Hash {
    *blake3::hash(b"hello").as_bytes()
}

#[test]
fn base_requests_match_the_reference_vectors() {
    let hello = |version, caps| Frame::Hello { version, caps: Caps(caps), ext: None };
    check(V1, &hello(1, 0x07), "03 00 00 00 01 01 07");
    check(V1, &hello(2, 0x87), "03 00 00 00 01 02 87");
    check(V1, &Frame::Stat { path: field("/x") }, "07 00 00 00 03 02 00 00 00 2f 78");
    check(V1, &Frame::List { path: field("d") }, "06 00 00 00 02 01 00 00 00 64");
    let hash = |limit| Frame::Hash { path: field("/x"), offset: 0, limit };
    check(V1, &hash(None), &format!("10 00 00 00 04 02 00 00 00 2f 78 {ZERO8} 00"));
    check(V1, &hash(Some(10)), &format!("18 00 00 00 04 02 00 00 00 2f 78 {ZERO8} 01 0a 00 00 00 00 00 00 00"));
    check(V1, &Frame::Get { path: field("/x"), offset: 0 }, &format!("0f 00 00 00 05 02 00 00 00 2f 78 {ZERO8}"));
    let put = Frame::Put { path: field("a"), size: 5, offset: 0, overwrite: true };
    check(V1, &put, &format!("16 00 00 00 06 01 00 00 00 61 05 00 00 00 00 00 00 00 {ZERO8}"));
    check(V2, &put, &format!("17 00 00 00 06 01 00 00 00 61 05 00 00 00 00 00 00 00 {ZERO8} 01"));
    check(V1, &Frame::Done, "01 00 00 00 09");
    check(V1, &Frame::OpenDirectChannel, "01 00 00 00 0b");
    let mac = "92 69 e3 97 2c 6b b2 0c 77 05 1a 9c 25 33 60 d8 6a dd 1e 26 99 94 16 25 7e 7e 79 2c eb f7 99 be";
    check(V1, &Frame::AuthHello { mac: unhex(mac).try_into().unwrap() }, &format!("21 00 00 00 0c {mac}"));
}

#[test]
fn base_replies_match_the_reference_vectors() {
    check(V1, &Frame::Welcome { version: 1, caps: Caps(7), ext: None }, "03 00 00 00 81 01 07");
    let digits = "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f";
    let ok = format!("46 00 00 00 82 01 40 00 00 00 {}", hex(digits.as_bytes()));
    check(V1, &Frame::Ok { hash: Some(hello_hash()) }, &ok);
    let hash_response = format!("45 00 00 00 86 40 00 00 00 {}", hex(digits.as_bytes()));
    check(V1, &Frame::HashResponse { hash: hello_hash() }, &hash_response);
    check(V1, &Frame::Ok { hash: None }, "02 00 00 00 82 00");
    check(V1, &Frame::Error { message: b"no".to_vec(), code: ErrorCode::OTHER }, "07 00 00 00 83 02 00 00 00 6e 6f");
    check(V1, &Frame::MissingBlocks { bitmap: vec![1] }, "06 00 00 00 8a 01 00 00 00 01");
    let stat = Frame::StatResponse { size: 5, mtime: 1_700_000_000, is_dir: false };
    check(V1, &stat, "12 00 00 00 85 05 00 00 00 00 00 00 00 00 f1 53 65 00 00 00 00 00");
    let entry = |path, size, is_dir| ListEntry { path: field(path), size, mtime: 1_700_000_000, is_dir };
    check(
        V1,
        &Frame::ListResponse { entries: vec![entry("s", 4096, true), entry("s/a", 5, false)] },
        "33 00 00 00 87 02 00 00 00 01 00 00 00 73 00 10 00 00 00 00 00 00 00 f1 53 65 00 00 00 00 01 \
         03 00 00 00 73 2f 61 05 00 00 00 00 00 00 00 00 f1 53 65 00 00 00 00 00",
    );
    check(V1, &Frame::ResumeResponse { size: 0, hash: None }, &format!("0a 00 00 00 88 {ZERO8} 00"));
    let key: Hash = std::array::from_fn(|index| index as u8);
    check(
        V1,
        &Frame::DirectChannelReady { address: b"127.0.0.1:40000".to_vec(), key },
        &format!("34 00 00 00 8b 0f 00 00 00 31 32 37 2e 30 2e 30 2e 31 3a 34 30 30 30 30 {}", hex(&key)),
    );
    let nonce: Hash = std::array::from_fn(|index| 0x20 + index as u8);
    check(V1, &Frame::AuthChallenge { nonce }, &format!("21 00 00 00 8c {}", hex(&nonce)));
}

#[test]
fn data_frames_match_the_reference_vectors() {
    let data = unhex("0a 00 00 00 84 05 00 00 00 68 65 6c 6c 6f");
    assert_eq!(encode::data_header(5), data[..9]);
    let compressed = unhex("15 00 00 00 89 01 40 00 00 00 0b 00 00 00 1f 61 01 00 27 50 61 61 61 61 61");
    assert_eq!(encode::compressed_header(1, 64, 11), compressed[..14]);

    for role in [Role::Client, Role::Server] {
        let mut decoder = Decoder::new(role, V2);
        assert_eq!(decoder.next(&data), Ok((9, Some(Event::Data { len: 5 }))));
        assert_eq!(decoder.payload_left(), 5);
        assert_eq!(decoder.next(&data[9..]), Ok((5, Some(Event::Piece { start: 0, len: 5 }))));
        assert_eq!(decoder.payload_left(), 0);
        assert!(decoder.mid_frame());
        assert_eq!(decoder.next(&[]), Ok((0, Some(Event::End))));
        assert!(!decoder.mid_frame());
        assert_eq!(decoder.next(&compressed), Ok((14, Some(Event::Compressed { algo: 1, original: 64, len: 11 }))));
        assert_eq!(decoder.next(&compressed[14..]), Ok((11, Some(Event::Piece { start: 0, len: 11 }))));
        assert_eq!(decoder.next(&[]), Ok((0, Some(Event::End))));
    }
}

#[test]
fn an_empty_payload_begins_and_ends() {
    let mut decoder = Decoder::new(Role::Server, V1);
    assert_eq!(decoder.next(&encode::data_header(0)), Ok((9, Some(Event::Data { len: 0 }))));
    assert_eq!(decoder.next(&[]), Ok((0, Some(Event::End))));
    assert_eq!(decoder.next(&[]), Ok((0, None)));
}

fn attributes(kind: Kind) -> Attributes {
    let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
    Attributes { kind, size: 5, mode: 0o644, mtime, uid: 1000, gid: 100 }
}

const REGULAR: &str =
    "00 05 00 00 00 00 00 00 00 a4 01 00 00 00 f1 53 65 00 00 00 00 15 cd 5b 07 e8 03 00 00 64 00 00 00";

#[test]
fn extension_frames_match_the_vectors_that_the_wire_page_prints() {
    let after_kind = &REGULAR[2..];
    let (directory, symlink) = (format!("01{after_kind}"), format!("02{after_kind}"));
    let preserve = Preserve::MODE.or(Preserve::OWNER);
    let hello = |version, ext| Frame::Hello { version, caps: Caps(7), ext };
    let entries = vec![
        TreeEntry {
            path: field("d"),
            attributes: attributes(Kind::Directory),
            link: Vec::new(),
            error: ErrorCode(ErrorCode::ERRNO_BASE + 13),
        },
        TreeEntry {
            path: field("l"),
            attributes: attributes(Kind::Symlink),
            link: b"to".to_vec(),
            error: ErrorCode::NONE,
        },
    ];
    let vectors = [
        (hello(1, Some(Ext(0xbf))), "07 00 00 00 01 01 07 bf 00 00 00".to_owned()),
        (
            Frame::Welcome { version: 1, caps: Caps(7), ext: Some(Ext(0xbf)) },
            "07 00 00 00 81 01 07 bf 00 00 00".to_owned(),
        ),
        (
            Frame::Stat { path: PathField(b"/a\0b/\xff".to_vec()) },
            "0b 00 00 00 03 06 00 00 00 2f 61 00 62 2f ff".to_owned(),
        ),
        (
            Frame::Tree { walk: 7, path: field("d"), recursive: true },
            "0b 00 00 00 40 07 00 00 00 01 00 00 00 64 01".to_owned(),
        ),
        (Frame::TreeNext { walk: 7 }, "05 00 00 00 41 07 00 00 00".to_owned()),
        (Frame::Lookup { path: field("/x"), follow: true }, "08 00 00 00 42 02 00 00 00 2f 78 01".to_owned()),
        (Frame::Commit { hash: hello_hash() }, format!("21 00 00 00 43 {}", hex(&hello_hash()))),
        (Frame::Abandon { code: ErrorCode::ABANDONED }, "03 00 00 00 44 03 00".to_owned()),
        (
            Frame::Continue { path: field("a"), size: 5 },
            "0e 00 00 00 47 01 00 00 00 61 05 00 00 00 00 00 00 00".to_owned(),
        ),
        (Frame::Skip { offset: 4 << 20 }, "09 00 00 00 48 00 00 40 00 00 00 00 00".to_owned()),
        (
            Frame::KeyedHello { random: [1; 32], index: 2, caps: Caps(0x43), ext: Ext(0x3f), mac: [4; 32] },
            format!("48 00 00 00 49 {} 02 00 43 3f 00 00 00 {}", "01 ".repeat(32), "04 ".repeat(32)),
        ),
        (
            Frame::KeyedWelcome { caps: Caps(0x43), ext: Ext(0x3f), mac: [4; 32] },
            format!("26 00 00 00 c4 43 3f 00 00 00 {}", "04 ".repeat(32)),
        ),
        (
            Frame::DaemonHello {
                random: [1; 32],
                public: [2; 32],
                index: 2,
                caps: Caps(0x43),
                ext: Ext(0x3f),
                mac: [4; 32],
            },
            format!(
                "68 00 00 00 4a {} {} 02 00 43 3f 00 00 00 {}",
                "01 ".repeat(32),
                "02 ".repeat(32),
                "04 ".repeat(32)
            ),
        ),
        (
            Frame::DaemonWelcome { public: [3; 32], caps: Caps(0x43), ext: Ext(0x3f), mac: [4; 32] },
            format!("46 00 00 00 c5 {} 43 3f 00 00 00 {}", "03 ".repeat(32), "04 ".repeat(32)),
        ),
        (
            Frame::RangeBegin {
                path: field("a"),
                size: 5,
                attributes: attributes(Kind::Regular),
                preserve: Preserve(1),
                keep: true,
            },
            format!("31 00 00 00 4b 01 00 00 00 61 05 00 00 00 00 00 00 00 {REGULAR} 01 01"),
        ),
        (
            Frame::RangePut { token: 7, offset: 4 << 20, length: 5 },
            "19 00 00 00 4c 07 00 00 00 00 00 00 00 00 00 40 00 00 00 00 00 05 00 00 00 00 00 00 00".to_owned(),
        ),
        (
            Frame::RangeCommit { token: 7, hash: [7; 32] },
            format!("29 00 00 00 4d 07 00 00 00 00 00 00 00 {}", hex(&[7; 32])),
        ),
        (Frame::RangeAbandon { token: 7 }, "09 00 00 00 4e 07 00 00 00 00 00 00 00".to_owned()),
        (
            Frame::Blocks { path: field("a"), length: 5 },
            "0e 00 00 00 4f 01 00 00 00 61 05 00 00 00 00 00 00 00".to_owned(),
        ),
        (
            Frame::RangeBegun { token: 7, blocks: vec![[7; 32]] },
            format!("2d 00 00 00 c6 07 00 00 00 00 00 00 00 01 00 00 00 {}", hex(&[7; 32])),
        ),
        (Frame::Ping, "01 00 00 00 50".to_owned()),
        (Frame::Pulse, "01 00 00 00 c8".to_owned()),
        (Frame::Unkept(Unkept::MODE.or(Unkept::TIMES)), "02 00 00 00 c7 05".to_owned()),
        (Frame::Kept { blocks: vec![[7; 32]] }, format!("25 00 00 00 c3 01 00 00 00 {}", hex(&[7; 32]))),
        (
            Frame::SetMeta { path: field("d"), attributes: attributes(Kind::Directory), preserve },
            format!("28 00 00 00 45 01 00 00 00 64 {directory} 03"),
        ),
        (
            Frame::Symlink {
                path: field("l"),
                target: b"to".to_vec(),
                attributes: attributes(Kind::Symlink),
                preserve: Preserve::default(),
            },
            format!("2e 00 00 00 46 01 00 00 00 6c 02 00 00 00 74 6f {symlink} 00"),
        ),
        (
            Frame::TreePage { last: true, entries },
            format!(
                "60 00 00 00 c0 01 02 00 00 00 01 00 00 00 64 {directory} 00 00 00 00 0d 10 \
                 01 00 00 00 6c {symlink} 02 00 00 00 74 6f 00 00"
            ),
        ),
        (
            Frame::Meta { attributes: attributes(Kind::Regular), preserve: Preserve::MODE },
            format!("23 00 00 00 c1 {REGULAR} 01"),
        ),
        (
            Frame::AttributesResponse { attributes: attributes(Kind::Symlink), link: b"to".to_vec() },
            format!("28 00 00 00 c2 {symlink} 02 00 00 00 74 6f"),
        ),
        (
            Frame::Error { message: b"no".to_vec(), code: ErrorCode(ErrorCode::ERRNO_BASE + 2) },
            "09 00 00 00 83 02 00 00 00 6e 6f 02 10".to_owned(),
        ),
    ];
    let page: String = include_str!("../WIRE.md").split_whitespace().collect();
    for (frame, vector) in &vectors {
        check(ALL, frame, vector);
        let compact: String = vector.split_whitespace().collect();
        assert!(page.contains(&compact), "WIRE.md lacks the vector of {frame:?}: {vector}");
    }
}

#[test]
fn the_greetings_may_be_shorter_or_longer_than_expected() {
    let hello = |caps, ext| Event::Frame(Frame::Hello { version: 1, caps: Caps(caps), ext });
    for dialect in [V1, V2, ALL] {
        for (vector, event) in [
            ("02 00 00 00 01 01", hello(0, None)),
            ("06 00 00 00 01 01 07 0f 00 00", hello(7, None)),
            ("07 00 00 00 01 01 07 0f 00 00 00", hello(7, Some(Ext(15)))),
            ("09 00 00 00 01 01 07 0f 00 00 00 aa bb", hello(7, Some(Ext(15)))),
        ] {
            let bytes = unhex(vector);
            assert_eq!(decode(Role::Server, dialect, &bytes), Ok((bytes.len(), Some(event))));
        }
    }
    assert_eq!(decode(Role::Server, V1, &unhex("01 00 00 00 01")), Err(DecodeError::Truncated(0x01)));
}

#[test]
fn bytes_behind_the_last_field_are_ignored_only_in_version_1_without_extensions() {
    for vector in ["08 00 00 00 03 02 00 00 00 2f 78 00", "02 00 00 00 09 00", "03 00 00 00 82 00 00"] {
        let bytes = unhex(vector);
        assert!(matches!(decode(Role::Server, V1, &bytes), Ok((used, Some(Event::Frame(_)))) if used == bytes.len()));
        for strict in [V2, Dialect { version: 1, ext: Ext::TREE }] {
            assert_eq!(decode(Role::Server, strict, &bytes), Err(DecodeError::TrailingBytes(bytes[4])));
        }
    }
}

#[test]
fn malformed_frames_are_refused_with_their_reason() {
    let too_large = "01 00 00 01";
    let cases: &[(Dialect, &str, DecodeError)] = &[
        (V1, "00 00 00 00", DecodeError::ZeroLength),
        (V1, too_large, DecodeError::TooLarge(0x0100_0001)),
        (V1, "01 00 00 00 00", DecodeError::UnknownType(0x00)),
        (V1, "01 00 00 00 10", DecodeError::UnknownType(0x10)),
        (V1, "01 00 00 00 8d", DecodeError::UnknownType(0x8d)),
        (V1, "05 00 00 00 41 00 00 00 00", DecodeError::UnknownType(0x41)),
        (ALL, "01 00 00 00 5f", DecodeError::UnknownType(0x5f)),
        (V1, "06 00 00 00 03 02 00 00 00 2f", DecodeError::Truncated(0x03)),
        (V1, "06 00 00 00 03 01 00 00 00 ff", DecodeError::NotUtf8),
        (V1, "06 00 00 00 83 01 00 00 00 ff", DecodeError::NotUtf8),
        (V2, "06 00 00 00 83 01 00 00 00 ff", DecodeError::NotUtf8),
        (
            V2,
            "16 00 00 00 06 01 00 00 00 61 05 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
            DecodeError::Truncated(6),
        ),
        (V1, "07 00 00 00 82 01 01 00 00 00 61", DecodeError::BadHash),
        (V1, "04 00 00 00 84", DecodeError::Truncated(0x84)),
        (V1, "06 00 00 00 84 00 00 00 00", DecodeError::LengthMismatch),
        (V1, "06 00 00 00 84 02 00 00 00", DecodeError::LengthMismatch),
        (V1, "06 00 00 00 84 ff ff ff ff", DecodeError::LengthMismatch),
        (V1, "09 00 00 00 89", DecodeError::Truncated(0x89)),
        (V1, "0b 00 00 00 89 00 01 00 00 00 01 00 00 00", DecodeError::UnknownCodec(0)),
        (V1, "0b 00 00 00 89 03 01 00 00 00 01 00 00 00", DecodeError::UnknownCodec(3)),
        (V1, "0b 00 00 00 89 01 00 00 00 00 01 00 00 00", DecodeError::BadBlockSize(0)),
        (V1, "0b 00 00 00 89 02 01 00 40 00 01 00 00 00", DecodeError::BadBlockSize(0x40_0001)),
        (V1, "0b 00 00 00 89 02 01 00 00 00 02 00 00 00", DecodeError::LengthMismatch),
    ];
    for (dialect, vector, error) in cases {
        let mut decoder = Decoder::new(Role::Server, *dialect);
        assert_eq!(decoder.next(&unhex(vector)), Err(*error), "{vector}");
        assert_eq!(decoder.next(b"\x01\0\0\0\x09"), Err(*error), "an error is final");
    }
    let meta = |attributes: &str| unhex(&format!("23 00 00 00 c1 {attributes} 00"));
    let unknown_kind = REGULAR.replacen("00", "07", 1);
    assert_eq!(decode(Role::Server, ALL, &meta(&unknown_kind)), Err(DecodeError::UnknownKind(7)));
    let bad_time = REGULAR.replace("15 cd 5b 07", "00 ca 9a 3b");
    assert_eq!(decode(Role::Server, ALL, &meta(&bad_time)), Err(DecodeError::BadTime));
}

#[test]
fn an_extension_frame_needs_its_extension_and_the_right_sender() {
    let frames: [(&str, Ext, &[Role]); 13] = [
        ("0b 00 00 00 40 07 00 00 00 01 00 00 00 64 01", Ext::TREE, &[Role::Server]),
        ("05 00 00 00 41 07 00 00 00", Ext::TREE, &[Role::Server]),
        ("08 00 00 00 42 02 00 00 00 2f 78 01", Ext::TREE, &[Role::Server]),
        (&format!("21 00 00 00 43 {}", hex(&[0; 32])), Ext::COMMIT, &[Role::Server]),
        ("03 00 00 00 44 03 00", Ext::COMMIT, &[Role::Server]),
        (&format!("28 00 00 00 45 01 00 00 00 64 {REGULAR} 03"), Ext::META, &[Role::Server]),
        (&format!("2c 00 00 00 46 01 00 00 00 6c 00 00 00 00 {REGULAR} 00"), Ext::META, &[Role::Server]),
        ("0e 00 00 00 47 01 00 00 00 61 05 00 00 00 00 00 00 00", Ext::RESUME, &[Role::Server]),
        ("09 00 00 00 48 00 00 40 00 00 00 00 00", Ext::RESUME, &[Role::Server]),
        ("05 00 00 00 c3 00 00 00 00", Ext::RESUME, &[Role::Client]),
        ("06 00 00 00 c0 01 00 00 00 00", Ext::TREE, &[Role::Client]),
        (&format!("23 00 00 00 c1 {REGULAR} 01"), Ext::META, &[Role::Client, Role::Server]),
        (&format!("26 00 00 00 c2 {REGULAR} 00 00 00 00"), Ext::TREE, &[Role::Client]),
    ];
    for (vector, needs, readers) in frames {
        let bytes = unhex(vector);
        for role in [Role::Client, Role::Server] {
            for bits in 0..=ALL.ext.0 {
                let ext = Ext(bits);
                let result = decode(role, Dialect { version: 1, ext }, &bytes);
                if ext.has(needs) && readers.contains(&role) {
                    assert!(matches!(result, Ok((_, Some(Event::Frame(_))))), "{vector} {ext:?} {role:?}: {result:?}");
                } else {
                    assert_eq!(result, Err(DecodeError::UnknownType(bytes[4])), "{vector} {ext:?} {role:?}");
                }
            }
        }
    }
}

#[test]
fn optional_fields_are_absent_for_every_tag_but_1_and_any_nonzero_bool_is_true() {
    for tag in ["00", "02", "ff"] {
        let bytes = unhex(&format!("02 00 00 00 82 {tag}"));
        assert_eq!(decode(Role::Client, V2, &bytes), Ok((6, Some(Event::Frame(Frame::Ok { hash: None })))));
    }
    let bytes = unhex("12 00 00 00 85 05 00 00 00 00 00 00 00 00 f1 53 65 00 00 00 00 7f");
    let stat = Frame::StatResponse { size: 5, mtime: 1_700_000_000, is_dir: true };
    assert_eq!(decode(Role::Client, V2, &bytes), Ok((22, Some(Event::Frame(stat)))));
}

#[test]
fn a_hash_is_64_hex_digits_of_either_case() {
    let reply = |digits: &str| unhex(&format!("46 00 00 00 82 01 40 00 00 00 {}", hex(digits.as_bytes())));
    let upper = blake3::hash(b"hello").to_hex().to_uppercase();
    let ok = Frame::Ok { hash: Some(hello_hash()) };
    assert_eq!(decode(Role::Client, V1, &reply(&upper)), Ok((74, Some(Event::Frame(ok)))));
    for bad in [upper.replacen('E', "G", 1), upper.replacen('E', "+", 1), upper.replacen('E', " ", 1)] {
        assert_eq!(decode(Role::Client, V1, &reply(&bad)), Err(DecodeError::BadHash));
    }
}

#[test]
fn what_a_base_peer_cannot_read_is_not_sent() {
    let mut out = b"before".to_vec();
    let raw = PathField(b"\xff".to_vec());
    let deep = ListEntry { path: raw.clone(), size: 0, mtime: 0, is_dir: false };
    let bad_time = Timestamp { seconds: 0, nanoseconds: 1_000_000_000 };
    let meta =
        Frame::Meta { attributes: Attributes { mtime: bad_time, ..attributes(Kind::Regular) }, preserve: Preserve(0) };
    let cases = [
        (V1, Frame::Stat { path: raw.clone() }, EncodeError::NotUtf8),
        (V2, Frame::ListResponse { entries: vec![deep] }, EncodeError::NotUtf8),
        (V1, Frame::TreeNext { walk: 1 }, EncodeError::NotAgreed),
        (Dialect { version: 1, ext: Ext::META }, Frame::Commit { hash: [0; 32] }, EncodeError::NotAgreed),
        (ALL, meta, EncodeError::BadTime),
        (ALL, Frame::Stat { path: PathField(vec![b'a'; (16 << 20) - 4]) }, EncodeError::TooLarge),
        (ALL, Frame::MissingBlocks { bitmap: vec![0; (16 << 20) + 1] }, EncodeError::TooLarge),
        (V1, Frame::HaveBlocks { block_size: 1, hashes: vec![[0; 32]; 524_288] }, EncodeError::TooLarge),
    ];
    for (dialect, frame, error) in cases {
        assert_eq!(encode::frame(&frame, dialect, &mut out), Err(error));
        assert_eq!(out, b"before", "a refused frame leaves no bytes behind");
    }
    encode::frame(&Frame::Stat { path: PathField(vec![b'a'; (16 << 20) - 5]) }, V1, &mut out).unwrap();
    assert_eq!(out.len(), 6 + 4 + (16 << 20), "16 MiB exactly is allowed");
}

#[test]
fn a_message_is_made_utf8_for_base_peers_and_left_alone_for_our_own() {
    let error = Frame::Error { message: b"a\xff".to_vec(), code: ErrorCode::PROTOCOL };
    let mut base = Vec::new();
    encode::frame(&error, V1, &mut base).unwrap();
    assert_eq!(hex(&base), "09 00 00 00 83 04 00 00 00 61 ef bf bd");
    check(ALL, &error, "09 00 00 00 83 02 00 00 00 61 ff 02 00");
}

#[test]
fn a_request_path_has_one_normal_form() {
    type Case = (&'static [u8], Result<&'static [u8], PathError>);
    let cases: &[Case] = &[
        (b"", Ok(b"")),
        (b".", Ok(b"")),
        (b"./", Ok(b"")),
        (b"/", Ok(b"/")),
        (b"//", Ok(b"/")),
        (b"/.", Ok(b"/")),
        (b"a", Ok(b"a")),
        (b"a/", Ok(b"a")),
        (b"./a//b/.", Ok(b"a/b")),
        (b"/a/./b///", Ok(b"/a/b")),
        (b"...", Ok(b"...")),
        (b"..a/b..", Ok(b"..a/b..")),
        (b"\xff/\n", Ok(b"\xff/\n")),
        (b"..", Err(PathError::ParentComponent)),
        (b"a/..", Err(PathError::ParentComponent)),
        (b"/../a", Err(PathError::ParentComponent)),
        (b"a\0", Err(PathError::ContainsNul)),
    ];
    for (bytes, expected) in cases {
        let parsed = RequestPath::parse(bytes);
        assert_eq!(parsed.as_ref().map(RequestPath::as_bytes).map_err(|error| *error), *expected, "{bytes:?}");
    }
}

#[test]
fn a_request_path_knows_its_parts() {
    type Case = (&'static [u8], bool, Option<&'static [u8]>, Option<&'static [u8]>);
    let cases: [Case; 6] = [
        (b"", false, None, None),
        (b"/", true, None, None),
        (b"a", false, Some(b"a"), Some(b"")),
        (b"/a", true, Some(b"a"), Some(b"/")),
        (b"a/b", false, Some(b"b"), Some(b"a")),
        (b"/a/b/c", true, Some(b"c"), Some(b"/a/b")),
    ];
    for (bytes, absolute, name, parent) in cases {
        let path = RequestPath::parse(bytes).unwrap();
        assert_eq!(path.is_absolute(), absolute);
        assert_eq!(path.file_name(), name);
        assert_eq!(path.parent().as_ref().map(RequestPath::as_bytes), parent);
    }
    let path = RequestPath::parse(b"/a/b").unwrap();
    assert!(path.components().eq([b"a", b"b"]));
    let below = RelPath::parse(b"x/y").unwrap();
    for (base, joined) in [("", "x/y"), ("/", "/x/y"), ("a", "a/x/y"), ("/a", "/a/x/y")] {
        assert_eq!(RequestPath::parse(base.as_bytes()).unwrap().join(&below).as_bytes(), joined.as_bytes());
    }
}

#[test]
fn a_name_from_a_peer_is_taken_as_it_is_or_not_at_all() {
    for good in ["a", "a/b", "...", "..a", "a..", ".hidden/\u{202e}x", "a b"] {
        assert_eq!(RelPath::parse(good.as_bytes()).unwrap().as_bytes(), good.as_bytes());
    }
    let cases = [
        ("", PathError::Empty),
        ("/", PathError::EmptyComponent),
        ("/a", PathError::EmptyComponent),
        ("a/", PathError::EmptyComponent),
        ("a//b", PathError::EmptyComponent),
        (".", PathError::DotComponent),
        ("a/./b", PathError::DotComponent),
        ("..", PathError::ParentComponent),
        ("a/../b", PathError::ParentComponent),
        ("a\0b", PathError::ContainsNul),
    ];
    for (bad, error) in cases {
        assert_eq!(RelPath::parse(bad.as_bytes()), Err(error), "{bad:?}");
    }
    let path = RelPath::parse(b"a/b").unwrap();
    assert_eq!(path.file_name(), b"b");
    assert_eq!(path.parent().unwrap().as_bytes(), b"a");
    assert_eq!(path.parent().unwrap().parent(), None);
    assert_eq!(path.join(b"c").unwrap().as_bytes(), b"a/b/c");
    assert_eq!(path.join(b"c/d"), Err(PathError::ContainsSlash));
    assert_eq!(path.join(b".."), Err(PathError::ParentComponent));
    assert_eq!(path.join(b""), Err(PathError::EmptyComponent));
}

#[test]
fn a_path_field_is_an_operand_and_with_bytes_perhaps_a_path_below_it() {
    let target = |operand: &str, below: Option<&str>| Target {
        operand: RequestPath::parse(operand.as_bytes()).unwrap(),
        below: below.map(|below| RelPath::parse(below.as_bytes()).unwrap()),
    };
    let cases: &[(&[u8], Ext, Result<Target, PathError>)] = &[
        (b"/a/b", Ext::NONE, Ok(target("/a/b", None))),
        (b"/a/b", Ext::BYTES, Ok(target("/a/b", None))),
        (b"/a\0b", Ext::NONE, Err(PathError::ContainsNul)),
        (b"/a\0b", Ext::TREE, Err(PathError::ContainsNul)),
        (b"/a\0b/c", Ext::BYTES, Ok(target("/a", Some("b/c")))),
        (b"\0b", Ext::BYTES, Ok(target("", Some("b")))),
        (b"", Ext::BYTES, Ok(target("", None))),
        (b"a\0", Ext::BYTES, Err(PathError::Empty)),
        (b"a\0b\0c", Ext::BYTES, Err(PathError::ContainsNul)),
        (b"a\0../b", Ext::BYTES, Err(PathError::ParentComponent)),
        (b"a\0/b", Ext::BYTES, Err(PathError::EmptyComponent)),
        (b"../a\0b", Ext::BYTES, Err(PathError::ParentComponent)),
    ];
    for (bytes, ext, expected) in cases {
        let field = PathField(bytes.to_vec());
        assert_eq!(Target::decode(&field, *ext), *expected, "{bytes:?} {ext:?}");
        if let Ok(target) = expected {
            assert_eq!(target.encode(*ext), field);
        }
    }
    assert_eq!(target("/a", Some("b")).encode(Ext::NONE), field("/a/b"));
    assert_eq!(target("", Some("b")).encode(Ext::NONE), field("b"));
    assert_eq!(target("/a", Some("b\u{1b}c")).to_string(), "/a/b\\x1bc");
}
