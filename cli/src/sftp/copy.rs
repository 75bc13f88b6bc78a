//! `haul copy` where the other machine has nobody who could answer: its SFTP server carries the files.
//!
//! ```text
//! up:    stat target -> each source: stat here -> file: put to .haul-<16 hex>.tmp, rename   -> tree: mkdir, and so on
//! down:  stat target here -> each source: stat there -> file: temporary file here, rename   -> tree: list, and so on
//! ```
//! Sources land where they do natively, links and special files in trees are treated as natively, and a file gets its
//! name when it is complete. What is missing is the proof: SFTP has no hashes, so only sizes are compared. Names that the
//! server lists are used one component at a time, in directories that were made or looked at and are no links.

use super::file::{Carried, umask};
use super::packet::Attrs;
use super::{Sftp, Trouble};
use crate::copy::Job;
use crate::exit::{self, Exit};
use crate::output::Output;
use crate::remote::Dial;
use crate::run;
use crate::signals;
use haul_engine::backend::Errno;
use haul_engine::session::plan::{Landing, Operand, skip_reason};
use haul_engine::session::report::{Direction, Progress, Report};
use haul_engine::session::{Failure, Reason};
use haul_engine::wire::frame::{ErrorCode, Kind, Preserve};
use haul_engine::wire::path::RelPath;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// How often the progress line moves.
const TICK: Duration = Duration::from_millis(100);

/// Copies everything, says how it went, and with which code the process ends. Nobody else answers, for this reason.
pub(crate) fn run(dial: &Dial, job: &Job, output: &mut Output, nobody: Failure) -> Exit {
    let Some(child) = dial.sftp() else { return run::absent(output, nobody, "") };
    let why = nobody.why();
    output.unproved();
    let progress = Progress::default();
    let ended = match child.map(Sftp::greet) {
        Err(failure) => {
            output.fatal(&failure, Exit::Start);
            return output.finish();
        }
        Ok(Err(_)) if run::stopped_after_all(true) => Err(Trouble::Stopped),
        Ok(Err(_)) => return run::absent(output, nobody, ", and no SFTP server answers either"),
        Ok(Ok(mut sftp)) => {
            // Now that it is known to do so.
            let host = &dial.host;
            let owners = if job.options.preserve.has(Preserve::OWNER) { "; owners are not kept" } else { "" };
            output.report(Report::Notice(format!(
                "no haul answers on {host} ({why}): its SFTP server carries the files, not verified by haul{owners}"
            )));
            progress.connected.store(1, Ordering::Relaxed);
            let ended = Carrier::new(&mut sftp, job, output, &progress).carry();
            if ended.is_ok() {
                sftp.leave();
            }
            ended
        }
    };
    match ended {
        Err(trouble) if matches!(trouble, Trouble::Stopped) || run::stopped_after_all(true) => {
            output.interrupted(&progress);
            return Exit::Interrupted;
        }
        Err(trouble) => {
            let kind = if matches!(trouble, Trouble::Silent(_)) { Reason::Silent } else { Reason::Lost };
            let failure = Failure::connection("connection lost", trouble).because(kind);
            output.fatal(&failure, exit::of_fatal(&failure));
        }
        Ok(()) => {}
    }
    output.finish()
}

/// One place in a tree, on both sides, as used and as shown.
#[derive(Clone)]
pub(super) struct Spot {
    pub(super) here: PathBuf,
    pub(super) there: Vec<u8>,
    pub(super) source: Vec<u8>,
    pub(super) target: Vec<u8>,
}

impl Spot {
    fn child(&self, name: &[u8]) -> Spot {
        Spot {
            here: self.here.join(OsStr::from_bytes(name)),
            there: below(&self.there, name),
            source: below(&self.source, name),
            target: below(&self.target, name),
        }
    }
}

fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.ends_with(b"/") || directory.ends_with(b":") { b"" } else { b"/" };
    [directory, slash, name].concat()
}

/// Why one thing was not done: a failure of it, or trouble with everything.
pub(super) enum Why {
    This(Failure),
    All(Trouble),
}

impl From<Trouble> for Why {
    fn from(trouble: Trouble) -> Why {
        Why::All(trouble)
    }
}

impl Why {
    /// The same, of a source that was found a moment ago.
    pub(super) fn of_source(self) -> Why {
        match self {
            Why::This(failure) => Why::This(failure.of_source()),
            all => all,
        }
    }
}

/// A refusal concerns this path.
pub(super) fn there(path: &[u8], what: &'static str) -> impl Fn(Trouble) -> Why {
    move |trouble| trouble.of_path(path, what).map_or_else(Why::All, Why::This)
}

