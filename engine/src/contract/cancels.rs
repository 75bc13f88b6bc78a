//! Rule 7: cancels and closed ids.

use super::streams::{flood, flood_bytes};
use super::turns::{CREATE, PLAIN};
use super::{Arrived, Driver, Flavor, Peer, Rig, assert_same, pattern};
use crate::backend::{Cancel, Errno, FsOp, OpKind, OpenMode, Output, SessionId, Time};
use crate::block::{Class, Slices};

/// A second session, for what must not touch the first.
pub(super) const OTHER: SessionId = SessionId(2);

/// Rule 7 for Recv.
pub fn a_cancelled_recv_leaves_the_stream_alive<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        for _ in 0..3 {
            let part = driver.recv(stream, 1);
            driver.turns(2);
            driver.cancel_one(part);
            assert_eq!(driver.received(part).err(), Some(Errno::CANCELLED), "{flavor:?}");
        }
        let part = driver.recv(stream, 5);
        driver.feed(&mut peer, b"alive");
        assert_eq!(driver.received(part).unwrap(), b"alive", "{flavor:?}");
        driver.finish();
    }
}

/// Rule 7 as a worker uses it: a session closes its stream and ends, and both reach the backend in one turn.
pub fn a_cancel_covers_what_was_submitted_in_the_same_turn<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let part = driver.recv(stream, 1);
        driver.cancel_one(part);
        assert_eq!(driver.received(part).err(), Some(Errno::CANCELLED), "{flavor:?}");
        let into = driver.pool.take_reserved(Class::Small).unwrap();
        let place = driver.place("new");
        let parts = [
            driver.submit_for(OTHER, OpKind::Recv { stream, into, at_least: 1 }),
            driver.submit_for(OTHER, OpKind::Open { place, mode: CREATE }),
            driver.submit_for(OTHER, OpKind::CloseStream { stream }),
        ];
        driver.cancel(Cancel::Session(OTHER));
        let ends = parts.map(|part| driver.wait(part).result);
        assert!(matches!(ends[0], Err(Errno::CANCELLED)), "{flavor:?}: {:?}", ends[0]);
        if let Ok(Output::Opened { file, .. }) = ends[1] {
            assert_eq!(driver.run(OpKind::Close { file }).err(), Some(Errno::STALE_ID), "{flavor:?}");
        }
        assert_eq!(driver.run(OpKind::Shutdown { stream }).err(), Some(Errno::STALE_ID), "{flavor:?}: not closed");
        driver.until(|_| peer.read(1) == Arrived::End);
        driver.finish();
    }
}

/// Rule 7 for Sends of which no byte is out, both submitted with the one in front and after it.
pub fn queued_sends_are_cancelled_without_a_trace<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let file = driver.source("source", &pattern(2, 5000));
        let front = flood(&mut driver, stream);
        let together = [driver.send(stream, b"never", b"sent"), driver.send(stream, b"one", b"")];
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, 1, 1);
        let head = b"never".iter().copied().collect();
        let later = [
            driver.submit(OpKind::SendFile { stream, head, file, offset: 0, len: 5000 }),
            driver.send(stream, b"two", &pattern(3, 5000)),
        ];
        driver.turns(2);
        for part in [together[0], later[0]] {
            driver.cancel_one(part);
            assert_eq!(driver.wait(part).result.err(), Some(Errno::CANCELLED), "{flavor:?}");
        }
        let last = driver.send(stream, b"three", b"");
        let expected = [flood_bytes(), b"one".to_vec(), b"two".to_vec(), pattern(3, 5000), b"three".to_vec()].concat();
        driver.collect(&mut peer, &mut got, expected.len(), 300_000);
        assert_same(&got, &expected, &format!("{flavor:?}"));
        for part in [front, together[1], later[1], last] {
            assert!(driver.wait(part).result.is_ok(), "{flavor:?}: part {part}");
        }
        driver.finish();
    }
}

/// Rule 7 for a Send and a SendFile of which bytes are out.
pub fn a_cancelled_send_that_began_breaks_its_stream<R: Rig>() {
    for flavor in Flavor::ALL {
        for with_file in [false, true] {
            let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
            let part = if with_file {
                let file = driver.source("source", &pattern(2, 3 << 20));
                let head = [0x5a].into_iter().collect();
                driver.submit(OpKind::SendFile { stream, head, file, offset: 0, len: 3 << 20 })
            } else {
                flood(&mut driver, stream)
            };
            driver.until(|_| matches!(peer.read(3), Arrived::Bytes(_)));
            driver.turns(2);
            driver.cancel_one(part);
            let end = driver.wait(part).result.err();
            assert!(end.is_some(), "{flavor:?}: with_file {with_file}");
            let late = driver.send(stream, b"late", b"");
            assert_eq!(driver.wait(late).result.err(), end, "{flavor:?}: with_file {with_file}");
            driver.finish();
        }
    }
}

