//! A connection that is not needed any more leaves: it gives nothing back, and loses nothing.

use super::tests::{counter, held, job};
use super::*;

/// One that may be told to leave, and what tells it.
fn retiring(queue: &Queue) -> (Queue, Retirement, u64) {
    let retirement = Retirement::default();
    let own = queue.retiring(&retirement);
    let joined = own.join(None);
    (own, retirement, joined)
}

#[test]
fn who_is_told_to_leave_takes_nothing_more_finishes_what_it_has_and_has_not_broken() {
    let (queue, _) = held();
    (1..=3).for_each(|number| queue.push(job(number, 10)));
    let stays = queue.join(None);
    let (own, retirement, joined) = retiring(&queue);
    let in_hand = own.pull(false, |_| true).unwrap();
    queue.retire(&retirement);
    assert!(own.is_left() && !queue.is_left() && own.pull(false, |_| true).is_none());
    own.finish(Finished { job: in_hand, result: Ok((None, 10, Way::Unchanged)) });
    own.leave(joined, Vec::new());
    assert!(!queue.take_alarm(), "nothing broke");
    let others: Vec<u64> = std::iter::from_fn(|| queue.pull(false, |_| true)).map(|job| job.number).collect();
    assert_eq!(others, [2, 3], "nothing came back, and nothing is lost");
    assert_eq!(queue.take_finished().len(), 1);
    queue.leave(stays, Vec::new());
    assert!(queue.take_alarm());
}

#[test]
fn who_breaks_after_it_was_told_to_leave_gives_back_what_it_had() {
    let (queue, _) = held();
    queue.push(job(1, 10));
    queue.join(None);
    let (own, retirement, joined) = retiring(&queue);
    let in_hand = own.pull(false, |_| true).unwrap();
    queue.retire(&retirement);
    own.leave(joined, vec![in_hand]);
    assert!(queue.take_alarm());
    assert_eq!(queue.pull(false, |_| true).unwrap().broke, 1);
}

#[test]
fn who_waits_for_jobs_is_woken_to_leave_and_waits_no_more() {
    let (queue, _) = held();
    let (own, retirement, _) = retiring(&queue);
    let (waker, woken) = counter();
    assert!(!own.wait(&waker, None));
    queue.retire(&retirement);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert!(own.wait(&waker, None));
}

#[test]
fn while_more_are_expected_one_alone_takes_no_more_than_fits() {
    let queue = Queue::new(Direction::Down, Options { connections: 1, ..Options::default() });
    queue.join(Some(counter().0));
    (1..=3).for_each(|number| queue.push(job(number, 10)));
    assert!(!queue.is_shared() && queue.has_waiting());
    queue.expect(Some(2));
    assert!(queue.is_shared());
    assert!(queue.pull(true, |_| false).is_none());
    queue.expect(Some(1));
    assert!(queue.is_shared(), "more may come again");
    assert!(queue.pull(true, |_| false).is_some());
    queue.expect(None);
    assert!(!queue.is_shared() && queue.pull(true, |_| false).is_some());
}
