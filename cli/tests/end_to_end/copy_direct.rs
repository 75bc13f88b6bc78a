//! Copies over direct connections: every pair of backends, both ways, and what happens where there is none.

use crate::support::routes::{Route, Way, assert_same_tree, finish, json_lines, of_type};
use crate::support::{BACKENDS, Pipes, Remote, assert_exit, at, binary, hash_of, haul, random_file, trees};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const DIRECT: &str = "--direct=direct";

/// The copy and its lines; fails unless content went directly, over as many as `links`: a small copy may be over before all
/// of them are there.
#[track_caller]
fn copied(route: &Route, flags: &[&str], sources: &[&Path], target: &Path, links: usize) -> Vec<serde_json::Value> {
    let lines = json_lines(&route.copied(&[&["--json", DIRECT], flags].concat(), sources, target));
    let direct = of_type(&lines, "direct");
    assert!((1..=links).contains(&direct.len()), "{route:?}: {direct:?}");
    assert!(direct.iter().all(|line| line["address"].as_str().unwrap().starts_with("127.0.0.1:")), "{direct:?}");
    lines
}

#[test]
fn files_of_every_critical_size_arrive_whole_directly_whatever_the_codec() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let files = trees::files_of_sizes(&source, &trees::SIZES);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for route in Route::over_pipes() {
        for codec in ["none", "zstd", "lz4"] {
            let target = tempfile::tempdir().unwrap();
            let lines = copied(&route, &["--compress", codec], &files, target.path(), 1);
            assert_same_tree(target.path(), &source);
            for line in of_type(&lines, "file") {
                assert_eq!(line["blake3"], *hash_of(&source.join(line["bytes"].to_string())), "{route:?}");
            }
        }
    }
}

#[test]
fn trees_and_small_files_arrive_whole_directly() {
    let dir = trees::scratch();
    let (small, odd) = (dir.path().join("small"), dir.path().join("odd"));
    fs::create_dir_all(&small).unwrap();
    trees::small_files(&small, 2000);
    trees::modes_and_times(&odd);
    trees::deep_tree(&odd.join("deep"), 60);
    for name in trees::odd_names() {
        fs::write(odd.join(name), "odd").unwrap();
    }
    for route in Route::over_pipes() {
        route.copies_tree(&["-a", DIRECT], &small);
        route.copies_tree(&["-a", DIRECT], &odd);
    }
    trees::let_go(&odd);
}

#[test]
fn several_connections_are_all_direct() {
    let dir = trees::scratch();
    trees::small_files(&dir.path().join("tree"), 400);
    random_file(&dir.path().join("tree/large"), 9_000_001, 1);
    for route in Route::over_pipes() {
        let target = tempfile::tempdir().unwrap();
        copied(&route, &["-r", "--connections", "3"], &[&dir.path().join("tree")], target.path(), 3);
        assert_same_tree(&target.path().join("tree"), &dir.path().join("tree"));
    }
}

#[test]
fn without_a_hash_verified_and_again_it_goes_directly_all_the_same() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    random_file(&source, 5_000_000, 1);
    for route in Route::over_pipes() {
        for flags in [&["--no-hash"][..], &["-V"], &["-C"], &["--dedup"], &["--sync"]] {
            let target = dir.path().join("target");
            copied(&route, flags, &[&source], &target, 1);
            assert_eq!(hash_of(&target), hash_of(&source), "{route:?} {flags:?}");
            // Once more, onto what is there.
            copied(&route, flags, &[&source], &target, 1);
            fs::remove_file(&target).unwrap();
        }
    }
}

#[test]
fn hashes_and_listings_come_directly() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    for (near, far) in [("uring", "poll"), ("poll", "uring")] {
        let pipes = Pipes::new(far);
        let ask = |command: &str, path: &Path| {
            let mut haul = haul(near, [command, "--json", DIRECT]);
            haul.args(pipes.args()).arg(at(&pipes, path));
            let output = finish(haul);
            assert_exit(&output, 0);
            json_lines(&output)[0].clone()
        };
        assert_eq!(ask("ls", dir.path())["path"], "file");
        let file = dir.path().join("file");
        assert_eq!(ask("hash", &file)["blake3"], *hash_of(&file));
    }
}

