//! Client and server sessions over simulated hosts: thousands of seeds, each with its own tree, dialect, buffers, schedule
//! and faults.
//!
//! What must hold at the end of every run, whatever went wrong: under every final name stands the old file or the whole
//! new one; a file is reported as copied only if it is there and right; a client that reports no failure has copied
//! everything; no byte follows a hole in any stream; nothing is left open or unnamed; and the same command run again
//! without faults completes the job.
//!
//! `SEED=n` runs one seed and says what it did; `SEEDS=n` sets how many are run (default 1,500; CI runs 10,000).

use haul_engine::backend::{Broken, DirId};
use haul_engine::block::{Class, Pool};
use haul_engine::queue::{Queue, Ranging};
use haul_engine::session::Failure;
use haul_engine::session::client::{Invitation, Opening, Patience, Seat, Wish};
use haul_engine::session::plan::{Operand, Options};
use haul_engine::session::rendezvous::Direct;
use haul_engine::session::report::{Direction, Progress, Report, Reporter, SharedProgress};
use haul_engine::session::server::Server;
use haul_engine::session::{download, helper, upload};
use haul_engine::sim::random::Random;
use haul_engine::sim::{Entry, Fault, FaultPlan, Hit, Mutation, OpName, Planned, SimBackend, World};
use haul_engine::tree_hash::HASH_BLOCK_BYTES;
use haul_engine::wire::frame::{Caps, Hash, Kind, Preserve};
use haul_engine::wire::path::RequestPath;
use haul_engine::worker::Worker;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[path = "simulation/failing_close.rs"]
mod failing_close;
#[path = "simulation/slow_links.rs"]
mod slow_links;
#[path = "simulation/sources.rs"]
mod sources;
#[path = "simulation/written_to.rs"]
mod written_to;
use sources::{Verdict, expected, liars, of_targets};

/// Turns after which a run counts as stuck.
const MAX_TURNS: u64 = 30_000_000;

/// One seed in so many has a large file, of these sizes: what dedup looks at is larger, and what a download goes on with may
/// have more blocks than those that are proved one by one. In it, streams hold at least so many bytes.
const LARGE_ONCE_IN: u64 = 64;
const LARGE_BYTES: [std::ops::Range<usize>; 3] = [4 << 20..16 << 20, 16 << 20..20 << 20, 4 << 20..40 << 20];
const LARGE_STREAM_BYTES: usize = 4096;

type Coverage = BTreeMap<(&'static str, &'static str, Fault), u64>;

/// Everything a seed decides.
#[derive(Debug)]
struct Scenario {
    up: bool,
    version: u8,
    extended: bool,
    /// Capabilities the client asks for.
    caps: Caps,
    /// Connections.
    links: usize,
    /// Large and small blocks of each side's pool.
    blocks: [(usize, usize); 2],
    options: Options,
    sources: Vec<&'static str>,
    /// Content goes over direct connections: only so, or where they come about; `plain` ones are not sealed.
    direct: Option<bool>,
    plain: bool,
    /// One file is large enough to be continued block by block, to be offered to the block store, or to go in ranges.
    large: bool,
}

impl Scenario {
    fn draw(random: &mut Random) -> Scenario {
        let extended = !random.once_in(4);
        let pool = |random: &mut Random| match random.below(4) {
            0 => (2, 0),
            1 => (2, 2),
            2 => (4, 1),
            _ => (32, 64),
        };
        let preserve = if random.once_in(2) { Preserve::MODE } else { Preserve::default() };
        let preserve = if random.once_in(4) { preserve.or(Preserve::VERIFY) } else { preserve };
        let (links, resume) = (random.once_in(2), random.once_in(3));
        let options = Options { recursive: true, links, preserve, resume, ..Options::default() };
        let sources = match random.below(4) {
            0 => vec!["src/"],
            1 => vec!["src/one"],
            2 => vec!["src/one", "src/two", "src/d"],
            _ => vec!["src"],
        };
        let mut caps = Caps::PUT_OFFSET;
        for (cap, once_in) in [(Caps::LZ4, 3), (Caps::ZSTD, 3), (Caps::DEDUP, 2), (Caps::FAST, 4), (Caps::SYNC, 4)] {
            caps = if random.once_in(once_in) { caps.or(cap) } else { caps };
        }
        let links = if random.once_in(3) { 1 + random.index(3) } else { 1 };
        // All connections of a side share its pool.
        let blocks = [pool(random), pool(random)].map(|(large, small)| (large * links, small));
        let large = random.once_in(LARGE_ONCE_IN);
        let version = if extended { 1 } else { 1 + u8::try_from(random.below(2)).unwrap() };
        let up = random.once_in(2);
        let direct = random.once_in(3).then(|| random.once_in(2));
        let plain = extended && direct.is_some() && random.once_in(2);
        // The session that a connection was agreed on in waits for words with a block of its own, and the beginning of a
        // record that cannot be parsed yet has one.
        let blocks = blocks.map(|(large, small)| (large + if direct.is_some() { 2 * links } else { 0 }, small));
        let drawn = Scenario { up, version, extended, caps, links, blocks, options, sources, large, direct, plain };
        match random.below(if large { 4 } else { 1 }) {
            _ if !large => drawn,
            // Each of the three ways more often than in a small world.
            0 => Scenario { caps: caps.or(Caps::DEDUP), ..drawn },
            1 => Scenario { options: Options { resume: true, ..options }, ..drawn },
            2 => drawn.with_ranges(),
            _ => drawn.with_proved_ranges(),
        }
    }

