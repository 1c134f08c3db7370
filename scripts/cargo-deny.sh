#!/usr/bin/env bash
# Builds cargo-deny into .runtime/tools: a debug build, since compiling it costs more than it will ever run.
set -euo pipefail
version=0.20.2

# One already on the PATH serves as well.
if installed=$(command -v cargo-deny) && [[ $("$installed" --version) == "cargo-deny $version" ]]; then
    mkdir -p .runtime/tools/bin
    ln -sf "$installed" .runtime/tools/bin/cargo-deny
    exit 0
fi
echo "Building cargo-deny $version (once)"
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$build \
    cargo install cargo-deny --version "$version" --locked --debug --no-default-features --quiet --root .runtime/tools
# Cargo leaves the file as it is where the version is there already; make goes by its time.
touch .runtime/tools/bin/cargo-deny
