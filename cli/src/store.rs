//! Where blocks are kept for dedup, as the environment has it.

use crate::output;
use haul_engine::backend::Errno;
use haul_engine::cas;
use haul_engine::offload::{BlockStore, Root};

/// The part of the user's block store that belongs to `root`. `None` where there can be none: then nothing is found and
/// nothing kept. A directory that the user named and that cannot be used is told on stderr.
pub(crate) fn from_environment(root: &Root) -> Option<BlockStore> {
    let location = cas::location(|name| std::env::var_os(name))?;
    let identity = root.identity().ok()?;
    let store = BlockStore::open(&location.directory, &identity, cas::cap(|name| std::env::var_os(name)));
    match store.check() {
        Ok(()) => Some(store),
        Err(errno) => {
            if location.chosen {
                let reason = match errno {
                    Errno::INVALID => "it must be yours, and nobody else may write to it".to_owned(),
                    errno => errno.to_string(),
                };
                output::error(&format!("{}: no blocks are kept here: {reason}", location.directory.display()));
            }
            None
        }
    }
}
