//! What a listening server does by default: it serves the directory that was there when it began and nothing that is mounted
//! in it, changes no file where it stands, gives nobody owners or set-ID bits, and says who may do what and who has come.

use crate::support::daemon::{Bare, Knock, Listening, enter};
use crate::support::direct::{Guest, KEYED, SealedEnd};
use crate::support::frames::{Received, attributes, blake3_of, bytes_of, data, field};
use crate::support::processes::{complete, in_private_mounts, mount_tmpfs, names};
use crate::support::{BACKENDS, binary, haul};
use haul_engine::wire::frame::{Attributes, Frame, Kind, Preserve};
use haul_engine::wire::seal::Secret;
use rustix::process::geteuid;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

const PAIRS: [(&str, &str); 2] = [("uring", "poll"), ("poll", "uring")];
const REPLACED: &str = "was mounted over, moved or made anew";

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap()
}

/// Neither copies nor lists, and says why.
#[track_caller]
fn assert_refuses(near: &str, daemon: &Listening, file: &Path) {
    let ended = daemon.copy(near, &[], file, daemon.at("new"));
    assert_ne!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains(REPLACED), "{ended:?}");
    let ended = complete(daemon.command(near, "ls", &[]).arg(daemon.at("")));
    assert_ne!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains(REPLACED), "{ended:?}");
}

#[test]
fn a_root_that_is_made_anew_is_not_served_and_what_was_begun_below_the_old_one_gets_no_name() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let dir = scratch();
        fs::write(dir.path().join("f"), "content").unwrap();
        let (root, away) = (daemon.root(), daemon.root().with_file_name("away"));
        daemon.copy(near, &[], dir.path().join("f"), daemon.at("f")).assert_exit(0);
        let mut begun = daemon.enter();
        begun.send(&Frame::Put { path: field("begun"), size: 200_000, offset: 0, overwrite: true });
        begun.send_bytes(&data(&[7; 100_000]));
        assert!(matches!(daemon.enter().ask(&Frame::Stat { path: field("f") }), Frame::StatResponse { .. }));
        fs::rename(&root, &away).unwrap();
        fs::create_dir(&root).unwrap();
        assert_refuses(near, &daemon, &dir.path().join("f"));
        begun.send_bytes(&data(&[7; 100_000]));
        let reply = begun.ask(&Frame::Commit { hash: blake3_of(&[7; 200_000]) });
        let Frame::Error { message, .. } = reply else { panic!("{reply:?}") };
        assert!(String::from_utf8(message).unwrap().contains(REPLACED));
        assert_eq!((names(&root).len(), names(&away)), (0, vec!["f".into()]));
        // Nothing at all is no better.
        fs::remove_dir(&root).unwrap();
        assert_refuses(near, &daemon, &dir.path().join("f"));
        fs::rename(&away, &root).unwrap();
        daemon.copy(near, &[], dir.path().join("f"), daemon.at("new")).assert_exit(0);
        assert_eq!(names(&root), ["f", "new"]);
    }
}

#[test]
fn a_root_that_is_mounted_over_is_not_served_below_the_mount() {
    if !in_private_mounts("a_root_that_is_mounted_over_is_not_served_below_the_mount") {
        return;
    }
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let dir = scratch();
        fs::write(dir.path().join("f"), "content").unwrap();
        let mounted = mount_tmpfs(&daemon.root(), "size=1m");
        assert_refuses(near, &daemon, &dir.path().join("f"));
        assert!(names(&daemon.root()).is_empty());
        drop(mounted);
        assert!(names(&daemon.root()).is_empty());
        daemon.copy(near, &[], dir.path().join("f"), daemon.at("f")).assert_exit(0);
    }
}

