//! Direct connections that break: opened again, their work done by others, and in the end ssh or a plain word.

use crate::support::BACKENDS;
use crate::support::between::{Between, Fate};
use crate::support::kept::Kept;
use crate::support::processes::{
    Ended, LIMIT, Running, assert_nobody_at_home, at_home, names, servers, signal, wait_for,
};
use crate::support::routes::assert_same_tree;
use crate::support::transfer::Way;
use crate::support::{Entry, Remote, hash_of, snapshot, trees};
use rustix::process::Signal;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1 << 20;
/// Six ranges, one of them a bit.
const SIZE: u64 = 80 * MIB + 13;
const RANGE: u64 = 16 * MIB;
/// What travels beside the content.
const AROUND: u64 = MIB;
/// The last one: how long what broke is opened again, in ms. It is far from enough to give up what comes back at once.
const SOON: &str = "3000,30000,30000,60000,60000,700";

fn routes() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

struct Scene {
    between: Between,
    copy: Kept,
}

impl Scene {
    fn new(backend: &'static str, way: Way, fates: impl Fn(usize) -> Fate + Send + Sync + 'static) -> Scene {
        let (between, pipes) = Between::new(backend, fates);
        let mut copy = Kept::new((backend, backend), way, SIZE as usize);
        copy.pipes = pipes;
        Scene { between, copy }
    }

    fn run(&self, direct: &str, more: &[&str]) -> Ended {
        let direct = format!("--direct={direct}");
        let flags = [&[direct.as_str(), "--compress=none", "--connections", "3"], more].concat();
        let mut command = self.copy.command(&flags);
        let ended = Running::start(command.env("HAUL_TIMEOUTS_MS", SOON)).finish();
        assert_nobody_at_home(&self.copy.pipes.home(), LIMIT);
        ended
    }

    #[track_caller]
    fn assert_whole(&self, ended: &Ended) {
        ended.assert_exit(0);
        assert_eq!(hash_of(&self.copy.target()), self.copy.hash);
        assert_eq!(names(&self.copy.to()), std::slice::from_ref(&self.copy.name));
        assert_eq!(ended.stdout.matches("\"type\":\"file\"").count(), 1, "{ended:?}");
    }

    /// What ended it, in one line, and what to do where something is to be continued.
    #[track_caller]
    fn assert_broken(&self, ended: &Ended, continues: bool) {
        ended.assert_exit(12);
        assert!(!self.copy.target().exists());
        let lines: Vec<&str> = ended.lines();
        assert!(lines[0].starts_with("haul: connection lost: "), "{ended:?}");
        assert_eq!(lines.len(), 1, "{ended:?}");
        let end =
            if continues { "; run the same command to continue" } else { "; run the same command to do it again" };
        assert!(lines[0].contains(": stopped at ") && lines[0].ends_with(end), "{ended:?}");
    }
}

#[test]
fn one_of_several_that_breaks_costs_what_it_had_in_hand() {
    for (backend, way) in routes() {
        let scene = Scene::new(backend, way, |number| if number == 1 { Fate::Cut(10 * MIB) } else { Fate::Through });
        let ended = scene.run("direct", &[]);
        scene.assert_whole(&ended);
        assert_eq!(ended.stderr, "");
        let bytes = scene.between.take_bytes();
        assert!(bytes < SIZE + 10 * MIB + AROUND, "{backend}, {way:?}: {bytes} bytes");
        assert!(bytes > SIZE, "{bytes}");
    }
}

#[test]
fn one_of_several_that_is_tampered_with_costs_no_more() {
    for (backend, way) in routes() {
        let flip = if way == Way::Up { Fate::FlipUp } else { Fate::FlipDown };
        for at in [3 * MIB, 150] {
            let scene = Scene::new(backend, way, move |number| if number == 1 { flip(at) } else { Fate::Through });
            let ended = scene.run("direct", &[]);
            scene.assert_whole(&ended);
            assert_eq!(ended.stderr, "", "{at}");
            assert!(scene.between.take_bytes() < SIZE + 2 * RANGE + AROUND);
        }
    }
}

