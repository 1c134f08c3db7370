//! The checks, in the order in which a pipeline would fail.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use facepipe_detector::{ExecutionProvider, models, runtime};
use gst::prelude::*;
use gstfacepipe::upload::{self, Spool, SpoolError, TlsOptions};
use reqwest::{StatusCode, blocking::Client, header};
use rustls::ClientConfig;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::{Check, Options, State};

/// The elements of the plugin set.
const ELEMENTS: [&str; 5] = ["facedetect", "facetrack", "facecrop", "facesink-http", "faceoverlay"];

/// Elements of other plugins: name, purpose and Debian package.
const OTHER_ELEMENTS: [(&str, &str, &str); 11] = [
    ("decodebin", "playing files", "gstreamer1.0-plugins-base"),
    ("videoconvert", "other formats of video", "gstreamer1.0-plugins-base"),
    ("videoflip", "videos of phones", "gstreamer1.0-plugins-good"),
    ("qtdemux", "MP4 files", "gstreamer1.0-plugins-good"),
    ("rtspsrc", "network cameras", "gstreamer1.0-plugins-good"),
    ("v4l2src", "cameras of this machine", "gstreamer1.0-plugins-good"),
    ("jpegdec", "cameras that send JPEG", "gstreamer1.0-plugins-good"),
    ("h264parse", "H.264", "gstreamer1.0-plugins-bad"),
    ("h265parse", "H.265", "gstreamer1.0-plugins-bad"),
    ("x264enc", "writing videos", "gstreamer1.0-plugins-ugly"),
    ("mp4mux", "writing videos", "gstreamer1.0-plugins-good"),
];

/// Codecs, each with alternative decoders.
const DECODERS: [(&str, &[&str]); 2] = [
    ("H.264", &["nvv4l2decoder", "vah264dec", "vaapih264dec", "v4l2h264dec", "avdec_h264", "openh264dec"]),
    ("H.265", &["nvv4l2decoder", "vah265dec", "vaapih265dec", "v4l2h265dec", "avdec_h265", "libde265dec"]),
];

/// Maximum clock difference for trustworthy capture times, seconds.
const CLOCK_TOLERANCE: f64 = 2.0;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

pub fn all(options: &Options) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut plugin_folder = None;
    match gst::init() {
        Err(error) => checks.push(Check::failed(
            "GStreamer",
            format!("cannot be initialised: {error}"),
            "install gstreamer1.0-tools and gstreamer1.0-plugins-base",
        )),
        Ok(()) => {
            checks.push(gstreamer());
            let (found, folder) = plugin();
            let there = found.state != State::Failed;
            checks.push(found);
            if there {
                checks.push(element_names());
            }
            plugin_folder = folder;
            checks.push(other_elements());
            checks.push(decoders());
        }
    }
    let hints: Vec<PathBuf> = plugin_folder.into_iter().collect();
    checks.push(onnx_runtime(&hints));
    checks.push(detector_models(&hints));
    checks.push(spool(options.spool_dir.as_deref()));
    let (backend, date) = backend(options);
    checks.push(backend);
    checks.push(clock(date));
    checks
}

fn gstreamer() -> Check {
    let (major, minor, micro, _) = gst::version();
    let found = format!("{major}.{minor}.{micro}");
    if (major, minor) < (1, 16) {
        return Check::failed("GStreamer", found, "the elements need 1.16 or later");
    }
    Check::ok("GStreamer", found)
}

/// Checks the plugin and its elements; returns its folder too.
fn plugin() -> (Check, Option<PathBuf>) {
    const NAME: &str = "plugin facepipe";
    let missing = |found: String| {
        let remedy = "export GST_PLUGIN_PATH=<folder of libgstfacepipe.so> (`make plugins` makes one: \
                      .runtime/gstreamer-1.0); if it is set, `rm -r ~/.cache/gstreamer-1.0` makes GStreamer look \
                      again, and `gst-inspect-1.0 facepipe` says why it does not load";
        Check::failed(NAME, found, remedy)
    };
    let registry = gst::Registry::get();
    let Some(plugin) = registry.find_plugin("facepipe") else {
        return (missing("GStreamer does not find it".into()), None);
    };
    let file = plugin.filename();
    let place = file.as_deref().map_or_else(|| "built in".into(), |file| file.display().to_string());
    let absent: Vec<&str> = ELEMENTS
        .into_iter()
        .filter(|name| registry.lookup_feature(&format!("facepipe-{name}")).is_none())
        .collect();
    let folder = file.and_then(|file| file.parent().map(Path::to_path_buf));
    if !absent.is_empty() {
        return (missing(format!("{place} lacks {}", absent.join(", "))), folder);
    }
    let found = format!("version {} in {place}", plugin.version());
    let own = env!("CARGO_PKG_VERSION");
    if !plugin.version().starts_with(own) {
        let remedy = format!("this program is {own}: install both from one build");
        return (Check::warning(NAME, found, remedy), folder);
    }
    (Check::ok(NAME, found), folder)
}

