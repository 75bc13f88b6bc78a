//! Where direct connections go: to the machine that ssh reached and to no other, whatever a server says; in the zone that
//! this end has for the link, where the address is of one link; and behind proxies only where this end knows the address.

use crate::support::cable::{Cable, End};
use crate::support::processes::{Ended, complete, script};
use crate::support::{BACKENDS, Pipes, Remote as _, SFTP, Sshd, at, binary, hash_of, haul, random_file};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Of one link, as every interface has one.
const LINK_LOCAL: &str = "fe80::2";

fn copy(backend: &str, way: &str, args: Vec<OsString>, from: &Path, to: OsString) -> Command {
    let mut copy = haul(backend, ["copy", "-v"]);
    copy.arg(format!("--direct={way}")).args(args).arg(from).arg(to);
    copy
}

/// It went directly, or with `auto` through ssh and said why.
#[track_caller]
fn assert_went(ended: &Ended, way: &str, (source, target): (&Path, &Path), refused: Option<&str>) {
    ended.assert_exit(if refused.is_none() || way == "auto" { 0 } else { 10 });
    assert_eq!(ended.stderr.contains("content goes directly to"), refused.is_none(), "{ended:?}");
    assert!(refused.is_none_or(|why| ended.stderr.contains(why)), "{ended:?}");
    assert_eq!(target.exists(), ended.status.success());
    if target.exists() {
        assert_eq!(hash_of(target), hash_of(source));
        fs::remove_file(target).unwrap();
    }
}

#[test]
fn an_address_of_one_link_is_met_in_the_zone_that_each_end_has_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 3 << 20, 1);
    for (backend, bound) in BACKENDS.into_iter().flat_map(|backend| [false, true].map(|bound| (backend, bound))) {
        let Some(cable) = Cable::new("1gbit") else { return };
        let mut give = cable.at(End::Near, "ip");
        give.args(["address", "add", "fe80::1/64", "dev", "cable", "nodad"]);
        assert!(give.status().unwrap().success());
        // The two ends call the link by different names.
        for words in ["set cable down", "set cable name elsewhere", "set elsewhere up"] {
            let mut link = cable.at(End::Far, "ip");
            assert!(link.arg("link").args(words.split(' ')).status().unwrap().success());
        }
        // IPv6 addresses go with a link that is down.
        let mut give = cable.at(End::Far, "ip");
        give.args(["address", "add", &format!("{LINK_LOCAL}/64"), "dev", "elsewhere", "nodad"]);
        assert!(give.status().unwrap().success());
        let config = format!("{SFTP}\nListenAddress {LINK_LOCAL}%elsewhere");
        let Some(sshd) = Sshd::behind(&cable, backend, &config) else { return };
        let program = sshd.dir().join("bound");
        let bind = if bound { format!("export HAUL_BIND={LINK_LOCAL}%elsewhere\n") } else { String::new() };
        script(&program, &format!("#!/bin/sh\n{bind}exec '{}' \"$@\"\n", binary().display()));
        sshd.install("haul", &program);
        let client = sshd.dir().join("ssh_config");
        let text = fs::read_to_string(&client).unwrap();
        let zoned = text.replace("HostName 10.255.0.2", &format!("HostName {LINK_LOCAL}%%cable"));
        assert_ne!(zoned, text);
        fs::write(&client, zoned).unwrap();
        for way in ["direct", "auto"] {
            let command = copy(backend, way, sshd.args(), &source, at(&sshd, &target));
            let ended = complete(&mut cable.without_terminal(&command));
            assert_went(&ended, way, (&source, &target), None);
            assert!(ended.stderr.contains("content goes directly to [fe80::2%"), "{ended:?}");
        }
    }
}

#[test]
fn behind_a_proxy_content_goes_directly_only_to_an_address_that_this_end_knows() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 3 << 20, 1);
    let unknown = "as far as this end knows, and ssh goes through another machine or program";
    for (backend, way) in BACKENDS.into_iter().flat_map(|backend| ["direct", "auto"].map(|way| (backend, way))) {
        let Some(sshd) = Sshd::bare(backend, SFTP) else { return };
        let plain = sshd.dir().join("plain_config");
        let client = sshd.dir().join("ssh_config");
        fs::copy(&client, &plain).unwrap();
        let text = fs::read_to_string(&client).unwrap();
        let port = text.lines().find_map(|line| line.trim().strip_prefix("Port ")).unwrap();
        let command = format!("ProxyCommand ssh -F {} -W 127.0.0.1:{port} far", plain.display());
        // Where the server says to come, what the target is called here, and the way there.
        for (address, name, proxy, refused) in [
            ("127.0.0.1", "127.0.0.1", command.as_str(), None),
            ("127.0.0.1", "127.0.0.1", "ProxyJump jump", None),
            ("127.0.0.9", "127.0.0.1", command.as_str(), Some(format!("which is no address of `127.0.0.1` {unknown}"))),
            ("127.0.0.9", "127.0.0.1", "ProxyJump jump", Some(format!("which is no address of `127.0.0.1` {unknown}"))),
            // Only the other machine knows it.
            ("127.0.0.1", "far.invalid", &command, Some(format!("which is no address of `far.invalid` {unknown}"))),
        ] {
            let program = sshd.dir().join(format!("haul at {address}"));
            script(&program, &format!("#!/bin/sh\nexport HAUL_BIND={address}\nexec '{}' \"$@\"\n", binary().display()));
            let _ = fs::remove_file(sshd.dir().join("bin/haul"));
            sshd.install("haul", &program);
            let jump = text.replace("Host far", "Host jump");
            let target_host = text.replace("HostName 127.0.0.1", &format!("HostName {name}"));
            fs::write(&client, format!("{target_host} {proxy}\n{jump}")).unwrap();
            let ended = complete(&mut copy(backend, way, sshd.args(), &source, at(&sshd, &target)));
            assert_went(&ended, way, (&source, &target), refused.as_deref());
        }
    }
}

#[test]
fn a_remote_shell_of_the_users_leads_nowhere_but_to_its_host_or_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 3 << 20, 1);
    let unknown = "as far as this end knows, and -e does not say what it reached";
    for (backend, way) in BACKENDS.into_iter().flat_map(|backend| ["direct", "auto"].map(|way| (backend, way))) {
        for (address, host, refused) in [
            ("127.0.0.1", "far", None),
            ("127.0.0.9", "127.0.0.9", None),
            ("127.0.0.9", "far", Some(format!("which is no address of `far` {unknown}"))),
        ] {
            let program = dir.path().join("program");
            script(&program, &format!("#!/bin/sh\nexport HAUL_BIND={address}\nexec '{}' \"$@\"\n", binary().display()));
            let pipes = Pipes::with_program(backend, &program);
            let mut to = OsString::from(format!("{host}:"));
            to.push(&target);
            let ended = complete(&mut copy(backend, way, pipes.args(), &source, to));
            assert_went(&ended, way, (&source, &target), refused.as_deref());
        }
    }
}
