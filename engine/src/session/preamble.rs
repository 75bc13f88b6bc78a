//! What a remote shell says before the protocol begins, and how its end is told.
//!
//! Owns the bytes up to the start line or the first frame. Pure: no clock and no stream.
//!
//! ```text
//! text .. -"NONCE haul 0.1.0"-----> Found::Haul
//!         -"NONCE bcmr 0.6.0"-----> Found::Base
//!         -"NONCE none"-----------> Found::Nobody
//!         -"NONCE unusable"-------> Found::Unusable
//!         -"NONCE login"----------> Found::Login     ssh says so at this end; more follows
//!         -head of our own Hello--> Found::Echo      only where a greeting is out already
//!         -head of a first frame--> Found::Frame     only where a greeting is out already
//! ```
//! A start line may have text before it that does not end in a newline; nothing but what is shown may stand behind the
//! nonce, so that a shell which prints the command it was given is not taken for an answer.

use crate::limits::MAX_PREAMBLE_BYTES;
use crate::wire::display::Printable;
use crate::wire::type_byte;

/// Bytes of the output that are kept for the message.
const KEPT_BYTES: usize = 120;
/// Bytes of the longest Error that is taken for a first frame.
const MAX_FIRST_FRAME: u32 = 64 * 1024;

/// What ended the preamble.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// haul answers; its words about itself.
    Haul(String),
    /// A peer of the base protocol answers; its words about itself, and the version of the protocol it speaks.
    Base(String, u8),
    /// There is no program that could answer.
    Nobody,
    /// There is one that cannot be run, or is something else.
    Unusable,
    /// ssh has logged in; whatever comes behind this line is from the other end.
    Login,
    /// What was sent comes back.
    Echo,
    /// Without a start line: the length field and the type of a frame, which has just begun.
    Frame([u8; 5]),
}

/// Reads the output of a remote shell.
#[derive(Debug)]
pub(super) struct Preamble {
    nonce: Vec<u8>,
    /// The line that is not complete yet.
    line: Vec<u8>,
    /// The beginning of the lines before it.
    printed: Vec<u8>,
    bytes: usize,
    recent: [u8; 5],
}

impl Preamble {
    /// The start line begins with `nonce`.
    pub(super) fn new(nonce: Vec<u8>) -> Preamble {
        Preamble { nonce, line: Vec::new(), printed: Vec::new(), bytes: 0, recent: [0xff; 5] }
    }

    /// Takes a prefix of `input`, up to and including what ends the preamble. A frame counts only where `greeted`.
    pub(super) fn feed(&mut self, input: &[u8], greeted: bool) -> (usize, Option<Found>) {
        for (index, &byte) in input.iter().enumerate() {
            self.bytes += 1;
            self.recent.rotate_left(1);
            self.recent[4] = byte;
            self.line.push(byte);
            if greeted && is_first_head(self.recent) {
                return (index + 1, Some(Found::Frame(self.recent)));
            }
            if greeted && is_own_head(self.recent) {
                return (index + 1, Some(Found::Echo));
            }
            if byte == b'\n' {
                if let Some(found) = self.start_line() {
                    self.line.clear();
                    return (index + 1, Some(found));
                }
                let room = KEPT_BYTES.saturating_sub(self.printed.len());
                self.printed.extend_from_slice(&self.line[..self.line.len().min(room)]);
                self.line.clear();
            }
            if self.is_too_long() {
                return (index + 1, None);
            }
        }
        (input.len(), None)
    }

    /// True once a shell has printed more than any login does.
    pub(super) fn is_too_long(&self) -> bool {
        self.bytes > MAX_PREAMBLE_BYTES
    }

    /// The beginning of what was printed, safe to show; `None` if that is nothing.
    pub(super) fn printed(&self) -> Option<String> {
        let all = [self.printed.as_slice(), &self.line].concat();
        let text = all[..all.len().min(KEPT_BYTES)].trim_ascii();
        (!text.is_empty()).then(|| Printable(text).to_string())
    }

