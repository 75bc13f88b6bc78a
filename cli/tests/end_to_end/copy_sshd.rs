//! Copies through a real sshd: every pair of backends, both ways.

use crate::support::routes::{Route, assert_same_tree, finish, json_lines, of_type};
use crate::support::{BACKENDS, Remote, Sshd, assert_exit, at, hash_of, haul, trees};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Every pair of backends, both ways; empty where there is no sshd.
fn routes() -> Vec<Route> {
    let remote = |far| Some((Rc::new(Sshd::start(far)?) as Rc<dyn Remote>, far));
    BACKENDS.into_iter().filter_map(remote).flat_map(|(remote, far)| Route::to_remote(&remote, far)).collect()
}

#[test]
fn files_of_every_critical_size_arrive_whole_through_sshd() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let files = trees::files_of_sizes(&source, &trees::SIZES);
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for route in routes() {
        let target = tempfile::tempdir().unwrap();
        let output = route.copied(&["--json"], &files, target.path());
        assert_same_tree(target.path(), &source);
        let lines = json_lines(&output);
        for line in of_type(&lines, "file") {
            assert_eq!(line["blake3"], *hash_of(&source.join(line["bytes"].to_string())), "{route:?}");
        }
        assert_eq!(of_type(&lines, "file").len(), files.len());
    }
}

#[test]
fn a_gibibyte_of_mostly_nothing_arrives_whole_through_sshd() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    trees::sparse_gibibyte(&source);
    // Once each way is enough here: the pairs of backends meet over pipes.
    for route in routes().into_iter().filter(|route| route.near == "uring" && route.far == "uring") {
        route.copied(&[], &[&source], &target);
        assert_eq!(hash_of(&target), hash_of(&source), "{route:?}");
        fs::remove_file(&target).unwrap();
    }
}

#[test]
fn ten_thousand_small_files_arrive_whole_through_sshd() {
    let dir = trees::scratch();
    trees::small_files(dir.path(), 10_000);
    // As above.
    let routes = routes().into_iter().filter(|route| route.near == route.far);
    routes.for_each(|route| route.copies_tree(&["-r"], dir.path()));
}

#[test]
fn a_tree_of_everything_arrives_as_it_was_through_sshd() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    trees::modes_and_times(&tree);
    trees::deep_tree(&tree.join("deep"), 120);
    fs::create_dir_all(tree.join("odd")).unwrap();
    for name in trees::odd_names() {
        fs::write(tree.join("odd").join(name), "odd").unwrap();
    }
    for (text, name) in [("644", "to-file"), ("nowhere", "dangling"), ("..", "odd/up"), ("a\nb", "odd/link")] {
        symlink(text, tree.join(name)).unwrap();
    }
    routes().iter().for_each(|route| route.copies_tree(&["-a"], &tree));
    trees::let_go(&tree);
}

#[test]
fn hashes_and_listings_come_through_sshd() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("it's \"odd\"\n"), "x").unwrap();
    for far in BACKENDS {
        let Some(sshd) = Sshd::start(far) else { return };
        for near in BACKENDS {
            let ask = |command: &str, path: &Path| {
                let mut haul = haul(near, [command, "--json"]);
                haul.args(sshd.args()).arg(at(&sshd, path));
                let output = finish(haul);
                assert_exit(&output, 0);
                json_lines(&output)[0].clone()
            };
            let listed = ask("ls", dir.path());
            assert_eq!((&listed["path"], &listed["size"]), (&"it's \"odd\"\n".into(), &1.into()));
            let path = dir.path().join("it's \"odd\"\n");
            assert_eq!(ask("hash", &path)["blake3"], *hash_of(&path));
        }
    }
}
