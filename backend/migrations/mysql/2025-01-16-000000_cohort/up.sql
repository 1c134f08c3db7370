-- Embeddings of strangers, against which a gallery is calibrated. Nothing else is known of them: no name, no picture, and no
-- digest of one. source: uploaded, or camera for a copy of an unknown detection's embedding. created_at: the time of the
-- upload, or of the capture, from which retention counts.
CREATE TABLE cohort (
    id VARBINARY(36) NOT NULL PRIMARY KEY,
    embedder VARBINARY(64) NOT NULL,
    source VARBINARY(16) NOT NULL,
    vector BLOB NOT NULL,
    created_at BIGINT NOT NULL
) ENGINE = InnoDB;
CREATE INDEX cohort_by_source ON cohort (embedder, source, created_at);

-- The last detection that was considered for the cohort.
CREATE TABLE cohort_cursor (
    slot INTEGER NOT NULL PRIMARY KEY CHECK (slot = 1),
    detection_id BIGINT NOT NULL
) ENGINE = InnoDB;
INSERT INTO cohort_cursor (slot, detection_id) VALUES (1, 0);
INSERT INTO leases (name, holder, expires_at) VALUES ('cohort', '', 0);
INSERT INTO task_runs (task, finished_at) VALUES ('cohort', NULL);
