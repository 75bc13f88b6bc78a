//! INT, TERM and HUP: everything that runs is told to stop, once. XFSZ is an error of the write that caused it.

use crate::threads;
use haul_engine::backend::Waker;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, Weak};

static STOP: AtomicBool = AtomicBool::new(false);
static WAKERS: Mutex<Vec<Weak<Wake>>> = Mutex::new(Vec::new());

type Wake = dyn Fn() + Send + Sync;

/// What HUP means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hangup {
    /// The user has gone, unless whoever started this said that it shall stay (nohup).
    Stops,
    /// Nothing: a daemon outlives the terminal it was started from.
    IsNothing,
}

/// True once the user has asked to stop.
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Acquire)
}

/// Begins to listen for the signals.
pub(crate) fn install(hangup: Hangup) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("signals cannot be heard: {}", crate::output::reason(&error));
    // With somebody who hears it, a write beyond the limit (ulimit -f) fails with EFBIG and the process lives. It is not
    // ignored, because ssh would inherit that.
    let heard = || Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGXFSZ, heard()).map_err(failed)?;
    let mut stops = vec![SIGINT, SIGTERM];
    match hangup {
        Hangup::IsNothing => _ = signal_hook::flag::register(SIGHUP, heard()).map_err(failed)?,
        Hangup::Stops if is_ignored(SIGHUP) => {}
        Hangup::Stops => stops.push(SIGHUP),
    }
    let mut signals = signal_hook::iterator::Signals::new(stops).map_err(failed)?;
    let (sender, told) = sync_channel(1);
    let listen = move || signals.forever().for_each(|_| stop());
    match threads::spawn("signals", listen, move |why| _ = sender.try_send(why)) {
        Some(_) => Ok(()),
        None => Err(format!("signals cannot be heard: {}", told.recv().unwrap_or_default())),
    }
}

/// True for a signal that this process was started to ignore.
#[cfg(target_os = "linux")]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Where that cannot be read HUP keeps whatever effect it has.
#[cfg(not(target_os = "linux"))]
fn is_ignored(_: i32) -> bool {
    true
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
