//! Daemons of our own on loopback ports, ended when dropped: rsync's, which moves bytes without encrypting them, and
//! haul's, one for each backend.

use crate::process::Far;
use crate::sshd::{self, BACKENDS};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running daemon that serves the whole machine.
pub(crate) struct Daemon {
    port: u16,
    child: Child,
    dir: tempfile::TempDir,
    /// Whose it is: `None` for rsync's.
    pub(crate) backend: Option<&'static str>,
}

impl Daemon {
    /// `None` where there is no rsync, or it does not start.
    pub(crate) fn rsync() -> Result<Option<Daemon>> {
        let dir = tempfile::Builder::new().prefix("haul-perf-rsyncd-").tempdir()?;
        let port = free_port()?;
        let config = dir.path().join("rsyncd.conf");
        let text = "use chroot = no\nreverse lookup = no\n[all]\npath = /\nread only = no\nuid = 0\ngid = 0\n";
        fs::write(&config, text).context("cannot write the daemon's configuration")?;
        let mut command = Command::new("rsync");
        command.args(["--daemon", "--no-detach", "--address", "127.0.0.1", "--port", &port.to_string(), "--config"]);
        let Ok(child) = command.arg(config).stdin(Stdio::null()).stderr(Stdio::null()).spawn() else {
            return Ok(None);
        };
        let mut daemon = Daemon { port, child, dir, backend: None };
        Ok(sshd::wait_until_listening(&mut daemon.child, port)?.then_some(daemon))
    }

    /// One for each backend, which also serve unencrypted who asks for that.
    pub(crate) fn hauls(haul: &Path) -> Result<Vec<Daemon>> {
        BACKENDS.into_iter().map(|backend| Daemon::haul(haul, backend)).collect()
    }

    fn haul(haul: &Path, backend: &'static str) -> Result<Daemon> {
        let dir = tempfile::Builder::new().prefix("haul-perf-hauld-").tempdir()?;
        let (port, key) = (free_port()?, dir.path().join("key"));
        let made = Command::new(haul).arg("keygen").arg(&key).stdout(Stdio::null()).status();
        ensure!(made.context("haul keygen")?.success(), "haul keygen failed");
        let mut command = Command::new(haul);
        command.args(["serve", "--allow-plaintext", "--root", "/", "--listen", &format!("127.0.0.1:{port}")]);
        command.arg("--key-file").arg(key).env("HAUL_BACKEND", backend);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut daemon = Daemon { port, child, dir, backend: Some(backend) };
        ensure!(sshd::wait_until_listening(&mut daemon.child, port)?, "haul serve --listen does not start");
        Ok(daemon)
    }

    /// The key of haul's daemon.
    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// What stands before an absolute path.
    pub(crate) fn prefix(&self) -> String {
        match self.backend {
            None => format!("rsync://127.0.0.1:{}/all", self.port),
            Some(_) => format!("haul://127.0.0.1:{}", self.port),
        }
    }

    /// Who is the far end of its clients.
    pub(crate) fn far(&self) -> Far {
        match self.backend {
            None => Far::Children(self.child.id()),
            Some(_) => Far::Itself(self.child.id()),
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
