//! Daemons: copies, listings and hashes without ssh, keys and who may read them, and servers that only read.

use crate::support::daemon::{Listening, key_in};
use crate::support::direct::SealedEnd;
use crate::support::frames::{FULL, attributes, blake3_of, bytes_of, data, field, hello};
use crate::support::processes::{complete, names, script, wait_for};
use crate::support::routes::assert_same_tree;
use crate::support::{BACKENDS, hash_of, haul, random_file, trees};
use haul_engine::wire::frame::{ErrorCode, Frame, Kind, Preserve};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAIRS: [(&str, &str); 2] = [("uring", "poll"), ("poll", "uring")];

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap()
}

#[test]
fn files_of_every_critical_size_arrive_whole_whatever_the_codec() {
    let dir = scratch();
    let source = dir.path().join("source");
    trees::files_of_sizes(&source, &trees::SIZES);
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        for codec in ["none", "zstd", "lz4"] {
            let flags = ["-a", "--compress", codec];
            let mut from = OsString::from(&source);
            from.push("/");
            daemon.copy(near, &flags, from, daemon.at(codec)).assert_exit(0);
            assert_same_tree(&daemon.root().join(codec), &source);
            let back = scratch();
            let target = back.path().join("back");
            daemon.copy(near, &flags, daemon.at(&format!("{codec}/")), &target).assert_exit(0);
            assert_same_tree(&target, &source);
        }
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn trees_and_small_files_arrive_whole_over_one_connection_and_over_three() {
    let dir = scratch();
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    trees::small_files(&source, 800);
    random_file(&source.join("large"), 9_000_001, 1);
    for (near, far) in PAIRS {
        // Owners are kept only where clients are trusted with them, if these tests run as root.
        let daemon = Listening::with(far, &["--trust-metadata"], "127.0.0.1:0", true);
        for links in ["1", "3"] {
            let flags = ["-a", "--json", "--connections", links];
            let ended = daemon.copy(near, &flags, &source, daemon.at(""));
            ended.assert_exit(0);
            assert_eq!(ended.stderr, "");
            let direct = ended.stdout.lines().filter(|line| line.contains("\"type\":\"direct\"")).count();
            assert!((1..=links.parse().unwrap()).contains(&direct), "{direct} connections of {links}");
            assert_same_tree(&daemon.root().join("source"), &source);
            fs::remove_dir_all(daemon.root().join("source")).unwrap();
        }
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn everything_that_a_copy_can_do_goes_to_a_daemon_too() {
    let dir = scratch();
    let source = dir.path().join("source");
    random_file(&source, 17_000_000, 1);
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        for flags in [&["--no-hash"][..], &["-V"], &["-C"], &["--dedup"], &["--dedup"], &["--sync"]] {
            // Once more, onto what is there.
            for _ in 0..2 {
                daemon.copy(near, flags, &source, daemon.at("there")).assert_exit(0);
                assert_eq!(hash_of(&daemon.root().join("there")), hash_of(&source), "{flags:?}");
                daemon.copy(near, flags, daemon.at("there"), dir.path().join("back")).assert_exit(0);
                assert_eq!(hash_of(&dir.path().join("back")), hash_of(&source), "{flags:?}");
            }
            fs::remove_file(daemon.root().join("there")).unwrap();
            fs::remove_file(dir.path().join("back")).unwrap();
        }
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn listings_and_hashes_come_and_names_are_resolved() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        fs::create_dir(daemon.root().join("d")).unwrap();
        fs::write(daemon.root().join("d/file x"), "x").unwrap();
        let port = daemon.address.port();
        let ask = |command: &str, operand: &str| {
            let ended = complete(daemon.command(near, command, &[]).arg(operand));
            ended.assert_exit(0);
            ended.stdout
        };
        assert_eq!(ask("ls", &daemon.at("")), "d/\n");
        assert_eq!(ask("ls", &format!("haul://localhost:{port}")), "d/\n");
        let hash = hash_of(&daemon.root().join("d/file x"));
        let operand = daemon.at("d/file%20x");
        assert_eq!(ask("hash", &operand), format!("{hash}  {operand}\n"));
        // What leads out of the root is not there.
        for path in ["/etc/passwd", "out"] {
            let _ = symlink("/etc", daemon.root().join("out"));
            let ended = complete(daemon.command(near, "ls", &[]).arg(daemon.at(path)));
            assert_ne!(ended.status.code(), Some(0), "{ended:?}");
        }
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn ipv6_is_as_good() {
    if TcpListener::bind("[::1]:0").is_err() {
        crate::support::skips::skip("ipv6", "there is no IPv6 here", "an address ::1");
        return;
    }
    for (near, far) in PAIRS {
        let daemon = Listening::with(far, &[], "[::1]:0", true);
        fs::write(daemon.root().join("f"), "x").unwrap();
        let ended = complete(daemon.command(near, "ls", &[]).arg(daemon.at("")));
        ended.assert_exit(0);
        assert_eq!(ended.stdout, "f\n");
        assert_eq!(daemon.end(), "");
    }
}

/// Hands connections on to `to`. The one of this number is cut once so many bytes have come back, each time it comes.
fn relay(to: SocketAddr, cut: Option<(usize, usize)>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let come = Arc::new(AtomicUsize::new(0));
    let counted = come.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let Ok(server) = TcpStream::connect(to) else { return };
            let [up, down] = [(&stream, &server), (&server, &stream)]
                .map(|(from, into)| (from.try_clone().unwrap(), into.try_clone().unwrap()));
            std::thread::spawn(move || hand_on(up, usize::MAX));
            let most = cut.filter(|(which, _)| *which == number).map_or(usize::MAX, |(_, bytes)| bytes);
            std::thread::spawn(move || hand_on(down, most));
        }
    });
    (address, come)
}

fn hand_on((mut from, mut into): (TcpStream, TcpStream), most: usize) {
    let (mut buffer, mut moved) = ([0; 16 * 1024], 0);
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        moved += len;
        if moved > most || into.write_all(&buffer[..len]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            let _ = into.shutdown(Shutdown::Both);
            return;
        }
    }
    let _ = into.shutdown(Shutdown::Write);
}

