DROP INDEX people_by_public_id ON people;
ALTER TABLE people DROP COLUMN public_id;
