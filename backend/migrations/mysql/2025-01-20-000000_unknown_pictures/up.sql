-- Ids of clusters of unknown faces that became people, so that naming one again has the same answer.
CREATE TABLE named_unknowns (
    public_id VARBINARY(36) NOT NULL PRIMARY KEY,
    person_id BIGINT NOT NULL,
    FOREIGN KEY (person_id) REFERENCES people (id) ON DELETE CASCADE
) ENGINE = InnoDB;

-- Pictures of unknown faces, where they are kept. bytes: the size of the blob.
CREATE TABLE unknown_pictures (
    detection_id BIGINT NOT NULL PRIMARY KEY,
    blob_key VARBINARY(255) NOT NULL UNIQUE,
    bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    FOREIGN KEY (detection_id) REFERENCES detections (id) ON DELETE CASCADE
) ENGINE = InnoDB;
CREATE INDEX unknown_pictures_by_time ON unknown_pictures (created_at);

-- Unknown faces that may be of a person who was enrolled later. score: cosine to the person's mean embedding. refused: not
-- proposed again; accepted ones are gone, since their detections have the name.
CREATE TABLE proposals (
    id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    person_id BIGINT NOT NULL,
    detection_id BIGINT NOT NULL,
    score FLOAT NOT NULL,
    model_version BIGINT NOT NULL,
    refused BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL,
    UNIQUE (detection_id, person_id),
    FOREIGN KEY (person_id) REFERENCES people (id) ON DELETE CASCADE,
    FOREIGN KEY (detection_id) REFERENCES detections (id) ON DELETE CASCADE
) ENGINE = InnoDB;
CREATE INDEX proposals_by_person ON proposals (person_id, refused, id);

-- People for whom stored unknown faces are still to be searched, by a job.
CREATE TABLE past_searches (
    person_id BIGINT NOT NULL PRIMARY KEY,
    requested_at BIGINT NOT NULL,
    FOREIGN KEY (person_id) REFERENCES people (id) ON DELETE CASCADE
) ENGINE = InnoDB;