/// Checks that the short element names refer to our elements: the plugin scanned last wins, regardless of rank.
fn element_names() -> Check {
    const NAME: &str = "element names";
    let taken: Vec<String> = ELEMENTS
        .into_iter()
        .filter_map(|name| {
            let plugin = gst::ElementFactory::find(name)?.plugin()?;
            (plugin.plugin_name() != "facepipe")
                .then(|| format!("{name} is the one of plugin {}", plugin.plugin_name()))
        })
        .collect();
    if taken.is_empty() {
        return Check::ok(NAME, format!("{} are ours", ELEMENTS.join(", ")));
    }
    Check::warning(
        NAME,
        taken.join("; "),
        "write facepipe-facedetect, facepipe-faceoverlay and so on in pipelines, which nothing hides; or remove the \
         other plugin and `rm -r ~/.cache/gstreamer-1.0`",
    )
}

fn other_elements() -> Check {
    const NAME: &str = "other elements";
    let absent: Vec<String> = OTHER_ELEMENTS
        .into_iter()
        .filter(|(element, ..)| gst::ElementFactory::find(element).is_none())
        .map(|(element, purpose, package)| format!("{element} ({purpose}; package {package})"))
        .collect();
    if absent.is_empty() {
        return Check::ok(NAME, "files, network cameras, cameras of this machine");
    }
    Check::warning(
        NAME,
        format!("missing: {}", absent.join(", ")),
        "install the packages of those that you need",
    )
}

fn decoders() -> Check {
    const NAME: &str = "video decoders";
    let mut found = Vec::new();
    let mut absent = Vec::new();
    for (codec, decoders) in DECODERS {
        match decoders.iter().find(|name| gst::ElementFactory::find(name).is_some()) {
            Some(decoder) => found.push(format!("{codec} by {decoder}")),
            None => absent.push(codec),
        }
    }
    if absent.is_empty() {
        return Check::ok(NAME, found.join(", "));
    }
    let remedy = "install gstreamer1.0-libav, or the driver's own decoders";
    let found = format!("none for {}", absent.join(", "));
    if absent.contains(&"H.264") {
        Check::failed(NAME, found, remedy)
    } else {
        Check::warning(NAME, found, remedy)
    }
}

fn onnx_runtime(hints: &[PathBuf]) -> Check {
    const NAME: &str = "ONNX Runtime";
    match runtime::load(hints) {
        Ok(loaded) => {
            let providers = [
                ("cpu", ExecutionProvider::Cpu),
                ("cuda", ExecutionProvider::Cuda),
                ("tensorrt", ExecutionProvider::TensorRt),
                ("openvino", ExecutionProvider::OpenVino),
            ];
            let built: Vec<&str> =
                providers.into_iter().filter(|(_, p)| loaded.has(*p)).map(|(name, _)| name).collect();
            Check::ok(NAME, format!("{}; execution providers: {}", loaded.path().display(), built.join(", ")))
        }
        Err(error) => Check::failed(
            NAME,
            error.to_string(),
            "`facepipe models fetch onnxruntime` installs it, or ORT_DYLIB_PATH names one that is there",
        ),
    }
}

