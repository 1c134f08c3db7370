#!/usr/bin/env bash
# rustc-for-release.sh RUSTC ARGUMENT…
# Cargo's RUSTC_WRAPPER for programs that are built for other machines (see sysroot.sh): adds the flags that contain paths of
# this machine. As RUSTFLAGS they would enter the hashes that Cargo uses in file names, and some of those names end up in
# programs. This way the same sources give the same bytes in any folder.
set -euo pipefail
flags=("--remap-path-prefix=$FACEPIPE_RELEASE_CARGO=/cargo" "--remap-path-prefix=$FACEPIPE_RELEASE_SOURCE=/facepipe"
    "--remap-path-prefix=$FACEPIPE_RELEASE_TARGET=/target")
# Build scripts and macros are for this machine: then Cargo passes no --target.
if [[ " $* " == *" --target "* ]]; then
    sysroot=$FACEPIPE_RELEASE_SYSROOT triple=$FACEPIPE_RELEASE_TRIPLE
    # Its libraries before those that come with this machine's compiler, which are newer.
    flags+=(-C "linker=$triple-gcc" -C "link-arg=--sysroot=$sysroot" -C "link-arg=-L$sysroot/lib/$triple"
        -C "link-arg=-L$sysroot/usr/lib/$triple")
fi
exec "$@" "${flags[@]}"
