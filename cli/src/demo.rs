//! `haul demo`: a big file and many small ones, both ways, on every backend, verified, timed.
//!
//! The server is a process of its own, this program started again as `serve --listen`; the client runs here. Between them
//! is a TCP connection over loopback. What is printed is what was measured; nothing is left behind.

use crate::args::{Choice, DemoArgs};
use crate::backend;
use crate::exit::Exit;
use crate::output;
use crate::signals::{self, Hangup};
use haul_engine::backend::Backend as _;
use haul_engine::block::Pool;
use haul_engine::limits::{POOL_LARGE_BLOCKS, POOL_SMALL_BLOCKS};
use haul_engine::offload::Root;
use haul_engine::queue::Queue;
use haul_engine::session::client::Opening;
use haul_engine::session::plan::{Operand, Options};
use haul_engine::session::report::{Direction, Progress, Report, Reporter};
use haul_engine::session::{download, upload};
use haul_engine::wire::frame::Hash;
use haul_engine::wire::path::RequestPath;
use haul_engine::worker::Worker;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Error = String;

pub(crate) fn run(args: &DemoArgs, choice: Choice) -> Exit {
    match signals::install(Hangup::Stops).and_then(|()| demo(args, choice)) {
        Ok(()) => Exit::Success,
        // What was made is gone by now, and so is the server.
        Err(_) if signals::stopped() => {
            output::error("demo: interrupted; nothing is left behind");
            Exit::Interrupted
        }
        Err(why) => {
            output::error(&format!("demo: {why}"));
            Exit::Partial
        }
    }
}

/// Hashes by path below the directory they are in.
type Hashes = HashMap<Vec<u8>, Hash>;

fn demo(args: &DemoArgs, choice: Choice) -> Result<(), Error> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("haul-demo-");
    let dir = match &args.dir {
        Some(dir) => builder.tempdir_in(dir),
        None => builder.tempdir(),
    };
    let dir = dir.map_err(|error| format!("no temporary directory: {error}"))?;
    let path = dir.path().canonicalize().map_err(|error| format!("no temporary directory: {error}"))?;
    let files = format!("{} files of {}", args.files, output::size(args.file_size << 10));
    println_out(&format!("making a file of {} and {files} in {}", output::size(args.size << 20), path.display()))?;
    let expected = make_sources(&path, args).map_err(|error| format!("cannot make the files: {error}"))?;
    warm_up(&path).map_err(|error| format!("cannot make the files: {error}"))?;
    println_out(&format!(
        "\n{:<10} {:<34} {:>9} {:>9} {:>10} {:>9}",
        "backend", "what", "seconds", "MB/s", "Gbit/s", "files/s"
    ))?;
    let choices = match choice {
        Choice::Auto => vec![Choice::Uring, Choice::Poll],
        one => vec![one],
    };
    let mut ran = 0;
    for choice in choices {
        match one_backend(&path, args, choice, &expected) {
            Ok(()) => ran += 1,
            Err(Trouble::NoBackend(why)) => println_out(&format!("{choice:?}: not measured: {why}"))?,
            Err(Trouble::Failed(why)) => return Err(why),
        }
    }
    if ran == 0 {
        return Err("no backend works here".to_string());
    }
    println_out("\nEvery file was hashed at both ends while it moved, and read again here afterwards: all equal.")?;
    dir.close().map_err(|error| format!("cannot remove the temporary directory: {error}"))
}

fn println_out(line: &str) -> Result<(), Error> {
    output::print_line(line.as_bytes()).map_err(|error| format!("stdout: cannot write: {}", output::reason(&error)))
}

/// The way out of everything that takes long, once the user wants to stop.
fn unless_stopped() -> io::Result<()> {
    if signals::stopped() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
}

