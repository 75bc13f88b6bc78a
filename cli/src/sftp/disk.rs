//! This machine's files for a copy through SFTP: the operations of the engine, one at a time.
//!
//! What holds for every other copy so holds here: operands are resolved once and held, links below them are not followed,
//! a file gets its name when it is complete, closed well and has its attributes, and the kernel decides what modes may be.

use haul_engine::backend::{
    DirEntry, DirId, Errno, FileId, Finish, FsOp, Op, OpKind, OpenMode, Output, Place, SessionId, Token, Waker,
};
use haul_engine::offload::{Offload, OpenFile, Root};
use haul_engine::wire::frame::{Attributes, Preserve, Unkept};
use haul_engine::wire::path::Target;
use rustix::io::retry_on_intr;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

/// Everything is done for the one session there is.
const TOKEN: Token = Token { session: SessionId(1), transfer: 0, part: 0 };

/// The file operations of the engine, each to its end. What was begun and not published goes with it.
pub(super) struct Disk {
    offload: Offload,
    woken: Receiver<()>,
    root: DirId,
}

impl Disk {
    /// Paths are the user's: relative ones begin at the working directory.
    pub(super) fn new() -> io::Result<Disk> {
        let (wake, woken) = channel();
        // Nobody listens once the run is over.
        let mut offload = Offload::new(1, Waker(Arc::new(move || _ = wake.send(()))))?;
        let root = Root::working_directory().map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
        let root = offload.add_root(root);
        Ok(Disk { offload, woken, root })
    }

    fn run(&mut self, kind: OpKind) -> Result<Output, Errno> {
        let mut completions = Vec::new();
        self.offload.submit(Op { token: TOKEN, kind }, &mut completions);
        while completions.is_empty() {
            self.woken.recv().map_err(|_| Errno::IO)?;
            self.offload.drain(&mut completions);
        }
        completions.pop().map_or(Err(Errno::IO), |completion| completion.result)
    }

    fn names(&mut self, op: FsOp) -> Result<Output, Errno> {
        self.run(OpKind::Fs(Box::new(op)))
    }

    fn place(&self, target: &Target) -> Place {
        Place { dir: self.root, target: target.clone() }
    }

    /// What stands there, itself or what a link there leads to; `None` where nothing does.
    pub(super) fn stat(&mut self, target: &Target, follow: bool) -> Result<Option<Attributes>, Errno> {
        Ok(self.look(target, follow)?.map(|(attributes, _)| attributes))
    }

