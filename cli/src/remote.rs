//! The other machine: a host name that is safe to hand to ssh, and the ssh process that starts whoever can answer there.

use crate::args::{DirectWay, Ports, RemoteArgs};
use haul_engine::limits::{HANDSHAKE_TIMEOUT, LOGIN_TIMEOUT, SECOND};
use haul_engine::session::Failure;
use haul_engine::session::client::{Opening, Patience, Reached, Wish};
use haul_engine::session::plan::Operand;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
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

/// The script that finds who can answer, says so in one line by which the client knows where the output of the login shell
/// ends, and starts it. It is a constant: `$0` is the nonce of that line, `$1` the program, `$2` the root for a bcmr, `$3` not
/// empty where a haul may leave direct connections unencrypted, `$4` the ports at which it may listen, `$5` the name under
/// which it gathers with other logins. No quote, no newline and no `!` stands in it, so that every login shell hands it on as
/// it is. Asking the program for its version costs 2 ms and finds what is not for this machine, may not be run, or is
/// something else. What a bcmr says on stderr stands in its answers too, there without dumps of the data it was sent. Without
/// SSH_ORIGINAL_COMMAND a haul that a forced command has evaluated this script for does not print a start line of its own.
/// HAUL_PROBE in the environment there, for tests, takes the place of the directories that are looked at behind the PATH.
const START: &str = "PATH=\"$PATH:${HAUL_PROBE:-$HOME/.local/bin:$HOME/.cargo/bin:/usr/local/bin}\"; unset SSH_ORIGINAL_COMMAND; \
    set -f; n=$0; p=$1; r=$2; a=$3; q=$4; g=$5; for c in \"$p\" bcmr; do v=$(\"$c\" --version 2>/dev/null </dev/null); case $v in \
    \"haul \"*) set -- $v; echo \"$n haul $2\"; exec \"$c\" serve --root / ${a:+--allow-plaintext} ${q:+--port-range \"$q\"} \
    ${g:+--gather \"$g\"};; \
    \"bcmr \"*) set -- $v; echo \"$n bcmr $2\"; exec \"$c\" serve ${r:+--root \"$r\"} 2>/dev/null;; esac; done; \
    if command -v \"$p\" >/dev/null 2>&1; then echo \"$n unusable\"; else echo \"$n none\"; fi; exit 127";

/// As `START`, to examine the other end: says who could answer, answers each `ping`, and on `go` lets haul say what it
/// finds, at the directory `$2` if that is not empty.
const EXAMINE: &str = "PATH=\"$PATH:${HAUL_PROBE:-$HOME/.local/bin:$HOME/.cargo/bin:/usr/local/bin}\"; unset SSH_ORIGINAL_COMMAND; \
    set -f; n=$0; p=$1; d=$2; w=none; if command -v \"$p\" >/dev/null 2>&1; then w=unusable; fi; \
    for c in bcmr \"$p\"; do v=$(\"$c\" --version 2>/dev/null </dev/null); case $v in \
    \"haul \"*|\"bcmr \"*) set -- $v; w=\"$1 $2\";; esac; done; echo \"$n $w\"; \
    while read -r l; do case $l in ping) echo pong;; \
    go) exec \"$p\" doctor --json ${d:+\"$d\"} </dev/null 2>/dev/null;; esac; done";

/// What scp tells ssh, too: a configuration for people at a terminal must not reach a program's session. No terminal, no
/// other command in place of ours, no ports forwarded, nothing run here.
const FOR_PROGRAMS: [&str; 4] =
    ["RequestTTY=no", "RemoteCommand=none", "ClearAllForwardings=yes", "PermitLocalCommand=no"];

/// An option of ssh that is left to those who name it on the command line.
const LOCAL_COMMAND: &str = "localcommand";

/// Questions of ssh without an answer after which nobody is there.
const QUESTIONS: u32 = 2;

/// What stands before the 32 hex digits of a nonce.
const NONCE: &str = "haul-";