pub(super) fn here(path: &[u8], what: &'static str) -> impl Fn(io::Error) -> Why {
    move |error| Why::This(Failure::here(path, what, error.into()))
}

/// Carries one job out.
pub(super) struct Carrier<'a> {
    pub(super) sftp: &'a mut Sftp,
    job: &'a Job,
    output: &'a mut Output,
    progress: &'a Progress,
    ticked: Instant,
    /// What is wrong with the target is wrong for every source.
    hopeless: bool,
}

impl<'a> Carrier<'a> {
    fn new(sftp: &'a mut Sftp, job: &'a Job, output: &'a mut Output, progress: &'a Progress) -> Carrier<'a> {
        Carrier { sftp, job, output, progress, ticked: Instant::now(), hopeless: false }
    }

    fn carry(&mut self) -> Result<(), Trouble> {
        let target = &self.job.target;
        let present = match self.kind_of_target(target) {
            Ok(present) => present,
            Err(why) => return self.take_note(Err(why)),
        };
        let many = self.job.sources.len() > 1;
        let landing = Landing { target: target.clone(), options: self.job.options, many, present };
        for source in &self.job.sources {
            let done = self.source(source, &landing);
            self.take_note(done)?;
            if self.hopeless {
                break;
            }
        }
        self.progress.totals_final.store(1, Ordering::Relaxed);
        Ok(())
    }

    /// A failure of one thing is told, and all else goes on.
    fn take_note(&mut self, done: Result<(), Why>) -> Result<(), Trouble> {
        match done {
            Ok(()) => Ok(()),
            Err(Why::This(failure)) => {
                self.output.failed(&failure);
                Ok(())
            }
            Err(Why::All(trouble)) => Err(trouble),
        }
    }

    fn kind_of_target(&mut self, target: &Operand) -> Result<Option<Kind>, Why> {
        if self.job.down {
            return match fs::metadata(local(target.path.as_bytes())) {
                Ok(meta) => Ok(Some(kind(&meta))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(here(&target.shown, "cannot stat")(error)),
            };
        }
        match self.sftp.stat(&remote(target.path.as_bytes()), true) {
            Ok(attrs) => Ok(Some(attrs.kind())),
            Err(trouble) if trouble.is_missing() => Ok(None),
            Err(trouble) => Err(there(&target.shown, "cannot stat")(trouble)),
        }
    }

    fn source(&mut self, source: &Operand, landing: &Landing) -> Result<(), Why> {
        let path = source.path.as_bytes();
        let kind = if self.job.down {
            self.sftp.stat(&remote(path), true).map_err(there(&source.shown, "cannot stat"))?.kind()
        } else {
            kind(&fs::metadata(local(path)).map_err(here(&source.shown, "cannot stat"))?)
        };
        let target = landing.of(source, kind).map_err(|failure| {
            self.hopeless = true;
            Why::This(failure)
        })?;
        let (shown, to) = (landing.shown(&target), target.joined());
        let (from, to) = (path, to.as_bytes());
        let (here, there) = if self.job.down { (to, from) } else { (from, to) };
        let spot = Spot { here: local(here), there: remote(there), source: source.shown.clone(), target: shown };
        match kind {
            Kind::Directory if self.job.options.recursive => {
                let what = "cannot make directory";
                let made = if self.job.down {
                    make_private_dirs(&spot.here).map_err(self::here(&spot.target, what))?
                } else {
                    let meta = fs::metadata(&spot.here).map_err(self::here(&spot.source, "cannot stat"))?;
                    self.make_dirs(&spot.there, while_filled(&meta)).map_err(self::there(&spot.target, what))?
                };
                self.directory(&spot, made)
            }
            Kind::Directory => {
                let rule = "it is a directory, and -r was not given";
                Err(Why::This(Failure::rule(&source.shown, "left out", rule).because(Reason::NeedsRecursive)))
            }
            Kind::Regular => self.file(&spot),
            _ => Err(Why::This(Failure::here(&source.shown, "cannot open", Errno::NOT_REGULAR))),
        }
    }

    /// Makes a remote directory with this mode, and all above it. False if it is there already, which is as good.
    pub(super) fn make_dirs(&mut self, path: &[u8], mode: u32) -> Result<bool, Trouble> {
        match self.sftp.stat(path, true) {
            Ok(attrs) if attrs.kind() == Kind::Directory => return Ok(false),
            Err(trouble) if !trouble.is_missing() => return Err(trouble),
            _ => {}
        }
        if let Some(slash) = path.iter().rposition(|&byte| byte == b'/').filter(|&slash| slash > 0) {
            self.make_dirs(&path[..slash], 0o777)?;
        }
        self.sftp.make_dir(path, mode).map(|()| true)
    }

    /// Everything in a directory that is there on both sides, `made` just now or not; then its time and mode.
    fn directory(&mut self, spot: &Spot, made: bool) -> Result<(), Why> {
        self.output.report(Report::Directory { target: spot.target.clone() });
        if self.job.down { self.directory_down(spot, made) } else { self.directory_up(spot, made) }
    }

    fn directory_down(&mut self, spot: &Spot, made: bool) -> Result<(), Why> {
        let refused = there(&spot.source, "cannot list");
        let attrs = self.sftp.stat(&spot.there, true).map_err(&refused)?;
        for (name, attrs) in self.sftp.list(&spot.there).map_err(&refused)? {
            let safe = RelPath::parse(&name).is_ok() && !name.contains(&b'/');
            let done = if safe {
                self.entry_down(&spot.child(&name), attrs)
            } else {
                let shown = below(&spot.source, &name);
                Err(Why::This(Failure::rule(&shown, "left out", "the server sent an unsafe name")))
            };
            self.take_note(done)?;
        }
        let mode = attrs.mode.unwrap_or(0o755) & 0o777;
        let mode = if self.exact() { Some(mode) } else { made.then(|| mode & !umask()) };
        let set = || -> io::Result<()> {
            let directory = File::open(&spot.here)?;
            directory.set_modified(time(&attrs))?;
            mode.map_or(Ok(()), |mode| directory.set_permissions(fs::Permissions::from_mode(mode)))
        };
        set().map_err(here(&spot.target, "cannot set attributes"))
    }

    fn directory_up(&mut self, spot: &Spot, made: bool) -> Result<(), Why> {
        let failed = here(&spot.source, "cannot list");
        let meta = fs::metadata(&spot.here).map_err(&failed)?;
        for entry in fs::read_dir(&spot.here).map_err(&failed)? {
            let done = self.entry_up(&spot.child(entry.map_err(&failed)?.file_name().as_bytes()));
            self.take_note(done)?;
        }
        let refused = there(&spot.target, "cannot set attributes");
        let mode = meta.mode() & 0o777;
        let mode = if self.exact() {
            Some(mode)
        } else if made && while_filled(&meta) != mode {
            // What the server has masked stays so.
            self.sftp.stat(&spot.there, true).map_err(&refused)?.mode.map(|masked| masked & mode)
        } else {
            None
        };
        let attrs = Attrs { mode, mtime: Some(seconds(&meta)), size: None };
        self.sftp.set_attrs(&spot.there, &attrs).map_err(&refused)
    }

    fn entry_down(&mut self, spot: &Spot, attrs: Attrs) -> Result<(), Why> {
        match attrs.kind() {
            Kind::Directory => {
                let made = match private_dir(&spot.here) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        let meta = fs::symlink_metadata(&spot.here).map_err(here(&spot.target, "cannot stat"))?;
                        if !meta.is_dir() {
                            let errno = Errno::NOT_DIRECTORY;
                            return Err(Why::This(Failure::here(&spot.target, "cannot make directory", errno)));
                        }
                        false
                    }
                    made => made.map(|()| true).map_err(here(&spot.target, "cannot make directory"))?,
                };
                self.directory(spot, made)
            }
            Kind::Regular => self.file(spot),
            Kind::Symlink if self.job.options.links => {
                let text = self.sftp.read_link(&spot.there).map_err(there(&spot.source, "cannot read link"))?;
                let temp = spot.here.with_file_name(temp_name());
                std::os::unix::fs::symlink(OsStr::from_bytes(&text), &temp)
                    .and_then(|()| fs::rename(&temp, &spot.here).inspect_err(|_| _ = fs::remove_file(&temp)))
                    .map_err(here(&spot.target, "cannot make link"))?;
                self.output.report(Report::Link { target: spot.target.clone(), text });
                Ok(())
            }
            other => self.skip(spot, other),
        }
    }

    fn entry_up(&mut self, spot: &Spot) -> Result<(), Why> {
        let meta = fs::symlink_metadata(&spot.here).map_err(here(&spot.source, "cannot stat"))?;
        match kind(&meta) {
            Kind::Directory => {
                let refused = there(&spot.target, "cannot make directory");
                let made = match self.sftp.stat(&spot.there, false) {
                    Ok(attrs) if attrs.kind() == Kind::Directory => false,
                    Ok(_) => {
                        let errno = Errno::NOT_DIRECTORY;
                        return Err(Why::This(Failure::here(&spot.target, "cannot make directory", errno)));
                    }
                    Err(trouble) if trouble.is_missing() => {
                        self.sftp.make_dir(&spot.there, while_filled(&meta)).map_err(refused)?;
                        true
                    }
                    Err(trouble) => return Err(refused(trouble)),
                };
                self.directory(spot, made)
            }
            Kind::Regular => self.file(spot),
            Kind::Symlink if self.job.options.links => {
                let text = fs::read_link(&spot.here).map_err(here(&spot.source, "cannot read link"))?;
                let text = text.into_os_string().as_bytes().to_vec();
                let temp = remote_temp(&spot.there);
                let refused = there(&spot.target, "cannot make link");
                self.sftp.make_link(&text, &temp).map_err(&refused)?;
                if let Err(trouble) = self.sftp.rename(&temp, &spot.there) {
                    return Err(self.abandon(&temp, refused(trouble)));
                }
                self.output.report(Report::Link { target: spot.target.clone(), text });
                Ok(())
            }
            other => self.skip(spot, other),
        }
    }

    fn skip(&mut self, spot: &Spot, kind: Kind) -> Result<(), Why> {
        self.output.report(Report::Skipped { source: spot.source.clone(), why: skip_reason(kind) });
        Ok(())
    }

    fn file(&mut self, spot: &Spot) -> Result<(), Why> {
        let direction = if self.job.down { Direction::Down } else { Direction::Up };
        let Carried { size, grew } = match self.carry_file(spot) {
            // A source that changed meanwhile is tried once more.
            Err(Why::This(failure)) if failure.code() == ErrorCode::CHANGED => self.carry_file(spot)?,
            carried => carried?,
        };
        if grew {
            self.output.report(Report::Grew { source: spot.source.clone(), size });
        }
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        self.output.copied(&spot.source, spot.target.clone(), size, None, direction);
        Ok(())
    }

    fn carry_file(&mut self, spot: &Spot) -> Result<Carried, Why> {
        if self.job.down { self.get(spot) } else { self.put(spot) }
    }

    /// Why a file has not got its name; what was made of it is removed, if there still is somebody who can do that.
    pub(super) fn abandon(&mut self, temp: &[u8], why: Why) -> Why {
        match why {
            Why::All(Trouble::Lost(_) | Trouble::Silent(_)) => return why,
            Why::All(_) => self.sftp.last_words(),
            Why::This(_) => {}
        }
        let _ = self.sftp.remove(temp);
        why
    }

    /// True where permission bits are kept as they are.
    pub(super) fn exact(&self) -> bool {
        self.job.options.preserve.has(Preserve::MODE)
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.progress.total_files.fetch_add(1, Ordering::Relaxed);
        self.progress.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn moved(&mut self, bytes: usize) -> Result<(), Trouble> {
        self.progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            self.output.tick(self.progress);
        }
        if signals::stopped() { Err(Trouble::Stopped) } else { Ok(()) }
    }
}

