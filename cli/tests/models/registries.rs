//! Where a file comes from when hosts are unreachable: the mirror folder, registries alone, or nowhere at all. A server in
//! this process stands in for the registries; one test asks the real ones, where they can be reached.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::TcpListener,
    process::{Command, Stdio},
};

use sha2::{Digest as _, Sha512};

use super::{
    ProgramOutput, Sandbox, Server, answer, content, make_executable, not_found, ok, sha256, url,
    whole_or_rest,
};

/// A `.tar.gz` of these files.
fn tar_gz(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len().try_into().expect("a size"));
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, path, *content).expect("a member");
    }
    archive.into_inner().and_then(flate2::write::GzEncoder::finish).expect("an archive")
}

fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (path, content) in files {
        wheel.start_file(*path, zip::write::SimpleFileOptions::default()).expect("a member");
        wheel.write_all(content).expect("a member");
    }
    wheel.finish().expect("a wheel").into_inner()
}

fn integrity(bytes: &[u8]) -> String {
    use base64::Engine as _;
    format!("sha512-{}", base64::prelude::BASE64_STANDARD.encode(Sha512::digest(bytes)))
}

/// The index page and the file of a source package whose `setup.py` would leave a trace, if anybody ran it.
struct Sdist(Vec<u8>);

impl Sdist {
    fn of(member: &[u8]) -> Self {
        let setup = "open('setup-was-run', 'w')";
        Self(tar_gz(&[("a_b-1.0/setup.py", setup.as_bytes()), ("a_b-1.0/data/m.bin", member)]))
    }

    fn package(&self) -> String {
        format!(
            "[[package]]\npypi = \"A.b==1.0\"\nsha256 = \"{}\"\nbytes = {}\n",
            sha256(&self.0),
            self.0.len()
        )
    }

    const SOURCE: &str = "{ pypi = \"A.b==1.0\", member = \"a_b-1.0/data/m.bin\", sdist = true }";

    /// An index with the package, in JSON or in HTML.
    fn index(self, json: bool) -> Server {
        Server::start(move |stream, path, range| match path {
            "simple/a-b/" if json => answer_with(
                stream,
                "application/vnd.pypi.simple.v1+json",
                b"{\"files\":[{\"filename\":\"a_b-0.9.tar.gz\",\"url\":\"/old\",\"hashes\":{}},\
                  {\"filename\":\"a_b-1.0.tar.gz\",\"url\":\"../../files/a_b-1.0.tar.gz\",\"hashes\":{}}]}",
            ),
            "simple/a-b/" => answer_with(
                stream,
                "text/html",
                b"<html><body><a href=\"/old\">a_b-0.9.tar.gz</a>\n\
                  <a href=\"../../files/a_b-1.0.tar.gz#sha256=00\">a_b-1.0.tar.gz</a></body></html>",
            ),
            "files/a_b-1.0.tar.gz" => whole_or_rest(stream, &self.0, range),
            _ => not_found(stream),
        })
    }
}

fn answer_with(stream: &mut std::net::TcpStream, content_type: &str, body: &[u8]) {
    answer(stream, "200 OK", &format!("content-type: {content_type}\r\n"), body.len(), body);
}

/// A port that refuses connections.
fn closed() -> String {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string()
}

/// An npm that writes down what it is asked, names `registry`, and "packs" what lies in the test's folder.
fn fake_npm(sandbox: &Sandbox, registry: &str, package: &[u8]) {
    fs::create_dir_all(sandbox.path("bin")).expect("a folder");
    fs::write(sandbox.path("package.tgz"), package).expect("a package");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 10 && exit\n\
         if [ \"$1\" = config ]; then [ \"$3\" = registry ] && echo {registry} || echo null; exit; fi\n\
         echo \"$@\" >>\"$TEST/npm.log\"\n[ -s \"$TEST/package.tgz\" ] || {{\n\
         echo 'npm error code E404' >&2; echo 'npm error 404 Not Found' >&2; exit 1; }}\n\
         while [ \"$1\" != --pack-destination ]; do shift; done\ncp \"$TEST/package.tgz\" \"$2/b-1.0.0.tgz\"\n"
    );
    fs::write(sandbox.path("bin/npm"), script).expect("a script");
    make_executable(&sandbox.path("bin/npm"));
}

