//! A tree of files, directories and links in memory, and how places in it are found.
//!
//! Nodes are counted references: a file that lost its name, or never had one, lives as long as somebody has it open.
//! Durable means named: what a crash leaves is what can be reached from the root.

use crate::backend::{Errno, Finish, Time};
use crate::limits::MAX_LINKS_FOLLOWED;
use crate::wire::frame::{Attributes, Kind, Preserve, Timestamp};
use crate::wire::path::Target;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Second at which every simulated world begins, since the Unix epoch.
const EPOCH: i64 = 1_750_000_000;
/// Bits that a mode loses when it is not preserved exactly: umask and set-ID.
const MASKED: u32 = 0o7022;

/// Mode, time and owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) mode: u32,
    pub(super) mtime: Timestamp,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Meta {
    pub(super) fn new(mode: u32, now: Time) -> Meta {
        let seconds = EPOCH + i64::try_from(now.0 / crate::limits::SECOND).expect("simulated time is short");
        let nanoseconds = (now.0 % crate::limits::SECOND) as u32;
        Meta { mode, mtime: Timestamp { seconds, nanoseconds }, uid: 0, gid: 0 }
    }

    /// What `finish` makes of a new file that replaces `old`.
    pub(super) fn finished(finish: &Finish, old: Option<Meta>, now: Time) -> Meta {
        let mut meta = Meta::new(old.map_or(0o644, |old| old.mode), now);
        if let Some(attributes) = finish.attributes {
            meta.apply(attributes, finish.preserve, old.is_some());
        }
        meta
    }

    /// Takes over what is to be preserved; `keep_mode` is for a file that replaces another.
    pub(super) fn apply(&mut self, from: Attributes, preserve: Preserve, keep_mode: bool) {
        self.mtime = from.mtime;
        if preserve.has(Preserve::MODE) {
            self.mode = from.mode;
        } else if !keep_mode {
            self.mode = from.mode & !MASKED;
        }
        if preserve.has(Preserve::OWNER) {
            (self.uid, self.gid) = (from.uid, from.gid);
        }
    }

    fn attributes(&self, kind: Kind, size: usize) -> Attributes {
        let Meta { mode, mtime, uid, gid } = *self;
        Attributes { kind, size: size as u64, mode, mtime, uid, gid }
    }
}

pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) meta: Meta,
    /// The size that it says it has, where that is not its own.
    pub(super) said: Option<u64>,
    /// What it was before somebody else wrote to it.
    pub(super) earlier: Vec<Vec<u8>>,
}

impl File {
    pub(super) fn attributes(&self) -> Attributes {
        let attributes = self.meta.attributes(Kind::Regular, self.content.len());
        Attributes { size: self.said.unwrap_or(attributes.size), ..attributes }
    }

    /// Somebody else appends to it, or writes over a byte of it.
    pub(super) fn write_to(&mut self, grow: bool, random: &mut super::random::Random) {
        self.earlier.push(self.content.clone());
        let at = random.index(self.content.len().max(1));
        match self.content.get_mut(at) {
            Some(byte) if !grow => *byte ^= 1,
            _ => self.content.resize(self.content.len() + 1 + random.magnitude(100_000) as usize, 7),
        }
        self.meta.mtime.seconds += 1;
    }

    /// The bytes of a range that are there.
    pub(super) fn range(&self, offset: u64, len: usize) -> &[u8] {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.content.len());
        &self.content[start..start.saturating_add(len).min(self.content.len())]
    }
}

pub(super) struct Directory {
    pub(super) entries: BTreeMap<Vec<u8>, Node>,
    pub(super) meta: Meta,
}

pub(super) struct Link {
    pub(super) text: Vec<u8>,
    pub(super) meta: Meta,
}

pub(super) type FileRef = Rc<RefCell<File>>;
pub(super) type DirectoryRef = Rc<RefCell<Directory>>;

/// What a name leads to.
#[derive(Clone)]
pub(super) enum Node {
    File(FileRef),
    Directory(DirectoryRef),
    Link(Rc<Link>),
}

impl Node {
    pub(super) fn directory(meta: Meta) -> DirectoryRef {
        Rc::new(RefCell::new(Directory { entries: BTreeMap::new(), meta }))
    }

    pub(super) fn file(content: Vec<u8>, meta: Meta) -> FileRef {
        Rc::new(RefCell::new(File { content, meta, said: None, earlier: Vec::new() }))
    }

    pub(super) fn attributes(&self) -> Attributes {
        match self {
            Node::File(file) => file.borrow().attributes(),
            Node::Directory(directory) => directory.borrow().meta.attributes(Kind::Directory, 0),
            Node::Link(link) => link.meta.attributes(Kind::Symlink, link.text.len()),
        }
    }

    pub(super) fn link_text(&self) -> &[u8] {
        match self {
            Node::Link(link) => &link.text,
            Node::File(_) | Node::Directory(_) => &[],
        }
    }

    pub(super) fn into_directory(self) -> Result<DirectoryRef, Errno> {
        match self {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) | Node::Link(_) => Err(Errno::NOT_DIRECTORY),
        }
    }

    pub(super) fn into_file(self) -> Result<FileRef, Errno> {
        match self {
            Node::File(file) => Ok(file),
            Node::Directory(_) | Node::Link(_) => Err(Errno::NOT_REGULAR),
        }
    }

    /// Bytes of content from here down.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Node::File(file) => file.borrow().content.len() as u64,
            Node::Directory(directory) => directory.borrow().entries.values().map(Node::bytes).sum(),
            Node::Link(_) => 0,
        }
    }
}

/// What is done about links on the way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    /// Every link is followed.
    Follow,
    /// All but one in the last component, which is what was looked for.
    FollowToLast,
    /// None; one on the way is an error, one at the end is what was looked for.
    Refuse,
}

