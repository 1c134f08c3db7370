-- Progress of a job in images; how often it was begun; whether its end was asked for.
ALTER TABLE jobs ADD COLUMN images_done BIGINT NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN images_total BIGINT;
ALTER TABLE jobs ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN cancel BOOLEAN NOT NULL DEFAULT FALSE;

-- What one process of the deployment may do at a time. A lease that nobody holds has expired.
CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
INSERT INTO leases (name, holder, expires_at) VALUES ('trainer', '', 0), ('dataset', '', 0), ('outbox', '', 0), ('sweep', '', 0);

-- Whom each model knows. Without a foreign key to people: a model that knows an erased person is to be found here.
CREATE TABLE model_people (
    version BIGINT NOT NULL REFERENCES models (version) ON DELETE CASCADE,
    person_id BIGINT NOT NULL,
    PRIMARY KEY (version, person_id)
);

-- Results on their way to the external API. person_id is NULL for an unknown face; what was to be told of an erased
-- person goes with the person.
CREATE TABLE outbox (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    message_key TEXT NOT NULL UNIQUE,
    person_id BIGINT REFERENCES people (id) ON DELETE CASCADE,
    confidence REAL,
    camera_id TEXT NOT NULL,
    location TEXT NOT NULL,
    captured_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_at BIGINT NOT NULL
);
CREATE INDEX outbox_by_attempt ON outbox (next_attempt_at, id);
CREATE INDEX outbox_by_person ON outbox (person_id);
