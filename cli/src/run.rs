//! Runs a client session on a worker thread while this thread shows what happens.
//!
//! ```text
//! dial -> session -Report::Redial-> dial once more with the other version -> session -> exit code
//!                 -Report::Absent-> nobody there: the caller's business
//! ```

use crate::args::{Choice, Connections, OutputArgs, RemoteArgs};
use crate::backend::{self, AnyBackend};
use crate::daemon::Daemon;
use crate::direct::{self, Direct};
use crate::exit::{self, Exit};
use crate::links;
use crate::operand::{Machine, Parsed};
use crate::output::Output;
use crate::remote::Dial;
use crate::signals::{self, Hangup};
use crate::threads;
use crate::tuner::Decision;
use haul_engine::backend::{Backend as _, DirId, StreamId};
use haul_engine::block::Pool;
#[cfg(target_os = "linux")]
use haul_engine::limits::PIPE_BYTES;
use haul_engine::offload::Root;
use haul_engine::queue::Queue;
use haul_engine::session::client::{Client, Invitation, NOWHERE, Opening};
use haul_engine::session::plan::{Operand, Options};
use haul_engine::session::report::{Direction, Progress, Report, Reporter, SharedProgress};
use haul_engine::session::server::Server;
use haul_engine::session::{CANNOT_GO_ON, Cause, Failure, Reason};
use haul_engine::wire::frame::Caps;
use haul_engine::worker::Worker;
use rustix::process::{Pid, Signal};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ExitStatus};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the progress line moves.
const TICK: Duration = Duration::from_millis(100);
/// Files that are done are told together: a wake of the thread that shows them costs as much as a small file (2026-11-26).
const TOGETHER: Duration = Duration::from_millis(2);
/// How long the remote shell has to end once its streams are closed.
const SHELL_END: Duration = Duration::from_secs(3);
/// How long it has once it was told to: it may have to give the terminal its echo back.
const SHELL_TERMINATION: Duration = Duration::from_millis(300);
/// How much later than its consequences a signal may be seen on a busy machine.
const SIGNAL_LAG: Duration = Duration::from_millis(100);
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
    /// The files of the run, which all its connections share.
    pub(crate) queue: Queue,
}

/// Makes the client once its surroundings are there; again for a second connection.
pub(crate) type MakeClient = Arc<dyn Fn(Surroundings) -> Client + Send + Sync>;

/// What is to be done at the other end.
pub(crate) struct Work {
    /// Makes the client of the first connection.
    pub(crate) make: MakeClient,
    /// Capabilities asked for.
    pub(crate) caps: Caps,
    /// Which way the files go, and how they are copied.
    pub(crate) files: (Direction, Options),
    /// Connections that carry content.
    pub(crate) links: Connections,
    /// It moves files, which direct connections can carry while this one stays what it is.
    pub(crate) moves: bool,
}

impl Work {
    /// A question that moves no file.
    pub(crate) fn question(make: MakeClient) -> Work {
        Work {
            make,
            caps: Caps::NONE,
            files: (Direction::Down, Options::default()),
            links: Connections::Exactly(1),
            moves: false,
        }
    }
}

/// The other end.
pub(crate) enum Peer {
    /// Whoever answers through ssh.
    Remote(Box<Dial>),
    /// A daemon, without ssh.
    Daemon(Box<Daemon>),
    /// A server in this process.
    Here,
}

/// The other end for a command with these operands on it. From here on a signal finds somebody who listens.
pub(crate) fn peer<'a>(
    host: Option<&Machine>,
    args: &RemoteArgs,
    operands: impl IntoIterator<Item = &'a Operand>,
) -> Result<Peer, String> {
    signals::install(Hangup::Stops)?;
    Ok(match host {
        None => Peer::Here,
        Some(Machine::Ssh(_)) if args.key_file.is_some() => {
            return Err("--key-file is for haul:// operands; ssh has keys of its own".to_string());
        }
        Some(Machine::Ssh(host)) => Peer::Remote(Box::new(Dial::new(host, args, operands))),
        Some(Machine::Daemon(address)) => Peer::Daemon(Box::new(Daemon::new(address, args)?)),
    })
}

