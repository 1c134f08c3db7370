#!/usr/bin/env bash
# prove.sh backend|edge [--built FOLDER] [--build-arg NAME=VALUE]
# Carries out an image's Dockerfile without Docker: every FROM, ARG, ENV, COPY, RUN … of the file itself, in chroots of
# Debian 12 made by debootstrap (the images that the file starts from are such, with Rust: this machine's). Then runs the
# result as the Dockerfile says it, as its user, with a read-only root and without a shell, and has it do its work: the
# backend enrols two people, is asked who is on a photograph, and answers its own health check; the edge finds the faces of a
# picture.
#
#   --built FOLDER   programs that were built already (target/release): `cargo` in the build stage takes them from there
#                    instead of compiling for a quarter of an hour; that the Dockerfile's command compiles is then not proved
#   --build-arg N=V  as Docker's; SNAPSHOT= (Debian's packages of today) is set where snapshot.debian.org cannot be reached
#
# FACEPIPE_MIRROR is the Dockerfile's build context `mirror`. Needs root (namespaces and mounts of its own: none stays
# behind), debootstrap and a network; takes minutes, so `make test` leaves it out.
set -euo pipefail
if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit
fi
((EUID == 0)) || { echo "prove.sh: run this as root: it makes file systems" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "prove.sh: debootstrap is missing" >&2; exit 1; }
exec unshare --mount --propagation private --fork --kill-child python3 "$(dirname "$0")/prove.py" "$@"