/// A folder with links to what the program may start, and nothing else: no npm, unless one was put there.
fn path_of(sandbox: &Sandbox) -> String {
    fs::create_dir_all(sandbox.path("bin")).expect("a folder");
    for program in ["sh", "cp"] {
        let link = sandbox.path("bin").join(program);
        if !link.exists() {
            std::os::unix::fs::symlink(format!("/bin/{program}"), link).expect("a link");
        }
    }
    sandbox.path("bin").display().to_string()
}

fn with_path(sandbox: &Sandbox, arguments: &[&str], variables: &[(&str, &str)]) -> ProgramOutput {
    let mut command = sandbox.command(arguments);
    command.env("PATH", path_of(sandbox)).env("TEST", sandbox.folder.path());
    ProgramOutput::from(command.envs(variables.iter().copied()).output().expect("the program runs"))
}

const NPM: &str = "{ npm = \"@a/b@1.0.0\", member = \"package/model/m.bin\" }";

/// A package of npm, and the manifest's lines that pin it.
fn npm_package(member: &[u8]) -> (Vec<u8>, String) {
    let package = tar_gz(&[("package/package.json", b"{}"), ("package/model/m.bin", member)]);
    let pin = format!("[[package]]\nnpm = \"@a/b@1.0.0\"\nintegrity = \"{}\"\n", integrity(&package));
    (package, pin)
}

#[test]
fn a_source_package_comes_from_pips_index_and_is_not_run() {
    for json in [true, false] {
        let sdist = Sdist::of(&content());
        let mut sandbox = Sandbox::new().file("a", &content(), Sdist::SOURCE);
        sandbox.manifest += &sdist.package();
        let index = sdist.index(json);
        let simple = format!("{}simple", index.url);
        let ran = with_path(&sandbox, &["fetch"], &[("PIP_INDEX_URL", &simple)]);
        ran.exits_with(0).prints("from the source package A.b==1.0, 292.97 KiB");
        assert_eq!(sandbox.fetched("a"), Some(content()));
        assert_eq!(sandbox.files(), ["a.bin"]);
        let asked: Vec<String> = index.requests().into_iter().map(|(path, _)| path).collect();
        assert_eq!(asked, ["simple/a-b/", "files/a_b-1.0.tar.gz"]);
        assert!(!sandbox.path("setup-was-run").exists());
    }
}

#[test]
fn a_source_package_is_found_in_find_links() {
    let sdist = Sdist::of(&content());
    let mut sandbox = Sandbox::new().file("a", &content(), Sdist::SOURCE);
    sandbox.manifest += &sdist.package();
    fs::create_dir(sandbox.path("links")).expect("a folder");
    fs::write(sandbox.path("links/a_b-1.0.tar.gz"), &sdist.0).expect("a package");
    let links = sandbox.path("links").display().to_string();
    let variables = [("PIP_FIND_LINKS", links.as_str()), ("PIP_NO_INDEX", "1")];
    with_path(&sandbox, &["fetch"], &variables).exits_with(0);
    assert_eq!(sandbox.fetched("a"), Some(content()));
}

#[test]
fn a_source_package_with_a_wrong_hash_is_refused() {
    let (pinned, served) = (Sdist::of(&content()), Sdist::of(b"another"));
    let mut sandbox = Sandbox::new().file("a", &content(), Sdist::SOURCE);
    sandbox.manifest += &pinned.package().replace(&format!("bytes = {}\n", pinned.0.len()), "");
    let found = sha256(&served.0);
    let index = served.index(true);
    let ran = with_path(&sandbox, &["fetch"], &[("PIP_INDEX_URL", &format!("{}simple", index.url))]);
    ran.exits_with(1).prints(&format!("expected sha256 {}, found {found}", sha256(&pinned.0)));
    assert_eq!(sandbox.files(), Vec::<String>::new());
}