#[test]
fn a_root_that_is_not_there_is_not_made() {
    let dir = scratch();
    let key = dir.path().join("key");
    complete(haul("poll", ["keygen"]).arg(&key)).assert_exit(0);
    let missing = dir.path().join("mistyped");
    for backend in BACKENDS {
        for flags in [&["--listen", "127.0.0.1:0", "--key-file", key.to_str().unwrap()][..], &[]] {
            let ended = complete(haul(backend, ["serve", "--root"]).arg(&missing).args(flags));
            ended.assert_exit(11);
            assert!(ended.stderr.contains("mistyped: cannot serve: No such file or directory"), "{ended:?}");
            assert!(!missing.exists());
        }
    }
}

#[track_caller]
fn refusal(client: &mut SealedEnd, request: &Frame) -> String {
    let reply = client.ask(request);
    let Frame::Error { message, .. } = reply else { panic!("{reply:?}") };
    String::from_utf8(message).unwrap()
}

#[test]
fn what_is_mounted_below_a_root_is_not_served_unless_that_is_wanted() {
    if !in_private_mounts("what_is_mounted_below_a_root_is_not_served_unless_that_is_wanted") {
        return;
    }
    for backend in BACKENDS {
        for wanted in [false, true] {
            let daemon = Listening::with(backend, if wanted { &["--across-mounts"] } else { &[] }, "127.0.0.1:0", true);
            let root = daemon.root();
            let memory = mount_tmpfs(&root.join("memory"), "size=1m");
            fs::write(root.join("memory/f"), "mounted").unwrap();
            fs::create_dir(root.join("proc")).unwrap();
            let bound = Command::new("mount").args(["--bind", "/proc"]).arg(root.join("proc")).status().unwrap();
            assert!(bound.success());
            fs::write(root.join("file"), "own").unwrap();
            fs::write(root.join("bound"), "").unwrap();
            let bound = Command::new("mount").arg("--bind").args([root.join("memory/f"), root.join("bound")]).status();
            assert!(bound.unwrap().success());
            std::os::unix::fs::symlink("memory", root.join("link")).unwrap();
            let mut client = daemon.enter();
            for path in ["memory/f", "./memory/f", "link/f", "bound", "\0memory/f", "proc/self/environ"] {
                let path = field(path.strip_prefix('\0').map_or(path.to_string(), |below| format!("\0{below}")));
                let reply = client.ask(&Frame::Hash { path: path.clone(), offset: 0, limit: None });
                match (wanted, reply) {
                    (true, Frame::HashResponse { .. }) => {}
                    (false, Frame::Error { message, .. }) => {
                        let text = String::from_utf8(message).unwrap();
                        assert!(text.contains("--across-mounts"), "{path:?}: {text}");
                    }
                    (_, reply) => panic!("{backend}, {wanted}, {path:?}: {reply:?}"),
                }
            }
            // Nor written to.
            client.send(&Frame::Put { path: field("memory/new"), size: 3, offset: 0, overwrite: true });
            client.send_bytes(&data(b"new"));
            let reply = client.ask(&Frame::Commit { hash: blake3_of(b"new") });
            assert_eq!(matches!(reply, Frame::Ok { .. }), wanted, "{reply:?}");
            assert_eq!(root.join("memory/new").exists(), wanted);
            // To run code in the daemon.
            for (path, offset) in [("proc/self/mem", 0x1000), ("proc/self/oom_score_adj", 0)] {
                client.send(&Frame::PutChunked { path: field(path), offset, length: 3 });
                client.send_bytes(&data(b"999"));
                assert!(refusal(&mut client, &Frame::Done).contains("changes no file where it stands"));
            }
            // What is its own is served as ever.
            let reply = client.ask(&Frame::Hash { path: field("file"), offset: 0, limit: None });
            assert_eq!(reply, Frame::HashResponse { hash: blake3_of(b"own") });
            client.end(true);
            for mounted in ["bound", "proc"] {
                assert!(Command::new("umount").arg("-l").arg(root.join(mounted)).status().unwrap().success());
            }
            drop(memory);
        }
    }
}

