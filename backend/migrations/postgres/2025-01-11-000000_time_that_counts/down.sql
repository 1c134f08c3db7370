UPDATE detections SET captured_at = claimed_at WHERE claimed_at IS NOT NULL;
ALTER TABLE detections DROP COLUMN claimed_at;
DROP TABLE task_runs;
