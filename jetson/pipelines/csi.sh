#!/usr/bin/env bash
# Uploads the faces of a CSI camera of this Jetson (nvarguscamerasrc).
set -euo pipefail
# shellcheck source=jetson/pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='[csi:N] [options]'
summary='Uploads the faces of the CSI camera number N (0 where none is given). Restarts by itself when the camera fails.'
own_options='This script:
  --size WxH           resolution [1920x1080]
  --fps N              frames per second [30]
  --retry-max SECONDS  pauses between attempts double from 1 s up to this [30]'
examples='  csi.sh --backend https://faces.example.com --camera-id gate-1 --location Lobby
  csi.sh csi:1 --size 1280x720 --fps 60 --detect execution-provider=tensorrt'

own_option() {
    case $1 in
        --size | --fps) camera_option "$@" ;;
        --retry-max) rtsp_option "$@" ;;
        *) return 1 ;;
    esac
}
size=1920x1080 fps=30
parse "$@"
((${#sources[@]})) || sources=(csi:0)
one_source
[[ ${sources[0]} =~ ^csi:[0-9]{1,2}$ ]] || wrong "'${sources[0]}' is no camera such as csi:0; file.sh and rtsp.sh play others"
prepare

describe_source "${sources[0]}"
describe_destination "$camera_id" "$location"
adopt_old_spool "$camera_id"
run_forever launch \
    "${source[@]}" ! "${decode[@]}" ! \
    facepipe-facedetect name=detect "${detect[@]}" ! \
    facepipe-facetrack name=track "${track[@]}" ! \
    facepipe-facesink-http name=upload "${destination[@]}" "${crop[@]}" "${upload[@]}"
