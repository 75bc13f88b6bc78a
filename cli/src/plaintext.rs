//! Direct connections that are not encrypted: who wants them, and who forbids them.
//!
//! Plaintext takes three things: `--plaintext` here, `--allow-plaintext` there, and HAUL_PLAINTEXT=never at neither end. Over
//! ssh the first one brings the second one along; the third is for whoever keeps a machine.

use crate::args::{Command, DirectWay, RemoteArgs};
use crate::exit::Exit;
use crate::output;

const VARIABLE: &str = "HAUL_PLAINTEXT";

/// True where this machine's environment forbids it.
pub(crate) fn is_forbidden() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value.eq_ignore_ascii_case("never"))
}

/// Refuses a command line that asks for what cannot be.
pub(crate) fn check(command: &Command) -> Result<(), Exit> {
    let remote = match command {
        Command::Copy(args) => &args.remote,
        Command::Ls(args) => &args.remote,
        Command::Hash(args) => &args.remote,
        Command::Doctor(args) => &args.remote,
        Command::Serve(_) | Command::Keygen(_) | Command::Demo(_) => return Ok(()),
    };
    let Some((why, hint)) = objection(remote, is_forbidden()) else { return Ok(()) };
    output::error(why);
    if let Some(hint) = hint {
        output::stderr(&format!("hint: {hint}"));
    }
    Err(Exit::Usage)
}

/// Why not, and what to do.
fn objection(remote: &RemoteArgs, forbidden: bool) -> Option<(&'static str, Option<&'static str>)> {
    match (remote.plaintext, remote.direct) {
        (false, _) => None,
        (true, _) if forbidden => {
            Some(("--plaintext is refused here: HAUL_PLAINTEXT=never is in the environment", None))
        }
        // With a key it is a daemon that is spoken to, and always directly.
        (true, DirectWay::Ssh) if remote.key_file.is_none() => {
            let hint = "say --direct=direct, or --direct=auto to go on over ssh where no TCP connection comes about";
            Some(("--plaintext is for direct connections, and content goes through ssh", Some(hint)))
        }
        (true, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_takes_a_direct_connection_and_nobody_who_forbids_it() {
        let table = [
            (false, DirectWay::Ssh, true, true),
            (true, DirectWay::Ssh, false, false),
            (true, DirectWay::Direct, false, true),
            (true, DirectWay::Auto, false, true),
            (true, DirectWay::Direct, true, false),
            (true, DirectWay::Auto, true, false),
        ];
        for (plaintext, direct, forbidden, fine) in table {
            let remote = RemoteArgs { plaintext, direct, ..RemoteArgs::default() };
            assert_eq!(objection(&remote, forbidden).is_none(), fine, "{plaintext}, {direct:?}, {forbidden}");
            let to_daemon = RemoteArgs { key_file: Some("key".into()), ..remote };
            assert_eq!(objection(&to_daemon, forbidden).is_none(), !(plaintext && forbidden));
        }
    }
}
