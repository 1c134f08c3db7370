#!/usr/bin/env bash
# Replays a recorded file and uploads its faces as if they came from a camera.
set -euo pipefail
# shellcheck source=pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='FILE [options]'
summary='Replays a recorded file of any format that GStreamer reads, and uploads its faces as if they came from a camera.'
own_options='This script:
  --fast               as fast as decoder, detector and backend allow, instead of in real time; no face is left out
  --capture-start TIME start of the recording (RFC 3339, with its time zone: 2024-05-06T07:08:09Z or …+02:00), for the
                       capture time of each face; the server limits its age (30 days by default) [now]'
examples='  file.sh entrance.mp4 --camera-id gate-1 --location Lobby
  file.sh entrance.mp4 --fast --policy every --capture-start 2024-05-06T07:08:09Z
  FACEPIPE_SERVER=https://faces.example.com file.sh entrance.mp4 --token-file token.txt --spool-dir spool'

fast=no capture_start=''
own_option() {
    case $1 in
        --fast) fast=yes taken=1 ;;
        --capture-start)
            capture_start=$2
            date_and_time='[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?'
            [[ ! $2 =~ ^$date_and_time$ ]] ||
                wrong "--capture-start is '$2', without a time zone; write ${2}Z for UTC, or an offset, as ${2}+02:00"
            [[ $2 =~ ^$date_and_time([Zz]|[+-][0-9]{2}:[0-9]{2})$ ]] ||
                wrong "--capture-start is '$2'; it must be like 2024-05-06T07:08:09Z or 2024-05-06T09:08:09+02:00" ;;
        *) return 1 ;;
    esac
}
parse "$@"
one_source
[[ $(kind_of "${sources[0]}") == file ]] || wrong "${sources[0]} is no file; rtsp.sh plays network cameras (rtsp://, http://), webcam.sh /dev/videoN"
prepare

replay=()
# Without a clock the upload queue would overflow, so decoding waits for room in it.
[[ $fast == no ]] || replay+=(sync=false drop-policy=block)
[[ -z $capture_start ]] || replay+=("$(property capture-start "$capture_start")")

describe_source "${sources[0]}"
describe_destination "$camera_id" "$location"
adopt_old_spool "$camera_id"
run_once launch \
    "${source[@]}" ! "${decode[@]}" ! \
    facepipe-facedetect name=detect "${detect[@]}" ! \
    facepipe-facetrack name=track "${track[@]}" ! \
    facepipe-facesink-http name=upload "${destination[@]}" "${crop[@]}" "${replay[@]}" "${upload[@]}"