/// A far end that believes to have been reached at this address.
struct Elsewhere {
    pipes: Pipes,
    args: Vec<OsString>,
    _dir: tempfile::TempDir,
}

impl Elsewhere {
    fn new(far: &str, address: &str) -> Elsewhere {
        let pipes = Pipes::new(far);
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("elsewhere");
        let text = format!("#!/bin/sh\nSSH_CONNECTION='192.0.2.1 1 {address} 22' exec {} \"$@\"\n", binary().display());
        crate::support::processes::script(&program, &text);
        let args = pipes.args().into_iter().chain(["--remote-path".into(), program.into()]).collect();
        Elsewhere { pipes, args, _dir: dir }
    }

    fn copy(&self, near: &str, way: &str, [source, target]: [&Path; 2]) -> std::process::Output {
        let mut copy = haul(near, ["copy", way]);
        copy.args(&self.args).arg(source).arg(at(&self.pipes, target));
        finish(copy)
    }
}

#[test]
fn where_no_port_can_be_had_auto_goes_through_ssh_and_direct_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 700_000, 1);
    for near in BACKENDS {
        // An address of nobody's (RFC 5737), so nothing can listen there.
        let far = Elsewhere::new(near, "192.0.2.7");
        let output = far.copy(near, "--direct=direct", [&source, &target]);
        assert_exit(&output, 10);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("haul: no direct connection: cannot listen for a direct connection: "), "{said}");
        assert!(!target.exists());

        let output = far.copy(near, "--direct=auto", [&source, &target]);
        assert_exit(&output, 0);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.matches("no direct connection").count(), 1, "{said}");
        assert!(said.contains("going on over ssh"), "{said}");
        assert_eq!(hash_of(&target), hash_of(&source));
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn the_server_listens_at_a_port_of_the_range_or_says_that_none_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    random_file(&source, 700_000, 1);
    for route in Route::over_pipes() {
        // Two ports in a row that nobody has, of which the first is taken.
        let (taken, first) = loop {
            let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = taken.local_addr().unwrap().port();
            if port < u16::MAX && std::net::TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
                break (taken, port);
            }
        };
        let target = dir.path().join("target");
        let range = format!("--port-range={first}-{}", first + 1);
        let lines = copied(&route, &[&range], &[&source], &target, 1);
        let direct = of_type(&lines, "direct");
        assert_eq!(direct[0]["address"], format!("127.0.0.1:{}", first + 1), "{route:?}");
        fs::remove_file(&target).unwrap();
        let lines = json_lines(&route.copied(
            &["--json", "--direct=auto", &format!("--port-range={first}")],
            &[&source],
            &target,
        ));
        assert_eq!(of_type(&lines, "direct").len(), 0, "{route:?}");
        let notices = of_type(&lines, "notice");
        assert!(notices[0]["text"].as_str().unwrap().contains("ddress already in use"), "{notices:?}");
        fs::remove_file(&target).unwrap();
        drop(taken);
    }
}

#[test]
fn ipv6_is_as_good() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        crate::support::skips::skip("ipv6", "there is no IPv6 here", "an address ::1");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 700_000, 1);
    for near in BACKENDS {
        assert_exit(&Elsewhere::new(near, "::1").copy(near, DIRECT, [&source, &target]), 0);
        assert_eq!(hash_of(&target), hash_of(&source));
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn a_copy_within_this_machine_needs_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("source"), "x").unwrap();
    for route in Route::local() {
        assert_eq!(route.way, Way::Here);
        route.copied(&[DIRECT], &[&dir.path().join("source")], &dir.path().join("target"));
    }
}
