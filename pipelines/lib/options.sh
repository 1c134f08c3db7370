# Options that all scripts take, options of network cameras and local cameras, and --help. A script sets `synopsis`, `summary`,
# `own_options` and `examples` (for --help), defines `own_option`, and calls `parse "$@"`.
# shellcheck shell=bash
# The script that sources this file sets some of the variables and reads others; the platform sets `decoder_choices`.
# shellcheck disable=SC2034,SC2154

backend=${FACEPIPE_SERVER:-}
camera_id=${FACEPIPE_CAMERA_ID:-$(hostname)}
location=${FACEPIPE_LOCATION:-}
token_file=${FACEPIPE_TOKEN_FILE:-}
ca_file=${FACEPIPE_CA_FILE:-}
pinned_sha256=${FACEPIPE_PINNED_SHA256:-}
client_cert=${FACEPIPE_CLIENT_CERT:-}
client_key=${FACEPIPE_CLIENT_KEY:-}
insecure_token=${FACEPIPE_INSECURE_TOKEN:-false}
spool_dir=${FACEPIPE_SPOOL_DIR:-}
policy=${FACEPIPE_POLICY:-best}
decoder=${FACEPIPE_DECODER:-auto}
transport=tcp latency=200 stall=10 retry_max=30
format=auto size='' fps=''
print=no
# Properties of facedetect, facetrack, facecrop and facesink-http, as name=value.
detect=() track=() crop=() upload=()
# Arguments that are not options.
sources=()

common_options="Common options (in brackets the environment variable that sets the default):
  --backend URL        root of the backend, http:// or https:// [FACEPIPE_SERVER; http://127.0.0.1:8080]
  --camera-id ID       name of the camera, stored with each detection [FACEPIPE_CAMERA_ID; the host name]
  --location TEXT      where the camera stands, stored with each detection [FACEPIPE_LOCATION]
  --token-file FILE    file with the token that the backend asks for [FACEPIPE_TOKEN_FILE]
  --ca-file FILE       certificates (PEM) to trust for https in addition to the system's: an authority's or the backend's own
                       [FACEPIPE_CA_FILE]
  --pinned-sha256 PIN  digest of the backend's public key, sha256//BASE64; only a server with this key is trusted. Separate
                       several by semicolons [FACEPIPE_PINNED_SHA256]
  --client-cert FILE   this machine's certificate (PEM), by which it proves itself over https [FACEPIPE_CLIENT_CERT]
  --client-key FILE    its private key (PEM) [FACEPIPE_CLIENT_KEY; in --client-cert]
  --insecure-token     send the token even over http to another machine, where everybody on the way can read it
                       [FACEPIPE_INSECURE_TOKEN=true]
  --spool-dir DIR      keep faces in DIR/<camera id> while the backend is away, across restarts [FACEPIPE_SPOOL_DIR;
                       in memory only]
  --policy best|every  a few good pictures of each person, or each face of each frame [FACEPIPE_POLICY; best]
  --decoder WHICH      $decoder_choices
                       [FACEPIPE_DECODER; auto]
  --detect P=V, --track P=V, --crop P=V, --upload P=V
                       set a property of facedetect, facetrack, facecrop, facesink-http; may be repeated
                       (gst-inspect-1.0 facepipe-facedetect lists them)
  --print              print the gst-launch-1.0 command and exit
  -h, --help           this text

Ctrl-C or SIGTERM ends the stream and uploads the queued faces (for at most eos-timeout of facesink-http); a second one ends
immediately. Exit status: 0 when the stream ended or was stopped and the backend has all faces, 1 when something failed or
faces could not be uploaded, 2 for wrong arguments."

rtsp_options='Network cameras:
  --transport tcp|udp  how the video is transported; tcp loses nothing and passes firewalls [tcp]
  --latency MS         how long to wait for late packets, milliseconds [200]
  --stall SECONDS      a camera that sends nothing for this long has failed [10]
  --retry-max SECONDS  pauses between attempts double from 1 s up to this [30]
  Cameras that send motion JPEG over HTTP have addresses with http:// or https://; --stall and --retry-max apply to them, too.'

camera_options='Local cameras:
  --format WHICH       format to request from the camera: mjpeg, raw, or auto for the first one it offers [auto]
  --size WxH           resolution, for example 1280x720 [the first one that the camera offers]
  --fps N              frames per second [the first rate that the camera offers]'

