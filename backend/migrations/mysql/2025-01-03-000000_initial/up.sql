-- Times are microseconds since 1970-01-01T00:00:00Z. Ids of people are never used twice: a model that was trained
-- before a person was erased must not take somebody enrolled later for that person. Keys and names are
-- VARBINARY (of UTF-8): collations of MySQL and MariaDB differ, and most take "Ada" and "ada " for the same.

CREATE TABLE people (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    face_id VARBINARY(256) NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
) ENGINE = InnoDB;

CREATE TABLE images (
    id VARBINARY(36) NOT NULL PRIMARY KEY,
    person_id BIGINT NOT NULL,
    blob_key VARBINARY(255) NOT NULL UNIQUE,
    bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    FOREIGN KEY (person_id) REFERENCES people (id) ON DELETE CASCADE
) ENGINE = InnoDB;
CREATE INDEX images_by_person ON images (person_id);

-- vector: little-endian f32. One image may have embeddings of several embedders; they never mix.
CREATE TABLE embeddings (
    image_id VARBINARY(36) NOT NULL,
    embedder VARBINARY(64) NOT NULL,
    vector BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (image_id, embedder),
    FOREIGN KEY (image_id) REFERENCES images (id) ON DELETE CASCADE
) ENGINE = InnoDB;

CREATE TABLE models (
    version BIGINT NOT NULL PRIMARY KEY,
    embedder VARBINARY(64) NOT NULL,
    blob_key VARBINARY(255) NOT NULL UNIQUE,
    sha256 VARBINARY(64) NOT NULL,
    people BIGINT NOT NULL,
    images BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    created_at BIGINT NOT NULL
) ENGINE = InnoDB;

-- The one row names the model that answers.
CREATE TABLE active_model (
    slot INTEGER NOT NULL PRIMARY KEY CHECK (slot = 1),
    version BIGINT NOT NULL,
    FOREIGN KEY (version) REFERENCES models (version)
) ENGINE = InnoDB;

-- Whom each model knows. Without a foreign key to people: a model that knows an erased person is to be found here.
CREATE TABLE model_people (
    version BIGINT NOT NULL,
    person_id BIGINT NOT NULL,
    PRIMARY KEY (version, person_id),
    FOREIGN KEY (version) REFERENCES models (version) ON DELETE CASCADE
) ENGINE = InnoDB;

-- person_id is NULL for an unknown face, and for a face whose person was erased. Only unknown faces keep their
-- embedding. upload_key is the picture's idempotency key, face numbers the faces of one picture from 0.
CREATE TABLE detections (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    captured_at BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    camera_id VARBINARY(800) NOT NULL,
    location VARBINARY(800) NOT NULL,
    person_id BIGINT,
    confidence FLOAT,
    score FLOAT,
    threshold FLOAT NOT NULL,
    detection_confidence FLOAT NOT NULL,
    model_version BIGINT,
    embedder VARBINARY(64) NOT NULL,
    embedding BLOB,
    upload_key VARBINARY(800),
    face INTEGER NOT NULL,
    box_left FLOAT NOT NULL,
    box_top FLOAT NOT NULL,
    box_right FLOAT NOT NULL,
    box_bottom FLOAT NOT NULL,
    track_id BIGINT,
    FOREIGN KEY (person_id) REFERENCES people (id) ON DELETE SET NULL
) ENGINE = InnoDB;
CREATE UNIQUE INDEX detections_by_upload ON detections (upload_key, face);
CREATE INDEX detections_by_person ON detections (person_id, captured_at);
CREATE INDEX detections_by_time ON detections (captured_at, id);
CREATE INDEX detections_by_camera ON detections (camera_id, captured_at);
CREATE INDEX detections_by_location ON detections (location, captured_at);

-- What was answered for a picture that carried an idempotency key. faces: JSON with ids of people instead of their
-- names, so that nothing here names an erased person.
CREATE TABLE answers (
    `call` VARBINARY(32) NOT NULL,
    upload_key VARBINARY(800) NOT NULL,
    model_version BIGINT,
    faces MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (`call`, upload_key)
) ENGINE = InnoDB;

-- status: queued, running, done, failed, cancelled. result: JSON of a job that is done. error: what went wrong with
-- one that failed. attempts: how often it was begun. cancel: whether its end was asked for.
CREATE TABLE jobs (
    id VARBINARY(36) NOT NULL PRIMARY KEY,
    kind VARBINARY(32) NOT NULL,
    status VARBINARY(16) NOT NULL,
    result MEDIUMTEXT CHARACTER SET utf8mb4,
    error MEDIUMTEXT CHARACTER SET utf8mb4,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    images_done BIGINT NOT NULL DEFAULT 0,
    images_total BIGINT,
    attempts INTEGER NOT NULL DEFAULT 0,
    cancel BOOLEAN NOT NULL DEFAULT FALSE
) ENGINE = InnoDB;
CREATE INDEX jobs_by_status ON jobs (status, created_at);

-- What one process of the deployment may do at a time. A lease that nobody holds has expired.
CREATE TABLE leases (
    name VARBINARY(32) NOT NULL PRIMARY KEY,
    holder VARBINARY(64) NOT NULL,
    expires_at BIGINT NOT NULL
) ENGINE = InnoDB;
INSERT INTO leases (name, holder, expires_at)
VALUES ('trainer', '', 0), ('dataset', '', 0), ('outbox', '', 0), ('sweep', '', 0);

-- Results on their way to the external API. person_id is NULL for an unknown face; what was to be told of an erased
-- person goes with the person.
CREATE TABLE outbox (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    message_key VARBINARY(1000) NOT NULL UNIQUE,
    person_id BIGINT,
    confidence FLOAT,
    camera_id VARBINARY(800) NOT NULL,
    location VARBINARY(800) NOT NULL,
    captured_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_at BIGINT NOT NULL,
    FOREIGN KEY (person_id) REFERENCES people (id) ON DELETE CASCADE
) ENGINE = InnoDB;
CREATE INDEX outbox_by_attempt ON outbox (next_attempt_at, id);
CREATE INDEX outbox_by_person ON outbox (person_id);
