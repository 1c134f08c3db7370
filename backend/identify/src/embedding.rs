//! Checks and arithmetic on single embeddings. Embeddings beyond this module are finite and L2-normalised.

use crate::IdentifyError;

/// Returns the L2-normalised copy of `embedding`, which must be finite and not 0. `subject` names it in errors.
pub(crate) fn normalised(embedding: &[f32], subject: impl Fn() -> String) -> Result<Vec<f32>, IdentifyError> {
    if embedding.is_empty() {
        return Err(IdentifyError::Empty { subject: subject() });
    }
    if let Some((component, &value)) = embedding.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(IdentifyError::NotFinite { subject: subject(), component, value });
    }
    let length = dot(embedding, embedding).sqrt();
    if length == 0.0 {
        return Err(IdentifyError::NoDirection { subject: subject() });
    }
    Ok(embedding.iter().map(|&v| to_f32(f64::from(v) / length)).collect())
}

/// Returns the inner product, summed in double precision; the cosine where both are L2-normalised.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    // Eight independent sums, so that additions can overlap.
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0_f64; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &x), &y) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(x) * f64::from(y);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    sums.iter().sum::<f64>() + rest
}

/// Rounds to the nearest single.
#[expect(clippy::cast_possible_truncation, reason = "rounding to single precision is what this is for")]
pub(crate) fn to_f32(value: f64) -> f32 {
    value as f32
}
