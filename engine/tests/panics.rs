//! Sessions that panic, on a worker that has others.

use haul_engine::backend::{Completion, OpKind, StreamId, Time, Token};
use haul_engine::block::{Pool, Slices};
use haul_engine::session::acceptor::{Acceptor, Fate, Visit};
use haul_engine::session::client::Opening;
use haul_engine::session::inspect::{self, Question};
use haul_engine::session::plan::Operand;
use haul_engine::session::report::{Progress, Report};
use haul_engine::session::server::Server;
use haul_engine::session::{Context, Failure, Flow, Session};
use haul_engine::sim::{FaultPlan, SimBackend, World};
use haul_engine::wire::path::RequestPath;
use haul_engine::worker::Worker;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// When it panics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Turn,
    Completion,
    /// And has nothing good to say afterwards.
    Everything,
}

/// Sends a byte, and panics.
struct Panics {
    stream: StreamId,
    at: At,
    sent: bool,
    told: Rc<RefCell<Vec<String>>>,
}

impl Session for Panics {
    fn on_completion(&mut self, _: Completion, _: &mut Context<'_>) {
        assert!(self.at == At::Turn, "in a completion");
    }

    fn on_turn(&mut self, cx: &mut Context<'_>) -> Flow {
        assert!(self.at != At::Turn, "in a turn");
        if !std::mem::replace(&mut self.sent, true) {
            let head = [1].into_iter().collect();
            cx.submit(0, 0, OpKind::Send { stream: self.stream, head, body: Slices::new() });
        }
        Flow::Continue
    }

    fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
        self.told.borrow_mut().push(failure.reason());
        assert!(self.at != At::Everything, "again");
        cx.submit(0, 0, OpKind::CloseStream { stream: self.stream });
    }

    fn next_deadline(&self) -> Option<Time> {
        None
    }

    fn state_of(&self, _: Token) -> &'static str {
        "panics"
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        assert!(self.at != At::Everything, "and again");
    }
}

fn play(workers: &mut [&mut Worker<SimBackend>], world: &World, done: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        for worker in &mut *workers {
            if worker.is_busy() {
                worker.turn().unwrap();
            }
        }
        world.advance();
    }
    panic!("it hangs");
}

/// A client that wants the hash of the server's file `f`.
fn asks(stream: StreamId, reports: &Rc<RefCell<Vec<Report>>>) -> Box<dyn Session> {
    let path = RequestPath::parse(b"f").unwrap();
    let operand = Operand { path, shown: b"f".to_vec(), contents: false };
    let (collect, progress) = (reports.clone(), Arc::new(Progress::default()));
    let reporter = Box::new(move |report| collect.borrow_mut().push(report));
    Box::new(inspect::client(stream, Opening::full(None), Question::Hash, vec![operand], progress, reporter))
}

#[test]
fn a_session_that_panics_says_so_once_and_the_others_of_its_worker_go_on() {
    for (seed, at) in [At::Turn, At::Completion, At::Everything].into_iter().enumerate() {
        let world = World::new(seed as u64, FaultPlan::none());
        world.put_file("server", "f", b"content");
        let [mut client, mut other, mut server] = ["client", "other", "server"].map(|name| world.host(name));
        let (near, far) = world.connect(&mut client, &mut server);
        let (_, stream) = world.connect(&mut other, &mut server);
        let root = server.root();
        let mut server = Worker::new(server, Pool::new(64, 64));
        let told = Rc::new(RefCell::new(Vec::new()));
        server.add(Box::new(Panics { stream, at, sent: false, told: told.clone() }));
        server.add(Box::new(Server::new(far, root, Box::new(|_| {}))));
        let mut client = Worker::new(client, Pool::new(64, 64));
        let reports = Rc::new(RefCell::new(Vec::new()));
        client.add(asks(near, &reports));
        let hashed = || reports.borrow().iter().any(|report| matches!(report, Report::Hashed { .. }));
        play(&mut [&mut client, &mut server], &world, || hashed() && !told.borrow().is_empty());
        let told = told.borrow();
        let [reason] = &told[..] else { panic!("{told:?}") };
        assert!(reason.starts_with("cannot go on: internal error"), "{reason}");
        assert!(!reports.borrow().iter().any(|report| matches!(report, Report::Fatal(_))), "{at:?}");
    }
}

