//! `haul doctor`: what keeps copies to another machine from being fast, or from being at all, and what to do about it.
//!
//! ```text
//! this machine -------------+
//! far.rs: login, machine ---+-> findings, one line each -> exit code 0, or 1 where one of them is a problem
//! far.rs: direct connection +
//! ```
//! The far end examines itself by `haul doctor --json`, started through ssh, so no server has to answer such questions.
//! What it says is judged here. Nothing is left anywhere: what is written to a disk has no name.

mod far;
mod machine;

use crate::args::{Choice, DirectWay, DoctorArgs};
use crate::daemon::Daemon;
use crate::exit::Exit;
use crate::operand::{self, Machine as Address};
use crate::output;
use crate::remote::{Dial, Host};
use crate::run;
use crate::signals::{self, Hangup};
use far::{LOGINS, Login, Met, NoLogin, seconds};
use haul_engine::limits::PEER_WORDS_BYTES;
use haul_engine::wire::display::{Printable, visible_json};
use machine::Machine;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

/// Of everything that is printed as JSON.
const SCHEMA: &str = "haul/1";
/// Bytes a second of one CPU below which a cipher is done without the instructions for it.
const SLOW_SEAL: u64 = 500_000_000;
/// Bytes that should be free: a new file is there beside the old one until it is whole.
const LITTLE_ROOM: u64 = 1 << 30;

/// The exit codes, for the help.
pub(crate) const CODES: &str = "\
Exit codes:
  0  no finding is a problem; there may be warnings
  1  one is, or the command line makes no sense
 20  interrupted";

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ok,
    /// It works, and could be better.
    Warning,
    /// It does not work.
    Problem,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Problem => "problem",
        }
    }
}

/// One line, and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    state: State,
    /// `here`, `there`, or `between` the two.
    end: &'static str,
    check: &'static str,
    text: String,
    hint: Option<&'static str>,
}

impl Finding {
    fn ok(end: &'static str, check: &'static str, text: String) -> Finding {
        Finding { state: State::Ok, end, check, text, hint: None }
    }

    fn bad(state: State, end: &'static str, check: &'static str, text: String, hint: &'static str) -> Finding {
        Finding { state, end, check, text, hint: Some(hint) }
    }
}

/// Prints each finding as soon as it is there.
struct Sheet {
    json: bool,
    findings: Vec<Finding>,
    /// Why a line could not be printed.
    lost: Option<std::io::Error>,
}

impl Sheet {
    fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            if !self.json {
                let Finding { state, end, check, text, hint } = &finding;
                let line = format!("{:<7}  {end:<7}  {check:<10}  {text}", state.name());
                let hint = hint.map(|hint| format!("         hint: {hint}"));
                [Some(line), hint].into_iter().flatten().for_each(|line| self.say(&line));
            }
            self.findings.push(finding);
        }
    }

    fn say(&mut self, line: &str) {
        if let Err(error) = output::print_line(line.as_bytes()) {
            self.lost.get_or_insert(error);
        }
    }

    fn count(&self, state: State) -> usize {
        self.findings.iter().filter(|finding| finding.state == state).count()
    }
}

/// What is examined.
enum Target {
    /// This machine, and its disk there if any.
    Here(Option<OsString>),
    /// This machine and one that ssh reaches, and its disk there if any.
    Far(Host, String),
    Daemon(crate::daemon::Address),
}

/// A name alone is a host: a directory of this machine has a slash.
fn target(text: Option<&OsStr>) -> Result<Target, String> {
    let Some(text) = text else { return Ok(Target::Here(None)) };
    let bytes = text.as_bytes();
    if !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.iter().any(|byte| b":/".contains(byte)) {
        return Ok(Target::Far(Host::parse(bytes, None)?, String::new()));
    }
    let parsed = operand::parse(text)?;
    let path = parsed.operand.path.as_bytes();
    match parsed.host {
        None => Ok(Target::Here(Some(text.to_os_string()))),
        Some(Address::Daemon(address)) if path.is_empty() => Ok(Target::Daemon(address)),
        Some(Address::Daemon(_)) => Err("what a daemon serves is not examined; leave the path out".to_string()),
        Some(Address::Ssh(host)) => {
            let path = std::str::from_utf8(path).map_err(|_| "the path is not UTF-8".to_string())?;
            // Over there, where a name alone would be a host.
            let beside = if path.is_empty() || path.starts_with('/') { "" } else { "./" };
            Ok(Target::Far(host, format!("{beside}{path}")))
        }
    }
}

