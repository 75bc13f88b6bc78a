//! A rig made of the operating system's own sockets, pipes and files, for every backend that works on those.

use super::{Arrived, Flavor, Peer, Rig};
use crate::backend::{Attach, DirId, StreamId};
use crate::cas::RootIdentity;
use crate::offload::BlockStore;
use rustix::io::Errno;
use rustix::net::{Shutdown, sockopt};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes asked for in each TCP buffer between backend and peer. Left to themselves the buffers of one machine grow past
/// what the tests send to a peer that does not read (tcp_rmem up to 32 MiB on the build machine, 2026-11-22).
const TCP_BUFFER_BYTES: usize = 256 * 1024;

/// How to build the backend under test.
pub trait Machine {
    /// The backend.
    type Backend: Attach;
    /// A fresh one.
    fn backend() -> Self::Backend;
    /// Gives it a directory as root.
    fn add_root(backend: &mut Self::Backend, path: &Path) -> DirId;
}

/// A backend of the operating system with a temporary directory as its root.
pub struct HostRig<M: Machine> {
    backend: Option<M::Backend>,
    directory: PathBuf,
    root: DirId,
}

impl<M: Machine> Rig for HostRig<M> {
    type Backend = M::Backend;
    type Peer = HostPeer;

    fn new() -> HostRig<M> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("haul-contract-{}-{number}", std::process::id()));
        // One may be left over from a test run that was killed and had our process id.
        let _ = std::fs::remove_dir_all(&directory);
        let _ = std::fs::remove_dir_all(directory.with_extension("store"));
        std::fs::create_dir(&directory).expect("a temporary directory");
        let mut backend = M::backend();
        let root = M::add_root(&mut backend, &directory);
        HostRig { backend: Some(backend), directory, root }
    }

    fn backend(&mut self) -> &mut M::Backend {
        self.backend.as_mut().expect("not dropped yet")
    }

    fn stream(&mut self, flavor: Flavor) -> Option<(StreamId, HostPeer)> {
        let (read, write, peer) = match flavor {
            Flavor::Socket => {
                let (ours, far) = UnixStream::pair().expect("a socket pair");
                (ours.into(), None, HostPeer::socket(far.into()))
            }
            Flavor::Tcp => {
                let (ours, far) = tcp_pair();
                (ours.into(), None, HostPeer::socket(far.into()))
            }
            Flavor::Pipe => {
                let (read, far_write) = std::io::pipe().expect("a pipe");
                let (far_read, write) = std::io::pipe().expect("a pipe");
                (read.into(), Some(write.into()), HostPeer::pipes(far_read.into(), far_write.into()))
            }
        };
        let stream = self.backend().add_stream(read, write, true).expect("a stream from fresh descriptors");
        Some((stream, peer))
    }

    fn listener(&mut self) -> Option<(StreamId, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let stream = self.backend().add_listener(listener).expect("a stream from a fresh listener");
        Some((stream, address))
    }

    fn root(&self) -> DirId {
        self.root
    }

    fn write_file(&mut self, name: &str, bytes: &[u8]) {
        std::fs::write(self.directory.join(name), bytes).expect("a file in the temporary directory");
    }

    fn read_file(&mut self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.directory.join(name)).ok()
    }

    fn names(&mut self) -> Vec<String> {
        let mut names = BTreeSet::new();
        let mut ahead = vec![self.directory.clone()];
        while let Some(directory) = ahead.pop() {
            for entry in std::fs::read_dir(&directory).expect("a directory just seen").flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    ahead.push(entry.path());
                }
                let path = entry.path();
                let name = path.strip_prefix(&self.directory).expect("below the root");
                names.insert(name.to_string_lossy().into_owned());
            }
        }
        names.into_iter().collect()
    }

    fn store(&mut self) -> DirId {
        let root = RootIdentity { path: b"/".to_vec(), device: 1, inode: 2 };
        let store = BlockStore::open(&self.store_directory(), &root, None);
        self.backend().add_store(store)
    }

    fn damage_store(&mut self) {
        let mut ahead = vec![self.store_directory()];
        while let Some(directory) = ahead.pop() {
            for entry in std::fs::read_dir(&directory).expect("a store with blocks").flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    ahead.push(entry.path());
                } else if entry.path().extension().is_some_and(|extension| extension == "blk") {
                    let mut bytes = std::fs::read(entry.path()).expect("a block");
                    bytes[0] ^= 1;
                    std::fs::write(entry.path(), bytes).expect("a block of ours");
                }
            }
        }
    }

    fn drop_backend(&mut self) {
        self.backend = None;
    }
}

impl<M: Machine> HostRig<M> {
    /// Beside the root directory.
    fn store_directory(&self) -> PathBuf {
        self.directory.with_extension("store")
    }
}

impl<M: Machine> Drop for HostRig<M> {
    fn drop(&mut self) {
        self.backend = None;
        // A test that failed may have left anything behind; what matters was asserted before.
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_dir_all(self.store_directory());
    }
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
    sockopt::set_socket_recv_buffer_size(&listener, TCP_BUFFER_BYTES).expect("a buffer for accepted sockets");
    let address = listener.local_addr().expect("its address");
    let ours = TcpStream::connect(address).expect("a connection to ourselves");
    sockopt::set_socket_send_buffer_size(&ours, TCP_BUFFER_BYTES).expect("a buffer");
    let (far, _) = listener.accept().expect("the other end of it");
    (ours, far)
}

/// The far end of a socket or of a pair of pipes. It never blocks.
pub struct HostPeer {
    /// The socket, or the pipe we read from.
    read: Option<OwnedFd>,
    /// The pipe we write to.
    write: Option<OwnedFd>,
    is_socket: bool,
}

impl HostPeer {
    fn socket(socket: OwnedFd) -> HostPeer {
        rustix::io::ioctl_fionbio(&socket, true).expect("a non-blocking socket");
        HostPeer { read: Some(socket), write: None, is_socket: true }
    }

    fn pipes(read: OwnedFd, write: OwnedFd) -> HostPeer {
        // Each end of a pipe has a description of its own: the backend's ends stay as they are.
        rustix::io::ioctl_fionbio(&read, true).expect("a non-blocking pipe");
        rustix::io::ioctl_fionbio(&write, true).expect("a non-blocking pipe");
        HostPeer { read: Some(read), write: Some(write), is_socket: false }
    }
}

impl Peer for HostPeer {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let to = if self.is_socket { &self.read } else { &self.write };
        let Some(to) = to else { return 0 };
        rustix::io::write(to, bytes).unwrap_or(0)
    }

    fn read(&mut self, max: usize) -> Arrived {
        let Some(from) = &self.read else { return Arrived::End };
        if max == 0 {
            return Arrived::Nothing;
        }
        let mut bytes = vec![0; max];
        match rustix::io::read(from, &mut bytes) {
            Ok(0) => Arrived::End,
            Ok(count) => {
                bytes.truncate(count);
                Arrived::Bytes(bytes)
            }
            Err(Errno::AGAIN | Errno::INTR) => Arrived::Nothing,
            Err(_) => Arrived::End,
        }
    }

    fn close_write(&mut self) {
        self.write = None;
        if let Some(socket) = self.read.as_ref().filter(|_| self.is_socket) {
            // Fails only when the backend has closed its end already, which is end enough.
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
    }

    fn close(&mut self) {
        self.read = None;
        self.write = None;
    }
}
