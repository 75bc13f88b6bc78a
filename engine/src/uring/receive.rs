//! The read half: receives, one in the kernel per stream, others in order behind it.

use super::inflight::{Flight, Receiving, Step, Work};
use super::slots::Kind;
use super::sys::Call;
use super::{Uring, files};
use crate::backend::{Cancel, Completion, Errno, Output, StreamId, Token};
use crate::block::Block;

impl Uring {
    pub(super) fn start_recv(
        &mut self,
        token: Token,
        stream: StreamId,
        into: Block,
        at_least: usize,
        out: &mut Vec<Completion>,
    ) {
        let receiving = Receiving { token, stream, into, at_least, filled: 0 };
        let refused = match self.streams.open(stream) {
            Err(errno) => Some(errno),
            Ok(open) if open.source == Kind::Listener => Some(Errno::INVALID),
            Ok(_) if at_least == 0 || at_least > receiving.into.capacity() => Some(Errno::INVALID),
            Ok(open) => open.read_failed,
        };
        match refused {
            Some(errno) => out.push(receiving.end(Err(errno))),
            None => self.queue_recv(receiving),
        }
    }

    fn queue_recv(&mut self, receiving: Receiving) {
        let Some(stream) = self.streams.slot(receiving.stream) else { return };
        if stream.receiving {
            stream.receives.push_back(receiving);
        } else {
            stream.receiving = true;
            self.launch_recv(receiving, false);
        }
    }

    /// Gives a receive to the kernel, or, after an EAGAIN, waits for bytes first: descriptions that are not ours may be
    /// non-blocking, and then the kernel does not wait by itself.
    fn launch_recv(&mut self, receiving: Receiving, poll: bool) {
        let id = receiving.stream;
        let whole = receiving.at_least == receiving.into.capacity();
        let Some(stream) = self.streams.slot(id) else { return };
        stream.busy += 1;
        let fd = stream.read_fd();
        let call = match stream.source {
            _ if poll => Call::Arrival(fd),
            Kind::Socket => Call::Recv { fd, whole },
            _ => Call::ReadStream(fd),
        };
        self.ring.start(Flight::new(Some(id), Work::Recv(receiving)), &call);
    }

    pub(super) fn on_recv(
        &mut self,
        mut receiving: Receiving,
        cancels: &[Cancel],
        step: Step,
        result: Result<usize, Errno>,
        out: &mut Vec<Completion>,
    ) {
        let id = receiving.stream;
        let Some(stream) = self.streams.slot(id) else { return };
        let unwanted = !cancels.is_empty() || stream.closing;
        let outcome = match result {
            // Ready, closed or in error: the read itself will tell.
            Ok(_) if step == Step::Arrival => None,
            Ok(0) => Some(Ok(Output::Bytes(receiving.filled))),
            Ok(n) => {
                receiving.filled += n;
                (receiving.filled >= receiving.at_least).then_some(Ok(Output::Bytes(receiving.filled)))
            }
            Err(errno) if files::is_again(errno) => None,
            Err(Errno::CANCELLED) if unwanted => None,
            Err(errno) => Some(Err(errno)),
        };
        let outcome = match outcome {
            None if unwanted => {
                if receiving.filled > 0 {
                    // Bytes were taken off the stream that nobody will see: what follows makes no sense any more.
                    stream.read_failed.get_or_insert(Errno::CANCELLED);
                }
                Err(Errno::CANCELLED)
            }
            None => return self.launch_recv(receiving, result == Err(files::AGAIN)),
            Some(outcome) => outcome,
        };
        if let Err(errno) = outcome
            && errno != Errno::CANCELLED
        {
            stream.read_failed.get_or_insert(errno);
        }
        out.push(receiving.end(outcome));
        self.next_recv(id, out);
    }

    /// The receive that had the kernel is done; the next one follows, or all of them end.
    fn next_recv(&mut self, id: StreamId, out: &mut Vec<Completion>) {
        let Some(stream) = self.streams.slot(id) else { return };
        stream.receiving = false;
        if let Some(errno) = stream.read_failed {
            out.extend(stream.receives.drain(..).map(|waiting| waiting.end(Err(errno))));
        } else if let Some(next) = stream.receives.pop_front() {
            stream.receiving = true;
            self.launch_recv(next, false);
        }
    }
}
