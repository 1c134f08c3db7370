//! What `facepipe-backend` does instead of serving: for containers and timers.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    backup::{self, Manifest},
    config::{Command, Config},
    domain::{Micros, Task, now},
    mistakes::mistake,
    store::{
        Database,
        retention::{self, RetentionOutcome},
        sql::{self, DatabaseOptions},
        sweep,
    },
    tls,
};

/// How long a server may take to say that it lives.
const PATIENCE: Duration = Duration::from_secs(5);

/// Does what a command asks for and prints what came of it.
///
/// # Errors
/// It could not be done.
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
            let (database, blobs) = (open(&config).await?, config.open_blobs()?);
            let min_age = Duration::from_secs(config.sweep_min_age_s);
            let swept = sweep::sweep_once(&database, &blobs, min_age).await;
            close(&database).await;
            match swept? {
                Some(removed) => println!("Removed {removed} blobs that no row refers to."),
                None => println!("Another process sweeps at the moment."),
            }
        }
        Command::Retain { trust_clock } => {
            if config.detections_max_age().is_none() {
                return Err(mistake(anyhow::anyhow!(
                    "detections_max_age_days is not set (--detections-max-age-days, \
                     FACEPIPE_DETECTIONS_MAX_AGE_DAYS): detections are kept for ever"
                )));
            }
            let database = open(&config).await?;
            let retained = retention::retain(&database, config.retention(), *trust_clock).await;
            close(&database).await;
            match retained? {
                RetentionOutcome::Done(deleted) => println!(
                    "Deleted {} detections and {} answers that were too old.",
                    deleted.detections, deleted.idempotency_records
                ),
                RetentionOutcome::ClockDoubted(doubt) => anyhow::bail!(
                    "{doubt} Nothing was deleted. Where the clock is right, say so once: --trust-clock"
                ),
                RetentionOutcome::Busy => println!("Another process deletes old detections at the moment."),
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
                // The backup is whole all the same.
                eprintln!("The servers' metrics will not tell of this backup: {error:#}");
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
                println!(
                    "The model that answers knows somebody who is erased: the next start trains another one."
                );
            }
            if done.missing_blobs > 0 {
                eprintln!("{} blobs that rows refer to are not in the backup.", done.missing_blobs);
            }
        }
        Command::Health { url } => {
            let base = match url {
                Some(url) => url.clone(),
                None => local_url(&config)?,
            };
            ask(&format!("{}/livez", base.trim_end_matches('/'))).await?;
            println!("ok");
        }
    }
    Ok(())
}

/// Has the file of an embedded database contain everything, where a start was broken off that had begun to use it.
pub fn checkpoint_wal(file: &Path) {
    if let Err(error) = sql::checkpoint_wal(file, PATIENCE) {
        tracing::warn!(%error, "cannot empty the write-ahead log");
    }
}

async fn open(config: &Config) -> anyhow::Result<Database> {
    let options = config.database_options();
    tokio::task::spawn_blocking(move || Database::open(&options)).await?
}

/// Has the servers of the deployment tell in their metrics when it was backed up. Of a database whose schema is older there
/// is nothing to tell.
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

/// A server that goes on beside the command has the write-ahead log in use, which is nobody's fault.
async fn close(database: &Database) {
    if let Err(error) = database.close(PATIENCE).await {
        tracing::debug!(%error, "the database is not closed as it should be");
    }
}

/// Where the server of this configuration is, as seen from its own machine.
fn local_url(config: &Config) -> anyhow::Result<String> {
    let written = config.address_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    let listen = written.as_deref().unwrap_or(&config.listen).trim();
    let Ok(mut address) = listen.parse::<SocketAddr>() else {
        return Ok(format!("http://{listen}"));
    };
    anyhow::ensure!(
        address.port() != 0,
        "listen is {listen}, which names no port: say --url or --address-file"
    );
    // Connections to “every address” go nowhere on some systems.
    match address.ip() {
        ip if !ip.is_unspecified() => (),
        IpAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
    }
    Ok(format!("http://{address}"))
}

async fn ask(url: &str) -> anyhow::Result<()> {
    tls::use_ring();
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
    let answer = client.get(url).send().await.with_context(|| format!("{url} does not answer"))?;
    anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_asked_where_it_listens() {
        let url = |listen: &str| local_url(&Config { listen: listen.into(), ..Config::default() });
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
    }
}
