//! What the contract leaves to each backend: connections, files and terminals as streams, and whose O_NONBLOCK is whose.

use haul_engine::backend::{
    Attach, Backend, Cancel, Completion, Errno, Op, OpKind, OpenMode, Output, Place, SessionId, StreamId, Submissions,
    Token,
};
use haul_engine::block::{Class, Pool, Slices};
use haul_engine::offload::Root;
use haul_engine::wire::path::{RequestPath, Target};
use haul_fallback::Poll;
use rustix::fs::{OFlags, fcntl_getfl};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

const SESSION: SessionId = SessionId(7);

/// A backend, a pool, and one operation after the other.
struct Bench {
    poll: Poll,
    pool: Pool,
    submissions: Submissions,
    completions: Vec<Completion>,
    next: u32,
}

impl Bench {
    fn new() -> Bench {
        let poll = Poll::new().unwrap();
        Bench { poll, pool: Pool::new(8, 8), submissions: Submissions::default(), completions: Vec::new(), next: 0 }
    }

    fn submit(&mut self, kind: OpKind) -> u32 {
        self.next += 1;
        self.submissions.push(Token { session: SESSION, transfer: self.next, part: 0 }, kind);
        self.next
    }

    /// Waits without limit: a test that hangs here has found a lost event.
    fn wait(&mut self, part: u32) -> Completion {
        loop {
            let found = self.completions.iter().position(|completion| completion.op.token.transfer == part);
            if let Some(found) = found {
                return self.completions.remove(found);
            }
            self.poll.submit_and_wait(&mut self.submissions, &mut self.completions, None).unwrap();
        }
    }

    fn run(&mut self, kind: OpKind) -> Result<Output, Errno> {
        let part = self.submit(kind);
        self.wait(part).result
    }

    /// One turn that waits for `milliseconds` at most.
    fn turn(&mut self, milliseconds: u64) {
        let deadline = self.poll.now().after(milliseconds * 1_000_000);
        self.poll.submit_and_wait(&mut self.submissions, &mut self.completions, Some(deadline)).unwrap();
    }

    fn cancel(&mut self, part: u32) {
        self.submissions.cancel(Cancel::Transfer(SESSION, part));
    }

    fn send(&mut self, stream: StreamId, bytes: &[u8]) -> u32 {
        self.submit(OpKind::Send { stream, head: bytes.iter().copied().collect(), body: Slices::new() })
    }

    fn recv(&mut self, stream: StreamId, at_least: usize) -> u32 {
        let into = self.pool.take_reserved(Class::Small).unwrap();
        self.submit(OpKind::Recv { stream, into, at_least })
    }

    fn received(&mut self, part: u32) -> Result<Vec<u8>, Errno> {
        let Completion { op: Op { kind, .. }, result } = self.wait(part);
        match (kind, result?) {
            (OpKind::Recv { into, .. }, Output::Bytes(count)) => Ok(into.bytes()[..count].to_vec()),
            other => panic!("not a Recv: {other:?}"),
        }
    }
}

fn accepted(result: Result<Output, Errno>) -> StreamId {
    match result {
        Ok(Output::Accepted { stream, .. }) => stream,
        other => panic!("no connection: {other:?}"),
    }
}

#[test]
fn a_connection_is_made_and_accepted_and_carries_bytes_both_ways() {
    let mut bench = Bench::new();
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let listener = bench.poll.add_listener(socket).unwrap();
    for _ in 0..3 {
        let accept = bench.submit(OpKind::Accept { listener });
        let connect = bench.submit(OpKind::Connect { address });
        let near = accepted(bench.wait(accept).result);
        let far = accepted(bench.wait(connect).result);
        for (from, to) in [(near, far), (far, near)] {
            bench.send(from, b"hello");
            let part = bench.recv(to, 5);
            assert_eq!(bench.received(part).unwrap(), b"hello");
        }
        assert!(bench.run(OpKind::Shutdown { stream: near }).is_ok());
        let part = bench.recv(far, 1);
        assert_eq!(bench.received(part).unwrap(), b"");
        for stream in [near, far] {
            assert!(bench.run(OpKind::CloseStream { stream }).is_ok());
        }
    }
}

