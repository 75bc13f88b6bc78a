//! Every copied file's BLAKE3 is shown, and is that of the file at both ends; and the lines around it keep their contract.

use crate::support::routes::{Route, Way, assert_limit_bites, contents_of, json_lines, json_name, of_type};
use crate::support::{assert_exit, hash_of, snapshot, trees};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Output;

/// The sizes at which hashing or buffering could go wrong: of R4 in the acceptance list, up to 8 MiB.
fn critical_sizes() -> Vec<usize> {
    let powers = (1..=23).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]);
    let mut sizes: Vec<usize> = [0, 1].into_iter().chain(powers).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for edge in [1024, 64 * 1024, 512 * 1024] {
        assert!([edge - 1, edge, edge + 1].iter().all(|size| sizes.contains(size)));
    }
    sizes
}

/// Hash of each file below `dir`, by its name.
fn hashes_below(dir: &Path) -> BTreeMap<Vec<u8>, String> {
    let file = |(name, entry)| match entry {
        crate::support::Entry::File { hash, .. } => {
            Some((Path::new(&name).file_name().unwrap().as_bytes().to_vec(), hash))
        }
        _ => None,
    };
    snapshot(dir).into_iter().filter_map(file).collect()
}

fn last_component(path: &[u8]) -> Vec<u8> {
    path.rsplit(|&byte| byte == b'/').next().unwrap().to_vec()
}

/// What every JSON output must keep to: the summary is the last line, once, and says what the process said.
#[track_caller]
fn summary_of(output: &Output, lines: &[Value]) -> Value {
    let summary = lines.last().expect("there is a last line").clone();
    assert_eq!(summary["type"], "summary");
    assert_eq!(of_type(lines, "summary").len(), 1);
    assert_eq!(summary["exit"].as_i64(), output.status.code().map(i64::from));
    assert_eq!(summary["errors"], of_type(lines, "error").len());
    assert_eq!(summary["files"], of_type(lines, "file").len());
    let bytes: u64 = of_type(lines, "file").iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    assert_eq!(summary["bytes"], bytes);
    assert!(summary["seconds"].as_f64().unwrap() > 0.0);
    summary
}

#[test]
fn every_file_has_its_hash_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let sizes = critical_sizes();
    trees::files_of_sizes(&source, &sizes);
    let expected = hashes_below(&source);
    assert_eq!(expected.len(), sizes.len());
    for route in Route::all() {
        let target = tempfile::tempdir().unwrap();
        let output = route.copied(&["-r", "--json"], &[&contents_of(&source)], target.path());
        assert_eq!(hashes_below(target.path()), expected, "{route:?}");
        let lines = json_lines(&output);
        let summary = summary_of(&output, &lines);
        let shown: BTreeMap<Vec<u8>, String> = of_type(&lines, "file")
            .into_iter()
            .map(|line| {
                let name = last_component(&json_name(line, "target"));
                assert_eq!(name, last_component(&json_name(line, "source")));
                assert_eq!(name, line["bytes"].to_string().into_bytes());
                let way = format!("{:?}", route.way).to_lowercase();
                assert_eq!(line["direction"], if route.way == Way::Here { "local" } else { &way });
                (name, line["blake3"].as_str().unwrap().to_string())
            })
            .collect();
        assert_eq!(shown, expected, "{route:?}");
        assert_eq!(summary["files"], sizes.len());
        assert!(summary["backend"].as_str().unwrap().contains(route.near), "{summary}");
    }
}

#[test]
fn the_hashes_are_the_same_over_any_number_of_connections() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    trees::files_of_sizes(&source, &critical_sizes());
    let expected = hashes_below(&source);
    let routes: Vec<Route> = Route::all().into_iter().filter(|route| route.way != Way::Here).collect();
    for (number, route) in [1, 2, 3, 5, 8, 21, 33, 64].iter().zip(routes.iter().cycle()) {
        let target = tempfile::tempdir().unwrap();
        let flags = ["-r", "--json", "--connections", &number.to_string()];
        let output = route.copied(&flags, &[&contents_of(&source)], target.path());
        assert_eq!(hashes_below(target.path()), expected, "{number} connections, {route:?}");
        let lines = json_lines(&output);
        summary_of(&output, &lines);
        let files = of_type(&lines, "file").into_iter();
        let shown: BTreeMap<Vec<u8>, String> = files
            .map(|line| (last_component(&json_name(line, "target")), line["blake3"].as_str().unwrap().to_string()))
            .collect();
        assert_eq!(shown, expected, "{number} connections, {route:?}");
    }
}

