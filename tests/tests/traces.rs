//! Traces from the edge to the database: real elements and a real backend send their spans to one collector.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeSet, HashMap},
    net::TcpListener,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use actix_web::{App, HttpServer, web};
use facepipe_test_support::{require, wait_until};
use facepipe_tests::{Backend, require_backend_weights};
use gst::prelude::*;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;

const STORE: &str = "POST /face-recognition/store-results";

/// A span and the service that sent it.
#[derive(Debug, Clone)]
struct Sent {
    service: String,
    span: Span,
}

impl Sent {
    fn attribute(&self, name: &str) -> Option<&Value> {
        let found = self.span.attributes.iter().find(|attribute| attribute.key == name)?;
        found.value.as_ref()?.value.as_ref()
    }
}

/// What takes spans on a free port of this machine.
struct Collector {
    url: String,
    requests: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let taken = web::Data::from(Arc::clone(&requests));
        thread::spawn(move || {
            let app = move || {
                App::new()
                    .app_data(taken.clone())
                    .app_data(web::PayloadConfig::new(64 << 20))
                    .route("/v1/traces", web::post().to(take))
            };
            let server = HttpServer::new(app).workers(1).disable_signals().listen(listener).unwrap().run();
            actix_web::rt::System::new().block_on(server)
        });
        Self { url, requests }
    }

    fn spans(&self) -> Vec<Sent> {
        let requests = self.requests.lock().unwrap();
        let of_resources = requests.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| {
            let attributes = &spans.resource.as_ref().unwrap().attributes;
            let service = attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
            let Some(Value::StringValue(service)) = service.value.clone().unwrap().value else {
                panic!("{service:?}")
            };
            let spans = spans.scope_spans.iter().flat_map(|scope| &scope.spans);
            spans.map(move |span| Sent { service: service.clone(), span: span.clone() }).collect::<Vec<_>>()
        });
        of_resources.collect()
    }
}

async fn take(requests: web::Data<Mutex<Vec<ExportTraceServiceRequest>>>, body: web::Bytes) -> &'static str {
    requests.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
    ""
}

/// Uploads a photograph so many times.
fn upload(photograph: &str, times: u32, backend: &Backend, collector: &Collector, settings: &str) {
    let line = format!(
        "multifilesrc location={photograph} num-buffers={times} caps=image/jpeg ! facepipe-facesink-http name=sink \
         backend-url={} camera-id=unspeakable-gate camera-location=unspeakable-lobby otlp-endpoint={} {settings}",
        backend.url(),
        collector.url,
    );
    let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error, gst::MessageType::Warning];
    let end = bus.timed_pop_filtered(gst::ClockTime::from_seconds(60), &ends).expect("an end");
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    pipeline.set_state(gst::State::Null).unwrap();
    let stats = pipeline.by_name("sink").unwrap().property::<gst::Structure>("stats");
    assert_eq!(stats.get::<u64>("sent"), Ok(times.into()), "{stats}");
}

