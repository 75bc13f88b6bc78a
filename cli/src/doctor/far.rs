//! What is found out of the other end: who answers, how fast, what it says of itself, and whether it can be met.
//!
//! ```text
//! examine: ssh -start line-> ping, pong, .. -> go -> JSON        one login, held while `further` tries more
//! meet:    ssh -> haul serve -> a direct connection, as for a copy
//! ```
//! Each step has a deadline, and what comes from there is bounded before it is looked at.

use super::machine::Machine;
use crate::args::Choice;
use crate::daemon::Daemon;
use crate::remote::Dial;
use crate::run::{self, Link, MakeClient, News, Share, Start};
use crate::signals;
use crate::threads;
use haul_engine::limits::{MAX_PREAMBLE_BYTES, SECOND};
use haul_engine::queue::Queue;
use haul_engine::session::client::Opening;
use haul_engine::session::inspect::{self, Question};
use haul_engine::session::plan::Options;
use haul_engine::session::report::{Direction, Progress, Report};
use haul_engine::session::{CANNOT_GO_ON, Failure};
use serde::Deserialize;
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked whether the user has stopped it.
const TICK: Duration = Duration::from_millis(20);
/// Bytes of what a machine says of itself.
const MACHINE_BYTES: usize = 64 * 1024;
/// How long it may take to say that: it measures for a good second, and its disk may be slow.
const EXAMINATION: Duration = Duration::from_secs(8);
/// Round trips of which the shortest counts, and how long all of them may take.
const PINGS: usize = 5;
const PINGING: Duration = Duration::from_secs(3);
/// Logins at the same time, the first included. With the one that meets, or the two where a bcmr has to be greeted again,
/// these are five at most: some firewalls take six within half a minute for an attack.
pub(super) const LOGINS: usize = 3;
/// What a login may take beyond thrice the first one's time.
const LATE: Duration = Duration::from_secs(2);
/// What the direct connection may take beyond its login.
const MEETING: Duration = Duration::from_secs(10);
/// How long a remote shell has to end.
const SHELL_END: Duration = Duration::from_millis(300);

/// Bytes from a child, of which it is not waited for more than it is said.
struct Lines {
    bytes: Receiver<Vec<u8>>,
    kept: Vec<u8>,
}

/// Why there is no line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoLine {
    Late,
    /// The login is there, and its shell says nothing.
    Silent,
    End,
    TooLong,
    Stopped,
}

impl Lines {
    fn of(mut from: impl Read + Send + 'static) -> Lines {
        let (sender, bytes) = sync_channel(4);
        let read = move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    return;
                }
            }
        };
        // Without it there is no line.
        threads::spawn("lines", read, |_| {});
        Lines { bytes, kept: Vec::new() }
    }

    /// The next line, without its end.
    fn next(&mut self, until: Instant, limit: usize) -> Result<Vec<u8>, NoLine> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.kept[looked..].iter().position(|&byte| byte == b'\n') {
                let rest = self.kept.split_off(looked + end + 1);
                let mut line = std::mem::replace(&mut self.kept, rest);
                line.pop();
                return Ok(line);
            }
            looked = self.kept.len();
            if looked > limit {
                return Err(NoLine::TooLong);
            }
            if signals::stopped() {
                return Err(NoLine::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.bytes.recv_timeout(left.min(TICK)) {
                Ok(more) => self.kept.extend_from_slice(&more),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(NoLine::Late),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(NoLine::End),
            }
        }
    }

    /// What stands behind `nonce` in the line that begins with it. What a login shell prints before is passed over; once the
    /// login is there it may be silent for so long.
    fn start_line(&mut self, nonce: &[u8], until: Instant, shell: Duration) -> Result<Vec<u8>, NoLine> {
        let (mut passed, mut is_there) = (0, false);
        while passed <= MAX_PREAMBLE_BYTES {
            let silent = Instant::now() + shell;
            let line = match self.next(if is_there { until.min(silent) } else { until }, MAX_PREAMBLE_BYTES) {
                Err(NoLine::Late) if is_there => return Err(NoLine::Silent),
                line => line?,
            };
            passed += line.len() + 1;
            match line.strip_prefix(nonce).map(<[u8]>::trim_ascii) {
                Some(b"login") => is_there = true,
                Some(rest) => return Ok(rest.to_vec()),
                None => {}
            }
        }
        Err(NoLine::TooLong)
    }
}

