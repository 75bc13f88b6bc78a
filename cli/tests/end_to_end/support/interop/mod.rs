//! haul beside the real programs whose protocol it speaks.
//!
//! The programs are found by two variables, which name a binary each; without them the tests are skipped, and with
//! HAUL_REQUIRE=bcmr that is a failure.
//!
//! ```text
//! peer.rs       who takes part, and where the programs are
//! raw.rs        frames of the base protocol by hand, without haul's encoder and decoder
//! speaker.rs    a test as the client of any server, over pipes
//! stage.rs      two homes, a stand-in for ssh, and a record of every byte that a server sees and says
//! relay.rs      the network between the two ends of a direct connection, and a record of it
//! opened.rs     what was said there
//! traffic.rs    what the record proves
//! content.rs    what is copied
//! cell.rs       one client, one server, one codec: which operations work
//! uploads.rs, downloads.rs, striped.rs    the operations
//! table.rs      the result as Markdown
//! ```

#![allow(unreachable_pub)]

pub mod cell;
pub mod content;
pub mod downloads;
pub mod opened;
pub mod peer;
pub mod raw;
pub mod relay;
pub mod speaker;
pub mod stage;
pub mod striped;
pub mod table;
pub mod traffic;
pub mod uploads;
