//! Rules 1, 6 and 8: completions, waits and Drop.

use super::cancels::OTHER;
use super::driver::POOL_BLOCKS;
use super::streams::flood;
use super::{Driver, Flavor, Meter, Peer, Rig, SESSION, assert_same, pattern};
use crate::backend::{Backend, Cancel, FileId, Finish, FsOp, OpKind, OpenMode, Output, Store, StreamId, Time};
use crate::block::Class;
use crate::sim::random::Random;
use crate::wire::frame::Preserve;
use std::collections::BTreeMap;
use std::time::Duration;

/// Steps of the mixture in [`every_op_completes_once_and_returns_its_blocks`].
const MIXED_STEPS: usize = 600;

pub(super) const PLAIN: Finish = Finish { attributes: None, preserve: Preserve(0), sync: false, verify: None };
pub(super) const CREATE: OpenMode = OpenMode::Create { size: 0, keep: 0, overwrite: true };

/// What the mixed test keeps of its surroundings.
struct Mixture<R: Rig> {
    driver: Driver<R>,
    random: Random,
    streams: Vec<(StreamId, R::Peer)>,
    /// The latest Recv on each stream: sessions have one out at a time.
    receiving: Vec<u32>,
    files: Vec<FileId>,
    stored: BTreeMap<u32, (String, Vec<u8>)>,
    submitted: Vec<u32>,
}

/// Rule 1: hundreds of operations of most kinds, some cancelled, on streams some of which lose their peer.
pub fn every_op_completes_once_and_returns_its_blocks<R: Rig>() {
    let mut mixture = Mixture::<R>::new();
    for _ in 0..MIXED_STEPS {
        if mixture.random.below(3) == 0 {
            mixture.disturb();
        } else if mixture.driver.outstanding() < POOL_BLOCKS {
            mixture.submit();
        }
        if mixture.random.below(2) == 0 {
            mixture.driver.turn();
            mixture.remember_files();
        }
    }
    mixture.end();
}

impl<R: Rig> Mixture<R> {
    fn new() -> Mixture<R> {
        let mut driver = Driver::<R>::new();
        let flavors = Flavor::ALL.into_iter().chain(Flavor::ALL);
        let streams: Vec<_> = flavors.filter_map(|flavor| driver.rig.stream(flavor)).collect();
        let receiving = vec![0; streams.len()];
        let files = vec![driver.source("source", &pattern(1, 200_000))];
        Mixture {
            driver,
            random: Random::new(1),
            streams,
            receiving,
            files,
            stored: BTreeMap::new(),
            submitted: Vec::new(),
        }
    }

    /// Submits one operation of a random kind, unless blocks have run out.
    fn submit(&mut self) {
        if self.driver.pool.available(Class::Small) < 2 || self.driver.pool.available(Class::Large) < 2 {
            self.driver.forget_done();
            return;
        }
        let index = self.random.below(self.streams.len() as u64) as usize;
        let stream = self.streams[index].0;
        let file = self.files[self.random.below(self.files.len() as u64) as usize];
        let part = match self.random.below(9) {
            0 => self.driver.send(stream, b"short", b""),
            1 => self.driver.send(stream, b"long", &pattern(2, 400_000)),
            2 => self.driver.submit(OpKind::SendFile {
                stream,
                head: [1].into_iter().collect(),
                file,
                offset: 3,
                len: 150_000,
            }),
            3 if !self.driver.is_out(self.receiving[index]) => {
                self.receiving[index] = self.driver.recv(stream, 1 + self.random.below(20_000) as usize);
                self.receiving[index]
            }
            4 => self.read(file),
            5 => self.store(),
            6 => {
                let (place, mode) = (self.driver.place("source"), OpenMode::Read);
                self.driver.submit(OpKind::Open { place, mode })
            }
            7 => {
                let place = self.driver.place("unpublished");
                self.driver.submit(OpKind::Open { place, mode: CREATE })
            }
            _ => {
                let place = self.driver.place("source");
                self.driver.submit(OpKind::Fs(Box::new(FsOp::Stat { place, follow: true })))
            }
        };
        self.submitted.push(part);
    }

