//! Decisions about pictures of Labeled Faces in the Wild, which the networks of the server detect and embed here and now: people
//! with several photographs each, strangers, and a cohort of others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(clippy::print_stdout, reason = "the figures that a test finds are its output")]

mod calibration;
mod clusters;
mod main_face;
mod pictures;
mod tracks;