    fn start_line(&self) -> Option<Found> {
        let line = self.line.trim_ascii_end();
        let at = line.windows(self.nonce.len().max(1)).rposition(|window| window == self.nonce)?;
        let words = str::from_utf8(&line[at + self.nonce.len()..]).ok()?.strip_prefix(' ')?;
        let (program, version) = words.split_once(' ').unwrap_or((words, ""));
        let own = || Printable(words.as_bytes()).to_string();
        match program {
            "haul" => Some(Found::Haul(own())),
            "bcmr" => Some(Found::Base(own(), protocol_of(version))),
            "none" if version.is_empty() => Some(Found::Nobody),
            "unusable" if version.is_empty() => Some(Found::Unusable),
            "login" if version.is_empty() => Some(Found::Login),
            _ => None,
        }
    }
}

/// The version of the protocol that a release of bcmr speaks: 1 up to 0.6, 2 from 0.7 on. Of an unknown release the older
/// is assumed; a server of the other refuses and says which it speaks.
fn protocol_of(release: &str) -> u8 {
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= (0, 7) => 2,
        _ => 1,
    }
}

/// True for the length and the type of a Welcome, or of an Error of reasonable size. No text has two NULs before such a byte.
fn is_first_head(head: [u8; 5]) -> bool {
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    match head[4] {
        type_byte::WELCOME => (2..=64).contains(&length),
        type_byte::ERROR => (5..=MAX_FIRST_FRAME).contains(&length) && head[2..4] == [0, 0],
        _ => false,
    }
}

