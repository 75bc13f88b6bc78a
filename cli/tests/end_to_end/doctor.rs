//! `haul doctor`: what it finds on sound hosts and on others, that it ends, and that it leaves nothing behind.

use crate::hostile_direct_client::{filtered, refusing};
use crate::options::can_trace;
use crate::support::between::Between;
use crate::support::daemon::Listening;
use crate::support::processes::{
    self, Ended, LIMIT, Running, assert_nobody_at_home, complete, names, signal, wait_for,
};
use crate::support::{BACKENDS, Pipes, Remote, Sshd, binary, haul};
use rustix::process::Signal;
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// Far more than any part of an examination may take, and far less than for ever.
const SOON: Duration = Duration::from_secs(60);

/// `haul doctor FLAGS.. TARGET` by way of this remote shell.
fn doctor(backend: &str, remote: &dyn Remote, flags: &[&str], target: &str) -> Command {
    let mut haul = haul(backend, ["doctor"]);
    haul.args(flags).args(remote.args()).arg(target);
    haul
}

/// The lines about this check, and those behind them up to the next one.
fn about<'a>(ended: &'a Ended, state: &str, end: &str, check: &str) -> Vec<&'a str> {
    let is_this = |line: &str| line.split_whitespace().take(3).eq([state, end, check]);
    let is_hint = |line: &&str| line.trim_start().starts_with("hint: ");
    let mut lines = ended.stdout.lines().skip_while(|line| !is_this(line));
    let first = lines.next();
    first.into_iter().chain(lines.take_while(is_hint)).collect()
}

/// Fails unless this check came out so, in these words, with a hint where something is to be done.
#[track_caller]
fn assert_found(ended: &Ended, [state, end, check]: [&str; 3], words: &str) {
    let lines = about(ended, state, end, check);
    assert!(lines.first().is_some_and(|line| line.contains(words)), "{words}: {ended:?}");
    assert_eq!(lines.len(), if state == "ok" { 1 } else { 2 }, "{ended:?}");
    assert!(!ended.stdout.chars().any(|c| c.is_control() && c != '\n'), "{:?}", ended.stdout);
}

fn json(ended: &Ended) -> Value {
    let mut lines = ended.stdout.lines();
    let document = serde_json::from_str(lines.next().expect("a line")).unwrap();
    assert_eq!(lines.next(), None, "{ended:?}");
    document
}

#[test]
fn a_sound_host_has_no_problem_and_nothing_stays_there() {
    for (near, far) in [("uring", "poll"), ("poll", "uring")] {
        let pipes = Pipes::new(far);
        let ended = complete(&mut doctor(near, &pipes, &[], "far"));
        ended.assert_exit(0);
        assert_eq!(ended.stderr, "");
        let names_of = [("uring", "io_uring"), ("poll", "epoll")];
        let name = |backend| names_of.iter().find(|(name, _)| *name == backend).unwrap().1;
        assert_found(&ended, ["ok", "between", "login"], "haul 0.1.0 answers");
        assert_found(&ended, ["ok", "between", "direct"], "127.0.0.1:");
        assert_found(&ended, ["ok", "between", "logins"], "3 at the same time");
        assert_found(&ended, ["ok", "here", "backend"], name(near));
        assert_found(&ended, ["ok", "there", "backend"], name(far));
        assert!(ended.stdout.lines().last().unwrap().starts_with("no problem, "), "{ended:?}");

        let ended = complete(&mut doctor(near, &pipes, &["--json"], "far:"));
        ended.assert_exit(0);
        let found = json(&ended);
        assert_eq!(
            (&found["schema"], &found["type"], &found["problems"]),
            (&"haul/1".into(), &"doctor".into(), &0.into())
        );
        for (end, backend) in [("here", near), ("there", far)] {
            let machine = &found[end];
            assert_eq!(machine["backend"], name(backend));
            for number in ["seals", "hashes", "cpus", "memory"] {
                assert!(machine[number].as_u64() > Some(0), "{end}, {number}: {machine}");
            }
            assert!(machine["disk"]["free"].as_u64() > Some(0) && machine["disk"]["synced"].is_null(), "{machine}");
        }
        assert_nobody_at_home(&pipes.home(), LIMIT);
        assert!(names(&pipes.home()).is_empty());
    }
}

