//! INT and TERM: everything that runs is told to stop, once.

use haul_engine::backend::Waker;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

static STOP: AtomicBool = AtomicBool::new(false);
static WAKERS: Mutex<Vec<Weak<Wake>>> = Mutex::new(Vec::new());

type Wake = dyn Fn() + Send + Sync;

/// True once the user has asked to stop.
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Acquire)
}

/// Begins to listen for the signals.
pub(crate) fn install() {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        for _ in signals.forever() {
            stop();
        }
    });
}

/// Asks everything to stop.
pub(crate) fn stop() {
    STOP.store(true, Ordering::Release);
    for waker in WAKERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
        if let Some(wake) = waker.upgrade() {
            wake();
        }
    }
}

/// Registers a worker that must be woken to notice, for as long as it lives: a run may open many connections, one after the
/// other, and what wakes a worker keeps a descriptor.
pub(crate) fn wake_on_stop(waker: &Waker) {
    let mut wakers = WAKERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    wakers.retain(|waker| waker.strong_count() > 0);
    wakers.push(Arc::downgrade(&waker.0));
}
