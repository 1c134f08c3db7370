//! A copy of a matrix' rows in a quarter of their size, for a first pass that finds all rows that can be among the
//! best.

use facepipe_shared::simd::{Kernel, RegisterTile, SimdLevel};
use rayon::prelude::*;

use crate::{embedding::to_f32, matrix::Matrix};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Rows whose products are computed together.
const BLOCK: usize = 256;

/// The greatest magnitude of a component.
const MAX_COMPONENT: i8 = 127;

/// A cache line of components.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([i8; LINE]);

/// Rows in eight bits a component, each with a scale of its own: `value = scale * component`. Products of integers are exact, so
/// they are the same for every set of vector instructions.
#[derive(Debug, Clone)]
pub(crate) struct Quantised {
    lines: Vec<CacheLine>,
    /// Components from the beginning of a row to that of the next.
    stride: usize,
    scales: Vec<f32>,
    /// The greatest Euclidean distance between a row and its original.
    error: f64,
}

/// A vector that the rows can be multiplied with.
#[derive(Debug)]
pub(crate) struct QuantisedQuery {
    components: Vec<i16>,
    scale: f64,
    /// How far a product may be from the exact one.
    error: f64,
}

impl Quantised {
    pub(crate) fn new(matrix: &Matrix) -> Self {
        let stride = matrix.columns().div_ceil(LINE).max(1) * LINE;
        let mut lines = vec![CacheLine([0; LINE]); matrix.rows() * stride / LINE];
        let rows: Vec<&[f32]> = matrix.iter().collect();
        let (scales, errors): (Vec<f32>, Vec<f64>) = lines
            .par_chunks_mut(stride / LINE)
            .zip(rows)
            .map(|(lines, row)| {
                let largest = largest(row);
                let scale = largest / f32::from(MAX_COMPONENT);
                let inverse =
                    if largest > f32::MIN_POSITIVE { f32::from(MAX_COMPONENT) / largest } else { 0.0 };
                let mut squares = 0.0;
                for (line, values) in lines.iter_mut().zip(row.chunks(LINE)) {
                    for (to, &value) in line.0.iter_mut().zip(values) {
                        *to = rounded(value, inverse);
                        let error = value - scale * f32::from(*to);
                        squares += f64::from(error * error);
                    }
                }
                (scale, squares.sqrt())
            })
            .unzip();
        Self { lines, stride, scales, error: errors.into_iter().fold(0.0, f64::max) }
    }

