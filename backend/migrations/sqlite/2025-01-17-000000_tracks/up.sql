-- The crops of one face in one video, decided together. open_key: digest of what names the track, as long as it can grow;
-- NULL afterwards. closes_at: when it cannot grow any more unless another crop comes; NULL afterwards. run_id: the run of the
-- tracker; empty where the sender gives none. embedding: the weighted sum of the embeddings of its crops, weight: the sum of
-- their weights; embedding is NULL once the track cannot grow.
-- person_id is NULL for an unknown face, and for an erased person. stored: whether its faces are detections; those of
-- send-results are not, and their track goes once it cannot grow.
CREATE TABLE tracks (
    id INTEGER NOT NULL PRIMARY KEY,
    open_key TEXT UNIQUE,
    closes_at BIGINT,
    camera_id TEXT NOT NULL,
    location TEXT NOT NULL,
    run_id TEXT NOT NULL,
    track_id BIGINT NOT NULL,
    embedder TEXT NOT NULL,
    embedding BLOB,
    weight REAL NOT NULL,
    crops BIGINT NOT NULL,
    first_captured_at BIGINT NOT NULL,
    last_captured_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    person_id BIGINT REFERENCES people (id) ON DELETE SET NULL,
    confidence REAL,
    score REAL,
    threshold REAL NOT NULL,
    model_version BIGINT,
    stored BOOLEAN NOT NULL
);
CREATE INDEX tracks_by_end ON tracks (closes_at);
CREATE INDEX tracks_by_time ON tracks (first_captured_at, id);
CREATE INDEX tracks_by_last_time ON tracks (last_captured_at);
CREATE INDEX tracks_by_person ON tracks (person_id, first_captured_at, id);
CREATE INDEX tracks_by_camera ON tracks (camera_id, first_captured_at, id);
CREATE INDEX tracks_by_location ON tracks (location, first_captured_at, id);

-- Detections whose person was decided again with later crops of their track, for clients that follow corrections: the latest
-- revision of each. id grows with each revision.
CREATE TABLE detection_revisions (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    detection_id INTEGER NOT NULL UNIQUE REFERENCES detections (id) ON DELETE CASCADE,
    revised_at BIGINT NOT NULL
);

-- track_row: the row of tracks that this face belongs to; NULL without a track. weight: how much the face counts in it.
ALTER TABLE detections ADD COLUMN track_row BIGINT;
ALTER TABLE detections ADD COLUMN weight REAL;
CREATE INDEX detections_by_track ON detections (track_row, captured_at, id);
