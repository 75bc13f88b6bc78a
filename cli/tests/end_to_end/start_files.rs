//! Start files of an account that put another program in the place of the login shell: nobody waits long for an answer that
//! cannot come, and whoever takes long to log in, or to start, is waited for.

use crate::support::processes::{Running, complete, script};
use crate::support::{BACKENDS, Remote as _, SFTP, Sshd, at, haul, random_file, skips};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What no run of these takes on a busy machine that hears of the login, and every one that waits for an answer to its
/// greeting as it would without.
const SOON: Duration = Duration::from_secs(20);

/// An sshd whose logins read a start file with these lines; `None` where login shells read none.
fn with_start_file(backend: &str, lines: &str) -> Option<Sshd> {
    let sshd = Sshd::start(backend)?;
    let files = [".bashrc", ".zshenv"].map(|name| sshd.home().join(name));
    files.iter().for_each(|file| fs::write(file, "exit 7\n").unwrap());
    let mut ssh = Command::new("ssh");
    ssh.args(sshd.args()).arg("far").arg("true").stdin(Stdio::null());
    if ssh.status().unwrap().code() != Some(7) {
        skips::skip("start-files", "the login shell reads no start file", "bash or zsh as the login shell");
        return None;
    }
    files.iter().for_each(|file| fs::write(file, lines).unwrap());
    Some(sshd)
}

fn args(words: &[&str], sshd: &Sshd) -> Vec<OsString> {
    words.iter().map(OsString::from).chain(sshd.args()).collect()
}

/// Reads its whole input before it does anything, as fish does where that is no terminal, and takes none of it for what it
/// is told by ssh.
fn reader(dir: &Path) -> String {
    let reader = dir.join("reader");
    script(&reader, "#!/bin/sh\ncat > /dev/null\nexit 127\n");
    reader.display().to_string()
}

#[test]
fn another_program_in_the_place_of_the_shell_is_told_within_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 1000, 1);
    let silent = "the login is there, and nothing comes of it";
    let echo = "the remote shell sends back what it is sent";
    let reader = reader(dir.path());
    let mut programs = vec![(reader.as_str(), silent), ("/bin/cat", echo), ("sleep 600", silent)];
    if Path::new("/usr/bin/fish").exists() {
        programs.push(("/usr/bin/fish", silent));
    }
    for (number, (program, why)) in programs.into_iter().enumerate() {
        let backend = BACKENDS[number % 2];
        let Some(sshd) = with_start_file(backend, &format!("exec {program}\n")) else { return };
        let target = dir.path().join("target");
        let (up, down) = ([source.clone().into(), at(&sshd, &target)], [at(&sshd, &source), target.clone().into()]);
        let mut runs: Vec<Vec<OsString>> = vec![
            [args(&["copy"], &sshd), up.to_vec()].concat(),
            [args(&["copy", "--direct=auto"], &sshd), down.to_vec()].concat(),
        ];
        if number == 0 {
            runs.push([args(&["copy", "--connections=2"], &sshd), up.to_vec()].concat());
            runs.push([args(&["ls"], &sshd), vec![at(&sshd, dir.path())]].concat());
            runs.push([args(&["hash"], &sshd), vec![at(&sshd, &source)]].concat());
        }
        let all = runs.iter().flat_map(|run| BACKENDS.map(|backend| Running::start(&mut haul(backend, run))));
        for run in all.collect::<Vec<_>>() {
            let ended = run.finish();
            ended.assert_exit(5);
            let said: Vec<&str> = ended.lines().into_iter().filter(|line| line.starts_with("haul: ")).collect();
            assert_eq!(said.len(), 1, "{ended:?}");
            assert!(said[0].starts_with(&format!("haul: cannot start haul on the remote side: {why}")), "{ended:?}");
            assert_eq!(ended.stderr.matches("hint: a start file may do that only").count(), 1, "{ended:?}");
            assert!(ended.took < SOON, "{ended:?}");
            assert!(!target.exists());
        }
    }
}

#[test]
fn doctor_says_what_a_start_file_may_have_done() {
    let Some(sshd) = with_start_file("poll", "exec sleep 600\n") else { return };
    let ended = complete(haul("poll", args(&["doctor"], &sshd)).arg("far:"));
    ended.assert_exit(1);
    assert!(ended.stdout.contains("a start file may run another program (`exec`)"), "{ended:?}");
    assert!(ended.took < SOON, "{ended:?}");
}

#[test]
fn through_a_login_that_was_there_before_it_is_told_as_soon() {
    let dir = tempfile::tempdir().unwrap();
    let Some(sshd) = with_start_file("poll", "") else { return };
    let config = sshd.dir().join("ssh_config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text} ControlPath {}/control\n", dir.path().display())).unwrap();
    let mut master = Command::new("ssh");
    master.args(sshd.args()).args(["-o", "ControlMaster=yes", "-o", "ControlPersist=60", "far", "true"]);
    assert!(master.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    fs::write(sshd.home().join(".bashrc"), "exec sleep 600\n").unwrap();
    fs::write(sshd.home().join(".zshenv"), "exec sleep 600\n").unwrap();
    for backend in BACKENDS {
        let ended = complete(haul(backend, args(&["ls"], &sshd)).arg(at(&sshd, dir.path())));
        // What it says is not known: the process of the shared login holds on to stderr.
        ended.assert_exit(5);
        assert!(ended.took < SOON, "{ended:?}");
    }
    let mut end = Command::new("ssh");
    let _ = end.args(sshd.args()).args(["-O", "exit", "far"]).stderr(Stdio::null()).status();
}

#[test]
fn a_login_that_takes_long_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    for backend in BACKENDS {
        let Some(sshd) = Sshd::bare(backend, SFTP) else { return };
        sshd.install("haul", crate::support::binary());
        let config = sshd.dir().join("ssh_config");
        let text = fs::read_to_string(&config).unwrap();
        // As a person at a password.
        fs::write(&config, format!("Match exec \"sleep 7\"\n{text}")).unwrap();
        let ended = complete(haul(backend, args(&["ls"], &sshd)).arg(at(&sshd, dir.path())));
        ended.assert_exit(0);
    }
}

#[test]
fn start_files_that_take_long_have_the_time_that_the_user_gives() {
    let dir = tempfile::tempdir().unwrap();
    let Some(sshd) = with_start_file("uring", "sleep 7\n") else { return };
    for backend in BACKENDS {
        complete(haul(backend, args(&["ls", "--timeout=60"], &sshd)).arg(at(&sshd, dir.path()))).assert_exit(0);
    }
}
