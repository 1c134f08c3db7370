//! Thousands of people are trained without a matrix that is as wide and as high as their photographs are many. In a
//! file of its own: the peak of memory is the process'.

#![allow(clippy::expect_used, reason = "a panic is how a test fails")]

mod common;

use common::synthetic;
use facepipe_identify::{Method, Model, TrainOptions};

/// Returns the peak of this process' resident memory, bytes; none where the system does not report it.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

#[test]
fn memory_grows_linearly_with_the_samples() {
    let samples = synthetic(2100, 2, 64);
    let before = peak();
    let options = TrainOptions { method: Method::LinearSvm, ..TrainOptions::default() };
    let model = Model::train("mobilefacenet", &samples, &options).expect("training works");
    assert_eq!(model.labels().len(), 2100);
    let Some((before, after)) = before.zip(peak()) else {
        println!("skipped: this system does not tell a process' peak of memory");
        return;
    };
    // A matrix of 4200 by 4200 singles is 71 MB.
    let grown = after - before;
    println!("{grown} bytes more");
    assert!(grown < 35_000_000, "{grown} bytes more");
}
