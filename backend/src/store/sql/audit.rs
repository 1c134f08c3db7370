//! The audit log: rows that are only added, in one chain for all servers of a deployment.

use diesel::{
    Connection,
    dsl::{max, min},
    prelude::*,
    sql_types::{BigInt, Text},
};
use facepipe_shared::hex;

use super::{
    AnyConnection, Database, MAX_VARIABLES, names,
    schema::{audit_chain, audit_log, detections, images, named_unknowns, task_runs},
    unknowns,
};
use crate::{
    domain::{
        AuditAction, AuditChain, AuditCheck, AuditEntry, AuditFault, AuditFilter, AuditObject,
        AuditObjectKind, AuditOutcome, AuditRow, Micros, ObjectHasher, PersonId, PrincipalFilter, UnknownId,
    },
    store::StoreError,
};

/// Rows that a check reads at a time.
const CHECKED_AT_ONCE: i64 = 1000;
/// How often a check begins again because rows were removed meanwhile.
const MAX_CHECKS: u32 = 4;
/// The row of `task_runs` with the time of the last look for rows that are too old.
const TRIM_TASK: &str = "audit";

/// The outcome of a check of the whole log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReport {
    /// The chain, as it was when the check began.
    pub chain: AuditChain,
    /// Rows that are as they were written.
    pub rows: i64,
    /// The first broken row.
    pub broken: Option<(i64, AuditFault)>,
}

#[derive(QueryableByName)]
struct ChainRow {
    #[diesel(sql_type = BigInt)]
    last_id: i64,
    #[diesel(sql_type = Text)]
    last_hash: String,
    #[diesel(sql_type = BigInt)]
    trimmed_id: i64,
    #[diesel(sql_type = Text)]
    trimmed_hash: String,
    #[diesel(sql_type = Text)]
    hash_key: String,
}

impl Database {
    /// Adds rows to the end of the log, in their order, and returns them.
    ///
    /// # Errors
    /// The database fails; then no row was added.
    pub async fn append_audit(&self, entries: Vec<AuditEntry>) -> Result<Vec<AuditRow>, StoreError> {
        self.write(move |connection| append(connection, &entries)).await
    }

    /// Returns at most `limit` rows, the newest first; with `oldest_first` the other way round. `after` is the id of the row
    /// before.
    ///
    /// # Errors
    /// The database fails.
    pub async fn audit_rows(
        &self,
        filter: AuditFilter,
        oldest_first: bool,
        after: Option<i64>,
        limit: i64,
    ) -> Result<Vec<AuditRow>, StoreError> {
        self.read(move |connection| {
            let mut query = audit_log::table
                .select(Columns::as_select())
                .limit(limit)
                .into_boxed::<<AnyConnection as Connection>::Backend>();
            query = match (oldest_first, after) {
                (true, after) => {
                    query.filter(audit_log::id.gt(after.unwrap_or(0))).order(audit_log::id.asc())
                }
                (false, None) => query.order(audit_log::id.desc()),
                (false, Some(after)) => query.filter(audit_log::id.lt(after)).order(audit_log::id.desc()),
            };
            if let Some(since) = filter.since {
                query = query.filter(audit_log::at.ge(since));
            }
            if let Some(until) = filter.until {
                query = query.filter(audit_log::at.lt(until));
            }
            if let Some(action) = filter.action {
                query = query.filter(audit_log::action.eq(action.name()));
            }
            query = match &filter.principal {
                None => query,
                Some(PrincipalFilter::Id(id)) => query.filter(audit_log::principal_id.eq(*id)),
                Some(PrincipalFilter::Name(name)) => {
                    query.filter(audit_log::principal_name.eq(name).or(audit_log::principal_kind.eq(name)))
                }
            };
            if let Some(object) = &filter.object {
                let hashes = hashes_of(connection, object)?;
                query = query.filter(
                    audit_log::object_hash.eq_any(hashes.clone()).or(audit_log::person_hash.eq_any(hashes)),
                );
            }
            Ok(query.load::<Columns>(connection)?.into_iter().map(AuditRow::from).collect())
        })
        .await
    }

