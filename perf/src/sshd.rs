//! An sshd of our own for each backend, on a loopback port or in another namespace, with keys of its own; ended when
//! dropped.

use crate::netns::{self, Namespace};
use crate::process::Running;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The backends, as HAUL_BACKEND names them.
pub(crate) const BACKENDS: [&str; 2] = ["uring", "poll"];

/// Where one listens.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// On a loopback port.
    Here,
    /// At the far end of a pair of namespaces.
    Far(&'a Namespace),
}

impl Place<'_> {
    fn address(self) -> &'static str {
        match self {
            Place::Here => "127.0.0.1",
            Place::Far(_) => netns::FAR,
        }
    }

    fn command(self, program: &str) -> Command {
        match self {
            Place::Here => Command::new(program),
            Place::Far(namespace) => namespace.command(program),
        }
    }
}

/// A running sshd whose haul uses one backend.
pub(crate) struct Sshd {
    pub(crate) backend: &'static str,
    dir: tempfile::TempDir,
    /// Its children are the far ends.
    pub(crate) child: Running,
}

/// One for each backend; none, with a note, where there is no sshd.
pub(crate) fn start_both(haul: &Path, place: Place<'_>, notes: &mut Vec<String>) -> Result<Vec<Sshd>> {
    let program = ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|path| Path::new(path).exists());
    let Some(program) = program else {
        notes.push("there is no sshd here: everything over ssh is left out".into());
        return Ok(Vec::new());
    };
    BACKENDS.into_iter().map(|backend| Sshd::start(program, haul, backend, place)).collect()
}

impl Sshd {
    fn start(program: &str, haul: &Path, backend: &'static str, place: Place<'_>) -> Result<Sshd> {
        let dir = tempfile::Builder::new().prefix("haul-perf-sshd-").tempdir()?;
        let path = dir.path();
        for name in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            let status = keygen.args(["-qN", "", "-t", "ed25519", "-f"]).arg(path.join(name)).status();
            ensure!(status.context("ssh-keygen")?.success(), "ssh-keygen failed");
        }
        fs::create_dir(path.join("bin"))?;
        std::os::unix::fs::symlink(haul, path.join("bin/haul"))?;
        fs::copy(path.join("user.pub"), path.join("authorized"))?;
        // sshd wants this directory of the system's when it runs as root.
        let _ = fs::create_dir_all("/run/sshd");
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        write_configuration(path, (place.address(), port), backend)?;
        let log = fs::File::create(path.join("log"))?;
        let mut command = place.command(program);
        command.args(["-D", "-e", "-f"]).arg(path.join("sshd_config")).stdin(Stdio::null()).stderr(log);
        let child = Running(command.spawn().context("cannot start sshd")?);
        let mut sshd = Sshd { backend, dir, child };
        let log = || fs::read_to_string(sshd.dir.path().join("log")).unwrap_or_default();
        if !wait_until(&mut sshd.child.0, || log().contains("Server listening on"))? {
            bail!("sshd does not start: {}", log());
        }
        Ok(sshd)
    }

    /// What `ssh -F` takes; the host in it is called `far`.
    pub(crate) fn ssh_config(&self) -> PathBuf {
        self.dir.path().join("ssh_config")
    }
}

/// True once somebody answers there; false when the process has ended, or time is up.
pub(crate) fn wait_until_listening(child: &mut Child, port: u16) -> Result<bool> {
    wait_until(child, || TcpStream::connect(("127.0.0.1", port)).is_ok())
}

/// The same once `done` says so.
pub(crate) fn wait_until(child: &mut Child, mut done: impl FnMut() -> bool) -> Result<bool> {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until && child.try_wait()?.is_none() {
        if done() {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(false)
}

fn write_configuration(path: &Path, (address, port): (&str, u16), backend: &str) -> Result<()> {
    let shown = path.display();
    let server = format!(
        "Port {port}\nListenAddress {address}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/authorized\n\
         StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nMaxStartups 100:30:200\nPidFile none\n\
         SetEnv PATH={shown}/bin:/usr/bin:/bin HAUL_BACKEND={backend}\nSubsystem sftp internal-sftp\n"
    );
    fs::write(path.join("sshd_config"), server)?;
    let client = format!(
        "Host far\n HostName {address}\n Port {port}\n IdentityFile {shown}/user\n IdentitiesOnly yes\n BatchMode yes\n\
         StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
    );
    Ok(fs::write(path.join("ssh_config"), client)?)
}