/// Content that no compressor or cache could make easier: BLAKE3 in XOF mode, keyed by the seed.
fn content(seed: u64, len: u64, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<Hash> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let n = usize::try_from(left.min(block.len() as u64)).expect("at most a block");
        reader.fill(&mut block[..n]);
        hasher.update(&block[..n]);
        write(&block[..n])?;
        unless_stopped()?;
        left -= n as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

fn make_sources(dir: &Path, args: &DemoArgs) -> io::Result<Hashes> {
    let mut hashes = Hashes::new();
    let mut big = fs::File::create(dir.join("big"))?;
    hashes.insert(b"big".to_vec(), content(0, args.size << 20, |bytes| big.write_all(bytes))?);
    for number in 0..args.files {
        let (folder, name) = (format!("{:03}", number / 100), format!("{number:06}"));
        fs::create_dir_all(dir.join("small").join(&folder))?;
        let path = format!("{folder}/{name}");
        let mut file = fs::File::create(dir.join("small").join(&path))?;
        hashes.insert(
            path.into_bytes(),
            content(u64::from(number) + 1, args.file_size << 10, |bytes| file.write_all(bytes))?,
        );
    }
    if args.files == 0 {
        fs::create_dir_all(dir.join("small"))?;
    }
    Ok(hashes)
}

/// Has the memory that the first row is going to need used once: a virtual machine gets each page from its host at the first
/// touch, which cost the first row half its rate (2026-11-25).
fn warm_up(dir: &Path) -> io::Result<()> {
    let targets = ["up-big", "down-big"].map(|target| dir.join(target));
    for target in &targets {
        fs::copy(dir.join("big"), target)?;
        unless_stopped()?;
    }
    targets.iter().try_for_each(fs::remove_file)
}

enum Trouble {
    NoBackend(String),
    Failed(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Trouble {
        Trouble::Failed(why)
    }
}

/// A server process; ended when dropped.
struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_server(dir: &Path, backend: &str) -> Result<Server, Error> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut child = Command::new(program)
        .args(["--backend", backend, "serve", "--allow-every-local-user", "--listen", "127.0.0.1:0", "--root"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start the server: {error}"))?;
    let mut line = String::new();
    let stdout = child.stdout.take().ok_or("the server has no stdout")?;
    let mut server = Server { child, address: String::new() };
    BufReader::new(stdout).read_line(&mut line).map_err(|error| format!("the server did not start: {error}"))?;
    server.address = line.trim().strip_prefix("LISTENING ").ok_or("the server did not start")?.to_string();
    Ok(server)
}

fn one_backend(dir: &Path, args: &DemoArgs, choice: Choice, expected: &Hashes) -> Result<(), Trouble> {
    let name = if choice == Choice::Uring { "uring" } else { "poll" };
    if let Err(why) = backend::make(choice) {
        return Err(Trouble::NoBackend(why));
    }
    let server = start_server(dir, name)?;
    let big = output::size(args.size << 20);
    let small = format!("{} x {}", args.files, output::size(args.file_size << 10));
    let steps = [
        (format!("{big} up"), true, "big", "up-big", 1),
        (format!("{big} down"), false, "up-big", "down-big", 1),
        (format!("{small} up"), true, "small/", "up-small", args.files),
        (format!("{small} down"), false, "up-small/", "down-small", args.files),
    ];
    for (what, up, source, target, files) in steps {
        if files == 0 {
            continue;
        }
        let bytes =
            if source.contains("big") { args.size << 20 } else { u64::from(args.files) * (args.file_size << 10) };
        let result = transfer(choice, &server.address, dir, up, source, target)?;
        let seconds = result.elapsed.as_secs_f64();
        println_out(&format!(
            "{:<10} {what:<34} {seconds:>9.3} {:>9.0} {:>10.2} {:>9.0}",
            result.backend,
            bytes as f64 / seconds / 1e6,
            bytes as f64 * 8.0 / seconds / 1e9,
            f64::from(files) / seconds,
        ))?;
        verify(dir, target, &result, expected)?;
    }
    for target in ["up-big", "down-big"] {
        let _ = fs::remove_file(dir.join(target));
    }
    for target in ["up-small", "down-small"] {
        let _ = fs::remove_dir_all(dir.join(target));
    }
    Ok(())
}

struct Transferred {
    elapsed: Duration,
    backend: &'static str,
    /// By path below the target.
    hashes: Hashes,
}

fn operand(path: &Path, contents: bool) -> Result<Operand, Error> {
    let bytes = path.as_os_str().as_bytes();
    let parsed = RequestPath::parse(bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Operand { path: parsed, shown: bytes.to_vec(), contents })
}

/// One copy, timed from the connection to the last answer.
fn transfer(
    choice: Choice,
    address: &str,
    dir: &Path,
    up: bool,
    source: &str,
    target: &str,
) -> Result<Transferred, Error> {
    let (mut backend, _) = backend::make(choice)?;
    let name = backend.features().backend;
    let started = Instant::now();
    let stream = TcpStream::connect(address).map_err(|error| format!("cannot connect: {error}"))?;
    let _ = stream.set_nodelay(true);
    let stream = backend.add_stream(stream.into(), None, true).map_err(|errno| errno.to_string())?;
    let local = backend.add_root(Root::working_directory().map_err(|errno| errno.to_string())?);
    let contents = source.ends_with('/');
    let (source, target) = (operand(&dir.join(source), contents)?, operand(&dir.join(target), false)?);
    let options = Options { recursive: true, ..Options::default() };
    let reports = Rc::new(RefCell::new(Vec::new()));
    let collect = reports.clone();
    let reporter: Reporter = Box::new(move |report| collect.borrow_mut().push(report));
    let (opening, progress) = (Opening::full(None), Arc::new(Progress::default()));
    let prefix = target.shown.clone();
    let client = if up {
        let queue = Queue::new(Direction::Up, options);
        let plan = upload::Plan { local, sources: vec![source], target, queue, same_machine: None };
        upload::client(stream, opening, plan, progress, reporter)
    } else {
        let queue = Queue::new(Direction::Down, options);
        let plan = download::Plan { sources: vec![source], local, target, queue };
        download::client(stream, opening, plan, progress, reporter)
    };
    let mut worker = Worker::new(backend, Pool::new(POOL_SMALL_BLOCKS, POOL_LARGE_BLOCKS));
    worker.add(Box::new(client));
    signals::wake_on_stop(&worker.waker());
    worker.run(signals::stopped).map_err(|broken| broken.to_string())?;
    let elapsed = started.elapsed();
    drop(worker);
    let mut hashes = Hashes::new();
    for report in reports.take() {
        match report {
            Report::Copied { target, hash, .. } => {
                let below = target.strip_prefix(prefix.as_slice()).unwrap_or(&target);
                let below = below.strip_prefix(b"/").unwrap_or(below).to_vec();
                hashes.extend(hash.map(|hash| (below, hash)));
            }
            Report::Failed(failure) | Report::Fatal(failure) => return Err(failure.reason()),
            _ => {}
        }
    }
    Ok(Transferred { elapsed, backend: name, hashes })
}

/// Reads everything again and compares with what was made at the beginning and with what the copy reported.
fn verify(dir: &Path, target: &str, result: &Transferred, expected: &Hashes) -> Result<(), Error> {
    let single = target.ends_with("big");
    let wanted = expected.iter().filter(|(path, _)| (path.as_slice() == b"big") == single);
    let mut checked = 0;
    for (path, hash) in wanted {
        unless_stopped().map_err(|error| error.to_string())?;
        let path = if single { Vec::new() } else { path.clone() };
        let relative = std::ffi::OsStr::from_bytes(&path);
        let file = if single { dir.join(target) } else { dir.join(target).join(relative) };
        let mut hasher = blake3::Hasher::new();
        let opened = fs::File::open(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        hasher.update_reader(opened).map_err(|error| format!("{}: {error}", file.display()))?;
        if hasher.finalize().as_bytes() != hash || result.hashes.get(&path) != Some(hash) {
            return Err(format!("{}: the content is not what was sent", file.display()));
        }
        checked += 1;
    }
    if checked != result.hashes.len() {
        return Err(format!("{} files arrived, {checked} were sent", result.hashes.len()));
    }
    Ok(())
}
