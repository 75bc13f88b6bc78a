//! Carries out operations on one host's disk.
//!
//! An operation takes effect at one moment, and is done or not done; only a failing Write may leave half of its bytes.

use super::disk::{self, DirectoryRef, FileRef, Meta, Node};
use super::faults::{Fault, Mutation};
use super::random::Random;
use super::slots::Slots;
use crate::backend::{
    DirEntry, DirId, Errno, FileId, Finish, FsOp, NO_ATTRIBUTES, OpKind, OpenMode, Output, Place, SessionId, Store,
    Time,
};
use crate::block::{Block, Slice};
use crate::tree_hash::{BlockHash, HASH_BLOCK_BYTES};
use crate::wire::frame::{Hash, Kind};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Most entries of one page: small, so that tests see directories of several pages.
const MAX_PAGE: u64 = 16;

/// What the names of files begin with that an interrupted transfer left.
pub(super) const PARTIAL: &[u8] = b".haul-part-";
/// Nanoseconds a codec takes at most.
const MAX_PACKING: u64 = 10_000_000;

/// An open file.
pub(super) struct OpenFile {
    session: SessionId,
    pub(super) node: FileRef,
    /// Where it gets its name, when it is being made.
    making: Option<Making>,
    /// Others that know it may write to it.
    token: Option<u64>,
}

struct Making {
    /// The file stands under its name already and is written to there.
    in_place: bool,
    /// The name under which it stays when it is given up.
    partial: Option<Vec<u8>>,
    parent: DirectoryRef,
    name: Vec<u8>,
    overwrite: bool,
    /// Its final size, where it is made under another name.
    size: usize,
}

impl OpenFile {
    /// The content, if others can get at it.
    fn named(&self) -> Option<FileRef> {
        self.making.as_ref().is_none_or(|making| making.in_place || making.partial.is_some()).then(|| self.node.clone())
    }
}

/// What the id of a directory leads to.
pub(super) enum Dir {
    Root(DirectoryRef),
    /// Who opened it and which names are still to be told, in reverse.
    Open {
        node: DirectoryRef,
        owner: SessionId,
        names: Vec<Vec<u8>>,
    },
    /// The host's block store.
    Store,
}

/// A host's tree and what is open in it.
pub(super) struct Disk {
    pub(super) root: DirectoryRef,
    /// Bytes of content it holds at most.
    pub(super) capacity: u64,
    /// Bytes of content beyond which close fails, so that no Write does, and how.
    pub(super) stores: Option<(u64, Fault)>,
    /// Content of the block store by its hash; see [`super::blocks`].
    pub(super) store: BTreeMap<Hash, Vec<u8>>,
    files: Slots<OpenFile>,
    pub(super) directories: Slots<Dir>,
}

/// What an operation needs of the world.
pub(super) struct Around<'a> {
    pub(super) random: &'a mut Random,
    pub(super) now: Time,
    pub(super) session: SessionId,
    pub(super) fault: Option<Fault>,
    pub(super) mutation: Option<Mutation>,
}

type Outcome = Result<Output, Errno>;

impl Disk {
    pub(super) fn new() -> Disk {
        let root = Node::directory(Meta::new(0o755, Time(0)));
        let (files, directories) = (Slots::default(), Slots::default());
        Disk { root, capacity: u64::MAX, stores: None, store: BTreeMap::new(), files, directories }
    }

    pub(super) fn add_root(&mut self, node: DirectoryRef) -> DirId {
        self.directories.insert(Dir::Root(node))
    }

    /// The end of the process that had things open: what has no name is gone.
    pub(super) fn close_everything(&mut self) {
        self.files = Slots::default();
        self.directories = Slots::default();
    }

    pub(super) fn close_session(&mut self, session: SessionId) {
        self.files.retain(|file| file.session != session);
        self.directories.retain(|dir| !matches!(dir, Dir::Open { owner, .. } if *owner == session));
    }

    /// Files being made that have no name yet.
    pub(super) fn unpublished(&self) -> usize {
        self.files.iter().filter(|file| file.named().is_none()).count()
    }

    /// Everything open, roots and stores apart.
    pub(super) fn open_count(&self) -> usize {
        self.files.iter().count() + self.directories.iter().filter(|dir| matches!(dir, Dir::Open { .. })).count()
    }

