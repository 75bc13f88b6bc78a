//! Simulated hosts, disks, streams and a clock, everything from one seed.
//!
//! Participants: a [`World`], and in it hosts, each with a disk and a [`SimBackend`]. Goal: sessions run here unchanged
//! through thousands of schedules and faults within seconds, and a seed that failed fails again. Non-goals: modelling
//! torn sectors, bandwidth, or the cost of anything. What a host loses in a crash is what has no name.
//!
//! The world keeps the ten rules of [`crate::backend`] exactly (`tests/contract_sim.rs`), and within them is as nasty as
//! the seed has it: small buffers, bytes that come one at a time, completions of different objects in any order, slow
//! disks, directories in odd order, pages of few entries. It checks itself: a stream on which a byte follows a Send that
//! was not whole is a violation ([`World::check`]).
//!
//! # A run
//!
//! Nothing happens by itself. Whoever runs a simulation gives each host turns, and when a whole round brought nothing,
//! moves the clock:
//!
//! ```
//! use haul_engine::backend::{Backend, OpKind, SessionId, Submissions, Token};
//! use haul_engine::block::{Class, Pool, Slices};
//! use haul_engine::sim::{FaultPlan, World};
//!
//! let world = World::new(42, FaultPlan::none());
//! let (mut client, mut server) = (world.host("client"), world.host("server"));
//! let (to_server, to_client) = world.connect(&mut client, &mut server);
//! world.put_file("server", "srv/hello", b"hello");
//!
//! let token = Token { session: SessionId(0), transfer: 0, part: 0 };
//! let into = Pool::new(1, 0).take_reserved(Class::Small).unwrap();
//! let mut submissions = [Submissions::default(), Submissions::default()];
//! submissions[0].push(token, OpKind::Send { stream: to_server, head: (*b"ping").into_iter().collect(), body: Slices::new() });
//! submissions[1].push(token, OpKind::Recv { stream: to_client, into, at_least: 4 });
//! let (mut sent, mut received) = (Vec::new(), Vec::new());
//! while sent.is_empty() || received.is_empty() {
//!     client.submit_and_wait(&mut submissions[0], &mut sent, None).unwrap();
//!     server.submit_and_wait(&mut submissions[1], &mut received, None).unwrap();
//!     if sent.is_empty() && received.is_empty() {
//!         assert!(world.advance(), "nothing will ever happen again: a deadlock");
//!     }
//! }
//! world.check();
//! ```
//!
//! A test of sessions is the same loop with a [`crate::worker::Worker`] around each backend. [`World::advance`] may be
//! called in every round: it lets a busy host go on before it jumps to a deadline, and only says no when nothing can
//! happen any more. [`World::new_faults`], asked after each turn and each advance, tells whose operations were struck,
//! mostly before their completions are delivered; `Worker::state_of` says in which state that found their session. With
//! [`FaultPlan::random`] a host may crash: its turn fails. Drop that worker, and `world.host(name)` starts the host
//! again on the disk as it is, to try a resume. What must be right at the end is [`World::snapshot`]: every file under a
//! final name is whole, or is the old one.
//!
//! ```text
//! for seed in 0..10_000 {
//!     let world = World::new(seed, FaultPlan::random(2));
//!     build both sides
//!     while client.is_busy() {
//!         client.turn(); server.turn();                      // Err: that host has crashed
//!         assert!(world.advance(), "deadlock, SEED={seed}");
//!         for hit in world.new_faults() { count (state, fault) }
//!     }
//!     world.check();                                         // no hole in any stream
//!     assert_eq!(world.open_count("server"), 0);             // nor a file left open
//!     compare world.snapshot("server") with what the client was told
//! }
//! ```

#![forbid(unsafe_code)]

mod backend;
mod blocks;
mod cable;
mod disk;
mod faults;
mod files;
mod listen;
mod network;
pub mod random;
mod slots;
mod state;
#[cfg(test)]
mod tests;

pub use backend::{SimBackend, SimPeer};
pub use faults::{Fault, FaultPlan, Hit, Mutation, OpName, Planned};

use crate::backend::{DirId, Features, StreamId, Time};
use crate::limits::SECOND;
use crate::wire::frame::Attributes;
use crate::wire::path::{RequestPath, Target};
use disk::{Meta, Node};
use state::{Channel, Host, State};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// Bytes a stream holds at most; the seed decides how many.
pub const MAX_STREAM_BYTES: usize = 64 * 1024;

/// Nanoseconds after which a Connect that nobody answers is given up, as Linux does after its six repetitions.
pub const CONNECT_TIMEOUT: u64 = 127 * SECOND;

