//! The programs that play video: extraction, recognition and enrolment from files, cameras and streams. All of them go
//! through the project's own elements, which are linked in.

mod annotate;
mod enroll;
mod extract;
mod faces;
mod index;
mod panel;
mod player;
mod recognize;
mod report;
mod shots;
mod source;
mod window;

pub use self::{
    enroll::{Options as EnrollOptions, run as enroll},
    extract::{Options as ExtractOptions, run as extract},
    recognize::{CameraOptions, VideoOptions, camera as recognize_camera, video as recognize_video},
};
