//! `haul serve`

use crate::args::{Choice, Ports, ServeArgs, Zoned, zoned};
use crate::backend::{self, AnyBackend};
use crate::exit::Exit;
use crate::gather::{self, Gathering, Met, Taken};
use crate::keygen;
use crate::output;
use crate::plaintext;
use crate::remote;
use crate::signals::{self, Hangup};
use crate::store;
use crate::visits;
use haul_engine::backend::DirId;
use haul_engine::block::Pool;
use haul_engine::limits::{
    DAEMON_SESSION_BLOCKS, DOOR_FRAME_BLOCKS, DOOR_SESSION_BLOCKS, MAX_SESSIONS, POOL_FRAME_BLOCKS, SECOND,
};
use haul_engine::offload::{self, Root};
use haul_engine::session::Session;
use haul_engine::session::acceptor::Acceptor;
use haul_engine::session::doorman::{Daemon, Doorman};
use haul_engine::session::rendezvous::Direct;
use haul_engine::session::server::Server;
use haul_engine::session::{CANNOT_GO_ON, Failure, Reason};
use haul_engine::tcp;
use haul_engine::worker::Worker;
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Runs until the client has gone, or, listening, until told to stop.
pub(crate) fn run(args: &ServeArgs, choice: Choice) -> Exit {
    let hangup = if args.listen.is_some() { Hangup::IsNothing } else { Hangup::Stops };
    match signals::install(hangup).map_err(|why| (why, Exit::Start)).and_then(|()| serve(args, choice)) {
        // Whoever listens goes on until he is told to stop: that is how it is done.
        Ok(exit) if signals::stopped() && exit == Exit::Success && args.listen.is_none() => Exit::Interrupted,
        Ok(exit) => exit,
        Err((why, exit)) => {
            output::error(&why);
            exit
        }
    }
}

fn serve(args: &ServeArgs, choice: Choice) -> Result<Exit, (String, Exit)> {
    let key = args.key_file.as_deref().map(keygen::read).transpose().map_err(|why| (why, Exit::Usage))?;
    let root = root(args, key.is_some()).map_err(|why| (why, Exit::FileIo))?;
    let listener = args.listen.as_deref().map(|address| listen(address, args)).transpose()?;
    // Before anything is made that a login which is served elsewhere does not need.
    let origin = match listener {
        Some(listener) => Origin::Listener(listener),
        None => own_streams()?,
    };
    let met = match (&origin, args.gather.as_deref().filter(|_| is_everything(args))) {
        (Origin::Streams(stdin, stdout), Some(name)) => gather::meet(name, stdin, stdout),
        _ => Met::Nobody,
    };
    let gathering = match met {
        Met::Elsewhere(exit) => return Ok(exit),
        Met::Here(gathering) => Some(gathering),
        Met::Nobody => None,
    };
    let (mut backend, _) = backend::make(choice).map_err(|why| (why, Exit::Usage))?;
    let read_only = args.read_only;
    let store = if read_only { None } else { store::from_environment(&root) }.map(|store| backend.add_store(store));
    let root = backend.add_root(root);
    let pool = match (&origin, &key) {
        (Origin::Streams(..), _) if gathering.is_none() => Pool::of_meetings(),
        (Origin::Streams(..), _) => Pool::of_sessions(DAEMON_SESSION_BLOCKS, POOL_FRAME_BLOCKS, None),
        (_, None) => Pool::of_sessions(DAEMON_SESSION_BLOCKS, POOL_FRAME_BLOCKS, Some(2)),
        (_, Some(_)) => Pool::of_sessions(DOOR_SESSION_BLOCKS, DOOR_FRAME_BLOCKS, Some(1)),
    };
    let ended = Rc::new(RefCell::new(Exit::Success));
    let failed = |errno: haul_engine::backend::Errno| (errno.to_string(), Exit::Socket);
    let listens = matches!(origin, Origin::Listener(_));
    let mut worker = match origin {
        Origin::Listener(listener) => {
            let listener = backend.add_listener(listener).map_err(failed)?;
            let mut worker = Worker::new(backend, pool);
            let on_visit = visits::log();
            let (patience, entropy) = (remote::patience(None), remote::random);
            let session: Box<dyn Session> = match key {
                None => {
                    let acceptor = Acceptor::new(listener, root, store, on_visit).with_patience(patience);
                    Box::new(acceptor.with_read_only(read_only))
                }
                Some(key) => {
                    let plain = args.allow_plaintext && !plaintext::is_forbidden();
                    let daemon = Daemon { root, store, read_only, plain, patience, key, entropy, on_visit };
                    Box::new(Doorman::new(listener, daemon))
                }
            };
            worker.add(session);
            worker
        }
        Origin::Streams(stdin, stdout) => {
            let stream = backend.add_stream(stdin, Some(stdout), false).map_err(failed)?;
            close_stdio();
            let mut worker = Worker::new(backend, pool);
            let ended = ended.clone();
            let on_end = Box::new(move |result| *ended.borrow_mut() = said(result));
            let server = Server::new(stream, root, on_end).with_store(store).with_direct(Some(direct(args)));
            let server = server.with_patience(remote::patience(None)).with_read_only(read_only);
            match gathering {
                None => _ = worker.add(Box::new(server)),
                Some(mut gathering) => {
                    let process = remote::random();
                    worker.add(Box::new(server.with_process(process).with_large_blocks(DAEMON_SESSION_BLOCKS)));
                    gathering.open(&worker.waker());
                    serve_gathered(&mut worker, &gathering, (root, store, process))?;
                }
            }
            worker
        }
    };
    signals::wake_on_stop(&worker.waker());
    worker.run(signals::stopped).map_err(|broken| (broken.to_string(), Exit::Stream))?;
    worker.end_all();
    while worker.is_busy() {
        worker.turn().map_err(|broken| (broken.to_string(), Exit::Stream))?;
    }
    // A listener ends by itself only when it broke, which it has said.
    let broken = listens && !signals::stopped();
    let exit = if broken { Exit::Stream } else { *ended.borrow() };
    Ok(exit)
}