/// How a client ended.
pub(crate) enum Ended {
    /// The process ends with this code; everything has been said.
    Exit(Exit),
    /// There is nobody at the other end who could answer, for this reason. Nothing has been said.
    Absent(Failure),
}

impl Ended {
    /// For commands that cannot do without somebody at the other end.
    pub(crate) fn or_absent(self, output: &mut Output) -> Exit {
        match self {
            Ended::Exit(exit) => exit,
            Ended::Absent(failure) => absent(output, failure, ""),
        }
    }
}

/// Says that nobody is there, and the end.
pub(crate) fn absent(output: &mut Output, failure: Failure, more: &str) -> Exit {
    let why = format!("{}{more}", failure.why());
    output.fatal(&Failure { cause: Cause::Connection(why), ..failure }, Exit::Start);
    output.finish()
}

pub(crate) enum News {
    Backend(&'static str, Vec<String>),
    Report(Box<Report>),
    /// There are so many connections from here on.
    Tuned(Box<(Instant, Decision)>),
    Broken(String),
    /// The session has come to its own end.
    Ended,
}

/// Runs one client to its end. `extra` sees every report first and may take it.
pub(crate) fn client(
    choice: Choice,
    peer: &Peer,
    work: &Work,
    output: &mut Output,
    mut extra: impl FnMut(Report, &mut Output) -> Option<Report>,
) -> Ended {
    let (mut redialled, mut address) = (None, 0);
    loop {
        match attempt(choice, peer, (redialled, address), work, output, &mut extra) {
            Attempt::Ended(ended) => return ended,
            Attempt::Redial(version) => redialled = Some(version),
            Attempt::Elsewhere => address += 1,
        }
    }
}

enum Attempt {
    Ended(Ended),
    /// The other end may answer on a new connection, to this version.
    Redial(u8),
    /// A daemon may answer at the next of its addresses.
    Elsewhere,
}

/// Runs one client on one connection.
fn attempt(
    choice: Choice,
    peer: &Peer,
    (redialled, address): (Option<u8>, usize),
    work: &Work,
    output: &mut Output,
    extra: &mut impl FnMut(Report, &mut Output) -> Option<Report>,
) -> Attempt {
    let (mut child, opening, stream, server) = match open(peer, redialled) {
        Ok(opened) => opened,
        Err(failure) => {
            output.fatal(&failure, Exit::Start);
            return Attempt::Ended(Ended::Exit(output.finish()));
        }
    };
    let progress = Arc::new(Progress::default());
    let queue = Queue::new(work.files.0, work.files.1);
    let (sender, news) = sync_channel(1024);
    // Within this machine there is no wire to spare.
    let caps = if matches!(peer, Peer::Here) { work.caps.without(Caps::LZ4.or(Caps::ZSTD)) } else { work.caps };
    let mut opening = opening.with_caps(caps);
    let mut invitation = Invitation::default();
    if let Peer::Daemon(daemon) = peer {
        match daemon.invite(address, &mut opening) {
            Ok(to_daemon) => invitation = to_daemon,
            Err(_) if signals::stopped() => {
                output.interrupted(&progress);
                return Attempt::Ended(Ended::Exit(Exit::Interrupted));
            }
            Err(failure) => {
                output.fatal(&failure, exit::of_fatal(&failure));
                return Attempt::Ended(Ended::Exit(output.finish()));
            }
        }
    }
    let wish = opening.direct.as_mut().filter(|_| work.moves);
    let required = wish.map(|wish| {
        wish.invitation = Some(invitation.clone());
        wish.required
    });
    if matches!(peer, Peer::Daemon(_)) {
        queue.meet_one_server();
    }
    if matches!((peer, work.links), (Peer::Daemon(_), Connections::Auto)) && work.moves {
        // Others may come: large files go in ranges from the first on.
        queue.expect(Some(2));
    }
    if work.moves && !matches!(peer, Peer::Here) {
        output.begin_with(work.links.over_ssh());
    }
    let is_tuned =
        work.links == Connections::Auto && work.moves && (required.is_some() || matches!(peer, Peer::Daemon(_)));
    let share = if is_tuned { direct::share_of(1).0 } else { Share::equal(queue.connections()) };
    let lead = Link { choice, progress: progress.clone(), queue: queue.clone(), share, sender: sender.clone() };
    let over = queue.clone();
    let mut threads: Vec<_> = lead.spawn(Start::On(stream, Box::new(opening), work.make.clone())).into_iter().collect();
    threads.extend(server.and_then(|stream| serve_here(choice, stream, &sender)));
    match peer {
        Peer::Remote(dial) if work.links.over_ssh() > 1 || required.is_some() => {
            let (dial, caps, progress) = (dial.clone(), work.caps, progress.clone());
            let more =
                links::More { dial, caps, choice, progress, queue, invitation, required: required == Some(true) };
            threads.extend(more.spawn(work.links, sender.clone()));
        }
        Peer::Daemon(daemon) if work.moves && work.links != Connections::Exactly(1) => {
            let (progress, patience) = (progress.clone(), daemon.patience);
            let further = Direct { choice, progress, queue, invitation, required: true, patience };
            threads.extend(crate::daemon::spawn(further, work.links, sender.clone()));
        }
        _ => {}
    }
    // Those who may still say something have one of their own: when they have gone, everything is said.
    drop(sender);
    let (mut last, mut broken) = (None, None);
    let shown = show(&news, &progress, output, &mut |told, output| match told {
        // Told once it is known how ssh ended, which may be the reason.
        Told::Report(
            report @ (Report::Fatal(_) | Report::Absent(_) | Report::Redial { .. } | Report::NotDirect(_)),
        ) => {
            last = Some(report);
            None
        }
        Told::Report(report) => extra(report, output),
        Told::Broken(why) => {
            // Whoever else waits for files would wait for ever.
            over.end();
            broken.get_or_insert(why);
            None
        }
    });
    if shown == Shown::Stopped {
        output.interrupted(&progress);
        let until = Instant::now() + CLEAN_UP;
        while Instant::now() < until && !threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(child) = &mut child {
            end_shell(child, Duration::ZERO);
        }
        std::process::exit(Exit::Interrupted as i32);
    }
    for thread in threads {
        if thread.join().is_err() {
            broken.get_or_insert_with(|| "a thread ended by an internal error; please report it".to_string());
        }
    }
    if shown == Shown::Silence && last.is_none() {
        broken.get_or_insert_with(|| "the session ended without a word; please report it".to_string());
    }
    output.count(&progress);
    // Who has not answered for so long does not end by itself either.
    let late = matches!(&last, Some(Report::Fatal(failure)) if failure.kind == Reason::StartFiles
        || matches!(exit::of_fatal(failure), Exit::ConnectTimeout | Exit::Timeout));
    let shell = child.and_then(|mut child| end_shell(&mut child, if late { Duration::ZERO } else { SHELL_END }));
    let connected = progress.connected.load(std::sync::atomic::Ordering::Relaxed) > 0;
    match last {
        // What broke at this end is why the other one has nothing good to say.
        last if broken.is_some() && !signals::stopped() => {
            let failure = Failure::connection(CANNOT_GO_ON, broken.unwrap_or_default());
            match connected && work.moves && last.is_none_or(|last| matches!(last, Report::Fatal(_))) {
                true => output.broken_off(&failure, Exit::Stream, &progress),
                false => output.fatal(&failure, Exit::Stream),
            }
        }
        // Before anybody has answered, only a shell that a signal has ended can be a sign of that.
        Some(_) if stopped_after_all(connected || shell.is_none()) => {
            output.interrupted(&progress);
            return Attempt::Ended(Ended::Exit(Exit::Interrupted));
        }
        // ssh has said on stderr what is wrong.
        Some(_) if shell == Some(255) && !connected => {
            output.fatal(&Failure::connection("ssh failed", "").because(Reason::Ssh), Exit::Ssh);
        }
        Some(Report::Redial { version }) => return Attempt::Redial(version),
        Some(Report::Absent(why)) => return Attempt::Ended(Ended::Absent(why)),
        Some(Report::NotDirect(_)) if matches!(peer, Peer::Daemon(daemon) if daemon.has_more(address)) => {
            return Attempt::Elsewhere;
        }
        Some(Report::Fatal(failure) | Report::NotDirect(failure)) => match exit::of_fatal(&failure) {
            exit @ (Exit::Stream | Exit::Timeout) if connected && work.moves => {
                output.broken_off(&failure, exit, &progress);
            }
            exit => output.fatal(&failure, exit),
        },
        _ => {}
    }
    Attempt::Ended(Ended::Exit(output.finish()))
}

/// A terminal's Ctrl-C reaches ssh too, and the end of ssh may be seen before the signal is.
pub(crate) fn stopped_after_all(may_be: bool) -> bool {
    let until = Instant::now() + if may_be { SIGNAL_LAG } else { Duration::ZERO };
    while !signals::stopped() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    signals::stopped()
}

/// Asks for a large pipe: each hand-over between two processes then moves more. What is not a pipe, or too much for the
/// user's budget, stays as it is.
pub(crate) fn widen(end: &impl AsFd) {
    #[cfg(target_os = "linux")]
    let _ = rustix::pipe::fcntl_setpipe_size(end, PIPE_BYTES);
    #[cfg(not(target_os = "linux"))]
    let _ = end;
}

/// Waits for the remote shell to end by itself, which it does when its streams are closed; not for longer than `patience`.
pub(crate) fn end_shell(child: &mut Child, patience: Duration) -> Option<i32> {
    if let Some(status) = ended_within(child, patience) {
        return status.code();
    }
    let _ = rustix::process::kill_process(Pid::from_child(child), Signal::TERM);
    if ended_within(child, SHELL_TERMINATION).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    None
}

fn ended_within(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}

/// What a stream is read from, and where it is written to if that is not the same.
type Ends = (OwnedFd, Option<OwnedFd>);

type Opened = (Option<Child>, Opening, Option<Ends>, Option<UnixStream>);

fn open(peer: &Peer, redialled: Option<u8>) -> Result<Opened, Failure> {
    match peer {
        Peer::Here => {
            let failed = |error: io::Error| Failure::connection("cannot start", crate::output::reason(&error));
            let (ours, theirs) = UnixStream::pair().map_err(failed)?;
            Ok((None, Opening::full(None), Some((ours.into(), None)), Some(theirs)))
        }
        // Its client opens the connection.
        Peer::Daemon(daemon) => Ok((None, daemon.opening(), None, None)),
        Peer::Remote(dial) => {
            let (mut child, opening) = dial.start(redialled)?;
            let (Some(stdout), Some(stdin)) = (child.stdout.take(), child.stdin.take()) else {
                return Err(Failure::connection("cannot start", "the remote shell has no pipes"));
            };
            widen(&stdout);
            widen(&stdin);
            Ok((Some(child), opening, Some((stdout.into(), Some(stdin.into()))), None))
        }
    }
}

/// Which share of the memory of a run a connection has.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    /// That of one of so many.
    pub(crate) of: usize,
    /// So many of which may compress.
    pub(crate) packing: usize,
}

