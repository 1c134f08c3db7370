//! `facepipe access`: cameras, people and programs that may use the server, and their tokens.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::confirmed;
use crate::{
    client::{AccessToken, Client, ClientError, IssuedToken, Principal},
    connection::Target,
    exit::{self, Failure, Outcome},
    output, runtime,
};

/// Gives cameras, people and programs access to the server, and takes it away.
#[derive(Debug, Args)]
#[command(after_help = format!("\
Examples:
  facepipe access                                       (or: facepipe access list)
  facepipe access add-camera gate-1 --save gate-1.token
  facepipe access add ada --scopes read,enrol
  facepipe access add dashboard --scopes read --days 365 --save dashboard.token
  facepipe access show gate-1
  facepipe access rotate 17 --overlap 3600 --save gate-1.token.new
  facepipe access revoke 17
  facepipe access change ada --scopes read,enrol,operate
  facepipe access remove gate-1 --yes

A token is shown once, alone on standard output or in the file of --save. The first
token of a server comes from `facepipe-backend access add-admin NAME`, on its machine.

{}", exit::HELP))]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List who has access
    List,
    /// Show a camera, person or program with its tokens
    Show {
        /// Name or id
        name: String,
    },
    /// Give access to a camera or edge node, and make its first token
    AddCamera {
        /// Name
        name: String,
        /// The only camera id that it may upload for [default: the name]
        #[arg(long, value_name = "ID", conflicts_with = "any_camera")]
        camera_id: Option<String>,
        /// It may upload for any camera id: an edge node with several cameras
        #[arg(long)]
        any_camera: bool,
        /// Name people in the responses to its images, for names in the picture (faceoverlay)
        #[arg(long)]
        may_see_names: bool,
        /// What it may do
        #[arg(long, value_name = "SCOPES", value_enum, value_delimiter = ',', default_value = "upload")]
        scopes: Vec<Scope>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Give access to a person or program, and make its first token
    Add {
        /// Name
        name: String,
        /// What it may do
        #[arg(long, value_name = "SCOPES", value_enum, value_delimiter = ',', required = true)]
        scopes: Vec<Scope>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Change what a camera, person or program may do; its tokens stay
    Change {
        /// Name or id
        name: String,
        /// Another name
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        /// What it may do
        #[arg(long, value_name = "SCOPES", value_enum, value_delimiter = ',')]
        scopes: Option<Vec<Scope>>,
        /// The only camera id that it may upload for
        #[arg(long, value_name = "ID", conflicts_with = "any_camera")]
        camera_id: Option<String>,
        /// It may upload for any camera id
        #[arg(long)]
        any_camera: bool,
        /// Whether responses to its images name people
        #[arg(long, value_name = "true|false")]
        may_see_names: Option<bool>,
        /// Whether its tokens are refused for the time being
        #[arg(long, value_name = "true|false")]
        disabled: Option<bool>,
    },
    /// Make another token
    Token {
        /// Name or id of the camera, person or program
        name: String,
        /// What the token is for
        #[arg(long, value_name = "TEXT")]
        label: Option<String>,
        /// Fewer scopes than its owner's
        #[arg(long, value_name = "SCOPES", value_enum, value_delimiter = ',')]
        scopes: Option<Vec<Scope>>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Replace a token by a new one; the old one stays valid for a while
    Rotate {
        /// Id of the token, as `show` lists it
        // `token` is the id of the option `--token` of all commands.
        #[arg(id = "token_id", value_name = "TOKEN")]
        token: i64,
        /// Seconds for which the old one stays valid [default: 86400]
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=2_592_000))]
        overlap: Option<u64>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Revoke tokens: every server refuses them within two seconds
    Revoke {
        /// Ids of tokens, as `show` lists them
        #[arg(value_name = "TOKEN", required = true)]
        tokens: Vec<i64>,
    },
    /// Take access away from cameras, people and programs, with all of their tokens
    Remove {
        /// Names or ids
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// How a token is made.
#[derive(Debug, Args)]
struct Issue {
    /// Days for which the token is valid [default: 365 for a camera, 90 for a person or program, as long as the old one for
    /// `rotate`]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: Option<u16>,
    /// New file for the token, which only its owner can read
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scope {
    /// Upload images whose faces are stored or sent
    Upload,
    /// Have images recognised
    Recognise,
    /// Read people, images, detections, models and jobs
    Read,
    /// Change and erase people, images and detections
    Enrol,
    /// Train, activate models, manage jobs and the cohort
    Operate,
    /// Everything
    Admin,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Recognise => "recognise",
            Self::Read => "read",
            Self::Enrol => "enrol",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// Runs the program.
///
/// # Errors
/// The server cannot be reached or refuses it.
pub fn run(options: &Options) -> Result<Outcome> {
    runtime()?.block_on(async {
        let client = options.target.client()?;
        let json = options.target.json;
        match options.action.as_ref().unwrap_or(&Action::List) {
            Action::List => list(&client, json).await,
            Action::Show { name } => show(&client, name, json).await,
            Action::AddCamera { name, camera_id, any_camera, may_see_names, scopes, issue } => {
                let body = json!({
                    "kind": "camera",
                    "name": name,
                    "scopes": names(scopes),
                    "camera_id": camera_id,
                    "any_camera": any_camera,
                    "may_see_names": may_see_names,
                });
                add(&client, body, issue, json).await
            }
            Action::Add { name, scopes, issue } => {
                let body = json!({ "kind": "person", "name": name, "scopes": names(scopes) });
                add(&client, body, issue, json).await
            }
            Action::Change { name, rename, scopes, camera_id, any_camera, may_see_names, disabled } => {
                let principal = find(&client, name).await?;
                let body = given([
                    ("name", rename.as_ref().map(|name| json!(name))),
                    ("scopes", scopes.as_deref().map(|scopes| json!(names(scopes)))),
                    ("camera_id", camera_id.as_ref().map(|camera| json!(camera))),
                    ("any_camera", any_camera.then_some(json!(true))),
                    ("may_see_names", may_see_names.map(|may| json!(may))),
                    ("disabled", disabled.map(|disabled| json!(disabled))),
                ]);
                if body.as_object().is_none_or(Map::is_empty) {
                    let what = "say what to change: --scopes, --disabled, --may-see-names, --camera-id, --any-camera, --rename";
                    return Err(Failure::Usage(what.into()).into());
                }
                let changed = client.change_principal(principal.principal_id, body).await?;
                print(&[changed], json)
            }
            Action::Token { name, label, scopes, issue } => {
                let principal = find(&client, name).await?;
                let body = given([
                    ("name", label.as_ref().map(|label| json!(label))),
                    ("scopes", scopes.as_deref().map(|scopes| json!(names(scopes)))),
                    ("expires_at", issue.expires_at()?),
                ]);
                let destination = issue.destination()?;
                let issued = client.add_token(principal.principal_id, body).await?;
                hand_over(&issued, destination, json, &issued)
            }
            Action::Rotate { token, overlap, issue } => {
                let body = given([
                    ("overlap_s", overlap.map(|seconds| json!(seconds))),
                    ("expires_at", issue.expires_at()?),
                ]);
                let destination = issue.destination()?;
                let rotated = client.rotate_token(*token, body).await.map_err(|error| failure(*token, error))?;
                eprintln!("The old token, {token}, is valid until {}.", rotated.old.expires_at);
                hand_over(&rotated.new, destination, json, &rotated)
            }
            Action::Revoke { tokens } => revoke(&client, tokens, json).await,
            Action::Remove { names, yes } => remove(&client, names, *yes, json).await,
        }
    })
}

async fn list(client: &Client, json: bool) -> Result<Outcome> {
    let answer = client.principals().await?;
    if json {
        output::json(&answer)?;
    } else if answer.principals.is_empty() {
        output::line("Nobody yet: facepipe access add NAME --scopes admin");
    } else {
        print(&answer.principals, false)?;
    }
    Ok(Outcome::Done)
}

async fn show(client: &Client, name: &str, json: bool) -> Result<Outcome> {
    let principal = find(client, name).await?;
    let answer = client.access_tokens(principal.principal_id).await?;
    if json {
        output::json(&json!({ "principal": principal, "tokens": answer.tokens }))?;
        return Ok(Outcome::Done);
    }
    print(std::slice::from_ref(&principal), false)?;
    let rows = answer.tokens.into_iter().map(|token| {
        let AccessToken { token_id, name, scopes, expires_at, last_used_at, last_used_address, .. } = token;
        let dash = || "-".to_owned();
        [
            token_id.to_string(),
            name,
            scopes.join(", "),
            expires_at,
            last_used_at.unwrap_or_else(dash),
            last_used_address.unwrap_or_else(dash),
        ]
    });
    output::table(["Token", "For", "Scopes", "Expires", "Last used", "From"], rows);
    Ok(Outcome::Done)
}

async fn add(client: &Client, mut body: Value, issue: &Issue, json: bool) -> Result<Outcome> {
    let destination = issue.destination()?;
    if let Some(body) = body.as_object_mut() {
        body.retain(|_, value| !value.is_null());
        body.insert("token".into(), given([("expires_at", issue.expires_at()?)]));
    }
    let added = client.add_principal(body).await?;
    // Standard output has the token alone, for a file.
    let Principal { name, principal_id, scopes, .. } = &added.principal;
    eprintln!("{name} (id {principal_id}) has access: {}.", scopes.join(", "));
    let token = added.token.clone().context("the response has no token")?;
    hand_over(&token, destination, json, &added)
}

async fn revoke(client: &Client, tokens: &[i64], json: bool) -> Result<Outcome> {
    let (mut revoked, mut missing) = (Vec::new(), Vec::new());
    for token in tokens {
        let list = if client.revoke_token(*token).await? { &mut revoked } else { &mut missing };
        list.push(*token);
        if !json {
            output::line(format!(
                "{token} {}",
                if missing.contains(token) { "is not there" } else { "is revoked" }
            ));
        }
    }
    if json {
        output::json(&json!({ "revoked": revoked, "not_found": missing }))?;
    }
    Ok(if missing.is_empty() { Outcome::Done } else { Outcome::Partial })
}

async fn remove(client: &Client, names: &[String], yes: bool, json: bool) -> Result<Outcome> {
    let mut principals = Vec::new();
    for name in names {
        principals.push(find(client, name).await?);
    }
    let all: Vec<&str> = principals.iter().map(|principal| principal.name.as_str()).collect();
    if !confirmed(&format!("Access of {} ends at once.", all.join(", ")), yes)? {
        output::line("Nothing was changed.");
        return Ok(Outcome::Done);
    }
    for principal in &principals {
        client.remove_principal(principal.principal_id).await?;
        if !json {
            output::line(format!("{} has no access any more", principal.name));
        }
    }
    if json {
        output::json(&json!({ "removed": all }))?;
    }
    Ok(Outcome::Done)
}

/// Finds a camera, person or program by its name, else by its id.
async fn find(client: &Client, name: &str) -> Result<Principal> {
    let mut all = client.principals().await?.principals;
    let by_id = || name.parse::<i64>().ok();
    let found = all.iter().position(|principal| principal.name == name);
    let found = found.or_else(|| all.iter().position(|principal| Some(principal.principal_id) == by_id()));
    match found {
        Some(position) => Ok(all.swap_remove(position)),
        None => {
            Err(Failure::input(name, "nobody of that name or id has access; `facepipe access` lists them")
                .into())
        }
    }
}

fn print(principals: &[Principal], json: bool) -> Result<Outcome> {
    if json {
        match principals {
            [one] => output::json(one)?,
            all => output::json(&all)?,
        }
        return Ok(Outcome::Done);
    }
    let rows = principals.iter().map(|principal| {
        let mut notes = Vec::new();
        if principal.disabled {
            notes.push("disabled");
        }
        if principal.kind == "camera" && principal.may_see_names {
            notes.push("sees names");
        }
        let camera = match (&principal.camera_id, principal.kind.as_str()) {
            (Some(camera), _) => camera.clone(),
            (None, "camera") => "any".into(),
            (None, _) => "-".into(),
        };
        [
            principal.principal_id.to_string(),
            principal.name.clone(),
            principal.kind.clone(),
            camera,
            principal.scopes.join(", "),
            principal.tokens.to_string(),
            principal.last_used_at.clone().unwrap_or_else(|| "-".into()),
            notes.join(", "),
        ]
    });
    output::table(["Id", "Name", "Kind", "Camera", "Scopes", "Tokens", "Last used", ""], rows);
    Ok(Outcome::Done)
}

impl Issue {
    /// The time at which the token expires, as the API takes it; none for its default.
    fn expires_at(&self) -> Result<Option<Value>> {
        let Some(days) = self.days else { return Ok(None) };
        // The server's clock may be a little behind.
        let moment = OffsetDateTime::now_utc() + Duration::days(days.into()) - Duration::minutes(1);
        Ok(Some(json!(moment.format(&Rfc3339)?)))
    }

    /// Creates the file for the token, before there is one to lose.
    fn destination(&self) -> Result<Option<Destination<'_>>> {
        let Some(path) = &self.save else { return Ok(None) };
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
                Failure::Usage(format!("--save {}: a new file cannot be made there: {error}", path.display()))
            })?;
        Ok(Some(Destination { path, file, is_saved: false }))
    }
}

/// A new file for a token, which is removed unless the token is saved in it.
struct Destination<'a> {
    path: &'a Path,
    file: File,
    is_saved: bool,
}

