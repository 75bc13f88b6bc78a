//! `haul serve --listen --key-file`: a daemon of our own, with a key that is made for it, that also serves unencrypted who
//! asks for that; ended when dropped.

use crate::process::{Far, Running};
use anyhow::{Context as _, Result, ensure};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A running daemon that serves the whole machine.
pub(crate) struct Keyed {
    child: Running,
    address: String,
    dir: tempfile::TempDir,
}

impl Keyed {
    /// At a free port of `ip`; `command` makes a command of the program, where that address is.
    pub(crate) fn start(haul: &Path, backend: &str, ip: &str, command: impl Fn(&Path) -> Command) -> Result<Keyed> {
        let dir = tempfile::Builder::new().prefix("haul-perf-keyed-").tempdir()?;
        let key = dir.path().join("key");
        let made = Command::new(haul).arg("keygen").arg(&key).status().context("haul keygen")?;
        ensure!(made.success(), "haul keygen failed");
        let mut serve = command(haul);
        serve
            .args(["serve", "--listen", &format!("{ip}:0"), "--allow-plaintext", "--across-mounts"])
            .args(["--root", "/", "--key-file"])
            .arg(&key);
        serve.env("HAUL_BACKEND", backend).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Running(serve.spawn().context("haul serve")?);
        let mut line = String::new();
        if let Some(stdout) = child.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line.trim().strip_prefix("LISTENING ").unwrap_or_default().to_string();
        let keyed = Keyed { child, address, dir };
        ensure!(!keyed.address.is_empty(), "haul serve does not listen on {ip}");
        Ok(keyed)
    }

    /// Its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// An absolute path there, as an operand.
    pub(crate) fn operand(&self, path: &Path) -> OsString {
        let mut operand = OsString::from(self.prefix());
        operand.push(path);
        operand
    }

    /// What stands before an absolute path.
    pub(crate) fn prefix(&self) -> String {
        format!("haul://{}", self.address)
    }

    /// It serves all by itself.
    pub(crate) fn far(&self) -> Far {
        Far::Itself(self.child.id())
    }
}