impl Share {
    /// Of a connection that is like all others.
    pub(crate) fn equal(connections: usize) -> Share {
        Share { of: connections, packing: connections }
    }
}

/// One connection of a run, before it has a thread.
pub(crate) struct Link {
    pub(crate) choice: Choice,
    pub(crate) progress: SharedProgress,
    pub(crate) queue: Queue,
    pub(crate) share: Share,
    pub(crate) sender: SyncSender<News>,
}

/// Makes a client that opens its own connection, on the thread of that.
pub(crate) type MakeInvited = Box<dyn FnOnce((Queue, DirId), SharedProgress, Reporter) -> Client + Send>;

/// How its client begins.
pub(crate) enum Start {
    /// On this stream, or on one that it opens itself, as the opening says.
    On(Option<Ends>, Box<Opening>, MakeClient),
    /// On a connection that it opens itself.
    Alone(MakeInvited),
}

impl Link {
    pub(crate) fn spawn(self, start: Start) -> Option<JoinHandle<()>> {
        let (sender, broken) = (self.sender.clone(), self.sender.clone());
        let work = move || match self.run(start) {
            // Whoever was told to stop has not come to its end.
            Ok(true) => _ = sender.send(News::Ended),
            Ok(false) => {}
            Err(why) => _ = sender.send(News::Broken(why)),
        };
        threads::spawn("link", work, move |why| _ = broken.send(News::Broken(why)))
    }

