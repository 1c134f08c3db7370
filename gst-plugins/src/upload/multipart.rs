//! Writes crops and their metadata as `multipart/form-data` (RFC 7578), in the fields of the recognition calls and in as few
//! bytes as the format allows: images are small, so that everything else is a noticeable overhead.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, Bytes, BytesMut};
use facepipe_detector::BoundingBox;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{Crop, Endpoint};
use crate::crop::Encoding;

/// Capacity for the text fields of one crop, bytes.
const FIELDS_CAPACITY: usize = 512;

/// Returns the content type, with its boundary, and the body. All crops are of one camera and one run.
///
/// The fields `camera_id`, `location` and, if known, `run_id` come first. Then, for each crop, `image` and its `captured_at` (RFC
/// 3339), `key` and, if known, `box` (`left,top,right,bottom`, pixels of the full frame) and `track_id`.
pub(super) fn encode(endpoint: Endpoint, crops: &[&Crop]) -> (String, Bytes) {
    let boundary = choose_boundary(crops);
    let capacity: usize = crops.iter().map(|crop| crop.image.len() + FIELDS_CAPACITY).sum();
    let mut form =
        FormWriter { boundary: &boundary, body: BytesMut::with_capacity(capacity + FIELDS_CAPACITY) };

    if let Some(first) = crops.first() {
        let stores = matches!(endpoint, Endpoint::StoreResults | Endpoint::SendResults);
        for (name, value) in [("camera_id", &first.camera.id), ("location", &first.camera.location)] {
            if stores || !value.is_empty() {
                form.text(name, value);
            }
        }
        if let Some(run_id) = first.run_id {
            form.text("run_id", &encode_uuid(run_id));
        }
    }
    for crop in crops {
        form.image(crop);
        form.text("captured_at", &format_captured_at(crop.captured_at));
        form.text("key", &encode_uuid(crop.key));
        if let Some(BoundingBox { left, top, right, bottom }) = crop.bounding_box {
            form.text("box", &format!("{left},{top},{right},{bottom}"));
        }
        if let Some(track_id) = crop.track_id {
            form.text("track_id", &track_id.to_string());
        }
    }
    let body = form.finish();
    (format!("multipart/form-data; boundary={boundary}"), body)
}

/// Formats a time in RFC 3339 with milliseconds, which is finer than the clock of any camera.
pub fn format_captured_at(time: OffsetDateTime) -> String {
    let milliseconds = time.millisecond();
    time.replace_millisecond(milliseconds).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

/// Encodes the 128 bits of a key or a run in 22 characters (base64url, RFC 4648, section 5), where a UUID's usual form has
/// 36.
pub fn encode_uuid(id: Uuid) -> String {
    URL_SAFE_NO_PAD.encode(id.as_bytes())
}

/// Returns a boundary that occurs in no value. It precedes each field, so it is as short as two letters if possible.
fn choose_boundary(crops: &[&Crop]) -> String {
    let mut boundary = String::from("fp");
    loop {
        let line = format!("\r\n--{boundary}");
        let occurs = |value: &[u8]| {
            value.starts_with(line.trim_start().as_bytes())
                || value.windows(line.len()).any(|window| window == line.as_bytes())
        };
        let in_crop = |crop: &Crop| {
            [&crop.image, crop.camera.id.as_bytes(), crop.camera.location.as_bytes()].into_iter().any(occurs)
        };
        if !crops.iter().any(|crop| in_crop(crop)) {
            return boundary;
        }
        boundary = format!("fp{:x}", rand::random::<u32>());
    }
}

struct FormWriter<'a> {
    boundary: &'a str,
    body: BytesMut,
}