/// True for the length and the type of a Hello, which no server sends.
fn is_own_head(head: [u8; 5]) -> bool {
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    head[4] == type_byte::HELLO && (2..=64).contains(&length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "haul-0123";

    /// Feeds it in pieces of `step` bytes; what was found, and how much of the input that took.
    fn feed(input: &[u8], step: usize, greeted: bool) -> (usize, Option<Found>, Preamble) {
        let mut preamble = Preamble::new(NONCE.into());
        let mut taken = 0;
        for piece in input.chunks(step) {
            let (used, found) = preamble.feed(piece, greeted);
            taken += used;
            if found.is_some() || used < piece.len() {
                return (taken, found, preamble);
            }
        }
        (taken, None, preamble)
    }

    #[test]
    fn the_start_line_says_who_answers_wherever_it_stands() {
        let base = |words: &str, version| Some(Found::Base(words.into(), version));
        let table = [
            ("haul-0123 haul 0.1.0\n", Some(Found::Haul("haul 0.1.0".into()))),
            ("Welcome\r\nno newline haul-0123 haul 9\r\n", Some(Found::Haul("haul 9".into()))),
            ("haul-0123 haul\n", Some(Found::Haul("haul".into()))),
            ("haul-0123 bcmr 0.6.0\n", base("bcmr 0.6.0", 1)),
            ("haul-0123 bcmr 0.5.20\n", base("bcmr 0.5.20", 1)),
            ("haul-0123 bcmr 0.7.0-rc.1\n", base("bcmr 0.7.0-rc.1", 2)),
            ("haul-0123 bcmr 0.10.2\n", base("bcmr 0.10.2", 2)),
            ("haul-0123 bcmr 1.0.0\n", base("bcmr 1.0.0", 2)),
            ("haul-0123 bcmr\n", base("bcmr", 1)),
            ("haul-0123 none\n", Some(Found::Nobody)),
            ("haul-0123 unusable\n", Some(Found::Unusable)),
            ("haul-0123 login\n", Some(Found::Login)),
            ("haul-0123 login now\n", None),
            ("haul-0124 none\n", None),
            ("haul-0123none\n", None),
            ("haul-0123\n", None),
            ("sh -c 'echo $0' haul-0123 'haul' ''\n", None),
            ("haul-0123 haul 0.1.0", None),
            ("haul-0123 none today\n", None),
        ];
        for (text, expected) in table {
            for step in [1, 3, 1000] {
                let (taken, found, _) = feed(text.as_bytes(), step, false);
                assert_eq!((found, taken), (expected.clone(), text.len()), "{text:?}");
            }
        }
    }

    #[test]
    fn what_stands_behind_the_start_line_is_left_alone() {
        let input = b"x\nhaul-0123 haul 0.1.0\n\x07\0\0\0\x81\x01";
        let (taken, found, _) = feed(input, 1000, true);
        assert_eq!((taken, found), (input.len() - 6, Some(Found::Haul("haul 0.1.0".into()))));
    }

    #[test]
    fn a_first_frame_is_found_behind_any_text_once_a_greeting_is_out() {
        let welcome = [3, 0, 0, 0, 0x81];
        // The length of this Error is a newline.
        let error = [10, 0, 0, 0, 0x83];
        for head in [welcome, error] {
            for text in ["", "Welcome\n", "no newline", "caf\u{c3}\u{81}\n"] {
                let input = [text.as_bytes(), &head, b"\x01\x07rest"].concat();
                for step in [1, 2, 1000] {
                    let (taken, found, _) = feed(&input, step, true);
                    assert_eq!((taken, found), (text.len() + 5, Some(Found::Frame(head))), "{text:?}");
                    assert_eq!(feed(&input, step, false).1, None);
                }
            }
        }
        for other in [
            [3, 0, 0, 0, 0x84],
            [65, 0, 0, 0, 0x01],
            [3, 0, 0, 1, 0x81],
            [1, 0, 0, 0, 0x81],
            [200, 0, 0, 0, 0x81],
            [9, 0, 1, 0, 0x83],
        ] {
            assert_eq!(feed(&other, 1, true).1, None, "{other:?}");
        }
    }

    #[test]
    fn a_hello_that_comes_back_is_no_answer() {
        for text in ["", "Welcome\n"] {
            let input = [text.as_bytes(), &[4, 0, 0, 0, type_byte::HELLO], b"\x01\x07rest"].concat();
            for step in [1, 2, 1000] {
                let (taken, found, _) = feed(&input, step, true);
                assert_eq!((taken, found), (text.len() + 5, Some(Found::Echo)), "{text:?}");
                assert_eq!(feed(&input, step, false).1, None);
            }
        }
    }

    #[test]
    fn what_ssh_says_at_this_end_is_not_shown_as_words_of_the_remote_shell() {
        let mut preamble = Preamble::new(NONCE.into());
        assert_eq!(preamble.feed(b"haul-0123 login\nhello", false), (16, Some(Found::Login)));
        assert_eq!(preamble.feed(b"hello", false), (5, None));
        assert_eq!(preamble.printed().unwrap(), "hello");
    }

    #[test]
    fn the_message_shows_the_beginning_and_nothing_that_acts_on_a_terminal() {
        let (_, _, preamble) = feed(b"\n\x1b[2Jhello\nthere", 4, false);
        assert_eq!(preamble.printed().unwrap(), "\\x1b[2Jhello\\nthere");
        assert_eq!(feed(b" \r\n\n", 4, false).2.printed(), None);
        let long = feed(&[b'x'; 5000], 100, false).2;
        assert_eq!(long.printed().unwrap().len(), KEPT_BYTES);
    }

    proptest::proptest! {
        #[test]
        fn how_the_output_is_cut_into_pieces_changes_nothing(
            text in "(haul-0123 (haul|bcmr|none|unusable) ?[0-9.]{0,4}|[ -~]{0,9})\n?\\PC{0,9}\n?",
            more in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40),
            step in 1usize..50,
            greeted: bool,
        ) {
            let input = [text.as_bytes(), &more].concat();
            let (taken, found, whole) = feed(&input, 1000, greeted);
            let (taken_in_pieces, found_in_pieces, pieces) = feed(&input, step, greeted);
            proptest::prop_assert_eq!((taken, found), (taken_in_pieces, found_in_pieces));
            proptest::prop_assert_eq!(whole.printed(), pieces.printed());
        }
    }

    #[test]
    fn no_shell_may_print_without_end() {
        let (taken, found, preamble) = feed(&vec![b'y'; MAX_PREAMBLE_BYTES + 5000], 1000, false);
        assert!(preamble.is_too_long() && found.is_none());
        assert_eq!(taken, MAX_PREAMBLE_BYTES + 1);
    }
}
