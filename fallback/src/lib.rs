//! The backend for systems without io_uring: epoll on Linux, kqueue on macOS and the BSDs, both through mio.
//!
//! Owns streams and the wait. Files are [`haul_engine::offload`]'s; this crate reads them itself only to send them. No
//! `unsafe`: system calls go through rustix.
//!
//! ```text
//! submit_and_wait:  start operations -> carry out cancels -> round of steps -> wait for events -> round .. -> return
//!                                                               |                 |
//!                     streams (sender, receiver, connection) ---+                 +--- offload, helper threads (signal)
//! ```
//!
//! The contract wants operations that complete; the kernel here only says when a descriptor is ready. So each stream
//! keeps its queued operations ([`sender`], [`receiver`]), and each direction knows whether it is ready and which calls
//! suit it ([`half`]): readiness is edge-triggered, assumed until a call would have to wait.
//!
//! ```
//! # use haul_engine::backend::{Attach, Backend, OpKind, SessionId, Submissions, Token};
//! let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
//! let mut poll = haul_fallback::Poll::new().unwrap();
//! let stream = poll.add_stream(near.into(), None, true).unwrap();
//! let token = Token { session: SessionId(1), transfer: 0, part: 0 };
//! let mut submissions = Submissions::default();
//! let send = OpKind::Send { stream, head: b"hello".iter().copied().collect(), body: Default::default() };
//! submissions.push(token, send);
//! let mut completions = Vec::new();
//! poll.submit_and_wait(&mut submissions, &mut completions, None).unwrap();
//! assert!(completions[0].result.is_ok());
//! # drop(far);
//! ```

#![forbid(unsafe_code)]

mod connection;
mod half;
mod helper;
mod limits;
mod receiver;
mod sender;
mod signal;
mod source;
mod streams;
mod sys;

use half::Surroundings;
use haul_engine::backend::{
    Attach, Backend, Broken, Completion, DirId, Errno, Features, StreamId, Submissions, Time, Waker,
};
use haul_engine::limits::OFFLOAD_THREADS;
use haul_engine::offload::{BlockStore, Offload, Root};
use signal::{SIGNAL, Signal};
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streams::Streams;

/// The readiness backend. See the crate's page.
///
/// Dropping it drops what is queued and closes every stream; a helper thread that sits in a blocking read or write of
/// its own buffer is left behind and ends when that returns.
pub struct Poll {
    // In this order: streams leave the poller, then the offload threads end, then the poller closes.
    streams: Streams,
    offload: Offload,
    signal: Arc<Signal>,
    waker: Waker,
    features: Features,
    events: mio::Events,
    poller: mio::Poll,
    created: Instant,
}

impl Poll {
    /// A backend without streams or roots.
    pub fn new() -> Result<Poll, Broken> {
        Poll::build(sys::CALLS_CAN_DECLINE_TO_WAIT)
    }

    /// As [`Poll::new`] on a system whose calls cannot be told not to wait, so that what macOS does with streams that
    /// are not ours can be tested on Linux.
    #[doc(hidden)]
    pub fn with_helper_threads() -> Result<Poll, Broken> {
        Poll::build(false)
    }

    fn build(declining: bool) -> Result<Poll, Broken> {
        let broken = |what| move |error: io::Error| Broken { what, errno: error.into() };
        let poller = mio::Poll::new().map_err(broken("Cannot create the event queue"))?;
        let registry = poller.registry().try_clone().map_err(broken("Cannot share the event queue"))?;
        let signal = Signal::new(&registry).map_err(broken("Cannot create the wake-up event"))?;
        let offload = Offload::new(OFFLOAD_THREADS, signal.collecting())
            .map_err(broken("Cannot start the threads for file operations"))?;
        Ok(Poll {
            streams: Streams::new(Surroundings { registry, signal: Arc::clone(&signal), declining }),
            offload,
            waker: signal.asking(),
            signal,
            features: features(declining),
            events: mio::Events::with_capacity(limits::EVENTS),
            poller,
            created: Instant::now(),
        })
    }