    /// Two hauls, which move large files in ranges over direct connections where nothing goes before that.
    fn with_proved_ranges(self) -> Scenario {
        let direct = self.direct.or(Some(false));
        let more = if self.direct.is_some() { 0 } else { 2 * self.links };
        let blocks = self.blocks.map(|(large, small)| (large + more, small));
        let caps = self.caps.without(Caps::DEDUP.or(Caps::FAST));
        Scenario { extended: true, version: 1, caps, direct, blocks, ..self }
    }

    /// The same towards base peers, over several connections, with nothing that goes before ranges.
    fn with_ranges(mut self) -> Scenario {
        (self.extended, self.plain, self.caps) = (false, false, Caps::NONE);
        self.version = if self.up { 1 } else { self.version };
        self.links = self.links.max(2);
        let each = if self.direct.is_some() { 4 } else { 2 };
        self.blocks = self.blocks.map(|(large, small)| (large.max(each * self.links), small));
        self.options = Options { resume: false, connections: 2, ..self.options };
        self
    }

    /// The server writes this file where it stands: after a failure it may hold anything.
    fn is_written_in_place(&self, path: &[u8]) -> bool {
        let (directory, name) = self.target_of_one();
        self.up && self.options.connections > 1 && path == format!("{directory}/{name}").as_bytes()
    }

    /// Of the first connection, with where the others find how to come; of the others, without.
    fn opening(&self, invitation: Option<Invitation>) -> Opening {
        let opening = if self.extended { Opening::full(None) } else { Opening::base(self.version) };
        let wish = |required| Wish { required, plain: self.plain, random: [7; 32], invitation, ..Wish::default() };
        opening.with_caps(self.caps).with_direct(self.direct.map(wish))
    }

    /// Between two hauls direct connections are all agreed on in the first one.
    fn is_invited(&self) -> bool {
        self.extended && self.direct.is_some()
    }

    fn source_host(&self) -> &'static str {
        if self.up { "client" } else { "server" }
    }

    /// Where `src/one` goes.
    fn target_of_one(&self) -> (&'static str, &'static str) {
        if self.sources == ["src"] { ("dst/src", "one") } else { ("dst", "one") }
    }

    fn target_host(&self) -> &'static str {
        if self.up { "server" } else { "client" }
    }
}

/// Bytes that no other run has: a seed that is run again must not seal with the keys it had.
fn never_twice() -> Hash {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    *blake3::hash(&NUMBER.fetch_add(1, Ordering::Relaxed).to_le_bytes()).as_bytes()
}

/// What the names of files begin with that an interrupted transfer left, in the simulation.
const PARTIAL: &str = ".haul-part-";

/// Sizes at the edges of what the sessions treat differently.
fn size(random: &mut Random) -> usize {
    const EDGES: [usize; 6] = [0, 1, 64 * 1024, 64 * 1024 + 1, 512 * 1024, 512 * 1024 + 1];
    match random.below(12) {
        0..=2 => EDGES[random.index(EDGES.len())],
        3 => random.index(1_600_000),
        4..=6 => random.index(200_000),
        _ => random.index(5_000),
    }
}

fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    // Half of the files, and the beginning of some others, are worth compressing.
    let plain = match seed % 4 {
        0 | 1 => len,
        2 => len / 2,
        _ => 0,
    };
    bytes[..plain].iter_mut().for_each(|byte| *byte %= 8);
    bytes
}

