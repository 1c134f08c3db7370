-- Ids of clusters of unknown faces that became people, so that naming one again has the same answer.
CREATE TABLE named_unknowns (
    public_id TEXT NOT NULL PRIMARY KEY,
    person_id BIGINT NOT NULL REFERENCES people (id) ON DELETE CASCADE
);
CREATE INDEX named_unknowns_by_person ON named_unknowns (person_id);

-- Pictures of unknown faces, where they are kept. bytes: the size of the blob.
CREATE TABLE unknown_pictures (
    detection_id INTEGER NOT NULL PRIMARY KEY REFERENCES detections (id) ON DELETE CASCADE,
    blob_key TEXT NOT NULL UNIQUE,
    bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX unknown_pictures_by_time ON unknown_pictures (created_at);

-- Unknown faces that may be of a person who was enrolled later. score: cosine to the person's mean embedding. refused: not
-- proposed again; accepted ones are gone, since their detections have the name.
CREATE TABLE proposals (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    person_id BIGINT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    detection_id INTEGER NOT NULL REFERENCES detections (id) ON DELETE CASCADE,
    score REAL NOT NULL,
    model_version BIGINT NOT NULL,
    refused BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL,
    UNIQUE (detection_id, person_id)
);
CREATE INDEX proposals_by_person ON proposals (person_id, refused, id);

-- People for whom stored unknown faces are still to be searched, by a job.
CREATE TABLE past_searches (
    person_id BIGINT NOT NULL PRIMARY KEY REFERENCES people (id) ON DELETE CASCADE,
    requested_at BIGINT NOT NULL
);
