//! Rules 2, 3, 4, 5, 9 and 10: bytes on streams.

use super::{Arrived, Driver, Flavor, Peer, Rig, assert_same, pattern};
use crate::backend::{Errno, FileId, OpKind, Output, StreamId};
use crate::block::Class;

/// More than the buffers of any socket or pipe under test hold.
const FLOOD_BYTES: usize = 4 << 20;

fn send_file<R: Rig>(driver: &mut Driver<R>, stream: StreamId, head: &[u8], file: FileId, range: (u64, u64)) -> u32 {
    let head = head.iter().copied().collect();
    driver.submit(OpKind::SendFile { stream, head, file, offset: range.0, len: range.1 })
}

/// A Send that cannot end while the far end does not read.
pub(super) fn flood<R: Rig>(driver: &mut Driver<R>, stream: StreamId) -> u32 {
    let block = pattern(99, Class::Large.bytes());
    driver.send_repeated(stream, &block, FLOOD_BYTES / block.len())
}

/// The bytes of [`flood`].
pub(super) fn flood_bytes() -> Vec<u8> {
    let mut bytes = vec![0x5a];
    bytes.extend(pattern(99, Class::Large.bytes()).repeat(FLOOD_BYTES / Class::Large.bytes()));
    bytes
}

/// Rule 2, with a reader that takes less each turn than is sent.
pub fn bytes_leave_in_submission_order_whatever_sends_them<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let content = pattern(7, 1_500_123);
        let file = driver.source("source", &content);
        let mut expected = Vec::new();
        let mut parts = Vec::new();
        for n in 0..12usize {
            let head = pattern(n as u64, n * 37 % 200);
            expected.extend_from_slice(&head);
            if n % 3 == 2 {
                let (offset, len) = (n * 1001, 200_000 + n * 4099);
                expected.extend_from_slice(&content[offset..offset + len]);
                parts.push(send_file(&mut driver, stream, &head, file, (offset as u64, len as u64)));
            } else {
                let body = pattern(100 + n as u64, n * 150_001 % 700_000);
                expected.extend_from_slice(&body);
                parts.push(driver.send(stream, &head, &body));
            }
        }
        parts.push(driver.submit(OpKind::Shutdown { stream }));
        let mut got = Vec::new();
        let len = expected.len();
        driver.collect(&mut peer, &mut got, len, 100_000);
        assert_same(&got, &expected, &format!("{flavor:?}"));
        driver.until(|_| peer.read(1) == Arrived::End);
        for part in parts {
            assert!(matches!(driver.wait(part).result, Ok(Output::Done)), "{flavor:?}: part {part}");
        }
        driver.finish();
    }
}

/// Rule 3 for Recv.
pub fn recv_gathers_at_least_what_was_asked_from_a_trickle<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let bytes = pattern(3, 1000);
        let mut part = driver.recv(stream, 100);
        for piece in bytes[..99].chunks(33) {
            driver.feed(&mut peer, piece);
            driver.turns(3);
            assert!(!driver.is_done(part), "{flavor:?}: completed with less than at_least");
        }
        driver.feed(&mut peer, &bytes[99..]);
        let mut got = driver.received(part).unwrap();
        assert!(got.len() >= 100, "{flavor:?}: {} bytes", got.len());
        while got.len() < bytes.len() {
            part = driver.recv(stream, 1);
            let more = driver.received(part).unwrap();
            assert!(!more.is_empty(), "{flavor:?}: an open stream ended");
            got.extend(more);
        }
        assert_same(&got, &bytes, &format!("{flavor:?}"));
        driver.finish();
    }
}

/// Rule 3 for Recv with `at_least` equal to the capacity.
pub fn recv_fills_a_whole_block_when_told_to<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let bytes = pattern(4, 2 * Class::Small.bytes());
        let (first, second) = bytes.split_at(Class::Small.bytes());
        let part = driver.recv(stream, first.len());
        for piece in first.chunks(10_007) {
            driver.feed(&mut peer, piece);
            driver.turns(1);
        }
        assert_same(&driver.received(part).unwrap(), first, &format!("{flavor:?}"));
        let part = driver.recv(stream, second.len());
        driver.feed(&mut peer, second);
        assert_same(&driver.received(part).unwrap(), second, &format!("{flavor:?}"));
        driver.finish();
    }
}

/// Rule 3 for Recv at the end of a stream, more than once.
pub fn recv_gives_fewer_bytes_only_at_the_end_of_the_stream<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let part = driver.recv(stream, 100);
        driver.feed(&mut peer, b"last words");
        driver.turns(3);
        assert!(!driver.is_done(part), "{flavor:?}: short before the end");
        peer.close_write();
        assert_eq!(driver.received(part).unwrap(), b"last words", "{flavor:?}");
        for _ in 0..2 {
            let part = driver.recv(stream, 1);
            assert_eq!(driver.received(part).unwrap(), b"", "{flavor:?}: an ended stream stays ended");
        }
        // The other direction is not concerned.
        let part = driver.send(stream, b"answer", b"");
        assert!(driver.wait(part).result.is_ok(), "{flavor:?}");
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, 6, 100);
        assert_eq!(got, b"answer", "{flavor:?}");
        driver.finish();
    }
}