/// A way from a root down, as directories, so that `..` in a link's text can be taken without leaving the root.
struct Way {
    stack: Vec<DirectoryRef>,
    followed: usize,
    /// Missing directories are made with these attributes.
    make: Option<Meta>,
}

impl Way {
    fn from(root: &DirectoryRef, make: Option<Meta>) -> Way {
        Way { stack: vec![root.clone()], followed: 0, make }
    }

    fn here(&self) -> &DirectoryRef {
        self.stack.last().expect("the root is never taken off")
    }

    /// Goes down and says what stands at the end; a directory there has been entered.
    fn walk<'a>(&mut self, components: impl DoubleEndedIterator<Item = &'a [u8]>, links: Links) -> Result<Node, Errno> {
        let mut ahead: Vec<Vec<u8>> = components.rev().map(<[u8]>::to_vec).collect();
        while let Some(component) = ahead.pop() {
            if component == b".." {
                self.stack.pop();
                if self.stack.is_empty() {
                    return Err(Errno::OUTSIDE_ROOT);
                }
                continue;
            }
            match self.look_up(&component)? {
                Node::Directory(directory) => self.stack.push(directory),
                file @ Node::File(_) if ahead.is_empty() => return Ok(file),
                Node::File(_) => return Err(Errno::NOT_DIRECTORY),
                link @ Node::Link(_) if ahead.is_empty() && links != Links::Follow => return Ok(link),
                Node::Link(_) if links == Links::Refuse => return Err(Errno::LOOP),
                Node::Link(link) => self.follow(&link, &mut ahead)?,
            }
        }
        Ok(Node::Directory(self.here().clone()))
    }

    fn look_up(&mut self, component: &[u8]) -> Result<Node, Errno> {
        let mut here = self.here().borrow_mut();
        match (here.entries.get(component), self.make) {
            (Some(node), _) => Ok(node.clone()),
            (None, None) => Err(Errno::NOT_FOUND),
            (None, Some(meta)) => {
                let made = Node::Directory(Node::directory(meta));
                here.entries.insert(component.to_vec(), made.clone());
                Ok(made)
            }
        }
    }

    fn follow(&mut self, link: &Link, ahead: &mut Vec<Vec<u8>>) -> Result<(), Errno> {
        self.followed += 1;
        if self.followed > MAX_LINKS_FOLLOWED {
            return Err(Errno::LOOP);
        }
        if link.text.first() == Some(&b'/') {
            self.stack.truncate(1);
        }
        let components = link.text.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        ahead.extend(components.rev().map(<[u8]>::to_vec));
        Ok(())
    }
}

/// Finds what `target` names below `root`. Without `follow`, a link in the last component is itself the answer; below
/// an operand it always is.
pub(super) fn find(root: &DirectoryRef, target: &Target, follow: bool) -> Result<Node, Errno> {
    let mut way = Way::from(root, None);
    match &target.below {
        Some(below) => {
            way.walk(target.operand.components(), Links::Follow)?.into_directory()?;
            way.walk(below.components(), Links::Refuse)
        }
        None => way.walk(target.operand.components(), if follow { Links::Follow } else { Links::FollowToLast }),
    }
}

/// Finds the directory in which `target` has or will have its name, and that name. Missing directories are made, with
/// these attributes if any.
pub(super) fn find_parent(
    root: &DirectoryRef,
    target: &Target,
    made: Option<Meta>,
) -> Result<(DirectoryRef, Vec<u8>), Errno> {
    let mut way = Way::from(root, made);
    let (parent, name) = match &target.below {
        Some(below) => {
            way.walk(target.operand.components(), Links::Follow)?.into_directory()?;
            let parents = below.components().rev().skip(1).collect::<Vec<_>>();
            (way.walk(parents.into_iter().rev(), Links::Refuse)?, below.file_name())
        }
        None => {
            let name = target.operand.file_name().ok_or(Errno::IS_DIRECTORY)?;
            let parents = target.operand.components().rev().skip(1).collect::<Vec<_>>();
            (way.walk(parents.into_iter().rev(), Links::Follow)?, name)
        }
    };
    match parent {
        // In the last of the parents too, a link below an operand is not followed.
        Node::Link(_) => Err(Errno::LOOP),
        parent => Ok((parent.into_directory()?, name.to_vec())),
    }
}

/// As `mkdir -p`.
pub(super) fn make_directory(root: &DirectoryRef, target: &Target, made: Meta) -> Result<DirectoryRef, Errno> {
    let mut way = Way::from(root, Some(made));
    let operand = way.walk(target.operand.components(), Links::Follow)?;
    match &target.below {
        Some(below) => way.walk(below.components(), Links::Refuse)?.into_directory(),
        None => operand.into_directory(),
    }
}

/// Puts `node` under `name`, in place of a file or link if `overwrite`, never of a directory.
pub(super) fn place(parent: &DirectoryRef, name: &[u8], node: Node, overwrite: bool) -> Result<(), Errno> {
    check_replaceable(parent, name, overwrite)?;
    parent.borrow_mut().entries.insert(name.to_vec(), node);
    Ok(())
}

/// What stands under `name` and may be replaced; `None` when nothing does.
pub(super) fn check_replaceable(parent: &DirectoryRef, name: &[u8], overwrite: bool) -> Result<Option<Node>, Errno> {
    match parent.borrow().entries.get(name) {
        None => Ok(None),
        Some(Node::Directory(_)) => Err(Errno::IS_DIRECTORY),
        Some(_) if !overwrite => Err(Errno::EXISTS),
        Some(node) => Ok(Some(node.clone())),
    }
}
