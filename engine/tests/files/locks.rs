//! Partials that another copy has locked: only who wants them waits.

use crate::rig::*;
use haul_engine::backend::*;
use std::time::Duration;

const CONTINUE: OpenMode = OpenMode::Continue { size: 1000, token: None };

impl Rig {
    fn submit(&mut self, number: u32, kind: OpKind) {
        let mut completions = Vec::new();
        self.offload.submit(Op { token: token(SESSION, number), kind }, &mut completions);
        assert!(completions.is_empty());
    }

    /// The next that completes.
    fn next(&mut self, completions: &mut Vec<Completion>) -> (u32, Result<Output, Errno>) {
        while completions.is_empty() {
            self.woken.recv_timeout(Duration::from_secs(30)).expect("an op that never ends");
            self.offload.drain(completions);
        }
        let Completion { op, result } = completions.remove(0);
        (op.token.transfer, result)
    }
}

#[test]
fn whoever_waits_for_a_locked_partial_keeps_nobody_else_waiting() {
    let mut rig = Rig::new();
    let (has_it, _) = rig.open("f", CONTINUE).unwrap();
    // More than there are threads.
    for number in 1..=4 {
        let kind = OpKind::Open { place: rig.place("f"), mode: CONTINUE };
        rig.submit(number, kind);
    }
    let mut completions = Vec::new();
    for number in 5..=8 {
        let stat = FsOp::Stat { place: rig.place("."), follow: true };
        rig.submit(number, OpKind::Fs(Box::new(stat)));
        let (first, result) = rig.next(&mut completions);
        assert_eq!(first, number, "{result:?}");
    }
    // Once nobody has it, one of them gets it; the others go on without.
    let slice = rig.slice(b"kept");
    rig.submit(9, OpKind::Write { file: has_it, offset: 0, from: slice });
    assert_eq!(rig.next(&mut completions).0, 9);
    rig.submit(10, OpKind::Close { file: has_it });
    let mut there = Vec::new();
    while there.len() < 4 {
        match rig.next(&mut completions) {
            (1..=4, Ok(Output::Opened { attributes, .. })) => there.push(attributes.size),
            (10, Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    there.sort_unstable();
    assert_eq!(there, [0, 0, 0, 4]);
}

#[test]
fn whoever_waits_for_a_locked_partial_can_be_cancelled() {
    let mut rig = Rig::new();
    rig.open("f", CONTINUE).unwrap();
    let kind = OpKind::Open { place: rig.place("f"), mode: CONTINUE };
    rig.submit(1, kind);
    let mut completions = Vec::new();
    rig.offload.cancel(Cancel::Session(SESSION), &mut completions);
    let (_, result) = rig.next(&mut completions);
    assert!(matches!(result, Err(Errno::CANCELLED | Errno::LOCKED)), "{result:?}");
    assert_eq!(rig.offload.in_flight(), 0);
}
