//! A real sshd behind a cable: what becomes of a copy when the cable is pulled, a firewall begins to swallow what it let
//! pass, or somebody stops the other end. In time it moves again, or ends with one line that says what to do. Nobody is at
//! a terminal.

use crate::support::cable::{self, Cable, End, PORTS};
use crate::support::kept::{BLOCK, Kept};
use crate::support::processes::{Ended, LIMIT, Running, servers, signal, wait_for};
use crate::support::transfer::Way;
use crate::support::{BACKENDS, Remote, SFTP, Sshd, at, binary, hash_of, haul, processes};
use rustix::process::Signal;
use std::process::Command;
use std::time::{Duration, Instant};

/// Some seconds on the cable.
const SIZE: usize = 68 << 20;
const RATE: &str = "100mbit";
/// Seconds, as --timeout has it.
const TIMEOUT: u64 = 6;
/// What a busy machine may be late with; less than what was waited for where somebody was forgotten.
const LATE: Duration = Duration::from_secs(3);
/// The same where a login is part of it.
const LOGIN: Duration = Duration::from_secs(6);
/// More than a copy takes.
const WHOLE: Duration = Duration::from_secs(12);
const WAYS: [&str; 3] = ["ssh", "direct", "auto"];

struct Scene {
    sshd: Sshd,
    cable: Cable,
    copy: Kept,
    direct: &'static str,
}

impl Scene {
    /// `None` where there are no namespaces, or no sshd.
    fn new(backend: &'static str, way: Way, direct: &'static str) -> Option<Scene> {
        let scene = Scene::bare(backend, way, direct)?;
        scene.sshd.install("haul", binary());
        Some(scene)
    }

    /// The same with nothing installed over there.
    fn bare(backend: &'static str, way: Way, direct: &'static str) -> Option<Scene> {
        let cable = Cable::new(RATE)?;
        let sshd = Sshd::behind(&cable, backend, SFTP)?;
        Some(Scene { sshd, cable, copy: Kept::new((backend, backend), way, SIZE), direct })
    }

    fn command(&self, more: &[&str]) -> Command {
        let (direct, ports) = (format!("--direct={}", self.direct), format!("--port-range={}-{}", PORTS.0, PORTS.1));
        let flags = [&["-C", "--compress=none", &direct, &ports], more].concat();
        self.cable.without_terminal(&self.copy.command_to(&self.sshd, &flags))
    }

    /// Runs until some of it has arrived, and lets something happen then. What became of it, and how long after that.
    fn disturbed(&self, what: impl FnOnce(&Scene)) -> (Ended, Duration) {
        let client = self.begun();
        what(self);
        let begun = Instant::now();
        let ended = client.finish();
        (ended, begun.elapsed())
    }

    /// Has a limit of time, and some of it has arrived.
    fn begun(&self) -> Running {
        let timeout = format!("--timeout={TIMEOUT}");
        let mut client = Running::start(&mut self.command(&[&timeout]));
        wait_for(LIMIT, || self.copy.partial_size() > 0 || client.is_over());
        client
    }

    /// It has ended in time with one line, and is continued by the same command.
    #[track_caller]
    fn assert_given_up(&self, (ended, took): &(Ended, Duration)) {
        self.assert_ended(ended, 30);
        assert!(*took < Duration::from_secs(TIMEOUT) + LATE, "{took:?}: {ended:?}");
        assert!(ended.stderr.contains(" s: stopped at "), "{ended:?}");
        assert!(ended.stderr.ends_with("; run the same command to continue\n"), "{ended:?}");
        assert!(!self.copy.target().exists());
    }

    #[track_caller]
    fn assert_ended(&self, ended: &Ended, code: i32) {
        ended.assert_exit(code);
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
        assert!(ended.stderr.starts_with("haul: "), "{ended:?}");
    }

    #[track_caller]
    fn assert_whole(&self, ended: &Ended) {
        ended.assert_exit(0);
        assert_eq!(hash_of(&self.copy.target()), self.copy.hash);
        assert_eq!(processes::names(&self.copy.to()), std::slice::from_ref(&self.copy.name), "{ended:?}");
    }

    #[track_caller]
    fn is_continued(&self) {
        // What the network still owes: that whoever was at the near end has gone.
        processes::assert_nobody_at_home(&self.sshd.home(), LIMIT);
        let kept = self.copy.kept();
        let ended = processes::complete(&mut self.command(&[]));
        self.assert_whole(&ended);
        let resumed = "\"resumed_bytes\":0,";
        assert!(kept < BLOCK || !ended.stdout.contains(resumed), "{kept} bytes were there: {ended:?}");
    }

    /// Runs it with a limit of time.
    fn timed(&self) -> (Ended, Duration) {
        let timeout = format!("--timeout={TIMEOUT}");
        let ended = processes::complete(&mut self.command(&[&timeout]));
        let took = ended.took;
        (ended, took)
    }

    fn stop_servers(&self) {
        servers(&self.sshd.home()).into_iter().for_each(|pid| _ = signal(pid, Signal::STOP));
    }

