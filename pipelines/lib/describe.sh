# The parts of a pipeline that depend on the source and on the options, as arguments of gst-launch-1.0. The scripts put the
# elements of facepipe between them. The SUFFIX of an element's name tells several cameras apart; run.sh reads from the name
# which part failed.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # used by and set in other files of this folder

source=() decode=() upright=() destination=()

# SOURCE [SUFFIX]: fills `source` (to encoded video, or raw where a camera sends that) and `decode` (to upright frames).
describe_source() {
    local suffix=${2-}
    case $(kind_of "$1") in
        file) source=(filesrc "name=camera$suffix" "$(property location "$1")") ;;
        rtsp) describe_rtsp "$1" "$suffix" ;;
        http) describe_http "$1" "$suffix" ;;
        camera) describe_camera "$1" "$suffix" ;;
        csi) describe_csi "$1" "$suffix" ;;
    esac
    describe_decoding "$1" "$suffix"
}

describe_rtsp() {
    source=(rtspsrc "name=camera$2" "$(property location "$1")" "latency=$latency" "protocols=$transport"
        "tcp-timeout=$((stall * 1000000))" timeout=0)
    # The camera's own clock as capture time; from GStreamer 1.22 on.
    if gst-inspect-1.0 rtspsrc | grep add-reference-timestamp-meta >/dev/null; then
        source+=(add-reference-timestamp-meta=true)
    fi
    # Audio is not requested. The watchdog fails when no more data comes.
    source+=(! 'application/x-rtp,media=video' ! watchdog "name=stall$2" "timeout=$((stall * 1000))")
}

# Motion JPEG has no timestamps: frames get their time of arrival.
describe_http() {
    local address=$1 user password=''
    source=(souphttpsrc "name=camera$2" is-live=true do-timestamp=true "timeout=$stall" retries=0)
    if [[ $address =~ ^(https?://)([^/@]*)@(.*)$ ]]; then
        user=${BASH_REMATCH[2]%%:*}
        [[ ${BASH_REMATCH[2]} != *:* ]] || password=${BASH_REMATCH[2]#*:}
        address=${BASH_REMATCH[1]}${BASH_REMATCH[3]}
        source+=("$(property user-id "$(percent_decoded "$user")")" "$(property user-pw "$(percent_decoded "$password")")")
    fi
    source+=("$(property location "$address")" ! watchdog "name=stall$2" "timeout=$((stall * 1000))")
}

describe_camera() {
    local limits=''
    [[ -z $size ]] || limits+=",width=${size%x*},height=${size#*x}"
    [[ -z $fps ]] || limits+=",framerate=$fps/1"
    source=(v4l2src "name=camera$2" "$(property device "$1")")
    case $format in
        mjpeg) source+=(! "image/jpeg$limits") ;;
        raw) source+=(! "video/x-raw$limits") ;;
        *) [[ -z $limits ]] || source+=(! "image/jpeg$limits;video/x-raw$limits") ;;
    esac
}

# TEXT: prints a part of an address with %XX decoded.
percent_decoded() {
    local text=${1//\\/\\\\}
    printf '%b' "${text//%/\\x}"
}

# CAMERA_ID LOCATION: fills `destination`, the properties of facesink-http for the backend, the camera and the spool.
describe_destination() {
    destination=("$(property backend-url "${backend:-http://127.0.0.1:8080}")"
        "$(property camera-id "$1")" "$(property camera-location "$2")" "policy=$policy")
    [[ -z $token_file ]] || destination+=("$(property token-file "$token_file")")
    [[ -z $ca_file ]] || destination+=("$(property ca-file "$ca_file")")
    [[ -z $pinned_sha256 ]] || destination+=("$(property pinned-sha256 "$pinned_sha256")")
    [[ -z $client_cert ]] || destination+=("$(property client-cert "$client_cert")")
    [[ -z $client_key ]] || destination+=("$(property client-key "$client_key")")
    [[ $insecure_token == false ]] || destination+=(allow-insecure-token=true)
    [[ -z $spool_dir ]] || destination+=("$(property spool-dir "$spool_dir/$(file_name "$1")")")
}
