//! `facepipe` as a user runs it: the real program against the real backend, with real pictures.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use facepipe_test_support::{require, wait_until};
use facepipe_tests::{
    program,
    programs::{
        ADMIN_TOKEN, ProgramOutput, TestEnvironment, copy_photographs, facepipe, interrupt, read_until,
        with_file_size_limit,
    },
    proxy::HoldingProxy,
    require_backend_weights,
};
use serde_json::Value;

#[test]
fn people_are_enrolled_recognised_found_renamed_and_erased() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    let environment = TestEnvironment::new(&models, faces);
    environment.run(&["people"]).expect(0, &["Nobody yet"]);

    // One folder, one person, who must exist or be created.
    let blair = environment.photographs("deep/er", "Tony_Blair", &[1, 2]);
    let deep = environment.path("deep");
    environment
        .run(&["enroll", "folder", &deep, "--id", "Tony_Blair"])
        .expect(2, &["Tony_Blair", "--create"]);
    environment.run(&["enroll", "folder", &deep, "--id", "a/b", "--create"]).expect(1, &["invalid_face_id"]);
    let dry = environment.json(&["enroll", "folder", &deep, "--id", "Tony_Blair", "--create", "--dry-run"]);
    assert_eq!(dry["summary"], serde_json::json!({ "would_add": 2 }));
    assert_eq!(environment.json(&["people"])["meta"]["total"], 0, "a dry run adds nobody");
    fs::copy(blair.join("Tony_Blair_0001.jpg"), blair.join("z.jpg")).unwrap();
    environment
        .run(&["enroll", "folder", &deep, "--id", "Tony_Blair", "--create"])
        .expect(0, &["2   added", "1   duplicate", "facepipe train"]);
    environment.run(&["enroll", "folder", &deep, "--id", "Tony_Blair"]).expect(0, &["3   already there"]);
    let enrolled = blair.join("Tony_Blair_0001.jpg");
    environment
        .run(&["enroll", "picture", enrolled.to_str().unwrap(), "--id", "Tony_Blair", "--face", "0"])
        .expect(3, &["1   already there", "perhaps with another face", "facepipe images delete"]);

    // A tree with every kind of unusable picture among good ones.
    for person in ["Tony_Blair", "Hugo_Chavez"] {
        environment.photographs("tree", person, &[3, 4, 5]);
    }
    let chavez = environment.folder.path().join("tree/Hugo_Chavez");
    let whole = fs::read(chavez.join("Hugo_Chavez_0003.jpg")).unwrap();
    fs::write(chavez.join("Hugo_Chavez_0003b.jpg"), &whole[..2000]).unwrap();
    fs::copy(require!("scenes/multiface.jpg"), chavez.join("Hugo_Chavez_0003c.jpg")).unwrap();
    fs::create_dir_all(environment.folder.path().join("tree/-bad/")).unwrap();
    fs::copy(chavez.join("Hugo_Chavez_0003.jpg"), environment.folder.path().join("tree/-bad/1.jpg")).unwrap();
    fs::rename(environment.folder.path().join("tree/-bad"), environment.folder.path().join("tree/b%d"))
        .unwrap();
    let tree = environment.path("tree");
    environment
        .run(&["enroll", "tree", &tree, "--train"])
        .expect(3, &["6   added", "1   several faces", "1   unreadable", "b%d: passed over", "model 1"]);

    let report = environment.json(&["recognize", "folder", &tree, "--stats"]);
    let statistics = &report["statistics"];
    assert_eq!((&statistics["images"], &statistics["failed"]), (&8.into(), &1.into()), "{statistics}");
    assert_eq!(
        statistics["confusion"]["people"]["Tony_Blair"]["named"],
        serde_json::json!({ "Tony_Blair": 3 })
    );
    assert!(statistics["latency"]["p99_ms"].as_f64() >= statistics["latency"]["p50_ms"].as_f64());
    assert!(statistics["bytes"].as_u64().unwrap() > 10_000);
    environment
        .run(&["recognize", "folder", &tree, "--stats"])
        .expect(3, &["Hugo_Chavez", "not enrolled", "p50/p95/p99"]);
    let dry =
        environment.run(&["recognize", "folder", &tree, "--dry-run"]).expect(0, &["requests per second"]);
    assert!(!dry.stdout.contains("Taken for"));

    // Stored detections can be listed and located, and repetitions store nothing twice.
    let visit = environment.photographs("visit", "Tony_Blair", &[6]);
    let visit = visit.parent().unwrap().to_str().unwrap();
    let store = ["recognize", "folder", visit, "--store", "--camera-id", "gate-1", "--location", "Lobby"];
    environment.run(&store).expect(0, &["Tony_Blair ("]);
    environment.run(&store).expect(0, &["Tony_Blair ("]);
    let detections = environment.json(&["detections"]);
    assert_eq!(detections.as_array().unwrap().len(), 1, "{detections}");
    let stored = detections[0]["id"].to_string();
    environment
        .run(&["detections", "show", &stored])
        .expect(0, &["Tony_Blair", "gate-1", "Lobby", "in pixels"]);
    assert_eq!(environment.json(&["detections", "show", &stored]), detections[0]);
    environment.run(&["detections", "show", "999"]).expect(6, &["999"]);
    environment
        .run(&["detections", "--camera", "gate-1", "show", &stored])
        .expect(2, &["belongs to the list"]);
    environment.run(&["locate", "Tony_Blair"]).expect(0, &["Lobby (camera gate-1)"]);
    environment.run(&["locate", "Hugo_Chavez"]).expect(3, &["never seen"]);
    environment.run(&["locate", "Nobody"]).expect(6, &["Nobody"]);
    environment.run(&["cameras"]).expect(0, &["gate-1", "Lobby"]);
    environment.run(&["cameras", "show", "gate-2"]).expect(6, &["gate-2"]);

    // Somebody who is not enrolled.
    let stranger = environment.photographs("stranger", "Ariel_Sharon", &[1, 2]);
    let stranger = stranger.parent().unwrap().to_str().unwrap().to_owned();
    environment.run(&["unknowns"]).expect(0, &["No unknown person"]);
    let store = ["recognize", "folder", &stranger, "--store", "--camera-id", "gate-1", "--location", "Lobby"];
    environment.run(&store).expect(0, &["unknown"]);
    let mut unknowns = Value::Null;
    wait_until("both pictures of a stranger are one group", || {
        unknowns = environment.json(&["unknowns", "list", "--camera", "gate-1"]);
        assert!(unknowns.as_array().unwrap().len() < 2, "{unknowns}");
        unknowns[0]["faces"] == 2
    });
    let unknown = unknowns[0]["unknown_id"].as_str().unwrap().to_owned();
    let shown = environment.json(&["unknowns", "show", &unknown]);
    let faces: Vec<String> =
        shown["detections"].as_array().unwrap().iter().map(|face| face["id"].to_string()).collect();
    environment
        .run(&["unknowns", "show", &unknown])
        .expect(0, &[&unknown, "2 in 2 tracks", "gate-1 (2)", &faces[0]]);
    environment.run(&["unknowns", "list", "--min-faces", "3"]).expect(0, &["No unknown person"]);
    let parts = environment.json(&["unknowns", "split", &unknown, &faces[0]]);
    let other = parts["new"]["unknown_id"].as_str().unwrap().to_owned();
    environment.run(&["unknowns", "split", &unknown, "999"]).expect(1, &["invalid_field", "999"]);
    environment.run(&["unknowns", "list", "--sort", "faces"]).expect(0, &[&unknown, &other]);
    environment.run(&["unknowns", "merge", &other, &unknown]).expect(0, &[&other, "gate-1"]);
    environment.run(&["unknowns", "ignore", &other]).expect(0, &["yes"]);
    environment.run(&["unknowns"]).expect(0, &["No unknown person"]);
    environment.run(&["unknowns", "list", "--ignored"]).expect(0, &[&other]);
    let nobody = "018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c";
    let listed = environment
        .run(&["unknowns", "ignore", nobody, &other, "--undo", "--json"])
        .expect(3, &[nobody, "no such unknown person"]);
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["unknown_id"], &listed[0]["ignored"]), (&other.clone().into(), &false.into()));
    for arguments in
        [&["ignore", nobody][..], &["split", nobody, "1"], &["merge", nobody, &other], &["name", nobody, "X"]]
    {
        environment.run(&[&["unknowns"], arguments].concat()).expect(6, &["no such unknown person"]);
    }
    environment.run(&["unknowns", "show", &other, "-n", "1001"]).expect(2, &["1001"]);
    environment.run(&["unknowns", "recluster", "--wait"]).expect(0, &["is done"]);
    environment.run(&["unknowns", "delete", &other]).expect(2, &["--yes"]);
    environment
        .run(&["unknowns", "delete", &other, nobody, "--yes"])
        .expect(3, &["is erased", "is not there"]);
    environment.run(&["unknowns", "show", &other]).expect(6, &["no such unknown person"]);
    environment.run(&["detections", "delete", &faces[0], &faces[1], "--yes"]).expect(0, &["is erased"]);

    environment
        .run(&["train", "--wait"])
        .expect(0, &["model 2: 2 people, 8 pictures", "Threshold 0.", "FPIR      ", "there is no cohort"]);
    environment.run(&["jobs"]).expect(0, &["optimized-train", "done", "100 %"]);
    environment.run(&["models", "trained"]).expect(0, &["answers", "mobilefacenet", "FPIR", "0.35"]);
    environment.run(&["models", "show", "2"]).expect(
        0,
        &["Model     2, answers: 2 people, 8 pictures, mobilefacenet", "FNIR      0.0 %", "target 1.0 %"],
    );
    environment.run(&["models", "show", "9"]).expect(1, &["model_not_found"]);
    environment.run(&["models", "activate", "1"]).expect(0, &["Model 1 answers now"]);
    environment.run(&["models", "activate", "9"]).expect(1, &["model_not_found"]);
    environment.run(&["models", "delete", "1", "--yes"]).expect(1, &["model_active"]);
    environment.run(&["models", "delete", "2"]).expect(2, &["--yes"]);
    environment.run(&["models", "delete", "2", "--yes"]).expect(0, &["Model 2 is removed"]);
    environment.run(&["models", "activate", "2"]).expect(1, &["model_not_found"]);
    assert_eq!(environment.json(&["jobs", "list", "-n", "1"]).as_array().unwrap().len(), 1);
    environment.run(&["jobs", "list", "--status", "failed"]).expect(0, &["No such job"]);

    environment.run(&["detections", "delete", &stored]).expect(2, &["--yes"]);
    environment
        .run(&["detections", "delete", &stored, "999", "--yes"])
        .expect(3, &[&format!("{stored} is erased"), "999 is not there"]);
    environment.run(&["detections"]).expect(0, &["No detection"]);

    environment.run(&["people", "rename", "Hugo_Chavez", "Visitor 7"]).expect(0, &["Visitor 7"]);
    environment.run(&["people", "show", "Visitor 7"]).expect(0, &["3 pictures"]);
    // Without a terminal there is no confirmation.
    environment.run(&["people", "delete", "Visitor 7"]).expect(2, &["--yes"]);
    environment.run(&["people", "delete", "Visitor 7", "--yes"]).expect(0, &["is erased"]);
    environment.run(&["people", "show", "Visitor 7"]).expect(6, &["nobody of that name"]);
    assert_eq!(environment.json(&["people"])["meta"]["total"], 1);

    // An unknown person gets a name; faces of the past are proposed for somebody who is enrolled later.
    let past = environment.photographs("past", "Ariel_Sharon", &[3, 4]);
    let past = past.parent().unwrap().to_str().unwrap().to_owned();
    let store = ["recognize", "folder", &past, "--store", "--camera-id", "gate-1", "--location", "Lobby"];
    environment.run(&store).expect(0, &["unknown"]);
    environment.run(&["proposals"]).expect(0, &["No proposal"]);
    let mut unknown = None;
    wait_until("both pictures of an unknown person are one group", || {
        let unknowns = environment.json(&["unknowns", "list", "--min-faces", "2"]);
        unknown = unknowns[0]["unknown_id"].as_str().map(str::to_owned);
        unknown.is_some()
    });
    let unknown = unknown.unwrap();
    environment.run(&["unknowns", "name", &unknown, "Tony_Blair"]).expect(1, &["person_exists"]);
    let faces = environment.json(&["unknowns", "show", &unknown]);
    let face = faces["detections"][0]["id"].to_string();
    environment.run(&["unknowns", "split", &unknown, &face]).expect(0, &["gate-1"]);
    environment
        .run(&["unknowns", "name", &unknown, "Ariel Sharon", "--wait"])
        .expect(0, &["1 detection named, 1 face enrolled, 0 of them with a picture", "is done"]);
    environment.run(&["unknowns", "name", &unknown, "Ariel Sharon"]).expect(0, &["is Ariel Sharon already"]);
    environment.run(&["people", "search-past", "Nobody"]).expect(6, &["nobody of that name"]);
    environment.run(&["people", "search-past", "Ariel Sharon", "--wait"]).expect(0, &["is done"]);
    let proposals = environment.json(&["proposals", "list", "--person", "Ariel Sharon"]);
    assert_eq!(proposals[0]["detection"]["id"].to_string(), face, "{proposals}");
    let proposal = proposals[0]["proposal_id"].to_string();
    environment.run(&["proposals"]).expect(0, &["Ariel Sharon", &face, "Lobby"]);
    environment.run(&["proposals", "accept"]).expect(2, &["--person"]);
    environment
        .run(&["proposals", "accept", "--person", "Ariel Sharon", "--min-score", "0.9999"])
        .expect(0, &["0 accepted"]);
    environment.run(&["proposals", "refuse", "999999"]).expect(3, &["0 refused, 1 not there"]);
    environment.run(&["proposals", "accept", &proposal]).expect(0, &["1 accepted, 0 not there"]);
    environment.run(&["detections", "show", &face]).expect(0, &["Ariel Sharon"]);
}

