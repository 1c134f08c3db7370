//! Which face of a picture is enrolled, how good it is, and whether it is the person's.

use std::io::Cursor;

use image::{RgbImage, imageops};
use reqwest::{
    StatusCode,
    multipart::{Form, Part},
};
use serde_json::{Value, json};

use crate::helpers::{ApiResponse, Server, file, photograph, photograph_path, start};

const MIGRATION: &str = "2025-01-18-000000_image_faces";

fn picture_of(person: &str, number: u32) -> RgbImage {
    image::open(photograph_path(person, number)).unwrap().into_rgb8()
}

/// A picture with heads pasted at these places and scales, each from the middle of a photograph of 250 pixels.
fn collage(size: [u32; 2], heads: &[(&str, u32, [i64; 2], f32)]) -> RgbImage {
    let mut canvas = RgbImage::from_pixel(size[0], size[1], image::Rgb([90, 110, 120]));
    for (person, number, [left, top], scale) in heads {
        let head = imageops::crop_imm(&picture_of(person, *number), 60, 50, 130, 150).to_image();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small sizes")]
        let [width, height] = [130.0, 150.0].map(|side: f32| (side * scale) as u32);
        let scaled = imageops::resize(&head, width, height, imageops::FilterType::Triangle);
        imageops::overlay(&mut canvas, &scaled, *left, *top);
    }
    canvas
}

fn part(picture: &RgbImage) -> Part {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    file(png.into_inner())
}

/// Tony Blair in the middle, Hugo Chavez small in a corner.
fn with_bystander() -> RgbImage {
    collage([500, 400], &[("Tony_Blair", 1, [185, 125], 1.0), ("Hugo_Chavez", 1, [20, 20], 0.6)])
}

/// Hugo Chavez on the left and Tony Blair on the right, both as large.
fn side_by_side() -> RgbImage {
    collage([520, 260], &[("Hugo_Chavez", 1, [60, 50], 1.0), ("Tony_Blair", 1, [330, 50], 1.0)])
}