/// Text that no login shell prints by chance: 16 random bytes in hex.
fn nonce() -> String {
    let mut random = [0; 16];
    // Only uniqueness within one connection matters; a failure leaves zeros, which are as good.
    let _ = getrandom::fill(&mut random);
    format!("{NONCE}{}", hex(&random))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// Bytes that nobody can guess, for keys: without them there is no going on.
pub(crate) fn random() -> [u8; 32] {
    let mut random = [0; 32];
    getrandom::fill(&mut random).expect("the system gives random bytes");
    random
}

/// The start line that a client waits for whose command sshd has kept for us (SSH_ORIGINAL_COMMAND), because the account
/// runs this program in its place.
pub(crate) fn start_line_for(original_command: &[u8]) -> Option<String> {
    let digits = original_command.windows(NONCE.len()).position(|window| window == NONCE.as_bytes())? + NONCE.len();
    let digits = original_command.get(digits..digits + 32)?;
    let hex = digits.iter().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit));
    hex.then(|| format!("{NONCE}{} haul {}", String::from_utf8_lossy(digits), env!("CARGO_PKG_VERSION")))
}

/// Where the remote operands of a command begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Begin {
    /// In the login directory, all of them.
    Login,
    /// In `/`, all of them.
    Root,
    Both,
}

/// How the other machine is reached, as often as it must be.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) host: Host,
    args: RemoteArgs,
    begin: Begin,
    /// Several connections are wanted: each must be one.
    independent: bool,
    /// The name under which the servers of all of them gather in one process.
    gather: String,
}

