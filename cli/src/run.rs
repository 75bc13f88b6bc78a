//! Runs a client session on a worker thread while this thread shows what happens.

use crate::args::{Choice, OutputArgs, RemoteArgs};
use crate::backend::{self, AnyBackend};
use crate::exit::{self, Exit};
use crate::operand::Parsed;
use crate::output::Output;
use crate::remote::{self, Host};
use crate::signals;
use haul_engine::backend::{Backend as _, DirId, StreamId};
use haul_engine::block::Pool;
#[cfg(target_os = "linux")]
use haul_engine::limits::PIPE_BYTES;
use haul_engine::limits::{POOL_LARGE_BLOCKS, POOL_SMALL_BLOCKS};
use haul_engine::offload::Root;
use haul_engine::session::Failure;
use haul_engine::session::client::{Client, Opening};
use haul_engine::session::plan::Operand;
use haul_engine::session::report::{Progress, Report, Reporter, SharedProgress};
use haul_engine::session::server::Server;
use haul_engine::worker::Worker;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How often the progress line moves.
const TICK: Duration = Duration::from_millis(100);
/// How long the remote shell has to end once its streams are closed.
const SHELL_END: Duration = Duration::from_secs(3);
/// How long a run that was told to stop may clean up.
const CLEAN_UP: Duration = Duration::from_millis(300);

/// What a client works on: made on its own thread.
pub(crate) struct Surroundings {
    pub(crate) stream: StreamId,
    /// This machine's paths, as the user types them.
    pub(crate) local: DirId,
    pub(crate) opening: Opening,
    pub(crate) progress: SharedProgress,
    pub(crate) reporter: Reporter,
}

/// Makes the client once its surroundings are there.
pub(crate) type MakeClient = Box<dyn FnOnce(Surroundings) -> Client + Send>;

/// The other end.
pub(crate) enum Peer {
    /// A haul started through ssh.
    Remote { child: Child, opening: Opening },
    /// A server in this process.
    Here,
}

/// Connects to the other end. From here on a signal finds somebody who listens.
pub(crate) fn connect(host: Option<&Host>, args: &RemoteArgs) -> Result<Peer, Failure> {
    signals::install();
    let Some(host) = host else { return Ok(Peer::Here) };
    let line = remote::start_line();
    let child = remote::spawn(host, args, &line)?;
    Ok(Peer::Remote { child, opening: Opening::full(Some(line.into_bytes())) })
}

/// The working directory, as the root of local operands.
pub(crate) fn working_directory() -> io::Result<OwnedFd> {
    std::fs::File::open(".").map(OwnedFd::from)
}