#[test]
fn wheels_come_from_the_index_through_the_real_pip() {
    let metadata = b"Metadata-Version: 2.1\nName: example\nVersion: 1.0\n";
    let served = wheel(&[
        ("example/m.bin", &content()),
        ("example-1.0.dist-info/METADATA", metadata),
        ("example-1.0.dist-info/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        ("example-1.0.dist-info/RECORD", b""),
    ]);
    let index = Server::start(move |stream, path, _| {
        match path {
        "simple/example/" => answer_with(
            stream,
            "text/html",
            b"<html><body><a href=\"/example-1.0-py3-none-any.whl\">example-1.0-py3-none-any.whl</a></body></html>",
        ),
        "example-1.0-py3-none-any.whl" => ok(stream, &served),
        _ => not_found(stream),
    }
    });
    let sandbox =
        Sandbox::new().file("a", &content(), "{ pypi = \"example==1.0\", member = \"example/m.bin\" }");
    let mut command = sandbox.command(&["fetch"]);
    command.env("PIP_INDEX_URL", format!("{}simple", index.url)).env("PIP_NO_CACHE_DIR", "1");
    ProgramOutput::from(command.output().expect("the program runs"))
        .exits_with(0)
        .prints("from the wheel example==1.0");
    assert_eq!(sandbox.fetched("a"), Some(content()));
}

#[test]
fn pip_is_not_run_if_its_index_is_unreachable() {
    // A pip that is started to download would say so.
    let sandbox = Sandbox::new().file("a", &content(), "{ pypi = \"example==1.0\", member = \"m\" }").file(
        "b",
        &content(),
        "{ pypi = \"other==1.0\", member = \"m\" }",
    );
    let closed = closed();
    let ran = with_path(&sandbox, &["fetch"], &[("PIP_INDEX_URL", &format!("http://{closed}/simple"))]);
    ran.exits_with(1)
        .prints(&format!("pip, example==1.0: {closed}: "))
        .prints(&format!("pip, other==1.0: {closed}: "));
    assert!(!ran.err.contains("cannot be started"), "{}", ran.err);
}

#[test]
fn npm_packs_once_without_scripts_and_the_integrity_is_verified() {
    let (package, pin) = npm_package(&content());
    let mut sandbox = Sandbox::new().file("a", &content(), NPM).file("b", &content(), NPM);
    sandbox.manifest += &pin;
    let registry = Server::start(|stream, _, _| not_found(stream));
    fake_npm(&sandbox, &registry.url, &package);
    with_path(&sandbox, &["fetch"], &[]).exits_with(0).prints("from the npm package @a/b@1.0.0");
    assert_eq!((sandbox.fetched("a"), sandbox.fetched("b")), (Some(content()), Some(content())));
    let log = fs::read_to_string(sandbox.path("npm.log")).expect("a log");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.starts_with("pack --ignore-scripts ") && log.ends_with("-- @a/b@1.0.0\n"), "{log}");

    let mut other = Sandbox::new().file("a", &content(), NPM);
    other.manifest += &pin;
    let (changed, _) = npm_package(b"another");
    fake_npm(&other, &registry.url, &changed);
    let said = format!("expected integrity {}, found {}", integrity(&package), integrity(&changed));
    with_path(&other, &["fetch"], &[]).exits_with(1).prints(&said);
    assert_eq!(other.files(), Vec::<String>::new());

    let mut none = Sandbox::new().file("a", &content(), NPM);
    none.manifest += &pin;
    fake_npm(&none, &registry.url, b"");
    with_path(&none, &["fetch"], &[]).exits_with(1).prints("npm, @a/b@1.0.0: E404");
}

#[test]
fn npm_is_not_run_if_its_registry_is_unreachable() {
    let (package, pin) = npm_package(&content());
    let mut sandbox = Sandbox::new().file("a", &content(), NPM);
    sandbox.manifest += &pin;
    let closed = closed();
    fake_npm(&sandbox, &format!("http://{closed}/"), &package);
    with_path(&sandbox, &["fetch"], &[]).exits_with(1).prints(&format!("npm, @a/b@1.0.0: {closed}: "));
    assert!(!sandbox.path("npm.log").exists(), "npm was started");
}

