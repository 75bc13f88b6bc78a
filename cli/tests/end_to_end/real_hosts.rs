//! Hosts as they are: start files that print, helpers that are missing, old, broken or of another machine, accounts that run
//! a program of their own, and hosts that never answer. Each ends in a copy or in one clear line with the right exit code.

use crate::support::processes::{
    self, Ended, LIMIT, Running, assert_nobody_at_home, complete, in_private_mounts, mount_tmpfs, signal,
};
use crate::support::{BACKENDS, Remote, SFTP, Sshd, at, binary, hash_of, haul, litter, random_file};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const INSTALL: &str = "hint: copy this program to a directory on the PATH there, or name it with --remote-path";

/// `haul COMMAND WORDS..` towards this host, with `far:` put before the last word or the one before.
fn ask(sshd: &Sshd, backend: &str, command: &str, words: &[&str]) -> Command {
    let mut haul = haul(backend, [command]);
    haul.args(sshd.args()).args(words);
    // No terminal of whoever runs the tests; what is left of it is found by its home.
    haul.env("HOME", near_home(sshd));
    haul
}

/// A HOME for what the client starts, by which it can be told from what the host runs.
fn near_home(sshd: &Sshd) -> std::path::PathBuf {
    sshd.dir().join("near")
}

/// A file goes there and comes back.
#[track_caller]
fn assert_works(sshd: &Sshd, backend: &str) {
    let (source, there, back) = (sshd.dir().join("source"), sshd.dir().join("there"), sshd.dir().join("back"));
    random_file(&source, 300_000, 1);
    for (from, to) in [(source.as_os_str().into(), at(sshd, &there)), (at(sshd, &there), back.as_os_str().into())] {
        let ended = complete(ask(sshd, backend, "copy", &[]).arg::<std::ffi::OsString>(from).arg(to));
        ended.assert_exit(0);
        assert!(matches!(ended.lines()[..], [line] if line.ends_with("every file verified")), "{ended:?}");
    }
    assert_eq!(hash_of(&source), hash_of(&back));
    for path in [there, back] {
        fs::remove_file(path).unwrap();
    }
    assert_nobody_at_home(&near_home(sshd), LIMIT);
}

/// What is said when a file shall go there, and by which code.
#[track_caller]
fn assert_refused(sshd: &Sshd, backend: &str, code: i32, lines: &[&str]) {
    let source = sshd.dir().join("source");
    random_file(&source, 1000, 1);
    let there = sshd.dir().join("there");
    for (command, first) in [("copy", Some(&source)), ("ls", None)] {
        let mut ask = ask(sshd, backend, command, &[]);
        ask.args(first).arg(at(sshd, &there));
        said(&complete(&mut ask), code, lines);
    }
    assert!(!there.exists() && litter(sshd.dir()).is_empty());
    assert_nobody_at_home(&near_home(sshd), LIMIT);
}

#[track_caller]
fn said(ended: &Ended, code: i32, lines: &[&str]) {
    ended.assert_exit(code);
    assert_eq!(ended.lines(), lines);
}

/// A host for each backend; none where there is no sshd.
fn hosts(config: &str) -> impl Iterator<Item = (&'static str, Sshd)> {
    BACKENDS.into_iter().filter_map(move |backend| Some((backend, Sshd::bare(backend, config)?)))
}

/// The same, with haul installed.
fn hosts_with_haul(config: &str) -> impl Iterator<Item = (&'static str, Sshd)> {
    hosts(config).inspect(|(_, sshd)| sshd.install("haul", binary()))
}

fn write_program(sshd: &Sshd, name: &str, text: &str) {
    processes::script(&sshd.dir().join("bin").join(name), &format!("#!/bin/sh\n{text}\n"));
}

#[test]
fn start_files_that_print_do_not_matter() {
    for text in ["echo Welcome to this host", "printf 'no newline'", "seq 1 5000", "printf '\\000\\000\\000\\201'"] {
        // As start files do, before whatever was asked for; the haul there must not take it for a command of its own.
        let config = format!("ForceCommand {text}; exec sh -c \"$SSH_ORIGINAL_COMMAND\"");
        for (backend, sshd) in hosts_with_haul(&config) {
            assert_works(&sshd, backend);
        }
    }
}

