//! Which blocks a sending session compresses.
//!
//! Owns the decision and nothing else: the session compresses, sends, measures and reports back. No clock, no I/O. Two
//! things decide, each with a state of its own:
//!
//! ```text
//! content   Open --4 blocks in a row did not pay--> Paused: 8 blocks raw, a try, 16, a try, .. 64, a try, 64, ..
//!             ^                                        |
//!             +--------------- a try paid -------------+
//!
//! link      Packing --link > 1.25 x packing--> Raw: one block in 256 is packed, so that the codec stays known
//!             ^                                 |
//!             +---- link < 0.8 x packing -------+        packing = min(codec rate, link rate / ratio)
//! ```
//!
//! The content always decides; the link only where both ends are haul and the user left the choice to us.
//!
//! How fast the link is can be seen only while it is full. A link that the codec cannot fill looks as fast as the memory
//! of its buffers, so going Raw is in part an experiment. Its result is reliable, because raw blocks do fill the link. A
//! stay in Raw that was short was a mistake, and each mistake doubles what must be measured before the next: a link
//! between the two rates costs a handful of switches, not one every few MiB.
//!
//! Worked example, Zstandard at 600 MB/s with ratio 0.17. A link of 10 MB/s: packing gives min(600, 59) = 59 MB/s against
//! 10, compression stays. A link of 2 GB/s: min(600, 11800) = 600, and 2000 > 1.25 x 600, compression ends.

use crate::limits::{
    BLIND_TRY, CODEC_WINDOW_BYTES, FEW_PACKED_PERCENT, LINK_BUFFER_BYTES, LINK_FAST_PERCENT, LINK_FIRST_BYTES,
    LINK_PROVED_BYTES, LINK_SETTLE_BYTES, LINK_SETTLE_NANOS, LINK_SLOW_PERCENT, LINK_WINDOW_BYTES,
    MAX_LINK_SETTLE_BYTES, MAX_PAUSE_BLOCKS, PAUSE_BLOCKS, SECOND, TRIAL_BLOCKS, UNPAID_BLOCKS,
};
use crate::wire::compress::Codec;

#[cfg(test)]
mod tests;

/// What to do with a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Send it as it is.
    Raw,
    /// Compress it, and send what comes out if that pays.
    Compress {
        /// With which codec.
        codec: Codec,
        /// Whether to look at samples first.
        probe: bool,
    },
}

/// The policy of one sending session.
#[derive(Debug)]
pub struct Policy {
    codec: Option<Codec>,
    adaptive: bool,
    threads: usize,
    content: Content,
    link: Link,
    mode: Mode,
    /// What the codec did of late, and ever.
    recent: Work,
    total: Work,
    /// Blocks planned, and of them packed.
    blocks: u64,
    packed: u64,
}

impl Policy {
    /// `codec` is what was agreed; with `None` everything is sent as it is. `adaptive`: both ends are haul and the user
    /// left the choice to us, so that the measured link decides too. `threads`: how many compress at the same time.
    pub fn new(codec: Option<Codec>, adaptive: bool, threads: usize) -> Policy {
        Policy {
            codec,
            adaptive,
            threads: threads.max(1),
            content: Content::Open { unpaid: 0 },
            link: Link::new(),
            mode: Mode::Packing,
            recent: Work::default(),
            total: Work::default(),
            blocks: 0,
            packed: 0,
        }
    }

    /// The codec both ends have.
    pub fn agreed(&self) -> Option<Codec> {
        self.codec
    }

    /// True while blocks are compressed, and better in large pieces. Not before one has paid: content that does not compress
    /// then needs no large blocks at either end, which is half of the memory of a copy (2026-11-27).
    pub fn gains_from_size(&self) -> bool {
        let tried = matches!((&self.mode, &self.content), (Mode::Packing, Content::Open { .. }));
        tried && self.packed > 0 && self.codec == Some(Codec::Zstd)
    }

    /// What to do with the next block. Any number of blocks may be planned before the first of them comes back.
    pub fn plan(&mut self) -> Plan {
        let Some(codec) = self.codec else { return Plan::Raw };
        self.blocks += 1;
        let try_with = match &mut self.mode {
            Mode::Packing => self.content.next(),
            Mode::Raw { passed, .. } => {
                *passed = passed.wrapping_add(1);
                let trial = passed.is_multiple_of(TRIAL_BLOCKS);
                trial.then(|| Probe(!(*passed / TRIAL_BLOCKS).is_multiple_of(BLIND_TRY)))
            }
        };
        try_with.map_or(Plan::Raw, |Probe(probe)| Plan::Compress { codec, probe })
    }

