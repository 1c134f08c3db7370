#!/usr/bin/env bash
# build.sh backend|edge [IMAGE[:TAG]] [OPTION…]
# Builds an image for publishing: for x86_64 and aarch64, from the checked-out commit, with the commit's time as that of every
# file, an SBOM and the provenance attached. OPTIONs are passed to `docker buildx build`: --push sends the image to its
# registry, --output type=oci,dest=FILE writes it to a file. Needs Docker with buildx, and qemu's binfmt handlers or a
# builder of each architecture.
set -euo pipefail
cd "$(dirname "$0")/../.."

case ${1-} in
    backend | edge) ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
name=$1
image=facepipe-$name
shift
if [[ ${1:--} != -* ]]; then
    image=$1
    shift
fi
docker buildx version >/dev/null || { echo "build.sh: Docker with buildx is missing; prove.sh tests Dockerfiles without it" >&2; exit 1; }
[[ -z $(git status --porcelain) ]] || echo "build.sh: the checkout has uncommitted changes, which the image's revision does not include" >&2
revision=$(git rev-parse HEAD)
moment=$(git log -1 --format=%ct)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

# rewrite-timestamp is an option of an output, so --push becomes one.
outputs=()
for option in "$@"; do
    if [[ $option == --push ]]; then
        outputs+=(--output "type=image,name=$image,push=true,rewrite-timestamp=true")
    else
        outputs+=("$option")
    fi
done
exec docker buildx build --file "deploy/docker/$name.Dockerfile" --target "$name" --tag "$image" \
    --platform "${PLATFORMS:-linux/amd64,linux/arm64}" --sbom=true --provenance=mode=max \
    --build-arg "SOURCE_DATE_EPOCH=$moment" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --build-arg "CREATED=$(date --utc --date "@$moment" +%FT%TZ)" \
    "${outputs[@]}" .
