//! send-results, and delivery to an external API in any state.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle, web};
use facepipe_backend::Config;
use reqwest::{StatusCode, multipart::Form};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::{
    command_line::program,
    helpers::{ApiResponse, Engine, Server, client, execute, photograph, start, until},
    replicas::{Replica, models},
};

const SEND: &str = "/face-recognition/send-results";

/// The behaviour of the external API.
#[derive(Clone, Copy)]
enum Behaviour {
    /// Accepts all messages.
    Accepts,
    /// Rejects messages whose key begins with `bad`.
    RejectsBad,
    /// Responds with this status.
    Fails(u16),
    /// Responds after the timeout of the sender.
    Hangs,
    /// Responds with 429 and a `Retry-After` of an hour.
    Busy,
    /// Redirects to another path.
    Redirects,
}

/// An external API on a free port of this machine, which can be stopped and started again.
struct ExternalApi {
    address: SocketAddr,
    seen: Arc<Record>,
    /// Reserves the port while the API is stopped: bound, but not listening.
    socket: Option<TcpSocket>,
    running: Option<ServerHandle>,
}

struct Record {
    behaviour: Mutex<Behaviour>,
    /// Accepted messages, in order.
    accepted: Mutex<Vec<Value>>,
    /// `X-Request-Id` of each.
    request_ids: Mutex<Vec<String>>,
    /// The number of requests, accepted or not.
    requests: Mutex<usize>,
}

impl ExternalApi {
    /// Creates an API that refuses connections until it is started.
    fn stopped() -> Self {
        let socket = bound("127.0.0.1:0".parse().unwrap());
        let seen = Record {
            behaviour: Behaviour::Accepts.into(),
            accepted: Mutex::default(),
            request_ids: Mutex::default(),
            requests: Mutex::default(),
        };
        Self {
            address: socket.local_addr().unwrap(),
            seen: Arc::new(seen),
            socket: Some(socket),
            running: None,
        }
    }

    fn started() -> Self {
        let mut api = Self::stopped();
        api.start();
        api
    }

    fn start(&mut self) {
        let seen = web::Data::from(Arc::clone(&self.seen));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(seen.clone())
                .route("/results", web::post().to(receive))
                .route("/elsewhere", web::to(receive_elsewhere))
        })
        .workers(1)
        .disable_signals()
        .listen(self.socket.take().unwrap().listen(64).unwrap().into_std().unwrap())
        .unwrap()
        .run();
        self.running = Some(server.handle());
        tokio::spawn(server);
    }

    async fn stop(&mut self) {
        self.running.take().unwrap().stop(false).await;
        self.socket = Some(bound(self.address));
    }

    fn url(&self) -> String {
        format!("http://user:pass@{}/results", self.address)
    }

    fn set(&self, behaviour: Behaviour) {
        *self.seen.behaviour.lock().unwrap() = behaviour;
    }

    fn requests(&self) -> usize {
        *self.seen.requests.lock().unwrap()
    }

    fn accepted(&self) -> Vec<Value> {
        self.seen.accepted.lock().unwrap().clone()
    }

    /// The keys of the accepted messages, sorted.
    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> =
            self.accepted().iter().map(|message| message["key"].as_str().unwrap().to_owned()).collect();
        keys.sort();
        keys
    }

    /// Waits until so many messages are accepted and the server has recorded that. Returns the messages.
    async fn accepted_once(&self, messages: usize, server: &Server) -> Vec<Value> {
        until(|| self.accepted().len() >= messages && queued(server) == 0).await;
        self.accepted()
    }
}

impl Drop for ExternalApi {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            drop(running.stop(false));
        }
    }
}

fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn receive(
    seen: web::Data<Record>,
    request: HttpRequest,
    web::Json(message): web::Json<Value>,
) -> HttpResponse {
    *seen.requests.lock().unwrap() += 1;
    assert_eq!(request.headers().get("authorization").unwrap(), "Basic dXNlcjpwYXNz");
    let behaviour = *seen.behaviour.lock().unwrap();
    match behaviour {
        Behaviour::RejectsBad if message["key"].as_str().unwrap().starts_with("bad") => {
            return HttpResponse::UnprocessableEntity().finish();
        }
        Behaviour::Accepts | Behaviour::RejectsBad => (),
        Behaviour::Fails(status) => return HttpResponse::build(status.try_into().unwrap()).finish(),
        Behaviour::Hangs => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            return HttpResponse::InternalServerError().finish();
        }
        Behaviour::Busy => {
            return HttpResponse::TooManyRequests().insert_header(("retry-after", "3600")).finish();
        }
        Behaviour::Redirects => {
            return HttpResponse::TemporaryRedirect().insert_header(("location", "/elsewhere")).finish();
        }
    }
    let request_id = request.headers().get("x-request-id").unwrap().to_str().unwrap();
    seen.request_ids.lock().unwrap().push(request_id.to_owned());
    seen.accepted.lock().unwrap().push(message);
    HttpResponse::Accepted().body("thank you")
}

async fn receive_elsewhere(seen: web::Data<Record>) -> HttpResponse {
    seen.accepted.lock().unwrap().push("a message that was redirected".into());
    HttpResponse::Ok().finish()
}

/// Makes a message older than the age that is allowed.
fn expire(config: &Config, key: &str) {
    let statement = format!("UPDATE outbox SET created_at = 0 WHERE message_key = '{key}'");
    execute(&config.database_url(), &statement);
}

/// Messages in the outbox.
fn queued(server: &Server) -> usize {
    server.lines("SELECT CONCAT(COUNT(*), '') AS line FROM outbox")[0].parse().unwrap()
}

fn form(key: &str) -> Form {
    Form::new().text("camera_id", "gate-1").text("location", "Lobby").text("key", key.to_owned())
}

/// Sends a picture of a face under a key.
async fn send(server: &Server, key: &str, person: &str, number: u32) -> Value {
    let form = form(key).part("image", photograph(person, number));
    server.send(SEND, form).await.expect(StatusCode::ACCEPTED)
}

macro_rules! start_with {
    ($api:expr) => {
        start_with!($api, |_| ())
    };
    ($api:expr, $configure:expr) => {
        start!(|config: &mut Config| {
            config.results.results_url = Some($api.url());
            let configure: fn(&mut Config) = $configure;
            configure(config);
        })
    };
}

#[tokio::test]
async fn each_face_is_sent_as_a_message() {
    let api = ExternalApi::started();
    let server = start_with!(api);
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let picture = || photograph("Tony_Blair", 3);
    let form = form("k-1").text("captured_at", "2024-05-06T09:08:09.25+02:00").part("image", picture());
    let answer = server.send(SEND, form).await.expect(StatusCode::ACCEPTED);
    assert_eq!(
        (&answer["model_version"], &answer["sent"], &answer["repeated"]),
        (&1.into(), &1.into(), &0.into())
    );
    let first = &answer["faces"][0];
    assert_eq!((&first["decision"], &first["image"]), (&"known".into(), &0.into()));

    assert_eq!(
        api.accepted_once(1, &server).await,
        [json!({
            "face_id": "Tony_Blair",
            "confidence": first["top_prediction"]["confidence"],
            "camera_id": "gate-1",
            "location": "Lobby",
            "timestamp": "2024-05-06T07:08:09.25Z",
            "key": "k-1/0",
        })]
    );

    // An unknown face has no name, and a picture without a key gets one.
    let group = std::fs::read(facepipe_test_support::require!("scenes/multiface.jpg")).unwrap();
    let form = Form::new()
        .text("camera_id", "gate-2")
        .text("location", "")
        .part("image", crate::helpers::file(group))
        .part("image", crate::helpers::landscape());
    let answer = server.send(SEND, form).await;
    let request_id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    let answer = answer.expect(StatusCode::ACCEPTED);
    let faces = answer["faces"].as_array().unwrap().len();
    assert!(faces > 1 && answer["sent"] == faces, "{answer}");
    let messages = api.accepted_once(1 + faces, &server).await;
    let request_ids = api.seen.request_ids.lock().unwrap().clone();
    assert_eq!(request_ids[1..], vec![request_id; faces]);
    let mut pictures = HashSet::new();
    let mut numbers = Vec::new();
    for message in &messages[1..] {
        assert_eq!((&message["face_id"], &message["camera_id"]), (&Value::Null, &"gate-2".into()));
        let (picture, number) = message["key"].as_str().unwrap().rsplit_once('/').unwrap();
        assert_eq!(uuid::Uuid::parse_str(picture).unwrap().get_version_num(), 7);
        pictures.insert(picture);
        numbers.push(number.parse::<usize>().unwrap());
    }
    numbers.sort_unstable();
    assert_eq!((pictures.len(), numbers), (1, (0..faces).collect()));
    // Nothing of it became a detection.
    let detections = server.get("/database/detections").await.expect(StatusCode::OK);
    assert_eq!(detections["detections"], json!([]));
}

