//! The command line: every flag is defined here, once.

use crate::doctor;
use crate::exit::{self, Exit};
use crate::plaintext;
use clap::{Args, Parser, Subcommand, ValueEnum};
use haul_engine::limits::MAX_CONNECTIONS;
use haul_engine::wire::display::Printable;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Moves files between machines as fast as the hardware allows, and proves that what arrived is what was sent.
#[derive(Parser, Debug)]
#[command(name = "haul", version, after_help = exit::TABLE, max_term_width = 100)]
pub(crate) struct Haul {
    /// Which I/O backend this process uses; auto takes io_uring where it works. [default: auto] [env: HAUL_BACKEND]
    #[arg(long, global = true, value_enum)]
    pub(crate) backend: Option<Choice>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A backend, as the user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// io_uring where it works, else poll.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll or kqueue.
    Poll,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Copy files and directories between this machine and another, or within this one.
    #[command(visible_alias = "cp", after_help = exit::TABLE)]
    Copy(CopyArgs),
    /// Serve files on stdin and stdout (how the other end is started), or on a TCP address.
    Serve(ServeArgs),
    /// Make a key for `haul serve --listen`, which its clients need too.
    Keygen(KeygenArgs),
    /// List a directory on another machine or on this one.
    Ls(LsArgs),
    /// Print BLAKE3 hashes, as b3sum does, computed where the files are.
    Hash(HashArgs),
    /// Find out what keeps copies to another machine from being fast, or from being at all, and what to do about it.
    #[command(after_help = doctor::CODES)]
    Doctor(DoctorArgs),
    /// Move a big file and many small ones between two processes' worth of haul, and show how fast that was.
    Demo(DemoArgs),
}

/// A way to compress, as the user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// zstd where content and link make it pay.
    Auto,
    /// Zstandard, level 3.
    Zstd,
    /// LZ4.
    Lz4,
    /// None.
    #[value(alias = "off")]
    None,
}

/// Which way content takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum DirectWay {
    /// Through ssh.
    #[default]
    Ssh,
    /// Over TCP, or not at all.
    Direct,
    /// Over TCP where that comes about, else through ssh.
    Auto,
}

/// A number of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Connections {
    /// As many as help: over direct connections that is found out while the copy goes (tuner.rs).
    #[default]
    Auto,
    /// This many.
    Exactly(u16),
}

impl Connections {
    /// How many there are at first, and through ssh, where each costs a login, to the end.
    pub(crate) fn over_ssh(self) -> u16 {
        match self {
            Connections::Auto => 1,
            Connections::Exactly(number) => number,
        }
    }
}

fn connections(text: &str) -> Result<Connections, String> {
    match text {
        "auto" => Ok(Connections::Auto),
        number => match number.parse() {
            Ok(number @ 1..=MAX_CONNECTIONS) => Ok(Connections::Exactly(number)),
            _ => Err(format!("a number from 1 to {MAX_CONNECTIONS}, or auto")),
        },
    }
}

/// Ports from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

fn ports(text: &str) -> Result<Ports, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first @ 1..), Ok(last)) if first <= last => Ok(Ports { first, last }),
        _ => Err("a port, or the first and the last of a range, as 5000-5100".to_string()),
    }
}

/// What is started over there, unless the user names something else.
pub(crate) const DEFAULT_PROGRAM: &str = "haul";

/// How the other machine is reached.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct RemoteArgs {
    /// Remote shell to use in place of ssh, with its arguments.
    #[arg(short = 'e', long = "rsh", value_name = "COMMAND")]
    pub(crate) rsh: Option<String>,
    /// Port for ssh.
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Option for ssh, as in ssh_config; may be given again.
    #[arg(short = 'o', value_name = "OPTION")]
    pub(crate) ssh_option: Vec<OsString>,
    /// Configuration file for ssh.
    #[arg(short = 'F', value_name = "FILE")]
    pub(crate) ssh_config: Option<OsString>,
    /// Identity file for ssh.
    #[arg(short = 'i', value_name = "FILE")]
    pub(crate) identity: Option<OsString>,
    /// Jump host for ssh.
    #[arg(short = 'J', value_name = "HOST")]
    pub(crate) jump: Option<OsString>,
    /// Which way content takes: through ssh, over a TCP connection of its own, encrypted with AES-256-GCM under keys that
    /// are agreed on through ssh, or that and, where there is none within a second, ssh.
    #[arg(long, value_enum, value_name = "WAY", default_value = "ssh")]
    pub(crate) direct: DirectWay,
    /// Key of the daemon that haul:// operands name, as `haul keygen` wrote it and `haul serve` has it.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// How long the other side may be silent: what does not go on within that is opened again, goes another way, or ends
    /// with exit code 30 or 35. Above 30 a login shell may be silent as long, for slow start files.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(3..=86_400), default_value = "30")]
    pub(crate) timeout: Option<u64>,
    /// Do not encrypt direct connections. Both ends still prove who they are; whoever can reach the wire in between reads
    /// everything, and can change it and ask the server for more. Needs --direct=direct or auto, and haul at the other end,
    /// which ssh starts with --allow-plaintext. HAUL_PLAINTEXT=never at either end refuses. For a trusted cable, and for
    /// benchmarks.
    #[arg(long)]
    pub(crate) plaintext: bool,
    /// Ports at which the remote haul may listen for direct connections; the first one that is free. [default: any]
    #[arg(long, value_name = "FIRST-LAST", value_parser = ports)]
    pub(crate) port_range: Option<Ports>,
    /// The remote haul, if it is not on the PATH there.
    #[arg(long, value_name = "PROGRAM", default_value = DEFAULT_PROGRAM)]
    pub(crate) remote_path: String,
}

