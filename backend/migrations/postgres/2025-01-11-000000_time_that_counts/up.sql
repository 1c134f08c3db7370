-- claimed_at: the capture time that the sender claimed, where it is too far from the arrival to be believed; captured_at is
-- received_at then. NULL where captured_at is what the sender claimed, or it claimed nothing.
ALTER TABLE detections ADD COLUMN claimed_at BIGINT;

-- When each kind of recurring work was last done to its end; NULL: never since this table exists.
CREATE TABLE task_runs (
    task TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    finished_at BIGINT
);
INSERT INTO task_runs (task, finished_at) VALUES ('retain', NULL), ('sweep', NULL), ('backup', NULL);

-- What is here already is judged by the default range: 5 minutes ahead of the arrival, 30 days behind it. Rows that
-- arrived before 2025 came by a server's clock that was not set yet: they stay as they are.
UPDATE detections
SET claimed_at = captured_at, captured_at = received_at
WHERE received_at >= 1735689600000000
    AND (captured_at > received_at + 300000000 OR captured_at < received_at - 2592000000000);
UPDATE outbox
SET captured_at = created_at
WHERE created_at >= 1735689600000000
    AND (captured_at > created_at + 300000000 OR captured_at < created_at - 2592000000000);
