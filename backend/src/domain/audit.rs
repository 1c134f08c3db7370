//! The audit log: who looked at whom, and who did what. Its rows are chained by their hashes, so that a row that was changed,
//! removed or inserted is found.

use facepipe_shared::hex;
use ring::hmac;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Micros, PersonId};

/// What a call does to people, faces or the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuditAction {
    /// Shows people or faces.
    Look,
    /// Recognises or compares faces of images that a person sent.
    Recognise,
    /// Searches stored faces for a person.
    Search,
    /// Adds people or images.
    Enrol,
    /// Renames, merges, splits, ignores or refuses.
    Change,
    /// Erases people, images, detections or models.
    Erase,
    /// Hands out a table of people or faces.
    Export,
    /// Trains, or recomputes embeddings or groups.
    Train,
    /// Makes a model the active one.
    Activate,
    /// Changes other work of the server.
    Operate,
    /// Changes who may do what.
    Access,
    /// Was refused: no token, or one that does not suffice.
    Refuse,
    /// Removed rows of this log that were too old.
    Trim,
}

impl AuditAction {
    /// All actions.
    pub const ALL: [Self; 13] = [
        Self::Look,
        Self::Recognise,
        Self::Search,
        Self::Enrol,
        Self::Change,
        Self::Erase,
        Self::Export,
        Self::Train,
        Self::Activate,
        Self::Operate,
        Self::Access,
        Self::Refuse,
        Self::Trim,
    ];

    /// Returns the name in rows and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Recognise => "recognise",
            Self::Search => "search",
            Self::Enrol => "enrol",
            Self::Change => "change",
            Self::Erase => "erase",
            Self::Export => "export",
            Self::Train => "train",
            Self::Activate => "activate",
            Self::Operate => "operate",
            Self::Access => "access",
            Self::Refuse => "refuse",
            Self::Trim => "trim",
        }
    }

    /// Returns whether a call only reads: its row is written before the response leaves. An act has a row before it begins.
    pub fn only_reads(self) -> bool {
        matches!(self, Self::Look | Self::Recognise | Self::Export)
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditOutcome {
    /// An act begins; another row has its end.
    Begun,
    /// It was done.
    Done,
    /// The principal may not do it.
    Refused,
    /// It failed.
    Failed,
}

impl AuditOutcome {
    /// All outcomes.
    pub const ALL: [Self; 4] = [Self::Begun, Self::Done, Self::Refused, Self::Failed];

    /// Returns the name in rows and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    /// Returns the outcome of a response.
    pub fn of_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Refused,
            ..=399 => Self::Done,
            _ => Self::Failed,
        }
    }
}

/// What a call was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuditObjectKind {
    /// An enrolled person, by the public id.
    Person,
    /// An enrolled image.
    Image,
    /// A detection.
    Detection,
    /// A group of unknown faces.
    Unknown,
    /// A model, by its version.
    Model,
    /// A job.
    Job,
    /// A principal.
    Principal,
    /// The query of a list; it has no id.
    Query,
    /// The log itself: the last row that was removed, whose hash stands in the place of the object's.
    Log,
}

impl AuditObjectKind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Person,
        Self::Image,
        Self::Detection,
        Self::Unknown,
        Self::Model,
        Self::Job,
        Self::Principal,
        Self::Query,
        Self::Log,
    ];

    /// Returns the name in rows and in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Image => "image",
            Self::Detection => "detection",
            Self::Unknown => "unknown",
            Self::Model => "model",
            Self::Job => "job",
            Self::Principal => "principal",
            Self::Query => "query",
            Self::Log => "log",
        }
    }

    /// Returns the kind of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An object of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditObject {
    /// What it is.
    pub kind: AuditObjectKind,
    /// The id, at most 64 bytes; of a query, its text, of which only the hash is stored.
    pub id: String,
}

impl AuditObject {
    /// Returns a person as an object.
    pub fn person(id: PersonId) -> Self {
        Self { kind: AuditObjectKind::Person, id: id.to_string() }
    }
}

/// The key of the hashes of objects.
pub struct ObjectHasher(hmac::Key);

