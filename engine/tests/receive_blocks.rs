//! How much of the memory of its worker a session has that takes more than it can write, in simulated time.

use haul_engine::block::{Class, Pool};
use haul_engine::limits::{BLOCK_BYTES, RECEIVE_BLOCKS, SESSION_LARGE_BLOCKS};
use haul_engine::queue::Queue;
use haul_engine::session::client::Opening;
use haul_engine::session::plan::{Operand, Options};
use haul_engine::session::report::{Direction, Progress};
use haul_engine::session::server::Server;
use haul_engine::session::{download, upload};
use haul_engine::sim::{FaultPlan, SimBackend, World};
use haul_engine::wire::path::RequestPath;
use haul_engine::worker::Worker;
use std::sync::Arc;

/// Far more than a session may have.
const POOL_BLOCKS: usize = 4 * SESSION_LARGE_BLOCKS;
const CONTENT_BYTES: usize = 3 * POOL_BLOCKS * BLOCK_BYTES;
const SEEDS: u64 = 4;

fn operand(path: &str) -> Operand {
    Operand { path: RequestPath::parse(path.as_bytes()).unwrap(), shown: path.into(), contents: false }
}

/// The most blocks that whoever receives has had at once.
fn most_held(seed: u64, up: bool) -> usize {
    let world = World::new(seed, FaultPlan::none());
    // What comes is not what it waits for.
    world.set_least_stream(2 * POOL_BLOCKS * BLOCK_BYTES);
    let mut hosts = [world.host("client"), world.host("server")];
    let [local, root] = [hosts[0].root(), hosts[1].root()];
    let [ref mut one, ref mut two] = hosts;
    let (stream, served) = world.connect(one, two);
    let (source, target) = if up { ("client", "server") } else { ("server", "client") };
    world.put_file(source, "source", &vec![7; CONTENT_BYTES]);
    let direction = if up { Direction::Up } else { Direction::Down };
    let queue = Queue::new(direction, Options::default());
    let (sources, to) = (vec![operand("source")], operand("target"));
    let (opening, progress) = (Opening::full(None), Arc::new(Progress::default()));
    let session = if up {
        let plan = upload::Plan { local, sources, target: to, queue, same_machine: None };
        upload::client(stream, opening, plan, progress, Box::new(|_| {}))
    } else {
        let plan = download::Plan { sources, local, target: to, queue };
        download::client(stream, opening, plan, progress, Box::new(|_| {}))
    };
    let mut workers = hosts.map(|host| Worker::new(host, Pool::new(POOL_BLOCKS, POOL_BLOCKS)).letting_panics_through());
    workers[0].add(Box::new(session));
    workers[1].add(Box::new(Server::new(served, root, Box::new(|_| {}))));
    let mut most = 0;
    while workers.iter().any(Worker::is_busy) {
        workers.iter_mut().for_each(|worker: &mut Worker<SimBackend>| worker.turn().unwrap());
        let receiver = &workers[usize::from(up)];
        most = most.max(POOL_BLOCKS - receiver.blocks_available(Class::Large));
        assert!(world.advance_to_turn() || !workers.iter().any(Worker::is_busy), "deadlock");
    }
    assert_eq!(world.get_file(target, "target").map(|content| content.len()), Some(CONTENT_BYTES));
    most
}

#[test]
fn what_cannot_be_written_yet_is_left_where_it_is() {
    for up in [true, false] {
        let most = (0..SEEDS).map(|seed| most_held(seed, up)).max().unwrap();
        eprintln!("up {up}: {most} blocks at most");
        assert!(most <= SESSION_LARGE_BLOCKS + RECEIVE_BLOCKS, "up {up}: {most} blocks");
        assert!(most >= SESSION_LARGE_BLOCKS, "up {up}: {most} blocks: nothing had to wait");
    }
}
