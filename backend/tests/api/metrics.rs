//! `/metrics` after known requests; and the documentation lists every metric.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::TcpListener,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use facepipe_backend::{Application, Config};
use reqwest::{StatusCode, multipart::Form};

use crate::{
    deployment::{beside, said},
    helpers::{Server, landscape, photograph, start},
};

/// A server's metrics: the text, and the value of each series.
pub struct Scrape {
    text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    pub async fn of(server: &Server) -> Self {
        let answer = server.client.get(server.metrics.as_ref().unwrap()).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
        let text = answer.text().await.unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Self { series: series.collect(), text }
    }

    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }

    /// The sum of all series of a name.
    fn sum(&self, name: &str) -> f64 {
        let of_name = |series: &str| series.split('{').next() == Some(name);
        self.series.iter().filter(|(series, _)| of_name(series)).map(|(_, value)| value).sum()
    }

    /// Name, type and labels of each metric, as docs/metrics.md has them.
    pub fn shapes(&self) -> BTreeSet<(String, String, String)> {
        let types = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let shape = |(name, kind): (&str, &str)| {
            let labels = self.series.keys().filter_map(|series| {
                let (of, rest) = series.split_once('{')?;
                let base = of.strip_suffix("_bucket").filter(|_| kind == "histogram").unwrap_or(of);
                (base == name).then(|| rest.trim_end_matches('}'))
            });
            let names: BTreeSet<&str> = labels
                .flat_map(|labels| labels.split("\","))
                .map(|label| label.split('=').next().unwrap())
                .filter(|label| *label != "le")
                .collect();
            (name.to_owned(), kind.to_owned(), names.into_iter().collect::<Vec<_>>().join(", "))
        };
        types.map(shape).collect()
    }
}

pub fn with_metrics(config: &mut Config) {
    config.listener.metrics_listen = Some("127.0.0.1:0".into());
}