/// A login there; ended when dropped.
pub(super) struct Login {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines,
    /// From the start of ssh to its first word.
    pub(super) took: Duration,
    /// Who could answer: `haul 0.1.0`, `bcmr 0.7.2`, `none` or `unusable`.
    pub(super) who: String,
}

impl Drop for Login {
    fn drop(&mut self) {
        self.input.take();
        run::end_shell(&mut self.child, SHELL_END);
    }
}

/// Why there is no login.
pub(super) enum NoLogin {
    /// It could not be tried.
    Failed(Failure),
    /// It ended without a word; ssh has said why where it ended with 255.
    Ended(Option<i32>),
    Late,
    /// Something else runs in the place of its shell.
    StartFiles,
    /// It says too much, and not what it should.
    Strange,
    Stopped,
}

impl Login {
    /// The machine will examine this directory too, if it is not empty.
    pub(super) fn new(dial: &Dial, directory: &str) -> Result<Login, NoLogin> {
        let begun = Instant::now();
        let patience = dial.patience();
        let (login, shell) = (Duration::from_nanos(patience.login), Duration::from_nanos(patience.shell));
        Login::on(dial.examine(directory), begun, begun + login, shell)
    }

    fn on(
        started: Result<(Child, Vec<u8>), Failure>,
        begun: Instant,
        until: Instant,
        shell: Duration,
    ) -> Result<Login, NoLogin> {
        let (mut child, nonce) = started.map_err(NoLogin::Failed)?;
        let no_pipes = || NoLogin::Failed(Failure::connection("cannot start", "the remote shell has no pipes"));
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or_else(no_pipes)?);
        let mut login = Login { child, input, lines: Lines::of(output), took: Duration::ZERO, who: String::new() };
        let line = match login.lines.start_line(&nonce, until, shell) {
            Ok(line) => line,
            Err(NoLine::Late) => return Err(NoLogin::Late),
            Err(NoLine::Silent) => return Err(NoLogin::StartFiles),
            Err(NoLine::TooLong) => return Err(NoLogin::Strange),
            Err(NoLine::Stopped) => return Err(NoLogin::Stopped),
            Err(NoLine::End) => return Err(NoLogin::Ended(run::end_shell(&mut login.child, SHELL_END))),
        };
        login.took = begun.elapsed();
        login.who = String::from_utf8_lossy(&line).into_owned();
        Ok(login)
    }

    fn say(&mut self, word: &str) -> bool {
        self.input.as_mut().is_some_and(|input| input.write_all(word.as_bytes()).and_then(|()| input.flush()).is_ok())
    }

    /// The shortest time in which a word came back.
    pub(super) fn round_trip(&mut self) -> Option<Duration> {
        let until = Instant::now() + PINGING;
        let mut shortest = None;
        for _ in 0..PINGS {
            let begun = Instant::now();
            // What came back is known, even if the rest takes too long.
            if !self.say("ping\n") || self.lines.next(until, MACHINE_BYTES).ok().as_deref() != Some(b"pong") {
                break;
            }
            let took = begun.elapsed();
            shortest = Some(shortest.map_or(took, |shortest: Duration| shortest.min(took)));
        }
        shortest
    }

    /// What the machine says of itself, or why that is not known.
    pub(super) fn machine(&mut self) -> Result<Machine, &'static str> {
        #[derive(Deserialize)]
        struct Said {
            schema: String,
            here: Machine,
        }
        if !self.say("go\n") {
            return Err("it does not take the question");
        }
        let until = Instant::now() + EXAMINATION;
        let mut line = self.lines.next(until, MACHINE_BYTES);
        for _ in 0..PINGS {
            // Those that came too late to count.
            if line.as_deref().is_ok_and(|line| line == b"pong") {
                line = self.lines.next(until, MACHINE_BYTES);
            }
        }
        let line = line.map_err(|why| match why {
            NoLine::Late | NoLine::Silent => "it did not answer in time",
            NoLine::End => "it does not know the question: its haul may be older than this one",
            NoLine::TooLong => "its answer is too long",
            NoLine::Stopped => "interrupted",
        })?;
        let said: Said = serde_json::from_slice(&line).map_err(|_| "its answer makes no sense")?;
        if said.schema == super::SCHEMA { Ok(said.here) } else { Err("its answer is of another schema") }
    }
}

