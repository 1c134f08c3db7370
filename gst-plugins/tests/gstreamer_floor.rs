//! The plugin must load into GStreamer 1.16 and GLib 2.64 (JetPack 5, Ubuntu 20.04), so it must not use newer symbols. The `-sys`
//! crates declare each function behind a feature for the version that introduced it, so their sources have the versions.
//! `FACEPIPE_CHECKED_PLUGIN` names another build of the plugin to check.

#![cfg(not(feature = "v1_24"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use facepipe_test_support::workspace_root;

/// Major and minor version.
type Version = (u32, u32);

/// A library: the prefix of its crates' names, the prefixes of its functions' names, and the newest version that may be
/// required.
struct Library {
    crates: &'static str,
    symbols: &'static [&'static str],
    floor: Version,
}

const LIBRARIES: [Library; 2] = [
    Library { crates: "gstreamer", symbols: &["gst_", "_gst_"], floor: (1, 16) },
    Library { crates: "g", symbols: &["g_", "_g_"], floor: (2, 64) },
];

/// Functions of headers since 1.0 that no `-sys` crate declares: gstinfo.h and gstmemory.h.
const SINCE_EVER: [&str; 3] = ["_gst_debug_category_new", "_gst_debug_get_category", "gst_memory_alignment"];

/// Declared functions with the version that introduced them; `None` if that is older than all versions of the crates.
type Declared = BTreeMap<String, Option<Version>>;

/// Reads the declarations of one source file of a `-sys` crate: generated code, one item a line, with its attributes above.
fn declarations(source: &str, declared: &mut Declared) {
    let mut since = None;
    for line in source.lines().map(str::trim) {
        if let Some(condition) = line.strip_prefix("#[cfg(") {
            let versions = condition.split("feature = \"v").skip(1).filter_map(|rest| {
                let (version, _) = rest.split_once('"')?;
                let mut numbers = version.split('_').map(str::parse);
                Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
            });
            // The newest of several conditions applies.
            since = versions.chain(since).max();
        } else if let Some(name) = item(line) {
            declared.insert(name.to_owned(), since.take());
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            since = None;
        }
    }
}

/// Returns the name of the function or variable that a line declares.
fn item(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub fn ").or_else(|| line.strip_prefix("pub static "))?;
    rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
}

/// Returns the declarations of the `-sys` crates of this workspace.
fn declared(library: &Library) -> Declared {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"])
        .current_dir(workspace_root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut declared: Declared = SINCE_EVER.iter().map(|name| ((*name).to_owned(), None)).collect();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if !(name.starts_with(library.crates) && name.ends_with("-sys")) {
            continue;
        }
        let sources = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().join("src");
        for file in ["lib.rs", "manual.rs"] {
            if let Ok(source) = fs::read_to_string(sources.join(file)) {
                declarations(&source, &mut declared);
            }
        }
    }
    declared
}

/// Returns the symbols that are too new for this library's minimum version, with the reason.
fn too_new<'a>(
    library: &Library,
    declared: &Declared,
    symbols: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let ours = symbols.filter(|name| library.symbols.iter().any(|start| name.starts_with(start)));
    let judge = |name: &str| match declared.get(name) {
        None => Some(format!("{name} is in no -sys crate, so its version is unknown")),
        Some(Some(since)) if *since > library.floor => {
            Some(format!("{name} came with {}.{}", since.0, since.1))
        }
        Some(_) => None,
    };
    ours.filter_map(judge).collect()
}

/// Returns the undefined symbols of a shared library, without their versions.
fn undefined(library: &Path) -> BTreeSet<String> {
    let output = Command::new("nm").args(["-D", "--undefined-only"]).arg(library).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(1));
    names.map(|name| name.split('@').next().unwrap().to_owned()).collect()
}

/// Returns the library that cargo built next to this test, or the one that the variable names.
fn plugin() -> PathBuf {
    if let Some(named) = env::var_os("FACEPIPE_CHECKED_PLUGIN") {
        return named.into();
    }
    let test = env::current_exe().unwrap();
    test.parent().unwrap().join("libgstfacepipe.so")
}

#[test]
fn the_plugin_needs_nothing_newer_than_gstreamer_1_16_and_glib_2_64() {
    let symbols = undefined(&plugin());
    for library in &LIBRARIES {
        let declared = declared(library);
        let some = symbols.iter().filter(|name| library.symbols.iter().any(|start| name.starts_with(start)));
        assert!(
            some.count() > 40,
            "the plugin hardly takes anything from {}; was it stripped?",
            library.crates
        );
        let wrong = too_new(library, &declared, symbols.iter().map(String::as_str));
        assert!(wrong.is_empty(), "newer than {:?}: {wrong:#?}", library.floor);
    }
}

#[test]
fn a_symbol_that_is_too_new_is_found() {
    let [gstreamer, glib] = &LIBRARIES;
    let declared_by_gstreamer = declared(gstreamer);
    // Of 1.0, 1.16, 1.18, 1.20, and of no version; and one that is another library's.
    let symbols = [
        "gst_buffer_new",
        "gst_buffer_list_calculate_size",
        "gst_buffer_add_audio_level_meta",
        "gst_element_get_current_clock_time",
        "gst_buffer_new_memdup",
        "gst_buffer_guess",
        "g_object_ref",
    ];
    let found = too_new(gstreamer, &declared_by_gstreamer, symbols.into_iter());
    assert_eq!(
        found,
        [
            "gst_buffer_add_audio_level_meta is in no -sys crate, so its version is unknown",
            "gst_element_get_current_clock_time came with 1.18",
            "gst_buffer_new_memdup came with 1.20",
            "gst_buffer_guess is in no -sys crate, so its version is unknown",
        ]
    );
    let found = too_new(glib, &declared(glib), ["g_object_ref", "g_uri_parse"].into_iter());
    assert_eq!(found, ["g_uri_parse came with 2.66"]);
}

/// The installed GStreamer's own core elements do not load into 1.16.
#[test]
fn a_plugin_for_a_newer_gstreamer_is_found() {
    let output =
        Command::new("pkg-config").args(["--variable=pluginsdir", "gstreamer-1.0"]).output().unwrap();
    let folder = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let core = folder.join("libgstcoreelements.so");
    let [gstreamer, _] = &LIBRARIES;
    let declared = declared(gstreamer);
    let found = too_new(gstreamer, &declared, undefined(&core).iter().map(String::as_str));
    assert!(found.iter().any(|line| line.contains(" came with 1.")), "{}: {found:#?}", core.display());
}
