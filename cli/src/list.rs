//! `haul ls`

use crate::args::{Choice, LsArgs};
use crate::exit::Exit;
use crate::output::{Output, put_name};
use crate::run;
use haul_engine::session::inspect::{self, Question};
use haul_engine::session::report::Report;
use haul_engine::wire::display::{Printable, visible_json};
use haul_engine::wire::frame::{Attributes, Kind};
use serde_json::json;
use std::sync::Arc;

pub(crate) fn run(args: &LsArgs, choice: Choice) -> Exit {
    let (host, operands) = match run::of_one_machine(&args.paths) {
        Ok(operands) => operands,
        Err(why) => return run::usage(&why),
    };
    let mut output = Output::new(&run::quiet(&args.output));
    let peer = match run::peer(host.as_ref(), &args.remote, &operands) {
        Ok(peer) => peer,
        Err(why) => return run::refused(&why),
    };
    let question = Question::List { recursive: args.recursive };
    let make: run::MakeClient = Arc::new(move |around| {
        let operands = operands.clone();
        inspect::client(around.stream, around.opening, question, operands, around.progress, around.reporter)
    });
    let (long, json) = (args.long, args.output.json);
    let ended =
        run::client(choice, &peer, &run::Work::question(make), &mut output, move |report, output| match report {
            Report::Listed { path, attributes, link } => {
                if json {
                    output.stdout(visible_json(&object(&path, &attributes, &link)).as_bytes());
                } else {
                    output.stdout(line(&path, &attributes, &link, long));
                }
                None
            }
            other => Some(other),
        });
    ended.or_absent(&mut output)
}

fn line(path: &[u8], attributes: &Attributes, link: &[u8], long: bool) -> String {
    let mut name = Printable(path).to_string();
    if attributes.kind == Kind::Directory {
        name.push('/');
    }
    if !link.is_empty() {
        name += &format!(" -> {}", Printable(link));
    }
    if !long {
        return name;
    }
    let (time, size) = (utc(attributes.mtime.seconds), attributes.size);
    format!("{}{} {size:>14} {time} {name}", letter(attributes.kind), permissions(attributes.mode))
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::Regular => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
    }
}

fn permissions(mode: u32) -> String {
    (0..9).map(|bit| if mode & (0o400 >> bit) != 0 { ['r', 'w', 'x'][bit % 3] } else { '-' }).collect()
}

/// `2026-11-22T19:30:00Z`
pub(crate) fn utc(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days since 1970-01-01, proleptic Gregorian; eras of 400 years begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn object(path: &[u8], attributes: &Attributes, link: &[u8]) -> String {
    let kind = format!("{:?}", attributes.kind).to_lowercase();
    let (seconds, nanoseconds) = (attributes.mtime.seconds, attributes.mtime.nanoseconds);
    let mut fields = json!({
        "schema": "haul/1", "type": "entry", "kind": kind, "size": attributes.size, "mode": attributes.mode,
        "mtime": seconds, "mtime_ns": nanoseconds,
    });
    put_name(&mut fields, "path", path);
    if !link.is_empty() {
        put_name(&mut fields, "link", link);
    }
    fields.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_utc() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn permissions_look_like_those_of_ls() {
        assert_eq!(permissions(0o755), "rwxr-xr-x");
        assert_eq!(permissions(0o640), "rw-r-----");
    }
}
