//! Links that are slow and healthy, and ends that were suspended: what is on its way is progress, and who did not run knows
//! nothing of the other's silence. Who says for ever that he lives, and does nothing, is given up.

use crate::support::cable::{Cable, End, FAR, PORTS};
use crate::support::frames::{FULL, Received, attributes, play_hurried};
use crate::support::kept::Kept;
use crate::support::processes::{LIMIT, complete, signal, wait_for};
use crate::support::routes::assert_same_tree;
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Pipes, Remote, SFTP, Sshd, at, binary, hash_of, haul, random_file, trees};
use haul_engine::wire::frame::{Caps, Dialect, Ext, Frame, Kind};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// 100 KB/s.
const RATE: &str = "800kbit";
const MIB: usize = 1 << 20;

/// A daemon at the far end of a cable.
struct Far {
    cable: Cable,
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Far {
    fn new(backend: &str, rate: &str) -> Option<Far> {
        let cable = Cable::new(rate)?;
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        complete(haul(backend, ["keygen"]).arg(dir.path().join("key"))).assert_exit(0);
        let mut serve = cable.at(End::Far, binary());
        serve.args(["--backend", backend, "serve", "--listen", &format!("{FAR}:7420"), "--key-file"]);
        serve.arg(dir.path().join("key")).arg("--root").arg(dir.path().join("root"));
        let mut daemon = serve.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("LISTENING"), "{line}");
        Some(Far { cable, dir, daemon })
    }

