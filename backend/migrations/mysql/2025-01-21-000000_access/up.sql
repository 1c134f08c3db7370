-- Cameras (edge nodes), and people or programs, that may use the servers. kind: camera or person. scopes: names, separated by
-- commas. camera_id: the only camera that it may upload for, NULL for any. disabled: its tokens are refused.
CREATE TABLE principals (
    id BIGINT NOT NULL PRIMARY KEY,
    kind VARBINARY(16) NOT NULL,
    name VARBINARY(800) NOT NULL UNIQUE,
    scopes VARBINARY(200) NOT NULL,
    camera_id VARBINARY(800),
    may_see_names BOOLEAN NOT NULL,
    disabled BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL
) ENGINE = InnoDB;

-- digest: SHA-256 of the token in hexadecimal digits; the token itself is nowhere. scopes: fewer than the principal's, NULL for
-- all of them. last_used_at: a minute.
CREATE TABLE access_tokens (
    id BIGINT NOT NULL PRIMARY KEY,
    principal_id BIGINT NOT NULL,
    name VARBINARY(800) NOT NULL,
    digest VARBINARY(64) NOT NULL UNIQUE,
    scopes VARBINARY(200),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    last_used_at BIGINT,
    last_used_address VARBINARY(64),
    FOREIGN KEY (principal_id) REFERENCES principals (id) ON DELETE CASCADE
) ENGINE = InnoDB;
CREATE INDEX access_tokens_by_principal ON access_tokens (principal_id);

-- The one row is locked by every transaction that changes the two tables above, uses of tokens aside. revision: counts these
-- transactions, and servers read the tables again when it has changed. last_principal, last_token: the greatest ids so far; none is
-- given twice, since idempotency keys are bound to a principal's.
CREATE TABLE access_state (
    slot INTEGER NOT NULL PRIMARY KEY CHECK (slot = 1),
    revision BIGINT NOT NULL,
    last_principal BIGINT NOT NULL,
    last_token BIGINT NOT NULL
) ENGINE = InnoDB;
INSERT INTO access_state (slot, revision, last_principal, last_token) VALUES (1, 0, 0, 0);
