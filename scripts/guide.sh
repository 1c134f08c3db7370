#!/usr/bin/env bash
# guide.sh BUILD_DIR OUT
# Builds the guide from the programs and the plugin in BUILD_DIR, with mdBook 0.5 from the PATH, else with one that it
# installs into .runtime/tools/guide.
set -euo pipefail
cd "$(dirname "$0")/.."

mdbook=$(command -v mdbook || true)
if [[ -z $mdbook || $("$mdbook" --version) != "mdbook v0.5."* ]]; then
    scripts/python-tool.sh guide
    mdbook=.runtime/tools/guide/bin/mdbook
fi
exec scripts/guide.py build "$mdbook" "$1" "$2"
