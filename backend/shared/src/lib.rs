//! The version, text formats and vector instructions that the backend's crates and the command line have in common.

mod hex;
pub mod simd;
mod spreadsheet;
mod version;

pub use hex::hex;
pub use spreadsheet::spreadsheet_cell;
pub use version::VERSION;