    /// Checks the whole log, up to the last row of this moment.
    ///
    /// # Errors
    /// The database fails.
    pub async fn check_audit(&self) -> Result<AuditReport, StoreError> {
        let mut attempt = 1;
        loop {
            let mut check = AuditCheck::new(self.read(chain).await?);
            let broken = self.check_rows(&mut check).await?;
            // Rows may have been removed for their age meanwhile.
            let trimmed = self.read(chain).await?.trimmed_id;
            if broken.is_some() && trimmed != check.chain().trimmed_id && attempt < MAX_CHECKS {
                attempt += 1;
                continue;
            }
            return Ok(AuditReport { rows: check.rows(), chain: check.chain().clone(), broken });
        }
    }

    async fn check_rows(&self, check: &mut AuditCheck) -> Result<Option<(i64, AuditFault)>, StoreError> {
        let last = check.chain().last_id;
        while check.checked() < last {
            let (begin, any) = (check.checked(), check.rows() > 0);
            let rows = self
                .read(move |connection| {
                    let all = audit_log::table
                        .select(Columns::as_select())
                        .order(audit_log::id.asc())
                        .limit(CHECKED_AT_ONCE);
                    let query = all.into_boxed::<<AnyConnection as Connection>::Backend>();
                    // The first row of the table, whatever its id: there must be none before the beginning.
                    let query = if any { query.filter(audit_log::id.gt(begin)) } else { query };
                    Ok(query.load::<Columns>(connection)?)
                })
                .await?;
            let none = rows.is_empty();
            for row in rows.into_iter().map(AuditRow::from).take_while(|row| row.id <= last) {
                if let Err(broken) = check.next(&row) {
                    return Ok(Some(broken));
                }
            }
            if none || check.checked() == begin {
                break;
            }
        }
        Ok(check.end().err())
    }

    /// Removes the oldest rows that are older than `before`, at most `batch` of them, and adds a row that says so. Returns
    /// their number. A row that is newer than `until` has an impossible time: it goes with older rows that follow it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn trim_audit(
        &self,
        before: Micros,
        until: Micros,
        batch: i64,
        now: Micros,
    ) -> Result<i64, StoreError> {
        self.write(move |connection| {
            let state = lock_chain(connection)?;
            let Some(last) = last_to_trim(connection, &state, before, until, batch)? else { return Ok(0) };
            let removed = last - state.trimmed_id;
            let hash: Option<String> =
                audit_log::table.find(last).select(audit_log::hash).first(connection).optional()?;
            let hash = hash.ok_or_else(|| {
                StoreError::Damaged(format!("row {last} of the audit log is missing, so none is removed"))
            })?;
            diesel::delete(audit_log::table.filter(audit_log::id.le(last))).execute(connection)?;
            diesel::update(audit_chain::table)
                .set((audit_chain::trimmed_id.eq(last), audit_chain::trimmed_hash.eq(&hash)))
                .execute(connection)?;
            let checkpoint = AuditEntry {
                at: now,
                principal_kind: "server",
                principal_id: None,
                principal_name: None,
                address: None,
                action: AuditAction::Trim,
                route: "-".into(),
                object: Some(AuditObject { kind: AuditObjectKind::Log, id: last.to_string() }),
                person: None,
                request_id: None,
                outcome: AuditOutcome::Done,
                status: None,
                calls: removed,
            };
            append(connection, &[checkpoint])?;
            Ok(removed)
        })
        .await
    }

    /// Returns when a server last looked for rows that are too old, with a clock that it trusted; `None` if never.
    ///
    /// # Errors
    /// The database fails.
    pub async fn last_audit_trim(&self) -> Result<Option<Micros>, StoreError> {
        self.read(trimmed_at).await
    }

    /// Records that a server looked for rows that are too old.
    ///
    /// # Errors
    /// The database fails.
    pub async fn audit_trim_finished(&self, moment: Micros) -> Result<(), StoreError> {
        self.write(move |connection| {
            // One server at a time adds the row.
            lock_chain(connection)?;
            let moment = Some(moment);
            if trimmed_at(connection)?.is_none() {
                diesel::insert_into(task_runs::table)
                    .values((task_runs::task.eq(TRIM_TASK), task_runs::finished_at.eq(moment)))
                    .execute(connection)?;
            } else {
                diesel::update(task_runs::table.find(TRIM_TASK))
                    .set(task_runs::finished_at.eq(moment))
                    .execute(connection)?;
            }
            Ok(())
        })
        .await
    }

    /// Returns the times of the oldest and of the newest row, without rows that are newer than `until`.
    ///
    /// # Errors
    /// The database fails.
    pub async fn audit_times(&self, until: Micros) -> Result<Option<(Micros, Micros)>, StoreError> {
        self.read(move |connection| {
            // Two statements: each reads one end of the index.
            let believable = || audit_log::table.filter(audit_log::at.le(until));
            let oldest: Option<Micros> = believable().select(min(audit_log::at)).first(connection)?;
            let newest: Option<Micros> = believable().select(max(audit_log::at)).first(connection)?;
            Ok(oldest.zip(newest))
        })
        .await
    }
}