#[test]
fn one_trace_leads_from_the_crop_to_the_database() {
    let photograph = require!("lfw10/Ariel_Sharon/Ariel_Sharon_0001.jpg");
    let weights = require_backend_weights!();
    gst::init().unwrap();
    gstfacepipe::register_static().unwrap();
    let collector = Collector::start();
    let mut backend = Backend::start_with(&weights, &["--otlp-endpoint", &collector.url]);
    let photograph = photograph.to_str().unwrap();
    upload(photograph, 1, &backend, &collector, "");
    upload(photograph, 2, &backend, &collector, "batch-size=2 batch-delay=60000");
    upload(photograph, 12, &backend, &collector, "batch-size=1 workers=12");
    // What it has not sent yet it sends at its end.
    let ended = Command::new("kill").args(["-TERM", &backend.process_id().to_string()]).status().unwrap();
    assert!(ended.success());
    wait_until("the backend's spans arrive", || {
        collector.spans().iter().filter(|sent| sent.span.name == STORE).count() == 14
    });
    backend.stop();

    let spans = collector.spans();
    let by_id: HashMap<&[u8], &Sent> = spans.iter().map(|sent| (&sent.span.span_id[..], sent)).collect();
    assert_eq!(by_id.len(), spans.len(), "each span was sent once");
    let text = format!("{spans:?}");
    for secret in ["unspeakable", "Ariel", "Sharon", ".jpg", "SELECT", "INSERT"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }

    // A trace of one crop: every span of both programs, with its parent.
    let first = spans.iter().filter(|sent| sent.span.name == "crop");
    let crop = first.min_by_key(|sent| sent.span.start_time_unix_nano).unwrap();
    let trace: Vec<&Sent> = spans.iter().filter(|sent| sent.span.trace_id == crop.span.trace_id).collect();
    let lines: BTreeSet<(&str, &str, &str)> = trace
        .iter()
        .map(|sent| {
            let parent = by_id.get(&sent.span.parent_span_id[..]).map_or("", |parent| &parent.span.name);
            (sent.service.as_str(), sent.span.name.as_str(), parent)
        })
        .collect();
    let expected = [
        ("facepipe-edge", "crop", ""),
        ("facepipe-edge", "queue", "crop"),
        ("facepipe-edge", "upload", "crop"),
        ("facepipe-backend", STORE, "upload"),
        ("facepipe-backend", "answered_keys", STORE),
        ("facepipe-backend", "queue", STORE),
        ("facepipe-backend", "decode", STORE),
        ("facepipe-backend", "detect", STORE),
        ("facepipe-backend", "embed", STORE),
        ("facepipe-backend", "classify", STORE),
        ("facepipe-backend", "store_uploads", STORE),
    ];
    assert_eq!(lines, BTreeSet::from(expected));
    assert_eq!(trace.len(), expected.len());
    for sent in &trace {
        let Span { start_time_unix_nano: start, end_time_unix_nano: end, .. } = sent.span;
        assert!(start <= end, "{sent:?}");
        if let Some(parent) = by_id.get(&sent.span.parent_span_id[..]) {
            // Moments are taken from two clocks.
            assert!(start + 5_000_000 >= parent.span.start_time_unix_nano, "{sent:?} in {parent:?}");
        }
    }
    let named = |name: &str| *trace.iter().find(|sent| sent.span.name == name).unwrap();
    assert_eq!(named(STORE).span.kind(), SpanKind::Server);
    assert_eq!(named(STORE).attribute("http.response.status_code"), Some(&Value::IntValue(201)));
    assert_eq!(named("upload").attribute("facepipe.attempt"), Some(&Value::IntValue(1)));
    let id: String = named("upload").span.span_id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(named(STORE).attribute("facepipe.request_id"), Some(&Value::StringValue(id)));
    assert_eq!(named("store_uploads").span.kind(), SpanKind::Client);
    assert_eq!(
        named("store_uploads").attribute("db.system.name"),
        Some(&Value::StringValue("sqlite".into()))
    );

    // Crops of one request lead to it by links, and it to them.
    let both =
        spans.iter().find(|sent| sent.attribute("facepipe.crops") == Some(&Value::IntValue(2))).unwrap();
    let [link] = &both.span.links[..] else { panic!("{both:?}") };
    let second = by_id[&link.span_id[..]];
    assert_eq!((second.span.name.as_str(), &second.span.trace_id), ("crop", &link.trace_id));
    assert_ne!(second.span.trace_id, both.span.trace_id);
    let [back] = &second.span.links[..] else { panic!("{second:?}") };
    assert_eq!((&back.span_id, &back.trace_id), (&both.span.span_id, &both.span.trace_id));

    // So do the requests that were embedded together.
    let together: Vec<&Sent> =
        spans.iter().filter(|sent| sent.span.name == "embed" && !sent.span.links.is_empty()).collect();
    assert!(!together.is_empty(), "no two requests were embedded together");
    for sent in together {
        for link in &sent.span.links {
            let other = by_id[&link.span_id[..]];
            assert_eq!((other.span.name.as_str(), &other.span.trace_id), (STORE, &link.trace_id));
            assert_ne!(other.span.trace_id, sent.span.trace_id);
        }
    }
}
