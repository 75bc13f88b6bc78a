//! What a listening server says of those who come: one line on stderr for each session, and for each who was not let in.
//!
//! ```text
//! 2026-11-30T19:30:00Z 192.0.2.7:40312 session: 1048700 bytes in, 530 out; ended
//! 2026-11-30T19:30:01Z 192.0.2.8:40313 refused: it does not know the key, or speaks something else
//! ```
//! Strangers can come as often as they like, so no more than some of their lines are written in a second; those that were left
//! out are counted.

use crate::list::utc;
use crate::output;
use haul_engine::limits::STRANGERS_LOGGED;
use haul_engine::session::Failure;
use haul_engine::session::acceptor::{Fate, OnVisit, Visit};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Lines about strangers in one second.
#[derive(Clone, Copy, Default)]
struct Written {
    second: i64,
    lines: u64,
    left_out: u64,
}

/// Writes a line for each visit.
pub(crate) fn log() -> OnVisit {
    let written = Cell::new(Written::default());
    Rc::new(move |visit| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let (lines, next) = lines(&visit, now, written.get());
        written.set(next);
        lines.iter().for_each(|line| output::stderr(line));
    })
}

fn lines(visit: &Visit, now: i64, before: Written) -> (Vec<String>, Written) {
    let (came, left) = visit.traffic;
    let peer = visit.peer.map_or_else(|| "somebody".to_string(), |peer| peer.to_string());
    let line = |text: String| format!("{} {peer} {text}", utc(now));
    let why = match &visit.fate {
        Fate::Served(result) => {
            let how = result.as_ref().err().map_or_else(|| "ended".to_string(), Failure::reason);
            return (vec![line(format!("session: {came} bytes in, {left} out; {how}"))], before);
        }
        // Nothing was said that could have been refused.
        Fate::Unproved(_) if came == 0 => return (Vec::new(), before),
        Fate::Unproved(why) => why,
        Fate::Full => "it knows the key, but all places are taken",
    };
    let Written { second, lines, left_out } = before;
    if second == now && lines >= STRANGERS_LOGGED {
        return (Vec::new(), Written { left_out: left_out + 1, ..before });
    }
    let others = (left_out > 0).then(|| format!("{} {left_out} more were refused before that", utc(now)));
    let lines = if second == now { lines + 1 } else { 1 };
    let text = others.into_iter().chain([line(format!("refused: {why}"))]).collect();
    (text, Written { second: now, lines, left_out: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(came: u64, fate: Fate) -> Visit {
        Visit { peer: Some("192.0.2.7:40312".parse().unwrap()), traffic: (came, 530), fate }
    }

    #[test]
    fn a_session_has_a_line_with_what_it_moved_and_how_it_ended() {
        let say = |result| lines(&visit(1000, Fate::Served(result)), 0, Written::default()).0;
        assert_eq!(say(Ok(())), ["1970-01-01T00:00:00Z 192.0.2.7:40312 session: 1000 bytes in, 530 out; ended"]);
        let failed = say(Err(Failure::connection("cut off", "it was idle")));
        assert_eq!(
            failed,
            ["1970-01-01T00:00:00Z 192.0.2.7:40312 session: 1000 bytes in, 530 out; cut off: it was idle"]
        );
    }

    #[test]
    fn strangers_have_a_line_each_as_long_as_they_are_few() {
        let mut written = Written::default();
        let mut say = |now, came| {
            let (lines, next) = lines(&visit(came, Fate::Unproved("no")), now, written);
            written = next;
            lines
        };
        assert!(say(5, 0).is_empty());
        let told: usize = (0..1000).map(|_| say(5, 1).len()).sum();
        assert_eq!(told as u64, STRANGERS_LOGGED);
        let next = say(6, 1);
        assert!(
            next[0].contains(&format!("{} more were refused", 1000 - STRANGERS_LOGGED)) && next.len() == 2,
            "{next:?}"
        );
        assert_eq!(say(6, 1), ["1970-01-01T00:00:06Z 192.0.2.7:40312 refused: no"]);
    }
}
