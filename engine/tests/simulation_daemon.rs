//! A daemon, its clients and a stranger over simulated hosts: many seeds, each with its own files, connections that come and
//! leave when the seed says, schedule and faults.
//!
//! What must hold at the end of every run, whatever went wrong: under every final name stands the old file or the whole
//! new one, what is reported as copied is there and right, the stranger has got nothing and was told nothing, and the
//! daemon, if its host lives, has only its doorman left and every block back. Every seal of the process is recorded: one key
//! and nonce twice, on any two connections, panics.
//!
//! And clients that stop at any moment, with their connections open, take nothing from others: beside fifteen of them
//! another one gets everything that it came for, as fast as if it were alone.
//!
//! `SEED=n` runs one seed and says what it did; `SEEDS=n` sets how many are run (default 400).

use haul_engine::backend::{Broken, DirId, StreamId};
use haul_engine::block::{Class, Pool};
use haul_engine::limits::{DOOR_FRAME_BLOCKS, DOOR_SESSION_BLOCKS, MAX_SESSIONS, SECOND};
use haul_engine::queue::{Queue, Retirement};
use haul_engine::session::client::{Invitation, NOWHERE, Opening, Patience, Seat};
use haul_engine::session::doorman::{Daemon, Doorman};
use haul_engine::session::plan::{Operand, Options};
use haul_engine::session::report::{Direction, Progress, Report, Reporter, SharedProgress};
use haul_engine::session::{download, helper, upload};
use haul_engine::sim::random::Random;
use haul_engine::sim::{Fault, FaultPlan, SimBackend, World};
use haul_engine::wire::frame::{Caps, Ext, Hash};
use haul_engine::wire::path::RequestPath;
use haul_engine::wire::seal::{Secret, sealed_records};
use haul_engine::worker::Worker;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Turns after which a run counts as stuck.
const MAX_TURNS: u64 = 10_000_000;
const KEY: [u8; 32] = [0x5e; 32];
/// Seconds that a client may take beside others that have stopped: a third of the time after which those are cut off.
const QUICK_SECONDS: u64 = 20;
const OLD: &[u8] = b"old content";
/// Large and small blocks of the daemon's pool.
const BLOCKS: (usize, usize) = (24, 32);
/// Sizes at the edges of what sessions and records treat differently.
const SIZES: [usize; 7] = [0, 1, 65_535, 65_536, 65_537, 600_000, 1_300_000];

type Reports = Rc<RefCell<Vec<Report>>>;

fn never_twice() -> Hash {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    *blake3::hash(&NUMBER.fetch_add(1, Ordering::Relaxed).to_le_bytes()).as_bytes()
}

fn operand(path: &str) -> Operand {
    Operand { path: RequestPath::parse(path.as_bytes()).unwrap(), shown: path.into(), contents: path.ends_with('/') }
}

fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut content = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

/// What a run is about.
#[derive(Debug)]
struct Scenario {
    up: bool,
    files: usize,
    caps: Caps,
    /// Its target directory.
    target: String,
    /// Nothing is sealed.
    plain: bool,
    /// The turns in which further connections come, and are told to leave again, if they are.
    further: Vec<(u64, Option<u64>)>,
}

impl Scenario {
    fn links(&self) -> u16 {
        1 + u16::try_from(self.further.len()).unwrap()
    }
}

/// The further connections of a client.
struct Further {
    /// As the scenario has them; what tells each of them to leave.
    turns: Vec<(u64, Option<u64>, Retirement)>,
    invitation: Invitation,
    queue: Queue,
    local: DirId,
    progress: SharedProgress,
}