/// The tree that is copied, on the source's disk, and some old files where it goes.
fn populate(world: &World, scenario: &Scenario, random: &mut Random) {
    let (from, to) = (scenario.source_host(), scenario.target_host());
    // Hosts are numbered in the order they are named: the client is 0.
    world.put_directory("client", "dst");
    world.put_directory("server", "dst");
    let put = |path: &str, random: &mut Random| {
        let len = size(random);
        world.put_file(from, path, &content(len, random.next()));
    };
    for path in ["src/one", "src/two", "src/d/three"] {
        put(path, random);
    }
    for number in 0..random.below(12) {
        put(&format!("src/d/e/{number}"), random);
    }
    if random.once_in(6) {
        let path = if random.once_in(2) { "src/d/liar" } else { "src/d/e/liar" };
        put(path, random);
        world.say_size(from, path, size(random) as u64);
    }
    world.put_directory(from, "src/empty");
    world.put_link(from, "src/d/link", b"three");
    for path in ["dst/one", "dst/src/one", "dst/d/three", "dst/src/d/three", "dst/src/d/e/0"] {
        if random.once_in(3) {
            world.put_file(to, path, b"old content");
        }
    }
    if scenario.large {
        enlarge(world, scenario, random);
    }
}

/// A large file in place of `src/one`, and what the target may have of it already: blocks in its store, the beginning of
/// the file beside its name or, from a base client, under it. Some of that is damaged.
fn enlarge(world: &World, scenario: &Scenario, random: &mut Random) {
    world.set_least_stream(LARGE_STREAM_BYTES);
    let range = match scenario.options.resume && !scenario.up {
        true => LARGE_BYTES[2].clone(),
        false => LARGE_BYTES[usize::from(scenario.caps.has(Caps::DEDUP))].clone(),
    };
    let mut bytes = content(range.start + random.index(range.len()), random.next());
    world.put_file(scenario.source_host(), "src/one", &bytes);
    for block in bytes.chunks(HASH_BLOCK_BYTES).filter(|_| random.once_in(2)) {
        world.put_block("server", block);
    }
    if scenario.options.resume && !random.once_in(4) {
        bytes.truncate(random.index(bytes.len()));
        if random.once_in(4) && !bytes.is_empty() {
            let place = random.index(bytes.len());
            bytes[place] ^= 1;
        }
        let (directory, name) = scenario.target_of_one();
        let prefix = if scenario.up && !scenario.extended { "" } else { PARTIAL };
        world.put_file(scenario.target_host(), &format!("{directory}/{prefix}{name}"), &bytes);
    }
}

/// A fault in what is done for large files only: among all that can go wrong these would be rare.
fn draw_fault_of_large(random: &mut Random) -> Planned {
    const OPS: [OpName; 6] =
        [OpName::HashBlocks, OpName::FillBlocks, OpName::Recv, OpName::Send, OpName::Read, OpName::Write];
    let op = OPS[random.index(OPS.len())];
    let faults = Fault::of(op);
    Planned::Op { host: random.index(2), op, nth: random.magnitude(4) - 1, fault: faults[random.index(faults.len())] }
}

fn operand(path: &str) -> Operand {
    Operand { path: RequestPath::parse(path.as_bytes()).unwrap(), shown: path.into(), contents: path.ends_with('/') }
}

/// One client and one server at work on one command.
struct Pair {
    client: Option<Worker<SimBackend>>,
    server: Option<Worker<SimBackend>>,
    reports: Rc<RefCell<Vec<Report>>>,
    blocks: [(usize, usize); 2],
    guests: Guests,
    /// Direct connections that are opened once it is known how.
    seats: usize,
}

/// The direct connections of a run, and what becomes of it without them.
struct Guests {
    invitation: Invitation,
    queue: Queue,
    local: DirId,
    progress: SharedProgress,
    patience: Patience,
    fate: Rc<RefCell<Fate>>,
}

#[derive(Default)]
struct Fate {
    /// Those that have not ended.
    left: usize,
    /// Why one of them ended: because somebody else answered, or else.
    untrusted: Option<Failure>,
    lost: Option<Failure>,
}

