#!/usr/bin/env bash
# Saves the faces of a source in a folder, one picture each.
set -euo pipefail
# shellcheck source=pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='SOURCE DIR [options]'
summary='Saves the faces of a file, a network camera or /dev/videoN in a folder: DIR/<camera id>-00000.jpg and so on, after
the highest existing number. No backend is needed. A file runs as fast as it can.'
own_options="$rtsp_options

$camera_options"
examples='  extract.sh entrance.mp4 faces
  extract.sh entrance.mp4 faces --policy every --crop max-size=400 --crop quality=95
  extract.sh rtsp://192.168.1.20/stream1 faces --camera-id gate-1      # until Ctrl-C'

own_option() { rtsp_option "$@" || camera_option "$@"; }
parse "$@"
((${#sources[@]} == 2)) || wrong "a source and a folder are needed"
folder=${sources[1]}
sources=("${sources[0]}")
prepare
make_writable "$folder"

prefix=$folder/$(file_name "$camera_id")-
next=0
for picture in "$prefix"[0-9][0-9][0-9][0-9][0-9]*.jpg; do
    [[ ${picture#"$prefix"} =~ ^([0-9]+)\.jpg$ ]] || continue
    ((10#${BASH_REMATCH[1]} < next)) || next=$((10#${BASH_REMATCH[1]} + 1))
done

describe_source "${sources[0]}"
# A percent sign has a meaning in the pattern of names.
run_once launch \
    "${source[@]}" ! "${decode[@]}" ! \
    facepipe-facedetect name=detect "${detect[@]}" ! \
    facepipe-facetrack name=track "${track[@]}" ! \
    facepipe-facecrop name=crop "policy=$policy" "${crop[@]}" ! \
    multifilesink name=pictures "index=$next" "$(property location "${prefix//%/%%}%05d.jpg")"