#[test]
fn a_further_connection_that_breaks_is_opened_again_and_nothing_is_lost() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let source = daemon.root().join("tree");
        fs::create_dir(&source).unwrap();
        for number in 0..12_u64 {
            random_file(&source.join(number.to_string()), 6_000_000, number);
        }
        let (address, come) = relay(daemon.address, Some((1, 3_000_000)));
        let dir = scratch();
        let operand = format!("haul://{address}/tree");
        let flags = ["-a", "--compress=none", "--connections=2"];
        daemon.copy(near, &flags, operand, dir.path()).assert_exit(0);
        assert_same_tree(&dir.path().join("tree"), &source);
        // It was cut only if it carried enough of the files, which on a busy machine the first one may have done.
        assert!(come.load(Ordering::SeqCst) >= 2);
        daemon.end();
    }
}

#[test]
fn more_connections_than_a_daemon_serves_move_everything_all_the_same() {
    let dir = trees::scratch();
    trees::small_files(dir.path(), 3000);
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let mut from = OsString::from(dir.path());
        from.push("/");
        daemon.copy(near, &["-a", "--connections=40"], from, daemon.at("there")).assert_exit(0);
        assert_same_tree(&daemon.root().join("there"), dir.path());
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn a_first_connection_that_breaks_ends_the_run_and_the_next_run_goes_on() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        random_file(&daemon.root().join("f"), 9_000_000, 1);
        let (address, _) = relay(daemon.address, Some((0, 5_000_000)));
        let dir = scratch();
        let target = dir.path().join("f");
        let copy = || daemon.copy(near, &["-C", "--compress=none"], format!("haul://{address}/f"), &target);
        copy().assert_exit(12);
        assert!(!target.exists());
        copy().assert_exit(0);
        assert_eq!(hash_of(&target), hash_of(&daemon.root().join("f")));
        daemon.end();
    }
}

