#!/usr/bin/env bash
# Runs every test and says at the end how many were skipped for want of their data, and why.
set -uo pipefail

export FACEPIPE_SKIP_LOG=$PWD/target/skipped-tests.txt
mkdir -p target
rm -f "$FACEPIPE_SKIP_LOG"

# Serves S3 to the tests of blobs.
scripts/python-tool.sh moto || echo "moto could not be installed."

eval "$(scripts/databases.sh start 2>target/databases.log)"
if [[ -z ${FACEPIPE_TEST_POSTGRES:-} || -z ${FACEPIPE_TEST_MYSQL:-} ]]; then
    cat target/databases.log
    echo "PostgreSQL and MariaDB could not be started."
    exit 1
fi
trap 'scripts/databases.sh stop' EXIT

cargo test --workspace --locked
result=$?
# The API again, on each of the database servers.
for engine in postgres mysql; do
    echo
    echo "The API's tests on $engine:"
    FACEPIPE_TEST_DATABASE=$engine cargo test --workspace --locked --test api || result=1
done
scripts/schemathesis.sh "${CARGO_TARGET_DIR:-target}/debug" || result=1

if [[ -s $FACEPIPE_SKIP_LOG ]]; then
    echo
    echo "Skipped: $(wc -l <"$FACEPIPE_SKIP_LOG") tests, each for want of its data:"
    sort "$FACEPIPE_SKIP_LOG" | sed 's/^/  /'
else
    echo
    echo "Skipped: none."
fi
exit $result
