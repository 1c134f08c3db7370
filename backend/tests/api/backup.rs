//! A deployment that is restored from a backup: it recognises the same people, and nobody who was erased since.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use facepipe_backend::{Application, Config, ErasedDetections};
use reqwest::{StatusCode, multipart::Form};
use serde_json::Value;
use tempfile::TempDir;

use crate::helpers::{
    Engine, Server, dump, files_below, output_of, photograph, photograph_path, restore, start,
};

/// A dump of the database and a copy of the blobs, taken in this order.
struct Backup {
    folder: TempDir,
    config: Config,
}

impl Backup {
    fn of(server: &Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dumped = folder.path().join("database");
        match &server.config.database_url {
            None => server.execute(&format!("VACUUM INTO '{}'", dumped.display())),
            Some(url) => fs::write(&dumped, output_of(dump(url))).unwrap(),
        }
        copy(&server.data.path().join("blobs"), &folder.path().join("blobs"));
        Self { folder, config: server.config.clone() }
    }

    /// An empty deployment that gets the backup, and the ledger of erasures as it is today where there is one.
    async fn restored(&self, ledger: Option<&Path>, configure: impl FnOnce(&mut Config)) -> Server {
        let data = Arc::new(tempfile::tempdir().unwrap());
        let dumped = self.folder.path().join("database");
        let database_url = Engine::of_this_run().map(Engine::new_database);
        match &database_url {
            None => drop(fs::copy(dumped, data.path().join("facepipe.db")).unwrap()),
            Some(url) => {
                let mut tool = restore(url);
                tool.stdin(File::open(dumped).unwrap()).stdout(Stdio::null());
                output_of(tool);
            }
        }
        let blobs = data.path().join("blobs");
        copy(&self.folder.path().join("blobs"), &blobs);
        if let Some(ledger) = ledger {
            copy(ledger, &blobs.join("erasures"));
        }
        let mut config = Config { data_dir: data.path().to_owned(), database_url, ..self.config.clone() };
        configure(&mut config);
        Server::run(config, data).await
    }
}

/// Copies what is below a folder; files that are there already stay.
fn copy(from: &Path, to: &Path) {
    for file in files_below(from) {
        let copied = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copied.parent().unwrap()).unwrap();
        if !copied.exists() {
            fs::copy(&file, copied).unwrap();
        }
    }
}

async fn people(server: &Server) -> Vec<(String, u64)> {
    let listed = server.get("/dataset").await.expect(StatusCode::OK);
    let people = listed["people"].as_array().unwrap();
    people
        .iter()
        .map(|p| (p["face_id"].as_str().unwrap().to_owned(), p["images"].as_u64().unwrap()))
        .collect()
}

async fn seen(server: &Server) -> Vec<Value> {
    let page = server.get("/database/detections").await.expect(StatusCode::OK);
    page["detections"].as_array().unwrap().iter().map(|seen| seen["face_id"].clone()).collect()
}

/// Bytes of a photograph that no other file has.
fn part_of_photograph(person: &str, number: u32) -> Vec<u8> {
    let bytes = fs::read(photograph_path(person, number)).unwrap();
    bytes[bytes.len() / 2..][..48].to_vec()
}

