//! The blob store: a full disk, and an object store.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Client, StatusCode, multipart::Form};

use crate::{
    command_line::program,
    helpers::{ApiResponse, Engine, client, file, files_below, photograph, photograph_path},
    replicas::{Process, Replica, enrol, models, post, recognise, signal},
};

fn database(folder: &Path) -> String {
    let sqlite = || format!("sqlite://{}", folder.join("faces.db").display());
    Engine::of_this_run().map_or_else(sqlite, Engine::new_database)
}

async fn count(client: &Client, url: &str) -> u64 {
    let answer = ApiResponse::read(client.get(format!("{url}/dataset")).send().await.unwrap()).await;
    answer.expect(StatusCode::OK)["people"][0]["images"].as_u64().unwrap()
}

/// Simulates a disk that is full beyond 4 MiB: the kernel limits the size of files that this process writes.
#[tokio::test]
async fn a_full_disk_is_reported_and_leaves_nothing_half_stored() {
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let limited = program();
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "bash"]).arg(limited.get_program());
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let blobs = folder.path().join("blobs");
    command.arg("--blobs-url").arg(format!("file://{}", blobs.display()));
    let database = database(folder.path());
    let server = Replica::spawn_as(command, "a", folder.path(), &models, &database).ready().await;
    let (client, url) = (client(), &server.url);
    enrol(&client, url, "Tony_Blair", &[1]).await;

    // A picture of 5 MiB: decoders ignore what follows a JPEG's end.
    let mut large = fs::read(photograph_path("Tony_Blair", 2)).unwrap();
    large.resize(5 << 20, 0);
    let before = files_below(&blobs);
    let form = Form::new().part("image", file(large));
    let request = client.post(format!("{url}/dataset/Tony_Blair/image")).multipart(form);
    let message = ApiResponse::read(request.send().await.unwrap()).await.expect_error(507, "storage_full");
    assert!(!message.contains("blobs"), "no word of the server's folders: {message}");
    assert_eq!(files_below(&blobs), before, "neither a blob nor a temporary file is left");
    assert_eq!(count(&client, url).await, 1);

    // What there is room for is stored as before.
    let form = Form::new().part("image", photograph("Tony_Blair", 2));
    let request = client.post(format!("{url}/dataset/Tony_Blair/image")).multipart(form);
    ApiResponse::read(request.send().await.unwrap()).await.expect(StatusCode::CREATED);
    assert_eq!(count(&client, url).await, 2);
    assert_eq!(files_below(&blobs).len(), 2);
}

/// moto, an S3 server for tests, with a bucket `faces`. `None` where it is not installed.
async fn s3(client: &Client) -> Option<(Process, String)> {
    let moto = facepipe_test_support::workspace_root().join(".runtime/tools/moto/bin/moto_server");
    if !moto.exists() {
        facepipe_test_support::skip("no moto: run scripts/python-tool.sh moto");
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(moto);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let server = Process(server);
    let endpoint = format!("http://127.0.0.1:{port}");
    let begun = Instant::now();
    while client.put(format!("{endpoint}/faces")).send().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "moto does not answer");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Some((server, endpoint))
}

async fn keys(client: &Client, endpoint: &str) -> Vec<String> {
    let listed = client.get(format!("{endpoint}/faces?list-type=2")).send().await.unwrap();
    let text = listed.text().await.unwrap();
    let after = text.split("<Key>").skip(1);
    after.map(|key| key.split("</Key>").next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn images_and_models_are_stored_in_s3() {
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let client = client();
    let Some((_s3, endpoint)) = s3(&client).await else { return };
    let database = database(folder.path());
    let spawn = |name: &str| {
        let mut command = program();
        command.args([
            "--blobs-url",
            "s3://faces/site-1",
            "--sweep-interval-s",
            "1",
            "--sweep-min-age-s",
            "1",
        ]);
        command.env("AWS_ENDPOINT", &endpoint).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "eu-north-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        Replica::spawn_as(command, name, folder.path(), &models, &database).ready()
    };
    let first = spawn("a").await;
    enrol(&client, &first.url, "Tony_Blair", &[1, 2]).await;
    enrol(&client, &first.url, "Hugo_Chavez", &[1, 2]).await;
    post(&client, &format!("{}/model/optimized-train?wait=true", first.url)).await.expect(StatusCode::OK);
    // In order: a server that is killed during its sweep keeps others from sweeping for minutes.
    signal(&first.process.0, "TERM");
    first.ended().await;
    let stored = keys(&client, &endpoint).await;
    assert_eq!(stored.iter().filter(|key| key.starts_with("site-1/people/")).count(), 4, "{stored:?}");
    assert_eq!(stored.iter().filter(|key| key.starts_with("site-1/models/")).count(), 1, "{stored:?}");

    // Another process finds them there.
    let second = spawn("b").await;
    let url = &second.url;
    let answer = recognise(&client, url).await.expect(StatusCode::OK);
    assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");
    let images = client.get(format!("{url}/dataset/Tony_Blair")).send().await.unwrap();
    let images = ApiResponse::read(images).await.expect(StatusCode::OK);
    let image = images["images"][0]["image_id"].as_str().unwrap();
    let picture = client.get(format!("{url}/dataset/Tony_Blair/image/{image}")).send().await.unwrap();
    let original = fs::read(photograph_path("Tony_Blair", 1)).unwrap();
    let original_2 = fs::read(photograph_path("Tony_Blair", 2)).unwrap();
    let picture = picture.bytes().await.unwrap();
    assert!(picture == original || picture == original_2, "the picture is the one that was enrolled");

    // What a crash left without a row is swept; an erased person's pictures go with the rows.
    let orphan = format!("{endpoint}/faces/site-1/people/1/orphan");
    client.put(orphan).body("left by a crash").send().await.unwrap();
    client.delete(format!("{url}/dataset/Tony_Blair")).send().await.unwrap().error_for_status().unwrap();
    let begun = Instant::now();
    loop {
        let left = keys(&client, &endpoint).await;
        if left.iter().filter(|key| key.contains("/people/")).count() == 2 {
            let ledger: Vec<_> = left.iter().filter(|key| key.starts_with("site-1/erasures/")).collect();
            assert_eq!(ledger.len(), 1, "{left:?}");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
