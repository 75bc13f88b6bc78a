//! Ids, cancels, wakes and the end of an offload.

use crate::rig::*;
use haul_engine::backend::*;
use haul_engine::block::Slices;
use haul_engine::offload::{Offload, Root};
use std::fs;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn set(&self, open: bool) {
        *self.0.0.lock().unwrap() = open;
        self.0.1.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.set(true);
    }
}

/// An offload of one thread whose waker holds that thread until the gate is opened: jobs queue up behind it.
struct Gated {
    /// First, so that a test that fails opens the gate and can end.
    gate: Gate,
    offload: Offload,
    held: mpsc::Receiver<()>,
    root: DirId,
    dir: TempDir,
}

impl Gated {
    fn new() -> Gated {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (wake, held) = mpsc::channel();
        let inside = gate.clone();
        let waker = Waker(Arc::new(move || {
            wake.send(()).unwrap();
            drop(inside.1.wait_while(inside.0.lock().unwrap(), |open| !*open).unwrap());
        }));
        let mut offload = Offload::new(1, waker).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = offload.add_root(Root::plain(fs::File::open(dir.path()).unwrap().into()));
        Gated { gate: Gate(gate), offload, held, root, dir }
    }

    fn create(&mut self, name: &str, token: Token) {
        let place = Place { dir: self.root, target: target(name.as_bytes()) };
        let kind = OpKind::Open { place, mode: OpenMode::Create { size: 0, keep: 0, overwrite: true } };
        let mut completions = Vec::new();
        self.offload.submit(Op { token, kind }, &mut completions);
        assert!(completions.is_empty());
    }

    fn wait_until_held(&self) {
        self.held.recv_timeout(Duration::from_secs(30)).expect("no job ever finished");
    }

    fn drain_all(&mut self, completions: &mut Vec<Completion>) {
        let end = Instant::now() + Duration::from_secs(30);
        while self.offload.in_flight() > 0 {
            assert!(Instant::now() < end, "a job never ends");
            self.offload.drain(completions);
            std::thread::yield_now();
        }
    }
}

#[test]
fn stale_and_foreign_ids_are_refused_at_once_with_their_buffers() {
    let mut rig = Rig::new();
    fs::write(rig.path("f"), "x").unwrap();
    let (file, _) = rig.open("f", OpenMode::Read).unwrap();
    rig.close(file);
    let (other, _) = rig.open("f", OpenMode::Read).unwrap();
    assert_eq!(file.slot, other.slot);
    let (into, from) = (rig.block(), rig.slice(b"x"));
    let never: DirId = Id::new(1000, 0);
    let place = Place { dir: never, target: target(b"f") };
    for kind in [
        OpKind::Read { file, offset: 0, into, len: 1 },
        OpKind::Write { file, offset: 0, from },
        OpKind::Close { file },
        OpKind::Publish { file, finish: Box::new(PLAIN) },
        OpKind::Open { place: place.clone(), mode: OpenMode::Read },
        OpKind::Fs(Box::new(FsOp::StatOpen { file, past: None })),
        OpKind::Fs(Box::new(FsOp::ReadDir { dir: never })),
        OpKind::Fs(Box::new(FsOp::Clone { from: rig.place("f"), to: place, finish: PLAIN })),
    ] {
        let mut completions = Vec::new();
        rig.offload.submit(Op { token: token(SESSION, 1), kind }, &mut completions);
        assert_eq!(completions.len(), 1);
        assert_eq!(completions[0].result.as_ref().map(|_| ()), Err(&Errno::STALE_ID), "{:?}", completions[0].op);
    }
    for op in [FsOp::ReadDir { dir: rig.root }, FsOp::CloseDir { dir: rig.root }] {
        assert_eq!(rig.fs(op).map(|_| ()), Err(Errno::INVALID), "a root is not a directory being read");
    }
    assert_eq!((rig.offload.in_flight(), rig.offload.file(other).is_some()), (0, true));
}

#[test]
fn a_cancelled_transfer_takes_back_its_waiting_jobs_and_no_others() {
    let mut gated = Gated::new();
    gated.create("first", token(SESSION, 1));
    gated.wait_until_held();
    for (name, transfer) in [("a", 1), ("b", 2), ("c", 1)] {
        gated.create(name, token(SESSION, transfer));
    }
    let mut completions = Vec::new();
    gated.offload.cancel(Cancel::Transfer(SESSION, 1), &mut completions);
    assert_eq!(completions.len(), 2);
    assert!(completions.iter().all(|completion| matches!(completion.result, Err(Errno::CANCELLED))));
    assert_eq!(gated.offload.in_flight(), 2);
    gated.gate.set(true);
    completions.clear();
    gated.drain_all(&mut completions);
    // What had been done before the cancel is told as it was done.
    assert!(completions.iter().all(|completion| matches!(completion.result, Ok(Output::Opened { .. }))));
    assert_eq!(completions.len(), 2);
}

