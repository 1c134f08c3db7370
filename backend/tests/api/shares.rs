//! Clients that take more than their share: what they are refused, and that others are not.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use facepipe_backend::Config;
use reqwest::{Client, StatusCode, multipart::Form};
use serde_json::json;
use tokio::net::TcpSocket;

use crate::{
    command_line::Running,
    helpers::{ApiResponse, Server, client, file, photograph, start},
    metrics::{Scrape, with_metrics},
};

const CAMERA: &str = "camera-0123456789abcdef";
const OTHER: &str = "other-0123456789abcdef";

/// A GIF of 35 bytes: one pixel on a canvas of 50 million.
pub fn gif_of_one_pixel() -> Vec<u8> {
    let [w, h] = [7071_u16; 2].map(u16::to_le_bytes);
    let screen = [b"GIF89a", &w[..], &h[..], &[0x80, 0, 0], &[0; 6]].concat();
    [&screen[..], &[0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0], &[2, 2, 0x44, 0x01, 0], b";"].concat()
}

fn with_tokens(config: &mut Config, folder: &Path) {
    let file = folder.join("tokens");
    fs::write(&file, format!("camera {CAMERA}\ncamera {OTHER}\n")).unwrap();
    config.listener.token_file = Some(file);
}

/// A client on another address of this machine.
pub fn client_at(last: u8) -> Client {
    client(); // Chooses the provider of TLS.
    Client::builder()
        .tls_certs_only([])
        .local_address(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)))
        .build()
        .unwrap()
}

/// A connection from another address of this machine, which receives little before it is read.
pub async fn connect_from(last: u8, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0)))?;
    let stream = socket.connect(server).await?.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

fn address(server: &Server) -> SocketAddr {
    server.url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// The head of a request with a body.
pub fn head(path: &str, token: Option<&str>, length: usize) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\n{token}Content-Type: multipart/form-data; boundary=b\r\n\
         Content-Length: {length}\r\n\r\n"
    )
}

const PART: &str = "--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n";

/// A request for a file of more than a million bytes. The system buffers one response, but not several.
const LARGE_RESPONSES: &str = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n";

