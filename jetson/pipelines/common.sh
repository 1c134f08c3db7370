# What the pipelines of a Jetson do otherwise than those of `pipelines/`: NVDEC decodes, the VIC brings the frames from NVMM
# memory to where the processor reads them, and CSI cameras are sources. file.sh, rtsp.sh, webcam.sh and multi-camera.sh of
# this folder are links to those scripts, which source this file from beside them. Sourced, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154

jetson=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=pipelines/common.sh
source "$jetson/../../pipelines/common.sh"
# What a script starts is a script of this folder.
here=$jetson

# Beside an installed copy of this folder lies the plugin, in a checkout what `make setup` built.
for folder in "$jetson/../../lib/gstreamer-1.0" "$jetson/../../.runtime/gstreamer-1.0"; do
    if [[ -z ${GST_PLUGIN_PATH-} && -f $folder/libgstfacepipe.so ]]; then
        GST_PLUGIN_PATH=$(cd "$folder" && pwd)
        export GST_PLUGIN_PATH
    fi
done

common_options=${common_options/'auto: hardware where there is one, else software; software; or an element such as vah264dec'/'auto: nvv4l2decoder, or an error where it is missing; software'}

# csi, rtsp, http, camera or file.
kind_of() {
    case $1 in
        csi:*) echo csi ;;
        http://?* | https://?*) echo http ;;
        rtsp://?* | rtsps://?* | rtspt://?* | rtspu://?* | rtsph://?*) echo rtsp ;;
        /dev/*) echo camera ;;
        *) echo file ;;
    esac
}

# multi-camera.sh takes cameras that fail out into rtsp.sh or webcam.sh, which know no CSI.
eval "shared_$(declare -f check_source)"
check_source() {
    if [[ $me == multi-camera.sh && $(kind_of "$1") == csi ]]; then
        wrong "$1: a CSI camera has a process of its own, csi.sh"
    fi
    shared_check_source "$1"
}

# decodebin takes the decoder of the highest rank. NVIDIA's stands above those in software; where the variable is known that
# says so, it is made sure, and in GStreamer 1.16 it is looked at, since decoding in software would pass unnoticed. The JPEG
# of USB cameras, and of those that send it over HTTP, is decoded in software: nvv4l2decoder takes it only with a property that
# decodebin doesn't set.
choose_decoder() {
    local minor rank
    [[ $decoder == auto || $decoder == software ]] || wrong "--decoder is '$decoder'; on a Jetson it must be auto or software"
    needs nvvidconv 'brings frames to the processor' nvidia-l4t-gstreamer
    minor=$(gst-launch-1.0 --version | sed -n 's/^GStreamer 1\.\([0-9]*\).*/\1/p')
    if [[ $decoder == software || $(kind_of "${sources[0]}") == @(camera|http) ]]; then
        [[ $decoder == auto ]] || ((${minor:-0} >= 18)) ||
            fail "--decoder software needs GStreamer 1.18 or later, and this is 1.$minor"
        export GST_PLUGIN_FEATURE_RANK=nvv4l2decoder:NONE,${GST_PLUGIN_FEATURE_RANK-}
        say "decoding in software"
        return
    fi
    [[ $(kind_of "${sources[0]}") != csi ]] || return 0
    needs nvv4l2decoder 'decodes in hardware' nvidia-l4t-gstreamer
    if ((${minor:-0} >= 18)); then
        export GST_PLUGIN_FEATURE_RANK=nvv4l2decoder:MAX,${GST_PLUGIN_FEATURE_RANK-}
    else
        rank=$(gst-inspect-1.0 nvv4l2decoder | sed -n 's/^ *Rank .*(\([0-9]*\))$/\1/p')
        ((${rank:-0} > 256)) ||
            fail "GStreamer 1.$minor would not take nvv4l2decoder (rank ${rank:-unknown}): remove gstreamer1.0-libav"
    fi
    say "decoding by nvv4l2decoder"
}

# A CSI camera sends frames in NVMM memory, as the decoder does.
eval "shared_$(declare -f source_part)"
source_part() {
    if [[ $(kind_of "$1") != csi ]]; then
        shared_source_part "$@"
        return
    fi
    needs nvarguscamerasrc 'CSI cameras' nvidia-l4t-camera
    local limits='video/x-raw(memory:NVMM),format=NV12'
    [[ -z $size ]] || limits+=",width=${size%x*},height=${size#*x}"
    [[ -z $fps ]] || limits+=",framerate=$fps/1"
    part=(nvarguscamerasrc "name=camera$2" "sensor-id=${1#csi:}" ! "$limits")
}

# SUFFIX: from encoded video to frames with faces that have track ids. `facedetect` reads the luma and chroma that its network
# needs straight from the NV12 planes, so the frames are neither converted nor scaled by the processor. Where systemd watches
# (see watch.py), a line at least thrice in its period tells that frames pass.
faces_part() {
    local suffix=$1 frames='video/x-raw,format=NV12'
    local decode=(decodebin "name=decode$suffix" !)
    # There is nothing to decode, and no need to find that out.
    [[ $(kind_of "${sources[0]}") != csi ]] || decode=()
    local source=${sources[0]} upright=()
    [[ -z $suffix ]] || source=${sources[${suffix#-}]}
    # Of files the tags say which way is up; nvvidconv doesn't read them.
    [[ $(kind_of "$source") != file ]] || upright=(videoflip "name=upright$suffix" video-direction=auto !)
    part=("${decode[@]}" nvvidconv "name=convert$suffix" ! "$frames" ! "${upright[@]}"
        queue max-size-buffers=4 max-size-bytes=0 max-size-time=0 !
        facepipe-facedetect "name=detect$suffix" "${detect[@]}" ! facepipe-facetrack "name=track$suffix" "${track[@]}")
    if [[ -n ${WATCHDOG_USEC-} ]]; then
        local period=$((WATCHDOG_USEC / 3000000))
        part+=(! progressreport "name=frames$suffix" do-query=false "update-freq=$((period > 0 ? period : 1))")
    fi
}
