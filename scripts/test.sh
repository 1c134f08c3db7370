#!/usr/bin/env bash
# Runs every test and says at the end how many were skipped for want of their data, and why.
set -uo pipefail

export FACEPIPE_SKIP_LOG=$PWD/target/skipped-tests.txt
mkdir -p target
rm -f "$FACEPIPE_SKIP_LOG"

cargo test --workspace --locked
result=$?
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