impl Dial {
    /// For a command with these remote operands.
    pub(crate) fn new<'a>(host: &Host, args: &RemoteArgs, operands: impl IntoIterator<Item = &'a Operand>) -> Dial {
        let (absolute, relative): (Vec<bool>, Vec<bool>) =
            operands.into_iter().map(|operand| operand.path.is_absolute()).partition(|&absolute| absolute);
        let begin = match (absolute.is_empty(), relative.is_empty()) {
            (true, _) => Begin::Login,
            (false, true) => Begin::Root,
            (false, false) => Begin::Both,
        };
        Dial { host: host.clone(), args: args.clone(), begin, independent: false, gather: String::new() }
    }

    /// True when content may take no other way than a TCP connection of its own.
    pub(crate) fn must_be_direct(&self) -> bool {
        self.args.direct == DirectWay::Direct
    }

    /// Each connection a login of its own, whatever ssh is configured to share.
    pub(crate) fn independent(mut self) -> Dial {
        self.independent = true;
        self
    }

    /// All logins served by one process, where that can be: one may then write parts of a file that another one has begun.
    pub(crate) fn gathered(mut self) -> Dial {
        if self.args.direct == DirectWay::Ssh {
            self.gather = hex(&random()[..16]);
        }
        self
    }

    /// Starts whoever can answer there: its stdin and stdout are the stream, its stderr is ours. After a Redial with the
    /// version that the report named.
    pub(crate) fn start(&self, redialled: Option<u8>) -> Result<(Child, Opening), Failure> {
        let nonce = nonce();
        // A bcmr takes relative paths from the login directory only where it serves just that.
        let root = if self.begin == Begin::Root { "/" } else { "" };
        let plain = if self.args.plaintext { "plaintext" } else { "" };
        let ports = self.args.port_range.map(|ports| ports.to_string()).unwrap_or_default();
        let words = [START, &nonce, &self.args.remote_path, root, plain, &ports, &self.gather].map(quote).join(" ");
        let child = start(self.command(Purpose::Start(&nonce), &in_sh(&words))?)?;
        let mixed = "it takes absolute paths or relative ones, not both in one run";
        let direct = match self.args.direct {
            DirectWay::Ssh => None,
            way => {
                let (required, plain) = (way == DirectWay::Direct, self.args.plaintext);
                let ports = self.args.port_range.map(|Ports { first, last }| (first, last));
                Some(Wish { required, plain, random: random(), invitation: None, ports, reached: Some(self.reached()) })
            }
        };
        let opening = Opening {
            redialled,
            refuse_base: (self.begin == Begin::Both).then_some(mixed),
            patience: self.patience(),
            logged_in: self.shares_a_login(),
            ..Opening::full(Some(nonce.into_bytes())).with_pulse().with_direct(direct)
        };
        let opening = if self.gather.is_empty() { opening } else { opening.with_gathering() };
        Ok((child, opening))
    }

    /// How long the first connection, and further ones through ssh, wait.
    pub(crate) fn patience(&self) -> Patience {
        patience(self.args.timeout)
    }

    /// How long direct connections wait: so much less that what they carried can go on otherwise in time, and that one that
    /// does not come about again has not taken all of it.
    pub(crate) fn direct_patience(&self) -> Patience {
        let mut patience = self.patience();
        patience.alive /= 2;
        patience.handshake /= 3;
        patience
    }

    /// Starts the SFTP server there, which does without any program of ours. `None` with a remote shell of the user's: it
    /// need not know what a subsystem is.
    pub(crate) fn sftp(&self) -> Option<Result<Child, Failure>> {
        self.args.rsh.is_none().then(|| start(self.command(Purpose::Subsystem, "sftp")?))
    }

    /// Starts whoever can examine himself there, see `EXAMINE`, and this directory if it is not empty. What its start line
    /// begins with.
    pub(crate) fn examine(&self, directory: &str) -> Result<(Child, Vec<u8>), Failure> {
        let nonce = nonce();
        let words = [EXAMINE, &nonce, &self.args.remote_path, directory].map(quote).join(" ");
        Ok((start(self.command(Purpose::Start(&nonce), &in_sh(&words))?)?, nonce.into_bytes()))
    }

    /// One login more, which says a line that begins with the nonce and stays until its stdin ends. Neither asks the user
    /// anything nor says why it does not come about.
    pub(crate) fn further(&self) -> Result<(Child, Vec<u8>), Failure> {
        let nonce = nonce();
        let mut dial = self.clone();
        if dial.args.rsh.is_none() {
            dial.args.ssh_option.push("BatchMode=yes".into());
        }
        let mut command = dial.command(Purpose::Shell, &in_sh(&format!("'echo {nonce}; read x'")))?;
        command.stderr(Stdio::null());
        Ok((start(command)?, nonce.into_bytes()))
    }

    /// True where the user's configuration of ssh speaks of `option`: what stands on the command line would win.
    fn is_configured(&self, option: &str) -> bool {
        let own = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".ssh/config"));
        let config = self.args.ssh_config.clone().map(PathBuf::from).or_else(own);
        let text = config.and_then(|config| std::fs::read(config).ok()).unwrap_or_default();
        String::from_utf8_lossy(&text).to_ascii_lowercase().contains(option)
    }

    /// True where the user's command line for ssh speaks of `option`.
    fn is_said(&self, option: &str) -> bool {
        let said = self.args.ssh_option.iter().map(OsString::as_os_str).chain(self.args.rsh.as_deref().map(OsStr::new));
        said.map(|words| words.to_string_lossy().to_ascii_lowercase()).any(|words| words.contains(option))
    }

    /// True where ssh goes through a login that is there already (ControlMaster), and so says nothing of one.
    fn shares_a_login(&self) -> bool {
        if self.independent || !(self.is_said("controlpath") || self.is_configured("controlpath")) {
            return false;
        }
        let mut words = split_words(self.args.rsh.as_deref().unwrap_or("ssh")).unwrap_or_default().into_iter();
        let Some(program) = words.next().filter(|program| is_ssh(program)) else { return false };
        let mut command = Command::new(program);
        command.args(words);
        self.configure(&mut command, true, None);
        command.args(["-O", "check", "--"]).arg(OsString::from_vec(self.host.name.clone()));
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    fn command(&self, purpose: Purpose<'_>, remote: &str) -> Result<Command, Failure> {
        let args = &self.args;
        let shell = args.rsh.as_deref().unwrap_or("ssh");
        let unusable = |why| Failure::rule(shell.as_bytes(), "cannot be the remote shell", why);
        let mut words = split_words(shell).map_err(unusable)?.into_iter();
        let program = words.next().ok_or_else(|| unusable("it is empty"))?;
        let mut command = match purpose {
            Purpose::Start(_) | Purpose::Shell => Command::new(&program),
            // A terminal's Ctrl-C is for haul alone: it has a temporary file to remove through this connection.
            Purpose::Subsystem => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "trap '' INT; exec \"$@\"", "sh"]).arg(&program);
                shell
            }
        };
        command.args(words);
        let announced = if let Purpose::Start(nonce) = purpose { Some(nonce) } else { None };
        self.configure(&mut command, is_ssh(&program), announced);
        if matches!(purpose, Purpose::Subsystem) {
            command.arg("-s");
        }
        command.arg("--").arg(OsString::from_vec(self.host.name.clone())).arg(remote);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command)
    }

    /// Where a direct connection may go: to the machine that ssh reaches, by its own configuration.
    fn reached(&self) -> Reached {
        let own = || String::from_utf8_lossy(&self.host.name).into_owned();
        let asked = self.ask_ssh();
        let known = |name: &str| format!("which is no address of `{name}` as far as this end knows, and");
        let (name, otherwise) = match &asked {
            Some((name, false)) => (name.clone(), "which is not the address that ssh reached".to_string()),
            // What is reached there is known to that other one.
            Some((name, true)) => {
                (name.clone(), format!("{} ssh goes through another machine or program", known(name)))
            }
            None => (own(), format!("{} -e does not say what it reached", known(&own()))),
        };
        let mut addresses: Vec<SocketAddr> =
            (name.as_str(), 0).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
        if asked.is_none() {
            // What no ssh has started says that it is on this machine; nothing of what others say leads to another one.
            addresses.extend([SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))]);
        }
        Reached { addresses, otherwise }
    }

    /// What ssh calls the machine, by its own configuration, and whether it goes there through other machines or programs.
    /// `None` with another remote shell.
    fn ask_ssh(&self) -> Option<(String, bool)> {
        let mut words = split_words(self.args.rsh.as_deref().unwrap_or("ssh")).ok()?.into_iter();
        // What stands elsewhere may be anything, and not know what is asked here.
        let mut command = Command::new(words.next().filter(|program| program == "ssh")?);
        command.args(words);
        self.configure(&mut command, true, None);
        command.arg("-G").arg("--").arg(OsString::from_vec(self.host.name.clone()));
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let value =
            |key| text.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key)).map(|(_, v)| v);
        let proxied =
            ["proxyjump", "proxycommand"].into_iter().any(|key| value(key).is_some_and(|value| value != "none"));
        Some((value("hostname")?.to_string(), proxied))
    }

    /// What the user and we want of ssh, which says once it has logged in where it is `announced` by a nonce.
    fn configure(&self, command: &mut Command, is_ssh: bool, announced: Option<&str>) {
        let args = &self.args;
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
        // Behind what the user says, which comes first and wins.
        if let Some(nonce) = announced.filter(|_| is_ssh && !self.is_said(LOCAL_COMMAND)) {
            // The one command that is run here, whatever the configuration says, and before anything comes from there.
            command.args(["-o", "PermitLocalCommand=yes", "-o", &format!("LocalCommand=echo {nonce} login")]);
        }
        if is_ssh {
            command.args(FOR_PROGRAMS.iter().flat_map(|option| ["-o", option]));
        }
        if self.independent && is_ssh {
            command.args(["-o", "ControlMaster=no", "-o", "ControlPath=none"]);
        }
        if is_ssh && !self.is_configured("serveralive") {
            command.args(questions(self.patience().alive));
        }
        if let Some(port) = args.port.or(self.host.port) {
            command.arg("-p").arg(port.to_string());
        }
        if let Some(user) = &self.host.user {
            command.arg("-l").arg(OsString::from_vec(user.clone()));
        }
    }
}