/// A photograph as HEIC.
fn heic(jpeg: &Path) -> Vec<u8> {
    let picture = image::open(jpeg).unwrap().into_rgb8();
    let (width, height) = picture.dimensions();
    heifer::encode_rgb8(width, height, &picture, &heifer::EncodeOptions::default()).unwrap()
}

#[test]
fn pictures_are_recognised_by_content_and_everything_skipped_is_reported() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    let environment = TestEnvironment::new(&models, faces);
    let [blair, phone] =
        ["mixed/Tony_Blair", "mixed/Phone_Only"].map(|name| environment.folder.path().join(name));
    environment.photographs("mixed", "Tony_Blair", &[1, 2, 3]);
    environment.photographs("mixed", "Hugo_Chavez", &[1, 2]);
    // Missing and unusual extensions.
    fs::rename(blair.join("Tony_Blair_0001.jpg"), blair.join("scan.jfif")).unwrap();
    fs::rename(blair.join("Tony_Blair_0002.jpg"), blair.join("IMG_0002")).unwrap();
    // HEIC of a phone, TIFF of a scanner, and system files.
    fs::create_dir_all(&phone).unwrap();
    let other = environment.photographs("other", "Hugo_Chavez", &[5]).join("Hugo_Chavez_0005.jpg");
    fs::write(phone.join("IMG_0003.HEIC"), heic(&other)).unwrap();
    fs::write(blair.join("scan.jpg"), b"II*\0\x08\0\0\0").unwrap();
    fs::write(blair.join("notes.txt"), "taken in May").unwrap();
    fs::create_dir_all(blair.join("@eaDir/scan.jfif")).unwrap();
    let thumbnail = environment.photographs("other", "Tony_Blair", &[4]).join("Tony_Blair_0004.jpg");
    fs::copy(&thumbnail, blair.join("@eaDir/scan.jfif/SYNOPHOTO_THUMB_M.jpg")).unwrap();
    fs::create_dir_all(environment.folder.path().join("mixed/Nobody")).unwrap();
    fs::write(environment.folder.path().join("mixed/Nobody/holidays.mp4"), b"\0\0\0\x14ftypisom\0\0\0\0isom")
        .unwrap();
    fs::create_dir_all(environment.folder.path().join("mixed/Crowd")).unwrap();
    fs::copy(require!("scenes/multiface.jpg"), environment.folder.path().join("mixed/Crowd/party.jpg"))
        .unwrap();
    fs::copy(&thumbnail, environment.folder.path().join("mixed/lost.jpg")).unwrap();
    std::os::unix::fs::symlink(
        "/nonexistent/1.jpg",
        environment.folder.path().join("mixed/Hugo_Chavez/0.jpg"),
    )
    .unwrap();

    let mixed = environment.path("mixed");
    environment.run(&["enroll", "tree", &mixed]).expect(
        3,
        &[
            "People    4 added",
            "6   added",
            "1   several faces",
            "5   passed over",
            "scan.jpg: passed over: TIFF",
            "mogrify -format jpg",
            "notes.txt: passed over: text",
            "holidays.mp4: passed over: a video (MP4 or QuickTime)",
            "facepipe enroll camera FILE",
            "mixed/lost.jpg: passed over: lies in nobody's folder",
            "Hugo_Chavez/0.jpg: passed over: is a link to nothing",
            "Nobody: no picture in their folder",
            "Without   a usable picture, so that nobody will recognise them: Crowd, Nobody",
            "Left out: 1 hidden",
        ],
    );
    assert_eq!(
        environment.json(&["people"])["meta"]["total"],
        4,
        "somebody without any picture is not added"
    );
    let again = environment.json(&["enroll", "tree", &mixed]);
    assert_eq!(again["summary"]["already_there"], 6, "HEIC is the same picture each time: {again}");
    assert_eq!(again["without_picture"], serde_json::json!(["Crowd", "Nobody"]), "{again}");
    assert_eq!(again["passed_over"].as_array().unwrap().len(), 5, "{again}");
    assert_eq!(again["hidden"], 1, "{again}");

    environment.run(&["train", "--wait"]).expect(0, &["Left out  Crowd: no picture", "3 people"]);

    let said = environment.run(&[
        "enroll",
        "folder",
        &environment.path("mixed/Nobody"),
        "--id",
        "Nobody",
        "--create",
    ]);
    said.expect(6, &["holidays.mp4: passed over: a video", "no picture in it; passed over: 1"]);
    let report = environment.json(&["recognize", "folder", &mixed]);
    assert_eq!(report["statistics"]["images"], 8, "{report}");
    let reasons: Vec<&str> =
        report["passed_over"].as_array().unwrap().iter().map(|p| p["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons.len(), 4, "a picture beside the folders is one here: {reasons:?}");
    environment
        .run(&["recognize", "folder", &mixed, "--stats"])
        .expect(3, &["files passed over", "IMG_0003.HEIC: "]);
}

#[test]
fn strangers_are_added_to_the_cohort_from_any_folder_and_erased() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    let environment = TestEnvironment::new(&models, faces);
    environment.run(&["cohort"]).expect(0, &["The cohort is empty", "FACEPIPE_COHORT_FROM_CAMERAS"]);

    environment.photographs("strangers", "Tony_Blair", &[1]);
    let chavez = environment.photographs("strangers", "Hugo_Chavez", &[1, 2]);
    let other = environment.photographs("other", "Colin_Powell", &[1]).join("Colin_Powell_0001.jpg");
    fs::write(chavez.join("IMG_0003.HEIC"), heic(&other)).unwrap();
    fs::copy(require!("scenes/multiface.jpg"), chavez.join("party.jpg")).unwrap();
    let first = chavez.join("Hugo_Chavez_0001.jpg");
    fs::copy(&first, chavez.join("copy.jpg")).unwrap();
    fs::write(chavez.join("half.jpg"), &fs::read(&first).unwrap()[..2000]).unwrap();
    fs::write(chavez.join("notes.txt"), "taken in May").unwrap();
    let folder = environment.path("strangers");
    let add = ["cohort", "add", &folder, "--batch", "3"];
    environment.run(&add).expect(
        3,
        &[
            "5   added",
            "1   duplicate",
            "1   unreadable",
            "1   passed over",
            "half.jpg: unreadable",
            "notes.txt: passed over: text",
            "The cohort has 5 embeddings",
            "facepipe train",
        ],
    );
    let again = environment.json(&add);
    assert_eq!(
        again["summary"],
        serde_json::json!({ "already_there": 5, "duplicate": 1, "unreadable": 1 }),
        "{again}"
    );
    let after = chavez.join("party.jpg").display().to_string();
    let rest = environment.json(&["cohort", "add", &folder, "--after", &after]);
    assert_eq!(rest["images"].as_array().unwrap().len(), 1, "{rest}");
    environment
        .run(&["cohort", "add", &folder, "--after", "nowhere.jpg"])
        .expect(2, &["--after nowhere.jpg", "no such picture"]);
    environment.run(&["cohort", "show"]).expect(0, &["5 embeddings", "60.0 %", "mobilefacenet", "uploaded"]);

    environment.run(&["cohort", "clear"]).expect(2, &["The whole cohort", "--yes"]);
    environment
        .run(&["cohort", "clear", "--before", "yesterday", "--yes"])
        .expect(1, &["invalid_query", "RFC 3339"]);
    environment
        .run(&["cohort", "clear", "--source", "camera", "--yes"])
        .expect(0, &["Erased 0 embeddings, 5 are left"]);
    let erased = environment.json(&["cohort", "clear", "--yes"]);
    assert_eq!(erased, serde_json::json!({ "erased": 5, "left": 0 }));
}

