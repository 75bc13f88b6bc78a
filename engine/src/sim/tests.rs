//! What the simulator promises beyond the contract: the same run for the same seed, faults that strike where they were
//! planned, and a world that sees when rules are broken.

use super::random::Random;
use super::{CONNECT_TIMEOUT, Fault, FaultPlan, Mutation, OpName, Planned, SimBackend, World};
use crate::backend::{
    Backend, Cancel, Completion, Errno, FileId, Finish, OpKind, OpenMode, Output, Place, SessionId, StreamId,
    Submissions, Time, Token,
};
use crate::block::{Class, Pool};
use crate::wire::frame::Preserve;
use crate::wire::path::{RequestPath, Target};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

/// One host with what a worker has around its backend.
struct Side {
    backend: SimBackend,
    pool: Pool,
    submissions: Submissions,
    completions: Vec<Completion>,
    next: u32,
}

impl Side {
    fn new(world: &Rc<World>, name: &str) -> Side {
        let (backend, pool) = (world.host(name), Pool::new(64, 4));
        Side { backend, pool, submissions: Submissions::default(), completions: Vec::new(), next: 0 }
    }

    fn submit(&mut self, kind: OpKind) -> u32 {
        self.next += 1;
        self.submissions.push(Token { session: SessionId(0), transfer: self.next, part: self.next }, kind);
        self.next
    }

    fn send(&mut self, stream: StreamId, bytes: &[u8]) -> u32 {
        let mut block = self.pool.take_reserved(Class::Small).expect("enough blocks");
        block.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let body = [block.share().slice(0..bytes.len())].into_iter().collect();
        self.submit(OpKind::Send { stream, head: [0xff].into_iter().collect(), body })
    }

    fn recv(&mut self, stream: StreamId, at_least: usize) -> u32 {
        let into = self.pool.take_reserved(Class::Small).expect("enough blocks");
        self.submit(OpKind::Recv { stream, into, at_least })
    }

    fn place(&self, path: &str) -> Place {
        let operand = RequestPath::parse(path.as_bytes()).unwrap();
        Place { dir: self.backend.root(), target: Target { operand, below: None } }
    }

    fn open(&mut self, path: &str, mode: OpenMode) -> u32 {
        let place = self.place(path);
        self.submit(OpKind::Open { place, mode })
    }

    fn turn(&mut self) -> bool {
        self.backend.submit_and_wait(&mut self.submissions, &mut self.completions, None).is_ok()
    }

    fn result(&self, part: u32) -> Option<&Result<Output, Errno>> {
        self.completions.iter().find(|completion| completion.op.token.part == part).map(|completion| &completion.result)
    }

    /// Turns of this host alone until a part is done.
    fn wait(&mut self, world: &World, part: u32) -> &Result<Output, Errno> {
        while self.result(part).is_none() {
            assert!(self.turn(), "the host crashed");
            assert!(self.result(part).is_some() || world.advance(), "part {part} never completes");
        }
        self.result(part).unwrap()
    }

    fn opened(&mut self, world: &World, path: &str, mode: OpenMode) -> FileId {
        let part = self.open(path, mode);
        match self.wait(world, part) {
            Ok(Output::Opened { file, .. }) => *file,
            other => panic!("{other:?}"),
        }
    }

    /// Listens at this address; where that was in the end.
    fn listening(&mut self, world: &World, address: SocketAddr) -> Result<(StreamId, SocketAddr), Errno> {
        let part = self.submit(OpKind::Listen { address });
        match self.wait(world, part) {
            Ok(Output::Listening { stream, address }) => Ok((*stream, *address)),
            Err(errno) => Err(*errno),
            other => panic!("{other:?}"),
        }
    }

    fn connected(&mut self, world: &World, address: SocketAddr) -> Result<StreamId, Errno> {
        let part = self.submit(OpKind::Connect { address });
        match self.wait(world, part) {
            Ok(Output::Accepted { stream, .. }) => Ok(*stream),
            Err(errno) => Err(*errno),
            other => panic!("{other:?}"),
        }
    }

