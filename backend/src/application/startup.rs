//! Steps of the start: opening the stores, repairing the remains of an older version or a backup, and announcing the
//! address.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use facepipe_vision::{EmbedderKind, ModelError, Mtcnn, weights};

use crate::{
    access::{AccessControl, TokenFile, TokenFileError},
    config::Config,
    config_errors::config_error,
    recognise::Pipeline,
    shares::{ConnectionLimits, RESERVED_DESCRIPTORS, raise_soft_limit},
    store::{
        Blobs, Database, StoreError, access_follower,
        ledger::{self, ReappliedErasures},
        sql::NameChanges,
    },
    tls::ServerTls,
};

/// Opens the access control, with the token file where one is configured.
pub fn open_access(config: &Config) -> anyhow::Result<Arc<AccessControl>> {
    let insecure = config.listener.insecure;
    let Some(path) = &config.listener.token_file else {
        return Ok(Arc::new(AccessControl::new(None, insecure)));
    };
    let unusable = |error: TokenFileError| {
        config_error(anyhow::Error::new(error).context(format!("token_file {}", path.display())))
    };
    let file = TokenFile::open(path).map_err(unusable)?;
    let status = file.status().map_err(unusable)?;
    if status.is_readable_by_others {
        tracing::warn!(
            file = %path.display(),
            "every user of this machine can read token_file: take that right away (chmod o-r)"
        );
    }
    Ok(Arc::new(AccessControl::new(Some(Arc::new(file)), insecure)))
}

/// Reads who has access, and checks that the server may start so: somebody can use it, and not everybody.
pub async fn check_access(
    config: &Config,
    database: &Database,
    access: &AccessControl,
    address: SocketAddr,
) -> anyhow::Result<()> {
    access_follower::refresh(database, access).await.context("cannot read who has access")?;
    if access.has_principals() {
        return Ok(());
    }
    if let Some(file) = access.file() {
        let path = file.path().display();
        let status = file.status().with_context(|| format!("token_file {path}"))?;
        if status.is_empty {
            return Err(config_error(anyhow::anyhow!(
                "token_file {path} has no token, and the database has none either, so that nobody could use the server: \
                 write a line, `camera <token>` or `admin <token>`, or run `facepipe-backend access add-admin NAME`"
            )));
        }
        return Ok(());
    }
    if address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    if !config.listener.insecure {
        return Err(config_error(anyhow::anyhow!(
            "other machines can reach {address} (setting listen), and there is no token, so that everybody could do \
             everything: run `facepipe-backend access add-admin NAME`, which prints one, or set token_file (--token-file, \
             FACEPIPE_TOKEN_FILE), or listen on 127.0.0.1; --insecure (FACEPIPE_INSECURE=true) starts nevertheless"
        )));
    }
    tracing::warn!(
        %address,
        "everybody who can reach this address may do everything: there is no token_file (--token-file, \
         FACEPIPE_TOKEN_FILE) and no token of `facepipe access`, and insecure is set"
    );
    Ok(())
}

/// Reads the certificate and the key, where they are configured.
pub fn open_tls(config: &Config) -> anyhow::Result<Option<Arc<ServerTls>>> {
    let Some(files) = config.tls.files()? else { return Ok(None) };
    Ok(Some(Arc::new(ServerTls::open(files).map_err(config_error)?)))
}

/// Raises the limit of open files, and returns how many connections there may be within it.
pub fn connection_limits(config: &Config) -> anyhow::Result<ConnectionLimits> {
    let limit = raise_soft_limit().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files cannot be raised");
        // The usual one.
        1024
    });
    let limits =
        config.shares.connection_limits(limit.saturating_sub(RESERVED_DESCRIPTORS).max(limit / 4).max(1))?;
    if limits.total < config.shares.max_connections {
        tracing::warn!(
            max_connections = limits.total,
            open_files = limit,
            "fewer connections than max_connections are possible: the limit of open files (ulimit -n, LimitNOFILE=) is low"
        );
    }
    Ok(limits)
}

/// Logs the risks of a configuration.
pub fn warn_of_risks(config: &Config) {
    if config.deployment.role.manages() && config.retention.detections_max_age_days.is_none() {
        tracing::warn!(
            "detections are kept for ever: detections_max_age_days is not set (--detections-max-age-days, \
             FACEPIPE_DETECTIONS_MAX_AGE_DAYS)"
        );
    }
}

