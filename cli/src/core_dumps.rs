//! Keys of daemons and direct connections are in memory: what is left of a process that was killed by a fault stays nowhere.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Neither a core file nor, on Linux, a core for whoever `kernel.core_pattern` pipes them to: that takes no notice of a limit
/// of 0, but of one of 1 byte (core(5), fs/coredump.c).
pub(crate) fn refuse() {
    let limit = if cfg!(target_os = "linux") { 1 } else { 0 };
    let Rlimit { current, maximum } = getrlimit(Resource::Core);
    if current.is_none_or(|current| current > limit) || current == Some(0) {
        let current = maximum.map_or(limit, |maximum| limit.min(maximum));
        // Where it cannot be lowered there is nothing more to be done about it.
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(current), maximum });
    }
}