/// Returns when a server last looked for rows that are too old. The row is never without a time.
fn trimmed_at(connection: &mut AnyConnection) -> Result<Option<Micros>, StoreError> {
    let row = task_runs::table.find(TRIM_TASK).select(task_runs::finished_at);
    Ok(row.first::<Option<Micros>>(connection).optional()?.flatten())
}

/// Returns the last of the next `batch` rows that can be removed; `None` if the first one must stay. Reads no others, since
/// the chain is locked meanwhile.
fn last_to_trim(
    connection: &mut AnyConnection,
    state: &AuditChain,
    before: Micros,
    until: Micros,
    batch: i64,
) -> Result<Option<i64>, StoreError> {
    let end = state.last_id.min(state.trimmed_id + batch);
    // Servers' clocks differ: the first row that must stay keeps all after it.
    let kept: Option<i64> = audit_log::table
        .filter(audit_log::id.le(end))
        .filter(audit_log::at.between(before, until))
        .select(min(audit_log::id))
        .first(connection)?;
    if kept.is_none() {
        // The age of rows from an impossible time shows in the next row with a possible one.
        let next: Option<Micros> = audit_log::table
            .filter(audit_log::id.gt(end))
            .filter(audit_log::at.le(until))
            .order(audit_log::id.asc())
            .select(audit_log::at)
            .first(connection)
            .optional()?;
        if next.is_some_and(|at| at < before) {
            return Ok(Some(end));
        }
    }
    let last: Option<i64> = audit_log::table
        .filter(audit_log::id.le(kept.map_or(end, |kept| kept - 1)))
        .filter(audit_log::at.lt(before))
        .select(max(audit_log::id))
        .first(connection)?;
    Ok(last.filter(|last| *last > state.trimmed_id))
}

/// The columns of a row, in the order of [`AuditRow`].
#[derive(Queryable, Selectable)]
#[diesel(table_name = audit_log)]
struct Columns {
    id: i64,
    at: Micros,
    principal_kind: String,
    principal_id: Option<i64>,
    principal_name: Option<String>,
    address: Option<String>,
    action: String,
    route: String,
    object_kind: Option<String>,
    object_id: Option<String>,
    object_hash: Option<String>,
    person_hash: Option<String>,
    request_id: Option<String>,
    outcome: String,
    status: Option<i32>,
    calls: i64,
    previous_hash: String,
    hash: String,
}

impl From<Columns> for AuditRow {
    fn from(row: Columns) -> Self {
        Self {
            id: row.id,
            at: row.at,
            principal_kind: row.principal_kind,
            principal_id: row.principal_id,
            principal_name: row.principal_name,
            address: row.address,
            action: row.action,
            route: row.route,
            object_kind: row.object_kind,
            object_id: row.object_id,
            object_hash: row.object_hash,
            person_hash: row.person_hash,
            request_id: row.request_id,
            outcome: row.outcome,
            status: row.status,
            calls: row.calls,
            previous_hash: row.previous_hash,
            hash: row.hash,
        }
    }
}

fn append(connection: &mut AnyConnection, entries: &[AuditEntry]) -> Result<Vec<AuditRow>, StoreError> {
    let mut state = lock_chain(connection)?;
    if state.hash_key.is_empty() {
        state.hash_key = hex(&rand::random::<[u8; 32]>());
    }
    let hasher = ObjectHasher::new(&state.hash_key);
    let mut rows = Vec::with_capacity(entries.len());
    for entry in entries {
        let row = next_row(connection, &state, &hasher, entry)?;
        if entry.has_erased()
            && let Some(hash) = &row.object_hash
        {
            remove_ids(connection, std::slice::from_ref(hash))?;
        }
        insert(connection, &row)?;
        (state.last_id, state.last_hash) = (row.id, row.hash.clone());
        rows.push(row);
    }
    diesel::update(audit_chain::table)
        .set((
            audit_chain::last_id.eq(state.last_id),
            audit_chain::last_hash.eq(&state.last_hash),
            audit_chain::hash_key.eq(&state.hash_key),
        ))
        .execute(connection)?;
    Ok(rows)
}

