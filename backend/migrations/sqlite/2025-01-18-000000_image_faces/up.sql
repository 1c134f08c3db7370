-- Which face of an image was enrolled, and how well it can be recognised: its box in pixels of the upright image, and the
-- components of its quality. NULL for images from before there were these columns, until their embeddings are recomputed.
ALTER TABLE images ADD COLUMN face_left REAL;
ALTER TABLE images ADD COLUMN face_top REAL;
ALTER TABLE images ADD COLUMN face_right REAL;
ALTER TABLE images ADD COLUMN face_bottom REAL;
ALTER TABLE images ADD COLUMN face_size REAL;
ALTER TABLE images ADD COLUMN face_sharpness REAL;
ALTER TABLE images ADD COLUMN face_yaw REAL;
ALTER TABLE images ADD COLUMN face_pitch REAL;
ALTER TABLE images ADD COLUMN face_roll REAL;
ALTER TABLE images ADD COLUMN face_brightness REAL;
ALTER TABLE images ADD COLUMN face_confidence REAL;
