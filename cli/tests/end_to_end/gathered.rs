//! A large file goes up over several logins at once: their servers gather in one process, and where they do not, each file
//! goes whole over one of them.

use crate::support::interop::raw;
use crate::support::interop::raw::kind;
use crate::support::kept::{BLOCK, Kept, summary};
use crate::support::processes::{
    LIMIT, Running, assert_nobody_at_home, at_home, complete, names, script, servers, signal, wait_for,
};
use crate::support::record::Record;
use crate::support::routes::{finish, json_lines, of_type};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Pipes, Remote, Sshd, assert_exit, at, binary, hash_of, haul, random_file, trees};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Signal;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Four ranges of 16 MiB, and a bit of a fifth.
const SIZE: usize = 64 * MIB + 13;
const RANGES: usize = 5;
const NOTICE: &str = "haul: a further connection is not used: ";
/// RangeBegin.
const RANGE_BEGIN: u8 = 0x4b;

/// `haul copy --json --connections 3 FLAGS..` of `sources` to the directory `target` over there.
fn upload(backend: &str, remote: &dyn Remote, flags: &[&str], sources: &[PathBuf], target: &Path) -> Command {
    let mut args: Vec<OsString> = ["copy", "--json", "--compress=none", "--connections", "3"].map(Into::into).into();
    args.extend(flags.iter().map(OsString::from));
    args.extend(remote.args());
    args.extend(sources.iter().map(OsString::from));
    args.push(at(remote, target));
    haul(backend, args)
}

/// Two files for ranges, a small one and an empty one.
fn sources(dir: &Path) -> Vec<PathBuf> {
    [("a", SIZE), ("b", SIZE - 13), ("c", 3000), ("d", 0)]
        .into_iter()
        .zip(1..)
        .map(|((name, size), seed)| {
            let path = dir.join(name);
            random_file(&path, size, seed);
            path
        })
        .collect()
}

#[track_caller]
fn assert_arrived(target: &Path, sources: &[PathBuf]) {
    for source in sources {
        assert_eq!(hash_of(&target.join(source.file_name().unwrap())), hash_of(source), "{source:?}");
    }
    assert_eq!(names(target).len(), sources.len(), "something is left");
}

/// Frames of this type in what each login was sent.
fn told(record: &Record, kind: u8) -> Vec<usize> {
    let count = |said: Vec<u8>| raw::split(&said).unwrap().iter().filter(|frame| frame.kind == kind).count();
    record.wire.sessions().iter().map(|session| count(session.up())).collect()
}

#[test]
fn large_files_go_up_in_ranges_over_every_login_and_small_ones_whole() {
    let dir = trees::scratch();
    let sources = sources(dir.path());
    let expected: Vec<String> = sources.iter().map(|source| hash_of(source)).collect();
    let more = [&[][..], &["-V"], &["--sync"], &["-C"]].into_iter().cycle();
    let pairs = BACKENDS.into_iter().flat_map(|near| BACKENDS.map(|far| (near, far)));
    for ((near, far), flags) in pairs.zip(more) {
        let record = Record::new(far, "");
        // A machine that is busy may let a login come too late.
        let several = (0..10).any(|_| {
            record.wire.forget();
            let target = dir.path().join("target");
            fs::create_dir(&target).unwrap();
            let output = finish(upload(near, &record.pipes, flags, &sources, &target));
            assert_exit(&output, 0);
            assert_nobody_at_home(&record.pipes.home(), LIMIT);
            let lines = json_lines(&output);
            let said = of_type(&lines, "file").into_iter().map(|line| line["blake3"].as_str().unwrap().to_owned());
            assert_eq!(said.collect::<Vec<_>>(), expected);
            assert_arrived(&target, &sources);
            fs::remove_dir_all(&target).unwrap();
            let ranges = told(&record, kind::RANGE_PUT);
            assert_eq!(ranges.iter().sum::<usize>(), RANGES + 4, "each range once");
            assert_eq!(told(&record, RANGE_BEGIN).iter().sum::<usize>(), 2);
            ranges.len() == 3 && ranges.iter().all(|&ranges| ranges > 0)
        });
        assert!(several, "{near}, {far}: one of three logins never carries anything");
    }
}

