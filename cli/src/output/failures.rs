//! What the user sees of failures: each on a line, with a hint once; those for want of room, and those of which there are many
//! with the same words, together.

use super::{Output, put_name, stderr, worse};
use crate::exit::{self, Exit};
use haul_engine::session::{Cause, Failure, Reason};
use haul_engine::wire::display::Printable;
use haul_engine::wire::frame::ErrorCode;
use serde_json::json;

/// Failures in a row for which a peer has the same words that are shown.
const SHOWN_ALIKE: u64 = 8;

impl Output {
    /// A failure that concerns one path.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        let exit = exit::of_failure(failure);
        self.errors += 1;
        self.vanished += u64::from(exit == Exit::Vanished);
        self.exit = worse(self.exit, exit);
        if failure.kind.is_no_room() {
            self.no_room.get_or_insert_with(|| (failure.clone(), 0)).1 += 1;
            return self.json_error(failure, exit);
        }
        if self.is_one_more(failure) {
            return self.json_error(failure, exit);
        }
        self.say(failure, exit);
    }

    /// A peer that has only words for what failed may have the same ones for each of many files: after some they are counted.
    /// They are compared and decide nothing else.
    fn is_one_more(&mut self, failure: &Failure) -> bool {
        let words = words_of(failure);
        if self.args.verbose || words.is_none() {
            self.tell_alike();
            return false;
        }
        match &mut self.alike {
            Some((last, count, hidden)) if words_of(last) == words => {
                (*last, *count) = (failure.clone(), *count + 1);
                let more = *count > SHOWN_ALIKE;
                *hidden += u64::from(more);
                more
            }
            _ => {
                self.tell_alike();
                self.alike = Some((failure.clone(), 1, 0));
                false
            }
        }
    }

    /// Says how many were not shown.
    pub(super) fn tell_alike(&mut self) {
        let Some((failure, _, hidden @ 1..)) = self.alike.take() else { return };
        let files = if hidden == 1 { "file" } else { "files" };
        self.note(&format!("the same of {hidden} more {files}, at last {}", Printable(&failure.path)));
    }

    /// Says once that there was no room, and for how many files.
    pub(super) fn tell_no_room(&mut self) {
        let Some((failure, concerned)) = self.no_room.take() else { return };
        let more = match concerned {
            1 => String::new(),
            number => format!("; {number} files have no room, and nothing more was sent"),
        };
        self.say_line(&failure, &more);
    }

    /// A failure that ends everything.
    pub(crate) fn fatal(&mut self, failure: &Failure, exit: Exit) {
        self.tell_alike();
        self.errors += 1;
        self.exit = exit;
        self.say(failure, exit);
    }

    fn say(&self, failure: &Failure, exit: Exit) {
        self.say_line(failure, "");
        self.json_error(failure, exit);
    }

    fn say_line(&self, failure: &Failure, more: &str) {
        let path = Printable(&failure.path);
        let colon = if failure.path.is_empty() { "" } else { ": " };
        let line = format!("haul: {path}{colon}{}{more}", failure.reason());
        let hint = hint(failure).filter(|hint| self.hinted.borrow_mut().insert(hint));
        self.print(|| {
            stderr(&line);
            if let Some(hint) = hint {
                stderr(&format!("hint: {hint}"));
            }
        });
    }

    fn json_error(&self, failure: &Failure, exit: Exit) {
        let mut fields = json!({"what": failure.reason(), "exit": exit as u8});
        put_name(&mut fields, "path", &failure.path);
        self.json("error", fields);
    }
}

/// What a peer said failed that has no number for it, but for the name of the file.
fn words_of(failure: &Failure) -> Option<Vec<&[u8]>> {
    let Cause::There { code: ErrorCode::NONE | ErrorCode::OTHER, message } = &failure.cause else { return None };
    let name = failure.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let is_path = |word: &&[u8]| {
        let quoted = |byte: &u8| b"'\"`:,;()".contains(byte);
        let start = word.iter().position(|byte| !quoted(byte)).unwrap_or(word.len());
        let end = word.iter().rposition(|byte| !quoted(byte)).map_or(start, |last| last + 1);
        // A bare number may be that of an error.
        let bare = !name.iter().all(u8::is_ascii_digit);
        word[start..end].strip_suffix(name).is_some_and(|before| before.last().map_or(bare, |&byte| byte == b'/'))
    };
    Some(message.split(u8::is_ascii_whitespace).filter(|word| !is_path(word)).collect())
}

/// What to do next, where there is something to do.
fn hint(failure: &Failure) -> Option<&'static str> {
    Some(match failure.kind {
        Reason::Full => "the target's file system is full; the old file, if any, is untouched",
        Reason::Quota => "the target's disk quota is used up; the old file, if any, is untouched",
        Reason::TakesNothing => "the old files, if any, are untouched",
        Reason::ReadOnlyMount => "the target's file system is mounted read-only",
        Reason::NameTooLong => "most file systems allow 255 bytes for one name",
        Reason::TooLarge => "the target's limit on the size of a file (ulimit -f) or its file system does not allow it",
        Reason::NoMemory => "a limit on memory (ulimit -v) is too low, or the machine has none left",
        Reason::NoDescriptors => "the limit on open files (ulimit -n) is too low; fewer --connections need fewer",
        Reason::NeedsRecursive => "use -r to copy directories",
        Reason::NotInstalled => "copy this program to a directory on the PATH there, or name it with --remote-path",
        Reason::StartFiles => {
            "a start file may do that only where a person is (`[ -t 0 ] && exec fish`); slow ones need a --timeout above 30"
        }
        Reason::Unusable => {
            "copy a haul built for that machine to a directory on the PATH there that programs may be run from"
        }
        _ => return None,
    })
}
