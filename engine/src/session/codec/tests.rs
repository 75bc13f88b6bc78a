use super::{Plan, Policy};
use crate::limits::{
    BLOCK_BYTES, LINK_BUFFER_BYTES, MAX_PAUSE_BLOCKS, PAUSE_BLOCKS, SECOND, TRIAL_BLOCKS, UNPAID_BLOCKS,
};
use crate::wire::compress::Codec;
use std::collections::VecDeque;

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;
/// Bytes per second of a buffer that is being filled.
const MEMORY: f64 = 3e9;
/// Blocks between the codec and the stream.
const WINDOW: usize = 6;

/// A sending session whose codec and link take simulated time, seconds; sizes in bytes, rates in bytes per second.
struct Rig {
    policy: Policy,
    codec: f64,
    link: f64,
    /// What the stream takes at the speed of memory before the link holds it back.
    buffer: f64,
    /// Part by which the link is slower or faster from block to block.
    noise: f64,
    state: State,
    seen: Seen,
}

#[derive(Default)]
struct State {
    now: f64,
    codec_free: f64,
    filled: f64,
    sent_at: VecDeque<f64>,
    random: u64,
}

#[derive(Default)]
struct Seen {
    blocks: u64,
    tries: u64,
    blind: u64,
    raw: f64,
    wire: f64,
    /// Wire bytes at each change between compressing and not.
    switches: Vec<f64>,
    packing: Option<bool>,
}

impl Rig {
    fn new(link: f64, codec: f64) -> Rig {
        let policy = Policy::new(Some(Codec::Zstd), true, 1);
        Rig { policy, codec, link, buffer: 0.0, noise: 0.0, state: State::default(), seen: Seen::default() }
    }

    /// Sends `raw` bytes of blocks that compress to `ratio`, which samples see.
    fn send(&mut self, raw: f64, ratio: f64) {
        (0..(raw / BLOCK_BYTES as f64) as u64).for_each(|_| _ = self.block(ratio, ratio > 0.95));
    }

    /// Sends a block that compresses to `ratio` and that samples say is `dense`; tells whether it was tried.
    fn block(&mut self, ratio: f64, dense: bool) -> bool {
        let raw = BLOCK_BYTES as f64;
        let plan = self.policy.plan();
        let mut wire = raw;
        // The codec runs ahead of the stream by so many blocks and no more.
        if self.state.sent_at.len() >= WINDOW {
            let earliest = self.state.sent_at.pop_front().unwrap();
            self.state.codec_free = self.state.codec_free.max(earliest);
        }
        if let Plan::Compress { probe, .. } = plan {
            let gives_up = probe && dense;
            let cost = if gives_up { 20e-6 } else { raw / self.codec };
            self.state.codec_free += cost;
            let packed = (!gives_up && ratio <= 0.95).then_some(ratio * raw);
            self.policy.on_packed(BLOCK_BYTES, packed.map(|len| len as usize), (cost * 1e9) as u64);
            wire = packed.unwrap_or(raw);
            self.seen.blind += u64::from(!probe);
        }
        let busy = self.write(wire);
        self.policy.on_sent(wire as u64, (busy * 1e9) as u64);
        self.note(plan, raw, wire)
    }

    /// Seconds that the stream is busy with these bytes.
    fn write(&mut self, wire: f64) -> f64 {
        let spread = self.random() * 2.0 - 1.0;
        let link = self.link * (1.0 + self.noise * spread);
        let State { now, codec_free, filled, sent_at, .. } = &mut self.state;
        let start = now.max(*codec_free);
        *filled = (*filled - (start - *now) * link).max(0.0);
        let at_once = wire.min((self.buffer - *filled).max(0.0));
        let busy = at_once / MEMORY + (wire - at_once) / link;
        *filled = (*filled + at_once - at_once / MEMORY * link).max(0.0);
        *now = start + busy;
        sent_at.push_back(*now);
        busy
    }

