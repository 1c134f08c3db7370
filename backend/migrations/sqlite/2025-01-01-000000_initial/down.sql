DROP TABLE jobs;
DROP TABLE answers;
DROP TABLE detections;
DROP TABLE active_model;
DROP TABLE models;
DROP TABLE embeddings;
DROP TABLE images;
DROP TABLE people;