/// Rule 3 for Send.
pub fn large_sends_are_whole_with_a_slow_reader<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let part = flood(&mut driver, stream);
        driver.turns(5);
        assert!(!driver.is_done(part), "{flavor:?}: complete although nobody reads");
        let expected = flood_bytes();
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, expected.len(), 150_001);
        assert_same(&got, &expected, &format!("{flavor:?}"));
        assert!(driver.wait(part).result.is_ok(), "{flavor:?}");
        driver.finish();
    }
}

/// Rule 3 for SendFile: odd offset, odd length, and lengths 0 and 1.
pub fn file_ranges_are_sent_whole_with_a_slow_reader<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let content = pattern(5, 3_000_001);
        let file = driver.source("source", &content);
        let ranges = [(1, 2_999_999), (3_000_000, 1), (77, 0), (0, 3_000_001), (4096, 65536)];
        let mut expected = Vec::new();
        let mut parts = Vec::new();
        for (offset, len) in ranges {
            expected.extend_from_slice(b"head");
            expected.extend_from_slice(&content[offset..offset + len]);
            parts.push(send_file(&mut driver, stream, b"head", file, (offset as u64, len as u64)));
        }
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, expected.len(), 150_001);
        assert_same(&got, &expected, &format!("{flavor:?}"));
        for part in parts {
            assert!(driver.wait(part).result.is_ok(), "{flavor:?}: part {part}");
        }
        driver.finish();
    }
}

/// Rule 4, seen from the sender.
pub fn sends_behind_a_closed_peer_end_with_one_errno<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let file = driver.source("source", &pattern(5, 100_000));
        let mut parts = vec![flood(&mut driver, stream)];
        driver.until(|_| matches!(peer.read(1), Arrived::Bytes(_)));
        parts.push(driver.send(stream, b"queued", b""));
        parts.push(send_file(&mut driver, stream, b"queued", file, (0, 100_000)));
        driver.turns(2);
        peer.close();
        driver.until(|driver| driver.outstanding() == 0);
        parts.push(driver.send(stream, b"late", b""));
        parts.push(send_file(&mut driver, stream, b"late", file, (0, 10)));
        let ends: Vec<Option<Errno>> = parts.into_iter().map(|part| driver.wait(part).result.err()).collect();
        assert!(ends[0].is_some(), "{flavor:?}: a Send into a closed peer succeeded");
        assert!(ends.iter().all(|end| *end == ends[0]), "{flavor:?}: {ends:?}");
        driver.finish();
    }
}

/// Rule 4, seen from the reader: what arrives is the beginning of what was sent, without a hole.
pub fn no_byte_leaves_after_a_stream_has_failed<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let file = driver.source("source", &pattern(6, 100_000));
        let first = flood(&mut driver, stream);
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, 1, 1);
        let behind = [
            driver.send(stream, b"behind", &pattern(8, 70_000)),
            send_file(&mut driver, stream, b"behind", file, (0, 100_000)),
        ];
        driver.turns(2);
        driver.cancel_one(first);
        // From here on there is room for later bytes, should anybody send them.
        driver.until(|driver| {
            if let Arrived::Bytes(bytes) = peer.read(1 << 18) {
                got.extend(bytes);
            }
            driver.outstanding() == 0
        });
        let end = driver.wait(first).result.err();
        assert!(end.is_some(), "{flavor:?}: a stalled Send succeeded when cancelled");
        for part in behind {
            assert_eq!(driver.wait(part).result.err(), end, "{flavor:?}: queued behind a failed Send");
        }
        let late = driver.send(stream, b"late", b"");
        assert_eq!(driver.wait(late).result.err(), end, "{flavor:?}: a Send on a failed stream");
        for _ in 0..50 {
            driver.turn();
            while let Arrived::Bytes(bytes) = peer.read(1 << 18) {
                got.extend(bytes);
            }
        }
        let expected = flood_bytes();
        assert!(got.len() < expected.len(), "{flavor:?}: everything arrived after all");
        assert_same(&got, &expected[..got.len()], &format!("{flavor:?}"));
        driver.finish();
    }
}

/// Rule 5 for Send: the kernel has its own copy, or the completion waits.
pub fn a_sent_block_may_be_overwritten_at_once<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        for (round, len) in [(0u64, 4096usize), (1, 40_000), (2, 65_536), (3, 524_288), (4, 524_288)] {
            let bytes = pattern(round, len);
            let part = driver.send(stream, b"", &bytes);
            let mut got = Vec::new();
            // Read only as much as it takes until the block is back: the rest must lie in the kernel by then.
            driver.until(|driver| {
                if driver.is_done(part) {
                    return true;
                }
                if let Arrived::Bytes(some) = peer.read((len - got.len()).min(4096)) {
                    got.extend(some);
                }
                false
            });
            assert!(driver.wait(part).result.is_ok(), "{flavor:?}");
            overwrite_pool(&mut driver);
            driver.collect(&mut peer, &mut got, len, len);
            assert_same(&got, &bytes, &format!("{flavor:?}: round {round}"));
        }
        driver.finish();
    }
}

