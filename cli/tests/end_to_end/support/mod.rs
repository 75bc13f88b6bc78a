//! What the end-to-end tests share: the real binary, a stand-in for ssh, a real sshd, and trees to copy.

#![cfg_attr(not(target_os = "linux"), allow(dead_code))]
#![allow(unreachable_pub)]

#[cfg(target_os = "linux")]
pub mod between;
#[cfg(target_os = "linux")]
pub mod cable;
pub mod daemon;
pub mod direct;
pub mod frames;
#[cfg(target_os = "linux")]
pub mod fuse;
#[cfg(target_os = "linux")]
pub mod interop;
pub mod kept;
#[cfg(target_os = "linux")]
pub mod limits;
// Reads what only Linux shows of a process.
#[cfg(target_os = "linux")]
pub mod pressure;
pub mod processes;
pub mod record;
pub mod transfer;

pub mod routes;
pub mod skips;
pub mod trees;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Both backends, as `--backend` names them.
pub const BACKENDS: [&str; 2] = ["uring", "poll"];

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_haul"))
}

/// How the other end is reached.
pub trait Remote {
    /// Arguments for haul.
    fn args(&self) -> Vec<OsString>;
    /// The name before the colon.
    fn host(&self) -> String;
    /// The login directory on the other end.
    fn home(&self) -> PathBuf;
}

/// Stands in for ssh: runs the remote command in a shell of this machine, over pipes, with a home of its own.
pub struct Pipes {
    dir: tempfile::TempDir,
}

impl Pipes {
    /// The far end uses `backend`.
    pub fn new(backend: &str) -> Pipes {
        Pipes::with_program(backend, binary())
    }

    /// As `new`, but what the far end finds as `haul` is `program`.
    pub fn with_program(backend: &str, program: &Path) -> Pipes {
        Pipes::with_programs(backend, &[("haul", program)])
    }

    /// As `new`, but these names and programs are all that the far end finds.
    pub fn with_programs(backend: &str, programs: &[(&str, &Path)]) -> Pipes {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        for name in ["home", "bin"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for (name, program) in programs {
            std::os::unix::fs::symlink(program, dir.path().join("bin").join(name)).unwrap();
        }
        let script = format!(
            "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift 2\nexport HOME='{0}/home' HAUL_BACKEND={backend}\n\
             export HAUL_PROBE='{0}/home/.local/bin:{0}/home/.cargo/bin'\nPATH='{0}/bin':/usr/bin:/bin\ncd \"$HOME\" || exit 255\necho $$ > '{0}/pid'\nexec sh -c \"$*\"\n",
            dir.path().display()
        );
        processes::script(&dir.path().join("ssh"), &script);
        Pipes { dir }
    }

    /// Process id of the far end; it stays the same from the shell to `haul serve`.
    pub fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.dir.path().join("pid")).ok()?.trim().parse().ok()
    }

    /// Where the stand-in and its home live.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Remote for Pipes {
    fn args(&self) -> Vec<OsString> {
        vec!["-e".into(), self.dir.path().join("ssh").into()]
    }

    fn host(&self) -> String {
        "far".to_string()
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
}

/// A real sshd on a loopback port, with keys of its own.
pub struct Sshd {
    dir: tempfile::TempDir,
    child: Child,
}

impl Sshd {
    /// Starts it; `None` where there is no sshd: the test is skipped.
    pub fn start(backend: &str) -> Option<Sshd> {
        let sshd = Sshd::bare(backend, SFTP)?;
        sshd.install("haul", binary());
        Some(sshd)
    }

    /// An sshd on whose machine nothing is installed, with a home of its own and these lines of configuration, in which
    /// `{d}` stands for its directory.
    pub fn bare(backend: &str, config: &str) -> Option<Sshd> {
        Sshd::listening(backend, config, "127.0.0.1", |program| Command::new(program))
    }

    /// At the far end of a cable, with haul there.
    #[cfg(target_os = "linux")]
    pub fn behind(cable: &cable::Cable, backend: &str, config: &str) -> Option<Sshd> {
        Sshd::listening(backend, config, cable::FAR, |program| cable.at(cable::End::Far, program))
    }

    /// On this address, started by what `command` makes of the program.
    fn listening(backend: &str, config: &str, address: &str, command: impl Fn(&str) -> Command) -> Option<Sshd> {
        let program = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|path| Path::new(path).exists());
        let Some(program) = program else {
            skips::skip("sshd", "there is no sshd here", "OpenSSH's server");
            return None;
        };
        let mut dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let path = dir.path().to_path_buf();
        for name in ["host", "user"] {
            let status =
                Command::new("ssh-keygen").args(["-qN", "", "-t", "ed25519", "-f"]).arg(path.join(name)).status();
            assert!(status.unwrap().success());
        }
        for name in ["bin", "home"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        fs::copy(path.join("user.pub"), path.join("authorized")).unwrap();
        // sshd wants this directory of the system's when it runs as root.
        let _ = fs::create_dir_all("/run/sshd");
        for _ in 0..5 {
            let port = free_port();
            write_sshd_files(&path, (address, port), backend, &config.replace("{d}", path.to_str().unwrap()));
            let child = command(program)
                .args(["-D", "-e", "-f"])
                .arg(path.join("sshd_config"))
                .stderr(fs::File::create(path.join("log")).unwrap())
                .spawn()
                .unwrap();
            let mut sshd = Sshd { dir, child };
            if sshd.wait_until_listening() {
                return Some(sshd);
            }
            // The port was taken in between; take another.
            dir = std::mem::replace(&mut sshd.dir, tempfile::tempdir().unwrap());
        }
        panic!("sshd does not start: {}", fs::read_to_string(path.join("log")).unwrap_or_default());
    }

