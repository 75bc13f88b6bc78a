//! The backends of this machine, each with what an operation needs around it.

use anyhow::{Context as _, Result, anyhow, bail};
use haul_engine::backend::{
    Attach, Backend as _, Completion, DirId, FileId, OpKind, OpenMode, Output, Place, SessionId, StreamId, Submissions,
    Token,
};
use haul_engine::block::Pool;
use haul_engine::limits::{POOL_LARGE_BLOCKS, POOL_SMALL_BLOCKS};
use haul_engine::offload::{BlockStore, Root};
use haul_engine::wire::path::{RequestPath, Target};
use haul_fallback::Poll;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

type Make = fn() -> Result<Box<dyn Attach>>;

/// Name and maker of every backend there could be here.
const BACKENDS: &[(&str, Make)] = &[
    #[cfg(target_os = "linux")]
    ("uring", || Ok(Box::new(haul_engine::uring::Uring::new()?))),
    ("poll", || Ok(Box::new(Poll::new()?))),
];

/// Prints what each backend found, and the load.
pub(crate) fn describe() {
    for (name, make) in BACKENDS {
        match make() {
            Ok(backend) => println!("{name}: {}", backend.features().notes.join("; ")),
            Err(why) => println!("{name}: left out: {why}"),
        }
    }
    if let Ok(load) = std::fs::read_to_string("/proc/loadavg") {
        println!("load before: {}", load.trim());
    }
}

/// A backend, a directory it may work in, and a worker's blocks.
pub(crate) struct Near {
    backend: Box<dyn Attach>,
    pub(crate) pool: Pool,
    root: DirId,
    submissions: Submissions,
    completions: Vec<Completion>,
}

/// One for each backend that works here; made afresh for each caller, so that cases share no state.
pub(crate) fn all(dir: &Path) -> Result<Vec<(&'static str, Near)>> {
    let works = |&(name, make): &(&'static str, Make)| Some((name, make().ok()?));
    let nears = BACKENDS.iter().filter_map(works).map(|(name, mut backend)| {
        let root = backend.add_root(Root::plain(File::open(dir)?.into()));
        let pool = Pool::new(POOL_SMALL_BLOCKS, POOL_LARGE_BLOCKS);
        Ok((name, Near { backend, pool, root, submissions: Submissions::default(), completions: Vec::new() }))
    });
    nears.collect()
}

impl Near {
    /// A path below the directory.
    pub(crate) fn place(&self, path: &str) -> Result<Place> {
        let operand = RequestPath::parse(path.as_bytes()).context("a path of our own making")?;
        Ok(Place { dir: self.root, target: Target { operand, below: None } })
    }

    /// The near end of a fresh TCP connection over loopback, and the far end.
    pub(crate) fn connect(&mut self) -> Result<(StreamId, TcpStream)> {
        let (near, far) = tcp_pair()?;
        let stream = self.backend.add_stream(near.into(), None, true);
        Ok((stream.map_err(|errno| anyhow!("cannot attach a stream: {errno}"))?, far))
    }

    /// A block store.
    pub(crate) fn add_store(&mut self, store: BlockStore) -> DirId {
        self.backend.add_store(store)
    }

    /// An open file.
    pub(crate) fn open(&mut self, path: &str, mode: OpenMode) -> Result<FileId> {
        match self.call(OpKind::Open { place: self.place(path)?, mode })? {
            Output::Opened { file, .. } => Ok(file),
            other => bail!("Open brought {other:?}"),
        }
    }

    /// Puts an operation into the next turn.
    pub(crate) fn start(&mut self, kind: OpKind) {
        self.submissions.push(Token { session: SessionId(0), transfer: 1, part: 0 }, kind);
    }

    /// One turn, as a worker takes it; the number of completions.
    pub(crate) fn turn(&mut self, mut each: impl FnMut(OpKind, Output) -> Result<()>) -> Result<usize> {
        self.backend.submit_and_wait(&mut self.submissions, &mut self.completions, None)?;
        let count = self.completions.len();
        for Completion { op, result } in self.completions.drain(..) {
            let output = result.map_err(|errno| anyhow!("{:?}: {errno}", op.kind))?;
            each(op.kind, output)?;
        }
        Ok(count)
    }

    /// Carries one operation out, alone.
    pub(crate) fn call(&mut self, kind: OpKind) -> Result<Output> {
        self.start(kind);
        let mut result = None;
        while result.is_none() {
            self.turn(|_, output| {
                result = Some(output);
                Ok(())
            })?;
        }
        result.context("looked at just now")
    }
}

/// A TCP connection with both ends here; buffers as the system sizes them.
pub(crate) fn tcp_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    Ok((near, far))
}
