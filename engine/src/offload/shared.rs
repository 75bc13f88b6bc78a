//! Files being made that several workers of this process write to.
//!
//! ```text
//! create (who names it in the end) -> offer under a token -> joined by others, as long as it is open
//! ```
//! They share the open file itself: it needs no name for that, so nothing is left of it when the process is killed.

use super::create::{self, Wanted};
use super::open::OpenFile;
use super::resolve::Root;
use crate::backend::Errno;
use crate::wire::frame::Attributes;
use crate::wire::path::Target;
use rustix::io::retry_on_intr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What is open under which token. As many as files that are being moved in parts: few.
static OFFERED: Mutex<Vec<(u64, Weak<OpenFile>)>> = Mutex::new(Vec::new());

/// Begins a new file of `size` bytes, and offers it.
pub(super) fn create(
    root: &Root,
    target: &Target,
    size: u64,
    token: u64,
    give_up: &AtomicBool,
) -> Result<(Arc<OpenFile>, Attributes), Errno> {
    let wanted = Wanted { size, keep: 0, overwrite: true, brief: false, mode: None };
    let (file, attributes) = create::create(root, target, wanted, give_up)?;
    if !file.is_sink() {
        retry_on_intr(|| rustix::fs::ftruncate(file.fd(), size))?;
    }
    let file = Arc::new(file);
    offer(token, &file);
    Ok((file, attributes))
}

/// Lets others of this process have it.
pub(super) fn offer(token: u64, file: &Arc<OpenFile>) {
    let mut offered = OFFERED.lock().unwrap_or_else(PoisonError::into_inner);
    offered.retain(|(_, file)| file.strong_count() > 0);
    offered.push((token, Arc::downgrade(file)));
}

/// The file offered under this token, if it is still open.
pub(super) fn join(token: u64) -> Result<Arc<OpenFile>, Errno> {
    let offered = OFFERED.lock().unwrap_or_else(PoisonError::into_inner);
    let found = offered.iter().find(|(known, _)| *known == token);
    found.and_then(|(_, file)| file.upgrade()).ok_or(Errno::NOT_FOUND)
}
