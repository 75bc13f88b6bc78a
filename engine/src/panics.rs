//! A panic is a defect of the program. It ends what it happened in, with one line that says where, and nothing else.
//!
//! ```text
//! quieten, once -> caught(work) -panics-> Panicked: "internal error at block.rs:55: ..; please report it"
//! ```
//! Owns neither threads nor sessions: whoever calls [`caught`] decides what the panic is the end of.

use crate::wire::display::Printable;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};

thread_local! {
    /// Calls of [`caught`] that this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// What the hook was told of the last panic of this thread.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What is known of a panic, in one line that is safe to print.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Panicked(String);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "internal error{}; please report it", self.0)
    }
}

/// Does `work`, and turns a panic in it into an error. What `work` has changed half must not be looked at again, unless
/// it is known to be whole at every point.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|payload| {
        let said = LAST.take().unwrap_or_else(|| format!(": {}", words(&*payload)));
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
        Panicked(said)
    })
}

/// Keeps panics that [`caught`] waits for from printing lines of their own. With RUST_BACKTRACE they do, for developers.
pub fn quieten() {
    let usual = take_hook();
    let is_wanted = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    set_hook(Box::new(move |info| {
        if is_wanted || DEPTH.get() == 0 {
            usual(info);
        }
        if DEPTH.get() > 0 {
            LAST.set(Some(place_and_words(info)));
        }
    }));
}

fn place_and_words(info: &PanicHookInfo<'_>) -> String {
    let words = words(info.payload());
    info.location().map_or_else(
        || format!(": {words}"),
        |place| {
            // Where the sources were when this was built is nobody's business.
            let file = place.file().rsplit(['/', '\\']).next().unwrap_or_default();
            format!(" at {file}:{}: {words}", place.line())
        },
    )
}

fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown");
    Printable(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_panic_says_comes_out_in_one_line() {
        assert_eq!(caught(|| 7), Ok(7));
        let Err(panicked) = caught::<()>(|| panic!("one\ntwo {}", 3)) else { panic!("it did not panic") };
        let text = panicked.to_string();
        assert!(text.starts_with("internal error") && text.ends_with("one\\ntwo 3; please report it"), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn a_panic_inside_a_caught_one_leaves_the_outer_work_alone() {
        let outer = caught(|| caught::<()>(|| panic!("inner")).is_err());
        assert_eq!(outer, Ok(true));
        assert_eq!(DEPTH.get(), 0);
    }
}
