//! Posts the uploader's events as messages on the bus. Their fields are documented with the element.

use facepipe_detector::BoundingBox;
use gst::{prelude::*, subclass::prelude::*};
use serde_json::Value;

use crate::{
    crop_pipeline::Counts,
    results::{self, FaceResult, PipelineId, RecognitionResult},
    upload::{self, BackendStatus, Crop, Endpoint, Event, Stats},
};

pub(super) fn post(element: &super::FaceSinkHttp, event: Event) {
    match event {
        Event::Accepted { crop, status, model_version, faces, earlier_run } => {
            // Track ids start again with each run.
            if !earlier_run {
                publish_result(element, &crop, &faces);
            }
            let faces = faces.iter().map(|face| face_structure(face).to_send_value());
            let result = crop_fields("facepipe-result", &crop, status)
                .field_if_some("model-version", model_version)
                .field("faces", gst::Array::from_values(faces))
                .build();
            post_structure(element, result);
        }
        Event::Rejected { crop, status, code, message, first } => {
            if first {
                let what = match status {
                    0 => "crops are given up after retries".to_owned(),
                    status => format!("the backend rejects crops with status {status}"),
                };
                gst::element_warning!(element, gst::ResourceError::Write, ("{what}: {message}"));
            }
            let rejected = crop_fields("facepipe-rejected", &crop, status)
                .field_if_some("code", code)
                .field("message", message)
                .build();
            post_structure(element, rejected);
        }
        Event::BackendUnhealthy { status, http_status, reason, retry_in } => {
            let backend: String = element.property("backend-url");
            let state = match status {
                BackendStatus::Busy => "busy",
                BackendStatus::Unavailable => {
                    gst::element_warning!(
                        element,
                        gst::ResourceError::OpenWrite,
                        (
                            "the backend {backend} {reason}; crops wait until it answers{}",
                            queueing_note(element)
                        )
                    );
                    "away"
                }
                BackendStatus::Unauthorized => {
                    gst::element_warning!(
                        element,
                        gst::ResourceError::NotAuthorized,
                        (
                            "the backend {backend} doesn't take the token (status {}): {reason}; renew token-file or \
                             token, no restart is needed; crops wait{}",
                            http_status.unwrap_or(0),
                            queueing_note(element)
                        )
                    );
                    "unauthorized"
                }
            };
            let message = gst::Structure::builder("facepipe-backend")
                .field("state", state)
                .field_if_some("status", http_status.map(u32::from))
                .field("reason", reason)
                .field("retry-in", u64::try_from(retry_in.as_millis()).unwrap_or(u64::MAX))
                .build();
            post_structure(element, message);
        }
        Event::BackendRecovered { after, was_busy } => {
            if !was_busy {
                gst::element_info!(
                    element,
                    gst::ResourceError::OpenWrite,
                    ("the backend answers again after {:.1} s", after.as_secs_f64())
                );
            }
            post_structure(element, gst::Structure::builder("facepipe-backend").field("state", "ok").build());
        }
        Event::SpoolProblem { reason } => {
            let folder: Option<String> = element.property("spool-dir");
            gst::element_warning!(
                element,
                gst::ResourceError::Write,
                ("spool-dir {}: {reason}", folder.unwrap_or_default())
            );
        }
        Event::SpansLost { reason } => {
            let collector: Option<String> = element.property("otlp-endpoint");
            gst::element_warning!(
                element,
                gst::ResourceError::Write,
                ("otlp-endpoint {}: spans are lost: {reason}", collector.unwrap_or_default())
            );
        }
        Event::Stats(counts) => post_stats(element, &counts),
    }
}

/// Returns what happens to waiting crops, for a warning.
fn queueing_note(element: &super::FaceSinkHttp) -> &'static str {
    let spools = element.property::<Option<String>>("spool-dir").is_some()
        && element.property::<u64>("spool-max-bytes") > 0;
    if spools {
        " on the spool, and the oldest are dropped when spool-max-bytes is reached"
    } else {
        ", and when max-queue is reached drop-policy says which are dropped"
    }
}

/// Returns the counts as in the property `stats` and in the message: those of the uploader, those of cropping, and the
/// crops whose camera's clock was refused.
pub(super) fn stats(stats: &Stats, counts: &Counts, clock_refused: u64) -> gst::Structure {
    let structure = gst::Structure::builder("facepipe-stats")
        .field("queued", stats.queued)
        .field("sent", stats.sent)
        .field("failed", stats.failed)
        .field("dropped", stats.dropped)
        .field("spooled", stats.spooled)
        .field("spool-files", stats.spool_files)
        .field("spool-bytes", stats.spool_bytes)
        .field("spool-dropped", stats.spool_dropped)
        .field("spool-damaged", stats.spool_damaged)
        .field("spool-errors", stats.spool_errors)
        .field("clock-refused", clock_refused)
        .field("requests", stats.requests)
        .field("retries", stats.retries)
        .field("bytes", stats.bytes)
        .field("bytes-received", stats.bytes_received)
        .field("image-bytes", stats.image_bytes);
    counts.add_to(structure).build()
}

