#!/usr/bin/env bash
# prove.sh [--suite bookworm|trixie]… [--arm64] [--packages FOLDER]
# Installs the packages of packaging/build.sh as users do, in chroots of Debian 12 and 13 made by debootstrap: an earlier version
# by apt, weights by `facepipe models fetch`, gst-inspect-1.0, the faces of a video, the service by its own unit's user,
# environment and command line, two people enrolled and one recognised; then apt upgrades, and settings, tokens and people are still
# there; then remove and purge. The earlier version is made of the same programs by build.sh --version. With --arm64, the
# arm64 packages are unpacked and run under qemu as far as that goes: the plugin loads and finds the faces of a photograph; so does
# the tarball of this machine, from a folder of its own, without anything installed.
#
# FACEPIPE_MIRROR names a folder with weights, photographs and a video. Needs root (mounts of its own: none stays behind),
# debootstrap and a network; takes minutes, so `make test` leaves it out.
# shellcheck disable=SC2016 # dpkg-query's own variables
set -euo pipefail
cd "$(dirname "$0")/.."
[[ ${1:-} != -h && ${1:-} != --help ]] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit; }
((EUID == 0)) || { echo "prove: run this as root: it makes file systems" >&2; exit 1; }
if [[ -z ${FACEPIPE_PROVING:-} ]]; then
    export FACEPIPE_PROVING=yes
    exec unshare --mount --propagation private --fork --pid --mount-proc --kill-child bash "$0" "$@"
fi
# shellcheck source=scripts/sysroot.sh
. scripts/sysroot.sh

say() { printf 'prove: %s\n' "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

suites=() arm64=no packages=target/packages/dist
while (($#)); do
    case $1 in
        --suite) suites+=("${2:?--suite needs bookworm or trixie}"); shift ;;
        --arm64) arm64=yes ;;
        --packages) packages=${2:?--packages needs a folder}; shift ;;
        *) echo "prove: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
    shift