#[test]
fn logins_through_sshd_gather_as_well() {
    let dir = trees::scratch();
    let sources = sources(dir.path());
    for backend in BACKENDS {
        let Some(sshd) = Sshd::start(backend) else { return };
        for flags in [&[][..], &["-C"]] {
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            let mut client = Running::start(&mut upload(backend, &sshd, flags, &sources, target.path()));
            let mut gathered = false;
            // The others wait in their own processes.
            wait_for(LIMIT, || {
                gathered |= servers(&sshd.home()).len() == 3;
                gathered || client.is_over()
            });
            client.finish().assert_exit(0);
            assert_arrived(target.path(), &sources);
            assert_nobody_at_home(&sshd.home(), LIMIT);
        }
    }
}

#[test]
fn a_login_that_breaks_in_the_middle_costs_a_notice_and_no_range() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    random_file(&source, 4 * SIZE, 1);
    for backend in BACKENDS {
        let hit = (0..20).any(|_| {
            let record = Record::new(backend, "");
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            let mut command = upload(backend, &record.pipes, &[], std::slice::from_ref(&source), target.path());
            let mut client = Running::start(&mut command);
            let home = record.pipes.home();
            wait_for(LIMIT, || servers(&home).len() == 3 || client.is_over());
            // What keeps the words of the last to come is in their way.
            let victim = at_home(&home).into_iter().filter(|&pid| keeps_words(pid)).max();
            let killed = victim.filter(|_| !client.is_over()).is_some_and(|pid| signal(pid, Signal::KILL));
            let ended = client.finish();
            ended.assert_exit(0);
            assert_nobody_at_home(&home, LIMIT);
            assert_arrived(target.path(), std::slice::from_ref(&source));
            killed && ended.stdout.contains(&NOTICE["haul: ".len()..])
        });
        assert!(hit, "{backend}: no login was hit midway");
    }
}

fn keeps_words(pid: i32) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.starts_with(b"tee\0") && command.ends_with(b".up\0")
}

#[test]
fn a_copy_whose_servers_are_killed_goes_on_with_what_arrived() {
    const FLAGS: [&str; 3] = ["-C", "--connections", "3"];
    for backend in BACKENDS {
        let copy = Kept::new((backend, backend), Way::Up, 4 * SIZE);
        let hit = (0..20).any(|_| {
            let (mut client, _) = copy.start(&FLAGS);
            wait_for(LIMIT, || servers(&copy.pipes.home()).len() == 3 && copy.kept() >= 3 * BLOCK || client.is_over());
            servers(&copy.pipes.home()).into_iter().for_each(|pid| _ = signal(pid, Signal::KILL));
            let ended = client.finish();
            assert_nobody_at_home(&copy.pipes.home(), LIMIT);
            if copy.target().exists() {
                fs::remove_file(copy.target()).unwrap();
                return false;
            }
            ended.assert_exit(12);
            true
        });
        assert!(hit, "{backend}: each copy was over before it could be killed");
        let told = copy.completed(&FLAGS);
        let resumed = told["resumed_bytes"].as_u64().unwrap();
        assert!(resumed >= BLOCK, "{told}");
    }
}

#[test]
fn logins_that_do_not_gather_carry_whole_files() {
    let dir = trees::scratch();
    let sources = sources(dir.path());
    // None of them; all but the first.
    let alone = "set -- serve --root /";
    let but_first = "mkdir \"$HOME/taken\" 2>/dev/null || set -- serve --root /";
    for (backend, (setup, begun)) in
        BACKENDS.into_iter().flat_map(|backend| [(alone, 0), (but_first, 2)].map(|how| (backend, how)))
    {
        let record = Record::new(backend, setup);
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let output = finish(upload(backend, &record.pipes, &[], &sources, target.path()));
        assert_exit(&output, 0);
        assert_nobody_at_home(&record.pipes.home(), LIMIT);
        assert_arrived(target.path(), &sources);
        assert_eq!(summary(&output)["files"], sources.len());
        // The first can go on alone with what it begins; another one that takes a large file moves it whole.
        let ranges = told(&record, RANGE_BEGIN).iter().sum::<usize>();
        assert!(ranges <= begun, "{backend}, {setup}: {ranges}");
        let puts = told(&record, kind::RANGE_PUT);
        assert!(puts.iter().filter(|&&puts| puts > 0).count() <= 1, "{backend}, {setup}: {puts:?}");
    }
}

