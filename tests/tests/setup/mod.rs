//! What `make demo` builds, and what one sees meanwhile.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use facepipe_test_support::workspace_root;

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

/// The commands of `make demo` where the build folder is `target`.
fn commands_of_demo(target: &Path) -> String {
    let said = Command::new("make")
        .args(["--dry-run", "demo"])
        .current_dir(workspace_root())
        // This test may be run by make itself.
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", text(&said.stderr));
    text(&said.stdout)
}

fn only_build(commands: &str) -> &str {
    let builds: Vec<&str> = commands.lines().filter(|line| line.contains("cargo build")).collect();
    let [build] = builds[..] else { panic!("not one build:\n{commands}") };
    assert!(!commands.contains("cargo test") && !commands.contains("packages.sh test"), "{commands}");
    build
}

#[test]
fn the_demo_builds_what_it_runs_and_no_test_no_bench_and_no_helper_of_theirs() {
    let target = tempfile::tempdir().unwrap();
    let commands = commands_of_demo(target.path());
    let build = only_build(&commands);
    for packages in
        ["-p facepipe-backend ", "-p facepipe-cli ", "-p gst-plugin-facepipe ", "--no-default-features "]
    {
        assert!(build.contains(packages), "{build}");
    }
    for more in ["--workspace", "--all-targets", "--tests", "--benches", "--examples", "--all-features"] {
        assert!(!build.contains(more), "{build}");
    }
}

#[test]
fn the_demo_takes_what_was_built_with_everything_and_builds_nothing_beside_it() {
    let target = tempfile::tempdir().unwrap();
    fs::create_dir(target.path().join("debug")).unwrap();
    fs::write(target.path().join("debug/.built-all"), "").unwrap();
    let commands = commands_of_demo(target.path());
    let build = only_build(&commands);
    assert!(build.contains("--workspace --lib --bins"), "{build}");
    assert!(!build.contains("--tests") && !build.contains("--no-default-features"), "{build}");
}

/// The crates that a build of ours compiles, each as `format` says (`{p}` its name and version, `{f}` its features), from what
/// cargo is given.
fn crates(format: &str, arguments: &[&str]) -> BTreeSet<String> {
    let said = Command::new("cargo")
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", format])
        .args(arguments)
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(said.status.success(), "{}", text(&said.stderr));
    let lines = text(&said.stdout);
    lines.lines().map(|line| line.trim_end_matches(" (*)").replace(" (proc-macro)", "")).collect()
}

/// What cargo is given of `make demo`'s build to say what that compiles.
const DEMO: [&str; 9] = [
    "-p",
    "facepipe-backend",
    "-p",
    "facepipe-cli",
    "-p",
    "gst-plugin-facepipe",
    "--no-default-features",
    "--edges",
    "normal,build",
];

fn name(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

#[test]
fn the_demo_goes_without_what_no_face_needs_and_the_whole_build_has_all_of_it() {
    let demo = crates("{p}", &DEMO);
    let whole = crates("{p}", &["--workspace", "--edges", "normal,build"]);
    // Traces, S3 and Azure (whose listings are XML), database servers, plots, completions and manual pages.
    for optional in [
        "opentelemetry",
        "opentelemetry-otlp",
        "opentelemetry-proto",
        "quick-xml",
        "pq-sys",
        "mysqlclient-sys",
        "plotters",
        "clap_complete",
        "clap_mangen",
    ] {
        let has_it = |crates: &BTreeSet<String>| crates.iter().any(|line| name(line) == optional);
        assert!(!has_it(&demo), "the demo compiles {optional}");
        assert!(has_it(&whole), "nothing compiles {optional}");
    }
    for of_tests in ["criterion", "facepipe-test-support", "gst-plugin-mock-nv", "utoipa-gen"] {
        assert!(!demo.iter().any(|line| name(line) == of_tests), "the demo compiles {of_tests}");
    }
}

#[test]
fn what_the_demo_compiled_is_not_compiled_again_for_tests_but_where_features_differ() {
    let demo = crates("{p} {f}", &DEMO);
    let tests = crates("{p} {f}", &["--workspace", "--edges", "normal,build,dev"]);
    let again: BTreeSet<&str> = demo.difference(&tests).map(|line| name(line)).collect();
    let meant = [
        "chrono",
        "diesel",
        "diesel_derives",
        "diesel_migrations",
        "facepipe-backend",
        "facepipe-cli",
        "gst-plugin-facepipe",
        "object_store",
    ];
    assert_eq!(again, BTreeSet::from(meant), "ask for the same features in Cargo.toml, whatever is built");
}

/// What `scripts/progress.py KIND` makes of a command that prints `script`, told of every step.
fn progress(kind: &str, script: &str) -> Output {
    Command::new("python3")
        .arg(workspace_root().join("scripts/progress.py"))
        .args([kind, "bash", "-c", script])
        .env("FACEPIPE_PROGRESS_SECONDS", "0")
        .output()
        .unwrap()
}

#[test]
fn without_a_terminal_a_build_says_how_many_units_of_how_many_and_what_is_wrong() {
    let said = progress(
        "cargo",
        r#"printf ' Downloading 7 crates, remaining bytes: 2.1MB\r' >&2
           printf '\r\033[K   Compiling syn v2.0.1\n    Building [>   ] 3/647: syn, libc\r' >&2
           printf '\033[K    Building [==> ] 301/647: facepipe-backend\r' >&2
           printf '\033[Kerror[E0308]: mismatched types\n  --> src/lib.rs:1:1\n' >&2; exit 101"#,
    );
    assert_eq!(said.status.code(), Some(101));
    let lines = text(&said.stdout);
    let mut lines = lines.lines();
    for expected in [
        "downloading 7 crates, remaining bytes: 2.1MB",
        "3 of 647 units compiled, now syn, libc",
        "301 of 647 units compiled, now facepipe-backend",
        "error[E0308]: mismatched types",
        "  --> src/lib.rs:1:1",
    ] {
        let line = lines.next().unwrap_or_default();
        assert!(line.ends_with(expected), "{line:?}, not {expected:?}");
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn packages_are_counted_and_what_apt_says_is_shown_where_it_fails() {
    let script = "echo 'Reading package lists...'; echo 'dlstatus:1:20.5:Retrieving file 3 of 60'; \
                  echo 'pmstatus:nasm:45.2:Unpacking nasm (amd64)'; echo 'E: no space left'";
    let said = progress("apt", script);
    assert!(said.status.success());
    let lines = text(&said.stdout);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].ends_with("downloading Debian packages, 20 %: Retrieving file 3 of 60"), "{lines:?}");
    assert!(lines[1].ends_with("installing Debian packages, 45 %: Unpacking nasm (amd64)"), "{lines:?}");
    assert_eq!(text(&said.stderr), "");

    let failed = progress("apt", &format!("{script}; exit 100"));
    assert_eq!(failed.status.code(), Some(100));
    assert!(text(&failed.stderr).contains("E: no space left"), "{}", text(&failed.stderr));
}
