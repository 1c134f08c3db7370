//! Embeddings as the rows of one matrix, and the products of all of them with one embedding or with many.

use ndarray::{ArrayView2, ShapeBuilder as _};
use pulp::Simd;
use rayon::prelude::*;

mod rows;

use facepipe_shared::simd::{Kernel, RegisterTile, SimdLevel};

/// Floats of a cache line.
const LINE: usize = 16;

/// Rows whose products are computed together.
const BLOCK: usize = 256;

/// Queries that a block of rows is multiplied with together: memory for products does not grow with the number of queries.
const QUERY_BLOCK: usize = 1024;

/// Rows that are read side by side, so that their additions can overlap.
const TILE: usize = 4;

/// The row nearest to a query, and its product with it.
pub(crate) type Nearest = Option<(usize, f32)>;

/// A cache line of floats.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
struct CacheLine([f32; LINE]);

/// Vectors of the same length, row by row in one piece of memory. Every row begins with a cache line and is padded with
/// zeros to the end of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix {
    lines: Vec<CacheLine>,
    rows: usize,
    columns: usize,
}

/// A vector that the rows of a matrix can be multiplied with: aligned and padded as they are.
#[derive(Debug, Clone)]
pub(crate) struct Query(Matrix);

impl Matrix {
    /// Returns a matrix of zeros.
    pub(crate) fn zeros(rows: usize, columns: usize) -> Self {
        let lines = vec![CacheLine([0.0; LINE]); rows * lines_of(columns)];
        Self { lines, rows, columns }
    }

    /// Returns the vectors as rows; longer ones than the first are cut off, shorter ones are filled with zeros.
    pub(crate) fn from_vectors(vectors: &[Vec<f32>]) -> Self {
        let mut matrix = Self::zeros(vectors.len(), vectors.first().map_or(0, Vec::len));
        for (row, vector) in matrix.iter_mut().zip(vectors) {
            row.iter_mut().zip(vector).for_each(|(to, from)| *to = *from);
        }
        matrix
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the number of floats from the beginning of a row to that of the next.
    fn stride(&self) -> usize {
        lines_of(self.columns) * LINE
    }

    fn floats(&self) -> &[f32] {
        // SAFETY: a line is 16 floats without anything between or behind them (64 bytes in all), and lines of a vector
        // follow each other.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive, and any floats make a line.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE) }
    }

    /// Returns a row, `[columns]`.
    pub(crate) fn row(&self, row: usize) -> Option<&[f32]> {
        if row >= self.rows {
            return None;
        }
        self.floats().get(row * self.stride()..)?.get(..self.columns)
    }

    /// Returns the rows in order, `[columns]` each.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.floats().chunks_exact(self.stride()).map(|row| row.get(..self.columns).unwrap_or_default())
    }

