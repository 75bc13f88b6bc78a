//! tokio-uring on the plainest of the paths: what a ready-made runtime reaches, and why nothing here is built on it.

use crate::measure::{Sample, Watch};
use crate::paths::{PLAIN_BYTES, join};
use anyhow::Result;
use std::net::TcpStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

/// Reads a piece, sends it, and so on: one buffer, no heads. The runtime's own start and end are not timed.
pub(crate) fn read_send(source: &Path, near: TcpStream, far: JoinHandle<Result<Duration>>) -> Result<Sample> {
    tokio_uring::start(async {
        let file = tokio_uring::fs::File::open(source).await?;
        let stream = tokio_uring::net::TcpStream::from_std(near);
        let watch = Watch::start();
        let mut block = vec![0; PLAIN_BYTES];
        let mut offset = 0;
        loop {
            let (result, filled) = file.read_at(block, offset).await;
            let n = result?;
            block = filled;
            if n == 0 {
                break;
            }
            block.truncate(n);
            let (result, sent) = stream.write_all(block).await;
            result?;
            block = sent;
            offset += n as u64;
        }
        let sample = watch.stop(join(far)?);
        file.close().await?;
        Ok(sample)
    })
}
