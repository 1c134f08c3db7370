//! Gathers the source bytes around each sampling point of a row into contiguous words.

/// Gathers bytes at given offsets of a row, by byte shuffles of few loads where the processor has them.
#[derive(Debug)]
pub struct ByteGather {
    offsets: Vec<u32>,
    /// The distance of the bytes that are taken at an offset.
    every: usize,
    shuffles: Option<Shuffles>,
}

impl ByteGather {
    /// Prepares to gather `bytes` bytes (2 for [`pairs`](Self::pairs), 4 for [`quads`](Self::quads)) at each of the ascending
    /// `offsets`: neighbours, or with `every` 2 every second one. The rows have at least `length` bytes.
    pub fn new(offsets: Vec<u32>, bytes: usize, every: usize, length: usize) -> Self {
        let shuffles = Shuffles::new(&offsets, bytes, every, length);
        Self { offsets, every, shuffles }
    }

    /// Gathers two bytes of `first` into the low half of each word and two of `second` into the high half.
    pub fn pairs(&self, first: &[u8], second: &[u8], words: &mut [u32]) {
        match (&self.shuffles, self.every) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: shuffles are only made where the processor has AVX2.
            (Some(shuffles), _) => unsafe { avx2::pairs(shuffles, first, second, words) },
            (_, 1) => gather_pairs::<1>(first, second, &self.offsets, words),
            _ => gather_pairs::<2>(first, second, &self.offsets, words),
        }
    }

    /// Gathers four bytes into each word.
    pub fn quads(&self, row: &[u8], words: &mut [u32]) {
        match (&self.shuffles, self.every) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: shuffles are only made where the processor has AVX2.
            (Some(shuffles), _) => unsafe { avx2::quads(shuffles, row, words) },
            (_, 1) => gather_quads::<1>(row, &self.offsets, words),
            _ => gather_quads::<2>(row, &self.offsets, words),
        }
    }
}

#[expect(clippy::indexing_slicing, reason = "offsets are made for rows of this length")]
fn gather_pairs<const EVERY: usize>(first: &[u8], second: &[u8], offsets: &[u32], words: &mut [u32]) {
    for (word, &offset) in words.iter_mut().zip(offsets) {
        let at = offset as usize;
        let (a, b) = (&first[at..=at + EVERY], &second[at..=at + EVERY]);
        *word = u32::from_le_bytes([a[0], a[EVERY], b[0], b[EVERY]]);
    }
}

#[expect(clippy::indexing_slicing, reason = "offsets are made for rows of this length")]
fn gather_quads<const EVERY: usize>(row: &[u8], offsets: &[u32], words: &mut [u32]) {
    for (word, &offset) in words.iter_mut().zip(offsets) {
        let at = offset as usize;
        let q = &row[at..=at + 3 * EVERY];
        *word = u32::from_le_bytes([q[0], q[EVERY], q[2 * EVERY], q[3 * EVERY]]);
    }
}

/// Bytes that a shuffle reads and writes.
const LANES: usize = 16;
/// Maximum number of loads of [`LANES`] bytes that a step picks from.
const LOADS: usize = 4;

/// The steps to gather with byte shuffles, 16 bytes each.
#[derive(Debug)]
struct Shuffles {
    steps: Vec<Step>,
    /// The number of loads in every step.
    loads: usize,
}

#[derive(Debug)]
struct Step {
    /// Where the first load begins. All loads are within the row.
    base: usize,
    /// For each load, which of its bytes goes to which lane; 0x80 for none.
    picks: [[u8; LANES]; LOADS],
}

impl Shuffles {
    /// Returns `None` if the processor has no byte shuffles, if the bytes of one step are too far apart, and for rows and counts
    /// that end in the middle of a step.
    fn new(offsets: &[u32], bytes: usize, every: usize, length: usize) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        let has_shuffles = std::arch::is_x86_feature_detected!("avx2");
        #[cfg(not(target_arch = "x86_64"))]
        let has_shuffles = false;
        if !has_shuffles || !offsets.len().is_multiple_of(LANES / 2) {
            return None;
        }
        [2, LOADS].into_iter().find_map(|loads| {
            let last = length.checked_sub(loads * LANES)?;
            let step = |group: &[u32]| Step::new(group, bytes, every, last);
            let steps: Vec<Step> = offsets.chunks(LANES / bytes).map(step).collect::<Option<_>>()?;
            let fits =
                |step: &Step| step.picks.iter().skip(loads).all(|picks| picks.iter().all(|&at| at == 0x80));
            steps.iter().all(fits).then_some(Self { steps, loads })
        })
    }
}

