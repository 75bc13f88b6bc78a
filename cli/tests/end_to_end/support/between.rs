//! The network between the two ends of direct connections, which breaks as a test wants it.
//!
//! ```text
//! server --DirectChannelReady{its address}--> <process>.said -> a thread -> <process>.heard --{another}--> client
//! client <------------- sockets that are cut, changed or refused, counted in the order they come ----------> server
//! ```

use super::{Pipes, binary, processes};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(1);
/// How far behind its rate a connection may be and still make up for it.
const LAG: Duration = Duration::from_millis(300);
const READY: u8 = 0x8b;

/// What becomes of a connection. Bytes are those of both directions, the handshake included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It stays.
    Through,
    /// It is reset after so many bytes.
    Cut(u64),
    /// One bit is changed after so many bytes that come from the server.
    FlipDown(u64),
    /// The same of those that come from the client.
    FlipUp(u64),
    /// Nobody is there.
    Refused,
    /// It stays, and nothing comes through after so many bytes.
    Swallowed(u64),
    /// It stays, and lets so many bytes through a second.
    Each(u64),
    /// The same with all others of this kind together.
    Together(u64),
}

/// By the number of the connection, from 0.
type Fates = dyn Fn(usize) -> Fate + Send + Sync;

/// A far end whose direct connections go through here.
pub struct Between {
    _dir: tempfile::TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    fates: Box<Fates>,
    /// Where clients are sent, in place of here.
    elsewhere: Option<SocketAddr>,
    came: AtomicUsize,
    left: AtomicUsize,
    bytes: AtomicU64,
    pace: Arc<Pace>,
    /// No more servers are started.
    over: AtomicBool,
}

impl Between {
    /// With a stand-in for ssh whose far end uses `backend`.
    pub fn new(backend: &str, fates: impl Fn(usize) -> Fate + Send + Sync + 'static) -> (Between, Pipes) {
        Between::with(backend, Box::new(fates), None)
    }

    /// The same where clients are sent to this address, at which the server is not.
    pub fn elsewhere(backend: &str, address: SocketAddr) -> (Between, Pipes) {
        Between::with(backend, Box::new(|_| Fate::Refused), Some(address))
    }

