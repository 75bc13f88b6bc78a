//! The network between the two ends of a direct connection, and a record of every byte on it.
//!
//! ```text
//! server --DirectChannelReady{its address}--> <process>.said -> relay -> <process>.heard --{the relay's}--> client
//! client <------------------------- sockets of the relay, recorded -------------------------> server
//! ```
//! The keys stand in DirectChannelReady, so what is recorded can be opened afterwards.

use super::raw::{self, kind};
use super::speaker::frames_of;
use crate::support::processes::wait_for;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

/// How often it is looked whether there is somebody new.
const TICK: Duration = Duration::from_millis(2);

/// The bytes of one direct connection.
pub struct Socket {
    /// What was sent for it through ssh.
    pub key: [u8; 32],
    pub up: Vec<u8>,
    pub down: Vec<u8>,
}

/// Every relay of a run.
pub struct Relays {
    watch: JoinHandle<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// No more servers are started.
    over: AtomicBool,
    /// Threads that still carry something.
    busy: AtomicUsize,
    lines: Mutex<Vec<Arc<Line>>>,
}

struct Line {
    key: [u8; 32],
    up: Mutex<Vec<u8>>,
    down: Mutex<Vec<u8>>,
}

impl Relays {
    /// Looks for the pipes of servers in this directory.
    pub fn watch(record: &Path) -> Relays {
        let shared = Arc::<Shared>::default();
        let (record, same) = (record.to_path_buf(), shared.clone());
        let watch = spawn(move || {
            let mut known = BTreeSet::new();
            while !same.over.load(Ordering::SeqCst) {
                for path in fs::read_dir(&record).unwrap().map(|entry| entry.unwrap().path()) {
                    if path.extension().is_some_and(|ending| ending == "said") && known.insert(path.clone()) {
                        same.clone().run(move |shared| control(&path, shared));
                    }
                }
                sleep(TICK);
            }
        });
        Relays { watch, shared }
    }

    /// Everything that was carried, once all servers have ended.
    pub fn finish(self, limit: Duration) -> Result<Vec<Socket>> {
        self.shared.over.store(true, Ordering::SeqCst);
        self.watch.join().unwrap();
        let over = wait_for(limit, || self.shared.busy.load(Ordering::SeqCst) == 0);
        ensure!(over, "a direct connection is still open {limit:?} after all servers have ended");
        let lines = self.shared.lines.lock().unwrap();
        let take = |bytes: &Mutex<Vec<u8>>| std::mem::take(&mut *bytes.lock().unwrap());
        Ok(lines.iter().map(|line| Socket { key: line.key, up: take(&line.up), down: take(&line.down) }).collect())
    }
}

impl Shared {
    fn run(self: Arc<Self>, work: impl FnOnce(&Arc<Shared>) + Send + 'static) {
        self.busy.fetch_add(1, Ordering::SeqCst);
        spawn(move || {
            work(&self);
            self.busy.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// What one server says through ssh, to its end.
fn control(said: &PathBuf, shared: &Arc<Shared>) {
    let from_server = fs::File::open(said).unwrap();
    let mut to_client = fs::File::options().write(true).open(said.with_extension("heard")).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    for said in frames_of(from_server) {
        let mut frame = raw::frame(said.kind, &[&said.body]);
        if said.kind == kind::DIRECT_CHANNEL_READY {
            let mut fields = said.fields();
            let (server, key) = (fields.text().unwrap(), fields.raw().unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let ended = ended.clone();
            shared.clone().run(move |shared| listen(&listener, &server, key, &ended, shared));
            frame = raw::frame(said.kind, &[&raw::bytes(address), &key]);
        }
        // A client that has gone hears nothing.
        let _ = to_client.write_all(&frame);
    }
    ended.store(true, Ordering::SeqCst);
}

/// Lets whoever comes through to the server, for as long as there is one.
fn listen(listener: &TcpListener, server: &str, key: [u8; 32], ended: &AtomicBool, shared: &Arc<Shared>) {
    listener.set_nonblocking(true).unwrap();
    while !ended.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((client, _)) => {
                // A client whose server does not listen is closed.
                let Ok(server) = TcpStream::connect(server) else { continue };
                client.set_nonblocking(false).unwrap();
                let line = Arc::new(Line { key, up: Mutex::default(), down: Mutex::default() });
                shared.lines.lock().unwrap().push(line.clone());
                let (client_too, server_too, same) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), line.clone());
                shared.clone().run(move |_| carry(&client, &server, &line.up));
                shared.clone().run(move |_| carry(&server_too, &client_too, &same.down));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(TICK),
            Err(error) => panic!("{error}"),
        }
    }
}

/// One direction of a connection. The end of one side is the end for the other.
fn carry(mut from: &TcpStream, mut to: &TcpStream, record: &Mutex<Vec<u8>>) {
    to.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(len) => {
                record.lock().unwrap().extend_from_slice(&buffer[..len]);
                if to.write_all(&buffer[..len]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
