//! What a peer says is shown and decides nothing: neither the exit code nor a hint. Each case sends the very words by which
//! a reader of texts would be misled, in every place where a peer may speak.

use crate::hostile_direct_client::{offer, says_no_more};
use crate::support::frames::{FULL, FarEnd, attributes, bytes_of, play, play_hurried};
use crate::support::processes::{Ended, LIMIT};
use crate::support::{BACKENDS, Pipes, Remote as _};
use haul_engine::wire::frame::{Dialect, ErrorCode, Frame, Kind};
use std::fs;

/// Words of haul's own, of other servers, and of systems.
const WORDS: [&str; 10] = [
    "it has said nothing for you",
    "the server has read nothing for 60 s",
    "the server did not answer in time",
    "127.0.0.1:9 does not answer",
    "protocol version mismatch: client=1 server=2",
    "it is a directory, and -r was not given",
    "it is not installed there",
    "the program there cannot be run",
    "cannot put: No space left on device (os error 28)",
    "cannot open: No such file or directory (os error 2)",
];

fn says(words: &str) -> Frame {
    Frame::Error { message: words.into(), code: ErrorCode::NONE }
}

/// One line with these words, this code, and no hint.
#[track_caller]
fn assert_shown(ended: &Ended, code: i32, words: &str) {
    ended.assert_exit(code);
    let lines = ended.lines();
    assert!(
        matches!(&lines[..], [line] if line.starts_with("haul: ") && line.contains(words)),
        "{lines:?}, not {words}"
    );
}

fn copy(backend: &str, down: bool, act: impl FnOnce(&mut FarEnd) + Send) -> Ended {
    let dir = tempfile::Builder::new().prefix("haul-test-").tempdir().unwrap();
    let here = dir.path().join("f");
    if !down {
        fs::write(&here, "content").unwrap();
    }
    let args = |pipes: &Pipes| {
        let operands = if down { ["far:f".into(), here.into()] } else { [here.into(), "far:f".into()] };
        ["copy".into()].into_iter().chain(pipes.args()).chain(operands).collect()
    };
    play(backend, LIMIT, args, act)
}

fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    BACKENDS.into_iter().flat_map(|backend| WORDS.map(|words| (backend, words)))
}

#[test]
fn a_refused_file_is_a_refused_file_whatever_its_server_says() {
    for ((backend, words), dialect) in cases().flat_map(|case| [Dialect::BASE, FULL].map(|dialect| (case, dialect))) {
        for down in [false, true] {
            let ended = copy(backend, down, |far| {
                far.greet(dialect);
                far.looked_up(down.then(|| attributes(Kind::Regular, 7)));
                far.request();
                far.send(&says(words));
                far.drain();
            });
            assert_shown(&ended, 23, words);
        }
    }
}

#[test]
fn a_refused_greeting_is_a_refused_greeting_in_any_words() {
    for (backend, words) in cases() {
        let ended = copy(backend, true, |far| {
            far.request();
            far.send_bytes(&bytes_of(&says(words), Dialect::BASE));
            far.drain();
        });
        assert_shown(&ended, 2, words);
    }
}

#[test]
fn a_direct_connection_that_is_refused_is_not_one_that_was_waited_for() {
    for (backend, words) in cases() {
        let ended = crate::hostile_direct_client::run(backend, "direct", "far:f".into(), "/dev/null/f".into(), |far| {
            offer(far, FULL, &says(words));
            says_no_more(far);
        });
        assert_shown(&ended, 10, words);
    }
}

#[test]
fn words_of_a_login_shell_are_no_reason_either() {
    for (backend, words) in cases() {
        let args = |pipes: &Pipes| {
            let mut args = vec!["hash".into()];
            args.extend(pipes.args());
            args.push("far:f".into());
            args
        };
        // The far end prints them in place of a greeting, and goes.
        let ended = play_hurried(backend, "", LIMIT, args, |far| far.send_bytes(format!("{words}\n").as_bytes()));
        ended.assert_exit(5);
        assert_eq!(ended.lines().len(), 1, "{ended:?}");
    }
}
