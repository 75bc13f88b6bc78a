//! As many direct connections as may be asked for: fewer files at a time for each, and none is lost.

use crate::support::processes::complete;
use crate::support::routes::{assert_same_tree, contents_of};
use crate::support::{BACKENDS, Pipes, Remote, at, haul, random_file};
use std::ffi::OsString;
use std::fs;

#[test]
fn sixty_four_direct_connections_lose_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("tree");
    fs::create_dir(&source).unwrap();
    for number in 0..600 {
        random_file(&source.join(format!("{number}")), [1000, 300_000, 2_000_000][number % 3], number as u64);
    }
    random_file(&source.join("large"), 80 << 20, 1);
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        for down in [false, true] {
            let target = dir.path().join("copy");
            let mut args: Vec<OsString> =
                ["copy", "-r", "--direct=direct", "--connections=64", "--compress=none"].map(OsString::from).into();
            args.extend(pipes.args());
            args.extend(match down {
                false => [contents_of(&source).into_os_string(), at(&pipes, &target)],
                true => [at(&pipes, &contents_of(&source)), target.clone().into()],
            });
            let ended = complete(&mut haul(backend, args));
            assert!(ended.status.success(), "{backend}, down {down}: {}", ended.stderr);
            assert_same_tree(&target, &source);
            fs::remove_dir_all(&target).unwrap();
        }
    }
}
