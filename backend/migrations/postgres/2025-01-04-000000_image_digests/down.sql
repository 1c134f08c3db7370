DROP INDEX images_by_digest;
ALTER TABLE images DROP COLUMN sha256;
