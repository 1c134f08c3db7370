-- Never held as a lease: whoever adds detections shares a lock on this row until they are there to be seen, so that whoever
-- follows detections by their ids can wait for all that have one.
INSERT INTO leases (name, holder, expires_at) VALUES ('arrivals', '', 0);