/// Everything there is, and the time in it.
pub struct World {
    seed: u64,
    state: RefCell<State>,
}

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Kind, size, mode, time, owner.
    pub attributes: Attributes,
    /// Content of a regular file.
    pub content: Vec<u8>,
    /// Text of a symbolic link.
    pub link: Vec<u8>,
    /// What its content was before somebody wrote to it in this world's way of going wrong.
    pub earlier: Vec<Vec<u8>>,
}

impl World {
    /// An empty world in which this goes wrong. The same seed and the same calls give the same run.
    pub fn new(seed: u64, faults: FaultPlan) -> Rc<World> {
        Rc::new(World { seed, state: RefCell::new(State::new(seed, faults)) })
    }

    /// Like [`World::new`], with a backend that breaks a rule: tests of the tests.
    pub fn mutated(seed: u64, faults: FaultPlan, mutation: Mutation) -> Rc<World> {
        let world = World::new(seed, faults);
        world.state.borrow_mut().mutation = Some(mutation);
        world
    }

    /// A host's backend: a new host with an empty disk, or one that stopped or crashed, with the disk it had.
    ///
    /// Panics while that host has a backend.
    pub fn host(self: &Rc<World>, name: &str) -> SimBackend {
        let index = self.host_index(name);
        let mut state = self.state.borrow_mut();
        let host = &mut state.hosts[index];
        assert!(!host.live, "{name} is running already");
        host.live = true;
        let root = host.disk.root.clone();
        let root = host.disk.add_root(root);
        let incarnation = host.incarnation;
        let notes = vec![format!("seed {}", self.seed)];
        SimBackend {
            world: self.clone(),
            host: index,
            incarnation,
            root,
            features: Features { backend: "simulated", notes },
        }
    }

    /// A stream between two hosts, with buffers of a size that the seed decides.
    pub fn connect(&self, a: &mut SimBackend, b: &mut SimBackend) -> (StreamId, StreamId) {
        let mut state = self.state.borrow_mut();
        let capacity = state.draw_capacity().max(state.least_stream);
        let [one, two] = state.connect([Some(a.host), Some(b.host)], capacity);
        (state.hosts[a.host].streams.insert(Channel::End(one)), state.hosts[b.host].streams.insert(Channel::End(two)))
    }

    /// The addresses at which other hosts reach one, IPv4 first. A session on it that listens at either of them, or at
    /// all addresses (`0.0.0.0`, `[::]`), is found there by Connect; one that listens at a loopback address only by those
    /// on the same host.
    pub fn addresses(&self, host: &str) -> [IpAddr; 2] {
        listen::addresses(self.host_index(host))
    }

    /// A listening stream that no session owns, and the address at which other hosts' Connect finds it.
    pub fn listen(&self, on: &mut SimBackend) -> (StreamId, SocketAddr) {
        self.state.borrow_mut().listen(on.host)
    }

    /// A stream whose far end the test plays, with buffers of `capacity` bytes.
    pub fn connect_peer(self: &Rc<World>, a: &mut SimBackend, capacity: usize) -> (StreamId, SimPeer) {
        let mut state = self.state.borrow_mut();
        let [near, far] = state.connect([Some(a.host), None], capacity);
        (state.hosts[a.host].streams.insert(Channel::End(near)), SimPeer { world: self.clone(), end: far })
    }

    /// Stops a host where it stands: its operations and streams are gone, its disk keeps what has a name, and its peers
    /// see their streams end.
    pub fn crash(&self, name: &str) {
        let host = self.host_index(name);
        self.state.borrow_mut().stop(host, false);
    }

    /// Stops a host as a signal does: its streams stay open, and it takes nothing off them. It must get no more turns.
    pub fn pause(&self, name: &str) {
        let host = self.host_index(name);
        let mut state = self.state.borrow_mut();
        (state.hosts[host].paused, state.hosts[host].busy) = (true, false);
    }

    /// The time.
    pub fn now(&self) -> Time {
        self.state.borrow().clock
    }

    /// Moves the clock to the next thing that happens, be it a deadline of some host; not at all while a completion
    /// waits for its host's turn. `false` when nothing will ever happen again unless something is submitted.
    pub fn advance(&self) -> bool {
        self.state.borrow_mut().advance()
    }

    /// As [`World::advance`], but goes on until a host has something to do in its turn. For worlds of hosts alone: a test
    /// that plays a far end itself would miss what happens there.
    pub fn advance_to_turn(&self) -> bool {
        self.state.borrow_mut().advance_to_turn()
    }

    /// True when nothing is under way: what is still outstanding waits for a peer or a deadline.
    pub fn quiescent(&self) -> bool {
        self.state.borrow().quiescent()
    }

