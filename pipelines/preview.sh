#!/usr/bin/env bash
# Shows a source with boxes around the faces and, with a backend, names; on screen or in a file.
set -euo pipefail
# shellcheck source=pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='SOURCE [options]'
summary='Shows a file, a network camera or /dev/videoN with boxes around the faces: white = detected, red = the backend found no
face, blue = unknown, green = recognised, with name and score. Colours and names need --backend (or
FACEPIPE_SERVER), to which the faces are then uploaded; without it faces are only detected.'
own_options="This script:
  --output FILE.mp4    write to this file instead of the screen
  --ask-only           let the backend recognise the faces, but store nothing
$rtsp_options
$camera_options"
examples='  preview.sh entrance.mp4
  preview.sh /dev/video0 --backend http://127.0.0.1:8080 --ask-only
  preview.sh rtsp://192.168.1.20/stream1 --backend http://127.0.0.1:8080 --output preview.mp4      # until Ctrl-C'

output='' ask_only=no
own_option() {
    case $1 in
        --output) output=$2; [[ $2 == *.mp4 ]] || wrong "--output is '$2'; it must end in .mp4" ;;
        --ask-only) ask_only=yes taken=1 ;;
        *) rtsp_option "$@" || camera_option "$@" ;;
    esac
}
parse "$@"
one_source
prepare

if [[ -n $output ]]; then
    make_writable "$(dirname "$output")"
    needs mp4mux 'MP4 files' gstreamer1.0-plugins-good
    if exists x264enc; then
        # Without look-ahead: the encoder would wait for more frames than the queues hold.
        encoder=(x264enc tune=zerolatency speed-preset=veryfast key-int-max=60)
    else
        needs openh264enc 'H.264 encoder; x264enc of gstreamer1.0-plugins-ugly will do too' gstreamer1.0-plugins-bad
        encoder=(openh264enc bitrate=4000000)
    fi
    show=("${encoder[@]}" ! h264parse ! mp4mux ! filesink name=output "$(property location "$output")")
else
    needs autovideosink 'the screen' gstreamer1.0-plugins-good
    show=(autovideosink name=screen)
fi

describe_source "${sources[0]}"
# A file plays in real time also when the output is a file: the backend's results must come while the face is visible.
pace=()
[[ $(kind_of "${sources[0]}") != file ]] || pace=(! identity sync=true)
upload_branch=()
if [[ -n $backend ]]; then
    describe_destination "$camera_id" "$location"
    adopt_old_spool "$camera_id"
    endpoint=()
    [[ $ask_only == no ]] || endpoint=(endpoint=get-results)
    upload_branch=(faces. ! queue !
        facepipe-facesink-http name=upload "${destination[@]}" sync=false async=false "${crop[@]}" "${endpoint[@]}" "${upload[@]}")
fi
run_once launch \
    "${source[@]}" ! "${decode[@]}" ! \
    facepipe-facedetect name=detect "${detect[@]}" ! \
    facepipe-facetrack name=track "${track[@]}" "${pace[@]}" ! tee name=faces \
    faces. ! queue ! facepipe-faceoverlay name=overlay "$(property camera-id "$camera_id")" ! videoconvert ! "${show[@]}" \
    "${upload_branch[@]}"