    fn kill_servers(&self) {
        servers(&self.sshd.home()).into_iter().for_each(|pid| _ = signal(pid, Signal::KILL));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Whoever was stopped does not hear that the connection has ended.
        for pid in processes::at_home(&self.sshd.home()) {
            signal(pid, Signal::KILL);
        }
    }
}

/// Each backend, up and down, with each of these ways to go, at the same time: they wait most of the time.
fn everywhere(ways: &[&'static str], test: impl Fn(Scene) + Sync) {
    std::thread::scope(|scope| {
        for (backend, way) in BACKENDS.into_iter().flat_map(|backend| [Way::Up, Way::Down].map(|way| (backend, way))) {
            for &direct in ways {
                let test = &test;
                let name = format!("{backend}, {way:?}, {direct}");
                let scene = move || _ = Scene::new(backend, way, direct).map(test);
                std::thread::Builder::new().name(name).spawn_scoped(scope, scene).unwrap();
            }
        }
    });
}

/// One after the other, because a dozen copies at the same time are enough for two processors to be late with; in one test,
/// because each test that waits for others takes the place of one that could run.
#[test]
fn copies_between_namespaces_end_or_go_on_in_time() {
    let scenes: [fn(); 8] = [
        a_cable_that_is_pulled_ends_the_copy_in_time_and_the_same_command_continues_it,
        a_port_that_is_swallowed_in_the_middle_ends_the_copy_in_time_and_the_same_command_continues_it,
        a_port_that_is_swallowed_in_the_middle_lets_the_copy_go_on_over_ssh_in_time,
        a_server_that_is_stopped_behind_a_real_ssh_ends_the_copy_in_time_and_the_same_command_continues_it,
        an_outage_of_eight_seconds_costs_a_direct_copy_at_most_twelve,
        an_sshd_that_says_nothing_ends_the_copy_in_time,
        a_server_that_is_stopped_while_it_is_met_directly_ends_the_copy_in_time,
        a_port_that_is_swallowed_from_the_beginning_is_named_and_does_not_stop_a_copy_that_may_go_over_ssh,
    ];
    scenes.iter().for_each(|scene| scene());
}

fn a_cable_that_is_pulled_ends_the_copy_in_time_and_the_same_command_continues_it() {
    everywhere(&WAYS, |scene| {
        let end = if scene.copy.way == Way::Up { End::Near } else { End::Far };
        scene.assert_given_up(&scene.disturbed(|scene| scene.cable.pull(end)));
        scene.cable.plug(end);
        scene.is_continued();
    });
}

fn a_port_that_is_swallowed_in_the_middle_ends_the_copy_in_time_and_the_same_command_continues_it() {
    everywhere(&["direct"], |scene| {
        scene.assert_given_up(&scene.disturbed(|scene| scene.cable.swallow()));
        scene.cable.pass();
        scene.is_continued();
    });
}

fn a_port_that_is_swallowed_in_the_middle_lets_the_copy_go_on_over_ssh_in_time() {
    everywhere(&["auto"], |scene| {
        let mut client = scene.begun();
        scene.cable.swallow();
        let begun = Instant::now();
        wait_for(LIMIT, || scene.copy.target().exists() || client.is_over());
        let there = begun.elapsed();
        let ended = client.finish();
        scene.assert_whole(&ended);
        assert!(ended.stdout.contains("; going on over ssh"), "{ended:?}");
        assert!(there < Duration::from_secs(TIMEOUT) + WHOLE + LATE, "{there:?}: {ended:?}");
        // Nobody waits for the connections that are lost.
        assert!(begun.elapsed() < there + LATE, "{there:?}, {:?}: {ended:?}", begun.elapsed());
    });
}

fn a_server_that_is_stopped_behind_a_real_ssh_ends_the_copy_in_time_and_the_same_command_continues_it() {
    everywhere(&WAYS, |scene| {
        scene.assert_given_up(&scene.disturbed(Scene::stop_servers));
        scene.kill_servers();
        scene.is_continued();
    });
}

fn an_outage_of_eight_seconds_costs_a_direct_copy_at_most_twelve() {
    // Through ssh alone it is for the kernel to try again, after pauses that double.
    everywhere(&["direct", "auto"], |scene| {
        let run = || Running::start(&mut scene.command(&[]));
        let usual = run().finish();
        scene.assert_whole(&usual);
        std::fs::remove_file(scene.copy.target()).unwrap();
        let mut client = run();
        wait_for(LIMIT, || scene.copy.partial_size() > 0 || client.is_over());
        scene.cable.pull(End::Far);
        std::thread::sleep(Duration::from_secs(8));
        assert!(!client.is_over(), "{:?}", client.finish());
        scene.cable.plug(End::Far);
        let ended = client.finish();
        scene.assert_whole(&ended);
        assert!(ended.took < usual.took + Duration::from_secs(12), "{:?}: {ended:?}", usual.took);
    });
}

fn an_sshd_that_says_nothing_ends_the_copy_in_time() {
    everywhere(&WAYS, |scene| {
        signal(scene.sshd.pid(), Signal::STOP);
        let (ended, took) = scene.timed();
        scene.assert_ended(&ended, 35);
        assert!(took < Duration::from_secs(TIMEOUT) + LOGIN, "{took:?}: {ended:?}");
    });
}

#[test]
fn a_server_that_is_stopped_before_it_greets_ends_the_copy_in_time() {
    let scenes = |way, direct| {
        let scene = Scene::bare(BACKENDS[0], way, direct)?;
        let program = scene.sshd.dir().join("stops");
        let text = "#!/bin/sh\n[ \"$1\" = serve ] && kill -STOP $$\nexec '{}' \"$@\"\n";
        processes::script(&program, &text.replace("{}", &binary().display().to_string()));
        scene.sshd.install("haul", &program);
        Some(scene)
    };
    std::thread::scope(|scope| {
        for direct in WAYS {
            scope.spawn(move || {
                let Some(scene) = scenes(Way::Up, direct) else { return };
                let (ended, took) = scene.timed();
                scene.assert_ended(&ended, 35);
                assert!(took < Duration::from_secs(TIMEOUT) + LOGIN, "{took:?}: {ended:?}");
            });
        }
    });
}

fn a_server_that_is_stopped_while_it_is_met_directly_ends_the_copy_in_time() {
    everywhere(&["direct", "auto"], |scene| {
        let timeout = format!("--timeout={TIMEOUT}");
        // The first packets are lost and come again after a second: until then it is stopped, and not met before.
        scene.cable.swallow();
        let mut client = Running::start(&mut scene.command(&[&timeout]));
        wait_for(LIMIT, || scene.cable.has_listener() || client.is_over());
        scene.stop_servers();
        scene.cable.pass();
        let begun = Instant::now();
        let ended = client.finish();
        // By then one that may has begun over ssh.
        let codes: &[i32] = if scene.direct == "direct" { &[35] } else { &[30, 35] };
        assert!(ended.status.code().is_some_and(|code| codes.contains(&code)), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(TIMEOUT) + LATE, "{:?}: {ended:?}", begun.elapsed());
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
    });
}

fn a_port_that_is_swallowed_from_the_beginning_is_named_and_does_not_stop_a_copy_that_may_go_over_ssh() {
    everywhere(&["direct", "auto"], |scene| {
        scene.cable.swallow();
        let limits: &[&str] = if scene.direct == "direct" { &["--timeout=3"] } else { &[] };
        let ended = processes::complete(&mut scene.command(limits));
        let said = match scene.direct {
            "auto" => {
                scene.assert_whole(&ended);
                ended.stdout.clone()
            }
            _ => {
                scene.assert_ended(&ended, 35);
                // As long as a try takes that nothing else bounds.
                assert!(ended.took < Duration::from_secs(5), "{ended:?}");
                ended.stderr.clone()
            }
        };
        let what = "no direct connection: 10.255.0.2:5000 does not answer: is its port filtered? \
                    Open TCP ports 5000-5099 there";
        assert!(said.contains(what), "{ended:?}");
    });
}

#[test]
fn a_small_file_goes_over_ssh_where_the_port_is_swallowed_or_another_machines_and_one_line_says_so() {
    for (backend, swallowed) in BACKENDS.into_iter().flat_map(|backend| [true, false].map(|kind| (backend, kind))) {
        let Some(scene) = Scene::bare(backend, Way::Up, "auto") else { return };
        let program = scene.sshd.dir().join("elsewhere");
        if swallowed {
            scene.cable.swallow();
        }
        // An address that the near end takes for its own.
        let bind = if swallowed { cable::FAR } else { "127.0.0.1" };
        let text = format!("#!/bin/sh\nHAUL_BIND={bind} exec '{}' \"$@\"\n", binary().display());
        processes::script(&program, &text);
        scene.sshd.install("haul", &program);
        let (source, target) = (scene.copy.dir().join("small"), scene.copy.dir().join("arrived"));
        std::fs::write(&source, "6 byte").unwrap();
        let mut copy = haul(backend, ["copy", "--direct=auto", "--port-range=5000-5099"]);
        copy.args(scene.sshd.args()).arg(&source).arg(at(&scene.sshd, &target));
        let ended = processes::complete(&mut scene.cable.without_terminal(&copy));
        ended.assert_exit(0);
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "6 byte");
        let [why, done] = ended.lines()[..] else { panic!("{ended:?}") };
        let what = match swallowed {
            true => "10.255.0.2:5000 does not answer: is its port filtered? Open TCP ports 5000-5099 there; ",
            // Whatever listens there is another machine's: it is not even tried.
            false => "the server names 127.0.0.1:5000, which is not the address that ssh reached; ",
        };
        assert!(why.starts_with(&format!("haul: no direct connection: {what}")), "{why}");
        assert!(done.starts_with("copied 1 file, 6 B in "), "{done}");
    }
}
