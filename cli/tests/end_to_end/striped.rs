//! Files in ranges between two hauls, over direct connections: every pair of backends, both ways, any number of
//! connections; what is there already is compared block by block, and a file that cannot be whole gets no name.

use crate::support::between::{Between, Fate};
use crate::support::interop::content::text;
use crate::support::kept::{BLOCK, Kept, Victim};
use crate::support::processes::{
    LIMIT, arrived, assert_nobody_at_home, in_private_mounts, mount_tmpfs, names, signal, wait_for,
};
use crate::support::routes::{self, Route, assert_same_tree, json_lines, of_type};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Remote, assert_exit, hash_of, litter, random_file, trees};
use rustix::fs::inotify;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;
/// Four ranges of 16 MiB, and a bit of a fifth.
const SIZE: u64 = 64 * MIB + 13;
/// What travels beside the content: handshakes, requests, tags.
const AROUND: u64 = MIB;

/// Both backends on either side, both ways.
fn routes() -> impl Iterator<Item = (&'static str, Way)> {
    BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way)))
}

/// A file without content of its own.
fn sparse(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

fn flags<'a>(connections: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--direct=direct", "--compress=none", "--connections", connections], more].concat()
}

/// With lines that tell of each file, which `Kept` asks for by itself.
fn json<'a>(connections: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--json"], &flags(connections, more)[..]].concat()
}

/// A copy whose direct connections can be counted.
fn counted(backend: &'static str, way: Way, size: u64) -> (Between, Kept) {
    let (between, pipes) = Between::new(backend, |_| Fate::Through);
    let mut copy = Kept::new((backend, backend), way, size as usize);
    copy.pipes = pipes;
    (between, copy)
}

#[test]
fn large_and_small_files_arrive_whole_over_any_number_of_connections() {
    let dir = trees::scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    random_file(&tree.join("a"), SIZE as usize, 1);
    sparse(&tree.join("b"), SIZE - 13);
    sparse(&tree.join("empty"), 0);
    for size in [1, 4096, 70_000, 5_000_000] {
        random_file(&tree.join(size.to_string()), size, 2);
    }
    for (name, mode) in [("a", 0o640), ("b", 0o400), ("1", 0o755)] {
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
        File::open(tree.join(name)).unwrap().set_modified(time).unwrap();
    }
    let numbers = ["1", "3", "8"].into_iter().cycle();
    let more = [&["-r"][..], &["-r", "-V"], &["-r", "--sync"], &["-r", "-C"]].into_iter().cycle();
    for ((route, connections), more) in Route::over_pipes().iter().zip(numbers).zip(more) {
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let lines = json_lines(&route.copied(&json(connections, more), &[&tree], target.path()));
        assert_same_tree(&target.path().join("tree"), &tree);
        let files = of_type(&lines, "file");
        let mut told: Vec<&str> = files.iter().map(|line| line["source"].as_str().unwrap()).collect();
        told.sort_unstable();
        told.dedup();
        assert_eq!((told.len(), files.len()), (7, 7), "each is told once");
        for line in files {
            let name = Path::new(line["source"].as_str().unwrap()).file_name().unwrap();
            assert_eq!(line["blake3"], *hash_of(&tree.join(name)), "{route:?}");
        }
    }
    // What is there already and is the same is not moved again.
    let route = &Route::over_pipes()[0];
    let target = tempfile::tempdir_in(dir.path()).unwrap();
    for unchanged in [0, 6] {
        let lines = json_lines(&route.copied(&json("3", &["-r", "-C"]), &[&tree], target.path()));
        assert_eq!(of_type(&lines, "summary")[0]["unchanged"], unchanged);
        assert_same_tree(&target.path().join("tree"), &tree);
    }
}

