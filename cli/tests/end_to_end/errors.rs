//! What a user reads when something does not work: one line with the path, what failed and why, perhaps one hint, and an
//! exit code from the table. The texts here are what is promised.

use crate::support::processes::{self, Ended, Somebody, complete, in_private_mounts, mount_tmpfs};
use crate::support::{BACKENDS, Pipes, Remote, binary, haul};
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Words of the program's inside that no user shall read.
const INTERNAL: [&str; 8] = ["os error", "Errno", "panicked", "openat", "uring", "Failure", "Some(", "cancelled"];

/// What is wrong with what was said, if anything, when all of it should be `expected`, with `{d}` for the directory.
fn wrong(ended: &Ended, dir: &Path, code: i32, expected: &str) -> Option<String> {
    let expected = expected.replace("{d}", dir.to_str().unwrap());
    // What was copied all the same stands in a line of its own.
    let said: String =
        ended.stderr.lines().filter(|line| !line.starts_with("copied ")).map(|l| format!("{l}\n")).collect();
    let internal = INTERNAL.iter().any(|word| ended.stderr.contains(word));
    let acts = ended.stderr.chars().any(|c| c.is_control() && c != '\n');
    let right = said == expected && ended.status.code() == Some(code) && !internal && !acts;
    (!right).then(|| format!("said: {said}not:  {expected}code {:?}, not {code}\n", ended.status.code()))
}

#[track_caller]
fn assert_says(ended: &Ended, dir: &Path, code: i32, expected: &str) {
    assert_eq!(wrong(ended, dir, code, expected), None);
}

/// Where things stand, seen from haul: here or on the far end.
const ROUTES: [(&str, &str); 3] = [("", "far:"), ("far:", ""), ("", "")];

struct Case {
    args: &'static [&'static str],
    /// `SRC` and `DST` stand for where the source and the target are.
    says: &'static str,
    code: i32,
}

/// What anybody gets.
const ANYBODY: [Case; 11] = [
    Case {
        args: &["SRC{d}/missing", "DST{d}/new"],
        says: "haul: SRC{d}/missing: cannot stat: No such file or directory\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/a/f/x", "DST{d}/new"],
        says: "haul: SRC{d}/a/f/x: cannot stat: Not a directory\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/a", "DST{d}/new"],
        says: "haul: SRC{d}/a: left out: it is a directory, and -r was not given\nhint: use -r to copy directories\n",
        code: 23,
    },
    Case {
        args: &["-r", "SRC{d}/a", "DST{d}/b"],
        says: "haul: DST{d}/b: cannot copy into it: Not a directory\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/a/f", "SRC{d}/a/g", "DST{d}/b"],
        says: "haul: DST{d}/b: cannot copy into it: Not a directory\n",
        code: 23,
    },
    Case { args: &["SRC{d}/a/f", "DST{d}/b/c"], says: "haul: DST{d}/b/c: cannot stat: Not a directory\n", code: 23 },
    Case {
        args: &["-T", "SRC{d}/a/f", "DST{d}/dir"],
        says: "haul: DST{d}/dir: cannot create: Is a directory\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/a/f", "DST{d}/LONG"],
        says: "haul: DST{d}/LONG: cannot stat: File name too long\nhint: most file systems allow 255 bytes for one name\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/LONG", "DST{d}/new"],
        says: "haul: SRC{d}/LONG: cannot stat: File name too long\nhint: most file systems allow 255 bytes for one name\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/fifo", "DST{d}/new"],
        says: "haul: SRC{d}/fifo: cannot open: Not a regular file\n",
        code: 23,
    },
    // One bad source does not stop the others.
    Case {
        args: &["SRC{d}/a/f", "SRC{d}/missing", "SRC{d}/a/g", "DST{d}/all/"],
        says: "haul: SRC{d}/missing: cannot stat: No such file or directory\n",
        code: 23,
    },
];