impl Further {
    /// What is due before this turn.
    fn go(&self, turn: u64, worker: &mut Option<Worker<SimBackend>>) {
        let Some(worker) = worker.as_mut().filter(|worker| worker.is_busy()) else { return };
        for (index, (comes, leaves, retirement)) in (1..).zip(&self.turns) {
            if *comes == turn {
                // What goes wrong with a further connection is for the others to make good.
                let share = (self.queue.retiring(retirement), self.local);
                let invited = (self.invitation.get().expect("it is known"), seat(index));
                let (progress, quiet) = (self.progress.clone(), Box::new(|_| {}));
                worker.add(Box::new(helper::invited(invited, Patience::default(), share, progress, quiet)));
            }
            if *leaves == Some(turn) {
                self.queue.retire(retirement);
            }
        }
    }
}

fn seat(index: u16) -> Seat {
    Seat { index, random: never_twice(), required: true }
}

/// A client of `address` that knows `key`, on its own worker.
fn client(
    host: SimBackend,
    address: SocketAddr,
    key: [u8; 32],
    run: &Scenario,
) -> (Worker<SimBackend>, Reports, Further) {
    client_of(host, address, key, run, "src/")
}

/// The same with other files.
fn client_of(
    host: SimBackend,
    address: SocketAddr,
    key: [u8; 32],
    run: &Scenario,
    source: &str,
) -> (Worker<SimBackend>, Reports, Further) {
    let local = host.root();
    let reports = Reports::default();
    let collect = reports.clone();
    let reporter: Reporter = Box::new(move |report| collect.borrow_mut().push(report));
    let progress = Arc::new(Progress::default());
    let options = Options { recursive: true, connections: run.links(), ..Options::default() };
    let queue = Queue::new(if run.up { Direction::Up } else { Direction::Down }, options);
    let mut opening = Opening::full(None).with_caps(run.caps);
    if run.plain {
        opening.greeting.ext = opening.greeting.ext.map(|ext| ext.or(Ext::PLAIN));
    }
    let invitation = Invitation::by_daemon(address, Secret::from_bytes(key), opening.greeting, never_twice);
    let opening = Opening { invited: Some(Box::new((invitation.clone(), seat(0)))), ..opening };
    let (sources, target) = (vec![operand(source)], operand(&run.target));
    let stream: StreamId = NOWHERE;
    let lead = if run.up {
        let plan = upload::Plan { local, sources, target, queue: queue.clone(), same_machine: None };
        upload::client(stream, opening, plan, progress.clone(), reporter)
    } else {
        let plan = download::Plan { sources, local, target, queue: queue.clone() };
        download::client(stream, opening, plan, progress.clone(), reporter)
    };
    let mut worker = Worker::new(host, Pool::new(8 * usize::from(run.links()), 64)).letting_panics_through();
    worker.add(Box::new(lead));
    let turns = run.further.iter().map(|&(comes, leaves)| (comes, leaves, Retirement::default())).collect();
    (worker, reports, Further { turns, invitation, queue, local, progress })
}

fn turn(worker: &mut Option<Worker<SimBackend>>) {
    if let Some(running) = worker
        && running.is_busy()
        && matches!(running.turn(), Err(Broken { .. }))
    {
        *worker = None;
    }
}

/// Until nothing moves any more. `Err`: there is no end in sight.
fn settle(
    world: &World,
    further: [&Further; 2],
    workers: &mut [&mut Option<Worker<SimBackend>>; 3],
) -> Result<(), String> {
    for number in 0..MAX_TURNS {
        further.iter().zip(workers.iter_mut()).for_each(|(further, worker)| further.go(number, worker));
        workers.iter_mut().for_each(|worker| turn(worker));
        if !world.advance_to_turn() {
            return Ok(());
        }
    }
    Err("no end in sight".to_string())
}

fn fatal(reports: &Reports) -> Option<String> {
    reports.borrow().iter().find_map(|report| match report {
        Report::Fatal(failure) | Report::NotDirect(failure) | Report::Failed(failure) => Some(failure.reason()),
        _ => None,
    })
}

