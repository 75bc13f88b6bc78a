//! Large files in ranges over several connections, to and from servers that have no better way: base peers, played by haul
//! under their name.

use crate::support::interop::raw;
use crate::support::interop::raw::kind;
use crate::support::processes::{
    self, LIMIT, Running, assert_nobody_at_home, at_home, complete, names, signal, wait_for,
};
use crate::support::routes::{finish, json_lines, of_type};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Pipes, Remote, assert_exit, at, binary, hash_of, haul, random_file, trees};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MIB: usize = 1 << 20;
/// Four ranges of 16 MiB, and a bit of a fifth.
const SIZE: usize = 64 * MIB + 13;
const RANGES: usize = 5;

/// A far end that calls itself bcmr of some release, and keeps what each connection is told.
struct Far {
    pipes: Pipes,
    dir: tempfile::TempDir,
}

impl Far {
    /// `beside` is shell that runs beside each connection.
    fn new(backend: &str, release: &str, beside: &str) -> Far {
        Far::with_program(backend, release, beside, binary())
    }

    /// One that keeps nothing: its streams end when the server does.
    fn plain(backend: &str) -> Far {
        Far::new(backend, "0.6.3", "exec \"$far\" \"$@\"")
    }

    fn with_program(backend: &str, release: &str, beside: &str, haul: &Path) -> Far {
        let dir = trees::scratch();
        let program = dir.path().join("bcmr");
        std::os::unix::fs::symlink(haul, &program).unwrap();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo bcmr {release}; exit; fi\nfar='{1}'\n{beside}\n\
             tee '{0}/'$$.up | \"$far\" \"$@\"\n",
            dir.path().display(),
            program.display()
        );
        let far = dir.path().join("far");
        processes::script(&far, &script);
        Far { pipes: Pipes::with_programs(backend, &[("bcmr", &far)]), dir }
    }

    /// How many frames of this type each connection was told.
    fn told(&self, kind: u8) -> Vec<usize> {
        assert_nobody_at_home(&self.pipes.home(), LIMIT);
        let files = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|ending| ending == "up"));
        let count = |log: PathBuf| {
            let said = fs::read(log).unwrap();
            raw::split(&said).unwrap().iter().filter(|frame| frame.kind == kind).count()
        };
        logs.map(count).collect()
    }
}

fn copy(backend: &str, far: &Far, way: Way, flags: &[&str], sources: &[&Path], target: &Path) -> Command {
    let mut args: Vec<OsString> = vec!["copy".into(), "--json".into()];
    args.extend(flags.iter().map(OsString::from));
    args.extend(far.pipes.args());
    args.extend(sources.iter().map(|source| if way == Way::Down { at(&far.pipes, source) } else { source.into() }));
    args.push(if way == Way::Up { at(&far.pipes, target) } else { target.into() });
    haul(backend, args)
}

/// The hashes that were told, in order.
fn hashes(output: &Output) -> Vec<String> {
    let lines = json_lines(output);
    of_type(&lines, "file").into_iter().map(|line| line["blake3"].as_str().unwrap().to_owned()).collect()
}

fn range_kind(way: Way) -> u8 {
    if way == Way::Up { kind::PUT_CHUNKED } else { kind::GET_CHUNKED }
}

fn ways() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

#[test]
fn two_large_files_travel_in_ranges_over_all_connections_and_small_ones_whole() {
    let dir = trees::scratch();
    let sources = ["a", "b", "c"].map(|name| dir.path().join(name));
    random_file(&sources[0], SIZE, 1);
    random_file(&sources[1], SIZE - 13, 2);
    random_file(&sources[2], 3000, 3);
    let expected: Vec<String> = sources.iter().map(|source| hash_of(source)).collect();
    for (backend, way) in ways() {
        // A machine that is busy may let a connection come too late.
        let several = (0..10).any(|_| {
            let far = Far::new(backend, "0.6.3", "");
            let target = dir.path().join("target");
            fs::create_dir(&target).unwrap();
            let all = sources.each_ref().map(PathBuf::as_path);
            let output = finish(copy(backend, &far, way, &["--connections", "3"], &all, &target));
            assert_exit(&output, 0);
            assert_eq!(hashes(&output), expected);
            let arrived: Vec<String> = ["a", "b", "c"].iter().map(|name| hash_of(&target.join(name))).collect();
            assert_eq!((arrived, names(&target).len()), (expected.clone(), 3));
            fs::remove_dir_all(&target).unwrap();
            let ranges = far.told(range_kind(way));
            assert_eq!(ranges.iter().sum::<usize>(), RANGES + 4, "each range once");
            assert_eq!(far.told(kind::TRUNCATE).iter().sum::<usize>(), if way == Way::Up { 2 } else { 0 });
            ranges.len() == 3 && ranges.iter().all(|&ranges| ranges > 0)
        });
        assert!(several, "{backend}, {way:?}: one of three connections never carries anything");
    }
}

