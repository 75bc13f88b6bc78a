//! kill -9 at either end, at byte counts spread over the whole transfer: the final name holds the old file or the new
//! one, the survivor ends by itself and says so, and nothing is left behind.

use crate::support::BACKENDS;
use crate::support::processes::{assert_nobody_at_home, signal};
use crate::support::transfer::{Content, Transfer, Way};
use rustix::process::Signal;
use std::time::Duration;

/// Kills for each end, direction and backend.
const KILLS: u64 = 100;
/// The same over a direct connection.
const DIRECT_KILLS: u64 = 10;
/// Of these so many in a hundred must hit a transfer that has begun and is not over; of fewer kills, fewer.
const MIDWAY_PERCENT: u64 = 80;
const DIRECT_MIDWAY_PERCENT: u64 = 50;
const SIZE: usize = 32 * 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Client,
    Server,
}

/// Kills the victim again and again, each time a little later than before.
fn kills(
    backend: &'static str,
    way: Way,
    victim: Victim,
    (kills, percent, options): (u64, u64, &'static [&'static str]),
) {
    let mut transfer = Transfer::new(backend, way, SIZE);
    transfer.options = options;
    let (mut midway, mut complete) = (0, 0);
    for round in 0..kills {
        // From the first byte to 90 %: the last share goes by before a kill can arrive.
        let goal = 1 + transfer.size * 9 / 10 * round / kills;
        let mut client = transfer.start();
        let server = transfer.server();
        let seen = transfer.wait_for_bytes(goal, &mut client);
        match victim {
            Victim::Client if client.is_over() => {}
            Victim::Client => _ = signal(client.pid(), Signal::KILL),
            Victim::Server => _ = signal(server, Signal::KILL),
        }
        let ended = client.finish();
        assert_nobody_at_home(&transfer.pipes.dir().join("home"), Duration::from_secs(20));
        transfer.assert_tidy();
        match (transfer.content(), ended.status.code()) {
            (Content::Old, code) => {
                assert_ne!(code, Some(0), "success was reported: {}", ended.stderr);
                midway += u64::from(seen > 0 && seen < transfer.size);
            }
            (Content::New, _) => {
                complete += 1;
                transfer.restore();
            }
        }
        if victim == Victim::Server && ended.status.code() != Some(0) {
            ended.assert_exit(12);
            // Which of the two depends on whether the client was reading or writing.
            let why = ["the server closed it", "Broken pipe", "Connection reset by peer"]
                .map(|why| format!("haul: connection lost: {why}: stopped at "));
            assert!(why.iter().any(|why| ended.stderr.starts_with(why)), "{ended:?}");
            assert!(ended.stderr.ends_with("; run the same command to do it again\n"), "{ended:?}");
            assert_eq!(ended.lines().len(), 1, "{ended:?}");
        }
    }
    eprintln!("{backend}, {way:?}: {midway} of {kills} kills hit midway, {complete} came after the end");
    assert!(midway * 100 >= percent * kills, "only {midway} of {kills} kills hit a transfer midway");
}

macro_rules! kills {
    ($($name:ident: $backend:literal, $way:ident, $victim:ident;)*) => {
        $(#[test]
        fn $name() {
            kills($backend, Way::$way, Victim::$victim, (KILLS, MIDWAY_PERCENT, &[]));
        })*
    };
}

#[test]
fn over_a_direct_connection_a_kill_leaves_the_old_file_or_the_new_one() {
    for backend in BACKENDS {
        for (way, victim) in [(Way::Up, Victim::Client), (Way::Down, Victim::Client)] {
            kills(backend, way, victim, (DIRECT_KILLS, DIRECT_MIDWAY_PERCENT, &["--direct=direct"]));
        }
        for (way, victim) in [(Way::Up, Victim::Server), (Way::Down, Victim::Server)] {
            kills(backend, way, victim, (DIRECT_KILLS, DIRECT_MIDWAY_PERCENT, &["--direct=direct"]));
        }
    }
}

kills! {
    a_client_killed_while_it_sends_leaves_the_old_file_or_the_new_one_with_uring: "uring", Up, Client;
    a_client_killed_while_it_sends_leaves_the_old_file_or_the_new_one_with_poll: "poll", Up, Client;
    a_client_killed_while_it_receives_leaves_the_old_file_or_the_new_one_with_uring: "uring", Down, Client;
    a_client_killed_while_it_receives_leaves_the_old_file_or_the_new_one_with_poll: "poll", Down, Client;
    a_server_killed_while_it_receives_leaves_the_old_file_or_the_new_one_with_uring: "uring", Up, Server;
    a_server_killed_while_it_receives_leaves_the_old_file_or_the_new_one_with_poll: "poll", Up, Server;
    a_server_killed_while_it_sends_leaves_the_old_file_or_the_new_one_with_uring: "uring", Down, Server;
    a_server_killed_while_it_sends_leaves_the_old_file_or_the_new_one_with_poll: "poll", Down, Server;
}