/// What is started there.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// A shell in which a program announces itself by this nonce, and ssh its login.
    Start(&'a str),
    Shell,
    Subsystem,
}

/// True where it takes options as OpenSSH's does.
fn is_ssh(program: &str) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == "ssh")
}

fn start(mut command: Command) -> Result<Child, Failure> {
    let failed =
        |program: &OsStr, error: std::io::Error| Failure::here(program.as_bytes(), "cannot start", error.into());
    command.spawn().map_err(|error| failed(command.get_program(), error))
}

/// Has ssh ask the other end whether it is there, and end up to three seconds after so many nanoseconds without a word: a
/// server that says nothing while it works is not to be waited for when its machine, or the way to it, is gone. Where servers
/// say that they live, that is found out here, and first.
fn questions(alive: u64) -> [String; 4] {
    let interval = alive / SECOND / u64::from(QUESTIONS + 1) + 1;
    let option = String::from("-o");
    [option.clone(), format!("ServerAliveInterval={interval}"), option, format!("ServerAliveCountMax={QUESTIONS}")]
}

/// How long to wait for the other end: a person may have to type a password first.
pub(crate) fn patience(timeout: Option<u64>) -> Patience {
    let mut patience = Patience::default();
    if let Some(seconds) = timeout {
        let timeout = seconds * SECOND;
        (patience.handshake, patience.login) = (timeout, timeout);
        // Asked for by whoever has slow start files.
        if timeout > HANDSHAKE_TIMEOUT {
            patience.shell = timeout;
        }
        (patience.alive, patience.redial) = (timeout * 2 / 3, timeout / 3);
    }
    if std::fs::File::open("/dev/tty").is_ok() {
        patience.login = LOGIN_TIMEOUT;
    }
    // For tests, see limits.rs.
    let set = std::env::var("HAUL_TIMEOUTS_MS").unwrap_or_default();
    let mut set = set.split(',').filter_map(|number| number.parse::<u64>().ok()).map(|ms| ms * (SECOND / 1000));
    let Patience { silence, login, handshake, stall, answer, redial, alive, shell } = &mut patience;
    let fields = [silence, login, handshake, stall, answer, redial, alive, shell];
    for field in fields {
        *field = set.next().unwrap_or(*field);
    }
    patience
}

