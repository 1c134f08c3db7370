#!/usr/bin/env bash
# Installs facepipe on a Jetson with JetPack 5 or 6: packages, plugin, ONNX Runtime, models, service. Repeating it changes only
# what differs.
set -euo pipefail

usage() {
    cat <<'END'
Usage: sudo jetson/install.sh [options]

Installs facepipe on a Jetson with JetPack 5 (Ubuntu 20.04, GStreamer 1.16) or 6 (Ubuntu 22.04, GStreamer 1.20) into
/opt/facepipe, with a service for each camera. Repeating it changes only what differs; settings in /etc/facepipe stay.

  --plugin FILE       libgstfacepipe.so built elsewhere (`make cross` on a PC), instead of building here
  --program FILE      the program `facepipe` built elsewhere; the default is `facepipe` in the folder of --plugin
  --onnxruntime FILE  ONNX Runtime built for this JetPack with CUDA and TensorRT: libonnxruntime.so.* (with
                      libonnxruntime_providers_*.so in the same folder), or a wheel, .zip or .tgz that contains them. README.md
                      lists sources. Without this option, the CPU build is downloaded if none is installed
  --models FOLDER     take the models from this folder, instead of downloading them
  --root FOLDER       install below this folder: an image, or a trial
  --dry-run           only print the steps
  -h, --help          this text

Exit status: 0 when everything is installed and `facepipe doctor` finds no problem, 1 otherwise, 2 for wrong arguments.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(dirname "$here")
plugin='' program='' onnxruntime='' models='' root='' dry=no
detectors=(version-RFB-320.onnx version-RFB-640.onnx version-slim-320.onnx)
# Their substitute, which runs on the CPU only.
mtcnn=(pnet.pt rnet.pt onet.pt)
# The oldest ONNX Runtime that the plugin can use, 1.x.
oldest_runtime=17
# Rust's version that the plugin needs, 1.x: rust-version of Cargo.toml.
oldest_rust=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*/\1/p' "$checkout/Cargo.toml" 2>/dev/null) || oldest_rust=0

say() { printf 'install.sh: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }
wrong() { say "$*" >&2; say "see install.sh --help" >&2; exit 2; }

# Runs a command, or only prints it.
run() {
    if [[ $dry == yes ]]; then
        say "would run: $*"
    else
        "$@"
    fi
}

while (($#)); do
    case $1 in
        --dry-run) dry=yes; shift; continue ;;
        -h | --help) usage; exit 0 ;;
        --?*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
    esac
    case $1 in
        --plugin | --program | --onnxruntime | --models | --root) ;;
        *) wrong "unknown argument '$1'" ;;
    esac
    [[ -n ${2-} ]] || wrong "$1 needs a value"
    case $1 in
        --plugin) plugin=$2 ;;
        --program) program=$2 ;;
        --onnxruntime) onnxruntime=$2 ;;
        --models) models=$2 ;;
        --root) root=${2%/} ;;
    esac
    shift 2
done
for file in "$plugin" "$program" "$onnxruntime"; do
    [[ -z $file || -f $file ]] || wrong "$file: no such file"
done
[[ -z $models || -d $models ]] || wrong "--models $models: no such folder"
[[ -z $program || -n $plugin ]] || wrong "--program belongs to a --plugin from the same build"
if [[ -n $plugin && -z $program && -f $(dirname "$plugin")/facepipe ]]; then program=$(dirname "$plugin")/facepipe; fi

opt=$root/opt/facepipe
lib=$opt/lib
etc=$root/etc/facepipe
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check_device() {
    local release
    [[ $(uname -m) == aarch64 ]] || fail "this is $(uname -m), and a Jetson is aarch64: run this on the Jetson"
    [[ -r $root/etc/nv_tegra_release ]] || fail "$root/etc/nv_tegra_release is missing: this is no Jetson with JetPack"
    # "# R35 (release), REVISION: 4.1, …"
    release=$(sed -n 's/^# R\([0-9]*\) (release), REVISION: \([0-9.]*\).*/\1 \2/p' "$root/etc/nv_tegra_release")
    case $release in
        35\ *) say "JetPack 5 (Jetson Linux ${release/ /.})" ;;
        36\ *) say "JetPack 6 (Jetson Linux ${release/ /.})" ;;
        32\ *) fail "Jetson Linux ${release/ /.} is JetPack 4, whose GStreamer (1.14) is too old: JetPack 5 or 6 is needed" ;;
        '') fail "$root/etc/nv_tegra_release does not say which Jetson Linux this is" ;;
        *) fail "Jetson Linux ${release/ /.}: only 35 (JetPack 5) and 36 (JetPack 6) are known here" ;;
    esac
    [[ $dry == yes || -n $root || $EUID == 0 ]] || fail "run this with sudo: it installs packages and a service"
}

