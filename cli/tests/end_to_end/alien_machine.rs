//! The tests themselves: what is installed where they run, or is missing there, changes none of their results.

use crate::support::processes::{complete, in_private_mounts, mount_tmpfs, script};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Those whose far end has no haul, or another one, by hand, through a stand-in and through sshd.
const WITHOUT_HAUL: [&str; 5] = [
    "doctor::where_no_haul_answers_that_is_the_problem",
    "real_hosts::a_remote_shell_of_the_users_own_is_not_asked_for_sftp",
    "real_hosts::a_host_without_haul_gets_files_all_the_same_and_a_hint_for_everything_else",
    "sftp::a_server_that_talks_nonsense_is_told_in_one_line",
    "sftp::modes_become_no_wider_than_they_were",
];

#[test]
fn what_is_installed_here_changes_no_test() {
    if !in_private_mounts("what_is_installed_here_changes_no_test") {
        return;
    }
    let home = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let _system = mount_tmpfs(Path::new("/usr/local/bin"), "size=1m");
    let own = [home.path().join(".local/bin"), home.path().join(".cargo/bin")];
    for dir in own.iter().map(PathBuf::as_path).chain([Path::new("/usr/local/bin")]) {
        fs::create_dir_all(dir).unwrap();
        for name in ["haul", "bcmr"] {
            script(&dir.join(name), "#!/bin/sh\nexit 3\n");
        }
    }
    let path = format!("{}:{}:/usr/local/bin:/usr/bin:/bin", own[0].display(), own[1].display());
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.arg("--exact").args(WITHOUT_HAUL).env("HOME", home.path()).env("PATH", path);
    let ended = complete(tests.env_remove("HAUL_TEST_PRIVATE_MOUNTS"));
    assert!(ended.status.success(), "{}", ended.stdout);
    assert!(ended.stdout.contains("5 passed"), "{}", ended.stdout);
}

#[test]
fn what_was_skipped_stands_at_the_end_with_what_it_needs() {
    const TEST: &str = "inspect::b3sum_agrees_and_accepts_the_output_as_its_own";
    let run = |require: &str| {
        let mut tests = Command::new(std::env::current_exe().unwrap());
        complete(tests.args(["--exact", TEST]).env("PATH", "/nonexistent").env("HAUL_REQUIRE", require))
    };
    let ended = run("");
    assert!(ended.status.success() && ended.stdout.contains("1 passed"), "{ended:?}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert!(
        matches!(lines[..], [head, line] if head.starts_with("skipped here") && line.contains(TEST) && line.contains("b3sum")),
        "{ended:?}"
    );
    let ended = run("netns,b3sum");
    assert!(!ended.status.success() && ended.stdout.contains("HAUL_REQUIRE=b3sum"), "{ended:?}");
}
