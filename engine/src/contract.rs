//! The ten rules of [`crate::backend`] as tests that every backend passes.
//!
//! A backend's test binary describes how to build one and its surroundings, a [`Rig`], and names it once; each rule then
//! runs as tests of its own:
//!
//! ```ignore
//! struct Ring;
//! impl haul_engine::contract::Machine for Ring {
//!     type Backend = haul_engine::uring::Uring;
//!     fn backend() -> Self::Backend { .. }
//!     fn add_root(backend: &mut Self::Backend, path: &Path) -> DirId { .. }
//! }
//! haul_engine::contract_tests!(haul_engine::contract::HostRig<Ring>);
//! ```
//!
//! [`HostRig`] supplies sockets, pipes and a temporary directory of the operating system; only the simulator brings a
//! rig of its own. Test and peers share one thread with the backend: peers never block, and every wait is a loop of short turns, so that what a rule asks of "some turns later" can be observed turn by turn.
//! A test that does not end is reported with the operations that are still out.
//!
//! Which rule is where: `streams` 2 to 5, 9 and 10; `turns` 1, 6 and 8; `cancels` 7; `files` what the operations on files say of
//! themselves in [`crate::backend::OpKind`]; `blocks` the two on the block store, `connections` what Listen,
//! Accept and Connect say.

#![forbid(unsafe_code)]

use crate::backend::{Backend, DirId, StreamId};
use crate::sim::random::Random;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::Duration;

mod blocks;
mod cancels;
mod connections;
mod driver;
mod files;
#[cfg(unix)]
mod host;
mod streams;
mod turns;

pub use blocks::*;
pub use cancels::*;
pub use connections::*;
pub use files::*;
#[cfg(unix)]
pub use host::{HostPeer, HostRig, Machine};
pub use streams::*;
pub use turns::*;

use driver::{Driver, Meter, SESSION};

/// What a test may take before it counts as hanging. Generous: it only ends what would never end.
const LIMIT: Duration = Duration::from_secs(20);

/// What a stream under test is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// A pair of connected sockets inside one machine.
    Socket,
    /// A TCP connection.
    Tcp,
    /// Two pipes, one for each direction.
    Pipe,
}

impl Flavor {
    /// Every flavor; a rig answers `None` to those it does not know.
    pub const ALL: [Flavor; 3] = [Flavor::Socket, Flavor::Tcp, Flavor::Pipe];
}

/// A backend and what is around it, fresh for each test.
pub trait Rig {
    /// The backend under test.
    type Backend: Backend;
    /// The far end of its streams.
    type Peer: Peer;

    /// A fresh backend with an empty root directory.
    fn new() -> Self;
    /// The backend. Not called after [`Rig::drop_backend`].
    fn backend(&mut self) -> &mut Self::Backend;
    /// A connected stream and its far end; `None` where this backend knows no such flavor. [`Flavor::Socket`] is a must.
    fn stream(&mut self, flavor: Flavor) -> Option<(StreamId, Self::Peer)>;
    /// A listening TCP socket and its address; `None` where the backend has no addresses.
    fn listener(&mut self) -> Option<(StreamId, SocketAddr)> {
        None
    }
    /// The root directory as the backend knows it.
    fn root(&self) -> DirId;
    /// Puts a regular file into the root directory, past the backend.
    fn write_file(&mut self, name: &str, bytes: &[u8]);
    /// Content of a file below the root directory, past the backend.
    fn read_file(&mut self, name: &str) -> Option<Vec<u8>>;
    /// Every name below the root directory, as a relative path, sorted: nothing may be littered there.
    fn names(&mut self) -> Vec<String>;
    /// A block store, empty at first and outside the root directory.
    fn store(&mut self) -> DirId;
    /// Damages every block in that store, past the backend. Done twice it leaves them as they were.
    fn damage_store(&mut self);
    /// Drops the backend and nothing else.
    fn drop_backend(&mut self);
    /// Called after a turn that brought no completion. A simulated world moves its clock here.
    fn idle(&mut self) {}
}

/// The far end of a stream. No method blocks; dropping it is [`Peer::close`].
pub trait Peer {
    /// Sends what can be sent now and says how much that was.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Up to `max` bytes of what is there now.
    fn read(&mut self, max: usize) -> Arrived;
    /// Ends the direction towards the backend; reading goes on.
    fn close_write(&mut self);
    /// Ends both directions; what was not read is lost.
    fn close(&mut self);
}

/// What a look at the far end of a stream found.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// At least one byte.
    Bytes(Vec<u8>),
    /// Nothing for now.
    Nothing,
    /// Nothing any more.
    End,
}