fn daemon(root: DirId, store: DirId, plain: bool) -> Daemon {
    Daemon {
        root,
        store: Some(store),
        read_only: false,
        plain,
        patience: Patience::default(),
        key: Secret::from_bytes(KEY),
        entropy: never_twice,
        on_visit: Rc::new(|_| {}),
    }
}

/// Runs one seed to its end. `Err` says which promise was broken.
fn run(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let caps = [Caps::NONE, Caps::ZSTD, Caps::LZ4, Caps::FAST, Caps::DEDUP][random.index(5)];
    let scenario = Scenario {
        up: random.once_in(2),
        files: 1 + random.index(8),
        caps: caps.or(Caps::PUT_OFFSET),
        target: "dst/".to_string(),
        plain: false,
        further: (0..random.below(4))
            .map(|_| {
                let comes = if random.once_in(2) { 0 } else { random.magnitude(1 << 12) };
                (comes, random.once_in(2).then(|| comes + random.magnitude(1 << 12)))
            })
            .collect(),
    };
    let faults = if random.once_in(3) { FaultPlan::none() } else { FaultPlan::random(2) };
    let world = World::new(seed, faults);
    let hosts = ["client", "server", "stranger"].map(|name| world.host(name));
    let (from, to) = if scenario.up { ("client", "server") } else { ("server", "client") };
    for name in ["client", "server", "stranger"] {
        world.put_directory(name, "dst");
        world.put_directory(name, "src");
    }
    let mut files = Vec::new();
    for number in 0..scenario.files {
        let bytes = content(SIZES[random.index(SIZES.len())], random.next());
        world.put_file(from, &format!("src/{number}"), &bytes);
        if random.once_in(2) {
            world.put_file(to, &format!("dst/{number}"), OLD);
        }
        files.push(bytes);
    }
    world.put_file("stranger", "src/0", b"a stranger's");

    let [client_host, mut server_host, stranger_host] = hosts;
    let store = server_host.add_store();
    let root = server_host.root();
    let (listener, address) = world.listen(&mut server_host);
    let mut server = Some(Worker::new(server_host, Pool::new(BLOCKS.1, BLOCKS.0)).letting_panics_through());
    server.as_mut().expect("it lives").add(Box::new(Doorman::new(listener, daemon(root, store, false))));
    let (ours, reports, further) = client(client_host, address, KEY, &scenario);
    let stranger = Scenario { further: vec![(0, None)], ..scenario };
    let (theirs, strangers, none) = client(stranger_host, address, [0x11; 32], &stranger);
    let (mut ours, mut theirs) = (Some(ours), Some(theirs));
    settle(&world, [&further, &none], &mut [&mut ours, &mut theirs, &mut server])?;
    if std::env::var_os("SEED").is_some() {
        println!("{:?}\n{:#?}\n{:#?}", world.faults_hit(), reports.borrow(), strangers.borrow());
    }
    if [&ours, &theirs].into_iter().flatten().any(Worker::is_busy) {
        let states = [&ours, &theirs, &server].map(|worker| worker.as_ref().map(Worker::states));
        return Err(format!("deadlock: {states:?}"));
    }
    check(&world, &files, to, &reports)?;
    match fatal(&strangers) {
        None => return Err("the stranger was let in".to_string()),
        Some(why) if world.faults_hit().is_empty() && !why.contains("its key may be another one") => {
            return Err(format!("the stranger was told `{why}`"));
        }
        Some(_) => {}
    }
    if world.list("stranger").iter().any(|path| path.starts_with("dst/")) {
        return Err("the stranger has got something".to_string());
    }
    if let Some(server) = &server {
        let left = (server.blocks_available(Class::Large), server.blocks_available(Class::Small));
        if server.states() != ["doorman"] || left != BLOCKS {
            return Err(format!("the daemon is left with {:?} and {left:?} of {BLOCKS:?}", server.states()));
        }
    }
    Ok(())
}