enum News {
    Backend(&'static str, Vec<String>),
    Report(Box<Report>),
    Broken(String),
    /// The session has come to its own end.
    Ended,
}

/// Runs one client to its end. `extra` sees every report first and may take it.
pub(crate) fn client(
    choice: Choice,
    peer: Peer,
    make: MakeClient,
    output: &mut Output,
    mut extra: impl FnMut(Report, &mut Output) -> Option<Report>,
) -> Exit {
    let (mut child, opening, stream, server) = match open(peer) {
        Ok(opened) => opened,
        Err(why) => {
            output.fatal(&Failure::connection("cannot start", why), Exit::Start);
            return output.finish();
        }
    };
    let progress = Arc::new(Progress::default());
    let (sender, news) = sync_channel(1024);
    let threads = [
        Some(spawn_client(choice, opening, stream, make, progress.clone(), sender)),
        server.map(|stream| std::thread::spawn(move || serve_here(choice, stream))),
    ];
    let mut fatal = None;
    let stopped = show(&news, &progress, output, &mut |report, output| match report {
        Report::Fatal(failure) => {
            // Told once it is known how ssh ended, which may be the reason.
            fatal = Some(failure);
            None
        }
        report => extra(report, output),
    });
    if stopped {
        output.interrupted(&progress);
        let until = Instant::now() + CLEAN_UP;
        while Instant::now() < until && !threads.iter().flatten().all(std::thread::JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(child) = &mut child {
            let _ = child.kill();
        }
        std::process::exit(Exit::Interrupted as i32);
    }
    for thread in threads.into_iter().flatten() {
        let _ = thread.join();
    }
    output.count(&progress);
    let shell = child.and_then(|mut child| end_shell(&mut child));
    if let Some(failure) = fatal {
        let connected = progress.connected.load(std::sync::atomic::Ordering::Relaxed) > 0;
        match shell {
            // A terminal's Ctrl-C reaches ssh too, and its end may be seen before the signal.
            _ if signals::stopped() => {
                output.interrupted(&progress);
                return Exit::Interrupted;
            }
            // ssh has said on stderr what is wrong.
            Some(255) if !connected => output.fatal(&Failure::connection("ssh failed", ""), Exit::Ssh),
            _ => output.fatal(&failure, exit::of_fatal(&failure)),
        }
    }
    output.finish()
}

/// Asks for a large pipe: each hand-over between two processes then moves more. What is not a pipe, or too much for the
/// user's budget, stays as it is.
pub(crate) fn widen(end: &impl AsFd) {
    #[cfg(target_os = "linux")]
    let _ = rustix::pipe::fcntl_setpipe_size(end, PIPE_BYTES);
    #[cfg(not(target_os = "linux"))]
    let _ = end;
}

/// Waits for the remote shell to end by itself, which it does when its streams are closed; not for ever.
fn end_shell(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + SHELL_END;
    while Instant::now() < until {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Ok(Some(status)) => return status.code(),
            Err(_) => return None,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

type Opened = (Option<Child>, Opening, (OwnedFd, Option<OwnedFd>), Option<UnixStream>);

fn open(peer: Peer) -> Result<Opened, String> {
    match peer {
        Peer::Here => {
            let (ours, theirs) = UnixStream::pair().map_err(|error| crate::output::reason(&error))?;
            Ok((None, Opening::full(None), (ours.into(), None), Some(theirs)))
        }
        Peer::Remote { mut child, opening } => {
            let (Some(stdout), Some(stdin)) = (child.stdout.take(), child.stdin.take()) else {
                return Err("the remote shell has no pipes".to_string());
            };
            widen(&stdout);
            widen(&stdin);
            Ok((Some(child), opening, (stdout.into(), Some(stdin.into())), None))
        }
    }
}

fn spawn_client(
    choice: Choice,
    opening: Opening,
    (read, write): (OwnedFd, Option<OwnedFd>),
    make: MakeClient,
    progress: SharedProgress,
    sender: SyncSender<News>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let run = || -> Result<(), String> {
            let mut worker = worker(choice, Some(&sender))?;
            let (local, stream) = attach(&mut worker, read, write)?;
            let reports = sender.clone();
            // When nobody listens any more the process is about to end.
            let reporter: Reporter = Box::new(move |report| _ = reports.send(News::Report(Box::new(report))));
            worker.add(Box::new(make(Surroundings { stream, local, opening, progress, reporter })));
            worker.run(signals::stopped).map_err(|broken| broken.to_string())?;
            if !worker.is_busy() {
                let _ = sender.send(News::Ended);
            }
            wind_up(worker);
            Ok(())
        };
        if let Err(why) = run() {
            let _ = sender.send(News::Broken(why));
        }
    })
}

/// The server half of a copy within this machine.
fn serve_here(choice: Choice, stream: UnixStream) {
    let run = || -> Result<(), String> {
        let mut worker = worker(choice, None)?;
        let (root, stream) = attach(&mut worker, stream.into(), None)?;
        // Its client tells how it went.
        worker.add(Box::new(Server::new(stream, root, Box::new(|_| {}))));
        worker.run(signals::stopped).map_err(|broken| broken.to_string())?;
        wind_up(worker);
        Ok(())
    };
    // A server that cannot start closes the stream, which its client reports.
    let _ = run();
}

fn worker(choice: Choice, news: Option<&SyncSender<News>>) -> Result<Worker<AnyBackend>, String> {
    let (backend, why) = backend::make(choice)?;
    if let Some(news) = news {
        let features = backend.features();
        let notes = why.into_iter().chain(features.notes.iter().cloned()).collect();
        let _ = news.send(News::Backend(features.backend, notes));
    }
    signals::wake_on_stop(backend.waker());
    Ok(Worker::new(backend, Pool::new(POOL_SMALL_BLOCKS, POOL_LARGE_BLOCKS)))
}

fn attach(worker: &mut Worker<AnyBackend>, read: OwnedFd, write: Option<OwnedFd>) -> Result<(DirId, StreamId), String> {
    let directory =
        working_directory().map_err(|error| format!("the working directory: {}", crate::output::reason(&error)))?;
    let root = worker.backend().add_root(Root::plain(directory));
    let stream = worker.backend().add_stream(read, write, true).map_err(|errno| errno.to_string())?;
    Ok((root, stream))
}

/// Gives a worker that was told to stop the time to discard what it had begun.
fn wind_up(mut worker: Worker<AnyBackend>) {
    worker.end_all();
    let until = Instant::now() + CLEAN_UP;
    while worker.is_busy() && Instant::now() < until {
        if worker.turn().is_err() {
            return;
        }
    }
}

/// Shows reports until the session has ended. True when the user stopped it.
fn show(
    news: &Receiver<News>,
    progress: &Progress,
    output: &mut Output,
    extra: &mut impl FnMut(Report, &mut Output) -> Option<Report>,
) -> bool {
    let mut ticked = Instant::now();
    let mut ended = false;
    loop {
        if signals::stopped() && !ended {
            return true;
        }
        match news.recv_timeout(TICK) {
            Ok(News::Report(report)) => {
                if let Some(report) = extra(*report, output) {
                    output.report(report);
                }
            }
            Ok(News::Backend(name, notes)) => output.backend(name, &notes),
            Ok(News::Ended) => ended = true,
            Ok(News::Broken(why)) => output.fatal(&Failure::connection("cannot go on", why), Exit::Stream),
            Err(RecvTimeoutError::Timeout) => {}
            // A signal may have ended the session before it was seen here.
            Err(RecvTimeoutError::Disconnected) => return !ended && signals::stopped(),
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            output.tick(progress);
        }
    }
}

/// Operands of a command that asks one machine only.
pub(crate) fn of_one_machine(paths: &[std::ffi::OsString]) -> Result<(Option<Host>, Vec<Operand>), String> {
    let parsed: Vec<Parsed> = paths.iter().map(|path| crate::operand::parse(path)).collect::<Result<_, _>>()?;
    let host = parsed.first().and_then(|parsed| parsed.host.clone());
    if parsed.iter().any(|parsed| parsed.host != host) {
        return Err("all paths must be on the same machine".to_string());
    }
    Ok((host, parsed.into_iter().map(|parsed| parsed.operand).collect()))
}

/// A usage error.
pub(crate) fn usage(why: &str) -> Exit {
    crate::output::error(why);
    eprintln!("hint: `haul --help` tells how paths are written");
    Exit::Usage
}

/// An output that shows nothing but errors, for commands whose result is what they print.
pub(crate) fn quiet(args: &OutputArgs) -> OutputArgs {
    OutputArgs { quiet: true, json: false, ..args.clone() }
}
