#!/usr/bin/env bash
# Records a camera's whole video on this machine and uploads only its faces.
set -euo pipefail
# shellcheck source=pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='SOURCE --record-dir DIR [options]'
summary='Keeps the whole video of a network camera, /dev/videoN or a file in DIR, as the camera encoded it, in segments
<camera id>-<UTC time of the start>-00000.mkv and so on, and uploads the faces. The format is Matroska, so that a
segment can still be played after a power cut. A slow or failing upload does not disturb the recording.'
own_options="This script:
  --record-dir DIR     folder of the recordings
  --segment SECONDS    length of a segment; it ends at the next key frame [600]
  --keep N             delete the oldest segments of this camera beyond this number [keep all]
$rtsp_options
$camera_options"
examples='  record-and-detect.sh rtsp://192.168.1.20/stream1 --record-dir /var/lib/facepipe/video --camera-id gate-1
  record-and-detect.sh rtsp://192.168.1.20/stream1 --record-dir video --segment 300 --keep 288     # a day
  record-and-detect.sh /dev/video0 --format mjpeg --record-dir video'

record_dir='' segment=600 keep=''
own_option() {
    case $1 in
        --record-dir) record_dir=$2 ;;
        --segment) whole_number "$@" 1; segment=$number ;;
        --keep) whole_number "$@" 1; keep=$number ;;
        *) rtsp_option "$@" || camera_option "$@" ;;
    esac
}
parse "$@"
one_source
[[ -n $record_dir ]] || wrong "--record-dir is needed"
prepare
needs matroskamux 'recordings' gstreamer1.0-plugins-good
needs splitmuxsink 'recordings in segments' gstreamer1.0-plugins-good
make_writable "$record_dir"
prefix=$record_dir/$(file_name "$camera_id")

kind=$(kind_of "${sources[0]}")
describe_source "${sources[0]}"
describe_destination "$camera_id" "$location"
adopt_old_spool "$camera_id"
if [[ $kind == camera && $format == raw ]]; then
    needs x264enc 'recordings of raw video' gstreamer1.0-plugins-ugly
    # Faces are found in the frames before they are encoded.
    parse=()
    encode=(! videoconvert ! x264enc tune=zerolatency speed-preset=veryfast ! h264parse)
else
    parse=(! parsebin name=parse)
    encode=()
fi
# Up to ten seconds of a camera wait for a slow decoder; beyond that, faces are lost and the recording is not.
faces_queue=(queue max-size-buffers=0 max-size-bytes=0 max-size-time=10000000000)
[[ $kind == file ]] || faces_queue+=(leaky=downstream)

# Deletes the oldest segments beyond `keep`; the names sort by time.
prune() {
    local d='[0-9]' segments surplus
    # shellcheck disable=SC2206 # the digits are to be a pattern
    segments=("$prefix"-$d$d$d$d$d$d$d${d}T$d$d$d$d$d${d}Z-$d$d$d$d$d*.mkv)
    surplus=$((${#segments[@]} - keep))
    ((surplus <= 0)) || rm -f -- "${segments[@]:0:surplus}"
}
prune_regularly() {
    trap 'exit 0' INT TERM HUP
    trap - EXIT
    while :; do
        prune
        sleep "$((segment < 10 ? 1 : 10))" &
        wait "$!"
    done
}
if [[ -n $keep && $print == no ]]; then
    prune_regularly </dev/null &
    pruning=$!
    helpers+=("$pruning")
fi

# Each attempt names its segments by its time of start.
record() {
    local started
    started=$(date -u +%Y%m%dT%H%M%SZ)
    # A percent sign has a meaning in the pattern of names.
    local recording="${prefix//%/%%}-$started-%05d.mkv"
    launch \
        "${source[@]}" "${parse[@]}" ! tee name=both \
        both. ! "${faces_queue[@]}" ! "${decode[@]}" ! \
        facepipe-facedetect name=detect "${detect[@]}" ! \
        facepipe-facetrack name=track "${track[@]}" ! \
        facepipe-facesink-http name=upload "${destination[@]}" "${crop[@]}" "${upload[@]}" \
        both. ! queue "${encode[@]}" ! \
        splitmuxsink name=recording muxer=matroskamux "max-size-time=$((segment * 1000000000))" \
        "$(property location "$recording")"
}
if [[ $kind == file ]]; then
    run_once record
else
    run_forever record
fi
[[ -z $keep ]] || { kill -TERM "$pruning" 2>/dev/null || true; await "$pruning" || true; forget "$pruning"; prune; }
