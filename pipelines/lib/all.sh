# All libraries of the scripts, in the order in which they need each other; the platform's file comes before it. Each can be sourced
# and tested by itself.
# shellcheck shell=bash
# shellcheck disable=SC2154 # options.sh sets sources

library=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=pipelines/lib/messages.sh
source "$library/messages.sh"
# shellcheck source=pipelines/lib/options.sh
source "$library/options.sh"
# shellcheck source=pipelines/lib/sources.sh
source "$library/sources.sh"
# shellcheck source=pipelines/lib/gstreamer.sh
source "$library/gstreamer.sh"
# shellcheck source=pipelines/lib/spool.sh
source "$library/spool.sh"
# shellcheck source=pipelines/lib/describe.sh
source "$library/describe.sh"
# shellcheck source=pipelines/lib/run.sh
source "$library/run.sh"
handle_signals

# Checks the sources and the machine, and chooses the decoder. The scripts call it once, before they describe a pipeline.
prepare() {
    local source
    for source in "${sources[@]}"; do check_source "$source"; done
    find_plugin "$(dirname "$(dirname "$library")")"
    needs videoconvert 'other formats of video' gstreamer1.0-plugins-base
    needs videoflip 'video of phones' gstreamer1.0-plugins-good
    choose_decoder
}