// What looks for traces takes its time, in which the client must notice that a connection was closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_recognises_the_same_people_and_nobody_who_was_erased_since() {
    let server = start!();
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.enrol("Colin_Powell", &[1, 2]).await;
    server.train().await;
    let form = Form::new().text("camera_id", "gate-1").text("location", "Lobby");
    let form = form.part("image", photograph("Tony_Blair", 3));
    server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    let (tony, hugo) = (server.recognise("Tony_Blair", 5).await, server.recognise("Hugo_Chavez", 5).await);
    assert_eq!(tony["top_prediction"]["label"], "Tony_Blair");
    let backup = Backup::of(&server);

    // After the backup, a person is renamed and erased, and so is an image of another one.
    let renamed = serde_json::json!({ "face_id": "Somebody" });
    server.patch("/dataset/Tony_Blair", &renamed).await.expect(StatusCode::OK);
    server.delete("/dataset/Somebody").await.expect(StatusCode::NO_CONTENT);
    let images = server.get("/dataset/Colin_Powell").await.expect(StatusCode::OK);
    let image = images["images"][1]["image_id"].as_str().unwrap();
    server.delete(&format!("/dataset/Colin_Powell/image/{image}")).await.expect(StatusCode::NO_CONTENT);
    // Somebody who is enrolled again stays enrolled.
    server.enrol("Tony_Blair", &[4]).await;
    let server = server.restart().await;
    assert_eq!(
        people(&server).await,
        [("Colin_Powell".into(), 1), ("Hugo_Chavez".into(), 2), ("Tony_Blair".into(), 1)]
    );
    let data = Arc::clone(&server.data);
    let ledger = data.path().join("blobs/erasures");
    assert_eq!(entries(&ledger).len(), 2);
    server.stop().await;

    // The backup alone is as things were.
    let restored = backup.restored(None, |_| ()).await;
    assert_eq!(
        people(&restored).await,
        [("Colin_Powell".into(), 2), ("Hugo_Chavez".into(), 2), ("Tony_Blair".into(), 2)]
    );
    assert_eq!(restored.recognise("Tony_Blair", 5).await, tony);
    assert_eq!(restored.recognise("Hugo_Chavez", 5).await, hugo);
    assert_eq!(seen(&restored).await, ["Tony_Blair"]);
    restored.stop().await;

    // With the ledger, who was erased is erased before anything is answered.
    let restored = backup.restored(Some(&ledger), |_| ()).await;
    assert_eq!(people(&restored).await, [("Colin_Powell".into(), 1), ("Hugo_Chavez".into(), 2)]);
    let stranger = restored.recognise("Tony_Blair", 5).await;
    assert!(!stranger.to_string().contains("Tony_Blair"), "{stranger}");
    assert_eq!(seen(&restored).await, [Value::Null]);
    assert!(restored.traces_of(b"Tony_Blair").is_empty(), "{:?}", restored.traces_of(b"Tony_Blair"));
    for (person, number) in [("Tony_Blair", 1), ("Tony_Blair", 2), ("Colin_Powell", 2)] {
        let traces = restored.traces_of(&part_of_photograph(person, number));
        assert!(traces.is_empty(), "{person} {number}: {traces:?}");
    }
    assert_eq!(
        restored.traces_of(&part_of_photograph("Hugo_Chavez", 1)).len(),
        1,
        "what is looked for is found"
    );

    // No model knows an erased person for long, and the others are recognised by the next one.
    let begun = Instant::now();
    loop {
        let models = restored.get("/model").await.expect(StatusCode::OK);
        let versions: Vec<i64> =
            models["models"].as_array().unwrap().iter().map(|m| m["version"].as_i64().unwrap()).collect();
        if versions == [2] {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{models}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let known = restored.recognise("Hugo_Chavez", 5).await;
    assert_eq!(known["top_prediction"]["label"], "Hugo_Chavez");

    // The name may be taken again, on purpose, also across a restart.
    restored.enrol("Tony_Blair", &[1]).await;
    let restored = restored.restart().await;
    assert_eq!(people(&restored).await.last(), Some(&("Tony_Blair".into(), 1)));
    restored.stop().await;

    let delete = |config: &mut Config| config.erase_detections = ErasedDetections::Delete;
    let restored = backup.restored(Some(&ledger), delete).await;
    assert_eq!(seen(&restored).await, Vec::<Value>::new());
    restored.stop().await;
}

/// The ledger's entries. A sweep may be writing one that is there already, under a temporary name with a `#`.
fn entries(ledger: &Path) -> Vec<PathBuf> {
    let mut files = files_below(ledger);
    files.retain(|file| !file.to_string_lossy().contains('#'));
    files
}

#[tokio::test]
async fn the_ledger_is_completed_from_either_side_and_never_skipped() {
    let server = start!();
    server.enrol("Tony_Blair", &[]).await;
    server.enrol("Hugo_Chavez", &[]).await;
    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);
    let ledger = server.data.path().join("blobs/erasures");
    let rows = |server: &Server| server.lines("SELECT digest AS line FROM erasures");
    let [entry] = entries(&ledger).try_into().unwrap();
    let (digest, text) = (entry.file_name().unwrap().to_owned(), fs::read(&entry).unwrap());
    assert_eq!(rows(&server), [digest.to_str().unwrap()]);
    assert!(!String::from_utf8_lossy(&text).contains("Tony"));

    fs::remove_file(&entry).unwrap();
    let server = server.restart().await;
    assert_eq!(fs::read(&entry).unwrap(), text);

    server.execute("DELETE FROM erasures");
    let server = server.restart().await;
    assert_eq!(rows(&server), [digest.to_str().unwrap()]);
    assert_eq!(people(&server).await, [("Hugo_Chavez".into(), 0)]);

    // Of an entry that cannot be read nobody knows whom it names.
    fs::write(ledger.join("0123"), "{").unwrap();
    let (config, data) = (server.config.clone(), Arc::clone(&server.data));
    server.stop().await;
    let Err(error) = Application::build(config).await else { panic!("started without the ledger") };
    assert!(format!("{error:#}").contains("erasures/0123"), "{error:#}");
    drop(data);
}