pub(crate) fn run(args: &DoctorArgs, choice: Choice) -> Exit {
    let target = match target(args.target.as_deref()) {
        Ok(target) => target,
        Err(why) => return run::usage(&why),
    };
    if let Err(why) = signals::install(Hangup::Stops) {
        return run::refused(&why);
    }
    let path = if let Target::Here(Some(path)) = &target { Some(Path::new(path)) } else { None };
    let here = match Machine::here(choice, path) {
        Ok(here) => here,
        Err(why) => return run::refused(&why),
    };
    let mut sheet = Sheet { json: args.json, findings: Vec::new(), lost: None };
    sheet.add(judged("here", &here));
    let mut there = None;
    match &target {
        Target::Here(_) => {}
        Target::Far(host, path) => there = examine(host, path, args, choice, &mut sheet),
        Target::Daemon(address) => match Daemon::new(address, &args.remote) {
            Ok(daemon) => sheet.add(direct(far::meet_daemon(&daemon, choice), true)),
            Err(why) => return run::refused(&why),
        },
    }
    if signals::stopped() {
        output::error("interrupted");
        return Exit::Interrupted;
    }
    let (problems, warnings) = (sheet.count(State::Problem), sheet.count(State::Warning));
    if args.json {
        let document = document(&here, there.as_ref(), &sheet.findings, problems, warnings).to_string();
        sheet.say(&visible_json(&document));
    } else {
        sheet.say(&format!("{}, {}", counted(problems, "problem"), counted(warnings, "warning")));
    }
    match sheet.lost {
        Some(error) => output::lost(&error),
        None if problems == 0 => Exit::Success,
        None => Exit::PROBLEM,
    }
}

fn counted(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}"),
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

fn document(here: &Machine, there: Option<&Machine>, findings: &[Finding], problems: usize, warnings: usize) -> Value {
    let findings: Vec<Value> = findings
        .iter()
        .map(|Finding { state, end, check, text, hint }| {
            json!({"state": state.name(), "end": end, "check": check, "text": text, "hint": hint})
        })
        .collect();
    json!({
        "schema": SCHEMA, "type": "doctor", "here": here, "there": there, "findings": findings, "problems": problems,
        "warnings": warnings,
    })
}

/// The other end, as far as ssh gets there.
fn examine(host: &Host, path: &str, args: &DoctorArgs, choice: Choice, sheet: &mut Sheet) -> Option<Machine> {
    let mut remote = args.remote.clone();
    remote.direct = DirectWay::Direct;
    let dial = Dial::new(host, &remote, []);
    let mut login = match Login::new(&dial, path) {
        Ok(login) => login,
        Err(why) => {
            sheet.add(no_login(why));
            return None;
        }
    };
    let answers = ["haul ", "bcmr "].iter().any(|name| login.who.starts_with(name));
    sheet.add([who(&login, args.remote.rsh.is_some())]);
    let round_trip = login.round_trip();
    let runs_commands = round_trip.is_some();
    sheet.add(
        round_trip.map(|time| {
            Finding::ok("between", "round trip", format!("{:.2} ms through ssh", time.as_secs_f64() * 1e3))
        }),
    );
    let mut there = None;
    if runs_commands && !signals::stopped() {
        sheet.add([logins(far::further(&dial, login.took))]);
        if login.who.starts_with("haul ") {
            match login.machine() {
                Ok(machine) => {
                    sheet.add(judged("there", &machine));
                    there = Some(machine);
                }
                Err(why) => sheet.add([no_machine(why)]),
            }
        }
    } else if answers {
        sheet.add([no_machine("the account runs a program of its own in place of commands")]);
    }
    drop(login);
    if answers && !signals::stopped() {
        sheet.add(direct(far::meet(&dial, choice), false));
    }
    there
}

fn no_login(why: NoLogin) -> Option<Finding> {
    let (text, hint) = match why {
        NoLogin::Stopped => return None,
        NoLogin::Failed(failure) => {
            (format!("{}: {}", Printable(&failure.path), failure.reason()), "ssh must be there; -e names another one")
        }
        NoLogin::Ended(Some(255)) => {
            ("ssh failed; it said why".to_string(), "find out with `ssh -v` and the same options")
        }
        NoLogin::Ended(_) => (
            "the remote shell ended without running the command".to_string(),
            "look at the account's shell and at its start files",
        ),
        NoLogin::Late => {
            ("no answer in time".to_string(), "find out with `ssh -v` and the same options; --timeout waits longer")
        }
        NoLogin::StartFiles => (
            "the login is there, and its shell says nothing: a start file may run another program (`exec`)".to_string(),
            "a start file may do that only where a person is; slow ones need a --timeout above 30",
        ),
        NoLogin::Strange => (
            "the remote shell prints too much before the command runs".to_string(),
            "start files must print nothing where there is no terminal",
        ),
    };
    Some(Finding::bad(State::Problem, "between", "login", text, hint))
}

