//! Names and messages from elsewhere, made safe to print.
//!
//! Everything a peer or a file system names goes through [`Printable`] on its way to a terminal or a log, so that it can
//! neither move the cursor nor turn text around.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Shows bytes as text; what could act on a terminal is escaped.
///
/// Printable UTF-8 passes unchanged, backslashes too. Control characters, line and paragraph separators, BiDi controls,
/// what has no width of its own and bytes that are not UTF-8 appear as `\n`, `\x1b`, `\u{202e}`, `\u{200b}`, `\xff`.
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

/// Beyond ASCII: C1 controls, BiDi marks, embeddings, overrides and isolates, line and paragraph separators, and whatever
/// else shows nothing of itself, by which two names look like one, or a name carries what nobody sees: soft hyphens, joiners,
/// fillers, variation selectors, tags (`Default_Ignorable_Code_Point` of Unicode 16, and the interlinear marks).
pub fn acts_on_terminal(character: char) -> bool {
    matches!(
        character,
        '\u{80}'..='\u{9f}'
            | '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// JSON text that shows itself: what acts on a terminal stands in it as the escapes that JSON has, and means the same.
pub fn visible_json(text: &str) -> Cow<'_, str> {
    let hides = |character: char| character == '\u{7f}' || acts_on_terminal(character);
    if !text.contains(hides) {
        return Cow::Borrowed(text);
    }
    let mut visible = String::with_capacity(text.len() + 32);
    for character in text.chars() {
        if hides(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(visible, "\\u{unit:04x}");
            }
        } else {
            visible.push(character);
        }
    }
    Cow::Owned(visible)
}

#[cfg(test)]
mod tests {
    use super::{Printable, visible_json};

    #[test]
    fn printable_text_and_backslashes_pass_unchanged() {
        for text in ["", "a b", "Grüße/日本", "back\\slash \\n", "🙂", "~!\"$%"] {
            assert_eq!(Printable(text.as_bytes()).to_string(), text);
        }
    }

    #[test]
    fn whatever_acts_on_a_terminal_is_escaped() {
        let cases: [(&[u8], &str); 17] = [
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
            ("a\u{200b}b\u{ad}c".as_bytes(), "a\\u{200b}b\\u{ad}c"),
            ("\u{e0041}\u{e0fff}\u{feff}".as_bytes(), "\\u{e0041}\\u{e0fff}\\u{feff}"),
            ("\u{2060}\u{2064}\u{3164}\u{115f}".as_bytes(), "\\u{2060}\\u{2064}\\u{3164}\\u{115f}"),
            ("\u{200d}\u{fe0f}\u{180e}".as_bytes(), "\\u{200d}\\u{fe0f}\\u{180e}"),
            ("\u{200e}\u{200f}\u{2066}\u{2069}".as_bytes(), "\\u{200e}\\u{200f}\\u{2066}\\u{2069}"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(Printable(bytes).to_string(), shown);
        }
    }

    #[test]
    fn json_shows_what_it_holds_and_means_the_same() {
        assert_eq!(visible_json("{\"a\":\"é日🙂\"}"), "{\"a\":\"é日🙂\"}");
        assert_eq!(visible_json("\"\u{9b}\u{202e}\u{e0041}\u{7f}\""), "\"\\u009b\\u202e\\udb40\\udc41\\u007f\"");
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
