-- Clusters of unknown faces, each of which is probably one person. public_id: UUID. mean: little-endian f32, the mean of the
-- normalised embeddings of the tracks in it, not normalised. faces: detections with its id. tracks: the tracks that they
-- are of; a detection without a track is one of its own. representative: the detection that is nearest to the mean.
-- ignored: left out of lists unless asked for. pinned: made by hand; a revision does not divide it. changed: detections
-- have left it, so that the other columns have to be computed again.
CREATE TABLE unknowns (
    id BIGINT NOT NULL PRIMARY KEY,
    public_id VARBINARY(36) NOT NULL UNIQUE,
    embedder VARBINARY(64) NOT NULL,
    mean BLOB NOT NULL,
    faces BIGINT NOT NULL,
    tracks BIGINT NOT NULL,
    first_seen BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    representative BIGINT NOT NULL,
    ignored BOOLEAN NOT NULL DEFAULT FALSE,
    pinned BOOLEAN NOT NULL DEFAULT FALSE,
    changed BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL
) ENGINE = InnoDB;
CREATE INDEX unknowns_by_last_seen ON unknowns (last_seen, id);
CREATE INDEX unknowns_by_faces ON unknowns (faces, id);
CREATE INDEX unknowns_by_change ON unknowns (changed);

-- The cluster of an unknown face with an embedding. NULL for others, and before the face is read.
ALTER TABLE detections ADD COLUMN unknown_id BIGINT;
CREATE INDEX detections_by_unknown ON detections (unknown_id, captured_at);

-- Ids of clusters that went into another one, which they still lead to.
CREATE TABLE merged_unknowns (
    public_id VARBINARY(36) NOT NULL PRIMARY KEY,
    unknown_id BIGINT NOT NULL,
    FOREIGN KEY (unknown_id) REFERENCES unknowns (id) ON DELETE CASCADE
) ENGINE = InnoDB;
CREATE INDEX merged_unknowns_by_unknown ON merged_unknowns (unknown_id);

-- Clusters that were divided by hand and stay apart. unknown_id is the lesser one.
CREATE TABLE separate_unknowns (
    unknown_id BIGINT NOT NULL,
    other_unknown_id BIGINT NOT NULL,
    PRIMARY KEY (unknown_id, other_unknown_id),
    FOREIGN KEY (unknown_id) REFERENCES unknowns (id) ON DELETE CASCADE,
    FOREIGN KEY (other_unknown_id) REFERENCES unknowns (id) ON DELETE CASCADE
) ENGINE = InnoDB;
CREATE INDEX separate_unknowns_by_other ON separate_unknowns (other_unknown_id);

-- The one row is locked by every transaction that changes clusters. read_up_to: the last detection that was read.
-- revision: counts these transactions. last_unknown: the greatest id of a cluster so far.
CREATE TABLE unknown_clustering (
    slot INTEGER NOT NULL PRIMARY KEY CHECK (slot = 1),
    read_up_to BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    last_unknown BIGINT NOT NULL
) ENGINE = InnoDB;
INSERT INTO unknown_clustering (slot, read_up_to, revision, last_unknown) VALUES (1, 0, 0, 0);
INSERT INTO leases (name, holder, expires_at) VALUES ('unknowns', '', 0);
INSERT INTO task_runs (task, finished_at) VALUES ('recluster', NULL);
