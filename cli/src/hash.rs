//! `haul hash`: what b3sum prints, computed on the machine where the files are.

use crate::args::{Choice, HashArgs};
use crate::exit::Exit;
use crate::output::{Output, hex, put_name};
use crate::run;
use haul_engine::session::inspect::{self, Question};
use haul_engine::session::report::Report;
use haul_engine::wire::display::{Printable, visible_json};
use serde_json::json;
use std::io::IsTerminal as _;
use std::sync::Arc;

pub(crate) fn run(args: &HashArgs, choice: Choice) -> Exit {
    let (host, operands) = match run::of_one_machine(&args.paths) {
        Ok(operands) => operands,
        Err(why) => return run::usage(&why),
    };
    let mut output = Output::new(&run::quiet(&args.output));
    let peer = match run::peer(host.as_ref(), &args.remote, &operands) {
        Ok(peer) => peer,
        Err(why) => return run::refused(&why),
    };
    let make: run::MakeClient = Arc::new(move |around| {
        let operands = operands.clone();
        inspect::client(around.stream, around.opening, Question::Hash, operands, around.progress, around.reporter)
    });
    let json = args.output.json;
    let terminal = std::io::stdout().is_terminal();
    let ended =
        run::client(choice, &peer, &run::Work::question(make), &mut output, move |report, output| match report {
            Report::Hashed { path, hash } if json => {
                let mut fields = json!({"schema": "haul/1", "type": "hash", "blake3": hex(&hash)});
                put_name(&mut fields, "path", &path);
                output.stdout(visible_json(&fields.to_string()).as_bytes());
                None
            }
            Report::Hashed { path, hash } => {
                let line = if terminal { shown(&path, &hex(&hash)) } else { like_b3sum(&path, &hex(&hash)) };
                output.stdout(line);
                None
            }
            other => Some(other),
        });
    ended.or_absent(&mut output)
}

/// For somebody who reads: no name acts on his terminal.
fn shown(path: &[u8], hash: &str) -> Vec<u8> {
    format!("{hash}  {}", Printable(path)).into_bytes()
}

/// As b3sum, for those who check with it: two spaces, the name as it is; with a backslash in front where a newline or backslash had to be escaped.
fn like_b3sum(path: &[u8], hash: &str) -> Vec<u8> {
    let mut line = Vec::new();
    if path.iter().any(|byte| matches!(byte, b'\n' | b'\r' | b'\\')) {
        line.push(b'\\');
    }
    line.extend_from_slice(hash.as_bytes());
    line.extend_from_slice(b"  ");
    for &byte in path {
        match byte {
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\\' => line.extend_from_slice(b"\\\\"),
            byte => line.push(byte),
        }
    }
    line
}