fn detector_models(hints: &[PathBuf]) -> Check {
    const NAME: &str = "detector models";
    let (mut present, mut absent) = (Vec::new(), Vec::new());
    for model in models::known() {
        match models::resolve(&model.name, None, hints) {
            Ok(path) => present.push(format!("{} ({})", model.name, path.display())),
            Err(_) => absent.push(model.name),
        }
    }
    let remedy = "`facepipe models fetch`, and FACEPIPE_MODELS=<its folder> where pipelines run";
    if present.is_empty() {
        return Check::failed(NAME, format!("missing: {}", absent.join(", ")), remedy);
    }
    // model=auto prefers these two; MTCNN is the fallback.
    let taken = [("wide frames", 1920), ("frames of less than 1280 pixels", 640)].map(|(frames, side)| {
        let choice = models::choose("auto", Some(side), hints).ok()?;
        let (name, wanted) = (choice.name?, choice.instead_of?);
        Some(format!("for {frames} model=auto takes {name} instead of {wanted}"))
    });
    let missing = absent.iter().filter(|name| *name != "mtcnn").cloned().collect::<Vec<_>>().join(", ");
    let said: Vec<String> = taken.into_iter().flatten().collect();
    match (missing.is_empty(), said.is_empty()) {
        (true, _) => Check::ok(NAME, present.join(", ")),
        (false, true) => Check::warning(NAME, format!("missing: {missing}"), remedy),
        (false, false) => Check::warning(NAME, format!("missing: {missing}; {}", said.join(", ")), remedy),
    }
}

fn spool(folder: Option<&Path>) -> Check {
    const NAME: &str = "spool folder";
    let Some(folder) = folder else {
        return Check::warning(
            NAME,
            "not given: crops that a dead backend cannot take are kept in memory only",
            "give facesink-http a spool-dir, and this program --spool-dir to look at it",
        );
    };
    let remedy = "make it, and let the user who runs the pipeline write there (mode 0700)";
    // As facesink-http checks it, which creates it if missing.
    match Spool::check(folder) {
        Ok(()) => {}
        Err(error @ SpoolError::Folder { .. }) => return Check::failed(NAME, error.to_string(), remedy),
        Err(error) => {
            return Check::failed(NAME, error.to_string(), "as it says: facesink-http will not start");
        }
    }
    let probe = folder.join(".facepipe-doctor");
    let written = fs::write(&probe, b"probe");
    // Fails if it could not be written.
    let _ = fs::remove_file(&probe);
    match written {
        Ok(()) => Check::ok(NAME, format!("{} can be written", folder.display())),
        Err(error) => Check::failed(NAME, format!("{}: {error}", folder.display()), remedy),
    }
}

/// Returns how backend and client prove themselves, where the address or an option says anything about it.
fn tls(options: &Options, server: &str) -> Result<Option<ClientConfig>, String> {
    // Schemes are the same in upper and lower case (RFC 3986, section 3.1).
    let scheme = server.split_once(':').map(|(scheme, _)| scheme);
    let is_https = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let named = options.pinned_sha256.is_some() || options.client_cert.is_some();
    if named && !is_https {
        return Err("pinned-sha256 and client-cert need https, without which nothing can be proved".into());
    }
    if !is_https && options.ca_file.is_none() && options.client_key.is_none() {
        return Ok(None);
    }
    let pins = options.pinned_sha256.as_deref().map(upload::KeyPin::parse_all).transpose();
    let tls = TlsOptions {
        ca_file: options.ca_file.clone(),
        pins: pins.map_err(|error| error.to_string())?.unwrap_or_default(),
        client_cert: options.client_cert.clone(),
        client_key: options.client_key.clone(),
    };
    upload::tls(&tls).map(Some).map_err(|error| error.to_string())
}