/// How many logins there are at the same time with the first one, and how long the further ones took.
pub(super) fn further(dial: &Dial, first: Duration) -> (usize, Duration) {
    let begun = Instant::now();
    let until = begun + 3 * first + LATE;
    let logins: Vec<_> = (1..LOGINS)
        .map(|_| {
            let started = dial.further();
            let (sender, login) = sync_channel(1);
            let come = move || _ = sender.send(Login::on(started, begun, until, LATE).ok());
            threads::spawn("login", come, |_| {});
            login
        })
        .collect();
    // None of them ends before all have come.
    let logins: Vec<Login> = logins.into_iter().filter_map(|login| login.recv().ok().flatten()).collect();
    let took = logins.iter().map(|login| login.took).max().unwrap_or_default();
    let there = 1 + logins.len();
    let ends: Vec<_> =
        logins.into_iter().filter_map(|login| threads::spawn("end", move || drop(login), |_| {})).collect();
    ends.into_iter().for_each(|end| _ = end.join());
    (there, took)
}

/// How it went to come to the other end directly.
pub(super) enum Met {
    /// There, and not encrypted or encrypted.
    At {
        address: SocketAddr,
        plain: bool,
    },
    Not(Failure),
    Stopped,
}

/// Opens a direct connection as a copy would, and asks for nothing.
pub(super) fn meet(dial: &Dial, choice: Choice) -> Met {
    let mut redialled = None;
    loop {
        let (mut child, opening) = match dial.start(redialled) {
            Ok(started) => started,
            Err(failure) => return Met::Not(failure),
        };
        let (Some(stdout), Some(stdin)) = (child.stdout.take(), child.stdin.take()) else {
            return Met::Not(Failure::connection("cannot start", "the remote shell has no pipes"));
        };
        let patience = Duration::from_nanos(dial.patience().login) + MEETING;
        let ends: (OwnedFd, Option<OwnedFd>) = (stdout.into(), Some(stdin.into()));
        let last = attempt(Some(ends), opening, choice, patience, || _ = child.kill());
        run::end_shell(&mut child, SHELL_END);
        match last {
            Report::Redial { version } if redialled.is_none() => redialled = Some(version),
            last => return met(last),
        }
    }
}

/// The same to a daemon, at the first of its addresses where one answers.
pub(super) fn meet_daemon(daemon: &Daemon, choice: Choice) -> Met {
    let mut number = 0;
    loop {
        let mut opening = daemon.opening();
        if let Err(failure) = daemon.invite(number, &mut opening) {
            return Met::Not(failure);
        }
        match attempt(None, opening, choice, MEETING, || {}) {
            Report::NotDirect(_) if daemon.has_more(number) => number += 1,
            last => return met(last),
        }
    }
}

fn met(last: Report) -> Met {
    match last {
        Report::Direct { address, plain } => Met::At { address, plain },
        _ if signals::stopped() => Met::Stopped,
        Report::Fatal(failure) | Report::NotDirect(failure) => Met::Not(failure),
        Report::Absent(failure) => Met::Not(Failure { what: "no direct connection", ..failure }),
        _ => Met::Not(Failure::connection("no direct connection", "the server ended it without a word")),
    }
}

