//! `--connections auto`, which is what is meant where nothing is said: how many direct connections there are is found out
//! while the copy goes. Connections are counted, and what was decided is read, not how long it took.

use crate::support::between::{Between, Fate};
use crate::support::daemon::Listening;
use crate::support::kept::Kept;
use crate::support::processes::{LIMIT, assert_nobody_at_home, wait_for};
use crate::support::routes::{assert_same_tree, of_type};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Remote, assert_exit, at, hash_of, haul, trees};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File};
use std::process::Output;

const MIB: u64 = 1 << 20;
/// Does not travel compressed, whatever is in it.
const DIRECT: [&str; 2] = ["--direct=direct", "--compress=none"];

/// Until the others have shown to be of use, or of none: on a busy machine it may seem otherwise.
const TRIES: usize = 5;

fn routes() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

/// A copy over a network that treats each connection like this.
fn between(backend: &'static str, way: Way, size: u64, fate: Fate) -> (Between, Kept) {
    let (between, pipes) = Between::new(backend, move |_| fate);
    let mut copy = Kept::new((backend, backend), way, size as usize);
    copy.pipes = pipes;
    (between, copy)
}

/// How many connections the summary says there were, in their order; what it says must follow from itself.
#[track_caller]
fn steps(summary: &Value) -> Vec<u64> {
    let steps = summary["connections"].as_array().expect("connections over time");
    let number = |step: &Value, key: &str| step[key].as_u64().unwrap_or_else(|| panic!("{key} of {step}"));
    assert_eq!((number(&steps[0], "from"), number(&steps[0], "to")), (0, 1), "{summary}");
    for pair in steps.windows(2) {
        assert_eq!(number(&pair[1], "from"), number(&pair[0], "to"), "{summary}");
        assert!(number(&pair[1], "bytes") >= number(&pair[0], "bytes"), "{summary}");
        assert!(pair[1]["seconds"].as_f64() >= pair[0]["seconds"].as_f64(), "{summary}");
        assert!(number(&pair[1]["rate"], "bytes_per_second") > 0, "{summary}");
        assert!(!pair[1]["why"].as_str().unwrap().is_empty(), "{summary}");
    }
    steps.iter().map(|step| number(step, "to")).collect()
}

