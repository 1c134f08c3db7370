DROP INDEX images_by_digest ON images;
ALTER TABLE images DROP COLUMN sha256;
