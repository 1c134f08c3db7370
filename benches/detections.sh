#!/usr/bin/env bash
# benches/detections.sh [ROWS]
# How long the questions about detections take on PostgreSQL with many of them (10 million unless told otherwise). Starts a
# server of its own, makes the backend's tables, fills them, and prints each question's plan and time: run three times, the
# last one counts. Needs about 5 GB of disk and, on two cores, some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${1:-10000000}

eval "$(scripts/databases.sh start 2>/dev/null)"
trap 'scripts/databases.sh stop' EXIT
url=$FACEPIPE_TEST_POSTGRES/bench
sql() { psql --quiet --no-psqlrc --tuples-only --no-align -v ON_ERROR_STOP=1 "$@"; }
sql "$FACEPIPE_TEST_POSTGRES/postgres" -c 'CREATE DATABASE bench'
for migration in backend/migrations/postgres/*/up.sql; do sql "$url" -f "$migration"; done

echo "Making $rows detections: 1,000 people, 200 cameras at 50 places, one in five faces unknown, a year's time"
# Indexes are made afterwards, as they are in the migrations: filling is faster without.
indexes=$(grep -hE '^CREATE (UNIQUE )?INDEX \w+ ON detections' backend/migrations/postgres/*/up.sql)
sql "$url" <<SQL
SET maintenance_work_mem = '512MB';
$(sed -E 's/^CREATE (UNIQUE )?INDEX (\w+) .*/DROP INDEX \2;/' <<<"$indexes")
INSERT INTO people (face_id, created_at) SELECT 'Person ' || n, 0 FROM generate_series(1, 1000) n;
INSERT INTO detections (captured_at, received_at, camera_id, location, person_id, confidence, score, threshold,
    detection_confidence, model_version, embedder, embedding, upload_key, face, box_left, box_top, box_right, box_bottom,
    track_id)
SELECT at, at + 1000000, 'camera-' || camera, 'Place ' || camera % 50,
    CASE WHEN random() < 0.8 THEN 1 + floor(999.999 * random() * random())::bigint END,
    random(), random(), 0.35, 0.99, 1, 'mobilefacenet', NULL, 'key-' || n, 0, 10, 20, 90, 120, n
FROM (SELECT n, (1700000000 + 31536000 * random()) :: bigint * 1000000 AS at, floor(199.999 * random())::int AS camera
      FROM generate_series(1, $rows) n) made;
$indexes
VACUUM ANALYZE detections;
ANALYZE people;
SQL
echo "Table and indexes: $(sql "$url" -c "SELECT pg_size_pretty(pg_total_relation_size('detections'))")"

columns='d.id, d.captured_at, d.received_at, d.camera_id, d.location, p.face_id, d.confidence, d.score, d.threshold,
    d.detection_confidence, d.model_version, d.track_id, d.box_left, d.box_top, d.box_right, d.box_bottom'
from='FROM detections d LEFT JOIN people p ON d.person_id = p.id'
newest='ORDER BY d.captured_at DESC, d.id DESC LIMIT 101'
middle=1715000000000000
ask() {
    local question=$1 query=$2 plan
    for _ in 1 2 3; do plan=$(sql "$url" -c "EXPLAIN (ANALYZE, BUFFERS) $query"); done
    printf '\n== %s: %s\n%s\n' "$question" "$(grep 'Execution Time' <<<"$plan")" "$(grep -vE '^ *(Buffers|Planning)' <<<"$plan")"
    summary+=$(printf '%-46s %s' "$question" "$(sed -n 's/.*Execution Time: //p' <<<"$plan")")$'\n'
}
summary=
for person in 1 500 999; do
    ask "last known location of person $person" "SELECT location, camera_id, captured_at, confidence FROM detections
        WHERE person_id = $person ORDER BY captured_at DESC, id DESC LIMIT 1"
done
ask "a person's track, first page of 1000" "SELECT $columns $from WHERE d.person_id = 500
    ORDER BY d.captured_at, d.id LIMIT 1001"
ask "a person's track of one day" "SELECT $columns $from WHERE d.person_id = 1 AND d.captured_at >= $middle
    AND d.captured_at < $middle + 86400000000 ORDER BY d.captured_at, d.id LIMIT 1001"
ask "the newest page" "SELECT $columns $from $newest"
ask "a page in the middle" "SELECT $columns $from WHERE d.captured_at <= $middle
    AND (d.captured_at < $middle OR d.id < 5000000) $newest"
ask "the newest page of one camera" "SELECT $columns $from WHERE d.camera_id = 'camera-7' $newest"
ask "the newest page of one place" "SELECT $columns $from WHERE d.location = 'Place 7' $newest"
ask "the newest page of one person at one place" "SELECT $columns $from WHERE d.person_id = 500
    AND d.location = 'Place 7' $newest"
after="WHERE d.id > $rows - 5000 AND d.id <= $rows"
ask "what arrived since: all" "SELECT $columns $from $after ORDER BY d.id LIMIT 100"
ask "what arrived since: one camera's" "SELECT $columns $from $after
    AND COALESCE(d.camera_id, '') = 'camera-7' ORDER BY d.id LIMIT 100"
ask "what arrived since: one person's" "SELECT $columns $from $after
    AND COALESCE(d.person_id, 0) = 1 ORDER BY d.id LIMIT 100"
ask "all cameras and their places" "SELECT camera_id, location, max(captured_at) FROM detections
    GROUP BY camera_id, location"
printf '\n%s' "$summary"
