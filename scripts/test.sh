#!/usr/bin/env bash
# Runs every test and says at the end how many were skipped for want of their data, and why.
#
# Two lanes run side by side. One has the tests that play videos in real time: they wait most of the time, and what they
# measure must not wait for a processor, so they have priority. The other has everything else, one after the other.
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

# What there is to run, as cargo names it: "Executable tests/demo.rs (target/debug/deps/demo-0123456789abcdef)".
programs=$(cargo test --workspace --locked --no-run 2>&1 | tee /dev/stderr) || exit 1
mapfile -t integration < <(sed -nE 's|.*Executable tests/.*/([a-z0-9_]+)-[0-9a-f]+\)$|\1|p' <<<"$programs")
others=()
for name in "${integration[@]}"; do
    [[ " ${real_time[*]} " == *" $name "* ]] || others+=("--test=$name")
done
if ((${#others[@]} + ${#real_time[@]} != ${#integration[@]})); then
    echo "scripts/test.sh names a test that plays videos and is not there: ${real_time[*]}"
    exit 1
fi

in_real_time() {
    cargo test --workspace --locked --no-fail-fast "${real_time[@]/#/--test=}"
}

everything_else() {
    local result=0
    cargo test --workspace --locked --no-fail-fast --lib --bins "${others[@]}" || result=1
    cargo test --workspace --locked --doc || result=1
    # The API again, on each of the database servers.
    for engine in postgres mysql; do
        echo
        echo "The API's tests on $engine:"
        FACEPIPE_TEST_DATABASE=$engine cargo test --workspace --locked --test api || result=1
    done
    scripts/schemathesis.sh "${CARGO_TARGET_DIR:-target}/debug" || result=1
    return $result
}

in_real_time >target/real-time-tests.log 2>&1 &
real_time_lane=$!
(
    # The other lane's threads come first.
    renice -n 10 "$BASHPID" >/dev/null
    everything_else
)
result=$?
echo
echo "The tests that play videos in real time:"
wait "$real_time_lane" || result=1
cat target/real-time-tests.log

if [[ -s $FACEPIPE_SKIP_LOG ]]; then
    echo
    echo "Skipped: $(wc -l <"$FACEPIPE_SKIP_LOG") tests, each for want of its data:"
    sort "$FACEPIPE_SKIP_LOG" | sed 's/^/  /'
else
    echo
    echo "Skipped: none."
fi
exit $result