/// Runs a client that asks for nothing. The report that says most.
fn attempt(
    ends: Option<(OwnedFd, Option<OwnedFd>)>,
    opening: Opening,
    choice: Choice,
    patience: Duration,
    mut give_up: impl FnMut(),
) -> Report {
    let (sender, news) = sync_channel(64);
    let queue = Queue::new(Direction::Down, Options::default());
    let link = Link { choice, progress: Arc::new(Progress::default()), queue, share: Share::equal(1), sender };
    let make: MakeClient = Arc::new(|around| {
        inspect::client(around.stream, around.opening, Question::Hash, Vec::new(), around.progress, around.reporter)
    });
    let thread = link.spawn(Start::On(ends, Box::new(opening), make));
    let until = Instant::now() + patience;
    let mut last = Report::Fatal(Failure::connection("no direct connection", "the server did not answer in time"));
    loop {
        match news.recv_timeout(TICK) {
            Ok(News::Report(report)) => match (*report, &last) {
                // It is there, whatever becomes of it.
                (_, Report::Direct { .. }) => {}
                (
                    report @ (Report::Direct { .. }
                    | Report::Fatal(_)
                    | Report::NotDirect(_)
                    | Report::Absent(_)
                    | Report::Redial { .. }),
                    _,
                ) => last = report,
                _ => {}
            },
            Ok(News::Broken(why)) => last = Report::Fatal(Failure::connection(CANNOT_GO_ON, why)),
            Ok(News::Backend(..) | News::Tuned(_) | News::Ended) => {}
            Err(RecvTimeoutError::Timeout) if Instant::now() < until && !signals::stopped() => {}
            Err(RecvTimeoutError::Timeout) => {
                give_up();
                return last;
            }
            Err(RecvTimeoutError::Disconnected) => {
                let _ = thread.map(JoinHandle::join);
                return last;
            }
        }
    }
}

/// Of what was measured there, in seconds.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_nanos() as f64 / SECOND as f64 * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_line_is_cut_off_where_it_ends_and_is_not_waited_for_without_end() {
        let mut lines = Lines::of(&b"one\n\ntwo\nrest"[..]);
        for line in [&b"one"[..], b"", b"two"] {
            assert_eq!(lines.next(soon(), 100).unwrap(), line);
        }
        assert_eq!(lines.next(soon(), 100), Err(NoLine::End));
        assert_eq!(Lines::of(std::io::repeat(b'x')).next(soon(), 10_000), Err(NoLine::TooLong));
        let (silent, _kept) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(Lines::of(silent).next(Instant::now() + TICK, 100), Err(NoLine::Late));
    }

    #[test]
    fn what_a_login_shell_prints_is_passed_over_up_to_a_limit() {
        let mut lines = Lines::of(&b"Welcome\nhaul-1\nhaul-12 haul 0.1.0\r\nmore\n"[..]);
        assert_eq!(lines.start_line(b"haul-12", soon(), LATE).unwrap(), b"haul 0.1.0");
        let endless = std::io::repeat(b'\n');
        assert_eq!(Lines::of(endless).start_line(b"haul-12", soon(), LATE), Err(NoLine::TooLong));
    }

    #[test]
    fn a_shell_that_says_nothing_behind_its_login_is_told_from_a_login_that_takes_long() {
        use std::io::Write as _;
        for (said, why) in [("", NoLine::Late), ("haul-1 login\n", NoLine::Silent)] {
            let (silent, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
            far.write_all(said.as_bytes()).unwrap();
            let until = Instant::now() + if said.is_empty() { TICK } else { Duration::from_secs(100) };
            assert_eq!(Lines::of(silent).start_line(b"haul-1", until, TICK), Err(why));
        }
    }
}
