//! What haul says of itself is so: of proof, of output that was lost, of what is not kept, and of what is left behind.

use crate::support::processes::{
    Ended, LIMIT, Running, assert_nobody_at_home, at_home, complete, names, signal, wait_for,
};
use crate::support::{BACKENDS, Pipes, Remote as _, binary, haul, random_file};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::process::Command;

fn summary(ended: &Ended) -> Value {
    serde_json::from_str(ended.stdout.lines().last().unwrap_or_else(|| panic!("{ended:?}"))).unwrap()
}

#[track_caller]
fn assert_verified(ended: &Ended, code: i32, expected: (bool, u64)) {
    ended.assert_exit(code);
    let summary = summary(ended);
    assert_eq!((&summary["type"], &summary["exit"]), (&json!("summary"), &json!(code)));
    assert_eq!(
        (&summary["verified"], &summary["verified_files"]),
        (&json!(expected.0), &json!(expected.1)),
        "{summary}"
    );
}

#[test]
fn json_calls_a_run_verified_only_if_every_file_was_and_there_was_one() {
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        random_file(&dir.path().join("f"), 100_000, 1);
        let run = |words: &[&str], target: &str| {
            let mut command = haul(backend, ["copy", "--json"]);
            complete(command.args(pipes.args()).args(words).arg(target).current_dir(dir.path()))
        };
        for to in ["to-", "far:to-"] {
            let to = |name: &str| format!("{to}{name}");
            assert_verified(&run(&["-r", "empty"], &to("empty")), 0, (false, 0));
            assert_verified(&run(&["f"], &to("one")), 0, (true, 1));
            assert_verified(&run(&["f", "missing"], &to("some/")), 23, (false, 1));
            assert_verified(&run(&["missing"], &to("none")), 23, (false, 0));
            // The kernel copies within a machine, and both sides are read.
            let fast = if to("").starts_with("far:") { (false, 0) } else { (true, 1) };
            assert_verified(&run(&["--fast", "f"], &to("fast")), 0, fast);
        }
        let mut command = haul(backend, ["copy", "--json", "-e", "sh -c 'exec sleep 1000'", "f", "far:stopped"]);
        let running = Running::start(command.current_dir(dir.path()).env("HAUL_TIMEOUTS_MS", "60000,60000"));
        std::thread::sleep(std::time::Duration::from_millis(300));
        signal(running.pid(), Signal::INT);
        assert_verified(&running.finish(), 20, (false, 0));
    }
}

#[test]
fn output_that_is_lost_is_exit_code_11_and_a_reader_that_went_away_is_none() {
    let dir = tempfile::tempdir().unwrap();
    random_file(&dir.path().join("f"), 1000, 1);
    let commands: [&[&str]; 9] = [
        &["hash", "f"],
        &["hash", "--json", "f"],
        &["ls", "."],
        &["ls", "--json", "."],
        &["copy", "--json", "f", "g"],
        &["doctor"],
        &["--help"],
        &["copy", "--help"],
        &["--version"],
    ];
    for (backend, words) in BACKENDS.into_iter().flat_map(|backend| commands.map(|words| (backend, words))) {
        let to = |stdout: std::process::Stdio| {
            let mut command = haul(backend, words);
            command.current_dir(dir.path()).stdout(stdout).stderr(std::process::Stdio::piped());
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (code, said) = to(File::options().write(true).open("/dev/full").unwrap().into());
        assert_eq!(code, Some(11), "{words:?}: {said}");
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("copied ")).collect();
        assert_eq!(lines, ["haul: stdout: cannot write: No space left on device"], "{words:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (code, said) = to(writer.into());
        assert!(matches!(code, Some(0)) || words == ["doctor"], "{words:?}: {code:?}, {said}");
    }
}

#[test]
fn an_h_among_other_letters_is_no_request_for_help() {
    for words in
        [&["copy", "-ah", "a", "b"][..], &["copy", "-rhv", "a", "b"], &["ls", "-lh", "a"], &["copy", "-h4", "a"]]
    {
        let ended = complete(&mut haul("poll", words));
        ended.assert_exit(1);
        assert!(ended.stdout.is_empty(), "{ended:?}");
        let lines = ended.lines();
        assert!(lines[0].contains(words[1]) && lines[0].contains("stands alone"), "{ended:?}");
    }
    for words in [&["copy", "-h"][..], &["copy", "-a", "-h"], &["ls", "--help"], &["help", "copy"]] {
        let ended = complete(&mut haul("poll", words));
        ended.assert_exit(0);
        assert!(ended.stdout.contains("Usage:"), "{ended:?}");
    }
}

#[test]
fn what_a_bcmr_does_not_keep_is_said_and_that_it_is_not_what_was_asked_for() {
    const PLACE: &str = "haul: `/opt/nowhere/haul` does not run there; bcmr 0.7.2 answers in its place: \
                         times, modes and links not kept";
    for backend in BACKENDS {
        let pipes = Pipes::with_programs(backend, &[("bcmr", binary())]);
        random_file(&pipes.home().join("f"), 1000, 1);
        for operands in [["far:f", "down"], ["f", "far:up"]] {
            let run = |more: &[&str]| {
                let mut command = haul(backend, ["copy"]);
                complete(command.args(pipes.args()).args(more).args(operands).current_dir(pipes.home()))
            };
            let ended = run(&[]);
            ended.assert_exit(0);
            assert!(
                matches!(ended.lines()[..], [last] if last.contains(", times, modes and links not kept,")),
                "{ended:?}"
            );
            for (quiet, lines) in [(&["-q"][..], 1), (&[], 2)] {
                let ended = run(&[quiet, &["--remote-path", "/opt/nowhere/haul"]].concat());
                ended.assert_exit(0);
                assert_eq!((ended.lines()[0], ended.lines().len()), (PLACE, lines), "{ended:?}");
            }
            let ended = run(&["--json"]);
            assert_eq!(summary(&ended)["not_kept"], json!(["times", "modes", "links"]));
        }
        let full = Pipes::new(backend);
        let mut command = haul(backend, ["copy", "--json", "-p"]);
        let ended = complete(command.args(full.args()).arg(pipes.home().join("f")).arg("far:f"));
        assert_eq!(summary(&ended)["not_kept"], json!([]));
    }
}

#[test]
fn a_demo_that_is_stopped_leaves_neither_files_nor_a_server() {
    for (backend, told) in
        BACKENDS.into_iter().flat_map(|backend| [Signal::INT, Signal::TERM].map(|told| (backend, told)))
    {
        for serving in [false, true] {
            let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
            let [work, home] = ["work", "home"].map(|name| dir.path().join(name));
            fs::create_dir(&work).unwrap();
            fs::create_dir(&home).unwrap();
            let mut demo: Command = haul(backend, ["demo", "--size", "64", "--files", "3000", "--dir"]);
            let mut running = Running::start(demo.arg(&work).env("HOME", &home));
            let begun = wait_for(LIMIT, || {
                running.is_over() || if serving { at_home(&home).len() > 1 } else { !names(&work).is_empty() }
            });
            assert!(begun && signal(running.pid(), told));
            let ended = running.finish();
            ended.assert_exit(20);
            assert_eq!(ended.lines().last(), Some(&"haul: demo: interrupted; nothing is left behind"), "{ended:?}");
            assert!(names(&work).is_empty(), "{:?}", names(&work));
            assert_nobody_at_home(&home, LIMIT);
        }
    }
}
