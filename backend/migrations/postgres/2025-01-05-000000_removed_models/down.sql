ALTER TABLE active_model DROP COLUMN removed_version;