/// Rule 7 for [`Cancel::Session`].
pub fn cancelling_a_session_closes_its_files_and_spares_the_others<R: Rig>() {
    let (mut driver, stream, mut peer) = Driver::<R>::with_stream(Flavor::Socket).expect("a must");
    driver.rig.write_file("source", b"content");
    let kept = driver.open_to_read("source");
    let mut opened = Vec::new();
    for (name, mode) in [("source", OpenMode::Read), ("new", CREATE)] {
        let place = driver.place(name);
        let part = driver.submit_for(OTHER, OpKind::Open { place, mode });
        let Ok(Output::Opened { file, .. }) = driver.wait(part).result else { panic!("{name} does not open") };
        opened.push(file);
    }
    let place = driver.place("");
    let part = driver.submit_for(OTHER, OpKind::Fs(Box::new(FsOp::OpenDir { place })));
    let Ok(Output::OpenedDir { dir, .. }) = driver.wait(part).result else { panic!("the root does not open") };
    let into = driver.pool.take_reserved(Class::Small).unwrap();
    let recv = driver.submit_for(OTHER, OpKind::Recv { stream, into, at_least: 1 });
    driver.turns(2);

    driver.cancel(Cancel::Session(OTHER));
    assert_eq!(driver.wait(recv).result.err(), Some(Errno::CANCELLED));
    for file in opened {
        let into = driver.pool.take_reserved(Class::Small).unwrap();
        let part = driver.submit_for(OTHER, OpKind::Read { file, offset: 0, into, len: 1 });
        assert_eq!(driver.wait(part).result.err(), Some(Errno::STALE_ID));
        assert_eq!(driver.run(OpKind::Close { file }).err(), Some(Errno::STALE_ID));
    }
    assert_eq!(driver.run(OpKind::Fs(Box::new(FsOp::ReadDir { dir }))).err(), Some(Errno::STALE_ID));
    assert_eq!(driver.rig.names(), ["source"]);

    let into = driver.pool.take_reserved(Class::Small).unwrap();
    let part = driver.submit(OpKind::Read { file: kept, offset: 0, into, len: 100 });
    assert_eq!(driver.received(part).unwrap(), b"content");
    let part = driver.recv(stream, 5);
    driver.feed(&mut peer, b"alive");
    assert_eq!(driver.received(part).unwrap(), b"alive");
    driver.finish();
}

/// Rule 7: whichever of the two wins, no file stays open and no name appears.
pub fn an_open_that_races_with_its_sessions_end_leaves_nothing<R: Rig>() {
    let mut driver = Driver::<R>::new();
    for round in 0..20 {
        let place = driver.place("new");
        let part = driver.submit_for(OTHER, OpKind::Open { place, mode: CREATE });
        for _ in 0..round % 3 {
            driver.turn_until(Some(Time(0)));
        }
        driver.cancel(Cancel::Session(OTHER));
        // The completion may have been on its way already: then its file must be closed by now.
        if let Ok(Output::Opened { file, .. }) = driver.wait(part).result {
            driver.turns(1);
            let finish = Box::new(PLAIN);
            assert_eq!(driver.run(OpKind::Publish { file, finish }).err(), Some(Errno::STALE_ID), "round {round}");
        }
        driver.until(|driver| driver.rig.names().is_empty());
    }
    driver.finish();
}

/// Rule 7 for ids, of every kind and in every operation that takes one.
pub fn closed_ids_are_refused<R: Rig>() {
    let (mut driver, stream, _peer) = Driver::<R>::with_stream(Flavor::Socket).expect("a must");
    let file = driver.source("source", b"content");
    let place = driver.place("");
    let opened = driver.run(OpKind::Fs(Box::new(FsOp::OpenDir { place: place.clone() })));
    let Ok(Output::OpenedDir { dir, .. }) = opened else { panic!("{opened:?}") };
    assert!(driver.run(OpKind::Close { file }).is_ok());
    assert!(driver.run(OpKind::Fs(Box::new(FsOp::CloseDir { dir }))).is_ok());
    assert!(driver.run(OpKind::CloseStream { stream }).is_ok());
    // New things in the old slots: only the generation tells them apart.
    let _taken = driver.open_to_read("source");
    let (_other, _other_peer) = driver.rig.stream(Flavor::Socket).expect("a must");
    let reopened = driver.run(OpKind::Fs(Box::new(FsOp::OpenDir { place })));
    assert!(matches!(reopened, Ok(Output::OpenedDir { dir: again, .. }) if again != dir), "{reopened:?}");

    let into = driver.pool.take_reserved(Class::Small).unwrap();
    let from = driver.slices(b"x").remove(0);
    let received = driver.pool.take_reserved(Class::Small).unwrap();
    let stale = [
        OpKind::Close { file },
        OpKind::Read { file, offset: 0, into, len: 1 },
        OpKind::Write { file, offset: 0, from },
        OpKind::Publish { file, finish: Box::new(PLAIN) },
        OpKind::Fs(Box::new(FsOp::StatOpen { file, past: None })),
        OpKind::Fs(Box::new(FsOp::ReadDir { dir })),
        OpKind::Fs(Box::new(FsOp::CloseDir { dir })),
        OpKind::Recv { stream, into: received, at_least: 1 },
        OpKind::Send { stream, head: [1].into_iter().collect(), body: Slices::new() },
        OpKind::SendFile { stream, head: [1].into_iter().collect(), file, offset: 0, len: 10 },
        OpKind::Shutdown { stream },
        OpKind::CloseStream { stream },
    ];
    for kind in stale {
        let what = format!("{kind:?}");
        assert_eq!(driver.run(kind).err(), Some(Errno::STALE_ID), "{what}");
    }
    driver.finish();
}

/// Rule 7 for CloseStream.
pub fn closing_a_stream_ends_what_waits_on_it<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let recv = driver.recv(stream, 1);
        let sends = [flood(&mut driver, stream), driver.send(stream, b"queued", b"")];
        driver.until(|_| matches!(peer.read(1), Arrived::Bytes(_)));
        let close = driver.submit(OpKind::CloseStream { stream });
        assert!(driver.wait(close).result.is_ok(), "{flavor:?}");
        for part in [recv, sends[0], sends[1]] {
            assert_eq!(driver.wait(part).result.err(), Some(Errno::CANCELLED), "{flavor:?}");
        }
        let rest = driver.collect_to_end(&mut peer);
        assert_same(&rest, &flood_bytes()[1..=rest.len()], &format!("{flavor:?}"));
        driver.finish();
    }
}