#[tokio::test]
async fn metrics_count_requests_exactly() {
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        config.unknowns.group_unknowns = true;
    });
    server.enrol("Tony_Blair", &[1, 2]).await;
    server.enrol("Ariel_Sharon", &[1, 2]).await;
    server.train().await;
    let decision = server.recognise("Tony_Blair", 3).await["decision"].as_str().unwrap().to_owned();
    let form = Form::new().part("image", landscape()).part("image", photograph("Ariel_Sharon", 3));
    let answer = server.send("/face-recognition/get-results", form).await.expect(StatusCode::OK);
    let second = answer["faces"][0]["decision"].as_str().unwrap();
    server.get("/dataset/Nobody").await.expect_error(404, "person_not_found");
    server.get("/nowhere/Nobody").await.expect_error(404, "not_found");
    server.delete("/livez").await.expect_error(405, "method_not_allowed");

    // Sweep and retention run at the start of the server, in the background.
    server.execute("UPDATE task_runs SET finished_at = 1780000000000000 WHERE task = 'backup'");
    let begun = Instant::now();
    while !server.lines("SELECT task AS line FROM task_runs WHERE finished_at IS NULL").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "no sweep and no retention");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let scrape = Scrape::of(&server).await;
    let requests = |method: &str, route: &str, status: u16| {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        scrape.value(&format!("facepipe_requests_total{{{labels}}}"))
    };
    assert_eq!(requests("POST", "/dataset/{id}", 201), 2.0);
    assert_eq!(requests("POST", "/dataset/{id}/image", 201), 4.0);
    assert_eq!(requests("POST", "/model/optimized-train", 200), 1.0);
    assert_eq!(requests("POST", "/face-recognition/get-results", 200), 2.0);
    assert_eq!(requests("GET", "/dataset/{id}", 404), 1.0);
    assert_eq!(requests("GET", "-", 404), 1.0);
    assert_eq!(requests("DELETE", "/livez", 405), 1.0);
    assert_eq!(scrape.sum("facepipe_requests_total"), 12.0);
    assert_eq!(scrape.sum("facepipe_request_duration_seconds_count"), 12.0);
    assert_eq!(scrape.sum("facepipe_requests_refused_total"), 0.0);

    // Enrolled images are in the same queue, but have no decision.
    assert_eq!(scrape.value("facepipe_queue_seconds_count"), 6.0);
    assert_eq!(scrape.value("facepipe_batch_images_sum"), 7.0);
    for (stage, count) in [("decode", 7.0), ("detect", 7.0), ("embed", 6.0), ("classify", 6.0)] {
        assert_eq!(scrape.value(&format!("facepipe_stage_seconds_count{{stage=\"{stage}\"}}")), count);
    }
    let expected = [decision.as_str(), second];
    for decision in ["known", "unknown"] {
        let count = expected.iter().filter(|one| **one == decision).count() as f64;
        assert_eq!(scrape.value(&format!("facepipe_faces_total{{decision=\"{decision}\"}}")), count);
    }
    assert_eq!(scrape.value("facepipe_queue_images"), 0.0);
    assert_eq!(scrape.value("facepipe_queue_images_limit"), 256.0);

    assert_eq!(scrape.value("facepipe_model_version"), 1.0);
    assert!((0.0..120.0).contains(&scrape.value("facepipe_model_age_seconds")));
    assert!((0.354..0.5).contains(&scrape.value("facepipe_model_threshold")));
    assert_eq!(scrape.value("facepipe_model_target_fpir"), 0.01);
    assert_eq!(scrape.value("facepipe_model_cohort_faces"), 0.0);
    for rate in ["facepipe_model_fpir", "facepipe_model_fnir"] {
        let [lower, estimate, upper] =
            ["lower", "estimate", "upper"].map(|bound| scrape.value(&format!("{rate}{{bound=\"{bound}\"}}")));
        assert!(lower <= estimate && estimate < upper && upper < 1.0, "{rate}: {lower} {estimate} {upper}");
    }
    assert_eq!(scrape.value("facepipe_model_warnings{code=\"no_cohort\"}"), 1.0);
    assert_eq!(scrape.sum("facepipe_model_warnings"), 1.0);
    assert_eq!(scrape.value("facepipe_jobs{status=\"done\"}"), 1.0);
    assert_eq!(scrape.sum("facepipe_jobs"), 1.0);
    assert_eq!(scrape.value("facepipe_jobs_finished_total{kind=\"optimized-train\",status=\"done\"}"), 1.0);
    assert_eq!(scrape.sum("facepipe_jobs_finished_total"), 1.0);
    assert_eq!(scrape.value("facepipe_outbox_messages"), 0.0);
    assert_eq!(scrape.value("facepipe_outbox_oldest_seconds"), 0.0);
    assert_eq!(scrape.value("facepipe_outbox_dropped_total"), 0.0);
    assert_eq!(scrape.value("facepipe_database_errors_total"), 0.0);
    assert_eq!(scrape.value("facepipe_last_backup_timestamp_seconds"), 1_780_000_000.0);
    let swept = scrape.value("facepipe_task_last_success_timestamp_seconds{task=\"sweep\"}");
    assert!(swept > 1_700_000_000.0, "{swept}");
    assert_eq!(scrape.sum("facepipe_task_failures_total"), 0.0);
    let free = scrape.value("facepipe_disk_free_bytes{folder=\"data\"}");
    assert!(free > 0.0 && free <= scrape.value("facepipe_disk_size_bytes{folder=\"data\"}"));
    let connections = scrape.sum("facepipe_database_connections");
    assert!((1.0..=scrape.value("facepipe_database_connections_limit")).contains(&connections));
    let build = format!(
        "facepipe_build_info{{embedder=\"mobilefacenet\",role=\"all\",version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(scrape.value(&build), 1.0);
    assert!(scrape.value("process_resident_memory_bytes") > 1e6);

    for name in ["Tony", "Blair", "Ariel", "Sharon", "Nobody"] {
        assert!(!scrape.text.contains(name), "{}", scrape.text);
    }
    let (tls, documented): (BTreeSet<_>, BTreeSet<_>) =
        documented().into_iter().partition(|(name, ..)| name.starts_with("facepipe_tls_"));
    assert_eq!(scrape.shapes(), documented, "docs/metrics.md has other metrics");
    assert_eq!(tls.len(), 2, "{tls:?}");
    check_by_promtool(&scrape.text);
}

