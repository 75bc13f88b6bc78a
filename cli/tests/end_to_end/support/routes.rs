//! A route: which backend works here, which on the other end, and which way the files go. The same copy is made over many.

use super::{BACKENDS, Pipes, Remote, SFTP, Sshd, assert_exit, at, binary, snapshot};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

/// Far longer than any run here takes: what still runs then hangs.
const HANG: Duration = Duration::from_secs(120);
/// The user and group `nobody`.
const NOBODY: u32 = 65534;

/// Which way the files go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From here to the other end.
    Up,
    /// From the other end to here.
    Down,
    /// Within this machine.
    Here,
}

/// Paths are absolute: both ends see the same file system.
#[derive(Clone)]
pub struct Route {
    pub near: &'static str,
    pub far: &'static str,
    pub way: Way,
    remote: Option<Rc<dyn Remote>>,
    /// The program to run as a user without rights.
    limited: Option<PathBuf>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} here, {} there", self.way, self.near, self.far)
    }
}

impl Route {
    /// Both backends here, both ways, with an other end that uses `far`.
    pub fn to_remote(remote: &Rc<dyn Remote>, far: &'static str) -> Vec<Route> {
        let ends = BACKENDS.into_iter().flat_map(|near| [(near, Way::Up), (near, Way::Down)]);
        ends.map(|(near, way)| Route { near, far, way, remote: Some(remote.clone()), limited: None }).collect()
    }

    /// Every pair of backends, both ways.
    pub fn over_pipes() -> Vec<Route> {
        let remote = |far| -> Rc<dyn Remote> { Rc::new(Pipes::new(far)) };
        BACKENDS.into_iter().flat_map(|far| Route::to_remote(&remote(far), far)).collect()
    }

    /// Within this machine, with both backends.
    pub fn local() -> Vec<Route> {
        BACKENDS.map(|near| Route { near, far: near, way: Way::Here, remote: None, limited: None }).into()
    }

    /// Both ways through an SFTP server, with nobody else at the other end; none, with a line that says so, without sshd.
    pub fn over_sftp() -> Vec<Route> {
        let Some(sshd) = Sshd::bare("poll", SFTP) else { return Vec::new() };
        let remote: Rc<dyn Remote> = Rc::new(sshd);
        Route::to_remote(&remote, "SFTP").into_iter().filter(|route| route.near == "poll").collect()
    }

    /// All of them.
    pub fn all() -> Vec<Route> {
        [Route::over_pipes(), Route::local()].concat()
    }

    /// All of them, both ends run by a user for whom permission bits count. `dir` becomes his.
    pub fn all_without_rights(dir: &Path) -> Vec<Route> {
        let program = dir.join("haul");
        fs::copy(binary(), &program).unwrap();
        let remote = |far| -> Rc<dyn Remote> {
            let pipes = Pipes::with_program(far, &program);
            open_to_all(pipes.dir());
            open_to_all(&pipes.home());
            Rc::new(pipes)
        };
        open_to_all(dir);
        let mut routes: Vec<Route> =
            BACKENDS.into_iter().flat_map(|far| Route::to_remote(&remote(far), far)).chain(Route::local()).collect();
        routes.iter_mut().for_each(|route| route.limited = Some(program.clone()));
        routes
    }

    /// A source operand.
    pub fn from(&self, path: &Path) -> OsString {
        self.operand(path, Way::Down)
    }

    /// A target operand.
    pub fn to(&self, path: &Path) -> OsString {
        self.operand(path, Way::Up)
    }

    fn operand(&self, path: &Path, remote_if: Way) -> OsString {
        match &self.remote {
            Some(remote) if self.way == remote_if => at(&**remote, path),
            _ => path.into(),
        }
    }

    /// `haul copy`, ready to run.
    pub fn command(&self, flags: &[&str], sources: &[&Path], target: &Path) -> Command {
        let mut command = Command::new(self.limited.as_deref().unwrap_or(binary()));
        if self.limited.is_some() {
            without_rights(&mut command);
        }
        command.args(["--backend", self.near, "copy"]).args(flags);
        command.args(self.remote.iter().flat_map(|remote| remote.args()));
        command.arg("--").args(sources.iter().map(|source| self.from(source))).arg(self.to(target));
        command
    }

    /// `haul copy` to its end, whatever that is.
    pub fn copy(&self, flags: &[&str], sources: &[&Path], target: &Path) -> Output {
        // Shown only where the test fails: which of the routes it was.
        eprintln!("{self:?}: {flags:?}");
        finish(self.command(flags, sources, target))
    }

    /// `haul copy` that must succeed.
    #[track_caller]
    pub fn copied(&self, flags: &[&str], sources: &[&Path], target: &Path) -> Output {
        let output = self.copy(flags, sources, target);
        assert_exit(&output, 0);
        output
    }

    /// Copies a whole tree to a place beside it where nothing is, and compares everything below; the copy is removed again.
    #[track_caller]
    pub fn copies_tree(&self, flags: &[&str], source: &Path) {
        let dir = tempfile::tempdir_in(source.parent().unwrap()).unwrap();
        let target = dir.path().join("copy");
        self.copied(flags, &[&contents_of(source)], &target);
        assert_same_tree(&target, source);
    }
}

/// Asserts that everything below both directories is the same: names, kinds, contents, modes and times.
#[track_caller]
pub fn assert_same_tree(found: &Path, expected: &Path) {
    let (found, expected) = (snapshot(found), snapshot(expected));
    for (name, entry) in &expected {
        assert_eq!(found.get(name), Some(entry), "{name:?}");
    }
    let more: Vec<_> = found.keys().filter(|name| !expected.contains_key(*name)).collect();
    assert!(more.is_empty(), "there are also {more:?}");
}

pub fn is_same_tree(found: &Path, expected: &Path) -> bool {
    snapshot(found) == snapshot(expected)
}

/// `dir/`
pub fn contents_of(dir: &Path) -> PathBuf {
    dir.join("")
}

/// True where permission bits do not count for this process.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Lets the command run as a user for whom permission bits count.
pub fn without_rights(command: &mut Command) {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

/// Asserts that this path cannot be read by those whom [`without_rights`] makes.
#[track_caller]
pub fn assert_limit_bites(path: &Path) {
    let mut command = Command::new("cat");
    command.arg(path);
    without_rights(&mut command);
    let output = finish(command);
    assert!(!output.status.success(), "{} can be read without rights", path.display());
}

/// Gives a directory of the test's own to the user without rights.
pub fn open_to_all(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Runs a command to its end. One that hangs is killed, and is a failure.
#[track_caller]
pub fn finish(mut command: Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, result) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match result.recv_timeout(HANG) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("{command:?} hangs");
        }
    }
}

/// The NDJSON on stdout, each line with the schema it must have.
#[track_caller]
pub fn json_lines(output: &Output) -> Vec<serde_json::Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(lines.iter().all(|line| line["schema"] == "haul/1"), "{text}");
    lines
}

/// The lines of this type.
pub fn of_type<'a>(lines: &'a [serde_json::Value], kind: &str) -> Vec<&'a serde_json::Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

/// A name out of a JSON line; one that is not text stands in hex beside it.
pub fn json_name(line: &serde_json::Value, key: &str) -> Vec<u8> {
    let text = |key: &str| line[key].as_str().map(str::to_string);
    match text(&format!("{key}_hex")) {
        Some(hex) => {
            let digits: Vec<u8> = hex.bytes().map(|digit| (digit as char).to_digit(16).unwrap() as u8).collect();
            digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
        }
        None => text(key).unwrap().into_bytes(),
    }
}
