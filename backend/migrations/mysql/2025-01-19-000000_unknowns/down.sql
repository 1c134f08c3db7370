DELETE FROM task_runs WHERE task = 'recluster';
DELETE FROM leases WHERE name = 'unknowns';
DROP TABLE unknown_clustering;
DROP TABLE separate_unknowns;
DROP TABLE merged_unknowns;
DROP INDEX detections_by_unknown ON detections;
ALTER TABLE detections DROP COLUMN unknown_id;
DROP TABLE unknowns;
