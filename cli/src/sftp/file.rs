//! One file through SFTP, in either direction: a temporary name, a window of chunks, a look at whether it was all of it,
//! and then the final name.

use super::CHUNK;
use super::copy::{Carrier, Spot, Why, attributes, here, remote_temp, seconds, there};
use super::packet::Attrs;
use haul_engine::backend::{Errno, FileId};
use haul_engine::limits::SMALL_BYTES;
use haul_engine::session::Failure;
use haul_engine::wire::frame::{Attributes, Kind, Preserve};
use std::collections::VecDeque;

/// Chunks on their way at the same time: 2 MiB fill most lines.
const WINDOW: usize = 64;
pub(super) const WRITE: &str = "cannot write";

/// What became of a file.
pub(super) struct Carried {
    pub(super) size: u64,
    /// It has grown meanwhile: this is what it began with.
    pub(super) grew: bool,
}

impl Carrier<'_> {
    /// One file up.
    pub(super) fn put(&mut self, spot: &Spot) -> Result<Carried, Why> {
        let unopened = |errno| here(&spot.source, "cannot open")(errno).of_source();
        let (file, attributes) = self.disk.open(&spot.here).map_err(unopened)?;
        self.expect(attributes.size);
        let done = self.put_open(spot, file, &attributes);
        self.disk.close(file);
        done
    }

    fn put_open(&mut self, spot: &Spot, file: FileId, source: &Attributes) -> Result<Carried, Why> {
        let refused = there(&spot.target, "cannot create");
        let old = match self.sftp.stat(&spot.there, false) {
            Ok(attrs) => {
                let special = |behind: Attrs| behind.kind() != Kind::Regular;
                if attrs.kind() == Kind::Symlink && self.sftp.stat(&spot.there, true).is_ok_and(special) {
                    return Err(here(&spot.target, "cannot create")(Errno::LINK_TO_OTHER));
                }
                replaceable(attrs.kind(), &spot.target)?.then_some(attrs.mode).flatten()
            }
            Err(trouble) if trouble.is_missing() => None,
            Err(trouble) => return Err(refused(trouble)),
        };
        let temp = remote_temp(&spot.there);
        // The server masks what a file is made with; nobody may see more of it before its time than afterwards.
        let mode = source.mode & 0o777 & old.unwrap_or(0o777);
        let handle = match self.sftp.create(&temp, mode) {
            Err(trouble) if trouble.is_missing() => {
                let parent = spot.there.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                self.make_dirs(&spot.there[..parent], 0o777).map_err(&refused)?;
                self.sftp.create(&temp, mode)
            }
            made => made,
        };
        let slash = temp.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash.max(1));
        let handle = handle.map_err(|trouble| self.explain(refused(trouble), &temp[..slash]))?;
        let exact = (self.exact() == Preserve::MODE).then_some(source.mode & 0o777).or(old);
        let attrs = Attrs { mode: exact, mtime: Some(seconds(source)), size: None };
        let sent = match self.send(file, source, &handle, spot) {
            Err(why @ Why::All(_)) => Err(why),
            sent => {
                let set = self.sftp.set_kept(&attrs, |sftp, attrs| sftp.set_handle_attrs(&handle, attrs));
                // Some file systems say only now that there is no room.
                let closed = self.sftp.close(&handle).map_err(there(&spot.target, WRITE));
                sent.and_then(|carried| closed.map(|()| carried)).and_then(|carried| {
                    let unkept = set.map_err(there(&spot.target, "cannot set attributes"))?;
                    self.sftp.rename(&temp, &spot.there).map_err(&refused)?;
                    self.unkept(spot, unkept);
                    Ok(carried)
                })
            }
        };
        sent.map_err(|why| {
            let why = self.explain(why, &temp[..slash]);
            self.abandon(&temp, why)
        })
    }

    /// Sends the content of a file, and makes sure that it was all of it and all the same file.
    fn send(&mut self, file: FileId, source: &Attributes, handle: &[u8], spot: &Spot) -> Result<Carried, Why> {
        let mut sent = 0;
        let mut open = VecDeque::new();
        let mut chunk = vec![0; CHUNK];
        let mut hasher = blake3::Hasher::new();
        let refused = there(&spot.target, WRITE);
        let unread = here(&spot.source, "cannot read");
        let end = self.end_of(file, source).map_err(&unread)?;
        loop {
            // No further than that: a file that grows faster than it travels would have no end.
            let room = usize::try_from(end - sent).unwrap_or(CHUNK).min(CHUNK);
            let count = self.disk.read(file, sent, &mut chunk[..room]).map_err(&unread)?;
            if count > 0 {
                open.push_back(self.sftp.write(handle, sent, &chunk[..count])?);
                sent += count as u64;
                hasher.update(&chunk[..count]);
                self.moved(count)?;
            }
            while open.len() >= WINDOW || count == 0 {
                let Some(id) = open.pop_front() else { break };
                self.sftp.written(id).map_err(&refused)?;
            }
            if count == 0 {
                break;
            }
        }
        let more = self.disk.read(file, end, &mut chunk[..1]).map_err(&unread)? > 0;
        let now = self.disk.stat_open(file).map_err(&unread)?;
        let changed = now.size != source.size || now.mtime != source.mtime;
        if changed {
            // What was sent of a file that has only grown is there still.
            let grown = now.size > source.size && sent >= source.size;
            let again = self.hash_of_first(file, sent).map_err(&unread)?;
            if !grown || again != hasher.finalize() {
                return Err(unread(Errno::CHANGED));
            }
        } else if more || sent < end {
            return Err(unread(Errno::SIZE_LIES));
        }
        let arrived = self.sftp.stat_handle(handle).map_err(&refused)?.size;
        if arrived.is_some_and(|arrived| arrived != sent) {
            return Err(Why::This(Failure::rule(&spot.target, WRITE, "another size arrived than was sent")));
        }
        Ok(Carried { size: sent, grew: changed })
    }

    /// How much of a file here is sent: what its size says, or, of a small one, what can be read of it. Some say 0, as in
    /// /proc, or more than they have, as in /sys.
    fn end_of(&mut self, file: FileId, source: &Attributes) -> Result<u64, Errno> {
        const MOST: usize = SMALL_BYTES + 1;
        if source.size > SMALL_BYTES as u64 {
            return Ok(source.size);
        }
        let (mut bytes, mut found) = (vec![0; MOST], 0);
        while found < MOST {
            match self.disk.read(file, found as u64, &mut bytes[found..])? {
                0 => break,
                count => found += count,
            }
        }
        let now = self.disk.stat_open(file)?;
        let is_whole = found < MOST && (now.size, now.mtime) == (source.size, source.mtime);
        Ok(if is_whole { found as u64 } else { source.size })
    }

    /// BLAKE3 of what a file here begins with.
    fn hash_of_first(&mut self, file: FileId, bytes: u64) -> Result<blake3::Hash, Errno> {
        let (mut hasher, mut chunk, mut done) = (blake3::Hasher::new(), vec![0; CHUNK], 0);
        while done < bytes {
            let wanted = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(CHUNK);
            match self.disk.read(file, done, &mut chunk[..wanted])? {
                0 => break,
                count => {
                    hasher.update(&chunk[..count]);
                    done += count as u64;
                }
            }
        }
        Ok(hasher.finalize())
    }

    /// One file down.
    pub(super) fn get(&mut self, spot: &Spot) -> Result<Carried, Why> {
        let refused = |trouble| there(&spot.source, "cannot open")(trouble).of_source();
        let failed = here(&spot.target, "cannot create");
        let handle = self.sftp.open(&spot.there).map_err(&refused)?;
        let attrs = self.sftp.stat_handle(&handle).map_err(&refused)?;
        self.expect(attrs.size.unwrap_or(0));
        let file = match self.disk.create(&spot.here, attrs.size.unwrap_or(0)) {
            Ok(file) => file,
            Err(errno) => {
                self.sftp.close(&handle).map_err(&refused)?;
                return Err(failed(errno));
            }
        };
        let mut received = self.receive(file, &attrs, &handle, spot);
        if !matches!(received, Err(Why::All(_))) {
            let closed = self.sftp.close(&handle).map_err(&refused);
            received = received.and_then(|carried| closed.map(|()| carried));
        }
        if matches!(received, Err(Why::This(_))) {
            self.sftp.forget();
        }
        let carried = received.inspect_err(|_| self.disk.close(file))?;
        let (preserve, sync) = (self.exact(), self.job.options.sync);
        let unkept = self.disk.publish(file, attributes(&attrs, 0o644), preserve, sync).map_err(failed)?;
        self.unkept(spot, unkept);
        Ok(carried)
    }

    /// Receives the content of a file, and makes sure that it was all of it and all the same file.
    fn receive(&mut self, file: FileId, attrs: &Attrs, handle: &[u8], spot: &Spot) -> Result<Carried, Why> {
        let refused = there(&spot.source, "cannot read");
        let Some(size) = attrs.size.filter(|&size| size < u64::MAX) else {
            let rule = "the server does not say how large it is";
            return Err(Why::This(Failure::rule(&spot.source, "cannot read", rule)));
        };
        let (mut asked, mut arrived, mut ended, mut more) = (0, 0, false, false);
        let mut open = VecDeque::new();
        loop {
            // One byte more than the size says: that nothing comes of it proves the end. What comes further on is not asked
            // for, or a server could fill the disk.
            while !ended && open.len() < WINDOW && asked <= size {
                let count = usize::try_from(size + 1 - asked).unwrap_or(CHUNK).min(CHUNK);
                open.push_back((self.sftp.read(handle, asked, count)?, asked, count));
                asked += count as u64;
            }
            let Some((id, offset, count)) = open.pop_front() else { break };
            let chunk = self.sftp.chunk(id).map_err(&refused)?;
            let chunk = &chunk[..chunk.len().min(count)];
            ended |= chunk.is_empty();
            if ended {
                continue;
            }
            // The byte behind what was there to begin with: it has grown, which is looked at in the end.
            let room = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
            more |= chunk.len() > room;
            let chunk = &chunk[..chunk.len().min(room)];
            if chunk.is_empty() {
                ended = true;
                continue;
            }
            arrived += chunk.len() as u64;
            self.disk.write(file, offset, chunk).map_err(here(&spot.target, WRITE))?;
            self.moved(chunk.len())?;
            if chunk.len() < count && !more {
                let (offset, count) = (offset + chunk.len() as u64, count - chunk.len());
                open.push_front((self.sftp.read(handle, offset, count)?, offset, count));
            }
        }
        let now = self.sftp.stat_handle(handle).map_err(&refused)?;
        if now.size == attrs.size && now.mtime == attrs.mtime {
            if more {
                let rule = "there is more of it than the server said";
                return Err(Why::This(Failure::rule(&spot.source, "cannot read", rule)));
            }
            // A small file may say more than it has, as in /sys. Of a large one a server might have kept back the rest.
            if arrived != size && size > SMALL_BYTES as u64 {
                return Err(Why::This(Failure::here(&spot.source, "cannot read", Errno::SIZE_LIES)));
            }
            return Ok(Carried { size: arrived, grew: false });
        }
        // Nothing here is proved: a file that is longer now is taken for one that has only grown.
        let grown = now.size.is_some_and(|now| now > size && now >= arrived) && arrived >= size;
        if !grown {
            return Err(Why::This(Failure::here(&spot.source, "cannot read", Errno::CHANGED)));
        }
        Ok(Carried { size: arrived, grew: true })
    }
}

/// Whether what stands at a target is a file, whose mode is kept, or a link, which is not. Nothing else is replaced.
fn replaceable(kind: Kind, shown: &[u8]) -> Result<bool, Why> {
    match kind {
        Kind::Regular => Ok(true),
        Kind::Symlink => Ok(false),
        Kind::Directory => Err(Why::This(Failure::here(shown, "cannot create", Errno::IS_DIRECTORY))),
        _ => Err(Why::This(Failure::here(shown, "cannot create", Errno::NOT_REGULAR))),
    }
}