#[test]
fn a_host_that_prints_something_else_is_told_by_what_it_prints() {
    for (backend, sshd) in hosts_with_haul(&format!("ForceCommand echo 'Welcome to this host'; echo bye\n{SFTP}")) {
        let line = "haul: cannot start haul on the remote side: the remote shell printed `Welcome to this host\\nbye`";
        said(&complete(&mut ask(&sshd, backend, "ls", &["far:"])), 5, &[line]);
        let ended = complete(&mut ask(&sshd, backend, "copy", &["-q", "/etc/hostname", "far:/x"]));
        said(&ended, 5, &[&format!("{line}, and no SFTP server answers either")]);
    }
    for (backend, sshd) in hosts_with_haul("ForceCommand exec cat") {
        // It sends back what it gets.
        let ended = complete(&mut ask(&sshd, backend, "ls", &["far:"]));
        ended.assert_exit(5);
        let line = "haul: cannot start haul on the remote side: the remote shell sends back what it is sent, and ";
        assert!(ended.stderr.starts_with(line), "{ended:?}");
    }
}

#[test]
fn a_host_without_haul_gets_files_all_the_same_and_a_hint_for_everything_else() {
    for (backend, sshd) in hosts(SFTP) {
        let missing = "haul: cannot start haul on the remote side: it is not installed there";
        for command in ["ls", "hash"] {
            said(&complete(&mut ask(&sshd, backend, command, &["far:/"])), 5, &[missing, INSTALL]);
        }
        let source = sshd.dir().join("source");
        random_file(&source, 300_000, 1);
        let there = sshd.dir().join("there");
        let ended = complete(ask(&sshd, backend, "copy", &[]).arg(&source).arg(at(&sshd, &there)));
        ended.assert_exit(0);
        let notice = "haul: no haul answers on far (it is not installed there): its SFTP server carries the files, not verified by haul";
        assert!(
            matches!(ended.lines()[..], [first, last] if first == notice && last.ends_with(", not verified by haul"))
        );
        assert_eq!(hash_of(&there), hash_of(&source));
    }
    for (backend, sshd) in hosts("") {
        let mut ask = ask(&sshd, backend, "copy", &["/etc/hostname", "far:/x"]);
        let ended = complete(&mut ask);
        let missing =
            "haul: cannot start haul on the remote side: it is not installed there, and no SFTP server answers either";
        // ssh says something of its own.
        assert!(ended.stderr.ends_with(&format!("{missing}\n{INSTALL}\n")), "{ended:?}");
        ended.assert_exit(5);
    }
}

const UNUSABLE: [&str; 2] = [
    "haul: cannot start haul on the remote side: the program there cannot be run, or is not haul",
    "hint: copy a haul built for that machine to a directory on the PATH there that programs may be run from",
];

#[test]
fn an_account_for_sftp_only_gets_files_too() {
    for (backend, sshd) in hosts_with_haul(&format!("ForceCommand internal-sftp\n{SFTP}")) {
        let (source, there) = (sshd.dir().join("source"), sshd.dir().join("there"));
        random_file(&source, 1000, 1);
        let mut copy = ask(&sshd, backend, "copy", &["-q"]);
        said(&complete(copy.arg(&source).arg(at(&sshd, &there))), 0, &[]);
        assert_eq!(hash_of(&there), hash_of(&source));
        let list = complete(&mut ask(&sshd, backend, "ls", &["far:"]));
        list.assert_exit(5);
        assert!(
            list.stderr.starts_with("haul: cannot start haul on the remote side: the remote shell printed `"),
            "{list:?}"
        );
    }
}

#[test]
fn another_program_of_that_name_is_told() {
    for text in ["echo haulage 3.1", "exit 1", "cat", "echo; echo haul 0.1.0"] {
        for (backend, sshd) in hosts(SFTP) {
            write_program(&sshd, "haul", text);
            assert_refused(&sshd, backend, 5, &UNUSABLE);
        }
    }
}

#[test]
fn a_haul_of_another_time_is_told() {
    let start = "if [ \"$1\" = --version ]; then echo haul 99.1; exit; fi";
    let mismatch =
        "printf '\\063\\000\\000\\000\\203\\056\\000\\000\\000protocol version mismatch: client=1 server=9\\060\\060'";
    let table = [
        (mismatch.replace("\\060\\060", ".."), 2, "haul: handshake: protocol version mismatch: client=1 server=9.."),
        (
            "echo usage: haul".to_string(),
            5,
            "haul: handshake: the peer announced a frame of 1734439797 bytes, more than the protocol's 16 MiB",
        ),
        ("exit 1".to_string(), 5, "haul: handshake: the server closed the connection without an answer"),
    ];
    for (text, code, line) in table {
        for (backend, sshd) in hosts(SFTP) {
            write_program(&sshd, "haul", &format!("{start}\n{text}"));
            assert_refused(&sshd, backend, code, &[line]);
        }
    }
}

#[test]
fn a_haul_for_another_machine_is_told() {
    for (backend, sshd) in hosts(SFTP) {
        let mut program = fs::read(binary()).unwrap();
        // e_machine (elf(5)): SPARC v9.
        program[18..20].copy_from_slice(&43u16.to_le_bytes());
        let path = sshd.dir().join("bin/haul");
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Command::new(&path).output().is_err(), "this machine runs everything");
        assert_refused(&sshd, backend, 5, &UNUSABLE);
        assert!(processes::names(&sshd.home()).is_empty());
    }
}

