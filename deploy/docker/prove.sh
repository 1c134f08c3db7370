#!/usr/bin/env bash
# prove.sh backend|edge [--built FOLDER] [--build-arg NAME=VALUE]
# Executes an image's Dockerfile without Docker: every FROM, ARG, ENV, COPY, RUN … of the file itself, in chroots of Debian 12
# built by debootstrap (they replace the base images, with this machine's Rust). Then runs the result with the Dockerfile's
# settings, as its user, with a read-only root and without a shell, and tests its main function: the backend enrols two
# people, recognises one of them on a photograph, and passes its own health check; the edge detects the faces of a
# picture.
#
#   --built FOLDER   existing programs (target/release): `cargo` in the build stage takes them from there instead of
#                    compiling for a quarter of an hour; this does not test the Dockerfile's compilation
#   --build-arg N=V  as Docker's; SNAPSHOT= (today's Debian packages) is set if snapshot.debian.org cannot be reached, and
#                    REVISION, the commit that the programs must print, is the checkout's
#
# FACEPIPE_MIRROR is the Dockerfile's build context `mirror`. Needs root (for temporary namespaces and mounts), debootstrap
# and a network; takes minutes, so `make test` leaves it out.
set -euo pipefail
if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '2,18s/^# \{0,1\}//p' "$0"
    exit
fi
((EUID == 0)) || { echo "prove.sh: run this as root: it mounts file systems" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "prove.sh: debootstrap is missing" >&2; exit 1; }
exec unshare --mount --propagation private --fork --kill-child python3 "$(dirname "$0")/prove.py" "$@"