/// What a server answers on a connection until it closes it.
fn answer_of(mut connection: TcpStream) -> String {
    let mut answer = Vec::new();
    // A server that refuses a body may reset the connection after its answer, but does not keep it.
    let ended = connection.read_to_end(&mut answer).map_err(|error| error.kind());
    assert!(!matches!(ended, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{answer:?}");
    String::from_utf8_lossy(&answer).into_owned()
}

pub async fn until_value(server: &Server, series: &str, holds: impl Fn(f64) -> bool) {
    let begun = std::time::Instant::now();
    loop {
        let value = Scrape::of(server).await.value(series);
        if holds(value) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{series} is {value}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refused_by(limit: &str) -> String {
    format!("facepipe_requests_refused_total{{reason=\"{limit}\"}}")
}

#[tokio::test]
async fn pictures_that_cost_much_and_say_little_are_refused_before_they_wait() {
    let server = start!(with_metrics);
    let gifs = || (0..64).fold(Form::new(), |form, _| form.part("image", file(gif_of_one_pixel())));
    for _ in 0..4 {
        let answer = server.send("/face-recognition/get-results", gifs()).await;
        assert_eq!(
            answer.body["error"]["details"],
            json!({ "frame": [1, 1], "canvas": [7071, 7071] }),
            "{}",
            answer.body
        );
        answer.expect_error(422, "image_implausible");
    }
    // Beside others it is their sender's fault alone.
    let form = Form::new().part("image", file(gif_of_one_pixel())).part("image", photograph("Tony_Blair", 1));
    let answer = server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    assert_eq!(answer["faces"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&answer["errors"][0]["image"], &answer["errors"][0]["error"]["code"]),
        (&json!(0), &json!("image_implausible"))
    );
    assert_eq!(Scrape::of(&server).await.value("facepipe_stage_seconds_count{stage=\"decode\"}"), 1.0);
}

#[tokio::test]
async fn pixels_of_a_request_and_of_a_cameras_picture_are_bounded() {
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        config.recognition.max_request_pixels = 150_000;
        config.recognition.max_camera_pixels = 60_000;
    });
    // Of 62,500 pixels each.
    let photographs = |number| {
        let form = Form::new().text("camera_id", "c").text("location", "l");
        (1..=number).fold(form, |form, number| form.part("image", photograph("Tony_Blair", number)))
    };
    server.send("/face-recognition/get-results", photographs(2)).await.expect(StatusCode::OK);
    let answer = server.send("/face-recognition/get-results", photographs(3)).await;
    assert_eq!(answer.body["error"]["details"], json!({ "pixels": 187_500, "max_pixels": 150_000 }));
    let message = answer.expect_error(413, "too_many_pixels");
    assert!(message.contains("187500") && message.contains("150000"), "{message}");
    let answer = server.send("/face-recognition/store-results", photographs(1)).await;
    assert_eq!(answer.body["error"]["details"]["max_pixels"], 60_000);
    answer.expect_error(413, "image_too_large");
    assert_eq!(Scrape::of(&server).await.value(&refused_by("request_pixels")), 1.0);
}

#[tokio::test]
async fn bodies_in_memory_are_bounded_by_client_and_in_all() {
    let folder = tempfile::tempdir().unwrap();
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        with_tokens(config, folder.path());
        config.shares.body_budget_bytes = Some(4_000_000);
        config.shares.client_body_bytes = Some(1_000_000);
    });
    let path = "/face-recognition/get-results";
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut connection = connect_from(1, address(&server)).await.unwrap();
        connection.write_all(head(path, Some(CAMERA), 310_000).as_bytes()).unwrap();
        connection.write_all(PART.as_bytes()).unwrap();
        connection.write_all(&vec![7; 300_000 - PART.len()]).unwrap();
        held.push(connection);
    }
    let bytes = "facepipe_request_bytes_in_memory";
    until_value(&server, bytes, |bytes| bytes >= 900_000.0).await;
    // Announced and too much, and growing too much.
    let mut announced = connect_from(1, address(&server)).await.unwrap();
    announced.write_all(head(path, Some(CAMERA), 200_000).as_bytes()).unwrap();
    let mut growing = connect_from(1, address(&server)).await.unwrap();
    let chunked = head(path, Some(CAMERA), 0).replace("Content-Length: 0", "Transfer-Encoding: chunked");
    growing.write_all(format!("{chunked}{:x}\r\n{PART}\r\n", PART.len()).as_bytes()).unwrap();
    let chunk = [b"c350\r\n", &[7; 50_000][..], b"\r\n"].concat();
    let _ = (0..4).try_for_each(|_| growing.write_all(&chunk));
    for connection in [announced, growing] {
        let answer = answer_of(connection).to_lowercase();
        assert!(answer.starts_with("http/1.1 429") && answer.contains("retry-after: 1"), "{answer}");
        assert!(answer.contains("\"limit\":\"bytes_in_flight\"") && answer.contains("1000000"), "{answer}");
    }
    // Another client is not concerned.
    let request = server.client.post(format!("{}{path}", server.url));
    let request = request.bearer_auth(OTHER);
    let form = Form::new().part("image", photograph("Tony_Blair", 1));
    let answer = ApiResponse::read(request.multipart(form).send().await.unwrap()).await;
    answer.expect(StatusCode::OK);
    drop(held);
    until_value(&server, bytes, |bytes| bytes == 0.0).await;
    assert_eq!(Scrape::of(&server).await.value(&refused_by("bytes_in_flight")), 2.0);
}

