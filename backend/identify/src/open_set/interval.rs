//! Error rates with their uncertainty.

/// The probability outside of an interval, in both tails together.
const ALPHA: f64 = 0.05;

/// Halvings of an interval of probabilities or cosines, which leave less than a double can tell apart.
const HALVINGS: usize = 60;

/// A share of errors and its 95 % confidence interval, each 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorRate {
    /// The estimated share, 0 to 1.
    pub rate: f64,
    /// The lower end of the interval.
    pub lower: f64,
    /// The upper end of the interval.
    pub upper: f64,
    /// The number of searches that the estimate rests on.
    pub searches: usize,
}

impl ErrorRate {
    /// Estimates the rate of `errors` among `searches`, with the interval of Clopper and Pearson, "The use of confidence or
    /// fiducial limits illustrated in the case of the binomial" (1934); ISO/IEC 19795-1 recommends it. `None` without searches.
    pub fn of(errors: usize, searches: usize) -> Option<Self> {
        let errors = errors.min(searches);
        let (lower, upper) =
            (clopper_pearson_lower(errors, searches), clopper_pearson_upper(errors, searches));
        (searches > 0).then(|| Self { rate: errors as f64 / searches as f64, lower, upper, searches })
    }

    /// Returns an expected rate that counts as much as `searches` do: the interval is that of the neighbouring whole
    /// numbers of errors.
    pub(super) fn expected(rate: f64, searches: usize) -> Self {
        let errors = rate * searches as f64;
        let whole = |errors: f64| (0..=searches).rev().find(|n| *n as f64 <= errors).unwrap_or(0);
        let lower = clopper_pearson_lower(whole(errors), searches);
        let upper = clopper_pearson_upper(whole(errors.ceil()), searches);
        Self { rate, lower, upper, searches }
    }
}

/// Returns the rate at which as many errors or more have a probability of `ALPHA / 2`.
fn clopper_pearson_lower(errors: usize, searches: usize) -> f64 {
    if errors == 0 {
        return 0.0;
    }
    bisect(0.0, |rate| 1.0 - at_most(errors - 1, searches, rate) > ALPHA / 2.0)
}

/// Returns the rate at which as many errors or fewer have a probability of `ALPHA / 2`.
fn clopper_pearson_upper(errors: usize, searches: usize) -> f64 {
    if errors >= searches {
        return 1.0;
    }
    bisect(0.0, |rate| at_most(errors, searches, rate) < ALPHA / 2.0)
}

/// Returns the lowest number from `least` to 1 with a property that all above it share.
pub(super) fn bisect(least: f64, holds: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (least, 1.0);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// Returns the binomial probability of `errors` or fewer among `searches`.
fn at_most(errors: usize, searches: usize, rate: f64) -> f64 {
    if rate <= 0.0 || errors >= searches {
        return 1.0;
    }
    if rate >= 1.0 {
        return 0.0;
    }
    // Sums of the shorter tail, by the ratio of neighbouring terms, relative to its largest: the first term alone may be too
    // small for a double.
    let (n, odds) = (searches as f64, (rate / (1.0 - rate)).ln());
    let mut term = n * (-rate).ln_1p();
    let (mut largest, mut sum) = (term, 1.0);
    for k in 1..=errors {
        term += odds + ((n - k as f64 + 1.0) / k as f64).ln();
        if term > largest {
            sum = sum * (largest - term).exp() + 1.0;
            largest = term;
        } else {
            sum += (term - largest).exp();
        }
    }
    (largest + sum.ln()).exp().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(errors: usize, searches: usize) -> (f64, f64) {
        let rate = ErrorRate::of(errors, searches).unwrap();
        (rate.lower, rate.upper)
    }

    #[test]
    fn intervals_are_those_of_published_tables() {
        // scipy.stats.binomtest(k, n).proportion_ci(method="exact")
        for (errors, searches, lower, upper) in [
            (0, 10, 0.0, 0.308_497),
            (1, 100, 0.000_253, 0.054_459),
            (10, 1000, 0.004_806, 0.018_313),
            (8, 844, 0.004_101, 0.018_591),
            (0, 1000, 0.0, 0.003_682),
            (50, 100, 0.398_321, 0.601_679),
            (100, 100, 0.963_783, 1.0),
        ] {
            let (low, high) = interval(errors, searches);
            assert!(
                (low - lower).abs() < 1e-6 && (high - upper).abs() < 1e-6,
                "{errors} of {searches}: {low}..{high}"
            );
        }
        assert_eq!(ErrorRate::of(0, 0), None);
    }

    #[test]
    fn intervals_of_large_counts_are_finite_and_contain_the_rate() {
        for (errors, searches) in [(1, 1), (50_000, 100_000), (99_999, 100_000), (3, 1_000_000)] {
            let rate = ErrorRate::of(errors, searches).unwrap();
            assert!(
                rate.lower <= rate.rate && rate.rate <= rate.upper && rate.lower < rate.upper,
                "{rate:?}"
            );
        }
    }

    #[test]
    fn an_expected_rate_has_the_interval_of_the_whole_numbers_around_it() {
        let expected = ErrorRate::expected(0.015, 100);
        assert_eq!((expected.rate, expected.searches), (0.015, 100));
        assert_eq!((expected.lower, expected.upper), (interval(1, 100).0, interval(2, 100).1));
        assert_eq!(ErrorRate::expected(0.01, 100).lower, interval(1, 100).0);
    }
}
