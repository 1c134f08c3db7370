#!/usr/bin/env bash
# build.sh [--arch amd64|arm64]… [--version VERSION] [--out FOLDER] [--reuse]
# Builds what users install, for both architectures unless told otherwise, into target/packages/dist:
#
#   gstreamer1.0-facepipe_*.deb   the elements and ONNX Runtime
#   facepipe-backend_*.deb        the server and its service
#   facepipe_*.deb                the program for terminals, its manual and completions
#   facepipe-*.tar.gz             the same for systems without dpkg, to be unpacked anywhere
#   facepipe-*.cdx.json           what is in them (SBOM, CycloneDX)
#   SHA256SUMS
#
# They ask for glibc 2.31 or later (scripts/sysroot.sh). The same commit gives the same bytes, whenever and wherever it is
# built with the same Rust and C compilers. Packages need lintian's approval. A failed build changes nothing in FOLDER.
#
#   --version V   what packages are called instead of what Cargo.toml says (a trial of upgrades)
#   --out FOLDER  where they go, beside those of other versions; SHA256SUMS lists the last build's
#   --reuse       takes the programs that lie in the target folder, whatever they were built from
#
# CARGO_TARGET_DIR moves compilation elsewhere; SOURCE_DATE_EPOCH and FACEPIPE_COMMIT are the commit's own unless set.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/sysroot.sh
. scripts/sysroot.sh

usage() { sed -n '2,20s/^# \{0,1\}//p' "$0"; }
say() { printf 'packages: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

architectures=() version='' out=target/packages/dist reuse=no
while (($#)); do
    case $1 in
        --arch) architectures+=("${2:?--arch needs amd64 or arm64}"); shift ;;
        --version) version=${2:?--version needs one}; shift ;;
        --out) out=${2:?--out needs a folder}; shift ;;
        --reuse) reuse=yes ;;
        -h | --help) usage; exit ;;
        *) usage >&2; exit 2 ;;
    esac
    shift
done
((${#architectures[@]})) || architectures=(amd64 arm64)
for architecture in "${architectures[@]}"; do
    sysroot_triple "$architecture" >/dev/null || fail "--arch is amd64 or arm64, and not $architecture"
done
for tool in cargo mmdebstrap dpkg-shlibdeps readelf lintian; do
    command -v "$tool" >/dev/null || fail "$tool is missing: run scripts/packages.sh packages"
done

of_cargo=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
FACEPIPE_COMMIT=${FACEPIPE_COMMIT:-$(sysroot_commit)}
[[ -n $FACEPIPE_COMMIT ]] || fail "outside git, FACEPIPE_COMMIT has to name the commit"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || true)}
[[ $SOURCE_DATE_EPOCH =~ ^[0-9]+$ ]] || fail "SOURCE_DATE_EPOCH has to be the commit's time in seconds, and is '$SOURCE_DATE_EPOCH'"
export FACEPIPE_COMMIT SOURCE_DATE_EPOCH LC_ALL=C.UTF-8 TZ=UTC
if [[ -z $version ]]; then
    version=$of_cargo
    # Between releases: earlier than the one that comes, later than that of yesterday.
    [[ $(git describe --tags --exact-match --match "v$of_cargo" 2>/dev/null) == "v$of_cargo" && $FACEPIPE_COMMIT != *+ ]] ||
        version+="~$(date --utc --date "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M).${FACEPIPE_COMMIT/+/.modified}"
fi
export FACEPIPE_PACKAGE_VERSION=$version
maintainer='facepipe contributors <facepipe@users.noreply.github.com>'
crates=(gst-plugin-facepipe facepipe-cli facepipe-backend)

mkdir -p "$out"
out=$(cd "$out" && pwd)
new=$out/.unfinished
target_dir=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target/packages/build}")
work=$PWD/target/packages/stage
case $(dpkg --print-architecture) in
    amd64 | arm64) host=$(dpkg --print-architecture) ;;
    *) fail "packages are built on amd64 or arm64" ;;
esac

# check_glibc FILE…: fails if one of them needs a later glibc than promised.
check_glibc() {
    local file newest
    for file; do
        newest=$(sysroot_newest_glibc "$file") || fail "$file is missing or not linked to glibc"
        sysroot_is_old_enough "$newest" || fail "$file needs glibc $newest, and $SYSROOT_GLIBC is promised"
        say "$(basename "$file") needs glibc $newest or later"
    done
}

