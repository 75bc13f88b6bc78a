//! The one source of chance in tests: SplitMix64, which is small and gives the same numbers everywhere.
//!
//! Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.

/// A seeded sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number. Not an iterator: it never ends and nobody collects it.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// An index below `len`, which is not 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A number from 1 to `max` whose magnitude is even over the powers of two: as often 1 as something near `max`.
    pub fn magnitude(&mut self, max: u64) -> u64 {
        let bits = u64::from(u64::BITS - max.leading_zeros());
        let top = 1u64.checked_shl(self.below(bits + 1) as u32).unwrap_or(u64::MAX);
        1 + self.below(top.min(max))
    }

    /// Another sequence, as far as can be told independent of this one.
    pub fn fork(&mut self) -> Random {
        Random(self.next())
    }
}
