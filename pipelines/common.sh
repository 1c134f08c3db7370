# What the scripts of this folder share: arguments, checks, the parts of a pipeline, and a run that ends in an orderly way.
# Sourced, not run. A script sets `synopsis`, `summary`, `own_options` and `examples` (for --help), defines `own_option`,
# and calls `parse "$@"`.
# shellcheck shell=bash
# The script that sources this file sets some of the variables, and reads others.
# shellcheck disable=SC2034,SC2154

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
me=$(basename "$0")

# The arguments that all scripts take, with their defaults.
backend=${FACEPIPE_SERVER:-}
camera_id=${FACEPIPE_CAMERA_ID:-$(hostname)}
location=${FACEPIPE_LOCATION:-}
token_file=${FACEPIPE_TOKEN_FILE:-}
ca_file=${FACEPIPE_CA_FILE:-}
pinned_sha256=${FACEPIPE_PINNED_SHA256:-}
spool_dir=${FACEPIPE_SPOOL_DIR:-}
policy=${FACEPIPE_POLICY:-best}
decoder=${FACEPIPE_DECODER:-auto}
transport=tcp latency=200 stall=10 retry_max=30
format=auto size='' fps=''
detect=() track=() crop=() upload=()
sources=()

common_options='Common options (in brackets the environment variable that sets the default):
  --backend URL        root of the backend, http:// or https:// [FACEPIPE_SERVER; http://127.0.0.1:8080]
  --camera-id ID       name of the camera, stored with each detection [FACEPIPE_CAMERA_ID; the host name]
  --location TEXT      where the camera stands, stored with each detection [FACEPIPE_LOCATION]
  --token-file FILE    file with the token that the backend asks for [FACEPIPE_TOKEN_FILE]
  --ca-file FILE       certificates (PEM) to trust for https beside the system'"'"'s, authorities'"'"' or the backend'"'"'s own
                       [FACEPIPE_CA_FILE]
  --pinned-sha256 PIN  digest of the backend'"'"'s public key, sha256//BASE64: who has this key is the backend; several with
                       semicolons between them [FACEPIPE_PINNED_SHA256]
  --spool-dir DIR      keep faces in DIR/<camera id> while the backend is away, across restarts [FACEPIPE_SPOOL_DIR;
                       in memory only]
  --policy best|every  few good pictures of each person, or each face of each frame [FACEPIPE_POLICY; best]
  --decoder WHICH      auto: hardware where there is one, else software; software; or an element such as vah264dec
                       [FACEPIPE_DECODER; auto]
  --detect P=V, --track P=V, --crop P=V, --upload P=V
                       set a property of facedetect, facetrack, facecrop, facesink-http; may be repeated
                       (gst-inspect-1.0 facepipe-facedetect lists them)
  -h, --help           this text

Ctrl-C or SIGTERM ends the stream and uploads what is queued (at most eos-timeout of facesink-http); a second one ends
at once. Exit status: 0 when the stream ended or was ended so and the backend has all faces, 1 when something failed or
faces could not be uploaded, 2 for wrong arguments.'

rtsp_options='Network cameras:
  --transport tcp|udp  how the video comes; tcp loses nothing and passes firewalls [tcp]
  --latency MS         how long packets wait for those that come late, milliseconds [200]
  --stall SECONDS      how long nothing may come before the camera counts as gone [10]
  --retry-max SECONDS  pauses between attempts double from 1 s up to this [30]
  Cameras that send motion JPEG over HTTP are named by http:// or https://; --stall and --retry-max hold for them, too.'

camera_options='Cameras of this machine:
  --format WHICH       what the camera is to send: mjpeg, raw, or auto for what it offers first [auto]
  --size WxH           resolution, for example 1280x720 [what the camera offers first]
  --fps N              frames per second [what the camera offers first]'

say() { printf '%s: %s\n' "$me" "$*" >&2; }
fail() { say "$*"; exit 1; }
wrong() { say "$*"; say "see $me --help"; exit 2; }

usage() {
    printf 'Usage: %s %s\n\n%s\n\n' "$me" "$synopsis" "$summary"
    [[ -z $own_options ]] || printf '%s\n\n' "$own_options"
    printf '%s\n\nExamples:\n%s\n' "$common_options" "$examples"
}

