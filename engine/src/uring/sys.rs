//! The ring itself: set-up, submission, completion. The only place in this crate with `unsafe`.
//!
//! **The invariant everything here rests on.** [`Ring::start`] takes a [`Flight`] by value, puts it into its slab, takes
//! every address it tells the kernel from memory that the flight owns on the heap, and hands the flight back only from
//! [`Ring::next`], after the kernel has posted the operation's one completion. Nobody else can reach it in between: the
//! slab is private, and marking a cancel touches only the flight's own list of cancels. [`Ring::drop`] waits for every completion; if
//! the kernel withholds some, it leaks the slab rather than free memory that is still lent. No multishot operation and no
//! zero-copy send is used, so one submission has exactly one completion.

use super::buffers::{Buffers, Table};
use super::inflight::{CANCEL_USER_DATA, Flight, InFlight, Key, Step, Work};
use super::splice::Move;
use crate::backend::{Cancel, Errno, StreamId};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Fewest submission queue entries a ring is made with.
pub(super) const LEAST_ENTRIES: u32 = 4;
/// Bytes one operation moves at most (`MAX_RW_COUNT`, include/linux/fs.h).
const MAX_RW_BYTES: usize = 0x7fff_f000;

/// Parts of memory for one SENDMSG or WRITEV. Holds addresses only between [`Message::load`] and the submission of the
/// same call, and while the flight is in the kernel.
pub(super) struct Message {
    parts: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Default for Message {
    fn default() -> Message {
        // SAFETY: msghdr is plain integers and pointers, for which all zeros is a value; nobody reads it before `load`.
        Message { parts: Vec::new(), header: unsafe { std::mem::zeroed() } }
    }
}

impl Message {
    /// Describes up to `most` bytes of `parts`; true when there was more.
    pub(super) fn load<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>, most: usize) -> bool {
        self.parts.clear();
        let mut left = most;
        for part in parts {
            if left == 0 || self.parts.len() == crate::limits::MESSAGE_PARTS {
                return true;
            }
            let len = part.len().min(left);
            self.parts.push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: len });
            left -= len;
            if len < part.len() {
                return true;
            }
        }
        false
    }

    fn header(&mut self) -> *const libc::msghdr {
        self.header.msg_iov = self.parts.as_mut_ptr();
        // The C libraries disagree on the type of this count.
        self.header.msg_iovlen = self.parts.len() as _;
        &raw const self.header
    }
}

