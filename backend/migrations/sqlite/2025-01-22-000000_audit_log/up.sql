-- Who looked at whom and who did what, a row for each call. Rows are only added, and removed from the beginning once they
-- are too old. id: counts from 1 without a gap. at: microseconds since 1970. principal_kind, principal_id,
-- principal_name: who; a name only of a machine. address: of the client. action, route: what; the route without what it was
-- called with. object_kind, object_id, object_hash: on what; the id is removed with the object, the hash (HMAC-SHA-256 with
-- audit_chain.hash_key) stays. person_hash: the hash of the person whom the object belongs to. outcome: begun, done,
-- refused or failed. status: of the response. calls: how many calls the row stands for. hash: SHA-256, hexadecimal, of
-- previous_hash, which is that of the row before, and of all columns but object_id.
CREATE TABLE audit_log (
    id INTEGER NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    principal_kind TEXT NOT NULL,
    principal_id BIGINT,
    principal_name TEXT,
    address TEXT,
    action TEXT NOT NULL,
    route TEXT NOT NULL,
    object_kind TEXT,
    object_id TEXT,
    object_hash TEXT,
    person_hash TEXT,
    request_id TEXT,
    outcome TEXT NOT NULL,
    status INTEGER,
    calls BIGINT NOT NULL,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL
);
CREATE INDEX audit_log_by_time ON audit_log (at);
CREATE INDEX audit_log_by_principal ON audit_log (principal_id, id);
CREATE INDEX audit_log_by_object ON audit_log (object_hash, id);
CREATE INDEX audit_log_by_person ON audit_log (person_hash, id);

-- The one row is locked by every transaction that adds rows. last_id, last_hash: of the last row. trimmed_id,
-- trimmed_hash: of the last row that was removed for its age, after which the log begins. hash_key: made with the first
-- row, hexadecimal.
CREATE TABLE audit_chain (
    slot INTEGER NOT NULL PRIMARY KEY CHECK (slot = 1),
    last_id BIGINT NOT NULL,
    last_hash TEXT NOT NULL,
    trimmed_id BIGINT NOT NULL,
    trimmed_hash TEXT NOT NULL,
    hash_key TEXT NOT NULL
);
INSERT INTO audit_chain (slot, last_id, last_hash, trimmed_id, trimmed_hash, hash_key) VALUES (1, 0, '', 0, '', '');
