//! A file system in this process that behaves as those over a network or on foreign disks do: it says only when a file is
//! closed that there was no room, or it has no permissions, owners and times to set.

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nothing is remembered by the kernel.
const TTL: Duration = Duration::ZERO;

/// What it does not do.
#[derive(Clone, Copy, Default)]
pub struct Behaviour {
    /// Closing a file that has this many bytes or more fails with this error number.
    pub close: Option<(u64, i32)>,
    /// Permissions, owners and times cannot be set, and every file has this mode.
    pub fixed_mode: Option<u16>,
    /// Names that differ only in case are the same one; the first that was given stays.
    pub folds: bool,
}

enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<OsString, u64>),
}

struct Node {
    content: Content,
    mode: u16,
    mtime: SystemTime,
}

/// The nodes by number; none goes before the file system does.
struct Memory {
    behaviour: Behaviour,
    nodes: Mutex<Vec<Node>>,
}

/// It is mounted for as long as this lives. Only where `in_private_mounts`.
pub struct Fuse {
    _session: BackgroundSession,
}

/// Mounts one on a new directory; `None`, with a line that says so, where that cannot be. With HAUL_REQUIRE=fuse that is a
/// failure.
pub fn mount(at: &Path, behaviour: Behaviour) -> Option<Fuse> {
    fs::create_dir_all(at).unwrap();
    let root = Node { content: Content::Directory(BTreeMap::new()), mode: 0o777, mtime: UNIX_EPOCH };
    // Number 0 names nothing.
    let nothing = Node { content: Content::File(Vec::new()), mode: 0, mtime: UNIX_EPOCH };
    let memory = Memory { behaviour, nodes: Mutex::new(vec![nothing, root]) };
    match fuser::spawn_mount(memory, at, &Config::default()) {
        Ok(session) => Some(Fuse { _session: session }),
        Err(error) => {
            let required = std::env::var("HAUL_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name == "fuse"));
            assert!(!required, "HAUL_REQUIRE=fuse, and nothing can be mounted: {error}");
            eprintln!("SKIPPED: FUSE file systems cannot be mounted here");
            None
        }
    }
}

impl Memory {
    fn attr(&self, number: u64, node: &Node) -> FileAttr {
        let (kind, size, nlink) = match &node.content {
            Content::File(content) => (FileType::RegularFile, content.len() as u64, 1),
            Content::Directory(_) => (FileType::Directory, 0, 2),
        };
        let fixed = self.behaviour.fixed_mode.filter(|_| kind == FileType::RegularFile);
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: node.mtime,
            mtime: node.mtime,
            ctime: node.mtime,
            crtime: node.mtime,
            kind,
            perm: fixed.unwrap_or(node.mode),
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn find(&self, nodes: &[Node], parent: INodeNo, name: &OsStr) -> Option<u64> {
        match &nodes[usize::try_from(parent.0).unwrap()].content {
            Content::Directory(entries) => entries.get(&self.name_of(entries, name)).copied(),
            Content::File(_) => None,
        }
    }

    /// The name that stands for this one.
    fn name_of(&self, entries: &BTreeMap<OsString, u64>, name: &OsStr) -> OsString {
        let same = entries.keys().find(|entry| self.behaviour.folds && entry.eq_ignore_ascii_case(name));
        same.map_or_else(|| name.to_os_string(), OsString::clone)
    }

    fn entries(nodes: &mut [Node], directory: INodeNo) -> &mut BTreeMap<OsString, u64> {
        match &mut nodes[usize::try_from(directory.0).unwrap()].content {
            Content::Directory(entries) => entries,
            Content::File(_) => panic!("{directory:?} is no directory"),
        }
    }

    fn add(&self, parent: INodeNo, name: &OsStr, mode: u32, content: Content) -> FileAttr {
        let mut nodes = self.nodes.lock().unwrap();
        let number = nodes.len() as u64;
        nodes.push(Node { content, mode: (mode & 0o7777) as u16, mtime: SystemTime::now() });
        Memory::entries(&mut nodes, parent).insert(name.to_os_string(), number);
        self.attr(number, &nodes[nodes.len() - 1])
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut nodes = self.nodes.lock().unwrap();
        let entries = Memory::entries(&mut nodes, parent);
        match entries.remove(&self.name_of(entries, name)) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }
}

impl Filesystem for Memory {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let nodes = self.nodes.lock().unwrap();
        match self.find(&nodes, parent, name) {
            Some(number) => reply.entry(&TTL, &self.attr(number, &nodes[number as usize]), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let nodes = self.nodes.lock().unwrap();
        reply.attr(&TTL, &self.attr(ino.0, &nodes[ino.0 as usize]));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let asked = mode.is_some() || uid.is_some() || gid.is_some() || (mtime.is_some() && size.is_none());
        if self.behaviour.fixed_mode.is_some() && asked {
            return reply.error(Errno::EPERM);
        }
        let mut nodes = self.nodes.lock().unwrap();
        let node = &mut nodes[ino.0 as usize];
        if let (Some(size), Content::File(content)) = (size, &mut node.content) {
            content.resize(usize::try_from(size).unwrap(), 0);
        }
        if let Some(mode) = mode {
            node.mode = (mode & 0o7777) as u16;
        }
        match mtime {
            Some(TimeOrNow::SpecificTime(time)) => node.mtime = time,
            Some(TimeOrNow::Now) => node.mtime = SystemTime::now(),
            None => {}
        }
        reply.attr(&TTL, &self.attr(ino.0, &nodes[ino.0 as usize]));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let attr = self.add(parent, name, mode & !umask, Content::Directory(BTreeMap::new()));
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut nodes = self.nodes.lock().unwrap();
        let entries = Memory::entries(&mut nodes, parent);
        let Some(number) = entries.remove(&self.name_of(entries, name)) else {
            return reply.error(Errno::ENOENT);
        };
        let entries = Memory::entries(&mut nodes, newparent);
        let newname = self.name_of(entries, newname);
        entries.insert(newname, number);
        reply.ok();
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        let attr = self.add(parent, name, mode & !umask, Content::File(Vec::new()));
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let nodes = self.nodes.lock().unwrap();
        let Content::File(content) = &nodes[ino.0 as usize].content else { return reply.error(Errno::EISDIR) };
        let start = usize::try_from(offset).unwrap().min(content.len());
        reply.data(&content[start..content.len().min(start + size as usize)]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut nodes = self.nodes.lock().unwrap();
        let node = &mut nodes[ino.0 as usize];
        let Content::File(content) = &mut node.content else { return reply.error(Errno::EISDIR) };
        let start = usize::try_from(offset).unwrap();
        content.resize(content.len().max(start + data.len()), 0);
        content[start..start + data.len()].copy_from_slice(data);
        node.mtime = SystemTime::now();
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn flush(&self, _: &Request, ino: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let nodes = self.nodes.lock().unwrap();
        match (self.behaviour.close, &nodes[ino.0 as usize].content) {
            (Some((least, errno)), Content::File(content)) if content.len() as u64 >= least => {
                reply.error(Errno::from_i32(errno));
            }
            _ => reply.ok(),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // Half of it is free.
        reply.statfs(1_000_000, 500_000, 500_000, 1_000, 500, 4096, 255, 4096);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let nodes = self.nodes.lock().unwrap();
        let Content::Directory(entries) = &nodes[ino.0 as usize].content else { return reply.error(Errno::ENOTDIR) };
        for (index, (name, number)) in entries.iter().enumerate().skip(usize::try_from(offset).unwrap()) {
            let kind = match nodes[*number as usize].content {
                Content::File(_) => FileType::RegularFile,
                Content::Directory(_) => FileType::Directory,
            };
            if reply.add(INodeNo(*number), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
