#!/usr/bin/env bash
# control.sh FOLDER VERSION ARCHITECTURE NEEDS [KIB]: prints a package's control file; what FOLDER/control depends on comes before
# the libraries that dpkg-shlibdeps found.
set -euo pipefail
from=$1/control
own=$(sed -n 's/^Depends: //p' "$from")
sed -n '/^Package:/p' "$from"
printf 'Source: facepipe\nVersion: %s\nArchitecture: %s\n' "$2" "$3"
printf 'Maintainer: facepipe contributors <facepipe@users.noreply.github.com>\n'
[[ -z ${5:-} ]] || printf 'Installed-Size: %s\n' "$5"
sed -n '/^Pre-Depends:/p' "$from"
printf 'Depends: %s\n' "${own:+$own, }$4"
sed -n '/^Recommends:/p; /^Suggests:/p; /^Section:/p' "$from"
printf 'Priority: optional\nHomepage: https://github.com/facepipe/facepipe\n'
sed -n '/^Description:/,$p' "$from"
