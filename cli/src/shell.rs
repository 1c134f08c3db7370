//! `facepipe completions` and `facepipe man`.

use std::{fs, io::Cursor, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

use crate::{
    exit::{Failure, Outcome},
    output,
};

/// Prints completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  facepipe completions bash > /etc/bash_completion.d/facepipe
  facepipe completions zsh > \"${fpath[1]}/_facepipe\"
  facepipe completions fish > ~/.config/fish/completions/facepipe.fish")]
pub struct CompletionsOptions {
    /// The shell
    shell: Shell,
}

/// Writes the manual pages of the program and its commands.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  facepipe man ~/.local/share/man/man1      (then: man facepipe-enroll-folder)
  facepipe man | man -l -")]
pub struct ManOptions {
    /// Folder for the pages, created if missing [default: print the first page]
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Prints the completions of `command`.
///
/// # Errors
/// The script is no UTF-8, which does not happen.
pub fn completions(options: &CompletionsOptions, mut command: Command) -> Result<Outcome> {
    let mut script = Cursor::new(Vec::new());
    clap_complete::generate(options.shell, &mut command, "facepipe", &mut script);
    output::line(String::from_utf8(script.into_inner())?.trim_end());
    Ok(Outcome::Done)
}

/// Writes or prints the manual of `command`.
///
/// # Errors
/// The folder cannot be written.
pub fn man(options: &ManOptions, command: Command) -> Result<Outcome> {
    if let Some(folder) = &options.folder {
        let wrong = |error| Failure::output(folder.display(), error);
        fs::create_dir_all(folder).map_err(wrong)?;
        clap_mangen::generate_to(command, folder).map_err(wrong)?;
        let pages = fs::read_dir(folder).map_err(wrong)?.count();
        output::line(format!("{pages} pages in {}", folder.display()));
        return Ok(Outcome::Done);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).context("cannot render the page")?;
    output::line(String::from_utf8(page)?.trim_end());
    Ok(Outcome::Done)
}