#[test]
fn a_name_that_somebody_else_has_taken_gets_nothing() {
    let dir = trees::scratch();
    let sources = sources(dir.path());
    for backend in BACKENDS {
        // The far end says its name, and waits until it is taken.
        let program = dir.path().join(format!("haul-{backend}"));
        let (name, taken) = (dir.path().join("name"), dir.path().join("taken"));
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = serve ] || exec '{0}' \"$@\"\necho \"$5\" >'{1}.new'; mv '{1}.new' '{1}'\n\
             while ! [ -e '{2}' ]; do sleep 0.01; done\nexec '{0}' \"$@\"\n",
            binary().display(),
            name.display(),
            taken.display()
        );
        script(&program, &text);
        let pipes = Pipes::with_program(backend, &program);
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let client = Running::start(&mut upload(backend, &pipes, &[], &sources, target.path()));
        assert!(wait_for(LIMIT, || name.exists()), "nobody was asked to gather");
        let asked = fs::read_to_string(&name).unwrap();
        let address = SocketAddr::from_abstract_name(format!("haul-{}", asked.trim())).unwrap();
        // This process is in another directory, as another user's would be.
        let squatter = UnixListener::bind_addr(&address).unwrap();
        fs::write(&taken, "").unwrap();
        let guest = std::thread::spawn(move || {
            let (mut guest, _) = squatter.accept().unwrap();
            guest.set_read_timeout(Some(LIMIT)).unwrap();
            // As one says that could take it.
            let _ = guest.write_all(b"r");
            let mut said = Vec::new();
            let _ = guest.read_to_end(&mut said);
            said
        });
        let ended = client.finish();
        ended.assert_exit(0);
        assert!(guest.join().unwrap().is_empty(), "a stream was handed over");
        assert_arrived(target.path(), &sources);
        assert_nobody_at_home(&pipes.home(), LIMIT);
        fs::remove_file(&name).unwrap();
        fs::remove_file(&taken).unwrap();
    }
}

