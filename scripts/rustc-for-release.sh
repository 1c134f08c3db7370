#!/usr/bin/env bash
# rustc-for-release.sh RUSTC ARGUMENT…
# Cargo's RUSTC_WRAPPER for what is built for other machines (sysroot.sh says how): adds the flags that hold paths of this
# machine. As RUSTFLAGS they would go into the hashes that Cargo names files by, and some of those names end up in programs;
# so the same sources give the same bytes wherever they lie.
set -euo pipefail
flags=("--remap-path-prefix=$FACEPIPE_RELEASE_CARGO=/cargo" "--remap-path-prefix=$FACEPIPE_RELEASE_SOURCE=/facepipe"
    "--remap-path-prefix=$FACEPIPE_RELEASE_TARGET=/target")
# Build scripts and macros are for this machine, which Cargo then does not name.
if [[ " $* " == *" --target "* ]]; then
    sysroot=$FACEPIPE_RELEASE_SYSROOT triple=$FACEPIPE_RELEASE_TRIPLE
    # Its libraries before those that come with this machine's compiler, which are newer.
    flags+=(-C "linker=$triple-gcc" -C "link-arg=--sysroot=$sysroot" -C "link-arg=-L$sysroot/lib/$triple"
        -C "link-arg=-L$sysroot/usr/lib/$triple")
fi
exec "$@" "${flags[@]}"
