//! How a client finds out who answers, in simulated time: start lines, silence, greetings of both versions, second tries.

use haul_engine::block::Pool;
use haul_engine::contract::{Arrived, Peer as _};
use haul_engine::limits::{HANDSHAKE_TIMEOUT, PREAMBLE_SILENCE, SECOND, SHELL_SILENCE};
use haul_engine::session::client::Opening;
use haul_engine::session::inspect::{self, Question};
use haul_engine::session::plan::Operand;
use haul_engine::session::report::{Progress, Report};
use haul_engine::session::server::Server;
use haul_engine::session::{Cause, Failure, Reason};
use haul_engine::sim::{FaultPlan, SimBackend, SimPeer, World};
use haul_engine::wire::encode;
use haul_engine::wire::frame::{Caps, Dialect, ErrorCode, Ext, Frame};
use haul_engine::wire::hello::Greeting;
use haul_engine::wire::path::RequestPath;
use haul_engine::worker::Worker;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

const NONCE: &str = "haul-00112233445566778899aabbccddeeff";

/// What the client has to say to a haul peer.
fn full() -> Frame {
    Opening::full(None).greeting.hello()
}

/// And to base peers, in this version.
fn strict(version: u8) -> Frame {
    Greeting { version, ext: None, ..Opening::full(None).greeting }.hello()
}

/// All extensions there are.
fn ext() -> Ext {
    Opening::full(None).greeting.ext.unwrap()
}

fn welcome(version: u8, ext: Option<Ext>) -> Frame {
    Frame::Welcome { version, caps: Caps::PUT_OFFSET, ext }
}

fn bytes(frame: &Frame, dialect: Dialect) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::frame(frame, dialect, &mut bytes).unwrap();
    bytes
}

fn base(frame: &Frame) -> Vec<u8> {
    bytes(frame, Dialect::BASE)
}

fn mismatch(server: u8) -> Vec<u8> {
    let message = format!("protocol version mismatch: client=1 server={server}").into_bytes();
    base(&Frame::Error { message, code: ErrorCode::OTHER })
}

/// What the client asks once both have greeted, in this dialect: the hash of a file whose name is not text.
fn question(ext: Ext) -> Vec<u8> {
    let path = haul_engine::wire::frame::PathField(NAME.to_vec());
    bytes(&Frame::Hash { path, offset: 0, limit: None }, Dialect { version: 1, ext })
}

const NAME: &[u8] = b"f\xff";

/// What the far end does, one step after the other.
enum Step {
    /// Says this.
    Say(Vec<u8>),
    /// Waits until the client has said this, and no more.
    Hear(Vec<u8>),
    /// Ends the stream.
    End,
}

use Step::{End, Hear, Say};

fn line(words: &str) -> Step {
    Say(format!("{NONCE} {words}\n").into_bytes())
}

struct Scene {
    world: Rc<World>,
    client: Worker<SimBackend>,
    peer: SimPeer,
    reports: Rc<RefCell<Vec<Report>>>,
    /// What the client said that was not expected yet.
    said: Vec<u8>,
    /// It will say nothing more.
    ended: bool,
}

impl Scene {
    /// A client that will ask for the hash of the file `NAME`.
    fn new(seed: u64, opening: Opening) -> Scene {
        let world = World::new(seed, FaultPlan::none());
        let mut host = world.host("client");
        let (stream, peer) = world.connect_peer(&mut host, 4096);
        let reports = Rc::new(RefCell::new(Vec::new()));
        let collect = reports.clone();
        let operand = Operand { path: RequestPath::parse(NAME).unwrap(), shown: NAME.to_vec(), contents: false };
        let session = inspect::client(
            stream,
            opening,
            Question::Hash,
            vec![operand],
            Arc::new(Progress::default()),
            Box::new(move |report| collect.borrow_mut().push(report)),
        );
        let mut client = Worker::new(host, Pool::new(8, 8)).letting_panics_through();
        client.add(Box::new(session));
        Scene { world, client, peer, reports, said: Vec::new(), ended: false }
    }

    /// One turn of the client, and of time.
    fn turn(&mut self) -> bool {
        self.client.turn().unwrap();
        match self.peer.read(4096) {
            Arrived::Bytes(bytes) => self.said.extend(bytes),
            Arrived::Nothing => {}
            Arrived::End => self.ended = true,
        }
        self.world.advance()
    }

    /// Plays the steps.
    fn play(&mut self, steps: impl IntoIterator<Item = Step>) {
        for step in steps {
            match step {
                Say(bytes) => assert_eq!(self.peer.write(&bytes), bytes.len()),
                End => self.peer.close_write(),
                Hear(bytes) => {
                    while self.said.len() < bytes.len() && self.client.is_busy() {
                        self.turn();
                    }
                    assert_eq!(self.said.escape_ascii().to_string(), bytes.escape_ascii().to_string());
                    self.said.clear();
                }
            }
        }
    }

