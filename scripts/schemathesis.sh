#!/usr/bin/env bash
# schemathesis.sh BUILD_DIR
# Starts the built server on a free port with a temporary folder and compares its responses with its document, for every call,
# with valid and invalid requests, by an administrator; then shortly with a token of each scope, and without any: who may call what.
# Takes a minute.
set -euo pipefail
build=$1
tool=.runtime/tools/schemathesis

skip() {
    echo "SKIPPED schemathesis: $1"
    [[ -z ${FACEPIPE_SKIP_LOG:-} ]] || echo "schemathesis: $1" >>"$FACEPIPE_SKIP_LOG"
    [[ ${CI:-} != true ]] || exit 1
    exit 0
}

# In the same places as the tests: what `facepipe models fetch` installed, then the mirror.
models=${FACEPIPE_MODELS:-models}
[[ -e $models/pnet.pt ]] || models=${FACEPIPE_MIRROR:-}/models
for file in pnet.pt rnet.pt onet.pt mobilefacenet.onnx; do
    [[ -e $models/$file ]] || skip "no models/$file: run \`facepipe models fetch\`, or set FACEPIPE_MIRROR to a folder that has it"
done
published=$models
export FACEPIPE_PHOTOGRAPHS=${FACEPIPE_MODELS:-models}/assets/lfw10
[[ -e $FACEPIPE_PHOTOGRAPHS ]] || FACEPIPE_PHOTOGRAPHS=${FACEPIPE_MIRROR:-}/lfw10
[[ -e $FACEPIPE_PHOTOGRAPHS ]] || skip "no lfw10: run \`facepipe models fetch\`, or set FACEPIPE_MIRROR to a folder that has it"

scripts/python-tool.sh schemathesis

folder=$(mktemp -d)
server=
# shellcheck disable=SC2317 # called by the trap
stop() {
    [[ -z $server ]] || { kill "$server" 2>/dev/null && wait "$server"; } || true
    rm -rf "$folder"
}
trap stop EXIT

# The server reads safetensors only; a mirror has what was published.
models=$folder/models
"$build/facepipe" models convert "$published" --to "$models" >/dev/null

# With tokens, so that the checks of authentication have something to check.
token=$(od -An -N 16 -t x1 /dev/urandom | tr -d ' \n')
echo "admin $token" >"$folder/tokens"
authorization="Authorization: Bearer $token"

# Without this shell's settings, which may name a database or a port.
env -i PATH="$PATH" HOME="$HOME" "$build/facepipe-backend" --listen 127.0.0.1:0 --address-file "$folder/address" \
    --token-file "$folder/tokens" --data-dir "$folder/data" --models-dir "$models" --embedder mobilefacenet \
    --results-url http://127.0.0.1:9/nobody 2>"$folder/log" &
server=$!
for _ in {1..600}; do
    [[ ! -s $folder/address ]] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
[[ -s $folder/address ]] || { echo "The server does not start:" >&2; cat "$folder/log" >&2; exit 1; }
url=http://$(<"$folder/address")

# A person who is enrolled and was seen.
call() { curl --silent --show-error --fail --output /dev/null --header "$authorization" "$@"; }
photograph=$FACEPIPE_PHOTOGRAPHS/Tony_Blair/Tony_Blair_0001.jpg
call --request POST "$url/dataset/Tony_Blair"
call --form image=@"$photograph" "$url/dataset/Tony_Blair/image"
call --request POST "$url/model/optimized-train?wait=true"
call --form image=@"$photograph" --form camera_id=gate-1 --form location=Lobby "$url/face-recognition/store-results"

# check NAME CONFIGURATION ARGUMENT…: writes a line, or a report if something is wrong.
result=0
check() {
    local status=0
    HYPOTHESIS_STORAGE_DIRECTORY=target/hypothesis "$tool/bin/schemathesis" --config-file "tests/schemathesis/$2" --no-color \
        run "$url/openapi.json" "${@:3}" >"$folder/report" 2>&1 || status=$?
    # schemathesis may take a connection that ends without a response for a network error.
    ! grep --quiet 'panicked at' "$folder/log" || status=1
    if ((status)); then
        echo "schemathesis, $1:"
        cat "$folder/report"
        echo "The last lines of the server's log:"
        grep -v ' INFO ' "$folder/log" | cut -c 1-500 | tail -n 20 || true
        result=1
    else
        grep -E '^  [0-9]+ generated' "$folder/report" | sed "s/^ */schemathesis, $1: /"
    fi
}

check administrator schemathesis.toml --header "$authorization"

# What a token of few scopes, or none, is refused. `scope_of_the_document` is in hooks.py.
checks=not_a_server_error,content_type_conformance,response_schema_conformance,scope_of_the_document
for scope in upload recognise read enrol operate none; do
    header=()
    if [[ $scope != none ]]; then
        body="{\"kind\": \"person\", \"name\": \"with $scope\", \"scopes\": [\"$scope\"], \"token\": {}}"
        made=$(curl --silent --show-error --fail --header "$authorization" --json "$body" "$url/access/principals")
        header=(--header "Authorization: Bearer $(grep -oE 'fp_[0-9a-f]+' <<<"$made")")
    fi
    # The document has no 429 of its own for each call.
    conforms=status_code_conformance
    [[ $scope != none ]] || conforms=not_a_server_error
    TOKEN_SCOPE=$scope check "scope $scope" roles.toml --checks "$checks,$conforms" "${header[@]}"
done
exit "$result"
