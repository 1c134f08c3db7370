-- The same bytes are one person's picture only. unique_sha256 is sha256 for the oldest image of some bytes, and keeps
-- another one from being added at the same moment; NULL for those that were there twice before, and for images that a
-- version adds that does not know it.
ALTER TABLE images ADD COLUMN unique_sha256 TEXT;
CREATE INDEX images_by_bytes ON images (sha256);
UPDATE images SET unique_sha256 = sha256
WHERE id IN (SELECT MIN(id) FROM images WHERE sha256 IS NOT NULL GROUP BY sha256);
CREATE UNIQUE INDEX images_by_unique_bytes ON images (unique_sha256);

-- Images of different people that are nearly the same picture, which a training leaves out. image_id is the lesser one.
-- similarity: cosine between their embeddings.
CREATE TABLE similar_images (
    image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    other_image_id TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    similarity REAL NOT NULL,
    PRIMARY KEY (image_id, other_image_id)
);
CREATE INDEX similar_images_by_other ON similar_images (other_image_id);
INSERT INTO similar_images (image_id, other_image_id, similarity)
SELECT one.id, another.id, 1
FROM images AS one JOIN images AS another ON one.sha256 = another.sha256 AND one.id < another.id
WHERE one.person_id <> another.person_id;
