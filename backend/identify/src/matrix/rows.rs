//! Rows that come, change and go, and the products that reach a bound.

use super::{BLOCK, CacheLine, LINE, ManyProducts, Matrix, lines_of};
use facepipe_shared::simd::SimdLevel;

impl Matrix {
    /// Appends a row, `[columns]`.
    pub(crate) fn push(&mut self, row: &[f32]) {
        let lines = self.lines.len() + lines_of(self.columns);
        self.lines.resize(lines, CacheLine([0.0; LINE]));
        self.rows += 1;
        if let Some(own) = self.row_mut(self.rows - 1) {
            own.iter_mut().zip(row).for_each(|(own, value)| *own = *value);
        }
    }

    /// Returns a row, `[columns]`, mutable.
    pub(crate) fn row_mut(&mut self, row: usize) -> Option<&mut [f32]> {
        if row >= self.rows {
            return None;
        }
        let (stride, columns) = (self.stride(), self.columns);
        self.floats_mut().get_mut(row * stride..)?.get_mut(..columns)
    }

    /// Removes a row; the last one takes its place.
    pub(crate) fn swap_remove(&mut self, row: usize) {
        if row >= self.rows {
            return;
        }
        let lines = lines_of(self.columns);
        let last = self.rows - 1;
        self.lines.copy_within(last * lines..(last + 1) * lines, row * lines);
        self.lines.truncate(last * lines);
        self.rows = last;
    }

    /// Calls `each` with a query, a row and their product, for all products of at least `least`. Leaves out the blocks
    /// of rows that end before the row `first`. Every row is read once for all queries.
    pub(crate) fn for_each_above(
        &self,
        queries: &Self,
        first: usize,
        least: f32,
        mut each: impl FnMut(usize, usize, f32),
    ) {
        let (level, stride) = (SimdLevel::best(), self.stride());
        if queries.stride() != stride {
            return;
        }
        let mut values = Vec::new();
        let start = first / BLOCK;
        for (block, rows) in self.floats().chunks(BLOCK * stride).enumerate().skip(start) {
            let count = rows.len() / stride;
            values.resize(queries.rows * count, 0.0);
            level.run(ManyProducts { rows, queries: queries.floats(), stride, out: &mut values });
            for (query, products) in values.chunks_exact(count).enumerate() {
                for (row, &product) in (block * BLOCK..).zip(products) {
                    if product >= least {
                        each(query, row, product);
                    }
                }
            }
        }
    }
}
