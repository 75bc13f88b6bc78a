//! The io_uring backend: operations become submissions of one ring, one system call a turn.
//!
//! Owns the ring, the stream table and the queues in front of the kernel. Does not own files: opening, publishing and
//! everything about names is done by [`crate::offload`], whose open files are read, written and spliced here.
//!
//! ```text
//! submissions --start--> send queues --gather/pour--> Ring::start --> kernel
//!                   \--> offload threads                                |
//! completions <-----------------------------------------+---- Ring::next, waker
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `inflight` | what the kernel has, and whose it is |
//! | `sys` | the ring; all code here that the compiler cannot check |
//! | `send_queue`, `splice` | order and progress of one stream's writes; no calls |
//! | `slots`, `pipes`, `buffers` | tables: streams, leased pipes, registered blocks |
//! | `send`, `receive`, `files`, `connect` | the handlers: what a completion leads to |
//! | `probe` | can this work here, and if not, why |
//!
//! SIGPIPE must be ignored by the process, because writing to a pipe or splicing to a socket raises it. Rust's runtime
//! does that before `main`.

#[forbid(unsafe_code)]
mod buffers;
#[forbid(unsafe_code)]
mod connect;
#[forbid(unsafe_code)]
mod files;
#[forbid(unsafe_code)]
mod inflight;
#[forbid(unsafe_code)]
mod pipes;
#[forbid(unsafe_code)]
mod probe;
#[forbid(unsafe_code)]
mod receive;
#[forbid(unsafe_code)]
mod send;
#[forbid(unsafe_code)]
mod send_queue;
#[forbid(unsafe_code)]
mod slots;
#[forbid(unsafe_code)]
mod splice;
mod sys;
#[cfg(test)]
#[forbid(unsafe_code)]
mod tests;

pub use probe::{Unavailable, probe};

use crate::backend::{
    Attach, Backend, Broken, Cancel, Completion, DirId, Errno, Features, Op, OpKind, Output, StreamId, Submissions,
    Time, Waker,
};
use crate::doze::Doze;
use crate::limits;
use crate::offload::{BlockStore, Offload, Root};
use inflight::{Flight, Work};
use pipes::Pipes;
use rustix::event::{EventfdFlags, eventfd};
use send_queue::{Content, FileRange, Queued};
use slots::{Kind, Stream, Streams};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use sys::{Call, Returned, Ring, Wait};

/// What can be chosen when a backend is made. The default is what the program uses; tests turn things off.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Submission queue entries.
    pub entries: u32,
    /// Leased pipes at most; 0 copies file bytes to sockets.
    pub pipes: usize,
    /// Splice at all; false copies file bytes everywhere.
    pub splice: bool,
    /// Registers blocks with the ring, as far as RLIMIT_MEMLOCK allows.
    pub registered: bool,
    /// Threads for file-system calls.
    pub offload_threads: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            entries: limits::RING_ENTRIES,
            pipes: limits::LEASED_PIPES,
            splice: true,
            registered: true,
            offload_threads: limits::OFFLOAD_THREADS,
        }
    }
}

/// The io_uring backend of one worker thread.
pub struct Uring {
    // Dropped first: nothing below may go while the kernel still has operations.
    ring: Ring,
    streams: Streams,
    pipes: Pipes,
    /// Bounce buffers not in use.
    bounces: Vec<Box<[u8]>>,
    /// Streams whose send queue is to be looked at.
    dirty: Vec<StreamId>,
    offload: Offload,
    alarm: Arc<Alarm>,
    woken: bool,
    splice: bool,
    features: Features,
    started: Instant,
}

impl Uring {
    /// A backend on this thread with the default options.
    pub fn new() -> Result<Uring, Unavailable> {
        Uring::with(Options::default())
    }

    /// A backend on this thread.
    pub fn with(options: Options) -> Result<Uring, Unavailable> {
        let mut ring = Ring::new(probe::entries(options.entries)).map_err(|error| probe::refused(&error))?;
        probe::check(&mut ring)?;
        let alarm = Alarm::new().map_err(|errno| probe::refused(&errno.into()))?;
        let offload =
            Offload::new(options.offload_threads, alarm.collecting()).map_err(|error| probe::refused(&error))?;
        let mut pipes = Pipes::new(if options.splice { options.pipes } else { 0 });
        // A limit above 2^32 is no limit.
        let splices =
            u32::try_from(options.pipes).unwrap_or(u32::MAX).saturating_mul(2).saturating_add(limits::OTHER_SPLICES);
        let mut notes = vec![ring.describe(), pipes.describe(), ring.raise_workers(splices)];
        notes.push(if options.registered {
            ring.use_registered_buffers()
        } else {
            "blocks are not registered: not wanted".to_owned()
        });
        ring.start(Flight::new(None, Work::Wake(Box::default())), &Call::Wake(alarm.counter.as_fd()));
        Ok(Uring {
            ring,
            streams: Streams::default(),
            pipes,
            bounces: Vec::new(),
            dirty: Vec::new(),
            offload,
            alarm,
            woken: false,
            splice: options.splice,
            features: Features { backend: "io_uring", notes },
            started: Instant::now(),
        })
    }

