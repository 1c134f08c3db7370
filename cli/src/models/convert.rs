//! `facepipe models convert`: converts the published weights of the server's networks to safetensors, which the server reads.

use std::{path::Path, process::ExitCode};

use facepipe_convert::{Conversion, ConvertedFile, convert_folder};
use facepipe_vision::weights::{published_files, safetensors_path};

/// Converts the published weights in `from` to safetensors in `to`, prints a line per file, and returns the exit code.
pub fn convert(from: &Path, to: &Path) -> ExitCode {
    let files = match convert_folder(from, to) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("facepipe: {error}");
            return ExitCode::FAILURE;
        }
    };
    if files.is_empty() {
        if published_files().iter().any(|name| safetensors_path(from, name).is_file()) {
            println!("{} has safetensors only: there is nothing to convert", from.display());
            return ExitCode::SUCCESS;
        }
        eprintln!(
            "facepipe: {} has none of the server's weights ({}): `facepipe models fetch` downloads them",
            from.display(),
            published_files().join(", ")
        );
        return ExitCode::FAILURE;
    }
    if report(&files, true) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Converts published weights in a folder, and prints the outcome. Returns false, with the reason on standard error, if a file
/// could not be converted.
pub fn convert_fetched(folder: &Path) -> bool {
    match convert_folder(folder, folder) {
        Ok(files) => report(&files, false),
        Err(error) => {
            eprintln!("weights are not converted to safetensors, so a server cannot read them: {error}");
            false
        }
    }
}

/// Prints the outcome for each file, with `all` also for files that needed no conversion. Returns whether all are
/// converted.
fn report(files: &[ConvertedFile], all: bool) -> bool {
    let mut complete = true;
    for ConvertedFile { published, safetensors, outcome } in files {
        let name = published.file_name().unwrap_or_default().display();
        match outcome {
            Ok(Conversion::Converted) => println!("{name:<30} converted to {}", safetensors.display()),
            Ok(Conversion::AlreadyThere) if all => {
                println!("{name:<30} already converted to {}", safetensors.display());
            }
            Ok(Conversion::AlreadyThere) => {}
            Err(error) => {
                eprintln!("{name} is not converted to safetensors, so a server cannot read it: {error}");
                complete = false;
            }
        }
    }
    complete
}