#[test]
fn what_tells_how_a_session_ended_may_panic_without_harm_to_the_next_one() {
    let world = World::new(1, FaultPlan::none());
    world.put_file("server", "f", b"content");
    let [mut client, mut server] = ["client", "server"].map(|name| world.host(name));
    let streams = [(); 2].map(|()| world.connect(&mut client, &mut server));
    let root = server.root();
    let mut server = Worker::new(server, Pool::new(64, 64));
    for (_, far) in streams {
        let broken = Box::new(|_| panic!("nobody listens"));
        server.add(Box::new(Server::new(far, root, broken)));
    }
    let mut client = Worker::new(client, Pool::new(64, 64));
    for (near, _) in streams {
        let reports = Rc::new(RefCell::new(Vec::new()));
        client.add(asks(near, &reports));
        play(&mut [&mut client, &mut server], &world, || {
            reports.borrow().iter().any(|report| matches!(report, Report::Hashed { .. }))
        });
    }
}

#[test]
fn a_client_that_is_abandoned_reports_why() {
    let world = World::new(1, FaultPlan::none());
    let [mut client, mut server] = ["client", "server"].map(|name| world.host(name));
    let (near, _far) = world.connect(&mut client, &mut server);
    let reports = Rc::new(RefCell::new(Vec::new()));
    /// A client whose turns are beyond it.
    struct Broken(Box<dyn Session>);
    impl Session for Broken {
        fn on_completion(&mut self, completion: Completion, cx: &mut Context<'_>) {
            self.0.on_completion(completion, cx);
        }
        fn on_turn(&mut self, _: &mut Context<'_>) -> Flow {
            panic!("no more");
        }
        fn abandon(&mut self, failure: Failure, cx: &mut Context<'_>) {
            self.0.abandon(failure, cx);
        }
        fn next_deadline(&self) -> Option<Time> {
            self.0.next_deadline()
        }
        fn state_of(&self, token: Token) -> &'static str {
            self.0.state_of(token)
        }
    }
    let mut worker = Worker::new(client, Pool::new(8, 8));
    worker.add(Box::new(Broken(asks(near, &reports))));
    play(&mut [&mut worker], &world, || !reports.borrow().is_empty());
    let reports = reports.borrow();
    let [Report::Fatal(failure)] = &reports[..] else { panic!("{reports:?}") };
    assert_eq!(failure.what, "cannot go on");
    assert!(worker.states().is_empty());
}

#[test]
fn a_listener_that_is_given_up_is_closed_and_that_is_told() {
    let world = World::new(1, FaultPlan::none());
    let mut server = world.host("server");
    let (listener, _) = world.listen(&mut server);
    let root = server.root();
    let told = Rc::new(RefCell::new(Vec::new()));
    let same = told.clone();
    let mut acceptor = Acceptor::new(listener, root, None, Rc::new(move |result| same.borrow_mut().push(result)));
    let (mut submissions, mut pool, mut spawned) = (Default::default(), Pool::new(1, 1), Vec::new());
    let waker = haul_engine::backend::Waker(Arc::new(|| {}));
    let mut cx = Context {
        id: haul_engine::backend::SessionId(0),
        now: Time(0),
        pool: &mut pool,
        submissions: &mut submissions,
        waker: &waker,
        spawned: &mut spawned,
    };
    acceptor.abandon(Failure::connection("cannot go on", "of a panic"), &mut cx);
    assert!(matches!(&told.borrow()[..], [Visit { fate: Fate::Served(Err(_)), .. }]));
    assert!(matches!(submissions.ops[..], [haul_engine::backend::Op { kind: OpKind::CloseStream { .. }, .. }]));
}
