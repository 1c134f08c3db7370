#!/usr/bin/env bash
# Uploads the faces of a network camera, for months: reconnects by itself when the camera vanishes or stalls.
set -euo pipefail
# shellcheck source=pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='rtsp://CAMERA/PATH | http://CAMERA/PATH [options]'
summary='Uploads the faces of a network camera (H.264, H.265, JPEG; motion JPEG over HTTP), and reconnects by itself when the camera
vanishes, stalls or ends the stream. The capture time is the camera'"'"'s own if GStreamer (from 1.22 on) provides it; over
HTTP it is the time of arrival.'
own_options=$rtsp_options
examples='  rtsp.sh rtsp://192.168.1.20/stream1 --camera-id gate-1 --location Lobby --spool-dir /var/lib/facepipe/spool
  rtsp.sh rtsp://viewer:secret@192.168.1.20/stream1 --transport udp --latency 500
  rtsp.sh http://viewer:secret@192.168.1.21/video.mjpg
  rtsp.sh rtsp://192.168.1.20/stream1 --detect interval=3     # a slow computer: detect in every third frame'

own_option() { rtsp_option "$@"; }
parse "$@"
one_source
kind=$(kind_of "${sources[0]}")
[[ $kind == rtsp || $kind == http ]] ||
    wrong "'${sources[0]}' is no rtsp://, http:// or https:// address; file.sh plays files, webcam.sh /dev/videoN"
prepare
if [[ $kind == rtsp ]]; then
    needs rtspsrc 'network cameras' gstreamer1.0-plugins-good
else
    needs souphttpsrc 'cameras over HTTP' gstreamer1.0-plugins-good
fi
needs watchdog 'notices a camera that stalls' gstreamer1.0-plugins-bad

describe_source "${sources[0]}"
describe_destination "$camera_id" "$location"
adopt_old_spool "$camera_id"
run_forever launch \
    "${source[@]}" ! "${decode[@]}" ! \
    facepipe-facedetect name=detect "${detect[@]}" ! \
    facepipe-facetrack name=track "${track[@]}" ! \
    facepipe-facesink-http name=upload "${destination[@]}" "${crop[@]}" "${upload[@]}"