/// The command by which any login shell becomes a sh with these arguments. A restricted one says that it may not become
/// another program, and starts it.
fn in_sh(words: &str) -> String {
    format!("exec sh -c {words}; sh -c {words}")
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
    use haul_engine::wire::path::RequestPath;

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
    fn the_start_script_can_be_quoted_for_every_login_shell() {
        for script in [START, EXAMINE] {
            assert!(!script.contains(['\'', '\n', '!']), "{script}");
        }
    }

    #[test]
    fn a_start_line_is_printed_only_for_a_nonce() {
        let nonce = nonce();
        let version = env!("CARGO_PKG_VERSION");
        let command = format!("exec sh -c {} {nonce} 'haul' '/'", quote(START));
        assert_eq!(start_line_for(command.as_bytes()), Some(format!("{nonce} haul {version}")));
        for text in ["", "bcmr serve", "haul-", "haul serve haul-00", "haul-0000000000000000000000000000000G"] {
            assert_eq!(start_line_for(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn where_the_operands_begin_decides_what_a_bcmr_serves() {
        let host = Host::parse(b"far", None).unwrap();
        let table = [(&["a", "b/c", ""][..], Begin::Login), (&["/a", "/"], Begin::Root), (&["/a", "b"], Begin::Both)];
        for (paths, begin) in table {
            let operands: Vec<Operand> = paths
                .iter()
                .map(|path| Operand {
                    path: RequestPath::parse(path.as_bytes()).unwrap(),
                    shown: path.as_bytes().to_vec(),
                    contents: false,
                })
                .collect();
            assert_eq!(Dial::new(&host, &RemoteArgs::default(), &operands).begin, begin, "{paths:?}");
        }
    }

    #[test]
    fn quoted_words_survive_a_shell() {
        for word in ["haul", "/a b/haul", "it's", "$(id)", "a\"b"] {
            let output = Command::new("sh").arg("-c").arg(format!("printf %s {}", quote(word))).output().unwrap();
            assert_eq!(output.stdout, word.as_bytes());
        }
    }
}
