#!/usr/bin/env bash
# benches/compare/run.sh [PART [OPTIONS]]
# Times us and our peers in Python side by side, and puts what came out into target/bench/report.json. PART is networks,
# serving, edge, training, scaling, gallery or instructions, and OPTIONS are those of its script (networks.py and so on say which);
# without, all of them, and then what came out is held against what was recorded (recorded.py).
# Installs the peers into an environment of their own first (about 6 GB, most of it PyTorch's).
set -euo pipefail
cd "$(dirname "$0")/../.."

peers=.runtime/tools/peers
requirements=benches/compare/requirements.txt
target=${CARGO_TARGET_DIR:-target}
report=target/bench/report.json
models=$(realpath "${FACEPIPE_MODELS:-models}")
# Photographs, scenes and videos.
mirror=$models/assets
[[ -d $mirror/lfw10 ]] || mirror=${FACEPIPE_MIRROR:-$mirror}

install_peers() {
    cmp -s "$requirements" "$peers/installed.txt" && return
    echo "Installing the peers into $peers (once)"
    [[ -x $peers/bin/python ]] || python3 -m venv "$peers"
    # All that is needed is listed; facenet-pytorch's own limits for what it needs are older than the rest.
    "$peers/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$requirements"
    cp "$requirements" "$peers/installed.txt"
}

# All in one command: each alone would have what they share built once more, with other features.
programs() {
    cargo build --release --locked -p gst-plugin-facepipe -p facepipe-backend -p facepipe-cli
}

# The program of a bench target that prints nothing by itself.
bench_program() {
    cargo bench --locked --no-run --message-format=json -p "$1" --bench "$2" |
        python3 -c 'import json, sys
# All is read: cargo goes on after the line that is wanted.
programs = [m["executable"] for m in map(json.loads, sys.stdin)
            if m.get("target", {}).get("name") == sys.argv[1] and m.get("executable")]
print(programs[0])' "$2"
}

compare() {
    local part=$1
    shift
    echo
    echo "benches/compare/$part.py:"
    case $part in
        networks)
            "$peers/bin/python" benches/compare/networks.py "$(bench_program facepipe-vision worker)" "$models" "$mirror" \
                "$report" "$@"
            ;;
        serving)
            programs
            "$peers/bin/python" benches/compare/serving.py "$target/release" "$models" "$mirror" "$report" "$@"
            ;;
        edge)
            programs
            scripts/plugin-folder.sh "$target/release" .runtime/gstreamer-1.0-release
            "$peers/bin/python" benches/compare/edge.py "$PWD/.runtime/gstreamer-1.0-release" "$models" "$mirror" "$report" "$@"
            ;;
        training)
            "$peers/bin/python" benches/compare/training.py "$(bench_program facepipe-identify training)" "$report" "$@"
            ;;
        scaling)
            programs
            "$peers/bin/python" benches/compare/scaling.py "$target/release" "$models" "$mirror" "$report" \
                --store "$(bench_program facepipe-backend store)" "$@"
            ;;
        gallery)
            programs
            "$peers/bin/python" benches/compare/gallery.py "$target/release" "$models" "$mirror" "$report" \
                --searcher "$(bench_program facepipe-identify training)" --store "$(bench_program facepipe-backend store)" "$@"
            ;;
        instructions)
            "$peers/bin/python" benches/compare/instructions.py "$(bench_program facepipe-vision worker)" "$mirror" "$@"
            ;;
        *)
            echo "There is no part $part: networks, serving, edge, training, scaling, gallery or instructions" >&2
            exit 2
            ;;
    esac
}

install_peers
if (($# > 0)); then
    compare "$@"
else
    for part in networks serving edge training scaling gallery instructions; do
        compare "$part"
    done
    "$peers/bin/python" benches/compare/recorded.py "$report"
fi
