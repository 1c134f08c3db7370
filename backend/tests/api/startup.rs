//! Start and end of the program: log, service managers, exit codes.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use reqwest::StatusCode;

use crate::{
    command_line::{Running, program},
    helpers::client,
    replicas::{enrol, models, post},
};

/// The program with its own data folder, no metrics and a free port.
fn in_folder(folder: &Path) -> Command {
    let mut command = program();
    // As variables, so that tests can override them with flags.
    command.env("FACEPIPE_LISTEN", "127.0.0.1:0").env("FACEPIPE_METRICS_LISTEN", "off");
    command.env("FACEPIPE_LOG_FORMAT", "json").env("FACEPIPE_DATA_DIR", folder.join("data"));
    command
}

/// The exit code and standard error.
fn ended(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn configuration_errors_exit_with_2_and_others_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = |name: &str, text: &str| {
        fs::write(folder.join(name), text).unwrap();
        folder.join(name).to_str().unwrap().to_owned()
    };
    let (misspelt, not_toml) = (file("misspelt", "max_imagse = 3"), file("not-toml", "max_images = = 3"));
    let (out_of_range, no_tokens) =
        (file("out-of-range", "max_images = 0"), file("no-tokens", "# none yet\n"));
    for (arguments, named) in [
        (vec!["--no-such-flag"], "--no-such-flag"),
        (vec!["--max-images", "many"], "many"),
        (vec!["--config", &misspelt], "max_imagse (did you mean max_images?)"),
        (vec!["--config", &not_toml], "TOML"),
        (vec!["--config", &out_of_range], "max_images is 0"),
        (vec!["--config", "/none/such.toml"], "/none/such.toml"),
        (vec!["--token-file", "/none/such"], "token_file /none/such"),
        (vec!["--token-file", &no_tokens], "token_file"),
        (vec!["--listen", "nonsense"], "setting `listen`"),
        (vec!["--metrics-listen", "nonsense"], "setting `metrics_listen`"),
        (vec!["--log", "a=b=c"], "log is"),
        (vec!["--database-url", "oracle://h/db"], "oracle://"),
        (vec!["--database-url", "postgres://u:a/s3cret@h/db"], "%2F"),
        (vec!["--database-url", "mysql://u:a/s3cret@h/db"], "%2F"),
        (vec!["--device", "gpu"], "gpu"),
        (vec!["--compute", "tensorrt"], "compute must be native or candle"),
        (vec!["--compute", "native", "--device", "cuda"], "compute native runs on the processor only"),
        (vec!["sweep", "--blobs-url", "ftp://h/x"], "blobs_url"),
        (vec!["retain"], "detections_max_age_days is not set"),
    ] {
        let mut command = in_folder(folder);
        command.args(&arguments);
        let (code, told) = ended(command);
        assert_eq!(code, Some(2), "{arguments:?}: {told}");
        assert!(told.contains(named), "{arguments:?}: {told}");
        assert!(!told.contains("s3cret"), "{told}");
    }

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let away = ["--database-url", "postgres://nobody@127.0.0.1:1/none", "--database-start-timeout-s", "1"];
    for (arguments, named) in [
        (vec!["--listen", &taken], "cannot listen"),
        (away.to_vec(), "PostgreSQL"),
        (vec!["--models-dir", "/none"], "facepipe models fetch"),
    ] {
        let mut command = in_folder(folder);
        command.args(&arguments);
        let (code, told) = ended(command);
        assert_eq!(code, Some(1), "{arguments:?}: {told}");
        assert!(told.contains(named), "{arguments:?}: {told}");
    }
}