    fn note(&mut self, plan: Plan, raw: f64, wire: f64) -> bool {
        let tried = plan != Plan::Raw;
        self.seen.blocks += 1;
        self.seen.tries += u64::from(tried);
        self.seen.raw += raw;
        self.seen.wire += wire;
        let packing = matches!(self.policy.mode, super::Mode::Packing);
        if self.seen.packing.replace(packing).is_some_and(|before| before != packing) {
            self.seen.switches.push(self.seen.wire);
        }
        tried
    }

    /// 0 to 1, the same in every run (xorshift64).
    fn random(&mut self) -> f64 {
        let mut x = self.state.random | 0x9e37_79b9_7f4a_7c15;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.state.random = x;
        (x >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[test]
fn a_slow_link_keeps_compression_even_while_its_first_bytes_only_fill_buffers() {
    for buffer in [0.0, MIB, 6.0 * MIB] {
        let mut rig = Rig::new(10e6, 600e6);
        rig.buffer = buffer;
        rig.send(64.0 * MIB / 0.17, 0.17);
        assert_eq!(rig.seen.tries, rig.seen.blocks, "with a buffer of {buffer}");
        assert_eq!(rig.policy.summary(), "zstd: link 10 MB/s, codec 600 MB/s, ratio 0.17");
    }
}

#[test]
fn a_fast_link_stops_compression_within_16_mib_and_does_not_see_it_again() {
    for buffer in [0.0, 4.0 * MIB] {
        let mut rig = Rig::new(2e9, 600e6);
        rig.buffer = buffer;
        rig.send(10.0 * GIB, 0.17);
        assert!(matches!(rig.seen.switches[..], [at] if at <= 16.0 * MIB), "{:?}", rig.seen.switches);
        assert!(rig.policy.summary().starts_with("none: link 2.0 GB/s is faster than zstd (600 MB/s"));
    }
}

#[test]
fn more_threads_compress_for_a_faster_link() {
    let mut rig = Rig::new(2e9, 600e6);
    rig.policy = Policy::new(Some(Codec::Zstd), true, 4);
    rig.send(GIB, 0.17);
    assert!(rig.seen.switches.is_empty(), "4 x 600 MB/s is more than 2 GB/s");
}

#[test]
fn a_link_that_is_as_fast_as_the_codec_does_not_flap() {
    for ratio in [0.17, 0.6, 0.8, 0.94] {
        for link in [100e6, 450e6, 500e6, 600e6, 740e6, 760e6, 900e6] {
            let mut rig = Rig::new(link, 600e6);
            rig.noise = 0.2;
            rig.send(10.0 * GIB, ratio);
            assert!(rig.seen.switches.len() <= 1, "{link} at {ratio}: {:?}", rig.seen.switches);
        }
    }
}

#[test]
fn a_link_that_the_codec_cannot_fill_is_mistaken_for_a_fast_one_a_few_times_only() {
    let mut rig = Rig::new(110e6, 600e6);
    (rig.buffer, rig.noise) = (4.0 * MIB, 0.2);
    rig.send(20.0 * GIB, 0.17);
    // There and back each time: 16, 32, .. 512 MiB of wire bytes apart, then every 512 MiB.
    assert!((2..=24).contains(&rig.seen.switches.len()), "{:?}", rig.seen.switches);
    let best = rig.seen.raw / 600e6;
    assert!(rig.state.now < 1.1 * best, "{} s in place of {best}", rig.state.now);
}

#[test]
fn compression_comes_back_on_a_link_that_becomes_slow_and_goes_on_one_that_becomes_fast() {
    let mut rig = Rig::new(2e9, 600e6);
    rig.send(2.0 * GIB, 0.17);
    assert_eq!(rig.seen.switches.len(), 1);

    let before = rig.seen.wire;
    rig.link = 10e6;
    rig.send(GIB, 0.17);
    let back = rig.seen.switches[1] - before;
    assert!(back <= 16.0 * MIB, "after {back} bytes");

    let before = rig.seen.wire;
    rig.link = 2e9;
    rig.send(4.0 * GIB, 0.17);
    assert_eq!(rig.seen.switches.len(), 3);
    let gone = rig.seen.switches[2] - before;
    assert!(gone <= 128.0 * MIB, "after {gone} bytes, which is 50 ms of a busy link");
}

#[test]
fn one_stall_of_a_fast_link_costs_compression_for_a_while_and_not_for_ever() {
    let mut rig = Rig::new(2e9, 600e6);
    rig.send(2.0 * GIB, 0.17);
    rig.policy.on_sent(0, 5 * SECOND);
    rig.send(4.0 * GIB, 0.17);
    assert_eq!(rig.seen.switches.len(), 3);
    assert!(matches!(rig.policy.mode, super::Mode::Raw { .. }));
}

#[test]
fn while_the_link_is_faster_one_block_in_256_is_tried_and_tells_when_the_content_has_changed() {
    let mut rig = Rig::new(2e9, 600e6);
    rig.send(GIB, 0.17);
    assert_eq!(rig.seen.switches.len(), 1);
    let tried = rig.seen.tries;
    rig.send(f64::from(10 * TRIAL_BLOCKS) * BLOCK_BYTES as f64, 0.17);
    assert_eq!(rig.seen.tries - tried, 10);

    // The link slows to where compression to 0.17 would pay and to 0.9 does not.
    rig.send(f64::from(20 * TRIAL_BLOCKS) * BLOCK_BYTES as f64, 0.9);
    rig.link = 50e6;
    rig.send(GIB, 0.9);
    assert_eq!(rig.seen.switches.len(), 1);
    rig.send(f64::from(20 * TRIAL_BLOCKS) * BLOCK_BYTES as f64, 0.17);
    assert_eq!(rig.seen.switches.len(), 2);
}

#[test]
fn where_the_user_chose_the_codec_the_link_does_not_matter() {
    let mut rig = Rig::new(2e9, 600e6);
    rig.policy = Policy::new(Some(Codec::Lz4), false, 1);
    rig.send(GIB, 0.5);
    assert_eq!(rig.seen.tries, rig.seen.blocks);
    assert_eq!(rig.policy.summary(), "lz4: link 2.0 GB/s, codec 600 MB/s, ratio 0.50");
}

#[test]
fn without_an_agreed_codec_everything_is_sent_as_it_is() {
    let mut rig = Rig::new(10e6, 600e6);
    rig.policy = Policy::new(None, true, 2);
    rig.send(64.0 * MIB, 0.17);
    assert_eq!(rig.seen.tries, 0);
    assert_eq!(rig.policy.summary(), "none: no codec was agreed");
}

#[test]
fn random_content_is_tried_in_two_percent_of_its_blocks_and_almost_never_without_samples() {
    let mut rig = Rig::new(100e6, 600e6);
    rig.send(10.0 * GIB, 1.0);
    let Rig { seen, policy, .. } = rig;
    assert!(seen.tries * 50 <= seen.blocks, "{} of {} blocks tried", seen.tries, seen.blocks);
    assert!((2..seen.blocks / 500).contains(&seen.blind), "{} of {} tried without samples", seen.blind, seen.blocks);
    assert!(seen.switches.is_empty());
    assert_eq!(policy.summary(), "zstd: content does not compress, 0 of 20480 blocks packed");
}

#[test]
fn a_pause_begins_after_four_blocks_that_did_not_pay_and_doubles_up_to_64_blocks() {
    let mut rig = Rig::new(100e6, 600e6);
    let tried: Vec<bool> = (0..400).map(|_| rig.block(1.0, true)).collect();
    let mut pauses = tried.split(|&tried| tried).map(<[bool]>::len).skip(UNPAID_BLOCKS as usize);
    assert!(tried[..UNPAID_BLOCKS as usize].iter().all(|&tried| tried));
    assert_eq!(pauses.next(), Some(PAUSE_BLOCKS as usize));
    assert_eq!(pauses.by_ref().take(4).collect::<Vec<_>>(), [16, 32, 64, 64]);
    assert_eq!(MAX_PAUSE_BLOCKS, 64);
}

#[test]
fn a_file_that_turns_compressible_in_the_middle_is_noticed_within_one_pause() {
    let mut rig = Rig::new(100e6, 600e6);
    rig.send(GIB, 1.0);
    let missed = (0..1000).take_while(|_| !rig.block(0.2, false)).count();
    assert!(missed <= MAX_PAUSE_BLOCKS as usize, "{missed} blocks");
    assert!((0..1000).all(|_| rig.block(0.2, false)), "one success ends the pause");
}

#[test]
fn content_of_which_samples_say_that_it_does_not_compress_is_found_out_in_the_end() {
    let mut rig = Rig::new(100e6, 600e6);
    rig.send(GIB, 1.0);
    let raw = (0..2000).map(|_| rig.block(0.5, true)).collect::<Vec<bool>>();
    let found = raw.windows(3).position(|window| window == [true; 3]).unwrap();
    assert!(found <= 16 * (MAX_PAUSE_BLOCKS as usize + 1), "after {found} blocks");
    assert!(raw[found..].iter().all(|&tried| tried), "the last one paid: no more samples");
}

#[test]
fn results_that_come_late_neither_prolong_a_pause_nor_are_missed() {
    let mut policy = Policy::new(Some(Codec::Zstd), true, 2);
    let planned = |policy: &mut Policy, blocks: u32| (0..blocks).filter(|_| policy.plan() != Plan::Raw).count();
    assert_eq!(planned(&mut policy, 12), 12);
    (0..12).for_each(|_| policy.on_packed(BLOCK_BYTES, None, 1000));
    assert_eq!(planned(&mut policy, PAUSE_BLOCKS), 0);
    assert_eq!(planned(&mut policy, 1), 1);
    // The try is still out; nothing waits for it, and when it pays the pause is over.
    assert_eq!(planned(&mut policy, 5), 0);
    policy.on_packed(BLOCK_BYTES, Some(1000), 1000);
    assert_eq!(planned(&mut policy, 5), 5);
}

#[test]
fn large_blocks_are_of_use_once_a_block_has_paid_and_only_to_zstandard() {
    for (codec, gains) in [(Codec::Zstd, true), (Codec::Lz4, false)] {
        let mut policy = Policy::new(Some(codec), true, 2);
        assert!(!policy.gains_from_size(), "nobody knows yet");
        policy.plan();
        policy.on_packed(BLOCK_BYTES, None, 1000);
        assert!(!policy.gains_from_size());
        policy.plan();
        policy.on_packed(BLOCK_BYTES, Some(1000), 1000);
        assert_eq!(policy.gains_from_size(), gains, "{codec:?}");
    }
}

#[test]
fn nothing_measured_yet_decides_nothing_and_absurd_numbers_do_no_harm() {
    let mut policy = Policy::new(Some(Codec::Zstd), true, 0);
    assert_eq!(policy.summary(), "zstd: nothing was compressed");
    for bytes in [0, LINK_BUFFER_BYTES, 1, LINK_BUFFER_BYTES, u64::MAX, u64::MAX] {
        for nanos in [0, SECOND, u64::MAX] {
            policy.on_sent(bytes, 0);
            policy.on_sent(bytes, nanos);
            assert_eq!(policy.plan(), Plan::Compress { codec: Codec::Zstd, probe: false });
        }
    }
    for (raw, packed, nanos) in [(0, None, 0), (0, Some(0), 0), (1, Some(0), 0), (1, Some(1), 1)] {
        policy.on_packed(raw, packed, nanos);
        policy.on_packed(usize::MAX, Some(usize::MAX), u64::MAX);
        policy.on_sent(LINK_BUFFER_BYTES, 0);
        policy.on_sent(LINK_BUFFER_BYTES, SECOND);
        policy.plan();
        let summary = policy.summary();
        assert!(!summary.contains("inf") && !summary.contains("NaN"), "{summary}");
    }
}

#[test]
fn a_short_transfer_tells_what_is_known_without_the_link() {
    let mut rig = Rig::new(10e6, 640e6);
    rig.send(4.0 * MIB, 0.17);
    assert_eq!(rig.policy.summary(), "zstd: codec 640 MB/s, ratio 0.17");
    assert_eq!(super::Shown(9.84e6).to_string(), "9.8 MB/s");
    assert_eq!(super::Shown(9.96e6).to_string(), "10 MB/s");
    assert_eq!(super::Shown(9.996e8).to_string(), "1.0 GB/s");
    assert_eq!(super::Shown(1.94e9).to_string(), "1.9 GB/s");
}
