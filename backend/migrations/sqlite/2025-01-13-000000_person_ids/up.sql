-- What stands for a person in addresses: a UUID, which names nobody. The server fills it in at its start; NULL for people
-- added since by a version that does not know it.
ALTER TABLE people ADD COLUMN public_id TEXT;
CREATE UNIQUE INDEX people_by_public_id ON people (public_id);
