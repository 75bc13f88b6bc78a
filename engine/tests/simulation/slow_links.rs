//! Several direct connections that share a slow and healthy cable with a long queue: what lies in buffers is not silence.

use super::*;
use haul_engine::limits::SECOND;

/// 4 Mbit/s, and a queue that lasts for 400 ms.
const RATE: u64 = 500_000;
const QUEUE: u64 = SECOND * 2 / 5;
/// Bytes of a socket that the system has made large; a third of it is 10 s of a quarter of the rate.
const SOCKET_BYTES: usize = 4 << 20;
const LINKS: usize = 4;
const FILES: usize = 400;
const FILE_BYTES: usize = 64 * 1024;

fn crossing(seed: u64, up: bool, required: bool) {
    let name = format!("SEED={seed}, up {up}, required {required}");
    let options = Options { recursive: true, connections: LINKS as u16, ..Options::default() };
    let (caps, blocks, sources) = (Caps::NONE, [(64, 64); 2], vec!["src/"]);
    let (direct, plain, large) = (Some(required), false, false);
    let scenario =
        Scenario { up, extended: true, version: 1, caps, links: LINKS, blocks, options, sources, direct, plain, large };
    let world = World::new(seed, FaultPlan::none());
    world.set_cable(RATE, QUEUE);
    world.set_least_stream(SOCKET_BYTES);
    world.put_directory("client", "dst");
    world.put_directory("server", "dst");
    for number in 0..FILES {
        // None of them is worth compressing.
        world.put_file(scenario.source_host(), &format!("src/{number}"), &content(FILE_BYTES, 4 * number as u64 + 3));
    }
    let mut pair = Pair::new(&world, &scenario);
    // As with a `--timeout` of 12 s: what is silent for 4 s is lost.
    let patience = Patience::default();
    pair.guests.patience = Patience { alive: 4 * SECOND, handshake: patience.handshake / 3, ..patience };
    pair.run(&world, &mut Coverage::new()).unwrap_or_else(|why| panic!("{name}: {why}"));
    let verdict = Verdict::of(&pair.reports.borrow());
    assert_eq!(verdict.failures, Vec::<String>::new(), "{name}");
    assert_eq!(verdict.copied.len(), FILES, "{name}");
    let fate = pair.guests.fate.borrow();
    let lost = [&fate.lost, &fate.untrusted].map(|failure| failure.as_ref().map(Failure::reason));
    assert_eq!(lost, [None, None], "{name}: a connection was given up");
    let (all, sent) = ((FILES * FILE_BYTES) as u64, world.sent(scenario.source_host()));
    assert!(sent < all + all / 20, "{name}: {sent} bytes left for {all}");
    let arrived = world.snapshot(scenario.target_host());
    for (path, content) in expected(&scenario, &world.snapshot(scenario.source_host())) {
        assert!(arrived[&path].content == content, "{name}");
    }
}

#[test]
fn small_files_over_direct_connections_of_a_slow_link_are_neither_lost_nor_sent_twice_nor_is_one_given_up() {
    for seed in 0..number("SEEDS").unwrap_or(1_500).div_ceil(300) {
        for (up, required) in [(true, true), (true, false), (false, true), (false, false)] {
            crossing(seed, up, required);
        }
    }
}
