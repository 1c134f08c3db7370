//! The version and the text formats that the backend and the command line have in common.

mod hex;
mod version;

pub use hex::hex;
pub use version::VERSION;