    /// A file opened for reading.
    pub(super) fn source(&self, file: FileId) -> Result<FileRef, Errno> {
        Ok(self.files.get(file)?.node.clone())
    }

    /// A file being made.
    pub(super) fn making(&self, file: FileId) -> Result<FileRef, Errno> {
        let open = self.files.get(file)?;
        open.making.as_ref().filter(|making| !making.in_place).map(|_| open.node.clone()).ok_or(Errno::INVALID)
    }

    /// Closes a file whose Publish was cancelled.
    pub(super) fn give_up(&mut self, file: FileId) {
        // Stale already is closed already.
        let _ = self.files.remove(file);
    }

    fn root_of(&self, place: &Place) -> Result<DirectoryRef, Errno> {
        match self.directories.get(place.dir)? {
            Dir::Root(node) => Ok(node.clone()),
            Dir::Open { .. } | Dir::Store => Err(Errno::INVALID),
        }
    }

    fn find(&self, place: &Place, follow: bool) -> Result<Node, Errno> {
        disk::find(&self.root_of(place)?, &place.target, follow)
    }

    pub(super) fn require_space(&self, bytes: u64) -> Result<(), Errno> {
        if self.capacity == u64::MAX {
            return Ok(());
        }
        let unnamed = self.files.iter().filter(|file| file.named().is_none());
        let unnamed: u64 = unnamed.map(|file| file.node.borrow().content.len() as u64).sum();
        let used = unnamed + Node::Directory(self.root.clone()).bytes();
        if used.saturating_add(bytes) > self.capacity { Err(Errno::NO_SPACE) } else { Ok(()) }
    }

    /// What close has to say of a file that is to get its name now, because the disk stores no more.
    pub(super) fn at_close(&self, kind: &OpKind) -> Option<Fault> {
        let (most, fault) = self.stores?;
        let more = match kind {
            OpKind::Store(store) => store.from.iter().map(Slice::len).sum::<usize>(),
            OpKind::Publish { file, .. } => match self.files.get(*file).ok()? {
                open if open.named().is_some() => 0,
                open => open.node.borrow().content.len(),
            },
            _ => return None,
        };
        let used = Node::Directory(self.root.clone()).bytes() + more as u64;
        (used > most).then_some(fault)
    }

    /// Carries an operation out.
    pub(super) fn perform(&mut self, kind: &mut OpKind, around: &mut Around<'_>) -> Outcome {
        match around.fault {
            Some(Fault::ShortSource | Fault::Vanish) => self.spoil(kind, around),
            Some(fault @ (Fault::Grow | Fault::Overwrite)) => self.write_to(kind, fault == Fault::Grow, around),
            // These have an effect even so: half a Write, a closed file.
            Some(_) if matches!(kind, OpKind::Write { .. } | OpKind::Publish { .. } | OpKind::Close { .. }) => {}
            Some(fault) if fault.is_at_close() && around.mutation == Some(Mutation::IgnoreClose) => {}
            Some(fault) => return Err(fault.errno()),
            None => {}
        }
        match kind {
            OpKind::Open { place, mode: OpenMode::Read } => self.open(place, around),
            OpKind::Open { place, mode: OpenMode::Create { size, keep, overwrite } } => {
                self.create(place, (*size, *keep, *overwrite), around)
            }
            OpKind::Open { place, mode: OpenMode::InPlace { truncate } } => self.in_place(place, *truncate, around),
            OpKind::Open { place, mode: OpenMode::Shared { size, token } } => self.shared(place, *size, *token, around),
            OpKind::Open { mode: OpenMode::Join { token }, .. } => self.join(*token, around),
            OpKind::Open { place, mode: OpenMode::Continue { size, token } } => {
                self.partial(place, (*size, *token), around)
            }
            OpKind::Compute(compute) => match compute.run()? {
                // Time is the simulation's own.
                Output::Packed { len, .. } => Ok(Output::Packed { len, nanos: around.random.magnitude(MAX_PACKING) }),
                output => Ok(output),
            },
            OpKind::Close { file } => {
                self.files.remove(*file)?;
                around.fault.map_or(Ok(Output::Done), |fault| Err(fault.errno()))
            }
            OpKind::Read { file, offset, into, len } => self.read(*file, *offset, into, *len),
            OpKind::Write { file, offset, from } => self.write(*file, *offset, from, around),
            OpKind::Load { place, into } => self.load(place, into, around),
            OpKind::Store(store) => self.store(store, around),
            OpKind::Publish { file, finish } => self.publish(*file, finish, around),
            OpKind::Fs(op) => self.perform_fs(op, around),
            // Streams are no business of the disk.
            _ => Err(Errno::UNSUPPORTED),
        }
    }

