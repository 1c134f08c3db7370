-- The greatest version of a model that was removed: no other model gets it.
ALTER TABLE active_model ADD COLUMN removed_version BIGINT NOT NULL DEFAULT 0;
