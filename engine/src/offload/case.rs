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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What is known of names below one operand.
#[derive(Default)]
pub(super) struct Case {
    /// Names that differ in case are different ones.
    distinct: AtomicBool,
    given: Mutex<Given>,
    /// A name was given, or was not after all.
    decided: Condvar,
}

#[derive(Default)]
struct Given {
    /// It is known that names are taken for one.
    folds: bool,
    /// Hashes of the names in lower case, with those of the names as they are.
    names: HashMap<u64, u64>,
    /// Hashes of the names in lower case that somebody is about to give.
    begun: Vec<u64>,
    key: RandomState,
}

/// A name that something new will get.
pub(super) struct Claim {
    operand: Arc<Operand>,
    path: Box<[u8]>,
}

impl Claim {
    /// `None` where there is nothing to watch over: what has no letters has them in no other case.
    pub(super) fn new(operand: Arc<Operand>, path: &[u8]) -> Option<Claim> {
        let watched = !operand.case.distinct.load(Ordering::Acquire) && has_case(path);
        watched.then(|| Claim { operand, path: path.into() })
    }

    /// Lets `give` do it, unless something has the name that was given another one, which differs only in case.
    pub(super) fn give<T>(&self, give: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let case = &self.operand.case;
        let (folded, exact) = {
            let mut given = case.lock();
            let (folded, exact) = (given.key.hash_one(folded(&self.path)), given.key.hash_one(&self.path));
            // Only of names that may be one: others are given at the same time, however long it takes.
            while given.begun.contains(&folded) {
                given = case.decided.wait(given).unwrap_or_else(PoisonError::into_inner);
            }
            if given.names.get(&folded).is_some_and(|first| *first != exact) && self.identity(&self.path).is_some() {
                return Err(Errno::SAME_NAME);
            }
            given.begun.push(folded);
            (folded, exact)
        };
        let begun = Begun { case, folded };
        let done = give()?;
        let found = (!case.distinct.load(Ordering::Acquire)).then(|| self.is_folded()).flatten();
        let mut given = case.lock();
        match found {
            Some(false) if !given.folds => {
                case.distinct.store(true, Ordering::Release);
                given.names = HashMap::new();
            }
            found => {
                given.folds |= found == Some(true);
                if given.names.len() < NAMES_KNOWN && !case.distinct.load(Ordering::Acquire) {
                    given.names.insert(folded, exact);
                }
            }
        }
        drop(given);
        drop(begun);
        Ok(done)
    }

    /// Whether the name that was given is found in the other case too, where it has one.
    fn is_folded(&self) -> Option<bool> {
        let swapped = swapped(&self.path)?;
        let same = |found| Some(found) == self.identity(&self.path);
        Some(self.identity(&swapped).is_some_and(same))
    }

    fn identity(&self, path: &[u8]) -> Option<Identity> {
        let stat = rustix::fs::statat(self.operand.as_fd(), path, AtFlags::SYMLINK_NOFOLLOW);
        stat.ok().map(|stat| Identity::of(&stat))
    }
}

impl Case {
    fn lock(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is being given: others that may be the same one wait for that.
struct Begun<'a> {
    case: &'a Case,
    folded: u64,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let folded = self.folded;
        self.case.lock().begun.retain(|begun| *begun != folded);
        self.case.decided.notify_all();
    }
}

/// True for what has letters that have another case.
fn has_case(path: &[u8]) -> bool {
    match std::str::from_utf8(path) {
        Ok(text) => text.chars().any(|letter| letter.is_lowercase() || letter.is_uppercase()),
        Err(_) => path.iter().any(u8::is_ascii_alphabetic),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::sync::mpsc;
    use std::time::Duration;

    fn claim(operand: &Arc<Operand>, name: &str) -> Claim {
        Claim::new(operand.clone(), name.as_bytes()).expect("it has letters")
    }

    /// On a slow disk naming takes long: sync, or the last of what a file server has not got yet.
    #[test]
    fn names_that_differ_in_more_than_case_are_given_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let operand = Operand::of(OwnedFd::from(std::fs::File::open(dir.path()).unwrap()));
        assert!(
            ["1.2", "\u{4e2d}", "\u{5d0}"].iter().all(|name| Claim::new(operand.clone(), name.as_bytes()).is_none())
        );
        let (first, other, same) = (claim(&operand, "a"), claim(&operand, "b"), claim(&operand, "A"));
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                first.give(|| {
                    begun.send(()).unwrap();
                    may_go_on.recv_timeout(Duration::from_secs(30)).expect("the other one need not wait");
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            other.give(|| Ok(())).unwrap();
            let last = scope.spawn(move || same.give(|| Ok(())));
            assert!(!last.is_finished());
            go_on.send(()).unwrap();
            last.join().unwrap().unwrap();
        });
        assert!(operand.case.lock().begun.is_empty());
    }
}
