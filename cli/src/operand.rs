//! What the user typed as a path: here, or on which machine.

use crate::daemon::Address;
use crate::remote::Host;
use haul_engine::session::plan::Operand;
use haul_engine::wire::path::RequestPath;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Another machine, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Machine {
    /// Through ssh.
    Ssh(Host),
    /// Where a daemon listens.
    Daemon(Address),
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Machine::Ssh(host) => host.fmt(f),
            Machine::Daemon(address) => address.fmt(f),
        }
    }
}

/// A parsed operand.
#[derive(Debug, Clone)]
pub(crate) struct Parsed {
    /// The machine, or `None` for this one.
    pub(crate) host: Option<Machine>,
    pub(crate) operand: Operand,
}

/// Parses an operand. Remote is what has a colon before its first slash, or begins with `ssh://`, `scp://` or `haul://`.
pub(crate) fn parse(text: &OsStr) -> Result<Parsed, String> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err("an empty path names nothing".to_string());
    }
    for scheme in [b"ssh://".as_slice(), b"scp://"] {
        if let Some(rest) = bytes.strip_prefix(scheme) {
            return url(bytes, rest);
        }
    }
    if let Some(rest) = bytes.strip_prefix(b"haul://") {
        return daemon(bytes, rest);
    }
    for scheme in ["rsync://", "sftp://", "ftp://", "http://", "https://", "s3://"] {
        if bytes.starts_with(scheme.as_bytes()) {
            let text = bytes.escape_ascii();
            return Err(format!("`{text}`: haul does not speak {scheme}; write host:path, or ssh://host/path"));
        }
    }
    match split_host(bytes) {
        Some((host, path)) => {
            let host = Host::parse(host, None)?;
            remote(host, bytes, path)
        }
        None => local(bytes),
    }
}

/// Splits `[user@]host:path`; the host may be an IPv6 address in brackets.
fn split_host(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let after_user = bytes.iter().position(|&b| b == b'@' || b == b'/' || b == b':').filter(|&at| bytes[at] == b'@');
    let start = after_user.map_or(0, |at| at + 1);
    let colon = if bytes[start..].first() == Some(&b'[') {
        let close = start + bytes[start..].iter().position(|&b| b == b']')?;
        (bytes.get(close + 1) == Some(&b':')).then_some(close + 1)?
    } else {
        bytes.iter().position(|&b| b == b':')?
    };
    let slash = bytes.iter().position(|&b| b == b'/');
    if colon == 0 || slash.is_some_and(|slash| slash < colon) {
        return None;
    }
    Some((&bytes[..colon], &bytes[colon + 1..]))
}

fn url(whole: &[u8], rest: &[u8]) -> Result<Parsed, String> {
    let slash = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    let bracket = authority.iter().rposition(|&b| b == b']').unwrap_or(0);
    let colon = authority.iter().rposition(|&b| b == b':').filter(|&at| at > bracket);
    let (host, port) = match colon {
        Some(at) => {
            let port = std::str::from_utf8(&authority[at + 1..]).ok().and_then(|port| port.parse::<u16>().ok());
            (&authority[..at], Some(port.ok_or_else(|| format!("`{}` has no valid port", whole.escape_ascii()))?))
        }
        None => (authority, None),
    };
    let path = decode_percent(path).ok_or_else(|| format!("`{}` has a broken % escape", whole.escape_ascii()))?;
    // `/~/x` is below the login directory, as other tools have it.
    let path = path
        .strip_prefix(b"/~")
        .filter(|rest| rest.is_empty() || rest[0] == b'/')
        .map_or(path.clone(), |rest| [b"~", rest].concat());
    remote(Host::parse(host, port)?, whole, &path)
}

/// `host:port/path`: the path is below what the daemon serves, so the slash before it belongs to neither.
fn daemon(whole: &[u8], rest: &[u8]) -> Result<Parsed, String> {
    let slash = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(slash);
    let address = Address::parse(authority).map_err(|why| format!("`{}`: {why}", whole.escape_ascii()))?;
    let path = decode_percent(path).ok_or_else(|| format!("`{}` has a broken % escape", whole.escape_ascii()))?;
    let below = operand(path.strip_prefix(b"/").unwrap_or(&path), whole)?;
    let contents = below.contents || path == b"/";
    Ok(Parsed { host: Some(Machine::Daemon(address)), operand: Operand { contents, ..below } })
}

fn decode_percent(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        out.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = tail;
    }
    Some(out)
}

fn remote(host: Host, shown: &[u8], path: &[u8]) -> Result<Parsed, String> {
    // The login directory is where relative paths begin.
    let path = match path.strip_prefix(b"~") {
        Some(rest) if rest.is_empty() || rest[0] == b'/' => rest.trim_ascii_start().strip_prefix(b"/").unwrap_or(rest),
        Some(_) if path[1..].first().is_some_and(u8::is_ascii_alphabetic) => {
            return Err(format!("`{}`: other users' home directories must be written out", shown.escape_ascii()));
        }
        _ => path,
    };
    Ok(Parsed { host: Some(Machine::Ssh(host)), operand: operand(path, shown)? })
}

