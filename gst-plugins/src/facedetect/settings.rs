//! The settings of `facedetect`, which are its properties.

use std::{path::PathBuf, time::Duration};

use facepipe_detector::Family;
use gst::{glib, prelude::*};

use super::selection::Selection;
use crate::set;

/// The value of `model` by which the model is chosen by the frame's size.
pub const AUTO: &str = "auto";

/// Where the network runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstFacepipeExecutionProvider")]
#[repr(i32)]
pub enum ExecutionProvider {
    #[default]
    #[enum_value(name = "CPU", nick = "cpu")]
    Cpu,
    #[enum_value(name = "NVIDIA CUDA", nick = "cuda")]
    Cuda,
    #[enum_value(name = "NVIDIA TensorRT", nick = "tensorrt")]
    TensorRt,
    #[enum_value(name = "Intel OpenVINO", nick = "openvino")]
    OpenVino,
}

impl From<ExecutionProvider> for facepipe_detector::ExecutionProvider {
    fn from(provider: ExecutionProvider) -> Self {
        match provider {
            ExecutionProvider::Cpu => Self::Cpu,
            ExecutionProvider::Cuda => Self::Cuda,
            ExecutionProvider::TensorRt => Self::TensorRt,
            ExecutionProvider::OpenVino => Self::OpenVino,
        }
    }
}

/// The settings of `facedetect`.
#[derive(Debug, Clone)]
pub struct Settings {
    pub model: String,
    /// `None`: the model's.
    pub score_threshold: Option<f32>,
    /// `None`: the model's.
    pub low_score_threshold: Option<f32>,
    pub nms_threshold: f32,
    pub interval: u32,
    /// 0: no limit.
    pub max_fps: f64,
    pub min_face_size: u32,
    /// 0: no limit.
    pub max_face_size: u32,
    pub threads: u32,
    pub execution_provider: ExecutionProvider,
    pub engine_cache: Option<PathBuf>,
    pub max_faces: u32,
    pub motion_threshold: f32,
    pub max_gap: u32,
    pub qos: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: AUTO.into(),
            score_threshold: None,
            low_score_threshold: None,
            nms_threshold: 0.3,
            interval: 1,
            max_fps: 0.0,
            min_face_size: 0,
            max_face_size: 0,
            threads: 1,
            execution_provider: ExecutionProvider::default(),
            engine_cache: None,
            max_faces: 0,
            motion_threshold: 0.0,
            max_gap: 60,
            qos: true,
        }
    }
}

impl Settings {
    pub fn score_threshold(&self, family: Family) -> f32 {
        self.score_threshold.unwrap_or_else(|| family.score_threshold())
    }

    pub fn low_score_threshold(&self, family: Family) -> f32 {
        self.low_score_threshold.unwrap_or_else(|| family.low_score_threshold())
    }

    pub fn selection(&self, family: Family) -> Selection {
        let score_threshold = self.score_threshold(family);
        Selection {
            score_threshold,
            // Candidates are detections below the threshold of faces.
            low_score_threshold: self.low_score_threshold(family).min(score_threshold),
            nms_threshold: self.nms_threshold,
            max_faces: self.max_faces,
            min_size: self.min_face_size,
            max_size: if self.max_face_size == 0 { u32::MAX } else { self.max_face_size },
        }
    }

