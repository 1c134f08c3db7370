//! Buffers that begin at a cache line, so that no whole vector in them crosses one: the wide loads and stores of the kernels
//! that do cost twice.

use std::ops::{Deref, DerefMut};

/// Floats of a cache line.
const LINE: usize = 16;

/// A cache line of floats.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats, the first at the beginning of a cache line. They go on to the end of a line.
#[derive(Debug, Clone, Default)]
pub(super) struct Floats(Vec<Line>);

impl Floats {
    pub(super) const EMPTY: Self = Self(Vec::new());

    /// At least `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self(vec![Line([0.0; LINE]); len.div_ceil(LINE)])
    }

    /// Makes it hold at least `len`. What is in it is lost where it was shorter, and zeros take its place.
    pub(super) fn grow(&mut self, len: usize) {
        if self.len() < len {
            // Freed first, and nothing in it is worth to be copied along.
            *self = Self::EMPTY;
            *self = Self::zeros(len);
        }
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is 16 floats without anything between or behind them (64 bytes in all), and lines of a vector
        // follow each other.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive, and any floats make a line.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_at_a_cache_line_and_holds_what_was_asked_for() {
        for len in [0, 1, 15, 16, 17, 1000, 100_000] {
            let mut floats = Floats::zeros(len);
            assert!(floats.len() >= len && floats.len() < len + LINE);
            assert!(floats.as_ptr().addr().is_multiple_of(64));
            assert!(floats.iter().all(|&value| value == 0.0));
            floats.fill(1.0);
            floats.grow(len);
            assert!(floats.iter().all(|&value| value == 1.0));
            floats.grow(2 * len + 16);
            assert!(floats.len() >= 2 * len + 16 && floats.iter().all(|&value| value == 0.0));
        }
    }
}