#[test]
fn a_missing_npm_client_has_its_exit_code() {
    let (_, pin) = npm_package(&content());
    let mut sandbox = Sandbox::new().file("a", &content(), NPM);
    sandbox.manifest += &pin;
    with_path(&sandbox, &["fetch"], &[])
        .exits_with(8)
        .prints("the npm client is not installed")
        .prints("apt-get install npm");
    // What npm has is not missed where another has it.
    let server = Server::start(|stream, _, _| ok(stream, &content()));
    let mut sandbox = Sandbox::new().file("a", &content(), &format!("{NPM}, {}", url(&server, "a")));
    sandbox.manifest += &pin;
    with_path(&sandbox, &["fetch"], &[]).exits_with(0);
}

/// The real npm, where it is installed, against a registry in this process.
#[test]
fn the_real_npm_accepts_the_command_line() {
    if Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_err() {
        // The tests above go on without it.
        return;
    }
    let (package, pin) = npm_package(&content());
    let mut sandbox = Sandbox::new().file("a", &content(), NPM);
    sandbox.manifest += &pin;
    let integrity = integrity(&package);
    let registry = Server::start(move |stream, path, _| match path {
        "@a%2fb" => {
            let address = stream.local_addr().expect("an address");
            let page = format!(
                "{{\"name\":\"@a/b\",\"dist-tags\":{{\"latest\":\"1.0.0\"}},\"versions\":{{\"1.0.0\":{{\"name\":\
                 \"@a/b\",\"version\":\"1.0.0\",\"scripts\":{{\"prepack\":\"false\",\"prepare\":\"false\"}},\"dist\":\
                 {{\"integrity\":\"{integrity}\",\"tarball\":\"http://{address}/b.tgz\"}}}}}}}}"
            );
            answer_with(stream, "application/json", page.as_bytes());
        }
        "b.tgz" => ok(stream, &package),
        _ => not_found(stream),
    });
    let mut command = sandbox.command(&["fetch"]);
    command.env("npm_config_registry", &registry.url);
    ProgramOutput::from(command.output().expect("the program runs"))
        .exits_with(0)
        .prints("from the npm package @a/b@1.0.0");
    assert_eq!(sandbox.fetched("a"), Some(content()));
}

/// A preferred file at a publisher's address, its fallback in a registry, and pictures that have a fallback too.
fn with_fallbacks(publisher: &str, sdist: &Sdist) -> Sandbox {
    let preferred = format!("{{ url = \"http://{publisher}/best\" }}");
    let mut sandbox = Sandbox::new().file("best", b"the best", &preferred);
    let pinned = format!(
        "sha256 = \"{}\"\nbytes = {}\nfallback_for = [\"best\"]\n",
        sha256(&content()),
        content().len()
    );
    sandbox.entry("second", "detector", &pinned, Sdist::SOURCE);
    sandbox.manifest += &sdist.package();
    sandbox
}

#[test]
fn a_fallback_is_fetched_only_if_the_preferred_file_is_unavailable() {
    let publisher = Server::start(|stream, _, _| ok(stream, b"the best"));
    let host = publisher.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let index = Sdist::of(&content()).index(true);
    let simple = format!("{}simple", index.url);
    let variables = [("PIP_INDEX_URL", simple.as_str())];
    let sandbox = with_fallbacks(&host, &Sdist::of(&content()));
    with_path(&sandbox, &["fetch"], &variables).exits_with(0);
    assert_eq!(sandbox.files(), ["best.bin"]);
    assert_eq!(index.requests(), []);
    with_path(&sandbox, &["list"], &variables).exits_with(0).prints("fallback");
    with_path(&sandbox, &["fetch", "--all"], &variables).exits_with(0);
    assert_eq!(sandbox.files(), ["best.bin", "second.bin"]);

    let alone = with_fallbacks(&closed(), &Sdist::of(&content()));
    let ran = with_path(&alone, &["fetch"], &variables);
    ran.exits_with(0).prints("is fetched instead of best").prints("second stands in for it");
    assert_eq!(alone.files(), ["second.bin"]);
    with_path(&alone, &["verify"], &variables).exits_with(0).prints("missing, second stands in for it");
    let ran = with_path(&alone, &["list", "--json"], &variables);
    let rows: serde_json::Value = serde_json::from_str(&ran.exits_with(0).out).expect("JSON");
    assert_eq!(rows[0]["stood_in_by"], "second");
    assert_eq!(rows[1]["fallback_for"][0], "best");
    assert_eq!(rows[1]["files"][0]["sources"][0], "a_b-1.0/data/m.bin in the source package A.b==1.0");
    // A kind is all of it, with its fallbacks.
    fs::remove_file(alone.path("models/second.bin")).expect("removed");
    with_path(&alone, &["fetch", "detector"], &variables).exits_with(0);
    assert_eq!(alone.files(), ["second.bin"]);
    // Who asks for the preferred file by its name wants that one.
    with_path(&alone, &["fetch", "best"], &variables).exits_with(1);
    // A damaged fallback stands in for nothing.
    fs::write(alone.path("models/second.bin"), vec![0; content().len()]).expect("a file");
    with_path(&alone, &["verify"], &variables).exits_with(1).prints("expected sha256");
    with_path(&alone, &["fetch"], &variables).exits_with(0);
    assert_eq!(alone.fetched("second"), Some(content()));
}