usage() {
    printf 'Usage: %s %s\n\n%s\n\n' "$me" "$synopsis" "$summary"
    [[ -z $own_options ]] || printf '%s\n\n' "$own_options"
    printf '%s\n\nExamples:\n%s\n' "$common_options" "$examples"
}

# Parses the options of this script and the common ones; other arguments are sources. `own_option NAME VALUE` returns 1 for a
# name that it doesn't know, and sets `taken` to 1 for an option without a value.
parse() {
    local taken
    while (($#)); do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --) shift; sources+=("$@"); break ;;
            --?*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
            -?*) ;;
            *) sources+=("$1"); shift; continue ;;
        esac
        taken=2
        own_option "$1" "${2-}" || common_option "$1" "${2-}" || wrong "unknown option $1"
        (($# >= taken)) || wrong "$1 needs a value"
        shift "$taken"
    done
    check_options
}

common_option() {
    case $1 in
        --backend) backend=$2 ;;
        --camera-id) camera_id=$2 ;;
        --location) location=$2 ;;
        --token-file) token_file=$2 ;;
        --ca-file) ca_file=$2 ;;
        --pinned-sha256) pinned_sha256=$2 ;;
        --client-cert) client_cert=$2 ;;
        --client-key) client_key=$2 ;;
        --insecure-token) insecure_token=true taken=1 ;;
        --spool-dir) spool_dir=$2 ;;
        --policy) policy=$2 ;;
        --decoder) decoder=$2 ;;
        --detect) detect+=("$2") ;;
        --track) track+=("$2") ;;
        --crop) crop+=("$2") ;;
        --upload) upload+=("$2") ;;
        --print) print=yes taken=1 ;;
        *) return 1 ;;
    esac
}

check_options() {
    [[ $policy == best || $policy == every ]] || wrong "--policy is '$policy'; it must be best or every"
    [[ -n $camera_id ]] || wrong "--camera-id is empty"
    [[ -z $backend || $backend =~ ^https?://[^/] ]] ||
        wrong "--backend is '$backend'; it must begin with http:// or https://, as http://127.0.0.1:8080"
    local pair
    for pair in "${detect[@]}" "${track[@]}" "${crop[@]}" "${upload[@]}"; do
        [[ $pair =~ ^[a-z][a-z0-9-]*= ]] || wrong "'$pair' is not of the form property=value"
    done
    check_readable --token-file "$token_file"
    check_readable --ca-file "$ca_file"
    check_readable --client-cert "$client_cert"
    check_readable --client-key "$client_key"
    [[ $insecure_token == true || $insecure_token == false ]] ||
        wrong "FACEPIPE_INSECURE_TOKEN is '$insecure_token'; it must be true or false"
}

# NAME VALUE: the options of network cameras, for `own_option` of the scripts that play them.
rtsp_option() {
    case $1 in
        --transport) transport=$2; [[ $2 == tcp || $2 == udp ]] || wrong "--transport is '$2'; it must be tcp or udp" ;;
        --latency) whole_number "$@" 0; latency=$number ;;
        --stall) whole_number "$@" 1; stall=$number ;;
        --retry-max) whole_number "$@" 1; retry_max=$number ;;
        *) return 1 ;;
    esac
}

# NAME VALUE: the options of local cameras.
camera_option() {
    case $1 in
        --format)
            format=$2
            [[ $2 == auto || $2 == mjpeg || $2 == raw ]] || wrong "--format is '$2'; it must be mjpeg, raw or auto" ;;
        --size)
            size=$2
            [[ $2 =~ ^[1-9][0-9]*x[1-9][0-9]*$ ]] || wrong "--size is '$2'; it must be like 1280x720" ;;
        --fps) whole_number "$@" 1; fps=$number ;;
        *) return 1 ;;
    esac
}

# NAME VALUE MINIMUM: sets `number`.
number=''
whole_number() {
    local limits="it must be a whole number from $3 to 86400"
    [[ $2 =~ ^[0-9]{1,9}$ ]] || wrong "$1 is '$2'; $limits"
    number=$((10#$2))
    ((number >= $3 && number <= 86400)) || wrong "$1 is '$2'; $limits"
}

one_source() {
    ((${#sources[@]} == 1)) || wrong "one source is needed, and ${#sources[@]} were given"
}
