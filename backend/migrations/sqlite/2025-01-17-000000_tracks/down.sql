DROP INDEX detections_by_track;
ALTER TABLE detections DROP COLUMN weight;
ALTER TABLE detections DROP COLUMN track_row;
DROP TABLE detection_revisions;
DROP TABLE tracks;
