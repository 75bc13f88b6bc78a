//! A far end that keeps every byte it is told and says.

use super::{Pipes, binary, processes};
use std::fs;
use std::path::PathBuf;

/// A stand-in for ssh, and what goes through it.
pub struct Record {
    pub pipes: Pipes,
    pub wire: Wire,
}

/// What went through.
pub struct Wire {
    dir: tempfile::TempDir,
}

/// The bytes of one connection, from the client's Hello on.
pub struct Session {
    up: PathBuf,
    down: PathBuf,
}

impl Record {
    /// The far end uses `backend`; `setup` is shell that runs before the server, to set variables for it.
    pub fn new(backend: &str, setup: &str) -> Record {
        let dir = super::trees::scratch();
        let program = dir.path().join("haul");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = serve ] || exec '{0}' \"$@\"\n{setup}\n\
             tee '{1}/'$$.up | '{0}' \"$@\" | tee '{1}/'$$.down\n",
            binary().display(),
            dir.path().display()
        );
        processes::script(&program, &script);
        Record { pipes: Pipes::with_program(backend, &program), wire: Wire { dir } }
    }
}

impl Wire {
    /// Every connection so far. Complete once nobody is at home any more.
    pub fn sessions(&self) -> Vec<Session> {
        let paths = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let ups = paths.filter(|path| path.extension().is_some_and(|ending| ending == "up"));
        ups.map(|up| Session { down: up.with_extension("down"), up }).collect()
    }

    /// Forgets them.
    pub fn forget(&self) {
        for session in self.sessions() {
            fs::remove_file(session.up).unwrap();
            fs::remove_file(session.down).unwrap();
        }
    }
}

impl Session {
    /// What the client sent.
    pub fn up(&self) -> Vec<u8> {
        fs::read(&self.up).unwrap()
    }

    /// What the server said.
    pub fn down(&self) -> Vec<u8> {
        fs::read(&self.down).unwrap()
    }

    /// Both, as a number of bytes.
    pub fn bytes(&self) -> u64 {
        [&self.up, &self.down].map(|path| fs::metadata(path).unwrap().len()).iter().sum()
    }
}