    /// A block came back from the codec: its bytes, its packed bytes (`None`: it did not pay) and the time in
    /// nanoseconds it took, a probe included.
    pub fn on_packed(&mut self, raw: usize, packed: Option<usize>, nanos: u64) {
        self.packed += u64::from(packed.is_some());
        self.content.result(packed.is_some());
        let (raw, wire) = (raw as u64, packed.unwrap_or(raw) as u64);
        self.total.add(raw, wire, nanos);
        self.recent.add(raw, wire, nanos);
        if self.recent.rate.bytes > CODEC_WINDOW_BYTES {
            self.recent.halve();
        }
    }

    /// `bytes` left through the stream, which had something queued for `busy` nanoseconds since the last call.
    pub fn on_sent(&mut self, bytes: u64, busy: u64) {
        self.link.add(bytes, busy);
        if !self.adaptive {
            return;
        }
        let Some(link) = self.link.per_second() else { return };
        let Some(packing) = self.packing(link) else { return };
        match self.mode {
            Mode::Packing if link > packing * LINK_FAST_PERCENT as f64 / 100.0 => {
                self.mode = Mode::Raw { passed: 0, link, packing };
                self.link.begin(LINK_SETTLE_BYTES);
            }
            Mode::Raw { .. } if link < packing * LINK_SLOW_PERCENT as f64 / 100.0 => {
                self.mode = Mode::Packing;
                let settle = self.link.settle_after_raw();
                self.link.begin(settle);
            }
            _ => {}
        }
    }

    /// True when it had nothing to decide.
    pub fn is_idle(&self) -> bool {
        self.blocks == 0 && self.total.rate.bytes == 0
    }

    /// What was chosen and why, in one line.
    pub fn summary(&self) -> String {
        let Some(codec) = self.codec.map(Codec::name) else { return "none: no codec was agreed".to_string() };
        if let Mode::Raw { link, packing, .. } = self.mode {
            let link = self.link.per_second().unwrap_or(link);
            let packing = self.packing(link).unwrap_or(packing);
            return format!("none: link {} is faster than {codec} ({})", Shown(link), Shown(packing));
        }
        if self.total.rate.bytes > 0 && self.packed * 100 < self.blocks * FEW_PACKED_PERCENT {
            let Policy { packed, blocks, .. } = self;
            return format!("{codec}: content does not compress, {packed} of {blocks} blocks packed");
        }
        let link = self.link.per_second().map(|rate| format!("link {}", Shown(rate)));
        let rate = self.codec_rate(&self.total).map(|rate| format!("codec {}", Shown(rate)));
        let ratio = self.total.ratio().map(|ratio| format!("ratio {ratio:.2}"));
        let parts: Vec<String> = [link, rate, ratio].into_iter().flatten().collect();
        if parts.is_empty() {
            format!("{codec}: nothing was compressed")
        } else {
            format!("{codec}: {}", parts.join(", "))
        }
    }

    /// Raw bytes per second that all threads compress.
    fn codec_rate(&self, work: &Work) -> Option<f64> {
        Some(work.rate.per_second()? * self.threads as f64)
    }

    /// Raw bytes per second that compression brings through a link of this rate.
    fn packing(&self, link: f64) -> Option<f64> {
        Some(self.codec_rate(&self.recent)?.min(link / self.recent.ratio()?))
    }
}

/// Whether a try looks at samples first.
struct Probe(bool);

/// Whether the content pays. Reached from each other as in the sketch above.
#[derive(Debug)]
enum Content {
    /// Every block is tried; so many in a row did not pay.
    Open { unpaid: u32 },
    /// `left` blocks go out as they are before the next try. A try is presumed to fail when it is made, so that nothing
    /// waits for its result.
    Paused { left: u32, length: u32, tries: u32 },
}

impl Content {
    /// Whether, and how, to try the next block.
    fn next(&mut self) -> Option<Probe> {
        match self {
            // The last one paid, so will this one: its time in the codec is not wasted, and samples cannot lie.
            Content::Open { unpaid } => Some(Probe(*unpaid > 0)),
            Content::Paused { left: 0, length, tries } => {
                let (longer, tries) = ((*length * 2).min(MAX_PAUSE_BLOCKS), tries.wrapping_add(1));
                *self = Content::Paused { left: longer, length: longer, tries };
                Some(Probe(!tries.is_multiple_of(BLIND_TRY)))
            }
            Content::Paused { left, .. } => {
                *left -= 1;
                None
            }
        }
    }

