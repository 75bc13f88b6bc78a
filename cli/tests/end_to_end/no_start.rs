//! A first connection that cannot begin, where others may come: they do not wait for it for ever.

use crate::support::daemon::Listening;
use crate::support::limits::limited;
use crate::support::processes::{Ended, Somebody, complete};
use crate::support::{BACKENDS, Pipes, Remote, at, hash_of, haul, random_file};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Ways on which further connections may come.
const WAYS: [&[&str]; 4] = [&[], &["--direct=auto"], &["--direct=direct"], &["--connections=4"]];

/// Copies of `source` to and from the far end on each of the ways, and to a daemon. Where each of them puts the file.
fn copies(
    backend: &str,
    pipes: &Pipes,
    daemon: &Listening,
    (source, dir): (&Path, &Path),
) -> Vec<(Vec<OsString>, PathBuf)> {
    let mut copies = Vec::new();
    for (number, flags) in WAYS.into_iter().enumerate() {
        let [up, down] = ["up", "down"].map(|name| dir.join(format!("{backend}-{name}-{number}")));
        let begin: Vec<OsString> = ["copy"].iter().chain(flags).map(OsString::from).chain(pipes.args()).collect();
        copies.push(([&begin[..], &[source.into(), at(pipes, &up)]].concat(), up));
        copies.push(([&begin[..], &[at(pipes, source), down.clone().into()]].concat(), down));
    }
    for (name, flags) in [("auto", "--connections=auto"), ("four", "--connections=4")] {
        let key = daemon.key_file().into_os_string();
        let begin = ["copy".into(), flags.into(), "--key-file".into(), key];
        let target = daemon.root().join(name);
        copies.push(([&begin[..], &[source.into(), daemon.at(name).into()]].concat(), target));
    }
    copies
}

#[track_caller]
fn is_an_error(ended: &Ended, target: &Path, what: &str) {
    assert!(ended.status.code().is_some_and(|code| code != 0 && code != 101), "{what}: {ended:?}");
    assert!(ended.stderr.contains(what), "{what}: {ended:?}");
    assert!(!target.exists(), "{ended:?}");
}

#[test]
fn a_backend_that_is_refused_is_an_error_of_every_run() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 1 << 20, 1);
    let (pipes, daemon) = (Pipes::new("poll"), Listening::start("poll"));
    for (args, target) in copies("uring", &pipes, &daemon, (&source, dir.path())) {
        // Too few descriptors for a ring with all that belongs to it, and still enough for pipes to ssh.
        let ended = complete(&mut limited(&["--nofile=9:9"], &haul("uring", args)));
        is_an_error(&ended, &target, "haul: ");
        assert_eq!(ended.lines().iter().filter(|line| line.starts_with("haul: ")).count(), 1, "{ended:?}");
    }
}

#[test]
fn with_next_to_no_descriptors_every_run_ends() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 1 << 20, 1);
    let hash = hash_of(&source);
    for backend in BACKENDS {
        let (pipes, daemon) = (Pipes::new(backend), Listening::start(backend));
        for number in [9, 14] {
            for (args, target) in copies(backend, &pipes, &daemon, (&source, dir.path())) {
                let limit = format!("--nofile={number}:{number}");
                let ended = complete(&mut limited(&[&limit], &haul(backend, args)));
                match ended.status.success() {
                    true => assert_eq!(hash_of(&target), hash),
                    false => is_an_error(&ended, &target, "haul: "),
                }
                let _ = fs::remove_file(&target);
            }
        }
    }
}

/// In a directory that he can neither read nor enter.
fn locked_in(somebody: &Somebody, mode: u32, command: &Command) -> Command {
    let dir = somebody.work().join(format!("locked-{mode:o}"));
    let _ = fs::create_dir(&dir);
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    let mut inside = Command::new(command.get_program());
    inside.args(command.get_args()).current_dir(&dir).stdin(std::process::Stdio::null());
    inside
}

#[test]
fn from_a_directory_that_cannot_be_read_absolute_paths_are_copied_as_ever() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: nobody can be put into a directory that he cannot enter");
        return;
    }
    for backend in BACKENDS {
        let somebody = Somebody::new();
        let (pipes, daemon) = (somebody.pipes(backend), Listening::start(backend));
        let (source, key) = (somebody.work().join("source"), somebody.work().join("key"));
        random_file(&source, 1 << 20, 1);
        fs::copy(daemon.key_file(), &key).unwrap();
        rustix::fs::chown(&key, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
        let hash = hash_of(&source);
        // One can be entered and not read, the other neither.
        for mode in [0o711, 0o700] {
            for (args, target) in copies(backend, &pipes, &daemon, (&source, &somebody.work())) {
                let args: Vec<_> = args
                    .into_iter()
                    .map(|arg| if arg == daemon.key_file() { key.clone().into() } else { arg })
                    .collect();
                let ended = complete(&mut locked_in(&somebody, mode, &somebody.haul(backend, args)));
                ended.assert_exit(0);
                assert_eq!(hash_of(&target), hash);
                fs::remove_file(&target).unwrap();
            }
            let here = somebody.work().join("here");
            let args = ["copy".into(), source.clone().into_os_string(), here.clone().into()];
            complete(&mut locked_in(&somebody, mode, &somebody.haul(backend, args))).assert_exit(0);
            assert_eq!(hash_of(&here), hash);
        }
        // What is named from there cannot be found, and that is all.
        let args = ["copy".into(), source.clone().into_os_string(), "relative".into()];
        let ended = complete(&mut locked_in(&somebody, 0o700, &somebody.haul(backend, args)));
        ended.assert_exit(23);
        assert!(ended.stderr.contains("Permission denied"), "{}", ended.stderr);
    }
}