    /// Runs the client on this thread. True when it came to its own end.
    fn run(self, start: Start) -> Result<bool, String> {
        let Link { choice, progress, queue, share, sender } = self;
        let mut worker = worker(choice, Pool::one_of(share.of, share.packing), Some(&sender))?;
        let local = local(&mut worker)?;
        // When nobody listens any more the process is about to end.
        let reporter: Reporter = Box::new(move |report| _ = sender.send(News::Report(Box::new(report))));
        let client = match start {
            Start::On(stream, opening, make) => {
                let stream = stream.map(|stream| attach(&mut worker, stream)).transpose()?.unwrap_or(NOWHERE);
                make(Surroundings { stream, local, opening: *opening, progress, reporter, queue })
            }
            Start::Alone(make) => make((queue, local), progress, reporter),
        };
        worker.add(Box::new(client));
        worker.run(signals::stopped).map_err(|broken| broken.to_string())?;
        let ended = !worker.is_busy();
        wind_up(worker);
        Ok(ended)
    }
}

/// The server half of a copy within this machine. What breaks it is told, because its client only sees that it is gone.
fn serve_here(choice: Choice, stream: UnixStream, news: &SyncSender<News>) -> Option<JoinHandle<()>> {
    let (news, failed) = (news.clone(), news.clone());
    let run = move || -> Result<(), String> {
        let mut worker = worker(choice, Pool::one_of(1, 1), None)?;
        let root = local(&mut worker)?;
        let stream = attach(&mut worker, (stream.into(), None))?;
        let ended = Rc::new(RefCell::new(Ok(())));
        let same = ended.clone();
        worker.add(Box::new(Server::new(stream, root, Box::new(move |result| *same.borrow_mut() = result))));
        worker.run(signals::stopped).map_err(|broken| broken.to_string())?;
        wind_up(worker);
        // Its client tells how it went, but for what is wrong with this half.
        match &*ended.borrow() {
            Err(Failure { what: CANNOT_GO_ON, cause: Cause::Here(errno), .. }) => Err(errno.to_string()),
            Err(Failure { what: CANNOT_GO_ON, cause: Cause::Connection(why), .. }) => Err(why.clone()),
            _ => Ok(()),
        }
    };
    let work = move || run().map_or_else(|why| _ = news.send(News::Broken(why)), |()| {});
    threads::spawn("server", work, move |why| _ = failed.send(News::Broken(why)))
}

