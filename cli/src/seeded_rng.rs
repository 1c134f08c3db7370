//! Random numbers that depend on the seed alone, on every machine and in every release: only the cipher's output is used,
//! not a library's distributions, whose algorithms may change.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// A reproducible random number generator.
pub struct SeededRng(ChaCha8Rng);

impl SeededRng {
    /// Creates the generator of a seed and stream. Streams are independent: drawing more numbers from one does not change
    /// the others.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Returns a number in [0, 1).
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a double has")]
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number in [`low`, `high`).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Returns a number below `count`, or 0 if that is 0. The modulo bias is below 2^-40 for counts up to 2^24.
    pub fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.0.next_u64() % count).unwrap_or_default()
    }

    /// Returns a number from 0 to 255.
    pub fn byte(&mut self) -> u8 {
        let [low, ..] = self.0.next_u32().to_le_bytes();
        low
    }

    /// Shuffles `items` (Fisher-Yates).
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
        // Must never change.
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
