//! `haul copy` where the other machine has nobody who could answer: its SFTP server carries the files.
//!
//! ```text
//! up:    stat target -> each source: stat here -> file: put to .haul-<16 hex>.tmp, rename   -> tree: mkdir, and so on
//! down:  stat target here -> each source: stat there -> file: made here, published          -> tree: list, and so on
//! ```
//! Sources land where they do natively, links and special files in trees are treated as natively, and a file gets its
//! name when it is complete. What is missing is the proof: SFTP has no hashes, so only sizes are compared. On this side
//! everything is done as natively, by the engine (disk.rs); names that the server lists are used one component at a time.

use super::disk::Disk;
use super::file::{Carried, WRITE};
use super::packet::Attrs;
use super::{Sftp, Trouble};
use crate::copy::Job;
use crate::exit::{self, Exit};
use crate::output::Output;
use crate::remote::Dial;
use crate::run;
use crate::signals;
use haul_engine::backend::{DirEntry, Errno};
use haul_engine::limits::{MAX_REQUEST_PATH_BYTES, MAX_WALK_DEPTH, NO_ROOM_BYTES, SHOWN_NAME_BYTES};
use haul_engine::session::landed::Landed;
use haul_engine::session::plan::{Landing, Operand, skip_reason};
use haul_engine::session::report::{Direction, Progress, Report};
use haul_engine::session::{Cause, Failure, Reason};
use haul_engine::wire::frame::{Attributes, ErrorCode, Kind, Preserve, Timestamp, Unkept};
use haul_engine::wire::path::{PathError, RelPath, RequestPath, Target};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// How often the progress line moves.
const TICK: Duration = Duration::from_millis(100);
/// Bytes of names out of a server's listings that are held at most: of directories that are still to be copied.
const HELD_BYTES: usize = 16 << 20;
const MAKE_DIR: &str = "cannot make directory";

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
            let disk = match Disk::new() {
                Ok(disk) => disk,
                Err(error) => {
                    output.fatal(&Failure::connection("cannot start", crate::output::reason(&error)), Exit::Start);
                    return output.finish();
                }
            };
            let ended = Carrier::new(&mut sftp, disk, job, output, &progress).carry();
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
    pub(super) here: Target,
    pub(super) there: Vec<u8>,
    /// The target, whichever of the two it is.
    lands: Target,
    pub(super) source: Vec<u8>,
    pub(super) target: Vec<u8>,
}

