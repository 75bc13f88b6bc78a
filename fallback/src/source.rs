//! The file behind a SendFile: sent by sendfile(2) where the stream allows it, else read into a stage and written.
//!
//! A file that fails or ends early is made up for with zeros by the sender ([`crate::sender`]), because the length was
//! promised in the frame's head.

use crate::half::Half;
use crate::limits::{STAGE_BYTES, STEP_BYTES};
use haul_engine::backend::Errno;
use haul_engine::offload::OpenFile;
use rustix::io::retry_on_intr;
use std::ops::Range;
use std::sync::Arc;

/// Where the bytes of a SendFile come from.
pub(crate) struct Source {
    /// Held, so that a Close submitted after the SendFile does not cut it short.
    file: Option<Arc<OpenFile>>,
    /// Why no more bytes come from the file.
    pub(crate) error: Option<Errno>,
    /// sendfile has refused this pair of file and stream.
    staged: bool,
}

impl Source {
    pub(crate) fn new(file: Option<Arc<OpenFile>>) -> Source {
        let error = file.is_none().then_some(Errno::STALE_ID);
        Source { file, error, staged: false }
    }

    /// True when the file's bytes can go to `half` without passing through user space.
    pub(crate) fn goes_directly(&self, half: &Half) -> bool {
        self.error.is_none() && !self.staged && half.can_send_file()
    }

    /// Sends at most `left` bytes from `offset` and says how many; 0 with [`Half::is_ready`] still true means that
    /// another way is to be taken: the file has ended, or is staged from now on.
    pub(crate) fn send(&mut self, half: &mut Half, offset: u64, left: u64) -> u64 {
        let Some(file) = &self.file else { return 0 };
        match half.send_file(file.fd(), offset, at_most(left, STEP_BYTES)) {
            // The errno does not say which side it is about, and nothing at all may be the end of the file or a disk that
            // failed. Reading and writing will tell.
            Ok(Some(0)) | Err(_) => self.staged = true,
            Ok(count) => return count.unwrap_or(0) as u64,
        }
        0
    }

    /// Reads at most `left` bytes from `offset` into the stage.
    pub(crate) fn fill(&mut self, stage: &mut Stage, offset: u64, left: u64) {
        let Some(file) = &self.file else { return };
        stage.buffer.resize(STAGE_BYTES, 0);
        let room = &mut stage.buffer[..at_most(left, STAGE_BYTES)];
        match retry_on_intr(|| rustix::io::pread(file.fd(), &mut *room, offset)) {
            Ok(0) => self.error = Some(Errno::SHORT_SOURCE),
            Ok(count) => stage.range = 0..count,
            Err(errno) => self.error = Some(errno.into()),
        }
    }
}

/// Bytes of a file that have been read and not yet written. Each stream has one, made when it is first needed.
#[derive(Default)]
pub(crate) struct Stage {
    buffer: Vec<u8>,
    range: Range<usize>,
}

impl Stage {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The first `count` bytes have been written.
    pub(crate) fn consume(&mut self, count: u64) {
        self.range.start += at_most(count, self.range.len());
    }

    pub(crate) fn clear(&mut self) {
        self.range = 0..0;
    }
}

fn at_most(wanted: u64, limit: usize) -> usize {
    usize::try_from(wanted).map_or(limit, |wanted| wanted.min(limit))
}
