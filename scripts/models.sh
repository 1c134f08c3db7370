#!/usr/bin/env bash
# Fetches models, pictures and videos: `models.sh FACEPIPE [NAME...]`, with the path of the program and the names to fetch. It
# lists files that cannot be fetched, and the parts that then cannot run; the rest works without them. The npm client is
# installed only if a file is available only from npm.
set -uo pipefail

facepipe=${1:?usage: models.sh FACEPIPE [NAME...]}
shift
readonly LACKS_NPM=8

status=0
"$facepipe" models fetch "$@" || status=$?
if ((status == LACKS_NPM)); then
    echo "The remaining files are in npm's registry."
    if "$(dirname "$0")/packages.sh" npm; then
        status=0
        "$facepipe" models fetch "$@" || status=$?
    fi
fi
((status == 0)) || echo "Continuing with the files that are there."
