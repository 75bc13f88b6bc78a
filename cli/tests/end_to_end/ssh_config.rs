//! What scp survives: a configuration of ssh that is made for a person at a terminal, and login shells with less rights.

use crate::support::processes::{complete, script};
use crate::support::{BACKENDS, Pipes, Remote, SFTP, Sshd, at, binary, hash_of, haul, random_file};
use std::ffi::OsString;
use std::fs;

#[test]
fn a_configuration_for_people_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 300_000, 1);
    for backend in BACKENDS {
        let Some(sshd) = Sshd::start(backend) else { return };
        let config = sshd.dir().join("ssh_config");
        let marker = dir.path().join("local-command");
        let text = fs::read_to_string(&config).unwrap();
        let people = format!(
            "{text} RequestTTY force\n RemoteCommand echo for people\n PermitLocalCommand yes\n \
             LocalCommand touch {}\n ExitOnForwardFailure yes\n LocalForward 1 127.0.0.1:1\n",
            marker.display()
        );
        // As nobody a port below 1024 cannot be listened on; as root this one is taken.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        fs::write(&config, people.replace("LocalForward 1 ", &format!("LocalForward 127.0.0.1:{port} "))).unwrap();
        for (number, flags) in [&[][..], &["--direct=direct"], &["--connections=2"]].into_iter().enumerate() {
            let target = dir.path().join(format!("{backend}-{number}"));
            let mut args: Vec<OsString> = ["copy"].iter().chain(flags).map(OsString::from).collect();
            args.extend(sshd.args());
            args.extend([source.clone().into(), at(&sshd, &target)]);
            complete(&mut haul(backend, args)).assert_exit(0);
            assert_eq!(hash_of(&target), hash_of(&source), "{flags:?}");
        }
        assert!(!marker.exists());
    }
}

#[test]
fn where_no_haul_is_installed_it_does_not_matter_to_copies_through_sftp() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 300_000, 1);
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let config = sshd.dir().join("ssh_config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text} RequestTTY force\n RemoteCommand echo for people\n")).unwrap();
    let args = [OsString::from("copy"), "--remote-path=/nowhere/haul".into()].into_iter().chain(sshd.args());
    complete(&mut haul("poll", args.chain([source.clone().into(), at(&sshd, &target)]))).assert_exit(0);
    assert_eq!(hash_of(&target), hash_of(&source));
}

#[test]
fn a_restricted_login_shell_that_may_start_sh_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 300_000, 1);
    for backend in BACKENDS {
        let pipes = Pipes::with_program(backend, binary());
        let ssh = pipes.dir().join("ssh");
        let text = fs::read_to_string(&ssh).unwrap();
        script(&ssh, &text.replace("exec sh -c", "exec bash --restricted -c"));
        let target = dir.path().join(backend);
        let args = [OsString::from("copy")].into_iter().chain(pipes.args());
        let ended = complete(&mut haul(backend, args.chain([source.clone().into(), at(&pipes, &target)])));
        ended.assert_exit(0);
        assert_eq!(hash_of(&target), hash_of(&source));
    }
}
