//! Limits of the system on a process (getrlimit(2)), set by prlimit(1).

use super::processes::complete;
use std::process::Command;

/// The same command with these limits, as prlimit has them: `--nofile=64:64`. Whoever it starts has them too.
pub fn limited(limits: &[&str], command: &Command) -> Command {
    let mut with = Command::new("prlimit");
    with.args(limits).arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => with.env(name, value),
            None => with.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        with.current_dir(dir);
    }
    with.stdin(std::process::Stdio::null());
    with
}

/// Sets limits of a process that runs, `--nofile=64:` for the soft one alone: what is taken from a hard one cannot be given
/// back.
#[track_caller]
pub fn limit(pid: i32, limits: &[&str]) {
    complete(Command::new("prlimit").args(["--pid", &pid.to_string()]).args(limits)).assert_exit(0);
}
