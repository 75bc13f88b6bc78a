//! What the two copying drivers share: operands, options, and rsync's rule for where a source lands.

use super::Failure;
use crate::backend::Errno;
use crate::wire::frame::{ErrorCode, Kind, Preserve, TreeEntry};
use crate::wire::path::{RelPath, RequestPath, Target};

/// A path the user named, on either side.
#[derive(Clone, Debug)]
pub struct Operand {
    /// The path.
    pub path: RequestPath,
    /// As the user typed it, for messages: `host:dir/file`.
    pub shown: Vec<u8>,
    /// A trailing slash: of a source, the content and not the directory; of a target, a directory.
    pub contents: bool,
}

impl Operand {
    /// As shown, with a path below it.
    pub fn shown_below(&self, below: Option<&RelPath>) -> Vec<u8> {
        let Some(below) = below else { return self.shown.clone() };
        let slash: &[u8] = if self.shown.ends_with(b"/") || self.shown.ends_with(b":") { b"" } else { b"/" };
        [&self.shown, slash, below.as_bytes()].concat()
    }

    /// Whether a link that it names is followed: not where links are copied as links, unless what it leads to is meant.
    pub fn follows(&self, options: &Options) -> bool {
        !options.links || self.contents
    }

    fn name(&self) -> Option<RelPath> {
        RelPath::parse(self.path.file_name()?).ok()
    }
}

/// How a copy is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Directories too.
    pub recursive: bool,
    /// Symbolic links as links; without it they are left out of trees.
    pub links: bool,
    /// What is kept exactly.
    pub preserve: Preserve,
    /// Goes on where an interrupted run stopped: what is there is proved and not moved again, and what arrives is kept.
    pub resume: bool,
    /// Flushed to stable storage before it counts as there.
    pub sync: bool,
    /// The target is the name itself, never a directory to copy into.
    pub exact_target: bool,
    /// Directories above the target that are missing are made, not only the target itself.
    pub make_path: bool,
    /// Connections the run is meant to have; 0 counts as 1.
    pub connections: u16,
    /// Directories keep the times that they get from what is put into them.
    pub omit_directory_times: bool,
}

impl Options {
    /// What is kept of directories.
    pub(crate) fn of_directories(&self) -> Preserve {
        if self.omit_directory_times { self.preserve.or(Preserve::NO_TIMES) } else { self.preserve }
    }
}

/// Where sources land.
pub struct Landing {
    /// Where to, as the user has it.
    pub target: Operand,
    /// How.
    pub options: Options,
    /// There is more than one source.
    pub many: bool,
    /// What stands at the target now.
    pub present: Option<Kind>,
}

impl Landing {
    /// The target of one source, by rsync's rule: `d/` is the content of `d`, `d` is `d` itself.
    pub fn of(&self, source: &Operand, kind: Kind) -> Result<Target, Failure> {
        let exact = Target { operand: self.target.path.clone(), below: None };
        let directory = kind == Kind::Directory;
        let into = self.many
            || self.target.contents
            || self.target.path.as_bytes().is_empty()
            || self.present == Some(Kind::Directory);
        if self.present.is_some_and(|kind| kind != Kind::Directory) && (directory || self.many) {
            return Err(Failure::here(&self.target.shown, "cannot copy into it", Errno::NOT_DIRECTORY));
        }
        let named = source.name().filter(|_| !self.options.exact_target);
        Ok(match named {
            Some(name) if directory && !source.contents => exact.child(Some(&name)),
            Some(name) if !directory && into => exact.child(Some(&name)),
            _ => exact,
        })
    }

    /// The directory that must be there when the target is not: no more than the target itself is made, unless the user says
    /// so, because a wrong letter in a path would else become a directory. `None`: it is certain to be there, or may be made.
    pub fn parent_needed(&self) -> Option<RequestPath> {
        let parent = self.target.path.parent().filter(|parent| !matches!(parent.as_bytes(), b"" | b"/"));
        parent.filter(|_| !self.options.make_path)
    }

    /// What is said where it is not.
    pub fn without_parent(&self) -> Failure {
        Failure::rule(&self.target.shown, "cannot create", "its directory is not there; --mkpath makes it")
    }

    /// The target as the user knows it.
    pub fn shown(&self, target: &Target) -> Vec<u8> {
        self.target.shown_below(target.below.as_ref())
    }
}

/// Why an entry that is neither file nor directory is left out.
pub fn skip_reason(kind: Kind) -> &'static str {
    match kind {
        Kind::Regular => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symbolic link",
        Kind::Fifo => "FIFO",
        Kind::Socket => "socket",
        Kind::CharDevice | Kind::BlockDevice => "device",
    }
}

/// What a TREE entry says that could not be read; `base`: the walked directory itself.
pub(crate) fn unreadable(path: Vec<u8>, base: bool, entry: &TreeEntry) -> Failure {
    let what = if base || entry.attributes.kind == Kind::Directory { "cannot list" } else { "cannot stat" };
    let message = [what.as_bytes(), b": ", &describe(entry.error)].concat();
    Failure::there(&path, what, entry.error, message)
}

/// The words for a number the server gave.
fn describe(code: ErrorCode) -> Vec<u8> {
    let errno = match code {
        ErrorCode::TOO_DEEP => Some(Errno::TOO_DEEP),
        code => code.0.checked_sub(ErrorCode::ERRNO_BASE).map(|n| Errno(i32::from(n))),
    };
    errno.map_or_else(|| format!("error {}", code.0), |errno| errno.to_string()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand(path: &str) -> Operand {
        Operand {
            path: RequestPath::parse(path.as_bytes()).unwrap(),
            shown: path.into(),
            contents: path.ends_with('/'),
        }
    }

    #[test]
    fn sources_land_where_rsync_puts_them() {
        let dir = Some(Kind::Directory);
        let file = Some(Kind::Regular);
        // source, its kind, target, what is there, -T, many -> lands at
        let table = [
            ("f", Kind::Regular, "x", None, false, false, "x"),
            ("f", Kind::Regular, "x", dir, false, false, "x/f"),
            ("f", Kind::Regular, "x", file, false, false, "x"),
            ("f", Kind::Regular, "x/", None, false, false, "x/f"),
            ("a/f", Kind::Regular, "", None, false, false, "f"),
            ("f", Kind::Regular, "x", None, false, true, "x/f"),
            ("f", Kind::Regular, "x", dir, true, false, "x"),
            ("d", Kind::Directory, "x", None, false, false, "x/d"),
            ("d", Kind::Directory, "x", dir, false, false, "x/d"),
            ("d/", Kind::Directory, "x", None, false, false, "x"),
            ("d/", Kind::Directory, "x", dir, false, false, "x"),
            ("d", Kind::Directory, "x", None, true, false, "x"),
            (".", Kind::Directory, "x", dir, false, false, "x"),
            ("/", Kind::Directory, "x", dir, false, false, "x"),
        ];
        for (source, kind, target, present, exact_target, many, expected) in table {
            let options = Options { exact_target, ..Options::default() };
            let landing = Landing { target: operand(target), options, many, present };
            let lands = landing.of(&operand(source), kind).unwrap().joined();
            assert_eq!(lands.as_bytes(), expected.as_bytes(), "{source} to {target}, {present:?}");
        }
    }

    #[test]
    fn nothing_is_copied_into_a_file() {
        let landing =
            Landing { target: operand("x"), options: Options::default(), many: false, present: Some(Kind::Regular) };
        assert!(landing.of(&operand("d"), Kind::Directory).is_err());
        let landing = Landing { many: true, ..landing };
        assert!(landing.of(&operand("f"), Kind::Regular).is_err());
    }
}
