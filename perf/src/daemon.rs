//! An rsync daemon of our own on a loopback port: what moves bytes without encrypting them. Ended when dropped.

use crate::process::{Far, Running};
use crate::sshd;
use anyhow::{Context as _, Result};
use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};

/// A running daemon that serves the whole machine.
pub(crate) struct Daemon {
    port: u16,
    child: Running,
    _dir: tempfile::TempDir,
}

impl Daemon {
    /// `None` where there is no rsync, or it does not start.
    pub(crate) fn start() -> Result<Option<Daemon>> {
        let dir = tempfile::Builder::new().prefix("haul-perf-rsyncd-").tempdir()?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let config = dir.path().join("rsyncd.conf");
        let text = "use chroot = no\nreverse lookup = no\n[all]\npath = /\nread only = no\nuid = 0\ngid = 0\n";
        fs::write(&config, text).context("cannot write the daemon's configuration")?;
        let mut command = Command::new("rsync");
        command.args(["--daemon", "--no-detach", "--address", "127.0.0.1", "--port", &port.to_string(), "--config"]);
        let Ok(child) = command.arg(config).stdin(Stdio::null()).stderr(Stdio::null()).spawn() else {
            return Ok(None);
        };
        let mut child = Running(child);
        let answers = sshd::wait_until_listening(&mut child.0, port)?;
        let daemon = Daemon { port, child, _dir: dir };
        Ok(answers.then_some(daemon))
    }

    /// What stands before an absolute path.
    pub(crate) fn prefix(&self) -> String {
        format!("rsync://127.0.0.1:{}/all", self.port)
    }

    /// Its children are the far ends.
    pub(crate) fn far(&self) -> Far {
        Far::Children(self.child.id())
    }
}
