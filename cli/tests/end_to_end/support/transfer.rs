//! One big file on its way over an older one, and the proof that nothing else than these two is ever to be seen.

use super::processes::{LIMIT, Running, arrived, names, wait_for};
use super::{Pipes, Remote, at, hash_of, haul, random_file};
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// Which way the file goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Up,
    Down,
    Local,
}

/// What stands under the final name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    Old,
    New,
}

const OLD_BYTES: usize = 1_000_003;

/// A source, a target with older content, and homes and directories for temporary files that must stay empty.
pub struct Transfer {
    dir: tempfile::TempDir,
    pub pipes: Pipes,
    backend: &'static str,
    way: Way,
    pub size: u64,
    hashes: [String; 2],
    /// Further options of the copy.
    pub options: &'static [&'static str],
}

impl Transfer {
    /// On a file system in memory where there is one, so that the disk is not what is tested.
    pub fn new(backend: &'static str, way: Way, size: usize) -> Transfer {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir_in(place).unwrap();
        let mut transfer = Transfer {
            dir,
            pipes: Pipes::new(backend),
            backend,
            way,
            size: size as u64,
            hashes: [String::new(), String::new()],
            options: &[],
        };
        for name in ["from", "to", "home", "tmp"] {
            fs::create_dir(transfer.dir.path().join(name)).unwrap();
        }
        random_file(&transfer.source(), size, 1);
        transfer.restore();
        transfer.hashes = [hash_of(&transfer.target()), hash_of(&transfer.source())];
        transfer
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("from/file")
    }

    pub fn target(&self) -> PathBuf {
        self.dir.path().join("to/file")
    }

    /// Puts the old content under the final name.
    pub fn restore(&self) {
        random_file(&self.target(), OLD_BYTES, 2);
    }

    /// Starts the copy.
    pub fn start(&self) -> Running {
        let _ = fs::remove_file(self.pipes.dir().join("pid"));
        let (source, target) = (self.source(), self.target());
        let mut args: Vec<OsString> = vec!["copy".into()];
        args.extend(self.options.iter().map(OsString::from));
        args.extend(self.pipes.args());
        args.extend(match self.way {
            Way::Up => [source.into_os_string(), at(&self.pipes, &target)],
            Way::Down => [at(&self.pipes, &source), target.into_os_string()],
            Way::Local => [source.into_os_string(), target.into_os_string()],
        });
        let mut command = haul(self.backend, args);
        command.env("HOME", self.dir.path().join("home")).env("TMPDIR", self.dir.path().join("tmp"));
        // A process group of its own, as a terminal would give it.
        command.current_dir(self.dir.path().join("home")).process_group(0);
        Running::start(&mut command)
    }

    /// The far end's process id; 0 for copies within this machine.
    pub fn server(&self) -> i32 {
        if self.way == Way::Local {
            return 0;
        }
        assert!(wait_for(LIMIT, || self.pipes.pid().is_some()), "the far end was not started");
        self.pipes.pid().unwrap()
    }

    /// Who writes the file.
    pub fn receiver(&self, client: &Running) -> i32 {
        if self.way == Way::Up { self.server() } else { client.pid() }
    }

    /// Waits until `goal` bytes have been written, or the copy is over. Returns the bytes last seen.
    pub fn wait_for_bytes(&self, goal: u64, client: &mut Running) -> u64 {
        let receiver = self.receiver(client);
        let mut seen = 0;
        wait_for(LIMIT, || {
            seen = arrived(receiver);
            seen >= goal || client.is_over()
        });
        seen
    }

    /// What stands under the final name; fails when it is neither of the two.
    #[track_caller]
    pub fn content(&self) -> Content {
        let hash = hash_of(&self.target());
        match self.hashes.iter().position(|known| *known == hash) {
            Some(0) => Content::Old,
            Some(_) => Content::New,
            None => panic!("{} is neither the old file nor the new one", self.target().display()),
        }
    }

    /// Fails if there is anything in any directory that was not there before.
    #[track_caller]
    pub fn assert_tidy(&self) {
        let nothing: [OsString; 0] = [];
        assert_eq!(names(&self.dir.path().join("from")), ["file"]);
        assert_eq!(names(&self.dir.path().join("to")), ["file"]);
        for empty in [self.dir.path().join("home"), self.dir.path().join("tmp"), self.pipes.home()] {
            assert_eq!(names(&empty), nothing, "{}", empty.display());
        }
    }
}