    fn result(&mut self, paid: bool) {
        match self {
            _ if paid => *self = Content::Open { unpaid: 0 },
            Content::Open { unpaid } if *unpaid + 1 < UNPAID_BLOCKS => *unpaid += 1,
            Content::Open { .. } => *self = Content::Paused { left: PAUSE_BLOCKS, length: PAUSE_BLOCKS, tries: 0 },
            Content::Paused { .. } => {}
        }
    }
}

/// What the link lets us do.
#[derive(Debug)]
enum Mode {
    /// Compress what the content rule allows. The first state, and after `Raw`.
    Packing,
    /// Send as it is, because of these two rates in bytes per second; `passed` blocks so far. After `Packing`.
    Raw { passed: u32, link: f64, packing: f64 },
}

/// What is known of the link.
#[derive(Debug)]
struct Link {
    /// Bytes still to come that only fill buffers.
    buffered: u64,
    /// Of late, and since the last switch.
    recent: Rate,
    since: Rate,
    /// What `since` must reach before the next switch.
    settled: Rate,
    /// Bytes to measure in `Packing` after the next stay in `Raw`, if that is short.
    settle: u64,
}

impl Link {
    fn new() -> Link {
        Link {
            buffered: LINK_BUFFER_BYTES,
            recent: Rate::default(),
            since: Rate::default(),
            settled: Rate { bytes: LINK_FIRST_BYTES, nanos: 0 },
            settle: LINK_SETTLE_BYTES,
        }
    }

    fn add(&mut self, bytes: u64, busy: u64) {
        if self.buffered > 0 {
            self.buffered = self.buffered.saturating_sub(bytes);
            return;
        }
        self.since.add(bytes, busy);
        self.recent.add(bytes, busy);
        if self.recent.bytes > LINK_WINDOW_BYTES {
            self.recent.halve();
        }
    }

    /// Its rate, once enough was measured since the last switch.
    fn per_second(&self) -> Option<f64> {
        let settled = self.since.bytes >= self.settled.bytes && self.since.nanos >= self.settled.nanos;
        settled.then(|| self.recent.per_second())?
    }

    /// Measures anew, over at least `bytes`.
    fn begin(&mut self, bytes: u64) {
        self.recent = Rate::default();
        self.since = Rate::default();
        self.settled = Rate { bytes, nanos: LINK_SETTLE_NANOS };
    }

    /// Bytes to measure now that a stay in `Raw` has ended: the shorter it was, the less the next is to be trusted.
    fn settle_after_raw(&mut self) -> u64 {
        let proved = self.since.bytes >= LINK_PROVED_BYTES;
        self.settle = if proved { LINK_SETTLE_BYTES } else { (self.settle * 2).min(MAX_LINK_SETTLE_BYTES) };
        self.settle
    }
}

/// Bytes over time.
#[derive(Clone, Copy, Default, Debug)]
struct Rate {
    bytes: u64,
    nanos: u64,
}

impl Rate {
    fn add(&mut self, bytes: u64, nanos: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.nanos = self.nanos.saturating_add(nanos);
    }

    fn halve(&mut self) {
        self.bytes /= 2;
        self.nanos /= 2;
    }

    /// `None` until some of both is known.
    fn per_second(self) -> Option<f64> {
        let known = self.bytes > 0 && self.nanos > 0;
        known.then(|| self.bytes as f64 * SECOND as f64 / self.nanos as f64)
    }
}

/// What went through the codec: raw bytes over time in the codec, and bytes for the wire.
#[derive(Default, Debug)]
struct Work {
    rate: Rate,
    wire: u64,
}

impl Work {
    fn add(&mut self, raw: u64, wire: u64, nanos: u64) {
        self.rate.add(raw, nanos);
        self.wire = self.wire.saturating_add(wire);
    }

    fn halve(&mut self) {
        self.rate.halve();
        self.wire /= 2;
    }

    /// Bytes on the wire for one raw byte.
    fn ratio(&self) -> Option<f64> {
        let known = self.rate.bytes > 0 && self.wire > 0;
        known.then(|| self.wire as f64 / self.rate.bytes as f64)
    }
}

/// A rate in bytes per second as it is shown: `9.8 MB/s`, `640 MB/s`, `1.9 GB/s`.
struct Shown(f64);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The limits are where rounding reaches the next power of ten.
        match self.0 / 1e6 {
            mega if mega < 9.95 => write!(f, "{mega:.1} MB/s"),
            mega if mega < 999.5 => write!(f, "{mega:.0} MB/s"),
            mega => write!(f, "{:.1} GB/s", mega / 1000.0),
        }
    }
}