#[tokio::test]
async fn without_an_external_api_nothing_is_accepted() {
    let server = start!();
    let form = form("k").part("image", photograph("Tony_Blair", 1));
    let message = server.send(SEND, form).await.expect_error(409, "results_url_missing");
    assert!(message.contains("--results-url") && message.contains("FACEPIPE_RESULTS_URL"), "{message}");
    assert_eq!(queued(&server), 0);
}

#[tokio::test]
async fn a_repeated_key_is_sent_once_and_gets_the_first_answer() {
    let api = ExternalApi::started();
    let server = start_with!(api);
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let picture = || photograph("Tony_Blair", 3);
    let calls = (0..6).map(|_| {
        let form = form("k").part("image", picture());
        let request = server.client.post(format!("{}{SEND}", server.url)).multipart(form);
        tokio::spawn(async move { ApiResponse::read(request.send().await.unwrap()).await })
    });
    let mut answers = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        let mut answer = call.await.unwrap().expect(StatusCode::ACCEPTED);
        answers.push(answer["repeated"].as_u64().unwrap());
        answer["repeated"] = Value::Null;
        assert_eq!(answer["faces"][0]["top_prediction"]["label"], "Tony_Blair");
    }
    answers.sort_unstable();
    assert_eq!(answers, [0, 1, 1, 1, 1, 1]);
    api.accepted_once(1, &server).await;

    // Also when the message has been delivered, after a restart, and with another model.
    let server = server.restart().await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    let form = form("k").part("image", picture()).text("key", "k-2").part("image", picture());
    let answer = server.send(SEND, form).await.expect(StatusCode::ACCEPTED);
    assert_eq!((&answer["sent"], &answer["repeated"]), (&2.into(), &1.into()));
    assert_eq!(answer["faces"][0]["all_predictions"].as_array().unwrap().len(), 1);
    api.accepted_once(2, &server).await;
    assert_eq!(api.keys(), ["k-2/0", "k/0"]);

    // Each of the calls has keys of its own.
    let form = crate::outbox::form("k").part("image", picture());
    let stored = server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
    assert_eq!((&stored["stored"], &stored["repeated"]), (&1.into(), &0.into()));
}

#[tokio::test]
async fn an_unavailable_failing_or_hanging_api_loses_no_message_and_delays_no_request() {
    let mut api = ExternalApi::stopped();
    let server = start_with!(api, |config| config.results.results_timeout_s = 1);
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.train().await;
    let mut keys = Vec::new();
    let behaviours = [None, Some(Behaviour::Fails(500)), Some(Behaviour::Hangs), Some(Behaviour::Fails(404))];
    for (number, behaviour) in behaviours.into_iter().enumerate() {
        if let Some(behaviour) = behaviour {
            api.set(behaviour);
            if api.running.is_none() {
                api.start();
            }
        }
        let before = api.requests();
        for picture in 0..3 {
            let key = format!("k-{number}-{picture}");
            send(&server, &key, "Tony_Blair", 3).await;
            keys.push(format!("{key}/0"));
            // The other calls answer as ever.
            let form = form(&key).part("image", photograph("Tony_Blair", 4));
            server.send("/face-recognition/store-results", form).await.expect(StatusCode::CREATED);
            assert_eq!(server.recognise("Tony_Blair", 4).await["decision"], "known");
        }
        // A request has met that behaviour.
        until(|| behaviour.is_none() || api.requests() > before).await;
        assert_eq!(api.accepted(), Vec::<Value>::new());
    }
    assert_eq!(queued(&server), 12);

    api.set(Behaviour::Accepts);
    let messages = api.accepted_once(12, &server).await;
    // None is missing, none came twice.
    assert_eq!((messages.len(), api.keys()), (12, keys));
    assert!(messages.iter().all(|message| message["face_id"] == "Tony_Blair"), "{messages:?}");

    // And once more: what comes after an outage finds its way at once.
    api.stop().await;
    send(&server, "last", "Vladimir_Putin", 1).await;
    api.start();
    api.accepted_once(13, &server).await;
    assert_eq!(queued(&server), 0);
}

