//! Bounded helper threads that carry out file operations for both real backends.
//!
//! Owns the tables of open files and directories, path resolution below a [`Root`], and every rule of how a file comes
//! into being: nameless or under a temporary name, complete and with its final attributes before it gets its name.
//! Does not own streams; a backend may use the descriptor of an [`OpenFile`] itself to read, write or splice.
//!
//! ```text
//!                submit                          drain
//! backend ------------------> queue -> helper ------------> completions, and ids for what was opened
//!    ids are resolved here, so a stale one never reaches a helper
//! ```
//!
//! Paths: peers are hostile, and so are other users of this machine who rename directories while we work. Everything is
//! done relative to held directory handles; `resolve.rs` says how links are treated.
//!
//! ```no_run
//! # use haul_engine::{backend::*, offload::{Offload, Root}, wire::path::{RequestPath, Target}};
//! # use std::sync::Arc;
//! let mut offload = Offload::new(2, Waker(Arc::new(|| ()))).unwrap();
//! let root = offload.add_root(Root::plain(std::fs::File::open(".").unwrap().into()));
//! let target = Target { operand: RequestPath::parse(b"/etc/hosts").unwrap(), below: None };
//! let token = Token { session: SessionId(1), transfer: 0, part: 0 };
//! let kind = OpKind::Open { place: Place { dir: root, target }, mode: OpenMode::Read };
//! let mut completions = Vec::new();
//! offload.submit(Op { token, kind }, &mut completions);
//! while completions.is_empty() {
//!     offload.drain(&mut completions); // a backend waits for its waker here
//! }
//! ```

#[cfg(test)]
mod attacks;
mod attributes;
mod case;
mod clone;
mod create;
mod jobs;
mod names;
mod open;
mod operands;
mod partial;
mod publish;
mod resolve;
mod shared;
mod store;
mod table;
mod threads;
mod walk;

pub use attributes::guard_metadata;
pub use open::OpenFile;
pub use resolve::Root;
pub use store::BlockStore;

use crate::backend::{
    Cancel, Completion, DirId, DirTag, Errno, FileId, FileTag, FsOp, Op, OpKind, Output, Place, SessionId, Token, Waker,
};
use jobs::Made;
use names::OpenDir;
use operands::Holder;
use std::collections::HashMap;
use std::sync::Arc;
use table::Table;
use threads::{Finished, Job, Threads, TicketTag};

/// True while a unit test wants this thread to do without openat2, O_TMPFILE and copies inside the kernel.
#[cfg(all(not(test), target_os = "linux"))]
const fn old_kernel() -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
fn old_kernel() -> bool {
    OLD_KERNEL.get()
}

