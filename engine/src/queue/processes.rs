//! Ranges of a file that one server process is making go to connections of that process only.

use super::tests::{counter, job};
use super::*;
use crate::limits::RANGE_BYTES;
use crate::wire::frame::Hash;

const HERE: Option<Hash> = Some([1; 32]);
const ELSEWHERE: Option<Hash> = Some([2; 32]);

/// A run whose first connection, served `HERE`, has begun a file of three ranges, with a small file behind it.
fn begun() -> Queue {
    let queue = Queue::new(Direction::Up, Options { connections: 3, ..Options::default() });
    queue.join(Some(counter().0));
    queue.set_process([1; 32]);
    let whole = job(1, 3 * RANGE_BYTES);
    queue.push(job(2, 10));
    queue.begin_ranges(&whole, (7, 7, HERE), &[], counter().0);
    queue
}

/// What a connection that `process` serves takes, as long as it gets anything.
fn taken(queue: &Queue, lead: bool, process: Option<Hash>) -> Vec<u64> {
    let pull = || queue.pull(lead, |job| job.may_go_to(process));
    std::iter::from_fn(pull).map(|job| job.range.map_or(u64::MAX, |range| range.offset)).collect()
}

#[test]
fn who_is_served_elsewhere_takes_no_range_and_waits_without_turning_round() {
    for process in [ELSEWHERE, None] {
        let queue = begun();
        queue.join(None);
        assert!(taken(&queue, false, process).is_empty());
        let (waker, woken) = counter();
        assert!(!queue.wait(&waker, process), "it would look again at once, for ever");
        assert!(queue.wait(&waker, HERE), "there is something for others");
        assert_eq!(taken(&queue, true, HERE), [0, RANGE_BYTES, 2 * RANGE_BYTES, u64::MAX]);
        // A file that is done may make room for it.
        queue.finish(Finished { job: job(2, 10), result: Ok((None, 10, Way::Unchanged)) });
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn what_a_gathered_connection_leaves_is_the_first_ones() {
    let queue = begun();
    let joined = queue.join(None);
    let range = queue.pull(false, |job| job.may_go_to(HERE)).unwrap();
    queue.leave(joined, vec![range]);
    assert_eq!(taken(&queue, true, HERE), [0, RANGE_BYTES, 2 * RANGE_BYTES, u64::MAX]);
}

#[test]
fn only_where_the_first_connection_is_served_files_are_begun() {
    let queue = begun();
    assert!(queue.is_process(HERE) && !queue.is_process(ELSEWHERE) && !queue.is_process(None));
    let nothing_said = Queue::new(Direction::Up, Options::default());
    assert!(!nothing_said.is_process(None) && !nothing_said.is_process(HERE));
}