#[test]
fn when_all_break_once_they_are_opened_again() {
    for (backend, way) in routes() {
        for cut in [0, 100, 9 * MIB] {
            // One that comes about must be there first: who cannot prove himself at once is not asked again.
            let first = move |number| if number == 0 { Fate::Cut(cut.max(5 * MIB)) } else { Fate::Cut(cut) };
            let scene = Scene::new(backend, way, move |number| if number < 3 { first(number) } else { Fate::Through });
            let ended = scene.run("direct", &[]);
            scene.assert_whole(&ended);
            assert_eq!(ended.stderr, "", "{cut}");
            assert!(scene.between.came() > 3);
            assert!(scene.between.take_bytes() < SIZE + 3 * 9 * MIB + AROUND);
        }
    }
}

#[test]
fn when_none_comes_again_the_run_says_so_or_goes_on_through_ssh() {
    for (backend, way) in routes() {
        let for_good = |number| if number < 3 { Fate::Cut(9 * MIB) } else { Fate::Refused };
        let scene = Scene::new(backend, way, for_good);
        let ended = scene.run("direct", &[]);
        scene.assert_broken(&ended, false);
        assert_eq!(names(&scene.copy.to()).len(), 0, "nothing is kept that was not asked for");

        let scene = Scene::new(backend, way, for_good);
        let ended = scene.run("auto", &[]);
        scene.assert_whole(&ended);
        let notices: Vec<&str> = ended.stdout.lines().filter(|line| line.contains("\"type\":\"notice\"")).collect();
        let [notice] = notices[..] else { panic!("{ended:?}") };
        assert!(notice.contains("connection lost: ") && notice.contains("; going on over ssh"), "{notice}");
        assert_eq!(ended.stderr, "");
        assert!(scene.between.take_bytes() < 3 * 9 * MIB + AROUND);
    }
}

#[test]
fn what_broke_for_good_is_continued_by_the_same_command() {
    for (backend, way) in routes() {
        let good = Arc::new(AtomicBool::new(false));
        let same = good.clone();
        // Each carries a range, and a part of the next.
        let scene = Scene::new(backend, way, move |number| match same.load(Ordering::SeqCst) {
            true => Fate::Through,
            false if number < 3 => Fate::Cut(24 * MIB),
            false => Fate::Refused,
        });
        let ended = scene.run("direct", &["-C"]);
        scene.assert_broken(&ended, true);
        good.store(true, Ordering::SeqCst);
        scene.between.take_bytes();
        let ended = scene.run("direct", &["-C"]);
        scene.assert_whole(&ended);
        let bytes = scene.between.take_bytes();
        // What was confirmed is not sent again: the ranges that were whole, though the end of one may have been on its way.
        assert!(bytes < SIZE - 2 * RANGE, "{backend}, {way:?}: {bytes} bytes");
        assert_eq!(ended.stderr, "");
        fs::remove_file(scene.copy.target()).unwrap();
    }
}

#[test]
fn connections_that_break_again_and_again_still_bring_the_file_where_ssh_may_help() {
    for (backend, way) in routes() {
        let scene = Scene::new(backend, way, |_| Fate::Cut(7 * MIB));
        let ended = scene.run("auto", &[]);
        scene.assert_whole(&ended);
        let scene = Scene::new(backend, way, |_| Fate::Cut(7 * MIB));
        let ended = scene.run("direct", &[]);
        assert!(matches!(ended.status.code(), Some(23)), "{ended:?}");
        assert!(!scene.copy.target().exists());
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
        assert!(ended.stderr.ends_with("not copied: every connection broke that carried it\n"), "{ended:?}");
        assert_eq!(names(&scene.copy.to()).len(), 0);
    }
}