    fn start(&mut self, op: Op, out: &mut Vec<Completion>) {
        let Op { token, kind } = op;
        match kind {
            OpKind::Accept { listener } => self.start_accept(token, listener, out),
            OpKind::Listen { address } => self.start_listen(token, address, out),
            OpKind::Connect { address } => self.start_connect(token, address, out),
            OpKind::CloseStream { stream } => self.start_close(token, stream, out),
            OpKind::Recv { stream, into, at_least } => self.start_recv(token, stream, into, at_least, out),
            OpKind::Read { file, offset, into, len } => self.start_read(token, file, offset, into, len, out),
            OpKind::Write { file, offset, from } => self.start_write(token, file, offset, from, out),
            OpKind::Send { stream, head, body } => {
                self.enqueue(Queued::new(token, stream, Content::Bytes { head, body }), out);
            }
            OpKind::SendFile { stream, head, file, offset, len } => {
                // Kept open from here on, so that a Close may follow at once.
                let source = self.offload.file(file).cloned();
                let range = FileRange { head, file, offset, len, source };
                self.enqueue(Queued::new(token, stream, Content::File(range)), out);
            }
            OpKind::Shutdown { stream } => self.enqueue(Queued::new(token, stream, Content::End), out),
            kind => self.offload.submit(Op { token, kind }, out),
        }
    }

    fn cancel(&mut self, cancel: Cancel, out: &mut Vec<Completion>) {
        self.ring.cancel(cancel);
        for (id, stream) in self.streams.iter_mut() {
            stream.queue.cancel(cancel, out);
            // Order among receives of one stream is kept: they are taken off the front and put back behind.
            for _ in 0..stream.receives.len() {
                match stream.receives.pop_front() {
                    Some(waiting) if cancel.covers(waiting.token) => out.push(waiting.end(Err(Errno::CANCELLED))),
                    waiting => stream.receives.extend(waiting),
                }
            }
            if stream.queue.failed.is_some() {
                self.dirty.push(id);
            }
        }
        if let Cancel::Session(session) = cancel {
            self.close_listeners(session, out);
        }
        self.offload.cancel(cancel, out);
    }

    fn on_return(&mut self, returned: Returned, out: &mut Vec<Completion>) {
        let Returned { flight, step, result, accepted } = returned;
        let Flight { stream, cancels, work } = flight;
        match work {
            Work::Wake(counter) => self.on_wake(counter),
            Work::Accept(op) => self.on_accept(op, !cancels.is_empty(), result, accepted, out),
            Work::Connect(connecting) => self.on_connect(connecting, !cancels.is_empty(), result, out),
            Work::Recv(receiving) => self.on_recv(receiving, &cancels, step, result, out),
            Work::Read(reading) => self.on_read(reading, !cancels.is_empty(), result, out),
            Work::Write(writing) => self.on_write(writing, !cancels.is_empty(), result, out),
            Work::Send(outgoing) => {
                if let Some(id) = stream {
                    self.on_send(id, outgoing, &cancels, step, result, out);
                }
            }
        }
        if let Some(id) = stream {
            self.settle(id, out);
        }
    }

    /// The thread was woken: why, is found by whoever looks.
    fn on_wake(&mut self, counter: Box<[u8; 8]>) {
        self.ring.start(Flight::new(None, Work::Wake(counter)), &Call::Wake(self.alarm.counter.as_fd()));
    }

    /// A flight of this stream came back and was dealt with; a stream that waits only for that is closed now.
    fn settle(&mut self, id: StreamId, out: &mut Vec<Completion>) {
        let Some(stream) = self.streams.slot(id) else { return };
        stream.busy -= 1;
        self.close_if_idle(id, out);
    }

    fn close_if_idle(&mut self, id: StreamId, out: &mut Vec<Completion>) {
        if self.streams.slot(id).is_none_or(|stream| stream.busy > 0 || !stream.closing) {
            return;
        }
        if let Some(Stream { closer: Some(op), .. }) = self.streams.remove(id) {
            out.push(Completion { op, result: Ok(Output::Done) });
        }
    }