#[test]
fn a_home_that_is_read_only_or_full_does_not_matter() {
    if !in_private_mounts("a_home_that_is_read_only_or_full_does_not_matter") {
        return;
    }
    for options in ["ro", "size=8k"] {
        for (backend, sshd) in hosts_with_haul(SFTP) {
            let _mounted = mount_tmpfs(&sshd.home(), options);
            assert!(fs::write(sshd.home().join("x"), vec![0; 100_000]).is_err());
            assert_works(&sshd, backend);
        }
    }
}

#[test]
fn a_home_that_programs_cannot_be_run_from_is_told() {
    if !in_private_mounts("a_home_that_programs_cannot_be_run_from_is_told") {
        return;
    }
    for (backend, sshd) in hosts(SFTP) {
        let _mounted = mount_tmpfs(&sshd.home(), "noexec");
        let bin = sshd.home().join(".local/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(binary(), bin.join("haul")).unwrap();
        assert!(Command::new(bin.join("haul")).output().is_err(), "programs can be run from there");
        assert_refused(&sshd, backend, 5, &UNUSABLE);
    }
}

#[test]
fn an_account_that_runs_haul_itself_is_served_by_it() {
    for (backend, sshd) in hosts_with_haul("ForceCommand haul serve --root /") {
        assert_works(&sshd, backend);
    }
    for (backend, sshd) in hosts_with_haul("ForceCommand haul serve") {
        fs::write(sshd.home().join("f"), "content").unwrap();
        let target = sshd.dir().join("back");
        let ended = complete(ask(&sshd, backend, "copy", &["-q", "far:f"]).arg(&target));
        said(&ended, 0, &[]);
        assert_eq!(fs::read_to_string(&target).unwrap(), "content");
    }
    for (backend, sshd) in hosts_with_haul("ForceCommand haul serve --root {d}/home") {
        let secret = sshd.dir().join("secret");
        fs::write(&secret, "secret").unwrap();
        let ended = complete(ask(&sshd, backend, "copy", &[]).arg(at(&sshd, &secret)).arg(sshd.dir().join("back")));
        said(&ended, 23, &[&format!("haul: far:{}: cannot stat: Path escapes server root", secret.display())]);
    }
}

#[test]
fn an_account_that_runs_a_base_server_is_greeted_as_one() {
    // Called so it says nothing of its own, as real ones: no start line, no word before Hello.
    let config = "ForceCommand unset SSH_ORIGINAL_COMMAND; exec bcmr serve --root /";
    for (backend, sshd) in hosts(config) {
        sshd.install("bcmr", binary());
        assert_works(&sshd, backend);
    }
    // One that refuses version 1 is dialled again with version 2.
    let refusing = "ForceCommand unset SSH_ORIGINAL_COMMAND; if mkdir {d}/refused 2>/dev/null; then \
                    head -c 7 > /dev/null; printf '\\061\\000\\000\\000\\203\\054\\000\\000\\000'; \
                    printf 'protocol version mismatch: client=1 server=2'; exit 0; fi; exec bcmr serve --root /";
    for (backend, sshd) in hosts(refusing) {
        sshd.install("bcmr", binary());
        assert_works(&sshd, backend);
        assert!(sshd.dir().join("refused").exists());
    }
}

#[test]
fn a_host_that_never_answers_is_given_up_and_nothing_is_left_running() {
    let table = [
        ("", "haul: the remote side did not answer in time"),
        ("echo Welcome; ", "haul: the remote side did not answer in time: the remote shell printed `Welcome`"),
    ];
    for (first, line) in table {
        // Far longer than the test may take: it ends because it is given up.
        let config = format!("ForceCommand {first}echo $$ > {{d}}/pid; exec sleep 1000");
        for (backend, sshd) in hosts_with_haul(&config) {
            // Where a login takes longer than the limit nothing is there to be left running: once more, with a longer one.
            let pid = [1_500, 6_000, 24_000].into_iter().find_map(|limit| {
                let mut ask = ask(&sshd, backend, "ls", &["far:"]);
                let ended = Running::start(ask.env("HAUL_TIMEOUTS_MS", format!("200,{limit},{limit}"))).finish();
                let pid = fs::read_to_string(sshd.dir().join("pid")).ok().filter(|pid| pid.ends_with('\n'))?;
                said(&ended, 35, &[line]);
                assert_nobody_at_home(&near_home(&sshd), LIMIT);
                Some(pid)
            });
            let pid = pid.expect("sshd has started what the client waits for");
            signal(pid.trim().parse().unwrap(), rustix::process::Signal::KILL);
        }
    }
}

#[test]
fn a_host_that_allows_one_session_only_is_enough() {
    for (backend, sshd) in hosts_with_haul(&format!("MaxSessions 1\n{SFTP}")) {
        assert_works(&sshd, backend);
    }
}

#[test]
fn a_helper_that_is_slow_to_start_still_speaks_all_that_it_can() {
    for (backend, sshd) in hosts_with_haul("ForceCommand sleep 2; exec sh -c \"$SSH_ORIGINAL_COMMAND\"") {
        // A time in nanoseconds is what only two hauls can tell each other.
        let source = sshd.dir().join("source");
        fs::write(&source, "x").unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
        fs::File::options().write(true).open(&source).unwrap().set_modified(time).unwrap();
        let there = sshd.dir().join("there");
        let mut ask = ask(&sshd, backend, "copy", &["-q"]);
        ask.arg(&source).arg(at(&sshd, &there)).env("HAUL_TIMEOUTS_MS", "200,30000,30000");
        said(&complete(&mut ask), 0, &[]);
        assert_eq!(fs::metadata(&there).unwrap().modified().unwrap(), time);
    }
}

#[test]
fn without_io_uring_everything_goes_the_other_way_and_says_why() {
    if !Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success()) {
        crate::support::skips::skip("strace", "system calls cannot be watched here", "strace, and leave to trace");
        return;
    }
    for (errno, words) in [("EPERM", "it is "), ("ENOSYS", "the kernel has no io_uring")] {
        let pipes = crate::support::Pipes::new("auto");
        let tree = pipes.dir().join("tree");
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        random_file(&tree.join("large"), 3_000_000, 1);
        random_file(&tree.join("deep/er/small"), 1000, 2);
        let (log, there, back) = (pipes.dir().join("log"), pipes.dir().join("there"), pipes.dir().join("back"));
        for (from, to) in
            [(tree.clone().into(), at(&pipes, &there)), (at(&pipes, &there.join("tree")), back.clone().into())]
        {
            let mut traced = Command::new("strace");
            traced.args(["-f", "-qq", "-e", "trace=io_uring_setup", "-e"]);
            traced.arg(format!("inject=io_uring_setup:error={errno}")).arg("-o").arg(&log);
            traced.arg(binary()).args(["--backend", "auto", "copy", "-rv"]).args(pipes.args());
            let ended = complete(traced.arg::<std::ffi::OsString>(from).arg(to));
            ended.assert_exit(0);
            let why = format!("haul: using epoll: io_uring cannot be used: io_uring is not available: {words}");
            assert!(ended.lines().iter().any(|line| line.starts_with(&why)), "{ended:?}");
        }
        // Here and there.
        let refused = fs::read_to_string(&log).unwrap();
        assert!(
            refused.lines().filter(|line| line.contains(errno) && line.contains("INJECTED")).count() >= 2,
            "{refused}"
        );
        crate::support::routes::assert_same_tree(&there.join("tree"), &tree);
        crate::support::routes::assert_same_tree(&back.join("tree"), &tree);
    }
}

