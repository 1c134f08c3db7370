#!/usr/bin/env bash
# Installs the Debian packages for building and running the demo; with an argument also those for: `build` building
# everything, `test` tests, `bench` benchmarks, `images` executing Dockerfiles, `cross` building for arm64, `packages`
# building users' packages, `npm` npm's client, which fetches some models where their publishers cannot be reached. Quick when
# none is missing.
set -euo pipefail

packages=(
    # building: C compiler, assembler of the JPEG decoder, GStreamer's headers
    build-essential nasm pkg-config
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
    # running: decoders, gst-launch-1.0, gst-inspect-1.0
    gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good
    gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav
    # windows on X11
    gstreamer1.0-x
    # pip fetches models that are published inside Python wheels; schemathesis tests the API from a virtual environment
    python3 python3-pip python3-venv
    ca-certificates curl
)

if [[ ${1:-} == build || ${1:-} == test || ${1:-} == bench ]]; then
    # database clients that diesel links; a change of the system's libraries makes cargo compile diesel again, so the packages
    # for tests are installed before any build
    packages+=(libpq-dev default-libmysqlclient-dev)
fi
if [[ ${1:-} == test || ${1:-} == bench ]]; then
    # database servers and a load balancer, which tests and benchmarks start themselves
    packages+=(postgresql mariadb-server-core mariadb-client nginx-light)
fi
if [[ ${1:-} == bench ]]; then
    # counts instructions
    packages+=(valgrind)
fi
if [[ ${1:-} == test ]]; then
    # monitoring, and a checker of alerts
    packages+=(prometheus)
    # a network camera for the tests of pipelines/
    packages+=(gir1.2-gst-rtsp-server-1.0 python3-gi)
    # a screen for the tests of windows
    packages+=(xvfb)
    # static checks of scripts and services
    packages+=(shellcheck systemd)
fi
# npm may come from another source
if [[ ${1:-} == npm ]] && ! command -v npm >/dev/null; then
    packages+=(npm)
fi
if [[ ${1:-} == images ]]; then
    packages+=(debootstrap)
fi
if [[ ${1:-} == cross || ${1:-} == packages ]]; then
    packages+=(crossbuild-essential-arm64 mmdebstrap qemu-user)
fi
if [[ ${1:-} == packages ]]; then
    # a checker of packages, and a builder of the systems in which they are tested
    packages+=(lintian debootstrap)
fi

missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) == ii* ]] || missing+=("$package")
done

if ((${#missing[@]})); then
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || {
            echo "These packages are missing, and neither root nor sudo is available to install them:" >&2
            echo "  apt-get install ${missing[*]}" >&2
            exit 1
        }
        as_root=(sudo)
    fi
    echo "Installing ${#missing[@]} Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    # Programs that tests start must not run as services of this machine.
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
        "${as_root[@]}" chmod +x /usr/sbin/policy-rc.d
        trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    # Shows the progress, unless Python itself is missing.
    report=() options=()
    if command -v python3 >/dev/null; then
        report=("$(dirname "$0")/progress.py" apt)
        options=(-o APT::Status-Fd=1)
    fi
    "${report[@]}" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        "${options[@]}" "${missing[@]}"
fi

command -v cargo >/dev/null || {
    echo "Rust is missing: install it with rustup (https://rustup.rs), then run this again." >&2
    exit 1
}
