-- The newest of one camera or one place; the former also answers which cameras there are without reading the table.
CREATE INDEX detections_by_camera ON detections (camera_id, captured_at, location);
CREATE INDEX detections_by_location ON detections (location, captured_at);