#[tokio::test]
async fn beyond_the_bound_on_connections_only_probes_are_answered() {
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        config.shares.max_connections = 12;
        config.shares.max_connections_per_address = 8;
    });
    let address = address(&server);
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(connect_from(2, address).await.unwrap());
    }
    until_value(&server, "facepipe_connections", |open| open >= 8.0).await;
    let get = |last, path: &'static str| {
        let (client, url) = (client_at(last), format!("{}{path}", server.url));
        async move { client.get(url).send().await }
    };
    assert_eq!(get(2, "/livez").await.unwrap().status(), StatusCode::OK);
    let answer = ApiResponse::read(get(2, "/dataset").await.unwrap()).await;
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(answer.body["error"]["details"], json!({ "limit": "connections_per_address", "max": 8 }));
    answer.expect_error(503, "overloaded");
    // Others do not notice, until all connections are taken.
    assert_eq!(get(3, "/dataset").await.unwrap().status(), StatusCode::OK);
    until_value(&server, "facepipe_connections", |open| open == 8.0).await;
    for _ in 0..4 {
        idle.push(connect_from(4, address).await.unwrap());
    }
    until_value(&server, "facepipe_connections", |open| open == 12.0).await;
    let answer = ApiResponse::read(get(3, "/dataset").await.unwrap()).await;
    assert_eq!(answer.body["error"]["details"], json!({ "limit": "connections", "max": 12 }));
    assert_eq!(get(3, "/livez").await.unwrap().status(), StatusCode::OK);
    drop(idle);
    until_value(&server, "facepipe_connections", |open| open <= 2.0).await;
    assert_eq!(get(2, "/dataset").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn responses_that_nobody_reads_are_given_up() {
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        config.shares.write_timeout_s = 1;
        config.listener.keep_alive_s = 3600;
    });
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut reader = connect_from(2, address(&server)).await.unwrap();
        reader.write_all(LARGE_RESPONSES.repeat(16).as_bytes()).unwrap();
        readers.push(reader);
    }
    until_value(&server, "facepipe_connections", |open| open >= 20.0).await;
    // Nothing else ends them: they are kept for an hour, and no client leaves.
    until_value(&server, "facepipe_connections", |open| open == 0.0).await;
    for reader in readers {
        let answers = answer_of(reader);
        assert!(answers.matches("HTTP/1.1 200 OK").count() < 16, "{}", answers.len());
    }
    // A reader that reads gets all of it.
    let whole = server.client.get(format!("{}/docs/swagger-ui-bundle.js", server.url)).send().await.unwrap();
    assert!(whole.bytes().await.unwrap().len() > 500_000);
}

#[tokio::test]
async fn requests_a_second_are_bounded_by_client() {
    let folder = tempfile::tempdir().unwrap();
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        with_tokens(config, folder.path());
        config.shares.client_requests_per_s = 1;
        config.shares.anonymous_requests_per_s = 1;
    });
    let get = |client: Client, path: &'static str, token: Option<&'static str>| {
        let request = client.get(format!("{}{path}", server.url));
        let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
        async move { ApiResponse::read(request.send().await.unwrap()).await }
    };
    let first_refused = async |last, path, token| {
        let client = client_at(last);
        for _ in 0..1000 {
            let answer = get(client.clone(), path, token).await;
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                return answer;
            }
        }
        panic!("none was refused");
    };
    for (path, token) in [("/openapi.json", None), ("/face-recognition/verify", Some(CAMERA))] {
        let answer = first_refused(2, path, token).await;
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(answer.body["error"]["details"], json!({ "limit": "requests_per_second", "max": 1 }));
        answer.expect_error(429, "share_exceeded");
    }
    // Probes, other addresses and other tokens are not concerned.
    for _ in 0..20 {
        assert_eq!(get(client_at(2), "/livez", None).await.status, StatusCode::OK);
    }
    assert_eq!(get(client_at(3), "/openapi.json", None).await.status, StatusCode::OK);
    let answer = get(client_at(2), "/face-recognition/get-results", Some(OTHER)).await;
    assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(Scrape::of(&server).await.value(&refused_by("requests_per_second")) >= 2.0);
}

#[tokio::test]
async fn wrong_tokens_wait_and_right_ones_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        with_tokens(config, folder.path());
        config.shares.trusted_proxies = vec!["127.0.0.1".into()];
    });
    let verify = |token: String, forwarded: &'static str| {
        let request = server.client.post(format!("{}/face-recognition/verify", server.url));
        let request = request.bearer_auth(token).header("x-forwarded-for", forwarded);
        async move { ApiResponse::read(request.send().await.unwrap()).await }
    };
    let mut statuses: Vec<u16> = Vec::new();
    for attempt in 0..140 {
        let answer = verify(format!("wrong-0123456789-{attempt}"), "192.0.2.1, 192.0.2.7").await;
        statuses.push(answer.status.as_u16());
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            assert!(answer.headers.contains_key("retry-after"));
            assert_eq!(answer.body["error"]["details"]["limit"], "failed_authentications");
        }
    }
    assert!(statuses[..100].iter().all(|status| *status == 401), "{statuses:?}");
    assert!(statuses[100..].iter().filter(|status| **status == 429).count() >= 39, "{statuses:?}");
    // Of another client of the proxy.
    assert_eq!(verify("wrong-0123456789".into(), "192.0.2.8").await.status, StatusCode::UNAUTHORIZED);
    let answer = verify(CAMERA.into(), "192.0.2.7").await;
    answer.expect_error(415, "unsupported_media_type");
}