    /// Takes what the submissions hold. Cancels come last, because they cover operations of the same turn; nothing has
    /// been sent or received by then, so those end without a trace, and Close and CloseStream are done already.
    fn start(&mut self, submissions: &mut Submissions, completions: &mut Vec<Completion>) {
        for op in submissions.ops.drain(..) {
            if Streams::concerns(&op.kind) {
                self.streams.start(op, &self.offload, completions);
            } else {
                self.offload.submit(op, completions);
            }
        }
        for cancel in submissions.cancels.drain(..) {
            self.streams.cancel(cancel, completions);
            self.offload.cancel(cancel, completions);
        }
    }

    /// Takes events, after waiting for them at most `timeout`, and what other threads have finished.
    fn collect(&mut self, mut timeout: Option<Duration>, completions: &mut Vec<Completion>) -> Result<(), Broken> {
        if timeout != Some(Duration::ZERO) && (self.signal.has_news_before_sleep() || self.offload.has_finished()) {
            timeout = Some(Duration::ZERO);
        }
        let polled = self.poller.poll(&mut self.events, timeout);
        self.signal.get_up();
        match polled {
            Ok(()) => {}
            // A signal; the caller looks at the time and comes back. There are no events then.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(Broken { what: "Cannot wait for events", errno: error.into() }),
        }
        for event in &self.events {
            if event.token() == SIGNAL {
                continue;
            }
            let readable = event.is_readable() || event.is_read_closed() || event.is_error();
            let writable = event.is_writable() || event.is_write_closed() || event.is_error();
            // Tokens other than the signal's are slot numbers.
            self.streams.event(event.token().0 as u32, readable, writable);
        }
        let Poll { streams, signal, .. } = self;
        signal.take_finished(|slot| streams.event(slot, true, true));
        if self.offload.in_flight() > 0 {
            self.offload.drain(completions);
        }
        Ok(())
    }
}

impl Backend for Poll {
    fn submit_and_wait(
        &mut self,
        submissions: &mut Submissions,
        completions: &mut Vec<Completion>,
        deadline: Option<Time>,
    ) -> Result<(), Broken> {
        let before = completions.len();
        self.start(submissions, completions);
        self.streams.round(completions);
        // Events are looked at in every turn, also when there is enough to do without: a stream that is always ready
        // must not keep the others from being noticed.
        loop {
            let timeout = if completions.len() > before || !self.streams.is_idle() {
                Some(Duration::ZERO)
            } else {
                deadline.map(|deadline| Duration::from_nanos(deadline.0.saturating_sub(self.now().0)))
            };
            self.collect(timeout, completions)?;
            self.streams.round(completions);
            let late = deadline.is_some_and(|deadline| self.now() >= deadline);
            if self.signal.take_asked() || late || completions.len() > before {
                return Ok(());
            }
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn features(&self) -> &Features {
        &self.features
    }

    fn now(&self) -> Time {
        // 584 years fit.
        Time(u64::try_from(self.created.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Attach for Poll {
    fn add_stream(&mut self, read: OwnedFd, write: Option<OwnedFd>, ours: bool) -> Result<StreamId, Errno> {
        let (id, has_helper) = self.streams.add_stream(read, write, ours)?;
        let note = "A stream that can only be waited for by blocking is read and written by threads of its own.";
        if has_helper && !self.features.notes.iter().any(|known| known == note) {
            self.features.notes.push(note.to_owned());
        }
        Ok(id)
    }

    fn add_listener(&mut self, listener: TcpListener) -> Result<StreamId, Errno> {
        self.streams.add_listener(listener, None)
    }

    fn add_root(&mut self, root: Root) -> DirId {
        self.offload.add_root(root)
    }

    fn add_store(&mut self, store: BlockStore) -> DirId {
        self.offload.add_store(store)
    }
}

fn features(declining: bool) -> Features {
    let backend = if cfg!(any(target_os = "linux", target_os = "android")) { "epoll" } else { "kqueue" };
    let files = if sys::HAS_SENDFILE {
        "File bytes go to streams by sendfile(2); to streams shared with other processes by pread and write."
    } else {
        "File bytes go to streams by pread and write."
    };
    let shared = if declining {
        "Streams shared with other processes keep their blocking mode: MSG_DONTWAIT on sockets, RWF_NOWAIT on pipes."
    } else {
        "Streams shared with other processes keep their blocking mode and have threads of their own."
    };
    let offload = format!("File operations run on {OFFLOAD_THREADS} threads.");
    Features { backend, notes: vec![files.to_owned(), shared.to_owned(), offload] }
}
