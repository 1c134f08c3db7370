#!/usr/bin/env bash
# cross.sh [build|check]
# Builds the plugin and the program `facepipe` for Jetson (aarch64) into target/jetson/dist, and looks whether they run,
# under qemu. Debian 11 lends headers and libraries: its glibc is that of Ubuntu 20.04 (2.31), so what is linked against it
# loads on JetPack 5 and on all that came later; its GStreamer (1.18) stands between those of JetPack 5 and 6.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
root=$PWD/.runtime/cross/debian-11-arm64
build=$PWD/target/jetson
dist=$build/dist
glibc=2.31

say() { printf 'cross: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# Debian's arm64 packages, unpacked only: nothing of this machine is touched.
sysroot() {
    [[ ! -e $root/complete ]] || return 0
    say "unpacking Debian 11 for arm64 into $root"
    rm -rf "$root"
    mkdir -p "$(dirname "$root")"
    mmdebstrap --quiet --mode=root --architectures=arm64 --variant=extract \
        --include="libc6-dev,libgstreamer1.0-dev,libgstreamer-plugins-base1.0-dev,gstreamer1.0-tools,\
gstreamer1.0-plugins-base,gstreamer1.0-plugins-good" \
        bullseye "$root" 'deb http://deb.debian.org/debian bullseye main' ||
        fail "Debian 11's packages for arm64 cannot be had (see above)"
    # Links to /… would lead out of the folder.
    local link
    while IFS= read -r -d '' link; do
        ln -sfn --relative "$root$(readlink "$link")" "$link"
    done < <(find "$root" -xtype l -lname '/*' -print0)
    touch "$root/complete"
}

rust_target() {
    [[ -d $(rustc --print target-libdir --target "$target") ]] && return
    command -v rustup >/dev/null || fail "Rust has no standard library for $target, and rustup is not here to get it"
    rustup target add "$target" || fail "rustup cannot get the standard library for $target (see above)"
}

build() {
    scripts/packages.sh cross
    sysroot
    rust_target
    # Debian 11's libraries before those that come with the cross compiler, which are newer.
    local flags="-C link-arg=--sysroot=$root -C link-arg=-L$root/lib/aarch64-linux-gnu"
    flags+=" -C link-arg=-L$root/usr/lib/aarch64-linux-gnu"
    say "building for $target"
    PKG_CONFIG_ALLOW_CROSS=1 \
    PKG_CONFIG_SYSROOT_DIR=$root \
    PKG_CONFIG_LIBDIR=$root/usr/lib/aarch64-linux-gnu/pkgconfig:$root/usr/share/pkgconfig \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
    CFLAGS_aarch64_unknown_linux_gnu=--sysroot=$root \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS=$flags \
        cargo build --locked --release --target "$target" --target-dir "$build" -p gst-plugin-facepipe -p facepipe-cli
    mkdir -p "$dist"
    install -m 755 "$build/$target/release/libgstfacepipe.so" "$build/$target/release/facepipe" "$dist/"
    say "in $dist:" "$(cd "$dist" && ls)"
}

# An arm64 program of the unpacked Debian, or one of ours, with its libraries. The scanner of plugins is a program of its own,
# which this machine cannot start without qemu, so GStreamer is told to look by itself.
emulated() {
    env -u GST_PLUGIN_PATH \
        GST_PLUGIN_SYSTEM_PATH_1_0="$dist:$root/usr/lib/aarch64-linux-gnu/gstreamer-1.0" \
        GST_REGISTRY="$build/registry.bin" GST_REGISTRY_FORK=no \
        qemu-aarch64 -L "$root" "$@"
}

check() {
    local file newest element found
    for file in libgstfacepipe.so facepipe; do
        newest=$(aarch64-linux-gnu-readelf --dyn-syms --wide "$dist/$file" | grep -oP 'GLIBC_\K[0-9.]+' | sort -Vu | tail -n 1)
        [[ $(printf '%s\n' "$newest" "$glibc" | sort -V | tail -n 1) == "$glibc" ]] ||
            fail "$file needs glibc $newest, and JetPack 5 has $glibc"
        say "$file needs glibc $newest or later"
    done
    rm -f "$build/registry.bin"
    for element in facedetect facetrack facecrop facesink-http faceoverlay; do
        found=$(emulated "$root/usr/bin/gst-inspect-1.0" "facepipe-$element") || fail "arm64: facepipe-$element: $found"
        grep -q "Filename *$dist/libgstfacepipe.so" <<<"$found" || fail "arm64: $element is not the plugin's: $found"
    done
    say "GStreamer $(emulated "$root/usr/bin/gst-inspect-1.0" --version | sed -n 's/^GStreamer //p') (arm64) has all elements"
    emulated "$dist/facepipe" --version | sed 's/^/cross: arm64: /'
    FACEPIPE_CHECKED_PLUGIN=$dist/libgstfacepipe.so cargo test --workspace --locked --test gstreamer_floor
}

case ${1:-all} in
    build) build ;;
    check) check ;;
    all) build && check ;;
    *) fail "unknown argument '$1'; see the head of this file" ;;
esac
