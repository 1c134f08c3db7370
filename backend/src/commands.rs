//! The commands of `facepipe-backend`, for containers and timers.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    access::{PrincipalKind, Scope, Scopes, digest_of, new_token},
    backup::{self, Manifest},
    config::{AccessCommand, Command, Config, TlsCommand},
    config_errors::config_error,
    domain::{
        AuditAction, AuditEntry, AuditObject, AuditObjectKind, AuditOutcome, Micros, Task, hidden_character,
        now,
    },
    store::{
        Database,
        retention::{self, RetentionOutcome},
        sql::{self, DatabaseOptions, NewPrincipal, NewToken},
        sweep,
    },
    tls,
};

/// Maximum time for the response of a health check, and for closing the database.
const PATIENCE: Duration = Duration::from_secs(5);

/// Maximum length of a principal's name, characters.
const MAX_NAME: usize = 200;

/// Runs a command and prints its outcome.
///
/// # Errors
/// The command fails.
pub async fn run(command: &Command, config: Config) -> anyhow::Result<()> {
    match command {
        Command::Migrate => {
            let options = config.database_options();
            let migrated = tokio::task::spawn_blocking(move || Database::migrate(&options)).await??;
            match migrated.as_slice() {
                [] => println!("The schema is up to date."),
                versions => println!("The schema is up to date: added {}.", versions.join(", ")),
            }
        }
        Command::Sweep => {
            let (database, blobs) = (open(&config).await?, config.storage.open_blobs()?);
            let min_age = Duration::from_secs(config.storage.sweep_min_age_s);
            let swept = sweep::sweep_once(&database, &blobs, min_age).await;
            close(&database).await;
            match swept? {
                Some(removed) => println!("Removed {removed} blobs that no row refers to."),
                None => println!("Another process is sweeping."),
            }
        }
        Command::Retain { trust_clock } => {
            if config.retention.detections_max_age().is_none() {
                return Err(config_error(anyhow::anyhow!(
                    "detections_max_age_days is not set (--detections-max-age-days, \
                     FACEPIPE_DETECTIONS_MAX_AGE_DAYS): detections are kept for ever"
                )));
            }
            let database = open(&config).await?;
            let retained = retention::retain(&database, config.retention.options(), *trust_clock).await;
            close(&database).await;
            match retained? {
                RetentionOutcome::Done(deleted) => {
                    println!(
                        "Deleted {} detections, {} tracks and {} answers that were too old.",
                        deleted.detections, deleted.tracks, deleted.idempotency_records
                    );
                    if deleted.cohort > 0 {
                        println!("Deleted {} embeddings of the cohort that were too old.", deleted.cohort);
                    }
                }
                RetentionOutcome::ClockDoubted(doubt) => anyhow::bail!(
                    "{doubt} Nothing was deleted. If the clock is right, run this once with --trust-clock"
                ),
                RetentionOutcome::Busy => println!("Another process is deleting old detections."),
            }
        }
        Command::Backup { folder } => {
            let begun = now();
            let done = backup::back_up(&config, folder).await?;
            let Manifest { engine, images, models, erasures, bytes, .. } = &done.manifest;
            println!(
                "Backed up into {}: the {engine} database, {images} images, {models} models and {erasures} entries of the \
                 ledger of erasures, {bytes} bytes.\nSHA-256 of its SHA256SUMS: {}",
                folder.display(),
                done.fingerprint
            );
            if done.missing_blobs > 0 {
                eprintln!("{} blobs that rows refer to are not in the blob store.", done.missing_blobs);
            } else if let Err(error) = note_backup(&config, begun).await {
                // The backup is complete nevertheless.
                eprintln!("The servers' metrics will not show this backup: {error:#}");
            }
        }
        Command::Restore { folder, erasures } => {
            let done = backup::restore(&config, folder, erasures.as_deref()).await?;
            let Manifest { created_at, program, images, models, .. } = &done.manifest;
            println!(
                "Restored the backup of {created_at} by facepipe-backend {program}: {images} images and {models} models. \
                 Erased again: {} people and {} images of others.",
                done.erased.people, done.erased.images
            );
            if done.retrained {
                println!("The active model knows an erased person: the next start trains another one.");
            }
            if done.missing_blobs > 0 {
                eprintln!("{} blobs that rows refer to are not in the backup.", done.missing_blobs);
            }
        }
        Command::Access(AccessCommand::AddAdmin { name, days }) => {
            let place = existing_database(&config)?;
            let database = open(&config).await?;
            let outcome = add_admin(&database, name, *days, config.audit.is_on()).await;
            close(&database).await;
            let token = outcome?;
            // Prints the token alone, for a file.
            println!("{token}");
            eprintln!(
                "Added to {place}.\nThis is the only time that the token is shown. It is valid for {days} days. Keep it in a \
                 file that nobody else can read, and use it with `facepipe --token-file FILE`; `facepipe access` gives others theirs."
            );
        }
        Command::Health { url } => {
            let base = match url {
                Some(url) => url.clone(),
                None => local_url(&config)?,
            };
            check_health(&format!("{}/livez", base.trim_end_matches('/')), url.is_none()).await?;
            println!("ok");
        }
        Command::Tls { command: TlsCommand::SelfSigned { hosts, out } } => {
            let hosts = if hosts.is_empty() { own_names() } else { hosts.clone() };
            let made = tls::self_signed(&hosts, out)?;
            let (certificate, key) = (made.certificate.display(), made.key.display());
            println!(
                "Made {certificate} for {}, until {}, and its key {key}.\n\nThe server: facepipe-backend --tls-certificate \
                 {certificate} --tls-key {key}\nClients: --ca-file {certificate}, or ca-file of facesink-http, or \
                 --cacert of curl\nor, without the file, its key: pinned-sha256 sha256//{}",
                hosts.join(", "),
                made.expires_at.date(),
                made.key_sha256,
            );
        }
    }
    Ok(())
}

