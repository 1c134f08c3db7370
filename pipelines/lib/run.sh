# Runs gst-launch-1.0 and ends it in an orderly way; repeats it for cameras that fail; reports faces that were not uploaded.
#
# Children have process groups of their own (`set -m`), so that Ctrl-C reaches this script alone: gst-launch-1.0 takes a second
# SIGINT for “immediately”, and it must not get one by accident. It ends in an orderly way only on SIGINT. The helpers get
# SIGTERM, because the children of a script that was started with SIGINT ignored (`nohup … &`) ignore it, too.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # used by and set in other files of this folder

stopping=0
# Process ids: of gst-launch-1.0, and of background jobs of this script.
children=() helpers=()
# The element that failed in the last run (`camera-2`), `pipeline` if unknown, empty if the run ended well.
failed=''

# Called once, before the first run.
handle_signals() {
    set -m
    scratch=$(mktemp -d)
    trap 'on_exit' EXIT
    trap 'stop' INT TERM HUP
}

on_exit() {
    rm -rf "$scratch"
    signal_children
}

signal_children() {
    ((${#children[@]} == 0)) || kill -INT "${children[@]}" 2>/dev/null
    ((${#helpers[@]} == 0)) || kill -TERM "${helpers[@]}" 2>/dev/null
    return 0
}

# The first call ends the stream, the second one the upload.
stop() {
    ((++stopping))
    ((stopping > 1)) || say "ending; what is queued is uploaded first (once more: at once)"
    signal_children
}

# PID: waits for a child, through signals, and returns its status.
await() {
    local status
    # A trapped signal ends `wait` before the child has ended.
    while wait "$1"; status=$?; ((status > 128)) && kill -0 "$1" 2>/dev/null; do :; done
    return "$status"
}

# PID: removes a process that has ended from `children` and `helpers`.
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

# SECONDS: sleeps so long, or until the script is stopped.
nap() {
    sleep "$1" &
    local pid=$!
    helpers+=("$pid")
    await "$pid" || true
    forget "$pid"
}

# Copies the output of a pipeline: errors to standard error and into a file for `failed_element`, the rest to standard output.
# Masks passwords of addresses.
relay() {
    local line
    trap '' INT TERM HUP
    while IFS= read -r line; do
        line=$(mask "$line")
        case $line in
            ERROR:* | 'WARNING: erroneous pipeline'*) printf '%s\n' "$line" | tee -a "$scratch/errors" >&2 ;;
            *'reason not-negotiated'*) : >"$scratch/formats"; printf '%s\n' "$line" ;;
            # Summaries of the elements at the end of a stream.
            *' were left out ('*) printf '%s\n' "$line" >>"$scratch/left-out" ;;
            WARNING:*' crops were not uploaded '* | WARNING:*' crops were lost: '*)
                printf '%s\n' "$line" | tee -a "$scratch/losses" >&2 ;;
            *) printf '%s\n' "$line" ;;
        esac
    done
}

# FILE: prints the element of its first error, without its number and path: of
# “ERROR: from element /GstPipeline:pipeline0/GstDecodeBin:decode-2/…: …” it is decode-2.
failed_element() {
    local element
    element=$(sed -nE 's|^ERROR: from element /[^/]*/[A-Za-z0-9]+:([a-z]+(-[0-9]+)?)[/:].*|\1|p' "$1" | head -n 1)
    echo "${element:-pipeline}"
}

# ARGUMENT...: runs gst-launch-1.0 to the end of the stream and sets `failed`. With --print it prints the command and exits.
launch() {
    local messages relaying pid status=0
    if [[ $print == yes ]]; then
        print_command "$@"
        exit 0
    fi
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
    # A signal may have come before there was a child to receive it.
    ((stopping == 0)) || kill -INT "$pid"
    await "$pid" || status=$?
    forget "$pid"
    await "$relaying" || true
    [[ ! -e $scratch/formats ]] ||
        say "two elements could not agree on a format of the video; 'gst-inspect-1.0 facepipe-facedetect' lists those that" \
            "faces are found in, and videoconvert makes one of them of whatever is in system memory"
    failed=''
    ((status == 0)) || failed=$(failed_element "$scratch/errors")
    return "$status"
}

# True if another attempt can help: the source failed or ended; the configuration is not at fault.
worth_retrying() {
    case $failed in
        detect* | track* | crop* | upload* | overlay* | pipeline) return 1 ;;
    esac
}

give_up() {
    fail "the pipeline failed at '$failed' (see above); 'facepipe doctor' says whether this machine lacks something"
}

# FILE: prints the elements' messages in one line.
messages_of() {
    sed -E 's/^[A-Z]+: from element [^ ]*: //' "$1" | paste -sd'|' | sed 's/|/; /g'
}

# Reports faces that were left out, and fails if faces were found that the backend does not have.
report_losses() {
    [[ ! -s $scratch/left-out ]] || say "$(messages_of "$scratch/left-out")"
    [[ -s $scratch/losses ]] || return 0
    local losses
    losses=$(messages_of "$scratch/losses")
    if grep -q 'are on the spool' "$scratch/losses"; then
        fail "not all faces are with the backend yet: $losses (what is on the spool is sent when this runs again)"
    fi
    fail "not all faces are with the backend: $losses; with --spool-dir they wait on disk, and --upload" \
        "eos-timeout=SECONDS waits longer at the end"
}

# COMMAND...: a run that is not repeated; its failure is the script's.
run_once() {
    "$@" || ((stopping)) || give_up
    report_losses
}

# COMMAND...: repeats a run with growing pauses when the camera vanishes, stalls or ends the stream.
run_forever() {
    local pause=1 begun outcome
    while :; do
        begun=$SECONDS
        "$@" || true
        if ((stopping)); then
            report_losses
            return
        fi
        worth_retrying || give_up
        # After a minute without failure the pauses start from one second again.
        ((SECONDS - begun < 60)) || pause=1
        outcome=ended
        [[ -z $failed ]] || outcome="failed at '$failed'"
        say "the stream $outcome; next attempt in $pause s"
        nap "$pause"
        ((stopping == 0)) || return 0
        ((pause = pause * 2 > retry_max ? retry_max : pause * 2))
    done
}
