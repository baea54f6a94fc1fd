//! Chance that can be had again: xorshift (Marsaglia, "Xorshift RNGs", 2003).
pub(super) struct Coin(u64);

impl Coin {
    pub(super) fn new(seed: u64) -> Self {
        // Scattered (the multiplier of Knuth's MMIX), so that seeds close by begin differently; never zero.
        Self(seed.wrapping_mul(6_364_136_223_846_793_005) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn is_heads(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// A number below `bound`; 0 if there is none.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 1).checked_rem(bound as u64).map_or(0, |number| number as usize)
    }
}
