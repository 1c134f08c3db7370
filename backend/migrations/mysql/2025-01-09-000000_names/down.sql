DROP INDEX people_by_key ON people;
ALTER TABLE people DROP COLUMN face_key;
DELETE FROM leases WHERE name = 'names';
