//! Commands to try after the demo, ready to paste.

use std::{env, path::Path};

use crate::output::quoted;

/// A suggested command.
pub struct Suggestion {
    /// The command line.
    pub command: String,
    /// Its effect, in a few words.
    pub description: &'static str,
}

fn line(program: &str, arguments: &[&str]) -> String {
    let words = [program].iter().chain(arguments).map(|word| quoted(word)).collect::<Vec<_>>();
    words.join(" ")
}

/// Returns how to call this program from the current folder.
fn program() -> String {
    let Ok(program) = env::current_exe() else { return "facepipe".to_owned() };
    let on_the_path = env::var_os("PATH").is_some_and(|path| {
        let first = env::split_paths(&path).map(|folder| folder.join("facepipe")).find(|file| file.is_file());
        first.and_then(|file| file.canonicalize().ok()) == program.canonicalize().ok()
    });
    if on_the_path {
        return "facepipe".to_owned();
    }
    let here = env::current_dir().ok();
    let within = here.and_then(|here| program.strip_prefix(here).map(Path::to_path_buf).ok());
    within.unwrap_or(program).display().to_string()
}

/// Returns suggestions while the backend runs at `server`. `person` was seen, `photographs` is a folder of theirs.
pub fn with_running_backend(
    server: &str,
    person: Option<&str>,
    photographs: Option<&Path>,
) -> [Suggestion; 3] {
    let program = program();
    let who = match person {
        Some(person) => Suggestion {
            // A name may begin with a dash.
            command: line(&program, &["locate", "--server", server, "--", person]),
            description: "where somebody was seen last",
        },
        None => Suggestion {
            command: line(&program, &["people", "list", "--server", server]),
            description: "who is enrolled",
        },
    };
    let ask = match photographs {
        Some(folder) => Suggestion {
            command: line(
                &program,
                &["recognize", "folder", "--server", server, "--", &folder.display().to_string()],
            ),
            description: "who is on the pictures of a folder",
        },
        None => Suggestion {
            command: line(&program, &["cameras", "list", "--server", server]),
            description: "which cameras sent something",
        },
    };
    let all = Suggestion {
        command: line(&program, &["detections", "--server", server]),
        description: "everybody who was seen, the newest first",
    };
    [who, all, ask]
}

/// Returns suggestions after the backend has ended. `demo_arguments` are the arguments of this run.
pub fn after_demo(demo_arguments: &[String], trial: &[String], video: &Path, out: &Path) -> [Suggestion; 3] {
    let program = program();
    let mut keep = vec!["demo", "--keep"];
    keep.extend(demo_arguments.iter().map(String::as_str));
    let (video, faces) = (video.display().to_string(), out.join("faces").display().to_string());
    let mut bandwidth = vec!["bench", "bandwidth", video.as_str(), "--fast"];
    bandwidth.extend(trial.iter().map(String::as_str));
    [
        Suggestion {
            command: line(&program, &keep),
            description: "the same, and the backend goes on running for questions of yours",
        },
        Suggestion {
            command: line(&program, &["extract", &video, &faces, "--resume"]),
            description: "the faces of the video as files",
        },
        Suggestion {
            command: line(&program, &bandwidth),
            description: "what each face would cost in uplink, and what the best ones cost",
        },
    ]
}

/// Returns suggestions after a run of the edge alone.
pub fn without_backend_suggestions(demo_arguments: &[String], video: &Path, out: &Path) -> [Suggestion; 3] {
    let program = program();
    let mut demo = vec!["demo"];
    demo.extend(demo_arguments.iter().map(String::as_str));
    let (video, faces) = (video.display().to_string(), out.join("faces").display().to_string());
    [
        Suggestion {
            command: line(&program, &["models", "fetch"]),
            description: "fetches what is missing, or says what to do",
        },
        Suggestion { command: line(&program, &demo), description: "the demo once more" },
        Suggestion {
            command: line(&program, &["extract", &video, &faces, "--resume"]),
            description: "the faces of the video as files",
        },
    ]
}