    /// The same with the text of a link.
    pub(super) fn look(&mut self, target: &Target, follow: bool) -> Result<Option<(Attributes, Vec<u8>)>, Errno> {
        let place = self.place(target);
        match self.names(FsOp::Stat { place, follow }) {
            Ok(Output::Attributes { attributes, link }) => Ok(Some((attributes, link))),
            Err(Errno::NOT_FOUND) => Ok(None),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// A regular file to read.
    pub(super) fn open(&mut self, target: &Target) -> Result<(FileId, Attributes), Errno> {
        self.open_as(target, OpenMode::Read)
    }

    /// A file to write, that will stand there once it is published.
    pub(super) fn create(&mut self, target: &Target, size: u64) -> Result<FileId, Errno> {
        self.open_as(target, OpenMode::Create { size, keep: 0, overwrite: true }).map(|(file, _)| file)
    }

    fn open_as(&mut self, target: &Target, mode: OpenMode) -> Result<(FileId, Attributes), Errno> {
        let place = self.place(target);
        match self.run(OpKind::Open { place, mode }) {
            Ok(Output::Opened { file, attributes }) => Ok((file, attributes)),
            outcome => Err(unexpected(outcome)),
        }
    }

    fn file(&self, file: FileId) -> Result<&OpenFile, Errno> {
        self.offload.file(file).map(|file| &**file).ok_or(Errno::STALE_ID)
    }

    /// Bytes at this offset: none at the end of the file, else at least one.
    pub(super) fn read(&self, file: FileId, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let file = self.file(file)?;
        Ok(retry_on_intr(|| rustix::io::pread(file.fd(), &mut *into, offset))?)
    }

    /// All of these bytes at this offset.
    pub(super) fn write(&self, file: FileId, mut offset: u64, mut from: &[u8]) -> Result<(), Errno> {
        let file = self.file(file)?;
        while !from.is_empty() {
            let count = retry_on_intr(|| rustix::io::pwrite(file.fd(), from, offset))?;
            if count == 0 {
                return Err(Errno::IO);
            }
            from = &from[count..];
            offset += count as u64;
        }
        Ok(())
    }

    /// What an open file is now.
    pub(super) fn stat_open(&mut self, file: FileId) -> Result<Attributes, Errno> {
        match self.names(FsOp::StatOpen { file, past: None }) {
            Ok(Output::Attributes { attributes, .. }) => Ok(attributes),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// Gives a file up. One that was to be written leaves no trace.
    pub(super) fn close(&mut self, file: FileId) {
        // Nothing that was read, and nothing that is given up, depends on how it ends.
        let _ = self.run(OpKind::Close { file });
    }

    /// Gives a file its attributes and its name; what of them cannot be kept is returned.
    pub(super) fn publish(
        &mut self,
        file: FileId,
        attributes: Attributes,
        preserve: Preserve,
        sync: bool,
    ) -> Result<Unkept, Errno> {
        let finish = Box::new(Finish { attributes: Some(attributes), preserve, sync, verify: None });
        unkept(self.run(OpKind::Publish { file, finish }))
    }

    /// Makes a directory, if it is not there, and holds it until it gets its attributes.
    pub(super) fn make_dir(&mut self, target: &Target) -> Result<(), Errno> {
        let place = self.place(target);
        unkept(self.names(FsOp::MakeDir { place })).map(|_| ())
    }

    /// Attributes of a directory.
    pub(super) fn set_meta(
        &mut self,
        target: &Target,
        attributes: Attributes,
        preserve: Preserve,
    ) -> Result<Unkept, Errno> {
        let place = self.place(target);
        unkept(self.names(FsOp::SetMeta { place, attributes, preserve }))
    }

    /// A symbolic link, in place of a file or link of that name.
    pub(super) fn make_link(&mut self, target: &Target, text: &[u8], attributes: Attributes) -> Result<Unkept, Errno> {
        let (place, text) = (self.place(target), text.to_vec());
        unkept(self.names(FsOp::MakeLink { place, text, attributes, preserve: Preserve::default() }))
    }

    /// A directory to list, and what it is.
    pub(super) fn open_dir(&mut self, target: &Target) -> Result<(DirId, Attributes), Errno> {
        let place = self.place(target);
        match self.names(FsOp::OpenDir { place }) {
            Ok(Output::OpenedDir { dir, attributes }) => Ok((dir, attributes)),
            outcome => Err(unexpected(outcome)),
        }
    }

    /// The next of its entries; true with the last ones.
    pub(super) fn read_dir(&mut self, dir: DirId) -> Result<(Vec<DirEntry>, bool), Errno> {
        match self.names(FsOp::ReadDir { dir }) {
            Ok(Output::Entries { entries, end }) => Ok((entries, end)),
            outcome => Err(unexpected(outcome)),
        }
    }

    pub(super) fn close_dir(&mut self, dir: DirId) {
        // It was only read.
        let _ = self.names(FsOp::CloseDir { dir });
    }
}

fn unkept(outcome: Result<Output, Errno>) -> Result<Unkept, Errno> {
    match outcome {
        Ok(Output::Done) => Ok(Unkept::default()),
        Ok(Output::Unkept(what)) => Ok(what),
        outcome => Err(unexpected(outcome)),
    }
}

/// The error, of an operation that brings nothing else than what was looked for.
fn unexpected(outcome: Result<Output, Errno>) -> Errno {
    outcome.err().unwrap_or(Errno::IO)
}