impl Guests {
    /// Opens so many, once they are invited. None is opened again when it breaks.
    fn come(&self, seats: &mut usize, worker: &mut Worker<SimBackend>) {
        let Some(invited) = self.invitation.get() else { return };
        self.fate.borrow_mut().left += *seats;
        for index in 0..std::mem::take(seats) {
            let seat = Seat { index: index as u16, random: never_twice(), required: false };
            let (fate, queue) = (self.fate.clone(), self.queue.clone());
            let mut met = false;
            let reporter: Reporter = Box::new(move |report| {
                let mut fate = fate.borrow_mut();
                match report {
                    Report::Direct { .. } => return met = true,
                    Report::Fatal(failure) if !met => fate.untrusted = Some(failure),
                    Report::Fatal(failure) | Report::NotDirect(failure) => fate.lost = Some(failure),
                    _ => return,
                }
                fate.left -= 1;
                if fate.left == 0 {
                    match (fate.untrusted.take(), fate.lost.take()) {
                        (Some(failure), _) => queue.fail(failure),
                        (None, failure) => _ = queue.release(failure.expect("one was lost")),
                    }
                }
            });
            let share = (self.queue.clone(), self.local);
            let (patience, progress) = (self.patience, self.progress.clone());
            worker.add(Box::new(helper::invited((invited, seat), patience, share, progress, reporter)));
        }
    }
}

impl Pair {
    fn new(world: &Rc<World>, scenario: &Scenario) -> Pair {
        let mut hosts = [world.host("client"), world.host("server")];
        let roots = [hosts[0].root(), hosts[1].root()];
        let store = hosts[1].add_store();
        let [ref mut one, ref mut two] = hosts;
        let logins = if scenario.is_invited() { 1 } else { scenario.links };
        let links: Vec<_> = (0..logins).map(|_| world.connect(one, two)).collect();
        let [client_host, server_host] = hosts;
        let reports = Rc::new(RefCell::new(Vec::new()));
        let collect = reports.clone();
        let reporter: Reporter = Box::new(move |report| collect.borrow_mut().push(report));
        let (sources, target) = (scenario.sources.iter().map(|path| operand(path)).collect(), operand("dst/"));
        let progress = Arc::new(Progress::default());
        let direction = if scenario.up { Direction::Up } else { Direction::Down };
        let ranging = Ranging { from: LARGE_BYTES[0].start as u64, bytes: HASH_BLOCK_BYTES as u64 };
        let queue = Queue::with_ranging(direction, scenario.options, ranging);
        let (stream, local) = (links[0].0, roots[0]);
        let invitation = Invitation::default();
        let opening = scenario.opening(Some(invitation.clone()));
        let session = if scenario.up {
            let plan = upload::Plan { local, sources, target, queue: queue.clone(), same_machine: None };
            upload::client(stream, opening, plan, progress.clone(), reporter)
        } else {
            let plan = download::Plan { sources, local, target, queue: queue.clone() };
            download::client(stream, opening, plan, progress.clone(), reporter)
        };
        let worker = |host, (large, small)| Worker::new(host, Pool::new(small, large)).letting_panics_through();
        let mut client = worker(client_host, scenario.blocks[0]);
        client.add(Box::new(session));
        for &(stream, _) in &links[1..] {
            // What goes wrong with a further connection is for the others to make good.
            let (opening, progress, quiet) = (scenario.opening(None), progress.clone(), Box::new(|_| {}));
            client.add(Box::new(helper::client(stream, opening, (queue.clone(), local), progress, quiet)));
        }
        let patience = Patience::default();
        let guests = Guests { invitation, queue, local, progress, patience, fate: Rc::default() };
        let mut server = worker(server_host, scenario.blocks[1]);
        for (_, served) in links {
            let server_session = Server::new(served, roots[1], Box::new(|_| {})).with_store(Some(store));
            let direct = Direct::new(world.addresses("server")[0], never_twice).with_plain(scenario.plain);
            server.add(Box::new(server_session.with_direct(Some(direct))));
        }
        Pair {
            client: Some(client),
            server: Some(server),
            reports,
            blocks: scenario.blocks,
            guests,
            seats: scenario.links,
        }
    }

