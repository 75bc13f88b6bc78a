//! Servers that do not say that they live: what they are at has its time, and after that nobody is there.

use crate::support::frames::{BASES, FarEnd, Received, attributes, blake3_of, play_hurried};
use crate::support::processes::{self, Ended, LIMIT, complete};
use crate::support::{BACKENDS, Pipes, Remote, at, haul, random_file, trees};
use haul_engine::wire::frame::{Frame, Kind};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A second of silence without any work; two, where nobody knows how much work it is.
const SOON: &str = "3000,30000,30000,60000,2000,1000,1000";
const SECOND: Duration = Duration::from_secs(1);
/// What a slow disk takes three seconds for.
const SIZE: usize = 30_000_000;
/// For a busy machine.
const BUSY: Duration = Duration::from_secs(20);

fn play(backend: &str, words: &[OsString], act: impl FnOnce(&mut FarEnd) + Send) -> Ended {
    let args = |pipes: &Pipes| [words[0].clone()].into_iter().chain(pipes.args()).chain(words[1..].to_vec()).collect();
    play_hurried(backend, SOON, LIMIT, args, act)
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Fails unless it was given up after so long and not much later, in one line.
#[track_caller]
fn assert_given_up(ended: &Ended, after: Duration, line: &str) {
    ended.assert_exit(30);
    assert!(ended.stderr.contains(line), "{ended:?}, not {line}");
    assert!(ended.took >= after && ended.took < after + BUSY, "{ended:?}");
}

/// Takes a Put with its content; the hash of that.
#[track_caller]
fn take(far: &mut FarEnd) -> [u8; 32] {
    let mut content = Vec::new();
    loop {
        match far.input.next().expect("the client ended the stream") {
            Received::Data(bytes) => content.extend(bytes),
            Received::Frame(Frame::Done) => return blake3_of(&content),
            Received::Frame(Frame::Put { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_end_of_a_put_may_take_as_long_as_a_slow_disk_does_and_no_longer() {
    let dir = trees::scratch();
    let source = dir.path().join("f");
    random_file(&source, SIZE, 1);
    let copy = words(&["copy", "--compress=none", source.to_str().unwrap(), "far:f"]);
    std::thread::scope(|scope| {
        for backend in BACKENDS {
            let copy = &copy;
            scope.spawn(move || {
                play(backend, copy, |far| {
                    far.greet(BASES[0]);
                    far.looked_up(None);
                    let hash = take(far);
                    std::thread::sleep(2 * SECOND);
                    far.send(&Frame::Ok { hash: Some(hash) });
                    far.drain();
                })
                .assert_exit(0);
                let ended = play(backend, copy, |far| {
                    far.greet(BASES[0]);
                    far.looked_up(None);
                    take(far);
                    far.hold();
                });
                assert_given_up(&ended, 4 * SECOND, "has said nothing for 4 s");
            });
        }
    });
}

#[test]
fn a_hash_may_take_as_long_as_a_slow_disk_does_and_no_longer() {
    let question = words(&["hash", "far:f"]);
    let asked = |far: &mut FarEnd| {
        far.greet(BASES[0]);
        far.looked_up(Some(attributes(Kind::Regular, SIZE as u64)));
        let request = far.request();
        assert!(matches!(request, Frame::Hash { offset: 0, limit: None, .. }), "{request:?}");
    };
    std::thread::scope(|scope| {
        for backend in BACKENDS {
            let question = &question;
            scope.spawn(move || {
                let ended = play(backend, question, |far| {
                    asked(far);
                    std::thread::sleep(2 * SECOND);
                    far.send(&Frame::HashResponse { hash: [7; 32] });
                    far.drain();
                });
                ended.assert_exit(0);
                assert!(ended.stdout.starts_with("0707"), "{ended:?}");
                let ended = play(backend, question, |far| {
                    asked(far);
                    far.hold();
                });
                assert_given_up(&ended, 4 * SECOND, "has said nothing for 4 s");
            });
        }
    });
}

#[test]
fn what_is_no_work_or_work_of_unknown_size_has_its_time_too() {
    let (stat, list) = (words(&["ls", "far:f"]), words(&["ls", "-R", "far:d"]));
    std::thread::scope(|scope| {
        for backend in BACKENDS {
            let (stat, list) = (&stat, &list);
            scope.spawn(move || {
                let ended = play(backend, stat, |far| {
                    far.greet(BASES[0]);
                    far.request();
                    far.hold();
                });
                assert_given_up(&ended, SECOND, "has said nothing for 1 s");
                let ended = play(backend, list, |far| {
                    far.greet(BASES[0]);
                    far.looked_up(Some(attributes(Kind::Directory, 0)));
                    far.request();
                    far.hold();
                });
                assert_given_up(&ended, 3 * SECOND, "has said nothing for 3 s");
            });
        }
    });
}

#[test]
fn a_server_that_takes_nothing_has_no_more_time_than_one_that_says_nothing() {
    let dir = trees::scratch();
    let source = dir.path().join("f");
    random_file(&source, SIZE, 1);
    let copy = words(&["copy", "--compress=none", source.to_str().unwrap(), "far:f"]);
    for backend in BACKENDS {
        let ended = play(backend, &copy, |far| {
            far.greet(BASES[0]);
            far.looked_up(None);
            far.hold();
        });
        assert_given_up(&ended, SECOND, "has read nothing for 1 s");
    }
}

/// What ssh would be told by `haul ls FLAGS`.
fn told(home: &Path, flags: &[&str]) -> String {
    let far = Pipes::new(BACKENDS[1]);
    let (ssh, log) = (far.dir().join("ssh"), far.dir().join("log"));
    let script = fs::read_to_string(&ssh).unwrap().replacen('\n', &format!("\necho \"$*\" > '{}'\n", log.display()), 1);
    processes::script(&ssh, &script);
    let mut args = words(&["ls"]);
    args.extend(far.args());
    args.extend(words(flags));
    args.push(at(&far, Path::new(".")));
    complete(haul(BACKENDS[1], args).env("HOME", home)).assert_exit(0);
    let said = fs::read_to_string(log).unwrap();
    said.split(" -- ").next().unwrap().to_string()
}

#[test]
fn ssh_is_told_to_ask_whether_the_other_end_is_there_unless_the_user_has_said_how() {
    let home = trees::scratch();
    let told = |flags: &[&str]| told(home.path(), flags);
    assert!(told(&[]).ends_with("-o ServerAliveInterval=7 -o ServerAliveCountMax=2"), "{}", told(&[]));
    assert!(told(&["--timeout", "6"]).contains("ServerAliveInterval=2 "));
    // Of two the first one counts.
    let said = told(&["-o", "ServerAliveInterval=77"]);
    assert!(said.find("=77").unwrap() < said.find("ServerAliveInterval=7 ").unwrap(), "{said}");
    fs::create_dir(home.path().join(".ssh")).unwrap();
    fs::write(home.path().join(".ssh/config"), "Host *\n  serverAliveInterval 60\n").unwrap();
    assert!(!told(&[]).contains("ServerAlive"), "{}", told(&[]));
    let other = home.path().join("other");
    fs::write(&other, "Host *\n").unwrap();
    assert!(told(&["-F", other.to_str().unwrap()]).contains("ServerAliveInterval=7"));
}
