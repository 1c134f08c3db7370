#!/usr/bin/env bash
# Sourced by cross.sh and by packaging/build.sh: programs for other machines are linked against Debian 11's headers and
# libraries, whose glibc is that of Ubuntu 20.04 (2.31), so that they load on JetPack 5, on Debian 11 and on all later
# systems. Its GStreamer is 1.18.

# The newest glibc whose symbols a program may need.
SYSROOT_GLIBC=2.31

# sysroot_unpack ARCH FOLDER: Debian 11's packages for amd64 or arm64, unpacked only: this machine is not changed, and no
# program of theirs runs. Their dpkg database goes to var/lib/dpkg (for sysroot_dpkg). The folder is complete or does not exist.
sysroot_unpack() {
    [[ ! -e $2/complete-4 ]] || return 0
    # In another shell: bash ignores errors inside a function whose result the caller tests.
    bash -euo pipefail -c '. "$1"; sysroot_make "$2" "$3"' sysroot "${BASH_SOURCE[0]}" "$@" && return
    rm -rf "$2.new"
    return 1
}

sysroot_make() {
    local architecture=$1 root=$2.new mode=root link file package name
    # Without root the files belong to the user, which is enough.
    ((EUID == 0)) || mode=chrootless
    rm -rf "$root"
    mkdir -p "$(dirname "$root")"
    mmdebstrap --quiet "--mode=$mode" "--architectures=$architecture" --variant=extract --skip=cleanup/apt \
        --include="libc6-dev,libgstreamer1.0-dev,libgstreamer-plugins-base1.0-dev,gstreamer1.0-tools,\
gstreamer1.0-plugins-base,gstreamer1.0-plugins-good,libpq-dev,default-libmysqlclient-dev" \
        bullseye "$root" 'deb http://deb.debian.org/debian bullseye main'
    mkdir -p "$root/var/lib/dpkg/info"
    echo 1 >"$root/var/lib/dpkg/info/format"
    for package in "$root"/var/cache/apt/archives/*.deb; do
        name=$(dpkg-deb --field "$package" Package)
        [[ $(dpkg-deb --field "$package" Multi-Arch) != same ]] || name+=:$architecture
        rm -rf "$root/control"
        dpkg-deb --control "$package" "$root/control"
        for file in symbols shlibs; do
            [[ ! -e $root/control/$file ]] || cp "$root/control/$file" "$root/var/lib/dpkg/info/$name.$file"
        done
        dpkg-deb --fsys-tarfile "$package" | tar --list | sed 's|^\./*|/|; s|/$||; s|^$|/.|' \
            >"$root/var/lib/dpkg/info/$name.list"
        dpkg-deb --field "$package" | sed '/^Package:/a Status: install ok installed'
        echo
    done >"$root/var/lib/dpkg/status"
    rm -rf "$root/control" "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    # Absolute links would lead out of the folder, to this machine's own libraries if those exist.
    find "$root" -type l -lname '/*' -print0 >"$root/links"
    while IFS= read -r -d '' link; do
        ln -sfn --relative "$root$(readlink "$link")" "$link"
    done <"$root/links"
    rm "$root/links"
    touch "$root/complete-4"
    rm -rf "$2"
    mv "$root" "$2"
}

# sysroot_triple ARCH: prints Debian's name of it for compilers and folders.
sysroot_triple() {
    case $1 in
        amd64) echo x86_64-linux-gnu ;;
        arm64) echo aarch64-linux-gnu ;;
        *) return 1 ;;
    esac
}

# sysroot_target ARCH: prints Rust's name of it.
sysroot_target() {
    case $1 in
        amd64) echo x86_64-unknown-linux-gnu ;;
        arm64) echo aarch64-unknown-linux-gnu ;;
        *) return 1 ;;
    esac
}

# sysroot_environment ARCH ROOT TARGET_DIR: makes Cargo build for that architecture against that folder, with output that does
# not depend on the folders of this machine.
sysroot_environment() {
    local triple variable cargo=${CARGO_HOME:-$HOME/.cargo}
    triple=$(sysroot_triple "$1")
    variable=$(sysroot_target "$1")
    variable=${variable//-/_}
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CFLAGS
    export RUSTC_WRAPPER=$PWD/scripts/rustc-for-release.sh \
        FACEPIPE_RELEASE_CARGO=$cargo FACEPIPE_RELEASE_SOURCE=$PWD FACEPIPE_RELEASE_TARGET=$3 \
        FACEPIPE_RELEASE_SYSROOT=$2 FACEPIPE_RELEASE_TRIPLE=$triple \
        CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=$3 \
        PKG_CONFIG_ALLOW_CROSS=1 \
        PKG_CONFIG_SYSROOT_DIR=$2 \
        "PKG_CONFIG_LIBDIR=$2/usr/lib/$triple/pkgconfig:$2/usr/share/pkgconfig" \
        "PQ_LIB_DIR=$2/usr/lib/$triple" \
        "CC_$variable=$triple-gcc" \
        "CFLAGS_$variable=--sysroot=$2 -ffile-prefix-map=$cargo=/cargo -ffile-prefix-map=$3=/target"
}

# sysroot_rust TARGET: installs Rust's standard library for it.
sysroot_rust() {
    [[ -d $(rustc --print target-libdir --target "$1") ]] && return
    command -v rustup >/dev/null || { echo "Rust has no standard library for $1, and rustup is not installed" >&2; return 1; }
    rustup target add "$1"
}

# sysroot_commit: prints the commit of this checkout, with a + if there are uncommitted changes; nothing outside git.
sysroot_commit() {
    local commit
    commit=$(git rev-parse --short=12 HEAD 2>/dev/null) || return 0
    [[ -z $(git status --porcelain) ]] || commit+=+
    echo "$commit"
}

# sysroot_newest_glibc FILE: prints the newest version of glibc whose symbols a program or library of any architecture needs.
sysroot_newest_glibc() {
    readelf --version-info --wide "$1" | grep -oP 'Name: GLIBC_\K[0-9.]+' | sort -Vu | tail -n 1
}

# sysroot_is_old_enough VERSION: whether a system with SYSROOT_GLIBC has it.
sysroot_is_old_enough() {
    [[ $(printf '%s\n' "$1" "$SYSROOT_GLIBC" | sort -V | tail -n 1) == "$SYSROOT_GLIBC" ]]
}

# sysroot_dpkg ROOT FOLDER: makes a dpkg database with the paths of this machine, for dpkg-shlibdeps --admindir.
sysroot_dpkg() {
    rm -rf "$2"
    cp -r "$1/var/lib/dpkg" "$2"
    sed -i "s|^|$1|" "$2"/info/*.list
}
