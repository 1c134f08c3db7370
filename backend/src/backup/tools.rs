//! Dumps and restores databases of servers with the engines' own tools. Passwords are passed in the environment, since all
//! users of a machine can read command lines.

use std::{
    fs::File,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use percent_encoding::percent_decode_str;
use url::Url;

/// Characters of a tool's error output that are shown at most.
const MAX_STDERR_CHARS: usize = 2000;

/// Returns the file name of the database in a backup.
pub fn file_name(engine: &str) -> &'static str {
    match engine {
        "postgresql" => "database.dump",
        "mysql" => "database.sql",
        _ => "database.sqlite",
    }
}

/// Writes a snapshot of the database of a server into a file.
///
/// # Errors
/// The tool is missing or fails; the message has no password.
pub fn dump(url: &str, to: &Path) -> anyhow::Result<()> {
    let server = ServerUrl::of(url)?;
    if server.postgres {
        let mut command = server.command("pg_dump");
        command.args(["--format=custom", "--no-owner", "--no-privileges"]).arg(server.database());
        command.arg("--file").arg(to);
        return run(command, "postgresql-client");
    }
    let written = File::create_new(to).with_context(|| format!("cannot write {}", to.display()))?;
    server.first_of(["mariadb-dump", "mysqldump"], |command| {
        command.args(["--single-transaction", "--hex-blob", "--no-tablespaces", "--skip-lock-tables"]);
        command.arg(server.name()?).stdout(written.try_clone()?);
        Ok(())
    })
}

/// Loads a file of [`dump`] into an empty database.
///
/// # Errors
/// The tool is missing or fails; the message has no password.
pub fn fill(url: &str, from: &Path) -> anyhow::Result<()> {
    let server = ServerUrl::of(url)?;
    if server.postgres {
        let mut command = server.command("pg_restore");
        command.args(["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges"]);
        command.arg(server.database()).arg(from);
        return run(command, "postgresql-client");
    }
    server.first_of(["mariadb", "mysql"], |command| {
        let dumped = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        command.arg(server.name()?).stdin(dumped);
        Ok(())
    })
}

/// The URL of a database server, split into the parts that the tools need.
struct ServerUrl {
    postgres: bool,
    /// Without the password.
    url: String,
    password: Option<String>,
}

impl ServerUrl {
    fn of(url: &str) -> anyhow::Result<Self> {
        let (scheme, rest) = url.split_once("://").context("database_url names no database server")?;
        let postgres = matches!(scheme, "postgres" | "postgresql");
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, mut password) = match user.split_once(':') {
            Some((user, password)) => (user, Some(decoded(password))),
            None => (user, None),
        };
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut kept = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.strip_prefix("password=") {
                Some(given) => password = Some(decoded(given)),
                None => kept.push(part),
            }
        }
        let at = if user.is_empty() { "" } else { "@" };
        let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
        let scheme = if postgres { scheme } else { "mysql" };
        Ok(Self { postgres, url: format!("{scheme}://{user}{at}{address}{path}{query}"), password })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("LC_ALL", "C");
        if let Some(password) = &self.password {
            command.env(if self.postgres { "PGPASSWORD" } else { "MYSQL_PWD" }, password);
        }
        command
    }

    /// Returns the argument for Postgres' tools.
    fn database(&self) -> String {
        format!("--dbname={}", self.url)
    }

    /// Returns the name of the database.
    fn name(&self) -> anyhow::Result<String> {
        let url = Url::parse(&self.url).context("database_url is no URL")?;
        let name = decoded(url.path().trim_start_matches('/'));
        anyhow::ensure!(!name.is_empty(), "database_url names no database");
        Ok(name)
    }

    /// Runs the first of two tools of MySQL that is installed. `more` adds the arguments after the address.
    fn first_of(
        &self,
        programs: [&str; 2],
        more: impl Fn(&mut Command) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let is_there = |program: &&str| Command::new(program).arg("--version").output().is_ok();
        let program = programs.iter().copied().find(|program| is_there(program)).unwrap_or(programs[0]);
        let url = Url::parse(&self.url).context("database_url is no URL")?;
        let mut command = self.command(program);
        command.arg("--no-defaults").args(mysql_address(&url, program.starts_with("mariadb")));
        more(&mut command)?;
        run(command, "mariadb-client")
    }
}

