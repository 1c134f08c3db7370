#!/usr/bin/env bash
# Runs every test and lists at the end the tests that were skipped because their data is missing.
#
# Three lanes run in parallel. The first has the tests that play videos in real time: they mostly wait, and their measurements
# must not wait for a CPU, so they have priority. The second has all other tests, one after the other. The third needs no
# built program: lints, licences, and the examples of the documentation.
# shellcheck disable=SC2317 # functions that lane calls
set -uo pipefail

real_time=(bandwidth demo durability jetson pipeline_scripts pipelines programs_video)

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

# The tests to run, as lines of name, package folder and program. The lanes start the programs themselves: cargo locks the
# build folder, so they would wait for the third lane.
cargo test --workspace --locked --no-run --message-format=json-render-diagnostics >target/tests.json || exit 1
programs=$(python3 - target/tests.json <<'END'
import json, os, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message["executable"] and message["profile"]["test"]:
        kind = message["target"]["kind"][0]
        name = message["target"]["name"] if kind == "test" else "unit tests of " + message["target"]["name"]
        print(name, os.path.dirname(message["manifest_path"]), message["executable"], sep="\t")
END
) || exit 1
for name in "${real_time[@]}"; do
    grep -q "^$name"$'\t' <<<"$programs" || {
        echo "scripts/test.sh names a real-time test that does not exist: $name"
        exit 1
    }
done

# The API's tests mostly wait, for their servers and for databases: with one for each CPU, CPUs would be idle.
threads=$(nproc)
((threads >= 4)) || threads=4

# run NAME FOLDER PROGRAM: runs it as cargo would.
run() {
    echo
    echo "     Running $1 (${3#"$PWD/"})"
    (
        cd "$2" || exit
        [[ $1 != api ]] || export RUST_TEST_THREADS=$threads
        CARGO_MANIFEST_DIR=$2 "$3"
    ) && return
    echo "error: $1 failed; to repeat it: cd $2 && $3"
    return 1
}

# run_all real-time|others
run_all() {
    local result=0 name folder program is
    while IFS=$'\t' read -r name folder program; do
        is=others
        [[ " ${real_time[*]} " != *" $name "* ]] || is=real-time
        [[ $is != "$1" ]] || run "$name" "$folder" "$program" </dev/null || result=1
    done <<<"$programs"
    return "$result"
}

everything_else() {
    local result=0 name folder program
    run_all others || result=1
    # The API's tests again, on each database server.
    IFS=$'\t' read -r name folder program < <(grep $'^api\t' <<<"$programs")
    local part parts=(postgres mysql schemathesis) lanes=()
    for part in "${parts[@]}"; do
        if [[ $part == schemathesis ]]; then
            scripts/schemathesis.sh "${CARGO_TARGET_DIR:-target}/debug"
        else
            FACEPIPE_TEST_DATABASE=$part run "$name" "$folder" "$program"
        fi </dev/null >"target/api-$part.log" 2>&1 &
        lanes+=("$!")
    done
    for part in "${!parts[@]}"; do
        wait "${lanes[part]}" || result=1
        echo
        echo "The API's tests, ${parts[part]}:"
        cat "target/api-${parts[part]}.log"
    done
    return "$result"
}

without_programs() {
    local result=0
    make --no-print-directory lint || result=1
    cargo test --workspace --locked --doc || result=1
    return "$result"
}

# lane NICENESS LOG COMMAND…
lane() {
    renice -n "$1" "$BASHPID" >/dev/null
    "${@:3}" >"$2" 2>&1
}

lane 0 target/real-time-tests.log run_all real-time &
real_time_lane=$!
lane 19 target/lints.log without_programs &
lint_lane=$!
# The first lane's threads come first. Shown by tail, which ends with the lane: a pipe would stay open as long as a program that a
# failed test left behind.
: >target/other-tests.log
lane 10 target/other-tests.log everything_else &
others_lane=$!
tail --lines=+1 --follow --pid="$others_lane" target/other-tests.log
wait "$others_lane"
result=$?
echo
echo "The tests that play videos in real time:"
wait "$real_time_lane" || result=1
cat target/real-time-tests.log
echo
echo "Lints, licences, examples of the documentation:"
wait "$lint_lane" || result=1
cat target/lints.log

# Repeats the failures at the end, for readers who see only the last lines of a long output.
failures() {
    awk '/^failures:$/ { inside = 1 } inside { print FILENAME ": " $0 } /^test result: / { inside = 0 } /^error: / { print FILENAME ": " $0 }' \
        target/real-time-tests.log target/other-tests.log target/lints.log
}
if ((result)); then
    echo
    echo "What failed:"
    failures
fi

if [[ -s $FACEPIPE_SKIP_LOG ]]; then
    echo
    echo "Skipped: $(wc -l <"$FACEPIPE_SKIP_LOG") tests, each because its data is missing:"
    sort "$FACEPIPE_SKIP_LOG" | sed 's/^/  /'
else
    echo
    echo "Skipped: none."
fi
exit "$result"