#[tokio::test]
async fn messages_survive_a_restart() {
    let mut api = ExternalApi::stopped();
    let server = start_with!(api);
    for key in ["a", "b"] {
        send(&server, key, "Tony_Blair", 1).await;
    }
    let server = server.restart().await;
    assert_eq!(queued(&server), 2);
    api.start();
    api.accepted_once(2, &server).await;
    assert_eq!(api.keys(), ["a/0", "b/0"]);
}

#[tokio::test]
async fn expired_messages_are_dropped() {
    let api = ExternalApi::started();
    api.set(Behaviour::Fails(500));
    let server = start_with!(api);
    send(&server, "old", "Tony_Blair", 1).await;
    until(|| api.requests() > 0).await;
    expire(&server.config, "old/0");
    until(|| queued(&server) == 0).await;
    api.set(Behaviour::Accepts);
    // Its key stays known.
    assert_eq!(send(&server, "old", "Tony_Blair", 1).await["repeated"], 1);
    send(&server, "new", "Tony_Blair", 1).await;
    api.accepted_once(1, &server).await;
    assert_eq!(api.keys(), ["new/0"]);
}

#[tokio::test]
async fn a_server_without_an_external_api_drops_expired_messages_at_start() {
    let api = ExternalApi::stopped();
    let server = start_with!(api);
    send(&server, "old", "Tony_Blair", 1).await;
    let (config, data) =
        (server.config.clone().with(|config| config.results.results_url = None), Arc::clone(&server.data));
    server.stop().await;
    expire(&config, "old/0");
    let server = Server::run(config, data).await;
    assert_eq!(queued(&server), 0);
}

#[tokio::test]
async fn queued_messages_follow_renamed_and_erased_people() {
    let mut api = ExternalApi::stopped();
    let server = start_with!(api);
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Hugo_Chavez", &[1, 2]).await;
    server.train().await;
    send(&server, "erased", "Tony_Blair", 3).await;
    send(&server, "renamed", "Hugo_Chavez", 3).await;
    send(&server, "nobody", "Vladimir_Putin", 1).await;
    assert_eq!(queued(&server), 3);

    server.delete("/dataset/Tony_Blair").await.expect(StatusCode::NO_CONTENT);
    server.patch("/dataset/Hugo_Chavez", &json!({ "face_id": "Hugo" })).await.expect(StatusCode::OK);
    assert_eq!(queued(&server), 2);

    api.start();
    let messages = api.accepted_once(2, &server).await;
    let names: HashMap<&str, &Value> =
        messages.iter().map(|message| (message["key"].as_str().unwrap(), &message["face_id"])).collect();
    assert_eq!(names, HashMap::from([("renamed/0", &"Hugo".into()), ("nobody/0", &Value::Null)]));
    // The kept answer of the erased person names nobody, and nothing is sent again.
    let answer = send(&server, "erased", "Tony_Blair", 3).await;
    assert_eq!(
        (&answer["repeated"], &answer["faces"][0]["decision"]),
        (&1.into(), &"unknown".into()),
        "{answer}"
    );
    assert_eq!(queued(&server), 0);
}

#[tokio::test]
async fn a_rejected_message_does_not_block_others() {
    let api = ExternalApi::started();
    api.set(Behaviour::RejectsBad);
    let server = start_with!(api);
    send(&server, "bad", "Tony_Blair", 1).await;
    for number in 0..6 {
        send(&server, &format!("good-{number}"), "Tony_Blair", 1).await;
    }
    until(|| api.accepted().len() == 6 && queued(&server) == 1).await;
    assert_eq!(server.lines("SELECT message_key AS line FROM outbox"), ["bad/0"]);
    api.set(Behaviour::Accepts);
    api.accepted_once(7, &server).await;
    assert_eq!(api.keys()[0], "bad/0");
}