async fn enrol(
    server: &Server,
    person: &str,
    picture: &RgbImage,
    fields: &[(&'static str, &str)],
) -> ApiResponse {
    let form = fields.iter().fold(Form::new(), |form, (name, value)| form.text(*name, (*value).to_owned()));
    server.send(&format!("/dataset/{person}/image"), form.part("image", part(picture))).await
}

async fn added(server: &Server, people: &[&str]) {
    for person in people {
        server.post(&format!("/dataset/{person}")).await.expect(StatusCode::CREATED);
    }
}

/// The middle of a face's box.
fn middle(face: &Value) -> [f64; 2] {
    let edge = |name: &str| face["bounding_box"][name].as_f64().unwrap();
    [(edge("left") + edge("right")) / 2.0, (edge("top") + edge("bottom")) / 2.0]
}

/// The position of the face around this point.
fn position(boxes: &Value, [x, y]: [f64; 2]) -> usize {
    let is_there = |face: &Value| {
        let [left, top] = middle(face);
        (left - x).hypot(top - y) < 40.0
    };
    boxes.as_array().unwrap().iter().position(is_there).unwrap()
}

#[tokio::test]
async fn the_main_face_of_a_picture_with_a_bystander_is_enrolled_and_kept() {
    let server = start!();
    added(&server, &["Tony_Blair"]).await;
    let seen = Form::new().part("image", part(&with_bystander()));
    let seen = server.send("/face-recognition/get-results", seen).await.expect(StatusCode::OK);
    assert_eq!(seen["faces"].as_array().unwrap().len(), 2, "{seen}");

    let answer = enrol(&server, "Tony_Blair", &with_bystander(), &[]).await.expect(StatusCode::CREATED);
    let [x, y] = middle(&answer);
    assert!((x - 250.0).abs() < 40.0 && (y - 204.0).abs() < 40.0, "{answer}");
    let quality = &answer["quality"];
    let number = |name: &str| quality[name].as_f64().unwrap();
    assert!(number("score") > 40.0 && number("size") > 70.0 && number("sharpness") > 30.0, "{quality}");
    assert!(
        number("yaw").abs() < 45.0 && number("pitch").abs() < 45.0 && number("roll").abs() < 30.0,
        "{quality}"
    );
    assert!((0.2..0.9).contains(&number("brightness")) && number("detection_confidence") > 0.9, "{quality}");

    // Which face it was stands wherever the image is described.
    let listed = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    let face = &listed["images"][0]["face"];
    assert_eq!((&face["bounding_box"], &face["quality"]), (&answer["bounding_box"], quality));
    let by_id = server.get(&format!("/people/{}", answer["person_id"].as_str().unwrap())).await;
    assert_eq!(by_id.expect(StatusCode::OK), listed);
    let image = server.get(&format!("/images/{}", answer["image_id"].as_str().unwrap())).await;
    assert_eq!(&image.expect(StatusCode::OK)["face"], face);

    // Verification takes the same face.
    let form = Form::new().part("image", part(&with_bystander())).part("image", photograph("Tony_Blair", 2));
    let compared = server.send("/face-recognition/verify", form).await.expect(StatusCode::OK);
    assert_eq!(compared["same_person"], true, "{compared}");
    assert_eq!(compared["faces"][0]["bounding_box"], answer["bounding_box"]);
}

#[tokio::test]
async fn of_two_equal_faces_the_one_that_the_request_names_is_taken() {
    let server = start!();
    added(&server, &["Tony_Blair", "Hugo_Chavez", "Nobody"]).await;
    let refused = enrol(&server, "Nobody", &side_by_side(), &[]).await;
    let boxes = refused.body["error"]["details"]["boxes"].clone();
    let message = refused.expect_error(422, "several_faces");
    assert!(message.contains("`face`") && message.contains("`box`"), "{message}");
    let [left, right] = [[130.0, 130.0], [400.0, 130.0]].map(|place| position(&boxes, place));
    let number = right.to_string();

    let by_number = enrol(&server, "Tony_Blair", &side_by_side(), &[("face", &number)]).await;
    let by_number = by_number.expect(StatusCode::CREATED);
    assert_eq!(by_number["bounding_box"], boxes[right]["bounding_box"]);
    // A box as a person draws it, around the head. Another picture: one is enrolled once.
    let mut other = side_by_side();
    other.put_pixel(0, 0, image::Rgb([0; 3]));
    let by_place = enrol(&server, "Hugo_Chavez", &other, &[("box", "70,50,190,200")]).await;
    assert!(middle(&by_place.expect(StatusCode::CREATED))[0] < 260.0);

    // Not refused as a copy of an enrolled one.
    let mut another = side_by_side();
    another.put_pixel(1, 0, image::Rgb([0; 3]));
    for (field, value, code) in [
        ("face", "9", "no_such_face"),
        ("box", "230,0,290,20", "no_such_face"),
        ("face", "-1", "invalid_field"),
        ("face", "the left one", "invalid_field"),
        ("box", "1,2,3", "invalid_field"),
        ("box", "200,40,60,220", "invalid_field"),
    ] {
        let answer = enrol(&server, "Nobody", &another, &[(field, value)]).await;
        let details = answer.body["error"]["details"].clone();
        assert_eq!(details["field"], field, "{field} {value}");
        if code == "no_such_face" {
            assert_eq!((&details["boxes"], &details["image"]), (&boxes, &json!(0)));
        }
        let status = if code == "invalid_field" { 400 } else { 422 };
        let message = answer.expect_error(status, code);
        assert!(message.contains(&format!("`{field}`")), "{message}");
    }
    let both = [("face", "0"), ("box", "70,50,190,200")];
    enrol(&server, "Nobody", &another, &both).await.expect_error(400, "invalid_field");

    // Verification has a field for each image.
    for (face, same) in [(right.to_string(), true), (left.to_string(), false)] {
        let form = Form::new()
            .part("image", photograph("Tony_Blair", 2))
            .part("image", part(&side_by_side()))
            .text("face", "")
            .text("face", face);
        let compared = server.send("/face-recognition/verify", form).await.expect(StatusCode::OK);
        assert_eq!(compared["same_person"], same, "{compared}");
    }
    let form = Form::new()
        .part("image", photograph("Tony_Blair", 2))
        .part("image", part(&side_by_side()))
        .text("box", "")
        .text("box", "230,0,290,20");
    let answer = server.send("/face-recognition/verify", form).await;
    assert_eq!(answer.body["error"]["details"]["image"], 1);
    answer.expect_error(422, "no_such_face");
}

#[tokio::test]
async fn trainings_and_recomputations_take_the_enrolled_face_again() {
    let server = start!();
    added(&server, &["Tony_Blair", "Hugo_Chavez"]).await;
    // The right-hand face is the person's, the other one is larger.
    for (person, number, left) in [("Tony_Blair", 1, "Hugo_Chavez"), ("Hugo_Chavez", 2, "Tony_Blair")] {
        let picture = collage([460, 320], &[(left, 3, [40, 40], 0.9), (person, number, [300, 60], 0.8)]);
        let refused = enrol(&server, person, &picture, &[]).await;
        let boxes = refused.body["error"]["details"]["boxes"].clone();
        refused.expect_error(422, "several_faces");
        let right = position(&boxes, [352.0, 125.0]);
        let answer = enrol(&server, person, &picture, &[("face", &right.to_string())]).await;
        answer.expect(StatusCode::CREATED);
    }
    let faces =
        |server: &Server| server.lines("SELECT CONCAT(id, ' ', face_left) AS line FROM images ORDER BY id");
    let before = faces(&server);

    let trained = server.post("/model/train?wait=true").await;
    assert!(trained.status.is_success(), "{}", trained.body);
    for (person, number) in [("Tony_Blair", 2), ("Hugo_Chavez", 3)] {
        let face = server.recognise(person, number).await;
        assert_eq!(face["top_prediction"]["label"], person, "{face}");
    }
    let recomputed = server.post("/model/generate-emb?wait=true").await;
    assert!(recomputed.status.is_success(), "{}", recomputed.body);
    assert_eq!(faces(&server), before);
    server.train().await;
    for (person, number) in [("Tony_Blair", 2), ("Hugo_Chavez", 3)] {
        let face = server.recognise(person, number).await;
        assert_eq!(face["top_prediction"]["label"], person, "{face}");
    }
}

#[tokio::test]
async fn images_from_before_faces_were_stored_keep_everything_and_get_theirs_with_new_embeddings() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    let first = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    server.revert(MIGRATION);
    let server = server.restart().await;
    let upgraded = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    let mut expected = first.clone();
    for image in expected["images"].as_array_mut().unwrap() {
        assert!(image["face"]["quality"]["score"].as_u64().unwrap() > 0);
        image["face"] = Value::Null;
    }
    assert_eq!(upgraded, expected);
    server.train().await;
    assert_eq!(server.recognise("Tony_Blair", 3).await["decision"], "known");
    let recomputed = server.post("/model/generate-emb?wait=true").await;
    assert!(recomputed.status.is_success(), "{}", recomputed.body);
    assert_eq!(server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK), first);
}