    fn components(&self) -> &[i8] {
        // SAFETY: a line is 64 bytes without anything between or behind them, and lines of a vector follow each other.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    /// Quantises an L2-normalised embedding for [`scan`](Self::scan); the rows are L2-normalised too.
    pub(crate) fn query(&self, embedding: &[f32]) -> QuantisedQuery {
        // As fine as possible without a sum of products that overflows 32 bits.
        let terms = i32::try_from(self.stride).unwrap_or(i32::MAX).saturating_mul(MAX_COMPONENT.into());
        let limit = i16::try_from(i32::MAX / terms).unwrap_or(i16::MAX);
        let scale = largest(embedding) / f32::from(limit);
        let mut components = vec![0; self.stride];
        let mut squares = 0.0;
        for (to, &value) in components.iter_mut().zip(embedding) {
            *to = rounded_finely(value, scale);
            let error = f64::from(value) - f64::from(scale) * f64::from(*to);
            squares += error * error;
        }
        // With x and q of length 1 and x', q' next to them: |x q - x' q'| <= |x - x'| |q| + |x'| |q - q'|. The rest is for
        // the rounding of lengths and of exact products.
        let error = self.error + (1.0 + self.error) * f64::sqrt(squares) + 1e-5;
        QuantisedQuery { components, scale: scale.into(), error }
    }

    /// Calls `each` with the first row of a block, the approximate products of its rows with `query`, and the greatest of
    /// them, block by block.
    pub(crate) fn scan(&self, query: &QuantisedQuery, mut each: impl FnMut(usize, &[f32], f32)) {
        let level = SimdLevel::best();
        let mut products = [0.0; BLOCK];
        let blocks = self.components().chunks(BLOCK * self.stride).zip(self.scales.chunks(BLOCK));
        for (block, (rows, scales)) in blocks.enumerate() {
            let out = products.get_mut(..scales.len()).unwrap_or_default();
            let highest = level.run(Products { rows, scales, query, out });
            each(block * BLOCK, out, highest);
        }
    }
}

impl QuantisedQuery {
    /// Returns how far a product may be from the exact one.
    pub(crate) fn error(&self) -> f64 {
        self.error
    }
}

/// Returns the greatest magnitude of a component.
fn largest(vector: &[f32]) -> f32 {
    vector.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// Rounds `value * scale`, which must be in the range of the integer.
#[expect(clippy::cast_possible_truncation, reason = "the lowest eight bits are the integer")]
fn rounded(value: f32, scale: f32) -> i8 {
    /// Added to a small number, leaves its nearest integer in the lowest bits: without a call, so that a whole vector is
    /// rounded at once.
    const ROUND: f32 = 12_582_912.0;
    (value * scale + ROUND).to_bits() as i8
}

/// Rounds `value / scale` to an integer; 0 if the scale is 0.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what this is for; `as` keeps to the range")]
fn rounded_finely(value: f32, scale: f32) -> i16 {
    if scale > 0.0 { (value / scale).round() as i16 } else { 0 }
}

/// Returns the greatest product.
struct Products<'a> {
    rows: &'a [i8],
    scales: &'a [f32],
    query: &'a QuantisedQuery,
    out: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: RegisterTile>(self, _: S) -> f32 {
        let Self { rows, scales, query, out } = self;
        let components = query.components.as_slice();
        let mut highest = f32::NEG_INFINITY;
        for ((row, &scale), out) in rows.chunks_exact(components.len()).zip(scales).zip(out) {
            // The compiler makes products of sixteen bits and sums of pairs of it.
            let mut sum = 0_i32;
            for (&a, &b) in row.iter().zip(components) {
                sum = sum.wrapping_add(i32::from(a) * i32::from(b));
            }
            let product = to_f32(f64::from(sum) * query.scale * f64::from(scale));
            if product > highest {
                highest = product;
            }
            *out = product;
        }
        highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Query, tests::random};

    #[test]
    fn approximate_products_are_as_near_to_the_exact_ones_as_promised_and_the_same_on_every_level() {
        for (rows, columns) in [(1, 1), (3, 3), (70, 64), (BLOCK + 9, 128), (300, 512), (5, 4000)] {
            let (matrix, query) = (random(rows, columns), random(2, columns));
            let (quantised, query) = (Quantised::new(&matrix), query.row(1).unwrap());
            let coarse = quantised.query(query);
            assert!(coarse.error() < 0.05, "{}", coarse.error());
            let mut all = Vec::new();
            quantised.scan(&coarse, |first, products, highest| {
                assert_eq!(first, all.len());
                assert_eq!(products.iter().copied().fold(-2.0, f32::max), highest);
                all.extend_from_slice(products);
            });
            assert_eq!(all.len(), rows);
            let exact = Query::new(query);
            for (row, product) in all.iter().enumerate() {
                let exact = matrix.dot(row, &exact).unwrap();
                assert!(f64::from(exact - product).abs() <= coarse.error(), "{product}, exactly {exact}");
            }
            for level in SimdLevel::available() {
                let mut out = vec![0.0; rows];
                let (rows, scales) = (quantised.components(), &quantised.scales);
                level.run(Products { rows, scales, query: &coarse, out: &mut out });
                assert_eq!(out, all, "{level:?}");
            }
        }
    }

    #[test]
    fn the_greatest_components_do_not_overflow_a_sum() {
        let mut matrix = Matrix::zeros(2, 4096);
        for (row, sign) in matrix.iter_mut().zip([1.0, -1.0]) {
            row.fill(sign / 64.0);
        }
        let quantised = Quantised::new(&matrix);
        let coarse = quantised.query(matrix.row(0).unwrap());
        quantised.scan(&coarse, |_, products, _| {
            assert!((products[0] - 1.0).abs() < 1e-3 && (products[1] + 1.0).abs() < 1e-3, "{products:?}");
        });
    }
}
