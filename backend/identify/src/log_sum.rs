//! The normaliser of a softmax over many cosines.

use facepipe_shared::simd::{Kernel, RegisterTile, SimdLevel};

/// `ln Σ exp(slope * cosine)`, summed relative to the highest cosine so far, so that nothing overflows.
#[derive(Debug)]
pub(crate) struct LogSum {
    slope: f32,
    reference: f32,
    sum: f64,
}

impl LogSum {
    pub(crate) fn new(slope: f32) -> Self {
        Self { slope, reference: f32::NEG_INFINITY, sum: 0.0 }
    }

    /// Returns `exp(slope * (cosine - reference))`.
    fn term(&self, cosine: f64) -> f64 {
        (f64::from(self.slope) * (cosine - f64::from(self.reference))).exp()
    }

    /// Adds cosines, with `highest` the greatest.
    pub(crate) fn add(&mut self, cosines: &[f32], highest: f32) {
        if highest > self.reference {
            // Rescales the sum so far, which may be 0.
            self.sum *= 1.0 / (f64::from(self.slope) * f64::from(highest - self.reference)).exp();
            self.reference = highest;
        }
        let (slope, reference) = (self.slope, self.reference);
        self.sum += f64::from(SimdLevel::best().run(Exponentials { cosines, slope, reference }));
    }

    /// Replaces a cosine that was added.
    pub(crate) fn replace(&mut self, added: f64, cosine: f64) {
        self.sum += self.term(cosine) - self.term(added);
    }

    /// Returns the logarithm; minus infinity without cosines.
    pub(crate) fn value(&self) -> f64 {
        f64::from(self.slope) * f64::from(self.reference) + self.sum.max(0.0).ln()
    }
}

/// `Σ exp(slope * (cosine - reference))` of cosines that are not above the reference.
struct Exponentials<'a> {
    cosines: &'a [f32],
    slope: f32,
    reference: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: RegisterTile>(self, _: S) -> f32 {
        let Self { cosines, slope, reference } = self;
        let scale = slope * std::f32::consts::LOG2_E;
        let (chunks, rest) = cosines.as_chunks::<16>();
        let mut sums = [0.0_f32; 16];
        for chunk in chunks {
            for (sum, cosine) in sums.iter_mut().zip(chunk) {
                *sum += exp2(scale * (cosine - reference));
            }
        }
        let mut sum = 0.0;
        for part in sums {
            sum += part;
        }
        for cosine in rest {
            sum += exp2(scale * (cosine - reference));
        }
        sum
    }
}

/// Computes 2^x for x at most 0, with a relative error below 1e-6; x below -126 counts as -126. Has no branch and no call, so
/// that the compiler vectorises it.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    /// Added to a small number, leaves its nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // Not `max`, which has to handle NaN.
    let x = if x > -126.0 { x } else { -126.0 };
    let shifted = x + ROUND;
    let whole = shifted.to_bits() << 23;
    let fraction = (x - (shifted - ROUND)) * std::f32::consts::LN_2;
    // Taylor's series of the exponential between -ln 2 / 2 and ln 2 / 2.
    let series = 1.0 / 720.0;
    let series = series * fraction + 1.0 / 120.0;
    let series = series * fraction + 1.0 / 24.0;
    let series = series * fraction + 1.0 / 6.0;
    let series = series * fraction + 0.5;
    let series = series * fraction + 1.0;
    let series = series * fraction + 1.0;
    f32::from_bits(series.to_bits().wrapping_add(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_of_two_is_exact_to_six_digits() {
        for step in 0..=63_000_u16 {
            let x = -f32::from(step) / 500.0;
            let (ours, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((ours / exact - 1.0).abs() < 1e-6, "{x}: {ours}, exactly {exact}");
        }
        assert!(exp2(-1000.0) < 1.2e-38);
    }

    #[test]
    fn the_logarithm_of_the_sum_is_that_of_all_terms_on_every_level() {
        let cosines: Vec<f32> = (0_u16..1003).map(|i| (f32::from(i) * 0.7).sin() * 0.9).collect();
        for slope in [1.0_f32, 25.0, 90.0] {
            let exact = |cosines: &[f32]| {
                cosines.iter().map(|c| (f64::from(slope) * f64::from(*c)).exp()).sum::<f64>().ln()
            };
            let mut sum = LogSum::new(slope);
            for block in cosines.chunks(250) {
                sum.add(block, block.iter().copied().fold(-1.0, f32::max));
            }
            assert!((sum.value() - exact(&cosines)).abs() < 1e-5, "{} for {slope}", sum.value());
            let mut replaced = cosines.clone();
            replaced[17] = 0.95;
            sum.replace(cosines[17].into(), 0.95_f32.into());
            assert!((sum.value() - exact(&replaced)).abs() < 1e-5, "{} for {slope}", sum.value());
            for level in SimdLevel::available() {
                let sum = level.run(Exponentials { cosines: &cosines, slope, reference: 0.9 });
                let expected = (exact(&cosines) - f64::from(slope * 0.9)).exp();
                assert!((f64::from(sum) / expected - 1.0).abs() < 1e-5, "{level:?}: {sum}, {expected}");
            }
        }
        assert_eq!(LogSum::new(3.0).value(), f64::NEG_INFINITY);
    }
}
