//! Verification: whether two images show the same person.

use reqwest::{
    StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::helpers::{ApiResponse, Server, file, landscape, photograph, photograph_path, start};

async fn verify(server: &Server, images: impl IntoIterator<Item = Part>) -> ApiResponse {
    let form = images.into_iter().fold(Form::new(), |form, image| form.part("image", image));
    server.send("/face-recognition/verify", form).await
}

#[tokio::test]
async fn verification_distinguishes_one_person_from_two() {
    let server = start!();
    for (first, second, same) in [
        (("Tony_Blair", 1), ("Tony_Blair", 2), true),
        (("Hugo_Chavez", 3), ("Hugo_Chavez", 1), true),
        (("Tony_Blair", 1), ("Hugo_Chavez", 1), false),
        (("Vladimir_Putin", 1), ("Tony_Blair", 2), false),
    ] {
        let pictures = [photograph(first.0, first.1), photograph(second.0, second.1)];
        let answer = verify(&server, pictures).await;
        assert!(answer.headers["server-timing"].to_str().unwrap().contains("recognise;dur="));
        let answer = answer.expect(StatusCode::OK);
        assert_eq!((&answer["same_person"], &answer["embedder"]), (&same.into(), &"mobilefacenet".into()));
        let (similarity, threshold) =
            (answer["similarity"].as_f64().unwrap(), answer["threshold"].as_f64().unwrap());
        assert_eq!(similarity >= threshold, same, "{answer}");
        assert!((threshold - 0.35).abs() < 1e-6, "{answer}");
        for (number, photo) in [first, second].into_iter().enumerate() {
            let expected = server.recognise(photo.0, photo.1).await;
            let face = &answer["faces"][number];
            assert_eq!(
                *face,
                json!({
                    "image": number,
                    "bounding_box": expected["bounding_box"],
                    "detection_confidence": expected["detection_confidence"],
                })
            );
        }
    }
    // The same image twice has similarity 1, and the order does not matter.
    let answer = verify(&server, [photograph("Tony_Blair", 1), photograph("Tony_Blair", 1)]).await;
    assert!((answer.expect(StatusCode::OK)["similarity"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    let mut similarities = Vec::new();
    for pictures in [[("Tony_Blair", 1), ("Tony_Blair", 2)], [("Tony_Blair", 2), ("Tony_Blair", 1)]] {
        let answer = verify(&server, pictures.map(|(person, number)| photograph(person, number))).await;
        similarities.push(answer.expect(StatusCode::OK)["similarity"].as_f64().unwrap());
    }
    assert!((similarities[0] - similarities[1]).abs() < 1e-5, "{similarities:?}");
    // Verification needs no people and stores none.
    assert_eq!(server.get("/dataset").await.expect(StatusCode::OK)["meta"]["total"], 0);
    let detections = server.get("/database/detections").await.expect(StatusCode::OK);
    assert_eq!(detections["detections"], json!([]));
}

#[tokio::test]
async fn native_and_candle_find_the_same_faces_and_similarity() {
    let mut answers = Vec::new();
    for compute in [None, Some("native"), Some("candle")] {
        let server = start!(|config| config.recognition.compute = compute.map(str::to_owned));
        let pictures = [photograph("Tony_Blair", 1), photograph("Tony_Blair", 2)];
        answers.push(verify(&server, pictures).await.expect(StatusCode::OK));
    }
    let [default, native, candle]: [Value; 3] = answers.try_into().unwrap();
    assert_eq!(default, native);
    let number = |answer: &Value, path: &str| answer.pointer(path).and_then(Value::as_f64).unwrap();
    assert!(
        (number(&native, "/similarity") - number(&candle, "/similarity")).abs() < 1e-3,
        "{native} {candle}"
    );
    for face in 0..2 {
        for edge in ["left", "top", "right", "bottom"] {
            let path = format!("/faces/{face}/bounding_box/{edge}");
            assert!(
                (number(&native, &path) - number(&candle, &path)).abs() < 0.1,
                "{path}: {native} {candle}"
            );
        }
    }
}

#[tokio::test]
async fn the_threshold_of_verification_is_configurable() {
    let server = start!(|config| config.recognition.verify_threshold = Some(-1.0));
    let answer = verify(&server, [photograph("Tony_Blair", 1), photograph("Hugo_Chavez", 1)]).await;
    let answer = answer.expect(StatusCode::OK);
    assert_eq!((&answer["same_person"], &answer["threshold"]), (&true.into(), &(-1.0).into()));
}

#[tokio::test]
async fn images_that_cannot_be_compared_are_reported_by_index() {
    let server = start!();
    let face = || photograph("Tony_Blair", 1);
    for pictures in [vec![], vec![face()], vec![face(), face(), face()]] {
        let images = pictures.len();
        let answer = if pictures.is_empty() {
            let form = Form::new().text("camera_id", "gate-1");
            server.send("/face-recognition/verify", form).await
        } else {
            verify(&server, pictures).await
        };
        assert_eq!(answer.body["error"]["details"], json!({ "images": images, "expected": 2 }));
        let message = answer.expect_error(400, "two_images_expected");
        assert!(message.contains(&images.to_string()), "{message}");
    }

    let answer = verify(&server, [face(), landscape()]).await;
    assert_eq!(answer.body["error"]["details"], json!({ "image": 1, "faces": 0, "turned": null }));
    assert!(answer.expect_error(422, "no_face").contains("image 1"));

    let group = std::fs::read(facepipe_test_support::require!("scenes/multiface.jpg")).unwrap();
    let answer = verify(&server, [file(group), face()]).await;
    let details = answer.body["error"]["details"].clone();
    let faces = details["faces"].as_u64().unwrap();
    assert!(details["image"] == 0 && faces > 1, "{details}");
    assert!(answer.expect_error(422, "several_faces").contains(&format!("{faces} faces")));

    let answer = verify(&server, [face(), file(b"I am not a picture".to_vec())]).await;
    assert_eq!(answer.body["error"]["details"], json!({ "image": 1 }));
    assert!(answer.expect_error(422, "image_unreadable").contains("image 1"));
    let answer = verify(&server, [file(vec![0; 10 * 1024 * 1024 + 1]), face()]).await;
    assert_eq!(
        answer.body["error"]["details"],
        json!({ "image": 0, "bytes": 10_485_761, "max_bytes": 10_485_760 })
    );
    answer.expect_error(413, "image_too_large");
    verify(&server, [file(Vec::new()), face()]).await.expect_error(400, "image_empty");
}

/// The middle of a photograph of Labeled Faces in the Wild, 250 pixels wide, whose faces are about 100 wide.
fn middle(person: &str, number: u32, side: u32) -> Part {
    let photograph = image::open(photograph_path(person, number)).unwrap().to_rgb8();
    let corner = [photograph.width(), photograph.height()].map(|size| (size - side) / 2);
    let crop = image::imageops::crop_imm(&photograph, corner[0], corner[1], side, side).to_image();
    let mut bytes = Vec::new();
    crop.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    file(bytes)
}

#[tokio::test]
async fn a_crop_tighter_than_the_face_shows_the_person_of_the_photograph() {
    let server = start!();
    for (person, number) in [("Tony_Blair", 1), ("Hugo_Chavez", 3)] {
        let answer = verify(&server, [photograph(person, number), middle(person, number, 80)]).await;
        let answer = answer.expect(StatusCode::OK);
        assert_eq!(answer["same_person"], true, "{answer}");
        let face = &answer["faces"][1]["bounding_box"];
        for (side, within) in
            [("left", -24.0..40.0), ("top", -24.0..40.0), ("right", 40.0..104.0), ("bottom", 40.0..104.0)]
        {
            assert!(within.contains(&face[side].as_f64().unwrap()), "{answer}");
        }
    }
}