/// Opens the database. Blocks.
pub fn open_database(config: &Config) -> anyhow::Result<Database> {
    Ok(Database::open(&config.database_options())?.with_name_rule(config.dataset.same_name()))
}

/// Loads the networks. Blocks.
pub fn load_networks(config: &Config) -> anyhow::Result<Pipeline> {
    let recognition = &config.recognition;
    let pipeline = Pipeline::load(
        &recognition.models_dir,
        recognition.embedder_kind()?,
        recognition.compute_kind()?,
        recognition.device_kind()?,
        recognition.min_face_size,
        recognition.decode_limits(),
    );
    let pipeline = pipeline.map_err(|error| {
        // Weights and drivers may be installed later; a device that was not built in stays missing, and a contradiction stays one.
        let not_built_in = matches!(error, ModelError::Device { .. }) && cfg!(not(feature = "cuda"));
        let permanent = not_built_in || matches!(error, ModelError::Compute { .. });
        if permanent { config_error(error) } else { error.into() }
    })?;
    warn_of_outdated_weights(&recognition.models_dir, pipeline.embedder().name().parse().ok());
    Ok(pipeline)
}

/// Warns of published weights that were replaced after their conversion, and says how to convert them again.
fn warn_of_outdated_weights(models_dir: &Path, embedder: Option<EmbedderKind>) {
    let mut files = Vec::from(Mtcnn::PUBLISHED_FILES);
    files.extend(embedder.map(EmbedderKind::published_file));
    files.retain(|published| weights::is_outdated(models_dir, published));
    if !files.is_empty() {
        tracing::warn!(
            ?files,
            "these weights are newer than their safetensors, which are what is read: run `facepipe models convert {}` and restart",
            models_dir.display()
        );
    }
}

/// Repeats the erasures of the ledger before anything is served: the database may have been restored from a backup that
/// is older than the ledger. The active model may know one of those people, so that another one is trained then.
pub async fn reapply_erasures(config: &Config, database: &Database, blobs: &Blobs) -> anyhow::Result<()> {
    let begun = Instant::now();
    let patience = Duration::from_secs(config.database.database_start_timeout_s);
    let reapplied = loop {
        match ledger::apply(database, blobs, config.retention.erases_detections()).await {
            Err(StoreError::DatasetLocked { retry_after }) if begun.elapsed() < patience => {
                tokio::time::sleep(retry_after.min(Duration::from_secs(1))).await;
            }
            // SQLite has one writer, which may be the previous server while it stops.
            Err(StoreError::Unavailable(_)) if begun.elapsed() < patience => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            outcome => break outcome.context("cannot apply the ledger of erasures")?,
        }
    };
    let ReappliedErasures { people, images, unknowns } = reapplied;
    if reapplied == ReappliedErasures::default() {
        return Ok(());
    }
    tracing::warn!(people, images, unknowns, "the database had what was erased before; it is erased again");
    ledger::train_without_erased(database).await?;
    Ok(())
}

/// Applies the present rule to the names of people who were added by an earlier version or under another rule. Runs
/// after the erasures, so that no name gets a number because of an erased person.
pub async fn migrate_names(database: &Database) -> anyhow::Result<()> {
    let NameChanges { normalised, numbered, sharing } =
        database.migrate_names().await.context("cannot bring the names of people under the rule of names")?;
    if normalised > 0 {
        tracing::warn!(
            people = normalised,
            numbered,
            "names had several spellings (Unicode, white space around them) and now have one; people who then had \
             somebody else's name have a number after it"
        );
    }
    if sharing > 0 {
        tracing::warn!(
            people = sharing,
            "people have a name that counts as another one's (setting face_ids_ignore_case) and keep it: see \
             same_name_as in GET /dataset"
        );
    }
    Ok(())
}

/// Writes the file atomically, so that nobody reads a part of the address.
pub fn write_address(file: &Path, address: SocketAddr) -> std::io::Result<()> {
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = folder.join(name);
    let mut written = std::fs::File::create(&temporary)?;
    writeln!(written, "{address}")?;
    written.sync_all()?;
    std::fs::rename(&temporary, file)
}
