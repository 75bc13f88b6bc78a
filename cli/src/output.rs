//! What the user sees: errors and hints on stderr, a progress line on a terminal, NDJSON on stdout.

mod failures;

use crate::args::OutputArgs;
use crate::exit::{self, Exit};
use crate::tuner::{Decision, Rate};
use crate::unkept::{self, Tally};
use haul_engine::limits::UNDER_WAY_BYTES;
use haul_engine::session::Failure;
use haul_engine::session::report::{Direction, Progress, Report};
use haul_engine::wire::display::{Printable, visible_json};
use haul_engine::wire::frame::{Hash, Unkept};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Version of the JSON lines; changes with any change that a reader could notice.
const SCHEMA: &str = "haul/1";
/// What base peers do without.
pub(crate) const NOT_KEPT: &str = "times, modes and links not kept";
/// Hashes of at most this many files stand in the summary; each file has a line of its own anyway.
const SUMMARY_HASHES: usize = 64;
/// Decisions on the number of connections that are shown at the end, the last ones.
const SHOWN_DECISIONS: usize = 8;

/// Hex text of a hash.
pub(crate) fn hex(hash: &Hash) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// The text of an I/O error without its number.
pub(crate) fn reason(error: &std::io::Error) -> String {
    haul_engine::backend::Errno(error.raw_os_error().unwrap_or(0)).to_string()
}