/// Describes where the configured database is, without login and password.
///
/// # Errors
/// It is a file that does not exist: a token in a new database would be of no use to the server.
fn existing_database(config: &Config) -> anyhow::Result<String> {
    let Some(file) = config.database_options().sqlite_file()? else {
        return Ok(database_address(&config.database_url()));
    };
    let file = std::path::absolute(&file).unwrap_or(file);
    anyhow::ensure!(
        file.is_file(),
        config_error(anyhow::anyhow!(
            "there is no database {}: run this with the settings of the server, such as --data-dir (FACEPIPE_DATA_DIR) or \
             DATABASE_URL; for a server that has never run, `facepipe-backend migrate` makes its database",
            file.display()
        ))
    );
    Ok(format!("the database {}", file.display()))
}

/// Describes the database that a URL names, without login and parameters.
fn database_address(url: &str) -> String {
    let address = url.split_once("://").filter(|_| !url.contains("password=")).map(|(scheme, rest)| {
        // A password may have any character.
        let rest = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
        (scheme, rest.split(['?', '#']).next().unwrap_or_default())
    });
    match address {
        Some((scheme, address)) => format!("the database {scheme}://{address}"),
        None => "the database of DATABASE_URL".to_owned(),
    }
}

/// Makes a token that may do everything, for the person of this name, and records that if `is_audited`.
async fn add_admin(database: &Database, name: &str, days: u16, is_audited: bool) -> anyhow::Result<String> {
    let characters = name.chars().count();
    anyhow::ensure!(
        (1..=MAX_NAME).contains(&characters) && hidden_character(name).is_none() && name.trim() == name,
        config_error(anyhow::anyhow!(
            "NAME has {characters} characters, it must have 1 to {MAX_NAME}, no control or invisible characters, and no white space at its ends"
        ))
    );
    let secret = new_token();
    let lifetime = i64::from(days) * 24 * 3600 * 1_000_000;
    let token = NewToken {
        name: "made on the server's machine".into(),
        digest: digest_of(&secret),
        scopes: None,
        expires_at: now() + lifetime,
    };
    let known = database.stored_access().await?.principals.into_iter().find(|known| known.name == name);
    if is_audited {
        database.append_audit(vec![added_admin(AuditOutcome::Begun, None)]).await?;
    }
    let principal = match known {
        None => {
            let new = NewPrincipal {
                kind: PrincipalKind::Person,
                name: name.to_owned(),
                scopes: Scopes::ADMIN,
                camera_id: None,
                may_see_names: true,
            };
            database.add_principal(new, Some(token)).await?.0.id
        }
        Some(known) if known.scopes.contains(Scope::Admin) && !known.disabled => {
            database.add_token(known.id, token).await?;
            known.id
        }
        Some(_) => anyhow::bail!(
            "{name} exists, and does not have the scope admin or is disabled: choose another name, and change that with \
             `facepipe access change`"
        ),
    };
    if is_audited
        && let Err(error) =
            database.append_audit(vec![added_admin(AuditOutcome::Done, Some(principal))]).await
    {
        // An entry records the beginning already.
        eprintln!("The audit log has no entry of the end of this: {error}");
    }
    Ok(secret)
}

