//! The backend contract on the simulated backend, on many seeds, and on simulations that break it on purpose.

use haul_engine::backend::{DirId, StreamId};
use haul_engine::contract::{self, Flavor, Rig};
use haul_engine::sim::{FaultPlan, MAX_STREAM_BYTES, Mutation, SimBackend, SimPeer, World};
use std::cell::Cell;
use std::net::SocketAddr;
use std::panic::catch_unwind;
use std::rc::Rc;

thread_local! {
    /// What the next rig is built from.
    static NEXT: Cell<(u64, Option<Mutation>)> = const { Cell::new((1, None)) };
}

struct SimRig {
    world: Rc<World>,
    backend: Option<SimBackend>,
    root: DirId,
}

impl Rig for SimRig {
    type Backend = SimBackend;
    type Peer = SimPeer;

    fn new() -> SimRig {
        let (seed, mutation) = NEXT.get();
        let world = match mutation {
            Some(mutation) => World::mutated(seed, FaultPlan::none(), mutation),
            None => World::new(seed, FaultPlan::none()),
        };
        let backend = world.host("host");
        let root = backend.root();
        SimRig { world, backend: Some(backend), root }
    }

    fn backend(&mut self) -> &mut SimBackend {
        self.backend.as_mut().expect("not dropped yet")
    }

    fn stream(&mut self, flavor: Flavor) -> Option<(StreamId, SimPeer)> {
        let world = self.world.clone();
        (flavor == Flavor::Socket).then(|| world.connect_peer(self.backend(), MAX_STREAM_BYTES))
    }

    fn listener(&mut self) -> Option<(StreamId, SocketAddr)> {
        let world = self.world.clone();
        Some(world.listen(self.backend()))
    }

    fn root(&self) -> DirId {
        self.root
    }

    fn write_file(&mut self, name: &str, bytes: &[u8]) {
        self.world.put_file("host", name, bytes);
    }

    fn read_file(&mut self, name: &str) -> Option<Vec<u8>> {
        self.world.get_file("host", name)
    }

    fn names(&mut self) -> Vec<String> {
        self.world.list("host")
    }

    fn store(&mut self) -> DirId {
        self.backend().add_store()
    }

    fn damage_store(&mut self) {
        self.world.damage_store("host");
    }

    fn drop_backend(&mut self) {
        self.backend = None;
    }

    fn idle(&mut self) {
        self.world.advance();
    }
}

impl Drop for SimRig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.world.check();
        }
    }
}

haul_engine::contract_tests!(SimRig);

/// Seeds beyond the one that the tests above run with.
const MORE_SEEDS: u64 = 8;

#[test]
fn the_contract_holds_on_many_seeds() {
    for seed in 0..MORE_SEEDS {
        NEXT.set((1000 + seed, None));
        for (name, rule) in haul_engine::contract_rules!(SimRig) {
            assert!(catch_unwind(rule).is_ok(), "SEED={}: {name}", 1000 + seed);
        }
    }
}

/// True when a rule fails on a backend built wrong in this way, on the first seeds.
fn catches(mutation: Mutation, rule: fn()) -> bool {
    (0..10).any(|seed| {
        NEXT.set((seed, Some(mutation)));
        catch_unwind(rule).is_err()
    })
}

#[test]
fn a_backend_that_forgets_failed_streams_does_not_pass() {
    let rule = contract::no_byte_leaves_after_a_stream_has_failed::<SimRig>;
    assert!(catches(Mutation::ForgetFailedStream, rule));
}

#[test]
fn a_backend_that_receives_short_does_not_pass() {
    assert!(catches(Mutation::ShortRecv, contract::recv_gathers_at_least_what_was_asked_from_a_trickle::<SimRig>));
}

#[test]
fn a_backend_that_loses_writes_does_not_pass() {
    assert!(catches(Mutation::LoseWrites, contract::writes_land_at_their_offsets_in_any_order::<SimRig>));
}
