-- How the threshold of a model was calibrated, as JSON without names. NULL for models from before this column, and for those
-- that a server of the version before trains beside a newer one.
ALTER TABLE models ADD COLUMN calibration MEDIUMTEXT CHARACTER SET utf8mb4;
