#!/usr/bin/env bash
# maintainer-script.sh FILE: prints it as a package has it, with what several share in the place of #MODELS#.
set -euo pipefail
exec sed -e "/^#MODELS#\$/{r $(dirname "$0")/debian/models.sh
d}" "$1"
