//! The paths between a file and a TCP stream, on every backend.
//!
//! The near end is driven as a session drives it, and only its processor time is counted. The far end is a plain thread
//! that reads into, or writes from, one buffer of 1 MiB: it costs every case the same.

use crate::machine::{self, Near};
use crate::measure::{Case, Sample, Watch, Work, cpu};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use haul_engine::backend::{FileId, Finish, OpKind, OpenMode, Output, StreamId};
use haul_engine::block::{Class, Head, Quota, Slice, Slices};
use haul_engine::limits::{BLOCK_BYTES, READ_WINDOW_BLOCKS, SEND_QUEUE_BYTES, SESSION_LARGE_BLOCKS};
use haul_engine::wire::encode::data_header;
use haul_engine::wire::frame::Preserve;
use rustix::time::ClockId;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes in the far end's buffer.
const FAR_BYTES: usize = 1 << 20;
/// Bytes moved at a time in the cases that move one piece after the other.
pub(crate) const PLAIN_BYTES: usize = 256 << 10;

/// What it is called, bytes moved at a time, reads ahead of the stream (0 for SendFile), and blocks: as sessions do it
/// now, one piece after the other as the yardstick does it, and past user space.
const WAYS: [(&str, usize, usize, usize); 4] = [
    ("read+send 512 KiB, window 6", BLOCK_BYTES, READ_WINDOW_BLOCKS, SESSION_LARGE_BLOCKS),
    ("read+send 256 KiB, one by one", PLAIN_BYTES, 1, 1),
    ("SendFile 1 MiB", 1 << 20, 0, 0),
    ("SendFile 4 MiB", 4 << 20, 0, 0),
];

type Far = JoinHandle<Result<Duration>>;

/// File to stream.
pub(crate) fn sends(dir: &Path, len: u64) -> Result<Vec<Case>> {
    let source = dir.join("source");
    let mut random = blake3::Hasher::new().finalize_xof().take(len);
    std::io::copy(&mut random, &mut File::create(&source)?)?;
    let mut cases = Vec::new();
    for (what, chunk, reads, blocks) in WAYS {
        for (name, mut near) in machine::all(dir)? {
            let run = move || send(&mut near, len, chunk, (reads, blocks));
            cases.push(Case::new(format!("send: {name} {what}"), Work::Bytes(len), run));
        }
    }
    #[cfg(target_os = "linux")]
    cases.push(Case::new("send: tokio-uring read+send 256 KiB, one by one", Work::Bytes(len), move || {
        let (near, far) = machine::tcp_pair()?;
        crate::yardstick::read_send(&source, near, far_end(far, true, len))
    }));
    Ok(cases)
}

/// Stream to file, and the file published.
pub(crate) fn receives(dir: &Path, len: u64) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, mut near) in machine::all(dir)? {
        let dir = dir.to_path_buf();
        let run = move || {
            let sample = receive(&mut near, len)?;
            let made = fs::metadata(dir.join("received"))?.len();
            ensure!(made == len, "{made} bytes arrived");
            // Pages that are given back here are the next run's, whoever's turn it is.
            fs::remove_file(dir.join("received"))?;
            Ok(sample)
        };
        cases.push(Case::new(format!("receive: {name} recv+write 512 KiB"), Work::Bytes(len), run));
    }
    Ok(cases)
}

fn send(near: &mut Near, len: u64, chunk: usize, (reads, blocks): (usize, usize)) -> Result<Sample> {
    let (stream, far) = near.connect()?;
    let file = near.open("source", OpenMode::Read)?;
    let heads = len.div_ceil(chunk as u64) * data_header(0).len() as u64;
    let far = far_end(far, true, len + heads);
    let watch = Watch::start();
    match reads {
        0 => send_file(near, stream, file, len, chunk)?,
        _ => read_send(near, stream, file, len, (chunk, reads, blocks))?,
    }
    let sample = watch.stop(join(far)?);
    near.call(OpKind::Close { file })?;
    near.call(OpKind::CloseStream { stream })?;
    Ok(sample)
}