    /// Somebody else writes to what is about to be read, and to nothing that is being made.
    fn write_to(&mut self, kind: &OpKind, grow: bool, around: &mut Around<'_>) {
        let file = match kind {
            OpKind::Read { file, .. } => Some(*file),
            OpKind::Fs(op) => match **op {
                FsOp::StatOpen { file, .. } | FsOp::HashPart { file, .. } => Some(file),
                _ => None,
            },
            _ => None,
        };
        let open = file.and_then(|file| self.files.get(file).ok()).filter(|open| open.making.is_none());
        let node = match kind {
            OpKind::Load { place, .. } => self.find(place, true).and_then(Node::into_file).ok(),
            _ => open.map(|open| open.node.clone()),
        };
        if let Some(node) = node {
            node.borrow_mut().write_to(grow, around.random);
        }
    }

    /// Somebody else shortens or removes what is about to be read.
    fn spoil(&mut self, kind: &OpKind, around: &mut Around<'_>) {
        let (node, place) = match kind {
            OpKind::Read { file, .. } => (self.files.get(*file).ok().and_then(OpenFile::named), None),
            OpKind::Load { place, .. } | OpKind::Open { place, .. } => {
                (self.find(place, true).and_then(Node::into_file).ok(), Some(place))
            }
            OpKind::Fs(op) => match &**op {
                FsOp::Stat { place, .. } | FsOp::OpenDir { place } => (None, Some(place)),
                _ => (None, None),
            },
            _ => (None, None),
        };
        if around.fault == Some(Fault::ShortSource) {
            if let Some(file) = node {
                shorten(&file, around.random);
            }
        } else if let Some(place) = place {
            let parent = self.root_of(place).and_then(|root| disk::find_parent(&root, &place.target, None));
            if let Ok((parent, name)) = parent {
                parent.borrow_mut().entries.remove(&name);
            }
        }
    }

    fn open(&mut self, place: &Place, around: &Around<'_>) -> Outcome {
        let node = self.find(place, true)?.into_file()?;
        let attributes = node.borrow().attributes();
        let file = self.files.insert(OpenFile { session: around.session, node, making: None, token: None });
        Ok(Output::Opened { file, attributes })
    }

    fn create(&mut self, place: &Place, (size, keep, overwrite): (u64, u64, bool), around: &Around<'_>) -> Outcome {
        self.require_space(size)?;
        let made = Meta::new(0o755, around.now);
        let (parent, name) = disk::find_parent(&self.root_of(place)?, &place.target, Some(made))?;
        let old = disk::check_replaceable(&parent, &name, overwrite)?;
        let attributes = old.as_ref().map_or(NO_ATTRIBUTES, Node::attributes);
        let kept = match old {
            Some(Node::File(old)) => old.borrow().range(0, usize::try_from(keep).unwrap_or(usize::MAX)).to_vec(),
            _ => Vec::new(),
        };
        if (kept.len() as u64) < keep {
            return Err(Errno::SHORT_SOURCE);
        }
        let node = Node::file(kept, Meta::new(0o600, around.now));
        let size = usize::try_from(size).map_err(|_| Errno::INVALID)?;
        let making = Some(Making { in_place: false, partial: None, parent, name, overwrite, size });
        let file = self.files.insert(OpenFile { session: around.session, node, making, token: None });
        Ok(Output::Opened { file, attributes })
    }

    fn in_place(&mut self, place: &Place, truncate: Option<u64>, around: &Around<'_>) -> Outcome {
        self.require_space(truncate.unwrap_or(0))?;
        let made = Meta::new(0o755, around.now);
        let (parent, name) = disk::find_parent(&self.root_of(place)?, &place.target, Some(made))?;
        let node = match disk::check_replaceable(&parent, &name, true)? {
            Some(node) => node.into_file()?,
            None => {
                let node = Node::file(Vec::new(), Meta::new(0o644, around.now));
                disk::place(&parent, &name, Node::File(node.clone()), false)?;
                node
            }
        };
        let attributes = node.borrow().attributes();
        if let Some(size) = truncate {
            let content = &mut node.borrow_mut().content;
            content.clear();
            content.resize(usize::try_from(size).map_err(|_| Errno::INVALID)?, 0);
        }
        let making = Some(Making { in_place: true, partial: None, parent, name, overwrite: true, size: 0 });
        let file = self.files.insert(OpenFile { session: around.session, node, making, token: None });
        Ok(Output::Opened { file, attributes })
    }

