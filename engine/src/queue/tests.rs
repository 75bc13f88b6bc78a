use super::*;
use crate::backend::NO_ATTRIBUTES;
use crate::limits::{RANGE_BYTES, RANGED_BYTES};
use crate::wire::path::RequestPath;
use std::sync::atomic::AtomicUsize;

pub(super) fn job(number: u64, size: u64) -> Job {
    let name = number.to_string().into_bytes();
    let target = Target { operand: RequestPath::parse(&name).unwrap(), below: None };
    let attributes = Attributes { size, ..NO_ATTRIBUTES };
    Job::new(number, (target.clone(), name.clone()), (target, name), attributes)
}

/// A waker that counts.
pub(super) fn counter() -> (Waker, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let same = count.clone();
    (Waker(Arc::new(move || _ = same.fetch_add(1, Ordering::Relaxed))), count)
}

/// Of a run whose content goes directly, or not at all.
pub(super) fn held() -> (Queue, Arc<AtomicUsize>) {
    let queue = Queue::new(Direction::Down, Options { connections: 8, ..Options::default() });
    let (waker, woken) = counter();
    queue.hold((true, true), &waker);
    queue.join(Some(waker));
    (queue, woken)
}

#[test]
fn an_outage_of_many_connections_counts_once_against_what_they_had_in_hand() {
    let (queue, _) = held();
    queue.push(job(1, 10));
    // Each takes it from the one that broke before, and breaks as well.
    let joined: Vec<u64> = (0..8).map(|_| queue.join(None)).collect();
    for joined in joined {
        let job = queue.pull(false, |_| true).expect("it was given back");
        queue.leave(joined, vec![job]);
    }
    assert!(queue.take_finished().is_empty());
    // Those that are opened then break with it again.
    for _ in 1..MAX_BROKE {
        assert!(queue.take_finished().is_empty());
        let joined = queue.join(None);
        let job = queue.pull(false, |_| true).expect("it was given back");
        queue.leave(joined, vec![job]);
    }
    let [Finished { result: Err(failure), .. }] = &queue.take_finished()[..] else { panic!("it goes on") };
    assert_eq!(failure.what, "not copied");
    assert!(queue.pull(false, |_| true).is_none());
}

#[test]
fn the_lead_is_woken_for_a_file_that_comes_to_the_front_and_is_its_to_begin() {
    let (queue, woken) = held();
    queue.push(job(1, 10));
    queue.push(job(2, RANGED_BYTES));
    queue.join(None);
    let before = woken.load(Ordering::Relaxed);
    assert_eq!(queue.pull(false, |_| true).unwrap().number, 1);
    assert!(queue.pull(false, |_| true).is_none());
    assert!(woken.load(Ordering::Relaxed) > before);
    assert_eq!(queue.pull(true, |_| true).unwrap().number, 2);
}

#[test]
fn what_the_lead_had_in_hand_is_nobodys_once_the_run_is_over() {
    let (queue, _) = held();
    queue.push(job(1, RANGED_BYTES));
    queue.join(None);
    let job = queue.pull(true, |_| true).unwrap();
    queue.end();
    queue.leave(0, vec![job]);
    assert!(queue.pull(false, |_| true).is_none());
}

#[test]
fn a_range_of_a_file_that_failed_is_not_tried_again() {
    let (queue, _) = held();
    let (owner, woken) = counter();
    let whole = job(1, 3 * RANGE_BYTES);
    queue.begin_ranges(&whole, (7, 7, None), &[], owner);
    let joined = queue.join(None);
    let [first, second] = [(); 2].map(|()| queue.pull(false, |_| true).unwrap());
    let failure = Failure::rule(b"", "cannot get", "no");
    queue.finish_range(first.range.unwrap(), Err(failure.clone()));
    assert!(queue.take_ranges(7).is_none(), "one is still in hand");
    queue.leave(joined, vec![second]);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert!(queue.pull(false, |_| true).is_none());
    assert_eq!(queue.take_ranges(7).unwrap().unwrap_err().what, failure.what);
}
