-- What was erased on purpose, so that a database that is restored from an older backup learns of it; the blob store has
-- the same entries. digest: SHA-256, hexadecimal, of the salt and of what tells the erased row from every other one. It
-- names nobody. salt: hexadecimal.
CREATE TABLE erasures (
    digest VARBINARY(64) NOT NULL PRIMARY KEY,
    salt VARBINARY(64) NOT NULL,
    erased_at BIGINT NOT NULL
) ENGINE = InnoDB;
INSERT INTO leases (name, holder, expires_at) VALUES ('retain', '', 0);
