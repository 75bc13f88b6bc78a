//! Threads of the program: one that cannot be had, or that panics, is an error like any other.

use haul_engine::panics::caught;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Does `work` on a thread of its own. Why there is none, or how it panicked, is told to `failed`, once.
pub(crate) fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
    failed: impl FnOnce(String) + Send + 'static,
) -> Option<JoinHandle<()>> {
    let failed = Arc::new(Mutex::new(Some(failed)));
    let own = failed.clone();
    let thread = Builder::new().name(format!("haul-{name}")).spawn(move || {
        if let Err(panicked) = caught(work) {
            tell(&own, panicked.to_string());
        }
    });
    let thread = thread.map_err(|error| {
        tell(&failed, format!("no thread can be started: {} (ulimit -u)", crate::output::reason(&error)));
    });
    thread.ok()
}

fn tell<F: FnOnce(String)>(failed: &Mutex<Option<F>>, why: String) {
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(failed) = failed {
        failed(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn who_waits_for_a_thread_that_panics_is_told_why() {
        let (sender, told) = channel();
        let thread = spawn("test", || panic!("on purpose"), move |why| sender.send(why).unwrap()).unwrap();
        assert!(told.recv().unwrap().contains("on purpose"));
        thread.join().unwrap();
        assert!(told.recv().is_err(), "told twice");
    }
}