/// Where clients come from.
enum Origin {
    Listener(TcpListener),
    /// The client of this process, by its stdin and stdout.
    Streams(OwnedFd, OwnedFd),
}

/// What sshd has given this process, where the client knows by now who answers.
fn own_streams() -> Result<Origin, (String, Exit)> {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|e| (output::reason(&e), Exit::Socket));
    let (stdin, stdout) = (own(std::io::stdin().as_fd())?, own(std::io::stdout().as_fd())?);
    crate::run::widen(&stdin);
    crate::run::widen(&stdout);
    say_who_answers();
    Ok(Origin::Streams(stdin, stdout))
}

/// Without bounds: whoever gathers here has none either.
fn is_everything(args: &ServeArgs) -> bool {
    args.root.as_deref() == Some(Path::new("/"))
}

/// Runs until the sessions of all logins that gather here have ended.
fn serve_gathered(
    worker: &mut Worker<AnyBackend>,
    gathering: &Gathering,
    (root, store, process): (DirId, Option<DirId>, [u8; 32]),
) -> Result<(), (String, Exit)> {
    signals::wake_on_stop(&worker.waker());
    let open = Rc::new(Cell::new(1));
    while worker.is_busy() && !signals::stopped() {
        worker.turn().map_err(|broken| (broken.to_string(), Exit::Stream))?;
        while let Some(Taken { stdin, stdout, tell }) = gathering.take(open.get() < MAX_SESSIONS) {
            let Ok(stream) = worker.backend().add_stream(stdin, Some(stdout), false) else { continue };
            open.set(open.get() + 1);
            let open = open.clone();
            let on_end = Box::new(move |result| {
                open.set(open.get() - 1);
                tell(said(result));
            });
            let server = Server::new(stream, root, on_end).with_store(store).with_process(process);
            let server = server.with_patience(remote::patience(None)).with_large_blocks(DAEMON_SESSION_BLOCKS);
            worker.add(Box::new(server));
        }
    }
    Ok(())
}

/// Says on stderr how a session ended, if badly.
fn said(result: Result<(), Failure>) -> Exit {
    match result {
        Ok(()) => Exit::Success,
        Err(failure) => {
            // What is said here comes out on the client's terminal, and a client that is gone knows that it is.
            if failure.what == CANNOT_GO_ON {
                output::error(&format!("the server {}", failure.reason()));
            } else if failure.kind != Reason::Lost {
                output::error(&failure.reason());
            }
            // As base servers: 1 for anything that is not the protocol.
            Exit::Usage
        }
    }
}

/// What is served. Relative paths begin in the login directory under `/`, else in the root. To a daemon's clients, which
/// log in nowhere, `/` is a root as any other.
fn root(args: &ServeArgs, is_daemon: bool) -> Result<Root, String> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let dir = match &args.root {
        Some(dir) => dir.clone(),
        None => home.ok_or("HOME is not set; name the directory to serve with --root")?,
    };
    let failed = |error: std::io::Error| format!("{}: cannot serve: {}", dir.display(), output::reason(&error));
    let bounds = |root: Root| if args.read_only { root.read_only() } else { root };
    let bounds = |root: Root| if args.listen.is_some() { bounds(root).among_strangers() } else { bounds(root) };
    if dir == Path::new("/") && !is_daemon {
        let here = Root::working_directory();
        return here.map(bounds).map_err(|errno| format!("{}: cannot serve: {errno}", dir.display()));
    }
    // Not made if it is missing: whoever mistypes it, or has not mounted it yet, would serve an empty directory.
    let canonical = dir.canonicalize().map_err(failed)?;
    let handle: OwnedFd = std::fs::File::open(&canonical).map_err(failed)?.into();
    let root = bounds(Root::confined(handle, canonical));
    Ok(if args.across_mounts { root } else { root.within_its_mount() })
}