done
if ((${#suites[@]} == 0)) && [[ $arm64 == no ]]; then
    suites=(bookworm trixie) arm64=yes
fi
[[ -d ${FACEPIPE_MIRROR:-} ]] || fail "FACEPIPE_MIRROR has to name the folder of weights, photographs and a video"
place=$PWD/target/prove
mkdir -p "$place"

# built PATTERN: prints the path of the one file of the last build that matches.
built() {
    local found=() file
    while read -r _ file; do
        # shellcheck disable=SC2053 # a pattern
        [[ $file != $1 ]] || found+=("$file")
    done <"$packages/SHA256SUMS"
    ((${#found[@]} == 1)) || fail "$packages/SHA256SUMS names ${#found[@]} files that match $1, not 1: run packaging/build.sh"
    realpath "$packages/${found[0]}"
}

# says NAME TEXT: prints TEXT, the version that a program or element reports, if it names the packages' commit.
says() {
    [[ $2 == *"$commit"* ]] || fail "$1 does not report commit $commit but: $2"
    echo "$2"
}

# A minimal Debian, made once.
debian() {
    local base=$place/$1
    if [[ ! -e $base/complete ]]; then
        say "$1: made by debootstrap, once"
        rm -rf "$base"
        debootstrap --variant=minbase "$1" "$base" http://deb.debian.org/debian >"$place/debootstrap-$1.log" ||
            fail "debootstrap: see $place/debootstrap-$1.log"
        touch "$base/complete"
    fi
}

# inside COMMAND…: as root in the chroot, with nothing of this machine's environment.
inside() {
    # In a process of its own where that is wanted, so that signals reach the program itself.
    ${replace:+exec} chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        GST_REGISTRY=/tmp/registry.bin "$@"
}

# The same as somebody who is nobody special.
somebody() {
    inside setpriv --reuid=1234 --regid=1234 --clear-groups env HOME=/tmp GST_REGISTRY=/tmp/registry-1234.bin "$@"
}

# The service, as the unit says it: user, environment, file of settings and command; ready when it says so.
serve() {
    local unit=$root/usr/lib/systemd/system/facepipe-backend.service line user command environment=()
    while IFS= read -r line; do
        environment+=("${line//%S/\/var\/lib}")
    done < <(sed -n 's/^Environment=//p' "$unit")
    line=$(sed -n 's/^EnvironmentFile=//p' "$unit")
    while IFS= read -r line; do
        environment+=("$line")
    done < <(grep -v '^#\|^$' "$root$line")
    user=$(sed -n 's/^User=//p' "$unit")
    command=$(sed -n 's/^ExecStart=//p' "$unit")
    [[ -x $root${command%% *} ]] || fail "the unit starts $command, which is not there"
    replace=yes inside setpriv --reuid="$user" --regid="$user" --init-groups --no-new-privs env "${environment[@]}" \
        sh -c "umask $(sed -n 's/^UMask=//p' "$unit"); exec $command" >"$root/tmp/server.log" 2>&1 &
    server=$!
    local waited=0
    until inside curl -sf -o /dev/null "$url/readyz"; do
        if ! kill -0 "$server" 2>/dev/null || ((++waited > 600)); then
            cat "$root/tmp/server.log" >&2
            fail "the server does not get ready"
        fi
        sleep 0.2
    done
}

stop() {
    kill -TERM "$server"
    wait "$server" || { cat "$root/tmp/server.log" >&2; fail "SIGTERM did not end the server in an orderly way"; }
}

# Who the server says is on a photograph on which it was not trained.
recognised() {
    inside curl -sS --fail-with-body -H "Authorization: Bearer $camera" -F "image=@/mirror/lfw10/Tony_Blair/Tony_Blair_0005.jpg" \
        "$url/face-recognition/get-results" | python3 -c 'import json, sys
face = json.load(sys.stdin)["faces"][0]
print(face["decision"], face["top_prediction"]["label"])'
}

prove() {
    local suite=$1 inspected found old new name file before after port line said=()
    root=$place/root-$suite
    debian "$suite"
    mkdir -p "$root"
    # In memory: many files come and go.
    mount -t tmpfs -o mode=0755,size=4g tmpfs "$root"
    cp --archive "$place/$suite/." "$root/"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    mkdir "$root/mirror" "$root/new" "$root/old"
    mount --bind -o ro "$FACEPIPE_MIRROR" "$root/mirror"
    # Downloads of a proof before it.
    mkdir -p "$place/archives-$suite"
    mount --bind "$place/archives-$suite" "$root/var/cache/apt/archives"
    new=() old=()
    for name in gstreamer1.0-facepipe facepipe-backend facepipe; do
        file=$(built "${name}_*_amd64.deb")
        cp "$file" "$root/new/"
        cp "$place/earlier/${name}_0.0.1-1_amd64.deb" "$root/old/"
        new+=("/new/$(basename "$file")") old+=("/old/${name}_0.0.1-1_amd64.deb")
    done
    inside apt-get update -qq
    for name in $(dpkg-deb --field "$root${new[0]}" Recommends | tr -d ,) \
        $(dpkg-deb --field "$root${new[1]}" Recommends Suggests | sed 's/^[A-Z][a-z]*: //' | tr -d ,); do
        [[ $name == facepipe* ]] || inside apt-cache show "$name" >/dev/null || fail "$suite has no $name, which is recommended"
    done
    say "$suite: apt installs"
    inside apt-get install -y -qq --no-install-recommends curl gstreamer1.0-tools gstreamer1.0-plugins-base \
        gstreamer1.0-plugins-good gstreamer1.0-libav "${old[@]}" >"$root/tmp/apt.log" 2>&1 ||
        { tail -n 20 "$root/tmp/apt.log" >&2; fail "apt cannot install"; }
    grep -q 'facepipe models fetch' "$root/tmp/apt.log" || fail "nothing says how weights are had"
    [[ -d $root/usr/local/share/facepipe/models ]] || fail "there is no folder for weights"
    [[ $(inside stat -c '%U:%G %a' /etc/facepipe/tokens /etc/facepipe/backend.toml /var/lib/facepipe | tr '\n' ,) == \
        'root:facepipe 640,root:facepipe 640,facepipe:facepipe 700,' ]] || fail "secrets can be read by others"

    (cd "$root/tmp" && inside env FACEPIPE_MIRROR=/mirror facepipe models fetch detector mtcnn mobilefacenet runtime) \
        >"$root/tmp/fetch.log" || { cat "$root/tmp/fetch.log" >&2; fail "models fetch"; }
    grep -q '^onnxruntime *already there' "$root/tmp/fetch.log" || fail "the package's ONNX Runtime is not found: $(<"$root/tmp/fetch.log")"
    [[ -f $root/usr/local/share/facepipe/models/version-RFB-320.onnx ]] || fail "weights are not where they belong"

    inspected=$(somebody gst-inspect-1.0 facedetect) || fail "gst-inspect-1.0 facedetect: $inspected"
    grep -q 'Filename *.*/gstreamer-1.0/libgstfacepipe.so' <<<"$inspected" || fail "facedetect is another's: $inspected"
    for name in facepipe facepipe-backend; do
        said+=("$(says "$name" "$(inside "$name" --version)")")
    done
    said+=("facedetect $(says facedetect "$(grep -m 1 -oP '^ *Version *\K.*' <<<"$inspected")")")
    printf -v line '%s, ' "${said[@]}"
    say "$suite: ${line}GStreamer $(inside gst-inspect-1.0 --version | sed -n 's/^GStreamer //p')"
    somebody mkdir /tmp/faces
    somebody gst-launch-1.0 -q filesrc location=/mirror/videos/street-1080p.mp4 ! decodebin ! identity eos-after=60 ! facedetect ! \
        facetrack ! facecrop ! multifilesink location=/tmp/faces/%05d.jpg || fail "the pipeline of a video"
    found=$(find "$root/tmp/faces" -name '*.jpg' | wc -l)
    ((found)) || fail "no face was found in a video"
    say "$suite: $found faces of a video's first 60 frames"

    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    # The administrator's settings, which an upgrade must keep.
    printf 'FACEPIPE_LISTEN=127.0.0.1:%s\nFACEPIPE_METRICS_LISTEN=off\nFACEPIPE_DETECTIONS_MAX_AGE_DAYS=30\n' "$port" \
        >>"$root/etc/facepipe/backend.env"
    camera=$(awk '$1 == "camera" { print $2 }' "$root/etc/facepipe/tokens")
    serve
    inside curl -s -o /dev/null -w '%{http_code}' "$url/dataset" | grep -q 401 || fail "it answers those without a token"
    inside curl -sfL -o /tmp/guide.html "$url/docs/guide" || fail "it has no guide at /docs/guide"
    grep -qi '<html' "$root/tmp/guide.html" || fail "/docs/guide is not an HTML page"
    mkdir "$root/tmp/staff"
    for name in Tony_Blair Hugo_Chavez; do
        mkdir "$root/tmp/staff/$name"
        cp "$FACEPIPE_MIRROR/lfw10/$name/${name}"_000[1-3].jpg "$root/tmp/staff/$name/"
    done
    awk '$1 == "admin" { print $2 }' "$root/etc/facepipe/tokens" >"$root/tmp/token"
    inside facepipe enroll tree /tmp/staff --train --server "$url" --token-file /tmp/token >"$root/tmp/enroll.log" 2>&1 ||
        { cat "$root/tmp/enroll.log" >&2; fail "enrolling"; }
    [[ $(recognised) == 'known Tony_Blair' ]] || fail "who was enrolled is not recognised: $(recognised)"
    say "$suite: the unit's command line serves; two people enrolled, one recognised on another photograph"
    stop

    # As earlier versions left them, which read the published files.
    rm "$root"/usr/local/share/facepipe/models/*.safetensors
    before=$(cd "$root" && sha256sum etc/facepipe/* && find var/lib/facepipe -type f -printf '%P\n' | sort)
    inside apt-get install -y -qq --no-install-recommends "${new[@]}" >"$root/tmp/apt.log" 2>&1 ||
        { tail -n 20 "$root/tmp/apt.log" >&2; fail "apt cannot upgrade"; }
    after=$(cd "$root" && sha256sum etc/facepipe/* && find var/lib/facepipe -type f -printf '%P\n' | sort)
    [[ $before == "$after" ]] || fail "the upgrade changed: $(diff <(echo "$before") <(echo "$after"))"
    [[ $(inside dpkg-query -W -f '${Version}' facepipe-backend) == "$(dpkg-deb --field "$root${new[1]}" Version)" ]] ||
        fail "the upgrade upgraded nothing"
    serve
    [[ $(recognised) == 'known Tony_Blair' ]] || fail "who was enrolled before the upgrade is not recognised: $(recognised)"
    stop
    say "$suite: upgraded; settings, tokens and people are still there, weights are converted"

    inside apt-get remove -y -qq facepipe facepipe-backend gstreamer1.0-facepipe >"$root/tmp/apt.log" 2>&1 || fail "remove"
    for name in usr/bin/facepipe usr/bin/facepipe-backend usr/lib/facepipe usr/lib/systemd/system/facepipe-backend.service; do
        [[ ! -e $root/$name ]] || fail "remove leaves $name"
    done
    for name in etc/facepipe/backend.env etc/facepipe/tokens var/lib/facepipe/facepipe.db \
        usr/local/share/facepipe/models/mobilefacenet.onnx; do
        [[ -e $root/$name ]] || fail "remove takes $name"
    done
    # Of the others nothing is left that could be purged.
    inside apt-get purge -y -qq facepipe-backend >"$root/tmp/apt.log" 2>&1 || { cat "$root/tmp/apt.log" >&2; fail "purge"; }
    for name in etc/facepipe var/lib/facepipe; do
        [[ ! -e $root/$name ]] || fail "purge leaves $name: $(find "$root/$name")"
    done
    found=$(inside dpkg-query -W -f '${binary:Package} ${db:Status-Abbrev}\n' '*facepipe*' 2>/dev/null | grep -v 'un ' || true)
    [[ -z $found ]] || fail "purge leaves $found"
    say "$suite: removed (settings and people stay) and purged (they are gone)"
    umount --recursive --lazy "$root"
    rmdir "$root"
}

# Faces of a photograph, with what lies below FOLDER; the other arguments run a program.
faces() {
    local folder=$1 count
    shift
    rm -rf "$place/faces"
    mkdir "$place/faces"
    FACEPIPE_MODELS=$FACEPIPE_MIRROR/models GST_REGISTRY=$place/registry.bin GST_REGISTRY_FORK=no "$@" -q \
        filesrc location="$FACEPIPE_MIRROR/scenes/multiface.jpg" ! jpegdec ! videoconvert ! 'video/x-raw,format=NV12' ! \
        facepipe-facedetect model=rfb-320 ! facepipe-facecrop policy=every ! multifilesink location="$place/faces/%02d.jpg" ||
        fail "$folder: the pipeline"
    count=$(find "$place/faces" -name '*.jpg' | wc -l)
    # Six people look into the camera.
    ((count == 6)) || fail "$folder: $count faces were found, and 6 are there"
    rm -rf "$place/faces" "$place/registry.bin"
}

prove_arm64() {
    local name file element said=() line folder=$place/arm64 sysroot=$PWD/.runtime/cross/debian-11-arm64 emulate plugins
    [[ -e $sysroot/usr/bin/gst-launch-1.0 ]] || fail "$sysroot is missing: packaging/build.sh --arch arm64 makes it"
    rm -rf "$folder"
    for name in gstreamer1.0-facepipe facepipe-backend facepipe; do
        file=$(built "${name}_*_arm64.deb")
        dpkg-deb --extract "$file" "$folder"
    done
    plugins=$folder/usr/lib/aarch64-linux-gnu/gstreamer-1.0
    emulate=(env -u GST_PLUGIN_PATH -u GST_PLUGIN_PATH_1_0 "GST_PLUGIN_SYSTEM_PATH_1_0=$plugins:$sysroot/usr/lib/aarch64-linux-gnu/gstreamer-1.0"
        "GST_REGISTRY=$place/registry.bin" GST_REGISTRY_FORK=no qemu-aarch64 -L "$sysroot")
    for name in facepipe facepipe-backend; do
        said+=("$(says "$name" "$("${emulate[@]}" "$folder/usr/bin/$name" --version)")")
    done
    printf -v line '%s, ' "${said[@]}"
    say "arm64: ${line%, }"
    rm -f "$place/registry.bin"
    for element in facedetect facetrack facecrop facesink-http faceoverlay; do
        line=$("${emulate[@]}" "$sysroot/usr/bin/gst-inspect-1.0" "facepipe-$element" 2>&1) || fail "arm64: $element: $line"
        grep -q "Filename *$plugins/libgstfacepipe.so" <<<"$line" || fail "arm64: $element is not the package's: $line"
        says "$element" "$(grep -m 1 -oP '^ *Version *\K.*' <<<"$line")" >/dev/null
    done
    say "arm64: GStreamer $("${emulate[@]}" "$sysroot/usr/bin/gst-inspect-1.0" --version | sed -n 's/^GStreamer //p') has all elements"
    rm -f "$place/registry.bin"
    faces arm64 "${emulate[@]}" "$sysroot/usr/bin/gst-launch-1.0"
    say "arm64: the plugin finds the 6 faces of a photograph, with the package's own ONNX Runtime"
    rm -rf "$folder"
}

# The tarball of this machine, unpacked anywhere.
prove_tarball() {
    local folder=$place/tarball found
    found=$(built 'facepipe-*-x86_64-unknown-linux-gnu.tar.gz')
    rm -rf "$folder"
    mkdir "$folder"
    tar --extract --file "$found" --directory "$folder" --strip-components=1
    for found in facepipe facepipe-backend; do
        says "the tarball's $found" "$("$folder/bin/$found" --version)" >/dev/null
    done
    faces tarball env -u GST_PLUGIN_PATH "GST_PLUGIN_PATH_1_0=$folder/lib/gstreamer-1.0" gst-launch-1.0
    (cd / && FACEPIPE_MIRROR=$FACEPIPE_MIRROR "$folder/bin/facepipe" models fetch detector >/dev/null)
    [[ -f $folder/share/facepipe/models/version-RFB-320.onnx ]] || fail "the tarball's models fetch puts weights elsewhere"
    rm -rf "$folder"
    say "tarball: finds the 6 faces of a photograph from a folder of its own"
}

[[ -e $packages/SHA256SUMS ]] || fail "there are no packages in $packages: run packaging/build.sh"
(cd "$packages" && sha256sum --check --quiet SHA256SUMS) || fail "SHA256SUMS"
commit=$(cd "$packages" && grep -ohP '\S+\.cdx\.json$' SHA256SUMS | xargs grep -ohP 'pkg:github/facepipe/facepipe@\K[0-9a-f]+' | sort -u)
[[ $commit =~ ^[0-9a-f]+$ ]] || fail "the SBOMs in $packages do not name one commit"
if ((${#suites[@]})); then
    prove_tarball
    say "an earlier version of the same programs"
    packaging/build.sh --arch amd64 --reuse --version 0.0.1 --out "$place/earlier" >"$place/earlier.log" ||
        { tail "$place/earlier.log" >&2; fail "the earlier version"; }
fi
for suite in "${suites[@]}"; do
    prove "$suite"
done
[[ $arm64 == no ]] || prove_arm64
say "done"
