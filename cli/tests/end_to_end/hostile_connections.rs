//! Further connections whose servers are not what the first one was: silent, babbling, gone at any moment, of another
//! dialect, or with content that is not the file's. Another connection carries their files, or the run says what is wrong.

use crate::support::frames::{FULL, RESUMING, attributes, blake3_of, bytes_of, data};
use crate::support::processes::{self, Ended, LIMIT, Running, assert_nobody_at_home};
use crate::support::routes::assert_same_tree;
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Pipes, Remote, at, hash_of, haul, random_file, trees};
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame, Kind, Preserve};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const FILES: usize = 300;
/// Of every file, so that an answer made in advance fits whichever is asked for.
const SIZE: usize = 128 * 1024;
const NOTICE: &str = "haul: a further connection is not used: ";

/// A stand-in for ssh whose first connection is the real thing; what answers on all others is a script in a shell.
struct Others(Pipes);

impl Others {
    /// `said` are files with what they say, by name; `script` is what is done behind the start line.
    fn new(backend: &str, said: &[(&str, Vec<u8>)], script: &str) -> Others {
        let pipes = Pipes::new(backend);
        let dir = pipes.dir().display().to_string();
        for (name, bytes) in said {
            fs::write(pipes.dir().join(name), bytes).unwrap();
        }
        let text = format!(
            "#!/bin/sh\nmkdir '{dir}/taken' 2>/dev/null && exec '{dir}/ssh' \"$@\"\nexport HOME='{dir}/home'\ncd '{dir}'\n\
             nonce=$(echo \"$*\" | grep -o 'haul-[0-9a-f]\\{{32\\}}')\n{script}\n"
        );
        processes::script(&pipes.dir().join("others"), &text);
        Others(pipes)
    }
}

impl Remote for Others {
    fn args(&self) -> Vec<OsString> {
        vec!["-e".into(), self.0.dir().join("others").into()]
    }

    fn host(&self) -> String {
        self.0.host()
    }

    fn home(&self) -> PathBuf {
        self.0.home()
    }
}

/// The start line, and Hello taken.
const GREETED: &str = "echo \"$nonce haul 0.1.0\"; head -c 11 >/dev/null";

fn welcome(dialect: Dialect, caps: Caps) -> Vec<u8> {
    let ext = (dialect.ext != Ext::NONE).then_some(dialect.ext);
    bytes_of(&Frame::Welcome { version: dialect.version, caps, ext }, Dialect::BASE)
}

fn tree(dir: &Path) {
    for number in 0..FILES {
        let parent = dir.join(format!("dir-{}", number % 7));
        fs::create_dir_all(&parent).unwrap();
        random_file(&parent.join(format!("file-{number}")), SIZE, number as u64);
    }
}

/// Source and target, and what a copy between them over four connections ended with.
struct Scene {
    source: PathBuf,
    target: PathBuf,
    remote: Others,
    ended: Ended,
}

impl Scene {
    fn run(dir: &Path, backend: &str, way: Way, remote: Others) -> Scene {
        let (source, target) = (dir.join("source"), dir.join("target"));
        let mut args: Vec<OsString> = ["copy", "-rT", "--connections", "4"].map(OsString::from).into();
        args.extend(remote.args());
        args.extend(match way {
            Way::Up => [source.clone().into(), at(&remote, &target)],
            _ => [at(&remote, &source), target.clone().into()],
        });
        // No more than two seconds of silence, login and handshake, four of a stall, three without an answer.
        let mut command = haul(backend, args);
        let ended = Running::start(command.env("HAUL_TIMEOUTS_MS", "2000,2000,2000,4000,3000")).finish();
        Scene { source, target, remote, ended }
    }

    /// Fails unless everything was carried by somebody, and no more was said than that some connections were not used.
    #[track_caller]
    fn assert_carried(&self) {
        self.ended.assert_exit(0);
        assert_same_tree(&self.target, &self.source);
        let (notices, others): (Vec<_>, Vec<_>) =
            self.ended.lines().into_iter().partition(|line| line.starts_with(NOTICE));
        assert!(notices.len() <= 3 && others.len() == 1, "{:?}", self.ended);
        assert!(others[0].ends_with("every file verified"), "{:?}", self.ended);
        self.clean_up();
    }

    /// Fails unless whatever has a name is right. Returns the number of files.
    #[track_caller]
    fn arrived(&self) -> usize {
        let names = (0..FILES).map(|number| format!("dir-{}/file-{number}", number % 7));
        let there: Vec<String> = names.filter(|name| self.target.join(name).exists()).collect();
        for name in &there {
            assert_eq!(hash_of(&self.target.join(name)), hash_of(&self.source.join(name)), "{name}");
        }
        there.len()
    }

    #[track_caller]
    fn clean_up(&self) {
        assert_nobody_at_home(&self.remote.home(), LIMIT);
        fs::remove_dir_all(&self.target).unwrap();
    }
}

fn ways() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

