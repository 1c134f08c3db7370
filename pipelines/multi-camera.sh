#!/usr/bin/env bash
# Uploads the faces of several sources from one process.
set -euo pipefail
# shellcheck source=pipelines/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

synopsis='SOURCE --camera-id ID [--location TEXT] [SOURCE --camera-id ID [--location TEXT]...] [options]'
summary='Uploads the faces of several network cameras, /dev/videoN and files from one process. --camera-id and --location belong
to the source before them; a --location before the first source applies to all sources without their own.

A camera that vanishes, stalls or ends its stream moves to a process of its own, which reconnects as rtsp.sh does, so that it
interrupts the others at most once (for the second or two that they take to restart).'
own_options="$rtsp_options

$camera_options"
examples='  multi-camera.sh rtsp://192.168.1.20/stream1 --camera-id gate-1 --location Lobby \
                  rtsp://192.168.1.21/stream1 --camera-id gate-2 --location Hall --spool-dir /var/lib/facepipe/spool'

ids=() locations=()
own_option() {
    local last=$((${#sources[@]} - 1))
    case $1 in
        --camera-id)
            ((last >= 0)) || wrong "--camera-id '$2' comes before the first source; put it after its source"
            ids[last]=$2 ;;
        --location)
            if ((last >= 0)); then locations[last]=$2; else location=$2; fi ;;
        *) rtsp_option "$@" || camera_option "$@" ;;
    esac
}
parse "$@"
((${#sources[@]})) || wrong "a source is needed"
for i in "${!sources[@]}"; do
    [[ -n ${ids[i]-} ]] || wrong "${sources[i]} has no --camera-id"
    for ((j = 0; j < i; j++)); do
        [[ ${ids[i]} != "${ids[j]}" ]] || wrong "two sources have the --camera-id ${ids[i]}"
    done
    locations[i]=${locations[i]-$location}
done
prepare

together=("${!sources[@]}")
alone=()

run_together() {
    local i pipeline=()
    for i in "${together[@]}"; do
        describe_source "${sources[i]}" "-$i"
        describe_destination "${ids[i]}" "${locations[i]}"
        adopt_old_spool "${ids[i]}"
        pipeline+=("${source[@]}" ! "${decode[@]}" !
            facepipe-facedetect "name=detect-$i" "${detect[@]}" !
            facepipe-facetrack "name=track-$i" "${track[@]}" !
            facepipe-facesink-http "name=upload-$i" "${destination[@]}" "${crop[@]}" "${upload[@]}")
    done
    launch "${pipeline[@]}"
}

# INDEX: continues with a camera in a process of its own.
take_out() {
    local i left=() script=rtsp.sh options=() pair
    for i in "${together[@]}"; do (($1 == i)) || left+=("$i"); done
    together=("${left[@]}")
    [[ $(kind_of "${sources[$1]}") != camera ]] || script=webcam.sh
    [[ $script == webcam.sh ]] || options+=(--transport "$transport" --latency "$latency" --stall "$stall")
    if [[ $script == webcam.sh ]]; then
        options+=(--format "$format" ${size:+--size "$size"} ${fps:+--fps "$fps"})
    fi
    for pair in "${detect[@]}"; do options+=(--detect "$pair"); done
    for pair in "${track[@]}"; do options+=(--track "$pair"); done
    for pair in "${crop[@]}"; do options+=(--crop "$pair"); done
    for pair in "${upload[@]}"; do options+=(--upload "$pair"); done
    [[ $insecure_token == false ]] || options+=(--insecure-token)
    say "the camera ${ids[$1]} is tried again in a process of its own"
    "$(dirname "${BASH_SOURCE[0]}")/$script" "${sources[$1]}" --camera-id "${ids[$1]}" --location "${locations[$1]}" --backend "$backend" \
        --token-file "$token_file" --ca-file "$ca_file" --pinned-sha256 "$pinned_sha256" \
        --client-cert "$client_cert" --client-key "$client_key" --spool-dir "$spool_dir" --policy "$policy" \
        --decoder "$decoder" --retry-max "$retry_max" "${options[@]}" </dev/null &
    alone+=("$!")
    helpers+=("$!")
}

while ((${#together[@]} && !stopping)); do
    run_together || true
    ((stopping == 0)) || break
    if [[ -z $failed ]]; then
        # All sources ended: files are finished, cameras are tried again.
        for i in "${together[@]}"; do
            [[ $(kind_of "${sources[i]}") == file ]] || take_out "$i"
        done
        break
    fi
    worth_retrying || give_up
    i=${failed##*-}
    [[ $(kind_of "${sources[i]}") != file ]] || fail "${sources[i]} cannot be played (see above)"
    take_out "$i"
done

status=0
for pid in "${alone[@]}"; do
    await "$pid" || status=1
    forget "$pid"
done
((status == 0 || stopping)) || fail "a camera was given up (see above)"
report_losses