#[test]
fn detections_are_followed_as_they_arrive() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    let mut environment = TestEnvironment::new(&models, faces);
    let mut follow = environment.command(&["detections", "--follow", "--json"]);
    let mut following = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut messages = BufReader::new(following.stderr.take().unwrap()).lines();
    for (camera, number) in [("gate-1", 1), ("gate-2", 2), ("gate-3", 3)] {
        // The server restarts before the last.
        if number == 3 {
            environment.backend.stop();
            assert!(messages.next().unwrap().unwrap().contains("waiting for it"));
            environment.backend.start_again();
        }
        let visit = environment.photographs(camera, "Tony_Blair", &[number]);
        environment
            .run(&["recognize", "folder", visit.to_str().unwrap(), "--store", "--camera-id", camera])
            .expect(0, &["unknown"]);
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((&line["camera_id"], &line["face_id"]), (&camera.into(), &Value::Null));
    }
    assert!(messages.next().unwrap().unwrap().contains("back"));
    // What gets a name later comes again, once.
    let mut unknown = None;
    wait_until("the three pictures are one group", || {
        let unknowns = environment.json(&["unknowns", "list", "--min-faces", "3"]);
        unknown = unknowns[0]["unknown_id"].as_str().map(str::to_owned);
        unknown.is_some()
    });
    environment
        .run(&["unknowns", "name", &unknown.unwrap(), "Tony_Blair"])
        .expect(0, &["3 detections named"]);
    let mut corrected: Vec<Value> =
        (0..3).map(|_| serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()).collect();
    corrected.sort_by_key(|line| line["id"].as_i64());
    for (line, camera) in corrected.iter().zip(["gate-1", "gate-2", "gate-3"]) {
        assert_eq!((&line["camera_id"], &line["face_id"]), (&camera.into(), &"Tony_Blair".into()));
        assert!(line["revision"].is_i64(), "{line}");
    }
    let visit = environment.photographs("gate-4", "Tony_Blair", &[4]);
    environment
        .run(&["recognize", "folder", visit.to_str().unwrap(), "--store", "--camera-id", "gate-4"])
        .expect(0, &[]);
    let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(line["camera_id"], "gate-4");
    interrupt(&following);
    assert!(lines.next().is_none());
    assert_eq!(following.wait().unwrap().code(), Some(130));
}