    /// Returns the rows in order, mutable.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let (stride, columns) = (self.stride(), self.columns);
        self.floats_mut().chunks_exact_mut(stride).map(move |row| row.get_mut(..columns).unwrap_or_default())
    }

    /// Returns the matrix as `[rows, columns]`, without a copy; `None` never, as the shape is that of the memory.
    pub(crate) fn view(&self) -> Option<ArrayView2<'_, f32>> {
        let shape = (self.rows, self.columns).strides((self.stride(), 1));
        ArrayView2::from_shape(shape, self.floats()).ok()
    }

    /// Returns the product of one row with `query`, bit-identical to that of [`scan`](Self::scan).
    pub(crate) fn dot(&self, row: usize, query: &Query) -> Option<f32> {
        let stride = self.stride();
        let floats = self.floats().get(row.checked_mul(stride)?..)?.get(..stride)?;
        let mut product = [0.0];
        products(SimdLevel::best(), floats, query, &mut product);
        product.first().copied()
    }

    /// Calls `each` with the first row of a block and the products of its rows with `query`, block by block.
    pub(crate) fn scan(&self, query: &Query, mut each: impl FnMut(usize, &[f32])) {
        let (level, stride) = (SimdLevel::best(), self.stride());
        let mut values = [0.0; BLOCK];
        for (block, floats) in self.floats().chunks(BLOCK * stride).enumerate() {
            let values = values.get_mut(..floats.len() / stride).unwrap_or_default();
            products(level, floats, query, values);
            each(block * BLOCK, values);
        }
    }

    /// Returns the greatest product of a row with `query`; minus infinity without rows.
    pub(crate) fn max(&self, query: &Query) -> f32 {
        let mut max = f32::NEG_INFINITY;
        self.scan(query, |_, values| max = values.iter().copied().fold(max, f32::max));
        max
    }

    /// Finds the row with the greatest product with each row of `queries`, the first of equal ones; without the row that
    /// `except` names for that query, if it names one. `None` where no row is left. In parallel, every row is read once for all
    /// queries.
    pub(crate) fn nearest(&self, queries: &Self, except: &[Option<usize>]) -> Vec<Nearest> {
        let (level, stride) = (SimdLevel::best(), self.stride());
        if queries.stride() != stride {
            return vec![None; queries.rows];
        }
        let of_block = |(mut best, mut products): (Vec<Nearest>, Vec<f32>),
                        (block, rows): (usize, &[f32])| {
            let count = rows.len() / stride;
            let mut best_of_queries = best.iter_mut().enumerate();
            for queries in queries.floats().chunks(QUERY_BLOCK * stride) {
                products.resize(queries.len() / stride * count, 0.0);
                level.run(ManyProducts { rows, queries, stride, out: &mut products });
                for (products, (query, best)) in products.chunks_exact(count).zip(&mut best_of_queries) {
                    let left_out = except.get(query).copied().flatten();
                    for (row, &product) in (block * BLOCK..).zip(products) {
                        if best.is_none_or(|(_, highest)| product > highest) && left_out != Some(row) {
                            *best = Some((row, product));
                        }
                    }
                }
            }
            (best, products)
        };
        let blocks = self.floats().par_chunks(BLOCK * stride).enumerate();
        let found = blocks.fold(|| (vec![None; queries.rows], Vec::new()), of_block).map(|(best, _)| best);
        found.reduce(
            || vec![None; queries.rows],
            |one, other| one.into_iter().zip(other).map(|(one, other)| nearer(one, other)).collect(),
        )
    }
}

/// Returns the greater of two products, or of equal ones that of the first row.
fn nearer(one: Nearest, other: Nearest) -> Nearest {
    match (one, other) {
        (Some(a), Some(b)) => Some(if b.1 > a.1 || (b.1 == a.1 && b.0 < a.0) { b } else { a }),
        (one, other) => one.or(other),
    }
}

impl Query {
    pub(crate) fn new(embedding: &[f32]) -> Self {
        let mut row = Matrix::zeros(1, embedding.len());
        row.iter_mut().for_each(|row| row.copy_from_slice(embedding));
        Self(row)
    }
}

/// Returns the number of cache lines of a row: at least one, so that rows have a length.
fn lines_of(columns: usize) -> usize {
    columns.div_ceil(LINE).max(1)
}

/// Writes the product of each row with `query`. Rows are as long as `query`, or those that are not count as nothing.
fn products(level: SimdLevel, rows: &[f32], query: &Query, out: &mut [f32]) {
    level.run(Products { rows, query: query.0.floats(), out });
}

struct Products<'a> {
    rows: &'a [f32],
    query: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: RegisterTile>(self, simd: S) {
        let stride = self.query.len();
        let (query, _) = S::as_simd_f32s(self.query);
        let tiles = self.rows.chunks_exact(TILE * stride);
        let (out, rest) = self.out.as_chunks_mut::<TILE>();
        let last = tiles.remainder();
        for (tile, out) in tiles.zip(out) {
            let (a, tile) = tile.split_at(stride);
            let (b, tile) = tile.split_at(stride);
            let (c, d) = tile.split_at(stride);
            let rows =
                [S::as_simd_f32s(a).0, S::as_simd_f32s(b).0, S::as_simd_f32s(c).0, S::as_simd_f32s(d).0];
            let mut sums = [simd.splat_f32s(0.0); TILE];
            for ((((&q, &a), &b), &c), &d) in query.iter().zip(rows[0]).zip(rows[1]).zip(rows[2]).zip(rows[3])
            {
                sums[0] = simd.mul_add_e_f32s(a, q, sums[0]);
                sums[1] = simd.mul_add_e_f32s(b, q, sums[1]);
                sums[2] = simd.mul_add_e_f32s(c, q, sums[2]);
                sums[3] = simd.mul_add_e_f32s(d, q, sums[3]);
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = simd.reduce_sum_f32s(sum);
            }
        }
        for (row, out) in last.chunks_exact(stride).zip(rest) {
            let mut sum = simd.splat_f32s(0.0);
            for (&q, &a) in query.iter().zip(S::as_simd_f32s(row).0) {
                sum = simd.mul_add_e_f32s(a, q, sum);
            }
            *out = simd.reduce_sum_f32s(sum);
        }
    }
}