    fn wait_until_listening(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if fs::read_to_string(self.dir.path().join("log")).is_ok_and(|log| log.contains("Server listening on")) {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// A directory for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Who takes the connections.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Puts a program on the PATH there.
    pub fn install(&self, name: &str, program: &Path) {
        std::os::unix::fs::symlink(program, self.dir.path().join("bin").join(name)).unwrap();
    }
}

/// The line of configuration that most have.
pub const SFTP: &str = "Subsystem sftp internal-sftp";

fn write_sshd_files(path: &Path, (address, port): (&str, u16), backend: &str, config: &str) {
    // The first value of an option counts.
    let config = if config.contains("MaxStartups") { config } else { &format!("MaxStartups 100:30:200\n{config}") };
    let config = format!(
        "Port {port}\nListenAddress {address}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nStrictModes no\n\
         UsePAM no\nPermitRootLogin prohibit-password\nPidFile none\n\
         SetEnv PATH={0}/bin:/usr/bin:/bin HAUL_BACKEND={backend} HOME={0}/home \
         HAUL_PROBE={0}/home/.local/bin:{0}/home/.cargo/bin\n{config}\n",
        path.display()
    );
    fs::write(path.join("sshd_config"), config).unwrap();
    // The key exchange that OpenSSH 9 prefers takes 0.15 s of processor time more, in each of hundreds of logins.
    let client = format!(
        "Host far\n HostName {address}\n Port {port}\n IdentityFile {0}/user\n IdentitiesOnly yes\n\
         StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n\
         KexAlgorithms curve25519-sha256\n",
        path.display()
    );
    fs::write(path.join("ssh_config"), client).unwrap();
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Remote for Sshd {
    fn args(&self) -> Vec<OsString> {
        vec!["-F".into(), self.dir.path().join("ssh_config").into()]
    }

    fn host(&self) -> String {
        "far".to_string()
    }

    fn home(&self) -> PathBuf {
        // HOME is here, but sessions begin in the real login directory: tests use absolute paths.
        self.dir.path().join("home")
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A home for what a test runs at this end, where nobody has left anything.
fn near_home() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("home");
    // Where it cannot be made there is none, which is as good.
    let _ = fs::create_dir_all(&home);
    home
}

/// `haul --backend BACKEND ARGS..`, ready to run. Neither programs nor settings of whoever runs the tests are found.
pub fn haul(backend: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(binary());
    command.env("HOME", near_home()).env("PATH", "/usr/bin:/bin").env("HAUL_PROBE", near_home());
    for setting in ["HAUL_PORT_RANGE", "HAUL_BIND", "HAUL_PLAINTEXT", "HAUL_CAS_DIR", "XDG_DATA_HOME"] {
        command.env_remove(setting);
    }
    command.args(["--backend", backend]).args(args).stdin(Stdio::null());
    command
}

/// Fails with everything that was printed unless the exit code is `code`.
#[track_caller]
pub fn assert_exit(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `host:path`
pub fn at(remote: &dyn Remote, path: &Path) -> OsString {
    let mut operand = OsString::from(remote.host() + ":");
    operand.push(path);
    operand
}

/// What a test compares of one name.
#[derive(PartialEq, Eq, Debug, Clone)]
pub enum Entry {
    /// Content by hash, permission bits, modification time in ns.
    File {
        hash: String,
        size: u64,
        mode: u32,
        mtime: (i64, i64),
    },
    Directory {
        mode: u32,
        mtime: (i64, i64),
    },
    Link(PathBuf),
    Other,
}

/// Everything below `dir`, by relative path.
pub fn snapshot(dir: &Path) -> BTreeMap<OsString, Entry> {
    let mut entries = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mode = meta.permissions().mode() & 0o7777;
            let mtime = (meta.mtime(), meta.mtime_nsec());
            let found = if meta.is_dir() {
                todo.push(path.clone());
                Entry::Directory { mode, mtime }
            } else if meta.is_symlink() {
                Entry::Link(fs::read_link(&path).unwrap())
            } else if meta.is_file() {
                Entry::File { hash: hash_of(&path), size: meta.len(), mode, mtime }
            } else {
                Entry::Other
            };
            entries.insert(path.strip_prefix(dir).unwrap().as_os_str().to_owned(), found);
        }
    }
    entries
}

/// BLAKE3 of a file in hex.
pub fn hash_of(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path).unwrap()).unwrap();
    hasher.finalize().to_hex().to_string()
}

/// A file of `size` pseudo-random bytes.
pub fn random_file(path: &Path, size: usize, seed: u64) {
    let mut content = vec![0; size];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    fs::write(path, content).unwrap();
}

/// Names in a directory that haul's own temporary files would have.
pub fn litter(dir: &Path) -> Vec<OsString> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.as_bytes().starts_with(b".haul")).collect()
}