impl ObjectHasher {
    /// Takes the key as its row has it, hexadecimal.
    pub fn new(key: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))
    }

    /// Returns HMAC-SHA-256 of kind, `/` and id, hexadecimal.
    pub fn hash(&self, kind: AuditObjectKind, id: &str) -> String {
        hex(hmac::sign(&self.0, format!("{}/{id}", kind.name()).as_bytes()).as_ref())
    }
}

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When the call was made.
    pub at: Micros,
    /// The kind of the principal.
    pub principal_kind: &'static str,
    /// The id of a stored principal.
    pub principal_id: Option<i64>,
    /// The name of a machine.
    pub principal_name: Option<String>,
    /// The client's address.
    pub address: Option<String>,
    /// What the call does.
    pub action: AuditAction,
    /// Method and path of the route, without what it was called with.
    pub route: String,
    /// What it is about.
    pub object: Option<AuditObject>,
    /// Whom the object belongs to, where it is not that person itself.
    pub person: Option<PersonId>,
    /// The request's id.
    pub request_id: Option<String>,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// The status of the response; `None` of an act that begins.
    pub status: Option<u16>,
    /// For how many calls the row stands.
    pub calls: i64,
}

impl AuditEntry {
    /// Returns whether the object has gone with this call, so that no row keeps its id.
    pub fn has_erased(&self) -> bool {
        self.action == AuditAction::Erase && self.outcome == AuditOutcome::Done
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Counts from 1 without a gap.
    pub id: i64,
    /// When the call was made.
    pub at: Micros,
    /// The kind of the principal.
    pub principal_kind: String,
    /// The id of a stored principal.
    pub principal_id: Option<i64>,
    /// The name of a machine.
    pub principal_name: Option<String>,
    /// The client's address.
    pub address: Option<String>,
    /// What the call did.
    pub action: String,
    /// Method and path of the route.
    pub route: String,
    /// What it was about.
    pub object_kind: Option<String>,
    /// Its id while it exists.
    pub object_id: Option<String>,
    /// Its keyed hash.
    pub object_hash: Option<String>,
    /// The keyed hash of the person whom it belongs to.
    pub person_hash: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
    /// How it ended.
    pub outcome: String,
    /// The status of the response.
    pub status: Option<i32>,
    /// For how many calls the row stands.
    pub calls: i64,
    /// The hash of the row before.
    pub previous_hash: String,
    /// The hash of this row.
    pub hash: String,
}

impl AuditRow {
    /// Returns what [`hash`](Self::hash) must be: SHA-256, hexadecimal, of the hash of the row before and of the columns as
    /// a JSON array without white space. The id of the object is not among them, since it may be removed.
    pub fn expected_hash(&self) -> String {
        let content = json!([
            self.id,
            self.at,
            self.principal_kind,
            self.principal_id,
            self.principal_name,
            self.address,
            self.action,
            self.route,
            self.object_kind,
            self.object_hash,
            self.person_hash,
            self.request_id,
            self.outcome,
            self.status,
            self.calls,
        ]);
        hex(&Sha256::new().chain_update(&self.previous_hash).chain_update(content.to_string()).finalize())
    }
}

/// The state of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditChain {
    /// The last row.
    pub last_id: i64,
    /// Its hash.
    pub last_hash: String,
    /// The last row that was removed for its age; 0 before any was.
    pub trimmed_id: i64,
    /// Its hash.
    pub trimmed_hash: String,
    /// The key of objects' hashes, hexadecimal; empty before the first row.
    pub hash_key: String,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditFault {
    /// It is missing.
    Missing,
    /// Its content is not what its hash says.
    Content,
    /// It does not follow the row before.
    Link,
    /// The id of its object is not the one that its hash is of.
    Object,
    /// It is not the last row that the chain knows.
    End,
    /// It says that the log begins elsewhere.
    Beginning,
}

impl AuditFault {
    /// Returns the name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Content => "content",
            Self::Link => "link",
            Self::Object => "object",
            Self::End => "end",
            Self::Beginning => "beginning",
        }
    }
}

/// Checks the rows of a log one after the other.
pub struct AuditCheck {
    chain: AuditChain,
    hasher: ObjectHasher,
    id: i64,
    hash: String,
    rows: i64,
    /// The last row that says where the log begins.
    checkpoint: Option<AuditRow>,
}