/// The value of a series of a server's metrics.
async fn value_of(metrics: &str, series: &str) -> f64 {
    let text = client().get(metrics).send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

/// The most memory that a process has had, MiB.
fn peak_memory_mib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Images that each round sends.
const CROPS: u32 = 40;
/// Clients that read nothing of their responses, and that send a byte now and then: with the others fewer than the usual limit of open
/// files of the process that runs this test, 1024.
const READERS: usize = 250;
const DRIPPING: usize = 150;
/// Bytes that each held body sends of those that it announces.
const HELD_BYTES: usize = 4 << 20;

/// Five attacks at once: small animations of huge canvases, bodies that never end, clients that read nothing, wrong tokens, and
/// clients that send a byte now and then.
struct Attack {
    over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    gifs: Arc<AtomicUsize>,
    wrong_tokens: Arc<AtomicUsize>,
    held: Vec<TcpStream>,
}

impl Attack {
    async fn begin(url: &str) -> Self {
        let server: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        let path = "/face-recognition/get-results";
        let mut held = Vec::new();
        for _ in 0..READERS {
            let mut reader = connect_from(3, server).await.unwrap();
            let _ = reader.write_all(LARGE_RESPONSES.repeat(16).as_bytes());
            held.push(reader);
        }
        for _ in 0..DRIPPING {
            let mut writer = connect_from(5, server).await.unwrap();
            let _ = writer.write_all(&head(path, Some(CAMERA), 57 << 20).as_bytes()[..20]);
            held.push(writer);
        }
        for _ in 0..64 {
            let mut holder = connect_from(2, server).await.unwrap();
            holder.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = holder.write_all(head(path, Some(CAMERA), 57 << 20).as_bytes());
            let _ = holder.write_all(PART.as_bytes());
            held.push(holder);
        }
        let over = Arc::new(AtomicBool::new(false));
        let (gifs, wrong_tokens) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = Vec::new();
        for _ in 0..16 {
            let (over, gifs, client) = (Arc::clone(&over), Arc::clone(&gifs), client_at(6));
            let url = format!("{url}{path}");
            tasks.push(tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let form =
                        (0..4).fold(Form::new(), |form, _| form.part("image", file(gif_of_one_pixel())));
                    let answer = client.post(&url).bearer_auth(CAMERA).multipart(form).send().await;
                    gifs.fetch_add(usize::from(answer.is_ok()), Ordering::Relaxed);
                }
            }));
        }
        for task in 0..8 {
            let (over, wrong, client) = (Arc::clone(&over), Arc::clone(&wrong_tokens), client_at(4));
            let url = format!("{url}{path}");
            tasks.push(tokio::spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_millis(8));
                while !over.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let answer =
                        client.post(&url).bearer_auth(format!("wrong-0123456789-{task}")).send().await;
                    wrong.fetch_add(usize::from(answer.is_ok()), Ordering::Relaxed);
                }
            }));
        }
        // What the bodies hold arrives while the others attack.
        let bodies: Vec<TcpStream> =
            held[READERS + DRIPPING..].iter().map(|holder| holder.try_clone().unwrap()).collect();
        let filling = tokio::task::spawn_blocking(move || {
            for mut holder in bodies {
                let _ = holder.write_all(&vec![7; HELD_BYTES]);
            }
        });
        let slow: Vec<TcpStream> =
            held[READERS..READERS + DRIPPING].iter().map(|writer| writer.try_clone().unwrap()).collect();
        let ended = Arc::clone(&over);
        let dripping = tokio::task::spawn_blocking(move || {
            while !ended.load(Ordering::Relaxed) {
                for mut writer in &slow {
                    let _ = writer.write_all(b"x");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        tasks.extend([filling, dripping]);
        Self { over, tasks, gifs, wrong_tokens, held }
    }

    async fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        drop(self.held);
    }
}

/// One worker, for which a client keeps eight large images waiting: the crops of another are next, not behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn crops_do_not_wait_for_the_large_images_of_another_client() {
    let _ = facepipe_test_support::require!("lfw10");
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, format!("camera {CAMERA}\ncamera {OTHER}\n")).unwrap();
    let settings = [
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--token-file",
        tokens.to_str().unwrap(),
        "--queue-budget-ms",
        "600000",
    ];
    let (running, url) = Running::start_in(folder.path(), &models, &settings, &[("RAYON_NUM_THREADS", "1")]);
    let (metrics, client) = (running.metrics(), client());
    let path = format!("{url}/face-recognition/get-results");
    // More pixels than a batch has, so that each is one.
    let ramp =
        image::GrayImage::from_fn(2001, 2000, |x, y| image::Luma([u8::try_from((x + y) / 16).unwrap()]));
    let mut large = std::io::Cursor::new(Vec::new());
    ramp.write_to(&mut large, image::ImageFormat::Png).unwrap();
    let large = large.into_inner();
    let answered = Arc::<AtomicUsize>::default();
    let senders: Vec<_> = (0..8)
        .map(|_| {
            let (client, path, large) = (client.clone(), path.clone(), large.clone());
            let answered = Arc::clone(&answered);
            tokio::spawn(async move {
                loop {
                    let form = Form::new().part("image", file(large.clone()));
                    let answer = client.post(&path).bearer_auth(CAMERA).multipart(form).send().await;
                    assert_eq!(answer.unwrap().status(), StatusCode::OK);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let begun = Instant::now();
    while value_of(&metrics, "facepipe_queue_images").await < 7.0 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let before = answered.load(Ordering::Relaxed);
    let form = (1..=4).fold(Form::new(), |form, number| form.part("image", photograph("Tony_Blair", number)));
    let answer = client.post(&path).bearer_auth(OTHER).multipart(form).send().await.unwrap();
    let meanwhile = answered.load(Ordering::Relaxed) - before;
    assert_eq!(answer.status(), StatusCode::OK);
    // The one that was being recognised, and those that the clients had yet to read, or read just afterwards.
    assert!(meanwhile <= 3, "{meanwhile} large images were answered before the crops");
    for sender in senders {
        assert!(!sender.is_finished());
        sender.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn five_attacks_at_once_leave_others_their_share() {
    let _ = facepipe_test_support::require!("lfw10");
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, format!("camera {CAMERA}\ncamera {OTHER}\n")).unwrap();
    let settings = [
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--token-file",
        tokens.to_str().unwrap(),
        "--write-timeout-s",
        "2",
        "--client-requests-per-s",
        "0",
    ];
    let (running, url) = Running::start_with(folder.path(), &models, &settings);
    let metrics = running.metrics();
    let client = client();
    let round = async || {
        let (begun, mut refused) = (Instant::now(), Vec::new());
        for number in 0..CROPS {
            let form = Form::new().part("image", photograph("Tony_Blair", number % 10 + 1));
            let request = client.post(format!("{url}/face-recognition/get-results")).bearer_auth(OTHER);
            let answer = ApiResponse::read(request.multipart(form).send().await.unwrap()).await;
            if answer.status != StatusCode::OK {
                refused.push(answer.body);
            }
        }
        (refused, begun.elapsed())
    };
    let (refused, before) = round().await;
    assert_eq!(refused, Vec::<serde_json::Value>::new());

    let attack = Attack::begin(&url).await;
    let (refused, during) = round().await;
    assert_eq!(refused, Vec::<serde_json::Value>::new());
    assert_eq!(client.get(format!("{url}/livez")).send().await.unwrap().status(), StatusCode::OK);
    let (gifs, wrong) = (attack.gifs.load(Ordering::Relaxed), attack.wrong_tokens.load(Ordering::Relaxed));
    assert!(gifs > 0 && wrong > 100, "{gifs} requests with animations, {wrong} wrong tokens");
    for limit in ["bytes_in_flight", "failed_authentications"] {
        assert!(value_of(&metrics, &refused_by(limit)).await > 0.0, "{limit}");
    }
    attack.end().await;

    // Nothing of it stays.
    let begun = Instant::now();
    while value_of(&metrics, "facepipe_connections").await > 4.0 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for gauge in ["facepipe_request_bytes_in_memory", "facepipe_queue_images", "facepipe_queue_pixels"] {
        assert_eq!(value_of(&metrics, gauge).await, 0.0, "{gauge}");
    }
    // Crops alone were decoded.
    let decoded = value_of(&metrics, "facepipe_stage_seconds_count{stage=\"decode\"}").await;
    assert_eq!(decoded, f64::from(2 * CROPS));
    let (refused, after) = round().await;
    assert_eq!(refused, Vec::<serde_json::Value>::new());
    let peak = peak_memory_mib(running.id());
    println!(
        "{CROPS} crops before, during and after: {before:?}, {during:?}, {after:?}; {peak} MiB; {gifs} GIFs, {wrong} tokens"
    );
    assert!(peak <= 600, "{peak} MiB");
}