# Takes the options of this script and the shared ones; what is no option is a source. `own_option NAME VALUE` returns 1 for
# a name that it doesn't know, and sets `taken` to 1 where the option has no value.
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
        if own_option "$1" "${2-}"; then :; else
            case $1 in
                --backend) backend=${2-} ;;
                --camera-id) camera_id=${2-} ;;
                --location) location=${2-} ;;
                --token-file) token_file=${2-} ;;
                --ca-file) ca_file=${2-} ;;
                --pinned-sha256) pinned_sha256=${2-} ;;
                --spool-dir) spool_dir=${2-} ;;
                --policy) policy=${2-} ;;
                --decoder) decoder=${2-} ;;
                --detect) detect+=("${2-}") ;;
                --track) track+=("${2-}") ;;
                --crop) crop+=("${2-}") ;;
                --upload) upload+=("${2-}") ;;
                *) wrong "unknown option $1" ;;
            esac
        fi
        (($# >= taken)) || wrong "$1 needs a value"
        shift "$taken"
    done
    [[ $policy == best || $policy == every ]] || wrong "--policy is '$policy'; it must be best or every"
    [[ -n $camera_id ]] || wrong "--camera-id is empty"
    [[ -z $backend || $backend =~ ^https?://[^/] ]] ||
        wrong "--backend is '$backend'; it must begin with http:// or https://, as http://127.0.0.1:8080"
    local pair
    for pair in "${detect[@]}" "${track[@]}" "${crop[@]}" "${upload[@]}"; do
        [[ $pair =~ ^[a-z][a-z0-9-]*= ]] || wrong "'$pair' is not of the form property=value"
    done
    readable --token-file "$token_file"
    readable --ca-file "$ca_file"
}

# The options of network cameras and of cameras of this machine, for `own_option` of the scripts that take such sources.
rtsp_option() {
    case $1 in
        --transport) transport=$2; [[ $2 == tcp || $2 == udp ]] || wrong "--transport is '$2'; it must be tcp or udp" ;;
        --latency) whole "$@" 0; latency=$number ;;
        --stall) whole "$@" 1; stall=$number ;;
        --retry-max) whole "$@" 1; retry_max=$number ;;
        *) return 1 ;;
    esac
}

camera_option() {
    case $1 in
        --format)
            format=$2
            [[ $2 == auto || $2 == mjpeg || $2 == raw ]] || wrong "--format is '$2'; it must be mjpeg, raw or auto" ;;
        --size)
            size=$2
            [[ $2 =~ ^[1-9][0-9]*x[1-9][0-9]*$ ]] || wrong "--size is '$2'; it must be like 1280x720" ;;
        --fps) whole "$@" 1; fps=$number ;;
        *) return 1 ;;
    esac
}

