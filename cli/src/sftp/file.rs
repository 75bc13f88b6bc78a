//! One file through SFTP, in either direction: a temporary name, a window of chunks, a look at whether it was all of it,
//! and then the final name.

use super::CHUNK;
use super::copy::{Carrier, Spot, Why, here, kind, remote_temp, seconds, temp_name, there, time};
use super::packet::Attrs;
use haul_engine::backend::Errno;
use haul_engine::limits::SMALL_BYTES;
use haul_engine::session::Failure;
use haul_engine::wire::frame::Kind;
use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Chunks on their way at the same time: 2 MiB fill most lines.
const WINDOW: usize = 64;

/// What became of a file.
pub(super) struct Carried {
    pub(super) size: u64,
    /// It has grown meanwhile: this is what it began with.
    pub(super) grew: bool,
}

impl Carrier<'_> {
    /// One file up.
    pub(super) fn put(&mut self, spot: &Spot) -> Result<Carried, Why> {
        let unopened = |error| here(&spot.source, "cannot open")(error).of_source();
        let file = open_regular(&spot.here).map_err(unopened)?;
        let meta = file.metadata().map_err(unopened)?;
        self.expect(meta.len());
        let refused = there(&spot.target, "cannot create");
        let old = match self.sftp.stat(&spot.there, false) {
            Ok(attrs) => replaceable(attrs.kind(), &spot.target)?.then_some(attrs.mode).flatten(),
            Err(trouble) if trouble.is_missing() => None,
            Err(trouble) => return Err(refused(trouble)),
        };
        let temp = remote_temp(&spot.there);
        // The server masks what a file is made with; nobody may see more of it before its time than afterwards.
        let mode = meta.mode() & 0o777 & old.unwrap_or(0o777);
        let handle = match self.sftp.create(&temp, mode) {
            Err(trouble) if trouble.is_missing() => {
                let parent = spot.there.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                self.make_dirs(&spot.there[..parent], 0o777).map_err(&refused)?;
                self.sftp.create(&temp, mode)
            }
            made => made,
        };
        let handle = handle.map_err(&refused)?;
        let exact = self.exact().then_some(meta.mode() & 0o777).or(old);
        let attrs = Attrs { mode: exact, mtime: Some(seconds(&meta)), size: None };
        let sent = self.send(&file, &meta, &handle, spot).and_then(|size| {
            self.sftp.set_handle_attrs(&handle, &attrs).map_err(there(&spot.target, "cannot set attributes"))?;
            self.sftp.close(&handle).map_err(there(&spot.target, "cannot write"))?;
            self.sftp.rename(&temp, &spot.there).map_err(&refused)?;
            Ok(size)
        });
        sent.map_err(|why| self.abandon(&temp, why))
    }

    /// Sends the content of a file, and makes sure that it was all of it and all the same file.
    fn send(&mut self, file: &File, meta: &Metadata, handle: &[u8], spot: &Spot) -> Result<Carried, Why> {
        let mut sent = 0;
        let mut open = VecDeque::new();
        let mut chunk = vec![0; CHUNK];
        let mut hasher = blake3::Hasher::new();
        let refused = there(&spot.target, "cannot write");
        loop {
            // One byte more than there was: a file that grows faster than it travels would have no end.
            let left = (meta.len() + 1).saturating_sub(sent);
            let room = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let count = file.read_at(&mut chunk[..room], sent).map_err(here(&spot.source, "cannot read"))?;
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
        let now = file.metadata().map_err(here(&spot.source, "cannot read"))?;
        let changed = now.len() != meta.len() || now.modified().ok() != meta.modified().ok();
        if changed {
            // What was sent of a file that has only grown is there still.
            let grown = now.len() > meta.len() && sent >= meta.len();
            let again = hash_of_first(file, sent).map_err(here(&spot.source, "cannot read"))?;
            if !grown || again != hasher.finalize() {
                return Err(Why::This(Failure::here(&spot.source, "cannot read", Errno::CHANGED)));
            }
        }
        let arrived = self.sftp.stat_handle(handle).map_err(&refused)?.size;
        if arrived.is_some_and(|arrived| arrived != sent) {
            return Err(Why::This(Failure::rule(&spot.target, "cannot write", "another size arrived than was sent")));
        }
        Ok(Carried { size: sent, grew: changed })
    }

    /// One file down.
    pub(super) fn get(&mut self, spot: &Spot) -> Result<Carried, Why> {
        let refused = |trouble| there(&spot.source, "cannot open")(trouble).of_source();
        let failed = here(&spot.target, "cannot create");
        let old = match fs::symlink_metadata(&spot.here) {
            Ok(meta) => replaceable(kind(&meta), &spot.target)?.then(|| meta.mode() & 0o777),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let handle = self.sftp.open(&spot.there).map_err(&refused)?;
        let attrs = self.sftp.stat_handle(&handle).map_err(&refused)?;
        self.expect(attrs.size.unwrap_or(0));
        let directory = spot.here.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(&failed)?;
        let temp =
            tempfile::Builder::new().prefix(&temp_name()).rand_bytes(0).tempfile_in(directory).map_err(&failed)?;
        let size = self.receive(temp.as_file(), &attrs, &handle, spot)?;
        self.sftp.close(&handle).map_err(&refused)?;
        let mode = attrs.mode.unwrap_or(0o644) & 0o777;
        let mode = if self.exact() { mode } else { old.unwrap_or(mode & !umask()) };
        let set = temp.as_file().set_permissions(fs::Permissions::from_mode(mode));
        set.and_then(|()| temp.as_file().set_modified(time(&attrs)))
            .map_err(here(&spot.target, "cannot set attributes"))?;
        temp.persist(&spot.here).map_err(|error| failed(error.error))?;
        Ok(size)
    }

    /// Receives the content of a file, and makes sure that it was all of it and all the same file.
    fn receive(&mut self, file: &File, attrs: &Attrs, handle: &[u8], spot: &Spot) -> Result<Carried, Why> {
        let refused = there(&spot.source, "cannot read");
        let Some(size) = attrs.size.filter(|&size| size < u64::MAX) else {
            return Err(Why::This(Failure::rule(
                &spot.source,
                "cannot read",
                "the server does not say how large it is",
            )));
        };
        let (mut asked, mut arrived, mut ended) = (0, 0, false);
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
            if offset + chunk.len() as u64 > size {
                let rule = "there is more of it than the server said";
                return Err(Why::This(Failure::rule(&spot.source, "cannot read", rule)));
            }
            file.write_all_at(chunk, offset).map_err(here(&spot.target, "cannot write"))?;
            arrived += chunk.len() as u64;
            self.moved(chunk.len())?;
            if chunk.len() < count {
                let (offset, count) = (offset + chunk.len() as u64, count - chunk.len());
                open.push_front((self.sftp.read(handle, offset, count)?, offset, count));
            }
        }
        let now = self.sftp.stat_handle(handle).map_err(&refused)?;
        if now.size == attrs.size && now.mtime == attrs.mtime {
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

/// BLAKE3 of what a file begins with.
fn hash_of_first(file: &File, bytes: u64) -> io::Result<blake3::Hash> {
    let (mut hasher, mut chunk, mut done) = (blake3::Hasher::new(), vec![0; CHUNK], 0);
    while done < bytes {
        let wanted = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(CHUNK);
        match file.read_at(&mut chunk[..wanted], done)? {
            0 => break,
            count => {
                hasher.update(&chunk[..count]);
                done += count as u64;
            }
        }
    }
    Ok(hasher.finalize())
}

/// Opens a file; never waits for the writer of a FIFO.
fn open_regular(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::from_raw_os_error(Errno::NOT_REGULAR.0)) }
}

/// The file mode creation mask; it can only be read by setting it, and no other thread makes files here.
#[allow(clippy::useless_conversion)] // The width of modes differs between systems.
pub(super) fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    u32::from(mask.as_raw_mode())
}