impl Step {
    /// Prepares loads; `last` is the last position at which the loads may begin.
    fn new(offsets: &[u32], bytes: usize, every: usize, last: usize) -> Option<Self> {
        let base = (*offsets.first()? as usize).min(last);
        let mut picks = [[0x80; LANES]; LOADS];
        let positions =
            offsets.iter().flat_map(|&offset| (0..bytes).map(move |i| offset as usize + i * every));
        for (lane, position) in positions.enumerate() {
            let at = position - base;
            *picks.get_mut(at / LANES)?.get_mut(lane)? = u8::try_from(at % LANES).ok()?;
        }
        Some(Self { base, picks })
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm_or_si128, _mm_setzero_si128, _mm_shuffle_epi8, _mm_storeu_si128,
        _mm_unpackhi_epi16, _mm_unpacklo_epi16,
    };

    use super::{LANES, LOADS, Shuffles, Step};

    #[target_feature(enable = "avx2")]
    pub(super) fn pairs(shuffles: &Shuffles, first: &[u8], second: &[u8], words: &mut [u32]) {
        match shuffles.loads {
            2 => pairs_of::<2>(&shuffles.steps, first, second, words),
            _ => pairs_of::<LOADS>(&shuffles.steps, first, second, words),
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn quads(shuffles: &Shuffles, row: &[u8], words: &mut [u32]) {
        match shuffles.loads {
            2 => quads_of::<2>(&shuffles.steps, row, words),
            _ => quads_of::<LOADS>(&shuffles.steps, row, words),
        }
    }

    #[target_feature(enable = "avx2")]
    fn pairs_of<const N: usize>(steps: &[Step], first: &[u8], second: &[u8], words: &mut [u32]) {
        for (step, words) in steps.iter().zip(words.as_chunks_mut::<8>().0) {
            let (a, b) = (picked::<N>(step, first), picked::<N>(step, second));
            let (low, high) = words.split_at_mut(4);
            store(_mm_unpacklo_epi16(a, b), low);
            store(_mm_unpackhi_epi16(a, b), high);
        }
    }

    #[target_feature(enable = "avx2")]
    fn quads_of<const N: usize>(steps: &[Step], row: &[u8], words: &mut [u32]) {
        for (step, words) in steps.iter().zip(words.as_chunks_mut::<4>().0) {
            store(picked::<N>(step, row), words);
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "steps are made for rows of this length")]
    fn picked<const N: usize>(step: &Step, row: &[u8]) -> __m128i {
        let source = row[step.base..step.base + N * LANES].as_chunks::<LANES>().0;
        let mut all = _mm_setzero_si128();
        for (bytes, picks) in source.iter().zip(&step.picks).take(N) {
            all = _mm_or_si128(all, _mm_shuffle_epi8(load(bytes), load(picks)));
        }
        all
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load(bytes: &[u8; LANES]) -> __m128i {
        // SAFETY: an unaligned load of the 16 bytes that are borrowed.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn store(value: __m128i, words: &mut [u32]) {
        debug_assert_eq!(words.len(), 4);
        if let Some(words) = words.first_chunk_mut::<4>() {
            // SAFETY: an unaligned store to the 16 bytes that are borrowed.
            unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), value) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes bytes that identify their position.
    fn row(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|i| u8::try_from((i * 7 + i / 256 + seed) % 251).unwrap()).collect()
    }

    #[test]
    fn all_implementations_gather_the_same_bytes() {
        let mut shuffled = 0;
        // Distances from about one byte to more than a step can cover; rows that end with the last byte.
        for (step, count) in
            [(1, 8), (3, 8), (15, 40), (22, 640), (30, 640), (60, 320), (90, 64), (120, 48), (7, 13)]
        {
            for every in [1, 2] {
                let offsets: Vec<u32> = (0..count).map(|i| i * step / 10).collect();
                let length = *offsets.last().unwrap() as usize + 3 * every + 1;
                let (first, second) = (row(length, 0), row(length, 100));
                let at = |row: &[u8], offset: u32, i: usize| row[offset as usize + i * every];

                let gather = ByteGather::new(offsets.clone(), 2, every, length);
                let mut words = vec![0; offsets.len()];
                gather.pairs(&first, &second, &mut words);
                for (word, &o) in words.iter().zip(&offsets) {
                    let expected = [at(&first, o, 0), at(&first, o, 1), at(&second, o, 0), at(&second, o, 1)];
                    assert_eq!(word.to_le_bytes(), expected, "pairs, {step} {count} {every} at {o}");
                }
                shuffled += usize::from(gather.shuffles.is_some());

                let gather = ByteGather::new(offsets.clone(), 4, every, length);
                gather.quads(&first, &mut words);
                for (word, &o) in words.iter().zip(&offsets) {
                    let expected = [0, 1, 2, 3].map(|i| at(&first, o, i));
                    assert_eq!(word.to_le_bytes(), expected, "quads, {step} {count} {every} at {o}");
                }
                shuffled += usize::from(gather.shuffles.is_some());
            }
        }
        #[cfg(target_arch = "x86_64")]
        assert!(!std::arch::is_x86_feature_detected!("avx2") || shuffled >= 16, "{shuffled}");
    }
}