/// Reads complete in any order and are sent in file order, as `session::source` does it.
fn read_send(near: &mut Near, stream: StreamId, file: FileId, end: u64, how: (usize, usize, usize)) -> Result<()> {
    let (chunk, reads, blocks) = how;
    let quota = Quota::new(blocks);
    let mut window: VecDeque<(u64, Option<Slice>)> = VecDeque::new();
    let (mut next, mut sending) = (0, 0_usize);
    loop {
        while window.len() < reads && next < end {
            let Some(into) = near.pool.take(Class::Large, &quota) else { break };
            let len = usize::try_from(end - next).unwrap_or(chunk).min(chunk);
            near.start(OpKind::Read { file, offset: next, into, len });
            window.push_back((next, None));
            next += len as u64;
        }
        while let Some((_, Some(content))) = window.pop_front_if(|slot| slot.1.is_some()) {
            let head = data_header(content.len() as u32).into_iter().collect();
            near.start(OpKind::Send { stream, head, body: Slices::from_iter([content]) });
            sending += 1;
        }
        if window.is_empty() && sending == 0 {
            return Ok(());
        }
        near.turn(|kind, output| {
            match (kind, output) {
                (OpKind::Read { offset, into, len, .. }, Output::Bytes(got)) => {
                    ensure!(got == len, "the file is shorter than it was made");
                    let slot = window.iter_mut().find(|slot| slot.0 == offset).context("a read we asked for")?;
                    slot.1 = Some(into.share().slice(0..len));
                }
                (OpKind::Send { .. }, _) => sending -= 1,
                (kind, output) => bail!("{kind:?} brought {output:?}"),
            }
            Ok(())
        })?;
    }
}

fn send_file(near: &mut Near, stream: StreamId, file: FileId, end: u64, chunk: usize) -> Result<()> {
    let (mut next, mut queued) = (0, 0);
    while next < end || queued > 0 {
        // At least two, so that the next one waits in the backend when one is done.
        while next < end && (queued < SEND_QUEUE_BYTES || queued < 2 * chunk) {
            let len = (end - next).min(chunk as u64);
            let head: Head = data_header(len as u32).into_iter().collect();
            near.start(OpKind::SendFile { stream, head, file, offset: next, len });
            next += len;
            queued += len as usize;
        }
        near.turn(|kind, _| {
            let OpKind::SendFile { len, .. } = kind else { bail!("nothing else is out") };
            queued -= len as usize;
            Ok(())
        })?;
    }
    Ok(())
}

fn receive(near: &mut Near, size: u64) -> Result<Sample> {
    let (stream, far) = near.connect()?;
    let far = far_end(far, false, size);
    let mode = OpenMode::Create { size, keep: 0, overwrite: true };
    let watch = Watch::start();
    let file = near.open("received", mode)?;
    recv_write(near, stream, file, size)?;
    let finish = Finish { attributes: None, preserve: Preserve::default(), sync: false, verify: None };
    near.call(OpKind::Publish { file, finish: Box::new(finish) })?;
    let sample = watch.stop(join(far)?);
    near.call(OpKind::CloseStream { stream })?;
    Ok(sample)
}

/// One Recv out at a time, any number of writes up to the session's blocks.
fn recv_write(near: &mut Near, stream: StreamId, file: FileId, size: u64) -> Result<()> {
    let quota = Quota::new(SESSION_LARGE_BLOCKS);
    let (mut asked, mut written, mut receiving) = (0_u64, 0_u64, false);
    let mut arrived: Option<(u64, Slice)> = None;
    while written < size {
        if let Some((offset, from)) = arrived.take() {
            near.start(OpKind::Write { file, offset, from });
        }
        if !receiving
            && asked < size
            && let Some(into) = near.pool.take(Class::Large, &quota)
        {
            let at_least = usize::try_from(size - asked).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
            near.start(OpKind::Recv { stream, into, at_least });
            receiving = true;
        }
        near.turn(|kind, output| {
            match (kind, output) {
                (OpKind::Recv { into, at_least, .. }, Output::Bytes(got)) => {
                    ensure!(got >= at_least, "the stream ended early");
                    arrived = Some((asked, into.share().slice(0..got)));
                    asked += got as u64;
                    receiving = false;
                }
                (OpKind::Write { from, .. }, _) => written += from.len() as u64,
                (kind, output) => bail!("{kind:?} brought {output:?}"),
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A far end that takes or gives `len` bytes.
fn far_end(mut far: TcpStream, takes: bool, len: u64) -> Far {
    std::thread::spawn(move || {
        let before = cpu(ClockId::ThreadCPUTime);
        let mut block = vec![0x5a; FAR_BYTES];
        let mut left = len;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(FAR_BYTES).min(FAR_BYTES);
            let moved = if takes { far.read(&mut block[..most])? } else { far.write(&block[..most])? };
            ensure!(moved > 0, "the stream ended {left} bytes early");
            left -= moved as u64;
        }
        Ok(cpu(ClockId::ThreadCPUTime) - before)
    })
}

/// Waits until the far end has done its part; its processor time.
pub(crate) fn join(far: Far) -> Result<Duration> {
    far.join().map_err(|_| anyhow!("the far end panicked"))?
}
