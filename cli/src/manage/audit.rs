//! `facepipe audit`: who looked at whom, and who did what.

use std::{
    fs::OpenOptions,
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use super::{DEFAULT_NUMBER, Query, collect_pages, counted};
use crate::{
    client::{AuditEntry, Client},
    connection::Target,
    exit::{self, Outcome},
    output, runtime,
};

/// Lists, exports and verifies the server's audit log: who looked at whom, and who did what.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe audit
  facepipe audit list --action erase --since 2024-05-01T00:00:00Z -n 1000
  facepipe audit list --object 018f4c9a-7b1e-7c3d-9a2f-5d6e7f8a9b0c
  facepipe audit export audit.jsonl
  facepipe audit verify

An act has two entries: one before it begins, and one with its outcome.

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the newest entries
    List(List),
    /// Write entries as JSON lines, the oldest first
    Export {
        /// The file; standard output if none
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Check that no entry was changed, removed or inserted
    Verify,
}

#[derive(Debug, Default, Args)]
struct List {
    /// Maximum number
    #[arg(long, short, default_value_t = DEFAULT_NUMBER, value_name = "N")]
    number: usize,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Default, Args)]
struct Filter {
    /// Only of this time or later, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only of this action: look, recognise, search, enrol, change, erase, export, train, activate, operate, access, refuse
    /// or trim
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only of this principal: id, name of a camera or token, or kind
    #[arg(long, value_name = "WHO")]
    principal: Option<String>,
    /// Only about the object with this id or keyed hash, or about what belongs to the person with it
    #[arg(long, value_name = "ID")]
    object: Option<String>,
}

impl Filter {
    fn extend(&self, query: &mut Query) {
        let filters = [
            ("since", &self.since),
            ("until", &self.until),
            ("action", &self.action),
            ("principal", &self.principal),
            ("object", &self.object),
        ];
        query.extend(filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    }
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it, the file cannot be written, or the log is broken.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let (client, json) = (&options.target.client()?, options.target.json);
        match &options.action {
            None => list(client, &List { number: DEFAULT_NUMBER, ..List::default() }, json).await,
            Some(Action::List(what)) => list(client, what, json).await,
            Some(Action::Export { file, filter }) => export(client, file.as_deref(), filter).await,
            Some(Action::Verify) => verify(client, json).await,
        }
    })
}

async fn list(client: &Client, List { number, filter }: &List, json: bool) -> Result<Outcome> {
    let entries = collect_pages(*number, |mut query| async move {
        filter.extend(&mut query);
        let page = client.audit(&query).await?;
        Ok((page.entries, page.meta.next_cursor))
    })
    .await?;
    if json {
        output::json(&entries)?;
    } else if entries.is_empty() {
        output::line("No entry.");
    } else {
        let headings = ["Id", "At", "Who", "From", "Action", "Call", "About", "Outcome"];
        output::table(headings, entries.iter().map(row));
    }
    Ok(Outcome::Done)
}

fn row(entry: &AuditEntry) -> [String; 8] {
    let principal = &entry.principal;
    let id = principal.id.map(|id| format!(" {id}")).unwrap_or_default();
    let dash = || "-".to_owned();
    let about = entry.object.as_ref().map_or_else(dash, |object| {
        let id = object.id.clone().or_else(|| Some(format!("#{}", object.hash.get(..12)?)));
        format!("{} {}", object.kind, id.unwrap_or_else(dash))
    });
    let calls = if entry.calls > 1 { format!(" x{}", entry.calls) } else { String::new() };
    let status = entry.status.map(|status| format!(" ({status})")).unwrap_or_default();
    [
        entry.id.to_string(),
        entry.at.clone(),
        principal.name.clone().unwrap_or_else(|| format!("{}{id}", principal.kind)),
        entry.address.clone().unwrap_or_else(dash),
        entry.action.clone(),
        entry.route.clone(),
        about,
        format!("{}{status}{calls}", entry.outcome),
    ]
}

async fn export(client: &Client, file: Option<&Path>, filter: &Filter) -> Result<Outcome> {
    let cannot_write = |file: &Path| format!("cannot write {}", file.display());
    let mut written = match file {
        Some(file) => {
            // Who did what is not for all accounts of this machine.
            let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file);
            Some(BufWriter::new(opened.with_context(|| cannot_write(file))?))
        }
        None => None,
    };
    let (mut number, mut cursor, mut outcome) = (0_usize, None::<String>, Outcome::Done);
    loop {
        let mut query = vec![("order", "oldest".to_owned()), ("limit", super::MAX_PAGE.to_string())];
        filter.extend(&mut query);
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page = client.audit(&query).await?;
        for entry in &page.entries {
            match &mut written {
                None => output::json_line(entry)?,
                Some(written) => {
                    serde_json::to_writer(&mut *written, entry)?;
                    written.write_all(b"\n")?;
                }
            }
        }
        number += page.entries.len();
        // A page that is not full has the newest entry: reading on would only find the entries about reading.
        let full = page.entries.len() == super::MAX_PAGE;
        cursor = page.meta.next_cursor.filter(|_| full);
        if cursor.is_none() {
            break;
        }
        if crate::interrupt::requested() {
            outcome = Outcome::Interrupted;
            break;
        }
    }
    if let (Some(mut written), Some(file)) = (written, file) {
        written.flush().with_context(|| cannot_write(file))?;
        let entries = counted(i128::try_from(number)?, "entry");
        if outcome == Outcome::Done {
            output::line(format!("Wrote {entries} to {}.", file.display()));
        } else {
            eprintln!("facepipe: interrupted: {} is incomplete, with the oldest {entries}", file.display());
        }
    } else if outcome == Outcome::Interrupted {
        eprintln!("facepipe: interrupted: the export is incomplete, the newest entries are missing");
    }
    Ok(outcome)
}

async fn verify(client: &Client, json: bool) -> Result<Outcome> {
    let verified = client.verify_audit().await?;
    if json {
        output::json(&verified)?;
    }
    match &verified.broken {
        Some(broken) => {
            anyhow::bail!("the audit log is broken at entry {}: {}", broken.id, explained(&broken.fault))
        }
        None if json => (),
        None => {
            let from = verified.trimmed_up_to.map_or(1, |id| id + 1);
            match (verified.last_id, &verified.last_hash) {
                (Some(last), Some(hash)) => output::line(format!(
                    "The audit log is intact: entries {from} to {last}. Hash of the last one: {hash}"
                )),
                _ => output::line("The audit log is empty."),
            }
        }
    }
    Ok(Outcome::Done)
}

fn explained(fault: &str) -> String {
    match fault {
        "missing" => "it is missing".into(),
        "content" => "it was changed".into(),
        "link" => "it does not follow the entry before".into(),
        "object" => "the id of its object was changed".into(),
        "end" => "it is not the last one that was written".into(),
        "beginning" => "the log does not begin where it says".into(),
        other => other.into(),
    }
}
