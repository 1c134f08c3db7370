#!/usr/bin/env bash
# benches/compare/training.sh [--rounds N] [--whole] [NAME...]
# Times training and scikit-learn's side by side, and writes what came out to target/bench/report.json: see training.py.
# Takes the peers' Python environment where it has been made, else makes a small one with scikit-learn (about 250 MB).
set -euo pipefail
cd "$(dirname "$0")/../.."

python=.runtime/tools/peers/bin/python
if ! "$python" -c "import sklearn" 2> /dev/null; then
    python=.runtime/tools/scikit-learn/bin/python
    if ! "$python" -c "import sklearn" 2> /dev/null; then
        echo "Installing scikit-learn into .runtime/tools/scikit-learn (once)"
        rm -rf .runtime/tools/scikit-learn
        python3 -m venv .runtime/tools/scikit-learn
        "$python" -m pip install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6
    fi
fi

program=$(cargo bench --locked --no-run --message-format=json -p facepipe-identify --bench training |
    python3 -c 'import json, sys
print(next(m["executable"] for m in map(json.loads, sys.stdin)
           if m.get("target", {}).get("name") == "training" and m.get("executable")))')
"$python" benches/compare/training.py "$program" target/bench/report.json "$@"