impl FormWriter<'_> {
    fn text(&mut self, name: &str, value: &str) {
        self.head(name);
        self.body.put_slice(b"\r\n\r\n");
        self.body.put_slice(value.as_bytes());
        self.body.put_slice(b"\r\n");
    }

    fn image(&mut self, crop: &Crop) {
        self.head("image");
        let name = match crop.encoding {
            Encoding::Jpeg => "f.jpg",
            Encoding::Webp => "f.webp",
        };
        let media_type = crop.encoding.media_type();
        self.body.put_slice(format!(";filename={name}\r\nContent-Type:{media_type}\r\n\r\n").as_bytes());
        self.body.put_slice(&crop.image);
        self.body.put_slice(b"\r\n");
    }

    fn head(&mut self, name: &str) {
        let boundary = self.boundary;
        // White space after the colon and the semicolon, and quotes around a token, may be left out (RFC 5322,
        // section 2.2; RFC 2045, section 5.1).
        self.body.put_slice(format!("--{boundary}\r\nContent-Disposition:form-data;name={name}").as_bytes());
    }

    fn finish(mut self) -> Bytes {
        self.body.put_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        self.body.freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;
    use crate::upload::Camera;

    fn crop(track_id: Option<i32>, bounding_box: Option<[u32; 4]>) -> Crop {
        Crop {
            image: Bytes::from_static(b"\xff\xd8picture\xff\xd9"),
            encoding: Encoding::Jpeg,
            camera: Arc::new(Camera { id: "gate-1".into(), location: "Lobby".into() }),
            captured_at: datetime!(2024-05-06 07:08:09.250_499_999 UTC),
            track_id,
            run_id: track_id.map(|_| Uuid::from_u128(8)),
            bounding_box: bounding_box.map(BoundingBox::from),
            area: None,
            key: Uuid::from_u128(7),
        }
    }

    fn form(endpoint: Endpoint, crops: &[Crop]) -> String {
        let (content_type, body) = encode(endpoint, &crops.iter().collect::<Vec<_>>());
        let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
        String::from_utf8_lossy(&body).replace(&format!("--{boundary}"), "--B").replace('\u{fffd}', "?")
    }

    #[test]
    fn all_metadata_becomes_form_fields() {
        assert_eq!(
            form(Endpoint::StoreResults, &[crop(Some(4), Some([1, 2, 30, 40]))]),
            "--B\r\nContent-Disposition:form-data;name=camera_id\r\n\r\ngate-1\r\n\
             --B\r\nContent-Disposition:form-data;name=location\r\n\r\nLobby\r\n\
             --B\r\nContent-Disposition:form-data;name=run_id\r\n\r\nAAAAAAAAAAAAAAAAAAAACA\r\n\
             --B\r\nContent-Disposition:form-data;name=image;filename=f.jpg\r\n\
             Content-Type:image/jpeg\r\n\r\n??picture??\r\n\
             --B\r\nContent-Disposition:form-data;name=captured_at\r\n\r\n2024-05-06T07:08:09.25Z\r\n\
             --B\r\nContent-Disposition:form-data;name=key\r\n\r\nAAAAAAAAAAAAAAAAAAAABw\r\n\
             --B\r\nContent-Disposition:form-data;name=box\r\n\r\n1,2,30,40\r\n\
             --B\r\nContent-Disposition:form-data;name=track_id\r\n\r\n4\r\n\
             --B--\r\n"
        );
    }

    #[test]
    fn unknown_metadata_is_omitted() {
        let camera = Arc::new(Camera::default());
        let form = form(Endpoint::GetResults, &[Crop { camera, ..crop(None, None) }]);
        for field in ["camera_id", "location", "box", "track_id", "run_id"] {
            assert!(!form.contains(&format!("name={field}")), "{field} in {form}");
        }
    }

    #[test]
    fn several_crops_share_one_request() {
        let crops = [crop(Some(1), None), crop(Some(2), None), crop(Some(2), None)];
        let form = form(Endpoint::StoreResults, &crops);
        assert_eq!(form.matches("name=image").count(), 3);
        assert_eq!(form.matches("name=key").count(), 3);
        assert_eq!(form.matches("name=camera_id").count(), 1);
        assert_eq!(form.matches("name=run_id").count(), 1);
    }

    #[test]
    fn webp_has_its_own_type_and_file_name() {
        let form = form(Endpoint::DryRun, &[Crop { encoding: Encoding::Webp, ..crop(None, None) }]);
        assert!(form.contains(";filename=f.webp\r\nContent-Type:image/webp\r\n"), "{form}");
    }

    #[test]
    fn a_boundary_that_occurs_in_a_value_is_replaced() {
        let within = Crop { image: Bytes::from_static(b"a\r\n--fp--\r\nb"), ..crop(None, None) };
        let first = Crop { image: Bytes::from_static(b"--fp--\r\nb"), ..crop(None, None) };
        let camera = Arc::new(Camera { id: "--fp--".into(), location: String::new() });
        for crop in [within, first, Crop { camera, ..crop(None, None) }] {
            let (content_type, body) = encode(Endpoint::DryRun, &[&crop]);
            let boundary = content_type.split_once("boundary=").unwrap().1;
            assert_ne!(boundary, "fp");
            let delimiter = format!("--{boundary}\r\n");
            let fields = body.windows(delimiter.len()).filter(|window| *window == delimiter.as_bytes());
            assert!((4..=5).contains(&fields.count()));
        }
    }

    /// Splits a form as RFC 7578 and RFC 2046 have it: returns head and value of each part.
    fn parse(content_type: &str, body: &[u8]) -> Vec<(String, Vec<u8>)> {
        let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
        assert!((1..=70).contains(&boundary.len()) && boundary.bytes().all(|b| b.is_ascii_alphanumeric()));
        let delimiter = format!("\r\n--{boundary}");
        let body = [b"\r\n", body].concat();
        let mut rest = body.strip_prefix(delimiter.as_bytes()).unwrap();
        let mut parts = Vec::new();
        while rest != b"--\r\n" {
            let part = rest.strip_prefix(b"\r\n").unwrap();
            let find = |text: &[u8], pattern: &[u8]| text.windows(pattern.len()).position(|w| w == pattern);
            let head = find(part, b"\r\n\r\n").unwrap();
            let end = find(part, delimiter.as_bytes()).unwrap();
            let value = part[head + 4..end].to_vec();
            parts.push((String::from_utf8(part[..head].to_vec()).unwrap(), value));
            rest = &part[end + delimiter.len()..];
        }
        parts
    }

    /// Returns bytes that are likely to contain the boundary.
    fn image() -> impl Strategy<Value = Bytes> {
        let chunk = prop_oneof![
            Just(b"\r\n--fp".to_vec()),
            Just(b"--fp".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"--\r\n".to_vec()),
            prop::collection::vec(any::<u8>(), 0..20),
        ];
        prop::collection::vec(chunk, 0..6).prop_map(|chunks| Bytes::from(chunks.concat()))
    }

    prop_compose! {
        fn any_crop(camera: Arc<Camera>)(
            image in image(), is_webp: bool, seconds in 0..4_000_000_000_i64, track_id: Option<i32>,
            bounding_box: Option<[u32; 4]>, key: u128,
        ) -> Crop {
            Crop {
                image,
                encoding: if is_webp { Encoding::Webp } else { Encoding::Jpeg },
                camera: Arc::clone(&camera),
                captured_at: OffsetDateTime::from_unix_timestamp(seconds).unwrap(),
                track_id,
                run_id: Some(Uuid::from_u128(9)),
                bounding_box: bounding_box.map(BoundingBox::from),
                area: None,
                key: Uuid::from_u128(key),
            }
        }
    }

    fn crops() -> impl Strategy<Value = Vec<Crop>> {
        // Control characters in the names of cameras are an error at the start.
        ("(--fp)?\\PC{1,20}", "\\PC{0,20}").prop_flat_map(|(id, location)| {
            prop::collection::vec(any_crop(Arc::new(Camera { id, location })), 1..5)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_parser_gets_back_every_field(crops in crops()) {
            let (content_type, body) = encode(Endpoint::StoreResults, &crops.iter().collect::<Vec<_>>());
            let mut expected: Vec<(String, Vec<u8>)> = Vec::new();
            let mut field = |head: &str, value: &[u8]| {
                expected.push((format!("Content-Disposition:form-data;name={head}"), value.to_vec()));
            };
            field("camera_id", crops[0].camera.id.as_bytes());
            field("location", crops[0].camera.location.as_bytes());
            field("run_id", b"AAAAAAAAAAAAAAAAAAAACQ");
            for crop in &crops {
                let head = match crop.encoding {
                    Encoding::Jpeg => "image;filename=f.jpg\r\nContent-Type:image/jpeg",
                    Encoding::Webp => "image;filename=f.webp\r\nContent-Type:image/webp",
                };
                field(head, &crop.image);
                field("captured_at", crop.captured_at.format(&Rfc3339).unwrap().as_bytes());
                field("key", URL_SAFE_NO_PAD.encode(crop.key.as_bytes()).as_bytes());
                if let Some(BoundingBox { left, top, right, bottom }) = crop.bounding_box {
                    field("box", format!("{left},{top},{right},{bottom}").as_bytes());
                }
                if let Some(track_id) = crop.track_id {
                    field("track_id", track_id.to_string().as_bytes());
                }
            }
            prop_assert_eq!(parse(&content_type, &body), expected);
        }
    }
}
