//! The same picture enrolled under two people.

use std::io::Cursor;

use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};

use crate::helpers::{ApiResponse, Server, file, files_below, photograph, photograph_path, start};

/// A photograph in another size and quality.
fn copy_of(person: &str, number: u32) -> Form {
    let picture = image::open(photograph_path(person, number)).unwrap();
    let (width, height) = (picture.width() * 4 / 5, picture.height() * 4 / 5);
    let smaller = picture.resize_exact(width, height, image::imageops::FilterType::Triangle);
    let mut jpeg = Cursor::new(Vec::new());
    smaller.write_to(&mut jpeg, image::ImageFormat::Jpeg).unwrap();
    Form::new().part("image", file(jpeg.into_inner()))
}

async fn dataset(server: &Server) -> Value {
    server.get("/dataset").await.expect(StatusCode::OK)
}

fn entry<'a>(dataset: &'a Value, name: &str) -> &'a Value {
    dataset["people"].as_array().unwrap().iter().find(|person| person["face_id"] == name).unwrap()
}

/// The images of a pair, in a fixed order.
fn sides(conflict: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let images = conflict["images"].as_array().unwrap().iter();
    let mut sides: Vec<_> = images.map(|image| (text(&image["face_id"]), text(&image["image_id"]))).collect();
    sides.sort();
    sides
}

#[tokio::test]
async fn an_image_of_another_person_is_rejected_with_that_persons_id() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1]).await;
    let tony = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);
    let blobs = files_below(&server.data.path().join("blobs")).len();

    let form = Form::new().part("image", photograph("Tony_Blair", 2));
    let answer = server.send("/dataset/Hugo_Chavez/image", form).await;
    let details = json!({ "image_id": tony["images"][1]["image_id"], "person_id": tony["person_id"] });
    assert_eq!(answer.body["error"]["details"], details);
    let message = answer.expect_error(409, "image_of_another");
    assert!(!message.contains("Tony"), "{message}");
    assert_eq!(files_below(&server.data.path().join("blobs")).len(), blobs);
    assert_eq!(entry(&dataset(&server).await, "Hugo_Chavez")["images"], 1);

    // From the image to its person, and to its bytes.
    let image = format!("/images/{}", details["image_id"].as_str().unwrap());
    let shown = server.get(&image).await.expect(StatusCode::OK);
    assert_eq!((&shown["face_id"], &shown["person_id"]), (&"Tony_Blair".into(), &tony["person_id"]));
    for field in ["image_id", "bytes", "sha256", "created_at"] {
        assert_eq!(shown[field], tony["images"][1][field], "{field}");
    }
    assert_eq!(shown["embeddings"][0]["embedder"], "mobilefacenet");
    assert_eq!(shown["similar"], json!([]));
    let content = server.client.get(format!("{}{image}/content", server.url)).send().await.unwrap();
    assert_eq!(content.headers()["content-type"], "image/jpeg");
    assert_eq!(content.bytes().await.unwrap(), std::fs::read(photograph_path("Tony_Blair", 2)).unwrap());
    for path in ["/images/x", "/images/x/content"] {
        server.get(path).await.expect_error(404, "image_not_found");
    }
    server.delete("/images/x").await.expect_error(404, "image_not_found");
    server.delete(&image).await.expect(StatusCode::NO_CONTENT);
    // Now it can be the other one's.
    let form = Form::new().part("image", photograph("Tony_Blair", 2));
    server.send("/dataset/Hugo_Chavez/image", form).await.expect(StatusCode::CREATED);
}