#[tokio::test]
async fn retry_after_pauses_all_deliveries() {
    let api = ExternalApi::started();
    api.set(Behaviour::Busy);
    let server = start_with!(api);
    send(&server, "a", "Tony_Blair", 1).await;
    until(|| api.requests() == 1).await;
    // Written down once the answer has been read.
    until(|| server.lines("SELECT message_key AS line FROM outbox WHERE attempts > 0") == ["a/0"]).await;
    for key in ["b-0", "b-1", "b-2", "b-3", "b-4", "expired-0", "expired-1"] {
        send(&server, key, "Tony_Blair", 1).await;
    }
    // Each time that the server looks for messages, it first drops those that are expired: when the second is gone, it has
    // looked for messages to send at least once.
    for key in ["expired-0/0", "expired-1/0"] {
        let before = queued(&server);
        expire(&server.config, key);
        until(|| queued(&server) < before).await;
    }
    assert_eq!((api.requests(), queued(&server)), (1, 6));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let api = ExternalApi::started();
    api.set(Behaviour::Redirects);
    let server = start_with!(api);
    send(&server, "a", "Tony_Blair", 1).await;
    until(|| api.requests() >= 2).await;
    assert_eq!(api.accepted(), Vec::<Value>::new());
    api.set(Behaviour::Accepts);
    api.accepted_once(1, &server).await;
    assert_eq!(api.keys(), ["a/0"]);
}

#[tokio::test]
async fn of_two_replicas_one_sends_and_the_other_takes_over() {
    // SQLite serves one server.
    let Some(_) = Engine::of_this_run() else { return };
    let mut api = ExternalApi::stopped();
    let first = start_with!(api);
    let second = first.replica().await;
    for number in 0..3 {
        send(&first, &format!("first-{number}"), "Tony_Blair", 1).await;
        send(&second, &format!("second-{number}"), "Tony_Blair", 1).await;
    }
    // A key is known to both.
    assert_eq!(send(&second, "first-0", "Tony_Blair", 1).await["repeated"], 1);
    until(|| holder(&first).is_some()).await;
    api.start();
    api.accepted_once(6, &first).await;
    assert_eq!(api.keys().len(), 6);

    // The one that is left sends what the other accepted.
    api.stop().await;
    send(&first, "late", "Tony_Blair", 1).await;
    first.stop().await;
    api.start();
    api.accepted_once(7, &second).await;
    let keys = api.keys();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 7, "{keys:?}");
    // With nothing to do, nobody holds the lease.
    until(|| holder(&second).is_none()).await;
}

#[tokio::test]
async fn messages_of_a_killed_replica_are_sent_by_another() {
    let Some(engine) = Engine::of_this_run() else { return };
    let models = models!();
    let folder = tempfile::tempdir().unwrap();
    let database = engine.new_database();
    let api = ExternalApi::started();
    // The one that is killed has a request under way, and its lease has not run out.
    api.set(Behaviour::Hangs);
    let spawn = |name: &str| {
        let mut command = program();
        command.args(["--results-url", &api.url()]);
        Replica::spawn_as(command, name, folder.path(), &models, &database).ready()
    };
    let mut killed = spawn("a").await;
    let client = client();
    for number in 0..3 {
        let form = form(&format!("key-{number}")).part("image", photograph("Tony_Blair", 1));
        let request = client.post(format!("{}{SEND}", killed.url)).multipart(form);
        ApiResponse::read(request.send().await.unwrap()).await.expect(StatusCode::ACCEPTED);
    }
    let other = spawn("b").await;
    until(|| api.requests() > 0).await;
    killed.process.0.kill().unwrap();
    killed.process.0.wait().unwrap();
    api.set(Behaviour::Accepts);
    until(|| api.accepted().len() >= 3).await;
    assert_eq!(api.keys(), ["key-0/0", "key-1/0", "key-2/0"]);
    drop(other);
}

/// The holder of the lease of the outbox.
fn holder(server: &Server) -> Option<String> {
    let holder = server.lines("SELECT CONCAT(holder, '') AS line FROM leases WHERE name = 'outbox'");
    holder.into_iter().find(|holder| !holder.is_empty())
}
