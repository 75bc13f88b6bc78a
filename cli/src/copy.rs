//! `haul copy`

use crate::args::{Choice, Compress, CopyArgs, DEFAULT_PROGRAM, OutputArgs};
use crate::exit::Exit;
use crate::operand::{self, Parsed};
use crate::output::{NOT_KEPT, Output};
use crate::run::{self, Ended, MakeClient, Peer, Work};
use crate::sftp;
use haul_engine::limits::ZSTD_CONNECTIONS;
use haul_engine::session::plan::{Operand, Options};
use haul_engine::session::report::{Direction, Program, Report};
use haul_engine::session::{Failure, download, upload};
use haul_engine::wire::display::Printable;
use haul_engine::wire::frame::{Caps, Preserve, Unkept};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A copy between this machine and another, or within this one.
pub(crate) struct Job {
    /// From the other machine to this one.
    pub(crate) down: bool,
    pub(crate) sources: Vec<Operand>,
    pub(crate) target: Operand,
    pub(crate) options: Options,
}

pub(crate) fn run(args: &CopyArgs, choice: Choice) -> Exit {
    let parsed: Result<Vec<Parsed>, String> = args.paths.iter().map(|path| operand::parse(path)).collect();
    let mut sources = match parsed {
        Ok(parsed) => parsed,
        Err(why) => return run::usage(&why),
    };
    let Some(target) = sources.pop().filter(|_| !sources.is_empty()) else {
        return run::usage("a source and a target are needed");
    };
    if let Some((number, why)) = value_of_scp(args, &sources) {
        crate::output::error(&format!("{number}: there is no such file; {why}"));
        return Exit::Usage;
    }
    if args.no_target_directory && sources.len() > 1 {
        return run::usage("-T takes one source");
    }
    let from = sources[0].host.clone();
    if sources.iter().any(|source| source.host != from) {
        return run::usage("all sources must be on the same machine");
    }
    if from.is_some() && target.host.is_some() {
        return run::usage("one side of a copy must be this machine");
    }
    let (options, caps) = (options(args), caps(args));
    let uploads = target.host.is_some();
    let remote = if from.is_some() { sources.as_slice() } else { std::slice::from_ref(&target) };
    let host = from.as_ref().or(target.host.as_ref());
    let peer = match run::peer(host, &args.remote, remote.iter().map(|remote| &remote.operand)) {
        Ok(Peer::Remote(dial)) if args.connections.over_ssh() > 1 => {
            let dial = dial.independent();
            Peer::Remote(Box::new(if uploads { dial.gathered() } else { dial }))
        }
        Ok(peer) => peer,
        Err(why) => return run::refused(&why),
    };
    let same_machine = from.is_none() && !uploads;
    let mut sources: Vec<_> = sources.into_iter().map(|source| source.operand).collect();
    let target = target.operand;
    let asked = if args.preserve { Unkept::MODE.0 } else { 0 };
    let mut output = Output::new(&OutputArgs { keeps: options.resume, uploads, asked, ..args.output.clone() });
    if same_machine && options.recursive {
        sources.retain(|source| {
            let is_link = || std::fs::symlink_metadata(path(source)).is_ok_and(|meta| meta.is_symlink());
            let as_link = !source.follows(&options) && is_link();
            let endless = !as_link && is_inside_itself(source, &target, options.exact_target);
            if endless {
                let rule = "a directory cannot be copied into itself";
                output.failed(&Failure::rule(&source.shown, "left out", rule));
            }
            !endless
        });
        if sources.is_empty() {
            return output.finish();
        }
    }
    let job = Arc::new(Job { down: from.is_some(), sources, target, options });
    let same = job.clone();
    let make: MakeClient = if job.down {
        Arc::new(move |around| {
            let (sources, target) = (same.sources.clone(), same.target.clone());
            let plan = download::Plan { sources, local: around.local, target, queue: around.queue };
            download::client(around.stream, around.opening, plan, around.progress, around.reporter)
        })
    } else {
        Arc::new(move |around| {
            let local = around.local;
            let same_machine = same_machine.then_some(local);
            let (sources, target) = (same.sources.clone(), same.target.clone());
            let plan = upload::Plan { local, sources, target, queue: around.queue, same_machine };
            upload::client(around.stream, around.opening, plan, around.progress, around.reporter)
        })
    };
    let direction = if job.down { Direction::Down } else { Direction::Up };
    let work = Work { make, caps, files: (direction, options), links: args.connections, moves: true };
    let wanted = &args.remote.remote_path;
    let ended = run::client(choice, &peer, &work, &mut output, |report, _| {
        if let Report::Peer(Program { words, base: true }) = &report
            && wanted != DEFAULT_PROGRAM
        {
            // Whoever has named a program wants to know that it is another one, even if nothing else.
            let wanted = Printable(wanted.as_bytes());
            crate::output::error(&format!("`{wanted}` does not run there; {words} answers in its place: {NOT_KEPT}"));
        }
        Some(report)
    });
    match (ended, &peer) {
        (Ended::Absent(why), Peer::Remote(dial)) if !dial.must_be_direct() => {
            sftp::copy::run(dial, &job, &mut output, why)
        }
        (ended, _) => ended.or_absent(&mut output),
    }
}