#[tokio::test]
async fn an_image_sent_concurrently_for_many_people_is_enrolled_for_one() {
    let server = start!();
    for person in 0..8 {
        server.post(&format!("/dataset/P{person}")).await.expect(StatusCode::CREATED);
    }
    let calls = (0..8).map(|person| {
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        let request = server.client.post(format!("{}/dataset/P{person}/image", server.url)).multipart(form);
        tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await })
    });
    let (mut enrolled, mut refused) = (Vec::new(), Vec::new());
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap();
        match answer.status {
            StatusCode::CREATED => enrolled.push(answer.body),
            _ => {
                refused.push(answer.body["error"]["details"].clone());
                answer.expect_error(409, "image_of_another");
            }
        }
    }
    assert_eq!(enrolled.len(), 1);
    let details = json!({ "image_id": enrolled[0]["image_id"], "person_id": enrolled[0]["person_id"] });
    assert_eq!(refused, vec![details; 7]);
    assert_eq!(files_below(&server.data.path().join("blobs")).len(), 1);
}

#[tokio::test]
async fn a_near_duplicate_of_another_persons_image_is_accepted_with_a_warning_and_excluded_from_training() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2, 3]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    let original = server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK)["images"][0].clone();
    // The person's own copy is no contradiction, and a picture of its own is like nobody else's.
    let own = server.send("/dataset/Tony_Blair/image", copy_of("Tony_Blair", 2)).await;
    assert!(own.expect(StatusCode::CREATED).get("warning").is_none());

    let copy = server.send("/dataset/Hugo_Chavez/image", copy_of("Tony_Blair", 1)).await;
    let copy = copy.expect(StatusCode::CREATED);
    let warning = &copy["warning"];
    assert_eq!(warning["code"], "similar_image");
    assert!(!warning["message"].as_str().unwrap().contains("Tony"), "{warning}");
    assert_eq!(warning["images"][0]["image_id"], original["image_id"]);
    assert_eq!(warning["images"][0]["face_id"], "Tony_Blair");
    let similarity = warning["images"][0]["similarity"].as_f64().unwrap();
    assert!((0.9..=1.0).contains(&similarity), "{similarity}");

    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pair = vec![
        ("Hugo_Chavez".to_owned(), text(&copy["image_id"])),
        ("Tony_Blair".to_owned(), text(&original["image_id"])),
    ];
    let listed = dataset(&server).await;
    assert_eq!(listed["conflicts"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(sides(&listed["conflicts"][0]), pair);
    assert_eq!(entry(&listed, "Tony_Blair")["usable_images"], 3);
    assert_eq!(entry(&listed, "Hugo_Chavez")["usable_images"], 2);
    let shown = server.get(&format!("/images/{}", text(&original["image_id"]))).await.expect(StatusCode::OK);
    assert_eq!(shown["similar"][0]["image_id"], copy["image_id"]);

    let result = server.train().await;
    assert_eq!((&result["images"], &result["images_in_conflict"]), (&5.into(), &2.into()), "{result}");
    assert_eq!(sides(&result["conflicts"][0]), pair);
    assert_eq!(server.recognise("Tony_Blair", 7).await["top_prediction"]["label"], "Tony_Blair");
    assert_eq!(server.recognise("Hugo_Chavez", 7).await["top_prediction"]["label"], "Hugo_Chavez");
    // Trained from the pictures, the same.
    let trained = server.post("/model/train?wait=true").await.expect(StatusCode::OK);
    assert_eq!(sides(&trained["result"]["conflicts"][0]), pair);

    // Erasing the wrong one mends it, without another training for the list.
    server.delete(&format!("/images/{}", text(&copy["image_id"]))).await.expect(StatusCode::NO_CONTENT);
    let mended = dataset(&server).await;
    assert_eq!(mended["conflicts"], json!([]));
    assert_eq!(entry(&mended, "Tony_Blair")["usable_images"], 4);
    let result = server.train().await;
    assert_eq!((&result["images"], &result["images_in_conflict"]), (&6.into(), &0.into()));
}

#[tokio::test]
async fn existing_near_duplicates_are_reported_and_do_not_fail_a_training() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.enrol("Colin_Powell", &[]).await;
    server.revert("2025-01-10-000000_duplicates");
    // As the version before took it: the very bytes, under two people.
    let twice = server.lines("SELECT MIN(id) AS line FROM images").remove(0);
    let copy = "00000000-0000-7000-8000-000000000001";
    server.execute(&format!(
        "INSERT INTO images (id, person_id, blob_key, bytes, created_at, sha256) \
         SELECT '{copy}', (SELECT id FROM people WHERE face_id = 'Colin_Powell'), 'people/x/copy', bytes, created_at, \
         sha256 FROM images WHERE id = '{twice}'"
    ));
    server.execute(&format!(
        "INSERT INTO embeddings (image_id, embedder, vector, created_at) \
         SELECT '{copy}', embedder, vector, created_at FROM embeddings WHERE image_id = '{twice}'"
    ));
    let server = server.restart().await;

    let pair = vec![("Colin_Powell".to_owned(), copy.to_owned()), ("Tony_Blair".to_owned(), twice.clone())];
    let before = dataset(&server).await;
    assert_eq!(sides(&before["conflicts"][0]), pair);
    let result = server.train().await;
    assert_eq!((&result["people"], &result["images"]), (&2.into(), &3.into()), "{result}");
    assert_eq!(sides(&result["conflicts"][0]), pair);
    assert_eq!(result["people_without_embeddings"], 1);
    let left_out = &result["people_left_out"][0];
    assert_eq!((&left_out["face_id"], &left_out["reason"]), (&"Colin_Powell".into(), &"in_conflict".into()));
    assert_eq!(entry(&dataset(&server).await, "Colin_Powell")["usable_images"], 0);
    // A third person does not get it either.
    server.post("/dataset/Third").await.expect(StatusCode::CREATED);
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    server.send("/dataset/Third/image", form).await.expect_error(409, "image_of_another");
}

