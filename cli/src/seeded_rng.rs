//! Random numbers that are the same for the same seed, on every machine and in every release: only the cipher's own
//! output is used, never a library's way from there to a distribution, which may change.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// A source of random numbers.
pub struct SeededRng(ChaCha8Rng);

impl SeededRng {
    /// The numbers of `seed`; each `purpose` has its own, so that one may be drawn from more often without changing
    /// the others.
    pub fn new(seed: u64, purpose: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(purpose);
        Self(rng)
    }

    /// From 0 up to, and without, 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a double has")]
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From `low` up to `high`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A number below `count`; 0 where that is 0. The remainder's preference for small numbers is below 2^-40 for
    /// every count of pictures.
    pub fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.0.next_u64() % count).unwrap_or_default()
    }

    /// 0 to 255.
    pub fn byte(&mut self) -> u8 {
        let [low, ..] = self.0.next_u32().to_le_bytes();
        low
    }

    /// Puts `items` into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        let mut rng = SeededRng::new(7, 1);
        let drawn: Vec<usize> = (0..6).map(|_| rng.below(1000)).collect();
        // As they were on the first day.
        assert_eq!(drawn, [175, 533, 538, 589, 818, 440]);
        assert_ne!(SeededRng::new(7, 2).unit().to_bits(), SeededRng::new(7, 1).unit().to_bits());
        assert!((0..1000).all(|_| (-2.0..3.0).contains(&rng.uniform(-2.0, 3.0))));
        let mut order: Vec<usize> = (0..50).collect();
        rng.shuffle(&mut order);
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }
}
