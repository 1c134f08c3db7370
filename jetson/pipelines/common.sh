# What the pipelines of a Jetson share: the libraries of pipelines/lib, with platform.sh of this folder. file.sh, rtsp.sh, webcam.sh
# and multi-camera.sh of this folder are links to the scripts of pipelines/, which source this file from the folder of the link.
# Sourced, not run.
# shellcheck shell=bash

jetson=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=jetson/pipelines/platform.sh
source "$jetson/platform.sh"
# shellcheck source=pipelines/lib/all.sh
source "$jetson/../../pipelines/lib/all.sh"

# An installed copy of this folder has the plugin next to it; in a checkout, where `make setup` put it.
for folder in "$jetson/../../lib/gstreamer-1.0" "$jetson/../../.runtime/gstreamer-1.0"; do
    if [[ -z ${GST_PLUGIN_PATH-} && -f $folder/libgstfacepipe.so ]]; then
        GST_PLUGIN_PATH=$(cd "$folder" && pwd)
        export GST_PLUGIN_PATH
    fi
done