    fn copy(&self, backend: &str, flags: &[&str]) -> Command {
        let mut copy = Command::new(binary());
        copy.args(["--backend", backend, "copy", "--key-file"]).arg(self.dir.path().join("key")).args(flags);
        copy
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Content of which a codec makes a little more than half: letters, each drawn from 32.
fn half_dense(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.iter_mut().for_each(|byte| *byte = b'A' + *byte % 32);
    bytes
}

#[test]
fn compressed_content_crosses_a_slow_link_however_short_the_time_limit_is_beside_a_record() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    // A record of some 2.6 MiB, for 27 s: three times what the other end may be silent for.
    fs::write(&source, half_dense(4 * MIB)).unwrap();
    std::thread::scope(|scope| {
        for (near, far, way) in [
            ("uring", "poll", Way::Up),
            ("poll", "uring", Way::Up),
            ("uring", "poll", Way::Down),
            ("poll", "uring", Way::Down),
        ] {
            let (source, dir) = (&source, &dir);
            scope.spawn(move || {
                let Some(there) = Far::new(far, RATE) else { return };
                let url = format!("haul://{FAR}:7420/file");
                let mut copy = there.copy(near, &["--timeout=12", "--compress=zstd"]);
                let target = match way {
                    Way::Up => {
                        copy.arg(source).arg(url);
                        there.dir.path().join("root/file")
                    }
                    _ => {
                        fs::copy(source, there.dir.path().join("root/file")).unwrap();
                        let target = dir.path().join(format!("{near} {far}"));
                        copy.arg(url).arg(&target);
                        target
                    }
                };
                complete(&mut there.cable.without_terminal(&copy)).assert_exit(0);
                assert_eq!(hash_of(&target), hash_of(source), "{near}, {far}, {way:?}");
            });
        }
    });
}

#[test]
fn a_server_that_only_says_that_it_lives_is_given_up() {
    let dialect = Dialect { version: 1, ext: FULL.ext.or(Ext::PULSE) };
    let target = trees::scratch();
    for backend in BACKENDS {
        let args = |pipes: &Pipes| {
            let words = [OsString::from("copy")].into_iter().chain(pipes.args());
            words.chain(["far:f".into(), target.path().join("f").into()]).collect()
        };
        let ended = play_hurried(backend, "2000,2000,2000,60000,3000,0,2000", LIMIT, args, |far| {
            far.greet_with(dialect, Caps::NONE);
            far.looked_up(Some(attributes(Kind::Regular, 100_000)));
            assert!(matches!(far.request(), Frame::Get { .. }));
            while !far.is_alone() {
                far.send(&Frame::Pulse);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        ended.assert_exit(30);
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
        assert!(ended.stderr.contains("has said nothing for 3 s but that it is at work"), "{ended:?}");
    }
}

#[test]
fn what_lies_in_buffers_is_not_silence_where_the_server_says_that_it_lives() {
    let dialect = Dialect { version: 1, ext: FULL.ext.or(Ext::PULSE) };
    let dir = trees::scratch();
    let source = dir.path().join("source");
    random_file(&source, 8 * MIB, 1);
    for backend in BACKENDS {
        let args = |pipes: &Pipes| {
            let words = ["copy", "--compress=none"].map(OsString::from).into_iter().chain(pipes.args());
            words.chain([source.clone().into(), "far:f".into()]).collect()
        };
        // A second without progress, six for a server that does nothing but live.
        let ended = play_hurried(backend, "2000,2000,2000,1000,6000,0,1000", LIMIT, args, |far| {
            far.greet_with(dialect, Caps::NONE);
            far.looked_up(None);
            for _ in 0..40 {
                far.send(&Frame::Pulse);
                std::thread::sleep(Duration::from_millis(100));
            }
            let hash = loop {
                match far.input.next().expect("the client ended the stream") {
                    Received::Frame(Frame::Commit { hash }) => break hash,
                    _ => far.send(&Frame::Pulse),
                }
            };
            far.send(&Frame::Ok { hash: Some(hash) });
            far.drain();
        });
        ended.assert_exit(0);
    }
}

#[test]
fn small_files_arrive_over_several_direct_connections_of_a_slow_link_with_a_long_queue() {
    let dir = trees::scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    // 20 s of 4 Mbit/s.
    (0..160).for_each(|number| random_file(&tree.join(number.to_string()), 64 * 1024, number));
    std::thread::scope(|scope| {
        for (backend, direct, way) in [
            ("uring", "direct", Way::Up),
            ("poll", "direct", Way::Up),
            ("uring", "auto", Way::Up),
            ("poll", "direct", Way::Down),
        ] {
            let (tree, dir) = (&tree, &dir);
            scope.spawn(move || {
                let Some(cable) = Cable::with_queue("4mbit", "burst 8kb latency 400ms") else { return };
                let Some(sshd) = Sshd::behind(&cable, backend, SFTP) else { return };
                sshd.install("haul", binary());
                let target = tempfile::tempdir_in(dir.path()).unwrap();
                let (direct_as, ports) =
                    (format!("--direct={direct}"), format!("--port-range={}-{}", PORTS.0, PORTS.1));
                let mut copy =
                    haul(backend, ["copy", "-r", "--json", "--compress=none", "--connections=4", "--timeout=12"]);
                copy.args([&direct_as, &ports]).args(sshd.args()).arg("--");
                match way {
                    Way::Up => copy.arg(tree).arg(at(&sshd, target.path())),
                    _ => copy.arg(at(&sshd, tree)).arg(target.path()),
                };
                let ended = complete(&mut cable.without_terminal(&copy));
                ended.assert_exit(0);
                assert_same_tree(&target.path().join("tree"), tree);
                assert_eq!(ended.stdout.matches("\"type\":\"file\"").count(), 160, "{direct}, {way:?}");
                let summary: serde_json::Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
                let number = |name: &str| summary[name].as_f64().unwrap();
                let moved = number("bytes_per_second") * number("seconds");
                // 2.7 times, where a connection whose socket takes nothing for a while is given up.
                assert!(moved < 1.2 * number("bytes"), "{backend}, {direct}, {way:?}: sent twice: {summary}");
            });
        }
    });
}

#[test]
fn an_end_that_was_suspended_says_so_and_goes_on() {
    std::thread::scope(|scope| {
        for (backend, way) in BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way))) {
            scope.spawn(move || {
                let copy = Kept::new((backend, backend), way, 512 * MIB);
                let hit = (0..20).any(|_| {
                    let (mut client, server) = copy.start(&["-C", "--compress=none", "--timeout=3"]);
                    wait_for(LIMIT, || copy.partial_size() > 0 || client.is_over());
                    // As Ctrl-Z stops both it and the ssh that it has started, and fg lets it go on, the client first.
                    signal(server, Signal::STOP);
                    std::thread::sleep(Duration::from_millis(300));
                    let stopped = !client.is_over() && signal(client.pid(), Signal::STOP);
                    std::thread::sleep(Duration::from_secs(11));
                    signal(client.pid(), Signal::CONT);
                    std::thread::sleep(Duration::from_millis(700));
                    signal(server, Signal::CONT);
                    let ended = client.finish();
                    ended.assert_exit(0);
                    assert_eq!(hash_of(&copy.target()), copy.hash);
                    let said = ended.stderr.contains("this end was suspended for 1")
                        || ended.stdout.contains("this end was suspended for 1");
                    assert!(said || !stopped, "{backend}, {way:?}: {ended:?}");
                    fs::remove_file(copy.target()).unwrap();
                    stopped
                });
                assert!(hit, "{backend}, {way:?}: no copy was hit midway");
            });
        }
    });
}
