//! A link with delay between two namespaces, for kernels without netem: every packet is held for a time.
//!
//! ```text
//! near: TUN -- socat -- datagrams --> a thread that holds them --> datagrams -- socat -- TUN :far
//! ```
//! socat opens the devices. Packets are large, so that the hops cost little; what the link carries at most is for tc.

use crate::netns::{self, Namespace, Pair};
use crate::process::Running;
use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DEVICE: &str = "delayed";
/// Bytes of a packet at most: jumbo frames.
const MTU: usize = 9000;
/// Longest wait for a packet, after which it is looked whether all is over.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Time socat has to open a device.
const OPENED: Duration = Duration::from_secs(5);

/// Both ends and what holds the packets; nothing of it stays when dropped.
pub(crate) struct Delayed {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    socats: Vec<Running>,
    _dir: tempfile::TempDir,
}

impl Delayed {
    /// Joins a pair by a link that takes `each_way` and carries `rate`, as tc writes it.
    pub(crate) fn join(pair: &Pair, each_way: Duration, rate: &str) -> Result<Delayed> {
        netns::find("socat").context("apt-get install socat")?;
        let dir = tempfile::Builder::new().prefix("haul-perf-delay-").tempdir()?;
        let over = Arc::new(AtomicBool::new(false));
        let mut delayed = Delayed { over, threads: Vec::new(), socats: Vec::new(), _dir: dir };
        let dir = delayed._dir.path().to_path_buf();
        let mut sockets = Vec::new();
        for (name, namespace) in [("near", &pair.near), ("far", &pair.far)] {
            let ours = UnixDatagram::bind(dir.join(format!("{name}.held")))?;
            delayed.socats.push(socat(namespace, &dir, name)?);
            sockets.push((ours, dir.join(name)));
        }
        for end in [&pair.near, &pair.far] {
            let until = Instant::now() + OPENED;
            while end.run(&format!("ip link set {DEVICE} mtu {MTU}")).is_err() {
                ensure!(Instant::now() < until, "socat opens no TUN device");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        pair.addressed(DEVICE)?;
        for end in [&pair.near, &pair.far] {
            end.run(&format!("tc qdisc add dev {DEVICE} root tbf rate {rate} burst 256kb latency 50ms"))?;
        }
        for (from, to) in [(0, 1), (1, 0)] {
            let (source, sink) = (sockets[from].0.try_clone()?, sockets[to].0.try_clone()?);
            sink.set_write_timeout(Some(LOOK_EVERY))?;
            let (target, over) = (sockets[to].1.clone(), delayed.over.clone());
            delayed.threads.push(std::thread::spawn(move || hold(&source, (&sink, &target), each_way, &over)));
        }
        Ok(delayed)
    }
}

/// Packets of the device go to `NAME.held`, those that come to `NAME` go to the device.
fn socat(namespace: &Namespace, dir: &Path, name: &str) -> Result<Running> {
    let mut socat = namespace.command("socat");
    let (here, there) = (dir.join(name), dir.join(format!("{name}.held")));
    socat.args(["-b", "65536", &format!("TUN,tun-name={DEVICE},iff-no-pi,iff-up")]);
    socat.arg(format!("UNIX-SENDTO:{},bind={}", there.display(), here.display()));
    Ok(Running(socat.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("socat")?))
}

/// One direction: in the order they came, each so much later.
fn hold(from: &UnixDatagram, (sink, to): (&UnixDatagram, &Path), delay: Duration, over: &AtomicBool) {
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut packet = vec![0; MTU + 64];
    while !over.load(Ordering::Relaxed) {
        let now = Instant::now();
        while let Some((_, bytes)) = held.pop_front_if(|(due, _)| *due <= now) {
            // Nobody there any more, or no room: lost, as on any link.
            let _ = sink.send_to(&bytes, to);
        }
        let wait = held.front().map_or(LOOK_EVERY, |(due, _)| due.saturating_duration_since(Instant::now()));
        // The time limit of a socket is rounded to the kernel's ticks, which are as long as the delay; this one is not.
        let Ok(wait) = Timespec::try_from(wait) else { return };
        let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&wait));
        if ready.is_ok_and(|ready| ready > 0)
            && let Ok(len) = from.recv(&mut packet)
        {
            held.push_back((Instant::now() + delay, packet[..len].to_vec()));
        }
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.socats.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