/// Returns the entry of the audit log about a token that was made on the server's machine, for a stored principal.
fn added_admin(outcome: AuditOutcome, principal: Option<i64>) -> AuditEntry {
    AuditEntry {
        at: now(),
        principal_kind: PrincipalKind::Local.name(),
        principal_id: None,
        principal_name: None,
        address: None,
        action: AuditAction::Access,
        route: "facepipe-backend access add-admin".to_owned(),
        object: principal.map(|id| AuditObject { kind: AuditObjectKind::Principal, id: id.to_string() }),
        person: None,
        request_id: None,
        outcome,
        status: None,
        calls: 1,
    }
}

/// Moves the write-ahead log into the file of an embedded database, after an interrupted start.
pub fn checkpoint_wal(file: &Path) {
    if let Err(error) = sql::checkpoint_wal(file, PATIENCE) {
        tracing::warn!(%error, "cannot empty the write-ahead log");
    }
}

async fn open(config: &Config) -> anyhow::Result<Database> {
    let options = config.database_options();
    tokio::task::spawn_blocking(move || Database::open(&options)).await?
}

/// Records the time of a backup for the servers' metrics. Fails on a database with an older schema.
async fn note_backup(config: &Config, moment: Micros) -> anyhow::Result<()> {
    let options = DatabaseOptions {
        migrate_at_start: false,
        start_timeout: Duration::ZERO,
        ..config.database_options()
    };
    let database = tokio::task::spawn_blocking(move || Database::open(&options)).await??;
    let noted = database.task_finished(Task::Backup, moment).await;
    close(&database).await;
    Ok(noted?)
}

/// Closes the database. A running server uses the write-ahead log, so that failing to checkpoint it is normal.
async fn close(database: &Database) {
    if let Err(error) = database.close(PATIENCE).await {
        tracing::debug!(%error, "cannot close the database cleanly");
    }
}

/// Returns the names under which clients may know this machine.
fn own_names() -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    if host.is_ascii() && !host.is_empty() && !names.iter().any(|name| name == host) {
        names.push(host.to_owned());
    }
    names
}

/// Returns the URL of this configuration's server on its own machine.
fn local_url(config: &Config) -> anyhow::Result<String> {
    let scheme = config.tls.scheme();
    let written = config.listener.address_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let listen = written.as_deref().unwrap_or(&config.listener.listen).trim();
    let Ok(mut address) = listen.parse::<SocketAddr>() else {
        return Ok(format!("{scheme}://{listen}"));
    };
    anyhow::ensure!(
        address.port() != 0,
        "listen is {listen}, which names no port: say --url or --address-file"
    );
    // Some systems cannot connect to the unspecified address.
    match address.ip() {
        ip if !ip.is_unspecified() => (),
        IpAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
    }
    Ok(format!("{scheme}://{address}"))
}

async fn check_health(url: &str, is_own: bool) -> anyhow::Result<()> {
    let client = if is_own {
        tls::probe_client(PATIENCE)?
    } else {
        tls::use_ring();
        reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?
    };
    let response = client.get(url).send().await.with_context(|| format!("{url} does not answer"))?;
    anyhow::ensure!(response.status().is_success(), "{url} responds {}", response.status());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_databases_have_no_login() {
        for (url, expected) in [
            (
                "postgres://u:p@ss/w?d@db.example:5432/faces?sslmode=require",
                "postgres://db.example:5432/faces",
            ),
            ("mysql://db.example/faces", "mysql://db.example/faces"),
        ] {
            assert_eq!(database_address(url), format!("the database {expected}"));
        }
        for url in ["host=db password=secret", "mysql://db.example/faces?password=a@secret"] {
            assert_eq!(database_address(url), "the database of DATABASE_URL");
        }
    }

    #[test]
    fn the_url_follows_from_the_listener() {
        let url = |listen: &str| {
            local_url(&Config::default().with(|config| config.listener.listen = listen.into()))
        };
        for (listen, expected) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("0.0.0.0:80", "http://127.0.0.1:80"),
            ("[::]:8080", "http://[::1]:8080"),
            ("10.0.0.7:8080", "http://10.0.0.7:8080"),
            ("localhost:8080", "http://localhost:8080"),
        ] {
            assert_eq!(url(listen).unwrap(), expected);
        }
        assert!(url("127.0.0.1:0").unwrap_err().to_string().contains("--address-file"));
        let https = Config::default().with(|config| config.tls.tls_certificate = Some("c.pem".into()));
        assert_eq!(local_url(&https).unwrap(), "https://127.0.0.1:8080");
    }
}