#[tokio::test]
async fn a_face_below_the_minimum_quality_is_refused_with_what_was_measured() {
    let blurred = imageops::blur(&picture_of("Tony_Blair", 1), 3.0);
    let server = start!();
    added(&server, &["Tony_Blair"]).await;
    let accepted = enrol(&server, "Tony_Blair", &blurred, &[]).await.expect(StatusCode::CREATED);
    let score = accepted["quality"]["score"].as_u64().unwrap();
    assert!(score < 50, "{accepted}");

    let server = start!(|config| config.dataset.min_quality = 50);
    added(&server, &["Tony_Blair"]).await;
    let refused = enrol(&server, "Tony_Blair", &blurred, &[]).await;
    let details = refused.body["error"]["details"].clone();
    assert_eq!(details, json!({ "quality": accepted["quality"], "min_quality": 50 }));
    let message = refused.expect_error(422, "quality_too_low");
    for part in [&format!("is {score} of 100"), "at least 50", "min_quality", "sharpness", "in focus"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK)["meta"]["total"], 0);
    enrol(&server, "Tony_Blair", &picture_of("Tony_Blair", 1), &[]).await.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn a_picture_of_somebody_else_is_enrolled_with_warnings() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2, 3]).await;
    server.enrol("Hugo_Chavez", &[1, 2, 3]).await;
    server.train().await;
    let hugo = server.get("/dataset/Hugo_Chavez").await.expect(StatusCode::OK);

    let own = enrol(&server, "Tony_Blair", &picture_of("Tony_Blair", 4), &[]).await;
    let own = own.expect(StatusCode::CREATED);
    assert_eq!((own.get("warnings"), own.get("warning")), (None, None), "{own}");

    let wrong = enrol(&server, "Tony_Blair", &picture_of("Hugo_Chavez", 4), &[]).await;
    let wrong = wrong.expect(StatusCode::CREATED);
    assert_eq!(wrong.get("warning"), None, "no picture of another person's: {wrong}");
    let warnings = wrong["warnings"].as_array().unwrap();
    let codes: Vec<&str> = warnings.iter().map(|warning| warning["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["looks_like_another", "unlike_own_images"]);
    let person = json!({ "person_id": hugo["person_id"], "face_id": "Hugo_Chavez" });
    assert_eq!(warnings[0]["person"], person);
    let number = |warning: &Value, name: &str| warning[name].as_f64().unwrap();
    assert!(number(&warnings[0], "similarity") >= number(&warnings[0], "threshold"), "{wrong}");
    assert!(number(&warnings[1], "similarity") < number(&warnings[1], "threshold"), "{wrong}");
    for warning in warnings {
        assert!(!warning["message"].as_str().unwrap().contains("Hugo"), "{warning}");
    }
    // Of a copy of another person's picture, one warning is enough.
    let copy = imageops::resize(&picture_of("Hugo_Chavez", 1), 200, 200, imageops::FilterType::Triangle);
    let copy = enrol(&server, "Tony_Blair", &copy, &[]).await.expect(StatusCode::CREATED);
    assert_eq!((&copy["warning"]["code"], &copy["warnings"][0]), (&json!("similar_image"), &copy["warning"]));
    let others = copy["warnings"].as_array().unwrap().iter().skip(1);
    assert!(others.into_iter().all(|warning| warning["code"] == "unlike_own_images"), "{copy}");
}