    /// Everything about this side's completions, for comparing runs.
    fn trace(&self) -> String {
        let line = |completion: &Completion| format!("{} {:?}\n", completion.op.token.part, completion.result);
        self.completions.iter().map(line).collect()
    }
}

const CREATE: OpenMode = OpenMode::Create { size: 0, keep: 0, overwrite: true };
const PLAIN: Finish = Finish { attributes: None, preserve: Preserve(0), sync: false, verify: None };

fn op(op: OpName, nth: u64, fault: Fault) -> FaultPlan {
    FaultPlan::of(vec![Planned::Op { host: 0, op, nth, fault }])
}

/// Two hosts that send, receive, read, write and publish without looking at results, until nothing moves any more.
fn busy_run(seed: u64, faults: FaultPlan) -> (Rc<World>, Side, Side) {
    let world = World::new(seed, faults);
    let mut sides = [Side::new(&world, "a"), Side::new(&world, "b")];
    let [a, b] = &mut sides;
    let (to_b, to_a) = world.connect(&mut a.backend, &mut b.backend);
    world.put_file("a", "source", &[7; 10_000]);
    let mut random = Random::new(seed);
    for round in 0..8 {
        for (index, stream) in [to_b, to_a].into_iter().enumerate() {
            let side = &mut sides[index];
            side.send(stream, &vec![round; random.index(3000)]);
            side.recv(stream, 1 + random.index(2000));
            let name = if index == 0 { "source" } else { "missing" };
            side.open(name, OpenMode::Read);
            let part = side.open("new", CREATE);
            side.turn();
            if let Some(Ok(Output::Opened { file, .. })) = side.result(part) {
                let file = *file;
                side.submit(OpKind::SendFile { stream, head: [1].into_iter().collect(), file, offset: 0, len: 5000 });
                side.submit(OpKind::Publish { file, finish: Box::new(PLAIN) });
            }
        }
        world.advance();
    }
    for _ in 0..100_000 {
        let alive = sides.iter_mut().fold(false, |any, side| side.turn() | any);
        if !alive || !world.advance() {
            break;
        }
    }
    let [a, b] = sides;
    (world, a, b)
}