#[test]
fn whoever_is_let_in_by_a_key_changes_no_file_where_it_stands() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        fs::write(daemon.root().join("f"), "0123456789").unwrap();
        let mut client = daemon.enter();
        client.send(&Frame::PutChunked { path: field("f"), offset: 0, length: 3 });
        client.send_bytes(&data(b"abc"));
        assert!(refusal(&mut client, &Frame::Done).contains("changes no file where it stands"));
        assert!(refusal(&mut client, &Frame::Truncate { path: field("f"), size: 1 }).contains("where it stands"));
        assert_eq!(fs::read(daemon.root().join("f")).unwrap(), b"0123456789");
        client.end(true);
    }
}

#[test]
fn nobody_is_served_without_a_key_unless_that_is_asked_for_in_so_many_words() {
    let dir = scratch();
    let root = dir.path().to_str().unwrap();
    for backend in BACKENDS {
        for (flags, words) in [
            (&["--listen", "127.0.0.1:0"][..], "--root"),
            (&["--listen", "127.0.0.1:0", "--root", root], "--allow-every-local-user"),
            (&["--listen", "127.0.0.1:0", "--allow-every-local-user"], "--root"),
            (&["--listen", "0.0.0.0:0", "--root", root, "--allow-every-local-user"], "only loopback addresses"),
        ] {
            let ended = complete(haul(backend, ["serve"]).args(flags));
            ended.assert_exit(1);
            assert!(ended.stderr.contains(words), "{flags:?}: {ended:?}");
            assert_eq!(ended.stdout, "");
        }
        let daemon = Listening::with(backend, &[], "127.0.0.1:0", false);
        let mut client = Bare::greeted(daemon.address);
        assert!(matches!(client.ask(&Frame::Stat { path: field("") }), Frame::StatResponse { is_dir: true, .. }));
        let said = daemon.end_with_all();
        assert!(said.contains("every user of this machine may read, write and replace"), "{said}");
    }
}

/// Takes Ok, and whatever says before that not everything was kept. True if everything was.
#[track_caller]
fn done(client: &mut SealedEnd) -> bool {
    let mut kept = true;
    loop {
        match client.input.next() {
            Some(Received::Frame(Frame::Ok { .. })) => return kept,
            Some(Received::Frame(Frame::Unkept(_))) => kept = false,
            other => panic!("{other:?}"),
        }
    }
}

/// A file and the root itself, with all that root could be asked to give.
#[track_caller]
fn ask_for_everything(daemon: &Listening, trusts: bool) {
    let mut client = daemon.enter();
    let all = Preserve::MODE.or(Preserve::OWNER);
    let wanted = Attributes { mode: 0o6755, uid: 12345, gid: 12345, ..attributes(Kind::Regular, 3) };
    client.send(&Frame::Put { path: field("f"), size: 3, offset: 0, overwrite: true });
    client.send(&Frame::Meta { attributes: wanted, preserve: all });
    client.send_bytes(&data(b"new"));
    client.send(&Frame::Commit { hash: blake3_of(b"new") });
    assert_eq!(done(&mut client), trusts);
    for path in ["", "."] {
        let attributes = Attributes { mode: 0o777, uid: 12345, gid: 12345, ..attributes(Kind::Directory, 0) };
        let request = Frame::SetMeta { path: field(path), attributes, preserve: all };
        client.send(&request);
        assert_eq!(done(&mut client), trusts);
    }
    client.end(true);
}

#[test]
fn a_daemon_of_roots_gives_nobody_owners_or_set_id_bits_and_keeps_the_mode_of_its_root() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root could give them");
        return;
    }
    for backend in BACKENDS {
        for trusts in [false, true] {
            let flags: &[&str] = if trusts { &["--trust-metadata"] } else { &[] };
            let daemon = Listening::with(backend, flags, "127.0.0.1:0", true);
            fs::set_permissions(daemon.root(), fs::Permissions::from_mode(0o750)).unwrap();
            ask_for_everything(&daemon, trusts);
            let [file, root] = [daemon.root().join("f"), daemon.root()].map(|path| fs::metadata(path).unwrap());
            let expected = if trusts { (0o6755, 12345, 0o777, 12345) } else { (0o755, 0, 0o750, 0) };
            assert_eq!((file.mode() & 0o7777, file.uid(), root.mode() & 0o7777, root.uid()), expected);
            let said = daemon.end_with_all();
            assert_eq!(said.contains("(--trust-metadata)"), !trusts, "{said}");
        }
    }
}

