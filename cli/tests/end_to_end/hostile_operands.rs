//! Another user of the machine, who may rename what an operand names and put a link in its place while a copy is under way.

use crate::support::routes::{Route, Way, contents_of, finish};
use crate::support::{assert_exit, litter};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// More than are under way at a time.
const FILES: usize = 1_500;

/// `from/` with the files, `shared/`, whose names the attacker changes, and `private/`, which is none of his business.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
        for name in ["from/sub", "shared", "private/sub"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        for number in 0..FILES {
            fs::write(dir.path().join(file("from", number)), format!("content {number}")).unwrap();
        }
        Scene { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command; once `begun`, what stands at `shared/tree` is renamed, and a link to `private` put in its place.
    fn attacked(&self, command: Command, begun: impl Fn(&Path) -> bool + Sync) -> Output {
        let (tree, moved) = (self.path("shared/tree"), self.path("shared/moved"));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let attacker = scope.spawn(|| {
                while !begun(&tree) {
                    if over.load(Ordering::Relaxed) {
                        return false;
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
                fs::rename(&tree, &moved).unwrap();
                symlink(self.path("private"), &tree).unwrap();
                !over.load(Ordering::Relaxed)
            });
            let output = finish(command);
            over.store(true, Ordering::Relaxed);
            assert!(attacker.join().unwrap(), "the copy was over before it was attacked: {output:?}");
            output
        })
    }
}

fn file(dir: &str, number: usize) -> String {
    // Half of them one level down.
    format!("{dir}/{}{number}", if number.is_multiple_of(2) { "sub/" } else { "" })
}

fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Every way, each backend at each end, with one connection and with three.
fn runs() -> Vec<(Route, &'static [&'static str])> {
    let mut runs = Vec::new();
    for route in Route::all() {
        match route.way {
            Way::Here => runs.push((route, &["-a"][..])),
            _ if route.near == route.far => {}
            _ => {
                let several = (route.near == "uring").then(|| (route.clone(), &["-a", "--connections", "3"][..]));
                runs.extend([(route, &["-a"][..])].into_iter().chain(several));
            }
        }
    }
    runs
}

/// Through an SFTP server one end only is a haul.
fn over_sftp(way: Way) -> impl Iterator<Item = (Route, &'static [&'static str])> {
    Route::over_sftp().into_iter().filter(move |route| route.way == way).map(|route| (route, &["-a"][..]))
}

#[test]
fn a_target_that_becomes_a_link_gets_nothing_more_through_it() {
    for (route, flags) in runs().into_iter().chain(over_sftp(Way::Down)) {
        let scene = Scene::new();
        fs::create_dir(scene.path("shared/tree")).unwrap();
        let command = route.command(flags, &[&contents_of(&scene.path("from"))], &scene.path("shared/tree"));
        let output =
            scene.attacked(command, |tree| fs::read_dir(tree).is_ok_and(|mut entries| entries.nth(20).is_some()));
        assert_exit(&output, 0);
        assert_eq!(names(&scene.path("private")), ["sub"], "{route:?}");
        assert_eq!(names(&scene.path("private/sub")), Vec::<OsString>::new(), "{route:?}");
        for number in 0..FILES {
            let content = fs::read_to_string(scene.path(&file("shared/moved", number)));
            assert_eq!(content.ok(), Some(format!("content {number}")), "{route:?}");
        }
        assert_eq!(litter(&scene.path("shared/moved")), Vec::<OsString>::new());
    }
}

#[test]
fn a_source_that_becomes_a_link_is_not_read_through_it() {
    // Several logins that send have a process each, which resolves the operand when it begins.
    let runs = runs().into_iter().filter(|(route, flags)| route.way != Way::Down || flags.len() == 1);
    for (route, flags) in runs.chain(over_sftp(Way::Up)) {
        let scene = Scene::new();
        fs::rename(scene.path("from"), scene.path("shared/tree")).unwrap();
        for number in 0..FILES {
            fs::write(scene.path(&file("private", number)), format!("private {number}")).unwrap();
        }
        let target = scene.path("target");
        let command = route.command(flags, &[&contents_of(&scene.path("shared/tree"))], &target);
        let output =
            scene.attacked(command, |_| fs::read_dir(&target).is_ok_and(|mut entries| entries.nth(20).is_some()));
        assert_exit(&output, 0);
        for number in 0..FILES {
            let content = fs::read_to_string(target.join(file("", number).trim_start_matches('/')));
            assert_eq!(content.ok(), Some(format!("content {number}")), "{route:?}");
        }
    }
}