#[test]
fn a_further_login_that_dies_leaves_nothing_beside_a_file_in_ranges() {
    for backend in BACKENDS {
        let hits = (0..20).filter(|_| {
            let copy = Kept::new((backend, backend), Way::Down, 2 * SIZE as usize);
            let flags = ["-C", "--compress=none", "--connections", "3"];
            let mut client = Running::start(&mut copy.command(&flags));
            let home = copy.pipes.home();
            wait_for(LIMIT, || client.is_over() || (copy.partial().is_some() && servers(&home).len() == 3));
            // All but the first, one of which may have begun the file.
            let killed = servers(&home).into_iter().skip(1).filter(|&pid| signal(pid, Signal::KILL)).count();
            let ended = client.finish();
            ended.assert_exit(0);
            assert_nobody_at_home(&home, LIMIT);
            assert_eq!(hash_of(&copy.target()), copy.hash);
            assert_eq!(names(&copy.to()), std::slice::from_ref(&copy.name), "{ended:?}");
            killed == 2 && ended.stdout.contains("a further connection is not used")
        });
        assert!(hits.take(4).count() > 0, "{backend}: no connection was hit midway");
    }
}

#[test]
fn small_files_in_hand_when_all_break_arrive_as_well_and_are_told_once() {
    for (backend, way) in routes() {
        let (between, pipes) =
            Between::new(backend, |number| if number < 3 { Fate::Cut(300_000) } else { Fate::Through });
        let mut copy = Kept::new((backend, backend), way, 1);
        copy.pipes = pipes;
        fs::remove_file(copy.source()).unwrap();
        fs::create_dir(copy.source()).unwrap();
        trees::small_files(&copy.source(), 300);
        crate::support::random_file(&copy.source().join("large"), 66 << 20, 1);
        let mut command = copy.command(&["--direct=direct", "--compress=none", "--connections", "3", "-r"]);
        let ended = Running::start(command.env("HAUL_TIMEOUTS_MS", SOON)).finish();
        ended.assert_exit(0);
        assert_eq!(ended.stderr, "");
        assert_same_tree(&copy.target().join(&copy.name), &copy.source());
        let files = snapshot(&copy.source()).values().filter(|entry| matches!(entry, Entry::File { .. })).count();
        assert_eq!(ended.stdout.matches("\"type\":\"file\"").count(), files);
        assert!(between.came() > 3);
        assert_nobody_at_home(&copy.pipes.home(), LIMIT);
    }
}

#[test]
fn when_the_session_over_ssh_dies_the_run_ends_and_is_continued() {
    for (backend, way) in routes() {
        let hit = (0..10).any(|_| {
            let scene = Scene::new(backend, way, |_| Fate::Through);
            let flags = ["--direct=auto", "--compress=none", "--connections", "3", "-C"];
            let (mut client, _) = scene.copy.start(&flags);
            let mut moved = 0;
            wait_for(LIMIT, || {
                moved += scene.between.take_bytes();
                moved > 20 * MIB || client.is_over()
            });
            if client.is_over() || !signal(client.pid(), Signal::STOP) {
                return false;
            }
            // Not the server, but what its words go through.
            let home = scene.copy.pipes.home();
            let is_cat =
                |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"cat"));
            let cats: Vec<i32> = at_home(&home).into_iter().filter(is_cat).collect();
            let killed = cats.into_iter().filter(|&pid| signal(pid, Signal::KILL)).count();
            signal(client.pid(), Signal::CONT);
            let ended = client.finish();
            assert_nobody_at_home(&home, LIMIT);
            if scene.copy.target().exists() {
                return false;
            }
            scene.assert_broken(&ended, true);
            let again = scene.run("auto", &["-C"]);
            scene.assert_whole(&again);
            assert!(scene.between.take_bytes() < SIZE);
            killed > 0
        });
        assert!(hit, "{backend}, {way:?}: never midway");
    }
}
