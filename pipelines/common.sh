# What the scripts of this folder share: the libraries in lib/. Sourced, not run.
# shellcheck shell=bash

pipelines=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=pipelines/lib/platform.sh
source "$pipelines/lib/platform.sh"
# shellcheck source=pipelines/lib/all.sh
source "$pipelines/lib/all.sh"
