//! The result as Markdown.

use super::cell::{Cell, Codec, Operation, Outcome};
use super::peer::Peer;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One row for each pair, one column for each operation; a cell that is not the same for all codecs names them. What
/// failed has a footnote.
pub fn markdown(outcomes: &BTreeMap<Cell, Outcome>) -> String {
    let mut notes: Vec<String> = Vec::new();
    let mut table = String::from("| client | server |");
    for operation in Operation::ALL {
        let _ = write!(table, " {operation} |");
    }
    table += "\n|---|---|";
    table += &"---|".repeat(Operation::ALL.len());
    table += "\n";
    for client in Peer::ALL {
        for server in Peer::ALL {
            let _ = write!(table, "| {client} | {server} |");
            for operation in Operation::ALL {
                let of_codec = |&codec: &Codec| {
                    let cell = Cell { client, server, operation, codec };
                    outcomes.get(&cell).map(|outcome| (codec, outcome))
                };
                let found: Vec<_> = Codec::ALL.iter().filter_map(of_codec).collect();
                let _ = write!(table, " {} |", summary(&found, &mut notes));
            }
            table += "\n";
        }
    }
    for (number, note) in notes.iter().enumerate() {
        let _ = writeln!(table, "{}. {note}", number + 1);
    }
    table
}

fn summary(found: &[(Codec, &Outcome)], notes: &mut Vec<String>) -> String {
    let mut words: Vec<(Codec, String)> = Vec::new();
    for &(codec, outcome) in found {
        let word = match outcome {
            Outcome::Works => "ok".to_string(),
            Outcome::Whole => "whole".to_string(),
            Outcome::Refused => "refused".to_string(),
            Outcome::Failed(why) => format!("FAILED [{}]", note(why, notes)),
        };
        words.push((codec, word));
    }
    let Some((_, first)) = words.first() else { return "n/a".to_string() };
    if words.iter().all(|(_, word)| word == first) {
        return first.clone();
    }
    words.iter().map(|(codec, word)| format!("{}: {word}", codec.option())).collect::<Vec<_>>().join(", ")
}

/// The number of the footnote that says so.
fn note(why: &str, notes: &mut Vec<String>) -> usize {
    let why = why.replace('\n', " ");
    let known = notes.iter().position(|note| *note == why);
    known.unwrap_or_else(|| {
        notes.push(why);
        notes.len() - 1
    }) + 1
}