fn next_row(
    connection: &mut AnyConnection,
    state: &AuditChain,
    hasher: &ObjectHasher,
    entry: &AuditEntry,
) -> Result<AuditRow, StoreError> {
    let object = entry.object.as_ref();
    let keeps_id = match object {
        Some(object) => keeps_id(connection, entry, object)?,
        None => false,
    };
    let mut row = AuditRow {
        id: state.last_id + 1,
        at: entry.at,
        principal_kind: entry.principal_kind.to_owned(),
        principal_id: entry.principal_id,
        principal_name: entry.principal_name.clone(),
        address: entry.address.clone(),
        action: entry.action.name().to_owned(),
        route: entry.route.clone(),
        object_kind: object.map(|object| object.kind.name().to_owned()),
        object_id: object.filter(|_| keeps_id).map(|object| object.id.clone()),
        object_hash: object.map(|object| match object.kind {
            AuditObjectKind::Log => state_hash(state, object),
            kind => hasher.hash(kind, &object.id),
        }),
        person_hash: entry.person.map(|person| hasher.hash(AuditObjectKind::Person, &person.to_string())),
        request_id: entry.request_id.clone(),
        outcome: entry.outcome.name().to_owned(),
        status: entry.status.map(i32::from),
        calls: entry.calls,
        previous_hash: state.last_hash.clone(),
        hash: String::new(),
    };
    row.hash = row.expected_hash();
    Ok(row)
}

/// Returns the hash of the row after which the log begins.
fn state_hash(state: &AuditChain, object: &AuditObject) -> String {
    if object.id == state.trimmed_id.to_string() { state.trimmed_hash.clone() } else { String::new() }
}

/// Returns whether a row has the id of its object: only of one that exists. Somebody may have been erased since the call. An
/// erasure either comes after this row or is seen here, since both lock the chain.
fn keeps_id(
    connection: &mut AnyConnection,
    entry: &AuditEntry,
    object: &AuditObject,
) -> Result<bool, StoreError> {
    if entry.has_erased() {
        return Ok(false);
    }
    Ok(match object.kind {
        AuditObjectKind::Query => false,
        AuditObjectKind::Person => match PersonId::parse(&object.id) {
            Some(id) => names::find(connection, &names::PersonKey::Id(id))?.is_some(),
            None => false,
        },
        AuditObjectKind::Image => {
            let row = images::table.find(&object.id).select(images::id);
            row.first::<String>(connection).optional()?.is_some()
        }
        AuditObjectKind::Log => true,
        AuditObjectKind::Detection => match object.id.parse::<i64>() {
            Ok(id) => {
                let row = detections::table.find(id).select(detections::id);
                row.first::<i64>(connection).optional()?.is_some()
            }
            Err(_) => false,
        },
        AuditObjectKind::Unknown => has_unknown(connection, &object.id)?,
        AuditObjectKind::Model | AuditObjectKind::Job | AuditObjectKind::Principal => {
            entry.outcome != AuditOutcome::Failed
        }
    })
}

/// Returns whether there is a group of unknown faces, or what it became: another group or a person.
fn has_unknown(connection: &mut AnyConnection, id: &str) -> Result<bool, StoreError> {
    let Some(unknown) = UnknownId::parse(id) else { return Ok(false) };
    match unknowns::row_of(connection, unknown) {
        Err(StoreError::UnknownNotFound) => (),
        found => return found.map(|_| true),
    }
    let named = named_unknowns::table.find(unknown.to_string()).select(named_unknowns::public_id);
    Ok(named.first::<String>(connection).optional()?.is_some())
}

fn insert(connection: &mut AnyConnection, row: &AuditRow) -> Result<(), StoreError> {
    diesel::insert_into(audit_log::table)
        .values((
            audit_log::id.eq(row.id),
            audit_log::at.eq(row.at),
            audit_log::principal_kind.eq(&row.principal_kind),
            audit_log::principal_id.eq(row.principal_id),
            audit_log::principal_name.eq(&row.principal_name),
            audit_log::address.eq(&row.address),
            audit_log::action.eq(&row.action),
            audit_log::route.eq(&row.route),
            audit_log::object_kind.eq(&row.object_kind),
            audit_log::object_id.eq(&row.object_id),
            audit_log::object_hash.eq(&row.object_hash),
            audit_log::person_hash.eq(&row.person_hash),
            audit_log::request_id.eq(&row.request_id),
            audit_log::outcome.eq(&row.outcome),
            audit_log::status.eq(row.status),
            audit_log::calls.eq(row.calls),
            audit_log::previous_hash.eq(&row.previous_hash),
            audit_log::hash.eq(&row.hash),
        ))
        .execute(connection)?;
    Ok(())
}

