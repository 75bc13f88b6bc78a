//! The simulated [`Backend`] of one host, and a far end for tests that play the peer themselves.

use super::World;
use crate::backend::{Backend, Broken, Completion, DirId, Errno, Features, Submissions, Time, Waker};
use crate::contract::{Arrived, Peer};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One host's backend. It never blocks: a turn takes the submissions, lets the world go on a little, and returns what
/// is ready, which may be nothing; see [`World::advance`].
///
/// After a crash every call fails. Dropping it is the orderly end of its process: streams are closed, files that have
/// no name are gone.
pub struct SimBackend {
    pub(super) world: Rc<World>,
    pub(super) host: usize,
    pub(super) incarnation: u32,
    pub(super) root: DirId,
    pub(super) features: Features,
}

impl SimBackend {
    /// The number by which fault plans and hits name this host.
    pub fn host(&self) -> usize {
        self.host
    }

    /// The root of this host's disk.
    pub fn root(&self) -> DirId {
        self.root
    }

    /// A directory of the disk as another root; it is made if missing.
    pub fn add_root(&mut self, path: &str) -> DirId {
        self.world.add_root(self.host, path)
    }

    /// The block store of this host, which outlives a crash. The seed decides which blocks it forgets or damages.
    pub fn add_store(&mut self) -> DirId {
        self.world.add_store(self.host)
    }

    /// False once the host has crashed.
    pub fn is_alive(&self) -> bool {
        let state = self.world.state.borrow();
        state.hosts[self.host].incarnation == self.incarnation
    }

    /// Operations submitted and not yet completed.
    pub fn outstanding(&self) -> usize {
        self.world.state.borrow().hosts[self.host].out
    }
}

impl Backend for SimBackend {
    fn submit_and_wait(
        &mut self,
        submissions: &mut Submissions,
        completions: &mut Vec<Completion>,
        deadline: Option<Time>,
    ) -> Result<(), Broken> {
        let (ops, cancels) = (std::mem::take(&mut submissions.ops), std::mem::take(&mut submissions.cancels));
        if self.is_alive() && self.world.state.borrow_mut().turn(self.host, ops, &cancels, deadline) {
            completions.append(&mut self.world.state.borrow_mut().hosts[self.host].ready);
            return Ok(());
        }
        Err(Broken { what: "the simulated host has crashed", errno: Errno::IO })
    }

    fn waker(&self) -> Waker {
        let woken = self.world.state.borrow().hosts[self.host].woken.clone();
        Waker(Arc::new(move || woken.store(true, Ordering::Relaxed)))
    }

    fn features(&self) -> &Features {
        &self.features
    }

    fn now(&self) -> Time {
        self.world.now()
    }
}

impl Drop for SimBackend {
    fn drop(&mut self) {
        if self.is_alive() {
            self.world.state.borrow_mut().stop(self.host, true);
        }
    }
}

/// The far end of a stream whose near end belongs to a host, driven by a test.
pub struct SimPeer {
    pub(super) world: Rc<World>,
    pub(super) end: usize,
}

impl Peer for SimPeer {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.world.state.borrow_mut().peer_write(self.end, bytes)
    }

    fn read(&mut self, max: usize) -> Arrived {
        match self.world.state.borrow_mut().peer_read(self.end, max) {
            None => Arrived::End,
            Some(bytes) if bytes.is_empty() => Arrived::Nothing,
            Some(bytes) => Arrived::Bytes(bytes),
        }
    }

    fn close_write(&mut self) {
        self.world.state.borrow_mut().peer_close_write(self.end);
    }

    fn close(&mut self) {
        drop(self.world.state.borrow_mut().close_end(self.end, true));
    }
}

impl Drop for SimPeer {
    fn drop(&mut self) {
        self.close();
    }
}
