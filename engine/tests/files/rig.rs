//! An offload to try things on, and shorthands for ops.

use haul_engine::backend::*;
use haul_engine::block::{Block, Class, Pool, Slice, Slices};
use haul_engine::offload::{Offload, Root};
use haul_engine::wire::frame::{Attributes, Preserve, Timestamp};
use haul_engine::wire::path::{RelPath, RequestPath, Target};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const SESSION: SessionId = SessionId(7);
pub(crate) const PLAIN: Finish = Finish { attributes: None, preserve: Preserve(0), sync: false, verify: None };

/// An offload with a temporary directory as its plain root.
pub(crate) struct Rig {
    pub(crate) offload: Offload,
    pub(crate) woken: mpsc::Receiver<()>,
    pub(crate) root: DirId,
    pub(crate) dir: TempDir,
    pub(crate) pool: Pool,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let (wake, woken) = mpsc::channel();
        let mut offload = Offload::new(2, Waker(Arc::new(move || wake.send(()).unwrap()))).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = offload.add_root(Root::plain(fs::File::open(dir.path()).unwrap().into()));
        Rig { offload, woken, root, dir, pool: Pool::new(8, 2) }
    }

    pub(crate) fn place(&self, path: impl AsRef<[u8]>) -> Place {
        Place { dir: self.root, target: target(path.as_ref()) }
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn block(&mut self) -> Block {
        self.pool.take_reserved(Class::Small).unwrap()
    }

    pub(crate) fn slice(&mut self, bytes: &[u8]) -> Slice {
        let mut block = self.block();
        block.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        block.share().slice(0..bytes.len())
    }

    /// Carries one op out and returns it with its result.
    pub(crate) fn complete(&mut self, kind: OpKind) -> (OpKind, Result<Output, Errno>) {
        let mut completions = Vec::new();
        self.offload.submit(Op { token: token(SESSION, 1), kind }, &mut completions);
        while completions.is_empty() {
            self.woken.recv_timeout(Duration::from_secs(30)).expect("an op that never ends");
            self.offload.drain(&mut completions);
        }
        assert_eq!((completions.len(), self.offload.in_flight()), (1, 0));
        let Completion { op, result } = completions.pop().unwrap();
        (op.kind, result)
    }

    pub(crate) fn run(&mut self, kind: OpKind) -> Result<Output, Errno> {
        self.complete(kind).1
    }

    pub(crate) fn fs(&mut self, op: FsOp) -> Result<Output, Errno> {
        self.run(OpKind::Fs(Box::new(op)))
    }

    pub(crate) fn open(&mut self, path: impl AsRef<[u8]>, mode: OpenMode) -> Result<(FileId, Attributes), Errno> {
        let place = self.place(path);
        match self.run(OpKind::Open { place, mode })? {
            Output::Opened { file, attributes } => Ok((file, attributes)),
            output => panic!("{output:?}"),
        }
    }

    pub(crate) fn create(
        &mut self,
        path: impl AsRef<[u8]>,
        size: u64,
        keep: u64,
    ) -> Result<(FileId, Attributes), Errno> {
        self.open(path, OpenMode::Create { size, keep, overwrite: true })
    }

    pub(crate) fn write(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let from = self.slice(bytes);
        self.run(OpKind::Write { file, offset, from }).unwrap();
    }

    pub(crate) fn publish(&mut self, file: FileId, finish: Finish) -> Result<(), Errno> {
        self.run(OpKind::Publish { file, finish: Box::new(finish) }).map(|_| ())
    }

    pub(crate) fn close(&mut self, file: FileId) {
        self.run(OpKind::Close { file }).unwrap();
    }

    pub(crate) fn store(&mut self, path: impl AsRef<[u8]>, bytes: &[u8], finish: Finish) -> Result<(), Errno> {
        let place = self.place(path);
        let from = Slices::from_iter([self.slice(bytes)]);
        self.run(OpKind::Store(Box::new(Store { place, from, finish, overwrite: true }))).map(|_| ())
    }

    /// The content of a file that fits a small block, and its attributes.
    pub(crate) fn load(&mut self, path: impl AsRef<[u8]>) -> Result<(Vec<u8>, Attributes), Errno> {
        let place = self.place(path);
        let into = self.block();
        match self.complete(OpKind::Load { place, into }) {
            (OpKind::Load { into, .. }, Ok(Output::Loaded { attributes, len, .. })) => {
                Ok((into.bytes()[..len].to_vec(), attributes))
            }
            (_, result) => Err(result.map(|output| panic!("{output:?}")).unwrap_err()),
        }
    }

    pub(crate) fn stat(&mut self, path: impl AsRef<[u8]>, follow: bool) -> Result<(Attributes, Vec<u8>), Errno> {
        let place = self.place(path);
        match self.fs(FsOp::Stat { place, follow })? {
            Output::Attributes { attributes, link } => Ok((attributes, link)),
            output => panic!("{output:?}"),
        }
    }

    pub(crate) fn assert_names(&self, names: &[&str]) {
        let mut found: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, names.iter().map(OsStr::new).collect::<Vec<_>>());
    }
}

pub(crate) fn token(session: SessionId, transfer: u32) -> Token {
    Token { session, transfer, part: 0 }
}

/// `operand` or `operand | below`.
pub(crate) fn target(path: &[u8]) -> Target {
    let mut parts = path.splitn(2, |&byte| byte == b'|');
    let operand = RequestPath::parse(parts.next().unwrap()).unwrap();
    Target { operand, below: parts.next().map(|below| RelPath::parse(below).unwrap()) }
}

pub(crate) fn attributes(mode: u32, mtime: (i64, u32)) -> Attributes {
    let mtime = Timestamp { seconds: mtime.0, nanoseconds: mtime.1 };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attributes { mode, mtime, uid, gid, ..NO_ATTRIBUTES }
}

pub(crate) fn finish(attributes: Attributes, preserve: Preserve) -> Finish {
    Finish { attributes: Some(attributes), preserve, sync: false, verify: None }
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn mkfifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}
