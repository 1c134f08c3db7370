DROP TABLE outbox;
DROP TABLE model_people;
DROP TABLE leases;
ALTER TABLE jobs DROP COLUMN cancel;
ALTER TABLE jobs DROP COLUMN attempts;
ALTER TABLE jobs DROP COLUMN images_total;
ALTER TABLE jobs DROP COLUMN images_done;
