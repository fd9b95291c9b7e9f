use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Random choices that depend on a seed and a stream number alone.
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// Two streams of one seed are independent, so item `n` does not depend on how much item `n - 1` drew.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn range(&mut self, low: usize, high: usize) -> usize {
        // Drawn as u32: the same numbers on 32-bit and 64-bit machines.
        self.0.random_range(low as u32..=high as u32) as usize
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.range(0, 99) < percent
    }

    /// One of `items`, which must not be empty.
    pub(super) fn pick<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.range(0, items.len() - 1)]
    }

    /// Two different ones of `items`, which must hold at least two.
    pub(super) fn pick_two<'a>(&mut self, items: &[&'a str]) -> (&'a str, &'a str) {
        let first = self.range(0, items.len() - 1);
        let second = (first + self.range(1, items.len() - 1)) % items.len();
        (items[first], items[second])
    }

    /// Puts `items` in random order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}
