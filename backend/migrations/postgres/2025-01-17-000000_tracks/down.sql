DROP INDEX detections_without_track;
DROP INDEX detections_by_track;
ALTER TABLE detections DROP COLUMN weight, DROP COLUMN track_row;
DROP TABLE detection_revisions;
DROP TABLE tracks;