/// What is printed.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct OutputArgs {
    /// Say nothing but errors.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Name every file with its hash, and say which backend is used and why.
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
    /// Print NDJSON on stdout: one object a line, schema haul/1, the summary last.
    #[arg(long)]
    pub(crate) json: bool,
    /// Say at the end what was chosen, and why.
    #[arg(long)]
    pub(crate) stats: bool,
    /// What has arrived of an incomplete file is kept.
    #[arg(skip)]
    pub(crate) keeps: bool,
    /// Attributes that the user asked for by their own letters, as bits of `Unkept`.
    #[arg(skip)]
    pub(crate) asked: u8,
    /// Files go to another machine.
    #[arg(skip)]
    pub(crate) uploads: bool,
    /// Quiet by nature, not because the user wants that: warnings are shown.
    #[arg(skip)]
    pub(crate) warns: bool,
}

/// `haul copy`
#[derive(Args, Debug)]
pub(crate) struct CopyArgs {
    /// Sources, then the target. Remote: [user@]host:path, [v6]:path, ssh://[user@]host[:port]/path, and with --key-file
    /// haul://host:port/path, where path is below what the daemon serves.
    /// `dir/` means the content of dir, `dir` means dir itself; ./a:b is a local name.
    // One or more here: options may stand between them. That there are two is checked where they are used.
    #[arg(required = true, value_name = "SRC... DST")]
    pub(crate) paths: Vec<OsString>,
    /// Copy directories with all that is in them.
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Keep exact permission bits, set-ID bits included. (Modification times are kept always.)
    #[arg(short = 'p', long = "preserve", visible_alias = "perms")]
    pub(crate) preserve: bool,
    /// Leave the modification times of directories alone.
    #[arg(short = 'O', long)]
    pub(crate) omit_dir_times: bool,
    /// Copy symbolic links as links, sources too (`link/` is what it leads to); without it they are left out of directories
    /// and counted.
    #[arg(short, long)]
    pub(crate) links: bool,
    /// Same as -rlp, with owner and group when root. Not covered: hard links, xattrs, ACLs, devices.
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// DST is the name itself, never a directory to copy into.
    #[arg(short = 'T', long)]
    pub(crate) no_target_directory: bool,
    /// Make the directories above DST that are missing, too. Without it only DST itself is made.
    #[arg(long)]
    pub(crate) mkpath: bool,
    /// Go on where an interrupted run stopped: what is there is proved by its hash and not sent again, and what arrives is
    /// kept beside the target, as .haul-<16 hex>.part, until it is complete.
    #[arg(short = 'C', long, visible_alias = "partial")]
    pub(crate) resume: bool,
    /// Same as --resume; progress is shown on a terminal anyway.
    #[arg(short = 'P')]
    pub(crate) partial_progress: bool,
    /// Read every file again where it was written, before it gets its name, and compare.
    #[arg(short = 'V', long)]
    pub(crate) verify: bool,
    /// Compression on the wire. auto takes zstd where content and link make it pay.
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) compress: Option<Compress>,
    /// Same as --compress=zstd.
    #[arg(short = 'z', conflicts_with = "compress")]
    pub(crate) zstd: bool,
    /// Do not send blocks of 4 MiB that the server has seen before (uploads of 16 MiB and more). Every such file is read
    /// and hashed as a whole before its first byte is sent.
    #[arg(long)]
    pub(crate) dedup: bool,
    /// Copy without a hash: the sender's kernel sends the file, nothing is proved. With -V both ends read it again afterwards.
    /// bcmr peers still hash uploads, and so do --dedup and -C. No compression unless --compress asks for it.
    #[arg(long, visible_alias = "no-hash")]
    pub(crate) fast: bool,
    /// Connections that share the files of a copy; over ssh each is a login of its own, direct ones come by one login. auto
    /// begins with 1, over ssh stays there, and opens more direct ones, up to 16 (to a daemon 4), while that makes the copy
    /// faster; --stats tells how it was decided. A file of 64 MiB or more is shared as well. More than 4 compress with LZ4 only,
    /// unless --compress says otherwise.
    #[arg(long, visible_alias = "parallel", value_name = "N|auto", value_parser = connections, default_value = "auto")]
    pub(crate) connections: Connections,
    /// Flush every file and its directory to the disk before it counts as copied.
    #[arg(long, visible_alias = "fsync")]
    pub(crate) sync: bool,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `haul serve`