/// One line on stdout. A reader that went away is no failure: it has what it wanted. What cannot be written otherwise is lost.
pub(crate) fn print_line(line: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(line).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
    written.or_else(|error| if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Says that what was to be printed is lost, for this reason.
pub(crate) fn lost(why: &std::io::Error) -> Exit {
    error(&format!("stdout: cannot write: {}", reason(why)));
    Exit::FileIo
}

/// Prints one error line.
pub(crate) fn error(text: &str) {
    stderr(&format!("haul: {text}"));
}

/// One line on stderr. A reader that went away, or a full disk behind it, is no reason to fail a copy.
pub(crate) fn stderr(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Bytes with a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A rate in MiB/s and Gbit/s.
pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    let rate = bytes as f64 / seconds.max(1e-9);
    format!("{:.1} MiB/s, {:.2} Gbit/s", rate / 1_048_576.0, rate * 8.0 / 1e9)
}

/// Collects what happened and says it.
pub(crate) struct Output {
    args: OutputArgs,
    started: Instant,
    bar: Option<ProgressBar>,
    samples: VecDeque<(Instant, u64)>,
    files: u64,
    bytes: u64,
    /// Files that were there already.
    unchanged: u64,
    /// Files that grew while they were read.
    grew: u64,
    /// Bytes that travelled, and bytes that need not: they are no speed.
    moved: u64,
    resumed: u64,
    directories: u64,
    links: u64,
    skipped: BTreeMap<&'static str, u64>,
    unkept: Tally,
    errors: u64,
    vanished: u64,
    exit: Exit,
    hashes: Vec<(Vec<u8>, Hash)>,
    /// Files whose content was proved, and files that something else than haul has carried, or nobody has proved.
    verified: u64,
    unverified: u64,
    /// The peer keeps neither times nor modes nor links.
    bare: bool,
    /// The first failure for want of room, and how many there were: they are told together.
    no_room: Option<(Failure, u64)>,
    /// The last failure of which nothing but a peer's words is known, how many in a row said the same, and how many of them
    /// have not been shown.
    alike: Option<(Failure, u64, u64)>,
    /// The hints that were given.
    hinted: RefCell<BTreeSet<&'static str>>,
    /// The first of the lines on stdout that could not be written, and why.
    lost: RefCell<Option<std::io::Error>>,
    /// Nothing of this run is proved.
    unproved: bool,
    /// What the peer has of an upload that did not end is not ours to say.
    peer_keeps: bool,
    backend: String,
    /// How many connections there were at first, and what was decided then, and how many seconds after the start.
    connections: (Option<u16>, Vec<(f64, Decision)>),
    /// The user knows that content is not encrypted.
    warned: bool,
}

impl Output {
    pub(crate) fn new(args: &OutputArgs) -> Output {
        Output {
            args: args.clone(),
            started: Instant::now(),
            bar: None,
            samples: VecDeque::new(),
            files: 0,
            bytes: 0,
            unchanged: 0,
            grew: 0,
            moved: 0,
            resumed: 0,
            directories: 0,
            links: 0,
            skipped: BTreeMap::new(),
            unkept: Tally::default(),
            errors: 0,
            vanished: 0,
            exit: Exit::Success,
            hashes: Vec::new(),
            verified: 0,
            unverified: 0,
            bare: false,
            no_room: None,
            alike: None,
            hinted: RefCell::default(),
            lost: RefCell::new(None),
            unproved: false,
            peer_keeps: false,
            backend: String::new(),
            connections: (None, Vec::new()),
            warned: false,
        }
    }

    /// Says which backend was chosen, and why, if asked to.
    pub(crate) fn backend(&mut self, name: &str, notes: &[String]) {
        // A second connection says the same again.
        let news = std::mem::replace(&mut self.backend, name.to_string()) != name;
        if news && self.args.verbose && !self.args.json {
            self.note(&format!("backend {name}"));
            notes.iter().for_each(|note| self.note(note));
        }
    }

    fn note(&self, text: &str) {
        self.print(|| stderr(&format!("haul: {text}")));
    }

    fn print(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn json(&self, kind: &str, mut fields: Value) {
        if self.args.json {
            fields["schema"] = SCHEMA.into();
            fields["type"] = kind.into();
            self.stdout(visible_json(&fields.to_string()).as_bytes());
        }
    }

    /// One line on stdout.
    pub(crate) fn stdout(&self, line: impl AsRef<[u8]>) {
        self.print(|| {
            if let Err(error) = print_line(line.as_ref()) {
                self.lost.borrow_mut().get_or_insert(error);
            }
        });
    }

    /// A run whose output is lost has not succeeded.
    fn check_lost(&mut self) {
        if let Some(error) = self.lost.take() {
            self.exit = worse(self.exit, lost(&error));
        }
    }

    /// Something else than haul carries the files of this run.
    pub(crate) fn unproved(&mut self) {
        self.unproved = true;
    }

    /// Takes a report from the session.
    pub(crate) fn report(&mut self, report: Report) {
        match report {
            Report::Copied { source, target, size, hash, direction } => {
                self.copied(&source, target, size, hash, direction);
            }
            Report::Grew { source, size } => self.grew(&source, size),
            Report::Unchanged { source, target, size, hash } => {
                self.unchanged += 1;
                self.file((&source, target), (size, hash), "unchanged");
            }
            Report::Stats(text) => {
                if self.args.verbose || self.args.stats {
                    self.note(&text);
                }
                self.json("stats", json!({"text": text}));
            }
            Report::Directory { .. } => self.directories += 1,
            Report::Link { .. } => self.links += 1,
            Report::Skipped { source, why } => {
                *self.skipped.entry(why).or_default() += 1;
                if self.args.verbose && !self.args.json {
                    self.note(&format!("{}: left out: {why}", Printable(&source)));
                }
                let mut fields = json!({"why": why});
                put_name(&mut fields, "source", &source);
                self.json("skipped", fields);
            }
            Report::Unkept { target, what } => self.not_kept(&target, what),
            Report::Failed(failure) => self.failed(&failure),
            Report::Fatal(failure) => self.fatal(&failure, exit::of_fatal(&failure)),
            Report::Notice(text) => {
                if !self.args.quiet && !self.args.json {
                    self.note(&text);
                }
                self.json("notice", json!({"text": text}));
            }
            Report::Peer(peer) => {
                self.peer_keeps = self.args.uploads && peer.base;
                if self.args.verbose && !self.args.json {
                    self.note(&format!("{} answers", peer.words));
                }
            }
            Report::Bare => self.bare = true,
            Report::Direct { address, plain } => self.direct(address, plain),
            Report::Listed { .. } | Report::Hashed { .. } | Report::Resumable { .. } => {}
            // What these mean is decided where the connection was made.
            Report::Absent(_) | Report::Redial { .. } | Report::NotDirect(_) => {}
        }
    }

    /// It is there, without some of its attributes.
    fn not_kept(&mut self, target: &[u8], what: Unkept) {
        // What the user asked for by its own letter is missing: that is an error, if only one line of it.
        let asked = self.args.asked & what.0 != 0;
        if asked {
            self.errors += 1;
            self.exit = worse(self.exit, Exit::Partial);
        }
        if let Some(line) = self.unkept.count(what)
            && (asked || !self.args.quiet)
        {
            let severity = if asked { "" } else { "warning: " };
            self.note(&format!("{severity}{}: {line}", Printable(target)));
        }
        let mut fields = json!({"unkept": unkept::words(what)});
        put_name(&mut fields, "target", target);
        self.json("unkept", fields);
    }

    /// So many connections carry the content, for now.
    pub(crate) fn begin_with(&mut self, connections: u16) {
        self.connections = (Some(connections), Vec::new());
    }

    /// From here on there are more of them, or fewer. Whoever decided that began then.
    pub(crate) fn tuned(&mut self, begun: Instant, decision: Decision) {
        let at = begun.saturating_duration_since(self.started) + Duration::from_nanos(decision.nanos);
        self.json("connections", in_json(at.as_secs_f64(), &decision));
        self.connections.1.push((at.as_secs_f64(), decision));
    }

    /// How many connections there were, for a screen of 80 columns.
    fn tell_connections(&self) {
        let (Some(first), decisions) = &self.connections else { return };
        if decisions.is_empty() {
            return;
        }
        self.note(&format!("connections: {first} at first"));
        let left_out = decisions.len().saturating_sub(SHOWN_DECISIONS);
        for (seconds, Decision { from, to, before, rate: now, why, .. }) in &decisions[left_out..] {
            let mib = |rate: &Rate| format!("{:.1}", rate.bytes as f64 / 1_048_576.0);
            let rates = before.as_ref().map_or_else(|| mib(now), |before| format!("{} -> {}", mib(before), mib(now)));
            self.note(&format!("connections: {from} -> {to} at {seconds:.2} s, {rates} MiB/s: {why}"));
        }
    }

    /// Content goes over a connection of its own.
    fn direct(&mut self, address: SocketAddr, plain: bool) {
        // Further connections say the same again.
        let wanted = self.args.warns || !self.args.quiet;
        if plain && wanted && !std::mem::replace(&mut self.warned, true) {
            self.note(&format!("warning: content goes UNENCRYPTED to {address}"));
        }
        if self.args.verbose && !self.args.json {
            let how = if plain { "not encrypted" } else { "encrypted with AES-256-GCM" };
            self.note(&format!("content goes directly to {address}, {how}"));
        }
        let cipher = if plain { "none" } else { "AES-256-GCM" };
        self.json("direct", json!({"address": address.to_string(), "cipher": cipher}));
    }

    /// What a file began with was copied; it has grown since.
    pub(crate) fn grew(&mut self, source: &[u8], bytes: u64) {
        self.grew += 1;
        if !self.args.quiet && !self.args.json {
            let what = format!("grew while it was read; its first {} were copied", size(bytes));
            self.note(&format!("{}: {what}", Printable(source)));
        }
        let mut fields = json!({"bytes": bytes});
        put_name(&mut fields, "source", source);
        self.json("grew", fields);
    }

    /// A file is complete under its final name. Without a hash nobody has compared what arrived with what was sent.
    pub(crate) fn copied(
        &mut self,
        source: &[u8],
        target: Vec<u8>,
        size: u64,
        hash: Option<Hash>,
        direction: Direction,
    ) {
        self.files += 1;
        self.bytes += size;
        self.file((source, target), (size, hash), &format!("{direction:?}").to_lowercase());
    }

    /// A file is where it shall be.
    fn file(&mut self, (source, target): (&[u8], Vec<u8>), (size, hash): (u64, Option<Hash>), direction: &str) {
        *(if hash.is_some() { &mut self.verified } else { &mut self.unverified }) += 1;
        let hex = hash.as_ref().map(hex);
        if self.args.verbose && !self.args.json {
            let line = format!("{}  {}", hex.as_deref().unwrap_or("(not verified)"), Printable(&target));
            self.print(|| stderr(&line));
        }
        let mut fields = json!({"bytes": size, "blake3": hex, "verified": hash.is_some(), "direction": direction});
        put_name(&mut fields, "source", source);
        put_name(&mut fields, "target", &target);
        self.json("file", fields);
        if let Some(hash) = hash
            && self.hashes.len() <= SUMMARY_HASHES
        {
            self.hashes.push((target, hash));
        }
    }

    /// Moves the progress line; called a few times a second.
    pub(crate) fn tick(&mut self, progress: &Progress) {
        let wanted = !self.args.quiet && !self.args.json && std::io::stderr().is_terminal();
        if !wanted || progress.connected.load(Ordering::Relaxed) == 0 {
            return;
        }
        let (moved, total) = (load(&progress.bytes), load(&progress.total_bytes));
        let now = Instant::now();
        self.samples.push_back((now, moved));
        while self.samples.len() > 2 && now - self.samples[0].0 > Duration::from_secs(1) {
            self.samples.pop_front();
        }
        let (then, before) = self.samples[0];
        let seconds = (now - then).as_secs_f64();
        let speed = if seconds > 0.05 { moved.saturating_sub(before) as f64 / seconds } else { 0.0 };
        // What a connection had in hand when it broke is moved twice.
        let there = (moved + load(&progress.skipped_bytes)).min(total);
        let left = (total - there) as f64;
        let eta = match progress.totals_final.load(Ordering::Relaxed) {
            1 if speed > 1.0 => format!("{}:{:02}", (left / speed) as u64 / 60, (left / speed) as u64 % 60),
            _ => "-:--".to_string(),
        };
        let files = format!("{}/{} files", load(&progress.files), load(&progress.total_files));
        let text = format!("{} of {}  {}  ETA {eta}  {files}", size(there), size(total), rate(speed as u64, 1.0));
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        bar.set_message(text);
        bar.tick();
    }

    /// The line for a run that was told to stop.
    pub(crate) fn interrupted(&mut self, progress: &Progress) {
        let kept = self.kept(progress);
        stderr(&format!("haul: interrupted at {kept}"));
        self.exit = Exit::Interrupted;
        self.summary();
        self.check_lost();
    }

    /// The connection broke in the middle: why, and what is left of it.
    pub(crate) fn broken_off(&mut self, failure: &Failure, exit: Exit, progress: &Progress) {
        let kept = self.kept(progress);
        self.errors += 1;
        self.exit = exit;
        stderr(&format!("haul: {}: stopped at {kept}", failure.reason()));
        self.json("error", json!({"what": failure.reason(), "exit": exit as u8}));
    }

    /// How far the run has come, what of it is kept, and what to do about the rest.
    fn kept(&mut self, progress: &Progress) -> String {
        let (moved, total) = (load(&progress.bytes), load(&progress.total_bytes));
        self.count(progress);
        let there = (moved + self.resumed).min(total);
        let percent = (there * 100).checked_div(total).unwrap_or(0).min(100);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.tell_alike();
        self.tell_no_room();
        let complete = self.files + self.unchanged;
        let files = if complete == 1 { "file" } else { "files" };
        let kept = match self.args.keeps {
            _ if self.peer_keeps => {
                format!("{complete} complete {files} kept; the one under way may be incomplete over there")
            }
            // Another program's server keeps nothing incomplete. Of an earlier run there may be something.
            true if !self.unproved && there == 0 && complete == 0 => {
                "nothing new has come yet; run the same command to continue".into()
            }
            true if !self.unproved => match self.sure(there) {
                0 => "nothing new is sure to be kept; run the same command to continue".into(),
                sure => format!("{} kept; run the same command to continue", size(sure)),
            },
            _ => {
                format!("{complete} complete {files} kept, nothing else; run the same command to do it again")
            }
        };
        format!("{percent} %; {kept}")
    }

    /// Of so many bytes that were moved, those that are kept whatever was under way.
    fn sure(&self, there: u64) -> u64 {
        let (first, decisions) = &self.connections;
        let most = decisions.iter().map(|(_, decision)| decision.to).chain(*first).max().unwrap_or(1);
        let sure = there.saturating_sub(UNDER_WAY_BYTES * u64::from(most.max(1)));
        // What is complete, and what was there before.
        sure.max(self.bytes).max(self.resumed).min(there)
    }

    /// Takes over what the counters say in the end.
    pub(crate) fn count(&mut self, progress: &Progress) {
        self.moved = load(&progress.bytes);
        self.resumed = load(&progress.skipped_bytes);
    }

    /// The last line, and the exit code.
    pub(crate) fn finish(&mut self) -> Exit {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.tell_alike();
        self.tell_no_room();
        if !self.args.quiet && !self.args.json && (self.errors == 0 || self.files + self.unchanged > 0) {
            stderr(&self.last_line());
        }
        if self.args.stats || self.args.verbose {
            self.tell_connections();
        }
        self.summary();
        self.check_lost();
        self.exit
    }

    fn last_line(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let mut parts = vec![count(self.files, "file", "files")];
        if self.directories > 0 {
            parts.push(count(self.directories, "directory", "directories"));
        }
        if self.links > 0 {
            parts.push(count(self.links, "link", "links"));
        }
        let mut line = format!(
            "copied {}, {} in {seconds:.2} s ({})",
            parts.join(", "),
            size(self.bytes),
            rate(self.moved, seconds),
        );
        if self.unchanged > 0 {
            line += &format!(", {} already there", count(self.unchanged, "file", "files"));
        }
        if self.bare {
            line += &format!(", {NOT_KEPT}");
        }
        match (self.unverified, self.verified) {
            (0, 0) => {}
            (0, verified) if self.errors > 0 => line += &format!(", {} verified", count(verified, "file", "files")),
            (0, _) => line += ", every file verified",
            _ => line += ", not verified by haul",
        }
        if self.grew > 0 {
            line += &format!("; {} grew meanwhile", count(self.grew, "file", "files"));
        }
        for (why, number) in &self.skipped {
            line += &format!("; left out {}", count(*number, why, &format!("{why}s")));
        }
        line += &self.unkept.summary();
        if self.errors > 0 {
            line += &format!("; {}", count(self.errors, "error", "errors"));
        }
        line
    }

    /// How many connections there were over time: `from` 0 begins it.
    fn connections_in_json(&self) -> Vec<Value> {
        let first = self.connections.0.map(|first| json!({"seconds": 0.0, "bytes": 0, "from": 0, "to": first}));
        let then = self.connections.1.iter().map(|(seconds, decision)| in_json(*seconds, decision));
        first.into_iter().chain(then).collect()
    }

    fn summary(&self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let proved = self.unverified == 0 && !self.unproved;
        let complete = self.exit == Exit::Success && self.errors == 0 && self.verified > 0;
        let hashes = (proved && self.hashes.len() <= SUMMARY_HASHES).then(|| {
            let entry = |(target, hash): &(Vec<u8>, Hash)| {
                let mut fields = json!({"blake3": hex(hash)});
                put_name(&mut fields, "target", target);
                fields
            };
            self.hashes.iter().map(entry).collect::<Vec<_>>()
        });
        self.json(
            "summary",
            json!({
                "exit": self.exit as u8,
                "files": self.files,
                "directories": self.directories,
                "links": self.links,
                "bytes": self.bytes,
                "unchanged": self.unchanged,
                "grew": self.grew,
                "resumed_bytes": self.resumed,
                "unkept": self.unkept.names,
                "skipped": self.skipped.values().sum::<u64>(),
                "errors": self.errors,
                "seconds": seconds,
                "bytes_per_second": self.moved as f64 / seconds.max(1e-9),
                "backend": self.backend,
                "connections": self.connections_in_json(),
                "verified": proved && complete,
                "verified_files": self.verified,
                "not_kept": if self.bare { json!(["times", "modes", "links"]) } else { json!([]) },
                "hashes": hashes,
            }),
        );
    }
}

fn in_json(seconds: f64, decision: &Decision) -> Value {
    let Decision { bytes, from, to, before, rate, why, .. } = decision;
    let rates = |rate: &Rate| json!({"bytes_per_second": rate.bytes, "files_per_second": rate.files});
    let (before, rate) = (before.as_ref().map(rates), rates(rate));
    json!({
        "seconds": seconds, "bytes": bytes, "from": from, "to": to, "before": before, "rate": rate, "why": why.to_string(),
    })
}

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Disk trouble outranks what was not copied, which outranks what vanished.
fn worse(a: Exit, b: Exit) -> Exit {
    let rank = |exit| match exit {
        Exit::Success => 0,
        Exit::Vanished => 1,
        Exit::Partial => 2,
        _ => 3,
    };
    if rank(b) > rank(a) { b } else { a }
}

/// A name in JSON: text, and its bytes in hex where the text cannot carry them.
pub(crate) fn put_name(fields: &mut Value, key: &str, name: &[u8]) {
    match std::str::from_utf8(name) {
        Ok(text) => fields[key] = text.into(),
        Err(_) => {
            fields[key] = Printable(name).to_string().into();
            fields[format!("{key}_hex")] = name.iter().fold(String::new(), |hex, b| format!("{hex}{b:02x}")).into();
        }
    }
}