impl Destination<'_> {
    fn save(&mut self, token: &str) -> io::Result<()> {
        writeln!(self.file, "{token}")?;
        self.file.sync_all()?;
        self.is_saved = true;
        Ok(())
    }
}

impl Drop for Destination<'_> {
    fn drop(&mut self) {
        if !self.is_saved {
            // An empty file does no harm.
            let _ = fs::remove_file(self.path);
        }
    }
}

/// Prints a token, or saves it, with what to do with it.
fn hand_over(
    issued: &IssuedToken,
    destination: Option<Destination<'_>>,
    json: bool,
    answer: &impl serde::Serialize,
) -> Result<Outcome> {
    let mut without_token = None;
    let place = match destination {
        Some(mut destination) => {
            let path = destination.path.display().to_string();
            if let Err(error) = destination.save(&issued.token) {
                // Nobody could read it again.
                output::line(&issued.token);
                return Err(
                    anyhow::Error::new(error).context(format!("{path}: the token above is not saved"))
                );
            }
            let mut value = serde_json::to_value(answer)?;
            remove_text(&mut value, &issued.token);
            without_token = Some(value);
            path
        }
        None => {
            if !json {
                output::line(&issued.token);
            }
            "FILE".into()
        }
    };
    if json {
        match &without_token {
            Some(answer) => output::json(answer)?,
            None => output::json(answer)?,
        }
    }
    eprintln!(
        "Token {} is valid until {}. It is shown this once: the server keeps a digest only.\n\
         facesink-http takes it from a file, token-file={place}, and facepipe with --token-file {place}.",
        issued.details.token_id, issued.details.expires_at
    );
    Ok(Outcome::Done)
}

