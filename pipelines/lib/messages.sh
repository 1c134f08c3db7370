# Messages and exit statuses: 1 when something failed, 2 for wrong arguments.
# shellcheck shell=bash

me=$(basename "$0")

say() { printf '%s: %s\n' "$me" "$*" >&2; }
fail() { say "$*"; exit 1; }
wrong() { say "$*"; say "see $me --help"; exit 2; }

# LINE: prints it with the user and password of an address masked.
mask() {
    local line=$1
    if [[ $line =~ ^(.*://)[^/@[:space:]]+@(.*)$ ]]; then
        line="${BASH_REMATCH[1]}***@${BASH_REMATCH[2]}"
    fi
    printf '%s' "$line"
}