#[test]
fn fewer_files_than_connections_are_no_trouble() {
    let dir = trees::scratch();
    let (large, small) = (dir.path().join("large"), dir.path().join("small"));
    sparse(&large, SIZE);
    random_file(&small, 3, 1);
    for route in Route::over_pipes().iter().step_by(2) {
        for source in [&large, &small] {
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            route.copied(&json("8", &[]), &[source], target.path());
            let name = source.file_name().unwrap();
            assert_eq!(hash_of(&target.path().join(name)), hash_of(source), "{route:?}");
            assert_eq!(names(target.path()), [name]);
        }
    }
}

/// What comes compressed takes three of the largest blocks: for the record, and for both sides of the codec. Eight
/// connections had two each, and waited for ever.
#[test]
fn large_compressed_blocks_arrive_over_many_connections() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    fs::write(&source, text(SIZE as usize, 1)).unwrap();
    for (number, route) in Route::over_pipes().iter().enumerate() {
        let (codec, connections) = [("zstd", "8"), ("lz4", "3")][number / 2 % 2];
        let compress = format!("--compress={codec}");
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        route.copied(
            &["--json", "--direct=direct", &compress, "--connections", connections],
            &[&source],
            target.path(),
        );
        assert_eq!(hash_of(&target.path().join("source")), hash_of(&source), "{route:?}");
    }
}

#[test]
fn a_device_takes_a_large_file_and_stays_one() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    sparse(&source, SIZE);
    for route in Route::over_pipes().iter().step_by(3) {
        for more in [&[][..], &["-C"]] {
            route.copied(&json("3", more), &[&source], Path::new("/dev/null"));
            assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        }
    }
}

#[test]
fn where_a_large_file_cannot_stand_it_says_so_and_leaves_nothing() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    sparse(&source, SIZE);
    fs::create_dir_all(dir.path().join("taken/source/in")).unwrap();
    let barred = dir.path().join("barred");
    fs::create_dir(&barred).unwrap();
    fs::set_permissions(&barred, fs::Permissions::from_mode(0o555)).unwrap();
    let routes = Route::all_without_rights(dir.path());
    for route in routes.iter().filter(|route| route.way != routes::Way::Here).step_by(3) {
        for more in [&[][..], &["-C"]] {
            for target in [dir.path().join("taken"), barred.clone()] {
                let output = route.copy(&json("3", more), &[&source], &target);
                assert!(matches!(output.status.code(), Some(23)), "{route:?}: {output:?}");
                assert_eq!(of_type(&json_lines(&output), "error").len(), 1, "{output:?}");
            }
            assert_eq!(names(&dir.path().join("taken/source")), ["in"]);
            assert_eq!(names(&barred).len() + litter(dir.path()).len(), 0);
        }
    }
}

/// Stops the sender once something has arrived, lets `meddle`, and lets it go on. `None` where the copy was faster.
fn meddled(copy: &Kept, flags: &[&str], meddle: impl Fn()) -> Option<crate::support::processes::Ended> {
    let (mut client, server) = copy.start(flags);
    let (sender, receiver) = match copy.way {
        Way::Up => (client.pid(), server),
        _ => (server, client.pid()),
    };
    wait_for(LIMIT, || client.is_over() || arrived(receiver) > 0 || copy.partial_size() > 0);
    let stopped = !client.is_over() && signal(sender, Signal::STOP);
    if stopped {
        meddle();
        signal(sender, Signal::CONT);
    }
    let ended = client.finish();
    assert_nobody_at_home(&copy.pipes.home(), LIMIT);
    stopped.then_some(ended)
}

