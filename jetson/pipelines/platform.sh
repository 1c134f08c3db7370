# Decoding on a Jetson: NVDEC decodes, the VIC copies the frames from NVMM memory into system memory, and CSI cameras are
# sources. The counterpart of pipelines/lib/platform.sh.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # used by and set in the files of pipelines/lib

decoder_choices='auto: nvv4l2decoder, or an error where it is missing; software'
csi_cameras=yes

# multi-camera.sh restarts cameras that fail with rtsp.sh or webcam.sh, which do not play CSI cameras.
check_csi_camera() {
    [[ $me != multi-camera.sh ]] || wrong "$1: a CSI camera has a process of its own, csi.sh"
}

# A CSI camera sends frames in NVMM memory, as the decoder does.
describe_csi() {
    needs nvarguscamerasrc 'CSI cameras' nvidia-l4t-camera
    local limits='video/x-raw(memory:NVMM),format=NV12'
    [[ -z $size ]] || limits+=",width=${size%x*},height=${size#*x}"
    [[ -z $fps ]] || limits+=",framerate=$fps/1"
    source=(nvarguscamerasrc "name=camera$2" "sensor-id=${1#csi:}" ! "$limits")
}

# decodebin takes the decoder of the highest rank. NVIDIA's ranks above those in software; where GStreamer reads the variable for
# ranks, this makes sure of it, and with GStreamer 1.16 it checks the rank, since decoding in software would go unnoticed. The
# JPEG of USB cameras and of cameras over HTTP is decoded in software: nvv4l2decoder takes it only with a property that decodebin
# doesn't set.
choose_decoder() {
    local minor rank
    [[ $decoder == auto || $decoder == software ]] || wrong "--decoder is '$decoder'; on a Jetson it must be auto or software"
    needs nvvidconv 'brings frames to the processor' nvidia-l4t-gstreamer
    minor=$(gstreamer_minor)
    if [[ $decoder == software || $(kind_of "${sources[0]}") == @(camera|http) ]]; then
        [[ $decoder == auto ]] || ((minor >= 18)) ||
            fail "--decoder software needs GStreamer 1.18 or later, and this is 1.$minor"
        export GST_PLUGIN_FEATURE_RANK=nvv4l2decoder:NONE,${GST_PLUGIN_FEATURE_RANK-}
        say "decoding in software"
        return
    fi
    [[ $(kind_of "${sources[0]}") != csi ]] || return 0
    needs nvv4l2decoder 'decodes in hardware' nvidia-l4t-gstreamer
    if ((minor >= 18)); then
        export GST_PLUGIN_FEATURE_RANK=nvv4l2decoder:MAX,${GST_PLUGIN_FEATURE_RANK-}
    else
        rank=$(gst-inspect-1.0 nvv4l2decoder | sed -n 's/^ *Rank .*(\([0-9]*\))$/\1/p')
        ((${rank:-0} > 256)) ||
            fail "GStreamer 1.$minor would not take nvv4l2decoder (rank ${rank:-unknown}): remove gstreamer1.0-libav"
    fi
    say "decoding by nvv4l2decoder"
}

# SOURCE SUFFIX: fills `decode`, from encoded video to upright frames. facedetect reads luma and chroma straight from the NV12
# planes, so the processor neither converts nor scales frames. Under systemd's watchdog (see watch.py), progressreport prints a
# line at least three times in each period while frames flow.
describe_decoding() {
    decode=(nvvidconv "name=convert$2" ! 'video/x-raw,format=NV12')
    # CSI cameras send raw frames.
    [[ $(kind_of "$1") == csi ]] || decode=(decodebin "name=decode$2" ! "${decode[@]}")
    # The orientation tag of files; nvvidconv doesn't read it.
    [[ $(kind_of "$1") != file ]] || decode+=(! videoflip "name=upright$2" video-direction=auto)
    decode+=(! queue max-size-buffers=4 max-size-bytes=0 max-size-time=0)
    if [[ -n ${WATCHDOG_USEC-} ]]; then
        local period=$((WATCHDOG_USEC / 3000000))
        decode+=(! progressreport "name=frames$2" do-query=false "update-freq=$((period > 0 ? period : 1))")
    fi
}
