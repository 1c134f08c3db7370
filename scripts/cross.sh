#!/usr/bin/env bash
# cross.sh [build|check]
# Builds the plugin and the program `facepipe` for Jetson (aarch64) into target/jetson/dist, and checks under qemu that they
# run. sysroot.sh describes the libraries that they are linked against. Its GStreamer (1.18) is between those of JetPack 5 and
# 6.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/sysroot.sh
. scripts/sysroot.sh

target=aarch64-unknown-linux-gnu
root=$PWD/.runtime/cross/debian-11-arm64
build=$PWD/target/jetson
dist=$build/dist

say() { printf 'cross: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

build() {
    local file
    scripts/packages.sh cross
    say "Debian 11 for arm64, unpacked in $root"
    sysroot_unpack arm64 "$root" || fail "Debian 11's packages for arm64 are not available (see above)"
    sysroot_rust "$target" || fail "Rust's standard library for $target is not available (see above)"
    say "building for $target"
    (
        sysroot_environment arm64 "$root" "$build"
        # Boards are updated by hand, so the programs must report their commit.
        FACEPIPE_COMMIT=${FACEPIPE_COMMIT:-$(sysroot_commit)}
        export FACEPIPE_COMMIT
        cargo build --locked --release --target "$target" -p gst-plugin-facepipe -p facepipe-cli
    )
    mkdir -p "$dist"
    for file in libgstfacepipe.so facepipe; do
        install -m 755 "$build/$target/release/$file" "$dist/.$file.new"
        mv "$dist/.$file.new" "$dist/$file"
    done
    say "in $dist:" "$(cd "$dist" && ls)"
}

# Runs an arm64 program of the unpacked Debian, or one of ours, with its libraries. The plugin scanner is a separate program,
# which this machine cannot start without qemu, so GStreamer scans in its own process.
emulated() {
    env -u GST_PLUGIN_PATH -u GST_PLUGIN_PATH_1_0 \
        GST_PLUGIN_SYSTEM_PATH_1_0="$dist:$root/usr/lib/aarch64-linux-gnu/gstreamer-1.0" \
        GST_REGISTRY="$build/registry.bin" GST_REGISTRY_FORK=no \
        qemu-aarch64 -L "$root" "$@"
}

# Detects the faces of a photograph with a complete arm64 pipeline.
faces() {
    local picture count
    for picture in models/assets/scenes/multiface.jpg "${FACEPIPE_MIRROR:-/nowhere}/scenes/multiface.jpg" ''; do
        [[ ! -f $picture ]] || break
    done
    local models=${FACEPIPE_MODELS:-$PWD/models}
    if [[ -z $picture || ! -f $models/version-RFB-320.onnx ]]; then
        say "no photograph or no detector is installed (make models), so detection was not tested"
        return
    fi
    # In the plugin's folder, where the plugin looks for it; install.sh takes it, too.
    FACEPIPE_RUNTIME=$dist emulated "$dist/facepipe" models fetch runtime
    rm -rf "$build/faces"
    mkdir "$build/faces"
    FACEPIPE_MODELS=$models emulated "$root/usr/bin/gst-launch-1.0" -q filesrc location="$picture" ! jpegdec ! videoconvert ! \
        'video/x-raw,format=NV12' ! facepipe-facedetect model=rfb-320 ! facepipe-facecrop policy=every ! \
        multifilesink location="$build/faces/%02d.jpg"
    count=$(find "$build/faces" -name '*.jpg' | wc -l)
    # Six people look into the camera.
    ((count == 6)) || fail "arm64: $count faces were found in $picture instead of 6"
    say "arm64: the 6 faces of a photograph are found"
}

check() {
    local file newest element found
    for file in libgstfacepipe.so facepipe; do
        newest=$(sysroot_newest_glibc "$dist/$file") || fail "$dist/$file is missing or not linked to glibc: run scripts/cross.sh build"
        sysroot_is_old_enough "$newest" || fail "$file needs glibc $newest, and JetPack 5 has $SYSROOT_GLIBC"
        say "$file needs glibc $newest or later"
    done
    rm -f "$build/registry.bin"
    for element in facedetect facetrack facecrop facesink-http faceoverlay; do
        found=$(emulated "$root/usr/bin/gst-inspect-1.0" "facepipe-$element") || fail "arm64: facepipe-$element: $found"
        grep -q "Filename *$dist/libgstfacepipe.so" <<<"$found" || fail "arm64: $element is not the plugin's: $found"
    done
    say "GStreamer $(emulated "$root/usr/bin/gst-inspect-1.0" --version | sed -n 's/^GStreamer //p') (arm64) has all elements"
    emulated "$dist/facepipe" --version | sed 's/^/cross: arm64: /'
    faces
    FACEPIPE_CHECKED_PLUGIN=$dist/libgstfacepipe.so cargo test --workspace --locked --test gstreamer_floor
}

case ${1:-all} in
    build) build ;;
    check) check ;;
    all) build && check ;;
    *) fail "unknown argument '$1'; see the head of this file" ;;
esac
