#!/usr/bin/env bash
# python-tool.sh NAME
# Installs the packages of tests/NAME/requirements.txt into a virtual environment, .runtime/tools/NAME; quick if it exists.
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