#[test]
fn mixed_paths_towards_a_base_peer_are_a_usage_error_before_anything_happens() {
    for backend in BACKENDS {
        let pipes = crate::support::Pipes::with_programs(backend, &[("bcmr", binary())]);
        fs::write(pipes.home().join("f"), "x").unwrap();
        let target = pipes.dir().join("target");
        let absolute = format!("far:{}", pipes.home().join("f").display());
        let run = |sources: &[&str]| {
            let mut copy = haul(backend, ["copy", "-q"]);
            complete(copy.args(pipes.args()).args(sources).arg(&target))
        };
        let line =
            "haul: cannot do this with a bcmr peer: it takes absolute paths or relative ones, not both in one run";
        said(&run(&["far:f", &absolute]), 1, &[line]);
        assert!(!target.exists());
        for source in ["far:f", &absolute] {
            said(&run(&[source]), 0, &[]);
            fs::remove_file(&target).unwrap();
        }
    }
}

/// Where haul is missing and the remote shell is the user's own, there is nothing to fall back to.
#[test]
fn a_remote_shell_of_the_users_own_is_not_asked_for_sftp() {
    for backend in BACKENDS {
        let pipes = crate::support::Pipes::with_programs(backend, &[]);
        let mut copy = haul(backend, ["copy"]);
        let ended = complete(copy.args(pipes.args()).args(["/etc/hostname", "far:x"]));
        said(&ended, 5, &["haul: cannot start haul on the remote side: it is not installed there", INSTALL]);
        assert!(!Path::new(&pipes.home().join("x")).exists());
    }
}