#[test]
fn waiting_for_the_database_logs_the_reason_once_without_the_password() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = in_folder(folder.path());
    command.args(["--database-url", "postgres://nobody:unspeakable-secret@127.0.0.1:1/none"]);
    // Retried every half second.
    command.args(["--database-start-timeout-s", "3"]);
    let (code, told) = ended(command);
    assert_eq!(code, Some(1), "{told}");
    let lines: Vec<&str> = told.lines().filter(|line| line.contains("waiting for the database")).collect();
    assert_eq!(lines.len(), 1, "{told}");
    assert!(lines[0].contains("Connection refused") && lines[0].contains("\"left_s\":"), "{told}");
    let last = told.lines().last().unwrap();
    assert!(
        last.contains("cannot open the PostgreSQL database") && last.contains("Connection refused"),
        "{told}"
    );
    assert!(!told.contains("unspeakable-secret"), "{told}");
}

#[test]
fn unknown_variables_and_unlimited_retention_are_warned_of() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let misspelt = [
        ("FACEPIPE_DETECTION_MAX_AGE_DAYS", "unspeakable"),
        ("FACEPIPE_SERVER", "http://127.0.0.1:1"),
        ("FACEPIPE_SERVICE_HOST", "10.0.0.1"),
    ];
    for (settings, for_ever) in [
        (vec![], true),
        (vec!["--detections-max-age-days", "30"], false),
        // Retention is up to another server of the deployment.
        (vec!["--role", "recognize"], false),
    ] {
        let settings = [vec!["--listen", "127.0.0.1:0", "--metrics-listen", "off"], settings].concat();
        let (running, _) = Running::start_in(folder.path(), &models, &settings, &misspelt);
        let log = running.log();
        assert!(log.contains("\"ready\""), "{log}");
        assert_eq!(log.matches("detections are kept for ever").count(), usize::from(for_ever), "{log}");
        let told = "FACEPIPE_DETECTION_MAX_AGE_DAYS (did you mean FACEPIPE_DETECTIONS_MAX_AGE_DAYS?)";
        assert_eq!(log.matches(told).count(), 1, "{log}");
        assert_eq!(log.matches("which nothing reads").count(), 1, "{log}");
        assert!(!log.contains("unspeakable"), "{log}");
    }
    // Also with --print-config.
    let mut command = in_folder(folder.path());
    command.env("FACEPIPE_DATABASE_URL", "postgres://h/db").args(["--print-config"]);
    let (code, told) = ended(command);
    assert!(code == Some(0) && told.contains("FACEPIPE_DATABASE_URL (did you mean DATABASE_URL?)"), "{told}");
}

#[test]
fn the_fallback_embedder_is_warned_of_with_its_accuracy() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx", "face_recognition_model.bin");
    let folder = tempfile::tempdir().unwrap();
    for (embedder, warnings) in [("dlib-resnet", 1), ("mobilefacenet", 0)] {
        let settings = ["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--embedder", embedder];
        let (running, _) = Running::start_in(folder.path(), &models, &settings, &[]);
        let log = running.log();
        assert!(log.contains(&format!("\"embedder\":\"{embedder}\"")), "{log}");
        assert_eq!(log.matches("its verification accuracy is 99.3 %").count(), warnings, "{log}");
    }
}

#[test]
fn weights_that_are_not_converted_fail_the_start_with_the_file_and_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let published = ["pnet.pt", "rnet.pt", "onet.pt", "mobilefacenet.onnx"];
    for name in published {
        let file = facepipe_test_support::require!(&format!("models/{name}"));
        std::fs::copy(file, folder.path().join(name)).unwrap();
    }
    let start = || {
        let mut command = in_folder(folder.path());
        command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--models-dir"]);
        command.arg(folder.path());
        ended(command)
    };
    let convert = |name: &str| {
        let file = folder.path().join(name);
        facepipe_convert::convert(&file, &file.with_extension("safetensors")).unwrap();
    };
    for name in published {
        let (code, told) = start();
        assert_eq!(code, Some(1), "{told}");
        let command = format!("`facepipe models convert {}`", folder.path().display());
        for said in [folder.path().join(name).to_str().unwrap(), &command] {
            assert!(told.contains(said), "{said}: {told}");
        }
        convert(name);
    }
    let settings = ["--listen", "127.0.0.1:0", "--metrics-listen", "off"];
    let log = || Running::start_in(folder.path(), folder.path(), &settings, &[]).0.log();
    let told = log();
    assert!(!told.contains("facepipe models convert"), "{told}");

    // Replaced later, and not converted again.
    let pnet = std::fs::File::options().append(true).open(folder.path().join("pnet.pt")).unwrap();
    pnet.set_modified(std::time::SystemTime::now() + Duration::from_secs(60)).unwrap();
    let told = log();
    assert!(told.contains("pnet.pt") && told.contains("facepipe models convert"), "{told}");
    assert!(!told.contains("rnet.pt"), "{told}");
}

