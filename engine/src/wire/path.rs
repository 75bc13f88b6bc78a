//! Paths that may be used, made from path fields that may not.
//!
//! Owns the rules of what a path on the wire may contain, and nothing of what a file system does with it: links are the
//! backend's business. [`RequestPath`] is what a user typed or a base frame carried; [`RelPath`] is a name a peer
//! produced and can never lead out of the directory it is joined to. Nothing behind this module handles raw strings.
//!
//! ```
//! use haul_engine::wire::path::{RelPath, RequestPath};
//!
//! let operand = RequestPath::parse(b"/srv//data/./").unwrap();
//! assert_eq!(operand.as_bytes(), b"/srv/data");
//! assert_eq!(operand.join(&RelPath::parse(b"a/b").unwrap()).as_bytes(), b"/srv/data/a/b");
//! assert!(RelPath::parse(b"../etc/passwd").is_err());
//! ```

use std::fmt;

use super::display::Printable;
use super::frame::{Ext, PathField};
use crate::limits::{MAX_NAME_BYTES, MAX_REQUEST_PATH_BYTES};

/// Why a path is refused. The texts follow "haul: PATH: ".
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PathError {
    /// A NUL byte where none may stand.
    #[error("the path contains a NUL byte")]
    ContainsNul,
    /// A `..` component.
    #[error("'..' is not allowed in a path; write the path without it")]
    ParentComponent,
    /// A `.` component in a name a peer produced.
    #[error("'.' is not allowed in a name")]
    DotComponent,
    /// A leading, trailing or doubled slash in a name a peer produced.
    #[error("the name contains an empty component")]
    EmptyComponent,
    /// No name at all.
    #[error("the name is empty")]
    Empty,
    /// A component longer than any file system takes.
    #[error("a part of the name is longer than 255 bytes")]
    LongComponent,
    /// More than a request can name.
    #[error("the name is longer than 16384 bytes")]
    Long,
    /// A single component with a slash in it.
    #[error("the name contains a '/'")]
    ContainsSlash,
}

/// An operand in normal form: absolute or relative, no NUL, no `..`, no `.`, no needless slash.
///
/// Empty means the login directory under root `/`, else the served root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RequestPath(Vec<u8>);

impl RequestPath {
    /// Checks `bytes` and brings them to normal form.
    pub fn parse(bytes: &[u8]) -> Result<RequestPath, PathError> {
        if bytes.contains(&0) {
            return Err(PathError::ContainsNul);
        }
        let mut path = RequestPath(Vec::with_capacity(bytes.len()));
        if bytes.first() == Some(&b'/') {
            path.0.push(b'/');
        }
        for component in bytes.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(PathError::ParentComponent),
                _ => path.push(component),
            }
        }
        Ok(path)
    }

    /// True when the path begins at the root and not at the login directory.
    pub fn is_absolute(&self) -> bool {
        self.0.first() == Some(&b'/')
    }

    /// The normal form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components in order, without the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|component| !component.is_empty())
    }

    /// The last component; `None` for the root and the empty path.
    pub fn file_name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// `below` in this directory.
    pub fn join(&self, below: &RelPath) -> RequestPath {
        let mut path = self.clone();
        path.push(&below.0);
        path
    }

    /// The directory the last component stands in; `None` for the root and the empty path.
    pub fn parent(&self) -> Option<RequestPath> {
        let name = self.file_name()?;
        let directory = &self.0[..self.0.len() - name.len()];
        let keep = if directory == b"/" { 1 } else { directory.len().saturating_sub(1) };
        Some(RequestPath(directory[..keep].to_vec()))
    }

    /// Appends what is already in normal form.
    fn push(&mut self, normal: &[u8]) {
        if !self.0.is_empty() && self.0.last() != Some(&b'/') {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(normal);
    }
}

impl fmt::Display for RequestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.0).fmt(f)
    }
}

