//! Backup and restore: a restored deployment recognises the same people, except those erased since.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use facepipe_backend::{Application, Config, ErasedDetections};
use reqwest::{StatusCode, multipart::Form};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    deployment::with,
    helpers::{
        Engine, Server, dump, files_below, output_of, photograph, photograph_path, restore, start, until,
    },
};

/// A dump of the database and a copy of the blobs, taken in this order, and a backup by the program's own command.
struct Backup {
    folder: TempDir,
    config: Config,
}

impl Backup {
    async fn of(server: &Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("whole");
        succeeds(&with(&server.config, &["backup", whole.to_str().unwrap()]).await);
        let dumped = folder.path().join("database");
        match &server.config.database.database_url {
            None => server.execute(&format!("VACUUM INTO '{}'", dumped.display())),
            Some(url) => fs::write(&dumped, output_of(dump(url))).unwrap(),
        }
        copy(&server.data.path().join("blobs"), &folder.path().join("blobs"));
        Self { folder, config: server.config.clone() }
    }

    /// Restores the command's backup into an empty deployment, with the command.
    async fn restored_by_command(&self, ledger: Option<&Path>) -> Server {
        let data = Arc::new(tempfile::tempdir().unwrap());
        let database_url = Engine::of_this_run().map(Engine::new_database);
        let config = self.config.clone().with(|config| {
            config.storage.data_dir = data.path().to_owned();
            config.database.database_url = database_url;
        });
        let whole = self.folder.path().join("whole");
        let mut arguments = vec!["restore", whole.to_str().unwrap()];
        if let Some(ledger) = ledger {
            arguments.extend(["--erasures", ledger.to_str().unwrap()]);
        }
        succeeds(&with(&config, &arguments).await);
        closed(data.path());
        Server::run(config, data).await
    }

    /// Restores the dump into an empty deployment, with the given ledger of erasures.
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
        let mut config = self.config.clone().with(|config| {
            config.storage.data_dir = data.path().to_owned();
            config.database.database_url = database_url;
        });
        configure(&mut config);
        Server::run(config, data).await
    }
}

#[track_caller]
fn succeeds(output: &Output) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(!told.contains("that rows refer to"), "{told}");
}

/// The error of a command that fails.
#[track_caller]
fn refusal(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that a folder is private.
fn closed(folder: &Path) {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder), 0o700, "{}", folder.display());
    for file in files_below(folder) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
        for above in file.ancestors().skip(1).take_while(|above| above.starts_with(folder)) {
            assert_eq!(mode(above), 0o700, "{}", above.display());
        }
    }
}

/// Copies the files below a folder; existing files stay.
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
async fn a_restored_backup_recognises_the_same_people_except_those_erased_since() {
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
    let backup = Backup::of(&server).await;

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
    closed(&backup.folder.path().join("whole"));
    let restored = backup.restored_by_command(None).await;
    assert_eq!(
        people(&restored).await,
        [("Colin_Powell".into(), 2), ("Hugo_Chavez".into(), 2), ("Tony_Blair".into(), 2)]
    );
    assert_eq!(restored.recognise("Tony_Blair", 5).await, tony);
    assert_eq!(restored.recognise("Hugo_Chavez", 5).await, hugo);
    assert_eq!(seen(&restored).await, ["Tony_Blair"]);
    restored.stop().await;

    // With the ledger, who was erased is erased before anything is answered.
    let restored = backup.restored_by_command(Some(&ledger)).await;
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
        "the search finds what is there"
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

    let delete = |config: &mut Config| config.retention.erase_detections = ErasedDetections::Delete;
    let restored = backup.restored(Some(&ledger), delete).await;
    assert_eq!(seen(&restored).await, Vec::<Value>::new());
    restored.stop().await;
}

/// The ledger's entries, without the temporary files with a `#` that a concurrent sweep may be writing.
fn entries(ledger: &Path) -> Vec<PathBuf> {
    let mut files = files_below(ledger);
    files.retain(|file| !file.to_string_lossy().contains('#'));
    files
}