# What is linked against Debian 11, and no later symbol of glibc than its own.
compile() {
    local architecture=$1 target root
    target=$(sysroot_target "$architecture")
    root=$PWD/.runtime/cross/debian-11-$architecture
    say "$architecture: Debian 11's libraries"
    sysroot_unpack "$architecture" "$root" || fail "Debian 11's packages for $architecture cannot be had (see above)"
    if [[ $reuse == no ]]; then
        sysroot_rust "$target" || fail "Rust's standard library for $target cannot be had (see above)"
        say "$architecture: compiling"
        (
            sysroot_environment "$architecture" "$root" "$target_dir"
            cargo build --locked --profile dist --target "$target" "${crates[@]/#/--package=}"
        )
    fi
    check_glibc "$target_dir/$target/dist"/{facepipe,facepipe-backend,libgstfacepipe.so}
}

# A program for any of the two, on this machine.
run() {
    local architecture=$1
    shift
    if [[ $architecture == "$host" ]]; then
        "$@"
    else
        qemu-"${emulator[$architecture]}" -L "$PWD/.runtime/cross/debian-11-$architecture" "$@"
    fi
}
declare -A emulator=([amd64]=x86_64 [arm64]=aarch64)

# A file without what only debuggers read, as Debian's packages have it.
stripped() {
    "$triple-strip" --strip-unneeded --remove-section=.comment --remove-section=.note -o "$2" "$1"
    chmod "$3" "$2"
}

compressed() {
    gzip -9n <"$1" >"$2"
}

