//! File operations through the helper threads, as a backend uses them.

#![cfg(unix)]

mod cancel;
mod content;
mod names;
mod rig;
mod store;
mod store_trust;
