//! What only this backend has to get right; the contract tests (`tests/contract_uring.rs`) hold the rest.

use super::*;
use crate::backend::{FileId, OpenMode, Place, SessionId, Token};
use crate::block::{Class, Pool, Slices};
use crate::wire::path::{RequestPath, Target};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::sockopt;
use std::io::{Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// A backend, a pool, and a directory whose files can be opened.
struct Bench {
    ring: Uring,
    pool: Pool,
    submissions: Submissions,
    out: Vec<Completion>,
    directory: tempfile::TempDir,
    root: DirId,
    next: u32,
}

impl Bench {
    fn new(options: Options) -> Bench {
        let mut ring = Uring::with(options).expect("io_uring on the test machine");
        let directory = tempfile::tempdir().unwrap();
        let root = ring.add_root(Root::plain(std::fs::File::open(directory.path()).unwrap().into()));
        let (submissions, out) = (Submissions::default(), Vec::new());
        Bench { ring, pool: Pool::new(16, 16), submissions, out, directory, root, next: 0 }
    }

    fn push(&mut self, kind: OpKind) -> u32 {
        self.next += 1;
        self.submissions.push(Token { session: SessionId(1), transfer: self.next, part: 0 }, kind);
        self.next
    }

    fn turn(&mut self) {
        let deadline = self.ring.now().after(5_000_000);
        self.ring.submit_and_wait(&mut self.submissions, &mut self.out, Some(deadline)).unwrap();
    }

    fn finished(&mut self, number: u32) -> Option<Completion> {
        let at = self.out.iter().position(|done| done.op.token.transfer == number)?;
        Some(self.out.remove(at))
    }

    fn wait(&mut self, number: u32) -> Completion {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(done) = self.finished(number) {
                return done;
            }
            assert!(Instant::now() < limit, "operation {number} does not complete");
            self.turn();
        }
    }

    fn run(&mut self, kind: OpKind) -> Result<Output, Errno> {
        let number = self.push(kind);
        self.wait(number).result
    }

    fn recv(&mut self, stream: StreamId, at_least: usize) -> u32 {
        let into = self.pool.take_reserved(Class::Small).unwrap();
        self.push(OpKind::Recv { stream, into, at_least })
    }

    fn received(&mut self, number: u32) -> Result<Vec<u8>, Errno> {
        let done = self.wait(number);
        match (done.op.kind, done.result?) {
            (OpKind::Recv { into, .. }, Output::Bytes(n)) => Ok(into.bytes()[..n].to_vec()),
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, stream: StreamId, bytes: &[u8]) -> u32 {
        self.push(OpKind::Send { stream, head: bytes.into(), body: Slices::new() })
    }

    fn open(&mut self, name: &str, bytes: &[u8]) -> FileId {
        std::fs::write(self.directory.path().join(name), bytes).unwrap();
        let target = Target { operand: RequestPath::parse(name.as_bytes()).unwrap(), below: None };
        match self.run(OpKind::Open { place: Place { dir: self.root, target }, mode: OpenMode::Read }) {
            Ok(Output::Opened { file, .. }) => file,
            other => panic!("{other:?}"),
        }
    }

    fn send_file(&mut self, stream: StreamId, file: FileId, len: u64) -> u32 {
        self.push(OpKind::SendFile { stream, head: b"head"[..].into(), file, offset: 0, len })
    }
}

fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

#[test]
fn a_nonblocking_description_that_is_not_ours_works_and_stays_nonblocking() {
    let mut bench = Bench::new(Options::default());
    let file = bench.open("source", &[9; 3_000_000]);
    let (near, far) = tcp();
    near.set_nonblocking(true).unwrap();
    let witness = near.try_clone().unwrap();
    let stream = bench.ring.add_stream(near.into(), None, false).unwrap();
    let wanted = bench.recv(stream, 3);
    let sent = bench.send(stream, &[1; 5_000_000]);
    let poured = bench.send_file(stream, file, 3_000_000);
    (0..3).for_each(|_| bench.turn());
    assert!(bench.finished(wanted).is_none());
    let reader = std::thread::spawn(move || {
        (&far).write_all(b"abc").unwrap();
        let mut got = vec![0; 8_000_004];
        (&far).read_exact(&mut got).unwrap();
        (got, far)
    });
    assert_eq!(bench.received(wanted).unwrap(), b"abc");
    assert!(bench.wait(sent).result.is_ok());
    assert!(bench.wait(poured).result.is_ok());
    let (got, _far) = reader.join().unwrap();
    assert!(got[..5_000_000].iter().all(|byte| *byte == 1) && got[5_000_004..].iter().all(|byte| *byte == 9));
    assert!(fcntl_getfl(&witness).unwrap().contains(OFlags::NONBLOCK));
}

#[test]
fn pipes_that_are_not_ours_may_be_nonblocking_too() {
    let mut bench = Bench::new(Options::default());
    let file = bench.open("source", &[9; 300_000]);
    let (read, mut far_write) = std::io::pipe().unwrap();
    let (mut far_read, write) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&read, true).unwrap();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let stream = bench.ring.add_stream(read.into(), Some(write.into()), false).unwrap();
    let wanted = bench.recv(stream, 3);
    let sent = bench.send(stream, &[1; 300_000]);
    let poured = bench.send_file(stream, file, 300_000);
    (0..3).for_each(|_| bench.turn());
    far_write.write_all(b"abc").unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 600_004];
        far_read.read_exact(&mut got).unwrap();
        got
    });
    assert_eq!(bench.received(wanted).unwrap(), b"abc");
    assert!(bench.wait(sent).result.is_ok() && bench.wait(poured).result.is_ok());
    assert!(reader.join().unwrap()[300_004..].iter().all(|byte| *byte == 9));
}

