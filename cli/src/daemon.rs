//! Daemons, as a client finds them: `haul://host:port`, a key, and no ssh.
//!
//! ```text
//! haul://host:port -resolve-> address, address, ..
//! first connection: each address in turn until one answers; it walks, names and moves files
//! further ones: to the same address, opened again when they break (direct.rs)
//! ```

use crate::args::{Connections, DirectWay, RemoteArgs};
use crate::direct::Direct;
use crate::keygen;
use crate::links;
use crate::remote;
use crate::run::News;
use crate::signals;
use crate::threads;
use haul_engine::session::client::{Invitation, Opening, Patience, Seat};
use haul_engine::session::{Failure, Reason};
use haul_engine::wire::frame::Ext;
use haul_engine::wire::hello::Greeting;
use haul_engine::wire::seal::Secret;
use std::cell::OnceCell;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// What failed when a daemon cannot be reached.
const WHAT: &str = "no connection";
/// How often it is looked whether the run is over, or the user has stopped it.
const TICK: Duration = Duration::from_millis(10);

/// Where a daemon listens: a name or an address, and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    name: String,
    port: u16,
}

impl Address {
    /// From `host:port`; an IPv6 address stands in brackets.
    pub(crate) fn parse(text: &[u8]) -> Result<Address, &'static str> {
        const NO_PORT: &str = "a port is needed, as in haul://host:port/path";
        let text = std::str::from_utf8(text).map_err(|_| "not a host name")?;
        let (name, port) = text.rsplit_once(':').ok_or(NO_PORT)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|&port| digits && port != 0).ok_or(NO_PORT)?;
        let name = match name.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').filter(|inner| is_ipv6(inner));
                inner.ok_or("not an IPv6 address in brackets")?
            }
            None => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) || byte >= 0x80;
                Some(name).filter(|name| !name.is_empty() && name.bytes().all(plain)).ok_or("not a host name")?
            }
        };
        Ok(Address { name: name.to_string(), port })
    }

    /// What it is called where connections are made, in the order in which the system would try.
    fn resolve(&self) -> Result<Vec<SocketAddr>, Failure> {
        let failed = |why: &str| Failure::connection(WHAT, format!("{self}: {why}")).because(Reason::NoConnection);
        // A name server may take long, and the user may not want to wait for it.
        let (sender, found) = sync_channel(1);
        let Address { name, port } = self.clone();
        let broken = sender.clone();
        let look_up = move || _ = sender.send(Ok((name.as_str(), port).to_socket_addrs().map(Iterator::collect)));
        threads::spawn("names", look_up, move |why| _ = broken.send(Err(why)));
        loop {
            match found.recv_timeout(TICK) {
                Ok(Ok(Ok(addresses))) => {
                    let addresses: Vec<SocketAddr> = addresses;
                    return if addresses.is_empty() { Err(failed("the name has no address")) } else { Ok(addresses) };
                }
                Ok(Ok(Err(error))) => return Err(failed(&error.to_string())),
                Ok(Err(why)) => return Err(failed(&why)),
                Err(RecvTimeoutError::Timeout) if !signals::stopped() => {}
                Err(_) => return Err(failed("the name was not looked up")),
            }
        }
    }
}

/// True of an address of IPv6, perhaps with the zone in which it means something: `fe80::1%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
    let zone_is_good = zone.is_none_or(|zone| !zone.is_empty() && zone.bytes().all(plain));
    zone_is_good && address.parse::<Ipv6Addr>().is_ok()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { name, port } = self;
        if name.contains(':') { write!(f, "haul://[{name}]:{port}") } else { write!(f, "haul://{name}:{port}") }
    }
}

/// A daemon that is to be asked.
pub(crate) struct Daemon {
    address: Address,
    key: Secret,
    /// Without encryption.
    plain: bool,
    pub(crate) patience: Patience,
    found: OnceCell<Vec<SocketAddr>>,
}

impl Daemon {
    /// The one at `address`, or why the command line makes no sense.
    pub(crate) fn new(address: &Address, args: &RemoteArgs) -> Result<Daemon, String> {
        if args.direct != DirectWay::Ssh {
            return Err("--direct is agreed on through ssh; a connection to haul:// is direct anyway".to_string());
        }
        let of_ssh = args.rsh.is_some()
            || args.port.is_some()
            || args.ssh_config.is_some()
            || args.identity.is_some()
            || args.jump.is_some()
            || !args.ssh_option.is_empty();
        if of_ssh {
            return Err("-e, --port, -o, -F, -i and -J are for ssh, which haul:// operands do without".to_string());
        }
        let Some(file) = &args.key_file else {
            return Err(format!("{address}: --key-file is needed, with the key that `haul serve` has there"));
        };
        let (address, patience) = (address.clone(), remote::patience(args.timeout));
        Ok(Daemon { address, key: keygen::read(file)?, plain: args.plaintext, patience, found: OnceCell::new() })
    }

    fn addresses(&self) -> Result<&[SocketAddr], Failure> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let found = self.address.resolve()?;
        Ok(self.found.get_or_init(|| found))
    }

    /// How to come to the address of this number, and what to ask for there.
    fn invitation(&self, number: usize, greeting: Greeting) -> Result<Invitation, Failure> {
        let address = self.addresses()?.get(number).copied();
        let address = address
            .ok_or_else(|| Failure::connection(WHAT, "there is no other address").because(Reason::NoConnection))?;
        let ext = greeting.ext.map(|ext| if self.plain { ext.or(Ext::PLAIN) } else { ext });
        let greeting = Greeting { ext, ..greeting };
        let invitation = Invitation::by_daemon(address, self.key.clone(), greeting, remote::random);
        Ok(if self.has_more(number) { invitation.with_alternative() } else { invitation })
    }

    /// True when there is another address behind that of this number.
    pub(crate) fn has_more(&self, number: usize) -> bool {
        self.found.get().is_some_and(|found| number + 1 < found.len())
    }

    /// How the connection begins without which there is no run, before it is known what is asked for.
    pub(crate) fn opening(&self) -> Opening {
        Opening { patience: self.patience, ..Opening::full(None).with_pulse() }
    }

    /// The same, to the address of this number. The invitation is for further connections too.
    pub(crate) fn invite(&self, number: usize, opening: &mut Opening) -> Result<Invitation, Failure> {
        let invitation = self.invitation(number, opening.greeting)?;
        let seat = Seat { index: 0, random: remote::random(), required: true };
        opening.invited = Some(Box::new((invitation.clone(), seat)));
        Ok(invitation)
    }
}

/// Opens further connections once the first one is there, so that there are `number`. They end with the run.
pub(crate) fn spawn(further: Direct, number: Connections, news: SyncSender<News>) -> Option<JoinHandle<()>> {
    let (queue, told) = (further.queue.clone(), news.clone());
    let work = move || {
        while further.progress.connected.load(Ordering::Acquire) == 0 && further.is_wanted() {
            std::thread::sleep(TICK);
        }
        if further.is_wanted() {
            further.assist(number, &news);
        }
    };
    threads::spawn("links", work, move |why| links::unused(&queue, &told, &why))
}