#[test]
fn a_cancelled_session_loses_its_files_also_those_still_being_opened() {
    let mut gated = Gated::new();
    gated.gate.set(true);
    let (mine, other) = (token(SESSION, 1), token(SessionId(8), 1));
    let mut completions = Vec::new();
    for token in [mine, other] {
        gated.create("f", token);
        gated.drain_all(&mut completions);
    }
    let place = Place { dir: gated.root, target: target(b"") };
    let kind = OpKind::Fs(Box::new(FsOp::OpenDir { place }));
    gated.offload.submit(Op { token: mine, kind }, &mut completions);
    gated.drain_all(&mut completions);
    let ids: Vec<_> = completions.drain(..).map(|completion| completion.result.unwrap()).collect();
    let [Output::Opened { file: first, .. }, Output::Opened { file: foreign, .. }, Output::OpenedDir { dir, .. }] =
        ids[..]
    else {
        panic!("{ids:?}")
    };
    // One job done and not yet drained, one not begun.
    gated.gate.set(false);
    while gated.held.try_recv().is_ok() {}
    gated.create("late", mine);
    gated.wait_until_held();
    gated.create("never", mine);
    gated.offload.cancel(Cancel::Session(SESSION), &mut completions);
    assert!(gated.offload.file(first).is_none() && gated.offload.file(foreign).is_some());
    gated.gate.set(true);
    gated.drain_all(&mut completions);
    assert_eq!(completions.len(), 2);
    assert!(completions.iter().all(|completion| matches!(completion.result, Err(Errno::CANCELLED))));
    completions.clear();
    let read = OpKind::Fs(Box::new(FsOp::ReadDir { dir }));
    gated.offload.submit(Op { token: mine, kind: read }, &mut completions);
    assert!(matches!(completions[0].result, Err(Errno::STALE_ID)));
    // The session's number may be given to the next one.
    completions.clear();
    gated.create("again", mine);
    gated.drain_all(&mut completions);
    assert!(matches!(completions[0].result, Ok(Output::Opened { .. })));
}

#[test]
fn one_wake_announces_any_number_of_results() {
    let mut gated = Gated::new();
    gated.create("first", token(SESSION, 1));
    gated.wait_until_held();
    let mut completions = Vec::new();
    for number in 0..50 {
        let place = Place { dir: gated.root, target: target(number.to_string().as_bytes()) };
        let kind = OpKind::Fs(Box::new(FsOp::MakeDir { place }));
        gated.offload.submit(Op { token: token(SESSION, 1), kind }, &mut completions);
    }
    gated.gate.set(true);
    let end = Instant::now() + Duration::from_secs(30);
    while fs::read_dir(gated.dir.path()).unwrap().count() < 50 {
        assert!(Instant::now() < end, "jobs are not done");
        std::thread::yield_now();
    }
    // The first result still lies there, so nobody was woken for the others.
    assert_eq!(gated.held.try_iter().count(), 0);
    gated.drain_all(&mut completions);
    assert_eq!(completions.len(), 51);
}

#[test]
fn dropping_an_offload_ends_what_waits_and_leaves_no_litter() {
    let mut gated = Gated::new();
    gated.create("first", token(SESSION, 1));
    gated.wait_until_held();
    (0..50).for_each(|n| gated.create(&n.to_string(), token(SESSION, n)));
    gated.gate.set(true);
    let Gated { offload, dir, .. } = gated;
    drop(offload);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn many_stores_from_both_helpers_into_directories_nobody_made_all_arrive() {
    let mut rig = Rig::new();
    let mut completions = Vec::new();
    for number in 0..400 {
        let place = rig.place(format!("new/a{}|b{}/c/{number}", number % 3, number % 5));
        let from = Slices::from_iter([rig.slice(number.to_string().as_bytes())]);
        let store = Store { place, from, finish: PLAIN, overwrite: true };
        rig.offload
            .submit(Op { token: token(SESSION, number), kind: OpKind::Store(Box::new(store)) }, &mut completions);
        while rig.offload.in_flight() >= 6 {
            rig.woken.recv_timeout(Duration::from_secs(30)).unwrap();
            rig.offload.drain(&mut completions);
            completions.drain(..).for_each(|completion| assert!(completion.result.is_ok(), "{completion:?}"));
        }
    }
    while rig.offload.in_flight() > 0 {
        rig.woken.recv_timeout(Duration::from_secs(30)).unwrap();
        rig.offload.drain(&mut completions);
        completions.drain(..).for_each(|completion| assert!(completion.result.is_ok(), "{completion:?}"));
    }
    for number in 0..400 {
        let path = rig.path(format!("new/a{}/b{}/c/{number}", number % 3, number % 5));
        assert_eq!(fs::read_to_string(path).unwrap(), number.to_string());
    }
}
