-- SHA-256 of the image's bytes, hexadecimal: a person has the same bytes once. NULL for images from before this column.
ALTER TABLE images ADD COLUMN sha256 TEXT COLLATE "C";
CREATE UNIQUE INDEX images_by_digest ON images (person_id, sha256);