packages() {
    local wanted missing=() package
    # watchdog (network cameras) and h264parse are in -bad, progressreport (the service's sign of life) in -good.
    wanted=(gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
        nvidia-l4t-gstreamer python3 python3-pip ca-certificates curl unzip)
    [[ -n $plugin ]] ||
        wanted+=(build-essential pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev)
    for package in "${wanted[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        say "packages: all there"
        return
    fi
    say "packages: ${missing[*]}"
    run apt-get update -qq
    run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Builds as the user who called sudo, so that this user owns the output and Rust's tools.
as_builder() {
    if [[ $EUID == 0 && -n ${SUDO_USER-} && $SUDO_USER != root ]]; then
        run sudo -u "$SUDO_USER" -H "$@"
    else
        run "$@"
    fi
}

# Builds the plugin and the program if none were given.
build() {
    [[ -z $plugin ]] || return 0
    local home=$HOME cargo jobs=() version
    if [[ $EUID == 0 && -n ${SUDO_USER-} ]]; then home=$(getent passwd "$SUDO_USER" | cut -d: -f6); fi
    cargo=$home/.cargo/bin/cargo
    [[ -x $cargo ]] || cargo=$(command -v cargo) || cargo=''
    if [[ -z $cargo ]]; then
        say "Rust: installing it with rustup"
        # shellcheck disable=SC2016
        as_builder sh -c 'curl --proto "=https" --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal'
        cargo=$home/.cargo/bin/cargo
    else
        version=$("$cargo" --version | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
        ((${version:-0} >= oldest_rust)) ||
            fail "$cargo is Rust 1.${version:-?}, and 1.$oldest_rust is needed: rustup update stable"
    fi
    # The linker takes more than 1 GB per job.
    if (($(awk '/^MemTotal/ {print int($2 / 1048576)}' /proc/meminfo) < 6)); then jobs=(--jobs 2); fi
    say "building the plugin and facepipe: this takes long on a Jetson (make cross on a PC is quicker)"
    as_builder env --chdir="$checkout" "$cargo" build --release --locked "${jobs[@]}" \
        -p gst-plugin-facepipe -p facepipe-cli
    plugin=$checkout/target/release/libgstfacepipe.so
    program=$checkout/target/release/facepipe
}

# MODE FILE TARGET: copies if the content differs, by rename, because a running pipeline may have the old file mapped.
place() {
    if cmp -s "$2" "$3"; then return; fi
    say "writing $3"
    run install -D -m "$1" "$2" "$3.new"
    run mv "$3.new" "$3"
}

files() {
    local file name
    place 755 "$plugin" "$lib/gstreamer-1.0/libgstfacepipe.so"
    [[ -z $program ]] || place 755 "$program" "$opt/bin/facepipe"
    for file in "$checkout"/pipelines/*.sh; do place 755 "$file" "$opt/pipelines/$(basename "$file")"; done
    for file in "$checkout"/pipelines/lib/*.sh; do place 644 "$file" "$opt/pipelines/lib/$(basename "$file")"; done
    for file in "$here"/pipelines/*.sh; do
        name=$opt/jetson/pipelines/$(basename "$file")
        if [[ ! -L $file ]]; then
            place 755 "$file" "$name"
        elif [[ $(readlink "$name") != "$(readlink "$file")" ]]; then
            run mkdir -p "$opt/jetson/pipelines"
            run ln -sfn "$(readlink "$file")" "$name"
        fi
    done
    place 755 "$here/watch.py" "$opt/jetson/watch.py"
    place 644 "$here/README.md" "$opt/jetson/README.md"
    place 644 "$here/camera.env.example" "$etc/camera.env.example"
}

# Checks that the plugin loads: if it was built elsewhere, it may need a newer C library.
check_plugin() {
    [[ $dry == no ]] || return 0
    local said
    said=$(GST_REGISTRY=$work/registry.bin GST_PLUGIN_PATH=$lib/gstreamer-1.0 \
        gst-inspect-1.0 "$lib/gstreamer-1.0/libgstfacepipe.so" 2>&1) || true
    grep -q facesink-http <<<"$said" ||
        fail "GStreamer cannot load $lib/gstreamer-1.0/libgstfacepipe.so: $(head -n 3 <<<"$said")"
    say "plugin: GStreamer loads it"
}

runtime() {
    local found=() file folder libraries=() version
    if [[ -z $onnxruntime ]]; then
        if [[ -e $lib/libonnxruntime.so ]]; then
            say "ONNX Runtime: $(basename "$(readlink "$lib/libonnxruntime.so")") is there"
            return
        fi
        [[ -n $program ]] || fail "--onnxruntime is needed: without the program facepipe, nothing can be downloaded"
        say "ONNX Runtime: downloading the one for the CPU; cuda and tensorrt need another (--onnxruntime)"
        run env FACEPIPE_RUNTIME="$work" "$program" models fetch runtime
        folder=$work
    else
        case $onnxruntime in
            *.whl | *.zip) unzip -q "$onnxruntime" -d "$work/runtime"; folder=$work/runtime ;;
            *.tgz | *.tar.gz) mkdir "$work/runtime"; tar -xzf "$onnxruntime" -C "$work/runtime"; folder=$work/runtime ;;
            *.so | *.so.*) folder=$(dirname "$onnxruntime") ;;
            *) fail "--onnxruntime $onnxruntime: expected .so, .so.*, .whl, .zip or .tgz" ;;
        esac
    fi
    if [[ $onnxruntime == *.so || $onnxruntime == *.so.* ]]; then
        found=("$onnxruntime")
    else
        mapfile -t found < <(find "$folder" -type f -name 'libonnxruntime.so*' | sort -V)
    fi
    if [[ $dry == yes && ${#found[@]} == 0 && -z $onnxruntime ]]; then return; fi
    ((${#found[@]})) ||
        fail "$onnxruntime has no libonnxruntime.so: older wheels hold it only as a Python module. Take one built with" \
            "--build_shared_lib (README.md)"
    file=${found[-1]}
    # "libonnxruntime.so.1.17.0"; the doctor checks the version if the name has none.
    version=$(sed -n 's/^libonnxruntime\.so\.1\.\([0-9]*\).*/\1/p' <<<"$(basename "$file")")
    [[ -z $version ]] || ((version >= oldest_runtime)) ||
        fail "$(basename "$file") is too old: 1.$oldest_runtime or later is needed"
    mapfile -t libraries < <(find "$(dirname "$file")" -maxdepth 1 -type f -name 'libonnxruntime_providers_*.so' | sort)
    place 755 "$file" "$lib/$(basename "$file")"
    for folder in "${libraries[@]}"; do
        place 755 "$folder" "$lib/$(basename "$folder")"
    done
    if [[ $(basename "$file") != libonnxruntime.so && $(readlink "$lib/libonnxruntime.so") != "$(basename "$file")" ]]; then
        run ln -sfn "$(basename "$file")" "$lib/libonnxruntime.so"
    fi
    [[ $dry == no ]] || return 0
    local missing
    for file in "${libraries[@]}"; do
        missing=$(LD_LIBRARY_PATH=$lib ldd "$file" 2>/dev/null | awk '/not found/ {print $1}' | paste -sd' ')
        [[ -z $missing ]] ||
            say "ONNX Runtime: $(basename "$file") misses $missing: apt-get install nvidia-jetpack, or take a build for" \
                "this JetPack"
    done
}

detector_models() {
    local file there=() lacking=()
    if [[ -n $models ]]; then
        for file in "${detectors[@]}"; do
            if [[ -f $models/$file ]]; then there+=("$file"); else lacking+=("$file"); fi
        done
        if ((${#lacking[@]})); then
            for file in "${mtcnn[@]}"; do
                [[ -f $models/$file ]] || fail "--models $models has no ${lacking[*]}, and no $file to do without"
                there+=("$file")
            done
            say "--models $models has no ${lacking[*]}: where they are wanted, MTCNN runs, and on the processor alone"
        fi
        for file in "${there[@]}"; do place 644 "$models/$file" "$opt/models/$file"; done
    elif [[ -n $program ]]; then
        run mkdir -p "$opt/models"
        if ! run env FACEPIPE_MODELS="$opt/models" "$program" models fetch detector; then
            say "not all detectors are available; fetching MTCNN, which runs on the CPU only"
            run env FACEPIPE_MODELS="$opt/models" "$program" models fetch mtcnn
        fi
    else
        fail "--models is needed: without the program facepipe, nothing can be downloaded"
    fi
}

# The user for the pipelines may use decoder, GPU and cameras, and owns only the spool and the engines.
account() {
    [[ -d $etc && $(stat -c %a "$etc") == 750 ]] || run install -d -m 750 "$etc"
    if [[ -n $root ]]; then
        say "the user facepipe is not created, because --root is not the running system"
        return
    fi
    local group groups=()
    getent passwd facepipe >/dev/null || run useradd --system --no-create-home --home-dir /var/lib/facepipe \
        --shell /usr/sbin/nologin --user-group facepipe
    for group in video render; do
        getent group "$group" >/dev/null && ! id -nG facepipe 2>/dev/null | grep -qw "$group" && groups+=("$group")
    done
    if ((${#groups[@]})); then run usermod --append --groups "$(IFS=,; echo "${groups[*]}")" facepipe; fi
    # A camera's URL may contain a password: only the group may read it.
    run chgrp -R facepipe "$etc"
}

service() {
    local unit=$root/etc/systemd/system/facepipe@.service
    if cmp -s "$here/facepipe@.service" "$unit"; then
        say "service: unchanged"
        return
    fi
    place 644 "$here/facepipe@.service" "$unit"
    [[ -n $root ]] || run systemctl daemon-reload
}

doctor() {
    [[ -n $program && $dry == no ]] || return 0
    local status=0
    say "facepipe doctor:"
    env GST_PLUGIN_PATH="$lib/gstreamer-1.0" GST_REGISTRY="$work/registry.bin" FACEPIPE_MODELS="$opt/models" \
        ORT_DYLIB_PATH="$lib/libonnxruntime.so" "$opt/bin/facepipe" doctor || status=$?
    ((status == 0)) || fail "the doctor has found a problem (see above); everything is installed"
}

check_device
packages
build
files
check_plugin
runtime
detector_models
account
service
doctor
say "done. A camera: copy $etc/camera.env.example to $etc/<name>.env, fill it in, then systemctl enable --now facepipe@<name>"
