//! How many detections a database takes, recognition left out.
//!
//! `cargo bench -p facepipe-backend --bench store -- DATABASE_URL SECONDS CLIENTS` stores detections from so many clients at
//! a time, each a request of one picture with one unknown face and its embedding, with an idempotency key, as a camera's
//! store-results is stored. Prints one line of JSON.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run says why and ends")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use facepipe_backend::{
    Config,
    parts::{CaptureTime, Database, IdempotentCall, IdentifiedFace, NewUploads, Upload, now},
};

const DIMENSIONS: usize = 512;

fn face() -> IdentifiedFace {
    IdentifiedFace {
        bounding_box: [10.0, 12.0, 90.0, 110.0],
        detection_confidence: 0.99,
        known: false,
        score: None,
        threshold: 0.46,
        predictions: Vec::new(),
        embedding: vec![1.0 / 512_f32.sqrt(); DIMENSIONS],
    }
}

fn request(client: usize, number: usize) -> NewUploads {
    let moment = now();
    NewUploads {
        call: IdempotentCall::StoreResults,
        keep_unknown_embeddings: true,
        camera_id: format!("camera-{client}"),
        location: "benchmark".into(),
        received_at: moment,
        request_id: None,
        embedder: "inception-resnet-v1",
        model_version: None,
        uploads: vec![Upload {
            key: Some(format!("{client}-{number}-{moment}")),
            time: CaptureTime { captured_at: moment, claimed_at: None },
            track_id: i64::try_from(number).ok(),
            frame_box: Some([400.0, 200.0, 480.0, 300.0]),
            faces: vec![face()],
        }],
    }
}

async fn measure(url: String, long: Duration, clients: usize) -> f64 {
    let config = Config::default().with(|config| config.database.database_url = Some(url));
    let options = config.database_options();
    let database = tokio::task::spawn_blocking(move || Database::open(&options)).await;
    let database = Arc::new(database.expect("it does not panic").expect("the database opens"));
    let begun = Instant::now();
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let database = Arc::clone(&database);
            tokio::spawn(async move {
                let mut stored = 0_usize;
                while begun.elapsed() < long {
                    database.store_uploads(request(client, stored)).await.expect("it is stored");
                    stored += 1;
                }
                stored
            })
        })
        .collect();
    let mut stored = 0_usize;
    for client in clients {
        stored += client.await.expect("a client does not panic");
    }
    stored as f64 / begun.elapsed().as_secs_f64()
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [url, seconds, clients] = arguments.as_slice() else {
        println!("This is run by benches/compare, with DATABASE_URL SECONDS CLIENTS.");
        return;
    };
    let long = Duration::from_secs_f64(seconds.parse().expect("SECONDS is a number"));
    let clients = clients.parse().expect("CLIENTS is a number");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let rate = runtime.block_on(measure(url.clone(), long, clients));
    println!("{{\"detections_per_second\": {rate:.1}, \"clients\": {clients}}}");
}