    fn read(&mut self, file: FileId) -> u32 {
        let into = self.driver.pool.take_reserved(Class::Large).expect("checked before");
        let offset = self.random.below(250_000);
        self.driver.submit(OpKind::Read { file, offset, into, len: 100_000 })
    }

    fn store(&mut self) -> u32 {
        let name = format!("stored {}", self.submitted.len());
        let bytes = pattern(self.random.next(), 5000);
        let (place, from) = (self.driver.place(&name), self.driver.slices(&bytes));
        let part = self.driver.submit(OpKind::Store(Box::new(Store { place, from, finish: PLAIN, overwrite: false })));
        self.stored.insert(part, (name, bytes));
        part
    }

    /// Lets a peer do something, or cancels something that may be complete already.
    fn disturb(&mut self) {
        let index = self.random.below(self.streams.len() as u64) as usize;
        match self.random.below(20) {
            0 => self.streams[index].1.close(),
            1 => self.streams[index].1.close_write(),
            2..=4 if !self.submitted.is_empty() => {
                let recent = self.submitted.len().saturating_sub(POOL_BLOCKS);
                let at = recent + self.random.below((self.submitted.len() - recent) as u64) as usize;
                self.driver.cancel_one(self.submitted[at]);
            }
            5..=9 => {
                self.streams[index].1.write(&pattern(4, 9000));
            }
            _ => {
                self.streams[index].1.read(1 << 18);
            }
        }
    }

    fn remember_files(&mut self) {
        for part in self.submitted.clone() {
            if !self.driver.is_done(part) {
                continue;
            }
            let completion = self.driver.taken(part).expect("just seen");
            match completion.result {
                Ok(Output::Opened { file, .. }) => self.files.push(file),
                Ok(_) if self.stored.contains_key(&part) => {
                    let (name, bytes) = &self.stored[&part];
                    assert_same(&self.driver.rig.read_file(name).expect("stored"), bytes, name);
                }
                _ => {}
            }
        }
    }

    fn end(mut self) {
        self.driver.cancel(Cancel::Session(SESSION));
        self.driver.until(|driver| driver.outstanding() == 0);
        for (stream, _) in &self.streams {
            self.driver.submit_for(OTHER, OpKind::CloseStream { stream: *stream });
        }
        self.driver.until(|driver| driver.outstanding() == 0);
        let names = self.driver.rig.names();
        let litter: Vec<_> = names.iter().filter(|name| *name != "source" && !name.starts_with("stored ")).collect();
        assert!(litter.is_empty(), "litter: {litter:?}");
        self.driver.finish();
    }
}

/// Rule 6: with something pending and nothing ready.
pub fn a_past_deadline_returns_at_once<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, _peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let part = driver.recv(stream, 1);
        for _ in 0..100 {
            driver.turn_until(Some(Time(0)));
        }
        assert!(!driver.is_done(part));
        driver.cancel_one(part);
        driver.finish();
    }
}

/// Rule 6: the clock that deadlines are measured in moves, and a wait ends when it has.
pub fn a_near_deadline_ends_a_wait_without_completions<R: Rig>() {
    let (mut driver, stream, _peer) = Driver::<R>::with_stream(Flavor::Socket).expect("a must");
    let part = driver.recv(stream, 1);
    for nanoseconds in [1, 1_000, 1_000_000, 30_000_000] {
        let deadline = driver.rig.backend().now().after(nanoseconds);
        while driver.rig.backend().now() < deadline {
            driver.turn_until(Some(deadline));
        }
    }
    driver.cancel_one(part);
    driver.finish();
}

/// Rule 6: what is ready comes at once, and what becomes ready ends the wait.
pub fn a_ready_completion_ends_a_wait_without_deadline<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, mut peer)) = Driver::<R>::with_stream(flavor) else { continue };
        for round in 0..20 {
            assert!(peer.write(b"ping") == 4);
            let recv = driver.recv(stream, 4);
            let stat = {
                let place = driver.place("");
                driver.submit(OpKind::Fs(Box::new(FsOp::Stat { place, follow: true })))
            };
            while !(driver.is_done(recv) && driver.is_done(stat)) {
                driver.turn_until(None);
            }
            assert_eq!(driver.received(recv).unwrap(), b"ping", "{flavor:?}: round {round}");
            driver.forget_done();
        }
        driver.finish();
    }
}