# NAME VALUE MINIMUM: sets `number`.
number=''
whole() {
    local limits="it must be a whole number from $3 to 86400"
    [[ $2 =~ ^[0-9]{1,9}$ ]] || wrong "$1 is '$2'; $limits"
    number=$((10#$2))
    ((number >= $3 && number <= 86400)) || wrong "$1 is '$2'; $limits"
}

readable() {
    [[ -z $2 || (-f $2 && -r $2) ]] || fail "$1 $2: no file that can be read is there"
}

writable_folder() {
    mkdir -p -- "$1" || fail "$1: this folder cannot be made"
    [[ -w $1 ]] || fail "$1: $(id -un) cannot write into this folder"
}

one_source() {
    ((${#sources[@]} == 1)) || wrong "one source is needed, and ${#sources[@]} were given"
}

# rtsp, http, camera or file.
kind_of() {
    case $1 in
        http://?* | https://?*) echo http ;;
        rtsp://?* | rtsps://?* | rtspt://?* | rtspu://?* | rtsph://?*) echo rtsp ;;
        /dev/*) echo camera ;;
        *) echo file ;;
    esac
}

# Fails where a source of the kind that is meant cannot be there.
check_source() {
    case $(kind_of "$1") in
        camera)
            [[ -c $1 ]] || fail "$1: no such camera; 'ls /dev/video*' lists those that are there"
            [[ -r $1 ]] || fail "$1 cannot be opened by $(id -un); add this user to the group $(stat -c %G "$1")" ;;
        file)
            [[ $1 != *://* ]] || wrong "$1: only files, addresses with rtsp:// or http:// and /dev/video* are known"
            [[ -f $1 ]] || fail "$1: no such file"
            [[ -r $1 ]] || fail "$1 cannot be read by $(id -un)"
            [[ -s $1 ]] || fail "$1 is empty"
            check_video "$1" ;;
    esac
}

# Fails where a file is a picture: GStreamer would show it once, and some animations for ever.
check_video() {
    local start animated=''
    start=$(head -c 12 -- "$1" | od -An -v -tx1 | tr -d ' \n')
    case $start in
        474946383?61*) animated="; 'facepipe recognize video' and 'facepipe extract' play animated ones" ;;
        ffd8ff*)
            # A recording of bare motion JPEG begins like a picture.
            [[ ${1,,} != *.mjp?(e)g ]] || return 0 ;;
        89504e470d0a1a0a* | 52494646????????57454250* | 49492a00* | 4d4d002a*) ;;
        ????????667479706865* | ????????667479706d696631* | ????????6674797061766966*) ;; # ftyphe.., ftypmif1, ftypavif
        *) return 0 ;;
    esac
    fail "$1 is a picture, and no video: 'facepipe recognize folder' says who is on the pictures of a folder$animated"
}

# Whether GStreamer has an element. Without the version it would ask for a plugin at least as new as GStreamer.
exists() {
    gst-inspect-1.0 --exists --atleast-version=0.0 "$1"
}

needs() {
    local element=$1 purpose=$2 package=$3
    exists "$element" ||
        fail "GStreamer has no element $element ($purpose): install $package, then look with 'facepipe doctor'"
}

# Finds GStreamer and the plugin: on GST_PLUGIN_PATH or installed, else as `make setup` puts it into the checkout.
find_plugin() {
    local tool
    for tool in gst-launch-1.0 gst-inspect-1.0; do
        command -v "$tool" >/dev/null || fail "$tool is missing: install gstreamer1.0-tools"
    done
    exists facepipe-facesink-http && return
    local built=$here/../.runtime/gstreamer-1.0
    if [[ -f $built/libgstfacepipe.so ]]; then
        export GST_PLUGIN_PATH=$built${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}
        exists facepipe-facesink-http && return
    fi
    fail "GStreamer does not find the plugin facepipe: run 'make setup', or export GST_PLUGIN_PATH=<folder of" \
        "libgstfacepipe.so>; 'facepipe doctor' says what else is missing"
}

# Which decoder. decodebin takes the one of the highest rank that opens and falls back to the next. Hardware decoders are
# registered only where the driver offers them, but not always with the highest rank, so that is set here.
choose_decoder() {
    local hardware ranks='' name
    hardware=$(gst-inspect-1.0 | grep -oE '\b(va|vaapi|v4l2|v4l2sl|nv)(h264|h265|jpeg|av1|vp8|vp9|mpeg2)dec\b' | sort -u) || true
    case $decoder in
        auto) for name in $hardware; do ranks+=$name:512,; done ;;
        software)
            for name in $hardware; do ranks+=$name:NONE,; done
            hardware='' ;;
        *)
            exists "$decoder" ||
                fail "--decoder: GStreamer has no element $decoder; here are: ${hardware:-no hardware decoders}"
            hardware=$decoder ranks=$decoder:MAX, ;;
    esac
    say "decoding ${hardware:+by $(paste -sd' ' <<<"$hardware"), and for all else }in software"
    [[ -n $ranks ]] || return 0
    # The variable is known from GStreamer 1.18 on; before it, ranks are as the plugins set them.
    local minor
    minor=$(gst-launch-1.0 --version | sed -n 's/^GStreamer 1\.\([0-9]*\).*/\1/p')
    if ((${minor:-0} < 18)) && [[ $decoder != auto ]]; then
        fail "--decoder needs GStreamer 1.18 or later, and this is 1.$minor"
    fi
    # What the user has set counts for more, and the last entry wins.
    export GST_PLUGIN_FEATURE_RANK=$ranks${GST_PLUGIN_FEATURE_RANK-}
}

# Everything that is to be there before a pipeline is made.
prepare() {
    local source
    for source in "${sources[@]}"; do check_source "$source"; done
    find_plugin
    needs videoconvert 'other formats of video' gstreamer1.0-plugins-base
    needs videoflip 'video of phones' gstreamer1.0-plugins-good
    choose_decoder
}

# NAME VALUE: a property as gst-launch-1.0 takes it, whatever the value is.
property() {
    local value=${2//\\/\\\\}
    printf '%s="%s"' "$1" "${value//\"/\\\"}"
}

# A part of an address with its %XX as what they mean.
decoded() {
    local text=${1//\\/\\\\}
    printf '%b' "${text//%/\\x}"
}

# The parts of a pipeline. Each fills the array `part`; SUFFIX tells the elements of several cameras apart, and `watch_ends`
# reads from an element's name what has failed.
part=()

# SOURCE SUFFIX: from the source to encoded video (or raw, where a camera sends that).
source_part() {
    local source=$1 suffix=$2
    case $(kind_of "$source") in
        file) part=(filesrc "name=camera$suffix" "$(property location "$source")") ;;
        rtsp)
            part=(rtspsrc "name=camera$suffix" "$(property location "$source")" "latency=$latency" "protocols=$transport"
                "tcp-timeout=$((stall * 1000000))" timeout=0)
            # The camera's own clock as capture time; from GStreamer 1.22 on.
            if gst-inspect-1.0 rtspsrc | grep add-reference-timestamp-meta >/dev/null; then
                part+=(add-reference-timestamp-meta=true)
            fi
            # Sound is left where it is. The watchdog fails when nothing comes any more.
            part+=(! 'application/x-rtp,media=video' ! watchdog "name=stall$suffix" "timeout=$((stall * 1000))") ;;
        http)
            # Motion JPEG has no times of its own: frames get the time at which they come.
            part=(souphttpsrc "name=camera$suffix" is-live=true do-timestamp=true "timeout=$stall" retries=0)
            if [[ $source =~ ^(https?://)([^/@]*)@(.*)$ ]]; then
                local user=${BASH_REMATCH[2]%%:*} password=''
                [[ ${BASH_REMATCH[2]} != *:* ]] || password=${BASH_REMATCH[2]#*:}
                part+=("$(property user-id "$(decoded "$user")")" "$(property user-pw "$(decoded "$password")")")
                source=${BASH_REMATCH[1]}${BASH_REMATCH[3]}
            fi
            part+=("$(property location "$source")" ! watchdog "name=stall$suffix" "timeout=$((stall * 1000))") ;;
        camera)
            local limits=''
            [[ -z $size ]] || limits+=",width=${size%x*},height=${size#*x}"
            [[ -z $fps ]] || limits+=",framerate=$fps/1"
            part=(v4l2src "name=camera$suffix" "$(property device "$source")")
            case $format in
                mjpeg) part+=(! "image/jpeg$limits") ;;
                raw) part+=(! "video/x-raw$limits") ;;
                *) [[ -z $limits ]] || part+=(! "image/jpeg$limits;video/x-raw$limits") ;;
            esac ;;
    esac
}

# SUFFIX: from raw video to frames that facedetect can search. Formats that it reads pass as they are, and so does video that
# is upright: videoconvert and videoflip then only hand the frames on. Cameras have no tags that say which way is up, and
# videoflip knows fewer formats than facedetect (not the P010_10LE of hardware decoders), so it stands behind files alone.
upright_part() {
    local suffix=$1 source=${sources[0]}
    [[ -z $suffix ]] || source=${sources[${suffix#-}]}
    part=(videoconvert "name=convert$suffix")
    [[ $(kind_of "$source") != file ]] || part+=(! videoflip "name=upright$suffix" video-direction=auto)
}

# SUFFIX: from encoded video to frames with faces that have track ids. Frames of a camera that come too fast for this machine
# pass facedetect without a search, and get predicted faces. (A leaky queue would drop them, for whoever follows as well.)
faces_part() {
    local suffix=$1
    upright_part "$suffix"
    part=(decodebin "name=decode$suffix" ! queue max-size-buffers=4 max-size-bytes=0 max-size-time=0 ! "${part[@]}" !
        facepipe-facedetect "name=detect$suffix" "${detect[@]}" ! facepipe-facetrack "name=track$suffix" "${track[@]}")
}

# CAMERA_ID SUFFIX [PROPERTY=VALUE...]: the sink that cuts the faces out and uploads them.
upload_part() {
    local id=$1 suffix=$2
    shift 2
    part=(facepipe-facesink-http "name=upload$suffix" "$(property backend-url "${backend:-http://127.0.0.1:8080}")"
        "$(property camera-id "$id")" "$(property camera-location "$location")" "policy=$policy" "${crop[@]}")
    [[ -z $token_file ]] || part+=("$(property token-file "$token_file")")
    [[ -z $ca_file ]] || part+=("$(property ca-file "$ca_file")")
    [[ -z $pinned_sha256 ]] || part+=("$(property pinned-sha256 "$pinned_sha256")")
    if [[ -n $spool_dir ]]; then
        take_over "$id"
        part+=("$(property spool-dir "$spool_dir/$(file_name "$id")")")
    fi
    part+=("$@" "${upload[@]}")
}

# A camera's id as the name of a file or folder: bytes that are no ASCII letters, digits, dots within it, hyphens and underscores
# as %XX, so that no two ids have the same. File systems take 255 bytes; of longer names the end becomes a digest of the id.
file_name() {
    local LC_ALL=C id=$1 name='' byte code i
    for ((i = 0; i < ${#id}; i++)); do
        byte=${id:i:1}
        if [[ $byte != [A-Za-z0-9._-] || $name$byte == . ]]; then
            printf -v code '%d' "'$byte"
            printf -v byte '%%%02X' "$((code & 255))"
        fi
        name+=$byte
    done
    if ((${#name} > 200)); then
        name=${name:0:150} name=${name%"%"} name=${name%"%"?}
        name+='~'$(printf '%s' "$id" | sha256sum | head -c 32)
    fi
    printf '%s' "$name"
}

# CAMERA_ID: earlier versions of these scripts wrote an underscore for each character that is now written as %XX, so that cameras
# could share a spool folder, in turns. What lies there is moved to where it is sent from now; each crop knows its camera. A
# folder that another camera is using is left to that one, which sends all that is in it.
take_over() {
    local id=$1 new old found
    new=$spool_dir/$(file_name "$id")
    local names=("${id//[^A-Za-z0-9._-]/_}")
    local LC_ALL=C
    names+=("${id//[^A-Za-z0-9._-]/_}")
    for old in "${names[@]}"; do
        old=$spool_dir/${old/#./_}
        [[ $old != "$new" && -d $old ]] || continue
        found=$(find "$old" -maxdepth 1 -type f -name '*.crop' | wc -l) || continue
        ((found)) || continue
        [[ -d $new ]] || mkdir -m 700 -- "$new" || continue
        if flock --nonblock "$old/.lock" find "$old" -maxdepth 1 -type f -name '*.crop' -exec mv -n -t "$new" -- {} +; then
            say "$found faces that waited in $old now wait in $new"
        fi
    done
}

# Running. Children have process groups of their own (`set -m`), so that Ctrl-C reaches this script alone: gst-launch-1.0
# takes a second SIGINT for “at once”, and none may come by accident. It ends well on SIGINT and on nothing else; the helpers
# get SIGTERM, since a script that was started with SIGINT ignored (`nohup … &`) has children that ignore it, too.
set -m
stopping=0
children=()
helpers=()
scratch=$(mktemp -d)
trap 'on_exit' EXIT
trap 'stop' INT TERM HUP

on_exit() {
    rm -rf "$scratch"
    ask_to_end
}

ask_to_end() {
    ((${#children[@]} == 0)) || kill -INT "${children[@]}" 2>/dev/null
    ((${#helpers[@]} == 0)) || kill -TERM "${helpers[@]}" 2>/dev/null
    return 0
}

# Asks the children to end: once for the end of the stream, twice for at once.
stop() {
    ((++stopping))
    ((stopping > 1)) || say "ending; what is queued is uploaded first (once more: at once)"
    ask_to_end
}

# PID: waits for a child whatever signals come meanwhile, and returns its status.
await() {
    local status
    # A trapped signal ends `wait` before the child has ended.
    while wait "$1"; status=$?; ((status > 128)) && kill -0 "$1" 2>/dev/null; do :; done
    return "$status"
}

# Copies what a pipeline says: failures to standard error and, for `watch_ends`, into a file, the rest to standard output.
# An address may hold a password, which does not belong into logs.
relay() {
    local line
    trap '' INT TERM HUP
    while IFS= read -r line; do
        line=$(mask "$line")
        case $line in
            ERROR:* | 'WARNING: erroneous pipeline'*) printf '%s\n' "$line" | tee -a "$scratch/errors" >&2 ;;
            *'reason not-negotiated'*) : >"$scratch/formats"; printf '%s\n' "$line" ;;
            # What the elements say at the end of a stream.
            *' were left out ('*) printf '%s\n' "$line" >>"$scratch/left-out" ;;
            WARNING:*' crops were not uploaded '* | WARNING:*' crops were lost: '*)
                printf '%s\n' "$line" | tee -a "$scratch/losses" >&2 ;;
            *) printf '%s\n' "$line" ;;
        esac
    done
}

mask() {
    local line=$1
    if [[ $line =~ ^(.*://)[^/@[:space:]]+@(.*)$ ]]; then
        line="${BASH_REMATCH[1]}***@${BASH_REMATCH[2]}"
    fi
    printf '%s' "$line"
}

# Runs a pipeline to its end. Sets `failed` to the name of the element that failed (`camera-2`), to `pipeline` where none is
# known, and to nothing where it ended well.
failed=''
run() {
    local messages relaying pid status=0
    : >"$scratch/errors"
    rm -f "$scratch/formats"
    : >"$scratch/losses"
    : >"$scratch/left-out"
    exec {messages}> >(relay)
    relaying=$!
    gst-launch-1.0 --eos-on-shutdown "$@" >&"$messages" 2>&1 {messages}>&- </dev/null &
    pid=$!
    exec {messages}>&-
    children+=("$pid")
    # A signal that came before there was a child to tell.
    ((stopping == 0)) || kill -INT "$pid"
    await "$pid" || status=$?
    forget "$pid"
    await "$relaying" || true
    failed=''
    [[ ! -e $scratch/formats ]] ||
        say "two elements could not agree on a format of the video; 'gst-inspect-1.0 facepipe-facedetect' lists those that" \
            "faces are found in, and videoconvert makes one of them of whatever is in system memory"
    if ((status)); then
        # ERROR: from element /GstPipeline:pipeline0/GstDecodeBin:decode-2/…: …
        failed=$(sed -nE 's|^ERROR: from element /[^/]*/[A-Za-z0-9]+:([a-z]+(-[0-9]+)?)[/:].*|\1|p' "$scratch/errors" | head -n 1)
        failed=${failed:-pipeline}
    fi
    return "$status"
}

# True where another attempt can help: a source failed or ended, not the configuration.
worth_another() {
    case $failed in
        detect* | track* | crop* | upload* | overlay* | pipeline) return 1 ;;
    esac
}

give_up() {
    fail "the pipeline failed at '$failed' (see above); 'facepipe doctor' says whether this machine lacks something"
}

# FILE: the elements' own sentences, in one line.
sentences_of() {
    sed -E 's/^[A-Z]+: from element [^ ]*: //' "$1" | paste -sd'|' | sed 's/|/; /g'
}

# Says what was left out, and fails where faces were found that the backend does not have.
nothing_lost() {
    [[ ! -s $scratch/left-out ]] || say "$(sentences_of "$scratch/left-out")"
    [[ -s $scratch/losses ]] || return 0
    local sentences
    sentences=$(sentences_of "$scratch/losses")
    if grep -q 'are on the spool' "$scratch/losses"; then
        fail "not all faces are with the backend yet: $sentences (what is on the spool is sent when this runs again)"
    fi
    fail "not all faces are with the backend: $sentences; with --spool-dir they wait on disk, and --upload" \
        "eos-timeout=SECONDS waits longer at the end"
}

# COMMAND...: a run that is not repeated; its failure is the script's.
once() {
    "$@" || ((stopping)) || give_up
    nothing_lost
}

# COMMAND...: repeats a run with growing pauses when the camera vanishes, stalls or ends the stream.
for_ever() {
    local pause=1 begun outcome
    while :; do
        begun=$SECONDS
        "$@" || true
        if ((stopping)); then
            nothing_lost
            return
        fi
        worth_another || give_up
        # It was well for a while: this is a new failure, not the same one again.
        ((SECONDS - begun < 60)) || pause=1
        outcome=ended
        [[ -z $failed ]] || outcome="failed at '$failed'"
        say "the stream $outcome; next attempt in $pause s"
        nap "$pause"
        ((stopping == 0)) || return 0
        ((pause = pause * 2 > retry_max ? retry_max : pause * 2))
    done
}

# Sleeps for so many seconds, or until the script is to end.
nap() {
    sleep "$1" &
    local pid=$!
    helpers+=("$pid")
    await "$pid" || true
    forget "$pid"
}

# PID: it has ended; nobody is to be told any more.
forget() {
    local pid left=()
    for pid in "${children[@]}"; do
        [[ -z $pid || $pid == "$1" ]] || left+=("$pid")
    done
    children=("${left[@]}")
    left=()
    for pid in "${helpers[@]}"; do
        [[ -z $pid || $pid == "$1" ]] || left+=("$pid")
    done
    helpers=("${left[@]}")
}
