//! `haul keygen`, and the files that it writes: the key of a daemon, which its clients know too.
//!
//! A key file is one line, `haul-key-1 ` and 64 hex digits. Whoever can read it is let in, so it is taken only where nobody
//! else can: a regular file, of the user's or of root's, without any bit for group and others.

use crate::args::KeygenArgs;
use crate::exit::Exit;
use crate::output;
use crate::remote;
use haul_engine::wire::seal::Secret;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use zeroize::Zeroizing;

/// What the line begins with: a file of another kind, or of a later version, is not taken for a key.
const LABEL: &str = "haul-key-1 ";
/// Bytes of the label, of 64 digits, and of the end of the line.
const LINE_BYTES: usize = LABEL.len() + 64 + 1;

pub(crate) fn run(args: &KeygenArgs) -> Exit {
    let key = line(&Secret::from_bytes(remote::random()));
    let (written, name) = match &args.file {
        Some(path) => (write(path, &key), path.display().to_string()),
        None => {
            let mut stdout = io::stdout().lock();
            (stdout.write_all(key.as_bytes()).and_then(|()| stdout.flush()), "stdout".to_string())
        }
    };
    match written {
        Ok(()) => Exit::Success,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            output::error(&format!("{name}: there is a file already, and a key is never overwritten"));
            Exit::FileIo
        }
        Err(error) => {
            output::error(&format!("{name}: cannot write the key: {}", output::reason(&error)));
            Exit::FileIo
        }
    }
}

/// Leaves the whole key there, or nothing.
fn write(path: &Path, key: &str) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        // Who is told to keep a key there shall not have to make the place first; it is nobody else's.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(key.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written
}

/// The key in the file at `path`, or why it is not taken.
pub(crate) fn read(path: &Path) -> Result<Secret, String> {
    let failed = |error: io::Error| format!("{}: cannot read the key: {}", path.display(), output::reason(&error));
    let refused = |why: &str| Err(format!("{}: not taken as a key: {why}", path.display()));
    // A pipe that nobody writes to must not keep us waiting.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return refused("it is no regular file");
    }
    if meta.mode() & 0o077 != 0 {
        return refused("others may use it too; `chmod 600` makes it yours alone");
    }
    if meta.uid() != 0 && meta.uid() != rustix::process::geteuid().as_raw() {
        return refused("it belongs to somebody else");
    }
    let mut text = Zeroizing::new([0; LINE_BYTES + 1]);
    let mut len = 0;
    let mut file = file;
    while len < text.len() {
        match file.read(&mut text[len..]).map_err(failed)? {
            0 => break,
            read => len += read,
        }
    }
    match parse(&text[..len]) {
        Some(key) => Ok(key),
        None => refused("a key is one line, as `haul keygen` writes it"),
    }
}

/// The line of a key, its end included.
fn line(key: &Secret) -> Zeroizing<String> {
    let mut line = Zeroizing::new(String::with_capacity(LINE_BYTES));
    line.push_str(LABEL);
    for byte in key.expose() {
        for digit in [byte >> 4, byte & 15] {
            line.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
        }
    }
    line.push('\n');
    line
}

fn parse(text: &[u8]) -> Option<Secret> {
    let digits = text.strip_prefix(LABEL.as_bytes())?;
    let digits = digits.strip_suffix(b"\n").unwrap_or(digits);
    if digits.len() != 64 {
        return None;
    }
    let mut key = Zeroizing::new([0; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(Secret::from_bytes(*key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = Secret::from_bytes(std::array::from_fn(|index| 7 + 8 * index as u8));
        let line = line(&key);
        assert_eq!(line.len(), LINE_BYTES);
        assert!(line.starts_with("haul-key-1 070f17"), "{}", *line);
        for text in [line.as_str(), line.trim_end(), &line.to_uppercase().replace("HAUL-KEY", "haul-key")] {
            assert_eq!(parse(text.as_bytes()).unwrap().expose(), key.expose());
        }
    }

    #[test]
    fn nothing_else_is_a_key() {
        let digits = "0".repeat(64);
        let table = [
            String::new(),
            digits.clone(),
            format!("haul-key-2 {digits}"),
            format!("haul-key-1 {}", &digits[1..]),
            format!("haul-key-1 {digits}0"),
            format!("haul-key-1 {digits}\n\n"),
            format!("haul-key-1 {digits}\r\n"),
            format!("haul-key-1  {digits}"),
            format!("haul-key-1 {}g", &digits[1..]),
            format!("haul-key-1 +{}", &digits[1..]),
            format!(" haul-key-1 {digits}"),
        ];
        for text in table {
            assert!(parse(text.as_bytes()).is_none(), "{text:?}");
        }
    }
}
