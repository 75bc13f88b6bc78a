//! Names and messages from elsewhere, made safe to print.
//!
//! Everything a peer or a file system names goes through [`Printable`] on its way to a terminal or a log, so that it can
//! neither move the cursor nor turn text around.

use std::fmt::{self, Write};

/// Shows bytes as text; what could act on a terminal is escaped.
///
/// Printable UTF-8 passes unchanged, backslashes too. Control characters, line and paragraph separators, BiDi controls
/// and bytes that are not UTF-8 appear as `\n`, `\x1b`, `\u{202e}`, `\xff`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\n' => f.write_str("\\n")?,
                    '\r' => f.write_str("\\r")?,
                    '\t' => f.write_str("\\t")?,
                    '\0'..='\x1f' | '\x7f' => write!(f, "\\x{:02x}", u32::from(character))?,
                    _ if acts_on_terminal(character) => write!(f, "\\u{{{:x}}}", u32::from(character))?,
                    _ => f.write_char(character)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Beyond ASCII: C1 controls, BiDi marks, embeddings, overrides and isolates, line and paragraph separators.
fn acts_on_terminal(character: char) -> bool {
    matches!(
        character,
        '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::Printable;

    #[test]
    fn printable_text_and_backslashes_pass_unchanged() {
        for text in ["", "a b", "Grüße/日本", "back\\slash \\n", "🙂", "~!\"$%"] {
            assert_eq!(Printable(text.as_bytes()).to_string(), text);
        }
    }

    #[test]
    fn whatever_acts_on_a_terminal_is_escaped() {
        let cases: [(&[u8], &str); 13] = [
            (b"a\nb", "a\\nb"),
            (b"a\rb", "a\\rb"),
            (b"\t", "\\t"),
            (b"\x1b[31mred", "\\x1b[31mred"),
            (b"\0\x7f", "\\x00\\x7f"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"a\xc3", "a\\xc3"),
            (b"\xe2\x80x", "\\xe2\\x80x"),
            ("\u{9b}2J".as_bytes(), "\\u{9b}2J"),
            (b"\x9b2J", "\\x9b2J"),
            ("\u{202e}gpj".as_bytes(), "\\u{202e}gpj"),
            ("\u{2028}\u{2029}\u{61c}".as_bytes(), "\\u{2028}\\u{2029}\\u{61c}"),
            ("\u{200e}\u{200f}\u{2066}\u{2069}".as_bytes(), "\\u{200e}\\u{200f}\\u{2066}\\u{2069}"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(Printable(bytes).to_string(), shown);
        }
    }

    #[test]
    fn no_single_byte_and_no_two_bytes_let_a_control_through() {
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                let shown = Printable(&[first, second]).to_string();
                assert!(!shown.chars().any(char::is_control), "{first:#x} {second:#x} shows as {shown:?}");
            }
        }
    }
}
