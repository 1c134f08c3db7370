//! How many detections a database takes, recognition left out; and galleries for benchmarks of the server.
//!
//! `cargo bench -p facepipe-backend --bench store -- DATABASE_URL SECONDS CLIENTS` stores detections from so many clients at
//! a time, each a request of one picture with one unknown face and its embedding, with an idempotency key, as a camera's
//! store-results is stored. With CROPS as a fourth argument, so many crops in a row are of one track and decided together, by a
//! decision that costs nothing. Prints one line of JSON.
//!
//! `… -- DATABASE_URL --people N EMBEDDER DIMENSIONS` enrols N people with one synthetic embedding each and no picture: points
//! on the unit sphere, evenly distributed, as nearly those of different people are.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run says why and ends")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use facepipe_backend::{
    Config,
    parts::{
        CaptureTime, Database, EnrolledFace, FaceDecision, FaceId, FaceQuality, Fusion, IdempotentCall,
        IdentifiedFace, NewImage, NewUploads, TrackRef, TrackedFace, Upload, now,
    },
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

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
        crops: 1,
        quality: FaceQuality { size: 80.0, ..FaceQuality::default() },
    }
}

fn fusion() -> Fusion {
    let unknown = FaceDecision { known: false, score: None, threshold: 0.46, predictions: Vec::new() };
    Fusion { window: 600_000_000, decide: Arc::new(move |_| Ok(unknown.clone())) }
}

/// `crops` of one track follow each other; 0: no tracks.
fn request(client: usize, number: usize, crops: usize) -> NewUploads {
    let moment = now();
    let track_id = i64::try_from(number / crops.max(1)).ok();
    let tracked = track_id.filter(|_| crops > 0).map(|track_id| TrackedFace {
        track: TrackRef { run_id: Some("benchmark".into()), track_id },
        face: 0,
    });
    NewUploads {
        call: IdempotentCall::StoreResults,
        top_k: 5,
        fusion: Some(fusion()),
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
            track_id,
            tracked,
            frame_box: Some([400.0, 200.0, 480.0, 300.0]),
            faces: vec![face()],
            pictures: Vec::new(),
        }],
    }
}

async fn open(url: String) -> Database {
    let config = Config::default().with(|config| config.database.database_url = Some(url));
    let options = config.database_options();
    let database = tokio::task::spawn_blocking(move || Database::open(&options)).await;
    database.expect("it does not panic").expect("the database opens")
}

async fn measure(database: Database, long: Duration, clients: usize, crops: usize) -> f64 {
    let database = Arc::new(database);
    let begun = Instant::now();
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let database = Arc::clone(&database);
            tokio::spawn(async move {
                let mut stored = 0_usize;
                while begun.elapsed() < long {
                    database.store_uploads(request(client, stored, crops)).await.expect("it is stored");
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

/// A normal number for each component (Box and Muller, 1958), scaled to length 1.
fn synthetic_embedding(person: u64, dimensions: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(person);
    let mut normal = || {
        let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
        radius * (std::f32::consts::TAU * random.random::<f32>()).cos()
    };
    let vector: Vec<f32> = (0..dimensions).map(|_| normal()).collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.into_iter().map(|x| x / length).collect()
}

async fn enrol(database: Database, people: u64, embedder: &'static str, dimensions: usize) {
    for number in 0..people {
        let name = FaceId::try_from(format!("Person {number:07}")).expect("it is a name");
        let person = database.add_person(&name).await.expect("the person is added").row;
        let id = format!("benchmark-{number}");
        let image = NewImage {
            blob_key: format!("people/{person}/{id}"),
            id,
            bytes: 0,
            sha256: format!("{number:064x}"),
            embedder,
            face: EnrolledFace { bounding_box: [0.0, 0.0, 100.0, 100.0], quality: FaceQuality::default() },
            embedding: synthetic_embedding(number, dimensions),
        };
        database.add_image(person, image).await.expect("the image is added");
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let [url, option, people, embedder, dimensions] = arguments.as_slice()
        && option == "--people"
    {
        let people = people.parse().expect("N is a number");
        let dimensions = dimensions.parse().expect("DIMENSIONS is a number");
        let (url, embedder) = (url.clone(), embedder.clone().leak());
        runtime.block_on(async { enrol(open(url).await, people, embedder, dimensions).await });
        return;
    }
    let [url, seconds, clients, crops @ ..] = arguments.as_slice() else {
        println!("This is run by benches/compare, with DATABASE_URL SECONDS CLIENTS [CROPS].");
        return;
    };
    let crops = crops.first().map_or(0, |crops| crops.parse().expect("CROPS is a number"));
    let long = Duration::from_secs_f64(seconds.parse().expect("SECONDS is a number"));
    let clients = clients.parse().expect("CLIENTS is a number");
    let rate = runtime.block_on(async { measure(open(url.clone()).await, long, clients, crops).await });
    println!(
        "{{\"detections_per_second\": {rate:.1}, \"clients\": {clients}, \"crops_per_track\": {crops}}}"
    );
}