/// One kernel operation on behalf of a flight. Buffers are found in the flight itself.
pub(super) enum Call<'a> {
    /// Reads the waker's counter.
    Wake(BorrowedFd<'a>),
    /// Takes one connection.
    Accept(BorrowedFd<'a>),
    /// Makes the flight's connection.
    Connect,
    /// Receives from a socket; `whole` waits for the full room.
    Recv { fd: BorrowedFd<'a>, whole: bool },
    /// Reads from anything else.
    ReadStream(BorrowedFd<'a>),
    /// Waits for bytes.
    Arrival(BorrowedFd<'a>),
    /// Reads from the flight's file.
    Read,
    /// Writes to the flight's file.
    Write,
    /// Writes the flight's gathered bytes.
    Gather { fd: BorrowedFd<'a>, socket: bool },
    /// One step of the flight's pour into `fd`.
    Pour { fd: BorrowedFd<'a>, socket: bool, step: Move },
    /// Waits for room.
    Room(BorrowedFd<'a>),
}

impl Call<'_> {
    fn step(&self) -> Step {
        match self {
            Call::Wake(_) => Step::Wake,
            Call::Accept(_) => Step::Accept,
            Call::Connect => Step::Connect,
            Call::Recv { .. } | Call::ReadStream(_) => Step::Recv,
            Call::Arrival(_) => Step::Arrival,
            Call::Read => Step::Read,
            Call::Write => Step::Write,
            Call::Gather { .. } => Step::Gather,
            Call::Room(_) => Step::Room,
            Call::Pour { step, .. } => match step {
                Move::Fill { .. } => Step::Fill,
                Move::Drain { .. } => Step::Drain,
                Move::Across { .. } => Step::Across,
                Move::Copy { .. } => Step::Copy,
                Move::Push { .. } => Step::Push,
                Move::Pad { .. } => Step::Pad,
                Move::Room => Step::Room,
            },
        }
    }
}

/// A flight that came back.
pub(super) struct Returned {
    pub(super) flight: Flight,
    pub(super) step: Step,
    pub(super) result: Result<usize, Errno>,
    /// The connection an Accept brought.
    pub(super) accepted: Option<OwnedFd>,
}

/// How long to stay in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// Submits, runs what is due, returns.
    No,
    /// Until a completion, at most this long.
    For(Duration),
    /// Until a completion.
    Forever,
}

/// A ring and everything it has lent to the kernel.
pub(super) struct Ring {
    ring: IoUring,
    flights: InFlight,
    /// Completions read but not yet handed out.
    ready: VecDeque<(u64, i32)>,
    /// Scratch for cancels.
    names: Vec<u64>,
    buffers: Buffers,
    broken: Option<Errno>,
    deferred: bool,
    /// DEFER_TASKRUN binds the ring to the thread that made it; from another one every call is EEXIST.
    one_thread: PhantomData<*const ()>,
}

impl Ring {
    /// A ring bound to this thread. Kernels before 6.1 lack the flags for that and get a plain one.
    pub(super) fn new(entries: u32) -> io::Result<Ring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries * crate::limits::COMPLETIONS_PER_SUBMISSION).dontfork();
        let mut modern = builder.clone();
        modern.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        let (ring, deferred) = match modern.build(entries) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (builder.build(entries)?, false),
            ring => (ring?, true),
        };
        Ok(Ring {
            ring,
            flights: InFlight::default(),
            ready: VecDeque::with_capacity((entries * crate::limits::COMPLETIONS_PER_SUBMISSION) as usize),
            names: Vec::new(),
            buffers: Buffers::off(),
            broken: None,
            deferred,
            one_thread: PhantomData,
        })
    }

    /// What the kernel knows.
    pub(super) fn probe(&self) -> io::Result<Probe> {
        let mut probe = Probe::new();
        self.ring.submitter().register_probe(&mut probe)?;
        Ok(probe)
    }

    /// True when completions are never dropped, waits can end by time, and reads can use a file's own position.
    pub(super) fn has_features(&self) -> bool {
        let parameters = self.ring.params();
        parameters.is_feature_nodrop() && parameters.is_feature_ext_arg() && parameters.is_feature_rw_cur_pos()
    }

    /// One sentence on the ring.
    pub(super) fn describe(&self) -> String {
        let (sq, cq) = (self.ring.params().sq_entries(), self.ring.params().cq_entries());
        let flags = if self.deferred { "SINGLE_ISSUER, DEFER_TASKRUN" } else { "plain (kernel before 6.1)" };
        format!("ring of {sq} submissions and {cq} completions, {flags}")
    }

    /// Makes sure that `wanted` splices can wait at the same time, and says what the limit is.
    pub(super) fn raise_workers(&self, wanted: u32) -> String {
        let mut limits = [0, 0];
        let submitter = self.ring.submitter();
        if let Err(error) = submitter.register_iowq_max_workers(&mut limits) {
            return format!("limit of io-wq threads unknown: {error}");
        }
        let found = limits[1];
        if found >= wanted {
            return format!("up to {found} io-wq threads for splices");
        }
        match submitter.register_iowq_max_workers(&mut [0, wanted]) {
            Ok(()) => format!("up to {wanted} io-wq threads for splices, raised from {found}"),
            Err(error) => format!("only {found} io-wq threads for splices: {error}"),
        }
    }

    /// Registers blocks from now on, as far as the limit on locked memory allows, and says how that stands.
    pub(super) fn use_registered_buffers(&mut self) -> String {
        match self.ring.submitter().register_buffers_sparse(Buffers::LIMIT) {
            Ok(()) => {
                self.buffers = Buffers::on();
                format!("blocks are registered when first used, up to {}", Buffers::LIMIT)
            }
            Err(error) => format!("blocks are not registered: {error}"),
        }
    }

    /// Why registering blocks stopped; said once.
    pub(super) fn registration_refused(&mut self) -> Option<Errno> {
        self.buffers.take_refusal()
    }

    /// Queues one operation and keeps the flight until it is complete.
    pub(super) fn start(&mut self, flight: Flight, call: &Call<'_>) {
        let step = call.step();
        self.make_room();
        let (key, flight) = self.flights.insert(step, flight);
        let entry = match (call, &mut flight.work) {
            (Call::Read | Call::Write, work) => file_entry(work, &mut self.buffers, &self.ring),
            (call, work) => entry(work, call),
        };
        self.push(&entry.user_data(key.user_data(step)));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.make_room();
        // SAFETY: every address in `entry` was taken by `entry()` or `file_entry()` from heap memory of a flight that is
        // in `self.flights` now and stays there until `next` has read the completion; see the head of this file. Cancels
        // carry no address.
        let pushed = unsafe { self.ring.submission().push(entry) };
        if pushed.is_err() {
            // `make_room` failed, and only a ring that is beyond use fails there.
            self.broken.get_or_insert(Errno::IO);
        }
    }

    fn make_room(&mut self) {
        while self.broken.is_none() && self.ring.submission().is_full() {
            // On success or not, a full queue was handed over or the ring is broken.
            let _ = self.enter(Wait::No);
        }
    }

    /// Marks every flight covered by `cancel` and asks the kernel to end it.
    pub(super) fn cancel(&mut self, cancel: Cancel) {
        let mut names = std::mem::take(&mut self.names);
        self.flights.mark(cancel, &mut names);
        self.cancel_named(names);
    }

    /// Asks the kernel to end everything of one stream.
    pub(super) fn cancel_stream(&mut self, stream: StreamId) {
        let mut names = std::mem::take(&mut self.names);
        self.flights.of_stream(Some(stream), &mut names);
        self.cancel_named(names);
    }

    fn cancel_named(&mut self, mut names: Vec<u64>) {
        for name in names.drain(..) {
            self.push(&opcode::AsyncCancel::new(name).build().user_data(CANCEL_USER_DATA));
        }
        self.names = names;
    }

    /// Submits what is queued and stays in the kernel as told, but not while completions are already here.
    /// An error means the ring is beyond use.
    pub(super) fn enter(&mut self, wait: Wait) -> Result<(), Errno> {
        if let Some(errno) = self.broken {
            return Err(errno);
        }
        let queued = self.ring.submission().len() as u32;
        let wait = if self.ready.is_empty() { wait } else { Wait::No };
        let timespec = types::Timespec::from(if let Wait::For(time) = wait { time } else { Duration::ZERO });
        let arguments = match wait {
            Wait::For(_) => types::SubmitArgs::new().timespec(&timespec),
            Wait::No | Wait::Forever => types::SubmitArgs::new(),
        };
        let flags = (EnterFlags::GETEVENTS | EnterFlags::EXT_ARG).bits();
        let least = u32::from(wait != Wait::No);
        let submitter = self.ring.submitter();
        // SAFETY: `arguments` is what EXT_ARG announces, and it and `timespec` outlive the call; `queued` entries are in
        // the queue, each of them put there by `push`.
        let entered = unsafe { submitter.enter(queued, least, flags, Some(&arguments)) };
        self.harvest();
        match entered.as_ref().map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)) {
            // EBUSY: the completion queue had overflowed; it was emptied just now.
            Ok(_) | Err(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
            Err(libc::EAGAIN) => {
                // The kernel has no memory for requests at present. Nothing better to do than to let others finish.
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
            Err(errno) => Err(*self.broken.insert(Errno(errno))),
        }
    }

    fn harvest(&mut self) {
        for completion in self.ring.completion() {
            self.ready.push_back((completion.user_data(), completion.result()));
        }
    }

    /// The next flight that came back.
    pub(super) fn next(&mut self) -> Option<Returned> {
        while let Some((user_data, result)) = self.ready.pop_front() {
            let Some((key, step)) = Key::of(user_data) else { continue };
            let Some(flight) = self.flights.remove(key) else {
                debug_assert!(false, "a completion of {key:?} that nobody waits for");
                continue;
            };
            let result = usize::try_from(result).map_err(|_| Errno(-result));
            let accepted = match (step, result) {
                // SAFETY: a successful ACCEPT returns a descriptor that was made for us, and its completion is read once.
                (Step::Accept, Ok(fd)) => Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
                _ => None,
            };
            return Some(Returned { flight, step, result, accepted });
        }
        None
    }

    fn drain(&mut self) {
        let start = Instant::now();
        while self.flights.len() > 0 && start.elapsed() < crate::limits::DRAIN_LIMIT {
            let mut names = std::mem::take(&mut self.names);
            self.flights.of_stream(None, &mut names);
            self.cancel_named(names);
            if self.enter(Wait::For(Duration::from_millis(20))).is_err() {
                return;
            }
            while self.next().is_some() {}
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closing a ring's descriptor is no barrier: operations may go on using memory after it.
        self.drain();
        if self.flights.len() > 0 {
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}

fn raw(fd: BorrowedFd<'_>) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}

fn count(len: usize) -> u32 {
    len.min(MAX_RW_BYTES) as u32
}

/// Builds a submission whose addresses lie in `work`.
fn entry(work: &mut Work, call: &Call<'_>) -> squeue::Entry {
    match (call, work) {
        (Call::Wake(fd), Work::Wake(counter)) => {
            opcode::Read::new(raw(*fd), counter.as_mut_ptr(), count(counter.len())).build()
        }
        (Call::Accept(fd), Work::Accept(_)) => {
            let nobody = std::ptr::null_mut;
            opcode::Accept::new(raw(*fd), nobody(), nobody().cast()).flags(libc::SOCK_CLOEXEC).build()
        }
        (Call::Connect, Work::Connect(connecting)) => {
            let (address, len) = (connecting.raw.as_ptr(), connecting.raw.addr_len());
            opcode::Connect::new(types::Fd(connecting.socket.as_raw_fd()), address.cast(), len).build()
        }
        (Call::Recv { fd, whole }, Work::Recv(receiving)) => {
            let room = &mut receiving.into.bytes_mut()[receiving.filled..];
            let flags = if *whole { libc::MSG_WAITALL } else { 0 };
            opcode::Recv::new(raw(*fd), room.as_mut_ptr(), count(room.len())).flags(flags).build()
        }
        (Call::ReadStream(fd), Work::Recv(receiving)) => {
            let room = &mut receiving.into.bytes_mut()[receiving.filled..];
            opcode::Read::new(raw(*fd), room.as_mut_ptr(), count(room.len())).offset(u64::MAX).build()
        }
        (Call::Arrival(fd), Work::Recv(_)) => opcode::PollAdd::new(raw(*fd), libc::POLLIN as u32).build(),
        (Call::Room(fd), Work::Send(_)) => opcode::PollAdd::new(raw(*fd), libc::POLLOUT as u32).build(),
        (Call::Gather { fd, socket }, Work::Send(outgoing)) => {
            let more = outgoing.load_items();
            send_entry(*fd, *socket, more, &mut outgoing.message)
        }
        (Call::Pour { fd, socket, step }, Work::Send(outgoing)) => pour_entry(*fd, *socket, step, outgoing),
        // A call for another kind of work is a slip in this module that no test would survive.
        _ => unreachable!("a call that does not fit its flight"),
    }
}

fn send_entry(fd: BorrowedFd<'_>, socket: bool, more: bool, message: &mut Message) -> squeue::Entry {
    if socket {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL | if more { libc::MSG_MORE } else { 0 };
        opcode::SendMsg::new(raw(fd), message.header()).flags(flags as u32).build()
    } else {
        let parts = &message.parts;
        opcode::Writev::new(raw(fd), parts.as_ptr(), parts.len() as u32).offset(u64::MAX).build()
    }
}

fn pour_entry(
    fd: BorrowedFd<'_>,
    socket: bool,
    step: &Move,
    outgoing: &mut super::send_queue::Outgoing,
) -> squeue::Entry {
    let source = types::Fd(outgoing.source().map_or(-1, |file| file.fd().as_raw_fd()));
    let pipe = outgoing.pour.as_ref().and_then(|pour| pour.pipe.as_ref());
    let (pipe_read, pipe_write) = pipe.map_or((-1, -1), |pipe| (pipe.read.as_raw_fd(), pipe.write.as_raw_fd()));
    match *step {
        Move::Fill { at, len } => opcode::Splice::new(source, at as i64, types::Fd(pipe_write), -1, count(len))
            .flags(libc::SPLICE_F_NONBLOCK)
            .build(),
        Move::Drain { len, more } => opcode::Splice::new(types::Fd(pipe_read), -1, raw(fd), -1, count(len))
            .flags(if more { libc::SPLICE_F_MORE } else { 0 })
            .build(),
        Move::Across { at, len } => {
            opcode::Splice::new(source, at as i64, raw(fd), -1, count(len)).flags(libc::SPLICE_F_NONBLOCK).build()
        }
        Move::Copy { at, len } => {
            // Without a bounce buffer there is no room, and the kernel is told so.
            let room = outgoing.pour.as_mut().and_then(|pour| pour.bounce.as_deref_mut()).unwrap_or_default();
            let len = len.min(room.len());
            opcode::Read::new(source, room.as_mut_ptr(), count(len)).offset(at).build()
        }
        Move::Push { ref part, more } => {
            debug_assert!(!part.is_empty(), "nothing to push");
            outgoing.load_bounce();
            send_entry(fd, socket, more, &mut outgoing.message)
        }
        Move::Pad { len } => {
            outgoing.load_zeros(len);
            send_entry(fd, socket, false, &mut outgoing.message)
        }
        Move::Room => opcode::PollAdd::new(raw(fd), libc::POLLOUT as u32).build(),
    }
}

/// Builds a file read or write, on a registered buffer where there is one.
fn file_entry(work: &mut Work, buffers: &mut Buffers, ring: &IoUring) -> squeue::Entry {
    match work {
        Work::Read(reading) => {
            let fd = types::Fd(reading.open.fd().as_raw_fd());
            let index = buffers.index(reading.into.number(), reading.into.memory(), &RingTable(ring));
            let room = &mut reading.into.bytes_mut()[reading.done..reading.len];
            let (at, len) = (reading.offset + reading.done as u64, count(room.len()));
            match index {
                Some(index) => opcode::ReadFixed::new(fd, room.as_mut_ptr(), len, index).offset(at).build(),
                None => opcode::Read::new(fd, room.as_mut_ptr(), len).offset(at).build(),
            }
        }
        Work::Write(writing) => {
            let fd = types::Fd(writing.open.fd().as_raw_fd());
            let rest = &writing.from.bytes()[writing.done..];
            let (at, len) = (writing.offset + writing.done as u64, count(rest.len()));
            match buffers.known(writing.from.block_number()) {
                Some(index) => opcode::WriteFixed::new(fd, rest.as_ptr(), len, index).offset(at).build(),
                None => opcode::Write::new(fd, rest.as_ptr(), len).offset(at).build(),
            }
        }
        // As in `entry`.
        _ => unreachable!("a file call that does not fit its flight"),
    }
}

/// The ring's table of registered buffers.
struct RingTable<'a>(&'a IoUring);

impl Table for RingTable<'_> {
    fn register(&self, index: u16, bytes: &[u8]) -> Result<(), Errno> {
        let buffer = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the kernel pins these pages, so a fixed read can write nowhere else, whatever becomes of the memory. That
        // an index is used only for the block it was registered for is kept by `Buffers`: it goes by the block's number.
        unsafe { self.0.submitter().register_buffers_update(u32::from(index), &[buffer], None) }.map_err(Errno::from)
    }
}
