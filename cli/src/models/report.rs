//! The final report on missing files: the failed attempts, how to get the files by hand, where they belong, and the
//! features that run without them.

use std::fmt::Write as _;

use super::{
    Folders,
    manifest::{Asset, Entry, Kind, Manifest},
    status::{PRESENT, by_size},
};

/// An incomplete entry, with each distinct problem and the number of files that have it.
pub struct MissingEntry<'a> {
    pub entry: &'a Entry,
    pub files: Vec<&'a Asset>,
    pub problems: Vec<(String, usize)>,
}

/// Formats the report.
pub fn missing(missing: &[MissingEntry<'_>], manifest: &Manifest, folders: &Folders) -> String {
    let mut text = String::from("\nMissing:\n");
    for lost in missing {
        write_entry(&mut text, lost, manifest, folders);
    }
    text.push_str("\nWith what is there:\n");
    for (part, state) in capabilities(manifest, folders) {
        line(&mut text, part, &state);
    }
    text
}

fn write_entry(text: &mut String, lost: &MissingEntry<'_>, manifest: &Manifest, folders: &Folders) {
    let MissingEntry { entry, files, problems } = lost;
    let Some(first) = files.first() else { return };
    line(text, &entry.name, &entry.purpose);
    // A few distinct problems are enough.
    for (problem, n) in problems.iter().take(5) {
        let times = if *n > 1 { format!(" ({n} files)") } else { String::new() };
        detail(text, "tried", &format!("{problem}{times}"));
    }
    for source in &first.sources {
        detail(text, "by hand", &source.to_string());
    }
    if let Some(hash) = &first.expected.sha256 {
        let size = first.expected.bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        detail(text, "sha256", &format!("{hash}{size}"));
    }
    detail(text, "put it at", &folders.target(entry, first).display().to_string());
    if let (Some(mirror), Some(path)) = (folders.mirror(), &first.mirror) {
        detail(text, "or at", &format!("{} and fetch again", mirror.join(path).display()));
    }
    if files.len() > 1 {
        let rest = files.len() - 1;
        let all = format!(
            "and {rest} more of {} files: `facepipe models list --json {}` has the addresses and hashes of all",
            entry.files.len(),
            entry.name
        );
        detail(text, "", &all);
    }
    match folders.stand_in(manifest, entry, by_size) {
        Some(other) => detail(text, "without it", &format!("{other} stands in for it")),
        None => detail(text, "cannot run", &entry.consequence()),
    }
}

/// Returns the parts of facepipe and whether they can run.
fn capabilities(manifest: &Manifest, folders: &Folders) -> [(&'static str, String); 3] {
    let here = manifest.select(&[]).unwrap_or_default();
    let is_there = |entry: &&&Entry| folders.row(entry, by_size).state == PRESENT;
    let of = |kind: Kind| here.iter().filter(move |entry| entry.kind == kind);
    let there = |kind: Kind| of(kind).filter(is_there).map(|entry| entry.name.as_str()).collect::<Vec<_>>();
    let names = |kind: Kind| of(kind).map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(" or ");

    let stages = there(Kind::Mtcnn).len();
    let has_mtcnn = stages > 0 && stages == of(Kind::Mtcnn).count();
    let (mut detectors, runtime) = (there(Kind::Detector), there(Kind::Runtime));
    if has_mtcnn {
        // facedetect model=mtcnn, from the same files
        detectors.push(Kind::Mtcnn.name());
    }
    let edge = match (detectors.is_empty(), runtime.is_empty()) {
        (false, false) => format!("run, with {}", detectors.join(", ")),
        (false, true) => "run only if the system has an ONNX Runtime (ORT_DYLIB_PATH names it)".into(),
        (true, _) => format!("cannot run: they need {} or all stages of mtcnn", names(Kind::Detector)),
    };
    let embedders = there(Kind::Embedder);
    let server = match (has_mtcnn, embedders.is_empty()) {
        (true, false) => format!("runs, with {}", embedders.join(", ")),
        (false, _) => "cannot run: it needs all stages of MTCNN".into(),
        (true, true) => format!("cannot run: it needs {}", names(Kind::Embedder)),
    };
    let pictures = there(Kind::Collection);
    let galleries: Vec<&str> =
        ["lfw10", "gallery"].into_iter().filter(|name| pictures.contains(name)).collect();
    let has_video = ["crowds", "street-1080p"].into_iter().any(|name| pictures.contains(&name));
    let runs = !detectors.is_empty() && has_mtcnn && !embedders.is_empty();
    let demo = match (runs, galleries.first(), has_video) {
        (false, ..) => "cannot run: it needs the elements and the server".into(),
        (true, Some(gallery), true) => format!("runs, with the people of {gallery}"),
        (true, Some(gallery), false) => {
            format!("runs, with the people of {gallery} and a video that it renders from them")
        }
        (true, None, true) => {
            "runs, but nobody is enrolled: every face is unknown (--faces names a folder)".into()
        }
        (true, None, false) => "runs with --video and --faces of your own".into(),
    };
    [("elements at the edge", edge), ("server", server), ("demo", demo)]
}

fn line(text: &mut String, name: &str, what: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "  {name:<20} {what}");
}

fn detail(text: &mut String, name: &str, what: &str) {
    let name = if name.is_empty() { String::new() } else { format!("{name}:") };
    let _ = writeln!(text, "  {:20}   {name:<11} {what}", "");
}
