#!/usr/bin/env bash
# python-tool.sh NAME
# Installs what tests/NAME/requirements.txt lists into an environment of its own, .runtime/tools/NAME; quick when it is
# there already.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
tool=.runtime/tools/$name
requirements=tests/$name/requirements.txt
cmp -s "$requirements" "$tool/installed.txt" && exit
echo "Installing $name into $tool (once)"
rm -rf "$tool"
python3 -m venv "$tool"
"$tool/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
cp "$requirements" "$tool/installed.txt"
