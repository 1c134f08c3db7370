//! What `deploy/compose.yaml` puts together, put together of the same programs without Docker: two servers on PostgreSQL behind
//! nginx, watched by Prometheus, each with the very file of `deploy/`, in which only addresses are others.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    env, fs,
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use facepipe_test_support::{free_port, require, skip, wait_until, workspace_root};
use facepipe_tests::{program, require_backend_weights};
use serde_json::Value;

const ADMIN: &str = "an-admin-of-this-test";
const CAMERA: &str = "a-camera-of-this-test";

/// A process, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn deploy(path: &str) -> PathBuf {
    workspace_root().join("deploy").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy(path)).unwrap()
}

/// Replaces a text that must occur exactly once.
#[track_caller]
fn replace(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old:?} is not there once in:\n{text}");
    text.replace(old, new)
}

/// A server as the image runs it, with the settings of compose.yaml and of the test.
struct Replica {
    process: Process,
    address: String,
    metrics: String,
}

impl Replica {
    fn start(folder: &Path, name: &str, models: &Path, database: &str) -> Self {
        let (address, metrics) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let process = Command::new(program("facepipe-backend"))
            .env("FACEPIPE_LISTEN", &address)
            .env("FACEPIPE_METRICS_LISTEN", &metrics)
            .env("FACEPIPE_DATA_DIR", folder.join(name))
            .env("FACEPIPE_BLOBS_URL", format!("file://{}", folder.join("blobs").display()))
            .env("FACEPIPE_TOKEN_FILE", folder.join("tokens"))
            .env("FACEPIPE_MODELS", models)
            .env("FACEPIPE_EMBEDDER", "mobilefacenet")
            .env("FACEPIPE_LOG", "warn")
            .env("DATABASE_URL", database)
            .spawn()
            .unwrap();
        Self { process: Process(process), address, metrics }
    }

    /// Waits until the image's own health check succeeds.
    fn healthy(&mut self) {
        let dockerfile = read("docker/backend.Dockerfile");
        let check = dockerfile.split("    CMD ").nth(1).unwrap().lines().next().unwrap();
        let check: Vec<String> = serde_json::from_str(check).unwrap();
        let name = Path::new(&check[0]).file_name().unwrap().to_str().unwrap();
        wait_until("the health check is content", || {
            assert!(self.process.0.try_wait().unwrap().is_none(), "the server ended at its start");
            let said = Command::new(program(name))
                .args(&check[1..])
                .env("FACEPIPE_LISTEN", &self.address)
                .output()
                .unwrap();
            assert_ne!(said.status.code(), Some(2), "{}", String::from_utf8_lossy(&said.stderr));
            said.status.success()
        });
    }
}