#[test]
fn a_host_behind_sshd_is_examined() {
    for backend in BACKENDS {
        let Some(sshd) = Sshd::start(backend) else { return };
        let ended = complete(&mut doctor(backend, &sshd, &[], "far"));
        ended.assert_exit(0);
        assert_found(&ended, ["ok", "between", "direct"], "127.0.0.1:");
        assert_found(&ended, ["ok", "between", "round"], "ms through ssh");
        assert_found(&ended, ["ok", "between", "logins"], "3 at the same time");
    }
}

#[test]
fn a_host_that_refuses_some_of_several_logins_is_told_apart() {
    let pipes = Pipes::new("poll");
    let shell = pipes.dir().join("some");
    // The third that comes; the fourth is a copy's.
    let text = format!(
        "#!/bin/sh\nn=1\nwhile ! mkdir '{0}/'$n 2>/dev/null; do n=$((n+1)); done\n\
         case $n in 3) exit 255;; esac\nexec '{0}/ssh' \"$@\"\n",
        pipes.dir().display()
    );
    processes::script(&shell, &text);
    let ended = complete(&mut haul("poll", ["doctor".into(), "-e".into(), OsString::from(&shell), "far".into()]));
    ended.assert_exit(0);
    assert_found(&ended, ["warning", "between", "logins"], "2 of 3 at the same time");
    assert_found(&ended, ["ok", "between", "direct"], "127.0.0.1:");
    assert_nobody_at_home(&pipes.home(), LIMIT);
}

#[test]
fn a_directory_is_written_to_and_one_that_cannot_be_is_a_problem() {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let pipes = Pipes::new("poll");
    let ended = complete(&mut doctor("poll", &pipes, &["--json"], &format!("far:{path}")));
    ended.assert_exit(0);
    let found = json(&ended);
    for speed in ["synced", "unsynced"] {
        assert!(found["there"]["disk"][speed].as_u64() > Some(0), "{found}");
        assert!(found["here"]["disk"][speed].is_null(), "{found}");
    }
    let ended = complete(haul("poll", ["doctor", "--json", path]).current_dir("/"));
    ended.assert_exit(0);
    assert!(json(&ended)["here"]["disk"]["synced"].as_u64() > Some(0), "{ended:?}");
    assert!(names(dir.path()).is_empty());

    let ended = complete(&mut doctor("poll", &pipes, &[], &format!("far:{path}/it's missing")));
    ended.assert_exit(1);
    assert_found(&ended, ["problem", "there", "disk"], "it's missing: cannot write: No such file or directory");
    assert!(ended.stdout.lines().last().unwrap().starts_with("1 problem, "), "{ended:?}");
    let ended = complete(&mut haul("poll", ["doctor", &format!("{path}/missing")]));
    ended.assert_exit(1);
    assert_found(&ended, ["problem", "here", "disk"], "No such file or directory");
}

#[test]
fn a_port_that_cannot_be_reached_is_a_problem_that_names_it_and_the_range_to_open() {
    let (_kept, refusing) = refusing();
    let (_listener, _filling, filtered) = filtered();
    for (backend, (address, why)) in BACKENDS
        .into_iter()
        .flat_map(|b| [(refusing, "Connection refused"), (filtered, "does not answer")].map(|c| (b, c)))
    {
        for range in [None, Some("--port-range=40000-65000")] {
            let (_between, pipes) = Between::elsewhere(backend, address);
            let ended = complete(&mut doctor(backend, &pipes, &range.into_iter().collect::<Vec<_>>(), "far"));
            ended.assert_exit(1);
            assert_found(&ended, ["problem", "between", "direct"], &format!("{address}"));
            assert_found(&ended, ["problem", "between", "direct"], why);
            let open = range.map_or("name them with --port-range", |_| "Open TCP ports 40000-65000 there");
            assert_found(&ended, ["problem", "between", "direct"], open);
            assert_eq!(ended.stderr, "");
            assert!(ended.took < SOON);
        }
    }
}