#[test]
fn a_stand_in_counts_only_if_complete() {
    let stages = Server::start(|stream, _, _| ok(stream, b"stage"));
    let mut sandbox = Sandbox::new();
    let pinned = |content: &[u8]| format!("sha256 = \"{}\"\nbytes = {}\n", sha256(content), content.len());
    let lost = format!("{}stood_in_by = \"mtcnn\"\n", pinned(b"best"));
    sandbox.entry("best", "detector", &lost, &format!("{{ url = \"http://{}/best\" }}", closed()));
    for stage in ["one", "two"] {
        sandbox.entry(stage, "mtcnn", &pinned(b"stage"), &url(&stages, stage));
    }
    sandbox.run(&["fetch", "best"]).exits_with(1);
    sandbox.run(&["fetch", "detector"]).exits_with(1).prints("cannot run: facedetect with model=best");
    sandbox
        .run(&["fetch"])
        .exits_with(0)
        .prints("mtcnn stands in for it")
        .prints("elements at the edge run only if");
    sandbox.run(&["verify"]).exits_with(0).prints("missing, mtcnn stands in for it");
    sandbox.run(&["fetch", "detector"]).exits_with(0);
    fs::remove_file(sandbox.path("models/two.bin")).expect("removed");
    sandbox.run(&["verify"]).exits_with(1);
}

#[test]
fn the_registries_set_contacts_no_other_host() {
    let publisher = Server::start(|stream, _, _| ok(stream, b"the best"));
    let host = publisher.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let index = Sdist::of(&content()).index(true);
    let simple = format!("{}simple", index.url);
    let sandbox = with_fallbacks(&host, &Sdist::of(&content()));
    with_path(&sandbox, &["fetch", "--set", "registries"], &[("PIP_INDEX_URL", &simple)]).exits_with(0);
    assert_eq!(sandbox.files(), ["second.bin"]);
    assert_eq!(publisher.requests(), []);
    // The mirror folder is no host.
    fs::create_dir_all(sandbox.path("mirror/models")).expect("a folder");
    fs::write(sandbox.path("mirror/models/second.bin"), content()).expect("a file");
    fs::remove_file(sandbox.path("models/second.bin")).expect("removed");
    let mirror = sandbox.path("mirror").display().to_string();
    let closed = format!("http://{}/simple", closed());
    let variables = [("PIP_INDEX_URL", closed.as_str()), ("FACEPIPE_MIRROR", &mirror)];
    with_path(&sandbox, &["fetch", "--set", "registries"], &variables)
        .exits_with(0)
        .prints("from the mirror");
}