#[test]
fn a_put_that_is_a_transaction_is_not_traded_for_ranges() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, SIZE, 1);
    for backend in BACKENDS {
        for (way, ranges) in [(Way::Up, 0), (Way::Down, RANGES)] {
            let far = Far::new(backend, "0.7.2", "");
            let output = finish(copy(backend, &far, way, &["--connections", "2"], &[&source], &target));
            assert_exit(&output, 0);
            assert_eq!(hashes(&output), [hash_of(&source)]);
            assert_eq!(hash_of(&target), hash_of(&source));
            fs::remove_file(&target).unwrap();
            assert_eq!(far.told(range_kind(way)).iter().sum::<usize>(), ranges, "{backend}, {way:?}");
        }
        // One connection, or another way to do it better.
        for flags in [&["--connections", "1"][..], &["-C", "--connections", "2"]] {
            let far = Far::new(backend, "0.6.3", "");
            assert_exit(&finish(copy(backend, &far, Way::Down, flags, &[&source], &target)), 0);
            assert_eq!(hash_of(&target), hash_of(&source));
            fs::remove_file(&target).unwrap();
            assert_eq!(far.told(kind::GET_CHUNKED).iter().sum::<usize>(), 0, "{flags:?}");
        }
    }
}

#[test]
fn a_connection_killed_in_the_middle_costs_no_range() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 4 * SIZE, 1);
    let expected = hash_of(&source);
    for (backend, way) in ways() {
        let hit = (0..20).any(|_| {
            let far = Far::plain(backend);
            let home = far.pipes.home();
            let mut client =
                Running::start(&mut copy(backend, &far, way, &["--connections", "3"], &[&source], &target));
            let servers = || -> Vec<i32> { at_home(&home).into_iter().filter(|&pid| is_server(pid)).collect() };
            wait_for(LIMIT, || servers().len() == 3 || client.is_over());
            // The last to come.
            let victim = servers().into_iter().max().filter(|_| !client.is_over());
            let killed = victim.is_some_and(|pid| signal(pid, Signal::KILL));
            let ended = client.finish();
            ended.assert_exit(0);
            assert_nobody_at_home(&home, LIMIT);
            assert_eq!(hash_of(&target), expected, "{ended:?}");
            fs::remove_file(&target).unwrap();
            killed && ended.stdout.contains("a further connection is not used")
        });
        assert!(hit, "{backend}, {way:?}: no connection was hit midway");
    }
}

/// A process that has become the server, and is not what records it.
fn is_server(pid: i32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = command.split(|&byte| byte == 0);
    words.next().is_some_and(|program| program.ends_with(b"bcmr")) && words.next() == Some(b"serve")
}

/// Shell that goes on changing the beginning of a file for as long as its server runs.
fn meddling(file: &Path) -> String {
    format!(
        "(n=0; while [ $n -lt 3000 ] && [ -e /proc/$$ ]; do n=$((n+1)); \
         [ -e '{0}' ] && printf %08d $n | dd of='{0}' bs=8 conv=notrunc 2>/dev/null; done) </dev/null >/dev/null 2>&1 &",
        file.display()
    )
}

#[test]
fn a_file_that_changes_meanwhile_is_an_error_and_replaces_nothing_here() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    for (backend, way) in ways() {
        random_file(&source, SIZE, 1);
        fs::write(&target, "old").unwrap();
        let far = Far::new(backend, "0.6.3", &meddling(if way == Way::Up { &target } else { &source }));
        let ended = complete(&mut copy(backend, &far, way, &["--connections", "2"], &[&source], &target));
        ended.assert_exit(23);
        assert_nobody_at_home(&far.pipes.home(), LIMIT);
        if way == Way::Down {
            assert_eq!(fs::read(&target).unwrap(), b"old");
            assert_eq!(names(dir.path()), ["source", "target"]);
        } else {
            assert!(ended.stdout.contains("incomplete over there"), "{ended:?}");
        }
    }
}