    fn shared(&mut self, place: &Place, size: u64, token: u64, around: &Around<'_>) -> Outcome {
        let outcome = self.create(place, (size, 0, true), around)?;
        if let Output::Opened { file, .. } = &outcome {
            let open = self.files.get_mut(*file)?;
            open.token = Some(token);
            open.node.borrow_mut().content.resize(usize::try_from(size).map_err(|_| Errno::INVALID)?, 0);
        }
        Ok(outcome)
    }

    fn join(&mut self, token: u64, around: &Around<'_>) -> Outcome {
        let shared = self.files.iter().find(|open| open.token == Some(token)).ok_or(Errno::NOT_FOUND)?;
        let (node, making) = (shared.node.clone(), shared.making.as_ref().ok_or(Errno::INVALID)?);
        // Its bytes are counted where it was made.
        let (parent, name, size) = (making.parent.clone(), making.name.clone(), making.size as u64);
        let making = Some(Making { in_place: true, partial: None, parent, name, overwrite: true, size: 0 });
        let attributes = crate::wire::frame::Attributes { size, ..node.borrow().attributes() };
        let file = self.files.insert(OpenFile { session: around.session, node, making, token: None });
        Ok(Output::Opened { file, attributes })
    }

    /// Begins a file under a name of its own, or goes on with it. One that another session has open is left to it.
    fn partial(&mut self, place: &Place, (size, token): (u64, Option<u64>), around: &Around<'_>) -> Outcome {
        let made = Meta::new(0o755, around.now);
        let (parent, name) = disk::find_parent(&self.root_of(place)?, &place.target, Some(made))?;
        disk::check_replaceable(&parent, &name, true)?;
        let partial = [PARTIAL, &name].concat();
        let present = parent.borrow().entries.get(&partial).cloned().and_then(|node| node.into_file().ok());
        let node = present.unwrap_or_else(|| Node::file(Vec::new(), Meta::new(0o600, around.now)));
        if self.files.iter().any(|open| Rc::ptr_eq(&open.node, &node)) {
            let outcome = self.create(place, (size, 0, true), around)?;
            if let Output::Opened { file, .. } = &outcome {
                self.files.get_mut(*file)?.token = token;
            }
            return Ok(outcome);
        }
        let there = node.borrow().content.len() as u64;
        self.require_space(size.saturating_sub(there))?;
        parent.borrow_mut().entries.insert(partial.clone(), Node::File(node.clone()));
        let size = usize::try_from(size).map_err(|_| Errno::INVALID)?;
        let making = Some(Making { in_place: false, partial: Some(partial), parent, name, overwrite: true, size });
        let file = self.files.insert(OpenFile { session: around.session, node, making, token });
        Ok(Output::Opened { file, attributes: crate::wire::frame::Attributes { size: there, ..NO_ATTRIBUTES } })
    }

    fn hash_blocks(&self, file: FileId, first: u64, count: usize, plain: bool) -> Outcome {
        let of = if plain { BlockHash::of } else { BlockHash::placed };
        let node = self.source(file)?;
        let node = node.borrow();
        let blocks = node.content.chunks(HASH_BLOCK_BYTES).enumerate();
        let blocks = blocks.skip(usize::try_from(first).unwrap_or(usize::MAX)).take(count);
        Ok(Output::BlockHashes(blocks.map(|(index, block)| of(index as u64, block)).collect()))
    }

    fn read(&self, file: FileId, offset: u64, into: &mut Block, len: usize) -> Outcome {
        let node = self.source(file)?;
        let node = node.borrow();
        let bytes = node.range(offset, len.min(into.capacity()));
        into.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        Ok(Output::Bytes(bytes.len()))
    }

