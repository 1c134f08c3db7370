-- What all names that count as the same have in common, so that no two people have the same name: normalised, without
-- regard to case where the server is told so. The server fills it in at its start, since no engine can; NULL for people
-- added since by a version that does not know it.
ALTER TABLE people ADD COLUMN face_key VARBINARY(600);
CREATE UNIQUE INDEX people_by_key ON people (face_key);
-- Never held as a lease: locked by whoever fills in.
INSERT INTO leases (name, holder, expires_at) VALUES ('names', '', 0);
