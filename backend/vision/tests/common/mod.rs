//! The formula weights and inputs of the fixtures (their rule stands in each fixture's generator), and pictures of
//! the test data.

#![allow(dead_code, reason = "each test file uses its part")]

use candle_core::{Device, Tensor};
use facepipe_vision::{DecodeLimits, decode_image};
use image::RgbImage;
use serde_json::Value;

/// Returns `r` of element `i` of the tensor `name`: in [-1, 1).
fn formula(name: &str, i: u64) -> f64 {
    let hash =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut z = i.wrapping_add(hash).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f64 / f64::from(1u32 << 23) - 1.0
}

fn formula_tensor(name: &str, shape: &[usize], from: impl Fn(f64) -> f64) -> Tensor {
    let count = shape.iter().product::<usize>() as u64;
    #[expect(clippy::cast_possible_truncation, reason = "the fixtures are made in single precision")]
    let values = (0..count).map(|i| from(formula(name, i)) as f32).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Returns the input tensor `name`.
pub fn formula_input(name: &str, shape: &[usize]) -> Tensor {
    formula_tensor(name, shape, |r| r)
}

/// Returns formula weights for a state dict `{name: shape}`, without its counters.
pub fn formula_weights(state_dict: &Value) -> Vec<(String, Tensor)> {
    let entries = state_dict.as_object().unwrap().iter();
    entries
        .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
        .map(|(name, shape)| {
            let shape: Vec<usize> =
                shape.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
            let fan_in = shape[1..].iter().product::<usize>() as f64;
            let batch_norm = name.contains(".bn.") || name.starts_with("last_bn");
            let tensor = formula_tensor(name, &shape, |r| match shape.len() {
                4 => r * (6.0 / fan_in).sqrt(),
                2 => r * (3.0 / fan_in).sqrt(),
                _ if name.ends_with("running_var") => 1.0 + 0.5 * r,
                _ if batch_norm && name.ends_with("weight") => 1.0 + 0.1 * r,
                _ => 0.1 * r,
            });
            (name.clone(), tensor)
        })
        .collect()
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub fn cosine(a: &[f32], b: &[f64]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum();
    let length = |sum: f64| sum.sqrt();
    dot / (length(a.iter().map(|v| f64::from(*v).powi(2)).sum()) * length(b.iter().map(|v| v * v).sum()))
}

/// Reads a picture of the test data, decoded as the backend does.
pub fn picture(path: &std::path::Path) -> RgbImage {
    decode_image(&std::fs::read(path).unwrap(), &DecodeLimits::default()).unwrap()
}