#[test]
fn a_refused_connection_says_so_and_a_cancelled_accept_ends() {
    let mut bench = Bench::new();
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    let refused = rustix::io::Errno::CONNREFUSED.raw_os_error();
    assert_eq!(bench.run(OpKind::Connect { address }).err(), Some(Errno(refused)));

    let listener = bench.poll.add_listener(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    let parts = [bench.submit(OpKind::Accept { listener }), bench.submit(OpKind::Accept { listener })];
    bench.turn(1);
    bench.cancel(parts[0]);
    assert_eq!(bench.wait(parts[0]).result.err(), Some(Errno::CANCELLED));
    assert!(bench.run(OpKind::CloseStream { stream: listener }).is_ok());
    assert_eq!(bench.wait(parts[1]).result.err(), Some(Errno::CANCELLED));
    assert_eq!(bench.run(OpKind::Accept { listener }).err(), Some(Errno::STALE_ID));
}

#[test]
fn an_unfinished_connect_can_be_cancelled() {
    let mut bench = Bench::new();
    // A full backlog leaves the next connection without an answer.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let parts: Vec<u32> = (0..8).map(|_| bench.submit(OpKind::Connect { address })).collect();
    bench.turn(20);
    bench.turn(20);
    for &part in &parts {
        bench.cancel(part);
    }
    let ends: Vec<_> = parts.into_iter().map(|part| bench.wait(part).result.err()).collect();
    assert!(ends.contains(&Some(Errno::CANCELLED)), "{ends:?}");
}

#[test]
fn regular_files_serve_as_a_stream() {
    let mut bench = Bench::new();
    let content: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(&content).unwrap();
    input.rewind().unwrap();
    let mut output = tempfile::tempfile().unwrap();
    let theirs = output.try_clone().unwrap();
    let stream = bench.poll.add_stream(input.into(), Some(theirs.into()), false).unwrap();
    let mut got = Vec::new();
    loop {
        let part = bench.recv(stream, 1);
        let bytes = bench.received(part).unwrap();
        if bytes.is_empty() {
            break;
        }
        let sends: Vec<u32> = bytes.chunks(10_000).map(|chunk| bench.send(stream, chunk)).collect();
        assert!(sends.into_iter().all(|part| bench.wait(part).result.is_ok()));
        got.extend(bytes);
    }
    assert_eq!(got, content);
    // What a completed Send took is in the file, not in a buffer of ours.
    let mut written = Vec::new();
    output.rewind().unwrap();
    output.read_to_end(&mut written).unwrap();
    assert_eq!(written, content);
    assert!(bench.run(OpKind::Shutdown { stream }).is_ok());
    assert!(bench.poll.features().notes.iter().any(|note| note.contains("threads of its own")));
}

#[test]
fn only_descriptions_that_are_ours_become_non_blocking() {
    for ours in [false, true] {
        let mut bench = Bench::new();
        let (near, _far) = UnixStream::pair().unwrap();
        let (pipe_read, _write) = std::io::pipe().unwrap();
        let (_read, pipe_write) = std::io::pipe().unwrap();
        // Duplicates share the description, as a process does that inherited it.
        let watched = [rustix::io::dup(&near), rustix::io::dup(&pipe_read), rustix::io::dup(&pipe_write)];
        let streams = [
            bench.poll.add_stream(near.into(), None, ours).unwrap(),
            bench.poll.add_stream(pipe_read.into(), Some(pipe_write.into()), ours).unwrap(),
        ];
        for stream in streams {
            let part = bench.send(stream, b"x");
            assert!(bench.wait(part).result.is_ok());
            bench.recv(stream, 1);
            bench.turn(1);
        }
        for fd in watched {
            let flags = fcntl_getfl(fd.unwrap()).unwrap();
            assert_eq!(flags.contains(OFlags::NONBLOCK), ours);
        }
    }
}

#[test]
fn bytes_a_cancelled_recv_had_taken_go_to_the_next() {
    let mut bench = Bench::new();
    let (near, mut far) = UnixStream::pair().unwrap();
    let stream = bench.poll.add_stream(near.into(), None, true).unwrap();
    let part = bench.recv(stream, 10);
    far.write_all(b"one").unwrap();
    bench.turn(1);
    bench.cancel(part);
    assert_eq!(bench.received(part).err(), Some(Errno::CANCELLED));
    let part = bench.recv(stream, 6);
    far.write_all(b"two").unwrap();
    assert_eq!(bench.received(part).unwrap(), b"onetwo");
}

#[test]
fn a_reset_is_an_error_once_and_ever_after() {
    let mut bench = Bench::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let stream = bench.poll.add_stream(near.into(), None, true).unwrap();
    let part = bench.send(stream, b"unread");
    assert!(bench.wait(part).result.is_ok());
    let part = bench.recv(stream, 1);
    bench.turn(1);
    // Closed with unread bytes, a TCP socket sends a reset.
    drop(far);
    let reset = bench.received(part).err();
    assert!(reset.is_some());
    let part = bench.recv(stream, 1);
    assert_eq!(bench.received(part).err(), reset);
}

/// The kernel's table shows on each socket which timer runs and when it ends; 02 is keepalive
/// (Documentation/networking/proc_net_tcp.rst).
#[cfg(target_os = "linux")]
#[test]
fn both_ends_of_a_connection_are_kept_alive() {
    let mut bench = Bench::new();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (listener, address) = match bench.run(OpKind::Listen { address }) {
        Ok(Output::Listening { stream, address }) => (stream, address),
        other => panic!("{other:?}"),
    };
    let parts = [bench.submit(OpKind::Accept { listener }), bench.submit(OpKind::Connect { address })];
    for part in parts {
        accepted(bench.wait(part).result);
    }
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let established = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = established.filter(|fields| fields[3] == "01");
    let ours: Vec<_> = established.filter(|fields| fields[1].ends_with(&port) || fields[2].ends_with(&port)).collect();
    assert_eq!(ours.len(), 2, "{ours:?}");
    for fields in ours {
        let (timer, when) = fields[5].split_once(':').unwrap();
        assert_eq!(timer, "02", "{fields:?}");
        // In hundredths of a second; by itself the system would ask after two hours.
        let left = u64::from_str_radix(when, 16).unwrap();
        assert!(left <= 100 * haul_engine::limits::TCP_KEEPALIVE_IDLE.as_secs(), "{fields:?}");
    }
}

#[test]
fn ops_that_do_not_suit_their_stream_are_invalid() {
    let mut bench = Bench::new();
    let (near, _far) = UnixStream::pair().unwrap();
    let stream = bench.poll.add_stream(near.into(), None, true).unwrap();
    let listener = bench.poll.add_listener(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    assert_eq!(bench.run(OpKind::Accept { listener: stream }).err(), Some(Errno::INVALID));
    assert_eq!(bench.run(OpKind::Shutdown { stream: listener }).err(), Some(Errno::INVALID));
}

#[test]
fn many_small_files_and_frames_leave_in_order_through_every_kind_of_stream() {
    for ours in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..50_000u32).map(|n| (n % 241) as u8).collect();
        std::fs::write(directory.path().join("source"), &content).unwrap();
        let mut bench = Bench::new();
        let dir = bench.poll.add_root(Root::plain(File::open(directory.path()).unwrap().into()));
        let place = Place { dir, target: Target { operand: RequestPath::parse(b"source").unwrap(), below: None } };
        let Ok(Output::Opened { file, .. }) = bench.run(OpKind::Open { place, mode: OpenMode::Read }) else { panic!() };
        let (near, mut far) = UnixStream::pair().unwrap();
        let stream = bench.poll.add_stream(near.into(), None, ours).unwrap();
        let mut expected = Vec::new();
        let mut parts = Vec::new();
        for n in 0..200usize {
            let (offset, len) = (n * 7, n * 13 % 900);
            let head = (n as u32).to_le_bytes().into_iter().collect();
            expected.extend((n as u32).to_le_bytes());
            expected.extend_from_slice(&content[offset..offset + len]);
            let (offset, len) = (offset as u64, len as u64);
            parts.push(bench.submit(OpKind::SendFile { stream, head, file, offset, len }));
            parts.push(bench.send(stream, b"between"));
            expected.extend_from_slice(b"between");
        }
        // Closing the file now must not cut short what was submitted before.
        parts.push(bench.submit(OpKind::Close { file }));
        parts.push(bench.submit(OpKind::Shutdown { stream }));
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            far.read_to_end(&mut got).map(|_| got)
        });
        for part in parts {
            assert!(bench.wait(part).result.is_ok());
        }
        assert_eq!(reader.join().unwrap().unwrap(), expected, "ours: {ours}");
    }
}

#[test]
fn dropping_a_backend_does_not_wait_for_a_blocking_read() {
    let poll = Poll::with_helper_threads().unwrap();
    let mut bench = Bench { poll, ..Bench::new() };
    let (read, _write) = std::io::pipe().unwrap();
    let (_read, write) = std::io::pipe().unwrap();
    let stream = bench.poll.add_stream(read.into(), Some(write.into()), false).unwrap();
    bench.recv(stream, 1);
    bench.turn(5);
    let Bench { poll, pool, .. } = bench;
    drop(poll);
    assert_eq!(pool.available(Class::Small), 8);
}
