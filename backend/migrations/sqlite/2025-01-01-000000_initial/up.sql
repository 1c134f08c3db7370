-- Times are microseconds since 1970-01-01T00:00:00Z. Ids of people are never used twice: a model that was trained
-- before a person was erased must not take somebody enrolled later for that person.

CREATE TABLE people (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    face_id TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE images (
    id TEXT NOT NULL PRIMARY KEY,
    person_id BIGINT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    blob_key TEXT NOT NULL UNIQUE,
    bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX images_by_person ON images (person_id);

-- vector: little-endian f32. One image may have embeddings of several embedders; they never mix.
CREATE TABLE embeddings (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    embedder TEXT NOT NULL,
    vector BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (image_id, embedder)
);

CREATE TABLE models (
    version BIGINT NOT NULL PRIMARY KEY,
    embedder TEXT NOT NULL,
    blob_key TEXT NOT NULL UNIQUE,
    sha256 TEXT NOT NULL,
    people BIGINT NOT NULL,
    images BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- The one row names the model that answers.
CREATE TABLE active_model (
    slot INTEGER NOT NULL PRIMARY KEY CHECK (slot = 1),
    version BIGINT NOT NULL REFERENCES models (version)
);

-- person_id is NULL for an unknown face, and for a face whose person was erased. Only unknown faces keep their
-- embedding. upload_key is the picture's idempotency key, face numbers the faces of one picture from 0.
CREATE TABLE detections (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    captured_at BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    camera_id TEXT NOT NULL,
    location TEXT NOT NULL,
    person_id BIGINT REFERENCES people (id) ON DELETE SET NULL,
    confidence REAL,
    score REAL,
    threshold REAL NOT NULL,
    detection_confidence REAL NOT NULL,
    model_version BIGINT,
    embedder TEXT NOT NULL,
    embedding BLOB,
    upload_key TEXT,
    face INTEGER NOT NULL,
    box_left REAL NOT NULL,
    box_top REAL NOT NULL,
    box_right REAL NOT NULL,
    box_bottom REAL NOT NULL,
    track_id BIGINT
);
CREATE UNIQUE INDEX detections_by_upload ON detections (upload_key, face);
CREATE INDEX detections_by_person ON detections (person_id, captured_at);
CREATE INDEX detections_by_time ON detections (captured_at, id);

-- What was answered for a picture that carried an idempotency key. faces: JSON with ids of people instead of their
-- names, so that nothing here names an erased person.
CREATE TABLE answers (
    call TEXT NOT NULL,
    upload_key TEXT NOT NULL,
    model_version BIGINT,
    faces TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (call, upload_key)
);

-- status: queued, running, done, failed. result: JSON of a job that is done. error: what went wrong with one that
-- failed.
CREATE TABLE jobs (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    result TEXT,
    error TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);
CREATE INDEX jobs_by_status ON jobs (status, created_at);