    /// Lets the client go on to its end: the last report, and no byte that was not expected.
    #[track_caller]
    fn last(&mut self) -> Report {
        while self.client.is_busy() {
            assert!(self.turn(), "nothing happens any more");
        }
        assert_eq!(self.said.escape_ascii().to_string(), "");
        self.reports.borrow().last().expect("something is reported").clone()
    }
}

fn opening() -> Opening {
    Opening::full(Some(NONCE.into()))
}

/// What was said to whoever started the client, after these steps of the far end.
#[track_caller]
fn outcome(opening: Opening, steps: impl IntoIterator<Item = Step>) -> Report {
    let mut scene = Scene::new(1, opening);
    scene.play(steps);
    scene.last()
}

#[track_caller]
fn assert_fatal(report: &Report, what: &str, why: &str) {
    let Report::Fatal(failure) = report else { panic!("{report:?} is not fatal") };
    let Failure { what: found, cause: Cause::Connection(because), .. } = failure else { panic!("{failure:?}") };
    assert_eq!((*found, because.as_str()), (what, why));
}

fn is_absent(report: &Report, because: &str) -> bool {
    matches!(report, Report::Absent(failure) if failure.why() == because)
}

fn redialled(version: u8) -> Opening {
    Opening { redialled: Some(version), ..opening() }
}

#[test]
fn whoever_the_start_line_names_is_greeted_in_its_own_version() {
    let table = [
        ("haul 0.1.0", full(), Some(ext()), ext()),
        ("haul 7", full(), Some(Ext(1)), Ext(1)),
        ("bcmr 0.6.0", strict(1), None, Ext::NONE),
        ("bcmr 0.7.2", strict(2), None, Ext::NONE),
    ];
    for (words, expected, granted, agreed) in table {
        let Frame::Hello { version, .. } = expected else { unreachable!() };
        let mut scene = Scene::new(2, opening());
        let answer = base(&welcome(version, granted));
        scene.play([Say(b"Last login: today\nno newline".to_vec()), line(words), Hear(base(&expected)), Say(answer)]);
        if agreed.has(Ext::BYTES) {
            scene.play([Hear(question(agreed)), End]);
        }
        let last = scene.last();
        let reports = scene.reports.borrow();
        assert!(matches!(&reports[0], Report::Peer(peer) if peer.words == words), "{reports:?}");
        // The name cannot be sent in a base frame; that much only who has been greeted finds out.
        assert_eq!(matches!(last, Report::Failed(_)), agreed == Ext::NONE, "{last:?}");
    }
}

#[test]
fn a_base_peer_that_cannot_do_the_job_is_not_even_greeted() {
    let refuse = || Opening { refuse_base: Some("because"), ..opening() };
    let report = outcome(refuse(), [line("bcmr 0.6.0")]);
    assert!(
        matches!(&report, Report::Fatal(Failure { cause: Cause::Rule(rule), .. }) if rule == "because"),
        "{report:?}"
    );
    let mut scene = Scene::new(1, refuse());
    scene.play([line("haul 0.1.0"), Hear(base(&full()))]);
    assert!(matches!(scene.last(), Report::Fatal(_)), "haul is asked all the same, and does not answer here");
}

#[test]
fn that_nobody_is_there_is_no_failure_of_the_connection() {
    let report = outcome(opening(), [Say(b"Welcome\n".to_vec()), line("none"), End]);
    assert!(is_absent(&report, "it is not installed there"), "{report:?}");
    let report = outcome(opening(), [line("unusable"), End]);
    assert_fatal(&report, "cannot start haul on the remote side", "the program there cannot be run, or is not haul");
    let report = outcome(opening(), [Say(b"Welcome\n".to_vec()), End]);
    assert!(is_absent(&report, "the remote shell printed `Welcome`"), "{report:?}");
    let report = outcome(opening(), [End]);
    assert!(is_absent(&report, "the connection closed without a word"), "{report:?}");
}

#[test]
fn a_silent_far_end_is_greeted_first_and_may_answer_with_a_frame() {
    for text in [b"".as_slice(), b"Welcome\n", b"no newline"] {
        let mut scene = Scene::new(3, opening());
        let answer = [text, &base(&welcome(1, None))].concat();
        scene.play([Hear(base(&strict(1))), Say(answer)]);
        assert!((PREAMBLE_SILENCE..PREAMBLE_SILENCE + SECOND).contains(&scene.world.now().0));
        assert!(matches!(scene.last(), Report::Failed(_)), "it is greeted: the name is what fails");
    }
}

