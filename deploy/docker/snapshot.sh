#!/bin/sh
# snapshot.sh MOMENT
# Makes apt install Debian's packages of that moment (20260824T000000Z); if it is empty, today's.
set -eu
[ -n "${1-}" ] || exit 0
rm -f /etc/apt/sources.list.d/debian.sources
for suite in "debian bookworm" "debian bookworm-updates" "debian-security bookworm-security"; do
    # shellcheck disable=SC2086 # archive and suite
    set -- "$1" $suite
    echo "deb [check-valid-until=no] http://snapshot.debian.org/archive/$2/$1/ $3 main"
done >/etc/apt/sources.list
