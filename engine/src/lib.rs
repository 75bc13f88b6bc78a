//! haul's engine: the protocol, the sessions that speak it, the worker that drives them, and the io_uring backend.
//!
//! ```text
//! frames <-> sessions <-> operations <-> backend <-> kernel
//!  wire      session      backend.rs     uring, haul-fallback, sim
//! ```
//!
//! Sessions are values that turn completions into operations; they own no descriptor and make no call. A [`backend`]
//! carries operations out. A [`worker`] is the loop between them. `DESIGN.md` beside this crate tells why, `WIRE.md`
//! tells every byte.

pub mod backend;
pub mod block;
pub mod cas;
mod compute;
#[cfg(feature = "test-rig")]
pub mod contract;
pub mod doze;
mod errno;
pub mod limits;
#[cfg(unix)]
pub mod offload;
pub mod panics;
pub mod queue;
pub mod session;
#[cfg(feature = "test-rig")]
pub mod sim;
#[cfg(unix)]
pub mod tcp;
pub mod tree_hash;
#[cfg(target_os = "linux")]
pub mod uring;
pub mod wire;
pub mod worker;