#[test]
fn where_no_haul_answers_that_is_the_problem() {
    let bare = Pipes::with_programs("poll", &[]);
    let ended = complete(&mut doctor("poll", &bare, &[], "far"));
    ended.assert_exit(1);
    assert_found(&ended, ["problem", "between", "login"], "no haul answers");
    assert!(about(&ended, "problem", "between", "direct").is_empty());
    let broken = Pipes::with_programs("poll", &[("haul", "/bin/true".as_ref())]);
    let ended = complete(&mut doctor("poll", &broken, &[], "far"));
    ended.assert_exit(1);
    assert_found(&ended, ["problem", "between", "login"], "does not run, or is another program");
}

/// A far end whose haul does this for `haul doctor`, and all else as it should.
fn acting(act: &str) -> (tempfile::TempDir, Pipes) {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let program = dir.path().join("haul");
    let real = binary().display();
    processes::script(&program, &format!("#!/bin/sh\n[ \"$1\" = doctor ] || exec '{real}' \"$@\"\n{act}\n"));
    let pipes = Pipes::with_program("poll", &program);
    (dir, pipes)
}

#[test]
fn whatever_the_far_end_says_of_itself_is_bounded_and_costs_a_warning() {
    let machine = r#"{"version":"1","system":"s","cpus":1,"backend":"b","seals":1,"hashes":1,"disk":{"path":"/"}}"#;
    let table = [
        ("exit 2", "older than this one"),
        ("echo garbage", "makes no sense"),
        ("printf '\\033[31m\\n'", "makes no sense"),
        ("exec yes", "makes no sense"),
        ("exec tr '\\0' '{' </dev/zero", "too long"),
        ("head -c 60000 /dev/zero | tr '\\0' '['; echo", "makes no sense"),
        ("echo '{\"schema\":\"haul/1\",\"here\":{}}'", "makes no sense"),
        ("echo '{\"schema\":\"haul/1\",\"here\":{\"version\":1e999}}'", "makes no sense"),
        (&format!("echo '{{\"schema\":\"haul/2\",\"here\":{machine}}}'"), "another schema"),
        ("exec sleep 1000", "in time"),
    ];
    let runs: Vec<_> = table
        .into_iter()
        .map(|(act, words)| {
            let (dir, pipes) = acting(act);
            let running = Running::start(&mut doctor("poll", &pipes, &[], "far"));
            (dir, pipes, running, act.to_string(), words)
        })
        .collect();
    for (_dir, pipes, running, act, words) in runs {
        eprintln!("{act}");
        let ended = running.finish_within(SOON);
        ended.assert_exit(0);
        assert_found(&ended, ["warning", "there", "system"], words);
        assert_found(&ended, ["ok", "between", "direct"], "127.0.0.1:");
        assert_nobody_at_home(&pipes.home(), LIMIT);
    }
}

#[test]
fn what_the_far_end_says_is_shown_without_what_acts_on_a_terminal() {
    let machine =
        r#"{"version":"\u001b[31m1","system":"s\u0007","cpus":1,"backend":"epoll","no_uring":"no\u202e","seals":1,
        "hashes":18446744073709551615,"disk":{"path":"/\u001b","failed":"\n\nproblem"}}"#
            .replace("\n        ", "");
    let (_dir, pipes) = acting(&format!("cat <<'END'\n{{\"schema\":\"haul/1\",\"here\":{machine}}}\nEND"));
    let ended = complete(&mut doctor("poll", &pipes, &[], "far"));
    ended.assert_exit(1);
    assert_found(&ended, ["ok", "there", "system"], "haul \\x1b[31m1, s\\x07, 1 CPU");
    assert_found(&ended, ["warning", "there", "backend"], "epoll: no\\u{202e}");
    assert_found(&ended, ["warning", "there", "cipher"], "AES-256-GCM 0.00 GB/s");
    assert_found(&ended, ["problem", "there", "disk"], "/\\x1b: \\n\\nproblem");
}

