DROP INDEX people_by_public_id;
ALTER TABLE people DROP COLUMN public_id;
