//! Copies over several connections: all files arrive, all connections carry some, and one that breaks or never comes about
//! costs no file.

use crate::support::interop::raw;
use crate::support::interop::raw::kind;
use crate::support::kept::summary;
use crate::support::processes::{
    self, LIMIT, Running, Somebody, assert_nobody_at_home, at_home, complete, names, signal, wait_for,
};
use crate::support::record::Record;
use crate::support::routes::{assert_same_tree, finish, json_lines, of_type};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Pipes, Remote, Sshd, assert_exit, at, hash_of, haul, random_file, trees};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const FILES: usize = 500;
const KIB: usize = 1024;
const NOTICE: &str = "haul: a further connection is not used: ";

/// Both backends, both ways.
fn ways() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

/// `FILES` files in a few directories, of `size` bytes or somewhat more.
fn tree(dir: &Path, size: usize) {
    for number in 0..FILES {
        let parent = dir.join(format!("dir-{}", number % 7)).join(format!("{}", number % 3));
        fs::create_dir_all(&parent).unwrap();
        random_file(&parent.join(format!("file-{number}")), size + number * 7, number as u64);
    }
}

/// `haul copy FLAGS..` of the directory `source` to `target`, where nothing is.
fn copy(backend: &str, remote: &dyn Remote, way: Way, flags: &[&str], source: &Path, target: &Path) -> Command {
    let mut args: Vec<OsString> = vec!["copy".into(), "-rT".into()];
    args.extend(flags.iter().map(OsString::from));
    args.extend(remote.args());
    args.extend(match way {
        Way::Up => [source.into(), at(remote, target)],
        Way::Down => [at(remote, source), target.into()],
        Way::Local => [source.into(), target.into()],
    });
    haul(backend, args)
}

/// The names of the sources in the order in which they are told.
fn sources(output: &Output) -> Vec<String> {
    let lines = json_lines(output);
    of_type(&lines, "file").into_iter().map(|line| line["source"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn four_connections_tell_their_files_in_the_order_of_one() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    tree(&source, 2000);
    for (near, way) in ways() {
        for far in BACKENDS {
            let pipes = Pipes::new(far);
            let told = ["1", "4"].map(|number| {
                let flags = ["--json", "--connections", number];
                let output = finish(copy(near, &pipes, way, &flags, &source, &target));
                assert_exit(&output, 0);
                assert_nobody_at_home(&pipes.home(), LIMIT);
                assert_same_tree(&target, &source);
                fs::remove_dir_all(&target).unwrap();
                assert_eq!(summary(&output)["files"], FILES);
                sources(&output)
            });
            assert_eq!(told[0].len(), FILES);
            assert_eq!(told[0], told[1], "{near}, {far}, {way:?}");
        }
    }
}

#[test]
fn four_connections_through_sshd_bring_everything() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    tree(&source, 3000);
    for backend in BACKENDS {
        let Some(sshd) = Sshd::start(backend) else { return };
        for way in [Way::Up, Way::Down] {
            let ended = complete(&mut copy(backend, &sshd, way, &["--connections", "4"], &source, &target));
            ended.assert_exit(0);
            assert_eq!(ended.lines().len(), 1, "{ended:?}");
            assert_same_tree(&target, &source);
            fs::remove_dir_all(&target).unwrap();
        }
    }
}

#[test]
fn a_host_that_refuses_some_logins_gets_everything_over_the_others() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    tree(&source, 3000);
    for backend in BACKENDS {
        let Some(sshd) = Sshd::bare(backend, "MaxStartups 3:100:3") else { return };
        sshd.install("haul", crate::support::binary());
        for way in [Way::Up, Way::Down] {
            let ended = complete(&mut copy(backend, &sshd, way, &["--connections", "8"], &source, &target));
            ended.assert_exit(0);
            let own = ended.lines().into_iter().filter(|line| line.starts_with("haul: "));
            own.for_each(|line| assert!(line.starts_with(NOTICE), "{ended:?}"));
            assert_same_tree(&target, &source);
            fs::remove_dir_all(&target).unwrap();
        }
    }
}

#[test]
fn each_of_four_connections_carries_files() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    tree(&source, 256 * KIB);
    for (backend, way) in ways() {
        let Record { pipes, wire } = Record::new(backend, "");
        // A machine that is busy may let one of them come too late.
        let all = (0..10).any(|_| {
            wire.forget();
            assert_exit(&finish(copy(backend, &pipes, way, &["--connections", "4"], &source, &target)), 0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_same_tree(&target, &source);
            fs::remove_dir_all(&target).unwrap();
            let asked = if way == Way::Up { kind::PUT } else { kind::GET };
            let files: Vec<usize> = wire.sessions().iter().map(|session| frames(&session.up(), asked)).collect();
            eprintln!("{backend}, {way:?}: {files:?}");
            assert_eq!(files.iter().sum::<usize>(), FILES, "each file once");
            files.len() == 4 && files.iter().all(|&files| files > 0)
        });
        assert!(all, "one of four connections never carries anything");
    }
}