#[test]
fn a_haul_that_was_slow_to_start_is_greeted_once_more_with_all_that_it_can() {
    for granted in [ext(), Ext(1)] {
        let mut scene = Scene::new(4, opening());
        scene.play([
            Hear(base(&strict(1))),
            Say(b"Last login: today\n".to_vec()),
            line("haul 0.1.0"),
            Say(base(&welcome(1, None))),
            Hear(base(&full())),
            Say(base(&welcome(1, Some(granted)))),
            Hear(question(granted)),
        ]);
    }
}

#[test]
fn the_real_server_greets_twice_and_then_speaks_all_that_it_can() {
    for seed in 0..50 {
        let mut scene = Scene::new(seed, opening());
        let world = scene.world.clone();
        let mut host = world.host("server");
        world.put_file("server", "f", b"not this one");
        let (stream, mut far) = world.connect_peer(&mut host, 4096);
        let root = host.root();
        let mut server = Worker::new(host, Pool::new(8, 8)).letting_panics_through();
        server.add(Box::new(Server::new(stream, root, Box::new(|result| assert_eq!(result, Ok(()))))));
        scene.play([Hear(base(&strict(1))), Say(b"slow\n".to_vec()), line("haul 0.1.0")]);
        // It lay in the pipe until the server came.
        assert_eq!(far.write(&base(&strict(1))), base(&strict(1)).len());
        for _ in 0..10_000 {
            let said = std::mem::take(&mut scene.said);
            assert_eq!(far.write(&said), said.len());
            if scene.ended {
                far.close_write();
            }
            if server.is_busy() {
                server.turn().unwrap();
            }
            match far.read(4096) {
                Arrived::Bytes(bytes) => assert_eq!(scene.peer.write(&bytes), bytes.len()),
                Arrived::End => scene.peer.close_write(),
                Arrived::Nothing => {}
            }
            if !scene.client.is_busy() {
                break;
            }
            scene.turn();
        }
        assert!(!scene.client.is_busy(), "seed {seed}: no end in sight");
        // Only under BYTES the name could be asked for, so the server looked, and found nothing.
        let report = scene.last();
        let Report::Failed(failure) = &report else { panic!("seed {seed}: {report:?}") };
        assert_eq!(failure.code(), ErrorCode(4096 + 2), "seed {seed}: {failure:?}");
    }
}

#[test]
fn a_server_of_the_other_version_is_worth_one_more_connection() {
    let redial = |report: &Report, expected| matches!(report, Report::Redial { version } if *version == expected);
    let greeted = || Hear(base(&strict(1)));
    for steps in [
        vec![greeted(), Say(mismatch(2)), End],
        vec![greeted(), Say(b"Welcome\n".to_vec()), Say(mismatch(2)), End],
        vec![greeted(), End],
        vec![greeted(), line("bcmr 0.7.2"), Say(mismatch(2)), End],
        vec![line("bcmr 0.6.9"), Hear(base(&strict(1))), Say(mismatch(2)), End],
    ] {
        let report = outcome(opening(), steps);
        assert!(redial(&report, 2), "{report:?}");
    }
    let report = outcome(opening(), [line("bcmr 0.7.2"), Hear(base(&strict(2))), Say(mismatch(1)), End]);
    assert!(redial(&report, 1), "{report:?}");
}

#[test]
fn a_second_connection_begins_with_the_other_version_at_once_and_is_the_last() {
    for version in [1, 2] {
        let mut scene = Scene::new(5, redialled(version));
        scene.play([Hear(base(&strict(version))), Say(base(&welcome(version, None)))]);
        assert!(scene.world.now().0 < SECOND);
        assert!(matches!(scene.last(), Report::Failed(_)));
        let greeted = || Hear(base(&strict(version)));
        let report = outcome(redialled(version), [greeted(), Say(mismatch(3 - version)), End]);
        let why = format!("protocol version mismatch: client=1 server={}", 3 - version);
        assert_fatal(&report, "handshake", &why);
        let report = outcome(redialled(version), [greeted(), End]);
        assert!(is_absent(&report, "the connection closed without a word"), "{report:?}");
    }
}

