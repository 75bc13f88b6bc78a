//! What is said is what helps: each of these cases was met by somebody who was sent the wrong way by what he read.

use crate::support::daemon::Listening;
use crate::support::processes::{Running, complete, script, wait_for};
use crate::support::{BACKENDS, Pipes, Remote as _, binary, haul, random_file};
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// `haul ls` of a daemon at this address.
fn ask_daemon(backend: &str, address: SocketAddr) -> crate::support::processes::Ended {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    complete(haul("poll", ["keygen"]).arg(&key)).assert_exit(0);
    complete(haul(backend, ["ls", "--key-file"]).arg(&key).arg(format!("haul://{address}/")))
}

#[test]
fn where_nobody_listens_the_question_is_whether_a_haul_does() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for backend in BACKENDS {
        let ended = ask_daemon(backend, nobody);
        ended.assert_exit(10);
        let line = format!("haul: no connection: {nobody}: Connection refused. Is `haul serve` running there?");
        assert_eq!(ended.lines(), [line]);
    }
}

#[test]
fn another_server_at_the_port_is_no_haul_daemon() {
    for (backend, banner) in
        BACKENDS.into_iter().flat_map(|b| ["SSH-2.0-OpenSSH_9.2p1\r\n", "220 mail\r\n"].map(|t| (b, t)))
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(banner.as_bytes()).unwrap();
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        let ended = ask_daemon(backend, address);
        ended.assert_exit(10);
        let line = format!("haul: no connection: {address}: no haul daemon answers there, but something else");
        assert_eq!(ended.lines(), [line]);
        server.join().unwrap();
    }
}

#[test]
fn a_server_told_to_change_nothing_is_no_mount() {
    for backend in BACKENDS {
        let daemon = Listening::with(backend, &["--read-only"], "127.0.0.1:0", true);
        let source = daemon.root().with_file_name("source");
        random_file(&source, 1000, 1);
        let ended = daemon.copy(backend, &[], &source, daemon.at("f"));
        ended.assert_exit(23);
        let line = format!("haul: {}: this server is read-only", daemon.at("f"));
        assert_eq!(ended.lines(), [line]);
    }
}

#[test]
fn a_key_is_made_where_there_is_no_directory_yet() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("new/er/key");
    complete(haul("poll", ["keygen"]).arg(&key)).assert_exit(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&key), mode(key.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn doctor_does_not_promise_copies_that_fail() {
    let bare = Pipes::with_programs("poll", &[]);
    let ended = complete(haul("poll", ["doctor"]).args(bare.args()).arg("far"));
    ended.assert_exit(1);
    assert!(ended.stdout.contains("no haul answers: copies fail"), "{ended:?}");
    assert!(!ended.stdout.contains("copies go through the SFTP server"), "{ended:?}");
}

/// An account whose shell says that it is not to be used, and whose sshd needs that shell for SFTP as well.
#[test]
fn an_account_without_a_shell_gets_one_line() {
    const SAYS: &str = "This account is currently not available.";
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    script(&dir.path().join("bin/ssh"), &format!("#!/bin/sh\necho '{SAYS}'\nexit 1\n"));
    for (backend, words) in BACKENDS.into_iter().flat_map(|b| [["f", "far:f"], ["far:f", "g"]].map(|words| (b, words)))
    {
        fs::write(dir.path().join("f"), "x").unwrap();
        let mut copy = haul(backend, ["copy"]);
        copy.args(words).current_dir(dir.path());
        let ended = complete(copy.env("PATH", format!("{}/bin:/usr/bin:/bin", dir.path().display())));
        ended.assert_exit(5);
        let line = format!(
            "haul: cannot start haul on the remote side: the remote shell printed `{SAYS}`, and no SFTP server answers either"
        );
        assert_eq!(ended.lines(), [line]);
    }
}

#[test]
fn a_directory_that_vanishes_is_a_source_that_vanished() {
    for (backend, (from, to)) in
        BACKENDS.into_iter().flat_map(|b| [("", "far:"), ("far:", ""), ("", "")].map(|way| (b, way)))
    {
        let pipes = Pipes::new(backend);
        // Named by the walk, and gone when it comes there: not in every run.
        let met = (0..30).any(|_| {
            let dir = tempfile::tempdir().unwrap();
            let [source, target] = ["source", "target"].map(|name| dir.path().join(name));
            let subdirs: Vec<_> = (0..3000).map(|number| source.join(format!("{number:04}"))).collect();
            fs::create_dir(&source).unwrap();
            subdirs.iter().for_each(|subdir| fs::create_dir(subdir).unwrap());
            let mut copy = haul(backend, ["copy", "-r"]);
            copy.args(pipes.args())
                .arg(format!("{from}{}/", source.display()))
                .arg(format!("{to}{}", target.display()));
            let mut running = Running::start(&mut copy);
            wait_for(SOON, || running.is_over() || fs::read_dir(&target).is_ok_and(|mut dir| dir.next().is_some()));
            subdirs.iter().rev().for_each(|subdir| fs::remove_dir(subdir).unwrap());
            let ended = running.finish();
            let gone = ended.stderr.contains(": cannot list: No such file or directory");
            ended.assert_exit(if gone { 24 } else { 0 });
            gone
        });
        assert!(met, "{backend}, {from} {to}: the walk was always faster");
    }
}

#[test]
fn directories_nested_too_deep_are_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let deep = "d/".repeat(1030);
    fs::create_dir_all(dir.path().join("tree").join(&deep)).unwrap();
    for (backend, (from, to)) in
        BACKENDS.into_iter().flat_map(|b| [("", "far:"), ("far:", ""), ("", "")].map(|way| (b, way)))
    {
        let pipes = Pipes::new(backend);
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        // A walk holds a descriptor for each level.
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -n 5000 && exec \"$0\" \"$@\""]).arg(binary()).args([
            "--backend",
            backend,
            "copy",
            "-r",
        ]);
        shell.args(pipes.args()).arg(format!("{from}{}/tree/", dir.path().display()));
        let ended = complete(shell.arg(format!("{to}{}", target.path().display())));
        ended.assert_exit(23);
        assert!(
            ended.lines()[0].ends_with("cannot list: Nested deeper than the 1024 directories that are walked"),
            "{ended:?}"
        );
        assert!(!ended.stderr.contains("symbolic links"), "{ended:?}");
    }
}

