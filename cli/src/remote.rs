//! The other machine: a host name that is safe to hand to ssh, and the ssh process that starts haul there.

use crate::args::RemoteArgs;
use haul_engine::session::Failure;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Command, Stdio};

/// `[user@]host[:port]`, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Host {
    user: Option<Vec<u8>>,
    name: Vec<u8>,
    port: Option<u16>,
}

impl Host {
    /// Refuses what ssh would take for an option and what a shell would interpret.
    pub(crate) fn parse(text: &[u8], port: Option<u16>) -> Result<Host, String> {
        let (user, name) = match text.iter().rposition(|&b| b == b'@') {
            Some(at) => (Some(text[..at].to_vec()), &text[at + 1..]),
            None => (None, text),
        };
        let name = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]")).unwrap_or(name).to_vec();
        let plain = |part: &[u8]| {
            !part.is_empty()
                && part[0] != b'-'
                && part.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:%@+\\".contains(b) || *b >= 0x80)
        };
        if !plain(&name) || user.as_deref().is_some_and(|user| !plain(user)) {
            return Err(format!("`{}` is not a host name", text.escape_ascii()));
        }
        Ok(Host { user, name, port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{}@", String::from_utf8_lossy(user))?;
        }
        f.write_str(&String::from_utf8_lossy(&self.name))?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// The script that finds haul and starts it. It prints a line first, by which the client knows where the output of the
/// login shell ends, or that line with ` none` behind it. It is a constant: the line and the program come as arguments.
const START: &str = "PATH=\"$PATH:$HOME/.local/bin:$HOME/.cargo/bin:/usr/local/bin\"; \
    if command -v \"$1\" >/dev/null 2>&1; then echo \"$0\"; exec \"$1\" serve --root /; \
    else echo \"$0 none\"; exit 127; fi";

/// A line no login shell prints by chance: 16 random bytes in hex.
pub(crate) fn start_line() -> String {
    let mut random = [0; 16];
    // Only uniqueness within one connection matters; a failure leaves zeros, which are as good.
    let _ = getrandom::fill(&mut random);
    random.iter().fold(String::from("haul-"), |line, byte| format!("{line}{byte:02x}"))
}

/// Starts haul on `host`: its stdin and stdout are the stream, its stderr is ours.
pub(crate) fn spawn(host: &Host, args: &RemoteArgs, start_line: &str) -> Result<Child, Failure> {
    let shell = args.rsh.as_deref().unwrap_or("ssh");
    let unusable = |why| Failure::rule(shell.as_bytes(), "cannot be the remote shell", why);
    let mut words = split_words(shell).map_err(unusable)?.into_iter();
    let program = words.next().ok_or_else(|| unusable("it is empty"))?;
    let mut command = Command::new(&program);
    command.args(words);
    if let Some(file) = &args.ssh_config {
        command.arg("-F").arg(file);
    }
    if let Some(file) = &args.identity {
        command.arg("-i").arg(file);
    }
    if let Some(jump) = &args.jump {
        command.arg("-J").arg(jump);
    }
    for option in &args.ssh_option {
        command.arg("-o").arg(option);
    }
    if let Some(port) = args.port.or(host.port) {
        command.arg("-p").arg(port.to_string());
    }
    if let Some(user) = &host.user {
        command.arg("-l").arg(OsString::from_vec(user.clone()));
    }
    command.arg("--").arg(OsString::from_vec(host.name.clone()));
    command.arg(format!("exec sh -c {} {start_line} {}", quote(START), quote(&args.remote_path)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().map_err(|error| Failure::here(program.as_bytes(), "cannot start", error.into()))
}

/// Quotes a word for any Bourne-like shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Splits the argument of -e into words; single and double quotes and backslashes work as in a shell.
fn split_words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quoted, c) {
            (Some(quote), c) if c == quote => quoted = None,
            (None, '\'' | '"') => {
                quoted = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quoted.is_some() {
        return Err("it has an open quote");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remote_shell_is_split_as_a_shell_would() {
        let table = [
            ("ssh", vec!["ssh"]),
            ("ssh -F c", vec!["ssh", "-F", "c"]),
            ("ssh -o 'User x' \"a b\" c\\ d", vec!["ssh", "-o", "User x", "a b", "c d"]),
            ("  ''  ", vec![""]),
        ];
        for (text, words) in table {
            assert_eq!(split_words(text).unwrap(), words, "{text}");
        }
        assert!(split_words("ssh 'x").is_err());
    }

    #[test]
    fn quoted_words_survive_a_shell() {
        for word in ["haul", "/a b/haul", "it's", "$(id)", "a\"b"] {
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes());
        }
    }
}