/// Names every rule of the contract as a test on one rig.
#[macro_export]
macro_rules! contract_tests {
    ($rig:ty) => {
        $crate::contract_rules! { @list tests $rig }
    };
}

/// Every rule of the contract on one rig, with its name: an array of `(&str, fn())`.
#[macro_export]
macro_rules! contract_rules {
    (@list $form:ident $rig:ty) => {
        $crate::contract_rules! { @$form $rig:
            every_op_completes_once_and_returns_its_blocks,
            bytes_leave_in_submission_order_whatever_sends_them,
            recv_gathers_at_least_what_was_asked_from_a_trickle,
            recv_fills_a_whole_block_when_told_to,
            recv_gives_fewer_bytes_only_at_the_end_of_the_stream,
            large_sends_are_whole_with_a_slow_reader,
            file_ranges_are_sent_whole_with_a_slow_reader,
            sends_behind_a_closed_peer_end_with_one_errno,
            no_byte_leaves_after_a_stream_has_failed,
            a_sent_block_may_be_overwritten_at_once,
            a_received_block_is_not_touched_again,
            a_past_deadline_returns_at_once,
            a_near_deadline_ends_a_wait_without_completions,
            a_ready_completion_ends_a_wait_without_deadline,
            a_waker_ends_the_present_and_the_next_wait,
            a_cancelled_recv_leaves_the_stream_alive,
            a_cancel_covers_what_was_submitted_in_the_same_turn,
            queued_sends_are_cancelled_without_a_trace,
            a_cancelled_send_that_began_breaks_its_stream,
            cancelling_a_session_closes_its_files_and_spares_the_others,
            an_open_that_races_with_its_sessions_end_leaves_nothing,
            closed_ids_are_refused,
            closing_a_stream_ends_what_waits_on_it,
            connections_are_made_accepted_and_refused,
            an_address_listened_on_takes_connections,
            an_address_that_cannot_be_had_is_refused,
            a_closed_listener_frees_its_port,
            a_sessions_end_frees_the_ports_it_listens_on,
            dropping_a_backend_drains_it,
            a_source_that_ends_early_is_padded_and_the_stream_lives,
            a_stale_source_is_padded_and_the_stream_lives,
            stalled_streams_do_not_delay_another,
            a_new_file_appears_only_when_published,
            a_closed_unpublished_file_leaves_nothing,
            a_published_file_replaces_the_old_one_and_carries_its_attributes,
            a_file_that_must_not_be_replaced_is_not,
            a_new_file_can_begin_with_bytes_of_the_old_one,
            a_shared_file_takes_writes_from_those_who_join_it,
            a_kept_file_takes_writes_from_those_who_join_it,
            a_directory_is_never_replaced_by_a_file,
            reads_are_short_only_at_the_end_of_the_file,
            writes_land_at_their_offsets_in_any_order,
            small_files_are_loaded_whole_and_large_ones_opened,
            small_files_are_stored_under_their_names,
            directories_are_made_listed_and_described,
            directories_with_many_names_come_in_pages,
            links_are_made_described_and_replaced,
            paths_below_an_operand_do_not_follow_links,
            missing_names_are_not_found,
            an_empty_store_fills_nothing,
            kept_blocks_are_filled_into_another_file,
            a_damaged_block_is_dropped_and_counts_as_missing,
            a_block_is_not_kept_under_another_hash,
            stores_are_no_roots_and_blocks_have_their_bounds,
        }
    };
    (@tests $rig:ty: $($rule:ident,)*) => {
        $(
            #[test]
            fn $rule() {
                $crate::contract::bounded(stringify!($rule), $crate::contract::$rule::<$rig>);
            }
        )*
    };
    (@array $rig:ty: $($rule:ident,)*) => {
        [$((stringify!($rule), $crate::contract::$rule::<$rig> as fn())),*]
    };
    ($rig:ty) => {
        $crate::contract_rules! { @list array $rig }
    };
}

/// Runs a test in a thread of its own and fails when it does not come back: a backend that blocks in the kernel cannot
/// be helped otherwise.
pub fn bounded(name: &str, test: fn()) {
    let (finished, wait) = mpsc::channel();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The sender is dropped with the closure, by a panic too, and that ends the wait below.
        let _finished = finished;
        test();
    });
    let thread = thread.expect("a thread for the test");
    let answer: Result<(), mpsc::RecvTimeoutError> = wait.recv_timeout(LIMIT + LIMIT / 2);
    assert_ne!(answer, Err(mpsc::RecvTimeoutError::Timeout), "{name}: the backend does not return");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Compares long byte strings and tells only where they part.
pub(crate) fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    if got != expected {
        let at = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
        panic!("{what}: {} bytes, expected {}; they differ from byte {at} on", got.len(), expected.len());
    }
}
