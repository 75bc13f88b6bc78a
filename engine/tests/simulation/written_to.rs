//! One file that somebody writes to while it is read: what arrives, and what is said of that.

use super::*;

/// One file of some blocks, both ways, to haul and to base peers, in a world where this happens while it is read.
fn written_to(fault: Fault, mut check: impl FnMut(&str, &[Report], &Entry, &[u8])) {
    for (up, extended, fast) in [(true, true), (true, false), (false, true)]
        .into_iter()
        .flat_map(|(up, ext)| [(up, ext, false), (up, ext, true)])
    {
        let caps = if fast { Caps::FAST } else { Caps::NONE };
        let options = Options { recursive: true, ..Options::default() };
        let (blocks, sources) = ([(32, 64); 2], vec!["src/one"]);
        let direct = None;
        let plain = false;
        let scenario = Scenario {
            up,
            extended,
            version: 1,
            caps,
            links: 1,
            blocks,
            options,
            sources,
            direct,
            plain,
            large: false,
        };
        let host = usize::from(!up);
        let world = World::new(1, FaultPlan::of(vec![Planned::Op { host, op: OpName::StatOpen, nth: 0, fault }]));
        world.put_directory("client", "dst");
        world.put_directory("server", "dst");
        let before = content(700_000, 2);
        world.put_file(scenario.source_host(), "src/one", &before);
        let mut pair = Pair::new(&world, &scenario);
        pair.run(&world, &mut Coverage::new()).unwrap();
        let name = format!("up {up}, extended {extended}, fast {fast}");
        assert_eq!(world.faults_hit().len(), 1, "{name}");
        let arrived = &world.snapshot(scenario.target_host())[&b"dst/one"[..]];
        check(&name, &pair.reports.borrow(), arrived, &before);
        let after = &world.snapshot(scenario.source_host())[&b"src/one"[..]];
        assert!(arrived.content == before || arrived.content == after.content, "{name}");
    }
}

#[test]
fn a_file_that_only_grows_while_it_is_read_arrives_with_what_it_began_with_and_that_is_said() {
    written_to(Fault::Grow, |name, reports, arrived, before| {
        assert_eq!(Verdict::of(reports).failures, Vec::<String>::new(), "{name}");
        assert!(arrived.content == before, "{name}");
        let said =
            reports.iter().any(|report| matches!(report, Report::Grew { size, .. } if *size == before.len() as u64));
        // A base server has no word for it, and a base client none to hear it with: the one here is never the one who reads.
        assert!(said, "{name}: {reports:?}");
    });
}

#[test]
fn a_file_that_is_written_over_while_it_is_read_is_read_once_more() {
    written_to(Fault::Overwrite, |name, reports, arrived, before| {
        assert_eq!(Verdict::of(reports).failures, Vec::<String>::new(), "{name}");
        assert!(
            arrived.content != before && arrived.content.len() == before.len(),
            "{name}: that was half old, half new"
        );
        assert!(!reports.iter().any(|report| matches!(report, Report::Grew { .. })), "{name}");
    });
}