/// Name, type and labels of the metrics that docs/metrics.md lists.
pub fn documented() -> BTreeSet<(String, String, String)> {
    let path = facepipe_test_support::workspace_root().join("docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let ours = |line: &&str| line.starts_with("facepipe_") || line.starts_with("process_");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")).filter(ours);
    rows.map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let labels: BTreeSet<&str> = cells[2].split(", ").map(|label| label.trim_matches('`')).collect();
        assert!(!cells[3].is_empty() && !cells[4].is_empty(), "{line}");
        let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
        (cells[0].trim_end_matches('`').into(), cells[1].into(), labels)
    })
    .collect()
}

/// Runs Prometheus' own checks, where its tool is installed.
fn check_by_promtool(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut running) = command.spawn() else {
        return facepipe_test_support::skip("no promtool (Debian's package prometheus)");
    };
    running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.trim().is_empty(), "{told}");
}

#[tokio::test]
async fn rejected_requests_are_counted() {
    let server = start!(|config: &mut Config| {
        with_metrics(config);
        config.recognition.queue_images = 1;
    });
    let send = |_| {
        let form = Form::new().part("image", photograph("Tony_Blair", 1));
        server.send("/face-recognition/get-results", form)
    };
    let answers = futures_util::future::join_all((0..6).map(send)).await;
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).count();
    assert!(refused > 0, "nothing was refused");
    let scrape = Scrape::of(&server).await;
    assert_eq!(scrape.sum("facepipe_requests_refused_total"), refused as f64);
    assert_eq!(scrape.value("facepipe_queue_seconds_count"), (6 - refused) as f64);
}

#[tokio::test]
async fn a_failing_database_is_counted_and_leaves_other_metrics() {
    let server = start!(with_metrics);
    server.execute("DROP TABLE outbox");
    let scrape = Scrape::of(&server).await;
    assert_eq!(scrape.value("facepipe_database_errors_total"), 1.0);
    assert_eq!(scrape.value("facepipe_queue_images"), 0.0);
    for absent in [
        "facepipe_jobs{",
        "facepipe_outbox_messages",
        "facepipe_outbox_oldest_seconds",
        "facepipe_model_version",
    ] {
        assert!(!scrape.series.keys().any(|series| series.starts_with(absent)), "{}", scrape.text);
    }
    // The failure is cached for a while.
    assert_eq!(Scrape::of(&server).await.value("facepipe_database_errors_total"), 1.0);
}

#[tokio::test]
async fn a_configured_metrics_port_must_be_free() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = Config::default().with(|config| {
        config.listener.listen = "127.0.0.1:0".into();
        config.listener.metrics_listen = Some(address.clone());
        config.storage.data_dir = folder.path().into();
        config.recognition.models_dir = models;
    });
    let error = Application::build(config).await.err().map(|error| format!("{error:#}")).unwrap();
    assert!(error.contains(&address) && error.contains("metrics_listen"), "{error}");
}

#[tokio::test]
async fn the_time_of_the_last_backup_is_exposed() {
    let server = start!(with_metrics);
    let folder = tempfile::tempdir().unwrap();
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let backup = folder.path().join("backup");
    said(&beside(&server, &["backup", backup.to_str().unwrap()]).await);
    let scrape = Scrape::of(&server).await;
    let told = scrape.value("facepipe_last_backup_timestamp_seconds");
    assert!((begun - 1.0..begun + 60.0).contains(&told), "{told}");
}