fn worker(choice: Choice, pool: Pool, news: Option<&SyncSender<News>>) -> Result<Worker<AnyBackend>, String> {
    let (backend, why) = backend::make(choice)?;
    if let Some(news) = news {
        let features = backend.features();
        let notes = why.into_iter().chain(features.notes.iter().cloned()).collect();
        let _ = news.send(News::Backend(features.backend, notes));
    }
    let worker = Worker::new(backend, pool);
    signals::wake_on_stop(&worker.waker());
    Ok(worker)
}

/// The working directory, as the root of local operands.
fn local(worker: &mut Worker<AnyBackend>) -> Result<DirId, String> {
    let root = Root::working_directory().map_err(|errno| format!("the working directory: {errno}"))?;
    Ok(worker.backend().add_root(root))
}

fn attach(worker: &mut Worker<AnyBackend>, (read, write): Ends) -> Result<StreamId, String> {
    worker.backend().add_stream(read, write, true).map_err(|errno| errno.to_string())
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

/// What `show` leaves to others.
enum Told {
    Report(Report),
    /// The run cannot go on.
    Broken(String),
}

/// How it ended that something was shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shown {
    /// The session has come to its end.
    End,
    /// The user stopped it.
    Stopped,
    /// Nobody who could say anything is left, and nobody has said that it was the end.
    Silence,
}