/// A name of this process's own.
fn name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}{:016x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A server that nobody speaks to, and that has this name.
struct Holder {
    child: Child,
    name: String,
}

impl Holder {
    fn start(backend: &str, home: &Path) -> Holder {
        let name = name();
        let child = serve(backend, home, &name).spawn().unwrap();
        let address = SocketAddr::from_abstract_name(format!("haul-{name}")).unwrap();
        assert!(wait_for(LIMIT, || UnixStream::connect_addr(&address).is_ok()));
        Holder { child, name }
    }

    fn signal(&self, what: Signal) {
        assert!(signal(i32::try_from(self.child.id()).unwrap(), what));
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn serve(backend: &str, home: &Path, name: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(["serve", "--root", "/", "--gather", name]).env("HAUL_BACKEND", backend).env("HOME", home);
    command.current_dir(home).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A stand-in for ssh that has the far end gather under this name.
fn renaming(pipes: &Pipes, path: &Path, name: &str) {
    let text = format!(
        "#!/bin/sh\nfor last; do :; done\nwhile [ $# -gt 1 ]; do a=\"$a '$1'\"; shift; done\n\
         last=$(printf %s \"$last\" | sed \"s/'[0-9a-f]\\{{32\\}}'/'{name}'/g\")\n\
         eval \"exec '{}' $a \\\"\\$last\\\"\"\n",
        pipes.dir().join("ssh").display()
    );
    script(path, &text);
}

/// As `upload`, over two connections and by this ssh.
fn by_way_of(backend: &str, ssh: &Path, pipes: &Pipes, sources: &[PathBuf], target: &Path) -> Command {
    let mut args: Vec<OsString> = ["copy", "--connections", "2", "-e"].map(Into::into).into();
    args.push(ssh.into());
    args.extend(sources.iter().map(OsString::from));
    args.push(at(pipes, target));
    haul(backend, args)
}

#[test]
fn a_server_that_is_stopped_before_it_takes_a_login_does_not_keep_it() {
    let dir = trees::scratch();
    let sources = sources(dir.path());
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let holder = Holder::start(backend, &pipes.home());
        holder.signal(Signal::STOP);
        let ssh = dir.path().join(format!("ssh-{backend}"));
        renaming(&pipes, &ssh, &holder.name);
        let ended = complete(&mut by_way_of(backend, &ssh, &pipes, &sources, target.path()));
        // One that is waiting to be taken ends when it is told to; a busy machine may not have come to that yet.
        let gone = [200, 500, 1000].into_iter().any(|until| {
            let mut waiting = serve(backend, &pipes.home(), &holder.name).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(until));
            let told = Instant::now();
            assert!(signal(i32::try_from(waiting.id()).unwrap(), Signal::TERM));
            waiting.wait().unwrap().code() == Some(20) && told.elapsed() < Duration::from_secs(1)
        });
        assert!(gone, "{backend}");
        holder.signal(Signal::CONT);
        holder.end();
        ended.assert_exit(0);
        assert!(ended.took >= Duration::from_secs(2), "it was not asked: {ended:?}");
        assert_arrived(target.path(), &sources);
    }
}

#[test]
fn whoever_has_the_name_and_lets_nobody_in_keeps_nobody() {
    let dir = trees::scratch();
    let sources = sources(dir.path());
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let target = tempfile::tempdir_in(dir.path()).unwrap();
        let name = name();
        let address = SocketAddrUnix::new_abstract_name(format!("haul-{name}").as_bytes()).unwrap();
        let socket = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
        };
        let squatter = socket();
        rustix::net::bind(&squatter, &address).unwrap();
        rustix::net::listen(&squatter, 0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let guest = socket();
            let full = rustix::net::connect(&guest, &address).is_err();
            waiting.push(guest);
            if full {
                break;
            }
        }
        let ssh = dir.path().join(format!("ssh-{backend}"));
        renaming(&pipes, &ssh, &name);
        let ended = complete(&mut by_way_of(backend, &ssh, &pipes, &sources, target.path()));
        ended.assert_exit(0);
        assert!(ended.took < Duration::from_secs(10), "{ended:?}");
        assert_arrived(target.path(), &sources);
        assert_nobody_at_home(&pipes.home(), LIMIT);
    }
}

#[test]
fn who_has_handed_its_login_over_does_not_outlive_the_client_for_a_server_that_is_stopped() {
    let dir = trees::scratch();
    let source = dir.path().join("source");
    fs::File::create(&source).unwrap().set_len(16 * SIZE as u64).unwrap();
    for backend in BACKENDS {
        let pipes = Pipes::new(backend);
        let home = pipes.home();
        let hit = (0..20).any(|_| {
            let target = tempfile::tempdir_in(dir.path()).unwrap();
            let mut command = upload(backend, &pipes, &[], std::slice::from_ref(&source), target.path());
            let mut client = Running::start(&mut command);
            wait_for(LIMIT, || servers(&home).len() == 3 || client.is_over());
            // They hand over at once.
            std::thread::sleep(Duration::from_millis(100));
            let serving = servers(&home).first().copied().filter(|_| !client.is_over());
            let Some(serving) = serving.filter(|&pid| signal(pid, Signal::STOP)) else { return false };
            signal(client.pid(), Signal::KILL);
            drop(client.finish());
            let left = wait_for(LIMIT, || servers(&home) == [serving]);
            assert!(signal(serving, Signal::CONT));
            assert!(left, "{backend}: {:?}", servers(&home));
            assert_nobody_at_home(&home, LIMIT);
            true
        });
        assert!(hit, "{backend}: each copy was over before it could be stopped");
    }
}
