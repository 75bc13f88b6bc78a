//! INT and TERM: everything that runs is told to stop, once.

use haul_engine::backend::Waker;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);
static WAKERS: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

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
        waker.wake();
    }
}

/// Registers a backend that must be woken to notice.
pub(crate) fn wake_on_stop(waker: Waker) {
    WAKERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(waker);
}
