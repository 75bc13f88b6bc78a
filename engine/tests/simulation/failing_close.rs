//! File systems that say only to close that what was written was not stored: quotas and full disks behind a network.
//!
//! Single failures of that kind are among the faults of every run. Here is a disk that stores no more from some byte on.

use super::*;

/// One seed in so many has such a disk at the target.
const ONCE_IN: u64 = 8;

const FAULTS: [Fault; 3] = [Fault::CloseEdquot, Fault::CloseEio, Fault::CloseEnospc];

/// Lets the target's disk store a part of what will be copied, in some worlds.
pub(super) fn draw(world: &World, scenario: &Scenario, random: &mut Random) {
    if !random.once_in(ONCE_IN) {
        return;
    }
    let bytes = |host: &str| world.snapshot(host).values().map(|entry| entry.content.len() as u64).sum::<u64>();
    let most = bytes(scenario.target_host()) + random.below(bytes(scenario.source_host()) + 1);
    world.set_stores(scenario.target_host(), Some((most, FAULTS[random.index(FAULTS.len())])));
}

/// Where nothing else went wrong each file is copied or told as failed, and only those fail that had a reason to.
pub(super) fn check(
    scenario: &Scenario,
    verdict: &Verdict,
    faults: &[Hit],
    (files, lies): (usize, usize),
) -> Result<(), String> {
    let target = usize::from(scenario.up);
    if faults.is_empty() || !faults.iter().all(|hit| hit.fault.is_at_close() && hit.host == target) {
        return Ok(());
    }
    if verdict.failures.is_empty() {
        return Err("close failed, and the client reported success".to_string());
    }
    // Towards base peers the link in the tree is one file more.
    let copied = verdict.copied.keys().filter(|path| !path.ends_with(b"/link")).count();
    let failed = verdict.failures.iter().filter(|failure| !failure.contains("/link: ")).count();
    if copied + failed != files {
        return Err(format!("{copied} files copied and {failed} failed, of {files}: {:?}", verdict.failures));
    }
    // Where there is no room, what is as large is not begun.
    if faults.iter().all(|hit| hit.fault == Fault::CloseEio) && verdict.failures.len() > faults.len() + lies {
        return Err(format!("close failed {} times, and yet: {:?}", faults.len(), verdict.failures));
    }
    Ok(())
}

/// One file among others that close fails for, both ways, small and large, to haul and to base peers.
#[test]
fn a_file_that_close_fails_for_keeps_what_was_there_and_the_rest_of_the_tree_goes_on() {
    for fault in FAULTS {
        for (up, extended, large, resume) in
            (0..16).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0, bits & 8 > 0))
        {
            let name = format!("{fault:?}, up {up}, extended {extended}, large {large}, resume {resume}");
            let options = Options { recursive: true, resume, ..Options::default() };
            let (caps, blocks, sources) = (Caps::NONE, [(32, 64); 2], vec!["src/"]);
            let (links, version, direct, plain) = (1, 1, None, false);
            let scenario =
                Scenario { up, extended, version, caps, links, blocks, options, sources, direct, plain, large };
            let op = if large { OpName::Publish } else { OpName::Store };
            let planned = Planned::Op { host: usize::from(up), op, nth: 0, fault };
            let world = World::new(1, FaultPlan::of(vec![planned]));
            world.put_directory("client", "dst");
            world.put_directory("server", "dst");
            let len = if large { 700_000 } else { 40_000 };
            let sizes = [("one", len), ("two", 10), ("three", 20)];
            // What is copied first is the largest: of less there may be room.
            let sizes = &sizes[..if large { 3 } else { 1 }];
            for (file, len) in sizes {
                world.put_file(scenario.source_host(), &format!("src/{file}"), &content(*len, 7));
                world.put_file(scenario.target_host(), &format!("dst/{file}"), b"old content");
            }
            let before = world.snapshot(scenario.source_host());
            let mut pair = Pair::new(&world, &scenario);
            pair.run(&world, &mut Coverage::new()).unwrap();
            let faults = world.faults_hit();
            assert_eq!(faults.len(), 1, "{name}");
            let verdict = Verdict::of(&pair.reports.borrow());
            drop(pair);
            let there = |file: &str| world.get_file(scenario.target_host(), &format!("dst/{file}")).unwrap();
            assert_eq!(verdict.failures.len(), 1, "{name}: {:?}", verdict.failures);
            assert!(!verdict.copied.contains_key(&b"dst/one"[..]), "{name}");
            // A base client continues what stands under the name: nothing of that is a haul's.
            assert!(there("one") == b"old content", "{name}");
            for (file, _) in &sizes[1..] {
                assert!(there(file) == before[format!("src/{file}").as_bytes()].content, "{name}: {file}");
            }
            again(&world, &scenario, &faults).unwrap();
        }
    }
}
