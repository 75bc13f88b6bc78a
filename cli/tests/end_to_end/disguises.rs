//! Names, operands and addresses that pretend to be something else.

use crate::support::processes::{complete, script};
use crate::support::{BACKENDS, Pipes, Remote as _, SFTP, Sshd, at, binary, haul, random_file};
use std::ffi::OsString;
use std::fs;
use std::process::Command;

/// Nothing of it is seen, or it turns around what stands beside it; how it is shown.
const HIDDEN: [(char, &str); 9] = [
    ('\u{200b}', "\\u{200b}"),
    ('\u{ad}', "\\u{ad}"),
    ('\u{e0041}', "\\u{e0041}"),
    ('\u{e007f}', "\\u{e007f}"),
    ('\u{feff}', "\\u{feff}"),
    ('\u{2060}', "\\u{2060}"),
    ('\u{202e}', "\\u{202e}"),
    ('\u{2067}', "\\u{2067}"),
    ('\u{3164}', "\\u{3164}"),
];

fn hides(text: &str) -> bool {
    HIDDEN.iter().any(|(hidden, _)| text.contains(*hidden))
}

#[test]
fn what_a_name_hides_is_shown_wherever_the_name_is() {
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let home = pipes.home();
        fs::create_dir(home.join("d")).unwrap();
        for (hidden, _) in HIDDEN {
            fs::write(home.join("d").join(format!("a{hidden}b")), "x").unwrap();
        }
        let run = |words: &[&str]| {
            let mut command = haul(backend, words);
            complete(command.args(pipes.args()).current_dir(&home))
        };
        for prefix in ["", "far:"] {
            let dir = format!("{prefix}d");
            let ended = run(&["ls", &dir]);
            assert!(!hides(&ended.stdout), "{ended:?}");
            assert!(HIDDEN.iter().all(|(_, shown)| ended.stdout.contains(&format!("a{shown}b\n"))), "{ended:?}");
            let target = format!("{}copy {}", if prefix.is_empty() { "far:" } else { "" }, prefix.len());
            let ended = run(&["copy", "-rv", &dir, &target]);
            ended.assert_exit(0);
            assert!(!hides(&ended.stderr), "{ended:?}");
            assert!(HIDDEN.iter().all(|(_, shown)| ended.stderr.contains(&format!("a{shown}b"))), "{ended:?}");
            // In JSON it is shown too, and means what it is.
            let ended = run(&["ls", "--json", &dir]);
            assert!(!hides(&ended.stdout), "{ended:?}");
            let names: Vec<String> = ended.stdout.lines().filter_map(path_of).collect();
            assert!(HIDDEN.iter().all(|(hidden, _)| names.contains(&format!("a{hidden}b"))), "{names:?}");
            for (hidden, shown) in HIDDEN {
                let missing = format!("{prefix}missing{hidden}");
                let ended = run(&["hash", &missing]);
                ended.assert_exit(23);
                assert!(!hides(&ended.stderr) && ended.stderr.contains(shown), "{ended:?}");
            }
        }
    }
}

fn path_of(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["path"].as_str().map(str::to_string)
}

#[test]
fn a_hash_on_a_terminal_shows_what_its_name_hides_and_in_a_pipe_is_what_b3sum_prints() {
    if Command::new("script").arg("--version").output().is_err() {
        return crate::support::skips::skip("script", "there is no script here", "util-linux");
    }
    let dir = tempfile::tempdir().unwrap();
    for (hidden, shown) in HIDDEN.into_iter().chain([('\u{1b}', "\\x1b"), ('\u{9b}', "\\u{9b}")]) {
        let name = format!("a{hidden}b");
        fs::write(dir.path().join(&name), "x").unwrap();
        let ended = complete(haul("poll", ["hash", &name]).current_dir(dir.path()));
        assert!(ended.stdout.ends_with(&format!("  {name}\n")), "{ended:?}");
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &format!("'{}' hash a*b", binary().display()), "/dev/null"]).current_dir(dir.path());
        let ended = complete(terminal.stdin(std::process::Stdio::null()));
        assert!(ended.stdout.contains(&format!("  a{shown}b")) && !ended.stdout.contains(hidden), "{ended:?}");
        fs::remove_file(dir.path().join(&name)).unwrap();
    }
}

/// Stands in for ssh, says which words it got, and never connects.
#[test]
fn no_operand_is_an_option_of_ssh() {
    let dir = tempfile::tempdir().unwrap();
    let (shell, got) = (dir.path().join("ssh"), dir.path().join("got"));
    script(&shell, &format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >>'{}'\nexit 255\n", got.display()));
    let hosts = ["-oProxyCommand=id", "-F", "-lroot", "-o", "--", "-p2", "a@-oProxyCommand=id", "-l@a", "[-F]", "-V"];
    for host in hosts {
        let forms = [format!("{host}:f"), format!("ssh://{host}/f"), format!("scp://{host}/f")];
        for operand in forms {
            for words in [&["copy", "-e"][..], &["ls", "-e"], &["hash", "-e"], &["doctor", "-e"]] {
                let mut command = haul("poll", words);
                command.arg(&shell).args(["--", &operand]).args((words[0] == "copy").then_some("."));
                complete(&mut command).assert_exit(1);
            }
        }
    }
    assert!(!got.exists(), "{}", fs::read_to_string(&got).unwrap());
    // What stands behind a host is no word of ssh's at all.
    for path in ["-oProxyCommand=id", "--", "-F"] {
        let mut command = haul("poll", ["copy", "-e"]);
        complete(command.arg(&shell).args(["--", &format!("far:{path}"), "."])).assert_exit(255);
        let words = fs::read_to_string(&got).unwrap();
        assert!(words.lines().all(|word| word != path || word == "--"), "{words}");
        let first = words.lines().position(|word| word == "--").unwrap();
        assert_eq!(words.lines().nth(first + 1), Some("far"), "{words}");
        fs::remove_file(&got).unwrap();
    }
}

#[test]
fn content_goes_nowhere_but_to_the_machine_that_ssh_reached() {
    for (backend, way) in BACKENDS.into_iter().flat_map(|backend| ["direct", "auto"].map(|way| (backend, way))) {
        let Some(sshd) = Sshd::bare(backend, SFTP) else { return };
        let source = sshd.dir().join("source");
        random_file(&source, 3 << 20, 1);
        for (address, honest) in [("127.0.0.9", false), ("127.0.0.1", true)] {
            let program = sshd.dir().join(format!("haul at {address}"));
            script(&program, &format!("#!/bin/sh\nexport HAUL_BIND={address}\nexec '{}' \"$@\"\n", binary().display()));
            let _ = fs::remove_file(sshd.dir().join("bin/haul"));
            sshd.install("haul", &program);
            let target = sshd.dir().join(format!("target {address}"));
            let mut copy = haul(backend, ["copy", "-v"]);
            copy.args(sshd.args()).arg(OsString::from(format!("--direct={way}"))).arg(&source).arg(at(&sshd, &target));
            let ended = complete(&mut copy);
            ended.assert_exit(if honest || way == "auto" { 0 } else { 10 });
            assert_eq!(ended.stderr.contains("which is not the address that ssh reached"), !honest, "{ended:?}");
            assert_eq!(ended.stderr.contains("content goes directly to"), honest, "{ended:?}");
            assert_eq!(target.exists(), honest || way == "auto");
        }
    }
}
