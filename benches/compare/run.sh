#!/usr/bin/env bash
# benches/compare/run.sh [--rounds N] [--report FILE] [NAME...]
# Times us and our peers side by side, and writes target/bench/report.json: see compare.py. Installs the Python peers into
# an environment of their own first (about 6 GB, most of it PyTorch's).
set -euo pipefail
cd "$(dirname "$0")/../.."

tool=.runtime/tools/peers
requirements=benches/compare/requirements.txt
if ! cmp -s "$requirements" "$tool/installed.txt"; then
    echo "Installing the peers into $tool (once)"
    rm -rf "$tool"
    python3 -m venv "$tool"
    # What facepipe's peers need is listed whole; facenet-pytorch's own limits are older than Python's releases.
    "$tool/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$requirements"
    cp "$requirements" "$tool/installed.txt"
fi
exec python3 benches/compare/compare.py "$@"
