//! Clocks, rounds and the table.
//!
//! The cases of one group take turns, A B C A B C .., so that whatever else the machine does falls on all of them; the
//! first round is dropped and medians are shown.

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

/// Bytes in the GiB that CPU seconds are given for.
const GIB: f64 = 1_073_741_824.0;

/// What one run of a case does.
pub(crate) enum Work {
    /// Moves or hashes this many bytes.
    Bytes(u64),
    /// Does this many of something.
    Items(u64, &'static str),
}

/// One run: wall time, and processor time of the measured end.
pub(crate) struct Sample(Duration, Duration);

/// Something to time.
pub(crate) struct Case {
    pub(crate) name: String,
    work: Work,
    run: Box<dyn FnMut() -> Result<Sample>>,
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, work: Work, run: impl FnMut() -> Result<Sample> + 'static) -> Case {
        Case { name: name.into(), work, run: Box::new(run) }
    }
}

/// Processor time so far: of all threads of this process, a ring's kernel workers included, or of this thread.
pub(crate) fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Both clocks, running.
pub(crate) struct Watch(Instant, Duration);

impl Watch {
    pub(crate) fn start() -> Watch {
        Watch(Instant::now(), cpu(ClockId::ProcessCPUTime))
    }

    /// `peer`: processor time of the thread that stood in for the far end, which does not count.
    pub(crate) fn stop(self, peer: Duration) -> Sample {
        Sample(self.0.elapsed(), (cpu(ClockId::ProcessCPUTime) - self.1).saturating_sub(peer))
    }
}

/// Times work that has no far end.
pub(crate) fn timed(work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let watch = Watch::start();
    work().map(|()| watch.stop(Duration::ZERO))
}

/// Runs the cases in turns and prints a row for each.
pub(crate) fn group(mut cases: Vec<Case>, rounds: u32) -> Result<()> {
    let mut samples: Vec<Vec<Sample>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            let sample = (case.run)().with_context(|| case.name.clone())?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    for (Case { name, work, .. }, samples) in cases.iter().zip(&samples) {
        let wall = median(samples.iter().map(|sample| sample.0));
        let cpu = median(samples.iter().map(|sample| sample.1));
        match *work {
            Work::Bytes(n) => {
                let (rate, gib) = (n as f64 / wall / 1e9, n as f64 / GIB);
                println!(
                    "{name:<50} {rate:>10.2} GB/s     wall {:>7.3} s/GiB   CPU {:>7.3} s/GiB",
                    wall / gib,
                    cpu / gib
                );
            }
            Work::Items(n, unit) => println!("{name:<50} {:>10.0} {unit}/s", n as f64 / wall),
        }
    }
    Ok(())
}

/// Seconds. There is at least one: `--rounds` is at least 2.
fn median(values: impl Iterator<Item = Duration>) -> f64 {
    let mut values: Vec<f64> = values.map(|value| value.as_secs_f64()).collect();
    values.sort_by(f64::total_cmp);
    (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
}