#[cfg(test)]
thread_local! {
    static OLD_KERNEL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What the ids of an op stood for when it was submitted. Keeps it alive until the job is done.
enum Held {
    Nothing,
    Root(Root),
    Roots { from: Root, to: Root },
    File(Arc<OpenFile>),
    Dir(Arc<OpenDir>),
    Blocks { file: Arc<OpenFile>, store: BlockStore },
}

struct File {
    file: Arc<OpenFile>,
    owner: SessionId,
}

enum Dir {
    Root(Root),
    Store(BlockStore),
    Open { dir: Arc<OpenDir>, owner: SessionId },
}

/// A job between submission and completion.
struct Underway {
    token: Token,
    /// The session was cancelled: what the job opens is released at once.
    forsaken: bool,
}

/// The helper threads with their tables of open files and directories. Used by one worker thread.
pub struct Offload {
    threads: Threads,
    files: Table<FileTag, File>,
    dirs: Table<DirTag, Dir>,
    underway: Table<TicketTag, Underway>,
    /// What each session holds open.
    holders: HashMap<SessionId, Arc<Holder>>,
    finished: Vec<Finished>,
}

impl Offload {
    /// Starts `threads` helpers (at least one). `wake` is called from a helper whenever the list of finished jobs stops
    /// being empty; [`Offload::drain`] empties it.
    pub fn new(threads: usize, wake: Waker) -> std::io::Result<Offload> {
        attributes::umask();
        let threads = Threads::start(threads, wake)?;
        let underway = Table::new();
        let (files, dirs) = (Table::new(), Table::new());
        Ok(Offload { threads, files, dirs, underway, holders: HashMap::new(), finished: Vec::new() })
    }

    /// Adds a root that places can name. It stays for as long as `self`.
    pub fn add_root(&mut self, root: Root) -> DirId {
        self.dirs.insert(Dir::Root(root))
    }

    /// Adds a block store. It stays for as long as `self`.
    pub fn add_store(&mut self, store: BlockStore) -> DirId {
        self.dirs.insert(Dir::Store(store))
    }

    /// Starts a file operation. Its ids are resolved now: a stale one ends the op at once with [`Errno::STALE_ID`], and
    /// ids given to Close, CloseDir and Publish are stale from here on. Ops that are not about files are
    /// [`Errno::INVALID`].
    pub fn submit(&mut self, op: Op, completions: &mut Vec<Completion>) {
        match self.hold(&op.kind, op.token.session) {
            Ok(held) => {
                let ticket = self.underway.insert(Underway { token: op.token, forsaken: false });
                self.threads.submit(Job::new(ticket, op, held));
            }
            Err(errno) => completions.push(Completion { op, result: Err(errno) }),
        }
    }

    /// Appends what has finished, with ids for the files and directories that were opened.
    pub fn drain(&mut self, completions: &mut Vec<Completion>) {
        let mut finished = std::mem::take(&mut self.finished);
        self.threads.take_results(&mut finished);
        for Finished { ticket, op, result } in finished.drain(..) {
            let forsaken = self.underway.remove(ticket).is_none_or(|underway| underway.forsaken);
            let result = result.and_then(|made| self.admit(made, op.token.session, forsaken));
            completions.push(Completion { op, result });
        }
        self.finished = finished;
    }

    /// True while [`Offload::drain`] would find something.
    pub fn has_finished(&self) -> bool {
        self.threads.has_results()
    }

    /// The open file behind an id.
    pub fn file(&self, id: FileId) -> Option<&Arc<OpenFile>> {
        self.files.find(id).map(|entry| &entry.file)
    }

    /// Jobs submitted and not yet drained.
    pub fn in_flight(&self) -> usize {
        self.underway.len()
    }

    /// Ends covered jobs that no helper has begun with [`Errno::CANCELLED`]; those begun complete in time. With
    /// [`Cancel::Session`] all files and directories opened under its tokens are released, and jobs of it that are
    /// still running bring no new ones.
    pub fn cancel(&mut self, cancel: Cancel, completions: &mut Vec<Completion>) {
        let Offload { threads, files, dirs, underway, holders, .. } = self;
        let mut taken = Vec::new();
        threads.cancel(cancel, |job| taken.push(job));
        for Job { ticket, op, held, .. } in taken {
            underway.remove(ticket);
            threads.release(held);
            completions.push(Completion { op, result: Err(Errno::CANCELLED) });
        }
        let Cancel::Session(session) = cancel else { return };
        for job in underway.values_mut().filter(|job| job.token.session == session) {
            job.forsaken = true;
        }
        holders.remove(&session);
        files.remove_where(|entry| entry.owner == session, |entry| threads.release(Held::File(entry.file)));
        let owned = |dir: &Dir| matches!(dir, Dir::Open { owner, .. } if *owner == session);
        dirs.remove_where(owned, |dir| {
            if let Dir::Open { dir, .. } = dir {
                threads.release(Held::Dir(dir));
            }
        });
    }

    /// Resolves the ids of an op, taking out of the tables what the op gives up.
    fn hold(&mut self, kind: &OpKind, session: SessionId) -> Result<Held, Errno> {
        match kind {
            OpKind::Open { place, .. } | OpKind::Load { place, .. } => self.root(place, session).map(Held::Root),
            OpKind::Store(store) => self.root(&store.place, session).map(Held::Root),
            OpKind::Close { file } | OpKind::Publish { file, .. } => {
                self.files.remove(*file).map(|entry| Held::File(entry.file)).ok_or(Errno::STALE_ID)
            }
            OpKind::Read { file, .. } | OpKind::Write { file, .. } => self.held_file(*file),
            OpKind::Fs(fs) => self.hold_fs(fs, session),
            OpKind::Compute(_) => Ok(Held::Nothing),
            _ => Err(Errno::INVALID),
        }
    }

    fn hold_fs(&mut self, op: &FsOp, session: SessionId) -> Result<Held, Errno> {
        match op {
            FsOp::Stat { place, .. }
            | FsOp::OpenDir { place }
            | FsOp::MakeDir { place }
            | FsOp::SetMeta { place, .. }
            | FsOp::MakeLink { place, .. } => self.root(place, session).map(Held::Root),
            FsOp::StatOpen { file, .. } | FsOp::HashPart { file, .. } | FsOp::HashBlocks { file, .. } => {
                self.held_file(*file)
            }
            FsOp::ReadDir { dir } => match self.dirs.find(*dir) {
                Some(Dir::Open { dir, .. }) => Ok(Held::Dir(dir.clone())),
                Some(Dir::Root(_) | Dir::Store(_)) => Err(Errno::INVALID),
                None => Err(Errno::STALE_ID),
            },
            FsOp::CloseDir { dir } => match self.dirs.find(*dir) {
                Some(Dir::Root(_) | Dir::Store(_)) => Err(Errno::INVALID),
                _ => match self.dirs.remove(*dir) {
                    Some(Dir::Open { dir, .. }) => Ok(Held::Dir(dir)),
                    _ => Err(Errno::STALE_ID),
                },
            },
            FsOp::Clone { from, to, .. } => {
                Ok(Held::Roots { from: self.root(from, session)?, to: self.root(to, session)? })
            }
            FsOp::FillBlocks { file, store, .. } | FsOp::KeepBlocks { file, store, .. } => {
                let file = self.file(*file).cloned().ok_or(Errno::STALE_ID)?;
                match self.dirs.find(*store) {
                    Some(Dir::Store(store)) => Ok(Held::Blocks { file, store: store.clone() }),
                    Some(Dir::Root(_) | Dir::Open { .. }) => Err(Errno::INVALID),
                    None => Err(Errno::STALE_ID),
                }
            }
        }
    }

    fn held_file(&self, id: FileId) -> Result<Held, Errno> {
        self.file(id).map(|file| Held::File(file.clone())).ok_or(Errno::STALE_ID)
    }

    /// The root of a place, for a session that holds open what it names there.
    fn root(&mut self, place: &Place, session: SessionId) -> Result<Root, Errno> {
        match self.dirs.find(place.dir) {
            Some(Dir::Root(root)) => Ok(root.held_by(self.holders.entry(session).or_default())),
            Some(Dir::Open { .. } | Dir::Store(_)) => Err(Errno::INVALID),
            None => Err(Errno::STALE_ID),
        }
    }

    /// Turns what a job made into an output, giving ids to what it opened unless nobody is there to use them.
    fn admit(&mut self, made: Made, owner: SessionId, forsaken: bool) -> Result<Output, Errno> {
        match made {
            Made::Output(output) => Ok(output),
            Made::File(file, _) if forsaken => {
                self.threads.release(Held::File(file));
                Err(Errno::CANCELLED)
            }
            Made::Dir(dir, _) if forsaken => {
                self.threads.release(Held::Dir(dir));
                Err(Errno::CANCELLED)
            }
            Made::File(file, attributes) => {
                Ok(Output::Opened { file: self.files.insert(File { file, owner }), attributes })
            }
            Made::Dir(dir, attributes) => {
                Ok(Output::OpenedDir { dir: self.dirs.insert(Dir::Open { dir, owner }), attributes })
            }
        }
    }
}
