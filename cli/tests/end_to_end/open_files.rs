//! Few descriptors: fewer files are worked on at a time, and none is lost.

use crate::support::daemon::Listening;
use crate::support::limits::{limit, limited};
use crate::support::processes::{LIMIT, complete, wait_for};
use crate::support::routes::{Route, assert_same_tree, contents_of};
use crate::support::{BACKENDS, Pipes, Remote, at, haul, random_file, trees};
use std::ffi::OsString;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

fn tree(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for number in 0..400 {
        let size = [10, 70_000, 200_000, 600_000][number % 4];
        random_file(&dir.join(format!("{number}")), size, number as u64);
    }
}

#[test]
fn with_few_descriptors_no_file_of_many_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tree");
    tree(&source);
    for (route, flags) in
        Route::all().into_iter().flat_map(|route| [(route.clone(), &["-r"][..]), (route, &["-r", "--sync"])])
    {
        let target = dir.path().join("copy");
        let command = route.command(flags, &[&contents_of(&source)], &target);
        let ended = complete(&mut limited(&["--nofile=40:40"], &command));
        assert!(ended.status.success(), "{route:?}, {flags:?}: {}", ended.stderr);
        assert_same_tree(&target, &source);
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn with_few_descriptors_no_file_of_many_connections_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tree");
    tree(&source);
    for backend in BACKENDS {
        let (pipes, daemon) = (Pipes::new(backend), Listening::start(backend));
        limit(daemon.pid(), &["--nofile=80:"]);
        let target = dir.path().join("copy");
        let source_dir = contents_of(&source).into_os_string();
        for flags in [&["--connections=8"][..], &["--direct=direct", "--connections=8"]] {
            for down in [false, true] {
                let mut args: Vec<OsString> = ["copy", "-r"].iter().chain(flags).map(OsString::from).collect();
                args.extend(pipes.args());
                args.extend(match down {
                    false => [source_dir.clone(), at(&pipes, &target)],
                    true => [at(&pipes, Path::new(&source_dir)), target.clone().into()],
                });
                let ended = complete(&mut limited(&["--nofile=256:256"], &haul(backend, args)));
                assert!(ended.status.success(), "{backend}, {flags:?}, {down}: {}", ended.stderr);
                assert_same_tree(&target, &source);
                fs::remove_dir_all(&target).unwrap();
            }
        }
        let ended = daemon.copy(backend, &["-r", "--connections=8"], source_dir, daemon.at("copy"));
        assert!(ended.status.success(), "{backend}: {}", ended.stderr);
        assert_same_tree(&daemon.root().join("copy"), &source);
        let ended = daemon.copy(backend, &["-r", "--connections=8"], daemon.at("copy/"), target.clone());
        assert!(ended.status.success(), "{backend}: {}", ended.stderr);
        assert_same_tree(&target, &source);
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn a_deep_tree_takes_no_descriptor_for_each_level() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tree");
    trees::deep_tree(&source, 300);
    for route in Route::all() {
        let target = dir.path().join("copy");
        let command = route.command(&["-r"], &[&contents_of(&source)], &target);
        let ended = complete(&mut limited(&["--nofile=40:40"], &command));
        assert!(ended.status.success(), "{route:?}: {}", ended.stderr);
        assert_same_tree(&target, &source);
        trees::let_go(&target);
        fs::remove_dir_all(&target).unwrap();
    }
    trees::let_go(&source);
}

#[test]
fn as_many_descriptors_are_taken_as_may_be_had() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = haul("poll", ["serve", "--listen", "127.0.0.1:0", "--root"]);
    command.arg(dir.path());
    let mut command = limited(&["--nofile=32:1111"], &command);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let limits = || fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap_or_default();
    let raised = wait_for(LIMIT, || {
        let limits = limits();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
        line.split_whitespace().nth(3) == Some("1111")
    });
    let _ = child.kill();
    let _ = child.wait();
    assert!(raised);
}

/// Processor time of a process, in hundredths of a second.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap().split(' ').skip(12).take(2).map(|n| n.parse().unwrap()).collect();
    fields.iter().sum()
}

#[test]
fn a_daemon_without_descriptors_waits_for_one_without_turning_round() {
    for backend in BACKENDS {
        for keyed in [true, false] {
            let daemon = Listening::with(backend, &[], "127.0.0.1:0", keyed);
            let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
            limit(daemon.pid(), &[&format!("--nofile={}:", open + 4)]);
            let crowd: Vec<TcpStream> = (0..12).map(|_| TcpStream::connect(daemon.address).unwrap()).collect();
            std::thread::sleep(Duration::from_millis(500));
            let before = ticks(daemon.pid());
            std::thread::sleep(Duration::from_millis(1500));
            let used = ticks(daemon.pid()) - before;
            assert!(used < 75, "{backend}, {keyed}: {used} of 150 hundredths of a second");
            drop(crowd);
            if keyed {
                limit(daemon.pid(), &["--nofile=256:"]);
                let dir = tempfile::tempdir().unwrap();
                fs::write(dir.path().join("small"), "small").unwrap();
                daemon.copy(backend, &[], dir.path().join("small"), daemon.at("small")).assert_exit(0);
            }
        }
    }
}