#[test]
fn a_refusal_in_whatever_words_is_worth_the_other_version_and_no_more() {
    for server in [0, 1, 3, 255] {
        let report = outcome(opening(), [Hear(base(&strict(1))), Say(mismatch(server))]);
        assert!(matches!(report, Report::Redial { version: 2 }), "{report:?}");
        let report = outcome(redialled(2), [Hear(base(&strict(2))), Say(mismatch(server))]);
        assert_fatal(&report, "handshake", &format!("protocol version mismatch: client=1 server={server}"));
        assert!(matches!(&report, Report::Fatal(failure) if failure.kind == Reason::Refused), "{report:?}");
    }
    // haul speaks both; one that refuses both is of another time.
    let report = outcome(opening(), [line("haul 9"), Hear(base(&full())), Say(mismatch(2))]);
    assert_fatal(&report, "handshake", "protocol version mismatch: client=1 server=2");
}

#[test]
fn a_far_end_that_never_answers_is_given_up_in_time() {
    for (text, why) in [("", ""), ("hello\n", "the remote shell printed `hello`")] {
        let mut scene = Scene::new(6, opening());
        scene.play([Say(text.into()), Hear(base(&strict(1)))]);
        assert_fatal(&scene.last(), "the remote side did not answer in time", why);
        assert!((HANDSHAKE_TIMEOUT..HANDSHAKE_TIMEOUT + SECOND).contains(&scene.world.now().0));
    }
    let report = outcome(opening(), [line("haul 0.1.0"), Hear(base(&full()))]);
    assert_fatal(&report, "handshake", "the server did not answer in time");
}

/// Who is asked when a start file has put another program in the place of the shell.
const START_FILE: &str = "does a start file of that account run another program (`exec`)?";

#[test]
fn behind_a_login_a_shell_that_says_nothing_is_given_up_within_five_seconds() {
    let login = || line("login");
    let table = [
        (vec![login()], ""),
        (vec![Say(b"from here\n".to_vec()), login()], ", and the remote shell printed `from here`"),
        (vec![login(), Say(b"Welcome\n".to_vec())], ", and the remote shell printed `Welcome`"),
    ];
    for (steps, printed) in table {
        let mut scene = Scene::new(7, opening());
        scene.play(steps);
        scene.play([Hear(base(&strict(1)))]);
        let last = scene.last();
        let why = format!("the login is there, and nothing comes of it{printed}; {START_FILE}");
        assert_fatal(&last, "cannot start haul on the remote side", &why);
        assert!(matches!(&last, Report::Fatal(failure) if failure.kind == Reason::StartFiles), "{last:?}");
        assert!((SHELL_SILENCE..5 * SECOND).contains(&scene.world.now().0), "{:?}", scene.world.now());
    }
    // A login that is shared was there before.
    let mut scene = Scene::new(7, Opening { logged_in: true, ..opening() });
    scene.play([Hear(base(&strict(1)))]);
    assert!(matches!(scene.last(), Report::Fatal(failure) if failure.kind == Reason::StartFiles));
    assert!(scene.world.now().0 < 5 * SECOND);
}

#[test]
fn a_person_at_a_password_has_the_time_of_a_login_and_the_shell_has_its_own_behind_it() {
    let mut patient = opening();
    patient.patience.silence = 20 * SECOND;
    let mut scene = Scene::new(8, patient.clone());
    scene.play([Hear(base(&strict(1))), line("login"), line("haul 0.1.0")]);
    scene.play([Say(base(&welcome(1, None))), Hear(base(&full()))]);

    let mut scene = Scene::new(8, patient);
    scene.play([Hear(base(&strict(1))), line("login")]);
    assert!(matches!(scene.last(), Report::Fatal(failure) if failure.kind == Reason::StartFiles));
    let soon = 20 * SECOND + SHELL_SILENCE;
    assert!((soon..soon + SECOND).contains(&scene.world.now().0), "{:?}", scene.world.now());
}

#[test]
fn a_remote_shell_that_sends_back_what_it_is_sent_is_none() {
    for text in ["", "Welcome\n"] {
        let steps = [Hear(base(&strict(1))), Say([text.as_bytes(), &base(&strict(1))].concat())];
        let report = outcome(opening(), steps);
        let Report::Fatal(failure) = &report else { panic!("{report:?}") };
        assert_eq!(failure.kind, Reason::StartFiles);
        assert!(failure.why().starts_with("the remote shell sends back what it is sent"), "{failure:?}");
    }
}

#[test]
fn a_helper_that_ends_or_talks_nonsense_behind_its_start_line_is_told() {
    let start = || [line("haul 0.1.0"), Hear(base(&full()))];
    let report = outcome(opening(), start().into_iter().chain([End]));
    assert_fatal(&report, "handshake", "the server closed the connection without an answer");
    let report = outcome(opening(), start().into_iter().chain([Say(b"usage: haul\n".to_vec())]));
    assert_fatal(
        &report,
        "handshake",
        "the peer announced a frame of 1734439797 bytes, more than the protocol's 16 MiB",
    );
}