#[tokio::test]
async fn the_erasure_ledger_is_synchronised_in_both_directions_and_never_skipped() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_while_images_change_has_the_blob_of_every_row() {
    let server = start!();
    let (first, second) = (photograph_path("Tony_Blair", 1), photograph_path("Tony_Blair", 2));
    server.enrol("Tony_Blair", &[3]).await;
    let folder = tempfile::tempdir().unwrap();
    let changes = AtomicUsize::new(0);
    let backed_up = async {
        for number in 0..3 {
            // In the middle of them.
            let before = changes.load(Ordering::Relaxed);
            while changes.load(Ordering::Relaxed) == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let backup = folder.path().join(number.to_string());
            succeeds(&with(&server.config, &["backup", backup.to_str().unwrap()]).await);
        }
    };
    let changing = async {
        loop {
            for path in [&first, &second] {
                let form = Form::new().part("image", crate::helpers::file(fs::read(path).unwrap()));
                let added = server.send("/dataset/Tony_Blair/image", form).await.expect(StatusCode::CREATED);
                let image = added["image_id"].as_str().unwrap();
                server
                    .delete(&format!("/dataset/Tony_Blair/image/{image}"))
                    .await
                    .expect(StatusCode::NO_CONTENT);
                changes.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    tokio::select! {
        () = backed_up => (),
        () = changing => (),
    }
    for number in 0..3 {
        let data = tempfile::tempdir().unwrap();
        let database_url = Engine::of_this_run().map(Engine::new_database);
        let config = server.config.clone().with(|config| {
            config.storage.data_dir = data.path().join("new");
            config.database.database_url = database_url;
        });
        let backup = folder.path().join(number.to_string());
        succeeds(&with(&config, &["restore", backup.to_str().unwrap()]).await);
        closed(&config.storage.data_dir);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_waits_for_no_lease_of_the_backed_up_deployment() {
    let server = start!(|config| config.deployment.lease_s = 3600);
    server.enrol("Tony_Blair", &[1]).await;
    // As though another process were in the middle of a training.
    server.execute("UPDATE leases SET holder = 'gone', expires_at = 9000000000000000");
    let job = server.post("/model/optimized-train").await.expect(StatusCode::ACCEPTED);
    server.execute("UPDATE jobs SET status = 'running', started_at = created_at, attempts = 1");
    let backup = Backup::of(&server).await;
    server.stop().await;

    let restored = backup.restored_by_command(None).await;
    let status = || restored.lines("SELECT status AS line FROM jobs");
    until(|| status() == ["done"]).await;
    let job = restored.get(&format!("/jobs/{}", job["job_id"].as_str().unwrap())).await;
    assert_eq!(job.expect(StatusCode::OK)["result"]["images"], 1);
    // The dataset is not locked either.
    restored.enrol("Hugo_Chavez", &[1]).await;
    restored.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_impossible_backup_or_restore_is_refused_with_a_reason_and_leaves_no_files() {
    let server = start!();
    server.enrol("Tony_Blair", &[1]).await;
    let folder = tempfile::tempdir().unwrap();
    let name = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    succeeds(&with(&server.config, &["backup", &name("whole")]).await);

    // Backups go into new folders, whose parents are there.
    let told = refusal(&with(&server.config, &["backup", &name("whole")]).await);
    assert!(told.contains("is not empty") && told.contains("new folder"), "{told}");
    let told = refusal(&with(&server.config, &["backup", &name("none/such")]).await);
    assert!(told.contains(&format!("there is no folder {}", name("none"))), "{told}");
    if Engine::of_this_run().is_none() {
        let config =
            server.config.clone().with(|config| config.storage.data_dir = folder.path().join("elsewhere"));
        let told = refusal(&with(&config, &["backup", &name("nothing")]).await);
        assert!(told.contains("there is no database at") && told.contains("elsewhere"), "{told}");
        assert!(!config.storage.data_dir.exists());
    }

    // Not into a target that is not empty.
    let told = refusal(&with(&server.config, &["restore", &name("whole")]).await);
    assert!(told.contains("already") && told.contains("Nothing was changed"), "{told}");
    server.get("/dataset/Tony_Blair").await.expect(StatusCode::OK);

    let database_url = Engine::of_this_run().map(Engine::new_database);
    let new = server.config.clone().with(|config| {
        config.storage.data_dir = folder.path().join("new");
        config.database.database_url = database_url;
    });
    let restored = |folder: String| {
        let new = new.clone();
        async move { with(&new, &["restore", &folder]).await }
    };
    let told = refusal(&restored(name("none")).await);
    assert!(told.contains("is no backup"), "{told}");
    let other = match Engine::of_this_run() {
        None => "postgres://nobody@127.0.0.1:1/none".to_owned(),
        Some(_) => format!("sqlite://{}", folder.path().join("new/x.db").display()),
    };
    let other = new.clone().with(|config| config.database.database_url = Some(other));
    let told = refusal(&with(&other, &["restore", &name("whole")]).await);
    assert!(told.contains("its own kind only"), "{told}");

    // A damaged one, whatever of it is.
    for (damaged, change) in [("truncated", 0), ("changed", 1)] {
        copy(&folder.path().join("whole"), &folder.path().join(damaged));
        let files = files_below(&folder.path().join(damaged));
        let file = match change {
            0 => {
                files.iter().find(|file| file.file_name().unwrap().to_str().unwrap().starts_with("database."))
            }
            _ => files.iter().find(|file| file.to_str().unwrap().contains("blobs/people")),
        };
        let mut bytes = fs::read(file.unwrap()).unwrap();
        match change {
            0 => bytes.truncate(bytes.len() / 2),
            _ => bytes[100] ^= 1,
        }
        fs::write(file.unwrap(), bytes).unwrap();
        let told = refusal(&restored(name(damaged)).await);
        assert!(told.contains("is damaged") && told.contains("is not what was written"), "{told}");
    }

    // One of a later version.
    server.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('20991231000000')");
    let told = refusal(&with(&server.config, &["backup", &name("newer")]).await);
    assert!(told.contains("newer than facepipe-backend"), "{told}");
    let knowing = ["backup", "--allow-newer-schema", "true", &name("newer")];
    succeeds(&with(&server.config, &knowing).await);
    let told = refusal(&restored(name("newer")).await);
    assert!(told.contains("migration 20991231000000") && told.contains("later one"), "{told}");

    assert!(!new.storage.data_dir.exists(), "a refused restore leaves nothing");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("partial")), "{left:?}");
    // And the whole one is whole.
    succeeds(&restored(name("whole")).await);
}