/// What those get to whom permissions apply.
const SOMEBODY: [Case; 7] = [
    Case {
        args: &["SRC{d}/secret", "DST{d}/new"],
        says: "haul: SRC{d}/secret: cannot open: Permission denied\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/closed/f", "DST{d}/new"],
        says: "haul: SRC{d}/closed/f: cannot stat: Permission denied\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/a/f", "DST{d}/locked/f"],
        says: "haul: DST{d}/locked/f: cannot create: Permission denied\n",
        code: 23,
    },
    Case {
        args: &["--mkpath", "SRC{d}/a/f", "DST{d}/locked/sub/f"],
        says: "haul: DST{d}/locked/sub/f: cannot create: Permission denied\n",
        code: 23,
    },
    Case {
        args: &["SRC{d}/a/f", "DST{d}/closed/x"],
        says: "haul: DST{d}/closed/x: cannot stat: Permission denied\n",
        code: 23,
    },
    Case {
        args: &["-r", "SRC{d}/closed", "DST{d}/all"],
        says: "haul: SRC{d}/closed: cannot list: Permission denied\n",
        code: 23,
    },
    Case {
        args: &["-r", "SRC{d}/mixed/", "DST{d}/all"],
        says: "haul: SRC{d}/mixed/secret: cannot open: Permission denied\n",
        code: 23,
    },
];