/// Removes the fields that have this text from an object and the objects in it.
fn remove_text(value: &mut Value, text: &str) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| field.as_str() != Some(text));
        for field in fields.values_mut() {
            remove_text(field, text);
        }
    }
}

fn failure(token: i64, error: ClientError) -> anyhow::Error {
    match error.code() {
        Some("token_not_found") => {
            Failure::input(token.to_string(), "no such token; `facepipe access show NAME` lists them").into()
        }
        _ => error.into(),
    }
}

fn names(scopes: &[Scope]) -> Vec<&'static str> {
    scopes.iter().map(|scope| scope.name()).collect()
}

/// Makes an object of the values that are given.
fn given<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect::<Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(path: &Path) -> Issue {
        Issue { days: None, save: Some(path.to_owned()) }
    }

    #[test]
    fn a_file_stays_only_with_the_token_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate-1.token");
        drop(issue(&path).destination().unwrap());
        assert!(!path.exists());
        let issue = issue(&path);
        let mut destination = issue.destination().unwrap().unwrap();
        destination.save("fp_secret").unwrap();
        drop(destination);
        assert_eq!(fs::read_to_string(&path).unwrap(), "fp_secret\n");
        // A file that was there is left alone.
        assert!(issue.destination().is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "fp_secret\n");
    }

    #[test]
    fn a_saved_token_is_not_in_the_answer() {
        let mut answer = json!({ "new": { "token": "fp_secret", "token_id": 7 }, "old": { "token_id": 6 } });
        remove_text(&mut answer, "fp_secret");
        assert_eq!(answer, json!({ "new": { "token_id": 7 }, "old": { "token_id": 6 } }));
    }
}