pub(super) fn post_stats(element: &super::FaceSinkHttp, counts: &Stats) {
    let sink = element.imp();
    post_structure(element, stats(counts, &sink.counts(), sink.clock_refused()));
}

/// Publishes a result to the overlays of this process.
fn publish_result(element: &super::FaceSinkHttp, crop: &Crop, faces: &[Value]) {
    // This call responds without recognition.
    if element.property::<Endpoint>("endpoint") == Endpoint::DryRun {
        return;
    }
    results::publish(&FaceResult {
        pipeline: PipelineId::of(element.upcast_ref()),
        camera_id: crop.camera.id.clone(),
        track_id: crop.track_id,
        bounding_box: crop.bounding_box,
        recognition: recognition(faces),
    });
}

/// Returns the result for the face that the crop was made for: the largest, since a neighbour in the margin is smaller.
fn recognition(faces: &[Value]) -> RecognitionResult {
    let number = |face: &Value, pointer: &str| face.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    let area = |face: &Value| {
        let side = |end: &str, start: &str| {
            number(face, &format!("/bounding_box/{end}")) - number(face, &format!("/bounding_box/{start}"))
        };
        side("right", "left") * side("bottom", "top")
    };
    let Some(face) = faces.iter().max_by(|a, b| area(a).total_cmp(&area(b))) else {
        return RecognitionResult::NoFace;
    };
    let label = face.pointer("/top_prediction/label").and_then(Value::as_str);
    match (face.pointer("/decision").and_then(Value::as_str), label) {
        (Some("known"), Some(label)) => RecognitionResult::Known {
            label: label.to_owned(),
            confidence: number(face, "/top_prediction/confidence"),
        },
        // The token may not see names.
        (Some("known"), None) => RecognitionResult::Known { label: String::new(), confidence: 0.0 },
        _ => RecognitionResult::Unknown,
    }
}

fn post_structure(element: &super::FaceSinkHttp, structure: gst::Structure) {
    // Without a bus, nobody is interested.
    let _ = element.post_message(gst::message::Element::builder(structure).src(element).build());
}

fn crop_fields(name: &str, crop: &Crop, status: u16) -> gst::structure::Builder {
    let mut builder = gst::Structure::builder(name)
        .field("key", upload::encode_uuid(crop.key))
        .field("status", u32::from(status))
        .field("captured-at", upload::format_captured_at(crop.captured_at))
        .field("track-id", crop.track_id.unwrap_or(0));
    if let Some(BoundingBox { left, top, right, bottom }) = crop.bounding_box {
        builder = builder.field("left", left).field("top", top).field("right", right).field("bottom", bottom);
    }
    if let Some(area) = crop.area {
        builder = area.add_to(builder);
    }
    builder
}

/// Returns a face of the backend's response as a structure.
fn face_structure(face: &Value) -> gst::Structure {
    let number = |pointer: &str| face.pointer(pointer).and_then(Value::as_f64);
    let text = |pointer: &str| face.pointer(pointer).and_then(Value::as_str);
    gst::Structure::builder("face")
        .field_if_some("decision", text("/decision"))
        .field_if_some("label", text("/top_prediction/label"))
        .field_if_some("confidence", number("/top_prediction/confidence"))
        .field_if_some("threshold", number("/threshold"))
        .field_if_some("detection-confidence", number("/detection_confidence"))
        .field_if_some("box-left", number("/bounding_box/left"))
        .field_if_some("box-top", number("/bounding_box/top"))
        .field_if_some("box-right", number("/bounding_box/right"))
        .field_if_some("box-bottom", number("/bounding_box/bottom"))
        .build()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_known_face_without_a_name_is_known() {
        let face = |decision: &str, prediction: Value| {
            let corners = json!({ "left": 0, "top": 0, "right": 9, "bottom": 9 });
            [json!({ "bounding_box": corners, "decision": decision, "top_prediction": prediction })]
        };
        let known = |label: &str, confidence| RecognitionResult::Known { label: label.into(), confidence };
        let named = json!({ "label": "Ada", "confidence": 0.5 });
        assert_eq!(recognition(&face("known", named.clone())), known("Ada", 0.5));
        assert_eq!(recognition(&face("known", Value::Null)), known("", 0.0));
        assert_eq!(recognition(&face("unknown", named)), RecognitionResult::Unknown);
        assert_eq!(recognition(&[]), RecognitionResult::NoFace);
    }
}
