//! Processes under test: every one has a limit of time, is ended by its id, and is found by the home it was given.

use super::{Pipes, binary};
use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What no step of any test takes on a busy machine; a test that gets here hangs.
pub const LIMIT: Duration = Duration::from_secs(100);

/// Asks again and again until `done` or the limit is reached; says which.
pub fn wait_for(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal; false when there is no such process any more.
pub fn signal(pid: i32, signal: Signal) -> bool {
    kill_process(Pid::from_raw(pid).unwrap(), signal).is_ok()
}

/// Sends a signal to a whole process group, as a terminal does; false when there is nobody in it any more.
pub fn signal_group(leader: i32, signal: Signal) -> bool {
    kill_process_group(Pid::from_raw(leader).unwrap(), signal).is_ok()
}

/// A process whose output is being collected.
pub struct Running {
    child: Child,
    program: String,
    started: Instant,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// From start to exit.
    pub took: Duration,
}

impl Running {
    /// Starts it with both outputs collected.
    pub fn start(command: &mut Command) -> Running {
        let program = format!("{command:?}");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(&program);
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        Running { child, program, started: Instant::now(), stdout, stderr }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end, which must come within the limit.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Ended {
        let over = wait_for(limit, || self.is_over());
        let took = self.started.elapsed();
        if !over {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        // Somebody who outlives the process may keep its outputs open; who that is, other assertions find out.
        let text = |from: Receiver<Vec<u8>>| {
            let bytes = from.recv_timeout(Duration::from_secs(10)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let ended = Ended { status, stdout: text(self.stdout), stderr: text(self.stderr), took };
        assert!(over, "did not end within {limit:?}: {}\n{ended:?}", self.program);
        ended
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Ended {
        self.finish_within(LIMIT)
    }
}

impl Ended {
    #[track_caller]
    pub fn assert_exit(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
    }

    /// The lines haul itself wrote to stderr.
    pub fn lines(&self) -> Vec<&str> {
        self.stderr.lines().collect()
    }
}

pub fn collect(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// Runs a command to its end, within the limit.
#[track_caller]
pub fn complete(command: &mut Command) -> Ended {
    Running::start(command).finish()
}

/// Ids of living processes with this HOME in their environment: what a far end has started.
pub fn at_home(home: &Path) -> Vec<i32> {
    let wanted = [b"HOME=".as_slice(), home.as_os_str().as_bytes()].concat();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended, even if nobody has waited for it, has no environment.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|&byte| byte == 0).any(|variable| variable == wanted) {
            found.push(pid);
        }
    }
    found
}

/// Processes that serve, in the order they came.
pub fn servers(home: &Path) -> Vec<i32> {
    let serves = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|&byte| byte == 0).nth(1) == Some(b"serve")
    };
    let mut pids: Vec<i32> = at_home(home).into_iter().filter(serves).collect();
    pids.sort_unstable();
    pids
}

/// Fails unless everything that the far end has started is gone within the limit. Returns how long that took.
#[track_caller]
pub fn assert_nobody_at_home(home: &Path, limit: Duration) -> Duration {
    let since = Instant::now();
    let gone = wait_for(limit, || at_home(home).is_empty());
    assert!(gone, "still there: {:?}", at_home(home));
    since.elapsed()
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Bytes in files without a name that a process holds open: how much of a file being made has been written.
pub fn arrived(pid: i32) -> u64 {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let nameless = open
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path).is_ok_and(|text| text.as_os_str().as_bytes().ends_with(b" (deleted)")));
    nameless.filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.len()).max().unwrap_or(0)
}

const INNER: &str = "HAUL_TEST_PRIVATE_MOUNTS";

/// True in a process of its own mount namespace, where a test may mount what it likes. Else runs `test`, which must be
/// the name of the caller, again in one, and returns false; without the rights for that it is skipped.
#[track_caller]
pub fn in_private_mounts(test: &str) -> bool {
    let module = Path::new(Location::caller().file()).file_stem().unwrap().to_string_lossy();
    let test = &format!("{module}::{test}");
    if std::env::var_os(INNER).is_some_and(|inner| inner == **test) {
        return true;
    }
    let mut probe = Command::new("unshare");
    probe.args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).stderr(Stdio::null());
    if !geteuid().is_root() || !probe.status().is_ok_and(|status| status.success()) {
        super::skips::skip("mounts", "file systems cannot be mounted here", "root, and leave to mount");
        return false;
    }
    let mut again = Command::new("unshare");
    again.arg("-m").arg(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(INNER, test);
    let ended = Running::start(&mut again).finish();
    eprint!("{}", ended.stderr);
    assert!(ended.status.success(), "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("1 passed"), "{test} is no test: {}", ended.stdout);
    false
}

/// A file system in memory, unmounted when this goes: before the directory it stands on, which else would stay.
pub struct Mounted(PathBuf);

/// Mounts a tmpfs on a new directory; only where `in_private_mounts`.
pub fn mount_tmpfs(at: &Path, options: &str) -> Mounted {
    fs::create_dir_all(at).unwrap();
    let mut mount = Command::new("mount");
    assert!(mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status().unwrap().success(), "{options}");
    Mounted(at.to_path_buf())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Writes an executable script. Another process does it: a test beside this one may start a program at any moment, which
/// then would have the file open for writing, and whoever runs the script meanwhile would be told that it is busy.
pub fn script(path: &Path, text: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
}

/// Somebody to whom permissions apply: `nobody` when the tests run as root, else whoever runs them.
pub struct Somebody {
    dir: tempfile::TempDir,
}

impl Somebody {
    pub fn new() -> Somebody {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        open_to_all(dir.path());
        // The build directory may be out of reach for nobody. Copied by another process, as scripts are written by one.
        assert!(Command::new("cp").arg(binary()).arg(dir.path().join("haul")).status().unwrap().success());
        fs::create_dir(dir.path().join("work")).unwrap();
        fs::set_permissions(dir.path().join("work"), fs::Permissions::from_mode(0o777)).unwrap();
        Somebody { dir }
    }

    /// A directory he may write to.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Runs a program as him.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.stdin(Stdio::null()).current_dir(self.work());
        command
    }

    /// `haul --backend BACKEND ARGS..` as him.
    pub fn haul(&self, backend: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = self.command(self.dir.path().join("haul"));
        command.args(["--backend", backend]).args(args);
        command
    }

    /// A far end that he can start.
    pub fn pipes(&self, backend: &str) -> Pipes {
        let pipes = Pipes::with_program(backend, &self.dir.path().join("haul"));
        open_to_all(pipes.dir());
        fs::set_permissions(pipes.dir(), fs::Permissions::from_mode(0o777)).unwrap();
        pipes
    }

    /// Fails unless `program` is refused to him: a limit that does not bite proves nothing.
    #[track_caller]
    pub fn assert_refused(&self, program: &str, args: &[&OsStr]) {
        let output: Output = self.command(program).args(args).output().unwrap();
        assert!(!output.status.success(), "{program} {args:?} is not refused");
    }
}

fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