# Everything that lies in a prefix: the contents of the tarball, and, below /usr, of the packages.
prefix() {
    local prefix=$1 page
    mkdir -p "$prefix"/{bin,lib/facepipe,lib/gstreamer-1.0,share/doc/facepipe}
    stripped "$built/facepipe" "$prefix/bin/facepipe" 755
    stripped "$built/facepipe-backend" "$prefix/bin/facepipe-backend" 755
    stripped "$built/libgstfacepipe.so" "$prefix/lib/gstreamer-1.0/libgstfacepipe.so" 644
    # As its publisher built it, or its hash would not be that of the manifest.
    install -m 644 "$runtime/$library" "$prefix/lib/facepipe/"
    mkdir -p "$prefix/share/doc/facepipe/onnxruntime"
    install -m 644 "$runtime/LICENSE" "$runtime/ThirdPartyNotices.txt" "$prefix/share/doc/facepipe/onnxruntime/"
    mkdir -p "$prefix"/share/{man/man1,man/man8,bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
    run "$architecture" "$built/facepipe" man "$work/man" >/dev/null
    for page in "$work"/man/*.1; do
        compressed "$page" "$prefix/share/man/man1/$(basename "$page").gz"
    done
    compressed packaging/facepipe-backend.8 "$prefix/share/man/man8/facepipe-backend.8.gz"
    run "$architecture" "$built/facepipe" completions bash >"$prefix/share/bash-completion/completions/facepipe"
    run "$architecture" "$built/facepipe" completions zsh >"$prefix/share/zsh/vendor-completions/_facepipe"
    run "$architecture" "$built/facepipe" completions fish >"$prefix/share/fish/vendor_completions.d/facepipe.fish"
    install -m 644 LICENSE-APACHE LICENSE-MIT CHANGELOG.md "$prefix/share/doc/facepipe/"
    packaging/materials.py licences "$target" "${crates[@]}" >"$work/third-party-licences.txt"
    compressed "$work/third-party-licences.txt" "$prefix/share/doc/facepipe/third-party-licences.txt.gz"
    cp -r pipelines "$prefix/share/doc/facepipe/"
    mkdir -p "$prefix/share/doc/facepipe/nginx" "$prefix/share/doc/facepipe/prometheus"
    install -m 644 deploy/nginx/virtual-machine.conf "$prefix/share/doc/facepipe/nginx/"
    install -m 644 deploy/prometheus/rules/* deploy/prometheus/prometheus.yml "$prefix/share/doc/facepipe/prometheus/"
    # The server has it at /docs/guide.
    [[ ! -d $guide ]] || { mkdir -p "$prefix/share/facepipe" && cp -r "$guide" "$prefix/share/facepipe/guide"; }
}

# package NAME: a folder of files becomes a package, after dpkg-shlibdeps has said which libraries it needs.
package() {
    local name=$1 folder=$work/$1 needs size script doc=$work/$1/usr/share/doc/$1
    mkdir -p "$folder/DEBIAN" "$doc"
    cp packaging/debian/copyright "$doc/copyright"
    if [[ $name == gstreamer1.0-facepipe ]]; then
        cat packaging/debian/copyright.onnxruntime >>"$doc/copyright"
    fi
    cp "$tree/share/doc/facepipe/third-party-licences.txt.gz" "$doc/"
    compressed CHANGELOG.md "$doc/changelog.gz"
    printf 'facepipe (%s-1) stable; urgency=medium\n\n  * See changelog.gz beside this file.\n\n -- %s  %s\n' \
        "$version" "$maintainer" "$(date --utc --date "@$SOURCE_DATE_EPOCH" -R)" >"$work/changelog.Debian"
    compressed "$work/changelog.Debian" "$doc/changelog.Debian.gz"
    for script in preinst postinst prerm postrm; do
        [[ -e packaging/debian/$name/$script ]] || continue
        packaging/maintainer-script.sh "packaging/debian/$name/$script" >"$folder/DEBIAN/$script"
        chmod 755 "$folder/DEBIAN/$script"
    done
    [[ ! -e packaging/debian/$name/conffiles ]] || cp "packaging/debian/$name/conffiles" "$folder/DEBIAN/"
    if [[ -e packaging/debian/$name/lintian-overrides ]]; then
        install -D -m 644 "packaging/debian/$name/lintian-overrides" "$folder/usr/share/lintian/overrides/$name"
    fi
    # It wants a source package around it.
    mkdir -p "$work/source/debian"
    printf 'Source: facepipe\n\nPackage: %s\nArchitecture: any\n' "$name" >"$work/source/debian/control"
    needs=$(cd "$work/source" && find "$folder/usr" -type f \( -path '*/usr/bin/*' -o -name '*.so*' \) -print0 | sort -z |
        DEB_HOST_ARCH=$architecture xargs -0 dpkg-shlibdeps -O -xlibgcc1 --ignore-missing-info \
            --admindir="$work/dpkg" "-l$root/usr/lib/$triple" "-l$root/lib/$triple" 2>"$work/shlibdeps.log") ||
        { cat "$work/shlibdeps.log" >&2; fail "$name: dpkg-shlibdeps does not know what it needs"; }
    needs=${needs#shlibs:Depends=}
    size=$(find "$folder" -path "$folder/DEBIAN" -prune -o -printf '%y %s\n' |
        awk '{ sum += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print sum }')
    packaging/control.sh "packaging/debian/$name" "$version-1" "$architecture" "$needs" "$size" >"$folder/DEBIAN/control"
    (cd "$folder" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    chmod -R u+rwX,go+rX,go-w "$folder"
    find "$folder" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
    # One thread: with several, the bytes depend on how many there were.
    DPKG_DEB_THREADS_MAX=1 dpkg-deb --root-owner-group -Zxz --build "$folder" "$new/${name}_$version-1_$architecture.deb" >/dev/null
    say "${name}_$version-1_$architecture.deb"
}

# The three packages, out of the tree.
debian() {
    local of
    of=$work/gstreamer1.0-facepipe
    mkdir -p "$of/usr/lib/$triple/gstreamer-1.0" "$of/usr/share/doc/gstreamer1.0-facepipe/examples"
    cp "$tree/lib/gstreamer-1.0/libgstfacepipe.so" "$of/usr/lib/$triple/gstreamer-1.0/"
    cp -r "$tree/lib/facepipe" "$of/usr/lib/"
    cp -r "$tree/share/doc/facepipe/onnxruntime" "$of/usr/share/doc/gstreamer1.0-facepipe/"
    compressed "$tree/share/doc/facepipe/onnxruntime/ThirdPartyNotices.txt" \
        "$of/usr/share/doc/gstreamer1.0-facepipe/onnxruntime/ThirdPartyNotices.txt.gz"
    rm "$of/usr/share/doc/gstreamer1.0-facepipe/onnxruntime/ThirdPartyNotices.txt" \
        "$of/usr/share/doc/gstreamer1.0-facepipe/onnxruntime/LICENSE"
    cp -r pipelines "$of/usr/share/doc/gstreamer1.0-facepipe/examples/"
    package gstreamer1.0-facepipe

    of=$work/facepipe-backend
    mkdir -p "$of/usr/bin" "$of/usr/share/man/man8" "$of/usr/share/doc/facepipe-backend/examples"
    cp "$tree/bin/facepipe-backend" "$of/usr/bin/"
    cp "$tree/share/man/man8/facepipe-backend.8.gz" "$of/usr/share/man/man8/"
    cp -r "$tree"/share/doc/facepipe/{nginx,prometheus} "$of/usr/share/doc/facepipe-backend/examples/"
    [[ ! -d $guide ]] || { mkdir -p "$of/usr/share/facepipe" && cp -r "$guide" "$of/usr/share/facepipe/guide"; }
    mkdir -p "$of/usr/lib/systemd/system" "$of/etc/facepipe"
    packaging/unit.sh >"$of/usr/lib/systemd/system/facepipe-backend.service"
    cp deploy/systemd/backend.env.example "$of/etc/facepipe/backend.env"
    package facepipe-backend

    of=$work/facepipe
    mkdir -p "$of/usr/bin" "$of/usr/share/man"
    cp "$tree/bin/facepipe" "$of/usr/bin/"
    cp -r "$tree/share/man/man1" "$of/usr/share/man/"
    cp -r "$tree"/share/{bash-completion,zsh,fish} "$of/usr/share/"
    package facepipe
}

tarball() {
    local name=facepipe-$version-$target
    mkdir -p "$tree/share/facepipe/models" "$tree/share/doc/facepipe/systemd"
    cp packaging/README.tarball "$tree/README.md"
    cp deploy/systemd/* "$tree/share/doc/facepipe/systemd/"
    chmod -R u+rwX,go+rX,go-w "$tree"
    tar --create --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
        --transform="s|^\.|$name|" --directory "$tree" . | gzip -9n >"$new/$name.tar.gz"
    say "$name.tar.gz"
}

unset GST_PLUGIN_PATH GST_PLUGIN_PATH_1_0
rm -rf "$work" "$new"
mkdir -p "$work" "$new"
# An early failure leaves no empty folder.
trap 'rmdir "$new" 2>/dev/null || true' EXIT
for architecture in "${architectures[@]}"; do
    compile "$architecture"
done
# The pages of elements and programs come from those of this machine.
guide=$PWD/target/packages/guide
rm -rf "$guide"
if [[ " ${architectures[*]} " == *" $host "* ]]; then
    say "guide"
    scripts/guide.sh "$target_dir/$(sysroot_target "$host")/dist" "$guide" >"$work/guide.log" ||
        { tail "$work/guide.log" >&2; fail "the guide"; }
else
    say "without the guide: programs of $host write it (--arch $host --arch ${architectures[0]})"
fi
for architecture in "${architectures[@]}"; do
    target=$(sysroot_target "$architecture") triple=$(sysroot_triple "$architecture")
    root=$PWD/.runtime/cross/debian-11-$architecture
    built=$target_dir/$target/dist
    rm -rf "$work"
    tree=$work/tree
    mkdir -p "$work"
    runtime=$PWD/.runtime/onnxruntime-${triple%%-*}
    library=$(packaging/materials.py runtime "${triple%%-*}" "$runtime")
    check_glibc "$runtime/$library"
    prefix "$tree"
    sysroot_dpkg "$root" "$work/dpkg"
    debian
    tarball
    packaging/materials.py sbom "$target" "${crates[@]}" >"$new/facepipe-$version-$target.cdx.json"
done
lintian --fail-on error --tag-display-limit 0 --allow-root "$new"/*.deb ||
    fail "lintian found errors (see above); the packages are in $new"
(cd "$new" && sha256sum -- *_"$version-1"_*.deb facepipe-"$version"-*.tar.gz facepipe-"$version"-*.cdx.json) >"$work/SHA256SUMS"
mv "$new"/* "$out/"
cp "$work/SHA256SUMS" "$out/.SHA256SUMS"
mv "$out/.SHA256SUMS" "$out/SHA256SUMS"
say "in $out:"
(cd "$out" && while read -r _ file; do stat --printf '%12s  %n\n' "$file"; done <SHA256SUMS)
