ALTER TABLE models DROP COLUMN calibration;