    fn write(&self, file: FileId, offset: u64, from: &Slice, around: &mut Around<'_>) -> Outcome {
        let open = self.files.get(file)?;
        if open.making.is_none() {
            return Err(Errno::STALE_ID);
        }
        let start = usize::try_from(offset).map_err(|_| Errno::INVALID)?;
        let (bytes, end) = match around.fault {
            Some(fault) => (&from.bytes()[..around.random.index(from.len() + 1)], Err(fault.errno())),
            None => (from.bytes(), Ok(Output::Done)),
        };
        let old = open.node.borrow().content.len();
        let new = old.max(start + bytes.len());
        self.require_space((new - old) as u64)?;
        if around.mutation == Some(Mutation::LoseWrites) && around.random.once_in(4) {
            return end;
        }
        let content = &mut open.node.borrow_mut().content;
        content.resize(new, 0);
        content[start..start + bytes.len()].copy_from_slice(bytes);
        end
    }

    fn load(&mut self, place: &Place, into: &mut Block, around: &Around<'_>) -> Outcome {
        let node = self.find(place, true)?.into_file()?;
        let size = node.borrow().attributes().size;
        if node.borrow().content.len() > into.capacity() || size > into.capacity() as u64 {
            return self.open(place, around);
        }
        let node = node.borrow();
        into.bytes_mut()[..node.content.len()].copy_from_slice(&node.content);
        Ok(Output::Loaded { attributes: node.attributes(), len: node.content.len(), grew: false })
    }

    fn store(&self, store: &Store, around: &mut Around<'_>) -> Outcome {
        let mut content = store.from.iter().map(Slice::bytes).collect::<Vec<_>>().concat();
        if around.fault.is_some() {
            lose(&mut content, around.random);
        }
        self.require_space(content.len() as u64)?;
        let made = Meta::new(0o755, around.now);
        let (parent, name) = disk::find_parent(&self.root_of(&store.place)?, &store.place.target, Some(made))?;
        let file = Node::file(content, made);
        finish(&parent, &name, file, &store.finish, (store.overwrite, around.now))
    }

    fn publish(&mut self, file: FileId, how: &Finish, around: &mut Around<'_>) -> Outcome {
        if self.files.get(file)?.making.is_none() {
            return Err(Errno::STALE_ID);
        }
        let OpenFile { node, making: Some(making), .. } = self.files.remove(file)? else { return Err(Errno::STALE_ID) };
        if let Some(fault) = around.fault {
            // It stays so where it has a name already: its own, or that of a partial.
            if fault.is_at_close() {
                lose(&mut node.borrow_mut().content, around.random);
            }
            if !fault.is_at_close() || around.mutation != Some(Mutation::IgnoreClose) {
                return Err(fault.errno());
            }
        }
        if making.in_place {
            return Ok(Output::Done);
        }
        if making.partial.is_some() {
            node.borrow_mut().content.truncate(making.size);
        }
        if let Some(expected) = how.verify
            && *blake3::hash(&node.borrow().content).as_bytes() != expected
        {
            return Err(Errno::HASH_MISMATCH);
        }
        if let Some(partial) = &making.partial {
            making.parent.borrow_mut().entries.remove(partial);
        }
        finish(&making.parent, &making.name, node, how, (making.overwrite, around.now))
    }