#[test]
fn regular_files_serve_as_a_stream() {
    let mut bench = Bench::new(Options::default());
    let source = bench.open("source", &[7; 100_000]);
    let (mut input, mut output) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    input.write_all(&[3; 1000]).unwrap();
    input.rewind().unwrap();
    let witness = output.try_clone().unwrap();
    let stream = bench.ring.add_stream(input.into(), Some(witness.into()), false).unwrap();
    let first = bench.recv(stream, 1000);
    assert_eq!(bench.received(first).unwrap(), [3; 1000]);
    let end = bench.recv(stream, 1);
    assert_eq!(bench.received(end).unwrap(), [0; 0]);
    let sent = bench.send(stream, b"before");
    let poured = bench.send_file(stream, source, 100_010);
    assert!(bench.wait(sent).result.is_ok());
    assert_eq!(bench.wait(poured).result.err(), Some(Errno::SHORT_SOURCE));
    assert!(bench.run(OpKind::Shutdown { stream }).is_ok());
    let mut got = Vec::new();
    output.rewind().unwrap();
    output.read_to_end(&mut got).unwrap();
    assert_eq!(got, [&b"beforehead"[..], &[7; 100_000], &[0; 10]].concat());
}

#[test]
fn a_file_closed_in_the_same_turn_is_still_sent() {
    let mut bench = Bench::new(Options::default());
    let file = bench.open("source", &[7; 200_000]);
    let (near, mut far) = tcp();
    let stream = bench.ring.add_stream(near.into(), None, true).unwrap();
    let poured = bench.send_file(stream, file, 200_000);
    let closed = bench.push(OpKind::Close { file });
    assert!(bench.wait(poured).result.is_ok() && bench.wait(closed).result.is_ok());
    let mut got = vec![0; 200_004];
    far.read_exact(&mut got).unwrap();
    assert!(got[4..].iter().all(|byte| *byte == 7));
}