/// A number that scp would have taken as the value of an option which is another one here, and what to do.
fn value_of_scp(args: &CopyArgs, sources: &[Parsed]) -> Option<(String, &'static str)> {
    let why = match (args.partial_progress, args.links) {
        (true, _) => "-P keeps what is incomplete and takes no value; the port of ssh is --port",
        (_, true) => "-l copies links and takes no value; there is no limit of bandwidth",
        _ => return None,
    };
    let number =
        sources.iter().filter(|source| source.host.is_none()).map(|source| &source.operand.shown).find(|shown| {
            shown.iter().all(u8::is_ascii_digit) && Path::new(OsStr::from_bytes(shown)).symlink_metadata().is_err()
        })?;
    Some((String::from_utf8_lossy(number).into_owned(), why))
}

/// True when the copy of a directory would lie inside it: the walk would find what it has just made, without end.
fn is_inside_itself(source: &Operand, target: &Operand, exact: bool) -> bool {
    let Ok(from) = path(source).canonicalize() else { return false };
    if !from.is_dir() {
        return false;
    }
    let mut to = real(&path(target));
    if !source.contents && !exact {
        to.extend(source.path.file_name().map(OsStr::from_bytes));
    }
    to != from && to.starts_with(&from)
}

fn path(operand: &Operand) -> PathBuf {
    let bytes = operand.path.as_bytes();
    PathBuf::from(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes }))
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => real(Path::new(".")).join(name),
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_path_buf(),
    }
}

fn options(args: &CopyArgs) -> Options {
    let mut preserve = Preserve::default();
    if args.preserve || args.archive {
        preserve = preserve.or(Preserve::MODE);
    }
    if args.archive && rustix::process::geteuid().is_root() {
        preserve = preserve.or(Preserve::OWNER);
    }
    if args.verify {
        preserve = preserve.or(Preserve::VERIFY);
    }
    Options {
        recursive: args.recursive || args.archive,
        links: args.links || args.archive,
        preserve,
        exact_target: args.no_target_directory,
        make_path: args.mkpath,
        omit_directory_times: args.omit_dir_times,
        resume: args.resume || args.partial_progress,
        sync: args.sync,
        connections: args.connections.over_ssh(),
    }
}

/// The codecs that are offered to the peer.
fn codecs(args: &CopyArgs) -> Caps {
    let ours = if args.connections.over_ssh() > ZSTD_CONNECTIONS { Caps::LZ4 } else { Caps::ZSTD.or(Caps::LZ4) };
    match args.compress {
        Some(Compress::None) => Caps::NONE,
        Some(Compress::Lz4) => Caps::LZ4,
        Some(Compress::Zstd) => Caps::ZSTD,
        Some(Compress::Auto) => ours,
        None if args.zstd => Caps::ZSTD,
        None if args.fast => Caps::NONE,
        None => ours,
    }
}

fn caps(args: &CopyArgs) -> Caps {
    [(args.dedup, Caps::DEDUP), (args.fast, Caps::FAST), (args.sync, Caps::SYNC)]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(codecs(args), |caps, (_, cap)| caps.or(cap))
}
