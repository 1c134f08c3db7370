//! Buffers aligned to cache lines: a wide load or store that crosses a cache line costs twice as much.

use std::ops::{Deref, DerefMut};

/// Floats of a cache line.
const LINE: usize = 16;

/// A cache line of floats.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([f32; LINE]);

/// Floats, the first at the beginning of a cache line. They go on to the end of a line.
#[derive(Debug, Clone, Default)]
pub(super) struct AlignedFloats(Vec<CacheLine>);

impl AlignedFloats {
    pub(super) const EMPTY: Self = Self(Vec::new());

    /// Returns at least `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        Self(vec![CacheLine([0.0; LINE]); len.div_ceil(LINE)])
    }

    /// Grows to at least `len`. A buffer that grows loses its values and is filled with zeros.
    pub(super) fn grow(&mut self, len: usize) {
        if self.len() < len {
            // Freed first; its values need not be copied.
            *self = Self::EMPTY;
            *self = Self::zeros(len);
        }
    }
}

impl Deref for AlignedFloats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is 16 floats without anything between or behind them (64 bytes in all), and lines of a vector
        // follow each other.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }
}

impl DerefMut for AlignedFloats {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive, and any floats make a line.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_has_the_requested_length() {
        for len in [0, 1, 15, 16, 17, 1000, 100_000] {
            let mut floats = AlignedFloats::zeros(len);
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