#[test]
fn connections_are_made_and_taken_with_nodelay_and_keepalive() {
    let mut bench = Bench::new(Options::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = bench.ring.add_listener(listener).unwrap();
    let accept = bench.push(OpKind::Accept { listener });
    let Ok(Output::Accepted { stream: near, .. }) = bench.run(OpKind::Connect { address }) else {
        panic!("no connection")
    };
    let Ok(Output::Accepted { stream: far, .. }) = bench.wait(accept).result else { panic!("no connection") };
    for stream in [near, far] {
        let fd = bench.ring.streams.slot(stream).unwrap().read_fd();
        assert!(sockopt::tcp_nodelay(fd).unwrap());
        assert!(sockopt::socket_keepalive(fd).unwrap());
        assert_eq!(sockopt::tcp_keepidle(fd).unwrap(), limits::TCP_KEEPALIVE_IDLE);
        assert_eq!(sockopt::tcp_keepintvl(fd).unwrap(), limits::TCP_KEEPALIVE_INTERVAL);
        assert_eq!(sockopt::tcp_keepcnt(fd).unwrap(), limits::TCP_KEEPALIVE_PROBES);
        assert_eq!(sockopt::tcp_user_timeout(fd).unwrap(), limits::TCP_USER_TIMEOUT_MILLIS);
    }
    let sent = bench.send(near, b"hello");
    let wanted = bench.recv(far, 5);
    assert_eq!(bench.received(wanted).unwrap(), b"hello");
    assert!(bench.wait(sent).result.is_ok());

    let waiting = bench.push(OpKind::Accept { listener });
    bench.turn();
    assert!(bench.run(OpKind::CloseStream { stream: listener }).is_ok());
    assert_eq!(bench.wait(waiting).result.err(), Some(Errno::CANCELLED));
    let refused = bench.run(OpKind::Connect { address }).err();
    assert_eq!(refused, Some(rustix::io::Errno::CONNREFUSED.into()));
}

#[test]
fn a_cancelled_receive_that_took_bytes_breaks_the_read_half_only() {
    let mut bench = Bench::new(Options::default());
    let (near, mut far) = UnixStream::pair().unwrap();
    let stream = bench.ring.add_stream(near.into(), None, true).unwrap();
    let wanted = bench.recv(stream, 100);
    far.write_all(&[5; 10]).unwrap();
    (0..3).for_each(|_| bench.turn());
    bench.submissions.cancel(Cancel::Transfer(SessionId(1), wanted));
    assert_eq!(bench.received(wanted), Err(Errno::CANCELLED));
    let next = bench.recv(stream, 1);
    assert_eq!(bench.received(next), Err(Errno::CANCELLED));
    let sent = bench.send(stream, b"alive");
    assert!(bench.wait(sent).result.is_ok());
}

#[test]
fn receives_of_one_stream_are_filled_in_order() {
    let mut bench = Bench::new(Options::default());
    let (near, mut far) = UnixStream::pair().unwrap();
    let stream = bench.ring.add_stream(near.into(), None, true).unwrap();
    let (first, second) = (bench.recv(stream, 4), bench.recv(stream, 4));
    bench.turn();
    far.write_all(b"one!").unwrap();
    assert_eq!(bench.received(first).unwrap(), b"one!");
    far.write_all(b"two!").unwrap();
    assert_eq!(bench.received(second).unwrap(), b"two!");
}

#[test]
fn more_stalled_files_than_pipes_leave_a_healthy_one_alone_and_drop_ends_them() {
    let mut bench = Bench::new(Options::default());
    let content = vec![9; 16 << 20];
    let file = bench.open("source", &content);
    let mut peers = Vec::new();
    for _ in 0..limits::LEASED_PIPES + 4 {
        let (near, far) = tcp();
        let stream = bench.ring.add_stream(near.into(), None, true).unwrap();
        bench.send_file(stream, file, 16 << 20);
        peers.push(far);
    }
    (0..20).for_each(|_| bench.turn());
    let (near, mut far) = tcp();
    let healthy = bench.ring.add_stream(near.into(), None, true).unwrap();
    let poured = bench.send_file(healthy, file, 16 << 20);
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 4 + (16 << 20)];
        far.read_exact(&mut got).map(|()| got)
    });
    assert!(bench.wait(poured).result.is_ok());
    assert_eq!(&reader.join().unwrap().unwrap()[4..], content);
    assert!(bench.out.is_empty(), "stalled streams must not complete");
    drop(bench);
}

#[test]
fn what_was_found_here_is_told() {
    let mut bench = Bench::new(Options { registered: true, ..Options::default() });
    let file = bench.open("source", &[1; 1000]);
    let into = bench.pool.take_reserved(Class::Large).unwrap();
    assert!(matches!(bench.run(OpKind::Read { file, offset: 0, into, len: 2000 }), Ok(Output::Bytes(1000))));
    let features = bench.ring.features();
    assert_eq!(features.backend, "io_uring");
    for word in ["submissions", "pipes", "io-wq", "registered"] {
        assert!(features.notes.iter().any(|note| note.contains(word)), "{word}: {:#?}", features.notes);
    }
    assert!(probe().is_ok());
}
