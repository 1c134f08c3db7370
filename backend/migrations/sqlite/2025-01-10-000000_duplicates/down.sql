DROP TABLE similar_images;
DROP INDEX images_by_unique_bytes;
DROP INDEX images_by_bytes;
ALTER TABLE images DROP COLUMN unique_sha256;
