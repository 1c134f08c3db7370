DROP INDEX detections_by_location;
DROP INDEX detections_by_camera;
