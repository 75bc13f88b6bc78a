//! The backend contract, with streams that are ours, streams shared with other processes, and helper threads.

use haul_engine::backend::{
    Attach, Backend, Broken, Completion, DirId, Errno, Features, StreamId, Submissions, Time, Waker,
};
use haul_engine::contract::Machine;
use haul_engine::offload::{BlockStore, Root};
use haul_fallback::Poll;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;

fn root(path: &Path) -> Root {
    let path = path.canonicalize().expect("the rig's directory");
    Root::confined(std::fs::File::open(&path).expect("the rig's directory").into(), path)
}

/// Every stream is ours: non-blocking descriptors.
struct Ours;

impl Machine for Ours {
    type Backend = Poll;

    fn backend() -> Poll {
        Poll::new().expect("an event queue")
    }

    fn add_root(backend: &mut Poll, path: &Path) -> DirId {
        backend.add_root(root(path))
    }
}

/// A backend that is told that its streams are not its own.
struct Inheriting(Poll);

impl Backend for Inheriting {
    fn submit_and_wait(
        &mut self,
        submissions: &mut Submissions,
        completions: &mut Vec<Completion>,
        deadline: Option<Time>,
    ) -> Result<(), Broken> {
        self.0.submit_and_wait(submissions, completions, deadline)
    }

    fn waker(&self) -> Waker {
        self.0.waker()
    }

    fn features(&self) -> &Features {
        self.0.features()
    }

    fn now(&self) -> Time {
        self.0.now()
    }
}

impl Attach for Inheriting {
    fn add_stream(&mut self, read: OwnedFd, write: Option<OwnedFd>, _: bool) -> Result<StreamId, Errno> {
        self.0.add_stream(read, write, false)
    }

    fn add_listener(&mut self, listener: TcpListener) -> Result<StreamId, Errno> {
        self.0.add_listener(listener)
    }

    fn add_root(&mut self, root: Root) -> DirId {
        self.0.add_root(root)
    }

    fn add_store(&mut self, store: BlockStore) -> DirId {
        self.0.add_store(store)
    }
}

/// No stream is ours: blocking descriptors, calls that decline to wait.
struct Inherited;

impl Machine for Inherited {
    type Backend = Inheriting;

    fn backend() -> Inheriting {
        Inheriting(Poll::new().expect("an event queue"))
    }

    fn add_root(backend: &mut Inheriting, path: &Path) -> DirId {
        backend.add_root(root(path))
    }
}

/// No stream is ours, and no call can decline: a thread for each direction.
struct Helped;

impl Machine for Helped {
    type Backend = Inheriting;

    fn backend() -> Inheriting {
        Inheriting(Poll::with_helper_threads().expect("an event queue"))
    }

    fn add_root(backend: &mut Inheriting, path: &Path) -> DirId {
        backend.add_root(root(path))
    }
}

mod ours {
    haul_engine::contract_tests!(haul_engine::contract::HostRig<super::Ours>);
}

mod inherited {
    haul_engine::contract_tests!(haul_engine::contract::HostRig<super::Inherited>);
}

mod with_helper_threads {
    haul_engine::contract_tests!(haul_engine::contract::HostRig<super::Helped>);
}
