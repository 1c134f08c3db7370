#!/usr/bin/env bash
# benches/compare/run.sh [--rounds N] [NAME...]
# Times the networks and their Python peers side by side, and writes what came out to target/bench/report.json: see
# networks.py. Installs the peers into an environment of their own first (about 6 GB, most of it PyTorch's).
set -euo pipefail
cd "$(dirname "$0")/../.."

peers=.runtime/tools/peers
requirements=benches/compare/requirements.txt
if ! cmp -s "$requirements" "$peers/installed.txt"; then
    echo "Installing the peers into $peers (once)"
    rm -rf "$peers"
    python3 -m venv "$peers"
    # All that is needed is listed; facenet-pytorch's own limits for what it needs are older than the rest.
    "$peers/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$requirements"
    cp "$requirements" "$peers/installed.txt"
fi

worker=$(cargo bench --locked --no-run --message-format=json -p facepipe-vision --bench worker |
    python3 -c 'import json, sys
print(next(m["executable"] for m in map(json.loads, sys.stdin)
           if m.get("target", {}).get("name") == "worker" and m.get("executable")))')
models=${FACEPIPE_MODELS:-models}
pictures=$models/assets
[[ -d $pictures/lfw10 ]] || pictures=${FACEPIPE_MIRROR:-$pictures}
"$peers/bin/python" benches/compare/networks.py "$worker" "$models" "$pictures" target/bench/report.json "$@"