#[test]
fn others_that_stop_at_any_moment_cost_no_file() {
    let dir = trees::scratch();
    tree(&dir.path().join("source"));
    let meta = Frame::Meta { attributes: attributes(Kind::Regular, 5), preserve: Preserve::default() };
    let said = [
        ("welcome", welcome(RESUMING, Caps::PUT_OFFSET)),
        ("half", welcome(RESUMING, Caps::PUT_OFFSET)[..6].to_vec()),
        ("meta", bytes_of(&meta, FULL)),
        ("content", data(&[7; SIZE])[..SIZE / 2].to_vec()),
    ];
    let ends = [
        // Silent before and behind the start line.
        "exec cat >/dev/null",
        "echo \"$nonce haul 0.1.0\"; exec cat >/dev/null",
        "echo \"$nonce haul 0.1.0\"; exit",
        "cat half; exit",
        "cat half; exec cat >/dev/null",
        "cat welcome; exit",
        "cat welcome; head -c 9 >/dev/null; exit",
        "cat welcome; head -c 1000 >/dev/null; exit 1",
        "cat welcome; head -c 100000 >/dev/null; exit",
        "cat welcome; head -c 9 >/dev/null; cat meta; exit",
        "cat welcome; head -c 9 >/dev/null; cat meta content; exit",
        "cat welcome; head -c 9 >/dev/null; cat meta; head -c 100000 /dev/urandom",
        "cat welcome; head -c 100000 /dev/urandom",
        // Silent from the first request on, or inside a frame.
        "cat welcome; exec cat >/dev/null",
        "cat welcome; head -c 9 >/dev/null; cat meta content; exec cat >/dev/null",
    ];
    for ((backend, way), end) in ways().flat_map(|way| ends.map(|end| (way, end))) {
        eprintln!("{backend}, {way:?}: {end}");
        let greeted = if end.starts_with("cat") { GREETED } else { ":" };
        let remote = Others::new(backend, &said, &format!("{greeted}\n{end}"));
        Scene::run(dir.path(), backend, way, remote).assert_carried();
    }
}

#[test]
fn others_that_refuse_or_say_something_else_cost_no_file() {
    let dir = trees::scratch();
    tree(&dir.path().join("source"));
    let error = |text: &str| bytes_of(&Frame::Error { message: text.into(), code: ErrorCode(0) }, Dialect::BASE);
    let table = [
        error("protocol version mismatch: client=1 server=9"),
        error("protocol version mismatch: client=1 server=2"),
        error("not today"),
        bytes_of(&Frame::Ok { hash: None }, Dialect::BASE),
        data(b"surprise"),
        [welcome(RESUMING, Caps::NONE), welcome(RESUMING, Caps::NONE)].concat(),
        [welcome(RESUMING, Caps::NONE), data(b"surprise")].concat(),
        vec![0; 4],
        vec![0xff; 4],
        b"Welcome to this machine\n".repeat(9),
    ];
    for ((backend, way), said) in ways().flat_map(|way| table.iter().map(move |said| (way, said.clone()))) {
        eprintln!("{backend}, {way:?}: {said:?}");
        let remote = Others::new(backend, &[("said", said)], &format!("{GREETED}\ncat said; exec cat >/dev/null"));
        Scene::run(dir.path(), backend, way, remote).assert_carried();
    }
}

#[test]
fn others_of_another_dialect_are_spoken_to_in_theirs() {
    let dir = trees::scratch();
    tree(&dir.path().join("source"));
    for (backend, way) in ways() {
        // bcmr of both versions in place of haul; it is haul by another name.
        for version in ["0.6.3", "0.7.2"] {
            let bcmr = |remote: &Others| {
                std::os::unix::fs::symlink(crate::support::binary(), remote.0.dir().join("bcmr")).unwrap();
            };
            let script = format!("echo \"$nonce bcmr {version}\"; HAUL_BACKEND={backend} exec ./bcmr serve --root /");
            let remote = Others::new(backend, &[], &script);
            bcmr(&remote);
            let scene = Scene::run(dir.path(), backend, way, remote);
            scene.ended.assert_exit(0);
            // The base protocol carries no times.
            assert_eq!(scene.arrived(), FILES);
            scene.clean_up();
        }
    }
}

#[test]
fn content_of_others_that_is_not_what_they_hash_gets_no_name() {
    let dir = trees::scratch();
    tree(&dir.path().join("source"));
    for backend in BACKENDS {
        for dialect in [Dialect::BASE, RESUMING] {
            let size = SIZE as u64;
            let attributes = attributes(Kind::Regular, size);
            let meta = bytes_of(&Frame::Meta { attributes, preserve: Preserve::default() }, RESUMING);
            let meta = if dialect == RESUMING { meta } else { Vec::new() };
            let ok = bytes_of(&Frame::Ok { hash: Some(blake3_of(b"other")) }, dialect);
            let reply = [&meta[..], &data(&[7; SIZE]), &ok].concat();
            let said = [("welcome", welcome(dialect, Caps::PUT_OFFSET)), ("reply", reply)];
            let script = format!("{GREETED}\ncat welcome; head -c 20 >/dev/null; cat reply; exec cat >/dev/null");
            let remote = Others::new(backend, &said, &script);
            let scene = Scene::run(dir.path(), backend, Way::Down, remote);
            assert!(matches!(scene.ended.status.code(), Some(0 | 23)), "{:?}", scene.ended);
            let failed = scene.ended.stderr.matches("Content does not match its hash").count();
            assert_eq!(scene.arrived(), FILES - failed, "{:?}", scene.ended);
            scene.clean_up();
        }
    }
}
