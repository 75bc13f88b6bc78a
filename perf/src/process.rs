//! One command, timed, with what the system says about it and the processes it started.
//!
//! Processor time is taken from /proc without `unsafe`: the near end is what this process's waited-for children used
//! (ssh included, as its parent waits for it), the far end what the sshd's did. Both count in clock ticks, 10 ms as a
//! rule. Peak memory is VmHWM, looked at while the program runs: what it takes in its last [`LOOK_EVERY`] can be missed.
//! Where there is no /proc these columns stay empty.

use anyhow::{Context as _, Result, bail};
use std::fs;
use std::io::{Read as _, Seek as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Time between two looks at peak memory.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Time the far end has for its processes to end after the near one has.
const FAR_END_ENDS: Duration = Duration::from_secs(5);

/// One run of a command.
#[derive(Clone, Default)]
pub(crate) struct Sample {
    pub(crate) wall: f64,
    /// Processor seconds of the near end, and of the far end where there is one.
    pub(crate) cpu_near: Option<f64>,
    pub(crate) cpu_far: Option<f64>,
    /// Peak memory in KiB of the near program itself, and of the largest haul on the far end.
    pub(crate) rss_near: Option<u64>,
    pub(crate) rss_far: Option<u64>,
}

/// What the other half of a command is.
#[derive(Clone, Copy)]
pub(crate) enum Far {
    /// Children of this process: an sshd, or a daemon that forks.
    Children(u32),
    /// This process, which serves all.
    Itself(u32),
}

impl Far {
    fn cpu(self) -> Option<f64> {
        match self {
            Far::Children(pid) => children_cpu(pid),
            Far::Itself(pid) => own_cpu(pid),
        }
    }

    fn haul(self) -> Option<u32> {
        match self {
            Far::Children(pid) => haul_below(pid),
            Far::Itself(pid) => Some(pid),
        }
    }
}

/// A program of our own beside what is measured; ended when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end. `far` is its other half.
pub(crate) fn run(mut command: Command, far: Option<Far>) -> Result<Sample> {
    let (near_before, far_before) = (children_cpu(std::process::id()), far.and_then(Far::cpu));
    let mut errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{:?}", command.get_program()))?;
    let near = child.id();
    let (stop, stopped) = channel::<()>();
    let watcher = std::thread::spawn(move || watch(near, far, &stopped));
    let status = child.wait()?;
    let wall = started.elapsed().as_secs_f64();
    drop(stop);
    let (rss_near, rss_far) = watcher.join().unwrap_or_default();
    if !status.success() {
        bail!("{status}: {}", first_lines(&mut errors));
    }
    if let Some(Far::Children(parent)) = far {
        wait_for_far_end(parent);
    }
    let used = |before: Option<f64>, after: Option<f64>| Some(after? - before?);
    Ok(Sample {
        wall,
        cpu_near: used(near_before, children_cpu(std::process::id())),
        cpu_far: used(far_before, far.and_then(Far::cpu)),
        rss_near,
        rss_far,
    })
}

/// Becomes true when somebody stops this: he wants the sshds ended and the directories removed, which is done on the way
/// out.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone())?;
    }
    Ok(stopped)
}

fn first_lines(errors: &mut fs::File) -> String {
    let mut text = Vec::new();
    // What the command said helps; not having it is no second failure.
    let _ = errors.rewind().and_then(|()| errors.take(500).read_to_end(&mut text));
    String::from_utf8_lossy(&text).trim().replace('\n', "; ")
}

fn watch(near: u32, far: Option<Far>, stopped: &Receiver<()>) -> (Option<u64>, Option<u64>) {
    let (mut rss_near, mut rss_far) = (None, None);
    let mut far_haul = None;
    while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        rss_near = rss_near.max(peak_memory(near));
        far_haul = far_haul.or_else(|| far.and_then(Far::haul));
        rss_far = rss_far.max(far_haul.and_then(peak_memory));
    }
    (rss_near, rss_far)
}

/// VmHWM in KiB.
fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// The first descendant of a process that is haul.
pub(crate) fn haul_below(pid: u32) -> Option<u32> {
    hauls_below(pid).first().copied()
}

/// The descendants of a process that are haul.
pub(crate) fn hauls_below(pid: u32) -> Vec<u32> {
    let haul = |child: u32| fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|name| name.trim() == "haul");
    children(pid).into_iter().flat_map(|child| if haul(child) { vec![child] } else { hauls_below(child) }).collect()
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Processor time of a process counts for its parent once the parent has waited for it.
pub(crate) fn wait_for_far_end(sshd: u32) {
    let until = Instant::now() + FAR_END_ENDS;
    while !children(sshd).is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Processor seconds of the children a process has waited for, and of theirs: cutime and cstime of proc_pid_stat(5).
fn children_cpu(pid: u32) -> Option<f64> {
    ticks(pid, [16, 17])
}

/// Those of a process itself: utime and stime.
fn own_cpu(pid: u32) -> Option<f64> {
    ticks(pid, [14, 15])
}

/// The sum of two fields of /proc/PID/stat that are in clock ticks, in seconds.
fn ticks(pid: u32, numbers: [usize; 2]) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; what follows the last bracket begins with field 3.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
    Some((field(numbers[0])? + field(numbers[1])?) as f64 / rustix::param::clock_ticks_per_second() as f64)
}