#[test]
fn every_file_has_its_hash_in_the_verbose_output() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    trees::files_of_sizes(&source, &critical_sizes());
    let expected = hashes_below(&source);
    for route in Route::all().into_iter().filter(|route| route.near == route.far) {
        let target = tempfile::tempdir().unwrap();
        let output = route.copied(&["-rv"], &[&contents_of(&source)], target.path());
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8(output.stderr).unwrap();
        let shown: BTreeMap<Vec<u8>, String> = stderr
            .lines()
            .filter_map(|line| line.split_once("  "))
            .filter(|(hash, _)| hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .map(|(hash, path)| (last_component(path.as_bytes()), hash.to_string()))
            .collect();
        assert_eq!(shown, expected, "{route:?}");
        let backend = if route.near == "uring" { "haul: backend io_uring" } else { "haul: backend " };
        assert!(stderr.starts_with(backend), "{stderr}");
    }
}

#[test]
fn the_summary_repeats_the_hashes_of_up_to_64_files() {
    let dir = tempfile::tempdir().unwrap();
    for (count, listed) in [(1, true), (64, true), (65, false)] {
        let source = dir.path().join(count.to_string());
        trees::small_files(&source, count);
        for route in Route::all() {
            let target = tempfile::tempdir().unwrap();
            let output = route.copied(&["-r", "--json"], &[&contents_of(&source)], target.path());
            let lines = json_lines(&output);
            let summary = summary_of(&output, &lines);
            assert_eq!(summary["hashes"].is_array(), listed, "{count} files, {summary}");
            let pair = |line: &Value| (line["target"].to_string(), line["blake3"].to_string());
            let mut expected: Vec<_> = of_type(&lines, "file").into_iter().map(pair).collect();
            let mut shown: Vec<_> = summary["hashes"].as_array().into_iter().flatten().map(pair).collect();
            expected.sort_unstable();
            shown.sort_unstable();
            assert_eq!(shown, if listed { expected } else { Vec::new() });
        }
    }
}

#[test]
fn names_that_are_not_text_are_in_json_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for name in trees::odd_names() {
        fs::write(source.join(&name), name.as_bytes()).unwrap();
    }
    let expected = hashes_below(&source);
    for route in Route::all() {
        let target = tempfile::tempdir().unwrap();
        let output = route.copied(&["-r", "--json"], &[&contents_of(&source)], target.path());
        let lines = json_lines(&output);
        summary_of(&output, &lines);
        let shown: BTreeMap<Vec<u8>, String> = of_type(&lines, "file")
            .into_iter()
            .map(|line| (last_component(&json_name(line, "target")), line["blake3"].as_str().unwrap().to_string()))
            .collect();
        assert_eq!(shown, expected, "{route:?}");
    }
}

#[test]
fn files_that_exist_only_as_a_claim_of_size_have_the_hash_of_their_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("hole");
    fs::File::create(&source).unwrap().set_len(3 * 1024 * 1024 + 5).unwrap();
    for route in Route::all() {
        let output = route.copied(&["--json"], &[&source], &dir.path().join("target"));
        let lines = json_lines(&output);
        assert_eq!(of_type(&lines, "file")[0]["blake3"], *hash_of(&source), "{route:?}");
    }
}

#[test]
fn sources_of_one_name_are_each_reported_with_their_own_hash() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<PathBuf> = [("a", 30_000_000), ("b", 5), ("c", 100_000)]
        .into_iter()
        .map(|(name, size)| {
            let path = dir.path().join(name).join("file");
            fs::create_dir(path.parent().unwrap()).unwrap();
            crate::support::random_file(&path, size, size as u64);
            path
        })
        .collect();
    let parents: Vec<&Path> = sources.iter().filter_map(|path| path.parent()).collect();
    for route in Route::all() {
        let target = tempfile::tempdir().unwrap();
        let output = route.copied(&["-r", "--json"], &parents, target.path());
        let lines = json_lines(&output);
        summary_of(&output, &lines);
        let name = |path: &Path| route.from(path).as_bytes().to_vec();
        let expected: BTreeMap<Vec<u8>, String> = sources.iter().map(|path| (name(path), hash_of(path))).collect();
        let shown: BTreeMap<Vec<u8>, String> = of_type(&lines, "file")
            .into_iter()
            .map(|line| (json_name(line, "source"), line["blake3"].as_str().unwrap().to_string()))
            .collect();
        assert_eq!(shown, expected, "{route:?}");
        assert!(sources.iter().all(|path| target.path().join(path.strip_prefix(dir.path()).unwrap()).exists()));
    }
}