/// Returns the address of a server as arguments for MySQL's tools.
fn mysql_address(url: &Url, mariadb: bool) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(host) = url.host_str() {
        arguments.push(format!("--host={}", host.trim_matches(['[', ']'])));
    }
    if let Some(port) = url.port() {
        arguments.push(format!("--port={port}"));
    }
    if !url.username().is_empty() {
        arguments.push(format!("--user={}", decoded(url.username())));
    }
    for (key, value) in url.query_pairs() {
        match (&*key, value.to_ascii_lowercase().as_str()) {
            ("unix_socket", _) => arguments.push(format!("--socket={value}")),
            ("ssl_ca" | "ssl_cert" | "ssl_key", _) => {
                arguments.push(format!("--{}={value}", key.replace('_', "-")));
            }
            ("ssl_mode", mode) if !mariadb => arguments.push(format!("--ssl-mode={mode}")),
            ("ssl_mode", "disabled") => arguments.push("--skip-ssl".into()),
            ("ssl_mode", "verify_identity") => arguments.push("--ssl-verify-server-cert".into()),
            ("ssl_mode", "required" | "verify_ca") => arguments.push("--ssl".into()),
            _ => (),
        }
    }
    arguments
}

/// Returns Percent-decodes a text.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn run(mut command: Command, package: &str) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.stderr(Stdio::piped()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => anyhow::bail!(
            "{program} is not installed here, and only the engine's own tool can do that: install it (Debian: {package}), \
             or run this command where it is, with the same settings. By hand: see docs/backup.md"
        ),
        Err(error) => return Err(error).with_context(|| format!("cannot run {program}")),
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    let complaints: String = complaints.trim().chars().take(MAX_STDERR_CHARS).collect();
    anyhow::ensure!(output.status.success(), "{program} failed ({}): {complaints}", output.status);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_passed_in_the_environment_only() {
        for (url, told, password) in [
            (
                "postgres://ann:p%40ss:w@db.example:5433/faces?sslmode=require",
                "postgres://ann@db.example:5433/faces?sslmode=require",
                Some("p@ss:w"),
            ),
            (
                "postgresql:///faces?host=/run/pg&password=s%20t&user=ann",
                "postgresql:///faces?host=/run/pg&user=ann",
                Some("s t"),
            ),
            ("mariadb://ann:100%25@h/faces", "mysql://ann@h/faces", Some("100%")),
            ("mysql://h:3307/faces", "mysql://h:3307/faces", None),
        ] {
            let server = ServerUrl::of(url).unwrap();
            assert_eq!((server.url.as_str(), server.password.as_deref()), (told, password), "{url}");
            let command = server.command("true");
            let value = command.get_envs().find(|(name, _)| *name == "PGPASSWORD" || *name == "MYSQL_PWD");
            assert_eq!(value.and_then(|(_, value)| value?.to_str()), password);
        }
    }

    #[test]
    fn mysql_tools_get_the_options_of_the_url() {
        let url = Url::parse("mysql://a%40b@[::1]:3307/faces?ssl_mode=REQUIRED&ssl_ca=/etc/ca.pem").unwrap();
        assert_eq!(
            mysql_address(&url, true),
            ["--host=::1", "--port=3307", "--user=a@b", "--ssl", "--ssl-ca=/etc/ca.pem"]
        );
        assert_eq!(mysql_address(&url, false)[3], "--ssl-mode=required");
    }

    #[test]
    fn a_missing_tool_is_reported_with_its_package() {
        let error = run(Command::new("facepipe-no-such-tool"), "postgresql-client").unwrap_err().to_string();
        assert!(
            error.contains("facepipe-no-such-tool is not installed") && error.contains("postgresql-client")
        );
    }
}