impl Spot {
    fn child(&self, name: &RelPath) -> Spot {
        Spot {
            here: self.here.child(Some(name)),
            there: below(&self.there, name.as_bytes()),
            lands: self.lands.child(Some(name)),
            source: below(&self.source, name.as_bytes()),
            target: below(&self.target, name.as_bytes()),
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

pub(super) fn here(path: &[u8], what: &'static str) -> impl Fn(Errno) -> Why {
    move |errno| Why::This(Failure::here(path, what, errno))
}

/// Carries one job out.
pub(super) struct Carrier<'a> {
    pub(super) sftp: &'a mut Sftp,
    pub(super) disk: Disk,
    pub(super) job: &'a Job,
    output: &'a mut Output,
    progress: &'a Progress,
    ticked: Instant,
    landed: Landed,
    /// What is wrong with the target is wrong for every source.
    hopeless: bool,
    /// Bytes of the file that is being carried.
    size: u64,
    /// Bytes of the names that the server has listed and that are still to come.
    held: usize,
    /// Files in a row that the server refused to write, without a word for why.
    refusals: u32,
    /// There was no room for a file of so many bytes: none that is as large is begun. At 0 nothing more can be written, and
    /// the walk goes on to count what that concerns.
    no_room: Option<(u64, Failure)>,
}

impl<'a> Carrier<'a> {
    fn new(
        sftp: &'a mut Sftp,
        disk: Disk,
        job: &'a Job,
        output: &'a mut Output,
        progress: &'a Progress,
    ) -> Carrier<'a> {
        Carrier {
            sftp,
            disk,
            job,
            output,
            progress,
            ticked: Instant::now(),
            landed: Landed::default(),
            hopeless: false,
            size: 0,
            held: 0,
            refusals: 0,
            no_room: None,
        }
    }

    fn carry(&mut self) -> Result<(), Trouble> {
        let target = &self.job.target;
        let present = match self.kind_of(&target.path, &target.shown) {
            Ok(present) => present,
            Err(why) => return self.take_note(Err(why)),
        };
        let many = self.job.sources.len() > 1;
        let landing = Landing { target: target.clone(), options: self.job.options, many, present };
        if let Some(parent) = landing.parent_needed().filter(|_| present.is_none()) {
            let stands = self.kind_of(&parent, &target.shown);
            match stands {
                Ok(Some(_)) => {}
                Ok(None) => return self.take_note(Err(Why::This(landing.without_parent()))),
                Err(why) => return self.take_note(Err(why)),
            }
        }
        self.landed = Landed::new(&landing, self.job.sources.iter());
        for source in &self.job.sources {
            self.landed.next();
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
            Err(Why::This(mut failure)) => {
                if failure.what == WRITE && matches!(failure.cause, Cause::There { .. }) && !failure.kind.is_no_room() {
                    // What the server says has no number. Once may be a bad sector.
                    self.refusals += 1;
                    failure.kind = if self.refusals > 1 { Reason::TakesNothing } else { failure.kind };
                }
                if failure.kind.is_no_room() {
                    let size = if self.size <= NO_ROOM_BYTES { 0 } else { self.size };
                    let least = self.no_room.as_ref().map_or(size, |(least, _)| size.min(*least));
                    self.no_room = Some((least, failure.clone()));
                }
                self.output.failed(&failure);
                Ok(())
            }
            Err(Why::All(trouble)) => Err(trouble),
        }
    }

    /// What stands at the target, or above it.
    fn kind_of(&mut self, path: &RequestPath, shown: &[u8]) -> Result<Option<Kind>, Why> {
        if self.job.down {
            let present = self.disk.stat(&Target { operand: path.clone(), below: None }, true);
            return Ok(present.map_err(here(shown, "cannot stat"))?.map(|attributes| attributes.kind));
        }
        match self.sftp.stat(&remote(path.as_bytes()), true) {
            Ok(attrs) => Ok(Some(attrs.kind())),
            Err(trouble) if trouble.is_missing() => Ok(None),
            Err(trouble) => Err(there(shown, "cannot stat")(trouble)),
        }
    }

    fn source(&mut self, source: &Operand, landing: &Landing) -> Result<(), Why> {
        let local = Target { operand: source.path.clone(), below: None };
        let path = remote(source.path.as_bytes());
        let follow = source.follows(&self.job.options);
        let (found, link) = if self.job.down {
            let attrs = self.sftp.stat(&path, follow).map_err(there(&source.shown, "cannot stat"))?;
            (attributes(&attrs, 0o777), Vec::new())
        } else {
            let missing = || here(&source.shown, "cannot stat")(Errno::NOT_FOUND);
            let found = self.disk.look(&local, follow).map_err(here(&source.shown, "cannot stat"))?;
            found.ok_or_else(missing)?
        };
        let kind = found.kind;
        let target = landing.of(source, kind).map_err(|failure| {
            self.hopeless = true;
            Why::This(failure)
        })?;
        self.landed.land(&target);
        let shown = landing.shown(&target);
        let lands = target.clone();
        let (here, there) = if self.job.down { (target, path) } else { (local, remote(target.joined().as_bytes())) };
        let spot = Spot { here, there, lands, source: source.shown.clone(), target: shown };
        match kind {
            Kind::Directory if self.job.options.recursive && self.is_full() => self.directory_count(&spot),
            Kind::Directory if self.job.options.recursive => {
                let made = if self.job.down {
                    self.make_dir(&spot, true)?
                } else {
                    self.make_dirs(&spot.there, while_filled(&found)).map_err(self::there(&spot.target, MAKE_DIR))?
                };
                self.directory(&spot, made)
            }
            Kind::Directory => {
                let rule = "it is a directory, and -r was not given";
                Err(Why::This(Failure::rule(&source.shown, "left out", rule).because(Reason::NeedsRecursive)))
            }
            Kind::Regular => self.file(&spot),
            Kind::Symlink if self.job.down => self.link_down(&spot, &found),
            Kind::Symlink => self.link_up(&spot, &link),
            _ => Err(Why::This(Failure::here(&source.shown, "cannot open", Errno::NOT_REGULAR))),
        }
    }

    /// Makes a directory here. False if it is there already; links are followed only to where an operand leads.
    fn make_dir(&mut self, spot: &Spot, follow: bool) -> Result<bool, Why> {
        let failed = here(&spot.target, MAKE_DIR);
        let present = self.disk.stat(&spot.here, follow).map_err(&failed)?;
        match present.map(|present| present.kind) {
            None | Some(Kind::Directory) => {}
            Some(Kind::Symlink) => return Err(linked(spot)),
            Some(_) => return Err(failed(Errno::NOT_DIRECTORY)),
        }
        self.disk.make_dir(&spot.here).map_err(failed)?;
        Ok(present.is_none())
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
        let depth = spot.here.below.as_ref().map_or(0, |below| below.components().count());
        if depth >= MAX_WALK_DEPTH {
            return Err(here(&spot.source, "cannot list")(Errno::TOO_DEEP));
        }
        if self.job.down { self.directory_down(spot, made) } else { self.directory_up(spot, made) }
    }

    fn directory_down(&mut self, spot: &Spot, made: bool) -> Result<(), Why> {
        let refused = there(&spot.source, "cannot list");
        let attrs = self.sftp.stat(&spot.there, true).map_err(&refused)?;
        let handle = self.sftp.open_dir(&spot.there).map_err(&refused)?;
        // Those in it come after everything else, so that only one is open at a time.
        let mut inner = Vec::new();
        let before = self.held;
        let listed = loop {
            let page = match self.sftp.read_dir(&handle) {
                Ok(Some(page)) => page,
                Ok(None) => break Ok(()),
                Err(trouble) => break Err(refused(trouble)),
            };
            for (name, attrs) in page {
                let done = match listed_name(spot, &name) {
                    Ok(name) if attrs.kind() == Kind::Directory => {
                        self.held += name.as_bytes().len() + size_of::<(RelPath, Attrs)>();
                        inner.push((name, attrs));
                        Ok(())
                    }
                    Ok(name) => self.entry_down(&spot.child(&name), attrs),
                    Err(why) => Err(why),
                };
                self.take_note(done)?;
            }
            if self.held > HELD_BYTES {
                let rule = "the server lists more directories than can be remembered";
                break Err(Why::This(Failure::rule(&spot.source, "cannot list", rule)));
            }
        };
        self.take_note(listed)?;
        let closed = self.sftp.close(&handle).map_err(&refused);
        self.take_note(closed)?;
        for (name, attrs) in inner {
            let done = self.entry_down(&spot.child(&name), attrs);
            self.take_note(done)?;
        }
        self.held = before;
        if self.is_full() {
            return Ok(());
        }
        let failed = here(&spot.target, "cannot set attributes");
        let mut attributes = Attributes { kind: Kind::Directory, ..attributes(&attrs, 0o755) };
        let mut preserve = self.exact();
        if made && preserve == Preserve::default() {
            // What the kernel has masked stays so.
            let follow = spot.here.below.is_none();
            let masked = self.disk.stat(&spot.here, follow).map_err(&failed)?.map_or(0, |masked| masked.mode);
            attributes.mode = masked & (attributes.mode | !0o777);
            preserve = if attributes.mode == masked { preserve } else { Preserve::MODE };
        }
        let unkept = self.disk.set_meta(&spot.here, attributes, preserve).map_err(failed)?;
        self.unkept(spot, unkept);
        Ok(())
    }

    fn directory_up(&mut self, spot: &Spot, made: bool) -> Result<(), Why> {
        let failed = here(&spot.source, "cannot list");
        let (dir, attributes) = self.disk.open_dir(&spot.here).map_err(&failed)?;
        // Those in it come after everything else, so that only one is open at a time.
        let mut inner = Vec::new();
        let listed = loop {
            let (entries, end) = match self.disk.read_dir(dir) {
                Ok(page) => page,
                Err(errno) => break Err(failed(errno)),
            };
            for DirEntry { name, attributes, link } in entries {
                let Ok(name) = RelPath::parse(&name) else { continue };
                let child = spot.child(&name);
                let done = match attributes {
                    Ok(attributes) if attributes.kind == Kind::Directory => {
                        inner.push((name, attributes));
                        Ok(())
                    }
                    Ok(attributes) => self.entry_up(&child, attributes.kind, &link),
                    Err(errno) => Err(here(&child.source, "cannot stat")(errno)),
                };
                self.take_note(done)?;
            }
            if end {
                break Ok(());
            }
        };
        self.disk.close_dir(dir);
        self.take_note(listed)?;
        for (name, attributes) in inner {
            let done = self.inner_up(&spot.child(&name), while_filled(&attributes));
            self.take_note(done)?;
        }
        if self.is_full() {
            return Ok(());
        }
        let refused = there(&spot.target, "cannot set attributes");
        let mode = attributes.mode & 0o777;
        let mode = if self.exact() == Preserve::MODE {
            Some(mode)
        } else if made && while_filled(&attributes) != mode {
            // What the server has masked stays so.
            self.sftp.stat(&spot.there, true).map_err(&refused)?.mode.map(|masked| masked & mode)
        } else {
            None
        };
        let attrs = Attrs { mode, mtime: Some(seconds(&attributes)), size: None };
        let unkept = self.sftp.set_kept(&attrs, |sftp, attrs| sftp.set_attrs(&spot.there, attrs)).map_err(&refused)?;
        self.unkept(spot, unkept);
        Ok(())
    }

    /// True once nothing more can be written.
    fn is_full(&self) -> bool {
        self.no_room.as_ref().is_some_and(|(least, _)| *least == 0)
    }

    /// Counts the files in a directory that is not made any more.
    fn directory_count(&mut self, spot: &Spot) -> Result<(), Why> {
        if self.job.down { self.directory_down(spot, false) } else { self.directory_up(spot, false) }
    }

    fn entry_down(&mut self, spot: &Spot, attrs: Attrs) -> Result<(), Why> {
        self.size = 0;
        match attrs.kind() {
            Kind::Directory if self.is_full() => self.directory_count(spot),
            Kind::Directory => {
                let made = self.make_dir(spot, false)?;
                self.directory(spot, made)
            }
            Kind::Regular => self.file(spot),
            Kind::Symlink if self.job.options.links => self.link_down(spot, &attributes(&attrs, 0o777)),
            other => self.skip(spot, other),
        }
    }

    /// A directory in one that is copied up. It has this mode until all that belongs in it is there.
    fn inner_up(&mut self, spot: &Spot, mode: u32) -> Result<(), Why> {
        if self.is_full() {
            return self.directory_count(spot);
        }
        self.size = 0;
        let refused = there(&spot.target, MAKE_DIR);
        let made = match self.sftp.stat(&spot.there, false) {
            Ok(attrs) if attrs.kind() == Kind::Directory => false,
            Ok(attrs) if attrs.kind() == Kind::Symlink => return Err(linked(spot)),
            Ok(_) => return Err(here(&spot.target, MAKE_DIR)(Errno::NOT_DIRECTORY)),
            Err(trouble) if trouble.is_missing() => {
                self.sftp.make_dir(&spot.there, mode).map_err(refused)?;
                true
            }
            Err(trouble) => return Err(refused(trouble)),
        };
        self.directory(spot, made)
    }

    /// What is no directory, in one that is copied up.
    fn entry_up(&mut self, spot: &Spot, kind: Kind, link: &[u8]) -> Result<(), Why> {
        self.size = 0;
        match kind {
            Kind::Regular => self.file(spot),
            Kind::Symlink if self.job.options.links => self.link_up(spot, link),
            other => self.skip(spot, other),
        }
    }

    fn link_down(&mut self, spot: &Spot, attributes: &Attributes) -> Result<(), Why> {
        self.claim(spot)?;
        let text = self.sftp.read_link(&spot.there).map_err(there(&spot.source, "cannot read link"))?;
        let made = self.disk.make_link(&spot.here, &text, *attributes);
        let unkept = made.map_err(here(&spot.target, "cannot make link"))?;
        self.unkept(spot, unkept);
        self.output.report(Report::Link { target: spot.target.clone(), text });
        Ok(())
    }

    fn link_up(&mut self, spot: &Spot, text: &[u8]) -> Result<(), Why> {
        self.claim(spot)?;
        let temp = remote_temp(&spot.there);
        let refused = there(&spot.target, "cannot make link");
        self.sftp.make_link(text, &temp).map_err(&refused)?;
        if let Err(trouble) = self.sftp.rename(&temp, &spot.there) {
            return Err(self.abandon(&temp, refused(trouble)));
        }
        self.output.report(Report::Link { target: spot.target.clone(), text: text.to_vec() });
        Ok(())
    }

    fn skip(&mut self, spot: &Spot, kind: Kind) -> Result<(), Why> {
        self.output.report(Report::Skipped { source: spot.source.clone(), why: skip_reason(kind) });
        Ok(())
    }

    /// No earlier source was copied there.
    fn claim(&mut self, spot: &Spot) -> Result<(), Why> {
        self.landed.claim(&spot.lands, &spot.source, &spot.target).map_err(Why::This)
    }

    fn file(&mut self, spot: &Spot) -> Result<(), Why> {
        if let Some((least, full)) = self.no_room.clone() {
            let known = match self.job.down {
                true => self.sftp.stat(&spot.there, true)?.size,
                false => self.disk.stat(&spot.here, true).ok().flatten().map(|attributes| attributes.size),
            };
            self.size = known.unwrap_or(0);
            if self.size >= least {
                return Err(Why::This(Failure { path: spot.target.clone(), ..full }));
            }
        }
        self.claim(spot)?;
        let direction = if self.job.down { Direction::Down } else { Direction::Up };
        let Carried { size, grew } = match self.carry_file(spot) {
            // A source that changed meanwhile is tried once more.
            Err(Why::This(failure)) if failure.code() == ErrorCode::CHANGED => self.carry_file(spot)?,
            carried => carried?,
        };
        self.refusals = 0;
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

    /// The same, or that there is no room in `directory`: servers refuse that without a number of its own.
    pub(super) fn explain(&mut self, why: Why, directory: &[u8]) -> Why {
        let Why::This(failure) = why else { return why };
        let unexplained =
            matches!(failure.cause, Cause::There { code, .. } if [ErrorCode::OTHER, Errno::IO.code()].contains(&code));
        let directory = if directory.is_empty() { b".".as_slice() } else { directory };
        if !unexplained || !self.sftp.is_full(directory).unwrap_or(false) {
            return Why::This(failure);
        }
        let message = format!("{}: {}", failure.what, Errno::NO_SPACE).into_bytes();
        Why::This(Failure::there(&failure.path, failure.what, Errno::NO_SPACE.code(), message))
    }

    /// Why a file has not got its name; what was made of it is removed, if there still is somebody who can do that.
    pub(super) fn abandon(&mut self, temp: &[u8], why: Why) -> Why {
        match why {
            Why::All(Trouble::Lost(_) | Trouble::Silent(_)) => return why,
            Why::All(_) => self.sftp.last_words(),
            Why::This(_) => self.sftp.forget(),
        }
        let _ = self.sftp.remove(temp);
        why
    }

    /// It is there, but not with these attributes.
    pub(super) fn unkept(&mut self, spot: &Spot, what: Unkept) {
        if !what.is_empty() {
            self.output.report(Report::Unkept { target: spot.target.clone(), what });
        }
    }

    /// What is kept exactly: nothing but permission bits can be.
    pub(super) fn exact(&self) -> Preserve {
        if self.job.options.preserve.has(Preserve::MODE) { Preserve::MODE } else { Preserve::default() }
    }

    pub(super) fn expect(&mut self, bytes: u64) {
        self.size = bytes;
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

/// A name out of the server's listing of the directory at `spot`.
fn listed_name(spot: &Spot, name: &[u8]) -> Result<RelPath, Why> {
    let parent = spot.here.below.as_ref().map_or(0, |below| below.as_bytes().len() + 1);
    let why = match RelPath::listed(name) {
        Ok(name) if name.as_bytes().contains(&b'/') => "the server sent an unsafe name".to_string(),
        Ok(name) if parent + name.as_bytes().len() > MAX_REQUEST_PATH_BYTES => PathError::Long.to_string(),
        Ok(name) => return Ok(name),
        Err(error) => format!("the server sent an unsafe name: {error}"),
    };
    let shown = below(&spot.source, &name[..name.len().min(SHOWN_NAME_BYTES)]);
    Err(Why::This(Failure::rule(&shown, "left out", why)))
}

/// A path as the server wants it.
fn remote(path: &[u8]) -> Vec<u8> {
    if path.is_empty() { b".".to_vec() } else { path.to_vec() }
}

/// A link stands where a directory was to be made.
fn linked(spot: &Spot) -> Why {
    let rule = "it is a symbolic link over there; what is below it is left out, too";
    Why::This(Failure::rule(&spot.target, "left out", rule))
}

/// The mode of a new directory until all that belongs in it is there.
fn while_filled(attributes: &Attributes) -> u32 {
    attributes.mode & 0o777 | 0o700
}

/// A name beside this one.
pub(super) fn remote_temp(path: &[u8]) -> Vec<u8> {
    let mut random = [0; 8];
    // Made exclusively: a name that is taken is an error, not a mistake.
    let _ = getrandom::fill(&mut random);
    let name = format!(".haul-{:016x}.tmp", u64::from_be_bytes(random));
    let directory = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    [&path[..directory], name.as_bytes()].concat()
}

/// Whole seconds, as far as the protocol can count them.
pub(super) fn seconds(attributes: &Attributes) -> u32 {
    u32::try_from(attributes.mtime.seconds.max(0)).unwrap_or(u32::MAX)
}

/// What the server said of a file, as it is set here; `mode` where it said nothing of that. Owners are not known by name.
pub(super) fn attributes(attrs: &Attrs, mode: u32) -> Attributes {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    Attributes {
        kind: attrs.kind(),
        size: attrs.size.unwrap_or(0),
        mode: attrs.mode.unwrap_or(mode) & 0o777,
        mtime: Timestamp { seconds: attrs.mtime.map_or_else(now, i64::from), nanoseconds: 0 },
        uid: u32::MAX,
        gid: u32::MAX,
    }
}