/// The kernel may say of a disk that fails only that nothing came of it.
#[test]
fn a_disk_that_fails_is_no_file_that_became_shorter() {
    if !crate::options::can_trace() {
        return;
    }
    let pipes = Pipes::new("poll");
    let source = pipes.home().join("source");
    random_file(&source, 3 << 20, 1);
    for (inject, code, words) in [
        (&["sendfile:retval=0", "pread64:error=EIO"][..], 11, "cannot read: Input/output error"),
        (
            &["sendfile:retval=0", "pread64:retval=0"],
            23,
            "cannot read: What can be read of it is not as much as its size says",
        ),
        // Nothing at first, and then all of it.
        (&["sendfile:retval=0:when=1"], 0, "copied 1 file"),
    ] {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-P"]).arg(&source);
        inject.iter().for_each(|inject| _ = strace.arg("-e").arg(format!("inject={inject}")));
        strace.arg(binary()).args(["--backend", "poll", "copy", "--fast"]).args(pipes.args());
        let ended = complete(strace.arg(&source).arg("far:target").env("HAUL_PROBE", pipes.home()));
        ended.assert_exit(code);
        assert!(ended.lines()[0].contains(words), "{inject:?}: {ended:?}");
    }
}

#[test]
fn a_hint_is_given_once() {
    for backend in BACKENDS {
        let dir = tempfile::tempdir().unwrap();
        ["a", "b", "c", "to"].iter().for_each(|name| fs::create_dir(dir.path().join(name)).unwrap());
        let ended = complete(haul(backend, ["copy", "a", "b", "c", "to"]).current_dir(dir.path()));
        ended.assert_exit(23);
        assert_eq!(ended.stderr.matches("left out: it is a directory").count(), 3, "{ended:?}");
        assert_eq!(ended.stderr.matches("hint: ").count(), 1, "{ended:?}");
    }
}

#[test]
fn addresses_of_other_protocols_are_named() {
    for (scheme, rest) in
        ["rsync", "sftp", "ftp", "https"].into_iter().flat_map(|s| ["host/f", "me@host:1/f"].map(|r| (s, r)))
    {
        let operand = format!("{scheme}://{rest}");
        for words in [&["copy", &operand, "."][..], &["copy", "f", &operand], &["ls", &operand]] {
            let ended = complete(&mut haul("poll", words));
            ended.assert_exit(1);
            let line =
                format!("haul: `{operand}`: haul does not speak {scheme}://; write host:path, or ssh://host/path");
            assert_eq!(ended.lines()[0], line);
        }
    }
}

#[test]
fn values_that_scp_would_take_are_told_from_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    for (words, advice) in [
        (&["-P", "2222", "f", "far:g"][..], "the port of ssh is --port"),
        (&["-r", "-P", "22", "far:f", "g"], "the port of ssh is --port"),
        (&["-l", "1000", "f", "far:g"], "there is no limit of bandwidth"),
    ] {
        let ended = complete(haul("poll", ["copy"]).args(words).current_dir(dir.path()));
        ended.assert_exit(1);
        assert!(ended.lines()[0].contains(advice), "{ended:?}");
    }
    fs::write(dir.path().join("2222"), "x").unwrap();
    let ended = complete(haul("poll", ["copy", "-P", "2222", "f", "to/"]).current_dir(dir.path()));
    ended.assert_exit(0);
    assert_eq!(fs::read(dir.path().join("to/2222")).unwrap(), b"x");
}

#[test]
fn what_was_chosen_is_told_once() {
    for (backend, flags) in
        BACKENDS.into_iter().flat_map(|b| [&[][..], &["--direct=direct"], &["--connections=3"]].map(|f| (b, f)))
    {
        let pipes = Pipes::new(backend);
        let text: String = (0..100_000).map(|number| format!("{number}\n")).collect();
        for name in ["f", "far"] {
            fs::write(pipes.home().join(name), &text).unwrap();
        }
        for operands in [["f", "far:up"], ["far:far", "down"]] {
            let mut copy = haul(backend, ["copy", "--stats", "--compress=zstd"]);
            let ended = complete(copy.args(pipes.args()).args(flags).args(operands).current_dir(pipes.home()));
            ended.assert_exit(0);
            assert_eq!(ended.stderr.matches("compression: ").count(), 1, "{flags:?}: {ended:?}");
        }
    }
}