#[test]
fn of_two_files_for_one_name_the_first_one_stays() {
    let dir = trees::scratch();
    let sources = ["x/f", "y/f"].map(|name| dir.path().join(name));
    for (seed, source) in sources.iter().enumerate() {
        fs::create_dir(source.parent().unwrap()).unwrap();
        random_file(source, SIZE, seed as u64);
    }
    for (backend, way) in ways() {
        let far = Far::new(backend, "0.6.3", "");
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        let all = sources.each_ref().map(PathBuf::as_path);
        assert_exit(&finish(copy(backend, &far, way, &["--connections", "4"], &all, &target)), 23);
        assert_eq!(hash_of(&target.join("f")), hash_of(&sources[0]), "{backend}, {way:?}");
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn many_connections_share_the_memory_of_two() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, 4 * SIZE, 1);
    for (backend, way) in ways() {
        let far = Far::plain(backend);
        let mut client = Running::start(&mut copy(backend, &far, way, &["--connections", "16"], &[&source], &target));
        let mut most = 0;
        while !client.is_over() {
            let status = fs::read_to_string(format!("/proc/{}/status", client.pid())).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            most = most.max(kib.unwrap_or(0));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        client.finish().assert_exit(0);
        eprintln!("{backend}, {way:?}: {} MiB", most >> 10);
        assert!(most < 200 << 10, "{backend}, {way:?}: {} MiB", most >> 10);
        fs::remove_file(&target).unwrap();
    }
}

/// Towards a base server, which publishes what is complete.
#[test]
fn a_file_that_changes_while_it_goes_up_leaves_the_old_one() {
    let dir = trees::scratch();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    random_file(&source, SIZE, 1);
    for backend in BACKENDS {
        fs::write(&target, "old").unwrap();
        let far = Far::new(backend, "0.7.2", "");
        let mut client = Running::start(&mut copy(backend, &far, Way::Up, &[], &[&source], &target));
        let file = fs::File::options().write(true).open(&source).unwrap();
        while !client.is_over() {
            std::os::unix::fs::FileExt::write_at(&file, b"changed", 5).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        client.finish().assert_exit(23);
        assert_nobody_at_home(&far.pipes.home(), LIMIT);
        assert_eq!(fs::read(&target).unwrap(), b"old", "{backend}");
        assert_eq!(names(dir.path()), ["source", "target"]);
    }
}

#[test]
fn what_is_there_is_not_lost_for_a_source_that_cannot_be_read() {
    let nobody = processes::Somebody::new();
    let (source, target) = (nobody.work().join("source"), nobody.work().join("target"));
    random_file(&source, SIZE, 1);
    trees::set_mode(&source, 0);
    nobody.assert_refused("cat", &[source.as_os_str()]);
    for backend in BACKENDS {
        fs::write(&target, "old").unwrap();
        trees::set_mode(&target, 0o666);
        let far = Far::with_program(backend, "0.6.3", "", &nobody.work().with_file_name("haul"));
        trees::let_go(far.dir.path());
        trees::let_go(far.pipes.dir());
        let command = copy(backend, &far, Way::Up, &["--connections", "2"], &[&source], &target);
        let ended = complete(&mut nobody.haul(backend, command.get_args().skip(2)));
        ended.assert_exit(23);
        assert!(ended.stderr.contains("Permission denied"), "{ended:?}");
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }
}

/// Runs where HAUL_BCMR_060 and HAUL_BCMR_072 name the real binaries.
#[test]
fn real_servers_of_both_versions_carry_ranges() {
    let dir = trees::scratch();
    let sources = ["a", "b"].map(|name| dir.path().join(name));
    random_file(&sources[0], SIZE, 1);
    random_file(&sources[1], SIZE - 13, 2);
    for (variable, release) in [("HAUL_BCMR_060", "0.6.0"), ("HAUL_BCMR_072", "0.7.2")] {
        let Some(program) = std::env::var_os(variable).filter(|program| !program.is_empty()) else { continue };
        for (backend, way) in ways() {
            let far = Far::with_program(backend, release, "", Path::new(&program));
            let target = dir.path().join("target");
            fs::create_dir(&target).unwrap();
            let all = sources.each_ref().map(PathBuf::as_path);
            assert_exit(&finish(copy(backend, &far, way, &["--connections", "3"], &all, &target)), 0);
            for (source, name) in sources.iter().zip(["a", "b"]) {
                assert_eq!(hash_of(&target.join(name)), hash_of(source), "{release}, {backend}, {way:?}");
            }
            fs::remove_dir_all(&target).unwrap();
            let transaction = way == Way::Up && release == "0.7.2";
            let ranges = far.told(range_kind(way)).iter().sum::<usize>();
            assert_eq!(ranges, if transaction { 0 } else { RANGES + 4 }, "{release}, {backend}, {way:?}");
        }
    }
}
