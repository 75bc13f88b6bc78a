//! What the surroundings of a process decide: variables, and calls that are forbidden to it.

use crate::support::processes::{complete, script};
use crate::support::{BACKENDS, Pipes, Remote, at, binary, haul};
use std::ffi::OsString;
use std::fs;
use std::process::Command;

/// Runs the rest of its arguments where io_uring_enter(2), number 426 on every machine, is refused with EPERM.
const FORBID: &str = r#"
    my $filter = pack("SCCL", 0x20, 0, 0, 0) . pack("SCCL", 0x15, 0, 1, 426)
        . pack("SCCL", 0x06, 0, 0, 0x00050001) . pack("SCCL", 0x06, 0, 0, 0x7fff0000);
    my $program = pack("Sx6P", 4, $filter);
    my $prctl = `uname -m` =~ /^x86_64/ ? 157 : 167;
    syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "no_new_privs: $!";
    syscall($prctl, 22, 2, $program) == 0 or die "seccomp: $!";
    exec { $ARGV[0] } @ARGV or die "exec: $!";
"#;

/// The command behind that filter; `None` where it cannot be had.
fn without_enter(command: &Command) -> Option<Command> {
    let behind = |program: &std::ffi::OsStr| {
        let mut perl = Command::new("perl");
        perl.args(["-e", FORBID, "--"]).arg(program).stdin(std::process::Stdio::null());
        perl
    };
    if !behind("true".as_ref()).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no perl here, or no seccomp");
        return None;
    }
    let mut perl = behind(command.get_program());
    perl.args(command.get_args());
    Some(perl)
}

#[test]
fn where_only_io_uring_enter_is_forbidden_auto_takes_epoll() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::write(&source, "content").unwrap();
    let args = [OsString::from("copy"), "-v".into(), source.clone().into(), target.clone().into()];
    let Some(mut auto) = without_enter(&haul("auto", args.clone())) else { return };
    let ended = complete(&mut auto);
    ended.assert_exit(0);
    assert!(ended.stderr.contains("using epoll: io_uring cannot be used"), "{}", ended.stderr);
    assert_eq!(fs::read(&target).unwrap(), b"content");
    let ended = complete(&mut without_enter(&haul("uring", args)).unwrap());
    assert!(!ended.status.success() && ended.stderr.contains("forbidden"), "{ended:?}");
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    let mut hash = Command::new(binary());
    hash.args(["hash"]).arg(dir.path().join("file")).env("HAUL_BACKEND", "");
    complete(&mut hash).assert_exit(0);
    // The far end reads these.
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let ended = copy_with(&pipes, backend, "HAUL_BACKEND= HAUL_PORT_RANGE= HAUL_BIND=", dir.path());
        ended.assert_exit(0);
    }
}

/// A copy to a far end that has these in its environment.
fn copy_with(pipes: &Pipes, near: &str, variables: &str, dir: &std::path::Path) -> crate::support::processes::Ended {
    let ssh = pipes.dir().join("ssh");
    let text = fs::read_to_string(&ssh).unwrap();
    script(&ssh, &text.replace("exec sh -c", &format!("export {variables}\nexec sh -c")));
    let args = [OsString::from("copy")].into_iter().chain(pipes.args());
    let args = args.chain([dir.join("file").into(), at(pipes, &dir.join("copy"))]);
    complete(&mut haul(near, args))
}

#[test]
fn a_variable_that_makes_no_sense_is_named_at_whichever_end_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    let mut hash = Command::new(binary());
    hash.args(["hash"]).arg(dir.path().join("file")).env("HAUL_BACKEND", "\x1b[31m");
    let ended = complete(&mut hash);
    ended.assert_exit(1);
    let expected = "haul: HAUL_BACKEND in the environment is `\\x1b[31m`, and must be one of auto, uring and poll\n";
    assert_eq!(ended.stderr, expected);
    for (variable, expected) in [
        ("HAUL_BACKEND=ring", "HAUL_BACKEND in the server's environment is `ring`, and must be one of"),
        ("HAUL_PORT_RANGE=5-x", "HAUL_PORT_RANGE in the server's environment is `5-x`, and must be a port"),
        ("HAUL_BIND=here", "HAUL_BIND in the server's environment is `here`, and must be an IP address"),
    ] {
        let pipes = Pipes::new("poll");
        let ended = copy_with(&pipes, "poll", variable, dir.path());
        assert!(!ended.status.success() && ended.stderr.contains(expected), "{variable}: {}", ended.stderr);
        assert!(!dir.path().join("copy").exists());
    }
}
