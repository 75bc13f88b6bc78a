//! Two network namespaces and a cable between them, which can be cut, and an end of which can swallow what comes for some
//! ports. The namespaces have no names: they are gone with the processes that hold them, and these with the test.
//!
//! ```text
//! near, 10.255.0.1 <---- veth, shaped at both ends ----> far, 10.255.0.2
//! haul, ssh                                              sshd, haul serve
//! ```

use rustix::process::geteuid;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Where the far end is reached.
pub const FAR: &str = "10.255.0.2";
/// Ports for direct connections, where a test wants to know them; they are not the same as in any other namespace.
pub const PORTS: (u16, u16) = (5000, 5099);

/// One of the ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Near,
    Far,
}

use End::Near;

/// Both ends, with the cable between them.
pub struct Cable {
    near: Space,
    far: Space,
}

/// A network namespace, for as long as this lives.
struct Space(Child);

impl Space {
    fn new() -> Space {
        // Its input ends with this process at the latest, however that ends.
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", "echo; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().unwrap();
        // From here on it is there.
        holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Space(holder)
    }

    /// A program in it.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.0.id().to_string(), "--"]).arg(program).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, words: &str) {
        let mut words = words.split(' ');
        let output = self.command(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cable {
    /// One that carries `rate`, as tc writes it. `None` where there is no root, or no iproute2:
    /// the test is skipped.
    pub fn new(rate: &str) -> Option<Cable> {
        Cable::with_queue(rate, "burst 64kb latency 20ms")
    }

    /// The same with a queue of this length, as tc writes it, in front of it at either end.
    pub fn with_queue(rate: &str, queue: &str) -> Option<Cable> {
        if let Err(why) = possible() {
            super::skips::skip("netns", &why, "root and iproute2");
            return None;
        }
        let cable = Cable { near: Space::new(), far: Space::new() };
        let mut link = Command::new("ip");
        link.args(["link", "add", "cable", "netns", &cable.near.0.id().to_string(), "type", "veth"]);
        link.args(["peer", "name", "cable", "netns", &cable.far.0.id().to_string()]);
        assert!(link.status().unwrap().success());
        for (space, address) in [(&cable.near, "10.255.0.1"), (&cable.far, FAR)] {
            space.run(&format!("ip address add {address}/30 dev cable"));
            space.run("ip link set lo up");
            space.run("ip link set cable up");
            space.run(&format!("tc qdisc add dev cable root tbf rate {rate} {queue}"));
        }
        Some(cable)
    }

    fn space(&self, end: End) -> &Space {
        if end == Near { &self.near } else { &self.far }
    }

    /// This program at that end.
    pub fn at(&self, end: End, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.space(end).command(program)
    }

    /// The same command at the near end, without a terminal.
    pub fn without_terminal(&self, command: &Command) -> Command {
        // It forks only where it leads a process group, so the id is that of the program.
        let mut moved = self.at(Near, "setsid");
        moved.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => moved.env(name, value),
                None => moved.env_remove(name),
            };
        }
        moved
    }

    /// Pulls the plug at one end.
    pub fn pull(&self, end: End) {
        self.space(end).run("ip link set cable down");
    }

    /// Puts it back.
    pub fn plug(&self, end: End) {
        self.space(end).run("ip link set cable up");
    }

    /// The far end drops whatever comes for `PORTS`, as a firewall does that says nothing.
    pub fn swallow(&self) {
        // What comes for an address of this machine is its own by the first rule, unless another one stands before it.
        self.far.run("ip rule add pref 100 lookup local");
        self.far.run("ip rule del pref 0");
        self.far.run(&format!("ip rule add pref 10 ipproto tcp dport {}-{} blackhole", PORTS.0, PORTS.1));
    }

    /// It lets them pass again.
    pub fn pass(&self) {
        self.far.run("ip rule del pref 10");
    }

    /// True when somebody listens at the far end at one of `PORTS`.
    pub fn has_listener(&self) -> bool {
        let sockets = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.far.0.id())).unwrap();
        sockets.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let port = fields.next().and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
            let listens = fields.nth(1) == Some("0A");
            listens && port.is_some_and(|port| (PORTS.0..=PORTS.1).contains(&port))
        })
    }
}

fn possible() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("network namespaces are made by root".to_string());
    }
    let there =
        |name: &str| ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).exists());
    for name in ["ip", "tc", "unshare", "nsenter", "setsid"] {
        if !there(name) {
            return Err(format!("there is no {name}"));
        }
    }
    let probe = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    if probe.is_ok_and(|status| status.success()) { Ok(()) } else { Err("there are no network namespaces".to_string()) }
}