/// Fills every block that is free, so the one that just came back as well, with garbage.
fn overwrite_pool<R: Rig>(driver: &mut Driver<R>) {
    for class in [Class::Small, Class::Large] {
        let blocks: Vec<_> = std::iter::from_fn(|| driver.pool.take_reserved(class)).collect();
        for mut block in blocks {
            block.bytes_mut().fill(0xee);
        }
    }
}

/// Rule 5 for Recv.
pub fn a_received_block_is_not_touched_again<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let part = driver.recv(stream, 5);
        driver.feed(&mut peer, b"first");
        let completion = driver.wait(part);
        assert!(matches!(completion.result, Ok(Output::Bytes(5))), "{flavor:?}: {completion:?}");
        let OpKind::Recv { into, .. } = &completion.op.kind else { panic!("{completion:?}") };
        let before = into.bytes().to_vec();
        driver.feed(&mut peer, &pattern(1, 30_000));
        driver.turns(5);
        assert_same(into.bytes(), &before, &format!("{flavor:?}"));
        drop(completion);
        let part = driver.recv(stream, 30_000);
        assert_same(&driver.received(part).unwrap(), &pattern(1, 30_000), &format!("{flavor:?}"));
        driver.finish();
    }
}

/// Rule 9 for a file that is shorter than promised.
pub fn a_source_that_ends_early_is_padded_and_the_stream_lives<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let content = pattern(9, 1_500_001);
        let file = driver.source("source", &content);
        // Ends inside the range, at its beginning, before it, and one byte short.
        let ranges = [(1_000_000, 2_000_000), (1_500_001, 5000), (9_000_000, 70_000), (1_499_999, 3)];
        let mut expected = Vec::new();
        let mut parts = Vec::new();
        for (offset, len) in ranges {
            let there = content.get(offset..).unwrap_or_default();
            let there = &there[..there.len().min(len)];
            expected.extend_from_slice(b"head");
            expected.extend_from_slice(there);
            expected.resize(expected.len() + len - there.len(), 0);
            parts.push(send_file(&mut driver, stream, b"head", file, (offset as u64, len as u64)));
        }
        let next = driver.send(stream, b"next", b"frame");
        expected.extend_from_slice(b"nextframe");
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, expected.len(), 300_000);
        assert_same(&got, &expected, &format!("{flavor:?}"));
        for part in parts {
            assert_eq!(driver.wait(part).result.err(), Some(Errno::SHORT_SOURCE), "{flavor:?}: part {part}");
        }
        assert!(driver.wait(next).result.is_ok(), "{flavor:?}");
        driver.finish();
    }
}

/// Rule 9 for a file that is closed already.
pub fn a_stale_source_is_padded_and_the_stream_lives<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let file = driver.source("source", &pattern(9, 100_000));
        assert!(driver.run(OpKind::Close { file }).is_ok());
        let part = send_file(&mut driver, stream, b"head", file, (0, 100_000));
        let next = driver.send(stream, b"next", b"");
        let mut expected = b"head".to_vec();
        expected.resize(100_004, 0);
        expected.extend_from_slice(b"next");
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, expected.len(), 300_000);
        assert_same(&got, &expected, &format!("{flavor:?}"));
        assert_eq!(driver.wait(part).result.err(), Some(Errno::STALE_ID), "{flavor:?}");
        assert!(driver.wait(next).result.is_ok(), "{flavor:?}");
        driver.finish();
    }
}

/// Rule 10: three peers that never read, one that does, on one backend.
pub fn stalled_streams_do_not_delay_another<R: Rig>() {
    for flavor in Flavor::ALL {
        let mut driver = Driver::<R>::new();
        let content = pattern(10, 2 << 20);
        let file = driver.source("source", &content);
        let stalled: Vec<_> = std::iter::from_fn(|| driver.rig.stream(flavor)).take(3).collect();
        let Some((stream, mut peer)) = driver.rig.stream(flavor) else { continue };
        let mut stuck = Vec::new();
        for &(stream, _) in &stalled {
            stuck.push(flood(&mut driver, stream));
            stuck.extend((0..4).map(|_| send_file(&mut driver, stream, b"", file, (0, 2 << 20))));
        }
        driver.turns(5);
        let mut expected = Vec::new();
        for _ in 0..3 {
            let parts = [flood(&mut driver, stream), send_file(&mut driver, stream, b"head", file, (0, 2 << 20))];
            expected.clear();
            expected.extend(flood_bytes());
            expected.extend_from_slice(b"head");
            expected.extend_from_slice(&content);
            let mut got = Vec::new();
            driver.collect(&mut peer, &mut got, expected.len(), 1 << 20);
            assert_same(&got, &expected, &format!("{flavor:?}"));
            for part in parts {
                assert!(driver.wait(part).result.is_ok(), "{flavor:?}");
            }
            driver.forget_done();
        }
        assert!(stuck.iter().all(|&part| !driver.is_done(part)), "{flavor:?}: complete although nobody reads");
        for (stream, _) in stalled {
            driver.submit(OpKind::CloseStream { stream });
        }
        driver.finish();
    }
}
