//! Numbers of this backend alone, with their units; what it shares with others is in [`haul_engine::limits`].

/// Pieces handed to one `sendmsg` or `writev`: some twenty small frames of head and body.
pub(crate) const GATHER_PIECES: usize = 64;
/// Bytes one stream may write in one step before the next stream has its turn.
pub(crate) const STEP_BYTES: usize = haul_engine::limits::SPLICE_BYTES;
/// Calls one stream may make for it in one step: eight small files, each a head and a sendfile.
pub(crate) const STEP_CALLS: usize = 16;
/// Bytes of a file read at a time where `sendfile` cannot be used.
pub(crate) const STAGE_BYTES: usize = 256 * 1024;
/// Bytes a helper thread reads or writes at a time.
pub(crate) const HELPER_BYTES: usize = 256 * 1024;
/// Zero bytes at hand to pad a file that came short; one piece of a gathered write.
pub(crate) const ZERO_BYTES: usize = 64 * 1024;
/// Readiness events taken in one `epoll_wait` or `kevent`; more come with the next.
pub(crate) const EVENTS: usize = 256;
/// Bytes of stack of a helper thread, which calls `read` or `write` and nothing else.
pub(crate) const HELPER_STACK_BYTES: usize = 64 * 1024;

const _: () = {
    assert!(GATHER_PIECES <= 1024, "IOV_MAX on Linux and macOS");
    assert!(ZERO_BYTES * GATHER_PIECES >= STEP_BYTES);
    assert!(STAGE_BYTES <= STEP_BYTES && HELPER_BYTES <= STEP_BYTES);
};
