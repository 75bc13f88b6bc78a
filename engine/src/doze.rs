//! Whether a worker's thread sleeps in the kernel, so that others wake it only then.
//!
//! ```text
//! thread:  lie_down -> look one last time for what was left -> wait -> get_up
//! others:  leave something -> must_wake? -> a system call
//! ```
//! While the thread is up it finds what was left by itself, and a wake costs more than what it tells of: of 10,000 small
//! files, three for each at the client (2026-11-26).

use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by one thread that sleeps and those that leave something for it.
#[derive(Debug, Default)]
pub struct Doze {
    asleep: AtomicBool,
}

impl Doze {
    /// The thread is about to wait: what was left before it is to be looked for after this, what is left later wakes it.
    pub fn lie_down(&self) {
        // A swap, so that it sees what was left by whoever asked before it and was told not to wake.
        self.asleep.swap(true, Ordering::AcqRel);
    }

    /// The thread looks for itself again.
    pub fn get_up(&self) {
        // A swap as well: a store would end the chain by which the next sleep sees what was left.
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// Asked by others after they have left something: true when the thread must be woken, once for each sleep.
    pub fn must_wake(&self) -> bool {
        self.asleep.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::Doze;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;

    #[test]
    fn one_of_many_wakes_it_and_only_while_it_sleeps() {
        let doze = Doze::default();
        assert!(!doze.must_wake());
        doze.lie_down();
        assert!(doze.must_wake());
        assert!(!doze.must_wake());
        doze.lie_down();
        doze.get_up();
        assert!(!doze.must_wake());
    }

    #[test]
    fn nothing_that_is_left_is_slept_through() {
        const LEFT: u32 = 100_000;
        let (doze, left) = (Doze::default(), AtomicU32::new(0));
        let (wake, woken) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..LEFT {
                    left.fetch_add(1, Ordering::Relaxed);
                    if doze.must_wake() {
                        wake.send(()).unwrap();
                    }
                }
            });
            let mut found = 0;
            while found < LEFT {
                doze.lie_down();
                if left.load(Ordering::Relaxed) == found {
                    woken.recv_timeout(std::time::Duration::from_secs(20)).expect("a wake for what was left");
                }
                doze.get_up();
                found = left.load(Ordering::Relaxed);
            }
        });
    }
}