impl AuditCheck {
    /// Begins at the beginning of the log.
    pub fn new(chain: AuditChain) -> Self {
        Self {
            hasher: ObjectHasher::new(&chain.hash_key),
            id: chain.trimmed_id,
            hash: chain.trimmed_hash.clone(),
            rows: 0,
            checkpoint: None,
            chain,
        }
    }

    /// Returns the last row that was checked.
    pub fn checked(&self) -> i64 {
        self.id
    }

    /// Returns the number of rows that were checked.
    pub fn rows(&self) -> i64 {
        self.rows
    }

    /// Returns the chain as it was at the beginning of the check.
    pub fn chain(&self) -> &AuditChain {
        &self.chain
    }

    /// Checks the next row, up to the last one that the chain knew.
    ///
    /// # Errors
    /// The id of the first broken row, and what is wrong with it.
    pub fn next(&mut self, row: &AuditRow) -> Result<(), (i64, AuditFault)> {
        let expected = self.id + 1;
        let fault = |fault| Err((expected, fault));
        if row.id != expected {
            return fault(AuditFault::Missing);
        }
        if row.hash != row.expected_hash() {
            return fault(AuditFault::Content);
        }
        if row.previous_hash != self.hash {
            return fault(AuditFault::Link);
        }
        let kind = row.object_kind.as_deref().and_then(AuditObjectKind::of_name);
        match (kind, &row.object_id) {
            (Some(AuditObjectKind::Log), _) => self.checkpoint = Some(row.clone()),
            (Some(kind), Some(id)) if row.object_hash.as_ref() != Some(&self.hasher.hash(kind, id)) => {
                return fault(AuditFault::Object);
            }
            _ => (),
        }
        (self.id, self.hash) = (row.id, row.hash.clone());
        self.rows += 1;
        Ok(())
    }

    /// Checks that the last row is the one that the chain knew, and that the log begins where it says.
    ///
    /// # Errors
    /// The id of the first missing row, or of the last one where another should be.
    pub fn end(&self) -> Result<(), (i64, AuditFault)> {
        if self.id < self.chain.last_id {
            return Err((self.id + 1, AuditFault::Missing));
        }
        if self.id == self.chain.last_id && self.hash != self.chain.last_hash {
            return Err((self.id, AuditFault::End));
        }
        match &self.checkpoint {
            None if self.chain.trimmed_id == 0 => Ok(()),
            Some(row)
                if row.object_id == Some(self.chain.trimmed_id.to_string())
                    && row.object_hash.as_ref() == Some(&self.chain.trimmed_hash) =>
            {
                Ok(())
            }
            other => Err((other.as_ref().map_or(self.id, |row| row.id), AuditFault::Beginning)),
        }
    }
}

/// Which rows to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// At this time or later.
    pub since: Option<Micros>,
    /// Before this time.
    pub until: Option<Micros>,
    /// Of this action.
    pub action: Option<AuditAction>,
    /// Of this principal.
    pub principal: Option<PrincipalFilter>,
    /// About this object, or about one that belongs to this person: an id, or a keyed hash.
    pub object: Option<String>,
}