#[test]
fn a_source_that_changes_on_the_way_is_copied_as_it_is_then_and_one_that_is_gone_gets_no_name() {
    type Change = fn(&Path);
    let replaced: Change = |path| {
        random_file(&path.with_extension("new"), 2 * SIZE as usize, 7);
        fs::rename(path.with_extension("new"), path).unwrap();
    };
    let shrunk: Change = |path| File::options().write(true).open(path).unwrap().set_len(MIB).unwrap();
    let gone: Change = |path| fs::remove_file(path).unwrap();
    for (backend, way) in routes() {
        for (change, more) in [(replaced, &[][..]), (shrunk, &[]), (replaced, &["-C"]), (gone, &[])] {
            let copy = Kept::new((backend, backend), way, 2 * SIZE as usize);
            let old = fs::read(copy.source()).unwrap();
            let hit = (0..20).any(|_| {
                fs::write(copy.source(), &old).unwrap();
                let ended = meddled(&copy, &flags("3", more), || change(&copy.source()));
                let published = copy.target().exists();
                if published {
                    // What was tried once more is the new one.
                    let now = copy.source().exists().then(|| hash_of(&copy.source()));
                    let found = hash_of(&copy.target());
                    assert!(found == copy.hash || Some(&found) == now.as_ref(), "a mixture has the name");
                    assert_eq!(names(&copy.to()).len(), 1);
                    fs::remove_file(copy.target()).unwrap();
                } else if let Some(ended) = &ended {
                    assert!(matches!(ended.status.code(), Some(23 | 24)), "{ended:?}");
                    assert_eq!(ended.stdout.matches("\"type\":\"error\"").count(), 1, "{ended:?}");
                    let left = copy.partial().map_or(0, |_| 1);
                    assert_eq!(names(&copy.to()).len(), left);
                    assert!(left == 0 || more == ["-C"]);
                }
                ended.is_some() && (!published || copy.source().exists())
            });
            assert!(hit, "{backend}, {way:?}: no copy was hit midway");
        }
    }
}

/// Puts a partial there as an interrupted copy would have left it.
fn leave_partial(copy: &Kept, connections: &str, change: impl Fn(&File)) {
    for _ in 0..20 {
        let (mut client, server) = copy.start(&flags(connections, &["-C"]));
        wait_for(LIMIT, || copy.partial_size() > 0 || client.is_over());
        signal(client.pid(), Signal::KILL);
        signal(server, Signal::KILL);
        client.finish();
        assert_nobody_at_home(&copy.pipes.home(), LIMIT);
        if let Some(partial) = copy.partial() {
            let file = File::options().write(true).open(partial).unwrap();
            file.set_len(0).unwrap();
            return change(&file);
        }
        fs::remove_file(copy.target()).unwrap();
    }
    panic!("no copy was hit midway");
}

#[test]
fn of_what_is_there_only_the_blocks_that_differ_are_moved() {
    for (backend, way) in routes() {
        let (between, copy) = counted(backend, way, SIZE);
        let content = fs::read(copy.source()).unwrap();
        let half = (SIZE / 2) as usize;
        let damaged = |file: &File, places: &[u64]| {
            file.write_all_at(&content, 0).unwrap();
            places.iter().for_each(|&at| file.write_all_at(&[content[at as usize] ^ 1], at).unwrap());
        };
        type Left<'a> = Box<dyn Fn(&File) + 'a>;
        let table: Vec<(&str, Left<'_>, u64)> = vec![
            ("nothing", Box::new(|_: &File| {}), SIZE),
            ("half", Box::new(|mut file: &File| file.write_all(&content[..half]).unwrap()), SIZE - 32 * MIB),
            ("damaged in two blocks", Box::new(|file: &File| damaged(file, &[5 * MIB, 41 * MIB])), 2 * BLOCK),
            ("damaged at both ends", Box::new(|file: &File| damaged(file, &[0, SIZE - 1])), BLOCK + 13),
            ("whole", Box::new(|file: &File| damaged(file, &[])), 0),
            (
                "the last block only",
                Box::new(|file| file.write_all_at(&content[64 << 20..], 64 << 20).unwrap()),
                SIZE - 13,
            ),
            (
                "longer",
                Box::new(|file: &File| {
                    damaged(file, &[]);
                    file.write_all_at(b"more", SIZE).unwrap();
                }),
                // Its last block is another one.
                13,
            ),
        ];
        for (number, (name, left, moved)) in table.iter().enumerate() {
            let connections = ["1", "3", "8"][number % 3];
            leave_partial(&copy, connections, left);
            between.take_bytes();
            let summary = copy.completed(&flags(connections, &["-C"]));
            let bytes = between.take_bytes();
            assert!((*moved..*moved + AROUND).contains(&bytes), "{backend}, {way:?}, {name}: {bytes} bytes");
            assert_eq!(summary["resumed_bytes"].as_u64().unwrap(), SIZE - moved, "{name}");
            fs::remove_file(copy.target()).unwrap();
        }
    }
}