#[tokio::test]
async fn a_training_lists_people_without_usable_images_by_their_current_names() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1]).await;
    server.enrol("Without_Images", &[]).await;
    server.enrol("Colin_Powell", &[1]).await;
    server.execute(
        "DELETE FROM embeddings WHERE image_id IN (SELECT images.id FROM images JOIN people ON people.id = \
         images.person_id WHERE people.face_id = 'Colin_Powell')",
    );
    let listed = dataset(&server).await;
    assert_eq!(entry(&listed, "Colin_Powell")["usable_images"], 0);
    assert_eq!(entry(&listed, "Without_Images")["usable_images"], 0);

    let answer = server.post("/model/optimized-train?wait=true").await.expect(StatusCode::OK);
    let job = format!("/jobs/{}", answer["job_id"].as_str().unwrap());
    let left_out = |result: &Value| -> Vec<(Value, Value, Value)> {
        let people = result["people_left_out"].as_array().unwrap().iter();
        people.map(|p| (p["face_id"].clone(), p["images"].clone(), p["reason"].clone())).collect()
    };
    assert_eq!(
        left_out(&answer["result"]),
        [
            ("Colin_Powell".into(), 1.into(), "no_embeddings".into()),
            ("Without_Images".into(), 0.into(), "no_images".into()),
        ]
    );
    assert_eq!(answer["result"]["people_without_embeddings"], 2);
    server.patch("/dataset/Colin_Powell", &json!({ "face_id": "Visitor 7" })).await.expect(StatusCode::OK);
    server.delete("/dataset/Without_Images").await.expect(StatusCode::NO_CONTENT);
    let later = server.get(&job).await.expect(StatusCode::OK);
    let names: Vec<Value> = left_out(&later["result"]).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["Visitor 7".into(), Value::Null]);
    let jobs = server.get("/jobs").await.expect(StatusCode::OK);
    assert_eq!(jobs["jobs"][0]["result"], later["result"]);
    for name in ["Without_Images", "Colin_Powell"] {
        assert!(
            server.traces_of(name.as_bytes()).is_empty(),
            "{name}: {:?}",
            server.traces_of(name.as_bytes())
        );
    }
}