#[test]
fn fewer_files_than_one_connection_may_ask_for_are_shared_all_the_same() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir(&source).unwrap();
    for number in 0..60 {
        random_file(&source.join(format!("file-{number}")), 1024 * KIB + number * 7, number as u64);
    }
    for (backend, way) in ways() {
        let Record { pipes, wire } = Record::new(backend, "");
        // A machine that is busy may let the others come too late.
        let shared = (0..5).any(|_| {
            wire.forget();
            assert_exit(&finish(copy(backend, &pipes, way, &["--connections", "3"], &source, &target)), 0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_same_tree(&target, &source);
            fs::remove_dir_all(&target).unwrap();
            let asked = if way == Way::Up { kind::PUT } else { kind::GET };
            let files: Vec<usize> = wire.sessions().iter().map(|session| frames(&session.up(), asked)).collect();
            eprintln!("{backend}, {way:?}: {files:?}");
            files.iter().filter(|&&files| files > 0).count() > 1
        });
        assert!(shared, "{backend}, {way:?}: the first connection takes everything");
    }
}

/// Frames of this type in what a client has sent.
fn frames(stream: &[u8], kind: u8) -> usize {
    raw::split(stream).unwrap().iter().filter(|frame| frame.kind == kind).count()
}

#[test]
fn a_connection_killed_in_the_middle_costs_a_notice_and_no_file() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    tree(&source, 256 * KIB);
    // Up, the servers of all are one process (gathered.rs).
    for (backend, way) in ways().filter(|&(_, way)| way == Way::Down) {
        let hit = (0..20).any(|_| {
            let pipes = Pipes::new(backend);
            let mut client = Running::start(&mut copy(backend, &pipes, way, &["--connections", "4"], &source, &target));
            assert!(wait_for(LIMIT, || pipes.pid().is_some() || client.is_over()));
            let first = pipes.pid();
            let further = || -> Vec<i32> {
                at_home(&pipes.home()).into_iter().filter(|&pid| Some(pid) != first && is_server(pid)).collect()
            };
            wait_for(LIMIT, || further().len() == 3 && arrived(&target) > FILES / 20 || client.is_over());
            let victim = further().pop().filter(|_| !client.is_over());
            let killed = victim.is_some_and(|pid| signal(pid, Signal::KILL));
            let ended = client.finish();
            ended.assert_exit(0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_same_tree(&target, &source);
            fs::remove_dir_all(&target).unwrap();
            let notices = ended.lines().into_iter().filter(|line| line.starts_with(NOTICE)).count();
            assert_eq!(ended.lines().len(), notices + 1, "{ended:?}");
            assert!(notices <= usize::from(killed), "{ended:?}");
            killed && notices == 1
        });
        assert!(hit, "{backend}, {way:?}: no connection was hit midway");
    }
}

/// A process that has become the server.
fn is_server(pid: i32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|&byte| byte == 0).nth(1) == Some(b"serve")
}

/// Files so far below a directory that is being made.
fn arrived(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|entry| if entry.path().is_dir() { arrived(&entry.path()) } else { 1 }).sum()
}

/// A stand-in for ssh that does something else for every connection but the first.
struct Once(Pipes);

impl Once {
    fn or(backend: &str, otherwise: &str) -> Once {
        let pipes = Pipes::new(backend);
        let text = format!(
            "#!/bin/sh\nmkdir '{0}/taken' 2>/dev/null && exec '{0}/ssh' \"$@\"\nexport HOME='{0}/home'\n{otherwise}\n",
            pipes.dir().display()
        );
        processes::script(&pipes.dir().join("once"), &text);
        Once(pipes)
    }
}

impl Remote for Once {
    fn args(&self) -> Vec<OsString> {
        vec!["-e".into(), self.0.dir().join("once").into()]
    }

    fn host(&self) -> String {
        self.0.host()
    }

    fn home(&self) -> PathBuf {
        self.0.home()
    }
}