#[test]
fn a_seed_gives_the_same_run_again_and_another_seed_another() {
    let run = |seed| {
        let (world, a, b) = busy_run(seed, FaultPlan::random(2));
        (a.trace(), b.trace(), format!("{:?} {:?}", world.now(), world.faults_hit()))
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

#[test]
fn whatever_goes_wrong_every_operation_of_a_living_host_completes_once() {
    let mut struck = 0;
    for seed in 0..400 {
        let (world, mut a, mut b) = busy_run(seed, FaultPlan::random(2));
        world.check();
        struck += world.faults_hit().len();
        for side in [&mut a, &mut b] {
            // Recvs whose peer has nothing more to say wait for ever.
            let session = Cancel::Session(SessionId(0));
            side.submissions.cancel(session);
            while side.turn() && side.backend.outstanding() > 0 {
                assert!(world.advance(), "SEED={seed}: operations that never complete");
            }
            if side.backend.is_alive() {
                side.turn();
                assert_eq!(side.completions.len(), side.next as usize, "SEED={seed}");
            }
            side.completions.clear();
            side.submissions = Submissions::default();
            assert_eq!(side.pool.available(Class::Small), 64, "SEED={seed}: blocks lost");
        }
        assert_eq!((world.open_count("a"), world.open_count("b")), (0, 0), "SEED={seed}");
    }
    assert!(struck > 100, "faults are planned and hardly ever strike: {struck}");
}

#[test]
fn the_world_sees_bytes_behind_a_send_that_failed() {
    let caught = (0..100).filter(|&seed| {
        let world = World::mutated(seed, op(OpName::Send, 0, Fault::Eio), Mutation::ForgetFailedStream);
        let mut a = Side::new(&world, "a");
        let (stream, mut peer) = world.connect_peer(&mut a.backend, 1 << 16);
        a.send(stream, &[1; 1000]);
        let behind = a.send(stream, &[2; 1000]);
        assert!(a.wait(&world, behind).is_ok());
        crate::contract::Peer::close(&mut peer);
        !world.violations().is_empty()
    });
    // Only a Send that failed before its first byte or behind its last leaves no hole.
    assert!(caught.count() > 95);
}

#[test]
fn a_fault_strikes_the_operation_it_was_planned_for_and_is_told_once() {
    let world = World::new(1, op(OpName::Open, 1, Fault::Eacces));
    world.put_file("a", "file", b"content");
    let mut a = Side::new(&world, "a");
    let parts = [0, 1, 2].map(|_| a.open("file", OpenMode::Read));
    let denied = Errno::from(rustix::io::Errno::ACCESS);
    assert!(a.wait(&world, parts[0]).is_ok());
    assert_eq!(a.wait(&world, parts[1]).as_ref().err(), Some(&denied));
    assert!(a.wait(&world, parts[2]).is_ok());
    let hits = world.new_faults();
    assert_eq!(hits.len(), 1);
    let (token, name) = hits[0].op.unwrap();
    assert_eq!((token.part, name, hits[0].fault), (parts[1], OpName::Open, Fault::Eacces));
    assert!(world.new_faults().is_empty());
    assert_eq!(world.faults_hit().len(), 1);
}

#[test]
fn a_full_disk_refuses_creates_writes_and_stores() {
    let world = World::new(1, FaultPlan::none());
    let mut a = Side::new(&world, "a");
    world.set_capacity("a", 100);
    world.put_file("a", "old", &[0; 40]);
    let part = a.open("new", OpenMode::Create { size: 61, keep: 0, overwrite: true });
    assert_eq!(a.wait(&world, part).as_ref().err(), Some(&Errno::NO_SPACE));
    let file = a.opened(&world, "new", CREATE);
    for (offset, expected) in [(0, None), (50, None), (51, Some(Errno::NO_SPACE))] {
        let from = a.pool.take_reserved(Class::Small).unwrap().share().slice(0..10);
        let part = a.submit(OpKind::Write { file, offset, from });
        assert_eq!(a.wait(&world, part).as_ref().err().copied(), expected, "at {offset}");
    }
}

#[test]
fn a_crash_keeps_what_has_a_name_and_ends_the_peers_stream() {
    let world = World::new(1, FaultPlan::none());
    let (mut a, mut b) = (Side::new(&world, "a"), Side::new(&world, "b"));
    let (to_b, to_a) = world.connect(&mut a.backend, &mut b.backend);
    world.put_file("a", "named", b"content");
    let file = a.opened(&world, "unnamed", CREATE);
    a.recv(to_b, 1);
    let waiting = b.recv(to_a, 10);
    a.turn();
    b.turn();
    assert_eq!(world.unpublished("a"), 1);
    world.crash("a");
    assert!(!a.turn(), "a crashed host gives no turns");
    assert!(matches!(b.wait(&world, waiting), Ok(Output::Bytes(0))));
    let refused = b.send(to_a, b"anyone there?");
    assert_eq!(b.wait(&world, refused).as_ref().err(), Some(&Errno::BROKEN_PIPE));
    assert_eq!((world.list("a"), world.unpublished("a")), (vec!["named".to_owned()], 0));
    drop(a);
    let mut again = Side::new(&world, "a");
    let part = again.submit(OpKind::Close { file });
    assert_eq!(again.wait(&world, part).as_ref().err(), Some(&Errno::STALE_ID));
    again.opened(&world, "named", OpenMode::Read);
}

#[test]
fn a_planned_crash_comes_in_its_turn() {
    let world = World::new(1, FaultPlan::of(vec![Planned::Crash { host: 0, turn: 3 }]));
    let mut a = Side::new(&world, "a");
    assert_eq!([0, 1, 2, 3, 4].map(|_| a.turn()), [true, true, true, false, false]);
    assert_eq!(world.faults_hit()[0].fault, Fault::Crash);
}

#[test]
fn a_connection_breaks_after_as_many_bytes_as_planned() {
    for seed in 0..50 {
        let world = World::new(seed, FaultPlan::of(vec![Planned::Break { connection: 0, outward: true, after: 1500 }]));
        let (mut a, mut b) = (Side::new(&world, "a"), Side::new(&world, "b"));
        let (to_b, to_a) = world.connect(&mut a.backend, &mut b.backend);
        let sends = [a.send(to_b, &[1; 999]), a.send(to_b, &[2; 999])];
        let recv = b.recv(to_a, 3000);
        while b.result(recv).is_none() || a.result(sends[1]).is_none() {
            a.turn();
            b.turn();
            assert!(world.advance());
        }
        assert!(matches!(a.result(sends[0]), Some(Ok(_))), "SEED={seed}");
        assert_eq!(a.result(sends[1]).unwrap().as_ref().err(), Some(&Errno::BROKEN_PIPE), "SEED={seed}");
        if let Ok(Output::Bytes(count)) = b.result(recv).unwrap() {
            assert!(*count <= 1500, "SEED={seed}: {count}");
        }
        assert_eq!(world.faults_hit().len(), 1, "SEED={seed}");
    }
}

#[test]
fn a_source_that_shrinks_or_vanishes_does_so_on_the_disk() {
    let world = World::new(3, op(OpName::Read, 0, Fault::ShortSource));
    world.put_file("a", "file", &[1; 5000]);
    let mut a = Side::new(&world, "a");
    let file = a.opened(&world, "file", OpenMode::Read);
    let into = a.pool.take_reserved(Class::Small).unwrap();
    let part = a.submit(OpKind::Read { file, offset: 0, into, len: 5000 });
    let left = match a.wait(&world, part) {
        Ok(Output::Bytes(count)) => *count,
        other => panic!("{other:?}"),
    };
    assert!(left < 5000);
    assert_eq!(world.get_file("a", "file").unwrap().len(), left);

    let world = World::new(3, op(OpName::Open, 0, Fault::Vanish));
    world.put_file("a", "file", b"");
    let mut a = Side::new(&world, "a");
    let part = a.open("file", OpenMode::Read);
    assert_eq!(a.wait(&world, part).as_ref().err(), Some(&Errno::NOT_FOUND));
    assert!(world.list("a").is_empty());
}

#[test]
fn time_jumps_to_a_deadline_only_when_everybody_is_idle() {
    let world = World::new(1, FaultPlan::none());
    let mut a = Side::new(&world, "a");
    let (stream, mut peer) = world.connect_peer(&mut a.backend, 100);
    a.recv(stream, 1);
    let deadline = Some(Time(60_000_000_000));
    let turn = |a: &mut Side| a.backend.submit_and_wait(&mut a.submissions, &mut a.completions, deadline).unwrap();
    crate::contract::Peer::write(&mut peer, b"x");
    while a.completions.is_empty() {
        turn(&mut a);
        assert!(world.advance() && world.now() < Time(1_000_000_000));
    }
    // It may answer now, so its next turn comes first.
    a.send(stream, b"answer");
    turn(&mut a);
    while a.completions.len() < 2 {
        assert!(world.advance() && world.now() < Time(1_000_000_000));
        turn(&mut a);
    }
    world.advance();
    turn(&mut a);
    while !world.quiescent() {
        world.advance();
    }
    assert!(world.advance());
    assert_eq!(Some(world.now()), deadline);
    // A turn that finds its deadline past may submit something in the next.
    turn(&mut a);
    assert!(world.advance());
    assert!(!world.advance(), "nothing will ever happen again");
}

const REFUSED: Errno = Errno(rustix::io::Errno::CONNREFUSED.raw_os_error());

#[test]
fn a_host_is_reached_at_its_addresses_by_others_and_at_loopback_by_itself() {
    let world = World::new(5, FaultPlan::none());
    let mut sides = [Side::new(&world, "client"), Side::new(&world, "server")];
    let [client, server] = &mut sides;
    let [v4, v6] = world.addresses("server");
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    for (at, reached) in [(v4, v4), (v6, v6), (any[0], v4), (any[1], v6), (any[1], v4)] {
        let (listener, bound) = server.listening(&world, SocketAddr::new(at, 0)).unwrap();
        let accept = server.submit(OpKind::Accept { listener });
        let near = client.connected(&world, SocketAddr::new(reached, bound.port())).unwrap();
        let Ok(Output::Accepted { stream: far, .. }) = *server.wait(&world, accept) else { panic!("not accepted") };
        client.send(near, b"ping");
        let part = server.recv(far, 5);
        client.turn();
        assert!(server.wait(&world, part).is_ok());
    }
    let (_, loopback) = server.listening(&world, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).unwrap();
    assert!(server.connected(&world, loopback).is_ok());
    assert_eq!(client.connected(&world, loopback).err(), Some(REFUSED));
    assert_eq!(client.connected(&world, SocketAddr::new(v4, loopback.port())).err(), Some(REFUSED));
    world.check();
}

#[test]
fn addresses_that_overlap_are_in_use_and_low_ports_forbidden() {
    let world = World::new(5, FaultPlan::none());
    let mut sides = [Side::new(&world, "one"), Side::new(&world, "two")];
    let [one, two] = &mut sides;
    let any = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let all = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let [own, own_v6]: [IpAddr; 2] = world.addresses("one");
    assert!(one.listening(&world, any(5000)).is_ok());
    let in_use = Some(rustix::io::Errno::ADDRINUSE.into());
    for taken in [any(5000), all(5000), SocketAddr::new(own, 5000)] {
        assert_eq!(one.listening(&world, taken).err(), in_use, "{taken}");
    }
    assert!(one.listening(&world, SocketAddr::new(own_v6, 5000)).is_ok());
    assert!(two.listening(&world, all(5000)).is_ok(), "another host");
    assert_eq!(two.listening(&world, SocketAddr::new(own, 0)).err(), Some(rustix::io::Errno::ADDRNOTAVAIL.into()));
    assert_eq!(two.listening(&world, any(80)).err(), Some(rustix::io::Errno::ACCESS.into()));
}

#[test]
fn a_crash_ends_what_a_host_listens_on() {
    let world = World::new(5, FaultPlan::none());
    let mut sides = [Side::new(&world, "client"), Side::new(&world, "server")];
    let [client, server] = &mut sides;
    let address = SocketAddr::new(world.addresses("server")[0], 4000);
    assert!(server.listening(&world, address).is_ok());
    assert!(client.connected(&world, address).is_ok());
    world.crash("server");
    assert_eq!(client.connected(&world, address).err(), Some(REFUSED));
    let mut again = Side::new(&world, "server");
    assert!(again.listening(&world, address).is_ok());
}

#[test]
fn a_planned_fault_keeps_a_host_from_listening_and_from_connecting() {
    let planned = [
        (OpName::Listen, 0, Fault::Eacces),
        (OpName::Connect, 0, Fault::Refused),
        (OpName::Connect, 1, Fault::Unanswered),
        (OpName::Connect, 2, Fault::Unanswered),
    ];
    let planned = planned.map(|(op, nth, fault)| Planned::Op { host: 0, op, nth, fault });
    let world = World::new(5, FaultPlan::of(planned.to_vec()));
    let mut host = Side::new(&world, "host");
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    assert_eq!(host.listening(&world, loopback).err(), Some(rustix::io::Errno::ACCESS.into()));
    let (_, address) = host.listening(&world, loopback).unwrap();
    assert_eq!(host.connected(&world, address).err(), Some(REFUSED));
    let before = world.now();
    assert_eq!(host.connected(&world, address).err(), Some(rustix::io::Errno::TIMEDOUT.into()));
    assert!(world.now() >= before.after(CONNECT_TIMEOUT));
    let (before, part) = (world.now(), host.submit(OpKind::Connect { address }));
    host.turn();
    host.submissions.cancel(Cancel::Transfer(SessionId(0), part));
    assert_eq!(host.wait(&world, part).as_ref().err(), Some(&Errno::CANCELLED));
    assert!(world.now() < before.after(CONNECT_TIMEOUT));
    assert!(host.connected(&world, address).is_ok());
    assert_eq!(world.faults_hit().len(), 4);
}