/// Sends a request by curl; returns the status and the body.
fn ask(arguments: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-sS", "-m", "30", "-w", "\n%{http_code}"])
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[track_caller]
fn expect(status: u16, arguments: &[&str]) -> Value {
    let (got, body) = ask(arguments);
    assert_eq!(got, status, "{arguments:?}: {body}");
    serde_json::from_str(&body).unwrap_or(Value::Null)
}

/// Starts nginx with the configuration of `deploy/`. Returns it and its root.
fn load_balancer(folder: &Path, replicas: &[&Replica]) -> (Process, String) {
    let port = free_port();
    let servers: Vec<String> =
        replicas.iter().map(|r| format!("server {} max_fails=2 fail_timeout=5s;", r.address)).collect();
    let text = read("nginx/nginx.conf");
    // Docker's names cannot be resolved here, so this does not test the resolver line.
    let text = replace(&text, "server backend:8080 max_fails=2 fail_timeout=5s resolve;", &servers.join(" "));
    let text = replace(&text, "listen 8080;", &format!("listen 127.0.0.1:{port};"));
    let text = replace(&text, "access_log /dev/stdout facepipe;", "access_log /tmp/access.log facepipe;");
    let text = text.replace("/tmp/", &format!("{}/", folder.display()));
    fs::write(folder.join("nginx.conf"), text).unwrap();
    fs::copy(deploy("nginx/resolver.conf"), folder.join("resolver.conf")).unwrap();
    let nginx = Command::new("/usr/sbin/nginx")
        .args(["-g", "daemon off; master_process off;", "-e", "/dev/stderr", "-c"])
        .arg(folder.join("nginx.conf"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("nginx listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (Process(nginx), format!("http://127.0.0.1:{port}"))
}

/// Starts Prometheus with the configuration and rules of `deploy/` and short intervals. Returns it and its root.
fn prometheus(folder: &Path, replicas: &[&Replica]) -> (Process, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let text = read("prometheus/prometheus.yml").replace("_interval: 15s\n", "_interval: 1s\n");
    let found = text.find("    dns_sd_configs:").unwrap();
    let end = found + text[found..].find("\n\n").unwrap();
    let targets: Vec<String> = replicas.iter().map(|r| format!("{:?}", r.metrics)).collect();
    let targets = format!("    static_configs:\n      - targets: [{}]", targets.join(", "));
    let text = format!("{}{targets}{}", &text[..found], &text[end..]);
    let text = replace(&text, "localhost:9090", &address);
    let home = folder.join("prometheus");
    fs::create_dir_all(home.join("rules")).unwrap();
    fs::write(home.join("prometheus.yml"), text).unwrap();
    fs::copy(deploy("prometheus/rules/facepipe.yml"), home.join("rules/facepipe.yml")).unwrap();
    let process = Command::new("/usr/bin/prometheus")
        .arg(format!("--config.file={}", home.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg("--log.level=warn")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let url = format!("http://{address}");
    wait_until("Prometheus is ready", || ask(&[&format!("{url}/-/ready")]).0 == 200);
    (Process(process), url)
}

/// Returns the values of Prometheus' result for a query.
fn query(prometheus: &str, expression: &str) -> Vec<f64> {
    let data = format!("query={expression}");
    let answer = expect(200, &["--data-urlencode", &data, &format!("{prometheus}/api/v1/query")]);
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    let results = answer["data"]["result"].as_array().unwrap();
    results.iter().map(|result| result["value"][1].as_str().unwrap().parse().unwrap()).collect()
}

/// Returns the state of each alert: `inactive`, `pending` or `firing`.
fn alerts(prometheus: &str) -> Vec<(String, String)> {
    let answer = expect(200, &[&format!("{prometheus}/api/v1/rules")]);
    let groups = answer["data"]["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let text = |rule: &Value, name: &str| rule[name].as_str().unwrap().to_owned();
    rules
        .map(|rule| {
            assert_ne!(rule["health"], "err", "{rule}");
            (text(rule, "name"), text(rule, "state"))
        })
        .collect()
}

/// Creates a database for this test on the tests' server, and returns its URL.
fn new_database(server: &str) -> String {
    let name = format!("deploy_{}", std::process::id());
    let created = Command::new("psql")
        .args(["--quiet", "--dbname", &format!("{server}/postgres"), "--command"])
        .arg(format!("CREATE DATABASE {name}"))
        .status();
    assert!(created.unwrap().success());
    format!("{server}/{name}")
}

#[test]
fn the_compose_deployment_serves_and_is_monitored() {
    let faces = require!("lfw10");
    let models = require_backend_weights!();
    let Ok(server) = env::var("FACEPIPE_TEST_POSTGRES") else {
        skip("FACEPIPE_TEST_POSTGRES names no server: `scripts/databases.sh start` starts one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("tokens"), format!("admin {ADMIN}\ncamera {CAMERA}\n")).unwrap();
    let database = new_database(&server);
    let [mut a, mut b] = ["a", "b"].map(|name| Replica::start(folder, name, &models, &database));
    a.healthy();
    b.healthy();
    let (_nginx, url) = load_balancer(folder, &[&a, &b]);
    let (_prometheus, watch) = prometheus(folder, &[&a, &b]);

    // A recognition through the load balancer.
    let admin = format!("Authorization: Bearer {ADMIN}");
    let camera = format!("Authorization: Bearer {CAMERA}");
    let photograph = |person: &str, number: u32| {
        format!("image=@{}", faces.join(person).join(format!("{person}_{number:04}.jpg")).display())
    };
    for person in ["Tony_Blair", "Hugo_Chavez"] {
        expect(201, &["-H", &admin, "-X", "POST", &format!("{url}/dataset/{person}")]);
        for number in [1, 2] {
            let image = photograph(person, number);
            expect(201, &["-H", &admin, "-F", &image, &format!("{url}/dataset/{person}/image")]);
        }
    }
    expect(200, &["-H", &admin, "-X", "POST", &format!("{url}/model/optimized-train?wait=true")]);
    let image = photograph("Tony_Blair", 5);
    let recognise = || {
        let id = "X-Request-Id: gate-1.4711";
        let call = format!("{url}/face-recognition/get-results");
        ask(&["-H", &camera, "-H", id, "-F", &image, &call])
    };
    // Either replica has the model within a second or two.
    wait_until("both replicas know who was enrolled", || {
        (0..4).all(|_| {
            let (status, body) = recognise();
            assert_eq!(status, 200, "{body}");
            let answer: Value = serde_json::from_str(&body).unwrap();
            answer["faces"][0]["top_prediction"]["label"] == "Tony_Blair"
        })
    });
    let log = fs::read_to_string(folder.join("access.log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["request_id"] == "gate-1.4711" && line["status"] == 200));
    let served: BTreeSet<&str> = lines.iter().filter_map(|line| line["replica"].as_str()).collect();
    assert_eq!(served, BTreeSet::from([a.address.as_str(), b.address.as_str()]), "both replicas serve");
    assert!(!log.contains("Blair"), "no person's name is in the log");
    // Metrics are not exposed, with or without a token.
    expect(404, &["-H", &admin, &format!("{url}/metrics")]);

    // Prometheus sees both replicas, their requests, and has the alerts.
    wait_until("both replicas are scraped", || query(&watch, r#"up{job="facepipe"}"#) == [1.0, 1.0]);
    wait_until("the recognised faces are counted", || {
        query(&watch, r#"sum(facepipe_faces_total{decision="known"})"#)
            .first()
            .is_some_and(|&faces| faces >= 4.0)
    });
    let written = read("prometheus/rules/facepipe.yml");
    let names: BTreeSet<&str> =
        written.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    // Whether the disk of the machine that runs this has room is not the deployment's doing.
    let ratio = "min(facepipe_disk_free_bytes / facepipe_disk_size_bytes)";
    let free = query(&watch, ratio).first().copied().expect("the servers measure their disk");
    let of_this_machine =
        |name: &str| name == "FacepipeDiskFilling" && free < 0.2 || name == "FacepipeDiskFull" && free < 0.1;
    let mut loud = Vec::new();
    for _ in 0..600 {
        let states = alerts(&watch);
        let known: BTreeSet<&str> = states.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(known, names);
        loud = states;
        loud.retain(|(name, state)| state != "inactive" && !of_this_machine(name));
        if loud.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert!(loud.is_empty(), "not silent: {loud:?}");
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboards/facepipe.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().unwrap();
            let asked = expression.replace("$instance", ".*").replace("$__rate_interval", "1m");
            // Ratios of zero events have no value, so only the validity of the query is checked.
            query(&watch, &asked);
        }
    }

    // One replica dies: clients do not notice, Prometheus does.
    drop(a);
    for _ in 0..6 {
        let (status, body) = recognise();
        assert_eq!(status, 200, "{body}");
    }
    wait_until("the alert of the dead replica is on its way", || {
        alerts(&watch).contains(&("FacepipeReplicaDown".into(), "pending".into()))
    });
}

/// Returns the server's variables that a file of `deploy/` sets.
fn variables(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    words.filter(|word| word.starts_with("FACEPIPE_") && word.len() > 9).map(ToOwned::to_owned).collect()
}

#[test]
fn every_setting_and_command_in_deploy_exists_in_the_server() {
    let said = Command::new(program("facepipe-backend")).arg("--help").output().unwrap();
    let help = String::from_utf8(said.stdout).unwrap();
    let known = variables(&help);
    assert!(known.contains("FACEPIPE_LISTEN"), "{help}");
    // Variables of compose.yaml itself, and of the build.
    let others = BTreeSet::from(["FACEPIPE_PUBLISH".to_owned(), "FACEPIPE_COMMIT".to_owned()]);
    for file in [
        "docker/backend.Dockerfile",
        "compose.yaml",
        "kubernetes/base/config.yaml",
        "kubernetes/base/recognise.yaml",
        "kubernetes/base/manage.yaml",
        "systemd/facepipe-backend.service",
        "systemd/backend.env.example",
    ] {
        let used = variables(&read(file));
        let unknown: Vec<&String> = used.difference(&known).filter(|name| !others.contains(*name)).collect();
        assert!(
            !used.is_empty() && unknown.is_empty(),
            "{file} sets {unknown:?}, which the server does not know"
        );
    }
    for file in ["recognise", "manage", "migrate", "periodic"] {
        let text = read(&format!("kubernetes/base/{file}.yaml"));
        let lists = text.lines().filter_map(|line| line.trim().strip_prefix("args: ["));
        let mut lists =
            lists.map(|list| list.trim_end_matches(']').split(", ").collect::<Vec<_>>()).peekable();
        assert!(lists.peek().is_some(), "{file}.yaml has no arguments");
        for arguments in lists {
            let said =
                Command::new(program("facepipe-backend")).args(&arguments).arg("--help").output().unwrap();
            assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
        }
    }
}

/// Creates the secrets in a copy of `deploy/` after `prepare`, with this umask. Returns the copy's `secrets`.
fn make_secrets(checkout: &Path, umask: &str, prepare: impl FnOnce(&Path)) -> PathBuf {
    let copy = checkout.join("deploy");
    fs::create_dir_all(copy.join("secrets")).unwrap();
    fs::copy(deploy("up.sh"), copy.join("up.sh")).unwrap();
    prepare(&copy.join("secrets"));
    let script = format!("umask {umask}; exec '{}' --secrets-only", copy.join("up.sh").display());
    let output = Command::new("bash").arg("-c").arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    copy.join("secrets")
}

/// Reads a file as the user with this id, if the test may change its user.
fn read_as(user: u32, file: &Path) -> Result<String, String> {
    let user = user.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "--no-new-privs", "cat"]).arg(file);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn secrets_of_compose_are_unreadable_for_other_users_and_readable_in_containers() {
    const NOBODY: u32 = 65_534;
    // Users of the images: the server, PostgreSQL and MariaDB, Grafana.
    const USERS_OF_CONTAINERS: [u32; 3] = [10_001, 999, 472];
    const SECRETS: [&str; 5] =
        ["backend-mysql.toml", "backend-postgres.toml", "database-password", "grafana-password", "tokens"];
    // A folder that everybody may enter, as home folders usually are.
    let home = tempfile::tempdir().unwrap();
    open_to(home.path(), 0o755);
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    for (umask, mode) in [("000", 0o755), ("022", 0o777), ("077", 0o700)] {
        let checkout = home.path().join(umask);
        fs::create_dir(&checkout).unwrap();
        open_to(&checkout, 0o755);
        // With git's permissions.
        let secrets = make_secrets(&checkout, umask, |folder| {
            open_to(folder.parent().unwrap(), 0o755);
            open_to(folder, mode);
        });
        assert_eq!(fs::metadata(&secrets).unwrap().mode() & 0o7777, 0o700, "{umask}");
        let names: BTreeSet<String> = fs::read_dir(&secrets)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, SECRETS.map(str::to_owned).into());
        if !is_root {
            continue;
        }
        for name in SECRETS {
            let file = secrets.join(name);
            let told = read_as(NOBODY, &file).expect_err("another user reads a secret");
            assert!(told.contains("Permission denied"), "{told}");
            // A container gets the file alone, at another path, by the same inode.
            let mounted = home.path().join("mounted");
            fs::hard_link(&file, &mounted).unwrap();
            for user in USERS_OF_CONTAINERS {
                assert_eq!(read_as(user, &mounted).unwrap(), fs::read_to_string(&file).unwrap(), "{user}");
            }
            fs::remove_file(mounted).unwrap();
        }
    }
    // A second run keeps the secrets, and closes a folder that was opened.
    let checkout = home.path().join("022");
    let before = fs::read_to_string(checkout.join("deploy/secrets/tokens")).unwrap();
    let secrets = make_secrets(&checkout, "022", |folder| open_to(folder, 0o755));
    assert_eq!(fs::read_to_string(secrets.join("tokens")).unwrap(), before);
    assert_eq!(fs::metadata(&secrets).unwrap().mode() & 0o7777, 0o700);
}

fn open_to(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
