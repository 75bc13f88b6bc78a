//! File operations through the helper threads, as a backend uses them.

#![cfg(unix)]

mod cancel;
mod content;
mod locks;
mod names;
mod rig;
#[path = "../../../cli/tests/end_to_end/support/skips.rs"]
mod skips;
mod store;
mod store_trust;