/// Rule 6 and [`Backend::waker`]: from another thread, before the wait and during it.
pub fn a_waker_ends_the_present_and_the_next_wait<R: Rig>() {
    let (mut driver, stream, _peer) = Driver::<R>::with_stream(Flavor::Socket).expect("a must");
    let part = driver.recv(stream, 1);
    driver.turn();
    let waker = driver.rig.backend().waker();
    waker.wake();
    driver.turn_until(None);
    for _ in 0..3 {
        let waker = waker.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            waker.wake();
        });
        driver.turn_until(None);
        other.join().expect("the other thread only wakes");
        // A wake that came after the wait had ended for another reason must not be lost, but need not be kept apart.
        driver.turns(2);
    }
    assert!(!driver.is_done(part));
    driver.cancel_one(part);
    driver.finish();
}

/// Rule 8.
pub fn dropping_a_backend_drains_it<R: Rig>() {
    for flavor in Flavor::ALL {
        let Some((mut driver, stream, _peer)) = Driver::<R>::with_stream(flavor) else { continue };
        let (other, _other_peer) = driver.rig.stream(flavor).expect("a second one");
        let source = driver.source("source", &pattern(1, 1 << 20));
        let place = driver.place("unpublished");
        let new = driver.open(place, CREATE).expect("a new file");
        driver.recv(stream, 1);
        flood(&mut driver, stream);
        driver.send(stream, b"queued", b"");
        driver.submit(OpKind::SendFile {
            stream: other,
            head: [1].into_iter().collect(),
            file: source,
            offset: 0,
            len: 1 << 20,
        });
        driver.turns(3);
        // The last ones may not even have begun.
        let from = driver.slices(&pattern(2, 1000)).remove(0);
        driver.submit(OpKind::Write { file: new, offset: 0, from });
        let into = driver.pool.take_reserved(Class::Small).unwrap();
        driver.submit(OpKind::Read { file: source, offset: 0, into, len: 1000 });
        driver.turn_until(Some(Time(0)));
        driver.drop_backend();
        driver.assert_pool_full();
        assert_eq!(driver.rig.names(), ["source"], "{flavor:?}");
    }
}

/// Rule 6: with everything warm, turns that send, receive, read and write allocate nothing in this thread.
///
/// Not among [`crate::contract_tests`]: it needs a global allocator that counts, and counts by thread, which a test
/// binary has to bring; `allocations` is that count.
pub fn warm_turns_allocate_nothing<R: Rig>(allocations: impl Fn() -> u64 + 'static) {
    let (mut driver, stream, mut peer) = Driver::<R>::with_stream(Flavor::Socket).expect("a must");
    let source = driver.source("source", &pattern(1, 100_000));
    let place = driver.place("new");
    let new = driver.open(place, CREATE).expect("a new file");
    driver.meter = Some(Meter { allocations: Box::new(allocations), counted: 0 });
    for round in 0..200u64 {
        driver.recv(stream, 100);
        driver.feed(&mut peer, &pattern(3, 100));
        driver.send(stream, b"head", &pattern(2, 3000));
        driver.submit(OpKind::SendFile {
            stream,
            head: [1].into_iter().collect(),
            file: source,
            offset: round,
            len: 3000,
        });
        let into = driver.pool.take_reserved(Class::Small).unwrap();
        driver.submit(OpKind::Read { file: source, offset: round, into, len: 3000 });
        let from = driver.slices(&pattern(round, 3000)).remove(0);
        driver.submit(OpKind::Write { file: new, offset: round * 3000, from });
        let mut got = Vec::new();
        driver.collect(&mut peer, &mut got, 4 + 3000 + 1 + 3000, 10_000);
        driver.until(|driver| driver.outstanding() == 0);
        driver.forget_done();
        if round == 100 {
            driver.meter.as_mut().expect("set above").counted = 0;
        }
    }
    assert_eq!(driver.meter.as_ref().expect("set above").counted, 0, "allocations in 99 warm rounds");
    driver.finish();
}