    /// Runs until both ends have ended. A host that crashes is dropped; its peer goes on alone.
    fn run(&mut self, world: &World, coverage: &mut Coverage) -> Result<(), String> {
        for _ in 0..MAX_TURNS {
            turn(&mut self.client);
            if let Some(worker) = self.client.as_mut().filter(|_| self.seats > 0) {
                self.guests.come(&mut self.seats, worker);
            }
            turn(&mut self.server);
            let busy = |worker: &Option<Worker<SimBackend>>| worker.as_ref().is_some_and(Worker::is_busy);
            let alive = busy(&self.client) || busy(&self.server);
            let moved = world.advance_to_turn();
            self.cover(&world.new_faults(), coverage);
            if !alive {
                return self.check_blocks();
            }
            if !moved {
                return Err(format!("deadlock; {}", self.states()));
            }
        }
        Err(format!("no end in sight; {}", self.states()))
    }

    fn states(&mut self) -> String {
        let side = |worker: &mut Option<Worker<SimBackend>>| match worker {
            Some(worker) => format!("{:?}, out: {}", worker.states(), worker.backend().outstanding()),
            None => "crashed".to_string(),
        };
        let (client, server) = (side(&mut self.client), side(&mut self.server));
        format!("client {client}; server {server}; the last report: {:?}", self.reports.borrow().last())
    }

    fn cover(&self, hits: &[Hit], coverage: &mut Coverage) {
        for hit in hits {
            let (side, worker) = if hit.host == 0 { ("client", &self.client) } else { ("server", &self.server) };
            let state = match (hit.op, worker) {
                (Some((token, _)), Some(worker)) => worker.state_of(token),
                _ => "any",
            };
            *coverage.entry((side, state, hit.fault)).or_default() += 1;
        }
    }

    fn check_blocks(&self) -> Result<(), String> {
        for (worker, blocks) in [&self.client, &self.server].into_iter().zip(self.blocks) {
            let Some(worker) = worker else { continue };
            let left = (worker.blocks_available(Class::Large), worker.blocks_available(Class::Small));
            if left != blocks {
                return Err(format!("blocks lost: {left:?} of {blocks:?} came back"));
            }
        }
        Ok(())
    }
}

fn turn(worker: &mut Option<Worker<SimBackend>>) {
    if let Some(running) = worker
        && running.is_busy()
        && matches!(running.turn(), Err(Broken { .. }))
    {
        *worker = None;
    }
}

