DELETE FROM task_runs WHERE task = 'cohort';
DELETE FROM leases WHERE name = 'cohort';
DROP TABLE cohort_cursor;
DROP TABLE cohort;