/// Makes what the cases talk about.
fn prepare(dir: &Path) {
    for name in ["a", "dir", "locked", "closed", "mixed"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    for name in ["a/f", "a/g", "b", "secret", "closed/f", "mixed/1", "mixed/secret", "mixed/2"] {
        fs::write(dir.join(name), "content").unwrap();
    }
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    for (name, mode) in [("secret", 0), ("mixed/secret", 0), ("locked", 0o555), ("closed", 0)] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn check(cases: &[Case], somebody: &Somebody, as_somebody: bool) {
    let mut mistakes = Vec::new();
    for (backend, (from, to)) in BACKENDS.into_iter().flat_map(|backend| ROUTES.map(|route| (backend, route))) {
        for case in cases {
            let dir = tempfile::Builder::new().prefix("case-").tempdir_in(somebody.work()).unwrap();
            prepare(dir.path());
            let all = fs::Permissions::from_mode(0o777);
            fs::set_permissions(dir.path(), all).unwrap();
            let filled = |text: &str| {
                let text = text.replace("SRC", from).replace("DST", to).replace("LONG", &"n".repeat(256));
                text.replace("{d}", dir.path().to_str().unwrap())
            };
            let pipes = somebody.pipes(backend);
            let mut args = vec!["copy".into()];
            args.extend(pipes.args());
            args.extend(case.args.iter().map(|arg| filled(arg).into()));
            let mut command = if as_somebody { somebody.haul(backend, &args) } else { haul(backend, &args) };
            let ended = complete(&mut command);
            mistakes.extend(wrong(&ended, dir.path(), case.code, &filled(case.says)));
            assert!(!dir.path().join("new").exists());
            let all_copied = |names: &[&str]| names.iter().all(|name| dir.path().join("all").join(name).exists());
            assert!(!case.args.contains(&"DST{d}/all/") || all_copied(&["f", "g"]));
            assert!(!case.args.contains(&"SRC{d}/mixed/") || all_copied(&["1", "2"]));
            for name in ["locked", "closed"] {
                fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
    }
    assert!(mistakes.is_empty(), "{} mistakes:\n{}", mistakes.len(), mistakes.concat());
}

#[test]
fn what_cannot_be_copied_is_told_in_one_line() {
    check(&ANYBODY, &Somebody::new(), false);
}

/// A reader of stderr that has gone, and a disk behind it that is full.
#[test]
fn a_stderr_that_takes_nothing_stops_no_copy() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ok"), "ok").unwrap();
    for backend in BACKENDS {
        for stderr in [None, Some("/dev/full")] {
            let target = dir.path().join("target");
            fs::create_dir(&target).unwrap();
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let mut command = haul(backend, ["copy", "-v", "missing", "ok"]);
            command.arg(&target).current_dir(dir.path());
            match stderr {
                None => command.stderr(writer),
                Some(path) => command.stderr(fs::File::options().write(true).open(path).unwrap()),
            };
            assert_eq!(command.status().unwrap().code(), Some(23), "{backend}, {stderr:?}");
            assert_eq!(fs::read(target.join("ok")).unwrap(), b"ok");
            fs::remove_dir_all(&target).unwrap();
        }
    }
}

#[test]
fn permissions_that_are_missing_are_told_in_one_line() {
    let somebody = Somebody::new();
    let probe = tempfile::Builder::new().prefix("probe-").tempdir_in(somebody.work()).unwrap();
    prepare(probe.path());
    somebody.assert_refused("cat", &[probe.path().join("secret").as_os_str()]);
    somebody.assert_refused("touch", &[probe.path().join("locked/f").as_os_str()]);
    somebody.assert_refused("ls", &[probe.path().join("closed").as_os_str()]);
    check(&SOMEBODY, &somebody, true);
    check(&ANYBODY, &somebody, true);
}

#[test]
fn a_read_only_file_system_is_told_in_one_line() {
    if !in_private_mounts("a_read_only_file_system_is_told_in_one_line") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let _mounted = mount_tmpfs(&dir.path().join("ro"), "ro");
    fs::write(dir.path().join("f"), "content").unwrap();
    assert!(fs::write(dir.path().join("ro/x"), "").is_err());
    for (backend, (from, to)) in BACKENDS.into_iter().flat_map(|backend| ROUTES.map(|route| (backend, route))) {
        let pipes = Pipes::new(backend);
        let mut args = vec!["copy".into()];
        args.extend(pipes.args());
        args.extend([
            format!("{from}{}/f", dir.path().display()).into(),
            format!("{to}{}/ro/f", dir.path().display()).into(),
        ]);
        let ended = complete(&mut haul(backend, args));
        let says = format!(
            "haul: {to}{{d}}/ro/f: cannot create: Read-only file system\nhint: the target's file system is mounted read-only\n"
        );
        assert_says(&ended, dir.path(), 23, &says);
    }
}

/// Runs `haul copy -e SCRIPT .. far:f .`, where the script is the remote shell, in an empty directory.
fn with_shell(backend: &str, script: &str, more: &[&str]) -> (Ended, tempfile::TempDir) {
    let pipes = Pipes::new(backend);
    fs::write(pipes.home().join("f"), "content").unwrap();
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let shell = dir.path().join("shell");
    let ssh = pipes.dir().join("ssh");
    processes::script(&shell, &format!("#!/bin/sh\n{}\n", script.replace("SSH", ssh.to_str().unwrap())));
    let mut args: Vec<&OsStr> = vec!["copy".as_ref(), "-e".as_ref(), shell.as_os_str()];
    args.extend(more.iter().map(AsRef::<OsStr>::as_ref));
    args.extend(["far:f".as_ref(), dir.path().as_os_str()]);
    (complete(&mut haul(backend, args)), dir)
}

#[test]
fn a_remote_shell_that_fails_is_told_apart_from_a_haul_that_is_missing_there() {
    let missing = "haul: cannot start haul on the remote side: it is not installed there\n\
                   hint: copy this program to a directory on the PATH there, or name it with --remote-path\n";
    let junk = |text: &str| format!("haul: cannot start haul on the remote side: the remote shell printed `{text}`\n");
    let silent = "haul: cannot start haul on the remote side: the connection closed without a word\n";
    let (ssh_says, account) =
        ("ssh: Could not resolve hostname far: Name or service not known", "This account is not available.");
    let table = [
        (format!("echo '{ssh_says}' >&2; exit 255"), &[][..], 255, format!("{ssh_says}\nhaul: ssh failed\n")),
        ("exec SSH \"$@\"".to_string(), &["--remote-path", "/no/such/haul"], 5, missing.to_string()),
        ("exec SSH \"$@\"".to_string(), &["--remote-path", "haul-is-not-there"], 5, missing.to_string()),
        (format!("echo '{account}'; exit 1"), &[], 5, junk(account)),
        (format!("printf %s '{account}'; exit 1"), &[], 5, junk(account)),
        ("printf '\\033[2Jx\\n'; exit 0".to_string(), &[], 5, junk("\\x1b[2Jx")),
        ("exit 1".to_string(), &[], 5, silent.to_string()),
        ("exit 0".to_string(), &[], 5, silent.to_string()),
    ];
    for (backend, (script, more, code, says)) in
        BACKENDS.into_iter().flat_map(|b| table.iter().map(move |row| (b, row)))
    {
        eprintln!("{script}");
        let (ended, dir) = with_shell(backend, script, more);
        assert_says(&ended, dir.path(), *code, says);
        assert!(!dir.path().join("f").exists());
    }
}

#[test]
fn what_a_login_shell_prints_first_does_not_matter() {
    for backend in BACKENDS {
        for noise in [
            "echo Welcome",
            "printf 'no newline'",
            "seq 1 10000",
            "printf 'a\\r\\n\\n\\n \\033[1m'",
            "head -c 60000 /dev/zero",
        ] {
            let (ended, dir) = with_shell(backend, &format!("{noise}\nexec SSH \"$@\""), &[]);
            ended.assert_exit(0);
            assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"content");
            assert_eq!(ended.lines().len(), 1, "{ended:?}");
        }
    }
}

#[test]
fn a_remote_shell_that_never_stops_printing_is_given_up() {
    for backend in BACKENDS {
        for noise in ["exec yes", "exec cat /dev/zero"] {
            let (ended, _) = with_shell(backend, noise, &[]);
            ended.assert_exit(5);
            assert!(ended.stderr.starts_with("haul: cannot start haul on the remote side: "), "{ended:?}");
            assert!(ended.took < Duration::from_secs(30), "{ended:?}");
        }
    }
}

#[test]
fn a_remote_shell_that_cannot_be_run_is_told_in_one_line() {
    for backend in BACKENDS {
        let ended = complete(&mut haul(backend, ["copy", "-e", "/no/such/ssh -x", "far:f", "."]));
        assert_says(&ended, Path::new("/"), 5, "haul: /no/such/ssh: cannot start: No such file or directory\n");
    }
}

#[test]
fn the_real_ssh_that_reaches_nobody_is_an_ssh_failure() {
    if Command::new("ssh").arg("-V").output().is_err() {
        crate::support::skips::skip("ssh", "there is no ssh here", "OpenSSH's client");
        return;
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    for backend in BACKENDS {
        let ended = complete(&mut haul(backend, ["copy", "-F", "/dev/null", "--port", &free, "127.0.0.1:f", "."]));
        ended.assert_exit(255);
        assert!(ended.stderr.contains("Connection refused"), "{ended:?}");
        assert_eq!(ended.lines().last(), Some(&"haul: ssh failed"));
    }
}

#[test]
fn options_of_other_tools_are_refused_with_the_nearest_spelling() {
    let table = [
        ("--checksum", "hint: every file is checked by its hash anyway"),
        ("-c", "hint: every file is checked by its hash anyway"),
        ("--progress", "hint: progress is shown on a terminal anyway"),
        ("--times", "hint: times are kept anyway"),
        ("-t", "hint: times are kept anyway"),
        ("--rsync-path=x", "hint: use --remote-path"),
        ("-n", "hint: there is no dry run yet; `haul ls -R` lists what is there"),
        ("--delete", "hint: haul never deletes"),
    ];
    for (option, hint) in table {
        let ended = complete(Command::new(binary()).args(["copy", option, "a", "b"]));
        ended.assert_exit(1);
        assert!(ended.stderr.starts_with("error: unexpected argument '"), "{ended:?}");
        assert!(ended.lines().contains(&hint), "{option}: {ended:?}");
    }
}

#[test]
fn command_lines_that_make_no_sense_are_usage_errors() {
    let table: [(&[&str], &str); 7] = [
        (&["copy", "a"], "a source and a target are needed"),
        (&["copy", "--backend", "magic", "a", "b"], ""),
        (&["copy", "x:a", "y:b", "c"], "all sources must be on the same machine"),
        (&["copy", "x:a", "y:b"], "one side of a copy must be this machine"),
        (&["copy", "-T", "a", "b", "c"], "-T takes one source"),
        (&["copy", "a;b:/f", "c"], "`a;b` is not a host name"),
        (&["serve", "--root", "/", "--listen", "192.0.2.1:0"], "only loopback addresses"),
    ];
    for (args, words) in table {
        let ended = complete(Command::new(binary()).args(args));
        ended.assert_exit(1);
        assert!(ended.stderr.contains(words), "{ended:?}");
        assert!(!words.is_empty() || ended.stderr.starts_with("error: "), "{ended:?}");
    }
}

#[test]
fn a_port_that_is_taken_is_a_socket_failure() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for backend in BACKENDS {
        let ended =
            complete(&mut haul(backend, ["serve", "--root", "/tmp", "--allow-every-local-user", "--listen", &address]));
        assert_says(&ended, Path::new("/"), 10, &format!("haul: {address}: cannot listen: Address already in use\n"));
    }
}

#[test]
fn names_are_shown_without_what_could_act_on_the_terminal() {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let name = dir.path().join("a\u{1b}[2J\r\n\u{202e}b");
    for backend in BACKENDS {
        for command in ["copy", "ls", "hash"] {
            let mut args = vec![OsStr::new(command), name.as_os_str()];
            args.extend((command == "copy").then_some(OsStr::new("x")));
            let ended = complete(haul(backend, args).current_dir(dir.path()));
            ended.assert_exit(23);
            assert_eq!(ended.lines().len(), 1, "{ended:?}");
            assert!(ended.stderr.contains("a\\x1b[2J\\r\\n\\u{202e}b: cannot "), "{ended:?}");
        }
    }
}
