//! What the tests that cross crates share: the built programs and the built plugin.

#![allow(
    clippy::panic,
    clippy::expect_used,
    reason = "this crate is linked into tests only: a panic is how a test fails"
)]

use std::{env, path::PathBuf};

/// The folder of built programs: that of the running test, without `deps`.
pub fn build_dir() -> PathBuf {
    let test = env::current_exe().expect("the test's own path is known");
    test.ancestors().nth(2).expect("tests run from <build>/deps").to_path_buf()
}

/// A program of the workspace, for example `facepipe-backend`. Cargo builds it for the tests of its own package
/// alone; `make test` builds all first.
pub fn program(name: &str) -> PathBuf {
    let path = build_dir().join(name);
    assert!(path.is_file(), "{} is not built: run `cargo build --workspace`", path.display());
    path
}