/// A path as the system here wants it.
fn local(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(if path.is_empty() { b"." } else { path }))
}

/// A path as the server wants it.
fn remote(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { b".".to_vec() } else { path.to_vec() }
}

/// The mode of a new directory until all that belongs in it is there.
fn while_filled(meta: &Metadata) -> u32 {
    meta.mode() & 0o777 | 0o700
}

/// A directory that nobody else sees into yet.
fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// The same, with all above it. False if it is there already.
fn make_private_dirs(path: &Path) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), fs::create_dir_all)?;
    private_dir(path).map(|()| true)
}

pub(super) fn temp_name() -> String {
    let mut random = [0; 8];
    // Made exclusively: a name that is taken is an error, not a mistake.
    let _ = getrandom::fill(&mut random);
    format!(".haul-{:016x}.tmp", u64::from_be_bytes(random))
}

/// A name beside this one.
pub(super) fn remote_temp(path: &[u8]) -> Vec<u8> {
    let directory = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..directory], temp_name().as_bytes()].concat()
}

pub(super) fn kind(meta: &Metadata) -> Kind {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => Kind::Directory,
        () if kind.is_symlink() => Kind::Symlink,
        () if kind.is_fifo() => Kind::Fifo,
        () if kind.is_socket() => Kind::Socket,
        () if kind.is_char_device() => Kind::CharDevice,
        () if kind.is_block_device() => Kind::BlockDevice,
        () => Kind::Regular,
    }
}

/// Whole seconds, as far as the protocol can count them.
pub(super) fn seconds(meta: &Metadata) -> u32 {
    u32::try_from(meta.mtime().max(0)).unwrap_or(u32::MAX)
}

pub(super) fn time(attrs: &Attrs) -> SystemTime {
    attrs.mtime.map_or_else(SystemTime::now, |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into()))
}
