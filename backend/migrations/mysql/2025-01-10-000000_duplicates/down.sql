DROP TABLE similar_images;
DROP INDEX images_by_unique_bytes ON images;
DROP INDEX images_by_bytes ON images;
ALTER TABLE images DROP COLUMN unique_sha256;