#[test]
fn an_interrupted_enrolment_can_be_continued() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    let environment = TestEnvironment::new(&models, faces);
    let numbers: Vec<usize> = (1..=10).collect();
    for person in ["Tony_Blair", "Hugo_Chavez", "Colin_Powell", "Jacques_Chirac"] {
        environment.photographs("tree", person, &numbers);
    }
    let tree = environment.path("tree");
    let proxy = HoldingProxy::start(environment.backend.url(), "/images ", 2);
    let enroll = ["enroll", "tree", &tree, "--parallel", "1", "--json", "--server", proxy.url()];
    let mut child =
        environment.command(&enroll).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let images = |environment: &TestEnvironment| -> u64 {
        let people = environment.json(&["people"]);
        people["people"].as_array().unwrap().iter().map(|person| person["images"].as_u64().unwrap()).sum()
    };
    // Interrupted while the third of 40 pictures is in flight.
    proxy.wait_until_holding();
    interrupt(&child);
    read_until(&mut stderr, "Ending");
    proxy.release();
    read_until(&mut stderr, "run it again");
    let said = ProgramOutput::new(child.wait_with_output().unwrap()).expect(130, &[]);
    let first: Value = serde_json::from_str(&said.stdout).unwrap();
    let (added, left) = (first["summary"]["added"].as_u64().unwrap(), first["left"].as_u64().unwrap());
    assert_eq!(added, images(&environment), "what is said is what is stored");
    assert!(left > 0, "{first}");

    let second = environment.json(&["enroll", "tree", &tree]);
    let of = |outcome: &str| second["summary"][outcome].as_u64().unwrap_or(0);
    assert_eq!(of("already_there"), added, "{second}");
    assert_eq!(second["left"], 0);
    assert_eq!(images(&environment), added + of("added"));
}