#[derive(Args, Debug)]
#[command(after_help = "\
Blocks for --dedup are kept in $HAUL_CAS_DIR, else $XDG_DATA_HOME/haul/cas or ~/.local/share/haul/cas,
up to $HAUL_CAS_CAP_MB MiB (default 1024; 0: no limit).")]
pub(crate) struct ServeArgs {
    /// Serve only what is below DIR, which must be there. `/` lifts the bounds. [default: the home directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Listen on a TCP address, as 127.0.0.1:0 or localhost:7420, in place of stdin and stdout; prints `LISTENING ip:port`.
    /// With --key-file, or with --allow-every-local-user on loopback addresses.
    #[arg(long, value_name = "ADDR", requires = "root")]
    pub(crate) listen: Option<String>,
    /// Ask nobody who connects to --listen who he is: every user of this machine, and every program that can connect to its
    /// loopback addresses, may do below the root what you may.
    #[arg(long, requires = "listen", conflicts_with = "key_file")]
    pub(crate) allow_every_local_user: bool,
    /// Serve what is mounted below the root too. In some file systems, as /proc, to write is to run code.
    #[arg(long)]
    pub(crate) across_mounts: bool,
    /// As root with --listen, give files the owners and set-ID bits that clients name, and let them change the mode of the
    /// root itself.
    #[arg(long, requires = "listen")]
    pub(crate) trust_metadata: bool,
    /// Let in only who knows this key, as `haul keygen` wrote it, and encrypt with AES-256-GCM.
    #[arg(long, value_name = "FILE", requires_all = ["listen", "root"])]
    pub(crate) key_file: Option<PathBuf>,
    /// Refuse whatever would change anything.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Leave direct connections unencrypted for clients that ask for that with --plaintext. HAUL_PLAINTEXT=never in the
    /// environment overrules it.
    #[arg(long)]
    pub(crate) allow_plaintext: bool,
    /// Ports at which to listen for direct connections; the first one that is free. [default: any] [env: HAUL_PORT_RANGE]
    #[arg(long, value_name = "FIRST-LAST", value_parser = ports)]
    pub(crate) port_range: Option<Ports>,
    /// Serve in one process with other logins that say the same. For clients that send a file over several.
    #[arg(long, value_name = "NAME", hide = true, value_parser = crate::gather::is_name, conflicts_with_all = ["listen", "read_only"])]
    pub(crate) gather: Option<String>,
    /// Address at which to listen for direct connections, and which the client is told; with a zone if it needs one
    /// (fe80::1%eth0). A client takes none but that of the machine that its ssh reached. [default: the one that its ssh
    /// reached] [env: HAUL_BIND]
    #[arg(long, value_name = "IP", value_parser = zoned)]
    pub(crate) bind: Option<Zoned>,
}