fn check(world: &World, files: &[Vec<u8>], to: &str, reports: &Reports) -> Result<(), String> {
    if let Some(violation) = world.violations().first() {
        return Err(violation.clone());
    }
    let faults = world.faults_hit();
    let strange = |fault| matches!(fault, Fault::Vanish | Fault::ShortSource | Fault::Grow | Fault::Overwrite);
    let strange = faults.iter().any(|hit| strange(hit.fault));
    let mut copied = 0;
    for (number, content) in files.iter().enumerate() {
        let name = format!("dst/{number}");
        let found = world.get_file(to, &name);
        let whole = found.as_ref() == Some(content);
        if !whole && !strange && found.as_ref().is_some_and(|found| found != OLD) {
            return Err(format!("{name} is neither the old file nor the new one"));
        }
        let said = reports.borrow().iter().any(|report| match report {
            Report::Copied { target, .. } | Report::Unchanged { target, .. } => *target == name.as_bytes(),
            _ => false,
        });
        if said && !whole && !strange {
            return Err(format!("{name} was reported as copied, and is not"));
        }
        copied += usize::from(said);
    }
    match fatal(reports) {
        Some(why) if faults.is_empty() => Err(format!("nothing went wrong, and yet: {why}")),
        None if faults.is_empty() && copied < files.len() => Err(format!("only {copied} of {} copied", files.len())),
        _ => Ok(()),
    }
}

/// Digits, which every codec makes about half as much of.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let digits = content(len.div_ceil(2), seed);
    digits.iter().flat_map(|byte| [b'0' + byte % 16, b'0' + byte / 16]).take(len).collect()
}

/// What a client that may stall, or the one beside it, copies, and how.
fn one_of_many(random: &mut Random, target: String) -> (Scenario, Vec<Vec<u8>>) {
    let caps = [Caps::NONE, Caps::ZSTD, Caps::LZ4, Caps::FAST, Caps::DEDUP.or(Caps::ZSTD)][random.index(5)];
    let sizes = match random.below(4) {
        0 => vec![30_000; 100],
        1 => vec![9 << 20],
        2 => vec![18 << 20],
        _ => vec![600_000; 8],
    };
    let up = random.once_in(2);
    let files = sizes.iter().map(|&size| {
        let seed = random.next();
        if caps == Caps::NONE || caps == Caps::FAST { content(size, seed) } else { text(size, seed) }
    });
    let files: Vec<_> = files.collect();
    let caps = caps.or(Caps::PUT_OFFSET);
    let plain = random.once_in(3);
    (Scenario { up, files: files.len(), caps, target, plain, further: Vec::new() }, files)
}

