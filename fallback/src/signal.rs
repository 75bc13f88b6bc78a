//! Ends a wait in the poller from another thread, and says why.

use haul_engine::backend::Waker;
use haul_engine::doze::Doze;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The event that stands for [`Signal`]; streams use their slot number.
pub(crate) const SIGNAL: mio::Token = mio::Token(usize::MAX);

/// Shared by the worker thread, the offload threads and the helper threads of blocking streams.
pub(crate) struct Signal {
    waker: mio::Waker,
    doze: Doze,
    /// Somebody outside asked the present or next wait to return.
    asked: AtomicBool,
    /// Slots of streams whose helper thread has finished a call.
    finished: Mutex<Vec<u32>>,
}

impl Signal {
    pub(crate) fn new(registry: &mio::Registry) -> io::Result<Arc<Signal>> {
        let waker = mio::Waker::new(registry, SIGNAL)?;
        Ok(Arc::new(Signal { waker, doze: Doze::default(), asked: AtomicBool::new(false), finished: Mutex::default() }))
    }

    /// For those who want `submit_and_wait` to return.
    pub(crate) fn asking(self: &Arc<Signal>) -> Waker {
        let signal = Arc::clone(self);
        Waker(Arc::new(move || {
            signal.asked.store(true, Ordering::Release);
            signal.end_wait();
        }))
    }

    /// For those whose results `submit_and_wait` collects: no reason to return when it has collected them already.
    pub(crate) fn collecting(self: &Arc<Signal>) -> Waker {
        let signal = Arc::clone(self);
        Waker(Arc::new(move || signal.end_wait()))
    }

    /// Called by a helper thread after each of its calls.
    pub(crate) fn finished(&self, slot: u32) {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        self.end_wait();
    }

    /// Slots whose helper has finished a call since the last look.
    pub(crate) fn take_finished(&self, mut each: impl FnMut(u32)) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.drain(..).for_each(&mut each);
    }

    /// True once for any number of requests to return.
    pub(crate) fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::AcqRel)
    }

    /// The thread is about to wait. True when it finds something to do now; who leaves something after this wakes it.
    pub(crate) fn has_news_before_sleep(&self) -> bool {
        self.doze.lie_down();
        self.asked.load(Ordering::Acquire) || !self.finished.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The thread looks for itself again.
    pub(crate) fn get_up(&self) {
        self.doze.get_up();
    }

    fn end_wait(&self) {
        if !self.doze.must_wake() {
            return;
        }
        // Writing to an eventfd or triggering a user event fails only for a bad descriptor, and this one is ours.
        let _ = self.waker.wake();
    }
}