#[test]
fn remote_shells_that_say_nothing_too_much_or_no_are_given_up() {
    let table = [
        ("exit 255", "ssh failed; it said why"),
        ("exit 0", "without running the command"),
        ("exec yes", "prints too much"),
        ("exec tr '\\0' x </dev/zero", "prints too much"),
        ("exec sleep 1000", "no answer in time"),
    ];
    for (act, words) in table {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        let shell = dir.path().join("ssh");
        processes::script(&shell, &format!("#!/bin/sh\nexport HOME='{}'\n{act}\n", dir.path().display()));
        let mut doctor = haul("poll", ["doctor".into(), "-e".into(), OsString::from(&shell), "far".into()]);
        let ended = Running::start(doctor.env("HAUL_TIMEOUTS_MS", "500,2000")).finish_within(SOON);
        ended.assert_exit(1);
        assert_found(&ended, ["problem", "between", "login"], words);
        assert_nobody_at_home(dir.path(), LIMIT);
    }
}

#[test]
fn an_account_that_runs_haul_in_place_of_commands_is_met_all_the_same() {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let shell = dir.path().join("ssh");
    let real = binary().display();
    let text = format!(
        "#!/bin/sh\nfor last; do :; done\nSSH_ORIGINAL_COMMAND=$last exec '{real}' serve --root / 2>/dev/null\n"
    );
    processes::script(&shell, &text);
    let mut doctor = haul("poll", ["doctor".into(), "-e".into(), OsString::from(&shell), "far".into()]);
    let ended = Running::start(&mut doctor).finish_within(SOON);
    ended.assert_exit(0);
    assert_found(&ended, ["warning", "there", "system"], "a program of its own");
    assert_found(&ended, ["ok", "between", "direct"], "127.0.0.1:");
}

#[test]
fn io_uring_that_is_refused_is_a_warning_with_the_reason() {
    if !can_trace() {
        return;
    }
    let refused =
        ["-f", "-qq", "-e", "trace=io_uring_setup", "-e", "inject=io_uring_setup:error=EPERM", "-o", "/dev/null"];
    let mut strace = Command::new("strace");
    strace.args(refused).arg(binary()).arg("doctor").env_remove("HAUL_BACKEND");
    let ended = complete(&mut strace);
    ended.assert_exit(0);
    assert_found(&ended, ["warning", "here", "backend"], "io_uring cannot be used: ");
}

#[test]
fn whoever_interrupts_it_is_rid_of_it_at_once() {
    let (_dir, pipes) = acting("exec sleep 1000");
    for kind in [Signal::INT, Signal::TERM] {
        let running = Running::start(&mut doctor("poll", &pipes, &[], "far"));
        let examined = || {
            processes::at_home(&pipes.home())
                .into_iter()
                .any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0")))
        };
        assert!(wait_for(LIMIT, examined));
        assert!(signal(running.pid(), kind));
        let ended = running.finish_within(SOON);
        ended.assert_exit(20);
        assert_eq!(ended.stderr, "haul: interrupted\n");
        assert_nobody_at_home(&pipes.home(), LIMIT);
    }
}

#[test]
fn a_daemon_is_reached_with_its_key_only() {
    for backend in BACKENDS {
        let daemon = Listening::start(backend);
        let ended = complete(daemon.command(backend, "doctor", &[]).arg(format!("haul://{}", daemon.address)));
        ended.assert_exit(0);
        assert_found(&ended, ["ok", "between", "daemon"], &format!("{} reached, encrypted", daemon.address));
        let other = daemon.key_file().with_file_name("other");
        complete(&mut haul(backend, ["keygen".into(), OsString::from(&other)])).assert_exit(0);
        let mut wrong = haul(backend, ["doctor".into(), "--key-file".into(), OsString::from(&other)]);
        let ended = complete(wrong.arg(format!("haul://{}", daemon.address)));
        ended.assert_exit(1);
        assert_found(&ended, ["problem", "between", "daemon"], "its key may be another one");
        daemon.end();
    }
}

#[test]
fn the_help_tells_the_exit_codes_and_what_makes_no_sense_is_usage() {
    let ended = complete(&mut haul("poll", ["doctor", "--help"]));
    ended.assert_exit(0);
    for line in ["Exit codes:", "  0  no finding is a problem", "  1  one is"] {
        assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
    }
    for target in ["-oProxyCommand=x:/f", "haul://host:1/path", "a;b:f", ""] {
        complete(&mut haul("poll", ["doctor", "--", target])).assert_exit(1);
    }
}