/// A path below a directory, as a peer names it: one or more components, none of them empty, `.` or `..`, no NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// Checks `bytes`. Nothing is repaired: a peer that sends an odd name gets an error.
    pub fn parse(bytes: &[u8]) -> Result<RelPath, PathError> {
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        for component in bytes.split(|&byte| byte == b'/') {
            check_component(component)?;
        }
        Ok(RelPath(bytes.to_vec()))
    }

    /// As [`RelPath::parse`], of a name out of a peer's listing: no longer than one that can be asked for, with no part longer
    /// than file systems have. A run keeps many of them at a time.
    pub fn listed(bytes: &[u8]) -> Result<RelPath, PathError> {
        if bytes.len() > MAX_REQUEST_PATH_BYTES {
            return Err(PathError::Long);
        }
        if bytes.split(|&byte| byte == b'/').any(|component| component.len() > MAX_NAME_BYTES) {
            return Err(PathError::LongComponent);
        }
        RelPath::parse(bytes)
    }

    /// The components joined with `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components in order.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/')
    }

    /// The last component.
    pub fn file_name(&self) -> &[u8] {
        let start = self.0.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        &self.0[start..]
    }

    /// The path without its last component; `None` when there is only one.
    pub fn parent(&self) -> Option<RelPath> {
        let slash = self.0.iter().rposition(|&byte| byte == b'/')?;
        Some(RelPath(self.0[..slash].to_vec()))
    }

    /// One component further down.
    pub fn join(&self, component: &[u8]) -> Result<RelPath, PathError> {
        if component.contains(&b'/') {
            return Err(PathError::ContainsSlash);
        }
        check_component(component)?;
        Ok(RelPath([&self.0, component].join(&b'/')))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.0).fmt(f)
    }
}

fn check_component(component: &[u8]) -> Result<(), PathError> {
    match component {
        b"" => Err(PathError::EmptyComponent),
        b"." => Err(PathError::DotComponent),
        b".." => Err(PathError::ParentComponent),
        _ if component.contains(&0) => Err(PathError::ContainsNul),
        _ => Ok(()),
    }
}

/// What a path field names: an operand, whose links are followed, and perhaps a path below it, whose links are not.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Target {
    /// What the user named.
    pub operand: RequestPath,
    /// What was found or shall stand below it.
    pub below: Option<RelPath>,
}

impl Target {
    /// Reads a path field. With BYTES one NUL may part operand and the path below it; else all of it is the operand.
    pub fn decode(field: &PathField, ext: Ext) -> Result<Target, PathError> {
        let nul = field.0.iter().position(|&byte| byte == 0).filter(|_| ext.has(Ext::BYTES));
        let Some(nul) = nul else {
            return Ok(Target { operand: RequestPath::parse(&field.0)?, below: None });
        };
        let operand = RequestPath::parse(&field.0[..nul])?;
        Ok(Target { operand, below: Some(RelPath::parse(&field.0[nul + 1..])?) })
    }

    /// Writes a path field. Without BYTES the two parts are joined into one path.
    pub fn encode(&self, ext: Ext) -> PathField {
        match &self.below {
            Some(below) if ext.has(Ext::BYTES) => PathField([self.operand.as_bytes(), below.as_bytes()].join(&0)),
            _ => PathField(self.joined().0),
        }
    }

    /// What `below` names under this target; the target itself when it is `None`.
    pub fn child(&self, below: Option<&RelPath>) -> Target {
        let below = match (&self.below, below) {
            (base, None) => base.clone(),
            (None, Some(below)) => Some(below.clone()),
            (Some(base), Some(below)) => Some(RelPath([&*base.0, &*below.0].join(&b'/'))),
        };
        Target { operand: self.operand.clone(), below }
    }

    /// Both parts as one path, for messages and for peers that know only one.
    pub fn joined(&self) -> RequestPath {
        self.below.as_ref().map_or_else(|| self.operand.clone(), |below| self.operand.join(below))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.joined().fmt(f)
    }
}
