//! Assigns detections to tracks: the assignment with the largest sum of overlaps.

use pathfinding::{kuhn_munkres::kuhn_munkres, matrix::Matrix};

/// Overlaps are converted to integers in millionths: the algorithm needs a total order.
const MILLIONTHS: f64 = 1e6;

/// Returns the pairs (row, column) of the one-to-one assignment with the largest sum of values, among pairs of at least
/// `minimum`, which is above 0. `value` returns 0 to 1 for each row and column.
pub(super) fn assign(
    rows: usize,
    columns: usize,
    minimum: f64,
    value: impl Fn(usize, usize) -> f64,
) -> Vec<(usize, usize)> {
    if rows == 0 || columns == 0 {
        return Vec::new();
    }
    // A pair below the minimum is worth as little as none.
    let weight = |row, column| {
        let value = value(row, column);
        if value >= minimum { millionths(value) } else { 0 }
    };
    // The algorithm needs at least as many columns as rows.
    let (matrix, transposed) = if rows <= columns {
        (Matrix::from_fn(rows, columns, |(row, column)| weight(row, column)), false)
    } else {
        (Matrix::from_fn(columns, rows, |(column, row)| weight(row, column)), true)
    };
    let (_, assigned) = kuhn_munkres(&matrix);
    let pairs = assigned.into_iter().enumerate();
    let pairs = pairs.map(|(a, b)| if transposed { (b, a) } else { (a, b) });
    pairs.filter(|&(row, column)| weight(row, column) > 0).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "values are 0 to 1")]
fn millionths(value: f64) -> i64 {
    (value * MILLIONTHS).round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_sum_wins_over_the_best_single_pair() {
        let values = [[0.9, 0.8], [0.8, 0.1]];
        assert_eq!(assign(2, 2, 0.05, |r, c| values[r][c]), [(0, 1), (1, 0)]);
        // With the alternatives below the minimum.
        assert_eq!(assign(2, 2, 0.85, |r, c| values[r][c]), [(0, 0)]);
    }

    #[test]
    fn any_shape_is_assigned() {
        let value = |r: usize, c: usize| if c == r + 1 { 0.5 } else { 0.0 };
        assert_eq!(assign(2, 4, 0.1, value), [(0, 1), (1, 2)]);
        assert_eq!(assign(4, 2, 0.1, value), [(0, 1)]);
        assert_eq!(assign(0, 3, 0.1, value), []);
        assert_eq!(assign(3, 0, 0.1, value), []);
    }

    /// Compares with all assignments.
    #[test]
    fn no_other_assignment_has_a_larger_sum() {
        fn best(values: &[[f64; 5]], used: &mut [bool; 5], minimum: f64) -> f64 {
            let Some((first, rest)) = values.split_first() else { return 0.0 };
            let mut most = best(rest, used, minimum);
            for column in 0..5 {
                if !used[column] && first[column] >= minimum {
                    used[column] = true;
                    most = most.max(first[column] + best(rest, used, minimum));
                    used[column] = false;
                }
            }
            most
        }
        let mut seed = 7_u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(seed >> 8) / f64::from(1 << 24)
        };
        for _ in 0..200 {
            let values: [[f64; 5]; 4] = std::array::from_fn(|_| std::array::from_fn(|_| random()));
            let pairs = assign(4, 5, 0.4, |r, c| values[r][c]);
            let sum: f64 = pairs.iter().map(|&(r, c)| values[r][c]).sum();
            assert!((sum - best(&values, &mut [false; 5], 0.4)).abs() < 1e-5, "{values:?}: {pairs:?}");
            assert!(pairs.iter().all(|&(r, c)| values[r][c] >= 0.4));
        }
    }
}