/// Whose rows to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalFilter {
    /// Those of a stored principal, by id.
    Id(i64),
    /// Those of a machine by its name, or of a kind of principals.
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, previous_hash: &str) -> AuditRow {
        let mut row = AuditRow {
            id,
            at: 1_700_000_000_000_000 + id,
            principal_kind: "person".into(),
            principal_id: Some(7),
            principal_name: None,
            address: Some("192.0.2.1".into()),
            action: "look".into(),
            route: "GET /people/{person_id}".into(),
            object_kind: Some("person".into()),
            object_id: Some("a".into()),
            object_hash: Some(ObjectHasher::new("key").hash(AuditObjectKind::Person, "a")),
            person_hash: None,
            request_id: Some("r".into()),
            outcome: "done".into(),
            status: Some(200),
            calls: 1,
            previous_hash: previous_hash.into(),
            hash: String::new(),
        };
        row.hash = row.expected_hash();
        row
    }

    fn chain() -> (AuditChain, Vec<AuditRow>) {
        let mut rows: Vec<AuditRow> = Vec::new();
        for id in 1..=4 {
            let previous = rows.last().map_or(String::new(), |row| row.hash.clone());
            rows.push(row(id, &previous));
        }
        let last_hash = rows[3].hash.clone();
        let chain = AuditChain {
            last_id: 4,
            last_hash,
            trimmed_id: 0,
            trimmed_hash: String::new(),
            hash_key: "key".into(),
        };
        (chain, rows)
    }

    fn check(chain: &AuditChain, rows: &[AuditRow]) -> Result<(), (i64, AuditFault)> {
        let mut check = AuditCheck::new(chain.clone());
        rows.iter().try_for_each(|row| check.next(row))?;
        check.end()
    }

    #[test]
    fn the_hash_of_a_row_is_that_of_its_columns_as_json() {
        // sha256('ab' + '[1,1700000000000001,"person",7,null,"192.0.2.1",…,200,1]'), as the documentation has it.
        let mut row = row(1, "ab");
        row.object_hash = Some("cd".into());
        let content = "ab[1,1700000000000001,\"person\",7,null,\"192.0.2.1\",\"look\",\"GET /people/{person_id}\",\"person\",\
                       \"cd\",null,\"r\",\"done\",200,1]";
        assert_eq!(row.expected_hash(), hex(&Sha256::digest(content)));
    }

    #[test]
    fn a_change_a_gap_and_a_cut_end_are_found_at_their_row() {
        let (chain, rows) = chain();
        assert_eq!(check(&chain, &rows), Ok(()));
        let changed = |change: &dyn Fn(&mut Vec<AuditRow>)| {
            let mut rows = rows.clone();
            change(&mut rows);
            check(&chain, &rows)
        };
        assert_eq!(changed(&|rows| rows[1].principal_id = Some(8)), Err((2, AuditFault::Content)));
        assert_eq!(changed(&|rows| drop(rows.remove(1))), Err((2, AuditFault::Missing)));
        assert_eq!(changed(&|rows| drop(rows.pop())), Err((4, AuditFault::Missing)));
        assert_eq!(changed(&|rows| rows[2].object_id = Some("b".into())), Err((3, AuditFault::Object)));
        // The id of an erased object is removed.
        assert_eq!(changed(&|rows| rows[2].object_id = None), Ok(()));
        let forged = |rows: &mut Vec<AuditRow>| {
            rows[1].status = Some(404);
            rows[1].hash = rows[1].expected_hash();
        };
        assert_eq!(changed(&forged), Err((3, AuditFault::Link)));
        let last = |rows: &mut Vec<AuditRow>| {
            rows[3].status = Some(404);
            rows[3].hash = rows[3].expected_hash();
        };
        assert_eq!(changed(&last), Err((4, AuditFault::End)));
    }

    #[test]
    fn a_log_begins_after_the_last_row_that_was_removed() {
        let (mut chain, mut rows) = chain();
        let removed = rows.remove(0);
        assert_eq!(check(&chain, &rows), Err((1, AuditFault::Missing)));
        (chain.trimmed_id, chain.trimmed_hash) = (1, removed.hash);
        assert_eq!(check(&chain, &rows), Err((4, AuditFault::Beginning)));
        let mut checkpoint = row(5, &rows[2].hash);
        checkpoint.object_kind = Some("log".into());
        (checkpoint.object_id, checkpoint.object_hash) = (Some("1".into()), Some(chain.trimmed_hash.clone()));
        checkpoint.hash = checkpoint.expected_hash();
        (chain.last_id, chain.last_hash) = (5, checkpoint.hash.clone());
        rows.push(checkpoint);
        assert_eq!(check(&chain, &rows), Ok(()));
        chain.trimmed_hash = "00".into();
        assert_eq!(check(&chain, &rows), Err((2, AuditFault::Link)));
    }

    #[test]
    fn hashes_of_objects_need_the_key() {
        let hash = ObjectHasher::new("key").hash(AuditObjectKind::Person, "a");
        assert_eq!(hash.len(), 64);
        assert_ne!(hash, ObjectHasher::new("other").hash(AuditObjectKind::Person, "a"));
        assert_ne!(hash, ObjectHasher::new("key").hash(AuditObjectKind::Image, "a"));
    }
}