#[test]
fn a_striped_copy_killed_at_any_point_is_continued_where_it_was() {
    for (backend, way) in routes() {
        for (number, victim) in [Victim::Client, Victim::Server].into_iter().enumerate() {
            let (between, copy) = counted(backend, way, SIZE);
            let mut rounds = 0;
            for percent in [1, 20, 30] {
                let (mut client, server) = copy.start(&flags(["3", "8"][number], &["-C"]));
                let mut moved = 0;
                wait_for(LIMIT, || {
                    moved += between.take_bytes();
                    moved * 100 >= copy.size * percent || client.is_over()
                });
                let pid = if victim == Victim::Client { client.pid() } else { server };
                let killed = !client.is_over() && signal(pid, Signal::KILL);
                let ended = client.finish();
                assert_nobody_at_home(&copy.pipes.home(), LIMIT);
                if copy.target().exists() {
                    break;
                }
                assert!(killed, "{ended:?}");
                if victim == Victim::Server {
                    ended.assert_exit(12);
                    assert_eq!(ended.stdout.matches("\"type\":\"error\"").count(), 1, "{ended:?}");
                }
                rounds += 1;
                assert_eq!(names(&copy.to()).len(), 1);
            }
            assert!(rounds > 0, "{backend}, {way:?}: no copy was hit midway");
            let there = copy.partial().map_or(copy.size, |partial| equal_blocks(&partial, &copy.source()));
            between.take_bytes();
            let summary = copy.completed(&flags("3", &["-C"]));
            let bytes = between.take_bytes();
            assert!(bytes < copy.size - there + AROUND, "{there} were there, {bytes} were moved");
            assert!(summary["resumed_bytes"].as_u64().unwrap() == there || summary["unchanged"] == 1, "{summary}");
        }
    }
}

/// Bytes of the blocks that are equal in both.
fn equal_blocks(partial: &Path, source: &Path) -> u64 {
    let [partial, source] = [partial, source].map(|path| fs::read(path).unwrap());
    let blocks = partial.chunks(BLOCK as usize).zip(source.chunks(BLOCK as usize));
    blocks.filter(|(ours, theirs)| ours == theirs).map(|(ours, _)| ours.len() as u64).sum()
}

#[test]
fn without_c_a_killed_striped_copy_leaves_nothing() {
    for (backend, way) in routes() {
        let copy = Kept::new((backend, backend), way, SIZE as usize);
        for victim in [Victim::Client, Victim::Server] {
            let hit = (0..20).any(|_| {
                let (mut client, server) = copy.start(&flags("3", &[]));
                let receiver = copy.receiver((client.pid(), server));
                wait_for(LIMIT, || arrived(receiver) > 0 || client.is_over());
                let pid = if victim == Victim::Client { client.pid() } else { server };
                let alive = !client.is_over() && signal(pid, Signal::KILL);
                client.finish();
                assert_nobody_at_home(&copy.pipes.home(), LIMIT);
                let whole = copy.target().exists();
                assert_eq!(names(&copy.to()).len(), usize::from(whole), "{:?}", names(&copy.to()));
                let _ = fs::remove_file(copy.target());
                alive && !whole
            });
            assert!(hit, "no copy was hit midway");
        }
    }
}