/// Where the client of this session may connect directly: the address at which its ssh reached this machine.
fn direct(args: &ServeArgs) -> Direct {
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let fields: Vec<&str> = connection.split(' ').collect();
    let ip = match fields[..] {
        [_, _, ip, _] => zoned(ip).ok(),
        _ => None,
    };
    // As the environment of base servers has it, in seconds.
    let seconds = std::env::var("BCMR_RENDEZVOUS_TIMEOUT_SECS").ok().and_then(|seconds| seconds.parse::<u64>().ok());
    let Zoned(ip, zone) = args.bind.or(ip).unwrap_or(Zoned(Ipv4Addr::LOCALHOST.into(), 0));
    let mut direct = Direct::new(ip, remote::random).with_plain(args.allow_plaintext && !plaintext::is_forbidden());
    direct.zone = zone;
    direct.ports = args.port_range.map(|Ports { first, last }| (first, last));
    if let Some(seconds) = seconds.filter(|&seconds| seconds > 0) {
        direct.patience = seconds.saturating_mul(SECOND);
    }
    direct
}

/// What is meant by `text`: an address or a name, and a port; an IPv6 address in brackets, perhaps with a zone.
fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    const FORM: &str = "an address and a port are needed, as 127.0.0.1:7420, [fe80::1%eth0]:7420 or localhost:7420";
    let (name, port) = text.rsplit_once(':').ok_or_else(|| format!("{text}: {FORM}"))?;
    let port: u16 = port.parse().map_err(|_| format!("{text}: {FORM}"))?;
    let name = match name.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(address)) => address,
        None if !name.is_empty() && !name.contains(':') => name,
        _ => return Err(format!("{text}: {FORM}")),
    };
    let found = (name, port).to_socket_addrs().map_err(|error| format!("{text}: cannot listen: {error}"))?;
    Ok(found.collect())
}

/// Without a key only this machine may connect, and only where that is wanted in so many words.
fn listen(text: &str, args: &ServeArgs) -> Result<TcpListener, (String, Exit)> {
    let usage = |why: String| (why, Exit::Usage);
    let addresses = addresses(text).map_err(usage)?;
    if args.key_file.is_none() {
        if !addresses.iter().all(|address| address.ip().is_loopback()) {
            let why =
                "only loopback addresses can be listened on without --key-file, because nobody is asked who he is";
            return Err(usage(format!("{text}: {why}")));
        }
        if !args.allow_every_local_user {
            let why = "--key-file is needed, or --allow-every-local-user: without a key every user of this machine may do \
                below the root what you may";
            return Err(usage(format!("{text}: {why}")));
        }
    }
    // The first one of a name's addresses that can be had.
    let mut bound = Err(format!("{text}: cannot listen: the name has no address"));
    for address in addresses {
        bound = tcp::listen(address).map_err(|errno| format!("{address}: cannot listen: {errno}"));
        if bound.is_ok() {
            break;
        }
    }
    let (listener, bound) = bound.map_err(|why| (why, Exit::Socket))?;
    let guarded = rustix::process::geteuid().is_root() && !args.trust_metadata;
    if guarded {
        offload::guard_metadata();
    }
    say_what_is_served(bound, args, guarded);
    match output::print_line(format!("LISTENING {bound}").as_bytes()) {
        Ok(()) => Ok(listener),
        Err(error) => Err((format!("stdout: cannot write: {}", output::reason(&error)), Exit::FileIo)),
    }
}

/// One line for whoever has started this: who may do what here.
fn say_what_is_served(bound: SocketAddr, args: &ServeArgs, guarded: bool) {
    let root = args.root.as_deref().unwrap_or(Path::new("/")).display();
    let who = match &args.key_file {
        Some(file) => format!("whoever has the key in {}", file.display()),
        None => "every user of this machine".to_string(),
    };
    let what = if args.read_only { "read" } else { "read, write and replace" };
    let uid = rustix::process::geteuid();
    let user = if uid.is_root() { "root".to_string() } else { format!("the user {}", uid.as_raw()) };
    let metadata = match (guarded && !args.read_only, args.trust_metadata && uid.is_root()) {
        (true, _) => "; owners, set-ID bits and the mode of the root itself are not changed (--trust-metadata)",
        (_, true) => "; owners and set-ID bits are set as clients say",
        _ => "",
    };
    let mounts = if args.across_mounts { ", what is mounted there included" } else { "" };
    output::error(&format!("serving at {bound}: {who} may {what} what {user} may below {root}{mounts}{metadata}"));
}

/// Where sshd runs this program in place of the command that a haul asked for, that command's start line comes from here.
fn say_who_answers() {
    let command = std::env::var_os("SSH_ORIGINAL_COMMAND").unwrap_or_default();
    if let Some(line) = remote::start_line_for(command.as_bytes()) {
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "{line}");
        let _ = stdout.flush();
    }
}

/// The stream owns stdin and stdout now: nothing else may read or write there, and its end must be seen by the peer.
fn close_stdio() {
    if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}
