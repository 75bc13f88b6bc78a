//! Names that differ only in case, on file systems that take them for one.
//!
//! Of two files of one copy the second would silently replace the first. The first name that is given below an operand
//! tells what the file system does: it is looked for again with its letters in the other case. Nearly always it is not
//! there, and nothing more is done; else all names are remembered, and the second is refused.

use super::operands::{Identity, Operand};
use crate::backend::Errno;
use crate::limits::NAMES_KNOWN;
use rustix::fs::AtFlags;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is known of names below one operand.
#[derive(Default)]
pub(super) struct Case {
    /// Names that differ in case are different ones.
    distinct: AtomicBool,
    given: Mutex<Given>,
}

#[derive(Default)]
struct Given {
    /// It is known that names are taken for one.
    folds: bool,
    /// Hashes of the names in lower case, with those of the names as they are.
    names: HashMap<u64, u64>,
    key: RandomState,
}

/// A name that something new will get.
pub(super) struct Claim {
    operand: Arc<Operand>,
    path: Box<[u8]>,
}

impl Claim {
    /// `None` where there is nothing to watch over.
    pub(super) fn new(operand: Arc<Operand>, path: &[u8]) -> Option<Claim> {
        (!operand.case.distinct.load(Ordering::Acquire)).then(|| Claim { operand, path: path.into() })
    }

    /// Lets `give` do it, unless something has the name that was given another one, which differs only in case.
    pub(super) fn give<T>(&self, give: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let case = &self.operand.case;
        // One at a time, as long as it is not known that it does not matter.
        let mut given = case.given.lock().unwrap_or_else(PoisonError::into_inner);
        if case.distinct.load(Ordering::Acquire) {
            drop(given);
            return give();
        }
        let (folded, exact) = (given.key.hash_one(folded(&self.path)), given.key.hash_one(&self.path));
        if given.names.get(&folded).is_some_and(|first| *first != exact) && self.identity(&self.path).is_some() {
            return Err(Errno::SAME_NAME);
        }
        let done = give()?;
        if given.names.len() < NAMES_KNOWN {
            given.names.insert(folded, exact);
        }
        if let Some(swapped) = swapped(&self.path).filter(|_| !given.folds) {
            let same = |found| Some(found) == self.identity(&self.path);
            given.folds = self.identity(&swapped).is_some_and(same);
            if !given.folds {
                case.distinct.store(true, Ordering::Release);
                given.names = HashMap::new();
            }
        }
        Ok(done)
    }

    fn identity(&self, path: &[u8]) -> Option<Identity> {
        let stat = rustix::fs::statat(self.operand.as_fd(), path, AtFlags::SYMLINK_NOFOLLOW);
        stat.ok().map(|stat| Identity::of(&stat))
    }
}

/// In lower case, as far as it is text.
fn folded(path: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(path) {
        Ok(text) => text.to_lowercase().into_bytes(),
        Err(_) => path.to_ascii_lowercase(),
    }
}

/// With every letter of ASCII in the other case; `None` where there is none.
fn swapped(path: &[u8]) -> Option<Vec<u8>> {
    let other =
        |byte: &u8| if byte.is_ascii_lowercase() { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
    let swapped: Vec<u8> = path.iter().map(other).collect();
    (swapped != path).then_some(swapped)
}