#[test]
fn the_report_lists_sources_targets_and_consequences_of_missing_files() {
    let (_, pin) = npm_package(&content());
    let publisher = closed();
    let sources =
        format!("{{ url = \"http://{publisher}/one\" }}, {{ url = \"http://{publisher}/two\" }}, {NPM}");
    let mut sandbox = Sandbox::new().file("a", &content(), &sources);
    sandbox.manifest += &pin;
    let sandbox = sandbox.collection(
        "lfw10",
        Some(&format!("http://{publisher}/")),
        &[("x/1.jpg", b"1"), ("x/2.jpg", b"2")],
    );
    let registry = closed();
    fake_npm(&sandbox, &format!("http://{registry}/"), b"");
    let ran = with_path(&sandbox, &["fetch"], &[]);
    ran.exits_with(1)
        .prints(&format!("by hand:    http://{publisher}/one"))
        .prints(&format!("by hand:    http://{publisher}/two"))
        .prints("by hand:    package/model/m.bin in the npm package @a/b@1.0.0")
        .prints(&format!("sha256:     {}, 300000 bytes", sha256(&content())))
        .prints(&format!("put it at:  {}", sandbox.path("models/a.bin").display()))
        .prints("cannot run: facedetect with model=a")
        .prints("and 1 more of 2 files: `facepipe models list --json lfw10`")
        .prints(&format!("put it at:  {}", sandbox.path("models/assets/lfw10/x/1.jpg").display()))
        .prints("elements at the edge cannot run: they need a or all stages of mtcnn")
        .prints("demo                 cannot run");
    assert_eq!(sandbox.files(), Vec::<String>::new());
    // What was put there by hand is taken.
    fs::write(sandbox.path("models/a.bin"), content()).expect("a file");
    let ran = with_path(&sandbox, &["fetch"], &[]);
    ran.exits_with(0)
        .prints("already there")
        .prints("elements at the edge run only if the system has an ONNX Runtime");
}

#[test]
fn a_damaged_file_is_replaced_wherever_the_damage_is() {
    let mut damaged = content();
    damaged[123_456] ^= 1;
    let served = damaged.clone();
    let bad = Server::start(move |stream, _, _| ok(stream, &served));
    let good = Server::start(|stream, _, _| ok(stream, &content()));
    let sandbox = Sandbox::new().file("a", &content(), &format!("{}, {}", url(&bad, "a"), url(&good, "a")));
    fs::create_dir_all(sandbox.path("mirror/models")).expect("a folder");
    fs::create_dir_all(sandbox.path("models")).expect("a folder");
    // In place, in the mirror, and from the first source.
    fs::write(sandbox.path("models/a.bin"), &damaged).expect("a file");
    fs::write(sandbox.path("mirror/models/a.bin"), &damaged).expect("a file");
    let mirror = sandbox.path("mirror").display().to_string();
    sandbox.run(&["verify"]).exits_with(1).prints("expected sha256");
    sandbox.run(&["fetch", "--mirror", &mirror]).exits_with(0).prints("from 127.0.0.1");
    assert_eq!(sandbox.fetched("a"), Some(content()));
    assert_eq!((bad.requests().len(), good.requests().len()), (1, 1));
    sandbox.run(&["verify"]).exits_with(0);

    // Inside a package: the package is the pinned one, its member is not the file that is meant.
    let (package, pin) = npm_package(&damaged);
    let mut sandbox = Sandbox::new().file("a", &content(), NPM);
    sandbox.manifest += &pin;
    fake_npm(&sandbox, &good.url, &package);
    let found =
        format!("npm package @a/b@1.0.0: expected sha256 {}, found {}", sha256(&content()), sha256(&damaged));
    with_path(&sandbox, &["fetch"], &[]).exits_with(1).prints(&found);
    assert_eq!(sandbox.files(), Vec::<String>::new());
}