    /// Every fault that struck so far.
    pub fn faults_hit(&self) -> Vec<Hit> {
        self.state.borrow().hits.clone()
    }

    /// The faults that struck since this was last asked.
    pub fn new_faults(&self) -> Vec<Hit> {
        let state = &mut *self.state.borrow_mut();
        let told = std::mem::replace(&mut state.hits_told, state.hits.len());
        state.hits[told..].to_vec()
    }

    /// What will go wrong, random faults included.
    pub fn plan(&self) -> FaultPlan {
        self.state.borrow().plan.clone()
    }

    /// Rules that were seen broken.
    pub fn violations(&self) -> Vec<String> {
        self.state.borrow().violations.clone()
    }

    /// Panics with the seed if a rule was seen broken.
    pub fn check(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "SEED={}: {violations:#?}", self.seed);
    }

    /// Writes a file, in place if it exists, past the backend. Missing directories are made.
    pub fn put_file(&self, host: &str, path: &str, bytes: &[u8]) {
        let index = self.host_index(host);
        let state = self.state.borrow();
        let (parent, name) = find_parent(&state, index, path);
        let mut parent = parent.borrow_mut();
        match parent.entries.get(&name) {
            Some(Node::File(file)) => file.borrow_mut().content = bytes.to_vec(),
            _ => {
                let file = Node::file(bytes.to_vec(), Meta::new(0o644, state.clock));
                parent.entries.insert(name, Node::File(file));
            }
        }
    }

    /// Makes a symbolic link, past the backend.
    pub fn put_link(&self, host: &str, path: &str, text: &[u8]) {
        let index = self.host_index(host);
        let state = self.state.borrow();
        let (parent, name) = find_parent(&state, index, path);
        let link = disk::Link { text: text.to_vec(), meta: Meta::new(0o777, state.clock) };
        parent.borrow_mut().entries.insert(name, Node::Link(Rc::new(link)));
    }

    /// Makes a directory and what is missing above it, past the backend.
    pub fn put_directory(&self, host: &str, path: &str) {
        let index = self.host_index(host);
        let state = self.state.borrow();
        let made = Meta::new(0o755, state.clock);
        disk::make_directory(&state.hosts[index].disk.root, &target(path), made).expect("a path without a file in it");
    }

    /// Gives a file or directory another mode and time, past the backend.
    pub fn set_attributes(&self, host: &str, path: &str, attributes: Attributes) {
        let index = self.host_index(host);
        let state = self.state.borrow();
        let preserve = crate::wire::frame::Preserve::MODE;
        match disk::find(&state.hosts[index].disk.root, &target(path), true).expect("an existing path") {
            Node::File(file) => file.borrow_mut().meta.apply(attributes, preserve, false),
            Node::Directory(directory) => directory.borrow_mut().meta.apply(attributes, preserve, false),
            Node::Link(_) => {}
        }
    }

    /// Removes a name and all below it, past the backend.
    pub fn remove(&self, host: &str, path: &str) {
        let index = self.host_index(host);
        let (parent, name) = find_parent(&self.state.borrow(), index, path);
        parent.borrow_mut().entries.remove(&name);
    }

    /// Content of a file, past the backend.
    pub fn get_file(&self, host: &str, path: &str) -> Option<Vec<u8>> {
        let index = self.host_index(host);
        let state = self.state.borrow();
        let file = disk::find(&state.hosts[index].disk.root, &target(path), true).and_then(Node::into_file);
        file.ok().map(|file| file.borrow().content.clone())
    }

    /// Every name on a host's disk, as a path from the root, sorted. Files being made are not there: they have no name.
    pub fn list(&self, host: &str) -> Vec<String> {
        self.snapshot(host).into_keys().map(|name| String::from_utf8_lossy(&name).into_owned()).collect()
    }

    /// Everything on a host's disk by its path from the root.
    pub fn snapshot(&self, host: &str) -> BTreeMap<Vec<u8>, Entry> {
        let index = self.host_index(host);
        let mut entries = BTreeMap::new();
        let root = Node::Directory(self.state.borrow().hosts[index].disk.root.clone());
        collect(&root, b"", &mut entries);
        entries
    }

    /// Has a file say that it has another size than it has, as files in /proc and /sys do.
    pub fn say_size(&self, host: &str, path: &str, size: u64) {
        let index = self.host_index(host);
        let state = self.state.borrow();
        let (parent, name) = find_parent(&state, index, path);
        let file = parent.borrow().entries.get(&name).cloned().and_then(|node| node.into_file().ok());
        file.expect("a file stands there").borrow_mut().said = Some(size);
    }

    /// Files being made on a host that have no name yet.
    pub fn unpublished(&self, host: &str) -> usize {
        let index = self.host_index(host);
        self.state.borrow().hosts[index].disk.unpublished()
    }

    /// Files and directories a host has open, roots apart.
    pub fn open_count(&self, host: &str) -> usize {
        let index = self.host_index(host);
        self.state.borrow().hosts[index].disk.open_count()
    }

    /// Damages every block in a host's block store. Done twice it leaves them as they were.
    pub fn damage_store(&self, host: &str) {
        let index = self.host_index(host);
        self.state.borrow_mut().hosts[index].disk.store.values_mut().for_each(|block| blocks::damage(block, 1));
    }

    /// Puts content into a host's block store, past the backend.
    pub fn put_block(&self, host: &str, block: &[u8]) {
        let index = self.host_index(host);
        let hash = *blake3::hash(block).as_bytes();
        self.state.borrow_mut().hosts[index].disk.store.insert(hash, block.to_vec());
    }

    /// Streams made from now on hold at least so many bytes: large files through the smallest take too long.
    pub fn set_least_stream(&self, bytes: usize) {
        self.state.borrow_mut().least_stream = bytes;
    }

    /// From now on all that a host sends to others shares so many bytes a second, behind a queue that lasts for so many
    /// nanoseconds; and a stream that was full takes more only when a third of it is free, as sockets do.
    pub fn set_cable(&self, bytes_per_second: u64, queue: u64) {
        self.state.borrow_mut().cable = Some(cable::Cable::new(bytes_per_second, queue));
    }

    /// Bytes that a host has put into streams so far.
    pub fn sent(&self, host: &str) -> u64 {
        let index = self.host_index(host);
        let state = self.state.borrow();
        let own = state.ends.iter().zip(&state.pipes).filter(|(end, _)| end.host == Some(index));
        own.map(|(_, pipe)| pipe.written).sum()
    }

    /// Bytes of content that fit on a host's disk; without limit at first.
    pub fn set_capacity(&self, host: &str, bytes: u64) {
        let index = self.host_index(host);
        self.state.borrow_mut().hosts[index].disk.capacity = bytes;
    }

    /// Bytes of content beyond which a host's disk stores nothing, which it says only to close, and how, as file systems in
    /// a network do; `None`: it stores all, as at first.
    pub fn set_stores(&self, host: &str, stores: Option<(u64, Fault)>) {
        let index = self.host_index(host);
        self.state.borrow_mut().hosts[index].disk.stores = stores;
    }

    /// Chance from this world's seed, for a test's own decisions.
    pub fn random(&self) -> random::Random {
        self.state.borrow_mut().random.fork()
    }

    fn add_root(&self, host: usize, path: &str) -> DirId {
        let mut state = self.state.borrow_mut();
        let made = Meta::new(0o755, state.clock);
        let root = state.hosts[host].disk.root.clone();
        let root = disk::make_directory(&root, &target(path), made).expect("a path without a file in it");
        state.hosts[host].disk.add_root(root)
    }

    fn add_store(&self, host: usize) -> DirId {
        self.state.borrow_mut().hosts[host].disk.directories.insert(files::Dir::Store)
    }

    /// The host of this name; it is made, without a backend, when it is first named.
    fn host_index(&self, name: &str) -> usize {
        let mut state = self.state.borrow_mut();
        let found = state.hosts.iter().position(|host| host.name == name);
        found.unwrap_or_else(|| {
            state.hosts.push(Host::new(name));
            state.hosts.len() - 1
        })
    }
}

fn target(path: &str) -> Target {
    Target { operand: RequestPath::parse(path.as_bytes()).expect("a good path"), below: None }
}

fn find_parent(state: &State, host: usize, path: &str) -> (disk::DirectoryRef, Vec<u8>) {
    let made = Meta::new(0o755, state.clock);
    disk::find_parent(&state.hosts[host].disk.root, &target(path), Some(made)).expect("a path without a file in it")
}

fn collect(node: &Node, path: &[u8], entries: &mut BTreeMap<Vec<u8>, Entry>) {
    if !path.is_empty() {
        let (content, earlier) = match node {
            Node::File(file) => (file.borrow().content.clone(), file.borrow().earlier.clone()),
            _ => (Vec::new(), Vec::new()),
        };
        let link = node.link_text().to_vec();
        entries.insert(path.to_vec(), Entry { attributes: node.attributes(), content, link, earlier });
    }
    if let Node::Directory(directory) = node {
        for (name, below) in &directory.borrow().entries {
            let path = if path.is_empty() { name.clone() } else { [path, name].join(&b'/') };
            collect(below, &path, entries);
        }
    }
}