/// Who answers at the end of ssh, or of a remote shell of the user's `own`, which has no SFTP server.
fn who(login: &Login, own: bool) -> Finding {
    let text = format!("{:.2} s through ssh; ", seconds(login.took));
    let ours = concat!("haul ", env!("CARGO_PKG_VERSION"));
    match login.who.as_str() {
        who if who == ours => Finding::ok("between", "login", format!("{text}{ours} answers")),
        who if who.starts_with("haul ") || who.starts_with("bcmr ") => Finding::bad(
            State::Warning,
            "between",
            "login",
            format!("{text}{} answers", clean(who)),
            "with the same haul at both ends everything works that this one can do",
        ),
        "none" => Finding::bad(
            State::Problem,
            "between",
            "login",
            match own {
                true => format!("{text}no haul answers: copies fail, because the shell of -e is not asked for SFTP"),
                false => {
                    format!("{text}no haul answers: copies go through the SFTP server of sshd and are not verified")
                }
            },
            "copy this program to ~/.local/bin/haul there, or name it with --remote-path",
        ),
        _ => Finding::bad(
            State::Problem,
            "between",
            "login",
            format!("{text}what is called haul there does not run, or is another program"),
            "it must be built for that machine, and be executable",
        ),
    }
}

fn logins((there, took): (usize, Duration)) -> Finding {
    if there == LOGINS {
        let text = format!("{LOGINS} at the same time; the further ones took {:.2} s", seconds(took));
        return Finding::ok("between", "logins", text);
    }
    let text =
        format!("{there} of {LOGINS} at the same time; the others were refused, were late, or needed a password");
    let hint = "--connections gets no more than that through ssh (MaxStartups and MaxSessions of sshd); direct connections \
                need one login";
    Finding::bad(State::Warning, "between", "logins", text, hint)
}

fn no_machine(why: &'static str) -> Finding {
    let hint = "`haul doctor` there tells the rest";
    Finding::bad(State::Warning, "there", "system", format!("not known: {why}"), hint)
}

fn direct(met: Met, daemon: bool) -> Option<Finding> {
    let (check, hint) = match daemon {
        true => {
            ("daemon", "`haul serve --listen` must run there, and its port be open on the way; see `haul serve --help`")
        }
        false => ("direct", "until then leave --direct out: content goes through ssh then, as it does by default"),
    };
    Some(match met {
        Met::Stopped => return None,
        Met::At { address, plain: false } => {
            Finding::ok("between", check, format!("{address} reached, encrypted with AES-256-GCM"))
        }
        Met::At { address, plain: true } => Finding::bad(
            State::Warning,
            "between",
            check,
            format!("{address} reached, UNENCRYPTED"),
            "leave --plaintext out, unless the wire is trusted",
        ),
        Met::Not(failure) => Finding::bad(State::Problem, "between", check, failure.reason(), hint),
    })
}

/// What one machine says of itself, judged.
fn judged(end: &'static str, machine: &Machine) -> Vec<Finding> {
    let Machine { version, system, cpus, memory, .. } = machine;
    let memory = memory.map(|memory| format!(", {} of memory", output::size(memory))).unwrap_or_default();
    let text = format!("haul {}, {}, {}{memory}", clean(version), clean(system), counted_cpus(*cpus));
    vec![Finding::ok(end, "system", text), backend(end, machine), speeds(end, machine), disk(end, machine)]
}

fn counted_cpus(number: u64) -> String {
    if number == 1 { "1 CPU".to_string() } else { format!("{number} CPUs") }
}

fn backend(end: &'static str, machine: &Machine) -> Finding {
    let used = clean(&machine.backend);
    match &machine.no_uring {
        None => {
            let note = machine.notes.first().map(|note| format!(": {}", clean(note))).unwrap_or_default();
            Finding::ok(end, "backend", format!("{used}{note}"))
        }
        Some(why) => Finding::bad(
            State::Warning,
            end,
            "backend",
            format!("{used}: {}", clean(why)),
            "everything works without io_uring; it takes Linux 6.1, kernel.io_uring_disabled=0, and a container that allows it",
        ),
    }
}

fn speeds(end: &'static str, machine: &Machine) -> Finding {
    let Machine { seals, hashes, .. } = machine;
    let text = format!("AES-256-GCM {}, BLAKE3 {}, each on one CPU", speed(*seals), speed(*hashes));
    if *seals >= SLOW_SEAL {
        return Finding::ok(end, "cipher", text);
    }
    let hint = "that CPU is busy, or has no instructions for AES; direct connections are limited by it";
    Finding::bad(State::Warning, end, "cipher", text, hint)
}

