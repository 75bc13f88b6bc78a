//! Sources that are not what their size says, and sources that somebody writes to while they are read: a log is copied with
//! what it had, what was half old and half new gets no name, and the files beside them arrive.

use crate::support::interop::content::text;
use crate::support::processes::{complete, names};
use crate::support::routes::{Route, Way, json_lines, of_type};
use crate::support::{Remote, SFTP, Sshd, assert_exit, at, hash_of, haul, random_file, trees};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const MIB: usize = 1 << 20;
/// Says that it has a page.
const SYSFS: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Writes to a file, again and again, until it is dropped.
struct Writer(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Writer {
    fn start(path: &Path, mut write: impl FnMut(&File) + Send + 'static) -> Writer {
        let (over, file) =
            (Arc::new(AtomicBool::new(false)), File::options().append(false).write(true).open(path).unwrap());
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                write(&file);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Writer(over, Some(thread))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

fn append(file: &File) {
    let end = file.metadata().unwrap().len();
    file.write_all_at(b"one more line of a log\n", end).unwrap();
}

#[test]
fn a_file_that_is_shorter_than_it_says_is_copied_as_what_can_be_read_and_its_neighbours_with_it() {
    let Ok(there) = fs::read(SYSFS) else {
        eprintln!("SKIPPED: there is no {SYSFS}");
        return;
    };
    assert!((there.len() as u64) < fs::metadata(SYSFS).unwrap().len());
    let dir = trees::scratch();
    let tree = dir.path().join("tree");
    trees::files_of_sizes(&tree, &[0, 1, 4096, 70_000, 600_000]);
    for route in Route::all() {
        for flags in [&["--json", "-r"][..], &["--json", "-r", "-C"], &["--json", "-r", "--fast"]] {
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            let lines = json_lines(&route.copied(flags, &[&tree, Path::new(SYSFS)], target.path()));
            assert_eq!(of_type(&lines, "summary")[0]["files"], 6);
            assert_eq!(fs::read(target.path().join("enabled")).unwrap(), there, "{route:?}");
            assert_eq!(names(&target.path().join("tree")), names(&tree));
        }
    }
}

#[test]
fn a_file_that_says_it_is_empty_is_copied_if_it_is_small_and_else_refused_in_one_line() {
    let (small, large) = (Path::new("/proc/filesystems"), Path::new("/proc/kallsyms"));
    if fs::read(large).map_or(0, |content| content.len()) < 64 * 1024 {
        eprintln!("SKIPPED: {} is not large here", large.display());
        return;
    }
    let dir = trees::scratch();
    for route in Route::all() {
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let output = route.copy(&[], &[small, large], target.path());
        assert_exit(&output, 23);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let failed: Vec<&str> = said.lines().filter(|line| line.contains("kallsyms")).collect();
        assert!(matches!(failed[..], [line] if line.contains("as much as its size says")), "{route:?}: {said}");
        assert_eq!(names(target.path()), ["filesystems"]);
        assert_eq!(fs::read(target.path().join("filesystems")).unwrap(), fs::read(small).unwrap());
    }
}

/// What arrived is what the source began with, all of what was there at first included.
#[track_caller]
fn assert_beginning(arrived: &Path, source: &Path, at_first: u64) -> u64 {
    let (arrived, source) = (fs::read(arrived).unwrap(), fs::read(source).unwrap());
    let differs = arrived.iter().zip(&source).position(|(arrived, there)| arrived != there);
    let sizes = (arrived.len(), source.len());
    assert!(
        arrived.len() as u64 >= at_first && source.starts_with(&arrived),
        "{sizes:?}, other bytes from {differs:?}"
    );
    arrived.len() as u64
}

#[test]
fn a_log_that_grows_while_it_is_read_is_copied_with_what_it_had_and_that_is_said_and_counted() {
    let dir = trees::scratch();
    let (log, other) = (dir.path().join("log"), dir.path().join("other"));
    random_file(&other, 100_000, 1);
    let ways: [(usize, &[&str]); 7] = [
        (24 * MIB, &["--compress=none"]),
        (24 * MIB, &["--compress=zstd"]),
        (24 * MIB, &["-C"]),
        (24 * MIB, &["--fast"]),
        (24 * MIB, &["-V"]),
        (24 * MIB, &["--dedup"]),
        (70 * MIB, &["--direct=direct", "--connections=3", "--compress=none"]),
    ];
    for (number, (size, flags)) in ways.into_iter().enumerate() {
        for route in Route::all().into_iter().skip(number % 2).step_by(2) {
            if route.way == Way::Here && number > 1 {
                continue;
            }
            fs::write(&log, text(size, 3)).unwrap();
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            let writer = Writer::start(&log, append);
            let output = route.copied(&[&["--json"], flags].concat(), &[&log, &other], target.path());
            drop(writer);
            let bytes = assert_beginning(&target.path().join("log"), &log, size as u64);
            let lines = json_lines(&output);
            let grew = of_type(&lines, "grew");
            assert!(matches!(grew[..], [line] if line["bytes"] == bytes), "{route:?}: {lines:?}");
            assert_eq!(of_type(&lines, "summary")[0]["grew"], 1);
            assert_eq!(names(target.path()), ["log", "other"], "{route:?} {flags:?}");
        }
    }
    // The words of it.
    let route = &Route::over_pipes()[0];
    fs::write(&log, text(24 * MIB, 3)).unwrap();
    let writer = Writer::start(&log, append);
    let output = route.copied(&[], &[&log], &dir.path().join("copy"));
    drop(writer);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("log: grew while it was read; its first 24.0 MiB were copied"), "{said}");
    assert!(said.contains("; 1 file grew meanwhile"), "{said}");
}

#[test]
fn a_small_log_that_grows_all_the_time_is_copied() {
    let dir = trees::scratch();
    let logs: Vec<PathBuf> = (0..20).map(|number| dir.path().join(format!("log-{number}"))).collect();
    for route in Route::all() {
        logs.iter().for_each(|log| fs::write(log, "first line\n").unwrap());
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let writers: Vec<Writer> = logs.iter().map(|log| Writer::start(log, append)).collect();
        let sources: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
        route.copied(&[], &sources, target.path());
        drop(writers);
        for log in &logs {
            assert_beginning(&target.path().join(log.file_name().unwrap()), log, 11);
        }
    }
}

#[test]
fn a_file_that_grows_and_is_written_over_gets_no_name_and_the_old_one_stays() {
    let dir = trees::scratch();
    let (source, other) = (dir.path().join("source"), dir.path().join("other"));
    random_file(&other, 100_000, 1);
    for route in Route::all() {
        random_file(&source, 24 * MIB, 4);
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        fs::write(target.path().join("source"), "old").unwrap();
        let mut number: u64 = 0;
        let writer = Writer::start(&source, move |file| {
            number += 1;
            // Everywhere in it, so that whatever is read meanwhile is half old and half new.
            for part in 0..24 {
                file.write_all_at(&number.to_le_bytes(), part * MIB as u64).unwrap();
            }
            append(file);
        });
        let output = route.copy(&[], &[&source, &other], target.path());
        drop(writer);
        assert_exit(&output, 23);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let failed: Vec<&str> = said.lines().filter(|line| line.contains("changed while it was read")).collect();
        assert_eq!(failed.len(), 1, "{route:?}: {said}");
        assert_eq!(fs::read(target.path().join("source")).unwrap(), b"old", "{route:?}");
        assert_eq!(hash_of(&target.path().join("other")), hash_of(&other));
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_fails_and_is_not_taken_for_one_whose_size_says_nothing() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    for route in Route::over_pipes() {
        random_file(&source, 24 * MIB, 4);
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let mut longer = true;
        let writer = Writer::start(&source, move |mut file| {
            longer = !longer;
            file.set_len(if longer { 24 * MIB as u64 } else { 4096 }).unwrap();
            let _ = file.flush();
        });
        let output = route.copy(&["--compress=none"], &[&source], target.path());
        drop(writer);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            // It was read between two of these.
            Some(0) => {}
            Some(23) => assert!(said.contains("while it was read"), "{route:?}: {said}"),
            _ => panic!("{route:?}: {said}"),
        }
    }
}

#[test]
fn where_only_sftp_answers_a_log_is_copied_with_what_it_had_and_a_size_that_says_nothing_is_not_believed() {
    let Some(sshd) = Sshd::bare("poll", SFTP) else { return };
    let log = sshd.dir().join("growing");
    let copy = |up: bool, source: &Path, target: &Path| {
        let operand = |path: &Path, there: bool| if there { at(&sshd, path) } else { path.into() };
        let mut command = haul("poll", ["copy"]);
        command.args(sshd.args()).arg("--").arg(operand(source, !up)).arg(operand(target, up));
        complete(&mut command)
    };
    for up in [true, false] {
        fs::write(&log, text(40 * MIB, 3)).unwrap();
        let target = sshd.dir().join(format!("target {up}"));
        let writer = Writer::start(&log, append);
        let ended = copy(up, &log, &target);
        drop(writer);
        ended.assert_exit(0);
        assert!(ended.stderr.contains("growing: grew while it was read; its first 40."), "{ended:?}");
        assert_beginning(&target, &log, 40 * MIB as u64);
        if let Ok(there) = fs::read(SYSFS) {
            let target = sshd.dir().join(format!("enabled {up}"));
            copy(up, Path::new(SYSFS), &target).assert_exit(0);
            assert_eq!(fs::read(target).unwrap(), there);
        }
    }
    // What says that it is empty: all of it, if it is small, and else nothing. A server is not believed.
    for (name, up, exit) in [("filesystems", true, 0), ("filesystems", false, 23), ("kallsyms", true, 23)] {
        let (source, target) = (Path::new("/proc").join(name), sshd.dir().join(name));
        let ended = copy(up, &source, &target);
        ended.assert_exit(exit);
        assert_eq!(fs::read(&target).ok(), (exit == 0).then(|| fs::read(&source).unwrap()), "{ended:?}");
        let _ = fs::remove_file(target);
    }
}