/// Checks the backend; returns its clock too.
fn backend(options: &Options) -> (Check, Option<OffsetDateTime>) {
    const NAME: &str = "backend";
    let Some(server) = &options.server else {
        let found = "not given, so nothing was asked";
        return (Check::warning(NAME, found, "give --server or FACEPIPE_SERVER"), None);
    };
    let token = match (&options.token, &options.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(file)) => match fs::read_to_string(file) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(error) => {
                let found = format!("the token file {}: {error}", file.display());
                return (
                    Check::failed(NAME, found, "make it readable for the user who runs the pipeline"),
                    None,
                );
            }
        },
        (None, None) => None,
    };
    // As facesink-http checks it.
    let tls = match tls(options, server) {
        Ok(tls) => tls,
        Err(error) => {
            let remedy = "name files of certificates and keys in PEM form, readable for the user who runs the pipeline";
            return (Check::failed(NAME, error, remedy), None);
        }
    };
    if token.is_some() && !options.insecure_token && upload::exposes_tokens(server) {
        let found =
            format!("{} is http: everybody on the way can read the token", upload::without_user(server));
        let remedy = "use https; or --insecure-token, and allow-insecure-token of facesink-http";
        return (Check::failed(NAME, found, remedy), None);
    }
    let through = match upload::proxy(server) {
        Ok(proxy) => proxy.map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default(),
        Err(error) => return (Check::failed(NAME, error.to_string(), "as it says"), None),
    };
    let query = || -> reqwest::Result<(StatusCode, Option<OffsetDateTime>)> {
        let base = server.trim_end_matches('/');
        let client = Client::builder().timeout(RESPONSE_TIMEOUT);
        let client = match &tls {
            Some(tls) => client.tls_backend_preconfigured(tls.clone()),
            None => client,
        };
        // No proxy for this machine, as in facesink-http.
        let client = if through.is_empty() { client.no_proxy() } else { client }.build()?;
        // Readiness may not need the token; the list of cameras does.
        let mut request = client.get(format!("{base}/readyz"));
        if let Some(token) = &token {
            request = request.bearer_auth(token);
        }
        let ready = request.send()?;
        let date = ready.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok());
        if !ready.status().is_success() {
            return Ok((ready.status(), date));
        }
        let mut request = client.get(format!("{base}/cameras"));
        if let Some(token) = &token {
            request = request.bearer_auth(token);
        }
        Ok((request.send()?.status(), date))
    };
    let shown_server = upload::without_user(server);
    match query() {
        Err(error) => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            let found = format!("{shown_server} cannot be reached{through}: {cause}");
            let remedy = match cause.to_string().contains("certificate") {
                true if options.ca_file.is_none() => {
                    "a certificate of an authority of one's own is trusted by --ca-file, and by ca-file of facesink-http"
                }
                _ => "is it running, is the address right, does a firewall stand between?",
            };
            (Check::failed(NAME, found, remedy), None)
        }
        Ok((status, date)) if status.is_success() => {
            let with = if token.is_some() { " with this token" } else { "" };
            (Check::ok(NAME, format!("{shown_server} answers{with}{through}")), date)
        }
        Ok((status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), date)) => {
            let found = format!("{shown_server} refuses the token ({status})");
            (
                Check::failed(NAME, found, "give a token that the backend knows: --token, or --token-file"),
                date,
            )
        }
        Ok((StatusCode::SERVICE_UNAVAILABLE, date)) => {
            let found =
                format!("{shown_server} answers, but is not ready ({})", StatusCode::SERVICE_UNAVAILABLE);
            (Check::failed(NAME, found, "its database is away: see the backend's log"), date)
        }
        Ok((status, date)) => (
            Check::failed(NAME, format!("{shown_server} answers {status}"), "is that a facepipe backend?"),
            date,
        ),
    }
}

/// Checks the clock: NTP state, and difference to the backend's clock.
fn clock(backend: Option<OffsetDateTime>) -> Check {
    const NAME: &str = "clock";
    let remedy = "capture times come from this clock: run chrony or systemd-timesyncd";
    if let Some(theirs) = backend {
        let apart = (OffsetDateTime::now_utc() - theirs).as_seconds_f64();
        // The header has whole seconds.
        if apart.abs() > CLOCK_TOLERANCE + 1.0 {
            return Check::failed(NAME, format!("{apart:+.0} s apart from the backend's"), remedy);
        }
    }
    let agrees = if backend.is_some() { " and agrees with the backend's" } else { "" };
    match ntp_synchronized() {
        Some(true) => Check::ok(NAME, format!("synchronised by NTP{agrees}")),
        Some(false) => Check::warning(NAME, format!("not synchronised by NTP{agrees}"), remedy),
        None if backend.is_some() => Check::ok(NAME, "agrees with the backend's; nothing here tells of NTP"),
        None => Check::warning(NAME, "nothing here tells whether NTP keeps it", remedy),
    }
}

/// Asks systemd or chrony; `None` if neither is available.
fn ntp_synchronized() -> Option<bool> {
    let ask = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    if let Some(answer) = ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"]) {
        return Some(answer.trim() == "yes");
    }
    // Columns: reference, name, stratum; "Leap status" is the last one.
    ask("chronyc", &["-c", "tracking"]).map(|answer| answer.trim().ends_with("Normal"))
}