/// Runs one seed to its end. `Err` says which promise was broken.
fn run(seed: u64, mutation: Option<Mutation>, coverage: &mut Coverage) -> Result<(), String> {
    let mut random = Random::new(seed);
    let scenario = Scenario::draw(&mut random);
    if std::env::var_os("SEED").is_some() {
        println!("{scenario:?}");
    }
    let faults = match scenario.large {
        _ if random.once_in(4) => FaultPlan::none(),
        true if random.once_in(2) => FaultPlan::of(vec![draw_fault_of_large(&mut random)]),
        _ => FaultPlan::random(2),
    };
    let world = match mutation {
        Some(mutation) => World::mutated(seed, faults, mutation),
        None => World::new(seed, faults),
    };
    populate(&world, &scenario, &mut random);
    failing_close::draw(&world, &scenario, &mut random);
    let (before_source, before_target) =
        (world.snapshot(scenario.source_host()), world.snapshot(scenario.target_host()));
    let mut pair = Pair::new(&world, &scenario);
    pair.run(&world, coverage)?;
    let faults = world.faults_hit();
    if std::env::var_os("SEED").is_some() {
        println!("{:?}\n{faults:?}\n{:#?}", world.plan(), pair.reports.borrow());
    }
    let verdict = Verdict::of(&pair.reports.borrow());
    drop(pair);
    check_world(&world)?;

    // Sources that a fault changed may have been copied in either form.
    let after_source = world.snapshot(scenario.source_host());
    let (old_form, new_form) = (expected(&scenario, &before_source), expected(&scenario, &after_source));
    let forms = of_targets(&scenario, &after_source, |entry| {
        let now = std::slice::from_ref(&entry.content);
        [&entry.earlier[..], now].concat()
    });
    let struck = |fault, host| faults.iter().any(|hit: &Hit| hit.fault == fault && hit.host == host);
    let (target, source) = (usize::from(scenario.up), usize::from(!scenario.up));
    // What was there when it was opened, of a file that has grown since.
    let beginning = |path: &[u8], len: usize, found: &[u8]| {
        let grown = |form: &Vec<u8>| form == found || (found.len() >= len && form.starts_with(found));
        forms.get(path).is_some_and(|forms| forms.iter().any(grown))
    };
    // Without hashes a file that is written to and then grows cannot be told from one that only grows.
    let blind = scenario.caps.has(Caps::FAST) && struck(Fault::Grow, source) && struck(Fault::Overwrite, source);
    let written = struck(Fault::Grow, target) || struck(Fault::Overwrite, target) || blind;
    let now = world.snapshot(scenario.target_host());
    for (path, content) in &old_form {
        let name = path.escape_ascii();
        let found = now.get(path).map(|entry| &entry.content);
        let old = before_target.get(path).map(|entry| &entry.content);
        let whole = written
            || found == Some(content)
            || (found.is_some() && found == new_form.get(path))
            || found.is_some_and(|found| beginning(path, content.len(), found));
        // The world may take a name away, with all below it.
        let taken = found.is_none() && faults.iter().any(|hit| hit.fault == Fault::Vanish);
        // Or somebody shortens what has just been copied, while it is read again; it is not reported as copied, then.
        let shortened = faults.iter().any(|hit| hit.fault == Fault::ShortSource && hit.host == target);
        let cut = shortened
            && found.is_some_and(|found| content.starts_with(found) || old.is_some_and(|old| old.starts_with(found)));
        if !whole && found != old && !taken && !cut && !scenario.is_written_in_place(path) {
            return Err(format!("{name} is neither the old file nor the new one"));
        }
        let hash = found.map(|content| *blake3::hash(content).as_bytes());
        let wrong = |said: &Option<Hash>| !whole || (!written && said.is_some_and(|said| Some(said) != hash));
        if verdict.copied.get(path).is_some_and(wrong) {
            return Err(format!("{name} was reported as copied, and is not"));
        }
        if verdict.failures.is_empty() && faults.is_empty() && !verdict.copied.contains_key(path) {
            return Err(format!("{name} was neither copied nor reported"));
        }
    }
    let crashed = faults.iter().any(|hit| hit.fault == Fault::Crash && hit.host == 0);
    if verdict.failures.is_empty() && !crashed && verdict.copied.len() < new_form.len() {
        return Err(format!("success, but only {} of {} files copied", verdict.copied.len(), new_form.len()));
    }
    // Of a file whose size says nothing all or nothing is copied, and that is said.
    let lies = liars(&before_source);
    let honest = |failure: &&String| !lies.iter().any(|name| failure.contains(name.as_str()));
    if faults.is_empty() && verdict.failures.iter().any(|failure| honest(&failure)) {
        return Err(format!("nothing went wrong, and yet: {:?}", verdict.failures));
    }
    failing_close::check(&scenario, &verdict, &faults, (old_form.len(), lies.len()))?;
    let names: BTreeSet<_> = now.keys().filter(|path| now[*path].attributes.kind == Kind::Regular).collect();
    // Towards base peers a link to a file inside the root is listed as that file.
    let listed_link = |path: &[u8]| !scenario.up && !scenario.extended && path.ends_with(b"/link");
    let known = |path: &Vec<u8>| {
        let known = old_form.contains_key(path) || before_target.contains_key(path) || before_source.contains_key(path);
        known || listed_link(path)
    };
    // A run that resumes leaves what it has for the next one; a run that went well leaves nothing.
    let partial = |path: &[u8]| {
        let kept = path.rsplit(|&byte| byte == b'/').next().is_some_and(|name| name.starts_with(PARTIAL.as_bytes()));
        kept && scenario.options.resume && !(faults.is_empty() && lies.is_empty())
    };
    if let Some(litter) = names.into_iter().find(|path| !known(path) && !partial(path)) {
        return Err(format!("litter: {}", litter.escape_ascii()));
    }
    if mutation.is_none() { again(&world, &scenario, &faults) } else { Ok(()) }
}

fn check_world(world: &World) -> Result<(), String> {
    if let Some(violation) = world.violations().first() {
        return Err(violation.clone());
    }
    for host in ["client", "server"] {
        if world.open_count(host) > 0 || world.unpublished(host) > 0 {
            let (open, unpublished) = (world.open_count(host), world.unpublished(host));
            return Err(format!("{host} left {open} files open and {unpublished} without a name"));
        }
    }
    Ok(())
}

