//! Chance that can be had again.

use std::ops::Range;

/// A small generator (splitmix64): equal seeds give equal numbers.
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// From `JETON_TEST_SEED`, else anew; the seed is printed, so that a failure can be run again.
    pub(crate) fn new() -> Self {
        let given = std::env::var("JETON_TEST_SEED")
            .ok()
            .map(|seed| seed.parse().expect("JETON_TEST_SEED is a number"));
        let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        eprintln!("JETON_TEST_SEED={seed}");
        Self(seed)
    }

    /// Seed that it was made from, while nothing was drawn.
    pub(crate) fn seed(&self) -> u64 {
        self.0
    }

    /// Another generator, for another thread of work.
    pub(crate) fn split(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// True if the long forms are asked for.
pub(crate) fn long() -> bool {
    std::env::var("JETON_TEST_LONG").is_ok_and(|value| value == "1")
}
