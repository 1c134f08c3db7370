//! Writes crops and their facts as `multipart/form-data` (RFC 7578), in the fields of the recognition calls.

use bytes::{BufMut, Bytes, BytesMut};
use time::format_description::well_known::Rfc3339;

use super::{Crop, Endpoint, UploadConfig};

/// Returns the content type, with its boundary, and the body.
///
/// The fields `camera_id` and `location` come first. Then, for each crop, `image` and its `captured_at` (RFC
/// 3339), `key`, and where known `box` (`left,top,right,bottom`, pixels of the full frame) and `track_id`.
pub(super) fn encode(config: &UploadConfig, crops: &[Crop]) -> (String, Bytes) {
    // 64 random bits don't occur inside a part. The boundary stands before each field, so its length counts.
    let boundary = format!("facepipe{:016x}", rand::random::<u64>());
    let pictures: usize = crops.iter().map(|crop| crop.jpeg.len() + 600).sum();
    let mut form = Form { boundary: &boundary, body: BytesMut::with_capacity(pictures + 500) };

    let stores = matches!(config.endpoint, Endpoint::StoreResults | Endpoint::SendResults);
    if stores || !config.camera_id.is_empty() {
        form.text("camera_id", &config.camera_id);
    }
    if stores || !config.camera_location.is_empty() {
        form.text("location", &config.camera_location);
    }
    for crop in crops {
        form.jpeg("image", &crop.jpeg);
        if let Ok(captured_at) = crop.captured_at.format(&Rfc3339) {
            form.text("captured_at", &captured_at);
        }
        form.text("key", &crop.key.to_string());
        if let Some([left, top, right, bottom]) = crop.bounding_box {
            form.text("box", &format!("{left},{top},{right},{bottom}"));
        }
        if let Some(track_id) = crop.track_id {
            form.text("track_id", &track_id.to_string());
        }
    }
    let body = form.finish();
    (format!("multipart/form-data; boundary={boundary}"), body)
}

struct Form<'a> {
    boundary: &'a str,
    body: BytesMut,
}

impl Form<'_> {
    fn text(&mut self, name: &str, value: &str) {
        self.head(&format!("form-data; name=\"{name}\""), None);
        self.body.put_slice(value.as_bytes());
        self.body.put_slice(b"\r\n");
    }

    fn jpeg(&mut self, name: &str, jpeg: &[u8]) {
        self.head(&format!("form-data; name=\"{name}\"; filename=\"face.jpg\""), Some("image/jpeg"));
        self.body.put_slice(jpeg);
        self.body.put_slice(b"\r\n");
    }

    fn head(&mut self, disposition: &str, content_type: Option<&str>) {
        self.body.put_slice(format!("--{}\r\n", self.boundary).as_bytes());
        self.body.put_slice(format!("Content-Disposition: {disposition}\r\n").as_bytes());
        if let Some(content_type) = content_type {
            self.body.put_slice(format!("Content-Type: {content_type}\r\n").as_bytes());
        }
        self.body.put_slice(b"\r\n");
    }

    fn finish(mut self) -> Bytes {
        self.body.put_slice(format!("--{}--\r\n", self.boundary).as_bytes());
        self.body.freeze()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    fn crop(track_id: Option<i32>, bounding_box: Option<[u32; 4]>) -> Crop {
        Crop {
            jpeg: Bytes::from_static(b"\xff\xd8picture\xff\xd9"),
            captured_at: datetime!(2024-05-06 07:08:09.25 UTC),
            track_id,
            bounding_box,
            key: Uuid::from_u128(7),
        }
    }

    fn form(config: &UploadConfig, crops: &[Crop]) -> String {
        let (content_type, body) = encode(config, crops);
        let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap();
        String::from_utf8_lossy(&body).replace(boundary, "B").replace('\u{fffd}', "?")
    }

    #[test]
    fn every_known_fact_becomes_a_field() {
        let config = UploadConfig {
            camera_id: "gate-1".into(),
            camera_location: "Lobby".into(),
            ..UploadConfig::default()
        };
        assert_eq!(
            form(&config, &[crop(Some(4), Some([1, 2, 30, 40]))]),
            "--B\r\nContent-Disposition: form-data; name=\"camera_id\"\r\n\r\ngate-1\r\n\
             --B\r\nContent-Disposition: form-data; name=\"location\"\r\n\r\nLobby\r\n\
             --B\r\nContent-Disposition: form-data; name=\"image\"; filename=\"face.jpg\"\r\n\
             Content-Type: image/jpeg\r\n\r\n??picture??\r\n\
             --B\r\nContent-Disposition: form-data; name=\"captured_at\"\r\n\r\n2024-05-06T07:08:09.25Z\r\n\
             --B\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\n00000000-0000-0000-0000-000000000007\r\n\
             --B\r\nContent-Disposition: form-data; name=\"box\"\r\n\r\n1,2,30,40\r\n\
             --B\r\nContent-Disposition: form-data; name=\"track_id\"\r\n\r\n4\r\n\
             --B--\r\n"
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let config = UploadConfig { endpoint: Endpoint::GetResults, ..UploadConfig::default() };
        let form = form(&config, &[crop(None, None)]);
        for field in ["camera_id", "location", "box", "track_id"] {
            assert!(!form.contains(&format!("name=\"{field}\"")), "{field} in {form}");
        }
    }

    #[test]
    fn several_crops_share_one_request() {
        let crops = [crop(None, None), crop(None, None), crop(None, None)];
        let form = form(&UploadConfig::default(), &crops);
        assert_eq!(form.matches("name=\"image\"").count(), 3);
        assert_eq!(form.matches("name=\"key\"").count(), 3);
        assert_eq!(form.matches("name=\"camera_id\"").count(), 1);
    }
}