    /// The last look before a stay in the kernel that may last; whoever leaves something after it wakes this thread.
    fn has_news_before_sleep(&mut self) -> bool {
        self.alarm.doze.lie_down();
        self.woken |= self.alarm.take_asked();
        self.woken || (self.offload.in_flight() > 0 && self.offload.has_finished())
    }

    /// How long the next stay in the kernel may be.
    fn wait(&self, ready: bool, deadline: Option<Time>) -> Wait {
        match deadline {
            _ if ready => Wait::No,
            None => Wait::Forever,
            Some(deadline) => match deadline.0.saturating_sub(self.now().0) {
                0 => Wait::No,
                left => Wait::For(Duration::from_nanos(left)),
            },
        }
    }
}

impl Backend for Uring {
    fn submit_and_wait(
        &mut self,
        submissions: &mut Submissions,
        completions: &mut Vec<Completion>,
        deadline: Option<Time>,
    ) -> Result<(), Broken> {
        let before = completions.len();
        // Cancels last: they cover ops of the same turn, of which no byte has left then. Close and CloseStream are
        // carried out all the same.
        for op in submissions.ops.drain(..) {
            self.start(op, completions);
        }
        for cancel in submissions.cancels.drain(..) {
            self.cancel(cancel, completions);
        }
        let mut entered = false;
        loop {
            self.pump(completions);
            if self.offload.in_flight() > 0 {
                self.offload.drain(completions);
            }
            self.woken |= self.alarm.take_asked();
            let mut wait = self.wait(completions.len() > before || self.woken, deadline);
            if entered && wait == Wait::No {
                break;
            }
            if wait != Wait::No && self.has_news_before_sleep() {
                wait = Wait::No;
            }
            let stayed = self.ring.enter(wait);
            self.alarm.doze.get_up();
            stayed.map_err(|errno| Broken { what: "io_uring_enter", errno })?;
            entered = true;
            while let Some(returned) = self.ring.next() {
                self.on_return(returned, completions);
            }
        }
        self.woken = false;
        if let Some(errno) = self.ring.registration_refused() {
            self.features.notes.push(format!("no further blocks are registered: {errno} (ulimit -l)"));
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.alarm.asking()
    }

    fn features(&self) -> &Features {
        &self.features
    }

    fn now(&self) -> Time {
        // 584 years of nanoseconds fit.
        Time(self.started.elapsed().as_nanos() as u64)
    }
}

impl Attach for Uring {
    fn add_stream(&mut self, read: OwnedFd, write: Option<OwnedFd>, ours: bool) -> Result<StreamId, Errno> {
        Ok(self.streams.add(Stream::new(read, write, ours)?))
    }

    fn add_listener(&mut self, listener: std::net::TcpListener) -> Result<StreamId, Errno> {
        Ok(self.streams.add(Stream::listener(listener.into(), None)?))
    }

    fn add_root(&mut self, root: Root) -> DirId {
        self.offload.add_root(root)
    }

    fn add_store(&mut self, store: BlockStore) -> DirId {
        self.offload.add_store(store)
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // A thread of the kernel may be waiting for a peer to take bytes; this ends that wait. Sockets that others share
        // are left alone: their waits end by `slots::WORKER_HOLD` or by the cancel that dropping the ring sends.
        for (_, stream) in self.streams.iter_mut() {
            if stream.busy > 0 && stream.ours && stream.sink == Kind::Socket {
                let _ = stream.write_fd().map(|fd| rustix::net::shutdown(fd, rustix::net::Shutdown::Both));
            }
        }
    }
}

/// Ends a stay in the kernel from another thread.
struct Alarm {
    counter: OwnedFd,
    doze: Doze,
    /// Somebody outside wants `submit_and_wait` to return.
    asked: AtomicBool,
}

impl Alarm {
    fn new() -> Result<Arc<Alarm>, rustix::io::Errno> {
        let counter = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Alarm { counter, doze: Doze::default(), asked: AtomicBool::new(false) }))
    }

    /// For those who want `submit_and_wait` to return.
    fn asking(self: &Arc<Alarm>) -> Waker {
        let alarm = self.clone();
        Waker(Arc::new(move || {
            alarm.asked.store(true, Ordering::Release);
            alarm.ring();
        }))
    }

    /// For those whose results `submit_and_wait` collects.
    fn collecting(self: &Arc<Alarm>) -> Waker {
        let alarm = self.clone();
        Waker(Arc::new(move || alarm.ring()))
    }

    /// True once for any number of requests to return.
    fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::AcqRel)
    }

    fn ring(&self) {
        if self.doze.must_wake() {
            // The counter would have to reach 2^64 for this to fail or wait.
            let _ = rustix::io::write(&self.counter, &1u64.to_ne_bytes());
        }
    }
}