#[test]
fn access_is_given_changed_and_taken_away() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    let environment = TestEnvironment::new(&models, faces);
    environment.run(&["access"]).expect(0, &["Nobody yet", "--scopes admin"]);
    environment.run(&["access", "add", "ada"]).expect(2, &["--scopes"]);
    environment.run(&["access", "add", "ada", "--scopes", "read,write"]).expect(2, &["write", "operate"]);

    // The token alone on standard output, or in a file of its owner.
    let added =
        environment.run(&["access", "add", "ada", "--scopes", "read"]).expect(0, &["shown this once"]);
    let token = added.stdout.lines().last().unwrap().to_owned();
    assert!(token.starts_with("fp_"), "{}", added.stdout);
    let file = environment.path("gate-1.token");
    let added = environment.run(&["access", "add-camera", "gate-1", "--save", &file, "--days", "30"]);
    let added = added.expect(0, &["gate-1", "upload", &format!("token-file={file}")]);
    assert!(!added.stdout.contains("fp_") && !added.stderr.contains("fp_"), "{}", added.stdout);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    environment.run(&["access", "token", "ada", "--save", &file]).expect(2, &["--save", "gate-1.token"]);
    // A call that fails leaves no file.
    let saved = environment.path("rotated.token");
    environment.run(&["access", "rotate", "999", "--save", &saved]).expect(6, &["no such token"]);
    assert!(!fs::exists(&saved).unwrap());
    let with = |token: &[&str], arguments: &[&str]| {
        let mut command = environment.command(&[arguments, token].concat());
        command.env_remove("FACEPIPE_TOKEN");
        ProgramOutput::new(command.output().unwrap())
    };
    with(&["--token", &token], &["people"]).expect(0, &["Nobody yet"]);
    with(&["--token", &token], &["train"]).expect(5, &["operate"]);
    with(&["--token-file", &file], &["people"]).expect(5, &["`read`", "`upload`"]);
    with(&["--token", &token[..50]], &["people"]).expect(5, &["mistyped or cut off"]);

    let listed = environment.json(&["access", "list"]);
    assert_eq!(listed["meta"]["total"], 2);
    environment.run(&["access"]).expect(0, &["ada", "gate-1", "camera", "person"]);
    let shown = environment.json(&["access", "show", "ada"]);
    let id = shown["tokens"][0]["token_id"].to_string();
    let rotated = environment.run(&["access", "rotate", &id, "--overlap", "0"]).expect(0, &["valid until"]);
    let second = rotated.stdout.lines().last().unwrap().to_owned();
    with(&["--token", &token], &["people"]).expect(5, &["expired"]);
    with(&["--token", &second], &["people"]).expect(0, &[]);
    environment.run(&["access", "change", "ada"]).expect(2, &["--scopes"]);
    environment
        .run(&["access", "change", "ada", "--scopes", "upload", "--rename", "Ada"])
        .expect(0, &["Ada"]);
    with(&["--token", &second], &["people"]).expect(5, &["`upload`"]);
    let id = environment.json(&["access", "show", "Ada"])["tokens"][1]["token_id"].to_string();
    environment.run(&["access", "revoke", &id, "999"]).expect(3, &["is revoked", "999 is not there"]);
    with(&["--token", &second], &["people"]).expect(5, &["revoked"]);
    environment.run(&["access", "rotate", "999"]).expect(6, &["no such token"]);
    environment.run(&["access", "show", "nobody"]).expect(6, &["nobody of that name"]);
    environment.run(&["access", "remove", "Ada", "gate-1"]).expect(2, &["--yes"]);
    environment.run(&["access", "remove", "Ada", "gate-1", "--yes"]).expect(0, &["no access any more"]);
    environment.run(&["access"]).expect(0, &["Nobody yet"]);
}

