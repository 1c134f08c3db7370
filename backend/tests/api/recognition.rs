//! get-results, dry-run, and several images in one request.

use std::io::Cursor;

use image::{
    DynamicImage, ExtendedColorType, Frame, ImageEncoder as _, ImageFormat, RgbaImage,
    codecs::{gif::GifEncoder, jpeg::JpegEncoder},
};
use reqwest::{Method, StatusCode, multipart::Form};

use crate::helpers::{ApiResponse, Server, file, landscape, photograph, photograph_path, start};

#[tokio::test]
async fn faces_are_located_in_pixels_of_the_picture() {
    let server = start!();
    let reference = facepipe_test_support::fixture("mtcnn.json");
    let face = server.recognise("Tony_Blair", 1).await;
    let expected = &reference["images"]["lfw10/Tony_Blair/Tony_Blair_0001.jpg"];
    let corners = expected[0]["box"].as_array().unwrap();
    for (name, reference) in ["left", "top", "right", "bottom"].iter().zip(corners) {
        let (found, reference) = (face["bounding_box"][name].as_f64().unwrap(), reference.as_f64().unwrap());
        assert!((found - reference).abs() <= 1.0, "{name}: {found} instead of {reference}");
    }
    assert!(face["detection_confidence"].as_f64().unwrap() > 0.95);
}

#[tokio::test]
async fn get_with_a_body_equals_post() {
    let server = start!();
    let mut answers = Vec::new();
    for method in [Method::GET, Method::POST] {
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        let url = format!("{}/face-recognition/get-results", server.url);
        let response = server.client.request(method, url).multipart(form).send().await.unwrap();
        assert!(response.headers()["server-timing"].to_str().unwrap().contains("recognise;dur="));
        answers.push(ApiResponse::read(response).await.expect(StatusCode::OK));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0]["faces"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_image_without_faces_has_an_empty_result() {
    let server = start!();
    let form = Form::new().part("image", landscape());
    let answer = server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    assert_eq!(answer["faces"], serde_json::json!([]));
}

#[tokio::test]
async fn one_bad_image_does_not_spoil_the_others() {
    let server = start!(|config| config.recognition.max_image_bytes = 200_000);
    let form = Form::new()
        .part("image", photograph("Tony_Blair", 1))
        .part("image", file(b"this is text".to_vec()))
        .part("image", file(Vec::new()))
        .part("image", file(vec![0; 200_001]))
        .part("image", photograph("Hugo_Chavez", 1));
    let answer = server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    let images: Vec<_> =
        answer["faces"].as_array().unwrap().iter().map(|face| face["image"].as_u64().unwrap()).collect();
    assert_eq!(images, [0, 4]);
    let errors: Vec<_> = answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| (error["image"].as_u64().unwrap(), error["error"]["code"].as_str().unwrap()))
        .collect();
    assert_eq!(errors, [(1, "image_unreadable"), (2, "image_empty"), (3, "image_too_large")]);
}

#[tokio::test]
async fn a_dry_run_validates_the_form_only() {
    let server = start!();
    let form = Form::new().part("image", photograph("Tony_Blair", 1)).text("camera_id", "gate-1");
    assert!(server.send("/face-recognition/dry-run", form).await.expect(StatusCode::NO_CONTENT).is_null());
    let form = Form::new().text("camera_id", "gate-1");
    server.send("/face-recognition/dry-run", form).await.expect_error(400, "image_missing");
}

/// The corners of the only face on an image.
async fn corners(server: &Server, picture: Vec<u8>) -> [f64; 4] {
    let form = Form::new().part("image", file(picture));
    let answer = server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    let faces = answer["faces"].as_array().unwrap();
    assert_eq!(faces.len(), 1, "{answer}");
    ["left", "top", "right", "bottom"].map(|corner| faces[0]["bounding_box"][corner].as_f64().unwrap())
}

#[tokio::test]
async fn all_image_formats_show_the_same_face() {
    let server = start!();
    // Not square, so that a rotated image is noticed.
    let upright =
        image::open(photograph_path("Tony_Blair", 1)).unwrap().crop_imm(0, 10, 250, 220).into_rgb8();
    let png = |picture: DynamicImage| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    let expected = corners(&server, png(upright.clone().into())).await;

    let sixteen_bits = png(DynamicImage::from(upright.clone()).into_rgb16().into());

    let mut cmyk = Vec::new();
    let ink: Vec<u8> = upright.pixels().flat_map(|p| [255 - p.0[0], 255 - p.0[1], 255 - p.0[2], 0]).collect();
    let (width, height) = (upright.width(), upright.height());
    jpeg_encoder::Encoder::new(&mut cmyk, 95)
        .encode(
            &ink,
            u16::try_from(width).unwrap(),
            u16::try_from(height).unwrap(),
            jpeg_encoder::ColorType::Cmyk,
        )
        .unwrap();

    // As a camera in portrait orientation stores it: EXIF orientation 6 is rotated clockwise.
    let lying = image::imageops::rotate270(&upright);
    let mut turned = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut turned, 95);
    encoder
        .set_exif_metadata(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec())
        .unwrap();
    encoder.write_image(&lying, lying.width(), lying.height(), ExtendedColorType::Rgb8).unwrap();

    let mut animation = Vec::new();
    let mut encoder = GifEncoder::new(&mut animation);
    let first = DynamicImage::from(upright).into_rgba8();
    for frame in [first, RgbaImage::new(width, height)] {
        encoder.encode_frame(Frame::new(frame)).unwrap();
    }
    drop(encoder);

    for (kind, picture) in
        [("16 bits", sixteen_bits), ("CMYK", cmyk), ("EXIF-rotated", turned), ("animated", animation)]
    {
        let found = corners(&server, picture).await;
        for (found, expected) in found.iter().zip(expected) {
            // Palettes and JPEG change colours slightly.
            assert!((found - expected).abs() <= 4.0, "{kind}: {found} instead of {expected}");
        }
    }
}