/// Several files of which one cannot be read by the user that haul runs as.
fn one_unreadable(dir: &Path) -> (PathBuf, PathBuf) {
    let source = dir.join("source");
    fs::create_dir(&source).unwrap();
    for (name, size) in [("a", 10), ("b", 100_000), ("unreadable", 20), ("y", 700_000), ("z", 0)] {
        crate::support::random_file(&source.join(name), size, size as u64);
        trees::set_mode(&source.join(name), 0o644);
    }
    trees::set_mode(&source, 0o755);
    let unreadable = source.join("unreadable");
    trees::set_mode(&unreadable, 0o000);
    assert_limit_bites(&unreadable);
    (source, unreadable)
}

#[test]
fn one_unreadable_file_costs_that_file_only_and_exit_23() {
    let dir = tempfile::tempdir().unwrap();
    let routes = Route::all_without_rights(dir.path());
    let (source, unreadable) = one_unreadable(dir.path());
    let files: Vec<PathBuf> = ["a", "b", "unreadable", "y", "z"].iter().map(|name| source.join(name)).collect();
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let tree = contents_of(&source);
    for route in routes {
        for (flags, sources) in [("-rp", vec![tree.as_path()]), ("-p", files.clone())] {
            let target = tempfile::tempdir().unwrap();
            crate::support::routes::open_to_all(target.path());
            let place = target.path().join("place");
            let output = route.copy(&[flags, "--json"], &sources, &place);
            assert_exit(&output, 23);
            let lines = json_lines(&output);
            let summary = summary_of(&output, &lines);
            assert_eq!((&summary["files"], &summary["errors"]), (&4.into(), &1.into()));
            let error = of_type(&lines, "error")[0];
            assert_eq!(error["exit"], 23);
            assert!(json_name(error, "path").ends_with(b"/unreadable"), "{error}");
            assert!(error["what"].as_str().unwrap().ends_with("Permission denied"), "{error}");
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(stderr.contains("/unreadable: ") && stderr.trim_end().ends_with("Permission denied"), "{stderr}");
            assert!(!place.join("unreadable").exists());
            for line in of_type(&lines, "file") {
                let name = String::from_utf8(last_component(&json_name(line, "target"))).unwrap();
                assert_eq!(line["blake3"], *hash_of(&source.join(&name)));
                assert_eq!(line["blake3"], *hash_of(&place.join(&name)));
            }
            assert_eq!(fs::read_dir(&place).unwrap().count(), 4, "{route:?}");
        }
    }
    trees::set_mode(&unreadable, 0o644);
}

#[test]
fn a_directory_that_cannot_be_read_costs_what_is_in_it_only() {
    let dir = tempfile::tempdir().unwrap();
    let routes = Route::all_without_rights(dir.path());
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("closed")).unwrap();
    fs::write(source.join("closed/hidden"), "x").unwrap();
    for name in ["a", "z"] {
        fs::write(source.join(name), name).unwrap();
    }
    trees::set_mode(&source.join("closed"), 0o000);
    assert_limit_bites(&source.join("closed/hidden"));
    for route in routes {
        let target = tempfile::tempdir().unwrap();
        crate::support::routes::open_to_all(target.path());
        let place = target.path().join("place");
        let output = route.copy(&["-r", "--json"], &[&contents_of(&source)], &place);
        assert_exit(&output, 23);
        let lines = json_lines(&output);
        let summary = summary_of(&output, &lines);
        assert_eq!((&summary["files"], &summary["errors"]), (&2.into(), &1.into()), "{lines:?}");
        assert!(json_name(of_type(&lines, "error")[0], "path").ends_with(b"/closed"));
        let names: Vec<_> = hashes_below(&place).into_keys().collect();
        assert_eq!(names, [b"a", b"z"], "{route:?}");
    }
    trees::let_go(&source);
}

#[test]
fn a_missing_source_among_several_costs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let files = trees::files_of_sizes(dir.path(), &[0, 70_000]);
    let missing = dir.path().join("missing");
    for route in Route::all() {
        let target = tempfile::tempdir().unwrap();
        let output = route.copy(&["--json"], &[&files[0], &missing, &files[1]], target.path());
        assert_exit(&output, 23);
        let lines = json_lines(&output);
        summary_of(&output, &lines);
        assert!(json_name(of_type(&lines, "error")[0], "path").ends_with(b"/missing"));
        assert_eq!(hashes_below(target.path()).len(), 2, "{route:?}");
    }
}

#[test]
fn nothing_copied_is_still_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    for route in Route::all() {
        let output = route.copy(&["--json"], &[&dir.path().join("missing")], &dir.path().join("target"));
        assert_exit(&output, 23);
        let lines = json_lines(&output);
        let summary = summary_of(&output, &lines);
        assert_eq!((&summary["files"], &summary["bytes"]), (&0.into(), &0.into()));
    }
}