/// The products of some rows with all queries, `[queries][rows]`.
struct ManyProducts<'a> {
    rows: &'a [f32],
    queries: &'a [f32],
    stride: usize,
    out: &'a mut [f32],
}

impl Kernel for ManyProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: RegisterTile>(self, simd: S) {
        let Self { rows, queries, stride, out } = self;
        let count = rows.len() / stride;
        let mut done = 0;
        let groups = queries.chunks_exact(TILE * stride);
        let last = groups.remainder();
        for group in groups {
            let out = out.get_mut(done * count..).unwrap_or_default();
            // With too few registers for 4 x 4 sums: half of them, twice.
            if S::REGISTER_COUNT >= 32 {
                group_products::<S, TILE>(simd, rows, group, stride, out);
            } else {
                let (first, second) = group.split_at(TILE / 2 * stride);
                let (out, behind) = out.split_at_mut(TILE / 2 * count);
                group_products::<S, { TILE / 2 }>(simd, rows, first, stride, out);
                group_products::<S, { TILE / 2 }>(simd, rows, second, stride, behind);
            }
            done += TILE;
        }
        for query in last.chunks_exact(stride) {
            let out = out.get_mut(done * count..).unwrap_or_default();
            group_products::<S, 1>(simd, rows, query, stride, out);
            done += 1;
        }
    }
}