fn disk(end: &'static str, machine: &Machine) -> Finding {
    let disk = &machine.disk;
    let path = clean(&disk.path);
    let free = disk.free.map_or_else(|| "room unknown".to_string(), |free| format!("{} free", output::size(free)));
    let written = match (disk.unsynced, disk.synced) {
        (Some(unsynced), Some(synced)) => {
            format!(", written at {}, at {} with a sync every 4 MiB", speed(unsynced), speed(synced))
        }
        _ => String::new(),
    };
    match &disk.failed {
        Some(why) => {
            let hint = "name a directory that this user may write to, with room for what is to come";
            Finding::bad(State::Problem, end, "disk", format!("{path}: {}; {free}", clean(why)), hint)
        }
        None if disk.free.is_some_and(|free| free < LITTLE_ROOM) => {
            let hint = "a file that is replaced takes the room of both until the new one is whole";
            Finding::bad(State::Warning, end, "disk", format!("{path}: {free}{written}"), hint)
        }
        None => Finding::ok(end, "disk", format!("{path}: {free}{written}")),
    }
}

fn speed(bytes: u64) -> String {
    format!("{:.2} GB/s", bytes as f64 / 1e9)
}

/// Somebody else's words, safe on a terminal and not too many.
fn clean(text: &str) -> String {
    let short = Printable(&text.as_bytes()[..text.len().min(PEER_WORDS_BYTES)]).to_string();
    if text.len() > PEER_WORDS_BYTES { format!("{short}...") } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::Disk;

    fn machine() -> Machine {
        let disk = Disk { path: "/srv".into(), free: Some(1 << 40), synced: None, unsynced: None, failed: None };
        Machine {
            version: "0.1.0".into(),
            system: "linux 6.18.0 x86_64".into(),
            cpus: 2,
            memory: Some(4 << 30),
            backend: "io_uring".into(),
            no_uring: None,
            notes: Vec::new(),
            seals: 4_000_000_000,
            hashes: 4_000_000_000,
            disk,
        }
    }

    fn states(machine: &Machine) -> Vec<&'static str> {
        judged("there", machine).iter().map(|finding| finding.state.name()).collect()
    }

    #[test]
    fn what_works_but_could_be_better_is_a_warning_and_what_cannot_be_is_a_problem() {
        assert_eq!(states(&machine()), ["ok"; 4]);
        let refused = Machine { no_uring: Some("Operation not permitted".into()), ..machine() };
        assert_eq!(states(&refused), ["ok", "warning", "ok", "ok"]);
        assert_eq!(states(&Machine { seals: 1, ..machine() }), ["ok", "ok", "warning", "ok"]);
        let full = Machine { disk: Disk { free: Some(1), ..machine().disk }, ..machine() };
        assert_eq!(states(&full), ["ok", "ok", "ok", "warning"]);
        let failed = Machine { disk: Disk { failed: Some("cannot write".into()), ..machine().disk }, ..machine() };
        assert_eq!(states(&failed), ["ok", "ok", "ok", "problem"]);
        let bad = [refused, full, failed].map(|machine| judged("there", &machine)).concat();
        assert!(bad.iter().all(|finding| (finding.state == State::Ok) == finding.hint.is_none()), "{bad:?}");
    }

    #[test]
    fn the_words_of_the_other_end_are_escaped_and_cut_off() {
        let long = "\u{1b}[31m".repeat(10_000);
        let loud = Machine {
            version: long.clone(),
            system: long.clone(),
            backend: long.clone(),
            no_uring: Some(long.clone()),
            disk: Disk { path: long.clone(), failed: Some(long), ..machine().disk },
            ..machine()
        };
        for finding in judged("there", &loud) {
            assert!(!finding.text.chars().any(char::is_control), "{finding:?}");
            assert!(finding.text.len() < 20 * PEER_WORDS_BYTES, "{} bytes", finding.text.len());
        }
    }

    #[test]
    fn a_name_alone_is_a_host_and_what_has_a_slash_is_a_directory() {
        let far = |text: &str| match target(Some(OsStr::new(text))) {
            Ok(Target::Far(host, path)) => Some((host.to_string(), path)),
            Ok(_) => None,
            Err(why) => panic!("{text}: {why}"),
        };
        for (text, host, path) in [
            ("server", "server", ""),
            ("me@server", "me@server", ""),
            ("server:", "server", ""),
            ("server:/srv", "server", "/srv"),
            ("server:srv", "server", "./srv"),
            ("ssh://server:2222/srv", "server:2222", "/srv"),
        ] {
            assert_eq!(far(text), Some((host.to_string(), path.to_string())), "{text}");
        }
        for text in [".", "/", "/srv", "./server", "srv/"] {
            assert_eq!(far(text), None, "{text}");
        }
        assert!(target(Some(OsStr::new("-oProxyCommand=x"))).is_err());
        assert!(target(Some(OsStr::new("haul://server:1/below"))).is_err());
        assert!(matches!(target(Some(OsStr::new("haul://server:1"))), Ok(Target::Daemon(_))));
    }
}