#[track_caller]
fn lines(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn where_each_connection_is_held_to_a_rate_more_are_opened() {
    for (backend, way) in routes() {
        let opened = (0..TRIES).any(|_| {
            let (between, copy) = between(backend, way, 384 * MIB, Fate::Each(24 * MIB));
            let output = copy.command(&DIRECT).output().unwrap();
            let summary = copy.is_complete(&output, &[]);
            let steps = steps(&summary);
            // Each decision has a line of its own, too.
            assert_eq!(of_type(&lines(&output), "connections").len(), steps.len() - 1);
            steps.iter().any(|&to| to >= 4) && between.came() >= 4
        });
        assert!(opened, "{backend}, {way:?}: fewer than four each time");
    }
}

#[test]
fn where_all_share_one_rate_those_that_came_leave_again_and_nothing_is_lost() {
    for (backend, way) in routes() {
        let left = (0..TRIES).any(|_| {
            let (between, copy) = between(backend, way, 256 * MIB, Fate::Together(64 * MIB));
            let (mut client, _) = copy.start(&DIRECT);
            wait_for(LIMIT, || between.left() > 0 || client.is_over());
            // At the end all leave.
            let early = between.take_bytes();
            let went_on = early + 8 * MIB < copy.size;
            let ended = client.finish();
            let output = Output {
                status: ended.status,
                stdout: ended.stdout.clone().into_bytes(),
                stderr: ended.stderr.clone().into_bytes(),
            };
            let summary = copy.is_complete(&output, &[]);
            let steps = steps(&summary);
            assert!(steps.starts_with(&[1, 2]), "{backend}, {way:?}: {summary}");
            // Nobody is told of a connection that was not needed, and what it had moved is not moved again.
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
            assert!(of_type(&lines(&output), "notice").is_empty());
            let moved = early + between.take_bytes();
            assert!((copy.size..copy.size + MIB).contains(&moved), "{moved} bytes for {}", copy.size);
            went_on && steps[2..].contains(&1)
        });
        assert!(left, "{backend}, {way:?}: more are kept each time");
    }
}

#[test]
fn the_same_with_a_tree_of_files_that_go_whole() {
    for (backend, way) in routes() {
        let dir = trees::scratch();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::create_dir(&source).unwrap();
        for number in 0..100 {
            File::create(source.join(number.to_string())).unwrap().set_len(3 * MIB / 2 + number).unwrap();
        }
        let tried = (0..TRIES).any(|_| {
            let _ = fs::remove_dir_all(&target);
            let (between, pipes) = Between::new(backend, |_| Fate::Together(64 * MIB));
            let (from, to) = match way {
                Way::Down => (at(&pipes, &source), target.clone().into_os_string()),
                _ => (source.clone().into_os_string(), at(&pipes, &target)),
            };
            let args = ["copy", "-rT", "--json"].iter().chain(&DIRECT).map(OsString::from);
            let output = haul(backend, args.chain(pipes.args()).chain([from, to])).output().unwrap();
            assert_exit(&output, 0);
            assert_nobody_at_home(&pipes.home(), LIMIT);
            assert_same_tree(&target, &source);
            let lines = lines(&output);
            assert_eq!(of_type(&lines, "file").len(), 100);
            assert!(of_type(&lines, "notice").is_empty(), "{lines:?}");
            steps(lines.last().unwrap()).starts_with(&[1, 2]) && between.came() >= 2
        });
        assert!(tried, "{backend}, {way:?}: one connection each time");
    }
}

#[test]
fn what_is_over_at_once_goes_over_one_connection() {
    for (backend, way) in routes() {
        for size in [0, 1, 70_000, 5_000_000] {
            let (between, copy) = between(backend, way, size, Fate::Through);
            let summary = copy.completed(&DIRECT);
            assert_eq!(steps(&summary), [1], "{backend}, {way:?}: {summary}");
            assert!(between.came() <= 1);
        }
    }
}

#[test]
fn a_number_is_taken_at_its_word() {
    let (between, copy) = between("poll", Way::Down, 128 * MIB, Fate::Together(64 * MIB));
    let summary = copy.completed(&[&DIRECT[..], &["--connections=3"]].concat());
    let steps = summary["connections"].as_array().unwrap();
    assert_eq!((steps.len(), &steps[0]["to"]), (1, &3.into()), "{summary}");
    assert_eq!(between.came(), 3);
}

#[test]
fn stats_say_in_words_how_many_there_were_and_why() {
    let (_between, copy) = between("poll", Way::Down, 192 * MIB, Fate::Together(64 * MIB));
    let mut command = copy.command(&[&DIRECT[..], &["--stats"]].concat());
    // Kept asks for JSON by itself.
    let args: Vec<_> = command.get_args().filter(|arg| *arg != "--json").map(ToOwned::to_owned).collect();
    command = haul("poll", args.into_iter().skip(2));
    let output = command.output().unwrap();
    assert_exit(&output, 0);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let told: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("haul: connections: ")).collect();
    assert_eq!(told[0], "1 at first", "{stderr}");
    assert!(
        told[1].starts_with("1 -> 2 at ") && told[1].ends_with(" MiB/s: to see whether more are faster"),
        "{stderr}"
    );
    assert!(told[2].starts_with("2 -> ") && told[2].contains("faster") && told[2].contains(" MiB/s: "), "{stderr}");
    assert!(stderr.lines().all(|line| line.len() <= 80 || !line.contains("connections: ")), "{stderr}");
}

#[test]
fn a_daemon_is_come_to_by_more_while_that_is_of_use() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    File::create(&source).unwrap().set_len(2048 * MIB).unwrap();
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        fs::hard_link(&source, daemon.root().join("large"))
            .or_else(|_| fs::copy(&source, daemon.root().join("large")).map(|_| ()))
            .unwrap();
        let (here, there) = (dir.path().join("target"), daemon.root().join("target"));
        let (from, to, target) = if backend == BACKENDS[0] {
            (OsString::from(daemon.at("large")), here.clone().into_os_string(), &here)
        } else {
            (source.clone().into_os_string(), daemon.at("target").into(), &there)
        };
        let ended = daemon.copy(backend, &["--json", "--compress=none"], from, to);
        ended.assert_exit(0);
        assert_eq!(hash_of(target), hash_of(&source));
        let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let steps = steps(lines.last().unwrap());
        // Two gibibytes take longer than it takes to decide for the first time, and go in ranges.
        assert!(steps.starts_with(&[1, 2]) && steps.iter().all(|&to| to <= 4), "{lines:?}");
        assert!(of_type(&lines, "notice").is_empty(), "{lines:?}");
        fs::remove_file(target).unwrap();
        assert_eq!(daemon.end(), "");
    }
}