/// Shows reports until the session has ended.
fn show(
    news: &Receiver<News>,
    progress: &Progress,
    output: &mut Output,
    extra: &mut impl FnMut(Told, &mut Output) -> Option<Report>,
) -> Shown {
    let mut ticked = Instant::now();
    let mut ended = false;
    let mut unhurried = false;
    loop {
        if signals::stopped() && !ended {
            return Shown::Stopped;
        }
        let told = match news.try_recv() {
            Ok(told) => Ok(told),
            Err(_) => {
                if std::mem::take(&mut unhurried) {
                    std::thread::sleep(TOGETHER);
                }
                news.recv_timeout(TICK)
            }
        };
        match told {
            Ok(News::Report(report)) => {
                unhurried |= matches!(*report, Report::Copied { .. } | Report::Unchanged { .. });
                if let Some(report) = extra(Told::Report(*report), output) {
                    output.report(report);
                }
            }
            Ok(News::Backend(name, notes)) => output.backend(name, &notes),
            Ok(News::Tuned(tuned)) => output.tuned(tuned.0, tuned.1),
            Ok(News::Ended) => ended = true,
            Ok(News::Broken(why)) => _ = extra(Told::Broken(why), output),
            Err(RecvTimeoutError::Timeout) => {}
            // A signal may have ended the session before it was seen here.
            Err(RecvTimeoutError::Disconnected) if ended => return Shown::End,
            Err(RecvTimeoutError::Disconnected) if signals::stopped() => return Shown::Stopped,
            Err(RecvTimeoutError::Disconnected) => return Shown::Silence,
        }
        if ticked.elapsed() >= TICK {
            ticked = Instant::now();
            output.tick(progress);
        }
    }
}

/// Operands of a command that asks one machine only.
pub(crate) fn of_one_machine(paths: &[std::ffi::OsString]) -> Result<(Option<Machine>, Vec<Operand>), String> {
    let parsed: Vec<Parsed> = paths.iter().map(|path| crate::operand::parse(path)).collect::<Result<_, _>>()?;
    let host = parsed.first().and_then(|parsed| parsed.host.clone());
    if parsed.iter().any(|parsed| parsed.host != host) {
        return Err("all paths must be on the same machine".to_string());
    }
    Ok((host, parsed.into_iter().map(|parsed| parsed.operand).collect()))
}

/// A usage error that is not about paths.
pub(crate) fn refused(why: &str) -> Exit {
    crate::output::error(why);
    Exit::Usage
}

/// A usage error.
pub(crate) fn usage(why: &str) -> Exit {
    crate::output::error(why);
    crate::output::stderr("hint: `haul --help` tells how paths are written");
    Exit::Usage
}

/// An output that shows nothing but errors and warnings, for commands whose result is what they print.
pub(crate) fn quiet(args: &OutputArgs) -> OutputArgs {
    OutputArgs { quiet: true, json: false, warns: !args.quiet, ..args.clone() }
}