/// `haul keygen`
#[derive(Args, Debug)]
pub(crate) struct KeygenArgs {
    /// A new file, mode 0600. [default: stdout]
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// `haul ls`
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// What to list.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<OsString>,
    /// Whole trees.
    #[arg(short = 'R', long, short_alias = 'r')]
    pub(crate) recursive: bool,
    /// Mode, size and time too.
    #[arg(short, long)]
    pub(crate) long: bool,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `haul hash`
#[derive(Args, Debug)]
pub(crate) struct HashArgs {
    /// Files.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) paths: Vec<OsString>,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `haul doctor`
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// The other machine, as in `haul copy`, or haul://host:port; this one alone without. With a directory, as in host:/srv
    /// or ./files, its disk is written to: 64 MiB twice at most, under no name, gone at the end.
    #[arg(value_name = "HOST[:DIRECTORY]")]
    pub(crate) target: Option<OsString>,
    /// Print one JSON object, schema haul/1, at the end.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
}

/// `haul demo`
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Size of the big file in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    pub(crate) size: u64,
    /// Number of small files.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub(crate) files: u32,
    /// Size of each small file in KiB.
    #[arg(long, value_name = "KIB", default_value_t = 16)]
    pub(crate) file_size: u64,
    /// Where to work; everything made there is removed again. [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// Spellings of other tools, and ours.
const NEAREST: [(&str, &str); 8] = [
    ("--checksum", "every file is checked by its hash anyway"),
    ("-c", "every file is checked by its hash anyway"),
    ("--progress", "progress is shown on a terminal anyway"),
    ("--times", "times are kept anyway"),
    ("-t", "times are kept anyway"),
    ("--rsync-path", "use --remote-path"),
    ("-n", "there is no dry run yet; `haul ls -R` lists what is there"),
    ("--delete", "haul never deletes"),
];

/// The word that asks for help by an `h` among other letters, where no other one asks for it: other tools mean something
/// else by that, and nothing would be done, successfully.
fn bundled_help(words: impl IntoIterator<Item = OsString>) -> Option<String> {
    let words = words.into_iter().skip(1).map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.take_while(|word| word != "--").collect();
    let asked = words.iter().any(|word| word == "-h" || word == "--help" || word == "help");
    let bundle = |word: &String| word.starts_with('-') && !word.starts_with("--") && word.contains('h');
    words.into_iter().find(bundle).filter(|_| !asked)
}

/// Parses the command line; prints help, version or the error itself.
pub(crate) fn parse() -> Result<Haul, Exit> {
    let mut haul = Haul::try_parse().map_err(|error| {
        use clap::error::ErrorKind;
        if let (ErrorKind::DisplayHelp, Some(bundle)) = (error.kind(), bundled_help(std::env::args_os())) {
            crate::output::error(&format!("`{bundle}`: -h is help and stands alone"));
            crate::output::stderr("hint: sizes are shown with units anyway; without the h the rest is taken");
            return Exit::Usage;
        }
        let shown = error.print().and_then(|()| std::io::Write::flush(&mut std::io::stdout()));
        if let (ErrorKind::DisplayHelp | ErrorKind::DisplayVersion, Err(why)) = (error.kind(), &shown)
            && why.kind() != std::io::ErrorKind::BrokenPipe
        {
            return crate::output::lost(why);
        }
        let invalid = error.get(clap::error::ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        if let Some((_, ours)) = NEAREST.iter().find(|(theirs, _)| *theirs == invalid) {
            crate::output::stderr(&format!("hint: {ours}"));
        }
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Success,
            _ => Exit::Usage,
        }
    })?;
    plaintext::check(&haul.command)?;
    let serves = matches!(haul.command, Command::Serve(_));
    let completed = complete_backend(&mut haul.backend, serves).and_then(|()| match &mut haul.command {
        Command::Serve(args) => complete(args),
        _ => Ok(()),
    });
    completed.map(|()| haul).map_err(|why| {
        crate::output::error(&why);
        Exit::Usage
    })
}

/// An address, and the number of the zone in which it means something; 0 where it means the same everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Zoned(pub(crate) IpAddr, pub(crate) u32);

/// Parses an address, perhaps with the name or the number of a zone.
pub(crate) fn zoned(text: &str) -> Result<Zoned, String> {
    let refused = |_| "an IP address".to_string();
    let Some((address, zone)) = text.split_once('%') else {
        return text.parse().map(|ip| Zoned(ip, 0)).map_err(refused);
    };
    let ip: Ipv6Addr = address.parse().map_err(refused)?;
    // The system knows its zones by name.
    let mut found =
        (text, 0).to_socket_addrs().map_err(|_| format!("an IP address: no interface is called `{zone}`"))?;
    match found.next() {
        Some(SocketAddr::V6(v6)) if *v6.ip() == ip => Ok(Zoned(ip.into(), v6.scope_id())),
        _ => Err("an IP address".to_string()),
    }
}

/// What the command line leaves to the environment.
pub(crate) fn complete_backend(backend: &mut Option<Choice>, serves: bool) -> Result<(), String> {
    let choice = |text: &str| Choice::from_str(text, true).map_err(|_| "one of auto, uring and poll".to_string());
    if backend.is_none() {
        *backend = from_environment("HAUL_BACKEND", serves, choice)?;
    }
    Ok(())
}

/// The same of a server.
pub(crate) fn complete(args: &mut ServeArgs) -> Result<(), String> {
    if args.port_range.is_none() {
        args.port_range = from_environment("HAUL_PORT_RANGE", true, ports)?;
    }
    if args.bind.is_none() {
        args.bind = from_environment("HAUL_BIND", true, zoned)?;
    }
    Ok(())
}

/// What a variable of the environment says; nothing where it is empty. A server's is not the one that its client sees, so
/// the message says whose it is.
fn from_environment<T>(
    name: &str,
    serves: bool,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let whose = if serves { "the server's environment" } else { "the environment" };
    let refused = |expected| {
        let shown = Printable(value.as_bytes());
        format!("{name} in {whose} is `{shown}`, and must be {expected}")
    };
    let text = value.to_str().ok_or_else(|| refused("text".to_string()))?;
    parse(text).map(Some).map_err(refused)
}