/// The same command once more, in a world where the planned faults have mostly struck already: unless another one strikes,
/// it completes the job.
fn again(world: &Rc<World>, scenario: &Scenario, before: &[Hit]) -> Result<(), String> {
    if before.is_empty() {
        return Ok(());
    }
    world.crash("client");
    world.crash("server");
    world.set_stores(scenario.target_host(), None);
    let source = world.snapshot(scenario.source_host());
    if scenario.sources.iter().any(|path| !source.contains_key(path.trim_end_matches('/').as_bytes())) {
        return Ok(());
    }
    let mut pair = Pair::new(world, scenario);
    pair.run(world, &mut Coverage::new()).map_err(|why| format!("again: {why}"))?;
    if world.faults_hit().len() > before.len() {
        return check_world(world);
    }
    let verdict = Verdict::of(&pair.reports.borrow());
    let lies = liars(&source);
    let told = |path: &[u8]| lies.iter().any(|name| path.ends_with(name.as_bytes()));
    if verdict.failures.iter().any(|failure| !lies.iter().any(|name| failure.contains(name.as_str()))) {
        return Err(format!("again: {:?}", verdict.failures));
    }
    let now = world.snapshot(scenario.target_host());
    for (path, content) in expected(scenario, &source) {
        if now.get(&path).map(|entry| &entry.content) != Some(&content) && !told(&path) {
            return Err(format!("again: {} was not copied", path.escape_ascii()));
        }
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Runs seeds on all cores; the first failure, lowest seed first, or the merged coverage.
fn run_seeds(seeds: u64, mutation: Option<Mutation>) -> Result<Coverage, (u64, String)> {
    let next = AtomicU64::new(0);
    let failure = Mutex::new(None::<(u64, String)>);
    let coverage = Mutex::new(Coverage::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = Coverage::new();
                while failure.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let result =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, mutation, &mut own)));
                    let result = result.unwrap_or_else(|_| Err("it panicked".to_string()));
                    if let Err(why) = result {
                        let mut failure = failure.lock().unwrap();
                        if failure.as_ref().is_none_or(|(first, _)| seed < *first) {
                            *failure = Some((seed, why));
                        }
                    }
                }
                let mut all = coverage.lock().unwrap();
                for (pair, times) in own {
                    *all.entry(pair).or_default() += times;
                }
            });
        }
    });
    match failure.into_inner().unwrap() {
        Some(failure) => Err(failure),
        None => Ok(coverage.into_inner().unwrap()),
    }
}

#[test]
fn whatever_goes_wrong_no_wrong_file_gets_a_final_name() {
    if let Some(seed) = number("SEED") {
        let mut coverage = Coverage::new();
        let result = run(seed, None, &mut coverage);
        println!("SEED={seed}: {result:?}; struck: {coverage:?}");
        return result.unwrap();
    }
    let seeds = number("SEEDS").unwrap_or(1_500);
    let coverage = run_seeds(seeds, None).unwrap_or_else(|(seed, why)| panic!("SEED={seed}: {why}"));
    let states: BTreeSet<_> = coverage.keys().map(|(side, state, _)| (side, state)).collect();
    println!("{seeds} seeds: {} (state x fault) pairs in {} states", coverage.len(), states.len());
    for ((side, state, fault), times) in &coverage {
        println!("  {side}: {state} x {fault:?}: {times}");
    }
    // Fewer seeds than the default are a quick look.
    assert!(seeds < 1_500 || coverage.len() >= 40, "only {} (state x fault) pairs were reached", coverage.len());
}

#[test]
fn a_backend_that_forgets_a_failed_stream_is_caught_within_1000_seeds() {
    let (seed, why) = run_seeds(1_000, Some(Mutation::ForgetFailedStream)).expect_err("nobody noticed");
    println!("seed {seed}: {why}");
}

#[test]
fn a_backend_with_short_receives_is_caught_within_1000_seeds() {
    let (seed, why) = run_seeds(1_000, Some(Mutation::ShortRecv)).expect_err("nobody noticed");
    println!("seed {seed}: {why}");
}

#[test]
fn a_backend_that_loses_writes_is_caught_within_1000_seeds() {
    let (seed, why) = run_seeds(1_000, Some(Mutation::LoseWrites)).expect_err("nobody noticed");
    println!("seed {seed}: {why}");
}

#[test]
fn a_backend_that_does_not_hear_what_close_says_is_caught_within_1000_seeds() {
    let (seed, why) = run_seeds(1_000, Some(Mutation::IgnoreClose)).expect_err("nobody noticed");
    println!("seed {seed}: {why}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 77, 1234] {
        let runs = [(), ()].map(|()| {
            let mut coverage = Coverage::new();
            (run(seed, None, &mut coverage), coverage)
        });
        assert_eq!(runs[0], runs[1]);
    }
}
