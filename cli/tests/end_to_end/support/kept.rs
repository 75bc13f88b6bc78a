//! A copy that is interrupted and continued: one file, a target where nothing stands, and what is kept beside it.

use super::processes::{Ended, LIMIT, Running, assert_nobody_at_home, names, signal, wait_for};
use super::transfer::Way;
use super::{Pipes, Remote, assert_exit, at, hash_of, haul, random_file};
use rustix::process::Signal;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What is proved and sent again as a whole.
pub const BLOCK: u64 = 4 << 20;

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    Client,
    Server,
}

/// A source, the directory of the target, and a far end.
pub struct Kept {
    dir: tempfile::TempDir,
    pub pipes: Pipes,
    near: &'static str,
    pub way: Way,
    pub name: OsString,
    pub size: u64,
    pub hash: String,
}

impl Kept {
    /// A file of random bytes, on a file system in memory where there is one.
    pub fn new((near, far): (&'static str, &'static str), way: Way, size: usize) -> Kept {
        Kept::called(OsStr::new("file"), (near, far), way, size)
    }

    /// The same under this name.
    pub fn called(name: &OsStr, (near, far): (&'static str, &'static str), way: Way, size: usize) -> Kept {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir_in(place).unwrap();
        for name in ["from", "to"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let source = dir.path().join("from").join(name);
        random_file(&source, size, 1);
        let hash = hash_of(&source);
        Kept { dir, pipes: Pipes::new(far), near, way, name: name.into(), size: size as u64, hash }
    }

    /// A directory of the test's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn source(&self) -> PathBuf {
        self.dir.path().join("from").join(&self.name)
    }

    /// Where the copy goes to, with what is kept of it.
    pub fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    pub fn target(&self) -> PathBuf {
        self.to().join(&self.name)
    }

    /// `haul copy --json FLAGS..` from the source to the target.
    pub fn command(&self, flags: &[&str]) -> Command {
        self.command_to(&self.pipes, flags)
    }

    /// The same with this far end.
    pub fn command_to(&self, remote: &dyn Remote, flags: &[&str]) -> Command {
        let (source, target) = (self.source(), self.target());
        let mut args: Vec<OsString> = vec!["copy".into(), "--json".into()];
        args.extend(flags.iter().map(OsString::from));
        args.extend(remote.args());
        args.extend(match self.way {
            Way::Up => [source.into_os_string(), at(remote, &target)],
            Way::Down => [at(remote, &source), target.into_os_string()],
            Way::Local => [source.into_os_string(), target.into_os_string()],
        });
        haul(self.near, args)
    }

    /// Starts it, and waits for the far end.
    pub fn start(&self, flags: &[&str]) -> (Running, i32) {
        let _ = fs::remove_file(self.pipes.dir().join("pid"));
        let client = Running::start(&mut self.command(flags));
        assert!(wait_for(LIMIT, || self.pipes.pid().is_some()), "the far end was not started");
        (client, self.pipes.pid().unwrap())
    }

    /// Who writes the file, of these two.
    pub fn receiver(&self, (client, server): (i32, i32)) -> i32 {
        if self.way == Way::Up { server } else { client }
    }

    /// Who reads it.
    pub fn sender(&self, (client, server): (i32, i32)) -> i32 {
        if self.way == Way::Up { client } else { server }
    }

    /// What is kept of an incomplete copy.
    pub fn partial(&self) -> Option<PathBuf> {
        partial_in(&self.to())
    }

    /// How long that is; 0 where there is none.
    pub fn partial_size(&self) -> u64 {
        self.partial().and_then(|path| fs::metadata(path).ok()).map_or(0, |meta| meta.len())
    }

    /// How much of that is the beginning of the source.
    pub fn kept(&self) -> u64 {
        self.partial().map_or(0, |partial| common_prefix(&partial, &self.source()))
    }

    /// Runs until `goal` bytes are there, and kills one end. Again, from the beginning, if the copy was faster than that.
    #[track_caller]
    pub fn killed_at(&self, goal: u64, victim: Victim) -> Ended {
        self.killed(&["-C"], goal, victim)
    }

    /// The same with these flags.
    #[track_caller]
    pub fn killed(&self, flags: &[&str], goal: u64, victim: Victim) -> Ended {
        for _ in 0..20 {
            let (mut client, server) = self.start(flags);
            wait_for(LIMIT, || self.partial_size() >= goal || client.is_over());
            match victim {
                Victim::Client if client.is_over() => {}
                Victim::Client => _ = signal(client.pid(), Signal::KILL),
                Victim::Server => _ = signal(server, Signal::KILL),
            }
            let ended = client.finish();
            assert_nobody_at_home(&self.pipes.home(), LIMIT);
            if !self.target().exists() {
                assert_ne!(ended.status.code(), Some(0), "{ended:?}");
                return ended;
            }
            assert_eq!(hash_of(&self.target()), self.hash, "not what was sent has the final name");
            fs::remove_file(self.target()).unwrap();
        }
        panic!("each of 20 copies was over before it could be killed");
    }

    /// Copies to the end. The file must be right, alone, and complete; returns the summary.
    #[track_caller]
    pub fn completed(&self, flags: &[&str]) -> Value {
        let output = self.command(flags).output().unwrap();
        self.is_complete(&output, &[])
    }

    /// The same of a run that has ended; nothing but `others` may stand beside the file.
    #[track_caller]
    pub fn is_complete(&self, output: &Output, others: &[&OsStr]) -> Value {
        assert_exit(output, 0);
        assert_eq!(hash_of(&self.target()), self.hash, "another content has the final name");
        assert_nobody_at_home(&self.pipes.home(), LIMIT);
        let mut expected: Vec<&OsStr> = [&[self.name.as_os_str()], others].concat();
        expected.sort();
        assert_eq!(names(&self.to()), expected);
        summary(output)
    }
}

/// What stands in `dir` of an incomplete copy: one file at most.
#[track_caller]
pub fn partial_in(dir: &Path) -> Option<PathBuf> {
    let mut partials = names(dir);
    partials.retain(|name| name.to_str().is_some_and(|name| name.starts_with(".haul-") && name.ends_with(".part")));
    assert!(partials.len() <= 1, "{partials:?}");
    partials.pop().map(|name| dir.join(name))
}

/// The summary of a run with --json.
#[track_caller]
pub fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last: Value = serde_json::from_str(text.lines().last().expect("there is no JSON")).unwrap();
    assert_eq!(last["type"], "summary", "{text}");
    last
}

/// Bytes in which two files agree from their beginnings on.
pub fn common_prefix(a: &Path, b: &Path) -> u64 {
    const STEP: usize = 1 << 20;
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let mut equal = 0;
    loop {
        let [ours, theirs] = [&mut a, &mut b].map(|file| {
            let mut bytes = Vec::with_capacity(STEP);
            file.take(STEP as u64).read_to_end(&mut bytes).unwrap();
            bytes
        });
        let same = if ours == theirs {
            ours.len()
        } else {
            ours.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count()
        };
        equal += same as u64;
        if same < STEP {
            return equal;
        }
    }
}