#[test]
fn each_kind_of_error_has_its_exit_code() {
    let (models, faces) = (require_backend_weights!(), require!("lfw10"));
    let mut environment = TestEnvironment::new(&models, faces);
    let good = environment.photographs("good", "Tony_Blair", &[1]);
    let good = good.parent().unwrap().to_str().unwrap().to_owned();
    fs::create_dir_all(environment.folder.path().join("empty")).unwrap();
    let (empty, nowhere) = (environment.path("empty"), environment.path("nowhere"));

    let folders: [&[&str]; 3] = [
        &["enroll", "folder", "DIR", "--id", "Ada", "--create"],
        &["enroll", "tree", "DIR"],
        &["recognize", "folder", "DIR"],
    ];
    for with in folders {
        let run = |folder: &str, options: &[&str]| {
            let filled: Vec<&str> =
                with.iter().map(|&word| if word == "DIR" { folder } else { word }).collect();
            environment.run(&[&filled, options].concat())
        };
        run(&nowhere, &[]).expect(6, &["nowhere", "no such folder"]);
        run(&empty, &[]).expect(6, &["empty"]);
        run(&good, &["--token", "not-the-admin-of-this-test"])
            .expect(5, &["refused the token", "--token-file"]);
        run(&good, &["--server", "http://127.0.0.1:1"]).expect(4, &["127.0.0.1:1 cannot be reached"]);
    }
    let calls: [&[&str]; 7] = [
        &["people"],
        &["detections"],
        &["cameras"],
        &["jobs"],
        &["train"],
        &["locate", "Ada"],
        &["models", "trained"],
    ];
    for call in calls {
        environment
            .run(&[call, &["--token", "not-the-admin-of-this-test"]].concat())
            .expect(5, &["refused the token"]);
    }
    // Options may also follow the action.
    let stranger = ["--token", "not-the-admin-of-this-test"];
    environment.run(&[&["people", "show", "Ada"], &stranger[..]].concat()).expect(5, &["refused the token"]);
    environment
        .run(&["jobs", "show", "7", "--server", "http://127.0.0.1:1", "--json"])
        .expect(4, &["cannot be reached"]);
    environment.run(&["people", "--server", "nonsense"]).expect(2, &["--server nonsense"]);
    environment.run(&["people", "--nonsense"]).expect(2, &["--nonsense"]);
    // Standard output on a full disk.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let said = ProgramOutput::new(environment.command(&["people", "--json"]).stdout(full).output().unwrap());
    said.expect(7, &["standard output cannot be written"]);

    // A profile instead of options, with the token in a separate file.
    let token = environment.path("token");
    fs::write(&token, format!("{ADMIN_TOKEN}\n")).unwrap();
    let config = environment.path("config.toml");
    let url = environment.backend.url();
    fs::write(&config, format!("[office]\nserver = {url:?}\ntoken_file = {token:?}\n")).unwrap();
    let said = facepipe(&["people", "--config", &config, "--profile", "office"]).output().unwrap();
    ProgramOutput::new(said).expect(0, &["Nobody yet"]);
    environment.backend.stop();
    environment.run(&["people"]).expect(4, &["cannot be reached"]);
}

#[test]
fn completions_and_manual_pages_are_generated() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = ProgramOutput::new(facepipe(&["completions", shell]).output().unwrap())
            .expect(0, &["enroll", "recognize"]);
        if shell == "bash" {
            let file = folder.path().join("facepipe.bash");
            fs::write(&file, script.stdout).unwrap();
            assert!(Command::new("bash").arg("-n").arg(&file).status().unwrap().success());
        }
    }
    let pages = folder.path().join("man1");
    ProgramOutput::new(facepipe(&["man", pages.to_str().unwrap()]).output().unwrap())
        .expect(0, &["pages in"]);
    let page = fs::read_to_string(pages.join("facepipe-enroll-folder.1")).unwrap();
    assert!(page.contains("Examples") && page.contains("130"), "{page}");
    ProgramOutput::new(facepipe(&["man", "/proc/nowhere"]).output().unwrap()).expect(7, &["/proc/nowhere"]);
    // A closed pipe ends the program without a failure.
    let piped = Command::new("bash")
        .args(["-c", "set -o pipefail; \"$0\" man | head -1", program("facepipe").to_str().unwrap()])
        .output()
        .unwrap();
    ProgramOutput::new(piped).expect(0, &[]);
}

/// Decodes all frames of a video with GStreamer and returns their pixels.
fn pixels(video: &Path) -> Vec<u8> {
    let out = video.with_extension("raw");
    let description = format!(
        "filesrc location={} ! decodebin ! videoconvert ! video/x-raw,format=GRAY8 ! filesink location={}",
        video.display(),
        out.display()
    );
    let status = Command::new("gst-launch-1.0").arg("-q").args(description.split(' ')).status().unwrap();
    assert!(status.success());
    fs::read(out).unwrap()
}

