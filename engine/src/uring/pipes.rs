//! Pipes of our own, through which file bytes are spliced into sockets.
//!
//! Pipe memory is a budget of the user (`pipe-user-pages-soft`: 64 pipes of 1 MiB), past which new pipes silently come
//! with 8 KiB (measured on 6.18). So few are made, each is asked how large it really is, and one that is too small to
//! be worth the trouble is refused: the caller then copies. A pipe is leased to one stream at a time and comes back
//! empty; one that still holds bytes is closed.

use crate::limits::PIPE_BYTES;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use std::os::fd::OwnedFd;

/// Both ends of an empty pipe.
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
    /// Bytes it holds when filled from a page boundary.
    pub(super) bytes: usize,
}

impl Pipe {
    fn make() -> Result<Pipe, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Refused beyond pipe-max-size or the user's budget; what is there then is found out next.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        let bytes = fcntl_getpipe_size(&write)?;
        Ok(Pipe { read, write, bytes })
    }
}

/// The leased pipes of one backend.
pub(super) struct Pipes {
    free: Vec<Pipe>,
    out: usize,
    limit: usize,
}

impl Pipes {
    /// At most `limit` pipes, made when first wanted.
    pub(super) fn new(limit: usize) -> Pipes {
        Pipes { free: Vec::with_capacity(limit), out: 0, limit }
    }

    /// An empty pipe, or `None` when all are leased or no good one can be made.
    pub(super) fn lease(&mut self) -> Option<Pipe> {
        if self.out >= self.limit {
            return None;
        }
        let pipe = self
            .free
            .pop()
            .or_else(|| Pipe::make().ok().filter(|pipe| pipe.bytes >= crate::limits::WORTHWHILE_BYTES))?;
        self.out += 1;
        Some(pipe)
    }

    /// Ends a lease. `empty` says that nothing is left in the pipe.
    pub(super) fn give_back(&mut self, pipe: Pipe, empty: bool) {
        self.out -= 1;
        if empty {
            self.free.push(pipe);
        }
    }

    /// Makes the first pipe and says what was got.
    pub(super) fn describe(&mut self) -> String {
        if self.limit == 0 {
            return "splice through pipes is off: file bytes are copied".to_owned();
        }
        match Pipe::make() {
            Ok(pipe) if pipe.bytes >= crate::limits::WORTHWHILE_BYTES => {
                let note = format!("splice through up to {} pipes of {} KiB", self.limit, pipe.bytes / 1024);
                self.free.push(pipe);
                note
            }
            Ok(pipe) => {
                let got = pipe.bytes / 1024;
                format!(
                    "pipes come with {got} KiB only (fs.pipe-user-pages-soft, fs.pipe-max-size): file bytes are copied"
                )
            }
            Err(errno) => format!("no pipe can be made ({errno}): file bytes are copied"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_as_large_as_it_says_and_is_used_again_when_empty() {
        let mut pipes = Pipes::new(1);
        let pipe = pipes.lease().expect("a test machine has pipe budget");
        assert_eq!(fcntl_getpipe_size(&pipe.write).unwrap(), pipe.bytes);
        assert!(pipes.lease().is_none(), "only one may be out");
        let number = std::os::fd::AsRawFd::as_raw_fd(&pipe.read);
        pipes.give_back(pipe, true);
        let again = pipes.lease().unwrap();
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&again.read), number);
        pipes.give_back(again, false);
        assert!(pipes.free.is_empty(), "a pipe with bytes in it is not used again");
    }
}
