DROP INDEX detections_by_track ON detections;
ALTER TABLE detections DROP COLUMN weight, DROP COLUMN track_row;
DROP TABLE detection_revisions;
DROP TABLE tracks;
