//! GStreamer elements that find, crop and upload faces at the edge.
pub mod crop;
pub mod frame;
pub mod roi;
pub mod upload;