    fn with(backend: &str, fates: Box<Fates>, elsewhere: Option<SocketAddr>) -> (Between, Pipes) {
        let dir = super::trees::scratch();
        let program = dir.path().join("haul");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = serve ] || exec '{0}' \"$@\"\nmkfifo '{1}/'$$.heard '{1}/'$$.said\n\
             cat '{1}/'$$.heard &\nexec '{0}' \"$@\" > '{1}/'$$.said\n",
            binary().display(),
            dir.path().display()
        );
        processes::script(&program, &script);
        let pipes = Pipes::with_program(backend, &program);
        let (came, bytes, over) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let left = AtomicUsize::new(0);
        let shared = Arc::new(Shared { fates, elsewhere, came, left, bytes, pace: Arc::default(), over });
        let (watched, same) = (dir.path().to_path_buf(), shared.clone());
        spawn(move || {
            let mut known = BTreeSet::new();
            while !same.over.load(Ordering::SeqCst) {
                for path in fs::read_dir(&watched).into_iter().flatten().flatten().map(|entry| entry.path()) {
                    if path.extension().is_some_and(|ending| ending == "said") && known.insert(path.clone()) {
                        let same = same.clone();
                        spawn(move || control(&path, &same));
                    }
                }
                sleep(TICK);
            }
        });
        (Between { _dir: dir, shared }, pipes)
    }

    /// How many connections have come.
    pub fn came(&self) -> usize {
        self.shared.came.load(Ordering::SeqCst)
    }

    /// How many of them their clients have ended.
    pub fn left(&self) -> usize {
        self.shared.left.load(Ordering::SeqCst)
    }

    /// Bytes that went through since this was asked last.
    pub fn take_bytes(&self) -> u64 {
        self.shared.bytes.swap(0, Ordering::SeqCst)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

/// When the next byte may pass.
#[derive(Default)]
struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Waits for the turn of so many bytes.
    fn wait(&self, len: usize, rate: u64) {
        let until = {
            let mut next = self.0.lock().unwrap();
            let now = Instant::now();
            // A thread that slept for too long makes up for it: the rate is kept on a busy machine, too.
            let turn = next.map_or(now, |next| next.max(now - LAG)) + Duration::from_secs_f64(len as f64 / rate as f64);
            *next.insert(turn)
        };
        sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// What one server says through ssh, to its end.
fn control(said: &Path, shared: &Arc<Shared>) -> Option<()> {
    let mut from = File::open(said).ok()?;
    let mut to = File::options().write(true).open(said.with_extension("heard")).ok()?;
    let ended = Arc::new(AtomicBool::new(false));
    let mut hand_on = || {
        loop {
            let mut head = [0; 5];
            from.read_exact(&mut head).ok()?;
            let mut body = vec![0; u32::from_le_bytes(head[..4].try_into().unwrap()) as usize - 1];
            from.read_exact(&mut body).ok()?;
            if head[4] == READY {
                body = listen(&body, &ended, shared)?;
                head[..4].copy_from_slice(&(body.len() as u32 + 1).to_le_bytes());
            }
            to.write_all(&head).ok()?;
            to.write_all(&body).ok()?;
        }
    };
    let over: Option<()> = hand_on();
    ended.store(true, Ordering::SeqCst);
    over
}

/// Listens in place of the server that this DirectChannelReady is of.
fn listen(ready: &[u8], ended: &Arc<AtomicBool>, shared: &Arc<Shared>) -> Option<Vec<u8>> {
    let len = u32::from_le_bytes(ready[..4].try_into().ok()?) as usize;
    let (server, key) = ready[4..].split_at(len);
    let said = |address: SocketAddr| {
        let address = address.to_string();
        [&(address.len() as u32).to_le_bytes(), address.as_bytes(), key].concat()
    };
    if let Some(address) = shared.elsewhere {
        return Some(said(address));
    }
    let server = String::from_utf8(server.to_vec()).ok()?;
    let listener = TcpListener::bind("127.0.0.1:0").ok()?;
    let address = listener.local_addr().ok()?;
    listener.set_nonblocking(true).ok()?;
    let (ended, shared) = (ended.clone(), shared.clone());
    spawn(move || {
        while !ended.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((client, _)) => come(client, &server, &shared),
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(TICK),
                Err(error) => panic!("{error}"),
            }
        }
    });
    Some(said(address))
}

fn come(client: TcpStream, server: &str, shared: &Arc<Shared>) {
    let fate = (shared.fates)(shared.came.fetch_add(1, Ordering::SeqCst));
    let Ok(server) = TcpStream::connect(server) else { return };
    if fate == Fate::Refused {
        return;
    }
    client.set_nonblocking(false).unwrap();
    let own = Arc::new(AtomicU64::new(0));
    let pace = if matches!(fate, Fate::Together(_)) { shared.pace.clone() } else { Arc::default() };
    let both = [(&client, &server, true), (&server, &client, false)];
    for (from, to, up) in both.map(|(from, to, up)| (from.try_clone().unwrap(), to.try_clone().unwrap(), up)) {
        let (own, shared, pace) = (own.clone(), shared.clone(), pace.clone());
        spawn(move || {
            carry(from, to, (fate, up), &pace, &own, &shared.bytes);
            shared.left.fetch_add(up.into(), Ordering::SeqCst);
        });
    }
}

/// One direction of a connection. The end of one side is the end for the other.
fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    (fate, up): (Fate, bool),
    pace: &Pace,
    own: &AtomicU64,
    all: &AtomicU64,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(len) => {
                if let Fate::Each(rate) | Fate::Together(rate) = fate {
                    pace.wait(len, rate);
                }
                let flip = match fate {
                    Fate::FlipDown(flip) if !up => Some(flip),
                    Fate::FlipUp(flip) if up => Some(flip),
                    _ => None,
                };
                if let Some(flip) = flip.filter(|flip| (at..at + len as u64).contains(flip)) {
                    buffer[(flip - at) as usize] ^= 1;
                }
                at += len as u64;
                let passed = own.fetch_add(len as u64, Ordering::SeqCst) + len as u64;
                all.fetch_add(len as u64, Ordering::SeqCst);
                if matches!(fate, Fate::Swallowed(limit) if passed >= limit) {
                    continue;
                }
                if matches!(fate, Fate::Cut(limit) if passed >= limit) || to.write_all(&buffer[..len]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