/// Removes the ids of an erased person and of what belongs to that person, also where a row does not say whose it is: of
/// images, and of groups of unknown faces that became the person. Part of the transaction that erases, at its end.
pub(super) fn forget_person(
    connection: &mut AnyConnection,
    person: PersonId,
    images: &[String],
    unknowns: &[String],
) -> Result<(), StoreError> {
    let person = person.to_string();
    let images = images.iter().map(|id| (AuditObjectKind::Image, id.as_str()));
    let unknowns = unknowns.iter().map(|id| (AuditObjectKind::Unknown, id.as_str()));
    let objects = [(AuditObjectKind::Person, person.as_str())].into_iter().chain(images).chain(unknowns);
    forget(connection, objects)
}

/// Removes the ids of an erased image.
pub(super) fn forget_image(connection: &mut AnyConnection, image: &str) -> Result<(), StoreError> {
    forget(connection, [(AuditObjectKind::Image, image)])
}

fn forget<'a>(
    connection: &mut AnyConnection,
    objects: impl IntoIterator<Item = (AuditObjectKind, &'a str)>,
) -> Result<(), StoreError> {
    // Locked, so that a row that is being added either is seen here or sees the erasure.
    let state = lock_chain(connection)?;
    if state.hash_key.is_empty() {
        return Ok(());
    }
    let hasher = ObjectHasher::new(&state.hash_key);
    let hashes: Vec<String> = objects.into_iter().map(|(kind, id)| hasher.hash(kind, id)).collect();
    hashes.chunks(MAX_VARIABLES).try_for_each(|hashes| remove_ids(connection, hashes))
}

fn remove_ids(connection: &mut AnyConnection, hashes: &[String]) -> Result<(), StoreError> {
    // Two statements: each can use its index.
    diesel::update(audit_log::table.filter(audit_log::object_hash.eq_any(hashes.to_vec())))
        .set(audit_log::object_id.eq(None::<String>))
        .execute(connection)?;
    diesel::update(audit_log::table.filter(audit_log::person_hash.eq_any(hashes.to_vec())))
        .set(audit_log::object_id.eq(None::<String>))
        .execute(connection)?;
    Ok(())
}

/// Returns the keyed hashes that an id may have, or the hash itself.
fn hashes_of(connection: &mut AnyConnection, object: &str) -> Result<Vec<String>, StoreError> {
    let is_hash = object.len() == 64 && object.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash {
        return Ok(vec![object.to_ascii_lowercase()]);
    }
    let hasher = ObjectHasher::new(&chain(connection)?.hash_key);
    let id = object.to_ascii_lowercase();
    Ok(AuditObjectKind::ALL.into_iter().map(|kind| hasher.hash(kind, &id)).collect())
}

/// Returns the state of the log.
fn chain(connection: &mut AnyConnection) -> Result<AuditChain, StoreError> {
    load_chain(connection, "")
}

/// Locks the chain until the transaction ends, and returns its state: all rows up to the last one are visible.
fn lock_chain(connection: &mut AnyConnection) -> Result<AuditChain, StoreError> {
    let lock = match connection {
        // SQLite has one writer.
        AnyConnection::Sqlite(_) => "",
        #[cfg(feature = "database-servers")]
        AnyConnection::Postgres(_) | AnyConnection::Mysql(_) => " FOR UPDATE",
    };
    load_chain(connection, lock)
}

fn load_chain(connection: &mut AnyConnection, lock: &str) -> Result<AuditChain, StoreError> {
    let columns = "last_id, last_hash, trimmed_id, trimmed_hash, hash_key";
    let query = diesel::sql_query(format!("SELECT {columns} FROM audit_chain WHERE slot = 1{lock}"));
    let row: Option<ChainRow> = query.get_result(connection).optional()?;
    let ChainRow { last_id, last_hash, trimmed_id, trimmed_hash, hash_key } =
        row.ok_or_else(|| StoreError::Damaged("the audit log has no row in audit_chain".into()))?;
    Ok(AuditChain { last_id, last_hash, trimmed_id, trimmed_hash, hash_key })
}