#[test]
fn a_crowd_depends_on_its_seed_alone_and_matches_its_ground_truth() {
    let lfw = require!("lfw10");
    require!("models/pnet.pt");
    let folder = tempfile::tempdir().unwrap();
    let faces = folder.path().join("faces");
    for person in ["Tony_Blair", "Hugo_Chavez"] {
        copy_photographs(&lfw, &faces, person, &[1, 2]);
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let crowd = |out: &str, options: &[&str]| {
        let fixed = ["bench", "crowd", &path("faces"), &path(out), "--seconds", "3", "--size", "640x360"];
        facepipe(&[&fixed, options].concat())
    };
    let run = |out: &str, options: &[&str]| ProgramOutput::new(crowd(out, options).output().unwrap());

    let said = run("a.mp4", &["--density", "700", "--seed", "7", "--json"]).expect(0, &[]);
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    run("b.mp4", &["--density", "700", "--seed", "7"]).expect(0, &["Walkers"]);
    run("c.mp4", &["--density", "700", "--seed", "8"]).expect(0, &[]);
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_eq!(read("a.json"), read("b.json"));
    assert_ne!(read("a.json"), read("c.json"));
    let (first, second) = (pixels(&folder.path().join("a.mp4")), pixels(&folder.path().join("b.mp4")));
    assert_eq!(first.len(), 640 * 360 * 18);
    assert!(first == second, "the same seed gives the same frames");

    let truth: Value = serde_json::from_slice(&read("a.json")).unwrap();
    let frames = truth["frames"].as_array().unwrap();
    assert_eq!((frames.len(), &truth["fps"]), (18, &6.into()));
    let faces: usize = frames.iter().map(|frame| frame.as_array().unwrap().len()).sum();
    assert_eq!(report["faces"], faces);
    assert!(faces > 18, "{report}");
    for face in frames.iter().flat_map(|frame| frame.as_array().unwrap()) {
        let walker = face["id"].as_u64().unwrap().to_string();
        let person = truth["walkers"][&walker]["person"].as_str().unwrap();
        assert!(["Tony_Blair", "Hugo_Chavez"].contains(&person));
        let edges: Vec<f64> =
            face["box"].as_array().unwrap().iter().map(|edge| edge.as_f64().unwrap()).collect();
        assert!(edges[0] >= 0.0 && edges[2] <= 640.0 && edges[3] > edges[1], "{edges:?}");
    }

    // Invalid photographs are skipped; a failed write leaves nothing behind.
    fs::write(folder.path().join("faces/Tony_Blair/Tony_Blair_0001b.jpg"), b"no picture").unwrap();
    run("d.mp4", &["--seed", "7"]).expect(3, &["passed over", "Tony_Blair_0001b.jpg"]);
    run("nowhere/e.mp4", &[]).expect(7, &["e.mp4"]);
    run("e.avi", &[]).expect(2, &["e.avi", ".mp4"]);
    let full = crowd("f.mp4", &["--density", "5000"]);
    ProgramOutput::new(with_file_size_limit(&full, 16).output().unwrap()).expect(7, &["f.mp4"]);

    let long = ["--seconds", "600", "--density", "5000"];
    let fixed = ["bench", "crowd", &path("faces"), &path("g.mp4"), "--size", "640x360"];
    let child = facepipe(&[&fixed[..], &long].concat()).stderr(Stdio::null()).spawn().unwrap();
    let is_rendering = || {
        let mut names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.any(|name| name.to_str().unwrap().starts_with(".facepipe-crowd-"))
    };
    wait_until("a video is rendered", is_rendering);
    interrupt(&child);
    ProgramOutput::new(child.wait_with_output().unwrap()).expect(130, &[]);
    assert!(!is_rendering(), "nothing unfinished is left");
    for name in ["f", "g"] {
        assert!(!folder.path().join(name).with_extension("mp4").exists(), "{name}.mp4");
        assert!(!folder.path().join(name).with_extension("json").exists(), "{name}.json");
    }
    let nowhere = path("nowhere");
    let fixed = |faces: &str| facepipe(&["bench", "crowd", faces, &path("h.mp4")]).output().unwrap();
    ProgramOutput::new(fixed(&nowhere)).expect(6, &["nowhere"]);
    fs::create_dir_all(folder.path().join("empty")).unwrap();
    ProgramOutput::new(fixed(&path("empty"))).expect(6, &["empty"]);
}

/// As phones record: rotated frames, with the rotation in the file.
#[test]
fn a_rotated_video_is_searched_upright() {
    let group = require!("scenes/multiface.jpg");
    require!("models/version-RFB-320.onnx");
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("phone.mp4");
    let description = format!(
        "filesrc location={} ! jpegdec ! imagefreeze num-buffers=4 ! video/x-raw,framerate=4/1 ! videoconvert ! \
         videoflip video-direction=90l ! video/x-raw,format=I420 ! x264enc tune=zerolatency ! mp4mux ! filesink location={}",
        group.display(),
        video.display()
    );
    let status = Command::new("gst-launch-1.0").arg("-q").args(description.split(' ')).status().unwrap();
    assert!(status.success());
    let faces = |out: &str| {
        let out = folder.path().join(out);
        let arguments = ["extract", video.to_str().unwrap(), out.to_str().unwrap(), "--policy", "every"];
        ProgramOutput::new(facepipe(&arguments).output().unwrap()).expect(0, &[]);
        fs::read_to_string(out.join("index.jsonl")).unwrap().lines().count()
    };
    let lying = faces("lying");
    // The matrix of the track's header (ISO/IEC 14496-12, 8.3.2), 44 bytes behind the box's name: to the right by 90
    // degrees.
    let mut bytes = fs::read(&video).unwrap();
    let at = bytes.windows(4).position(|name| name == b"tkhd").unwrap() + 44;
    for (index, value) in [0_i32, 0x1_0000, 0, -0x1_0000, 0, 0, 0, 0, 0x4000_0000].into_iter().enumerate() {
        bytes[at + 4 * index..][..4].copy_from_slice(&value.to_be_bytes());
    }
    fs::write(&video, bytes).unwrap();
    let turned = faces("turned");
    assert!(turned >= 20 && lying < 10, "{turned} faces of a video that says how it lies, {lying} without");
}

#[test]
fn faces_are_extracted_from_a_video_and_an_interrupted_run_is_continued() {
    let lfw = require!("lfw10");
    for needed in ["models/pnet.pt", "models/version-RFB-320.onnx"] {
        require!(needed);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let video = path("crowd.mp4");
    let crowd = ["bench", "crowd", lfw.to_str().unwrap(), &video, "--seconds", "4", "--size", "1280x720"];
    ProgramOutput::new(
        facepipe(&[&crowd[..], &["--density", "900", "--seed", "3"]].concat()).output().unwrap(),
    )
    .expect(0, &[]);
    let extract = |out: &str, options: &[&str]| {
        ProgramOutput::new(facepipe(&[&["extract", &video, &path(out)], options].concat()).output().unwrap())
    };
    let index = |out: &str| -> Vec<Value> {
        let text = fs::read_to_string(folder.path().join(out).join("index.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let pictures = |out: &str| -> Vec<String> {
        let names = fs::read_dir(folder.path().join(out)).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|n| n.ends_with("jpg"))
            .collect();
        names.sort();
        names
    };

    extract("every", &["--policy", "every"]).expect(0, &["files of", "Video"]);
    let every = index("every");
    let mut named: Vec<String> = every.iter().map(|face| face["file"].as_str().unwrap().to_owned()).collect();
    named.sort();
    assert_eq!(named, pictures("every"));
    assert!(every.len() > 24, "{}", every.len());
    for face in &every {
        let bytes = fs::read(folder.path().join("every").join(face["file"].as_str().unwrap())).unwrap();
        assert_eq!(bytes[..2], [0xff, 0xd8], "a JPEG");
        let edge = |number: usize| face["box"][number].as_u64().unwrap();
        assert!(edge(0) < edge(2) && edge(2) <= 1280 && edge(1) < edge(3) && edge(3) <= 720, "{face}");
        let (track, score) = (face["track"].as_i64().unwrap(), face["score"].as_f64().unwrap());
        let seconds = face["seconds"].as_f64().unwrap();
        let file = face["file"].as_str().unwrap();
        let in_name =
            file.strip_prefix(&format!("{seconds:09.3}_t{track:04}_s")).unwrap_or_else(|| panic!("{face}"));
        let in_name: f64 = in_name[..4].parse().unwrap();
        // The name has two digits of what the index has three of.
        assert!((in_name - score).abs() <= 0.0056, "{face}");
    }

    // Fewer frames, fewer faces: every third, or two per second.
    for fewer in [["--skip-frames", "2"], ["--target-fps", "2"]] {
        let out = fewer[0].trim_start_matches('-');
        extract(out, &[&["--policy", "every"], &fewer[..]].concat()).expect(0, &[]);
        let (few, all) = (index(out).len(), every.len());
        assert!(few * 5 > all && few * 2 < all, "{out}: {few} of {all}");
    }
    let width = |face: &Value| face["box"][2].as_u64().unwrap() - face["box"][0].as_u64().unwrap();
    let height = |face: &Value| face["box"][3].as_u64().unwrap() - face["box"][1].as_u64().unwrap();
    let fits = |face: &&Value| width(face).min(height(face)) >= 60 && width(face).max(height(face)) <= 120;
    extract("sizes", &["--policy", "every", "--min-size", "60", "--max-size", "120"]).expect(0, &[]);
    assert_eq!(index("sizes").len(), every.iter().filter(fits).count());
    extract("best", &[]).expect(0, &[]);
    assert!(!index("best").is_empty() && index("best").len() < every.len());

    // A run cut off within a line is continued: complete entries stay, the rest is added, nothing is repeated.
    extract("every", &["--policy", "every"]).expect(2, &["--resume"]);
    let lines = fs::read_to_string(folder.path().join("every/index.jsonl")).unwrap();
    let cut: usize = lines.lines().take(10).map(|line| line.len() + 1).sum();
    fs::write(folder.path().join("every/index.jsonl"), &lines[..cut + 7]).unwrap();
    extract("every", &["--policy", "every", "--resume"]).expect(0, &["10 were there"]);
    assert_eq!(fs::read_to_string(folder.path().join("every/index.jsonl")).unwrap(), lines);

    // Errors.
    let wrong = |source: &str, options: &[&str]| {
        ProgramOutput::new(
            facepipe(&[&["extract", source, &path("wrong")], options].concat()).output().unwrap(),
        )
    };
    wrong("/dev/video999", &[]).expect(6, &["no such camera"]);
    wrong(&path("nowhere.mp4"), &[]).expect(6, &["nowhere.mp4"]);
    fs::write(path("junk.mp4"), b"no video at all").unwrap();
    wrong(&path("junk.mp4"), &[]).expect(6, &["junk.mp4"]);
    wrong("rtsp://127.0.0.1:1/x", &[]).expect(6, &["127.0.0.1:1"]);
    wrong(&video, &["--min-confidence", "1.5"]).expect(2, &["--min-confidence", "1.5", "0 to 1"]);
    ProgramOutput::new(facepipe(&["extract", &video, "/proc/nowhere"]).output().unwrap())
        .expect(7, &["/proc/nowhere"]);
    let full = facepipe(&["extract", &video, &path("full"), "--policy", "every"]);
    ProgramOutput::new(with_file_size_limit(&full, 2).output().unwrap()).expect(7, &["cannot be written"]);
    // The index lists only existing files.
    let named: Vec<String> =
        index("full").iter().map(|face| face["file"].as_str().unwrap().to_owned()).collect();
    assert!(named.iter().all(|name| pictures("full").contains(name)));
}

#[test]
fn an_evaluation_distinguishes_people_from_strangers() {
    let lfw = require!("lfw10");
    for needed in ["models/pnet.pt", "models/mobilefacenet.onnx"] {
        require!(needed);
    }
    let folder = tempfile::tempdir().unwrap();
    for person in ["Tony_Blair", "Hugo_Chavez", "Jacques_Chirac", "Colin_Powell"] {
        copy_photographs(&lfw, &folder.path().join("people"), person, &[1, 2, 3, 4]);
    }
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let eval = |of: &str, options: &[&str]| {
        let fixed = ["eval", of, "--embedder", "mobilefacenet"];
        ProgramOutput::new(facepipe(&[&fixed[..], options].concat()).output().unwrap())
    };
    let people = path("people");
    eval(&people, &["--shots", "2", "--strangers", "1"]).expect(
        0,
        &[
            "3 people, 6 pictures",
            "6 of people of the gallery, 4 of 1 strangers",
            "rank-1",
            "100.00",
            "equal error rate",
        ],
    );
    eval(&path("nowhere"), &[]).expect(6, &["nowhere"]);
    fs::create_dir_all(path("empty")).unwrap();
    eval(&path("empty"), &[]).expect(6, &["empty"]);
    fs::write(folder.path().join("people/Tony_Blair/Tony_Blair_0003b.jpg"), b"no picture").unwrap();
    fs::create_dir_all(folder.path().join("people/Nobody")).unwrap();
    eval(&people, &["--shots", "2"]).expect(
        3,
        &["Tony_Blair_0003b.jpg: text, no picture", "people/Nobody: no picture in this person's folder"],
    );
}