/// Computes the products of all rows with `QUERIES` queries, by tiles of [`TILE`] rows. Every sum is that of
/// [`Products`].
#[inline(always)]
fn group_products<S: Simd, const QUERIES: usize>(
    simd: S,
    rows: &[f32],
    queries: &[f32],
    stride: usize,
    out: &mut [f32],
) {
    let count = rows.len() / stride;
    let mut first = 0;
    while first < count {
        let tile = TILE.min(count - first);
        let mut row_vectors: [&[S::f32s]; TILE] = [&[]; TILE];
        for (row, vectors) in row_vectors.iter_mut().enumerate() {
            // Beyond the last row, the last row is repeated; its products are not written.
            let start = (first + row.min(tile - 1)) * stride;
            *vectors = S::as_simd_f32s(rows.get(start..start + stride).unwrap_or_default()).0;
        }
        let mut query_vectors: [&[S::f32s]; QUERIES] = [&[]; QUERIES];
        for (query, vectors) in query_vectors.iter_mut().enumerate() {
            let start = query * stride;
            *vectors = S::as_simd_f32s(queries.get(start..start + stride).unwrap_or_default()).0;
        }
        let mut sums = [[simd.splat_f32s(0.0); QUERIES]; TILE];
        let [a, b, c, d] = row_vectors;
        for (position, (((&a, &b), &c), &d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
            let mut values = [simd.splat_f32s(0.0); QUERIES];
            for (value, vectors) in values.iter_mut().zip(query_vectors) {
                if let Some(vector) = vectors.get(position) {
                    *value = *vector;
                }
            }
            for (sums, row) in sums.iter_mut().zip([a, b, c, d]) {
                for (sum, query) in sums.iter_mut().zip(values) {
                    *sum = simd.mul_add_e_f32s(row, query, *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate().take(tile) {
            for (query, sum) in sums.iter().enumerate() {
                if let Some(out) = out.get_mut(query * count + first + row) {
                    *out = simd.reduce_sum_f32s(*sum);
                }
            }
        }
        first += tile;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::Rng as _;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};

    use super::*;

    /// Returns random unit vectors as rows.
    pub(crate) fn random(rows: usize, columns: usize) -> Matrix {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut matrix = Matrix::zeros(rows, columns);
        for row in matrix.iter_mut() {
            row.iter_mut().for_each(|value| *value = random.random_range(-1.0..1.0));
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter_mut().for_each(|value| *value /= length);
        }
        matrix
    }

    #[test]
    fn rows_begin_with_cache_lines_and_are_those_that_were_written() {
        for (rows, columns) in [(0, 5), (1, 1), (3, 16), (5, 17), (7, 128)] {
            let matrix = random(rows, columns);
            assert_eq!((matrix.rows(), matrix.columns(), matrix.iter().len()), (rows, columns, rows));
            for (index, row) in matrix.iter().enumerate() {
                assert!(row.as_ptr().addr().is_multiple_of(64));
                assert_eq!(matrix.row(index), Some(row));
                assert_eq!(matrix.view().unwrap().row(index).to_vec(), row);
            }
            assert_eq!((matrix.row(rows), matrix.dot(rows, &Query::new(&vec![0.0; columns]))), (None, None));
        }
    }

    #[test]
    fn products_of_every_level_are_those_of_scalar_arithmetic() {
        for (rows, columns) in [(1, 1), (2, 3), (5, 16), (9, 40), (300, 128), (1030, 512)] {
            let matrix = random(rows, columns);
            let query = random(1, columns);
            let query_row = query.row(0).unwrap();
            let exact: Vec<f64> = matrix
                .iter()
                .map(|row| row.iter().zip(query_row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
                .collect();
            for level in SimdLevel::available() {
                let mut out = vec![0.0; rows];
                products(level, matrix.floats(), &Query::new(query_row), &mut out);
                for (ours, exact) in out.iter().zip(&exact) {
                    assert!((f64::from(*ours) - exact).abs() < 1e-6, "{level:?}: {ours}, exactly {exact}");
                }
            }
        }
    }

    #[test]
    fn a_scan_gives_every_row_the_bits_that_the_row_alone_has() {
        let matrix = random(BLOCK * 2 + 7, 40);
        let query = Query::new(random(9, 40).row(8).unwrap());
        let mut all = Vec::new();
        matrix.scan(&query, |first, values| {
            assert_eq!(first, all.len());
            all.extend_from_slice(values);
        });
        assert_eq!(all.len(), matrix.rows());
        for (row, value) in all.iter().enumerate() {
            assert_eq!(matrix.dot(row, &query).map(f32::to_bits), Some(value.to_bits()));
        }
        assert_eq!(matrix.max(&query), all.iter().copied().fold(-1.0, f32::max));
        assert_eq!(Matrix::zeros(0, 40).max(&query), f32::NEG_INFINITY);
    }

    #[test]
    fn the_nearest_row_of_many_queries_is_that_of_a_scan_without_the_one_left_out() {
        for (rows, columns) in [(0, 40), (1, 40), (BLOCK + 6, 40), (3 * BLOCK, 128)] {
            let (matrix, queries) = (random(rows, columns), random(11, columns));
            let own = |query: usize| (query % 3 == 1).then_some(query * 5);
            let except: Vec<Option<usize>> = (0..11).map(own).collect();
            let found = matrix.nearest(&queries, &except);
            assert_eq!(found.len(), 11);
            for (query, (row, found)) in queries.iter().zip(found).enumerate() {
                let row = Query::new(row);
                let mut best: Nearest = None;
                for other in (0..rows).filter(|other| own(query) != Some(*other)) {
                    let product = matrix.dot(other, &row).unwrap();
                    if best.is_none_or(|(_, highest)| product > highest) {
                        best = Some((other, product));
                    }
                }
                assert_eq!(found, best, "query {query} of {rows} rows");
            }
        }
        // More queries than are multiplied together, each equal to a row.
        let matrix = random(QUERY_BLOCK + BLOCK + 9, 16);
        let found = matrix.nearest(&matrix, &[]);
        assert!(
            found.iter().enumerate().all(|(row, found)| found.is_some_and(|(nearest, _)| nearest == row))
        );
        // Every level, and rows that do not fill a tile.
        let (matrix, queries) = (random(7, 48), random(6, 48));
        let (rows, stride) = (matrix.floats(), matrix.stride());
        for level in SimdLevel::available() {
            let mut out = [0.0; 42];
            level.run(ManyProducts { rows, queries: queries.floats(), stride, out: &mut out });
            for (query, out) in queries.iter().zip(out.chunks(7)) {
                let mut alone = [0.0; 7];
                products(level, rows, &Query::new(query), &mut alone);
                assert_eq!(out, alone, "{level:?}");
            }
        }
        // The first of equal rows is found.
        let mut twice = Matrix::zeros(600, 16);
        twice.iter_mut().for_each(|row| row.fill(0.25));
        assert_eq!(twice.nearest(&random(1, 16), &[Some(0)])[0].map(|(row, _)| row), Some(1));
    }
}
