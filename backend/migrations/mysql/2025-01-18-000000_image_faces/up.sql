-- Which face of an image was enrolled, and how well it can be recognised: its box in pixels of the upright image, and the
-- components of its quality. NULL for images from before there were these columns, until their embeddings are recomputed.
ALTER TABLE images ADD COLUMN face_left FLOAT;
ALTER TABLE images ADD COLUMN face_top FLOAT;
ALTER TABLE images ADD COLUMN face_right FLOAT;
ALTER TABLE images ADD COLUMN face_bottom FLOAT;
ALTER TABLE images ADD COLUMN face_size FLOAT;
ALTER TABLE images ADD COLUMN face_sharpness FLOAT;
ALTER TABLE images ADD COLUMN face_yaw FLOAT;
ALTER TABLE images ADD COLUMN face_pitch FLOAT;
ALTER TABLE images ADD COLUMN face_roll FLOAT;
ALTER TABLE images ADD COLUMN face_brightness FLOAT;
ALTER TABLE images ADD COLUMN face_confidence FLOAT;