#[test]
fn systemd_is_notified_of_ready_watchdog_and_stopping() {
    let models = facepipe_test_support::require_weights!("mobilefacenet.onnx");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let abstract_name = format!("facepipe-test-{}", std::process::id());
    let sockets = [
        (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
        (
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap(),
            format!("@{abstract_name}"),
        ),
    ];
    for (socket, name) in sockets {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let next = || {
            let mut text = [0; 256];
            let length = socket.recv(&mut text).unwrap();
            String::from_utf8(text[..length].to_vec()).unwrap()
        };
        let settings = ["--listen", "0.0.0.0:0", "--insecure", "--metrics-listen", "off"];
        let told = [("NOTIFY_SOCKET", name.as_str()), ("WATCHDOG_USEC", "300000")];
        let (running, _) = Running::start_in(folder.path(), &models, &settings, &told);
        assert!(next().starts_with("READY=1\n"), "nothing comes before");
        for _ in 0..3 {
            assert_eq!(next(), "WATCHDOG=1");
        }
        running.signal("TERM");
        let begun = Instant::now();
        while !next().starts_with("STOPPING=1\n") {
            assert!(begun.elapsed() < Duration::from_secs(30), "its end is not told");
        }
        drop(running);
    }

    // A service manager that is not notified would kill the server after a while: fail at once with the reason.
    let output = in_folder(folder.path())
        .env("NOTIFY_SOCKET", "nonsense")
        .arg("--models-dir")
        .arg(&models)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("NOTIFY_SOCKET is \"nonsense\""), "{told}");
}

#[tokio::test]
async fn files_are_private_whatever_the_umask_and_those_of_earlier_starts_become_so() {
    let folder = tempfile::tempdir().unwrap();
    let models = models!();
    let start = || {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 0; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_facepipe-backend")]);
        command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off", "--embedder", "mobilefacenet"]);
        command.args(["--log-format", "json"]);
        command.arg("--address-file").arg(folder.path().join("address")).arg("--models-dir").arg(&models);
        command.arg("--data-dir").arg(folder.path().join("data"));
        let running = Running::spawn(command);
        let url = running.url();
        (running, url)
    };
    let open = || {
        let all = everything_below(&folder.path().join("data"));
        assert!(all.len() > 5, "{all:?}");
        let mode = |path: &PathBuf| fs::symlink_metadata(path).unwrap().permissions().mode();
        all.into_iter().filter(|path| mode(path) & 0o077 != 0).collect::<Vec<_>>()
    };
    let (running, url) = start();
    let client = client();
    for person in ["Tony_Blair", "Hugo_Chavez"] {
        enrol(&client, &url, person, &[1, 2]).await;
    }
    post(&client, &format!("{url}/model/optimized-train?wait=true")).await.expect(StatusCode::OK);
    assert_eq!(open(), Vec::<PathBuf>::new());
    drop(running);

    let data = folder.path().join("data");
    for path in everything_below(&data.join("blobs")).into_iter().chain([data.join("facepipe.db")]) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    assert!(!open().is_empty());
    fs::remove_file(folder.path().join("address")).unwrap();
    let (_running, _) = start();
    let begun = Instant::now();
    while !open().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", open());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A folder, and all files and folders in it.
fn everything_below(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(everything_below(&path)) } else { all.push(path) }
    }
    all
}