fn local(bytes: &[u8]) -> Result<Parsed, String> {
    let path = Path::new(OsStr::from_bytes(bytes));
    // Paths inside the program know no `..`; what the user means by it is looked up here, once.
    let resolved = if path.components().any(|c| c == std::path::Component::ParentDir) {
        let failed = |error| format!("{}: cannot resolve: {error}", path.display());
        match path.canonicalize() {
            Ok(resolved) => resolved,
            Err(_) => {
                let (parent, name) = (path.parent().unwrap_or(path), path.file_name());
                let parent = parent.canonicalize().map_err(failed)?;
                name.map_or(parent.clone(), |name| parent.join(name))
            }
        }
    } else {
        path.to_path_buf()
    };
    let mut path = resolved.into_os_string().into_vec();
    if bytes.ends_with(b"/") && !path.ends_with(b"/") {
        path.push(b'/');
    }
    Ok(Parsed { host: None, operand: operand(&path, bytes)? })
}

fn operand(path: &[u8], shown: &[u8]) -> Result<Operand, String> {
    let parsed = RequestPath::parse(path).map_err(|error| format!("{}: {error}", shown.escape_ascii()))?;
    let contents = path.ends_with(b"/") || path.ends_with(b"/.") || path == b".";
    let trimmed = if shown.len() > 1 && contents { shown.strip_suffix(b"/").unwrap_or(shown) } else { shown };
    Ok(Operand { path: parsed, shown: trimmed.to_vec(), contents })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<String>, String) {
        let parsed = parse(OsStr::new(text)).unwrap();
        let path = String::from_utf8(parsed.operand.path.as_bytes().to_vec()).unwrap();
        (parsed.host.map(|host| host.to_string()), path)
    }

    #[test]
    fn what_has_a_colon_before_a_slash_is_remote() {
        let table = [
            ("f", None, "f"),
            ("./a:b", None, "a:b"),
            ("/a:b", None, "/a:b"),
            ("host:", Some("host"), ""),
            ("host:f", Some("host"), "f"),
            ("host:/x/y", Some("host"), "/x/y"),
            ("me@host:f", Some("me@host"), "f"),
            ("host:~/x", Some("host"), "x"),
            ("host:~", Some("host"), ""),
            ("[::1]:f", Some("::1"), "f"),
            ("me@[::1]:/f", Some("me@::1"), "/f"),
            ("host:a:b", Some("host"), "a:b"),
            ("ssh://host/x", Some("host"), "/x"),
            ("ssh://me@host:2222/x%20y", Some("me@host:2222"), "/x y"),
            ("scp://host/~/x", Some("host"), "x"),
            ("ssh://[::1]:22/x", Some("::1:22"), "/x"),
            ("haul://host:1/x", Some("haul://host:1"), "x"),
            ("haul://127.0.0.1:65535/x%20y/", Some("haul://127.0.0.1:65535"), "x y"),
            ("haul://[::1]:22/x", Some("haul://[::1]:22"), "x"),
            ("haul://host:1//x", Some("haul://host:1"), "/x"),
            ("haul://host:1/", Some("haul://host:1"), ""),
            ("haul://host:1", Some("haul://host:1"), ""),
            ("haul://host:1/~/x", Some("haul://host:1"), "~/x"),
        ];
        for (text, host, path) in table {
            assert_eq!(parsed(text), (host.map(str::to_string), path.to_string()), "{text}");
        }
    }

    #[test]
    fn hosts_that_ssh_would_take_for_options_are_refused() {
        for text in ["-oProxyCommand=x:/f", "me@-host:f", "-l@host:f", "ssh://-x/f", "a;b:f", "$(id):f", "a b:f"] {
            assert!(parse(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn unusable_paths_are_refused() {
        for text in ["", "host:../x", "host:a/../b", "ssh://host:port/x", "ssh://host/%zz", "host:~other/x"] {
            assert!(parse(OsStr::new(text)).is_err(), "{text}");
        }
        for text in [
            "haul://",
            "haul:///x",
            "haul://host/x",
            "haul://host:/x",
            "haul://host:0/x",
            "haul://host:65536/x",
            "haul://host:+1/x",
            "haul://:1/x",
            "haul://::1:1/x",
            "haul://[::1]/x",
            "haul://[::1:1/x",
            "haul://[host]:1/x",
            "haul://me@host:1/x",
            "haul://ho st:1/x",
            "haul://host:1/../x",
            "haul://host:1/a/%2e%2e/b",
            "haul://host:1/%zz",
            "haul://host:1/a%00b",
        ] {
            assert!(parse(OsStr::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_trailing_slash_or_dot_means_the_contents() {
        for (text, contents) in [
            ("d", false),
            ("d/", true),
            (".", true),
            ("d/.", true),
            ("host:d/", true),
            ("haul://h:1/", true),
            ("haul://h:1/d", false),
            ("haul://h:1/d/", true),
        ] {
            assert_eq!(parse(OsStr::new(text)).unwrap().operand.contents, contents, "{text}");
        }
    }
}