    /// Returns the minimum time from one searched frame to the next.
    pub fn period(&self) -> Option<Duration> {
        let seconds = (self.max_fps > 0.0).then(|| 1.0 / self.max_fps)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Sets the property `name`, whose type and range GObject has checked.
    pub fn set(&mut self, name: &str, value: &glib::Value) {
        match name {
            "model" => {
                let model: Option<String> = value.get().unwrap_or_default();
                self.model = model.filter(|m| !m.is_empty()).unwrap_or_else(|| AUTO.into());
            }
            "score-threshold" => self.score_threshold = value.get().ok(),
            "low-score-threshold" => self.low_score_threshold = value.get().ok(),
            "nms-threshold" => set(&mut self.nms_threshold, value),
            "interval" => set(&mut self.interval, value),
            "max-fps" => set(&mut self.max_fps, value),
            "min-face-size" => set(&mut self.min_face_size, value),
            "max-face-size" => set(&mut self.max_face_size, value),
            "threads" => set(&mut self.threads, value),
            "execution-provider" => set(&mut self.execution_provider, value),
            "engine-cache" => {
                let folder: Option<String> = value.get().unwrap_or_default();
                self.engine_cache = folder.filter(|f| !f.is_empty()).map(PathBuf::from);
            }
            "max-faces" => set(&mut self.max_faces, value),
            "motion-threshold" => set(&mut self.motion_threshold, value),
            "max-gap" => set(&mut self.max_gap, value),
            "qos" => set(&mut self.qos, value),
            _ => {}
        }
    }

    /// Returns the property `name`; `family` is that of the open model. `None` for a property of another name.
    pub fn get(&self, name: &str, family: Family) -> Option<glib::Value> {
        Some(match name {
            "model" => self.model.to_value(),
            "score-threshold" => self.score_threshold(family).to_value(),
            "low-score-threshold" => self.low_score_threshold(family).to_value(),
            "nms-threshold" => self.nms_threshold.to_value(),
            "interval" => self.interval.to_value(),
            "max-fps" => self.max_fps.to_value(),
            "min-face-size" => self.min_face_size.to_value(),
            "max-face-size" => self.max_face_size.to_value(),
            "threads" => self.threads.to_value(),
            "execution-provider" => self.execution_provider.to_value(),
            "engine-cache" => self.engine_cache.as_ref().map(|f| f.display().to_string()).to_value(),
            "max-faces" => self.max_faces.to_value(),
            "motion-threshold" => self.motion_threshold.to_value(),
            "max-gap" => self.max_gap.to_value(),
            "qos" => self.qos.to_value(),
            _ => return None,
        })
    }
}

/// Returns the specifications of the properties.
pub fn param_specs() -> Vec<glib::ParamSpec> {
    let defaults = Settings::default();
    vec![
                glib::ParamSpecString::builder("model")
                    .nick("Model")
                    .blurb(
                        "Detector: a name (rfb-320, rfb-640, slim-320, mtcnn), the path of an .onnx file or of a pnet.pt \
                         next to rnet.pt and onet.pt, or auto: the first installed of rfb-640, mtcnn, rfb-320, slim-320 \
                         for frames whose longer side has at least 1280 square pixels, of rfb-320, slim-320, rfb-640, \
                         mtcnn for smaller ones",
                    )
                    .default_value(Some(AUTO))
                    .mutable_ready()
                    .build(),
                glib::ParamSpecFloat::builder("score-threshold")
                    .nick("Score threshold")
                    .blurb("Faces must score more than this. If unset, the model's (0.6; mtcnn 0.9)")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(Family::UltraLight.score_threshold())
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("low-score-threshold")
                    .nick("Low score threshold")
                    .blurb(
                        "Detections between this and score-threshold are attached as face-candidate, which only \
                         facetrack reads: they may continue a track but not begin one (1 = none). If unset, the model's \
                         (0.3; mtcnn 0.5)",
                    )
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(Family::UltraLight.low_score_threshold())
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("nms-threshold")
                    .nick("NMS threshold")
                    .blurb("Of two faces that overlap by more than this (intersection over union), one is kept")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(defaults.nms_threshold)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("interval")
                    .nick("Interval")
                    .blurb("Search every n-th frame; the others pass without faces, unless facetrack predicts them")
                    .minimum(1)
                    .default_value(defaults.interval)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecDouble::builder("max-fps")
                    .nick("Maximum rate")
                    .blurb(
                        "Search at most this many frames per second of stream time; the others pass as with interval (0 = \
                         no limit)",
                    )
                    .minimum(0.0)
                    .maximum(1000.0)
                    .default_value(defaults.max_fps)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("min-face-size")
                    .nick("Minimum face size")
                    .blurb(
                        "Leave out faces whose shorter side is less than this (square pixels). It also sets the search \
                         resolution of mtcnn, whose run time is proportional to its inverse square; 0 means 1/27 of the \
                         frame's shorter side there, at least 20",
                    )
                    .default_value(defaults.min_face_size)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("max-face-size")
                    .nick("Maximum face size")
                    .blurb("Leave out faces whose longer side is more than this (square pixels; 0 = no limit)")
                    .default_value(defaults.max_face_size)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("threads")
                    .nick("Threads")
                    .blurb("Number of threads that run the detector")
                    .minimum(1)
                    .maximum(1024)
                    .default_value(defaults.threads)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("execution-provider", defaults.execution_provider)
                    .nick("Execution provider")
                    .blurb("Where the detector runs. An unavailable one is an error; there is no fallback to the CPU")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecString::builder("engine-cache")
                    .nick("Engine cache")
                    .blurb(
                        "Folder for the engines that TensorRT builds, which takes minutes the first time. If unset, \
                         facepipe/tensorrt in the user's cache folder",
                    )
                    .mutable_ready()
                    .build(),
                glib::ParamSpecUInt::builder("max-faces")
                    .nick("Maximum number of faces")
                    .blurb("Keep at most this many faces per frame, those with the highest scores (0 = all)")
                    .default_value(defaults.max_faces)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecFloat::builder("motion-threshold")
                    .nick("Motion threshold")
                    .blurb(
                        "While no part of the frame has changed by more than this since the last search, the detector \
                         is not run and frames keep its faces. In grey levels of 255, the mean of a cell of 1/60 of the \
                         frame's longer side; 3 is recommended, more for noisy cameras (0 = off)",
                    )
                    .minimum(0.0)
                    .maximum(255.0)
                    .default_value(defaults.motion_threshold)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("max-gap")
                    .nick("Maximum gap")
                    .blurb("Search at least every n-th frame, even if nothing moves; if all frames are late, at least every 30th")
                    .minimum(1)
                    .default_value(defaults.max_gap)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("qos")
                    .nick("Quality of service")
                    .blurb(
                        "Do not search late frames: those that a sink reports as late and, in live pipelines, those that \
                         come 200 ms later than the latency allows. No frame is dropped",
                    )
                    .default_value(defaults.qos)
                    .mutable_playing()
                    .build(),
            ]
}