#[test]
fn connections_that_do_not_come_about_are_notices() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    tree(&source, 20 * KIB);
    for (backend, way) in ways() {
        for otherwise in ["echo refused >&2; exit 255", "exit 0", "echo Welcome; exit 1", "exec sleep 1000"] {
            let once = Once::or(backend, otherwise);
            let ended = complete(&mut copy(backend, &once, way, &["--connections", "4"], &source, &target));
            ended.assert_exit(0);
            assert_nobody_at_home(&once.home(), LIMIT);
            assert_same_tree(&target, &source);
            fs::remove_dir_all(&target).unwrap();
            let own = ended.lines().into_iter().filter(|line| *line != "refused");
            let (notices, others): (Vec<_>, Vec<_>) = own.partition(|line| line.starts_with(NOTICE));
            // Those that were still at it when everything was done have nothing to say.
            assert!(notices.len() <= 3 && others.len() == 1, "{otherwise}: {ended:?}");
            assert!(others[0].ends_with("every file verified"), "{ended:?}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_fails_alone() {
    let nobody = Somebody::new();
    let (source, target) = (nobody.work().join("source"), nobody.work().join("target"));
    tree(&source, 1000);
    let unreadable = source.join("dir-3/1/file-31");
    trees::set_mode(&unreadable, 0);
    nobody.assert_refused("cat", &[unreadable.as_os_str()]);
    for (backend, way) in ways() {
        let pipes = nobody.pipes(backend);
        let command = copy(backend, &pipes, way, &["--json", "--connections", "4"], &source, &target);
        let ended = complete(&mut nobody.haul(backend, command.get_args().skip(2)));
        ended.assert_exit(23);
        let [line] = ended.lines()[..] else { panic!("{ended:?}") };
        assert!(line.contains("dir-3/1/file-31: ") && line.ends_with("Permission denied"), "{line}");
        assert_nobody_at_home(&pipes.home(), LIMIT);
        assert_eq!(arrived(&target), FILES - 1);
        assert!(!target.join("dir-3/1/file-31").exists());
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn one_big_file_and_a_tree_that_is_there_take_several_connections_as_well() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir(&source).unwrap();
    random_file(&source.join("big"), 40 << 20, 1);
    for (backend, way) in ways() {
        let pipes = Pipes::new(backend);
        assert_exit(&finish(copy(backend, &pipes, way, &["--connections", "4"], &source, &target)), 0);
        assert_same_tree(&target, &source);
        let file = dir.path().join("file");
        assert_exit(&finish(copy(backend, &pipes, way, &["--connections=4"], &source.join("big"), &file)), 0);
        assert_eq!(hash_of(&file), hash_of(&source.join("big")));
        fs::write(source.join("new"), "new").unwrap();
        let again = finish(copy(backend, &pipes, way, &["-C", "--json", "--connections", "4"], &source, &target));
        assert_exit(&again, 0);
        let summary = summary(&again);
        assert_eq!((&summary["files"], &summary["unchanged"]), (&1.into(), &1.into()), "{backend}, {way:?}");
        assert_same_tree(&target, &source);
        assert_nobody_at_home(&pipes.home(), LIMIT);
        fs::remove_file(source.join("new")).unwrap();
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn a_stop_ends_all_connections() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    tree(&source, 256 * KIB);
    for (backend, way) in ways() {
        let pipes = Pipes::new(backend);
        // On a machine that is busy a copy may be over before it is looked at.
        let stopped = (0..20).find_map(|_| {
            let _ = fs::remove_dir_all(&target);
            let mut copy = copy(backend, &pipes, way, &["--connections", "4"], &source, &target);
            let mut client = Running::start(&mut copy);
            wait_for(LIMIT, || arrived(&target) > FILES / 20 || client.is_over());
            signal(client.pid(), Signal::INT);
            let ended = client.finish();
            assert_nobody_at_home(&pipes.home(), Duration::from_secs(5));
            (!ended.status.success()).then_some(ended)
        });
        let ended = stopped.expect("one of twenty copies is stopped midway");
        ended.assert_exit(20);
        assert!(matches!(ended.lines()[..], [line] if line.starts_with("haul: interrupted at ")), "{ended:?}");
        // What has a name is whole.
        let mut whole = 0;
        for (number, parent) in (0..FILES).map(|number| (number, format!("dir-{}/{}", number % 7, number % 3))) {
            let name = Path::new(&parent).join(format!("file-{number}"));
            if target.join(&name).exists() {
                assert_eq!(hash_of(&target.join(&name)), hash_of(&source.join(&name)));
                whole += 1;
            }
        }
        assert_eq!(whole, arrived(&target), "there is something that was not asked for: {:?}", names(&target));
        fs::remove_dir_all(&target).unwrap();
    }
}
