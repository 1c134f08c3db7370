#!/usr/bin/env bash
# Uploads the faces of a local camera (V4L2).
set -euo pipefail
# shellcheck source=pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='[/dev/videoN] [options]'
summary='Uploads the faces of a local camera: USB or built in, motion JPEG or raw video. Reconnects by itself when
the camera is unplugged and comes back.'
own_options="$camera_options
  --retry-max SECONDS  pauses between attempts double from 1 s up to this [30]"
examples='  webcam.sh
  webcam.sh /dev/video2 --format mjpeg --size 1920x1080 --fps 30 --camera-id gate-1 --location Lobby
  v4l2-ctl --list-formats-ext      # what the cameras offer (package v4l-utils)'

own_option() {
    case $1 in
        --retry-max) rtsp_option "$@" ;;
        *) camera_option "$@" ;;
    esac
}
parse "$@"
((${#sources[@]})) || sources=(/dev/video0)
one_source
[[ $(kind_of "${sources[0]}") == camera ]] || wrong "'${sources[0]}' is no /dev/videoN; file.sh plays files, rtsp.sh network cameras (rtsp://, http://)"
prepare
needs v4l2src 'cameras of this machine' gstreamer1.0-plugins-good
[[ $format == raw ]] || needs jpegdec 'cameras that send JPEG' gstreamer1.0-plugins-good

describe_source "${sources[0]}"
describe_destination "$camera_id" "$location"
adopt_old_spool "$camera_id"
run_forever launch \
    "${source[@]}" ! "${decode[@]}" ! \
    facepipe-facedetect name=detect "${detect[@]}" ! \
    facepipe-facetrack name=track "${track[@]}" ! \
    facepipe-facesink-http name=upload "${destination[@]}" "${crop[@]}" "${upload[@]}"