#[test]
fn a_daemon_says_who_may_do_what_who_has_come_and_who_was_refused() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        fs::write(daemon.root().join("f"), "old").unwrap();
        let client = enter(Guest::come(daemon.address), &daemon.key(), Knock::ALL);
        let port = client.stream.local_addr().unwrap().port();
        client.end(true);
        let mut stranger = Guest::come(daemon.address);
        let strange = stranger.stream.local_addr().unwrap().port();
        stranger.send(&bytes_of(&Knock::ALL.hello(&Secret::from_bytes([1; 32]), &stranger.nonce), KEYED));
        assert_eq!(stranger.left(), b"");
        let mut cut = daemon.enter();
        cut.send(&Frame::Put { path: field("g"), size: 10, offset: 0, overwrite: true });
        cut.cut();
        let _: Vec<Received> = cut.rest().0;
        let address = daemon.address;
        let said = daemon.end_with_all();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 4, "{said}");
        let start = format!("haul: serving at {address}: whoever has the key in ");
        assert!(lines[0].starts_with(&start) && lines[0].contains("read, write and replace"), "{said}");
        let line = |port: u16| lines.iter().find(|line| line.contains(&format!("Z 127.0.0.1:{port} ")));
        assert!(line(port).expect(&said).contains(" session: "), "{said}");
        assert!(line(port).expect(&said).ends_with("; ended"), "{said}");
        assert!(line(strange).expect(&said).contains(" refused: it does not know the key"), "{said}");
        assert!(lines[3].contains(" session: ") && lines[3].ends_with("the connection was cut off"), "{said}");
    }
}

#[test]
fn a_daemon_listens_at_names_and_at_addresses_with_a_zone() {
    let dir = scratch();
    for backend in BACKENDS {
        let daemon = Listening::with(backend, &[], "localhost:0", true);
        assert!(daemon.address.ip().is_loopback());
        fs::write(daemon.root().join("f"), "x").unwrap();
        let ended = complete(daemon.command(backend, "ls", &[]).arg(daemon.at("")));
        ended.assert_exit(0);
        assert_eq!(ended.stdout, "f\n");
        for bad in ["localhost", "localhost:", "::1:0", "[::1:0", "[]:0", ":0", "localhost:99999"] {
            let key = dir.path().join("key");
            let _ = complete(haul(backend, ["keygen"]).arg(&key));
            let mut serve = Command::new(binary());
            serve.args(["serve", "--root", "/tmp", "--listen", bad, "--key-file"]).arg(&key);
            let ended = complete(&mut serve);
            ended.assert_exit(1);
        }
    }
    let Some(zoned) = link_local() else {
        eprintln!("SKIPPED: no interface here has a link-local address");
        return;
    };
    for backend in BACKENDS {
        let daemon = Listening::with(backend, &[], &format!("[{zoned}]:0"), true);
        fs::write(daemon.root().join("f"), "x").unwrap();
        let operand = format!("haul://[{zoned}]:{}/f", daemon.address.port());
        daemon.copy(backend, &[], &operand, dir.path().join("f")).assert_exit(0);
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"x");
        fs::remove_file(dir.path().join("f")).unwrap();
    }
}

/// `fe80::1%eth0`, of this machine.
fn link_local() -> Option<String> {
    let table = fs::read_to_string("/proc/net/if_inet6").ok()?;
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [digits, index, _, scope, _, name] = fields[..] else { return None };
        if scope != "20" {
            return None;
        }
        let ip = std::net::Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?);
        let index = u32::from_str_radix(index, 16).ok()?;
        let there = SocketAddr::V6(std::net::SocketAddrV6::new(ip, 0, 0, index));
        TcpListener::bind(there).ok().map(|_| format!("{ip}%{name}"))
    })
}