#[test]
fn a_failed_host_is_not_contacted_again_but_others_are() {
    let dead = closed();
    let alive = Server::start(|stream, _, _| ok(stream, &content()));
    let sources = format!("{{ url = \"http://{dead}/a\" }}, {}", url(&alive, "a"));
    let sandbox = Sandbox::new().file("a", &content(), &sources).file("b", &content(), &sources);
    sandbox.run(&["fetch"]).exits_with(0);
    assert_eq!(sandbox.files(), ["a.bin", "b.bin"]);
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let connections = silent.try_clone().expect("a clone");
    let counted = std::thread::spawn(move || {
        // Hangs up without an answer, until the last connection, which is this test's.
        let mut count = 0;
        for mut stream in connections.incoming().flatten() {
            let mut first = [0];
            if std::io::Read::read(&mut stream, &mut first).unwrap_or(0) == 1 && first == *b"!" {
                break;
            }
            count += 1;
        }
        count
    });
    let address = silent.local_addr().expect("an address");
    let names: Vec<String> = (0..50).map(|i| format!("{i}.jpg")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    let sandbox = Sandbox::new().collection("pictures", Some(&format!("http://{address}/")), &files);
    sandbox.run(&["fetch"]).exits_with(0).prints("50 missing");
    std::net::TcpStream::connect(address)
        .and_then(|mut stream| stream.write_all(b"!"))
        .expect("a connection");
    let count = counted.join().expect("a count");
    assert!(count <= 8, "{count} connections for 50 files");
}

#[test]
fn progress_is_printed_without_a_terminal() {
    let large: Vec<u8> = content().into_iter().cycle().take(2 << 20).collect();
    let served = large.clone();
    let server = Server::start(move |stream, _, _| ok(stream, &served));
    let sandbox = Sandbox::new().file("a", &large, &url(&server, "a"));
    sandbox
        .run(&["fetch"])
        .exits_with(0)
        .prints("downloading a.bin: 0 B of 2.00 MiB")
        .prints("downloaded a.bin: 2.00 MiB of 2.00 MiB")
        .prints("from 127.0.0.1, 2.00 MiB");
}

/// The hosts that the manifest names become hosts that cannot exist (RFC 2606); registries are asked as this machine is
/// configured.
#[test]
fn with_registries_alone_everything_that_the_demo_needs_is_there() {
    let reachable = |client: &str, arguments: &[&str]| {
        let status =
            Command::new(client).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !reachable(
        "python3",
        &["-m", "pip", "--timeout", "5", "--retries", "0", "index", "versions", "onnxruntime"],
    ) {
        return facepipe_test_support::skip("PyPI cannot be reached");
    }
    let has_npm = reachable("npm", &["--fetch-retries=0", "--fetch-timeout=5000", "ping"]);
    let manifest = fs::read_to_string(facepipe_test_support::workspace_root().join("models/manifest.toml"));
    let mut sandbox = Sandbox::new();
    sandbox.manifest =
        manifest.expect("the manifest").replace("url = \"https://", "url = \"https://publisher.invalid/");
    let mut command = sandbox.command(&["fetch"]);
    // As this machine is configured, not as the other tests are.
    command.env_remove("PIP_CONFIG_FILE").env_remove("npm_config_userconfig");
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("PIP_")) {
        command.env(name, value);
    }
    let ran = ProgramOutput::from(command.output().expect("the program runs"));
    let mut command = sandbox.command(&["list", "--json"]);
    let list = ProgramOutput::from(command.output().expect("the program runs"));
    let rows: serde_json::Value = serde_json::from_str(&list.out).expect("JSON");
    let states: BTreeMap<&str, &serde_json::Value> =
        rows.as_array().expect("rows").iter().filter_map(|row| Some((row["name"].as_str()?, row))).collect();
    for name in ["mtcnn-pnet", "mtcnn-rnet", "mtcnn-onet", "onnxruntime", "gallery"] {
        assert_eq!(states[name]["state"], "present", "{name}\n{}\n{}", ran.out, ran.err);
    }
    if !has_npm {
        ran.exits_with(8);
        return;
    }
    for row in
        states.values().filter(|row| row["fallback_for"].as_array().is_some_and(|names| !names.is_empty()))
    {
        assert_eq!(row["state"], "present", "{row}\n{}\n{}", ran.out, ran.err);
    }
    for row in states.values().filter(|row| row["required"] == true && row["state"] != "present") {
        assert!(row["stood_in_by"].is_string(), "{row}\n{}\n{}", ran.out, ran.err);
    }
    ran.exits_with(0)
        .prints("elements at the edge run, with mtcnn")
        .prints("server               runs, with dlib-resnet");
    ran.prints("runs, with the people of gallery and a video that it renders from them");
    assert_eq!(states["lfw10"]["stood_in_by"], "gallery");
    assert!(!sandbox.files().iter().any(|file| file.ends_with(".part") || file.ends_with(".new")));
}