/// Fifteen clients of a daemon that stop somewhere, and one that comes then.
fn run_beside_stalled(seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let world = World::new(seed, FaultPlan::none());
    // How long something takes says nothing over the smallest ones.
    world.set_least_stream(4096);
    let mut server_host = world.host("server");
    let store = server_host.add_store();
    let root = server_host.root();
    let (listener, address) = world.listen(&mut server_host);
    let pool = Pool::of_sessions(DOOR_SESSION_BLOCKS, DOOR_FRAME_BLOCKS, Some(1));
    let blocks = [Class::Small, Class::Large, Class::Frame].map(|class| pool.available(class));
    let mut server = Some(Worker::new(server_host, pool).letting_panics_through());
    server.as_mut().expect("it lives").add(Box::new(Doorman::new(listener, daemon(root, store, true))));
    let come = |name: &str, random: &mut Random| {
        let (scenario, files) = one_of_many(random, format!("{name}/"));
        let host = world.host(name);
        let (from, to) = if scenario.up { (name, "server") } else { ("server", name) };
        // Those who only take have a tree of their own there.
        let source = if scenario.up { "src".to_string() } else { format!("of-{name}") };
        world.put_directory(from, &source);
        world.put_directory(to, name);
        for (number, bytes) in files.iter().enumerate() {
            world.put_file(from, &format!("{source}/{number}"), bytes);
        }
        let (worker, reports, further) = client_of(host, address, KEY, &scenario, &format!("{source}/"));
        (Some(worker), (reports, further.progress), files, to.to_string())
    };
    let mut stalled = Vec::new();
    for number in 0..MAX_SESSIONS - 1 {
        let name = format!("stalled-{number}");
        let (mut worker, (_, progress), files, _) = come(&name, &mut random);
        let bytes = files.iter().map(|file| file.len() as u64).sum();
        // When it has moved so much, and in the middle of something, rather than of nothing.
        let (until, more) = (random.below(bytes), random.below(64));
        let mut turns = 0;
        while turns < more {
            turns += u64::from(progress.bytes.load(Ordering::Relaxed) >= until);
            turn(&mut worker);
            turn(&mut server);
            world.advance_to_turn();
        }
        world.pause(&name);
        stalled.push(worker);
    }
    let began = world.now();
    if std::env::var_os("SEED").is_some() {
        let (left, states) = server.as_ref().map(|server| (available(server), server.states())).unwrap();
        println!("{left:?} of {blocks:?} blocks are left beside {states:?}");
    }
    let (mut worker, (reports, _), files, to) = come("quick", &mut random);
    while worker.as_ref().is_some_and(Worker::is_busy) {
        turn(&mut worker);
        turn(&mut server);
        if !world.advance_to_turn() {
            let states = [&worker, &server].map(|worker| worker.as_ref().map(Worker::states));
            return Err(format!("deadlock: {states:?}"));
        }
        let seconds = (world.now().0 - began.0) / SECOND;
        if seconds > QUICK_SECONDS {
            let states = [&worker, &server].map(|worker| worker.as_ref().map(Worker::states));
            return Err(format!("not done after {seconds} s: {states:?}"));
        }
    }
    if let Some(why) = fatal(&reports) {
        return Err(why);
    }
    for (number, content) in files.iter().enumerate() {
        if world.get_file(&to, &format!("quick/{number}")).as_ref() != Some(content) {
            return Err(format!("file {number} of {} is not there", files.len()));
        }
    }
    (0..stalled.len()).for_each(|number| world.crash(&format!("stalled-{number}")));
    drop(stalled);
    let mut server = server.expect("it lives");
    while server.states() != ["doorman"] || blocks != available(&server) {
        server.turn().map_err(|broken| broken.to_string())?;
        if !world.advance_to_turn() {
            return Err(format!("the daemon is left with {:?} and {:?}", server.states(), available(&server)));
        }
    }
    Ok(())
}

fn available(worker: &Worker<SimBackend>) -> [usize; 3] {
    [Class::Small, Class::Large, Class::Frame].map(|class| worker.blocks_available(class))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

#[test]
fn whatever_goes_wrong_a_daemon_serves_those_who_know_its_key_and_nobody_else() {
    if let Some(seed) = number("SEED") {
        return run(seed).unwrap();
    }
    let before = sealed_records();
    for seed in 0..number("SEEDS").unwrap_or(400) {
        let result = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| Err("it panicked".to_string()));
        assert!(result.is_ok(), "SEED={seed}: {result:?}");
    }
    assert!(sealed_records() > before + 1000, "somebody watches what is sealed");
}

#[test]
fn clients_that_stop_anywhere_take_nothing_from_the_others() {
    if let Some(seed) = number("SEED") {
        return run_beside_stalled(seed).unwrap();
    }
    // Each is as many connections as sixteen of the others.
    for seed in 0..number("SEEDS").unwrap_or(400).div_ceil(20) {
        let result = std::panic::catch_unwind(|| run_beside_stalled(seed));
        let result = result.unwrap_or_else(|_| Err("it panicked".to_string()));
        assert!(result.is_ok(), "SEED={seed}: {result:?}");
    }
}
