//! Turns what the uploader tells into messages on the bus. Their fields are documented with the element.

use gst::prelude::*;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;

use crate::{
    results::{self, FaceResult, Scope, Verdict},
    upload::{Crop, Endpoint, Event},
};

pub(super) fn post(element: &super::FaceSinkHttp, event: Event) {
    match event {
        Event::Answered { crop, status, model_version, faces } => {
            hand_on(element, &crop, &faces);
            let faces = faces.iter().map(|face| face_structure(face).to_send_value());
            let result = crop_fields("facepipe-result", &crop, status)
                .field_if_some("model-version", model_version)
                .field("faces", gst::Array::from_values(faces))
                .build();
            post_structure(element, result);
        }
        Event::Rejected { crop, status, message, first } => {
            if first {
                gst::element_warning!(
                    element,
                    gst::ResourceError::Write,
                    ("the backend refuses crops with status {status}: {message}")
                );
            }
            let rejected = crop_fields("facepipe-rejected", &crop, status).field("message", message).build();
            post_structure(element, rejected);
        }
        Event::Outage { reason } => {
            let backend: String = element.property("backend-url");
            gst::element_warning!(
                element,
                gst::ResourceError::OpenWrite,
                ("the backend {backend} {reason}; crops wait until it answers, and the oldest give way when \
                     max-queue is reached")
            );
        }
        Event::Recovered { after } => {
            gst::element_info!(
                element,
                gst::ResourceError::OpenWrite,
                ("the backend answers again after {:.1} s", after.as_secs_f64())
            );
        }
    }
}

/// Tells the overlays of this process.
fn hand_on(element: &super::FaceSinkHttp, crop: &Crop, faces: &[Value]) {
    // This call answers without looking at the crop.
    if element.property::<Endpoint>("endpoint") == Endpoint::DryRun {
        return;
    }
    results::publish(&FaceResult {
        scope: Scope::of(element.upcast_ref()),
        camera_id: element.property::<Option<String>>("camera-id").unwrap_or_default(),
        track_id: crop.track_id,
        bounding_box: crop.bounding_box,
        verdict: verdict(faces),
    });
}

/// What the faces of a crop say about the one it was cut for: a neighbour in the margin is smaller.
fn verdict(faces: &[Value]) -> Verdict {
    let number = |face: &Value, pointer: &str| face.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    let area = |face: &Value| {
        let side = |end: &str, start: &str| {
            number(face, &format!("/bounding_box/{end}")) - number(face, &format!("/bounding_box/{start}"))
        };
        side("right", "left") * side("bottom", "top")
    };
    let Some(face) = faces.iter().max_by(|a, b| area(a).total_cmp(&area(b))) else { return Verdict::NoFace };
    let label = face.pointer("/top_prediction/label").and_then(Value::as_str);
    match (face.pointer("/decision").and_then(Value::as_str), label) {
        (Some("known"), Some(label)) => {
            Verdict::Known { label: label.to_owned(), confidence: number(face, "/top_prediction/confidence") }
        }
        _ => Verdict::Unknown,
    }
}

fn post_structure(element: &super::FaceSinkHttp, structure: gst::Structure) {
    // Without a bus nobody listens, and that is fine.
    let _ = element.post_message(gst::message::Element::builder(structure).src(element).build());
}

fn crop_fields(name: &str, crop: &Crop, status: u16) -> gst::structure::Builder {
    let mut builder = gst::Structure::builder(name)
        .field("key", crop.key.to_string())
        .field("status", u32::from(status))
        .field("captured-at", crop.captured_at.format(&Rfc3339).unwrap_or_default())
        .field("track-id", crop.track_id.unwrap_or(0));
    if let Some([left, top, right, bottom]) = crop.bounding_box {
        builder = builder.field("left", left).field("top", top).field("right", right).field("bottom", bottom);
    }
    builder
}

/// One face of the backend's answer.
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