    fn perform_fs(&mut self, op: &mut FsOp, around: &mut Around<'_>) -> Outcome {
        match op {
            FsOp::Stat { place, follow } => {
                let node = self.find(place, *follow)?;
                Ok(Output::Attributes { attributes: node.attributes(), link: node.link_text().to_vec() })
            }
            FsOp::StatOpen { file, past } => {
                let node = self.source(*file)?;
                let node = node.borrow();
                let attributes = node.attributes();
                match *past {
                    Some(past) if past == attributes.size && node.content.len() as u64 > past => Err(Errno::SIZE_LIES),
                    _ => Ok(Output::Attributes { attributes, link: Vec::new() }),
                }
            }
            FsOp::HashPart { file, offset, end } => {
                let node = self.source(*file)?;
                let node = node.borrow();
                let len = usize::try_from(end.saturating_sub(*offset)).map_err(|_| Errno::INVALID)?;
                match node.range(*offset, len) {
                    part if part.len() == len => Ok(Output::Hashed(*blake3::hash(part).as_bytes())),
                    _ => Err(Errno::SHORT_SOURCE),
                }
            }
            FsOp::HashBlocks { file, first, count, plain } => self.hash_blocks(*file, *first, *count, *plain),
            FsOp::OpenDir { place } => self.open_directory(place, around),
            FsOp::ReadDir { dir } => self.read_directory(*dir, around.random),
            FsOp::CloseDir { dir } => {
                if !matches!(self.directories.get(*dir)?, Dir::Open { .. }) {
                    return Err(Errno::INVALID);
                }
                self.directories.remove(*dir).map(|_| Output::Done)
            }
            FsOp::MakeDir { place } => {
                let made = Meta::new(0o755, around.now);
                disk::make_directory(&self.root_of(place)?, &place.target, made).map(|_| Output::Done)
            }
            FsOp::SetMeta { place, attributes, preserve } => {
                if attributes.kind == Kind::Regular {
                    self.find(place, false)?.into_file()?.borrow_mut().meta.apply(*attributes, *preserve, true);
                    return Ok(Output::Done);
                }
                let directory = self.find(place, true)?.into_directory()?;
                directory.borrow_mut().meta.apply(*attributes, *preserve, false);
                Ok(Output::Done)
            }
            FsOp::MakeLink { place, text, attributes, preserve } => {
                let mut meta = Meta::new(0o777, around.now);
                meta.apply(*attributes, *preserve, true);
                let made = Meta::new(0o755, around.now);
                let (parent, name) = disk::find_parent(&self.root_of(place)?, &place.target, Some(made))?;
                let link = Node::Link(Rc::new(disk::Link { text: text.clone(), meta }));
                disk::place(&parent, &name, link, true).map(|()| Output::Done)
            }
            FsOp::Clone { .. } => Err(Errno::UNSUPPORTED),
            FsOp::FillBlocks { file, store, size, first, hashes } => {
                self.fill_blocks(*file, *store, (*size, *first, hashes), around.random)
            }
            FsOp::KeepBlocks { file, store, size, first, hashes } => {
                self.keep_blocks(*file, *store, (*size, *first, hashes), around.random)
            }
        }
    }

    fn open_directory(&mut self, place: &Place, around: &mut Around<'_>) -> Outcome {
        let node = Node::Directory(self.find(place, true)?.into_directory()?);
        let attributes = node.attributes();
        let node = node.into_directory()?;
        // File systems list in an order of their own.
        let mut names: Vec<Vec<u8>> = node.borrow().entries.keys().cloned().collect();
        for end in (1..names.len()).rev() {
            names.swap(end, around.random.index(end + 1));
        }
        let dir = self.directories.insert(Dir::Open { node, owner: around.session, names });
        Ok(Output::OpenedDir { dir, attributes })
    }

    fn read_directory(&mut self, dir: DirId, random: &mut Random) -> Outcome {
        let Dir::Open { node, names, .. } = self.directories.get_mut(dir)? else { return Err(Errno::INVALID) };
        let count = (1 + random.below(MAX_PAGE) as usize).min(names.len());
        let node = node.borrow();
        let page = names.split_off(names.len() - count);
        let entries = page.into_iter().rev().map(|name| match node.entries.get(&name) {
            Some(node) => DirEntry { attributes: Ok(node.attributes()), link: node.link_text().to_vec(), name },
            None => DirEntry { attributes: Err(Errno::NOT_FOUND), link: Vec::new(), name },
        });
        // The end may come with the last entries or after them.
        Ok(Output::Entries { entries: entries.collect(), end: names.is_empty() })
    }
}

/// Gives a nameless file its attributes and its name.
fn finish(parent: &DirectoryRef, name: &[u8], file: FileRef, how: &Finish, (overwrite, now): (bool, Time)) -> Outcome {
    let old = disk::check_replaceable(parent, name, overwrite)?;
    let old = old.and_then(|old| old.into_file().ok()).map(|old| old.borrow().meta);
    file.borrow_mut().meta = Meta::finished(how, old, now);
    disk::place(parent, name, Node::File(file), overwrite).map(|()| Output::Done)
}

/// What a file system did not store of a file: its end, or something within, which reads as zeros.
fn lose(content: &mut Vec<u8>, random: &mut Random) {
    let from = random.index(content.len() + 1);
    if random.once_in(2) {
        return content.truncate(from);
    }
    let end = from + random.index(content.len() - from + 1);
    content[from..end].fill(0);
}

/// Cuts a file anywhere.
pub(super) fn shorten(file: &RefCell<disk::File>, random: &mut Random) {
    let content = &mut file.borrow_mut().content;
    let len = random.index(content.len() + 1);
    content.truncate(len);
}