#[test]
fn a_daemon_outlives_its_clients_however_they_end() {
    for (near, far) in PAIRS {
        let daemon = Listening::start(far);
        let dir = scratch();
        random_file(&dir.path().join("f"), 60_000_000, 1);
        for _ in 0..3 {
            let mut copy = daemon.command(near, "copy", &["-q", "--compress=none"]);
            let mut child = copy.arg(dir.path().join("f")).arg(daemon.at("f")).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(60));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        fs::write(dir.path().join("small"), "x").unwrap();
        daemon.copy(near, &[], dir.path().join("small"), daemon.at("small")).assert_exit(0);
        assert!(wait_for(crate::support::processes::LIMIT, || {
            names(&daemon.root()).iter().all(|name| !name.to_string_lossy().starts_with(".haul"))
        }));
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn a_client_says_what_is_wrong_before_it_connects() {
    let dir = scratch();
    let at = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
    let good = format!("haul-key-1 {}\n", "ab".repeat(32));
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(at(name), text).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("good", &good, 0o600);
    for (name, mode) in [("group", 0o640), ("others", 0o604), ("written", 0o602), ("run", 0o610)] {
        write(name, &good, mode);
    }
    write("empty", "", 0o600);
    write("hex", &good[11..], 0o600);
    write("long", &format!("{good}{good}"), 0o600);
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let url = "haul://127.0.0.1:1/f";
    let table: Vec<(Vec<String>, &str)> = vec![
        (vec![], "--key-file is needed"),
        (vec!["--key-file".into(), at("none")], "cannot read the key: No such file"),
        (vec!["--key-file".into(), at("")], "no regular file"),
        (vec!["--key-file".into(), at("pipe")], "no regular file"),
        (vec!["--key-file".into(), "/dev/zero".into()], "no regular file"),
        (vec!["--key-file".into(), at("group")], "others may use it too"),
        (vec!["--key-file".into(), at("others")], "others may use it too"),
        (vec!["--key-file".into(), at("written")], "others may use it too"),
        (vec!["--key-file".into(), at("run")], "others may use it too"),
        (vec!["--key-file".into(), at("empty")], "a key is one line"),
        (vec!["--key-file".into(), at("hex")], "a key is one line"),
        (vec!["--key-file".into(), at("long")], "a key is one line"),
        (vec!["--direct=direct".into(), "--key-file".into(), at("good")], "direct anyway"),
        (vec!["-e".into(), "ssh".into(), "--key-file".into(), at("good")], "are for ssh"),
        (vec!["--port=22".into(), "--key-file".into(), at("good")], "are for ssh"),
    ];
    for near in BACKENDS {
        for (flags, words) in &table {
            for (command, operands) in [("ls", vec![url]), ("hash", vec![url]), ("copy", vec![url, "x"])] {
                let ended = complete(haul(near, [command]).args(flags).args(operands));
                ended.assert_exit(1);
                assert!(ended.stderr.starts_with("haul: ") && ended.stderr.contains(words), "{words}: {ended:?}");
                assert_eq!(ended.lines().len(), 1, "{ended:?}");
            }
        }
        let ended = complete(haul(near, ["ls", "--key-file", &at("good"), "far:f"]).env("PATH", ""));
        ended.assert_exit(1);
        assert!(ended.stderr.contains("--key-file is for haul:// operands"), "{ended:?}");
    }
}

#[test]
fn a_daemon_says_what_is_wrong_before_it_listens() {
    let dir = scratch();
    let key = dir.path().join("key").into_os_string().into_string().unwrap();
    complete(&mut haul("poll", ["keygen", &key])).assert_exit(0);
    let root = dir.path().to_str().unwrap();
    for backend in BACKENDS {
        let serve = |flags: &[&str]| complete(haul(backend, ["serve"]).args(flags));
        for (flags, words) in [
            (&["--listen", "127.0.0.1:0", "--key-file", &key][..], "--root"),
            (&["--key-file", &key, "--root", root], "--listen"),
            (&["--listen", "192.0.2.1:0", "--root", root], "only loopback addresses"),
            (&["--listen", "127.0.0.1:0", "--root", root, "--key-file", root], "no regular file"),
        ] {
            let ended = serve(flags);
            ended.assert_exit(1);
            assert!(ended.stderr.contains(words), "{words}: {ended:?}");
            assert_eq!(ended.stdout, "");
        }
        // With a key any address may be tried; this one is nobody's (RFC 5737).
        let ended = serve(&["--listen", "192.0.2.1:0", "--root", root, "--key-file", &key]);
        ended.assert_exit(10);
        assert!(ended.stderr.contains("192.0.2.1:0: cannot listen"), "{ended:?}");
        let missing = dir.path().join("missing");
        let ended = serve(&["--listen", "127.0.0.1:0", "--read-only", "--root", missing.to_str().unwrap()]);
        ended.assert_exit(11);
        assert!(!missing.exists(), "who only reads makes no root");
    }
}

#[test]
fn keygen_writes_a_new_key_for_its_owner_alone_and_never_over_anything() {
    let dir = scratch();
    let mut seen = std::collections::HashSet::new();
    for number in 0..4 {
        let file = dir.path().join(number.to_string());
        let ended = complete(Command::new("sh").args(["-c", "umask 0; exec \"$@\"", "sh"]).args([
            crate::support::binary().as_os_str(),
            "keygen".as_ref(),
            file.as_os_str(),
        ]));
        ended.assert_exit(0);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(seen.insert(*key_in(&file).expose()));
    }
    let ended = complete(&mut haul("poll", ["keygen"]));
    ended.assert_exit(0);
    fs::write(dir.path().join("stdout"), &ended.stdout).unwrap();
    assert!(seen.insert(*key_in(&dir.path().join("stdout")).expose()));

    symlink("nowhere", dir.path().join("link")).unwrap();
    for name in ["0", "link"] {
        let path = dir.path().join(name);
        let before = fs::read(&path).ok();
        let ended = complete(haul("poll", ["keygen"]).arg(&path));
        ended.assert_exit(11);
        assert!(ended.stderr.contains("never overwritten"), "{ended:?}");
        assert_eq!(fs::read(&path).ok(), before);
    }
    for name in ["", "0/where"] {
        complete(haul("poll", ["keygen"]).arg(dir.path().join(name))).assert_exit(11);
    }
    assert_eq!(names(dir.path()).len(), 6);
}

/// Every request that would change something.
fn writing() -> Vec<(&'static str, Vec<Frame>)> {
    let (path, meta) = (field("f"), attributes(Kind::Regular, 3));
    let preserve = Preserve::default();
    let commit = || Frame::Commit { hash: blake3_of(b"new") };
    vec![
        ("Put", vec![Frame::Put { path: path.clone(), size: 3, offset: 0, overwrite: true }, commit()]),
        ("Continue", vec![Frame::Continue { path: path.clone(), size: 3 }, commit()]),
        ("PutChunked", vec![Frame::PutChunked { path: path.clone(), offset: 0, length: 3 }, commit()]),
        (
            "RangeBegin",
            vec![Frame::RangeBegin { path: path.clone(), size: 3, attributes: meta, preserve, keep: false }],
        ),
        ("RangePut", vec![Frame::RangePut { token: 7, offset: 0, length: 3 }, Frame::Done]),
        ("RangeCommit", vec![Frame::RangeCommit { token: 7, hash: blake3_of(b"new") }]),
        ("RangeAbandon", vec![Frame::RangeAbandon { token: 7 }]),
        ("Truncate", vec![Frame::Truncate { path: path.clone(), size: 0 }]),
        ("Mkdir", vec![Frame::Mkdir { path: field("new") }]),
        ("SetMeta", vec![Frame::SetMeta { path: field("."), attributes: attributes(Kind::Directory, 0), preserve }]),
        ("Symlink", vec![Frame::Symlink { path: field("new"), target: b"f".to_vec(), attributes: meta, preserve }]),
    ]
}

#[track_caller]
fn assert_refused(reply: &Frame, name: &str) {
    let Frame::Error { message, code } = reply else { panic!("{name}: {reply:?}") };
    assert_eq!(*code, ErrorCode::READ_ONLY, "{name}");
    assert!(String::from_utf8_lossy(message).contains("this server is read-only"), "{name}: {reply:?}");
}

#[test]
fn a_server_that_only_reads_refuses_every_request_that_writes_and_goes_on() {
    for backend in BACKENDS {
        let daemon = Listening::with(backend, &["--read-only"], "127.0.0.1:0", true);
        fs::write(daemon.root().join("f"), "old").unwrap();
        let before = fs::metadata(daemon.root()).unwrap().modified().unwrap();
        let mut client: SealedEnd = daemon.enter();
        for (name, frames) in writing() {
            let [first, rest @ ..] = &frames[..] else { panic!("{name}") };
            client.send(first);
            if !rest.is_empty() {
                client.send_bytes(&data(b"new"));
                rest.iter().for_each(|frame| client.send(frame));
            }
            let reply = client.ask(&Frame::Stat { path: field("f") });
            assert_refused(&reply, name);
            let Some(crate::support::frames::Received::Frame(Frame::StatResponse { size: 3, .. })) =
                client.input.next()
            else {
                panic!("{name}: the session does not go on")
            };
        }
        client.end(true);
        assert_eq!(fs::read(daemon.root().join("f")).unwrap(), b"old");
        assert_eq!(names(&daemon.root()), ["f"]);
        assert_eq!(fs::metadata(daemon.root()).unwrap().modified().unwrap(), before);
        assert!(!daemon.key_file().with_file_name("cas").exists(), "no block store either");
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn copies_from_a_server_that_only_reads_work_and_copies_to_it_say_why_not() {
    for (near, far) in PAIRS {
        let daemon = Listening::with(far, &["--read-only"], "127.0.0.1:0", true);
        random_file(&daemon.root().join("f"), 700_000, 1);
        let dir = scratch();
        fs::create_dir(dir.path().join("tree")).unwrap();
        random_file(&dir.path().join("tree/new"), 5_000_000, 2);
        random_file(&dir.path().join("tree/small"), 50, 3);
        let target = dir.path().join("f");
        daemon.copy(near, &[], daemon.at("f"), &target).assert_exit(0);
        assert_eq!(hash_of(&target), hash_of(&daemon.root().join("f")));
        for flags in [&["-r"][..], &["-a", "-C"], &["-r", "--dedup"], &["-r", "--connections=2"]] {
            let ended = daemon.copy(near, flags, dir.path().join("tree"), daemon.at(""));
            ended.assert_exit(23);
            assert!(ended.stderr.contains("this server is read-only"), "{ended:?}");
        }
        assert_eq!(names(&daemon.root()), ["f"]);
        assert_eq!(daemon.end(), "");
    }
}

#[test]
fn a_server_behind_ssh_may_be_read_only_too_and_so_are_its_direct_connections() {
    for (near, far) in PAIRS {
        let dir = scratch();
        let shell = dir.path().join("ssh");
        // What sshd does where the account runs a program of its own.
        let text = format!(
            "#!/bin/sh\nfor last; do :; done\nSSH_ORIGINAL_COMMAND=$last exec {} --backend {far} serve --root / --read-only\n",
            crate::support::binary().display()
        );
        script(&shell, &text);
        random_file(&dir.path().join("source"), 700_000, 1);
        let at = |name: &str| format!("far:{}", dir.path().join(name).display());
        for way in ["ssh", "direct"] {
            let copy = |from: &str, to: &str| {
                let mut copy = haul(near, ["copy", &format!("--direct={way}"), "-e"]);
                complete(copy.arg(&shell).args([from, to]).env("HAUL_CAS_DIR", dir.path().join("cas")))
            };
            let here = |name: &str| dir.path().join(name).display().to_string();
            copy(&at("source"), &here("back")).assert_exit(0);
            assert_eq!(hash_of(&dir.path().join("back")), hash_of(&dir.path().join("source")));
            let ended = copy(&here("source"), &at("new"));
            ended.assert_exit(23);
            assert!(ended.stderr.contains("this server is read-only"), "{way}: {ended:?}");
            fs::remove_file(dir.path().join("back")).unwrap();
            assert_eq!(names(dir.path()), ["source", "ssh"], "{way}");
        }
    }
}

#[test]
fn a_loopback_server_without_a_key_may_be_read_only_too() {
    for backend in BACKENDS {
        let server = Listening::with(backend, &["--read-only"], "127.0.0.1:0", false);
        let mut stream = TcpStream::connect(server.address).unwrap();
        let mkdir = Frame::Mkdir { path: field("new") };
        stream.write_all(&[bytes_of(&hello(FULL), FULL), bytes_of(&mkdir, FULL)].concat()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        assert!(said.windows(24).any(|bytes| bytes == b"this server is read-only"), "{}", said.escape_ascii());
        assert_eq!(names(&server.root()), Vec::<OsString>::new());
        server.end();
    }
}

#[test]
fn whoever_is_not_there_ends_in_one_line() {
    let dir = scratch();
    let key = dir.path().join("key");
    complete(haul("poll", ["keygen"]).arg(&key)).assert_exit(0);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let table = [
        (nobody.to_string(), 10, "Connection refused"),
        ("no-such-name.invalid:1".to_string(), 10, "no-such-name.invalid"),
        (silent.local_addr().unwrap().to_string(), 35, "the server did not answer in time"),
    ];
    for near in BACKENDS {
        for (address, code, words) in &table {
            let ls = |path: &Path| {
                let mut ls = haul(near, ["ls", "--key-file"]);
                ls.arg(path).arg(format!("haul://{address}/")).env("HAUL_TIMEOUTS_MS", "500,500,500");
                complete(&mut ls)
            };
            let ended = ls(&key);
            ended.assert_exit(*code);
            assert!(ended.stderr.starts_with("haul: no connection: ") && ended.stderr.contains(words), "{ended:?}");
            assert_eq!(ended.lines().len(), 1, "{ended:?}");
        }
    }
}