#[test]
fn a_striped_file_for_which_there_is_no_room_leaves_the_old_one() {
    if !in_private_mounts("a_striped_file_for_which_there_is_no_room_leaves_the_old_one") {
        return;
    }
    for (backend, way) in routes() {
        // Before the first byte, and in the middle.
        for (room, more) in [(32, &[][..]), (32, &["-C"]), (80, &[])] {
            let copy = Kept::new((backend, backend), way, SIZE as usize);
            let _mounted = mount_tmpfs(&copy.to(), &format!("size={room}m"));
            fs::write(copy.target(), "old").unwrap();
            let fill = || {
                let mut filler = File::create(copy.to().join("filler")).unwrap();
                while filler.write_all(&[1; 4096]).is_ok() {}
            };
            let ended = match room {
                32 => copy.start(&flags("3", more)).0.finish(),
                _ => match meddled(&copy, &flags("3", more), fill) {
                    Some(ended) if hash_of(&copy.target()) != copy.hash => ended,
                    _ => continue,
                },
            };
            ended.assert_exit(11);
            assert_eq!(ended.stdout.matches("\"type\":\"error\"").count(), 1, "{ended:?}");
            assert_eq!(fs::read(copy.target()).unwrap(), b"old");
            let mut left = names(&copy.to());
            left.retain(|name| name != "filler");
            assert_eq!(left, std::slice::from_ref(&copy.name), "{more:?}");
        }
    }
}

#[test]
fn a_run_that_finds_nothing_does_not_complain_about_the_network() {
    let dir = trees::scratch();
    let missing = dir.path().join("missing");
    for route in Route::over_pipes() {
        let output = route.copy(&["--direct=auto"], &[&missing], &dir.path().join("target"));
        assert!(matches!(output.status.code(), Some(23 | 24)), "{output:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
    }
}

/// A far end that answers late: what takes long there must not look like a network that drops everything.
#[test]
fn several_large_files_and_directories_with_times_of_their_own_go_over_ssh_logins_as_well() {
    let dir = trees::scratch();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("in")).unwrap();
    sparse(&tree.join("in/a"), SIZE);
    sparse(&tree.join("b"), SIZE);
    File::open(tree.join("in")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    for route in Route::over_pipes().iter().step_by(2) {
        for more in [&["-r"][..], &["-r", "-C"]] {
            let target: PathBuf = tempfile::tempdir_in(dir.path()).unwrap().keep();
            let flags = [&["--json", "--compress=none", "--connections", "3"], more].concat();
            assert_exit(&route.copy(&flags, &[&tree], &target), 0);
            assert_same_tree(&target.join("tree"), &tree);
            fs::remove_dir_all(target).unwrap();
        }
    }
}

#[test]
fn what_a_killed_process_lets_go_of_a_little_later_is_continued() {
    for (backend, way) in routes() {
        let copy = Kept::new((backend, backend), way, SIZE as usize);
        let content = fs::read(copy.source()).unwrap();
        // It waits for a moment only, and a busy machine may let go of it too late.
        let continued = (0..10).any(|_| {
            leave_partial(&copy, "3", |file| file.write_all_at(&content, 0).unwrap());
            let held = File::open(copy.partial().unwrap()).unwrap();
            rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
            let opened = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
            inotify::add_watch(&opened, copy.partial().unwrap(), inotify::WatchFlags::OPEN).unwrap();
            let (client, _) = copy.start(&flags("3", &["-C"]));
            let tried = || rustix::io::read(&opened, &mut [0; 256][..]).is_ok();
            assert!(wait_for(LIMIT, tried), "nobody has looked at what is there");
            drop(held);
            let ended = client.finish();
            ended.assert_exit(0);
            assert_nobody_at_home(&copy.pipes.home(), LIMIT);
            assert_eq!(names(&copy.to()), std::slice::from_ref(&copy.name));
            fs::remove_file(copy.target()).unwrap();
            ended.stdout.contains(&format!("\"resumed_bytes\":{SIZE}"))
        });
        assert!(continued, "{backend}, {way:?}: it never waits");
    }
}
