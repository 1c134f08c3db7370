# Decoding on a PC, a server or a Raspberry Pi. Another platform has a file like this one with the same variables and functions
# (jetson/pipelines/platform.sh); common.sh sources one of them.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # used by and set in other files of this folder

# For --help, and whether csi:N is a source.
decoder_choices='auto: hardware where available, else software; software; or an element such as vah264dec'
csi_cameras=no

# Sets which decoder decodebin takes: the one of the highest rank that opens, else the next. Hardware decoders are registered
# only where the driver offers them, but not always with the highest rank, so this raises it.
choose_decoder() {
    local hardware ranks='' name
    hardware=$(gst-inspect-1.0 | grep -oE '\b(va|vaapi|v4l2|v4l2sl|nv)(h264|h265|jpeg|av1|vp8|vp9|mpeg2)dec\b' | sort -u) || true
    case $decoder in
        auto) for name in $hardware; do ranks+=$name:512,; done ;;
        software)
            for name in $hardware; do ranks+=$name:NONE,; done
            hardware='' ;;
        *)
            exists "$decoder" ||
                fail "--decoder: GStreamer has no element $decoder; available here: ${hardware:-no hardware decoders}"
            hardware=$decoder ranks=$decoder:MAX, ;;
    esac
    say "decoding ${hardware:+by $(paste -sd' ' <<<"$hardware"), and for all else }in software"
    [[ -n $ranks ]] || return 0
    # GStreamer reads the variable from 1.18 on; before that, ranks are as the plugins set them.
    local minor
    minor=$(gstreamer_minor)
    if ((minor < 18)) && [[ $decoder != auto ]]; then
        fail "--decoder needs GStreamer 1.18 or later, and this is 1.$minor"
    fi
    # The user's own setting takes precedence: the last entry wins.
    export GST_PLUGIN_FEATURE_RANK=$ranks${GST_PLUGIN_FEATURE_RANK-}
}

# SOURCE SUFFIX: fills `upright`, from raw video to upright frames in a format that facedetect reads. Where nothing needs to
# change, videoconvert and videoflip pass the frames on. Cameras have no orientation tag, and videoflip knows fewer formats than
# facedetect (not the P010_10LE of hardware decoders), so only files get it.
describe_upright() {
    upright=(videoconvert "name=convert$2")
    [[ $(kind_of "$1") != file ]] || upright+=(! videoflip "name=upright$2" video-direction=auto)
}

# SOURCE SUFFIX: fills `decode`, from encoded video to such frames. facedetect skips frames of a camera that come too fast for
# this machine, and facetrack predicts their faces. (A leaky queue would drop the frames for all later elements.)
describe_decoding() {
    describe_upright "$@"
    decode=(decodebin "name=decode$2" ! queue max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! "${upright[@]}")
}
